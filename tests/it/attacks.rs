//! What is tried against tokens, at every door of five servers with different keys, and what it got: one table, which
//! docs/SECURITY.md has too. The doors' own attacks (headers, gateway, CORS) are in `doors`, the tokens in `forged`.

mod doors;
mod forged;

use std::collections::BTreeMap;

use chatting_server::settings::{Algorithm, Secret};
use serde_json::json;

use crate::support::{
    app::{KEY, TestApp, spawn_app},
    http::Response,
    jwks::JwksServer,
    keys::{KeyPair, jwk_set, signed_with},
    presenter::{connect, upgrade},
    ws::{Incoming, WsClient},
};

use forged::{Attack, Fate};

const SECURITY: &str = include_str!("../../docs/SECURITY.md");

/// What a good token gets.
const LET_IN: &str = "let in";

/// A server, and what its tokens are signed with.
struct Target {
    name: &'static str,
    app: TestApp,
    signer: Signer,
    /// Published keys; dropped with the server.
    _jwks: Option<JwksServer>,
}

enum Signer {
    Secret,
    Pair(Box<KeyPair>),
}

impl Target {
    /// A server for each way to have a key.
    async fn all() -> Vec<Self> {
        let mut all = vec![Self::new("HS256", Signer::Secret, None).await];
        for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] {
            let pair = KeyPair::generate(algorithm, "one");
            all.push(Self::new(algorithm.name(), Signer::Pair(Box::new(pair)), None).await);
        }
        let pair = KeyPair::generate(Algorithm::Rs256, "one");
        let jwks = JwksServer::start(jwk_set(&[&pair])).await;
        all.push(Self::new("JWKS", Signer::Pair(Box::new(pair)), Some(jwks)).await);
        all
    }

    async fn new(name: &'static str, signer: Signer, jwks: Option<JwksServer>) -> Self {
        let app = spawn_app(|settings| {
            // Attackers come often.
            settings.session.reconnect_burst = 10_000;
            if let Signer::Pair(pair) = &signer {
                settings.auth.hs256_secret = Secret::new("");
                if let Some(jwks) = &jwks {
                    settings.auth.jwks_url = jwks.url();
                    // Nothing of what is tried here is worth a fetch.
                    settings.auth.jwks_refresh_seconds = 3600;
                    settings.auth.jwks_min_refresh_seconds = 3600;
                } else {
                    settings.auth.algorithm = pair.algorithm;
                    settings.auth.public_key = pair.public_pem.clone();
                }
            }
        })
        .await;
        Self {
            name,
            app,
            signer,
            _jwks: jwks,
        }
    }

    fn algorithm(&self) -> &'static str {
        match &self.signer {
            Signer::Secret => "HS256",
            Signer::Pair(pair) => pair.algorithm.name(),
        }
    }

    /// Any header and payload, signed with the server's own key.
    fn signed(&self, header: &str, payload: &str) -> String {
        match &self.signer {
            Signer::Secret => signed_with(
                header,
                payload,
                &jsonwebtoken::EncodingKey::from_secret(KEY.as_bytes()),
                jsonwebtoken::Algorithm::HS256,
            ),
            Signer::Pair(pair) => pair.signed(header, payload),
        }
    }
}

/// How the same token fares at the doors of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Outcome {
    /// `POST /v1/rooms/…/messages` with `Authorization` and with `token`, `GET /v1/presenter` with `Authorization`.
    v1_http: String,
    /// `POST /send/message` and `GET /token` with `token`.
    legacy_http: String,
    hello: String,
    start: String,
}

impl Outcome {
    async fn of(app: &TestApp, token: &str) -> Self {
        let bearer = format!("Bearer {token}");
        let posted = |name: &'static str, value: String| async move {
            let body = r#"{"text":"hi"}"#;
            let headers = [("Content-Type", "application/json"), (name, value.as_str())];
            let mut client = app.client().await;
            v1(client
                .request_unless_closed("POST", "/v1/rooms/12/messages", &headers, body)
                .await)
        };
        let upgraded = async {
            // A head that is too long is not even read as far as the upgrade.
            match token.len() > HEAD_MAX {
                true => v1(app
                    .client()
                    .await
                    .request_unless_closed("GET", "/v1/presenter", &[("Authorization", &bearer)], "")
                    .await),
                false => match upgrade(app.addr, &[("Authorization", &bearer)]).await {
                    Ok(_) => LET_IN.to_owned(),
                    Err(response) => v1(Some(response)),
                },
            }
        };
        let legacy_sent = async {
            let headers = [("Content-Type", "application/json"), ("token", token)];
            let body = r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#;
            legacy(
                app.client()
                    .await
                    .request_unless_closed("POST", "/send/message", &headers, body)
                    .await,
            )
        };
        let legacy_asked = async {
            legacy(
                app.client()
                    .await
                    .request_unless_closed("GET", "/token", &[("token", token)], "")
                    .await,
            )
        };
        Self {
            v1_http: same([
                posted("Authorization", bearer.clone()).await,
                posted("token", token.to_owned()).await,
                upgraded.await,
            ]),
            legacy_http: same([legacy_sent.await, legacy_asked.await]),
            hello: hello(app, token).await,
            start: start(app, token).await,
        }
    }

    fn let_in(&self) -> [bool; 4] {
        [&self.v1_http, &self.legacy_http, &self.hello, &self.start].map(|text| text.contains(LET_IN))
    }
}

/// From here on a request's head is longer than the server reads.
const HEAD_MAX: usize = 100_000;

/// One word for doors that agree, both where they do not.
fn same<const N: usize>(mut outcomes: [String; N]) -> String {
    outcomes.sort();
    let mut outcomes = outcomes.to_vec();
    outcomes.dedup();
    outcomes.join(", ")
}

/// What became of a request on a v1 route.
fn v1(answer: Option<Response>) -> String {
    match too_long(answer) {
        Err(text) => text,
        Ok(answer) if answer.status < 300 => LET_IN.into(),
        Ok(answer) => {
            assert_eq!(
                answer.header("content-type"),
                Some("application/problem+json"),
                "{answer:?}"
            );
            let code = answer.json()["code"].as_str().unwrap().to_owned();
            // Nobody presents here, or too well: whoever gets so far is let in.
            match code.as_str() {
                "presenter_disconnected" | "broadcast_ended" => LET_IN.into(),
                _ => format!("{} `{code}`", answer.status),
            }
        }
    }
}

/// What became of a request on a legacy route.
fn legacy(answer: Option<Response>) -> String {
    match too_long(answer) {
        Err(text) => text,
        Ok(answer) if answer.status == 200 => LET_IN.into(),
        Ok(answer) => {
            let message = answer.json()["message"].as_str().unwrap().to_owned();
            let not_live = "해당 스트리머는 현재 방송 중이지 않습니다.";
            if message == not_live {
                LET_IN.into()
            } else {
                format!("{} {message}", answer.status)
            }
        }
    }
}

/// The answer, unless the server did not read the request: it then answers or just ends the connection, as it comes.
fn too_long(answer: Option<Response>) -> Result<Response, String> {
    let unread = |answer: &Response| answer.body.is_empty() && matches!(answer.status, 400 | 413 | 431);
    answer
        .filter(|answer| !unread(answer))
        .ok_or_else(|| "not read: the head is too long".to_owned())
}

async fn hello(app: &TestApp, token: &str) -> String {
    let mut socket = connect(app.addr).await;
    let hello = json!({ "type": "hello", "token": token }).to_string();
    socket.send_text(&hello).await;
    let first = socket.next_json().await;
    if first["type"] == "welcome" {
        return LET_IN.into();
    }
    let code = first["code"].as_str().unwrap().to_owned();
    let close = socket.next_close().await.unwrap();
    format!("{close} `{code}`")
}

async fn start(app: &TestApp, token: &str) -> String {
    let mut socket = WsClient::connect(app.addr, "/chatting").await;
    socket
        .send_text(&json!({ "id": "start", "token": token }).to_string())
        .await;
    // What is behind a frame that is too big may find the socket closed.
    if token.len() < HEAD_MAX {
        socket.send_text("ping").await;
    }
    match socket.next().await {
        Incoming::Text(pong) if pong == "pong" => LET_IN.into(),
        Incoming::Text(text) => {
            let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
            let code = socket.next_close().await.unwrap();
            match frame["id"].as_str().unwrap() {
                id @ "tokenException" => format!("{code} `{id}`"),
                _ => format!("{code} {}", frame["message"].as_str().unwrap()),
            }
        }
        Incoming::Close(code, _) => format!("{}", code.unwrap()),
        other => panic!("{other:?}"),
    }
}

#[actix_web::test]
async fn every_attack_on_a_token_gets_at_every_door_what_the_security_page_says() {
    let (targets, attacks, trap) = (Target::all().await, forged::all(), forged::Trap::set().await);
    let mut table = String::from(
        "| attack | keys | v1 over HTTP | legacy over HTTP | `hello` | `start` |\n|---|---|---|---|---|---|\n",
    );
    for Attack { name, fate, make } in attacks {
        let mut by_outcome: BTreeMap<Outcome, Vec<&str>> = BTreeMap::new();
        let mut tried = 0;
        for target in &targets {
            let Some(token) = make(target, &trap) else { continue };
            let outcome = Outcome::of(&target.app, &token).await;
            let expected = [fate != Fate::Refused; 4];
            assert_eq!(outcome.let_in(), expected, "{name} at {}: {outcome:?}", target.name);
            if fate == Fate::PresentsOnly {
                assert_ne!(
                    (outcome.v1_http.as_str(), outcome.legacy_http.as_str()),
                    (LET_IN, LET_IN),
                    "{name}"
                );
            }
            by_outcome.entry(outcome).or_default().push(target.name);
            tried += 1;
        }
        assert!(tried > 0, "{name} was not tried");
        for (outcome, names) in by_outcome {
            let names = match names.len() {
                len if len == tried && tried == targets.len() => "all".to_owned(),
                _ => names.join(", "),
            };
            let Outcome {
                v1_http,
                legacy_http,
                hello,
                start,
            } = outcome;
            table += &format!("| {name} | {names} | {v1_http} | {legacy_http} | {hello} | {start} |\n");
        }
    }
    assert_eq!(trap.sprung(), 0, "a key was fetched from where a token said");
    println!("{table}");
    assert!(
        SECURITY.contains(&table),
        "docs/SECURITY.md has another table than this:\n\n{table}"
    );
    for target in targets {
        // A good token gets in at each of these doors, so that none of the refusals above is for another reason.
        let good = target.signed(&forged::header(&target), &forged::claims().to_string());
        assert_eq!(
            Outcome::of(&target.app, &good).await.let_in(),
            [true; 4],
            "{}",
            target.name
        );
    }
}
