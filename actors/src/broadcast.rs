//! Broadcasts: one record for each stretch of a room being live, from going live to ending.
//!
//! The registry opens, interrupts and ends them by what the room server says. An interruption shorter than
//! `broadcast.resume_seconds` belongs to the broadcast, and its time does not count: [`Broadcast::offset_ms`] tells how much of
//! the broadcast had been shown at a time, which is the place in a recorded video.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    clock::system_ms,
    seams::Liveness,
    types::{Epoch, PresenterIdx, Seq},
};

/// Stretches of one broadcast that are told apart. A record is written whole whenever one begins or ends, and a room server that says now
/// this, now that, would make it grow without end: what is behind them counts as one stretch, interruptions and all.
pub const SEGMENTS_MAX: usize = 1000;

/// How long after a time something may still change before it, in milliseconds: that the room is not live any more is heard some seconds
/// after it is so.
const LATE_MS: i64 = 10_000;

/// A stretch within a broadcast in which the room was live. Times in milliseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// When it began.
    pub from_ms: i64,
    /// When it ended; `None` while it goes on.
    pub to_ms: Option<i64>,
}

/// Where a broadcast's events are, in one numbering. There may be others among them, which name another broadcast.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The numbering.
    pub epoch: Epoch,
    /// Events after this one,
    pub after: Seq,
    /// up to and including this one; `None` while the broadcast goes on, or when the numbering ended first.
    pub through: Option<Seq>,
}

/// One broadcast. Times in milliseconds since 1970, UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broadcast {
    /// UUIDv7.
    pub id: Uuid,
    /// The room.
    pub presenter: PresenterIdx,
    /// The room server's own number, where it names one.
    pub room_idx: Option<i64>,
    /// When the room server says that it began, where it does.
    pub reported_start_ms: Option<i64>,
    /// When it ended; `None` while it goes on or may go on.
    pub ended_at_ms: Option<i64>,
    /// When it was live; never empty, in order of time.
    pub segments: Vec<Segment>,
    /// Its events; never empty.
    pub spans: Vec<Span>,
    /// When the room was last seen to be live.
    pub seen_at_ms: i64,
    /// Counts the changes, so that a late write never undoes a newer one.
    pub version: u64,
}

/// More versions than a broadcast has in one spool: it has one each time that it is kept.
pub(crate) const TAKEN_UP: u64 = 1 << 32;

/// What was heard of a room, and where its numbering stood then.
#[derive(Clone, Debug)]
pub struct Heard<'a> {
    /// The room.
    pub presenter: PresenterIdx,
    /// The room server's word.
    pub liveness: Liveness,
    /// Milliseconds since 1970, UTC; not before the time of any message until then.
    pub now_ms: i64,
    /// How long the room has not been live, as far as is known, in milliseconds of a clock that nobody sets.
    pub away_ms: i64,
    /// Until when this process looked after it, again and again, and nobody said that it was not live since it was seen to be; in
    /// milliseconds since 1970, UTC. `None` where this process has not seen it live.
    pub watched_ms: Option<i64>,
    /// How long ago this process last saw it live, in milliseconds of a clock that nobody sets. `None` where it has not, or somebody said
    /// since that it was not live.
    pub unseen_ms: Option<i64>,
    /// The numbering.
    pub epoch: &'a Epoch,
    /// The last number that was committed.
    pub committed: Seq,
    /// The last number that was given.
    pub last: Seq,
    /// `broadcast.resume_seconds`, in milliseconds.
    pub resume_ms: i64,
}

/// What a verdict does to a room's broadcast. Returns the records that changed, to be kept: one that ended, one that goes on.
pub fn follow(open: &mut Option<Broadcast>, heard: &Heard<'_>, id: impl FnOnce() -> Uuid) -> Vec<Broadcast> {
    let mut changed = Vec::new();
    let goes_on = open.as_ref().is_some_and(|broadcast| broadcast.is_meant_by(heard));
    if let Some(broadcast) = open.as_mut() {
        let touched = match (heard.liveness.live, goes_on) {
            (true, true) => broadcast.hear_live(heard),
            (true, false) => {
                broadcast.end(broadcast.last_live_ms(), heard.epoch, heard.last);
                true
            }
            (false, _) => broadcast.hear_not_live(heard),
        };
        if touched {
            broadcast.version += 1;
            changed.push(broadcast.clone());
        }
        if broadcast.ended_at_ms.is_some() {
            *open = None;
        }
    }
    if heard.liveness.live && open.is_none() {
        let broadcast = Broadcast::begin(id(), heard);
        changed.push(broadcast.clone());
        *open = Some(broadcast);
    }
    changed
}

/// Nobody knows a room any more, and nothing waits there, or has for too long: its broadcast has ended when it was last seen to be live. `last` is the last
/// number that was given in this numbering. Returns the record, to be kept.
pub(crate) fn end_unknown(open: &mut Option<Broadcast>, epoch: &Epoch, last: Seq) -> Option<Broadcast> {
    let mut broadcast = open.take()?;
    broadcast.end(broadcast.last_live_ms(), epoch, last);
    broadcast.version += 1;
    Some(broadcast)
}

/// Goes on with a broadcast of a room that an earlier run, or another server, left open. Where there is one already
/// that `is_live` here it goes on, else the later of the two: it has ended the other one, though nobody heard of that.
/// Returns the record of one that has ended, to be kept.
pub fn take_up(open: &mut Option<Broadcast>, mut left: Broadcast, is_live: bool) -> Option<Broadcast> {
    match open {
        Some(one) if one.id == left.id => None,
        Some(one) => {
            // Ids are of their time.
            if one.id < left.id && !is_live {
                std::mem::swap(one, &mut left);
            }
            Some(left.overtaken_by(one))
        }
        None => {
            *open = Some(left);
            None
        }
    }
}

/// Until when a room that was seen to be live was looked after, again and again, and nobody said that it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// [`Heard::watched_ms`].
    pub until_ms: i64,
    /// The same moment by [`crate::clock::boot_ms`].
    looked_ms: i64,
    /// When it was seen to be live, by that clock.
    seen_ms: i64,
}

impl Watched {
    /// The room is seen to be live: `now_ms` in milliseconds since 1970, UTC, `boot_ms` the same moment by [`crate::clock::boot_ms`].
    pub fn begin(now_ms: i64, boot_ms: i64) -> Self {
        Self {
            until_ms: now_ms,
            looked_ms: boot_ms,
            seen_ms: boot_ms,
        }
    }

    /// [`Heard::unseen_ms`] at this moment.
    pub fn unseen_ms(self, boot_ms: i64) -> i64 {
        boot_ms - self.seen_ms
    }

    /// Another look, at this moment. A longer time without one than `pause_ms`, as of a process that was stopped or a machine that slept,
    /// is not passed over: nobody was asked, and as behind a restart nobody knows what was in it. That the system's clock was set is no
    /// such time.
    #[must_use]
    pub fn on(self, now_ms: i64, boot_ms: i64, pause_ms: i64) -> Self {
        if boot_ms - self.looked_ms > pause_ms {
            self
        } else {
            Self {
                until_ms: now_ms,
                looked_ms: boot_ms,
                ..self
            }
        }
    }
}

impl Broadcast {
    fn begin(id: Uuid, heard: &Heard<'_>) -> Self {
        let reported = heard.liveness.started_at_ms;
        Self {
            id,
            presenter: heard.presenter,
            room_idx: heard.liveness.room_idx,
            reported_start_ms: reported,
            ended_at_ms: None,
            segments: vec![Segment {
                from_ms: reported.unwrap_or(heard.now_ms).min(heard.now_ms),
                to_ms: None,
            }],
            spans: vec![Span {
                epoch: heard.epoch.clone(),
                // Not `last`: what is on its way may be taken back, and its numbers are then given to what comes.
                after: heard.committed,
                through: None,
            }],
            seen_at_ms: heard.now_ms,
            version: 1,
        }
    }

    /// When it began.
    pub fn started_at_ms(&self) -> i64 {
        self.segments.first().map_or(self.seen_at_ms, |first| first.from_ms)
    }

    /// When it ended; while it goes on now, and not before it was last seen to be live, for a clock may have been set back. Milliseconds
    /// since 1970.
    pub fn until_ms(&self) -> i64 {
        self.ended_at_ms.unwrap_or_else(|| system_ms().max(self.seen_at_ms))
    }

    /// Whether there may yet be messages of it that were sent before this time, in milliseconds since 1970, beside those that are there.
    /// `settled_ms`: [`crate::writer::WriterHandle::settled_ms`], asked before what is there is read.
    pub fn goes_on_before(&self, at_ms: i64, settled_ms: i64) -> bool {
        self.ended_at_ms.is_none() && at_ms > settled_ms.min(self.until_ms() - LATE_MS)
    }

    /// The last number before the broadcast's events, in whichever numbering they are. A new numbering of a room goes on behind the last
    /// number of the numbering before it. Where numbers were lost with a spool, it begins again at a lower one, so the lower of the
    /// two beginnings counts: that of the broadcast, and that of its stretch in this numbering.
    pub(crate) fn begins_after(&self, epoch: &Epoch) -> Seq {
        let here = self.spans.iter().find(|span| span.epoch == *epoch);
        let afters = self.spans.first().into_iter().chain(here).map(|span| span.after);
        afters.min().unwrap_or_default()
    }

    /// Whether nobody knows how far it went in one of its spans, though it goes on there no more: it went on in another numbering, or
    /// ended, and that was heard of by a server that has this numbering not. What is numbered there may be of any later one.
    pub fn is_without_end(&self, span: usize) -> bool {
        let is_over = self.ended_at_ms.is_some() || span + 1 < self.spans.len();
        is_over && self.spans.get(span).is_some_and(|span| span.through.is_none())
    }

    /// Ends the spans of which nobody knows how far it went where a later broadcast of its room began in their numberings.
    pub fn end_before(&mut self, later: &Self) {
        for n in (0..self.spans.len())
            .filter(|n| self.is_without_end(*n))
            .collect::<Vec<_>>()
        {
            if let Some(span) = self.spans.get_mut(n) {
                let same = |one: &&Span| one.epoch == span.epoch && one.after >= span.after;
                span.through = later.spans.iter().filter(same).map(|one| one.after).min();
            }
        }
    }

    /// Whether it was not live when it was last heard of, and may go on.
    pub(crate) fn is_away(&self) -> bool {
        self.segments.last().is_some_and(|last| last.to_ms.is_some())
    }

    /// When it was last known to be live, as far as it is known.
    pub(crate) fn last_live_ms(&self) -> i64 {
        self.segments
            .last()
            .and_then(|last| last.to_ms)
            .unwrap_or(self.seen_at_ms)
            .max(self.started_at_ms())
    }

    /// Whether these name this broadcast: when it started and the room's number, as the room server tells them. `None` where it has told
    /// neither here and there.
    fn is_named(&self, (started_at_ms, room_idx): (Option<i64>, Option<i64>)) -> Option<bool> {
        let named = [(self.reported_start_ms, started_at_ms), (self.room_idx, room_idx)];
        let mut told = named.iter().filter_map(|(ours, theirs)| ours.zip(*theirs)).peekable();
        told.peek()?;
        Some(told.all(|(ours, theirs)| ours == theirs))
    }

    /// Whether the room server has named this one and the other as the same, as where two servers heard of it.
    pub fn is_named_as(&self, other: &Self) -> bool {
        self.is_named((other.reported_start_ms, other.room_idx)) == Some(true)
    }

    /// Whether the room server's word that the room is live means this broadcast. What names a broadcast decides; where
    /// nothing does, how long ago it was last live; that nobody answers, however often somebody is asked, ends none.
    fn is_meant_by(&self, heard: &Heard<'_>) -> bool {
        let theirs = (heard.liveness.started_at_ms, heard.liveness.room_idx);
        if let Some(same) = self.is_named(theirs) {
            return same;
        }
        let watched_ms = heard.watched_ms.filter(|_| !self.is_away());
        heard.now_ms - self.last_live_ms().max(watched_ms.unwrap_or(i64::MIN)) <= heard.resume_ms
    }

    /// Hears that it is live. Returns whether that is to be kept at once.
    #[must_use]
    fn hear_live(&mut self, heard: &Heard<'_>) -> bool {
        let mut touched = false;
        let full = self.segments.len() >= SEGMENTS_MAX;
        match self.segments.last_mut() {
            Some(last) if last.to_ms.is_none() => {}
            Some(last) if full => {
                last.to_ms = None;
                touched = true;
            }
            _ => {
                self.segments.push(Segment {
                    from_ms: heard.now_ms.max(self.last_live_ms()),
                    to_ms: None,
                });
                touched = true;
            }
        }
        match self.spans.last_mut() {
            Some(span) if span.epoch == *heard.epoch => {
                touched |= span.through.take().is_some();
            }
            _ => {
                self.spans.push(Span {
                    epoch: heard.epoch.clone(),
                    after: heard.committed,
                    through: None,
                });
                self.part_spans();
                touched = true;
            }
        }
        let named = (
            self.room_idx.or(heard.liveness.room_idx),
            self.reported_start_ms.or(heard.liveness.started_at_ms),
        );
        touched |= named != (self.room_idx, self.reported_start_ms);
        // It began when it was first heard of, as long as nobody told when. It was seen to be live until its first
        // stretch ended: what began after that is another stretch.
        if let (None, (_, Some(start_ms)), Some(first)) = (self.reported_start_ms, named, self.segments.first_mut())
            && first.to_ms.is_none_or(|to_ms| start_ms < to_ms)
        {
            first.from_ms = start_ms.min(heard.now_ms);
        }
        (self.room_idx, self.reported_start_ms) = named;
        self.seen_at_ms = heard.now_ms;
        touched
    }

    /// Hears that it is not live, which may end it. Returns whether that is to be kept at once.
    #[must_use]
    fn hear_not_live(&mut self, heard: &Heard<'_>) -> bool {
        let reported = heard.liveness.ended_at_ms;
        let mut touched = false;
        // When it ended may be told later than that it is not live.
        let closes = |last: &&mut Segment| last.to_ms.is_none() || reported.is_some();
        if let Some(last) = self.segments.last_mut().filter(closes) {
            // A server that was away does not know when it ended; not later than it was heard of.
            let unseen_ms = heard.unseen_ms.unwrap_or(heard.now_ms - self.seen_at_ms);
            let at = reported.unwrap_or(if unseen_ms > heard.resume_ms {
                self.seen_at_ms
            } else {
                heard.now_ms
            });
            last.to_ms = Some(at.clamp(last.from_ms, heard.now_ms.max(last.from_ms)));
            self.close_span(heard.epoch, heard.last);
            touched = true;
        }
        let away_ms = heard.away_ms.max(heard.now_ms - self.last_live_ms());
        if reported.is_some() || away_ms >= heard.resume_ms {
            self.end(self.last_live_ms(), heard.epoch, heard.last);
            touched = true;
        }
        touched
    }

    fn end(&mut self, at_ms: i64, epoch: &Epoch, last: Seq) {
        if let Some(last) = self.segments.last_mut() {
            last.to_ms.get_or_insert(at_ms.max(last.from_ms));
        }
        self.close_span(epoch, last);
        self.ended_at_ms = Some(at_ms);
    }

    /// Ends it when it was last seen to be live, and where another one of its room begins, which goes on.
    fn overtaken_by(mut self, other: &Self) -> Self {
        let at_ms = self.last_live_ms();
        if let Some(next) = other.spans.first() {
            self.end(at_ms, &next.epoch, next.after);
        }
        self.version += 1;
        self
    }

    /// Goes on from what another server has made of it, which is newer but for what is of this numbering.
    pub(crate) fn go_on_from(&mut self, theirs: Self, epoch: &Epoch) {
        let ours = std::mem::replace(self, theirs);
        for span in ours.spans {
            let same = |one: &&mut Span| one.epoch == span.epoch && one.after == span.after;
            match self.spans.iter_mut().find(same) {
                Some(one) if span.epoch == *epoch => one.through = span.through,
                Some(_) => {}
                None => self.spans.push(span),
            }
        }
        self.part_spans();
        self.room_idx = self.room_idx.or(ours.room_idx);
        self.reported_start_ms = self.reported_start_ms.or(ours.reported_start_ms);
        self.seen_at_ms = self.seen_at_ms.max(ours.seen_at_ms);
        // The other server's spool is ahead of what it has stored: each time that the room was seen to be live counts there.
        self.version = self.version.max(ours.version) + TAKEN_UP;
    }

    /// Where it came back to a numbering, each stretch there ends where the next begins.
    fn part_spans(&mut self) {
        let mut begun: Vec<(Epoch, Seq)> = Vec::new();
        for span in self.spans.iter_mut().rev() {
            match begun.iter_mut().find(|(epoch, _)| *epoch == span.epoch) {
                Some((_, next)) => {
                    span.through = Some(span.through.map_or(*next, |through| through.min(*next)));
                    *next = span.after;
                }
                None => begun.push((span.epoch.clone(), span.after)),
            }
        }
    }

    /// What is numbered from now on is not of this broadcast.
    fn close_span(&mut self, epoch: &Epoch, last: Seq) {
        if let Some(span) = self.spans.last_mut().filter(|span| span.epoch == *epoch) {
            span.through.get_or_insert(last);
        }
    }

    /// How much of the broadcast had been live at a time, in milliseconds; the start is `started_at_ms`, or where it was
    /// corrected to. Negative before a start that was corrected to later: that is not in the video. Without a correction never: it is
    /// another clock that tells the start, and nothing may be missing because of it.
    pub fn offset_ms(&self, at_ms: i64, corrected_start_ms: Option<i64>) -> i64 {
        self.live_ms(at_ms) - self.shift_ms(corrected_start_ms)
    }

    /// How long it is, up to a time, in milliseconds: [`Broadcast::offset_ms`], and nothing before the start.
    pub fn length_ms(&self, until_ms: i64, corrected_start_ms: Option<i64>) -> i64 {
        self.offset_ms(until_ms, corrected_start_ms).max(0)
    }

    /// How long it had been live at a time; never negative.
    fn live_ms(&self, at_ms: i64) -> i64 {
        self.segments
            .iter()
            .map(|segment| (at_ms.min(segment.to_ms.unwrap_or(i64::MAX)) - segment.from_ms).max(0))
            .sum()
    }

    /// How far offsets are less than the time that it had been live: by how much of that lies before the start that it was
    /// corrected to; negative where that is earlier.
    pub fn shift_ms(&self, corrected_start_ms: Option<i64>) -> i64 {
        corrected_start_ms.map_or(0, |corrected| {
            // A later start may lie behind an interruption, which does not count.
            self.live_ms(corrected).max(0) + (corrected - self.started_at_ms()).min(0)
        })
    }

    /// The earliest time whose [`Broadcast::offset_ms`] is at least this, `i64::MIN` where that of every time is; `None` when there
    /// is none.
    pub fn time_at(&self, offset_ms: i64, corrected_start_ms: Option<i64>) -> Option<i64> {
        let mut left = offset_ms.saturating_add(self.shift_ms(corrected_start_ms));
        if left <= 0 {
            return Some(i64::MIN);
        }
        for segment in &self.segments {
            let length = segment.to_ms.map_or(i64::MAX, |to_ms| to_ms - segment.from_ms);
            if left <= length {
                return Some(segment.from_ms.saturating_add(left));
            }
            left -= length;
        }
        None
    }
}

#[cfg(test)]
mod tests;
