//! What the writer and the checker answer: events take their place or give it back, verdicts settle who waits.

use std::{collections::HashSet, sync::Arc, time::Instant};

use super::{
    SessionRegistry, Slot,
    from_spool::FromSpool,
    messages::{Committed, Word},
    room::Numbering,
};
use crate::{
    clock::{steady_ms, system_ms},
    outcome::{Accepted, Delivery, Outcome, Refusal},
    ring::Entry,
    seams::Place,
    types::{PresenterIdx, Seq},
    writer::WriterPermit,
};

impl SessionRegistry {
    pub(super) fn settled(&mut self, term: u64, permits: Vec<WriterPermit>, committed: Committed, now: Instant) {
        let count = permits.len();
        // The writer has answered for them.
        drop(permits);
        if term < self.first_term {
            // Appended by a registry that failed: its senders were told that the outcome is unknown (rule 2).
            return;
        }
        let count = count.min(self.in_flight.len());
        let slots: Vec<Slot> = self.in_flight.drain(..count).collect();
        debug_assert!(slots.iter().all(|slot| slot.term == term));
        match committed {
            Committed::Yes => self.publish(slots, now),
            Committed::No | Committed::Unknown => self.take_back(term, slots, committed == Committed::Unknown),
        }
        if self.in_flight.is_empty() {
            for done in self.draining.iter_mut().flat_map(std::mem::take) {
                let _ = done.send(());
            }
        }
    }

    /// Committed events take their place in their rooms and go to who reads there; then their senders are answered.
    pub(super) fn publish(&mut self, mut slots: Vec<Slot>, now: Instant) {
        // A room is looked at once for all that a commit has of it; the order in a room stays.
        slots.sort_by_key(|slot| slot.event.presenter_idx);
        for of_room in slots.chunk_by_mut(|one, next| one.event.presenter_idx == next.event.presenter_idx) {
            self.publish_in_room(of_room, now);
        }
        if slots.iter().any(|slot| slot.event.keyed.is_some()) {
            // Keys age in the order of their messages' times, which is that of ids: the spool forgets what is older than the first.
            slots.sort_by_key(|slot| slot.event.id);
        }
        for slot in slots {
            self.answer(slot);
        }
    }

    /// Publishes events of one room, and notes which of them were sent.
    fn publish_in_room(&mut self, slots: &mut [Slot], now: Instant) {
        let Some(presenter) = slots.first().map(|slot| slot.event.presenter_idx) else {
            return;
        };
        let Some(room) = self.rooms.get_mut(&presenter) else {
            return;
        };
        for slot in &*slots {
            room.publish(Arc::new(Entry::new(Arc::clone(&slot.event))));
        }
        if room.opening() {
            // A session may have waited for this commit before it could begin; one that begins is sent what there is.
            self.open(presenter, now);
        } else {
            let frames = room.pump(&self.config, now);
            self.metrics.frames.inc_by(frames as u64);
        }
        let Some(room) = self.rooms.get(&presenter) else {
            return;
        };
        for slot in slots {
            slot.sent = room.was_sent(slot.event.seq);
            if !slot.sent && room.cursor.is_some() && slot.event.act.is_none() {
                self.queues.session_waits.inc();
            }
        }
        if room.wants_page(&self.config) {
            self.read_on(presenter);
        }
    }

    /// Answers the sender of a committed event.
    fn answer(&mut self, slot: Slot) {
        let event = slot.event;
        let delivery = match slot.sent {
            true => Delivery::Delivered,
            false => Delivery::Held,
        };
        match (&event.act, delivery) {
            (Some(act), _) => self.metrics.act(act),
            (None, Delivery::Delivered) => {
                self.metrics.accepted.inc();
                self.metrics.delivered.inc();
            }
            (None, Delivery::Held) => {
                self.metrics.accepted.inc();
                self.metrics.held.inc();
            }
        }
        let accepted = Accepted {
            id: event.id,
            seq: event.seq,
            epoch: event.epoch.clone(),
            sent_at_ms: event.sent_at_ms,
            delivery,
        };
        if let (Some(keys), Some(keyed)) = (self.keys.told_mut(), &event.keyed) {
            keys.accept(keyed, accepted.clone(), steady_ms());
        }
        let _ = slot.reply.send(Outcome::Accepted(accepted));
    }

    /// Rule 1: the numbers go back, and what was appended behind the failure comes back fenced.
    pub(super) fn take_back(&mut self, term: u64, slots: Vec<Slot>, unknown: bool) {
        if term == self.term {
            // What is still in the outbox was numbered in this turn, before this failure was heard of: the writer
            // must fence it too, so it goes out under the old term.
            if !self.outbox.is_empty() {
                self.writer.append(self.term, std::mem::take(&mut self.outbox));
            }
            self.term = self.writer.next_term();
            let unsure = slots.iter().filter(|_| unknown).map(|slot| slot.event.presenter_idx);
            let unsure: HashSet<PresenterIdx> = unsure.collect();
            // On disk before anything that gets one of these numbers.
            let (now, now_ms, mut places) = (Instant::now(), system_ms(), Vec::new());
            for (presenter, room) in &mut self.rooms {
                if room.rewind(unsure.contains(presenter)) {
                    places.extend(room.place_at_once(*presenter, &self.config, now, now_ms));
                }
            }
            self.writer.keep_places(&places);
        }
        if unknown {
            // The spool may hold them: only it can tell what their keys mean now.
            self.keys = FromSpool::Unknown;
            self.ask_keys();
        }
        let refusal = if unknown {
            Refusal::OutcomeUnknown
        } else {
            Refusal::LogUnavailable
        };
        for slot in slots {
            let event = slot.event;
            if let Some(room) = self.rooms.get_mut(&event.presenter_idx) {
                let bytes = event.chat.cost();
                room.take_back(bytes, unknown);
            }
            if let (Some(keys), Some(keyed)) = (self.keys.told_mut(), &event.keyed) {
                keys.abandon(keyed);
            }
            self.answer_refusal(slot.reply, refusal);
        }
    }

    pub(super) fn last_seq(
        &mut self,
        presenter: PresenterIdx,
        last: Result<Seq, ()>,
        place: Option<Place>,
        now: Instant,
    ) {
        let Some(room) = self.rooms.get_mut(&presenter) else {
            return;
        };
        match last {
            Ok(last) => {
                // Where the store was asked, it has told of its newest event, too.
                self.clock.not_before(self.writer.last_ms());
                let now_ms = system_ms();
                if room.numbering_known(last, place, &self.epoch, &self.config, now, now_ms) {
                    // As where numbers are taken back.
                    let place = room.place_at_once(presenter, &self.config, now, now_ms);
                    self.writer.keep_places(place.as_slice());
                }
                self.follow_broadcast(presenter, now);
                self.settle_acts(presenter, now);
                self.open(presenter, now);
                self.pump(presenter, now);
                self.pursue(presenter, now);
            }
            // A question of the registry before this one, which failed late; this one's own was answered.
            Err(()) if matches!(room.numbering, Numbering::Known { .. }) => {}
            Err(()) => {
                // A session that waits for it is seen to by the sweep.
                room.numbering = Numbering::Unknown;
                self.refuse_waiting(presenter, Refusal::LogUnavailable);
                self.refuse_acts(presenter, Refusal::LogUnavailable);
            }
        }
    }

    pub(super) fn word(&mut self, presenter: PresenterIdx, word: Word, now: Instant) {
        if let Word::Verdict { at, .. } = word {
            self.named_at = self.named_at.max(Some(at));
        }
        let Some(room) = self.rooms.get_mut(&presenter) else {
            return;
        };
        let too_late = matches!(word, Word::Verdict { until, .. } if until <= now);
        room.standing.answered(!too_late && room.committed().is_some());
        match word {
            Word::Verdict { liveness, until, .. } => {
                room.renew(liveness, now, until);
                self.follow_broadcast(presenter, now);
                if let Some(room) = self.rooms.get_mut(&presenter).filter(|_| !liveness.live && !too_late) {
                    // Whether or not its broadcast could follow yet. One that came too late said nothing.
                    room.watched = None;
                }
                self.pursue(presenter, now);
            }
            // The last verdict still holds.
            Word::Refused { .. } | Word::Nothing | Word::NotAsked if room.verdict(now).is_some() => {
                room.standing.hear_in_vain(now);
                self.pursue(presenter, now);
            }
            Word::Refused { at } => {
                room.standing
                    .hear_refusal(at, self.named_at, self.config.broadcast_resume, now);
                self.refuse_waiting(presenter, Refusal::RoomServerUnavailable);
            }
            Word::Nothing => {
                room.standing.hear_nothing(now);
                self.refuse_waiting(presenter, Refusal::RoomServerUnavailable);
            }
            Word::NotAsked => {
                room.standing.hear_not_asked(now);
                self.refuse_waiting(presenter, Refusal::RoomServerUnavailable);
            }
        }
        if self.rooms.get(&presenter).is_some_and(|room| room.opening()) {
            // It may have waited for this.
            self.open(presenter, now);
        }
        self.forget_if_idle(presenter, now);
    }

    /// Whatever the checker before this one was asked must be asked again.
    pub(super) fn checker_started(&mut self, now: Instant) {
        let open: Vec<PresenterIdx> = self
            .rooms
            .iter_mut()
            .filter_map(|(presenter, room)| room.standing.checker_started().then_some(*presenter))
            .collect();
        for presenter in open {
            self.pursue(presenter, now);
        }
    }

    pub(super) fn forget_if_idle(&mut self, presenter: PresenterIdx, now: Instant) {
        if let Some(room) = self.rooms.get_mut(&presenter)
            && room.idle(now, &self.config)
        {
            let place = room.place_at_once(presenter, &self.config, now, system_ms());
            self.rooms.remove(&presenter);
            if let Some(place) = place {
                self.writer.keep_places(&[place]);
            }
        }
    }
}
