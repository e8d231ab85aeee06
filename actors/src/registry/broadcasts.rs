//! Broadcasts as the registry sees them: opened, interrupted and ended by verdicts, and kept in the spool on every change.
//!
//! A room whose broadcast is open is not forgotten, and the sweep has its verdict renewed without waiting for a sender. None is
//! opened before the spool has told which are open already: after a restart, or a registry that panicked, they go on.

use std::time::Instant;

use super::{
    SessionRegistry,
    from_spool::FromSpool,
    room::{Numbering, Room},
};
use crate::{
    broadcast::{Broadcast, Heard, Watched, end_unknown, follow, take_up},
    clock::{boot_ms, millis, system_ms},
    types::PresenterIdx,
};

/// So often within `broadcast.resume_seconds` it is kept that a broadcast was seen to be live.
const RECORDED: i64 = 10;

/// How much before its time the next record is, at most half of that: those who went live together are not kept together for ever, for
/// which commits would have to wait.
fn ahead(time_ms: i64) -> i64 {
    rand::random_range(0..=time_ms.max(0) / 2)
}

impl SessionRegistry {
    /// Asks which broadcasts are open, until that is told.
    pub(super) fn ask_broadcasts(&mut self) {
        if self.broadcasts.ask() {
            self.writer.ask_broadcasts();
        }
    }

    /// The spool told which broadcasts are open.
    pub(super) fn broadcasts(&mut self, open: Result<Vec<Broadcast>, ()>, now: Instant) {
        let Ok(open) = open else {
            return self.broadcasts.failed();
        };
        self.broadcasts = FromSpool::Told(());
        let ended = self.take_up(open);
        let newer = std::mem::take(&mut self.newer);
        self.overtaken(newer);
        let rooms: Vec<PresenterIdx> = self.rooms.keys().copied().collect();
        self.keep_and_follow(ended, rooms, now);
    }

    /// The store had these open and the spool did not know them: it is younger than they are, or was damaged, or they
    /// were another server's.
    pub(super) fn adopted(&mut self, open: Vec<Broadcast>, now: Instant) {
        // Else the spool is still to tell which are open, these among them.
        if !self.broadcasts.is_told() {
            return;
        }
        let rooms = open.iter().map(|broadcast| broadcast.presenter).collect();
        let before = open.iter().filter_map(|broadcast| {
            let room = self.rooms.get(&broadcast.presenter)?;
            Some((broadcast.presenter, room.broadcast.clone()?))
        });
        let before: Vec<_> = before.collect();
        let ended = self.take_up(open);
        self.give_up_hold(&before, now);
        self.keep_and_follow(ended, rooms, now);
    }

    /// The store had these open in newer versions than the spool: another server went on with them while this one was
    /// away.
    pub(super) fn overtaken(&mut self, newer: Vec<Broadcast>) {
        if !self.broadcasts.is_told() {
            self.newer = newer;
            return;
        }
        let mut changed = Vec::new();
        for theirs in newer {
            let room = self.rooms.get_mut(&theirs.presenter);
            // Of one that has ended here meanwhile the spool forgets what it has, and then it is taken up from the
            // store.
            if let Some(ours) = room.and_then(|room| room.broadcast.as_mut())
                && ours.id == theirs.id
                && ours.version <= theirs.version
            {
                ours.go_on_from(theirs, &self.epoch);
                changed.push(ours.clone());
            }
        }
        self.writer.keep_broadcasts(&changed);
    }

    /// Has rooms go on with their broadcasts of before; returns those that have ended.
    fn take_up(&mut self, left: impl IntoIterator<Item = Broadcast>) -> Vec<Broadcast> {
        let mut ended = Vec::new();
        for broadcast in left {
            let room = self.rooms.entry(broadcast.presenter);
            let room = room.or_insert_with(|| Box::new(Room::new(&self.config)));
            let (id, seen_at_ms) = (broadcast.id, broadcast.seen_at_ms);
            let before = room.broadcast.as_ref().map(|one| one.id);
            // What the room is seen to go on with nobody else ends.
            let is_live = room.watched.is_some();
            ended.extend(take_up(&mut room.broadcast, broadcast, is_live));
            if before != Some(id) && room.broadcast.as_ref().is_some_and(|one| one.id == id) {
                room.recorded_ms = seen_at_ms;
            }
        }
        ended
    }

    /// What was held in the broadcasts that rooms had `before` is not for those that they go on with now (rule 13).
    fn give_up_hold(&mut self, before: &[(PresenterIdx, Broadcast)], now: Instant) {
        let mut places = Vec::new();
        for (presenter, before) in before {
            if let Some(room) = self.rooms.get_mut(presenter)
                && room.follow_another(before)
            {
                places.extend(room.place_at_once(*presenter, &self.config, now, system_ms()));
            }
        }
        // Before the records that have ended are, as at any other end.
        self.writer.keep_places(&places);
    }

    fn keep_and_follow(&mut self, mut changed: Vec<Broadcast>, rooms: Vec<PresenterIdx>, now: Instant) {
        changed.extend(rooms.into_iter().flat_map(|presenter| self.follow(presenter, now)));
        self.writer.keep_broadcasts(&changed);
    }

    /// Ends the broadcast of a room that the room server does not know any more; returns what is to be kept. Its numbers must be known:
    /// they are asked for.
    pub(super) fn end_if_unknown(&mut self, presenter: PresenterIdx, now: Instant) -> Option<Broadcast> {
        let room = self.rooms.get_mut(&presenter)?;
        let broadcast = room.broadcast.as_ref()?;
        if !room.is_unknown(now, &self.config) || !self.broadcasts.is_told() {
            return None;
        }
        // Its last word was that the room is not live, and had it gone on to say so this broadcast had ended, whatever is held. So it ends
        // where nobody has come for long, by what its record tells: over restarts, too.
        let unseen_ms = self.clock.now_ms() - broadcast.last_live_ms();
        let whatever_is_held = broadcast.is_away() || unseen_ms >= millis(self.config.broadcast_unknown);
        match room.numbering {
            Numbering::Known { .. } if !whatever_is_held && !room.holds_nothing() => None,
            Numbering::Known { .. } => {
                let last = room.last_numbered();
                let ended = end_unknown(&mut room.broadcast, &self.epoch, last);
                room.follow_end();
                // Before its record is, as at any other end.
                let place = room.place_at_once(presenter, &self.config, now, system_ms());
                self.writer.keep_places(place.as_slice());
                ended
            }
            Numbering::Unknown | Numbering::Asked => {
                room.ask_numbering(&self.writer, presenter);
                None
            }
        }
    }

    /// Has a room's broadcast follow its verdict, as far as that and the numbering are known.
    pub(super) fn follow_broadcast(&mut self, presenter: PresenterIdx, now: Instant) {
        let changed = self.follow(presenter, now);
        self.writer.keep_broadcasts(&changed);
    }

    /// The same; returns what is to be kept.
    pub(super) fn follow(&mut self, presenter: PresenterIdx, now: Instant) -> Vec<Broadcast> {
        let Some(room) = self.rooms.get_mut(&presenter).filter(|_| self.broadcasts.is_told()) else {
            return Vec::new();
        };
        let (Some(liveness), Numbering::Known { committed, .. }) = (room.verdict(now), room.numbering) else {
            return Vec::new();
        };
        if !liveness.live && room.broadcast.is_none() {
            room.give_up_paused();
            return Vec::new();
        }
        // By the clock of the messages: where the system's was set back, no broadcast ends before what was said in it.
        let now_ms = self.clock.now_ms();
        let boot_ms = boot_ms();
        room.watch(now_ms, boot_ms, &self.config);
        let heard = Heard {
            presenter,
            liveness,
            now_ms,
            away_ms: room.standing.away_for(now).map_or(0, millis),
            watched_ms: room.watched.map(|watched| watched.until_ms),
            unseen_ms: room.watched.map(|watched| watched.unseen_ms(boot_ms)),
            epoch: &self.epoch,
            committed,
            last: room.last_numbered(),
            resume_ms: millis(self.config.broadcast_resume),
        };
        let before = room.broadcast.as_ref().map(|broadcast| broadcast.id);
        let mut changed = follow(&mut room.broadcast, &heard, || self.clock.stamp().1);
        let seen = room.broadcast.is_some() && liveness.live;
        room.watched = seen.then(|| Watched::begin(now_ms, boot_ms));
        let lacks = liveness.live && room.go_live(before);
        if !liveness.live && room.broadcast.is_none() {
            room.give_up_paused();
            // Before its record is: a place is that of a broadcast which goes on, or may, as long as there is an open one.
            if let Some(place) = room.place_at_once(presenter, &self.config, now, system_ms()) {
                self.writer.keep_places(&[place]);
            }
        }
        if let Some(broadcast) = room.broadcast.as_mut().filter(|_| changed.is_empty()) {
            // When it was last seen to be live is kept now and then: after a restart it tells how long it was away.
            let age = (now_ms - room.recorded_ms).abs();
            if liveness.live && age >= heard.resume_ms / RECORDED {
                broadcast.version += 1;
                changed.push(broadcast.clone());
            }
        }
        if !changed.is_empty() {
            room.recorded_ms = now_ms - ahead(heard.resume_ms / RECORDED);
        }
        if lacks {
            self.pump(presenter, now);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::ahead;

    #[test]
    fn what_was_kept_together_is_kept_again_at_different_times_and_not_much_sooner() {
        let times: HashSet<_> = (0..1000).map(|_| ahead(30_000)).collect();
        assert!(times.len() > 100, "{times:?}");
        assert!(times.iter().all(|time| (0..=15_000).contains(time)));
        assert_eq!(ahead(0), 0);
    }
}
