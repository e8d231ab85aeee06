//! Events and broadcasts as documents of MongoDB (docs/MOVING.md, "The log").

use std::sync::Arc;

use chatting_actors::{
    broadcast::{Broadcast, Segment, Span},
    idempotency::Keyed,
    moderation::Act,
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
};
use mongodb::bson::{Bson, DateTime, Document, RawDocument, Uuid as BsonUuid, doc};
use uuid::Uuid;

use super::fields::Fields;
use crate::store::{Deleted, Logged, StoredBroadcast};

pub(super) fn bson_uuid(id: Uuid) -> BsonUuid {
    BsonUuid::from_bytes(id.into_bytes())
}

/// How many bytes an event is as a document, near enough for limits.
pub(super) fn size(event: &Event) -> usize {
    320 + event.chat.text.as_str().len() + event.chat.nickname.as_str().len()
}

/// Writes an event as it is stored (docs/MOVING.md, "The log").
pub(super) fn write(fields: &mut Fields, event: &Event) {
    let chat = &event.chat;
    fields.uuid("_id", event.id);
    fields.text("kind", event.kind());
    fields.number("presenter_idx", event.presenter_idx.get());
    fields.text("epoch", &event.epoch.0);
    fields.number("seq", event.seq.0.cast_signed());
    fields.number("user_idx", chat.user_idx.get());
    fields.text("nickname", chat.nickname.as_str());
    fields.text("message", chat.text.as_str());
    fields.text("role", chat.role.as_str());
    fields.time("sent_at", event.sent_at_ms);
    if let Some(room_idx) = event.room_idx {
        fields.number("room_idx", room_idx);
    }
    if let Some(keyed) = &event.keyed {
        fields.text("idempotency_key", &keyed.key);
    }
    if let Some(broadcast_id) = event.broadcast_id {
        fields.uuid("broadcast_id", broadcast_id);
    }
    if let Some(act) = &event.act {
        fields.document("act", |fields| write_act(fields, act));
    }
    if event.is_erased() {
        fields.time("deleted_at", event.sent_at_ms);
        fields.number("deleted_by", UserIdx::ERASED.get());
    }
}

fn write_act(fields: &mut Fields, act: &Act) {
    match act {
        Act::Message { id, seq } => {
            fields.text("scope", "message");
            fields.uuid("id", *id);
            fields.number("seq", seq.0.cast_signed());
        }
        Act::User { user_idx } => {
            fields.text("scope", "user");
            fields.number("user_idx", user_idx.get());
        }
        Act::Span { from_ms, to_ms } => {
            fields.text("scope", "span");
            fields.time("from", *from_ms);
            fields.time("to", *to_ms);
        }
    }
}

fn act(document: &RawDocument) -> Option<Act> {
    let time = |key| Some(document.get_datetime(key).ok()?.timestamp_millis());
    Some(match document.get_str("scope").ok()? {
        "message" => Act::Message {
            id: Uuid::from_slice(document.get_binary("id").ok()?.bytes).ok()?,
            seq: Seq(document.get_i64("seq").ok()?.cast_unsigned()),
        },
        "user" => Act::User {
            user_idx: UserIdx::new(document.get_i64("user_idx").ok()?)?,
        },
        "span" => Act::Span {
            from_ms: time("from")?,
            to_ms: time("to")?,
        },
        _ => return None,
    })
}

fn bad(what: &str) -> String {
    format!("a document of the log has a bad {what}")
}

/// When an event was sent, in milliseconds since 1970, whatever else of it can be read.
pub(super) fn sent_at_ms(document: &RawDocument) -> Result<i64, String> {
    let sent_at = document.get_datetime("sent_at").map_err(|_| bad("sent_at"))?;
    Ok(sent_at.timestamp_millis())
}

/// Reads what [`write()`] wrote; the error says what is wrong with it.
pub(super) fn event(document: &RawDocument) -> Result<Event, String> {
    let number = |key: &str| document.get_i64(key).map_err(|_| bad(key));
    let text = |key: &str| document.get_str(key).map_err(|_| bad(key));
    let id = document.get_binary("_id").map_err(|_| bad("_id"))?;
    let presenter_idx = PresenterIdx::new(number("presenter_idx")?).ok_or_else(|| bad("presenter_idx"))?;
    let user_idx = UserIdx::new(number("user_idx")?).ok_or_else(|| bad("user_idx"))?;
    let message = text("message")?;
    let key = document.get_str("idempotency_key").ok();
    Ok(Event {
        id: Uuid::from_slice(id.bytes).map_err(|_| bad("_id"))?,
        presenter_idx,
        epoch: Epoch(text("epoch")?.into()),
        seq: Seq(number("seq")?.cast_unsigned()),
        sent_at_ms: sent_at_ms(document)?,
        room_idx: document.get_i64("room_idx").ok(),
        broadcast_id: match document.get_binary("broadcast_id") {
            Ok(id) => Some(Uuid::from_slice(id.bytes).map_err(|_| bad("broadcast_id"))?),
            Err(_) => None,
        },
        act: match document.get_document("act") {
            Ok(found) => Some(Arc::new(act(found).ok_or_else(|| bad("act"))?)),
            Err(_) => None,
        },
        keyed: key.map(|key| Keyed::new(user_idx, presenter_idx, key, message)),
        chat: ChatMessage {
            user_idx,
            nickname: Nickname::new(text("nickname")?, usize::MAX).map_err(|_| bad("nickname"))?,
            text: MessageText::maybe_empty(message.to_owned(), usize::MAX).map_err(|_| bad("message"))?,
            role: Role::parse(text("role")?).ok_or_else(|| bad("role"))?,
        },
    })
}

/// The same, with what is known of its deletion.
pub(super) fn logged(document: &RawDocument) -> Result<Logged, String> {
    let at = document.get_datetime("deleted_at").ok();
    let by = document.get_i64("deleted_by").ok().and_then(UserIdx::new);
    Ok(Logged {
        event: event(document)?,
        deleted: at.zip(by).map(|(at, by)| Deleted {
            at_ms: at.timestamp_millis(),
            by,
        }),
    })
}

fn time(ms: i64) -> Bson {
    DateTime::from_millis(ms).into()
}

fn optional(value: Option<impl Into<Bson>>) -> Bson {
    value.map_or(Bson::Null, Into::into)
}

/// A broadcast's fields but `_id` and what staff corrected, which is never overwritten.
pub(super) fn broadcast_fields(broadcast: &Broadcast) -> Document {
    let segments = broadcast.segments.iter().map(|segment| {
        doc! { "from": time(segment.from_ms), "to": optional(segment.to_ms.map(DateTime::from_millis)) }
    });
    let spans = broadcast.spans.iter().map(|span| {
        let through = span.through.map(|seq| seq.0.cast_signed());
        doc! { "epoch": &*span.epoch.0, "after": span.after.0.cast_signed(), "through": optional(through) }
    });
    doc! {
        "presenter_idx": broadcast.presenter.get(),
        "room_idx": optional(broadcast.room_idx),
        "reported_start": optional(broadcast.reported_start_ms.map(DateTime::from_millis)),
        "started_at": time(broadcast.started_at_ms()),
        "ended_at": optional(broadcast.ended_at_ms.map(DateTime::from_millis)),
        "segments": segments.collect::<Vec<_>>(),
        "spans": spans.collect::<Vec<_>>(),
        "seen_at": time(broadcast.seen_at_ms),
        "version": broadcast.version.cast_signed(),
    }
}

/// The id of a document of ours, whatever else of it can be read.
pub(super) fn document_id(document: &Document) -> Option<Uuid> {
    match document.get("_id") {
        Some(Bson::Binary(binary)) => Some(Uuid::from_bytes(binary.to_uuid().ok()?.bytes())),
        _ => None,
    }
}

/// Reads what [`broadcast_fields`] wrote; the error says what is wrong with it.
pub(super) fn broadcast(document: &Document) -> Result<StoredBroadcast, String> {
    let bad = |what: &str| format!("a document of the broadcasts has a bad {what}");
    let ms = |document: &Document, key: &str| document.get_datetime(key).ok().map(|time| time.timestamp_millis());
    let list = |key: &str| -> Result<Vec<Document>, String> {
        let found = document.get_array(key).map_err(|_| bad(key))?;
        let documents = found
            .iter()
            .map(|one| one.as_document().cloned().ok_or_else(|| bad(key)));
        documents.collect()
    };
    let presenter = document.get_i64("presenter_idx").ok().and_then(PresenterIdx::new);
    let segments = list("segments")?;
    let segments = segments.iter().map(|segment| {
        Ok(Segment {
            from_ms: ms(segment, "from").ok_or_else(|| bad("segments"))?,
            to_ms: ms(segment, "to"),
        })
    });
    let spans = list("spans")?;
    let spans = spans.iter().map(|span| {
        Ok(Span {
            epoch: Epoch(span.get_str("epoch").map_err(|_| bad("spans"))?.into()),
            after: Seq(span.get_i64("after").map_err(|_| bad("spans"))?.cast_unsigned()),
            through: span.get_i64("through").ok().map(|seq| Seq(seq.cast_unsigned())),
        })
    });
    Ok(StoredBroadcast {
        corrected_start_ms: ms(document, "corrected_start"),
        legal_hold: document.get_bool("legal_hold").unwrap_or(false),
        broadcast: Broadcast {
            id: document_id(document).ok_or_else(|| bad("_id"))?,
            presenter: presenter.ok_or_else(|| bad("presenter_idx"))?,
            room_idx: document.get_i64("room_idx").ok(),
            reported_start_ms: ms(document, "reported_start"),
            ended_at_ms: ms(document, "ended_at"),
            segments: segments.collect::<Result<_, String>>()?,
            spans: spans.collect::<Result<_, String>>()?,
            seen_at_ms: ms(document, "seen_at").ok_or_else(|| bad("seen_at"))?,
            version: document.get_i64("version").map_err(|_| bad("version"))?.cast_unsigned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_the_driver_reads() {
        let event = Event {
            id: Uuid::from_u128(7),
            presenter_idx: PresenterIdx::new(12).unwrap(),
            epoch: Epoch("0123456789abcdef".into()),
            seq: Seq(3),
            sent_at_ms: 1_767_225_600_001,
            room_idx: Some(99),
            broadcast_id: Some(Uuid::from_u128(8)),
            act: None,
            chat: ChatMessage {
                user_idx: UserIdx::new(5).unwrap(),
                nickname: Nickname::new("김", 64).unwrap(),
                text: MessageText::new("안녕 \0 \"x\"".into(), 64).unwrap(),
                role: Role::Moderator,
            },
            keyed: None,
        };
        let keyed = Keyed::new(
            event.chat.user_idx,
            event.presenter_idx,
            "key",
            event.chat.text.as_str(),
        );
        let acts = [
            Act::Message {
                id: Uuid::from_u128(9),
                seq: Seq(1),
            },
            Act::User {
                user_idx: UserIdx::new(6).unwrap(),
            },
            Act::Span { from_ms: 1, to_ms: 2 },
        ];
        let mut events = vec![
            event.clone(),
            Event {
                keyed: Some(keyed),
                ..event.clone()
            },
        ];
        events.push(Event {
            room_idx: None,
            broadcast_id: None,
            ..event.clone()
        });
        events.extend(acts.map(|act| Event {
            act: Some(Arc::new(act)),
            ..event.clone()
        }));
        let document = |event: &Event| {
            let mut fields = Fields::with_capacity(size(event));
            write(&mut fields, event);
            fields.finish()
        };
        for event in events {
            let whole = Document::try_from(&*document(&event)).unwrap();
            assert_eq!(
                whole.get("role"),
                Some(&Bson::from("moderator")),
                "every field is read: {whole:?}"
            );
            assert_eq!(super::event(&document(&event)).unwrap(), event);
        }
    }
}
