//! The tables of a spool's file and its format, and a connection that writes into one.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{OpenError, SpoolSettings, set_meta};
use crate::store::{connect, reserve::Reserve, row, sqlite};

/// The format that this version writes.
pub(in crate::store) const FORMAT: i64 = 2;

/// Pages in the WAL at which a commit checkpoints, where the log is in the same file: the log does so before, beside the commits.
const LOG_CHECKPOINT_PAGES: i64 = 16_384;

/// The pragma that says to how many pages a file may grow, and the most that there can be.
pub(super) const MAX_PAGES: &str = "max_page_count";
pub(super) const UNLIMITED: i64 = u32::MAX as i64 - 1;

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
  exact INTEGER NOT NULL, room_idx INTEGER, session_at INTEGER, saved_at INTEGER NOT NULL, legacy_from INTEGER);
CREATE TABLE IF NOT EXISTS records(
  id BLOB NOT NULL PRIMARY KEY, presenter_idx INTEGER NOT NULL, version INTEGER NOT NULL, ended INTEGER NOT NULL,
  stored INTEGER NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_room ON records(presenter_idx);
";

/// Made when the columns are there, and in a file of before there were these. That of the spool has nothing but acts, so chat costs
/// nothing more, and no reader has to look through the whole spool for what was deleted. Those of what is parked cost chat nothing
/// either: it may be much, and commits must not wait until all of it was looked through for one room. Nor until all open broadcasts
/// were for the few that the store does not have, by the last one; a question must name its condition. `parked_of_user` and
/// `parked_at` tell whether an act covers any of what is parked.
pub(super) const INDEXES: &str = "
CREATE INDEX IF NOT EXISTS spool_acts ON spool(presenter_idx) WHERE act IS NOT NULL;
CREATE INDEX IF NOT EXISTS parked_by_room ON parked(presenter_idx, seq);
CREATE INDEX IF NOT EXISTS parked_said ON parked(presenter_idx, id) WHERE act IS NULL;
CREATE INDEX IF NOT EXISTS parked_of_user ON parked(presenter_idx, user_idx) WHERE act IS NULL;
CREATE INDEX IF NOT EXISTS parked_at ON parked(presenter_idx, sent_at) WHERE act IS NULL;
CREATE INDEX IF NOT EXISTS parked_acts ON parked(presenter_idx) WHERE act IS NOT NULL;
CREATE INDEX IF NOT EXISTS records_unstored ON records(stored, id) WHERE stored <> 1;
";

/// Refuses a format that this version does not read; none is that of a new file.
pub(super) fn is_known(found: Option<i64>, path: &Path) -> Result<(), OpenError> {
    match found {
        None | Some(1 | FORMAT) => Ok(()),
        Some(found) => Err(OpenError::Format {
            path: path.to_owned(),
            found,
        }),
    }
}

/// Opens a spool's file to write into it, and makes it with its tables where there is none.
pub(super) fn open_connection(settings: &SpoolSettings) -> rusqlite::Result<Connection> {
    let connection = connect(&settings.path)?;
    set_up(&connection, settings)?;
    Ok(connection)
}

/// Makes a connection one that writes into a spool.
pub(super) fn set_up(connection: &Connection, settings: &SpoolSettings) -> rusqlite::Result<()> {
    crate::store::set_up(connection, settings.durability)?;
    connection.execute_batch(SCHEMA)?;
    if settings.embedded {
        connection.pragma_update(None, "wal_autocheckpoint", LOG_CHECKPOINT_PAGES)?;
    }
    Ok(())
}

/// From now on the file grows no further than it may: while its reserve is missing, no further than it is, but to what that leaves it
/// ([`Reserve::file_may_have`]). Not before it has what this version needs: a full spool must start. Returns how many bytes that are, where
/// there is a limit.
pub(super) fn limit(
    connection: &Connection,
    max_bytes: Option<u64>,
    reserve: &Reserve,
) -> rusqlite::Result<Option<i64>> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let page = pragma("page_size")?.max(1);
    let pages = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX) / page;
    let mut most = max_bytes.map_or(UNLIMITED, pages);
    if let Some(bytes) = reserve.file_may_have() {
        most = most.min(pragma("page_count")?.max(pages(bytes)));
    }
    // A file that has more pages already keeps those.
    let most: i64 = connection.pragma_update_and_check(None, MAX_PAGES, most, |row| row.get(0))?;
    Ok((most < UNLIMITED).then_some(most.saturating_mul(page)))
}

/// Brings a file of format 1 to format 2, in one transaction.
pub(super) fn upgrade(connection: &mut Connection) -> rusqlite::Result<()> {
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
