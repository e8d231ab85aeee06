//! What time it is, for retention, which cannot take back what it did by a clock that was ahead.
//!
//! What is known is how late it was at least, and how much time has gone by since, by a clock that nobody sets. A system's clock that is
//! ahead of both by more than `log.retention_settle_seconds` is set ahead, or nothing was sent for long. Which of them does not show,
//! so it is believed when it has stood so long. One that is behind is believed at once: it makes nothing too old.

use chatting_actors::{
    clock::{boot_ms, system_ms},
    wire::v1::timestamp,
};

/// What the clocks show, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// The system's, since 1970, UTC.
    pub system_ms: i64,
    /// One that nobody sets ([`boot_ms`]).
    pub boot_ms: i64,
}

impl Clocks {
    /// What they show now.
    pub fn now() -> Self {
        Self::at(system_ms())
    }

    /// It is at least so late now, in milliseconds since 1970, UTC.
    pub fn at(system_ms: i64) -> Self {
        Self {
            system_ms,
            boot_ms: boot_ms(),
        }
    }

    /// What the system's clock shows later, if nobody sets it meanwhile.
    fn gone_on(self, now: Self) -> i64 {
        self.system_ms.saturating_add(now.boot_ms.saturating_sub(self.boot_ms))
    }
}

/// What is known of the present, from one look at the clocks to the next.
#[derive(Clone, Copy, Debug)]
pub struct Present {
    /// It was at least so late then.
    known: Clocks,
    /// The clocks since when that of the system is not believed, where it is not.
    doubted: Option<Clocks>,
    settle_ms: i64,
}

impl Present {
    /// It was at least so late at `known`. `settle_ms`: `log.retention_settle_seconds`.
    pub fn new(known: Clocks, settle_ms: i64) -> Self {
        Self {
            known,
            doubted: None,
            settle_ms,
        }
    }

    /// Whether the system's clock was not believed when this was asked last.
    pub fn is_doubted(&self) -> bool {
        self.doubted.is_some()
    }

    /// The time to go by, in milliseconds since 1970, UTC, when the clocks show this.
    pub fn at(&mut self, now: Clocks) -> i64 {
        let expected = self.known.gone_on(now);
        let ahead_ms = now.system_ms.saturating_sub(expected);
        if self.settle_ms > 0 && ahead_ms > self.settle_ms {
            let stands =
                |since: &Clocks| now.system_ms.saturating_sub(since.gone_on(now)).saturating_abs() <= self.settle_ms;
            let since = self.doubted.filter(stands).unwrap_or_else(|| {
                self.tell(now, expected);
                now
            });
            self.doubted = Some(since);
            if now.boot_ms.saturating_sub(since.boot_ms) < self.settle_ms {
                return expected;
            }
            log::info!("retention: the clock is believed: {}", timestamp(now.system_ms));
        }
        (self.known, self.doubted) = (now, None);
        now.system_ms
    }

    fn tell(&self, now: Clocks, expected: i64) {
        let seconds = self.settle_ms / 1000;
        if self.known.system_ms == 0 {
            log::info!("retention: no event tells how late it is; it begins when the clock has stood for {seconds} s");
            return;
        }
        log::warn!(
            "retention: the clock shows {}, and as far as is known it is {}; it goes by that until the clock has stood for {seconds} s \
             (log.retention_settle_seconds)",
            timestamp(now.system_ms),
            timestamp(expected)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const DAY: i64 = 24 * HOUR;
    const NOW: i64 = 1_767_225_600_000;
    /// The boot clock then: when it began is nothing to go by.
    const BOOT: i64 = 77 * HOUR;

    /// The clocks so long after [`NOW`], the system's as much ahead.
    fn after(passed: i64, ahead: i64) -> Clocks {
        Clocks {
            system_ms: NOW + passed + ahead,
            boot_ms: BOOT + passed,
        }
    }

    fn settling(settle_ms: i64) -> Present {
        Present::new(after(0, 0), settle_ms)
    }

    #[test]
    fn a_clock_that_goes_right_is_believed_also_when_the_machine_slept() {
        let mut present = settling(DAY);
        for passed in [0, HOUR, 2 * HOUR, 30 * DAY, 30 * DAY + HOUR] {
            assert_eq!(present.at(after(passed, 0)), NOW + passed);
            assert!(!present.is_doubted());
        }
        // One that is set by less is taken as it is, either way.
        assert_eq!(present.at(after(31 * DAY, DAY)), NOW + 32 * DAY);
        assert_eq!(present.at(after(32 * DAY, -HOUR)), NOW + 32 * DAY - HOUR);
    }

    #[test]
    fn a_clock_that_jumps_ahead_is_believed_when_it_has_stood() {
        let mut present = settling(DAY);
        assert_eq!(present.at(after(HOUR, 400 * DAY)), NOW + HOUR);
        assert!(present.is_doubted());
        // It is right again, and jumps once more: what it stood before does not count.
        assert_eq!(present.at(after(20 * HOUR, 0)), NOW + 20 * HOUR);
        assert!(!present.is_doubted());
        assert_eq!(present.at(after(26 * HOUR, 400 * DAY)), NOW + 26 * HOUR);
        // Nor when it jumps again.
        assert_eq!(present.at(after(30 * HOUR, 500 * DAY)), NOW + 30 * HOUR);
        assert_eq!(present.at(after(51 * HOUR, 500 * DAY)), NOW + 51 * HOUR);
        assert_eq!(present.at(after(54 * HOUR, 500 * DAY)), NOW + 54 * HOUR + 500 * DAY);
        assert!(!present.is_doubted());
        assert_eq!(present.at(after(55 * HOUR, 500 * DAY)), NOW + 55 * HOUR + 500 * DAY);
    }

    #[test]
    fn a_clock_that_was_set_late_goes_by_what_it_showed_until_it_has_stood() {
        let mut present = settling(DAY);
        // As a machine without a battery begins.
        assert_eq!(present.at(after(0, -NOW)), 0);
        assert_eq!(present.at(after(HOUR, 0)), HOUR);
        assert_eq!(present.at(after(25 * HOUR, 0)), NOW + 25 * HOUR);
    }

    #[test]
    fn where_no_event_is_known_a_clock_has_to_stand_and_without_a_time_for_that_it_is_believed_at_once() {
        let nothing = Clocks {
            system_ms: 0,
            ..after(0, 0)
        };
        let mut present = Present::new(nothing, DAY);
        assert_eq!(present.at(after(HOUR, 0)), HOUR);
        assert_eq!(present.at(after(26 * HOUR, 0)), NOW + 26 * HOUR);
        let mut present = Present::new(nothing, 0);
        assert_eq!(present.at(after(HOUR, 0)), NOW + HOUR);
        assert_eq!(present.at(after(HOUR, 400 * DAY)), NOW + HOUR + 400 * DAY);
        assert!(!present.is_doubted());
    }
}
