//! Who reads a room: a handle, not an actor's address, so that viewers can join presenters later, unchanged.

use std::sync::Arc;

use crate::{ring::Entry, session::Flow};

/// Some of a room's events, in order, for one session.
#[derive(Debug)]
pub struct Delivery {
    /// The reading that they belong to; when it has ended they are not written.
    pub flow: Arc<Flow>,
    /// The events; never none.
    pub entries: Vec<Arc<Entry>>,
}

impl Delivery {
    /// Takes the events for the socket; `false` means that the reading has ended and nothing may be written.
    pub fn take(&self) -> bool {
        self.entries.last().is_some_and(|last| self.flow.take(last.event.seq))
    }
}

/// Why the server ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A newer session of the same presenter has been there for `session.detached_seconds`.
    Replaced,
    /// Its room has not been live for `session.not_live_seconds`, or another session needed the place.
    NotLive,
    /// It took nothing for `session.stall_seconds`.
    TooSlow,
    /// The server is about to stop.
    GoingAway,
    /// The registry failed and is made anew: the client is to connect again.
    Restarted,
}

impl End {
    /// The label in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::NotLive => "not_live",
            Self::TooSlow => "too_slow",
            Self::GoingAway => "going_away",
            Self::Restarted => "restarted",
        }
    }
}

/// One reader of a room.
pub trait Subscriber: Send + Sync {
    /// Queues events to the session. Never refuses: credit bounds what is under way.
    fn deliver(&self, delivery: Delivery);

    /// Asks the session to close. Best effort: a stalled session's actor does not run.
    fn close(&self, end: End);

    /// Shuts the socket itself, which works on a stalled session too.
    fn shut(&self);
}
