//! Admission by permits: what really bounds a queue.
//!
//! actix's own mailbox capacity does not bound (each clone of an `Addr` owns a slot, `do_send` ignores it), so
//! whatever goes towards an actor takes a [`Permit`] first and carries it until it is answered. When there is none
//! left, the caller is refused at once; nothing waits here. `actors.<name>.mailbox` is [`Gate::capacity`]. Who would rather
//! wait asks again by itself, with [`Gate::acquire_if_free`], and says so once.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// Counts the permits of one queue, and what was refused or waited for want of one.
#[derive(Debug)]
pub struct Gate {
    name: &'static str,
    capacity: usize,
    used: AtomicUsize,
    refused: AtomicU64,
    waited: AtomicU64,
}

impl Gate {
    /// Every gate there is: their names are labels of the metrics.
    pub const NAMES: [&str; 9] = [
        "registry",
        "checker",
        "writer",
        "writer_bytes",
        "sessions",
        "readers",
        "figures",
        "exports",
        "answers",
    ];

    /// Those of them that somebody waits for.
    pub const WAITED: [&str; 1] = ["readers"];

    /// A gate with `capacity` permits (at least 1); `name` labels its metrics.
    pub fn new(name: &'static str, capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            capacity: capacity.max(1),
            used: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        })
    }

    /// Takes `n` permits, or none at all: `None` counts as one refusal.
    pub fn try_acquire(self: &Arc<Self>, n: usize) -> Option<Permit> {
        let permit = self.acquire_if_free(n);
        if permit.is_none() {
            self.refused.fetch_add(1, Relaxed);
        }
        permit
    }

    /// The same for who asks again until there are so many: `None` refuses nobody, and counts as nothing.
    pub fn acquire_if_free(self: &Arc<Self>, n: usize) -> Option<Permit> {
        let taken = self.used.fetch_update(Relaxed, Relaxed, |used| {
            used.checked_add(n).filter(|sum| *sum <= self.capacity)
        });
        taken.ok().map(|_| Permit {
            gate: Arc::clone(self),
            n,
        })
    }

    /// Somebody begins to wait: once, however often it then asks.
    pub fn begin_wait(&self) {
        self.waited.fetch_add(1, Relaxed);
    }

    /// The label of this queue in the metrics.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How many permits there are.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many permits are out now.
    pub fn depth(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// How often nothing was left to take.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// How often somebody had to wait.
    pub fn waited(&self) -> u64 {
        self.waited.load(Relaxed)
    }
}

/// Some of a gate's permits; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    n: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.used.fetch_sub(self.n, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_hands_out_what_it_has_and_counts_what_it_refuses() {
        let gate = Gate::new("test", 3);
        let one = gate.try_acquire(1).unwrap();
        let two = gate.try_acquire(2).unwrap();
        assert!(gate.try_acquire(1).is_none());
        assert_eq!((gate.depth(), gate.refused()), (3, 1));
        drop(two);
        assert_eq!(gate.depth(), 1);
        assert!(gate.try_acquire(2).is_some());
        drop(one);
        assert_eq!(gate.depth(), 0);
    }

    #[test]
    fn who_waits_for_a_permit_is_not_refused_however_often_it_asks() {
        let gate = Gate::new("test", 1);
        let one = gate.acquire_if_free(1).unwrap();
        gate.begin_wait();
        for _ in 0..3 {
            assert!(gate.acquire_if_free(1).is_none());
        }
        assert_eq!((gate.depth(), gate.refused(), gate.waited()), (1, 0, 1));
        drop(one);
        let two = gate.acquire_if_free(1).unwrap();
        assert!(gate.try_acquire(1).is_none());
        assert_eq!((gate.depth(), gate.refused(), gate.waited()), (1, 1, 1));
        drop(two);
        assert_eq!(gate.depth(), 0);
    }

    #[test]
    fn an_absurd_demand_is_refused_without_overflow() {
        let gate = Gate::new("test", 3);
        let _one = gate.try_acquire(1).unwrap();
        assert!(gate.try_acquire(usize::MAX).is_none());
        assert_eq!(gate.depth(), 1);
    }
}
