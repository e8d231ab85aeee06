//! The embedded log: indexed tables in the spool's own file, filled behind it.
//!
//! `chatting_log` is clustered by room and seq, so that a replay reads neighbours. It shares the spool's writing connection:
//! while a batch is moved here, commits that come are let pass every few events. Reads have connections of their own.

mod acts;
mod archive;
mod figures;
mod filling;
mod keeping;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chatting_actors::{
    broadcast::Broadcast,
    seams::{LogStore, NotPut, Poison, StoreBatch, StoreError},
    seldom::Seldom,
    types::{Epoch, PresenterIdx, Seq},
};
use futures_util::future::{BoxFuture, FutureExt};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use uuid::Uuid;

use self::filling::{CHECKPOINT_EVENTS, checkpoint, insert_all};
use super::{FoundStore, Newest, Shared, SharedConnection, StoredBroadcast, open_to_read, row, wal::empty_wal};

/// The user whom an act is about. A macro, so that the index and the statements that it serves say the same.
macro_rules! about {
    () => {
        "IIF(json_valid(act), act ->> '$.user_idx', NULL)"
    };
}
pub(super) use about;

/// That a broadcast has not ended, likewise.
macro_rules! open {
    () => {
        "IIF(json_valid(record), record ->> '$.ended_at_ms' IS NULL, 0)"
    };
}

pub(super) const SCHEMA: &str = concat!(
    "
CREATE TABLE IF NOT EXISTS chatting_log(
  kind TEXT NOT NULL, epoch TEXT NOT NULL,
  presenter_idx INTEGER NOT NULL, seq INTEGER NOT NULL, id BLOB NOT NULL UNIQUE, sent_at INTEGER NOT NULL,
  room_idx INTEGER, user_idx INTEGER NOT NULL, nickname TEXT NOT NULL, message TEXT NOT NULL, role TEXT NOT NULL,
  idempotency_key TEXT, broadcast_id BLOB, act TEXT, deleted_at INTEGER, deleted_by INTEGER,
  PRIMARY KEY(presenter_idx, epoch, seq)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS chatting_log_by_user ON chatting_log(user_idx, presenter_idx, epoch, seq);
CREATE TABLE IF NOT EXISTS broadcasts(
  id BLOB NOT NULL PRIMARY KEY, presenter_idx INTEGER NOT NULL, version INTEGER NOT NULL, record TEXT NOT NULL,
  corrected_start INTEGER, legal_hold INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS broadcasts_by_room ON broadcasts(presenter_idx, id);
CREATE INDEX IF NOT EXISTS broadcasts_held ON broadcasts(legal_hold) WHERE legal_hold = 1;
CREATE INDEX IF NOT EXISTS broadcasts_open ON broadcasts(id) WHERE ",
    open!(),
    ";
CREATE INDEX IF NOT EXISTS chatting_log_about ON chatting_log(",
    about!(),
    ", id) WHERE act IS NOT NULL;
CREATE INDEX IF NOT EXISTS chatting_log_acts ON chatting_log(presenter_idx, id) WHERE act IS NOT NULL;
CREATE INDEX IF NOT EXISTS chatting_log_deleted_by ON chatting_log(deleted_by, id) WHERE deleted_by IS NOT NULL;
"
);

const PUT_BROADCAST: &str = "
INSERT INTO broadcasts(id, presenter_idx, version, record) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT(id) DO UPDATE SET version = ?3, record = ?4 WHERE version < ?3";

const OPEN_BROADCASTS: &str = concat!(
    "SELECT record, corrected_start, legal_hold, id FROM broadcasts INDEXED BY broadcasts_open WHERE id > ?1 AND ",
    open!(),
    " ORDER BY id"
);

/// Brings the log of a file of format 1 up to date, where there is one.
pub(super) fn upgrade(connection: &Connection) -> rusqlite::Result<()> {
    let table = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'chatting_log'";
    if connection.query_row(table, [], |_| Ok(())).optional()?.is_some() {
        let added = row::SINCE_FORMAT_1
            .iter()
            .chain(&["deleted_at INTEGER", "deleted_by INTEGER"]);
        for column in added {
            connection.execute_batch(&format!("ALTER TABLE chatting_log ADD COLUMN {column}"))?;
        }
    }
    Ok(())
}

/// The log in the spool's own file: takes events ([`LogStore`]), is read ([`Archive`](super::Archive)) and lets go of
/// what is old ([`Keeping`](super::keeping::Keeping)). Errors: the file cannot be read or written now. Clones share one
/// connection.
#[derive(Clone)]
pub struct SqliteStore {
    connection: SharedConnection,
    /// Events that were written since the last checkpoint.
    written: Arc<AtomicUsize>,
}

impl SqliteStore {
    /// A log in the file of this connection.
    pub fn new(connection: SharedConnection) -> Self {
        Self {
            connection,
            written: Arc::default(),
        }
    }

    /// The log in this file, to be read beside whatever server has it: events and broadcasts, figures, holds, a user's traces. What
    /// writes fails always, and so does what is asked on the writing connection: the last seq of a room, what was found, whether it
    /// is empty.
    pub fn to_read(path: PathBuf) -> Self {
        Self::new(Shared::to_read(path))
    }

    /// The newest event, by the index of their ids, which are in the order of time.
    pub async fn found(&self) -> Result<FoundStore, StoreError> {
        let newest = self.run(newest).await?;
        Ok(FoundStore {
            newest,
            documents: None,
        })
    }

    /// Runs blocking work off the arbiter, on the writing connection. At most one batch and a few questions are under way at
    /// once.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let shared = self.connection.clone();
        blocking(move || shared.run(work).map_err(|error| StoreError(error.to_string())))
    }

    /// The same, by [`Shared::run_synced`].
    fn run_synced<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let shared = self.connection.clone();
        blocking(move || shared.run_synced(work).map_err(|error| StoreError(error.to_string())))
    }

    /// The same as [`Self::run`] on a connection of its own, which commits do not wait for. Callers bound how many run.
    fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let shared = self.connection.clone();
        blocking(move || {
            let looked = open_to_read(shared.path()).and_then(|mut connection| work(&mut connection));
            looked.map_err(|error| {
                shared.heed_reader(&error);
                StoreError(error.to_string())
            })
        })
    }
}

pub(super) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> BoxFuture<'static, Result<T, StoreError>> {
    async move {
        #[expect(clippy::disallowed_methods, reason = "callers bound how many run")]
        let done = tokio::task::spawn_blocking(work);
        done.await.unwrap_or_else(|error| Err(StoreError(error.to_string())))
    }
    .boxed()
}

/// Rewrites a file from what is in it, so that nothing is left of what was. The copy that SQLite makes on the way is a file, too, of
/// mode 0600 and without a name: memory need not hold a whole log. It is made in `SQLITE_TMPDIR`, where that is set, else beside the
/// file, whose disk must have room anyway.
///
/// The copy comes into the file through its WAL, which waits for those who read what was before. SQLite's code for busy where one
/// still reads it when `patience` is over: the file has what was until the next that is run here.
pub(super) fn rewrite(path: &Path, connection: &mut Connection, patience: Duration) -> rusqlite::Result<()> {
    let beside = match path.parent() {
        Some(beside) if beside.as_os_str().is_empty() => Some("."),
        // SQLite is told in words. Where there are none for it, it makes the copy where the system has such files.
        beside => beside.and_then(Path::to_str),
    };
    if let Some(beside) = beside.filter(|_| std::env::var_os("SQLITE_TMPDIR").is_none()) {
        connection.pragma_update(None, "temp_store_directory", beside)?;
    }
    connection.pragma_update(None, "temp_store", "FILE")?;
    connection.execute_batch("PRAGMA secure_delete = ON; VACUUM")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    empty_wal(connection, patience)
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The numberings of a room: one step of the index each, however long the log is.
fn epochs(connection: &Connection, presenter: PresenterIdx) -> rusqlite::Result<Vec<Epoch>> {
    let mut next =
        connection.prepare_cached("SELECT MIN(epoch) FROM chatting_log WHERE presenter_idx = ?1 AND epoch > ?2")?;
    let mut found = Vec::new();
    let mut last = String::new();
    while let Some(epoch) = next.query_row(params![presenter.get(), last], |row| row.get::<_, Option<String>>(0))? {
        found.push(Epoch(epoch.as_str().into()));
        last = epoch;
    }
    Ok(found)
}

/// The last number in one numbering; `Seq(0)` when there is none.
fn last_in(connection: &Connection, presenter: PresenterIdx, epoch: &Epoch) -> rusqlite::Result<Seq> {
    let mut last =
        connection.prepare_cached("SELECT MAX(seq) FROM chatting_log WHERE presenter_idx = ?1 AND epoch = ?2")?;
    let last: Option<i64> = last.query_row(params![presenter.get(), &*epoch.0], |row| row.get(0))?;
    Ok(Seq(last.unwrap_or(0).cast_unsigned()))
}

/// The greatest number of a room: one step of the index for each of its numberings.
fn last_seq(connection: &Connection, presenter: PresenterIdx) -> rusqlite::Result<Seq> {
    let mut last = Seq(0);
    for epoch in epochs(connection, presenter)? {
        last = last.max(last_in(connection, presenter, &epoch)?);
    }
    Ok(last)
}

fn newest(connection: &mut Connection) -> rusqlite::Result<Option<Newest>> {
    let sql = format!(
        "SELECT sent_at, epoch, {} FROM chatting_log ORDER BY id DESC LIMIT 1",
        row::COLUMNS
    );
    let found = connection.query_row(&sql, [], |found| {
        let epoch = found.get::<_, String>(1);
        let event = epoch.and_then(|epoch| row::read(found, 2, Epoch(epoch.into())));
        Ok(Newest {
            sent_at_ms: found.get(0)?,
            event: event.map_err(|error| error.to_string()),
        })
    });
    found.optional()
}

fn broadcast(row: &Row<'_>) -> rusqlite::Result<StoredBroadcast> {
    let record: String = row.get(0)?;
    let bad = |error: serde_json::Error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    };
    Ok(StoredBroadcast {
        broadcast: serde_json::from_str(&record).map_err(bad)?,
        corrected_start_ms: row.get(1)?,
        legal_hold: row.get(2)?,
    })
}

/// A broadcast, from a row with its id behind what [`broadcast`] reads. Of one that cannot be read, which is told of, the id: it must not
/// cost the others.
fn readable(row: &Row<'_>) -> Result<StoredBroadcast, Uuid> {
    // Anyone who may read can ask as often as they like.
    static TOLD: Seldom = Seldom::new();
    broadcast(row).map_err(|error| {
        let id = row.get(3).map(Uuid::from_bytes).unwrap_or_default();
        if let Some(more) = TOLD.due(Instant::now()) {
            log::error!("store: broadcast {id} cannot be read: {error}{more}");
        }
        id
    })
}

/// A broadcast was live when its last message was sent, whatever its record says.
fn see_last_message(connection: &Connection, broadcast: &mut Broadcast) -> rusqlite::Result<()> {
    let Some(span) = broadcast.spans.last() else {
        return Ok(());
    };
    let mut last = connection.prepare_cached(
        "SELECT sent_at, broadcast_id FROM chatting_log
         WHERE presenter_idx = ?1 AND epoch = ?2 AND seq > ?3 AND kind = 'chat' ORDER BY seq DESC LIMIT 1",
    )?;
    let of_span = params![broadcast.presenter.get(), &*span.epoch.0, span.after.0.cast_signed()];
    let last = last.query_row(of_span, |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, Option<[u8; 16]>>(1)?))
    });
    if let Some((sent_at_ms, of)) = last.optional()?
        && of == Some(broadcast.id.into_bytes())
    {
        broadcast.seen_at_ms = broadcast.seen_at_ms.max(sent_at_ms);
    }
    Ok(())
}

impl LogStore for SqliteStore {
    fn prepare(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run(|connection| connection.execute_batch(SCHEMA))
    }

    fn append(&self, batch: StoreBatch) -> BoxFuture<'_, Result<Vec<Poison>, StoreError>> {
        let this = self.clone();
        let inserted = Arc::clone(&batch);
        let (shared, written) = (self.connection.clone(), Arc::clone(&self.written));
        let inserts = blocking(move || {
            let poison = insert_all(&shared, &inserted)?;
            if written.fetch_add(inserted.len(), Ordering::Relaxed) + inserted.len() >= CHECKPOINT_EVENTS {
                written.store(0, Ordering::Relaxed);
                if let Err(error) = checkpoint(&shared) {
                    // Commits do it sooner or later.
                    log::debug!("log: its file is not checkpointed: {error}");
                }
            }
            Ok(poison)
        });
        async move {
            let poison = inserts.await?;
            let refused = |index| poison.iter().any(|one| one.index == index);
            for (index, event) in batch.iter().enumerate() {
                if let Some(act) = event.act.clone().filter(|_| !refused(index)) {
                    // Until it is marked the act is in the spool, and is given again after a failure.
                    this.apply(Arc::clone(event), act).await?;
                }
            }
            Ok(poison)
        }
        .boxed()
    }

    fn last_seq(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Seq, StoreError>> {
        self.run(move |connection| last_seq(connection, presenter))
    }

    fn put_broadcasts<'a>(&'a self, broadcasts: &'a [Broadcast]) -> BoxFuture<'a, Result<Vec<NotPut>, StoreError>> {
        let broadcasts = broadcasts.to_vec();
        self.run(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut put = transaction.prepare_cached(PUT_BROADCAST)?;
                for broadcast in &broadcasts {
                    put.execute(params![
                        &broadcast.id.as_bytes()[..],
                        broadcast.presenter.get(),
                        broadcast.version.cast_signed(),
                        // A struct of texts and numbers cannot fail to serialize.
                        serde_json::to_string(broadcast).unwrap_or_default(),
                    ])?;
                }
            }
            transaction.commit()?;
            Ok(Vec::new())
        })
    }

    fn open_broadcasts(&self, but: HashMap<Uuid, u64>) -> BoxFuture<'_, Result<Vec<Broadcast>, StoreError>> {
        self.look(move |connection| {
            let mut statement = connection.prepare(OPEN_BROADCASTS)?;
            let records = statement.query_map([&Uuid::nil().as_bytes()[..]], |row| Ok(readable(row)))?;
            let mut open = Vec::new();
            for record in records {
                let record = record?.ok().map(|stored| stored.broadcast);
                let is_new = |one: &Broadcast| but.get(&one.id).is_none_or(|version| *version < one.version);
                if let Some(mut one) = record.filter(is_new) {
                    see_last_message(connection, &mut one)?;
                    open.push(one);
                }
            }
            Ok(open)
        })
    }

    fn open_broadcast(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Option<Broadcast>, StoreError>> {
        self.look(move |connection| {
            let newest = "SELECT record, corrected_start, legal_hold, id FROM broadcasts
                          WHERE presenter_idx = ?1 ORDER BY id DESC LIMIT 1";
            let newest = connection.query_row(newest, [presenter.get()], |row| Ok(readable(row)));
            let open = newest.optional()?.and_then(Result::ok).map(|stored| stored.broadcast);
            let Some(mut open) = open.filter(|one| one.ended_at_ms.is_none()) else {
                return Ok(None);
            };
            see_last_message(connection, &mut open)?;
            Ok(Some(open))
        })
    }

    fn newest_ms(&self) -> BoxFuture<'_, Result<i64, StoreError>> {
        async move { Ok(self.found().await?.newest_ms()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::atomic::AtomicBool};

    use super::*;
    use crate::store::{Archive, Durability, connect, keeping::Keeping, open_file, set_up};

    /// Whether this process has a file open that had a name in this directory and has none any more.
    fn has_unnamed_file(dir: &Path) -> bool {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let mut names = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        names.any(|name| name.starts_with(dir) && name.to_string_lossy().ends_with(" (deleted)"))
    }

    #[tokio::test]
    async fn what_only_reads_finds_the_log_whatever_its_name_is_and_though_it_is_closed_for_writing() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["chat".as_bytes(), b"\xb9\xe6", b"what? 50%25 #1"] {
            let path = dir.path().join(OsStr::from_bytes(name)).join("chat.db");
            let of = path.clone();
            let open = move || open_file(&of);
            let shared = Shared::new(path, open().unwrap(), Durability::Disk, open).unwrap();
            // As an I/O error leaves it.
            shared.close(false);
            let store = SqliteStore::new(shared);
            store.prepare().await.unwrap();
            assert_eq!(store.epochs(PresenterIdx::new(1).unwrap()).await.unwrap(), []);
        }
    }

    #[test]
    fn a_file_is_rewritten_beside_itself_and_not_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let mut connection = open_file(&path).unwrap();
        // More than SQLite keeps of a file in memory.
        connection
            .execute_batch(
                "CREATE TABLE t(x);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000)
                 INSERT INTO t SELECT randomblob(1000) FROM n",
            )
            .unwrap();
        let seen = Arc::new(AtomicBool::new(false));
        let (told, beside) = (Arc::clone(&seen), dir.path().to_owned());
        let look = move || {
            told.fetch_or(has_unnamed_file(&beside), Ordering::Relaxed);
            false
        };
        connection.progress_handler(1000, Some(look)).unwrap();
        rewrite(&path, &mut connection, Duration::ZERO).unwrap();
        assert!(seen.load(Ordering::Relaxed));
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert!(left.len() <= 3, "{left:?}");
    }

    #[tokio::test]
    async fn what_is_changed_of_a_broadcast_is_synced_under_any_durability() {
        for durability in [Durability::Disk, Durability::Os, Durability::Memory] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("chat.db");
            let of = path.clone();
            let open = move || {
                let connection = connect(&of)?;
                set_up(&connection, durability)?;
                Ok(connection)
            };
            let shared = Shared::new(path, open().unwrap(), durability, open).unwrap();
            let store = SqliteStore::new(Arc::clone(&shared));
            store.prepare().await.unwrap();
            let id = Uuid::now_v7();
            let insert = "INSERT INTO broadcasts(id, presenter_idx, version, record) VALUES (?1, 12, 1, '')";
            let look = "CREATE TEMP TABLE seen(level);
                CREATE TEMP TRIGGER changed AFTER UPDATE ON main.broadcasts
                BEGIN INSERT INTO seen SELECT synchronous FROM pragma_synchronous; END";
            shared
                .run(|connection| {
                    connection.execute(insert, [&id.as_bytes()[..]])?;
                    connection.execute_batch(look)
                })
                .unwrap();
            assert!(store.hold_broadcast(id, true).await.unwrap());
            assert!(store.correct_broadcast(id, Some(1)).await.unwrap());
            let level = |sql: &str| {
                let asked = shared.run(|connection| connection.query_row(sql, [], |row| row.get::<_, i64>(0)));
                asked.unwrap()
            };
            let seen = "SELECT MIN(level) + 10 * COUNT(*) FROM temp.seen";
            let wanted = if durability == Durability::Disk { 2 } else { 1 };
            assert_eq!(
                (level(seen), level("PRAGMA synchronous")),
                (22, wanted),
                "{durability:?}"
            );
        }
    }
}
