//! Many senders, many rooms: delivered = accepted = logged, in order; and the same across a SIGTERM.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::support::{
    app::{KEY, post_v1, settings, spawn_app, token_of},
    command::command,
    eventually,
    http::HttpClient,
    mongod::{Mongod, fresh_database_name},
    process::{Process, ScratchDir},
    within,
    ws::{Incoming, WsClient},
};

const ROOMS: i64 = 100;
const SENDERS: i64 = 32;
const MESSAGES: i64 = 20_000;

#[actix_web::test]
async fn thirty_two_senders_in_a_hundred_rooms_lose_nothing_and_double_nothing() {
    let app = spawn_app(|_| {}).await;
    let mut presenters = Vec::new();
    for room in 0..ROOMS {
        app.go_live(room);
        presenters.push(app.presenter(room).await);
    }
    let readers: Vec<_> = presenters
        .into_iter()
        .map(|mut socket| {
            actix_web::rt::spawn(async move {
                let mut seen = Vec::new();
                loop {
                    let text = socket.next_json().await["message"].as_str().unwrap().to_owned();
                    if text == "end" {
                        return seen;
                    }
                    seen.push(text);
                }
            })
        })
        .collect();
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (addr, token) = (app.addr, app.token(1000 + sender));
            actix_web::rt::spawn(async move {
                let mut client = HttpClient::connect(addr).await;
                let mut accepted = Vec::new();
                for n in 0..MESSAGES / SENDERS {
                    let room = (sender * 7 + n) % ROOMS;
                    let text = format!("{sender}/{n}");
                    let answer = post_v1(&mut client, room, &token, &text).await;
                    assert_eq!(answer.status, 201, "{answer:?}");
                    accepted.push((room, answer.json()["seq"].as_u64().unwrap(), text));
                }
                accepted
            })
        })
        .collect();
    let mut accepted: BTreeMap<i64, BTreeMap<u64, String>> = BTreeMap::new();
    for sender in senders {
        for (room, seq, text) in sender.await.unwrap() {
            let before = accepted.entry(room).or_default().insert(seq, text);
            assert_eq!(before, None, "room {room}: seq {seq} was given twice");
        }
    }
    for room in 0..ROOMS {
        app.post(room, 7, "end").await;
    }
    let mut total = 0;
    for (room, reader) in (0..).zip(readers) {
        let delivered = reader.await.unwrap();
        let accepted = accepted.remove(&room).unwrap_or_default();
        assert_eq!(
            accepted.keys().copied().collect::<Vec<_>>(),
            (1..=accepted.len() as u64).collect::<Vec<_>>()
        );
        assert_eq!(
            delivered,
            accepted.values().cloned().collect::<Vec<_>>(),
            "room {room}: delivered is accepted"
        );
        let logged: Vec<_> = app
            .sqlite_log(room)
            .await
            .into_iter()
            .filter(|(_, text)| text != "end")
            .collect();
        assert_eq!(
            logged,
            accepted.into_iter().collect::<Vec<_>>(),
            "room {room}: logged is accepted"
        );
        total += delivered.len();
    }
    assert_eq!(total, usize::try_from(MESSAGES / SENDERS * SENDERS).unwrap());
}

/// Starts the real binary; `store` are more settings as `--set KEY=VALUE`.
pub async fn serve(dir: &Arc<ScratchDir>, store: &[String]) -> (Process, std::net::SocketAddr) {
    let port_file = dir.path().join("port");
    let _ = std::fs::remove_file(&port_file);
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatting-server"));
    command
        .arg("serve")
        .arg("--port-file")
        .arg(&port_file)
        .env("CHAT__AUTH__HS256_SECRET", KEY)
        .env("CHAT__LIMITS__SENDER_PER_SECOND", "0")
        .current_dir(dir.path());
    for set in [
        "server.bind=127.0.0.1:0".into(),
        "room.mode=embedded".into(),
        format!("log.path={}", dir.path().join("chat.db").display()),
    ]
    .iter()
    .chain(store)
    {
        command.args(["--set", set]);
    }
    let process = Process::start(dir, &mut command);
    let addr = process.address(&port_file).await;
    (process, addr)
}

/// The messages in these tables of a file, sorted.
fn messages(path: &Path, tables: &[&str]) -> Vec<String> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut all = Vec::new();
    for table in tables {
        let mut rows = connection.prepare(&format!("SELECT message FROM {table}")).unwrap();
        all.extend(
            rows.query_map([], |row| row.get::<_, String>(0))
                .unwrap()
                .map(Result::unwrap),
        );
    }
    all.sort();
    all
}

/// Senders post until the server refuses to go on; gives what was accepted and what the presenter saw.
async fn load_until_stopped(
    dir: &ScratchDir,
    process: &Process,
    addr: std::net::SocketAddr,
    signal: &str,
) -> (Vec<String>, Vec<String>) {
    let settings = settings(dir);
    let operator = chatting_server::auth::mint(
        &chatting_server::auth::SigningKey::secret(KEY.as_bytes()),
        &chatting_server::auth::Mint {
            user_idx: 1,
            nickname: "op",
            role: Some(chatting_actors::types::Role::Operator),
            rooms: &[],
            issued_at: chatting_actors::clock::system_ms() / 1000,
            ttl_seconds: 3600,
            auth: &settings.auth,
        },
    )
    .unwrap();
    let started = HttpClient::connect(addr)
        .await
        .post_json("/room/live/start", &[("token", &operator)], r#"{"presenterIdx":"12"}"#)
        .await;
    assert_eq!(started.status, 200, "{started:?}");
    let mut presenter = WsClient::connect(addr, "/chatting").await;
    let start = serde_json::json!({ "id": "start", "token": token_of(&settings, 12, "kim") });
    presenter.send_text(&start.to_string()).await;
    presenter.send_text("ping").await;
    assert_eq!(presenter.next_text().await, "pong");
    let reader = actix_web::rt::spawn(async move {
        let mut seen = Vec::new();
        loop {
            match presenter.next().await {
                Incoming::Text(text) => {
                    let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
                    seen.push(frame["message"].as_str().unwrap().to_owned());
                }
                Incoming::Close(code, _) => {
                    assert_eq!(code, Some(1001));
                    return seen;
                }
                Incoming::Ping(payload) => presenter.pong(payload).await,
                other => panic!("{other:?}"),
            }
        }
    });
    let stopping = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..16)
        .map(|sender| {
            let (token, stopping) = (token_of(&settings, 100 + sender, "kim"), Arc::clone(&stopping));
            actix_web::rt::spawn(async move {
                let mut accepted = Vec::new();
                let mut client = HttpClient::connect(addr).await;
                for n in 0..100_000 {
                    let text = format!("{sender}/{n}");
                    let bearer = format!("Bearer {token}");
                    let body = serde_json::json!({ "text": text }).to_string();
                    let headers = [("Authorization", bearer.as_str())];
                    let answer = client
                        .post_json_unless_closed("/v1/rooms/12/messages", &headers, body)
                        .await;
                    match answer {
                        Some(answer) if answer.status == 201 => accepted.push(text),
                        answer if stopping.load(Ordering::Acquire) => {
                            // Refused, or not even looked at: what is not answered is not accepted either.
                            if let Some(answer) = answer {
                                assert_eq!(
                                    (answer.status, answer.json()["code"].as_str()),
                                    (503, Some("overloaded"))
                                );
                                assert_eq!(answer.header("connection"), Some("close"));
                            }
                            return accepted;
                        }
                        answer => panic!("{answer:?}"),
                    }
                }
                panic!("the server never stopped");
            })
        })
        .collect();
    eventually("some load", async || {
        let metrics = crate::support::http::get(addr, "/metrics").await;
        let accepted = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix("chat_accepted_total ")?.parse::<u64>().ok());
        (accepted? > 300).then_some(())
    })
    .await;
    stopping.store(true, Ordering::Release);
    process.signal(signal);
    let mut accepted = Vec::new();
    for sender in senders {
        accepted.extend(sender.await.unwrap());
    }
    accepted.sort();
    let mut seen = reader.await.unwrap();
    seen.sort();
    (accepted, seen)
}

#[actix_web::test]
async fn sigterm_under_load_leaves_every_accepted_message_in_the_log() {
    let dir = ScratchDir::new("sigterm");
    let (process, addr) = serve(&dir, &[]).await;
    let (accepted, seen) = load_until_stopped(&dir, &process, addr, "TERM").await;
    assert!(process.exited().await.success(), "{}", process.output());
    let logged = messages(&dir.path().join("chat.db"), &["chatting_log", "spool"]);
    assert_eq!(accepted, logged);
    assert_eq!(accepted, seen, "and the presenter saw each");
}

#[actix_web::test]
async fn sigint_under_load_does_the_same_and_mongodb_and_the_spool_have_it_all() {
    let dir = ScratchDir::new("sigint");
    let (uri, database) = (Mongod::shared().uri(), fresh_database_name());
    let store = [
        "log.backend=mongodb".into(),
        format!("mongodb.uri={uri}"),
        format!("mongodb.database={database}"),
    ];
    let (process, addr) = serve(&dir, &store).await;
    let (accepted, seen) = load_until_stopped(&dir, &process, addr, "INT").await;
    assert!(process.exited().await.success(), "{}", process.output());
    assert_eq!(accepted, seen);
    let client = mongodb::Client::with_uri_str(&uri).await.unwrap();
    let log = client
        .database(&database)
        .collection::<mongodb::bson::Document>("chatting_log");
    let mut cursor = log.find(mongodb::bson::doc! {}).await.unwrap();
    let mut stored = Vec::new();
    while cursor.advance().await.unwrap() {
        stored.push(cursor.current().get_str("message").unwrap().to_owned());
    }
    stored.sort();
    assert!(stored.windows(2).all(|two| two[0] != two[1]), "each is stored once");
    // A stop waits for MongoDB for a moment only. What that has may still be in the spool, too.
    let mut logged = messages(&dir.path().join("chat.db"), &["spool"]);
    logged.extend(stored);
    logged.sort();
    logged.dedup();
    assert_eq!(accepted, logged);
}

#[actix_web::test]
async fn the_load_tool_goes_on_step_by_step_with_its_presenters_connected_until_the_last() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let (dir, addr) = (ScratchDir::new("steps"), app.addr.to_string());
    let args = [
        "load",
        "--addr",
        &addr,
        "--rooms",
        "1",
        "--first-room",
        "12",
        "--messages",
        "3",
        "--json",
        "--in-steps",
    ];
    let mut tool = command(&dir, &args)
        .env("CHAT__AUTH__HS256_SECRET", KEY)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut goes_on = tool.stdin.take().unwrap();
    let (say, mut said) = tokio::sync::mpsc::channel(8);
    let said_lines = BufReader::new(tool.stderr.take().unwrap()).lines();
    let reads = std::thread::spawn(move || {
        for line in said_lines {
            say.blocking_send(line.unwrap()).unwrap();
        }
        tool.wait_with_output().unwrap()
    });
    assert_eq!(within("a step", said.recv()).await.as_deref(), Some("connected"));
    eventually("its presenter to be there", async || {
        app.metric("chat_sessions").await.filter(|sessions| *sessions == 1.0)
    })
    .await;
    assert_eq!(app.metric("chat_accepted_total").await, Some(0.0));
    goes_on.write_all(b"\n").unwrap();
    assert_eq!(within("a step", said.recv()).await.as_deref(), Some("done"));
    assert_eq!(app.metric("chat_accepted_total").await, Some(3.0));
    assert_eq!(app.metric("chat_sessions").await, Some(1.0));
    drop(goes_on);
    assert_eq!(within("the end", said.recv()).await, None);
    let report: serde_json::Value = serde_json::from_slice(&reads.join().unwrap().stdout).unwrap();
    assert_eq!((&report["accepted"], &report["lost"]), (&3.into(), &0.into()));
}
