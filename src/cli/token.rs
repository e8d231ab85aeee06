//! `token`: mints a token for trying things.

use std::process::ExitCode;

use chatting_actors::{
    clock::system_ms,
    types::{PresenterIdx, Role},
};
use clap::Args;

use super::{Failure, SettingsArgs, print, signing::SigningArgs};
use crate::auth::{Mint, mint};

#[derive(Args)]
pub(super) struct TokenArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    signing: SigningArgs,
    /// The user's number; a presenter's token is the one of its own number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    user: i64,
    /// The name shown beside messages
    #[arg(long, default_value = "tester")]
    nickname: String,
    /// moderator or operator
    #[arg(long, value_parser = role)]
    role: Option<Role>,
    /// A room (presenter number) that a moderator is staff of, or * for all; may be given again; with --role moderator only
    #[arg(long = "room", value_name = "N", value_parser = room)]
    rooms: Vec<String>,
    /// Seconds until it expires
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    ttl: i64,
}

fn role(name: &str) -> Result<Role, String> {
    match Role::parse(name) {
        Some(role @ (Role::Moderator | Role::Operator)) => Ok(role),
        _ => Err("allowed: moderator, operator (a presenter is known by the number, everyone else is a viewer)".into()),
    }
}

fn room(name: &str) -> Result<String, String> {
    let number = name.parse().ok().and_then(PresenterIdx::new);
    match number {
        Some(number) => Ok(number.to_string()),
        None if name == "*" => Ok(name.to_owned()),
        None => Err("a presenter's number, or * for all rooms".into()),
    }
}

pub(super) fn run(args: &TokenArgs) -> Result<ExitCode, Failure> {
    if !args.rooms.is_empty() && args.role != Some(Role::Moderator) {
        return Err(Failure::usage(
            "--room: with --role moderator only; an operator is staff of every room",
        ));
    }
    let settings = args.settings.load()?.settings;
    let key = args.signing.key(&settings)?;
    let token = mint(
        &key,
        &Mint {
            user_idx: args.user,
            nickname: &args.nickname,
            role: args.role,
            rooms: &args.rooms,
            issued_at: system_ms() / 1000,
            ttl_seconds: args.ttl,
            auth: &settings.auth,
        },
    )?;
    print(&format!("{token}\n"));
    Ok(ExitCode::SUCCESS)
}
