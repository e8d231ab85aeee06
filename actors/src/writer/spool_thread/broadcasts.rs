//! Broadcasts in the spool: kept on every change, whatever becomes of the first attempt.

use super::*;

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
