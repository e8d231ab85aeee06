//! Questions that wait for a place among `room.max_lookups`.
//!
//! Those that a sender or a reader waits for come first, and of the others those that a session waits for before it can begin. Each kind
//! waits for no more than [`AHEAD`] at a time of those before it: sessions whose room is not live, and broadcasts that are over, must end
//! some day however many send. Which of its kind is next is left to chance: rooms are swept in the same order again and again, and where
//! there is no place for all, the same ones would always be too late.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Check, Why};
use crate::types::PresenterIdx;

/// So many of a kind are asked in a row where others wait for a place behind it.
const AHEAD: u32 = 3;

/// Questions of one kind.
#[derive(Default)]
struct Kind {
    /// Each with the time since when it waits; the first has waited for longest.
    waiting: VecDeque<(Instant, Check)>,
    /// How many were taken in a row while others waited behind.
    ahead: u32,
}

/// By their rank ([`Why::rank`]).
#[derive(Default)]
pub(super) struct Questions([Kind; 3]);

impl Questions {
    /// One more, at that time.
    pub fn put(&mut self, check: Check, now: Instant) {
        self.0[check.why.rank()].waiting.push_back((now, check));
    }

    /// This presenter is asked about for another reason from now on, as one that is asked about now. Nothing where that one is in its
    /// place already, or is being asked about.
    pub fn hurry(&mut self, presenter: PresenterIdx, why: Why, now: Instant) {
        for kind in &mut self.0[why.rank() + 1..] {
            let at = kind.waiting.iter().position(|(_, check)| check.presenter == presenter);
            if let Some((_, mut check)) = at.and_then(|at| kind.waiting.remove(at)) {
                check.hurry(why);
                return self.put(check, now);
            }
        }
    }

    /// Gives up one that has waited for so long.
    pub fn late(&mut self, patience: Duration, now: Instant) -> Option<Check> {
        let late = |(since, _): &mut (Instant, Check)| now.saturating_duration_since(*since) >= patience;
        let given_up = self.0.iter_mut().find_map(|kind| kind.waiting.pop_front_if(late));
        given_up.map(|(_, check)| check)
    }

    /// The next one to be asked.
    pub fn take(&mut self) -> Option<Check> {
        let mut kinds = self.0.as_mut_slice();
        while let Some((kind, behind)) = kinds.split_first_mut() {
            kinds = behind;
            let others_wait = kinds.iter().any(|kind| !kind.waiting.is_empty());
            if kind.waiting.is_empty() || (others_wait && kind.ahead >= AHEAD) {
                kind.ahead = 0;
                continue;
            }
            kind.ahead = if others_wait { kind.ahead + 1 } else { 0 };
            let any = rand::random_range(0..kind.waiting.len());
            return kind.waiting.remove(any).map(|(_, check)| check);
        }
        None
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
        questions.hurry(presenter(7), Why::Awaited, later);
        questions.hurry(presenter(99), Why::Awaited, later);
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

    #[test]
    fn what_a_session_waits_for_is_before_what_nobody_does_and_leaves_that_each_fourth_place() {
        let (mut questions, now) = (Questions::default(), Instant::now());
        for n in 0..60 {
            put(&mut questions, n, Why::Awaited, now);
            put(&mut questions, 100 + n, Why::Idle, now);
            put(&mut questions, 200 + n, Why::Idle, now);
            questions.hurry(presenter(200 + n), Why::Opening, now);
        }
        let taken = |questions: &mut Questions, n| -> Vec<_> {
            let taken = std::iter::from_fn(|| questions.take()).take(n);
            taken.map(|check| check.why.rank()).collect()
        };
        let behind = |kind| [0, 0, 0, kind];
        let in_turn = [behind(1), behind(1), behind(1), behind(2)].concat();
        assert_eq!(taken(&mut questions, 32), in_turn.repeat(2));
        let mut rest = taken(&mut questions, usize::MAX);
        rest.sort_unstable();
        let all: Vec<_> = [(0, 36), (1, 54), (2, 58)]
            .into_iter()
            .flat_map(|(kind, left)| vec![kind; left])
            .collect();
        assert_eq!(rest, all);
    }

    #[test]
    fn the_refresh_of_a_room_that_is_sent_to_is_with_those_that_senders_wait_for_and_stays_a_refresh() {
        let (mut questions, now) = (Questions::default(), Instant::now());
        for n in 0..9 {
            put(&mut questions, n, Why::Refresh, now);
        }
        questions.hurry(presenter(5), Why::AwaitedRefresh, now);
        let next = questions.take().unwrap();
        assert_eq!((next.presenter, next.why), (presenter(5), Why::AwaitedRefresh));
        assert!(next.half.is_none() && next.why.is_refresh());
    }
}
