//! The registry's side of the writer: permits, appends, questions.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    Appended, SpoolCommand, SpoolFailure,
    queue::{KEPT_AT_ONCE, SpoolQueue},
};
use crate::{
    broadcast::Broadcast,
    clock::system_ms,
    gate::{Gate, Permit},
    outcome::Refusal,
    seams::{Place, Pos, SpoolError},
    types::{Epoch, PresenterIdx},
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
    /// See [`Self::settled_ms`].
    settled_ms: Arc<AtomicI64>,
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
            settled_ms: Arc::new(AtomicI64::new(system_ms().max(info.last_ms))),
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

    /// What was sent before this time, in milliseconds since 1970, is not on its way any more: it is in the spool, or was refused. As of
    /// the registry's last sweep, so an older time than there might be. (With `log.durability = "memory"` what was answered may be on its
    /// way for longer.)
    pub fn settled_ms(&self) -> i64 {
        self.settled_ms.load(Ordering::Acquire)
    }

    pub(crate) fn note_settled(&self, ms: i64) {
        self.settled_ms.store(ms, Ordering::Release);
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

    /// Which broadcasts the spool keeps, in which versions.
    pub(super) async fn broadcast_versions(&self) -> Result<HashMap<Uuid, u64>, String> {
        let (reply, versions) = oneshot::channel();
        self.queue.push(SpoolCommand::BroadcastVersions { reply });
        answered(versions.await)
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
        let places = vec![place];
        self.queue.push(SpoolCommand::MarkPlaces { places });
    }

    /// A planned failure point, for tests of supervision: the spool's thread panics.
    pub fn panic_spool(&self, failure: SpoolFailure) {
        self.queue.push(SpoolCommand::Fail(failure));
    }

    /// A planned brake, for tests of queues: when this returns the spool's thread has come to it, and nothing is committed until what is
    /// returned is dropped. Blocks.
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
