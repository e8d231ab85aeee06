//! The newest committed events of one room, bounded in count and bytes. What a session's cursor reads from.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytestring::ByteString;

use crate::{
    types::{Event, Seq},
    wire,
};

/// A committed event with its frames, each encoded at most once however many sessions read it.
#[derive(Debug)]
pub struct Entry {
    /// The event.
    pub event: Arc<Event>,
    legacy: OnceLock<ByteString>,
    v1: OnceLock<ByteString>,
    deleted: AtomicBool,
}

impl Entry {
    /// An entry with nothing encoded yet.
    pub fn new(event: Arc<Event>) -> Self {
        Self {
            event,
            legacy: OnceLock::new(),
            v1: OnceLock::new(),
            deleted: AtomicBool::new(false),
        }
    }

    /// An act of moderation covers it.
    pub fn delete(&self) {
        self.deleted.store(true, Ordering::Release);
    }

    /// Whether a session that is not told of acts is told of this event: neither of an act, nor of what one covers, nor of a message
    /// of which nothing is left.
    pub fn is_for_legacy(&self) -> bool {
        self.event.act.is_none() && !self.deleted.load(Ordering::Acquire) && !self.event.is_erased()
    }

    /// The legacy frame; the first caller encodes it, on its own thread rather than the registry's.
    pub fn legacy(&self, encode: impl FnOnce(&Event) -> ByteString) -> ByteString {
        self.legacy.get_or_init(|| encode(&self.event)).clone()
    }

    /// The v1 frame, likewise.
    pub fn v1(&self) -> ByteString {
        self.v1.get_or_init(|| wire::v1::encode_event(&self.event)).clone()
    }

    /// What it costs in memory and on the wire, in bytes, near enough for limits.
    pub fn bytes(&self) -> usize {
        self.event.chat.cost()
    }

    /// What it counts for while it waits for a session: an act, and what it covers, is held for nobody.
    pub fn held_bytes(&self) -> usize {
        if self.is_for_legacy() { self.bytes() } else { 0 }
    }
}

/// A room's ring, in the order of seqs.
#[derive(Debug)]
pub struct Ring {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    max_events: usize,
    max_bytes: usize,
}

impl Ring {
    /// An empty ring that keeps at most so many events and bytes (but always the newest one).
    pub fn new(max_events: usize, max_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            max_events: max_events.max(1),
            max_bytes,
        }
    }

    /// Adds the next event and lets the oldest go where the bounds ask for it.
    pub fn push(&mut self, entry: Arc<Entry>) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.entries.len() > self.max_events || (self.bytes > self.max_bytes && self.entries.len() > 1) {
            if let Some(old) = self.entries.pop_front() {
                self.bytes -= old.bytes();
            }
        }
    }

    /// Seq of the oldest event that is still here.
    pub fn first(&self) -> Option<Seq> {
        self.entries.front().map(|entry| entry.event.seq)
    }

    /// Seq of the newest event.
    pub fn last(&self) -> Option<Seq> {
        self.entries.back().map(|entry| entry.event.seq)
    }

    /// Events after `seq` in order, from the first that is still here.
    pub fn after(&self, seq: Seq) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.range(self.behind(seq)..)
    }

    /// How many events are here up to and including `seq`. Where none is missing, which can be when its outcome could not be
    /// known, that is arithmetic; otherwise it is looked for.
    fn behind(&self, seq: Seq) -> usize {
        let (Some(first), Some(last)) = (self.first(), self.last()) else {
            return 0;
        };
        if seq < first {
            return 0;
        }
        if seq >= last {
            return self.entries.len();
        }
        let at = usize::try_from(seq.0 - first.0).unwrap_or(usize::MAX);
        if self.entries.get(at).is_some_and(|entry| entry.event.seq == seq) {
            return at + 1;
        }
        self.entries.partition_point(|entry| entry.event.seq <= seq)
    }

    /// Whether the event with this seq is here.
    pub fn has(&self, seq: Seq) -> bool {
        self.after(Seq(seq.0.saturating_sub(1)))
            .next()
            .is_some_and(|entry| entry.event.seq == seq)
    }

    /// Lets everything up to and including `seq` go: a session has it, or nobody is to get it any more.
    pub fn forget_through(&mut self, seq: Seq) {
        while self.entries.front().is_some_and(|entry| entry.event.seq <= seq) {
            if let Some(old) = self.entries.pop_front() {
                self.bytes -= old.bytes();
            }
        }
    }
}
