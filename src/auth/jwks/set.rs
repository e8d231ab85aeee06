//! Reads a JWK set (RFC 7517): the keys that tokens may be checked with, and why each other one is not.
//!
//! Each key is good for one algorithm: the one that it names, or the one that its kind leaves no choice about. Secrets (`oct`)
//! are never taken, whatever they say: who can read the set could sign with them. A key that shows its private part is not
//! taken either, for everyone can sign with it.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    auth::key::{Key, is_good_modulus},
    settings::Algorithm,
};

/// What a set holds.
#[derive(Default)]
pub struct Published {
    /// The keys to use.
    pub keys: Vec<Key>,
    /// The others: which, and why not.
    pub skipped: Vec<String>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// Reads a set; `allowed` is `auth.jwks_algorithms`. An error: it is no set, or none of its keys can be used.
pub fn read(body: &[u8], allowed: &[Algorithm]) -> Result<Published, String> {
    let set: Set = serde_json::from_slice(body).map_err(|_| "it is no JWK set".to_owned())?;
    let mut published = Published::default();
    for (n, jwk) in set.keys.iter().enumerate() {
        let kid = jwk.get("kid").and_then(Value::as_str);
        let known = |key: &Key| kid.is_some() && key.kid.as_deref() == kid;
        let key = match published.keys.iter().any(known) {
            true => Err("another key has the same kid".to_owned()),
            false => one(jwk, kid, allowed),
        };
        match key {
            Ok(key) => published.keys.push(key),
            Err(why) => {
                let name: String = kid.unwrap_or("without kid").chars().take(64).collect();
                published.skipped.push(format!("key {} ({name:?}): {why}", n + 1));
            }
        }
    }
    if published.keys.is_empty() {
        let why = match published.skipped.is_empty() {
            true => "it is empty".to_owned(),
            false => published.skipped.join("; "),
        };
        return Err(format!("the JWK set has no key to use: {why}"));
    }
    Ok(published)
}

fn one(jwk: &Value, kid: Option<&str>, allowed: &[Algorithm]) -> Result<Key, String> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if jwk.get("use").is_some_and(|used| used != "sig") {
        return Err("its use is not sig".into());
    }
    let verifies = |operations: &Value| {
        let operations = operations.as_array();
        operations.is_some_and(|operations| operations.iter().any(|operation| operation == "verify"))
    };
    if jwk.get("key_ops").is_some_and(|operations| !verifies(operations)) {
        return Err("its key_ops lack verify".into());
    }
    let kind = text("kty").unwrap_or_default();
    if kind == "oct" {
        return Err("a secret (oct) is never taken from a JWK set".into());
    }
    if jwk.get("d").is_some() {
        return Err("it shows its private part, so anyone can sign with it".into());
    }
    let rsa = |algorithm: &Algorithm| matches!(algorithm.name().as_bytes(), [b'R' | b'P', ..]);
    let fits: Vec<Algorithm> = match (kind, text("crv")) {
        ("RSA", _) => Algorithm::ALL.iter().copied().filter(rsa).collect(),
        ("EC", Some("P-256")) => vec![Algorithm::Es256],
        ("EC", Some("P-384")) => vec![Algorithm::Es384],
        ("OKP", Some("Ed25519")) => vec![Algorithm::EdDsa],
        _ => return Err("its kty or crv is not one that is supported".into()),
    };
    let algorithm = match jwk.get("alg") {
        None => allowed.iter().copied().find(|algorithm| fits.contains(algorithm)),
        Some(name) => name
            .as_str()
            .and_then(Algorithm::parse)
            .filter(|algorithm| fits.contains(algorithm)),
    };
    let algorithm = algorithm
        .filter(|algorithm| allowed.contains(algorithm))
        .ok_or("its algorithm is not supported, not in auth.jwks_algorithms, or not one of its kind of key")?;
    let part = |name: &str| {
        let bytes = text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        bytes.ok_or_else(|| format!("its {name} is missing or not base64url"))
    };
    let kid = kid.map(str::to_owned);
    match kind {
        "RSA" => {
            let (n, e) = (part("n")?, part("e")?);
            let key = RsaPublicKeyComponents { n: &n, e: &e };
            // With an exponent of 1 everyone can sign; none that is even can be used.
            let odd = e.last().is_some_and(|last| last % 2 == 1);
            let more = e
                .strip_suffix(&[1])
                .is_none_or(|before| before.iter().any(|byte| *byte != 0));
            let parsed = key.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256);
            if parsed.is_err() || !is_good_modulus(&n) || !odd || !more {
                return Err("it is not an RSA public key of 2048 to 8192 bits".into());
            }
            Ok(Key::rsa(kid, algorithm, &n, &e))
        }
        "EC" => Key::published(kid, algorithm, [vec![4], part("x")?, part("y")?].concat()),
        _ => Key::published(kid, algorithm, part("x")?),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL: &[Algorithm] = &[Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];

    /// RFC 8037, A.2; RFC 7517, A.1.
    fn ed25519() -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "ed" })
    }

    fn p256() -> Value {
        json!({
            "kty": "EC", "crv": "P-256", "kid": "ec",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        })
    }

    fn rsa() -> Value {
        json!({
            "kty": "RSA", "e": "AQAB", "kid": "rsa",
            "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3ok\
                  njhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQ\
                  vRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnq\
                  DKgw",
        })
    }

    fn with(mut jwk: Value, name: &str, value: Value) -> Value {
        jwk[name] = value;
        jwk
    }

    fn set(keys: &[Value]) -> Result<Published, String> {
        read(json!({ "keys": keys }).to_string().as_bytes(), ALL)
    }

    #[test]
    fn each_key_is_for_the_one_algorithm_that_it_names_or_that_its_kind_has() {
        let published = set(&[ed25519(), p256(), with(rsa(), "alg", json!("RS256"))]).unwrap();
        let found: Vec<_> = published
            .keys
            .iter()
            .map(|key| (key.kid.as_deref(), key.algorithm))
            .collect();
        let expected = [
            (Some("ed"), Algorithm::EdDsa),
            (Some("ec"), Algorithm::Es256),
            (Some("rsa"), Algorithm::Rs256),
        ];
        assert_eq!(found, expected);
        assert!(published.skipped.is_empty());
        let pss = [Algorithm::Ps256, Algorithm::Rs256];
        let body = json!({ "keys": [rsa()] }).to_string();
        let unnamed = read(body.as_bytes(), &pss).unwrap();
        assert_eq!(unnamed.keys[0].algorithm, Algorithm::Ps256);
    }

    #[test]
    fn a_key_that_must_not_be_used_is_skipped_and_the_reason_is_told() {
        let rows = [
            (with(ed25519(), "use", json!("enc")), "use is not sig"),
            (with(ed25519(), "key_ops", json!(["sign"])), "key_ops"),
            (with(ed25519(), "key_ops", json!("verify")), "key_ops"),
            (with(ed25519(), "alg", json!("ES256")), "algorithm"),
            (with(ed25519(), "alg", json!("none")), "algorithm"),
            (with(ed25519(), "alg", json!("HS256")), "algorithm"),
            (with(ed25519(), "alg", json!(5)), "algorithm"),
            (with(rsa(), "alg", json!("RS512")), "auth.jwks_algorithms"),
            (with(rsa(), "alg", json!("HS256")), "algorithm"),
            (
                with(ed25519(), "d", json!("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")),
                "private",
            ),
            (
                json!({ "kty": "oct", "alg": "HS256", "kid": "s", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T" }),
                "secret",
            ),
            (
                json!({ "kty": "oct", "kid": "s", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T" }),
                "secret",
            ),
            (with(ed25519(), "crv", json!("Ed448")), "crv"),
            (with(ed25519(), "crv", json!("X25519")), "crv"),
            (with(ed25519(), "kty", json!("oKP")), "kty"),
            (with(ed25519(), "x", json!("AAAA")), "Ed25519"),
            (with(ed25519(), "x", json!("not base64!")), "x is missing"),
            (with(p256(), "crv", json!("secp256k1")), "crv"),
            (with(p256(), "x", json!("AAAA")), "P-256"),
            // A point that is not on the curve.
            (with(p256(), "y", p256()["x"].clone()), "P-256"),
            (with(rsa(), "n", json!("AQAB")), "2048"),
            (with(rsa(), "n", json!("")), "2048"),
            (with(rsa(), "e", json!("AQ")), "RSA"),
            (with(rsa(), "e", json!("AAAB")), "RSA"),
            (with(rsa(), "e", json!("AQAC")), "RSA"),
            (with(rsa(), "e", json!("")), "RSA"),
            (json!("text"), "kty"),
            (json!(null), "kty"),
        ];
        for (bad, why) in rows {
            let published = set(&[bad.clone(), p256()]).unwrap();
            assert_eq!(published.keys.len(), 1, "{bad}");
            assert_eq!(published.skipped.len(), 1);
            assert!(published.skipped[0].contains(why), "{why}: {:?}", published.skipped);
            assert!(set(&[bad]).is_err());
        }
    }

    #[test]
    fn of_two_keys_with_one_name_the_first_counts() {
        let published = set(&[ed25519(), with(p256(), "kid", json!("ed"))]).unwrap();
        assert_eq!(published.keys.len(), 1);
        assert!(published.skipped[0].contains("same kid"));
    }

    #[test]
    fn a_key_that_says_it_is_there_to_verify_is_taken() {
        for operations in [json!(["verify"]), json!(["sign", "verify"])] {
            let key = with(with(ed25519(), "use", json!("sig")), "key_ops", operations);
            let published = set(std::slice::from_ref(&key)).unwrap();
            assert_eq!((published.keys.len(), published.skipped.len()), (1, 0), "{key}");
        }
    }

    #[test]
    fn what_is_no_set_or_has_no_key_to_use_is_an_error() {
        for body in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"keys":{}}"#,
            r#"{"keys":[]}"#,
            r#"{"keys":null}"#,
        ] {
            assert!(read(body.as_bytes(), ALL).is_err(), "{body}");
        }
    }
}
