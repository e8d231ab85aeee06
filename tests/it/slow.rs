//! Clients that take their time, or say more than anyone should: each ends within the settings, holds little memory while it
//! lasts, and keeps nobody else waiting.

use std::{
    net::SocketAddr,
    ops::Range,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use chatting_actors::{broadcast::Broadcast, clock::system_ms, types::UserIdx, wire::v1::timestamp};
use chatting_server::http::answers::Asker;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    export::event,
    figures::broadcast,
    history::{request, token_with},
    support::{
        app::{KEY, TestApp, post_v1, spawn_app, spawn_with_rooms},
        eventually,
        http::{HttpClient, get},
        process::{Process, ScratchDir},
        room_server::{Mode, RoomServer},
        within,
        ws::{Frame, HANDSHAKE, TEXT, WsClient},
    },
};

/// How often a dribbling client sends its next byte.
const NOW_AND_THEN: Duration = Duration::from_millis(20);

/// A server's patience in seconds, each: for heads, bodies and between requests. Who is quick is quick enough on a slow machine.
const SECONDS: u64 = 3;

/// What it waits at least: the framework's clock may be behind, but never by that much.
const AT_LEAST: Duration = Duration::from_millis(1000 * SECONDS / 2);

/// A server with that patience.
async fn hasty() -> TestApp {
    spawn_app(|settings| {
        settings.server.client_request_seconds = SECONDS;
        settings.server.keep_alive_seconds = SECONDS;
        settings.server.body_seconds = SECONDS;
    })
    .await
}

/// How a connection ended.
#[derive(Debug)]
struct Ended {
    answer: String,
    /// Since before the server could know of it.
    after: Duration,
    /// Bytes that were sent a byte at a time.
    dribbled: usize,
}

/// Sends `at_once`, then `bytes` one by one over and over, until the server ends the connection; gives all that it said.
async fn dribble(address: SocketAddr, at_once: &[u8], bytes: &[u8]) -> Ended {
    let began = Instant::now();
    let stream = TcpStream::connect(address).await.unwrap();
    dribble_on((stream, began), at_once, bytes).await
}

async fn dribble_on((mut stream, began): (TcpStream, Instant), at_once: &[u8], bytes: &[u8]) -> Ended {
    stream.write_all(at_once).await.unwrap();
    let (mut answer, mut dribbled) = (Vec::new(), 0);
    within("the server to end a connection that dribbles", async {
        loop {
            match tokio::time::timeout(NOW_AND_THEN, stream.read_buf(&mut answer)).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(_)) => {}
                Err(_) if bytes.is_empty() => {}
                Err(_) => {
                    // The server may have shut it already; reading tells.
                    let _ = stream.write_all(&[bytes[dribbled % bytes.len()]]).await;
                    dribbled += 1;
                }
            }
        }
    })
    .await;
    Ended {
        answer: String::from_utf8_lossy(&answer).into_owned(),
        after: began.elapsed(),
        dribbled,
    }
}

/// A connection that has had one answer already, and a time before that.
async fn used(app: &TestApp) -> (TcpStream, Instant) {
    let mut client = app.client().await;
    let began = Instant::now();
    assert_eq!(client.request("GET", "/livez", &[], "").await.status, 200);
    (client.into_parts().0, began)
}

/// The beginning of a message to room 12 with a body of which nothing has come yet.
fn head_of_a_message(token: &str, length: &str) -> String {
    format!(
        "POST /v1/rooms/12/messages HTTP/1.1\r\nHost: chat\r\nContent-Type: application/json\r\n\
         Authorization: Bearer {token}\r\n{length}\r\n\r\n"
    )
}

#[actix_web::test]
async fn a_head_that_dribbles_in_is_given_up_in_its_time() {
    let app = hasty().await;
    let ended = dribble(app.addr, b"GET /livez HTTP/1.1\r\nX-Long: ", b"x").await;
    assert!(ended.answer.starts_with("HTTP/1.1 408 "), "{ended:?}");
    assert!(ended.after >= AT_LEAST && ended.dribbled > 0, "{ended:?}");
}

#[actix_web::test]
async fn a_connection_that_says_nothing_is_given_up_in_its_time() {
    let app = hasty().await;
    let ended = dribble(app.addr, b"", b"").await;
    assert!(ended.after >= AT_LEAST, "{ended:?}");
    assert!(
        ended.answer.is_empty() || ended.answer.starts_with("HTTP/1.1 408 "),
        "{ended:?}"
    );
    // One that has had its answer, too.
    let ended = dribble_on(used(&app).await, b"", b"").await;
    assert_eq!(ended.answer, "");
    assert!(ended.after >= AT_LEAST, "{ended:?}");
}

/// The framework times a connection's first head only: a later one is cut by our own list of lines.
#[actix_web::test]
async fn a_later_head_that_dribbles_in_on_a_used_connection_is_given_up_as_well() {
    let app = hasty().await;
    let ended = dribble_on(used(&app).await, b"GET /livez HTTP/1.1\r\nX-Long: ", b"x").await;
    assert_eq!(ended.answer, "");
    assert!(ended.after >= 2 * AT_LEAST, "{ended:?}");
}

#[actix_web::test]
async fn a_websocket_handshake_that_dribbles_in_is_given_up_on_a_new_connection_and_on_a_used_one() {
    let app = hasty().await;
    let each = ["/v1/presenter", "/chatting"].map(async |path| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: chat\r\nUpgrade: websocket\r\nSec-WebSocket-Key: ");
        let (new, used) = tokio::join!(
            dribble(app.addr, head.as_bytes(), b"A"),
            dribble_on(used(&app).await, head.as_bytes(), b"A"),
        );
        assert!(new.answer.starts_with("HTTP/1.1 408 "), "{path}: {new:?}");
        assert_eq!(used.answer, "", "{path}");
    });
    join_all(each).await;
    assert_eq!(app.metric("chat_sessions").await, Some(0.0));
}

#[actix_web::test]
async fn a_body_that_dribbles_in_is_answered_408_and_cut_while_others_go_on() {
    let app = hasty().await;
    let token = app.token(7);
    let body = format!("{{\"text\":\"{}", "x".repeat(50));
    let announced = head_of_a_message(&token, "Content-Length: 60000");
    let chunked = head_of_a_message(&token, "Transfer-Encoding: chunked");
    let legacy = announced.replace("/v1/rooms/12/messages", "/send/message");
    let slow = async {
        let one = async |head: &str, bytes: &[u8]| dribble(app.addr, head.as_bytes(), bytes).await;
        tokio::join!(
            one(&announced, body.as_bytes()),
            one(&chunked, b"1\r\n \r\n"),
            one(&legacy, body.as_bytes()),
        )
    };
    let mut slow = std::pin::pin!(slow);
    // Others are answered until the slow ones have ended.
    let mut quick = app.client().await;
    let (began, mut late) = (Instant::now(), 0);
    let ((announced, chunked, legacy), _) = loop_until(&mut slow, async || {
        let answer = quick.request("GET", "/v1/rooms/12", &[("token", &token)], "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        late += usize::from(began.elapsed() > AT_LEAST / 2);
    })
    .await;
    for ended in [&announced, &chunked, &legacy] {
        assert!(ended.answer.starts_with("HTTP/1.1 408 "), "{ended:?}");
        assert!(
            ended.answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"),
            "{ended:?}"
        );
        assert!(ended.after >= AT_LEAST, "{ended:?}");
    }
    assert!(
        announced.answer.contains("\"code\":\"request_timeout\""),
        "{announced:?}"
    );
    assert!(legacy.answer.contains("\"path\":\"/send/message\""), "{legacy:?}");
    assert!(
        legacy.answer.contains("요청이 제시간에 도착하지 않았습니다"),
        "{legacy:?}"
    );
    assert!(late > 0, "no other was answered meanwhile");
    let refused = app.metric("chat_refused_total{code=\"request_timeout\"}").await;
    assert_eq!(refused, Some(3.0));
}

/// Does `work` again and again until `until` is done; gives its outcome and how often.
async fn loop_until<T>(until: &mut (impl Future<Output = T> + Unpin), mut work: impl AsyncFnMut()) -> (T, usize) {
    let mut times = 0;
    loop {
        tokio::select! {
            done = &mut *until => return (done, times),
            () = work() => times += 1,
        }
    }
}

#[actix_web::test]
async fn a_body_that_nobody_reads_any_more_keeps_no_connection() {
    let app = hasty().await;
    let unread = [
        "Content-Length: 60000",
        "Content-Length: 70000",
        "Transfer-Encoding: chunked",
    ]
    .map(async |length| {
        let head = head_of_a_message("no.token.atall", length);
        let ended = dribble(app.addr, head.as_bytes(), b"1\r\n \r\n").await;
        assert!(ended.answer.starts_with("HTTP/1.1 401 "), "{length}: {ended:?}");
    });
    let too_long = async {
        let head = head_of_a_message(&app.token(7), "Content-Length: 70000");
        let ended = dribble(app.addr, head.as_bytes(), b"x").await;
        assert!(ended.answer.starts_with("HTTP/1.1 413 "), "{ended:?}");
    };
    tokio::join!(join_all(unread), too_long);
}

/// Sends a head, and chunks behind it as fast as they are taken, until the connection ends; gives all that was said, in lower case.
async fn send_chunks_without_end(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000));
    let flood = async { while writing.write_all(chunk.as_bytes()).await.is_ok() {} };
    let mut answer = Vec::new();
    // What the kernel still had of the chunks may make it a reset.
    let read = async { while matches!(reading.read_buf(&mut answer).await, Ok(1..)) {} };
    within("the end of a connection that sends chunks", async {
        tokio::join!(flood, read);
    })
    .await;
    String::from_utf8(answer).unwrap().to_ascii_lowercase()
}

/// With the default settings: a connection may be idle for longer than is waited for here.
#[actix_web::test]
async fn a_chunked_body_that_is_not_read_to_its_end_ends_its_connection_though_more_of_it_comes() {
    let app = spawn_app(|settings| settings.ops.bind = "127.0.0.1:0".into()).await;
    let chunked = |token: &str| head_of_a_message(token, "Transfer-Encoding: chunked");
    let elsewhere = |token: &str, method_and_path: &str| {
        let head = chunked(token);
        let (_, rest) = head.split_once(" HTTP").unwrap();
        format!("{method_and_path} HTTP{rest}")
    };
    let (none, good) = ("no.token.atall", app.token(7));
    let rows = [
        (app.addr, chunked(none), 401),
        (app.addr, chunked(&good), 413),
        (app.addr, elsewhere(none, "POST /send/message"), 400),
        (app.addr, elsewhere(&good, "POST /send/message"), 413),
        (app.addr, elsewhere(none, "POST /nowhere"), 404),
        (app.addr, elsewhere(none, "OPTIONS /send/message"), 200),
        (app.addr, elsewhere(none, "GET /"), 200),
        (app.ops.unwrap(), elsewhere(none, "GET /livez"), 200),
    ];
    join_all(rows.map(async |(address, head, status)| {
        let answer = send_chunks_without_end(address, &head).await;
        assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{head}{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{head}{answer}");
    }))
    .await;
}

#[actix_web::test]
async fn a_chunked_body_that_is_read_to_its_end_keeps_its_connection() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let mut client = app.client().await;
    let token = app.token(7);
    let whole = "d\r\n{\"text\":\"hi\"}\r\n0\r\n\r\n";
    let split = whole.split_at(9);
    for parts in [&[whole][..], &[split.0, split.1]] {
        client
            .send_bytes(head_of_a_message(&token, "Transfer-Encoding: chunked").as_bytes())
            .await;
        for part in parts {
            client.send_bytes(part.as_bytes()).await;
        }
        let answer = client.read_response(false).await;
        assert_eq!((answer.status, answer.header("connection")), (201, None), "{answer:?}");
    }
}

/// As a proxy makes it of HTTP/2 where the end of a request comes behind its head.
#[actix_web::test]
async fn a_chunked_body_that_came_whole_with_its_head_keeps_its_connection_though_nobody_reads_it() {
    let app = spawn_app(|settings| settings.ops.bind = "127.0.0.1:0".into()).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let (none, good) = ("no.token.atall".to_owned(), app.token(7));
    let operator = token_with(90, "operator", json!([]));
    let (empty, said) = ("0\r\n\r\n", "d\r\n{\"text\":\"hi\"}\r\n0\r\n\r\n");
    let ops = app.ops.unwrap();
    for (address, token, method, path, body, status) in [
        (app.addr, &good, "GET", "/v1/rooms/12", empty, 200),
        (app.addr, &good, "GET", "/v1/rooms/12/messages", empty, 200),
        (app.addr, &good, "GET", "/v1/rooms/12/broadcasts", empty, 200),
        (app.addr, &good, "GET", "/nowhere", empty, 404),
        (app.addr, &good, "HEAD", "/", empty, 200),
        (
            app.addr,
            &operator,
            "DELETE",
            "/v1/rooms/12/messages?user_idx=99",
            empty,
            200,
        ),
        (app.addr, &none, "OPTIONS", "/send/message", empty, 200),
        (app.addr, &none, "POST", "/v1/rooms/12/messages", said, 401),
        (app.addr, &none, "POST", "/send/message", said, 400),
        (app.addr, &none, "POST", "/nowhere", said, 404),
        (ops, &good, "GET", "/livez", empty, 200),
    ] {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: chat\r\nContent-Type: application/json\r\n\
             Authorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let mut client = HttpClient::connect(address).await;
        for _ in 0..2 {
            client.send_bytes([head.as_str(), body].concat().as_bytes()).await;
            let answer = client.read_response(method == "HEAD").await;
            assert_eq!(
                (answer.status, answer.header("connection")),
                (status, None),
                "{method} {path}: {answer:?}"
            );
        }
    }
}

/// Whoever heeds the `close` sends the one behind it again.
#[actix_web::test]
async fn no_close_is_said_to_a_refused_chunked_body_behind_which_the_next_request_is_served() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let whole = "d\r\n{\"text\":\"hi\"}\r\n0\r\n\r\n";
    let message = |token: &str| head_of_a_message(token, "Transfer-Encoding: chunked") + whole;
    let mut client = app.client().await;
    let both = [message("no.token.atall"), message(&app.token(7))].concat();
    client.send_bytes(both.as_bytes()).await;
    for status in [401, 201] {
        let answer = client.read_response(false).await;
        assert_eq!(
            (answer.status, answer.header("connection")),
            (status, None),
            "{answer:?}"
        );
    }
}

/// To shut one by its name takes a descriptor itself.
#[actix_web::test]
async fn connections_that_have_taken_the_last_descriptor_are_given_up_in_their_time_and_others_get_in() {
    const DESCRIPTORS: usize = 128;
    let dir = ScratchDir::new("descriptors");
    let few = format!("ulimit -n {DESCRIPTORS}; exec \"$0\" serve --port-file port");
    let mut command = Command::new("sh");
    command.args(["-c", &few, env!("CARGO_BIN_EXE_chatting-server")]);
    command.current_dir(dir.path()).env_remove("RUST_LOG").envs([
        ("CHAT__AUTH__HS256_SECRET", KEY),
        ("CHAT__ROOM__MODE", "embedded"),
        ("CHAT__SERVER__BIND", "127.0.0.1:0"),
        ("CHAT__SERVER__WORKERS", "2"),
        ("CHAT__SERVER__KEEP_ALIVE_SECONDS", "1"),
        ("CHAT__SERVER__CLIENT_REQUEST_SECONDS", "1"),
    ]);
    let server = Process::start(&dir, &mut command);
    let addr = server.address(&dir.path().join("port")).await;
    // More than get in at once; each begins a next request behind its first one, and never ends it.
    let ask = b"GET /livez HTTP/1.1\r\nHost: chat\r\n\r\n";
    let many = join_all((0..DESCRIPTORS).map(|_| dribble(addr, ask, b"G")));
    let many = actix_web::rt::spawn(many);
    let taken = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    eventually("every descriptor to be taken", async || {
        (taken() >= DESCRIPTORS).then_some(())
    })
    .await;
    assert_eq!(
        within("an answer to who comes then", get(addr, "/livez")).await.status,
        200
    );
    within("all of them to be given up", many).await.unwrap();
}

#[actix_web::test]
async fn a_short_answer_that_nobody_takes_keeps_no_connection_though_its_request_might_have_begun_a_session() {
    let app = spawn_app(|settings| {
        settings.server.client_request_seconds = SECONDS;
        settings.server.keep_alive_seconds = SECONDS;
        settings.server.tcp_user_timeout_seconds = 600;
        settings.server.send_buffer_bytes = 4096;
        // The metrics are no connection of the server's then.
        settings.ops.bind = "127.0.0.1:0".into();
    })
    .await;
    let text = "\u{1}".repeat(2000);
    let page = Arc::new(vec![Arc::new(event("a", 1, 1, 7, "kim", &text))]);
    assert_eq!(app.state.history.store().append(page).await.unwrap(), []);
    let connections = async || app.metric("chat_queue_depth{queue=\"connections\"}").await;
    let token = app.token(7);
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("token", &token)];
    for headers in [&upgrade[..], &upgrade[2..]] {
        let mut client = HttpClient::connect_with(app.addr, Some(2304)).await;
        client
            .send_request("GET", "/v1/rooms/12/messages?limit=1", headers, "")
            .await;
        eventually("it to be counted", async || {
            (connections().await == Some(1.0)).then_some(())
        })
        .await;
        eventually("it to be ended", async || {
            (connections().await == Some(0.0)).then_some(())
        })
        .await;
        drop(client);
    }
}

/// A page of some 250 kB, and a client that asks for it and takes nothing of it.
const LONG_PAGE: &str = "/v1/rooms/12/messages?limit=21";

async fn leave_unread(app: &TestApp, user: i64, headers: &[(&str, &str)]) -> HttpClient {
    let mut client = HttpClient::connect_with(app.addr, Some(4096)).await;
    let token = app.token(user);
    let headers = [headers, &[("token", token.as_str())]].concat();
    client.send_request("GET", LONG_PAGE, &headers, "").await;
    client
}

/// A server that has that page, and its presenter.
async fn with_a_long_page(answers_max_bytes: usize, answers_share_bytes: usize) -> (TestApp, WsClient) {
    let app = spawn_app(|settings| {
        settings.server.answers_max_bytes = answers_max_bytes;
        settings.server.answers_share_bytes = answers_share_bytes;
        settings.server.send_buffer_bytes = 4096;
    })
    .await;
    app.go_live(12);
    let presenter = app.presenter(12).await;
    let text = "\u{1}".repeat(2000);
    let events = (1..=21).map(|seq| Arc::new(event("a", seq, seq.cast_signed(), 7, "kim", &text)));
    let store = app.state.history.store();
    assert_eq!(store.append(Arc::new(events.collect())).await.unwrap(), []);
    (app, presenter)
}

#[actix_web::test]
async fn what_clients_leave_of_their_answers_takes_so_much_memory_and_no_more() {
    let (app, _presenter) = with_a_long_page(800_000, 800_000).await;
    let (gate, token) = (app.state.answers.gate(), app.token(7));
    let ask = async |path: &str| app.client().await.request("GET", path, &[("token", &token)], "").await;

    let page = ask(LONG_PAGE).await;
    assert_eq!((page.status, gate.capacity()), (200, 800_000));
    let bytes = page.body.len();
    assert!((200_000..300_000).contains(&bytes), "{bytes}");
    eventually("what was taken to be given back", async || {
        (gate.depth() == 0).then_some(())
    })
    .await;

    // One that asks for an upgrade as well is answered elsewhere, and counts the same.
    let upgrade = [("Connection", "upgrade"), ("Upgrade", "websocket")];
    let left = [leave_unread(&app, 7, &[]).await, leave_unread(&app, 8, &upgrade).await];
    eventually("two answers to be left", async || {
        (gate.depth() == 2 * bytes).then_some(())
    })
    .await;
    let refused = ask(LONG_PAGE).await;
    assert_eq!(
        (refused.status, refused.header("retry-after"), &refused.json()["detail"]),
        (503, Some("1"), &"the queue answers is full".into()),
        "{refused:?}"
    );
    assert_eq!(refused.json()["code"], "overloaded");
    let count = app.metric("chat_queue_refused_total{queue=\"answers\"}").await;
    assert_eq!(count, Some(1.0));
    // A part is left to those who look after the server.
    let operator = token_with(1, "operator", Value::Null);
    let mut operations = app.client().await;
    let page = operations.request("GET", LONG_PAGE, &[("token", &operator)], "").await;
    assert_eq!(page.status, 200);
    eventually("what it took to be given back", async || {
        (gate.depth() == 2 * bytes).then_some(())
    })
    .await;

    // What is short or the same for everyone goes on, also where there is nothing left.
    let rest = gate.try_acquire(gate.capacity() - gate.depth()).unwrap();
    for path in [
        "/livez",
        "/v1/rooms/12/messages?limit=1",
        "/openapi.json",
        "/docs/swagger-ui-bundle.js",
    ] {
        assert_eq!(ask(path).await.status, 200, "{path}");
    }
    assert_eq!(app.post(12, 7, "chat, too").await.status, 201);
    let long_path = format!("/{}", "x".repeat(60_000));
    let refused = ask(&long_path).await;
    assert_eq!((refused.status, refused.body.len() < 2000), (404, true), "{refused:?}");
    drop((rest, left));
    eventually("the memory of who has gone", async || (gate.depth() == 0).then_some(())).await;
    assert_eq!(ask(LONG_PAGE).await.status, 200);
}

#[actix_web::test]
async fn who_takes_none_of_its_answers_is_refused_more_of_them_and_nobody_else_is() {
    let (app, _presenter) = with_a_long_page(4_000_000, 600_000).await;
    let gate = app.state.answers.gate();
    let ask = async |token: &str| {
        let mut client = app.client().await;
        client.request("GET", LONG_PAGE, &[("token", token)], "").await
    };
    let left = [leave_unread(&app, 7, &[]).await, leave_unread(&app, 7, &[]).await];
    eventually("two answers to be left", async || {
        (gate.depth() > 400_000).then_some(())
    })
    .await;
    let refused = ask(&app.token(7)).await;
    let told = (refused.status, refused.header("retry-after"), &refused.json()["code"]);
    assert_eq!(told, (429, Some("1"), &"rate_limited".into()), "{refused:?}");
    let count = app.metric("chat_refused_total{code=\"rate_limited\"}").await;
    assert_eq!((count, gate.refused()), (Some(1.0), 0));
    let of_this_room = ask(&token_with(7, "moderator", json!([12]))).await;
    assert_eq!(of_this_room.status, 429, "everyone may be a moderator of some room");
    for token in [app.token(8), token_with(7, "moderator", json!(["*"]))] {
        assert_eq!(ask(&token).await.status, 200);
    }
    drop(left);
    eventually("the memory of who has gone", async || (gate.depth() == 0).then_some(())).await;
    assert_eq!(ask(&app.token(7)).await.status, 200);
}

/// A server with a broadcast of so many segments that its answer is long, and that broadcast.
async fn with_a_long_broadcast(answers_max_bytes: usize, answers_share_bytes: usize) -> (TestApp, WsClient, Broadcast) {
    let (app, presenter) = with_a_long_page(answers_max_bytes, answers_share_bytes).await;
    let from = system_ms() - 3_600_000;
    let segments: Vec<_> = (0..1000)
        .map(|n| (from + 2000 * n, Some(from + 2000 * n + 1000)))
        .collect();
    let over = broadcast(&segments, &[("a", 0, Some(0))]);
    let store = app.state.history.store();
    store.put_broadcasts(std::slice::from_ref(&over)).await.unwrap();
    (app, presenter, over)
}

/// It would be asked for again, and by somebody who was told that nothing has happened.
#[actix_web::test]
async fn a_correction_whose_answer_there_is_no_room_for_is_refused_before_it_is_written() {
    let (app, _presenter, over) = with_a_long_broadcast(4_000_000, 100_000).await;
    let (answers, store) = (&app.state.answers, app.state.history.store());
    let path = format!("/v1/broadcasts/{}", over.id);
    let correct = async |token: &str, start_ms: i64| {
        let body = json!({ "started_at": timestamp(start_ms) }).to_string();
        request(&app, "PATCH", &path, token, &body).await
    };
    let written = async || store.broadcast(over.id).await.unwrap().unwrap().corrected_start_ms;
    let start = over.segments[0].from_ms;
    let (mut client, own) = (leave_unread(&app, 12, &[]).await, app.token(12));
    eventually("an answer to be left", async || {
        (answers.gate().depth() > 100_000).then_some(())
    })
    .await;
    let refused = correct(&own, start + 1).await;
    let told = (refused.status, refused.header("retry-after"), &refused.json()["code"]);
    assert_eq!(told, (429, Some("1"), &"rate_limited".into()), "{refused:?}");
    assert_eq!(written().await, None, "who is over their share");
    // Where there is nothing left for anybody.
    let rest = answers.gate().capacity() - answers.gate().depth();
    let rest = answers.gate().try_acquire(rest).unwrap();
    let operator = token_with(90, "operator", json!([]));
    let refused = correct(&operator, start + 2).await;
    let told = (refused.status, &refused.json()["code"]);
    assert_eq!(told, (503, &"overloaded".into()), "{refused:?}");
    assert_eq!(written().await, None, "where there is none");
    drop(rest);
    let page = client.read_response(false).await;
    assert_eq!(page.status, 200);
    eventually("what was taken to be given back", async || {
        (answers.gate().depth() == 0).then_some(())
    })
    .await;
    for (token, start) in [(own, start + 3), (operator, start + 4)] {
        let corrected = correct(&token, start).await;
        assert_eq!(
            (corrected.status, &corrected.json()["started_at"]),
            (200, &timestamp(start).into()),
            "{}",
            corrected.status_line
        );
        assert!(corrected.body.len() > 16 * 1024, "{}", corrected.body.len());
        assert_eq!(written().await, Some(start));
        eventually("what it took to be given back", async || {
            (answers.gate().depth() == 0).then_some(())
        })
        .await;
    }
}

#[actix_web::test]
async fn who_takes_none_of_the_answers_to_their_corrections_has_a_share_and_leaves_the_reserve_to_others() {
    let (app, _presenter, over) = with_a_long_broadcast(400_000, 150_000).await;
    let (gate, store) = (app.state.answers.gate(), app.state.history.store());
    let path = format!("/v1/broadcasts/{}", over.id);
    let body = |start_ms: i64| json!({ "started_at": timestamp(start_ms) }).to_string();
    let leave = async |token: &str, start_ms: i64| {
        let mut client = HttpClient::connect_with(app.addr, Some(4096)).await;
        let headers = [("token", token), ("Content-Type", "application/json")];
        let before = gate.depth();
        client.send_request("PATCH", &path, &headers, body(start_ms)).await;
        eventually("a correction to be done", async || {
            let now = store.broadcast(over.id).await.unwrap().unwrap();
            // The next one of its user would be refused before.
            let is_over = |user| app.state.correcting.begin(UserIdx::new(user).unwrap()).is_some();
            (now.corrected_start_ms == Some(start_ms) && [12, 90].into_iter().all(is_over)).then_some(())
        })
        .await;
        assert!(gate.depth() > before, "its answer is left");
        client
    };
    let start = over.segments[0].from_ms;
    let (own, moderator) = (app.token(12), token_with(90, "moderator", json!([12])));
    let _left = [
        leave(&own, start + 1).await,
        leave(&own, start + 2).await,
        leave(&moderator, start + 3).await,
        leave(&moderator, start + 4).await,
    ];
    assert!(gate.depth() <= 300_000, "{}", gate.depth());
    for (token, status) in [
        (own, 429),
        (moderator, 429),
        (token_with(91, "moderator", json!([12])), 503),
        (token_with(92, "operator", json!([])), 200),
    ] {
        let answer = request(&app, "PATCH", &path, &token, &body(start)).await;
        assert_eq!(answer.status, status, "{token}");
    }
    assert_eq!(get(app.addr, "/metrics").await.status, 200);
}

#[actix_web::test]
async fn who_scrapes_and_takes_nothing_leaves_the_rest_to_others_and_the_next_scrape_is_told_why_it_is_refused() {
    let app = spawn_app(|_| {}).await;
    let answers = &app.state.answers;
    // More than what each of the others may have, and half of what is kept for staff.
    let eighth = answers.gate().capacity() / 8;
    let left = [eighth - 1, 1].map(|bytes| answers.hold(bytes, Asker::Operations).ok().unwrap());
    let refused = get(app.addr, "/metrics").await;
    let detail = "too many answers to callers like this one are not taken yet";
    assert_eq!((refused.status, &refused.json()["detail"]), (503, &detail.into()));
    assert_eq!(answers.gate().refused(), 0, "the queue has room");
    assert!(answers.hold(1, Asker::Nobody).is_ok());
    drop(left);
    let refusals = app.metric("chat_refused_total{code=\"overloaded\"}").await;
    assert_eq!(refusals, Some(1.0));
}

/// All that comes until the peer ends the connection in order.
async fn to_the_end(client: HttpClient) -> Vec<u8> {
    let (mut stream, mut all) = client.into_parts();
    let read = within("the end of the connection", stream.read_to_end(&mut all)).await;
    read.unwrap_or_else(|error| panic!("{error} after {} bytes", all.len()));
    all
}

#[actix_web::test]
async fn the_last_answer_of_a_connection_comes_as_a_whole_where_something_was_sent_behind_its_request() {
    let (app, _presenter) = with_a_long_page(4_000_000, 4_000_000).await;
    let gate = app.state.answers.gate();
    let length = {
        let mut client = app.client().await;
        let page = client.request("GET", LONG_PAGE, &[("token", &app.token(7))], "").await;
        page.body.len()
    };
    for behind in ["\r\n", "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"] {
        eventually("what was taken to be given back", async || {
            (gate.depth() == 0).then_some(())
        })
        .await;
        let mut client = leave_unread(&app, 7, &[("Connection", "close")]).await;
        eventually("the answer to be under way", async || {
            (gate.depth() == length).then_some(())
        })
        .await;
        client.send_bytes(behind.as_bytes()).await;
        let answer = to_the_end(client).await;
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        assert_eq!(answer.len(), head + 4 + length, "behind it was {behind:?}");
    }
    // What is no HTTP ends a connection as well, with an answer: twice as much of it as is read at once.
    let mut client = app.client().await;
    client.send_bytes(&[0; 16 * 1024]).await;
    let answer = to_the_end(client).await;
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
}

#[actix_web::test]
async fn an_answer_that_is_longer_than_all_may_be_is_given_when_it_is_the_only_one() {
    let (app, _presenter) = with_a_long_page(100_000, 100_000).await;
    let (gate, token) = (app.state.answers.gate(), app.token(7));
    let ask = async || {
        let mut client = app.client().await;
        client.request("GET", LONG_PAGE, &[("token", &token)], "").await
    };
    let page = ask().await;
    let longer = page.body.len() > gate.capacity();
    assert_eq!((page.status, longer, gate.capacity()), (200, true, 100_000));
    eventually("what was taken to be given back", async || {
        (gate.depth() == 0).then_some(())
    })
    .await;
    let other = gate.try_acquire(1).unwrap();
    assert_eq!(ask().await.status, 503);
    drop(other);
    assert_eq!(ask().await.status, 200);
}

#[actix_web::test]
async fn heads_without_end_are_refused_before_they_cost_memory() {
    let app = spawn_app(|_| {}).await;
    let line = format!("X-{}: y\r\n", "x".repeat(20));
    let one_header = "x".repeat(1000);
    for (begins, part) in [
        ("GET / HTTP/1.1\r\n", &line),
        ("GET / HTTP/1.1\r\nX-Long: ", &one_header),
        ("GET /", &one_header),
    ] {
        let mut stream = TcpStream::connect(app.addr).await.unwrap();
        stream.write_all(begins.as_bytes()).await.unwrap();
        let (mut reading, mut writing) = stream.split();
        let mut taken = 0;
        let flood = async {
            // A hundred megabytes, if the server took them.
            while taken < 100_000_000 && writing.write_all(part.as_bytes()).await.is_ok() {
                taken += part.len();
            }
        };
        let mut answer = Vec::new();
        let _ = within("an endless head to be refused", async {
            tokio::join!(flood, reading.read_to_end(&mut answer))
        })
        .await;
        let answer = String::from_utf8_lossy(&answer);
        // The kernel may drop the answer when it resets what was still sent.
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
            "{begins}: {answer}"
        );
        // What the kernel holds of it counts here, too: some megabytes on loopback.
        assert!(taken < 20_000_000, "{begins}: {taken} bytes were taken");
    }
    // Many lines, and yet an end: counted, not collected.
    let mut stream = TcpStream::connect(app.addr).await.unwrap();
    let lines = "X-Line: y\r\n".repeat(10_000);
    let head = format!("GET /livez HTTP/1.1\r\n{lines}\r\n");
    let mut answer = Vec::new();
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = within("ten thousand lines to be refused", stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(get(app.addr, "/livez").await.status, 200);
}

/// Asks `request` over and over until the server ends the connection, and takes `bytes` of what it says now and then; gives how many
/// bytes of requests were taken.
async fn ask_without_end(address: SocketAddr, request: &str, bytes: usize) -> usize {
    let (stream, _) = HttpClient::connect_with(address, Some(4096)).await.into_parts();
    let (mut reading, mut writing) = stream.into_split();
    let many = request.repeat(100);
    let mut taken = 0;
    let ask = async {
        // A hundred megabytes, if the server took them.
        while taken < 100_000_000 && writing.write_all(many.as_bytes()).await.is_ok() {
            taken += many.len();
        }
    };
    let take = async {
        let mut some = vec![0; bytes];
        loop {
            tokio::time::sleep(NOW_AND_THEN).await;
            if !some.is_empty() && !matches!(reading.read(&mut some).await, Ok(1..)) {
                break;
            }
        }
    };
    tokio::select! {
        () = ask => {}
        () = take => {}
    }
    taken
}

#[actix_web::test]
async fn a_request_that_comes_behind_one_that_is_under_way_already_changes_nothing_of_its_answer() {
    let rooms = RoomServer::start().await;
    rooms.mode_of(12, Mode::Hang).await;
    // Long enough to be seen waiting on a busy machine, too.
    let app = spawn_with_rooms(&rooms, |settings| settings.room.timeout_ms = 8000).await;
    let mut client = app.client().await;
    let token = app.token(7);
    let headers = [("token", token.as_str()), ("Content-Type", "application/json")];
    client
        .send_request("POST", "/v1/rooms/12/messages", &headers, r#"{"text":"hi"}"#)
        .await;
    eventually("it to wait for its room", async || {
        app.room(12).await.filter(|room| room.waiting == 1)
    })
    .await;
    // Whose answer has no body.
    client.send_request("HEAD", "/livez", &[], "").await;
    let answer = client.read_response(false).await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (503, &"room_server_unavailable".into())
    );
    assert_eq!(client.read_response(true).await.status, 200);
}

/// The most memory that a process ever had, in bytes.
fn peak(server: &Process) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    1024 * peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
}

#[actix_web::test]
async fn requests_whose_answers_nobody_takes_cost_little_memory_and_end_their_connection_in_its_time() {
    let dir = ScratchDir::new("pipelines");
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatting-server"));
    command.args(["serve", "--port-file", "port"]).current_dir(dir.path());
    command.env_remove("RUST_LOG").envs([
        ("CHAT__AUTH__HS256_SECRET", KEY),
        ("CHAT__ROOM__MODE", "embedded"),
        ("CHAT__SERVER__BIND", "127.0.0.1:0"),
        ("CHAT__SERVER__SEND_BUFFER_BYTES", "4096"),
        ("CHAT__SERVER__ANSWER_SECONDS", "3"),
        // So that what little is taken gives no time back.
        ("CHAT__SERVER__ANSWER_BYTES_PER_SECOND", "1000000000"),
    ]);
    let server = Process::start(&dir, &mut command);
    let addr = server.address(&dir.path().join("port")).await;
    assert_eq!(get(addr, "/livez").await.status, 200);
    let before = peak(&server);
    // An answer without a body and one with; nothing is taken of them, or a little now and then.
    let [options, greeting] = ["OPTIONS", "GET"].map(|method| format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
    let each = [(&options, 0), (&options, 20), (&greeting, 0), (&greeting, 20)];
    let asked = join_all(each.map(|(request, bytes)| ask_without_end(addr, request, bytes)));
    let asked = within("all of them to be cut", asked).await;
    let after = peak(&server);
    // What the kernel holds of it counts here, too: some megabytes on loopback.
    assert!(asked.iter().all(|bytes| *bytes < 20_000_000), "{asked:?}");
    assert!(after - before < 20_000_000, "from {before} to {after} bytes");
    // They see their ends before these are counted.
    eventually("all four to be counted", async || {
        let metrics = get(addr, "/metrics").await;
        metrics.text().contains("\nchat_answers_cut_total 4\n").then_some(())
    })
    .await;
}

/// A frame as long as may be whose answer is twice as long.
fn frame_with_a_longer_answer() -> Vec<u8> {
    let around = r#"{"id":""}"#.len();
    let id = "\u{2028}".repeat((32_768 - around) / 3);
    Frame::new(TEXT, format!(r#"{{"id":"{id}"}}"#)).encode()
}

#[actix_web::test]
async fn sockets_that_say_as_much_as_they_can_and_take_none_of_the_answers_cost_little_memory_each() {
    const SOCKETS: usize = 60;
    let dir = ScratchDir::new("sockets");
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatting-server"));
    command.args(["serve", "--port-file", "port"]).current_dir(dir.path());
    command.env_remove("RUST_LOG").envs([
        ("CHAT__AUTH__HS256_SECRET", KEY),
        ("CHAT__ROOM__MODE", "embedded"),
        ("CHAT__SERVER__BIND", "127.0.0.1:0"),
        ("CHAT__SERVER__SEND_BUFFER_BYTES", "4096"),
        ("CHAT__SESSION__CLIENT_FRAMES_PER_SECOND", "1000"),
    ]);
    let server = Process::start(&dir, &mut command);
    let addr = server.address(&dir.path().join("port")).await;
    assert_eq!(get(addr, "/livez").await.status, 200);
    let before = peak(&server);
    let frame = frame_with_a_longer_answer();
    let sockets = join_all((0..SOCKETS).map(async |_| {
        let mut http = HttpClient::connect_with(addr, Some(4096)).await;
        let upgrade = http.request("GET", "/chatting", &HANDSHAKE, "").await;
        assert_eq!(upgrade.status, 101, "{upgrade:?}");
        let (mut stream, _) = http.into_parts();
        // Until nothing is taken any more. What the kernel holds of it counts here, too: some megabytes on loopback.
        for _ in 0..600 {
            let written = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&frame)).await;
            let Ok(written) = written else { return stream };
            written.unwrap();
        }
        panic!("all of it was taken");
    }));
    let sockets = within("the sockets to be read no more", sockets).await;
    let each = (peak(&server) - before) / sockets.len();
    assert!(each < 200_000, "{each} bytes each");
}

#[actix_web::test]
async fn who_asks_at_ops_bind_and_takes_nothing_is_soon_not_read_any_more_and_others_are_answered() {
    let app = spawn_app(|settings| settings.ops.bind = "127.0.0.1:0".into()).await;
    let ops = app.ops.unwrap();
    let (mut stream, _) = HttpClient::connect_with(ops, Some(4096)).await.into_parts();
    let many = "OPTIONS /livez HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let mut taken = 0;
    // It is given time for each part. What the kernel holds of it counts here, too: some megabytes on loopback.
    while taken < 20_000_000
        && let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(SECONDS), stream.write_all(many.as_bytes())).await
    {
        taken += many.len();
    }
    assert!(taken < 20_000_000, "{taken} bytes were taken");
    assert_eq!(get(ops, "/livez").await.status, 200);
}

#[actix_web::test]
async fn a_client_that_asks_a_thousand_times_before_it_reads_gets_every_answer_in_its_order() {
    let app = spawn_app(|settings| settings.server.send_buffer_bytes = 4096).await;
    let mut client = HttpClient::connect_with(app.addr, Some(4096)).await;
    client.send_bytes(asks(0..1000).as_bytes()).await;
    assert_eq!(answers_that_say_close(&mut client, 0..1000).await, 0);
    // And it goes on.
    assert_eq!(client.request("GET", "/livez", &[], "").await.status, 200);
}

/// Requests of which each has its number in its path.
fn asks(numbers: Range<u32>) -> String {
    numbers
        .map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect()
}

/// Reads their answers, which come in their order; how many of them say that they are the connection's last.
async fn answers_that_say_close(client: &mut HttpClient, numbers: Range<u32>) -> usize {
    let mut say_close = 0;
    for n in numbers {
        let answer = client.read_response(false).await;
        assert_eq!((answer.status, &answer.json()["path"]), (404, &format!("/{n}").into()));
        say_close += usize::from(answer.header("connection") == Some("close"));
    }
    say_close
}

#[actix_web::test]
async fn requests_behind_one_with_a_long_body_are_answered_in_their_order_whatever_the_answers_before_it_say() {
    let app = spawn_app(|settings| settings.server.send_buffer_bytes = 4096).await;
    let mut client = HttpClient::connect_with(app.addr, Some(4096)).await;
    // Most of it comes after the requests before it are answered.
    let body = format!("{{\"text\":\"{}\"}}", "x".repeat(60_000));
    let length = format!("Content-Length: {}", body.len());
    let message = head_of_a_message(&app.token(7), &length) + &body;
    let all = [asks(0..500), message, asks(500..1000)].concat();
    client.send_bytes(all.as_bytes()).await;
    // The dispatcher says in some that they are the last, which they are not (http/paced.rs).
    answers_that_say_close(&mut client, 0..500).await;
    let refused = client.read_response(false).await;
    assert_eq!(
        (refused.status, refused.header("connection")),
        (422, None),
        "{refused:?}"
    );
    assert_eq!(answers_that_say_close(&mut client, 500..1000).await, 0);
    assert_eq!(client.request("GET", "/livez", &[], "").await.status, 200);
}

#[actix_web::test]
async fn whoever_waits_for_an_answer_or_holds_a_session_is_not_cut_for_being_quiet() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    rooms.mode_of(13, Mode::Hang).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.server.client_request_seconds = SECONDS;
        settings.server.keep_alive_seconds = SECONDS;
        settings.room.timeout_ms = 4 * 1000 * SECONDS;
    })
    .await;
    let mut presenter = WsClient::connect(app.addr, "/chatting").await;
    // Longer than both times together, on a connection that was used before.
    let mut client = app.client().await;
    client.request("GET", "/livez", &[], "").await;
    let began = Instant::now();
    let answer = post_v1(&mut client, 13, &app.token(7), "anyone there?").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(3 * SECONDS), "{waited:?}");
    assert_eq!(client.request("GET", "/livez", &[], "").await.status, 200);
    app.start(&mut presenter, 12).await;
    assert_eq!(app.post(12, 7, "still here").await.status, 201);
    assert_eq!(presenter.next_json().await["message"], "still here");
}
