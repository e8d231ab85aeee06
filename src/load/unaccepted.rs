//! What was not accepted and came all the same: its answer was lost, or told something else. It must not stand in for a message
//! that was accepted and did not come.

use super::seen::Seen;

/// So many are followed at once, of 16 bytes each.
const MOST: usize = 1 << 20;

/// Follows what was not accepted. What was costs no more than a note of what its connection waits for.
#[derive(Debug)]
pub(super) struct Unaccepted {
    rooms: u64,
    /// The turn whose answer each connection waits for.
    asked: Vec<Option<u64>>,
    /// Connections and turns of what has not come, so far.
    absent: Vec<(u64, u64)>,
    /// How many came.
    came: u64,
    /// How many were too many to be followed.
    unfollowed: u64,
    /// How many messages had come in all when it was last looked, if nothing is to be looked for since.
    looked_at: u64,
}

impl Unaccepted {
    /// Of a plan in which so many connections send to so many rooms in turn.
    pub fn new(rooms: u64, senders: u64) -> Self {
        Self {
            rooms: rooms.max(1),
            asked: vec![None; usize::try_from(senders).unwrap_or(0)],
            absent: Vec::new(),
            came: 0,
            unfollowed: 0,
            looked_at: 0,
        }
    }

    fn of(&mut self, sender: u64) -> Option<&mut Option<u64>> {
        self.asked.get_mut(usize::try_from(sender).ok()?)
    }

    /// A connection sent the message of this turn.
    pub fn sent(&mut self, sender: u64, turn: u64) {
        if let Some(asked) = self.of(sender) {
            *asked = Some(turn);
        }
    }

    /// It was accepted.
    pub fn accepted(&mut self, sender: u64) {
        if let Some(asked) = self.of(sender) {
            *asked = None;
        }
    }

    /// It was not, or nobody knows.
    pub fn not_accepted(&mut self, sender: u64) {
        match self.of(sender).and_then(Option::take) {
            Some(turn) if self.absent.len() < MOST => {
                self.absent.push((sender, turn));
                // It may have come already.
                self.looked_at = 0;
            }
            Some(_) => self.unfollowed += 1,
            None => {}
        }
    }

    /// Whatever has no answer yet gets none.
    pub fn unanswered(&mut self) {
        for sender in 0..self.asked.len() as u64 {
            self.not_accepted(sender);
        }
    }

    /// How many came, by what the presenter of each room has seen: `delivered` messages in all.
    pub fn came(&mut self, seen: &[Seen], delivered: u64) -> u64 {
        // Nothing comes without being counted.
        if std::mem::replace(&mut self.looked_at, delivered) != delivered {
            let (rooms, senders) = (self.rooms, self.asked.len() as u64);
            let before = self.absent.len();
            self.absent.retain(|(sender, turn)| {
                let room = usize::try_from((turn * senders + sender) % rooms).ok();
                let seen = room.and_then(|room| seen.get(room));
                !seen.is_some_and(|seen| seen.has(*sender, *turn))
            });
            self.came += (before - self.absent.len()) as u64;
        }
        self.came
    }

    /// How many are not followed, so that it is not known whether they came.
    pub fn unfollowed(&self) -> u64 {
        self.unfollowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_accepted_and_came_before_or_after_its_answer_is_told_from_what_did_not() {
        // Two rooms, two connections: each sends to a room of its own.
        let mut seen = vec![Seen::new(2, 2), Seen::new(2, 2)];
        let mut unaccepted = Unaccepted::new(2, 2);
        for turn in 0..4 {
            unaccepted.sent(0, turn);
            unaccepted.sent(1, turn);
            match turn {
                0 => {
                    seen[0].take(0, 0);
                    unaccepted.not_accepted(0);
                    unaccepted.accepted(1);
                }
                1 => {
                    unaccepted.not_accepted(0);
                    seen[1].take(1, 1);
                    unaccepted.accepted(1);
                }
                2 => {
                    unaccepted.accepted(0);
                    unaccepted.not_accepted(1);
                }
                _ => {}
            }
        }
        assert_eq!(unaccepted.came(&seen, 2), 1);
        seen[0].take(0, 1);
        seen[0].take(0, 1);
        // What is not answered at the end.
        unaccepted.unanswered();
        seen[1].take(1, 3);
        assert_eq!(unaccepted.came(&seen, 5), 3);
        assert_eq!(unaccepted.came(&seen, 6), 3, "once each");
        assert_eq!(unaccepted.unfollowed(), 0);
    }
}
