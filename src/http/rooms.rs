//! The embedded room server's routes, as the legacy room server has them: `/room/live/check` and `search-all` for
//! anyone, as there; `start` and `stop` for an operator's token.

use actix_web::{HttpRequest, HttpResponse, Route, web};
use chatting_actors::{
    clock::system_ms,
    types::{PresenterIdx, Role},
    wire::v1::timestamp,
};
use serde_json::{Value, json};

use super::{
    identify::by_token,
    openapi::{Asking, OneMethod, WithBody},
    state::State,
    v1::{only, read_body},
};
use crate::{
    error::{ApiError, Code, Lang},
    room::embedded::{EmbeddedRooms, LiveRoom},
};

/// Adds the routes of these rooms.
pub fn routes(config: &mut web::ServiceConfig, rooms: EmbeddedRooms) {
    let posted = |path: &str, route: Route| web::resource(path).route(route).default_service(web::to(only_post));
    config
        .app_data(web::Data::new(rooms))
        .service(posted("/room/live/check", web::post().to(check)))
        .service(posted("/room/live/search-all", web::post().to(search_all)))
        .service(posted("/room/live/start", web::post().to(start)))
        .service(posted("/room/live/stop", web::post().to(stop)));
}

async fn only_post(request: HttpRequest) -> HttpResponse {
    only(&request, "POST")
}

fn answer(message: &str, data: Value) -> HttpResponse {
    let timestamp = timestamp(system_ms());
    HttpResponse::Ok().json(json!({ "timestamp": timestamp, "message": message, "data": data }))
}

fn room(presenter: PresenterIdx, room: LiveRoom) -> Value {
    json!({
        "presenterIdx": presenter.get(),
        "roomIdx": room.room_idx,
        "startedAt": timestamp(room.started_at_ms),
        "alive": true,
    })
}

fn presenter(body: &[u8]) -> Result<PresenterIdx, ApiError> {
    let bad = || ApiError::new(Code::BadRequest).with_detail("the body is {\"presenterIdx\":\"12\"}");
    let body: Value = serde_json::from_slice(body).map_err(|_| bad())?;
    let number = match body.get("presenterIdx") {
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(other) => other.as_i64(),
        None => None,
    };
    number.and_then(PresenterIdx::new).ok_or_else(bad)
}

async fn operator(request: &HttpRequest, state: &State) -> Result<(), ApiError> {
    let claims = by_token(request, state).await?;
    match claims.role {
        Role::Operator => Ok(()),
        _ => Err(ApiError::new(Code::Forbidden).with_detail("an operator's token is needed")),
    }
}

fn respond(request: &HttpRequest, result: Result<HttpResponse, ApiError>) -> HttpResponse {
    result.unwrap_or_else(|error| error.response(Lang::from_headers(request.headers())))
}

fn unsaved(error: &std::io::Error) -> ApiError {
    log::error!("embedded rooms cannot be saved: {error}");
    ApiError::new(Code::Internal)
}

/// Is this presenter live?
#[utoipa::path(
    post, path = "/room/live/check", operation_id = "check_embedded_broadcast", tag = "embedded room server",
    request_body(content = serde_json::Value, description = "`{\"presenterIdx\":\"12\"}`"),
    responses((status = 200, description = "`data.alive` says so", body = serde_json::Value), OneMethod, WithBody)
)]
pub(super) async fn check(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<State>,
    rooms: web::Data<EmbeddedRooms>,
) -> HttpResponse {
    let result = async {
        let presenter = presenter(&read_body(&request, payload, &state.limits).await?)?;
        Ok(match rooms.get(presenter) {
            Some(live) => answer("check", room(presenter, live)),
            None => answer("check", json!({ "alive": false })),
        })
    };
    respond(&request, result.await)
}

/// All live rooms.
#[utoipa::path(
    post, path = "/room/live/search-all", operation_id = "list_embedded_broadcasts", tag = "embedded room server",
    responses((status = 200, description = "`data` lists them", body = serde_json::Value), OneMethod)
)]
pub(super) async fn search_all(rooms: web::Data<EmbeddedRooms>) -> HttpResponse {
    let all = rooms.all();
    let rooms: Vec<Value> = all.into_iter().map(|(presenter, live)| room(presenter, live)).collect();
    answer("search-all", json!(rooms))
}

/// A presenter goes live; for operators.
#[utoipa::path(
    post, path = "/room/live/start", operation_id = "start_embedded_broadcast", tag = "embedded room server",
    request_body(content = serde_json::Value, description = "`{\"presenterIdx\":\"12\"}`"),
    responses((status = 200, description = "Live", body = serde_json::Value), Asking, WithBody)
)]
pub(super) async fn start(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<State>,
    rooms: web::Data<EmbeddedRooms>,
) -> HttpResponse {
    let result = async {
        operator(&request, &state).await?;
        let presenter = presenter(&read_body(&request, payload, &state.limits).await?)?;
        let live = rooms.start(presenter).await.map_err(|error| unsaved(&error))?;
        state.failing.if_planned();
        Ok(answer("start", room(presenter, live)))
    };
    respond(&request, result.await)
}

/// A presenter's broadcast ends; for operators.
#[utoipa::path(
    post, path = "/room/live/stop", operation_id = "stop_embedded_broadcast", tag = "embedded room server",
    request_body(content = serde_json::Value, description = "`{\"presenterIdx\":\"12\"}`"),
    responses((status = 200, description = "Not live", body = serde_json::Value), Asking, WithBody)
)]
pub(super) async fn stop(
    request: HttpRequest,
    payload: web::Payload,
    state: web::Data<State>,
    rooms: web::Data<EmbeddedRooms>,
) -> HttpResponse {
    let result = async {
        operator(&request, &state).await?;
        let presenter = presenter(&read_body(&request, payload, &state.limits).await?)?;
        let stopped = rooms.stop(presenter).await.map_err(|error| unsaved(&error))?;
        Ok(answer("stop", json!({ "alive": false, "stopped": stopped.is_some() })))
    };
    respond(&request, result.await)
}
