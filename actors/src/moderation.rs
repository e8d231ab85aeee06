//! Acts of moderation: events that take a place in their room's order beside chat.
//!
//! An act says what is no longer to be shown; nothing is taken out of the order. It covers what was said before it, never what
//! comes after, so applying it twice, or late, changes nothing.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::types::{Event, Seq, UserIdx};

/// What a member of the staff did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "scope", rename_all = "snake_case")]
pub enum Act {
    /// One message is deleted.
    Message {
        /// The message.
        id: Uuid,
        /// Its place in the room.
        seq: Seq,
    },
    /// Everything that one user has said in the room so far is deleted.
    User {
        /// The user.
        user_idx: UserIdx,
    },
    /// Everything that was said between two times, both included, is deleted.
    Span {
        /// Milliseconds since 1970, UTC.
        from_ms: i64,
        /// Milliseconds since 1970, UTC.
        to_ms: i64,
    },
}

impl Act {
    /// Every label in the metrics.
    pub const SCOPES: [&str; 3] = ["message", "user", "span"];

    /// The label in the metrics; one of [`Act::SCOPES`].
    pub fn scope(&self) -> &'static str {
        match self {
            Self::Message { .. } => "message",
            Self::User { .. } => "user",
            Self::Span { .. } => "span",
        }
    }

    /// Whether this act, numbered as `at`, deletes `event`: a chat message of the same room that came before it.
    pub fn covers(&self, at: &Event, event: &Event) -> bool {
        // Ids are in the order of time, across epochs too.
        event.act.is_none()
            && event.presenter_idx == at.presenter_idx
            && event.id < at.id
            && match self {
                Self::Message { id, .. } => event.id == *id,
                Self::User { user_idx } => event.chat.user_idx == *user_idx,
                Self::Span { from_ms, to_ms } => (*from_ms..=*to_ms).contains(&event.sent_at_ms),
            }
    }
}
