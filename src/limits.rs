//! How often someone may do something: token buckets by key (rule 19; rule 15 for reconnects).
//!
//! A bucket holds `burst` and fills with so many a second. Only keys that were proven are counted (a verified user, a room of a
//! message that parses, a client's address, which only a trusted proxy may name for another), so nobody can use up another's.
//! Bounded: `limits.tracked` keys a kind, the one unseen for longest is forgotten, which can only let it in. Sharded by key, so that
//! the workers rarely wait for each other, and never on the registry's path.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chatting_actors::{
    bucket::{Bucket, Rate},
    types::{PresenterIdx, UserIdx},
};
use lru::LruCache;

use crate::{
    error::{ApiError, Code},
    settings::Settings,
};

/// Locks that the keys are spread over.
const SHARDS: usize = 16;

/// Too often: when the next one may come, and how many may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOften {
    /// After this long.
    pub wait: Duration,
    /// The bucket's size.
    pub burst: u32,
}

/// Whole seconds to wait, rounded up, as Retry-After has them: one at least, for 0 would be an invitation.
pub fn whole_seconds(wait: Duration) -> u32 {
    let seconds = wait.as_nanos().div_ceil(1_000_000_000).max(1);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

impl TooOften {
    /// The refusal, with what is too often in English.
    pub fn error(self, what: &'static str) -> ApiError {
        ApiError::new(Code::RateLimited)
            .with_detail(what)
            .with_rate_limit(self.burst, whole_seconds(self.wait))
    }
}

/// Buckets of one kind: [`Buckets::take`] lets a key through, or tells when it may come again.
pub struct Buckets<K> {
    /// `None` lets everything through.
    rate: Option<Rate>,
    hasher: RandomState,
    shards: Vec<Mutex<LruCache<K, Bucket>>>,
}

impl<K: Hash + Eq> Buckets<K> {
    /// Buckets for at most about `tracked` keys. `per_second` of 0 lets everything through.
    pub fn new(burst: u32, per_second: f64, tracked: usize) -> Self {
        let each = NonZeroUsize::new(tracked.div_ceil(SHARDS)).unwrap_or(NonZeroUsize::MIN);
        let rate = Rate {
            burst: f64::from(burst),
            per_second,
        };
        Self {
            rate: Some(rate).filter(|rate| rate.per_second > 0.0),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::new(LruCache::new(each))).collect(),
        }
    }

    /// Counts one more.
    pub fn take(&self, key: K, now: Instant) -> Result<(), TooOften> {
        let Some(rate) = self.rate else {
            return Ok(());
        };
        let shard = self.hasher.hash_one(&key) as usize % self.shards.len();
        let mut buckets = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get_or_insert_mut(key, || Bucket::full(rate, now));
        let taken = bucket.take(1.0, rate, now);
        taken.map_err(|wait| TooOften {
            wait,
            burst: rate.burst as u32,
        })
    }
}

/// A few at a time for each user, of something that takes long. As many users are in it as are at it, which a gate bounds.
#[derive(Clone)]
pub struct FewEach {
    most: usize,
    users: Arc<Mutex<HashMap<UserIdx, usize>>>,
}

impl FewEach {
    /// At most so many of each user.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            users: Arc::default(),
        }
    }

    /// How many that are.
    pub fn most(&self) -> usize {
        self.most
    }

    /// This user begins one more, until what is returned is dropped; `None` when they are at as many as they may be already.
    pub fn begin(&self, user: UserIdx) -> Option<AtIt> {
        let mut users = self.users();
        let under_way = users.entry(user).or_insert(0);
        // Whoever has none under way may begin one, so none is left at 0.
        if *under_way >= self.most.max(1) {
            return None;
        }
        *under_way += 1;
        drop(users);
        Some(AtIt { of: self.clone(), user })
    }

    fn users(&self) -> MutexGuard<'_, HashMap<UserIdx, usize>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`FewEach::begin`].
pub struct AtIt {
    of: FewEach,
    user: UserIdx,
}

impl Drop for AtIt {
    fn drop(&mut self) {
        let mut users = self.of.users();
        if let Some(under_way) = users.get_mut(&self.user) {
            *under_way -= 1;
            if *under_way == 0 {
                users.remove(&self.user);
            }
        }
    }
}

/// Everything that is limited by rate.
pub struct Rates {
    /// `limits.sender_*`: messages of one user.
    pub senders: Buckets<UserIdx>,
    /// `limits.room_*`: messages to one room, of those who are not its staff.
    pub rooms: Buckets<PresenterIdx>,
    /// `limits.bulk_deletes_*`: deletions by user or by time of one user,
    pub bulk_deletes: Buckets<UserIdx>,
    /// and in one room, twice as many: no one of its staff takes what the others have.
    pub room_bulk_deletes: Buckets<PresenterIdx>,
    /// `session.reconnect_*`: sessions of one presenter that begin.
    pub reconnects: Buckets<PresenterIdx>,
    /// `limits.address_*`: upgrades of one client address.
    pub upgrades: Buckets<IpAddr>,
}

impl Rates {
    /// As the settings have it.
    pub fn new(settings: &Settings) -> Self {
        let (limits, session) = (&settings.limits, &settings.session);
        let tracked = limits.tracked;
        let per_minute = |rate: u32| f64::from(rate) / 60.0;
        let (bulk_burst, bulk_rate) = (limits.bulk_deletes_burst, per_minute(limits.bulk_deletes_per_minute));
        Self {
            senders: Buckets::new(limits.sender_burst, f64::from(limits.sender_per_second), tracked),
            rooms: Buckets::new(limits.room_burst, f64::from(limits.room_per_second), tracked),
            bulk_deletes: Buckets::new(bulk_burst, bulk_rate, tracked),
            room_bulk_deletes: Buckets::new(bulk_burst.saturating_mul(2), bulk_rate * 2.0, tracked),
            reconnects: Buckets::new(
                session.reconnect_burst,
                per_minute(session.reconnect_per_minute),
                tracked,
            ),
            upgrades: Buckets::new(limits.address_burst, per_minute(limits.address_per_minute), tracked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presenter(n: i64) -> PresenterIdx {
        PresenterIdx::new(n).unwrap()
    }

    fn wait(milliseconds: u64) -> Result<(), TooOften> {
        Err(TooOften {
            wait: Duration::from_millis(milliseconds),
            burst: 3,
        })
    }

    #[test]
    fn a_burst_may_come_then_the_rate_counts_and_others_are_not_touched() {
        let buckets = Buckets::new(3, 1.0, 10_000);
        let now = Instant::now();
        let storm: Vec<_> = (0..5).map(|_| buckets.take(presenter(1), now)).collect();
        assert_eq!(storm[..3], [Ok(()), Ok(()), Ok(())]);
        assert_eq!(storm[3..], [wait(1000), wait(1000)]);
        assert_eq!(buckets.take(presenter(2), now), Ok(()));
        let later = now + Duration::from_millis(1500);
        assert_eq!(buckets.take(presenter(1), later), Ok(()));
        assert_eq!(buckets.take(presenter(1), later), wait(500));
    }

    #[test]
    fn who_is_to_wait_is_told_one_second_at_least() {
        let told = [0, 1, 200_000, 999_999_999, 1_000_000_000, 1_000_000_001].map(Duration::from_nanos);
        assert_eq!(told.map(whole_seconds), [1, 1, 1, 1, 1, 2]);
        assert_eq!(whole_seconds(Duration::MAX), u32::MAX);
    }

    #[test]
    fn it_remembers_no_more_keys_than_it_may() {
        let buckets = Buckets::new(1, 1.0, 1);
        let now = Instant::now();
        for n in 0..1000 {
            assert_eq!(buckets.take(presenter(n), now), Ok(()));
        }
        let kept: usize = buckets.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(kept <= SHARDS, "{kept}");
        assert!(buckets.take(presenter(999), now).is_err());
    }

    #[test]
    fn who_is_at_it_begins_again_when_it_is_over_and_keeps_nobody_else() {
        let (each, [one, other]) = (FewEach::new(1), [7, 8].map(|n| UserIdx::new(n).unwrap()));
        let first = each.begin(one).unwrap();
        let second = each.begin(other).unwrap();
        assert!(each.begin(one).is_none() && each.begin(other).is_none());
        drop(first);
        let again = each.begin(one);
        assert!(again.is_some() && each.begin(other).is_none());
        drop((again, second));
        assert!(each.users().is_empty());
    }

    #[test]
    fn each_user_has_so_many_under_way_and_who_has_none_is_not_remembered() {
        let (few, [one, other]) = (FewEach::new(2), [7, 8].map(|n| UserIdx::new(n).unwrap()));
        let begun = [few.begin(one), few.begin(one), few.begin(other)];
        assert!(begun.iter().all(Option::is_some) && few.begin(one).is_none());
        let [first, rest @ ..] = begun;
        drop(first);
        let again = few.begin(one);
        assert!(again.is_some() && few.begin(one).is_none());
        drop((rest, again));
        assert!(few.users().is_empty());
    }

    #[test]
    fn a_rate_of_0_limits_nothing() {
        let buckets = Buckets::new(1, 0.0, 1);
        let now = Instant::now();
        assert!((0..1000).all(|_| buckets.take(presenter(1), now).is_ok()));
    }
}
