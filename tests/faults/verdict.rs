//! What must hold when a round is over: compares what senders were told, what presenters saw and what the log has.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use mongodb::bson::RawDocument;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    load::{Outcome, Sent},
    plan::Plan,
    presenters::Seen,
};

/// So many violations are told; the rest are counted.
const TOLD: usize = 20;

/// An entry of the log.
#[derive(Clone, Debug, Serialize)]
pub struct Logged {
    pub id: String,
    pub room: i64,
    pub epoch: String,
    pub seq: u64,
    pub text: String,
    pub key: Option<String>,
}

impl Logged {
    /// What [`Self::of_row`] reads.
    pub const COLUMNS: &str = "SELECT id, presenter_idx, epoch, seq, message, idempotency_key FROM chatting_log";

    /// An entry of the embedded log.
    pub fn of_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: Uuid::from_bytes(row.get(0)?).to_string(),
            room: row.get(1)?,
            epoch: row.get(2)?,
            seq: u64::try_from(row.get::<_, i64>(3)?).unwrap(),
            text: row.get(4)?,
            key: row.get(5)?,
        })
    }

    pub fn of_document(document: &RawDocument) -> Self {
        Self {
            id: Uuid::from_slice(document.get_binary("_id").unwrap().bytes)
                .unwrap()
                .to_string(),
            room: document.get_i64("presenter_idx").unwrap(),
            epoch: document.get_str("epoch").unwrap().to_owned(),
            seq: u64::try_from(document.get_i64("seq").unwrap()).unwrap(),
            text: document.get_str("message").unwrap().to_owned(),
            key: document.get_str("idempotency_key").ok().map(str::to_owned),
        }
    }
}

/// What a round came to.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub accepted: u64,
    pub refused: u64,
    pub unknown: u64,
    /// Of the unknown, so many are in the log.
    pub unknown_logged: u64,
    pub frames: u64,
    /// Accepted, and never seen: sent into a socket that was cut.
    pub unseen: u64,
    /// Accepted, and not in the log with the id and the seq that were answered.
    pub lost: u64,
    /// In the log, or seen by a presenter, more than once.
    pub twice: u64,
    pub violations: Vec<String>,
}

impl Verdict {
    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// The first violations, and how many more there are.
    pub fn told(&self) -> String {
        let mut told: Vec<String> = self.violations.iter().take(TOLD).cloned().collect();
        if self.violations.len() > TOLD {
            told.push(format!("… and {} more", self.violations.len() - TOLD));
        }
        told.join("\n  ")
    }
}

/// Judges a round. Where nothing was promised, what was accepted may be gone, and whoever sends it again is heard again; but no number of an
/// epoch is given twice, and the log has nothing that was refused. Where no presenter was ever cut off, each must have seen everything that was accepted; where one was, and
/// the log was there all the time, nothing may be left out but at a cut.
pub fn judge(sent: &[Sent], seen: &BTreeMap<i64, Vec<Seen>>, log: &[Logged], plan: &Plan) -> Verdict {
    let mut verdict = Verdict::default();
    let promised = plan.promised;
    let mut by_text: HashMap<&str, &Logged> = HashMap::new();
    for logged in log {
        if by_text.insert(&logged.text, logged).is_some() && promised {
            verdict.twice += 1;
            verdict.violation(format!("twice in the log: {}", brief(&logged.text)));
        }
    }
    told(&mut verdict, sent, &by_text, promised);
    strangers(&mut verdict, sent, log);
    numbers(&mut verdict, log, promised);
    given_once(&mut verdict, sent, log);
    if !promised {
        verdict.frames = seen.values().map(|frames| frames.len() as u64).sum();
        return verdict;
    }
    for (room, frames) in seen {
        order(&mut verdict, *room, frames, &by_text, plan.spares_store());
    }
    everything(&mut verdict, sent, seen, !plan.cuts_sessions());
    verdict
}

/// What each sender was told is what the log has.
fn told(verdict: &mut Verdict, sent: &[Sent], by_text: &HashMap<&str, &Logged>, promised: bool) {
    for one in sent {
        let logged = by_text.get(one.text.as_str());
        match &one.outcome {
            Outcome::Accepted(answer) => {
                verdict.accepted += 1;
                if !promised {
                    continue;
                }
                let Some(logged) = logged else {
                    verdict.lost += 1;
                    verdict.violation(format!("lost: {} was answered {answer:?}", one.key));
                    continue;
                };
                let as_told = (&logged.id, logged.seq, &logged.epoch) == (&answer.id, answer.seq, &answer.epoch);
                if !as_told || logged.room != one.room || logged.key.as_deref() != Some(&one.key) {
                    verdict.lost += 1;
                    verdict.violation(format!(
                        "{} was answered {answer:?}, the log has {logged:?}",
                        brief(&one.text)
                    ));
                }
            }
            Outcome::Refused => {
                verdict.refused += 1;
                if let Some(logged) = logged {
                    verdict.violation(format!(
                        "refused, and logged all the same: {} as {}",
                        one.key, logged.seq
                    ));
                }
            }
            Outcome::Unknown => {
                verdict.unknown += 1;
                verdict.unknown_logged += u64::from(logged.is_some());
            }
        }
    }
}

fn strangers(verdict: &mut Verdict, sent: &[Sent], log: &[Logged]) {
    let texts: HashSet<&str> = sent.iter().map(|sent| sent.text.as_str()).collect();
    for logged in log.iter().filter(|logged| !texts.contains(logged.text.as_str())) {
        verdict.violation(format!("in the log, and sent by nobody: {logged:?}"));
    }
}

/// In each room the numbers of an epoch are 1, 2, 3 …; and a spool that is fsynced has one epoch for good. Where nothing is promised, a
/// number may be gone.
fn numbers(verdict: &mut Verdict, log: &[Logged], promised: bool) {
    let mut rooms: BTreeMap<(i64, &str), Vec<u64>> = BTreeMap::new();
    for logged in log {
        rooms.entry((logged.room, &logged.epoch)).or_default().push(logged.seq);
    }
    for ((room, epoch), mut numbers) in rooms {
        if !promised {
            continue;
        }
        numbers.sort_unstable();
        let wrong = (1..).zip(&numbers).find(|(expected, number)| expected != *number);
        if let Some((expected, number)) = wrong {
            verdict.violation(format!("room {room}, epoch {epoch}: {number} where {expected} belongs"));
        }
    }
    let epochs: BTreeSet<&str> = log.iter().map(|logged| logged.epoch.as_str()).collect();
    if promised && epochs.len() > 1 {
        verdict.violation(format!("more than one epoch: {epochs:?}"));
    }
}

/// No number of an epoch is two messages', in what was answered and in the log, whatever became of the first.
fn given_once(verdict: &mut Verdict, sent: &[Sent], log: &[Logged]) {
    let answered = sent.iter().filter_map(|one| match &one.outcome {
        Outcome::Accepted(answer) => Some((one.room, &answer.epoch, answer.seq, &answer.id)),
        _ => None,
    });
    let logged = log.iter().map(|one| (one.room, &one.epoch, one.seq, &one.id));
    let mut given = HashMap::new();
    for (room, epoch, seq, id) in answered.chain(logged) {
        let first = *given.entry((room, epoch, seq)).or_insert(id);
        if first != id {
            verdict.violation(format!("room {room}, epoch {epoch}: {seq} is {first} and {id}"));
        }
    }
}

/// What a presenter saw is in the log, once, and in the log's order; with `whole` nothing is left out on a socket.
fn order(verdict: &mut Verdict, room: i64, frames: &[Seen], by_text: &HashMap<&str, &Logged>, whole: bool) {
    let (mut last, mut socket) = (0, 0);
    let mut once = HashSet::new();
    for frame in frames {
        verdict.frames += 1;
        let text = brief(&frame.text);
        if !once.insert(&frame.text) {
            verdict.twice += 1;
            verdict.violation(format!("room {room} saw it twice: {text}, on socket {}", frame.socket));
            continue;
        }
        match by_text.get(frame.text.as_str()) {
            Some(logged) if logged.room == room && logged.seq > last => {
                if whole && frame.socket == socket && logged.seq != last + 1 {
                    verdict.violation(format!(
                        "room {room} saw {} after seq {last}, on the same socket {socket}: what is between is left out",
                        logged.seq
                    ));
                }
                (last, socket) = (logged.seq, frame.socket);
            }
            Some(logged) => {
                verdict.violation(format!(
                    "room {room} saw {text} after seq {last}; the log has it in room {} as {}",
                    logged.room, logged.seq
                ));
            }
            None => verdict.violation(format!("room {room} saw what the log lacks: {text}")),
        }
    }
}

/// Counts what was accepted and no presenter saw: with `all_seen` nothing may be.
fn everything(verdict: &mut Verdict, sent: &[Sent], seen: &BTreeMap<i64, Vec<Seen>>, all_seen: bool) {
    let seen: HashSet<&str> = seen.values().flatten().map(|seen| seen.text.as_str()).collect();
    for one in sent {
        if matches!(one.outcome, Outcome::Accepted(_)) && !seen.contains(one.text.as_str()) {
            verdict.unseen += 1;
            if all_seen {
                verdict.violation(format!(
                    "accepted, and never seen on a socket without a cut: {}",
                    one.key
                ));
            }
        }
    }
}

/// A text without its filling.
fn brief(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}
