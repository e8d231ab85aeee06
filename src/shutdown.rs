//! A stop, in order (docs/ARCHITECTURE.md, "A stop"): v1 sessions are told when to come back while chat goes on, submits are refused, everything
//! numbered is answered, sessions are closed, HTTP ends. What is still under way there then accepts nothing: a read of the log, an
//! answer that its client does not take, a body that does not come. It has `shutdown.requests_seconds` and is cut. Then the spool is
//! closed and the arbiters end. Each step has its own deadline; `app.rs` `run_until` has all of them in their order.

use std::{
    io,
    pin::pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use actix::Arbiter;
use actix_web::{dev::ServerHandle, rt::task::JoinHandle};
use chatting_actors::{
    registry::{End, RegistryHandle},
    writer::{SpoolEnd, SpoolThread, WriterParts},
};
use futures_util::future::join_all;
use tokio::time::timeout;

use crate::{
    http::{lines::Lines, state::State},
    settings::Shutdown,
    startup,
};

/// How long a stop gives to what is under way.
pub(crate) struct Drain {
    /// `shutdown.requests_seconds`
    requests: Duration,
    /// `shutdown.drain_seconds`
    over: Duration,
    /// `shutdown.reconnect_after_ms`
    after: Duration,
    /// `shutdown.reconnect_spread_ms`
    spread: Duration,
}

/// How long connections that were cut may take to notice; and all that is left to do when the deadline is over.
pub(crate) const CUT: Duration = Duration::from_secs(1);

/// How often some more sessions are told.
const DRAIN_STEP: Duration = Duration::from_millis(100);

impl Drain {
    pub(crate) fn new(shutdown: &Shutdown) -> Self {
        Self {
            requests: Duration::from_secs(shutdown.requests_seconds),
            over: Duration::from_secs(shutdown.drain_seconds),
            after: Duration::from_millis(shutdown.reconnect_after_ms),
            spread: Duration::from_millis(shutdown.reconnect_spread_ms),
        }
    }

    /// Tells v1 sessions to connect again when the next server is there, before anything is refused: all of them, evenly over the time
    /// there is. Chat goes on meanwhile. With no v1 session it takes no time.
    async fn tell(&self, registry: &RegistryHandle) {
        let mut left = registry.tell_reconnect(0, Duration::ZERO, Duration::ZERO).await;
        let mut steps = usize::try_from(self.over.as_millis() / DRAIN_STEP.as_millis()).unwrap_or(0);
        // Few sessions need no more steps than one each.
        steps = steps.clamp(1, left.max(1));
        while left > 0 {
            let most = if steps == 1 { usize::MAX } else { left.div_ceil(steps) };
            let rest = DRAIN_STEP * u32::try_from(steps).unwrap_or(u32::MAX);
            left = registry.tell_reconnect(most, rest + self.after, self.spread).await;
            steps = steps.saturating_sub(1).max(1);
            // After the last ones too: what was told must reach them before the connection ends.
            tokio::time::sleep(DRAIN_STEP).await;
        }
    }
}

/// Everything up to the spool's last commit, within the time there is; `false`: the deadline was over first.
pub(crate) async fn stop_in_order(
    state: &State,
    (handle, lines): (&ServerHandle, &Lines),
    writer: &WriterParts,
    drain: &Drain,
    until: Instant,
) -> bool {
    let ordered = async {
        drain.tell(&state.registry).await;
        state.registry.refuse_submits().await;
        state.registry.end_sessions(End::GoingAway).await;
        let mut http_ends = pin!(handle.stop(true));
        if timeout(drain.requests, &mut http_ends).await.is_err() {
            let cut = lines.shut_all();
            log::warn!("stopping: {cut} connections that have not ended are cut");
            // A handler that waits for the log does not notice. Nobody waits for it any more, and the process ends.
            let _ = timeout(CUT, http_ends).await;
        }
    };
    if timeout(left_until(until), ordered).await.is_err() {
        log::error!(
            "stopping: the deadline is over; {} submits, {} sessions left",
            state.registry.gate().depth(),
            state.sessions.depth()
        );
        return false;
    }
    // The spool has everything; the store gets a moment if it is well, so that little is left for the next start.
    if state.health.store.error().is_none() {
        let _ = timeout(left_until(until).min(startup::STORE_COURTESY), writer.flush()).await;
    }
    true
}

/// Waits for the end of HTTP behind a stop that was in order, else ends it; whatever does not end until then ends with the process.
pub(crate) async fn end_http(
    in_order: bool,
    (handle, lines): (&ServerHandle, &Lines),
    server: JoinHandle<io::Result<()>>,
    until: Instant,
) -> io::Result<()> {
    let served = if in_order {
        // It has ended, but for connections that were cut and whose handlers do not notice.
        timeout(CUT.min(left_until(until)), server).await
    } else {
        // A server that is in its graceful stop hears this only when that is over, so its connections are ended; one that the
        // deadline found before hears it at once.
        let told = handle.stop(false);
        lines.shut_all();
        let cut = timeout(left_until(until), server).await;
        drop(told);
        cut
    };
    match served {
        Ok(Ok(served)) => served,
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// Waits for the end of the spool's thread, which was told to stop; returns whether it has come, and where it says what it left.
pub(crate) async fn close_spool(thread: SpoolThread, until: Instant) -> (bool, Arc<OnceLock<SpoolEnd>>) {
    let end = Arc::new(OnceLock::new());
    let told = Arc::clone(&end);
    let closed = join_until(until, move || {
        let _ = told.set(thread.join());
    })
    .await;
    if !closed {
        log::error!(
            "stopping: the deadline is over, and the disk does not let the spool be closed; the next start checks it"
        );
    }
    (closed, end)
}

/// The actors' arbiters. An arbiter outlives its handle and its system: these end with this.
pub(crate) struct Arbiters(Vec<(&'static str, Arbiter)>);

impl Arbiters {
    /// Of these names, for the log.
    pub fn new(arbiters: impl Into<Vec<(&'static str, Arbiter)>>) -> Self {
        Self(arbiters.into())
    }

    /// Ends them, with every actor on them: all at once, so that one that hangs takes no other's time.
    pub async fn join(mut self, until: Instant) {
        join_all(std::mem::take(&mut self.0).into_iter().map(async |(name, arbiter)| {
            arbiter.stop();
            let joined = join_until(until, move || {
                if arbiter.join().is_err() {
                    log::error!("the arbiter of {name} panicked");
                }
            });
            if !joined.await {
                log::warn!("stopping: the deadline is over, and the arbiter of {name} has not ended");
            }
        }))
        .await;
    }
}

impl Drop for Arbiters {
    fn drop(&mut self) {
        for (_, arbiter) in &self.0 {
            arbiter.stop();
        }
    }
}

/// Ends the server of `ops.bind`.
pub(crate) async fn end_ops(handle: ServerHandle, server: JoinHandle<io::Result<()>>, until: Instant) {
    let told = handle.stop(false);
    let _ = timeout(CUT.min(left_until(until)), server).await;
    drop(told);
}

pub(crate) fn left_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Waits for work that blocks until the deadline; `false`: it goes on, and ends with the process.
async fn join_until(deadline: Instant, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, wait) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new().name("join".into()).spawn(move || {
        work();
        let _ = done.send(());
    });
    spawned.is_err() || timeout(left_until(deadline), wait).await.is_ok()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[actix_web::test]
    async fn arbiters_end_with_who_has_them_although_nobody_joins_them() {
        let arbiter = Arbiter::new();
        let (holds, held) = oneshot::channel::<()>();
        arbiter.spawn(async move {
            let _holds = holds;
            std::future::pending::<()>().await;
        });
        drop(Arbiters::new([("one", arbiter)]));
        // What runs there goes with it.
        assert!(held.await.is_err());
    }
}
