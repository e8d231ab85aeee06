//! A log whose events and broadcasts move from the spool to the store in the middle of a read, as they do at any time: before the
//! store is looked into, or right after. It counts what it gives.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use chatting_actors::{
    broadcast::Broadcast,
    seams::{LogStore, NotPut, Poison, Pos, Spool, StoreBatch, StoreError},
    types::{Epoch, Event, PresenterIdx, Seq, UserIdx},
};
use chatting_server::store::{
    Archive, Deleted, First, Listed, Logged, Scan, SqliteSpool, StoredBroadcast,
    figures::{Counted, Figures, FiguresQuery},
    keeping::{Expired, Holds, Keeping, RecordChange, Trace},
};
use futures_util::future::{BoxFuture, FutureExt};
use uuid::Uuid;

/// When what the spool has moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moves {
    BeforeScan,
    AfterScan,
    Never,
}

/// A store into which the spool is drained by who reads it.
pub struct MovingStore {
    pub store: Arc<dyn Archive>,
    pub spool: Mutex<SqliteSpool>,
    pub moves: Moves,
    /// Events that scans have given.
    pub scanned: Arc<AtomicUsize>,
}

impl MovingStore {
    /// Everything that the spool has goes into the store, and is freed.
    async fn drain(&self) -> Result<(), StoreError> {
        let records = self.spool.lock().unwrap().unstored_broadcasts(1000).unwrap();
        assert_eq!(self.store.put_broadcasts(&records).await?, []);
        self.spool.lock().unwrap().broadcasts_stored(&records, &[]).unwrap();
        let rows = self.spool.lock().unwrap().read(0, 1000).unwrap();
        let Some((last, _)) = rows.last() else {
            return Ok(());
        };
        let last: Pos = *last;
        let events = rows.into_iter().map(|(_, event)| event).collect();
        assert_eq!(self.store.append(Arc::new(events)).await?, []);
        self.spool.lock().unwrap().free(last, &[], 0).unwrap();
        Ok(())
    }

    /// What the store answers to a question under which everything moves.
    async fn moving<T>(&self, asked: BoxFuture<'_, Result<T, StoreError>>) -> Result<T, StoreError> {
        if self.moves == Moves::BeforeScan {
            self.drain().await?;
        }
        let found = asked.await;
        if self.moves != Moves::Never {
            self.drain().await?;
        }
        found
    }
}

/// Methods that the store itself answers.
macro_rules! of_store {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(
            fn $name<'a>(&'a self $(, $argument: $type)*) -> BoxFuture<'a, Result<$answer, StoreError>> {
                self.store.$name($($argument),*)
            }
        )*
    };
}

impl LogStore for MovingStore {
    of_store! {
        prepare() -> ();
        append(batch: StoreBatch) -> Vec<Poison>;
        newest_ms() -> i64;
        last_seq(presenter: PresenterIdx) -> Seq;
        put_broadcasts(broadcasts: &'a [Broadcast]) -> Vec<NotPut>;
        open_broadcasts(but: HashMap<Uuid, u64>) -> Vec<Broadcast>;
        open_broadcast(presenter: PresenterIdx) -> Option<Broadcast>;
    }
}

impl Figures for MovingStore {
    of_store! {
        figures(query: FiguresQuery) -> Counted;
    }
}

impl Keeping for MovingStore {
    of_store! {
        now_ms() -> Option<i64>;
        change_broadcast(id: Uuid, change: RecordChange) -> bool;
        holds() -> Holds;
        expire(before_ms: i64, after: Option<Uuid>, limit: usize) -> Expired;
        expire_broadcasts(before_ms: i64, after: Option<Uuid>, limit: usize) -> Expired;
        traces(user: UserIdx, skip: usize, limit: usize) -> Vec<Trace>;
        erase(traces: &'a [Trace], now_ms: i64) -> ();
        mentions(user: UserIdx, after: Option<Uuid>, limit: usize) -> Vec<Trace>;
        erase_mentions(user: UserIdx, traces: &'a [Trace]) -> ();
    }
}

impl Archive for MovingStore {
    of_store! {
        is_empty() -> bool;
        epochs(presenter: PresenterIdx) -> Vec<Epoch>;
        acts(rooms: Vec<PresenterIdx>, after: Uuid, limit: usize) -> Vec<Event>;
        mark_covered(act: Arc<Event>, messages: Vec<Uuid>) -> Option<String>;
        mark_deleted(marks: Vec<(Uuid, Deleted)>) -> ();
    }

    fn first_from<'a>(
        &'a self,
        presenter: PresenterIdx,
        epoch: &'a Epoch,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<First, StoreError>> {
        self.moving(self.store.first_from(presenter, epoch, at_ms)).boxed()
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<Vec<Logged>, StoreError>> {
        async move {
            let found = self.moving(self.store.scan(scan)).await?;
            self.scanned.fetch_add(found.len(), Relaxed);
            Ok(found)
        }
        .boxed()
    }

    fn find(&self, id: Uuid) -> BoxFuture<'_, Result<Option<Logged>, StoreError>> {
        self.moving(self.store.find(id)).boxed()
    }

    fn broadcasts(
        &self,
        presenter: PresenterIdx,
        before: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Listed, StoreError>> {
        self.moving(self.store.broadcasts(presenter, before, limit)).boxed()
    }

    fn broadcast(&self, id: Uuid) -> BoxFuture<'_, Result<Option<StoredBroadcast>, StoreError>> {
        self.moving(self.store.broadcast(id)).boxed()
    }
}
