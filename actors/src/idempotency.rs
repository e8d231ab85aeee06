//! Idempotency (rule 17, draft-ietf-httpapi-idempotency-key-header): a request that is sent again gets the first answer.
//!
//! A hash in memory, filled again at a start from the spool's time-ordered rows, because an index on random keys costs
//! more than the message itself. Only acceptances are kept; none is evicted within the window. When full, in all or for
//! one sender, keyed requests are refused and unkeyed ones go on.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use ahash::RandomState;
use sha2::{Digest, Sha256};

use crate::{
    outcome::Accepted,
    types::{PresenterIdx, UserIdx},
};

/// A request's key in its scope, and what it was used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// The key as the sender gave it.
    pub key: Box<str>,
    /// Names (user_idx, presenter_idx, key).
    id: [u8; 16],
    /// Tells one text from another.
    fingerprint: [u8; 16],
}

impl Keyed {
    /// The key of a message: scope (user_idx, presenter_idx, key), for this text.
    pub fn new(user: UserIdx, presenter: PresenterIdx, key: &str, text: &str) -> Arc<Self> {
        let mut scope = Sha256::new();
        scope.update(user.get().to_le_bytes());
        scope.update(presenter.get().to_le_bytes());
        scope.update(key.as_bytes());
        Arc::new(Self {
            key: key.into(),
            id: half(&scope.finalize()),
            fingerprint: half(&Sha256::digest(text.as_bytes())),
        })
    }
}

impl Keyed {
    /// The key of a message whose text is known by its fingerprint only.
    pub fn restored(user: UserIdx, presenter: PresenterIdx, key: &str, fingerprint: [u8; 16]) -> Arc<Self> {
        let mut keyed = Arc::unwrap_or_clone(Self::new(user, presenter, key, ""));
        keyed.fingerprint = fingerprint;
        Arc::new(keyed)
    }

    /// Tells one text from another.
    pub fn fingerprint(&self) -> &[u8; 16] {
        &self.fingerprint
    }
}

fn half(digest: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

/// What operators set for the table. `settings.toml` documents each.
#[derive(Clone, Copy, Debug)]
pub struct KeyConfig {
    /// `idempotency.window_seconds`, in milliseconds
    pub window_ms: i64,
    /// `idempotency.max`
    pub max: usize,
    /// `idempotency.sender_max`
    pub sender_max: usize,
}

impl KeyConfig {
    /// From when on acceptances may be within the window, by the times that their messages carry; for [`KeyTable::new`], with the
    /// same times.
    pub fn since_ms(&self, now_ms: i64, newest_ms: i64) -> i64 {
        now_ms.min(newest_ms).saturating_sub(self.window_ms)
    }
}

/// An acceptance as the spool kept it.
#[derive(Clone, Debug)]
pub struct KeyRow {
    /// Whose it is.
    pub user_idx: UserIdx,
    /// The key.
    pub keyed: Arc<Keyed>,
    /// The first answer.
    pub accepted: Accepted,
}

/// What a key means to a request that brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing yet: the request goes on, and is in progress from now.
    New,
    /// The first request with this key has no answer yet.
    InProgress,
    /// The key was used for another text.
    Conflict,
    /// It was accepted before: this is the first answer.
    Accepted(Accepted),
    /// There is no room for another key; which bound it is, as a refusal names it.
    Full(&'static str),
}

struct Entry {
    user_idx: UserIdx,
    fingerprint: [u8; 16],
    /// `None` while in progress.
    accepted: Option<Accepted>,
}

/// The keys within the window.
pub struct KeyTable {
    config: KeyConfig,
    entries: HashMap<[u8; 16], Entry, RandomState>,
    by_age: VecDeque<(i64, [u8; 16])>,
    of_sender: HashMap<UserIdx, usize, RandomState>,
}

impl KeyTable {
    /// A table with what the spool kept, oldest first, at `now_ms` ([`steady_ms`](crate::clock::steady_ms)), when the newest message is
    /// stamped with `newest_ms` ([`EventClock::last_ms`](crate::clock::EventClock::last_ms)).
    pub fn new(config: KeyConfig, rows: Vec<KeyRow>, now_ms: i64, newest_ms: i64) -> Self {
        let mut table = Self {
            config,
            entries: HashMap::default(),
            by_age: VecDeque::new(),
            of_sender: HashMap::default(),
        };
        for row in rows {
            table.insert(row.user_idx, &row.keyed);
            // A message's time is ahead of ours where the system's clock was; its key is not kept the longer for it. It
            // is behind where that was set back, and at a start with a clock that is wrong: keys age from the newest
            // message on, as if nothing had passed since, for a key may be kept too long, by the time since the newest
            // message, however long, but not too short.
            let behind = now_ms.saturating_sub(newest_ms).max(0);
            let at = row.accepted.sent_at_ms.saturating_add(behind).min(now_ms);
            table.accept(&row.keyed, row.accepted, at);
        }
        table
    }

    /// How many keys it holds.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// A request brings this key at `now_ms` ([`steady_ms`](crate::clock::steady_ms)).
    pub fn begin(&mut self, user: UserIdx, keyed: &Keyed, now_ms: i64) -> Found {
        self.expire(now_ms);
        if let Some(entry) = self.entries.get(&keyed.id) {
            return match &entry.accepted {
                _ if entry.fingerprint != keyed.fingerprint => Found::Conflict,
                Some(accepted) => Found::Accepted(accepted.clone()),
                None => Found::InProgress,
            };
        }
        let of_sender = self.of_sender.get(&user).copied().unwrap_or(0);
        if self.entries.len() >= self.config.max {
            return Found::Full("idempotency");
        }
        if of_sender >= self.config.sender_max {
            return Found::Full("idempotency_sender");
        }
        self.insert(user, keyed);
        Found::New
    }

    /// Marks a key as in progress whatever the bounds: its message is under way already.
    pub fn insert(&mut self, user_idx: UserIdx, keyed: &Keyed) {
        let entry = Entry {
            user_idx,
            fingerprint: keyed.fingerprint,
            accepted: None,
        };
        if self.entries.insert(keyed.id, entry).is_none() {
            *self.of_sender.entry(user_idx).or_default() += 1;
        }
    }

    /// The key's message was accepted at `now_ms`, and those of messages that were sent before it are told before: the
    /// answer is kept for the window from then on. The message's own time is no measure: it is the system clock's, which
    /// may be set ahead and back.
    pub fn accept(&mut self, keyed: &Keyed, accepted: Accepted, now_ms: i64) {
        if let Some(entry) = self.entries.get_mut(&keyed.id) {
            self.by_age.push_back((now_ms, keyed.id));
            entry.accepted = Some(accepted);
        }
    }

    /// The key's message was refused: nothing is kept.
    pub fn abandon(&mut self, keyed: &Keyed) {
        if self
            .entries
            .get(&keyed.id)
            .is_some_and(|entry| entry.accepted.is_none())
        {
            self.remove(keyed.id);
        }
    }

    /// Forgets those whose window is over.
    pub fn expire(&mut self, now_ms: i64) {
        while let Some((at, id)) = self.by_age.front().copied()
            && at.saturating_add(self.config.window_ms) < now_ms
        {
            self.by_age.pop_front();
            self.remove(id);
        }
    }

    /// When the oldest message was sent whose key is remembered. `None`: no message that was accepted has one.
    pub fn oldest_ms(&self) -> Option<i64> {
        let mut ids = self.by_age.iter().map(|(_, id)| id);
        ids.find_map(|id| Some(self.entries.get(id)?.accepted.as_ref()?.sent_at_ms))
    }

    fn remove(&mut self, id: [u8; 16]) {
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        if let Some(count) = self.of_sender.get_mut(&entry.user_idx) {
            *count -= 1;
            if *count == 0 {
                self.of_sender.remove(&entry.user_idx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        outcome::Delivery,
        types::{Epoch, Seq},
    };

    fn user(n: i64) -> UserIdx {
        UserIdx::new(n).unwrap()
    }

    fn keyed(sender: i64, room: i64, key: &str, text: &str) -> Arc<Keyed> {
        Keyed::new(user(sender), PresenterIdx::new(room).unwrap(), key, text)
    }

    fn answer(at: i64) -> Accepted {
        Accepted {
            id: Uuid::from_u128(at.cast_unsigned().into()),
            seq: Seq(at.cast_unsigned()),
            epoch: Epoch("e".into()),
            sent_at_ms: at,
            delivery: Delivery::Delivered,
        }
    }

    fn table(max: usize, sender_max: usize) -> KeyTable {
        let config = KeyConfig {
            window_ms: 100,
            max,
            sender_max,
        };
        KeyTable::new(config, Vec::new(), 0, 0)
    }

    #[test]
    fn rule_17_a_message_whose_time_is_ahead_keeps_its_key_for_the_window_and_no_longer() {
        let mut table = table(10, 10);
        let key = keyed(1, 2, "k", "hi");
        assert_eq!(table.begin(user(1), &key, 5), Found::New);
        table.accept(&key, answer(86_400_000), 5);
        assert_eq!(table.begin(user(1), &key, 105), Found::Accepted(answer(86_400_000)));
        assert_eq!(table.begin(user(1), &key, 106), Found::New);
        let config = KeyConfig {
            window_ms: 100,
            max: 10,
            sender_max: 10,
        };
        let row = KeyRow {
            user_idx: user(1),
            keyed: Keyed::restored(user(1), PresenterIdx::new(2).unwrap(), "k", *key.fingerprint()),
            accepted: answer(86_400_000),
        };
        let mut restored = KeyTable::new(config, vec![row], 5, 86_400_000);
        assert_eq!(restored.begin(user(1), &key, 105), Found::Accepted(answer(86_400_000)));
        assert_eq!(restored.begin(user(1), &key, 106), Found::New);
    }

    #[test]
    fn rule_17_a_clock_set_back_costs_no_key_when_the_table_is_read_again() {
        let config = KeyConfig {
            window_ms: 100,
            max: 10,
            sender_max: 10,
        };
        // The system's clock was set back by much more than the window, and messages are stamped with 50 since.
        let (now_ms, newest_ms) = (1_000_000, 50);
        assert_eq!(config.since_ms(now_ms, newest_ms), -50);
        let rows = [20, 50].map(|at| KeyRow {
            user_idx: user(1),
            keyed: keyed(1, 2, &at.to_string(), "hi"),
            accepted: answer(at),
        });
        let mut table = KeyTable::new(config, rows.to_vec(), now_ms, newest_ms);
        let (older, newer) = (keyed(1, 2, "20", "hi"), keyed(1, 2, "50", "hi"));
        assert_eq!(table.begin(user(1), &older, now_ms + 70), Found::Accepted(answer(20)));
        assert_eq!(table.begin(user(1), &older, now_ms + 71), Found::New);
        assert_eq!(table.begin(user(1), &newer, now_ms + 100), Found::Accepted(answer(50)));
        assert_eq!(table.begin(user(1), &newer, now_ms + 101), Found::New);
        // Set ahead, it makes nobody read less.
        assert_eq!(config.since_ms(1_000, 1_000_000), 900);
    }

    #[test]
    fn rule_17_the_same_key_and_text_gets_the_first_answer_within_the_window() {
        let mut table = table(10, 10);
        let first = keyed(1, 2, "k", "hi");
        assert_eq!(table.begin(user(1), &first, 0), Found::New);
        assert_eq!(table.begin(user(1), &first, 0), Found::InProgress);
        table.accept(&first, answer(5), 5);
        assert_eq!(table.begin(user(1), &first, 105), Found::Accepted(answer(5)));
        assert_eq!(table.begin(user(1), &keyed(1, 2, "k", "other"), 50), Found::Conflict);
        assert_eq!(table.begin(user(1), &first, 106), Found::New);
    }

    #[test]
    fn rule_17_a_keys_scope_is_its_sender_and_its_room() {
        let mut table = table(10, 10);
        for one in [
            keyed(1, 2, "k", "a"),
            keyed(1, 3, "k", "b"),
            keyed(2, 2, "k", "c"),
            keyed(1, 2, "l", "d"),
        ] {
            assert_eq!(table.begin(user(1), &one, 0), Found::New);
        }
    }

    #[test]
    fn rule_17_a_refusal_is_not_kept() {
        let mut table = table(10, 10);
        let first = keyed(1, 2, "k", "hi");
        assert_eq!(table.begin(user(1), &first, 0), Found::New);
        table.abandon(&first);
        assert_eq!(table.len(), 0);
        assert_eq!(table.begin(user(1), &keyed(1, 2, "k", "other"), 0), Found::New);
    }

    #[test]
    fn rule_17_it_tells_of_the_oldest_message_whose_key_it_remembers() {
        let mut table = table(10, 10);
        assert_eq!(table.oldest_ms(), None);
        for (key, at) in [("a", 3), ("b", 5)] {
            let key = keyed(1, 2, key, "x");
            assert_eq!(table.begin(user(1), &key, at), Found::New);
            // What is in progress is not accepted, and says nothing.
            assert_eq!(table.oldest_ms(), (at > 3).then_some(1003));
            table.accept(&key, answer(1000 + at), at);
        }
        for (now_ms, oldest) in [(103, Some(1003)), (104, Some(1005)), (106, None)] {
            table.expire(now_ms);
            assert_eq!(table.oldest_ms(), oldest);
        }
    }

    #[test]
    fn rule_17_a_full_table_or_a_senders_cap_refuses_and_evicts_nothing() {
        let mut table = table(3, 2);
        let keys: Vec<_> = (0..3).map(|n| keyed(1, 2, &n.to_string(), "x")).collect();
        for one in &keys[..2] {
            assert_eq!(table.begin(user(1), one, 0), Found::New);
            table.accept(one, answer(1), 1);
        }
        assert_eq!(table.begin(user(1), &keys[2], 0), Found::Full("idempotency_sender"));
        let other = keyed(2, 2, "k", "x");
        assert_eq!(table.begin(user(2), &other, 0), Found::New);
        assert_eq!(
            table.begin(user(3), &keyed(3, 2, "k", "x"), 0),
            Found::Full("idempotency")
        );
        assert_eq!(table.begin(user(1), &keys[0], 0), Found::Accepted(answer(1)));
        // The window is over: there is room again.
        assert_eq!(table.begin(user(1), &keys[2], 200), Found::New);
        assert_eq!(table.len(), 2);
    }
}
