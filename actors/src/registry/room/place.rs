//! How far a room got, as it is saved and as a restart goes on from it.

use super::*;

/// How soon a place is saved again while a session is there and nothing moves.
fn anew(config: &RegistryConfig) -> Duration {
    config.broadcast_resume / 10
}

impl Room {
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
        let same = place.filter(|place| self.broadcast.zip(place.room_idx).is_none_or(|(now, then)| now == then));
        let fresh = |place: &Place| age(place.saved_at_ms) < config.broadcast_resume;
        match same.filter(|place| fresh(place) || self.record.is_some()) {
            None => (self.position, self.legacy_from, self.over) = (last, last, last),
            Some(place) => {
                self.position = place.position.min(last);
                self.legacy_from = if place.exact { self.position } else { last };
                // A verdict that was heard first may have ended a broadcast without knowing its numbers.
                let ended = self.over == Seq(u64::MAX);
                let record = self.record.as_ref();
                // The record is kept at once, and the place may be that of the broadcast before it.
                let began = record.map_or(Seq(0), Broadcast::begins_after).max(place.over).min(last);
                self.broadcast = self.broadcast.or(place.room_idx);
                // A restart is short: whoever was there before it is held for as if nothing had been.
                // Where a session was there it may have been until the next save was due, which a server that was killed did not do.
                let late = anew(config) + config.checkpoint * 2;
                let late_ms = place
                    .saved_at_ms
                    .saturating_add(i64::try_from(late.as_millis()).unwrap_or(i64::MAX));
                let was_there = place.session_at_ms == Some(place.saved_at_ms);
                let session_ended = place
                    .session_at_ms
                    .map(|at_ms| if was_there { late_ms.min(now_ms) } else { at_ms })
                    .and_then(|at_ms| now.checked_sub(age(at_ms)));
                if ended || !fresh(&place) || record.is_some_and(Broadcast::is_away) {
                    // Whether its broadcast goes on is still to be heard: until then it is taken for over.
                    self.over = last;
                    if ended || record.is_some() {
                        self.paused = Some(Paused {
                            over: began,
                            session_ended: self.session_ended.or(session_ended),
                        });
                    }
                } else {
                    self.over = began;
                    self.session_ended = session_ended.filter(|_| self.cursor.is_none());
                }
            }
        }
        self.settle(self.legacy_from.max(self.over));
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
            Some(ago) => self.moved || (self.cursor.is_some() && ago >= anew(config)),
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

    /// How far the room got. While its broadcast may yet go on this is as if it did: the broadcast's record tells that it is away.
    pub fn place_now(&self, presenter: PresenterIdx, now: Instant, now_ms: i64) -> Place {
        let acked = self
            .cursor
            .as_ref()
            .filter(|cursor| cursor.phase == Phase::Live && cursor.reading.is_v1())
            .map_or(Seq(0), Cursor::position);
        let ended_ms = |ended: Instant| {
            let ago = now.saturating_duration_since(ended).as_millis();
            // Before now, which is what is told of a session that is there.
            now_ms.saturating_sub(i64::try_from(ago).unwrap_or(i64::MAX).max(1))
        };
        let (over, ended) = match self.paused {
            Some(paused) => (paused.over, self.session_ended.or(paused.session_ended)),
            None => (self.over, self.session_ended),
        };
        Place {
            presenter,
            over,
            position: self.position.max(acked),
            exact: self.cursor.is_none() && self.position == self.legacy_from,
            room_idx: self.broadcast,
            session_at_ms: match self.cursor {
                Some(_) => Some(now_ms),
                None => ended.map(ended_ms),
            },
            saved_at_ms: now_ms,
        }
    }

    /// As [`Self::place`], now, whenever it was saved last.
    pub fn place_at_once(
        &mut self,
        presenter: PresenterIdx,
        config: &RegistryConfig,
        now: Instant,
        now_ms: i64,
    ) -> Option<Place> {
        if self.moved {
            self.saved_at = None;
        }
        self.place(presenter, config, now, now_ms)
    }
}
