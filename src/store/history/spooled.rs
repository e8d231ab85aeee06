//! What the spool has of a room: events that the store does not have yet, and acts that it has not applied.

use std::path::Path;

use chatting_actors::{
    broadcast::Broadcast,
    types::{Epoch, Event, PresenterIdx, Seq, UserIdx},
};
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::store::{open_to_read, row, spool};

/// See the module's text.
#[derive(Debug, Default)]
pub struct Spooled {
    /// In the order of commits, or against it.
    pub events: Vec<Event>,
    /// There may be more than these.
    pub more: bool,
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
    /// from the last one backwards rather than from the first one on,
    pub newest_first: bool,
    /// at most so many.
    pub limit: usize,
}

impl Window {
    /// No event, and every act.
    pub fn acts_only(presenter: PresenterIdx) -> Self {
        Self {
            presenter,
            epoch: None,
            after: Seq(0),
            through: Seq(0),
            user: None,
            newest_first: false,
            limit: 0,
        }
    }
}

/// A room's events in the spool and among what was set aside from it, and its acts.
pub fn of_room(path: &Path, window: &Window) -> rusqlite::Result<Spooled> {
    let mut connection = open_to_read(path)?;
    // One snapshot for all questions.
    let snapshot = connection.transaction()?;
    let order = if window.newest_first { "DESC" } else { "ASC" };
    let mut spooled = Spooled::default();
    for table in ["parked", "spool"] {
        let select = format!(
            "SELECT (SELECT epoch FROM epochs WHERE n = {table}.epoch), {} FROM {table} WHERE presenter_idx = ?1",
            row::COLUMNS
        );
        let read = |found: &rusqlite::Row<'_>| row::read(found, 1, Epoch(found.get::<_, String>(0)?.into()));
        if window.limit > 0 {
            let sql = format!(
                "{select} AND seq > ?2 AND seq <= ?3 AND (?4 IS NULL OR user_idx = ?4)
                 AND (?5 IS NULL OR {table}.epoch = (SELECT n FROM epochs WHERE epoch = ?5)) ORDER BY pos {order} LIMIT ?6"
            );
            let mut statement = snapshot.prepare(&sql)?;
            let asked = params![
                window.presenter.get(),
                window.after.0.cast_signed(),
                i64::try_from(window.through.0).unwrap_or(i64::MAX),
                window.user.map(UserIdx::get),
                window.epoch.as_ref().map(|epoch| &*epoch.0),
                i64::try_from(window.limit).unwrap_or(i64::MAX),
            ];
            let before = spooled.events.len();
            for event in statement.query_map(asked, read)? {
                spooled.events.push(event?);
            }
            spooled.more |= spooled.events.len() - before >= window.limit;
        }
        let mut statement = snapshot.prepare(&format!("{select} AND act IS NOT NULL ORDER BY pos"))?;
        for act in statement.query_map([window.presenter.get()], read)? {
            spooled.acts.push(act?);
        }
    }
    Ok(spooled)
}

/// One event of the spool, or of what was set aside from it, by its id.
pub fn find(path: &Path, id: Uuid) -> rusqlite::Result<Option<Event>> {
    let mut connection = open_to_read(path)?;
    let snapshot = connection.transaction()?;
    for table in ["spool", "parked"] {
        let sql = format!(
            "SELECT (SELECT epoch FROM epochs WHERE n = {table}.epoch), {} FROM {table} WHERE id = ?1",
            row::COLUMNS
        );
        let mut statement = snapshot.prepare(&sql)?;
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
pub fn records(path: &Path, which: Records) -> rusqlite::Result<Vec<Broadcast>> {
    let connection: Connection = open_to_read(path)?;
    match which {
        Records::OfRoom(presenter) => {
            spool::read_records(&connection, &format!("presenter_idx = {}", presenter.get()), usize::MAX)
        }
        Records::Of(id) => {
            let literal = id.simple().to_string();
            spool::read_records(&connection, &format!("id = x'{literal}'"), 1)
        }
    }
}

/// Which broadcasts.
#[derive(Clone, Copy, Debug)]
pub enum Records {
    /// A room's.
    OfRoom(PresenterIdx),
    /// The one with this id.
    Of(Uuid),
}
