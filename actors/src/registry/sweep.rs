//! The sweep: what time alone does to rooms and sessions.
//!
//! Every room is looked at once in `room.sweep_ms`, a few at a time: no message waits for a look at ten thousand rooms, the room server
//! is not asked about all of them at one moment, and what a look has kept fits one transaction.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use actix::{AsyncContext, Context};

use super::{
    Session, SessionRegistry,
    cursor::Phase,
    room::{Numbering, Room},
    subscriber::End,
};
use crate::{
    broadcast::Broadcast,
    clock::{boot_ms, steady_ms, system_ms},
    seams::Place,
    types::PresenterIdx,
};

/// Rooms a turn, as long as turns are in time.
const SLICE: usize = 256;

/// One look at every room that there was when it began.
pub(super) struct Round {
    began: Instant,
    /// How long it takes.
    period: Duration,
    /// How many rooms it has.
    all: usize,
    /// Those that were not looked at yet.
    left: VecDeque<PresenterIdx>,
    seen: Seen,
}

impl Round {
    pub fn new(rooms: impl IntoIterator<Item = PresenterIdx>, period: Duration, now: Instant) -> Self {
        let mut left: Vec<PresenterIdx> = rooms.into_iter().collect();
        // As the spool sorts their places: what a turn keeps of them is on a few of its pages, not on one page each.
        left.sort_unstable();
        Self {
            began: now,
            period,
            all: left.len(),
            left: left.into(),
            seen: Seen::default(),
        }
    }

    /// The rooms whose turn it is: a slice, and whatever should have been looked at before.
    fn take(&mut self, now: Instant) -> Vec<PresenterIdx> {
        let passed = now.saturating_duration_since(self.began).as_nanos();
        let overdue = (self.all as u128 * passed) / self.period.as_nanos().max(1);
        let due = usize::try_from(overdue)
            .unwrap_or(usize::MAX)
            .saturating_add(SLICE)
            .saturating_sub(self.all - self.left.len());
        self.left.drain(..due.min(self.left.len())).collect()
    }

    /// When the next slice is due; behind the last one, when the next round is.
    fn next_at(&self) -> Instant {
        let done = (self.all - self.left.len()) as f64 / self.all.max(1) as f64;
        let share = if self.left.is_empty() { 1.0 } else { done };
        self.began + self.period.mul_f64(share)
    }
}

/// What a round saw of all rooms: the fullest one's queues, and what was sent to all sessions and not yet taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub share: usize,
    pub pending: usize,
    pub writer_share: usize,
    pub ring: usize,
    pub sessions: usize,
    pub outstanding: usize,
}

impl Seen {
    fn add(&mut self, room: &Room) {
        self.share = self.share.max(room.in_flight() + room.waiters.to_be_numbered());
        self.pending = self.pending.max(room.waiters.undecided());
        self.writer_share = self.writer_share.max(room.in_flight());
        self.ring = self.ring.max(room.events_waiting());
        if let Some(cursor) = &room.cursor {
            self.sessions += 1;
            self.outstanding += cursor.outstanding();
        }
    }
}

/// What a slice has kept.
#[derive(Default)]
struct Kept {
    broadcasts: Vec<Broadcast>,
    places: Vec<Place>,
}

impl SessionRegistry {
    /// Looks at the rooms whose turn it is, and comes again.
    pub(super) fn sweep(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        if self.round.left.is_empty() {
            self.ask_keys();
            self.expire_keys();
            self.tell_settled();
            self.ask_broadcasts();
            self.round = Round::new(self.rooms.keys().copied(), self.config.sweep, now);
        }
        let (mut kept, now_ms) = (Kept::default(), system_ms());
        for presenter in self.round.take(now) {
            self.sweep_room(presenter, now, now_ms, &mut kept);
        }
        self.writer.keep_broadcasts(&kept.broadcasts);
        self.writer.keep_places(&kept.places);
        if self.round.left.is_empty() {
            self.sweep_sessions(now);
            self.free_seats(now);
            self.show_queues(self.round.seen);
        }
        let next = self.round.next_at().saturating_duration_since(Instant::now());
        ctx.run_later(next, Self::sweep);
    }

    /// Forgets the keys whose window is over, and lets the spool forget them. What is told apart there are times of messages, which need
    /// have nothing to do with this clock: so it is told from which message on keys are remembered here.
    fn expire_keys(&mut self) {
        let Some(keys) = self.keys.told_mut() else {
            return;
        };
        keys.expire(steady_ms());
        let under_way = self.in_flight.front().map(|slot| slot.event.sent_at_ms);
        let oldest_ms = keys.oldest_ms().into_iter().chain(under_way).min();
        // What comes is not sent before what was.
        self.writer.keep_keys_since(oldest_ms.unwrap_or(self.clock.last_ms()));
    }

    /// Tells from which time on messages may be on their way. Keys that are not known are told behind all that was appended before, by a
    /// registry that failed perhaps: until then that may be on its way, too.
    fn tell_settled(&self) {
        if self.keys.is_told() {
            let under_way = self.in_flight.front().map(|slot| slot.event.sent_at_ms);
            let settled_ms = under_way.unwrap_or_else(|| self.clock.now_ms());
            self.writer.note_settled(settled_ms);
        }
    }

    /// All that time does to one room, while its memory is at hand.
    fn sweep_room(&mut self, presenter: PresenterIdx, now: Instant, now_ms: i64, kept: &mut Kept) {
        let Some(room) = self.rooms.get_mut(&presenter) else {
            return;
        };
        if let Some(why) = room.wants_verdict(now, &self.config) {
            room.ask(&self.checker, presenter, why);
        }
        room.watch(self.clock.now_ms(), boot_ms(), &self.config);
        let mut stalled = None;
        if let Some(cursor) = &mut room.cursor {
            cursor.look(now);
            stalled = cursor.stalled(now, self.config.stall).then_some(cursor.session);
        }
        let has_broadcast = room.broadcast.is_some();
        if let Some(session) = stalled {
            self.detach(session, presenter, now);
            self.end(session, End::TooSlow);
        }
        if has_broadcast {
            // Its verdict may have expired or been taken back by time.
            kept.broadcasts.extend(self.follow(presenter, now));
            kept.broadcasts.extend(self.end_if_unknown(presenter, now));
        }
        self.sweep_reader(presenter, now);
        let Some(room) = self.rooms.get_mut(&presenter) else {
            return;
        };
        let not_live = room.not_live_for(now).is_some_and(|idle| idle >= self.config.not_live);
        let ending = room.cursor.as_ref().filter(|_| not_live).map(|cursor| cursor.session);
        let idle = room.idle(now, &self.config);
        kept.places.extend(if idle {
            // It is about to be forgotten.
            room.place_at_once(presenter, &self.config, now, now_ms)
        } else {
            room.place(presenter, &self.config, now, now_ms)
        });
        self.round.seen.add(room);
        if let Some(session) = ending {
            self.end(session, End::NotLive);
        }
        if idle {
            self.rooms.remove(&presenter);
        }
    }

    /// What a session that reads the log waited for, for a moment, is tried again; one that waited too long is told.
    fn sweep_reader(&mut self, presenter: PresenterIdx, now: Instant) {
        let Some(room) = self.rooms.get_mut(&presenter) else {
            return;
        };
        let numbering = room.numbering;
        let Some(cursor) = &mut room.cursor else {
            return;
        };
        if cursor.phase == Phase::Opening {
            let waited = now.saturating_duration_since(cursor.began);
            let session = cursor.session;
            if cursor.reading.is_v1() && waited >= self.config.resume_wait {
                self.detach(session, presenter, now);
                self.end(session, End::LogUnavailable);
            } else if numbering != Numbering::Asked {
                self.open(presenter, now);
            }
        } else if numbering == Numbering::Unknown {
            // A commit of unknown outcome: what it wrote is for this session too, though nobody sends anything more.
            self.open(presenter, now);
        } else if cursor.wake() {
            self.pump(presenter, now);
        }
    }

    /// Sessions that must go whether or not a room has them.
    fn sweep_sessions(&mut self, now: Instant) {
        let due = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        let rooms = &self.rooms;
        // Its client takes it for the room's session, and nobody else is: it is to begin anew. It is not attached again unasked, for it
        // may be the dead end of a connection that its client has left, and would take what is held for the next one.
        let is_left_alone = |session: &Session| {
            let room = session.presenter.and_then(|presenter| rooms.get(&presenter));
            room.is_none_or(|room| room.cursor.is_none())
        };
        for session in self.sessions.values_mut() {
            if session.ended.is_some_and(|(at, patience)| due(at, patience)) {
                // It was asked to close and its actor does not run: its peer does not read.
                session.subscriber.shut();
            } else if let Some(at) = session.detached_at
                && (due(at, self.config.detached) || is_left_alone(session))
            {
                session.end(End::Replaced, &self.metrics);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(1);

    /// The sizes of the slices of a round that is called whenever it asks to be, but never sooner than `late` after that.
    fn slices(rooms: i64, late: Duration) -> (Vec<usize>, Duration) {
        let began = Instant::now();
        let all: Vec<PresenterIdx> = (0..rooms).map(|n| PresenterIdx::new(n).expect("an index")).collect();
        // A map of rooms has them in any order.
        let mut round = Round::new(all.iter().rev().copied(), PERIOD, began);
        let (mut now, mut sizes, mut seen) = (began, Vec::new(), Vec::new());
        loop {
            let slice = round.take(now);
            sizes.push(slice.len());
            seen.extend(slice);
            if round.left.is_empty() {
                assert_eq!(seen, all, "each room once, as the spool sorts their places");
                assert_eq!(
                    round.next_at(),
                    began + PERIOD,
                    "the next round begins when this one's time is over"
                );
                return (sizes, now - began);
            }
            now = round.next_at() + late;
        }
    }

    #[test]
    fn a_few_rooms_are_looked_at_in_one_turn() {
        for rooms in [0, 1, SLICE as i64] {
            assert_eq!(slices(rooms, Duration::ZERO), (vec![rooms as usize], Duration::ZERO));
        }
    }

    #[test]
    fn many_rooms_are_looked_at_a_few_a_turn_within_the_time_of_a_sweep() {
        let (sizes, took) = slices(10_000, Duration::ZERO);
        assert!(sizes.iter().all(|size| *size <= SLICE + 1), "{sizes:?}");
        assert!(took < PERIOD, "{took:?}");
    }

    #[test]
    fn a_sweep_whose_turns_come_late_takes_more_rooms_a_turn_and_no_more_time() {
        let (sizes, took) = slices(1_000_000, Duration::from_millis(1));
        assert!(sizes.len() < 1_100, "{}", sizes.len());
        assert!(took < PERIOD + Duration::from_millis(2), "{took:?}");
    }
}
