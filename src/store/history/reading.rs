//! What is read in a reader's turn, and how long that turn lasts.
//!
//! Neither a blocking read nor what a store was asked is taken back when whoever asked has gone. So each has its part in the turn,
//! which is over when the last of them is: else a client that asks and goes, again and again, would have any number of reads under way,
//! each of which may go through a whole spool.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use chatting_actors::{
    gate::Permit,
    seams::StoreError,
    types::{Epoch, Event, PresenterIdx},
};
use futures_util::future::{BoxFuture, FutureExt};

use super::HistoryError;
use crate::{
    limits::AtIt,
    store::{Archive, First, Logged},
};

/// A turn of `log.readers`, and what it counts of its user's share.
pub struct Turn {
    _permit: Permit,
    _share: Option<AtIt>,
}

impl Turn {
    /// Both last until it is over.
    pub fn new(permit: Permit, share: Option<AtIt>) -> Self {
        Self {
            _permit: permit,
            _share: share,
        }
    }
}

/// The spool and the store, for who reads them now. Each read has the turn until it has ended, whoever still waits for
/// it.
pub struct Reading {
    spool: Arc<PathBuf>,
    store: Arc<dyn Archive>,
    /// Whether the store did not answer when it was last asked, by whoever reads.
    away: Arc<AtomicBool>,
    /// `None` where something else bounds how many read.
    turn: Option<Arc<Turn>>,
}

impl Reading {
    /// Of this spool and this store, in this turn.
    pub fn new(spool: Arc<PathBuf>, store: Arc<dyn Archive>, away: Arc<AtomicBool>, turn: Option<Turn>) -> Self {
        let turn = turn.map(Arc::new);
        Self {
            spool,
            store,
            away,
            turn,
        }
    }

    /// Runs blocking work. It goes on to its end, and the turn with it.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HistoryError> {
        let turn = self.turn.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "the turn, or session.resume_reads, bounds how many run"
        )]
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.map_err(|error| HistoryError::Unavailable(error.to_string()))
    }

    /// The same on the spool's file.
    pub async fn on_spool<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let path = Arc::clone(&self.spool);
        Ok(self.blocking(move || work(&path)).await??)
    }

    /// Marks what these acts cover. Each is compared with each, which may take the CPU for long: whoever is served on this thread would
    /// wait.
    pub async fn covered(&self, events: Vec<Logged>, acts: Vec<Event>) -> Result<Vec<Logged>, HistoryError> {
        if acts.is_empty() {
            return Ok(events);
        }
        let cover = move || events.into_iter().map(|logged| logged.covered_by(&acts)).collect();
        self.blocking(cover).await
    }

    /// Asks the store. What it was asked goes on to its end, and the turn with it.
    pub async fn on_store<T: Send + 'static>(
        &self,
        ask: impl for<'a> FnOnce(&'a dyn Archive) -> BoxFuture<'a, Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let (store, away, turn) = (Arc::clone(&self.store), Arc::clone(&self.away), self.turn.clone());
        let asked = tokio::spawn(async move {
            let _turn = turn;
            let answer = ask(&*store).await;
            away.store(answer.is_err(), Relaxed);
            answer
        });
        let answer = asked
            .await
            .map_err(|error| HistoryError::Unavailable(error.to_string()))?;
        Ok(answer?)
    }

    /// For who needs the store whatever the spool has: where it did not answer when it was last asked, it is asked for little before a
    /// whole spool is gone through in vain, which is long while the store is away.
    pub async fn unless_away(&self, presenter: PresenterIdx) -> Result<(), HistoryError> {
        if self.away.load(Relaxed) {
            self.on_store(move |store| store.epochs(presenter)).await?;
        }
        Ok(())
    }

    /// [`Archive::first_from`], of the store.
    pub async fn first_stored(
        &self,
        presenter: PresenterIdx,
        epoch: &Epoch,
        at_ms: i64,
    ) -> Result<First, HistoryError> {
        let epoch = epoch.clone();
        self.on_store(move |store| async move { store.first_from(presenter, &epoch, at_ms).await }.boxed())
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Receiver, sync_channel},
        time::Duration,
    };

    use tokio::sync::oneshot;

    use super::*;
    use crate::store::{History, SqliteStore, sqlite};

    /// Waits for what lets go of a read, and tells before that it does.
    fn wait(begun: oneshot::Sender<()>, go_on: &Receiver<()>) {
        begun.send(()).unwrap();
        // Its other end is gone.
        go_on.recv().unwrap_err();
    }

    #[tokio::test]
    async fn a_turn_is_not_over_before_what_is_read_in_it_though_whoever_asked_has_gone() {
        let store = SqliteStore::to_read("nowhere".into());
        let history = History::new("nowhere".into(), Arc::new(store), 1);
        let gate = history.gate();
        for of_store in [false, true] {
            let (begun, begins) = oneshot::channel();
            let (let_go, go_on) = sync_channel::<()>(0);
            let reading = history.turn().await.unwrap();
            let read = async move {
                if of_store {
                    let work = move || {
                        wait(begun, &go_on);
                        Ok(())
                    };
                    reading.on_store(|_| sqlite::blocking(work)).await
                } else {
                    let work = move |_: &Path| {
                        wait(begun, &go_on);
                        Ok(())
                    };
                    reading.on_spool(work).await
                }
            };
            tokio::select! {
                _ = read => panic!("it waits"),
                begun = begins => begun.unwrap(),
            }
            // Whoever asked has gone.
            assert_eq!(gate.depth(), 1, "{of_store}");
            assert!(matches!(history.turn().await, Err(HistoryError::Busy)), "{of_store}");
            drop(let_go);
            let over = async {
                while gate.depth() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), over).await.unwrap();
        }
    }
}
