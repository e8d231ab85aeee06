//! When published keys are fetched: every `auth.jwks_refresh_seconds`, and sooner when a token names a key that is not known.
//!
//! However many such tokens come, one fetch is under way at most, and the next begins `auth.jwks_min_refresh_seconds` after the
//! last one ended; a token that comes meanwhile is refused at once. A fetch that fails changes nothing, and is tried again after
//! the same pause, until the keys are older than `auth.jwks_stale_seconds`: then none of them holds any more.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chatting_actors::metrics::Metrics;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::{Notify, watch};

use super::{set::Published, source::Source};
use crate::auth::TokenVerifier;

/// How often, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct RefreshSettings {
    /// `auth.jwks_refresh_seconds`
    pub every: Duration,
    /// `auth.jwks_min_refresh_seconds`
    pub pause: Duration,
    /// `auth.jwks_stale_seconds`; `None` for good.
    pub stale: Option<Duration>,
    /// `auth.jwks_timeout_ms`
    pub timeout: Duration,
}

/// Where fetches are asked for; see the module's text.
pub struct Refresh {
    settings: RefreshSettings,
    state: Mutex<State>,
    wanted: Notify,
    /// Fetches that have ended.
    ended: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// One is under way, or will be at once.
    running: bool,
    /// One more is to follow, whatever the pause.
    again: bool,
    ended_at: Option<Instant>,
    good_at: Option<Instant>,
    error: Option<String>,
}

impl Refresh {
    /// Nothing was fetched yet.
    pub fn new(settings: RefreshSettings) -> Self {
        Self {
            settings,
            state: Mutex::default(),
            wanted: Notify::new(),
            ended: watch::Sender::new(0),
        }
    }

    /// Asks for a fetch. The future is done when it has ended, or has taken too long; `None`: the last one is too near.
    pub fn ask(&self) -> Option<BoxFuture<'static, ()>> {
        let mut state = self.state();
        let rested = state.ended_at.is_none_or(|at| at.elapsed() >= self.settings.pause);
        if !state.running {
            if !rested {
                return None;
            }
            state.running = true;
            self.wanted.notify_one();
        }
        let (mut ended, timeout) = (self.ended.subscribe(), self.settings.timeout);
        Some(async move { drop(tokio::time::timeout(timeout, ended.changed()).await) }.boxed())
    }

    /// Has the keys fetched now, whatever the pause.
    pub fn insist(&self) {
        let mut state = self.state();
        state.again = state.running;
        state.running = true;
        self.wanted.notify_one();
    }

    /// Why the last fetch failed; `None` when it did not.
    pub fn error(&self) -> Option<String> {
        self.state().error.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the next fetch is due or asked for.
    async fn due(&self) {
        let (ended_at, failed) = {
            let state = self.state();
            (state.ended_at, state.error.is_some())
        };
        let pause = if failed {
            self.settings.pause
        } else {
            self.settings.every
        };
        let left = ended_at.map_or(Duration::ZERO, |at| pause.saturating_sub(at.elapsed()));
        let timer = tokio::time::sleep(left);
        tokio::pin!(timer);
        loop {
            if self.state().running {
                return;
            }
            tokio::select! {
                () = &mut timer => {
                    self.state().running = true;
                    return;
                }
                // It may have been for a fetch that the timer had begun by then: the state tells.
                () = self.wanted.notified() => {}
            }
        }
    }

    fn end(&self, error: Option<String>) {
        let mut state = self.state();
        let now = Instant::now();
        state.running = std::mem::take(&mut state.again);
        state.ended_at = Some(now);
        if error.is_none() {
            state.good_at = Some(now);
        }
        state.error = error;
        self.ended.send_modify(|count| *count += 1);
    }

    /// Whether the keys that were fetched last have been held for too long.
    fn is_stale(&self) -> bool {
        let good_at = self.state().good_at;
        matches!((self.settings.stale, good_at), (Some(stale), Some(at)) if at.elapsed() > stale)
    }

    /// Fetches once and gives `tokens` what came. The error is one for the log.
    pub async fn fetch(&self, source: &Source, tokens: &TokenVerifier, metrics: &Metrics) -> Result<(), String> {
        self.state().running = true;
        let fetched = tokio::time::timeout(self.settings.timeout, source.fetch()).await;
        let fetched = fetched.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.settings.timeout)));
        let outcome = if fetched.is_ok() { "ok" } else { "error" };
        metrics.jwks_fetches.inc(outcome);
        let result = match fetched {
            Ok(Published { keys, skipped }) => {
                let count = keys.len();
                // Told when it changes, not every time.
                if tokens.set_published(keys) {
                    log::info!("tokens: {count} published keys, from {source}");
                    for why in skipped {
                        log::warn!("tokens: a published key is not used: {why}");
                    }
                }
                Ok(())
            }
            Err(error) => {
                if self.is_stale() && tokens.set_published(Vec::new()) {
                    log::error!(
                        "tokens: the published keys are too old (auth.jwks_stale_seconds): none holds any more"
                    );
                }
                Err(error)
            }
        };
        self.end(result.as_ref().err().cloned());
        result
    }
}

/// Fetches whenever it is time, for as long as it is polled.
pub async fn keep_fetching(refresh: Arc<Refresh>, source: Source, tokens: Arc<TokenVerifier>, metrics: Metrics) {
    loop {
        refresh.due().await;
        let before = refresh.error();
        match refresh.fetch(&source, &tokens, &metrics).await {
            Err(error) if before.as_ref() != Some(&error) => {
                log::warn!("tokens: {source}: {error}; the keys that were published before stay");
            }
            Ok(()) if before.is_some() => log::info!("tokens: {source} gives keys again"),
            _ => {}
        }
    }
}
