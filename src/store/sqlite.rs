//! The embedded log: indexed tables in the spool's own file, filled behind it.
//!
//! `chatting_log` is clustered by room and seq, so that a replay reads neighbours. It shares the spool's writing connection:
//! while a batch is moved here, commits wait for it, so `log.batch_max` bounds that wait.

use std::{path::PathBuf, sync::Arc};

use chatting_actors::{
    seams::{LogRange, LogStore, Poison, StoreBatch, StoreError},
    types::{Epoch, Event, PresenterIdx, Seq},
};
use futures_util::future::{BoxFuture, FutureExt};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, ffi, params};

use super::{FoundStore, SharedConnection, open_to_read, row};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS chatting_log(
  kind TEXT NOT NULL, epoch TEXT NOT NULL,
  presenter_idx INTEGER NOT NULL, seq INTEGER NOT NULL, id BLOB NOT NULL UNIQUE, sent_at INTEGER NOT NULL,
  room_idx INTEGER, user_idx INTEGER NOT NULL, nickname TEXT NOT NULL, message TEXT NOT NULL, role TEXT NOT NULL,
  idempotency_key TEXT,
  PRIMARY KEY(presenter_idx, epoch, seq)) WITHOUT ROWID;
";

const INSERT: &str = "
INSERT INTO chatting_log(kind, epoch, presenter_idx, seq, id, sent_at, room_idx, user_idx, nickname, message, role,
  idempotency_key)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";

/// See the module's text.
#[derive(Clone)]
pub struct SqliteStore {
    connection: SharedConnection,
    /// For connections that only read.
    path: Arc<PathBuf>,
}

impl SqliteStore {
    /// A log in the file of this connection.
    pub fn new(connection: SharedConnection) -> Self {
        let path = connection
            .lock()
            .as_ref()
            .and_then(|open| open.path().map(PathBuf::from));
        Self {
            connection,
            path: Arc::new(path.unwrap_or_default()),
        }
    }

    /// The newest event, by the index of their ids, which are in the order of time.
    pub async fn found(&self) -> Result<FoundStore, StoreError> {
        self.run(|connection| {
            let sql = format!(
                "SELECT epoch, {} FROM chatting_log ORDER BY id DESC LIMIT 1",
                row::COLUMNS
            );
            let newest = connection.query_row(&sql, [], |found| {
                let epoch: String = found.get(0)?;
                row::read(found, 1, Epoch(epoch.into()))
            });
            Ok(FoundStore {
                newest: newest.optional()?,
                documents: None,
            })
        })
        .await
    }

    /// Runs blocking work off the arbiter. At most one batch and a few questions are under way at once.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let shared = self.connection.clone();
        async move {
            #[expect(clippy::disallowed_methods, reason = "the writer has one batch under way at a time")]
            let done = tokio::task::spawn_blocking(move || match shared.lock().as_mut() {
                Some(connection) => work(connection).map_err(|error| StoreError(error.to_string())),
                None => Err(StoreError("the file is not open".into())),
            });
            done.await.unwrap_or_else(|error| Err(StoreError(error.to_string())))
        }
        .boxed()
    }
}

/// Writes one event; `Some` says why it can never be written.
fn insert(connection: &Connection, event: &Event) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare_cached(INSERT)?;
    statement.raw_bind_parameter(1, "chat")?;
    statement.raw_bind_parameter(2, &*event.epoch.0)?;
    row::bind(&mut statement, 3, event)?;
    let error = match statement.raw_execute() {
        Ok(_) => return Ok(None),
        Err(rusqlite::Error::SqliteFailure(error, why)) if error.code == ffi::ErrorCode::ConstraintViolation => {
            why.unwrap_or_else(|| error.to_string())
        }
        Err(error) => return Err(error),
    };
    // Stored already is success; another event in its place is a numbering conflict and never is (rule 4).
    let mut stored = connection.prepare_cached("SELECT 1 FROM chatting_log WHERE id = ?1")?;
    let found = stored.query_row([&event.id.as_bytes()[..]], |_| Ok(())).optional()?;
    Ok(match found {
        Some(()) => None,
        None => Some(format!("numbering conflict: {error}")),
    })
}

impl LogStore for SqliteStore {
    fn prepare(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run(|connection| connection.execute_batch(SCHEMA))
    }

    fn append(&self, batch: StoreBatch) -> BoxFuture<'_, Result<Vec<Poison>, StoreError>> {
        self.run(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut poison = Vec::new();
            for (index, event) in batch.iter().enumerate() {
                if let Some(reason) = insert(&transaction, event)? {
                    poison.push(Poison { index, reason });
                }
            }
            transaction.commit()?;
            Ok(poison)
        })
    }

    fn last_seq(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Seq, StoreError>> {
        self.run(move |connection| {
            let last: Option<i64> = connection
                .prepare_cached("SELECT MAX(seq) FROM chatting_log WHERE presenter_idx = ?1")?
                .query_row([presenter.get()], |row| row.get(0))?;
            Ok(Seq(last.unwrap_or(0).cast_unsigned()))
        })
    }

    fn read_room(
        &self,
        presenter: PresenterIdx,
        after: Seq,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        self.run(move |connection| {
            let sql = format!(
                "SELECT epoch, {} FROM chatting_log WHERE presenter_idx = ?1 AND seq > ?2 ORDER BY seq, id LIMIT ?3",
                row::COLUMNS
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![presenter.get(), after.0.cast_signed(), limit], |found| {
                let epoch: String = found.get(0)?;
                row::read(found, 1, Epoch(epoch.into()))
            })?;
            rows.collect()
        })
    }

    fn read_range(&self, range: LogRange) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        let path = Arc::clone(&self.path);
        async move {
            #[expect(clippy::disallowed_methods, reason = "session.resume_reads bounds how many run")]
            let read = tokio::task::spawn_blocking(move || {
                let connection = open_to_read(&path)?;
                let sql = format!(
                    "SELECT {} FROM chatting_log
                     WHERE presenter_idx = ?1 AND epoch = ?2 AND seq > ?3 AND seq <= ?4 ORDER BY seq LIMIT ?5",
                    row::COLUMNS
                );
                let mut statement = connection.prepare(&sql)?;
                let asked = params![
                    range.presenter.get(),
                    &*range.epoch.0,
                    range.after.0.cast_signed(),
                    range.through.0.cast_signed(),
                    i64::try_from(range.limit).unwrap_or(i64::MAX),
                ];
                let rows = statement.query_map(asked, |found| row::read(found, 0, range.epoch.clone()))?;
                rows.collect::<rusqlite::Result<Vec<Event>>>()
            });
            match read.await {
                Ok(read) => read.map_err(|error| StoreError(error.to_string())),
                Err(error) => Err(StoreError(error.to_string())),
            }
        }
        .boxed()
    }

    fn is_empty(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.run(|connection| {
            connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM chatting_log)", [], |row| row.get(0))
        })
    }
}
