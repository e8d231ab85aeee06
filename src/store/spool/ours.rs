//! Whose a file is: a spool of ours, and for which log, or something of another program, which is not touched.

use std::path::Path;

use rusqlite::{Connection, types::Value};

use super::{OpenError, meta};
use crate::store::salvage::{OTHER_TABLES, TABLES};

/// In `meta`: the log that its events are for.
pub(in crate::store) const BACKEND: &str = "backend";

/// Refuses an SQLite file of another program. One of ours says its format; where a kill came before it did, it has no tables but ours,
/// and `meta` is the first of them. Returns whether it has tables, so that it is one of ours for certain.
pub(super) fn may_be_ours(connection: &Connection, path: &Path) -> Result<bool, OpenError> {
    match is_foreign(connection) {
        Ok(Some(false)) => Ok(true),
        Ok(None) => Ok(false),
        Ok(Some(true)) => Err(OpenError::NotASpool { path: path.to_owned() }),
        Err(error) => Err(OpenError::Sqlite {
            path: path.to_owned(),
            error,
        }),
    }
}

/// `None`: it has no tables at all.
fn is_foreign(connection: &Connection) -> rusqlite::Result<Option<bool>> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'sqlite_*'";
    let mut statement = connection.prepare(sql)?;
    let tables = statement.query_map([], |row| row.get(0))?;
    let tables = tables.collect::<rusqlite::Result<Vec<String>>>()?;
    let is_ours = |table: &String| TABLES.iter().chain(&OTHER_TABLES).any(|ours| ours == table);
    if tables.is_empty() {
        return Ok(None);
    }
    if tables.iter().all(is_ours) && tables.iter().any(|table| table == "meta") {
        return Ok(Some(false));
    }
    let meta_is_ours =
        connection.column_exists(None, "meta", "key")? && connection.column_exists(None, "meta", "value")?;
    Ok(Some(!meta_is_ours || meta::<Value>(connection, "format")?.is_none()))
}

/// The log behind a spool, as `log.backend` names it.
pub(super) fn backend(embedded: bool) -> &'static str {
    if embedded { "sqlite" } else { "mongodb" }
}

/// Whether its events are for this log. Elsewhere they would be where nobody looks for them, and what is there would seem to be all.
pub(in crate::store) fn is_of(connection: &Connection, path: &Path, embedded: bool) -> Result<(), OpenError> {
    let found = backend_of(connection).map_err(|error| OpenError::Sqlite {
        path: path.to_owned(),
        error,
    })?;
    match found {
        Some(found) if found != backend(embedded) => Err(OpenError::Backend {
            path: path.to_owned(),
            found,
            set: backend(embedded),
        }),
        _ => Ok(()),
    }
}

/// The log that a spool says it is of. One of an earlier version does not say: where it knows rooms, and no log is beside it, that is in
/// MongoDB.
fn backend_of(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let said: Option<String> = meta(connection, BACKEND)?;
    if said.is_some() || meta::<i64>(connection, "format")?.is_none() {
        return Ok(said);
    }
    let any =
        |table: &str| connection.query_row(&format!("SELECT EXISTS (SELECT 1 FROM {table})"), [], |row| row.get(0));
    let (begun, knows_rooms): (bool, bool) = (connection.table_exists(None, "chatting_log")?, any("rooms")?);
    // One that was killed before the first batch has an empty log.
    let has_log = begun && (!knows_rooms || any("chatting_log")?);
    let knows_rooms = knows_rooms || any("spool")?;
    Ok((knows_rooms && !has_log).then(|| backend(false).to_owned()))
}
