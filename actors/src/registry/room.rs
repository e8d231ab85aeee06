//! One room: its lease, its numbering, its ring and the cursor that reads it. No actor, no clock of its own.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    RegistryConfig,
    messages::{SessionId, Waiting},
    subscriber::{Delivery, Subscriber},
};
use crate::{
    outcome::Refusal,
    ring::{Entry, Ring},
    seams::Liveness,
    session::Flow,
    types::Seq,
};

/// The room's liveness verdict, with its expiry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub liveness: Liveness,
    pub taken_at: Instant,
    pub expires_at: Instant,
}

impl Lease {
    fn valid(&self, now: Instant) -> bool {
        now < self.expires_at
    }

    /// Leases in use are refreshed when so much of their time is over (rule 8).
    fn refresh_due(&self, now: Instant, percent: u32) -> bool {
        let life = self.expires_at.saturating_duration_since(self.taken_at);
        now.saturating_duration_since(self.taken_at) >= life * percent / 100
    }
}

/// What is known of the room's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbering {
    /// Nothing: the spool must be asked before anything is numbered.
    Unknown,
    /// The spool has been asked.
    Asked,
    /// Everything up to `committed` is in the spool; `next` is what the next event gets.
    Known { committed: Seq, next: Seq },
}

/// A session's place in the room. Credit is what was sent and not yet flushed.
pub(super) struct Cursor {
    pub session: SessionId,
    pub subscriber: Arc<dyn Subscriber>,
    pub flow: Arc<Flow>,
    /// Where the flow began.
    start: Seq,
    /// The last event queued to the session.
    pub sent: Seq,
    /// Sizes of what was sent and not yet flushed, oldest first.
    outstanding: VecDeque<usize>,
    outstanding_bytes: usize,
    /// When the socket last took something, or had nothing to take.
    progress_at: Instant,
}

impl Cursor {
    /// The session told that its socket took `events` more.
    pub fn flushed(&mut self, events: u64, now: Instant) {
        for _ in 0..events {
            if let Some(bytes) = self.outstanding.pop_front() {
                self.outstanding_bytes -= bytes;
            }
        }
        self.progress_at = now;
    }

    /// Whether the socket has taken nothing for so long although there was something to take.
    pub fn stalled(&self, now: Instant, limit: Duration) -> bool {
        !self.outstanding.is_empty() && now.saturating_duration_since(self.progress_at) >= limit
    }
}

/// Everything the registry keeps for one presenter.
pub(super) struct Room {
    pub lease: Option<Lease>,
    /// A question about liveness is under way.
    pub checking: bool,
    pub numbering: Numbering,
    /// Submits without a verdict, in the order they came.
    pub waiting: VecDeque<Waiting>,
    /// Numbered and not yet answered by the writer.
    pub in_flight: usize,
    pub ring: Ring,
    pub cursor: Option<Cursor>,
    /// Everything up to here was taken by a legacy session's socket.
    taken: Seq,
    /// Everything up to here belongs to a broadcast that is over: no later session gets it (rule 13).
    over: Seq,
    /// Bytes of numbered events that no session was sent.
    unsent_bytes: usize,
    /// When the last session of this broadcast ended, while none has come since (rule 12).
    session_ended: Option<Instant>,
    /// When the room server was last asked to make the presenter reconnect.
    reconnect_asked: Option<Instant>,
    /// Since when the room has not been live while it has a session.
    not_live_since: Option<Instant>,
}

impl Room {
    pub fn new(config: &RegistryConfig) -> Self {
        Self {
            lease: None,
            checking: false,
            numbering: Numbering::Unknown,
            waiting: VecDeque::new(),
            in_flight: 0,
            ring: Ring::new(config.ring_events, config.ring_bytes),
            cursor: None,
            taken: Seq(0),
            over: Seq(0),
            unsent_bytes: 0,
            session_ended: None,
            reconnect_asked: None,
            not_live_since: None,
        }
    }

    /// The verdict that counts now.
    pub fn verdict(&self, now: Instant) -> Option<Liveness> {
        self.lease.filter(|lease| lease.valid(now)).map(|lease| lease.liveness)
    }

    /// Whether the room server should be asked although the lease still holds.
    pub fn refresh_due(&self, now: Instant, percent: u32) -> bool {
        !self.checking && self.lease.is_some_and(|lease| lease.refresh_due(now, percent))
    }

    /// Takes a new verdict.
    pub fn renew(&mut self, liveness: Liveness, now: Instant, expires_at: Instant) {
        let before = self.lease.and_then(|lease| lease.liveness.room_idx);
        let another = before
            .zip(liveness.room_idx)
            .is_some_and(|(before, after)| before != after);
        let begins = self.lease.is_some_and(|lease| !lease.liveness.live);
        if !liveness.live || begins || another {
            // Only a session of this very broadcast is held for.
            self.session_ended = None;
        }
        if !liveness.live || another {
            // What was held belongs to the broadcast before: the log has it, the next one does not get it (rule 13).
            self.over = self.last_numbered();
            self.let_go();
        }
        self.lease = Some(Lease {
            liveness,
            taken_at: now,
            expires_at,
        });
        self.not_live_since = match (liveness.live, self.not_live_since) {
            (true, _) => None,
            (false, since) => since.or(Some(now)),
        };
    }

    /// How long the room has been known not to be live.
    pub fn not_live_for(&self, now: Instant) -> Option<Duration> {
        self.not_live_since.map(|since| now.saturating_duration_since(since))
    }

    /// Admission: one synchronous step after liveness and before numbering.
    pub fn admit(&self, bytes: usize, config: &RegistryConfig, now: Instant) -> Result<(), Refusal> {
        let sent = match &self.cursor {
            Some(cursor) => cursor.sent,
            None if self.held_for(now, config) => self.taken.max(self.over),
            None => return Err(Refusal::PresenterDisconnected),
        };
        // Nothing that was not sent may ever fall out of the ring, so the ring's room is the limit.
        let unsent = match self.numbering {
            Numbering::Known { next, .. } => next.0.saturating_sub(sent.0 + 1),
            Numbering::Unknown | Numbering::Asked => 0,
        };
        if unsent >= config.ring_events as u64 || self.unsent_bytes + bytes > config.ring_bytes {
            return Err(Refusal::Overloaded("ring"));
        }
        Ok(())
    }

    /// Rule 12: the session of this broadcast ended a moment ago, so messages wait in the ring for the next.
    fn held_for(&self, now: Instant, config: &RegistryConfig) -> bool {
        self.session_ended
            .is_some_and(|ended| now.saturating_duration_since(ended) < config.grace)
    }

    /// Whether the room server should be asked to make the presenter reconnect; asking counts.
    pub fn reconnect_due(&mut self, now: Instant, config: &RegistryConfig) -> bool {
        let due = self.cursor.is_none()
            && self
                .reconnect_asked
                .is_none_or(|asked| now.saturating_duration_since(asked) >= config.reconnect_interval);
        if due {
            self.reconnect_asked = Some(now);
        }
        due
    }

    /// Gives the next number. Only called when the numbering is known.
    pub fn number(&mut self, bytes: usize) -> Option<Seq> {
        let Numbering::Known { next, .. } = &mut self.numbering else {
            return None;
        };
        let seq = *next;
        *next = seq.next();
        self.in_flight += 1;
        self.unsent_bytes += bytes;
        Some(seq)
    }

    /// The writer told what the room's last number is.
    pub fn numbering_known(&mut self, last: Seq) {
        if self.numbering != Numbering::Asked {
            return;
        }
        self.numbering = Numbering::Known {
            committed: last,
            next: last.next(),
        };
        if self.ring.is_empty() {
            self.taken = self.taken.max(last);
        }
        if let Some(cursor) = &mut self.cursor
            && self.ring.is_empty()
        {
            cursor.sent = cursor.sent.max(last);
            cursor.start = cursor.sent;
        }
    }

    /// One numbered event was committed: it takes its place in the ring.
    pub fn publish(&mut self, entry: Arc<Entry>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Numbering::Known { committed, .. } = &mut self.numbering {
            *committed = entry.event.seq;
        }
        let read = self.cursor.as_ref().map_or(self.taken, |cursor| cursor.sent);
        if entry.event.seq <= read {
            // Of a broadcast that ended while it was on its way: the session began behind it, so nothing waits for it.
            self.unsent_bytes = self.unsent_bytes.saturating_sub(entry.bytes());
        }
        self.ring.push(entry);
        self.let_go();
    }

    /// One numbered event was not committed: its number is taken back (rule 1).
    pub fn take_back(&mut self, bytes: usize, unknown: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.unsent_bytes = self.unsent_bytes.saturating_sub(bytes);
        if unknown {
            self.numbering = Numbering::Unknown;
        }
        self.let_go();
    }

    /// The next number is that after the last committed one again (rule 1).
    pub fn rewind(&mut self) {
        if let Numbering::Known { committed, next } = &mut self.numbering {
            *next = committed.next();
            self.over = self.over.min(*committed);
        }
    }

    /// The last number that was given, as far as is known.
    fn last_numbered(&self) -> Seq {
        match self.numbering {
            Numbering::Known { next, .. } => Seq(next.0 - 1),
            Numbering::Unknown | Numbering::Asked => self.ring.last().unwrap_or_default().max(self.over),
        }
    }

    /// Lets a session read from where the last one's socket got to. Returns the session that it takes over from.
    pub fn attach(
        &mut self,
        session: SessionId,
        subscriber: Arc<dyn Subscriber>,
        flow: Arc<Flow>,
        now: Instant,
    ) -> Option<Cursor> {
        let old = self.detach(now);
        self.session_ended = None;
        let start = self.taken.max(self.over);
        self.cursor = Some(Cursor {
            session,
            subscriber,
            flow,
            start,
            sent: start,
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            progress_at: now,
        });
        old
    }

    /// Ends the reading of the attached session, and remembers how far its socket got.
    pub fn detach(&mut self, now: Instant) -> Option<Cursor> {
        let cursor = self.cursor.take()?;
        self.session_ended = Some(now);
        let taken = cursor.flow.end().unwrap_or(cursor.start);
        // What was queued and not taken counts as unsent again.
        self.unsent_bytes += self
            .ring
            .after(taken)
            .take_while(|entry| entry.event.seq <= cursor.sent)
            .map(|entry| entry.bytes())
            .sum::<usize>();
        self.taken = taken;
        self.let_go();
        Some(cursor)
    }

    /// Sends what the ring has and credit allows. Returns how many events were sent.
    pub fn pump(&mut self, config: &RegistryConfig, now: Instant) -> usize {
        let Some(cursor) = &mut self.cursor else {
            return 0;
        };
        let mut entries = Vec::new();
        if cursor.outstanding.is_empty() {
            cursor.progress_at = now;
        }
        let mut sent = cursor.sent;
        for entry in self.ring.after(cursor.sent) {
            let bytes = entry.bytes();
            let first = cursor.outstanding.is_empty();
            if cursor.outstanding.len() >= config.credit_events
                || (!first && cursor.outstanding_bytes + bytes > config.credit_bytes)
            {
                break;
            }
            cursor.outstanding.push_back(bytes);
            cursor.outstanding_bytes += bytes;
            self.unsent_bytes = self.unsent_bytes.saturating_sub(bytes);
            sent = entry.event.seq;
            entries.push(Arc::clone(entry));
        }
        let count = entries.len();
        if count > 0 {
            cursor.sent = sent;
            cursor.subscriber.deliver(Delivery {
                flow: Arc::clone(&cursor.flow),
                entries,
            });
        }
        count
    }

    /// Whether the event was sent to a session (rule 11).
    pub fn was_sent(&self, seq: Seq) -> bool {
        self.cursor.as_ref().is_some_and(|cursor| cursor.sent >= seq)
    }

    /// The checker is another one now: it was asked nothing.
    pub fn checker_started(&mut self) -> bool {
        std::mem::take(&mut self.checking)
    }

    /// Whether the sweep should ask for a verdict: a session or something held waits for one (rule 13).
    pub fn wants_verdict(&self, now: Instant) -> bool {
        !self.checking && self.verdict(now).is_none() && (self.cursor.is_some() || self.unsent_bytes > 0)
    }

    /// Lets go of what no session took of a broadcast that is over; the log has it (rule 13). What is still on its way
    /// through the writer is let go when it has come back.
    fn let_go(&mut self) {
        if self.cursor.is_none() && self.in_flight == 0 && self.taken < self.over {
            self.ring.forget_through(self.over);
            self.taken = self.over;
            self.unsent_bytes = self.ring.after(self.taken).map(|entry| entry.bytes()).sum();
        }
    }

    /// Whether nothing would be lost by forgetting this room (rule 10).
    pub fn idle(&self, now: Instant, config: &RegistryConfig) -> bool {
        self.cursor.is_none()
            && !self.held_for(now, config)
            && self.waiting.is_empty()
            && self.in_flight == 0
            && !self.checking
            && self.unsent_bytes == 0
            && self.numbering != Numbering::Asked
            && !self.verdict(now).is_some_and(|verdict| verdict.live)
    }
}
