//! One room: its lease, its numbering, its ring and the cursor that reads it. No actor, no clock of its own.

mod liveness;
mod load;
mod place;
mod reached;
mod reading;
mod refused;
mod saving;
mod standing;
mod waiters;

use std::{sync::Arc, time::Instant};

use super::{
    RegistryConfig,
    cursor::{Cursor, Phase},
    messages::RoomLook,
};
use crate::{
    broadcast::{Broadcast, Watched},
    outcome::Refusal,
    ring::{Entry, Ring},
    types::{PresenterIdx, Seq},
    writer::WriterHandle,
};

pub(super) use self::reading::Opened;
use self::{load::Load, reached::Reached, standing::Standing, waiters::Waiters};

/// What is known of the room's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbering {
    /// Nothing: the spool must be asked before anything is numbered.
    Unknown,
    /// The spool has been asked.
    Asked,
    /// Everything up to `committed` is in the spool; `next` is what the next event gets.
    Known { committed: Seq, next: Seq },
}

/// Everything the registry keeps for one presenter.
pub(super) struct Room {
    /// What the room server says of it.
    pub standing: Standing,
    pub numbering: Numbering,
    /// Who waits for the verdict or the numbering.
    pub waiters: Waiters,
    pub ring: Ring,
    pub cursor: Option<Cursor>,
    /// How far it got, and what of that is saved.
    reached: Reached,
    /// What of it waits, and how much that is.
    load: Load,
    /// When the room server was last asked to make the presenter reconnect.
    reconnect_asked: Option<Instant>,
    /// The broadcast that goes on, or may go on.
    pub broadcast: Option<Broadcast>,
    /// When that was last kept, in milliseconds since 1970.
    pub recorded_ms: i64,
    /// Until when it was looked after and nobody said that it is not live; `None` where this process has not seen it live.
    pub watched: Option<Watched>,
}

impl Room {
    pub fn new(config: &RegistryConfig) -> Self {
        Self {
            standing: Standing::default(),
            numbering: Numbering::Unknown,
            waiters: Waiters::default(),
            ring: Ring::new(config.ring_events, config.ring_bytes),
            cursor: None,
            reached: Reached::default(),
            load: Load::default(),
            reconnect_asked: None,
            broadcast: None,
            recorded_ms: 0,
            watched: None,
        }
    }

    /// Admission: one synchronous step after liveness and before numbering.
    pub fn admit(&self, bytes: usize, config: &RegistryConfig, now: Instant) -> Result<(), Refusal> {
        let full = match &self.cursor {
            Some(_) => Refusal::Overloaded("ring"),
            // Rule 12: held for so long, and no more than the ring holds.
            None => Refusal::PresenterDisconnected,
        };
        if self.cursor.is_none() && !self.held_for(now, config) {
            return Err(full);
        }
        // The ring's room is the limit on what waits: what waits is read from memory, as long as it is not resumed from before.
        if self.events_waiting() >= config.ring_events || self.load.waiting_bytes() + bytes > config.ring_bytes {
            return Err(full);
        }
        Ok(())
    }

    /// Numbered events that wait for a session.
    pub fn events_waiting(&self) -> usize {
        match self.numbering {
            Numbering::Known { next, .. } => {
                usize::try_from(next.0.saturating_sub(self.load.settled().0 + 1)).unwrap_or(usize::MAX)
            }
            Numbering::Unknown | Numbering::Asked => 0,
        }
    }

    /// Numbered and not yet answered by the writer.
    pub fn in_flight(&self) -> usize {
        self.load.in_flight()
    }

    /// What waits is counted anew from here on.
    fn settle(&mut self, through: Seq) {
        self.load.settle(through, &self.ring);
    }

    /// Rule 12: the session of this broadcast ended a moment ago, so messages wait in the ring for the next.
    pub fn held_for(&self, now: Instant, config: &RegistryConfig) -> bool {
        self.reached.held_for(now, config.grace)
    }

    /// Whether the room server should be asked to make the presenter reconnect; asking counts.
    pub fn reconnect_due(&mut self, now: Instant, config: &RegistryConfig) -> bool {
        let Some(interval) = config.reconnect_interval else {
            return false;
        };
        let due = self.cursor.is_none()
            && self
                .reconnect_asked
                .is_none_or(|asked| now.saturating_duration_since(asked) >= interval);
        if due {
            self.reconnect_asked = Some(now);
        }
        due
    }

    /// Asks the spool for the room's last number, if that is not known and was not asked for yet.
    pub fn ask_numbering(&mut self, writer: &WriterHandle, presenter: PresenterIdx) {
        if self.numbering == Numbering::Unknown {
            self.numbering = Numbering::Asked;
            writer.ask_last_seq(presenter);
        }
    }

    /// Gives the next number. Only called when the numbering is known.
    pub fn number(&mut self, bytes: usize) -> Option<Seq> {
        let Numbering::Known { next, .. } = &mut self.numbering else {
            return None;
        };
        let seq = *next;
        *next = seq.next();
        self.load.number(bytes);
        Some(seq)
    }

    /// One numbered event was committed: it takes its place in the ring.
    pub fn publish(&mut self, entry: Arc<Entry>) {
        self.load.publish(&entry);
        if let Numbering::Known { committed, .. } = &mut self.numbering {
            *committed = entry.event.seq;
        }
        if let Some(act) = &entry.event.act {
            let buffered = self.cursor.iter().flat_map(Cursor::buffer);
            for covered in self.ring.after(Seq(0)).chain(buffered) {
                if act.covers(&entry.event, &covered.event) {
                    self.load.delete(covered);
                    covered.delete();
                }
            }
        }
        if entry.event.act.is_some() && self.is_over(entry.event.seq) {
            self.reached.act_behind_end(entry.event.seq);
        }
        if entry.event.act.is_some() {
            // Before the ring may have to let go of what it covers.
            self.pass_over();
        }
        self.ring.push(entry);
        self.pass_over();
        self.let_go();
    }

    /// Whether an act with this number is behind the end of a broadcast and before the next one. Where the room was forgotten since, and
    /// the room server has not said it again, what is known is that nothing has begun.
    fn is_over(&self, seq: Seq) -> bool {
        match self.standing.last_said_live() {
            Some(live) => !live,
            None => self.broadcast.is_none() && self.reached.over().next() == seq,
        }
    }

    /// One numbered event was not committed: its number is taken back (rule 1).
    pub fn take_back(&mut self, bytes: usize, unknown: bool) {
        self.load.leave_flight(bytes);
        if unknown {
            self.numbering = Numbering::Unknown;
        }
        self.let_go();
    }

    /// The next number is that after the last committed one again (rule 1). `unsure`: what the room had beyond may be in the log.
    /// Returns whether the room had got further, which may be what is on disk: whoever gets those numbers is not to be taken for what
    /// was had already.
    #[must_use]
    pub fn rewind(&mut self, unsure: bool) -> bool {
        let Numbering::Known { committed, next } = &mut self.numbering else {
            return false;
        };
        *next = committed.next();
        let committed = *committed;
        self.load.rewind(committed);
        if let Some(cursor) = self.cursor.as_mut().filter(|cursor| cursor.sent > committed) {
            // It began behind what was on its way and is now taken back; nothing was sent to it yet.
            cursor.phase = Phase::Opening;
        }
        self.reached.rewind(committed, unsure)
    }

    /// The last number that was committed, where that is known.
    pub fn committed(&self) -> Option<Seq> {
        match self.numbering {
            Numbering::Known { committed, .. } => Some(committed),
            Numbering::Unknown | Numbering::Asked => None,
        }
    }

    /// The last number that was given, as far as is known.
    pub fn last_numbered(&self) -> Seq {
        match self.numbering {
            Numbering::Known { next, .. } => Seq(next.0 - 1),
            Numbering::Unknown | Numbering::Asked => self.ring.last().unwrap_or_default().max(self.reached.over()),
        }
    }

    /// What the room looks like from outside.
    pub fn look(&self, live: bool) -> RoomLook {
        RoomLook {
            live,
            session: self.cursor.is_some(),
            last_seq: self.committed(),
            fanned_out: self.cursor.as_ref().and_then(|cursor| cursor.fanned_out),
        }
    }

    /// Lets go of what no session took of a broadcast that is over; the log has it (rule 13). What is still on its way
    /// through the writer is let go when it has come back.
    fn let_go(&mut self) {
        let over = self.reached.over();
        if self.cursor.is_none() && self.in_flight() == 0 && self.load.settled() < over {
            self.ring.forget_through(over);
            self.settle(over);
        }
    }

    /// Whether nothing would be lost by forgetting this room (rule 10).
    pub fn idle(&self, now: Instant, config: &RegistryConfig) -> bool {
        self.cursor.is_none()
            && !self.held_for(now, config)
            && self.waiters.is_empty()
            && self.broadcast.is_none()
            && self.in_flight() == 0
            && !self.standing.is_asked()
            && self.load.waiting_bytes() == 0
            && self.numbering != Numbering::Asked
            && !self.verdict(now).is_some_and(|verdict| verdict.live)
    }
}
