//! The words of the project as types. Values are parsed into these at the edge and trusted inside.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{idempotency::Keyed, moderation::Act};

/// A presenter's user number, `0..=i64::MAX`. It names the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PresenterIdx(i64);

impl PresenterIdx {
    /// Takes a number from outside; `None` when it is negative.
    pub fn new(value: i64) -> Option<Self> {
        (value >= 0).then_some(Self(value))
    }

    /// The number as it stands in JSON, in the store and in the room server's questions.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for PresenterIdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A user's number, `0..=i64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserIdx(i64);

impl UserIdx {
    /// Who stands where a user was erased; nobody's number.
    pub const ERASED: Self = Self(i64::MAX);

    /// Takes a number from outside; `None` when it is negative.
    pub fn new(value: i64) -> Option<Self> {
        (value >= 0).then_some(Self(value))
    }

    /// The number as it stands in JSON and in the store.
    pub fn get(self) -> i64 {
        self.0
    }

    /// Whether this user is the presenter of that room (rule 18).
    pub fn presents(self, room: PresenterIdx) -> bool {
        self.0 == room.0
    }
}

impl fmt::Display for UserIdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event's place in its room: 1, 2, 3 … without holes. 0 stands for "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The place after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one numbering: one per spool (docs/PROTOCOL.md).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub Arc<str>);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a user is in a room. Never taken from a request's body (rule 18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Anyone with a token.
    #[default]
    Viewer,
    /// The streamer whose room it is.
    Presenter,
    /// Staff of the rooms that the token names.
    Moderator,
    /// Staff of every room.
    Operator,
}

impl Role {
    /// The name in JSON, in tokens and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Presenter => "presenter",
            Self::Moderator => "moderator",
            Self::Operator => "operator",
        }
    }

    /// The inverse of [`Role::as_str`]; `None` for any other name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "viewer" => Some(Self::Viewer),
            "presenter" => Some(Self::Presenter),
            "moderator" => Some(Self::Moderator),
            "operator" => Some(Self::Operator),
            _ => None,
        }
    }
}

/// Why a nickname or a text was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextError {
    /// It has no character where one is needed.
    Empty,
    /// It has more characters than this many.
    TooLong(usize),
}

/// A name shown beside a message: 0 to 64 characters (rule 20; the limit is a setting).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nickname(Arc<str>);

impl Nickname {
    /// Takes a name of at most `max_chars` Unicode scalar values.
    pub fn new(name: &str, max_chars: usize) -> Result<Self, TextError> {
        if longer_than(name, max_chars) {
            return Err(TextError::TooLong(max_chars));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text of one chat line (rule 20).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MessageText(Box<str>);

impl MessageText {
    /// Takes a text of at most `max_chars` Unicode scalar values, which may be empty (legacy).
    pub fn maybe_empty(text: String, max_chars: usize) -> Result<Self, TextError> {
        if longer_than(&text, max_chars) {
            return Err(TextError::TooLong(max_chars));
        }
        Ok(Self(text.into_boxed_str()))
    }

    /// Takes a text of 1 to `max_chars` Unicode scalar values (v1).
    pub fn new(text: String, max_chars: usize) -> Result<Self, TextError> {
        if text.is_empty() {
            return Err(TextError::Empty);
        }
        Self::maybe_empty(text, max_chars)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn longer_than(text: &str, max_chars: usize) -> bool {
    // A text of n bytes has at most n characters, so most texts are not counted at all.
    text.len() > max_chars && text.chars().count() > max_chars
}

/// One chat line as its sender gave it: everything but its place in the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who sent it.
    pub user_idx: UserIdx,
    /// The sender's name at that time.
    pub nickname: Nickname,
    /// What was said.
    pub text: MessageText,
    /// What the sender was in the room.
    pub role: Role,
}

impl ChatMessage {
    /// What one event with this line costs a queue, in bytes, near enough for limits.
    pub fn cost(&self) -> usize {
        128 + self.text.as_str().len() + self.nickname.as_str().len()
    }
}

impl Event {
    /// What it is, as the log names it: `chat` or `moderation`.
    pub fn kind(&self) -> &'static str {
        if self.act.is_some() { "moderation" } else { "chat" }
    }

    /// Whether it is a message of which nothing is left but its place: its user was erased, or its time is over.
    pub fn is_erased(&self) -> bool {
        let ChatMessage {
            user_idx,
            nickname,
            text,
            ..
        } = &self.chat;
        // A user who really has that number says something under some name.
        let nothing_left = text.as_str().is_empty() && nickname.as_str().is_empty();
        self.act.is_none() && *user_idx == UserIdx::ERASED && nothing_left
    }
}

/// One event with its place in its room's order. What is kept in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// UUIDv7 of [`Event::sent_at_ms`].
    pub id: Uuid,
    /// The room.
    pub presenter_idx: PresenterIdx,
    /// The numbering that `seq` belongs to.
    pub epoch: Epoch,
    /// The place in the room.
    pub seq: Seq,
    /// When it was numbered: milliseconds since 1970-01-01T00:00:00Z, never going back (rule 5).
    pub sent_at_ms: i64,
    /// The room server's own number of the broadcast's room, where its answer names one.
    pub room_idx: Option<i64>,
    /// The broadcast that it belongs to; none for an act outside of any.
    pub broadcast_id: Option<Uuid>,
    /// The chat line. Of an act: who did it, with an empty text.
    pub chat: ChatMessage,
    /// What was done, where the event is an act of moderation rather than chat.
    pub act: Option<Arc<Act>>,
    /// The sender's `Idempotency-Key`, where the request had one (rule 17).
    pub keyed: Option<Arc<Keyed>>,
}
