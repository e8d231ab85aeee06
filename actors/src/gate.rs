//! Admission by permits: what really bounds a queue.
//!
//! actix's own mailbox capacity does not bound (each clone of an `Addr` owns a slot, `do_send` ignores it), so
//! whatever goes towards an actor takes a [`Permit`] first and carries it until it is answered. When there is none
//! left, the caller is refused at once; nothing waits here. `actors.<name>.mailbox` is [`Gate::capacity`]. Who would rather
//! wait says so with [`Gate::begin_wait`] and asks again by itself, with [`Gate::acquire_if_free`]. While anyone waits, whoever
//! would not is refused: else those who come again at once would have each permit before the one who waits asks the next time.

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
    waiting: AtomicUsize,
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
            waiting: AtomicUsize::new(0),
        })
    }

    /// Takes `n` permits, or none at all, and none while anyone waits: `None` counts as one refusal.
    pub fn try_acquire(self: &Arc<Self>, n: usize) -> Option<Permit> {
        let nobody_waits = self.waiting.load(Relaxed) == 0;
        let permit = nobody_waits.then(|| self.acquire_if_free(n)).flatten();
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

    /// Somebody begins to wait: once, however often it then asks, and until this is dropped.
    #[must_use]
    pub fn begin_wait(self: &Arc<Self>) -> Waiting {
        self.waited.fetch_add(1, Relaxed);
        self.waiting.fetch_add(1, Relaxed);
        Waiting(Arc::clone(self))
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

/// Somebody waits for a permit, and comes before those who do not wait.
#[derive(Debug)]
pub struct Waiting(Arc<Gate>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
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
        let waiting = gate.begin_wait();
        for _ in 0..3 {
            assert!(gate.acquire_if_free(1).is_none());
        }
        assert_eq!((gate.depth(), gate.refused(), gate.waited()), (1, 0, 1));
        drop(one);
        // Whoever comes meanwhile and does not wait comes behind.
        assert!(gate.try_acquire(1).is_none());
        let two = gate.acquire_if_free(1).unwrap();
        assert_eq!((gate.depth(), gate.refused(), gate.waited()), (1, 1, 1));
        drop(waiting);
        assert!(gate.try_acquire(1).is_none());
        drop(two);
        assert!(gate.try_acquire(1).is_some());
        assert_eq!((gate.depth(), gate.refused(), gate.waited()), (0, 2, 1));
    }

    #[test]
    fn an_absurd_demand_is_refused_without_overflow() {
        let gate = Gate::new("test", 3);
        let _one = gate.try_acquire(1).unwrap();
        assert!(gate.try_acquire(usize::MAX).is_none());
        assert_eq!(gate.depth(), 1);
    }
}
