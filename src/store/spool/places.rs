//! How far rooms got.

use chatting_actors::{
    seams::Place,
    types::{PresenterIdx, Seq},
};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

const KEEP_PLACE: &str = "
INSERT OR REPLACE INTO places(presenter_idx, epoch, over, position, exact, room_idx, session_at, saved_at)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

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
                place.exact,
                place.room_idx,
                place.session_at_ms,
                place.saved_at_ms,
            ])?;
        }
    }
    transaction.commit()
}

pub(super) fn read(connection: &Connection, epoch: i64, presenter: PresenterIdx) -> rusqlite::Result<Option<Place>> {
    // Numbers go on from one epoch to the next, so a place of an earlier one still tells what was missed.
    let mut statement = connection.prepare_cached(
        "SELECT over, position, exact AND epoch = ?2, room_idx, session_at, saved_at FROM places
         WHERE presenter_idx = ?1",
    )?;
    let place = statement.query_row([presenter.get(), epoch], |row| {
        Ok(Place {
            presenter,
            over: Seq(row.get::<_, i64>(0)?.cast_unsigned()),
            position: Seq(row.get::<_, i64>(1)?.cast_unsigned()),
            exact: row.get(2)?,
            room_idx: row.get(3)?,
            session_at_ms: row.get(4)?,
            saved_at_ms: row.get(5)?,
        })
    });
    place.optional()
}
