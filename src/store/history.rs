//! Reads a room's events from wherever they are (rule 6): the spool first, then the store, and each event once.
//!
//! In this order because events move from the spool to the store: the other way round loses those that move between the two
//! reads, this way round finds them twice. The same goes for acts of moderation: one that is still in the spool covers what is
//! in the store already. Reads have connections of their own and a bound on how many run at once (`log.readers`), also of those
//! for which nobody waits any more; the registry and the sessions never wait for one. Who finds all at work is refused, or waits
//! for a while where it may ([`History::patient`]), in the order of coming, and comes before those who may not. One user who may not has
//! half of the turns at most ([`History::shared`]).

mod pages;
mod reading;
mod records;
mod resume;
mod spooled;
mod text;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use chatting_actors::{
    gate::{Gate, Permit},
    seams::StoreError,
    types::UserIdx,
};

use self::reading::{Reading, Turn};
pub use self::{
    pages::{Page, Query, Start},
    records::{Behind, ReplayPlace, Replayed},
    text::Folded,
};
use super::Archive;
use crate::limits::FewEach;

/// How long who waits for its turn waits before it asks again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Reads the spool at a path and a store for all who want to read a log. Clones share `log.readers`. Errors:
/// [`HistoryError`].
#[derive(Clone)]
pub struct History {
    spool: Arc<PathBuf>,
    store: Arc<dyn Archive>,
    readers: Arc<Gate>,
    /// Whether the store did not answer when it was last asked.
    away: Arc<AtomicBool>,
    patience: Duration,
    /// What one user who shares has of the turns,
    shares: FewEach,
    /// and who reads.
    user: Option<UserIdx>,
}

/// A user who shares may have one in so many turns, or one.
const SHARE: usize = 2;

/// Why a read was not done.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// `log.readers` reads are under way, or somebody waits for one of them to end.
    #[error("too many reads at once (log.readers)")]
    Busy,
    /// So many reads of this user are under way.
    #[error("too many reads of one user at once, {0} at a time")]
    Share(usize),
    /// A search came upon so many deleted messages of its user that it gave up.
    #[error("too many deleted messages in between: ask for a shorter time (from, to)")]
    TooMuch,
    /// The spool or the store cannot be read now.
    #[error("{0}")]
    Unavailable(String),
}

impl From<StoreError> for HistoryError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.0)
    }
}

impl From<rusqlite::Error> for HistoryError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Unavailable(format!("the spool cannot be read: {error}"))
    }
}

impl History {
    /// Reads from the spool at this path and from this store, at most `readers` at once.
    pub fn new(spool: PathBuf, store: Arc<dyn Archive>, readers: usize) -> Self {
        Self {
            spool: Arc::new(spool),
            store,
            readers: Gate::new("readers", readers),
            away: Arc::default(),
            patience: Duration::ZERO,
            shares: FewEach::new((readers / SHARE).max(1)),
            user: None,
        }
    }

    /// The same for one of many, none of whom is to have all turns: what this user has begun counts until it has ended, also where
    /// nobody waits for it any more.
    #[must_use]
    pub fn shared(&self, user: UserIdx) -> Self {
        Self {
            user: Some(user),
            ..self.clone()
        }
    }

    /// The same for who may wait for its turn to read, each time for so long.
    #[must_use]
    pub fn patient(&self, patience: Duration) -> Self {
        Self {
            patience,
            ..self.clone()
        }
    }

    /// The permits of `log.readers`.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.readers
    }

    /// What the log can be asked beyond single rooms' events.
    pub fn store(&self) -> &Arc<dyn Archive> {
        &self.store
    }

    /// A reader's turn, which lasts until this is dropped and all that was read by it has ended.
    async fn turn(&self) -> Result<Reading, HistoryError> {
        let share = match self.user {
            None => None,
            Some(user) => {
                let begun = self.shares.begin(user);
                Some(begun.ok_or_else(|| HistoryError::Share(self.shares.most()))?)
            }
        };
        let permit = self.permit().await?;
        Ok(self.reading(Some(Turn::new(permit, share))))
    }

    /// Reads in this turn, or in none, where something else bounds how many read.
    fn reading(&self, turn: Option<Turn>) -> Reading {
        let (spool, store, away) = (&self.spool, &self.store, &self.away);
        Reading::new(Arc::clone(spool), Arc::clone(store), Arc::clone(away), turn)
    }

    /// Only who waits in vain is refused, and that once: its tries before are none.
    async fn permit(&self) -> Result<Permit, HistoryError> {
        if !self.patience.is_zero() {
            if let Some(turn) = self.readers.acquire_if_free(1) {
                return Ok(turn);
            }
            let (waiting, until) = (self.readers.begin_wait(), Instant::now() + self.patience);
            while Instant::now() < until {
                tokio::time::sleep(BUSY_PAUSE).await;
                if let Some(turn) = waiting.acquire_if_free() {
                    return Ok(turn);
                }
            }
        }
        self.readers.try_acquire(1).ok_or(HistoryError::Busy)
    }
}
