//! From settings to what each part is given, and why a start may fail.

use std::{path::Path, time::Duration};

use actix_web::http::header::HeaderValue;
use chatting_actors::{
    bucket::Rate, checker::CheckerConfig, idempotency::KeyConfig, registry::RegistryConfig, seams::StoreError,
    session::SessionConfig, supervise::Pauses, wire::legacy::Clock, writer::WriterConfig,
};

use crate::{
    auth::{
        ClaimNames, GatewaySecrets, GatewaySettings, Key, Net, SigningKey, TokenRules,
        jwks::{RefreshSettings, Source, SourceSettings},
        keys_of_settings, secret_of_settings,
    },
    http::{lines::Patience, state::Limits, stats::FiguresLimits},
    room::{EmbeddedRooms, embedded, http::HttpRoomSettings},
    settings::{Algorithm, Auth, AuthMode, Durability as DurabilitySetting, LogBackend, OnError, RoomMode, Settings},
    store::{
        Durability, MongoStore, ServerBeat, SpoolSettings, SqliteSpool, figures::PeakRule, mongo::MongoSettings,
        spool::OpenError,
    },
};

/// How long a stop waits for a healthy store, at most.
pub const STORE_COURTESY: Duration = Duration::from_secs(2);

/// Connections to MongoDB beyond those of reads: events, broadcasts, retention, the heartbeat, and some rooms that ask for their last
/// number at once.
const OTHER_CONNECTIONS: usize = 8;

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
    /// A port is not to be had. Exit code 69.
    #[error("{key} {address}: {error}")]
    Port {
        /// The setting.
        key: &'static str,
        /// What it says.
        address: String,
        /// Why not.
        error: std::io::Error,
    },
    /// A file or a store is not to be had. Exit code 69.
    #[error("{0}")]
    Unavailable(String),
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Backend { .. } => Self::Config(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

/// The keys that the settings have; a start without any is refused, and one with a bad one. Reads their files.
pub fn keys(settings: &Settings) -> Result<Vec<Key>, StartError> {
    keys_of_settings(&settings.auth).map_err(StartError::Config)
}

/// The keys of settings that are read again, and the gateway's secrets, for a server that was started with this `[auth]`. As [`keys`],
/// but refused where the settings name another `auth.jwks_url`, or none: what fetches published keys is made at a start, so the server
/// would go on by the place before, or have no key at all. And where the gateway that it has would need a secret from now on, or none
/// any more, of which a start tells.
pub fn keys_again(settings: &Settings, started_with: &Auth) -> Result<(Vec<Key>, GatewaySecrets), StartError> {
    let auth = &settings.auth;
    let why = if auth.jwks_url != started_with.jwks_url {
        "auth.jwks_url is not what the server was started with; a change of it needs a restart"
    } else if started_with.mode == AuthMode::Gateway && auth.has_gateway_secret() != started_with.has_gateway_secret() {
        "auth.gateway_secret was set when the server started, or was not; to begin with one, or to do without, needs a restart"
    } else {
        return Ok((keys(settings)?, gateway_secrets(auth, started_with.mode)?));
    };
    Err(StartError::Config(why.into()))
}

/// What a gateway must tell; nothing is read where there is none.
fn gateway_secrets(auth: &Auth, mode: AuthMode) -> Result<GatewaySecrets, StartError> {
    match mode {
        AuthMode::Token => Ok(GatewaySecrets::default()),
        AuthMode::Gateway => GatewaySecrets::of_settings(auth).map_err(StartError::Config),
    }
}

/// The secret that HS256 tokens are signed with.
pub fn signing_key(settings: &Settings) -> Result<SigningKey, StartError> {
    let secret = secret_of_settings(&settings.auth).map_err(StartError::Config)?;
    Ok(SigningKey::secret(&secret))
}

/// What must hold of the keys before a start, beyond what each key of the settings must be by itself.
pub fn check_keys(settings: &Settings) -> Result<(), StartError> {
    keys(settings)?;
    jwks_source(settings)?;
    Ok(())
}

/// Whether there are keys to use in the file that `auth.jwks_url` names, where it names one. A start finds out when it fetches
/// them, which is before it opens anything, and no longer than `auth.jwks_timeout_ms`.
pub fn check_published_file(settings: &Settings) -> Result<(), StartError> {
    let Some(source) = jwks_source(settings)? else {
        return Ok(());
    };
    let checked = source.check_file();
    checked.map_err(|error| StartError::Config(format!("{source}: {error}")))
}

/// Whatever of the settings shows to be wrong only when it is used, without opening a port, the spool or a store. A start
/// does this first.
pub fn check(settings: &Settings) -> Result<(), StartError> {
    check_keys(settings)?;
    gateway_settings(settings)?;
    trusted_proxies(settings)?;
    legacy_clock(settings)?;
    if settings.log.backend == LogBackend::Mongodb {
        MongoStore::check_uri(settings.mongodb.uri.expose()).map_err(|error| bad_uri(&error))?;
    }
    open_rooms(settings)?;
    Ok(())
}

/// What is live, where this server keeps that itself (`room.mode = "embedded"`): in a file beside the spool.
pub(crate) fn open_rooms(settings: &Settings) -> Result<Option<EmbeddedRooms>, StartError> {
    match settings.room.mode {
        RoomMode::Http => Ok(None),
        RoomMode::Embedded => {
            let rooms = EmbeddedRooms::open(&embedded::file_of(Path::new(&settings.log.path)));
            rooms.map(Some).map_err(StartError::Unavailable)
        }
    }
}

/// The wall clock of the legacy dialect.
pub(crate) fn legacy_clock(settings: &Settings) -> Result<Clock, StartError> {
    Clock::new(&settings.legacy.zone).map_err(StartError::Config)
}

/// What tokens must be, by the settings.
pub fn token_rules(settings: &Settings) -> TokenRules {
    let auth = &settings.auth;
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    TokenRules {
        leeway_seconds: auth.leeway_seconds,
        issuer: given(&auth.issuer),
        audience: given(&auth.audience),
        names: ClaimNames {
            user: auth.claim_user.clone(),
            nickname: auth.claim_nickname.clone(),
            role: auth.claim_role.clone(),
            rooms: auth.claim_rooms.clone(),
        },
        max_token_bytes: auth.max_token_bytes,
        published: (!auth.jwks_url.is_empty()).then(|| jwks_algorithms(settings)),
    }
}

fn jwks_algorithms(settings: &Settings) -> Vec<Algorithm> {
    let names = settings.auth.jwks_algorithms.iter();
    names.filter_map(|name| Algorithm::parse(name)).collect()
}

/// Where published keys are, when they are.
pub(crate) fn jwks_source(settings: &Settings) -> Result<Option<Source>, StartError> {
    let auth = &settings.auth;
    if auth.jwks_url.is_empty() {
        return Ok(None);
    }
    let source = Source::new(SourceSettings {
        url: auth.jwks_url.clone(),
        ca_file: auth.jwks_ca_file.clone(),
        algorithms: jwks_algorithms(settings),
        max_bytes: auth.jwks_max_bytes,
        timeout: Duration::from_millis(auth.jwks_timeout_ms),
    });
    source.map(Some).map_err(StartError::Config)
}

pub(crate) fn refresh_settings(settings: &Settings) -> RefreshSettings {
    let auth = &settings.auth;
    RefreshSettings {
        every: Duration::from_secs(auth.jwks_refresh_seconds),
        pause: Duration::from_secs(auth.jwks_min_refresh_seconds),
        stale: (auth.jwks_stale_seconds > 0).then(|| Duration::from_secs(auth.jwks_stale_seconds)),
        timeout: Duration::from_millis(auth.jwks_timeout_ms),
    }
}

pub(crate) fn gateway_settings(settings: &Settings) -> Result<GatewaySettings, StartError> {
    let auth = &settings.auth;
    GatewaySettings::new(
        &auth.trusted_proxies,
        gateway_secrets(auth, auth.mode)?,
        &auth.gateway_role_header,
        &auth.gateway_rooms_header,
    )
    .map_err(StartError::Config)
}

/// The peers whose word on whom they stand for counts.
pub(crate) fn trusted_proxies(settings: &Settings) -> Result<Vec<Net>, StartError> {
    let nets = settings.auth.trusted_proxies.iter().map(|net| net.parse());
    nets.collect::<Result<_, _>>()
        .map_err(|error: String| StartError::Config(format!("auth.trusted_proxies: {error}")))
}

/// How long a client is told that an idle connection is kept: some seconds less than it is, so that a request which is
/// under way meanwhile still finds it.
pub(crate) fn keep_alive(settings: &Settings) -> Option<HeaderValue> {
    let seconds = settings.server.keep_alive_seconds;
    let told = HeaderValue::from_str(&format!("timeout={}", seconds.saturating_sub(5).max(1))).ok();
    told.filter(|_| seconds > 0)
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
    // Whoever may ask has one at once: none waits behind others for what it has a turn for.
    let asking = [
        settings.log.readers,
        settings.session.resume_reads,
        settings.figures.at_once,
        settings.history.corrections,
        OTHER_CONNECTIONS,
    ];
    MongoSettings {
        uri: mongodb.uri.expose().to_owned(),
        database: mongodb.database.clone(),
        connect_timeout: Duration::from_millis(mongodb.connect_timeout_ms),
        write_timeout: Duration::from_millis(mongodb.write_timeout_ms),
        connections: u32::try_from(asking.iter().sum::<usize>()).unwrap_or(u32::MAX),
    }
}

/// What is wrong with `mongodb.uri`.
pub(crate) fn bad_uri(error: &StoreError) -> StartError {
    StartError::Config(format!("mongodb.uri: {error}"))
}

/// The log in MongoDB.
pub(crate) async fn mongo_store(settings: &Settings) -> Result<MongoStore, StartError> {
    let store = MongoStore::new(&mongo_settings(settings)).await;
    store.map_err(|error| bad_uri(&error))
}

/// The place in a log in MongoDB of whoever has this spool.
pub(crate) fn place_in(settings: &Settings, store: &MongoStore, spool: &SqliteSpool) -> ServerBeat {
    let interval = Duration::from_secs(settings.mongodb.heartbeat_seconds);
    ServerBeat::new(store, spool.server(), interval)
}

pub(crate) fn writer_config(settings: &Settings) -> WriterConfig {
    let log = &settings.log;
    let (batch_max, batch_enough) = match log.backend {
        LogBackend::Mongodb => (log.batch_max, log.batch_enough),
        // The more of a room and a user are written together, the fewer pages are written; commits are let pass anyway.
        LogBackend::Sqlite => (log.sqlite_batch_max, log.sqlite_batch_max),
    };
    WriterConfig {
        commit_max: log.commit_max,
        commit_interval: Duration::from_micros(log.commit_interval_us),
        commit_enough: log.commit_enough,
        batch_max,
        batch_enough,
        linger: Duration::from_millis(log.linger_ms),
        retry_min: Duration::from_millis(log.retry_min_ms),
        retry_max: Duration::from_millis(log.retry_max_ms),
        backlog_max: log.backlog_max,
        answer_first: log.durability == DurabilitySetting::Memory,
        adopt_every: match log.backend {
            // Not so often that records wait for the question.
            LogBackend::Mongodb => Some(Duration::from_secs(settings.broadcast.resume_seconds.max(10))),
            LogBackend::Sqlite => None,
        },
    }
}

/// What one request may bring, and have read for it.
pub(crate) fn request_limits(settings: &Settings) -> Limits {
    let (server, message) = (&settings.server, &settings.message);
    let (history, export) = (&settings.history, &settings.export);
    Limits {
        body_bytes: server.max_body_bytes,
        body_time: Duration::from_secs(server.body_seconds),
        text_chars: message.max_chars,
        nickname_chars: message.nickname_max_chars,
        page_default: history.page_default,
        page_max: history.page_max,
        page_bytes: history.page_bytes,
        scan_limit: history.scan_limit,
        figures: figures_limits(settings),
        export_rows: export.page_rows,
        cue_ms: export.cue_ms.cast_signed(),
        export_patience: Duration::from_secs(export.busy_wait_seconds),
        staff_patience: Duration::from_secs(history.staff_wait_seconds),
    }
}

fn figures_limits(settings: &Settings) -> FiguresLimits {
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

fn key_window_ms(settings: &Settings) -> i64 {
    i64::try_from(settings.idempotency.window_seconds.saturating_mul(1000)).unwrap_or(i64::MAX)
}

pub(crate) fn checker_config(settings: &Settings) -> CheckerConfig {
    let room = &settings.room;
    CheckerConfig {
        timeout: Duration::from_millis(room.timeout_ms),
        live_ttl: Duration::from_millis(room.live_ttl_ms),
        not_live_ttl: Duration::from_millis(room.not_live_ttl_ms),
        cache_max: room.cache_max,
        not_live_cache_max: room.not_live_cache_max,
        max_lookups: room.max_lookups,
        max_reconnects: room.max_reconnects,
        breaker_failures: room.breaker_failures,
        breaker_open: Duration::from_millis(room.breaker_open_ms),
        stale: (room.on_error == OnError::LastKnown).then(|| Duration::from_secs(room.stale_seconds)),
    }
}

pub(crate) fn pauses(settings: &Settings) -> Pauses {
    let supervisor = &settings.actors.supervisor;
    Pauses {
        min: Duration::from_millis(supervisor.restart_min_ms),
        max: Duration::from_millis(supervisor.restart_max_ms),
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
        max_reconnects: room.max_reconnects,
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
        start: Duration::from_secs(settings.legacy.start_seconds),
        detached: Duration::from_secs(session.detached_seconds),
        not_live: Duration::from_secs(session.not_live_seconds),
        grace: Duration::from_secs(session.grace_seconds),
        reconnect_interval: room
            .asks_to_reconnect()
            .then(|| Duration::from_secs(session.reconnect_request_seconds)),
        resume_max: session.resume_max,
        resume_reads: session.resume_reads,
        resume_wait: Duration::from_secs(session.resume_wait_seconds),
        checkpoint: Duration::from_millis(session.checkpoint_ms),
        broadcast_resume: Duration::from_secs(settings.broadcast.resume_seconds),
        broadcast_unknown: Duration::from_secs(settings.broadcast.unknown_seconds),
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
        stall: Duration::from_secs(session.stall_seconds),
        close_linger: CLOSE_LINGER,
    }
}

/// How long clients may take, between requests and over an answer.
pub(crate) fn patience(settings: &Settings) -> Patience {
    let server = &settings.server;
    Patience {
        idle: Duration::from_secs(server.keep_alive_seconds + server.client_request_seconds),
        answer: Duration::from_secs(server.answer_seconds),
        answer_bytes_per_second: server.answer_bytes_per_second,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;

    #[test]
    fn a_mongodb_uri_without_its_at_sign_is_refused_without_the_password_that_seems_to_be_a_port() {
        let mut settings = Settings::default();
        settings.auth.hs256_secret = Secret::new("k".repeat(32));
        settings.log.backend = LogBackend::Mongodb;
        settings.mongodb.uri = Secret::new("mongodb://kim:hunter2db:27017");
        let error = check(&settings).unwrap_err();
        assert!(matches!(error, StartError::Config(_)), "{error}");
        assert!(
            error
                .to_string()
                .starts_with("mongodb.uri: it cannot be read; allowed: "),
            "{error}"
        );
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn whoever_has_a_turn_to_ask_mongodb_has_a_connection_for_it() {
        let mut settings = Settings::default();
        // As docs/TUNING.md says.
        assert_eq!(mongo_settings(&settings).connections, 28);
        settings.log.readers = 100;
        assert_eq!(mongo_settings(&settings).connections, 120);
    }
}
