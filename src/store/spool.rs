//! The spool: the local file where an accepted event becomes durable before the store has it.
//!
//! Constraints. Torn writes and recovery are SQLite's job: WAL, `synchronous=FULL` for `disk`, many events a transaction.
//! Rows are appended by rowid (`pos`) and freed by range, with no other index (but one of acts, which are few), so that one costs a few µs in its whole
//! life. What is parked is found by its room and seq. A room's last seq outlives its rows in `rooms`, written in the transaction that frees the last of them (rule 3).
//!
//! Format 2. `spool(pos, epoch, <event columns>)` · `rooms(presenter_idx, last_seq)` · `epochs(n, epoch)` · `keys(pos, epoch,
//! presenter_idx, seq, id, sent_at, user_idx, key, fingerprint)`, in the order of time · `parked(pos, epoch, <event columns>,
//! reason, parked_at)`, of which one reason (`COVERS`) is a part of the format: statements tell by it what is here only for what it
//! covers · `places(presenter_idx, epoch, …)`, how far rooms got · `records(id, …)`, broadcasts that have not ended
//! or that the store does not have, with `stored` 1 for those that it has as they are and 2 for those that it refused as they are
//! · `meta(key, value)`: `format`, `epoch` (its n), `clean`, `damaged` (as far as a run found), `salvaged` (where the file began with
//! what could be read of a damaged one, or turned out to be an old copy), `durability`, `backend`, `log_id` (with the name of the
//! database that it was met in), `last_ms`, `ask_store`, `importing` (while an import has not ended).
//! A file of format 1, which had neither acts nor broadcasts, is brought to format 2 when it is opened.

mod anew;
pub mod erasure;
mod freeing;
mod import;
mod keys;
mod last_seqs;
mod meta;
mod of_log;
mod opening;
mod ours;
mod parked;
mod places;
pub(super) mod records;
mod rows;
mod schema;
mod start;
mod writing;

pub(super) use self::{
    meta::{DAMAGED, meta, set_meta},
    of_log::LOG_ID,
    ours::{BACKEND, is_of},
    schema::FORMAT,
    start::epochs,
};
pub use self::{
    of_log::{OfLog, OtherLog},
    opening::OpenError,
    parked::{ParkedRow, Parking},
};

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use chatting_actors::{
    broadcast::Broadcast,
    idempotency::KeyRow,
    metrics::Metrics,
    seams::{LastSeq, Place, Pos, Spool, SpoolError, SpoolFault},
    seldom::Seldom,
    types::{Epoch, Event, PresenterIdx, Seq},
};
use prometheus_client::metrics::gauge::Gauge;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use uuid::Uuid;

use self::{
    freeing::Freeing, last_seqs::LastSeqs, meta::keep_last_ms, parked::Kept, records::Which, schema::limit,
    writing::Writing,
};
use super::{Durability, FoundSpool, SharedConnection, SpoolLock, reserve::Reserve, wal::pass};

/// How old the size may be that the metrics show.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// How soon a reserve that is missing is tried to be made anew.
const RESERVE_AGAIN: Duration = Duration::from_secs(10);

/// That a full disk has cost the reserve, for the log.
const GIVEN_UP: &str = "spool: the disk is full, so its reserve (log.reserve_bytes) is given up to free rows; the file grows no more until \
                        there is room for a new one";

/// What a probe writes.
const PROBE_BYTES: usize = 64 * 1024;

/// Times do not go back from row to row (rule 5), so the last row is the newest, where it can be read; a spool of gigabytes is not gone
/// through.
const NEWEST: &str = "SELECT sent_at FROM spool WHERE typeof(sent_at) = 'integer' ORDER BY pos DESC LIMIT 1";

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

/// How far it may grow and what it keeps of the disk, for the metrics.
#[derive(Default)]
struct Shown {
    max_bytes: Gauge,
    reserve_bytes: Gauge,
    reserve_missing_bytes: Gauge,
}

fn set(gauge: &Gauge, bytes: u64) {
    gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
}

/// An open spool, and what of it is known without reading. Its calls block; an error tells whether anything of what was
/// asked may have been done ([`SpoolFault`]).
pub struct SqliteSpool {
    connection: SharedConnection,
    /// How often the connection had been opened again when the rows were last looked through.
    reopened: u64,
    epochs: HashMap<i64, Epoch>,
    epoch: (i64, Epoch),
    next_pos: Pos,
    /// Rows from here on are of commits whose outcome nobody was told yet; `next_pos` when there are none.
    untold: Pos,
    last_seqs: LastSeqs,
    /// What commits take away of the keys.
    expired: keys::Expired,
    found: FoundSpool,
    bytes: u64,
    measured_at: Instant,
    /// `log.spool_max_bytes`
    max_bytes: Option<u64>,
    /// What is kept of the disk for when it is full, how much that is to be, and when it was last tried to make it anew.
    reserve: Arc<Reserve>,
    reserve_wanted: u64,
    shown: Shown,
    reserve_tried_at: Instant,
    /// What the store will not take, for the metrics.
    kept: Kept,
    /// That rows cannot be read, for the log.
    unreadable: Seldom,
    lock: SpoolLock,
}

impl SqliteSpool {
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

    /// Tells from now on how much is kept here because the store will not take it: what is parked already at once.
    pub fn count_in(&mut self, metrics: &Metrics) {
        self.kept = Kept::of(metrics);
        self.shown = Shown {
            max_bytes: metrics.spool_max_bytes.clone(),
            reserve_bytes: metrics.spool_reserve_bytes.clone(),
            reserve_missing_bytes: metrics.spool_reserve_missing_bytes.clone(),
        };
        self.limit_again();
        // Where it cannot be asked now, it is counted when the file has been opened again.
        let _ = self.with(|this, connection| this.kept.count_parked(connection));
    }

    /// Keeps so many bytes of the disk for when that is full; 0 keeps none. Where there is no room for them it goes on with what it has,
    /// or without, and until there is the file grows to half as many bytes at most, or not at all where it has them.
    pub fn keep_reserve(&mut self, bytes: u64) {
        self.reserve_wanted = bytes;
        if let Err(error) = self.reserve.keep(bytes) {
            let instead = match (self.reserve.bytes(), self.reserve.file_may_have()) {
                (there @ 1.., _) => format!("; that of {there} bytes stays"),
                (0, Some(bytes)) => format!("; until it is the file grows to {bytes} bytes, or not at all"),
                (0, None) => String::new(),
            };
            log::warn!("spool: its reserve of {bytes} bytes (log.reserve_bytes) is not kept: {error}{instead}");
        }
        self.limit_again();
    }

    /// Does what frees rows. Where the disk is full the reserve is given up for it.
    fn freeing<T>(
        &mut self,
        work: impl Fn(&mut Self, &mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SpoolError> {
        match self.with(&work) {
            Err(error) if error.fault == SpoolFault::Full && self.reserve.give_up() => {
                log::warn!("{GIVEN_UP}: {error}");
                self.limit_again();
                // So that the WAL begins anew, and need not become longer.
                if let Err(error) = self.with(|_, connection| pass(connection)) {
                    log::warn!("spool: its WAL is not written into it: {error}");
                }
                self.with(&work)
            }
            done => done,
        }
    }

    /// Does what takes something in. An empty spool must not fail at it for want of room: nothing will be freed that could give the reserve
    /// up, and what has filled the disk need not be the spool. Nor must one whose limit is of when there was less room: under
    /// [`Durability::Memory`] nothing else may come behind it.
    fn taking<T>(&mut self, work: impl Fn(&mut Self, &mut Connection) -> rusqlite::Result<T>) -> Result<T, SpoolError> {
        match self.with(&work) {
            Err(error) if error.fault == SpoolFault::Full => {
                if self.reserve.bytes() > 0 && self.is_empty().is_ok_and(|empty| empty) {
                    self.freeing(work)
                } else if self.make_reserve_again() {
                    self.with(work)
                } else {
                    Err(error)
                }
            }
            done => done,
        }
    }

    /// Makes anew what is missing of the reserve, or sees how far the file may grow without it. Returns whether it looked.
    fn make_reserve_again(&mut self) -> bool {
        let lacks = self.reserve.bytes() < self.reserve_wanted;
        if !lacks || self.reserve_tried_at.elapsed() < RESERVE_AGAIN {
            return false;
        }
        self.reserve_tried_at = Instant::now();
        match self.reserve.keep(self.reserve_wanted) {
            Ok(()) => log::info!("spool: it has its reserve again"),
            Err(error) => log::debug!("spool: its reserve is still missing: {error}"),
        }
        // What is free may have become more, or less.
        self.limit_again();
        true
    }

    /// How far the file may grow depends on whether the reserve is there.
    fn limit_again(&mut self) {
        let there = self.reserve.bytes();
        set(&self.shown.reserve_bytes, there);
        set(
            &self.shown.reserve_missing_bytes,
            self.reserve_wanted.saturating_sub(there),
        );
        match self.with(|this, connection| limit(connection, this.max_bytes, &this.reserve)) {
            Ok(most) => {
                self.shown.max_bytes.set(most.unwrap_or(0));
            }
            Err(error) => log::warn!("spool: how far it may grow cannot be set: {error}"),
        }
    }

    fn is_empty(&mut self) -> Result<bool, SpoolError> {
        let sql = "SELECT NOT EXISTS (SELECT 1 FROM spool)";
        self.with(|_, connection| connection.query_row(sql, [], |row| row.get(0)))
    }

    /// The store holds nothing, so a room that this spool has never seen begins at 1 and needs no question.
    pub fn store_is_empty(&mut self) -> Result<(), SpoolError> {
        self.with(|this, connection| this.last_seqs.store_is_empty(connection))
    }

    /// Whether rooms that this spool has never seen must be asked for.
    pub fn asks_store(&self) -> bool {
        self.last_seqs.asks_store()
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SpoolError> {
        let shared = self.connection.clone();
        let mut begun = false;
        let done = shared.run(|connection| {
            let reopened = shared.reopened();
            if self.reopened != reopened {
                self.catch_up(connection)?;
                self.reopened = reopened;
            }
            begun = true;
            work(self, connection)
        });
        done.map_err(|error| failed(&error, begun))
    }

    /// Learns of the rows of a commit that took effect although it failed.
    fn catch_up(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        // What it parked, or took away, was not added up.
        let _ = self.kept.count_parked(connection);
        self.next_pos = self.last_seqs.catch_up(connection, self.next_pos)?;
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
        self.make_reserve_again();
    }
}

fn failed(error: &rusqlite::Error, begun: bool) -> SpoolError {
    let fault = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => SpoolFault::Full,
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen) => SpoolFault::NotBegun,
        // Somebody else writes, and for too long. Said at a transaction's begin, where it is waited for; at its end it would
        // not be committed either.
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => SpoolFault::NotBegun,
        _ if begun => SpoolFault::Unsure,
        _ => SpoolFault::NotBegun,
    };
    SpoolError {
        why: error.to_string(),
        fault,
    }
}

impl Spool for SqliteSpool {
    fn commit(&mut self, events: &[Arc<Event>]) -> Result<Pos, SpoolError> {
        let epoch = self.epoch.0;
        let first = self.taking(|this, connection| {
            let first = this.next_pos;
            let transaction = Writing::begin(connection)?;
            // What frees pages comes before what needs them.
            this.expired.trim(connection)?;
            rows::insert(connection, epoch, first, events)?;
            transaction.commit()?;
            Ok(first)
        })?;
        self.expired
            .came(events.iter().filter(|event| event.keyed.is_some()).count());
        self.next_pos = first + events.len() as Pos;
        self.untold = self.next_pos;
        for (n, event) in events.iter().enumerate() {
            self.last_seqs.came(event.presenter_idx, event.seq, first + n as Pos);
        }
        if self.measured_at.elapsed() >= MEASURE_EVERY {
            self.measure();
        }
        Ok(first)
    }

    fn forget_keys(&mut self, before_ms: i64) {
        self.expired.are_before(before_ms);
    }

    fn reopen(&mut self) {
        self.connection.close(false);
    }

    fn reopen_and_find(&mut self, event: &Event) -> Result<Option<Pos>, SpoolError> {
        self.connection.close(true);
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
        let freeing = Freeing {
            through,
            parked,
            keys_before_ms,
        };
        let (kept, unasked) = self.freeing(|this, connection| freeing.run(connection, &this.last_seqs, &this.kept))?;
        self.last_seqs.kept(kept);
        self.last_seqs.unasked(unasked);
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
        self.with(|this, connection| this.last_seqs.of(connection, presenter))
    }

    fn learn_last_seqs(&mut self, told: &[(PresenterIdx, Seq)], newest_ms: i64) -> Result<Vec<Seq>, SpoolError> {
        self.with(|this, connection| this.last_seqs.learn(connection, told, newest_ms))
    }

    fn read_keys(&mut self, since_ms: i64) -> Result<Vec<KeyRow>, SpoolError> {
        self.with(|this, connection| keys::read(connection, &this.epochs, since_ms))
    }

    fn keep_places(&mut self, places: &[Place]) -> Result<(), SpoolError> {
        let epoch = self.epoch.0;
        self.with(|_, connection| places::keep(connection, epoch, places))
    }

    fn place(&mut self, presenter: PresenterIdx) -> Result<Option<Place>, SpoolError> {
        let epoch = self.epoch.0;
        self.with(|_, connection| places::read(connection, epoch, presenter))
    }

    fn keep_broadcasts(&mut self, broadcasts: &[Broadcast]) -> Result<bool, SpoolError> {
        self.with(|this, connection| {
            let lacks_one = records::keep(connection, broadcasts)?;
            this.kept.count_refused(connection, false);
            Ok(lacks_one)
        })
    }

    fn open_broadcasts(&mut self) -> Result<Vec<Broadcast>, SpoolError> {
        self.with(|_, connection| Ok(records::read(connection, Which::Open, usize::MAX)?.broadcasts))
    }

    fn broadcast_versions(&mut self) -> Result<HashMap<Uuid, u64>, SpoolError> {
        self.with(|_, connection| records::versions(connection))
    }

    fn adopt_broadcasts(&mut self, broadcasts: &[Broadcast]) -> Result<Vec<Broadcast>, SpoolError> {
        self.with(|_, connection| records::adopt(connection, broadcasts))
    }

    fn unstored_broadcasts(&mut self, limit: usize) -> Result<Vec<Broadcast>, SpoolError> {
        self.with(|_, connection| Ok(records::read(connection, Which::Unstored, limit)?.broadcasts))
    }

    fn broadcasts_stored(&mut self, stored: &[Broadcast], refused: &[Broadcast]) -> Result<(), SpoolError> {
        self.freeing(|this, connection| {
            records::stored(connection, stored, refused)?;
            this.kept.count_refused(connection, !refused.is_empty());
            Ok(())
        })
    }

    fn probe(&mut self) -> Result<(), SpoolError> {
        self.make_reserve_again();
        self.taking(|_, connection| {
            // As much as a small commit needs, so that a disk with a few bytes left is not taken for one with room.
            set_meta(connection, "probe", vec![0_u8; PROBE_BYTES])?;
            connection.execute("DELETE FROM meta WHERE key = 'probe'", [])?;
            Ok(())
        })
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn close(&mut self) -> bool {
        let damaged = self.connection.damaged();
        let marked = self.with(|_, connection| {
            let newest: Option<i64> = connection.query_row(NEWEST, [], |row| row.get(0)).optional()?;
            if let Some(newest) = newest {
                keep_last_ms(connection, newest)?;
            }
            if damaged {
                // The next start checks it, and sets it aside as it is.
                return Ok(false);
            }
            set_meta(connection, "clean", 1)?;
            Ok(true)
        });
        let marked = marked.unwrap_or_else(|error| {
            log::error!("spool: its end cannot be marked clean: {error}");
            false
        });
        if marked
            && let Err(error) = self.with(|_, connection| connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)"))
        {
            // It is a part of the file.
            log::warn!("spool: its WAL stays beside it: {error}");
        }
        marked
    }
}
