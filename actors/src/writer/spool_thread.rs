//! The spool's own thread: group commit.
//!
//! Everything that was queued while the last commit was under way, and what comes until `log.commit_interval_us` after that began
//! (unless `log.commit_enough` events wait), is committed in one transaction with one fsync. A commit that fails fails everything
//! queued behind it too (rule 1): appends of its term are fenced off until the registry, having heard of it, appends under a new
//! one.
//!
//! A panic takes no event with it: what is in hand is kept in [`Run`], which outlives it. The file is opened again and says
//! whether the commit under way is in it; what was queued behind goes on.

mod adopting;
mod again;
mod health;
mod keeper;
mod questions;
mod together;

use self::{
    again::Unwritten,
    health::Health,
    keeper::BroadcastKeeper,
    questions::{Failing, Question},
};
use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Instant,
};

use super::{
    Appended, DrainMsg, Later, SpoolCommand, SpoolFailure, Stored, WriterConfig, WriterHandle, WriterParts,
    WriterPermit, command::ToLearn, queue::KEPT_AT_ONCE,
};
use crate::{
    broadcast::Broadcast,
    mailbox::Mailbox,
    metrics::Metrics,
    registry::{Committed, RegistryHandle, RegistryMsg},
    seams::{Pos, Spool, SpoolError, SpoolFault},
    supervise::{Watch, thread_of},
    types::{Event, PresenterIdx},
};
use uuid::Uuid;

/// How the thread left the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolEnd {
    /// All that was answered is in it, and so is the mark of a clean stop.
    Closed,
    /// All that was answered is in it; a broadcast's record may not be. The mark is not, so the next start checks it.
    Unmarked,
    /// It lacks events that were answered from memory.
    Lost,
}

/// The running thread. Dropping it does not stop it: [`WriterHandle::stop`] does.
pub struct SpoolThread {
    thread: JoinHandle<SpoolEnd>,
}

impl SpoolThread {
    /// Starts the thread over an open spool.
    pub(super) fn start(spool: Box<dyn Spool>, parts: &WriterParts) -> std::io::Result<Self> {
        let run = Run {
            spool,
            config: parts.config.clone(),
            handle: parts.handle.clone(),
            registry: parts.registry.clone(),
            drain: parts.mailbox.clone(),
            later: parts.later.clone(),
            metrics: parts.metrics.clone(),
            fenced: 0,
            unwritten: Unwritten::default(),
            health: Health::new(parts.config.retry_min),
            unsure: false,
            keeper: BroadcastKeeper::new(parts.config.retry_min),
            perhaps_adopted: BTreeMap::new(),
            commands: VecDeque::new(),
            term: 0,
            pending: Appended::default(),
            asked: 0,
            to_learn: Vec::new(),
            in_hand: InHand::Nothing,
            failing: Failing::default(),
            planned: Planned::default(),
            stopping: false,
            committed_at: None,
            watch: parts.spool_watch.clone(),
        };
        let thread = thread::Builder::new().name("spool".into()).spawn(move || run.run())?;
        Ok(Self { thread })
    }

    /// Waits until the thread has ended. Call [`WriterHandle::stop`] first; blocks.
    pub fn join(self) -> SpoolEnd {
        self.thread.join().unwrap_or_else(|_| {
            log::error!("the spool's thread panicked");
            SpoolEnd::Lost
        })
    }
}

/// So many questions at most are answered in front of a commit that could begin: together they take about a millisecond.
const ASKED_AT_ONCE: usize = 64;

/// Events that have no place in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// They are not in it and never will be.
    Surely,
    /// They may be: it cannot tell now.
    Perhaps,
}

impl From<Lost> for Committed {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Surely => Self::No,
            Lost::Perhaps => Self::Unknown,
        }
    }
}

/// What somebody is to hear of. It is dealt with all the same when a panic comes in between.
#[derive(Default)]
enum InHand {
    #[default]
    Nothing,
    Commit {
        batch: Appended,
        /// What came of it, once that is known.
        outcome: Option<Result<Pos, Lost>>,
    },
    /// What the registry is still to be told, and of which events: their permits.
    Telling {
        permits: Vec<WriterPermit>,
        committed: Committed,
    },
    Question(Question),
}

/// Failure points that were planned and not come to yet: [`SpoolFailure`].
#[derive(Default)]
struct Planned {
    behind_commit: bool,
    before_telling: bool,
}

struct Run {
    spool: Box<dyn Spool>,
    config: WriterConfig,
    handle: WriterHandle,
    registry: RegistryHandle,
    drain: Mailbox<DrainMsg>,
    later: Later,
    metrics: Metrics,
    /// Appends of this term and of earlier ones are fenced.
    fenced: u64,
    unwritten: Unwritten,
    health: Health,
    /// There may be rows that nobody was told of: the outcome of a commit is not known.
    unsure: bool,
    keeper: BroadcastKeeper,
    /// Broadcasts of the store that an attempt may have taken up though it failed.
    perhaps_adopted: BTreeMap<Uuid, Broadcast>,
    /// Taken from the queue, and not come to yet.
    commands: VecDeque<SpoolCommand>,
    /// The term of `pending`, and of the commit in hand.
    term: u64,
    /// Appended, and not come to yet.
    pending: Appended,
    /// How many questions were answered since the last commit.
    asked: usize,
    /// Told by the store, and not come to yet: what is learned together is one transaction.
    to_learn: Vec<ToLearn>,
    in_hand: InHand,
    failing: Failing,
    planned: Planned,
    stopping: bool,
    /// When the last commit began.
    committed_at: Option<Instant>,
    watch: Watch,
}

impl Run {
    fn run(mut self) -> SpoolEnd {
        thread_of("spool");
        // What an earlier run left counts from the start on, also where nothing comes for long.
        self.show_size();
        loop {
            let present = self.watch.enter();
            let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
            drop(present);
            if let Ok(marked) = served {
                return self.end(marked);
            }
            let pause = self.watch.failed();
            if self.stopping {
                log::error!("the spool panicked while it was closed; the next start checks it");
                return self.end(false);
            }
            self.handle.queue.pause(pause);
        }
    }

    fn end(&self, marked: bool) -> SpoolEnd {
        match (self.unwritten.is_empty(), marked) {
            (true, true) => SpoolEnd::Closed,
            (true, false) => SpoolEnd::Unmarked,
            (false, _) => SpoolEnd::Lost,
        }
    }

    /// Until it is told to stop; returns whether the spool is marked then.
    fn serve(&mut self) -> bool {
        self.pick_up();
        loop {
            if self.commands.is_empty() && self.pending.is_empty() && self.to_learn.is_empty() {
                // A spool that failed is tried again without waiting for a sender: refused senders may have gone elsewhere.
                let probe = (!self.handle.writable()).then_some(self.config.retry_min);
                // So are broadcasts that it did not keep: it may go on taking messages that name them.
                let limit = probe.into_iter().chain(self.keeper.keeps_within()).min();
                self.commands = self.handle.queue.take_all(limit).into();
                self.gather();
                if !self.handle.writable() && self.health.probe_due() {
                    self.try_again();
                }
                self.keep_again(false);
            }
            while let Some(next) = self.commands.front() {
                // What sees all that was appended before it. It is still queued if this panics.
                match next {
                    SpoolCommand::Fail(_) | SpoolCommand::LearnLastSeq(_) => {}
                    SpoolCommand::Append { term, .. } if *term == self.term => {}
                    SpoolCommand::LastSeq { presenter } if self.may_ask(*presenter) => self.asked += 1,
                    SpoolCommand::Append { .. } | SpoolCommand::LastSeq { .. } => self.commit(),
                    _ => self.commit_and_learn(),
                }
                match self.commands.pop_front() {
                    Some(SpoolCommand::Append { term, appended }) => {
                        self.term = term;
                        self.pending.extend(appended);
                    }
                    #[expect(clippy::panic, reason = "the planned failure point")]
                    Some(SpoolCommand::Fail(SpoolFailure::Now)) => panic!("planned"),
                    Some(SpoolCommand::Fail(SpoolFailure::BehindCommit)) => self.planned.behind_commit = true,
                    Some(SpoolCommand::Fail(SpoolFailure::BeforeTelling)) => self.planned.before_telling = true,
                    Some(SpoolCommand::Hold(held)) => while held.recv().is_ok() {},
                    Some(SpoolCommand::Stop) => return self.stop(),
                    Some(SpoolCommand::LearnLastSeq(told)) => {
                        self.to_learn.push(told);
                        if self.to_learn.len() >= KEPT_AT_ONCE {
                            self.commit_and_learn();
                        }
                    }
                    Some(other) => self.other(other),
                    None => {}
                }
            }
            self.commit_and_learn();
        }
    }

    /// Whether this room's last seq may be told before what was appended is committed: nothing of that is the room's. After a restart each
    /// room asks, and the events of the others that come meanwhile are to share commits.
    fn may_ask(&self, presenter: PresenterIdx) -> bool {
        let is_of_room = |event: &Arc<Event>| event.presenter_idx == presenter;
        self.asked < ASKED_AT_ONCE && !self.pending.events.iter().any(is_of_room)
    }

    fn commit_and_learn(&mut self) {
        self.commit();
        self.learn();
    }

    /// Gives what comes meanwhile its time, so that it shares a commit with what has come: most of a commit's cost is its sync.
    fn gather(&mut self) {
        let since = self.committed_at.map(|at| at.elapsed());
        let Some(left) = since.and_then(|since| self.config.commit_interval.checked_sub(since)) else {
            return;
        };
        let mut have = 0;
        for command in &self.commands {
            match command {
                SpoolCommand::Append { appended, .. } => have += appended.events.len(),
                _ => return,
            }
        }
        if let Some(lacks) = self.config.commit_enough.checked_sub(have).filter(|lacks| *lacks > 0) {
            self.commands.extend(self.handle.queue.gather(lacks, left));
        }
    }

    fn stop(&mut self) -> bool {
        self.stopping = true;
        if !self.unwritten.is_empty() {
            self.write_sooner_or_later(Vec::new());
        }
        let (keeper, mut with) = self.keeping();
        keeper.keep_last(&mut with);
        let unkept = self.keeper.len();
        if unkept > 0 {
            // Messages name them. Nor is a file to be trusted unchecked that takes a mark and not these.
            log::error!("spool: the records of {unkept} broadcasts are not kept");
        }
        if !self.unwritten.is_empty() {
            // Their numbers were told. A spool that is not marked clean begins a new epoch, in which they may be given again.
            log::error!("spool: {} events answered from memory are lost", self.unwritten.len());
        }
        unkept == 0 && self.unwritten.is_empty() && self.spool.close()
    }

    /// What a panic left in hand: a question is answered as failed, a commit by what the file holds. Nothing to do at a start.
    fn pick_up(&mut self) {
        match std::mem::take(&mut self.in_hand) {
            InHand::Question(question) => self.failed_to_answer(question),
            // A commit's outcome is in the file, which may panic once more while it is opened.
            other => self.in_hand = other,
        }
        if self.watch.restarts() > 0 {
            self.spool.reopen();
        }
        match std::mem::take(&mut self.in_hand) {
            InHand::Commit { batch, outcome } => self.conclude(batch, outcome),
            InHand::Telling { permits, committed } => self.settle(permits, committed),
            InHand::Nothing | InHand::Question(_) => {}
        }
        if !self.unwritten.is_empty() {
            self.write_sooner_or_later(Vec::new());
        }
        // A log in the same file waits for it to be open again, and perhaps nobody asks for anything else.
        if self.watch.restarts() > 0
            && let Err(error) = self.spool.probe()
        {
            log::error!("spool: it cannot be opened again: {error}");
        }
    }

    /// Rule 1: what the reopened file holds of a commit of these events. It must not panic: nobody else has them.
    fn find(&mut self, events: &[Arc<Event>]) -> Result<Pos, Lost> {
        let Some(last) = events.last() else {
            return Err(Lost::Surely);
        };
        match catch_unwind(AssertUnwindSafe(|| self.spool.reopen_and_find(last))) {
            Ok(Ok(Some(last))) => Ok(last - events.len() as Pos + 1),
            Ok(Ok(None)) => Err(Lost::Surely),
            Ok(Err(_)) | Err(_) => {
                self.unsure = true;
                Err(Lost::Perhaps)
            }
        }
    }

    fn commit(&mut self) {
        self.asked = 0;
        while !self.pending.is_empty() {
            let batch = self.pending.take(self.config.commit_max);
            if self.term <= self.fenced {
                self.settle(batch.permits, Committed::No);
            } else if self.config.answer_first {
                self.settle(batch.permits, Committed::Yes);
                self.write_sooner_or_later(batch.events);
            } else {
                self.in_hand = InHand::Commit { batch, outcome: None };
                self.commit_in_hand();
                if let InHand::Commit { batch, outcome } = std::mem::take(&mut self.in_hand) {
                    self.conclude(batch, outcome);
                }
            }
        }
    }

    fn commit_in_hand(&mut self) {
        let InHand::Commit { batch, outcome } = &mut self.in_hand else {
            return;
        };
        let began = Instant::now();
        self.committed_at = Some(began);
        self.spool.forget_keys(self.handle.keys_since_ms());
        let worked = self.handle.writable();
        let result = commit_one(&mut *self.spool, &mut self.unsure, &batch.events, worked);
        *outcome = Some(result);
        assert!(!std::mem::take(&mut self.planned.behind_commit), "planned");
        if result.is_ok() {
            let events = batch.events.len();
            self.count_commit(events, began);
        }
    }

    fn count_commit(&self, events: usize, began: Instant) {
        self.metrics.commit_events.observe(events as f64);
        self.metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
    }

    /// Tells what came of a commit; where that is not known, the file is asked.
    fn conclude(&mut self, batch: Appended, outcome: Option<Result<Pos, Lost>>) {
        let Appended { events, permits } = batch;
        let result = outcome.unwrap_or_else(|| self.find(&events));
        // Whatever happens on the way, their senders are answered.
        let committed = result.err().map_or(Committed::Yes, Committed::from);
        self.in_hand = InHand::Telling { permits, committed };
        match result {
            Ok(first) => {
                self.handle.writable.store(true, Ordering::Release);
                self.health.works();
                // The drain hears of it first, so that a flush after an answer covers what was answered.
                self.committed(first, events);
                assert!(!std::mem::take(&mut self.planned.before_telling), "planned");
                // Before anybody is told: what was committed may name one.
                self.keep_again(true);
            }
            Err(_) => {
                self.fenced = self.term;
                self.metrics.commit_failures.inc();
                self.handle.writable.store(false, Ordering::Release);
            }
        }
        if let InHand::Telling { permits, committed } = std::mem::take(&mut self.in_hand) {
            self.settle(permits, committed);
        }
        self.show_size();
    }

    fn show_size(&self) {
        self.metrics
            .spool_bytes
            .set(i64::try_from(self.spool.bytes()).unwrap_or(i64::MAX));
    }

    fn committed(&self, first: Pos, mut events: Vec<Arc<Event>>) {
        let count = events.len();
        self.handle.head.store(first + count as Pos - 1, Ordering::Release);
        // While the drain is gone, too, no more of them are in memory than it would keep.
        if self.later.announce(count) > self.config.backlog_max {
            events.clear();
        }
        self.drain
            .push_quietly(DrainMsg::Stored(Stored { first, count, events }));
        if self.later.is_worth_it() {
            self.drain.wake();
        }
    }

    fn settle(&self, permits: Vec<WriterPermit>, committed: Committed) {
        let term = self.term;
        self.registry.mailbox.push(RegistryMsg::Settled {
            term,
            permits,
            committed,
        });
    }
}

/// Rule 1: after an I/O error the answer is what the reopened spool holds. That it fails is an error where it `worked` before.
fn commit_one(spool: &mut dyn Spool, unsure: &mut bool, events: &[Arc<Event>], worked: bool) -> Result<Pos, Lost> {
    let level = if worked { log::Level::Error } else { log::Level::Debug };
    // A panic in the spool is an error like any other, and need not cost the thread its pause.
    let result = catch_unwind(AssertUnwindSafe(|| spool.commit(events)));
    let error = match result {
        Ok(Ok(first)) => return Ok(first),
        Ok(Err(error)) => error,
        Err(_) => SpoolError {
            why: "it panicked".into(),
            fault: SpoolFault::Unsure,
        },
    };
    log::log!(level, "spool: a commit of {} events failed: {error}", events.len());
    if error.fault != SpoolFault::Unsure {
        return Err(Lost::Surely);
    }
    let Some(last) = events.last() else {
        return Err(Lost::Surely);
    };
    match spool.reopen_and_find(last) {
        Ok(Some(last)) => Ok(last - events.len() as Pos + 1),
        Ok(None) => Err(Lost::Surely),
        Err(error) => {
            log::log!(level, "spool: it cannot be opened again: {error}");
            *unsure = true;
            Err(Lost::Perhaps)
        }
    }
}
