//! What a sender asks for and what comes of it: plain data, with permits and reply channels outside.

use std::{sync::Arc, time::Duration};

use crate::idempotency::Keyed;
use crate::moderation::Act;
use crate::types::{ChatMessage, Epoch, PresenterIdx, Seq};
use uuid::Uuid;

/// One chat line, or one act of moderation, on its way into a room.
#[derive(Clone, Debug)]
pub struct Submit {
    /// The room.
    pub presenter_idx: PresenterIdx,
    /// What is to be said there, and by whom; of an act: who does it, with an empty text.
    pub chat: ChatMessage,
    /// What is to be done. An act needs no live room and is held for nobody.
    pub act: Option<Arc<Act>>,
    /// The request's `Idempotency-Key`.
    pub keyed: Option<Arc<Keyed>>,
}

/// What came of a [`Submit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has its place in the room and is as durable as `log.durability` says.
    Accepted(Accepted),
    /// It was never numbered, or its number was taken back.
    Refused(Refusal),
}

/// The place an accepted message got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// UUIDv7.
    pub id: Uuid,
    /// The place in the room's order.
    pub seq: Seq,
    /// The numbering that `seq` belongs to.
    pub epoch: Epoch,
    /// Milliseconds since 1970, UTC.
    pub sent_at_ms: i64,
    /// Whether a session was there to take it (rule 11).
    pub delivery: Delivery,
}

/// Rule 11: where an accepted message was when it was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Queued to an attached session with credit.
    Delivered,
    /// Kept in the ring until a session takes it.
    Held,
}

impl Delivery {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Held => "held",
        }
    }
}

/// Why a message was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The room server says that the presenter is not live.
    NotLive,
    /// The room is live and no session is there to take the message.
    PresenterDisconnected,
    /// A queue on the way is full; the name of the queue.
    Overloaded(&'static str),
    /// The sender asked for too many rooms that nobody is known to present in.
    RateLimited {
        /// When one more may come.
        wait: Duration,
        /// How many may come at once.
        burst: u32,
    },
    /// The room server gave no answer that counts, and `room.on_error` says to refuse.
    RoomServerUnavailable,
    /// The spool cannot take it, or the room's last number is not known yet.
    LogUnavailable,
    /// It was numbered, and whether it was committed cannot be known.
    OutcomeUnknown,
    /// The registry panicked before it answered a question (what a room looks like), which nothing was numbered for: it may be asked
    /// again at once. No queue was full.
    Interrupted,
    /// The server is about to stop.
    Draining,
    /// The first request with this `Idempotency-Key` has no answer yet.
    IdempotencyInProgress,
    /// The `Idempotency-Key` was used for another text.
    IdempotencyConflict,
}

impl Refusal {
    /// The stable code of the error table.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotLive => "broadcast_ended",
            Self::PresenterDisconnected => "presenter_disconnected",
            Self::Overloaded(_) | Self::Interrupted | Self::Draining => "overloaded",
            Self::RateLimited { .. } => "rate_limited",
            Self::RoomServerUnavailable => "room_server_unavailable",
            Self::LogUnavailable => "log_unavailable",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::IdempotencyInProgress => "idempotency_in_progress",
            Self::IdempotencyConflict => "idempotency_conflict",
        }
    }
}
