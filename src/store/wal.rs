//! The WAL of a SQLite file: written into the file, emptied, left as it is, synced.
//!
//! Left to itself SQLite does this behind a commit and when a connection is closed, and tells nobody where it failed.

use std::{
    fs::File,
    io::ErrorKind,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, config::DbConfig, ffi};

use super::salvage::beside;

/// How long those who use the WAL are waited for: a checkpoint or a question, not a backup.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// How soon a checkpoint is tried again while another one is under way, for which SQLite does not wait.
const AGAIN: Duration = Duration::from_millis(5);

/// One pass of a checkpoint: writes what the WAL holds into the file, as far as nobody reads what was before, and waits
/// for nobody. Returns how many pages are left.
pub(super) fn pass(connection: &Connection) -> rusqlite::Result<i64> {
    let mut pass = connection.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?;
    pass.query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))
}

/// Writes all that the WAL holds into the file and empties it. SQLite's code for busy while somebody still uses it when `patience` is
/// over: what is written next would come behind what it holds.
pub(super) fn empty_wal(connection: &Connection, patience: Duration) -> rusqlite::Result<()> {
    let usual: i64 = connection.pragma_query_value(None, "busy_timeout", |row| row.get(0))?;
    let emptied = truncate_wal(connection, Instant::now() + patience);
    connection.busy_timeout(Duration::from_millis(usual.unsigned_abs()))?;
    emptied
}

fn truncate_wal(connection: &Connection, until: Instant) -> rusqlite::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        connection.busy_timeout(left)?;
        let busy: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if !busy {
            return Ok(());
        }
        if left.is_zero() {
            return Err(in_use());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "who writes to the disk waits for it anyway, and this is no longer than a sync"
        )]
        thread::sleep(AGAIN);
    }
}

/// From now on closing this connection leaves in the WAL what is there. Else SQLite would write it into the file, take
/// the WAL away, and tell nobody where a sync failed.
pub(super) fn keep_wal(connection: &Connection) -> rusqlite::Result<()> {
    let kept = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    kept.map(drop)
}

/// Has the disk know that the WAL was emptied. One of which a sync failed may be there up to some commit only: if it
/// came back with the power, what is older than the file would be written over it.
pub(super) fn sync_wal(path: &Path) -> rusqlite::Result<()> {
    // SQLite has no locks on this file, which closing it would take.
    match File::open(beside(path, "-wal")).and_then(|wal| wal.sync_all()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let code = ffi::Error::new(ffi::SQLITE_IOERR_FSYNC);
            Err(rusqlite::Error::SqliteFailure(
                code,
                Some(format!("its WAL, which was emptied: {error}")),
            ))
        }
        _ => Ok(()),
    }
}

/// Why it cannot be done yet.
pub(super) fn in_use() -> rusqlite::Error {
    let code = ffi::Error::new(ffi::SQLITE_BUSY);
    let why = "what it holds cannot be written into the file yet: somebody reads it".to_owned();
    rusqlite::Error::SqliteFailure(code, Some(why))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::sync_channel,
    };

    use rusqlite::ErrorCode;

    use super::*;
    use crate::store::{open_file, open_to_read};

    /// Longer than any test.
    pub(in crate::store) const USUAL: Duration = Duration::from_secs(600);

    /// How many rows of `t` are in the file itself, without its WAL.
    pub(in crate::store) fn in_the_file(path: &Path) -> i64 {
        let copy = path.with_extension("copy");
        std::fs::copy(path, &copy).unwrap();
        let copy = Connection::open(&copy).unwrap();
        copy.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    /// Another checkpoint has come to where it waits for a reader.
    static UNDER_WAY: AtomicBool = AtomicBool::new(false);

    fn goes_on(_: i32) -> bool {
        UNDER_WAY.store(true, Ordering::Release);
        thread::yield_now();
        true
    }

    #[test]
    fn a_checkpoint_that_is_under_way_is_waited_for_as_a_reader_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let writer = open_file(&path).unwrap();
        writer.execute_batch("CREATE TABLE t(x)").unwrap();
        let reader = open_to_read(&path).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
        writer.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        let mut other = open_file(&path).unwrap();
        other.busy_handler(Some(goes_on)).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || other.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap());
            while !UNDER_WAY.load(Ordering::Acquire) {
                thread::yield_now();
            }
            let busy = empty_wal(&writer, Duration::ZERO).unwrap_err();
            assert_eq!(busy.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
            let (begins, begun) = sync_channel(0);
            let emptied = scope.spawn(move || {
                begins.send(()).unwrap();
                empty_wal(&writer, USUAL)
            });
            begun.recv().unwrap();
            reader.execute_batch("COMMIT").unwrap();
            emptied.join().unwrap().unwrap();
        });
        assert_eq!(in_the_file(&path), 1);
    }
}
