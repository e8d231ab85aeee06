//! The hand-over point between the registry, which owns a room's cursor, and a session, which owns a socket.
//!
//! A session's actor does not run while its peer does not read, so a takeover cannot ask it how far it got. Both
//! sides therefore meet in a [`Flow`]: the session takes events through it one batch at a time, and whoever ends
//! it learns exactly how many were taken. What was taken is never sent again to a legacy session (rule 11).
//!
//! A socket that does not take all of them at once is given the rest later, and until then that rest is given back: who ends the flow
//! meanwhile has it for the next session, and the session does not write it any more.
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
    moved: AtomicBool,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    taken: Option<Seq>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Events may be taken.
    Open,
    /// The session takes no more; what it took it may still be writing.
    Closed,
    /// The registry knows what was taken, and goes by that.
    Ended,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                stage: Stage::Open,
                taken: None,
            }),
            flushed: AtomicU64::new(0),
            awaited: AtomicBool::new(false),
            moved: AtomicBool::new(false),
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
        let open = state.stage == Stage::Open;
        if open {
            state.taken = Some(through);
        }
        open
    }

    /// Nothing behind `through` was written of what was taken, and nothing is before [`Self::take_again`]. `false` means that
    /// the flow has ended as if it were.
    pub fn give_back(&self, through: Option<Seq>) -> bool {
        self.set_taken(through)
    }

    /// Takes again what was given back. `false` means that the flow has ended meanwhile, and what was given back is not to be written.
    pub fn take_again(&self, through: Seq) -> bool {
        self.set_taken(Some(through))
    }

    fn set_taken(&self, through: Option<Seq>) -> bool {
        let mut state = self.state();
        let ours = state.stage != Stage::Ended;
        if ours {
            state.taken = through;
        }
        ours
    }

    /// The socket took bytes, though perhaps of no whole event.
    pub fn progress(&self) {
        self.moved.store(true, SeqCst);
    }

    /// Whether it did since this was asked last.
    pub fn take_progress(&self) -> bool {
        self.moved.load(SeqCst) && self.moved.swap(false, SeqCst)
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

    /// The session takes no more.
    pub fn close(&self) {
        let mut state = self.state();
        if state.stage == Stage::Open {
            state.stage = Stage::Closed;
        }
    }

    /// Ends the flow; returns the last event that was taken in its whole life.
    pub fn end(&self) -> Option<Seq> {
        let mut state = self.state();
        state.stage = Stage::Ended;
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
    fn what_was_given_back_is_written_only_if_the_flow_has_not_ended_meanwhile() {
        let flow = Flow::default();
        assert!(flow.take(Seq(9)) && flow.give_back(Some(Seq(4))));
        assert!(flow.take_again(Seq(9)) && flow.give_back(None));
        flow.close();
        assert!(!flow.take(Seq(10)));
        assert!(flow.take_again(Seq(9)) && flow.give_back(Some(Seq(6))));
        assert_eq!(flow.end(), Some(Seq(6)));
        assert!(!flow.take_again(Seq(9)));
        assert_eq!(flow.end(), Some(Seq(6)));
    }

    #[test]
    fn an_end_that_counted_what_was_taken_takes_nothing_back() {
        let flow = Flow::default();
        assert!(flow.take(Seq(9)));
        assert_eq!(flow.end(), Some(Seq(9)));
        assert!(!flow.give_back(Some(Seq(4))));
        assert_eq!(flow.end(), Some(Seq(9)));
    }

    #[test]
    fn progress_is_seen_once() {
        let flow = Flow::default();
        assert!(!flow.take_progress());
        flow.progress();
        assert!(flow.take_progress() && !flow.take_progress());
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
