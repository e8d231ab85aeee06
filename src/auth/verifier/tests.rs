use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chatting_actors::clock::system_ms;
use chatting_actors::types::{PresenterIdx, Role};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::{super::Rooms, *};
use crate::{error::Code, settings::Settings, startup::token_rules};

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

fn rules() -> TokenRules {
    token_rules(&Settings::default())
}

fn with_rules(rules: TokenRules) -> TokenVerifier {
    let keys = vec![Key::secret(KEY).unwrap()];
    TokenVerifier::new(rules, keys, None, 100, Metrics::default())
}

fn verifier() -> TokenVerifier {
    with_rules(rules())
}

fn now() -> i64 {
    system_ms() / 1000
}

/// Signs any payload text, valid JSON or not.
fn signed(header: &str, payload: &str) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = EncodingKey::from_secret(KEY);
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{text}.{signature}")
}

fn token(claims: Value) -> String {
    signed(r#"{"alg":"HS256","typ":"JWT"}"#, &claims.to_string())
}

fn good() -> Value {
    json!({ "user_idx": 7, "nickname": "kim", "sub": "kim@example.com", "iat": now(), "exp": now() + 60 })
}

fn with(name: &str, value: Value) -> String {
    let mut claims = good();
    claims[name] = value;
    token(claims)
}

#[test]
fn a_good_token_is_read() {
    let claims = verifier().verify(&token(good())).unwrap();
    assert_eq!((claims.user_idx.get(), claims.nickname.as_deref()), (7, Some("kim")));
    assert_eq!((claims.role, claims.rooms), (Role::Viewer, Rooms::None));
}

#[test]
fn every_bad_token_is_refused_with_its_own_error() {
    let hs512 = encode(&Header::new(Algorithm::HS512), &good(), &EncodingKey::from_secret(KEY)).unwrap();
    let forged = encode(
        &Header::default(),
        &good(),
        &EncodingKey::from_secret(b"another key of at least 32 bytes"),
    )
    .unwrap();
    let payload = URL_SAFE_NO_PAD.encode(good().to_string());
    let none = |header: &str| format!("{}.{payload}.", URL_SAFE_NO_PAD.encode(header));
    let whole = token(good());
    let rows = [
        (String::new(), TokenError::Missing),
        ("x".repeat(1 << 20), TokenError::TooLong),
        ("x".into(), TokenError::Malformed),
        ("..".into(), TokenError::Malformed),
        ("a.b.c.d".into(), TokenError::Malformed),
        ("토큰".into(), TokenError::Malformed),
        (format!("{whole}.x"), TokenError::Malformed),
        (whole[..whole.rfind('.').unwrap()].into(), TokenError::Malformed),
        (whole[..whole.len() - 3].into(), TokenError::BadSignature),
        (forged, TokenError::BadSignature),
        (hs512, TokenError::WrongAlgorithm),
        (none(r#"{"alg":"none"}"#), TokenError::WrongAlgorithm),
        (none(r#"{"alg":"NONE","typ":"JWT"}"#), TokenError::WrongAlgorithm),
        (none(r#"{"alg":"RS256","typ":"JWT"}"#), TokenError::WrongAlgorithm),
        (none(r#"{"typ":"JWT"}"#), TokenError::Malformed),
        (
            signed(r#"{"alg":"HS256","typ":"JWE"}"#, &good().to_string()),
            TokenError::WrongAlgorithm,
        ),
        (with("exp", json!(now() - 60)), TokenError::Expired),
        (with("nbf", json!(now() + 60)), TokenError::NotYetValid),
        (with("exp", json!("soon")), TokenError::BadClaim("exp")),
        (with("exp", json!(null)), TokenError::BadClaim("exp")),
        (with("user_idx", json!(null)), TokenError::BadClaim("user")),
        (with("user_idx", json!("7")), TokenError::BadClaim("user")),
        (with("user_idx", json!(true)), TokenError::BadClaim("user")),
        (with("user_idx", json!(7.5)), TokenError::BadClaim("user")),
        (with("user_idx", json!(-1)), TokenError::BadClaim("user")),
        (with("user_idx", json!(1_u64 << 63)), TokenError::BadClaim("user")),
        (with("user_idx", json!({ "id": 7 })), TokenError::BadClaim("user")),
        (with("nickname", json!(5)), TokenError::BadClaim("nickname")),
        (with("role", json!(["operator"])), TokenError::BadClaim("role")),
        (with("rooms", json!(["x"])), TokenError::BadClaim("rooms")),
        (with("iat", json!("now")), TokenError::BadClaim("iat")),
        (signed(r#"{"alg":"HS256"}"#, "not json"), TokenError::Malformed),
        (signed(r#"{"alg":"HS256"}"#, "[1]"), TokenError::Malformed),
        (
            signed(
                r#"{"alg":"HS256"}"#,
                &format!(r#"{{"user_idx":1,"user_idx":7,"exp":{}}}"#, now() + 60),
            ),
            TokenError::Malformed,
        ),
    ];
    for (token, error) in rows {
        let shown: String = token.chars().take(60).collect();
        assert_eq!(verifier().verify(&token), Err(error), "{shown}");
    }
}

#[test]
fn a_missing_exp_is_refused() {
    let mut claims = good();
    claims.as_object_mut().unwrap().remove("exp");
    assert_eq!(verifier().verify(&token(claims)), Err(TokenError::BadClaim("exp")));
}

#[test]
fn the_leeway_counts_at_both_ends_for_a_fresh_token_and_for_a_remembered_one() {
    let leeway = 600_i64;
    let verifier = with_rules(TokenRules {
        leeway_seconds: leeway.cast_unsigned(),
        ..rules()
    });
    for token in [
        with("exp", json!(now() - leeway / 2)),
        with("nbf", json!(now() + leeway / 2)),
    ] {
        for how in ["fresh", "remembered"] {
            assert!(verifier.verify(&token).is_ok(), "{how}");
        }
    }
    assert_eq!(verifier.remembered(), 2);
    let expired = with("exp", json!(now() - 2 * leeway));
    assert_eq!(verifier.verify(&expired), Err(TokenError::Expired));
    let early = with("nbf", json!(now() + 2 * leeway));
    assert_eq!(verifier.verify(&early), Err(TokenError::NotYetValid));
}

#[test]
fn issuer_and_audience_are_checked_when_they_are_set() {
    let strict = with_rules(TokenRules {
        issuer: Some("us".into()),
        audience: Some("chat".into()),
        ..rules()
    });
    let mut claims = good();
    assert_eq!(
        strict.verify(&token(claims.clone())).unwrap_err().code(),
        Code::Unauthenticated
    );
    claims["iss"] = json!("us");
    claims["aud"] = json!("chat");
    assert!(strict.verify(&token(claims.clone())).is_ok());
    assert!(verifier().verify(&token(claims.clone())).is_ok());
    claims["aud"] = json!("mail");
    assert_eq!(strict.verify(&token(claims)), Err(TokenError::BadClaim("aud")));
}

#[test]
fn rule_18_the_role_comes_from_the_number_and_the_token() {
    let room = PresenterIdx::new(12).unwrap();
    let role = |claims: &[(&str, Value)]| {
        let mut all = good();
        for (name, value) in claims {
            all[*name] = value.clone();
        }
        verifier().verify(&token(all)).unwrap().role_in(room)
    };
    assert_eq!(role(&[]), Role::Viewer);
    assert_eq!(role(&[("user_idx", json!(12))]), Role::Presenter);
    assert_eq!(role(&[("role", json!("presenter"))]), Role::Viewer);
    assert_eq!(role(&[("role", json!("emperor"))]), Role::Viewer);
    assert_eq!(role(&[("role", json!("operator"))]), Role::Operator);
    assert_eq!(role(&[("role", json!("moderator"))]), Role::Viewer);
    assert_eq!(
        role(&[("role", json!("moderator")), ("rooms", json!([11, "12"]))]),
        Role::Moderator
    );
    assert_eq!(
        role(&[("role", json!("moderator")), ("rooms", json!([11]))]),
        Role::Viewer
    );
    // A list of one, as the command `token` gives it, too; numbers as such or as text.
    for (rooms, is) in [
        (json!("*"), Role::Moderator),
        (json!(["*"]), Role::Moderator),
        (json!([11, "*"]), Role::Moderator),
        (json!(12), Role::Moderator),
        (json!("12"), Role::Moderator),
        (json!(13), Role::Viewer),
    ] {
        assert_eq!(
            role(&[("role", json!("moderator")), ("rooms", rooms.clone())]),
            is,
            "{rooms}"
        );
    }
    assert_eq!(
        role(&[("role", json!("operator")), ("user_idx", json!(12))]),
        Role::Presenter
    );
}

#[test]
fn no_error_and_no_debug_shows_the_key_or_the_token() {
    let token = with("exp", json!(1));
    let error = verifier().verify(&token).unwrap_err();
    let shown = format!("{:?} {} {:?}", error, error.detail(), verifier());
    assert!(
        !shown.contains("0123456789abcdef") && !shown.contains(&token[..20]),
        "{shown}"
    );
}

#[test]
fn a_token_with_any_character_of_its_signature_changed_is_forged() {
    let whole = token(good());
    let (text, signature) = whole.rsplit_once('.').unwrap();
    for at in [0, 20, signature.len() - 1] {
        // The last character has two bits that no signature uses: base64 refuses three of four changes to it.
        for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_!=".chars() {
            if signature.as_bytes()[at] == other as u8 {
                continue;
            }
            let changed = format!("{text}.{}{other}{}", &signature[..at], &signature[at + 1..]);
            assert_eq!(
                verifier().verify(&changed),
                Err(TokenError::BadSignature),
                "{at} {other}"
            );
        }
    }
    for changed in [format!("{text}."), format!("{whole}="), format!("{whole} ")] {
        assert_eq!(verifier().verify(&changed), Err(TokenError::BadSignature), "{changed}");
    }
    // Signed well, so that it is the payload that cannot be read.
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let key = EncodingKey::from_secret(KEY);
    for payload in ["!", "=", ""] {
        let text = format!("{header}.{payload}");
        let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256).unwrap();
        let token = format!("{text}.{signature}");
        assert_eq!(verifier().verify(&token), Err(TokenError::Malformed), "{payload}");
    }
}

#[test]
fn a_header_with_the_right_algorithm_that_cannot_be_read_is_malformed() {
    let rows = [
        (r#"{"alg":"HS256","kid":5}"#, TokenError::Malformed),
        (r#"{"alg":"HS256","typ":5}"#, TokenError::Malformed),
        (r#"{"alg":"HS256","typ":"JWT","typ":"JWT"}"#, TokenError::Malformed),
        // RFC 7515, 4.1.11: an extension that must be understood, and is not.
        (
            r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
            TokenError::WrongAlgorithm,
        ),
    ];
    for (header, error) in rows {
        assert_eq!(
            verifier().verify(&signed(header, &good().to_string())),
            Err(error),
            "{header}"
        );
    }
}

/// Claims whose nickname tells which key signed them.
fn by(key: &[u8], nickname: &str) -> String {
    let mut claims = good();
    claims["nickname"] = json!(nickname);
    encode(&Header::default(), &claims, &EncodingKey::from_secret(key)).unwrap()
}

const OLD: &[u8] = b"the key before, of thirty-two bytes or more";

#[test]
fn the_previous_key_counts_until_it_is_taken_away_and_what_it_verified_is_forgotten_then() {
    let metrics = Metrics::default();
    let (new, old) = (Key::secret(KEY).unwrap(), Key::secret(OLD).unwrap());
    let verifier = TokenVerifier::new(rules(), vec![new.clone(), old], None, 100, metrics.clone());
    let (by_new, by_old) = (by(KEY, "new"), by(OLD, "old"));
    for _ in 0..2 {
        assert!(verifier.verify(&by_new).is_ok() && verifier.verify(&by_old).is_ok());
    }
    assert_eq!(
        (metrics.token_cache_hits.get(), metrics.token_cache_misses.get()),
        (2, 2)
    );
    assert_eq!(verifier.remembered(), 2);
    assert!(verifier.set_keys(vec![new.clone()]));
    assert_eq!(verifier.remembered(), 0);
    assert_eq!(verifier.verify(&by_old), Err(TokenError::BadSignature));
    assert!(verifier.verify(&by_new).is_ok());
    // The same keys again change nothing, and forget nothing.
    assert!(!verifier.set_keys(vec![new]));
    assert_eq!(verifier.remembered(), 1);
}

#[test]
fn a_remembered_token_expires_like_any_other_and_bad_ones_are_not_remembered() {
    let verifier = with_rules(TokenRules {
        leeway_seconds: 0,
        ..rules()
    });
    // A fraction of a second is rounded, so it expires at a time that can be waited for without sleeping long.
    let soon = with("exp", json!(now() + 1));
    assert!(verifier.verify(&soon).is_ok());
    assert_eq!(verifier.remembered(), 1);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let refused = loop {
        match verifier.verify(&soon) {
            Err(error) => break error,
            Ok(_) => assert!(std::time::Instant::now() < until, "it is good for ever"),
        }
        std::thread::yield_now();
    };
    assert_eq!(refused, TokenError::Expired);
    assert_eq!(verifier.remembered(), 0);
    assert!(verifier.verify("x.y.z").is_err());
    assert_eq!(verifier.remembered(), 0);
}

#[test]
fn no_more_tokens_are_remembered_than_may_be() {
    let metrics = Metrics::default();
    let keys = vec![Key::secret(KEY).unwrap()];
    let verifier = TokenVerifier::new(rules(), keys.clone(), None, 32, metrics.clone());
    for n in 0..500 {
        verifier.verify(&with("nickname", json!(n.to_string()))).unwrap();
    }
    assert!((16..=32).contains(&verifier.remembered()), "{}", verifier.remembered());
    let none = TokenVerifier::new(rules(), keys, None, 0, metrics);
    none.verify(&token(good())).unwrap();
    assert_eq!(none.remembered(), 0);
}

#[test]
fn a_published_set_whose_keys_come_in_another_order_is_the_same_and_what_was_verified_is_kept() {
    let verifier = with_rules(TokenRules {
        published: Some(vec![crate::settings::Algorithm::Hs256]),
        ..rules()
    });
    let published = |kid: Option<&str>, key: &[u8]| {
        let mut key = Key::secret(key).unwrap();
        key.kid = kid.map(str::to_owned);
        key
    };
    let all = [
        published(Some("old"), OLD),
        published(Some("new"), KEY),
        published(None, KEY),
    ];
    let [old, new, unnamed] = &all;
    assert!(verifier.set_published(all.to_vec()));
    assert!(verifier.verify(&token(good())).is_ok());
    for same in [[unnamed, new, old], [new, old, unnamed]] {
        assert!(!verifier.set_published(same.map(Clone::clone).to_vec()));
        assert_eq!(verifier.remembered(), 1);
    }
    // As many keys, and not the same ones: a name has another key, or a key is there twice in place of one that is not.
    let renamed = [
        published(Some("old"), KEY),
        published(Some("new"), OLD),
        unnamed.clone(),
    ];
    assert!(verifier.set_published(renamed.to_vec()));
    assert_eq!(verifier.remembered(), 0);
    assert!(verifier.set_published(vec![old.clone(), unnamed.clone(), unnamed.clone()]));
}

#[test]
fn a_token_is_not_refused_for_want_of_a_key_that_came_while_it_was_looked_at() {
    let verifier = with_rules(TokenRules {
        published: Some(vec![crate::settings::Algorithm::Hs256]),
        ..rules()
    });
    let published = |kid: &str, key: &[u8]| {
        let mut key = Key::secret(key).unwrap();
        key.kid = Some(kid.into());
        key
    };
    verifier.set_published(vec![published("old", OLD)]);
    let new = b"the key after, of thirty-two bytes or more";
    let header = Header {
        kid: Some("new".into()),
        ..Header::default()
    };
    let token = encode(&header, &good(), &EncodingKey::from_secret(new)).unwrap();

    // No fetch may be asked for, as just behind one: what was refused stays so while the keys do.
    let keys = verifier.keys();
    let verdict = verifier.verify_by(&keys, &token);
    assert_eq!(verdict, Err(TokenError::UnknownKey));
    let stands = verifier.or_wait(&token, &keys, verdict.clone());
    assert!(matches!(stands, Verdict::Now(Err(TokenError::UnknownKey))));

    // The fetch ends between the look and the question whether to wait for one.
    verifier.set_published(vec![published("old", OLD), published("new", new)]);
    let stands = verifier.or_wait(&token, &keys, verdict);
    assert!(matches!(stands, Verdict::Now(Ok(_))));
}
