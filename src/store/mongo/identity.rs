//! Which log the database has: an id of its own, that a spool knows it by.
//!
//! It is in a collection of its own, made by the first who comes with a spool that knows none, and goes wherever a backup of the database
//! goes. It is compared before a server or a command asks the log for anything, again whenever the log is prepared or something failed,
//! and before each heartbeat; where it is another one's, all that is asked fails, and what is accepted stays in the spool.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use chatting_actors::{seams::StoreError, seldom::Seldom};
use mongodb::{
    Collection,
    bson::{DateTime, Document, doc},
    error::{Error, ErrorKind, WriteFailure},
    options::{CollectionOptions, ReadConcern},
};

use super::{Mongo, MongoStore, durable, failed, insert::DUPLICATE_KEY, unreadable};
use crate::store::spool::{OfLog, OtherLog};

/// Where the id is: its one document.
const COLLECTION: &str = "chatting_log_id";

impl MongoStore {
    /// From now on this is the log of this spool, or none.
    pub fn belongs_to(&self, spool: OfLog) {
        let _ = self.spool.set(spool);
    }

    /// Whether the database has another log than that of the spool that it [belongs to](Self::belongs_to), asked for so long at most. A
    /// spool that knows none yet may take it for its own.
    pub async fn other_log(&self, patience: Duration) -> Result<Option<OtherLog>, StoreError> {
        let Some(spool) = self.spool.get() else {
            return Ok(None);
        };
        let asked = async {
            let id = self.connected().await?.log_id(spool.begins()).await?;
            spool.is_of(id.as_deref(), &self.settings.database).await
        };
        let silent = || StoreError(format!("no answer within {patience:?}"));
        let other = tokio::time::timeout(patience, asked).await.map_err(|_| silent())??;
        self.same.store(other.is_none(), Ordering::Release);
        Ok(other)
    }

    /// An error where it has another log.
    pub(super) async fn is_the_log(&self) -> Result<(), StoreError> {
        match self.other_log(self.settings.write_timeout).await? {
            Some(other) => Err(other.told()),
            None => Ok(()),
        }
    }

    /// Something failed: there may be another one in its place when it answers again, so it is looked before anything else is asked.
    pub(in crate::store) fn may_be_other(&self) {
        self.same.store(false, Ordering::Release);
    }

    /// What came of asking it.
    pub(super) fn came<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if done.is_err() {
            self.may_be_other();
        }
        done
    }
}

impl OtherLog {
    /// The error of what was asked of it, which is told in the log.
    pub(in crate::store) fn told(self) -> StoreError {
        static TOLD: Seldom = Seldom::new();
        if let Some(more) = TOLD.due(Instant::now()) {
            log::error!("store: {}{more}", self.why);
        }
        StoreError(self.why)
    }
}

impl Mongo {
    fn ids(&self) -> Collection<Document> {
        // What no majority has may be gone after a failover, and a spool would look for it for ever.
        let options = CollectionOptions::builder()
            .read_concern(ReadConcern::majority())
            .write_concern(durable(self.write_timeout))
            .build();
        self.database.collection_with_options(COLLECTION, options)
    }

    /// The id of this log; with `begin` a log that has none gets one.
    async fn log_id(&self, begin: bool) -> Result<Option<String>, StoreError> {
        let found = self.found_id().await?;
        if found.is_some() || !begin {
            return Ok(found);
        }
        let id = format!("{:016x}", rand::random::<u64>());
        let ours = doc! { "_id": "log", "id": &id, "since": DateTime::now() };
        match self.ids().insert_one(ours).await {
            Ok(_) => Ok(Some(id)),
            // Somebody else was faster.
            Err(error) if is_there(&error) => match self.found_id().await? {
                Some(found) => Ok(Some(found)),
                None => Err(StoreError("the id of the log is not known to a majority yet".into())),
            },
            Err(error) => Err(failed(error)),
        }
    }

    async fn found_id(&self) -> Result<Option<String>, StoreError> {
        let found = self.ids().find_one(doc! { "_id": "log" }).await.map_err(failed)?;
        let id = found.map(|found| found.get_str("id").map(str::to_owned)).transpose();
        id.map_err(unreadable)
    }
}

fn is_there(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::Write(WriteFailure::WriteError(refused)) if refused.code == DUPLICATE_KEY)
}
