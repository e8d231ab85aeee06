//! What could not be written, or is not known to have been: it is tried again, by the clock and by whatever comes.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{Lost, Run, commit_one};
use crate::{
    seams::{Pos, SpoolError},
    types::Event,
};

/// Answered from memory and not written yet.
#[derive(Default)]
pub(super) struct Unwritten {
    events: Vec<Arc<Event>>,
    /// How many of them, the first ones, were in a commit whose outcome is not known.
    tried: usize,
}

impl Unwritten {
    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The last event of that commit.
    fn tried_last(&self) -> Option<&Arc<Event>> {
        self.events.get(self.tried.checked_sub(1)?)
    }

    /// The outcome is known: whether the file has them. Returns those that it has, which are no longer here.
    fn settle(&mut self, found: bool) -> Vec<Arc<Event>> {
        let tried = std::mem::take(&mut self.tried);
        if !found {
            return Vec::new();
        }
        let rest = self.events.split_off(tried);
        std::mem::replace(&mut self.events, rest)
    }
}

impl Run {
    /// `log.durability = "memory"`: the senders are answered already, so what does not go in now is kept and tried again.
    /// Meanwhile nothing more is accepted, which bounds it by the writer's permits.
    pub(super) fn write_sooner_or_later(&mut self, events: Vec<Arc<Event>>) {
        self.unwritten.events.extend(events);
        if !self.tried_is_settled() || self.unwritten.is_empty() {
            return;
        }
        // A panic on the way leaves it unknown, too.
        self.unwritten.tried = self.unwritten.len();
        let worked = self.handle.writable();
        self.spool.forget_keys(self.handle.keys_since_ms());
        let began = Instant::now();
        match commit_one(&mut *self.spool, &mut self.unsure, &self.unwritten.events, worked) {
            Ok(first) => {
                let events = self.unwritten.settle(true);
                self.count_commit(events.len(), began);
                self.takes_again();
                self.committed(first, events);
                self.show_size();
            }
            Err(lost) => {
                if lost == Lost::Surely {
                    self.unwritten.settle(false);
                }
                self.metrics.commit_failures.inc();
                self.handle.writable.store(false, Ordering::Release);
            }
        }
    }

    /// What an attempt of unknown outcome did write is not written again. `false`: it is still not known.
    fn tried_is_settled(&mut self) -> bool {
        let Some(last) = self.unwritten.tried_last() else {
            return true;
        };
        match self.spool.reopen_and_find(last) {
            Ok(found) => {
                self.unsure = false;
                let events = self.unwritten.settle(found.is_some());
                if let Some(last) = found {
                    if self.unwritten.is_empty() {
                        self.takes_again();
                    } else {
                        self.handle.writable.store(false, Ordering::Release);
                    }
                    self.committed(last - events.len() as Pos + 1, events);
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
