//! Mints tokens, for the `token` command, the demo and tests.

use chatting_actors::types::Role;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Map, Value, json};

use crate::settings::{Algorithm, Auth};

/// A key to sign tokens with. Secret, so it has no `Debug`.
pub struct SigningKey {
    algorithm: Algorithm,
    key: EncodingKey,
    kid: Option<String>,
}

impl SigningKey {
    /// An HS256 key.
    pub fn secret(bytes: &[u8]) -> Self {
        Self {
            algorithm: Algorithm::Hs256,
            key: EncodingKey::from_secret(bytes),
            kid: None,
        }
    }

    /// A private key in PEM (PKCS#8, for RSA PKCS#1 too). The error says what is wrong, never with what.
    pub fn pem(algorithm: Algorithm, pem: &[u8]) -> Result<Self, String> {
        let key = match algorithm {
            Algorithm::Hs256 => return Err("HS256 has no private key: name the key's algorithm by --algorithm".into()),
            Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 | Algorithm::Ps256 => EncodingKey::from_rsa_pem(pem),
            Algorithm::Es256 | Algorithm::Es384 => EncodingKey::from_ec_pem(pem),
            Algorithm::EdDsa => EncodingKey::from_ed_pem(pem),
        };
        let key = key.map_err(|_| format!("it is no private key in PEM (PKCS#8) for {algorithm}"))?;
        Ok(Self {
            algorithm,
            key,
            kid: None,
        })
    }

    /// Has tokens name the key.
    #[must_use]
    pub fn named(mut self, kid: impl Into<String>) -> Self {
        self.kid = Some(kid.into());
        self
    }
}

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
pub fn mint(key: &SigningKey, mint: &Mint<'_>) -> Result<String, String> {
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
    let header = Header {
        kid: key.kid.clone(),
        ..Header::new(key.algorithm.jwt())
    };
    encode(&header, &claims, &key.key).map_err(|error| error.to_string())
}
