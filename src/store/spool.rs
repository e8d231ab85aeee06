//! The spool: the local file where an accepted event becomes durable before the store has it.
//!
//! Constraints. Torn writes and recovery are SQLite's job: WAL, `synchronous=FULL` for `disk`, many events a transaction.
//! Rows are appended by rowid (`pos`) and freed by range, with no other index (but one of acts, which are few), so that one costs a few µs in its whole
//! life. A room's last seq outlives its rows in `rooms`, written in the transaction that frees the last of them (rule 3).
//!
//! Format 2. `spool(pos, epoch, <event columns>)` · `rooms(presenter_idx, last_seq)` · `epochs(n, epoch)` · `keys(pos, epoch,
//! presenter_idx, seq, id, sent_at, user_idx, key, fingerprint)`, in the order of time · `parked(pos, epoch, <event columns>,
//! reason, parked_at)` · `places(presenter_idx, epoch, …)`, how far rooms got · `records(id, …)`, broadcasts that have not ended
//! or that the store does not have · `meta(key, value)`: `format`, `epoch` (its n), `clean`, `durability`, `last_ms`,
//! `ask_store`, `importing` (while an import has not ended). A file of format 1, which had neither acts nor broadcasts, is brought to format 2 when it is opened.

pub mod erasure;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use chatting_actors::{
    broadcast::Broadcast,
    clock::system_ms,
    idempotency::{KeyRow, Keyed},
    outcome::{Accepted, Delivery},
    seams::{LastSeq, Place, Pos, Spool, SpoolError},
    types::{Epoch, Event, PresenterIdx, Seq, UserIdx},
    writer::SpoolInfo,
};
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};

use uuid::Uuid;

use super::{
    Durability, FoundSpool, Left, SharedConnection, SpoolLock, open_file,
    row::{self, columns},
    salvage, sqlite,
    turns::Turns,
};

pub(super) const FORMAT: i64 = 2;

/// How old the size may be that the metrics show.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// Pages in the WAL at which a commit checkpoints, where the log is in the same file: the log does so before, beside the commits.
const LOG_CHECKPOINT_PAGES: i64 = 16_384;

/// What a probe writes.
const PROBE_BYTES: usize = 64 * 1024;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS epochs(n INTEGER PRIMARY KEY, epoch TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rooms(presenter_idx INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS spool(
  pos INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,
  presenter_idx INTEGER NOT NULL, seq INTEGER NOT NULL, id BLOB NOT NULL, sent_at INTEGER NOT NULL,
  room_idx INTEGER, user_idx INTEGER NOT NULL, nickname TEXT NOT NULL, message TEXT NOT NULL, role TEXT NOT NULL,
  idempotency_key TEXT, broadcast_id BLOB, act TEXT);
CREATE TABLE IF NOT EXISTS keys(
  pos INTEGER PRIMARY KEY, epoch INTEGER NOT NULL,
  presenter_idx INTEGER NOT NULL, seq INTEGER NOT NULL, id BLOB NOT NULL, sent_at INTEGER NOT NULL,
  user_idx INTEGER NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS parked(
  pos INTEGER NOT NULL, epoch INTEGER NOT NULL,
  presenter_idx INTEGER NOT NULL, seq INTEGER NOT NULL, id BLOB NOT NULL PRIMARY KEY, sent_at INTEGER NOT NULL,
  room_idx INTEGER, user_idx INTEGER NOT NULL, nickname TEXT NOT NULL, message TEXT NOT NULL, role TEXT NOT NULL,
  idempotency_key TEXT, reason TEXT NOT NULL, parked_at INTEGER NOT NULL, broadcast_id BLOB, act TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places(
  presenter_idx INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, over INTEGER NOT NULL, position INTEGER NOT NULL,
  exact INTEGER NOT NULL, room_idx INTEGER, session_at INTEGER, saved_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS records(
  id BLOB NOT NULL PRIMARY KEY, presenter_idx INTEGER NOT NULL, version INTEGER NOT NULL, ended INTEGER NOT NULL,
  stored INTEGER NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_room ON records(presenter_idx);
";

/// Made when the columns are there. It has nothing but acts, so chat costs nothing more, and no reader has to look through the
/// whole spool for what was deleted.
const ACTS_INDEX: &str = "CREATE INDEX IF NOT EXISTS spool_acts ON spool(presenter_idx) WHERE act IS NOT NULL";

const KEEP_PLACE: &str = "
INSERT OR REPLACE INTO places(presenter_idx, epoch, over, position, exact, room_idx, session_at, saved_at)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

const INSERT: &str = concat!(
    "INSERT INTO spool(pos, epoch, ",
    columns!(),
    ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
);

const INSERT_KEY: &str = "
INSERT INTO keys(epoch, presenter_idx, seq, id, sent_at, user_idx, key, fingerprint)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

const PARK: &str = concat!(
    "INSERT OR IGNORE INTO parked(pos, epoch, ",
    columns!(),
    ", reason, parked_at) SELECT pos, epoch, ",
    columns!(),
    ", ?2, ?3 FROM spool WHERE pos = ?1"
);

/// That a broadcast was seen to be live again is for the spool alone: told of every open one, it would keep the store busy.
const KEEP_RECORD: &str = "
INSERT INTO records(id, presenter_idx, version, ended, stored, record) VALUES (?1, ?2, ?3, ?4, 0, ?5)
ON CONFLICT(id) DO UPDATE SET version = ?3, ended = ?4, record = ?5,
  stored = stored AND json_remove(record, '$.version', '$.seen_at_ms') = json_remove(?5, '$.version', '$.seen_at_ms')
WHERE version < ?3";

type SpoolRows = Vec<(Pos, Arc<Event>)>;
type Unreadable = Vec<(Pos, String)>;

/// How a spool is opened.
#[derive(Clone, Debug)]
pub struct SpoolSettings {
    /// `log.path`
    pub path: PathBuf,
    /// `log.durability`
    pub durability: Durability,
    /// `log.spool_max_bytes`; `None` in embedded mode, where the file is the log itself.
    pub max_bytes: Option<u64>,
    /// Embedded mode: the log is in the same file, so a new spool means a new log and no store is asked.
    pub embedded: bool,
}

/// See the module's text.
pub struct SqliteSpool {
    settings: SpoolSettings,
    connection: SharedConnection,
    epochs: HashMap<i64, Epoch>,
    epoch: (i64, Epoch),
    next_pos: Pos,
    /// Rows from here on are of commits whose outcome nobody was told yet; `next_pos` when there are none.
    untold: Pos,
    /// The last seq of each room that has rows here, and the row that it is in.
    last: HashMap<PresenterIdx, (Seq, Pos)>,
    ask_store: bool,
    /// The rows come from a damaged spool, so the last seqs that they tell may not be the last.
    salvaged: bool,
    found: FoundSpool,
    bytes: u64,
    measured_at: Instant,
    lock: SpoolLock,
}

/// Why a spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not ours.
    #[error(transparent)]
    Lock(#[from] super::LockError),
    /// SQLite says no.
    #[error("the spool {path} cannot be opened: {error}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: rusqlite::Error,
    },
    /// It is damaged and cannot be set aside.
    #[error("the spool {path} is damaged and cannot be set aside: {error}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// A later version wrote it.
    #[error("the spool {path} has format {found}; this version reads format {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says of itself.
        found: i64,
    },
}

impl SqliteSpool {
    /// Takes the lock, opens or creates the file, and finds out where the numbering goes on.
    pub fn open(settings: SpoolSettings) -> Result<(Self, SpoolInfo), OpenError> {
        let lock = SpoolLock::take(&settings.path)?;
        let path = settings.path.clone();
        let sqlite = |error| OpenError::Sqlite {
            path: path.clone(),
            error,
        };
        salvage::finish(&settings.path).map_err(|error| OpenError::Damaged {
            path: settings.path.clone(),
            error,
        })?;
        let mut damaged = false;
        let (mut connection, found) = match open_checked(&settings) {
            // A file that never was a spool of ours is somebody else's: it is not touched.
            Err(error) if salvage::is_damage(&error) && lock.known() => {
                damaged = true;
                (begin_anew(&settings, &error)?, None)
            }
            opened => opened.map_err(sqlite)?,
        };
        match found {
            Some(1) => upgrade(&mut connection).map_err(sqlite)?,
            Some(found) if found != FORMAT => return Err(OpenError::Format { path, found }),
            _ => {}
        }
        let state = start(&mut connection, &settings, found.is_none()).map_err(sqlite)?;
        limit(&connection, &settings).map_err(sqlite)?;
        let info = SpoolInfo {
            epoch: state.epoch.1.clone(),
            last_ms: state.last_ms,
            first: state.first,
            last: state.next_pos - 1,
        };
        let (rooms_known, furthest) = how_far(&connection, &state.last).map_err(sqlite)?;
        let found = FoundSpool {
            epoch: state.epoch.1.0.to_string(),
            new_epoch: state.begun,
            left: match state.left {
                _ if damaged => Left::Damaged,
                left => left,
            },
            rows: (info.first <= info.last).then_some((info.first, info.last)),
            rooms_waiting: state.last.len(),
            rooms_known,
            furthest,
            asks_store: state.ask_store,
        };
        let mut this = Self {
            settings,
            connection: SharedConnection::new(Turns::new(Some(connection))),
            epochs: state.epochs,
            epoch: state.epoch,
            next_pos: state.next_pos,
            untold: state.next_pos,
            last: state.last,
            ask_store: state.ask_store,
            salvaged: state.salvaged,
            found,
            bytes: 0,
            measured_at: Instant::now(),
            lock,
        };
        this.measure();
        Ok((this, info))
    }

    /// The name of the server whose spool this is (rule 7).
    pub fn server(&self) -> &str {
        self.lock.server()
    }

    /// What was found when it was opened.
    pub fn found(&self) -> &FoundSpool {
        &self.found
    }

    /// The writing connection, for a store in the same file.
    pub fn connection(&self) -> SharedConnection {
        self.connection.clone()
    }

    /// The store holds nothing, so a room that this spool has never seen begins at 1 and needs no question.
    pub fn store_is_empty(&mut self) -> Result<(), SpoolError> {
        self.with(|this, connection| {
            set_meta(connection, "ask_store", 0)?;
            this.ask_store = false;
            Ok(())
        })
    }

    /// Whether rooms that this spool has never seen must be asked for.
    pub fn asks_store(&self) -> bool {
        self.ask_store
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SpoolError> {
        let shared = self.connection.clone();
        let mut guard = shared.lock();
        if guard.is_none() {
            let connection = open_connection(&self.settings).map_err(failed)?;
            limit(&connection, &self.settings).map_err(failed)?;
            self.catch_up(&connection).map_err(failed)?;
            *guard = Some(connection);
        }
        match guard.as_mut() {
            Some(connection) => work(self, connection).map_err(failed),
            None => Err(SpoolError {
                why: "the file is not open".into(),
                full: false,
            }),
        }
    }

    /// Learns of the rows of a commit that took effect although it failed.
    fn catch_up(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        for (presenter, (seq, pos)) in last_of_rooms(connection, self.next_pos)? {
            self.last.insert(presenter, (seq, pos));
            self.next_pos = self.next_pos.max(pos + 1);
        }
        Ok(())
    }

    fn measure(&mut self) {
        self.measured_at = Instant::now();
        let measured = self.with(|_, connection| {
            let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            Ok((pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?)
        });
        if let Ok(bytes) = measured {
            self.bytes = u64::try_from(bytes).unwrap_or(0);
        }
    }
}

fn failed(error: rusqlite::Error) -> SpoolError {
    let full = matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DiskFull | ErrorCode::ReadOnly | ErrorCode::CannotOpen)
    );
    SpoolError {
        why: error.to_string(),
        full,
    }
}

struct Start {
    epochs: HashMap<i64, Epoch>,
    epoch: (i64, Epoch),
    first: Pos,
    next_pos: Pos,
    last: HashMap<PresenterIdx, (Seq, Pos)>,
    last_ms: i64,
    ask_store: bool,
    salvaged: bool,
    /// An epoch has begun.
    begun: bool,
    left: Left,
}

fn open_connection(settings: &SpoolSettings) -> rusqlite::Result<Connection> {
    let connection = open_file(&settings.path, settings.durability)?;
    connection.execute_batch(SCHEMA)?;
    if settings.embedded {
        connection.pragma_update(None, "wal_autocheckpoint", LOG_CHECKPOINT_PAGES)?;
    }
    Ok(connection)
}

/// From now on the file grows no further than it may. Not before it has what this version needs: a full spool must start.
fn limit(connection: &Connection, settings: &SpoolSettings) -> rusqlite::Result<()> {
    if let Some(max) = settings.max_bytes {
        let page: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages = i64::try_from(max).unwrap_or(i64::MAX) / page.max(1);
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
    }
    Ok(())
}

/// Opens the file and reads its format. After an unclean stop its tables are checked first.
fn open_checked(settings: &SpoolSettings) -> rusqlite::Result<(Connection, Option<i64>)> {
    let connection = open_connection(settings)?;
    let format = meta(&connection, "format")?;
    if meta(&connection, "clean")? == Some(0_i64) {
        salvage::check(&connection)?;
    }
    Ok((connection, format))
}

/// Begins a new file with what can be read of a damaged one, and sets that aside whole. The new file is built beside the old
/// one and takes its place last, so that a start that fails or dies on the way finds everything as it was.
fn begin_anew(settings: &SpoolSettings, error: &rusqlite::Error) -> Result<Connection, OpenError> {
    let path = settings.path.clone();
    let sqlite = |error| OpenError::Sqlite {
        path: path.clone(),
        error,
    };
    let files = |error| OpenError::Damaged {
        path: path.clone(),
        error,
    };
    let anew = SpoolSettings {
        path: salvage::beside(&settings.path, ".anew"),
        ..settings.clone()
    };
    salvage::remove(&anew.path);
    let connection = open_connection(&anew).map_err(sqlite)?;
    connection.execute_batch("BEGIN IMMEDIATE").map_err(sqlite)?;
    let salvaged = salvage::carry_over(&settings.path, &connection, settings.embedded).map_err(sqlite)?;
    set_meta(&connection, "salvaged", 1).map_err(sqlite)?;
    connection
        .execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)")
        .map_err(sqlite)?;
    connection.close().map_err(|(_, error)| sqlite(error))?;
    let whole = salvage::beside(&settings.path, salvage::WHOLE);
    std::fs::rename(&anew.path, &whole).map_err(files)?;
    salvage::remove(&anew.path);
    let aside = salvage::set_aside(&settings.path).map_err(files)?;
    std::fs::rename(&whole, &settings.path).map_err(files)?;
    log::error!(
        "spool: {} is damaged ({error}) and was set aside as {}; salvaged: {} events to go, {} keys, {} parked, {} of the \
         embedded log. A new epoch begins, and rooms go on when the store has told their last seq",
        settings.path.display(),
        aside.display(),
        salvaged.events,
        salvaged.keys,
        salvaged.parked,
        salvaged.log,
    );
    open_connection(settings).map_err(sqlite)
}

/// Brings a file of format 1 to format 2, in one transaction.
fn upgrade(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for table in ["spool", "parked"] {
        for column in row::SINCE_FORMAT_1 {
            transaction.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column}"))?;
        }
    }
    sqlite::upgrade(&transaction)?;
    set_meta(&transaction, "format", FORMAT)?;
    transaction.commit()?;
    log::info!("spool: brought from format 1 to format {FORMAT}");
    Ok(())
}

/// Reads where the spool stands and marks it as in use.
fn start(connection: &mut Connection, settings: &SpoolSettings, new: bool) -> rusqlite::Result<Start> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(ACTS_INDEX)?;
    let clean: Option<i64> = meta(&transaction, "clean")?;
    let before: Option<String> = meta(&transaction, "durability")?;
    // Under `os` and `memory` a crash may have taken back numbers that were told: a new numbering begins.
    let lost = clean == Some(0) && before.as_deref() != Some(Durability::Disk.as_str());
    if new {
        set_meta(&transaction, "format", FORMAT)?;
        let salvaged = meta::<i64>(&transaction, "salvaged")?.is_some();
        set_meta(&transaction, "ask_store", i64::from(!settings.embedded || salvaged))?;
        set_meta(&transaction, "last_ms", 0)?;
    }
    if new || lost {
        let epoch = format!("{:016x}", rand::random::<u64>());
        transaction.execute("INSERT INTO epochs(epoch) VALUES (?1)", params![epoch])?;
        set_meta(&transaction, "epoch", transaction.last_insert_rowid())?;
    }
    set_meta(&transaction, "clean", 0)?;
    set_meta(&transaction, "durability", settings.durability.as_str())?;
    let mut epochs = HashMap::new();
    let mut statement = transaction.prepare("SELECT n, epoch FROM epochs")?;
    for row in statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))? {
        let (n, epoch) = row?;
        epochs.insert(n, Epoch(epoch.into()));
    }
    drop(statement);
    let n: i64 = meta(&transaction, "epoch")?.unwrap_or(0);
    let epoch = epochs.get(&n).cloned().ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let (first, last, newest): (Option<Pos>, Option<Pos>, Option<i64>) =
        transaction.query_row("SELECT MIN(pos), MAX(pos), MAX(sent_at) FROM spool", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    let rooms = last_of_rooms(&transaction, 0)?;
    let start = Start {
        epochs,
        epoch: (n, epoch),
        first: first.unwrap_or(1),
        next_pos: last.map_or(1, |last| last + 1),
        last: rooms,
        last_ms: meta::<i64>(&transaction, "last_ms")?
            .unwrap_or(0)
            .max(newest.unwrap_or(0)),
        ask_store: meta::<i64>(&transaction, "ask_store")?.unwrap_or(1) != 0,
        salvaged: meta::<i64>(&transaction, "salvaged")?.is_some(),
        begun: new || lost,
        left: match clean {
            None => Left::New,
            Some(0) => Left::Uncleanly(before.unwrap_or_else(|| "unknown".into())),
            Some(_) => Left::Cleanly,
        },
    };
    transaction.commit()?;
    Ok(start)
}

/// How many rooms are known here, by `rooms` or by the rows whose last seqs are in `last`, and the highest of their last seqs.
fn how_far(connection: &Connection, last: &HashMap<PresenterIdx, (Seq, Pos)>) -> rusqlite::Result<(u64, Seq)> {
    let (mut known, freed): (u64, i64) =
        connection.query_row("SELECT COUNT(*), COALESCE(MAX(last_seq), 0) FROM rooms", [], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?))
        })?;
    let mut furthest = Seq(freed.cast_unsigned());
    let mut in_rooms = connection.prepare_cached("SELECT 1 FROM rooms WHERE presenter_idx = ?1")?;
    for (presenter, (seq, _)) in last {
        known += u64::from(!in_rooms.exists([presenter.get()])?);
        furthest = furthest.max(*seq);
    }
    Ok((known, furthest))
}

/// The last seq of each room that has rows from `from` on, and the row that it is in.
fn last_of_rooms(connection: &Connection, from: Pos) -> rusqlite::Result<HashMap<PresenterIdx, (Seq, Pos)>> {
    let mut rooms = HashMap::new();
    let sql = "SELECT presenter_idx, MAX(seq), MAX(pos) FROM spool WHERE pos >= ?1 GROUP BY presenter_idx";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([from])?;
    while let Some(row) = rows.next()? {
        if let Some(presenter) = PresenterIdx::new(row.get(0)?) {
            rooms.insert(presenter, (Seq(row.get::<_, i64>(1)?.cast_unsigned()), row.get(2)?));
        }
    }
    Ok(rooms)
}

pub(super) fn meta<T: rusqlite::types::FromSql>(connection: &Connection, key: &str) -> rusqlite::Result<Option<T>> {
    connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
        .optional()
}

/// A transaction that writes. It is rolled back where it is not committed. rusqlite's own has SQLite read `BEGIN` and `COMMIT`
/// anew each time.
struct Writing<'a> {
    connection: &'a Connection,
}

impl<'a> Writing<'a> {
    fn begin(connection: &'a Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self { connection })
    }

    fn commit(self) -> rusqlite::Result<()> {
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // After a commit there is none; and some errors have ended it already.
        if !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }
}

fn insert_key(connection: &Connection, epoch: i64, event: &Event, keyed: &Keyed) -> rusqlite::Result<()> {
    connection.prepare_cached(INSERT_KEY)?.execute(params![
        epoch,
        event.presenter_idx.get(),
        event.seq.0.cast_signed(),
        &event.id.as_bytes()[..],
        event.sent_at_ms,
        event.chat.user_idx.get(),
        &*keyed.key,
        &keyed.fingerprint()[..],
    ])?;
    Ok(())
}

/// Rows are in the order of time, so what is old is found from the front, without an index.
fn trim_keys(connection: &Connection, before_ms: i64) -> rusqlite::Result<()> {
    let mut newest = connection.prepare_cached("SELECT pos FROM keys WHERE sent_at >= ?1 ORDER BY pos LIMIT 1")?;
    let kept: Option<Pos> = newest.query_row([before_ms], |row| row.get(0)).optional()?;
    let mut delete = connection.prepare_cached("DELETE FROM keys WHERE pos < ?1")?;
    delete.execute([kept.unwrap_or(Pos::MAX)])?;
    Ok(())
}

/// What is said of an act that the store has and that stays here for what is parked.
const COVERS: &str = "stored; kept for the parked messages that it covers";

/// Acts among the rows up to `through` that the store has and that may cover what is parked, of which it knows nothing: they
/// stay with it.
fn covering(connection: &Connection, through: Pos, parked: &[(Pos, Arc<Event>, String)]) -> rusqlite::Result<Vec<Pos>> {
    let any: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM parked)")?
        .query_row([], |row| row.get(0))?;
    if !any && parked.is_empty() {
        return Ok(Vec::new());
    }
    let mut acts = connection.prepare_cached(
        "SELECT pos, presenter_idx, presenter_idx IN (SELECT presenter_idx FROM parked WHERE act IS NULL) FROM spool
         WHERE pos <= ?1 AND act IS NOT NULL",
    )?;
    let mut found = Vec::new();
    let mut rows = acts.query([through])?;
    while let Some(row) = rows.next()? {
        let (pos, presenter, before): (Pos, i64, bool) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let now = parked
            .iter()
            .any(|(_, event, _)| event.act.is_none() && event.presenter_idx.get() == presenter);
        if (before || now) && parked.iter().all(|(parked, ..)| *parked != pos) {
            found.push(pos);
        }
    }
    Ok(found)
}

/// Deletes the rows up to `through`; those to be parked are copied before they go, and go last.
fn free_rows(connection: &Connection, through: Pos, parked: &[(Pos, &str)]) -> rusqlite::Result<()> {
    let mut delete = connection.prepare_cached("DELETE FROM spool WHERE pos >= ?1 AND pos < ?2")?;
    let mut kept: Vec<Pos> = parked.iter().map(|(pos, _)| *pos).collect();
    kept.sort_unstable();
    let mut from = Pos::MIN;
    for pos in kept.into_iter().chain([through + 1]) {
        delete.execute([from, pos])?;
        from = pos + 1;
    }
    let mut park = connection.prepare_cached(PARK)?;
    for (pos, reason) in parked {
        park.execute(params![pos, reason, system_ms()])?;
        delete.execute([*pos, pos + 1])?;
    }
    Ok(())
}

fn set_meta(connection: &Connection, key: &str, value: impl rusqlite::ToSql) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("INSERT OR REPLACE INTO meta(key, value) VALUES (?1, ?2)")?;
    statement.execute(params![key, value])?;
    Ok(())
}

/// Broadcasts that are kept here. One that cannot be read is told of and left out: it must not cost the others.
pub(super) fn read_records(connection: &Connection, which: &str, limit: usize) -> rusqlite::Result<Vec<Broadcast>> {
    let sql = format!("SELECT record FROM records WHERE {which} ORDER BY id LIMIT ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
        row.get::<_, String>(0)
    })?;
    let mut records = Vec::new();
    for record in rows {
        match serde_json::from_str(&record?) {
            Ok(broadcast) => records.push(broadcast),
            Err(error) => log::error!("spool: a broadcast cannot be read: {error}"),
        }
    }
    Ok(records)
}

impl Spool for SqliteSpool {
    fn commit(&mut self, events: &[Arc<Event>]) -> Result<Pos, SpoolError> {
        let epoch = self.epoch.0;
        let first = self.with(|this, connection| {
            let first = this.next_pos;
            let transaction = Writing::begin(connection)?;
            {
                let mut statement = connection.prepare_cached(INSERT)?;
                for (n, event) in events.iter().enumerate() {
                    statement.raw_bind_parameter(1, first + n as Pos)?;
                    statement.raw_bind_parameter(2, epoch)?;
                    row::bind(&mut statement, 3, event)?;
                    statement.raw_execute()?;
                    if let Some(keyed) = &event.keyed {
                        insert_key(connection, epoch, event, keyed)?;
                    }
                }
            }
            transaction.commit()?;
            Ok(first)
        })?;
        self.next_pos = first + events.len() as Pos;
        self.untold = self.next_pos;
        for (n, event) in events.iter().enumerate() {
            self.last.insert(event.presenter_idx, (event.seq, first + n as Pos));
        }
        if self.measured_at.elapsed() >= MEASURE_EVERY {
            self.measure();
        }
        Ok(first)
    }

    fn reopen(&mut self) {
        *self.connection.lock() = None;
    }

    fn reopen_and_find(&mut self, event: &Event) -> Result<Option<Pos>, SpoolError> {
        self.reopen();
        let found = self.with(|this, connection| {
            let mut statement = connection.prepare("SELECT pos FROM spool WHERE pos >= ?1 AND id = ?2")?;
            let asked = params![this.untold, &event.id.as_bytes()[..]];
            statement.query_row(asked, |row| row.get::<_, Pos>(0)).optional()
        })?;
        if found.is_some() {
            self.untold = self.next_pos;
        }
        Ok(found)
    }

    fn free(
        &mut self,
        through: Pos,
        parked: &[(Pos, Arc<Event>, String)],
        keys_before_ms: i64,
    ) -> Result<(), SpoolError> {
        let ended = self.with(|this, connection| {
            let ended: Vec<(PresenterIdx, Seq)> = this
                .last
                .iter()
                .filter(|(_, (_, pos))| *pos <= through)
                .map(|(presenter, (seq, _))| (*presenter, *seq))
                .collect();
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let newest: Option<i64> = transaction
                    .prepare_cached("SELECT sent_at FROM spool WHERE pos = ?1")?
                    .query_row([through], |row| row.get(0))
                    .optional()?;
                // What frees pages comes before what may need them: a spool at its limit must be able to free rows.
                trim_keys(&transaction, keys_before_ms)?;
                let acts = covering(&transaction, through, parked)?;
                let aside = parked.iter().map(|(pos, _, reason)| (*pos, reason.as_str()));
                let aside: Vec<_> = aside.chain(acts.into_iter().map(|pos| (pos, COVERS))).collect();
                free_rows(&transaction, through, &aside)?;
                // Of a salvaged room only the store knows the last seq, until it was asked.
                let mut room = transaction.prepare_cached(if this.salvaged && this.ask_store {
                    "UPDATE rooms SET last_seq = MAX(last_seq, ?2) WHERE presenter_idx = ?1"
                } else {
                    "INSERT INTO rooms(presenter_idx, last_seq) VALUES (?1, ?2)
                     ON CONFLICT(presenter_idx) DO UPDATE SET last_seq = MAX(last_seq, excluded.last_seq)"
                })?;
                for (presenter, seq) in &ended {
                    room.execute(params![presenter.get(), seq.0.cast_signed()])?;
                }
                if let Some(newest) = newest {
                    set_meta(&transaction, "last_ms", newest)?;
                }
            }
            transaction.commit()?;
            Ok(ended)
        })?;
        for (presenter, _) in ended {
            self.last.remove(&presenter);
        }
        self.measure();
        Ok(())
    }

    fn read(&mut self, after: Pos, limit: usize) -> Result<Vec<(Pos, Arc<Event>)>, SpoolError> {
        loop {
            let (rows, unreadable) = self.with(|this, connection| this.read_rows(connection, after, limit))?;
            if unreadable.is_empty() {
                return Ok(rows);
            }
            // A row that cannot be read must not block what is behind it (rule 4).
            self.set_rows_aside(&unreadable)?;
            if !rows.is_empty() {
                return Ok(rows);
            }
        }
    }

    fn last_seq(&mut self, presenter: PresenterIdx) -> Result<LastSeq, SpoolError> {
        let (here, kept) = self.with(|this, connection| {
            let mut statement = connection.prepare_cached("SELECT last_seq FROM rooms WHERE presenter_idx = ?1")?;
            let kept = statement.query_row([presenter.get()], |row| row.get::<_, i64>(0));
            let here = this.last.get(&presenter).map(|(seq, _)| *seq);
            Ok((here, kept.optional()?))
        })?;
        let kept = kept.map(|seq| Seq(seq.cast_unsigned()));
        Ok(match (here, kept) {
            (_, Some(kept)) => LastSeq::Known(kept.max(here.unwrap_or_default())),
            (None, None) if self.ask_store => LastSeq::AskStore,
            (Some(_), None) if self.ask_store && self.salvaged => LastSeq::AskStore,
            (here, None) => LastSeq::Known(here.unwrap_or_default()),
        })
    }

    fn learn_last_seq(&mut self, presenter: PresenterIdx, last: Seq) -> Result<Seq, SpoolError> {
        self.with(|this, connection| {
            // What the spool itself holds of the room counts too: the store may not have it yet.
            let last = last.max(this.last.get(&presenter).map_or(Seq(0), |(seq, _)| *seq));
            let mut statement =
                connection.prepare_cached("INSERT OR IGNORE INTO rooms(presenter_idx, last_seq) VALUES (?1, ?2)")?;
            statement.execute(params![presenter.get(), last.0.cast_signed()])?;
            Ok(last)
        })
    }

    fn read_keys(&mut self, since_ms: i64) -> Result<Vec<KeyRow>, SpoolError> {
        self.with(|this, connection| {
            trim_keys(connection, since_ms)?;
            let mut statement = connection.prepare(
                "SELECT epoch, presenter_idx, seq, id, sent_at, user_idx, key, fingerprint FROM keys ORDER BY pos",
            )?;
            let rows = statement.query_map([], |found| {
                let bad = rusqlite::Error::QueryReturnedNoRows;
                let (Some(presenter), Some(user_idx), Some(epoch)) = (
                    PresenterIdx::new(found.get(1)?),
                    UserIdx::new(found.get(5)?),
                    this.epochs.get(&found.get(0)?).cloned(),
                ) else {
                    return Err(bad);
                };
                Ok(KeyRow {
                    user_idx,
                    keyed: Keyed::restored(user_idx, presenter, &found.get::<_, String>(6)?, found.get(7)?),
                    accepted: Accepted {
                        id: Uuid::from_bytes(found.get(3)?),
                        seq: Seq(found.get::<_, i64>(2)?.cast_unsigned()),
                        epoch,
                        sent_at_ms: found.get(4)?,
                        // Whether a session was there is not kept; the message has been numbered and logged.
                        delivery: Delivery::Held,
                    },
                })
            })?;
            // A key that cannot be read costs its sender a second message at worst; it must not cost everyone the start.
            Ok(rows
                .filter_map(|row| row.inspect_err(|error| log::error!("spool: a key: {error}")).ok())
                .collect())
        })
    }

    fn keep_places(&mut self, places: &[Place]) -> Result<(), SpoolError> {
        let epoch = self.epoch.0;
        self.with(|_, connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut statement = transaction.prepare_cached(KEEP_PLACE)?;
                for place in places {
                    statement.execute(params![
                        place.presenter.get(),
                        epoch,
                        place.over.0.cast_signed(),
                        place.position.0.cast_signed(),
                        place.exact,
                        place.room_idx,
                        place.session_at_ms,
                        place.saved_at_ms,
                    ])?;
                }
            }
            transaction.commit()
        })
    }

    fn place(&mut self, presenter: PresenterIdx) -> Result<Option<Place>, SpoolError> {
        let epoch = self.epoch.0;
        self.with(|_, connection| {
            // Numbers go on from one epoch to the next, so a place of an earlier one still tells what was missed.
            let mut statement = connection.prepare_cached(
                "SELECT over, position, exact AND epoch = ?2, room_idx, session_at, saved_at FROM places
                 WHERE presenter_idx = ?1",
            )?;
            let place = statement.query_row([presenter.get(), epoch], |row| {
                Ok(Place {
                    presenter,
                    over: Seq(row.get::<_, i64>(0)?.cast_unsigned()),
                    position: Seq(row.get::<_, i64>(1)?.cast_unsigned()),
                    exact: row.get(2)?,
                    room_idx: row.get(3)?,
                    session_at_ms: row.get(4)?,
                    saved_at_ms: row.get(5)?,
                })
            });
            place.optional()
        })
    }

    fn keep_broadcasts(&mut self, broadcasts: &[Broadcast]) -> Result<(), SpoolError> {
        self.with(|_, connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut statement = transaction.prepare_cached(KEEP_RECORD)?;
                for broadcast in broadcasts {
                    statement.execute(params![
                        &broadcast.id.as_bytes()[..],
                        broadcast.presenter.get(),
                        broadcast.version.cast_signed(),
                        broadcast.ended_at_ms.is_some(),
                        // A struct of texts and numbers cannot fail to serialize.
                        serde_json::to_string(broadcast).unwrap_or_default(),
                    ])?;
                }
            }
            transaction.commit()
        })
    }

    fn open_broadcasts(&mut self) -> Result<Vec<Broadcast>, SpoolError> {
        self.with(|_, connection| read_records(connection, "NOT ended", usize::MAX))
    }

    fn unstored_broadcasts(&mut self, limit: usize) -> Result<Vec<Broadcast>, SpoolError> {
        self.with(|_, connection| read_records(connection, "NOT stored", limit))
    }

    fn broadcasts_stored(&mut self, stored: &[Broadcast]) -> Result<(), SpoolError> {
        self.with(|_, connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut over =
                    transaction.prepare_cached("DELETE FROM records WHERE id = ?1 AND version = ?2 AND ended")?;
                let mut open =
                    transaction.prepare_cached("UPDATE records SET stored = 1 WHERE id = ?1 AND version = ?2")?;
                for broadcast in stored {
                    let which = params![&broadcast.id.as_bytes()[..], broadcast.version.cast_signed()];
                    over.execute(which)?;
                    open.execute(which)?;
                }
            }
            transaction.commit()
        })
    }

    fn probe(&mut self) -> Result<(), SpoolError> {
        self.with(|_, connection| {
            // As much as a small commit needs, so that a disk with a few bytes left is not taken for one with room.
            set_meta(connection, "probe", vec![0_u8; PROBE_BYTES])?;
            connection.execute("DELETE FROM meta WHERE key = 'probe'", [])?;
            Ok(())
        })
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn close(&mut self) {
        let newest = self.with(|_, connection| {
            let newest: Option<i64> = connection.query_row("SELECT MAX(sent_at) FROM spool", [], |row| row.get(0))?;
            if let Some(newest) = newest {
                set_meta(connection, "last_ms", newest)?;
            }
            set_meta(connection, "clean", 1)?;
            connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        });
        if let Err(error) = newest {
            log::error!("spool: its end cannot be marked clean: {error}");
        }
    }
}

impl SqliteSpool {
    /// Rows in order, and those that SQLite can read and we cannot: an epoch or a role that nobody knows.
    fn read_rows(
        &self,
        connection: &Connection,
        after: Pos,
        limit: usize,
    ) -> rusqlite::Result<(SpoolRows, Unreadable)> {
        let columns = row::COLUMNS;
        let sql = format!("SELECT pos, epoch, {columns} FROM spool WHERE pos > ?1 ORDER BY pos LIMIT ?2");
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params![after, i64::try_from(limit).unwrap_or(i64::MAX)])?;
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        while let Some(found) = rows.next()? {
            let pos: Pos = found.get(0)?;
            let epoch = found.get(1).map(|n: i64| self.epochs.get(&n).cloned());
            let event = match epoch {
                Ok(Some(epoch)) => row::read(found, 2, epoch).map_err(|error| error.to_string()),
                Ok(None) => Err("its epoch is not known".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            match event {
                Ok(event) => good.push((pos, Arc::new(event))),
                Err(why) => bad.push((pos, why)),
            }
        }
        Ok((good, bad))
    }

    fn set_rows_aside(&mut self, rows: &[(Pos, String)]) -> Result<(), SpoolError> {
        for (pos, why) in rows {
            log::error!("spool: row {pos} cannot be read and is parked: {why}");
        }
        self.with(|_, connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for (pos, why) in rows {
                transaction.execute(PARK, params![pos, format!("unreadable: {why}"), system_ms()])?;
                transaction.execute("DELETE FROM spool WHERE pos = ?1", [pos])?;
            }
            transaction.commit()
        })
    }
}

/// An import of a log that was exported elsewhere. It goes past the spool into the store; the spool only knows of it.
impl SqliteSpool {
    /// What the import that has begun and not ended is known by.
    pub fn importing(&mut self) -> Result<Option<String>, SpoolError> {
        self.with(|_, connection| meta(connection, "importing"))
    }

    /// Begins one: remembers what it is known by, and that these rooms go on behind these numbers and after that time (rules 3
    /// and 5), whether or not it comes to its end. One transaction.
    pub fn begin_import(
        &mut self,
        known_by: &str,
        rooms: impl IntoIterator<Item = (PresenterIdx, Seq)>,
        newest_ms: i64,
    ) -> Result<(), SpoolError> {
        self.with(|_, connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut room = transaction.prepare_cached(
                    "INSERT INTO rooms(presenter_idx, last_seq) VALUES (?1, ?2)
                     ON CONFLICT(presenter_idx) DO UPDATE SET last_seq = MAX(last_seq, excluded.last_seq)",
                )?;
                for (presenter, last) in rooms {
                    room.execute(params![presenter.get(), last.0.cast_signed()])?;
                }
            }
            let last_ms = meta::<i64>(&transaction, "last_ms")?.unwrap_or(0).max(newest_ms);
            set_meta(&transaction, "last_ms", last_ms)?;
            set_meta(&transaction, "importing", known_by)?;
            transaction.commit()
        })
    }

    /// It has come to its end.
    pub fn end_import(&mut self) -> Result<(), SpoolError> {
        self.with(|_, connection| {
            connection.execute("DELETE FROM meta WHERE key = 'importing'", [])?;
            Ok(())
        })
    }
}

/// A parked event.
pub struct ParkedRow {
    /// What names it, whatever else of it can be read.
    pub id: Vec<u8>,
    /// The event, or why it cannot be read.
    pub event: Result<Arc<Event>, String>,
    /// Why the store refused it.
    pub reason: String,
}

impl SqliteSpool {
    /// At most `limit` parked events whose ids are greater than `after`, oldest first.
    pub fn read_parked(&mut self, after: &[u8], limit: usize) -> Result<Vec<ParkedRow>, SpoolError> {
        self.with(|this, connection| {
            let sql = format!(
                "SELECT id, reason, epoch, {} FROM parked WHERE id > ?1 ORDER BY id LIMIT ?2",
                row::COLUMNS
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![after, limit], |found| {
                let event = match this.epochs.get(&found.get(2)?) {
                    Some(epoch) => row::read(found, 3, epoch.clone())
                        .map(Arc::new)
                        .map_err(|e| e.to_string()),
                    None => Err("its epoch is not known".into()),
                };
                Ok(ParkedRow {
                    id: found.get(0)?,
                    event,
                    reason: found.get(1)?,
                })
            })?;
            rows.collect()
        })
    }

    /// After parked events were tried again: forgets those that the store has now, but for acts that may cover what stays, and
    /// keeps the others with their new reason. One transaction.
    pub fn unpark(&mut self, stored: &[Uuid], refused: &[(Uuid, String)]) -> Result<(), SpoolError> {
        self.with(|_, connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut delete = transaction.prepare_cached(
                    "DELETE FROM parked WHERE id = ?1 AND (act IS NULL OR NOT EXISTS (
                     SELECT 1 FROM parked AS older
                     WHERE older.id < ?1 AND older.presenter_idx = parked.presenter_idx AND older.act IS NULL))",
                )?;
                // What an act covers is older, and goes first.
                let mut stored: Vec<&Uuid> = stored.iter().collect();
                stored.sort_unstable();
                for id in stored {
                    delete.execute([&id.as_bytes()[..]])?;
                }
                let mut update = transaction.prepare_cached("UPDATE parked SET reason = ?2 WHERE id = ?1")?;
                for (id, reason) in refused {
                    update.execute(params![&id.as_bytes()[..], reason])?;
                }
            }
            transaction.commit()
        })
    }

    /// How many events are parked.
    pub fn count_parked(&mut self) -> Result<u64, SpoolError> {
        self.with(|_, connection| {
            let count: i64 = connection.query_row("SELECT COUNT(*) FROM parked", [], |row| row.get(0))?;
            Ok(count.cast_unsigned())
        })
    }
}
