//! Which server writes to this log (rule 7): two servers on one log would number the same rooms twice.
//!
//! Each server says in `servers` that it lives, and how often, under the name of its spool. A start is refused while another
//! spool's server has said so lately, by the longer of the two intervals; of two that start at once at most one goes on. Times are
//! the database's own, so clocks of machines need not agree. A database that is not there refuses nothing: what is accepted
//! meanwhile is in the spool. A connection that is silent, as when a host lost its power, costs one heartbeat: each has
//! `mongodb.write_timeout_ms`, and an interval at most.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chatting_actors::{seams::StoreError, seldom::Seldom, writer::StoreState};
use mongodb::{
    Collection,
    bson::{Document, doc},
    options::CollectionOptions,
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{sync::Mutex, time::MissedTickBehavior};

use super::{
    MongoStore,
    mongo::{durable, failed},
};

/// A heartbeat so many times its interval old is not fresh any more.
const FRESH_INTERVALS: u32 = 3;

/// This server's place in `servers`.
#[derive(Clone)]
pub struct ServerBeat {
    store: MongoStore,
    id: String,
    interval: Duration,
    /// It has said that it lives, or is about to.
    said: Arc<AtomicBool>,
    /// It has left. Held while a heartbeat is under way: one that came after it would say that this server lives.
    left: Arc<Mutex<bool>>,
}

impl ServerBeat {
    /// The place of the server whose spool has this name; `interval` is `mongodb.heartbeat_seconds`.
    pub fn new(store: &MongoStore, id: &str, interval: Duration) -> Self {
        store.is_of(id, interval);
        Self {
            store: store.clone(),
            id: id.to_owned(),
            interval,
            said: Arc::default(),
            left: Arc::default(),
        }
    }

    /// How long a heartbeat is fresh.
    fn fresh(&self) -> Duration {
        self.interval * FRESH_INTERVALS
    }

    async fn servers(&self) -> Result<Collection<Document>, StoreError> {
        let confirmed = CollectionOptions::builder().write_concern(durable(self.patience()));
        let database = self.store.database().await?;
        Ok(database.collection_with_options("servers", confirmed.build()))
    }

    /// How long it is waited for one answer.
    pub fn patience(&self) -> Duration {
        self.store.write_timeout().min(self.interval)
    }

    /// Another server that said lately that it lives, in words for the operator.
    pub async fn other(&self) -> Result<Option<String>, StoreError> {
        // The other one may say so less often than this one; an earlier version did not say how often.
        let interval = doc! { "$max": [self.interval_ms(), { "$ifNull": ["$interval_ms", 0] }] };
        let fresh = doc! { "$multiply": [interval, i64::from(FRESH_INTERVALS)] };
        // One that is later than that is from before the database's clock was set back.
        let filter = doc! {
            "_id": { "$ne": &self.id },
            "$expr": { "$and": [
                { "$gt": ["$heartbeat", { "$subtract": ["$$NOW", &fresh] }] },
                { "$lte": ["$heartbeat", { "$add": ["$$NOW", &fresh] }] },
            ] },
        };
        let find = async { self.servers().await?.find_one(filter).await.map_err(failed) };
        let found = self.timed(find).await?;
        Ok(found.map(|other| {
            let theirs = other.get_i64("interval_ms").unwrap_or_default();
            let fresh_ms = theirs.max(self.interval_ms()).saturating_mul(i64::from(FRESH_INTERVALS));
            format!(
                "another server writes to this log: spool {}, process {} on {}; it counts as gone {} s after its last heartbeat",
                other.get_str("_id").unwrap_or("?"),
                other.get_i64("pid").unwrap_or_default(),
                other.get_str("host").unwrap_or("?"),
                fresh_ms / 1000,
            )
        }))
    }

    fn interval_ms(&self) -> i64 {
        i64::try_from(self.interval.as_millis()).unwrap_or(i64::MAX)
    }

    /// Takes the place of the server that writes to this log; returns the other one, in words, that has it. Of two that start at
    /// once each says that it lives before it looks, so that at most one goes on. To be [left](Self::leave) by a start that does
    /// not.
    pub async fn take(&self) -> Result<Option<String>, StoreError> {
        // First, for the server that runs would take one that is refused for a second one.
        if let Some(other) = self.other().await? {
            return Ok(Some(other));
        }
        // A start may be broken off.
        let this = self.clone();
        let said = tokio::spawn(async move { this.beat().await });
        said.await.map_err(|error| StoreError(error.to_string()))??;
        self.other().await
    }

    /// Says that this server lives, unless it has left. Not to be dropped before it is done: it may come to the database all the same.
    /// So may one that is given up; coming after this server has left, it keeps others out until it is not fresh any more.
    pub async fn beat(&self) -> Result<(), StoreError> {
        let left = self.left.lock().await;
        if *left {
            return Ok(());
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let set = doc! {
            "$currentDate": { "heartbeat": true },
            "$set": {
                "pid": i64::from(std::process::id()),
                "host": host.trim(),
                "version": env!("CARGO_PKG_VERSION"),
                "interval_ms": self.interval_ms(),
            },
        };
        let said = async {
            let servers = self.servers().await?;
            self.said.store(true, Ordering::Release);
            let said = servers.update_one(doc! { "_id": &self.id }, set).upsert(true);
            said.await.map_err(failed)
        };
        self.timed(said).await.map(drop)
    }

    /// Where nobody answers, or no majority confirms it, it is not waited for as long as that takes (rule 3); and the next heartbeat
    /// must come while the last one is fresh.
    async fn timed<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let patience = self.patience();
        let silent = || StoreError(format!("no answer within {patience:?}"));
        tokio::time::timeout(patience, work).await.map_err(|_| silent())?
    }

    /// Says so again and again, until it is dropped. Another server that turns up is told of in the log and by `others`, which is 1 while
    /// that one lives and stays as it is while nobody can tell; no more, for both hold accepted messages by then. That this server has
    /// not been heard for so long that another may start is told, too; and before each time it is looked whether it is still the same log,
    /// which `log` is told: nothing else notices where nobody sends anything.
    pub async fn keep_beating(self, others: Gauge, log: StoreState) {
        let mut ticks = tokio::time::interval(self.interval);
        // What was missed is not made up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (two, silent) = (Seldom::new(), Seldom::new());
        let mut said = Instant::now();
        loop {
            ticks.tick().await;
            let heard = match self.store.other_log(self.patience()).await {
                Ok(None) => {
                    log.is_other(None);
                    self.beat().await
                }
                Ok(Some(other)) => {
                    log.is_other(Some(other.why.clone()));
                    Err(other.told())
                }
                Err(error) => Err(error),
            };
            match heard {
                Ok(()) => said = Instant::now(),
                Err(error) => {
                    self.store.may_be_other();
                    let silence = said.elapsed();
                    let due = (silence >= self.fresh()).then(|| silent.due(Instant::now()));
                    match due.flatten() {
                        Some(left_out) => log::warn!(
                            "servers: no heartbeat for {} s, so another server may start on this log: {error}{left_out}",
                            silence.as_secs()
                        ),
                        None => log::debug!("servers: no heartbeat: {error}"),
                    }
                    continue;
                }
            }
            match self.other().await {
                Ok(other) => {
                    others.set(i64::from(other.is_some()));
                    if let Some(other) = other
                        && let Some(left_out) = two.due(Instant::now())
                    {
                        log::error!("{other}{left_out}");
                    }
                }
                Err(error) => log::debug!("servers: they cannot be read: {error}"),
            }
        }
    }

    /// Says that this server is gone, so that another may start at once. What keeps beating is to be ended after this, not before.
    pub async fn leave(&self) {
        *self.left.lock().await = true;
        if !self.said.load(Ordering::Acquire) {
            return;
        }
        if let Ok(servers) = self.servers().await {
            let _ = servers.delete_one(doc! { "_id": &self.id }).await;
        }
    }
}
