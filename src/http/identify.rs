//! Who is asking: a token, or the headers of a trusted gateway (design.md, "Who may do what").

use std::time::Instant;

use actix_web::{HttpRequest, http::header};
use chatting_actors::types::{Nickname, PresenterIdx, Role, UserIdx};

use super::state::State;
use crate::{
    auth::{Claims, Forwarded, ForwardedError, TokenError},
    error::{ApiError, Code},
};

/// A caller who may chat.
pub struct Sender {
    /// The user's number.
    pub user_idx: UserIdx,
    /// The name shown beside messages.
    pub nickname: Nickname,
    claims: Claims,
}

impl Sender {
    /// What the caller is in a room (rule 18).
    pub fn role_in(&self, room: PresenterIdx) -> Role {
        self.claims.role_in(room)
    }

    /// Counts one more message of this user (rule 19).
    pub fn within_rate(&self, state: &State) -> Result<(), ApiError> {
        let within = state.rates.senders.take(self.user_idx, Instant::now());
        within.map_err(|often| often.error("this user sends too often"))
    }

    /// Counts one more message to this room (rule 19). Its staff is heard above any crowd.
    pub fn within_rate_of(&self, room: PresenterIdx, state: &State) -> Result<(), ApiError> {
        if self.claims.is_staff_of(room) {
            return Ok(());
        }
        let within = state.rates.rooms.take(room, Instant::now());
        within.map_err(|often| often.error("too much is sent to this room"))
    }
}

/// Why a caller is not known. Each dialect has its own words for it.
#[derive(Debug)]
pub enum Unknown {
    /// The token is missing or bad.
    Token(TokenError),
    /// The peer may not set x-forward headers.
    Untrusted,
    /// A header of the gateway is missing or bad.
    Forwarded(ForwardedError),
    /// The name is too long.
    Nickname(usize),
}

impl From<Unknown> for ApiError {
    fn from(unknown: Unknown) -> Self {
        match unknown {
            Unknown::Token(error) => {
                let api = ApiError::new(error.code()).with_detail(error.detail());
                if error == TokenError::Missing {
                    api
                } else {
                    api.with_token_rejected()
                }
            }
            Unknown::Untrusted => ApiError::new(Code::Forbidden).with_detail("this peer may not set x-forward headers"),
            Unknown::Forwarded(error) => ApiError::new(Code::Unauthenticated).with_detail(error.to_string()),
            Unknown::Nickname(max) => {
                let detail = format!("nickname: it is longer than {max} characters");
                ApiError::new(Code::InvalidMessage).with_detail(detail)
            }
        }
    }
}

/// The token of a request: `Authorization: Bearer`, or the header `token`. One that is no text is there too, and is no JWT.
pub fn token(request: &HttpRequest) -> Option<&str> {
    fn text(value: &header::HeaderValue) -> &str {
        std::str::from_utf8(value.as_bytes()).unwrap_or("?")
    }
    let headers = request.headers();
    let bearer = headers.get(header::AUTHORIZATION).map(text).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    bearer.or_else(|| headers.get("token").map(text))
}

/// Who a request's token says is asking.
pub fn claims(request: &HttpRequest, state: &State) -> Result<Claims, Unknown> {
    state
        .tokens
        .verify(token(request).unwrap_or_default())
        .map_err(Unknown::Token)
}

/// Who is asking, by token or gateway, whether or not with a name.
pub fn caller(request: &HttpRequest, state: &State) -> Result<Claims, Unknown> {
    let Some(gateway) = &state.gateway else {
        return claims(request, state);
    };
    let secret = request
        .headers()
        .get("x-gateway-secret")
        .map(header::HeaderValue::as_bytes);
    let peer = request.peer_addr().map(|peer| peer.ip());
    if gateway.check_peer(peer, secret).is_err() {
        state.metrics.forward_refused.inc();
        return Err(Unknown::Untrusted);
    }
    let Forwarded { nickname, claims } = gateway.read(request.headers()).map_err(Unknown::Forwarded)?;
    Ok(Claims {
        nickname: Some(nickname),
        ..claims
    })
}

/// Who is asking to chat, by token or gateway.
pub fn sender(request: &HttpRequest, state: &State) -> Result<Sender, Unknown> {
    let mut claims = caller(request, state)?;
    let nickname = claims.nickname.take();
    let nickname = nickname.ok_or(Unknown::Token(TokenError::BadClaim("nickname")))?;
    let max = state.limits.nickname_chars;
    let nickname = Nickname::new(&nickname, max).map_err(|_| Unknown::Nickname(max))?;
    Ok(Sender {
        user_idx: claims.user_idx,
        nickname,
        claims,
    })
}
