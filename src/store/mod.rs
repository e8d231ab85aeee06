//! Where events are kept: the spool on this machine, and the log behind it in MongoDB or, embedded, in SQLite.

mod alone;
pub mod archive;
pub mod figures;
mod found;
pub mod history;
pub mod inspect;
pub mod keeping;
mod late;
mod lock;
pub mod mongo;
mod reserve;
mod row;
mod salvage;
pub mod servers;
mod shared;
pub mod spool;
pub mod sqlite;
mod turns;
mod wal;

pub use self::{
    archive::{Archive, Deleted, First, Listed, Logged, Scan, StoredBroadcast},
    found::{FoundSpool, FoundStore, Left, Newest},
    history::History,
    late::LateMessages,
    lock::{LockError, SpoolLock},
    mongo::MongoStore,
    salvage::{SalvageError, files_aside},
    servers::ServerBeat,
    shared::{Shared, SharedConnection},
    spool::{SpoolSettings, SqliteSpool},
    sqlite::SqliteStore,
};

use std::{os::unix::ffi::OsStrExt, path::Path};

use rusqlite::{
    Connection, ErrorCode, OpenFlags,
    trace::{TraceEvent, TraceEventCodes},
};

/// How the reason begins why a store refuses an event whose number another one has in its room and numbering (rule 4). The rest of it is
/// for people.
const NUMBERING_CONFLICT: &str = "numbering conflict";

/// Whether a store refused an event because another one has its number.
pub fn is_numbering_conflict(reason: &str) -> bool {
    reason.starts_with(NUMBERING_CONFLICT)
}

/// How durable an accepted event is when its sender is answered (`log.durability`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// fsynced on this machine.
    Disk,
    /// Written, not fsynced: survives a crash of the server, not of the machine.
    Os,
    /// Queued: a crash loses what was not written yet.
    Memory,
}

impl Durability {
    fn synchronous(self) -> &'static str {
        match self {
            Self::Disk => "FULL",
            Self::Os | Self::Memory => "NORMAL",
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Os => "os",
            Self::Memory => "memory",
        }
    }
}

/// The pragma that says which commits are synced.
const SYNCHRONOUS: &str = "synchronous";

/// Opens or creates a SQLite file of mode 0600 in WAL mode.
#[cfg(test)]
fn open_file(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path)?;
    set_up(&connection, Durability::Disk)?;
    Ok(connection)
}

/// Opens or creates a SQLite file of mode 0600, and changes nothing of one that is there.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    create_private(path).map_err(|error| {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        rusqlite::Error::SqliteFailure(code, Some(format!("{}: {error}", path.display())))
    })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = open_at(path, flags)?;
    log_statements(&mut connection)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

/// Makes a connection one that writes, in WAL mode.
fn set_up(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, SYNCHRONOUS, durability.synchronous())?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Opens a SQLite file that is there, beside its one writer. Where SQLite cannot have beside it what it shares with a writer, as on a disk
/// that became read-only, a file that nobody writes to is read as it is.
fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    alone::give_way(wal::PATIENCE);
    let connection = open_at(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let mut connection = match connection.pragma_query_value(None, "schema_version", |_| Ok(())) {
        Ok(()) => connection,
        Err(error) if is_refused(&error) && is_left(path) => open_as_it_is(path)?,
        Err(error) => return Err(error),
    };
    log_statements(&mut connection)?;
    Ok(connection)
}

fn is_refused(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
}

/// Whether nobody has the file, and all that was written is in the file itself, not in its WAL. One that is written to is never to be
/// read as it is.
fn is_left(path: &Path) -> bool {
    let file = lock::file_of(path);
    let wal = std::fs::metadata(salvage::beside(&file, "-wal")).is_ok_and(|wal| wal.len() > 0);
    !wal && lock::holder(&file).is_none()
}

/// Opens a file that nobody changes, and looks for nothing beside it.
fn open_as_it_is(path: &Path) -> rusqlite::Result<Connection> {
    // A name may have bytes that are no text, or that mean something in a URI (<https://www.sqlite.org/uri.html>, 3).
    let name: String = path
        .as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| format!("%{byte:02x}"))
        .collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(format!("file:{name}?immutable=1"), flags)
}

/// Opens the file that the system has under this name. SQLite would take "file:…" for a URI, with what is behind a "?" for options, and
/// ":memory:" and "" for no file at all.
fn open_at(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(Path::new(".").join(path), flags)
}

/// The log's target for statements of SQL.
const SQL: &str = "chatting_server::sql";

/// With `RUST_LOG=chatting_server::sql=trace` every statement is logged as it is written; what is bound to it never is.
fn log_statements(connection: &mut Connection) -> rusqlite::Result<()> {
    if !log::log_enabled!(target: SQL, log::Level::Trace) {
        return Ok(());
    }
    let tell = |event: TraceEvent<'_>| {
        if let TraceEvent::Stmt(_, sql) = event {
            log::trace!(target: SQL, "{sql}");
        }
    };
    connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(tell))
}

/// Chat is personal data: nobody but the server's user reads the file, from its first byte on. SQLite gives its WAL the
/// same mode. A file that is there is not opened: closing it again would take this process's locks from every connection that
/// has it open (fcntl(2)), and another process could then take the WAL away under them.
fn create_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::OpenOptions::new()
        .create_new(true)
        .append(true)
        .mode(0o600)
        .open(path)
    {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, os::unix::fs::MetadataExt};

    use super::*;

    /// The locks that this process has of a file, by the kernel's list. That is read in pieces, while other tests lock and unlock:
    /// what one reading passed over another one finds.
    fn locks_of(path: &Path) -> BTreeSet<String> {
        let inode = std::fs::metadata(path).unwrap().ino();
        let (pid, file) = (format!(" {} ", std::process::id()), format!(":{inode} "));
        let readings = (0..50).flat_map(|_| {
            let locks = std::fs::read_to_string("/proc/locks").unwrap();
            let ours = locks.lines().filter(|lock| lock.contains(&pid) && lock.contains(&file));
            // Without its number in the list.
            ours.filter_map(|lock| Some(lock.split_once(": ")?.1.to_owned()))
                .collect::<Vec<_>>()
        });
        readings.collect()
    }

    #[test]
    fn opening_a_file_again_takes_no_lock_from_who_has_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let first = open_file(&path).unwrap();
        first
            .execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)")
            .unwrap();
        let reader = open_to_read(&path).unwrap();
        let count = |connection: &Connection| connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0));
        assert_eq!(count(&reader), Ok(1));
        drop(first);
        let locked = locks_of(&path);
        assert!(!locked.is_empty());
        let again = open_file(&path).unwrap();
        assert_eq!(count(&again), Ok(1));
        assert!(locks_of(&path).is_superset(&locked));
    }
}
