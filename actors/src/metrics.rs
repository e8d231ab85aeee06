//! What the actors count, in one place. Names follow Prometheus: base units, `_total`, `_seconds`; never a label by
//! presenter or user.

use std::{fmt::Debug, ops::Deref, sync::Arc};

use prometheus_client::{
    encoding::EncodeMetric,
    metrics::{
        TypedMetric,
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{moderation::Act, queues::Queues, registry::End, session::Close};

/// Every number that the actors keep. Cheap to clone: the numbers are shared.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Numbers>);

impl Deref for Metrics {
    type Target = Numbers;

    fn deref(&self) -> &Numbers {
        &self.0
    }
}

/// Numbers that nobody scrapes.
impl Default for Metrics {
    fn default() -> Self {
        Self::new(&mut Registry::default())
    }
}

impl Metrics {
    /// What can panic and is counted: the supervised actors, then what ends with its panic.
    pub const ACTORS: [&str; 7] = ["registry", "checker", "writer", "spool", "reader", "session", "http"];

    /// Numbers at 0, which this registry names and explains.
    pub fn new(registry: &mut Registry) -> Self {
        Self(Arc::new(Numbers::new(registry)))
    }

    /// The panics of one of [`Metrics::ACTORS`].
    pub fn restarts(&self, actor: &'static str) -> Counter {
        self.actor_restarts.of(actor)
    }

    /// Counts one refusal under its code.
    pub fn refuse(&self, code: &'static str) {
        self.refused.inc(code);
    }

    /// Counts one act of moderation.
    pub fn act(&self, act: &Act) {
        self.moderation.inc(act.scope());
    }
}

/// One number for each value of a label. Cheap to clone: the numbers are shared.
#[derive(Clone, Debug)]
pub struct By<M> {
    label: &'static str,
    family: Family<Labels, M>,
}

type Labels = [(&'static str, &'static str); 1];

impl<M: Clone + Default> By<M> {
    /// The number of this value, for who keeps it.
    pub fn of(&self, value: &'static str) -> M {
        self.family.get_or_create_owned(&[(self.label, value)])
    }

    /// Makes the series of these values, at 0. One that first appears as 1 has no increase for whoever watches, so the first of the
    /// rare events would go unseen.
    pub fn begin(&self, values: impl IntoIterator<Item = &'static str>) {
        for value in values {
            drop(self.family.get_or_create(&[(self.label, value)]));
        }
    }
}

impl By<Counter> {
    /// Counts one more of this value.
    pub fn inc(&self, value: &'static str) {
        self.family.get_or_create(&[(self.label, value)]).inc();
    }
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

/// So many buckets, the first up to `first`, each twice as wide as the one before.
fn histogram(registry: &mut Registry, name: &str, help: &str, first: f64, buckets: u16) -> Histogram {
    let histogram = Histogram::new(exponential_buckets(first, 2.0, buckets));
    registry.register(name, help, histogram.clone());
    histogram
}

/// Of the values that are known beforehand there is a series at once: see [`By::begin`].
pub(crate) fn by<M>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl IntoIterator<Item = &'static str>,
) -> By<M>
where
    M: EncodeMetric + TypedMetric + Clone + Default + Debug + Send + Sync + 'static,
{
    let family: Family<Labels, M> = Family::default();
    registry.register(name, help, family.clone());
    let by = By { label, family };
    by.begin(values);
    by
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
    /// Acts of moderation committed, by `scope`.
    pub moderation: By<Counter>,
    /// Refusals, by `code` of the error table, which begins them.
    pub refused: By<Counter>,
    /// Frames handed to presenters' sockets.
    pub frames: Counter,
    /// Presenter sockets open now.
    pub sessions: Gauge,
    /// Sessions ended, by `reason`.
    pub sessions_ended: By<Counter>,
    /// v1 sessions that began, by `outcome`.
    pub resumes: By<Counter>,
    /// Reads of the log for sessions that lack what memory no longer has, by `outcome`.
    pub log_reads: By<Counter>,
    /// Reads of history by HTTP, by `outcome`.
    pub history_reads: By<Counter>,
    /// Exports by HTTP that are over, by `outcome`.
    pub exports: By<Counter>,
    /// Pages of the log read for exports by HTTP.
    pub export_pages: Counter,
    /// Sessions that wait for a read of the log.
    pub resumes_waiting: Gauge,
    /// Presenter sockets refused before or at their beginning, by `reason`: codes of the error table, which begins them.
    pub sessions_refused: By<Counter>,
    /// Rooms in the registry now.
    pub rooms: Gauge,
    /// 1 while the room server is left alone because it failed too often in a row.
    pub room_breaker_open: Gauge,
    /// How often that began.
    pub room_breaker_opened: Counter,
    /// Questions in a row that the room server did not say anything on, to somebody who is there, without a verdict in between.
    pub room_refusals: Gauge,
    /// Liveness verdicts, by `outcome`.
    pub room_checks: By<Counter>,
    /// Verdicts that are kept, by `verdict`.
    pub room_verdicts: By<Gauge>,
    /// Requests to make a presenter reconnect, by `outcome`.
    pub reconnect_requests: By<Counter>,
    /// How long the room server took, in seconds.
    pub room_check_seconds: Histogram,
    /// Events a spool commit.
    pub commit_events: Histogram,
    /// How long a spool commit took, in seconds, its fsync included.
    pub commit_seconds: Histogram,
    /// Spool commits that failed, and tries of a spool that fails.
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
    /// 1 while another server says that it writes to the same log (rule 7).
    pub other_servers: Gauge,
    /// 1 where this start found that the store has more of the spool's own numbering than the spool (rule 4).
    pub spool_was_behind: Gauge,
    /// Seconds that the system's clock is behind the newest message; 0 where it is not.
    pub clock_behind_seconds: Gauge,
    /// What retention removed, by `kind`.
    pub retention_deleted: By<Counter>,
    /// Times that retention went through the log, by `outcome`.
    pub retention_sweeps: By<Counter>,
    /// Events in the spool that the store does not have yet.
    pub spool_events: Gauge,
    /// Size of the spool in bytes.
    pub spool_bytes: Gauge,
    /// To how many bytes the file may grow now: `log.spool_max_bytes`, or less while its reserve is missing; 0 where the file is the log
    /// itself.
    pub spool_max_bytes: Gauge,
    /// What is kept of the disk for when it is full.
    pub spool_reserve_bytes: Gauge,
    /// What `log.reserve_bytes` has beyond that.
    pub spool_reserve_missing_bytes: Gauge,
    /// x-forward headers from peers that are not trusted to set them.
    pub forward_refused: Counter,
    /// Connections that were cut because their client did not take an answer.
    pub answers_cut: Counter,
    /// Tokens that were refused, by `reason`, of which [`By::begin`] is told.
    pub tokens_refused: By<Counter>,
    /// Tokens that were known to be good.
    pub token_cache_hits: Counter,
    /// Tokens that had to be verified.
    pub token_cache_misses: Counter,
    /// Good tokens that are remembered.
    pub token_cache_entries: Gauge,
    /// Times that keys were read again on demand, by `outcome`.
    pub key_reloads: By<Counter>,
    /// Fetches of published keys, by `outcome`.
    pub jwks_fetches: By<Counter>,
    /// Published keys in use.
    pub jwks_keys: Gauge,
    /// Panics that were caught, by `actor`; what panicked was made anew, or ended where that is its end.
    pub actor_restarts: By<Counter>,
    /// Every queue's depth, capacity, refusals and waits.
    pub queues: Queues,
}

impl Numbers {
    /// In the order in which they are served.
    fn new(r: &mut Registry) -> Self {
        Self {
            accepted: counter(r, "chat_accepted", "Messages committed and accepted"),
            delivered: counter(r, "chat_delivered", "Messages queued to a presenter at commit"),
            held: counter(r, "chat_held", "Messages held at commit"),
            moderation: by(
                r,
                "chat_moderation",
                "Acts of moderation committed, by scope",
                "scope",
                Act::SCOPES,
            ),
            refused: by(r, "chat_refused", "Messages refused, by code", "code", []),
            frames: counter(r, "chat_frames", "Chat frames handed to sockets"),
            sessions: gauge(r, "chat_sessions", "Open presenter sockets"),
            sessions_ended: by(
                r,
                "chat_sessions_ended",
                "Presenter sockets ended, by reason",
                "reason",
                End::REASONS.into_iter().chain(Close::reasons()),
            ),
            resumes: by(
                r,
                "chat_resumes",
                "v1 sessions that began, by outcome",
                "outcome",
                ["up_to_date", "resumed", "gap"],
            ),
            log_reads: by(
                r,
                "chat_log_reads",
                "Reads of the log for sessions that are behind, by outcome",
                "outcome",
                ["ok", "error", "hole"],
            ),
            history_reads: by(
                r,
                "chat_history_reads",
                "Reads of history by HTTP, by outcome",
                "outcome",
                ["ok", "busy", "error"],
            ),
            exports: by(
                r,
                "chat_exports",
                "Exports by HTTP that are over, by outcome",
                "outcome",
                ["ok", "error", "abandoned"],
            ),
            export_pages: counter(r, "chat_export_pages", "Pages of the log read for exports by HTTP"),
            resumes_waiting: gauge(r, "chat_resumes_waiting", "Sessions that wait for a read of the log"),
            sessions_refused: by(
                r,
                "chat_sessions_refused",
                "Presenter sockets refused, by reason",
                "reason",
                [],
            ),
            rooms: gauge(r, "chat_rooms", "Rooms in memory"),
            room_breaker_open: gauge(r, "chat_room_breaker_open", "1 while the room server is left alone"),
            room_breaker_opened: counter(
                r,
                "chat_room_breaker_opened",
                "Times that the room server was left alone",
            ),
            room_refusals: gauge(
                r,
                "chat_room_refusals",
                "Questions in a row that the room server refused to somebody",
            ),
            room_checks: by(
                r,
                "chat_room_checks",
                "Liveness verdicts, by outcome",
                "outcome",
                [
                    "live",
                    "not_live",
                    "refused",
                    "cached",
                    "stale",
                    "error",
                    "timeout",
                    "no_place",
                    "breaker_open",
                ],
            ),
            room_verdicts: by(
                r,
                "chat_room_verdicts",
                "Liveness verdicts that are kept, by verdict",
                "verdict",
                ["live", "not_live", "refused"],
            ),
            reconnect_requests: by(
                r,
                "chat_reconnect_requests",
                "Requests to make a presenter reconnect, by outcome",
                "outcome",
                ["ok", "error"],
            ),
            room_check_seconds: histogram(r, "chat_room_check_seconds", "Room server latency", 0.0005, 14),
            commit_events: histogram(r, "chat_commit_events", "Events a spool commit", 1.0, 12),
            commit_seconds: histogram(r, "chat_commit_seconds", "Spool commit latency", 0.0001, 15),
            commit_failures: counter(
                r,
                "chat_commit_failures",
                "Spool commits that failed, and tries of a spool that fails",
            ),
            store_batch_events: histogram(r, "chat_store_batch_events", "Events a batch to the store", 1.0, 13),
            store_batch_seconds: histogram(r, "chat_store_batch_seconds", "Store batch latency", 0.0005, 15),
            store_retries: counter(r, "chat_store_retries", "Tries of the store that failed"),
            parked: counter(r, "chat_parked", "Events the store will never take"),
            parked_events: gauge(r, "chat_parked_events", "Events that are parked in the spool now"),
            refused_broadcasts: gauge(
                r,
                "chat_refused_broadcasts",
                "Broadcasts in the spool that the store refused as they are",
            ),
            other_servers: gauge(r, "chat_other_servers", "1 while another server writes to this log"),
            spool_was_behind: gauge(
                r,
                "chat_spool_was_behind",
                "1 where the spool was an old copy at the start, and a new epoch began",
            ),
            clock_behind_seconds: gauge(
                r,
                "chat_clock_behind_seconds",
                "How far the clock is behind the newest message",
            ),
            retention_deleted: by(
                r,
                "chat_retention_deleted",
                "Removed because log.retention_days are over, by kind",
                "kind",
                ["event", "broadcast"],
            ),
            retention_sweeps: by(
                r,
                "chat_retention_sweeps",
                "Times that retention went through the log, by outcome",
                "outcome",
                ["ok", "doubt", "error"],
            ),
            spool_events: gauge(r, "chat_spool_events", "Events the store does not have yet"),
            spool_bytes: gauge(r, "chat_spool_bytes", "Size of the spool"),
            spool_max_bytes: gauge(
                r,
                "chat_spool_max_bytes",
                "Size of the spool at which messages are refused now; 0: none",
            ),
            spool_reserve_bytes: gauge(
                r,
                "chat_spool_reserve_bytes",
                "Bytes of the disk kept for when it is full; 0: none, or given up",
            ),
            spool_reserve_missing_bytes: gauge(
                r,
                "chat_spool_reserve_missing_bytes",
                "Bytes of log.reserve_bytes that are not kept; without any the spool hardly grows",
            ),
            forward_refused: counter(r, "chat_forward_refused", "x-forward headers from untrusted peers"),
            answers_cut: counter(
                r,
                "chat_answers_cut",
                "Connections cut because their client did not take an answer",
            ),
            tokens_refused: by(r, "chat_tokens_refused", "Tokens refused, by reason", "reason", []),
            token_cache_hits: counter(r, "chat_token_cache_hits", "Tokens that were known to be good"),
            token_cache_misses: counter(r, "chat_token_cache_misses", "Tokens that had to be verified"),
            token_cache_entries: gauge(r, "chat_token_cache_entries", "Good tokens that are remembered"),
            key_reloads: by(
                r,
                "chat_key_reloads",
                "Times that keys were read again, by outcome",
                "outcome",
                ["ok", "error"],
            ),
            jwks_fetches: by(
                r,
                "chat_jwks_fetches",
                "Fetches of published keys, by outcome",
                "outcome",
                ["ok", "error"],
            ),
            jwks_keys: gauge(r, "chat_jwks_keys", "Published keys in use"),
            actor_restarts: by(
                r,
                "chat_actor_restarts",
                "Panics that were caught, by actor",
                "actor",
                Metrics::ACTORS,
            ),
            queues: Queues::new(r),
        }
    }
}
