//! What history, replay and moderation ask the embedded log for.

use std::sync::Arc;

use chatting_actors::{
    seams::StoreError,
    types::{Epoch, Event, PresenterIdx, Seq, UserIdx},
};
use futures_util::future::{BoxFuture, FutureExt};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, TransactionBehavior, params};
use uuid::Uuid;

use super::{
    SqliteStore,
    acts::{MARKED_AT_ONCE, mark_these},
    broadcast, count, epochs, readable,
};
use crate::store::{Archive, Deleted, First, Listed, Logged, Scan, StoredBroadcast, archive::Search, row};

impl Archive for SqliteStore {
    fn is_empty(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.run(|connection| {
            connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM chatting_log)", [], |row| row.get(0))
        })
    }

    fn epochs(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Vec<Epoch>, StoreError>> {
        self.look(move |connection| epochs(connection, presenter))
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<Vec<Logged>, StoreError>> {
        self.look(move |connection| {
            let mut statement = connection.prepare(&scan_sql(&scan))?;
            let (room, after, through) = (
                scan.presenter.get(),
                scan.after.0.cast_signed(),
                i64::try_from(scan.through.0).unwrap_or(i64::MAX),
            );
            let (epoch, limit, user) = (&*scan.epoch.0, count(scan.limit), scan.user.map(UserIdx::get));
            let mut asked: Vec<&dyn ToSql> = vec![&room, &epoch, &after, &through, &limit];
            if user.is_some() {
                asked.push(&user);
            }
            let rows = statement.query_map(asked.as_slice(), |found| logged(found, 0, scan.epoch.clone()))?;
            rows.collect()
        })
    }

    fn first_from<'a>(
        &'a self,
        presenter: PresenterIdx,
        epoch: &'a Epoch,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<First, StoreError>> {
        let epoch = epoch.clone();
        self.look(move |connection| first_from(connection, presenter, &epoch, at_ms))
    }

    fn acts(
        &self,
        rooms: Vec<PresenterIdx>,
        after: Uuid,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        self.look(move |connection| {
            let mut found = Vec::new();
            for room in rooms {
                found.extend(acts(connection, room, after, limit)?);
            }
            found.sort_by_key(|act| act.id);
            found.truncate(limit);
            Ok(found)
        })
    }

    fn find(&self, id: Uuid) -> BoxFuture<'_, Result<Option<Logged>, StoreError>> {
        self.look(move |connection| {
            let sql = format!(
                "SELECT epoch, {}, deleted_at, deleted_by FROM chatting_log WHERE id = ?1",
                row::COLUMNS
            );
            let found = connection.query_row(&sql, [&id.as_bytes()[..]], |found| {
                logged(found, 1, Epoch(found.get::<_, String>(0)?.into()))
            });
            found.optional()
        })
    }

    fn broadcasts(
        &self,
        presenter: PresenterIdx,
        before: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Listed, StoreError>> {
        self.look(move |connection| {
            let mut statement = connection.prepare(
                "SELECT record, corrected_start, legal_hold, id FROM broadcasts
                 WHERE presenter_idx = ?1 AND id < ?2 ORDER BY id DESC",
            )?;
            let before = before.unwrap_or(Uuid::max());
            let asked = params![presenter.get(), &before.as_bytes()[..]];
            let (mut listed, mut rows) = (Listed::default(), statement.query(asked)?);
            while listed.broadcasts.len() < limit
                && let Some(row) = rows.next()?
            {
                listed.add(readable(row));
            }
            Ok(listed)
        })
    }

    fn broadcast(&self, id: Uuid) -> BoxFuture<'_, Result<Option<StoredBroadcast>, StoreError>> {
        self.look(move |connection| {
            let sql = "SELECT record, corrected_start, legal_hold FROM broadcasts WHERE id = ?1";
            connection.query_row(sql, [&id.as_bytes()[..]], broadcast).optional()
        })
    }

    fn mark_covered(&self, act: Arc<Event>, messages: Vec<Uuid>) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        async move {
            for some in messages.chunks(MARKED_AT_ONCE) {
                let (act, some) = (Arc::clone(&act), some.to_vec());
                self.run(move |connection| mark_these(connection, &act, &some)).await?;
            }
            Ok(None)
        }
        .boxed()
    }

    fn mark_deleted(&self, marks: Vec<(Uuid, Deleted)>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let sql = "UPDATE chatting_log SET deleted_at = ?2, deleted_by = ?3 WHERE id = ?1";
                let mut update = transaction.prepare_cached(sql)?;
                for (id, deleted) in &marks {
                    update.execute(params![&id.as_bytes()[..], deleted.at_ms, deleted.by.get()])?;
                }
            }
            transaction.commit()
        })
    }
}

pub(super) fn first_from(
    connection: &Connection,
    presenter: PresenterIdx,
    epoch: &Epoch,
    at_ms: i64,
) -> rusqlite::Result<First> {
    let place = |row: &Row<'_>| Ok((Seq(row.get::<_, i64>(0)?.cast_unsigned()), row.get(1)?));
    let mut last = connection.prepare_cached(
        "SELECT seq, sent_at FROM chatting_log WHERE presenter_idx = ?1 AND epoch = ?2 ORDER BY seq DESC LIMIT 1",
    )?;
    let mut next = connection.prepare_cached(
        "SELECT seq, sent_at FROM chatting_log WHERE presenter_idx = ?1 AND epoch = ?2 AND seq > ?3 ORDER BY seq LIMIT 1",
    )?;
    let last = last.query_row(params![presenter.get(), &*epoch.0], place).optional()?;
    let mut search = Search::new(last, at_ms);
    while let Some(after) = search.question() {
        let asked = params![presenter.get(), &*epoch.0, after.0.cast_signed()];
        search.answer(next.query_row(asked, place).optional()?);
    }
    Ok(search.found())
}

/// Acts of one room after `after`, in the order of their ids.
fn acts(connection: &Connection, presenter: PresenterIdx, after: Uuid, limit: usize) -> rusqlite::Result<Vec<Event>> {
    let sql = format!(
        "SELECT epoch, {} FROM chatting_log INDEXED BY chatting_log_acts
         WHERE presenter_idx = ?1 AND id > ?2 AND act IS NOT NULL ORDER BY id LIMIT ?3",
        row::COLUMNS
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let asked = params![presenter.get(), &after.as_bytes()[..], count(limit)];
    let rows = statement.query_map(asked, |found| {
        row::read(found, 1, Epoch(found.get::<_, String>(0)?.into()))
    })?;
    rows.collect()
}

/// An event whose columns begin at `from`, behind them those that tell of its deletion.
fn logged(row: &Row<'_>, from: usize, epoch: Epoch) -> rusqlite::Result<Logged> {
    let (at_ms, by): (Option<i64>, Option<i64>) = (row.get(from + row::COUNT)?, row.get(from + row::COUNT + 1)?);
    let by = by.and_then(UserIdx::new);
    Ok(Logged {
        event: row::read(row, from, epoch)?,
        deleted: at_ms.zip(by).map(|(at_ms, by)| Deleted { at_ms, by }),
    })
}

/// The statement of a [`Scan`], for its parameters: room, epoch, after, through, limit, user.
fn scan_sql(scan: &Scan) -> String {
    let (by, user) = match scan.user {
        Some(_) => (" INDEXED BY chatting_log_by_user", " AND user_idx = ?6"),
        None => ("", ""),
    };
    let order = if scan.newest_first { "DESC" } else { "ASC" };
    format!(
        "SELECT {}, deleted_at, deleted_by FROM chatting_log{by}
         WHERE presenter_idx = ?1 AND epoch = ?2 AND seq > ?3 AND seq <= ?4{user} ORDER BY seq {order} LIMIT ?5",
        row::COLUMNS
    )
}
