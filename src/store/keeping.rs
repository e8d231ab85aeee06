//! What ends the life of events: retention, legal hold, and the erasure of a user.
//!
//! Numbers outlive their events. A room's last event is never removed but emptied, so that a server with a new spool still learns
//! from the store where the room's numbering goes on (rule 3). An emptied event keeps its id, its place and its time; its user is
//! [`UserIdx::ERASED`], and it counts as deleted by that user.

use chatting_actors::{
    broadcast::Broadcast,
    seams::StoreError,
    types::{Epoch, PresenterIdx, Seq, UserIdx},
};
use futures_util::future::BoxFuture;
use uuid::Uuid;

/// Where an event is, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The event.
    pub id: Uuid,
    /// Its room.
    pub presenter: PresenterIdx,
    /// Its numbering.
    pub epoch: Epoch,
    /// Its place.
    pub seq: Seq,
    /// Its broadcast, where it says so.
    pub broadcast_id: Option<Uuid>,
}

/// What is to change of a broadcast beside what the registry says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordChange {
    /// Its start, in milliseconds since 1970; `None` in it takes a correction back.
    pub corrected_start_ms: Option<Option<i64>>,
    /// Whether it is under legal hold.
    pub hold: Option<bool>,
}

/// The broadcasts under legal hold: nothing of them is removed.
#[derive(Clone, Debug, Default)]
pub struct Holds(Vec<Broadcast>);

impl Holds {
    /// These broadcasts are held.
    pub fn new(held: Vec<Broadcast>) -> Self {
        Self(held)
    }

    /// Which of them an event belongs to, by what it says or, where it names no broadcast, by its place: nobody may know how far a span
    /// went, and numbers that were taken back were given again.
    pub fn hold(&self, trace: &Trace) -> Option<Uuid> {
        let is_in = |held: &Broadcast| {
            let mut spans = held.spans.iter();
            spans.any(|span| {
                span.epoch == trace.epoch
                    && trace.seq > span.after
                    && span.through.is_none_or(|through| trace.seq <= through)
            })
        };
        let holding = self.0.iter().find(|held| match trace.broadcast_id {
            Some(of) => of == held.id,
            None => trace.presenter == held.presenter && is_in(held),
        });
        holding.map(|held| held.id)
    }

    /// Whether one of a room is held that began before this id: what an act of then covers may be of it.
    pub fn may_be_covered(&self, presenter: PresenterIdx, act: Uuid) -> bool {
        self.0.iter().any(|held| held.presenter == presenter && held.id < act)
    }

    /// Whether this broadcast is one of them.
    pub fn holds(&self, id: Uuid) -> bool {
        self.0.iter().any(|held| held.id == id)
    }
}

/// What one step of retention did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// How many were removed, or emptied.
    pub removed: u64,
    /// The last one that was looked at: the next step begins behind it. `None`: there are no more.
    pub last: Option<Uuid>,
    /// Broadcasts whose record cannot be read, so that it stays, and why.
    pub unreadable: Vec<(Uuid, String)>,
}

/// The least id of a time in milliseconds since 1970: ids are in the order of time.
pub fn first_id_of(at_ms: i64) -> Uuid {
    Uuid::from_u128(u128::from(at_ms.max(0).cast_unsigned()) << 80)
}

/// A store of which something can be removed, held or erased. Times are in milliseconds since 1970, UTC. Errors: the
/// store cannot be asked now; what was asked may have been done in part, and may be asked again.
pub trait Keeping: Send + Sync {
    /// The present by the store's own clock, in milliseconds since 1970, UTC; `None` where it has none but that of this machine.
    fn now_ms(&self) -> BoxFuture<'_, Result<Option<i64>, StoreError>>;

    /// Changes a broadcast, all of this or nothing. `false`: there is no such broadcast.
    fn change_broadcast(&self, id: Uuid, change: RecordChange) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Puts a broadcast under legal hold, or takes it from there. `false`: there is no such broadcast.
    fn hold_broadcast(&self, id: Uuid, hold: bool) -> BoxFuture<'_, Result<bool, StoreError>> {
        let hold = Some(hold);
        self.change_broadcast(
            id,
            RecordChange {
                hold,
                ..RecordChange::default()
            },
        )
    }

    /// Corrects a broadcast's start, or takes the correction back. `false`: there is no such broadcast.
    fn correct_broadcast(&self, id: Uuid, corrected_start_ms: Option<i64>) -> BoxFuture<'_, Result<bool, StoreError>> {
        let corrected_start_ms = Some(corrected_start_ms);
        self.change_broadcast(
            id,
            RecordChange {
                corrected_start_ms,
                ..RecordChange::default()
            },
        )
    }

    /// All broadcasts under legal hold.
    fn holds(&self) -> BoxFuture<'_, Result<Holds, StoreError>>;

    /// Removes what was sent before `before_ms` (since 1970): looks at the oldest `limit` events behind `after`. Those under legal
    /// hold stay as they are, those that are their room's last are emptied.
    fn expire(&self, before_ms: i64, after: Option<Uuid>, limit: usize) -> BoxFuture<'_, Result<Expired, StoreError>>;

    /// Removes records of broadcasts that ended before that, likewise.
    fn expire_broadcasts(
        &self,
        before_ms: i64,
        after: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Expired, StoreError>>;

    /// What a user sent, acts of moderation too: at most `limit`, in the order of rooms, without the first `skip`.
    fn traces(&self, user: UserIdx, skip: usize, limit: usize) -> BoxFuture<'_, Result<Vec<Trace>, StoreError>>;

    /// Empties these events. Of acts of moderation only who did them is taken.
    fn erase<'a>(&'a self, traces: &'a [Trace], now_ms: i64) -> BoxFuture<'a, Result<(), StoreError>>;

    /// What others sent or did and what names a user: acts of moderation about that user, and messages that the user deleted. At
    /// most `limit` behind `after`, in the order of ids.
    fn mentions(
        &self,
        user: UserIdx,
        after: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Trace>, StoreError>>;

    /// Takes the user's number out of these.
    fn erase_mentions<'a>(&'a self, user: UserIdx, traces: &'a [Trace]) -> BoxFuture<'a, Result<(), StoreError>>;
}
