//! Reads a room's events from wherever they are (rule 6): the spool first, then the store, and each event once.
//!
//! In this order because events move from the spool to the store: the other way round loses those that move between the two
//! reads, this way round finds them twice. Reads have connections of their own and a bound on how many run at once; the
//! registry and the sessions never wait for one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use chatting_actors::{
    gate::Gate,
    seams::{LogPage, LogRange, LogReader, LogStore, Pos, StoreError},
    types::{Epoch, Event, PresenterIdx, Seq},
};
use futures_util::future::{BoxFuture, FutureExt};
use rusqlite::params;

use super::{open_to_read, row};

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

fn read_spool(path: &Path, presenter: PresenterIdx, after: Seq, limit: usize) -> rusqlite::Result<Vec<Event>> {
    let connection = open_to_read(path)?;
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

impl LogReader for History {
    /// Rule 6 for a session that goes on: bounded by `session.resume_reads`, so it needs no permit of `log.readers`.
    fn read(&self, range: LogRange, spool_from: Pos) -> BoxFuture<'static, Result<LogPage, StoreError>> {
        let this = self.clone();
        async move {
            let (path, asked) = (Arc::clone(&this.spool), range.clone());
            #[expect(clippy::disallowed_methods, reason = "session.resume_reads bounds how many run")]
            let spooled = tokio::task::spawn_blocking(move || read_range(&path, &asked, spool_from));
            let unreadable = |error: &dyn std::fmt::Display| StoreError(format!("the spool cannot be read: {error}"));
            let Spooled { mut rows, scanned } = spooled
                .await
                .map_err(|error| unreadable(&error))?
                .map_err(|error| unreadable(&error))?;
            let (after, limit) = (range.after, range.limit);
            let first = rows.first().map(|(_, event)| event.seq);
            let mut page = LogPage::default();
            if first != Some(after.next()) {
                let through = first.map_or(range.through, |first| Seq(first.0 - 1));
                match this.store.read_range(LogRange { through, ..range }).await {
                    Ok(stored) => page.events = stored,
                    // What the spool has is told all the same: behind a gap it may be enough.
                    Err(error) => page.failed = Some(error.0),
                }
            }
            let room = limit.saturating_sub(page.events.len()).min(rows.len());
            // The next page begins to look at the first row that this one has no room for.
            page.spool_from = rows.get(room).map_or(scanned, |(pos, _)| *pos);
            page.events.extend(rows.drain(..room).map(|(_, event)| event));
            Ok(page)
        }
        .boxed()
    }
}

struct Spooled {
    /// In the order of seqs.
    rows: Vec<(Pos, Event)>,
    /// No row before this place is of any use to the pages that follow.
    scanned: Pos,
}

/// What the spool has of a range, and of what was set aside from it.
fn read_range(path: &Path, range: &LogRange, spool_from: Pos) -> rusqlite::Result<Spooled> {
    let mut connection = open_to_read(path)?;
    // One snapshot for all three questions.
    let snapshot = connection.transaction()?;
    let newest: Pos = snapshot.query_row("SELECT IFNULL(MAX(pos), 0) FROM spool", [], |row| row.get(0))?;
    // One more than is asked for, and also beyond its end: that is where the next page begins to look.
    let limit = i64::try_from(range.limit).unwrap_or(i64::MAX).saturating_add(1);
    let read = |table: &str, from: Pos| {
        let sql = format!(
            "SELECT pos, {} FROM {table} WHERE pos >= ?1 AND presenter_idx = ?2 AND seq > ?3
             AND epoch = (SELECT n FROM epochs WHERE epoch = ?4) ORDER BY pos LIMIT ?5",
            row::COLUMNS
        );
        let mut statement = snapshot.prepare(&sql)?;
        let asked = params![
            from,
            range.presenter.get(),
            range.after.0.cast_signed(),
            &*range.epoch.0,
            limit,
        ];
        let rows = statement.query_map(asked, |found| {
            Ok((found.get(0)?, row::read(found, 1, range.epoch.clone())?))
        })?;
        rows.collect::<rusqlite::Result<Vec<(Pos, Event)>>>()
    };
    let mut rows = read("spool", spool_from)?;
    let within = |(_, event): &(Pos, Event)| event.seq <= range.through;
    let end = rows.iter().take(range.limit).take_while(|row| within(row)).count();
    let scanned = rows.get(end).map_or(newest + 1, |(pos, _)| *pos);
    rows.truncate(end);
    rows.extend(read("parked", 0)?.into_iter().filter(within));
    rows.sort_by_key(|(_, event)| event.seq);
    rows.dedup_by_key(|(_, event)| event.seq);
    Ok(Spooled { rows, scanned })
}
