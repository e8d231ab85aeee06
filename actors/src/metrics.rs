//! What the actors count, in one place. Names follow Prometheus: base units, `_total`, `_seconds`; never a label by
//! presenter or user.

use std::{ops::Deref, sync::Arc};

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{moderation::Act, queues::Queues, registry::End, session::Close};

/// One label with one of a fixed set of values.
pub type Label = [(&'static str, &'static str); 1];

/// Every number that the actors keep. Cheap to clone: the numbers are shared.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Numbers>);

impl Deref for Metrics {
    type Target = Numbers;

    fn deref(&self) -> &Numbers {
        &self.0
    }
}

/// See [`Metrics`].
#[derive(Debug)]
pub struct Numbers {
    /// Messages committed and answered 200 or 201; acts of moderation are counted apart, here and in the two below.
    pub accepted: Counter,
    /// Messages that were queued to a session with credit when they were committed.
    pub delivered: Counter,
    /// Messages that were committed with no such session: they wait in the ring.
    pub held: Counter,
    /// Acts of moderation committed, by `scope`: message, user, span.
    pub moderation: Family<Label, Counter>,
    /// Refusals, by `code` of the error table.
    pub refused: Family<Label, Counter>,
    /// Frames handed to presenters' sockets.
    pub frames: Counter,
    /// Presenter sockets open now.
    pub sessions: Gauge,
    /// Sessions ended, by `reason`.
    pub sessions_ended: Family<Label, Counter>,
    /// v1 sessions that began, by `outcome`: up_to_date, resumed, gap.
    pub resumes: Family<Label, Counter>,
    /// Reads of the log for sessions that lack what memory no longer has, by `outcome`: ok, error, hole.
    pub log_reads: Family<Label, Counter>,
    /// Sessions that wait for such a read.
    pub resumes_waiting: Gauge,
    /// Exports by HTTP that are over, by `outcome`: ok, error, abandoned.
    pub exports: Family<Label, Counter>,
    /// Pages of the log read for exports by HTTP.
    pub export_pages: Counter,
    /// Presenter sockets refused before or at their beginning, by `reason`.
    pub sessions_refused: Family<Label, Counter>,
    /// Rooms in the registry now.
    pub rooms: Gauge,
    /// 1 while the room server is left alone because it failed too often in a row.
    pub room_breaker_open: Gauge,
    /// How often that began.
    pub room_breaker_opened: Counter,
    /// Questions in a row that the room server did not say anything on, to somebody who is there, without a verdict in between.
    pub room_refusals: Gauge,
    /// Liveness verdicts, by `outcome`: live, not_live, refused, cached, stale, error, timeout, breaker_open.
    pub room_checks: Family<Label, Counter>,
    /// Verdicts that are kept, by `verdict`: live, not_live, refused.
    pub room_verdicts: Family<Label, Gauge>,
    /// Requests to make a presenter reconnect, by `outcome`: ok, error.
    pub reconnect_requests: Family<Label, Counter>,
    /// How long the room server took, in seconds.
    pub room_check_seconds: Histogram,
    /// Events a spool commit.
    pub commit_events: Histogram,
    /// How long a spool commit took, in seconds, its fsync included.
    pub commit_seconds: Histogram,
    /// Spool commits that failed.
    pub commit_failures: Counter,
    /// Events a batch to the store.
    pub store_batch_events: Histogram,
    /// How long the store took to acknowledge a batch, in seconds.
    pub store_batch_seconds: Histogram,
    /// Tries of the store that failed and are made again: batches, and its preparation at a start.
    pub store_retries: Counter,
    /// Events that the store will never take, set aside in the spool (rule 4).
    pub parked: Counter,
    /// Those that are parked now, from earlier runs too.
    pub parked_events: Gauge,
    /// Broadcasts in the spool that the store refused as they are.
    pub refused_broadcasts: Gauge,
    /// What retention removed, by `kind`: event, broadcast.
    pub retention_deleted: Family<Label, Counter>,
    /// Times that retention went through the log, by `outcome`: ok, error.
    pub retention_sweeps: Family<Label, Counter>,
    /// Events in the spool that the store does not have yet.
    pub spool_events: Gauge,
    /// Size of the spool in bytes.
    pub spool_bytes: Gauge,
    /// `log.spool_max_bytes`; 0 where the file is the log itself.
    pub spool_max_bytes: Gauge,
    /// x-forward headers from peers that are not trusted to set them.
    pub forward_refused: Counter,
    /// Connections that were cut because their client did not take an answer.
    pub answers_cut: Counter,
    /// Tokens that were refused, by `reason`.
    pub tokens_refused: Family<Label, Counter>,
    /// Tokens that were known to be good.
    pub token_cache_hits: Counter,
    /// Tokens that had to be verified.
    pub token_cache_misses: Counter,
    /// Good tokens that are remembered.
    pub token_cache_entries: Gauge,
    /// Times that keys were read again on demand, by `outcome`: ok, error.
    pub key_reloads: Family<Label, Counter>,
    /// Fetches of published keys, by `outcome`: ok, error.
    pub jwks_fetches: Family<Label, Counter>,
    /// Published keys in use.
    pub jwks_keys: Gauge,
    /// Panics that were caught, by `actor`; what panicked was made anew, or ended where that is its end.
    pub actor_restarts: Family<Label, Counter>,
    /// Every queue's depth, capacity, refusals and waits.
    pub queues: Queues,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            accepted: Counter::default(),
            delivered: Counter::default(),
            held: Counter::default(),
            moderation: Family::default(),
            refused: Family::default(),
            frames: Counter::default(),
            sessions: Gauge::default(),
            sessions_ended: Family::default(),
            resumes: Family::default(),
            log_reads: Family::default(),
            resumes_waiting: Gauge::default(),
            exports: Family::default(),
            export_pages: Counter::default(),
            sessions_refused: Family::default(),
            rooms: Gauge::default(),
            room_breaker_open: Gauge::default(),
            room_breaker_opened: Counter::default(),
            room_refusals: Gauge::default(),
            room_checks: Family::default(),
            room_verdicts: Family::default(),
            reconnect_requests: Family::default(),
            room_check_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 14)),
            commit_events: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            commit_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 15)),
            commit_failures: Counter::default(),
            store_batch_events: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            store_batch_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 15)),
            store_retries: Counter::default(),
            parked: Counter::default(),
            parked_events: Gauge::default(),
            refused_broadcasts: Gauge::default(),
            retention_deleted: Family::default(),
            retention_sweeps: Family::default(),
            spool_events: Gauge::default(),
            spool_bytes: Gauge::default(),
            spool_max_bytes: Gauge::default(),
            forward_refused: Counter::default(),
            answers_cut: Counter::default(),
            tokens_refused: Family::default(),
            token_cache_hits: Counter::default(),
            token_cache_misses: Counter::default(),
            token_cache_entries: Gauge::default(),
            key_reloads: Family::default(),
            jwks_fetches: Family::default(),
            jwks_keys: Gauge::default(),
            actor_restarts: Family::default(),
            queues: Queues::default(),
        }
    }
}

impl Metrics {
    /// What can panic and is counted: the supervised actors, then what ends with its panic.
    pub const ACTORS: [&str; 7] = ["registry", "checker", "writer", "spool", "reader", "session", "http"];

    /// The panics of one of [`Metrics::ACTORS`].
    pub fn restarts(&self, actor: &'static str) -> Counter {
        self.actor_restarts.get_or_create(&[("actor", actor)]).clone()
    }

    /// Counts one refusal under its code.
    pub fn refuse(&self, code: &'static str) {
        self.refused.get_or_create(&[("code", code)]).inc();
    }

    /// Counts one act of moderation.
    pub fn act(&self, act: &Act) {
        self.moderation.get_or_create(&[("scope", act.scope())]).inc();
    }

    /// Makes every series whose label is known beforehand, at 0. One that first appears as 1 has no increase for whoever
    /// watches, so the first of the rare events would go unseen.
    fn begin(&self) {
        let outcomes: [(&Family<Label, Counter>, &[&str]); 8] = [
            (
                &self.room_checks,
                &[
                    "live",
                    "not_live",
                    "refused",
                    "cached",
                    "stale",
                    "error",
                    "timeout",
                    "breaker_open",
                ],
            ),
            (&self.reconnect_requests, &["ok", "error"]),
            (&self.resumes, &["up_to_date", "resumed", "gap"]),
            (&self.log_reads, &["ok", "error", "hole"]),
            (&self.key_reloads, &["ok", "error"]),
            (&self.jwks_fetches, &["ok", "error"]),
            (&self.retention_sweeps, &["ok", "error"]),
            (&self.exports, &["ok", "error", "abandoned"]),
        ];
        for (family, values) in outcomes {
            for value in values {
                drop(family.get_or_create(&[("outcome", value)]));
            }
        }
        for kind in ["event", "broadcast"] {
            drop(self.retention_deleted.get_or_create(&[("kind", kind)]));
        }
        for scope in Act::SCOPES {
            drop(self.moderation.get_or_create(&[("scope", scope)]));
        }
        for actor in Self::ACTORS {
            drop(self.restarts(actor));
        }
        for reason in End::REASONS.into_iter().chain(Close::reasons()) {
            drop(self.sessions_ended.get_or_create(&[("reason", reason)]));
        }
    }

    /// Makes a series for each of these reasons to refuse a token, at 0: see [`Metrics::register`].
    pub fn begin_token_refusals(&self, reasons: impl Iterator<Item = &'static str>) {
        for reason in reasons {
            drop(self.tokens_refused.get_or_create(&[("reason", reason)]));
        }
    }

    /// Makes a series for each of these codes, at 0, for messages and for sockets: see [`Metrics::register`].
    pub fn begin_refusals(&self, codes: impl Iterator<Item = &'static str>) {
        for code in codes {
            drop(self.refused.get_or_create(&[("code", code)]));
            drop(self.sessions_refused.get_or_create(&[("reason", code)]));
        }
    }

    /// Gives every number its name and help text, and begins every series whose labels are known at 0.
    pub fn register(&self, registry: &mut Registry) {
        self.begin();
        let r = registry;
        r.register(
            "chat_accepted",
            "Messages committed and accepted",
            self.accepted.clone(),
        );
        r.register(
            "chat_delivered",
            "Messages queued to a presenter at commit",
            self.delivered.clone(),
        );
        r.register("chat_held", "Messages held at commit", self.held.clone());
        r.register(
            "chat_moderation",
            "Acts of moderation committed, by scope",
            self.moderation.clone(),
        );
        r.register("chat_refused", "Messages refused, by code", self.refused.clone());
        r.register("chat_frames", "Chat frames handed to sockets", self.frames.clone());
        r.register("chat_sessions", "Open presenter sockets", self.sessions.clone());
        r.register(
            "chat_sessions_ended",
            "Presenter sockets ended, by reason",
            self.sessions_ended.clone(),
        );
        r.register(
            "chat_resumes",
            "v1 sessions that began, by outcome",
            self.resumes.clone(),
        );
        r.register(
            "chat_log_reads",
            "Reads of the log for sessions that are behind, by outcome",
            self.log_reads.clone(),
        );
        r.register(
            "chat_exports",
            "Exports by HTTP that are over, by outcome",
            self.exports.clone(),
        );
        r.register(
            "chat_export_pages",
            "Pages of the log read for exports by HTTP",
            self.export_pages.clone(),
        );
        r.register(
            "chat_resumes_waiting",
            "Sessions that wait for a read of the log",
            self.resumes_waiting.clone(),
        );
        r.register(
            "chat_sessions_refused",
            "Presenter sockets refused, by reason",
            self.sessions_refused.clone(),
        );
        r.register("chat_rooms", "Rooms in memory", self.rooms.clone());
        r.register(
            "chat_room_breaker_open",
            "1 while the room server is left alone",
            self.room_breaker_open.clone(),
        );
        r.register(
            "chat_room_breaker_opened",
            "Times that the room server was left alone",
            self.room_breaker_opened.clone(),
        );
        r.register(
            "chat_room_refusals",
            "Questions in a row that the room server refused to somebody",
            self.room_refusals.clone(),
        );
        r.register(
            "chat_room_checks",
            "Liveness verdicts, by outcome",
            self.room_checks.clone(),
        );
        r.register(
            "chat_room_verdicts",
            "Liveness verdicts that are kept, by verdict",
            self.room_verdicts.clone(),
        );
        r.register(
            "chat_reconnect_requests",
            "Requests to make a presenter reconnect, by outcome",
            self.reconnect_requests.clone(),
        );
        r.register(
            "chat_room_check_seconds",
            "Room server latency",
            self.room_check_seconds.clone(),
        );
        r.register(
            "chat_commit_events",
            "Events a spool commit",
            self.commit_events.clone(),
        );
        r.register(
            "chat_commit_seconds",
            "Spool commit latency",
            self.commit_seconds.clone(),
        );
        r.register(
            "chat_commit_failures",
            "Spool commits that failed, and tries of a spool that fails",
            self.commit_failures.clone(),
        );
        r.register(
            "chat_store_batch_events",
            "Events a batch to the store",
            self.store_batch_events.clone(),
        );
        r.register(
            "chat_store_batch_seconds",
            "Store batch latency",
            self.store_batch_seconds.clone(),
        );
        r.register(
            "chat_store_retries",
            "Tries of the store that failed",
            self.store_retries.clone(),
        );
        r.register("chat_parked", "Events the store will never take", self.parked.clone());
        r.register(
            "chat_parked_events",
            "Events that are parked in the spool now",
            self.parked_events.clone(),
        );
        r.register(
            "chat_refused_broadcasts",
            "Broadcasts in the spool that the store refused as they are",
            self.refused_broadcasts.clone(),
        );
        r.register(
            "chat_retention_deleted",
            "Removed because log.retention_days are over, by kind",
            self.retention_deleted.clone(),
        );
        r.register(
            "chat_retention_sweeps",
            "Times that retention went through the log, by outcome",
            self.retention_sweeps.clone(),
        );
        r.register(
            "chat_spool_events",
            "Events the store does not have yet",
            self.spool_events.clone(),
        );
        r.register("chat_spool_bytes", "Size of the spool", self.spool_bytes.clone());
        r.register(
            "chat_spool_max_bytes",
            "Size of the spool at which messages are refused; 0: none",
            self.spool_max_bytes.clone(),
        );
        r.register(
            "chat_forward_refused",
            "x-forward headers from untrusted peers",
            self.forward_refused.clone(),
        );
        r.register(
            "chat_answers_cut",
            "Connections cut because their client did not take an answer",
            self.answers_cut.clone(),
        );
        r.register(
            "chat_tokens_refused",
            "Tokens refused, by reason",
            self.tokens_refused.clone(),
        );
        r.register(
            "chat_token_cache_hits",
            "Tokens that were known to be good",
            self.token_cache_hits.clone(),
        );
        r.register(
            "chat_token_cache_misses",
            "Tokens that had to be verified",
            self.token_cache_misses.clone(),
        );
        r.register(
            "chat_token_cache_entries",
            "Good tokens that are remembered",
            self.token_cache_entries.clone(),
        );
        r.register(
            "chat_key_reloads",
            "Times that keys were read again, by outcome",
            self.key_reloads.clone(),
        );
        r.register(
            "chat_jwks_fetches",
            "Fetches of published keys, by outcome",
            self.jwks_fetches.clone(),
        );
        r.register("chat_jwks_keys", "Published keys in use", self.jwks_keys.clone());
        r.register(
            "chat_actor_restarts",
            "Panics that were caught, by actor",
            self.actor_restarts.clone(),
        );
        self.queues.register(r);
    }
}
