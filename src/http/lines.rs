//! Ends connections on which nobody asks for anything and that stay open all the same, and those whose client does not take its
//! answer.
//!
//! actix-web gives the head of a connection's first request its time (`server.client_request_seconds`), and waits so long for a
//! next one to begin (`server.keep_alive_seconds`). A next one that has begun has all the time in the world: a byte now and
//! then keeps such a connection for ever. So each connection says here
//! when a request is under way, answer included, and one that has had none for both times together is shut. WebSockets are
//! requests under way: their own times are the session's.
//!
//! An answer is given to the connection in pieces of 16 KiB, the next one when the socket took nearly all before it. The time in
//! between is the client's. It may be `server.answer_seconds` in all, and a second more for each `server.answer_bytes_per_second`
//! that were given; then the connection is shut, so that an answer, what it holds and its permits do not stay for ever. An answer
//! that fails on the way ends with a reset, which no client takes for its end.
//!
//! Answers of one piece or none are not waited for one by one: many of them fit into what the connection has for its client. There the
//! time counts in which the socket is full ([`Taking`]): `server.answer_seconds`, of which a client has a second back for each
//! `server.answer_bytes_per_second` that it takes, until the socket took all.
//!
//! An answer is in memory until its last piece is given. What all of those hold that are longer than a piece is bounded
//! ([`super::answers`], [`long`]). Not counted are streams, which are made as they are taken, and what all answers share ([`Shared`]).
//!
//! When full: it holds a pointer a connection, and `server.max_connections` bounds those. So many are counted here ([`Open`]): who comes
//! beyond them waits in the kernel, where nobody is told.

use std::{
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use actix_web::{
    HttpResponse,
    body::{BodySize, MessageBody},
};
use bytes::Bytes;
use chatting_actors::{
    queues::{Queue, Queues},
    seams::Socket,
};
use pin_project_lite::pin_project;
use prometheus_client::metrics::counter::Counter;

use super::{answers::Held, chunked::Chunked};

/// How often connections are looked at.
const SWEEP: Duration = Duration::from_millis(500);

/// The most bytes of an answer that are given to its connection at once.
const PIECE: usize = 16 * 1024;

/// Nothing is waited for.
const NEVER: u64 = u64::MAX;

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A connection may be without a request.
    pub idle: Duration,
    /// A client may keep an answer waiting in all,
    pub answer: Duration,
    /// and a second more for so many bytes of it.
    pub answer_bytes_per_second: u64,
}

/// One connection, as far as it is watched.
pub struct Line {
    socket: Arc<dyn Socket>,
    all: Lines,
    /// Requests under way; pipelined ones wait in the connection and are none yet.
    under_way: AtomicUsize,
    /// When the last of them ended, in milliseconds since the list began.
    idle_since_ms: AtomicU64,
    /// Somebody reads the body of the one that is under way.
    reads_body: AtomicBool,
    /// When its client will have kept an answer waiting for too long, if it takes nothing until then.
    waits_until_ms: AtomicU64,
    /// That answer has several pieces: its own time counts, not the socket's.
    has_pieces: AtomicBool,
    /// When the socket will have been full for too long, if its client takes nothing until then.
    full_until_ms: AtomicU64,
    /// It was shut over an answer, and is counted.
    cut: AtomicBool,
}

impl Line {
    /// Shuts it, and what else can be done to a connection from elsewhere.
    pub fn socket(&self) -> &Arc<dyn Socket> {
        &self.socket
    }

    /// A request is under way that nothing more is read of: whatever comes belongs to the next ones.
    pub fn answers(&self) -> bool {
        self.under_way.load(Ordering::Acquire) > 0 && !self.reads_body.load(Ordering::Relaxed)
    }

    /// What comes belongs to the request that is under way, until this is dropped.
    pub fn read_body(self: &Arc<Self>) -> ReadsBody {
        self.reads_body.store(true, Ordering::Relaxed);
        ReadsBody(Arc::clone(self))
    }

    /// Whether its client has let what it is given wait for longer than it may.
    fn waited_too_long(&self, now_ms: u64) -> bool {
        let is_over = |until_ms: &AtomicU64| now_ms > until_ms.load(Ordering::Relaxed);
        is_over(&self.waits_until_ms) || (!self.has_pieces.load(Ordering::Relaxed) && is_over(&self.full_until_ms))
    }
}

/// See [`Line::read_body`].
pub struct ReadsBody(Arc<Line>);

impl Drop for ReadsBody {
    fn drop(&mut self) {
        self.0.reads_body.store(false, Ordering::Relaxed);
    }
}

/// How many connections are open, as the metrics have it: the queue `connections`.
#[derive(Clone)]
pub struct Open {
    queue: Queue,
    /// Looks at them that found no place for another one.
    full: Counter,
    most: usize,
}

impl Open {
    /// At most so many are.
    pub fn new(queues: &Queues, most: usize) -> Self {
        let (queue, full) = queues.waiting("connections", most);
        Self { queue, full, most }
    }

    fn are(&self, open: usize) {
        self.queue.holds(open);
        if open >= self.most {
            self.full.inc();
        }
    }
}

/// The open connections of a server ([`Lines::add`]); while [`Lines::keep`] runs, those that stay too long are shut.
/// Clones share the list.
#[derive(Clone)]
pub struct Lines {
    patience: Patience,
    began: Instant,
    list: Arc<Mutex<Vec<Weak<Line>>>>,
    /// The time of the last look at them: near enough for answers, and costs no look at the clock.
    looked_ms: Arc<AtomicU64>,
    /// Connections that were shut over an answer.
    answers_cut: Counter,
    open: Open,
}

impl Lines {
    /// A list of clients who may take so long; `answers_cut` counts those who took longer over an answer.
    pub fn new(patience: Patience, answers_cut: Counter, open: Open) -> Self {
        Self {
            patience,
            began: Instant::now(),
            list: Arc::default(),
            looked_ms: Arc::default(),
            answers_cut,
            open,
        }
    }

    /// Watches a connection that was just accepted, for as long as the line lives.
    pub fn add(&self, socket: Arc<dyn Socket>) -> Arc<Line> {
        let line = Arc::new(Line {
            socket,
            all: self.clone(),
            under_way: AtomicUsize::new(0),
            idle_since_ms: AtomicU64::new(self.now_ms()),
            reads_body: AtomicBool::new(false),
            waits_until_ms: AtomicU64::new(NEVER),
            has_pieces: AtomicBool::new(false),
            full_until_ms: AtomicU64::new(NEVER),
            cut: AtomicBool::new(false),
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

    /// Ends all connections, whatever is under way on them; gives how many there were. By a reset: what they have of an answer is not
    /// all of it.
    pub fn shut_all(&self) -> usize {
        // They stay in the list, so that one which could not be shut is tried again by the next call.
        let mut list = self.list();
        list.retain(|line| line.strong_count() > 0);
        let open = list.iter().filter_map(Weak::upgrade);
        open.map(|line| {
            line.socket.end_by_reset();
            line.socket.shut();
        })
        .count()
    }

    fn sweep(&self, now_ms: u64) {
        self.looked_ms.store(now_ms, Ordering::Relaxed);
        let patience = ms(self.patience.idle);
        let mut list = self.list();
        list.retain(|line| {
            let Some(line) = line.upgrade() else {
                return false;
            };
            if line.waited_too_long(now_ms) {
                line.socket.end_by_reset();
                line.socket.shut();
                // Who reads this may count on the end.
                if !line.cut.swap(true, Ordering::Relaxed) {
                    self.answers_cut.inc();
                }
                return true;
            }
            let idle = line.under_way.load(Ordering::Acquire) == 0;
            if idle && now_ms.saturating_sub(line.idle_since_ms.load(Ordering::Acquire)) > patience {
                line.socket.shut();
            }
            // Until the connection's own task notices, and lets the line go: it may not have been shut, as where there is no descriptor
            // left to shut it by.
            true
        });
        self.open.are(list.len());
    }

    fn now_ms(&self) -> u64 {
        ms(self.began.elapsed())
    }

    fn list(&self) -> MutexGuard<'_, Vec<Weak<Line>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Stands among the data of an answer whose body is the same bytes for everyone: it takes no memory of its own.
pub struct Shared;

/// What an answer keeps in memory until its client has taken it; `None` where that is a piece or less, or not its own.
pub fn long<B: MessageBody>(response: &HttpResponse<B>) -> Option<usize> {
    let bytes = length(response.body()).filter(|bytes| *bytes > PIECE);
    bytes.filter(|_| !response.extensions().contains::<Shared>())
}

/// The length of a body that is there as a whole.
fn length(body: &impl MessageBody) -> Option<usize> {
    match body.size() {
        BodySize::Sized(bytes) => Some(usize::try_from(bytes).unwrap_or(usize::MAX)),
        BodySize::None | BodySize::Stream => None,
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
    /// It goes on until the body of its answer has been handed over; until then that keeps `held`. `session`: that is a WebSocket, whose
    /// times are not watched here. `unread`: the body of the request, where the dispatcher is to see that nobody reads it on.
    pub fn until_end_of<B>(
        self,
        body: B,
        session: bool,
        held: Option<Held>,
        unread: Option<Rc<Chunked>>,
    ) -> Watched<B> {
        Watched {
            body,
            rest: Bytes::new(),
            pace: self.0.as_ref().filter(|_| !session).map(|_| Pace::default()),
            under_way: self,
            held,
            unread,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(line) = &self.0 {
            line.waits_until_ms.store(NEVER, Ordering::Relaxed);
            line.has_pieces.store(false, Ordering::Relaxed);
            // The time first: a sweep that sees no request sees when the last one ended, too.
            line.idle_since_ms.store(line.all.now_ms(), Ordering::Release);
            line.under_way.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// How a client takes its answer.
#[derive(Default)]
struct Pace {
    /// Bytes that were given to the connection.
    given: u64,
    /// How long the client has kept it waiting before.
    waited_ms: u64,
    /// Since when it does now.
    waits_since_ms: Option<u64>,
}

impl Pace {
    /// The connection asks for more: its client took what it had.
    fn taken(&mut self, line: &Line) {
        if let Some(since) = self.waits_since_ms.take() {
            self.waited_ms += line.all.looked_ms.load(Ordering::Relaxed).saturating_sub(since);
            line.waits_until_ms.store(NEVER, Ordering::Relaxed);
        }
    }

    /// The connection has so many bytes more for its client.
    fn given(&mut self, bytes: usize, line: &Line) {
        let patience = &line.all.patience;
        if self.given > 0 {
            line.has_pieces.store(true, Ordering::Relaxed);
        }
        self.given += bytes as u64;
        let for_bytes = self.given.saturating_mul(1000) / patience.answer_bytes_per_second.max(1);
        let left = (ms(patience.answer) + for_bytes).saturating_sub(self.waited_ms);
        let now = line.all.looked_ms.load(Ordering::Relaxed);
        self.waits_since_ms = Some(now);
        line.waits_until_ms.store(now.saturating_add(left), Ordering::Relaxed);
    }
}

/// How a client takes what its socket was given, whatever answers that is of.
pub struct Taking {
    line: Option<Arc<Line>>,
    full: bool,
}

impl Taking {
    /// Of the socket of this line, where it is watched.
    pub fn new(line: Option<Arc<Line>>) -> Self {
        Self { line, full: false }
    }

    /// What it is counted on.
    pub fn line(&self) -> Option<&Arc<Line>> {
        self.line.as_ref()
    }

    /// Whether the socket took less than it was given.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// The socket takes no more now.
    pub fn fills(&mut self) {
        if !self.full {
            self.full = true;
            if let Some(line) = &self.line {
                line.full_until_ms.store(Self::longest(line), Ordering::Relaxed);
            }
        }
    }

    /// The socket took so many bytes.
    pub fn takes(&mut self, bytes: usize) {
        if let Some(line) = self.line.as_ref().filter(|_| self.full) {
            let back = (bytes as u64).saturating_mul(1000) / line.all.patience.answer_bytes_per_second.max(1);
            let longest = Self::longest(line);
            let until = if line.has_pieces.load(Ordering::Relaxed) {
                longest
            } else {
                line.full_until_ms
                    .load(Ordering::Relaxed)
                    .saturating_add(back)
                    .min(longest)
            };
            line.full_until_ms.store(until, Ordering::Relaxed);
        }
    }

    /// The socket took all.
    pub fn took_all(&mut self) {
        if self.full {
            self.full = false;
            if let Some(line) = &self.line {
                line.full_until_ms.store(NEVER, Ordering::Relaxed);
            }
        }
    }

    /// When a client will have waited for too long that has all its time left.
    fn longest(line: &Line) -> u64 {
        let now = line.all.looked_ms.load(Ordering::Relaxed);
        now.saturating_add(ms(line.all.patience.answer))
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.took_all();
    }
}

pin_project! {
    /// An answer's body that counts as a request under way until it has been handed over, piece by piece.
    pub struct Watched<B> {
        #[pin]
        body: B,
        rest: Bytes,
        pace: Option<Pace>,
        under_way: UnderWay,
        held: Option<Held>,
        unread: Option<Rc<Chunked>>,
    }
}

impl<B: MessageBody> MessageBody for Watched<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.project();
        let (Some(pace), Some(line)) = (this.pace, &this.under_way.0) else {
            return this.body.poll_next(cx);
        };
        pace.taken(line);
        let mut next = std::mem::take(this.rest);
        if next.is_empty() {
            next = match ready!(this.body.poll_next(cx)) {
                Some(Ok(next)) => next,
                Some(Err(error)) => {
                    line.socket.end_by_reset();
                    return Poll::Ready(Some(Err(error)));
                }
                None => return Poll::Ready(None),
            };
        }
        if next.len() > PIECE {
            *this.rest = next.split_off(PIECE);
        }
        pace.given(next.len(), line);
        Poll::Ready(Some(Ok(next)))
    }

    fn try_into_bytes(self) -> Result<Bytes, Self> {
        // What is no longer than a piece is handed over with this. The rest stays what it is, whatever it is put into: it is given in
        // pieces, and counts until then. So does one that keeps its request's body.
        if self.unread.is_some() || length(&self.body).is_some_and(|bytes| bytes > PIECE) {
            return Err(self);
        }
        let Self {
            body,
            rest,
            pace,
            under_way,
            held,
            unread,
        } = self;
        body.try_into_bytes().map_err(|body| Self {
            body,
            rest,
            pace,
            under_way,
            held,
            unread,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::atomic::AtomicBool};

    use actix_web::body::BodyStream;
    use chatting_actors::metrics::Metrics;
    use prometheus_client::registry::Registry;

    use super::*;

    fn lines() -> Lines {
        let patience = Patience {
            idle: Duration::from_secs(10),
            answer: Duration::from_secs(4),
            answer_bytes_per_second: 10_000,
        };
        let metrics = Metrics::new(&mut Registry::default());
        Lines::new(patience, Counter::default(), Open::new(&metrics.queues, 2))
    }

    #[derive(Default)]
    struct Shut(AtomicBool);

    impl Socket for Shut {
        fn shut(&self) {
            self.0.store(true, Ordering::Release);
        }
    }

    #[test]
    fn only_a_connection_that_has_long_had_no_request_is_shut() {
        let lines = lines();
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

    #[actix_web::test]
    async fn an_answer_is_given_in_pieces_and_its_client_is_cut_when_it_has_kept_them_waiting_for_too_long() {
        let lines = lines();
        let socket = Arc::<Shut>::default();
        let line = lines.add(Arc::clone(&socket) as _);
        let shut = || socket.0.load(Ordering::Acquire);
        let said = vec![7; 2 * PIECE + 5];
        let mut answer = UnderWay::new(Some(&line)).until_end_of(said.clone(), false, None, None);
        let mut next = async || {
            let piece = poll_fn(|cx| Pin::new(&mut answer).poll_next(cx)).await;
            piece.map(|piece| piece.unwrap_or_default())
        };
        lines.sweep(1_000);
        let first = next().await.unwrap_or_default();
        // Four seconds, and 1.6 for the bytes.
        lines.sweep(6_000);
        assert_eq!((first.len(), shut()), (PIECE, false));
        let second = next().await.unwrap_or_default();
        // It has taken 5 of 4 + 3.2 s.
        lines.sweep(8_000);
        assert_eq!((second.len(), shut()), (PIECE, false));
        let third = next().await.unwrap_or_default();
        assert_eq!([&first[..], &second, &third].concat(), said);
        lines.sweep(8_200);
        assert!(!shut());
        lines.sweep(8_300);
        assert!(shut(), "7 of 7.2 s were used, and 0.3 more");
        lines.sweep(8_800);
        assert_eq!(lines.answers_cut.get(), 1, "it is counted once");
    }

    #[test]
    fn a_client_that_leaves_its_socket_full_is_cut_and_what_it_takes_gives_it_its_time_back_but_no_more() {
        let lines = lines();
        let socket = Arc::<Shut>::default();
        let line = lines.add(Arc::clone(&socket) as _);
        let shut = || socket.0.load(Ordering::Acquire);
        let mut taking = Taking::new(Some(Arc::clone(&line)));
        let _one_more = UnderWay::new(Some(&line));
        lines.sweep(1_000);
        taking.fills();
        // Answers that come and go behind one that is not taken change nothing.
        for _ in 0..3 {
            drop(UnderWay::new(Some(&line)));
        }
        lines.sweep(4_000);
        // A tenth of a second for a thousand bytes.
        taking.takes(1_000);
        taking.fills();
        lines.sweep(5_100);
        assert!(!shut());
        // A hundred seconds' worth, and it has four.
        taking.takes(1_000_000);
        lines.sweep(9_100);
        assert!(!shut());
        taking.took_all();
        lines.sweep(90_000);
        taking.fills();
        lines.sweep(94_000);
        assert!(!shut() && taking.is_full());
        lines.sweep(94_100);
        assert_eq!((shut(), lines.answers_cut.get()), (true, 1));
        // What is no longer written from here is not waited for.
        drop(taking);
        assert!(!line.waited_too_long(500_000));
    }

    #[actix_web::test]
    async fn an_answer_of_several_pieces_has_its_own_time_however_long_the_socket_is_full() {
        let lines = lines();
        let line = lines.add(Arc::<Shut>::default());
        let mut taking = Taking::new(Some(Arc::clone(&line)));
        let mut answer = UnderWay::new(Some(&line)).until_end_of(vec![7; 20 * PIECE], false, None, None);
        let mut next = async || poll_fn(|cx| Pin::new(&mut answer).poll_next(cx)).await.is_some();
        lines.sweep(1_000);
        taking.fills();
        // Each gives it a second and a half more than the four.
        for _ in 0..10 {
            assert!(next().await);
        }
        lines.sweep(9_000);
        assert!(!line.waited_too_long(20_000) && line.waited_too_long(30_000));
        taking.takes(1);
        drop(answer);
        // All of it was given: from here on the socket's time counts, which begins with what it took last.
        assert!(!line.waited_too_long(13_000) && line.waited_too_long(13_100));
    }

    #[test]
    fn what_comes_while_an_answer_is_under_way_is_the_next_requests_unless_its_body_is_read() {
        let lines = lines();
        let line = lines.add(Arc::<Shut>::default());
        assert!(!line.answers());
        let under_way = UnderWay::new(Some(&line));
        assert!(line.answers());
        let reads = line.read_body();
        assert!(!line.answers());
        drop(reads);
        assert!(line.answers());
        drop(under_way);
        assert!(!line.answers());
    }

    /// One that is not shut before it has been told so often, as where there is no descriptor to shut it by.
    struct Stuck(AtomicUsize);

    impl Socket for Stuck {
        fn shut(&self) {
            let _ = self
                .0
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        }
    }

    #[test]
    fn a_connection_that_could_not_be_shut_is_shut_at_the_next_look_until_it_is_gone() {
        let lines = lines();
        let (idle, slow) = (
            Arc::new(Stuck(AtomicUsize::new(2))),
            Arc::new(Stuck(AtomicUsize::new(2))),
        );
        let left = |stuck: &Stuck| stuck.0.load(Ordering::Acquire);
        let open = [lines.add(Arc::clone(&idle) as _), lines.add(Arc::clone(&slow) as _)];
        let _answer = UnderWay::new(Some(&open[1]));
        Pace::default().given(PIECE, &open[1]);
        lines.sweep(20_000);
        assert_eq!((left(&idle), left(&slow)), (1, 1));
        lines.sweep(20_500);
        assert_eq!((left(&idle), left(&slow)), (0, 0));
        assert_eq!(lines.answers_cut.get(), 1, "it is counted once");
        drop((open, _answer));
        lines.sweep(21_000);
        assert_eq!(lines.list().len(), 0, "those that are gone are forgotten");
    }

    #[actix_web::test]
    async fn what_an_answer_waits_for_here_is_not_its_clients_time_and_a_session_has_its_own() {
        let lines = lines();
        let socket = Arc::<Shut>::default();
        let line = lines.add(Arc::clone(&socket) as _);
        let (mut tell, told) = tokio::sync::mpsc::channel::<Bytes>(1);
        let body = BodyStream::new(futures_util::stream::unfold(told, async |mut told| {
            Some((Ok::<_, std::io::Error>(told.recv().await?), told))
        }));
        let mut answer = Box::pin(UnderWay::new(Some(&line)).until_end_of(body, false, None, None));
        let pending = poll_fn(|cx| Poll::Ready(answer.as_mut().poll_next(cx).is_pending())).await;
        assert!(pending);
        lines.sweep(100_000);
        tell.send(Bytes::from_static(b"at last")).await.unwrap();
        assert!(poll_fn(|cx| answer.as_mut().poll_next(cx)).await.is_some());
        lines.sweep(104_000);
        assert!(!socket.0.load(Ordering::Acquire));
        drop((answer, &mut tell));
        let mut session = Box::pin(UnderWay::new(Some(&line)).until_end_of(vec![0; 3 * PIECE], true, None, None));
        let all = poll_fn(|cx| session.as_mut().poll_next(cx)).await;
        assert_eq!(all.unwrap().unwrap().len(), 3 * PIECE, "frames go as they are");
        lines.sweep(900_000);
        assert!(!socket.0.load(Ordering::Acquire));
    }
}
