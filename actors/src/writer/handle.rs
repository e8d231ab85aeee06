//! The registry's side of the writer: permits, appends, questions.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    broadcast::Broadcast,
    gate::{Gate, Permit},
    outcome::Refusal,
    seams::{Place, Pos, SpoolError},
    types::{Epoch, Event, PresenterIdx, Seq},
};

/// What a spool that was opened tells of itself.
#[derive(Clone, Debug)]
pub struct SpoolInfo {
    /// The numbering that new events belong to.
    pub epoch: Epoch,
    /// The newest time that it ever stamped, milliseconds since 1970 (rule 5).
    pub last_ms: i64,
    /// The first row that the store may not have; one after `last` when there is none.
    pub first: Pos,
    /// The last row.
    pub last: Pos,
}

/// Places a transaction, or broadcasts, so that commits wait little for one.
const KEPT_AT_ONCE: usize = 64;

/// Rows read back from the spool.
pub(crate) type Rows = Vec<(Pos, Arc<Event>)>;

/// What the spool's thread is asked to do, in this order.
pub(crate) enum SpoolCommand {
    Append {
        term: u64,
        appended: Appended,
    },
    LastSeq {
        presenter: PresenterIdx,
    },
    LearnLastSeq {
        presenter: PresenterIdx,
        last: Seq,
        /// The room's broadcast that the store has open, where the drain has not asked for all of them yet.
        open: Option<Broadcast>,
    },
    Read {
        after: Pos,
        limit: usize,
        reply: oneshot::Sender<Result<Rows, SpoolError>>,
    },
    ReadKeys {
        since_ms: i64,
    },
    KeepBroadcasts {
        broadcasts: Vec<Broadcast>,
    },
    /// For the registry: those that have not ended.
    OpenBroadcasts,
    /// For the drain: those that the store does not have.
    UnstoredBroadcasts {
        limit: usize,
        reply: oneshot::Sender<Result<Vec<Broadcast>, SpoolError>>,
    },
    BroadcastsStored {
        stored: Vec<Broadcast>,
        refused: Vec<Broadcast>,
        reply: oneshot::Sender<Result<(), SpoolError>>,
    },
    /// For the drain: which broadcasts are kept.
    BroadcastIds {
        reply: oneshot::Sender<Result<HashSet<Uuid>, SpoolError>>,
    },
    /// From the drain: those that the store has open and that are not kept, the oldest first.
    AdoptBroadcasts {
        open: Vec<Broadcast>,
        reply: oneshot::Sender<Result<(), SpoolError>>,
    },
    KeepPlaces {
        places: Vec<Place>,
    },
    /// As one of those, and the registry waits for it.
    MarkPlace {
        place: Place,
    },
    Free {
        through: Pos,
        parked: Vec<(Pos, Arc<Event>, String)>,
        keys_before_ms: i64,
        reply: oneshot::Sender<Result<(), SpoolError>>,
    },
    Fail(SpoolFailure),
    /// The thread waits until the other end is dropped.
    Hold(Receiver<()>),
    Stop,
}

/// Numbered events in their order. Each has its permit until the registry, whichever is there then, has heard what became of it: one
/// that panicked gives none back, or its successor would let as many more in while the disk hangs.
#[derive(Default)]
pub(crate) struct Appended {
    pub events: Vec<Arc<Event>>,
    pub permits: Vec<WriterPermit>,
}

impl Appended {
    pub fn push(&mut self, event: Arc<Event>, permit: WriterPermit) {
        self.events.push(event);
        self.permits.push(permit);
    }

    pub fn extend(&mut self, more: Self) {
        self.events.extend(more.events);
        self.permits.extend(more.permits);
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Takes the first of them, at most so many.
    pub fn take(&mut self, most: usize) -> Self {
        let count = most.min(self.events.len());
        let rest = Self {
            events: self.events.split_off(count),
            permits: self.permits.split_off(count),
        };
        std::mem::replace(self, rest)
    }
}

/// Planned failure points of the spool's thread, for tests of supervision.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolFailure {
    /// At once, with events in hand that are not in the file yet.
    Now,
    /// When the next commit is in the file and nobody has been told.
    BehindCommit,
    /// When the drain has been told of the next commit and the registry has not.
    BeforeTelling,
}

/// The spool thread's queue. Appends are bounded by the writer's permits, questions by rooms and by the one reader. Of places
/// only the newest of each room waits, of broadcasts the newest version of each: they are told by the clock, too, which goes on while
/// the disk does not.
#[derive(Default)]
pub(crate) struct SpoolQueue {
    queue: Mutex<Commands>,
    filled: Condvar,
}

#[derive(Default)]
struct Commands {
    queued: Vec<SpoolCommand>,
    /// Events in them.
    events: usize,
    /// Something else than events is among them.
    other: bool,
    /// Where in them each room's place is that a newer one may take, by command and within it.
    places: HashMap<PresenterIdx, (usize, usize)>,
    /// The same of broadcasts.
    broadcasts: HashMap<Uuid, (usize, usize)>,
    /// The thread waits, and is to be woken when so many events are queued, or anything else is. While it is busy, which is
    /// most of the time under load, nobody needs to wake it.
    awaited: Option<usize>,
}

impl Commands {
    /// Whether there is what the thread waits for.
    fn enough(&self, events: usize) -> bool {
        self.events >= events || self.other
    }

    /// Puts what a newer word replaces in the place of the older; returns what is left to be queued.
    fn merge(&mut self, command: SpoolCommand) -> Option<SpoolCommand> {
        let at = self.queued.len();
        match command {
            SpoolCommand::KeepPlaces { mut places } => {
                places.retain(|place| match self.waiting_place(place.presenter) {
                    Some(older) => {
                        *older = *place;
                        false
                    }
                    None => true,
                });
                let new = places.iter().enumerate();
                self.places.extend(new.map(|(n, place)| (place.presenter, (at, n))));
                (!places.is_empty()).then_some(SpoolCommand::KeepPlaces { places })
            }
            SpoolCommand::KeepBroadcasts { mut broadcasts } => {
                broadcasts.retain(|broadcast| match self.waiting_broadcast(broadcast.id) {
                    // That it has ended stays behind the place that was kept before: the other way round the place would be the next
                    // one's. It ends once.
                    Some(_) if broadcast.ended_at_ms.is_some() => true,
                    Some(older) => {
                        if older.version < broadcast.version {
                            older.clone_from(broadcast);
                        }
                        false
                    }
                    None => true,
                });
                let new = broadcasts.iter().enumerate();
                self.broadcasts
                    .extend(new.map(|(n, broadcast)| (broadcast.id, (at, n))));
                (!broadcasts.is_empty()).then_some(SpoolCommand::KeepBroadcasts { broadcasts })
            }
            SpoolCommand::MarkPlace { place } => {
                // What is kept behind a mark stays behind it.
                self.places.remove(&place.presenter);
                Some(SpoolCommand::MarkPlace { place })
            }
            other => Some(other),
        }
    }

    fn waiting_place(&mut self, presenter: PresenterIdx) -> Option<&mut Place> {
        let (command, n) = *self.places.get(&presenter)?;
        match self.queued.get_mut(command)? {
            SpoolCommand::KeepPlaces { places } => places.get_mut(n),
            _ => None,
        }
    }

    fn waiting_broadcast(&mut self, id: Uuid) -> Option<&mut Broadcast> {
        let (command, n) = *self.broadcasts.get(&id)?;
        match self.queued.get_mut(command)? {
            SpoolCommand::KeepBroadcasts { broadcasts } => broadcasts.get_mut(n),
            _ => None,
        }
    }

    fn take(&mut self) -> Vec<SpoolCommand> {
        self.events = 0;
        self.other = false;
        self.places.clear();
        self.broadcasts.clear();
        std::mem::take(&mut self.queued)
    }
}

impl SpoolQueue {
    fn commands(&self) -> MutexGuard<'_, Commands> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, command: SpoolCommand) {
        let wakes = {
            let mut commands = self.commands();
            let Some(command) = commands.merge(command) else {
                return;
            };
            match &command {
                SpoolCommand::Append { appended, .. } => commands.events += appended.events.len(),
                _ => commands.other = true,
            }
            commands.queued.push(command);
            let wakes = commands.awaited.is_some_and(|events| commands.enough(events));
            if wakes {
                commands.awaited = None;
            }
            wakes
        };
        if wakes {
            self.filled.notify_one();
        }
    }

    /// Blocks for so long, unless it is to stop.
    pub fn pause(&self, time: Duration) {
        let goes_on = |commands: &mut Commands| {
            commands.awaited = Some(0);
            !commands.queued.iter().any(|one| matches!(one, SpoolCommand::Stop))
        };
        let waited = self.filled.wait_timeout_while(self.commands(), time, goes_on);
        waited.unwrap_or_else(PoisonError::into_inner).0.awaited = None;
    }

    /// Blocks until there is something to do, at most for `limit`, and takes all of it.
    pub fn take_all(&self, limit: Option<Duration>) -> Vec<SpoolCommand> {
        let mut commands = self.commands();
        while commands.queued.is_empty() {
            commands.awaited = Some(0);
            match limit {
                None => commands = self.filled.wait(commands).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let waited = self.filled.wait_timeout(commands, limit);
                    let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    commands = guard;
                    if timeout.timed_out() {
                        break;
                    }
                }
            }
        }
        commands.awaited = None;
        commands.take()
    }

    /// Blocks for so long, or until so many events are queued or anything else is, and takes all of it.
    pub fn gather(&self, events: usize, time: Duration) -> Vec<SpoolCommand> {
        let lacks = |commands: &mut Commands| {
            commands.awaited = Some(events);
            !commands.enough(events)
        };
        let waited = self.filled.wait_timeout_while(self.commands(), time, lacks);
        let mut commands = waited.unwrap_or_else(PoisonError::into_inner).0;
        commands.awaited = None;
        commands.take()
    }
}

/// Count and bytes that one numbered event holds until the registry has heard what became of it.
pub struct WriterPermit {
    _event: Permit,
    _bytes: Permit,
}

/// The one way to the writer.
#[derive(Clone)]
pub struct WriterHandle {
    pub(crate) queue: Arc<SpoolQueue>,
    events: Arc<Gate>,
    bytes: Arc<Gate>,
    info: SpoolInfo,
    /// Cleared while the spool cannot take anything, so that refusals cost no commit.
    pub(crate) writable: Arc<AtomicBool>,
    terms: Arc<AtomicU64>,
    last_ms: Arc<AtomicI64>,
    /// See [`Self::keys_since_ms`].
    keys_since_ms: Arc<AtomicI64>,
    /// The last row that was committed, and the last that the store has: where a drain that is made anew goes on.
    pub(crate) head: Arc<AtomicI64>,
    pub(crate) done: Arc<AtomicI64>,
}

impl WriterHandle {
    /// A handle for a writer that is about to start, over a spool that was opened.
    pub fn new(mailbox: usize, mailbox_bytes: usize, info: SpoolInfo) -> Self {
        Self {
            queue: Arc::default(),
            events: Gate::new("writer", mailbox),
            bytes: Gate::new("writer_bytes", mailbox_bytes),
            writable: Arc::new(AtomicBool::new(true)),
            terms: Arc::new(AtomicU64::new(0)),
            last_ms: Arc::new(AtomicI64::new(info.last_ms)),
            keys_since_ms: Arc::new(AtomicI64::new(i64::MIN)),
            head: Arc::new(AtomicI64::new(info.last)),
            done: Arc::new(AtomicI64::new(info.first - 1)),
            info,
        }
    }

    /// The permits of `actors.writer.mailbox` and `actors.writer.mailbox_bytes`.
    pub fn gates(&self) -> [&Arc<Gate>; 2] {
        [&self.events, &self.bytes]
    }

    /// The numbering that new events belong to.
    pub fn epoch(&self) -> &Epoch {
        &self.info.epoch
    }

    /// The newest time that was stamped, in the spool when it was opened or since.
    pub fn last_ms(&self) -> i64 {
        self.last_ms.load(Ordering::Acquire)
    }

    /// Remembers the newest time, for a registry that is made anew (rule 5).
    pub(crate) fn note_ms(&self, ms: i64) {
        self.last_ms.fetch_max(ms, Ordering::AcqRel);
    }

    /// No message before this time has a key that the registry still remembers, or will: those keys may go from the spool. Until it has
    /// been told of them none may.
    pub(crate) fn keys_since_ms(&self) -> i64 {
        self.keys_since_ms.load(Ordering::Acquire)
    }

    pub(crate) fn keep_keys_since(&self, ms: i64) {
        self.keys_since_ms.store(ms, Ordering::Release);
    }

    /// Whether the spool takes events now.
    pub fn writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Takes the permit for one event of so many bytes, before it is numbered.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<WriterPermit, Refusal> {
        let event = self.events.try_acquire(1).ok_or(Refusal::Overloaded("writer"))?;
        let bytes = self
            .bytes
            .try_acquire(bytes)
            .ok_or(Refusal::Overloaded("writer_bytes"))?;
        Ok(WriterPermit {
            _event: event,
            _bytes: bytes,
        })
    }

    /// Hands numbered events over, in order. The registry's mailbox gets the answer and the permits, in the same order.
    pub(crate) fn append(&self, term: u64, appended: Appended) {
        self.queue.push(SpoolCommand::Append { term, appended });
    }

    /// A term that is greater than all before it: what was appended under those can be told apart (rules 1 and 2).
    pub(crate) fn next_term(&self) -> u64 {
        self.terms.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Asks for the acceptances with a key; the registry's mailbox gets them.
    pub(crate) fn ask_keys(&self, since_ms: i64) {
        self.queue.push(SpoolCommand::ReadKeys { since_ms });
    }

    /// Asks what a room's numbering goes on from; the registry's mailbox gets the answer.
    pub(crate) fn ask_last_seq(&self, presenter: PresenterIdx) {
        self.queue.push(SpoolCommand::LastSeq { presenter });
    }

    /// Has the spool keep broadcasts that changed; what it cannot keep now it keeps later.
    pub(crate) fn keep_broadcasts(&self, broadcasts: &[Broadcast]) {
        for some in broadcasts.chunks(KEPT_AT_ONCE) {
            let broadcasts = some.to_vec();
            self.queue.push(SpoolCommand::KeepBroadcasts { broadcasts });
        }
    }

    /// Which broadcasts the spool keeps.
    pub(super) async fn broadcast_ids(&self) -> Result<HashSet<Uuid>, String> {
        let (reply, ids) = oneshot::channel();
        self.queue.push(SpoolCommand::BroadcastIds { reply });
        answered(ids.await)
    }

    /// Has the spool keep broadcasts that the store has open, the oldest first, and the registry go on with them.
    pub(super) async fn adopt_broadcasts(&self, open: &[Broadcast]) -> Result<(), String> {
        // None at all, too: an attempt that failed may have left some that the registry does not know.
        let none = open.is_empty().then_some(open);
        for some in open.chunks(KEPT_AT_ONCE).chain(none) {
            let (reply, adopted) = oneshot::channel();
            let open = some.to_vec();
            self.queue.push(SpoolCommand::AdoptBroadcasts { open, reply });
            answered(adopted.await)?;
        }
        Ok(())
    }

    /// Asks which broadcasts are open; the registry's mailbox gets the answer.
    pub(crate) fn ask_broadcasts(&self) {
        self.queue.push(SpoolCommand::OpenBroadcasts);
    }

    /// Has the spool remember how far rooms got, one place a room; no answer.
    pub(crate) fn keep_places(&self, places: &[Place]) {
        for some in places.chunks(KEPT_AT_ONCE) {
            let places = some.to_vec();
            self.queue.push(SpoolCommand::KeepPlaces { places });
        }
    }

    /// The same for one room; the registry's mailbox is told whether it is kept.
    pub(crate) fn mark_place(&self, place: Place) {
        self.queue.push(SpoolCommand::MarkPlace { place });
    }

    /// A planned failure point, for tests of supervision: the spool's thread panics.
    #[doc(hidden)]
    pub fn panic_spool(&self, failure: SpoolFailure) {
        self.queue.push(SpoolCommand::Fail(failure));
    }

    /// A planned brake, for tests of queues: when this returns the spool's thread has come to it, and nothing is committed until what is
    /// returned is dropped. Blocks.
    #[doc(hidden)]
    pub fn hold_spool(&self) -> SyncSender<()> {
        let (hold, held) = sync_channel(0);
        self.queue.push(SpoolCommand::Hold(held));
        // What is appended from now on is taken together.
        let _ = hold.send(());
        hold
    }

    /// Commits what was appended, closes the spool and ends its thread.
    pub fn stop(&self) {
        self.queue.push(SpoolCommand::Stop);
    }
}

fn answered<T>(answer: Result<Result<T, SpoolError>, oneshot::error::RecvError>) -> Result<T, String> {
    match answer {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("the spool did not answer".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::broadcast::{Segment, Span};

    fn place(presenter: i64, position: u64) -> Place {
        Place {
            presenter: PresenterIdx::new(presenter).unwrap(),
            over: Seq(0),
            position: Seq(position),
            exact: false,
            room_idx: None,
            session_at_ms: None,
            saved_at_ms: 0,
        }
    }

    fn broadcast(id: u128, version: u64) -> Broadcast {
        Broadcast {
            id: Uuid::from_u128(id),
            presenter: PresenterIdx::new(1).unwrap(),
            room_idx: None,
            reported_start_ms: None,
            ended_at_ms: None,
            segments: vec![Segment {
                from_ms: 0,
                to_ms: None,
            }],
            spans: vec![Span {
                epoch: Epoch("e".into()),
                after: Seq(0),
                through: None,
            }],
            seen_at_ms: 0,
            version,
        }
    }

    /// What is queued, in its order: rooms with how far they got, marks likewise, broadcasts with their versions.
    fn queued(queue: &SpoolQueue) -> Vec<(&'static str, u128, u64)> {
        let mut found = Vec::new();
        let of = |kind, place: &Place| (kind, place.presenter.get().cast_unsigned().into(), place.position.0);
        for command in queue.take_all(None) {
            match command {
                SpoolCommand::KeepPlaces { places } => found.extend(places.iter().map(|place| of("place", place))),
                SpoolCommand::MarkPlace { place } => found.push(of("mark", &place)),
                SpoolCommand::KeepBroadcasts { broadcasts } => {
                    let versions = broadcasts
                        .iter()
                        .map(|one| ("broadcast", one.id.as_u128(), one.version));
                    found.extend(versions);
                }
                _ => found.push(("other", 0, 0)),
            }
        }
        found
    }

    #[test]
    fn a_disk_that_hangs_makes_no_more_wait_than_one_place_a_room_and_one_version_a_broadcast() {
        let queue = SpoolQueue::default();
        for n in 1..=1000 {
            let places = vec![place(1, n), place(2, n)];
            queue.push(SpoolCommand::KeepPlaces { places });
            let broadcasts = vec![broadcast(1, n)];
            queue.push(SpoolCommand::KeepBroadcasts { broadcasts });
            // Of a registry before this one.
            let broadcasts = vec![broadcast(1, n - 1), broadcast(2, n)];
            queue.push(SpoolCommand::KeepBroadcasts { broadcasts });
        }
        let newest = [
            ("place", 1, 1000),
            ("place", 2, 1000),
            ("broadcast", 1, 1000),
            ("broadcast", 2, 1000),
        ];
        assert_eq!(queued(&queue), newest);
        // What was taken is not waited with any more.
        let places = vec![place(1, 1001)];
        queue.push(SpoolCommand::KeepPlaces { places });
        assert_eq!(queued(&queue), [("place", 1, 1001)]);
    }

    #[test]
    fn that_a_broadcast_has_ended_is_kept_behind_the_place_before_it() {
        let queue = SpoolQueue::default();
        let ended = Broadcast {
            ended_at_ms: Some(1),
            ..broadcast(1, 3)
        };
        for (position, broadcast) in [(1, broadcast(1, 1)), (2, broadcast(1, 2)), (3, ended)] {
            let broadcasts = vec![broadcast];
            queue.push(SpoolCommand::KeepPlaces {
                places: vec![place(1, position)],
            });
            queue.push(SpoolCommand::KeepBroadcasts { broadcasts });
        }
        let order = [("place", 1, 3), ("broadcast", 1, 2), ("broadcast", 1, 3)];
        assert_eq!(queued(&queue), order);
    }

    #[test]
    fn a_place_that_is_kept_behind_its_mark_stays_behind_it() {
        let queue = SpoolQueue::default();
        queue.push(SpoolCommand::KeepPlaces {
            places: vec![place(1, 1), place(2, 1)],
        });
        queue.push(SpoolCommand::MarkPlace { place: place(1, 2) });
        for n in 3..=4 {
            queue.push(SpoolCommand::KeepPlaces {
                places: vec![place(1, n), place(2, n)],
            });
        }
        let order = [("place", 1, 1), ("place", 2, 4), ("mark", 1, 2), ("place", 1, 4)];
        assert_eq!(queued(&queue), order);
    }

    #[test]
    fn a_question_is_not_kept_waiting_by_events_that_came_behind_it() {
        let queue = SpoolQueue::default();
        queue.push(SpoolCommand::Stop);
        queue.push(SpoolCommand::Append {
            term: 0,
            appended: Appended::default(),
        });
        let began = Instant::now();
        assert_eq!(queue.gather(10, Duration::from_secs(10)).len(), 2);
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
