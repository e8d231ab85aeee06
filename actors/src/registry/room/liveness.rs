//! Whether the room is live, and whether its broadcast goes on: what follows from what was heard.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Numbering, Room, reached::Paused, refused::Refused};
use crate::{
    broadcast::Broadcast,
    checker::{CheckerHandle, Why},
    clock::millis,
    registry::{RegistryConfig, subscriber::Reading},
    seams::Liveness,
    types::PresenterIdx,
};

impl Room {
    /// The verdict that counts now.
    pub fn verdict(&self, now: Instant) -> Option<Liveness> {
        self.standing.verdict(now)
    }

    /// Has the room server asked for this reason, or what it is asked already go ahead where that is for one behind it.
    pub fn ask(&mut self, checker: &CheckerHandle, presenter: PresenterIdx, why: Why) {
        self.standing.ask(checker, presenter, why);
    }

    /// Why it is asked for a session, while there is no verdict.
    pub fn why_for_session(&self, now: Instant) -> Why {
        match self.opening() && self.is_unheard(now) {
            true => Why::Opening,
            false => Why::Wanted,
        }
    }

    /// After a restart: whether its broadcast goes on, with what is held, is about to be heard.
    pub fn is_unheard(&self, now: Instant) -> bool {
        self.reached.is_paused() && self.standing.is_untold(now)
    }

    /// Whether whoever asks causes no lookup: there is a verdict, one is under way, or its session needs one.
    pub fn is_asked_about_anyway(&self, now: Instant) -> bool {
        self.verdict(now).is_some() || self.standing.is_asked() || self.cursor.is_some()
    }

    /// Hears a new verdict.
    pub fn renew(&mut self, liveness: Liveness, now: Instant, expires_at: Instant) {
        // As the record has it: a room that is not live may have whatever number.
        let another = liveness.live && self.reached.names(liveness.room_idx, self.broadcast.as_ref());
        let begins = self.standing.last_said_live() == Some(false);
        if !another {
            self.reached.hears(liveness.live);
        }
        if !liveness.live || begins || another {
            // Only a session of this very broadcast is held for.
            self.reached.holds_for_nobody();
        }
        if !liveness.live || another {
            // What was held belongs to the broadcast before: the log has it, the next one does not get it (rule 13).
            self.end_broadcast();
        }
        self.standing.hear_verdict(liveness, now, expires_at);
    }

    /// Whether the room server has not known the room for so long that nothing it had goes on, and nobody is or was just here.
    pub fn is_unknown(&self, now: Instant, config: &RegistryConfig) -> bool {
        let is_over = |refused: Refused| refused.is_over(config.broadcast_resume, now);
        self.cursor.is_none() && !self.held_for(now, config) && self.standing.refused().is_some_and(is_over)
    }

    /// Has the room follow its record, which has ended without a word of the room server's.
    pub fn follow_end(&mut self) {
        self.reached.holds_for_nobody();
        self.give_up_paused();
        self.end_broadcast();
    }

    /// Has the room follow its record where that is of another broadcast than the one that it had `before`, without a
    /// word of the room server's; a record of what that has named the same is of the same. Returns whether there may be something to
    /// save at once.
    #[must_use]
    pub fn follow_another(&mut self, before: &Broadcast) -> bool {
        let other = |record: &&Broadcast| record.id != before.id && !record.is_named_as(before);
        let Some(record) = self.broadcast.as_ref().filter(other) else {
            return false;
        };
        self.reached.is_overtaken();
        if !self.reached.is_restored() {
            return false;
        }
        self.reached.follows(record);
        self.follow_end();
        true
    }

    /// What was accepted so far is of a broadcast that is over.
    fn end_broadcast(&mut self) {
        let last = match self.numbering {
            Numbering::Known { .. } => Some(self.last_numbered()),
            Numbering::Unknown | Numbering::Asked => None,
        };
        self.reached.ends_at(last);
        self.let_go();
    }

    /// Looks at it; `now_ms` is milliseconds since 1970, `boot_ms` the same moment by [`crate::clock::boot_ms`].
    pub fn watch(&mut self, now_ms: i64, boot_ms: i64, config: &RegistryConfig) {
        // Looks are a sweep apart, or a little more; that is no time without one.
        let pause_ms = millis(config.broadcast_resume.max(config.sweep * 3));
        self.watched = self.watched.map(|watched| watched.on(now_ms, boot_ms, pause_ms));
    }

    /// Has the live room follow its record, which tells whether it goes on with the one that it had `before`, if it had one. Returns
    /// whether there is something for its session again.
    #[must_use]
    pub fn go_live(&mut self, before: Option<Uuid>) -> bool {
        let now = self.broadcast.as_ref().map(|broadcast| broadcast.id);
        if let Some(record) = &self.broadcast {
            self.reached.follows(record);
        }
        let paused = self.reached.take_paused();
        if before.is_some() && before != now {
            // What names a broadcast may be its start, and what tells two apart may be time alone.
            self.reached.holds_for_nobody();
            self.end_broadcast();
            return false;
        }
        let goes_on = paused.filter(|_| before.is_some());
        goes_on.is_some_and(|paused| self.go_on(paused))
    }

    /// Lets go of the broadcast that might have gone on: it has ended.
    pub fn give_up_paused(&mut self) {
        let _ = self.reached.take_paused();
    }

    /// Goes on with the broadcast that was away. Returns whether there is something for its session again.
    fn go_on(&mut self, paused: Paused) -> bool {
        self.reached.goes_on(paused, self.cursor.is_some());
        let from = self.reached.legacy_begins();
        match &mut self.cursor {
            // One that came meanwhile and has had nothing yet has what is held before it.
            Some(cursor) if cursor.reading == Reading::Legacy && cursor.is_new() && from < cursor.start => {
                // What it has passed over was looked for behind that.
                cursor.read_anew();
                cursor.begin(from);
                true
            }
            _ => false,
        }
    }

    /// How long the room has been known not to be live, and its session, if it has one, has been there. `None` while nobody can
    /// tell, too: that the room server is away ends no session (rule 9).
    pub fn not_live_for(&self, now: Instant) -> Option<Duration> {
        let since = self.standing.not_live_since()?;
        Some(self.here_for(since, now))
    }

    /// How long the room server has not said whether this room alone is live, and its session, if it has one, has been there. `None` where
    /// it does, does not answer, or names no other meanwhile: one that knows nobody any more is not the session's fault.
    pub fn refused_for(&self, now: Instant) -> Option<Duration> {
        let since = self.standing.refused()?.alone_since()?;
        Some(self.here_for(since, now))
    }

    /// The time since then in which its session, if it has one, has been there.
    fn here_for(&self, since: Instant, now: Instant) -> Duration {
        let since = self.cursor.as_ref().map_or(since, |cursor| since.max(cursor.came));
        now.saturating_duration_since(since)
    }

    /// Whether the sweep should ask for a verdict, and why. A session, and what is held (rule 13), have one that holds refreshed, so that
    /// no sender waits for the next (rule 8); an open broadcast asks when it has expired. Where nobody is there and the room server
    /// does not say, ever more seldom: when another tenth of the time since it said something has passed. Whoever comes has it
    /// asked at once.
    pub fn wants_verdict(&self, now: Instant, config: &RegistryConfig) -> Option<Why> {
        let in_use = self.cursor.is_some() || self.load.waiting_bytes() > 0;
        match self.verdict(now) {
            None if self.standing.is_asked() || !(in_use || self.broadcast.is_some()) => None,
            None if self.cursor.is_some() => Some(self.why_for_session(now)),
            None => self
                .standing
                .refused()
                .is_none_or(|refused| refused.asks_again(now))
                .then_some(Why::Idle),
            // At the next sweep it may be over.
            Some(verdict) if verdict.live && in_use => {
                let why = match self.cursor {
                    Some(_) => Why::Refresh,
                    None => Why::IdleRefresh,
                };
                let due =
                    !self.standing.is_asked() && self.standing.refresh_due(now + config.sweep, config.refresh_percent);
                due.then_some(why)
            }
            // Whoever would be refused may as well wait.
            Some(_) => None,
        }
    }
}
