//! Tokens: only what was signed is believed, and only as it was signed.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chatting_actors::{clock::system_ms, metrics::Metrics};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

use super::{any_text, mutated, mutated_text};
use crate::{
    auth::{TokenError, TokenVerifier, jwks},
    settings::{self, Secret, Settings},
    startup,
};

const KEY: &str = "a key for tests, of thirty-two bytes or more";
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Keys of RFC 8037, A.2, one with its private part, and of RFC 7517, A.1; and a secret.
const JWKS: &[&str] = &[
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"ed","use":"sig"},
        {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"shown","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}]}"#,
    r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"ec","alg":"ES256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"},{"kty":"oct","kid":"s","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ"}]}"#,
];

fn verifier() -> TokenVerifier {
    let mut settings = Settings::default();
    settings.auth.hs256_secret = Secret::new(KEY);
    let (rules, keys) = (startup::token_rules(&settings), startup::keys(&settings).unwrap());
    TokenVerifier::new(rules, keys, None, 0, Metrics::default())
}

fn now() -> i64 {
    system_ms() / 1000
}

/// Signs whatever these bytes are.
fn signed(header: &[u8], payload: &[u8]) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = EncodingKey::from_secret(KEY.as_bytes());
    let signature = crypto::sign(text.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{text}.{signature}")
}

fn claims() -> Value {
    json!({ "user_idx": 7, "nickname": "kim", "role": "moderator", "rooms": [12, "13"], "iat": now(), "exp": now() + 3600 })
}

fn good() -> String {
    signed(HEADER.as_bytes(), claims().to_string().as_bytes())
}

/// A value that a claim should hardly have.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any_text(), inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn a_token_that_was_changed_anywhere_is_refused(token in mutated_text([good()])) {
        let original = token == good() || verifier().verify(&token).is_ok_and(|_| token.split('.').count() == 3);
        match verifier().verify(&token) {
            // The clock may have moved on between the two, so that another good token was made.
            Ok(claims) => prop_assert!(original && claims.user_idx.get() == 7),
            Err(error) => prop_assert!(!error.detail().contains(&token) || token.len() < 4),
        }
    }

    #[test]
    fn one_changed_byte_is_enough(at in any::<Index>(), byte in any::<u8>()) {
        let token = good();
        let mut changed = token.clone().into_bytes();
        let at = at.index(changed.len());
        changed[at] = byte;
        let changed = String::from_utf8_lossy(&changed).into_owned();
        prop_assert_eq!(verifier().verify(&changed).is_ok(), changed == token);
    }

    /// The signature is good, and what it signs is noise.
    #[test]
    fn a_signed_payload_is_read_as_what_it_says_or_refused(payload in mutated([claims().to_string()])) {
        if let Ok(read) = verifier().verify(&signed(HEADER.as_bytes(), &payload)) {
            let payload: Value = serde_json::from_slice(&payload).unwrap();
            prop_assert_eq!(payload["user_idx"].as_i64(), Some(read.user_idx.get()));
            prop_assert!(read.user_idx.get() >= 0);
            let exp = payload["exp"].as_f64().unwrap();
            prop_assert!(exp * 1000.0 > system_ms() as f64 - 10_000.0, "{}", exp);
        }
    }

    #[test]
    fn a_claim_of_any_kind_is_read_as_it_is_or_refused(
        name in prop_oneof![Just("user_idx"), Just("nickname"), Just("role"), Just("rooms"), Just("exp"), Just("iat"), Just("nbf"), Just("aud"), Just("sub")],
        value in any_value(),
    ) {
        let mut claims = claims();
        claims[name] = value.clone();
        match (verifier().verify(&signed(HEADER.as_bytes(), claims.to_string().as_bytes())), name) {
            (Ok(read), "user_idx") => prop_assert_eq!(value.as_i64(), Some(read.user_idx.get())),
            (Ok(read), "nickname") => prop_assert_eq!(value.as_str(), read.nickname.as_deref()),
            (Ok(_), "exp") => prop_assert!(value.is_number()),
            (Ok(_), _) => {}
            (Err(TokenError::BadSignature | TokenError::WrongAlgorithm | TokenError::Missing | TokenError::TooLong), _) => {
                prop_assert!(false, "{} = {}", name, value);
            }
            (Err(_), _) => {}
        }
    }

    /// Each key of a set is taken or named with the reason; none is taken that everyone can sign with.
    #[test]
    fn a_set_of_keys_is_read_or_refused_by_name(body in mutated(JWKS)) {
        let allowed = settings::Algorithm::ALL;
        match jwks::read(&body, allowed) {
            Ok(read) => {
                let body: Value = serde_json::from_slice(&body).unwrap();
                let keys = body["keys"].as_array().unwrap();
                prop_assert_eq!(read.keys.len() + read.skipped.len(), keys.len());
                let private = keys.iter().filter(|key| key["kty"] == "oct" || key.get("d").is_some()).count();
                prop_assert!(read.skipped.len() >= private);
                prop_assert!(read.keys.iter().all(|key| allowed.contains(&key.algorithm)));
            }
            Err(why) => prop_assert!(why.contains("JWK set"), "{}", why),
        }
    }

    #[test]
    fn a_header_of_any_kind_lets_in_nothing_but_hs256(header in mutated([HEADER, r#"{"alg":"none"}"#, r#"{"alg":"HS256","kid":"../../key","jku":"http://x/"}"#])) {
        if verifier().verify(&signed(&header, claims().to_string().as_bytes())).is_ok() {
            let header: Value = serde_json::from_slice(&header).unwrap();
            prop_assert_eq!(&header["alg"], "HS256");
        }
    }
}
