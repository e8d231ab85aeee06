//! The three accounts, held against each other: what the senders were told, what the presenters have, what the log has.

use std::collections::{BTreeMap, HashMap, HashSet};

use rusqlite::Connection;
use uuid::Uuid;

use crate::{presenter::Record, sender::Sent};

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub room: i64,
    pub epoch: String,
    pub seq: u64,
    pub id: String,
    pub text: String,
}

/// Everything that the embedded log holds.
pub fn log(spool: &Connection) -> Vec<Logged> {
    let mut rows = spool
        .prepare("SELECT presenter_idx, epoch, seq, id, message FROM chatting_log ORDER BY presenter_idx, seq")
        .unwrap();
    let rows = rows.query_map([], |row| {
        Ok(Logged {
            room: row.get(0)?,
            epoch: row.get(1)?,
            seq: u64::try_from(row.get::<_, i64>(2)?).unwrap(),
            id: Uuid::from_bytes(row.get(3)?).to_string(),
            text: row.get(4)?,
        })
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub accepted: u64,
    /// Given up after refusals only.
    pub refused: u64,
    /// Accepted, and not with its presenter under the seq that was answered.
    pub lost: u64,
    /// Accepted, and not in the log under the seq that was answered.
    pub not_logged: u64,
    /// More than once with a presenter or in the log.
    pub twice: u64,
    /// Numbers missing from a presenter's or the log's 1, 2, 3 …
    pub holes: u64,
    pub violations: Vec<String>,
}

/// Judges a run, room by room.
pub fn judge(sent: &[Sent], seen: &BTreeMap<i64, Record>, log: &[Logged]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut logged: HashMap<(i64, u64), &Logged> = HashMap::new();
    let mut texts = HashSet::new();
    for entry in log {
        let seq_twice = logged.insert((entry.room, entry.seq), entry).is_some();
        if seq_twice || !texts.insert(entry.text.as_str()) {
            verdict.twice += 1;
            verdict.violations.push(format!("twice in the log: {entry:?}"));
        }
    }
    let mut count: BTreeMap<i64, u64> = BTreeMap::new();
    for one in sent {
        let Some(answer) = &one.accepted else {
            verdict.refused += 1;
            if texts.contains(one.text.as_str()) {
                verdict
                    .violations
                    .push(format!("refused, and logged all the same: {}", one.key));
            }
            continue;
        };
        verdict.accepted += 1;
        *count.entry(one.room).or_default() += 1;
        let Record { epoch, chats } = &seen[&one.room];
        let place = usize::try_from(answer.seq).ok().and_then(|seq| seq.checked_sub(1));
        let have = place.and_then(|place| chats.get(place));
        if have.is_none_or(|have| (&have.id, &have.text) != (&answer.id, &one.text))
            || epoch.as_ref() != Some(&answer.epoch)
        {
            verdict.lost += 1;
            verdict
                .violations
                .push(format!("lost: {one:?}; its presenter has {have:?} there"));
        }
        let expected = Logged {
            room: one.room,
            epoch: answer.epoch.clone(),
            seq: answer.seq,
            id: answer.id.clone(),
            text: one.text.clone(),
        };
        let entry = logged.get(&(one.room, answer.seq));
        if entry.is_none_or(|entry| **entry != expected) {
            verdict.not_logged += 1;
            verdict
                .violations
                .push(format!("not logged: {one:?}; the log has {entry:?} there"));
        }
    }
    for (room, Record { chats, .. }) in seen {
        // Each that was accepted is at its place, so equal counts mean that there is nothing else.
        let expected = count.get(room).copied().unwrap_or(0);
        let entries = log.iter().filter(|entry| entry.room == *room).count() as u64;
        if chats.len() as u64 != expected || entries != expected {
            verdict.violations.push(format!(
                "room {room}: accepted {expected}, with the presenter {}, in the log {entries}",
                chats.len()
            ));
        }
        let once: HashSet<_> = chats.iter().map(|chat| &chat.text).collect();
        let twice = chats.len() - once.len();
        if twice > 0 {
            verdict.twice += twice as u64;
            verdict.violations.push(format!("room {room} has {twice} texts twice"));
        }
        let holes = (1..=expected)
            .filter(|seq| !logged.contains_key(&(*room, *seq)))
            .count() as u64;
        verdict.holes += holes + expected.saturating_sub(chats.len() as u64);
    }
    verdict
}
