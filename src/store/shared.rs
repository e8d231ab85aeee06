//! The one writing connection to a SQLite file: SQLite has one writer at a time, so spool and store take turns here rather than in
//! busy loops.
//!
//! An I/O error closes it, and whoever comes next opens it again; while that fails it fails them all. A sync that failed proves
//! nothing of the WAL any more: the kernel may take pages for written that are not, those of earlier commits too, and what is
//! committed behind them would end with them when the machine goes down. So before anything else is written all that the WAL holds is
//! written into the file itself, and the WAL begins anew.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use rusqlite::{Connection, ErrorCode, ffi};

use super::{
    Durability,
    turns::{Turn, Turns},
};

/// See the module's text.
pub type SharedConnection = Arc<Shared>;

type Open = Box<dyn Fn() -> rusqlite::Result<Connection> + Send + Sync>;

/// See the module's text.
pub struct Shared {
    connection: Turns<Option<Connection>>,
    open: Open,
    durability: Durability,
    /// Whether the WAL of a connection that is closed is to be trusted no more.
    suspect: AtomicBool,
    /// How often it was opened again.
    reopened: AtomicU64,
}

impl Shared {
    /// An open connection, and how it is opened again. Only with [`Durability::Disk`] a sync was promised to anybody.
    pub(super) fn new(
        connection: Connection,
        durability: Durability,
        open: impl Fn() -> rusqlite::Result<Connection> + Send + Sync + 'static,
    ) -> SharedConnection {
        Self::of(Some(connection), durability, Box::new(open))
    }

    /// None, and there never will be one.
    pub(super) fn none() -> SharedConnection {
        let code = ffi::Error::new(ffi::SQLITE_MISUSE);
        let closed = move || {
            let why = "the file is not open for writing".to_owned();
            Err(rusqlite::Error::SqliteFailure(code, Some(why)))
        };
        Self::of(None, Durability::Disk, Box::new(closed))
    }

    fn of(connection: Option<Connection>, durability: Durability, open: Open) -> SharedConnection {
        Arc::new(Self {
            connection: Turns::new(connection),
            open,
            durability,
            suspect: AtomicBool::new(false),
            reopened: AtomicU64::new(0),
        })
    }

    /// Its turn, with the connection open.
    pub(super) fn open(&self) -> rusqlite::Result<Turn<'_, Option<Connection>>> {
        let mut turn = self.connection.lock();
        if turn.is_none() {
            let connection = (self.open)()?;
            if self.suspect.load(Ordering::Acquire) {
                if self.durability == Durability::Disk {
                    empty_wal(&connection)?;
                }
                self.suspect.store(false, Ordering::Release);
            }
            self.reopened.fetch_add(1, Ordering::AcqRel);
            *turn = Some(connection);
        }
        Ok(turn)
    }

    /// Its turn, open or not.
    pub(super) fn lock(&self) -> Turn<'_, Option<Connection>> {
        self.connection.lock()
    }

    /// Whether somebody waits for who has it now.
    pub(super) fn wanted(&self) -> bool {
        self.connection.wanted()
    }

    /// How often it was opened again. To be asked by who has it.
    pub(super) fn reopened(&self) -> u64 {
        self.reopened.load(Ordering::Acquire)
    }

    /// Runs work on it.
    pub(super) fn run<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let mut turn = self.open()?;
        let done = match turn.as_mut() {
            Some(connection) => work(connection),
            None => Err(rusqlite::Error::InvalidQuery),
        };
        done.inspect_err(|error| self.heed(error, &mut turn))
    }

    /// Closes it where this error says that it is to be trusted no more.
    pub(super) fn heed(&self, error: &rusqlite::Error, turn: &mut Option<Connection>) {
        if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) {
            self.suspect.store(true, Ordering::Release);
            *turn = None;
        }
    }

    /// Closes it. Where `suspect` is set, a sync may have failed.
    pub(super) fn close(&self, suspect: bool) {
        let mut turn = self.connection.lock();
        self.suspect.fetch_or(suspect, Ordering::AcqRel);
        *turn = None;
    }
}

/// Writes all that the WAL holds into the file and empties it. An error while somebody still reads in it: what is written next would come
/// behind what it holds.
fn empty_wal(connection: &Connection) -> rusqlite::Result<()> {
    let busy: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy {
        let code = ffi::Error::new(ffi::SQLITE_BUSY);
        let why = "what it holds cannot be written into the file yet: somebody reads it".to_owned();
        return Err(rusqlite::Error::SqliteFailure(code, Some(why)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::store::{open_file, open_to_read};

    fn io_error<T>() -> rusqlite::Result<T> {
        let code = ffi::Error::new(ffi::SQLITE_IOERR_FSYNC);
        Err(rusqlite::Error::SqliteFailure(code, None))
    }

    /// What is in the file itself, without its WAL.
    fn in_the_file(path: &Path) -> i64 {
        let copy = path.with_extension("copy");
        std::fs::copy(path, &copy).unwrap();
        let copied = Connection::open(&copy).unwrap();
        copied
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap()
    }

    #[test]
    fn after_an_io_error_nothing_is_written_before_the_file_itself_has_all_that_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let of = path.clone();
        let open = move || {
            let connection = open_file(&of, Durability::Disk)?;
            connection.busy_timeout(Duration::ZERO)?;
            Ok(connection)
        };
        let shared = Shared::new(open().unwrap(), Durability::Disk, open);
        let insert = || shared.run(|connection| connection.execute("INSERT INTO t VALUES (1)", []));
        shared
            .run(|connection| connection.execute_batch("CREATE TABLE t(x); PRAGMA wal_checkpoint(TRUNCATE)"))
            .unwrap();
        // One who reads keeps the WAL in use, also when the connection is closed.
        let reader = open_to_read(&path).unwrap();
        let reads = "BEGIN; SELECT count(*) FROM t";
        reader.execute_batch(reads).unwrap();
        insert().unwrap();
        let refused: rusqlite::Result<()> = shared.run(|connection| connection.execute_batch("no statement"));
        assert!(refused.is_err());
        insert().unwrap();
        assert_eq!(
            (in_the_file(&path), shared.reopened()),
            (0, 0),
            "no other error is heeded"
        );
        assert!(shared.run(|_| io_error::<()>()).is_err());
        for _ in 0..2 {
            let error = insert().unwrap_err().to_string();
            assert!(error.contains("somebody reads it"), "{error}");
        }
        reader.execute_batch("COMMIT").unwrap();
        insert().unwrap();
        assert_eq!((in_the_file(&path), shared.reopened()), (2, 1));
        // It is trusted again: closed for another reason, it is opened without ado.
        reader.execute_batch(reads).unwrap();
        shared.close(false);
        insert().unwrap();
        assert_eq!(shared.reopened(), 2);
        shared.close(true);
        assert!(insert().is_err());
    }
}
