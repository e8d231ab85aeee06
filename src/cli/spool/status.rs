//! `spool status`: what a spool holds, for people or for machines.

use std::process::ExitCode;

use chatting_actors::clock::system_ms;
use clap::Args;
use serde_json::json;

use super::{Failure, counted, print};
use crate::store::inspect::{SpoolFile, Status};

/// Parked events that are shown to people one by one.
const PARKED_SHOWN: usize = 5;

#[derive(Args)]
pub(super) struct StatusArgs {
    /// Print one JSON object; times are milliseconds since 1970, and parked events are listed (the first thousand)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs, spool: &SpoolFile) -> Result<ExitCode, Failure> {
    let status = spool.status()?;
    if args.json {
        let mut value = json!(status);
        value["now_ms"] = system_ms().into();
        print(&format!("{value}\n"));
    } else {
        print(&text(&status, system_ms()));
    }
    Ok(ExitCode::SUCCESS)
}

/// What a line is of, and what it says.
type Line = (&'static str, String);

fn text(status: &Status, now_ms: i64) -> String {
    let broadcasts = status.broadcasts;
    let mut lines = of_file(status);
    lines.extend(of_events(status, now_ms));
    lines.push((
        "broadcasts",
        format!("{} to go, {} of them refused", broadcasts.count, broadcasts.refused),
    ));
    lines.push(("keys", format!("{} remembered", status.keys)));
    lines.extend(of_parked(status));
    lines
        .iter()
        .map(|(name, value)| format!("{name:<11} {value}\n"))
        .collect()
}

/// The file itself, and what became of the server that has it or had it.
fn of_file(status: &Status) -> Vec<Line> {
    let new_rooms = match (status.asks_store, status.salvaged) {
        (false, _) => "begin at seq 1",
        (true, false) => "ask the store for their last seq: this spool is younger than the log",
        (true, true) => {
            "ask the store for their last seq: this spool was salvaged from a damaged one, or is an old copy"
        }
    };
    vec![
        ("spool", status.path.display().to_string()),
        (
            "size",
            format!(
                "{} in the file ({} in use), {} in its WAL",
                bytes(status.file_bytes),
                bytes(status.used_bytes),
                bytes(status.wal_bytes)
            ),
        ),
        ("format", status.format.to_string()),
        ("epoch", known(status.epoch.as_ref())),
        ("log", log_of(status)),
        ("run", run_of(status)),
        ("new rooms", new_rooms.to_owned()),
    ]
}

/// The events that the store does not have yet.
fn of_events(status: &Status, now_ms: i64) -> Vec<Line> {
    let (events, rooms) = (&status.events, status.rooms_waiting);
    let mut lines = vec![(
        "to go",
        format!("{} of {}", counted(events.count, "event"), counted(rooms, "room")),
    )];
    for (name, at) in [("  oldest", events.oldest_ms), ("  newest", events.newest_ms)] {
        if let Some(at) = at {
            lines.push((name, format!("{}, {} ago", time(at), age(now_ms - at))));
        }
    }
    for room in &status.rooms {
        let (count, first, last) = (counted(room.count, "event"), room.first_seq, room.last_seq);
        lines.push((
            "  room",
            format!("{}: {count}, seq {first} to {last}", room.presenter_idx),
        ));
    }
    lines
}

fn of_parked(status: &Status) -> Vec<Line> {
    let parked = &status.parked;
    let mut lines = vec![(
        "parked",
        format!(
            "{}, that the store refused for good, or kept for those",
            counted(parked.count, "event")
        ),
    )];
    for reason in &parked.reasons {
        lines.push(("  reason", format!("{} x {}", reason.count, reason.reason)));
    }
    for event in parked.events.iter().take(PARKED_SHOWN) {
        let (id, room) = (known(event.id.as_ref()), known(event.presenter_idx.as_ref()));
        let seq = known(event.seq.as_ref());
        lines.push(("  event", format!("{id}: room {room}, seq {seq}: {}", event.reason)));
    }
    if parked.count > PARKED_SHOWN as u64 {
        lines.push(("  event", "… the others are in --json".into()));
    }
    lines
}

fn known(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

/// Who has it, or how it was left.
fn run_of(status: &Status) -> String {
    let durability = known(status.durability.as_ref());
    match (&status.held_by, status.stopped_cleanly) {
        (Some(holder), _) => format!("in use by {holder}, durability {durability}"),
        (None, true) => format!("stopped cleanly, durability was {durability}"),
        (None, false) => {
            let lost = if durability == "disk" {
                "nothing accepted is missing"
            } else {
                "the last events may be missing"
            };
            format!("not stopped cleanly (killed, or a crash); durability was {durability}, so {lost}")
        }
    }
}

fn log_of(status: &Status) -> String {
    let backend = status.backend.as_deref().unwrap_or("unknown");
    match status.log.map(|log| (log.oldest_ms, log.newest_ms)) {
        None => match &status.log_id {
            Some(id) => format!(
                "{backend}, {id}, met in the database \"{}\"",
                known(status.log_database.as_ref())
            ),
            None => backend.to_owned(),
        },
        Some((Some(oldest), Some(newest))) => {
            format!(
                "{backend}, in this file: events from {} to {}",
                time(oldest),
                time(newest)
            )
        }
        Some(_) => format!("{backend}, in this file: no event"),
    }
}

fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| format!("{time:.3}"))
}

/// The two greatest units of a time; a clock that was set back gives 0 s.
fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        let cases = [
            (-5, "0 s"),
            (59_999, "59 s"),
            (61_000, "1 min 1 s"),
            (7_260_000, "2 h 1 min"),
            (180_000_000, "2 d 2 h"),
        ];
        for (ms, expected) in cases {
            assert_eq!(age(ms), expected);
        }
    }
}
