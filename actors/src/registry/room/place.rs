//! How far a room got, as it is saved and as a restart goes on from it.

use std::time::{Duration, Instant};

use super::{ALL, Numbering, Paused, Room};
use crate::{
    broadcast::Broadcast,
    clock::millis,
    registry::{
        RegistryConfig,
        cursor::{Cursor, Phase},
    },
    seams::Place,
    types::{Epoch, PresenterIdx, Seq},
};

/// How soon a place is saved again while a session is there and nothing moves.
fn anew(config: &RegistryConfig) -> Duration {
    config.broadcast_resume / 10
}

/// Whether these may be numbers of one broadcast's room, which are not always told.
fn agree(one: Option<i64>, other: Option<i64>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one == other)
}

/// The place of a broadcast of which none was saved yet: its start, behind which all that was sent may have come. `last` is the room's
/// last number. What it had in another numbering alone may have been missed, too.
fn unsaved(record: &Broadcast, epoch: &Epoch, last: Seq) -> Place {
    let began = record.begins_after(epoch);
    Place {
        presenter: record.presenter,
        over: began,
        position: began,
        legacy_from: None,
        room_idx: record.room_idx,
        // What was accepted in it was so for a session.
        session_at_ms: (began < last).then_some(record.seen_at_ms),
        saved_at_ms: record.seen_at_ms,
    }
}

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
        if std::mem::replace(&mut self.restored, true) {
            return self.outcome_known(last);
        }
        self.saving.exact_on_disk = place.is_some_and(|place| place.legacy_from.is_some());
        let further = place.is_some_and(|place| {
            let all = [Some(place.position), place.legacy_from, Some(place.over)];
            all.into_iter().flatten().any(|there| there > last)
        });
        if further {
            // It was saved by who numbered events that never came to the disk.
            self.saving.moves();
        }
        let age = |at_ms: i64| Duration::from_millis(u64::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(0));
        let fresh = |place: &Place| age(place.saved_at_ms) < config.broadcast_resume;
        // A broadcast is kept at once, and its place some time later: what is on disk may be that of the one before, or nothing.
        let open = self.broadcast.as_ref();
        let record = open.filter(|record| agree(self.room_idx, record.room_idx));
        let room_idx = self.room_idx.or(record.and_then(|record| record.room_idx));
        let saved = place
            .filter(|place| agree(room_idx, place.room_idx))
            .filter(|place| fresh(place) || open.is_some());
        if saved.is_none() && record.is_some() {
            self.saving.moves();
        }
        match saved.or_else(|| record.map(|record| unsaved(record, epoch, last))) {
            None => (self.position, self.legacy_from, self.over) = (last, last, last),
            Some(place) => {
                self.position = place.position.min(last);
                self.legacy_from = place.legacy_from.map_or(last, |from| from.min(last));
                // A verdict that was heard first may have ended a broadcast without knowing its numbers.
                let ended = self.over == ALL;
                // Where nothing names them the place may be that of the broadcast before it, too.
                let began = open
                    .map_or(Seq(0), |open| open.begins_after(epoch))
                    .max(place.over)
                    .min(last);
                self.room_idx = room_idx.or(place.room_idx);
                // A restart is short: whoever was there before it is held for as if nothing had been.
                // Where a session was there it may have been until the next save was due, which a server that was killed did not do.
                let late = anew(config) + config.checkpoint * 2;
                let late_ms = place.saved_at_ms.saturating_add(millis(late));
                let was_there = place.session_at_ms == Some(place.saved_at_ms);
                let session_ended = place
                    .session_at_ms
                    .map(|at_ms| if was_there { late_ms.min(now_ms) } else { at_ms })
                    .and_then(|at_ms| now.checked_sub(age(at_ms)));
                if ended || !fresh(&place) || open.is_some_and(Broadcast::is_away) {
                    // Whether its broadcast goes on is still to be heard: until then it is taken for over.
                    self.over = last;
                    if ended || open.is_some() {
                        self.paused = Some(Paused {
                            over: began,
                            session_ended: self.session_ended.or(session_ended),
                        });
                    }
                } else {
                    self.over = began;
                    self.session_ended = self.session_ended.or(session_ended);
                }
                if place.legacy_from.is_none() && self.paused.is_none() {
                    // From now on it is known: the next start must not take what is held behind it for what may have been sent. Where
                    // it is still to be heard whether its broadcast goes on, it moves with that word.
                    self.saving.moves();
                }
            }
        }
        self.settle(self.legacy_from.max(self.over));
        further
    }

    /// What a commit of unknown outcome wrote is known now: `last` is the last of it, if it wrote anything. Returns whether what is on
    /// disk may be further than the room is.
    fn outcome_known(&mut self, last: Seq) -> bool {
        let mut further = false;
        let overs = std::iter::once(&mut self.over).chain(self.paused.as_mut().map(|paused| &mut paused.over));
        for over in overs.filter(|over| **over > last) {
            (*over, further) = (last, true);
        }
        if further {
            self.saving.moves();
        }
        if self.ring.last() != Some(last) {
            // There may be acts among it, and what they delete is marked only in the log: from now on that is read there.
            self.ring.forget_through(last);
            if let Some(cursor) = &mut self.cursor {
                cursor.read_anew();
            }
        }
        self.settle(self.settled.min(last));
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
        // A place tells when there was last a session, so it is saved anew while there is one.
        let anew = self.cursor.as_ref().map(|_| anew(config));
        if !self.restored || !self.saving.due(now, config.checkpoint, anew) {
            return None;
        }
        let place = self.place_now(presenter, now, now_ms);
        // Rooms that moved together are not saved together for ever: commits wait for it.
        let at = now + config.checkpoint.mul_f64(rand::random::<f64>() / 2.0);
        self.saving.saves(place.legacy_from.is_some(), at);
        Some(place)
    }

    /// The spool remembers that the place it has is not exact any more, or it does not.
    pub fn marked(&mut self, kept: bool) {
        self.saving.marked(kept);
    }

    /// How far the room got. While its broadcast may yet go on this is as if it did: the broadcast's record tells that it is away.
    pub fn place_now(&self, presenter: PresenterIdx, now: Instant, now_ms: i64) -> Place {
        let acked = self
            .cursor
            .as_ref()
            .filter(|cursor| cursor.phase == Phase::Live && cursor.reading.is_v1())
            .map_or(Seq(0), Cursor::position);
        let ended_ms = |ended: Instant| {
            let ago = millis(now.saturating_duration_since(ended));
            // Before now, which is what is told of a session that is there.
            now_ms.saturating_sub(ago.max(1))
        };
        let (over, ended) = match self.paused {
            Some(paused) => (paused.over, self.session_ended.or(paused.session_ended)),
            None => (self.over, self.session_ended),
        };
        Place {
            presenter,
            over,
            position: self.position.max(acked),
            legacy_from: self.cursor.is_none().then_some(self.legacy_from),
            room_idx: self.room_idx,
            session_at_ms: match self.cursor {
                Some(_) => Some(now_ms),
                None => ended.map(ended_ms),
            },
            saved_at_ms: now_ms,
        }
    }

    /// Where the next registry goes on, now that this one has failed; `None` where its place was not read yet, so that the
    /// one on disk holds. What was queued to a legacy session it takes yet, or loses, and everything behind that waits for
    /// the next one. A v1 session's reading has ended. Also where nothing moved since it was saved: nobody was told that this
    /// came to the disk, and a place that is old is taken for that of a broadcast that is over.
    pub fn place_left(&self, presenter: PresenterIdx, now: Instant, now_ms: i64) -> Option<Place> {
        let place = self.restored.then(|| self.place_now(presenter, now, now_ms))?;
        let reads = |cursor: &&Cursor| cursor.phase == Phase::Live && !cursor.reading.is_v1();
        // As where a session is detached.
        let queued = self.cursor.as_ref().filter(reads).and_then(|cursor| match self.paused {
            Some(_) => cursor.gave(),
            None => Some(cursor.sent),
        });
        let position = place.position.max(queued.unwrap_or_default());
        Some(Place {
            position,
            legacy_from: Some(position.max(self.legacy_from)),
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
        self.saving.hurry();
        self.place(presenter, config, now, now_ms)
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
    pub(super) fn pass_over(&mut self) {
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
            if self.settled < through {
                // It takes no place of what is held (rule 12).
                self.settle(through);
            }
            self.saving.moves();
        }
    }
}
