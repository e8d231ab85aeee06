//! A connection that becomes a WebSocket, after it left actix-web's dispatcher.
//!
//! The dispatcher keeps two buffers of 8 KiB and its timers for every connection, which ten thousand idle presenters pay for,
//! and each frame goes through one of those buffers. So a request to upgrade is answered by the same application, on the same
//! worker, but over the bare socket: what is read goes straight to the session's codec, what the session writes straight to
//! the socket, and an idle connection has no buffer at all. An answer that is no upgrade is written as it is, and ends the
//! connection.
//!
//! Backpressure: the session is polled for more only when the socket took all that it gave before, so being polled means that.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::poll_fn,
    io,
    marker::PhantomData,
    mem::MaybeUninit,
    net::Shutdown,
    pin::Pin,
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
};
use actix_service::{Service, ServiceFactory, fn_factory};
use actix_web::rt::{net::TcpStream, time::timeout};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, future::LocalBoxFuture};
use socket2::SockRef;

/// The most bytes of one read. Clients say little.
const READ: usize = 4096;

/// How long a client that was refused may go on sending before the connection is dropped: what was not read by then can take
/// the answer with it.
const LINGER: Duration = Duration::from_secs(1);

/// A request to upgrade, and its connection.
type Upgrading = (Request, Framed<TcpStream, Codec>);

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
        let socket = Rc::new(RefCell::new(parts.io));
        let incoming = Incoming {
            socket: Rc::clone(&socket),
            // What came right behind the request; copied, so that its buffer can go.
            first: Bytes::copy_from_slice(&parts.read_buf),
        };
        let payload: BoxedPayloadStream = Box::pin(incoming);
        let (request, _) = request.replace_payload(Payload::Stream { payload });
        // Answers to requests before this one.
        let before = BytesMut::from(&*parts.write_buf);
        let codec = parts.codec;
        let answer = self.0.call(request);
        let answered = async move {
            match answer.await {
                Ok(response) => Outgoing::new(response.into().map_into_boxed_body(), before, codec, socket),
                Err(error) => Outgoing::new(error.into(), before, codec, socket),
            }
        };
        Box::pin(async move {
            // In a box of its own: what it takes to answer is not kept for as long as the session lives.
            Box::pin(answered).await.go().await;
            Ok(())
        })
    }
}

/// The socket of one connection, whose reading and writing are both of one task.
type Shared = Rc<RefCell<TcpStream>>;

/// What the peer sends. It ends where the connection does, in whatever way.
struct Incoming {
    socket: Shared,
    first: Bytes,
}

impl Stream for Incoming {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.first))));
        }
        let mut space = [MaybeUninit::uninit(); READ];
        let mut read = ReadBuf::uninit(&mut space);
        let polled = Pin::new(&mut *self.socket.borrow_mut()).poll_read(cx, &mut read);
        let came = ready!(polled).is_ok() && !read.filled().is_empty();
        Poll::Ready(came.then(|| Ok(Bytes::copy_from_slice(read.filled()))))
    }
}

/// The answer on its way to the peer: of an upgrade, all that the session ever writes.
struct Outgoing {
    socket: Shared,
    /// What the socket did not take yet.
    pending: Bytes,
    body: BoxBody,
    ended: bool,
    /// Frames the body of an answer that is no upgrade.
    refusal: Option<Box<Codec>>,
}

impl Outgoing {
    fn new(mut response: Response<BoxBody>, mut before: BytesMut, mut codec: Codec, socket: Shared) -> Self {
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !upgraded {
            response.head_mut().set_connection_type(ConnectionType::Close);
        }
        let (head, body) = response.into_parts();
        let body = match codec.encode(Message::Item((head, body.size())), &mut before) {
            Ok(()) => body,
            Err(error) => {
                log::error!("the head of an answer cannot be written: {error}");
                BoxBody::new(())
            }
        };
        Self {
            socket,
            pending: before.freeze(),
            body,
            ended: false,
            refusal: (!upgraded).then(|| Box::new(codec)),
        }
    }

    /// Until all is written or the peer is gone.
    async fn go(mut self) {
        let written = poll_fn(|cx| self.poll(cx)).await;
        if written.is_err() {
            return;
        }
        let _ = SockRef::from(&*self.socket.borrow()).shutdown(Shutdown::Write);
        if self.refusal.is_some() {
            let mut rest = Incoming {
                socket: self.socket,
                first: Bytes::new(),
            };
            let lingers = async move { while rest.next().await.is_some() {} };
            let _ = Box::pin(timeout(LINGER, lingers)).await;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.pending.is_empty() {
                let written = Pin::new(&mut *self.socket.borrow_mut()).poll_write(cx, &self.pending);
                match ready!(written)? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    all if all == self.pending.len() => self.pending = Bytes::new(),
                    some => self.pending.advance(some),
                }
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            let chunk = ready!(Pin::new(&mut self.body).poll_next(cx)).transpose();
            let chunk = chunk.map_err(|error| io::Error::other(error.to_string()))?;
            self.ended = chunk.is_none();
            self.pending = match &mut self.refusal {
                None => chunk.unwrap_or_default(),
                Some(codec) => {
                    let mut framed = BytesMut::new();
                    codec.encode(Message::Chunk(chunk), &mut framed)?;
                    framed.freeze()
                }
            };
        }
    }
}
