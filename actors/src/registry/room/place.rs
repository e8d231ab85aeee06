//! The place of a room: how far it got ([`super::reached`]), with what the ring and the session know of that.

use std::time::Instant;

use super::{Numbering, Room, reached::Restart};
use crate::{
    registry::{
        RegistryConfig,
        cursor::{Cursor, Phase},
    },
    seams::Place,
    types::{Epoch, PresenterIdx, Seq},
};

impl Room {
    /// The writer told what the room's last number is, and how far the room had got when that was last saved; `now_ms` is
    /// milliseconds since 1970. Returns whether its place must be on disk before anything more of it is.
    #[must_use]
    pub fn numbering_known(
        &mut self,
        last: Seq,
        place: Option<Place>,
        epoch: &Epoch,
        config: &RegistryConfig,
        now: Instant,
        now_ms: i64,
    ) -> bool {
        if self.numbering != Numbering::Asked {
            return false;
        }
        self.numbering = Numbering::Known {
            committed: last,
            next: last.next(),
        };
        if self.reached.is_restored() {
            return self.outcome_known(last);
        }
        let restart = Restart {
            last,
            epoch,
            config,
            now,
            now_ms,
        };
        let further = self.reached.restore(&restart, place, self.broadcast.as_ref());
        self.settle(self.reached.legacy_begins());
        further
    }

    /// What a commit of unknown outcome wrote is known now: `last` is the last of it, if it wrote anything. Returns whether what is on
    /// disk may be further than the room is.
    fn outcome_known(&mut self, last: Seq) -> bool {
        let further = self.reached.outcome_known(last);
        if self.ring.last() != Some(last) {
            // There may be acts among it, and what they delete is marked only in the log: from now on that is read there.
            self.ring.forget_through(last);
            if let Some(cursor) = &mut self.cursor {
                cursor.read_anew();
            }
        }
        self.settle(self.load.settled().min(last));
        further
    }

    /// What is to be saved of it, if anything is.
    pub fn place(
        &mut self,
        presenter: PresenterIdx,
        config: &RegistryConfig,
        now: Instant,
        now_ms: i64,
    ) -> Option<Place> {
        if !self.reached.is_due(self.cursor.is_some(), config, now) {
            return None;
        }
        let place = self.place_now(presenter, now, now_ms);
        // Rooms that moved together are not saved together for ever: commits wait for it.
        let at = now + config.checkpoint.mul_f64(rand::random::<f64>() / 2.0);
        self.reached.saves(&place, at);
        Some(place)
    }

    /// The spool remembers that the place it has is not exact any more, or it does not.
    pub fn marked(&mut self, kept: bool) {
        self.reached.marked(kept);
    }

    /// How far the room got.
    pub fn place_now(&self, presenter: PresenterIdx, now: Instant, now_ms: i64) -> Place {
        let acked = |cursor: &Cursor| match cursor.phase == Phase::Live && cursor.reading.is_v1() {
            true => cursor.position(),
            false => Seq(0),
        };
        self.reached
            .place(presenter, self.cursor.as_ref().map(acked), now, now_ms)
    }

    /// Where the next registry goes on, now that this one has failed; `None` where its place was not read yet, so that the
    /// one on disk holds. What was queued to a legacy session it takes yet, or loses, and everything behind that waits for
    /// the next one. A v1 session's reading has ended. Also where nothing moved since it was saved: nobody was told that this
    /// came to the disk, and a place that is old is taken for that of a broadcast that is over.
    pub fn place_left(&self, presenter: PresenterIdx, now: Instant, now_ms: i64) -> Option<Place> {
        let place = self
            .reached
            .is_restored()
            .then(|| self.place_now(presenter, now, now_ms))?;
        let reads = |cursor: &&Cursor| cursor.phase == Phase::Live && !cursor.reading.is_v1();
        // As where a session is detached.
        let queued = self
            .cursor
            .as_ref()
            .filter(reads)
            .and_then(|cursor| match self.reached.is_paused() {
                true => cursor.gave(),
                false => Some(cursor.sent),
            });
        let position = place.position.max(queued.unwrap_or_default());
        Some(Place {
            position,
            legacy_from: Some(position.max(self.reached.taken())),
            ..place
        })
    }

    /// As [`Self::place`], now, whenever it was saved last.
    pub fn place_at_once(
        &mut self,
        presenter: PresenterIdx,
        config: &RegistryConfig,
        now: Instant,
        now_ms: i64,
    ) -> Option<Place> {
        self.reached.hurry();
        self.place(presenter, config, now, now_ms)
    }

    /// Whether nothing that was accepted waits for a session of this broadcast, be it in memory or, behind a restart, in the log.
    pub fn holds_nothing(&self) -> bool {
        self.reached.is_restored()
            && self.load.waiting_bytes() == 0
            && self.held_for_nobody(self.reached.got()) >= self.last_numbered()
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
    pub(super) fn pass_over(&mut self) {
        if self.cursor.is_some() || !self.reached.passes_acts() {
            return;
        }
        let got = self.reached.got();
        let through = self.held_for_nobody(got);
        if got < through {
            self.reached.pass(through);
            if self.load.settled() < through {
                // It takes no place of what is held (rule 12).
                self.settle(through);
            }
        }
    }
}
