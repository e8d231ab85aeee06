//! A connection as its dispatcher sees it: it is read no faster than its client takes its answers.
//!
//! actix-http's dispatcher reads whenever it runs, decodes all that it has read, and looks neither at what the socket has not taken yet
//! nor, within what it has read, at how many requests wait. A client that asks and asks, and takes no answer, would have it
//! collect both without bound. So this stands between the two, and lets nothing be read
//! - while the socket is full: what was read before is answered, and that is all;
//! - while a request is under way whose body has come, or that nobody reads the body of: what comes then is of the next one.
//!
//! All else waits in the kernel's buffers. What a client may ask in advance is what is read in one turn of the dispatcher, some
//! `TURN` bytes. How long the socket may be full is counted on the connection's line ([`Taking`]).
//!
//! What is read in one turn is the dispatcher's, with two faults of its own that nothing here can see. It frames an answer by the
//! request that it decoded last: one whose answer has no body, as of `HEAD`, takes it from an answer that was still being made when
//! both came in one segment. And where it waits for the rest of a body, it says `Connection: close` in the answers to the requests
//! before that one, and goes on all the same, unless one of them is empty: behind that one nothing is answered. Who asks in advance by
//! `GET` alone never sees it.
//!
//! What waits in the kernel when a connection ends is discarded first ([`Accepted`]).
//!
//! Nobody is woken by the socket for what was not read. The dispatcher ends each of its turns by flushing, or with a socket that is full:
//! [`Paced::poll_flush`] wakes it when there is something that it may read now.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use actix_codec::{AsyncRead, AsyncWrite, ReadBuf, poll_read_buf};
use actix_web::rt::net::TcpStream;
use bytes::BufMut;
use socket2::SockRef;

use super::lines::{Line, Taking};

/// The bytes of one turn: more than nearly every request has. A turn may end with as many again.
const TURN: usize = 4 * 1024;

/// The most bytes that are discarded at a connection's end. Who has sent more behind its last answer may lose a part of that.
const DISCARDED: usize = 64 * 1024;

/// A client's socket. Who closes one that has something unread resets it (RFC 9112, section 9.6), and the kernel drops what the client
/// has not got yet of its answer: so that is read first, and discarded. One whose end is to be a reset is reset all the same.
pub struct Accepted(pub(super) TcpStream);

impl Drop for Accepted {
    fn drop(&mut self) {
        // Asks the kernel: what tokio knows of the socket may be older than what came last.
        let socket = SockRef::from(&self.0);
        let mut some = [MaybeUninit::uninit(); TURN];
        for _ in 0..DISCARDED / TURN {
            if !matches!(socket.recv(&mut some), Ok(1..)) {
                break;
            }
        }
    }
}

/// A socket that was just accepted; see above.
pub struct Paced {
    stream: Accepted,
    taking: Taking,
    /// Bytes that were read in this turn.
    read: usize,
    /// There may be something to read that nobody is woken for.
    left: bool,
}

impl Paced {
    /// Over this socket, whose line this is.
    pub fn new(stream: TcpStream, line: Option<Arc<Line>>) -> Self {
        Self {
            stream: Accepted(stream),
            taking: Taking::new(line),
            read: 0,
            left: false,
        }
    }

    /// Its line, where it is watched.
    pub fn line(&self) -> Option<&Arc<Line>> {
        self.taking.line()
    }

    /// The socket for who paces itself, and how its client took what it was given before.
    pub fn into_parts(self) -> (Accepted, Taking) {
        (self.stream, self.taking)
    }

    /// Whether what comes is of requests behind the one that is under way.
    fn answers(&self) -> bool {
        self.line().is_some_and(|line| line.answers())
    }

    /// Tells of the end of the connection, and nothing else.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut next = [0];
        let there = ready!(self.stream.0.poll_peek(cx, &mut ReadBuf::new(&mut next)))?;
        if there == 0 {
            return Poll::Ready(Ok(()));
        }
        self.left = true;
        Poll::Pending
    }
}

impl AsyncRead for Paced {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.taking.is_full() {
            this.left = true;
            return Poll::Pending;
        }
        if this.answers() {
            return this.poll_end(cx);
        }
        if this.read >= TURN {
            this.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut some = buf.limit(TURN);
        this.read += ready!(poll_read_buf(Pin::new(&mut this.stream.0), cx, &mut some))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Paced {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream.0).poll_write(cx, buf);
        match &polled {
            Poll::Ready(Ok(taken)) => this.taking.takes(*taken),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => this.taking.fills(),
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.taking.took_all();
        this.read = 0;
        if this.left && !this.answers() {
            this.left = false;
            cx.waker().wake_by_ref();
        }
        Pin::new(&mut this.stream.0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream.0).poll_shutdown(cx)
    }
}
