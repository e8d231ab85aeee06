//! A warning that may be due any number of times a second, and is told once in a while.
//!
//! What happens once a request or once a room would fill the log at the rate of those that come, whoever they are, and push
//! out what else it says. Metrics count all of them; a line says what it is, and how many there were without one.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Says when a line is due: at the first, and then at most one each [`Seldom::EVERY`].
#[derive(Debug, Default)]
pub struct Seldom {
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    left_out: u64,
}

/// How many had no line since the last one; shown behind a line, as nothing where there were none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut(pub u64);

impl Seldom {
    /// Often enough to see that it goes on, and no more than some MB a day.
    pub const EVERY: Duration = Duration::from_secs(10);

    /// Nothing was told yet.
    pub const fn new() -> Self {
        Self {
            told: Mutex::new(Told { at: None, left_out: 0 }),
        }
    }

    /// It happened at this time: `Some` where that is to be told.
    pub fn due(&self, now: Instant) -> Option<LeftOut> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told
            .at
            .is_some_and(|at| now.saturating_duration_since(at) < Self::EVERY)
        {
            told.left_out += 1;
            return None;
        }
        told.at = Some(now);
        Some(LeftOut(std::mem::take(&mut told.left_out)))
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " (and {count} more like it since the last such line)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_then_one_in_a_while_with_how_many_were_not() {
        let (seldom, began) = (Seldom::new(), Instant::now());
        let line = |ms| {
            let due = seldom.due(began + Duration::from_millis(ms));
            due.map(|left_out| format!("it fails{left_out}"))
        };
        assert_eq!(line(0).as_deref(), Some("it fails"));
        assert_eq!([1, 5000, 9999].map(line), [None, None, None]);
        let told = line(10_000);
        assert_eq!(
            told.as_deref(),
            Some("it fails (and 3 more like it since the last such line)")
        );
        assert_eq!(line(10_001), None);
        // Nothing happened for a while.
        assert_eq!(
            line(60_000).as_deref(),
            Some("it fails (and 1 more like it since the last such line)")
        );
        assert_eq!(line(70_000).as_deref(), Some("it fails"));
    }
}
