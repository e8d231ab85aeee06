//! Whether the spool takes anything at all, as far as the last tries tell.

use std::time::{Duration, Instant};

use crate::seams::SpoolFault;

/// What the last tries told.
pub(super) struct Health {
    /// For so long a spool that failed is left alone before it is tried again.
    retry_min: Duration,
    /// When a spool that failed was last tried again.
    probed_at: Instant,
    /// When what was to be kept, or a probe, last ended because nothing could be begun, if nothing has worked since.
    nothing_begun_at: Option<Instant>,
}

impl Health {
    pub fn new(retry_min: Duration) -> Self {
        Self {
            retry_min,
            probed_at: Instant::now(),
            nothing_begun_at: None,
        }
    }

    /// By the clock, not by silence: questions go on coming while appends are refused.
    pub fn probe_due(&self) -> bool {
        self.probed_at.elapsed() >= self.retry_min
    }

    /// It is tried again now.
    pub fn is_probed(&mut self) {
        self.probed_at = Instant::now();
    }

    /// Something went in.
    pub fn works(&mut self) {
        self.nothing_begun_at = None;
    }

    /// It has ended now, and failed so.
    pub fn failed_by(&mut self, fault: SpoolFault) {
        if fault == SpoolFault::NotBegun {
            self.nothing_begun_at = Some(Instant::now());
        }
    }

    /// Whether nothing could be begun a moment ago, and nothing has worked since. Where there is no room that is no reason: what is written
    /// in the place of something else may go in.
    pub fn takes_nothing(&self) -> bool {
        self.nothing_begun_at.is_some_and(|at| at.elapsed() < self.retry_min)
    }
}
