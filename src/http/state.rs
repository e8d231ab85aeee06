//! What every handler shares: handles on the actors, and the settings that a request needs.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix_web::http::header::HeaderValue;
use bytes::Bytes;
use chatting_actors::{
    checker::CheckerHandle,
    gate::Gate,
    metrics::Metrics,
    registry::{ReadLog, RegistryHandle},
    session::SessionConfig,
    supervise::Watch,
    types::{PresenterIdx, Role},
    wire::legacy::Clock,
    writer::{StoreState, WriterHandle, WriterParts},
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry as MetricNames,
};

use super::{
    answers::{Answers, Asker},
    client::AddressGate,
    stats::FiguresLimits,
};
use crate::{
    auth::{Claims, Gateway, Net, TokenVerifier},
    error::{ApiError, Code, DEFAULT_RETRY_AFTER_SECONDS},
    limits::{AtIt, FewEach, Rates},
    room::EmbeddedRooms,
    store::History,
};

/// What one request may bring (rule 20), and what is read and waited for on its behalf.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `server.max_body_bytes`
    pub body_bytes: usize,
    /// `server.body_seconds`
    pub body_time: Duration,
    /// `message.max_chars`
    pub text_chars: usize,
    /// `message.nickname_max_chars`
    pub nickname_chars: usize,
    /// `history.page_default`
    pub page_default: usize,
    /// `history.page_max`
    pub page_max: usize,
    /// `history.page_bytes`
    pub page_bytes: usize,
    /// `history.scan_limit`
    pub scan_limit: usize,
    /// `[figures]`
    pub figures: FiguresLimits,
    /// `export.page_rows`
    pub export_rows: usize,
    /// `export.cue_ms`
    pub cue_ms: i64,
    /// `export.busy_wait_seconds`
    pub export_patience: Duration,
    /// `history.staff_wait_seconds`
    pub staff_patience: Duration,
}

/// Handles on the actors, what bounds how much and how often, and what the settings say of a request. One a process,
/// shared by all workers.
pub struct State {
    /// The registry.
    pub registry: RegistryHandle,
    /// Settings of new sessions.
    pub session: SessionConfig,
    /// `session.max`
    pub sessions: Arc<Gate>,
    /// How often anyone may do anything.
    pub rates: Arc<Rates>,
    /// How many sessions an address may hold.
    pub addresses: AddressGate,
    /// `auth.trusted_proxies`: peers whose word on a client's address counts.
    pub trusted: Vec<Net>,
    /// The legacy dialect's wall clock.
    pub clock: Arc<Clock>,
    /// Reads tokens.
    pub tokens: Arc<TokenVerifier>,
    /// `auth.mode = "gateway"`: believes x-forward headers of these peers.
    pub gateway: Option<Gateway>,
    /// What one request may bring, and have read for it.
    pub limits: Limits,
    /// `cors.origins`
    pub origins: Vec<String>,
    /// `legacy.enabled`
    pub legacy: bool,
    /// `room.mode = "embedded"`
    pub rooms: Option<EmbeddedRooms>,
    /// Reads what was said.
    pub history: History,
    /// `figures.at_once`
    pub figures: Arc<Gate>,
    /// Who has figures counted.
    pub counting: FewEach,
    /// Who corrects broadcasts just now.
    pub correcting: FewEach,
    /// `export.max`
    pub exports: Arc<Gate>,
    /// Who has a file made.
    pub exporting: FewEach,
    /// `history.corrections`
    pub corrections: Arc<Gate>,
    /// `server.answers_max_bytes`
    pub answers: Answers,
    /// What a client that asks is told of `server.keep_alive_seconds`; `None` where no connection is kept.
    pub keep_alive: Option<HeaderValue>,
    /// What the actors count.
    pub metrics: Metrics,
    /// Handlers that panicked.
    pub http_failures: Counter,
    /// The names of what is counted.
    pub metric_names: MetricNames,
    /// What hands out permits; read when it is scraped.
    pub gates: Vec<Arc<Gate>>,
    /// Whether all is well.
    pub health: Health,
    /// `/openapi.json`, once it was made: the first worker makes it for all.
    pub document: OnceLock<Bytes>,
    /// The page of `demo`, with its tokens; `None` otherwise.
    pub demo: Option<String>,
    /// For tests of supervision.
    pub failing: Failing,
}

impl State {
    /// What reads for a caller, in whatever room. Moderators of all rooms and operators wait for their turn, and come before all others,
    /// who never wait, and have no more than a share of the turns each. A presenter reads as a viewer does, and so does a moderator of
    /// some rooms or of none: everybody is the presenter of the room with their own number, and could keep viewers out of all rooms.
    pub fn history_for(&self, caller: &Claims) -> History {
        match Asker::of(caller) {
            Asker::Staff => self.history_of_staff(),
            _ => self.history.shared(caller.user_idx),
        }
    }

    /// What reads for a caller in this room. Its own moderators wait for their turn as well, with no more than their share.
    pub fn history_in(&self, caller: &Claims, room: PresenterIdx) -> History {
        let history = self.history_for(caller);
        match caller.role_in(room) {
            Role::Moderator => history.patient(self.limits.staff_patience),
            _ => history,
        }
    }

    /// One at a time of what there are few places for, for whoever is neither a moderator of all rooms nor an operator: everybody is the
    /// presenter of the room with their own number, and could keep all others out. `what`, in English, is what is refused otherwise.
    pub fn one_at_a_time(&self, caller: &Claims, each: &FewEach, what: &str) -> Result<Option<AtIt>, ApiError> {
        if Asker::of(caller) == Asker::Staff {
            return Ok(None);
        }
        each.begin(caller.user_idx).map(Some).ok_or_else(|| {
            self.metrics.refuse(Code::RateLimited.as_str());
            ApiError::new(Code::RateLimited)
                .with_detail(format!("this user has {what} under way: one at a time"))
                .with_rate_limit(1, DEFAULT_RETRY_AFTER_SECONDS)
        })
    }

    /// What reads for a deletion, which waits for its turn whoever of the room's staff it is of: were viewers to fill every place, nobody
    /// could delete what they say. Who is neither a moderator of all rooms nor an operator has no more than a share of the turns here, too:
    /// else one user could keep all others waiting behind what is asked for in the room with their own number.
    pub fn history_for_deletion(&self, caller: &Claims) -> History {
        self.history_for(caller).patient(self.limits.staff_patience)
    }

    /// What reads for moderators of all rooms and operators, and for an export, of which anybody else has one at a time.
    pub fn history_of_staff(&self) -> History {
        self.history.patient(self.limits.staff_patience)
    }
}

/// Planned failure points, for tests that have the server in their own process. Nothing that comes from outside reaches them.
pub struct Failing {
    /// The checker's.
    pub checker: CheckerHandle,
    /// The writer's two halves.
    pub writer: WriterParts,
    /// The reader's.
    pub log: ReadLog,
    /// The next handler panics, between the outcome of its message and its answer.
    pub http: AtomicBool,
}

impl Failing {
    /// Panics, once, where [`Self::http`] says so.
    pub(super) fn if_planned(&self) {
        // Only looked at where nothing is planned: all workers read this line of memory with each message.
        assert!(
            !(self.http.load(Ordering::Relaxed) && self.http.swap(false, Ordering::Relaxed)),
            "planned"
        );
    }
}

/// What `/readyz` looks at.
pub struct Health {
    /// Set when the server is about to stop.
    pub draining: AtomicBool,
    /// Each supervised actor.
    pub actors: Vec<Watch>,
    /// Knows whether the spool takes events.
    pub writer: WriterHandle,
    /// Knows whether the store does.
    pub store: StoreState,
    /// Knows whether another server writes to the same log.
    pub other_servers: Gauge,
    /// Knows how the room server does.
    pub room_server: RoomServer,
    /// Knows whether there is a key to verify tokens with.
    pub tokens: Arc<TokenVerifier>,
    /// `auth.mode = "token"`: without a key nobody can send.
    pub by_token: bool,
}

/// How the room server does.
pub struct RoomServer {
    breaker_open: Gauge,
    refusals: Gauge,
    /// `room.breaker_failures`; 0 for never.
    enough: i64,
}

impl RoomServer {
    /// As the checker tells it.
    pub fn new(metrics: &Metrics, breaker_failures: u32) -> Self {
        Self {
            breaker_open: metrics.room_breaker_open.clone(),
            refusals: metrics.room_refusals.clone(),
            enough: i64::from(breaker_failures),
        }
    }

    fn trouble(&self) -> Option<&'static str> {
        if self.breaker_open.get() > 0 {
            Some("the room server does not answer; rooms that are known to be live go on for a while")
        } else if self.enough > 0 && self.refusals.get() >= self.enough {
            Some("the room server says of nobody whether they are live; see room.base_url and its own log")
        } else {
            None
        }
    }
}

/// What `/readyz` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Whether messages can be accepted.
    pub ready: bool,
    /// `ready`, `degraded` or `not_ready`.
    pub status: &'static str,
    /// Why not, or why only just.
    pub reasons: Vec<String>,
}

impl Health {
    /// Whether the server is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// 503 only when an actor is gone, the server drains, or no message can be accepted; a store that is away while the
    /// spool has room is no more than degraded.
    pub fn readiness(&self) -> Readiness {
        let mut reasons = Vec::new();
        if self.is_draining() {
            reasons.push("the server is about to stop".to_owned());
        }
        for actor in &self.actors {
            if !actor.steady() {
                let how = if actor.alive() { "keeps failing" } else { "is gone" };
                reasons.push(format!("the actor {} {how}", actor.name()));
            }
        }
        if !self.writer.writable() {
            reasons.push("the spool takes no events".to_owned());
        }
        let trouble = self.tokens.trouble();
        let locked_out = trouble.as_ref().is_some_and(|trouble| trouble.no_key);
        if locked_out && self.by_token {
            reasons.push("there is no key to verify tokens with".to_owned());
        }
        let ready = reasons.is_empty();
        if let Some(trouble) = trouble {
            reasons.push(format!("published keys cannot be fetched: {}", trouble.error));
        }
        reasons.extend(self.room_server.trouble().map(str::to_owned));
        if let Some(error) = self.store.error() {
            reasons.push(format!("the store takes no events, they stay in the spool: {error}"));
        }
        if self.other_servers.get() > 0 {
            reasons.push("another server writes to this log: stop one of them".to_owned());
        }
        Readiness {
            ready,
            status: match (ready, reasons.is_empty()) {
                (true, true) => "ready",
                (true, false) => "degraded",
                (false, _) => "not_ready",
            },
            reasons,
        }
    }
}
