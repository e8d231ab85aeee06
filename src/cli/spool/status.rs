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

fn text(status: &Status, now_ms: i64) -> String {
    let unknown = || "unknown".to_owned();
    let durability = status.durability.clone().unwrap_or_else(unknown);
    let run = match (&status.held_by, status.stopped_cleanly) {
        (Some(holder), _) => format!("in use by {holder}, durability {durability}"),
        (None, true) => format!("stopped cleanly, durability was {durability}"),
        (None, false) if durability == "disk" => {
            format!(
                "not stopped cleanly (killed, or a crash); durability was {durability}, so nothing accepted is missing"
            )
        }
        (None, false) => {
            format!(
                "not stopped cleanly (killed, or a crash); durability was {durability}, so the last events may be missing"
            )
        }
    };
    let mut lines = vec![
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
        ("epoch", status.epoch.clone().unwrap_or_else(unknown)),
        ("log", log_of(status)),
        ("run", run),
        (
            "new rooms",
            match (status.asks_store, status.salvaged) {
                (false, _) => "begin at seq 1".into(),
                (true, false) => "ask the store for their last seq: this spool is younger than the log".into(),
                (true, true) => "ask the store for their last seq: this spool was salvaged from a damaged one".into(),
            },
        ),
        (
            "to go",
            format!(
                "{} of {}",
                counted(status.events.count, "event"),
                counted(status.rooms_waiting, "room")
            ),
        ),
    ];
    for (name, at) in [
        ("  oldest", status.events.oldest_ms),
        ("  newest", status.events.newest_ms),
    ] {
        if let Some(at) = at {
            lines.push((name, format!("{}, {} ago", time(at), age(now_ms - at))));
        }
    }
    for room in &status.rooms {
        let (count, first, last) = (room.count, room.first_seq, room.last_seq);
        lines.push((
            "  room",
            format!(
                "{}: {}, seq {first} to {last}",
                room.presenter_idx,
                counted(count, "event")
            ),
        ));
    }
    let broadcasts = status.broadcasts;
    lines.push((
        "broadcasts",
        format!("{} to go, {} of them refused", broadcasts.count, broadcasts.refused),
    ));
    lines.push(("keys", format!("{} remembered", status.keys)));
    lines.push((
        "parked",
        format!(
            "{}, that the store refused for good, or kept for those",
            counted(status.parked.count, "event")
        ),
    ));
    for reason in &status.parked.reasons {
        lines.push(("  reason", format!("{} x {}", reason.count, reason.reason)));
    }
    for event in status.parked.events.iter().take(PARKED_SHOWN) {
        let id = event.id.map_or_else(unknown, |id| id.to_string());
        lines.push((
            "  event",
            format!(
                "{id}: room {}, seq {}: {}",
                event.presenter_idx.map_or_else(unknown, |room| room.to_string()),
                event.seq.map_or_else(unknown, |seq| seq.to_string()),
                event.reason
            ),
        ));
    }
    if status.parked.count > PARKED_SHOWN as u64 {
        lines.push(("  event", "… the others are in --json".into()));
    }
    lines
        .iter()
        .map(|(name, value)| format!("{name:<11} {value}\n"))
        .collect()
}

fn log_of(status: &Status) -> String {
    let backend = status.backend.as_deref().unwrap_or("unknown");
    match status.log.map(|log| (log.oldest_ms, log.newest_ms)) {
        None => backend.to_owned(),
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
