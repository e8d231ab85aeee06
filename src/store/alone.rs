//! A file that nobody else has open, so that all of its WAL is written into it.
//!
//! SQLite writes each page of the WAL into the file once. How far checkpoints got is noted in the memory that all who
//! have the file open share, by those too that come to no sync of the file: only the one that reaches the newest commit
//! syncs it, for all of them. Where that sync fails the kernel takes what they all wrote for written, and no checkpoint
//! of SQLite's writes it again. But who has the file alone needs no such memory: it looks through the WAL anew, and
//! begins at its first page (<https://www.sqlite.org/wal.html>, "Use of WAL Without Shared-Memory").

use std::{
    path::Path,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::{ErrorCode, OpenFlags};

use super::{
    open_at,
    wal::{in_use, keep_wal, sync_wal},
};

/// Writes all that the WAL holds into the file, whatever was written already, and empties it. SQLite's code for busy
/// while somebody else still has the file open when `patience` is over.
pub(super) fn write_into_file(path: &Path, patience: Duration) -> rusqlite::Result<()> {
    let _wanted = Wanted::now();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let alone = open_at(path, flags)?;
    keep_wal(&alone)?;
    alone.busy_timeout(patience)?;
    // Before it is read for the first time; from then on nobody else may.
    alone.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    let busy = alone.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    match busy {
        Ok(false) => sync_wal(path),
        Ok(true) => Err(in_use()),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Err(in_use()),
        Err(error) => Err(error),
    }
}

/// How many wait until nobody has their file open.
static WANTED: Mutex<usize> = Mutex::new(0);
static NO_LONGER: Condvar = Condvar::new();

fn wanted() -> MutexGuard<'static, usize> {
    WANTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody wants a file alone, until this is dropped.
struct Wanted;

impl Wanted {
    fn now() -> Self {
        *wanted() += 1;
        Self
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        *wanted() -= 1;
        NO_LONGER.notify_all();
    }
}

/// Lets who wants a file alone go first, for this long at most. To be asked by those of this process who come to read:
/// many who take turns would leave no moment in which nobody has it open.
pub(super) fn give_way(patience: Duration) {
    let waited = NO_LONGER.wait_timeout_while(wanted(), patience, |wanted| *wanted > 0);
    drop(waited.unwrap_or_else(PoisonError::into_inner));
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::sync_channel, thread, time::Instant};

    use super::*;
    use crate::store::{open_file, open_to_read, wal::PATIENCE};

    #[test]
    fn who_comes_to_read_lets_who_wants_the_file_alone_go_first_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let writer = open_file(&path).unwrap();
        writer.execute_batch("CREATE TABLE t(x)").unwrap();
        let wants = Wanted::now();
        let began = Instant::now();
        open_to_read(&path).unwrap();
        assert!(began.elapsed() >= PATIENCE);
        // Longer than any test.
        let long = Duration::from_secs(600);
        let (begins, begun) = sync_channel(0);
        thread::scope(|scope| {
            scope.spawn(move || {
                begins.send(()).unwrap();
                give_way(long);
            });
            begun.recv().unwrap();
            drop(wants);
        });
        assert!(began.elapsed() < long);
    }
}
