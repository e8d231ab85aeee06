//! In which order one presenter has seen what came.

use std::collections::HashMap;

/// The order of one room. It grows with the connections that send to it, and not with what they send.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The latest turn of each connection.
    turns: HashMap<u64, u64>,
    /// The highest seq.
    seq: u64,
}

impl Seen {
    /// The message of a connection's turn came: whether nothing came before it that this connection sent later.
    pub fn in_turn(&mut self, sender: u64, turn: u64) -> bool {
        let latest = self.turns.entry(sender).or_insert(turn);
        let in_turn = turn >= *latest;
        *latest = turn.max(*latest);
        in_turn
    }

    /// An event with this seq came: whether it is above all that came before it.
    pub fn follows(&mut self, seq: u64) -> bool {
        let follows = seq > self.seq;
        self.seq = seq.max(self.seq);
        follows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_out_of_order_behind_one_that_its_connection_sent_later() {
        let mut seen = Seen::default();
        let came = [5, 11, 8, 8, 11, 14, 2].map(|turn| seen.in_turn(0, turn));
        assert_eq!(came, [true, true, false, false, true, true, false]);
        assert!(seen.in_turn(1, 8), "each connection has an order of its own");
        assert_eq!(
            [3, 5, 4, 5, 6].map(|seq| seen.follows(seq)),
            [true, true, false, false, true]
        );
    }
}
