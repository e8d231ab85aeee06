//! Reads a room's events from wherever they are (rule 6): the spool first, then the store, and each event once.
//!
//! In this order because events move from the spool to the store: the other way round loses those that move between the two
//! reads, this way round finds them twice. Reads have connections of their own and a bound on how many run at once; the
//! registry and the sessions never wait for one.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use chatting_actors::{
    gate::Gate,
    seams::{LogStore, StoreError},
    types::{Epoch, Event, PresenterIdx, Seq},
};
use rusqlite::{Connection, OpenFlags, params};

use super::row;

/// See the module's text.
#[derive(Clone)]
pub struct History {
    spool: Arc<PathBuf>,
    store: Arc<dyn LogStore>,
    readers: Arc<Gate>,
}

/// Why a read was not done.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// `log.readers` reads are under way.
    #[error("too many reads at once (log.readers)")]
    Busy,
    /// The spool or the store cannot be read now.
    #[error("{0}")]
    Unavailable(String),
}

impl From<StoreError> for HistoryError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.0)
    }
}

impl History {
    /// Reads from the spool at this path and from this store, at most `readers` at once.
    pub fn new(spool: PathBuf, store: Arc<dyn LogStore>, readers: usize) -> Self {
        Self {
            spool: Arc::new(spool),
            store,
            readers: Gate::new("readers", readers),
        }
    }

    /// The permits of `log.readers`.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.readers
    }

    /// At most `limit` events of a room after `after`, in order, each once.
    pub async fn read_room(
        &self,
        presenter: PresenterIdx,
        after: Seq,
        limit: usize,
    ) -> Result<Vec<Event>, HistoryError> {
        let permit = self.readers.try_acquire(1).ok_or(HistoryError::Busy)?;
        let path = Arc::clone(&self.spool);
        #[expect(clippy::disallowed_methods, reason = "the gate bounds how many run")]
        let spooled = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            read_spool(&path, presenter, after, limit)
        });
        let spooled = spooled
            .await
            .map_err(|error| HistoryError::Unavailable(error.to_string()))?;
        let spooled = spooled.map_err(|error| HistoryError::Unavailable(error.to_string()))?;
        let stored = self.store.read_room(presenter, after, limit).await?;
        // Ids are in the order of time, so two epochs of one room sort as they were written.
        let all: BTreeMap<_, _> = spooled
            .into_iter()
            .chain(stored)
            .map(|event| ((event.seq, event.id), event))
            .collect();
        Ok(all.into_values().take(limit).collect())
    }
}

fn read_spool(path: &PathBuf, presenter: PresenterIdx, after: Seq, limit: usize) -> rusqlite::Result<Vec<Event>> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let sql = format!(
        "SELECT (SELECT epoch FROM epochs WHERE n = spool.epoch), {} FROM spool
         WHERE presenter_idx = ?1 AND seq > ?2 ORDER BY pos LIMIT ?3",
        row::COLUMNS
    );
    let mut statement = connection.prepare(&sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![presenter.get(), after.0.cast_signed(), limit], |found| {
        row::read(found, 1, Epoch(found.get::<_, String>(0)?.into()))
    })?;
    rows.collect()
}
