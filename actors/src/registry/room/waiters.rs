//! Who waits in a room, unnumbered, for something to be known: its verdict, its numbering.
//!
//! `room.pending_max` bounds submits and looks; `actors.registry.room_share` bounds submits and acts, together with what the room has in
//! flight.

use std::{collections::VecDeque, mem};

use crate::registry::messages::{Looking, Pending};

/// Those who wait.
#[derive(Default)]
pub(in crate::registry) struct Waiters {
    /// Submits that wait for the verdict or, where that is live, for the numbering; in the order they came.
    pub submits: VecDeque<Pending>,
    /// Who asked what the room looks like, and waits for the same.
    pub looks: Vec<Looking>,
    /// Acts of moderation that wait for the numbering, in the order they came.
    pub acts: VecDeque<Pending>,
}

impl Waiters {
    /// How many submits and looks wait.
    pub fn undecided(&self) -> usize {
        self.submits.len() + self.looks.len()
    }

    /// How many wait that will be numbered if nothing refuses them.
    pub fn to_be_numbered(&self) -> usize {
        self.submits.len() + self.acts.len()
    }

    /// Takes the submits and the looks.
    pub fn take_undecided(&mut self) -> (VecDeque<Pending>, Vec<Looking>) {
        (mem::take(&mut self.submits), mem::take(&mut self.looks))
    }

    /// Whether nobody waits for anything.
    pub fn is_empty(&self) -> bool {
        self.undecided() == 0 && self.acts.is_empty()
    }
}
