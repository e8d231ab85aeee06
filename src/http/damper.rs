//! Damps storms of reconnects: how often one presenter's sessions may begin (rule 15).
//!
//! A token bucket a presenter: `session.reconnect_burst` at once, `session.reconnect_per_minute` beyond. Only a presenter whose
//! token was good is counted, so nobody can use up another's. Bounded: the presenter unseen for longest is forgotten, which
//! can only let it in.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use chatting_actors::types::PresenterIdx;
use lru::LruCache;

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    filled_at: Instant,
}

/// See the module's text.
pub struct Damper {
    burst: f64,
    per_second: f64,
    buckets: Mutex<LruCache<PresenterIdx, Bucket>>,
}

impl Damper {
    /// Buckets for at most `tracked` presenters.
    pub fn new(burst: u32, per_minute: u32, tracked: usize) -> Self {
        Self {
            burst: f64::from(burst),
            per_second: f64::from(per_minute) / 60.0,
            buckets: Mutex::new(LruCache::new(NonZeroUsize::new(tracked).unwrap_or(NonZeroUsize::MIN))),
        }
    }

    /// How many may begin at once.
    pub fn burst(&self) -> u32 {
        self.burst as u32
    }

    /// Counts one more session; the error tells after how long the next may begin.
    pub fn admit(&self, presenter: PresenterIdx, now: Instant) -> Result<(), Duration> {
        let full = Bucket {
            left: self.burst,
            filled_at: now,
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get_or_insert_mut(presenter, || full);
        let passed = now.saturating_duration_since(bucket.filled_at).as_secs_f64();
        bucket.left = (bucket.left + passed * self.per_second).min(self.burst);
        bucket.filled_at = now;
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / self.per_second));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presenter(n: i64) -> PresenterIdx {
        PresenterIdx::new(n).unwrap()
    }

    #[test]
    fn a_burst_may_come_then_the_rate_counts_and_others_are_not_touched() {
        let damper = Damper::new(3, 60, 10);
        let now = Instant::now();
        let storm: Vec<_> = (0..5).map(|_| damper.admit(presenter(1), now)).collect();
        assert_eq!(storm[..3], [Ok(()), Ok(()), Ok(())]);
        assert_eq!(storm[3..], [Err(Duration::from_secs(1)), Err(Duration::from_secs(1))]);
        assert_eq!(damper.admit(presenter(2), now), Ok(()));
        let later = now + Duration::from_millis(1500);
        assert_eq!(damper.admit(presenter(1), later), Ok(()));
        assert_eq!(damper.admit(presenter(1), later), Err(Duration::from_millis(500)));
    }

    #[test]
    fn it_remembers_no_more_presenters_than_it_may() {
        let damper = Damper::new(1, 60, 2);
        let now = Instant::now();
        for n in 1..=3 {
            assert_eq!(damper.admit(presenter(n), now), Ok(()));
        }
        assert!(damper.admit(presenter(3), now).is_err());
        // The first one was forgotten for the third.
        assert_eq!(damper.admit(presenter(1), now), Ok(()));
    }
}
