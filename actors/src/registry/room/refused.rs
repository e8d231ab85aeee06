//! A room of which the room server does not say whether it is live, again and again.
//!
//! What tells a room that it does not know any more from a room server that knows nobody, as behind a wrong route, is that it gives
//! verdicts on others meanwhile. Both must go on for a while: when such a route is mended, some rooms have their verdict before others.

use std::time::{Duration, Instant};

/// Where nobody asks about others, as at night, it takes so many times as long as among others.
const ALONE: u32 = 12;

/// Its refusals in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    /// When the first one was heard.
    since: Instant,
    /// When the last one was heard.
    last: Instant,
    /// When the last question was over, be it that it found no place at the room server.
    over: Instant,
    /// When the room server gave the first and the last of those refusals that came shortly after a verdict on another room. `None`
    /// where the last refusal did not: then the room server may know nobody at the moment, and the count begins anew.
    among: Option<(Instant, Instant)>,
}

impl Refused {
    /// One more behind those `before`, given `at` that time and heard `now`. `named_at` is when the room server last gave a verdict on
    /// any room, `resume` is `broadcast.resume_seconds`.
    pub fn again(before: Option<Self>, at: Instant, named_at: Option<Instant>, resume: Duration, now: Instant) -> Self {
        let since = before.map_or(now, |before| before.since);
        // A verdict from before the first refusal tells nothing, and neither does one of long ago.
        let named = named_at.is_some_and(|named| since < named && named <= at && at - named <= resume / 2);
        let among = match before.and_then(|before| before.among) {
            // The checker remembers it; the room server was not asked anew.
            Some(among) if at <= among.1 => Some(among),
            among => named.then(|| (among.map_or(at, |(first, _)| first), at)),
        };
        Self {
            since,
            last: now,
            over: now,
            among,
        }
    }

    /// A question that could not be asked in time is over: no refusal, and none the less the last one for a while.
    pub fn is_not_asked(&mut self, now: Instant) {
        self.over = now;
    }

    /// Whether it is time for another question: when another tenth of the time since the first refusal has passed.
    pub fn asks_again(&self, now: Instant) -> bool {
        let tenth = self.over.saturating_duration_since(self.since) / 10;
        now.saturating_duration_since(self.over) >= tenth
    }

    /// Since when it says nothing of this room alone.
    pub fn alone_since(&self) -> Option<Instant> {
        self.among.map(|(first, _)| first)
    }

    /// Whether that went on for so long that whatever broadcast it had does not go on. A time in which it could not be asked is none in
    /// which it refused: the last refusal is in the later half.
    pub fn is_over(&self, resume: Duration, now: Instant) -> bool {
        let among = self.among.is_some_and(|(first, last)| last - first >= resume);
        let [ago, lasts] = [self.last, self.since].map(|at| now.saturating_duration_since(at));
        among || (lasts >= resume * ALONE && ago <= lasts / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESUME: Duration = Duration::from_secs(300);

    /// A room server, by the second: whether it refuses this room then, and whether it gives a verdict on another just before.
    #[derive(Clone, Copy)]
    struct Says {
        at: u64,
        refuses: bool,
        names: bool,
    }

    /// What is so every ten seconds, from a second on and before another.
    fn every_ten(from: u64, to: u64, refuses: bool, names: bool) -> impl Iterator<Item = Says> {
        (from..to).step_by(10).map(move |at| Says { at, refuses, names })
    }

    /// The second at which it is found that the room's broadcast does not go on.
    fn over_at(says: impl IntoIterator<Item = Says>) -> Option<u64> {
        let began = Instant::now();
        let (mut refused, mut named_at) = (None, None);
        for Says { at, refuses, names } in says {
            let now = began + Duration::from_secs(at);
            if names {
                named_at = Some(now);
            }
            if refuses {
                refused = Some(Refused::again(refused, now, named_at, RESUME, now));
            }
            if refused.is_some_and(|refused| refused.is_over(RESUME, now)) {
                return Some(at);
            }
        }
        None
    }

    #[test]
    fn a_room_that_is_not_known_among_others_that_are_is_over_in_the_time_of_an_interruption() {
        assert_eq!(over_at(every_ten(0, 10_000, true, true)), Some(310));
        // From when on others are named.
        let first = every_ten(0, 1_000, true, false);
        assert_eq!(over_at(first.chain(every_ten(1_000, 10_000, true, true))), Some(1_300));
    }

    #[test]
    fn a_room_server_that_refuses_everybody_and_then_does_not_has_the_time_to_name_every_room() {
        // Others have their verdict first.
        let mended = every_ten(1_800, 1_800 + 300, true, true);
        assert_eq!(over_at(every_ten(0, 1_800, true, false).chain(mended)), None);
        // Another one had a verdict still when this room was refused first, too.
        let broke = every_ten(0, 20, true, true).chain(every_ten(20, 1_800, true, false));
        assert_eq!(over_at(broke.chain(every_ten(1_800, 1_800 + 300, true, true))), None);
    }

    #[test]
    fn a_verdict_on_another_room_from_before_the_first_refusal_tells_nothing() {
        let named = Says {
            at: 0,
            refuses: false,
            names: true,
        };
        let refused = every_ten(10, 12 * 300, true, false);
        assert_eq!(over_at(std::iter::once(named).chain(refused)), None);
    }

    #[test]
    fn where_nobody_asks_about_others_it_takes_twelve_times_as_long() {
        assert_eq!(over_at(every_ten(0, 10_000, true, false)), Some(12 * 300));
    }

    #[test]
    fn a_question_that_could_not_be_asked_leaves_the_row_and_its_pace_as_they_are() {
        let began = Instant::now();
        let second = |n: u64| began + Duration::from_secs(n);
        let mut refused = Refused::again(None, second(0), None, RESUME, second(0));
        refused = Refused::again(Some(refused), second(1_000), None, RESUME, second(1_000));
        refused.is_not_asked(second(1_200));
        assert!(!refused.asks_again(second(1_319)) && refused.asks_again(second(1_320)));
        // It could not be asked for too long: whether it would refuse still is for the next refusal to say.
        assert!(!refused.is_over(RESUME, second(12 * 300)));
        refused = Refused::again(Some(refused), second(12 * 300), None, RESUME, second(12 * 300));
        assert!(refused.is_over(RESUME, second(12 * 300)));
    }

    #[test]
    fn a_refusal_that_the_checker_remembers_is_the_room_servers_only_once() {
        let began = Instant::now();
        let second = |n: u64| began + Duration::from_secs(n);
        let first = Refused::again(None, second(0), None, RESUME, second(0));
        let mut refused = Refused::again(Some(first), second(10), Some(second(5)), RESUME, second(10));
        assert_eq!(refused.alone_since(), Some(second(10)));
        for n in (20..1_000).step_by(10) {
            refused = Refused::again(Some(refused), second(10), Some(second(n)), RESUME, second(n));
            assert!(!refused.is_over(RESUME, second(n)), "{n}");
            assert_eq!(refused.alone_since(), Some(second(10)));
            assert!(!refused.asks_again(second(n)));
        }
        // It is behind no verdict that came after it.
        let alone = Refused::again(Some(first), second(10), Some(second(11)), RESUME, second(12));
        assert_eq!(alone.alone_since(), None);
    }
}
