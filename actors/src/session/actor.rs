//! `PresenterSession`: one WebSocket, on the worker that accepted it.
//!
//! It moves frames in and out, beats, and never waits on anything remote. It runs only while its socket takes
//! what is written (actix polls it from the response body), so whatever must work on a stalled peer is the registry's to
//! do: see [`Flow`] and [`SessionHandle::shut`](crate::registry::Subscriber::shut).
//!
//! When full: the registry sends no more than the session's credit, so the actor's mailbox never binds.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use actix::prelude::*;
use actix_http::ws::Item;
use actix_web_actors::ws::{CloseCode, CloseReason, Message as Frame, ProtocolError, WebsocketContext};
use bytestring::ByteString;

use super::{
    flow::Flow,
    legacy::{Action, Close, Fragments, on_text},
};
use crate::{
    gate::Permit,
    registry::{Delivery, End, RegistryHandle, SessionId, Subscriber},
    seams::{Authenticate, Socket},
    types::PresenterIdx,
    wire::legacy::{Clock, encode_chat},
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

/// What the socket took since the registry was told last; shared with the transport, which knows when that is.
#[derive(Default)]
pub struct Progress {
    taken: Cell<u64>,
    told: RefCell<Option<(RegistryHandle, SessionId)>>,
}

impl Progress {
    /// The transport has room again: everything written so far was flushed to it.
    pub fn flushed(&self) {
        let events = self.taken.take();
        if events > 0
            && let Some((registry, session)) = &*self.told.borrow()
        {
            registry.flushed(*session, events);
        }
    }
}

/// See the module's text.
pub struct PresenterSession {
    config: SessionConfig,
    registry: RegistryHandle,
    tokens: Rc<dyn Authenticate>,
    clock: Arc<Clock>,
    socket: Weak<dyn Socket>,
    progress: Rc<Progress>,
    violation: Rc<Cell<Option<Violation>>>,
    fragments: Fragments,
    session: Option<SessionId>,
    flow: Option<(PresenterIdx, Arc<Flow>)>,
    unanswered: u32,
    closing: bool,
    /// Its place among `session.max`.
    _permit: Permit,
}

impl PresenterSession {
    /// A session over a socket that was just upgraded.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        config: SessionConfig,
        registry: RegistryHandle,
        tokens: Rc<dyn Authenticate>,
        clock: Arc<Clock>,
        socket: Weak<dyn Socket>,
        progress: Rc<Progress>,
        violation: Rc<Cell<Option<Violation>>>,
        permit: Permit,
    ) -> Self {
        Self {
            config,
            registry,
            tokens,
            clock,
            socket,
            progress,
            violation,
            fragments: Fragments::default(),
            session: None,
            flow: None,
            unanswered: 0,
            closing: false,
            _permit: permit,
        }
    }

    fn act(&mut self, action: Action, ctx: &mut WebsocketContext<Self>) {
        match action {
            Action::Reply(text) => ctx.text(text),
            Action::ReplyAndClose(text, close) => {
                ctx.text(text);
                self.close(close, ctx);
            }
            Action::Attach(presenter) => self.attach(presenter),
            Action::Close(close) => self.close(close, ctx),
        }
    }

    fn attach(&mut self, presenter: PresenterIdx) {
        let Some(session) = self.session else {
            return;
        };
        // A second `start` takes over from the first, even on one socket: the flow begins anew.
        let flow = Arc::new(Flow::default());
        self.flow = Some((presenter, Arc::clone(&flow)));
        self.registry.attach(session, presenter, flow);
    }

    /// Says goodbye, and gives the peer a moment to read it before the socket goes.
    fn close(&mut self, close: Close, ctx: &mut WebsocketContext<Self>) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.end_flow();
        let code = match close {
            Close::Normal => CloseCode::Normal,
            Close::Away => CloseCode::Away,
            Close::Protocol => CloseCode::Protocol,
            Close::Unsupported => CloseCode::Unsupported,
            Close::NotUtf8 => CloseCode::Invalid,
            Close::TooBig => CloseCode::Size,
            Close::Unreadable => CloseCode::Error,
        };
        ctx.close(Some(CloseReason::from(code)));
        ctx.run_later(self.config.close_linger, |_, ctx| ctx.stop());
    }

    fn end_flow(&mut self) {
        if let Some((_, flow)) = self.flow.take() {
            flow.end();
        }
    }

    fn beat(&mut self, ctx: &mut WebsocketContext<Self>) {
        if self.closing {
            return;
        }
        if self.unanswered >= self.config.keepalive_missed {
            // The peer is gone: there is nobody to say goodbye to.
            return ctx.stop();
        }
        self.unanswered += 1;
        ctx.ping(b"");
    }

    fn text(&mut self, text: &str, ctx: &mut WebsocketContext<Self>) {
        let action = on_text(text, &*self.tokens);
        self.act(action, ctx);
    }

    fn part(&mut self, item: Item, ctx: &mut WebsocketContext<Self>) {
        let limit = self.config.max_frame_bytes;
        let whole = match item {
            Item::FirstText(part) => self.fragments.first(&part, limit).map(|()| None),
            Item::Continue(part) => self.fragments.more(&part, limit).map(|()| None),
            Item::Last(part) => self.fragments.last(&part, limit).map(Some),
            Item::FirstBinary(_) => Err(Close::Unsupported),
        };
        match whole {
            Ok(Some(text)) => self.text(&text, ctx),
            Ok(None) => {}
            Err(close) => self.close(close, ctx),
        }
    }

    fn failed(&mut self, error: &ProtocolError, ctx: &mut WebsocketContext<Self>) {
        let close = match (self.violation.get(), error) {
            (Some(Violation::TooBig), _) | (None, ProtocolError::Overflow) => Close::TooBig,
            (Some(Violation::Protocol), _) => Close::Protocol,
            // actix reports text that is not UTF-8 as an I/O error; a peer that is gone reads no close code anyway.
            (None, ProtocolError::Io(_)) => Close::NotUtf8,
            (None, _) => Close::Protocol,
        };
        self.close(close, ctx);
    }
}

impl Actor for PresenterSession {
    type Context = WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.config.mailbox);
        let handle = SessionHandle {
            actor: ctx.address(),
            socket: self.socket.clone(),
        };
        let session = self.registry.connect(Arc::new(handle));
        self.session = Some(session);
        self.progress.told.replace(Some((self.registry.clone(), session)));
        ctx.run_interval(self.config.keepalive, Self::beat);
    }
}

/// Every way out of a session comes through here.
impl Drop for PresenterSession {
    fn drop(&mut self) {
        self.end_flow();
        if let Some(session) = self.session.take() {
            self.registry.gone(session);
        }
    }
}

impl StreamHandler<Result<Frame, ProtocolError>> for PresenterSession {
    fn handle(&mut self, frame: Result<Frame, ProtocolError>, ctx: &mut Self::Context) {
        self.unanswered = 0;
        let frame = match frame {
            Ok(Frame::Close(reason)) => {
                if !self.closing {
                    ctx.close(reason);
                } else if let Some(socket) = self.socket.upgrade() {
                    // The answer to our close: both sides are done, so the connection ends now (RFC 6455, 5.5.1).
                    socket.shut();
                }
                return ctx.stop();
            }
            _ if self.closing => return,
            Ok(frame) => frame,
            Err(error) => return self.failed(&error, ctx),
        };
        match frame {
            Frame::Text(text) => self.text(&text, ctx),
            Frame::Continuation(item) => self.part(item, ctx),
            Frame::Ping(payload) => ctx.pong(&payload),
            Frame::Binary(_) => self.close(Close::Unsupported, ctx),
            Frame::Pong(_) | Frame::Nop | Frame::Close(_) => {}
        }
    }
}

/// Events from the registry.
#[derive(Message)]
#[rtype(result = "()")]
struct Deliver(Delivery);

impl Handler<Deliver> for PresenterSession {
    type Result = ();

    fn handle(&mut self, Deliver(delivery): Deliver, ctx: &mut Self::Context) {
        if self.closing || !delivery.take() {
            return;
        }
        for entry in &delivery.entries {
            ctx.text(entry.legacy(|event| {
                let time = self.clock.hhmm(event.sent_at_ms);
                ByteString::from(encode_chat(
                    event.chat.nickname.as_str(),
                    event.chat.text.as_str(),
                    &time,
                ))
            }));
        }
        self.progress
            .taken
            .set(self.progress.taken.get() + delivery.entries.len() as u64);
    }
}

/// The registry wants the session closed.
#[derive(Message)]
#[rtype(result = "()")]
struct Finish(End);

impl Handler<Finish> for PresenterSession {
    type Result = ();

    fn handle(&mut self, Finish(end): Finish, ctx: &mut Self::Context) {
        self.close(
            match end {
                End::GoingAway | End::Restarted => Close::Away,
                End::Replaced | End::NotLive | End::TooSlow => Close::Normal,
            },
            ctx,
        );
    }
}

/// What the registry holds of a session.
pub struct SessionHandle {
    actor: Addr<PresenterSession>,
    socket: Weak<dyn Socket>,
}

impl Subscriber for SessionHandle {
    fn deliver(&self, delivery: Delivery) {
        // Credit is at most the mailbox, so a full one means that the session is beyond help; a closed one that it is gone.
        // Either way the flow tells how far the socket got.
        if self.actor.try_send(Deliver(delivery)).is_err() {
            self.shut();
        }
    }

    fn close(&self, end: End) {
        if self.actor.try_send(Finish(end)).is_err() {
            self.shut();
        }
    }

    fn shut(&self) {
        if let Some(socket) = self.socket.upgrade() {
            socket.shut();
        }
    }
}
