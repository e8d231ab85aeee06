//! Events and broadcasts as documents of MongoDB (design.md, "Storage").

use std::sync::Arc;

use chatting_actors::{
    broadcast::{Broadcast, Segment, Span},
    idempotency::Keyed,
    moderation::Act,
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
};
use mongodb::bson::{
    Binary, Bson, DateTime, Document, RawDocument, RawDocumentBuf, Uuid as BsonUuid, doc, rawdoc, spec::BinarySubtype,
};
use uuid::Uuid;

use crate::store::{Deleted, Logged, StoredBroadcast};

pub(super) fn bson_uuid(id: Uuid) -> BsonUuid {
    BsonUuid::from_bytes(id.into_bytes())
}

/// An event as it is stored (design.md, "Storage").
pub(super) fn document(event: &Event) -> RawDocumentBuf {
    let mut document = rawdoc! {
        "_id": binary(event.id),
        "kind": event.kind(),
        "presenter_idx": event.presenter_idx.get(),
        "epoch": &*event.epoch.0,
        "seq": event.seq.0.cast_signed(),
        "user_idx": event.chat.user_idx.get(),
        "nickname": event.chat.nickname.as_str(),
        "message": event.chat.text.as_str(),
        "role": event.chat.role.as_str(),
        "sent_at": DateTime::from_millis(event.sent_at_ms),
    };
    if let Some(room_idx) = event.room_idx {
        document.append("room_idx", room_idx);
    }
    if let Some(keyed) = &event.keyed {
        document.append("idempotency_key", &*keyed.key);
    }
    if let Some(broadcast_id) = &event.broadcast_id {
        document.append("broadcast_id", binary(*broadcast_id));
    }
    if let Some(act) = &event.act {
        document.append("act", act_document(act));
    }
    if event.is_erased() {
        document.append("deleted_at", DateTime::from_millis(event.sent_at_ms));
        document.append("deleted_by", UserIdx::ERASED.get());
    }
    document
}

fn binary(id: Uuid) -> Binary {
    Binary {
        subtype: BinarySubtype::Uuid,
        bytes: id.as_bytes().to_vec(),
    }
}

fn act_document(act: &Act) -> RawDocumentBuf {
    match act {
        Act::Message { id, seq } => rawdoc! { "scope": "message", "id": binary(*id), "seq": seq.0.cast_signed() },
        Act::User { user_idx } => rawdoc! { "scope": "user", "user_idx": user_idx.get() },
        Act::Span { from_ms, to_ms } => rawdoc! {
            "scope": "span",
            "from": DateTime::from_millis(*from_ms),
            "to": DateTime::from_millis(*to_ms),
        },
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

/// Reads what [`document`] wrote; the error says what is wrong with it.
pub(super) fn event(document: &RawDocument) -> Result<Event, String> {
    let bad = |what: &str| format!("a document of the log has a bad {what}");
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
        sent_at_ms: document
            .get_datetime("sent_at")
            .map_err(|_| bad("sent_at"))?
            .timestamp_millis(),
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
    let id: BsonUuid = match document.get("_id") {
        Some(Bson::Binary(binary)) => binary.to_uuid().map_err(|_| bad("_id"))?,
        _ => return Err(bad("_id")),
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
            id: Uuid::from_bytes(id.bytes()),
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
