//! `erase`: a user's right to be forgotten, as a command on a stopped server's files and its store.
//!
//! What the user sent goes from the spool first and then from the store, so that nothing is taken from one to the other
//! unerased. Acts of others about the user come last: one that is still in the spool may be all that hides what the store
//! has. Each step may be done again.

use std::{collections::HashSet, process::ExitCode, sync::Arc};

use chatting_actors::{
    clock::system_ms,
    seams::{SpoolError, SpoolFault, StoreError},
    types::UserIdx,
};
use clap::Args;
use futures_util::{FutureExt, future::LocalBoxFuture};
use uuid::Uuid;

use super::{
    Exit, Failure, SettingsArgs,
    log::{Log, behind, in_place, let_go, must_exist, take_spool, to_read},
    print,
    serve::stop_signal,
    until_it_ends,
};
use crate::{
    settings::Settings,
    store::{
        Archive, SqliteSpool, files_aside,
        keeping::{Holds, Trace},
        spool::erasure::{self, Kept},
    },
    telemetry,
};

#[derive(Args)]
pub(super) struct EraseArgs {
    /// The user's number
    #[arg(long, value_name = "NUMBER")]
    user: i64,
    /// Change nothing and tell what would be done; the server may be running
    #[arg(long)]
    dry_run: bool,
    /// Erase messages of broadcasts under legal hold too
    #[arg(long)]
    despite_hold: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: &EraseArgs) -> Result<ExitCode, Failure> {
    let settings = args.settings.load()?.settings;
    let user = UserIdx::new(args.user).filter(|user| *user != UserIdx::ERASED);
    let user = user.ok_or_else(|| Failure::usage(format!("--user {}: no user has this number", args.user)))?;
    telemetry::init(&settings);
    must_exist(&settings)?;
    until_it_ends(async {
        match args.dry_run {
            true => tell_aside(tell(args, &settings, user).await?, &settings),
            false => erase(args, &settings, user).await,
        }
    })
}

/// Tells what is not reached; returns how it ends where so much is left.
fn tell_aside(left: usize, settings: &Settings) -> Result<ExitCode, Failure> {
    let aside = files_aside(settings.log.path.as_ref())?;
    for file in &aside {
        print(&format!(
            "not reached: {}, a damaged spool that was set aside; delete it when nothing is needed of it any more\n",
            file.display()
        ));
    }
    match left > 0 || !aside.is_empty() {
        true => Ok(Exit::Problem.into()),
        false => Ok(ExitCode::SUCCESS),
    }
}

fn not_rewritten(path: &str, error: &SpoolError) -> Failure {
    let cure = match error.fault {
        SpoolFault::Full => "make room for two more copies of it (one of them in SQLITE_TMPDIR, where that is set)",
        SpoolFault::NotBegun => {
            "make it writable, and its directory (and SQLITE_TMPDIR, where that is set), or end what reads it (`spool \
             verify`, a backup, sqlite3)"
        }
        SpoolFault::Unsure => "end what reads it (`spool verify`, a backup, sqlite3)",
    };
    Failure::unavailable(format!(
        "{path} is not rewritten, so what was erased may be in it still: {error}\n{cure}, and run it again"
    ))
}

fn not_asked(error: StoreError) -> Failure {
    Failure::unavailable(format!("the store: {error}"))
}

async fn holds(args: &EraseArgs, store: &dyn Archive) -> Result<Holds, Failure> {
    match args.despite_hold {
        true => Ok(Holds::default()),
        false => store.holds().await.map_err(not_asked),
    }
}

/// Those that are not held; the others are added to `held`.
fn split(traces: Vec<Trace>, holds: &Holds, held: &mut Vec<(Uuid, Trace)>) -> Vec<Trace> {
    let mut free = Vec::new();
    for trace in traces {
        match holds.hold(&trace) {
            Some(broadcast) => held.push((broadcast, trace)),
            None => free.push(trace),
        }
    }
    free
}

/// What is held, in words; returns how many messages that are.
fn tell_held(held: &[(Uuid, Trace)]) -> usize {
    // One that its own author deleted was found twice: as sent by the user, and as deleted.
    let mut told = HashSet::new();
    for (broadcast, trace) in held.iter().filter(|(_, trace)| told.insert(trace.id)) {
        print(&format!(
            "left, under legal hold: broadcast {broadcast}, room {}, seq {}, id {}\n",
            trace.presenter, trace.seq, trace.id
        ));
    }
    let left = told.len();
    if left > 0 {
        print(&format!(
            "left: {left} under legal hold (--despite-hold erases them too)\n"
        ));
    }
    left
}

/// How much that is not held the store has of what a user sent, and what of it is held.
async fn sent(
    store: &dyn Archive,
    user: UserIdx,
    holds: &Holds,
    batch: usize,
) -> Result<(u64, Vec<(Uuid, Trace)>), Failure> {
    let (mut events, mut held, mut seen) = (0, Vec::new(), 0);
    loop {
        let traces = store.traces(user, seen, batch).await.map_err(not_asked)?;
        let all = traces.len();
        seen += all;
        events += split(traces, holds, &mut held).len() as u64;
        if all < batch {
            return Ok((events, held));
        }
    }
}

async fn tell(args: &EraseArgs, settings: &Settings, user: UserIdx) -> Result<usize, Failure> {
    let store = to_read(settings).await?;
    let (holds, batch) = (holds(args, &*store).await?, settings.log.batch_max);
    let (events, mut held) = sent(&*store, user, &holds, batch).await?;
    let kept = Kept {
        holds: &holds,
        stored: &held,
    };
    let spooled = erasure::count(settings.log.path.as_ref(), user, kept, batch)
        .map_err(|error| Failure::unavailable(format!("the spool: {error}")))?;
    held.extend_from_slice(&spooled.held);
    let (mut mentions, mut after) = (0, None);
    loop {
        let traces = store.mentions(user, after, batch).await.map_err(not_asked)?;
        let all = traces.len();
        after = traces.last().map(|last| last.id);
        mentions += split(traces, &holds, &mut held).len() as u64;
        if all < batch {
            break;
        }
    }
    told("would erase", &spooled, events, mentions);
    Ok(tell_held(&held))
}

fn told(what: &str, spooled: &erasure::Found, events: u64, mentions: u64) {
    print(&format!(
        "{what} in the spool: events {}, parked events {}, idempotency keys {}, acts of others that name the user {}\n\
         {what} in the store: events {events}, acts and deletions of others that name the user {mentions}\n",
        spooled.events, spooled.parked, spooled.keys, spooled.mentions
    ));
}

/// Ctrl-C, looked at between two steps.
struct Stop(LocalBoxFuture<'static, ()>);

impl Stop {
    fn go_on(&mut self) -> Result<(), Failure> {
        match self.0.as_mut().now_or_never() {
            None => Ok(()),
            Some(()) => Err(Failure::interrupted("run it again to go on")),
        }
    }
}

async fn erase(args: &EraseArgs, settings: &Settings, user: UserIdx) -> Result<ExitCode, Failure> {
    let mut stop = Stop(stop_signal()?.boxed_local());
    let why = "what it holds in its spool must be erased too (--dry-run only looks)";
    let (mut spool, _) = take_spool(settings, why)?;
    let left = erase_all(args, settings, user, &mut spool, &mut stop).await;
    let done = left.and_then(|left| tell_aside(left, settings));
    let_go(spool, settings, done)
}

async fn erase_all(
    args: &EraseArgs,
    settings: &Settings,
    user: UserIdx,
    spool: &mut SqliteSpool,
    stop: &mut Stop,
) -> Result<usize, Failure> {
    let Log { store, place } = behind(settings, spool, false).await?;
    let work = erase_from(args, settings, user, spool, store, stop);
    in_place(place, not_asked, work).await
}

async fn erase_from(
    args: &EraseArgs,
    settings: &Settings,
    user: UserIdx,
    spool: &mut SqliteSpool,
    store: Arc<dyn Archive>,
    stop: &mut Stop,
) -> Result<usize, Failure> {
    let batch = settings.log.batch_max;
    store.prepare().await.map_err(not_asked)?;
    let holds = holds(args, &*store).await?;
    let (_, stored) = sent(&*store, user, &holds, batch).await?;
    let kept = Kept {
        holds: &holds,
        stored: &stored,
    };
    let mut spooled = spool.erase_sent(user, kept, batch).map_err(Failure::spool)?;
    let (mut events, mut held) = (0, Vec::new());
    // What is erased is not found again, so only what is held must be stepped over.
    let mut skip = 0;
    loop {
        stop.go_on()?;
        let traces = store.traces(user, skip, batch).await.map_err(not_asked)?;
        let all = traces.len();
        let free = split(traces, &holds, &mut held);
        skip += all - free.len();
        store.erase(&free, system_ms()).await.map_err(not_asked)?;
        events += free.len() as u64;
        if all < batch {
            break;
        }
    }
    // The server is stopped: nothing came to the store meanwhile that these acts hide.
    let acts = spool.erase_mentions(user, kept, batch, &mut spooled);
    acts.map_err(Failure::spool)?;
    held.append(&mut spooled.held);
    let (mut mentions, mut after) = (0, None);
    loop {
        stop.go_on()?;
        let traces = store.mentions(user, after, batch).await.map_err(not_asked)?;
        let all = traces.len();
        after = traces.last().map(|last| last.id);
        let free = split(traces, &holds, &mut held);
        store.erase_mentions(user, &free).await.map_err(not_asked)?;
        mentions += free.len() as u64;
        if all < batch {
            break;
        }
    }
    told("erased", &spooled, events, mentions);
    stop.go_on()?;
    spool
        .rewrite()
        .map_err(|error| not_rewritten(&settings.log.path, &error))?;
    print(&format!("rewritten: {}\n", settings.log.path));
    Ok(tell_held(&held))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Durability, SpoolSettings};

    fn said(fault: SpoolFault) -> String {
        let why = "it failed".into();
        not_rewritten("chat.db", &SpoolError { why, fault }).text
    }

    #[test]
    fn who_erases_is_told_what_the_rewriting_of_the_file_lacks() {
        for (fault, cure) in [
            (SpoolFault::Full, "make room for two more copies"),
            (SpoolFault::NotBegun, "make it writable"),
            (SpoolFault::Unsure, "end what reads it"),
        ] {
            let text = said(fault);
            assert!(text.contains(": it failed\n") && text.contains(cure), "{text}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_needs_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, _) = SqliteSpool::open(SpoolSettings {
            path: dir.path().join("chat.db"),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: true,
        })
        .unwrap();
        let read_only = |connection: &mut rusqlite::Connection| connection.pragma_update(None, "query_only", true);
        spool.connection().run(read_only).unwrap();
        let error = spool.rewrite().unwrap_err();
        assert_eq!(error.fault, SpoolFault::NotBegun, "{error:?}");
    }
}
