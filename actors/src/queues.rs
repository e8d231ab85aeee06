//! What operators see of every queue: how full it is, how full it may be, and what was refused or had to wait.
//!
//! A queue that hands out permits is a [`Gate`] and is read when it is scraped. The others tell a [`Queue`] themselves. Where there is
//! a queue a room, its depth is that of the fullest room; a sum would hide the one that is full.

use std::sync::Arc;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{gate::Gate, metrics::Label};

/// The four families, by `queue`. Cheap to clone: the numbers are shared.
#[derive(Clone, Debug, Default)]
pub struct Queues {
    depth: Family<Label, Gauge>,
    capacity: Family<Label, Gauge>,
    refused: Family<Label, Counter>,
    waits: Family<Label, Counter>,
}

/// A queue that is no gate.
#[derive(Clone, Debug)]
pub struct Queue {
    depth: Gauge,
    capacity: Gauge,
}

impl Queue {
    /// So much is in it now.
    pub fn holds(&self, depth: usize) {
        self.depth.set(to_i64(depth));
    }

    /// So much may be in it now, where that changes.
    pub fn may_hold(&self, capacity: usize) {
        self.capacity.set(to_i64(capacity));
    }
}

impl Queues {
    fn queue(&self, name: &'static str, capacity: usize) -> Queue {
        let label = [("queue", name)];
        let queue = Queue {
            depth: self.depth.get_or_create(&label).clone(),
            capacity: self.capacity.get_or_create(&label).clone(),
        };
        queue.holds(0);
        queue.may_hold(capacity);
        queue
    }

    /// A queue that refuses what is over; see [`Queues::refused`].
    pub fn refusing(&self, name: &'static str, capacity: usize) -> Queue {
        drop(self.refused.get_or_create(&[("queue", name)]));
        self.queue(name, capacity)
    }

    /// A bound that refuses what is over and whose depth nobody keeps: it is one for each sender.
    pub fn bound(&self, name: &'static str, capacity: usize) {
        let label = [("queue", name)];
        drop(self.refused.get_or_create(&label));
        self.capacity.get_or_create(&label).set(to_i64(capacity));
    }

    /// A queue that makes wait what is over; the counter is of what had to.
    pub fn waiting(&self, name: &'static str, capacity: usize) -> (Queue, Counter) {
        let waits = self.waits.get_or_create(&[("queue", name)]).clone();
        (self.queue(name, capacity), waits)
    }

    /// This queue was full. A gate counts its own refusals, so its name changes nothing here.
    pub fn refused(&self, name: &'static str) {
        if !Gate::NAMES.contains(&name) {
            self.refused.get_or_create(&[("queue", name)]).inc();
        }
    }

    /// Gives the families their names.
    pub fn register(&self, registry: &mut Registry) {
        let (depth, capacity) = (self.depth.clone(), self.capacity.clone());
        registry.register("chat_queue_depth", "What is in a queue, by queue", depth);
        registry.register("chat_queue_capacity", "What may be in a queue, by queue", capacity);
        let refused = self.refused.clone();
        registry.register(
            "chat_queue_refused",
            "Refused because a queue was full, by queue",
            refused,
        );
        let waits = self.waits.clone();
        registry.register(
            "chat_queue_waits",
            "Had to wait because a queue was full, by queue",
            waits,
        );
    }

    /// Copies the gates' present numbers into the metrics; called before each scrape.
    pub fn refresh(&self, gates: &[Arc<Gate>]) {
        for gate in gates {
            let label = [("queue", gate.name())];
            self.depth.get_or_create(&label).set(to_i64(gate.depth()));
            self.capacity.get_or_create(&label).set(to_i64(gate.capacity()));
            let counted = self.refused.get_or_create(&label);
            counted.inc_by(gate.refused().saturating_sub(counted.get()));
            if Gate::WAITED.contains(&gate.name()) {
                let waited = self.waits.get_or_create(&label);
                waited.inc_by(gate.waited().saturating_sub(waited.get()));
            }
        }
    }
}

fn to_i64(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
