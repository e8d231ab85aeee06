//! What the registry is told, and the handle that tells it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    resume::ReadPage,
    subscriber::{End, Reading, Subscriber},
};
use crate::{
    broadcast::Broadcast,
    gate::{Gate, Permit},
    idempotency::KeyRow,
    mailbox::Mailbox,
    metrics::Metrics,
    outcome::{Outcome, Refusal, Submit},
    seams::{Liveness, Place},
    session::{Close, Flow},
    types::{PresenterIdx, Seq, UserIdx},
    writer::WriterPermit,
};

/// Names one socket for as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(u64);

/// A submit with what it holds while it is under way.
pub(crate) struct Pending {
    pub submit: Submit,
    pub permit: Permit,
    pub reply: oneshot::Sender<Outcome>,
}

/// What a reader of `GET /v1/rooms/{presenter_idx}` is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomLook {
    /// Whether the room server says that the presenter is live.
    pub live: bool,
    /// Whether a session is attached.
    pub session: bool,
    /// The last committed seq; `None` where the room is not live and nothing is kept of it.
    pub last_seq: Option<Seq>,
    /// How many viewers the presenter's client says it passes events on to.
    pub fanned_out: Option<u64>,
}

/// Someone who asked for a [`RoomLook`], with what it holds while it waits.
pub(crate) struct Looking {
    /// Given back when it is answered.
    pub _permit: Permit,
    /// Who asks: whose lookup it is, if one is needed.
    pub user: UserIdx,
    pub reply: oneshot::Sender<Result<RoomLook, Refusal>>,
}

/// The room server's word on a presenter, as the checker has it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    /// What it said.
    Verdict {
        liveness: Liveness,
        /// When it said that.
        at: Instant,
        /// How long that counts.
        until: Instant,
    },
    /// It is there, did not say when it was asked, and there is nothing else to go by.
    Refused {
        /// When that was.
        at: Instant,
    },
    /// No answer that counts, and nothing else to go by.
    Nothing,
    /// It was not asked: the question found no place in time. Nothing else to go by.
    NotAsked,
}

/// What came of events that were appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// They are durable.
    Yes,
    /// They are not in the spool and never will be.
    No,
    /// Whether they are cannot be known now.
    Unknown,
}

/// What one room looks like from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomView {
    /// The verdict, where one is valid.
    pub live: Option<bool>,
    /// Whether a session is attached.
    pub session: bool,
    /// The last committed seq, where it is known.
    pub last_seq: Option<Seq>,
    /// Numbered and not yet committed.
    pub in_flight: usize,
    /// Waiting for a verdict: messages, and who asked what the room looks like.
    pub waiting: usize,
}

pub(crate) enum RegistryMsg {
    Submit(Pending),
    Connect {
        session: SessionId,
        subscriber: Arc<dyn Subscriber>,
    },
    Attach {
        session: SessionId,
        presenter: PresenterIdx,
        flow: Arc<Flow>,
        reading: Reading,
    },
    Ack {
        session: SessionId,
        seq: Seq,
        fanned_out: Option<u64>,
    },
    /// What the log has for a session.
    Page(ReadPage),
    Look {
        presenter: PresenterIdx,
        looking: Looking,
    },
    TellReconnect {
        most: usize,
        after: Duration,
        spread: Duration,
        reply: oneshot::Sender<usize>,
    },
    Flushed {
        session: SessionId,
    },
    Gone {
        session: SessionId,
    },
    Word {
        presenter: PresenterIdx,
        word: Word,
    },
    Keys {
        rows: Result<Vec<KeyRow>, ()>,
    },
    /// Which broadcasts are open, or that it cannot be told now.
    Broadcasts {
        open: Result<Vec<Broadcast>, ()>,
    },
    /// Broadcasts that the store had open and the spool did not know, the oldest first.
    Adopted {
        open: Vec<Broadcast>,
    },
    /// Broadcasts that the store had open in newer versions than the spool.
    Overtaken {
        newer: Vec<Broadcast>,
    },
    CheckerStarted,
    WhenReady {
        done: oneshot::Sender<()>,
    },
    Panic,
    PanicSession {
        presenter: PresenterIdx,
    },
    LastSeq {
        presenter: PresenterIdx,
        last: Result<Seq, ()>,
        place: Option<Place>,
    },
    /// Whether the spool remembers that a legacy session has begun to read.
    Marked {
        presenter: PresenterIdx,
        kept: bool,
    },
    /// What became of the next events that were appended, as many as these permits are of.
    Settled {
        term: u64,
        permits: Vec<WriterPermit>,
        committed: Committed,
    },
    View {
        presenter: PresenterIdx,
        reply: oneshot::Sender<Option<RoomView>>,
    },
    RefuseSubmits {
        done: oneshot::Sender<()>,
    },
    EndSessions {
        end: End,
        done: oneshot::Sender<()>,
    },
}

/// The one way to the registry. Everything about a room names its presenter, so that it can be sharded later.
#[derive(Clone)]
pub struct RegistryHandle {
    pub(crate) mailbox: Mailbox<RegistryMsg>,
    gate: Arc<Gate>,
    sessions: Arc<AtomicU64>,
    /// Sessions that were refused for want of a seat since the registry looked last.
    wanted: Arc<AtomicUsize>,
    stopping: Arc<Stopping>,
    metrics: Metrics,
}

/// How far a stop has come: a registry that is made anew meanwhile goes on there.
#[derive(Default)]
struct Stopping {
    refuses: AtomicBool,
    ended: Mutex<Option<End>>,
}

impl RegistryHandle {
    /// A handle for a registry that is about to start; `mailbox` is the number of permits.
    pub fn new(mailbox: usize, metrics: Metrics) -> Self {
        Self {
            mailbox: Mailbox::default(),
            gate: Gate::new("registry", mailbox),
            sessions: Arc::new(AtomicU64::new(0)),
            wanted: Arc::default(),
            stopping: Arc::default(),
            metrics,
        }
    }

    /// The permits of `actors.registry.mailbox`.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Hands in a message. The outcome comes when the log has it, or when it is refused; dropping the receiver
    /// changes nothing. A closed channel means that the registry panicked: the outcome is unknown. For an arbiter or a
    /// worker, which may have many in one turn: see [`Mailbox::push_in_turn`].
    pub fn submit(&self, submit: Submit) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        let permit = self.permit()?;
        let (reply, outcome) = oneshot::channel();
        self.mailbox
            .push_in_turn(RegistryMsg::Submit(Pending { submit, permit, reply }));
        Ok(outcome)
    }

    fn permit(&self) -> Result<Permit, Refusal> {
        let permit = self.gate.try_acquire(1);
        permit.ok_or_else(|| self.refuse(Refusal::Overloaded("registry")))
    }

    /// What is refused here and not by the registry, which counts what it refuses itself.
    fn refuse(&self, refusal: Refusal) -> Refusal {
        self.metrics.refuse(refusal.code());
        refusal
    }

    /// Makes a new socket known before its presenter is.
    pub fn connect(&self, subscriber: Arc<dyn Subscriber>) -> SessionId {
        let session = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        self.mailbox.push(RegistryMsg::Connect { session, subscriber });
        session
    }

    /// The socket's presenter is known: it becomes the room's session.
    pub fn attach(&self, session: SessionId, presenter: PresenterIdx, flow: Arc<Flow>, reading: Reading) {
        self.mailbox.push(RegistryMsg::Attach {
            session,
            presenter,
            flow,
            reading,
        });
    }

    /// The client has everything up to `seq`, and passed it on to so many viewers (v1, rule 14).
    pub fn ack(&self, session: SessionId, seq: Seq, fanned_out: Option<u64>) {
        self.mailbox.push(RegistryMsg::Ack {
            session,
            seq,
            fanned_out,
        });
    }

    /// What the room server and the registry say of a room. Waits for the verdict as a message does, and is refused as one.
    pub async fn look(&self, presenter: PresenterIdx, user: UserIdx) -> Result<RoomLook, Refusal> {
        let permit = self.permit()?;
        let (reply, look) = oneshot::channel();
        let looking = Looking {
            _permit: permit,
            user,
            reply,
        };
        self.mailbox.push(RegistryMsg::Look { presenter, looking });
        // A closed channel: the registry panicked.
        look.await.unwrap_or_else(|_| Err(self.refuse(Refusal::Interrupted)))
    }

    /// Tells at most `most` more v1 sessions to connect again, not before `after` and spread over `spread` beyond it. Returns
    /// how many have not been told yet.
    pub async fn tell_reconnect(&self, most: usize, after: Duration, spread: Duration) -> usize {
        let (reply, left) = oneshot::channel();
        self.mailbox.push(RegistryMsg::TellReconnect {
            most,
            after,
            spread,
            reply,
        });
        left.await.unwrap_or(0)
    }

    /// The socket took some of what its room sent, as its [`Flow`] counts, and there may be more for it.
    pub fn flushed(&self, session: SessionId) {
        self.mailbox.push(RegistryMsg::Flushed { session });
    }

    /// The socket is gone.
    pub fn gone(&self, session: SessionId) {
        self.mailbox.push(RegistryMsg::Gone { session });
    }

    /// A session closes for a reason of its own.
    pub fn closed(&self, close: Close) {
        self.metrics.sessions_ended.inc(close.as_str());
    }

    /// There is no seat for another socket: at the next sweep one whose room is not live is to go (rule 10).
    pub fn want_seat(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
    }

    /// There was a seat for another socket: whoever found none before has to ask again.
    pub fn seat_found(&self) {
        self.wanted.store(0, Ordering::Relaxed);
    }

    /// How often [`RegistryHandle::want_seat`] was called since this was, and since there was a seat.
    pub(super) fn seats_wanted(&self) -> usize {
        self.wanted.swap(0, Ordering::Relaxed)
    }

    /// A checker begins: questions that the one before it left open must be asked again.
    pub(crate) fn checker_started(&self) {
        self.mailbox.push(RegistryMsg::CheckerStarted);
    }

    /// A planned failure point, for tests of supervision: the registry panics when it reads this.
    pub fn panic_now(&self) {
        self.mailbox.push(RegistryMsg::Panic);
    }

    /// The same for sessions: the one that is attached to this room panics.
    pub fn panic_session_now(&self, presenter: PresenterIdx) {
        self.mailbox.push(RegistryMsg::PanicSession { presenter });
    }

    /// The checker's word on a presenter that it was asked about.
    pub(crate) fn word(&self, presenter: PresenterIdx, word: Word) {
        self.mailbox.push(RegistryMsg::Word { presenter, word });
    }

    /// What a room looks like now; `None` when nothing is kept of it.
    pub async fn view(&self, presenter: PresenterIdx) -> Option<RoomView> {
        let (reply, view) = oneshot::channel();
        self.mailbox.push(RegistryMsg::View { presenter, reply });
        view.await.ok().flatten()
    }

    /// Returns when messages with an `Idempotency-Key` can be taken too: the spool has told which keys it knows.
    pub async fn ready(&self) {
        let (done, wait) = oneshot::channel();
        self.mailbox.push(RegistryMsg::WhenReady { done });
        let _ = wait.await;
    }

    /// From now on every submit is refused; returns when everything numbered has been answered.
    pub async fn refuse_submits(&self) {
        self.stopping.refuses.store(true, Ordering::Release);
        self.until_it_answers(|done| RegistryMsg::RefuseSubmits { done }).await;
    }

    /// Ends every session; returns when the last socket is gone.
    pub async fn end_sessions(&self, end: End) {
        *self.stopping.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        self.until_it_answers(|done| RegistryMsg::EndSessions { end, done })
            .await;
    }

    /// A registry that panics over it answers nobody: the next one is asked.
    async fn until_it_answers(&self, ask: impl Fn(oneshot::Sender<()>) -> RegistryMsg) {
        loop {
            let (done, wait) = oneshot::channel();
            self.mailbox.push(ask(done));
            if wait.await.is_ok() {
                return;
            }
        }
    }

    /// Whether a stop refuses messages, and how it ends sessions.
    pub(super) fn stopping(&self) -> (bool, Option<End>) {
        let ended = *self.stopping.ended.lock().unwrap_or_else(PoisonError::into_inner);
        (self.stopping.refuses.load(Ordering::Acquire), ended)
    }
}
