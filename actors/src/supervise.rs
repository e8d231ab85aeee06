//! Supervision of our own: actix's `Supervisor` does not catch panics.
//!
//! Each actor holds a [`Present`]; when a panic takes the actor, the guard goes with it and the supervisor makes a new
//! actor by the same factory. What was sent to it and not yet read is in its [`Mailbox`](crate::mailbox::Mailbox), which
//! outlives it. `/readyz` fails while an actor is gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::{Actor, ArbiterHandle, Context};
use tokio::sync::Notify;

/// Between an actor's end and its successor, so that one that fails at once does not spin.
const PAUSE: Duration = Duration::from_millis(20);

/// Whether an actor is there; shared by the actor, its supervisor and `/readyz`.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    alive: AtomicBool,
    gone: Notify,
    restarts: AtomicU64,
}

impl Watch {
    /// Marks the actor as there, for as long as the guard lives.
    pub fn enter(&self) -> Present {
        self.shared.alive.store(true, Ordering::Release);
        Present { watch: self.clone() }
    }

    /// Whether the actor is there.
    pub fn alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire)
    }

    /// How often it had to be made anew.
    pub fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }
}

/// Held by a running actor.
#[derive(Debug)]
pub struct Present {
    watch: Watch,
}

impl Drop for Present {
    fn drop(&mut self) {
        self.watch.shared.alive.store(false, Ordering::Release);
        self.watch.shared.gone.notify_one();
    }
}

/// Starts the actor that `make` makes, on this arbiter, and another one whenever it is gone, until the arbiter stops. What
/// `make` returns must hold a [`Present`] of `watch`.
pub fn supervise<A>(
    name: &'static str,
    arbiter: &ArbiterHandle,
    watch: Watch,
    mut make: impl FnMut() -> A + Send + 'static,
) where
    A: Actor<Context = Context<A>>,
{
    let started = arbiter.spawn(async move {
        loop {
            let address = make().start();
            watch.shared.gone.notified().await;
            drop(address);
            watch.shared.restarts.fetch_add(1, Ordering::Relaxed);
            log::error!("the actor {name} is gone; it is made anew");
            tokio::time::sleep(PAUSE).await;
        }
    });
    if !started {
        log::error!("the actor {name} cannot start: its arbiter has stopped");
    }
}
