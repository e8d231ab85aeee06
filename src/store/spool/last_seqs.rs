//! The last seqs of rooms (rule 3): in rows that are here, in the table `rooms`, which outlives them, or in the store alone.

use std::collections::HashMap;

use chatting_actors::{
    seams::{LastSeq, Pos},
    types::{PresenterIdx, Seq},
};
use rusqlite::{Connection, OptionalExtension, params};

use super::{keep_last_ms, meta, set_meta, writing::Writing};

/// Keeps one in `rooms`, if it is greater than what is there.
pub(super) const KEEP: &str = "
INSERT INTO rooms(presenter_idx, last_seq) VALUES (?1, ?2)
ON CONFLICT(presenter_idx) DO UPDATE SET last_seq = MAX(last_seq, excluded.last_seq)";

/// Where the row of a last seq is that has none here any more.
const NO_ROW: Pos = Pos::MAX;

/// The last seqs of rooms, each with the room's last row here.
type Rooms = HashMap<PresenterIdx, (Seq, Pos)>;

/// What the spool knows of them without reading its rows, and whether the store is asked for the others.
pub(super) struct LastSeqs {
    /// That of each room that has rows here, and the last row of it; and of salvaged rooms that the store was not asked about.
    rooms: Rooms,
    ask_store: bool,
    /// The rows come from a damaged spool, or the file is an old copy, so the last seqs that they tell may not be the last.
    salvaged: bool,
}

/// How far rows go that were gone through.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HowFar {
    /// The first and the last of them.
    pub rows: Option<(Pos, Pos)>,
    /// The newest time that one of them tells, in milliseconds since 1970.
    pub newest_ms: Option<i64>,
}

impl LastSeqs {
    /// As the rows have them, and how far those go.
    pub fn read(connection: &Connection) -> rusqlite::Result<(Self, HowFar)> {
        let (rooms, how_far) = go_through(connection, Pos::MIN)?;
        let this = Self {
            rooms,
            ask_store: meta::<i64>(connection, "ask_store")?.unwrap_or(1) != 0,
            salvaged: meta::<i64>(connection, "salvaged")?.is_some(),
        };
        Ok((this, how_far))
    }

    /// What is parked is not in the store, and may be the last of a salvaged room.
    pub fn add_parked(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.ask_store && self.salvaged {
            for (presenter, last) in last_of_parked(connection)? {
                let known = self.rooms.entry(presenter).or_insert((last, NO_ROW));
                known.0 = known.0.max(last);
            }
        }
        Ok(())
    }

    /// Rows from `from` on are here, too; returns what comes behind the last of them, or `from` where there are none.
    pub fn catch_up(&mut self, connection: &Connection, from: Pos) -> rusqlite::Result<Pos> {
        let (rooms, how_far) = go_through(connection, from)?;
        self.rooms.extend(rooms);
        Ok(how_far.rows.map_or(from, |(_, last)| last + 1))
    }

    /// A row has come.
    pub fn came(&mut self, presenter: PresenterIdx, seq: Seq, pos: Pos) {
        self.rooms.insert(presenter, (seq, pos));
    }

    /// How many rooms are known here, by `rooms` or by rows, and the highest of their last seqs.
    pub fn how_far(&self, connection: &Connection) -> rusqlite::Result<(u64, Seq)> {
        let (mut known, freed): (u64, i64) =
            connection.query_row("SELECT COUNT(*), COALESCE(MAX(last_seq), 0) FROM rooms", [], |row| {
                Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?))
            })?;
        let mut furthest = Seq(freed.cast_unsigned());
        let mut in_rooms = connection.prepare_cached("SELECT 1 FROM rooms WHERE presenter_idx = ?1")?;
        for (presenter, (seq, _)) in &self.rooms {
            known += u64::from(!in_rooms.exists([presenter.get()])?);
            furthest = furthest.max(*seq);
        }
        Ok((known, furthest))
    }

    /// How many rooms have rows here.
    pub fn rooms_waiting(&self) -> usize {
        self.rooms.values().filter(|(_, pos)| *pos != NO_ROW).count()
    }

    /// Whether rooms that this spool has never seen must be asked for.
    pub fn asks_store(&self) -> bool {
        self.ask_store
    }

    /// The store holds nothing, so a room that this spool has never seen begins at 1 and needs no question.
    pub fn store_is_empty(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        set_meta(connection, "ask_store", 0)?;
        self.ask_store = false;
        Ok(())
    }

    /// What is known here is not the last, so the store is asked for that of each room, as for those of a salvaged spool. Within a
    /// transaction.
    pub fn ask_for_all(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        connection.execute("DELETE FROM rooms", [])?;
        set_meta(connection, "salvaged", 1)?;
        set_meta(connection, "ask_store", 1)?;
        (self.salvaged, self.ask_store) = (true, true);
        self.add_parked(connection)
    }

    /// That of a room.
    pub fn of(&self, connection: &Connection, presenter: PresenterIdx) -> rusqlite::Result<LastSeq> {
        let mut statement = connection.prepare_cached("SELECT last_seq FROM rooms WHERE presenter_idx = ?1")?;
        let kept = statement.query_row([presenter.get()], |row| row.get::<_, i64>(0));
        let kept = kept.optional()?.map(|seq| Seq(seq.cast_unsigned()));
        let here = self.rooms.get(&presenter).map(|(seq, _)| *seq);
        Ok(match (here, kept) {
            (_, Some(kept)) => LastSeq::Known(kept.max(here.unwrap_or_default())),
            (None, None) if self.ask_store => LastSeq::AskStore,
            (Some(_), None) if self.ask_store && self.salvaged => LastSeq::AskStore,
            (here, None) => LastSeq::Known(here.unwrap_or_default()),
        })
    }

    /// The store has told those of rooms, and the newest time that it knows; returns those that count.
    pub fn learn(
        &mut self,
        connection: &Connection,
        told: &[(PresenterIdx, Seq)],
        newest_ms: i64,
    ) -> rusqlite::Result<Vec<Seq>> {
        let transaction = Writing::begin(connection)?;
        let mut last_seqs = Vec::with_capacity(told.len());
        let mut statement =
            connection.prepare_cached("INSERT OR IGNORE INTO rooms(presenter_idx, last_seq) VALUES (?1, ?2)")?;
        for (presenter, last) in told {
            // What the spool itself holds of the room counts too: the store may not have it yet.
            let last = self.rooms.get(presenter).map_or(*last, |(seq, _)| *last.max(seq));
            statement.execute(params![presenter.get(), last.0.cast_signed()])?;
            last_seqs.push(last);
        }
        keep_last_ms(connection, newest_ms)?;
        transaction.commit()?;
        for (presenter, _) in told {
            if self.rooms.get(presenter).is_some_and(|(_, pos)| *pos == NO_ROW) {
                self.rooms.remove(presenter);
            }
        }
        Ok(last_seqs)
    }

    /// How one is kept in `rooms`. Of a salvaged room only the store knows it, until it was asked.
    pub fn keep(&self) -> &'static str {
        if self.salvaged && self.ask_store {
            "UPDATE rooms SET last_seq = MAX(last_seq, ?2) WHERE presenter_idx = ?1"
        } else {
            KEEP
        }
    }

    /// Those of the rooms that have no row behind `through`.
    pub fn ended_by(&self, through: Pos) -> Vec<(PresenterIdx, Seq)> {
        self.rooms
            .iter()
            .filter(|(_, (_, pos))| *pos <= through)
            .map(|(presenter, (seq, _))| (*presenter, *seq))
            .collect()
    }

    /// The last rows of these rooms are gone, and `rooms` has their last seqs.
    pub fn kept(&mut self, rooms: Vec<PresenterIdx>) {
        for presenter in rooms {
            self.rooms.remove(&presenter);
        }
    }

    /// The last rows of these are gone, and `rooms` has no last seq, because the store was not asked yet: what is known here counts
    /// when it has told.
    pub fn unasked(&mut self, rooms: Vec<PresenterIdx>) {
        for presenter in rooms {
            self.rooms.entry(presenter).and_modify(|(_, pos)| *pos = NO_ROW);
        }
    }
}

/// The last seq and the last row of each room that has rows from `from` on, and how far those rows go. One pass, which keeps
/// nothing but that: SQLite would sort all rows to group them, in memory, and a spool of gigabytes must start. A value that is no number
/// where one should be must not stop the start, or none would ever come to the reading of that row, which sets it aside (rule 4).
fn go_through(connection: &Connection, from: Pos) -> rusqlite::Result<(Rooms, HowFar)> {
    let (mut rooms, mut how_far) = (Rooms::new(), HowFar::default());
    let sql = "SELECT pos, presenter_idx, seq, sent_at FROM spool WHERE pos >= ?1 ORDER BY pos";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([from])?;
    while let Some(row) = rows.next()? {
        let pos: Pos = row.get(0)?;
        let number = |column: usize| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_i64().ok());
        let (first, last) = how_far.rows.unwrap_or((pos, pos));
        how_far.rows = Some((first.min(pos), last.max(pos)));
        how_far.newest_ms = how_far.newest_ms.max(number(3)?);
        let (Some(presenter), Some(seq)) = (number(1)?.and_then(PresenterIdx::new), number(2)?) else {
            continue;
        };
        let (last, row) = rooms.entry(presenter).or_insert((Seq(seq.cast_unsigned()), pos));
        // As it is in the file: a number below zero is no great one.
        *last = Seq(last.0.cast_signed().max(seq).cast_unsigned());
        *row = pos.max(*row);
    }
    Ok((rooms, how_far))
}

fn last_of_parked(connection: &Connection) -> rusqlite::Result<Vec<(PresenterIdx, Seq)>> {
    let sql = "SELECT presenter_idx, MAX(seq) FROM parked
               WHERE typeof(presenter_idx) = 'integer' AND typeof(seq) = 'integer' GROUP BY presenter_idx";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
    let rows = rows.filter_map(|row| match row {
        Ok((presenter, seq)) => Some(Ok((PresenterIdx::new(presenter)?, Seq(seq.cast_unsigned())))),
        Err(error) => Some(Err(error)),
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Durability, SpoolSettings,
        spool::schema::{INDEXES, open_connection},
    };

    #[test]
    fn rule_03_a_start_knows_each_rooms_greatest_number_whatever_else_its_rows_hold() {
        let dir = tempfile::tempdir().unwrap();
        let settings = SpoolSettings {
            path: dir.path().join("chat.db"),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: false,
        };
        let connection = open_connection(&settings).unwrap();
        connection.execute_batch(INDEXES).unwrap();
        let (none, empty) = LastSeqs::read(&connection).unwrap();
        assert_eq!((none.rooms_waiting(), empty), (0, HowFar::default()));
        // What is no number, or none that there can be, is that of a damaged row.
        let rows = [
            "3, 1, 7, 1000",
            "4, 2, 1, 1001",
            "5, 1, 8, 'soon'",
            "6, 1, -5, 999",
            "7, 2, 'x', 1002",
            "8, 'y', 900, 1003",
            "9, -1, 901, 1004",
            "10, 1, 6, 1005",
            "11, 3, x'00', x'00'",
        ];
        for row in rows {
            let sql = format!(
                "INSERT INTO spool(pos, presenter_idx, seq, sent_at, epoch, id, user_idx, nickname, message, role)
                 VALUES ({row}, 1, x'', 7, '', '', '')"
            );
            connection.execute(&sql, []).unwrap();
        }
        let room = |n| PresenterIdx::new(n).unwrap();
        let (mut known, how_far) = LastSeqs::read(&connection).unwrap();
        assert_eq!(known.rooms, [(room(1), (Seq(8), 10)), (room(2), (Seq(1), 4))].into());
        let wanted = HowFar {
            rows: Some((3, 11)),
            newest_ms: Some(1005),
        };
        assert_eq!(how_far, wanted);
        assert_eq!(known.catch_up(&connection, 12).unwrap(), 12);
        assert_eq!(known.catch_up(&connection, 9).unwrap(), 12);
    }

    #[test]
    fn rule_03_an_old_copy_asks_the_store_for_each_room_and_what_it_has_itself_counts_too() {
        let dir = tempfile::tempdir().unwrap();
        let settings = SpoolSettings {
            path: dir.path().join("chat.db"),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: false,
        };
        let connection = open_connection(&settings).unwrap();
        connection
            .execute_batch(
                "INSERT INTO meta(key, value) VALUES ('ask_store', 0);
                 INSERT INTO rooms(presenter_idx, last_seq) VALUES (1, 50), (2, 7);
                 INSERT INTO spool(pos, presenter_idx, seq, sent_at, epoch, id, user_idx, nickname, message, role)
                 VALUES (1, 2, 9, 1000, 1, x'', 7, '', '', '')",
            )
            .unwrap();
        let of = |known: &LastSeqs| {
            let of = |n| known.of(&connection, PresenterIdx::new(n).unwrap()).unwrap();
            [of(1), of(2), of(3)]
        };
        let (mut known, _) = LastSeqs::read(&connection).unwrap();
        let seq = |n| LastSeq::Known(Seq(n));
        assert_eq!(of(&known), [seq(50), seq(9), seq(0)]);
        known.ask_for_all(&connection).unwrap();
        assert_eq!(of(&known), [LastSeq::AskStore, LastSeq::AskStore, LastSeq::AskStore]);
        let told = [(1, 80), (2, 8)].map(|(room, last)| (PresenterIdx::new(room).unwrap(), Seq(last)));
        assert_eq!(known.learn(&connection, &told, 0).unwrap(), [Seq(80), Seq(9)]);
        // And after a restart.
        for known in [known, LastSeqs::read(&connection).unwrap().0] {
            assert_eq!(of(&known), [seq(80), seq(9), LastSeq::AskStore]);
        }
    }
}
