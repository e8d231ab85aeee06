//! Broadcasts in the spool: kept on every change, whatever becomes of the first attempt.

use super::*;
use crate::broadcast::TAKEN_UP;

impl Run {
    /// Keeps broadcasts; those that cannot be kept now are tried again, by the clock and by whatever comes.
    pub(super) fn keep_broadcasts(&mut self, broadcasts: Vec<Broadcast>) {
        let flush = broadcasts.is_empty();
        self.unkept
            .extend(broadcasts.into_iter().map(|broadcast| (broadcast.id, broadcast)));
        // All of them are tried at once, so not for each that is added while nothing can be kept.
        if self.unkept.is_empty() || !(flush || self.keep_is_due(false)) {
            return;
        }
        let all: Vec<Broadcast> = self.unkept.values().cloned().collect();
        // A panic on the way counts, too.
        let times = self.kept_in_vain.map_or(1, |(times, _)| times.saturating_add(1));
        self.kept_in_vain = Some((times, Instant::now()));
        match self.spool.keep_broadcasts(&all) {
            Ok(store_lacks_one) => {
                self.unkept.clear();
                self.kept_in_vain = None;
                // Most often one was seen to be live again, and the drain's question would be in front of commits for nothing.
                if store_lacks_one {
                    self.drain.push(DrainMsg::Broadcasts);
                }
            }
            Err(error) => {
                if let Some(more) = self.failing.broadcasts.due(Instant::now()) {
                    log::warn!("spool: {} broadcasts are not kept yet: {error}{more}", all.len());
                }
            }
        }
    }

    /// Tries again what could not be kept, when that is due. `behind_commit`: the file has just taken one.
    pub(super) fn keep_again(&mut self, behind_commit: bool) {
        // A file that takes nothing is probed, and they are kept behind that.
        if !self.unkept.is_empty() && self.handle.writable() && self.keep_is_due(behind_commit) {
            self.keep_broadcasts(Vec::new());
        }
    }

    /// What failed once may have been for a moment. What failed again must not cost the commits: a page may be damaged.
    fn keep_is_due(&self, behind_commit: bool) -> bool {
        self.kept_in_vain.is_none_or(|(times, at)| {
            let pause = match times {
                1 if behind_commit => Duration::ZERO,
                1 => self.settings.probe_every.min(KEEP_AGAIN),
                _ => KEEP_AGAIN,
            };
            at.elapsed() >= pause
        })
    }

    /// Keeps broadcasts that the store has open and that are not here: this spool is younger than they are, or was damaged. The registry
    /// goes on with them, or ends them.
    pub(super) fn adopt_broadcasts(&mut self, mut open: Vec<Broadcast>) -> Result<(), SpoolError> {
        for broadcast in &mut open {
            // Whatever a spool that was lost has of it is older, and must not take its place if it turns up.
            broadcast.version += TAKEN_UP;
        }
        let new = match self.spool.adopt_broadcasts(&open) {
            Ok(new) => new,
            Err(error) => {
                // An attempt that failed behind its commit has taken them up: the next one finds none of them new.
                let perhaps = open.into_iter().map(|broadcast| (broadcast.id, broadcast));
                self.perhaps_adopted.extend(perhaps);
                return Err(error);
            }
        };
        let mut open = std::mem::take(&mut self.perhaps_adopted);
        open.extend(new.into_iter().map(|broadcast| (broadcast.id, broadcast)));
        if !open.is_empty() {
            log::info!(
                "spool: {} open broadcasts are known from the store alone: they go on, or end",
                open.len()
            );
            // The oldest first: each ends where the next one of its room begins.
            let open = open.into_values().collect();
            self.registry.mailbox.push(RegistryMsg::Adopted { open });
        }
        Ok(())
    }

    /// The same of a room that asks the store for its last seq. What was asked for longer ago than another answer came is told of a
    /// broadcast that may have ended since.
    pub(super) fn adopt_of_room(&mut self, presenter: PresenterIdx, open: Option<Broadcast>) -> Result<(), SpoolError> {
        match open {
            Some(open) if self.spool.last_seq(presenter)? == LastSeq::AskStore => self.adopt_broadcasts(vec![open]),
            _ => Ok(()),
        }
    }

    /// Tells the registry which are open.
    pub(super) fn tell_open_broadcasts(&mut self) {
        self.keep_broadcasts(Vec::new());
        let mut open = self.spool.open_broadcasts().map_err(|error| {
            log::error!("spool: the open broadcasts cannot be read: {error}");
        });
        if !self.unkept.is_empty() {
            // What the file says may be older than what was told.
            open = Err(());
        }
        if open.is_ok() {
            // It tells of those that are here after all; when the next ones are taken up they may have ended.
            self.perhaps_adopted.clear();
        }
        self.registry.mailbox.push(RegistryMsg::Broadcasts { open });
    }
}
