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
