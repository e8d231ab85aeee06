//! A damaged spool: set aside whole, and what can be read of it carried into a new one.
//!
//! Nothing of the damaged file is changed: it is renamed with its WAL, and read through a copy. SQLite reads each table of that; where
//! it meets damage, the pages of the table are gone through one by one (`pages`), so that only what is on the damaged ones is missing.
//! What fails for another reason, as a full disk, fails the salvage, and everything stays as it was. The new spool begins a new
//! epoch, and every room asks the store for its last seq before anything is numbered (rule 3).

mod pages;
mod report;

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use chatting_actors::clock::system_ms;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params_from_iter, types::Value};

use self::pages::Pages;
pub use self::report::{Carried, Missing, SalvageError, Salvaged};
use super::{lock::file_of, open_at};

/// The tables that a spool lives by; and the others of its file, which it can do without or that are the embedded log's.
pub const TABLES: [&str; 7] = ["meta", "epochs", "rooms", "spool", "keys", "parked", "records"];
pub const OTHER_TABLES: [&str; 3] = ["places", "chatting_log", "broadcasts"];

/// How many rows the new file takes in one transaction.
const ROWS_AT_ONCE: u64 = 10_000;

/// What the copy of a damaged file is called, and a new file that is not whole yet.
const COPY: &str = ".reading";
pub const UNFINISHED: &str = ".anew";

/// Whether the error says that the file itself is bad, rather than the disk, a lock or a right.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// Checks the tables that the spool itself lives by; with `all` the others, too. Done after an unclean stop only: it
/// reads all of them.
pub fn check(connection: &Connection, all: bool) -> rusqlite::Result<()> {
    let others: &[&str] = if all { &OTHER_TABLES } else { &[] };
    for table in TABLES.iter().chain(others) {
        if !connection.table_exists(None, *table)? {
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

/// Removes what a salvage left that was killed, behind [`finish`]: it holds chat, and nobody looks for it.
pub fn clear(path: &Path) {
    for left in [COPY, UNFINISHED, WHOLE] {
        remove(&beside(path, left));
    }
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

/// How many bytes a salvage of this file may take on its disk: a copy of it, into which its WAL goes, and a new file.
pub fn room_for(path: &Path) -> u64 {
    2 * bytes(path) + 3 * bytes(&beside(path, "-wal"))
}

/// How many bytes the file has, its WAL among them.
pub fn size_of(path: &Path) -> u64 {
    bytes(path) + bytes(&beside(path, "-wal"))
}

fn bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

/// Carries what can be read of `damaged` into the new, empty spool `anew`, in transactions of which the last is left open.
pub fn carry_over(damaged: &Path, anew: &Path, new: &Connection, embedded: bool) -> Result<Salvaged, SalvageError> {
    let copy = beside(damaged, COPY);
    // One that a start left which was killed has a WAL of its own.
    remove(&copy);
    let copy = scopeguard::guard(copy, |copy| remove(&copy));
    copy_with_wal(damaged, &copy).map_err(|error| SalvageError::file(&copy, error))?;
    let to_new = |error| SalvageError::sqlite(anew, error);
    let mut salvaged = Salvaged::default();
    let old = match read_copy(&copy) {
        Err(error) if is_damage(&error) => {
            salvaged.unread = Some(error);
            return Ok(salvaged);
        }
        old => old.map_err(|error| SalvageError::sqlite(&copy, error))?,
    };
    let carrying = Carrying {
        old: &old,
        copy: &copy,
        anew,
        new,
    };
    salvaged.epochs = carrying.table("epochs", "n")?;
    salvaged.events = carrying.table("spool", "pos")?;
    salvaged.keys = carrying.table("keys", "pos")?;
    salvaged.parked = carrying.table("parked", "id")?;
    salvaged.records = carrying.table("records", "id")?;
    if embedded {
        new.execute_batch(super::sqlite::SCHEMA).map_err(to_new)?;
        salvaged.log = carrying.table("chatting_log", "presenter_idx, epoch, seq")?;
        salvaged.broadcasts = carrying.table("broadcasts", "id")?;
    }
    name_epochs(new).map_err(to_new)?;
    Ok(salvaged)
}

/// Opens the copy, with its WAL written into it. An error that is no damage says nothing of what can be read.
fn read_copy(copy: &Path) -> rusqlite::Result<Connection> {
    if let Err(error) = lengthen(copy) {
        // Then SQLite says what it makes of it.
        log::debug!("spool: {} is left as long as it is: {error}", copy.display());
    }
    let old = open_at(copy, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    old.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(old)
}

/// A file without a WAL that is shorter than its first page says, as one whose copying was cut short, is no database to SQLite. With empty
/// pages in place of those that are gone it is a damaged one, and what it has of whole pages can be read. The numbers: the file
/// format's header, <https://www.sqlite.org/fileformat2.html#the_database_header>.
fn lengthen(copy: &Path) -> io::Result<()> {
    if std::fs::metadata(beside(copy, "-wal")).is_ok_and(|wal| wal.len() > 0) {
        return Ok(());
    }
    let mut header = [0; 100];
    let mut file = File::options().read(true).write(true).open(copy)?;
    file.read_exact(&mut header)?;
    let word = |at: usize| {
        u64::from(u32::from_be_bytes([
            header[at],
            header[at + 1],
            header[at + 2],
            header[at + 3],
        ]))
    };
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    // The number of pages counts only where the file's last change set it.
    let pages = if word(24) == word(92) { word(28) } else { 0 };
    if file.metadata()?.len() < pages * page {
        file.set_len(pages * page)?;
    }
    Ok(())
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

/// Whether the error is of the disk or the machine. What is read meanwhile tells nothing of the file.
fn is_outside(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::SystemIoFailure | ErrorCode::DiskFull | ErrorCode::OutOfMemory | ErrorCode::CannotOpen)
    )
}

/// From a copy of a damaged file into a new one.
struct Carrying<'a> {
    old: &'a Connection,
    copy: &'a Path,
    anew: &'a Path,
    new: &'a Connection,
}

impl Carrying<'_> {
    /// Carries one table; `key` is its primary key, by which SQLite reads it without sorting.
    fn table(&self, table: &str, key: &str) -> Result<Carried, SalvageError> {
        let to_new = |error| SalvageError::sqlite(self.anew, error);
        // A file of an older format lacks some, and they may be empty.
        let stored = self.readable(Stored::of(self.old, table))?.flatten();
        let Some(stored) = stored else {
            return Ok(Carried::default());
        };
        let mut columns = Stored::columns(self.new, table).map_err(to_new)?;
        columns.retain(|column| stored.columns.contains(column));
        let marks = vec!["?"; columns.len()].join(", ");
        let select = columns.join(", ");
        let insert = format!("INSERT OR IGNORE INTO {table}({select}) VALUES ({marks})");
        let mut insert = self.new.prepare(&insert).map_err(to_new)?;
        let mut rows = 0;
        let mut keep = |values: Vec<Value>| -> Result<(), SalvageError> {
            match insert.execute(params_from_iter(values)) {
                // A row that the new file will not have (a NULL where none may be) is damage too.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => return Ok(()),
                Ok(0) => return Ok(()),
                done => done.map_err(to_new)?,
            };
            rows += 1;
            if rows % ROWS_AT_ONCE == 0 {
                // Else all of it would wait in the WAL, and take its room a second time.
                self.new.execute_batch("COMMIT; BEGIN IMMEDIATE").map_err(to_new)?;
            }
            Ok(())
        };
        let sql = format!("SELECT {select} FROM {table} ORDER BY {key}");
        let missing = match self.read_to_damage(&sql, &mut keep)? {
            Some(missing) => missing,
            None => {
                let places: Vec<_> = columns.iter().map(|column| stored.place(column)).collect();
                let pages = Pages::open(self.copy)?;
                pages.rows(stored.root, stored.rowid.is_some(), &mut |rowid, mut values| {
                    if let (Some(place), Some(value)) = (stored.rowid, rowid) {
                        values.resize(values.len().max(place + 1), Value::Null);
                        values[place] = Value::Integer(value);
                    }
                    // Columns that were added later are not in rows that were there before.
                    let value = |place: &Option<usize>| Some(values.get((*place)?)?.clone());
                    keep(places.iter().map(|place| value(place).unwrap_or(Value::Null)).collect())
                })?
            }
        };
        Ok(Carried { rows, missing })
    }

    /// Hands rows to `keep`. `None` where SQLite met damage before the end.
    fn read_to_damage(
        &self,
        sql: &str,
        keep: &mut dyn FnMut(Vec<Value>) -> Result<(), SalvageError>,
    ) -> Result<Option<Missing>, SalvageError> {
        let Some(mut statement) = self.readable(self.old.prepare(sql))? else {
            return Ok(None);
        };
        let width = statement.column_count();
        let Some(mut rows) = self.readable(statement.query([]))? else {
            return Ok(None);
        };
        let mut missing = Missing::default();
        loop {
            match self.readable(rows.next())? {
                None => return Ok(None),
                Some(None) => return Ok(Some(missing)),
                Some(Some(row)) => match values(row, width) {
                    Ok(values) => keep(values)?,
                    // Text that is none.
                    Err(_) => missing.rows += 1,
                },
            }
        }
    }

    /// What was read of the copy; `None` where damage forbids it.
    fn readable<T>(&self, read: rusqlite::Result<T>) -> Result<Option<T>, SalvageError> {
        match read {
            Err(error) if is_outside(&error) => Err(SalvageError::sqlite(self.copy, error)),
            read => Ok(read.ok()),
        }
    }
}

/// How the rows of a table are stored.
struct Stored {
    root: u32,
    /// In their order in a row: a table without rowids has its key first.
    columns: Vec<String>,
    /// The column that is the rowid. Every table of ours has one, or no rowids at all.
    rowid: Option<usize>,
}

impl Stored {
    /// `None` where there is no such table.
    fn of(connection: &Connection, table: &str) -> rusqlite::Result<Option<Self>> {
        let root = "SELECT rootpage FROM sqlite_schema WHERE type = 'table' AND name = ?1";
        let Some(root) = connection.query_row(root, [table], |row| row.get(0)).optional()? else {
            return Ok(None);
        };
        let mut columns = Self::info(connection, table)?;
        let keys = columns.iter().filter(|column| column.key > 0).count();
        let is_rowid = |column: &Column| column.key > 0 && keys == 1 && column.integer;
        let rowid = columns.iter().position(is_rowid);
        if rowid.is_none() {
            columns.sort_by_key(|column| if column.key > 0 { column.key } else { i64::MAX });
        }
        Ok(Some(Self {
            root,
            columns: columns.into_iter().map(|column| column.name).collect(),
            rowid,
        }))
    }

    fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
        let columns = Self::info(connection, table)?;
        Ok(columns.into_iter().map(|column| column.name).collect())
    }

    /// The columns in the order of their declaration.
    fn info(connection: &Connection, table: &str) -> rusqlite::Result<Vec<Column>> {
        let sql = "SELECT name, pk, type = 'INTEGER' FROM pragma_table_info(?1) ORDER BY cid";
        let mut statement = connection.prepare(sql)?;
        let columns = statement.query_map([table], |row| {
            Ok(Column {
                name: row.get(0)?,
                key: row.get(1)?,
                integer: row.get(2)?,
            })
        })?;
        columns.collect()
    }

    fn place(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|stored| stored == column)
    }
}

struct Column {
    name: String,
    /// Its place in the primary key, from 1; 0 where it is in none.
    key: i64,
    integer: bool,
}

fn values(row: &Row<'_>, width: usize) -> rusqlite::Result<Vec<Value>> {
    (0..width).map(|column| row.get(column)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
    /// A file with 12,000 rows, some of which are longer than a page.
    fn filled(path: &Path, schema: &str) -> Connection {
        let connection = Connection::open(path).unwrap();
        let fill = "INSERT INTO t WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 12000)
            SELECT n * 1000 - 2000000, CAST(printf('%08d', n * 7919 % 12000) AS BLOB), n / 3.0,
              printf('%0*d', IIF(n % 70, n % 300, n + 4096), n), NULL FROM n";
        connection.execute_batch(&format!("{schema}; {fill}")).unwrap();
        connection
    }

    #[test]
    fn of_a_damaged_table_no_more_is_missing_than_its_damaged_pages_had_and_that_is_told() {
        for (schema, key) in [
            (
                "CREATE TABLE t(n INTEGER PRIMARY KEY, id BLOB, x REAL, text TEXT, empty)",
                "n",
            ),
            (
                "CREATE TABLE t(n INTEGER, id BLOB, x REAL, text TEXT, empty, PRIMARY KEY(id, n)) WITHOUT ROWID",
                "id, n",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("old.db");
            let old = filled(&path, schema);
            let sql = "SELECT pageno, ncell FROM dbstat WHERE name = 't' AND pagetype = 'leaf' ORDER BY path";
            let mut statement = old.prepare(sql).unwrap();
            let leaves = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            let leaves: Vec<(u32, u32)> = leaves.map(Result::unwrap).collect();
            drop(statement);
            drop(old);
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            let mut lost = 0;
            for n in [1, leaves.len() / 2, leaves.len() - 2] {
                let (page, rows) = leaves[n];
                lost += u64::from(rows);
                std::os::unix::fs::FileExt::write_all_at(&file, &[0xa5; 4096], u64::from(page - 1) * 4096).unwrap();
            }
            let old = Connection::open(&path).unwrap();
            let new = Connection::open_in_memory().unwrap();
            new.execute_batch(&format!("{schema}; BEGIN IMMEDIATE")).unwrap();
            let carrying = Carrying {
                old: &old,
                copy: &path,
                anew: Path::new(":memory:"),
                new: &new,
            };
            let Carried { rows, missing } = carrying.table("t", key).unwrap();
            assert_eq!(
                (rows, missing.pages, missing.at_least),
                (12_000 - lost, 3, false),
                "{key}"
            );
            assert!(missing.rows > 0 && missing.rows < 20 * lost, "{missing:?}, {lost}");
            // What came is what was there.
            let whole = filled(&dir.path().join("whole.db"), schema);
            let all = |connection: &Connection| {
                let mut statement = connection.prepare("SELECT * FROM t ORDER BY n").unwrap();
                let rows = statement
                    .query_map([], |row| Ok((row.get(0)?, values(row, 5)?)))
                    .unwrap();
                rows.map(Result::unwrap).collect::<BTreeMap<i64, _>>()
            };
            let whole = all(&whole);
            assert!(all(&new).iter().all(|(n, row)| whole.get(n) == Some(row)), "{key}");
            let salvaged = Salvaged {
                keys: Carried { rows, missing },
                ..Salvaged::default()
            };
            let told = format!("lost: about {} keys (damaged pages: 3)", missing.rows);
            assert!(salvaged.to_string().ends_with(&told), "{salvaged}");
        }
    }
}
