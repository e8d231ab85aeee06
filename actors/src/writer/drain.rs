//! The actor half of the writer: from the spool to the store, in order, one batch under way.
//!
//! What was committed comes here straight from memory; what does not fit there (`log.backlog_max`), or was left by an
//! earlier run, is read back from the spool. A batch that fails is given again, after a backoff, until the store takes it:
//! giving it twice is harmless, because an event's id is its key in the store. Before it is, the store is prepared anew.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use actix::prelude::*;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use super::{
    SpoolCommand,
    broadcasts::Records,
    command::{Rows, ToLearn},
    parts::{DrainMsg, Stored, WriterParts},
};
use crate::{
    broadcast::Broadcast,
    mailbox::Turn,
    queues::Queue,
    registry::RegistryMsg,
    seams::{Poison, Pos, StoreBatch, StoreError},
    seldom::Seldom,
    supervise::Present,
    types::{Event, PresenterIdx, Seq},
};

/// What [`LogWriter`] has under way.
enum Step {
    /// Nothing; the next thing may begin.
    Idle,
    /// A batch that is not full waits for more, and goes at once when it is.
    Lingering(SpawnHandle),
    /// A batch, a read or a pause.
    Busy,
}

/// The actor. What the store does not take is tried again after `log.retry_min_ms`, twice as long each time, up to
/// `log.retry_max_ms`; [`StoreState`](super::StoreState) tells why.
pub struct LogWriter {
    pub(super) parts: WriterParts,
    pub(super) records: Records,
    /// The spool has the broadcasts that the store had open before it.
    pub(super) adopted: bool,
    /// The store is to be asked which broadcasts it has open.
    pub(super) adopts: bool,
    /// That it does not tell them any more, for the log.
    pub(super) untold: Seldom,
    /// The broadcasts that were marked in the spool last, as stored or refused.
    pub(super) marked: Vec<Broadcast>,
    /// Everything up to here is in the store and freed.
    done: Pos,
    /// The last row that the spool is known to hold.
    head: Pos,
    /// The last row that may have waited while another server had the log.
    late: Pos,
    backlog: VecDeque<(Pos, Arc<Event>)>,
    /// `log.backlog_max`, and what had to be read back because it did not fit.
    queue: (Queue, Counter),
    /// When the oldest event of the backlog came.
    oldest: Instant,
    step: Step,
    prepared: bool,
    pause: Duration,
    flushing: Vec<oneshot::Sender<()>>,
    /// The store has told when its newest event was sent, which a spool that asks it for last seqs need not know.
    newest_known: bool,
    /// That it does not tell a room's last seq, for the log.
    unknown: Seldom,
    /// That it will never take an event, for the log.
    parking: Seldom,
    _present: Present,
}

impl LogWriter {
    /// A writer that goes on where the spool, or the writer before it, stands. It is for the writer's own arbiter.
    pub fn new(parts: WriterParts, present: Present) -> Self {
        Self {
            done: parts.handle.done.load(Ordering::Acquire),
            head: parts.handle.head.load(Ordering::Acquire),
            late: parts.handle.head.load(Ordering::Acquire),
            backlog: VecDeque::new(),
            queue: parts.metrics.queues.waiting("backlog", parts.config.backlog_max),
            oldest: Instant::now(),
            step: Step::Idle,
            prepared: false,
            pause: parts.config.retry_min,
            flushing: Vec::new(),
            newest_known: false,
            unknown: Seldom::new(),
            parking: Seldom::new(),
            records: Records::Due,
            adopted: false,
            adopts: true,
            untold: Seldom::new(),
            marked: Vec::new(),
            _present: present,
            parts,
        }
    }

    fn stored(&mut self, stored: Stored) {
        let Stored { first, count, events } = stored;
        self.parts.later.saw(count);
        // Only what follows on without a gap is kept in memory; the rest is in the spool and read back in its turn.
        let next = self.backlog.back().map_or(self.done, |(pos, _)| *pos) + 1;
        let fits = events.len() == count && self.backlog.len() + count <= self.parts.config.backlog_max;
        if first == next && fits {
            if self.backlog.is_empty() {
                self.oldest = Instant::now();
            }
            let rows = events.into_iter().enumerate();
            self.backlog.extend(rows.map(|(n, event)| (first + n as Pos, event)));
        } else {
            self.queue.1.inc_by(count as u64);
        }
        self.head = self.head.max(first + count as Pos - 1);
    }

    fn advance(&mut self, ctx: &mut Context<Self>) {
        self.take_step(ctx);
        let worth = match self.step {
            Step::Idle => 0,
            Step::Lingering(_) => self.enough().saturating_sub(self.backlog.len()),
            // A batch's worth at a time goes into the backlog, which is bounded.
            Step::Busy => self.enough(),
        };
        if self.parts.later.worth(worth) {
            self.parts.mailbox.wake();
        }
    }

    fn take_step(&mut self, ctx: &mut Context<Self>) {
        self.parts.metrics.spool_events.set(self.head - self.done);
        self.queue.0.holds(self.backlog.len());
        match self.step {
            Step::Busy => return,
            Step::Lingering(_) if !self.due() => return,
            Step::Lingering(timer) => {
                ctx.cancel_future(timer);
                self.step = Step::Idle;
            }
            Step::Idle => {}
        }
        if !self.prepared {
            return self.prepare(ctx);
        }
        if self.done >= self.head {
            for done in self.flushing.drain(..) {
                let _ = done.send(());
            }
            return;
        }
        match self.backlog.front() {
            Some((pos, _)) if *pos == self.done + 1 => {
                if self.due() {
                    self.send(ctx);
                } else {
                    let left = self.parts.config.linger.saturating_sub(self.oldest.elapsed());
                    self.step = Step::Lingering(self.wake_after(left, ctx));
                }
            }
            _ => self.read_back(ctx),
        }
    }

    /// Events that are enough for a batch.
    fn enough(&self) -> usize {
        self.parts.config.batch_enough.min(self.parts.config.batch_max)
    }

    /// Whether the batch at the front of the backlog should wait no longer for more.
    fn due(&self) -> bool {
        self.backlog.len() >= self.enough()
            || !self.flushing.is_empty()
            || self.oldest.elapsed() >= self.parts.config.linger
    }

    pub(super) fn prepared(&self) -> bool {
        self.prepared
    }

    fn wake_after(&self, time: Duration, ctx: &mut Context<Self>) -> SpawnHandle {
        ctx.run_later(time, |this, ctx| {
            this.step = Step::Idle;
            this.advance(ctx);
        })
    }

    /// Waits longer after each failure; a batch that is stored and freed sets the pause back.
    fn back_off(&mut self, ctx: &mut Context<Self>) {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.parts.config.retry_max);
        self.step = Step::Busy;
        self.wake_after(pause, ctx);
    }

    fn prepare(&mut self, ctx: &mut Context<Self>) {
        self.step = Step::Busy;
        let store = Arc::clone(&self.parts.store);
        let asked = async move { store.prepare().await }.into_actor(self);
        ctx.spawn(asked.map(|result, this, ctx| {
            this.step = Step::Idle;
            match result {
                Ok(()) => {
                    this.prepared = true;
                    if this.done >= this.head {
                        // Else a batch tells whether it takes events.
                        this.pause = this.parts.config.retry_min;
                        this.recovered();
                    }
                    this.advance(ctx);
                    this.advance_broadcasts(ctx);
                }
                Err(error) => {
                    this.failed(&error);
                    this.back_off(ctx);
                }
            }
        }));
    }

    fn send(&mut self, ctx: &mut Context<Self>) {
        self.step = Step::Busy;
        let count = self.backlog.len().min(self.parts.config.batch_max);
        let rows = self.backlog.iter().take(count);
        let batch: StoreBatch = Arc::new(rows.map(|(_, event)| Arc::clone(event)).collect());
        let began = Instant::now();
        let (store, late) = (Arc::clone(&self.parts.store), self.is_late());
        let written = async move {
            let mut poison = store.append(Arc::clone(&batch)).await?;
            if late {
                // Before the rows are freed: what is broken off here is done again.
                let unmarked = store.mark_late(batch).await?;
                let new = |one: &Poison| poison.iter().all(|refused| refused.index != one.index);
                let unmarked: Vec<_> = unmarked.into_iter().filter(new).collect();
                poison.extend(unmarked);
            }
            Ok(poison)
        };
        ctx.spawn(written.into_actor(self).map(move |result, this, ctx| match result {
            Ok(poison) => {
                this.parts.metrics.store_batch_events.observe(count as f64);
                this.parts
                    .metrics
                    .store_batch_seconds
                    .observe(began.elapsed().as_secs_f64());
                this.recovered();
                this.free(count, poison, ctx);
            }
            Err(error) => {
                this.failed(&error);
                // What it was prepared with may be gone: a collection that was dropped or restored, an index.
                this.prepared = false;
                this.step = Step::Idle;
                this.back_off(ctx);
            }
        }));
    }

    /// Whether the front of the backlog may have waited while another server had the log: it was here at the start, or
    /// the store was not to be had.
    fn is_late(&self) -> bool {
        self.done < self.late || self.parts.state.failing().is_some()
    }

    /// The store has the first `count` of the backlog, where nothing is put in front of them meanwhile: the spool's rows go, and what the
    /// store will never take is set aside.
    fn free(&mut self, count: usize, poison: Vec<Poison>, ctx: &mut Context<Self>) {
        let Some(through) = self.backlog.get(count.wrapping_sub(1)).map(|(pos, _)| *pos) else {
            self.step = Step::Idle;
            return;
        };
        let parked: Vec<_> = poison
            .into_iter()
            .filter_map(|poison| {
                let (pos, event) = self.backlog.get(poison.index)?.clone();
                Some((pos, event, poison.reason))
            })
            .collect();
        // All of them may be: a collection's rule is for every event.
        if let Some((_, event, reason)) = parked.first()
            && let Some(more) = self.parking.due(Instant::now())
        {
            log::error!(
                "store: event {} will never be stored as it is, parked, the first of {} in its batch: {reason}{more}",
                event.id,
                parked.len()
            );
        }
        let parked_count = parked.len() as u64;
        let (reply, freed) = oneshot::channel();
        let command = SpoolCommand::Free {
            through,
            parked,
            keys_before_ms: self.parts.handle.keys_since_ms(),
            reply,
        };
        self.parts.handle.queue.push(command);
        ctx.spawn(freed.into_actor(self).map(move |result, this, ctx| {
            this.step = Step::Idle;
            match result {
                Ok(Ok(())) => {
                    this.parts.metrics.parked.inc_by(parked_count);
                    this.done = through;
                    this.pause = this.parts.config.retry_min;
                    this.backlog.drain(..count.min(this.backlog.len()));
                    this.oldest = Instant::now();
                    this.advance(ctx);
                }
                Ok(Err(error)) => {
                    // The store has the batch; giving it again is harmless, and the rows stay until they can go.
                    log::error!("spool: stored rows cannot be freed: {error}");
                    this.back_off(ctx);
                }
                // The spool's thread panicked over it.
                Err(_) => this.back_off(ctx),
            }
        }));
    }

    fn read_back(&mut self, ctx: &mut Context<Self>) {
        self.step = Step::Busy;
        let (reply, rows) = oneshot::channel();
        let (after, limit, asked) = (self.done, self.parts.config.batch_max, self.head);
        self.parts.handle.queue.push(SpoolCommand::Read { after, limit, reply });
        ctx.spawn(rows.into_actor(self).map(move |result, this, ctx| {
            this.step = Step::Idle;
            match result {
                Ok(Ok(rows)) => this.took_rows(rows, asked, ctx),
                Ok(Err(error)) => {
                    log::error!("spool: rows cannot be read back: {error}");
                    this.back_off(ctx);
                }
                Err(_) => this.back_off(ctx),
            }
        }));
    }

    /// Rows have come back from the spool: they go in front of what is in memory.
    fn took_rows(&mut self, rows: Rows, asked: Pos, ctx: &mut Context<Self>) {
        let in_memory = self.backlog.front().map(|(pos, _)| *pos);
        let Some((first, _)) = rows.first() else {
            // Nothing was there when it was asked: what memory has comes next, or what came since.
            self.done = in_memory.map_or(asked, |pos| pos - 1);
            return self.advance(ctx);
        };
        self.done = first - 1;
        match in_memory {
            Some(pos) => {
                let before = rows.into_iter().take_while(|(row, _)| *row < pos);
                for row in before.collect::<Vec<_>>().into_iter().rev() {
                    self.backlog.push_front(row);
                }
            }
            None => self.backlog.extend(rows),
        }
        // They are old already: no linger.
        self.oldest = Instant::now()
            .checked_sub(self.parts.config.linger)
            .unwrap_or_else(Instant::now);
        self.advance(ctx);
    }

    fn recovered(&mut self) {
        if self.parts.state.failing().is_some() {
            log::info!("store: it takes events again; {} to go", self.head - self.done);
            self.late = self.head;
        }
        self.parts.state.set(None);
    }

    /// The store took nothing, or was not to be had at the start: what was asked of it is asked again.
    fn failed(&self, error: &StoreError) {
        self.parts.metrics.store_retries.inc();
        if self.parts.state.failing().is_none() {
            log::warn!("store: events cannot be written, they stay in the spool: {error}");
        }
        self.parts.state.set(Some(error.0.clone()));
    }

    fn ask_store(&self, presenter: PresenterIdx, ctx: &mut Context<Self>) {
        self.parts.asking().insert(presenter);
        let store = Arc::clone(&self.parts.store);
        // It may not have been there at the start; no event of a room that it was asked for is stamped before those that it has.
        let (writer, known, adopted) = (self.parts.handle.clone(), self.newest_known, self.adopted);
        let asked = async move {
            if !known {
                writer.note_ms(store.newest_ms().await?);
            }
            // Nor does it begin a broadcast before it is known which one it had.
            let open = match adopted {
                true => None,
                false => store.open_broadcast(presenter).await?,
            };
            Ok((store.last_seq(presenter).await?, open))
        };
        ctx.spawn(
            asked
                .into_actor(self)
                .map(move |told: Result<(Seq, Option<Broadcast>), StoreError>, this, _| {
                    this.parts.asking().remove(&presenter);
                    this.newest_known |= told.is_ok();
                    match told {
                        Ok((last, open)) => {
                            let told = ToLearn { presenter, last, open };
                            this.parts.handle.queue.push(SpoolCommand::LearnLastSeq(told));
                        }
                        Err(error) => {
                            // Each room is asked for, again and again while the store is away.
                            if let Some(more) = this.unknown.due(Instant::now()) {
                                log::warn!(
                                    "store: the last seq of presenter {presenter} is not known yet: {error}{more}"
                                );
                            }
                            this.parts.registry.mailbox.push(RegistryMsg::LastSeq {
                                presenter,
                                last: Err(()),
                                place: None,
                            });
                        }
                    }
                }),
        );
    }
}

impl Actor for LogWriter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(self.parts.mailbox.batches());
        let again: Vec<_> = self.parts.asking().iter().copied().collect();
        for presenter in again {
            self.ask_store(presenter, ctx);
        }
        if let Some(every) = self.parts.config.adopt_every {
            ctx.run_interval(every, |this, ctx| {
                this.adopts = true;
                this.broadcasts_due();
                this.advance_broadcasts(ctx);
            });
        }
        self.advance(ctx);
    }
}

impl StreamHandler<Vec<DrainMsg>> for LogWriter {
    fn handle(&mut self, batch: Vec<DrainMsg>, ctx: &mut Self::Context) {
        for message in Turn::new(&self.parts.mailbox, batch) {
            match message {
                DrainMsg::Stored(stored) => self.stored(stored),
                DrainMsg::AskStore { presenter } => self.ask_store(presenter, ctx),
                DrainMsg::Flush { done } => self.flushing.push(done),
                DrainMsg::Broadcasts => self.broadcasts_due(),
                #[expect(clippy::panic, reason = "the planned failure point")]
                DrainMsg::Panic => panic!("planned"),
            }
        }
        self.advance(ctx);
        self.advance_broadcasts(ctx);
    }
}
