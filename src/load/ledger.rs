//! What is known of each message that this run sent: how it was answered, and whether it came. What was not accepted
//! and came all the same must not stand in for a message that was accepted and did not come.
//!
//! It takes half a byte a message: 36 MB for an hour at 20,000 a second. When full ([`MOST`]) it forgets a connection's
//! oldest messages for its new ones; of one that comes after that, so many turns late, it is not known any more what it
//! is.

use std::collections::VecDeque;

/// Messages that are remembered, those of all connections together: 128 MiB.
const MOST: u64 = 1 << 28;

/// Each connection's share of them is no less, however many connections there are.
const LEAST: u64 = 1024;

/// Messages in a word, four bits each: two for the answer, one for whether it came.
const IN_WORD: u64 = 16;

/// The bit of a message that came.
const CAME: u64 = 4;

/// How a message was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Not yet.
    Waited,
    /// It was accepted.
    Accepted,
    /// It was refused, so it reaches nobody (docs/SENDING.md, "Refusals").
    Refused,
    /// Nobody knows: its answer was lost, or says so.
    Unknown,
}

impl Answer {
    fn of(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Waited,
            1 => Self::Accepted,
            2 => Self::Refused,
            _ => Self::Unknown,
        }
    }
}

/// What a message that came is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// For the first time; it is answered like this so far.
    First(Answer),
    /// Again.
    Again,
    /// One that was forgotten.
    Forgotten,
}

/// The messages of one connection, a turn each.
#[derive(Debug, Default)]
struct Connection {
    /// The first turn that is remembered, the first of a word.
    first: u64,
    /// How many turns it has had.
    sent: u64,
    words: VecDeque<u64>,
}

impl Connection {
    /// Where a turn's bits are: the word, and how far to shift it. `None`: it is forgotten, or was not sent.
    fn at(&mut self, turn: u64) -> Option<(&mut u64, u64)> {
        let behind = turn.checked_sub(self.first).filter(|_| turn < self.sent)?;
        let word = self.words.get_mut(usize::try_from(behind / IN_WORD).ok()?)?;
        Some((word, behind % IN_WORD * 4))
    }
}

/// How each message of a run was answered, and whether it came; connections and turns count from 0.
#[derive(Debug)]
pub(super) struct Ledger {
    connections: Vec<Connection>,
    /// Of each connection.
    most_words: usize,
}

impl Ledger {
    /// Of so many connections that have sent nothing yet.
    pub fn new(senders: u64) -> Self {
        Self::of(senders, MOST)
    }

    fn of(senders: u64, most: u64) -> Self {
        let each = (most / senders.max(1)).max(LEAST);
        Self {
            connections: (0..senders).map(|_| Connection::default()).collect(),
            most_words: usize::try_from(each / IN_WORD).unwrap_or(usize::MAX),
        }
    }

    fn connection(&mut self, sender: u64) -> Option<&mut Connection> {
        self.connections.get_mut(usize::try_from(sender).ok()?)
    }

    /// A connection sends the message of its next turn.
    pub fn sends(&mut self, sender: u64) {
        let most = self.most_words;
        let Some(connection) = self.connection(sender) else {
            return;
        };
        if connection.sent.is_multiple_of(IN_WORD) {
            if connection.words.len() >= most {
                connection.words.pop_front();
                connection.first += IN_WORD;
            }
            connection.words.push_back(0);
        }
        connection.sent += 1;
    }

    /// Whether the message of a connection's turn was sent.
    pub fn has(&self, sender: u64, turn: u64) -> bool {
        let connection = usize::try_from(sender).ok().and_then(|at| self.connections.get(at));
        connection.is_some_and(|connection| turn < connection.sent)
    }

    /// The message of a connection's turn was answered; whether it has come already.
    pub fn answered(&mut self, sender: u64, turn: u64, answer: Answer) -> bool {
        let Some((word, shift)) = self.connection(sender).and_then(|connection| connection.at(turn)) else {
            return false;
        };
        *word = (*word & !(3 << shift)) | ((answer as u64) << shift);
        (*word >> shift) & CAME != 0
    }

    /// A message that was sent came.
    pub fn came(&mut self, sender: u64, turn: u64) -> Came {
        let Some((word, shift)) = self.connection(sender).and_then(|connection| connection.at(turn)) else {
            return Came::Forgotten;
        };
        let bits = *word >> shift;
        *word |= CAME << shift;
        match bits & CAME {
            0 => Came::First(Answer::of(bits)),
            _ => Came::Again,
        }
    }

    /// The turn whose answer a connection waits for.
    pub fn waits(&mut self, sender: u64) -> Option<u64> {
        let connection = self.connection(sender)?;
        let turn = connection.sent.checked_sub(1)?;
        let (word, shift) = connection.at(turn)?;
        (Answer::of(*word >> shift) == Answer::Waited).then_some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_told_by_its_answer_whether_that_is_before_or_after_it_comes() {
        let mut ledger = Ledger::new(2);
        for answer in [Answer::Accepted, Answer::Refused, Answer::Unknown, Answer::Waited] {
            ledger.sends(0);
            ledger.sends(1);
            let turn = ledger.waits(0).unwrap();
            assert!(!ledger.answered(0, turn, answer));
            assert_eq!(ledger.came(0, turn), Came::First(answer));
            assert_eq!(ledger.came(1, turn), Came::First(Answer::Waited));
            assert!(ledger.answered(1, turn, answer));
            assert_eq!(ledger.waits(1), (answer == Answer::Waited).then_some(turn));
            assert_eq!([0, 1].map(|sender| ledger.came(sender, turn)), [Came::Again; 2]);
        }
        assert!(ledger.has(0, 3) && !ledger.has(0, 4) && !ledger.has(2, 0));
        assert_eq!(Ledger::new(1).waits(0), None);
    }

    #[test]
    fn two_million_refusals_are_remembered_in_a_megabyte_and_beyond_its_bound_it_forgets_the_oldest() {
        const REFUSED: u64 = 2_000_000;
        let bytes = |ledger: &Ledger| ledger.connections[0].words.capacity() * 8;
        for (most, bytes_at_most) in [(MOST, 2 << 20), (1 << 16, 64 << 10)] {
            let mut ledger = Ledger::of(1, most);
            for turn in 0..REFUSED {
                ledger.sends(0);
                ledger.answered(0, turn, Answer::Refused);
            }
            assert!(bytes(&ledger) <= bytes_at_most, "{}", bytes(&ledger));
            assert_eq!(ledger.came(0, REFUSED - 1), Came::First(Answer::Refused));
            let first = match most {
                MOST => Came::First(Answer::Refused),
                _ => Came::Forgotten,
            };
            assert_eq!(ledger.came(0, 0), first);
        }
    }
}
