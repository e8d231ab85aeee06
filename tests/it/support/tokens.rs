//! Tokens made here rather than by the server's own code, so that each can be wrong in one way.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chatting_actors::clock::system_ms;
use jsonwebtoken::{Algorithm, EncodingKey, crypto::sign};
use serde_json::{Value, json};

use super::app::KEY;

/// A token that must be refused.
pub struct BadToken {
    /// What is wrong with it.
    pub what: &'static str,
    pub token: String,
    /// What the legacy dialect says of it.
    pub legacy_text: &'static str,
}

/// The claims of a good token of that user.
pub fn claims(user_idx: i64) -> Value {
    let now = system_ms() / 1000;
    json!({ "user_idx": user_idx, "nickname": "kim", "sub": "kim@example.com", "iat": now, "exp": now + 3600 })
}

/// A token with that header and these claims, signed with `key` by the algorithm of that name.
pub fn sign_with(header: &str, claims: &Value, algorithm: Algorithm, key: &str) -> String {
    let text = [header, &claims.to_string()]
        .map(|part| URL_SAFE_NO_PAD.encode(part))
        .join(".");
    let signature = sign(text.as_bytes(), &EncodingKey::from_secret(key.as_bytes()), algorithm).unwrap();
    format!("{text}.{signature}")
}

/// An HS256 token with these claims.
pub fn signed(claims: &Value) -> String {
    sign_with(r#"{"alg":"HS256","typ":"JWT"}"#, claims, Algorithm::HS256, KEY)
}

/// Every way in which a token can be bad, with `user_idx` for the user where it still has one.
pub fn bad_tokens(user_idx: i64) -> Vec<BadToken> {
    const FORGED: &str = "토큰이 변조되었습니다.";
    const WRONG_KIND: &str = "토큰의 유형이 아닙니다.";
    const EXPIRED: &str = "토큰이 만료되었습니다.";
    const BROKEN: &str = "Jwt Exception";
    let hs256 = r#"{"alg":"HS256","typ":"JWT"}"#;
    let good = claims(user_idx);
    let now = system_ms() / 1000;
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        signed(&claims)
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        signed(&claims)
    };
    let whole = signed(&good);
    let [header, _, signature] = whole.split('.').collect::<Vec<_>>().try_into().unwrap();
    let other_claims = URL_SAFE_NO_PAD.encode(claims(user_idx + 1).to_string());
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let payload = URL_SAFE_NO_PAD.encode(good.to_string());
    let key = "another key for tests, of thirty-two bytes or more";
    let rows = [
        ("expired", with("exp", json!(now - 60)), EXPIRED),
        (
            "signed with another key",
            sign_with(hs256, &good, Algorithm::HS256, key),
            FORGED,
        ),
        (
            "other claims under the signature",
            format!("{header}.{other_claims}.{signature}"),
            FORGED,
        ),
        (
            "HS512",
            sign_with(r#"{"alg":"HS512","typ":"JWT"}"#, &good, Algorithm::HS512, KEY),
            WRONG_KIND,
        ),
        ("no algorithm", format!("{none}.{payload}."), WRONG_KIND),
        (
            "another type",
            sign_with(r#"{"alg":"HS256","typ":"JWE"}"#, &good, Algorithm::HS256, KEY),
            WRONG_KIND,
        ),
        ("one word", "forged".to_owned(), BROKEN),
        ("three words", "a.b.c".to_owned(), BROKEN),
        ("cut", whole[..whole.rfind('.').unwrap()].to_owned(), BROKEN),
        ("without user_idx", without("user_idx"), BROKEN),
        (
            "user_idx as text",
            with("user_idx", json!(user_idx.to_string())),
            BROKEN,
        ),
        ("user_idx null", with("user_idx", Value::Null), BROKEN),
        ("without exp", without("exp"), BROKEN),
        ("not yet valid", with("nbf", json!(now + 60)), BROKEN),
    ];
    rows.map(|(what, token, legacy_text)| BadToken {
        what,
        token,
        legacy_text,
    })
    .into()
}
