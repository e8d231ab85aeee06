//! A damaged spool: set aside whole, and what can be read of it carried into a new one.
//!
//! Nothing of the damaged file is changed: it is renamed with its WAL, and read through a copy. Rows are read from the
//! front until an error, from the back until an error, and one by one in between. The new spool begins a new epoch, and every
//! room asks the store for its last seq before anything is numbered (rule 3).

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use chatting_actors::clock::system_ms;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, ToSql, params_from_iter, types::Value};

use super::lock::file_of;

/// The most rows that are tried one by one between what the front and the back gave.
const ONE_BY_ONE_MAX: i64 = 1_000_000;

/// Whether the error says that the file itself is bad, rather than the disk, a lock or a right.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// Checks the tables that the spool itself lives by; with `all` those of the embedded log, too. Done after an unclean stop only: it
/// reads all of them.
pub fn check(connection: &Connection, all: bool) -> rusqlite::Result<()> {
    let mut tables = vec!["meta", "epochs", "rooms", "spool", "keys", "parked", "records"];
    if all {
        tables.extend(["places", "chatting_log", "broadcasts"]);
    }
    for table in tables {
        if !connection.table_exists(None, table)? {
            continue;
        }
        let found: String = connection.query_row(&format!("PRAGMA quick_check({table})"), [], |row| row.get(0))?;
        if found != "ok" {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(rusqlite::Error::SqliteFailure(code, Some(format!("{table}: {found}"))));
        }
    }
    Ok(())
}

/// What a new file is called that is whole and has not taken its place yet.
pub const WHOLE: &str = ".salvaged";

/// Lets a salvaged file take its place where a start died between setting the damaged one aside and that.
pub fn finish(path: &Path) -> io::Result<()> {
    let whole = beside(path, WHOLE);
    if !whole.exists() || path.exists() {
        return Ok(());
    }
    // The WAL of the damaged one, too, must not be taken for that of this one.
    let aside = files_aside(path)?.pop().unwrap_or_else(|| aside_of(path));
    set_parts_aside(path, &aside)?;
    std::fs::rename(whole, path)
}

/// Removes a file and what SQLite keeps beside it, as far as they are there.
pub fn remove(path: &Path) {
    for part in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(path, part));
    }
}

/// Renames the file and what SQLite keeps beside it to `<path>.damaged-<UTC time>`; returns the new name.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = aside_of(path);
    std::fs::rename(path, &aside)?;
    set_parts_aside(path, &aside)?;
    Ok(aside)
}

fn aside_of(path: &Path) -> PathBuf {
    let time = jiff::Timestamp::from_millisecond(system_ms())
        .map_or_else(|_| String::new(), |time| time.strftime("%Y%m%dT%H%M%S%3fZ").to_string());
    beside(path, &format!(".damaged-{time}"))
}

/// What SQLite kept beside the file goes with it.
fn set_parts_aside(path: &Path, aside: &Path) -> io::Result<()> {
    for part in ["-wal", "-shm"] {
        let from = beside(path, part);
        if from.exists() {
            std::fs::rename(from, beside(aside, part))?;
        }
    }
    Ok(())
}

/// The files that were set aside from a spool at this path, each without what SQLite keeps beside it.
pub fn files_aside(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = &file_of(path);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let prefix = path.file_name().unwrap_or_default().to_string_lossy().into_owned() + ".damaged-";
    let mut files = Vec::new();
    for entry in std::fs::read_dir(parent.unwrap_or(Path::new(".")))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&prefix) && !name.ends_with("-wal") && !name.ends_with("-shm") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// How many rows were carried over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Events that the store may not have.
    pub events: u64,
    /// Idempotency keys.
    pub keys: u64,
    /// Parked events.
    pub parked: u64,
    /// Events of the embedded log.
    pub log: u64,
}

/// Carries what can be read of `aside` into the new, empty spool. Errors are of the new file; of the old one whatever fails
/// is left out.
pub fn carry_over(aside: &Path, new: &Connection, embedded: bool) -> rusqlite::Result<Salvaged> {
    let copy = beside(aside, ".reading");
    let mut salvaged = Salvaged::default();
    if copy_with_wal(aside, &copy).is_ok()
        && let Ok(old) = Connection::open_with_flags(&copy, OpenFlags::SQLITE_OPEN_READ_WRITE)
    {
        carry_table(&old, new, "epochs", "n")?;
        salvaged.events = carry_table(&old, new, "spool", "pos")?;
        salvaged.keys = carry_table(&old, new, "keys", "pos")?;
        salvaged.parked = carry_table(&old, new, "parked", "pos")?;
        carry_table(&old, new, "records", "id")?;
        if embedded {
            new.execute_batch(super::sqlite::SCHEMA)?;
            salvaged.log = carry_table(&old, new, "chatting_log", "presenter_idx, epoch, seq")?;
            carry_table(&old, new, "broadcasts", "id")?;
        }
    }
    remove(&copy);
    name_epochs(new)?;
    Ok(salvaged)
}

/// A numbering whose name cannot be read gets one of its own: without one its number would be the next epoch's, and its rows would
/// be taken for events of that.
fn name_epochs(new: &Connection) -> rusqlite::Result<()> {
    let named = new.execute(
        "INSERT INTO epochs(n, epoch) SELECT epoch, lower(hex(randomblob(8))) FROM
         (SELECT epoch FROM spool UNION SELECT epoch FROM keys UNION SELECT epoch FROM parked)
         WHERE typeof(epoch) = 'integer' AND epoch NOT IN (SELECT n FROM epochs)",
        [],
    )?;
    if named > 0 {
        log::error!("spool: the names of {named} epochs cannot be read, what is salvaged of them goes by new ones");
    }
    Ok(())
}

fn copy_with_wal(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::copy(from, to)?;
    let wal = beside(from, "-wal");
    if wal.exists() {
        std::fs::copy(wal, beside(to, "-wal"))?;
    }
    Ok(())
}

/// Carries one table, by `key`; returns how many rows the new file did not have before.
fn carry_table(old: &Connection, new: &Connection, table: &str, key: &str) -> rusqlite::Result<u64> {
    // A file of an older format lacks some, and they may be empty.
    let there = columns(old, table).unwrap_or_default();
    let mut columns = columns(new, table)?;
    columns.retain(|column| there.contains(column));
    if columns.is_empty() {
        return Ok(0);
    }
    let marks = vec!["?"; columns.len()].join(", ");
    let select = columns.join(", ");
    let mut insert = new.prepare(&format!("INSERT OR IGNORE INTO {table}({select}) VALUES ({marks})"))?;
    let mut carried = 0;
    let mut keep = |values: Vec<Value>| -> rusqlite::Result<()> {
        carried += insert.execute(params_from_iter(values))? as u64;
        Ok(())
    };
    let descending = key
        .split(", ")
        .map(|part| format!("{part} DESC"))
        .collect::<Vec<_>>()
        .join(", ");
    let front = read_until_error(
        old,
        &format!("SELECT {select} FROM {table} ORDER BY {key}"),
        &[],
        &mut keep,
    )?;
    if front.whole {
        return Ok(carried);
    }
    let back = read_until_error(
        old,
        &format!("SELECT {select} FROM {table} ORDER BY {descending}"),
        &[],
        &mut keep,
    )?;
    if key == "pos"
        && let (Some(first), Some(last)) = (front.last_key, back.last_key)
    {
        let sql = format!("SELECT {select} FROM {table} WHERE pos = ?1");
        for pos in (first + 1..last).take(usize::try_from(ONE_BY_ONE_MAX).unwrap_or(usize::MAX)) {
            read_until_error(old, &sql, &[&pos], &mut keep)?;
        }
    }
    Ok(carried)
}

fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(&format!("SELECT name FROM pragma_table_info('{table}')"))?;
    statement.query_map([], |row| row.get(0))?.collect()
}

struct Read {
    /// There was no error.
    whole: bool,
    /// The first column of the last row that was read, where it is a number.
    last_key: Option<i64>,
}

/// Hands rows to `keep` until the old file has no more or fails. Only errors of `keep` are errors.
fn read_until_error(
    old: &Connection,
    sql: &str,
    parameters: &[&dyn ToSql],
    keep: &mut dyn FnMut(Vec<Value>) -> rusqlite::Result<()>,
) -> rusqlite::Result<Read> {
    let mut read = Read {
        whole: false,
        last_key: None,
    };
    let Ok(mut statement) = old.prepare(sql) else {
        return Ok(read);
    };
    let width = statement.column_count();
    let Ok(mut rows) = statement.query(parameters) else {
        return Ok(read);
    };
    loop {
        match rows.next() {
            Ok(Some(row)) => {
                let Ok(values) = values(row, width) else {
                    return Ok(read);
                };
                if let Some(Value::Integer(key)) = values.first() {
                    read.last_key = Some(*key);
                }
                // A row that the new file will not have (a NULL where none may be) is damage too.
                match keep(values) {
                    Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {}
                    other => other?,
                }
            }
            Ok(None) => {
                read.whole = true;
                return Ok(read);
            }
            Err(_) => return Ok(read),
        }
    }
}

fn values(row: &Row<'_>, width: usize) -> rusqlite::Result<Vec<Value>> {
    (0..width).map(|column| row.get(column)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salvaged_file_that_takes_its_place_late_does_not_get_the_wal_of_the_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let aside = aside_of(&path);
        // As a start leaves it that died after the damaged file itself was renamed.
        for (file, text) in [
            (&aside, "damaged"),
            (&beside(&path, WHOLE), "whole"),
            (&beside(&path, "-wal"), "wal"),
        ] {
            std::fs::write(file, text).unwrap();
        }
        finish(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole");
        assert!(!beside(&path, "-wal").exists());
        assert_eq!(std::fs::read_to_string(beside(&aside, "-wal")).unwrap(), "wal");
    }
}
