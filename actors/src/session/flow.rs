//! The hand-over point between the registry, which owns a room's cursor, and a session, which owns a socket.
//!
//! A session's actor does not run while its peer does not read, so a takeover cannot ask it how far it got. Both
//! sides therefore meet in a [`Flow`]: the session takes events through it one delivery at a time, and whoever ends
//! it learns exactly how many were taken. What was taken is never sent again to a legacy session (rule 11).
//!
//! What the socket took is counted here too (legacy, whose credit it is). The registry looks at it whenever it has to do with
//! the room anyway, and asks to be told only when it waits for it, so that most deliveries cost it no message.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use crate::types::Seq;

/// One session's reading of one room, from attach to detach.
#[derive(Debug)]
pub struct Flow {
    state: Mutex<State>,
    flushed: AtomicU64,
    awaited: AtomicBool,
}

#[derive(Debug)]
struct State {
    open: bool,
    taken: Option<Seq>,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                open: true,
                taken: None,
            }),
            flushed: AtomicU64::new(0),
            awaited: AtomicBool::new(false),
        }
    }
}

impl Flow {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes everything up to `through` for the socket. `false` means that the flow has ended and nothing may be written.
    pub fn take(&self, through: Seq) -> bool {
        let mut state = self.state();
        if state.open {
            state.taken = Some(through);
        }
        state.open
    }

    /// The socket took so many more events. Returns whether the registry waits to be told.
    pub fn flush(&self, events: u64) -> bool {
        self.flushed.fetch_add(events, SeqCst);
        self.awaited.swap(false, SeqCst)
    }

    /// How many events the socket took since this was asked last.
    pub fn take_flushed(&self) -> u64 {
        if self.flushed.load(SeqCst) == 0 {
            return 0;
        }
        self.flushed.swap(0, SeqCst)
    }

    /// From now on the registry wants to be told of what the socket takes, once. Look again afterwards: it may have been before.
    pub fn await_flush(&self) {
        self.awaited.store(true, SeqCst);
    }

    /// Ends the flow; returns the last event that was taken in its whole life.
    pub fn end(&self) -> Option<Seq> {
        let mut state = self.state();
        state.open = false;
        state.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_after_the_end_and_the_end_knows_what_was_taken() {
        let flow = Flow::default();
        assert!(flow.take(Seq(2)));
        assert!(flow.take(Seq(5)));
        assert_eq!(flow.end(), Some(Seq(5)));
        assert!(!flow.take(Seq(6)));
        assert_eq!(flow.end(), Some(Seq(5)));
    }

    #[test]
    fn who_waits_is_told_once_and_everything_is_counted_once() {
        let flow = Flow::default();
        assert!(!flow.flush(2) && !flow.flush(1));
        flow.await_flush();
        assert_eq!(flow.take_flushed(), 3);
        assert!(flow.flush(4) && !flow.flush(0));
        assert_eq!((flow.take_flushed(), flow.take_flushed()), (4, 0));
    }
}
