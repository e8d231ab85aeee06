//! What the spool has of a room: events that the store does not have yet, and acts that it has not applied.

use std::path::Path;

use chatting_actors::types::{Epoch, Event, PresenterIdx, Seq, UserIdx};
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use crate::store::{
    First, open_to_read, row,
    spool::records::{self, Which},
};

/// What was found by a [`Window`].
#[derive(Debug, Default)]
pub struct Spooled {
    /// In the order of seqs, or against it.
    pub events: Vec<Event>,
    /// There may be more than these, beyond this place; none is missing before it.
    pub reach: Option<Seq>,
    /// Every act of moderation of the room.
    pub acts: Vec<Event>,
}

/// Which of a room's events in the spool are wanted.
#[derive(Clone, Debug)]
pub struct Window {
    /// The room.
    pub presenter: PresenterIdx,
    /// In this numbering only.
    pub epoch: Option<Epoch>,
    /// Events after this one,
    pub after: Seq,
    /// up to and including this one,
    pub through: Seq,
    /// of this user only, where one is named,
    pub user: Option<UserIdx>,
    /// sent at this time or later, in milliseconds since 1970,
    pub from_ms: Option<i64>,
    /// sent at this time or earlier,
    pub to_ms: Option<i64>,
    /// from the last one backwards rather than from the first one on,
    pub newest_first: bool,
    /// at most so many, and what else has the last one's number.
    pub limit: usize,
}

/// The event of a row that begins with its epoch. One that cannot be read must not hide the others: it is, or will be, set
/// aside with its reason.
fn event(found: &Row<'_>) -> Option<Event> {
    let epoch = found.get::<_, String>(0);
    epoch.and_then(|epoch| row::read(found, 1, Epoch(epoch.into()))).ok()
}

/// A room's events in the spool and among what was set aside from it, and its acts.
pub fn of_room(path: &Path, window: &Window) -> rusqlite::Result<Spooled> {
    let mut connection = open_to_read(path)?;
    // One snapshot for all questions.
    let snapshot = connection.transaction()?;
    let order = if window.newest_first { "DESC" } else { "ASC" };
    let mut spooled = Spooled::default();
    // A room's numbers grow with the places in the spool. Places begin anew, so of what is parked they tell nothing. There two numberings
    // may have one number, at which no page may end but behind both.
    for (table, place, may_repeat) in [("parked", "seq", true), ("spool", "pos", false)] {
        let select = format!(
            "SELECT (SELECT epoch FROM epochs WHERE n = {table}.epoch), {} FROM {table} WHERE presenter_idx = ?1",
            row::COLUMNS
        );
        let sql = format!(
            "{select} AND seq > ?2 AND seq <= ?3 AND (?4 IS NULL OR user_idx = ?4)
             AND (?5 IS NULL OR {table}.epoch = (SELECT n FROM epochs WHERE epoch = ?5))
             AND sent_at >= ?6 AND sent_at <= ?7 ORDER BY {place} {order}"
        );
        let mut statement = snapshot.prepare(&sql)?;
        let mut rows = statement.query(params![
            window.presenter.get(),
            window.after.0.cast_signed(),
            i64::try_from(window.through.0).unwrap_or(i64::MAX),
            window.user.map(UserIdx::get),
            window.epoch.as_ref().map(|epoch| &*epoch.0),
            window.from_ms.unwrap_or(i64::MIN),
            window.to_ms.unwrap_or(i64::MAX),
        ])?;
        let (mut count, mut last) = (0, Seq(0));
        while (may_repeat || count < window.limit)
            && let Some(found) = rows.next()?
        {
            let seq = Seq(found.get::<_, i64>(2)?.cast_unsigned());
            if count >= window.limit && seq != last {
                break;
            }
            (count, last) = (count + 1, seq);
            spooled.events.extend(event(found));
        }
        let nearer = |reach: Seq| {
            if window.newest_first {
                last > reach
            } else {
                last < reach
            }
        };
        if count >= window.limit && spooled.reach.is_none_or(nearer) {
            spooled.reach = Some(last);
        }
    }
    spooled.events.sort_by_key(|event| (event.seq, event.id));
    if window.newest_first {
        spooled.events.reverse();
    }
    spooled.acts = acts(&snapshot, window.presenter)?;
    Ok(spooled)
}

/// The statement of [`acts`], for its parameter: the room.
fn acts_sql(table: &str) -> String {
    format!(
        "SELECT (SELECT epoch FROM epochs WHERE n = {table}.epoch), {} FROM {table}
         WHERE presenter_idx = ?1 AND act IS NOT NULL",
        row::COLUMNS
    )
}

/// A room's acts of moderation in the spool and among what was set aside from it, oldest first.
pub fn acts(connection: &Connection, presenter: PresenterIdx) -> rusqlite::Result<Vec<Event>> {
    let mut acts = Vec::new();
    for table in ["parked", "spool"] {
        let mut statement = connection.prepare(&acts_sql(table))?;
        let mut rows = statement.query([presenter.get()])?;
        while let Some(found) = rows.next()? {
            acts.extend(event(found));
        }
    }
    // The first act that covers a message is told of it.
    acts.sort_by_key(|act: &Event| act.id);
    Ok(acts)
}

/// Where a time begins among a room's events in the spool, and among what was set aside from it, in one numbering: the first that was
/// sent then or later; the one after the last where all are older; `None` where there are none.
pub fn first_from(path: &Path, presenter: PresenterIdx, epoch: &Epoch, at_ms: i64) -> rusqlite::Result<Option<First>> {
    let mut connection = open_to_read(path)?;
    // One snapshot for both questions: what is set aside between them would be in neither answer.
    let snapshot = connection.transaction()?;
    let (mut first, mut last): (Option<i64>, Option<i64>) = (None, None);
    for table in ["parked", "spool"] {
        // What cannot be read has no place in a replay.
        let sql = format!(
            "SELECT MIN(CASE WHEN sent_at >= ?3 THEN seq END), MAX(seq) FROM {table}
             WHERE presenter_idx = ?1 AND epoch = (SELECT n FROM epochs WHERE epoch = ?2)
               AND typeof(seq) = 'integer' AND typeof(sent_at) = 'integer'"
        );
        let asked = params![presenter.get(), &*epoch.0, at_ms];
        let (begins, ends): (Option<i64>, Option<i64>) =
            snapshot.query_row(&sql, asked, |found| Ok((found.get(0)?, found.get(1)?)))?;
        first = first.into_iter().chain(begins).min();
        last = last.max(ends);
    }
    let there = first.is_some();
    let seq = first.or(last.map(|last| last + 1));
    Ok(seq.map(|seq| First {
        seq: Seq(seq.cast_unsigned()),
        there,
    }))
}

/// One event of the spool, or of what was set aside from it, by its id; and the room's acts. In one snapshot: both may go to the store
/// at any time, and the message must not be read before that and the act that deletes it behind.
pub fn one(path: &Path, presenter: PresenterIdx, id: Uuid) -> rusqlite::Result<(Option<Event>, Vec<Event>)> {
    let mut connection = open_to_read(path)?;
    let snapshot = connection.transaction()?;
    Ok((by_id(&snapshot, id)?, acts(&snapshot, presenter)?))
}

fn by_id(connection: &Connection, id: Uuid) -> rusqlite::Result<Option<Event>> {
    for table in ["spool", "parked"] {
        let sql = format!(
            "SELECT (SELECT epoch FROM epochs WHERE n = {table}.epoch), {} FROM {table} WHERE id = ?1",
            row::COLUMNS
        );
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query_map(params![&id.as_bytes()[..]], |found| {
            row::read(found, 1, Epoch(found.get::<_, String>(0)?.into()))
        })?;
        if let Some(event) = rows.next() {
            return event.map(Some);
        }
    }
    Ok(None)
}

/// The broadcasts that the spool keeps: those of a room, or the one with an id.
pub fn records(path: &Path, which: Which) -> rusqlite::Result<records::Found> {
    records::read(&open_to_read(path)?, which, usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc::sync_channel},
        thread,
    };

    use chatting_actors::{
        clock::EventClock,
        moderation::Act,
        seams::Spool,
        types::{ChatMessage, MessageText, Nickname, Role},
    };

    use super::*;
    use crate::store::{Durability, SpoolSettings, SqliteSpool};

    /// Messages that go to the store while they are asked for.
    const ROUNDS: u64 = 300;

    #[test]
    fn a_message_is_not_read_without_the_act_that_deletes_it_while_both_go_to_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let settings = SpoolSettings {
            path: path.clone(),
            durability: Durability::Os,
            max_bytes: None,
            embedded: false,
        };
        let (mut spool, info) = SqliteSpool::open(settings).unwrap();
        let room = PresenterIdx::new(12).unwrap();
        let mut clock = EventClock::after(0);
        let mut next = |seq, act| {
            let (sent_at_ms, id) = clock.stamp();
            Arc::new(Event {
                id,
                presenter_idx: room,
                epoch: info.epoch.clone(),
                seq: Seq(seq),
                sent_at_ms,
                room_idx: None,
                broadcast_id: None,
                act,
                chat: ChatMessage {
                    user_idx: UserIdx::new(7).unwrap(),
                    nickname: Nickname::new("kim", 64).unwrap(),
                    text: MessageText::maybe_empty("x".to_owned(), 10).unwrap(),
                    role: Role::Viewer,
                },
                keyed: None,
            })
        };
        let (ask, asked) = sync_channel::<Uuid>(0);
        thread::scope(|threads| {
            threads.spawn(move || {
                for n in 0..ROUNDS {
                    let message = next(2 * n + 1, None);
                    let delete = Act::Message {
                        id: message.id,
                        seq: message.seq,
                    };
                    let act = next(2 * n + 2, Some(Arc::new(delete)));
                    let id = message.id;
                    let first = spool.commit(&[message, act]).unwrap();
                    ask.send(id).unwrap();
                    spool.free(first + 1, &[], 0).unwrap();
                }
            });
            for id in asked {
                // As long as it is there.
                while let (Some(message), acts) = one(&path, room, id).unwrap() {
                    let deleted = acts.iter().any(|at| at.act.as_ref().unwrap().covers(at, &message));
                    assert!(deleted, "{id}");
                }
            }
        });
    }
}
