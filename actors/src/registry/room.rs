//! One room: its lease, its numbering, its ring and the cursor that reads it. No actor, no clock of its own.

mod place;
mod reading;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    RegistryConfig,
    broadcasts::ms,
    cursor::{Cursor, Paged, Phase},
    messages::{Looking, RoomLook, SessionId, Waiting},
    subscriber::{Reading, Subscriber},
};
use crate::{
    broadcast::{Broadcast, Watched},
    checker::Why,
    outcome::Refusal,
    ring::{Entry, Ring},
    seams::{Liveness, LogPage, Place},
    session::Flow,
    types::{Epoch, PresenterIdx, Seq},
    wire::v1::Gap,
};

pub(super) use self::reading::Opened;

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

/// Refusals of the room server's in a row: when the first and the last came.
#[derive(Clone, Copy, Debug)]
struct Refused {
    since: Instant,
    last: Instant,
}

/// See [`Room::is_unknown`].
const ALONE: u32 = 12;

/// What a broadcast finds again when it goes on after the room was not live for a moment. Meanwhile it is taken for ended: who comes
/// then may come for the next one.
#[derive(Clone, Copy, Debug)]
struct Paused {
    over: Seq,
    session_ended: Option<Instant>,
}

/// Everything the registry keeps for one presenter.
pub(super) struct Room {
    pub lease: Option<Lease>,
    /// A question about liveness is under way.
    pub checking: bool,
    pub numbering: Numbering,
    /// Submits without a verdict, in the order they came.
    pub waiting: VecDeque<Waiting>,
    /// Acts of moderation that wait for the numbering, in the order they came.
    pub acting: VecDeque<Waiting>,
    /// Numbered and not yet answered by the writer.
    pub in_flight: usize,
    /// The same in bytes.
    in_flight_bytes: usize,
    pub ring: Ring,
    pub cursor: Option<Cursor>,
    /// Who asked what the room looks like, and waits for the verdict.
    pub looking: Vec<Looking>,
    /// Everything up to here was acknowledged (v1) or taken by the socket (legacy).
    position: Seq,
    /// Where a legacy session goes on: `position`, unless more may have been sent beyond it than is known.
    legacy_from: Seq,
    /// Everything up to here belongs to a broadcast that is over: a later session gets it only if it asks (rule 13).
    over: Seq,
    /// The room is not live, and its broadcast may yet go on.
    paused: Option<Paused>,
    /// Everything up to here waits for nobody: it was sent, or the log has it for whoever comes.
    settled: Seq,
    /// Bytes of committed events that wait.
    held_bytes: usize,
    /// When the last session of this broadcast ended, while none has come since (rule 12).
    session_ended: Option<Instant>,
    /// When the room server was last asked to make the presenter reconnect.
    reconnect_asked: Option<Instant>,
    /// Since when the room has not been live; the time in which nobody could tell does not count.
    not_live_since: Option<Instant>,
    /// The room server has answered only that it does not say.
    refused: Option<Refused>,
    /// Since when the room server has not answered.
    unanswered_since: Option<Instant>,
    /// The checker's word, whatever it was, has come in time since the numbering is known.
    pub told: bool,
    /// The room server's own number of the broadcast's room, as far as it was ever named.
    broadcast: Option<i64>,
    /// The record of the broadcast that goes on, or may go on.
    pub record: Option<Broadcast>,
    /// When its record was last kept, in milliseconds since 1970.
    pub recorded_ms: i64,
    /// Until when it was looked after and nobody said that it is not live; `None` where this process has not seen it live.
    pub watched: Option<Watched>,
    /// Whether where the room stood before was asked for.
    restored: bool,
    /// Whether its place is another than what was last saved.
    moved: bool,
    /// When its place was last saved.
    saved_at: Option<Instant>,
    /// The place on disk is exact.
    exact_on_disk: bool,
    /// That it no longer is is on its way there.
    marking: bool,
    /// An exact place has been sent after that.
    exact_behind_mark: bool,
    /// How many viewers the presenter's client said it passes events on to.
    pub fanned_out: Option<u64>,
    /// The last session was legacy: whoever comes next is owed no act that came since.
    passes_acts: bool,
}

impl Room {
    pub fn new(config: &RegistryConfig) -> Self {
        Self {
            lease: None,
            checking: false,
            numbering: Numbering::Unknown,
            waiting: VecDeque::new(),
            acting: VecDeque::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            ring: Ring::new(config.ring_events, config.ring_bytes),
            cursor: None,
            looking: Vec::new(),
            position: Seq(0),
            legacy_from: Seq(0),
            over: Seq(0),
            paused: None,
            settled: Seq(0),
            held_bytes: 0,
            session_ended: None,
            reconnect_asked: None,
            not_live_since: None,
            refused: None,
            unanswered_since: None,
            told: false,
            broadcast: None,
            record: None,
            recorded_ms: 0,
            watched: None,
            restored: false,
            moved: false,
            saved_at: None,
            exact_on_disk: false,
            marking: false,
            exact_behind_mark: false,
            fanned_out: None,
            passes_acts: false,
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

    /// Whether whoever asks causes no lookup: there is a verdict, one is under way, or its session needs one.
    pub fn is_asked_about_anyway(&self, now: Instant) -> bool {
        self.verdict(now).is_some() || self.checking || self.cursor.is_some()
    }

    /// Takes a new verdict.
    pub fn renew(&mut self, liveness: Liveness, now: Instant, expires_at: Instant) {
        let another = self
            .broadcast
            .zip(liveness.room_idx)
            .is_some_and(|(before, after)| before != after);
        let begins = self.lease.is_some_and(|lease| !lease.liveness.live);
        if liveness.room_idx.is_some() && liveness.room_idx != self.broadcast {
            self.broadcast = liveness.room_idx;
            self.moved = true;
        }
        if another {
            self.paused = None;
        } else if let Some(paused) = &mut self.paused {
            // A session that ended meanwhile is one of it, if it goes on.
            paused.session_ended = self.session_ended.or(paused.session_ended);
        } else if !liveness.live && self.restored {
            self.paused = Some(Paused {
                over: self.over,
                session_ended: self.session_ended,
            });
        }
        if !liveness.live || begins || another {
            // Only a session of this very broadcast is held for.
            self.session_ended = None;
        }
        if !liveness.live || another {
            // What was held belongs to the broadcast before: the log has it, the next one does not get it (rule 13).
            self.broadcast_ends();
        }
        self.lease = Some(Lease {
            liveness,
            taken_at: now,
            expires_at,
        });
        self.is_answered(now);
        self.refused = None;
        self.not_live_since = match liveness.live {
            true => None,
            false => self.not_live_since.or(Some(now)),
        };
    }

    /// The room server answers, whatever: the time without it does not count.
    pub fn is_answered(&mut self, now: Instant) {
        if let Some(since) = self.unanswered_since.take() {
            let unanswered = now.saturating_duration_since(since);
            self.not_live_since = self.not_live_since.map(|since| since + unanswered);
        }
    }

    /// The room server does not say whether the room is live, and no verdict holds.
    pub fn is_refused(&mut self, now: Instant) {
        self.is_answered(now);
        let since = self.refused.map_or(now, |refused| refused.since);
        self.refused = Some(Refused { since, last: now });
    }

    /// Whether the room server has not known the room for so long that nothing it had goes on, and nobody is or was just here. That
    /// it knows others behind that (`named_at`) tells it from one that knows nobody any more; where nobody asks about others, as at
    /// night, it takes [`ALONE`] times as long.
    pub fn is_unknown(&self, named_at: Option<Instant>, now: Instant, config: &RegistryConfig) -> bool {
        let Some(Refused { since, .. }) = self.refused else {
            return false;
        };
        let named = named_at.is_some_and(|named_at| named_at >= since + config.broadcast_resume);
        let long = now.saturating_duration_since(since) >= config.broadcast_resume * ALONE;
        self.cursor.is_none() && !self.held_for(now, config) && (named || long)
    }

    /// Whether nothing that was accepted waits for a session of this broadcast, be it in memory or, behind a restart, in the log.
    pub fn holds_nothing(&self) -> bool {
        self.restored && self.waiting_bytes() == 0 && self.held_for_nobody(self.got()) >= self.last_numbered()
    }

    /// Everything up to here was taken, may have been, or is not of this broadcast.
    fn got(&self) -> Seq {
        let over = self.paused.map_or(self.over, |paused| paused.over);
        self.position.max(self.legacy_from).max(over)
    }

    /// The last in an unbroken row of events behind this one that are acts, or what acts cover; this one where there is none.
    fn held_for_nobody(&self, behind: Seq) -> Seq {
        let events = self.ring.after(behind).take_while(|entry| !entry.is_for_legacy());
        events.fold(behind, |last, entry| match entry.event.seq {
            seq if seq == last.next() => seq,
            _ => last,
        })
    }

    /// The place of a room without a session moves over what is held for nobody. Not where the last session was v1: the next one is
    /// told of acts that came since.
    fn pass_over(&mut self) {
        if self.cursor.is_some() || !self.passes_acts {
            return;
        }
        let got = self.got();
        let through = self.held_for_nobody(got);
        if got < through {
            if self.position == self.legacy_from {
                self.position = through;
            }
            self.legacy_from = through;
            self.moved = true;
        }
    }

    /// The record of its broadcast has ended without a word of the room server's.
    pub fn was_given_up(&mut self) {
        self.session_ended = None;
        self.goes_on_no_more();
        self.broadcast_ends();
    }

    /// The room server did not answer, and no verdict holds.
    pub fn is_unanswered(&mut self, now: Instant) {
        self.refused = None;
        self.unanswered_since.get_or_insert(now);
    }

    fn broadcast_ends(&mut self) {
        // Before the numbering is known: whatever there is.
        let last = if self.restored {
            self.last_numbered()
        } else {
            Seq(u64::MAX)
        };
        if last != self.over {
            self.over = last;
            self.moved = true;
        }
        self.let_go();
    }

    /// It is looked at; `now_ms` is milliseconds since 1970, `boot_ms` the same moment by [`crate::clock::boot_ms`].
    pub fn watch(&mut self, now_ms: i64, boot_ms: i64, config: &RegistryConfig) {
        // Looks are a sweep apart, or a little more; that is no time without one.
        let pause_ms = ms(config.broadcast_resume.max(config.sweep * 3));
        self.watched = self.watched.map(|watched| watched.on(now_ms, boot_ms, pause_ms));
    }

    /// The record of the broadcast tells whether the live room goes on with the one that it had, if it had one. Returns whether there
    /// is something for its session again.
    pub fn is_live_in(&mut self, before: Option<Uuid>) -> bool {
        let now = self.record.as_ref().map(|record| record.id);
        let paused = self.paused.take();
        // Its place was saved as that of the broadcast that might go on.
        self.moved |= paused.is_some();
        if before.is_some() && before != now {
            // What names a broadcast may be its start, and what tells two apart may be time alone.
            self.session_ended = None;
            self.broadcast_ends();
            return false;
        }
        let goes_on = paused.filter(|_| before.is_some());
        goes_on.is_some_and(|paused| self.goes_on(paused))
    }

    /// The broadcast that might have gone on has ended.
    pub fn goes_on_no_more(&mut self) {
        self.moved |= self.paused.take().is_some();
    }

    fn goes_on(&mut self, paused: Paused) -> bool {
        self.over = paused.over;
        let from = self.legacy_from.max(self.over);
        match &mut self.cursor {
            None => {
                self.session_ended = paused.session_ended;
                false
            }
            // One that came meanwhile and has had nothing yet has what is held before it.
            Some(cursor) if cursor.reading == Reading::Legacy && cursor.is_new() && from < cursor.start => {
                cursor.begin(from);
                true
            }
            Some(_) => false,
        }
    }

    /// How long the room has been known not to be live.
    pub fn away_for(&self, now: Instant) -> Option<Duration> {
        self.not_live_since.map(|since| now.saturating_duration_since(since))
    }

    /// How long the room has been known not to be live, and its session, if it has one, has been there. `None` while nobody can
    /// tell, too: that the room server is away ends no session (rule 9).
    pub fn not_live_for(&self, now: Instant) -> Option<Duration> {
        let since = self.not_live_since.filter(|_| self.unanswered_since.is_none())?;
        Some(self.here_for(since, now))
    }

    /// How long the room server has not said whether the room is live, and its session, if it has one, has been there. `None` where it
    /// does, does not answer, or has named no other since (`named_at`): one that knows nobody any more is not the session's fault.
    pub fn refused_for(&self, named_at: Option<Instant>, now: Instant) -> Option<Duration> {
        let since = self.refused?.since;
        named_at.filter(|named_at| *named_at >= since)?;
        Some(self.here_for(since, now))
    }

    /// The time since then in which its session, if it has one, has been there.
    fn here_for(&self, since: Instant, now: Instant) -> Duration {
        let since = self.cursor.as_ref().map_or(since, |cursor| since.max(cursor.came));
        now.saturating_duration_since(since)
    }

    /// Admission: one synchronous step after liveness and before numbering.
    pub fn admit(&self, bytes: usize, config: &RegistryConfig, now: Instant) -> Result<(), Refusal> {
        let full = match &self.cursor {
            Some(_) => Refusal::Overloaded("ring"),
            // Rule 12: held for so long, and no more than the ring holds.
            None => Refusal::PresenterDisconnected,
        };
        if self.cursor.is_none() && !self.held_for(now, config) {
            return Err(full);
        }
        // The ring's room is the limit on what waits: what waits is read from memory, as long as it is not resumed from before.
        if self.events_waiting() >= config.ring_events || self.waiting_bytes() + bytes > config.ring_bytes {
            return Err(full);
        }
        Ok(())
    }

    /// Numbered events that wait for a session.
    pub fn events_waiting(&self) -> usize {
        match self.numbering {
            Numbering::Known { next, .. } => {
                usize::try_from(next.0.saturating_sub(self.settled.0 + 1)).unwrap_or(usize::MAX)
            }
            Numbering::Unknown | Numbering::Asked => 0,
        }
    }

    /// Bytes of numbered events that wait for a session.
    fn waiting_bytes(&self) -> usize {
        self.in_flight_bytes + self.held_bytes
    }

    /// What waits is counted anew from here on.
    fn settle(&mut self, through: Seq) {
        self.settled = through;
        self.held_bytes = self.ring.after(through).map(|entry| entry.held_bytes()).sum();
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
        self.in_flight_bytes += bytes;
        Some(seq)
    }

    /// One numbered event was committed: it takes its place in the ring.
    pub fn publish(&mut self, entry: Arc<Entry>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(entry.bytes());
        if let Numbering::Known { committed, .. } = &mut self.numbering {
            *committed = entry.event.seq;
        }
        if entry.event.seq > self.settled {
            self.held_bytes += entry.held_bytes();
        }
        if let Some(act) = &entry.event.act {
            let buffered = self.cursor.iter().flat_map(Cursor::buffer);
            for covered in self.ring.after(Seq(0)).chain(buffered) {
                if act.covers(&entry.event, &covered.event) {
                    if covered.event.seq > self.settled {
                        self.held_bytes = self.held_bytes.saturating_sub(covered.held_bytes());
                    }
                    covered.delete();
                }
            }
        }
        if entry.event.act.is_some() && self.lease.is_some_and(|lease| !lease.liveness.live) {
            // An act behind the end of a broadcast is not for the next one.
            self.over = self.over.max(entry.event.seq);
            self.moved = true;
        }
        self.ring.push(entry);
        self.pass_over();
        self.let_go();
    }

    /// One numbered event was not committed: its number is taken back (rule 1).
    pub fn take_back(&mut self, bytes: usize, unknown: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
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
            if let Some(paused) = &mut self.paused {
                paused.over = paused.over.min(*committed);
            }
            self.settled = self.settled.min(*committed);
            // A session may have begun behind it, and left.
            self.position = self.position.min(*committed);
            self.legacy_from = self.legacy_from.min(*committed);
            if let Some(cursor) = self.cursor.as_mut().filter(|cursor| cursor.sent > *committed) {
                // It began behind what was on its way and is now taken back; nothing was sent to it yet.
                cursor.begin(*committed);
            }
        }
    }

    /// The last number that was committed, where that is known.
    pub fn committed(&self) -> Option<Seq> {
        match self.numbering {
            Numbering::Known { committed, .. } => Some(committed),
            Numbering::Unknown | Numbering::Asked => None,
        }
    }

    /// The last number that was given, as far as is known.
    pub fn last_numbered(&self) -> Seq {
        match self.numbering {
            Numbering::Known { next, .. } => Seq(next.0 - 1),
            Numbering::Unknown | Numbering::Asked => self.ring.last().unwrap_or_default().max(self.over),
        }
    }

    /// What the room looks like from outside.
    pub fn look(&self, live: bool) -> RoomLook {
        RoomLook {
            live,
            session: self.cursor.is_some(),
            last_seq: self.committed(),
            fanned_out: self.fanned_out,
        }
    }

    /// The checker is another one now: it was asked nothing.
    pub fn checker_started(&mut self) -> bool {
        std::mem::take(&mut self.checking)
    }

    /// Whether the sweep should ask for a verdict, and why. A session, and what is held (rule 13), have one that holds refreshed, so that
    /// no sender waits for the next (rule 8); an open broadcast asks when it has expired. Where nobody is there and the room server
    /// does not say, ever more seldom: when another tenth of the time since it said something has passed. Whoever comes has it
    /// asked at once.
    pub fn wants_verdict(&self, now: Instant, config: &RegistryConfig) -> Option<Why> {
        let in_use = self.cursor.is_some() || self.waiting_bytes() > 0;
        match self.verdict(now) {
            None if self.checking || !(in_use || self.record.is_some()) => None,
            None if self.cursor.is_some() => Some(Why::Wanted),
            None => {
                let due = |refused: Refused| {
                    let tenth = refused.last.saturating_duration_since(refused.since) / 10;
                    now.saturating_duration_since(refused.last) >= tenth
                };
                self.refused.is_none_or(due).then_some(Why::Idle)
            }
            // At the next sweep it may be over.
            Some(verdict) if verdict.live && in_use => self
                .refresh_due(now + config.sweep, config.refresh_percent)
                .then_some(Why::Refresh),
            // Whoever would be refused may as well wait.
            Some(_) => None,
        }
    }

    /// Lets go of what no session took of a broadcast that is over; the log has it (rule 13). What is still on its way
    /// through the writer is let go when it has come back.
    fn let_go(&mut self) {
        if self.cursor.is_none() && self.in_flight == 0 && self.settled < self.over {
            self.ring.forget_through(self.over);
            self.settle(self.over);
        }
    }

    /// Whether nothing would be lost by forgetting this room (rule 10).
    pub fn idle(&self, now: Instant, config: &RegistryConfig) -> bool {
        self.cursor.is_none()
            && !self.held_for(now, config)
            && self.waiting.is_empty()
            && self.acting.is_empty()
            && self.record.is_none()
            && self.looking.is_empty()
            && self.in_flight == 0
            && !self.checking
            && self.waiting_bytes() == 0
            && self.numbering != Numbering::Asked
            && !self.verdict(now).is_some_and(|verdict| verdict.live)
    }
}
