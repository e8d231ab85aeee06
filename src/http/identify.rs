//! Who is asking: a token, or the headers of a trusted gateway (design.md, "Who may do what").

use std::time::Instant;

use actix_web::{HttpRequest, http::header};
use chatting_actors::types::{Nickname, PresenterIdx, Role, UserIdx};

use super::state::State;
use crate::{
    auth::{Claims, ForwardedError, Needed, TokenError},
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
                if matches!(error, TokenError::Missing | TokenError::KeysUnavailable) {
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

/// The token of a request: `Authorization: Bearer`, or the header `token`. One that is no text is there too, and is no JWT;
/// and so is one that is there twice, because whoever looked at the request before us may have looked at the other.
pub fn token(request: &HttpRequest) -> Option<&str> {
    let headers = request.headers();
    let bearer = only(headers, header::AUTHORIZATION.as_str()).and_then(|value| {
        let Ok(value) = value else { return Some(NO_TOKEN) };
        // One that says Bearer and nothing more is a token that is empty, not none.
        let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    bearer.or_else(|| only(headers, "token").map(|value| value.unwrap_or(NO_TOKEN)))
}

/// What stands for a token that is none.
const NO_TOKEN: &str = "?";

/// The text of a header, if it is there; an error when that is no text, or there twice.
fn only<'a>(headers: &'a header::HeaderMap, name: &str) -> Option<Result<&'a str, ()>> {
    let mut values = headers.get_all(name);
    let value = values.next()?;
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| ());
    Some(if values.next().is_some() { Err(()) } else { text })
}

/// Who the old header `token` says is asking; `None` where it is not there.
pub async fn legacy_claims(request: &HttpRequest, state: &State) -> Option<Result<Claims, TokenError>> {
    let token = only(request.headers(), "token")?.unwrap_or(NO_TOKEN);
    Some(state.tokens.admit(token).await)
}

/// Who a request's token says is asking.
pub async fn claims(request: &HttpRequest, state: &State) -> Result<Claims, Unknown> {
    let token = token(request).unwrap_or_default();
    state.tokens.admit(token).await.map_err(Unknown::Token)
}

/// Who is asking, by token or gateway, whether or not with a name.
pub async fn caller(request: &HttpRequest, state: &State) -> Result<Claims, Unknown> {
    known(request, state, Needed::Number).await
}

async fn known(request: &HttpRequest, state: &State, needed: Needed) -> Result<Claims, Unknown> {
    let Some(gateway) = &state.gateway else {
        return claims(request, state).await;
    };
    let secret = only(request.headers(), "x-gateway-secret").and_then(Result::ok);
    let peer = request.peer_addr().map(|peer| peer.ip());
    if gateway.check_peer(peer, secret.map(str::as_bytes)).is_err() {
        state.metrics.forward_refused.inc();
        return Err(Unknown::Untrusted);
    }
    gateway.read(request.headers(), needed).map_err(Unknown::Forwarded)
}

/// Who is asking to chat, by token or gateway; of the gateway's headers those that are `needed`.
pub async fn sender(request: &HttpRequest, state: &State, needed: Needed) -> Result<Sender, Unknown> {
    let mut claims = known(request, state, needed).await?;
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
