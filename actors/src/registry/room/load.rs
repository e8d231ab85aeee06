//! How much of a room's events waits, for the writer and for a session: what admission goes by.

use crate::{
    ring::{Entry, Ring},
    types::Seq,
};

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Numbered and not yet answered by the writer.
    in_flight: usize,
    /// The same in bytes.
    in_flight_bytes: usize,
    /// Everything up to here waits for nobody: it was sent, or the log has it for whoever comes.
    settled: Seq,
    /// Bytes of committed events that wait.
    held_bytes: usize,
}

impl Load {
    /// Numbered and not yet answered by the writer.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Everything up to here waits for nobody.
    pub fn settled(&self) -> Seq {
        self.settled
    }

    /// Bytes of numbered events that wait for a session.
    pub fn waiting_bytes(&self) -> usize {
        self.in_flight_bytes + self.held_bytes
    }

    /// One more event was numbered.
    pub fn number(&mut self, bytes: usize) {
        self.in_flight += 1;
        self.in_flight_bytes += bytes;
    }

    /// One numbered event was committed.
    pub fn publish(&mut self, entry: &Entry) {
        self.leave_flight(entry.bytes());
        if entry.event.seq > self.settled {
            self.held_bytes += entry.held_bytes();
        }
    }

    /// One numbered event is on its way no more.
    pub fn leave_flight(&mut self, bytes: usize) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
    }

    /// A committed event is about to be deleted.
    pub fn delete(&mut self, entry: &Entry) {
        if entry.event.seq > self.settled {
            self.held_bytes = self.held_bytes.saturating_sub(entry.held_bytes());
        }
    }

    /// The next committed event that waits was sent, or passed over.
    pub fn take(&mut self, entry: &Entry) {
        if entry.event.seq > self.settled {
            self.settled = entry.event.seq;
            self.held_bytes = self.held_bytes.saturating_sub(entry.held_bytes());
        }
    }

    /// What waits is counted anew from here on.
    pub fn settle(&mut self, through: Seq, ring: &Ring) {
        self.settled = through;
        self.held_bytes = ring.after(through).map(|entry| entry.held_bytes()).sum();
    }

    /// What is behind `committed` is taken back. None of it is among what is held.
    pub fn rewind(&mut self, committed: Seq) {
        self.settled = self.settled.min(committed);
    }
}
