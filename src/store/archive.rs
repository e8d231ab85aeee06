//! What a store can be asked once the log is in it: pages, one message, broadcasts.
//!
//! Beside [`LogStore`], which the writer needs. Both stores implement both, and pass one conformance suite. Every question is
//! served by an index, so that its cost grows with what it returns and not with the log.

use chatting_actors::{
    broadcast::Broadcast,
    moderation::Act,
    seams::{LogStore, StoreError},
    types::{Epoch, Event, PresenterIdx, Seq, UserIdx},
};
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::{figures::Figures, keeping::Keeping};

/// That a message was deleted, by whom and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Milliseconds since 1970, UTC.
    pub at_ms: i64,
    /// Who did it.
    pub by: UserIdx,
}

impl Deleted {
    /// By this act.
    pub fn by(act: &Event) -> Self {
        Self {
            at_ms: act.sent_at_ms,
            by: act.chat.user_idx,
        }
    }
}

/// An event as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The event.
    pub event: Event,
    /// Set when it is no longer to be shown.
    pub deleted: Option<Deleted>,
}

impl Logged {
    /// An event that no act has marked; what was erased counts as deleted all the same.
    pub fn unmarked(event: Event) -> Self {
        let deleted = event.is_erased().then_some(Deleted {
            at_ms: event.sent_at_ms,
            by: UserIdx::ERASED,
        });
        Self { event, deleted }
    }

    /// Marks it as deleted if one of these acts covers it and none did before.
    pub fn covered_by<'a>(mut self, acts: impl IntoIterator<Item = &'a Event>) -> Self {
        for at in acts {
            let covers = at
                .act
                .as_ref()
                .is_some_and(|act: &std::sync::Arc<Act>| act.covers(at, &self.event));
            if covers && self.deleted.is_none() {
                self.deleted = Some(Deleted::by(at));
            }
        }
        self
    }
}

/// Which events of one room and numbering to read.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The room.
    pub presenter: PresenterIdx,
    /// The numbering.
    pub epoch: Epoch,
    /// Events after this one,
    pub after: Seq,
    /// up to and including this one,
    pub through: Seq,
    /// of this user only, where one is named,
    pub user: Option<UserIdx>,
    /// from the last one backwards rather than from the first one on,
    pub newest_first: bool,
    /// at most so many.
    pub limit: usize,
}

/// A broadcast as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBroadcast {
    /// The record.
    pub broadcast: Broadcast,
    /// Where staff corrected its start to, in milliseconds since 1970, UTC.
    pub corrected_start_ms: Option<i64>,
    /// Nothing of it is removed while this is set.
    pub legal_hold: bool,
}

/// See the module's text. Errors: the store cannot be asked now.
pub trait Archive: LogStore + Figures + Keeping {
    /// The numberings in which a room has events, in no order.
    fn epochs(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Vec<Epoch>, StoreError>>;

    /// Events in the order of seqs, or against it.
    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<Vec<Logged>, StoreError>>;

    /// One event by its id.
    fn find(&self, id: Uuid) -> BoxFuture<'_, Result<Option<Logged>, StoreError>>;

    /// A room's broadcasts, the newest first, those older than `before` where that is given; at most `limit`.
    fn broadcasts(
        &self,
        presenter: PresenterIdx,
        before: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<StoredBroadcast>, StoreError>>;

    /// One broadcast by its id.
    fn broadcast(&self, id: Uuid) -> BoxFuture<'_, Result<Option<StoredBroadcast>, StoreError>>;

    /// Corrects a broadcast's start, or takes the correction back. `false`: there is no such broadcast.
    fn correct_broadcast(&self, id: Uuid, corrected_start_ms: Option<i64>) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Marks these messages as deleted, whatever they were before: for logs that are brought from elsewhere, where the act that
    /// did it need not be part of what is brought. A message that is not there is passed over.
    fn mark_deleted(&self, marks: Vec<(Uuid, Deleted)>) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Finds the first number in one numbering whose event was sent at some time or later, in a logarithmic number of steps: times
/// grow with numbers. Whoever reads the log answers its questions.
#[derive(Clone, Copy, Debug)]
pub struct Bisection {
    at_ms: i64,
    /// Everything up to here is older.
    low: u64,
    /// The answer, or what is before it is.
    high: u64,
}

impl Bisection {
    /// Among the numbers up to `last`, from `at_ms` on, in milliseconds since 1970.
    pub fn new(last: Seq, at_ms: i64) -> Self {
        Self {
            at_ms,
            low: 0,
            high: last.0 + 1,
        }
    }

    fn middle(&self) -> u64 {
        self.low + (self.high - self.low) / 2
    }

    /// The next question: which is the first event after this number? `None`: there is nothing more to ask.
    pub fn question(&self) -> Option<Seq> {
        (self.low + 1 < self.high).then(|| Seq(self.middle() - 1))
    }

    /// The answer to it: number and time, `None` when there is no such event.
    pub fn answer(&mut self, next: Option<(Seq, i64)>) {
        let middle = self.middle();
        match next {
            Some((seq, sent_at_ms)) if sent_at_ms < self.at_ms => self.low = seq.0.max(middle),
            _ => self.high = middle,
        }
    }

    /// When nothing is left to ask: there is no event from that time on before this number; one more than the last number when
    /// all are older.
    pub fn found(&self) -> Seq {
        Seq(self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_from_a_time_on_is_found_with_holes_and_equal_times() {
        let log = [(2, 10), (3, 10), (7, 20), (8, 30), (20, 40)];
        let first = |at_ms: i64| {
            let mut search = Bisection::new(Seq(20), at_ms);
            while let Some(after) = search.question() {
                let next = log.iter().find(|(seq, _)| *seq > after.0);
                search.answer(next.map(|(seq, at)| (Seq(*seq), *at)));
            }
            search.found().0
        };
        for at_ms in 0..50 {
            let wanted = log.iter().find(|(_, at)| *at >= at_ms);
            let found = first(at_ms);
            // Anything between the last older one and the first that is meant will do: there is nothing between.
            let older = log.iter().rev().find(|(_, at)| *at < at_ms).map_or(0, |(seq, _)| *seq);
            assert!(found > older, "{at_ms}");
            assert!(found <= wanted.map_or(21, |(seq, _)| *seq), "{at_ms}");
        }
    }
}
