//! `load`: sends chat at a server and says what it held.

use std::{net::ToSocketAddrs, ops::Range, process::ExitCode, time::Duration};

use chatting_actors::{clock::system_ms, types::Role};
use clap::{Args, builder::RangedU64ValueParser};

use super::{Failure, SettingsArgs, print, signing::SigningArgs, until_it_ends};
use crate::{
    auth::{Mint, mint},
    load::{Interrupts, PATIENCE, Plan, Speaks, Stalled, run as run_plan, told},
};

#[derive(Args)]
pub(super) struct LoadArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    signing: SigningArgs,
    /// The server
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    addr: String,
    /// Rooms; presenters 1000000, 1000001, … must be live, or see --start-rooms
    #[arg(long, default_value_t = 100, value_parser = some())]
    rooms: u64,
    /// The first room's number
    #[arg(long, default_value_t = FIRST_ROOM)]
    first_room: u64,
    /// Nobody presents: every message is to be refused
    #[arg(long)]
    absent: bool,
    /// Connections that send
    #[arg(long, default_value_t = 32, value_parser = some())]
    senders: u64,
    /// Users that messages come from in turn; without it one a connection
    #[arg(long, value_parser = some())]
    users: Option<u64>,
    /// Messages in all, if --seconds are not over first
    #[arg(long, value_parser = some())]
    messages: Option<u64>,
    /// Messages a second in all; without it each sender sends as soon as it was answered
    #[arg(long, value_parser = some())]
    rate: Option<u64>,
    /// Seconds of sending
    #[arg(long, default_value_t = 10, value_parser = some())]
    seconds: u64,
    /// Bytes of a message's text, at least as many as its stamp needs (some 30)
    #[arg(long, default_value_t = 60, value_parser = text_bytes())]
    text_bytes: u64,
    /// What presenters speak
    #[arg(long, value_enum, default_value = "legacy")]
    speaks: Speaks,
    /// More presenters, in rooms of their own, that log in and read nothing
    #[arg(long, default_value_t = 0)]
    stalled: u64,
    /// Messages a second to their rooms
    #[arg(long, default_value_t = 1000, value_parser = some())]
    stalled_rate: u64,
    /// Bytes of those messages' texts
    #[arg(long, default_value_t = 1000, value_parser = text_bytes())]
    stalled_text_bytes: u64,
    /// Make the rooms live in the server's embedded room server (room.mode = "embedded") first
    #[arg(long)]
    start_rooms: bool,
    /// Wait for a line on standard input when all presenters are connected, and for another with them still connected when the
    /// report is printed; standard error says `connected` and `done`. For measuring a server from outside
    #[arg(long)]
    in_steps: bool,
    /// Print the report as JSON; how far it is still goes to standard error
    #[arg(long)]
    json: bool,
}

/// More than anybody means.
const MOST: u64 = 1_000_000_000;

/// At least one.
fn some() -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(1..=MOST)
}

/// A text's, up to what no body may be.
fn text_bytes() -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(0..=1_000_000)
}

/// Far from numbers that people have.
const FIRST_ROOM: u64 = 1_000_000;

pub(super) fn run(args: &LoadArgs) -> Result<ExitCode, Failure> {
    let settings = args.settings.load()?.settings;
    let key = args.signing.key(&settings)?;
    let mut found = args
        .addr
        .to_socket_addrs()
        .map_err(|error| format!("{}: {error}", args.addr))?;
    let addr = found.next().ok_or_else(|| format!("{}: no such address", args.addr))?;
    let token = |user: u64, role| {
        mint(
            &key,
            &Mint {
                user_idx: i64::try_from(user).unwrap_or(i64::MAX),
                nickname: "load",
                role,
                rooms: &[],
                issued_at: system_ms() / 1000,
                ttl_seconds: 86_400,
                auth: &settings.auth,
            },
        )
    };
    let tokens = |first: u64, count: u64| {
        (first..first + count)
            .map(|user| token(user, None))
            .collect::<Result<_, _>>()
    };
    let plan = Plan {
        addr,
        rooms: args.rooms,
        first_room: args.first_room,
        senders: args.senders,
        messages: args.messages,
        rate: args.rate,
        duration: Duration::from_secs(args.seconds),
        patience: PATIENCE,
        text_bytes: bytes(args.text_bytes),
        presenter_tokens: tokens(args.first_room, if args.absent { 0 } else { args.rooms })?,
        sender_tokens: tokens(1, args.users.unwrap_or(args.senders))?,
        speaks: args.speaks,
        stalled: Stalled {
            tokens: tokens(args.first_room + args.rooms, args.stalled)?,
            rate: args.stalled_rate,
            text_bytes: bytes(args.stalled_text_bytes),
        },
        // Who goes step by step reads standard error.
        progress: !args.in_steps,
        waits: args.in_steps,
    };
    let operator = token(0, Some(Role::Operator))?;
    let absent = args.absent;
    until_it_ends(async {
        if args.start_rooms {
            let rooms = args.first_room..args.first_room + args.rooms + args.stalled;
            start_rooms(&args.addr, rooms, &operator).await?;
        }
        let mut interrupts = Interrupts::caught()?;
        let (report, connected) = run_plan(plan, &mut interrupts).await?;
        if args.json {
            let json = serde_json::to_string(&report).map_err(|error| error.to_string())?;
            print(&format!("{json}\n"));
        } else {
            print(&report.table());
        }
        if args.in_steps {
            told("done", &mut interrupts).await;
        }
        drop(connected);
        match report.fault(absent) {
            None => Ok(ExitCode::SUCCESS),
            Some(fault) => Err(fault.into()),
        }
    })
}

fn bytes(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

async fn start_rooms(addr: &str, rooms: Range<u64>, operator: &str) -> Result<(), String> {
    let client = awc::Client::default();
    for room in rooms {
        let body = serde_json::json!({ "presenterIdx": room.to_string() });
        let request = client
            .post(format!("http://{addr}/room/live/start"))
            .insert_header(("token", operator));
        let answer = request.send_json(&body).await.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            let embedded = if answer.status() == awc::http::StatusCode::NOT_FOUND {
                "; only a server with room.mode = \"embedded\" starts rooms"
            } else {
                ""
            };
            return Err(format!("room {room} cannot be started: {}{embedded}", answer.status()));
        }
    }
    Ok(())
}
