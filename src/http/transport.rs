//! A connection that becomes a WebSocket, after it left actix-web's dispatcher.
//!
//! The dispatcher keeps two buffers of 8 KiB and its timers for every connection, which ten thousand idle presenters pay for,
//! and each frame goes through one of those buffers. So a request to upgrade is answered by the same application, on the same
//! worker, but over the bare socket: what is read goes straight to the session's codec, what the session writes straight to
//! the socket, and an idle connection has no buffer but what the codec keeps of its largest burst. An answer that is no upgrade is
//! written as it is, and ends the connection.
//!
//! Only what is answered here may become a session ([`is_open_to`]): the dispatcher would go on reading HTTP behind a 101.
//!
//! Backpressure: a legacy session is polled for more only when the socket took all that it gave before, so being polled means that.
//! Its timers wait as well: a peer that takes nothing is ended by the registry when its credit is used up, and by
//! `TCP_USER_TIMEOUT`. Where the socket takes a part, the session's [`Progress`] is told how much.
//!
//! A v1 session is polled meanwhile, too, for what its client acknowledges bit by bit must be heard although all that was
//! written is not taken. It is told so ([`Outbound`]) and takes nothing from its room, so what it gives then are answers to its
//! client; when `BEHIND` of them wait, its client is not read either. Which of the two stands among the data of the answer
//! ([`Backlog`]).
//!
//! When a session has ended, what is left is still written, and its client read, so that one that reads on gets all of it and the
//! close behind it: a v1 client for `session.stall_seconds` at most, while it takes or says something. The session is gone meanwhile,
//! for its room and for `session.max`; the connection counts for `server.max_connections`.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::poll_fn,
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    net::Shutdown,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_codec::{AsyncRead, AsyncWrite, Encoder, Framed, ReadBuf};
use actix_http::{
    BoxedPayloadStream, ConnectionType, Payload, Request, Response, StatusCode,
    body::{BoxBody, MessageBody},
    error::PayloadError,
    h1::{Codec, Message},
    header::CONTENT_LENGTH,
};
use actix_service::{Service, ServiceFactory, fn_factory};
use actix_web::{
    HttpMessage, HttpRequest,
    http::Method,
    rt::time::{sleep, timeout},
};
use bytes::{Bytes, BytesMut};
use chatting_actors::session::{Outbound, Progress};
use futures_util::{
    Stream, StreamExt,
    future::{LocalBoxFuture, select, try_join},
};
use socket2::SockRef;

use super::{
    lines::UnderWay,
    paced::{Accepted, Paced},
};

/// The most bytes of one read. Clients say little.
const READ: usize = 4096;

/// Bytes of answers of a v1 session that wait behind what its socket has yet to take, before its client is read no more. One turn
/// of the session's may go beyond.
const BEHIND: usize = 16_384;

/// How long a client that was answered for the last time may go on sending before the connection is dropped: what was not read by
/// then can take the answer with it.
const LINGER: Duration = Duration::from_secs(1);

/// How long a v1 client whose session was closed before it had acknowledged all may neither take nor say anything. What the kernel still
/// holds for it does not show here, but clients acknowledge what they read within seconds.
const QUIET: Duration = Duration::from_secs(5);

/// How long such a client may take at most, however long `session.stall_seconds` is: it counts for no `session.max` any more.
const LINGER_MAX: Duration = Duration::from_secs(60);

/// Who is told of what the socket has not taken yet.
#[derive(Clone)]
pub enum Backlog {
    /// How much it took of that.
    Legacy(Rc<Progress>),
    /// That there is some. Its client has so long to take what is left of it when its session has ended.
    V1(Rc<Outbound>, Duration),
}

/// Stands among the data of a request whose answer may be 101: it is answered here, and has no body.
struct Open;

/// Whether this request may become a session.
pub fn is_open_to(request: &HttpRequest) -> bool {
    request.extensions().contains::<Open>()
}

/// A request to upgrade, and its connection.
type Upgrading = (Request, Framed<Paced, Codec>);

/// For `HttpServiceBuilder::upgrade`: answers requests to upgrade by `app`.
pub fn upgrades<A, B>(
    app: A,
) -> impl ServiceFactory<Upgrading, Config = (), Response = (), Error = Infallible, InitError = A::InitError, Future: 'static>
where
    A: ServiceFactory<Request, Config = (), Response: Into<Response<B>>, Error: Into<Response<BoxBody>>> + 'static,
    B: MessageBody + 'static,
{
    fn_factory(move || {
        let app = app.new_service(());
        async move { app.await.map(|app| Upgrades(app, PhantomData)) }
    })
}

/// See [`upgrades`]; one on each worker.
struct Upgrades<A, B>(A, PhantomData<B>);

impl<A, B> Service<Upgrading> for Upgrades<A, B>
where
    A: Service<Request, Response: Into<Response<B>>, Error: Into<Response<BoxBody>>>,
    A::Future: 'static,
    B: MessageBody + 'static,
{
    type Response = ();
    type Error = Infallible;
    type Future = LocalBoxFuture<'static, Result<(), Infallible>>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // One that is not well says so when it is called.
        self.0.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&self, (request, framed): Upgrading) -> Self::Future {
        let parts = framed.into_parts();
        let line = parts.io.line().cloned();
        let (stream, mut taking) = parts.io.into_parts();
        let socket = Rc::new(Socket {
            stream: RefCell::new(stream),
            upgraded: Cell::new(false),
        });
        let body = body_bytes(&request);
        let incoming = Incoming {
            socket: Rc::clone(&socket),
            // What came right behind the request; copied, so that its buffer can go.
            first: Bytes::copy_from_slice(&parts.read_buf),
            left: body,
        };
        if body.is_none() {
            request.extensions_mut().insert(Open);
        }
        // Answers to requests before this one, and what a body waits for.
        let mut before = BytesMut::from(&*parts.write_buf);
        if request.head().expect() {
            before.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        if !before.is_empty() {
            taking.fills();
        }
        let payload: BoxedPayloadStream = Box::pin(incoming);
        let (request, _) = request.replace_payload(Payload::Stream { payload });
        let codec = parts.codec;
        let answer = self.0.call(request);
        let answered = async move {
            let mut sent = 0;
            poll_fn(|cx| socket.poll_write(&before, &mut sent, cx)).await?;
            drop(taking);
            let response = match answer.await {
                Ok(response) => response.into().map_into_boxed_body(),
                Err(error) => error.into(),
            };
            Outgoing::new(response, codec, socket)
        };
        Box::pin(async move {
            // In a box of its own: what it takes to answer is not kept for as long as the session lives.
            if let Ok(outgoing) = Box::pin(answered).await {
                // A session's connection has times of its own, also when the session is over.
                let upgraded = outgoing.socket.upgraded.get();
                let _under_way = upgraded.then(|| UnderWay::new(line.as_ref()));
                outgoing.go().await;
            }
            // As long as there was a connection it was counted, and a stop could end it.
            drop(line);
            Ok(())
        })
    }
}

/// The socket of one connection, whose reading and writing are both of one task.
struct Socket {
    stream: RefCell<Accepted>,
    /// The answer was 101.
    upgraded: Cell<bool>,
}

impl Socket {
    /// Writes until nothing is left of these bytes, of which so many were sent.
    fn poll_write(&self, bytes: &[u8], sent: &mut usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(left @ [_, ..]) = bytes.get(*sent..) {
            let written = Pin::new(&mut self.stream.borrow_mut().0).poll_write(cx, left);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                some => *sent += some,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The length of a request's body, where it says one: asking for an upgrade does not change it (RFC 9110, section 7.8). `None` for
/// one that may go on as a session, and where only the connection's end is the body's.
fn body_bytes(request: &Request) -> Option<u64> {
    // The decoder has seen that it is one number.
    let length = request
        .headers()
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    (length > 0 || request.method() != Method::GET).then_some(length)
}

/// What the peer sends. A session ends where its connection does, in whatever way; a request that is none is cut off there, unless
/// it has said how long it is.
struct Incoming {
    socket: Rc<Socket>,
    first: Bytes,
    /// Bytes that are still to come, where that is known.
    left: Option<u64>,
}

impl Incoming {
    /// As much of what came as belongs to the request.
    fn of_request(&mut self, mut came: Bytes) -> Bytes {
        if let Some(left) = &mut self.left {
            came.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= came.len() as u64;
        }
        came
    }
}

impl Stream for Incoming {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.left == Some(0) {
            return Poll::Ready(None);
        }
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            return Poll::Ready(Some(Ok(self.of_request(first))));
        }
        let mut space = [MaybeUninit::uninit(); READ];
        let mut read = ReadBuf::uninit(&mut space);
        let polled = Pin::new(&mut self.socket.stream.borrow_mut().0).poll_read(cx, &mut read);
        let came = ready!(polled).is_ok() && !read.filled().is_empty();
        Poll::Ready(if came {
            let came = Bytes::copy_from_slice(read.filled());
            Some(Ok(self.of_request(came)))
        } else {
            (!self.socket.upgraded.get()).then_some(Err(PayloadError::Incomplete(None)))
        })
    }
}

/// The answer on its way to the peer: of an upgrade, all that the session ever writes.
struct Outgoing {
    socket: Rc<Socket>,
    /// What the socket did not take all of yet.
    pending: Bytes,
    /// How much of it went.
    sent: usize,
    /// What the body gave meanwhile.
    behind: BytesMut,
    /// Is told of that (sessions).
    backlog: Option<Backlog>,
    body: BoxBody,
    ended: bool,
    /// Frames the body of an answer that is no upgrade.
    refusal: Option<Box<Codec>>,
}

impl Outgoing {
    fn new(mut response: Response<BoxBody>, mut codec: Codec, socket: Rc<Socket>) -> io::Result<Self> {
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        socket.upgraded.set(upgraded);
        if !upgraded {
            response.head_mut().set_connection_type(ConnectionType::Close);
            // The codec, which has seen a request to upgrade, would say that it writes chunks and write none.
            response.head_mut().no_chunking(true);
        }
        let backlog = response.extensions().get().cloned();
        let (head, body) = response.into_parts();
        let mut pending = BytesMut::new();
        codec.encode(Message::Item((head, body.size())), &mut pending)?;
        Ok(Self {
            socket,
            pending: pending.freeze(),
            sent: 0,
            behind: BytesMut::new(),
            backlog,
            body,
            ended: false,
            refusal: (!upgraded).then(|| Box::new(codec)),
        })
    }

    /// Until all is written and the peer has ended the connection too, or is gone.
    async fn go(mut self) {
        let written = poll_fn(|cx| self.poll(cx)).await;
        if written.is_err() {
            return;
        }
        // The session has ended, and is gone from here on.
        self.body = BoxBody::new(());
        let (patience, quiet) = match &self.backlog {
            Some(Backlog::V1(outbound, patience)) if outbound.is_unread() => ((*patience).min(LINGER_MAX), QUIET),
            _ => (LINGER, LINGER),
        };
        let _ = Box::pin(timeout(patience, self.linger(quiet))).await;
    }

    /// Writes what is left, and the end. What the peer sends meanwhile is read and discarded, until its end: unread, it would have the
    /// connection reset, and the kernel drops then what the peer has not got yet. A peer that neither takes nor says anything
    /// for so long is not waited for.
    async fn linger(mut self, quiet: Duration) {
        let socket = Rc::clone(&self.socket);
        let mut rest = Incoming {
            socket: Rc::clone(&socket),
            first: Bytes::new(),
            left: None,
        };
        let moved = Cell::new(false);
        let writes = async {
            poll_fn(|cx| {
                let sent = self.sent;
                let polled = self.poll_pending(cx);
                moved.set(moved.get() || self.sent != sent);
                polled
            })
            .await?;
            SockRef::from(&socket.stream.borrow().0).shutdown(Shutdown::Write)
        };
        let reads = async {
            while let Some(Ok(_)) = rest.next().await {
                moved.set(true);
            }
            Ok(())
        };
        let stands_still = async {
            loop {
                sleep(quiet).await;
                if !moved.take() {
                    return;
                }
            }
        };
        select(pin!(try_join(writes, reads)), pin!(stands_still)).await;
    }

    /// Until the socket has all that is pending, and what is behind it.
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(Backlog::Legacy(progress)) = &self.backlog
                && let Some(rest) = progress.resumes(&self.pending, self.sent)
            {
                (self.pending, self.sent) = (rest, 0);
            }
            let polled = self.socket.poll_write(&self.pending, &mut self.sent, cx);
            if let Poll::Ready(Ok(())) = polled {
                (self.pending, self.sent) = (Bytes::new(), 0);
                if !self.behind.is_empty() {
                    self.pending = std::mem::take(&mut self.behind).freeze();
                    continue;
                }
            } else if let Some(Backlog::Legacy(progress)) = &self.backlog {
                progress.blocked(&self.pending, self.sent);
            }
            return polled;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let blocked = match self.poll_pending(cx) {
                Poll::Ready(written) => written.map(|()| false)?,
                Poll::Pending => true,
            };
            match &self.backlog {
                Some(Backlog::V1(outbound, _)) => outbound.set_blocked(blocked),
                _ if blocked => return Poll::Pending,
                _ => {}
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if self.behind.len() >= BEHIND {
                return Poll::Pending;
            }
            let chunk = ready!(Pin::new(&mut self.body).poll_next(cx)).transpose();
            let chunk = chunk.map_err(|error| io::Error::other(error.to_string()))?;
            self.ended = chunk.is_none();
            let chunk = match &mut self.refusal {
                None => chunk.unwrap_or_default(),
                Some(codec) => {
                    let mut framed = BytesMut::new();
                    codec.encode(Message::Chunk(chunk), &mut framed)?;
                    framed.freeze()
                }
            };
            if blocked {
                self.behind.extend_from_slice(&chunk);
            } else {
                self.pending = chunk;
            }
        }
    }
}
