//! What acts of moderation have marked already, so that the next one looks at none of it again.
//!
//! Whoever may delete everything that was said in a room may do so again and again, and each time the store would go through a past of
//! any length. Remembered are stretches of a numbering before an act of that numbering: what the store takes later is numbered behind
//! it. What is set aside and stored later comes with the acts that cover it, and an act that is no newer than what is remembered takes
//! that back. Lost, forgotten or left out, it costs time only. It is so as long as nobody takes marks away: a MongoDB that was
//! restored from a backup wants a restart (docs/OPERATIONS.md), and one that failed is not believed to have them.

use std::{num::NonZeroUsize, ops::Range};

use chatting_actors::types::{Epoch, PresenterIdx, Seq, UserIdx};
use lru::LruCache;

/// Rooms, and users in rooms, of which it is remembered; the one unused for longest goes.
const KEYS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// Stretches of each; the shortest goes.
const STRETCHES: usize = 64;

/// A room's numbering, or one user's messages in it.
pub(super) type Key = (PresenterIdx, Epoch, Option<UserIdx>);

/// By room, numbering and user; the one that was unused for longest goes.
#[derive(Debug)]
pub(super) struct Marked(LruCache<Key, Known>);

#[derive(Debug, Default)]
struct Known {
    /// The newest act that it comes from.
    through: Seq,
    /// In order, with something between each two.
    stretches: Vec<Range<u64>>,
}

impl Default for Marked {
    fn default() -> Self {
        Self(LruCache::new(KEYS))
    }
}

impl Marked {
    /// What is left of a stretch, from the first of these and before the second, for an act with this number.
    pub fn left(&mut self, key: &Key, at: Seq, from: Seq, beyond: Seq) -> Vec<(Seq, Seq)> {
        let Some(known) = self.0.get(key).filter(|known| known.through < at) else {
            // One that is given again is meant: something may have been stored since.
            self.0.pop(key);
            return vec![(from, beyond)];
        };
        let (mut from, mut left) = (from, Vec::new());
        for stretch in &known.stretches {
            if from.0 < stretch.start.min(beyond.0) {
                left.push((from, Seq(stretch.start.min(beyond.0))));
            }
            from = from.max(Seq(stretch.end));
        }
        if from < beyond {
            left.push((from, beyond));
        }
        left
    }

    /// An act with this number has marked all of a stretch that came before it.
    pub fn add(&mut self, key: Key, at: Seq, from: Seq, beyond: Seq) {
        let mut all = from.0..beyond.min(at).0;
        if all.is_empty() {
            return;
        }
        let known = self.0.get_or_insert_mut(key, Known::default);
        known.through = known.through.max(at);
        known.stretches.retain(|one| {
            let apart = one.end < all.start || all.end < one.start;
            if !apart {
                all = one.start.min(all.start)..one.end.max(all.end);
            }
            apart
        });
        known.stretches.push(all);
        if known.stretches.len() > STRETCHES {
            let shortest = (0..known.stretches.len()).min_by_key(|n| {
                let one = &known.stretches[*n];
                one.end - one.start
            });
            known.stretches.swap_remove(shortest.unwrap_or(0));
        }
        known.stretches.sort_by_key(|one| one.start);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn key(user: Option<i64>) -> Key {
        (
            PresenterIdx::new(1).unwrap(),
            Epoch("e".into()),
            user.and_then(UserIdx::new),
        )
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_no_act_before_has_marked(
            acts in prop::collection::vec((0_u64..300, 1_u64..80), 0..60), asked in (0_u64..300, 0_u64..300),
        ) {
            let (mut marked, mut done) = (Marked::default(), BTreeSet::new());
            for (at, (from, length)) in (100..).zip(acts) {
                let within = from..from + length;
                for (from, beyond) in marked.left(&key(None), Seq(at), Seq(within.start), Seq(within.end)) {
                    prop_assert!(from < beyond);
                    for seq in from.0..beyond.0 {
                        prop_assert!(within.contains(&seq) && !done.contains(&seq));
                    }
                }
                marked.add(key(None), Seq(at), Seq(within.start), Seq(within.end));
                done.extend(within.start..within.end.min(at));
            }
            let beyond = asked.0 + asked.1;
            let left = marked.left(&key(None), Seq(1000), Seq(asked.0), Seq(beyond));
            let left: Vec<u64> = left.into_iter().flat_map(|(from, beyond)| from.0..beyond.0).collect();
            let wanted: Vec<u64> = (asked.0..beyond).filter(|seq| !done.contains(seq)).collect();
            prop_assert_eq!(left, wanted);
        }
    }

    #[test]
    fn an_act_that_is_no_newer_than_what_is_known_looks_at_everything() {
        let all = (Seq(0), Seq(1000));
        for at in [49, 50] {
            let mut marked = Marked::default();
            marked.add(key(None), Seq(50), all.0, all.1);
            marked.add(key(Some(7)), Seq(50), all.0, all.1);
            assert_eq!(marked.left(&key(None), Seq(51), all.0, all.1), [(Seq(50), all.1)]);
            assert_eq!(marked.left(&key(None), Seq(at), all.0, all.1), [all]);
            // Nor is what it came from known from then on.
            assert_eq!(marked.left(&key(None), Seq(51), all.0, all.1), [all]);
            assert_eq!(marked.left(&key(Some(7)), Seq(51), all.0, all.1), [(Seq(50), all.1)]);
            assert_eq!(marked.left(&key(Some(8)), Seq(51), all.0, all.1), [all]);
        }
    }

    #[test]
    fn of_very_many_stretches_the_longest_are_known() {
        let mut marked = Marked::default();
        for n in 0..1000 {
            let from = 100 * n;
            marked.add(key(None), Seq(1_000_000), Seq(from), Seq(from + 1 + n % 90));
        }
        let known = marked.0.get(&key(None)).unwrap();
        assert_eq!(known.stretches.len(), STRETCHES);
        assert!(known.stretches.is_sorted_by_key(|one| one.start));
        assert!(known.stretches.iter().all(|one| one.end - one.start > 80));
    }
}
