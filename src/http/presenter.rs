//! `GET /v1/presenter`: the upgrade to a session of dialect v1, and what is refused before it.
//!
//! In this order, so that what is refused costs as little as it can: no WebSocket, no subprotocol, another page's Origin, the
//! server stops, a bad token, too many connects of one presenter or one address, no place left. A token in the header is judged
//! here, with an HTTP status; one in `hello` by the session, with a close code. Browsers cannot set the header.

use std::{cell::Cell, sync::Arc, time::Instant};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use actix_web_actors::ws::HandshakeError;
use base64::{
    Engine, alphabet,
    engine::{GeneralPurpose, general_purpose::PAD},
};
use chatting_actors::{
    gate::Permit,
    metrics::Metrics,
    seams::{Authenticate, Denied, Grant, Wording},
    session::{Dialect, v1::Machine},
    types::PresenterIdx,
    wire::v1::SUBPROTOCOL,
};
use futures_util::future::{BoxFuture, LocalBoxFuture};

use super::{
    client::{self, AddressPermit},
    identify::{Unknown, admit, refuse, token},
    openapi::{Asking, Upgrading},
    socket,
    state::State,
};
use crate::{
    auth::{Claims, TokenError, TokenVerifier, Verdict},
    error::{ApiError, Code, DEFAULT_RETRY_AFTER_SECONDS, Lang},
    limits::Rates,
};

/// Adds the route.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(
        web::resource("/v1/presenter")
            .route(web::get().to(presenter))
            .default_service(web::to(super::v1::only_get)),
    );
}

/// The presenter's WebSocket, subprotocol `chat.v1`: docs/PROTOCOL.md and docs/asyncapi.json say what goes over it.
#[utoipa::path(
    get, path = "/v1/presenter", operation_id = "open_presenter_session", tag = "sockets",
    responses((status = 101, description = "A WebSocket"), Asking, Upgrading)
)]
pub(super) async fn presenter(request: HttpRequest, payload: web::Payload, state: web::Data<State>) -> HttpResponse {
    upgrade(&request, payload, &state).await.unwrap_or_else(|error| {
        state.metrics.sessions_refused.inc(error.code.as_str());
        let mut response = error.response(Lang::from_headers(request.headers()));
        if error.code == Code::UpgradeRequired {
            let headers = response.headers_mut();
            headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, header::HeaderValue::from_static("13"));
        }
        response
    })
}

async fn upgrade(request: &HttpRequest, payload: web::Payload, state: &State) -> Result<HttpResponse, ApiError> {
    let mut response = socket::handshake(request).map_err(|error| match error {
        HandshakeError::NoWebsocketUpgrade
        | HandshakeError::NoConnectionUpgrade
        | HandshakeError::NoVersionHeader
        | HandshakeError::UnsupportedVersion => {
            ApiError::new(Code::UpgradeRequired).with_detail("upgrade to websocket, version 13")
        }
        other => ApiError::new(Code::BadRequest).with_detail(other.to_string()),
    })?;
    if !has_key(request) {
        let detail = "Sec-WebSocket-Key: 16 bytes in base64 are needed";
        return Err(ApiError::new(Code::BadRequest).with_detail(detail));
    }
    if !offers_subprotocol(request) {
        let detail = format!("Sec-WebSocket-Protocol: {SUBPROTOCOL} is needed");
        return Err(ApiError::new(Code::BadRequest).with_detail(detail));
    }
    // Here, for what makes the answer looks at the first line of the header only.
    response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL));
    if !origin_allowed(request, &state.origins) {
        let detail = "Origin: this page is not among cors.origins";
        return Err(ApiError::new(Code::Forbidden).with_detail(detail));
    }
    if state.health.is_draining() {
        return Err(ApiError::new(Code::Overloaded).with_detail("the server is about to stop"));
    }
    let upgraded = match token(request) {
        None => None,
        Some(token) => {
            let claims = admit(token, state).await.map_err(Unknown::Token)?;
            let grant = grant(&claims, &state.tokens).map_err(|error| Unknown::Token(refuse(error, state)))?;
            damp(state, grant.presenter)?;
            Some(grant)
        }
    };
    let place = place(request, state)?;
    let tokens = Tokens::new(state, upgraded.map(|grant| grant.presenter));
    let dialect = Dialect::V1(Machine::new(upgraded));
    Ok(socket::upgrade(
        response, request, payload, state, dialect, tokens, place,
    ))
}

/// Some clients make the text of a key of any 22 symbols, as RFC 6455 does itself, and the last of them has bits to spare.
const KEY: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, PAD.with_decode_allow_trailing_bits(true));

/// Whether the handshake has its key (RFC 6455, section 4.2.1), which actix only wants to be there.
fn has_key(request: &HttpRequest) -> bool {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    key.and_then(|key| KEY.decode(key.as_bytes()).ok())
        .is_some_and(|key| key.len() == 16)
}

fn offers_subprotocol(request: &HttpRequest) -> bool {
    let offers = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    offers
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|offer| offer.trim() == SUBPROTOCOL)
}

/// Browsers send `Origin` with every WebSocket and let any page open one, so the allow-list is the server's to keep. Who sends
/// none is no browser; a page of this very host is no other page.
fn origin_allowed(request: &HttpRequest, allowed: &[String]) -> bool {
    let Some(origin) = request.headers().get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let same_host = origin
        .split_once("://")
        .is_some_and(|(_, authority)| host.is_some_and(|host| authority.eq_ignore_ascii_case(host)));
    same_host || allowed.iter().any(|one| one == "*" || one.eq_ignore_ascii_case(origin))
}

/// Counts one more session of this presenter; 429 when there were too many.
pub(super) fn damp(state: &State, presenter: PresenterIdx) -> Result<(), ApiError> {
    let admitted = state.rates.reconnects.take(presenter, Instant::now());
    admitted.map_err(|often| often.error("this presenter connects too often"))
}

/// A place among `session.max` and among those of the client's address.
pub(super) fn place(request: &HttpRequest, state: &State) -> Result<Place, ApiError> {
    let address = client::address(request, &state.trusted);
    if let Some(address) = address {
        let admitted = state.rates.upgrades.take(address, Instant::now());
        admitted.map_err(|often| often.error("this address connects too often"))?;
    }
    let of_address = state.addresses.enter(address).ok_or_else(|| {
        let most = u32::try_from(state.addresses.most()).unwrap_or(u32::MAX);
        ApiError::new(Code::RateLimited)
            .with_detail("this address has limits.sessions_per_address sessions")
            .with_rate_limit(most, DEFAULT_RETRY_AFTER_SECONDS)
    })?;
    let in_all = state.sessions.try_acquire(1).ok_or_else(|| {
        // The client tries again, and finds the seat of one that can be spared (rule 10).
        state.registry.want_seat();
        ApiError::new(Code::Overloaded).with_detail("session.max sessions are open")
    })?;
    state.registry.seat_found();
    Ok(Place {
        _in_all: in_all,
        _of_address: of_address,
    })
}

/// See [`place`].
pub(super) struct Place {
    _in_all: Permit,
    _of_address: AddressPermit,
}

/// The session ends when the token would be refused, so that none that is still taken ends what it has just begun.
fn grant(claims: &Claims, tokens: &TokenVerifier) -> Result<Grant, TokenError> {
    let presenter = PresenterIdx::new(claims.user_idx.get()).ok_or(TokenError::BadClaim("user"))?;
    Ok(Grant {
        presenter,
        expires_at_ms: claims.expires_at_ms.saturating_add(tokens.leeway_ms()),
    })
}

/// Reads the tokens of `start` and `hello`: their `user_idx` is the presenter.
pub(super) struct Tokens {
    tokens: Arc<TokenVerifier>,
    rates: Arc<Rates>,
    metrics: Metrics,
    /// The presenter who was counted before the upgrade, once.
    counted: Cell<Option<PresenterIdx>>,
    /// What the last token that was not refused for good is waiting for.
    arrives: Cell<Option<BoxFuture<'static, ()>>>,
}

impl Tokens {
    pub(super) fn new(state: &State, counted: Option<PresenterIdx>) -> Self {
        Self {
            tokens: Arc::clone(&state.tokens),
            rates: Arc::clone(&state.rates),
            metrics: state.metrics.clone(),
            counted: Cell::new(counted),
            arrives: Cell::new(None),
        }
    }

    fn refused(&self, reason: &'static str) {
        self.metrics.sessions_refused.inc(reason);
    }
}

impl Authenticate for Tokens {
    fn grant(&self, token: &str) -> Result<Grant, Denied> {
        let verdict = match self.tokens.verify_or_wait(token) {
            Verdict::Now(verdict) => verdict,
            Verdict::Behind(fetched) => {
                self.arrives.set(Some(fetched));
                return Err(Denied::NotYet);
            }
        };
        let granted = verdict.and_then(|claims| grant(&claims, &self.tokens));
        granted.map_err(|error| {
            self.tokens.count(error);
            log::debug!("a session's token is refused: {error:?}");
            self.refused(error.code().as_str());
            match error {
                TokenError::Expired => Denied::Expired,
                TokenError::KeysUnavailable => Denied::Unavailable,
                TokenError::UnknownKey => Denied::UnknownKey,
                _ => Denied::Bad,
            }
        })
    }

    fn key_arrives(&self) -> Option<LocalBoxFuture<'static, ()>> {
        self.arrives
            .take()
            .map(|arrives| arrives as LocalBoxFuture<'static, ()>)
    }

    fn admit(&self, presenter: PresenterIdx) -> bool {
        if self.counted.take() == Some(presenter) {
            return true;
        }
        let admitted = self.rates.reconnects.take(presenter, Instant::now()).is_ok();
        if !admitted {
            self.refused(Code::RateLimited.as_str());
        }
        admitted
    }
}

/// The error table's titles in one language.
pub(super) struct Titles(pub Lang);

impl Wording for Titles {
    fn title(&self, problem: &'static str) -> &'static str {
        Code::parse(problem).map_or(problem, |code| code.title(self.0))
    }
}
