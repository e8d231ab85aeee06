//! What is kept of several rooms in one transaction.
//!
//! A page that is damaged has that fail for all of them, and must not cost the others: they are halved until those that fail are alone. A
//! spool that takes nothing now, as while another process writes to it, is not tried with each of them, nor with what is queued behind
//! them: it may hang for seconds every time.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{KEPT_AT_ONCE, Run};
use crate::seams::{SpoolError, SpoolFault};

/// So many transactions at most, and for so long, to tell those that can be kept from those that cannot: commits wait for them. All
/// parts of a whole transaction are fewer.
const TRIES: (usize, Duration) = (2 * KEPT_AT_ONCE, Duration::from_millis(500));

impl Run {
    /// Has `keep` done with all of these, or with those with which it can be; returns what that gave for each, in their order, `None` where
    /// it failed or was not come to, and why it failed last.
    pub(super) fn keep_together<T, K>(
        &mut self,
        all: &[T],
        keep: impl Fn(&mut Self, &[T]) -> Result<Vec<K>, SpoolError>,
    ) -> (Vec<Option<K>>, Option<SpoolError>) {
        let mut kept: Vec<Option<K>> = all.iter().map(|_| None).collect();
        if self.health.takes_nothing() {
            let why = "it was tried a moment ago, and took nothing".into();
            let fault = SpoolFault::NotBegun;
            return (kept, Some(SpoolError { why, fault }));
        }
        let (most, within) = TRIES;
        let (mut parts, mut failed, mut since) = (VecDeque::new(), None, None);
        parts.push_back(0..all.len());
        for _ in 0..most {
            if since.is_some_and(|since: Instant| since.elapsed() >= within) {
                break;
            }
            // The greater parts are first: one that can be kept does not wait for the last of those that cannot.
            let Some(part) = parts.pop_front() else {
                break;
            };
            let error = match keep(self, &all[part.clone()]) {
                Ok(some) => {
                    for (kept, one) in kept[part].iter_mut().zip(some) {
                        *kept = Some(one);
                    }
                    continue;
                }
                Err(error) => error,
            };
            self.health.failed_by(error.fault);
            if part.len() > 1 {
                let middle = part.start + part.len() / 2;
                parts.extend([part.start..middle, middle..part.end]);
            }
            let goes_on = parts.is_empty()
                || (error.fault == SpoolFault::Unsure && (since.is_some() || self.takes_other_things()));
            failed = Some(error);
            if !goes_on {
                break;
            }
            since.get_or_insert_with(Instant::now);
        }
        // It may have failed for a moment only.
        let failed = failed.filter(|_| kept.iter().any(Option::is_none));
        (kept, failed)
    }

    fn takes_other_things(&mut self) -> bool {
        let probed = self.spool.probe();
        if let Err(error) = &probed {
            self.health.failed_by(error.fault);
        }
        probed.is_ok()
    }
}
