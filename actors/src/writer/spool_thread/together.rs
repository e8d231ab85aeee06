//! What is kept of several rooms in one transaction.
//!
//! A page that is damaged has that fail for all of them, and must not cost the others: they are halved until those that fail are alone. A
//! spool that takes nothing now, as while another process writes to it, is not tried with each of them: it may hang for seconds every time.

use std::time::Instant;

use super::{Run, broadcasts::TRIES};
use crate::seams::{SpoolError, SpoolFault};

impl Run {
    /// Has `keep` done with all of these, or with those with which it can be; returns what that gave for each, in their order, `None` where
    /// it failed or was not come to, and why it failed last.
    pub(super) fn keep_together<T, K>(
        &mut self,
        all: &[T],
        keep: impl Fn(&mut Self, &[T]) -> Result<Vec<K>, SpoolError>,
    ) -> (Vec<Option<K>>, Option<SpoolError>) {
        let (most, within) = TRIES;
        let (mut kept, mut parts) = (Vec::with_capacity(all.len()), vec![all]);
        let (mut failed, mut since) = (None, None);
        for _ in 0..most {
            if since.is_some_and(|since: Instant| since.elapsed() >= within) {
                break;
            }
            let Some(part) = parts.pop() else {
                break;
            };
            let error = match keep(self, part) {
                Ok(some) => {
                    kept.extend(some.into_iter().map(Some));
                    continue;
                }
                Err(error) => error,
            };
            match part {
                [_] => kept.push(None),
                _ => {
                    // The first half is next.
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
            let goes_on = parts.is_empty()
                || (error.fault == SpoolFault::Unsure && (since.is_some() || self.spool.probe().is_ok()));
            failed = Some(error);
            if !goes_on {
                break;
            }
            since.get_or_insert_with(Instant::now);
        }
        kept.resize_with(all.len(), || None);
        // It may have failed for a moment only.
        let failed = failed.filter(|_| kept.iter().any(Option::is_none));
        (kept, failed)
    }
}
