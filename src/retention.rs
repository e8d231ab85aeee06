//! Retention: what is older than `log.retention_days` is removed from the store, and of what is parked in the spool, in small steps,
//! while the server runs.
//!
//! Legal hold and the numbering are the store's business (`store/keeping.rs`). A step that fails ends the sweep, which begins anew
//! at the next one's time: what was removed stays removed. What is too old goes by the earliest of what may be the present: that of the
//! system's clock only where it is believed (`retention/present.rs`), and that of the store's own clock, where it has one.

mod present;

use std::{sync::Arc, time::Duration};

use chatting_actors::{metrics::Metrics, seams::StoreError};
use uuid::Uuid;

pub use self::present::Clocks;
use self::present::Present;
use crate::{
    settings::Settings,
    store::{Archive, keeping::Expired, spool::Parking},
};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Sweeps every `log.retention_every_seconds` while [`Retention::keep_sweeping`] runs. What fails is logged and
/// counted, and tried again by the next sweep.
#[derive(Clone)]
pub struct Retention {
    store: Arc<dyn Archive>,
    parking: Parking,
    metrics: Metrics,
    present: Present,
    keep_ms: i64,
    batch: usize,
    pause: Duration,
    every: Duration,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Events.
    pub events: u64,
    /// Records of broadcasts.
    pub broadcasts: u64,
}

/// Broadcasts that are named in one sweep.
const NAMED: usize = 10;

/// The broadcasts whose record a sweep could not read.
#[derive(Debug, Default)]
struct Unreadable {
    /// With what is wrong with their records.
    first: Vec<(Uuid, String)>,
    all: usize,
}

impl Unreadable {
    fn add(&mut self, found: Vec<(Uuid, String)>) {
        self.all += found.len();
        let room = NAMED.saturating_sub(self.first.len());
        self.first.extend(found.into_iter().take(room));
    }

    /// What is to be told of them, a line each.
    fn lines(&self) -> impl Iterator<Item = String> {
        let named = self.first.iter();
        let named = named.map(|(id, why)| format!("broadcast {id} stays, its record cannot be read: {why}"));
        let more = self.all - self.first.len();
        named.chain((more > 0).then(|| format!("more that stay, whose record cannot be read: {more}")))
    }
}

impl Retention {
    /// As the settings say; `None` where everything is kept for ever. It was at least so late at `known`, by the newest event.
    pub fn new(
        settings: &Settings,
        store: Arc<dyn Archive>,
        parking: Parking,
        metrics: Metrics,
        known: Clocks,
    ) -> Option<Self> {
        let log = &settings.log;
        let days = i64::try_from(log.retention_days).unwrap_or(i64::MAX);
        let settle_seconds = i64::try_from(log.retention_settle_seconds).unwrap_or(i64::MAX);
        (days > 0).then(|| Self {
            store,
            parking,
            metrics,
            present: Present::new(known, settle_seconds.saturating_mul(1000)),
            keep_ms: days.saturating_mul(DAY_MS),
            batch: log.retention_batch,
            pause: Duration::from_millis(log.retention_pause_ms),
            every: Duration::from_secs(log.retention_every_seconds),
        })
    }

    /// Sweeps again and again, until it is dropped.
    pub async fn keep_sweeping(mut self) {
        loop {
            let outcome = match self.sweep_at(Clocks::now()).await {
                Ok(swept) => {
                    if swept != Swept::default() {
                        log::info!(
                            "retention: {} events and {} broadcasts removed",
                            swept.events,
                            swept.broadcasts
                        );
                    }
                    if self.present.is_doubted() { "doubt" } else { "ok" }
                }
                Err(error) => {
                    log::warn!("retention: it goes on later: {error}");
                    "error"
                }
            };
            self.metrics.retention_sweeps.inc(outcome);
            tokio::time::sleep(self.every).await;
        }
    }

    /// Removes what is too old when the clocks show this.
    pub async fn sweep_at(&mut self, now: Clocks) -> Result<Swept, StoreError> {
        let present = self.present.at(now);
        let present = present.min(self.store.now_ms().await?.unwrap_or(present));
        self.sweep(present.saturating_sub(self.keep_ms)).await
    }

    /// Removes everything from before a time, in milliseconds since 1970.
    pub async fn sweep(&self, before_ms: i64) -> Result<Swept, StoreError> {
        let mut unreadable = Unreadable::default();
        let events = async |after| self.store.expire(before_ms, after, self.batch).await;
        let events = self.steps("event", events, &mut unreadable).await?;
        let broadcasts = async |after| self.store.expire_broadcasts(before_ms, after, self.batch).await;
        let broadcasts = self.steps("broadcast", broadcasts, &mut unreadable).await;
        for line in unreadable.lines() {
            // At each sweep, and so not as seldom as what requests come upon, where one line in a while names one of many.
            log::error!("retention: {line}");
        }
        // Last: the store's own goes also while the spool takes nothing. What is parked goes also where a record does not.
        let parked = async |after| {
            let holds = self.store.holds().await?;
            self.parking.expire(holds, before_ms, after, self.batch).await
        };
        let events = events + self.steps("event", parked, &mut unreadable).await?;
        Ok(Swept {
            events,
            broadcasts: broadcasts?,
        })
    }

    async fn steps(
        &self,
        kind: &'static str,
        step: impl AsyncFn(Option<Uuid>) -> Result<Expired, StoreError>,
        unreadable: &mut Unreadable,
    ) -> Result<u64, StoreError> {
        let counted = self.metrics.retention_deleted.of(kind);
        let (mut removed, mut after) = (0, None);
        loop {
            let expired = step(after).await?;
            counted.inc_by(expired.removed);
            removed += expired.removed;
            unreadable.add(expired.unreadable);
            if expired.last.is_none() {
                return Ok(removed);
            }
            after = expired.last;
            tokio::time::sleep(self.pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_broadcasts_that_cannot_be_read_the_first_are_named_and_the_others_counted() {
        let mut all: Vec<_> = (1..=12).map(|n| (Uuid::from_u128(n), format!("why {n}"))).collect();
        let named: Vec<String> = all
            .iter()
            .map(|(id, why)| format!("broadcast {id} stays, its record cannot be read: {why}"))
            .collect();
        let (last, middle) = (all.split_off(9), all.split_off(2));
        let mut unreadable = Unreadable::default();
        let told = |unreadable: &Unreadable| unreadable.lines().collect::<Vec<_>>();
        assert!(told(&unreadable).is_empty());
        unreadable.add(all);
        assert_eq!(told(&unreadable), named[..2]);
        unreadable.add(middle);
        unreadable.add(last);
        let told = told(&unreadable);
        assert_eq!(told[..10], named[..10]);
        assert_eq!(told[10..], ["more that stay, whose record cannot be read: 2"]);
    }
}
