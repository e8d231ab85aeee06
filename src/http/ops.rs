//! `/livez`, `/readyz`, `/metrics`: for operations, on `ops.bind` when that is set.

use actix_web::{
    HttpResponse, Resource, Route,
    guard::{Any, Get, Head},
    http::header,
    web,
};
use chatting_actors::clock::system_ms;
use prometheus_client::encoding::text::encode;
use serde_json::json;

use super::{openapi, state::State};

/// Adds the routes.
pub fn routes(config: &mut web::ServiceConfig, state: &State) {
    openapi::routes(config, state);
    config
        .service(page("/livez", |asked| asked.to(livez)))
        .service(page("/readyz", |asked| asked.to(readyz)))
        .service(page("/metrics", |asked| asked.to(metrics)));
}

/// `GET`, and with it `HEAD`, whose answer goes without its body: what probes and proxies ask by.
pub(super) fn get_or_head() -> Route {
    web::route().guard(Any(Get()).or(Head()))
}

/// A path that is there to be read, and for nothing else.
pub(super) fn page(path: &str, answer: impl FnOnce(Route) -> Route) -> Resource {
    web::resource(path)
        .route(answer(get_or_head()))
        .default_service(web::to(async || {
            let allowed = (header::ALLOW, "GET, HEAD");
            HttpResponse::MethodNotAllowed().insert_header(allowed).finish()
        }))
}

/// Whether the process answers at all.
#[utoipa::path(get, path = "/livez", operation_id = "get_liveness", tag = "operations", responses((status = 200, description = "It does", body = str, content_type = "text/plain")))]
pub(super) async fn livez() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body("alive\n")
}

/// Whether messages can be accepted.
#[utoipa::path(
    get, path = "/readyz", operation_id = "get_readiness", tag = "operations",
    responses(
        (status = 200, description = "`ready`, or `degraded` and why", body = serde_json::Value),
        (status = 503, description = "`not_ready` and why", body = serde_json::Value)
    )
)]
pub(super) async fn readyz(state: web::Data<State>) -> HttpResponse {
    let readiness = state.health.readiness();
    let watched = state.health.actors.iter();
    let actors: Vec<_> = watched
        .map(|actor| json!({ "name": actor.name(), "alive": actor.alive(), "restarts": actor.restarts() }))
        .collect();
    let mut response = if readiness.ready {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    response
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "status": readiness.status, "reasons": readiness.reasons, "actors": actors }))
}

/// Everything that is counted, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", operation_id = "get_metrics", tag = "operations",
    responses((status = 200, description = "OpenMetrics text", body = str, content_type = "application/openmetrics-text"))
)]
pub(super) async fn metrics(state: web::Data<State>) -> HttpResponse {
    state.metrics.queues.refresh(&state.gates);
    let remembered = i64::try_from(state.tokens.remembered()).unwrap_or(i64::MAX);
    state.metrics.token_cache_entries.set(remembered);
    let behind_ms = state.health.writer.last_ms().saturating_sub(system_ms()).max(0);
    state.metrics.clock_behind_seconds.set(behind_ms / 1000);
    let mut text = String::new();
    match encode(&mut text, &state.metric_names) {
        Ok(()) => HttpResponse::Ok()
            .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
            .body(text),
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}
