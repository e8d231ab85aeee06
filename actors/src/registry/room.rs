//! One room: its lease, its numbering, its ring and the cursor that reads it. No actor, no clock of its own.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    RegistryConfig,
    cursor::{Cursor, Paged, Phase},
    messages::{Looking, RoomLook, SessionId, Waiting},
    subscriber::{Reading, Subscriber},
};
use crate::{
    outcome::Refusal,
    ring::{Entry, Ring},
    seams::{Liveness, LogPage, Place},
    session::Flow,
    types::{Epoch, PresenterIdx, Seq},
    wire::v1::Gap,
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

/// What came of a session's wish to begin.
pub(super) enum Opened {
    /// The numbering is not known yet.
    NotYet,
    /// It asks for what cannot be; why, in English.
    Refused(&'static str),
    /// The place on disk is one that a legacy session may go on from. From now on it is not, and that must be on disk before
    /// anything is sent: a frame is never doubled there (rule 11).
    Mark,
    /// It reads, or seeks what it wants in the log.
    Begun,
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
    /// Everything up to here waits for nobody: it was sent, or the log has it for whoever comes.
    settled: Seq,
    /// Bytes of committed events that wait.
    held_bytes: usize,
    /// When the last session of this broadcast ended, while none has come since (rule 12).
    session_ended: Option<Instant>,
    /// When the room server was last asked to make the presenter reconnect.
    reconnect_asked: Option<Instant>,
    /// Since when the room has not been live while it has a session.
    not_live_since: Option<Instant>,
    /// The room server's own number of the broadcast's room, as far as it was ever named.
    broadcast: Option<i64>,
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
}

impl Room {
    pub fn new(config: &RegistryConfig) -> Self {
        Self {
            lease: None,
            checking: false,
            numbering: Numbering::Unknown,
            waiting: VecDeque::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            ring: Ring::new(config.ring_events, config.ring_bytes),
            cursor: None,
            looking: Vec::new(),
            position: Seq(0),
            legacy_from: Seq(0),
            over: Seq(0),
            settled: Seq(0),
            held_bytes: 0,
            session_ended: None,
            reconnect_asked: None,
            not_live_since: None,
            broadcast: None,
            restored: false,
            moved: false,
            saved_at: None,
            exact_on_disk: false,
            marking: false,
            exact_behind_mark: false,
            fanned_out: None,
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
        let another = self
            .broadcast
            .zip(liveness.room_idx)
            .is_some_and(|(before, after)| before != after);
        let begins = self.lease.is_some_and(|lease| !lease.liveness.live);
        if liveness.room_idx.is_some() && liveness.room_idx != self.broadcast {
            self.broadcast = liveness.room_idx;
            self.moved = true;
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
        self.not_live_since = match (liveness.live, self.not_live_since) {
            (true, _) => None,
            (false, since) => since.or(Some(now)),
        };
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

    /// How long the room has been known not to be live.
    pub fn not_live_for(&self, now: Instant) -> Option<Duration> {
        self.not_live_since.map(|since| now.saturating_duration_since(since))
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
        let waiting = match self.numbering {
            Numbering::Known { next, .. } => next.0.saturating_sub(self.settled.0 + 1),
            Numbering::Unknown | Numbering::Asked => 0,
        };
        if waiting >= config.ring_events as u64 || self.waiting_bytes() + bytes > config.ring_bytes {
            return Err(full);
        }
        Ok(())
    }

    /// Bytes of numbered events that wait for a session.
    fn waiting_bytes(&self) -> usize {
        self.in_flight_bytes + self.held_bytes
    }

    /// What waits is counted anew from here on.
    fn settle(&mut self, through: Seq) {
        self.settled = through;
        self.held_bytes = self.ring.after(through).map(|entry| entry.bytes()).sum();
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

    /// The writer told what the room's last number is, and how far the room had got when that was last saved; `now_ms` is
    /// milliseconds since 1970.
    pub fn numbering_known(
        &mut self,
        last: Seq,
        place: Option<Place>,
        config: &RegistryConfig,
        now: Instant,
        now_ms: i64,
    ) {
        if self.numbering != Numbering::Asked {
            return;
        }
        self.numbering = Numbering::Known {
            committed: last,
            next: last.next(),
        };
        if std::mem::replace(&mut self.restored, true) {
            return;
        }
        self.exact_on_disk = place.is_some_and(|place| place.exact);
        let age = |at_ms: i64| Duration::from_millis(u64::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(0));
        let place = place.filter(|place| age(place.saved_at_ms) < config.broadcast_resume);
        let same = place.filter(|place| self.broadcast.zip(place.room_idx).is_none_or(|(now, then)| now == then));
        match same {
            None => (self.position, self.legacy_from, self.over) = (last, last, last),
            Some(place) => {
                self.position = place.position.min(last);
                self.legacy_from = if place.exact { self.position } else { last };
                // A verdict that was heard first may have ended a broadcast without knowing its numbers.
                let ended = self.over == Seq(u64::MAX);
                self.over = place.over.max(self.over).min(last);
                self.broadcast = self.broadcast.or(place.room_idx);
                // A restart is short: whoever was there before it is held for as if nothing had been.
                self.session_ended = place
                    .session_at_ms
                    .and_then(|at_ms| now.checked_sub(age(at_ms)))
                    .filter(|_| self.cursor.is_none() && !ended);
            }
        }
        self.settle(self.legacy_from.max(self.over));
    }

    /// One numbered event was committed: it takes its place in the ring.
    pub fn publish(&mut self, entry: Arc<Entry>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(entry.bytes());
        if let Numbering::Known { committed, .. } = &mut self.numbering {
            *committed = entry.event.seq;
        }
        if entry.event.seq > self.settled {
            self.held_bytes += entry.bytes();
        }
        self.ring.push(entry);
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
    fn last_numbered(&self) -> Seq {
        match self.numbering {
            Numbering::Known { next, .. } => Seq(next.0 - 1),
            Numbering::Unknown | Numbering::Asked => self.ring.last().unwrap_or_default().max(self.over),
        }
    }

    /// Why a session that would read like this cannot be, as far as is known; in English.
    pub fn refuses(&self, reading: &Reading, epoch: &Epoch) -> Option<&'static str> {
        let Reading::V1(resume) = reading else {
            return None;
        };
        let ours = resume.epoch.as_deref().is_none_or(|asked| asked == &*epoch.0);
        let beyond = ours
            && resume
                .after
                .zip(self.committed())
                .is_some_and(|(after, last)| after > last);
        beyond.then_some("resume_after is above last_seq")
    }

    /// Makes a session the room's. Returns the session that it takes over from. [`Self::open`] lets it read.
    pub fn attach(
        &mut self,
        session: SessionId,
        subscriber: Arc<dyn Subscriber>,
        flow: Arc<Flow>,
        reading: Reading,
        now: Instant,
    ) -> Option<Cursor> {
        let old = self.detach(now);
        self.session_ended = None;
        self.fanned_out = None;
        self.cursor = Some(Cursor::new(session, subscriber, flow, reading, now));
        old
    }

    /// Finds the attached session's place, once the numbering is known (rule 16).
    pub fn open(&mut self, epoch: &Epoch, config: &RegistryConfig) -> Opened {
        let (Some(cursor), Some(committed)) = (&self.cursor, self.committed()) else {
            return Opened::NotYet;
        };
        if cursor.phase != Phase::Opening {
            return Opened::NotYet;
        }
        if let Some(why) = self.refuses(&cursor.reading, epoch) {
            return Opened::Refused(why);
        }
        if cursor.reading == Reading::Legacy && self.exact_on_disk {
            return if std::mem::replace(&mut self.marking, true) {
                Opened::NotYet
            } else {
                Opened::Mark
            };
        }
        let wanted = match &cursor.reading {
            Reading::Legacy => self.legacy_from.max(self.over),
            Reading::V1(resume) => {
                let ours = resume.epoch.as_deref().is_none_or(|asked| asked == &*epoch.0);
                match resume.after.filter(|_| ours) {
                    Some(Seq(0)) => self.over,
                    Some(after) => after,
                    None => self.position.max(self.over),
                }
            }
        };
        if cursor.reading.is_v1() && wanted > committed {
            // It begins behind what is on its way and may yet be taken back (rule 1): no `welcome` can be told now.
            return Opened::NotYet;
        }
        let start = wanted.max(Seq(committed.0.saturating_sub(config.resume_max)));
        let in_memory = start >= committed || self.ring.has(start.next());
        if let Some(cursor) = &mut self.cursor {
            cursor.wanted = wanted;
            cursor.begin(start);
            cursor.phase = match cursor.reading {
                Reading::V1(_) if !in_memory => Phase::Seeking,
                _ => Phase::Live,
            };
        }
        // What was committed before it came is in the log, however long it takes to read it.
        self.settle(self.settled.max(committed).max(start));
        self.moved = true;
        Opened::Begun
    }

    /// Ends the reading of the attached session, and remembers how far it got.
    pub fn detach(&mut self, now: Instant) -> Option<Cursor> {
        let cursor = self.cursor.take()?;
        self.session_ended = Some(now);
        let taken = cursor.flow.end();
        if cursor.phase == Phase::Live {
            let got = match cursor.reading {
                Reading::Legacy => taken.unwrap_or(cursor.start),
                Reading::V1(_) => cursor.position(),
            };
            self.position = self.position.max(got);
            // Not back to `position`: a legacy session may have had more than is known to have come.
            self.legacy_from = self.legacy_from.max(self.position);
        }
        // What was sent and not taken waits again.
        self.settle(self.legacy_from.max(self.position));
        self.moved = true;
        self.let_go();
        Some(cursor)
    }

    /// Sends what the ring, and the page of the log that is here, have and credit allows. Returns how many events were sent.
    pub fn pump(&mut self, config: &RegistryConfig, now: Instant) -> usize {
        let Some(cursor) = self.cursor.as_mut().filter(|cursor| cursor.phase == Phase::Live) else {
            return 0;
        };
        cursor.rest(now);
        let mut entries = Vec::new();
        let mut full = false;
        while let Some(entry) = cursor.buffered() {
            if !cursor.spend(&entry, config) {
                full = true;
                break;
            }
            cursor.unbuffer();
            entries.push(entry);
        }
        if !full {
            for entry in self.ring.after(cursor.sent) {
                // Where the ring begins later, or has a hole, the log has what is between.
                if entry.event.seq != cursor.sent.next() || !cursor.spend(entry, config) {
                    break;
                }
                entries.push(Arc::clone(entry));
            }
        }
        for entry in &entries {
            if entry.event.seq > self.settled {
                self.settled = entry.event.seq;
                self.held_bytes = self.held_bytes.saturating_sub(entry.bytes());
            }
        }
        let count = entries.len();
        cursor.deliver(entries);
        count
    }

    /// Which events of the log the attached session waits for: those after the first of these, up to the second.
    pub fn wants_page(&self, config: &RegistryConfig) -> Option<(Seq, Seq)> {
        let (cursor, committed) = (self.cursor.as_ref()?, self.committed()?);
        let sent = cursor.sent;
        let idle = !cursor.page.under_way && !cursor.page.resting && cursor.buffered().is_none();
        let behind = sent < committed && cursor.credit(config) > 0 && !self.ring.has(sent.next());
        if !idle || !behind || cursor.phase == Phase::Opening {
            return None;
        }
        let here = self.ring.after(sent).next().map(|entry| entry.event.seq);
        Some((sent, here.map_or(committed, |here| Seq(here.0 - 1))))
    }

    /// Whether a page that has come is of no use, because what is committed is not known at the moment: it is asked for
    /// again when it is.
    pub fn page_is_void(&mut self) -> bool {
        let void = self.committed().is_none();
        if let Some(cursor) = self.cursor.as_mut().filter(|_| void) {
            cursor.page.under_way = false;
        }
        void
    }

    /// Takes a page of the log for the attached session. `Some` tells how far its log has a hole.
    pub fn take_page(
        &mut self,
        after: Seq,
        through: Seq,
        page: LogPage,
        config: &RegistryConfig,
        now: Instant,
    ) -> Option<Seq> {
        let cursor = self.cursor.as_mut()?;
        if cursor.sent != after {
            // It was set back meanwhile: what was asked for is not what it lacks.
            cursor.page.under_way = false;
            return None;
        }
        match cursor.take_page(through, page, now, config) {
            Paged::OnIt => {
                cursor.phase = Phase::Live;
                None
            }
            Paged::Later => None,
            Paged::Hole(through) => {
                let live = cursor.phase == Phase::Live;
                if !live || !cursor.reading.is_v1() {
                    cursor.skip(through);
                }
                if !live
                    && (through >= self.committed().unwrap_or_default() || self.ring.has(through.next()))
                    && let Some(cursor) = &mut self.cursor
                {
                    cursor.phase = Phase::Live;
                }
                Some(through)
            }
        }
    }

    /// What the attached session is told in `welcome`: the first seq that comes, and what was wanted and does not come.
    pub fn beginning(&self) -> Option<(Seq, Option<Gap>)> {
        let cursor = self.cursor.as_ref()?;
        let gap = (cursor.start > cursor.wanted).then(|| Gap {
            from: cursor.wanted.next(),
            to: cursor.start,
        });
        Some((cursor.start.next(), gap))
    }

    /// The session has everything up to `seq`. `false`: it was never sent so much (rule 14).
    pub fn acknowledge(&mut self, seq: Seq, fanned_out: Option<u64>, now: Instant) -> bool {
        let Some(moves) = self.cursor.as_mut().map(|cursor| cursor.acknowledge(seq, now)) else {
            return true;
        };
        if fanned_out.is_some() {
            self.fanned_out = fanned_out;
        }
        self.moved |= moves == Some(true);
        moves.is_some()
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

    /// Whether this session is the room's.
    pub fn is_read_by(&self, session: SessionId) -> bool {
        self.cursor.as_ref().is_some_and(|cursor| cursor.session == session)
    }

    /// Whether the event was sent to a session (rule 11).
    pub fn was_sent(&self, seq: Seq) -> bool {
        self.cursor
            .as_ref()
            .is_some_and(|cursor| cursor.phase == Phase::Live && cursor.start < seq && seq <= cursor.sent)
    }

    /// The checker is another one now: it was asked nothing.
    pub fn checker_started(&mut self) -> bool {
        std::mem::take(&mut self.checking)
    }

    /// Whether the sweep should ask for a verdict: a session or something held waits for one (rule 13).
    pub fn wants_verdict(&self, now: Instant) -> bool {
        !self.checking && self.verdict(now).is_none() && (self.cursor.is_some() || self.waiting_bytes() > 0)
    }

    /// Lets go of what no session took of a broadcast that is over; the log has it (rule 13). What is still on its way
    /// through the writer is let go when it has come back.
    fn let_go(&mut self) {
        if self.cursor.is_none() && self.in_flight == 0 && self.settled < self.over {
            self.ring.forget_through(self.over);
            self.settle(self.over);
        }
    }

    /// What is to be saved of it, if anything is.
    pub fn place(
        &mut self,
        presenter: PresenterIdx,
        config: &RegistryConfig,
        now: Instant,
        now_ms: i64,
    ) -> Option<Place> {
        let saved = self.saved_at.map(|at| now.saturating_duration_since(at));
        let due = match saved {
            None => self.moved,
            Some(ago) if ago < config.checkpoint => false,
            // A place tells when there was last a session, so it is saved anew while there is one.
            Some(ago) => self.moved || (self.cursor.is_some() && ago >= config.broadcast_resume / 10),
        };
        if !due || !self.restored {
            return None;
        }
        // Rooms that moved together are not saved together for ever: commits wait for it.
        self.saved_at = Some(now + config.checkpoint.mul_f64(rand::random::<f64>() / 2.0));
        self.moved = false;
        let place = self.place_now(presenter, now, now_ms);
        self.exact_on_disk |= place.exact;
        self.exact_behind_mark |= place.exact && self.marking;
        Some(place)
    }

    /// The spool remembers that the place it has is not exact any more, or it does not.
    pub fn marked(&mut self, kept: bool) {
        self.marking = false;
        let behind = std::mem::take(&mut self.exact_behind_mark);
        self.exact_on_disk &= !kept || behind;
    }

    /// Whether its session waits for something before it can begin.
    pub fn opening(&self) -> bool {
        self.cursor
            .as_ref()
            .is_some_and(|cursor| cursor.phase == Phase::Opening)
    }

    /// How far the room got.
    pub fn place_now(&self, presenter: PresenterIdx, now: Instant, now_ms: i64) -> Place {
        let acked = self
            .cursor
            .as_ref()
            .filter(|cursor| cursor.phase == Phase::Live && cursor.reading.is_v1())
            .map_or(Seq(0), Cursor::position);
        let ended_ms = |ended: Instant| {
            let ago = now.saturating_duration_since(ended).as_millis();
            now_ms.saturating_sub(i64::try_from(ago).unwrap_or(i64::MAX))
        };
        Place {
            presenter,
            over: self.over,
            position: self.position.max(acked),
            exact: self.cursor.is_none() && self.position == self.legacy_from,
            room_idx: self.broadcast,
            session_at_ms: match self.cursor {
                Some(_) => Some(now_ms),
                None => self.session_ended.map(ended_ms),
            },
            saved_at_ms: now_ms,
        }
    }

    /// Its place is to be saved now, whenever it was saved last.
    pub fn hurry(&mut self) {
        if self.moved {
            self.saved_at = None;
        }
    }

    /// Whether nothing would be lost by forgetting this room (rule 10).
    pub fn idle(&self, now: Instant, config: &RegistryConfig) -> bool {
        self.cursor.is_none()
            && !self.held_for(now, config)
            && self.waiting.is_empty()
            && self.looking.is_empty()
            && self.in_flight == 0
            && !self.checking
            && self.waiting_bytes() == 0
            && self.numbering != Numbering::Asked
            && !self.verdict(now).is_some_and(|verdict| verdict.live)
    }
}
