//! v1 routes: problem+json errors, JSON bodies, nothing lenient.

use actix_web::{HttpRequest, HttpResponse, error::PayloadError, http::header, web};
use chatting_actors::{
    idempotency::Keyed,
    outcome::{Accepted, Outcome, Refusal, Submit},
    types::{ChatMessage, MessageText, PresenterIdx, TextError},
    wire::v1::timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    history::get_messages,
    identify::sender,
    moderation::delete_messages,
    openapi::{Asking, Looking, Sending, WithBody},
    state::State,
};
use crate::{
    error::{ApiError, Code, Lang},
    limits::whole_seconds,
};

/// Adds the routes.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(
        web::resource("/v1/rooms/{presenter_idx}/messages")
            .route(web::post().to(post_message))
            .route(web::get().to(get_messages))
            .route(web::delete().to(delete_messages))
            .default_service(web::to(only_get_post_delete)),
    );
    config.service(
        web::resource("/v1/rooms/{presenter_idx}")
            .route(web::get().to(get_room))
            .default_service(web::to(only_get)),
    );
}

async fn only_get_post_delete(request: HttpRequest) -> HttpResponse {
    only(&request, "GET, POST, DELETE")
}

pub(super) async fn only_get(request: HttpRequest) -> HttpResponse {
    only(&request, "GET")
}

pub(super) fn only(request: &HttpRequest, method: &'static str) -> HttpResponse {
    let mut response = ApiError::new(Code::MethodNotAllowed).response(Lang::from_headers(request.headers()));
    response
        .headers_mut()
        .insert(header::ALLOW, header::HeaderValue::from_static(method));
    response
}

/// The room that a path names.
pub(super) fn room_of(path: &str) -> Result<PresenterIdx, ApiError> {
    path.parse().ok().and_then(PresenterIdx::new).ok_or_else(|| {
        ApiError::new(Code::NotFound).with_detail("a room is named by its presenter's number, 0 to 9223372036854775807")
    })
}

/// What a room looks like now.
#[derive(Serialize, ToSchema)]
pub(super) struct Room {
    presenter_idx: i64,
    /// Whether the room server says so.
    live: bool,
    /// Whether the presenter is connected.
    session: bool,
    /// `null` where the room is not live and nothing is kept of it.
    last_seq: Option<u64>,
    /// How many viewers the presenter's client says it passes messages on to.
    fanned_out: Option<u64>,
    rules: Rules,
}

/// What a message may be.
#[derive(Serialize, ToSchema)]
struct Rules {
    max_chars: usize,
    max_body_bytes: usize,
    nickname_max_chars: usize,
}

/// What a room looks like now.
#[utoipa::path(
    get, path = "/v1/rooms/{presenter_idx}", tag = "rooms",
    params(("presenter_idx" = u64, Path, description = "The presenter's user number, which names the room", maximum = 9223372036854775807u64)),
    responses((status = 200, description = "The room", body = Room), Asking, Looking)
)]
pub(super) async fn get_room(request: HttpRequest, path: web::Path<String>, state: web::Data<State>) -> HttpResponse {
    match look(&request, &path, &state).await {
        Ok(room) => HttpResponse::Ok()
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .json(room),
        Err(error) => state.last_answer(error.response(Lang::from_headers(request.headers()))),
    }
}

async fn look(request: &HttpRequest, path: &str, state: &State) -> Result<Room, ApiError> {
    sender(request, state)?;
    let presenter = room_of(path)?;
    let look = state.registry.look(presenter).await.map_err(refused)?;
    Ok(Room {
        presenter_idx: presenter.get(),
        live: look.live,
        session: look.session,
        last_seq: look.last_seq.map(|seq| seq.0),
        fanned_out: look.fanned_out,
        rules: Rules {
            max_chars: state.limits.text_chars,
            max_body_bytes: state.limits.body_bytes,
            nickname_max_chars: state.limits.nickname_chars,
        },
    })
}

/// A chat message.
#[derive(Deserialize, ToSchema)]
pub(super) struct NewMessage {
    /// 1 to `message.max_chars` characters.
    #[schema(min_length = 1, max_length = 2000)]
    text: String,
}

/// The place that a message got.
#[derive(Serialize, ToSchema)]
pub(super) struct Created {
    /// UUIDv7.
    id: uuid::Uuid,
    /// Its place in the room.
    seq: u64,
    /// The numbering that `seq` belongs to.
    epoch: String,
    /// RFC 3339, UTC, with milliseconds.
    sent_at: String,
    /// `delivered`: queued to the presenter; `held`: kept until the presenter takes it.
    delivery: &'static str,
}

/// Sends a chat message to a live room.
#[utoipa::path(
    post, path = "/v1/rooms/{presenter_idx}/messages", tag = "rooms",
    params(
        ("presenter_idx" = u64, Path, description = "The presenter's user number, which names the room", maximum = 9223372036854775807u64),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: sent again with its key, a message gets the first answer"),
    ),
    request_body = NewMessage,
    responses((status = 201, description = "Accepted: it has its place in the room and is logged", body = Created), Asking, WithBody, Sending)
)]
pub(super) async fn post_message(
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
    state: web::Data<State>,
) -> HttpResponse {
    match accept(&request, &path, payload, &state).await {
        Ok(accepted) => HttpResponse::Created().json(Created {
            id: accepted.id,
            seq: accepted.seq.0,
            epoch: accepted.epoch.0.to_string(),
            sent_at: timestamp(accepted.sent_at_ms),
            delivery: accepted.delivery.as_str(),
        }),
        Err(error) => state.last_answer(error.response(Lang::from_headers(request.headers()))),
    }
}

async fn accept(request: &HttpRequest, path: &str, payload: web::Payload, state: &State) -> Result<Accepted, ApiError> {
    let submit = read_submit(request, path, payload, state).await;
    // What the registry refuses it counts itself.
    let submit = submit.inspect_err(|error| state.metrics.refuse(error.code.as_str()))?;
    match outcome(submit, state).await {
        Outcome::Accepted(accepted) => Ok(accepted),
        Outcome::Refused(refusal) => Err(refused(refusal)),
    }
}

/// Parses at the edge: who is asking, which room, what is to be said.
async fn read_submit(
    request: &HttpRequest,
    path: &str,
    payload: web::Payload,
    state: &State,
) -> Result<Submit, ApiError> {
    let caller = sender(request, state)?;
    caller.within_rate(state)?;
    let presenter_idx = room_of(path)?;
    if !is_json(request) {
        return Err(ApiError::new(Code::UnsupportedMediaType).with_detail("Content-Type: application/json is needed"));
    }
    let body = read_body(request, payload, state.limits.body_bytes).await?;
    let message: NewMessage = serde_json::from_slice(&body)
        .map_err(|error| ApiError::new(Code::InvalidMessage).with_detail(format!("the body is not valid: {error}")))?;
    let key = idempotency_key(request)?;
    let text = MessageText::new(message.text, state.limits.text_chars).map_err(|error| {
        ApiError::new(Code::InvalidMessage).with_detail(match error {
            TextError::Empty => "text: it is empty".to_owned(),
            TextError::TooLong(max) => format!("text: it is longer than {max} characters"),
        })
    })?;
    caller.within_rate_of(presenter_idx, state)?;
    let keyed = key.map(|key| Keyed::new(caller.user_idx, presenter_idx, &key, text.as_str()));
    Ok(Submit {
        presenter_idx,
        keyed,
        act: None,
        chat: ChatMessage {
            role: caller.role_in(presenter_idx),
            user_idx: caller.user_idx,
            nickname: caller.nickname,
            text,
        },
    })
}

/// Hands a message to the registry and waits for what comes of it.
pub(super) async fn outcome(submit: Submit, state: &State) -> Outcome {
    match state.registry.submit(submit) {
        // A closed channel: the registry panicked with the message in hand.
        Ok(answer) => answer.await.unwrap_or(Outcome::Refused(Refusal::OutcomeUnknown)),
        Err(refusal) => Outcome::Refused(refusal),
    }
}

/// A refusal in the words of the error table.
pub(super) fn refused(refusal: Refusal) -> ApiError {
    let code = match refusal {
        Refusal::NotLive => Code::BroadcastEnded,
        Refusal::PresenterDisconnected => Code::PresenterDisconnected,
        Refusal::Overloaded(_) | Refusal::Draining => Code::Overloaded,
        Refusal::RateLimited(_) => Code::RateLimited,
        Refusal::RoomServerUnavailable => Code::RoomServerUnavailable,
        Refusal::LogUnavailable => Code::LogUnavailable,
        Refusal::OutcomeUnknown => Code::OutcomeUnknown,
        Refusal::IdempotencyInProgress => Code::IdempotencyInProgress,
        Refusal::IdempotencyConflict => Code::IdempotencyConflict,
    };
    match refusal {
        Refusal::Overloaded(queue) => ApiError::new(code).with_detail(format!("the queue {queue} is full")),
        Refusal::RateLimited(wait) => ApiError::new(code)
            .with_detail("this user asks for too many rooms")
            .with_retry_after(whole_seconds(wait)),
        Refusal::Draining => ApiError::new(code).with_detail("the server is about to stop"),
        _ => ApiError::new(code),
    }
}

/// The `Idempotency-Key` of a request: 1 to 255 visible ASCII characters, quoted as the draft has it or bare as many send it.
pub(super) fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, ApiError> {
    let Some(value) = request.headers().get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    let bare = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    if bare.is_empty() || bare.len() > 255 || bare.bytes().any(|byte| !byte.is_ascii_graphic()) {
        let detail = "Idempotency-Key: 1 to 255 visible ASCII characters, in quotes or bare";
        return Err(ApiError::new(Code::BadRequest).with_detail(detail));
    }
    Ok(Some(bare.to_owned()))
}

pub(super) fn is_json(request: &HttpRequest) -> bool {
    use actix_web::HttpMessage;
    let content_type = request.content_type();
    content_type.eq_ignore_ascii_case("application/json")
        || (content_type.starts_with("application/") && content_type.ends_with("+json"))
}

/// Reads a body up to a limit; one that announces more is refused before it is read.
pub(super) async fn read_body(
    request: &HttpRequest,
    payload: web::Payload,
    limit: usize,
) -> Result<web::Bytes, ApiError> {
    let too_large = || ApiError::new(Code::TooLarge).with_detail(format!("the body is over {limit} bytes"));
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    match payload.to_bytes_limited(limit).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(match error.as_error::<PayloadError>() {
            Some(PayloadError::Overflow) => too_large(),
            _ => ApiError::new(Code::BadRequest).with_detail("the body did not arrive whole"),
        }),
        Err(_) => Err(too_large()),
    }
}
