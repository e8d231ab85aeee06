//! Mints HS256 tokens, for the `token` command, the demo and tests.

use chatting_actors::types::Role;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Map, Value, json};

use crate::settings::Auth;

/// What a minted token says.
pub struct Mint<'a> {
    /// The user's number.
    pub user_idx: i64,
    /// The name shown beside messages.
    pub nickname: &'a str,
    /// `moderator` or `operator`.
    pub role: Option<Role>,
    /// What a moderator is staff of.
    pub rooms: &'a [String],
    /// Seconds since 1970.
    pub issued_at: i64,
    /// Seconds until it expires.
    pub ttl_seconds: i64,
    /// How claims are named, and `iss` and `aud` where they are set.
    pub auth: &'a Auth,
}

/// A token signed with this key. The error says why signing failed, never with what.
pub fn mint(key: &[u8], mint: &Mint<'_>) -> Result<String, String> {
    let auth = mint.auth;
    let mut claims = Map::new();
    claims.insert(auth.claim_user.clone(), json!(mint.user_idx));
    claims.insert(auth.claim_nickname.clone(), json!(mint.nickname));
    if let Some(role) = mint.role {
        claims.insert(auth.claim_role.clone(), json!(role.as_str()));
    }
    if !mint.rooms.is_empty() {
        claims.insert(auth.claim_rooms.clone(), json!(mint.rooms));
    }
    claims.insert("iat".into(), json!(mint.issued_at));
    claims.insert("exp".into(), json!(mint.issued_at.saturating_add(mint.ttl_seconds)));
    for (name, value) in [("iss", &auth.issuer), ("aud", &auth.audience)] {
        if !value.is_empty() {
            claims.insert(name.into(), Value::String(value.clone()));
        }
    }
    encode(&Header::default(), &claims, &EncodingKey::from_secret(key)).map_err(|error| error.to_string())
}
