//! The memory that answers take until their clients have taken them: `server.answers_max_bytes`, of those that are longer than a piece
//! ([`super::lines::long`]).
//!
//! When full, one more is refused. So that nobody is refused for what one client leaves, a user has a share of it
//! (`server.answers_share_bytes`), and all who have not said who they are have one together. And a part is left to moderators of all
//! rooms, operators and `/metrics` (`RESERVE`), so that they see who fills the rest; half of it, and no more, scrapes may have, for which
//! nobody has to say who they are. Who has nothing under way is given one answer of whatever length, and one that is longer than
//! all that its asker may have counts as all of it. What changes something and is answered at length takes the room before it does so,
//! and leaves what it was given ([`Held`]) among the data of its answer: what has happened must not be told as refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chatting_actors::{
    gate::{Gate, Permit},
    types::{Role, UserIdx},
};

use crate::auth::{Claims, Rooms};

/// One in so many bytes is left to those who look after the server.
const RESERVE: usize = 4;

/// Whose answer it is. `identify::who` puts it among the data of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asker {
    /// A viewer, a presenter, which everybody is of the room with their own number, or a moderator of some rooms.
    User(UserIdx),
    /// A moderator of all rooms, or an operator: no share.
    Staff,
    /// Whoever asks for `/metrics` and the like.
    Operations,
    /// Whoever has not said who they are.
    Nobody,
}

impl Asker {
    /// Who these claims are of.
    pub fn of(claims: &Claims) -> Self {
        match (claims.role, &claims.rooms) {
            (Role::Operator, _) | (Role::Moderator, Rooms::All) => Self::Staff,
            _ => Self::User(claims.user_idx),
        }
    }
}

/// Why there is no room for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// Nobody's, or nobody's but the reserve.
    All,
    /// This asker has taken too little of what it asked for.
    Share,
}

/// Hands the room out. Clones share it.
#[derive(Clone)]
pub struct Answers {
    gate: Arc<Gate>,
    share: usize,
    /// What each asker has of it; as many are in it as have something.
    held: Arc<Mutex<HashMap<Asker, usize>>>,
}

impl Answers {
    /// `max` bytes, of which one asker may have `share`.
    pub fn new(max: usize, share: usize) -> Self {
        Self {
            gate: Gate::new("answers", max),
            share,
            held: Arc::default(),
        }
    }

    /// The permits of `server.answers_max_bytes`.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Room for an answer of so many bytes, given back when that is dropped.
    pub fn hold(&self, bytes: usize, asker: Asker) -> Result<Held, NoRoom> {
        let reserved = self.gate.capacity() / RESERVE;
        let (share, reserve) = match asker {
            Asker::User(_) | Asker::Nobody => (Some(self.share), reserved),
            Asker::Operations => (Some(reserved / 2), 0),
            Asker::Staff => (None, 0),
        };
        let of_share = match share {
            Some(share) => Some(self.of_share(bytes, asker, share).ok_or(NoRoom::Share)?),
            None => None,
        };
        let most = self.gate.capacity() - reserve;
        let permit = self.gate.try_acquire_leaving(bytes.min(most), reserve);
        permit.ok_or(NoRoom::All).map(|permit| Held {
            _permit: permit,
            _of_share: of_share,
        })
    }

    fn of_share(&self, bytes: usize, asker: Asker, share: usize) -> Option<OfShare> {
        let mut held = self.lock();
        let has = held.get(&asker).copied().unwrap_or(0);
        let sum = has.saturating_add(bytes);
        if has > 0 && sum > share {
            return None;
        }
        held.insert(asker, sum);
        drop(held);
        Some(OfShare {
            of: self.clone(),
            asker,
            bytes: sum - has,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Asker, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Answers::hold`].
pub struct Held {
    _permit: Permit,
    _of_share: Option<OfShare>,
}

struct OfShare {
    of: Answers,
    asker: Asker,
    bytes: usize,
}

impl Drop for OfShare {
    fn drop(&mut self) {
        let mut held = self.of.lock();
        if let Some(has) = held.get_mut(&self.asker) {
            *has -= self.bytes;
            if *has == 0 {
                held.remove(&self.asker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chatting_actors::types::PresenterIdx;

    use super::*;

    fn user(n: i64) -> Asker {
        Asker::User(UserIdx::new(n).unwrap())
    }

    #[test]
    fn who_takes_nothing_of_its_answers_fills_its_share_and_nobody_elses() {
        let answers = Answers::new(1000, 200);
        let [first, second] = [150, 50].map(|bytes| answers.hold(bytes, user(7)).ok().unwrap());
        assert_eq!(answers.hold(1, user(7)).err(), Some(NoRoom::Share));
        assert!(answers.hold(200, user(8)).is_ok());
        // Those who are nobody, and those who scrape, are one each; who scrape may have half of what is left to them and staff.
        for (asker, share) in [(Asker::Nobody, 200), (Asker::Operations, 125)] {
            let _some = [share - 1, 1].map(|bytes| answers.hold(bytes, asker).ok().unwrap());
            assert_eq!(answers.hold(1, asker).err(), Some(NoRoom::Share));
        }
        drop(first);
        assert!(answers.hold(150, user(7)).is_ok());
        drop(second);
        assert_eq!((answers.gate().depth(), answers.lock().len()), (0, 0));
        assert_eq!(answers.gate().refused(), 0, "there was room");
    }

    #[test]
    fn who_is_staff_of_some_rooms_has_a_share_and_no_reserve_as_others_have() {
        let asker = |role, rooms| {
            Asker::of(&Claims {
                user_idx: UserIdx::new(7).unwrap(),
                nickname: None,
                role,
                rooms,
                expires_at_ms: i64::MAX,
            })
        };
        let one = || Rooms::Some(vec![PresenterIdx::new(12).unwrap()]);
        for (role, rooms) in [
            (Role::Viewer, Rooms::All),
            (Role::Moderator, Rooms::None),
            (Role::Moderator, one()),
        ] {
            assert_eq!(asker(role, rooms), user(7));
        }
        for (role, rooms) in [(Role::Moderator, Rooms::All), (Role::Operator, one())] {
            assert_eq!(asker(role, rooms), Asker::Staff);
        }
    }

    #[test]
    fn many_users_leave_a_part_to_those_who_look_after_the_server() {
        let answers = Answers::new(1000, 250);
        let users: Vec<_> = (1..=3).map(|n| answers.hold(250, user(n)).ok().unwrap()).collect();
        for asker in [user(4), Asker::Nobody] {
            assert_eq!(answers.hold(1, asker).err(), Some(NoRoom::All));
        }
        assert_eq!(answers.lock().len(), 3, "who is refused has nothing");
        let _scraped = answers.hold(125, Asker::Operations).ok().unwrap();
        assert_eq!(answers.hold(1, Asker::Operations).err(), Some(NoRoom::Share));
        // Staff has no share.
        let _staff = [100, 25].map(|bytes| answers.hold(bytes, Asker::Staff).ok().unwrap());
        assert_eq!(answers.hold(1, Asker::Staff).err(), Some(NoRoom::All));
        assert_eq!((answers.gate().depth(), answers.gate().refused()), (1000, 3));
        drop(users);
    }

    #[test]
    fn one_answer_of_any_length_is_given_to_who_has_none() {
        let answers = Answers::new(1000, 200);
        let long = answers.hold(5000, user(7)).ok().unwrap();
        assert_eq!(answers.gate().depth(), 750, "all that users may have");
        assert_eq!(answers.hold(1, user(7)).err(), Some(NoRoom::Share));
        assert_eq!(answers.hold(1, user(8)).err(), Some(NoRoom::All));
        drop(long);
        assert!(answers.hold(usize::MAX, Asker::Staff).is_ok());
        assert_eq!((answers.gate().depth(), answers.lock().len()), (0, 0));
    }
}
