//! The attacks on the token itself. Each makes a token that is meant for one server, or none where it makes no sense there.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use chatting_server::settings::Algorithm;
use jsonwebtoken::EncodingKey;
use serde_json::{Map, Value, json};

use super::{Signer, Target};
use crate::support::{
    app::KEY,
    jwks::JwksServer,
    keys::{KeyPair, jwk_set, signed_with},
    tokens,
};

/// What must become of it at every door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Refused,
    /// It is no attack after all: what is odd about it means nothing to the server.
    LetIn,
    /// Good for whom no nickname is needed.
    PresentsOnly,
}

type Make = Box<dyn Fn(&Target, &Trap) -> Option<String>>;

pub struct Attack {
    pub name: &'static str,
    pub fate: Fate,
    pub make: Make,
}

/// An attacker with keys of its own, and a server that would give them to whoever asks.
pub struct Trap {
    pairs: Vec<KeyPair>,
    server: JwksServer,
}

impl Trap {
    pub async fn set() -> Self {
        let algorithms = [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];
        let pairs: Vec<_> = algorithms.iter().map(|one| KeyPair::generate(*one, "trap")).collect();
        let server = JwksServer::start(jwk_set(&pairs.iter().collect::<Vec<_>>())).await;
        Self { pairs, server }
    }

    /// How often somebody came for the keys.
    pub fn sprung(&self) -> usize {
        self.server.connections()
    }

    /// Signed by the attacker, with the server's own algorithm.
    fn signed(&self, target: &Target, header: &str) -> String {
        let payload = claims().to_string();
        match self.pair(target) {
            None => hmac(header, &payload, b""),
            Some(pair) => pair.signed(header, &payload),
        }
    }

    fn pair(&self, target: &Target) -> Option<&KeyPair> {
        self.pairs
            .iter()
            .find(|pair| pair.algorithm.name() == target.algorithm())
    }
}

/// The claims of a good token, of who presents room 12.
pub fn claims() -> Value {
    tokens::claims(12)
}

/// The header of a good token.
pub fn header(target: &Target) -> String {
    with(target, &[])
}

fn with(target: &Target, more: &[(&str, Value)]) -> String {
    let mut header = Map::new();
    header.insert("alg".into(), json!(target.algorithm()));
    header.insert("typ".into(), json!("JWT"));
    header.insert("kid".into(), json!("one"));
    for (name, value) in more {
        header.insert((*name).into(), value.clone());
    }
    Value::Object(header).to_string()
}

fn hmac(header: &str, payload: &str, key: &[u8]) -> String {
    signed_with(
        header,
        payload,
        &EncodingKey::from_secret(key),
        jsonwebtoken::Algorithm::HS256,
    )
}

fn good(target: &Target) -> String {
    target.signed(&header(target), &claims().to_string())
}

fn parts(target: &Target) -> [String; 3] {
    let good = good(target);
    let parts: Vec<_> = good.split('.').map(str::to_owned).collect();
    parts.try_into().unwrap()
}

fn unsigned(header: &str) -> String {
    [header, &claims().to_string()]
        .map(|part| URL_SAFE_NO_PAD.encode(part))
        .join(".")
        + "."
}

fn attack(name: &'static str, fate: Fate, make: impl Fn(&Target, &Trap) -> Option<String> + 'static) -> Attack {
    Attack {
        name,
        fate,
        make: Box::new(make),
    }
}

fn refused(name: &'static str, make: impl Fn(&Target, &Trap) -> String + 'static) -> Attack {
    attack(name, Fate::Refused, move |target, trap| Some(make(target, trap)))
}

/// A token that the server's own key has signed, with these claims.
fn claimed(name: &'static str, fate: Fate, change: impl Fn(&mut Map<String, Value>) + 'static) -> Attack {
    attack(name, fate, move |target, _| {
        let mut claims = claims();
        change(claims.as_object_mut().unwrap());
        Some(target.signed(&header(target), &claims.to_string()))
    })
}

/// A token that the server's own key has signed, with one claim as this text, JSON or not.
fn raw(name: &'static str, fate: Fate, claim: &'static str, text: &'static str) -> Attack {
    attack(name, fate, move |target, _| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(claim);
        let rest = claims.to_string();
        let payload = format!("{{\"{claim}\":{text},{}", &rest[1..]);
        Some(target.signed(&header(target), &payload))
    })
}

/// A header that the server's own key has signed.
fn headed(name: &'static str, fate: Fate, more: &'static [(&'static str, &'static str)]) -> Attack {
    attack(name, fate, move |target, _| {
        let more: Vec<_> = more
            .iter()
            .map(|(name, text)| (*name, serde_json::from_str(text).unwrap()))
            .collect();
        Some(target.signed(&with(target, &more), &claims().to_string()))
    })
}

/// A header that only the attacker has signed.
fn forged(name: &'static str, more: impl Fn(&Target, &Trap) -> Vec<(&'static str, Value)> + 'static) -> Attack {
    refused(name, move |target, trap| {
        trap.signed(target, &with(target, &more(target, trap)))
    })
}

pub fn all() -> Vec<Attack> {
    let mut all = algorithms();
    all.extend(keys());
    all.extend(shapes());
    all.extend(times());
    all.extend(users());
    all
}

fn algorithms() -> Vec<Attack> {
    /// An HS256 token whose secret is the server's public key, in some form.
    fn confused(name: &'static str, form: fn(&KeyPair) -> Vec<u8>) -> Attack {
        attack(name, Fate::Refused, move |target, _| match &target.signer {
            Signer::Secret => None,
            Signer::Pair(pair) => {
                let header = with(target, &[("alg", json!("HS256"))]);
                Some(hmac(&header, &claims().to_string(), &form(pair)))
            }
        })
    }
    fn named(name: &'static str, alg: &'static str) -> Attack {
        refused(name, move |target, _| {
            let alg = serde_json::from_str(alg).unwrap();
            target.signed(&with(target, &[("alg", alg)]), &claims().to_string())
        })
    }
    vec![
        refused("`alg` none, unsigned", |_, _| unsigned(r#"{"alg":"none","typ":"JWT"}"#)),
        refused("`alg` None, unsigned", |_, _| unsigned(r#"{"alg":"None","typ":"JWT"}"#)),
        refused("`alg` nOnE, unsigned", |_, _| unsigned(r#"{"alg":"nOnE","typ":"JWT"}"#)),
        refused("`alg` none, with a good token's signature", |target, _| {
            let [_, payload, signature] = parts(target);
            format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#))
        }),
        refused("the right `alg`, unsigned", |target, _| unsigned(&header(target))),
        confused("HS256 keyed with the public key's PEM", |pair| {
            pair.public_pem.clone().into_bytes()
        }),
        confused("HS256 keyed with that PEM without its last line break", |pair| {
            pair.public_pem.trim_end().as_bytes().to_vec()
        }),
        confused("HS256 keyed with the public key's DER", |pair| pair.public_der.clone()),
        confused("HS256 keyed with the public JWK", |pair| {
            pair.jwk.to_string().into_bytes()
        }),
        refused("HS256 keyed with nothing", |target, _| {
            hmac(&with(target, &[("alg", json!("HS256"))]), &claims().to_string(), b"")
        }),
        attack(
            "HS512 with the right secret",
            Fate::Refused,
            |target, _| match &target.signer {
                Signer::Pair(_) => None,
                Signer::Secret => Some(signed_with(
                    &with(target, &[("alg", json!("HS512"))]),
                    &claims().to_string(),
                    &EncodingKey::from_secret(KEY.as_bytes()),
                    jsonwebtoken::Algorithm::HS512,
                )),
            },
        ),
        attack("RS512 with the right key", Fate::Refused, |target, _| {
            match &target.signer {
                Signer::Pair(pair) if pair.algorithm == Algorithm::Rs256 => Some(signed_with(
                    &with(target, &[("alg", json!("RS512"))]),
                    &claims().to_string(),
                    &EncodingKey::from_rsa_pem(pair.private_pem.as_bytes()).unwrap(),
                    jsonwebtoken::Algorithm::RS512,
                )),
                _ => None,
            }
        }),
        named("`alg` rs256, in small letters", r#""rs256""#),
        named("`alg` empty", r#""""#),
        named("`alg` null", "null"),
        named("`alg` a number", "256"),
        named("`alg` a list", r#"["none"]"#),
        refused("`alg` missing", |target, _| {
            target.signed(r#"{"typ":"JWT","kid":"one"}"#, &claims().to_string())
        }),
        refused("`alg` twice, the second none", |target, _| {
            let header = format!(r#"{{"alg":"{}","alg":"none","kid":"one"}}"#, target.algorithm());
            target.signed(&header, &claims().to_string())
        }),
        refused("a signature of zeros", |target, _| {
            let [header, payload, signature] = parts(target);
            let zeros = vec![0; URL_SAFE_NO_PAD.decode(signature).unwrap().len()];
            format!("{header}.{payload}.{}", URL_SAFE_NO_PAD.encode(zeros))
        }),
        refused("a signature that is cut short", |target, _| {
            let good = good(target);
            good[..good.len() - 8].to_owned()
        }),
        refused("another token's signature", |target, _| {
            let [header, _, signature] = parts(target);
            format!(
                "{header}.{}.{signature}",
                URL_SAFE_NO_PAD.encode(tokens::claims(1).to_string())
            )
        }),
        forged("the right `alg` and `kid`, another key", |_, _| vec![]),
    ]
}

fn keys() -> Vec<Attack> {
    fn kid(name: &'static str, kid: impl Fn() -> Value + 'static) -> Attack {
        forged(name, move |_, _| vec![("kid", kid())])
    }
    vec![
        kid("`kid` a path to an empty file", || json!("../../../../../../dev/null")),
        kid("`kid` SQL", || json!("' UNION SELECT 'key' -- ")),
        kid("`kid` a command", || json!("one; sleep 10 | id")),
        kid("`kid` a URL", || json!("http://127.0.0.1/key")),
        kid("`kid` with a null byte", || json!("one\0.pem")),
        kid("`kid` of 4,000 characters", || json!("k".repeat(4000))),
        kid("`kid` empty", || json!("")),
        kid("`kid` a number", || json!(1)),
        kid("`kid` an object", || json!({ "$ne": null })),
        refused("`kid` twice", |target, trap| {
            trap.signed(
                target,
                &format!(r#"{{"alg":"{}","kid":"x","kid":"one"}}"#, target.algorithm()),
            )
        }),
        forged("`jku` to the attacker's keys", |_, trap| {
            vec![("jku", json!(trap.server.url())), ("kid", json!("trap"))]
        }),
        forged("`x5u` to the attacker's certificate", |_, trap| {
            vec![("x5u", json!(trap.server.url())), ("kid", json!("trap"))]
        }),
        forged("`jwk` with the attacker's key", |target, trap| {
            let oct = json!({ "kty": "oct", "k": "", "alg": "HS256" });
            vec![("jwk", trap.pair(target).map_or(oct, |pair| pair.jwk.clone()))]
        }),
        forged("`x5c` with the attacker's certificate", |_, _| {
            vec![("x5c", json!(["MIIB"]))]
        }),
        headed(
            "`jku` elsewhere, and well signed",
            Fate::LetIn,
            &[("jku", r#""http://127.0.0.1:1/""#)],
        ),
        headed(
            "`crit` with a claim, well signed",
            Fate::Refused,
            &[("crit", r#"["exp"]"#)],
        ),
        headed(
            "`crit` and `b64` false, well signed",
            Fate::Refused,
            &[("crit", r#"["b64"]"#), ("b64", "false")],
        ),
        headed("`crit` empty, well signed", Fate::Refused, &[("crit", "[]")]),
        headed("`typ` another, well signed", Fate::Refused, &[("typ", r#""JWE""#)]),
        headed("`zip`, well signed", Fate::Refused, &[("zip", r#""DEF""#)]),
        headed("`enc`, well signed", Fate::Refused, &[("enc", r#""A256GCM""#)]),
    ]
}

fn shapes() -> Vec<Attack> {
    fn payload(name: &'static str, payload: impl Fn() -> String + 'static) -> Attack {
        refused(name, move |target, _| target.signed(&header(target), &payload()))
    }
    vec![
        refused("empty", |_, _| String::new()),
        refused("one letter", |_, _| "x".into()),
        refused("dots only", |_, _| "..".into()),
        refused("1 MB of letters", |_, _| "x".repeat(1 << 20)),
        refused("well signed, and longer than `auth.max_token_bytes`", |target, _| {
            let mut claims = claims();
            claims["more"] = json!("x".repeat(8192));
            target.signed(&header(target), &claims.to_string())
        }),
        refused("a dot behind a good token", |target, _| good(target) + "."),
        refused("two dots behind it", |target, _| good(target) + ".."),
        refused("a dot before it", |target, _| format!(".{}", good(target))),
        refused("two good tokens and a comma", |target, _| {
            format!("{0},{0}", good(target))
        }),
        refused("a space inside", |target, _| good(target).replacen('.', " .", 1)),
        refused("padding behind the signature", |target, _| good(target) + "="),
        refused("padding behind the payload", |target, _| {
            let [header, payload, signature] = parts(target);
            format!("{header}.{payload}=.{signature}")
        }),
        refused("a signature in base64 that is not URL-safe", |target, _| {
            let odd = (0..).find_map(|n| {
                let mut claims = claims();
                claims["n"] = json!(n);
                let token = target.signed(&header(target), &claims.to_string());
                let (text, signature) = token.rsplit_once('.').unwrap();
                let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
                let other = STANDARD_NO_PAD.encode(bytes);
                (other != signature).then(|| format!("{text}.{other}"))
            });
            odd.unwrap()
        }),
        refused("a signature whose last bits are not zero", |target, _| {
            let mut good = good(target);
            let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let last = alphabet.find(good.pop().unwrap()).unwrap();
            good.push(alphabet.as_bytes()[last + 1].into());
            good
        }),
        refused("five parts, as an encrypted token", |target, _| {
            let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"dir","enc":"A256GCM"}"#);
            let [_, payload, signature] = parts(target);
            format!("{header}..{payload}.{payload}.{signature}")
        }),
        refused("a token in a token (`cty`)", |target, _| {
            target.signed(&with(target, &[("cty", json!("JWT"))]), &good(target))
        }),
        headed("`cty` alone, well signed", Fate::Refused, &[("cty", r#""JWT""#)]),
        refused("a header that is a list", |target, _| {
            target.signed("[1]", &claims().to_string())
        }),
        refused("a header that is no JSON", |target, _| {
            target.signed("alg", &claims().to_string())
        }),
        payload("claims that are a list", || format!("[{}]", claims())),
        payload("claims that are text", || claims().to_string().replace('"', "'")),
        payload("claims and more behind them", || format!("{} {{}}", claims())),
        payload("claims with a byte order mark", || format!("\u{feff}{}", claims())),
        payload("claims nested 1,000 deep", || {
            let rest = claims().to_string();
            format!("{{\"x\":{}{},{}", "[".repeat(1000), "]".repeat(1000), &rest[1..])
        }),
        payload("`user_idx` twice", || {
            claims()
                .to_string()
                .replace("\"user_idx\"", "\"user_idx\":1,\"user_idx\"")
        }),
        payload("`user_idx` twice, once in escapes", || {
            claims()
                .to_string()
                .replace("\"user_idx\"", "\"user\\u005fidx\":1,\"user_idx\"")
        }),
        payload("`exp` twice", || {
            claims().to_string().replace("\"exp\"", "\"exp\":1,\"exp\"")
        }),
    ]
}

fn times() -> Vec<Attack> {
    use Fate::{LetIn, Refused};
    vec![
        claimed("no `exp`", Refused, |claims| drop(claims.remove("exp"))),
        raw("`exp` null", Refused, "exp", "null"),
        raw("`exp` 0", Refused, "exp", "0"),
        raw("`exp` -1", Refused, "exp", "-1"),
        raw("`exp` long ago", Refused, "exp", "1700000000"),
        raw("`exp` 2^53", LetIn, "exp", "9007199254740992"),
        raw("`exp` 2^63 - 1", LetIn, "exp", "9223372036854775807"),
        raw("`exp` 2^64 - 1", LetIn, "exp", "18446744073709551615"),
        raw("`exp` 2^64", Refused, "exp", "18446744073709551616"),
        raw("`exp` 1e308", Refused, "exp", "1e308"),
        raw("`exp` 1e999", Refused, "exp", "1e999"),
        raw("`exp` NaN", Refused, "exp", "NaN"),
        raw("`exp` text", Refused, "exp", r#""9007199254740992""#),
        raw("`exp` a list", Refused, "exp", "[9007199254740992]"),
        raw("`exp` true", Refused, "exp", "true"),
        raw("`nbf` 2^53", Refused, "nbf", "9007199254740992"),
        raw("`nbf` text", Refused, "nbf", r#""0""#),
        raw("`iat` 2^53", LetIn, "iat", "9007199254740992"),
        raw("`iat` -1", LetIn, "iat", "-1"),
        raw("`iat` 1.5", LetIn, "iat", "1.5"),
        raw("`iat` text", Refused, "iat", r#""now""#),
    ]
}

fn users() -> Vec<Attack> {
    use Fate::{PresentsOnly, Refused};
    let user = |name, text| raw(name, Refused, "user_idx", text);
    vec![
        claimed("no `user_idx`", Refused, |claims| drop(claims.remove("user_idx"))),
        user("`user_idx` null", "null"),
        user("`user_idx` text", r#""12""#),
        user("`user_idx` true", "true"),
        user("`user_idx` -1", "-1"),
        user("`user_idx` 1.5", "1.5"),
        user("`user_idx` 12.0", "12.0"),
        user("`user_idx` 12e0", "12e0"),
        user("`user_idx` 2^63", "9223372036854775808"),
        user("`user_idx` 2^64", "18446744073709551616"),
        user("`user_idx` 1e999", "1e999"),
        user("`user_idx` a list", "[12]"),
        user("`user_idx` an object", r#"{"$gt":0}"#),
        claimed("no `nickname`", PresentsOnly, |claims| drop(claims.remove("nickname"))),
        claimed("`nickname` of 65 characters", PresentsOnly, |claims| {
            claims["nickname"] = json!("x".repeat(65));
        }),
        raw("`nickname` a number", Refused, "nickname", "5"),
        raw("`role` a list", Refused, "role", r#"["operator"]"#),
        raw("`rooms` an object", Refused, "rooms", r#"{"all":true}"#),
    ]
}
