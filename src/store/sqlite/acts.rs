//! Acts of moderation on the tables: what they cover is marked, never removed.

use std::sync::Arc;

use chatting_actors::{
    moderation::Act,
    seams::StoreError,
    types::{Epoch, Event, Seq, UserIdx},
};
use rusqlite::{Connection, OptionalExtension, ToSql, TransactionBehavior};
use uuid::Uuid;

use super::{SqliteStore, archive::first_from, epochs};

/// Messages that an act marks in one transaction: commits wait for each of them.
pub(super) const MARKED_AT_ONCE: usize = 500;

impl SqliteStore {
    /// Marks what an act of moderation covers and no act did before. Piece by piece, because commits wait for each of them and an
    /// act may cover a whole broadcast.
    pub(super) async fn apply(&self, at: Arc<Event>, act: Arc<Act>) -> Result<(), StoreError> {
        if let Act::Message { id, .. } = *act {
            return self.run(move |connection| mark_these(connection, &at, &[id])).await;
        }
        let of = Arc::clone(&at);
        for named in self.look(move |connection| named(connection, &of, &act)).await? {
            let named = Arc::new(named);
            let mut from = Some(named.from);
            while let Some(first) = from {
                let (at, named) = (Arc::clone(&at), Arc::clone(&named));
                from = self
                    .run(move |connection| mark_some(connection, &at, &named, first))
                    .await?;
            }
        }
        Ok(())
    }
}

/// Which messages of one numbering an act names.
struct Named {
    epoch: Epoch,
    user: Option<UserIdx>,
    /// From this one on,
    from: Seq,
    /// and before this one.
    beyond: Seq,
}

/// What an act names, but for one message.
fn named(connection: &Connection, at: &Event, act: &Act) -> rusqlite::Result<Vec<Named>> {
    let mut all = Vec::new();
    for epoch in epochs(connection, at.presenter_idx)? {
        let (user, from, beyond) = match act {
            Act::Message { .. } => return Ok(Vec::new()),
            Act::User { user_idx } => (Some(*user_idx), Seq(0), Seq(i64::MAX.cast_unsigned())),
            Act::Span { from_ms, to_ms } => (
                None,
                first_from(connection, at.presenter_idx, &epoch, *from_ms)?.seq,
                first_from(connection, at.presenter_idx, &epoch, to_ms.saturating_add(1))?.seq,
            ),
        };
        all.push(Named {
            epoch,
            user,
            from,
            beyond,
        });
    }
    Ok(all)
}

/// Marks what an act covers and no act did before, among the messages that `which` tells.
fn mark(connection: &Connection, at: &Event, by: &str, which: &str, parameters: &[&dyn ToSql]) -> rusqlite::Result<()> {
    let sql = format!(
        "UPDATE chatting_log {by} SET deleted_at = ?1, deleted_by = ?2
         WHERE {which} AND id < ?3 AND kind = 'chat' AND deleted_at IS NULL"
    );
    let (id, by) = (&at.id.as_bytes()[..], at.chat.user_idx.get());
    let mut all: Vec<&dyn ToSql> = vec![&at.sent_at_ms, &by, &id];
    all.extend(parameters);
    connection.prepare_cached(&sql)?.execute(all.as_slice())?;
    Ok(())
}

/// The same of these messages.
pub(super) fn mark_these(connection: &mut Connection, at: &Event, messages: &[Uuid]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let room = at.presenter_idx.get();
    for id in messages {
        let one = "id = ?4 AND presenter_idx = ?5";
        mark(&transaction, at, "", one, &[&&id.as_bytes()[..], &room])?;
    }
    transaction.commit()
}

/// The same of at most [`MARKED_AT_ONCE`] of those that an act names; returns where to go on.
fn mark_some(connection: &Connection, at: &Event, named: &Named, from: Seq) -> rusqlite::Result<Option<Seq>> {
    let user = if named.user.is_some() { " AND user_idx = ?5" } else { "" };
    let sql = format!(
        "SELECT seq FROM chatting_log WHERE presenter_idx = ?1 AND epoch = ?2 AND seq >= ?3 AND seq < ?4{user}
         ORDER BY seq LIMIT 1 OFFSET {MARKED_AT_ONCE}"
    );
    let (room, user) = (at.presenter_idx.get(), named.user.map(UserIdx::get));
    let (epoch, from, beyond) = (&*named.epoch.0, from.0.cast_signed(), named.beyond.0.cast_signed());
    let mut asked: Vec<&dyn ToSql> = vec![&room, &epoch, &from, &beyond];
    asked.extend(user.as_ref().map(|user| user as &dyn ToSql));
    let mut step = connection.prepare_cached(&sql)?;
    let next: Option<i64> = step.query_row(asked.as_slice(), |row| row.get(0)).optional()?;
    let until = next.unwrap_or(beyond);
    let which = "presenter_idx = ?4 AND epoch = ?5 AND seq >= ?6 AND seq < ?7";
    match &user {
        Some(user) => mark(
            connection,
            at,
            // Left to choose, it would look through all that others said between two messages of this user.
            "INDEXED BY chatting_log_by_user",
            &format!("{which} AND user_idx = ?8"),
            &[&room, &epoch, &from, &until, user],
        )?,
        None => mark(connection, at, "", which, &[&room, &epoch, &from, &until])?,
    }
    Ok(next.map(|next| Seq(next.cast_unsigned())))
}
