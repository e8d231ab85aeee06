//! `SessionRegistry`: owns every room; admits, numbers, publishes, answers.
//!
//! It never awaits (rule 8). Whatever it needs from elsewhere it asks for and goes on; the answer is another message.
//! A submit without a verdict waits in its room's queue, unnumbered. With one it is decided in one synchronous step:
//! admitted, given the writer's permit, numbered, appended. The writer answers in the order of appends, so the
//! registry keeps its numbered events in one queue and an answer is no more than a count.
//!
//! When full: `actors.registry.mailbox` permits in all, `room_share` of them a room, `room.pending_max` waiting for one
//! room's verdict; what is over is refused with `overloaded` before it is numbered.

mod admission;
mod broadcasts;
mod cursor;
mod from_spool;
mod gauges;
mod messages;
mod places;
mod resume;
mod room;
mod sessions;
mod settling;
mod subscriber;
mod sweep;

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::prelude::*;
use ahash::RandomState;
use lru::LruCache;
use tokio::sync::oneshot;

pub(crate) use self::messages::{Committed, RegistryMsg, Word};
use self::{from_spool::FromSpool, gauges::RegistryQueues, resume::Reads, room::Room, sweep::Round};
pub use self::{
    messages::{RegistryHandle, RoomLook, RoomView, SessionId},
    resume::ReadLog,
    subscriber::{Batch, End, Reading, Resume, Subscriber, Welcome},
};
use crate::{
    broadcast::Broadcast,
    bucket::{Bucket, Rate},
    checker::CheckerHandle,
    clock::{EventClock, system_ms},
    gate::Permit,
    idempotency::{KeyConfig, KeyTable},
    mailbox::Turn,
    metrics::Metrics,
    outcome::{Outcome, Refusal},
    supervise::Present,
    types::{Epoch, Event, PresenterIdx, UserIdx},
    writer::{Appended, WriterHandle},
};

/// What operators set for the registry, its rooms and their sessions. `settings.toml` documents each.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// `actors.registry.room_share`
    pub room_share: usize,
    /// `actors.writer.room_share`
    pub writer_room_share: usize,
    /// `[idempotency]`
    pub keys: KeyConfig,
    /// `room.pending_max`
    pub pending_max: usize,
    /// `limits.lookups_*`: how often one sender may have the room server asked for a room that is not known; `None`: always.
    pub lookups: Option<Rate>,
    /// `limits.tracked`
    pub tracked: usize,
    /// `room.refresh_percent`
    pub refresh_percent: u32,
    /// `room.ring_events`
    pub ring_events: usize,
    /// `room.ring_bytes`
    pub ring_bytes: usize,
    /// `room.sweep_ms`
    pub sweep: Duration,
    /// `session.credit_events`
    pub credit_events: usize,
    /// `session.credit_bytes`
    pub credit_bytes: usize,
    /// `session.stall_seconds`
    pub stall: Duration,
    /// `legacy.start_seconds`
    pub start: Duration,
    /// `session.detached_seconds`
    pub detached: Duration,
    /// `session.not_live_seconds`
    pub not_live: Duration,
    /// `session.grace_seconds`
    pub grace: Duration,
    /// `session.reconnect_request_seconds`; `None` where nobody is to be asked (`room.reconnect_url`).
    pub reconnect_interval: Option<Duration>,
    /// `session.resume_max`
    pub resume_max: u64,
    /// `session.resume_reads`
    pub resume_reads: usize,
    /// `session.resume_wait_seconds`
    pub resume_wait: Duration,
    /// `session.checkpoint_ms`
    pub checkpoint: Duration,
    /// `broadcast.resume_seconds`
    pub broadcast_resume: Duration,
    /// `broadcast.unknown_seconds`
    pub broadcast_unknown: Duration,
}

/// A numbered event on its way through the writer, with what it owes its sender.
struct Slot {
    term: u64,
    event: Arc<Event>,
    /// It was sent to a session when it was published (rule 11).
    sent: bool,
    reply: oneshot::Sender<Outcome>,
    /// Given back when the sender is answered. The writer's is with the event.
    _permit: Permit,
}

struct Session {
    subscriber: Arc<dyn Subscriber>,
    connected_at: Instant,
    presenter: Option<PresenterIdx>,
    /// It speaks v1.
    v1: bool,
    /// It was told to connect again.
    told: bool,
    /// When a newer session took its room over.
    detached_at: Option<Instant>,
    /// When it was told to close, and how long that may take before its socket is shut.
    ended: Option<(Instant, Duration)>,
}

/// How long a session that was told to close may take, before its socket is shut.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// The same where a peer will hardly read why, or others wait for its end.
const STALLED_PATIENCE: Duration = Duration::from_secs(1);

/// What is kept of each presenter.
type Rooms = HashMap<PresenterIdx, Box<Room>, RandomState>;

/// What a registry is made of; see the module's text.
pub struct SessionRegistry {
    config: RegistryConfig,
    handle: RegistryHandle,
    checker: CheckerHandle,
    writer: WriterHandle,
    metrics: Metrics,
    queues: RegistryQueues,
    clock: EventClock,
    epoch: Epoch,
    rooms: Rooms,
    sessions: HashMap<SessionId, Session, RandomState>,
    in_flight: VecDeque<Slot>,
    /// Appends of this turn, handed to the writer at its end.
    outbox: Appended,
    /// Appends of an earlier term are fenced off (rule 1).
    term: u64,
    /// The first term of this registry: answers for earlier ones are for a registry that failed.
    first_term: u64,
    /// Not known at a start and after an unknown outcome.
    keys: FromSpool<KeyTable>,
    /// Which broadcasts are open; what it told is in their rooms.
    broadcasts: FromSpool<()>,
    /// What the store has of them that is newer, until they are told.
    newer: Vec<Broadcast>,
    reads: Reads,
    /// When the room server last gave a verdict on any room.
    named_at: Option<Instant>,
    /// The sweep that is under way.
    round: Round,
    /// How many lookups each sender caused lately.
    lookups: LruCache<UserIdx, Bucket>,
    ready: Vec<oneshot::Sender<()>>,
    draining: Option<Vec<oneshot::Sender<()>>>,
    ending: Vec<oneshot::Sender<()>>,
    ended: Option<End>,
    _present: Present,
}

impl SessionRegistry {
    /// A registry that goes on where the spool stands. It knows no room: each room's numbering is asked for anew, behind
    /// everything that a registry before it appended, so that no seq is used twice and none is left out (rule 2).
    pub fn new(
        config: RegistryConfig,
        handle: RegistryHandle,
        checker: CheckerHandle,
        writer: WriterHandle,
        log: ReadLog,
        metrics: Metrics,
        present: Present,
    ) -> Self {
        let (epoch, last_ms, term) = (writer.epoch().clone(), writer.last_ms(), writer.next_term());
        metrics.sessions.set(0);
        metrics.resumes_waiting.set(0);
        let (refuses, ended) = handle.stopping();
        let lookups = LruCache::new(NonZeroUsize::new(config.tracked).unwrap_or(NonZeroUsize::MIN));
        Self {
            queues: RegistryQueues::new(&config, &metrics),
            config,
            handle,
            checker,
            writer,
            metrics,
            clock: EventClock::after(last_ms),
            epoch,
            rooms: HashMap::default(),
            sessions: HashMap::default(),
            in_flight: VecDeque::new(),
            outbox: Appended::default(),
            term,
            first_term: term,
            keys: FromSpool::Unknown,
            broadcasts: FromSpool::Unknown,
            newer: Vec::new(),
            reads: Reads::new(log),
            named_at: None,
            round: Round::new([], Duration::ZERO, Instant::now()),
            lookups,
            ready: Vec::new(),
            draining: refuses.then(Vec::new),
            ending: Vec::new(),
            ended,
            _present: present,
        }
    }

    fn turn(&mut self, batch: Vec<RegistryMsg>) {
        let now = Instant::now();
        for message in Turn::new(&self.handle.mailbox, batch) {
            match message {
                RegistryMsg::Submit(pending) => self.submit(pending, now),
                RegistryMsg::Settled {
                    term,
                    permits,
                    committed,
                } => self.settled(term, permits, committed, now),
                RegistryMsg::Flushed { session } => self.flushed(session, now),
                RegistryMsg::Word { presenter, word } => self.word(presenter, word, now),
                RegistryMsg::LastSeq { presenter, last, place } => self.last_seq(presenter, last, place, now),
                RegistryMsg::Connect { session, subscriber } => {
                    self.connect(session, subscriber);
                    if let Some(end) = self.ended {
                        self.end(session, end);
                    }
                }
                RegistryMsg::Attach {
                    session,
                    presenter,
                    flow,
                    reading,
                } => self.attach(session, presenter, flow, reading, now),
                RegistryMsg::Ack {
                    session,
                    seq,
                    fanned_out,
                } => self.ack(session, seq, fanned_out, now),
                RegistryMsg::Page(page) => self.page(page, now),
                RegistryMsg::Marked { presenter, kept } => self.marked(presenter, kept, now),
                RegistryMsg::Look { presenter, looking } => self.look(presenter, looking, now),
                RegistryMsg::TellReconnect {
                    most,
                    after,
                    spread,
                    reply,
                } => {
                    let _ = reply.send(self.tell_reconnect(most, after, spread));
                }
                RegistryMsg::Gone { session } => self.gone(session),
                RegistryMsg::View { presenter, reply } => {
                    let _ = reply.send(self.view(presenter, now));
                }
                RegistryMsg::Keys { rows } => self.keys(rows),
                RegistryMsg::Broadcasts { open } => self.broadcasts(open, now),
                RegistryMsg::Adopted { open } => self.adopted(open, now),
                RegistryMsg::Overtaken { newer } => self.overtaken(newer),
                RegistryMsg::WhenReady { done } => self.when_ready(done),
                RegistryMsg::CheckerStarted => self.checker_started(now),
                #[expect(clippy::panic, reason = "the planned failure point")]
                RegistryMsg::Panic => panic!("planned"),
                RegistryMsg::PanicSession { presenter } => self.panic_session(presenter),
                RegistryMsg::RefuseSubmits { done } => self.refuse_submits(done),
                RegistryMsg::EndSessions { end, done } => self.end_sessions(end, done),
            }
        }
        if !self.outbox.is_empty() {
            self.writer.note_ms(self.clock.last_ms());
            self.writer.append(self.term, std::mem::take(&mut self.outbox));
        }
    }

    pub(super) fn view(&self, presenter: PresenterIdx, now: Instant) -> Option<RoomView> {
        let room = self.rooms.get(&presenter)?;
        Some(RoomView {
            live: room.verdict(now).map(|verdict| verdict.live),
            session: room.cursor.is_some(),
            last_seq: room.committed(),
            in_flight: room.in_flight(),
            waiting: room.waiters.undecided(),
        })
    }

    pub(super) fn refuse_submits(&mut self, done: oneshot::Sender<()>) {
        let rooms: Vec<PresenterIdx> = self.rooms.keys().copied().collect();
        for presenter in rooms {
            self.refuse_waiting(presenter, Refusal::Draining);
            self.refuse_acts(presenter, Refusal::Draining);
        }
        if self.in_flight.is_empty() {
            let _ = done.send(());
            self.draining.get_or_insert_default();
        } else {
            self.draining.get_or_insert_default().push(done);
        }
    }

    pub(super) fn end_sessions(&mut self, end: End, done: oneshot::Sender<()>) {
        // Whoever connects from now on is told at once.
        self.ended = Some(end);
        for session in self.sessions.values_mut() {
            session.end(end, &self.metrics);
        }
        self.ending.push(done);
        self.ended_if_all_are_gone();
    }

    /// Nothing is left to end: where the rooms stand is saved behind everything that was appended.
    pub(super) fn ended_if_all_are_gone(&mut self) {
        if self.sessions.is_empty() && !self.ending.is_empty() {
            self.keep_open_broadcasts(Instant::now());
            self.save_all_places();
            for done in self.ending.drain(..) {
                let _ = done.send(());
            }
        }
    }
}

/// A registry that is gone knows its sessions no more: they close, and their clients connect to the next one (rule 2).
impl Drop for SessionRegistry {
    fn drop(&mut self) {
        // What is queued to a v1 session comes again through the next one. A legacy session still writes it: nothing comes
        // twice there, so where the disk did not keep the place below, it would be lost.
        for cursor in self.rooms.values().filter_map(|room| room.cursor.as_ref()) {
            if cursor.reading.is_v1() {
                cursor.flow.end();
            }
        }
        // In front of what the next one asks: what is held behind it is for whoever comes then.
        let (now, now_ms) = (Instant::now(), system_ms());
        let rooms = self.rooms.iter();
        let places: Vec<_> = rooms
            .filter_map(|(presenter, room)| room.place_left(*presenter, now, now_ms))
            .collect();
        self.writer.keep_places(&places);
        for session in self.sessions.values_mut() {
            session.end(End::Restarted, &self.metrics);
        }
    }
}

impl Actor for SessionRegistry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.ask_keys();
        self.ask_broadcasts();
        ctx.add_stream(self.handle.mailbox.batches());
        ctx.run_later(self.config.sweep, Self::sweep);
    }
}

impl StreamHandler<Vec<RegistryMsg>> for SessionRegistry {
    fn handle(&mut self, batch: Vec<RegistryMsg>, _ctx: &mut Self::Context) {
        self.turn(batch);
    }
}
