//! Rows of the spool that the store has go; what it will never take is parked before.

use std::sync::Arc;

use chatting_actors::{clock::system_ms, seams::Pos, types::Event};
use rusqlite::{Connection, OptionalExtension, params};

use crate::store::row::columns;

pub(super) const PARK: &str = concat!(
    "INSERT OR IGNORE INTO parked(pos, epoch, ",
    columns!(),
    ", reason, parked_at) SELECT pos, epoch, ",
    columns!(),
    ", ?2, ?3 FROM spool WHERE pos = ?1"
);

/// Rows are in the order of time, so what is old is found from the front, without an index.
pub(super) fn trim_keys(connection: &Connection, before_ms: i64) -> rusqlite::Result<()> {
    let mut newest = connection.prepare_cached("SELECT pos FROM keys WHERE sent_at >= ?1 ORDER BY pos LIMIT 1")?;
    let kept: Option<Pos> = newest.query_row([before_ms], |row| row.get(0)).optional()?;
    let mut delete = connection.prepare_cached("DELETE FROM keys WHERE pos < ?1")?;
    delete.execute([kept.unwrap_or(Pos::MAX)])?;
    Ok(())
}

/// What is said of an act that the store has and that stays here for what is parked. A part of the format: statements go by it, so
/// another text would make parked events of the acts in files that are there.
pub(super) const COVERS: &str = "stored; kept for the parked messages that it covers";

/// Whether anything is parked.
pub(super) fn any_parked(connection: &Connection) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM parked)")?
        .query_row([], |row| row.get(0))
}

/// Acts among the rows up to `through` that the store has and that may cover what is parked, of which it knows nothing: they
/// stay with it.
pub(super) fn covering(
    connection: &Connection,
    through: Pos,
    parked: &[(Pos, Arc<Event>, String)],
) -> rusqlite::Result<Vec<Pos>> {
    let mut acts = connection.prepare_cached(
        "SELECT pos, presenter_idx, EXISTS (
           SELECT 1 FROM parked WHERE parked.presenter_idx = spool.presenter_idx AND parked.act IS NULL)
         FROM spool WHERE pos <= ?1 AND act IS NOT NULL",
    )?;
    let mut found = Vec::new();
    let mut rows = acts.query([through])?;
    while let Some(row) = rows.next()? {
        let (pos, presenter, before): (Pos, i64, bool) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let now = parked
            .iter()
            .any(|(_, event, _)| event.act.is_none() && event.presenter_idx.get() == presenter);
        if (before || now) && parked.iter().all(|(parked, ..)| *parked != pos) {
            found.push(pos);
        }
    }
    Ok(found)
}

/// Runs what parks rows. A parked row takes more than it did in the spool, and its copy is there before it goes: a full spool of which
/// much is refused could not get rid of anything. So the file may grow here, by what it held; later commits still may not.
pub(super) fn beyond_limit<T>(
    connection: &mut Connection,
    work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    const PAGES: &str = "max_page_count";
    let limit: i64 = connection.pragma_query_value(None, PAGES, |row| row.get(0))?;
    connection.pragma_update_and_check(None, PAGES, i64::from(u32::MAX - 1), |_| Ok(()))?;
    let done = work(connection);
    connection.pragma_update_and_check(None, PAGES, limit, |_| Ok(()))?;
    done
}

/// Deletes the rows up to `through`; those to be parked are copied before they go, and go last. Returns how many it parked, without acts
/// that only cover others.
pub(super) fn free_rows(connection: &Connection, through: Pos, parked: &[(Pos, &str)]) -> rusqlite::Result<usize> {
    let mut delete = connection.prepare_cached("DELETE FROM spool WHERE pos >= ?1 AND pos < ?2")?;
    let mut kept: Vec<Pos> = parked.iter().map(|(pos, _)| *pos).collect();
    kept.sort_unstable();
    let mut from = Pos::MIN;
    for pos in kept.into_iter().chain([through + 1]) {
        delete.execute([from, pos])?;
        from = pos + 1;
    }
    let mut park = connection.prepare_cached(PARK)?;
    let mut count = 0;
    for (pos, reason) in parked {
        let new = park.execute(params![pos, reason, system_ms()])?;
        delete.execute([*pos, pos + 1])?;
        count += if *reason == COVERS { 0 } else { new };
    }
    Ok(count)
}
