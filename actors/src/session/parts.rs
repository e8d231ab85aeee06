//! What a session is made of: its settings, its dialect, what it shares with the transport.

use std::{
    any::Any,
    cell::Cell,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;

use super::{progress::Progress, v1::Machine};
use crate::{
    registry::RegistryHandle,
    seams::{Authenticate, Socket, Wording},
    wire::legacy::Clock,
};

/// What operators set for sessions. `settings.toml` documents each.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// `actors.session.mailbox`
    pub mailbox: usize,
    /// `session.keepalive_seconds`
    pub keepalive: Duration,
    /// `session.keepalive_missed`
    pub keepalive_missed: u32,
    /// `session.max_frame_bytes`
    pub max_frame_bytes: usize,
    /// `session.hello_seconds`
    pub hello: Duration,
    /// `session.close_on_expiry`
    pub close_on_expiry: bool,
    /// `session.client_frames_per_second`
    pub client_frames_per_second: u32,
    /// `session.stall_seconds`
    pub stall: Duration,
    /// How long a closing socket may take to say goodbye.
    pub close_linger: Duration,
}

/// What the transport saw in the bytes before they became frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A frame's header announces more than is allowed.
    TooBig,
    /// The bytes are no WebSocket frames.
    Protocol,
}

/// The frames on their way in, as the transport and the session both see them.
#[derive(Default)]
pub struct Inbound {
    violation: Cell<Option<Violation>>,
    ahead: Cell<usize>,
    /// Bytes that the transport gave on in this turn.
    given: Cell<usize>,
    /// The session has dealt with a frame in this turn.
    dealt: Cell<bool>,
}

impl Inbound {
    /// The transport found this wrong with them; the session chooses its close code by it.
    pub fn violate(&self, violation: Violation) {
        self.violation.set(Some(violation));
    }

    /// What was found wrong with them.
    pub fn violation(&self) -> Option<Violation> {
        self.violation.get()
    }

    /// The session's turn begins, which ends when there is nothing left for it to do. What it says meanwhile goes to its socket then.
    pub fn begin_turn(&self) {
        self.given.set(0);
        self.dealt.set(false);
    }

    /// So many more frames began in so many bytes that the transport gave on.
    pub fn came(&self, frames: usize, bytes: usize) {
        self.ahead.set(self.ahead.get() + frames);
        self.given.set(self.given.get() + bytes);
    }

    /// The session has dealt with one.
    pub fn handled(&self) {
        self.ahead.set(self.ahead.get().saturating_sub(1));
        self.dealt.set(true);
    }

    /// How many bytes the transport gave on in this turn, where the session has dealt with a frame in it; else 0.
    pub fn dealt_of(&self) -> usize {
        if self.dealt.get() { self.given.get() } else { 0 }
    }

    /// How many frames the transport is ahead of the session.
    pub fn ahead(&self) -> usize {
        self.ahead.get()
    }
}

/// What a v1 session writes on its way out, as the transport and the session both see it.
#[derive(Default)]
pub struct Outbound {
    blocked: Cell<bool>,
    unread: Cell<bool>,
}

impl Outbound {
    /// Whether the socket has yet to take some of what was written.
    pub fn set_blocked(&self, blocked: bool) {
        self.blocked.set(blocked);
    }

    /// Whether what is written now waits behind something else.
    pub fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// Whether the session closes before its client has acknowledged all that was written.
    pub(super) fn set_unread(&self, unread: bool) {
        self.unread.set(unread);
    }

    /// Whether the client may have yet to read what was sent before the close.
    pub fn is_unread(&self) -> bool {
        self.unread.get()
    }
}

/// What a session is told, while its socket takes what it writes; all else waits in its mailbox, which credit bounds.
pub(super) struct WhileTaken<S> {
    pub(super) told: S,
    pub(super) outbound: Rc<Outbound>,
}

impl<S: Stream + Unpin> Stream for WhileTaken<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if self.outbound.is_blocked() {
            // The transport polls the session when it is not any more.
            return Poll::Pending;
        }
        Pin::new(&mut self.told).poll_next(cx)
    }
}

/// What a session speaks.
pub enum Dialect {
    /// docs/LEGACY.md, to the byte; times are of this clock.
    Legacy(Arc<Clock>),
    /// docs/PROTOCOL.md.
    V1(Machine),
}

/// What a session is made of.
pub struct SessionParts {
    /// Settings.
    pub config: SessionConfig,
    /// What it speaks.
    pub dialect: Dialect,
    /// Where its room is.
    pub registry: RegistryHandle,
    /// Reads tokens.
    pub tokens: Rc<dyn Authenticate>,
    /// Words for refusals.
    pub words: Rc<dyn Wording>,
    /// The connection's socket.
    pub socket: Weak<dyn Socket>,
    /// Shared with the transport.
    pub progress: Rc<Progress>,
    /// Shared with the transport.
    pub inbound: Rc<Inbound>,
    /// Shared with the transport (v1).
    pub outbound: Rc<Outbound>,
    /// Its place among those that may be open; given back when it is dropped.
    pub place: Box<dyn Any>,
}
