//! Tokens that were verified, by a hash of the whole token, so that the next request with one costs a hash and not a signature.
//!
//! The key is the token's SHA-256: a token that is not the very same, to the byte, has another, so nothing that was not
//! verified is ever found (a shorter or faster hash could be made to collide, which would let one token pass as another).
//! Only good tokens are kept; their times are checked at each use. A cache belongs to one set of keys and is dropped with
//! it, so a change of keys forgets everything, and what was verified with the old keys cannot come into the new cache.
//!
//! When full: the token that was unused for longest in its shard goes. Sixteen shards, so that workers rarely meet at a lock.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::digest::{SHA256, digest};
use lru::LruCache;

use super::{Claims, token::Times};

const SHARDS: usize = 16;

type Hash = [u8; 32];

/// About `auth.cache_max` tokens at most, in shards by their hashes.
pub struct Cache {
    shards: Vec<Mutex<LruCache<Hash, Good>>>,
}

/// What a verified token says, and when.
#[derive(Clone)]
pub struct Good {
    /// What it says.
    pub claims: Claims,
    /// When.
    pub times: Times,
}

/// The name of a token in the cache.
pub struct Ticket(Hash);

impl Cache {
    /// A cache of about `max` tokens; `None` for 0.
    pub fn new(max: usize) -> Option<Self> {
        let each = NonZeroUsize::new(max.div_ceil(SHARDS))?;
        Some(Self {
            shards: (0..SHARDS).map(|_| Mutex::new(LruCache::new(each))).collect(),
        })
    }

    /// The token's name, and what is known of it.
    pub fn look(&self, token: &str) -> (Ticket, Option<Good>) {
        let mut hash = Hash::default();
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let good = self.shard(&hash).get(&hash).cloned();
        (Ticket(hash), good)
    }

    /// Remembers a token that was verified.
    pub fn keep(&self, Ticket(hash): Ticket, good: Good) {
        self.shard(&hash).put(hash, good);
    }

    /// Forgets a token whose time is over.
    pub fn forget(&self, Ticket(hash): &Ticket) {
        self.shard(hash).pop(hash);
    }

    /// How many tokens it knows.
    pub fn len(&self) -> usize {
        let locked = |shard: &Mutex<LruCache<Hash, Good>>| shard.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.shards.iter().map(locked).sum()
    }

    fn shard(&self, hash: &Hash) -> MutexGuard<'_, LruCache<Hash, Good>> {
        let shard = &self.shards[usize::from(hash[0]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
