//! An event as a row of SQLite, the same in the spool and in the embedded log.

use std::sync::Arc;

use chatting_actors::{
    idempotency::Keyed,
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
};
use rusqlite::{Row, types::Type};
use uuid::Uuid;

use super::keeping::Trace;

/// The columns of an event in the order that [`bind`] and [`read`] use, without the epoch, which each table keeps its own way.
/// A macro, so that statements can be put together of it at compile time.
macro_rules! columns {
    () => {
        "presenter_idx, seq, id, sent_at, room_idx, user_idx, nickname, message, role, idempotency_key, broadcast_id, act"
    };
}
pub(super) use columns;

/// As [`columns!`].
pub const COLUMNS: &str = columns!();

/// How many they are.
pub const COUNT: usize = 12;

/// The same of a file of format 1, which had neither broadcasts nor acts.
pub const COLUMNS_OF_FORMAT_1: &str =
    "presenter_idx, seq, id, sent_at, room_idx, user_idx, nickname, message, role, idempotency_key, NULL, NULL";

/// What a file of format 1 lacks.
pub const SINCE_FORMAT_1: [&str; 2] = ["broadcast_id BLOB", "act TEXT"];

/// Binds an event's columns from parameter `from` (1-based) on.
pub fn bind(statement: &mut rusqlite::Statement<'_>, from: usize, event: &Event) -> rusqlite::Result<()> {
    statement.raw_bind_parameter(from, event.presenter_idx.get())?;
    statement.raw_bind_parameter(from + 1, event.seq.0.cast_signed())?;
    statement.raw_bind_parameter(from + 2, &event.id.as_bytes()[..])?;
    statement.raw_bind_parameter(from + 3, event.sent_at_ms)?;
    statement.raw_bind_parameter(from + 4, event.room_idx)?;
    statement.raw_bind_parameter(from + 5, event.chat.user_idx.get())?;
    statement.raw_bind_parameter(from + 6, event.chat.nickname.as_str())?;
    statement.raw_bind_parameter(from + 7, event.chat.text.as_str())?;
    statement.raw_bind_parameter(from + 8, event.chat.role.as_str())?;
    statement.raw_bind_parameter(from + 9, event.keyed.as_ref().map(|keyed| &*keyed.key))?;
    statement.raw_bind_parameter(from + 10, event.broadcast_id.as_ref().map(|id| &id.as_bytes()[..]))?;
    // A struct of texts and numbers cannot fail to serialize.
    let act = event
        .act
        .as_ref()
        .map(|act| serde_json::to_string(&**act).unwrap_or_default());
    statement.raw_bind_parameter(from + 11, act)
}

/// Reads an event whose columns begin at `from` (0-based).
pub fn read(row: &Row<'_>, from: usize, epoch: Epoch) -> rusqlite::Result<Event> {
    let bad = |column: usize, kind: Type, what: &'static str| {
        rusqlite::Error::FromSqlConversionFailure(from + column, kind, what.into())
    };
    let id: [u8; 16] = row.get(from + 2)?;
    let role: String = row.get(from + 8)?;
    let nickname: String = row.get(from + 6)?;
    let text: String = row.get(from + 7)?;
    let key: Option<String> = row.get(from + 9)?;
    let broadcast_id: Option<[u8; 16]> = row.get(from + 10)?;
    let act: Option<String> = row.get(from + 11)?;
    let act = act.map(|act| serde_json::from_str(&act)).transpose();
    let presenter_idx =
        PresenterIdx::new(row.get(from)?).ok_or_else(|| bad(0, Type::Integer, "a negative presenter"))?;
    let user_idx = UserIdx::new(row.get(from + 5)?).ok_or_else(|| bad(5, Type::Integer, "a negative user"))?;
    Ok(Event {
        id: Uuid::from_bytes(id),
        presenter_idx,
        epoch,
        seq: Seq(row.get::<_, i64>(from + 1)?.cast_unsigned()),
        sent_at_ms: row.get(from + 3)?,
        room_idx: row.get(from + 4)?,
        broadcast_id: broadcast_id.map(Uuid::from_bytes),
        act: act
            .map_err(|_| bad(11, Type::Text, "an act that cannot be read"))?
            .map(Arc::new),
        keyed: key.map(|key| Keyed::new(user_idx, presenter_idx, &key, &text)),
        chat: ChatMessage {
            user_idx,
            nickname: Nickname::new(&nickname, usize::MAX).map_err(|_| bad(6, Type::Text, "nickname"))?,
            text: MessageText::maybe_empty(text, usize::MAX).map_err(|_| bad(7, Type::Text, "message"))?,
            role: Role::parse(&role).ok_or_else(|| bad(8, Type::Text, "an unknown role"))?,
        },
    })
}

/// Reads what names an event, from the columns `id, presenter_idx, epoch, seq, broadcast_id`, where the epoch is its name.
pub fn trace(row: &Row<'_>) -> rusqlite::Result<Trace> {
    let bad = || rusqlite::Error::IntegralValueOutOfRange(1, -1);
    Ok(Trace {
        id: Uuid::from_bytes(row.get(0)?),
        presenter: PresenterIdx::new(row.get(1)?).ok_or_else(bad)?,
        epoch: Epoch(row.get::<_, String>(2)?.into()),
        seq: Seq(row.get::<_, i64>(3)?.cast_unsigned()),
        broadcast_id: row.get::<_, Option<[u8; 16]>>(4)?.map(Uuid::from_bytes),
    })
}
