//! Which log in MongoDB a spool is of, by the id that the log has there.
//!
//! What a spool has freed is in one log, and where its rooms go on is told by it: with another one events would be where nobody looks for
//! them, a command would report success on a log that it never saw, and a room might begin at 1 again (rule 3). So the first log that a
//! spool meets is the only one from then on.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use chatting_actors::seams::{SpoolError, StoreError};
use rusqlite::Connection;

use super::{SqliteSpool, failed, freeing::beyond_limit, meta, set_meta};
use crate::store::{SharedConnection, sqlite::blocking};

/// In `meta`: the log's id, and the name of the database that it was met in.
pub(in crate::store) const LOG_ID: &str = "log_id";

/// What a spool knows of its log. Clones share it.
#[derive(Clone)]
pub struct OfLog {
    path: PathBuf,
    known: Arc<Mutex<Option<String>>>,
    keep: Option<SharedConnection>,
}

impl SqliteSpool {
    /// What it knows of its log, for who takes it there.
    pub fn of_log(&self) -> Result<OfLog, SpoolError> {
        let shared = self.connection.clone();
        let known = shared.run(|connection| OfLog::read(self.connection.path().into(), connection, None));
        let known = known.map_err(|error| failed(&error, true))?;
        Ok(OfLog {
            keep: Some(shared),
            ..known
        })
    }
}

impl OfLog {
    /// As this spool has it; where it knows none, what is found is kept by `keep`, or nowhere.
    pub(in crate::store) fn read(
        path: PathBuf,
        connection: &Connection,
        keep: Option<SharedConnection>,
    ) -> rusqlite::Result<Self> {
        let known: Option<String> = meta(connection, LOG_ID)?;
        Ok(Self {
            path,
            known: Arc::new(Mutex::new(known)),
            keep,
        })
    }

    fn known(&self) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a database that has no id yet is to get one: that its spool knows none either is not enough for who only reads.
    pub(in crate::store) fn begins(&self) -> bool {
        self.keep.is_some() && self.known().is_none()
    }

    /// Whether this spool is of the log with this id, which this database has; a spool that knows none yet is from now on. `Some`: of
    /// another one, in words for the operator.
    pub(in crate::store) async fn is_of(&self, id: Option<&str>, database: &str) -> Result<Option<String>, StoreError> {
        let Some(known) = self.known() else {
            if let Some(id) = id {
                self.keep(format!("{id} {database}")).await?;
            }
            return Ok(None);
        };
        let (ours, met_in) = known.split_once(' ').unwrap_or((&known, "?"));
        if id == Some(ours) {
            return Ok(None);
        }
        let has = match id {
            Some(other) => format!("has the log {other}"),
            None => "has no log of this server".to_owned(),
        };
        Ok(Some(format!(
            "the spool {} is of the log {ours}, met in the database \"{met_in}\", and the database \"{database}\" {has}: mongodb.uri or \
             mongodb.database is another one's, and another log needs another log.path; docs/OPERATIONS.md, \"Another log in MongoDB\"",
            self.path.display()
        )))
    }

    async fn keep(&self, known: String) -> Result<(), StoreError> {
        let Some(shared) = self.keep.clone() else {
            return Ok(());
        };
        let value = known.clone();
        let kept =
            move || shared.run(|connection| beyond_limit(connection, |connection| set_meta(connection, LOG_ID, value)));
        blocking(move || kept().map_err(|error| StoreError(format!("the spool: {error}")))).await?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Ok(())
    }
}
