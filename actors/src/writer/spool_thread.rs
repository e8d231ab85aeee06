//! The spool's own thread: group commit.
//!
//! Everything that was queued while the last commit was under way is committed in one transaction with one fsync. A commit
//! that fails fails everything queued behind it too (rule 1): appends of its term are fenced off until the registry,
//! having heard of it, appends under a new one.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{DrainMsg, SpoolCommand, Stored, WriterHandle};
use crate::{
    broadcast::Broadcast,
    mailbox::Mailbox,
    metrics::Metrics,
    registry::{Committed, RegistryHandle, RegistryMsg, known},
    seams::{LastSeq, Pos, Spool, SpoolError},
    types::{Event, PresenterIdx, Seq},
};
use uuid::Uuid;

/// What the thread is told of settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpoolThreadSettings {
    /// The most events a commit.
    pub commit_max: usize,
    /// How long a spool that failed is left alone before it is tried again.
    pub probe_every: Duration,
    /// Answer before the commit (`log.durability = "memory"`).
    pub answer_first: bool,
}

/// The running thread. Dropping it does not stop it: [`WriterHandle::stop`] does.
pub struct SpoolThread {
    thread: JoinHandle<()>,
}

impl SpoolThread {
    /// Starts the thread over an open spool.
    pub(crate) fn start(
        spool: Box<dyn Spool>,
        settings: SpoolThreadSettings,
        handle: WriterHandle,
        registry: RegistryHandle,
        drain: Mailbox<DrainMsg>,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let run = Run {
            spool,
            settings,
            handle,
            registry,
            drain,
            metrics,
            fenced: 0,
            unwritten: Vec::new(),
            probed_at: Instant::now(),
            unsure: false,
            tried: 0,
            unkept: HashMap::new(),
            unkept_since: None,
        };
        let thread = thread::Builder::new().name("spool".into()).spawn(move || run.run())?;
        Ok(Self { thread })
    }

    /// Waits until the thread has ended. Call [`WriterHandle::stop`] first; blocks.
    pub fn join(self) {
        if self.thread.join().is_err() {
            log::error!("the spool's thread panicked");
        }
    }
}

/// How soon broadcasts that could not be kept are tried again when another one changes.
const KEEP_AGAIN: Duration = Duration::from_secs(1);

struct Run {
    spool: Box<dyn Spool>,
    settings: SpoolThreadSettings,
    handle: WriterHandle,
    registry: RegistryHandle,
    drain: Mailbox<DrainMsg>,
    metrics: Metrics,
    /// Appends of this term and of earlier ones are fenced.
    fenced: u64,
    /// Answered from memory and not written yet.
    unwritten: Vec<Arc<Event>>,
    /// When a spool that failed was last tried again.
    probed_at: Instant,
    /// There may be rows that nobody was told of: the outcome of a commit is not known.
    unsure: bool,
    /// How many of `unwritten` were in that commit.
    tried: usize,
    /// Broadcasts that could not be kept yet, the newest version of each. One a room at most, so rooms bound it.
    unkept: HashMap<Uuid, Broadcast>,
    /// When they were last tried in vain.
    unkept_since: Option<Instant>,
}

impl Run {
    fn run(mut self) {
        loop {
            let mut term = 0;
            let mut pending: Vec<Arc<Event>> = Vec::new();
            // A spool that failed is tried again without waiting for a sender: refused senders may have gone elsewhere.
            let probe = (!self.handle.writable()).then_some(self.settings.probe_every);
            let commands = self.handle.queue.take_all(probe);
            if !self.handle.writable() && self.probed_at.elapsed() >= self.settings.probe_every {
                // By the clock, not by silence: questions go on coming while appends are refused.
                self.try_again();
            }
            for command in commands {
                match command {
                    SpoolCommand::Append { term: t, events } => {
                        if t != term {
                            self.commit(term, &mut pending);
                            term = t;
                        }
                        pending.extend(events);
                        continue;
                    }
                    // Everything else sees what was appended before it.
                    other => {
                        self.commit(term, &mut pending);
                        if matches!(other, SpoolCommand::Stop) {
                            if !self.unwritten.is_empty() {
                                self.write_sooner_or_later(Vec::new());
                            }
                            if !self.unwritten.is_empty() {
                                log::error!("spool: {} events answered from memory are lost", self.unwritten.len());
                            }
                            self.keep_broadcasts(Vec::new());
                            self.spool.close();
                            return;
                        }
                        self.other(other);
                    }
                }
            }
            self.commit(term, &mut pending);
        }
    }

    fn commit(&mut self, term: u64, pending: &mut Vec<Arc<Event>>) {
        while !pending.is_empty() {
            let rest = pending.split_off(pending.len().min(self.settings.commit_max));
            let events = std::mem::replace(pending, rest);
            if term <= self.fenced {
                self.settle(term, events.len(), Committed::No);
                continue;
            }
            let began = Instant::now();
            if self.settings.answer_first {
                self.settle(term, events.len(), Committed::Yes);
                self.write_sooner_or_later(events);
                continue;
            }
            match self.commit_one(&events) {
                Ok(first) => {
                    self.metrics.commit_events.observe(events.len() as f64);
                    self.metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
                    self.handle.writable.store(true, Ordering::Release);
                    let count = events.len();
                    // The drain hears of it first, so that a flush after an answer covers what was answered.
                    self.committed(first, events);
                    self.settle(term, count, Committed::Yes);
                }
                Err(committed) => {
                    self.fenced = term;
                    self.metrics.commit_failures.inc();
                    self.handle.writable.store(false, Ordering::Release);
                    self.settle(term, events.len(), committed);
                }
            }
        }
    }

    /// `log.durability = "memory"`: the senders are answered already, so what does not go in now is kept and tried again.
    /// Meanwhile nothing more is accepted, which bounds it by the writer's permits.
    fn write_sooner_or_later(&mut self, events: Vec<Arc<Event>>) {
        self.unwritten.extend(events);
        if !self.tried_is_settled() || self.unwritten.is_empty() {
            return;
        }
        match self.commit_one(&self.unwritten.clone()) {
            Ok(first) => {
                let events = std::mem::take(&mut self.unwritten);
                self.handle.writable.store(true, Ordering::Release);
                self.committed(first, events);
            }
            Err(committed) => {
                if committed == Committed::Unknown {
                    self.tried = self.unwritten.len();
                }
                self.metrics.commit_failures.inc();
                self.handle.writable.store(false, Ordering::Release);
            }
        }
    }

    /// What an attempt of unknown outcome did write is not written again. `false`: it is still not known.
    fn tried_is_settled(&mut self) -> bool {
        let tried = std::mem::take(&mut self.tried);
        let Some(last) = tried.checked_sub(1).and_then(|last| self.unwritten.get(last)) else {
            return true;
        };
        match self.spool.reopen_and_find(last) {
            Ok(found) => {
                self.unsure = false;
                if let Some(last) = found {
                    let events: Vec<_> = self.unwritten.drain(..tried).collect();
                    self.handle.writable.store(self.unwritten.is_empty(), Ordering::Release);
                    self.committed(last - tried as Pos + 1, events);
                }
                true
            }
            Err(error) => {
                log::debug!("spool: still failing: {error}");
                self.tried = tried;
                false
            }
        }
    }

    fn show_size(&self) {
        self.metrics
            .spool_bytes
            .set(i64::try_from(self.spool.bytes()).unwrap_or(i64::MAX));
    }

    fn committed(&self, first: Pos, events: Vec<Arc<Event>>) {
        self.show_size();
        self.handle
            .head
            .store(first + events.len() as Pos - 1, Ordering::Release);
        self.drain.push(DrainMsg::Stored(Stored { first, events }));
    }

    /// Rule 1: after an I/O error the answer is what the reopened spool holds.
    fn commit_one(&mut self, events: &[Arc<Event>]) -> Result<Pos, Committed> {
        // A panic in the spool is an error like any other: this thread must outlive it, or nobody is ever answered.
        let result = catch_unwind(AssertUnwindSafe(|| self.spool.commit(events)));
        let error = match result {
            Ok(Ok(first)) => return Ok(first),
            Ok(Err(error)) => error,
            Err(_) => SpoolError {
                why: "it panicked".into(),
                full: false,
            },
        };
        log::error!("spool: a commit of {} events failed: {error}", events.len());
        if error.full {
            return Err(Committed::No);
        }
        let Some(last) = events.last() else {
            return Err(Committed::No);
        };
        match self.spool.reopen_and_find(last) {
            Ok(Some(last)) => Ok(last - events.len() as Pos + 1),
            Ok(None) => Err(Committed::No),
            Err(error) => {
                log::error!("spool: it cannot be opened again: {error}");
                self.unsure = true;
                Err(Committed::Unknown)
            }
        }
    }

    fn try_again(&mut self) {
        self.probed_at = Instant::now();
        if self.unwritten.is_empty() {
            self.probe();
        } else {
            self.write_sooner_or_later(Vec::new());
        }
    }

    /// Keeps broadcasts; those that cannot be kept now wait for the next, or for a spool that works again.
    fn keep_broadcasts(&mut self, broadcasts: Vec<Broadcast>) {
        let flush = broadcasts.is_empty();
        self.unkept
            .extend(broadcasts.into_iter().map(|broadcast| (broadcast.id, broadcast)));
        // All of them are tried at once, so not for each that is added while nothing can be kept.
        let lately = self.unkept_since.is_some_and(|at| at.elapsed() < KEEP_AGAIN);
        if self.unkept.is_empty() || (lately && !flush) {
            return;
        }
        let all: Vec<Broadcast> = self.unkept.values().cloned().collect();
        match self.spool.keep_broadcasts(&all) {
            Ok(()) => {
                self.unkept.clear();
                self.unkept_since = None;
                self.drain.push(DrainMsg::Broadcasts);
            }
            Err(error) => {
                self.unkept_since = Some(Instant::now());
                log::warn!("spool: {} broadcasts are not kept yet: {error}", all.len());
            }
        }
    }

    fn probe(&mut self) {
        match self.spool.probe().and_then(|()| self.tell_unknown()) {
            Ok(()) => {
                log::info!("spool: it takes events again");
                self.handle.writable.store(true, Ordering::Release);
                self.keep_broadcasts(Vec::new());
            }
            Err(error) => log::debug!("spool: still failing: {error}"),
        }
    }

    /// What a commit of unknown outcome did write goes to the store now rather than behind the next commit: by their keys
    /// its senders may learn any time that it was accepted.
    fn tell_unknown(&mut self) -> Result<(), SpoolError> {
        while self.unsure {
            let head = self.handle.head.load(Ordering::Acquire);
            let mut rows = self.spool.read(head, self.settings.commit_max)?;
            match rows.pop() {
                // The drain reads back what is before it.
                Some((last, event)) => self.committed(last, vec![event]),
                None => self.unsure = false,
            }
        }
        Ok(())
    }

    /// What a room's numbering goes on from, and how far the room had got when that was last kept.
    fn tell_last_seq(&mut self, presenter: PresenterIdx, last: Result<Seq, ()>) {
        let place = self.spool.place(presenter).unwrap_or_else(|error| {
            log::warn!("spool: how far a room got cannot be read: {error}");
            None
        });
        self.registry
            .mailbox
            .push(RegistryMsg::LastSeq { presenter, last, place });
    }

    fn settle(&self, term: u64, count: usize, committed: Committed) {
        self.registry
            .mailbox
            .push(RegistryMsg::Settled { term, count, committed });
    }

    fn other(&mut self, command: SpoolCommand) {
        if !self.unwritten.is_empty() && matches!(command, SpoolCommand::LastSeq { .. } | SpoolCommand::ReadKeys { .. })
        {
            // What was answered from memory counts too, so the spool tells nothing of numbers and keys without it.
            self.write_sooner_or_later(Vec::new());
        }
        let behind = !self.unwritten.is_empty();
        match command {
            SpoolCommand::LastSeq { presenter } if behind => {
                self.tell_last_seq(presenter, Err(()));
            }
            SpoolCommand::ReadKeys { .. } if behind => {
                self.registry.mailbox.push(RegistryMsg::Keys { rows: Err(()) });
            }
            SpoolCommand::LastSeq { presenter } => match self.spool.last_seq(presenter).map(known) {
                Ok(Some(last)) => self.tell_last_seq(presenter, Ok(last)),
                Ok(None) => self.drain.push(DrainMsg::AskStore { presenter }),
                Err(error) => {
                    log::error!("spool: the last seq of a room cannot be read: {error}");
                    self.tell_last_seq(presenter, Err(()));
                }
            },
            SpoolCommand::LearnLastSeq { presenter, last } => {
                // The answer may be an old one, overtaken by another and by what was numbered since: the spool knows.
                let learned = self.spool.learn_last_seq(presenter, last);
                let known = learned.and_then(|last| match self.spool.last_seq(presenter)? {
                    LastSeq::Known(known) => Ok(known.max(last)),
                    LastSeq::AskStore => Ok(last),
                });
                let last = known.map_err(|error| {
                    log::error!("spool: the last seq of a room cannot be kept: {error}");
                });
                self.tell_last_seq(presenter, last);
            }
            SpoolCommand::KeepPlaces { places } => {
                if let Err(error) = self.spool.keep_places(&places) {
                    log::warn!("spool: how far {} rooms got is not kept: {error}", places.len());
                }
            }
            SpoolCommand::MarkPlace { place } => {
                let kept = self.spool.keep_places(&[place]);
                let kept = kept.inspect_err(|error| log::warn!("spool: how far a room got is not kept: {error}"));
                self.registry.mailbox.push(RegistryMsg::Marked {
                    presenter: place.presenter,
                    kept: kept.is_ok(),
                });
            }
            SpoolCommand::KeepBroadcasts { broadcasts } => self.keep_broadcasts(broadcasts),
            SpoolCommand::OpenBroadcasts => {
                self.keep_broadcasts(Vec::new());
                let mut open = self.spool.open_broadcasts().map_err(|error| {
                    log::error!("spool: the open broadcasts cannot be read: {error}");
                });
                if !self.unkept.is_empty() {
                    // What the file says may be older than what was told.
                    open = Err(());
                }
                self.registry.mailbox.push(RegistryMsg::Broadcasts { open });
            }
            SpoolCommand::UnstoredBroadcasts { limit, reply } => {
                let _ = reply.send(self.spool.unstored_broadcasts(limit));
            }
            SpoolCommand::BroadcastsStored { stored, reply } => {
                let _ = reply.send(self.spool.broadcasts_stored(&stored));
            }
            SpoolCommand::ReadKeys { since_ms } => {
                let rows = self.spool.read_keys(since_ms).map_err(|error| {
                    log::error!("spool: the idempotency keys cannot be read: {error}");
                });
                self.registry.mailbox.push(RegistryMsg::Keys { rows });
            }
            SpoolCommand::Read { after, limit, reply } => {
                let head = self.handle.head.load(Ordering::Acquire);
                // Rows beyond are of a commit whose outcome is not known yet. Freed now, they could not be found again.
                let known = self.spool.read(after, limit).map(|mut rows| {
                    rows.retain(|(pos, _)| *pos <= head);
                    rows
                });
                let _ = reply.send(known);
            }
            SpoolCommand::Free {
                through,
                parked,
                keys_before_ms,
                reply,
            } => {
                let result = self.spool.free(through, &parked, keys_before_ms);
                if result.is_ok() {
                    self.handle.done.store(through, Ordering::Release);
                }
                self.metrics
                    .spool_bytes
                    .set(i64::try_from(self.spool.bytes()).unwrap_or(i64::MAX));
                let _ = reply.send(result);
            }
            SpoolCommand::Append { .. } | SpoolCommand::Stop => {}
        }
    }
}
