//! Who reads a room: a handle, not an actor's address, so that viewers can join presenters later, unchanged.

use std::{sync::Arc, time::Duration};

use crate::{
    ring::Entry,
    session::Flow,
    types::{Epoch, PresenterIdx, Seq},
    wire::v1::Gap,
};

/// How a session reads its room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// From where the last session's socket got to. Credit is what was not yet flushed.
    Legacy,
    /// From where its `hello` says. Credit is what was not yet acknowledged.
    V1(Resume),
}

impl Reading {
    /// Whether it is v1.
    pub fn is_v1(&self) -> bool {
        matches!(self, Self::V1(_))
    }
}

/// What a `hello` says of where to go on from (rule 16).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// The numbering that `after` belongs to; one that is not ours voids it.
    pub epoch: Option<String>,
    /// The last event that the client has; 0 for the start of the broadcast.
    pub after: Option<Seq>,
}

/// What a v1 session is told when its place in the room is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The room.
    pub presenter: PresenterIdx,
    /// The numbering.
    pub epoch: Epoch,
    /// The room's last seq.
    pub last_seq: Seq,
    /// The first seq that will be sent.
    pub resumed_from: Seq,
    /// What was asked for and cannot be sent.
    pub gap: Option<Gap>,
}

/// Some of a room's events, in order, for one session.
#[derive(Debug)]
pub struct Batch {
    /// The reading that they belong to; when it has ended they are not written.
    pub flow: Arc<Flow>,
    /// The events; never none.
    pub entries: Vec<Arc<Entry>>,
}

impl Batch {
    /// Takes the events for the socket; `false` means that the reading has ended and nothing may be written.
    pub fn take(&self) -> bool {
        self.entries.last().is_some_and(|last| self.flow.take(last.event.seq))
    }
}

/// Why the server ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A newer session of the same presenter is there; legacy, for `session.detached_seconds`, or another session needed the place, or
    /// the newer one has left.
    Replaced,
    /// Its room has not been live for `session.not_live_seconds`, or is not live and another session needed the place.
    NotLive,
    /// Another session needed the place, and this one never said whose it is, or the room server says nothing of its room.
    Crowded,
    /// It took nothing for `session.stall_seconds`.
    TooSlow,
    /// What it said cannot be; what, in English.
    BadFrame(&'static str),
    /// Where its room's numbering stands cannot be told.
    LogUnavailable,
    /// The server is about to stop.
    GoingAway,
    /// The session must begin anew: the registry failed, or its log has a hole that only a new `welcome` can tell of.
    Restarted,
}

impl End {
    /// Every label in the metrics.
    pub const REASONS: [&str; 8] = [
        "replaced",
        "not_live",
        "crowded",
        "too_slow",
        "bad_frame",
        "log_unavailable",
        "going_away",
        "restarted",
    ];

    /// The label in the metrics; one of [`End::REASONS`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::NotLive => "not_live",
            Self::Crowded => "crowded",
            Self::TooSlow => "too_slow",
            Self::BadFrame(_) => "bad_frame",
            Self::LogUnavailable => "log_unavailable",
            Self::GoingAway => "going_away",
            Self::Restarted => "restarted",
        }
    }
}

/// One reader of a room.
pub trait Subscriber: Send + Sync {
    /// Queues events to the session. Never refuses: credit bounds what is under way.
    fn deliver(&self, batch: Batch);

    /// Tells a v1 session where it goes on, before its first event. A no-op in a dialect that has no word for it.
    fn welcome(&self, _welcome: Welcome) {}

    /// Tells a v1 session to connect again after so long. A no-op in a dialect that has no word for it.
    fn reconnect(&self, _after: Duration) {}

    /// Asks the session to close. Best effort: a stalled session's actor does not run.
    fn close(&self, end: End);

    /// Shuts the socket itself, which works on a stalled session too.
    fn shut(&self);

    /// A planned failure point, for tests of supervision. A no-op where there is nothing to fail.
    fn panic_now(&self) {}
}
