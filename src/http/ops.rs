//! `/livez`, `/readyz`, `/metrics`: for operations, on `ops.bind` when that is set.

use actix_web::{HttpResponse, http::header, web};
use prometheus_client::encoding::text::encode;
use serde_json::json;

use super::state::State;

/// Adds the routes.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/livez", web::get().to(livez))
        .route("/readyz", web::get().to(readyz))
        .route("/metrics", web::get().to(metrics));
}

async fn livez() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body("alive\n")
}

async fn readyz(state: web::Data<State>) -> HttpResponse {
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

async fn metrics(state: web::Data<State>) -> HttpResponse {
    state.metrics.queues.refresh(&state.gates);
    let mut text = String::new();
    match encode(&mut text, &state.metric_names) {
        Ok(()) => HttpResponse::Ok()
            .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
            .body(text),
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}
