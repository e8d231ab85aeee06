//! Keys are rotated while senders send with old tokens and with new ones: nobody is refused, and no session ends. What an old
//! key signed is refused once it is taken away, though it was remembered as good.

use std::{
    cell::Cell,
    net::SocketAddr,
    path::Path,
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use chatting_server::settings::{Algorithm, Secret};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    app::{post_v1, spawn_app, token_of},
    eventually,
    http::{HttpClient, get, post_json},
    jwks::{Answer, JwksServer},
    keys::{KeyPair, jwk_set, signed_with},
    presenter::connect,
    process::{Process, ScratchDir},
    tokens::{claims, signed},
    within,
    ws::{Incoming, WsClient},
};

/// Messages that each side sends at least between two steps.
const ENOUGH: u64 = 150;

/// Longer than any of this takes, however busy the machine: no session is to end here for want of a pong.
const QUIET_SECONDS: u64 = 300;

/// Senders that go on sending, each on a connection of its own, until they are stopped.
struct Senders {
    sent: Rc<Cell<u64>>,
    stop: Rc<Cell<bool>>,
    tasks: Vec<actix_web::rt::task::JoinHandle<Vec<String>>>,
}

impl Senders {
    fn start(address: SocketAddr, tokens: Vec<String>) -> Self {
        let (sent, stop) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let one = |token: String| {
            let (sent, stop) = (Rc::clone(&sent), Rc::clone(&stop));
            actix_web::rt::spawn(async move {
                let mut client = HttpClient::connect(address).await;
                let mut refused = Vec::new();
                while !stop.get() {
                    let answer = post_v1(&mut client, 12, &token, "hi").await;
                    if answer.status == 201 {
                        sent.set(sent.get() + 1);
                    } else {
                        refused.push(format!("{} {}", answer.status, answer.text()));
                        client = HttpClient::connect(address).await;
                    }
                }
                refused
            })
        };
        let tasks = tokens.into_iter().map(one).collect();
        Self { sent, stop, tasks }
    }

    /// Returns when they have sent some more.
    async fn go_on(&self) {
        let before = self.sent.get();
        eventually("the senders to send", async || {
            (self.sent.get() >= before + ENOUGH).then_some(())
        })
        .await;
    }

    /// How many messages were taken, once all have stopped. Panics when one was refused.
    async fn stop(self) -> u64 {
        self.stop.set(true);
        let refused: Vec<_> = join_all(self.tasks)
            .await
            .into_iter()
            .flat_map(Result::unwrap)
            .collect();
        assert!(
            refused.is_empty(),
            "{} were refused, the first: {}",
            refused.len(),
            refused[0]
        );
        self.sent.get()
    }
}

/// The presenter, who reads and acknowledges on one connection throughout. Gives what came when it is told how much is to.
struct Presenter {
    read: Rc<Cell<u64>>,
    task: actix_web::rt::task::JoinHandle<()>,
}

impl Presenter {
    async fn connect(address: SocketAddr, token: &str) -> Self {
        let mut socket = connect(address).await;
        socket
            .send_text(&json!({ "type": "hello", "token": token }).to_string())
            .await;
        assert_eq!(socket.next_json().await["type"], "welcome");
        let read = Rc::new(Cell::new(0));
        let count = Rc::clone(&read);
        let task = actix_web::rt::spawn(async move {
            loop {
                let frame: Value = match socket.next().await {
                    Incoming::Text(text) => serde_json::from_str(&text).unwrap(),
                    other => panic!("the session ended: {other:?}"),
                };
                assert_eq!(frame["type"], "chat", "{frame}");
                assert_eq!(frame["seq"], count.get() + 1, "one after the other");
                count.set(count.get() + 1);
                socket
                    .send_text(&json!({ "type": "ack", "seq": frame["seq"] }).to_string())
                    .await;
            }
        });
        Self { read, task }
    }

    /// Returns when so many messages have come, all on the one connection.
    async fn has_read(self, count: u64) {
        eventually(format_args!("{count} messages at the presenter"), async || {
            assert!(
                !self.task.is_finished(),
                "the session ended after {} messages",
                self.read.get()
            );
            (self.read.get() >= count).then_some(())
        })
        .await;
        assert_eq!(self.read.get(), count);
        self.task.abort();
    }
}

async fn metric(address: SocketAddr, name: &str) -> f64 {
    let text = get(address, "/metrics").await;
    let line = text
        .text()
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("no metric {name}"))
}

/// A server as a process, whose keys are in its settings file.
struct Server {
    process: Process,
    dir: std::sync::Arc<ScratchDir>,
    address: SocketAddr,
}

impl Server {
    async fn start(auth: &str) -> Self {
        let dir = ScratchDir::new("rotation");
        write_auth(dir.path(), auth);
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatting-server"));
        command.args(["serve", "--port-file", "port"]).current_dir(dir.path());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CHAT__")) {
            command.env_remove(name);
        }
        let process = Process::start(&dir, &mut command);
        let address = process.address(&dir.path().join("port")).await;
        Self { process, dir, address }
    }

    /// Presenter 12 is live from now on.
    async fn go_live(&self, operator: &str) {
        let body = r#"{"presenterIdx":"12"}"#;
        let answer = post_json(self.address, "/room/live/start", &[("token", operator)], body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// SIGHUP with these settings; returns when they were read.
    async fn reload(&self, auth: &str, outcome: &str) {
        write_auth(self.dir.path(), auth);
        let name = format!(r#"chat_key_reloads_total{{outcome="{outcome}"}}"#);
        let before = metric(self.address, &name).await;
        self.process.signal("HUP");
        eventually("the keys to be read again", async || {
            (metric(self.address, &name).await > before).then_some(())
        })
        .await;
    }
}

/// The settings file; replaced as a whole, as an operator's tools do.
fn write_auth(dir: &Path, auth: &str) {
    let text = format!(
        "[auth]\n{auth}\n[server]\nbind = \"127.0.0.1:0\"\n[room]\nmode = \"embedded\"\n[limits]\nsender_per_second = 0\n\
         room_per_second = 0\n[session]\nkeepalive_seconds = {QUIET_SECONDS}\n"
    );
    std::fs::write(dir.join("settings.new"), text).unwrap();
    std::fs::rename(dir.join("settings.new"), dir.join("settings.toml")).unwrap();
}

/// HS256 tokens by secret.
fn by_secret(secret: &str, claims: &Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    signed_with(
        r#"{"alg":"HS256","typ":"JWT"}"#,
        &claims.to_string(),
        &key,
        jsonwebtoken::Algorithm::HS256,
    )
}

fn operator() -> Value {
    let mut claims = claims(1);
    claims["role"] = json!("operator");
    claims
}

/// What a rotation is tried with: how old and new tokens are made, and the `[auth]` of each step.
struct Rotation {
    old: Box<dyn Fn(&Value) -> String>,
    new: Box<dyn Fn(&Value) -> String>,
    /// The old key alone, both, the new key alone.
    steps: [String; 3],
}

/// Says how many messages were taken.
async fn rotate_under_load(server: Server, Rotation { old, new, steps }: Rotation) -> String {
    let tokens = |make: &dyn Fn(&Value) -> String, first: i64| {
        (first..first + 3).map(|user| make(&claims(user))).collect::<Vec<_>>()
    };
    server.go_live(&old(&operator())).await;
    let presenter = Presenter::connect(server.address, &old(&claims(12))).await;
    // A legacy session of another room, whose token was the old key's too.
    let mut legacy = WsClient::connect(server.address, "/chatting").await;
    legacy
        .send_text(&json!({ "id": "start", "token": old(&claims(13)) }).to_string())
        .await;

    let (of_old, of_new) = (tokens(&old, 20), tokens(&new, 30));
    let with_old = Senders::start(server.address, of_old.clone());
    with_old.go_on().await;
    server.reload(&steps[1], "ok").await;
    let with_new = Senders::start(server.address, of_new);
    futures_util::join!(with_old.go_on(), with_new.go_on());
    // What is wrong changes nothing.
    server.reload("hs256_secret = \"short\"", "error").await;
    futures_util::join!(with_old.go_on(), with_new.go_on());
    server
        .process
        .line("SIGHUP: the keys stay as they are: auth.hs256_secret")
        .await;
    let taken_of_old = with_old.stop().await;

    server.reload(&steps[2], "ok").await;
    with_new.go_on().await;
    for token in &of_old {
        let answer = post_v1(&mut HttpClient::connect(server.address).await, 12, token, "hi").await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (401, Some("unauthenticated"))
        );
    }
    let taken_of_new = with_new.stop().await;
    assert_eq!(metric(server.address, "chat_sessions").await, 2.0);
    presenter.has_read(taken_of_old + taken_of_new).await;
    legacy.send_text("ping").await;
    assert_eq!(legacy.next_text().await, "pong", "the legacy session is still there");
    server.process.signal("TERM");
    assert!(within("the server to end", server.process.exited()).await.success());
    let output = server.process.output();
    assert!(
        !output.contains(&of_old[0][..60]) && !output.contains("BEGIN"),
        "{output}"
    );
    format!("taken: {taken_of_old} with old tokens, {taken_of_new} with new ones; refused: 0")
}

#[actix_web::test]
async fn an_hs256_secret_is_rotated_by_sighup_under_load_with_nobody_refused_and_no_session_ended() {
    let (old, new) = (
        "the secret before, of thirty-two bytes or more",
        "the secret after, of thirty-two bytes or more",
    );
    let steps = [
        format!("hs256_secret = \"{old}\""),
        format!("hs256_secret = \"{new}\"\nprevious_hs256_secret = \"{old}\""),
        format!("hs256_secret = \"{new}\""),
    ];
    let server = Server::start(&steps[0]).await;
    let rotation = Rotation {
        old: Box::new(move |claims| by_secret(old, claims)),
        new: Box::new(move |claims| by_secret(new, claims)),
        steps,
    };
    println!("{}", rotate_under_load(server, rotation).await);
}

#[actix_web::test]
async fn from_a_shared_secret_to_a_public_key_in_a_file_nobody_is_refused_and_no_session_ends() {
    let old = "the secret before, of thirty-two bytes or more";
    let pair = KeyPair::generate(Algorithm::Es256, "new");
    let steps = [
        format!("hs256_secret = \"{old}\""),
        format!(
            "algorithm = \"ES256\"\nkey_file = \"key.pem\"\nprevious_algorithm = \"HS256\"\nprevious_hs256_secret = \"{old}\""
        ),
        "algorithm = \"ES256\"\nkey_file = \"key.pem\"".to_owned(),
    ];
    let server = Server::start(&steps[0]).await;
    std::fs::write(server.dir.path().join("key.pem"), &pair.public_pem).unwrap();
    let rotation = Rotation {
        old: Box::new(move |claims| by_secret(old, claims)),
        new: Box::new(move |claims| pair.token(claims)),
        steps,
    };
    println!("{}", rotate_under_load(server, rotation).await);
}

#[actix_web::test]
async fn a_published_key_is_rotated_under_load_though_it_is_used_the_moment_it_is_published() {
    let (old, new) = (
        KeyPair::generate(Algorithm::Es256, "old"),
        KeyPair::generate(Algorithm::Es256, "new"),
    );
    let server = JwksServer::start(jwk_set(&[&old])).await;
    let url = server.url();
    let app = spawn_app(|settings| {
        settings.auth.hs256_secret = Secret::new("");
        settings.auth.jwks_url = url;
        settings.auth.jwks_refresh_seconds = 3600;
        settings.auth.jwks_min_refresh_seconds = 1;
        settings.auth.jwks_timeout_ms = 10_000;
        settings.session.keepalive_seconds = QUIET_SECONDS;
    })
    .await;
    let fetched = Instant::now();
    app.go_live(12);
    let presenter = Presenter::connect(app.addr, &old.token(&claims(12))).await;
    let tokens = |pair: &KeyPair, first: i64| {
        (first..first + 3)
            .map(|user| pair.token(&claims(user)))
            .collect::<Vec<_>>()
    };
    let with_old = Senders::start(app.addr, tokens(&old, 20));
    with_old.go_on().await;
    // The pause after the first fetch is over: within it the token of a key that is not known is refused at once.
    while fetched.elapsed() < Duration::from_millis(1100) {
        with_old.go_on().await;
    }
    server.answer(Answer::Body(jwk_set(&[&old, &new])));
    let with_new = Senders::start(app.addr, tokens(&new, 30));
    futures_util::join!(with_old.go_on(), with_new.go_on());
    assert_eq!(server.asked(), 2, "one fetch for all that waited");
    let remembered = old.token(&claims(20));
    assert!(app.state.tokens.verify(&remembered).is_ok());
    let taken_of_old = with_old.stop().await;

    server.answer(Answer::Body(jwk_set(&[&new])));
    app.state.tokens.refetch();
    eventually("the old key's tokens to be refused", async || {
        app.state.tokens.verify(&remembered).is_err().then_some(())
    })
    .await;
    with_new.go_on().await;
    let taken_of_new = with_new.stop().await;
    println!("taken: {taken_of_old} with old tokens, {taken_of_new} with new ones; refused: 0");
    presenter.has_read(taken_of_old + taken_of_new).await;
}

/// What a gateway that tells this secret is answered to a message of user 7.
async fn through_a_gateway(server: &Server, secret: &str) -> u16 {
    let headers = [
        ("x-forward-userIdx", "7"),
        ("x-forward-nickname", "kim"),
        ("x-gateway-secret", secret),
    ];
    let path = "/v1/rooms/12/messages";
    post_json(server.address, path, &headers, r#"{"text":"hi"}"#)
        .await
        .status
}

#[actix_web::test]
async fn a_gateways_secret_is_rotated_by_sighup_with_nobody_refused() {
    let key = crate::support::app::KEY;
    let auth = |secrets: &str| {
        format!("mode = \"gateway\"\ntrusted_proxies = [\"127.0.0.1\"]\nhs256_secret = \"{key}\"\n{secrets}")
    };
    let server = Server::start(&auth("gateway_secret = \"before\"")).await;
    server.go_live(&signed(&operator())).await;
    let presenter = Presenter::connect(server.address, &signed(&claims(12))).await;
    let answers = async || {
        let mut answers = Vec::new();
        for secret in ["before", "after", "another"] {
            answers.push(through_a_gateway(&server, secret).await);
        }
        answers
    };
    assert_eq!(answers().await, [201, 403, 403]);
    server
        .reload(
            &auth("gateway_secret = \"after\"\nprevious_gateway_secret = \"before\""),
            "ok",
        )
        .await;
    assert_eq!(answers().await, [201, 201, 403]);
    // What is wrong changes nothing: no secret of now, or none at all, with which everyone would be believed.
    server
        .reload(&auth("previous_gateway_secret = \"before\""), "error")
        .await;
    server.reload(&auth(""), "error").await;
    server.reload(&auth("gateway_secret = \" another\""), "error").await;
    assert_eq!(answers().await, [201, 201, 403]);
    server.reload(&auth("gateway_secret = \"after\""), "ok").await;
    assert_eq!(answers().await, [403, 201, 403]);
    server
        .process
        .line("SIGHUP: the keys were read again, they are the same; the gateway's secrets have changed")
        .await;
    presenter.has_read(6).await;
}

/// As under systemd, where the environment stays what it was at the start.
#[actix_web::test]
async fn a_gateways_secret_in_a_file_is_rotated_by_sighup() {
    let key = crate::support::app::KEY;
    let auth = |file: &str| {
        format!(
            "mode = \"gateway\"\ntrusted_proxies = [\"127.0.0.1\"]\nhs256_secret = \"{key}\"\ngateway_secret_file = \"{file}\""
        )
    };
    let (dir, files) = (ScratchDir::new("gateway-secret"), ["now", "then", "empty"]);
    let [now, then, empty] = files.map(|name| dir.path().join(name).display().to_string());
    for (file, secret) in [(&now, "before\n"), (&then, "before\n"), (&empty, "")] {
        std::fs::write(file, secret).unwrap();
    }
    let server = Server::start(&auth(&now)).await;
    server.go_live(&signed(&operator())).await;
    let presenter = Presenter::connect(server.address, &signed(&claims(12))).await;
    let answers = async || {
        let secrets = ["before", "after"];
        join_all(secrets.map(|secret| through_a_gateway(&server, secret))).await
    };
    assert_eq!(answers().await, [201, 403]);
    std::fs::write(&now, "after\n").unwrap();
    let both = format!("{}\nprevious_gateway_secret_file = \"{then}\"", auth(&now));
    server.reload(&both, "ok").await;
    assert_eq!(answers().await, [201, 201]);
    // What is wrong changes nothing: by none at all everyone would be believed.
    server.reload(&auth(&empty), "error").await;
    assert_eq!(answers().await, [201, 201]);
    server.reload(&auth(&now), "ok").await;
    assert_eq!(answers().await, [403, 201]);
    presenter.has_read(6).await;
}

#[actix_web::test]
async fn a_gateways_secret_that_is_not_in_use_keeps_no_key_from_being_rotated() {
    let (old, new) = (
        "the secret before, of thirty-two bytes or more",
        "the secret after, of thirty-two bytes or more",
    );
    let server = Server::start(&format!("hs256_secret = \"{old}\"")).await;
    let unused = "gateway_secret = \"of another day\"";
    server
        .reload(&format!("hs256_secret = \"{new}\"\n{unused}"), "ok")
        .await;
    let unused = "gateway_secret_file = \"none\"";
    server
        .reload(&format!("hs256_secret = \"{new}\"\n{unused}"), "ok")
        .await;
    let mut client = HttpClient::connect(server.address).await;
    let answer = client
        .request("GET", "/token", &[("token", &by_secret(new, &claims(7)))], "")
        .await;
    assert_eq!((answer.status, answer.text()), (200, "7"));
}

#[actix_web::test]
async fn what_a_reload_does_not_read_stays_as_it_was() {
    let old = crate::support::app::KEY;
    let server = Server::start(&format!("hs256_secret = \"{old}\"\nclaim_user = \"user_idx\"")).await;
    server
        .reload(&format!("hs256_secret = \"{old}\"\nclaim_user = \"sub\""), "ok")
        .await;
    server
        .process
        .line("SIGHUP: the keys were read again, they are the same")
        .await;
    let mut client = HttpClient::connect(server.address).await;
    let answer = client
        .request("GET", "/token", &[("token", &signed(&claims(7)))], "")
        .await;
    assert_eq!((answer.status, answer.text()), (200, "7"));
    // Minted by the command's own means, too.
    let settings = chatting_server::settings::Settings::default();
    let token = token_of(&settings, 8, "kim");
    let answer = client.request("GET", "/token", &[("token", &token)], "").await;
    assert_eq!((answer.status, answer.text()), (200, "8"));
}

#[actix_web::test]
async fn a_reload_that_would_leave_the_server_without_a_key_is_refused_and_old_tokens_are_taken() {
    let old = crate::support::app::KEY;
    let server = Server::start(&format!("hs256_secret = \"{old}\"")).await;
    server.reload("jwks_url = \"http://127.0.0.1:1/\"", "error").await;
    server
        .process
        .line("SIGHUP: the keys stay as they are: auth.jwks_url is not what the server was started with")
        .await;
    let mut client = HttpClient::connect(server.address).await;
    let answer = client
        .request("GET", "/token", &[("token", &signed(&claims(7)))], "")
        .await;
    assert_eq!((answer.status, answer.text()), (200, "7"));
}

#[actix_web::test]
async fn a_reload_does_not_pass_over_a_place_of_published_keys_that_was_taken_away() {
    let pair = KeyPair::generate(Algorithm::Es256, "published");
    let published = JwksServer::start(jwk_set(&[&pair])).await;
    let secret = format!("hs256_secret = \"{}\"", crate::support::app::KEY);
    let with_place = format!("{secret}\njwks_url = \"{}\"", published.url());
    let server = Server::start(&with_place).await;
    server.reload(&secret, "error").await;
    server
        .process
        .line("SIGHUP: the keys stay as they are: auth.jwks_url is not what the server was started with")
        .await;
    // With the place as it was, the secret may go.
    let place = format!("jwks_url = \"{}\"", published.url());
    server.reload(&place, "ok").await;
    let mut client = HttpClient::connect(server.address).await;
    let answer = client
        .request("GET", "/token", &[("token", &pair.token(&claims(7)))], "")
        .await;
    assert_eq!((answer.status, answer.text()), (200, "7"));
    let answer = client
        .request("GET", "/token", &[("token", &signed(&claims(7)))], "")
        .await;
    assert_eq!(answer.status, 400, "{answer:?}");
}

/// As after a leak: what else is wrong with the settings is for another day.
#[actix_web::test]
async fn a_key_that_is_published_no_more_is_gone_at_sighup_also_where_the_settings_cannot_be_read_again() {
    let (leaked, new) = (
        KeyPair::generate(Algorithm::Es256, "leaked"),
        KeyPair::generate(Algorithm::Es256, "new"),
    );
    let published = JwksServer::start(jwk_set(&[&leaked, &new])).await;
    let auth = format!(
        "jwks_url = \"{}\"\njwks_refresh_seconds = 3600\njwks_timeout_ms = 10000",
        published.url()
    );
    let server = Server::start(&auth).await;
    let ask = async |pair: &KeyPair| {
        let mut client = HttpClient::connect(server.address).await;
        let token = pair.token(&claims(7));
        client.request("GET", "/token", &[("token", &token)], "").await.status
    };
    assert_eq!((ask(&leaked).await, ask(&new).await), (200, 200));
    published.answer(Answer::Body(jwk_set(&[&new])));
    server.reload("hs256_secret = \"short\"", "error").await;
    eventually("the leaked key's tokens to be refused", async || {
        (ask(&leaked).await == 400).then_some(())
    })
    .await;
    assert_eq!(ask(&new).await, 200);
    assert_eq!(metric(server.address, "chat_jwks_keys").await, 1.0);
}

#[actix_web::test]
async fn a_reload_whose_file_hangs_is_an_error_and_the_next_one_is_heard() {
    let (old, new) = (
        "the secret before, of thirty-two bytes or more",
        "the secret after, of thirty-two bytes or more",
    );
    let server = Server::start(&format!("hs256_secret = \"{old}\"\njwks_timeout_ms = 50")).await;
    // Whoever opens it waits for who writes, as where a disk hangs.
    let (pipe, settings) = (server.dir.path().join("pipe"), server.dir.path().join("settings.toml"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::rename(&pipe, &settings).unwrap();
    for (count, why) in [
        (1.0, "a file with them was not read within 50ms (auth.jwks_timeout_ms)"),
        (2.0, "a file with them is still being read"),
    ] {
        server.process.signal("HUP");
        server
            .process
            .line(&format!("SIGHUP: the keys stay as they are: {why}"))
            .await;
        eventually("the reload to be counted", async || {
            let failed = metric(server.address, r#"chat_key_reloads_total{outcome="error"}"#).await;
            (failed == count).then_some(())
        })
        .await;
    }
    // It is read to its end, and nobody waits for what it says.
    let writer = std::fs::OpenOptions::new().write(true).open(&settings).unwrap();
    drop(writer);
    write_auth(server.dir.path(), &format!("hs256_secret = \"{new}\""));
    eventually("the keys to be read again", async || {
        server.process.signal("HUP");
        let read = metric(server.address, r#"chat_key_reloads_total{outcome="ok"}"#).await;
        (read > 0.0).then_some(())
    })
    .await;
    let mut client = HttpClient::connect(server.address).await;
    for (secret, status) in [(new, 200), (old, 400)] {
        let token = by_secret(secret, &claims(7));
        let answer = client.request("GET", "/token", &[("token", &token)], "").await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
}
