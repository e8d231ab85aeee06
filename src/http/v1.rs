//! v1 routes: problem+json errors, JSON bodies, nothing lenient.

use std::{pin::pin, sync::Arc, task::Poll};

use actix_web::{HttpRequest, HttpResponse, error::PayloadError, http::header, web};
use chatting_actors::{
    idempotency::Keyed,
    outcome::{Accepted, Outcome, Refusal, Submit},
    types::{ChatMessage, MessageText, PresenterIdx, TextError},
    wire::{object, v1::timestamp},
};
use futures_util::poll;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    history::get_messages,
    identify::{sender, who},
    lines::Line,
    moderation::delete_messages,
    openapi::{Asking, Looking, Sending, WithBody},
    state::{Limits, State},
};
use crate::{
    auth::Needed,
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

/// The room that a path names: in digits, of which the first is 0 only where it is the last. Whoever decides by the path before us
/// knows one name of each room.
pub(crate) fn room_of(path: &str) -> Result<PresenterIdx, ApiError> {
    let is_plain = path.bytes().all(|byte| byte.is_ascii_digit()) && (path == "0" || !path.starts_with('0'));
    let number = is_plain.then(|| path.parse().ok()).flatten();
    number.and_then(PresenterIdx::new).ok_or_else(no_such_room)
}

/// What is said of a path in which something is encoded; `path` is what the router makes of it.
pub(super) fn not_plain(path: &str) -> ApiError {
    if path.starts_with("/v1/rooms/") {
        no_such_room()
    } else {
        ApiError::new(Code::NotFound).with_detail("nothing is encoded with % in the paths here")
    }
}

fn no_such_room() -> ApiError {
    ApiError::new(Code::NotFound).with_detail("a room is named by its presenter's number, 0 to 9223372036854775807")
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
    /// How many viewers the presenter's client says it passes messages on to; `null` where none is connected, or it has not said.
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
    get, path = "/v1/rooms/{presenter_idx}", operation_id = "get_room", tag = "rooms",
    params(("presenter_idx" = u64, Path, description = "The presenter's user number, which names the room", maximum = 9223372036854775807u64)),
    responses((status = 200, description = "The room", body = Room), Asking, Looking)
)]
pub(super) async fn get_room(request: HttpRequest, path: web::Path<String>, state: web::Data<State>) -> HttpResponse {
    match look(&request, &path, &state).await {
        Ok(room) => HttpResponse::Ok()
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .json(room),
        Err(error) => error.response(Lang::from_headers(request.headers())),
    }
}

async fn look(request: &HttpRequest, path: &str, state: &State) -> Result<Room, ApiError> {
    let user = who(request, state).await?.user_idx;
    let presenter = room_of(path)?;
    let look = state.registry.look(presenter, user).await.map_err(refused)?;
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
    id: Uuid,
    /// Its place in the room.
    seq: u64,
    /// The numbering that `seq` belongs to.
    #[schema(value_type = String)]
    epoch: Arc<str>,
    /// RFC 3339, UTC, with milliseconds.
    sent_at: String,
    /// `delivered`: queued to the presenter; `held`: kept until the presenter takes it.
    delivery: &'static str,
}

/// Sends a chat message to a live room.
#[utoipa::path(
    post, path = "/v1/rooms/{presenter_idx}/messages", operation_id = "post_message", tag = "rooms",
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
    answer_message(&request, &path, payload, &state).await
}

/// The same, of the room that `room` names.
pub(super) async fn answer_message(
    request: &HttpRequest,
    room: &str,
    payload: web::Payload,
    state: &State,
) -> HttpResponse {
    match accept(request, room, payload, state).await {
        Ok(accepted) => HttpResponse::Created()
            .content_type(header::ContentType::json())
            .body(created(&accepted)),
        Err(error) => error.response(Lang::from_headers(request.headers())),
    }
}

/// [`Created`] as JSON, written at once: it is the answer to nearly every request.
pub(crate) fn created(accepted: &Accepted) -> String {
    let mut id = Uuid::encode_buffer();
    let id = accepted.id.as_hyphenated().encode_lower(&mut id);
    let mut seq = itoa::Buffer::new();
    // The one text that is not ours to choose: an import may have brought it.
    let epoch = serde_json::to_string(&accepted.epoch).unwrap_or_default();
    [
        "{\"id\":\"",
        id,
        "\",\"seq\":",
        seq.format(accepted.seq.0),
        ",\"epoch\":",
        &epoch,
        ",\"sent_at\":\"",
        &timestamp(accepted.sent_at_ms),
        "\",\"delivery\":\"",
        accepted.delivery.as_str(),
        "\"}",
    ]
    .concat()
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
    let caller = sender(request, state, Needed::Name).await?;
    let presenter_idx = room_of(path)?;
    wants_json(request)?;
    let body = read_body(request, payload, &state.limits).await?;
    let text = parse(&body, state.limits.text_chars)?;
    let key = idempotency_key(request)?;
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

/// What is to be said, of a body.
pub(crate) fn parse(body: &[u8], max_chars: usize) -> Result<MessageText, ApiError> {
    let message: NewMessage = object(body)
        .map_err(|error| ApiError::new(Code::InvalidMessage).with_detail(format!("the body is not valid: {error}")))?;
    MessageText::new(message.text, max_chars).map_err(|error| {
        ApiError::new(Code::InvalidMessage).with_detail(match error {
            TextError::Empty => "text: it is empty".to_owned(),
            TextError::TooLong(max) => format!("text: it is longer than {max} characters"),
        })
    })
}

/// Hands a message to the registry and waits for what comes of it.
pub(super) async fn outcome(submit: Submit, state: &State) -> Outcome {
    match state.registry.submit(submit) {
        Ok(answer) => {
            let outcome = answer.await.unwrap_or_else(|_| {
                // The registry panicked with the message in hand, and counts nothing any more.
                let refusal = Refusal::OutcomeUnknown;
                state.metrics.refuse(refusal.code());
                Outcome::Refused(refusal)
            });
            state.failing.if_planned();
            outcome
        }
        Err(refusal) => Outcome::Refused(refusal),
    }
}

/// A refusal in the words of the error table.
pub(super) fn refused(refusal: Refusal) -> ApiError {
    let code = match refusal {
        Refusal::NotLive => Code::BroadcastEnded,
        Refusal::PresenterDisconnected => Code::PresenterDisconnected,
        Refusal::Overloaded(_) | Refusal::Interrupted | Refusal::Draining => Code::Overloaded,
        Refusal::RateLimited { .. } => Code::RateLimited,
        Refusal::RoomServerUnavailable => Code::RoomServerUnavailable,
        Refusal::LogUnavailable => Code::LogUnavailable,
        Refusal::OutcomeUnknown => Code::OutcomeUnknown,
        Refusal::IdempotencyInProgress => Code::IdempotencyInProgress,
        Refusal::IdempotencyConflict => Code::IdempotencyConflict,
    };
    match refusal {
        Refusal::Overloaded(queue) => ApiError::new(code).with_detail(format!("the queue {queue} is full")),
        Refusal::RateLimited { wait, burst } => ApiError::new(code)
            .with_detail("this user asks for too many rooms")
            .with_rate_limit(burst, whole_seconds(wait)),
        Refusal::Interrupted => ApiError::new(code).with_detail("the registry begins anew, try again"),
        Refusal::Draining => ApiError::new(code).with_detail("the server is about to stop"),
        _ => ApiError::new(code),
    }
}

static IDEMPOTENCY_KEY: header::HeaderName = header::HeaderName::from_static("idempotency-key");

/// The `Idempotency-Key` of a request: 1 to 255 visible ASCII characters, quoted as the draft has it or bare as many send it.
pub(crate) fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, ApiError> {
    let mut keys = request.headers().get_all(&IDEMPOTENCY_KEY).map(bare);
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    if keys.any(|other| other != key) {
        return Err(ApiError::new(Code::BadRequest).with_detail("Idempotency-Key: there are two that differ"));
    }
    if key.is_empty() || key.len() > 255 || key.bytes().any(|byte| !byte.is_ascii_graphic()) {
        let detail = "Idempotency-Key: 1 to 255 visible ASCII characters, in quotes or bare";
        return Err(ApiError::new(Code::BadRequest).with_detail(detail));
    }
    Ok(Some(key.to_owned()))
}

/// The key without its quotes; empty where it is no text.
fn bare(value: &header::HeaderValue) -> &str {
    let text = value.to_str().unwrap_or_default().trim();
    text.strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text)
}

/// Refuses a body that is no JSON, or that is compressed.
pub(super) fn wants_json(request: &HttpRequest) -> Result<(), ApiError> {
    use actix_web::HttpMessage;
    let content_type = request.content_type();
    let is_json = content_type.eq_ignore_ascii_case("application/json")
        || (content_type.starts_with("application/") && content_type.ends_with("+json"));
    let wanted = match (is_json, is_coded(request)) {
        (true, false) => return Ok(()),
        (true, true) => "Content-Encoding: bodies are read as they are, without any",
        (false, _) => "Content-Type: application/json is needed",
    };
    Err(ApiError::new(Code::UnsupportedMediaType).with_detail(wanted))
}

/// Whether a body is compressed, or coded in any other way: none is read here.
fn is_coded(request: &HttpRequest) -> bool {
    let mut codings = request.headers().get_all(header::CONTENT_ENCODING);
    codings.any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// Reads a body within `server.max_body_bytes` and `server.body_seconds`; one that announces more is refused before it is
/// read. After a 408 the connection ends (RFC 9110, 15.5.9): what still comes on it is nobody's.
pub(super) async fn read_body(
    request: &HttpRequest,
    payload: web::Payload,
    limits: &Limits,
) -> Result<web::Bytes, ApiError> {
    let limit = limits.body_bytes;
    let too_large = || ApiError::new(Code::TooLarge).with_detail(format!("the body is over {limit} bytes"));
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    // A body that came with its head, as nearly all do, needs no clock.
    let mut whole = pin!(payload.to_bytes_limited(limit));
    let _comes = request.conn_data::<Arc<Line>>().map(Line::read_body);
    let read = match poll!(&mut whole) {
        Poll::Ready(read) => Ok(read),
        Poll::Pending => tokio::time::timeout(limits.body_time, whole).await,
    };
    match read {
        Ok(Ok(Ok(body))) => Ok(body),
        Ok(Ok(Err(error))) => Err(match error.as_error::<PayloadError>() {
            Some(PayloadError::Overflow) => too_large(),
            _ => ApiError::new(Code::BadRequest).with_detail("the body did not arrive whole"),
        }),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            let seconds = limits.body_time.as_secs();
            Err(ApiError::new(Code::RequestTimeout).with_detail(format!("the body took longer than {seconds} s")))
        }
    }
}

#[cfg(test)]
mod tests {
    use chatting_actors::{
        outcome::Delivery,
        types::{Epoch, Seq},
    };

    use super::*;

    #[test]
    fn what_is_written_at_once_is_what_a_library_writes() {
        for (n, epoch) in ["0123456789abcdef", "", "한 \"\\\n", "a-b"].into_iter().enumerate() {
            let accepted = Accepted {
                id: Uuid::from_u128(0x0192_0000_7000_8000_0000_0000_0000_0001 + n as u128),
                seq: Seq([1, 0, u64::MAX, 42][n]),
                epoch: Epoch(epoch.into()),
                sent_at_ms: 1_767_225_600_007,
                delivery: [Delivery::Delivered, Delivery::Held][n % 2],
            };
            let library = serde_json::to_string(&Created {
                id: accepted.id,
                seq: accepted.seq.0,
                epoch: Arc::clone(&accepted.epoch.0),
                sent_at: timestamp(accepted.sent_at_ms),
                delivery: accepted.delivery.as_str(),
            });
            assert_eq!(created(&accepted), library.unwrap());
        }
    }
}
