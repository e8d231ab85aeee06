//! A look into a spool without taking it: `spool status` and `spool verify`, also while a server has it.
//!
//! Nothing is written and no lock is needed. Each look is one snapshot, so what a running server does meanwhile does not
//! show as damage; while it lasts SQLite cannot shorten the file's WAL.

mod check;
mod status;

pub use self::status::{Logged, Parked, ParkedEvent, Reason, Records, RoomRows, Status, Waiting};

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use self::check::Check;
use super::{
    lock, open_to_read, row,
    spool::{FORMAT, OfLog, OpenError, epochs, is_of, meta},
};

/// A spool that is looked into.
pub struct SpoolFile {
    path: PathBuf,
    connection: Connection,
    format: i64,
}

/// Why a spool cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// There is none, or it may not be read.
    #[error("the spool {path} cannot be opened: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// SQLite says no.
    #[error("the spool {path} cannot be read: {error}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: rusqlite::Error,
    },
    /// It is something else.
    #[error("{path} is no spool: it has no table `meta` with a format")]
    NotASpool {
        /// The file.
        path: PathBuf,
    },
    /// A later version wrote it.
    #[error(
        "the spool {path} has format {found}, and this version reads format {FORMAT}: a later version has had it, and can look \
         into it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says of itself.
        found: i64,
    },
    /// An earlier version wrote it.
    #[error("the spool {path} has format {found}; the next start of the server brings it to format {FORMAT}")]
    Older {
        /// The file.
        path: PathBuf,
        /// What it says of itself.
        found: i64,
    },
    /// Its events are for another log.
    #[error(transparent)]
    Opening(#[from] OpenError),
}

/// What a verification looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verified {
    /// Events on their way to the store.
    pub events: u64,
    /// Parked events.
    pub parked: u64,
    /// Idempotency keys.
    pub keys: u64,
    /// Broadcasts.
    pub broadcasts: u64,
    /// Rooms with a last seq.
    pub rooms: u64,
    /// What was wrong.
    pub problems: u64,
}

impl SpoolFile {
    /// Opens a spool for reading.
    pub fn open(path: &Path) -> Result<Self, LookError> {
        let path = &lock::file_of(path);
        let owned = || path.to_owned();
        let sqlite = |error| LookError::Sqlite { path: owned(), error };
        // SQLite would only say that it is "unable to open database file", or, of a directory, "disk I/O error".
        readable_file(path).map_err(|error| LookError::File { path: owned(), error })?;
        let connection = open_to_read(path).map_err(sqlite)?;
        if !has_table(&connection, "meta").map_err(sqlite)? {
            return Err(LookError::NotASpool { path: owned() });
        }
        match meta(&connection, "format").map_err(sqlite)? {
            // One of format 1 is brought to this one by the next start.
            Some(format @ (1 | FORMAT)) => Ok(Self {
                path: owned(),
                connection,
                format,
            }),
            Some(found) => Err(LookError::Format { path: owned(), found }),
            None => Err(LookError::NotASpool { path: owned() }),
        }
    }

    /// Whether a log that is read with it is all that there is: its format is this version's, and its events are for a log in the
    /// same file (`embedded`) or in MongoDB.
    pub fn is_whole_with(&self, embedded: bool) -> Result<(), LookError> {
        if self.format != FORMAT {
            return Err(LookError::Older {
                path: self.path.clone(),
                found: self.format,
            });
        }
        Ok(is_of(&self.connection, &self.path, embedded)?)
    }

    /// What it knows of its log in MongoDB, for who reads that.
    pub fn of_log(&self) -> Result<OfLog, LookError> {
        let known = OfLog::read(self.path.clone(), &self.connection, None);
        known.map_err(|error| LookError::Sqlite {
            path: self.path.clone(),
            error,
        })
    }

    /// What the spool holds.
    pub fn status(&self) -> Result<Status, LookError> {
        Status::of(self).map_err(|error| LookError::Sqlite {
            path: self.path.clone(),
            error,
        })
    }

    /// Checks what can be checked, and hands each problem to `found` in words. SQLite keeps no checksums, so a letter that
    /// was changed inside a text is not found.
    pub fn verify(&self, found: &mut dyn FnMut(&str)) -> Verified {
        let mut check = Check {
            connection: &self.connection,
            columns: match self.format {
                FORMAT => row::COLUMNS,
                _ => row::COLUMNS_OF_FORMAT_1,
            },
            verified: Verified::default(),
            found,
        };
        check.structure();
        if let Err(error) = check.contents() {
            check.problem(&format!("the check cannot go on: {error}"));
        }
        check.verified
    }
}

/// To open what is no regular file may take for ever.
fn readable_file(path: &Path) -> std::io::Result<()> {
    let kind = std::fs::metadata(path)?;
    if kind.is_dir() {
        return Err(std::io::Error::other(
            "it is a directory, and the name of a file is wanted",
        ));
    }
    if !kind.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    std::fs::File::open(path).map(drop)
}

fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    let found = connection.query_row(sql, [name], |_| Ok(())).optional()?;
    Ok(found.is_some())
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;
    use crate::store::{Durability, SpoolSettings, SqliteSpool, open_as_it_is};

    #[test]
    fn a_spool_is_looked_into_whatever_its_name_is_also_on_a_disk_that_became_read_only() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["chat".as_bytes(), b"\xb9\xe6", b"what? 50%25 #1&mode=memory"] {
            let path = dir.path().join(OsStr::from_bytes(name));
            let settings = SpoolSettings {
                path: path.clone(),
                durability: Durability::Disk,
                max_bytes: None,
                embedded: false,
            };
            drop(SqliteSpool::open(settings).unwrap());
            let connection = open_as_it_is(&path).unwrap();
            assert_eq!(meta(&connection, "format").unwrap(), Some(FORMAT));
            let status = SpoolFile::open(&path).unwrap().status().unwrap();
            let told = serde_json::to_value(status).unwrap();
            assert_eq!(told["path"], *path.to_string_lossy());
        }
    }
}
