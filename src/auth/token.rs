//! Reads JWTs: HS256 only, the algorithm before the signature, the signature before the claims.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chatting_actors::types::{PresenterIdx, Role, UserIdx};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, errors::ErrorKind};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::error::Code;

/// How tokens are read. Holds the key, so it has no `Debug`.
pub struct TokenSettings {
    /// The HS256 key, at least 32 bytes.
    pub key: Vec<u8>,
    /// `auth.leeway_seconds`, for `exp` and `nbf`.
    pub leeway_seconds: u64,
    /// `auth.issuer`, when it is checked.
    pub issuer: Option<String>,
    /// `auth.audience`, when it is checked.
    pub audience: Option<String>,
    /// `auth.claim_user`
    pub claim_user: String,
    /// `auth.claim_nickname`
    pub claim_nickname: String,
    /// `auth.claim_role`
    pub claim_role: String,
    /// `auth.claim_rooms`
    pub claim_rooms: String,
    /// `auth.max_token_bytes`
    pub max_token_bytes: usize,
}

/// The rooms that a moderator's token names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rooms {
    /// None.
    #[default]
    None,
    /// `"*"`
    All,
    /// These presenters'.
    Some(Vec<PresenterIdx>),
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The user's number.
    pub user_idx: UserIdx,
    /// The name shown beside messages, where the token has one.
    pub nickname: Option<String>,
    /// `moderator` or `operator`, else `viewer`: a presenter is known by the number, never by the claim.
    pub role: Role,
    /// What a moderator is staff of.
    pub rooms: Rooms,
    /// When its time is over, in milliseconds since 1970; what a gateway vouches for has no end of its own.
    pub expires_at_ms: i64,
}

impl Claims {
    /// Rule 18: `presenter` where user_idx = presenter_idx, else from the token's role claim, else `viewer`.
    pub fn role_in(&self, room: PresenterIdx) -> Role {
        if self.user_idx.presents(room) {
            return Role::Presenter;
        }
        match (self.role, &self.rooms) {
            (Role::Moderator, Rooms::All) => Role::Moderator,
            (Role::Moderator, Rooms::Some(rooms)) if rooms.contains(&room) => Role::Moderator,
            (Role::Operator, _) => Role::Operator,
            _ => Role::Viewer,
        }
    }

    /// Staff of a room: its presenter, its moderators, operators.
    pub fn is_staff_of(&self, room: PresenterIdx) -> bool {
        self.role_in(room) != Role::Viewer
    }
}

/// Why a token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// There is none, or an empty one.
    Missing,
    /// It is over `auth.max_token_bytes`.
    TooLong,
    /// It is no JWT.
    Malformed,
    /// Another algorithm, `none`, or another type than JWT.
    WrongAlgorithm,
    /// The signature is not ours.
    BadSignature,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// A claim is missing or of the wrong type; which.
    BadClaim(&'static str),
}

impl TokenError {
    /// The row of the error table.
    pub fn code(self) -> Code {
        match self {
            Self::Expired => Code::TokenExpired,
            _ => Code::Unauthenticated,
        }
    }

    /// What is wrong, in English; never any part of the token.
    pub fn detail(self) -> String {
        match self {
            Self::Missing => "no token: send Authorization: Bearer, or the header token".into(),
            Self::TooLong => "the token is too long".into(),
            Self::Malformed => "the token is not a JWT".into(),
            Self::WrongAlgorithm => "the token's algorithm or type is not the one in use".into(),
            Self::BadSignature => "the token's signature is wrong".into(),
            Self::Expired => "the token has expired".into(),
            Self::NotYetValid => "the token is not valid yet".into(),
            Self::BadClaim(claim) => format!("the token's claim for {claim} is missing or not valid"),
        }
    }

    /// The legacy dialect's text (legacy-protocol.md).
    pub fn legacy_text(self) -> &'static str {
        match self {
            Self::Missing => "Token null",
            Self::Expired => "토큰이 만료되었습니다.",
            Self::BadSignature => "토큰이 변조되었습니다.",
            Self::WrongAlgorithm => "토큰의 유형이 아닙니다.",
            Self::TooLong | Self::Malformed | Self::NotYetValid | Self::BadClaim(_) => "Jwt Exception",
        }
    }
}

/// Verifies tokens. Cheap to share, no locks.
pub struct TokenVerifier {
    settings: TokenSettings,
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenVerifier(HS256)")
    }
}

impl TokenVerifier {
    /// A verifier for these settings; the error names what is wrong with them.
    pub fn new(settings: TokenSettings) -> Result<Self, String> {
        if settings.key.len() < 32 {
            return Err("the HS256 key has fewer than 32 bytes".into());
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = settings.leeway_seconds;
        validation.validate_nbf = true;
        validation.validate_aud = settings.audience.is_some();
        let mut required = vec!["exp"];
        if let Some(audience) = &settings.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &settings.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        Ok(Self {
            key: DecodingKey::from_secret(&settings.key),
            settings,
            validation,
        })
    }

    /// What the token says, if it is ours and its time is now.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > self.settings.max_token_bytes {
            return Err(TokenError::TooLong);
        }
        self.check_header(token)?;
        let payload = decode::<Payload>(token, &self.key, &self.validation).map_err(|error| match error.kind() {
            // A changed signature is rarely base64 still: its last character has two bits that must be zero.
            ErrorKind::Base64(_) if !has_readable_signature(token) => TokenError::BadSignature,
            kind => refused(kind),
        })?;
        self.claims(payload.claims.0)
    }

    fn check_header(&self, token: &str) -> Result<(), TokenError> {
        let header = decode_header(token).map_err(|error| match error.kind() {
            // `none` and names that nobody knows do not parse into an algorithm.
            ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName if names_another_algorithm(token) => {
                TokenError::WrongAlgorithm
            }
            ErrorKind::UnsupportedAlgorithm | ErrorKind::InvalidAlgorithm => TokenError::WrongAlgorithm,
            _ => TokenError::Malformed,
        })?;
        let jwt = header.typ.as_deref().is_none_or(|typ| typ.eq_ignore_ascii_case("JWT"));
        // `crit` names extensions that a reader has to refuse when it does not know them (RFC 7515, 4.1.11).
        if header.alg != Algorithm::HS256 || !jwt || header.crit.is_some() {
            return Err(TokenError::WrongAlgorithm);
        }
        Ok(())
    }

    fn claims(&self, claims: Map<String, Value>) -> Result<Claims, TokenError> {
        let settings = &self.settings;
        let user_idx = claims
            .get(&settings.claim_user)
            .and_then(Value::as_i64)
            .and_then(UserIdx::new);
        let nickname = match claims.get(&settings.claim_nickname) {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return Err(TokenError::BadClaim("nickname")),
        };
        let role = match claims.get(&settings.claim_role) {
            None | Some(Value::Null) => Role::Viewer,
            Some(Value::String(name)) => match Role::parse(name) {
                Some(role @ (Role::Moderator | Role::Operator)) => role,
                _ => Role::Viewer,
            },
            Some(_) => return Err(TokenError::BadClaim("role")),
        };
        let issued = claims.get("iat");
        if issued.is_some_and(|at| !at.is_number()) {
            return Err(TokenError::BadClaim("iat"));
        }
        Ok(Claims {
            user_idx: user_idx.ok_or(TokenError::BadClaim("user"))?,
            nickname,
            role,
            rooms: rooms(claims.get(&settings.claim_rooms))?,
            expires_at_ms: claims.get("exp").map_or(i64::MAX, expiry_ms),
        })
    }
}

/// `exp` in milliseconds; it may have a fraction, and may be so far off that milliseconds cannot tell (RFC 7519, 2).
fn expiry_ms(exp: &Value) -> i64 {
    match exp.as_i64() {
        Some(seconds) => seconds.saturating_mul(1000),
        // A float saturates.
        None => exp.as_f64().map_or(i64::MAX, |seconds| (seconds * 1000.0) as i64),
    }
}

/// `"*"`, one number, or a list of numbers; numbers may be text.
fn rooms(claim: Option<&Value>) -> Result<Rooms, TokenError> {
    let bad = TokenError::BadClaim("rooms");
    let one = |value: &Value| match value {
        Value::String(text) => text.parse().ok().and_then(PresenterIdx::new),
        other => other.as_i64().and_then(PresenterIdx::new),
    };
    Ok(match claim {
        None | Some(Value::Null) => Rooms::None,
        Some(Value::String(all)) if all == "*" => Rooms::All,
        Some(Value::Array(list)) if list.iter().any(|room| room == "*") => Rooms::All,
        Some(Value::Array(list)) => Rooms::Some(list.iter().map(one).collect::<Option<_>>().ok_or(bad)?),
        Some(value) => Rooms::Some(vec![one(value).ok_or(bad)?]),
    })
}

fn has_readable_signature(token: &str) -> bool {
    let signature = token.rsplit('.').next().unwrap_or_default();
    URL_SAFE_NO_PAD.decode(signature).is_ok()
}

/// Whether the header is readable JSON that names an algorithm other than ours, whichever it is.
fn names_another_algorithm(token: &str) -> bool {
    let header = token.split('.').next().unwrap_or_default();
    URL_SAFE_NO_PAD
        .decode(header)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .and_then(|header| Some(header.get("alg")?.as_str()? != "HS256"))
        .unwrap_or(false)
}

fn refused(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::InvalidSignature => TokenError::BadSignature,
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYetValid,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            TokenError::WrongAlgorithm
        }
        ErrorKind::InvalidIssuer => TokenError::BadClaim("iss"),
        ErrorKind::InvalidAudience => TokenError::BadClaim("aud"),
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            let known = ["exp", "nbf", "aud", "iss", "sub"]
                .into_iter()
                .find(|known| known == claim);
            TokenError::BadClaim(known.unwrap_or("a standard claim"))
        }
        _ => TokenError::Malformed,
    }
}

/// A token's claims, refused when one of them is there twice: readers differ on which of the two counts.
struct Payload(Map<String, Value>);

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;

        impl<'de> Visitor<'de> for Once {
            type Value = Payload;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of claims")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Payload, A::Error> {
                let mut claims = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if claims.insert(name, value).is_some() {
                        return Err(A::Error::custom("a claim is there twice"));
                    }
                }
                Ok(Payload(claims))
            }
        }

        deserializer.deserialize_map(Once)
    }
}

#[cfg(test)]
mod tests;
