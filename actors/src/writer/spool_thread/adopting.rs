//! Broadcasts that others know: the store, whose open ones come into a spool that lacks them, and the registry, which is
//! told of those that are open.

use super::Run;
use crate::{
    broadcast::{Broadcast, TAKEN_UP},
    registry::RegistryMsg,
    seams::{LastSeq, SpoolError},
    writer::command::ToLearn,
};

impl Run {
    /// Keeps broadcasts that the store has open and that are not here: this spool is younger than they are, or was damaged. The registry
    /// goes on with them, or ends them.
    pub(super) fn take_in_broadcasts(&mut self, mut open: Vec<Broadcast>) -> Result<(), SpoolError> {
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

    /// The same of rooms that ask the store for their last seqs. What was asked for longer ago than another answer came is told of a
    /// broadcast that may have ended since.
    pub(super) fn adopt_of_rooms(&mut self, told: &[ToLearn]) -> Result<(), SpoolError> {
        let mut unknown = Vec::new();
        for ToLearn { presenter, open, .. } in told {
            if let Some(open) = open
                && self.spool.last_seq(*presenter)? == LastSeq::AskStore
            {
                unknown.push(open.clone());
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        self.take_in_broadcasts(unknown)
    }

    /// Tells the registry which are open.
    pub(super) fn tell_open_broadcasts(&mut self) {
        let (keeper, mut with) = self.keeping();
        keeper.flush(&mut with);
        let mut open = self.spool.open_broadcasts().map_err(|error| {
            log::error!("spool: the open broadcasts cannot be read: {error}");
        });
        if let Ok(open) = &mut open {
            self.keeper.merge_open(open);
            // It tells of those that are here after all; when the next ones are taken up they may have ended.
            self.perhaps_adopted.clear();
        }
        self.registry.mailbox.push(RegistryMsg::Broadcasts { open });
    }
}
