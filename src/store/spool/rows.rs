//! The rows of events on their way to the store: written, read, and parked where they cannot be read.

use std::{sync::Arc, time::Instant};

use chatting_actors::{
    clock::system_ms,
    seams::{Pos, SpoolError},
    types::Event,
};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::{
    SqliteSpool,
    freeing::{PARK, beyond_limit},
    keys,
};
use crate::store::row::{self, columns};

const INSERT: &str = concat!(
    "INSERT INTO spool(pos, epoch, ",
    columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
);

type SpoolRows = Vec<(Pos, Arc<Event>)>;
type Unreadable = Vec<(Pos, String)>;

/// Writes events from `first` on, with their keys.
pub(super) fn insert(connection: &Connection, epoch: i64, first: Pos, events: &[Arc<Event>]) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(INSERT)?;
    for (n, event) in events.iter().enumerate() {
        statement.raw_bind_parameter(1, first + n as Pos)?;
        statement.raw_bind_parameter(2, epoch)?;
        row::bind(&mut statement, 3, event)?;
        statement.raw_execute()?;
        if let Some(keyed) = &event.keyed {
            keys::insert(connection, epoch, event, keyed)?;
        }
    }
    Ok(())
}

impl SqliteSpool {
    /// Rows in order, and those that SQLite can read and we cannot: an epoch or a role that nobody knows.
    pub(super) fn read_rows(
        &self,
        connection: &Connection,
        after: Pos,
        limit: usize,
    ) -> rusqlite::Result<(SpoolRows, Unreadable)> {
        let columns = row::COLUMNS;
        let sql = format!("SELECT pos, epoch, {columns} FROM spool WHERE pos > ?1 ORDER BY pos LIMIT ?2");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params![after, i64::try_from(limit).unwrap_or(i64::MAX)])?;
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        while let Some(found) = rows.next()? {
            let pos: Pos = found.get(0)?;
            let epoch = found.get(1).map(|n: i64| self.epochs.get(&n).cloned());
            let event = match epoch {
                Ok(Some(epoch)) => row::read(found, 2, epoch).map_err(|error| error.to_string()),
                Ok(None) => Err("its epoch is not known".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            match event {
                Ok(event) => good.push((pos, Arc::new(event))),
                Err(why) => bad.push((pos, why)),
            }
        }
        Ok((good, bad))
    }

    /// Parks rows that cannot be read, with why.
    pub(super) fn set_rows_aside(&mut self, rows: &[(Pos, String)]) -> Result<(), SpoolError> {
        if let Some((pos, why)) = rows.first()
            && let Some(more) = self.unreadable.due(Instant::now())
        {
            let count = rows.len();
            log::error!(
                "spool: row {pos} cannot be read and is parked, the first of {count} in its batch: {why}{more}"
            );
        }
        let set_aside = |this: &mut Self, connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut more_parked = 0;
            for (pos, why) in rows {
                // It may be its room's last, and its number must not be given again (rule 3).
                let number = transaction
                    .query_row(
                        "SELECT presenter_idx, seq FROM spool
                         WHERE pos = ?1 AND typeof(presenter_idx) = 'integer' AND typeof(seq) = 'integer'",
                        [pos],
                        |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
                    )
                    .optional()?;
                if let Some((presenter, seq)) = number {
                    transaction.execute(this.last_seqs.keep(), [presenter, seq])?;
                }
                more_parked += transaction.execute(PARK, params![pos, format!("unreadable: {why}"), system_ms()])?;
                transaction.execute("DELETE FROM spool WHERE pos = ?1", [pos])?;
            }
            transaction.commit()?;
            this.kept.add_parked(more_parked);
            Ok(())
        };
        self.freeing(|this, connection| beyond_limit(connection, |connection| set_aside(this, connection)))?;
        self.kept.unreadable.inc_by(rows.len() as u64);
        Ok(())
    }
}
