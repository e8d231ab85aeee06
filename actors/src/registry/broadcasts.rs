//! Broadcasts as the registry sees them: opened, interrupted and ended by verdicts, and kept in the spool on every change.
//!
//! A room whose broadcast is open is not forgotten, and the sweep has its verdict renewed without waiting for a sender. None is
//! opened before the spool has told which are open already: after a restart, or a registry that panicked, they go on.

use super::*;
use crate::broadcast::{Broadcast, Heard, follow};

impl SessionRegistry {
    /// Asks which broadcasts are open, until that is told.
    pub(super) fn ask_broadcasts(&mut self) {
        if !self.broadcasts_known && !self.broadcasts_asked {
            self.broadcasts_asked = true;
            self.writer.ask_broadcasts();
        }
    }

    /// The spool told which broadcasts are open.
    pub(super) fn broadcasts(&mut self, open: Result<Vec<Broadcast>, ()>, now: Instant) {
        self.broadcasts_asked = false;
        let Ok(open) = open else {
            return;
        };
        self.broadcasts_known = true;
        for record in open {
            let room = self.rooms.entry(record.presenter);
            let room = room.or_insert_with(|| Room::new(&self.config));
            room.recorded_ms = record.seen_at_ms;
            room.record.get_or_insert(record);
        }
        let rooms: Vec<PresenterIdx> = self.rooms.keys().copied().collect();
        for presenter in rooms {
            self.follow_broadcast(presenter, now);
        }
    }

    /// Has a room's broadcast follow its verdict, as far as that and the numbering are known.
    pub(super) fn follow_broadcast(&mut self, presenter: PresenterIdx, now: Instant) {
        let Some(room) = self.rooms.get_mut(&presenter).filter(|_| self.broadcasts_known) else {
            return;
        };
        let (Some(liveness), Numbering::Known { committed, .. }) = (room.verdict(now), room.numbering) else {
            return;
        };
        if !liveness.live && room.record.is_none() {
            return;
        }
        let now_ms = system_ms();
        let heard = Heard {
            presenter,
            liveness,
            now_ms,
            epoch: &self.epoch,
            committed,
            last: room.last_numbered(),
            resume_ms: i64::try_from(self.config.broadcast_resume.as_millis()).unwrap_or(i64::MAX),
        };
        let mut changed = follow(&mut room.record, &heard, || self.clock.stamp().1);
        if let Some(record) = room.record.as_mut().filter(|_| changed.is_empty()) {
            // When it was last seen to be live is kept now and then: after a restart it tells how long it was away.
            let age = now_ms - room.recorded_ms;
            if liveness.live && age >= heard.resume_ms / 10 {
                record.version += 1;
                changed.push(record.clone());
            }
        }
        if !changed.is_empty() {
            room.recorded_ms = now_ms;
            self.writer.keep_broadcasts(changed);
        }
    }
}
