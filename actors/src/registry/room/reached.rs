//! How far a room got, and of which broadcast.
//!
//! Its numbers, each of which says "everything up to here", in their order: `over` is of broadcasts that are over; `began` is `over`, or
//! where a broadcast that may go on had begun; `position` was taken for certain; `taken` was, or may have been (`legacy_from`, where a
//! legacy session goes on); `got` is all of that, so what is beyond it is to be delivered yet.
//!
//! What changes what is saved tells in the same step that the place is to be saved anew, but for [`Reached::holds_for_nobody`].

use std::time::{Duration, Instant};

use super::saving::Saving;
use crate::{
    broadcast::Broadcast,
    clock::millis,
    registry::RegistryConfig,
    seams::Place,
    types::{Epoch, PresenterIdx, Seq},
};

/// Whatever turns out to be there: how far a broadcast got that ended while the numbering was not known.
const ALL: Seq = Seq(u64::MAX);

/// How soon a place is saved again while a session is there and nothing moves.
fn anew(config: &RegistryConfig) -> Duration {
    config.broadcast_resume / 10
}

/// Whether these may be numbers of one broadcast's room, which are not always told.
fn agree(one: Option<i64>, other: Option<i64>) -> bool {
    one.zip(other).is_none_or(|(one, other)| one == other)
}

/// The place of a broadcast of which none was saved yet: its start, behind which all that was sent may have come. `last` is the room's
/// last number. What it had in another numbering alone may have been missed, too.
fn unsaved(record: &Broadcast, epoch: &Epoch, last: Seq) -> Place {
    let began = record.begins_after(epoch);
    Place {
        presenter: record.presenter,
        over: began,
        position: began,
        legacy_from: None,
        room_idx: record.room_idx,
        // What was accepted in it was so for a session.
        session_at_ms: (began < last).then_some(record.seen_at_ms),
        saved_at_ms: record.seen_at_ms,
    }
}

/// What a broadcast finds again when it goes on after the room was not live for a moment. Meanwhile it is taken for ended: who comes
/// then may come for the next one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paused {
    over: Seq,
    session_ended: Option<Instant>,
}

/// What is known beside the place on disk when a room goes on from that.
pub(super) struct Restart<'a> {
    /// The room's last number, in this epoch.
    pub last: Seq,
    pub epoch: &'a Epoch,
    pub config: &'a RegistryConfig,
    pub now: Instant,
    /// The same moment, in milliseconds since 1970.
    pub now_ms: i64,
}

/// How far the room got.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// Everything up to here was acknowledged (v1) or taken by the socket (legacy).
    position: Seq,
    /// Where a legacy session goes on: `position`, unless more may have been sent beyond it than is known.
    legacy_from: Seq,
    /// Everything up to here belongs to a broadcast that is over: a later session gets it only if it asks (rule 13). [`ALL`] where one
    /// ended before the numbering was known, until it is.
    over: Seq,
    /// The room is not live, and its broadcast may yet go on.
    paused: Option<Paused>,
    /// When the last session of this broadcast ended, while none has begun since (rule 12).
    session_ended: Option<Instant>,
    /// The room server's own number of the broadcast's room, as its record has it, or as it was last named while there is none.
    room_idx: Option<i64>,
    /// Whether where the room stood before was asked for.
    restored: bool,
    /// What is on disk, and was not read yet, is of a broadcast before this one.
    overtaken: bool,
    /// The last session was legacy: whoever comes next is owed no act that came since.
    passes_acts: bool,
    /// What of all this is on disk.
    saving: Saving,
}

impl Reached {
    /// Everything up to here belongs to a broadcast that is over, or is taken for that.
    pub fn over(&self) -> Seq {
        self.over
    }

    /// Where the broadcast began that goes on, or may.
    pub fn began(&self) -> Seq {
        self.paused.map_or(self.over, |paused| paused.over)
    }

    /// Everything up to here was acknowledged (v1) or taken by the socket (legacy).
    pub fn position(&self) -> Seq {
        self.position
    }

    /// Everything up to here was taken, or may have been.
    pub fn taken(&self) -> Seq {
        self.position.max(self.legacy_from)
    }

    /// Everything up to here was taken, may have been, or is not of this broadcast.
    pub fn got(&self) -> Seq {
        self.taken().max(self.began())
    }

    /// Where a legacy session goes on.
    pub fn legacy_begins(&self) -> Seq {
        self.legacy_from.max(self.over)
    }

    /// Whether its broadcast is taken for ended and may yet go on.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Whether where the room stood before is known.
    pub fn is_restored(&self) -> bool {
        self.restored
    }

    /// Whether a session that comes next is owed no act that came since the last one.
    pub fn passes_acts(&self) -> bool {
        self.passes_acts
    }

    /// When the last session of this broadcast ended, while none has begun since.
    pub fn session_ended(&self) -> Option<Instant> {
        self.session_ended
    }

    /// Goes on from where the room stood, now that its numbering is known: from the `place` on disk, or from the record of its broadcast
    /// that is `open`. Returns whether what is on disk is further than the room is.
    #[must_use]
    pub fn restore(&mut self, restart: &Restart<'_>, place: Option<Place>, open: Option<&Broadcast>) -> bool {
        let Restart {
            last,
            epoch,
            config,
            now,
            now_ms,
        } = *restart;
        self.restored = true;
        self.saving.exact_on_disk = place.is_some_and(|place| place.legacy_from.is_some());
        let further = place.is_some_and(|place| {
            let all = [Some(place.position), place.legacy_from, Some(place.over)];
            all.into_iter().flatten().any(|there| there > last)
        });
        if further {
            // It was saved by who numbered events that never came to the disk.
            self.saving.moves();
        }
        let age = |at_ms: i64| Duration::from_millis(u64::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(0));
        let fresh = |place: &Place| age(place.saved_at_ms) < config.broadcast_resume;
        // A broadcast is kept at once, and its place some time later: what is on disk may be that of the one before, or nothing.
        let record = open.filter(|record| agree(self.room_idx, record.room_idx));
        let room_idx = self.room_idx.or(record.and_then(|record| record.room_idx));
        let saved = place
            .filter(|_| !self.overtaken)
            .filter(|place| agree(room_idx, place.room_idx))
            .filter(|place| fresh(place) || open.is_some());
        if saved.is_none() && record.is_some() {
            self.saving.moves();
        }
        // What it has reached of a broadcast that another one took the place of tells nothing of that one: it begins behind all.
        let record = record.filter(|_| !self.overtaken);
        match saved.or_else(|| record.map(|record| unsaved(record, epoch, last))) {
            None => (self.position, self.legacy_from, self.over) = (last, last, last),
            Some(place) => {
                self.position = place.position.min(last);
                self.legacy_from = place.legacy_from.map_or(last, |from| from.min(last));
                // A verdict that was heard first may have ended a broadcast without knowing its numbers.
                let ended = self.over == ALL;
                // Where nothing names them the place may be that of the broadcast before it, too.
                let began = open
                    .map_or(Seq(0), |open| open.begins_after(epoch))
                    .max(place.over)
                    .min(last);
                self.room_idx = room_idx.or(place.room_idx);
                // A restart is short: whoever was there before it is held for as if nothing had been.
                // Where a session was there it may have been until the next save was due, which a server that was killed did not do.
                let late = anew(config) + config.checkpoint * 2;
                let late_ms = place.saved_at_ms.saturating_add(millis(late));
                let was_there = place.session_at_ms == Some(place.saved_at_ms);
                let session_ended = place
                    .session_at_ms
                    .map(|at_ms| if was_there { late_ms.min(now_ms) } else { at_ms })
                    .and_then(|at_ms| now.checked_sub(age(at_ms)));
                if ended || !fresh(&place) || open.is_some_and(Broadcast::is_away) {
                    // Whether its broadcast goes on is still to be heard: until then it is taken for over.
                    self.over = last;
                    if ended || open.is_some() {
                        self.paused = Some(Paused {
                            over: began,
                            session_ended: self.session_ended.or(session_ended),
                        });
                    }
                } else {
                    self.over = began;
                    self.session_ended = self.session_ended.or(session_ended);
                }
                if place.legacy_from.is_none() && self.paused.is_none() {
                    // From now on it is known: the next start must not take what is held behind it for what may have been sent. Where
                    // it is still to be heard whether its broadcast goes on, it moves with that word.
                    self.saving.moves();
                }
            }
        }
        further
    }

    /// What a commit of unknown outcome wrote is known now: `last` is the last of it, if it wrote anything. Returns whether what is on
    /// disk may be further than the room is.
    #[must_use]
    pub fn outcome_known(&mut self, last: Seq) -> bool {
        let mut further = false;
        let overs = std::iter::once(&mut self.over).chain(self.paused.as_mut().map(|paused| &mut paused.over));
        for over in overs.filter(|over| **over > last) {
            (*over, further) = (last, true);
        }
        if further {
            self.saving.moves();
        }
        further
    }

    /// What is behind `committed` is taken back (rule 1). `unsure`: it may be in the log. Returns whether the room had got further, which
    /// may be what is on disk.
    #[must_use]
    pub fn rewind(&mut self, committed: Seq, unsure: bool) -> bool {
        let mut moved = false;
        let mut take_back = |place: &mut Seq, stays: bool| {
            if *place > committed {
                moved = true;
                if !stays {
                    *place = committed;
                }
            }
        };
        // What was numbered before a broadcast ended and is in the log after all is not for the next one; as far as it is there.
        take_back(&mut self.over, unsure);
        if let Some(paused) = &mut self.paused {
            take_back(&mut paused.over, unsure);
        }
        // A session may have begun behind it, and left.
        take_back(&mut self.position, false);
        take_back(&mut self.legacy_from, false);
        if moved {
            // Also where it stays: what is on disk is saved anew before anything that gets one of these numbers.
            self.saving.moves();
        }
        moved
    }

    /// A session reads from now on.
    pub fn session_begins(&mut self) {
        self.session_ended = None;
        self.saving.moves();
    }

    /// A session is there no more; `ended` is when the last one of this broadcast ended. `got` is how far this one did, and whether it
    /// spoke v1; `None` where it never read.
    pub fn session_ends(&mut self, ended: Option<Instant>, got: Option<(Seq, bool)>) {
        self.session_ended = ended;
        if let Some((got, v1)) = got {
            self.position = self.position.max(got);
            // Not back to `position`: a legacy session may have had more than is known to have come.
            self.legacy_from = self.legacy_from.max(self.position);
            self.passes_acts = !v1;
        }
        // Also where it got no further: the place tells when there was last a session, and by its age whether its broadcast is over.
        self.saving.moves();
    }

    /// The session that is there has acknowledged more.
    pub fn acked(&mut self) {
        self.saving.moves();
    }

    /// Everything up to here is held for nobody.
    pub fn pass(&mut self, through: Seq) {
        if self.position == self.legacy_from {
            self.position = through;
        }
        self.legacy_from = through;
        self.saving.moves();
    }

    /// Rule 12: whether the last session of this broadcast ended less than `grace` ago.
    pub fn held_for(&self, now: Instant, grace: Duration) -> bool {
        self.session_ended
            .is_some_and(|ended| now.saturating_duration_since(ended) < grace)
    }

    /// No session of this broadcast was there before: none is held for. That alone is not saved.
    pub fn holds_for_nobody(&mut self) {
        self.session_ended = None;
    }

    /// Hears how the room server numbers the room of the broadcast that is live, where it does. Returns whether that is another broadcast
    /// than the one before, which then does not go on. The `record` of that one tells its number, where there is one.
    #[must_use]
    pub fn names(&mut self, room_idx: Option<i64>, record: Option<&Broadcast>) -> bool {
        let another = !agree(record.map_or(self.room_idx, |record| record.room_idx), room_idx);
        if room_idx.is_some() {
            self.is_numbered(room_idx);
        }
        if another {
            self.paused = None;
        }
        another
    }

    /// Another broadcast goes on in place of the one before.
    pub fn is_overtaken(&mut self) {
        self.overtaken = !self.restored;
    }

    /// The broadcast that goes on has this record: its number is that of no broadcast before it.
    pub fn follows(&mut self, record: &Broadcast) {
        self.is_numbered(record.room_idx);
    }

    fn is_numbered(&mut self, room_idx: Option<i64>) {
        if room_idx != self.room_idx {
            self.room_idx = room_idx;
            self.saving.moves();
        }
    }

    /// Hears whether the broadcast's room is live. Where it is not, it may be so again in a moment, and the broadcast go on. What is saved
    /// stays the same.
    pub fn hears(&mut self, live: bool) {
        if let Some(paused) = &mut self.paused {
            // A session that ended meanwhile is one of it, if it goes on.
            paused.session_ended = self.session_ended.or(paused.session_ended);
        } else if !live && self.restored {
            self.paused = Some(Paused {
                over: self.over,
                session_ended: self.session_ended,
            });
        }
    }

    /// Everything up to `last` is of a broadcast that is over; `None`: whatever turns out to be there.
    pub fn ends_at(&mut self, last: Option<Seq>) {
        let last = last.unwrap_or(ALL);
        if last != self.over {
            self.over = last;
            self.saving.moves();
        }
    }

    /// An act behind the end of a broadcast is not for the next one.
    pub fn act_behind_end(&mut self, seq: Seq) {
        self.over = self.over.max(seq);
        self.saving.moves();
    }

    /// The broadcast that might go on is away no more: it [goes on](Self::goes_on), or has ended.
    pub fn take_paused(&mut self) -> Option<Paused> {
        let paused = self.paused.take();
        if paused.is_some() {
            // Its place was saved as that of the broadcast that might go on.
            self.saving.moves();
        }
        paused
    }

    /// Goes on with the broadcast that was away; [`Self::take_paused`] told that it moved.
    pub fn goes_on(&mut self, paused: Paused, has_session: bool) {
        self.over = paused.over;
        if !has_session {
            self.session_ended = paused.session_ended;
        }
    }

    /// Whether it is to be saved.
    pub fn is_due(&self, has_session: bool, config: &RegistryConfig, now: Instant) -> bool {
        // A place tells when there was last a session, so it is saved anew while there is one.
        let anew = has_session.then(|| anew(config));
        self.restored && self.saving.due(now, config.checkpoint, anew)
    }

    /// If it moved it is due, whenever it was saved last.
    pub fn hurry(&mut self) {
        self.saving.hurry();
    }

    /// What is saved of it. `session` is how far the one got that is there, as far as that is known; `None` where none is. While its
    /// broadcast may yet go on this is as if it did: the broadcast's record tells that it is away.
    pub fn place(&self, presenter: PresenterIdx, session: Option<Seq>, now: Instant, now_ms: i64) -> Place {
        let ended_ms = |ended: Instant| {
            let ago = millis(now.saturating_duration_since(ended));
            // Before now, which is what is told of a session that is there.
            now_ms.saturating_sub(ago.max(1))
        };
        let ended = self.paused.and_then(|paused| paused.session_ended);
        Place {
            presenter,
            over: self.began(),
            position: self.position.max(session.unwrap_or_default()),
            legacy_from: session.is_none().then_some(self.legacy_from),
            room_idx: self.room_idx,
            session_at_ms: match session {
                Some(_) => Some(now_ms),
                None => self.session_ended.or(ended).map(ended_ms),
            },
            saved_at_ms: now_ms,
        }
    }

    /// This place is on its way to the disk; `at` is when it was saved, or a little later.
    pub fn saves(&mut self, place: &Place, at: Instant) {
        self.saving.saves(place.legacy_from.is_some(), at);
    }

    /// Whether the place on disk is exact: a legacy session may go on from it, and must not read before it no longer is.
    pub fn is_exact_on_disk(&self) -> bool {
        self.saving.exact_on_disk
    }

    /// What is on disk must not be exact any more. Returns whether that is to be sent there: it may be on its way.
    #[must_use]
    pub fn mark(&mut self) -> bool {
        self.saving.mark()
    }

    /// The mark has come there, or it has not.
    pub fn marked(&mut self, kept: bool) {
        self.saving.marked(kept);
    }
}
