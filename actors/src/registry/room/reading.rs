//! A room and the session that reads it: beginning, going on, ending (rules 11 to 16).

use std::{sync::Arc, time::Instant};

use super::Room;
use crate::{
    registry::{
        RegistryConfig,
        cursor::{Cursor, Paged, Phase},
        messages::SessionId,
        subscriber::{Reading, Subscriber},
    },
    ring::Entry,
    seams::LogPage,
    session::Flow,
    types::{Epoch, Seq},
    wire::v1::Gap,
};

/// What came of a session's wish to begin.
pub(in crate::registry) enum Opened {
    /// Something has to be known first: the numbering, a commit that is under way, that its mark is on disk.
    NotYet,
    /// The verdict has to be, whether the broadcast of before a restart goes on.
    Unheard,
    /// It asks for what cannot be; why, in English.
    Refused(&'static str),
    /// The place on disk is one that a legacy session may go on from. From now on it is not, and that must be on disk before
    /// anything is sent: a frame is never doubled there (rule 11).
    Mark,
    /// It reads, or seeks what it wants in the log.
    Begun,
}

impl Room {
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
        let mut cursor = Cursor::new(session, subscriber, flow, reading, now);
        if let Some(same) = old.as_ref().filter(|old| old.session == session) {
            cursor.came = same.came;
        }
        self.cursor = Some(cursor);
        old
    }

    /// Finds the attached session's place, once the numbering is known (rule 16).
    pub fn open(&mut self, epoch: &Epoch, config: &RegistryConfig, now: Instant) -> Opened {
        let (Some(cursor), Some(committed)) = (&self.cursor, self.committed()) else {
            return Opened::NotYet;
        };
        if cursor.phase != Phase::Opening {
            return Opened::NotYet;
        }
        if let Some(why) = self.refuses(&cursor.reading, epoch) {
            return Opened::Refused(why);
        }
        if self.is_unheard(now) {
            return Opened::Unheard;
        }
        if cursor.reading == Reading::Legacy && self.reached.is_exact_on_disk() {
            return if self.reached.mark() {
                Opened::Mark
            } else {
                Opened::NotYet
            };
        }
        let (over, began) = (self.reached.over(), self.reached.began());
        let (wanted, over) = match &cursor.reading {
            Reading::Legacy => (self.reached.legacy_begins(), over),
            Reading::V1(resume) => {
                let ours = resume.epoch.as_deref().is_none_or(|asked| asked == &*epoch.0);
                match resume.after.filter(|_| ours) {
                    Some(Seq(0)) => (began, over),
                    Some(after) => (after, Seq(0)),
                    None => (self.reached.position().max(began), over),
                }
            }
        };
        if cursor.reading.is_v1() && wanted.max(over) > committed {
            // It begins behind what is on its way and may yet be taken back (rule 1): no `welcome` can be told now.
            return Opened::NotYet;
        }
        let from = match cursor.reading {
            // It has no word for a gap, and what is held for it is bounded by the ring.
            Reading::Legacy => Seq(0),
            Reading::V1(_) => Seq(committed.0.saturating_sub(config.resume_max)),
        };
        let start = wanted.max(over).max(from);
        let in_memory = start >= committed || self.ring.has(start.next());
        if let Some(cursor) = &mut self.cursor {
            cursor.wanted = wanted;
            cursor.begin(start);
            cursor.phase = match cursor.reading {
                Reading::V1(_) if !in_memory => Phase::Seeking,
                _ => Phase::Live,
            };
        }
        self.reached.session_begins();
        // What was committed before it came is in the log, however long it takes to read it.
        self.settle(self.load.settled().max(committed).max(start));
        Opened::Begun
    }

    /// Ends the reading of the attached session, and remembers how far it got.
    pub fn detach(&mut self, now: Instant) -> Option<Cursor> {
        self.leave(Some(now))
    }

    /// Lets go of a session that was [refused](Opened::Refused): it never was one of this broadcast, and nothing is held for it (rule 12).
    pub fn turn_away(&mut self) -> Option<Cursor> {
        self.leave(self.reached.session_ended())
    }

    /// `ended` is when the last session of this broadcast ended, without the attached one.
    fn leave(&mut self, ended: Option<Instant>) -> Option<Cursor> {
        let cursor = self.cursor.take()?;
        self.standing.forget_refusals();
        let taken = cursor.flow.end();
        let got = (cursor.phase == Phase::Live).then(|| match &cursor.reading {
            // It began behind what a broadcast that goes on still has for the next one.
            Reading::Legacy if self.reached.is_paused() => taken.unwrap_or_default(),
            Reading::Legacy => taken.unwrap_or(cursor.start),
            Reading::V1(_) => cursor.position(),
        });
        self.reached
            .session_ends(ended, got.map(|got| (got, cursor.reading.is_v1())));
        self.pass_over();
        // What was sent and not taken waits again.
        self.settle(self.reached.taken());
        self.let_go();
        Some(cursor)
    }

    /// Sends what the ring, and the page of the log that is here, have and credit allows. Returns how many events were sent.
    pub fn pump(&mut self, config: &RegistryConfig, now: Instant) -> usize {
        let Some(cursor) = self.cursor.as_mut().filter(|cursor| cursor.phase == Phase::Live) else {
            return 0;
        };
        cursor.look(now);
        cursor.rest(now);
        let mut entries = Vec::new();
        while self.collect(&mut entries, config) && self.cursor.as_mut().is_some_and(|cursor| cursor.wait(now)) {}
        let count = entries.len();
        if let Some(cursor) = &self.cursor {
            cursor.deliver(entries);
        }
        count
    }

    /// Takes what may be sent. Returns whether credit is what more has to wait for, of what is here or of what the log has.
    fn collect(&mut self, entries: &mut Vec<Arc<Entry>>, config: &RegistryConfig) -> bool {
        let committed = self.committed().unwrap_or_default();
        let Some(cursor) = &mut self.cursor else {
            return false;
        };
        while let Some(entry) = cursor.buffered() {
            let passed = cursor.pass(&entry);
            if !passed && !cursor.spend(&entry, config) {
                return true;
            }
            cursor.unbuffer();
            self.load.take(&entry);
            if !passed {
                entries.push(entry);
            }
        }
        for entry in self.ring.after(cursor.sent) {
            // Where the ring begins later, or has a hole, the log has what is between.
            if entry.event.seq != cursor.sent.next() {
                break;
            }
            let passed = cursor.pass(entry);
            if !passed && !cursor.spend(entry, config) {
                return true;
            }
            self.load.take(entry);
            if !passed {
                entries.push(Arc::clone(entry));
            }
        }
        cursor.sent < committed && cursor.credit(config) == 0
    }

    /// Whether a page of the log is to be asked for now.
    pub fn wants_page(&self, config: &RegistryConfig) -> bool {
        self.cursor.as_ref().is_some_and(Cursor::may_ask) && self.page_range(config).is_some()
    }

    /// What a page of the log is to have for the attached session: the events after the first of these, up to the second. `None` where
    /// it waits for nothing that only the log has, or could not take it now.
    pub fn page_range(&self, config: &RegistryConfig) -> Option<(Seq, Seq)> {
        let (cursor, committed) = (self.cursor.as_ref()?, self.committed()?);
        let sent = cursor.sent;
        let behind = sent < committed && cursor.credit(config) > 0 && !self.ring.has(sent.next());
        if !behind || cursor.buffered().is_some() || cursor.phase == Phase::Opening {
            return None;
        }
        let here = self.ring.after(sent).next().map(|entry| entry.event.seq);
        Some((sent, here.map_or(committed, |here| Seq(here.0 - 1))))
    }

    /// Lets go of a page that has come while what is committed is not known: it is asked for again when that is. Returns whether it
    /// did.
    pub fn discard_page_if_unnumbered(&mut self) -> bool {
        let unnumbered = self.committed().is_none();
        if let Some(cursor) = self.cursor.as_mut().filter(|_| unnumbered) {
            cursor.discard_page();
        }
        unnumbered
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
        if cursor.discard_page_if_stale(after) {
            return None;
        }
        match cursor.take_page(through, page, now, config) {
            Paged::OnIt => {
                cursor.phase = Phase::Live;
                // What was deleted while it was read; all else the page knows.
                let acts = self
                    .ring
                    .after(Seq(0))
                    .filter_map(|entry| Some((entry.event.act.as_ref()?, entry)));
                for (act, by) in acts {
                    let covered = cursor.buffer().filter(|entry| act.covers(&by.event, &entry.event));
                    covered.for_each(|entry| entry.delete());
                }
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
        let Some(cursor) = &mut self.cursor else {
            return true;
        };
        let moves = cursor.acknowledge(seq, now);
        cursor.fanned_out = fanned_out.or(cursor.fanned_out);
        if moves == Some(true) {
            self.reached.acked();
        }
        moves.is_some()
    }

    /// Whether this session is the room's.
    pub fn is_read_by(&self, session: SessionId) -> bool {
        self.cursor.as_ref().is_some_and(|cursor| cursor.session == session)
    }

    /// Whether this reading is the attached session's. One socket may have several, one after another.
    pub fn is_read_through(&self, flow: &Arc<Flow>) -> bool {
        self.cursor
            .as_ref()
            .is_some_and(|cursor| Arc::ptr_eq(&cursor.flow, flow))
    }

    /// Whether the event that was just published was sent to a session (rule 11), and not passed over: what deletes it may have been
    /// in the same commit.
    pub fn was_sent(&self, seq: Seq) -> bool {
        let Some(cursor) = self.cursor.as_ref().filter(|cursor| cursor.phase == Phase::Live) else {
            return false;
        };
        let here = self.ring.after(Seq(seq.0 - 1)).next();
        let passed = here.is_some_and(|entry| entry.event.seq == seq && cursor.passes(entry));
        cursor.start < seq && seq <= cursor.sent && !passed
    }

    /// Whether its session waits for something before it can begin.
    pub fn opening(&self) -> bool {
        self.cursor
            .as_ref()
            .is_some_and(|cursor| cursor.phase == Phase::Opening)
    }
}
