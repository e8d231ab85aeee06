//! Records of broadcasts that have not ended, or that the store does not have as they are.

use std::{collections::HashMap, time::Instant};

use chatting_actors::{broadcast::Broadcast, seldom::Seldom, types::PresenterIdx};
use rusqlite::{Connection, TransactionBehavior, params, params_from_iter, types::Value};
use uuid::Uuid;

/// That a broadcast was seen to be live again is for the spool alone: told of every open one, it would keep the store busy.
const KEEP_RECORD: &str = "
INSERT INTO records(id, presenter_idx, version, ended, stored, record) VALUES (?1, ?2, ?3, ?4, 0, ?5)
ON CONFLICT(id) DO UPDATE SET version = ?3, ended = ?4, record = ?5,
  stored = stored * (json_remove(record, '$.version', '$.seen_at_ms') = json_remove(?5, '$.version', '$.seen_at_ms'))
WHERE version < ?3";

const ADOPT_RECORD: &str = "
INSERT OR IGNORE INTO records(id, presenter_idx, version, ended, stored, record) VALUES (?1, ?2, ?3, ?4, 1, ?5)";

/// Which of the broadcasts that are kept here.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) enum Which {
    /// Those that have not ended.
    Open,
    /// Those that the store does not have as they are, but for what it refused.
    Unstored,
    /// A room's.
    OfRoom(PresenterIdx),
    /// The one with this id.
    One(Uuid),
}

impl Which {
    /// What is asked of a row, and the second parameter of that.
    fn sql(self) -> (&'static str, Option<Value>) {
        match self {
            Self::Open => ("NOT ended", None),
            // As the index `records_unstored` has it.
            Self::Unstored => ("stored = 0 AND stored <> 1", None),
            Self::OfRoom(presenter) => ("presenter_idx = ?2", Some(presenter.get().into())),
            Self::One(id) => ("id = ?2", Some(id.as_bytes().to_vec().into())),
        }
    }
}

/// Broadcasts that were asked for.
#[derive(Debug, Default)]
pub(in crate::store) struct Found {
    /// The oldest first.
    pub broadcasts: Vec<Broadcast>,
    /// Those that cannot be read.
    pub unreadable: Vec<Uuid>,
}

/// Broadcasts that are kept here. One that cannot be read is told of and left out: it must not cost the others.
pub(in crate::store) fn read(connection: &Connection, which: Which, limit: usize) -> rusqlite::Result<Found> {
    let (condition, of) = which.sql();
    let sql = format!("SELECT record, id FROM records WHERE {condition} ORDER BY id LIMIT ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let limit = Value::from(i64::try_from(limit).unwrap_or(i64::MAX));
    let asked = params_from_iter(std::iter::once(limit).chain(of));
    let mut rows = statement.query(asked)?;
    let mut found = Found::default();
    while let Some(row) = rows.next()? {
        let record = row.get::<_, String>(0).map_err(|error| error.to_string());
        match record.and_then(|record| serde_json::from_str(&record).map_err(|error| error.to_string())) {
            Ok(broadcast) => found.broadcasts.push(broadcast),
            Err(error) => {
                let id = row.get(1).map(Uuid::from_bytes).unwrap_or_default();
                tell(id, &error);
                found.unreadable.push(id);
            }
        }
    }
    Ok(found)
}

fn tell(id: Uuid, error: &str) {
    // Anyone who may read can ask as often as they like.
    static TOLD: Seldom = Seldom::new();
    if let Some(more) = TOLD.due(Instant::now()) {
        log::error!("spool: broadcast {id} cannot be read: {error}{more}");
    }
}

/// Keeps what has changed; a late write never undoes a newer one. Returns whether the store lacks one of them as it is here now.
pub(super) fn keep(connection: &mut Connection, broadcasts: &[Broadcast]) -> rusqlite::Result<bool> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut lacks_one = false;
    {
        let mut statement = transaction.prepare_cached(KEEP_RECORD)?;
        // Also of one that did not change: it may be here because of an attempt that failed behind its commit.
        let mut lacks = transaction.prepare_cached("SELECT stored = 0 FROM records WHERE id = ?1")?;
        for broadcast in broadcasts {
            let id = &broadcast.id.as_bytes()[..];
            statement.execute(params![
                id,
                broadcast.presenter.get(),
                broadcast.version.cast_signed(),
                broadcast.ended_at_ms.is_some(),
                // A struct of texts and numbers cannot fail to serialize.
                serde_json::to_string(broadcast).unwrap_or_default(),
            ])?;
            lacks_one |= lacks.query_row([id], |row| row.get::<_, bool>(0))?;
        }
    }
    transaction.commit()?;
    Ok(lacks_one)
}

/// All that are kept here, by their ids, with their versions; the greatest where that cannot be read.
pub(super) fn versions(connection: &Connection) -> rusqlite::Result<HashMap<Uuid, u64>> {
    let mut statement = connection.prepare(
        "SELECT id, IIF(typeof(version) = 'integer', version, 9223372036854775807) FROM records
         WHERE typeof(id) = 'blob' AND length(id) = 16",
    )?;
    let versions = statement.query_map([], |row| {
        Ok((Uuid::from_bytes(row.get(0)?), row.get::<_, i64>(1)?.cast_unsigned()))
    })?;
    versions.collect()
}

/// Keeps those that are not here, as the store has them; returns which were not.
pub(super) fn adopt(connection: &mut Connection, broadcasts: &[Broadcast]) -> rusqlite::Result<Vec<Broadcast>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut new = Vec::new();
    {
        let mut statement = transaction.prepare_cached(ADOPT_RECORD)?;
        for broadcast in broadcasts {
            let added = statement.execute(params![
                &broadcast.id.as_bytes()[..],
                broadcast.presenter.get(),
                broadcast.version.cast_signed(),
                broadcast.ended_at_ms.is_some(),
                // A struct of texts and numbers cannot fail to serialize.
                serde_json::to_string(broadcast).unwrap_or_default(),
            ])?;
            if added > 0 {
                new.push(broadcast.clone());
            }
        }
    }
    transaction.commit()?;
    Ok(new)
}

/// The store has these as they are, and refused those.
pub(super) fn stored(connection: &mut Connection, stored: &[Broadcast], refused: &[Broadcast]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut over = transaction.prepare_cached("DELETE FROM records WHERE id = ?1 AND version = ?2 AND ended")?;
        let mut open = transaction.prepare_cached("UPDATE records SET stored = 1 WHERE id = ?1 AND version = ?2")?;
        for broadcast in stored {
            let which = params![&broadcast.id.as_bytes()[..], broadcast.version.cast_signed()];
            over.execute(which)?;
            open.execute(which)?;
        }
        let mut no = transaction.prepare_cached("UPDATE records SET stored = 2 WHERE id = ?1 AND version = ?2")?;
        for broadcast in refused {
            no.execute(params![&broadcast.id.as_bytes()[..], broadcast.version.cast_signed()])?;
        }
    }
    transaction.commit()
}
