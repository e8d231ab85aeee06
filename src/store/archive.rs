//! What a store can be asked once the log is in it: pages, one message, broadcasts.
//!
//! Beside [`LogStore`], which the writer needs. Both stores implement both, and pass one conformance suite. Every question is
//! served by an index, so that its cost grows with what it returns and not with the log.

use std::sync::Arc;

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
                .is_some_and(|act: &Arc<Act>| act.covers(at, &self.event));
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

/// Broadcasts of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The newest first.
    pub broadcasts: Vec<StoredBroadcast>,
    /// Those that were come upon and whose record cannot be read; it costs the others nothing.
    pub unreadable: Vec<Uuid>,
}

impl Listed {
    /// One more, or the id of one that cannot be read.
    pub fn add(&mut self, read: Result<StoredBroadcast, Uuid>) {
        match read {
            Ok(stored) => self.broadcasts.push(stored),
            Err(id) => self.unreadable.push(id),
        }
    }
}

/// A store that can be read: what history, replay, moderation and exports ask of it. Times are in milliseconds since
/// 1970, UTC. Errors: the store cannot be asked now.
pub trait Archive: LogStore + Figures + Keeping {
    /// Whether it holds no numbered event at all.
    fn is_empty(&self) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// The numberings in which a room has events, in no order.
    fn epochs(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Vec<Epoch>, StoreError>>;

    /// Events in the order of seqs, or against it.
    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<Vec<Logged>, StoreError>>;

    /// The first number in one numbering whose event was sent at `at_ms` (milliseconds since 1970, UTC) or later. Where all are
    /// older, it is one more than the last.
    fn first_from<'a>(
        &'a self,
        presenter: PresenterIdx,
        epoch: &'a Epoch,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<First, StoreError>>;

    /// The acts of moderation in these rooms whose ids are greater than `after`, in the order of ids; at most `limit`.
    fn acts(
        &self,
        rooms: Vec<PresenterIdx>,
        after: Uuid,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Event>, StoreError>>;

    /// One event by its id.
    fn find(&self, id: Uuid) -> BoxFuture<'_, Result<Option<Logged>, StoreError>>;

    /// A room's broadcasts, the newest first, those older than `before` where that is given; at most `limit`. Where there are less, all
    /// that cannot be read are told, too.
    fn broadcasts(
        &self,
        presenter: PresenterIdx,
        before: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Listed, StoreError>>;

    /// One broadcast by its id.
    fn broadcast(&self, id: Uuid) -> BoxFuture<'_, Result<Option<StoredBroadcast>, StoreError>>;

    /// Marks those of these messages as deleted by this act that no act has marked before: it covers them, and they came
    /// behind it. Returns why the store refuses that for good, where it does. A message that is not there is passed over.
    fn mark_covered(&self, act: Arc<Event>, messages: Vec<Uuid>) -> BoxFuture<'_, Result<Option<String>, StoreError>>;

    /// Marks these messages as deleted, whatever they were before: for logs that are brought from elsewhere, where the act that
    /// did it need not be part of what is brought. A message that is not there is passed over.
    fn mark_deleted(&self, marks: Vec<(Uuid, Deleted)>) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Where the events of one numbering begin that were sent at some time or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// No event from that time on is before this number.
    pub seq: Seq,
    /// Whether there is such an event.
    pub there: bool,
}

/// Finds where the events of one numbering begin that were sent at some time or later: times grow with numbers. Whoever reads the log
/// answers its questions.
///
/// It guesses by the times at both ends of what is left, which takes a handful of questions where events come evenly; each third
/// question halves what is left, so that there are never more than three times as many as halving alone needs.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    at_ms: i64,
    /// The last number there is.
    last: u64,
    /// Everything up to here is older; the time of the event here, where there is one.
    low: (u64, Option<i64>),
    /// The answer, or what is before it is; the time of the event here or behind, as far as known.
    high: (u64, Option<i64>),
    /// The number that was asked about.
    guess: u64,
    asked: u32,
}

impl Search {
    /// Among the numbers up to `last` (number and time of the last event, `None`: there is none), from `at_ms` on, in milliseconds
    /// since 1970.
    pub fn new(last: Option<(Seq, i64)>, at_ms: i64) -> Self {
        let number = last.map_or(0, |(seq, _)| seq.0);
        let mut search = Self {
            at_ms,
            last: number,
            low: (0, None),
            high: (number + 1, None),
            guess: 0,
            asked: 0,
        };
        match last {
            Some((_, sent_at_ms)) if sent_at_ms < at_ms => search.low = (number, Some(sent_at_ms)),
            Some((_, sent_at_ms)) => search.high = (number, Some(sent_at_ms)),
            None => {}
        }
        search
    }

    /// The next question: which is the first event after this number? `None`: there is nothing more to ask.
    pub fn question(&mut self) -> Option<Seq> {
        let ((low, low_ms), (high, high_ms)) = (self.low, self.high);
        if low + 1 >= high {
            return None;
        }
        self.asked += 1;
        self.guess = match (low_ms, high_ms) {
            // The first of all: its time is one end to guess by.
            (None, _) => low + 1,
            (Some(low_ms), Some(high_ms)) if high_ms > low_ms && !self.asked.is_multiple_of(3) => {
                let share = (self.at_ms - low_ms) as f64 / (high_ms - low_ms) as f64;
                // A fraction of what is left, so it is within it.
                low.saturating_add(((high - low) as f64 * share) as u64)
            }
            _ => low + (high - low) / 2,
        }
        .clamp(low + 1, high - 1);
        Some(Seq(self.guess - 1))
    }

    /// The answer to it: number and time, `None` when there is no such event.
    pub fn answer(&mut self, next: Option<(Seq, i64)>) {
        match next {
            Some((seq, sent_at_ms)) if sent_at_ms < self.at_ms => {
                self.low = (seq.0.max(self.guess), Some(sent_at_ms));
            }
            next => self.high = (self.guess, next.map(|(_, sent_at_ms)| sent_at_ms)),
        }
    }

    /// When nothing is left to ask.
    pub fn found(&self) -> First {
        First {
            seq: Seq(self.high.0),
            there: self.high.0 <= self.last,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the search finds in a log of numbers and times, and how many questions it took.
    fn first(log: &[(u64, i64)], at_ms: i64) -> (First, usize) {
        let last = log.last().map(|(seq, at)| (Seq(*seq), *at));
        let mut search = Search::new(last, at_ms);
        let mut questions = 0;
        while let Some(after) = search.question() {
            questions += 1;
            let next = log.get(log.partition_point(|(seq, _)| *seq <= after.0));
            search.answer(next.map(|(seq, at)| (Seq(*seq), *at)));
        }
        (search.found(), questions)
    }

    proptest! {
        #[test]
        fn the_first_event_from_a_time_on_is_found_with_holes_and_equal_times(
            steps in prop::collection::vec((1_u64..50, prop_oneof![Just(0_i64), 0_i64..5, 0_i64..100_000]), 0..200),
            at in -1.0..=1.1,
        ) {
            let log: Vec<(u64, i64)> = steps
                .into_iter()
                .scan((0, 1_700_000_000_000), |(seq, ms), (seqs, pause)| {
                    (*seq, *ms) = (*seq + seqs, *ms + pause);
                    Some((*seq, *ms))
                })
                .collect();
            let (begins, ends) = (1_700_000_000_000, log.last().map_or(1_700_000_000_000, |(_, ms)| *ms));
            let at_ms = begins + ((ends - begins) as f64 * at) as i64;
            let (found, questions) = first(&log, at_ms);
            let wanted = log.iter().find(|(_, at)| *at >= at_ms);
            // Anything between the last older one and the first that is meant will do: there is nothing between.
            let older = log.iter().rev().find(|(_, at)| *at < at_ms).map_or(0, |(seq, _)| *seq);
            let last = log.last().map_or(0, |(seq, _)| *seq);
            prop_assert!(found.seq.0 > older);
            prop_assert!(found.seq.0 <= wanted.map_or(last + 1, |(seq, _)| *seq));
            prop_assert_eq!(found.there, wanted.is_some());
            prop_assert!(questions <= 3 * 14, "{} questions among {} numbers", questions, last);
        }
    }

    #[test]
    fn where_events_come_evenly_a_handful_of_questions_is_enough() {
        let log: Vec<(u64, i64)> = (1..=1_000_000)
            .map(|seq| (seq, seq as i64 * 14 + (seq % 7) as i64))
            .collect();
        for at_ms in [0, 1, 1_000_000, 7_000_003, 13_999_000, 14_000_000, 15_000_000] {
            let (found, questions) = first(&log, at_ms);
            assert_eq!(
                found.seq.0,
                log.partition_point(|(_, at)| *at < at_ms) as u64 + 1,
                "{at_ms}"
            );
            assert!(questions <= 8, "{questions} questions for {at_ms}");
        }
    }
}
