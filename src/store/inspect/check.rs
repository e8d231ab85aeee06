//! `spool verify`: everything in a spool, looked at.

use std::collections::HashMap;

use chatting_actors::{
    broadcast::Broadcast,
    types::{Epoch, Event, PresenterIdx},
};
use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::{Verified, has_table};
use crate::store::{
    row,
    spool::{epochs, meta},
};

pub(super) struct Check<'a> {
    pub connection: &'a Connection,
    /// Those of an event, as this file has them.
    pub columns: &'static str,
    pub verified: Verified,
    pub found: &'a mut dyn FnMut(&str),
}

impl Check<'_> {
    pub fn problem(&mut self, what: &str) {
        self.verified.problems += 1;
        (self.found)(what);
    }

    /// The file as SQLite sees it.
    pub fn structure(&mut self) {
        let lines: rusqlite::Result<Vec<String>> = self
            .connection
            .prepare("PRAGMA quick_check")
            .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect());
        match lines {
            Ok(lines) => {
                for line in lines.iter().filter(|line| *line != "ok") {
                    self.problem(&format!("the file is damaged: {line}"));
                }
            }
            Err(error) => self.problem(&format!("the file is damaged: {error}")),
        }
    }

    /// What the tables say, in one snapshot.
    pub fn contents(&mut self) -> rusqlite::Result<()> {
        let connection = self.connection.unchecked_transaction()?;
        let epochs = epochs(&connection)?;
        let epoch = meta::<i64>(&connection, "epoch")?.unwrap_or(0);
        if !epochs.contains_key(&epoch) {
            self.problem(&format!("the epoch in use ({epoch}) is not among those known"));
        }
        let rooms = self.rooms(&connection)?;
        // A salvaged spool, or an old copy, learns the last seq of a room that still has rows of the epoch before.
        let salvaged = meta::<i64>(&connection, "salvaged")?.is_some();
        self.events(&connection, &epochs, &rooms, salvaged.then_some(epoch));
        self.parked(&connection, &epochs);
        self.keys(&connection, &epochs);
        if has_table(&connection, "records")? {
            self.records(&connection);
        }
        Ok(())
    }

    fn rooms(&mut self, connection: &Connection) -> rusqlite::Result<HashMap<i64, i64>> {
        let mut rooms = HashMap::new();
        let mut statement = connection.prepare("SELECT presenter_idx, last_seq FROM rooms")?;
        for row in statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))? {
            let (room, last) = match row {
                Ok(row) => row,
                Err(error) => {
                    self.problem(&format!("the last seq of a room cannot be read: {error}"));
                    continue;
                }
            };
            if room < 0 || last < 0 {
                self.problem(&format!("room {room}: its last seq is {last}"));
            }
            self.verified.rooms += 1;
            rooms.insert(room, last);
        }
        Ok(rooms)
    }

    fn events(
        &mut self,
        connection: &Connection,
        epochs: &HashMap<i64, Epoch>,
        rooms: &HashMap<i64, i64>,
        only_epoch: Option<i64>,
    ) {
        let sql = format!("SELECT pos, epoch, {} FROM spool ORDER BY pos", self.columns);
        let mut last: HashMap<(PresenterIdx, i64), u64> = HashMap::new();
        let mut greatest = Uuid::nil();
        let mut in_order = true;
        let done = each(connection, &sql, |found| {
            self.verified.events += 1;
            let Some((pos, epoch, event)) = self.event("row", found, epochs) else {
                return;
            };
            let (room, seq) = (event.presenter_idx, event.seq.0);
            if let Some(before) = last.insert((room, epoch), seq)
                && seq != before + 1
            {
                self.problem(&format!("row {pos}: room {room} has seq {seq} after {before}"));
            }
            let freed = rooms
                .get(&room.get())
                .filter(|_| only_epoch.is_none_or(|only| only == epoch));
            if let Some(freed) = freed.filter(|freed| seq <= freed.cast_unsigned()) {
                self.problem(&format!(
                    "row {pos}: room {room} has seq {seq}, and the table of rooms says that {freed} was freed already"
                ));
            }
            in_order &= event.id > greatest;
            greatest = greatest.max(event.id);
        });
        if let Err(error) = done {
            let read = self.verified.events;
            self.problem(&format!("rows cannot be read beyond the first {read}: {error}"));
        }
        // Ids grow with time, so that rows in the order of their ids have no two alike.
        if !in_order {
            self.twice(connection);
        }
    }

    fn twice(&mut self, connection: &Connection) {
        let sql = "SELECT id, COUNT(*), MIN(pos), MAX(pos) FROM spool GROUP BY id HAVING COUNT(*) > 1";
        let done = each(connection, sql, |found| {
            let id = found.get::<_, Vec<u8>>(0).ok();
            let id = id.and_then(|id| Uuid::from_slice(&id).ok()).unwrap_or_default();
            let numbers = [1, 2, 3].map(|column| found.get::<_, i64>(column).unwrap_or(0));
            let [count, first, last] = numbers;
            self.problem(&format!("rows {first} to {last}: the id {id} is there {count} times"));
        });
        if let Err(error) = done {
            self.problem(&format!("ids that are there twice cannot be looked for: {error}"));
        }
    }

    fn parked(&mut self, connection: &Connection, epochs: &HashMap<i64, Epoch>) {
        let sql = format!("SELECT pos, epoch, {}, reason FROM parked", self.columns);
        let done = each(connection, &sql, |found| {
            self.verified.parked += 1;
            if self.event("parked row", found, epochs).is_some()
                && let Err(error) = found.get::<_, String>("reason")
            {
                self.problem(&format!("a parked row has no reason that can be read: {error}"));
            }
        });
        if let Err(error) = done {
            self.problem(&format!("parked rows cannot be read: {error}"));
        }
    }

    fn keys(&mut self, connection: &Connection, epochs: &HashMap<i64, Epoch>) {
        let sql = "SELECT pos, epoch, id, fingerprint, key, presenter_idx, user_idx, seq, sent_at FROM keys";
        let done = each(connection, sql, |found| {
            self.verified.keys += 1;
            let read = || -> rusqlite::Result<(i64, i64)> {
                found.get::<_, [u8; 16]>(2)?;
                found.get::<_, [u8; 16]>(3)?;
                found.get::<_, String>(4)?;
                for number in 5..9 {
                    found.get::<_, i64>(number)?;
                }
                Ok((found.get(0)?, found.get(1)?))
            };
            match read() {
                Ok((pos, epoch)) if !epochs.contains_key(&epoch) => {
                    self.problem(&format!("key {pos}: its epoch ({epoch}) is not known"));
                }
                Ok(_) => {}
                Err(error) => self.problem(&format!("an idempotency key cannot be read: {error}")),
            }
        });
        if let Err(error) = done {
            self.problem(&format!("idempotency keys cannot be read: {error}"));
        }
    }

    fn records(&mut self, connection: &Connection) {
        let sql = "SELECT id, presenter_idx, version, ended, record FROM records";
        let done = each(connection, sql, |found| {
            self.verified.broadcasts += 1;
            let id = found.get::<_, Vec<u8>>(0).ok();
            let id = id.and_then(|id| Uuid::from_slice(&id).ok()).unwrap_or_default();
            let record = match found.get::<_, String>(4) {
                Ok(text) => serde_json::from_str::<Broadcast>(&text).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match record {
                Err(error) => self.problem(&format!("broadcast {id} cannot be read: {error}")),
                Ok(record) => {
                    let said = (record.presenter.get(), record.version.cast_signed());
                    let row = (found.get(1).unwrap_or(-1), found.get(2).unwrap_or(-1));
                    let ended = found.get::<_, bool>(3).ok();
                    if (record.id, said, Some(record.ended_at_ms.is_some())) != (id, row, ended) {
                        self.problem(&format!("broadcast {id}: its record says something else than its row"));
                    }
                }
            }
        });
        if let Err(error) = done {
            self.problem(&format!("broadcasts cannot be read: {error}"));
        }
    }

    /// Reads one event whose columns follow `pos` and `epoch`; problems of its own are told.
    fn event(&mut self, what: &str, found: &Row<'_>, epochs: &HashMap<i64, Epoch>) -> Option<(i64, i64, Event)> {
        let pos = found.get::<_, i64>(0).unwrap_or(0);
        let epoch = match found.get::<_, i64>(1) {
            Ok(epoch) => epoch,
            Err(error) => {
                self.problem(&format!("{what} {pos}: its epoch cannot be read: {error}"));
                return None;
            }
        };
        let name = epochs.get(&epoch).cloned();
        if name.is_none() {
            self.problem(&format!("{what} {pos}: its epoch ({epoch}) is not known"));
        }
        let name = name.unwrap_or_else(|| Epoch("".into()));
        let event = match row::read(found, 2, name) {
            Ok(event) => event,
            Err(error) => {
                self.problem(&format!("{what} {pos} cannot be read: {error}"));
                return None;
            }
        };
        if event.seq.0 == 0 || event.seq.0 > i64::MAX.cast_unsigned() {
            self.problem(&format!("{what} {pos}: its seq is {}", event.seq.0.cast_signed()));
        }
        let stamped = event.id.as_u64_pair().0 >> 16;
        if event.id.get_version_num() != 7 {
            self.problem(&format!("{what} {pos}: its id {} is no UUIDv7", event.id));
        } else if i64::try_from(stamped) != Ok(event.sent_at_ms) {
            self.problem(&format!(
                "{what} {pos}: its id {} is not of the time it was sent",
                event.id
            ));
        }
        Some((pos, epoch, event))
    }
}

fn each(connection: &Connection, sql: &str, mut look: impl FnMut(&Row<'_>)) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        look(row);
    }
    Ok(())
}
