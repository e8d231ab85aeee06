//! A chunked body that nobody reads to its end is the last on its connection.
//!
//! actix-http's dispatcher ends a connection behind the answer to a request whose body is not read, and says so in the answer, but
//! for a chunked body whose reader is gone: that one it reads on and discards, for as long as its client sends. So the reader is
//! kept until all of the answer is given ([`super::lines::Watched`]).

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use actix_web::{
    HttpMessage,
    dev::{Payload, ServiceRequest},
    error::PayloadError,
    http::header::TRANSFER_ENCODING,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

/// The chunked body of one request.
pub struct Chunked {
    body: RefCell<Payload>,
    /// It was read to its end.
    ended: Cell<bool>,
}

impl Chunked {
    /// That of this request, where it has one; its handler reads it through this.
    pub fn of(request: &mut ServiceRequest) -> Option<Rc<Self>> {
        if !request.headers().contains_key(TRANSFER_ENCODING) {
            return None;
        }
        let body = request.take_payload();
        // What is no body of the dispatcher's ends with its connection anyway (`transport`).
        if !matches!(body, Payload::H1 { .. }) {
            request.set_payload(body);
            return None;
        }
        let chunked = Rc::new(Self {
            body: RefCell::new(body),
            ended: Cell::new(false),
        });
        let reader = Box::pin(Reader(Rc::clone(&chunked)));
        request.set_payload(Payload::Stream { payload: reader });
        Some(chunked)
    }

    /// Whether some of it was not read, as far as is known.
    pub fn is_unread(&self) -> bool {
        !self.ended.get()
    }
}

/// What the handler has.
struct Reader(Rc<Chunked>);

impl Stream for Reader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.0.body.borrow_mut().poll_next_unpin(cx));
        if next.is_none() {
            self.0.ended.set(true);
        }
        Poll::Ready(next)
    }
}
