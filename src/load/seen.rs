//! What one presenter has seen, so that what comes twice and what comes late can be told apart.

use std::collections::{HashMap, HashSet};

/// What a message that came is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// Where it belongs.
    InOrder,
    /// After one that was sent later.
    Late,
    /// Again.
    Twice,
}

/// The messages of one room. A connection's messages to it have turns `step` apart; what is refused leaves a hole, and so does
/// what is late until it comes, so what is remembered grows with those alone.
#[derive(Debug)]
pub(super) struct Seen {
    step: u64,
    of_senders: HashMap<u64, Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    next: u64,
    holes: HashSet<u64>,
}

impl Seen {
    /// Nothing yet, of a plan in which so many connections send to so many rooms in turn.
    pub fn new(rooms: u64, senders: u64) -> Self {
        let (mut a, mut b) = (rooms.max(1), senders.max(1));
        while b > 0 {
            (a, b) = (b, a % b);
        }
        Self {
            step: rooms.max(1) / a,
            of_senders: HashMap::new(),
        }
    }

    /// Whether the message of a connection's `turn` came.
    pub fn has(&self, sender: u64, turn: u64) -> bool {
        let of_sender = self.of_senders.get(&sender);
        of_sender.is_some_and(|turns| turn < turns.next && !turns.holes.contains(&turn))
    }

    /// A message of a connection's `turn` came.
    pub fn take(&mut self, sender: u64, turn: u64) -> Came {
        let step = self.step;
        let turns = self.of_senders.entry(sender).or_insert_with(|| Turns {
            next: turn % step,
            ..Turns::default()
        });
        if turn >= turns.next {
            while turns.next < turn {
                turns.holes.insert(turns.next);
                turns.next += step;
            }
            turns.next = turn + step;
            Came::InOrder
        } else if turns.holes.remove(&turn) {
            Came::Late
        } else {
            Came::Twice
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_twice_and_what_comes_late_are_told_apart() {
        // 6 rooms, 4 connections: one connection comes back to a room every third turn.
        let mut seen = Seen::new(6, 4);
        let came: Vec<Came> = [5, 11, 8, 8, 11, 14, 2, 2].map(|turn| seen.take(0, turn)).into();
        use Came::{InOrder, Late, Twice};
        assert_eq!(came, [InOrder, InOrder, Late, Twice, Twice, InOrder, Late, Twice]);
        assert_eq!(seen.take(1, 8), InOrder, "each connection has an order of its own");
        assert_eq!([2, 5, 17].map(|turn| seen.has(0, turn)), [true, true, false]);
        assert!(!seen.has(1, 5) && !seen.has(2, 5));
    }
}
