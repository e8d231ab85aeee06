//! `/livez`, `/readyz`, `/metrics`: for operations, on `ops.bind` when that is set.

use actix_web::{HttpResponse, http::header, web};
use prometheus_client::encoding::text::encode;
use serde_json::json;

use super::{openapi, state::State};

/// Adds the routes.
pub fn routes(config: &mut web::ServiceConfig, state: &State) {
    openapi::routes(config, state);
    config
        .route("/livez", web::get().to(livez))
        .route("/readyz", web::get().to(readyz))
        .route("/metrics", web::get().to(metrics));
}

/// Whether the process answers at all.
#[utoipa::path(get, path = "/livez", tag = "operations", responses((status = 200, description = "It does", body = str, content_type = "text/plain")))]
pub(super) async fn livez() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body("alive\n")
}

/// Whether messages can be accepted.
#[utoipa::path(
    get, path = "/readyz", tag = "operations",
    responses(
        (status = 200, description = "`ready`, or `degraded` and why", body = serde_json::Value),
        (status = 503, description = "`not_ready` and why", body = serde_json::Value)
    )
)]
pub(super) async fn readyz(state: web::Data<State>) -> HttpResponse {
    let readiness = state.health.readiness();
    let mut response = if readiness.ready {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    response
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "status": readiness.status, "reasons": readiness.reasons }))
}

/// Everything that is counted, for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "OpenMetrics text", body = str, content_type = "application/openmetrics-text"))
)]
pub(super) async fn metrics(state: web::Data<State>) -> HttpResponse {
    state.queues.refresh();
    let mut text = String::new();
    match encode(&mut text, &state.metric_names) {
        Ok(()) => HttpResponse::Ok()
            .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
            .body(text),
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}
