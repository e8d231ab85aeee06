//! From an HTTP request to a presenter's session: the upgrade, the guard before the codec, and the flow after it.

use std::{
    pin::Pin,
    rc::Rc,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use actix_http::ws::{CloseCode, CloseReason, Codec, Parser};
use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    dev::Extensions,
    http::header::SEC_WEBSOCKET_VERSION,
    rt::{net::TcpStream, time::Sleep},
    web,
};
use actix_web_actors::ws::{self, HandshakeError, WebsocketContext};
use bytes::{Bytes, BytesMut};
use chatting_actors::{
    seams::Socket,
    session::{Close, Dialect, Inbound, Outbound, PresenterSession, Progress, SessionParts},
    supervise::catch,
};
use futures_util::Stream;
use prometheus_client::metrics::counter::Counter;

use super::{
    guard::Guarded,
    lines::{Line, Lines},
    named::{Named, shut},
    presenter::{Place, Titles, Tokens},
    state::State,
    transport::{self, Backlog},
};
use crate::error::Lang;

/// A second handle on an accepted connection. It lives as long as the connection does, so that closing still closes.
#[derive(Clone)]
pub struct Connection(Arc<dyn Socket>);

/// One that has the socket open a second time.
struct SecondHandle(socket2::Socket);

impl Socket for SecondHandle {
    fn shut(&self) {
        shut(&self.0);
    }

    fn end_by_reset(&self) {
        let _ = self.0.set_linger(Some(Duration::ZERO));
    }
}

/// For a connection that was just accepted: sets how long a peer may acknowledge nothing and how much is kept for one that does not read
/// (0: as the kernel has it), and keeps a handle on the socket, because a stalled peer's actor does not run, and neither does
/// a request that never comes. Its line; `None` where it is shut already.
pub fn on_connect(stream: &TcpStream, user_timeout: Duration, send_buffer: usize, lines: &Lines) -> Option<Arc<Line>> {
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(stream);
    if let Err(error) = socket.set_tcp_user_timeout(Some(user_timeout)) {
        log::debug!("a socket takes no user timeout: {error}");
    }
    if send_buffer > 0
        && let Err(error) = socket.set_send_buffer_size(send_buffer)
    {
        log::debug!("a socket takes no send buffer size: {error}");
    }
    let second: Option<Arc<dyn Socket>> = match Named::of(stream) {
        Some(named) => Some(Arc::new(named)),
        None => socket
            .try_clone()
            .ok()
            .map(|second| Arc::new(SecondHandle(second)) as _),
    };
    if second.is_none() {
        // There is no descriptor left. Nobody could end this one later, and it would keep its own for as long as its client likes.
        shut(&*socket);
    }
    second.map(|socket| lines.add(socket))
}

/// For `HttpServiceBuilder::on_connect_ext`: what a connection's requests are to find of it.
pub fn remember(line: Option<&Arc<Line>>, extensions: &mut Extensions) {
    if let Some(line) = line {
        extensions.insert(Connection(Arc::clone(line.socket())));
        extensions.insert(Arc::clone(line));
    }
}

/// What a good handshake is answered. Version 13 is the only one (RFC 6455), `Upgrade` names nothing but `websocket`, and the
/// request has no body: everything else is not on [`transport`]'s way, where alone a session can be.
pub(super) fn handshake(request: &HttpRequest) -> Result<HttpResponseBuilder, HandshakeError> {
    let response = ws::handshake(request)?;
    let version = request.headers().get(SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|version| version.as_bytes() != b"13") {
        return Err(HandshakeError::UnsupportedVersion);
    }
    if !transport::is_open_to(request) {
        return Err(HandshakeError::NoWebsocketUpgrade);
    }
    Ok(response)
}

/// Starts the session's actor inside the response to a good handshake.
pub(super) fn upgrade(
    mut response: HttpResponseBuilder,
    request: &HttpRequest,
    payload: web::Payload,
    state: &State,
    dialect: Dialect,
    tokens: Tokens,
    place: Place,
) -> HttpResponse {
    let connection = request.conn_data::<Connection>().cloned();
    let socket: Weak<dyn Socket> = match &connection {
        Some(Connection(socket)) => Arc::downgrade(socket),
        None => Weak::<SecondHandle>::new(),
    };
    let (progress, inbound, outbound) = (
        Rc::<Progress>::default(),
        Rc::<Inbound>::default(),
        Rc::<Outbound>::default(),
    );
    match dialect {
        Dialect::Legacy(_) => response.extensions_mut().insert(Backlog::Legacy(Rc::clone(&progress))),
        Dialect::V1(_) => response
            .extensions_mut()
            .insert(Backlog::V1(Rc::clone(&outbound), state.session.stall)),
    };
    let session = PresenterSession::new(SessionParts {
        config: state.session.clone(),
        dialect,
        registry: state.registry.clone(),
        tokens: Rc::new(tokens),
        words: Rc::new(Titles(Lang::from_headers(request.headers()))),
        socket,
        progress: Rc::clone(&progress),
        inbound: Rc::clone(&inbound),
        outbound,
        place: Box::new(place),
    });
    let max = state.session.max_frame_bytes;
    let guarded = Guarded::new(payload, max, Rc::clone(&inbound));
    let frames = WebsocketContext::with_codec(session, guarded, Codec::new().max_size(max));
    response.streaming(Flowing {
        frames: Frames::Live(Box::pin(frames)),
        progress,
        inbound,
        failures: state.metrics.restarts("session"),
        linger: state.session.close_linger,
        _connection: connection,
    })
}

/// The session's frames on their way to the connection. A legacy session is polled only when the socket took what was given before.
///
/// The session's actor runs in here, so this is where its panic is caught: it ends this session, with 1001, and no other on the
/// worker.
struct Flowing<S> {
    frames: Frames<S>,
    progress: Rc<Progress>,
    inbound: Rc<Inbound>,
    failures: Counter,
    linger: Duration,
    _connection: Option<Connection>,
}

enum Frames<S> {
    Live(Pin<Box<S>>),
    /// The session panicked: its peer has a moment to read why.
    Failed(Pin<Box<Sleep>>),
}

impl<S: Stream<Item = Result<Bytes, actix_web::Error>>> Stream for Flowing<S> {
    type Item = Result<Bytes, actix_web::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let frames = match &mut this.frames {
            Frames::Live(frames) => frames,
            Frames::Failed(lingers) => return lingers.as_mut().poll(cx).map(|()| None),
        };
        let polled = catch("session", &this.failures, || {
            this.progress.flushed();
            this.inbound.begin_turn();
            frames.as_mut().poll_next(cx)
        });
        if let Some(polled) = polled {
            return polled;
        }
        let lingers = Frames::Failed(Box::pin(actix_web::rt::time::sleep(this.linger)));
        let failed = std::mem::replace(&mut this.frames, lingers);
        // The actor goes now, and tells the registry that it is gone.
        catch("session", &this.failures, || drop(failed));
        // Frames are whole in what was given before, so this one is where a frame may begin.
        let mut goodbye = BytesMut::new();
        let reason = CloseReason::from(CloseCode::from(Close::Away.code()));
        Parser::write_close(&mut goodbye, Some(reason), false);
        Poll::Ready(Some(Ok(goodbye.freeze())))
    }
}
