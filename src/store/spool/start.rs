//! Where a spool stands when its use begins, and the mark that it has.

use std::collections::HashMap;

use chatting_actors::{
    seams::{LastSeq, Pos, Spool, SpoolError},
    types::{Epoch, Event, Seq},
};
use rusqlite::{Connection, TransactionBehavior, params};

use super::{
    BACKEND, DAMAGED, FORMAT, SpoolSettings, SqliteSpool, freeing::beyond_limit, last_seqs::LastSeqs, meta,
    ours::backend, places, schema::INDEXES, set_meta,
};
use crate::store::{Durability, Left, SYNCHRONOUS};

/// Where it stands.
pub(super) struct Start {
    /// All numberings that its rows are of, by what they are called there.
    pub epochs: HashMap<i64, Epoch>,
    /// The one that goes on or begins.
    pub epoch: (i64, Epoch),
    /// The first row; 1 where there are none.
    pub first: Pos,
    /// Where the next row goes.
    pub next_pos: Pos,
    /// What is known of rooms.
    pub last_seqs: LastSeqs,
    /// The newest time that is known, in milliseconds since 1970; 0 where there is none.
    pub last_ms: i64,
    /// An epoch has begun.
    pub begun: bool,
    /// How the run before left it.
    pub left: Left,
    /// How many rooms are known.
    pub rooms_known: u64,
    /// The highest of their last seqs.
    pub furthest: Seq,
}

/// Reads where the spool stands and marks it as in use. That mark is synced under any durability: without it a machine that goes down
/// would leave a spool that seems to have been stopped cleanly, and numbers that were told would be given again in the same epoch.
pub(super) fn start(connection: &mut Connection, settings: &SpoolSettings, new: bool) -> rusqlite::Result<Start> {
    connection.pragma_update(None, SYNCHRONOUS, Durability::Disk.synchronous())?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    places::upgrade(&transaction)?;
    transaction.execute_batch(INDEXES)?;
    let clean: Option<i64> = meta(&transaction, "clean")?;
    let before: Option<String> = meta(&transaction, "durability")?;
    // Under `os` and `memory` a crash may have taken back numbers that were told: a new numbering begins.
    let lost = clean == Some(0) && before.as_deref() != Some(Durability::Disk.as_str());
    if new {
        set_meta(&transaction, "format", FORMAT)?;
        let salvaged = meta::<i64>(&transaction, "salvaged")?.is_some();
        set_meta(&transaction, "ask_store", i64::from(!settings.embedded || salvaged))?;
        set_meta(&transaction, "last_ms", 0)?;
    }
    if new || lost {
        begin_epoch(&transaction)?;
    }
    // What the store refused it may take now.
    transaction.execute("UPDATE records SET stored = 0 WHERE stored = 2 AND stored <> 1", [])?;
    set_meta(&transaction, "clean", 0)?;
    set_meta(&transaction, DAMAGED, 0)?;
    set_meta(&transaction, "durability", settings.durability.as_str())?;
    set_meta(&transaction, BACKEND, backend(settings.embedded))?;
    let epochs = epochs(&transaction)?;
    let n: i64 = meta(&transaction, "epoch")?.unwrap_or(0);
    let epoch = epochs.get(&n).cloned().ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let (mut last_seqs, how_far) = LastSeqs::read(&transaction)?;
    let (rooms_known, furthest) = last_seqs.how_far(&transaction)?;
    last_seqs.add_parked(&transaction)?;
    let start = Start {
        epochs,
        epoch: (n, epoch),
        first: how_far.rows.map_or(1, |(first, _)| first),
        next_pos: how_far.rows.map_or(1, |(_, last)| last + 1),
        last_seqs,
        last_ms: meta::<i64>(&transaction, "last_ms")?
            .unwrap_or(0)
            .max(how_far.newest_ms.unwrap_or(0)),
        begun: new || lost,
        left: match clean {
            None => Left::New,
            Some(0) => Left::Uncleanly(before.unwrap_or_else(|| "unknown".into())),
            Some(_) => Left::Cleanly,
        },
        rooms_known,
        furthest,
    };
    transaction.commit()?;
    connection.pragma_update(None, SYNCHRONOUS, settings.durability.synchronous())?;
    Ok(start)
}

/// Begins a new numbering, within a transaction; returns what it is called in rows, and its name.
fn begin_epoch(connection: &Connection) -> rusqlite::Result<(i64, Epoch)> {
    let epoch = format!("{:016x}", rand::random::<u64>());
    connection.execute("INSERT INTO epochs(epoch) VALUES (?1)", params![epoch])?;
    let n = connection.last_insert_rowid();
    set_meta(connection, "epoch", n)?;
    Ok((n, Epoch(epoch.into())))
}

impl SqliteSpool {
    /// The numbering that new events belong to.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch.1
    }

    /// The store has this event. Where it is of this spool's numbering and further than the spool knows of its room, the file is an old
    /// copy of itself that was put back, or its disk lost what it had synced: it would give numbers again that were given. So a new
    /// numbering begins, in which the store takes them, and rooms go on behind what the store tells of them, as those of a salvaged
    /// spool. Returns whether it does. To be asked before anything is numbered.
    pub fn begin_epoch_if_behind(&mut self, stored: &Event) -> Result<bool, SpoolError> {
        if stored.epoch != self.epoch.1 {
            return Ok(false);
        }
        if let LastSeq::Known(last) = self.last_seq(stored.presenter_idx)?
            && last >= stored.seq
        {
            return Ok(false);
        }
        let epoch = self.with(|this, connection| {
            // As a full spool must start, too.
            beyond_limit(connection, |connection| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let epoch = begin_epoch(&transaction)?;
                this.last_seqs.ask_for_all(&transaction)?;
                transaction.commit()?;
                Ok(epoch)
            })
        })?;
        self.epochs.insert(epoch.0, epoch.1.clone());
        self.epoch = epoch;
        Ok(true)
    }
}

/// The names of numberings, by what they are called in rows.
pub(in crate::store) fn epochs(connection: &Connection) -> rusqlite::Result<HashMap<i64, Epoch>> {
    let mut statement = connection.prepare("SELECT n, epoch FROM epochs")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, Epoch(row.get::<_, String>(1)?.into()))))?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::spool::schema::open_connection;

    #[test]
    fn the_mark_that_a_spool_is_in_use_is_synced_under_any_durability() {
        for durability in [Durability::Disk, Durability::Os, Durability::Memory] {
            let dir = tempfile::tempdir().unwrap();
            let settings = SpoolSettings {
                path: dir.path().join("chat.db"),
                durability,
                max_bytes: None,
                embedded: false,
            };
            let mut connection = open_connection(&settings).unwrap();
            // What it is when the mark is written.
            connection
                .execute_batch(
                    "CREATE TEMP TABLE seen(level);
                     CREATE TEMP TRIGGER marked AFTER INSERT ON main.meta WHEN NEW.key = 'clean' AND NEW.value = 0
                     BEGIN INSERT INTO seen SELECT synchronous FROM pragma_synchronous; END",
                )
                .unwrap();
            start(&mut connection, &settings, true).unwrap();
            let seen: i64 = connection
                .query_row("SELECT level FROM temp.seen", [], |row| row.get(0))
                .unwrap();
            let after: i64 = connection
                .pragma_query_value(None, SYNCHRONOUS, |row| row.get(0))
                .unwrap();
            let wanted = if durability == Durability::Disk { 2 } else { 1 };
            assert_eq!((seen, after), (2, wanted), "{durability:?}");
        }
    }
}
