//! What a verified token says.

use std::fmt;

use chatting_actors::types::{PresenterIdx, Role, UserIdx};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use super::TokenError;

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
    /// When its time is over, in milliseconds since 1970: the end of the second that `exp` names, in which it is still good. What
    /// a gateway vouches for has no end of its own.
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

/// What claims are called.
#[derive(Clone, Debug)]
pub struct ClaimNames {
    /// `auth.claim_user`
    pub user: String,
    /// `auth.claim_nickname`
    pub nickname: String,
    /// `auth.claim_role`
    pub role: String,
    /// `auth.claim_rooms`
    pub rooms: String,
}

impl ClaimNames {
    /// Reads the claims of a token whose signature and times are good.
    pub(super) fn read(&self, claims: &Map<String, Value>) -> Result<Claims, TokenError> {
        let user_idx = claims.get(&self.user).and_then(Value::as_i64).and_then(UserIdx::new);
        let nickname = match claims.get(&self.nickname) {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return Err(TokenError::BadClaim("nickname")),
        };
        let role = match claims.get(&self.role) {
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
            rooms: rooms(claims.get(&self.rooms))?,
            expires_at_ms: claims.get("exp").map_or(i64::MAX, expiry_ms),
        })
    }
}

/// `exp` or `nbf` in whole seconds, rounded as the check of a fresh token rounds; it may have a fraction (RFC 7519, 2).
pub(super) fn seconds(at: &Value) -> Option<u64> {
    at.as_u64().or_else(|| Some(at.as_f64()?.round() as u64))
}

/// The end of the second `exp`, which may be so far off that milliseconds cannot tell.
fn expiry_ms(exp: &Value) -> i64 {
    let last = seconds(exp).and_then(|exp| i64::try_from(exp).ok());
    last.map_or(i64::MAX, |last| last.saturating_add(1).saturating_mul(1000))
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

/// A token's claims, refused when one of them is there twice: readers differ on which of the two counts.
pub(super) struct Payload(pub(super) Map<String, Value>);

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
