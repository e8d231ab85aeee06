//! When a room's place goes to the disk, and whether what is there is exact.

use std::time::{Duration, Instant};

/// What of a room's place is on disk, and when it is saved anew.
#[derive(Debug, Default)]
pub(super) struct Saving {
    /// It is another than what was last saved.
    moved: bool,
    /// When it was last saved, or a little later.
    saved_at: Option<Instant>,
    /// What is on disk is exact: a legacy session may go on from it, and must not read before it no longer is.
    pub exact_on_disk: bool,
    /// That it no longer is is on its way there.
    marking: bool,
    /// An exact place has been sent after that.
    exact_behind_mark: bool,
}

impl Saving {
    /// The place is another one now.
    pub fn moves(&mut self) {
        self.moved = true;
    }

    /// If it moved it is due, whenever it was saved last.
    pub fn hurry(&mut self) {
        if self.moved {
            self.saved_at = None;
        }
    }

    /// Whether it is to be saved: not sooner than `checkpoint` after the last time, and after `anew` also where it did not move.
    pub fn due(&self, now: Instant, checkpoint: Duration, anew: Option<Duration>) -> bool {
        match self.saved_at.map(|at| now.saturating_duration_since(at)) {
            None => self.moved,
            Some(ago) if ago < checkpoint => false,
            Some(ago) => self.moved || anew.is_some_and(|anew| ago >= anew),
        }
    }

    /// It is on its way to the disk; `at` is when it was saved, as [`Self::due`] is to see it.
    pub fn saves(&mut self, exact: bool, at: Instant) {
        self.saved_at = Some(at);
        self.moved = false;
        self.exact_on_disk |= exact;
        self.exact_behind_mark |= exact && self.marking;
    }

    /// What is on disk must not be exact any more. Returns whether that is to be sent there: it may be on its way.
    #[must_use]
    pub fn mark(&mut self) -> bool {
        !std::mem::replace(&mut self.marking, true)
    }

    /// The mark has come there, or it has not.
    pub fn marked(&mut self, kept: bool) {
        self.marking = false;
        let behind = std::mem::take(&mut self.exact_behind_mark);
        self.exact_on_disk &= !kept || behind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact() -> Saving {
        Saving {
            exact_on_disk: true,
            ..Saving::default()
        }
    }

    #[test]
    fn rule_11_a_place_is_marked_once_and_is_not_exact_when_its_mark_is_on_disk() {
        let mut saving = exact();
        assert!(saving.mark());
        assert!(!saving.mark(), "it is on its way");
        saving.marked(false);
        assert!(saving.exact_on_disk && saving.mark(), "it never came there");
        saving.marked(true);
        assert!(!saving.exact_on_disk);
    }

    #[test]
    fn rule_11_an_exact_place_that_is_saved_behind_a_mark_is_what_is_on_disk_then() {
        let (mut saving, now) = (exact(), Instant::now());
        assert!(saving.mark());
        saving.saves(false, now);
        saving.saves(true, now);
        saving.marked(true);
        assert!(saving.exact_on_disk && saving.mark());
        saving.marked(true);
        assert!(!saving.exact_on_disk);
    }

    #[test]
    fn a_place_is_saved_when_it_moved_but_not_too_often_and_now_and_then_while_a_session_is_there() {
        let (mut saving, now) = (Saving::default(), Instant::now());
        let [checkpoint, later, anew] = [10, 20, 30].map(Duration::from_secs);
        let due = |saving: &Saving, after, anew| saving.due(now + after, checkpoint, anew);
        assert!(!due(&saving, anew, Some(anew)), "there is nothing to save");
        saving.moves();
        assert!(due(&saving, Duration::ZERO, None));
        saving.saves(true, now);
        assert!(!due(&saving, later, Some(anew)) && !due(&saving, anew, None));
        assert!(due(&saving, anew, Some(anew)));
        saving.moves();
        assert!(!due(&saving, checkpoint / 2, Some(anew)) && due(&saving, later, None));
        saving.hurry();
        assert!(due(&saving, checkpoint / 2, None));
    }
}
