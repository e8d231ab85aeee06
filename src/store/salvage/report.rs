//! What came of a salvage, for the log; and why there was none.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// What was carried over, by table.
#[derive(Debug, Default)]
pub struct Salvaged {
    /// Names of numberings.
    pub epochs: Carried,
    /// Events that the store may not have.
    pub events: Carried,
    /// Idempotency keys.
    pub keys: Carried,
    /// Parked events.
    pub parked: Carried,
    /// Broadcasts that have not ended, or that the store does not have.
    pub records: Carried,
    /// Events of the embedded log.
    pub log: Carried,
    /// Broadcasts of the embedded log.
    pub broadcasts: Carried,
    /// Why nothing at all could be read.
    pub unread: Option<rusqlite::Error>,
}

/// What was carried over of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Rows that the new file has.
    pub rows: u64,
    /// What could not be read.
    pub missing: Missing,
}

/// What could not be read of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Damaged pages.
    pub pages: u64,
    /// Rows, as far as those of the other pages tell how many were on these.
    pub rows: u64,
    /// Whether others lay below these pages, which nothing tells of.
    pub at_least: bool,
}

impl fmt::Display for Salvaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = &self.unread {
            return write!(f, "nothing, none of its tables can be read: {error}");
        }
        write!(
            f,
            "{} events to go, {} keys, {} parked, {} of the embedded log",
            self.events.rows, self.keys.rows, self.parked.rows, self.log.rows
        )?;
        let tables = [
            ("epochs", self.epochs),
            ("events to go", self.events),
            ("keys", self.keys),
            ("parked", self.parked),
            ("broadcasts to go", self.records),
            ("events of the embedded log", self.log),
            ("broadcasts of the embedded log", self.broadcasts),
        ];
        let mut lead = "; lost: ";
        for (what, Carried { missing, .. }) in tables {
            if missing == Missing::default() {
                continue;
            }
            let Missing { pages, rows, at_least } = missing;
            match (rows, at_least) {
                (0, true) => write!(f, "{lead}an unknown number of {what}")?,
                (_, true) => write!(f, "{lead}at least {rows} {what}")?,
                (_, false) => write!(f, "{lead}about {rows} {what}")?,
            }
            write!(f, " (damaged pages: {pages})")?;
            lead = ", ";
        }
        match lead {
            ", " => Ok(()),
            _ => f.write_str("; lost: nothing that shows"),
        }
    }
}

/// Why what can be read of a damaged file cannot be carried over. It is no damage of that file.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The system says no.
    #[error("{file}: {error}")]
    File {
        /// The copy.
        file: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// SQLite says no.
    #[error("{file}: {error}")]
    Sqlite {
        /// The copy, or the new file.
        file: PathBuf,
        /// Why not.
        error: rusqlite::Error,
    },
}

impl SalvageError {
    pub(in crate::store) fn file(file: &Path, error: io::Error) -> Self {
        Self::File {
            file: file.to_owned(),
            error,
        }
    }

    pub(in crate::store) fn sqlite(file: &Path, error: rusqlite::Error) -> Self {
        Self::Sqlite {
            file: file.to_owned(),
            error,
        }
    }
}
