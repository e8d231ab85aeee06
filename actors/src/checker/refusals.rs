//! How often in a row the room server answered that it does not say, to somebody who is there.
//!
//! `/readyz` and an alert go by it: a room server that says of nobody whether they are live is as good as none. A verdict, whoever's,
//! ends the row. So does time: where nobody was refused anything for a while, the last rooms of the day must not look like a room server
//! that fails. Whoever is refused by an answer from before (`room.not_live_ttl_ms`) is refused, too, though nobody was asked anew.

use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

/// The row, as `chat_room_refusals` shows it.
#[derive(Debug)]
pub(super) struct Refusals {
    in_a_row: Gauge,
    last: Option<Instant>,
}

impl Refusals {
    /// So long after the last one they are forgotten. So is an open breaker, so long after the room server might have been asked again and
    /// was not.
    pub const FORGOTTEN: Duration = Duration::from_secs(120);

    /// [`Self::look`] is to be called so often.
    pub const LOOK: Duration = Duration::from_secs(20);

    /// None yet. `in_a_row` shows how many there were.
    pub fn new(in_a_row: Gauge) -> Self {
        in_a_row.set(0);
        Self { in_a_row, last: None }
    }

    /// The room server gave a verdict.
    pub fn says(&mut self) {
        self.forget();
    }

    /// It was asked for somebody, and gave none.
    pub fn refuses(&mut self, now: Instant) {
        self.last = Some(now);
        self.in_a_row.inc();
    }

    /// Somebody was refused by an answer from before, which was counted.
    pub fn refuses_again(&mut self, now: Instant) {
        // Where there was a verdict on another since, there is no row.
        self.last = self.last.map(|_| now);
    }

    /// Forgets them when their time is over.
    pub fn look(&mut self, now: Instant) {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        if since.is_some_and(|since| since >= Self::FORGOTTEN) {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.last = None;
        self.in_a_row.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_counted_until_there_is_a_verdict_and_forgotten_when_nobody_was_refused_for_a_while() {
        let (gauge, began) = (Gauge::default(), Instant::now());
        gauge.set(7);
        let mut refusals = Refusals::new(gauge.clone());
        assert_eq!(gauge.get(), 0, "those of the checker before are not of this one");
        for n in 1..=3 {
            refusals.refuses(began + Refusals::FORGOTTEN * n);
        }
        refusals.look(began + Refusals::FORGOTTEN * 3 + Refusals::LOOK);
        assert_eq!(gauge.get(), 3);
        refusals.look(began + Refusals::FORGOTTEN * 4);
        assert_eq!(gauge.get(), 0);
        refusals.refuses(began + Refusals::FORGOTTEN * 5);
        assert_eq!(gauge.get(), 1);
        refusals.says();
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn they_are_not_forgotten_while_somebody_is_refused_by_an_answer_from_before() {
        let (gauge, began) = (Gauge::default(), Instant::now());
        let mut refusals = Refusals::new(gauge.clone());
        refusals.refuses(began);
        for n in 1..=4 {
            refusals.refuses_again(began + Refusals::FORGOTTEN / 2 * n);
            refusals.look(began + Refusals::FORGOTTEN / 2 * n);
            assert_eq!(gauge.get(), 1, "{n}");
        }
        refusals.look(began + Refusals::FORGOTTEN * 3);
        assert_eq!(gauge.get(), 0);
        // It begins no row.
        refusals.refuses_again(began + Refusals::FORGOTTEN * 3);
        assert_eq!((gauge.get(), refusals.last), (0, None));
    }
}
