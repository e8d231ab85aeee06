//! What operators see of every queue: how full it is, how full it may be, and what was refused or had to wait.
//!
//! A queue that hands out permits is a [`Gate`] and is read when it is scraped. The others tell a [`Queue`] themselves. Where there is
//! a queue a room, its depth is that of the fullest room; a sum would hide the one that is full.

use std::sync::Arc;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use crate::{
    gate::Gate,
    metrics::{By, by},
};

/// The four families, by `queue`. Cheap to clone: the numbers are shared.
#[derive(Clone, Debug)]
pub struct Queues {
    depth: By<Gauge>,
    capacity: By<Gauge>,
    refused: By<Counter>,
    waits: By<Counter>,
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
    /// No queue yet; each begins its own series.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let mut gauge = |name, help| by(registry, name, help, "queue", []);
        let depth = gauge("chat_queue_depth", "What is in a queue, by queue");
        let capacity = gauge("chat_queue_capacity", "What may be in a queue, by queue");
        let mut counter = |name, help| by(registry, name, help, "queue", []);
        let refused = counter("chat_queue_refused", "Refused because a queue was full, by queue");
        let waits = counter("chat_queue_waits", "Had to wait because a queue was full, by queue");
        Self {
            depth,
            capacity,
            refused,
            waits,
        }
    }

    fn queue(&self, name: &'static str, capacity: usize) -> Queue {
        let queue = Queue {
            depth: self.depth.of(name),
            capacity: self.capacity.of(name),
        };
        queue.holds(0);
        queue.may_hold(capacity);
        queue
    }

    /// A queue that refuses what is over; see [`Queues::refused`].
    pub fn refusing(&self, name: &'static str, capacity: usize) -> Queue {
        self.refused.begin([name]);
        self.queue(name, capacity)
    }

    /// A bound that refuses what is over and whose depth nobody keeps: it is one for each sender.
    pub fn bound(&self, name: &'static str, capacity: usize) {
        self.refused.begin([name]);
        self.capacity.of(name).set(to_i64(capacity));
    }

    /// A queue that makes wait what is over; the counter is of what had to.
    pub fn waiting(&self, name: &'static str, capacity: usize) -> (Queue, Counter) {
        (self.queue(name, capacity), self.waits.of(name))
    }

    /// This queue was full. A gate counts its own refusals, so its name changes nothing here.
    pub fn refused(&self, name: &'static str) {
        if !Gate::NAMES.contains(&name) {
            self.refused.inc(name);
        }
    }

    /// Copies the gates' present numbers into the metrics; called before each scrape.
    pub fn refresh(&self, gates: &[Arc<Gate>]) {
        for gate in gates {
            let name = gate.name();
            self.depth.of(name).set(to_i64(gate.depth()));
            self.capacity.of(name).set(to_i64(gate.capacity()));
            let counted = self.refused.of(name);
            counted.inc_by(gate.refused().saturating_sub(counted.get()));
            if Gate::WAITED.contains(&name) {
                let waited = self.waits.of(name);
                waited.inc_by(gate.waited().saturating_sub(waited.get()));
            }
        }
    }
}

fn to_i64(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
