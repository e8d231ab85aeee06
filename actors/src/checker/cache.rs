//! What the checker remembers. When full, the least recently used goes; what is forgotten costs a lookup.

use std::{num::NonZeroUsize, time::Instant};

use lru::LruCache;
use prometheus_client::metrics::gauge::Gauge;

use crate::{metrics::Metrics, seams::Liveness, types::PresenterIdx};

/// A verdict of the room server's, and when it was given.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub liveness: Liveness,
    pub at: Instant,
}

/// That the room server would not say.
pub(super) struct Silent {
    pub at: Instant,
    /// It counts among the refusals, because it was for somebody.
    pub counted: bool,
}

/// What the room server said last of each presenter.
pub(super) struct Cache {
    live: LruCache<PresenterIdx, Known>,
    not_live: LruCache<PresenterIdx, Known>,
    /// Of whom it would not say.
    refused: LruCache<PresenterIdx, Silent>,
    /// How many there are of each.
    kept: [Gauge; 3],
}

impl Cache {
    pub fn new(live: usize, not_live: usize, metrics: &Metrics) -> Self {
        let kept = |verdict| metrics.room_verdicts.of(verdict);
        let bounded = |max| LruCache::new(NonZeroUsize::new(max).unwrap_or(NonZeroUsize::MIN));
        let cache = Self {
            live: bounded(live),
            not_live: bounded(not_live),
            refused: LruCache::new(NonZeroUsize::new(not_live).unwrap_or(NonZeroUsize::MIN)),
            kept: [kept("live"), kept("not_live"), kept("refused")],
        };
        // Those of the checker before it are gone.
        cache.show();
        cache
    }

    pub fn get(&mut self, presenter: PresenterIdx) -> Option<Known> {
        let live = self.live.get(&presenter);
        live.or_else(|| self.not_live.get(&presenter)).copied()
    }

    pub fn put(&mut self, presenter: PresenterIdx, known: Known) {
        let (here, elsewhere) = if known.liveness.live {
            (&mut self.live, &mut self.not_live)
        } else {
            (&mut self.not_live, &mut self.live)
        };
        elsewhere.pop(&presenter);
        self.refused.pop(&presenter);
        here.put(presenter, known);
        self.show();
    }

    /// That it would not say, as far as that is kept.
    pub fn refused(&mut self, presenter: PresenterIdx) -> Option<&mut Silent> {
        self.refused.get_mut(&presenter)
    }

    pub fn put_refused(&mut self, presenter: PresenterIdx, silent: Silent) {
        self.refused.put(presenter, silent);
        self.show();
    }

    fn show(&self) {
        let kept = [self.live.len(), self.not_live.len(), self.refused.len()];
        for (gauge, kept) in self.kept.iter().zip(kept) {
            gauge.set(i64::try_from(kept).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_verdicts_of_either_kind_and_of_refusals_the_least_recently_used_goes() {
        let presenter = |n| PresenterIdx::new(n).unwrap();
        let at = Instant::now();
        for live in [true, false] {
            let mut cache = Cache::new(2, 2, &Metrics::default());
            let liveness = Liveness {
                live,
                ..Liveness::default()
            };
            let known = Known { liveness, at };
            cache.put(presenter(30), known);
            cache.put(presenter(31), known);
            assert!(cache.get(presenter(30)).is_some());
            cache.put(presenter(32), known);
            let kept = [30, 31, 32].map(|n| cache.get(presenter(n)).is_some());
            assert_eq!(kept, [true, false, true], "live: {live}");
        }
        let mut cache = Cache::new(2, 2, &Metrics::default());
        let silent = || Silent { at, counted: false };
        cache.put_refused(presenter(30), silent());
        cache.put_refused(presenter(31), silent());
        assert!(cache.refused(presenter(30)).is_some());
        cache.put_refused(presenter(32), silent());
        let kept = [30, 31, 32].map(|n| cache.refused(presenter(n)).is_some());
        assert_eq!(kept, [true, false, true], "refusals");
    }
}
