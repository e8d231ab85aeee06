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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chatting_actors::seams::{Spool, SpoolFault};
    use rusqlite::Connection;

    use crate::store::{Durability, SpoolSettings, SqliteSpool};

    #[test]
    fn rule_01_nothing_of_a_commit_is_there_while_somebody_else_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let (mut spool, _) = SqliteSpool::open(SpoolSettings {
            path: path.clone(),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: false,
        })
        .unwrap();
        let at_once = |connection: &mut Connection| connection.busy_timeout(Duration::ZERO);
        spool.connection().run(at_once).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let faults = [
            spool.commit(&[]).unwrap_err().fault,
            spool.keep_broadcasts(&[]).unwrap_err().fault,
        ];
        assert_eq!(faults, [SpoolFault::NotBegun; 2]);
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(spool.commit(&[]).unwrap(), 1);
    }
}
