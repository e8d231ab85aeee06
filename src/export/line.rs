//! The lines of an NDJSON export, as they are written and as they are read back.
//!
//! A file is one or more broadcasts, one behind the other: `broadcast`, then its events in order, then `end` with their number,
//! so that a file that was cut off is known. Times are RFC 3339, UTC, with milliseconds.

use chatting_actors::{moderation::Act, types::Role};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What `format` says in the files of this version.
pub const FORMAT: u32 = 1;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    /// A broadcast begins.
    Broadcast(Header),
    /// A message.
    Chat(Chat),
    /// An act of moderation.
    Moderation(Moderation),
    /// A broadcast is whole.
    End(End),
}

/// A broadcast's record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// [`FORMAT`].
    pub format: u32,
    pub id: Uuid,
    pub presenter_idx: i64,
    pub room_idx: Option<i64>,
    #[serde(with = "maybe_time")]
    pub reported_start: Option<i64>,
    /// `null` when it went on at the time of the export.
    #[serde(with = "maybe_time")]
    pub ended_at: Option<i64>,
    /// When it was exported, where it had not ended: as far as this file goes, it ended then.
    #[serde(default, with = "maybe_time", skip_serializing_if = "Option::is_none")]
    pub exported_at: Option<i64>,
    #[serde(with = "maybe_time")]
    pub corrected_start: Option<i64>,
    /// There and true when the broadcast is kept as evidence.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub legal_hold: bool,
    #[serde(with = "time")]
    pub seen_at: i64,
    pub version: u64,
    pub segments: Vec<SegmentLine>,
    pub spans: Vec<SpanLine>,
}

/// A stretch in which it was live.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentLine {
    #[serde(with = "time")]
    pub from: i64,
    #[serde(with = "maybe_time")]
    pub to: Option<i64>,
}

/// Its events in one numbering: those after `after`, up to `through`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpanLine {
    pub epoch: String,
    pub after: u64,
    pub through: Option<u64>,
}

/// What messages and acts have in common comes first in both.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    pub seq: u64,
    pub epoch: String,
    pub id: Uuid,
    #[serde(with = "time")]
    pub sent_at: i64,
    /// Milliseconds of the broadcast; not read back.
    pub offset_ms: i64,
    pub broadcast_id: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_idx: Option<i64>,
    pub user_idx: i64,
    pub nickname: String,
    pub role: Role,
    pub text: String,
    #[serde(default, with = "maybe_time", skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_by: Option<i64>,
}

/// An act: who did it, and what.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moderation {
    pub seq: u64,
    pub epoch: String,
    pub id: Uuid,
    #[serde(with = "time")]
    pub sent_at: i64,
    /// Milliseconds of the broadcast; not read back.
    pub offset_ms: i64,
    pub broadcast_id: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_idx: Option<i64>,
    pub by: i64,
    pub nickname: String,
    pub role: Role,
    pub act: Act,
}

/// The last line of a broadcast.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    pub broadcast_id: Uuid,
    /// How many events came before it.
    pub events: u64,
}

mod time {
    use chatting_actors::wire::v1::timestamp;
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(ms: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&timestamp(*ms))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = text
            .parse::<Timestamp>()
            .map_err(|_| D::Error::custom(format!("{text:?} is no time")))?;
        Ok(time.as_millisecond())
    }
}

mod maybe_time {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Time(#[serde(with = "super::time")] i64);

    #[expect(clippy::ref_option, reason = "serde gives it so")]
    pub fn serialize<S: Serializer>(ms: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
        match ms {
            Some(ms) => super::time::serialize(ms, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
        Ok(Option::<Time>::deserialize(deserializer)?.map(|time| time.0))
    }
}
