//! The registry's queues as operators see them. Those of rooms are looked at by the sweep: the fullest room counts.

use prometheus_client::metrics::counter::Counter;

use super::{RegistryConfig, SessionRegistry, sweep::Seen};
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
    /// Shows what the sweep saw.
    pub(super) fn show_queues(&self, seen: Seen) {
        let queues = &self.queues;
        queues.share.holds(seen.share);
        queues.pending.holds(seen.pending);
        queues.writer_share.holds(seen.writer_share);
        queues.ring.holds(seen.ring);
        queues.keys.holds(self.keys.told().map_or(0, |keys| keys.len()));
        queues.sessions.holds(seen.outstanding);
        queues.sessions.may_hold(seen.sessions * self.config.credit_events);
        self.metrics
            .rooms
            .set(i64::try_from(self.rooms.len()).unwrap_or(i64::MAX));
    }
}
