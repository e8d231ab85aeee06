//! How far rooms got.

use chatting_actors::{
    seams::Place,
    types::{PresenterIdx, Seq},
};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

const KEEP_PLACE: &str = "
INSERT OR REPLACE INTO places(presenter_idx, epoch, over, position, exact, room_idx, session_at, saved_at, legacy_from)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";

/// `exact` is what earlier versions know and go by: a legacy session goes on from `position`, and they leave `legacy_from` empty.
/// Where it goes on is a number of the epoch that it was kept in, and of no other.
const PLACE: &str = "
SELECT over, position, CASE WHEN epoch = ?2 THEN COALESCE(legacy_from, CASE WHEN exact THEN position END) END,
       room_idx, session_at, saved_at FROM places WHERE presenter_idx = ?1";

/// Adds what a file of an earlier version lacks, which ignores it.
pub(super) fn upgrade(connection: &Connection) -> rusqlite::Result<()> {
    if !connection.column_exists(None, "places", "legacy_from")? {
        connection.execute_batch("ALTER TABLE places ADD COLUMN legacy_from INTEGER")?;
    }
    Ok(())
}

pub(super) fn keep(connection: &mut Connection, epoch: i64, places: &[Place]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut statement = transaction.prepare_cached(KEEP_PLACE)?;
        for place in places {
            statement.execute(params![
                place.presenter.get(),
                epoch,
                place.over.0.cast_signed(),
                place.position.0.cast_signed(),
                place.legacy_from == Some(place.position),
                place.room_idx,
                place.session_at_ms,
                place.saved_at_ms,
                place.legacy_from.map(|from| from.0.cast_signed()),
            ])?;
        }
    }
    transaction.commit()
}

pub(super) fn read(connection: &Connection, epoch: i64, presenter: PresenterIdx) -> rusqlite::Result<Option<Place>> {
    // Numbers go on from one epoch to the next, so a place of an earlier one still tells what was missed.
    let mut statement = connection.prepare_cached(PLACE)?;
    let place = statement.query_row([presenter.get(), epoch], |row| {
        Ok(Place {
            presenter,
            over: Seq(row.get::<_, i64>(0)?.cast_unsigned()),
            position: Seq(row.get::<_, i64>(1)?.cast_unsigned()),
            legacy_from: row.get::<_, Option<i64>>(2)?.map(|from| Seq(from.cast_unsigned())),
            room_idx: row.get(3)?,
            session_at_ms: row.get(4)?,
            saved_at_ms: row.get(5)?,
        })
    });
    place.optional()
}
