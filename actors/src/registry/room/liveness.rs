//! Whether the room is live, as far as that was heard, and whether its broadcast goes on.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Lease, Numbering, Room, reached::Paused, refused::Refused};
use crate::{
    checker::{CheckerHandle, Why},
    clock::millis,
    registry::{RegistryConfig, subscriber::Reading},
    seams::Liveness,
    types::PresenterIdx,
};

impl Lease {
    fn valid(&self, now: Instant) -> bool {
        now < self.expires_at
    }

    /// Leases in use are refreshed when so much of their time is over (rule 8); behind an answer that was none, of what was left then.
    fn refresh_due(&self, now: Instant, percent: u32) -> bool {
        let life = self.expires_at.saturating_duration_since(self.asked_at);
        now.saturating_duration_since(self.asked_at) >= life * percent / 100
    }
}

impl Room {
    /// The verdict that counts now.
    pub fn verdict(&self, now: Instant) -> Option<Liveness> {
        self.lease.filter(|lease| lease.valid(now)).map(|lease| lease.liveness)
    }

    /// Whether the room server should be asked although the lease still holds.
    pub fn refresh_due(&self, now: Instant, percent: u32) -> bool {
        self.lease.is_some_and(|lease| lease.refresh_due(now, percent))
    }

    /// Has the room server asked for this reason, or what it is asked already go ahead where that is for one behind it.
    pub fn ask(&mut self, checker: &CheckerHandle, presenter: PresenterIdx, why: Why) {
        match self.checking {
            None => self.checking = checker.check(presenter, why),
            Some(before) if why.rank() < before.rank() => {
                checker.hurry(presenter, why);
                self.checking = Some(why);
            }
            Some(_) => {}
        }
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
        self.reached.is_paused() && !self.told && self.verdict(now).is_none()
    }

    /// Whether whoever asks causes no lookup: there is a verdict, one is under way, or its session needs one.
    pub fn is_asked_about_anyway(&self, now: Instant) -> bool {
        self.verdict(now).is_some() || self.checking.is_some() || self.cursor.is_some()
    }

    /// Hears a new verdict.
    pub fn renew(&mut self, liveness: Liveness, now: Instant, expires_at: Instant) {
        let another = self.reached.names(liveness.room_idx);
        let begins = self.lease.is_some_and(|lease| !lease.liveness.live);
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
        self.lease = Some(Lease {
            liveness,
            asked_at: now,
            expires_at,
        });
        self.hear_answer(now);
        self.refused = None;
        self.not_live_since = match liveness.live {
            true => None,
            false => self.not_live_since.or(Some(now)),
        };
    }

    /// Hears that there is no new verdict; the one before holds. Not every message that comes is to ask for one again.
    pub fn hear_in_vain(&mut self, now: Instant) {
        if let Some(lease) = &mut self.lease {
            lease.asked_at = now;
        }
    }

    /// Hears that the room server answers, whatever: the time without it does not count.
    fn hear_answer(&mut self, now: Instant) {
        if let Some(since) = self.unanswered_since.take() {
            let unanswered = now.saturating_duration_since(since);
            self.not_live_since = self.not_live_since.map(|since| since + unanswered);
        }
    }

    /// Hears that the room server did not say, `at` that time, whether the room is live; no verdict holds. `named_at` is when it last
    /// gave one on any room, `resume` is `broadcast.resume_seconds`.
    pub fn hear_refusal(&mut self, at: Instant, named_at: Option<Instant>, resume: Duration, now: Instant) {
        self.hear_answer(now);
        self.refused = Some(Refused::again(self.refused, at, named_at, resume, now));
    }

    /// Whether the room server has not known the room for so long that nothing it had goes on, and nobody is or was just here.
    pub fn is_unknown(&self, now: Instant, config: &RegistryConfig) -> bool {
        let is_over = |refused: Refused| refused.is_over(config.broadcast_resume, now);
        self.cursor.is_none() && !self.held_for(now, config) && self.refused.is_some_and(is_over)
    }

    /// Has the room follow its record, which has ended without a word of the room server's.
    pub fn give_up(&mut self) {
        self.reached.holds_for_nobody();
        self.give_up_paused();
        self.end_broadcast();
    }

    /// Hears that the room server did not answer; no verdict holds.
    pub fn hear_nothing(&mut self, now: Instant) {
        self.refused = None;
        self.unanswered_since.get_or_insert(now);
    }

    /// Hears that the room server could not be asked in time; no verdict holds. That says nothing of the room: asked about more often for
    /// it, as a room that was never refused, it would take places from others and find none itself.
    pub fn hear_not_asked(&mut self, now: Instant) {
        if let Some(refused) = &mut self.refused {
            refused.is_not_asked(now);
        }
        self.unanswered_since.get_or_insert(now);
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

    /// How long the room has been known not to be live.
    pub fn away_for(&self, now: Instant) -> Option<Duration> {
        self.not_live_since.map(|since| now.saturating_duration_since(since))
    }

    /// How long the room has been known not to be live, and its session, if it has one, has been there. `None` while nobody can
    /// tell, too: that the room server is away ends no session (rule 9).
    pub fn not_live_for(&self, now: Instant) -> Option<Duration> {
        let since = self.not_live_since.filter(|_| self.unanswered_since.is_none())?;
        Some(self.here_for(since, now))
    }

    /// How long the room server has not said whether this room alone is live, and its session, if it has one, has been there. `None` where
    /// it does, does not answer, or names no other meanwhile: one that knows nobody any more is not the session's fault.
    pub fn refused_for(&self, now: Instant) -> Option<Duration> {
        let since = self.refused?.alone_since()?;
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
        let in_use = self.cursor.is_some() || self.waiting_bytes() > 0;
        match self.verdict(now) {
            None if self.checking.is_some() || !(in_use || self.broadcast.is_some()) => None,
            None if self.cursor.is_some() => Some(self.why_for_session(now)),
            None => self
                .refused
                .is_none_or(|refused| refused.asks_again(now))
                .then_some(Why::Idle),
            // At the next sweep it may be over.
            Some(verdict) if verdict.live && in_use => {
                let why = match self.cursor {
                    Some(_) => Why::Refresh,
                    None => Why::IdleRefresh,
                };
                let due = self.checking.is_none() && self.refresh_due(now + config.sweep, config.refresh_percent);
                due.then_some(why)
            }
            // Whoever would be refused may as well wait.
            Some(_) => None,
        }
    }

    /// Hears that the checker is another one now, which was asked nothing. Returns whether the one before was.
    #[must_use]
    pub fn checker_started(&mut self) -> bool {
        self.checking.take().is_some()
    }
}
