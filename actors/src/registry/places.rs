//! How far each room got, saved beside the spool's events so that a restart goes on from there.
//!
//! A place is saved at most once in `session.checkpoint_ms` a room, when it moved, and once more when the room is forgotten
//! or the server stops. It is never on a message's way: losing one costs a session without `resume_after` a repetition.

use super::*;

impl SessionRegistry {
    /// Saves every place that moved: nothing moves any more.
    pub(super) fn save_all_places(&mut self) {
        let (now, now_ms) = (Instant::now(), system_ms());
        let mut places = Vec::new();
        for (presenter, room) in &mut self.rooms {
            places.extend(room.place_at_once(*presenter, &self.config, now, now_ms));
        }
        self.writer.keep_places(&places);
    }
}
