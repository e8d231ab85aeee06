//! Reads one JWT: the algorithm before the signature, the signature before the claims.
//!
//! A header chooses among the keys that are there, by `kid` and `alg`, and does nothing else: no `jku`, `x5u`, `jwk` or `x5c` is
//! looked at, and a key is only ever tried for the one algorithm that it is for.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chatting_actors::clock::system_ms;
use jsonwebtoken::{Header, Validation, decode, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};

use super::{
    cache::Good,
    claims::{ClaimNames, Payload, seconds},
    key::Key,
    keys::Keys,
};
use crate::{
    error::{Code, Lang},
    settings::Algorithm,
};

/// How tokens are read, whatever the keys.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// `auth.leeway_seconds`, for `exp` and `nbf`.
    pub leeway_seconds: u64,
    /// `auth.issuer`, when it is checked.
    pub issuer: Option<String>,
    /// `auth.audience`, when it is checked.
    pub audience: Option<String>,
    /// What claims are called.
    pub names: ClaimNames,
    /// `auth.max_token_bytes`
    pub max_token_bytes: usize,
    /// `auth.jwks_algorithms`, where keys are published (`auth.jwks_url`).
    pub published: Option<Vec<Algorithm>>,
}

/// When a token is good, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    exp: u64,
    nbf: Option<u64>,
}

impl Times {
    fn of(claims: &Map<String, Value>) -> Self {
        Self {
            exp: claims.get("exp").and_then(seconds).unwrap_or(0),
            nbf: claims.get("nbf").and_then(seconds),
        }
    }

    /// Whether now is such a time. For a token that was good before: a clock may have been set back, too.
    pub fn check(self, leeway: u64) -> Result<(), TokenError> {
        let now = u64::try_from(system_ms() / 1000).unwrap_or(0);
        if self.exp < now.saturating_sub(leeway) {
            return Err(TokenError::Expired);
        }
        if self.nbf.is_some_and(|nbf| nbf > now.saturating_add(leeway)) {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }
}

/// Why a token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// There is none, or an empty one.
    Missing,
    /// This header, which has it, is there twice: whoever looked at the request before may have looked at the other one.
    Twice(&'static str),
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
    /// It names a key that is not known, and none that is fits.
    UnknownKey,
    /// No key is there to check it with: none that is published could be fetched yet, or not for too long.
    KeysUnavailable,
    /// A claim is missing or of the wrong type; which.
    BadClaim(&'static str),
}

impl TokenError {
    /// The row of the error table.
    pub fn code(self) -> Code {
        match self {
            Self::Expired => Code::TokenExpired,
            Self::KeysUnavailable => Code::KeysUnavailable,
            _ => Code::Unauthenticated,
        }
    }

    /// What is wrong, in English; never any part of the token.
    pub fn detail(self) -> String {
        match self {
            Self::Missing => "no token: send Authorization: Bearer, or the header token".into(),
            Self::Twice(header) => format!("the header {header} is there twice"),
            Self::TooLong => "the token is too long".into(),
            Self::Malformed => "the token is not a JWT".into(),
            Self::WrongAlgorithm => "the token's algorithm or type is not the one in use".into(),
            Self::BadSignature => "the token's signature is wrong".into(),
            Self::Expired => "the token has expired".into(),
            Self::NotYetValid => "the token is not valid yet".into(),
            Self::UnknownKey => {
                "the key that the token names is not known; if it is new, try again in a few seconds".into()
            }
            Self::KeysUnavailable => "the keys that tokens are checked with cannot be fetched now".into(),
            Self::BadClaim(claim) => format!("the token's claim for {claim} is missing or not valid"),
        }
    }

    /// The legacy dialect's text (docs/LEGACY.md).
    pub fn legacy_text(self) -> &'static str {
        match self {
            Self::Missing => "Token null",
            Self::Expired => "토큰이 만료되었습니다.",
            Self::BadSignature | Self::UnknownKey => "토큰이 변조되었습니다.",
            Self::WrongAlgorithm => "토큰의 유형이 아닙니다.",
            Self::KeysUnavailable => Code::KeysUnavailable.title(Lang::Korean),
            Self::Twice(_) | Self::TooLong | Self::Malformed | Self::NotYetValid | Self::BadClaim(_) => "Jwt Exception",
        }
    }

    /// One of each kind.
    pub const ALL: &'static [Self] = &[
        Self::Missing,
        Self::Twice("token"),
        Self::TooLong,
        Self::Malformed,
        Self::WrongAlgorithm,
        Self::BadSignature,
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownKey,
        Self::KeysUnavailable,
        Self::BadClaim("user"),
    ];

    /// The label in the metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Twice(_) => "twice",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownKey => "unknown_key",
            Self::KeysUnavailable => "keys_unavailable",
            Self::BadClaim(_) => "bad_claim",
        }
    }

    /// Whether the keys may change so that the token is good, without it being another.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::UnknownKey | Self::KeysUnavailable)
    }
}

/// Reads tokens by the rules.
pub(super) struct Reader {
    pub(super) rules: TokenRules,
    /// What a token of each algorithm must be. Made once: making one costs more than reading a token.
    validations: Vec<(Algorithm, Validation)>,
}

impl Reader {
    pub(super) fn new(rules: TokenRules) -> Self {
        let all = Algorithm::ALL.iter();
        Self {
            validations: all.map(|&algorithm| (algorithm, rules.validation(algorithm))).collect(),
            rules,
        }
    }

    /// What the token says, if one of these keys signed it and its time is now.
    pub(super) fn read(&self, token: &str, keys: &Keys) -> Result<Good, TokenError> {
        let header = header(token, |name| self.is_in_use(name, keys))?;
        let named = header.kid.as_deref();
        if let Some(key) = named.and_then(|kid| keys.published.iter().find(|key| key.kid.as_deref() == Some(kid))) {
            return self.read_with(token, &header, key);
        }
        let mut refused = None;
        for key in keys.of_settings.iter().filter(|key| key.algorithm.jwt() == header.alg) {
            match self.read_with(token, &header, key) {
                Err(TokenError::BadSignature) => refused = Some(TokenError::BadSignature),
                other => return other,
            }
        }
        let may_be_published = |algorithm: &Algorithm| algorithm.jwt() == header.alg;
        if !self.rules.published.iter().flatten().any(may_be_published) {
            return Err(refused.unwrap_or(TokenError::WrongAlgorithm));
        }
        if keys.published.is_empty() {
            return Err(TokenError::KeysUnavailable);
        }
        // Without a name, only a key that cannot be mistaken for another: trying them all would cost a signature each.
        let mut same = keys.published.iter().filter(|key| key.algorithm.jwt() == header.alg);
        match (named, same.next(), same.next()) {
            (None, Some(key), None) => self.read_with(token, &header, key),
            _ => Err(TokenError::UnknownKey),
        }
    }

    /// Whether any key is, or may come to be, for the algorithm of that name.
    fn is_in_use(&self, name: &str, keys: &Keys) -> bool {
        let mut all = keys.of_settings.iter().map(|key| key.algorithm);
        all.any(|algorithm| algorithm.name() == name)
            || self
                .rules
                .published
                .iter()
                .flatten()
                .any(|algorithm| algorithm.name() == name)
    }

    fn read_with(&self, token: &str, header: &Header, key: &Key) -> Result<Good, TokenError> {
        if header.alg != key.algorithm.jwt() {
            return Err(TokenError::WrongAlgorithm);
        }
        let of = self
            .validations
            .iter()
            .find(|(algorithm, _)| *algorithm == key.algorithm);
        let (_, validation) = of.ok_or(TokenError::WrongAlgorithm)?;
        let payload = decode::<Payload>(token, &key.decoding, validation).map_err(|error| match error.kind() {
            // A changed signature is rarely base64 still: its last character has bits that must be zero.
            ErrorKind::Base64(_) if !has_readable_signature(token) => TokenError::BadSignature,
            kind => refused(kind),
        })?;
        let claims = payload.claims.0;
        Ok(Good {
            claims: self.rules.names.read(&claims)?,
            times: Times::of(&claims),
        })
    }
}

impl TokenRules {
    /// What a token must be that this algorithm signs: of it and no other, with an `exp`.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm.jwt());
        validation.leeway = self.leeway_seconds;
        validation.validate_nbf = true;
        validation.validate_aud = self.audience.is_some();
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            validation.required_spec_claims.insert("aud".into());
        }
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".into());
        }
        validation
    }
}

/// The token's header, if it is a JWT's and asks for nothing that we would have to understand.
fn header(token: &str, in_use: impl Fn(&str) -> bool) -> Result<Header, TokenError> {
    let header = decode_header(token).map_err(|error| match error.kind() {
        // `none` and names that nobody knows do not parse into an algorithm.
        ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName if names_another_algorithm(token, &in_use) => {
            TokenError::WrongAlgorithm
        }
        ErrorKind::UnsupportedAlgorithm | ErrorKind::InvalidAlgorithm => TokenError::WrongAlgorithm,
        _ => TokenError::Malformed,
    })?;
    let jwt = header.typ.as_deref().is_none_or(|typ| typ.eq_ignore_ascii_case("JWT"));
    // `crit` names extensions that a reader has to refuse when it does not know them (RFC 7515, 4.1.11). `enc` is of a token
    // that is encrypted, `zip` of one that is packed, `cty` JWT of one in another: none of them is read here.
    let nested = header.cty.as_deref().is_some_and(|cty| cty.eq_ignore_ascii_case("JWT"));
    let more = header.crit.is_some() || header.enc.is_some() || header.zip.is_some() || nested;
    if !jwt || more {
        return Err(TokenError::WrongAlgorithm);
    }
    Ok(header)
}

fn has_readable_signature(token: &str) -> bool {
    let signature = token.rsplit('.').next().unwrap_or_default();
    URL_SAFE_NO_PAD.decode(signature).is_ok()
}

/// Whether the header is readable JSON that names an algorithm that is not in use, whichever it is.
fn names_another_algorithm(token: &str, in_use: impl Fn(&str) -> bool) -> bool {
    let header = token.split('.').next().unwrap_or_default();
    URL_SAFE_NO_PAD
        .decode(header)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .and_then(|header| Some(!in_use(header.get("alg")?.as_str()?)))
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
