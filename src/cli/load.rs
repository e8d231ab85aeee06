//! `load`: sends chat at a server and says what it held.

mod rooms;

use std::{
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    process::ExitCode,
    time::Duration,
};

use chatting_actors::{clock::system_ms, types::Role};
use clap::{Args, builder::RangedU64ValueParser};

use self::rooms::Rooms;
use super::{Failure, SettingsArgs, eprint, print, signing::SigningArgs, until_it_ends};
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
    /// The server; of a name's addresses the first that takes a connection
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    addr: String,
    /// Rooms; presenters 1000000, 1000001, … must be live, or see --start-rooms
    #[arg(long, default_value_t = 100, value_parser = some())]
    rooms: u64,
    /// The first room's number. Senders are the users below it: with 32, from 999968 on. Where there are too few
    /// numbers below, they are those behind the last room
    #[arg(long, default_value_t = FIRST_ROOM, value_parser = RangedU64ValueParser::<u64>::new().range(0..=LAST))]
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
    /// Give each message an Idempotency-Key of its own. A user may have idempotency.sender_max of them in
    /// idempotency.window_seconds, all may have idempotency.max: set these, or --users, for what is sent
    #[arg(long)]
    keys: bool,
    /// What presenters speak
    #[arg(long, value_enum, default_value = "legacy")]
    speaks: Speaks,
    /// More presenters, in rooms of their own, that log in and read nothing
    #[arg(long, default_value_t = 0, value_parser = RangedU64ValueParser::<u64>::new().range(0..=MOST))]
    stalled: u64,
    /// Messages a second to their rooms
    #[arg(long, default_value_t = 1000, value_parser = some())]
    stalled_rate: u64,
    /// Bytes of those messages' texts
    #[arg(long, default_value_t = 1000, value_parser = text_bytes())]
    stalled_text_bytes: u64,
    /// Make the rooms live in the server's embedded room server (room.mode = "embedded") first. They stay live, for the
    /// next run
    #[arg(long)]
    start_rooms: bool,
    /// End those broadcasts again at the end, and on Ctrl-C; not of rooms that were live before. Where the server ends
    /// none in ten seconds, the rest stays live
    #[arg(long, requires = "start_rooms")]
    stop_rooms: bool,
    /// Wait for a line on standard input when all presenters are connected, and for another with them still connected when the
    /// report is printed; standard error says `connected` and `done`. For measuring a server from outside. Where messages
    /// were refused or not answered, `done` comes after two seconds in which nothing came: what comes all the same counts
    #[arg(long)]
    in_steps: bool,
    /// Print the report as JSON; how far it is still goes to standard error
    #[arg(long)]
    json: bool,
}

/// More than anybody means.
const MOST: u64 = 1_000_000_000;

/// The highest first room: all numbers behind it are a user's (docs/SENDING.md, "Tokens").
const LAST: u64 = (i64::MAX as u64) - 4 * MOST;

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
    let found = args.addr.to_socket_addrs();
    let found: Vec<_> = found.map_err(|error| format!("{}: {error}", args.addr))?.collect();
    let addr = reachable(&found).map_err(|error| format!("{}: {error}", args.addr))?;
    let token = |user: u64, role| {
        mint(
            &key,
            &Mint {
                user_idx: i64::try_from(user).unwrap_or(i64::MAX),
                nickname: "load",
                role,
                rooms: &[],
                issued_at: system_ms() / 1000,
                // Longer than anything is sent, however long that is.
                ttl_seconds: i64::try_from(args.seconds).unwrap_or(i64::MAX / 2) + 86_400,
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
        keys: args.keys,
        presenter_tokens: tokens(args.first_room, if args.absent { 0 } else { args.rooms })?,
        sender_tokens: tokens(first_user(args), users(args))?,
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
    until_it_ends(async {
        let mut interrupts = Interrupts::caught()?;
        let mut rooms = Rooms::new(addr, operator, PATIENCE);
        let ended = measured(args, plan, &mut rooms, &mut interrupts).await;
        let stopped = tokio::select! {
            biased;
            stopped = rooms.stop() => stopped,
            () = interrupts.next() => Err("interrupted: rooms stay live".into()),
        };
        if let (Err(_), Err(left)) = (&ended, &stopped) {
            eprint(&format!("chatting-server: {left}"));
        }
        let code = ended?;
        stopped?;
        Ok(code)
    })
}

async fn measured(
    args: &LoadArgs,
    plan: Plan,
    rooms: &mut Rooms,
    interrupts: &mut Interrupts,
) -> Result<ExitCode, Failure> {
    if args.start_rooms {
        let all = args.first_room..args.first_room + args.rooms + args.stalled;
        tokio::select! {
            started = rooms.start(all, args.stop_rooms) => started?,
            () = interrupts.next() => return Err(Failure::problem("interrupted before the first message")),
        }
    }
    let (report, connected) = run_plan(plan, interrupts).await?;
    if args.json {
        let json = serde_json::to_string(&report).map_err(|error| error.to_string())?;
        print(&format!("{json}\n"));
    } else {
        print(&report.table());
        if args.start_rooms && !args.stop_rooms {
            print("the rooms stay live; with --stop-rooms they do not\n");
        }
    }
    if args.in_steps {
        told("done", interrupts).await;
    }
    drop(connected);
    match report.fault(args.absent) {
        None => Ok(ExitCode::SUCCESS),
        Some(fault) => Err(fault.into()),
    }
}

/// The number of the first who sends: below the rooms, so that none is the presenter of one, and that `erase` finds
/// nobody else there.
fn first_user(args: &LoadArgs) -> u64 {
    let behind = args.first_room + args.rooms + args.stalled;
    args.first_room.checked_sub(users(args)).unwrap_or(behind)
}

fn users(args: &LoadArgs) -> u64 {
    args.users.unwrap_or(args.senders)
}

/// The first of a name's addresses that takes a connection. One that is alone is not tried.
fn reachable(found: &[SocketAddr]) -> Result<SocketAddr, String> {
    if let [only] = found {
        return Ok(*only);
    }
    let mut errors = Vec::new();
    for addr in found {
        match TcpStream::connect_timeout(addr, PATIENCE) {
            Ok(_) => return Ok(*addr),
            Err(error) => errors.push(format!("{addr}: {error}")),
        }
    }
    match errors.is_empty() {
        true => Err("it has no address".into()),
        false => Err(errors.join("; ")),
    }
}

fn bytes(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn args(args: &[&str]) -> LoadArgs {
        Cli::try_parse_from([&["load"], args].concat()).unwrap().load
    }

    #[test]
    fn senders_are_the_users_below_the_rooms_or_behind_them_where_those_are_too_few() {
        let first = |given: &[&str]| first_user(&args(given));
        assert_eq!(first(&[]), 999_968);
        assert_eq!(first(&["--users", "5", "--first-room", "12"]), 7);
        assert_eq!(first(&["--senders", "12", "--first-room", "12"]), 0);
        let behind = ["--first-room", "12", "--rooms", "3", "--stalled", "4"];
        assert_eq!(first(&behind), 19);
    }

    #[test]
    fn of_a_names_addresses_the_first_that_takes_a_connection_is_the_server() {
        // One that is bound and does not listen takes none, and nobody else gets its port.
        let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
        deaf.bind(&local.into()).unwrap();
        let deaf = deaf.local_addr().unwrap().as_socket().unwrap();
        let listener = std::net::TcpListener::bind(local).unwrap();
        let server = listener.local_addr().unwrap();
        assert_eq!(reachable(&[deaf, server]), Ok(server));
        let error = reachable(&[deaf, deaf]).unwrap_err();
        assert!(error.contains("Connection refused"), "{error}");
        assert!(reachable(&[]).is_err());
    }
}
