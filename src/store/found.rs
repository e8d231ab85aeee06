//! What a start found: in the spool, and in the store as far as that is told without reading much of it.

use std::fmt;

use chatting_actors::{
    types::{Event, Seq},
    wire::v1::timestamp,
};

/// How the spool was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// There was none.
    New,
    /// Its server stopped in order.
    Cleanly,
    /// Its server was killed, or the machine went down; under which `log.durability`.
    Uncleanly(String),
    /// The file was damaged, and what could be read of it was carried over.
    Damaged,
}

/// What was found in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSpool {
    /// The numbering that goes on, or has begun.
    pub epoch: String,
    /// Whether it has begun only now.
    pub new_epoch: bool,
    /// How it was left.
    pub left: Left,
    /// The first and the last row that the store may not have.
    pub rows: Option<(i64, i64)>,
    /// The rooms that these rows are of.
    pub rooms_waiting: usize,
    /// The rooms whose last seq is known here.
    pub rooms_known: u64,
    /// The highest of those last seqs.
    pub furthest: Seq,
    /// A room that is not known here asks the store for its last seq.
    pub asks_store: bool,
}

impl fmt::Display for FoundSpool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.left {
            Left::New => f.write_str("new")?,
            Left::Cleanly => f.write_str("stopped cleanly")?,
            Left::Uncleanly(durability) => write!(f, "not stopped cleanly, durability was {durability}")?,
            Left::Damaged => f.write_str("damaged, salvaged")?,
        }
        let begun = if self.new_epoch { ", which begins now" } else { "" };
        write!(f, "; epoch {}{begun}", self.epoch)?;
        match self.rows {
            Some((first, last)) => write!(
                f,
                "; {} events to go (rows {first} to {last}) of {} rooms",
                last - first + 1,
                self.rooms_waiting
            )?,
            None => f.write_str("; 0 events to go")?,
        }
        write!(f, "; {} rooms known", self.rooms_known)?;
        if self.furthest > Seq(0) {
            write!(f, ", the furthest at seq {}", self.furthest)?;
        }
        if self.asks_store {
            f.write_str("; others ask the store")?;
        }
        Ok(())
    }
}

/// What was found in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundStore {
    /// The event that was made last.
    pub newest: Option<Newest>,
    /// How many documents there are, of whatever kind, where the store keeps count.
    pub documents: Option<u64>,
}

/// The event that was made last. What cannot be read of it takes nothing from its time, behind which numbering goes on (rule 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// When it was sent, in milliseconds since 1970, UTC.
    pub sent_at_ms: i64,
    /// The event, or why it cannot be read.
    pub event: Result<Event, String>,
}

impl FoundStore {
    /// When its newest event was sent, in milliseconds since 1970; 0 without one.
    pub fn newest_ms(&self) -> i64 {
        self.newest.as_ref().map_or(0, |newest| newest.sent_at_ms)
    }
}

impl fmt::Display for FoundStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.newest {
            Some(Newest { sent_at_ms, event }) => {
                let sent_at = timestamp(*sent_at_ms);
                match event {
                    Ok(event) => write!(
                        f,
                        "there; the newest event is seq {} of room {} (epoch {}), {sent_at}",
                        event.seq, event.presenter_idx, event.epoch.0
                    )?,
                    Err(why) => write!(f, "there; the newest event, {sent_at}, cannot be read: {why}")?,
                }
            }
            None => f.write_str("there; it has no event")?,
        }
        match self.documents {
            Some(documents) => write!(f, "; about {documents} documents"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_the_spool_was_left_and_how_far_it_goes() {
        let mut found = FoundSpool {
            epoch: "e1".into(),
            new_epoch: true,
            left: Left::New,
            rows: None,
            rooms_waiting: 0,
            rooms_known: 0,
            furthest: Seq(0),
            asks_store: true,
        };
        assert_eq!(
            found.to_string(),
            "new; epoch e1, which begins now; 0 events to go; 0 rooms known; others ask the store"
        );
        found = FoundSpool {
            new_epoch: false,
            left: Left::Uncleanly("disk".into()),
            rows: Some((5, 16)),
            rooms_waiting: 3,
            rooms_known: 7,
            furthest: Seq(1234),
            asks_store: false,
            ..found
        };
        assert_eq!(
            found.to_string(),
            "not stopped cleanly, durability was disk; epoch e1; 12 events to go (rows 5 to 16) of 3 rooms; \
             7 rooms known, the furthest at seq 1234"
        );
    }
}
