//! A transaction of the commits' hot path.

use rusqlite::Connection;

/// A transaction that writes. It is rolled back where it is not committed. rusqlite's own has SQLite read `BEGIN` and `COMMIT`
/// anew each time.
pub(super) struct Writing<'a> {
    connection: &'a Connection,
}

impl<'a> Writing<'a> {
    /// Begins one, in which nobody else writes.
    pub fn begin(connection: &'a Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self { connection })
    }

    /// What was written stands.
    pub fn commit(self) -> rusqlite::Result<()> {
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
