//! The time and the ids of events (rule 5): from max(now, last persisted), so a clock set back changes nothing.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use uuid::Uuid;

/// An id has 12 bits to count within its millisecond.
const MOST_WITHIN_MS: u16 = 0x0fff;

/// Stamps events. Owned by the one actor that numbers.
#[derive(Debug)]
pub struct EventClock {
    last_ms: i64,
    within_ms: u16,
    random: SmallRng,
}

impl EventClock {
    /// Goes on after `last_ms`, the newest time that is in the spool (milliseconds since 1970, UTC). How many ids that
    /// millisecond has is not known, so it is taken to be full.
    pub fn after(last_ms: i64) -> Self {
        Self {
            last_ms,
            within_ms: MOST_WITHIN_MS,
            random: SmallRng::from_os_rng(),
        }
    }

    /// Goes on after this time too, where that is further.
    pub fn not_before(&mut self, ms: i64) {
        if ms > self.last_ms {
            self.last_ms = ms;
            self.within_ms = MOST_WITHIN_MS;
        }
    }

    /// The time of the event stamped last, or where the clock went on from.
    pub fn last_ms(&self) -> i64 {
        self.last_ms
    }

    /// What the next event would be stamped with: the system's time, or where this clock stands while that is behind it.
    pub fn now_ms(&self) -> i64 {
        system_ms().max(self.last_ms)
    }

    /// The time and the id of the next event: never before those of the one stamped last.
    pub fn stamp(&mut self) -> (i64, Uuid) {
        self.stamp_at(system_ms())
    }

    fn stamp_at(&mut self, now_ms: i64) -> (i64, Uuid) {
        if now_ms > self.last_ms {
            self.last_ms = now_ms;
            self.within_ms = 0;
        } else {
            if self.within_ms == MOST_WITHIN_MS {
                // 4,096 ids in one millisecond: borrow from the next one rather than go back.
                self.last_ms += 1;
                self.within_ms = 0;
            } else {
                self.within_ms += 1;
            }
        }
        (self.last_ms, self.id())
    }

    /// RFC 9562 UUIDv7: 48 bits of milliseconds, 12 bits that count within one, 62 random bits.
    fn id(&mut self) -> Uuid {
        let ms = u64::try_from(self.last_ms).unwrap_or(0);
        let high = (ms << 16) | 0x7000 | u64::from(self.within_ms);
        let low = (self.random.random::<u64>() >> 2) | (0b10 << 62);
        Uuid::from_u64_pair(high, low)
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z by the system's clock.
pub fn system_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}

/// A time in milliseconds.
pub(crate) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds since 1970 by the system's clock as it was when this was asked first, and by one that nobody sets from then on:
/// for what is to be kept for so long, whatever happens to the system's clock meanwhile.
pub fn steady_ms() -> i64 {
    static BEGAN: LazyLock<(Instant, i64)> = LazyLock::new(|| (Instant::now(), system_ms()));
    let (at, ms) = *BEGAN;
    ms.saturating_add(millis(at.elapsed()))
}

/// Milliseconds by a clock that nobody sets, and that goes on while the process is stopped and while the machine sleeps. When it began
/// is nothing to go by. (Elsewhere than on Linux it is the system's clock, which is set.)
pub fn boot_ms() -> i64 {
    #[cfg(target_os = "linux")]
    {
        let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        since
            .tv_sec
            .saturating_mul(1000)
            .saturating_add(since.tv_nsec / 1_000_000)
    }
    #[cfg(not(target_os = "linux"))]
    system_ms()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_05_ids_go_on_after_those_of_a_server_before_whose_clock_was_ahead_too() {
        let mut before = EventClock::after(1_000_000);
        let given: Vec<_> = (0..100).map(|_| before.stamp_at(5)).collect();
        let mut clock = EventClock::after(before.last_ms());
        let next = clock.stamp_at(5);
        assert!(given.iter().all(|(ms, id)| next.0 >= *ms && next.1 > *id), "{next:?}");
    }

    #[test]
    fn rule_05_a_clock_set_back_changes_neither_times_nor_the_order_of_ids() {
        let mut clock = EventClock::after(1_000_000);
        let mut last = clock.stamp_at(999_000);
        assert!(last.0 >= 1_000_000);
        for now in [1_000_001, 5, 1_000_000, 1_000_001, 1_000_001, 0, 1_000_002] {
            let next = clock.stamp_at(now);
            assert!(next.0 >= last.0 && next.1 > last.1, "{last:?} then {next:?}");
            last = next;
        }
    }

    #[test]
    fn ids_are_version_7_of_their_time_and_stay_in_order_within_a_millisecond() {
        let mut clock = EventClock::after(0);
        let mut last = clock.stamp_at(1_700_000_000_000);
        assert_eq!(last.1.get_version_num(), 7);
        assert_eq!(last.1.get_variant(), uuid::Variant::RFC4122);
        for _ in 0..10_000 {
            let next = clock.stamp_at(1_700_000_000_000);
            assert!(next.1 > last.1);
            assert_eq!(next.1.get_timestamp().unwrap().to_unix().0, next.0 as u64 / 1000);
            last = next;
        }
    }
}
