//! What the room server says of the room, or does not, and whether it is being asked.

use std::time::{Duration, Instant};

use super::refused::Refused;
use crate::{
    checker::{CheckerHandle, Why},
    seams::Liveness,
    types::PresenterIdx,
};

/// The room's liveness verdict, with its expiry.
#[derive(Clone, Copy, Debug)]
struct Lease {
    liveness: Liveness,
    /// Since when the room has been live, or has not been; the time in which nobody could tell does not count.
    since: Instant,
    /// When it was given, or the question for the next one was answered without one.
    asked_at: Instant,
    expires_at: Instant,
}

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

/// How the room stands with the room server.
#[derive(Debug, Default)]
pub(in crate::registry) struct Standing {
    /// The last verdict, whether or not it still holds.
    lease: Option<Lease>,
    /// Why the question about liveness is asked that is under way.
    checking: Option<Why>,
    /// The checker's word, whatever it was, has come in time since the numbering is known.
    told: bool,
    /// The room server has answered only that it does not say.
    refused: Option<Refused>,
    /// Since when the room server has not answered.
    unanswered_since: Option<Instant>,
}

impl Standing {
    /// The verdict that counts now.
    pub(super) fn verdict(&self, now: Instant) -> Option<Liveness> {
        self.lease.filter(|lease| lease.valid(now)).map(|lease| lease.liveness)
    }

    /// Whether the last verdict was that the room is live, be it that it holds no more; `None` where there was none.
    pub(super) fn last_said_live(&self) -> Option<bool> {
        self.lease.map(|lease| lease.liveness.live)
    }

    /// Whether the room server should be asked although the lease still holds.
    pub fn refresh_due(&self, now: Instant, percent: u32) -> bool {
        self.lease.is_some_and(|lease| lease.refresh_due(now, percent))
    }

    /// Has the room server asked for this reason, or what it is asked already go ahead where that is for one behind it.
    pub(super) fn ask(&mut self, checker: &CheckerHandle, presenter: PresenterIdx, why: Why) {
        match self.checking {
            None => self.checking = checker.check(presenter, why),
            Some(before) if why.rank() < before.rank() => {
                checker.hurry(presenter, why);
                self.checking = Some(why);
            }
            Some(_) => {}
        }
    }

    /// Whether a question is under way.
    pub fn is_asked(&self) -> bool {
        self.checking.is_some()
    }

    /// Hears that the checker is another one now, which was asked nothing. Returns whether the one before was.
    #[must_use]
    pub fn checker_started(&mut self) -> bool {
        self.checking.take().is_some()
    }

    /// The checker has answered, whatever. `counts`: in time, and the numbering is known.
    pub fn answered(&mut self, counts: bool) {
        self.checking = None;
        self.told |= counts;
    }

    /// Whether the checker's first word since the numbering is known is still to come, and no verdict holds meanwhile.
    pub(super) fn is_untold(&self, now: Instant) -> bool {
        !self.told && self.verdict(now).is_none()
    }

    /// Hears a new verdict, which holds `until` then.
    pub(super) fn hear_verdict(&mut self, liveness: Liveness, now: Instant, until: Instant) {
        self.hear_answer(now);
        self.refused = None;
        let same = self.lease.filter(|before| before.liveness.live == liveness.live);
        self.lease = Some(Lease {
            liveness,
            since: same.map_or(now, |before| before.since),
            asked_at: now,
            expires_at: until,
        });
    }

    /// Hears that there is no new verdict; the one before holds. Not every message that comes is to ask for one again.
    pub fn hear_in_vain(&mut self, now: Instant) {
        if let Some(lease) = &mut self.lease {
            lease.asked_at = now;
        }
    }

    /// Hears that the room server answers, whatever: the time without it does not count.
    fn hear_answer(&mut self, now: Instant) {
        if let Some(since) = self.unanswered_since.take()
            && let Some(lease) = &mut self.lease
        {
            lease.since += now.saturating_duration_since(since);
        }
    }

    /// Hears that the room server did not say, `at` that time, whether the room is live; no verdict holds. `named_at` is when it last
    /// gave one on any room, `resume` is `broadcast.resume_seconds`.
    pub fn hear_refusal(&mut self, at: Instant, named_at: Option<Instant>, resume: Duration, now: Instant) {
        self.hear_answer(now);
        self.refused = Some(Refused::again(self.refused, at, named_at, resume, now));
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

    /// Its refusals in a row, if the last answer was one.
    pub(super) fn refused(&self) -> Option<Refused> {
        self.refused
    }

    /// What it did not say until now does not count.
    pub(super) fn forget_refusals(&mut self) {
        self.refused = None;
    }

    fn away_since(&self) -> Option<Instant> {
        self.lease.filter(|lease| !lease.liveness.live).map(|lease| lease.since)
    }

    /// How long the room has been known not to be live.
    pub fn away_for(&self, now: Instant) -> Option<Duration> {
        self.away_since().map(|since| now.saturating_duration_since(since))
    }

    /// Since when the room has been known not to be live; `None` while nobody can tell, too.
    pub(super) fn not_live_since(&self) -> Option<Instant> {
        self.away_since().filter(|_| self.unanswered_since.is_none())
    }
}
