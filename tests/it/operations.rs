//! What operators see: liveness, readiness, metrics, their own port; and the embedded room server that they steer.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use chatting_actors::{clock::system_ms, registry::End, seldom::Seldom, session::Close, types::Role};
use chatting_server::{
    app::Stopped,
    auth::{Mint, SigningKey, mint},
    error::{Code, Lang},
    settings::RoomMode,
    store::SpoolLock,
};
use serde_json::json;

use crate::support::{
    app::{KEY, TestApp, settings, spawn_app, spawn_in, use_mongodb},
    command::{command, run},
    eventually,
    http::{HttpClient, Response, get},
    mongod::{Mongod, fresh_database_name},
    presenter::V1,
    process::{Process, ScratchDir},
    ws::WsClient,
};

#[actix_web::test]
async fn livez_readyz_and_metrics_answer() {
    let app = spawn_app(|_| {}).await;
    assert_eq!(get(app.addr, "/livez").await.status, 200);
    let ready = get(app.addr, "/readyz").await;
    let well = |name| json!({ "name": name, "alive": true, "restarts": 0 });
    let actors = ["registry", "checker", "writer", "spool"].map(well);
    assert_eq!(
        (ready.status, ready.json()),
        (200, json!({ "status": "ready", "reasons": [], "actors": actors }))
    );
    let metrics = get(app.addr, "/metrics").await;
    assert!(
        metrics
            .header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    for name in [
        "chat_accepted_total",
        "chat_delivered_total",
        "chat_queue_depth{queue=\"registry\"}",
        "chat_queue_depth{queue=\"checker\"}",
        "chat_queue_depth{queue=\"writer\"}",
        "chat_queue_capacity{queue=\"sessions\"}",
        "chat_room_check_seconds_count",
        "chat_commit_events_count",
        "chat_commit_seconds_count",
        "chat_store_batch_events_count",
        "chat_store_batch_seconds_count",
        "chat_sessions",
        "chat_room_refusals",
        "chat_rooms",
        "chat_spool_bytes",
        "chat_parked_events",
        "chat_refused_broadcasts",
        "chat_spool_was_behind",
    ] {
        assert!(
            metrics.text().contains(&format!("\n{name} ")),
            "{name} is missing:\n{}",
            metrics.text()
        );
    }
    assert!(
        metrics.text().contains("\nchat_spool_max_bytes 0\n"),
        "the log itself has no limit"
    );
}

#[actix_web::test]
async fn a_probe_may_ask_by_head_and_other_methods_are_told_which_there_are() {
    for apart in [false, true] {
        let app = spawn_app(|settings| {
            if apart {
                settings.ops.bind = "127.0.0.1:0".into();
            }
        })
        .await;
        let addr = app.ops.unwrap_or(app.addr);
        for path in [
            "/livez",
            "/readyz",
            "/metrics",
            "/openapi.json",
            "/docs",
            "/docs/",
            "/docs/index.css",
        ] {
            let mut client = HttpClient::connect(addr).await;
            let whole = client.request("GET", path, &[], "").await;
            let head = client.request("HEAD", path, &[], "").await;
            assert_eq!(head.status, whole.status, "{path}");
            for name in ["content-type", "cache-control", "location"] {
                assert_eq!(head.header(name), whole.header(name), "{path}");
            }
            if path != "/metrics" {
                assert_eq!(head.header("content-length"), whole.header("content-length"), "{path}");
            }
            // Nothing is behind the head: the next answer is read whole.
            for method in ["POST", "PUT", "OPTIONS"] {
                let refused = client.request(method, path, &[], "").await;
                let told = (refused.status, refused.header("allow"));
                assert_eq!(told, (405, Some("GET, HEAD")), "{method} {path}");
            }
        }
    }
}

/// A series that begins at 1 shows no increase, so an alert would miss the first event of its kind.
#[actix_web::test]
async fn what_is_counted_by_kind_is_there_at_zero_before_the_first_event() {
    let app = spawn_app(|_| {}).await;
    let reasons: Vec<&str> = End::REASONS.into_iter().chain(Close::reasons()).collect();
    let runbook = include_str!("../../docs/OPERATIONS.md");
    let ends = runbook
        .lines()
        .find(|line| line.starts_with("| `chat_sessions_ended_total"));
    for reason in &reasons {
        assert!(
            ends.unwrap().contains(&format!("`{reason}`")),
            "{reason} is not in the runbook"
        );
    }
    let ended = reasons
        .iter()
        .map(|reason| format!("chat_sessions_ended_total{{reason=\"{reason}\"}}"));
    let refused = Code::ALL
        .iter()
        .map(|code| format!("chat_refused_total{{code=\"{code}\"}}"));
    let sockets = Code::ALL
        .iter()
        .map(|code| format!("chat_sessions_refused_total{{reason=\"{code}\"}}"));
    let by_outcome = [
        ("chat_room_checks_total", "error"),
        ("chat_room_checks_total", "timeout"),
        ("chat_room_checks_total", "refused"),
        ("chat_room_checks_total", "no_place"),
        ("chat_room_checks_total", "breaker_open"),
        ("chat_reconnect_requests_total", "error"),
        ("chat_resumes_total", "gap"),
        ("chat_log_reads_total", "error"),
        ("chat_log_reads_total", "hole"),
        ("chat_history_reads_total", "busy"),
        ("chat_history_reads_total", "error"),
        ("chat_exports_total", "error"),
        ("chat_exports_total", "abandoned"),
    ];
    let by_outcome = by_outcome.map(|(name, outcome)| format!("{name}{{outcome=\"{outcome}\"}}"));
    for series in ended.chain(refused).chain(sockets).chain(by_outcome) {
        assert_eq!(app.metric(&series).await, Some(0.0), "{series}");
    }
    // The list of reasons lacks none.
    for end in [
        End::Replaced,
        End::NotLive,
        End::Crowded,
        End::TooSlow,
        End::BadFrame(""),
        End::LogUnavailable,
        End::GoingAway,
        End::Restarted,
    ] {
        assert!(End::REASONS.contains(&end.as_str()), "{end:?}");
    }
}

#[actix_web::test]
async fn ops_bind_takes_operations_off_the_public_port() {
    let app = spawn_app(|settings| settings.ops.bind = "127.0.0.1:0".into()).await;
    let ops = app.ops.unwrap();
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(get(ops, path).await.status, 200, "{path}");
        assert_eq!(get(app.addr, path).await.status, 404, "{path}");
    }
    assert_eq!(get(ops, "/").await.status, 404);
}

#[actix_web::test]
async fn a_store_that_is_away_is_degraded_and_messages_go_on() {
    let mongod = Mongod::start_own().await;
    let app = spawn_app(|settings| {
        use_mongodb(settings);
        settings.mongodb.uri = chatting_server::settings::Secret::new(mongod.uri());
        settings.mongodb.database = fresh_database_name();
        settings.mongodb.connect_timeout_ms = 1000;
    })
    .await;
    let limit = app.settings.log.spool_max_bytes as f64;
    assert_eq!(app.metric("chat_spool_max_bytes").await, Some(limit));
    let reserve = app.settings.log.reserve_bytes as f64;
    assert_eq!(app.metric("chat_spool_reserve_bytes").await, Some(reserve));
    assert_eq!(app.metric("chat_spool_reserve_missing_bytes").await, Some(0.0));
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    // It must have told first where the room goes on.
    eventually("the store to be there", async || {
        (app.post(12, 7, "stored").await.status == 201).then_some(())
    })
    .await;
    mongod.kill().await;
    for n in 0..20 {
        assert_eq!(app.post(12, 7, &n.to_string()).await.status, 201);
    }
    let ready = eventually("the store to be missed", async || {
        let ready = get(app.addr, "/readyz").await;
        (ready.json()["status"] == "degraded").then_some(ready)
    })
    .await;
    assert_eq!(ready.status, 200);
    assert!(
        ready.json()["reasons"][0].as_str().unwrap().contains("spool"),
        "{ready:?}"
    );
    for _ in 0..21 {
        presenter.next_json().await;
    }
    let mut mongod = mongod;
    mongod.restart().await;
    eventually("the spool to be drained", async || {
        (app.metric("chat_spool_events").await == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!(get(app.addr, "/readyz").await.json()["status"], "ready");
}

fn operator_of(app: &TestApp) -> String {
    let operator = Mint {
        user_idx: 1,
        nickname: "op",
        role: Some(Role::Operator),
        rooms: &[],
        issued_at: system_ms() / 1000,
        ttl_seconds: 60,
        auth: &app.settings.auth,
    };
    mint(&SigningKey::secret(KEY.as_bytes()), &operator).unwrap()
}

#[actix_web::test]
async fn the_embedded_room_servers_routes_refuse_as_the_document_says_beside_the_legacy_dialect_too() {
    let app = spawn_app(|settings| settings.server.body_seconds = 300).await;
    let mut client = app.client().await;
    let problem = |answer: &Response| answer.header("content-type") == Some("application/problem+json");
    for path in ["check", "search-all", "start", "stop"] {
        let answer = client.request("GET", &format!("/room/live/{path}"), &[], "").await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{path}");
        assert!(problem(&answer), "{answer:?}");
        assert_eq!(answer.json()["code"], "method_not_allowed");
    }
    let answer = client.request("POST", "/room/live/nothing", &[], "").await;
    assert_eq!((answer.status, problem(&answer)), (404, true), "{answer:?}");
    // Who asks comes before what is asked, which may be long in coming.
    for path in ["start", "stop"] {
        let head = format!("POST /room/live/{path} HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n");
        let mut stranger = app.client().await;
        stranger.send_bytes(head.as_bytes()).await;
        assert_eq!(stranger.read_response(false).await.status, 401, "{path}");
    }

    app.state.failing.http.store(true, Ordering::Relaxed);
    let (operator, twelve) = (operator_of(&app), r#"{"presenterIdx":"12"}"#);
    let headers = [("token", operator.as_str()), ("Accept-Language", "ko")];
    let answer = app.client().await.post_json("/room/live/start", &headers, twelve).await;
    assert_eq!((answer.status, problem(&answer)), (504, true), "{answer:?}");
    assert_eq!(answer.json()["title"], Code::OutcomeUnknown.title(Lang::Korean));
    assert_eq!(
        client.post_json("/room/live/start", &headers, twelve).await.status,
        200,
        "the next one is served"
    );
}

#[actix_web::test]
async fn where_rooms_are_not_embedded_their_paths_are_no_others_than_the_old_server_lacked() {
    let app = spawn_app(|settings| settings.room.mode = RoomMode::Http).await;
    let page = [("Origin", "https://a.example")];
    let answer = app.client().await.request("POST", "/room/live/start", &page, "").await;
    assert_eq!(
        (answer.status, &answer.json()["error"]),
        (404, &json!("Not Found")),
        "{answer:?}"
    );
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
}

#[actix_web::test]
async fn the_embedded_room_server_is_steered_by_operators_only() {
    let app = spawn_app(|_| {}).await;
    let operator = operator_of(&app);
    let viewer = app.token(12);
    let ask = async |path: &str, token: &str, body: &str| {
        app.client()
            .await
            .post_json(&format!("/room/live/{path}"), &[("token", token)], body)
            .await
    };
    let twelve = r#"{"presenterIdx":"12"}"#;
    assert_eq!(ask("start", "", twelve).await.status, 401);
    assert_eq!(ask("start", &viewer, twelve).await.status, 403);
    assert_eq!(ask("start", &operator, "{}").await.status, 400);
    assert_eq!(ask("check", "", twelve).await.json()["data"], json!({ "alive": false }));
    assert_eq!(ask("start", &operator, twelve).await.json()["data"]["alive"], true);
    assert_eq!(ask("check", "", twelve).await.json()["data"]["alive"], true);
    assert_eq!(ask("search-all", "", "").await.json()["data"][0]["presenterIdx"], 12);
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "hi").await.status, 201);
    // Live rooms survive a restart, and the numbers go on.
    let (_, dir, settings) = app.stop().await;
    let app = spawn_in(dir, settings).await;
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "again").await.json()["seq"], 2);
    let ask = async |path: &str, token: &str| {
        app.client()
            .await
            .post_json(&format!("/room/live/{path}"), &[("token", token)], twelve)
            .await
    };
    assert_eq!(ask("stop", &viewer).await.status, 403);
    assert_eq!(
        ask("stop", &operator).await.json()["data"],
        json!({ "alive": false, "stopped": true })
    );
}

#[actix_web::test]
async fn while_it_stops_it_is_not_ready_and_takes_no_new_sessions() {
    let app = spawn_app(|settings| settings.ops.bind = "127.0.0.1:0".into()).await;
    app.state.health.draining.store(true, Ordering::Release);
    let ready = get(app.ops.unwrap(), "/readyz").await;
    assert_eq!(
        (ready.status, ready.json()["status"].as_str()),
        (503, Some("not_ready"))
    );
    let refused = WsClient::connect_with(app.addr, "/chatting", &[], None)
        .await
        .err()
        .unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
}

#[actix_web::test]
async fn while_it_stops_each_answer_is_its_connections_last_also_one_that_takes_a_message() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let before = app.post(12, 7, "x").await;
    assert_eq!((before.status, before.header("connection")), (201, None));
    app.state.health.draining.store(true, Ordering::Release);
    let taken = app.post(12, 7, "y").await;
    assert_eq!((taken.status, taken.header("connection")), (201, Some("close")));
    let read = get(app.addr, "/v1/rooms/12/messages").await;
    assert_eq!((read.status, read.header("connection")), (401, Some("close")));
}

/// A thread that does not come to its end, as one that waits for the disk.
#[actix_web::test]
async fn a_spool_that_cannot_be_closed_makes_the_stop_end_at_its_deadline() {
    let app = spawn_app(|settings| {
        settings.shutdown.drain_seconds = 0;
        settings.shutdown.requests_seconds = 0;
        settings.shutdown.deadline_seconds = 1;
    })
    .await;
    let hold = app.state.health.writer.hold_spool();
    let (stopped, _dir, settings) = app.stop().await;
    assert_eq!(stopped, Stopped::AtDeadline);
    let spool = Path::new(&settings.log.path);
    assert!(
        SpoolLock::take(spool, spool).is_err(),
        "it goes on until the process ends"
    );
    drop(hold);
    eventually("the spool to be closed", async || SpoolLock::take(spool, spool).ok()).await;
}

#[actix_web::test]
async fn the_deadline_of_a_stop_is_over_the_time_that_presenters_are_told_in_too() {
    let app = spawn_app(|settings| {
        // As no start allows it: telling so many takes all the time that there is.
        settings.shutdown.drain_seconds = 1;
        settings.shutdown.deadline_seconds = 1;
    })
    .await;
    let mut presenters = Vec::new();
    for presenter in 100..125 {
        presenters.push(V1::of(&app, presenter, json!({})).await);
    }
    let metrics = app.state.metrics.clone();
    let (stopped, ..) = app.stop().await;
    assert_eq!(stopped, Stopped::AtDeadline);
    // They would have been ended in order, if only what comes then had the deadline.
    assert_eq!(metrics.sessions_ended.of("going_away").get(), 0);
}

// ---- the command -------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn serve_refuses_to_start_without_a_key_and_says_how_to_set_one() {
    let dir = ScratchDir::new("nokey");
    let (code, _, error) = run(&dir, &["serve"], &[]);
    assert_eq!(code, 64);
    assert!(
        error.contains("auth.hs256_secret") && error.contains("CHAT__AUTH__HS256_SECRET"),
        "{error}"
    );
}

#[actix_web::test]
async fn bad_settings_stop_the_start_naming_each_key_and_what_is_allowed() {
    let dir = ScratchDir::new("badkeys");
    std::fs::write(
        dir.path().join("settings.toml"),
        "[log]\nbackend = \"mysql\"\n[room]\ntimout_ms = 5\n",
    )
    .unwrap();
    let env = [
        ("CHAT__LOG__BATCH_MAX", "many"),
        ("CHAT__AUTH__HS256_SECRET", "tiny-5ecret"),
    ];
    let (code, _, error) = run(&dir, &["serve", "--set", "message.max_chars=-1"], &env);
    assert_eq!(code, 64);
    for part in [
        "log.backend",
        "mysql",
        "sqlite",
        "timout_ms",
        "timeout_ms",
        "log.batch_max",
        "message.max_chars",
        "auth.hs256_secret",
    ] {
        assert!(error.contains(part), "{part} is not named in:\n{error}");
    }
    assert!(!error.contains("tiny-5ecret"), "a secret is shown:\n{error}");
    let (code, _, error) = run(&dir, &["check-config"], &env);
    assert_eq!(code, 64, "{error}");
}

#[actix_web::test]
async fn a_missing_settings_file_is_an_error_and_check_config_shows_where_values_come_from() {
    let dir = ScratchDir::new("layers");
    assert_eq!(run(&dir, &["check-config", "--config", "nowhere.toml"], &[]).0, 64);
    std::fs::write(
        dir.path().join("settings.toml"),
        "[log]\nbatch_max = 7\nlinger_ms = 3\n",
    )
    .unwrap();
    let env = [("CHAT__LOG__LINGER_MS", "4"), ("CHAT__AUTH__HS256_SECRET", KEY)];
    let (code, out, error) = run(&dir, &["check-config", "--set", "log.commit_max=9"], &env);
    assert_eq!(code, 0, "{error}");
    for line in [
        "log.batch_max = 7  # file",
        "log.linger_ms = 4  # environment",
        "log.commit_max = 9  # flag",
    ] {
        assert!(out.contains(line), "{line} is not in:\n{out}");
    }
    assert!(!out.contains(KEY), "a secret is shown:\n{out}");
}

#[actix_web::test]
async fn a_minted_token_is_read_by_the_server() {
    let dir = ScratchDir::new("mint");
    let (code, token, error) = run(
        &dir,
        &["token", "--user", "12", "--nickname", "하루"],
        &[("CHAT__AUTH__HS256_SECRET", KEY)],
    );
    assert_eq!(code, 0, "{error}");
    let app = spawn_in(ScratchDir::new("reader"), settings(&dir)).await;
    let answer = app
        .client()
        .await
        .request("GET", "/token", &[("token", token.trim())], "")
        .await;
    assert_eq!((answer.status, answer.text()), (200, "12"));
}

#[actix_web::test]
async fn rule_07_a_second_server_on_one_spool_is_refused_naming_the_first() {
    let dir = ScratchDir::new("second");
    let args = [
        "serve",
        "--port-file",
        "port",
        "--set",
        "server.bind=127.0.0.1:0",
        "--set",
        "room.mode=embedded",
    ];
    let key = [("CHAT__AUTH__HS256_SECRET", KEY)];
    let first = Process::start(&dir, command(&dir, &args).envs(key));
    first.address(&dir.path().join("port")).await;
    let (code, _, error) = run(&dir, &args, &key);
    assert_eq!(code, 69);
    assert!(error.contains("in use by process "), "{error}");
    first.signal("TERM");
    assert!(first.exited().await.success());
}

/// A server of its own, with an embedded room server and log, and the address that it listens on.
async fn served(dir: &Arc<ScratchDir>, more: &[&str]) -> (Process, SocketAddr) {
    let mut args = vec!["serve", "--port-file", "port", "--set", "server.bind=127.0.0.1:0"];
    args.extend(["--set", "room.mode=embedded"]);
    args.extend(more);
    let server = Process::start(dir, command(dir, &args).env("CHAT__AUTH__HS256_SECRET", KEY));
    let addr = server.address(&dir.path().join("port")).await;
    (server, addr)
}

#[actix_web::test]
async fn a_log_that_cannot_be_read_has_no_line_a_request() {
    let (dir, began) = (ScratchDir::new("unread"), Instant::now());
    let (server, addr) = served(&dir, &["--set", "log.path=chat.db"]).await;
    let token = crate::support::app::token_of(&settings(&dir), 7, "kim");
    // Reads open it by its name; the server goes on with the file that it has.
    std::fs::rename(dir.path().join("chat.db"), dir.path().join("away.db")).unwrap();
    let bearer = format!("Bearer {token}");
    for _ in 0..50 {
        let headers = [("authorization", bearer.as_str())];
        let mut client = HttpClient::connect(addr).await;
        let answer = client.request("GET", "/v1/rooms/12/messages", &headers, "").await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (503, Some("log_unavailable"))
        );
    }
    let output = server.output();
    let told = output
        .lines()
        .filter(|line| line.contains("the log cannot be read"))
        .count();
    let at_most = 1 + began.elapsed().as_secs() / Seldom::EVERY.as_secs();
    assert!((1..=at_most).contains(&(told as u64)), "{output}");
}

#[actix_web::test]
async fn json_logs_are_one_object_a_line_and_show_no_secret_no_token_and_no_text() {
    let dir = ScratchDir::new("json");
    let (server, addr) = served(&dir, &["--set", "logging.format=json"]).await;
    let token = crate::support::app::token_of(&settings(&dir), 12, "kim");
    let mut presenter = WsClient::connect(addr, "/chatting").await;
    presenter
        .send_text(&json!({ "id": "start", "token": token }).to_string())
        .await;
    presenter
        .send_text(&json!({ "id": "start", "token": format!("{token}x") }).to_string())
        .await;
    presenter.next_json().await;
    let body = r#"{"presenterIdx":12,"userType":"viewer","textMessage":"a secret text"}"#;
    crate::support::http::post_json(addr, "/send/message", &[("token", &token)], body).await;
    server.signal("TERM");
    assert!(server.exited().await.success());
    let output = server.output();
    assert!(output.lines().count() >= 4, "{output}");
    for line in output.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            entry["time"].is_string() && entry["level"].is_string() && entry["message"].is_string(),
            "{line}"
        );
    }
    for hidden in [KEY, &token[..40], "a secret text"] {
        assert!(!output.contains(hidden), "{hidden} is shown in:\n{output}");
    }
}

#[actix_web::test]
async fn with_json_logs_why_a_start_failed_is_such_a_line_too() {
    let dir = ScratchDir::new("json");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = format!("server.bind={}", taken.local_addr().unwrap());
    let args = [
        "serve",
        "--set",
        &bind,
        "--set",
        "logging.format=json",
        "--set",
        "log.path=chat.db",
    ];
    let server = Process::start(&dir, command(&dir, &args).env("CHAT__AUTH__HS256_SECRET", KEY));
    assert_eq!(server.exited().await.code(), Some(69));
    let output = server.output();
    let lines = output.lines().map(serde_json::from_str::<serde_json::Value>);
    let lines: Vec<_> = lines
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{error}: {output}"));
    let of_errors = lines.iter().filter(|line| line["level"] == "error");
    let errors: Vec<_> = of_errors.map(|line| line["message"].as_str().unwrap()).collect();
    assert!(matches!(errors[..], [why] if why.contains("server.bind")), "{output}");
}

#[actix_web::test]
async fn a_command_whose_output_is_lost_says_so_and_does_not_end_well() {
    let dir = ScratchDir::new("lost");
    let (server, _) = served(&dir, &["--set", "log.path=data/chat.db"]).await;
    server.signal("TERM");
    assert!(server.exited().await.success());
    let commands: [&[&str]; 5] = [
        &["settings"],
        &["check-config"],
        &["token", "--user", "7"],
        &["spool", "status"],
        &["spool", "verify"],
    ];
    for args in commands {
        let run = |out: Stdio| {
            let mut command = command(&dir, args);
            command
                .env("CHAT__AUTH__HS256_SECRET", KEY)
                .env("CHAT__ROOM__MODE", "embedded");
            command.stdout(out).stderr(Stdio::piped()).output().unwrap()
        };
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let lost = run(full.into());
        let error = String::from_utf8(lost.stderr).unwrap();
        assert_eq!(lost.status.code(), Some(69), "{args:?}: {error}");
        assert!(
            error.contains("standard output: No space left on device"),
            "{args:?}: {error}"
        );
        // Whoever reads it may have enough.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let unread = run(writer.into());
        assert_eq!(unread.status.code(), Some(0), "{args:?}: {unread:?}");
        assert_eq!(unread.stderr, b"", "{args:?}");
    }
}

/// The README's table names settings and their defaults, which are those of `settings.toml`: `none` is what is empty there, and
/// `…` stands for what a reader can fill in.
#[test]
fn the_readme_tells_the_defaults_as_they_are() {
    let readme = include_str!("../../README.md");
    let table = readme.split("## Settings that matter").nth(1).unwrap();
    let table = table.split("\n## ").next().unwrap();
    let settings: toml::Table = include_str!("../../settings.toml").parse().unwrap();
    let default = |key: &str| {
        let mut at = &toml::Value::Table(settings.clone());
        for part in key.split('.') {
            at = at.get(part).unwrap_or_else(|| panic!("{key} is no setting"));
        }
        at.clone()
    };
    let mut checked = 0;
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let keys: Vec<&str> = cells[1].split('`').skip(1).step_by(2).collect();
        let told: Vec<&str> = cells[2].split(", ").collect();
        // One default for all keys of a row, or one each.
        assert!(told.len() == 1 || told.len() == keys.len(), "{row}");
        let section = keys[0].rsplit_once('.').unwrap().0;
        for (n, key) in keys.iter().enumerate() {
            let keys = if let Some((section, begins)) = key.strip_suffix('*').and_then(|key| key.rsplit_once('.')) {
                let all = settings[section].as_table().unwrap().keys();
                let all = all.filter(|key| key.starts_with(begins));
                all.map(|key| format!("{section}.{key}")).collect()
            } else if let Some(ends) = key.strip_prefix('…') {
                vec![format!("{}{ends}", keys[0])]
            } else if key.contains('.') {
                vec![(*key).to_owned()]
            } else {
                vec![format!("{section}.{key}")]
            };
            assert!(!keys.is_empty(), "{key}: {row}");
            for key in keys {
                let (told, real) = (told.get(n).unwrap_or(&told[0]), default(&key));
                assert!(is_told_as(&real, told), "{key} is {real}: {row}");
                checked += 1;
            }
        }
    }
    assert!(checked >= 30, "{checked} defaults were found to check");
}

/// Whether a cell of the README says this value.
fn is_told_as(value: &toml::Value, told: &str) -> bool {
    match value {
        toml::Value::String(text) => match told.strip_prefix('`').and_then(|told| told.strip_suffix('`')) {
            Some(told) => told.strip_prefix('…').map_or(text == told, |end| text.ends_with(end)),
            None => told == "none" && text.is_empty(),
        },
        toml::Value::Array(items) => told == "none" && items.is_empty(),
        toml::Value::Integer(number) => {
            let (digits, unit) = told.strip_suffix(" GiB").map_or((told, 1), |gib| (gib, 1 << 30));
            digits
                .replace(',', "")
                .parse::<i64>()
                .is_ok_and(|told| told * unit == *number)
        }
        _ => false,
    }
}

// ---- the runbook ---------------------------------------------------------------------------------------------------

const RUNBOOK: &str = include_str!("../../docs/OPERATIONS.md");

/// A chapter of the runbook, without its heading.
fn chapter(heading: &str) -> &'static str {
    let begins = format!("\n## {heading}\n");
    let chapter = RUNBOOK
        .split(&*begins)
        .nth(1)
        .unwrap_or_else(|| panic!("no chapter {heading}"));
    chapter.split("\n## ").next().unwrap()
}

/// What stands in backquotes in the first cell of each row of a chapter's table, without labels.
fn first_cells(chapter: &str) -> Vec<String> {
    let cells = chapter
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    cells
        .flat_map(|cell| cell.split('`').step_by(2).filter(|name| *name != ", "))
        .map(|name| name.split('{').next().unwrap().to_owned())
        .collect()
}

#[actix_web::test]
async fn every_metric_that_is_served_is_in_the_runbook_and_every_one_there_is_served() {
    let app = spawn_app(|_| {}).await;
    let metrics = get(app.addr, "/metrics").await;
    let families = metrics.text().lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut served: Vec<String> = families
        .map(|family| match family.split_once(' ').unwrap() {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        })
        .collect();
    let mut documented = first_cells(chapter("Metrics"));
    served.sort();
    documented.sort();
    assert!(served.len() > 25, "{served:?}");
    assert_eq!(documented, served);
}

/// The block of the runbook that says how commands are run with this tool.
fn block_of(tool: &str) -> &'static str {
    let after = chapter("How commands are run").split("```sh\n").skip(1);
    let mut blocks = after.map(|block| block.split("```").next().unwrap());
    blocks.find(|block| block.contains(tool)).unwrap()
}

/// What bash writes when it runs this.
fn said(script: &str) -> String {
    let ran = std::process::Command::new("bash")
        .args(["-c", script])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&ran.stderr).replace("Instead: start_server\n", ""),
        ""
    );
    String::from_utf8(ran.stdout).unwrap()
}

#[test]
fn the_runbook_names_no_process_and_no_port_where_it_tells_what_to_do() {
    let (head, rest) = RUNBOOK.split_once("\n## How commands are run\n").unwrap();
    assert!(
        !head.contains("```"),
        "commands before it is told how they are run: {head}"
    );
    let entries = rest.split_once("\n## First look\n").unwrap().1;
    let blocks = entries
        .split("```sh\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap());
    for block in blocks {
        // By hand, under systemd and in a container these are others; and a number that is kept may be another process's.
        for other in [
            "PID",
            "127.0.0.1",
            ":8080",
            ":9090",
            "chatting-server serve",
            "systemctl st",
        ] {
            assert!(
                !block.contains(other) || block.contains("systemctl status"),
                "{other}: {block}"
            );
        }
    }
}

#[test]
fn commands_are_run_in_docker_beside_the_server_and_while_it_is_stopped_in_its_place() {
    let stand_ins = "docker() {
      case \"$*\" in
        *State.Running*) echo $running ;;
        *NetworkMode*) echo net ;;
        *Config.Image*) echo image ;;
        *Config.Env*) printf 'CHAT__A=1\\nCHAT__B=x y\\n' ;;
        *--env-file*) echo \"${@/#\\/dev\\/fd*/FILE}\"; while [[ $1 != --env-file ]]; do shift; done; cat \"$2\" ;;
        *) echo \"$@\" ;;
      esac
    }";
    // While Docker waits to start it again, it calls it running, and runs nothing in it.
    let calls = "stop_server; start_server; reload_server; kill_server; running='true false'; chatting-server spool status
      for running in 'false false' 'true true'; do chatting-server spool replay --parked; done; chatting-server serve; echo $?
      SQLITE_TMPDIR='/srv/a tmp' chatting-server erase --user 7";
    let in_its_place = "run --rm -i --read-only --tmpfs /tmp --volumes-from chat --network net --env-file FILE image spool replay --parked\n\
        CHAT__A=1\nCHAT__B=x y\n";
    // A signal by `docker kill`, whatever it is, counts as a stop by hand: --restart starts such a container no more.
    let expected = format!(
        "stop chat\nstart chat\nexec chat bash -c kill -HUP 1\nkill chat\nstart chat\nexec -i chat chatting-server spool status\n\
         {in_its_place}{in_its_place}2\n{}",
        in_its_place
            .replace(" image", " -e SQLITE_TMPDIR=/srv/a tmp -v /srv/a tmp:/srv/a tmp image")
            .replace("spool replay --parked", "erase --user 7")
    );
    assert_eq!(said(&format!("{stand_ins}\n{}\n{calls}", block_of("docker"))), expected);
    // What is told to reload by its number is the server, and there is something that can tell it.
    let image = include_str!("../../deploy/Dockerfile");
    assert!(image.contains("\nENTRYPOINT [\"/usr/local/bin/chatting-server\"]\nCMD [\"serve\"]\n"));
    assert!(image.contains("CMD [\"bash\", "), "its health check needs bash, too");
}

#[test]
fn commands_are_run_in_kubernetes_and_a_pod_whose_start_fails_is_deleted_by_hand() {
    let calls = "stop_server; start_server; reload_server; kill_server; chatting-server spool status";
    let expected = "scale statefulset chat --replicas=0\nwait --for=delete pod/chat-0 --timeout=60s\n\
        scale statefulset chat --replicas=1\nexec chat-0 -- bash -c kill -HUP 1\ndelete pod chat-0 --now\n\
        exec -i chat-0 -- chatting-server spool status\n";
    let stand_in = "kubectl() { echo \"$@\"; }";
    assert_eq!(said(&format!("{stand_in}\n{}\n{calls}", block_of("kubectl"))), expected);
    let pod = include_str!("../../deploy/kubernetes.yaml");
    assert!(
        pod.contains("&& exec chatting-server serve\"]"),
        "the shell would be told to reload"
    );
    let by_hand = "`kubectl delete pod chat-0`";
    assert!(chapter("How commands are run").contains(by_hand));
    assert!(chapter("The server is down").contains(by_hand));
}

/// Moving takes chat with names over in one file.
#[test]
fn what_a_spool_is_moved_in_is_for_nobody_else_to_read() {
    let block = chapter("Move the spool to another machine")
        .split("```sh\n")
        .nth(1)
        .unwrap();
    let here = block.split("# on the other machine").next().unwrap();
    let dir = ScratchDir::new("moved");
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/chat.db"), "chat").unwrap();
    let stand_ins = "stop_server() { :; }; chatting-server() { :; }; umask 022";
    let script = format!(
        "cd '{}'; {stand_ins}\n{here}\nstat -c %a spool.tgz; tar -tzf spool.tgz",
        dir.path().display()
    );
    assert_eq!(said(&script), "600\n./\n./chat.db\n");
}

/// Whoever reads the file keeps its last commits in the WAL.
#[test]
fn a_spool_that_is_put_away_after_a_numbering_conflict_keeps_what_its_wal_holds() {
    let mut blocks = chapter("Numbering conflict").split("```sh\n");
    let block = blocks.find(|block| block.starts_with("stop_server\n")).unwrap();
    let block = block.split("```").next().unwrap();
    let put_away = |wal_stays: bool| {
        let dir = ScratchDir::new("put-away");
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let spool = rusqlite::Connection::open(data.join("chat.db")).unwrap();
        let stays = spool.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, wal_stays);
        assert_eq!(stays, Ok(wal_stays));
        spool
            .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE parked(n); INSERT INTO parked VALUES (1), (2)")
            .unwrap();
        drop(spool);
        assert_eq!(data.join("chat.db-wal").exists(), wal_stays);
        let stand_ins = "stop_server() { :; }; start_server() { ls data; }; chatting-server() { :; }";
        let left = said(&format!("cd '{}'; {stand_ins}\n{block}", dir.path().display()));
        assert!(left.lines().all(|name| name.starts_with("chat.db.old")), "{left}");
        let spool = rusqlite::Connection::open(data.join("chat.db.old")).unwrap();
        let count = spool.query_row("SELECT COUNT(*) FROM parked", [], |row| row.get::<_, i64>(0));
        assert_eq!(count, Ok(2), "{left}");
    };
    put_away(true);
    put_away(false);
}

/// The runbook's function that stands for the binary under systemd: what the unit says, and a command line that is read.
#[actix_web::test]
async fn commands_are_run_under_systemd_as_the_unit_runs_the_server() {
    let told = chapter("How commands are run");
    let unit = include_str!("../../deploy/chatting-server.service");
    let line = |key: &str| {
        let mut lines = unit.lines().filter(|line| line.starts_with(&format!("{key}=")));
        let line = lines.next().unwrap_or_else(|| panic!("the unit has no {key}"));
        assert_eq!(lines.next(), None, "more than one {key}");
        line
    };
    // All that says who it is, where it works, and what it may leave there: the directory is made by whoever is first, server or command.
    for key in [
        "User",
        "Group",
        "StateDirectory",
        "StateDirectoryMode",
        "WorkingDirectory",
        "UMask",
        "EnvironmentFile",
    ] {
        assert!(told.contains(&format!("-p {} ", line(key))), "{}", line(key));
    }
    let (binary, config) = line("ExecStart")["ExecStart=".len()..].split_once(" serve ").unwrap();
    assert!(told.contains(&format!("    {binary} \"$@\" {config}\n}}\n")), "{told}");

    // What either of them set would be over the settings file, and the runbook changes log.path there.
    assert!(!unit.contains("\nEnvironment=") && !told.contains("-p Environment="));
    let deployment = include_str!("../../docs/DEPLOY.md");
    let places = ["sudo useradd ", "chatting-server check-config"].map(|word| deployment.find(word).unwrap());
    assert!(
        places[0] < places[1],
        "the first command is run as a user that is not there"
    );
    let toml = deployment
        .split("<<'TOML'\n")
        .nth(1)
        .unwrap()
        .split("\nTOML\n")
        .next()
        .unwrap();
    let toml: toml::Table = toml.parse().unwrap();
    let spool = Path::new(toml["log"]["path"].as_str().unwrap());
    let writable = Path::new("/var/lib").join(&line("StateDirectory")["StateDirectory=".len()..]);
    assert_eq!(spool.parent(), Some(&*writable));

    // The functions themselves, with what stands in for systemd: each does the one thing and nothing else.
    let stand_ins = "systemctl() { echo \"$@\"; }; systemd-run() { while [[ $1 != /* ]]; do shift; done; printf '%s\\n' \"${@:2}\"; return 69; }";
    let calls = "stop_server; start_server; reload_server; kill_server; chatting-server spool status --json; echo $?; chatting-server serve; echo $?";
    let steps = ["stop", "start", "reload", "kill --signal=KILL"].map(|step| format!("{step} chatting-server\n"));
    let expected = format!(
        "{}spool\nstatus\n--json\n{}\n69\n2\n",
        steps.concat(),
        config.replace(' ', "\n")
    );
    assert_eq!(
        said(&format!("{stand_ins}\n{}\n{calls}", block_of("systemctl"))),
        expected
    );
    let stand_in =
        "systemd-run() { printf '%s\\n' \"$@\"; }; SQLITE_TMPDIR='/srv/a tmp' chatting-server erase --user 7";
    let ran = said(&format!("{}\n{stand_in}", block_of("systemctl")));
    assert!(
        ran.contains("\n-E\nSQLITE_TMPDIR=/srv/a tmp\n/usr/local/bin/chatting-server\nerase\n"),
        "{ran}"
    );
    let dir = ScratchDir::new("function");
    for command in [
        &["check-config", "--changed"][..],
        &["spool", "status", "--json"],
        &["spool", "verify", "--path", "copy.db"],
        &["spool", "replay", "--parked"],
        &["export", "--room", "12"],
        &["import", "12.ndjson"],
        &["erase", "--user", "7", "--dry-run"],
    ] {
        let (code, _, error) = run(&dir, &[command, &["--config", "nowhere.toml"]].concat(), &[]);
        assert_eq!(code, 64, "{command:?}: {error}");
        assert!(error.contains("nowhere.toml"), "{command:?}: {error}");
    }
}

#[test]
fn every_alert_goes_on_at_an_entry_of_the_runbook_that_is_there_and_has_its_line_there() {
    let alerts = include_str!("../../deploy/alerts.yml");
    let anchors: Vec<String> = RUNBOOK
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|heading| {
            let kept = heading
                .to_lowercase()
                .replace(|c: char| !(c.is_alphanumeric() || " -_".contains(c)), "");
            kept.replace(' ', "-")
        })
        .collect();
    let metrics = first_cells(chapter("Metrics"));
    let mut named = Vec::new();
    for alert in alerts.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        let anchor = alert
            .split("runbook: docs/OPERATIONS.md#")
            .nth(1)
            .unwrap_or_else(|| panic!("{name}: no runbook"));
        let anchor = anchor.split_whitespace().next().unwrap();
        assert!(anchors.iter().any(|one| one == anchor), "{name}: no entry {anchor}");
        let row = chapter("Alerts")
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` | ")));
        let row = row.unwrap_or_else(|| panic!("{name} has no line in the runbook"));
        assert!(
            row.ends_with(&format!("](#{anchor}) |")),
            "{row}: alerts.yml says {anchor}"
        );
        for metric in alert
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|word| word.starts_with("chat_"))
        {
            let family = metric
                .trim_end_matches("_bucket")
                .trim_end_matches("_count")
                .trim_end_matches("_sum");
            assert!(
                metrics.iter().any(|one| one == family),
                "{name}: {metric} is not in the runbook"
            );
        }
        named.push(name);
    }
    assert!(named.len() >= 20, "{named:?}");
    assert_eq!(first_cells(chapter("Alerts")), named);
}
