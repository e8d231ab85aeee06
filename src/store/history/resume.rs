//! The log as sessions read it that go on from where memory no longer reaches (rule 16).

use std::path::Path;

use chatting_actors::{
    seams::{LogPage, LogRange, LogReader, Pos, StoreError},
    types::{Event, Seq},
};
use futures_util::future::{BoxFuture, FutureExt};
use rusqlite::params;

use super::{History, spooled};
use crate::store::{Scan, open_to_read, row};

impl LogReader for History {
    /// Rule 6 for a session that goes on: bounded by `session.resume_reads`, so it needs no permit of `log.readers`.
    fn read(&self, range: LogRange, spool_from: Pos) -> BoxFuture<'static, Result<LogPage, StoreError>> {
        let this = self.clone();
        async move {
            let asked = range.clone();
            let reading = this.reading(None);
            let spooled = reading.on_spool(move |path| read_range(path, &asked, spool_from));
            let Spooled {
                mut rows,
                scanned,
                acts,
            } = spooled.await.map_err(|error| StoreError(error.to_string()))?;
            let (after, limit) = (range.after, range.limit);
            let first = rows.first().map(|(_, event)| event.seq);
            let mut page = LogPage::default();
            if first != Some(after.next()) {
                let through = first.map_or(range.through, |first| Seq(first.0 - 1));
                let scan = Scan {
                    presenter: range.presenter,
                    epoch: range.epoch,
                    after,
                    through,
                    user: None,
                    newest_first: false,
                    limit,
                };
                match this.store.scan(scan).await {
                    Ok(stored) => {
                        let deleted = stored.iter().filter(|logged| logged.deleted.is_some());
                        page.deleted = deleted.map(|logged| logged.event.seq).collect();
                        page.events = stored.into_iter().map(|logged| logged.event).collect();
                    }
                    // What the spool has is told all the same: behind a gap it may be enough.
                    Err(error) => page.failed = Some(error.0),
                }
            }
            let room = limit.saturating_sub(page.events.len()).min(rows.len());
            // The next page begins to look at the first row of the spool that this one has no room for.
            page.spool_from = rows[room..].iter().find_map(|(pos, _)| *pos).unwrap_or(scanned);
            page.events.extend(rows.drain(..room).map(|(_, event)| event));
            let covered = |event: &&Event| {
                let covers = |at: &Event| at.act.as_ref().is_some_and(|act| act.covers(at, event));
                acts.iter().any(covers)
            };
            page.deleted
                .extend(page.events.iter().filter(covered).map(|event| event.seq));
            Ok(page)
        }
        .boxed()
    }
}

struct Spooled {
    /// In the order of seqs, each with its place in the spool; what was set aside has none.
    rows: Vec<(Option<Pos>, Event)>,
    /// No row before this place is of any use to the pages that follow.
    scanned: Pos,
    /// Every act of the room that the store may not have applied.
    acts: Vec<Event>,
}

/// What the spool has of a range, and of what was set aside from it.
fn read_range(path: &Path, range: &LogRange, spool_from: Pos) -> rusqlite::Result<Spooled> {
    let mut connection = open_to_read(path)?;
    // One snapshot for all questions.
    let snapshot = connection.transaction()?;
    let newest: Pos = snapshot.query_row("SELECT IFNULL(MAX(pos), 0) FROM spool", [], |row| row.get(0))?;
    // At most so many of a table, those that `wanted` chooses by its parameter, ?4, and in its order.
    let read = |table: &str, wanted: &str, bound: i64, limit: usize| {
        let sql = format!(
            "SELECT pos, {} FROM {table} WHERE presenter_idx = ?1 AND seq > ?2
             AND epoch = (SELECT n FROM epochs WHERE epoch = ?3) AND {wanted}",
            row::COLUMNS
        );
        let mut statement = snapshot.prepare(&sql)?;
        let asked = params![
            range.presenter.get(),
            range.after.0.cast_signed(),
            &*range.epoch.0,
            bound
        ];
        let mut rows = statement.query(asked)?;
        let mut read: Vec<(Pos, Event)> = Vec::new();
        while read.len() < limit
            && let Some(found) = rows.next()?
        {
            // One that cannot be read must not hide the others: it is, or will be, set aside with its reason.
            if let Ok(event) = row::read(found, 1, range.epoch.clone()) {
                read.push((found.get(0)?, event));
            }
        }
        Ok::<_, rusqlite::Error>(read)
    };
    // One more than is asked for, and also beyond its end: that is where the next page begins to look.
    let mut rows = read(
        "spool",
        "pos >= ?4 ORDER BY pos",
        spool_from,
        range.limit.saturating_add(1),
    )?;
    let within = |(_, event): &(Pos, Event)| event.seq <= range.through;
    let end = rows.iter().take(range.limit).take_while(|row| within(row)).count();
    let scanned = rows.get(end).map_or(newest + 1, |(pos, _)| *pos);
    rows.truncate(end);
    let mut rows: Vec<_> = rows.into_iter().map(|(pos, event)| (Some(pos), event)).collect();
    // A room's numbers grow with the places in the spool. Places begin anew, so of what is parked they tell nothing.
    let through = i64::try_from(range.through.0).unwrap_or(i64::MAX);
    let parked = read("parked", "seq <= ?4 ORDER BY seq", through, range.limit)?;
    rows.extend(parked.into_iter().map(|(_, event)| (None, event)));
    rows.sort_by_key(|(_, event)| event.seq);
    rows.dedup_by_key(|(_, event)| event.seq);
    let acts = spooled::acts(&snapshot, range.presenter)?;
    Ok(Spooled { rows, scanned, acts })
}
