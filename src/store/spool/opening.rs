//! Opening a spool: the lock, whose file it is, what an unclean stop or damage left of it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use chatting_actors::{seldom::Seldom, writer::SpoolInfo};
use rusqlite::{Connection, ErrorCode, config::DbConfig, ffi};

use super::{
    DAMAGED, FORMAT, GIVEN_UP, Kept, Shown, SpoolSettings, SqliteSpool,
    anew::begin_anew,
    is_of, keys, meta,
    ours::may_be_ours,
    schema::{is_known, limit, open_connection, set_up, upgrade},
    start::{Start, start},
};
use crate::store::{
    Durability, FoundSpool, Left, Shared, SpoolLock, connect,
    lock::file_of,
    reserve::Reserve,
    salvage,
    wal::{PATIENCE, empty_wal, sync_wal},
};

/// Why a spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not ours.
    #[error(transparent)]
    Lock(#[from] crate::store::LockError),
    /// SQLite says no.
    #[error("the spool {path} (log.path) cannot be opened: {error}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: rusqlite::Error,
    },
    /// It is damaged, and what can be read of it cannot be carried over. Everything is as it was.
    #[error(
        "the spool {path} (log.path) is damaged, and what can be read of it cannot be carried over, so it stays as it is: {error}; \
         that may take {needs} bytes on its disk"
    )]
    Salvage {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: crate::store::SalvageError,
        /// The most bytes that it takes.
        needs: u64,
    },
    /// It is damaged and cannot be set aside.
    #[error("the spool {path} is damaged and cannot be set aside: {error}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// It is another program's.
    #[error("{path} (log.path) is an SQLite file with tables of something else, and no spool; it stays as it is")]
    NotASpool {
        /// The file.
        path: PathBuf,
    },
    /// Its events are for another log than that of the settings.
    #[error(
        "the spool {path} is of a server with log.backend = \"{found}\", and these settings say \"{set}\": name that server's own \
         (--config); another log needs another log.path"
    )]
    Backend {
        /// The file.
        path: PathBuf,
        /// The backend that it was last used with.
        found: String,
        /// `log.backend`
        set: &'static str,
    },
    /// A later version wrote it. Everything is as it was.
    #[error(
        "the spool {path} (log.path) has format {found}, and this version reads format {FORMAT}; it stays as it is. A later version \
         has had it: start that one again; docs/DEPLOY.md, \"Back to the version before\", has the way back from it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says of itself.
        found: i64,
    },
}

impl SqliteSpool {
    /// Takes the lock, opens or creates the file, and finds out where the numbering goes on.
    pub fn open(settings: SpoolSettings) -> Result<(Self, SpoolInfo), OpenError> {
        let named = settings.path;
        let settings = SpoolSettings {
            path: file_of(&named),
            ..settings
        };
        let lock = SpoolLock::take(&settings.path, &named)?;
        salvage::finish(&settings.path).map_err(|error| OpenError::Damaged {
            path: settings.path.clone(),
            error,
        })?;
        if lock.known() {
            salvage::clear(&settings.path);
        }
        let (mut damaged, mut ours) = (false, lock.known());
        let reserve = Arc::new(Reserve::of(&settings.path));
        let mut begun = begin(&settings, &reserve, &mut ours);
        if let Err(OpenError::Sqlite { error, .. }) = &begun
            && is_full(error)
            && reserve.give_up()
        {
            log::warn!("{GIVEN_UP}: {error}");
            begun = begin(&settings, &reserve, &mut ours);
        }
        let (connection, state) = match begun {
            // A file that never was a spool of ours is somebody else's: it is not touched.
            Err(OpenError::Sqlite { error, .. }) if salvage::is_damage(&error) && ours => {
                damaged = true;
                begin_anew(&settings, &error)?;
                begin(&settings, &reserve, &mut ours)?
            }
            begun => begun?,
        };
        lock.keep(&settings.path)?;
        let info = SpoolInfo {
            epoch: state.epoch.1.clone(),
            last_ms: state.last_ms,
            first: state.first,
            last: state.next_pos - 1,
        };
        let found = FoundSpool {
            epoch: state.epoch.1.0.to_string(),
            new_epoch: state.begun,
            left: match state.left {
                _ if damaged => Left::Damaged,
                left => left,
            },
            rows: (info.first <= info.last).then_some((info.first, info.last)),
            rooms_waiting: state.last_seqs.rooms_waiting(),
            rooms_known: state.rooms_known,
            furthest: state.furthest,
            asks_store: state.last_seqs.asks_store(),
        };
        let (path, durability, max_bytes) = (settings.path.clone(), settings.durability, settings.max_bytes);
        let kept = Arc::clone(&reserve);
        let open = move || {
            let connection = open_connection(&settings)?;
            limit(&connection, max_bytes, &kept)?;
            Ok(connection)
        };
        let connection = Shared::new(path.clone(), connection, durability, open)
            .map_err(|error| OpenError::Sqlite { path, error })?;
        let mut this = Self {
            connection,
            reopened: 0,
            epochs: state.epochs,
            epoch: state.epoch,
            next_pos: state.next_pos,
            untold: state.next_pos,
            last_seqs: state.last_seqs,
            expired: keys::Expired::new(),
            found,
            bytes: 0,
            measured_at: Instant::now(),
            max_bytes,
            reserve,
            reserve_wanted: 0,
            shown: Shown::default(),
            reserve_tried_at: Instant::now(),
            kept: Kept::default(),
            unreadable: Seldom::new(),
            lock,
        };
        this.measure();
        Ok((this, info))
    }
}

/// Opens a file that is a spool or becomes one, and begins its use. Damage may show at each step of it; what cannot be begun is left as
/// it is, with its WAL, which closing it would write into it and take away. `ours` is set where its tables show that it is a spool of ours.
fn begin(settings: &SpoolSettings, reserve: &Reserve, ours: &mut bool) -> Result<(Connection, Start), OpenError> {
    let sqlite = |error| OpenError::Sqlite {
        path: settings.path.clone(),
        error,
    };
    let mut connection = connect(&settings.path).map_err(sqlite)?;
    let keep_wal = |connection: &Connection, keep| {
        let set = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep);
        set.map(drop).map_err(sqlite)
    };
    keep_wal(&connection, true)?;
    *ours |= may_be_ours(&connection, &settings.path)?;
    // What a later version has there is not to be changed, not even by tables that it has no more. Where this cannot be read, what
    // comes behind it says why.
    if let Ok(found) = meta(&connection, "format") {
        is_known(found, &settings.path)?;
    }
    set_up(&connection, settings).map_err(sqlite)?;
    let state = take_over(&mut connection, settings, reserve)?;
    keep_wal(&connection, false)?;
    Ok((connection, state))
}

fn take_over(connection: &mut Connection, settings: &SpoolSettings, reserve: &Reserve) -> Result<Start, OpenError> {
    let path = &settings.path;
    let sqlite = |error| OpenError::Sqlite {
        path: path.clone(),
        error,
    };
    match is_of(connection, path, settings.embedded) {
        // Salvaging a file for another log than its own would leave that one behind. Where it cannot tell, the settings do.
        Err(OpenError::Sqlite { error, .. }) if salvage::is_damage(&error) => {}
        of => of?,
    }
    let found = check(connection, settings).map_err(sqlite)?;
    is_known(found, path)?;
    if found == Some(1) {
        upgrade(connection).map_err(sqlite)?;
    }
    let state = start(connection, settings, found.is_none()).map_err(sqlite)?;
    limit(connection, settings.max_bytes, reserve).map_err(sqlite)?;
    Ok(state)
}

/// Whether the disk has no room. That is said by another code where what all who have the file share cannot be made.
fn is_full(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error();
    code.is_some_and(|code| code.code == ErrorCode::DiskFull || code.extended_code == ffi::SQLITE_IOERR_SHMSIZE)
}

/// Reads the file's format. After an unclean stop, as which one counts that found damage, its tables are checked first, and what the WAL
/// holds is written into the file: a sync of it may have failed before that stop, and what is read of it need not be on the disk.
fn check(connection: &Connection, settings: &SpoolSettings) -> rusqlite::Result<Option<i64>> {
    let format = meta(connection, "format")?;
    if meta(connection, "clean")? == Some(0_i64) {
        let damaged = meta(connection, DAMAGED)? == Some(1_i64);
        // That takes some seconds a gigabyte, and until then nothing else is said.
        let checked = if damaged { "all of it is" } else { "its tables are" };
        let bytes = salvage::size_of(&settings.path);
        log::info!("spool: it was not stopped cleanly, so {checked} checked; the file has {bytes} bytes");
        salvage::check(connection, damaged)?;
        if settings.durability == Durability::Disk {
            trust_wal(connection, &settings.path)?;
        }
    }
    Ok(format)
}

/// Empties the WAL. A backup that reads, or a full disk, stops no start: most often its syncs were well.
fn trust_wal(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    match empty_wal(connection, PATIENCE) {
        Err(error)
            if matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DiskFull)
            ) =>
        {
            log::warn!("spool: it goes on in the WAL that was left: {error}");
            Ok(())
        }
        emptied => emptied.and_then(|()| sync_wal(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_unclean_stop_nothing_is_written_behind_what_the_wal_was_left_with_unless_somebody_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let settings = SpoolSettings {
            path: dir.path().join("chat.db"),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: false,
        };
        let mut connection = open_connection(&settings).unwrap();
        start(&mut connection, &settings, true).unwrap();
        // What is left of it when it is killed; with a reader, and under another durability.
        let wal_after = |name: &str, durability, reads: bool| {
            let left = SpoolSettings {
                path: dir.path().join(name),
                durability,
                ..settings.clone()
            };
            let (wal, left_wal) = (
                salvage::beside(&settings.path, "-wal"),
                salvage::beside(&left.path, "-wal"),
            );
            std::fs::copy(&settings.path, &left.path).unwrap();
            std::fs::copy(wal, &left_wal).unwrap();
            let reader = reads.then(|| Connection::open(&left.path).unwrap());
            if let Some(reader) = &reader {
                reader.execute_batch("BEGIN; SELECT count(*) FROM meta").unwrap();
            }
            let opened = open_connection(&left).unwrap();
            assert_eq!(check(&opened, &left).unwrap(), Some(FORMAT));
            let bytes = std::fs::metadata(left_wal).unwrap().len();
            drop(opened);
            bytes
        };
        assert_eq!(wal_after("killed.db", Durability::Disk, false), 0);
        assert!(wal_after("read.db", Durability::Disk, true) > 0);
        assert!(
            wal_after("os.db", Durability::Os, false) > 0,
            "nobody was promised a sync"
        );
    }
}
