//! Broadcasts in the spool: kept on every change, whatever becomes of the first attempt.

use super::*;

/// More versions than a broadcast has in one spool: it has one each time that it is kept.
const TAKEN_UP: u64 = 1 << 32;

impl Run {
    /// Keeps broadcasts; those that cannot be kept now wait for the next, or for a spool that works again.
    pub(super) fn keep_broadcasts(&mut self, broadcasts: Vec<Broadcast>) {
        let flush = broadcasts.is_empty();
        self.unkept
            .extend(broadcasts.into_iter().map(|broadcast| (broadcast.id, broadcast)));
        // All of them are tried at once, so not for each that is added while nothing can be kept.
        let lately = self.unkept_since.is_some_and(|at| at.elapsed() < KEEP_AGAIN);
        if self.unkept.is_empty() || (lately && !flush) {
            return;
        }
        let all: Vec<Broadcast> = self.unkept.values().cloned().collect();
        match self.spool.keep_broadcasts(&all) {
            Ok(store_lacks_one) => {
                self.unkept.clear();
                self.unkept_since = None;
                // Most often one was seen to be live again, and the drain's question would be in front of commits for nothing.
                if store_lacks_one {
                    self.drain.push(DrainMsg::Broadcasts);
                }
            }
            Err(error) => {
                self.unkept_since = Some(Instant::now());
                log::warn!("spool: {} broadcasts are not kept yet: {error}", all.len());
            }
        }
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
        self.registry.mailbox.push(RegistryMsg::Broadcasts { open });
    }
}
