//! `PresenterSession`: one WebSocket, on the worker that accepted it.
//!
//! It moves frames in and out, beats, and never waits on anything remote. It takes from its room only while its socket takes
//! what is written, and a legacy one runs only then (actix polls it from the response body), so whatever must work on a stalled peer
//! is the registry's to do: see [`Flow`] and [`Subscriber::shut`](crate::registry::Subscriber::shut). A v1 session hears its client
//! all the time, for that may acknowledge what it reads of a long piece bit by bit ([`Outbound`](super::Outbound)). What frames mean
//! is its dialect's to say ([`legacy`](super::legacy), [`v1`](super::v1)), which knows no socket.
//!
//! When full: the registry sends no more than the session's credit, so the actor's mailbox never binds. A client that sends
//! more frames than `session.client_frames_per_second` is closed with 1008; acks that say something new of what was sent do not
//! count, for there are no more of them than events.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_http::ws::Item;
use actix_web_actors::ws::{CloseCode, CloseReason, Message as Frame, ProtocolError, WebsocketContext};
use bytestring::ByteString;
use uuid::Uuid;

use super::{
    action::Action,
    close::Close,
    flood::FrameBucket,
    flow::Flow,
    fragments::Fragments,
    handle::{SessionHandle, Told},
    held_frames::HeldFrames,
    legacy,
    parts::{Dialect, SessionParts, Violation, WhileTaken},
};
use crate::{
    clock::system_ms,
    mailbox::Mailbox,
    registry::{Batch, End, Reading, SessionId, Welcome},
    ring::Entry,
    types::{PresenterIdx, Seq},
    wire::{
        legacy::encode_chat,
        v1::{ClientFrame, ServerFrame, parse_client},
    },
};

/// The actor of one socket, in either dialect, made of [`SessionParts`]. The registry knows of it from its start to its
/// end.
pub struct PresenterSession {
    parts: SessionParts,
    /// Names it in the server's log and in `welcome`.
    name: Uuid,
    fragments: Fragments,
    frames: FrameBucket,
    session: Option<SessionId>,
    flow: Option<(PresenterIdx, Arc<Flow>)>,
    expiry: Option<SpawnHandle>,
    unanswered: u32,
    /// Frames that wait for a token's key, the token's own first; `None` when none does.
    held: Option<HeldFrames>,
    /// A `hello` by whose key the token could not be refreshed, to be tried once more when the one before it ends.
    postponed: Option<String>,
    /// The last event that was written, or the one before the first that will be (v1). No ack may be above it.
    written: Seq,
    /// The last event that the client has acknowledged on this connection, or the one before its first (v1).
    acked: Seq,
    /// `welcome` was written (v1).
    greeted: bool,
    /// When to connect again, which waits for `welcome`: nothing else of the room comes before that.
    reconnect: Option<Duration>,
    closing: bool,
}

impl PresenterSession {
    /// A session over a socket that was just upgraded.
    pub fn new(parts: SessionParts) -> Self {
        Self {
            frames: FrameBucket::new(parts.config.client_frames_per_second, Instant::now()),
            parts,
            name: Uuid::now_v7(),
            fragments: Fragments::default(),
            session: None,
            flow: None,
            expiry: None,
            unanswered: 0,
            held: None,
            postponed: None,
            written: Seq(0),
            acked: Seq(0),
            greeted: false,
            reconnect: None,
            closing: false,
        }
    }

    fn act(&mut self, action: Action, ctx: &mut WebsocketContext<Self>) {
        let free = matches!(action, Action::Ack { seq, .. } if seq > self.acked && seq <= self.written);
        if !free && !self.frames.take(Instant::now()) {
            return self.close(Close::Flood, ctx);
        }
        match action {
            Action::Reply(text) => ctx.text(text),
            Action::ReplyAndClose(text, close) => {
                ctx.text(text);
                self.close(close, ctx);
            }
            Action::Attach { presenter, reading } => {
                // First: a token whose time is over takes no room from another session.
                self.watch_expiry(ctx);
                if !self.closing {
                    self.attach(presenter, reading);
                }
            }
            Action::Refreshed => {
                self.postponed = None;
                self.watch_expiry(ctx);
            }
            Action::Ack { seq, fanned_out } => {
                // What was read on this connection comes behind its `welcome`: an ack before that is of another one, or of none.
                if let Some(session) = self.session.filter(|_| self.greeted) {
                    if seq > self.written {
                        // The room counts what waits in the mailbox as sent, and would give credit for it, without end.
                        return self.close_because(
                            Close::BadFrame,
                            Some("ack is above the last seq that was sent"),
                            ctx,
                        );
                    }
                    self.acked = self.acked.max(seq);
                    self.parts.registry.ack(session, seq, fanned_out);
                }
            }
            // Of these `text` has the frame.
            Action::AwaitKey | Action::Postponed => {}
            Action::Close(close, why) => self.close_because(close, why.as_deref(), ctx),
        }
    }

    fn attach(&mut self, presenter: PresenterIdx, reading: Reading) {
        let Some(session) = self.session else {
            return;
        };
        log::debug!("session {}: presenter {presenter}, {reading:?}", self.name);
        // A second `start` takes over from the first, even on one socket: the flow begins anew.
        let flow = Arc::new(Flow::default());
        self.flow = Some((presenter, Arc::clone(&flow)));
        self.parts.registry.attach(session, presenter, flow, reading);
    }

    /// Milliseconds that the token has left; `None` where its end ends nothing.
    fn left_ms(&self) -> Option<u64> {
        let Dialect::V1(machine) = &self.parts.dialect else {
            return None;
        };
        let expires_at_ms = machine.expires_at_ms().filter(|_| self.parts.config.close_on_expiry)?;
        Some(u64::try_from(expires_at_ms.saturating_sub(system_ms())).unwrap_or(0))
    }

    /// At the token's end, and now and then before: what was postponed until then has its last chance.
    fn look_at_expiry(&mut self, ctx: &mut WebsocketContext<Self>) {
        if self.left_ms() == Some(0)
            && self.held.is_none()
            && let Some(hello) = self.postponed.take()
        {
            self.text(&hello, ctx);
        }
        if !self.closing {
            self.watch_expiry(ctx);
        }
    }

    /// Closes at the token's end, unless a later `hello` moves it. One that waits for its token's key by then has come in time.
    fn watch_expiry(&mut self, ctx: &mut WebsocketContext<Self>) {
        let Some(left) = self.left_ms() else {
            return;
        };
        if let Some(timer) = self.expiry.take() {
            ctx.cancel_future(timer);
        }
        if left == 0 && self.held.is_some() {
            // What waits begins with a `hello`; whether its token is good is known in a moment, and this is looked at again then.
            return;
        }
        if left == 0 {
            return self.close(Close::TokenExpired, ctx);
        }
        self.expiry = Some(ctx.run_later(next_look(left, self.parts.config.keepalive), Self::look_at_expiry));
    }

    fn close(&mut self, close: Close, ctx: &mut WebsocketContext<Self>) {
        self.close_because(close, None, ctx);
    }

    /// Closes for a reason that the session itself found, and counts it; the registry counts its own.
    fn close_because(&mut self, close: Close, why: Option<&str>, ctx: &mut WebsocketContext<Self>) {
        if !self.closing {
            self.parts.registry.closed(close);
        }
        self.say_goodbye(close, why, ctx);
    }

    /// Says goodbye, and gives the peer a moment to read it before the socket goes.
    fn say_goodbye(&mut self, close: Close, why: Option<&str>, ctx: &mut WebsocketContext<Self>) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.end_flow();
        self.parts.outbound.set_unread(self.written > self.acked);
        log::debug!("session {}: closing, {close:?} {}", self.name, why.unwrap_or_default());
        let mut reason = CloseReason::from(CloseCode::from(close.code()));
        if matches!(self.parts.dialect, Dialect::V1(_))
            && let Some(problem) = close.problem()
        {
            let title = self.parts.words.title(problem);
            let message = why.map_or_else(|| title.to_owned(), |why| format!("{title}: {why}"));
            let error = ServerFrame::Error {
                code: problem,
                message: &message,
            };
            ctx.text(error.encode());
            reason.description = Some(problem.to_owned());
        }
        ctx.close(Some(reason));
        ctx.run_later(self.parts.config.close_linger, |_, ctx| ctx.stop());
    }

    fn end_flow(&mut self) {
        if let Some((_, flow)) = self.flow.take() {
            flow.close();
        }
    }

    fn beat(&mut self, ctx: &mut WebsocketContext<Self>) {
        if self.closing {
            return;
        }
        if self.parts.outbound.is_blocked() {
            // The ping would wait behind what the peer has not read, and so would be answered late.
            ctx.run_later(self.parts.config.keepalive, Self::beat);
            return;
        }
        if self.unanswered >= self.parts.config.keepalive_missed {
            return match self.parts.dialect {
                // The peer is gone: there is nobody to say goodbye to.
                Dialect::Legacy(_) => {
                    self.parts.registry.closed(Close::KeepaliveMissed);
                    ctx.stop();
                }
                Dialect::V1(_) => self.close(Close::KeepaliveMissed, ctx),
            };
        }
        self.unanswered += 1;
        ctx.ping(b"");
        // Not an interval: that makes up for the beats while the socket took nothing, all at once, and nobody could answer in between.
        ctx.run_later(self.parts.config.keepalive, Self::beat);
    }

    /// A `hello` that waits for its token's key has come in time.
    fn hello_due(&mut self, ctx: &mut WebsocketContext<Self>) {
        match &self.parts.dialect {
            Dialect::V1(machine) if !machine.open() && self.held.is_none() => self.close(Close::NoHello, ctx),
            Dialect::V1(machine) if !machine.open() => {
                ctx.run_later(self.parts.config.hello, Self::hello_due);
            }
            Dialect::V1(_) | Dialect::Legacy(_) => {}
        }
    }

    /// Whether a frame need not wait for the token before it: what an open session acknowledges, it has.
    fn is_ack(&self, text: &str) -> bool {
        matches!(&self.parts.dialect, Dialect::V1(machine) if machine.open())
            && matches!(parse_client(text), Ok(ClientFrame::Ack { .. }))
    }

    fn text(&mut self, text: &str, ctx: &mut WebsocketContext<Self>) {
        if self.held.is_some() && self.is_ack(text) {
            // The room would find that its client takes nothing, else.
        } else if let Some(held) = &mut self.held {
            if !held.take(text, &self.parts.config) {
                self.close(Close::Flood, ctx);
            }
            return;
        }
        let tokens = &*self.parts.tokens;
        let action = match &mut self.parts.dialect {
            Dialect::Legacy(_) => legacy::on_text(text, tokens),
            Dialect::V1(machine) => machine.on_text(text, tokens),
        };
        if action == Action::AwaitKey {
            return self.await_key(text, ctx);
        }
        if action == Action::Postponed {
            self.postponed = Some(text.to_owned());
        }
        self.act(action, ctx);
    }

    /// Keeps this frame and all that come after it until its token's key may be there. The session goes on meanwhile: it
    /// beats, and may be closed.
    fn await_key(&mut self, text: &str, ctx: &mut WebsocketContext<Self>) {
        let Some(arrives) = self.parts.tokens.key_arrives() else {
            // Nobody knows what to wait for: the client is to come back.
            return self.close(Close::Away, ctx);
        };
        self.held = Some(HeldFrames::behind(text));
        ctx.spawn(arrives.into_actor(self).map(|(), this, ctx| {
            for frame in this.held.take().map(HeldFrames::frames).unwrap_or_default() {
                if !this.closing {
                    this.text(&frame, ctx);
                }
            }
            if !this.closing {
                // The token before may have ended meanwhile, and nothing else need have come in its place.
                this.watch_expiry(ctx);
            }
        }));
    }

    /// A binary frame, which no dialect has.
    fn binary(&mut self, ctx: &mut WebsocketContext<Self>) {
        match self.parts.dialect {
            Dialect::Legacy(_) => self.close(Close::Unsupported, ctx),
            Dialect::V1(_) => self.close_because(Close::BadFrame, Some("binary frame, text is wanted"), ctx),
        }
    }

    fn part(&mut self, item: Item, ctx: &mut WebsocketContext<Self>) {
        let limit = self.parts.config.max_frame_bytes;
        let (Item::FirstText(bytes) | Item::FirstBinary(bytes) | Item::Continue(bytes) | Item::Last(bytes)) = &item;
        if !self.frames.take_part(bytes.len(), Instant::now()) {
            return self.close(Close::Flood, ctx);
        }
        let whole = match item {
            Item::FirstText(part) => self.fragments.first(&part, limit).map(|()| None),
            Item::Continue(part) => self.fragments.more(&part, limit).map(|()| None),
            Item::Last(part) => self.fragments.last(&part, limit).map(Some),
            Item::FirstBinary(_) => return self.binary(ctx),
        };
        match whole {
            Ok(Some(text)) => self.text(&text, ctx),
            Ok(None) => {}
            Err(close) => self.close(close, ctx),
        }
    }

    fn failed(&mut self, error: &ProtocolError, ctx: &mut WebsocketContext<Self>) {
        let close = match (self.parts.inbound.violation(), error) {
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
        let config = &self.parts.config;
        ctx.run_later(config.keepalive, Self::beat);
        if let Dialect::V1(_) = self.parts.dialect {
            ctx.run_later(config.hello, Self::hello_due);
        }
        let mailbox = Mailbox::default();
        ctx.add_stream(WhileTaken {
            told: mailbox.batches(),
            outbound: Rc::clone(&self.parts.outbound),
        });
        let handle = SessionHandle {
            mailbox,
            most: self.parts.config.mailbox,
            socket: self.parts.socket.clone(),
        };
        let session = self.parts.registry.connect(Arc::new(handle));
        self.session = Some(session);
        let told = (self.parts.registry.clone(), session);
        self.parts.progress.told.replace(Some(told));
    }
}

/// When a token that ends in so many milliseconds is looked at again: then, and as often as the session beats. The system's clock may be
/// set ahead, and timers stand still while the machine sleeps.
fn next_look(left_ms: u64, keepalive: Duration) -> Duration {
    Duration::from_millis(left_ms).min(keepalive)
}

/// Every way out of a session comes through here.
impl Drop for PresenterSession {
    fn drop(&mut self) {
        self.end_flow();
        if let Some(session) = self.session.take() {
            self.parts.registry.gone(session);
        }
    }
}

impl StreamHandler<Result<Frame, ProtocolError>> for PresenterSession {
    fn handle(&mut self, frame: Result<Frame, ProtocolError>, ctx: &mut Self::Context) {
        self.parts.inbound.handled();
        self.unanswered = 0;
        let frame = match frame {
            Ok(Frame::Close(reason)) => {
                if !self.closing {
                    self.parts.outbound.set_unread(self.written > self.acked);
                    ctx.close(reason);
                }
                // Not the connection's end: the client may have said so before it read our close, and that may have yet to go. The
                // transport writes what is left and ends it.
                return ctx.stop();
            }
            _ if self.closing => return,
            Ok(frame) => frame,
            Err(error) => return self.failed(&error, ctx),
        };
        match frame {
            Frame::Text(text) => self.text(&text, ctx),
            Frame::Continuation(item) => self.part(item, ctx),
            Frame::Binary(_) => self.binary(ctx),
            Frame::Ping(_) | Frame::Pong(_) if !self.frames.take(Instant::now()) => self.close(Close::Flood, ctx),
            Frame::Ping(payload) => ctx.pong(&payload),
            Frame::Pong(_) | Frame::Nop | Frame::Close(_) => {}
        }
    }
}

impl PresenterSession {
    fn encoded(&self, entry: &Entry) -> ByteString {
        match &self.parts.dialect {
            Dialect::Legacy(clock) => entry.legacy(|event| {
                let time = clock.hhmm(event.sent_at_ms);
                let chat = &event.chat;
                ByteString::from(encode_chat(chat.nickname.as_str(), chat.text.as_str(), &time))
            }),
            Dialect::V1(_) => entry.v1(),
        }
    }
}

impl StreamHandler<Vec<Told>> for PresenterSession {
    fn handle(&mut self, batch: Vec<Told>, ctx: &mut Self::Context) {
        for told in batch {
            match told {
                Told::Deliver(batch) => self.deliver(&batch, ctx),
                Told::Finish(end) => self.finish(end, ctx),
                Told::Greet(welcome) => self.greet(&welcome, ctx),
                Told::Reconnect(after) => self.reconnect(after, ctx),
                #[expect(clippy::panic, reason = "the planned failure point")]
                Told::Fail => panic!("planned"),
            }
        }
    }
}

impl PresenterSession {
    fn deliver(&mut self, batch: &Batch, ctx: &mut WebsocketContext<Self>) {
        if self.closing || !batch.take() {
            return;
        }
        for entry in &batch.entries {
            ctx.text(self.encoded(entry));
        }
        match self.parts.dialect {
            Dialect::Legacy(_) => {
                let events = batch.entries.iter().map(|entry| entry.event.seq);
                self.parts.progress.wrote(&batch.flow, events);
            }
            // What was taken the client itself tells, by its acks.
            Dialect::V1(_) => self.written = batch.entries.last().map_or(self.written, |last| last.event.seq),
        }
    }

    fn greet(&mut self, welcome: &Welcome, ctx: &mut WebsocketContext<Self>) {
        if self.closing {
            return;
        }
        let frame = ServerFrame::Welcome {
            session_id: self.name,
            presenter_idx: welcome.presenter,
            epoch: &welcome.epoch.0,
            last_seq: welcome.last_seq,
            resumed_from: welcome.resumed_from,
            gap: welcome.gap,
            keepalive_seconds: self.parts.config.keepalive.as_secs(),
        };
        ctx.text(frame.encode());
        self.greeted = true;
        self.written = Seq(welcome.resumed_from.0.saturating_sub(1));
        self.acked = self.written;
        if let Some(after) = self.reconnect.take() {
            self.reconnect(after, ctx);
        }
    }

    fn reconnect(&mut self, after: Duration, ctx: &mut WebsocketContext<Self>) {
        if !self.greeted {
            self.reconnect = Some(after);
        } else if !self.closing {
            let frame = ServerFrame::Reconnect {
                after_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
                reason: "drain",
            };
            ctx.text(frame.encode());
        }
    }

    fn finish(&mut self, end: End, ctx: &mut WebsocketContext<Self>) {
        let close = match (&self.parts.dialect, end) {
            (_, End::GoingAway | End::Restarted) => Close::Away,
            (Dialect::Legacy(_), _) => Close::Normal,
            (Dialect::V1(_), End::Replaced) => Close::Replaced,
            (Dialect::V1(_), End::NotLive) => Close::NotLive,
            (Dialect::V1(_), End::Crowded) => Close::Overloaded,
            (Dialect::V1(_), End::TooSlow) => Close::TooSlow,
            (Dialect::V1(_), End::LogUnavailable) => Close::LogUnavailable,
            (Dialect::V1(_), End::BadFrame(why)) => return self.say_goodbye(Close::BadFrame, Some(why), ctx),
        };
        self.say_goodbye(close, None, ctx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_looked_at_at_its_end_and_as_often_as_its_session_beats() {
        let keepalive = Duration::from_secs(15);
        assert_eq!(next_look(1, keepalive), Duration::from_millis(1));
        for far_ms in [15_000, 15_001, 24 * 3_600_000, u64::MAX] {
            assert_eq!(next_look(far_ms, keepalive), keepalive, "{far_ms}");
        }
    }
}
