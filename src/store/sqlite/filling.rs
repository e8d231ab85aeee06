//! A batch's way into the tables: in pieces, between which commits go first, and checkpoints beside them.

use std::{path::Path, sync::Arc};

use chatting_actors::{
    seams::{Poison, StoreError},
    types::{Event, UserIdx},
};
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, ffi, params};

use super::{
    super::{
        NUMBERING_CONFLICT, SYNCHRONOUS, open_at,
        shared::let_go,
        wal::{keep_wal, pass},
    },
    SharedConnection,
    row::{self, columns},
};

const INSERT: &str = concat!(
    "INSERT INTO chatting_log(kind, epoch, ",
    columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
);

/// Events after which it is asked whether a commit waits.
const PIECE: usize = 64;

/// Writes a batch, in as many transactions as it takes to let those go first who wait for the connection meanwhile: senders
/// wait for commits, and nobody waits for this. What was written of a batch that fails is there already when it comes again.
pub(super) fn insert_all(shared: &SharedConnection, batch: &[Arc<Event>]) -> Result<Vec<Poison>, StoreError> {
    // Room by room, so that neighbours in the table are written after each other.
    let mut in_order: Vec<_> = batch.iter().enumerate().collect();
    in_order.sort_by_key(|(_, event)| (event.presenter_idx, event.seq));
    let mut left = in_order.chunks(PIECE);
    let mut poison = Vec::new();
    while left.len() > 0 {
        let failed = |error: rusqlite::Error| StoreError(error.to_string());
        let mut taken = shared.open().map_err(failed)?;
        let written = unsynced(&mut taken, |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for events in left.by_ref() {
                for (index, event) in events {
                    if let Some(reason) = insert(&transaction, event)? {
                        poison.push(Poison { index: *index, reason });
                    }
                }
                if shared.wanted() {
                    break;
                }
            }
            transaction.commit()
        });
        written.map_err(|error| {
            shared.heed(&error, &mut taken);
            failed(error)
        })?;
    }
    Ok(poison)
}

/// Events between two checkpoints. Each touches a few pages, and neighbours the same ones.
pub(super) const CHECKPOINT_EVENTS: usize = 2000;

/// Passes of a checkpoint beside the commits.
const PASSES: usize = 4;

/// Pages that are few enough for commits to wait for.
const FEW_PAGES: i64 = 100;

/// Takes what the WAL holds into the file beside the commits that go on, on a connection of its own: to write a
/// thousand pages takes as long as a dozen commits, and to sync them, too. Only for the last few nobody may write, so that
/// the WAL begins anew. (SQLite leaves the sync to who reaches the newest commit. One of its own would need the file opened
/// once more, and closing it again would take this process's locks from every connection that has it open.)
pub(super) fn checkpoint(shared: &SharedConnection) -> rusqlite::Result<()> {
    // Its syncs are of the same WAL.
    let few_left = take_most(shared.path()).inspect_err(|error| shared.heed(error, &mut shared.lock()))?;
    if few_left {
        shared.run(|connection| pass(connection).map(drop))?;
    }
    Ok(())
}

/// Whether few pages are left. Its connection is closed before anybody's turn is waited for: who has that may want the
/// file alone.
fn take_most(path: &Path) -> rusqlite::Result<bool> {
    let own = open_at(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    keep_wal(&own)?;
    // Each time there is less, for less came meanwhile. One in whose half a millisecond no commit comes syncs the file, beside
    // those that come then; what is synced while nobody may write is what came since.
    let mut left = 0;
    for _ in 0..PASSES {
        left = pass(&own)?;
    }
    Ok(left <= FEW_PAGES)
}

/// Writes without waiting for the disk. What is written so stands in the WAL before the transaction that frees its rows of the
/// spool, whose sync therefore covers it; until then the spool has them. An import has no such rows: the spool notes that it begins
/// and that it ended, synced, and what is cut off between the two is imported again.
///
/// Nor does it checkpoint when the WAL has grown long: those who wait for the connection would wait for that.
/// [`checkpoint`] does, and so do commits that sync.
fn unsynced<T>(
    taken: &mut Option<Connection>,
    work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let Some(connection) = taken else {
        return Err(rusqlite::Error::InvalidQuery);
    };
    let level = connection.pragma_query_value(None, SYNCHRONOUS, |row| row.get(0))?;
    let lax = Lax { taken, level };
    match lax.taken {
        Some(connection) => {
            connection.pragma_update(None, SYNCHRONOUS, "NORMAL")?;
            work(connection)
        }
        None => Err(rusqlite::Error::InvalidQuery),
    }
}

/// A connection whose commits are not synced until this is dropped. One that cannot be set back is closed, and opened
/// again by who comes next.
struct Lax<'a> {
    taken: &'a mut Option<Connection>,
    level: i64,
}

impl Drop for Lax<'_> {
    fn drop(&mut self) {
        let back = |connection: &Connection| connection.pragma_update(None, SYNCHRONOUS, self.level).is_ok();
        if !self.taken.as_ref().is_some_and(back) {
            let_go(self.taken);
        }
    }
}

/// Writes one event; `Some` says why it can never be written.
fn insert(connection: &Connection, event: &Event) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare_cached(INSERT)?;
    statement.raw_bind_parameter(1, event.kind())?;
    statement.raw_bind_parameter(2, &*event.epoch.0)?;
    row::bind(&mut statement, 3, event)?;
    let (of_place, error) = match statement.raw_execute() {
        Ok(_) => {
            if event.is_erased() {
                let mut mark = connection
                    .prepare_cached("UPDATE chatting_log SET deleted_at = ?2, deleted_by = ?3 WHERE id = ?1")?;
                mark.execute(params![
                    &event.id.as_bytes()[..],
                    event.sent_at_ms,
                    UserIdx::ERASED.get()
                ])?;
            }
            return Ok(None);
        }
        Err(rusqlite::Error::SqliteFailure(error, why)) if error.code == ffi::ErrorCode::ConstraintViolation => {
            let of_place = error.extended_code == ffi::SQLITE_CONSTRAINT_PRIMARYKEY;
            (of_place, why.unwrap_or_else(|| error.to_string()))
        }
        Err(error) => return Err(error),
    };
    // Stored already is success; another event in its place is a numbering conflict and never is (rule 4).
    let mut stored = connection.prepare_cached("SELECT 1 FROM chatting_log WHERE id = ?1")?;
    let found = stored.query_row([&event.id.as_bytes()[..]], |_| Ok(())).optional()?;
    Ok(match found {
        Some(()) => None,
        None if of_place => Some(format!("{NUMBERING_CONFLICT}: {error}")),
        // For what somebody else built there.
        None => Some(error),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::{Durability, Shared, alone::write_into_file, open_file};

    fn level(connection: &Connection) -> i64 {
        connection
            .pragma_query_value(None, SYNCHRONOUS, |row| row.get(0))
            .unwrap()
    }

    #[test]
    fn a_connection_syncs_again_after_what_it_wrote_without_or_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let mut taken = Some(open_file(&dir.path().join("chat.db")).unwrap());
        let full = level(taken.as_ref().unwrap());
        let within = unsynced(&mut taken, |connection| Ok(level(connection))).unwrap();
        assert_eq!((full, within), (2, 1));
        assert_eq!(level(taken.as_ref().unwrap()), full);
        let failed = unsynced(&mut taken, |connection| connection.execute_batch("no statement"));
        assert!(failed.is_err());
        assert_eq!(level(taken.as_ref().unwrap()), full);
        // SQLite does not change it within a transaction.
        unsynced(&mut taken, |connection| connection.execute_batch("BEGIN")).unwrap();
        assert!(taken.is_none());
    }

    fn shared(path: &Path) -> SharedConnection {
        let of = path.to_owned();
        let open = move || open_file(&of);
        Shared::new(path.to_owned(), open().unwrap(), Durability::Disk, open).unwrap()
    }

    const MUCH: &str = "
        CREATE TABLE t(x);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8000)
        INSERT INTO t SELECT randomblob(1000) FROM n";

    #[test]
    fn what_was_written_without_syncs_is_checkpointed_by_the_next_commit_that_syncs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let shared = shared(&path);
        let size = || std::fs::metadata(&path).unwrap().len();
        let mut taken = shared.open().unwrap();
        unsynced(&mut taken, |connection| connection.execute_batch(MUCH)).unwrap();
        drop(taken);
        let count = "SELECT count(*) FROM t";
        let asked = shared.run(|connection| connection.query_row(count, [], |row| row.get(0)));
        assert_eq!(asked, Ok(8000));
        assert!(size() < 1_000_000, "{}", size());
        let synced = shared.run(|connection| connection.execute("INSERT INTO t VALUES (1)", []));
        assert_eq!(synced.unwrap(), 1);
        assert!(size() > 8_000_000, "{}", size());
    }

    #[test]
    fn who_wants_the_file_alone_in_its_turn_does_not_wait_for_a_checkpoint_that_waits_for_that_turn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let shared = shared(&path);
        let mut taken = shared.open().unwrap();
        taken.as_ref().unwrap().execute_batch(MUCH).unwrap();
        let taken_over = std::thread::scope(|scope| {
            let checkpointed = scope.spawn(|| checkpoint(&shared));
            while !shared.wanted() {
                std::thread::yield_now();
            }
            let_go(&mut taken);
            let written = write_into_file(&path, Duration::ZERO);
            drop(taken);
            checkpointed.join().unwrap().unwrap();
            written
        });
        taken_over.unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() > 8_000_000);
    }
}
