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

use super::{
    SqliteSpool, failed,
    freeing::beyond_limit,
    meta::{meta, meta_or},
};
use crate::store::{SharedConnection, sqlite::blocking};

/// In `meta`: the log's id, and the name of the database that it was met in.
pub(in crate::store) const LOG_ID: &str = "log_id";

/// A database that has not the log of a spool.
#[derive(Debug)]
pub struct OtherLog {
    /// In words for the operator.
    pub why: String,
    /// It has one, of another id; without it may have lost it, or be about to get it back.
    pub has_one: bool,
}

/// What a spool knows of its log. Clones share it.
#[derive(Clone)]
pub struct OfLog {
    path: PathBuf,
    known: Arc<Mutex<Option<String>>>,
    keep: Option<SharedConnection>,
}

impl SqliteSpool {
    /// What it knows of its log, for who takes it there; `begins`: where it knows none, it is from now on of the one that it meets.
    pub fn of_log(&self, begins: bool) -> Result<OfLog, SpoolError> {
        let shared = self.connection.clone();
        let known = shared.run(|connection| OfLog::read(self.connection.path().into(), connection, None));
        let known = known.map_err(|error| failed(&error, true))?;
        Ok(OfLog {
            keep: begins.then_some(shared),
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

    /// Whether this spool is of the log with this id, which this database has; a spool that knows none yet is from now on, where it keeps
    /// it. `Some`: of another one.
    pub(in crate::store) async fn is_of(
        &self,
        id: Option<&str>,
        database: &str,
    ) -> Result<Option<OtherLog>, StoreError> {
        let known = match (self.known(), id) {
            (Some(known), _) => known,
            (None, Some(id)) if self.keep.is_some() => self.keep(format!("{id} {database}")).await?,
            (None, _) => return Ok(None),
        };
        let (ours, met_in) = known.split_once(' ').unwrap_or((&known, "?"));
        if id == Some(ours) {
            return Ok(None);
        }
        let has = match id {
            Some(other) => format!("has the log {other}"),
            None => "has no log of this server".to_owned(),
        };
        let why = format!(
            "the spool {} is of the log {ours}, met in the database \"{met_in}\", and the database \"{database}\" {has}: mongodb.uri or \
             mongodb.database is another one's, and another log needs another log.path; docs/OPERATIONS.md, \"Another log in MongoDB\"",
            self.path.display()
        );
        Ok(Some(OtherLog {
            why,
            has_one: id.is_some(),
        }))
    }

    /// Has the spool keep it, and says what it has then. Where it takes nothing, as on a full disk, this process goes by it alone: what
    /// waits in the spool must go to its log all the more.
    async fn keep(&self, met: String) -> Result<String, StoreError> {
        let Some(shared) = self.keep.clone() else {
            return Ok(met);
        };
        let value = met.clone();
        let kept =
            move || shared.run(|connection| beyond_limit(connection, |connection| meta_or(connection, LOG_ID, &value)));
        let known = match blocking(move || kept().map_err(|error| StoreError(error.to_string()))).await {
            Ok(kept) => kept,
            Err(error) => {
                log::warn!(
                    "spool {}: that it is of the log {met} could not be kept, so it is known until the server stops: {error}",
                    self.path.display()
                );
                met
            }
        };
        let mut ours = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(ours.get_or_insert(known).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Durability, SpoolSettings};

    #[tokio::test]
    async fn a_spool_that_cannot_keep_the_id_of_its_log_goes_by_it_until_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let (spool, _) = SqliteSpool::open(SpoolSettings {
            path: path.clone(),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: false,
        })
        .unwrap();
        let beside = Connection::open(&path).unwrap();
        let full = "CREATE TRIGGER full BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'full'); END";
        beside.execute_batch(full).unwrap();
        let of_log = spool.of_log(true).unwrap();
        let is_of = async |of_log: &OfLog, id| of_log.is_of(id, "chatting").await.unwrap().map(|other| other.has_one);
        assert_eq!(is_of(&of_log, Some("ours")).await, None);
        assert_eq!(is_of(&of_log, Some("ours")).await, None);
        assert_eq!(is_of(&of_log, Some("other")).await, Some(true));
        assert_eq!(is_of(&of_log, None).await, Some(false));
        assert_eq!(meta::<String>(&beside, LOG_ID).unwrap(), None);
        beside.execute_batch("DROP TRIGGER full").unwrap();
        // What is kept stays.
        let [first, second] = [(); 2].map(|()| spool.of_log(true).unwrap());
        assert_eq!(is_of(&first, Some("ours")).await, None);
        assert_eq!(is_of(&second, Some("other")).await, Some(true));
        assert_eq!(is_of(&second, Some("ours")).await, None);
    }
}
