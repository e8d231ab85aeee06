//! Idempotency keys, in the order of time: each in the commit of its message, read once, at a start.

use std::collections::HashMap;

use chatting_actors::{
    idempotency::{KeyRow, Keyed},
    outcome::{Accepted, Delivery},
    types::{Epoch, Event, PresenterIdx, Seq, UserIdx},
};
use rusqlite::{Connection, params};
use uuid::Uuid;

const INSERT_KEY: &str = "
INSERT INTO keys(epoch, presenter_idx, seq, id, sent_at, user_idx, key, fingerprint)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

pub(super) fn insert(connection: &Connection, epoch: i64, event: &Event, keyed: &Keyed) -> rusqlite::Result<()> {
    connection.prepare_cached(INSERT_KEY)?.execute(params![
        epoch,
        event.presenter_idx.get(),
        event.seq.0.cast_signed(),
        &event.id.as_bytes()[..],
        event.sent_at_ms,
        event.chat.user_idx.get(),
        &*keyed.key,
        &keyed.fingerprint()[..],
    ])?;
    Ok(())
}

/// Those that are not older than that.
pub(super) fn read(
    connection: &Connection,
    epochs: &HashMap<i64, Epoch>,
    since_ms: i64,
) -> rusqlite::Result<Vec<KeyRow>> {
    // What is older is taken away when rows are freed, not by who reads.
    let mut statement = connection.prepare(
        "SELECT epoch, presenter_idx, seq, id, sent_at, user_idx, key, fingerprint FROM keys
         WHERE pos >= (SELECT pos FROM keys WHERE sent_at >= ?1 ORDER BY pos LIMIT 1) ORDER BY pos",
    )?;
    let rows = statement.query_map([since_ms], |found| {
        let bad = rusqlite::Error::QueryReturnedNoRows;
        let (Some(presenter), Some(user_idx), Some(epoch)) = (
            PresenterIdx::new(found.get(1)?),
            UserIdx::new(found.get(5)?),
            epochs.get(&found.get(0)?).cloned(),
        ) else {
            return Err(bad);
        };
        Ok(KeyRow {
            user_idx,
            keyed: Keyed::restored(user_idx, presenter, &found.get::<_, String>(6)?, found.get(7)?),
            accepted: Accepted {
                id: Uuid::from_bytes(found.get(3)?),
                seq: Seq(found.get::<_, i64>(2)?.cast_unsigned()),
                epoch,
                sent_at_ms: found.get(4)?,
                // Whether a session was there is not kept; the message has been numbered and logged.
                delivery: Delivery::Held,
            },
        })
    })?;
    // A key that cannot be read costs its sender a second message at worst; it must not cost everyone the start.
    Ok(rows
        .filter_map(|row| row.inspect_err(|error| log::error!("spool: a key: {error}")).ok())
        .collect())
}
