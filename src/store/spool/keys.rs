//! Idempotency keys, in the order of time: each in the commit of its message, read once, at a start.
//!
//! Those whose window is over go some at a time: with the rows that are freed, and, so that they do not pile up while the store is away and
//! nothing is freed, with what is committed.

use std::collections::HashMap;

use chatting_actors::{
    idempotency::{KeyRow, Keyed},
    outcome::{Accepted, Delivery},
    seams::Pos,
    types::{Epoch, Event, PresenterIdx, Seq, UserIdx},
};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use uuid::Uuid;

const INSERT_KEY: &str = "
INSERT INTO keys(epoch, presenter_idx, seq, id, sent_at, user_idx, key, fingerprint)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// So many go at most in the transaction that frees rows, for which commits wait.
pub(super) const FREED_AT_ONCE: usize = 4096;

/// So many come before a commit takes others away: nearly all commits are without a statement for that.
const COME: usize = 512;

/// What commits take away of those whose window is over.
pub(super) struct Expired {
    before_ms: i64,
    /// How many came since the last were taken away.
    come: usize,
    /// Some could not be: that is left to who frees rows, so that a bad page among them costs no commit after this one.
    failed: bool,
}

impl Expired {
    /// None is known to be yet.
    pub fn new() -> Self {
        Self {
            before_ms: i64::MIN,
            come: 0,
            failed: false,
        }
    }

    /// Those of messages that were sent before may go.
    pub fn are_before(&mut self, ms: i64) {
        self.before_ms = ms;
    }

    /// Takes some away within a commit's transaction, where so many have come since the last time that it is due: twice as many, so
    /// that those become fewer that were left before.
    pub fn trim(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.come < COME || self.failed {
            return Ok(());
        }
        connection.prepare_cached("SAVEPOINT expired")?.execute([])?;
        if let Err(error) = trim(connection, self.before_ms, 2 * self.come) {
            self.failed = error.sqlite_error_code() != Some(ErrorCode::DiskFull);
            // It may have ended the whole transaction.
            if connection.is_autocommit() {
                return Err(error);
            }
            log::warn!("spool: commits take no keys away any more whose window is over: {error}");
            connection.execute_batch("ROLLBACK TO expired")?;
        }
        connection.prepare_cached("RELEASE expired")?.execute([])?;
        Ok(())
    }

    /// So many came with a commit that stands.
    pub fn came(&mut self, keyed: usize) {
        if self.come >= COME {
            self.come = 0;
        }
        self.come += keyed;
    }
}

/// Takes away the oldest that were sent before, at most so many. Rows are in the order of time, so what is old is found from the front,
/// without an index; and no more of it is looked at than may go.
pub(super) fn trim(connection: &Connection, before_ms: i64, most: usize) -> rusqlite::Result<()> {
    let mut oldest = connection.prepare_cached("SELECT MIN(pos) FROM keys")?;
    let Some(first) = oldest.query_row([], |row| row.get::<_, Option<Pos>>(0))? else {
        return Ok(());
    };
    let end = first.saturating_add(Pos::try_from(most).unwrap_or(Pos::MAX));
    let mut kept =
        connection.prepare_cached("SELECT pos FROM keys WHERE pos < ?1 AND sent_at >= ?2 ORDER BY pos LIMIT 1")?;
    let kept: Option<Pos> = kept.query_row([end, before_ms], |row| row.get(0)).optional()?;
    let mut delete = connection.prepare_cached("DELETE FROM keys WHERE pos < ?1")?;
    delete.execute([kept.unwrap_or(end)])?;
    Ok(())
}

pub(super) fn insert(connection: &Connection, epoch: i64, event: &Event, keyed: &Keyed) -> rusqlite::Result<()> {
    connection.prepare_cached(INSERT_KEY)?.execute(params![
        epoch,
        event.presenter_idx.get(),
        event.seq.0.cast_signed(),
        &event.id.as_bytes()[..],
        event.sent_at_ms,
        event.chat.user_idx.get(),
        &*keyed.key,
        &keyed.fingerprint()[..],
    ])?;
    Ok(())
}

/// Those that are not older than that.
pub(super) fn read(
    connection: &Connection,
    epochs: &HashMap<i64, Epoch>,
    since_ms: i64,
) -> rusqlite::Result<Vec<KeyRow>> {
    // What is older is taken away by who frees rows or commits, not by who reads.
    let mut statement = connection.prepare(
        "SELECT epoch, presenter_idx, seq, id, sent_at, user_idx, key, fingerprint FROM keys
         WHERE pos >= (SELECT pos FROM keys WHERE sent_at >= ?1 ORDER BY pos LIMIT 1) ORDER BY pos",
    )?;
    let rows = statement.query_map([since_ms], |found| {
        let bad = rusqlite::Error::QueryReturnedNoRows;
        let (Some(presenter), Some(user_idx), Some(epoch)) = (
            PresenterIdx::new(found.get(1)?),
            UserIdx::new(found.get(5)?),
            epochs.get(&found.get(0)?).cloned(),
        ) else {
            return Err(bad);
        };
        Ok(KeyRow {
            user_idx,
            keyed: Keyed::restored(user_idx, presenter, &found.get::<_, String>(6)?, found.get(7)?),
            accepted: Accepted {
                id: Uuid::from_bytes(found.get(3)?),
                seq: Seq(found.get::<_, i64>(2)?.cast_unsigned()),
                epoch,
                sent_at_ms: found.get(4)?,
                // Whether a session was there is not kept; the message has been numbered and logged.
                delivery: Delivery::Held,
            },
        })
    })?;
    // A key that cannot be read costs its sender a second message at worst; it must not cost everyone the start.
    Ok(rows
        .filter_map(|row| row.inspect_err(|error| log::error!("spool: a key: {error}")).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use chatting_actors::{
        clock::EventClock,
        seams::Spool,
        types::{ChatMessage, MessageText, Nickname, Role},
        writer::SpoolInfo,
    };

    use super::*;
    use crate::store::{Durability, SpoolSettings, SqliteSpool};

    fn open(path: &Path) -> (SqliteSpool, SpoolInfo) {
        SqliteSpool::open(SpoolSettings {
            path: path.to_owned(),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: false,
        })
        .unwrap()
    }

    /// As many keys of messages that were sent in the first milliseconds of 1970.
    fn leave_old(spool: &SqliteSpool, count: usize) {
        let shared = spool.connection();
        let left = shared.run(|connection| {
            let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                       INSERT INTO keys(epoch, presenter_idx, seq, id, sent_at, user_idx, key, fingerprint)
                       SELECT 1, 1, i, randomblob(16), i / 1000, i, hex(randomblob(18)), randomblob(16) FROM n";
            connection.execute(sql, [count.cast_signed()])?;
            connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        });
        left.unwrap();
    }

    fn count(spool: &SqliteSpool) -> usize {
        let shared = spool.connection();
        let counted =
            shared.run(|connection| connection.query_row("SELECT COUNT(*) FROM keys", [], |row| row.get::<_, i64>(0)));
        counted.unwrap().cast_unsigned() as usize
    }

    fn keyed(clock: &mut EventClock, info: &SpoolInfo, seq: u64) -> Arc<Event> {
        let (sent_at_ms, id) = clock.stamp();
        let (room, user) = (PresenterIdx::new(1).unwrap(), UserIdx::new(7).unwrap());
        Arc::new(Event {
            id,
            presenter_idx: room,
            epoch: info.epoch.clone(),
            seq: Seq(seq),
            sent_at_ms,
            room_idx: None,
            broadcast_id: None,
            act: None,
            chat: ChatMessage {
                user_idx: user,
                nickname: Nickname::new("kim", 64).unwrap(),
                text: MessageText::maybe_empty("hi".to_owned(), 2000).unwrap(),
                role: Role::Viewer,
            },
            keyed: Some(Keyed::new(user, room, &format!("key {seq}"), "hi")),
        })
    }

    #[test]
    fn rule_17_old_keys_that_piled_up_go_some_at_a_time_and_all_in_the_end() {
        const OLD: usize = 200_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let (mut spool, info) = open(&path);
        leave_old(&spool, OLD);
        let mut clock = EventClock::after(info.last_ms);
        let event = keyed(&mut clock, &info, 1);
        let pos = spool.commit(std::slice::from_ref(&event)).unwrap();
        spool.free(pos, &[], event.sent_at_ms).unwrap();
        assert_eq!(count(&spool), OLD + 1 - FREED_AT_ONCE);
        let wal = std::fs::metadata(path.with_extension("db-wal")).unwrap().len();
        assert!(wal < 2_000_000, "{wal}");
        for _ in 0..OLD / FREED_AT_ONCE {
            spool.free(pos, &[], event.sent_at_ms).unwrap();
        }
        let left: Vec<_> = spool
            .read_keys(0)
            .unwrap()
            .into_iter()
            .map(|row| row.accepted.id)
            .collect();
        assert_eq!(left, [event.id], "what is within the window stays");
    }

    #[test]
    fn rule_17_keys_do_not_pile_up_while_nothing_is_freed() {
        const WINDOW: usize = 2000;
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, info) = open(&dir.path().join("chat.db"));
        leave_old(&spool, 10_000);
        let mut clock = EventClock::after(info.last_ms);
        let mut sent: Vec<Arc<Event>> = Vec::new();
        for _ in 0..250 {
            let events: Vec<_> = (0..100)
                .map(|n| keyed(&mut clock, &info, sent.len() as u64 + n + 1))
                .collect();
            let oldest = sent.len().saturating_sub(WINDOW);
            spool.forget_keys(sent.get(oldest).map_or(i64::MIN, |event| event.sent_at_ms));
            spool.commit(&events).unwrap();
            sent.extend(events);
        }
        let (kept, within) = (count(&spool), &sent[sent.len() - WINDOW..]);
        assert!(kept <= WINDOW + 2 * COME, "{kept}");
        let rows = spool.read_keys(0).unwrap();
        let ids = rows[rows.len() - WINDOW..].iter().map(|row| row.accepted.id);
        assert!(
            ids.eq(within.iter().map(|event| event.id)),
            "what is within the window stays"
        );
    }

    #[test]
    fn rule_17_old_keys_that_cannot_be_taken_away_cost_no_commit() {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, info) = open(&dir.path().join("chat.db"));
        leave_old(&spool, 10);
        let shared = spool.connection();
        let trigger =
            "CREATE TEMP TRIGGER bad BEFORE DELETE ON main.keys WHEN OLD.seq = 5 BEGIN SELECT RAISE(ABORT, 'bad'); END";
        shared.run(|connection| connection.execute_batch(trigger)).unwrap();
        let mut clock = EventClock::after(info.last_ms);
        for commit in 0..3 {
            let seqs = 1 + commit * COME as u64..=(commit + 1) * COME as u64;
            let events: Vec<_> = seqs.map(|seq| keyed(&mut clock, &info, seq)).collect();
            spool.forget_keys(events[0].sent_at_ms);
            spool.commit(&events).unwrap();
        }
        assert_eq!(count(&spool), 10 + 3 * COME, "nor is a part of them taken away");
    }
}
