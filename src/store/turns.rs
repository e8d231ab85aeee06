//! A lock that is had in the order in which it was asked for.
//!
//! Of an ordinary mutex whoever runs gets hold: a thread that gives it back and asks again has it before one that waits has woken,
//! and one that spins and yields is not even known to wait. Commits waited 12 ms so for a batch that had offered them the connection
//! thirteen times. tokio's mutex keeps the order too, but cannot be waited for on a thread that runs tasks, as a start's does.

use std::{
    ops::{Deref, DerefMut},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// Guards a value. Waiting blocks the thread, without spinning; a panic of who has it harms nobody else.
#[derive(Debug)]
pub struct Turns<T> {
    value: Mutex<T>,
    order: Mutex<Order>,
    passed: Condvar,
}

#[derive(Debug, Default)]
struct Order {
    /// The number that the next who asks gets.
    next: u64,
    /// Whose turn it is.
    turn: u64,
}

impl<T> Turns<T> {
    /// Nobody has it yet.
    pub(super) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            order: Mutex::default(),
            passed: Condvar::new(),
        }
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all who asked before have had it.
    pub(super) fn lock(&self) -> Turn<'_, T> {
        let mut order = self.order();
        let mine = order.next;
        order.next += 1;
        let waited = self.passed.wait_while(order, |order| order.turn != mine);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        let pass = Pass(self);
        Turn {
            value: self.value.lock().unwrap_or_else(PoisonError::into_inner),
            _pass: pass,
        }
    }

    /// Whether somebody waits for who has it now.
    pub(super) fn wanted(&self) -> bool {
        let order = self.order();
        order.next - order.turn > 1
    }
}

/// The value, until this is dropped.
pub struct Turn<'a, T> {
    value: MutexGuard<'a, T>,
    /// Dropped behind it: the next one finds the value free.
    _pass: Pass<'a, T>,
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

struct Pass<'a, T>(&'a Turns<T>);

impl<T> Drop for Pass<'_, T> {
    fn drop(&mut self) {
        let mut order = self.0.order();
        order.turn += 1;
        let waits = order.next > order.turn;
        drop(order);
        if waits {
            // All, for each knows its own number only; they are two or three.
            self.0.passed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        thread,
    };

    use super::*;

    /// Waits until so many have asked for it.
    fn until_asked<T>(turns: &Turns<T>, count: u64) {
        while turns.order().next < count {
            thread::yield_now();
        }
    }

    #[test]
    fn it_is_had_in_the_order_in_which_it_was_asked_for() {
        let turns = Turns::new(Vec::new());
        thread::scope(|scope| {
            let first = turns.lock();
            for n in 1..=5 {
                let turns = &turns;
                scope.spawn(move || turns.lock().push(n));
                until_asked(turns, n + 1);
            }
            drop(first);
        });
        assert_eq!(*turns.lock(), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn who_gives_it_back_and_asks_again_comes_after_who_waited() {
        let turns = Turns::new(Vec::new());
        thread::scope(|scope| {
            let mut taken = turns.lock();
            for n in 0..100 {
                let turns = &turns;
                assert!(!turns.wanted());
                scope.spawn(move || turns.lock().push(2 * n + 1));
                until_asked(turns, 2 * n + 2);
                assert!(turns.wanted());
                taken.push(2 * n);
                drop(taken);
                taken = turns.lock();
            }
        });
        assert_eq!(*turns.lock(), Vec::from_iter(0..200));
    }

    #[test]
    fn who_panics_with_it_gives_it_on() {
        let turns = Turns::new(7);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _taken = turns.lock();
            panic!("planned");
        }));
        assert!(panicked.is_err());
        assert_eq!(*turns.lock(), 7);
        assert!(!turns.wanted());
    }
}
