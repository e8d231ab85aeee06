//! What the spool's thread is asked to do.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc::Receiver},
};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::WriterPermit;
use crate::{
    broadcast::Broadcast,
    seams::{Place, Pos, SpoolError},
    types::{Event, PresenterIdx, Seq},
};

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
    LearnLastSeq(ToLearn),
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
    /// For the drain: which broadcasts are kept, in which versions.
    BroadcastVersions {
        reply: oneshot::Sender<Result<HashMap<Uuid, u64>, SpoolError>>,
    },
    /// From the drain: those that the store has open and that are not kept, the oldest first.
    AdoptBroadcasts {
        open: Vec<Broadcast>,
        reply: oneshot::Sender<Result<(), SpoolError>>,
    },
    KeepPlaces {
        places: Vec<Place>,
    },
    /// The same, and the registry waits for each.
    MarkPlaces {
        places: Vec<Place>,
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

/// What the store told of a room that the spool does not know.
pub(crate) struct ToLearn {
    pub presenter: PresenterIdx,
    pub last: Seq,
    /// The room's broadcast that the store has open, where the drain has not asked for all of them yet.
    pub open: Option<Broadcast>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolFailure {
    /// At once, with events in hand that are not in the file yet.
    Now,
    /// When the next commit is in the file and nobody has been told.
    BehindCommit,
    /// When the drain has been told of the next commit and the registry has not.
    BeforeTelling,
}
