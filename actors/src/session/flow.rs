//! The hand-over point between the registry, which owns a room's cursor, and a session, which owns a socket.
//!
//! A session's actor does not run while its peer does not read, so a takeover cannot ask it how far it got. Both
//! sides therefore meet in a [`Flow`]: the session takes events through it one delivery at a time, and whoever ends
//! it learns exactly how many were taken. What was taken is never sent again to a legacy session (rule 11).

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::types::Seq;

/// One session's reading of one room, from attach to detach.
#[derive(Debug)]
pub struct Flow {
    state: Mutex<State>,
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
}
