//! Events that the store will not take, kept with the reason until an operator tries them again.

use std::sync::Arc;

use chatting_actors::{
    metrics::Metrics,
    seams::{SpoolError, StoreError},
    types::Event,
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use rusqlite::{Connection, TransactionBehavior, params};
use uuid::Uuid;

use super::{SqliteSpool, freeing::COVERS};
use crate::store::{
    SharedConnection,
    keeping::{Expired, Holds, Trace, first_id_of},
    row,
    sqlite::blocking,
};

/// But for acts that may cover what stays.
const FORGET: &str = "
DELETE FROM parked WHERE id = ?1 AND (act IS NULL OR NOT EXISTS (
  SELECT 1 FROM parked AS older
  WHERE older.id < ?1 AND older.presenter_idx = parked.presenter_idx AND older.act IS NULL))";

const OLD: &str = "
SELECT id, presenter_idx, IFNULL((SELECT epoch FROM epochs WHERE n = parked.epoch), ''), seq, broadcast_id, act IS NOT NULL,
  reason <> ?4
FROM parked WHERE id > ?1 AND id < ?2 AND length(id) = 16 ORDER BY id LIMIT ?3";

/// A parked event.
pub struct ParkedRow {
    /// What names it, whatever else of it can be read.
    pub id: Vec<u8>,
    /// The event, or why it cannot be read.
    pub event: Result<Arc<Event>, String>,
    /// Why the store refused it.
    pub reason: String,
}

/// What is kept here because the store will not take it, in the metrics. What is parked may be much, and is on the commits' thread: it
/// is counted once, and what comes and goes is added and taken away. Acts that the store has, kept for what they cover, do not count.
#[derive(Clone, Default)]
pub(super) struct Kept {
    /// Rows that were parked because they cannot be read; those that the store refuses are counted by who gave them to it.
    pub unreadable: Counter,
    parked: Gauge,
    refused: Gauge,
}

impl Kept {
    pub fn of(metrics: &Metrics) -> Self {
        Self {
            unreadable: metrics.parked.clone(),
            parked: metrics.parked_events.clone(),
            refused: metrics.refused_broadcasts.clone(),
        }
    }

    /// Counts what is parked already.
    pub fn count_parked(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "SELECT COUNT(*) FROM parked WHERE reason <> ?1";
        self.parked.set(connection.query_row(sql, [COVERS], |row| row.get(0))?);
        Ok(())
    }

    /// So many more are parked.
    pub fn add_parked(&self, count: usize) {
        self.parked.inc_by(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// To be called when broadcasts changed, or were given to the store: most often it refused none, and none is looked for.
    pub fn count_refused(&self, connection: &Connection, more: bool) {
        if !more && self.refused.get() == 0 {
            return;
        }
        let sql = "SELECT COUNT(*) FROM records WHERE stored = 2 AND stored <> 1";
        if let Ok(count) = connection.query_row(sql, [], |row| row.get(0)) {
            self.refused.set(count);
        }
    }
}

/// What is parked, for retention, which does not have the spool.
#[derive(Clone)]
pub struct Parking(SharedConnection, Kept);

impl Parking {
    /// As [`crate::store::keeping::Keeping::expire`]. A room's numbers do not depend on what is parked.
    pub async fn expire(
        &self,
        holds: Holds,
        before_ms: i64,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Expired, StoreError> {
        let Self(shared, kept) = self.clone();
        let expired = move || {
            shared.run(|connection| {
                let (expired, counted) = expire(connection, &holds, before_ms, after, limit)?;
                kept.parked.dec_by(counted);
                Ok(expired)
            })
        };
        blocking(move || expired().map_err(|error| StoreError(error.to_string()))).await
    }
}

/// Returns how many of those that were removed had counted as parked, too.
fn expire(
    connection: &mut Connection,
    holds: &Holds,
    before_ms: i64,
    after: Option<Uuid>,
    limit: usize,
) -> rusqlite::Result<(Expired, i64)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (after, before) = (after.unwrap_or(Uuid::nil()), first_id_of(before_ms));
    let (mut looked_at, mut last, mut removed, mut counted) = (0, None, 0, 0);
    {
        let mut statement = transaction.prepare_cached(OLD)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let asked = params![&after.as_bytes()[..], &before.as_bytes()[..], limit, COVERS];
        let found: Vec<_> = statement
            .query_map(asked, |row| {
                let (id, act, counts): (_, bool, bool) = (row.get(0)?, row.get(5)?, row.get(6)?);
                Ok((Uuid::from_bytes(id), act, counts, row::trace(row).ok()))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let mut forget = transaction.prepare_cached(FORGET)?;
        for (id, act, counts, trace) in found {
            // Whether one is held whose place cannot be read is not known. An act hides what is held in the store, too.
            let goes =
                |trace: &Trace| holds.hold(trace).is_none() && !(act && holds.may_be_covered(trace.presenter, id));
            if trace.as_ref().is_some_and(goes) {
                let gone = forget.execute([&id.as_bytes()[..]])?;
                removed += gone as u64;
                counted += i64::from(gone > 0 && counts);
            }
            (looked_at, last) = (looked_at + 1, Some(id));
        }
        last = last.filter(|_| looked_at >= limit);
    }
    transaction.commit()?;
    let expired = Expired {
        removed,
        last,
        unreadable: Vec::new(),
    };
    Ok((expired, counted))
}

impl SqliteSpool {
    /// What is parked here, for retention.
    pub fn parking(&self) -> Parking {
        Parking(self.connection(), self.kept.clone())
    }

    /// At most `limit` parked events whose ids are greater than `after`, oldest first.
    pub fn read_parked(&mut self, after: &[u8], limit: usize) -> Result<Vec<ParkedRow>, SpoolError> {
        self.with(|this, connection| {
            let sql = format!(
                "SELECT id, reason, epoch, {} FROM parked WHERE id > ?1 ORDER BY id LIMIT ?2",
                row::COLUMNS
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![after, limit], |found| {
                let event = match this.epochs.get(&found.get(2)?) {
                    Some(epoch) => row::read(found, 3, epoch.clone())
                        .map(Arc::new)
                        .map_err(|e| e.to_string()),
                    None => Err("its epoch is not known".into()),
                };
                Ok(ParkedRow {
                    id: found.get(0)?,
                    event,
                    reason: found.get(1)?,
                })
            })?;
            rows.collect()
        })
    }

    /// After parked events were tried again: forgets those that the store has now, but for acts that may cover what stays, and
    /// keeps the others with their new reason. One transaction. Returns how many it forgot.
    pub fn unpark(&mut self, stored: &[Uuid], refused: &[(Uuid, String)]) -> Result<u64, SpoolError> {
        self.with(|_, connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut forgotten = 0;
            {
                let mut delete = transaction.prepare_cached(FORGET)?;
                // What an act covers is older, and goes first.
                let mut stored: Vec<&Uuid> = stored.iter().collect();
                stored.sort_unstable();
                let mut update = transaction.prepare_cached("UPDATE parked SET reason = ?2 WHERE id = ?1")?;
                for id in stored {
                    let gone = delete.execute([&id.as_bytes()[..]])?;
                    if gone == 0 {
                        update.execute(params![&id.as_bytes()[..], COVERS])?;
                    }
                    forgotten += gone as u64;
                }
                for (id, reason) in refused {
                    update.execute(params![&id.as_bytes()[..], reason])?;
                }
            }
            transaction.commit()?;
            Ok(forgotten)
        })
    }

    /// How many events the store may not have and are not parked either.
    pub fn count_left(&mut self) -> Result<u64, SpoolError> {
        self.count("SELECT COUNT(*) FROM spool")
    }

    /// How many broadcasts the store does not have as they are, those that it refused included.
    pub fn count_unstored_broadcasts(&mut self) -> Result<u64, SpoolError> {
        self.count("SELECT COUNT(*) FROM records WHERE stored <> 1")
    }

    /// How many events are parked.
    pub fn count_parked(&mut self) -> Result<u64, SpoolError> {
        self.count("SELECT COUNT(*) FROM parked")
    }

    fn count(&mut self, sql: &str) -> Result<u64, SpoolError> {
        self.with(|_, connection| {
            let count: i64 = connection.query_row(sql, [], |row| row.get(0))?;
            Ok(count.cast_unsigned())
        })
    }
}
