//! Ends connections on which nobody asks for anything and that stay open all the same.
//!
//! actix-web gives the head of a connection's first request its time (`server.client_request_seconds`), and waits so long for a
//! next one to begin (`server.keep_alive_seconds`). A next one that has begun has all the time in the world: a byte now and
//! then keeps such a connection for ever, and so does a chunked body that nobody reads any more. So each connection says here
//! when a request is under way, answer included, and one that has had none for both times together is shut. WebSockets are
//! requests under way: their own times are the session's.
//!
//! When full: it holds a pointer a connection, and `server.max_connections` bounds those.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;
use chatting_actors::seams::Socket;
use pin_project_lite::pin_project;

/// How often connections are looked at.
const SWEEP: Duration = Duration::from_millis(500);

/// One connection, as far as it is watched.
pub struct Line {
    socket: Arc<dyn Socket>,
    all: Lines,
    /// Requests under way; pipelined ones wait in the connection and are none yet.
    under_way: AtomicUsize,
    /// When the last of them ended, in milliseconds since the list began.
    idle_since_ms: AtomicU64,
}

/// See the module's text; clones share the list.
#[derive(Clone)]
pub struct Lines {
    /// How long a connection may be without a request.
    patience: Duration,
    began: Instant,
    list: Arc<Mutex<Vec<Weak<Line>>>>,
}

impl Lines {
    /// Lets a connection be without a request for so long.
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            began: Instant::now(),
            list: Arc::default(),
        }
    }

    /// Watches a connection that was just accepted, for as long as the line lives.
    pub fn add(&self, socket: Arc<dyn Socket>) -> Arc<Line> {
        let line = Arc::new(Line {
            socket,
            all: self.clone(),
            under_way: AtomicUsize::new(0),
            idle_since_ms: AtomicU64::new(self.now_ms()),
        });
        self.list().push(Arc::downgrade(&line));
        line
    }

    /// Looks at all connections now and then, until it is aborted.
    pub async fn keep(self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.sweep(self.now_ms());
        }
    }

    /// Ends all connections, whatever is under way on them.
    pub fn shut_all(&self) {
        for line in self.list().drain(..).filter_map(|line| line.upgrade()) {
            line.socket.shut();
        }
    }

    fn sweep(&self, now_ms: u64) {
        let patience = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
        self.list().retain(|line| {
            let Some(line) = line.upgrade() else {
                return false;
            };
            let idle = line.under_way.load(Ordering::Acquire) == 0;
            if idle && now_ms.saturating_sub(line.idle_since_ms.load(Ordering::Acquire)) > patience {
                // The connection's own task notices and lets the line go.
                line.socket.shut();
                return false;
            }
            true
        });
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn list(&self) -> MutexGuard<'_, Vec<Weak<Line>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is under way on its connection, until this is dropped.
pub struct UnderWay(Option<Arc<Line>>);

impl UnderWay {
    /// One on this connection, where it is watched.
    pub fn new(line: Option<&Arc<Line>>) -> Self {
        if let Some(line) = line {
            line.under_way.fetch_add(1, Ordering::AcqRel);
        }
        Self(line.cloned())
    }
}

impl UnderWay {
    /// It goes on until the body of its answer has been handed over.
    pub fn until_end_of<B>(self, body: B) -> Watched<B> {
        Watched { body, under_way: self }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(line) = &self.0 {
            // The time first: a sweep that sees no request sees when the last one ended, too.
            line.idle_since_ms.store(line.all.now_ms(), Ordering::Release);
            line.under_way.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

pin_project! {
    /// An answer's body that counts as a request under way until it has been handed over.
    pub struct Watched<B> {
        #[pin]
        body: B,
        under_way: UnderWay,
    }
}

impl<B: MessageBody> MessageBody for Watched<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.project().body.poll_next(cx)
    }

    fn try_into_bytes(self) -> Result<Bytes, Self> {
        let Self { body, under_way } = self;
        body.try_into_bytes().map_err(|body| Self { body, under_way })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[derive(Default)]
    struct Shut(AtomicBool);

    impl Socket for Shut {
        fn shut(&self) {
            self.0.store(true, Ordering::Release);
        }
    }

    #[test]
    fn only_a_connection_that_has_long_had_no_request_is_shut() {
        let lines = Lines::new(Duration::from_secs(10));
        let sockets: Vec<Arc<Shut>> = (0..3).map(|_| Arc::default()).collect();
        let mut open: Vec<_> = sockets
            .iter()
            .map(|socket| lines.add(Arc::clone(socket) as _))
            .collect();
        let busy = UnderWay::new(Some(&open[1]));
        open.pop();
        lines.sweep(9_000);
        assert_eq!(lines.list().len(), 2, "connections that are gone are forgotten");
        lines.sweep(20_000);
        let shut = |n: usize| sockets[n].0.load(Ordering::Acquire);
        assert_eq!([shut(0), shut(1), shut(2)], [true, false, false]);
        drop(busy);
        lines.sweep(9_000);
        assert!(!shut(1), "its time begins when its request ends");
        lines.sweep(20_000);
        assert!(shut(1));
    }
}
