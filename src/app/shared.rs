//! What every handler shares, put together.

use std::sync::{Arc, OnceLock, atomic::AtomicBool};

use chatting_actors::{gate::Gate, metrics::Metrics};
use prometheus_client::registry::Registry as MetricNames;

use super::{Extras, actors::Actors, trust::Trust};
use crate::{
    auth::TokenVerifier,
    http::{
        answers::Answers,
        client::AddressGate,
        state::{Failing, Health, RoomServer, State},
    },
    limits::{FewEach, Rates},
    room::EmbeddedRooms,
    settings::{AuthMode, Settings},
    startup::{self, StartError},
    store::History,
};

/// The state of a server whose actors have started.
pub(super) fn share(
    settings: &Settings,
    extras: Extras,
    (metrics, metric_names): (Metrics, MetricNames),
    trust: Trust,
    history: History,
    rooms: Option<EmbeddedRooms>,
    actors: &Actors,
) -> Result<State, StartError> {
    let sessions = Gate::new("sessions", settings.session.max);
    let figures = Gate::new("figures", settings.figures.at_once);
    let exports = Gate::new("exports", settings.export.max);
    let corrections = Gate::new("corrections", settings.history.corrections);
    let server = &settings.server;
    let answers = Answers::new(server.answers_max_bytes, server.answers_share_bytes);
    let [writer_events, writer_bytes] = actors.writer.gates();
    let gates = [
        actors.registry.gate(),
        actors.checker.gate(),
        actors.checker.half(),
        writer_events,
        writer_bytes,
        &sessions,
        history.gate(),
        &figures,
        &exports,
        &corrections,
        answers.gate(),
    ];
    Ok(State {
        gates: gates.map(Arc::clone).into(),
        health: health(settings, actors, &trust.tokens, &metrics),
        failing: failing(actors),
        http_failures: metrics.restarts("http"),
        registry: actors.registry.clone(),
        session: startup::session_config(settings),
        sessions,
        rates: Arc::new(Rates::new(settings)),
        addresses: AddressGate::new(settings.limits.sessions_per_address),
        trusted: trust.proxies,
        clock: Arc::new(startup::legacy_clock(settings)?),
        tokens: trust.tokens,
        gateway: trust.gateway,
        limits: startup::request_limits(settings),
        origins: settings.cors.origins.clone(),
        legacy: settings.legacy.enabled,
        rooms,
        history,
        figures,
        counting: FewEach::new(1),
        correcting: FewEach::new(1),
        exports,
        exporting: FewEach::new(1),
        corrections,
        answers,
        keep_alive: startup::keep_alive(settings),
        metrics,
        metric_names,
        document: OnceLock::new(),
        demo: extras.demo_page,
    })
}

fn health(settings: &Settings, actors: &Actors, tokens: &Arc<TokenVerifier>, metrics: &Metrics) -> Health {
    Health {
        draining: AtomicBool::new(false),
        actors: actors.watches.clone(),
        writer: actors.writer.clone(),
        store: actors.writer_parts.state.clone(),
        other_servers: metrics.other_servers.clone(),
        room_server: RoomServer::new(metrics, settings.room.breaker_failures),
        tokens: Arc::clone(tokens),
        by_token: settings.auth.mode == AuthMode::Token,
    }
}

fn failing(actors: &Actors) -> Failing {
    Failing {
        checker: actors.checker.clone(),
        writer: actors.writer_parts.clone(),
        log: actors.log.clone(),
        http: AtomicBool::new(false),
    }
}
