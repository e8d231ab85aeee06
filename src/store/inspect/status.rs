//! `spool status`: what a spool holds.

use std::{
    cmp::Reverse,
    collections::HashMap,
    path::{Path, PathBuf},
};

use chatting_actors::types::Epoch;
use rusqlite::{Connection, OptionalExtension};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::{SpoolFile, epochs, has_table};
use crate::store::{
    NUMBERING_CONFLICT, lock,
    salvage::beside,
    spool::{BACKEND, LOG_ID, meta},
};

/// Rooms that a status names.
const ROOMS_NAMED: usize = 5;
/// Parked events that a status names one by one.
const PARKED_NAMED: i64 = 1000;

/// What a spool holds. Times are milliseconds since 1970.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The file.
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    /// Its size on disk.
    pub file_bytes: u64,
    /// The size of its WAL, which is part of it.
    pub wal_bytes: u64,
    /// Bytes of the file that hold something; the rest is used again before the file grows.
    pub used_bytes: u64,
    /// The format of its tables.
    pub format: i64,
    /// The numbering that new events belong to.
    pub epoch: Option<String>,
    /// `log.backend` of the runs that had it; earlier versions did not say.
    pub backend: Option<String>,
    /// The id that the log in MongoDB has, where the spool has met it.
    pub log_id: Option<String>,
    /// The database that it was met in.
    pub log_database: Option<String>,
    /// The embedded log, where it is in this file: that goes wherever the file goes.
    pub log: Option<Logged>,
    /// `log.durability` of the run that had it last.
    pub durability: Option<String>,
    /// Whether that run ended in order; false while it goes on.
    pub stopped_cleanly: bool,
    /// Who has it now.
    pub held_by: Option<String>,
    /// Whether a room that it does not know is asked for at the store.
    pub asks_store: bool,
    /// Whether its rows were carried over from a damaged spool, or it turned out to be an old copy of itself.
    pub salvaged: bool,
    /// Events that the store may not have yet.
    pub events: Waiting,
    /// Rooms that have such events.
    pub rooms_waiting: u64,
    /// Those with the most.
    pub rooms: Vec<RoomRows>,
    /// Idempotency keys remembered.
    pub keys: u64,
    /// Events that the store refused for good.
    pub parked: Parked,
    /// Broadcasts that the store does not have as they are.
    pub broadcasts: Records,
}

/// As text, with a mark for what of it is none.
fn shown<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// Events in the embedded log, by their times: to count them would be to read all of it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Logged {
    /// When the first of them was accepted; none: there are no events.
    pub oldest_ms: Option<i64>,
    /// When the last of them was.
    pub newest_ms: Option<i64>,
}

/// Events on their way to the store.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Waiting {
    /// How many.
    pub count: u64,
    /// When the first of them was accepted.
    pub oldest_ms: Option<i64>,
    /// When the last of them was.
    pub newest_ms: Option<i64>,
}

/// One room's events on their way to the store.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RoomRows {
    /// The room.
    pub presenter_idx: i64,
    /// How many.
    pub count: u64,
    /// The least seq among them.
    pub first_seq: i64,
    /// The greatest.
    pub last_seq: i64,
}

/// Events that the store refused for good.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Parked {
    /// How many.
    pub count: u64,
    /// Why, the most frequent first.
    pub reasons: Vec<Reason>,
    /// The first thousand, oldest first.
    pub events: Vec<ParkedEvent>,
}

/// Broadcasts that the store does not have as they are.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Records {
    /// How many.
    pub count: u64,
    /// Those of them that it refused as they are.
    pub refused: u64,
}

/// Why events were parked.
#[derive(Clone, Debug, Serialize)]
pub struct Reason {
    /// What they have in common.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// A parked event, without its text. `None` is what its row does not tell.
#[derive(Clone, Debug, Serialize)]
pub struct ParkedEvent {
    /// Its id.
    pub id: Option<Uuid>,
    /// Its room.
    pub presenter_idx: Option<i64>,
    /// Its numbering.
    pub epoch: Option<String>,
    /// Its place there.
    pub seq: Option<i64>,
    /// When it was accepted, in milliseconds since 1970.
    pub sent_at_ms: Option<i64>,
    /// When it was parked.
    pub parked_at_ms: i64,
    /// Why.
    pub reason: String,
}

impl Status {
    /// Reads it, in one snapshot.
    pub(super) fn of(file: &SpoolFile) -> rusqlite::Result<Self> {
        let connection = file.connection.unchecked_transaction()?;
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let used = (pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?;
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let epochs = epochs(&connection)?;
        let met: Option<String> = meta(&connection, LOG_ID)?;
        let (log_id, log_database) = met
            .and_then(|met| {
                met.split_once(' ')
                    .map(|(id, database)| (id.to_owned(), database.to_owned()))
            })
            .unzip();
        let (rooms_waiting, rooms) = most_rows(&connection)?;
        let flag = |key| Ok::<_, rusqlite::Error>(meta::<i64>(&connection, key)?.unwrap_or(0) != 0);
        Ok(Self {
            path: file.path.clone(),
            file_bytes: size(&file.path),
            wal_bytes: size(&beside(&file.path, "-wal")),
            used_bytes: u64::try_from(used).unwrap_or(0),
            format: file.format,
            epoch: meta::<i64>(&connection, "epoch")?
                .and_then(|n| epochs.get(&n))
                .map(ToString::to_string),
            backend: meta(&connection, BACKEND)?,
            log_id,
            log_database,
            log: logged(&connection)?,
            durability: meta(&connection, "durability")?,
            stopped_cleanly: flag("clean")?,
            held_by: lock::holder(&file.path),
            asks_store: flag("ask_store")?,
            salvaged: flag("salvaged")?,
            events: waiting(&connection)?,
            rooms_waiting,
            rooms,
            keys: count(&connection, "SELECT COUNT(*) FROM keys")?,
            parked: parked(&connection, &epochs)?,
            broadcasts: records(&connection)?,
        })
    }
}

fn count(connection: &Connection, sql: &str) -> rusqlite::Result<u64> {
    let count: i64 = connection.query_row(sql, [], |row| row.get(0))?;
    Ok(count.cast_unsigned())
}

fn logged(connection: &Connection) -> rusqlite::Result<Option<Logged>> {
    if !has_table(connection, "chatting_log")? {
        return Ok(None);
    }
    // An id is of its time, and has an index.
    let at = |sql| connection.query_row(sql, [], |row| row.get(0)).optional();
    Ok(Some(Logged {
        oldest_ms: at("SELECT sent_at FROM chatting_log ORDER BY id LIMIT 1")?,
        newest_ms: at("SELECT sent_at FROM chatting_log ORDER BY id DESC LIMIT 1")?,
    }))
}

fn waiting(connection: &Connection) -> rusqlite::Result<Waiting> {
    let at = |sql| connection.query_row(sql, [], |row| row.get(0)).optional();
    Ok(Waiting {
        count: count(connection, "SELECT COUNT(*) FROM spool")?,
        oldest_ms: at("SELECT sent_at FROM spool WHERE typeof(sent_at) = 'integer' ORDER BY pos LIMIT 1")?,
        newest_ms: at("SELECT sent_at FROM spool WHERE typeof(sent_at) = 'integer' ORDER BY pos DESC LIMIT 1")?,
    })
}

/// How many rooms have rows, and those with the most. One pass, as at a start: SQLite would sort all rows to group them.
fn most_rows(connection: &Connection) -> rusqlite::Result<(u64, Vec<RoomRows>)> {
    let mut rooms: HashMap<i64, RoomRows> = HashMap::new();
    let mut statement = connection.prepare("SELECT presenter_idx, seq FROM spool")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        // What is no number is that of a damaged row.
        let number = |column: usize| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_i64().ok());
        let (Some(presenter_idx), Some(seq)) = (number(0)?, number(1)?) else {
            continue;
        };
        let room = rooms.entry(presenter_idx).or_insert(RoomRows {
            presenter_idx,
            count: 0,
            first_seq: seq,
            last_seq: seq,
        });
        room.count += 1;
        room.first_seq = room.first_seq.min(seq);
        room.last_seq = room.last_seq.max(seq);
    }
    let count = rooms.len() as u64;
    let mut most: Vec<_> = rooms.into_values().collect();
    most.sort_unstable_by_key(|room| (Reverse(room.count), room.presenter_idx));
    most.truncate(ROOMS_NAMED);
    Ok((count, most))
}

fn parked(connection: &Connection, epochs: &HashMap<i64, Epoch>) -> rusqlite::Result<Parked> {
    let mut parked = Parked::default();
    let mut reasons: HashMap<String, u64> = HashMap::new();
    let mut statement = connection.prepare("SELECT reason FROM parked")?;
    for reason in statement.query_map([], |row| row.get::<_, String>(0))? {
        *reasons.entry(kind(&reason?)).or_default() += 1;
        parked.count += 1;
    }
    parked.reasons = reasons
        .into_iter()
        .map(|(reason, count)| Reason { reason, count })
        .collect();
    parked
        .reasons
        .sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
    let mut statement = connection
        .prepare("SELECT id, presenter_idx, epoch, seq, sent_at, parked_at, reason FROM parked ORDER BY id LIMIT ?1")?;
    let rows = statement.query_map([PARKED_NAMED], |row| {
        // What could not be read was parked as it is.
        Ok(ParkedEvent {
            id: row.get::<_, Vec<u8>>(0).ok().and_then(|id| Uuid::from_slice(&id).ok()),
            presenter_idx: row.get(1).ok(),
            epoch: row.get(2).ok().and_then(|n| epochs.get(&n)).map(ToString::to_string),
            seq: row.get(3).ok(),
            sent_at_ms: row.get(4).ok(),
            parked_at_ms: row.get(5)?,
            reason: row.get(6)?,
        })
    })?;
    parked.events = rows.collect::<rusqlite::Result<_>>()?;
    Ok(parked)
}

/// None in a file of before there were any.
fn records(connection: &Connection) -> rusqlite::Result<Records> {
    if !has_table(connection, "records")? {
        return Ok(Records::default());
    }
    let sql = "SELECT COUNT(*), COUNT(*) FILTER (WHERE stored = 2) FROM records WHERE stored <> 1";
    connection.query_row(sql, [], |row| {
        Ok(Records {
            count: row.get::<_, i64>(0)?.cast_unsigned(),
            refused: row.get::<_, i64>(1)?.cast_unsigned(),
        })
    })
}

/// What reasons have in common: a conflict's names its place, so each is another text.
fn kind(reason: &str) -> String {
    match reason.split_once(':') {
        Some((kind @ NUMBERING_CONFLICT, _)) => kind.to_owned(),
        _ => reason.chars().take(200).collect(),
    }
}
