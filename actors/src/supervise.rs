//! Supervision of our own: actix's `Supervisor` does not catch panics.
//!
//! Each actor holds a [`Present`]; when a panic takes the actor, the guard goes with it and the supervisor makes a new
//! actor by the same factory. What was sent to it and not yet read is in its [`Mailbox`](crate::mailbox::Mailbox), which
//! outlives it. `/readyz` fails while an actor is gone. One that fails again and again is made anew after longer and longer
//! pauses, up to `actors.supervisor.restart_max_ms`, and counts as there only once it has lived as long as its last pause, so that
//! readiness does not flicker.
//!
//! What is no actor of ours alone (a session, a request, a read of the log) is run by [`catch`] or [`catch_future`]: its panic ends
//! it and nothing else. Either way a panic is logged once, with the actor's name, by the hook of [`log_panics`].

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use actix::{Actor, Addr, ArbiterHandle, Context};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;

use crate::metrics::Metrics;

/// How long an actor that failed is left alone before it is made anew.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// `actors.supervisor.restart_min_ms`: after its first failure.
    pub min: Duration,
    /// `actors.supervisor.restart_max_ms`: at most. One that lived as long as that begins with the shortest again.
    pub max: Duration,
}

/// Whether an actor is there; shared by the actor, its supervisor and `/readyz`.
#[derive(Clone, Debug)]
pub struct Watch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: &'static str,
    pauses: Pauses,
    restarts: Counter,
    gone: Notify,
    life: Mutex<Life>,
}

#[derive(Debug)]
struct Life {
    alive: bool,
    since: Instant,
    /// How long it was left alone before this life; zero before the first.
    pause: Duration,
}

impl Watch {
    /// Watches an actor of this name, one of [`Metrics::ACTORS`].
    pub fn new(name: &'static str, pauses: Pauses, metrics: &Metrics) -> Self {
        Self {
            shared: Arc::new(Shared {
                name,
                pauses,
                restarts: metrics.restarts(name),
                gone: Notify::new(),
                life: Mutex::new(Life {
                    alive: false,
                    since: Instant::now(),
                    pause: Duration::ZERO,
                }),
            }),
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.shared.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the actor as there, for as long as the guard lives.
    pub(crate) fn enter(&self) -> Present {
        let mut life = self.life();
        life.alive = true;
        life.since = Instant::now();
        Present { watch: self.clone() }
    }

    /// The actor's name.
    pub fn name(&self) -> &'static str {
        self.shared.name
    }

    /// Whether the actor is there.
    pub fn alive(&self) -> bool {
        self.life().alive
    }

    /// Whether it is there and can be counted on: it has lived as long as it was left alone before.
    pub fn steady(&self) -> bool {
        let life = self.life();
        life.alive && life.since.elapsed() >= life.pause
    }

    /// How often it had to be made anew.
    pub fn restarts(&self) -> u64 {
        self.shared.restarts.get()
    }

    /// Counts one more failure; returns how long the actor is to be left alone now.
    pub(crate) fn failed(&self) -> Duration {
        self.shared.restarts.inc();
        let Pauses { min, max } = self.shared.pauses;
        let mut life = self.life();
        let fresh = life.pause.is_zero() || life.since.elapsed() >= max;
        life.pause = if fresh { min } else { (life.pause * 2).min(max) };
        log::error!("the actor {} is gone; it is made anew in {:?}", self.name(), life.pause);
        life.pause
    }
}

/// Held by a running actor: as long as this lives, the actor is there. [`supervise`] gives it.
#[derive(Debug)]
pub struct Present {
    watch: Watch,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.watch.life().alive = false;
        self.watch.shared.gone.notify_one();
    }
}

/// Starts the actor that `make` makes, on this arbiter, and another one whenever it is gone, until the arbiter stops. It is there
/// for as long as it holds the [`Present`] that it is made of. A panic in `make` itself counts as one of the actor.
pub fn supervise<A>(arbiter: &ArbiterHandle, watch: Watch, mut make: impl FnMut(Present) -> A + Send + 'static)
where
    A: Actor<Context = Context<A>>,
{
    let name = watch.name();
    let started = arbiter.spawn(async move {
        RUNS.set(Some(name));
        loop {
            if let Some(address) = begin(|| make(watch.enter())) {
                while watch.alive() {
                    watch.shared.gone.notified().await;
                }
                drop(address);
            }
            let pause = watch.failed();
            tokio::time::sleep(pause).await;
        }
    });
    if !started {
        log::error!("the actor {name} cannot start: its arbiter has stopped");
    }
}

fn begin<A: Actor<Context = Context<A>>>(make: impl FnOnce() -> A) -> Option<Addr<A>> {
    catch_unwind(AssertUnwindSafe(make)).ok().map(Actor::start)
}

thread_local! {
    /// Whose code runs on this thread now, for what is logged of a panic.
    static RUNS: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// This thread runs nothing but this actor.
pub(crate) fn thread_of(name: &'static str) {
    RUNS.set(Some(name));
}

/// Runs `work` for `name`. A panic in it is counted, and comes back as `None`.
pub fn catch<T>(name: &'static str, failures: &Counter, work: impl FnOnce() -> T) -> Option<T> {
    let before = RUNS.replace(Some(name));
    let done = catch_unwind(AssertUnwindSafe(work));
    RUNS.set(before);
    done.inspect_err(|_| {
        failures.inc();
    })
    .ok()
}

/// As [`catch`], for a future: each poll of it.
pub async fn catch_future<F: Future>(name: &'static str, failures: &Counter, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| match catch(name, failures, || future.as_mut().poll(cx)) {
        Some(Poll::Ready(output)) => Poll::Ready(Some(output)),
        Some(Poll::Pending) => Poll::Pending,
        None => Poll::Ready(None),
    })
    .await
}

/// From now on a panic of an actor is one line of the log, with the actor's name. Other threads' panics are told as before.
pub fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match RUNS.try_with(Cell::get) {
            Ok(Some(name)) => {
                let why = info.payload_as_str().unwrap_or("(no text)");
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                log::error!("the actor {name} panicked at {place}: {why}");
            }
            _ => usual(info),
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(min: u64, max: u64) -> Watch {
        let pauses = Pauses {
            min: Duration::from_millis(min),
            max: Duration::from_millis(max),
        };
        Watch::new("registry", pauses, &Metrics::default())
    }

    #[test]
    fn an_actor_that_fails_again_and_again_is_left_alone_for_longer_and_longer_up_to_a_bound() {
        let watch = watch(10, 60_000);
        let pauses: Vec<_> = (0..15)
            .map(|_| {
                drop(watch.enter());
                watch.failed().as_millis()
            })
            .collect();
        assert_eq!(pauses[..5], [10, 20, 40, 80, 160]);
        assert_eq!(pauses[13..], [60_000, 60_000]);
        assert_eq!(watch.restarts(), 15);
    }

    #[test]
    fn an_actor_that_lived_as_long_as_the_longest_pause_begins_with_the_shortest_again() {
        let watch = watch(0, 0);
        for _ in 0..3 {
            drop(watch.enter());
            assert_eq!(watch.failed(), Duration::ZERO);
        }
        assert!(!watch.alive());
    }

    #[test]
    fn an_actor_made_anew_is_not_counted_on_before_it_has_lived_as_long_as_its_last_pause() {
        let watch = watch(60_000, 60_000);
        assert!(!watch.steady(), "not started yet");
        let present = watch.enter();
        assert!(watch.steady(), "the first is counted on at once");
        drop(present);
        watch.failed();
        let _present = watch.enter();
        assert!(watch.alive() && !watch.steady());
    }

    #[test]
    fn a_panic_that_is_caught_is_counted_and_ends_its_work_only() {
        let failures = Counter::default();
        assert_eq!(catch("http", &failures, || 7), Some(7));
        let nothing: Option<()> = catch("http", &failures, || panic!("planned"));
        assert_eq!((nothing, failures.get()), (None, 1));
    }
}
