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
    time::{Duration, Instant},
};

use chatting_actors::seldom::Seldom;
use rusqlite::{Connection, ErrorCode, ffi, hooks::Wal};

use super::{
    Durability, SYNCHRONOUS,
    alone::write_into_file,
    salvage::is_damage,
    spool::{DAMAGED, set_meta},
    turns::{Turn, Turns},
    wal::{PATIENCE, keep_wal, pass},
};

/// As all who write have it.
pub type SharedConnection = Arc<Shared>;

/// How long they are waited for no more where that was in vain: those who come one after the other must not each pay for it, nor a stop
/// that is behind them.
const IMPATIENCE: Duration = Duration::from_secs(1);

type Open = Box<dyn Fn() -> rusqlite::Result<Connection> + Send + Sync>;

/// The connection, open or not: `run` opens it where it is closed, gives it to who is next, and closes it behind an I/O
/// error.
pub struct Shared {
    /// The file, also while it is closed: those who only read have connections of their own.
    path: PathBuf,
    connection: Turns<Option<Connection>>,
    open: Open,
    /// Whether a sync was promised to anybody. It stays so: how far the file itself has what was promised is not known.
    promised: AtomicBool,
    /// Whether the WAL is to be trusted no more. Where nobody was promised a sync it is gone on with.
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
    /// An open connection to this file, and how it is opened again. With another durability than [`Durability::Disk`] a sync
    /// is promised only to who runs [`Self::run_synced`]. At how many pages in its WAL a commit checkpoints is what
    /// `wal_autocheckpoint` is on the connection.
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
            promised: AtomicBool::new(durability == Durability::Disk),
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
        if self.promised.load(Ordering::Acquire) && self.suspect.load(Ordering::Acquire) {
            self.trust_again()?;
        }
        let connection = self.taken_over((self.open)()?)?;
        if self.damaged() {
            keep_wal(&connection)?;
        }
        self.reopened.fetch_add(1, Ordering::AcqRel);
        Ok(connection)
    }

    /// Has the file itself take all that was committed. For who has the connection, which is closed.
    fn trust_again(&self) -> rusqlite::Result<()> {
        self.write_into_file()?;
        self.suspect.store(false, Ordering::Release);
        Ok(())
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
        self.run_in(&mut self.connection.lock(), work)
    }

    fn run_in<T>(
        &self,
        turn: &mut Option<Connection>,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.long.store(false, Ordering::Relaxed);
        let done = work(self.opened(turn)?);
        match &done {
            Ok(_) if self.long.load(Ordering::Relaxed) => self.checkpoint(turn),
            Ok(_) => {}
            Err(error) => self.heed(error, turn),
        }
        done
    }

    /// The same, and what it commits is synced under any durability. One that fails promises nothing: what others commit without a sync goes
    /// on as before.
    pub(super) fn run_synced<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut turn = self.connection.lock();
        if self.suspect.load(Ordering::Acquire) {
            let_go(&mut turn);
            self.trust_again()?;
        }
        let done = self.run_in(&mut turn, |connection| {
            let level: i64 = connection.pragma_query_value(None, SYNCHRONOUS, |row| row.get(0))?;
            connection.pragma_update(None, SYNCHRONOUS, Durability::Disk.synchronous())?;
            let done = work(connection);
            // What it did is done. A connection that cannot be set back syncs more than it must.
            let _ = connection.pragma_update(None, SYNCHRONOUS, level);
            done
        })?;
        self.promised.store(true, Ordering::Release);
        Ok(done)
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

#[cfg(test)]
mod tests;
