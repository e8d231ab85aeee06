//! Keys that are published (`auth.jwks_url`): fetched, refreshed, kept when they cannot be, and never often.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chatting_actors::clock::system_ms;
use chatting_server::{
    auth::Verdict,
    settings::{Algorithm, AuthMode, Secret, Settings},
};
use jsonwebtoken::EncodingKey;
use serde_json::json;

use crate::support::{
    app::{TestApp, post_v1, spawn_app},
    eventually,
    http::{HttpClient, Response, get},
    jwks::{Answer, JwksServer, tls_dir},
    keys::{KeyPair, jwk_set, signed_with},
    presenter::{connect, end_of, upgrade},
    process::ScratchDir,
    tokens::{claims, signed},
    within,
    ws::{Frame, TEXT, WsClient},
};

/// A server that has only the keys that are published there.
async fn app(server: &JwksServer, change: impl FnOnce(&mut Settings)) -> TestApp {
    let url = server.url();
    let app = spawn_app(|settings| {
        settings.auth.hs256_secret = Secret::new("");
        settings.auth.jwks_url = url;
        settings.auth.jwks_min_refresh_seconds = 1;
        change(settings);
    })
    .await;
    app.go_live(12);
    app
}

fn es256(kid: &str) -> KeyPair {
    KeyPair::generate(Algorithm::Es256, kid)
}

/// A good set of this key, longer by so many bytes.
fn padded(key: &KeyPair, bytes: usize) -> String {
    let mut set: serde_json::Value = serde_json::from_str(&jwk_set(&[key])).unwrap();
    set["padding"] = json!("x".repeat(bytes));
    set.to_string()
}

async fn post(app: &TestApp, key: &KeyPair) -> Response {
    let mut client = HttpClient::connect(app.addr).await;
    post_v1(&mut client, 12, &key.token(&claims(7)), "hi").await
}

/// The status and the code of a refusal. Presenter 12 is not connected, so a good token gets 503 `presenter_disconnected`.
async fn refusal(app: &TestApp, key: &KeyPair) -> (u16, String) {
    let answer = post(app, key).await;
    (answer.status, answer.json()["code"].as_str().unwrap().to_owned())
}

const GOOD: (u16, &str) = (503, "presenter_disconnected");
const UNKNOWN: (u16, &str) = (401, "unauthenticated");
const NO_KEYS: (u16, &str) = (503, "keys_unavailable");

macro_rules! assert_refusal {
    ($app:expr, $key:expr, $expected:expr) => {{
        let (status, code) = refusal($app, $key).await;
        assert_eq!((status, code.as_str()), $expected);
    }};
}

#[actix_web::test]
async fn published_keys_of_every_kind_let_tokens_in_by_their_kid() {
    let pairs: Vec<_> = [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa]
        .iter()
        .map(|algorithm| KeyPair::generate(*algorithm, algorithm.name()))
        .collect();
    let server = JwksServer::start(jwk_set(&pairs.iter().collect::<Vec<_>>())).await;
    let app = app(&server, |_| {}).await;
    for pair in &pairs {
        assert_refusal!(&app, pair, GOOD);
        // A name that is another key's, and a signature by none of them.
        let other = pairs.iter().find(|other| other.algorithm != pair.algorithm).unwrap();
        let mut impostor = KeyPair::generate(pair.algorithm, &pair.kid);
        assert_refusal!(&app, &impostor, UNKNOWN);
        impostor.kid.clone_from(&other.kid);
        assert_refusal!(&app, &impostor, UNKNOWN);
    }
    // Without a name a key is found where it cannot be mistaken.
    let header = json!({ "alg": "ES256" }).to_string();
    let unnamed = pairs[1].signed(&header, &claims(7).to_string());
    let answer = post_v1(&mut app.client().await, 12, &unnamed, "hi").await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (GOOD.0, Some(GOOD.1)));
    assert_eq!(server.asked(), 1, "every key was known");
    assert_eq!(app.metric("chat_jwks_keys").await, Some(3.0));
}

#[actix_web::test]
async fn of_the_published_keys_those_for_auth_jwks_algorithms_let_tokens_in_and_no_others() {
    let (other, taken) = (KeyPair::generate(Algorithm::Rs256, "other"), es256("taken"));
    let server = JwksServer::start(jwk_set(&[&other, &taken])).await;
    let app = app(&server, |settings| settings.auth.jwks_algorithms = vec!["ES256".into()]).await;
    assert_refusal!(&app, &taken, GOOD);
    assert_refusal!(&app, &other, UNKNOWN);
    assert_eq!(app.metric("chat_jwks_keys").await, Some(1.0));
}

#[actix_web::test]
async fn a_set_that_is_longer_than_auth_jwks_max_bytes_is_not_read_however_good() {
    let known = es256("known");
    let server = JwksServer::start(padded(&known, 1024)).await;
    let app = app(&server, |settings| settings.auth.jwks_max_bytes = 1024).await;
    assert_refusal!(&app, &known, NO_KEYS);
    server.answer(Answer::Body(jwk_set(&[&known])));
    eventually("the keys", async || {
        (refusal(&app, &known).await.1 == GOOD.1).then_some(())
    })
    .await;
}

#[actix_web::test]
async fn a_published_secret_or_private_key_lets_nobody_in() {
    let good = es256("good");
    let leaked = es256("leaked");
    let secret = "a secret that somebody has published, alas";
    let mut set: serde_json::Value = serde_json::from_str(&jwk_set(&[&good, &leaked])).unwrap();
    set["keys"][1]["d"] = json!("AAAA");
    let k = URL_SAFE_NO_PAD.encode(secret);
    set["keys"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "kty": "oct", "kid": "oct", "alg": "HS256", "k": k }));
    let server = JwksServer::start(set.to_string()).await;
    let app = app(&server, |settings| settings.auth.jwks_min_refresh_seconds = 300).await;
    let by_secret = signed_with(
        r#"{"alg":"HS256","kid":"oct"}"#,
        &claims(7).to_string(),
        &EncodingKey::from_secret(secret.as_bytes()),
        jsonwebtoken::Algorithm::HS256,
    );
    let answer = post_v1(&mut app.client().await, 12, &by_secret, "hi").await;
    assert_eq!(answer.status, 401);
    assert_refusal!(&app, &leaked, UNKNOWN);
    assert_refusal!(&app, &good, GOOD);
}

#[actix_web::test]
async fn an_unnamed_token_is_refused_where_two_keys_could_be_meant() {
    let (one, two) = (es256("one"), es256("two"));
    let server = JwksServer::start(jwk_set(&[&one, &two])).await;
    let app = app(&server, |settings| settings.auth.jwks_min_refresh_seconds = 300).await;
    let unnamed = two.signed(r#"{"alg":"ES256"}"#, &claims(7).to_string());
    let answer = post_v1(&mut app.client().await, 12, &unnamed, "hi").await;
    assert_eq!(answer.status, 401);
    assert_refusal!(&app, &two, GOOD);
}

#[actix_web::test]
async fn a_token_with_a_new_kid_waits_for_its_key_at_every_door() {
    let old = es256("old");
    let server = JwksServer::start(jwk_set(&[&old])).await;
    let app = app(&server, |settings| settings.auth.jwks_timeout_ms = 20_000).await;
    // The keys are there, and the fetch that the first token of the new key asks for hangs until all doors wait.
    server.answer(Answer::Hang);
    rested(&app, &old).await;
    let misses = app.metric("chat_token_cache_misses_total").await.unwrap();
    let new = es256("new");
    let token = new.token(&claims(12));
    let bearer = format!("Bearer {token}");

    let mut hello = connect(app.addr).await;
    hello
        .send_text(&json!({ "type": "hello", "token": token }).to_string())
        .await;
    // Before a `hello` this would close the session: what comes behind the frame that waits is taken after it.
    hello.send_text(r#"{"type":"ping"}"#).await;
    let mut start = WsClient::connect(app.addr, "/chatting").await;
    start
        .send_text(&json!({ "id": "start", "token": new.token(&claims(13)) }).to_string())
        .await;
    start.send_text("ping").await;
    let mut v1 = app.client().await;
    let body = r#"{"text":"hi"}"#;
    v1.send_request(
        "POST",
        "/v1/rooms/12/messages",
        &[("Content-Type", "application/json"), ("Authorization", &bearer)],
        body,
    )
    .await;
    let mut legacy = app.client().await;
    let body = r#"{"presenterIdx":14,"userType":"viewer","textMessage":"hi"}"#;
    legacy
        .send_request(
            "POST",
            "/send/message",
            &[("Content-Type", "application/json"), ("token", &token)],
            body,
        )
        .await;
    let mut who = app.client().await;
    who.send_request("GET", "/token", &[("token", &token)], "").await;
    eventually("each door to have looked at its token", async || {
        (app.metric("chat_token_cache_misses_total").await >= Some(misses + 5.0)).then_some(())
    })
    .await;
    server.asked_at_least(2).await;

    server.answer(Answer::Body(jwk_set(&[&old, &new])));
    // The registry greets, the session itself answers the ping: either may be first.
    let mut told = [hello.next_json().await, hello.next_json().await].map(|frame| frame["type"].to_string());
    told.sort();
    assert_eq!(told, [r#""pong""#, r#""welcome""#]);
    assert_eq!(start.next_text().await, "pong");
    let v1 = v1.read_response(false).await;
    assert!(
        v1.status == 201 || v1.json()["code"] == "presenter_disconnected",
        "{v1:?}"
    );
    let legacy = legacy.read_response(false).await;
    assert_eq!(
        (legacy.status, legacy.json()["message"].as_str()),
        (400, Some("해당 스트리머는 현재 방송 중이지 않습니다."))
    );
    assert_eq!(who.read_response(false).await.text(), "12");
    let by_header = upgrade(app.addr, &[("Authorization", &bearer)]).await;
    assert!(by_header.is_ok());
    assert_eq!(server.asked(), 2, "one fetch for all that waited");
}

#[actix_web::test]
async fn a_session_that_waits_for_its_key_has_said_hello_in_time_and_goes_on_acknowledging() {
    let old = es256("old");
    let server = JwksServer::start(jwk_set(&[&old])).await;
    let app = app(&server, |settings| {
        settings.auth.jwks_timeout_ms = 20_000;
        settings.session.hello_seconds = 4;
    })
    .await;
    app.go_live(22);
    app.go_live(23);
    let mut open = connect(app.addr).await;
    let hello = |token: &str| json!({ "type": "hello", "token": token }).to_string();
    open.send_text(&hello(&old.token(&claims(22)))).await;
    assert_eq!(open.next_json().await["type"], "welcome");
    server.answer(Answer::Hang);
    rested(&app, &old).await;
    let new = es256("new");
    let began = std::time::Instant::now();
    let mut late = connect(app.addr).await;
    late.send_text(&hello(&new.token(&claims(23)))).await;
    open.send_text(&hello(&new.token(&claims(22)))).await;
    let mut client = app.client().await;
    let sender = old.token(&claims(7));
    assert_eq!(post_v1(&mut client, 22, &sender, "meanwhile").await.status, 201);
    assert_eq!(open.next_json().await["seq"], 1);
    open.send_text(r#"{"type":"ack","seq":1,"fanned_out":3}"#).await;
    eventually("the ack to count while the token waits", async || {
        let look = client.request("GET", "/v1/rooms/22", &[("token", &sender)], "").await;
        (look.json()["fanned_out"] == 3).then_some(())
    })
    .await;
    // Another session that says nothing ends when its time is over, which the one that waits has survived then.
    let mut silent = connect(app.addr).await;
    assert_eq!(silent.next_json().await["code"], "no_hello");
    assert_eq!(silent.next_close().await, Some(4006));
    assert!(began.elapsed().as_secs() >= 4);
    server.answer(Answer::Body(jwk_set(&[&old, &new])));
    assert_eq!(late.next_json().await["type"], "welcome");
}

#[actix_web::test]
async fn a_refresh_that_waits_for_its_key_when_the_token_before_it_ends_has_come_in_time() {
    let old = es256("old");
    let server = JwksServer::start(jwk_set(&[&old])).await;
    let app = app(&server, |settings| {
        settings.auth.jwks_timeout_ms = 20_000;
        settings.auth.leeway_seconds = 0;
    })
    .await;
    app.go_live(21);
    app.go_live(22);
    app.go_live(23);
    // The fetch hangs from now on, so that the sessions have all the time of their tokens.
    server.answer(Answer::Hang);
    rested(&app, &old).await;
    let hello = |token: &str| json!({ "type": "hello", "token": token }).to_string();
    // Long enough for all sessions on a busy machine, too.
    let expires_at = system_ms() / 1000 + 10;
    let mut sessions = Vec::new();
    for presenter in [21, 22, 23] {
        let mut claims = claims(presenter);
        claims["exp"] = json!(expires_at);
        let mut session = connect(app.addr).await;
        session.send_text(&hello(&old.token(&claims))).await;
        assert_eq!(session.next_json().await["type"], "welcome");
        sessions.push(session);
    }
    let (new, nobodys) = (es256("new"), es256("nobody's"));
    sessions[0].send_text(&hello(&new.token(&claims(21)))).await;
    sessions[1].send_text(&hello(&nobodys.token(&claims(22)))).await;
    // One that does not ask for more time has no more, whoever else waits.
    assert_eq!(sessions[2].next_json().await["code"], "token_expired");
    assert_eq!(sessions[2].next_close().await, Some(4002));
    eventually("the time of all three to be over", async || {
        (system_ms() > (expires_at + 1) * 1000 + 100).then_some(())
    })
    .await;
    server.answer(Answer::Body(jwk_set(&[&old, &new])));
    // One whose key nobody publishes asked for nothing either.
    assert_eq!(sessions[1].next_json().await["code"], "token_expired");
    assert_eq!(sessions[1].next_close().await, Some(4002));
    let mut client = app.client().await;
    let sent = post_v1(&mut client, 21, &old.token(&claims(7)), "still there").await;
    assert_eq!(sent.status, 201);
    assert_eq!(sessions[0].next_json().await["text"], "still there");
}

/// A token service that signs with a key before it publishes it.
#[actix_web::test]
async fn a_refresh_by_a_key_that_is_published_only_later_leaves_the_session_as_it_was() {
    let (old, new) = (es256("old"), es256("new"));
    let server = JwksServer::start(jwk_set(&[&old])).await;
    let app = app(&server, |_| {}).await;
    let hello = |key: &KeyPair| json!({ "type": "hello", "token": key.token(&claims(12)) }).to_string();
    let mut session = connect(app.addr).await;
    session.send_text(&hello(&old)).await;
    assert_eq!(session.next_json().await["type"], "welcome");
    session.send_text(&hello(&new)).await;
    // It is taken behind the `hello`, which waits for a fetch where there may be one.
    session.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(session.next_json().await["type"], "pong");
    let mut client = app.client().await;
    let sent = post_v1(&mut client, 12, &old.token(&claims(7)), "still there").await;
    assert_eq!(sent.status, 201);
    assert_eq!(session.next_json().await["text"], "still there");
    // Where no token holds yet, it is refused.
    let mut first = connect(app.addr).await;
    first.send_text(&hello(&new)).await;
    assert_eq!(end_of(&mut first).await, ("unauthenticated".into(), 4001));
}

/// The client takes its refresh for done, and would not send it again.
#[actix_web::test]
async fn a_refresh_by_a_key_that_is_published_only_later_counts_when_the_token_before_it_ends() {
    let (old, new, nobodys) = (es256("old"), es256("new"), es256("nobody's"));
    let server = JwksServer::start(jwk_set(&[&old])).await;
    let app = app(&server, |settings| settings.auth.leeway_seconds = 0).await;
    app.go_live(21);
    // Long enough for all sessions on a busy machine, too.
    let expires_at = system_ms() / 1000 + 10;
    let mut sessions = Vec::new();
    for (presenter, refresh) in [(12, &new), (21, &nobodys)] {
        let mut session = connect(app.addr).await;
        let mut ending = claims(presenter);
        ending["exp"] = json!(expires_at);
        let hello = |token: String| json!({ "type": "hello", "token": token }).to_string();
        session.send_text(&hello(old.token(&ending))).await;
        assert_eq!(session.next_json().await["type"], "welcome");
        session.send_text(&hello(refresh.token(&claims(presenter)))).await;
        // It is taken behind the `hello`, which waits for a fetch where there may be one.
        session.send_text(r#"{"type":"ping"}"#).await;
        assert_eq!(session.next_json().await["type"], "pong");
        sessions.push(session);
    }
    server.answer(Answer::Body(jwk_set(&[&old, &new])));
    eventually("the time of the tokens to be over", async || {
        (system_ms() > (expires_at + 1) * 1000 + 100).then_some(())
    })
    .await;
    assert_eq!(end_of(&mut sessions[1]).await, ("token_expired".into(), 4002));
    let mut client = app.client().await;
    let sent = post_v1(&mut client, 12, &old.token(&claims(7)), "still there").await;
    assert_eq!(sent.status, 201);
    assert_eq!(sessions[0].next_json().await["text"], "still there");
}

/// Returns when the pause after the last fetch is over and the next one has begun: a token of an unknown key has asked.
async fn rested(app: &TestApp, known: &KeyPair) {
    assert_refusal!(app, known, GOOD);
    let unknown = es256("nobody's");
    let tokens = &app.state.tokens;
    eventually("the pause between fetches to be over", async || {
        match tokens.verify_or_wait(&unknown.token(&claims(7))) {
            Verdict::Behind(_) => Some(()),
            Verdict::Now(verdict) => {
                assert!(verdict.is_err());
                None
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn a_flood_of_unknown_kids_costs_one_fetch_in_the_pause_and_nobody_elses_time() {
    let known = es256("known");
    let server = JwksServer::start(jwk_set(&[&known])).await;
    let app = app(&server, |settings| settings.auth.jwks_min_refresh_seconds = 300).await;
    let attacker = es256("attacker");
    for n in 0..300 {
        let header = json!({ "alg": "ES256", "kid": format!("kid {n}") }).to_string();
        let token = attacker.signed(&header, &claims(7).to_string());
        let answer = post_v1(&mut app.client().await, 12, &token, "hi").await;
        assert_eq!(answer.status, 401, "{answer:?}");
    }
    assert_eq!(server.asked(), 1, "the fetch of the start");
    assert_refusal!(&app, &known, GOOD);
    assert_eq!(
        app.metric(r#"chat_tokens_refused_total{reason="unknown_key"}"#).await,
        Some(300.0)
    );
    assert_eq!(app.metric("chat_token_cache_entries").await, Some(1.0));
}

#[actix_web::test]
async fn while_a_fetch_hangs_those_who_wait_for_it_are_refused_in_time_and_the_others_go_on() {
    let known = es256("known");
    let server = JwksServer::start(jwk_set(&[&known])).await;
    let app = app(&server, |settings| settings.auth.jwks_timeout_ms = 3000).await;
    server.answer(Answer::Hang);
    rested(&app, &known).await;
    let unknown = es256("unknown");
    let (waits, goes_on) = futures_util::future::join(refusal(&app, &unknown), refusal(&app, &known)).await;
    assert_eq!((waits.0, waits.1.as_str()), UNKNOWN);
    assert_eq!((goes_on.0, goes_on.1.as_str()), GOOD);
    let mut start = WsClient::connect(app.addr, "/chatting").await;
    start
        .send_text(&json!({ "id": "start", "token": unknown.token(&claims(12)) }).to_string())
        .await;
    assert_eq!(start.next_json().await["id"], "tokenException");
}

#[actix_web::test]
async fn a_reload_while_a_fetch_is_under_way_has_the_keys_fetched_once_more() {
    let known = es256("known");
    let server = JwksServer::start(jwk_set(&[&known])).await;
    let app = app(&server, |settings| settings.auth.jwks_refresh_seconds = 3600).await;
    server.answer(Answer::Hang);
    rested(&app, &known).await;
    server.asked_at_least(2).await;
    // What the fetch under way brings may be older than what was published before the reload.
    app.state.tokens.refetch();
    server.answer(Answer::Body(jwk_set(&[&known])));
    server.asked_at_least(3).await;
    assert_refusal!(&app, &known, GOOD);
}

#[actix_web::test]
async fn keys_that_cannot_be_fetched_again_hold_until_they_are_stale_and_readyz_says_so() {
    let known = es256("known");
    let server = JwksServer::start(jwk_set(&[&known])).await;
    let app = app(&server, |settings| {
        settings.auth.jwks_refresh_seconds = 1;
        // One fetch that fails, as on a busy machine, takes no keys.
        settings.auth.jwks_stale_seconds = 6;
    })
    .await;
    let hello = |presenter| json!({ "type": "hello", "token": known.token(&claims(presenter)) }).to_string();
    let mut before = connect(app.addr).await;
    before.send_text(&hello(13)).await;
    assert_eq!(before.next_json().await["type"], "welcome");
    for answer in [
        Answer::Status(500),
        Answer::Body("no set".into()),
        Answer::Body(r#"{"keys":[]}"#.into()),
        Answer::Redirect(jwk_set(&[&es256("known")])),
        Answer::Body(padded(&known, 300_000)),
    ] {
        server.answer(answer);
        let asked = server.asked();
        server.asked_at_least(asked + 1).await;
    }
    assert!(
        !server.paths().contains(&"/elsewhere".to_owned()),
        "a redirect was followed"
    );
    let ready = eventually("readyz to be 503", async || {
        let ready = get(app.addr, "/readyz").await;
        (ready.status == 503).then_some(ready)
    })
    .await;
    assert!(
        ready.text().contains("there is no key to verify tokens with"),
        "{ready:?}"
    );
    let answer = post(&app, &known).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some(NO_KEYS.1)));
    assert!(answer.header("retry-after").is_some());
    assert!(
        answer.header("www-authenticate").is_none(),
        "the token is as good as it was"
    );
    let mut socket = connect(app.addr).await;
    socket.send_text(&hello(12)).await;
    assert_eq!(end_of(&mut socket).await, (NO_KEYS.1.into(), 1013));
    // Who was let in before stays, also where the token is to be refreshed now.
    before.send_text(&hello(13)).await;
    before.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(before.next_json().await, json!({ "type": "pong" }));
    let mut start = WsClient::connect(app.addr, "/chatting").await;
    start
        .send_text(&json!({ "id": "start", "token": known.token(&claims(12)) }).to_string())
        .await;
    assert_eq!(start.next_close().await, Some(1001));

    server.answer(Answer::Body(jwk_set(&[&known])));
    eventually("the keys to be back", async || {
        (get(app.addr, "/readyz").await.json()["status"] == "ready").then_some(())
    })
    .await;
    assert_refusal!(&app, &known, GOOD);
}

#[actix_web::test]
async fn while_old_keys_hold_and_the_address_fails_the_server_is_degraded_and_takes_their_tokens() {
    let known = es256("known");
    let server = JwksServer::start(jwk_set(&[&known])).await;
    let app = app(&server, |settings| settings.auth.jwks_refresh_seconds = 1).await;
    server.answer(Answer::Status(503));
    let ready = eventually("readyz to be degraded", async || {
        let ready = get(app.addr, "/readyz").await;
        (ready.json()["status"] == "degraded").then_some(ready)
    })
    .await;
    assert_eq!(ready.status, 200);
    assert!(
        ready.text().contains("published keys cannot be fetched: status 503"),
        "{ready:?}"
    );
    assert_refusal!(&app, &known, GOOD);
    let errors = app.metric(r#"chat_jwks_fetches_total{outcome="error"}"#).await;
    assert!(errors >= Some(1.0), "{errors:?}");
}

#[actix_web::test]
async fn a_start_without_an_answer_is_no_failure_and_the_first_answer_makes_it_ready() {
    let known = es256("known");
    let server = JwksServer::start("").await;
    server.answer(Answer::Status(404));
    let app = app(&server, |settings| settings.auth.jwks_refresh_seconds = 300).await;
    assert_eq!(get(app.addr, "/readyz").await.status, 503);
    server.answer(Answer::Body(jwk_set(&[&known])));
    eventually("the first keys", async || {
        (get(app.addr, "/readyz").await.status == 200).then_some(())
    })
    .await;
    assert_refusal!(&app, &known, GOOD);
}

#[actix_web::test]
async fn behind_a_gateway_a_server_is_ready_without_any_key_and_takes_what_the_gateway_forwards() {
    let server = JwksServer::start("").await;
    server.answer(Answer::Status(500));
    let app = app(&server, |settings| {
        settings.auth.mode = AuthMode::Gateway;
        settings.auth.trusted_proxies = vec!["127.0.0.1".into()];
    })
    .await;
    let ready = get(app.addr, "/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("degraded")));
    // Presenters have tokens all the same.
    assert!(
        ready.text().contains("published keys cannot be fetched: status 500"),
        "{ready:?}"
    );
    let forwarded = [("x-forward-userIdx", "7"), ("x-forward-nickname", "kim")];
    let mut client = app.client().await;
    let answer = client
        .post_json("/v1/rooms/12/messages", &forwarded, r#"{"text":"hi"}"#)
        .await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (GOOD.0, Some(GOOD.1)));
}

#[actix_web::test]
async fn keys_of_the_settings_count_beside_published_ones() {
    let published = es256("published");
    let server = JwksServer::start(jwk_set(&[&published])).await;
    let app = app(&server, |settings| {
        settings.auth.hs256_secret = Secret::new(crate::support::app::KEY);
    })
    .await;
    assert_refusal!(&app, &published, GOOD);
    let answer = post_v1(&mut app.client().await, 12, &signed(&claims(7)), "hi").await;
    assert_eq!(answer.json()["code"], GOOD.1);
    // And an address that fails locks nobody out who has one of them.
    server.answer(Answer::Status(500));
    assert_eq!(get(app.addr, "/readyz").await.status, 200);
}

#[actix_web::test]
async fn a_key_that_is_no_longer_published_counts_no_more_and_what_it_signed_is_forgotten() {
    let (old, new) = (es256("old"), es256("new"));
    let server = JwksServer::start(jwk_set(&[&old, &new])).await;
    let app = app(&server, |settings| settings.auth.jwks_refresh_seconds = 1).await;
    let token = old.token(&claims(7));
    let mut client = app.client().await;
    for _ in 0..2 {
        let answer = post_v1(&mut client, 12, &token, "hi").await;
        assert_eq!(answer.json()["code"], GOOD.1);
    }
    assert_eq!(app.metric("chat_token_cache_hits_total").await, Some(1.0));
    server.answer(Answer::Body(jwk_set(&[&new])));
    eventually("the very same token to be refused", async || {
        let answer = post_v1(&mut client, 12, &token, "hi").await;
        (answer.status == 401).then_some(())
    })
    .await;
    assert_refusal!(&app, &new, GOOD);
}

#[actix_web::test]
async fn keys_come_from_a_file_and_over_tls_from_whom_the_certificate_says() {
    let known = es256("known");
    let dir = ScratchDir::new("jwks");
    let path = dir.path().join("jwks.json");
    std::fs::write(&path, jwk_set(&[&known])).unwrap();
    let from_file = spawn_app(|settings| {
        settings.auth.hs256_secret = Secret::new("");
        settings.auth.jwks_url = format!("file://{}", path.display());
    })
    .await;
    from_file.go_live(12);
    assert_refusal!(&from_file, &known, GOOD);

    let server = JwksServer::start_tls(jwk_set(&[&known])).await;
    let trusting = app(&server, |settings| {
        settings.auth.jwks_ca_file = tls_dir().join("ca.pem").display().to_string();
    })
    .await;
    assert_refusal!(&trusting, &known, GOOD);
    assert_eq!(server.asked(), 1);
    // The public authorities know nothing of it: it is connected to, and asked nothing.
    let wary = app(&server, |_| {}).await;
    assert_refusal!(&wary, &known, NO_KEYS);
    assert!(server.connections() > 1);
    assert_eq!(server.asked(), 1);
    let ready = get(wary.addr, "/readyz").await;
    assert_eq!(ready.status, 503, "{ready:?}");
}

#[actix_web::test]
async fn a_session_that_waits_for_its_key_is_bounded_in_frames_and_ends_with_its_client() {
    let known = es256("known");
    let server = JwksServer::start(jwk_set(&[&known])).await;
    let app = app(&server, |settings| {
        settings.auth.jwks_timeout_ms = 20_000;
        settings.session.client_frames_per_second = 10;
        settings.actors.session.mailbox = 100;
    })
    .await;
    server.answer(Answer::Hang);
    rested(&app, &known).await;
    let mut socket = WsClient::connect(app.addr, "/chatting").await;
    let start = json!({ "id": "start", "token": es256("new").token(&claims(12)) });
    socket.send_text(&start.to_string()).await;
    for _ in 0..300 {
        // It may be closed before the last one.
        socket.send_bytes_regardless(&Frame::new(TEXT, "ping").encode()).await;
    }
    assert_eq!(socket.next_close().await, Some(1008));
    let mut gone = WsClient::connect(app.addr, "/chatting").await;
    gone.send_text(&start.to_string()).await;
    drop(gone);
    drop(socket);
    within("the sockets to end", app.without_sockets()).await;
}

#[actix_web::test]
async fn auth_jwks_timeout_ms_is_all_the_time_that_a_fetch_has_also_beyond_five_seconds() {
    let (key, server) = (es256("a"), JwksServer::start("").await);
    server.answer(Answer::Hang);
    let late = async {
        server.asked_at_least(1).await;
        // Longer than the HTTP client would wait by itself.
        tokio::time::sleep(std::time::Duration::from_millis(5200)).await;
        server.answer(Answer::Body(jwk_set(&[&key])));
    };
    let (app, ()) = tokio::join!(app(&server, |settings| settings.auth.jwks_timeout_ms = 30_000), late);
    eventually("the keys", async || {
        (refusal(&app, &key).await.1 == GOOD.1).then_some(())
    })
    .await;
    assert_eq!(server.asked(), 1, "it was not given up before its time");
}
