//! Questions that wait for a place among `room.max_lookups`.
//!
//! Those that somebody waits for come first. Of the others each waits for no more than [`AHEAD`] of them at a time: sessions whose room
//! is not live, and broadcasts that are over, must end some day however many send. Which of its kind is next is left to chance: rooms
//! are swept in the same order again and again, and where there is no place for all, the same ones would always be too late.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Check, Why};
use crate::types::PresenterIdx;

/// So many that somebody waits for are asked in a row where others wait for a place, too.
const AHEAD: u32 = 3;

/// Each with the time since when it waits; the first of its kind has waited for longest.
#[derive(Default)]
pub(super) struct Questions {
    awaited: VecDeque<(Instant, Check)>,
    others: VecDeque<(Instant, Check)>,
    /// How many of `awaited` were taken in a row while there were others.
    ahead: u32,
}

impl Questions {
    /// One more, at that time.
    pub fn put(&mut self, check: Check, now: Instant) {
        let kind = match check.why {
            Why::Awaited => &mut self.awaited,
            _ => &mut self.others,
        };
        kind.push_back((now, check));
    }

    /// Somebody waits from now on for the verdict on this presenter, as for one that is asked about now.
    pub fn hurry(&mut self, presenter: PresenterIdx, now: Instant) {
        let at = self.others.iter().position(|(_, check)| check.presenter == presenter);
        if let Some((_, mut check)) = at.and_then(|at| self.others.remove(at)) {
            check.hurry();
            self.put(check, now);
        }
    }

    /// Gives up one that has waited for so long.
    pub fn late(&mut self, patience: Duration, now: Instant) -> Option<Check> {
        let late = |(since, _): &mut (Instant, Check)| now.saturating_duration_since(*since) >= patience;
        let given_up = self.awaited.pop_front_if(late);
        let given_up = given_up.or_else(|| self.others.pop_front_if(late));
        given_up.map(|(_, check)| check)
    }

    /// The next one to be asked.
    pub fn take(&mut self) -> Option<Check> {
        let others_wait = !self.others.is_empty();
        let kind = if self.awaited.is_empty() || (others_wait && self.ahead >= AHEAD) {
            self.ahead = 0;
            &mut self.others
        } else {
            self.ahead = if others_wait { self.ahead + 1 } else { 0 };
            &mut self.awaited
        };
        let any = (!kind.is_empty()).then(|| rand::random_range(0..kind.len()))?;
        kind.remove(any).map(|(_, check)| check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::CheckerHandle;

    fn presenter(n: i64) -> PresenterIdx {
        PresenterIdx::new(n).unwrap()
    }

    fn put(questions: &mut Questions, n: i64, why: Why, now: Instant) {
        let check = CheckerHandle::new(1).question(presenter(n), why).unwrap();
        questions.put(check, now);
    }

    #[test]
    fn those_that_somebody_waits_for_are_first_and_leave_each_fourth_place_to_the_others() {
        let (mut questions, now) = (Questions::default(), Instant::now());
        for n in 0..100 {
            put(&mut questions, n, Why::Awaited, now);
        }
        // There were none of them.
        for _ in 0..10 {
            assert_eq!(questions.take().unwrap().why, Why::Awaited);
        }
        let others = [Why::Wanted, Why::Refresh, Why::Idle, Why::IdleRefresh];
        for (n, why) in (100..).zip(others) {
            put(&mut questions, n, why, now);
        }
        let mut taken: Vec<bool> = (0..16).map(|_| questions.take().unwrap().why == Why::Awaited).collect();
        assert_eq!(taken, [true, true, true, false].repeat(4));
        taken.extend(std::iter::from_fn(|| questions.take()).map(|check| check.why == Why::Awaited));
        assert_eq!(taken.len(), 94);
        assert!(taken[16..].iter().all(|awaited| *awaited));
        for n in 0..4 {
            put(&mut questions, n, Why::Wanted, now);
        }
        assert_eq!(std::iter::from_fn(|| questions.take()).count(), 4);
    }

    #[test]
    fn one_that_somebody_begins_to_wait_for_is_first_and_has_its_time_from_then_on() {
        let (mut questions, began) = (Questions::default(), Instant::now());
        let patience = Duration::from_secs(2);
        for n in 0..50 {
            put(&mut questions, n, Why::IdleRefresh, began);
        }
        let later = began + Duration::from_secs(1);
        questions.hurry(presenter(7), later);
        questions.hurry(presenter(99), later);
        let late = std::iter::from_fn(|| questions.late(patience, began + patience));
        assert!(
            late.map(|check| check.presenter)
                .eq((0..50).filter(|n| *n != 7).map(presenter))
        );
        put(&mut questions, 60, Why::Wanted, later);
        let next = questions.take().unwrap();
        assert_eq!((next.presenter, next.why), (presenter(7), Why::Awaited));
        assert!(questions.late(patience, later).is_none());
        assert_eq!(
            questions.late(patience, later + patience).unwrap().presenter,
            presenter(60)
        );
        assert!(questions.take().is_none());
    }
}
