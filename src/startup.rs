//! From settings to what each part is given, and why a start may fail.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use chatting_actors::{
    bucket::Rate, checker::CheckerConfig, idempotency::KeyConfig, registry::RegistryConfig, session::SessionConfig,
    writer::WriterConfig,
};

use crate::{
    auth::{GatewaySettings, Net, TokenSettings},
    http::stats::FiguresLimits,
    room::http::HttpRoomSettings,
    settings::{Durability as DurabilitySetting, LogBackend, OnError, Settings},
    store::{Durability, SpoolSettings, figures::PeakRule, mongo::MongoSettings, spool::OpenError},
};

/// How long a stop waits for a healthy store, at most.
pub const STORE_COURTESY: Duration = Duration::from_secs(2);

/// How long a start waits for the actors to find each other.
pub const READY_PATIENCE: Duration = Duration::from_secs(60);

/// How long a closing WebSocket may take to say goodbye.
const CLOSE_LINGER: Duration = Duration::from_secs(1);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is wrong; the text names it. Exit code 64.
    #[error("{0}")]
    Config(String),
    /// A port, a file or a store is not to be had. Exit code 69.
    #[error("{0}")]
    Unavailable(String),
}

impl StartError {
    /// The process's exit code (sysexits.h).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 64,
            Self::Unavailable(_) => 69,
        }
    }
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// The key that tokens are signed with; a start without one is refused.
pub fn signing_key(settings: &Settings) -> Result<Vec<u8>, StartError> {
    let auth = &settings.auth;
    let key = if auth.hs256_secret_base64.is_set() {
        let text = auth.hs256_secret_base64.expose();
        STANDARD
            .decode(text)
            .map_err(|_| StartError::Config("auth.hs256_secret_base64 is not base64".into()))?
    } else {
        auth.hs256_secret.expose().as_bytes().to_vec()
    };
    match key.len() {
        0 => Err(StartError::Config(
            "no key to verify tokens with: set auth.hs256_secret or auth.hs256_secret_base64 \
             (environment CHAT__AUTH__HS256_SECRET), at least 32 bytes"
                .into(),
        )),
        1..32 => Err(StartError::Config("the HS256 key has fewer than 32 bytes".into())),
        _ => Ok(key),
    }
}

pub(crate) fn token_settings(settings: &Settings) -> Result<TokenSettings, StartError> {
    let auth = &settings.auth;
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    Ok(TokenSettings {
        key: signing_key(settings)?,
        leeway_seconds: auth.leeway_seconds,
        issuer: given(&auth.issuer),
        audience: given(&auth.audience),
        claim_user: auth.claim_user.clone(),
        claim_nickname: auth.claim_nickname.clone(),
        claim_role: auth.claim_role.clone(),
        claim_rooms: auth.claim_rooms.clone(),
        max_token_bytes: auth.max_token_bytes,
    })
}

pub(crate) fn gateway_settings(settings: &Settings) -> Result<GatewaySettings, StartError> {
    let auth = &settings.auth;
    GatewaySettings::new(
        &auth.trusted_proxies,
        auth.gateway_secret.expose(),
        &auth.gateway_role_header,
    )
    .map_err(StartError::Config)
}

/// The peers whose word on whom they stand for counts.
pub(crate) fn trusted_proxies(settings: &Settings) -> Result<Vec<Net>, StartError> {
    let nets = settings.auth.trusted_proxies.iter().map(|net| net.parse());
    nets.collect::<Result<_, _>>()
        .map_err(|error: String| StartError::Config(format!("auth.trusted_proxies: {error}")))
}

pub(crate) fn durability(settings: &Settings) -> Durability {
    match settings.log.durability {
        DurabilitySetting::Disk => Durability::Disk,
        DurabilitySetting::Os => Durability::Os,
        DurabilitySetting::Memory => Durability::Memory,
    }
}

pub(crate) fn spool_settings(settings: &Settings) -> SpoolSettings {
    let log = &settings.log;
    SpoolSettings {
        path: log.path.clone().into(),
        durability: durability(settings),
        max_bytes: (log.backend == LogBackend::Mongodb).then_some(log.spool_max_bytes),
        embedded: log.backend == LogBackend::Sqlite,
    }
}

pub(crate) fn mongo_settings(settings: &Settings) -> MongoSettings {
    let mongodb = &settings.mongodb;
    MongoSettings {
        uri: mongodb.uri.expose().to_owned(),
        database: mongodb.database.clone(),
        connect_timeout: Duration::from_millis(mongodb.connect_timeout_ms),
        write_timeout: Duration::from_millis(mongodb.write_timeout_ms),
    }
}

pub(crate) fn writer_config(settings: &Settings) -> WriterConfig {
    let log = &settings.log;
    WriterConfig {
        commit_max: log.commit_max,
        batch_max: log.batch_max,
        linger: Duration::from_millis(log.linger_ms),
        retry_min: Duration::from_millis(log.retry_min_ms),
        retry_max: Duration::from_millis(log.retry_max_ms),
        backlog_max: log.backlog_max,
        answer_first: log.durability == DurabilitySetting::Memory,
        key_window_ms: key_window_ms(settings),
    }
}

pub(crate) fn figures_limits(settings: &Settings) -> FiguresLimits {
    let figures = &settings.figures;
    FiguresLimits {
        patience: Duration::from_secs(figures.timeout_seconds),
        buckets_max: figures.buckets_max,
        top_default: figures.top_default,
        top_max: figures.top_max,
        peak: PeakRule {
            window: figures.peak_window,
            percent: figures.peak_percent,
        },
    }
}

pub(crate) fn key_window_ms(settings: &Settings) -> i64 {
    i64::try_from(settings.idempotency.window_seconds.saturating_mul(1000)).unwrap_or(i64::MAX)
}

pub(crate) fn checker_config(settings: &Settings) -> CheckerConfig {
    let room = &settings.room;
    CheckerConfig {
        timeout: Duration::from_millis(room.timeout_ms),
        live_ttl: Duration::from_millis(room.live_ttl_ms),
        not_live_ttl: Duration::from_millis(room.not_live_ttl_ms),
        cache_max: room.cache_max,
        max_lookups: room.max_lookups,
        breaker_failures: room.breaker_failures,
        breaker_open: Duration::from_millis(room.breaker_open_ms),
        stale: (room.on_error == OnError::LastKnown).then(|| Duration::from_secs(room.stale_seconds)),
    }
}

pub(crate) fn http_room_settings(settings: &Settings) -> HttpRoomSettings {
    let room = &settings.room;
    HttpRoomSettings {
        base_url: room.base_url.clone(),
        reconnect_url: room.reconnect_url.clone(),
        content_type: room.content_type.clone(),
        timeout: Duration::from_millis(room.timeout_ms),
        max_answer_bytes: room.max_answer_bytes,
        max_lookups: room.max_lookups,
    }
}

pub(crate) fn registry_config(settings: &Settings) -> RegistryConfig {
    let (room, session, limits) = (&settings.room, &settings.session, &settings.limits);
    RegistryConfig {
        room_share: settings.actors.registry.room_share,
        writer_room_share: settings.actors.writer.room_share,
        pending_max: room.pending_max,
        lookups: (limits.lookups_per_minute > 0).then(|| Rate {
            burst: f64::from(limits.lookups_burst),
            per_second: f64::from(limits.lookups_per_minute) / 60.0,
        }),
        tracked: limits.tracked,
        keys: KeyConfig {
            window_ms: key_window_ms(settings),
            max: settings.idempotency.max,
            sender_max: settings.idempotency.sender_max,
        },
        refresh_percent: room.refresh_percent,
        ring_events: room.ring_events,
        ring_bytes: room.ring_bytes,
        sweep: Duration::from_millis(room.sweep_ms),
        credit_events: session.credit_events.min(settings.actors.session.mailbox),
        credit_bytes: session.credit_bytes,
        stall: Duration::from_secs(session.stall_seconds),
        detached: Duration::from_secs(session.detached_seconds),
        not_live: Duration::from_secs(session.not_live_seconds),
        grace: Duration::from_secs(session.grace_seconds),
        reconnect_interval: Duration::from_secs(session.reconnect_request_seconds),
        resume_max: session.resume_max,
        resume_reads: session.resume_reads,
        resume_wait: Duration::from_secs(session.resume_wait_seconds),
        checkpoint: Duration::from_millis(session.checkpoint_ms),
        broadcast_resume: Duration::from_secs(settings.broadcast.resume_seconds),
    }
}

pub(crate) fn session_config(settings: &Settings) -> SessionConfig {
    let session = &settings.session;
    SessionConfig {
        // Credit fills it with deliveries at most; what else the registry says must find a place beside them.
        mailbox: settings.actors.session.mailbox + 8,
        keepalive: Duration::from_secs(session.keepalive_seconds),
        keepalive_missed: session.keepalive_missed,
        max_frame_bytes: session.max_frame_bytes,
        hello: Duration::from_secs(session.hello_seconds),
        close_on_expiry: session.close_on_expiry,
        client_frames_per_second: session.client_frames_per_second,
        close_linger: CLOSE_LINGER,
    }
}
