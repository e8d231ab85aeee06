//! How far each room got, saved beside the spool's events so that a restart goes on from there.
//!
//! A place is saved at most once in `session.checkpoint_ms` a room, when it moved, and once more when the room is
//! forgotten, the registry fails or the server stops. It is never on a message's way: losing one costs a session
//! without `resume_after` a repetition, and a legacy one what was held for it. A stop keeps the open broadcasts, too.

use std::time::Instant;

use super::SessionRegistry;
use crate::{broadcast::Broadcast, clock::system_ms, types::PresenterIdx};

impl SessionRegistry {
    /// Has it kept when each open broadcast was last seen to be live: if another one has begun when the next server asks, or that stays
    /// away for long, this one ends then, and not before what was said in it last. One that is away ends when it went.
    pub(super) fn keep_open_broadcasts(&mut self, now: Instant) {
        let open = self.rooms.iter().filter(|(_, room)| room.broadcast.is_some());
        let open: Vec<PresenterIdx> = open.map(|(presenter, _)| *presenter).collect();
        let mut kept: Vec<Broadcast> = Vec::new();
        for presenter in open {
            // A verdict that holds is heard once more, as the sweep would have it.
            let changed = self.follow(presenter, now);
            let seen = self.rooms.get_mut(&presenter).and_then(|room| room.broadcast.as_mut());
            if let Some(broadcast) = seen.filter(|broadcast| changed.is_empty() && !broadcast.is_away()) {
                broadcast.version += 1;
                kept.push(broadcast.clone());
            }
            kept.extend(changed);
        }
        self.writer.keep_broadcasts(&kept);
    }

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
