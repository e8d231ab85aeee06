//! All keys that hold at one time, with the tokens that were verified with them. Replaced as a whole.

use std::sync::Arc;

use super::{cache::Cache, key::Key};

/// Never changed: a reload or a fetch makes others.
pub struct Keys {
    /// Those of the settings, the present one first.
    pub of_settings: Arc<Vec<Key>>,
    /// Those that are published (`auth.jwks_url`).
    pub published: Arc<Vec<Key>>,
    /// Tokens that these keys have verified.
    pub cache: Option<Cache>,
}

impl Keys {
    /// These keys, with nothing verified yet.
    pub fn new(of_settings: Arc<Vec<Key>>, published: Arc<Vec<Key>>, cache_max: usize) -> Self {
        Self {
            of_settings,
            published,
            cache: Cache::new(cache_max),
        }
    }

    /// Whether no token can be verified.
    pub fn is_empty(&self) -> bool {
        self.of_settings.is_empty() && self.published.is_empty()
    }
}
