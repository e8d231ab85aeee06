//! Who is asking: a token, or the headers of a trusted gateway (docs/SECURITY.md).

use std::time::Instant;

use actix_web::{
    HttpMessage, HttpRequest,
    http::header::{self, HeaderMap, HeaderName, HeaderValue},
};
use chatting_actors::types::{Nickname, PresenterIdx, Role, UserIdx};

use super::{answers::Asker, state::State};
use crate::{
    auth::{Claims, ForwardedError, Needed, TokenError, Untrusted},
    error::{ApiError, Code},
    limits::TooOften,
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
    Untrusted(Untrusted),
    /// A header of the gateway is missing or bad.
    Forwarded(ForwardedError),
    /// The name is too long.
    Nickname(usize),
    /// They are known, and send too often.
    Often(TooOften),
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
            Unknown::Untrusted(why) => ApiError::new(Code::Forbidden).with_detail(why.to_string()),
            Unknown::Forwarded(error) => ApiError::new(Code::Unauthenticated).with_detail(error.to_string()),
            Unknown::Nickname(max) => {
                let detail = format!("nickname: it is longer than {max} characters");
                ApiError::new(Code::InvalidMessage).with_detail(detail)
            }
            Unknown::Often(often) => often.error("this user sends too often"),
        }
    }
}

static TOKEN: HeaderName = HeaderName::from_static("token");

/// What a header says of a token, where it says anything.
type Told<'a> = Option<Result<&'a str, TokenError>>;

/// The token of a request: `Authorization: Bearer`, or the header `token`; `None` where there is none. One that is no text is no
/// JWT, and where either is there twice it is refused, whichever of them counts.
pub fn token(request: &HttpRequest) -> Told<'_> {
    either(request, |bearer, other| bearer.or(other))
}

/// The same on a legacy route, where `token` counts before `Authorization`: the old server knew no other, so what a mesh
/// or a cloud's gateway puts beside it is not for us.
pub fn legacy_token(request: &HttpRequest) -> Told<'_> {
    either(request, |bearer, other| other.or(bearer))
}

/// What `choose` makes of `Authorization: Bearer` and `token`, unless one of them is there twice.
fn either<'a>(request: &'a HttpRequest, choose: impl FnOnce(Told<'a>, Told<'a>) -> Told<'a>) -> Told<'a> {
    let headers = request.headers();
    let other = only(headers, &TOKEN, "token");
    let authorization = only(headers, &header::AUTHORIZATION, "Authorization");
    for told in [other, authorization] {
        if let Some(Err(TokenError::Twice(_))) = told {
            return told;
        }
    }
    let bearer = match authorization {
        Some(Ok(value)) => {
            // One that says Bearer and nothing more is a token that is empty, not none.
            let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
            scheme.eq_ignore_ascii_case("bearer").then(|| Ok(token.trim()))
        }
        other => other,
    };
    choose(bearer, other)
}

/// The text of a header, if it is there; `shown` is its name as people write it.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName, shown: &'static str) -> Option<Result<&'a str, TokenError>> {
    let mut values = headers.get_all(name);
    let text = |value: &'a HeaderValue| std::str::from_utf8(value.as_bytes()).map_err(|_| TokenError::Malformed);
    let value = values.next().map(text);
    match values.next() {
        Some(_) => Some(Err(TokenError::Twice(shown))),
        None => value,
    }
}

/// Who this token, as [`token`] gives it, says is asking. Counts a refusal.
pub async fn admit(token: Result<&str, TokenError>, state: &State) -> Result<Claims, TokenError> {
    match token {
        Ok(token) => state.tokens.admit(token).await,
        Err(error) => Err(refuse(error, state)),
    }
}

/// Counts a token that was refused for what its signature does not tell.
pub fn refuse(error: TokenError, state: &State) -> TokenError {
    state.tokens.count(error);
    error
}

/// Who the old header `token` says is asking; `None` where it is not there.
pub async fn by_legacy_token(request: &HttpRequest, state: &State) -> Option<Result<Claims, TokenError>> {
    Some(admit(only(request.headers(), &TOKEN, "token")?, state).await)
}

/// Who a request's token says is asking. A long answer is theirs from then on.
pub async fn by_token(request: &HttpRequest, state: &State) -> Result<Claims, Unknown> {
    let claims = admit_needed(token(request), state).await?;
    request.extensions_mut().insert(Asker::of(&claims));
    Ok(claims)
}

async fn admit_needed(token: Told<'_>, state: &State) -> Result<Claims, Unknown> {
    let token = token.unwrap_or(Err(TokenError::Missing));
    admit(token, state).await.map_err(Unknown::Token)
}

/// Who is asking, by token or gateway, whether or not with a name. A long answer is theirs from then on.
pub async fn who(request: &HttpRequest, state: &State) -> Result<Claims, Unknown> {
    let claims = by_mode(request, state, Needed::Number).await?;
    request.extensions_mut().insert(Asker::of(&claims));
    Ok(claims)
}

/// Who is asking, as `auth.mode` has it.
async fn by_mode(request: &HttpRequest, state: &State, needed: Needed) -> Result<Claims, Unknown> {
    let Some(gateway) = &state.gateway else {
        let token = match needed {
            Needed::Number | Needed::Name => token(request),
            // What the legacy `/send/message` needs, and no other route does.
            Needed::All => legacy_token(request),
        };
        return admit_needed(token, state).await;
    };
    let peer = request.peer_addr().map(|peer| peer.ip());
    if let Err(why) = gateway.check_peer(peer, request.headers()) {
        state.metrics.forward_refused.inc();
        return Err(Unknown::Untrusted(why));
    }
    gateway.read(request.headers(), needed).map_err(Unknown::Forwarded)
}

/// Who is asking to chat, by token or gateway; of the gateway's headers those that are `needed`. Counts one more message of this user,
/// also where it is refused then (rule 19).
pub async fn sender(request: &HttpRequest, state: &State, needed: Needed) -> Result<Sender, Unknown> {
    let mut claims = by_mode(request, state, needed).await?;
    let nickname = claims.nickname.take();
    // The gateway's is there: it is needed.
    let nickname = nickname.ok_or_else(|| Unknown::Token(refuse(TokenError::BadClaim("nickname"), state)))?;
    let within = state.rates.senders.take(claims.user_idx, Instant::now());
    within.map_err(Unknown::Often)?;
    let max = state.limits.nickname_chars;
    let nickname = Nickname::new(&nickname, max).map_err(|_| Unknown::Nickname(max))?;
    Ok(Sender {
        user_idx: claims.user_idx,
        nickname,
        claims,
    })
}
