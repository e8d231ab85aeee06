//! A stop, in order (docs/ARCHITECTURE.md, "A stop"): v1 sessions are told when to come back while chat goes on, submits are refused, everything
//! numbered is answered, sessions are closed, HTTP ends. What is still under way there then accepts nothing: a read of the log, an
//! answer that its client does not take, a body that does not come. It has `shutdown.requests_seconds` and is cut.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use actix_web::dev::ServerHandle;
use chatting_actors::{
    registry::{End, RegistryHandle},
    writer::WriterParts,
};

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
    let left = || until.saturating_duration_since(Instant::now());
    let ordered = async {
        drain.tell(&state.registry).await;
        state.registry.refuse_submits().await;
        state.registry.end_sessions(End::GoingAway).await;
        let mut http_ends = pin!(handle.stop(true));
        if timeout(drain.requests, &mut http_ends).await.is_err() {
            let cut = lines.shut_all();
            log::warn!("stopping: {cut} connections with requests under way are cut");
            // A handler that waits for the log does not notice. Nobody waits for it any more, and the process ends.
            let _ = timeout(CUT, http_ends).await;
        }
    };
    if timeout(left(), ordered).await.is_err() {
        log::error!(
            "stopping: the deadline is over; {} submits, {} sessions left",
            state.registry.gate().depth(),
            state.sessions.depth()
        );
        return false;
    }
    // The spool has everything; the store gets a moment if it is well, so that little is left for the next start.
    if state.health.store.error().is_none() {
        let _ = timeout(left().min(startup::STORE_COURTESY), writer.flush()).await;
    }
    true
}
