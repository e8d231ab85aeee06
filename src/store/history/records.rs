//! Broadcasts and their replay: what the spool keeps of them is newer than what the store has.
//!
//! Two events of one numbering have the same number where the store refused one of them because of the other, and it was set aside.

use std::collections::BTreeMap;

use chatting_actors::{
    broadcast::{Broadcast, Span},
    types::{Epoch, PresenterIdx, Seq},
};
use uuid::Uuid;

use super::{
    History, HistoryError,
    reading::Reading,
    spooled::{self, Window},
};
use crate::store::{First, Listed, Logged, Scan, StoredBroadcast, spool::records::Which};

/// The newer of what the spool and the store have.
fn newer(spooled: Broadcast, stored: Option<StoredBroadcast>) -> StoredBroadcast {
    let corrected_start_ms = stored.as_ref().and_then(|stored| stored.corrected_start_ms);
    let legal_hold = stored.as_ref().is_some_and(|stored| stored.legal_hold);
    let broadcast = match stored {
        Some(stored) if stored.broadcast.version >= spooled.version => stored.broadcast,
        _ => spooled,
    };
    StoredBroadcast {
        broadcast,
        corrected_start_ms,
        legal_hold,
    }
}

/// What one stretch of a broadcast has behind a place.
struct Stretch {
    events: Vec<Logged>,
    /// There may be more than these.
    cut: bool,
    /// What comes next, in the stretches behind it too, was sent at the end of what is asked for, or later.
    over: bool,
}

/// Leaves no more than `limit` events, and what else has the last one's number: a place is a number. Returns whether there were more.
fn cut(events: &mut Vec<Logged>, limit: usize) -> bool {
    let Some(last) = events.get(limit.saturating_sub(1)) else {
        return false;
    };
    let last = last.event.seq;
    let end = events.partition_point(|logged| logged.event.seq <= last);
    let more = end < events.len();
    events.truncate(end);
    more
}

impl History {
    /// A room's broadcasts, the newest first, those older than `before` where that is given; at most `limit`. Where there are less, all
    /// that cannot be read are told, too; one may be told with its record in the store and be unreadable in the spool, which has a newer
    /// one.
    pub async fn broadcasts(
        &self,
        presenter: PresenterIdx,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Listed, HistoryError> {
        let reading = self.turn().await?;
        let kept = reading
            .on_spool(move |path| spooled::records(path, Which::OfRoom(presenter)))
            .await?;
        let stored = reading.on_store(move |store| store.broadcasts(presenter, before, limit));
        let Listed {
            broadcasts: mut all,
            mut unreadable,
        } = stored.await?;
        let is_asked_for = |id: Uuid| before.is_none_or(|before| id < before);
        unreadable.extend(kept.unreadable.into_iter().filter(|id| is_asked_for(*id)));
        for record in kept.broadcasts {
            if !is_asked_for(record.id) {
                continue;
            }
            match all.iter_mut().find(|stored| stored.broadcast.id == record.id) {
                Some(stored) => *stored = newer(record, Some(stored.clone())),
                None => all.push(newer(record, None)),
            }
        }
        all.sort_by_key(|stored| std::cmp::Reverse(stored.broadcast.id));
        all.truncate(limit);
        Ok(Listed {
            broadcasts: all,
            unreadable,
        })
    }

    /// One broadcast; `None` when there is none. An error where the spool's record of it cannot be read: it may be the only one, or newer
    /// than the store's, which lacks what was said since.
    pub async fn broadcast(&self, id: Uuid) -> Result<Option<StoredBroadcast>, HistoryError> {
        let reading = self.turn().await?;
        let kept = reading
            .on_spool(move |path| spooled::records(path, Which::One(id)))
            .await?;
        if !kept.unreadable.is_empty() {
            return Err(HistoryError::Unavailable(format!("broadcast {id} cannot be read")));
        }
        let stored = reading.on_store(move |store| store.broadcast(id)).await?;
        Ok(match kept.broadcasts.into_iter().next() {
            Some(record) => Some(newer(record, stored)),
            None => stored,
        })
    }

    /// Reads a broadcast on from a place in it, in the order of the broadcast: at most `limit` events that were sent before
    /// `before_ms` (milliseconds since 1970, UTC).
    pub async fn replay(
        &self,
        broadcast: &Broadcast,
        place: ReplayPlace,
        before_ms: i64,
        limit: usize,
    ) -> Result<Replayed, HistoryError> {
        let reading = self.turn().await?;
        reading.replay(broadcast, place, before_ms, limit).await
    }

    /// The last number of a numbering, in the spool or in the store, and when that was sent, in milliseconds since 1970; `None` when it
    /// has no event.
    pub async fn last_of(&self, presenter: PresenterIdx, epoch: &Epoch) -> Result<Option<(Seq, i64)>, HistoryError> {
        let reading = self.turn().await?;
        let window = Window {
            presenter,
            epoch: Some(epoch.clone()),
            after: Seq(0),
            through: Seq(u64::MAX),
            user: None,
            from_ms: None,
            to_ms: None,
            newest_first: true,
            limit: 1,
        };
        let spooled = reading.on_spool(move |path| spooled::of_room(path, &window)).await?;
        let scan = Scan {
            presenter,
            epoch: epoch.clone(),
            after: Seq(0),
            through: Seq(u64::MAX),
            user: None,
            newest_first: true,
            limit: 1,
        };
        let stored = reading.on_store(move |store| store.scan(scan)).await?;
        // Both parts of the spool have told their newest.
        let all = spooled.events.iter().chain(stored.iter().map(|logged| &logged.event));
        Ok(all.map(|event| (event.seq, event.sent_at_ms)).max())
    }

    /// The place in a broadcast before its first event that was sent at `from_ms` or later; where none was, the one behind its last.
    pub async fn replay_from(&self, broadcast: &Broadcast, from_ms: i64) -> Result<ReplayPlace, HistoryError> {
        self.turn().await?.replay_from(broadcast, from_ms).await
    }
}

impl Reading {
    /// Events of one stretch of a broadcast, the one of `place`, in order: those behind the place, sent before `before_ms`; at most
    /// `limit`, and what else has the last one's number. Acts of moderation are among them, and what is of another broadcast, but where
    /// one that may be of this has the same number.
    async fn read_span(
        &self,
        broadcast: &Broadcast,
        span: &Span,
        place: ReplayPlace,
        before_ms: i64,
        limit: usize,
    ) -> Result<Stretch, HistoryError> {
        let (presenter, after) = (broadcast.presenter, place.after.max(span.after));
        let through = span.through.unwrap_or(Seq(u64::MAX));
        let window = Window {
            presenter,
            epoch: Some(span.epoch.clone()),
            after,
            through,
            user: None,
            from_ms: None,
            to_ms: None,
            newest_first: false,
            limit,
        };
        let spooled = self.on_spool(move |path| spooled::of_room(path, &window)).await?;
        let scan = Scan {
            presenter,
            epoch: span.epoch.clone(),
            after,
            through,
            user: None,
            newest_first: false,
            limit,
        };
        let stored = self.on_store(move |store| store.scan(scan)).await?;
        // Not one behind the other: what was set aside lies between what the store has.
        let spooled_events = spooled.events.into_iter().map(Logged::unmarked);
        let all = spooled_events.chain(stored).map(|logged| {
            let event = &logged.event;
            let of_another = event.broadcast_id.is_some_and(|of| of != broadcast.id);
            ((event.seq, of_another, event.id), logged)
        });
        let all: BTreeMap<(Seq, bool, Uuid), Logged> = all.collect();
        let mut events: Vec<Logged> = Vec::with_capacity(all.len());
        for ((seq, of_another, _), logged) in all {
            if !of_another || events.last().is_none_or(|last| last.event.seq != seq) {
                events.push(logged);
            }
        }
        let more = cut(&mut events, limit);
        let events = self.covered(events, spooled.acts).await?;
        let is_last = place.span + 1 >= broadcast.spans.len();
        let (is_open, without_end) = (span.through.is_none(), broadcast.is_without_end(place.span));
        let (mut ended, mut over) = (false, false);
        let events = events.into_iter().take_while(|logged| {
            let of = logged.event.broadcast_id;
            // It had ended here when a later broadcast began.
            ended = without_end && of.is_some_and(|of| of > broadcast.id);
            if ended {
                return false;
            }
            let within = logged.event.sent_at_ms < before_ms;
            // Times do not go back in one numbering, nor in one broadcast. But what is not of it here may be of long after it.
            over = !within && (is_last || of == Some(broadcast.id) || (of.is_none() && !is_open));
            within
        });
        let events = events.collect();
        Ok(Stretch {
            events,
            // Rows of the spool that cannot be read are left out, and there may be more behind them.
            cut: !ended && ((more && !over) || spooled.reach.is_some()),
            over,
        })
    }

    async fn replay(
        &self,
        broadcast: &Broadcast,
        place: ReplayPlace,
        before_ms: i64,
        limit: usize,
    ) -> Result<Replayed, HistoryError> {
        let (from, mut place, mut behind) = (place, place, Behind::Nothing);
        while let Some(span) = broadcast.spans.get(place.span) {
            // One more tells whether there is a next page.
            let rows = limit.saturating_add(1);
            let read = self.read_span(broadcast, span, place, before_ms, rows).await?;
            let Stretch {
                mut events,
                cut: is_cut,
                over,
            } = read;
            let more = cut(&mut events, limit) || is_cut;
            if let Some(last) = events.last() {
                place.after = last.event.seq;
                // A span is as wide as numbers had been given when it began and ended. Those of a commit that failed were
                // given again, to what belongs to another broadcast or to none.
                events.retain(|logged| logged.event.broadcast_id.is_none_or(|id| id == broadcast.id));
                let last_span = place.span + 1 >= broadcast.spans.len();
                let behind = match (more, over) {
                    (true, _) => Behind::More,
                    (false, true) => Behind::Later,
                    (false, false) if last_span => Behind::Nothing,
                    (false, false) => Behind::More,
                };
                return Ok(Replayed { events, place, behind });
            }
            if over {
                behind = Behind::Later;
                break;
            }
            place = ReplayPlace {
                span: place.span + 1,
                after: Seq(0),
            };
        }
        Ok(Replayed {
            events: Vec::new(),
            // What comes may be of any span behind it.
            place: from,
            behind,
        })
    }

    /// The first number in a numbering whose event was sent at that time or later, in the spool or in the store; one more than the
    /// last where there is no such event.
    async fn first_anywhere(&self, presenter: PresenterIdx, epoch: &Epoch, at_ms: i64) -> Result<First, HistoryError> {
        let of = epoch.clone();
        let spooled = self
            .on_spool(move |path| spooled::first_from(path, presenter, &of, at_ms))
            .await?;
        let stored = self.first_stored(presenter, epoch, at_ms).await?;
        Ok(match spooled {
            // All that the store has is older, so it begins in the spool.
            Some(spooled) if !stored.there => First {
                seq: spooled.seq.max(stored.seq),
                there: spooled.there,
            },
            _ => stored,
        })
    }

    /// Whether the broadcast may have something behind a place in this span: not where a later one comes first there. What comes first
    /// of one before it was in flight when it began, and its own is behind that. There is nowhere else behind the last span.
    async fn is_there(&self, broadcast: &Broadcast, span: &Span, place: ReplayPlace) -> Result<bool, HistoryError> {
        if place.span + 1 >= broadcast.spans.len() {
            return Ok(true);
        }
        let first = self.read_span(broadcast, span, place, i64::MAX, 1).await?.events;
        let first = first.first().map(|logged| logged.event.broadcast_id);
        Ok(first.is_some_and(|of| of.is_none_or(|of| of <= broadcast.id)))
    }

    async fn replay_from(&self, broadcast: &Broadcast, from_ms: i64) -> Result<ReplayPlace, HistoryError> {
        let mut found = ReplayPlace::default();
        for (n, span) in broadcast.spans.iter().enumerate() {
            let first = self.first_anywhere(broadcast.presenter, &span.epoch, from_ms).await?;
            let through = span.through.unwrap_or(Seq(u64::MAX));
            found = ReplayPlace {
                span: n,
                after: Seq(first.seq.0.saturating_sub(1)).max(span.after),
            };
            // Not by numbers alone: nobody may know how far a span went, and numbers that were given may have no event, or one of
            // another broadcast.
            if first.there && found.after < through && self.is_there(broadcast, span, found).await? {
                break;
            }
        }
        Ok(found)
    }
}

/// A page of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// In the order of the broadcast.
    pub events: Vec<Logged>,
    /// Behind the last event that was read; where the page was to begin when there was none.
    pub place: ReplayPlace,
    /// What follows there.
    pub behind: Behind,
}

/// What is behind a page of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// There may be more to read.
    More,
    /// Nothing but what is said from now on, if the broadcast goes on.
    Nothing,
    /// What was sent at the end of what is asked for, or later. Times do not go back, so nothing follows.
    Later,
}

/// A place in a broadcast: behind an event of one of its spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayPlace {
    /// Which span.
    pub span: usize,
    /// The event.
    pub after: Seq,
}
