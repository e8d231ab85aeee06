//! Figures of a broadcast: how much was said, by whom, of what, how long the room waited for its presenter, and where it was
//! loudest.
//!
//! The stores count ([`Figures`]); what is put together here is as long as there are buckets. Deleted messages, acts of
//! moderation, and what was said before a start that was corrected to later count nowhere. Figures are of what the store
//! has: they say how far they reach, and what is still in the spool comes later.

mod peaks;
pub mod words;

use std::time::Duration;

use chatting_actors::{
    broadcast::Broadcast,
    seams::StoreError,
    types::{Epoch, Seq, UserIdx},
};
use futures_util::future::BoxFuture;

use self::peaks::peaks;
pub use self::peaks::{Peak, PeakRule};
use super::sqlite::blocking;

/// A wait above this many seconds counts as this many: whoever says something after an hour answers nobody.
pub const LONGEST_WAIT_SECONDS: i64 = 3600;

/// What is to be counted.
#[derive(Clone, Debug)]
pub struct FiguresQuery {
    /// Of this broadcast.
    pub broadcast: Broadcast,
    /// Where its start was corrected to, in milliseconds since 1970.
    pub corrected_start_ms: Option<i64>,
    /// How long a bucket is, in milliseconds of the broadcast; more than 0.
    pub bucket_ms: i64,
    /// The last bucket that there may be; what is behind it counts there.
    pub last_bucket: i64,
    /// At most so many senders, and so many words.
    pub top: usize,
    /// After this time it is given up.
    pub patience: Duration,
}

impl FiguresQuery {
    /// What was sent earlier does not count: it was said before the start that was corrected to. Milliseconds since 1970.
    pub fn from_ms(&self) -> i64 {
        self.broadcast.time_at(0, self.corrected_start_ms).unwrap_or(i64::MAX)
    }
}

/// Who said how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The user.
    pub user_idx: UserIdx,
    /// The name beside the newest message that counts.
    pub nickname: String,
    /// Messages.
    pub messages: u64,
}

/// What a store counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The last event that the store had of the broadcast: everything up to it has been counted. `None`: it has none.
    pub through: Option<(Epoch, Seq)>,
    /// Messages by bucket, in order, without the empty ones.
    pub buckets: Vec<(i64, u64)>,
    /// How many users said something.
    pub senders: u64,
    /// Those who said most, the greater number first, then the smaller user number.
    pub top_senders: Vec<Sender>,
    /// In how many messages a word is, the greater number first, then in the order of code points.
    pub top_words: Vec<(String, u64)>,
    /// Waits of the room in whole seconds and how many there were of each, in order of length. There is one wait for each message
    /// of the presenter that follows a message of somebody else: since the first such after the presenter's message before.
    pub waits: Vec<(i64, u64)>,
}

impl Counted {
    /// How many messages.
    pub fn messages(&self) -> u64 {
        self.buckets.iter().map(|(_, messages)| messages).sum()
    }

    /// Messages of every bucket up to the last one, empty ones too; at least `least` buckets.
    pub fn series(&self, least: usize) -> Vec<u64> {
        let index = |bucket: i64| usize::try_from(bucket).unwrap_or(0);
        let length = self.buckets.last().map_or(0, |(last, _)| index(*last) + 1);
        let mut series = vec![0; length.max(least)];
        for (bucket, messages) in &self.buckets {
            if let Some(place) = series.get_mut(index(*bucket)) {
                *place += messages;
            }
        }
        series
    }

    /// How many waits there were.
    pub fn replies(&self) -> u64 {
        self.waits.iter().map(|(_, count)| count).sum()
    }

    /// The wait in seconds that so many percent of all waits do not exceed; `None` when there was none.
    pub fn wait_seconds(&self, percent: u64) -> Option<i64> {
        let rank = (self.replies() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.waits.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        found.map(|(seconds, _)| *seconds)
    }
}

/// What was counted, [`Counted::series`] of it, and the peaks of that, at most `limit`. They are not found on the thread that serves who
/// asks: in a long series, with a wide window, it takes the CPU for seconds. Callers bound how many run.
pub async fn loudness(
    counted: Counted,
    least: usize,
    rule: PeakRule,
    limit: usize,
) -> Result<(Counted, Vec<u64>, Vec<Peak>), StoreError> {
    blocking(move || {
        let series = counted.series(least);
        let peaks = peaks(&series, rule, limit);
        Ok((counted, series, peaks))
    })
    .await
}

/// Counts within the store: by SQL, or by an aggregation.
pub trait Figures: Send + Sync {
    /// See [`Counted`]. Errors: the store cannot be asked now, or it takes longer than the query's patience.
    fn figures(&self, query: FiguresQuery) -> BoxFuture<'_, Result<Counted, StoreError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn peaks_are_not_looked_for_on_the_thread_that_serves_who_asks() {
        let counted = Counted {
            buckets: vec![(3, 100)],
            ..Counted::default()
        };
        let rule = PeakRule {
            window: 9,
            percent: 200,
        };
        let before = peaks::LOOKED_AT.get();
        let (_, series, found) = loudness(counted, 10, rule, 5).await.unwrap();
        assert_eq!((series.len(), found.len()), (10, 1));
        assert_eq!(peaks::LOOKED_AT.get(), before);
    }

    #[test]
    fn a_percentile_of_waits_is_a_wait_that_was() {
        let mut counted = Counted::default();
        assert_eq!(counted.wait_seconds(50), None);
        counted.waits = vec![(1, 5), (7, 4), (90, 1)];
        let told: Vec<_> = [1, 50, 51, 90, 91, 100]
            .map(|percent| counted.wait_seconds(percent).unwrap())
            .into();
        assert_eq!(told, [1, 1, 7, 7, 90, 90]);
    }

    #[test]
    fn a_series_has_every_bucket_and_loses_no_message() {
        let counted = Counted {
            buckets: vec![(1, 3), (4, 2)],
            ..Counted::default()
        };
        assert_eq!(counted.series(2), [0, 3, 0, 0, 2]);
        assert_eq!(counted.series(7), [0, 3, 0, 0, 2, 0, 0]);
        assert_eq!(counted.messages(), 5);
    }
}
