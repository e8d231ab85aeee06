//! Admission by permits: what really bounds a queue.
//!
//! actix's own mailbox capacity does not bound (each clone of an `Addr` owns a slot, `do_send` ignores it), so
//! whatever goes towards an actor takes a [`Permit`] first and carries it until it is answered. `actors.<name>.mailbox` is
//! [`Gate::capacity`]. When there is none left, the caller is refused at once: no call waits here. Who would rather wait than be
//! refused says so with [`Gate::begin_wait`] and asks again by itself, with [`Waiting::acquire_if_free`]. Those who wait are served in
//! the order in which they came. While anyone waits, whoever would not is refused: else those who come again at once would have
//! each permit before the one who waits asks the next time.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// Counts the permits of one queue, and what was refused or waited for want of one.
#[derive(Debug)]
pub struct Gate {
    name: &'static str,
    capacity: usize,
    used: AtomicUsize,
    refused: AtomicU64,
    /// Also the number of who begins to wait next.
    waited: AtomicU64,
    /// How many are in `line`, for those who only ask whether anyone waits.
    waiting: AtomicUsize,
    /// The numbers of those who wait.
    line: Mutex<BTreeSet<u64>>,
}

impl Gate {
    /// Every gate there is: their names are labels of the metrics.
    pub const NAMES: [&str; 11] = [
        "registry",
        "checker",
        "checker_others",
        "writer",
        "writer_bytes",
        "sessions",
        "readers",
        "figures",
        "exports",
        "corrections",
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
            line: Mutex::default(),
        })
    }

    /// Takes `n` permits, or none at all, and none while anyone waits: `None` counts as one refusal.
    pub fn try_acquire(self: &Arc<Self>, n: usize) -> Option<Permit> {
        self.try_acquire_leaving(n, 0)
    }

    /// The same where `others` more are left then.
    pub fn try_acquire_leaving(self: &Arc<Self>, n: usize, others: usize) -> Option<Permit> {
        let permit = (self.waiting() == 0).then(|| self.take(n, others)).flatten();
        if permit.is_none() {
            self.refused.fetch_add(1, Relaxed);
        }
        permit
    }

    /// The same for who waits otherwise: `None` refuses nobody, and counts as nothing.
    pub fn acquire_if_free(self: &Arc<Self>, n: usize) -> Option<Permit> {
        (self.waiting() == 0).then(|| self.take(n, 0)).flatten()
    }

    /// So many were refused something for want of a permit that was not there ([`Self::acquire_if_free`]).
    pub fn count_refused(&self, n: usize) {
        self.refused.fetch_add(n as u64, Relaxed);
    }

    /// Takes `n` permits where `others` more are left then.
    fn take(self: &Arc<Self>, n: usize, others: usize) -> Option<Permit> {
        let most = self.capacity.checked_sub(others)?;
        let taken = self
            .used
            .fetch_update(Relaxed, Relaxed, |used| used.checked_add(n).filter(|sum| *sum <= most));
        taken.ok().map(|_| Permit {
            gate: Arc::clone(self),
            n,
        })
    }

    /// Somebody begins to wait for one permit, behind those who wait already: once, however often it then asks, and until this is
    /// dropped.
    #[must_use]
    pub fn begin_wait(self: &Arc<Self>) -> Waiting {
        let mut line = self.line();
        let number = self.waited.fetch_add(1, Relaxed);
        line.insert(number);
        self.waiting.store(line.len(), Relaxed);
        drop(line);
        let gate = Arc::clone(self);
        Waiting { gate, number }
    }

    fn line(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// How often nothing was left to take for somebody who needed it.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// How often somebody had to wait.
    pub fn waited(&self) -> u64 {
        self.waited.load(Relaxed)
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
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

/// Somebody waits for a permit: behind those who began before, and before those who do not wait.
#[derive(Debug)]
pub struct Waiting {
    gate: Arc<Gate>,
    number: u64,
}

impl Waiting {
    /// Takes a permit where there is one more than those have to get who began to wait before. `None` refuses nobody, and counts as
    /// nothing.
    pub fn acquire_if_free(&self) -> Option<Permit> {
        let before = self.gate.line().range(..self.number).count();
        self.gate.take(1, before)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut line = self.gate.line();
        line.remove(&self.number);
        self.gate.waiting.store(line.len(), Relaxed);
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
    fn who_leaves_some_to_others_is_refused_before_they_are() {
        let gate = Gate::new("test", 4);
        let _two = gate.try_acquire_leaving(2, 2).unwrap();
        assert!(gate.try_acquire_leaving(1, 2).is_none());
        assert!(gate.try_acquire_leaving(1, usize::MAX).is_none());
        assert!(gate.try_acquire(2).is_some());
        assert_eq!((gate.depth(), gate.refused()), (2, 2));
    }

    #[test]
    fn who_waits_for_a_permit_is_not_refused_however_often_it_asks() {
        let gate = Gate::new("test", 1);
        let one = gate.acquire_if_free(1).unwrap();
        let waiting = gate.begin_wait();
        for _ in 0..3 {
            assert!(waiting.acquire_if_free().is_none());
        }
        assert_eq!((gate.depth(), gate.refused(), gate.waited()), (1, 0, 1));
        drop(one);
        // Whoever comes meanwhile and does not wait comes behind.
        assert!(gate.try_acquire(1).is_none());
        let two = waiting.acquire_if_free().unwrap();
        assert_eq!((gate.depth(), gate.refused(), gate.waited()), (1, 1, 1));
        drop(waiting);
        assert!(gate.try_acquire(1).is_none());
        drop(two);
        assert!(gate.try_acquire(1).is_some());
        assert_eq!((gate.depth(), gate.refused(), gate.waited()), (0, 2, 1));
    }

    #[test]
    fn those_who_wait_are_served_in_the_order_in_which_they_came_however_often_the_last_one_asks() {
        let gate = Gate::new("test", 2);
        let mut taken: Vec<_> = std::iter::from_fn(|| gate.try_acquire(1)).collect();
        let [first, second, third] = [(); 3].map(|()| gate.begin_wait());
        assert_eq!(gate.waiting(), 3);
        taken.pop();
        // Nor does one who comes now, and would wait, come before them.
        assert!(gate.acquire_if_free(1).is_none());
        assert!(third.acquire_if_free().is_none() && second.acquire_if_free().is_none());
        taken.extend(first.acquire_if_free());
        drop(first);
        assert_eq!((taken.len(), gate.waiting()), (2, 2));
        // There is a place for each of two: neither waits until the other one asks.
        taken.clear();
        taken.extend(third.acquire_if_free());
        drop(third);
        taken.extend(second.acquire_if_free());
        drop(second);
        assert_eq!((taken.len(), gate.depth(), gate.waiting()), (2, 2, 0));
        // Who gives up is waited for by nobody.
        let [first, second] = [(); 2].map(|()| gate.begin_wait());
        taken.pop();
        assert!(second.acquire_if_free().is_none());
        drop(first);
        assert!(second.acquire_if_free().is_some());
    }

    #[test]
    fn an_absurd_demand_is_refused_without_overflow() {
        let gate = Gate::new("test", 3);
        let _one = gate.try_acquire(1).unwrap();
        assert!(gate.try_acquire(usize::MAX).is_none());
        assert_eq!(gate.depth(), 1);
    }
}
