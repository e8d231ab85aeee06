//! The log as sessions read it that go on from where memory no longer reaches (rule 16).

use chatting_actors::{
    seams::{LogPage, LogRange, LogReader, Pos, StoreError},
    types::{Event, Seq},
};
use futures_util::future::{BoxFuture, FutureExt};
use rusqlite::{Connection, params};

use super::{History, spooled};
use crate::store::{Scan, open_to_read, row};

impl LogReader for History {
    /// Rule 6 for a session that goes on: bounded by `session.resume_reads`, so it needs no permit of `log.readers`.
    fn read(&self, range: LogRange, spool_from: Pos) -> BoxFuture<'static, Result<LogPage, StoreError>> {
        let this = self.clone();
        async move {
            let asked = range.clone();
            let reading = this.reading(None);
            let spooled = reading.on_spool(move |path| read_range(&mut open_to_read(path)?, &asked, spool_from));
            let Spooled {
                begins,
                mut rows,
                scanned,
                acts,
            } = spooled.await.map_err(|error| StoreError(error.to_string()))?;
            let (after, limit) = (range.after, range.limit);
            let first = rows.first().map(|(_, event)| event.seq);
            let mut page = LogPage {
                begins,
                ..LogPage::default()
            };
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
            if acts.is_empty() {
                return Ok(page);
            }
            // Each is compared with each, which may take the CPU for long.
            let marked = reading.blocking(move || {
                let covered = |event: &&Event| {
                    let covers = |at: &Event| at.act.as_ref().is_some_and(|act| act.covers(at, event));
                    acts.iter().any(covers)
                };
                page.deleted
                    .extend(page.events.iter().filter(covered).map(|event| event.seq));
                page
            });
            marked.await.map_err(|error| StoreError(error.to_string()))
        }
        .boxed()
    }
}

struct Spooled {
    /// No row before this place is of any use to this page.
    begins: Pos,
    /// In the order of seqs, each with its place in the spool; what was set aside has none.
    rows: Vec<(Option<Pos>, Event)>,
    /// No row before this place is of any use to the pages that follow.
    scanned: Pos,
    /// Every act of the room that the store may not have applied.
    acts: Vec<Event>,
}

/// What the spool has of a range, and of what was set aside from it.
fn read_range(connection: &mut Connection, range: &LogRange, spool_from: Pos) -> rusqlite::Result<Spooled> {
    // One snapshot for all questions.
    let snapshot = connection.transaction()?;
    let newest: Pos = snapshot.query_row("SELECT IFNULL(MAX(pos), 0) FROM spool", [], |row| row.get(0))?;
    let (begins, last) = match spool_from {
        0 => from_the_end(&snapshot, range, newest)?,
        known => (known, newest),
    };
    // At most so many of a table, those that `wanted` chooses by its parameters, ?4 and ?5, and in its order.
    let read = |table: &str, wanted: &str, (from, to): (i64, i64), limit: usize| {
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
            from,
            to
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
    let one_more = range.limit.saturating_add(1);
    let mut rows = read("spool", "pos BETWEEN ?4 AND ?5 ORDER BY pos", (begins, last), one_more)?;
    let within = |(_, event): &(Pos, Event)| event.seq <= range.through;
    let end = rows.iter().take(range.limit).take_while(|row| within(row)).count();
    let scanned = rows.get(end).map_or(newest + 1, |(pos, _)| *pos);
    rows.truncate(end);
    let mut rows: Vec<_> = rows.into_iter().map(|(pos, event)| (Some(pos), event)).collect();
    // A room's numbers grow with the places in the spool. Places begin anew, so of what is parked they tell nothing.
    let through = i64::try_from(range.through.0).unwrap_or(i64::MAX);
    let parked = read(
        "parked",
        "seq BETWEEN ?4 AND ?5 ORDER BY seq",
        (i64::MIN, through),
        range.limit,
    )?;
    rows.extend(parked.into_iter().map(|(_, event)| (None, event)));
    rows.sort_by_key(|(_, event)| event.seq);
    rows.dedup_by_key(|(_, event)| event.seq);
    let acts = spooled::acts(&snapshot, range.presenter)?;
    Ok(Spooled {
        begins,
        rows,
        scanned,
        acts,
    })
}

/// Where the spool begins to have a range, and where its last row of the room is: sought from its end, so that it costs what a session
/// lacks, and not what the spool holds. All of it is gone through only where the range begins before all that the spool has of the room.
///
/// A room's numbers grow with the places in the spool: only commits add to it, at its end, and a salvage leaves every row its place.
fn from_the_end(snapshot: &Connection, range: &LogRange, newest: Pos) -> rusqlite::Result<(Pos, Pos)> {
    let mut statement = snapshot.prepare(
        "SELECT pos, seq FROM spool WHERE presenter_idx = ?1 AND epoch = (SELECT n FROM epochs WHERE epoch = ?2)
         AND typeof(seq) = 'integer' ORDER BY pos DESC",
    )?;
    let mut rows = statement.query(params![range.presenter.get(), &*range.epoch.0])?;
    let (mut begins, mut last) = (newest + 1, None);
    while let Some(row) = rows.next()? {
        let (pos, seq): (Pos, i64) = (row.get(0)?, row.get(1)?);
        let seq = Seq(seq.cast_unsigned());
        last.get_or_insert(pos);
        if seq > range.after {
            begins = pos;
        }
        // Numbers have no holes.
        if seq <= range.after.next() {
            break;
        }
    }
    Ok((begins, last.unwrap_or(newest)))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    };

    use chatting_actors::{
        clock::EventClock,
        seams::Spool,
        types::{ChatMessage, Epoch, MessageText, Nickname, PresenterIdx, Role, UserIdx},
    };

    use super::*;
    use crate::store::{Durability, SpoolSettings, SqliteSpool};

    /// Messages of other rooms between two of ours.
    const BETWEEN: u64 = 2000;
    /// Steps of SQLite's machine that are few beside those that so many rows take.
    const FEW: u64 = 1000;

    struct Filled {
        dir: tempfile::TempDir,
        spool: SqliteSpool,
        epoch: Epoch,
    }

    /// A spool with these numbers of room 12, behind each of which, and before the first one, another room says much.
    fn filled(numbers: &[u64]) -> Filled {
        let dir = tempfile::tempdir().unwrap();
        let (mut spool, info) = SqliteSpool::open(SpoolSettings {
            path: dir.path().join("chat.db"),
            durability: Durability::Os,
            max_bytes: None,
            embedded: false,
        })
        .unwrap();
        let mut clock = EventClock::after(0);
        let mut said = |presenter, seq| {
            let (sent_at_ms, id) = clock.stamp();
            Arc::new(Event {
                id,
                presenter_idx: PresenterIdx::new(presenter).unwrap(),
                epoch: info.epoch.clone(),
                seq: Seq(seq),
                sent_at_ms,
                room_idx: None,
                broadcast_id: None,
                act: None,
                chat: ChatMessage {
                    user_idx: UserIdx::new(7).unwrap(),
                    nickname: Nickname::new("kim", 64).unwrap(),
                    text: MessageText::maybe_empty("x".to_owned(), 10).unwrap(),
                    role: Role::Viewer,
                },
                keyed: None,
            })
        };
        let mut events: Vec<_> = (1..=BETWEEN).map(|seq| said(13, seq)).collect();
        for (n, seq) in (1..).zip(numbers) {
            events.push(said(12, *seq));
            events.extend((1..=BETWEEN).map(|seq| said(13, n * BETWEEN + seq)));
        }
        spool.commit(&events).unwrap();
        Filled {
            dir,
            spool,
            epoch: info.epoch,
        }
    }

    impl Filled {
        /// What is read, its numbers, and how many steps that took.
        fn read(&self, after: u64, limit: usize, spool_from: Pos) -> (Spooled, Vec<u64>, u64) {
            let mut connection = open_to_read(&self.dir.path().join("chat.db")).unwrap();
            let steps = Arc::new(AtomicU64::new(0));
            let count = Arc::clone(&steps);
            let step = move || {
                count.fetch_add(1, Relaxed);
                false
            };
            connection.progress_handler(1, Some(step)).unwrap();
            let range = LogRange {
                presenter: PresenterIdx::new(12).unwrap(),
                epoch: self.epoch.clone(),
                after: Seq(after),
                through: Seq(1000),
                limit,
            };
            let read = read_range(&mut connection, &range, spool_from).unwrap();
            let seqs = read.rows.iter().map(|(_, event)| event.seq.0).collect();
            (read, seqs, steps.load(Relaxed))
        }
    }

    #[test]
    fn who_lacks_the_end_has_no_more_read_than_that_however_much_the_spool_holds() {
        let mut filled = filled(&[1, 2, 3, 4, 5, 6]);
        let between = filled.read(6, 10, 0).2;
        for after in 0..6 {
            let (read, seqs, steps) = filled.read(after, 10, 0);
            assert_eq!(seqs, (after + 1..=6).collect::<Vec<_>>());
            // It goes there and back again, and looks closer then.
            let behind = 6 - after + 1;
            assert!(steps < 3 * behind * between + FEW, "after {after}: {steps}, {between}");
            // Page by page it is the same.
            let (mut paged, mut from) = (Vec::new(), 0);
            while paged.len() < seqs.len() {
                let (page, seqs, _) = filled.read(after + paged.len() as u64, 2, from);
                assert!(!seqs.is_empty() && page.begins <= page.scanned);
                paged.extend(seqs);
                from = page.scanned;
            }
            assert_eq!((paged, from), (seqs, read.scanned));
        }
        // What is said last is at hand.
        let newest = filled.spool.read(0, usize::MAX).unwrap().last().unwrap().1.clone();
        let mut last = Event::clone(&newest);
        (last.presenter_idx, last.seq) = (PresenterIdx::new(12).unwrap(), Seq(7));
        last.id = uuid::Uuid::now_v7();
        filled.spool.commit(&[Arc::new(last)]).unwrap();
        let (_, seqs, steps) = filled.read(6, 10, 0);
        assert_eq!(seqs, [7]);
        assert!(steps < FEW, "{steps}");
    }

    #[test]
    fn behind_a_rooms_last_row_the_spool_is_gone_through_once() {
        let filled = filled(&[1]);
        // From the end to its row.
        let (none, seqs, there) = filled.read(1, 10, 0);
        assert!(seqs.is_empty());
        let (read, seqs, steps) = filled.read(0, 10, 0);
        assert_eq!((seqs, read.scanned), (vec![1], none.scanned));
        assert!(steps < there + FEW, "{steps}, {there}");
    }

    #[test]
    fn where_the_spool_begins_to_have_a_room_is_sought_once() {
        // The store has what is before, and for long the spool has had nothing of the room.
        let filled = filled(&[41, 42]);
        let (first, seqs, all) = filled.read(30, 10, 0);
        assert_eq!(seqs, [41, 42]);
        let (again, seqs, steps) = filled.read(30, 10, first.begins);
        assert_eq!(
            (seqs, again.begins, again.scanned),
            (vec![41, 42], first.begins, first.scanned)
        );
        assert!(steps * 4 < all * 3, "{steps} of {all}");
        // Nothing of it is there.
        let (none, seqs, _) = filled.read(42, 10, 0);
        assert!(seqs.is_empty());
        assert_eq!((none.begins, none.scanned), (first.scanned, first.scanned));
        let (_, seqs, steps) = filled.read(42, 10, none.begins);
        assert!(seqs.is_empty() && steps < FEW, "{steps}");
    }
}
