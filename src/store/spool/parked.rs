//! Events that the store will not take, kept with the reason until an operator tries them again.

use std::sync::Arc;

use chatting_actors::{seams::SpoolError, types::Event};
use rusqlite::{TransactionBehavior, params};
use uuid::Uuid;

use super::{SqliteSpool, row};

/// A parked event.
pub struct ParkedRow {
    /// What names it, whatever else of it can be read.
    pub id: Vec<u8>,
    /// The event, or why it cannot be read.
    pub event: Result<Arc<Event>, String>,
    /// Why the store refused it.
    pub reason: String,
}

impl SqliteSpool {
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
    /// keeps the others with their new reason. One transaction.
    pub fn unpark(&mut self, stored: &[Uuid], refused: &[(Uuid, String)]) -> Result<(), SpoolError> {
        self.with(|_, connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut delete = transaction.prepare_cached(
                    "DELETE FROM parked WHERE id = ?1 AND (act IS NULL OR NOT EXISTS (
                     SELECT 1 FROM parked AS older
                     WHERE older.id < ?1 AND older.presenter_idx = parked.presenter_idx AND older.act IS NULL))",
                )?;
                // What an act covers is older, and goes first.
                let mut stored: Vec<&Uuid> = stored.iter().collect();
                stored.sort_unstable();
                for id in stored {
                    delete.execute([&id.as_bytes()[..]])?;
                }
                let mut update = transaction.prepare_cached("UPDATE parked SET reason = ?2 WHERE id = ?1")?;
                for (id, reason) in refused {
                    update.execute(params![&id.as_bytes()[..], reason])?;
                }
            }
            transaction.commit()
        })
    }

    /// How many events the store may not have and are not parked either.
    pub fn count_left(&mut self) -> Result<u64, SpoolError> {
        self.with(|_, connection| {
            let count: i64 = connection.query_row("SELECT COUNT(*) FROM spool", [], |row| row.get(0))?;
            Ok(count.cast_unsigned())
        })
    }

    /// How many broadcasts the store does not have as they are, those that it refused included.
    pub fn count_unstored_broadcasts(&mut self) -> Result<u64, SpoolError> {
        self.with(|_, connection| {
            let sql = "SELECT COUNT(*) FROM records WHERE stored <> 1";
            let count: i64 = connection.query_row(sql, [], |row| row.get(0))?;
            Ok(count.cast_unsigned())
        })
    }

    /// How many events are parked.
    pub fn count_parked(&mut self) -> Result<u64, SpoolError> {
        self.with(|_, connection| {
            let count: i64 = connection.query_row("SELECT COUNT(*) FROM parked", [], |row| row.get(0))?;
            Ok(count.cast_unsigned())
        })
    }
}
