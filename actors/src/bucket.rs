//! A token bucket: so much at once, so much a second beyond.

use std::time::{Duration, Instant};

/// How a bucket fills.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// What it holds at most.
    pub burst: f64,
    /// What comes in a second; more than 0.
    pub per_second: f64,
}

/// What is left in one bucket.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    left: f64,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self {
            left: rate.burst,
            filled_at: now,
        }
    }

    /// Takes so much, or nothing: the error tells after how long it would be there.
    pub fn take(&mut self, amount: f64, rate: Rate, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.left = (self.left + passed * rate.per_second).min(rate.burst);
        self.filled_at = self.filled_at.max(now);
        if self.left < amount {
            let missing = (amount - self.left) / rate.per_second;
            return Err(Duration::try_from_secs_f64(missing).unwrap_or(Duration::MAX));
        }
        self.left -= amount;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_may_come_then_the_rate_counts() {
        let rate = Rate {
            burst: 3.0,
            per_second: 2.0,
        };
        let now = Instant::now();
        let mut bucket = Bucket::full(rate, now);
        let taken: Vec<_> = (0..4).map(|_| bucket.take(1.0, rate, now)).collect();
        assert_eq!(taken[..3], [Ok(()), Ok(()), Ok(())]);
        assert_eq!(taken[3], Err(Duration::from_millis(500)));
        let later = now + Duration::from_millis(750);
        assert_eq!(bucket.take(1.0, rate, later), Ok(()));
        assert_eq!(bucket.take(1.0, rate, later), Err(Duration::from_millis(250)));
        // A clock that was read before the last time fills nothing twice.
        assert_eq!(bucket.take(1.0, rate, now), Err(Duration::from_millis(250)));
        assert_eq!(bucket.take(1.0, rate, later + Duration::from_secs(60)), Ok(()));
    }
}
