//! What the actors need from the world outside, as traits: the room server, the spool, the store, tokens, sockets.
//!
//! The server implements them over HTTP, SQLite, MongoDB and JWT; tests may script them.

use std::{collections::HashMap, fmt, sync::Arc};

use futures_util::future::{BoxFuture, FutureExt, LocalBoxFuture, ready};
use uuid::Uuid;

use crate::broadcast::Broadcast;
use crate::idempotency::KeyRow;
use crate::types::{Epoch, Event, PresenterIdx, Seq};

/// What a room server said of one presenter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Liveness {
    /// Whether the presenter is live.
    pub live: bool,
    /// The room server's own number of the room, where it names one.
    pub room_idx: Option<i64>,
    /// When the broadcast began, in milliseconds since 1970, where the answer tells.
    pub started_at_ms: Option<i64>,
    /// When the broadcast ended, likewise.
    pub ended_at_ms: Option<i64>,
}

/// Why a room server's answer does not count (rule 9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoomApiError {
    /// No answer came within the time allowed.
    Timeout,
    /// The connection failed, or what came is no answer: a status that is about the room server itself (408, 429, and all but 200 and
    /// 4xx), or what is not JSON.
    Unusable(String),
    /// It answered, and did not say: a status that is about the question (the other 4xx), or JSON without a boolean `alive`.
    Refused(String),
}

impl fmt::Display for RoomApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("no answer in time"),
            Self::Unusable(why) | Self::Refused(why) => f.write_str(why),
        }
    }
}

/// The room server. Lives on the checker's arbiter, so it need not be `Send`.
pub trait RoomApi {
    /// Is this presenter live? Only a 200 with a boolean `alive` is an answer. The checker bounds the time.
    fn check(&self, presenter: PresenterIdx) -> LocalBoxFuture<'static, Result<Liveness, RoomApiError>>;

    /// Asks the room server to make the presenter's client connect again.
    fn request_reconnect(&self, presenter: PresenterIdx) -> LocalBoxFuture<'static, Result<(), RoomApiError>>;
}

/// A place in the spool: 1, 2, 3 … in the order of commits.
pub type Pos = i64;

/// Why the spool did not do what it was asked.
#[derive(Clone, Debug)]
pub struct SpoolError {
    /// What went wrong, for the log.
    pub why: String,
    /// What that means for what it was asked.
    pub fault: SpoolFault,
}

/// Whether a spool that failed did any of what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolFault {
    /// Nothing: there is no room left, on the disk or by `log.spool_max_bytes`.
    Full,
    /// Nothing: it failed before anything of it was done, as where the file cannot be opened or written.
    NotBegun,
    /// That cannot be told: it failed on the way, and only the file knows.
    Unsure,
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// What a room's numbering goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastSeq {
    /// The spool knows it; `Seq(0)` for a room that never had an event.
    Known(Seq),
    /// Only the store can tell: this spool is younger than the log (rule 3).
    AskStore,
}

impl LastSeq {
    /// What the spool knows.
    pub(crate) fn known(self) -> Option<Seq> {
        match self {
            Self::Known(seq) => Some(seq),
            Self::AskStore => None,
        }
    }
}

/// The local file where an accepted event becomes durable. Lives on the spool's own thread; every call may block.
pub trait Spool: Send {
    /// Appends all events in one transaction and makes them as durable as the settings say. All or nothing.
    /// Returns the place of the first.
    fn commit(&mut self, events: &[Arc<Event>]) -> Result<Pos, SpoolError>;

    /// Keys of messages that were sent before `before_ms` may go with what is committed from now on, a few at a time: [`Self::free`]
    /// is not asked for anything while the store is away. Does nothing by itself.
    fn forget_keys(&mut self, before_ms: i64);

    /// Lets go of the file: the next call opens it again and learns what it holds. For when a panic left who knows what.
    fn reopen(&mut self);

    /// Opens the file again after an I/O error, and finds this event in it. An error: it cannot tell now.
    fn reopen_and_find(&mut self, event: &Event) -> Result<Option<Pos>, SpoolError>;

    /// Forgets the rows up to and including `through`: the store has them. Their rooms' last seqs are kept (rule 3), and
    /// those in `parked` are set aside with the reason why the store will never take them (rule 4); one transaction. Keys of
    /// messages that were sent before `keys_before_ms` go too, some thousand at a time.
    fn free(
        &mut self,
        through: Pos,
        parked: &[(Pos, Arc<Event>, String)],
        keys_before_ms: i64,
    ) -> Result<(), SpoolError>;

    /// At most `limit` rows after `after`, in order.
    fn read(&mut self, after: Pos, limit: usize) -> Result<Vec<(Pos, Arc<Event>)>, SpoolError>;

    /// The last seq of a room that is in the spool or was.
    fn last_seq(&mut self, presenter: PresenterIdx) -> Result<LastSeq, SpoolError>;

    /// Remembers what the store told of rooms that this spool had never seen. One transaction. Returns what counts of each, in their
    /// order, which is more where the spool holds events that the store does not have yet.
    /// With it goes the newest time that is known, in milliseconds since 1970, for a start that does not ask the store any more (rule 5).
    fn learn_last_seqs(&mut self, told: &[(PresenterIdx, Seq)], newest_ms: i64) -> Result<Vec<Seq>, SpoolError>;

    /// The acceptances with an `Idempotency-Key` since `since_ms`, oldest first (rule 17). Takes none away: [`Self::free`] and
    /// [`Self::commit`] do.
    fn read_keys(&mut self, since_ms: i64) -> Result<Vec<KeyRow>, SpoolError>;

    /// Remembers how far these rooms got. One transaction; loses nothing but a place when it fails.
    fn keep_places(&mut self, places: &[Place]) -> Result<(), SpoolError>;

    /// How far a room got, where that is known; without [`Place::legacy_from`] when that was in an earlier epoch.
    fn place(&mut self, presenter: PresenterIdx) -> Result<Option<Place>, SpoolError>;

    /// Keeps these broadcasts, each unless a newer version of it is there. One transaction. Returns whether the store lacks one of them
    /// as it is here then; that a broadcast was seen to be live again it need not know.
    fn keep_broadcasts(&mut self, broadcasts: &[Broadcast]) -> Result<bool, SpoolError>;

    /// The broadcasts that have not ended, the oldest first.
    fn open_broadcasts(&mut self) -> Result<Vec<Broadcast>, SpoolError>;

    /// All broadcasts that are kept here, by their ids, with their versions.
    fn broadcast_versions(&mut self) -> Result<HashMap<Uuid, u64>, SpoolError>;

    /// Keeps those of these broadcasts, as the store has them, that are not here. One transaction. Returns which were not, in their order.
    fn adopt_broadcasts(&mut self, broadcasts: &[Broadcast]) -> Result<Vec<Broadcast>, SpoolError>;

    /// At most `limit` broadcasts that the store does not have as they are here.
    fn unstored_broadcasts(&mut self, limit: usize) -> Result<Vec<Broadcast>, SpoolError>;

    /// The store has these, in these versions: those that have ended are forgotten. It will not take the `refused` as they are:
    /// they stay, and count as unstored again when they change, or when the spool is opened the next time.
    fn broadcasts_stored(&mut self, stored: &[Broadcast], refused: &[Broadcast]) -> Result<(), SpoolError>;

    /// After a failure: whether a write would succeed again. Writes something and takes it away.
    fn probe(&mut self) -> Result<(), SpoolError>;

    /// Bytes on disk.
    fn bytes(&self) -> u64;

    /// The last call: marks a clean stop. It is left out where something that was answered is not here, or a broadcast that was
    /// to be kept. `false`: there is no such mark, because it could not be written or the file is damaged, and the next start
    /// checks the file.
    fn close(&mut self) -> bool;
}

/// How far a room got: what survives a restart so that its sessions go on where they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The room.
    pub presenter: PresenterIdx,
    /// Everything up to here is of a broadcast that is over.
    pub over: Seq,
    /// Everything up to here was acknowledged (v1) or taken by the socket (legacy).
    pub position: Seq,
    /// Where a legacy session goes on: nothing was sent beyond it, though not all up to it need have been taken. `None`: the place is
    /// not exact, more may have been sent than it tells, and a legacy session begins behind everything that is there (rule 11).
    pub legacy_from: Option<Seq>,
    /// The room server's own number of the broadcast's room.
    pub room_idx: Option<i64>,
    /// When there was last a session of this broadcast, in milliseconds since 1970.
    pub session_at_ms: Option<i64>,
    /// When this was written, in milliseconds since 1970.
    pub saved_at_ms: i64,
}

/// Why the store did not take a batch or answer a question. Asking again later may help.
#[derive(Clone, Debug)]
pub struct StoreError(pub String);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event of a batch that the store will never take, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poison {
    /// Its index in the batch.
    pub index: usize,
    /// Why the store refuses it.
    pub reason: String,
}

/// A broadcast that the store did not keep, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotPut {
    /// Its index among those that were given.
    pub index: usize,
    /// What the store says.
    pub reason: String,
    /// It is for what the broadcast is: asking again changes nothing.
    pub for_good: bool,
}

/// The batch that [`LogStore::append`] takes.
pub type StoreBatch = Arc<Vec<Arc<Event>>>;

/// Where events are kept for good. Every implementation passes the conformance suite.
pub trait LogStore: Send + Sync {
    /// Creates what is missing: collections, tables, indexes. A no-op when all is there.
    fn prepare(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Writes a batch durably, and then marks what its acts of moderation cover: what they name came before them, so it is
    /// there. An event whose id is stored already is a no-op, so a batch may be given again in whole. Events that can never be stored come back as poison and the others are stored. After an error
    /// nothing is known: give the whole batch again. It takes as long as marking takes, which may be all that a room ever had; an
    /// error then must not cost what is marked.
    fn append(&self, batch: StoreBatch) -> BoxFuture<'_, Result<Vec<Poison>, StoreError>>;

    /// Marks what acts of moderation that the store had before them cover of messages that it has taken: they waited
    /// here, and meanwhile another server may have brought acts. Messages whose marks are refused for good come back as
    /// poison. After an error nothing is known. A no-op where no other server can.
    fn mark_late(&self, _batch: StoreBatch) -> BoxFuture<'_, Result<Vec<Poison>, StoreError>> {
        ready(Ok(Vec::new())).boxed()
    }

    /// The greatest seq of a room over all epochs; `Seq(0)` when it has none.
    fn last_seq(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Seq, StoreError>>;

    /// Keeps these broadcasts, each unless a newer version of it is there. Those that it did not keep come back; it has the others.
    /// After an error nothing is known.
    fn put_broadcasts<'a>(&'a self, broadcasts: &'a [Broadcast]) -> BoxFuture<'a, Result<Vec<NotPut>, StoreError>>;

    /// The broadcasts that have not ended and that are newer here than in these versions, or not among them, the oldest
    /// first. It was not told how long each was seen to be live: as far as its last message says. One that cannot be
    /// read is left out.
    fn open_broadcasts(&self, but: HashMap<Uuid, u64>) -> BoxFuture<'_, Result<Vec<Broadcast>, StoreError>>;

    /// The same of a room's newest broadcast; `None` also where that has ended.
    fn open_broadcast(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Option<Broadcast>, StoreError>>;

    /// When its newest event was sent, in milliseconds since 1970; 0 when it has none.
    fn newest_ms(&self) -> BoxFuture<'_, Result<i64, StoreError>>;
}

/// What a good token grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The presenter that it speaks for.
    pub presenter: PresenterIdx,
    /// When its time is over, in milliseconds since 1970; what clocks may differ by is in it.
    pub expires_at_ms: i64,
}

/// Why a token grants nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It is not valid.
    Bad,
    /// It was valid once.
    Expired,
    /// Its key is not known. It may be made up; it may be one that is published a moment later.
    UnknownKey,
    /// Nobody's token can be checked now.
    Unavailable,
    /// Its key may be there in a moment: [`Authenticate::key_arrives`] tells when to ask once more.
    NotYet,
}

/// Says whose a token is, and whether its presenter may come in. Must be quick: it runs on the worker that serves the socket.
pub trait Authenticate {
    /// What this token grants. Not every error refuses it: after [`Denied::NotYet`] the same frame is judged again when the key has come,
    /// and [`Denied::Unavailable`] says nothing of the token. A legacy session is then closed with 1001; any other error it is told as
    /// `tokenException`. What a v1 session is told is in `session/v1.rs`.
    fn grant(&self, token: &str) -> Result<Grant, Denied>;

    /// After a [`Denied::NotYet`]: done when the same token may be asked about again. `None` when nothing is under way.
    fn key_arrives(&self) -> Option<LocalBoxFuture<'static, ()>> {
        None
    }

    /// Counts one more session of this presenter; `false`: it connects too often.
    fn admit(&self, presenter: PresenterIdx) -> bool;
}

/// The words for a refusal in the reader's language.
pub trait Wording {
    /// The title of a row of the error table, by its name.
    fn title(&self, problem: &'static str) -> &'static str;
}

/// Some of a room's events from the log.
#[derive(Clone, Debug, Default)]
pub struct LogPage {
    /// In the order of seqs, each once; may have holes where the log has.
    pub events: Vec<Event>,
    /// Those of them that are no longer to be shown.
    pub deleted: Vec<Seq>,
    /// Where in the spool what was asked for begins: whoever asks for the same again may begin to look there.
    pub begins: Pos,
    /// Where in the spool the next page may begin to look.
    pub spool_from: Pos,
    /// Why not all of the log could be asked: what is missing before these events may be there.
    pub failed: Option<String>,
}

/// Some of a room's events in one numbering.
#[derive(Clone, Debug)]
pub struct LogRange {
    /// The room.
    pub presenter: PresenterIdx,
    /// The numbering.
    pub epoch: Epoch,
    /// Events after this one,
    pub after: Seq,
    /// up to and including this one,
    pub through: Seq,
    /// at most so many.
    pub limit: usize,
}

/// Reads events back, from wherever they are (rule 6). Runs apart from the registry and the sessions.
pub trait LogReader: Send + Sync {
    /// The events of a range. `spool_from` is [`LogPage::spool_from`] of the page before, or [`LogPage::begins`] where that did not help;
    /// 0 where no page came right before.
    fn read(&self, range: LogRange, spool_from: Pos) -> BoxFuture<'static, Result<LogPage, StoreError>>;
}

/// A handle on a connection's socket that works while the session's own actor cannot run.
pub trait Socket: Send + Sync {
    /// Shuts both directions down. A no-op when it is closed already.
    fn shut(&self);
    /// Makes its end, which is to come, a reset for the peer, so that it is not taken for the end of what was said. What was not
    /// sent yet is not sent. A no-op where sockets know no such thing.
    fn end_by_reset(&self) {}
}
