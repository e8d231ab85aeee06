//! Rows of the spool that the store has go; what it will never take is parked before.

use std::sync::Arc;

use chatting_actors::{
    clock::system_ms,
    moderation::Act,
    seams::Pos,
    types::{Epoch, Event, PresenterIdx},
};
use rusqlite::{Connection, OptionalExtension, ToSql, TransactionBehavior, params};

use super::{
    keep_last_ms, keys,
    last_seqs::LastSeqs,
    parked::Kept,
    schema::{MAX_PAGES, UNLIMITED},
};
use crate::store::row::{self, columns};

pub(super) const PARK: &str = concat!(
    "INSERT OR IGNORE INTO parked(pos, epoch, ",
    columns!(),
    ", reason, parked_at) SELECT pos, epoch, ",
    columns!(),
    ", ?2, ?3 FROM spool WHERE pos = ?1"
);

/// Rooms that have no row here any more: whose last seqs are kept in `rooms`, and whose are not, because the store was not asked yet.
type Ended = (Vec<PresenterIdx>, Vec<PresenterIdx>);

/// What goes.
pub(super) struct Freeing<'a> {
    /// Rows up to this one.
    pub through: Pos,
    /// Those of them that the store will never take, with why.
    pub parked: &'a [(Pos, Arc<Event>, String)],
    /// Idempotency keys that are older, some of them at a time.
    pub keys_before_ms: i64,
}

impl Freeing<'_> {
    /// Does it, in one transaction.
    pub fn run(&self, connection: &mut Connection, last_seqs: &LastSeqs, kept: &Kept) -> rusqlite::Result<Ended> {
        // Acts that the store has are parked, too, where they may cover what is there already.
        match !self.parked.is_empty() || any_parked(connection)? {
            true => beyond_limit(connection, |connection| self.free(connection, last_seqs, kept, true)),
            false => self.free(connection, last_seqs, kept, false),
        }
    }

    fn free(
        &self,
        connection: &mut Connection,
        last_seqs: &LastSeqs,
        counted: &Kept,
        parks: bool,
    ) -> rusqlite::Result<Ended> {
        let (mut kept, mut unasked) = (Vec::new(), Vec::new());
        let more_parked;
        let ended = last_seqs.ended_by(self.through);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let newest: Option<i64> = transaction
                .prepare_cached("SELECT sent_at FROM spool WHERE pos = ?1")?
                .query_row([self.through], |row| row.get(0))
                .optional()?;
            // What frees pages comes before what may need them: a spool at its limit must be able to free rows.
            keys::trim(&transaction, self.keys_before_ms, keys::FREED_AT_ONCE)?;
            let acts = match parks {
                true => covering(&transaction, self.through, self.parked)?,
                false => Vec::new(),
            };
            let aside = self.parked.iter().map(|(pos, _, reason)| (*pos, reason.as_str()));
            let aside: Vec<_> = aside.chain(acts.into_iter().map(|pos| (pos, COVERS))).collect();
            more_parked = free_rows(&transaction, self.through, &aside)?;
            let mut room = transaction.prepare_cached(last_seqs.keep())?;
            for (presenter, seq) in ended {
                let rows = room.execute(params![presenter.get(), seq.0.cast_signed()])?;
                let list = if rows > 0 { &mut kept } else { &mut unasked };
                list.push(presenter);
            }
            if let Some(newest) = newest {
                keep_last_ms(&transaction, newest)?;
            }
        }
        transaction.commit()?;
        counted.add_parked(more_parked);
        Ok((kept, unasked))
    }
}

/// What is said of an act that the store has and that stays here for what is parked. A part of the format: statements go by it, so
/// another text would make parked events of the acts in files that are there.
pub(super) const COVERS: &str = "stored; kept for the parked messages that it covers";

/// Whether anything is parked.
fn any_parked(connection: &Connection) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM parked)")?
        .query_row([], |row| row.get(0))
}

/// Acts among the rows up to `through` that the store has and that cover what is parked, of which it knows nothing: they stay with it.
/// What an act covers came before it, so it is parked already, or now. All others go: each that stays is read with every page of its
/// room.
fn covering(connection: &Connection, through: Pos, parked: &[(Pos, Arc<Event>, String)]) -> rusqlite::Result<Vec<Pos>> {
    let mut acts = connection.prepare_cached(concat!(
        "SELECT pos, ",
        columns!(),
        " FROM spool WHERE pos <= ?1 AND act IS NOT NULL"
    ))?;
    let mut found = Vec::new();
    let mut rows = acts.query([through])?;
    while let Some(row) = rows.next()? {
        let pos: Pos = row.get(0)?;
        if parked.iter().any(|(parked, ..)| *parked == pos) {
            continue;
        }
        // One that cannot be read covers nothing for whoever reads. Its numbering does not matter: an act covers what is of any.
        let Ok(at) = row::read(row, 1, Epoch("".into())) else {
            continue;
        };
        if let Some(act) = &at.act
            && (parked.iter().any(|(_, event, _)| act.covers(&at, event)) || covers_parked(connection, &at, act)?)
        {
            found.push(pos);
        }
    }
    Ok(found)
}

/// Whether anything that is parked already is covered by this act, numbered as `at`.
fn covers_parked(connection: &Connection, at: &Event, act: &Act) -> rusqlite::Result<bool> {
    macro_rules! parked {
        ($which:literal) => {
            concat!(
                "SELECT EXISTS (SELECT 1 FROM parked WHERE presenter_idx = ?1 AND id < ?2 AND act IS NULL AND ",
                $which,
                ")"
            )
        };
    }
    let (room, before) = (at.presenter_idx.get(), &at.id.as_bytes()[..]);
    let exists = |sql, asked: &[&dyn ToSql]| connection.prepare_cached(sql)?.query_row(asked, |row| row.get(0));
    match act {
        Act::Message { id, .. } => exists(parked!("id = ?3"), params![room, before, &id.as_bytes()[..]]),
        Act::User { user_idx } => exists(parked!("user_idx = ?3"), params![room, before, user_idx.get()]),
        Act::Span { from_ms, to_ms } => exists(
            parked!("sent_at BETWEEN ?3 AND ?4"),
            params![room, before, from_ms, to_ms],
        ),
    }
}

/// Runs what parks rows. A parked row takes more than it did in the spool, and its copy is there before it goes: a full spool of which
/// much is refused could not get rid of anything. So the file may grow here, by what it held; later commits still may not.
pub(super) fn beyond_limit<T>(
    connection: &mut Connection,
    work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let limit: i64 = connection.pragma_query_value(None, MAX_PAGES, |row| row.get(0))?;
    connection.pragma_update_and_check(None, MAX_PAGES, UNLIMITED, |_| Ok(()))?;
    let done = work(connection);
    connection.pragma_update_and_check(None, MAX_PAGES, limit, |_| Ok(()))?;
    done
}

/// Deletes the rows up to `through`; those to be parked are copied before they go, and go last. Returns how many it parked, without acts
/// that only cover others.
fn free_rows(connection: &Connection, through: Pos, parked: &[(Pos, &str)]) -> rusqlite::Result<usize> {
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
