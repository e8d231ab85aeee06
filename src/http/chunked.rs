//! A chunked body that nobody reads to its end is the last on its connection.
//!
//! actix-http's dispatcher ends a connection behind the answer to a request whose body is not read, and says so in the answer, but
//! for a chunked body whose reader is gone: that one it reads on and discards, for as long as its client sends. So the reader is
//! kept until all of the answer is given ([`super::lines::Watched`]).
//!
//! Of a body that came whole nothing is left to read on, whoever read it: its connection goes on, as it does where there is a
//! length. What came together with its head is told from what is still to come once the dispatcher has had a turn. It decodes the next
//! request then, too, if that came with it, and frames the answer by that: before a HEAD request it comes without its body, as each answer
//! does that takes a turn (`super::paced`).

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
use futures_util::{FutureExt, Stream, StreamExt};

/// The chunked body of one request.
pub struct Chunked {
    body: RefCell<Payload>,
    /// It was read to its end.
    ended: Cell<bool>,
}

impl Chunked {
    /// That of this request, where it has one; its handler reads it through this, and has all of it that came with the head.
    pub async fn of(request: &mut ServiceRequest) -> Option<Rc<Self>> {
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
        // The dispatcher asks for an answer before it decodes what is behind the head.
        tokio::task::yield_now().await;
        Some(chunked)
    }

    /// Whether some of it has not come yet. What has come is dropped: nobody reads it any more.
    pub fn is_unread(&self) -> bool {
        let mut body = self.body.borrow_mut();
        while !self.ended.get() {
            match body.next().now_or_never() {
                Some(Some(Ok(_))) => {}
                Some(Some(Err(_)) | None) => self.ended.set(true),
                None => return true,
            }
        }
        false
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
