//! Retention, legal hold and erasure in the embedded log.

use std::collections::HashMap;

use chatting_actors::{
    broadcast::Broadcast,
    seams::StoreError,
    types::{PresenterIdx, Seq, UserIdx},
};
use futures_util::future::{BoxFuture, FutureExt};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use uuid::Uuid;

use super::{SqliteStore, about, count, last_seq};
use crate::store::{
    keeping::{Expired, Holds, Keeping, RecordChange, Trace, first_id_of},
    row,
};

const OLD_EVENTS: &str = "
SELECT id, presenter_idx, epoch, seq, broadcast_id FROM chatting_log WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?3";

const OF_USER: &str = "
SELECT id, presenter_idx, epoch, seq, broadcast_id FROM chatting_log INDEXED BY chatting_log_by_user WHERE user_idx = ?1
ORDER BY presenter_idx, epoch, seq LIMIT ?2 OFFSET ?3";

/// A room's last event: only its place and its time stay. That it was its presenter's would say whose it was.
const EMPTY: &str = "
UPDATE chatting_log SET kind = 'chat', act = NULL, room_idx = NULL, broadcast_id = NULL, user_idx = ?2, nickname = '',
  message = '', role = 'viewer', idempotency_key = NULL, deleted_at = IFNULL(deleted_at, ?3), deleted_by = ?2
WHERE id = ?1 AND (user_idx <> ?2 OR broadcast_id IS NOT NULL)";

const ERASE: &str = "
UPDATE chatting_log SET user_idx = ?2, nickname = '', message = '', role = 'viewer', idempotency_key = NULL,
  deleted_at = IIF(kind = 'chat', IFNULL(deleted_at, ?3), NULL), deleted_by = IIF(kind = 'chat', IFNULL(deleted_by, ?2), NULL)
WHERE id = ?1";

const MENTIONS: &str = concat!(
    "SELECT id, presenter_idx, epoch, seq, broadcast_id FROM chatting_log WHERE ",
    about!(),
    " = ?1 AND act IS NOT NULL AND id > ?2
     UNION ALL
     SELECT id, presenter_idx, epoch, seq, broadcast_id FROM chatting_log WHERE deleted_by = ?1 AND id > ?2
     ORDER BY id LIMIT ?3"
);

const ERASE_MENTION: &str = concat!(
    "UPDATE chatting_log SET act = IIF(",
    about!(),
    " = ?2, json_set(act, '$.user_idx', ?3), act), deleted_by = IIF(deleted_by = ?2, ?3, deleted_by) WHERE id = ?1"
);

/// The first broadcast of a room behind another one that began in a numbering behind a number.
const LATER: &str = "
SELECT record, corrected_start, legal_hold FROM broadcasts
WHERE presenter_idx = ?1 AND id > ?2 AND EXISTS (
  SELECT 1 FROM json_each(IIF(json_valid(record), record, '{}'), '$.spans') AS span
  WHERE IIF(span.type = 'object', span.value ->> 'epoch' = ?3 AND span.value ->> 'after' >= ?4, 0))
ORDER BY id LIMIT 1";

fn held(connection: &Connection) -> rusqlite::Result<Holds> {
    let mut statement =
        connection.prepare_cached("SELECT record, corrected_start, legal_hold FROM broadcasts WHERE legal_hold = 1")?;
    let mut held: Vec<Broadcast> = statement
        .query_map([], |row| Ok(super::broadcast(row)?.broadcast))?
        .collect::<rusqlite::Result<_>>()?;
    for held in &mut held {
        find_ends(connection, held)?;
    }
    Ok(Holds::new(held))
}

/// Where nobody knows how far a broadcast went, it had ended when the next one of its room began there.
fn find_ends(connection: &Connection, held: &mut Broadcast) -> rusqlite::Result<()> {
    for n in 0..held.spans.len() {
        if let Some(span) = held.spans.get(n).filter(|_| held.is_without_end(n)) {
            let (room, after) = (held.presenter.get(), span.after.0.cast_signed());
            let asked = params![room, &held.id.as_bytes()[..], &*span.epoch.0, after];
            let mut later = connection.prepare_cached(LATER)?;
            // One that cannot be read ends none.
            let later = later
                .query_row(asked, |row| Ok(super::broadcast(row).ok()))
                .optional()?;
            if let Some(later) = later.flatten() {
                held.end_before(&later.broadcast);
            }
        }
    }
    Ok(())
}

/// Where a step begins and ends among the ids.
fn ids(before_ms: i64, after: Option<Uuid>) -> ([u8; 16], [u8; 16]) {
    let after = after.unwrap_or(Uuid::nil());
    (after.into_bytes(), first_id_of(before_ms).into_bytes())
}

fn expire(connection: &mut Connection, before_ms: i64, after: Option<Uuid>, limit: usize) -> rusqlite::Result<Expired> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let holds = held(&transaction)?;
    let (from, to) = ids(before_ms, after);
    let found: Vec<Trace> = transaction
        .prepare_cached(OLD_EVENTS)?
        .query_map(params![&from[..], &to[..], count(limit)], row::trace)?
        .collect::<rusqlite::Result<_>>()?;
    let mut removed = 0;
    {
        let mut last_of: HashMap<PresenterIdx, Seq> = HashMap::new();
        let mut delete = transaction
            .prepare_cached("DELETE FROM chatting_log WHERE presenter_idx = ?1 AND epoch = ?2 AND seq = ?3")?;
        let mut empty = transaction.prepare_cached(EMPTY)?;
        for one in found.iter().filter(|one| holds.hold(one).is_none()) {
            let last = match last_of.get(&one.presenter) {
                Some(last) => *last,
                None => {
                    let last = last_seq(&transaction, one.presenter)?;
                    last_of.insert(one.presenter, last);
                    last
                }
            };
            removed += if one.seq == last {
                empty.execute(params![&one.id.as_bytes()[..], UserIdx::ERASED.get(), before_ms])?
            } else {
                delete.execute(params![one.presenter.get(), &*one.epoch.0, one.seq.0.cast_signed()])?
            };
        }
    }
    transaction.commit()?;
    Ok(Expired {
        removed: removed as u64,
        last: found.last().filter(|_| found.len() >= limit).map(|last| last.id),
        unreadable: Vec::new(),
    })
}

fn expire_broadcasts(
    connection: &mut Connection,
    before_ms: i64,
    after: Option<Uuid>,
    limit: usize,
) -> rusqlite::Result<Expired> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (from, to) = ids(before_ms, after);
    // What cannot be read stays, and the next step begins behind it all the same.
    let old: Vec<(Uuid, _)> = transaction
        .prepare_cached(
            "SELECT record, corrected_start, legal_hold, id FROM broadcasts
             WHERE id > ?1 AND id < ?2 AND length(id) = 16 ORDER BY id LIMIT ?3",
        )?
        .query_map(params![&from[..], &to[..], count(limit)], |row| {
            Ok((Uuid::from_bytes(row.get(3)?), super::broadcast(row)))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut removed = 0;
    {
        let mut delete = transaction.prepare_cached("DELETE FROM broadcasts WHERE id = ?1")?;
        for (id, stored) in &old {
            let goes = stored.as_ref().is_ok_and(|stored| {
                let ended = stored.broadcast.ended_at_ms.is_some_and(|ended| ended < before_ms);
                ended && !stored.legal_hold
            });
            if goes {
                removed += delete.execute([&id.as_bytes()[..]])?;
            }
        }
    }
    transaction.commit()?;
    Ok(Expired {
        removed: removed as u64,
        last: old.last().filter(|_| old.len() >= limit).map(|(last, _)| *last),
        unreadable: old
            .into_iter()
            .filter_map(|(id, read)| Some((id, read.err()?.to_string())))
            .collect(),
    })
}

impl Keeping for SqliteStore {
    fn now_ms(&self) -> BoxFuture<'_, Result<Option<i64>, StoreError>> {
        std::future::ready(Ok(None)).boxed()
    }

    fn change_broadcast(&self, id: Uuid, change: RecordChange) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.run_synced(move |connection| {
            let sql = "UPDATE broadcasts SET corrected_start = IIF(?2, ?3, corrected_start), legal_hold = IFNULL(?4, legal_hold)
                       WHERE id = ?1";
            let start = change.corrected_start_ms;
            let change = params![&id.as_bytes()[..], start.is_some(), start.flatten(), change.hold];
            Ok(connection.execute(sql, change)? > 0)
        })
    }

    fn holds(&self) -> BoxFuture<'_, Result<Holds, StoreError>> {
        self.look(|connection| held(connection))
    }

    fn expire(&self, before_ms: i64, after: Option<Uuid>, limit: usize) -> BoxFuture<'_, Result<Expired, StoreError>> {
        self.run(move |connection| expire(connection, before_ms, after, limit))
    }

    fn expire_broadcasts(
        &self,
        before_ms: i64,
        after: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Expired, StoreError>> {
        self.run(move |connection| expire_broadcasts(connection, before_ms, after, limit))
    }

    fn traces(&self, user: UserIdx, skip: usize, limit: usize) -> BoxFuture<'_, Result<Vec<Trace>, StoreError>> {
        self.look(move |connection| {
            let mut statement = connection.prepare(OF_USER)?;
            let rows = statement.query_map(params![user.get(), count(limit), count(skip)], row::trace)?;
            rows.collect()
        })
    }

    fn erase<'a>(&'a self, traces: &'a [Trace], now_ms: i64) -> BoxFuture<'a, Result<(), StoreError>> {
        let ids: Vec<Uuid> = traces.iter().map(|one| one.id).collect();
        self.run(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut erase = transaction.prepare_cached(ERASE)?;
                for id in &ids {
                    erase.execute(params![&id.as_bytes()[..], UserIdx::ERASED.get(), now_ms])?;
                }
            }
            transaction.commit()
        })
    }

    fn mentions(
        &self,
        user: UserIdx,
        after: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Trace>, StoreError>> {
        self.look(move |connection| {
            let after = after.unwrap_or(Uuid::nil());
            let mut statement = connection.prepare(MENTIONS)?;
            let rows = statement.query_map(params![user.get(), &after.as_bytes()[..], count(limit)], row::trace)?;
            rows.collect()
        })
    }

    fn erase_mentions<'a>(&'a self, user: UserIdx, traces: &'a [Trace]) -> BoxFuture<'a, Result<(), StoreError>> {
        let ids: Vec<Uuid> = traces.iter().map(|one| one.id).collect();
        self.run(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut erase = transaction.prepare_cached(ERASE_MENTION)?;
                for id in &ids {
                    erase.execute(params![&id.as_bytes()[..], user.get(), UserIdx::ERASED.get()])?;
                }
            }
            transaction.commit()
        })
    }
}
