//! Submits on their way in: what their key means, what they lack, and the one synchronous step that decides.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    RegistryConfig, Rooms, SessionRegistry, Slot,
    from_spool::FromSpool,
    messages::{Looking, Pending},
    room::{Numbering, Room},
};
use crate::{
    bucket::Bucket,
    checker::{CheckerHandle, Why},
    clock::steady_ms,
    idempotency::{Found, KeyRow, KeyTable},
    metrics::Metrics,
    outcome::{Outcome, Refusal, Submit},
    types::{Event, PresenterIdx, Seq, UserIdx},
    writer::{WriterHandle, WriterPermit},
};

/// The place that an event got in its room.
struct Numbered {
    seq: Seq,
    permit: WriterPermit,
    room_idx: Option<i64>,
    broadcast_id: Option<Uuid>,
}

/// What the step that decides goes by, and whom it asks.
struct Means<'a> {
    config: &'a RegistryConfig,
    checker: &'a CheckerHandle,
    writer: &'a WriterHandle,
    metrics: &'a Metrics,
}

impl Means<'_> {
    /// Gives an event its number, where the writer has room for it.
    fn number(&self, room: &mut Room, pending: &Pending, now: Instant) -> Result<Numbered, Refusal> {
        let bytes = pending.submit.chat.cost();
        if room.in_flight() >= self.config.writer_room_share {
            return Err(Refusal::Overloaded("writer_room_share"));
        }
        if !self.writer.writable() {
            return Err(Refusal::LogUnavailable);
        }
        let permit = self.writer.reserve(bytes)?;
        let record = room.broadcast.as_ref();
        // What a room that is not live has names nothing.
        let named = room.verdict(now).filter(|verdict| verdict.live);
        let (room_idx, broadcast_id) = (
            record
                .and_then(|record| record.room_idx)
                .or(named.and_then(|verdict| verdict.room_idx)),
            record.map(|record| record.id),
        );
        Ok(Numbered {
            seq: room.number(bytes).ok_or(Refusal::LogUnavailable)?,
            permit,
            room_idx,
            broadcast_id,
        })
    }

    /// The verdict is there and the numbering known where it is needed: refuse, or number.
    fn decide(&self, room: &mut Room, pending: &Pending, now: Instant) -> Result<Numbered, Refusal> {
        let verdict = room.verdict(now).ok_or(Refusal::RoomServerUnavailable)?;
        if !verdict.live {
            return Err(Refusal::NotLive);
        }
        if room.reconnect_due(now, self.config) {
            self.checker.request_reconnect(pending.submit.presenter_idx);
        }
        if let Err(refusal) = room.admit(pending.submit.chat.cost(), self.config, now) {
            if refusal == Refusal::PresenterDisconnected && room.held_for(now, self.config) {
                // Held for and refused: the ring is full, though the answer tells of the presenter who is away.
                self.metrics.queues.refused("ring");
            }
            return Err(refusal);
        }
        self.number(room, pending, now)
    }
}

impl SessionRegistry {
    /// The rooms, and beside them what is needed to decide in one of them.
    fn rooms_and_means(&mut self) -> (&mut Rooms, Means<'_>) {
        let means = Means {
            config: &self.config,
            checker: &self.checker,
            writer: &self.writer,
            metrics: &self.metrics,
        };
        (&mut self.rooms, means)
    }

    pub(super) fn submit(&mut self, pending: Pending, now: Instant) {
        // Before anything else: who was accepted once is answered so again, whatever has changed since.
        match self.answer_by_key(&pending.submit) {
            None => {}
            Some(Outcome::Refused(refusal)) => return self.answer_refusal(pending.reply, refusal),
            Some(accepted) => {
                let _ = pending.reply.send(accepted);
                return;
            }
        }
        if self.draining.is_some() {
            return self.refuse(pending, Refusal::Draining);
        }
        let presenter = pending.submit.presenter_idx;
        let (rooms, means) = self.rooms_and_means();
        let room = rooms
            .entry(presenter)
            .or_insert_with(|| Box::new(Room::new(means.config)));
        if room.in_flight() + room.waiters.to_be_numbered() >= means.config.room_share {
            return self.refuse(pending, Refusal::Overloaded("room_share"));
        }
        if pending.submit.act.is_some() {
            return self.act(pending, now);
        }
        let verdict = room.verdict(now);
        let known = matches!(room.numbering, Numbering::Known { .. });
        match verdict {
            Some(verdict) if room.waiters.submits.is_empty() && (known || !verdict.live) => {
                if room.standing.refresh_due(now, means.config.refresh_percent) {
                    // Also where a sweep has asked for it, behind what senders wait for: theirs would wait when it is over.
                    room.ask(means.checker, presenter, Why::AwaitedRefresh);
                }
                let decided = means.decide(room, &pending, now);
                self.append_or_refuse(pending, decided);
            }
            _ => {
                if room.waiters.undecided() >= means.config.pending_max {
                    return self.refuse(pending, Refusal::Overloaded("room_pending"));
                }
                // A room that somebody presents in is asked about anyway; others are asked about for this sender alone.
                if !room.is_asked_about_anyway(now)
                    && let Err(refusal) = self.may_look_up(pending.submit.chat.user_idx, now)
                {
                    self.refuse(pending, refusal);
                    return self.forget_if_idle(presenter, now);
                }
                let Some(room) = self.rooms.get_mut(&presenter) else {
                    return;
                };
                room.waiters.submits.push_back(pending);
                self.pursue(presenter, now);
            }
        }
    }

    /// Counts one more lookup that a sender causes; the refusal tells when the next one may come.
    fn may_look_up(&mut self, user: UserIdx, now: Instant) -> Result<(), Refusal> {
        let Some(rate) = self.config.lookups else {
            return Ok(());
        };
        let bucket = self.lookups.get_or_insert_mut(user, || Bucket::full(rate, now));
        bucket.take(1.0, rate, now).map_err(|wait| Refusal::RateLimited {
            wait,
            burst: rate.burst as u32,
        })
    }

    /// Asks for whatever the room's waiting submits lack, and settles them when they lack nothing.
    pub(super) fn pursue(&mut self, presenter: PresenterIdx, now: Instant) {
        let (rooms, means) = self.rooms_and_means();
        let Some(room) = rooms.get_mut(&presenter) else {
            return;
        };
        match (room.verdict(now), room.numbering) {
            (None, _) => {
                let waiting = room.waiters.undecided();
                let why = match waiting {
                    0 => room.why_for_session(now),
                    _ => Why::Awaited,
                };
                room.ask(means.checker, presenter, why);
                if !room.standing.is_asked() {
                    means.checker.gate().count_refused(waiting);
                    self.refuse_waiting(presenter, Refusal::Overloaded("checker"));
                    self.forget_if_idle(presenter, now);
                }
            }
            (Some(verdict), Numbering::Unknown) if verdict.live || room.broadcast.is_some() => {
                // Only a live room, or one whose broadcast may be over, is worth asking for: a flood of unknown rooms never
                // reaches the spool.
                room.ask_numbering(means.writer, presenter);
            }
            (Some(verdict), Numbering::Asked) if verdict.live => {}
            (Some(verdict), _) => {
                let (submits, looks) = room.waiters.take_undecided();
                let look = room.look(verdict.live);
                for looking in looks {
                    let _ = looking.reply.send(Ok(look));
                }
                let decided: Vec<_> = submits
                    .into_iter()
                    .map(|one| {
                        let decided = means.decide(room, &one, now);
                        (one, decided)
                    })
                    .collect();
                for (one, decided) in decided {
                    self.append_or_refuse(one, decided);
                }
                self.forget_if_idle(presenter, now);
            }
        }
    }

    /// An act of moderation: it is for the log first, so it needs the numbering and no live room.
    fn act(&mut self, pending: Pending, now: Instant) {
        let presenter = pending.submit.presenter_idx;
        let (rooms, means) = self.rooms_and_means();
        let Some(room) = rooms.get_mut(&presenter) else {
            return self.refuse(pending, Refusal::LogUnavailable);
        };
        match room.numbering {
            Numbering::Known { .. } => {
                let numbered = means.number(room, &pending, now);
                self.append_or_refuse(pending, numbered);
            }
            Numbering::Unknown | Numbering::Asked => {
                room.waiters.acts.push_back(pending);
                room.ask_numbering(means.writer, presenter);
            }
        }
    }

    /// Numbers the acts that waited for the numbering.
    pub(super) fn settle_acts(&mut self, presenter: PresenterIdx, now: Instant) {
        for pending in self.take_acts(presenter) {
            self.act(pending, now);
        }
    }

    /// Refuses the acts that wait for the numbering.
    pub(super) fn refuse_acts(&mut self, presenter: PresenterIdx, refusal: Refusal) {
        for pending in self.take_acts(presenter) {
            self.refuse(pending, refusal);
        }
    }

    fn take_acts(&mut self, presenter: PresenterIdx) -> VecDeque<Pending> {
        let room = self.rooms.get_mut(&presenter);
        room.map_or_else(VecDeque::new, |room| std::mem::take(&mut room.waiters.acts))
    }

    fn append_or_refuse(&mut self, pending: Pending, numbered: Result<Numbered, Refusal>) {
        match numbered {
            Ok(numbered) => self.append(pending, numbered),
            Err(refusal) => self.refuse(pending, refusal),
        }
    }

    /// Hands a numbered event to the writer.
    fn append(&mut self, pending: Pending, numbered: Numbered) {
        let (sent_at_ms, id) = self.clock.stamp();
        let event = Arc::new(Event {
            id,
            presenter_idx: pending.submit.presenter_idx,
            epoch: self.epoch.clone(),
            seq: numbered.seq,
            sent_at_ms,
            room_idx: numbered.room_idx,
            broadcast_id: numbered.broadcast_id,
            chat: pending.submit.chat,
            act: pending.submit.act,
            keyed: pending.submit.keyed,
        });
        self.outbox.push(Arc::clone(&event), numbered.permit);
        self.in_flight.push_back(Slot {
            term: self.term,
            event,
            sent: false,
            reply: pending.reply,
            _permit: pending.permit,
        });
    }

    /// Refuses a submit that was not numbered: its key, if it has one, may be used again.
    pub(super) fn refuse(&mut self, pending: Pending, refusal: Refusal) {
        if let (Some(keys), Some(keyed)) = (self.keys.told_mut(), &pending.submit.keyed) {
            keys.abandon(keyed);
        }
        self.answer_refusal(pending.reply, refusal);
    }

    /// Counts a refusal, by its code and, where a queue was full, by that.
    fn count_refusal(&self, refusal: Refusal) {
        self.metrics.refuse(refusal.code());
        if let Refusal::Overloaded(queue) = refusal {
            self.metrics.queues.refused(queue);
        }
    }

    pub(super) fn answer_refusal(&self, reply: oneshot::Sender<Outcome>, refusal: Refusal) {
        self.count_refusal(refusal);
        let _ = reply.send(Outcome::Refused(refusal));
    }

    /// Rule 17: what the request's key means. `Some` is the answer that it gets at once.
    pub(super) fn answer_by_key(&mut self, submit: &Submit) -> Option<Outcome> {
        let keyed = submit.keyed.as_ref()?;
        let Some(keys) = self.keys.told_mut() else {
            return Some(Outcome::Refused(Refusal::Overloaded("idempotency")));
        };
        Some(match keys.begin(submit.chat.user_idx, keyed, steady_ms()) {
            Found::New => return None,
            Found::Accepted(accepted) => Outcome::Accepted(accepted),
            Found::InProgress => Outcome::Refused(Refusal::IdempotencyInProgress),
            Found::Conflict => Outcome::Refused(Refusal::IdempotencyConflict),
            Found::Full(which) => Outcome::Refused(Refusal::Overloaded(which)),
        })
    }

    /// The spool told of the acceptances with keys. Those under way meanwhile are in progress again.
    pub(super) fn keys(&mut self, rows: Result<Vec<KeyRow>, ()>) {
        let Ok(rows) = rows else {
            return self.keys.failed();
        };
        let mut keys = KeyTable::new(self.config.keys, rows, steady_ms(), self.clock.last_ms());
        for slot in &self.in_flight {
            if let Some(keyed) = &slot.event.keyed {
                keys.insert(slot.event.chat.user_idx, keyed);
            }
        }
        for pending in self.rooms.values().flat_map(|room| &room.waiters.submits) {
            if let Some(keyed) = &pending.submit.keyed {
                keys.insert(pending.submit.chat.user_idx, keyed);
            }
        }
        self.keys = FromSpool::Told(keys);
        for done in self.ready.drain(..) {
            let _ = done.send(());
        }
    }

    pub(super) fn when_ready(&mut self, done: oneshot::Sender<()>) {
        if self.keys.is_told() {
            let _ = done.send(());
        } else {
            self.ready.push(done);
        }
    }

    pub(super) fn ask_keys(&mut self) {
        if self.keys.ask() {
            // Rows are told apart by the times of their messages. The newest of these tells from when the window counts where the system's
            // clock is further: it was set back since, nothing was said for a while, or it is wrong at this start.
            let since_ms = self.config.keys.since_ms(steady_ms(), self.clock.last_ms());
            self.writer.ask_keys(since_ms);
        }
    }

    pub(super) fn refuse_waiting(&mut self, presenter: PresenterIdx, refusal: Refusal) {
        let Some(room) = self.rooms.get_mut(&presenter) else {
            return;
        };
        let (submits, looks) = room.waiters.take_undecided();
        for looking in looks {
            self.count_refusal(refusal);
            let _ = looking.reply.send(Err(refusal));
        }
        for one in submits {
            self.refuse(one, refusal);
        }
    }

    /// Someone asks what a room looks like: it waits for the verdict in the same place as messages do.
    pub(super) fn look(&mut self, presenter: PresenterIdx, looking: Looking, now: Instant) {
        let room = self
            .rooms
            .entry(presenter)
            .or_insert_with(|| Box::new(Room::new(&self.config)));
        let refused = if room.waiters.undecided() >= self.config.pending_max {
            Err(Refusal::Overloaded("room_pending"))
        } else if room.is_asked_about_anyway(now) {
            Ok(())
        } else {
            self.may_look_up(looking.user, now)
        };
        if let Err(refusal) = refused {
            self.count_refusal(refusal);
            let _ = looking.reply.send(Err(refusal));
            return self.forget_if_idle(presenter, now);
        }
        if let Some(room) = self.rooms.get_mut(&presenter) {
            room.waiters.looks.push(looking);
        }
        self.pursue(presenter, now);
    }
}
