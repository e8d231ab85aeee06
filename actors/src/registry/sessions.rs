//! Sockets: who is attached, what flows to whom, who must go.

use std::{
    cmp::Reverse,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    CLOSE_PATIENCE, STALLED_PATIENCE, Session, SessionRegistry,
    messages::SessionId,
    room::Room,
    subscriber::{End, Reading, Subscriber},
};
use crate::{
    metrics::Metrics,
    session::Flow,
    types::{PresenterIdx, Seq},
};

/// Why a session can be spared when seats are short; the last goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Spare {
    /// It never said whose it is.
    Nobodys,
    /// The room server does not say whether its room is live, and does of others.
    Refused,
    /// Its room is not live.
    NotLive,
    /// It has not said whose it is for longer than that may take.
    Silent,
    /// A newer one has its room, and it gets nothing any more.
    Replaced,
}

impl Spare {
    /// Only the room server's word ends a broadcast: whom it says nothing of comes again.
    fn end(self) -> End {
        match self {
            Self::NotLive => End::NotLive,
            Self::Refused | Self::Nobodys | Self::Silent => End::Crowded,
            Self::Replaced => End::Replaced,
        }
    }
}

impl Session {
    /// Ends it, once: one that was told to close is not told again, but may have less time left for it.
    pub(super) fn end(&mut self, end: End, metrics: &Metrics) {
        let patience = match end {
            // Everybody waits for the last of these.
            End::TooSlow | End::GoingAway => STALLED_PATIENCE,
            _ => CLOSE_PATIENCE,
        };
        if let Some((_, before)) = &mut self.ended {
            *before = patience.min(*before);
            return;
        }
        self.ended = Some((Instant::now(), patience));
        metrics.sessions_ended.inc(end.as_str());
        self.subscriber.close(end);
        if end == End::TooSlow && !self.v1 {
            // Legacy has no word for it.
            self.subscriber.shut();
        }
    }
}

impl SessionRegistry {
    pub(super) fn connect(&mut self, session: SessionId, subscriber: Arc<dyn Subscriber>) {
        self.metrics.sessions.inc();
        self.sessions.insert(
            session,
            Session {
                subscriber,
                connected_at: Instant::now(),
                presenter: None,
                v1: false,
                told: false,
                detached_at: None,
                ended: None,
            },
        );
    }

    pub(super) fn attach(
        &mut self,
        session: SessionId,
        presenter: PresenterIdx,
        flow: Arc<Flow>,
        reading: Reading,
        now: Instant,
    ) {
        let Some(this) = self.sessions.get_mut(&session) else {
            flow.end();
            return;
        };
        if this.ended.is_some() {
            // It was told to go before it said this: it takes over from nobody.
            flow.end();
            return;
        }
        let subscriber = Arc::clone(&this.subscriber);
        this.detached_at = None;
        this.v1 = reading.is_v1();
        if let Some(before) = this.presenter.replace(presenter)
            && before != presenter
        {
            self.detach(session, before, now);
        }
        let room = self
            .rooms
            .entry(presenter)
            .or_insert_with(|| Box::new(Room::new(&self.config)));
        if let Some(why) = room.refuses(&reading, &self.epoch) {
            // It takes nothing over.
            flow.end();
            return self.end(session, End::BadFrame(why));
        }
        let old = room.attach(session, subscriber, flow, reading, now);
        if room.verdict(now).is_none() {
            let why = room.why_for_session(now);
            room.ask(&self.checker, presenter, why);
        }
        if let Some(old) = old.filter(|old| old.session != session)
            && let Some(other) = self.sessions.get_mut(&old.session)
        {
            if other.v1 {
                self.end(old.session, End::Replaced);
            } else {
                // Rule 15, legacy: the old one is left open and gets nothing more.
                other.detached_at = Some(now);
            }
        }
        self.open(presenter, now);
    }

    /// The client has everything up to `seq` (rule 14).
    pub(super) fn ack(&mut self, session: SessionId, seq: Seq, fanned_out: Option<u64>, now: Instant) {
        let Some(presenter) = self.sessions.get(&session).and_then(|session| session.presenter) else {
            return;
        };
        let room = self.rooms.get_mut(&presenter);
        let Some(room) = room.filter(|room| room.is_read_by(session)) else {
            return;
        };
        if room.acknowledge(seq, fanned_out, now) {
            self.pump(presenter, now);
        } else {
            self.detach(session, presenter, now);
            self.end(session, End::BadFrame("ack is above the last seq that was sent"));
        }
    }

    pub(super) fn flushed(&mut self, session: SessionId, now: Instant) {
        let presenter = self.sessions.get(&session).and_then(|session| session.presenter);
        if let Some(presenter) = presenter
            && self.rooms.get(&presenter).is_some_and(|room| room.is_read_by(session))
        {
            self.pump(presenter, now);
        }
    }

    pub(super) fn pump(&mut self, presenter: PresenterIdx, now: Instant) {
        if let Some(room) = self.rooms.get_mut(&presenter) {
            let sent = room.pump(&self.config, now);
            let behind = room.wants_page(&self.config);
            self.metrics.frames.inc_by(sent as u64);
            if behind {
                self.read_on(presenter);
            }
        }
    }

    pub(super) fn detach(&mut self, session: SessionId, presenter: PresenterIdx, now: Instant) {
        if let Some(room) = self.rooms.get_mut(&presenter)
            && room.is_read_by(session)
        {
            room.detach(now);
        }
    }

    pub(super) fn panic_session(&self, presenter: PresenterIdx) {
        if let Some(cursor) = self.rooms.get(&presenter).and_then(|room| room.cursor.as_ref()) {
            cursor.subscriber.panic_now();
        }
    }

    pub(super) fn gone(&mut self, session: SessionId) {
        let Some(this) = self.sessions.remove(&session) else {
            return;
        };
        self.metrics.sessions.dec();
        if let Some(presenter) = this.presenter {
            let now = Instant::now();
            self.detach(session, presenter, now);
            self.forget_if_idle(presenter, now);
        }
        self.ended_if_all_are_gone();
    }

    /// Ends a session, if it is still there.
    pub(super) fn end(&mut self, session: SessionId, end: End) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.end(end, &self.metrics);
        }
    }

    /// Tells so many more v1 sessions to connect again; returns how many are left to tell.
    pub(super) fn tell_reconnect(&mut self, most: usize, after: Duration, spread: Duration) -> usize {
        let mut left = 0;
        let v1 = self.sessions.values_mut().filter(|session| session.v1 && !session.told);
        for (n, session) in v1.filter(|session| session.ended.is_none()).enumerate() {
            if n < most {
                session.told = true;
                // Spread, so that they do not all come at the same moment.
                session.subscriber.reconnect(after + spread.mul_f64(rand::random()));
            } else {
                left += 1;
            }
        }
        left
    }

    /// Rule 10: when sessions are full, those whose room is not live go first; then those of whose room alone the room server does not
    /// say; then those that have not said yet whose they are. Before all of them those that have not for longer than that may take: a
    /// socket costs its client nothing, and a crowd of them would have every session go whose room is not live yet. And before these
    /// those that were replaced (rule 15), whose clients have another one. As many as were refused since the last sweep, so that a crowd
    /// at the door costs a look at all sessions once a sweep.
    pub(super) fn free_seats(&mut self, now: Instant) {
        let wanted = self.handle.seats_wanted();
        if wanted == 0 {
            return;
        }
        // The greatest goes first.
        let spare = |session: &Session| {
            if let Some(at) = session.detached_at {
                return Some((Spare::Replaced, now.saturating_duration_since(at)));
            }
            let Some(presenter) = session.presenter else {
                let silent_for = now.saturating_duration_since(session.connected_at);
                let late = silent_for > self.config.start;
                return Some((if late { Spare::Silent } else { Spare::Nobodys }, silent_for));
            };
            let room = self.rooms.get(&presenter)?;
            let refused_for = || room.refused_for(now).map(|time| (Spare::Refused, time));
            room.not_live_for(now)
                .map(|time| (Spare::NotLive, time))
                .or_else(refused_for)
        };
        let open = self.sessions.values_mut().filter(|session| session.ended.is_none());
        let mut spare: Vec<_> = open.filter_map(|session| Some((spare(session)?, session))).collect();
        spare.sort_unstable_by_key(|(spare, _)| Reverse(*spare));
        for ((spare, _), session) in spare.into_iter().take(wanted) {
            session.end(spare.end(), &self.metrics);
        }
    }
}
