//! Whether the room server is asked at all: one that failed `room.breaker_failures` times in a row is left alone for
//! `room.breaker_open_ms`. Then one lookup tries it; its answer closes the breaker, another failure opens it again.
//!
//! `/readyz` goes by what it shows. Where nobody asks any more, as behind the last broadcast of the day, nothing would close it: so
//! long after it might have been tried it shows that it is closed, and the next lookup tries the room server all the same.

use std::time::{Duration, Instant};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::refusals::Refusals;
use crate::metrics::Metrics;

/// The breaker, as `chat_room_breaker_open` shows it.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// `room.breaker_failures`; 0 never opens it.
    most: u32,
    /// `room.breaker_open_ms`
    open_for: Duration,
    open: Gauge,
    opened: Counter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The room server is asked; so many failures came in a row.
    Closed { failures: u32 },
    /// It is not, until then.
    Open { until: Instant },
    /// One lookup tries it.
    HalfOpen,
}

impl Breaker {
    /// Closed.
    pub fn new(most: u32, open_for: Duration, metrics: &Metrics) -> Self {
        metrics.room_breaker_open.set(0);
        Self {
            state: State::Closed { failures: 0 },
            most,
            open_for,
            open: metrics.room_breaker_open.clone(),
            opened: metrics.room_breaker_opened.clone(),
        }
    }

    /// Whether it lets no lookup through.
    pub fn is_open(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => false,
            State::Open { until } => now < until,
            State::HalfOpen => true,
        }
    }

    /// A lookup that it lets through begins.
    pub fn asks(&mut self) {
        if let State::Open { .. } = self.state {
            // Its time is over: this one tries the room server.
            self.state = State::HalfOpen;
        }
    }

    /// It hears of an answer, or that none came.
    pub fn heard(&mut self, answered: bool, now: Instant) {
        let opens = match (self.state, answered) {
            (State::Closed { .. }, true) => {
                self.state = State::Closed { failures: 0 };
                return;
            }
            (_, true) => {
                log::info!("room server: it answers again");
                self.state = State::Closed { failures: 0 };
                self.open.set(0);
                return;
            }
            (State::Closed { failures }, false) => {
                let failures = failures.saturating_add(1);
                self.state = State::Closed { failures };
                self.most > 0 && failures >= self.most
            }
            (State::HalfOpen, false) => true,
            // Asked before it opened.
            (State::Open { .. }, false) => false,
        };
        if opens {
            log::warn!("room server: left alone for {:?}", self.open_for);
            self.state = State::Open {
                until: now + self.open_for,
            };
            self.open.set(1);
            self.opened.inc();
        }
    }

    /// Shows that it is closed when nobody has asked for long enough. To be called every [`Refusals::LOOK`].
    pub fn look(&self, now: Instant) {
        if let State::Open { until } = self.state
            && now.saturating_duration_since(until) >= Refusals::FORGOTTEN
        {
            self.open.set(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN_FOR: Duration = Duration::from_secs(600);

    /// One that opened at that time.
    fn open(now: Instant) -> (Breaker, Gauge) {
        let metrics = Metrics::default();
        let mut breaker = Breaker::new(1, OPEN_FOR, &metrics);
        breaker.heard(false, now);
        (breaker, metrics.room_breaker_open.clone())
    }

    #[test]
    fn where_nobody_asks_any_more_it_shows_no_trouble_after_a_while_and_lets_one_lookup_try_all_the_same() {
        let began = Instant::now();
        let (mut breaker, shown) = open(began);
        let until = began + OPEN_FOR;
        for now in [until, until + Refusals::FORGOTTEN - Refusals::LOOK] {
            breaker.look(now);
            assert_eq!(shown.get(), 1);
        }
        let now = until + Refusals::FORGOTTEN;
        breaker.look(now);
        assert_eq!((shown.get(), breaker.is_open(now)), (0, false));
        breaker.asks();
        assert!(breaker.is_open(now), "for others");
        breaker.heard(false, now);
        assert_eq!((shown.get(), breaker.is_open(now)), (1, true));
    }

    #[test]
    fn while_it_is_tried_again_and_again_in_vain_it_stays_open() {
        let mut now = Instant::now();
        let (mut breaker, shown) = open(now);
        for _ in 0..3 {
            now += OPEN_FOR + Refusals::FORGOTTEN - Refusals::LOOK;
            breaker.look(now);
            breaker.asks();
            breaker.look(now + Refusals::FORGOTTEN * 2);
            assert_eq!(shown.get(), 1);
            breaker.heard(false, now);
            breaker.look(now + Refusals::FORGOTTEN);
            assert_eq!(shown.get(), 1);
        }
        breaker.asks();
        breaker.heard(true, now);
        assert_eq!((shown.get(), breaker.is_open(now)), (0, false));
    }
}
