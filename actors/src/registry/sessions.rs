//! Sockets: who is attached, what flows to whom, who must go.

use super::*;

impl SessionRegistry {
    pub(super) fn connect(&mut self, session: SessionId, subscriber: Arc<dyn Subscriber>) {
        self.metrics.sessions.inc();
        self.sessions.insert(
            session,
            Session {
                subscriber,
                presenter: None,
                detached_at: None,
                ended_at: Cell::new(None),
            },
        );
    }

    pub(super) fn attach(&mut self, session: SessionId, presenter: PresenterIdx, flow: Arc<Flow>, now: Instant) {
        let Some(this) = self.sessions.get_mut(&session) else {
            flow.end();
            return;
        };
        let subscriber = Arc::clone(&this.subscriber);
        this.detached_at = None;
        if let Some(before) = this.presenter.replace(presenter)
            && before != presenter
        {
            self.detach(session, before, now);
        }
        let room = self.rooms.entry(presenter).or_insert_with(|| Room::new(&self.config));
        let old = room.attach(session, subscriber, flow, now);
        if room.verdict(now).is_none() && !room.checking {
            room.checking = self.checker.check(presenter, false);
        }
        if let Some(old) = old.filter(|old| old.session != session)
            && let Some(other) = self.sessions.get_mut(&old.session)
        {
            // Rule 15, legacy: the old one is left open and gets nothing more.
            other.detached_at = Some(now);
        }
        self.pump(presenter, now);
    }

    pub(super) fn flushed(&mut self, session: SessionId, events: u64, now: Instant) {
        let Some(presenter) = self.sessions.get(&session).and_then(|session| session.presenter) else {
            return;
        };
        if let Some(cursor) = self.rooms.get_mut(&presenter).and_then(|room| room.cursor.as_mut())
            && cursor.session == session
        {
            cursor.flushed(events, now);
            self.pump(presenter, now);
        }
    }

    pub(super) fn pump(&mut self, presenter: PresenterIdx, now: Instant) {
        if let Some(room) = self.rooms.get_mut(&presenter) {
            let sent = room.pump(&self.config, now);
            self.metrics.frames.inc_by(sent as u64);
        }
    }

    pub(super) fn detach(&mut self, session: SessionId, presenter: PresenterIdx, now: Instant) {
        if let Some(room) = self.rooms.get_mut(&presenter)
            && room.cursor.as_ref().is_some_and(|cursor| cursor.session == session)
        {
            room.detach(now);
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
        if self.sessions.is_empty() {
            for done in self.ending.drain(..) {
                let _ = done.send(());
            }
        }
    }

    /// Ends a session, once: one that was told to close is not told again.
    pub(super) fn end(&self, session: &Session, end: End) {
        if session.ended_at.get().is_some() {
            return;
        }
        session.ended_at.set(Some(Instant::now()));
        self.metrics
            .sessions_ended
            .get_or_create(&[("reason", end.as_str())])
            .inc();
        session.subscriber.close(end);
        if end == End::TooSlow {
            session.subscriber.shut();
        }
    }

    /// Rule 10: when sessions are full, one whose room is not live goes first; then one that never said whose it is.
    pub(super) fn make_room(&mut self, now: Instant) {
        let idle_for = |session: &Session| match session.presenter {
            None => Some(Duration::ZERO),
            Some(presenter) => self.rooms.get(&presenter).and_then(|room| room.not_live_for(now)),
        };
        let victim = self
            .sessions
            .values()
            .filter(|session| session.ended_at.get().is_none())
            .filter_map(|session| Some((idle_for(session)?, session)));
        if let Some((_, session)) = victim.max_by_key(|(idle, _)| *idle) {
            self.end(session, End::NotLive);
        }
    }

    pub(super) fn sweep(&mut self) {
        let now = Instant::now();
        self.ask_keys();
        let mut stalled = Vec::new();
        for (presenter, room) in &mut self.rooms {
            if room.wants_verdict(now) {
                room.checking = self.checker.check(*presenter, false);
            }
            if let Some(cursor) = &room.cursor
                && cursor.stalled(now, self.config.stall)
            {
                stalled.push((*presenter, cursor.session));
            }
        }
        for (presenter, session) in stalled {
            self.detach(session, presenter, now);
            if let Some(session) = self.sessions.get(&session) {
                self.end(session, End::TooSlow);
            }
        }
        for session in self.sessions.values() {
            let due = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
            if session.ended_at.get().is_some_and(|at| due(at, CLOSE_PATIENCE)) {
                // It was asked to close and its actor does not run: its peer does not read.
                session.subscriber.shut();
            } else if session.detached_at.is_some_and(|at| due(at, self.config.detached)) {
                self.end(session, End::Replaced);
            } else if session.detached_at.is_none()
                && session
                    .presenter
                    .and_then(|presenter| self.rooms.get(&presenter)?.not_live_for(now))
                    .is_some_and(|idle| idle >= self.config.not_live)
            {
                self.end(session, End::NotLive);
            }
        }
        self.rooms.retain(|_, room| !room.idle(now, &self.config));
        self.metrics
            .rooms
            .set(i64::try_from(self.rooms.len()).unwrap_or(i64::MAX));
    }
}
