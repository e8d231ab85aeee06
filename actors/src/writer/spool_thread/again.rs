//! What could not be written, or is not known to have been: it is tried again, by the clock and by whatever comes.

use std::sync::{Arc, atomic::Ordering};

use super::{Lost, Run, commit_one};
use crate::{
    seams::{Pos, SpoolError},
    types::Event,
};

impl Run {
    /// `log.durability = "memory"`: the senders are answered already, so what does not go in now is kept and tried again.
    /// Meanwhile nothing more is accepted, which bounds it by the writer's permits.
    pub(super) fn write_sooner_or_later(&mut self, events: Vec<Arc<Event>>) {
        self.unwritten.extend(events);
        if !self.tried_is_settled() || self.unwritten.is_empty() {
            return;
        }
        // A panic on the way leaves it unknown, too.
        self.tried = self.unwritten.len();
        let worked = self.handle.writable();
        match commit_one(&mut *self.spool, &mut self.unsure, &self.unwritten, worked) {
            Ok(first) => {
                self.tried = 0;
                let events = std::mem::take(&mut self.unwritten);
                self.takes_again();
                self.committed(first, events);
                self.show_size();
            }
            Err(lost) => {
                if lost == Lost::Surely {
                    self.tried = 0;
                }
                self.metrics.commit_failures.inc();
                self.handle.writable.store(false, Ordering::Release);
            }
        }
    }

    /// What an attempt of unknown outcome did write is not written again. `false`: it is still not known.
    fn tried_is_settled(&mut self) -> bool {
        let tried = self.tried;
        let Some(last) = tried.checked_sub(1).and_then(|last| self.unwritten.get(last)) else {
            self.tried = 0;
            return true;
        };
        match self.spool.reopen_and_find(last) {
            Ok(found) => {
                self.tried = 0;
                self.unsure = false;
                if let Some(last) = found {
                    let events: Vec<_> = self.unwritten.drain(..tried).collect();
                    if self.unwritten.is_empty() {
                        self.takes_again();
                    } else {
                        self.handle.writable.store(false, Ordering::Release);
                    }
                    self.committed(last - tried as Pos + 1, events);
                    self.show_size();
                }
                true
            }
            Err(error) => {
                self.still_failing(&error);
                false
            }
        }
    }

    pub(super) fn try_again(&mut self) {
        self.health.is_probed();
        if self.unwritten.is_empty() {
            self.probe();
        } else {
            self.write_sooner_or_later(Vec::new());
        }
    }

    fn probe(&mut self) {
        match self.spool.probe().and_then(|()| self.tell_unknown()) {
            Ok(()) => {
                self.takes_again();
                let (keeper, mut with) = self.keeping();
                keeper.flush(&mut with);
            }
            Err(error) => {
                self.health.failed_by(error.fault);
                self.handle.writable.store(false, Ordering::Release);
                self.still_failing(&error);
            }
        }
    }

    /// What a room waits for could not be kept, though no commit failed: perhaps none comes, because the spool knows none of the rooms that
    /// are sent to. It counts as one.
    pub(super) fn failed_to_keep(&mut self) {
        self.metrics.commit_failures.inc();
        self.is_doubtful();
    }

    /// What is no event could not be kept. A probe tells whether the spool takes anything at all, and counts where it does not: what is
    /// appended would hang as long. A page that is damaged must not cost the other rooms.
    pub(super) fn is_doubtful(&mut self) {
        if self.handle.writable() && self.health.probe_due() {
            self.try_again();
        }
    }

    fn takes_again(&mut self) {
        self.health.works();
        if !self.handle.writable.swap(true, Ordering::AcqRel) {
            log::info!("spool: it takes events again");
        }
    }

    /// Senders are refused without a commit, which must not look as if it had ended: each try counts as a commit that failed.
    fn still_failing(&self, error: &SpoolError) {
        log::debug!("spool: still failing: {error}");
        self.metrics.commit_failures.inc();
    }

    /// What a commit of unknown outcome did write goes to the store now rather than behind the next commit: by their keys
    /// its senders may learn any time that it was accepted.
    fn tell_unknown(&mut self) -> Result<(), SpoolError> {
        while self.unsure {
            let head = self.handle.head.load(Ordering::Acquire);
            let mut rows = self.spool.read(head, self.config.commit_max)?;
            match rows.pop() {
                // The drain reads back what is before it.
                Some((last, event)) => self.committed(last, vec![event]),
                None => self.unsure = false,
            }
        }
        Ok(())
    }
}
