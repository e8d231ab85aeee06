//! What a writer is made of, and what the drain is told.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::{SpoolThread, WriterHandle};
use crate::{
    mailbox::Mailbox,
    metrics::Metrics,
    registry::RegistryHandle,
    seams::{LogStore, Pos, Spool},
    supervise::{Pauses, Watch},
    types::{Event, PresenterIdx},
};

/// What operators set for the writer. `settings.toml` documents each.
#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// `log.commit_max`
    pub commit_max: usize,
    /// `log.commit_interval_us`
    pub commit_interval: Duration,
    /// `log.commit_enough`
    pub commit_enough: usize,
    /// `log.batch_max`
    pub batch_max: usize,
    /// `log.batch_enough`
    pub batch_enough: usize,
    /// `log.linger_ms`
    pub linger: Duration,
    /// `log.retry_min_ms`
    pub retry_min: Duration,
    /// `log.retry_max_ms`
    pub retry_max: Duration,
    /// `log.backlog_max`
    pub backlog_max: usize,
    /// `log.durability` is `memory`: events are answered before they are written.
    pub answer_first: bool,
    /// `broadcast.resume_seconds`: so often the store is asked which broadcasts somebody else left open there. `None`
    /// where nobody else writes to it.
    pub adopt_every: Option<Duration>,
}

/// Events that the spool made durable.
pub(crate) struct Stored {
    pub first: Pos,
    pub count: usize,
    /// So many, or none where more than fit into the backlog wait: those are read back.
    pub events: Vec<Arc<Event>>,
}

pub(crate) enum DrainMsg {
    Stored(Stored),
    AskStore {
        presenter: PresenterIdx,
    },
    Flush {
        done: oneshot::Sender<()>,
    },
    /// Some broadcasts changed, and the store lacks one of them.
    Broadcasts,
    Panic,
}

/// What the spool's thread knows of the drain, so that it wakes it only for what cannot wait: while a batch is under way or
/// waits to fill, the drain comes to look by itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Later {
    unseen: Arc<AtomicUsize>,
    worth: Arc<AtomicUsize>,
}

impl Later {
    /// So many more events are about to be put into the drain's mailbox; returns how many it will hold then.
    pub fn announce(&self, events: usize) -> usize {
        self.unseen.fetch_add(events, SeqCst) + events
    }

    /// Whether what waits in the drain's mailbox is worth waking it. To be asked when it is there.
    pub fn is_worth_it(&self) -> bool {
        self.unseen.load(SeqCst) >= self.worth.load(SeqCst)
    }

    pub(super) fn saw(&self, events: usize) {
        self.unseen.fetch_sub(events, SeqCst);
    }

    /// From now on so many events are worth it; returns whether they have come already, perhaps without waking anybody.
    pub(super) fn worth(&self, events: usize) -> bool {
        self.worth.store(events, SeqCst);
        self.is_worth_it()
    }
}

/// How the store is, for `/readyz`.
#[derive(Clone, Debug, Default)]
pub struct StoreState {
    error: Arc<Mutex<Option<String>>>,
    other: Arc<Mutex<Option<String>>>,
}

impl StoreState {
    /// Why the store does not take events now, or would not; `None` when it does.
    pub fn error(&self) -> Option<String> {
        let other = || self.other.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.failing().or_else(other)
    }

    /// In the place of the store there is another one, although nothing was asked of it; `None`: no more.
    pub fn is_other(&self, why: Option<String>) {
        *self.other.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why it took nothing when it was asked last.
    pub(super) fn failing(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The store was not there when the server began; it is tried from now on.
    pub fn was_not_there(&self, error: String) {
        self.set(Some(error));
    }

    pub(super) fn set(&self, error: Option<String>) {
        if error.is_none() {
            self.is_other(None);
        }
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// What a writer is made of, and made again of.
#[derive(Clone)]
pub struct WriterParts {
    /// Settings.
    pub config: WriterConfig,
    /// The one way to the writer.
    pub handle: WriterHandle,
    /// Who is answered.
    pub registry: RegistryHandle,
    /// Where events are kept for good.
    pub store: Arc<dyn LogStore>,
    /// How the store is.
    pub state: StoreState,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether the actor is there.
    pub watch: Watch,
    /// Whether the spool's thread is.
    pub spool_watch: Watch,
    pub(super) mailbox: Mailbox<DrainMsg>,
    pub(super) later: Later,
    /// The rooms that the store is being asked for. A writer that is made anew asks again: the registry waits for each.
    asking: Arc<Mutex<HashSet<PresenterIdx>>>,
}

impl WriterParts {
    /// The parts of a writer over a spool that was opened and told of itself through `handle`.
    pub fn new(
        config: WriterConfig,
        handle: WriterHandle,
        registry: RegistryHandle,
        store: Arc<dyn LogStore>,
        metrics: Metrics,
        pauses: Pauses,
    ) -> Self {
        Self {
            config,
            handle,
            registry,
            store,
            state: StoreState::default(),
            watch: Watch::new("writer", pauses, &metrics),
            spool_watch: Watch::new("spool", pauses, &metrics),
            metrics,
            mailbox: Mailbox::default(),
            later: Later::default(),
            asking: Arc::default(),
        }
    }

    /// Starts the spool's thread. Events are answered from now on; the actor takes them to the store.
    pub fn start_spool(&self, spool: Box<dyn Spool>) -> std::io::Result<SpoolThread> {
        SpoolThread::start(spool, self)
    }

    /// A planned failure point, for tests of supervision: the actor panics when it reads this.
    pub fn panic_now(&self) {
        self.mailbox.push(DrainMsg::Panic);
    }

    pub(super) fn asking(&self) -> MutexGuard<'_, HashSet<PresenterIdx>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the store has everything that the spool holds. Bound it by a timeout.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        self.mailbox.push(DrainMsg::Flush { done });
        let _ = wait.await;
    }
}
