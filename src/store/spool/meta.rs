//! The table `meta`: what a spool says of itself.

use rusqlite::{Connection, OptionalExtension, params};

/// Whether a run found that the file is damaged.
pub(in crate::store) const DAMAGED: &str = "damaged";

pub(in crate::store) fn meta<T: rusqlite::types::FromSql>(
    connection: &Connection,
    key: &str,
) -> rusqlite::Result<Option<T>> {
    connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
        .optional()
}

pub(in crate::store) fn set_meta(
    connection: &Connection,
    key: &str,
    value: impl rusqlite::ToSql,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("INSERT OR REPLACE INTO meta(key, value) VALUES (?1, ?2)")?;
    statement.execute(params![key, value])?;
    Ok(())
}

/// What is there, which is this where nothing was.
pub(super) fn meta_or(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<String> {
    let mut statement = connection.prepare_cached("INSERT OR IGNORE INTO meta(key, value) VALUES (?1, ?2)")?;
    statement.execute(params![key, value])?;
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
}

/// The newest time that is known; what the store told may be newer than any row (rule 5).
pub(super) fn keep_last_ms(connection: &Connection, ms: i64) -> rusqlite::Result<()> {
    let known: Option<i64> = meta(connection, "last_ms")?;
    if known.is_none_or(|known| known < ms) {
        set_meta(connection, "last_ms", ms)?;
    }
    Ok(())
}
