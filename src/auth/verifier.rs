//! Verifies tokens with whatever keys hold now.
//!
//! The keys are one value that is replaced as a whole, by a reload or by a fetch of published keys; verifying takes a
//! reference to it and nothing else, so it never waits for either. A token whose key may be there in a moment can be waited
//! for ([`TokenVerifier::admit`]); how often that costs a fetch is [`Refresh`]'s to bound.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use chatting_actors::metrics::Metrics;
use futures_util::future::BoxFuture;

use super::{
    Claims,
    jwks::Refresh,
    key::Key,
    keys::Keys,
    token::{Reader, TokenError, TokenRules},
};

/// Tells who has a token ([`Claims`]), or why it does not count ([`TokenError`]). One a process, shared by all workers.
pub struct TokenVerifier {
    reader: Reader,
    cache_max: usize,
    keys: RwLock<Arc<Keys>>,
    refresh: Option<Arc<Refresh>>,
    metrics: Metrics,
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenVerifier")
    }
}

impl TokenVerifier {
    /// A verifier with the settings' keys. `refresh` is asked for published ones, where there are any. `cache_max` is
    /// `auth.cache_max`.
    pub fn new(
        rules: TokenRules,
        keys: Vec<Key>,
        refresh: Option<Arc<Refresh>>,
        cache_max: usize,
        metrics: Metrics,
    ) -> Self {
        let keys = Keys::new(Arc::new(keys), Arc::default(), cache_max);
        Self {
            reader: Reader::new(rules),
            cache_max,
            keys: RwLock::new(Arc::new(keys)),
            refresh,
            metrics,
        }
    }

    /// What the token says, if it is ours and its time is now, by the keys that are here now.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        self.verify_by(&self.keys(), token)
    }

    fn verify_by(&self, keys: &Keys, token: &str) -> Result<Claims, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > self.reader.rules.max_token_bytes {
            return Err(TokenError::TooLong);
        }
        let Some(cache) = &keys.cache else {
            return Ok(self.reader.read(token, keys)?.claims);
        };
        let (ticket, known) = cache.look(token);
        if let Some(good) = known {
            self.metrics.token_cache_hits.inc();
            return match good.times.check(self.reader.rules.leeway_seconds) {
                Ok(()) => Ok(good.claims),
                Err(error) => {
                    cache.forget(&ticket);
                    Err(error)
                }
            };
        }
        self.metrics.token_cache_misses.inc();
        let good = self.reader.read(token, keys)?;
        let claims = good.claims.clone();
        cache.keep(ticket, good);
        Ok(claims)
    }

    /// As [`TokenVerifier::verify`], but a token whose key may be published by now waits for a fetch of the keys, at most
    /// `auth.jwks_timeout_ms`. Counts a refusal.
    pub async fn admit(&self, token: &str) -> Result<Claims, TokenError> {
        let verdict = match self.verify_or_wait(token) {
            Verdict::Now(verdict) => verdict,
            Verdict::Behind(fetched) => {
                fetched.await;
                self.verify(token)
            }
        };
        verdict.inspect_err(|error| self.count(*error))
    }

    /// As [`TokenVerifier::verify`], unless the token's key may be published by now and may be fetched.
    pub fn verify_or_wait(&self, token: &str) -> Verdict {
        let keys = self.keys();
        let verdict = self.verify_by(&keys, token);
        self.or_wait(token, &keys, verdict)
    }

    /// What stands of a verdict by these keys.
    fn or_wait(&self, token: &str, keys: &Arc<Keys>, verdict: Result<Claims, TokenError>) -> Verdict {
        if !verdict.as_ref().is_err_and(|error| error.may_pass()) {
            return Verdict::Now(verdict);
        }
        if let Some(fetched) = self.refresh.as_ref().and_then(|refresh| refresh.ask()) {
            return Verdict::Behind(fetched);
        }
        // The last fetch is too near for another one. It may have ended, and brought the key, since these were looked at.
        let now = self.keys();
        Verdict::Now(if Arc::ptr_eq(keys, &now) {
            verdict
        } else {
            self.verify_by(&now, token)
        })
    }

    /// `auth.leeway_seconds` in milliseconds: for so long behind the second of its `exp` a token is good.
    pub fn leeway_ms(&self) -> i64 {
        i64::try_from(self.reader.rules.leeway_seconds.saturating_mul(1000)).unwrap_or(i64::MAX)
    }

    /// Counts a refused token.
    pub fn count(&self, error: TokenError) {
        self.metrics.tokens_refused.inc(error.reason());
    }

    /// Fetches the published keys now, where there are any.
    pub fn refetch(&self) {
        if let Some(refresh) = &self.refresh {
            refresh.insist();
        }
    }

    /// From now on these are the settings' keys. Returns whether they are others than before; what was verified is
    /// forgotten then.
    pub fn set_keys(&self, keys: Vec<Key>) -> bool {
        self.replace(|now| (*now.of_settings != keys).then(|| (Arc::new(keys), Arc::clone(&now.published))))
    }

    /// From now on these are the published keys. Returns whether they are others than before, in whatever order; what was verified is
    /// forgotten then.
    pub fn set_published(&self, mut keys: Vec<Key>) -> bool {
        // No two have one name, so the order says nothing, and not every service keeps to one.
        keys.sort_unstable_by(Key::by_content);
        let count = i64::try_from(keys.len()).unwrap_or(i64::MAX);
        self.metrics.jwks_keys.set(count);
        self.replace(|now| (*now.published != keys).then(|| (Arc::clone(&now.of_settings), Arc::new(keys))))
    }

    /// Why tokens cannot be verified, or only with keys that should have been replaced.
    pub fn trouble(&self) -> Option<Trouble> {
        let error = self.refresh.as_ref()?.error()?;
        Some(Trouble {
            no_key: self.keys().is_empty(),
            error,
        })
    }

    /// How many verified tokens are remembered.
    pub fn remembered(&self) -> usize {
        self.keys().cache.as_ref().map_or(0, |cache| cache.len())
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, change: impl FnOnce(&Keys) -> Option<(Arc<Vec<Key>>, Arc<Vec<Key>>)>) -> bool {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let Some((of_settings, published)) = change(&keys) else {
            return false;
        };
        *keys = Arc::new(Keys::new(of_settings, published, self.cache_max));
        true
    }
}

/// What becomes of a token.
pub enum Verdict {
    /// This, by the keys that are here now.
    Now(Result<Claims, TokenError>),
    /// It is to be verified when this is done: the published keys have been fetched once more then, or that took too long.
    Behind(BoxFuture<'static, ()>),
}

/// Published keys cannot be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Whether there is no other key either.
    pub no_key: bool,
    /// Why.
    pub error: String,
}

#[cfg(test)]
mod tests;
