//! The legacy dialect's routes, to the byte (docs/LEGACY.md): `/`, `/token`, `/send/message`, `/chatting`.

use std::sync::Arc;

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    http::{Method, StatusCode, header},
    web,
};
use actix_web_actors::ws::HandshakeError;
use chatting_actors::{
    idempotency::Keyed,
    outcome::{Outcome, Refusal, Submit},
    session::Dialect,
    types::{ChatMessage, MessageText, PresenterIdx, Role},
};

use super::{
    identify::{Sender, Unknown, by_legacy_token, legacy_token, sender},
    openapi::LegacyProblem,
    ops::get_or_head,
    presenter::{Tokens, damp, place},
    socket,
    state::State,
    surface,
    v1::{idempotency_key, outcome, read_body, refused},
};
use crate::{
    auth::{ForwardedError, Needed},
    error::{ApiError, Code},
    legacy::{
        body::{BodyError, parse_send},
        error::{self as texts, FrameworkError, LegacyError},
    },
};

/// Adds the routes.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/")
                // Where the old server maps GET it answers HEAD, which probes ask here.
                .route(get_or_head().to(home))
                .default_service(web::to(other_method)),
        )
        .service(
            web::resource(["/token", "/token/"])
                .route(get_or_head().to(who))
                .default_service(web::to(other_method)),
        )
        .service(
            web::resource("/chatting")
                .route(web::get().to(chatting))
                .default_service(web::to(other_method)),
        )
        .service(
            web::resource(["/send/message", "/send/message/"])
                .route(web::post().to(send))
                .default_service(web::to(other_method)),
        );
}

/// What the old server's framework says to a method that a path has no handler for. It answers OPTIONS itself, which
/// balancers probe with, but on the WebSocket's path.
async fn other_method(request: HttpRequest) -> HttpResponse {
    let path = request.match_info().as_str();
    let (method, all) = if path.starts_with("/send") {
        (Method::POST, "POST,OPTIONS")
    } else {
        (Method::GET, "GET,HEAD,OPTIONS")
    };
    if request.method() == Method::OPTIONS && path != "/chatting" {
        return HttpResponse::Ok().insert_header((header::ALLOW, all)).finish();
    }
    FrameworkError::MethodNotAllowed(method).response(request.path())
}

/// Says that the server runs.
#[utoipa::path(
    get, path = "/", operation_id = "get_legacy_greeting", tag = "legacy", responses((status = 200, description = "It runs", body = str, content_type = "text/plain"))
)]
pub(super) async fn home() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain;charset=UTF-8")
        .body("Chatting Server is Running")
}

fn answer(error: &LegacyError, request: &HttpRequest, state: &State) -> HttpResponse {
    surface::legacy(error, request.path(), state)
}

/// Whose token it is.
#[utoipa::path(
    get, path = "/token", operation_id = "get_token_user", tag = "legacy",
    responses(
        (status = 200, description = "The user's number", body = i64, content_type = "application/json"),
        (status = 400, description = "No token, or a bad one", body = LegacyProblem),
        (status = 503, description = "The keys to judge it by are not there; Retry-After tells when to ask again", body = LegacyProblem)
    )
)]
pub(super) async fn who(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    let Some(claims) = by_legacy_token(&request, &state).await else {
        return answer(
            &LegacyError::bad_request(ForwardedError::Missing("token").legacy_text()),
            &request,
            &state,
        );
    };
    match claims {
        Ok(claims) => HttpResponse::Ok()
            .content_type("application/json")
            .body(claims.user_idx.to_string()),
        Err(error) => answer(&LegacyError::from_token(error), &request, &state),
    }
}

// ---- sending -----------------------------------------------------------------------------------------------------

/// Why a legacy message was not delivered, in either of the old server's two shapes.
enum Failed {
    Ours(LegacyError),
    Framework(FrameworkError),
}

impl Failed {
    /// The row of the error table that comes nearest, for the metrics.
    fn code(&self) -> Code {
        match self {
            Self::Ours(error) => error.code(),
            Self::Framework(FrameworkError::UnsupportedMediaType) => Code::UnsupportedMediaType,
            Self::Framework(FrameworkError::NotFound) => Code::NotFound,
            Self::Framework(FrameworkError::MethodNotAllowed(_)) => Code::MethodNotAllowed,
            Self::Framework(FrameworkError::BadRequest) => Code::BadRequest,
        }
    }
}

impl From<LegacyError> for Failed {
    fn from(error: LegacyError) -> Self {
        Self::Ours(error)
    }
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self::Ours(LegacyError::from_api(&error))
    }
}

impl From<Unknown> for Failed {
    fn from(unknown: Unknown) -> Self {
        match unknown {
            Unknown::Token(error) => LegacyError::from_token(error).into(),
            Unknown::Forwarded(error) => LegacyError::bad_request(error.legacy_text()).into(),
            other => ApiError::from(other).into(),
        }
    }
}

/// Sends a chat message, as the original server had it. Texts are Korean.
#[utoipa::path(
    post, path = "/send/message", operation_id = "send_legacy_message", tag = "legacy",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: sent again with its key, a message gets the first answer"),
    ),
    request_body(content = serde_json::Value, description = "`{\"presenterIdx\":12,\"userType\":\"viewer\",\"textMessage\":\"hi\"}`"),
    responses(
        (status = 200, description = "Delivered or held; no body"),
        (status = 202, description = "Refused: the presenter's own message while no session is there", body = LegacyProblem),
        (status = 400, description = "Refused; the message says why", body = LegacyProblem),
        (status = 403, description = "This peer may not set x-forward headers", body = LegacyProblem),
        (status = 408, description = "The body took too long; the connection ends", body = LegacyProblem),
        (status = 409, description = "A request with this Idempotency-Key is still running", body = LegacyProblem),
        (status = 413, description = "The body is too large", body = LegacyProblem),
        (status = 415, description = "The media type is not supported", body = LegacyProblem),
        (status = 422, description = "The message is not valid, or its Idempotency-Key was used for another", body = LegacyProblem),
        (status = 429, description = "Too often; Retry-After tells when", body = LegacyProblem),
        (status = 503, description = "Not now; Retry-After tells when", body = LegacyProblem),
        (status = 504, description = "Whether it was accepted is not known", body = LegacyProblem)
    )
)]
pub(super) async fn send(request: HttpRequest, payload: web::Payload, state: web::Data<State>) -> HttpResponse {
    match deliver(&request, payload, &state).await {
        Ok(()) => HttpResponse::Ok().finish(),
        Err(Failed::Ours(error)) => answer(&error, &request, &state),
        Err(Failed::Framework(error)) => error.response(request.path()),
    }
}

async fn deliver(request: &HttpRequest, payload: web::Payload, state: &State) -> Result<(), Failed> {
    let submit = read_submit(request, payload, state).await;
    // What the registry refuses it counts itself.
    let submit = submit.inspect_err(|failed| state.metrics.refuse(failed.code().as_str()))?;
    let role = submit.chat.role;
    match outcome(submit, state).await {
        Outcome::Accepted(_) => Ok(()),
        Outcome::Refused(refusal) => Err(legacy_refusal(refusal, role).into()),
    }
}

/// Parses at the edge: who is asking, which room, what is to be said.
async fn read_submit(request: &HttpRequest, payload: web::Payload, state: &State) -> Result<Submit, Failed> {
    let caller = sender(request, state, Needed::All).await?;
    // A `Content-Encoding` means nothing here, as to the old server: a body that really is compressed is no JSON.
    if !request.content_type().eq_ignore_ascii_case("application/json") {
        return Err(Failed::Framework(FrameworkError::UnsupportedMediaType));
    }
    let body = read_body(request, payload, &state.limits).await?;
    let body = parse_send(&body).map_err(|error| match error {
        BodyError::Unreadable => Failed::Framework(FrameworkError::BadRequest),
        other => Failed::Ours(LegacyError::bad_request(other.to_string())),
    })?;
    let presenter_idx = body.presenter_idx.unwrap_or(caller.user_idx.get());
    // A negative number is nobody's room, so nobody is live there.
    let presenter_idx = PresenterIdx::new(presenter_idx).ok_or_else(|| LegacyError::bad_request(texts::NOT_LIVE))?;
    let text = MessageText::maybe_empty(body.text, state.limits.text_chars)
        .map_err(|_| LegacyError::from_code(Code::InvalidMessage, None))?;
    let role = caller.role_in(presenter_idx);
    caller.within_rate_of(presenter_idx, state)?;
    let Sender { user_idx, nickname, .. } = caller;
    let key = idempotency_key(request)?;
    let keyed = key.map(|key| Keyed::new(user_idx, presenter_idx, &key, text.as_str()));
    Ok(Submit {
        presenter_idx,
        keyed,
        act: None,
        chat: ChatMessage {
            user_idx,
            nickname,
            text,
            role,
        },
    })
}

fn legacy_refusal(refusal: Refusal, role: Role) -> LegacyError {
    match (refusal, role) {
        (Refusal::NotLive, _) => LegacyError::bad_request(texts::NOT_LIVE),
        (Refusal::PresenterDisconnected, Role::Presenter) => LegacyError::presenter_without_session(),
        (Refusal::PresenterDisconnected, _) => LegacyError::bad_request(texts::NO_SESSION),
        (other, _) => LegacyError::from_api(&refused(other)),
    }
}

// ---- the presenter's WebSocket -----------------------------------------------------------------------------------

/// The original server's WebSocket.
#[utoipa::path(
    get, path = "/chatting", operation_id = "open_legacy_session", tag = "legacy",
    responses(
        (status = 101, description = "A WebSocket"),
        (status = 400, description = "No WebSocket", body = str, content_type = "text/plain"),
        (status = 426, description = "Another version than 13, or none; no body"),
        (status = 429, description = "Too often; Retry-After tells when", body = LegacyProblem),
        (status = 503, description = "Not now; Retry-After tells when", body = LegacyProblem)
    )
)]
pub(super) async fn chatting(request: HttpRequest, payload: web::Payload, state: web::Data<State>) -> HttpResponse {
    // First, so that a request which cannot be upgraded never costs a session its place.
    let response = match socket::handshake(&request) {
        Ok(response) => response,
        Err(HandshakeError::UnsupportedVersion | HandshakeError::NoVersionHeader) => {
            let mut response = HttpResponse::build(StatusCode::UPGRADE_REQUIRED);
            return response.insert_header(("Sec-WebSocket-Version", "13")).finish();
        }
        Err(error) => {
            let text = match error {
                HandshakeError::NoConnectionUpgrade => "\"Connection\" must be \"upgrade\".",
                _ => "Can \"Upgrade\" only to \"WebSocket\".",
            };
            return HttpResponse::BadRequest()
                .content_type("text/plain;charset=UTF-8")
                .body(text);
        }
    };
    let refuse = |error: &ApiError| {
        state.metrics.sessions_refused.inc(error.code.as_str());
        answer(&LegacyError::from_api(error), &request, &state)
    };
    if state.health.is_draining() {
        return refuse(&ApiError::new(Code::Overloaded));
    }
    // The old clients log in with a frame; one that says beforehand who it is can be damped beforehand.
    let presenter = legacy_token(&request)
        .and_then(|token| state.tokens.verify(token.ok()?).ok())
        .and_then(|claims| PresenterIdx::new(claims.user_idx.get()));
    if let Some(presenter) = presenter
        && let Err(error) = damp(&state, presenter)
    {
        return refuse(&error);
    }
    let place = match place(&request, &state) {
        Ok(place) => place,
        Err(error) => return refuse(&error),
    };
    let dialect = Dialect::Legacy(Arc::clone(&state.clock));
    let tokens = Tokens::new(&state, presenter);
    socket::upgrade(response, &request, payload, &state, dialect, tokens, place)
}
