//! How many frames a client may send that move nothing on.

use std::time::Instant;

use crate::bucket::{Bucket, Rate};

/// What a part of a message costs, in frames.
const PART: f64 = 1.0 / 128.0;

/// A token bucket that fills with `session.client_frames_per_second` and holds twice that.
#[derive(Debug)]
pub struct FrameBucket {
    rate: Rate,
    bucket: Bucket,
}

impl FrameBucket {
    /// A full bucket.
    pub fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        let rate = Rate {
            burst: per_second * 2.0,
            per_second,
        };
        Self {
            rate,
            bucket: Bucket::full(rate, now),
        }
    }

    /// Takes one frame; `false` when there is none left.
    pub fn take(&mut self, now: Instant) -> bool {
        self.bucket.take(1.0, self.rate, now).is_ok()
    }

    /// Takes a part of a fragmented message: a little, as `session.max_frame_bytes` bounds how many one message can have, but
    /// for an empty one, of which there is no end.
    pub fn take_part(&mut self, bytes: usize, now: Instant) -> bool {
        let frames = if bytes == 0 { 1.0 } else { PART };
        self.bucket.take(frames, self.rate, now).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn two_seconds_worth_may_come_at_once_and_then_the_rate_counts() {
        let now = Instant::now();
        let mut bucket = FrameBucket::new(5, now);
        assert_eq!((0..20).filter(|_| bucket.take(now)).count(), 10);
        let later = now + Duration::from_millis(600);
        assert_eq!((0..20).filter(|_| bucket.take(later)).count(), 3);
        assert!(bucket.take_part(1, later + Duration::from_millis(10)));
        assert!(!bucket.take_part(0, later + Duration::from_millis(10)));
        let much_later = now + Duration::from_secs(60);
        assert_eq!((0..20).filter(|_| bucket.take(much_later)).count(), 10);
    }
}
