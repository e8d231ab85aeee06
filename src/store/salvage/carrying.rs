//! One table after the other, from a copy of a damaged file into a new one.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, Row, params_from_iter, types::Value};

use super::{Carried, Missing, SalvageError, pages::Pages, stored::Stored};

/// How many rows the new file takes in one transaction.
const ROWS_AT_ONCE: u64 = 10_000;

/// From a copy of a damaged file into a new one.
pub struct Carrying<'a> {
    /// The copy.
    pub old: &'a Connection,
    /// Its name.
    pub copy: &'a Path,
    /// That of the new file.
    pub anew: &'a Path,
    /// The new file.
    pub new: &'a Connection,
}

impl Carrying<'_> {
    /// Carries one table; `key` is its primary key, by which SQLite reads it without sorting.
    pub fn table(&self, table: &str, key: &str) -> Result<Carried, SalvageError> {
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
    pub fn readable<T>(&self, read: rusqlite::Result<T>) -> Result<Option<T>, SalvageError> {
        match read {
            Err(error) if is_outside(&error) => Err(SalvageError::sqlite(self.copy, error)),
            read => Ok(read.ok()),
        }
    }
}

/// Whether the error is of the disk or the machine. What is read meanwhile tells nothing of the file.
fn is_outside(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::SystemIoFailure | ErrorCode::DiskFull | ErrorCode::OutOfMemory | ErrorCode::CannotOpen)
    )
}

fn values(row: &Row<'_>, width: usize) -> rusqlite::Result<Vec<Value>> {
    (0..width).map(|column| row.get(column)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::store::salvage::Salvaged;

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
