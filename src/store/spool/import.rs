//! What a spool knows of an import of a log that was exported elsewhere, which goes past it into the store.

use chatting_actors::{
    seams::SpoolError,
    types::{PresenterIdx, Seq},
};
use rusqlite::{TransactionBehavior, params};

use super::{SqliteSpool, keep_last_ms, last_seqs::KEEP, meta, set_meta};

impl SqliteSpool {
    /// What the import that has begun and not ended is known by.
    pub fn importing(&mut self) -> Result<Option<String>, SpoolError> {
        self.with(|_, connection| meta(connection, "importing"))
    }

    /// Begins one: remembers what it is known by, and that these rooms go on behind these numbers and after that time (rules 3
    /// and 5), whether or not it comes to its end. One transaction.
    pub fn begin_import(
        &mut self,
        known_by: &str,
        rooms: impl IntoIterator<Item = (PresenterIdx, Seq)>,
        newest_ms: i64,
    ) -> Result<(), SpoolError> {
        self.with(|_, connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut room = transaction.prepare_cached(KEEP)?;
                for (presenter, last) in rooms {
                    room.execute(params![presenter.get(), last.0.cast_signed()])?;
                }
            }
            keep_last_ms(&transaction, newest_ms)?;
            set_meta(&transaction, "importing", known_by)?;
            transaction.commit()
        })
    }

    /// It has come to its end.
    pub fn end_import(&mut self) -> Result<(), SpoolError> {
        self.with(|_, connection| {
            connection.execute("DELETE FROM meta WHERE key = 'importing'", [])?;
            Ok(())
        })
    }
}
