//! How the rows of a table are stored, as SQLite's own list of its columns tells.

use rusqlite::{Connection, OptionalExtension};

/// How the rows of a table are stored.
pub struct Stored {
    pub root: u32,
    /// In their order in a row: a table without rowids has its key first.
    pub columns: Vec<String>,
    /// The column that is the rowid. Every table of ours has one, or no rowids at all.
    pub rowid: Option<usize>,
}

impl Stored {
    /// `None` where there is no such table.
    pub fn of(connection: &Connection, table: &str) -> rusqlite::Result<Option<Self>> {
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

    /// The names of its columns in the order of their declaration.
    pub fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
        let columns = Self::info(connection, table)?;
        Ok(columns.into_iter().map(|column| column.name).collect())
    }

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

    /// Where in a row this column is.
    pub fn place(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|stored| stored == column)
    }
}

struct Column {
    name: String,
    /// Its place in the primary key, from 1; 0 where it is in none.
    key: i64,
    integer: bool,
}
