//! A user's traces in a spool: events that the store does not have yet, parked ones, idempotency keys.
//!
//! No index leads to them, so the spool is read through in the order of its rows. It is the operator's command that asks, with the
//! server stopped.
//!
//! An act about the user that the store has not applied yet is all that hides what it covers. Where that is under legal hold, the
//! act stays with it.

use std::{path::Path, time::Duration};

use chatting_actors::{
    seams::{Pos, SpoolError},
    types::UserIdx,
};
use rusqlite::{Connection, Row, TransactionBehavior, params, types::Value};
use uuid::Uuid;

use super::SqliteSpool;
use crate::store::{
    keeping::{Holds, Trace},
    open_to_read, row, sqlite,
};

/// How long those who read the file are waited for when it is rewritten.
const READERS: Duration = Duration::from_secs(5);

/// What was found of a user.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// What the user sent and the store does not have yet, acts of moderation too.
    pub events: u64,
    /// What of it is parked.
    pub parked: u64,
    /// Idempotency keys.
    pub keys: u64,
    /// Acts of others that name the user.
    pub mentions: u64,
    /// What is under legal hold, or hides what is, each with its broadcast; it is not among the others.
    pub held: Vec<(Uuid, Trace)>,
    /// What of that the user sent.
    sent_held: Vec<(Uuid, Trace)>,
}

/// What is left as it is.
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    /// The broadcasts under legal hold.
    pub holds: &'a Holds,
    /// What the store has of the user and is held, each with its broadcast.
    pub stored: &'a [(Uuid, Trace)],
}

/// Rows of one table that know the user in one way, and what is done to them.
struct Traces {
    table: &'static str,
    /// The table's key, in whose order it is read.
    key: &'static str,
    /// What comes before every key.
    start: Value,
    which: &'static str,
    change: &'static str,
    /// They are acts about the user, not what the user sent.
    acts: bool,
    count: fn(&mut Found) -> &mut u64,
}

const SENT: (&str, &str) = (
    "user_idx = ?2",
    "user_idx = ?2, nickname = '', message = '', role = 'viewer', idempotency_key = NULL",
);
const ABOUT: (&str, &str) = (
    concat!(sqlite::about!(), " = ?2"),
    "act = json_set(act, '$.user_idx', ?2)",
);

fn all_traces() -> [Traces; 4] {
    let spool = |(which, change), acts, count| Traces {
        table: "spool",
        key: "pos",
        start: Value::Integer(Pos::MIN),
        which,
        change,
        acts,
        count,
    };
    let parked = |(which, change), acts, count| Traces {
        table: "parked",
        key: "id",
        start: Value::Blob(Vec::new()),
        which,
        change,
        acts,
        count,
    };
    [
        spool(SENT, false, |found| &mut found.events),
        parked(SENT, false, |found| &mut found.parked),
        spool(ABOUT, true, |found| &mut found.mentions),
        parked(ABOUT, true, |found| &mut found.mentions),
    ]
}

/// Counts what a spool has of a user; the server may be running.
pub fn count(path: &Path, user: UserIdx, kept: Kept<'_>, batch: usize) -> rusqlite::Result<Found> {
    let mut connection = open_to_read(path)?;
    let snapshot = connection.transaction()?;
    let mut found = Found::default();
    for traces in all_traces() {
        let mut after = traces.start.clone();
        while traces
            .next(&snapshot, user, kept, batch, &mut after, &mut found)?
            .is_some()
        {}
    }
    let keys = "SELECT COUNT(*) FROM keys WHERE user_idx = ?1";
    let keys: i64 = snapshot.query_row(keys, [user.get()], |row| row.get(0))?;
    found.keys = keys.cast_unsigned();
    Ok(found)
}

impl Traces {
    /// The keys of the next rows that are not held, and where to go on; `None` when there are no more.
    fn next(
        &self,
        connection: &Connection,
        user: UserIdx,
        kept: Kept<'_>,
        batch: usize,
        after: &mut Value,
        found: &mut Found,
    ) -> rusqlite::Result<Option<Vec<Value>>> {
        let Self { table, key, which, .. } = self;
        let sql = format!(
            "SELECT id, presenter_idx, IFNULL((SELECT epoch FROM epochs WHERE n = {table}.epoch), ''), seq, broadcast_id, {key}
             FROM {table} WHERE {key} > ?1 AND {which} ORDER BY {key} LIMIT ?3"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let limit = i64::try_from(batch).unwrap_or(i64::MAX);
        let read = |row: &Row<'_>| Ok((row::trace(row)?, row.get::<_, Value>(5)?));
        let rows: Vec<(Trace, Value)> = statement
            .query_map(params![&*after, user.get(), limit], read)?
            .collect::<rusqlite::Result<_>>()?;
        match rows.last() {
            Some((_, last)) => after.clone_from(last),
            None => return Ok(None),
        }
        let mut free = Vec::new();
        for (one, key) in rows {
            let hides = || {
                self.acts
                    .then(|| hidden_by(&one, kept.stored, &found.sent_held))
                    .flatten()
            };
            match kept.holds.hold(&one).or_else(hides) {
                Some(broadcast) => {
                    if !self.acts {
                        found.sent_held.push((broadcast, one.clone()));
                    }
                    found.held.push((broadcast, one));
                }
                None => free.push(key),
            }
        }
        *(self.count)(found) += free.len() as u64;
        Ok(Some(free))
    }

    fn erase(&self, connection: &Connection, keys: &[Value]) -> rusqlite::Result<()> {
        let Self { table, key, change, .. } = self;
        let mut update = connection.prepare_cached(&format!("UPDATE {table} SET {change} WHERE {key} = ?1"))?;
        for key in keys {
            update.execute(params![key, UserIdx::ERASED.get()])?;
        }
        Ok(())
    }
}

/// The broadcast of something held of the user that came before this act in its room, and that the act may hide.
fn hidden_by(act: &Trace, stored: &[(Uuid, Trace)], spooled: &[(Uuid, Trace)]) -> Option<Uuid> {
    let mut held = stored.iter().chain(spooled);
    let covered = held.find(|(_, sent)| sent.presenter == act.presenter && sent.id < act.id);
    covered.map(|(broadcast, _)| *broadcast)
}

impl SqliteSpool {
    /// Empties what a user sent, at most `batch` a transaction, and forgets the user's keys. What is held stays.
    ///
    /// Acts about the user are for [`Self::erase_mentions`], when the store has nothing of the user any more: until then
    /// such an act may be all that hides what the store has.
    pub fn erase_sent(&mut self, user: UserIdx, kept: Kept<'_>, batch: usize) -> Result<Found, SpoolError> {
        let mut found = Found::default();
        self.erase_traces(false, user, kept, batch, &mut found)?;
        found.keys = self.with(|_, connection| {
            let keys = connection.execute("DELETE FROM keys WHERE user_idx = ?1", [user.get()])?;
            Ok(keys as u64)
        })?;
        Ok(found)
    }

    /// Takes the user's number out of acts about the user, behind [`Self::erase_sent`], to whose findings it adds its
    /// own.
    pub fn erase_mentions(
        &mut self,
        user: UserIdx,
        kept: Kept<'_>,
        batch: usize,
        found: &mut Found,
    ) -> Result<(), SpoolError> {
        self.erase_traces(true, user, kept, batch, found)
    }

    /// Erases acts about the user, or what the user sent.
    fn erase_traces(
        &mut self,
        acts: bool,
        user: UserIdx,
        kept: Kept<'_>,
        batch: usize,
        found: &mut Found,
    ) -> Result<(), SpoolError> {
        for traces in all_traces().into_iter().filter(|traces| traces.acts == acts) {
            let mut after = traces.start.clone();
            let mut more = true;
            while more {
                more = self.with(|_, connection| {
                    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                    let Some(keys) = traces.next(&transaction, user, kept, batch, &mut after, found)? else {
                        return Ok(false);
                    };
                    traces.erase(&transaction, &keys)?;
                    transaction.commit()?;
                    Ok(true)
                })?;
            }
        }
        Ok(())
    }

    /// Rewrites the file, so that nothing is left in it of what was taken out. Needs room on the disk for two more copies.
    ///
    /// # Errors
    /// SQLite's own; and that somebody went on reading the file for five seconds. It may still have what was taken out then.
    pub fn rewrite(&mut self) -> Result<(), SpoolError> {
        let shared = self.connection();
        self.with(|_, connection| sqlite::rewrite(shared.path(), connection, READERS))
    }
}
