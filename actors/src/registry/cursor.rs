//! A session's place in its room: what it was sent, what it owes, and what it still lacks.
//!
//! Holding, stalling, resuming and taking over are one thing: a cursor that is behind, and reads on from the ring, or from
//! the log where the ring no longer has it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    RegistryConfig,
    messages::SessionId,
    subscriber::{Batch, Reading, Subscriber},
};
use crate::{
    ring::Entry,
    seams::{LogPage, Pos},
    session::Flow,
    types::Seq,
};

/// How far a session has got in beginning to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Where the room's numbering stands is not known yet.
    Opening,
    /// v1: whether the log has the first event that is wanted is not known yet, so `welcome` cannot be told.
    Seeking,
    /// Events flow.
    Live,
}

/// How far the reading of a page is: at most one at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fetch {
    /// No page is asked for.
    #[default]
    Idle,
    /// One waits for its turn. What it reads is settled when that comes.
    Queued,
    /// One is being read. Where it is `void`, what it brings may lack something that was written since, and is of no use.
    Reading { void: bool },
    /// The last one brought nothing; the next sweep tries again.
    Resting,
}

/// Readings of the log on a cursor's behalf.
#[derive(Clone, Copy, Debug, Default)]
struct Paging {
    fetch: Fetch,
    /// Where in the spool the next page begins to look; 0 where that is not known.
    spool_from: Pos,
    /// Pages in a row in which the next event was missing.
    misses: u32,
    /// Since when the log cannot be read.
    failing_since: Option<Instant>,
}

/// What a page of the log did for a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paged {
    /// It goes on.
    OnIt,
    /// Nothing yet: try again at the next sweep.
    Later,
    /// The log lacks everything up to and including this.
    Hole(Seq),
}

/// One session that reads one room.
pub(super) struct Cursor {
    pub session: SessionId,
    pub subscriber: Arc<dyn Subscriber>,
    pub flow: Arc<Flow>,
    pub reading: Reading,
    pub phase: Phase,
    /// When the session began to read, for the patience of its opening.
    pub began: Instant,
    /// When the session became the room's; a second `start` or `hello` on its socket does not change it.
    pub came: Instant,
    /// The last event that the session said, or is believed, to have when it came.
    pub wanted: Seq,
    /// Where the flow began; between `wanted` and it is a gap.
    pub start: Seq,
    /// The last event queued to the session, or passed over.
    pub sent: Seq,
    /// It was sent something.
    gave: bool,
    /// v1: the last event that the session has acknowledged.
    pub acked: Seq,
    /// v1: how many viewers the session's client said it passes events on to.
    pub fanned_out: Option<u64>,
    /// What was sent and not yet flushed (legacy) or acknowledged (v1), oldest first, with sizes.
    outstanding: VecDeque<(Seq, usize)>,
    outstanding_bytes: usize,
    /// When the session last took something, or had nothing to take.
    progress_at: Instant,
    /// Events of the log that come before those of the ring; bounded by credit, which is what is asked for.
    buffer: VecDeque<Arc<Entry>>,
    page: Paging,
}

impl Cursor {
    pub fn new(
        session: SessionId,
        subscriber: Arc<dyn Subscriber>,
        flow: Arc<Flow>,
        reading: Reading,
        now: Instant,
    ) -> Self {
        Self {
            session,
            subscriber,
            flow,
            reading,
            phase: Phase::Opening,
            began: now,
            came: now,
            wanted: Seq(0),
            start: Seq(0),
            sent: Seq(0),
            gave: false,
            acked: Seq(0),
            fanned_out: None,
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            progress_at: now,
            buffer: VecDeque::new(),
            page: Paging::default(),
        }
    }

    /// How many events were sent and not yet taken or acknowledged.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Begins behind `start`.
    pub fn begin(&mut self, start: Seq) {
        self.start = start;
        self.sent = start;
        self.acked = start;
    }

    /// The last event that was queued to it, or passed over; `None` where it was sent nothing.
    pub fn gave(&self) -> Option<Seq> {
        self.gave.then_some(self.sent)
    }

    /// Whether it reads and was sent nothing yet; what it passed over was not.
    pub fn is_new(&self) -> bool {
        self.phase == Phase::Live && !self.gave
    }

    /// The session's socket took `events` more (legacy).
    fn flushed(&mut self, events: u64, now: Instant) {
        for _ in 0..events {
            self.settle_first();
        }
        self.progress_at = now;
    }

    /// Looks at what the session's socket took since.
    pub fn look(&mut self, now: Instant) {
        let events = self.flow.take_flushed();
        if events > 0 {
            self.flushed(events, now);
        }
    }

    /// What there is to send has to wait for the session's socket. Returns whether it has taken something meanwhile.
    pub fn wait(&mut self, now: Instant) -> bool {
        self.flow.await_flush();
        let before = self.outstanding.len();
        self.look(now);
        self.outstanding.len() < before
    }

    /// Everything up to here is known to have come (v1): what the client said, not what it may never have read.
    pub fn position(&self) -> Seq {
        if self.acked > self.start {
            self.acked
        } else {
            self.wanted.min(self.start)
        }
    }

    /// The session has everything up to `seq` (v1). `None`: it was never sent so much (rule 14).
    pub fn acknowledge(&mut self, seq: Seq, now: Instant) -> Option<bool> {
        if self.phase != Phase::Live {
            // Before its `welcome` a client can only repeat what it had before.
            return Some(false);
        }
        if seq > self.sent {
            return None;
        }
        let moves = seq > self.acked;
        if moves {
            self.acked = seq;
            while self.outstanding.front().is_some_and(|(sent, _)| *sent <= seq) {
                self.settle_first();
            }
            self.progress_at = now;
        }
        Some(moves)
    }

    fn settle_first(&mut self) {
        if let Some((_, bytes)) = self.outstanding.pop_front() {
            self.outstanding_bytes -= bytes;
        }
    }

    /// Whether the session has taken nothing for so long although there was something to take. Of a long event a part is something.
    pub fn stalled(&mut self, now: Instant, limit: Duration) -> bool {
        if self.flow.take_progress() {
            self.progress_at = now;
        }
        !self.outstanding.is_empty() && now.saturating_duration_since(self.progress_at) >= limit
    }

    /// Events that credit still allows.
    pub fn credit(&self, config: &RegistryConfig) -> usize {
        config.credit_events.saturating_sub(self.outstanding.len())
    }

    /// Takes credit for one event. An event of any size may go when nothing is outstanding.
    pub fn spend(&mut self, entry: &Entry, config: &RegistryConfig) -> bool {
        let bytes = entry.bytes();
        let first = self.outstanding.is_empty();
        if self.credit(config) == 0 || (!first && self.outstanding_bytes + bytes > config.credit_bytes) {
            return false;
        }
        self.gave = true;
        self.outstanding.push_back((entry.event.seq, bytes));
        self.outstanding_bytes += bytes;
        self.sent = entry.event.seq;
        true
    }

    /// Whether this session is not told of an event: the legacy dialect has no word for an act of moderation, so what one covers
    /// must not be shown there in the first place.
    pub fn passes(&self, entry: &Entry) -> bool {
        !entry.is_for_legacy() && !self.reading.is_v1()
    }

    /// Passes over an event that this session is not told of.
    pub fn pass(&mut self, entry: &Entry) -> bool {
        let pass = self.passes(entry);
        if pass {
            self.sent = entry.event.seq;
        }
        pass
    }

    /// Nothing is outstanding: there is nothing that the session could have made progress with.
    pub fn rest(&mut self, now: Instant) {
        if self.outstanding.is_empty() {
            self.progress_at = now;
        }
    }

    /// The next event of the log, if it is here.
    pub fn buffered(&self) -> Option<Arc<Entry>> {
        self.buffer.front().cloned()
    }

    /// Events of the log that are here and wait.
    pub fn buffer(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.buffer.iter()
    }

    /// The event that [`Self::buffered`] gave was sent.
    pub fn unbuffer(&mut self) {
        self.buffer.pop_front();
    }

    /// Sends events that credit was taken for.
    pub fn deliver(&self, entries: Vec<Arc<Entry>>) {
        if !entries.is_empty() {
            self.subscriber.deliver(Batch {
                flow: Arc::clone(&self.flow),
                entries,
            });
        }
    }

    /// Whether a page of the log may be asked for.
    pub fn may_ask(&self) -> bool {
        self.page.fetch == Fetch::Idle
    }

    /// A page was asked for, and waits for its turn.
    pub fn queue(&mut self) {
        self.page.fetch = Fetch::Queued;
    }

    /// The turn of what was queued has come: it is read, or nothing is, where there is nothing to ask for at the moment: whatever changes
    /// that pumps. Returns where in the spool to begin to look.
    pub fn take_turn(&mut self, reads: bool) -> Pos {
        self.page.fetch = match reads {
            true => Fetch::Reading { void: false },
            false => Fetch::Idle,
        };
        self.page.spool_from
    }

    /// Ends the rest after a page that brought nothing. Returns whether there was one.
    pub fn wake(&mut self) -> bool {
        let rested = self.page.fetch == Fetch::Resting;
        if rested {
            self.page.fetch = Fetch::Idle;
        }
        rested
    }

    /// What it has of the log, and what is being read for it, may lack what deletes some of it: it is read anew.
    pub fn read_anew(&mut self) {
        self.buffer.clear();
        self.page.spool_from = 0;
        if let Fetch::Reading { void } = &mut self.page.fetch {
            *void = true;
        }
    }

    /// Lets go of the page that has come. It, or another one, may be asked for again.
    pub fn discard_page(&mut self) {
        self.page.fetch = Fetch::Idle;
    }

    /// Lets go of the page that has come, if what it was asked for is not what is lacked any more. Returns whether it did.
    pub fn discard_page_if_stale(&mut self, after: Seq) -> bool {
        let stale = self.page.fetch == Fetch::Reading { void: true } || self.sent != after;
        if stale {
            self.discard_page();
        }
        stale
    }

    /// Takes a page of the log that was asked for behind `sent`, up to `through`.
    pub fn take_page(&mut self, through: Seq, page: LogPage, now: Instant, config: &RegistryConfig) -> Paged {
        self.page.fetch = Fetch::Idle;
        // What is asked for again, as long as the store is away, is not sought through the whole spool each time.
        self.page.spool_from = self.page.spool_from.max(page.begins);
        let first = page.events.first().map(|event| event.seq);
        let hole = first.map_or(through, |first| Seq(first.0 - 1));
        if page.failed.is_some() {
            let since = *self.page.failing_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= config.resume_wait {
                self.page.failing_since = None;
                return Paged::Hole(hole);
            }
            self.page.fetch = Fetch::Resting;
            return Paged::Later;
        }
        self.page.failing_since = None;
        if first != Some(self.sent.next()) {
            self.page.misses += 1;
            if self.page.misses < 2 {
                // Once may be chance: what is answered before it is written, a store that lags.
                self.page.fetch = Fetch::Resting;
                return Paged::Later;
            }
            self.page.misses = 0;
            return Paged::Hole(hole);
        }
        self.page.misses = 0;
        let mut next = self.sent.next();
        for event in page.events {
            if event.seq != next {
                // The next page begins here, so it looks where this one did.
                return Paged::OnIt;
            }
            next = next.next();
            let entry = Entry::new(Arc::new(event));
            if page.deleted.contains(&entry.event.seq) {
                entry.delete();
            }
            self.buffer.push_back(Arc::new(entry));
        }
        self.page.spool_from = page.spool_from;
        Paged::OnIt
    }

    /// Goes on behind a hole of the log.
    pub fn skip(&mut self, through: Seq) {
        if self.phase == Phase::Live {
            self.sent = self.sent.max(through);
        } else {
            self.begin(through);
        }
    }
}
