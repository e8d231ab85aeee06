//! What the spool's thread is asked beside appends: last seqs, keys, places, broadcasts, rows read back and freed. Each sees what was appended
//! before it; a room's last seq what of that is the room's.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{InHand, Run};
use crate::{
    registry::RegistryMsg,
    seams::{LastSeq, Place, Pos, SpoolError},
    seldom::Seldom,
    types::{Event, PresenterIdx, Seq},
    writer::{
        DrainMsg, SpoolCommand,
        command::{Rows, ToLearn},
    },
};

/// When it was last told that one of these failed, or is over: all rooms ask, again and again for as long as it does.
#[derive(Default)]
pub(super) struct Failing {
    last_seq: Seldom,
    learning: Seldom,
    place: Seldom,
    places: Seldom,
    mark: Seldom,
}

/// Who waits for the answer; it is a failure when a panic took the question.
pub(super) enum Question {
    LastSeqs(Vec<PresenterIdx>),
    Keys,
    Broadcasts,
    Marked(Vec<PresenterIdx>),
}

impl Question {
    /// `None`: nobody waits, or whoever does hears of it by the other end of the reply.
    fn of(command: &SpoolCommand) -> Option<Self> {
        Some(match command {
            SpoolCommand::LastSeq { presenter } => Self::LastSeqs(vec![*presenter]),
            SpoolCommand::ReadKeys { .. } => Self::Keys,
            SpoolCommand::OpenBroadcasts => Self::Broadcasts,
            SpoolCommand::MarkPlaces { places } => Self::Marked(places.iter().map(|place| place.presenter).collect()),
            _ => return None,
        })
    }
}

impl Run {
    /// A panic took this question.
    pub(super) fn failed_to_answer(&self, question: Question) {
        let mailbox = &self.registry.mailbox;
        match question {
            Question::LastSeqs(presenters) => {
                for presenter in presenters {
                    mailbox.push(RegistryMsg::LastSeq {
                        presenter,
                        last: Err(()),
                        place: None,
                    });
                }
            }
            Question::Keys => mailbox.push(RegistryMsg::Keys { rows: Err(()) }),
            Question::Broadcasts => mailbox.push(RegistryMsg::Broadcasts { open: Err(()) }),
            Question::Marked(presenters) => {
                for presenter in presenters {
                    mailbox.push(RegistryMsg::Marked { presenter, kept: false });
                }
            }
        }
    }

    /// What a room's numbering goes on from, and how far the room had got when that was last kept.
    fn tell_last_seq(&mut self, presenter: PresenterIdx, last: Result<Seq, ()>) {
        let place = self.place(presenter);
        self.registry
            .mailbox
            .push(RegistryMsg::LastSeq { presenter, last, place });
    }

    fn place(&mut self, presenter: PresenterIdx) -> Option<Place> {
        self.spool.place(presenter).unwrap_or_else(|error| {
            if let Some(more) = self.failing.place.due(Instant::now()) {
                log::warn!("spool: how far a room got cannot be read: {error}{more}");
            }
            None
        })
    }

    /// Where the spool does not know it, the drain asks the store, and the answer comes back to be learned.
    fn last_seq(&mut self, presenter: PresenterIdx) {
        match self.spool.last_seq(presenter).map(LastSeq::known) {
            Ok(Some(last)) => self.tell_last_seq(presenter, Ok(last)),
            Ok(None) => self.drain.push(DrainMsg::AskStore { presenter }),
            Err(error) => {
                if let Some(more) = self.failing.last_seq.due(Instant::now()) {
                    log::error!("spool: the last seq of a room cannot be read: {error}{more}");
                }
                self.tell_last_seq(presenter, Err(()));
            }
        }
    }

    /// Learns what the store told of rooms, and tells the registry what their numbering goes on from.
    pub(super) fn learn(&mut self) {
        if self.to_learn.is_empty() {
            return;
        }
        let told = std::mem::take(&mut self.to_learn);
        let presenters = told.iter().map(|one| one.presenter).collect();
        self.in_hand = InHand::Question(Question::LastSeqs(presenters));
        let (learned, failed) = self.keep_together(&told, Self::learn_last_seqs);
        if let Some(error) = failed {
            if let Some(more) = self.failing.learning.due(Instant::now()) {
                log::error!("spool: the last seq of a room cannot be kept: {error}{more}");
            }
            self.failed_to_keep();
        }
        let last_seqs = told.iter().zip(learned).map(|(one, last)| RegistryMsg::LastSeq {
            presenter: one.presenter,
            last: last.ok_or(()),
            place: self.place(one.presenter),
        });
        // Nobody is told twice where a panic comes in between.
        for last_seq in last_seqs.collect::<Vec<_>>() {
            self.registry.mailbox.push(last_seq);
        }
        self.in_hand = InHand::Nothing;
    }

    fn learn_last_seqs(&mut self, told: &[ToLearn]) -> Result<Vec<Seq>, SpoolError> {
        // Before the registry can begin another one.
        self.adopt_of_rooms(told)?;
        let last_seqs: Vec<_> = told.iter().map(|one| (one.presenter, one.last)).collect();
        let learned = self.spool.learn_last_seqs(&last_seqs, self.handle.last_ms())?;
        // The answer may be an old one, overtaken by another and by what was numbered since: the spool knows.
        let known = last_seqs.iter().zip(learned).map(|((presenter, _), last)| {
            let known = self.spool.last_seq(*presenter)?;
            Ok(known.known().map_or(last, |known| known.max(last)))
        });
        known.collect()
    }

    /// Has places kept that nobody waits for, and nobody tries again.
    fn keep_places(&mut self, places: &[Place]) {
        let (kept, failed) = self.keep_together(places, Self::keep_all_places);
        if let Some(why) = failed {
            if let Some(more) = self.failing.places.due(Instant::now()) {
                let lost = kept.iter().filter(|kept| kept.is_none()).count();
                log::warn!("spool: how far {lost} rooms got is not kept: {why}{more}");
            }
            // It refuses nobody anything.
            self.is_doubtful();
        }
    }

    /// The same of places that somebody waits for.
    fn mark_places(&mut self, places: &[Place]) {
        let (kept, failed) = self.keep_together(places, Self::keep_all_places);
        if let Some(error) = failed {
            if let Some(more) = self.failing.mark.due(Instant::now()) {
                log::warn!("spool: how far a room got is not kept: {error}{more}");
            }
            self.failed_to_keep();
        }
        // Nobody is told twice where a panic comes in between.
        for (place, kept) in places.iter().zip(kept) {
            let (presenter, kept) = (place.presenter, kept.is_some());
            self.registry.mailbox.push(RegistryMsg::Marked { presenter, kept });
        }
    }

    fn keep_all_places(&mut self, places: &[Place]) -> Result<Vec<()>, SpoolError> {
        self.spool.keep_places(places).map(|()| vec![(); places.len()])
    }

    /// Rows that the drain does not have in memory.
    fn read_back(&mut self, after: Pos, limit: usize) -> Result<Rows, SpoolError> {
        let head = self.handle.head.load(Ordering::Acquire);
        // Rows beyond are of a commit whose outcome is not known yet. Freed now, they could not be found again.
        self.spool.read(after, limit).map(|mut rows| {
            rows.retain(|(pos, _)| *pos <= head);
            rows
        })
    }

    /// Rows that the store has, or will never take, go.
    fn free(
        &mut self,
        through: Pos,
        parked: &[(Pos, Arc<Event>, String)],
        keys_before_ms: i64,
    ) -> Result<(), SpoolError> {
        let result = self.spool.free(through, parked, keys_before_ms);
        if result.is_ok() {
            self.handle.done.store(through, Ordering::Release);
        }
        self.show_size();
        result
    }

    pub(super) fn other(&mut self, command: SpoolCommand) {
        self.in_hand = Question::of(&command).map_or(InHand::Nothing, InHand::Question);
        self.do_other(command);
        self.in_hand = InHand::Nothing;
    }

    fn do_other(&mut self, command: SpoolCommand) {
        if !self.unwritten.is_empty() && matches!(command, SpoolCommand::LastSeq { .. } | SpoolCommand::ReadKeys { .. })
        {
            // What was answered from memory counts too, so the spool tells nothing of numbers and keys without it.
            self.write_sooner_or_later(Vec::new());
        }
        let behind = !self.unwritten.is_empty();
        match command {
            SpoolCommand::LastSeq { presenter } if behind => self.tell_last_seq(presenter, Err(())),
            SpoolCommand::ReadKeys { .. } if behind => {
                self.registry.mailbox.push(RegistryMsg::Keys { rows: Err(()) });
            }
            SpoolCommand::LastSeq { presenter } => self.last_seq(presenter),
            SpoolCommand::KeepPlaces { places } => self.keep_places(&places),
            SpoolCommand::MarkPlaces { places } => self.mark_places(&places),
            SpoolCommand::KeepBroadcasts { broadcasts } => {
                let (keeper, mut with) = self.keeping();
                keeper.add(broadcasts, &mut with);
            }
            SpoolCommand::OpenBroadcasts => self.tell_open_broadcasts(),
            SpoolCommand::UnstoredBroadcasts { limit, reply } => {
                let _ = reply.send(self.spool.unstored_broadcasts(limit));
            }
            SpoolCommand::BroadcastsStored { stored, refused, reply } => {
                let _ = reply.send(self.spool.broadcasts_stored(&stored, &refused));
            }
            SpoolCommand::BroadcastVersions { reply } => {
                let _ = reply.send(self.spool.broadcast_versions());
            }
            SpoolCommand::AdoptBroadcasts { open, reply } => {
                let _ = reply.send(self.take_in_broadcasts(open));
            }
            SpoolCommand::ReadKeys { since_ms } => {
                let rows = self.spool.read_keys(since_ms).map_err(|error| {
                    log::error!("spool: the idempotency keys cannot be read: {error}");
                });
                self.registry.mailbox.push(RegistryMsg::Keys { rows });
            }
            SpoolCommand::Read { after, limit, reply } => {
                let _ = reply.send(self.read_back(after, limit));
            }
            SpoolCommand::Free {
                through,
                parked,
                keys_before_ms,
                reply,
            } => {
                let _ = reply.send(self.free(through, &parked, keys_before_ms));
            }
            SpoolCommand::Append { .. }
            | SpoolCommand::LearnLastSeq(_)
            | SpoolCommand::Fail(_)
            | SpoolCommand::Hold(_)
            | SpoolCommand::Stop => {}
        }
    }
}
