//! Who waits in a room, unnumbered, for something to be known: its verdict, its numbering.
//!
//! `room.pending_max` bounds those who wait for the verdict; `actors.registry.room_share` bounds submits and acts, together with what
//! the room has in flight.

use std::{collections::VecDeque, mem};

use crate::registry::messages::{Looking, Pending};

/// Those who wait.
#[derive(Default)]
pub(in crate::registry) struct Waiters {
    /// Submits without a verdict, in the order they came.
    pub submits: VecDeque<Pending>,
    /// Who asked what the room looks like, and waits for the verdict.
    pub looks: Vec<Looking>,
    /// Acts of moderation that wait for the numbering, in the order they came.
    pub acts: VecDeque<Pending>,
}

impl Waiters {
    /// How many wait for the verdict.
    pub fn for_verdict(&self) -> usize {
        self.submits.len() + self.looks.len()
    }

    /// Takes those who wait for the verdict.
    pub fn take_for_verdict(&mut self) -> (VecDeque<Pending>, Vec<Looking>) {
        (mem::take(&mut self.submits), mem::take(&mut self.looks))
    }

    /// Whether nobody waits for anything.
    pub fn is_empty(&self) -> bool {
        self.for_verdict() == 0 && self.acts.is_empty()
    }
}
