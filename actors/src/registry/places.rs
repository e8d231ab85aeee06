//! How far each room got, saved beside the spool's events so that a restart goes on from there.
//!
//! A place is saved at most once in `session.checkpoint_ms` a room, when it moved, and once more when the room is forgotten
//! or the server stops. It is never on a message's way: losing one costs a session without `resume_after` a repetition.

use super::*;
use crate::seams::Place;

/// Places a transaction, so that commits wait little for one.
const MOST: usize = 64;

impl SessionRegistry {
    /// Saves the places that are due.
    pub(super) fn save_places(&mut self, now: Instant) {
        let now_ms = system_ms();
        let mut places = Vec::new();
        for (presenter, room) in &mut self.rooms {
            if room.idle(now, &self.config) {
                // It is about to be forgotten.
                room.hurry();
            }
            places.extend(room.place(*presenter, &self.config, now, now_ms));
        }
        self.keep(places);
    }

    /// Saves every place that moved: nothing moves any more.
    pub(super) fn save_all_places(&mut self) {
        for room in self.rooms.values_mut() {
            room.hurry();
        }
        self.save_places(Instant::now());
    }

    fn keep(&self, places: Vec<Place>) {
        for chunk in places.chunks(MOST) {
            self.writer.keep_places(chunk.to_vec());
        }
    }
}
