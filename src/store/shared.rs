//! The one writing connection to a SQLite file: SQLite has one writer at a time, so spool and store take turns here rather than in
//! busy loops.
//!
//! An I/O error closes it, and whoever comes next opens it again; while that fails it fails them all. A sync that
//! failed proves nothing of the WAL or of the file any more: the kernel may take pages for written that are not, those
//! of earlier commits and checkpoints too, and what is committed behind them would end with them when the machine goes
//! down. So before anything else is written all that the WAL holds is written into the file itself, and the WAL begins
//! anew. That takes the file for itself, and fails while somebody else has it open, as a backup does for long; a
//! checkpoint or a question ends in a moment, which is waited for. It is not done with a file that turned out to be
//! damaged: that stays closed, and the next start salvages it.
//!
//! Of a checkpoint behind a commit, or at a close, SQLite tells nobody that it failed. So commits checkpoint here, and
//! a connection that is opened again leaves its WAL as it is.

use std::{
    ffi::c_int,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use chatting_actors::seldom::Seldom;
use rusqlite::{Connection, ErrorCode, ffi, hooks::Wal};

use super::{
    Durability,
    alone::{in_use, keep_wal, write_into_file},
    salvage::is_damage,
    spool::{DAMAGED, set_meta},
    turns::{Turn, Turns},
};

/// See the module's text.
pub type SharedConnection = Arc<Shared>;

/// How long those who use the WAL are waited for: a checkpoint or a question, not a backup.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// How long they are waited for no more where that was in vain: those who come one after the other must not each pay for it, nor a stop
/// that is behind them.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// How soon a checkpoint is tried again while another one is under way, for which SQLite does not wait.
const AGAIN: Duration = Duration::from_millis(5);

type Open = Box<dyn Fn() -> rusqlite::Result<Connection> + Send + Sync>;

/// See the module's text.
pub struct Shared {
    /// The file, also while it is closed: those who only read have connections of their own.
    path: PathBuf,
    connection: Turns<Option<Connection>>,
    open: Open,
    durability: Durability,
    /// Whether the WAL of a connection that is closed is to be trusted no more.
    suspect: AtomicBool,
    /// When those who use that WAL were last waited for in vain.
    in_vain: Mutex<Option<Instant>>,
    /// How often it was opened again.
    reopened: AtomicU64,
    /// Whether the file turned out to be damaged.
    damaged: AtomicBool,
    /// Whether the WAL had grown long by the last commit. For who has the connection.
    long: Arc<AtomicBool>,
    /// I/O errors, for the log.
    told: Seldom,
}

impl Shared {
    /// An open connection to this file, and how it is opened again. Only with [`Durability::Disk`] a sync was promised
    /// to anybody. At how many pages in its WAL a commit checkpoints is what `wal_autocheckpoint` is on the connection.
    pub(super) fn new(
        path: PathBuf,
        connection: Connection,
        durability: Durability,
        open: impl Fn() -> rusqlite::Result<Connection> + Send + Sync + 'static,
    ) -> rusqlite::Result<SharedConnection> {
        let shared = Self::of(path, durability, Box::new(open));
        *shared.lock() = Some(shared.taken_over(connection)?);
        Ok(shared)
    }

    /// No connection to this file, and there never will be one: it is only read.
    pub(super) fn to_read(path: PathBuf) -> SharedConnection {
        let code = ffi::Error::new(ffi::SQLITE_MISUSE);
        let closed = move || {
            let why = "the file is not open for writing".to_owned();
            Err(rusqlite::Error::SqliteFailure(code, Some(why)))
        };
        Self::of(path, Durability::Disk, Box::new(closed))
    }

    fn of(path: PathBuf, durability: Durability, open: Open) -> SharedConnection {
        Arc::new(Self {
            path,
            connection: Turns::new(None),
            open,
            durability,
            suspect: AtomicBool::new(false),
            in_vain: Mutex::default(),
            reopened: AtomicU64::new(0),
            damaged: AtomicBool::new(false),
            long: Arc::default(),
            told: Seldom::new(),
        })
    }

    /// A connection that does not checkpoint by itself any more: behind a commit SQLite tells nobody that it failed. It
    /// tells when it would, and [`Self::run`] does it.
    fn taken_over(&self, mut connection: Connection) -> rusqlite::Result<Connection> {
        let pages: c_int = connection.pragma_query_value(None, "wal_autocheckpoint", |row| row.get(0))?;
        let long = Arc::clone(&self.long);
        let committed = move |_: &mut Wal, in_wal: c_int| {
            long.store((1..=in_wal).contains(&pages), Ordering::Relaxed);
            Ok(())
        };
        connection.wal_hook(Some(committed))?;
        Ok(connection)
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its turn, with the connection open.
    pub(super) fn open(&self) -> rusqlite::Result<Turn<'_, Option<Connection>>> {
        let mut turn = self.connection.lock();
        self.opened(&mut turn)?;
        Ok(turn)
    }

    /// The connection of a turn, opened again where it is closed.
    fn opened<'t>(&self, slot: &'t mut Option<Connection>) -> rusqlite::Result<&'t mut Connection> {
        match slot {
            Some(connection) => Ok(connection),
            None => Ok(slot.insert(self.open_again()?)),
        }
    }

    fn open_again(&self) -> rusqlite::Result<Connection> {
        if self.suspect.load(Ordering::Acquire) {
            if self.durability == Durability::Disk {
                self.write_into_file()?;
            }
            self.suspect.store(false, Ordering::Release);
        }
        let connection = self.taken_over((self.open)()?)?;
        if self.damaged() {
            keep_wal(&connection)?;
        }
        self.reopened.fetch_add(1, Ordering::AcqRel);
        Ok(connection)
    }

    fn write_into_file(&self) -> rusqlite::Result<()> {
        if self.damaged() {
            // What is in its WAL stays there for the salvage. Nothing may be committed behind it: it may not be on the
            // disk.
            let code = ffi::Error::new(ffi::SQLITE_IOERR);
            let why = "the file is damaged, and its disk has failed since: the next start salvages it".to_owned();
            return Err(rusqlite::Error::SqliteFailure(code, Some(why)));
        }
        let patience = self.patience(Instant::now());
        let written = write_into_file(&self.path, patience);
        match written {
            Ok(()) => *self.in_vain() = None,
            Err(_) if !patience.is_zero() => *self.in_vain() = Some(Instant::now()),
            Err(_) => {}
        }
        written
    }

    fn in_vain(&self) -> MutexGuard<'_, Option<Instant>> {
        self.in_vain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long those who use the WAL are waited for now.
    fn patience(&self, now: Instant) -> Duration {
        let lately = self
            .in_vain()
            .is_some_and(|at| now.saturating_duration_since(at) < IMPATIENCE);
        if lately { Duration::ZERO } else { PATIENCE }
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

    /// Runs work on it, and checkpoints where that committed something to a WAL that has grown long.
    pub(crate) fn run<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let mut turn = self.connection.lock();
        self.long.store(false, Ordering::Relaxed);
        let done = work(self.opened(&mut turn)?);
        match &done {
            Ok(_) if self.long.load(Ordering::Relaxed) => self.checkpoint(&mut turn),
            Ok(_) => {}
            Err(error) => self.heed(error, &mut turn),
        }
        done
    }

    /// What was committed stands, whatever comes of this.
    fn checkpoint(&self, turn: &mut Option<Connection>) {
        if let Some(connection) = turn
            && let Err(error) = pass(connection)
        {
            log::debug!("spool: its WAL is not checkpointed: {error}");
            self.heed(&error, turn);
        }
    }

    /// Whether the file turned out to be damaged while it was used.
    pub(super) fn damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// Closes it where this error says that it is to be trusted no more. One that says that the file is damaged is remembered.
    pub(super) fn heed(&self, error: &rusqlite::Error, turn: &mut Option<Connection>) {
        if is_damage(error)
            && let Some(connection) = turn
            && let Err(unmarked) = self.mark(connection)
        {
            self.heed_io(&unmarked, turn);
        }
        self.heed_io(error, turn);
    }

    fn heed_io(&self, error: &rusqlite::Error, turn: &mut Option<Connection>) {
        if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) {
            if let Some(more) = self.told.due(Instant::now()) {
                log::warn!("spool: its file is closed after an I/O error, until somebody comes next: {error}{more}");
            }
            self.suspect.fetch_or(may_be_of_a_sync(error), Ordering::AcqRel);
            let_go(turn);
        }
    }

    /// Somebody met this error on a connection of their own.
    pub(super) fn heed_reader(&self, error: &rusqlite::Error) {
        if is_damage(error)
            && let Ok(mut turn) = self.open()
            && let Some(connection) = &*turn
            && let Err(unmarked) = self.mark(connection)
        {
            self.heed_io(&unmarked, &mut turn);
        }
    }

    /// Remembers in the file that it is damaged, so that the next start looks through all of it, also behind a kill. What is in its
    /// WAL stays there.
    fn mark(&self, connection: &Connection) -> rusqlite::Result<()> {
        if self.damaged.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let marked = keep_wal(connection).and_then(|()| set_meta(connection, DAMAGED, 1));
        match &marked {
            Ok(()) => log::error!("spool: the file is damaged; the next start checks all of it"),
            Err(error) => log::error!("spool: the file is damaged, and takes no mark of that: {error}"),
        }
        marked
    }

    /// Closes it. Where `suspect` is set, a sync may have failed. Of a damaged file that is for its I/O errors alone to
    /// say: what a commit meets on a bad page must not cost all the others.
    pub(super) fn close(&self, suspect: bool) {
        let mut turn = self.connection.lock();
        self.suspect.fetch_or(suspect && !self.damaged(), Ordering::AcqRel);
        let_go(&mut turn);
    }
}

/// Whether a sync may have failed, for all that this I/O error says. A page that cannot be read, as on a bad sector, and what is no
/// file at all say nothing of one: behind damage they must not cost everybody else.
fn may_be_of_a_sync(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    !matches!(
        code,
        Some(
            ffi::SQLITE_IOERR_READ
                | ffi::SQLITE_IOERR_SHORT_READ
                | ffi::SQLITE_IOERR_NOMEM
                | ffi::SQLITE_IOERR_LOCK
                | ffi::SQLITE_IOERR_RDLOCK
                | ffi::SQLITE_IOERR_ACCESS
                | ffi::SQLITE_IOERR_FSTAT
                | ffi::SQLITE_IOERR_SHMOPEN
                | ffi::SQLITE_IOERR_SHMSIZE
                | ffi::SQLITE_IOERR_SHMLOCK
                | ffi::SQLITE_IOERR_SHMMAP
        )
    )
}

/// Closes a connection that is opened again.
pub(super) fn let_go(connection: &mut Option<Connection>) {
    if let Some(connection) = connection.take() {
        // It takes no I/O. Whatever comes of it, the connection is closed.
        let _ = keep_wal(&connection);
    }
}

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

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::mpsc::sync_channel};

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
        count(&mut Connection::open(&copy).unwrap()).unwrap()
    }

    /// Longer than any test.
    const USUAL: Duration = Duration::from_secs(600);

    fn busy_timeout(connection: &Connection) -> rusqlite::Result<i64> {
        connection.pragma_query_value(None, "busy_timeout", |row| row.get(0))
    }

    /// A file with an empty table, all of which is in the file itself. A commit checkpoints at so many pages.
    fn of(path: &Path, pages: u32) -> SharedConnection {
        let of = path.to_owned();
        let open = move || {
            let connection = open_file(&of, Durability::Disk)?;
            connection.busy_timeout(USUAL)?;
            connection.pragma_update(None, "wal_autocheckpoint", pages)?;
            Ok(connection)
        };
        let shared = Shared::new(path.to_owned(), open().unwrap(), Durability::Disk, open).unwrap();
        shared
            .run(|connection| connection.execute_batch("CREATE TABLE t(x); PRAGMA wal_checkpoint(TRUNCATE)"))
            .unwrap();
        shared
    }

    fn insert(shared: &Shared) -> rusqlite::Result<usize> {
        shared.run(|connection| connection.execute("INSERT INTO t VALUES (zeroblob(3000))", []))
    }

    fn count(connection: &mut Connection) -> rusqlite::Result<i64> {
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
    }

    fn damage<T>() -> rusqlite::Result<T> {
        let code = ffi::Error::new(ffi::SQLITE_CORRUPT);
        Err(rusqlite::Error::SqliteFailure(code, None))
    }

    /// Has the file open, and reads what is in it now.
    fn reader(path: &Path) -> Connection {
        let reader = open_to_read(path).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
        reader
    }

    #[test]
    fn after_an_io_error_nothing_is_written_before_the_file_itself_has_all_that_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let shared = of(&path, 1000);
        // One who reads keeps the WAL in use, also when the connection is closed.
        let read = reader(&path);
        insert(&shared).unwrap();
        let refused: rusqlite::Result<()> = shared.run(|connection| connection.execute_batch("no statement"));
        assert!(refused.is_err());
        insert(&shared).unwrap();
        assert_eq!(
            (in_the_file(&path), shared.reopened()),
            (0, 0),
            "no other error is heeded"
        );
        assert!(shared.run(|_| io_error::<()>()).is_err());
        assert_eq!(shared.patience(Instant::now()), PATIENCE);
        let began = Instant::now();
        for _ in 0..2 {
            let error = insert(&shared).unwrap_err().to_string();
            assert!(error.contains("somebody reads it"), "{error}");
        }
        assert!(began.elapsed() < USUAL / 2, "it is not waited for as for who writes");
        // Whoever comes next does not wait for it again, until a while is over or it has ended.
        let waited = shared.in_vain().unwrap();
        assert_eq!(shared.patience(waited), Duration::ZERO);
        assert_eq!(shared.patience(waited + IMPATIENCE), PATIENCE);
        drop(read);
        insert(&shared).unwrap();
        assert_eq!((in_the_file(&path), shared.reopened()), (2, 1));
        assert_eq!(shared.patience(waited), PATIENCE);
        let usual = shared.run(|connection| busy_timeout(connection)).unwrap();
        assert_eq!(u128::try_from(usual).unwrap(), USUAL.as_millis());
        // It is trusted again: closed for another reason, it is opened without ado.
        let _read = reader(&path);
        shared.close(false);
        insert(&shared).unwrap();
        assert_eq!(shared.reopened(), 2);
        shared.close(true);
        assert!(insert(&shared).is_err());
    }

    #[test]
    fn what_a_checkpoint_wrote_before_a_sync_failed_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let shared = of(&path, 1000);
        let before = std::fs::read(&path).unwrap();
        for _ in 0..100 {
            insert(&shared).unwrap();
        }
        // It goes as far as what is read, and is not synced there.
        let read = reader(&path);
        insert(&shared).unwrap();
        let left = shared.run(|connection| pass(connection)).unwrap();
        let written = std::fs::metadata(&path).unwrap().len();
        assert!(left > 0 && written > 300_000, "{left} pages left, {written} bytes");
        read.execute_batch("COMMIT").unwrap();
        // The sync that comes later fails, and the kernel takes for written what never comes to the disk.
        std::fs::write(&path, before).unwrap();
        assert!(shared.run(|_| io_error::<()>()).is_err());
        // Who has the file open without reading it knows how far checkpoints got, and would have the next one go on there.
        assert!(insert(&shared).is_err());
        drop(read);
        insert(&shared).unwrap();
        assert_eq!(in_the_file(&path), 101);
        shared.run(|connection| pass(connection)).unwrap();
        assert_eq!(in_the_file(&path), 102);
    }

    #[test]
    fn a_connection_that_is_opened_again_takes_nothing_into_the_file_where_nobody_would_hear_that_it_failed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let shared = of(&path, 1000);
        insert(&shared).unwrap();
        shared.close(false);
        assert_eq!(in_the_file(&path), 0);
        insert(&shared).unwrap();
        assert!(shared.run(|_| io_error::<()>()).is_err());
        assert_eq!(in_the_file(&path), 0);
        // What opens it again would hear.
        assert_eq!(shared.run(count), Ok(2));
        assert_eq!(in_the_file(&path), 2);
    }

    #[test]
    fn a_checkpoint_that_fails_behind_a_commit_is_heeded_and_the_commit_stands() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let shared = of(&path, 10);
        let insert = |rows: i64| {
            shared.run(|connection| {
                let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                           INSERT INTO t SELECT zeroblob(3000) FROM n";
                connection.execute(sql, [rows])
            })
        };
        insert(100).unwrap();
        assert_eq!(in_the_file(&path), 100, "it checkpoints where the WAL has grown long");
        insert(1).unwrap();
        assert_eq!(in_the_file(&path), 100, "and not before");
        shared
            .run(|connection| connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)"))
            .unwrap();
        // SQLite writes no page so far behind the end of a file.
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        assert_eq!(insert(20).unwrap(), 20);
        assert!(shared.damaged());
        assert_eq!(shared.run(count), Ok(121));
    }

    #[test]
    fn a_page_that_cannot_be_read_says_nothing_of_a_sync_also_behind_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let shared = of(&path, 1000);
        let unread = || {
            let code = ffi::Error::new(ffi::SQLITE_IOERR_READ);
            shared.run(|_| Err::<(), _>(rusqlite::Error::SqliteFailure(code, None)))
        };
        assert!(unread().is_err());
        let read = reader(&path);
        insert(&shared).unwrap();
        assert_eq!(
            (in_the_file(&path), shared.reopened()),
            (0, 1),
            "it is opened anew, and no more"
        );
        drop(read);
        assert!(shared.run(|_| damage::<()>()).is_err());
        assert!(unread().is_err());
        insert(&shared).unwrap();
        assert_eq!(shared.run(count), Ok(2));
    }

    #[test]
    fn behind_damage_a_failed_sync_is_not_made_good_so_nothing_is_written_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let shared = of(&path, 1000);
        insert(&shared).unwrap();
        assert!(shared.run(|_| damage::<()>()).is_err());
        insert(&shared).unwrap();
        // As behind a commit that met the damage: others go on.
        shared.close(true);
        insert(&shared).unwrap();
        assert!(shared.run(|_| io_error::<()>()).is_err());
        for _ in 0..2 {
            let error = insert(&shared).unwrap_err().to_string();
            assert!(error.contains("the next start salvages it"), "{error}");
            // Nor by who opens it again to see what came of a commit.
            shared.close(true);
        }
        assert_eq!(in_the_file(&path), 0, "the salvage has its WAL");
        assert_eq!(count(&mut open_file(&path, Durability::Disk).unwrap()), Ok(3));
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
        let writer = open_file(&path, Durability::Disk).unwrap();
        writer.execute_batch("CREATE TABLE t(x)").unwrap();
        let reader = open_to_read(&path).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
        writer.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        let mut other = open_file(&path, Durability::Disk).unwrap();
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
