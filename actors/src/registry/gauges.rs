//! The registry's queues as operators see them. Those of rooms are looked at by the sweep: the fullest room counts.

use prometheus_client::metrics::counter::Counter;

use super::{RegistryConfig, SessionRegistry, room::Room};
use crate::{
    metrics::Metrics,
    queues::{Queue, Queues},
};

pub(super) struct RegistryQueues {
    /// `actors.registry.room_share`
    share: Queue,
    /// `room.pending_max`
    pending: Queue,
    /// `actors.writer.room_share`
    writer_share: Queue,
    /// `room.ring_events`
    ring: Queue,
    /// `idempotency.max`
    keys: Queue,
    /// `actors.session.mailbox` and `session.credit_events`, of all sessions together
    sessions: Queue,
    /// What waited in its room because its session was behind.
    pub session_waits: Counter,
    /// `session.resume_reads`
    pub reads: Queue,
    pub read_waits: Counter,
}

impl RegistryQueues {
    pub fn new(config: &RegistryConfig, metrics: &Metrics) -> Self {
        let queues: &Queues = &metrics.queues;
        queues.bound("idempotency_sender", config.keys.sender_max);
        let (sessions, session_waits) = queues.waiting("session", 0);
        let (reads, read_waits) = queues.waiting("resume_reads", config.resume_reads);
        Self {
            share: queues.refusing("room_share", config.room_share),
            pending: queues.refusing("room_pending", config.pending_max),
            writer_share: queues.refusing("writer_room_share", config.writer_room_share),
            ring: queues.refusing("ring", config.ring_events),
            keys: queues.refusing("idempotency", config.keys.max),
            sessions,
            session_waits,
            reads,
            read_waits,
        }
    }
}

impl SessionRegistry {
    /// Looks at every room.
    pub(super) fn show_queues(&self) {
        let fullest = |of: fn(&Room) -> usize| self.rooms.values().map(|room| of(room)).max().unwrap_or(0);
        let queues = &self.queues;
        queues.share.holds(fullest(|room| room.in_flight + room.waiting.len()));
        queues
            .pending
            .holds(fullest(|room| room.waiting.len() + room.looking.len()));
        queues.writer_share.holds(fullest(|room| room.in_flight));
        queues.ring.holds(fullest(Room::events_waiting));
        queues.keys.holds(self.keys.as_ref().map_or(0, |keys| keys.len()));
        let cursors = self.rooms.values().filter_map(|room| room.cursor.as_ref());
        let (count, sent) = cursors.fold((0, 0), |(count, sent), cursor| (count + 1, sent + cursor.outstanding()));
        queues.sessions.holds(sent);
        queues.sessions.may_hold(count * self.config.credit_events);
    }
}
