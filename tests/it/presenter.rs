//! Dialect v1 (docs/PROTOCOL.md): a presenter never misses a message.

use std::time::Duration;

use chatting_actors::clock::system_ms;
use chatting_server::settings::{Durability, LogBackend, Secret};
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, settings, spawn_app, spawn_in, spawn_with_rooms},
    eventually,
    mongod::Mongod,
    presenter::{V1, connect, end_of, hello, token, upgrade},
    process::ScratchDir,
    proxy::Proxy,
    room_server::RoomServer,
    tokens::{bad_tokens, claims, signed},
    within,
    ws::{BINARY, Frame, Incoming, PING, TEXT, WsClient},
};

async fn app() -> TestApp {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    app
}

fn numbered(range: std::ops::RangeInclusive<u64>) -> Vec<(u64, String)> {
    range.map(|n| (n, n.to_string())).collect()
}

/// Messages whose text is the seq that they get in a new room.
async fn send(app: &TestApp, range: std::ops::RangeInclusive<u64>) {
    for n in range {
        let answer = app.post(12, 7, &n.to_string()).await;
        assert_eq!(
            (answer.status, answer.json()["seq"].as_u64()),
            (201, Some(n)),
            "{answer:?}"
        );
    }
}

/// Ends a session and waits until the registry has heard.
async fn leave(app: &TestApp, session: V1) {
    drop(session);
    app.without_session(12).await;
}

// ---- hello and welcome -----------------------------------------------------------------------------------------------

#[actix_web::test]
async fn hello_is_answered_by_welcome_and_chat_follows_with_its_place() {
    let app = app().await;
    let mut session = V1::of(&app, 12, json!({})).await;
    let welcome = &session.welcome;
    let mut keys: Vec<_> = welcome.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "epoch",
            "gap",
            "keepalive_seconds",
            "last_seq",
            "presenter_idx",
            "resumed_from",
            "session_id",
            "type"
        ]
    );
    assert_eq!(
        (
            &welcome["presenter_idx"],
            &welcome["last_seq"],
            &welcome["resumed_from"]
        ),
        (&json!(12), &json!(0), &json!(1))
    );
    assert_eq!(
        (&welcome["gap"], &welcome["keepalive_seconds"]),
        (&Value::Null, &json!(15))
    );
    let answer = app.post(12, 7, "안녕 <b>").await.json();
    assert_eq!(answer["delivery"], "delivered");
    let chat = session.chat().await;
    let expected = json!({
        "type": "chat", "seq": 1, "id": answer["id"], "user_idx": 7, "nickname": "user 7", "text": "안녕 <b>",
        "sent_at": answer["sent_at"], "role": "viewer",
    });
    assert_eq!(chat["nickname"].as_str().map(str::is_empty), Some(false));
    let mut same = expected;
    same["nickname"] = chat["nickname"].clone();
    assert_eq!(chat, same);
    assert_eq!(welcome_epoch(&session), answer["epoch"]);
}

fn welcome_epoch(session: &V1) -> Value {
    session.welcome["epoch"].clone()
}

#[actix_web::test]
async fn a_token_may_come_with_the_upgrade_and_a_bad_one_is_refused_before_it() {
    let app = app().await;
    let bearer = format!("Bearer {}", token(12));
    let mut socket = upgrade(app.addr, &[("Authorization", &bearer)]).await.ok().unwrap();
    assert_eq!(socket.upgrade.header("sec-websocket-protocol"), Some("chat.v1"));
    socket.send_text(r#"{"type":"hello"}"#).await;
    assert_eq!(socket.next_json().await["presenter_idx"], 12);
    for bad in bad_tokens(12) {
        let bearer = format!("Bearer {}", bad.token);
        let refused = upgrade(app.addr, &[("Authorization", &bearer)]).await.err().unwrap();
        assert_eq!(refused.status, 401, "{}: {refused:?}", bad.what);
        let mut socket = connect(app.addr).await;
        let hello = json!({ "type": "hello", "token": bad.token }).to_string();
        socket.send_text(&hello).await;
        let (code, close) = end_of(&mut socket).await;
        let expected = match bad.what {
            "expired" => ("token_expired", 4002),
            _ => ("unauthenticated", 4001),
        };
        assert_eq!((code.as_str(), close), expected, "{}", bad.what);
        assert_eq!(refused.json()["code"], code, "{}", bad.what);
    }
    let mut socket = connect(app.addr).await;
    socket.send_text(r#"{"type":"hello"}"#).await;
    assert_eq!(end_of(&mut socket).await, ("unauthenticated".into(), 4001));
}

#[actix_web::test]
async fn what_is_no_upgrade_to_chat_v1_is_refused_with_a_problem() {
    let app = app().await;
    let plain = app.client().await.request("GET", "/v1/presenter", &[], "").await;
    assert_eq!((plain.status, plain.header("upgrade")), (426, Some("websocket")));
    assert_eq!(plain.json()["code"], "upgrade_required");
    let bare = WsClient::connect_with(app.addr, "/v1/presenter", &[], None).await;
    let bare = bare.err().unwrap();
    assert_eq!((bare.status, &bare.json()["code"]), (400, &json!("bad_request")));
    assert!(bare.text().contains("chat.v1"), "{}", bare.text());
    let other = app.client().await.request("POST", "/v1/presenter", &[], "").await;
    assert_eq!((other.status, other.header("allow")), (405, Some("GET")));
}

#[actix_web::test]
async fn a_page_that_is_not_allowed_opens_no_session() {
    let app = spawn_app(|settings| settings.cors.origins = vec!["https://studio.example".into()]).await;
    let same = format!("http://{}", app.addr);
    for origin in ["https://studio.example", &same] {
        let answer = upgrade(app.addr, &[("Origin", origin)]).await;
        assert!(answer.is_ok(), "{origin}");
    }
    for origin in ["https://evil.example", "null", "https://studio.example.evil"] {
        let refused = upgrade(app.addr, &[("Origin", origin)]).await.err().unwrap();
        assert_eq!(
            (refused.status, &refused.json()["code"]),
            (403, &json!("forbidden")),
            "{origin}"
        );
    }
}

#[actix_web::test]
async fn without_a_hello_in_time_the_session_is_closed() {
    let app = spawn_app(|settings| settings.session.hello_seconds = 1).await;
    let mut socket = connect(app.addr).await;
    assert_eq!(end_of(&mut socket).await, ("no_hello".into(), 4006));
    let mut korean = upgrade(app.addr, &[("Accept-Language", "ko")]).await.ok().unwrap();
    let error = korean.next_json().await;
    assert_eq!(error["message"], "제시간에 hello를 받지 못했습니다");
}

#[actix_web::test]
async fn frames_that_cannot_be_are_4004_and_what_breaks_websocket_has_its_own_code() {
    let app = app().await;
    for frame in [
        "ping",
        "{}",
        r#"{"type":"dance"}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"ack","seq":0}"#,
    ] {
        let mut socket = connect(app.addr).await;
        socket.send_text(frame).await;
        assert_eq!(end_of(&mut socket).await, ("bad_frame".into(), 4004), "{frame}");
    }
    let mut session = V1::of(&app, 12, json!({})).await;
    session.socket.send_frame(&Frame::new(BINARY, "x")).await;
    assert_eq!(session.end().await, ("bad_frame".into(), 4004));
    let mut session = V1::of(&app, 12, json!({})).await;
    session.socket.send_frame(&Frame::new(TEXT, vec![0xff, 0xfe])).await;
    assert_eq!(session.socket.next_close().await, Some(1007));
    let mut session = V1::of(&app, 12, json!({})).await;
    let long = format!(r#"{{"type":"ping","x":"{}"}}"#, "x".repeat(40_000));
    session.socket.send_text(&long).await;
    assert_eq!(session.end().await, ("too_large".into(), 1009));
    let mut session = V1::of(&app, 12, json!({})).await;
    for frame in Frame::fragments(&long, 20) {
        session.socket.send_bytes_regardless(&frame.encode()).await;
    }
    assert_eq!(session.end().await, ("too_large".into(), 1009));
    let mut session = V1::of(&app, 12, json!({})).await;
    for frame in Frame::fragments(r#"{"type":"ping"}"#, 5) {
        session.socket.send_frame(&frame).await;
    }
    assert_eq!(session.socket.next_text().await, r#"{"type":"pong"}"#);
    let unmasked = Frame {
        masked: false,
        ..Frame::new(TEXT, "x")
    };
    session.socket.send_frame(&unmasked).await;
    assert_eq!(session.socket.next_close().await, Some(1002));
}

#[actix_web::test]
async fn a_flood_of_frames_that_say_nothing_is_closed_and_acks_are_no_flood() {
    let app = spawn_app(|settings| settings.session.client_frames_per_second = 5).await;
    app.go_live(12);
    let mut session = V1::of(&app, 12, json!({})).await;
    send(&app, 1..=40).await;
    assert_eq!(session.chats(40).await, numbered(1..=40));
    for flood in [
        Frame::new(TEXT, r#"{"type":"ping"}"#),
        Frame::new(PING, "x"),
        Frame::new(TEXT, r#"{"type":"ack","seq":1}"#),
    ] {
        for _ in 0..100 {
            session.socket.send_bytes_regardless(&flood.encode()).await;
        }
        let close = loop {
            match session.socket.next().await {
                Incoming::Close(code, reason) => break (code, reason),
                Incoming::Text(_) | Incoming::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(close, (Some(1008), "rate_limited".into()), "{flood:?}");
        session = V1::of(&app, 12, json!({ "resume_after": 40 })).await;
    }
    let mut legacy = app.connect().await;
    for _ in 0..100 {
        legacy.send_bytes_regardless(&Frame::new(TEXT, "ping").encode()).await;
    }
    let close = loop {
        match legacy.next().await {
            Incoming::Close(code, _) => break code,
            Incoming::Text(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(close, Some(1008));
}

#[actix_web::test]
async fn acks_of_what_was_never_sent_are_a_flood() {
    // Nobody can tell the room's numbering: its spool is new, and the store that is older is not there. So nothing is sent.
    let app = spawn_app(|settings| {
        settings.log.backend = LogBackend::Mongodb;
        settings.mongodb.uri = Secret::new("mongodb://127.0.0.1:1");
        settings.mongodb.connect_timeout_ms = 100;
        settings.session.client_frames_per_second = 5;
    })
    .await;
    let mut socket = connect(app.addr).await;
    socket.send_text(&hello(12, json!({}))).await;
    for seq in 1..=100 {
        let ack = json!({ "type": "ack", "seq": seq }).to_string();
        socket.send_bytes_regardless(&Frame::new(TEXT, ack).encode()).await;
    }
    assert_eq!(end_of(&mut socket).await, ("rate_limited".into(), 1008));
}

#[actix_web::test]
async fn a_peer_that_answers_no_keepalive_is_closed_and_one_that_does_is_not() {
    let app = spawn_app(|settings| settings.session.keepalive_seconds = 1).await;
    app.go_live(12);
    let mut silent = V1::of(&app, 12, json!({})).await;
    let mut pings = 0;
    let error = loop {
        match silent.socket.next().await {
            Incoming::Ping(_) => pings += 1,
            Incoming::Text(text) => break text,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(pings, 2, "session.keepalive_missed");
    assert!(error.contains("keepalive_missed"), "{error}");
    assert!(matches!(silent.socket.next().await, Incoming::Close(Some(4007), _)));
    let mut awake = V1::of(&app, 12, json!({})).await;
    // `chat` answers pings while it waits.
    let chat = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        app.post(12, 7, "still there?").await
    };
    let (frame, answer) = tokio::join!(awake.chat(), chat);
    assert_eq!((&frame["text"], answer.status), (&json!("still there?"), 201));
}

// ---- tokens that expire ----------------------------------------------------------------------------------------------

fn token_for(seconds: i64) -> String {
    let mut claims = claims(12);
    claims["exp"] = json!(system_ms() / 1000 + seconds);
    signed(&claims)
}

#[actix_web::test]
async fn a_session_ends_with_its_token_unless_a_hello_refreshes_it() {
    let app = app().await;
    let mut session = V1::of(&app, 12, json!({ "token": token_for(4) })).await;
    assert_eq!(session.end().await, ("token_expired".into(), 4002));
    let mut session = V1::of(&app, 12, json!({ "token": token_for(4) })).await;
    let refresh = json!({ "type": "hello", "token": token_for(3600) }).to_string();
    session.socket.send_text(&refresh).await;
    session.settle().await;
    tokio::time::sleep(Duration::from_millis(4100)).await;
    send(&app, 1..=1).await;
    assert_eq!(session.chats(1).await, numbered(1..=1));
    session.socket.send_text(&hello(13, json!({}))).await;
    assert_eq!(session.end().await, ("unauthenticated".into(), 4001));
}

#[actix_web::test]
async fn a_session_may_outlive_its_token_where_the_settings_say_so() {
    let app = spawn_app(|settings| settings.session.close_on_expiry = false).await;
    app.go_live(12);
    let mut session = V1::of(&app, 12, json!({ "token": token_for(1) })).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    send(&app, 1..=1).await;
    assert_eq!(session.chats(1).await, numbered(1..=1));
}

#[actix_web::test]
async fn a_token_whose_time_is_over_takes_no_room_over() {
    let app = app().await;
    let mut session = V1::of(&app, 12, json!({})).await;
    // Still good where a clock may be off, and too old for a session.
    let mut late = connect(app.addr).await;
    late.send_text(&hello(12, json!({ "token": token_for(-2) }))).await;
    assert_eq!(end_of(&mut late).await, ("token_expired".into(), 4002));
    send(&app, 1..=1).await;
    assert_eq!(session.chats(1).await, numbered(1..=1));
}

// ---- acks and credit ---------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn rule_14_without_acks_the_cursor_waits_and_goes_on_with_them() {
    let app = spawn_app(|settings| settings.session.credit_events = 3).await;
    app.go_live(12);
    let mut session = V1::of(&app, 12, json!({})).await;
    for n in 1..=5_u64 {
        let delivery = app.post(12, 7, &n.to_string()).await.json()["delivery"].clone();
        assert_eq!(delivery, if n <= 3 { "delivered" } else { "held" }, "{n}");
    }
    for n in 1..=3 {
        assert_eq!(session.chat().await["seq"], n);
    }
    session.settle().await;
    session.ack(2).await;
    session.ack(1).await;
    assert_eq!(
        (
            session.chat().await["seq"].as_u64(),
            session.chat().await["seq"].as_u64()
        ),
        (Some(4), Some(5))
    );
    session.ack(6).await;
    assert_eq!(session.end().await, ("bad_frame".into(), 4004));
}

#[actix_web::test]
async fn rule_14_a_session_that_acknowledges_nothing_is_too_slow() {
    let app = spawn_app(|settings| {
        settings.session.stall_seconds = 1;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    let mut session = V1::of(&app, 12, json!({})).await;
    send(&app, 1..=2).await;
    assert_eq!(
        (
            session.chat().await["seq"].as_u64(),
            session.chat().await["seq"].as_u64()
        ),
        (Some(1), Some(2))
    );
    assert_eq!(session.end().await, ("too_slow".into(), 4005));
    let mut session = V1::of(&app, 12, json!({})).await;
    assert_eq!(session.welcome["resumed_from"], 1, "nothing was acknowledged");
    assert_eq!(session.chats(2).await, numbered(1..=2));
}

// ---- resume ------------------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn rule_16_a_session_goes_on_from_where_its_hello_says() {
    let app = app().await;
    let mut first = V1::of(&app, 12, json!({})).await;
    let epoch = first.welcome["epoch"].clone();
    send(&app, 1..=6).await;
    assert_eq!(first.chats(4).await, numbered(1..=4));
    first.settle().await;
    leave(&app, first).await;
    send(&app, 7..=8).await;
    for (fields, from) in [
        (json!({}), 5),
        (json!({ "epoch": epoch }), 5),
        (json!({ "resume_after": 2 }), 3),
        (json!({ "resume_after": 2, "epoch": epoch }), 3),
        (json!({ "resume_after": 0 }), 1),
        // Another numbering's place says nothing.
        (json!({ "resume_after": 7, "epoch": "another" }), 5),
        (json!({ "resume_after": 99, "epoch": "another" }), 5),
        // To say that it has them is as good as an ack.
        (json!({ "resume_after": 8 }), 9),
        (json!({}), 9),
    ] {
        let mut session = V1::of(&app, 12, fields.clone()).await;
        let welcome = session.welcome.clone();
        assert_eq!(
            (&welcome["resumed_from"], &welcome["last_seq"], &welcome["gap"]),
            (&json!(from), &json!(8), &Value::Null),
            "{fields}"
        );
        for n in from..=8 {
            assert_eq!(session.chat().await["seq"], n, "{fields}");
        }
        leave(&app, session).await;
    }
    let mut socket = connect(app.addr).await;
    socket.send_text(&hello(12, json!({ "resume_after": 9 }))).await;
    assert_eq!(end_of(&mut socket).await, ("bad_frame".into(), 4004));
}

#[actix_web::test]
async fn what_memory_no_longer_has_is_read_from_the_log_while_new_messages_keep_coming() {
    let app = spawn_app(|settings| {
        settings.room.ring_events = 16;
        settings.session.credit_events = 10;
    })
    .await;
    app.go_live(12);
    let mut first = V1::of(&app, 12, json!({})).await;
    for n in 1..=200_u64 {
        send(&app, n..=n).await;
        assert_eq!(first.chats(1).await, numbered(n..=n));
    }
    let mut second = V1::of(&app, 12, json!({ "resume_after": 0 })).await;
    assert_eq!(first.end().await, ("replaced".into(), 4003));
    let sender = send(&app, 201..=216);
    let (seen, ()) = tokio::join!(second.chats(216), sender);
    assert_eq!(seen, numbered(1..=216));
    assert!(app.metric("chat_log_reads_total{outcome=\"ok\"}").await >= Some(18.0));
}

#[actix_web::test]
async fn rule_16_more_than_resume_max_is_told_as_a_gap() {
    let app = spawn_app(|settings| settings.session.resume_max = 5).await;
    app.go_live(12);
    let mut first = V1::of(&app, 12, json!({})).await;
    send(&app, 1..=9).await;
    assert_eq!(first.chats(9).await, numbered(1..=9));
    let mut session = V1::of(&app, 12, json!({ "resume_after": 1 })).await;
    let welcome = &session.welcome;
    assert_eq!(
        (&welcome["resumed_from"], &welcome["gap"]),
        (&json!(5), &json!({ "from": 2, "to": 4 }))
    );
    assert_eq!(session.chats(5).await, numbered(5..=9));
}

#[actix_web::test]
async fn what_the_log_no_longer_has_is_told_as_a_gap() {
    let app = spawn_app(|settings| {
        settings.room.ring_events = 4;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    let mut first = V1::of(&app, 12, json!({})).await;
    for n in 1..=20_u64 {
        send(&app, n..=n).await;
        assert_eq!(first.chats(1).await, numbered(n..=n));
    }
    assert_eq!(app.sqlite_log(12).await.len(), 20);
    let connection = rusqlite::Connection::open(&app.settings.log.path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
        .execute("DELETE FROM chatting_log WHERE seq <= 9", [])
        .unwrap();
    let mut session = V1::of(&app, 12, json!({ "resume_after": 3 })).await;
    let welcome = &session.welcome;
    assert_eq!(
        (&welcome["resumed_from"], &welcome["gap"]),
        (&json!(10), &json!({ "from": 4, "to": 9 }))
    );
    assert_eq!(session.chats(11).await, numbered(10..=20));
}

#[actix_web::test]
async fn a_restart_in_place_is_resumed_with_what_was_held_before_and_after_it() {
    for kill in [false, true] {
        let app = spawn_app(|settings| settings.session.checkpoint_ms = 10).await;
        app.go_live(12);
        let mut first = V1::of(&app, 12, json!({})).await;
        send(&app, 1..=5).await;
        assert_eq!(first.chats(3).await, numbered(1..=3));
        first.settle().await;
        leave(&app, first).await;
        send(&app, 6..=7).await;
        if kill {
            // What a kill leaves is what was saved by then.
            eventually("the place to be saved", async || {
                saved_position(&app).filter(|saved| *saved == 3)
            })
            .await;
        }
        let (_, dir, settings) = app.stop().await;
        let app = spawn_in(dir, settings).await;
        // Still held for: the session ended a moment ago, before the restart.
        send(&app, 8..=8).await;
        let mut session = V1::of(&app, 12, json!({})).await;
        assert_eq!(session.welcome["resumed_from"], 4, "from the last ack, kill: {kill}");
        assert_eq!(session.chats(5).await, numbered(4..=8));
        let mut again = V1::of(&app, 12, json!({ "resume_after": 1 })).await;
        assert_eq!(again.chats(7).await, numbered(2..=8));
    }
}

#[actix_web::test]
async fn a_crash_that_begins_a_new_epoch_is_told_as_a_gap() {
    let app = spawn_app(|settings| {
        settings.log.durability = Durability::Os;
        settings.session.checkpoint_ms = 10;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    let mut first = V1::of(&app, 12, json!({})).await;
    send(&app, 1..=5).await;
    assert_eq!(first.chats(3).await, numbered(1..=3));
    eventually("the place to be saved", async || {
        saved_position(&app).filter(|saved| *saved == 3)
    })
    .await;
    let epoch = first.welcome["epoch"].clone();
    let (_, dir, settings) = app.stop().await;
    // As if it had not been stopped in order.
    let connection = rusqlite::Connection::open(&settings.log.path).unwrap();
    connection
        .execute("UPDATE meta SET value = 0 WHERE key = 'clean'", [])
        .unwrap();
    drop(connection);
    let app = spawn_in(dir, settings).await;
    let second = V1::of(&app, 12, json!({ "epoch": epoch, "resume_after": 3 })).await;
    assert_ne!(second.welcome["epoch"], epoch);
    assert_eq!(
        (&second.welcome["resumed_from"], &second.welcome["gap"]),
        (&json!(6), &json!({ "from": 4, "to": 5 }))
    );
}

fn saved_position(app: &TestApp) -> Option<i64> {
    let connection = rusqlite::Connection::open(&app.settings.log.path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
        .query_row("SELECT position FROM places WHERE presenter_idx = 12", [], |row| {
            row.get(0)
        })
        .ok()
}

#[actix_web::test]
async fn a_legacy_presenter_gets_what_was_held_across_a_restart_in_place() {
    let app = app().await;
    let mut first = app.presenter(12).await;
    send(&app, 1..=2).await;
    assert_eq!(first.next_json().await["message"], "1");
    assert_eq!(first.next_json().await["message"], "2");
    drop(first);
    app.without_session(12).await;
    send(&app, 3..=4).await;
    let (_, dir, settings) = app.stop().await;
    let app = spawn_in(dir, settings).await;
    send(&app, 5..=5).await;
    let mut second = app.presenter(12).await;
    for n in 3..=5 {
        assert_eq!(second.next_json().await["message"], n.to_string());
    }
}

// ---- takeover ------------------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn rule_15_the_newest_session_wins_at_once_and_nothing_is_lost_or_doubled() {
    let app = app().await;
    let mut seen = Vec::new();
    let mut session = V1::of(&app, 12, json!({})).await;
    for round in 0..5_u64 {
        send(&app, round * 4 + 1..=round * 4 + 4).await;
        seen.extend(session.chats(3).await);
        let last = seen.last().map(|(seq, _)| *seq);
        let next = V1::of(&app, 12, json!({ "resume_after": last })).await;
        let mut old = std::mem::replace(&mut session, next);
        // What was on its way to it, and then the end.
        assert_eq!(old.chat().await["seq"].as_u64(), last.map(|last| last + 1));
        assert_eq!(old.end().await, ("replaced".into(), 4003));
        seen.extend(session.chats(1).await);
    }
    assert_eq!(seen, numbered(1..=20));
}

#[actix_web::test]
async fn rule_15_dialects_take_over_from_each_other() {
    let app = app().await;
    let mut legacy = app.presenter(12).await;
    send(&app, 1..=1).await;
    assert_eq!(legacy.next_json().await["message"], "1");
    let mut v1 = V1::of(&app, 12, json!({})).await;
    send(&app, 2..=2).await;
    assert_eq!(v1.chats(1).await, numbered(2..=2));
    v1.settle().await;
    legacy.send_text("ping").await;
    assert_eq!(legacy.next_text().await, "pong", "left open, and sent nothing");
    let mut second = app.presenter(12).await;
    assert_eq!(v1.end().await, ("replaced".into(), 4003));
    send(&app, 3..=3).await;
    assert_eq!(second.next_json().await["message"], "3");
}

#[actix_web::test]
async fn rule_15_a_storm_of_reconnects_is_damped_before_the_upgrade() {
    let app = spawn_app(|settings| {
        settings.session.reconnect_burst = 5;
        settings.session.reconnect_per_minute = 1;
    })
    .await;
    let bearer = format!("Bearer {}", token(12));
    let mut answers = Vec::new();
    for _ in 0..50 {
        answers.push(upgrade(app.addr, &[("Authorization", &bearer)]).await);
    }
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(refused.len() >= 40, "{} of 50 were refused", refused.len());
    for answer in &refused {
        assert_eq!((answer.status, &answer.json()["code"]), (429, &json!("rate_limited")));
        assert!(answer.header("retry-after").is_some() && answer.header("ratelimit-limit") == Some("5"));
    }
    // Without the header it is the session's to refuse, and another presenter's storm is not ours.
    let mut socket = connect(app.addr).await;
    socket.send_text(&hello(12, json!({}))).await;
    assert_eq!(end_of(&mut socket).await, ("rate_limited".into(), 1008));
    let _ = V1::of(&app, 13, json!({})).await;
    let legacy = WsClient::connect_with(app.addr, "/chatting", &[("token", &token(12))], None).await;
    assert_eq!(legacy.err().map(|answer| answer.status), Some(429));
}

// ---- hold, end of a broadcast, rooms that are not live -----------------------------------------------------------------------

#[actix_web::test]
async fn rule_12_a_v1_presenter_is_held_for_and_after_the_ring_is_full_senders_are_told() {
    let app = spawn_app(|settings| settings.room.ring_events = 3).await;
    app.go_live(12);
    let session = V1::of(&app, 12, json!({})).await;
    leave(&app, session).await;
    send(&app, 1..=3).await;
    let refused = app.post(12, 7, "4").await;
    assert_eq!(refused.json()["code"], "presenter_disconnected");
    assert!(refused.header("retry-after").is_some());
    let mut session = V1::of(&app, 12, json!({})).await;
    assert_eq!(session.chats(3).await, numbered(1..=3));
}

#[actix_web::test]
async fn rule_13_what_was_held_of_an_earlier_broadcast_comes_only_if_it_is_asked_for() {
    let rooms = RoomServer::start().await;
    rooms.live_with(12, r#"{"roomIdx":1}"#).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.live_ttl_ms = 20;
        settings.room.not_live_ttl_ms = 20;
    })
    .await;
    let session = V1::of(&app, 12, json!({})).await;
    leave(&app, session).await;
    send(&app, 1..=2).await;
    rooms.ended(12).await;
    let mut last = 2;
    eventually("the end", async || {
        let answer = app.post(12, 7, &(last + 1).to_string()).await.json();
        last = answer["seq"].as_u64().unwrap_or(last);
        (answer["code"] == "broadcast_ended").then_some(())
    })
    .await;
    rooms.live_with(12, r#"{"roomIdx":2}"#).await;
    let session = V1::of(&app, 12, json!({})).await;
    assert_eq!(session.welcome["resumed_from"], last + 1);
    leave(&app, session).await;
    let from_start = V1::of(&app, 12, json!({ "resume_after": 0 })).await;
    assert_eq!(
        from_start.welcome["resumed_from"],
        last + 1,
        "from the start of this broadcast"
    );
    let epoch = from_start.welcome["epoch"].clone();
    let mut asked = V1::of(&app, 12, json!({ "resume_after": 1, "epoch": epoch })).await;
    eventually("the next broadcast to be heard of", async || {
        (app.post(12, 7, &(last + 1).to_string()).await.status == 201).then_some(())
    })
    .await;
    let count = usize::try_from(last).unwrap();
    assert_eq!(asked.chats(count).await, numbered(2..=last + 1));
}

#[actix_web::test]
async fn rule_10_a_session_whose_room_is_not_live_ends() {
    let app = spawn_app(|settings| {
        settings.session.not_live_seconds = 1;
        settings.room.sweep_ms = 20;
        settings.room.not_live_ttl_ms = 100;
    })
    .await;
    let mut session = V1::of(&app, 12, json!({})).await;
    assert_eq!(session.end().await, ("broadcast_ended".into(), 1000));
}

// ---- stalls ------------------------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn a_presenter_that_stops_reading_is_closed_in_time_and_resumes() {
    let app = spawn_app(|settings| {
        settings.session.stall_seconds = 1;
        settings.room.sweep_ms = 20;
        settings.session.credit_events = 64;
    })
    .await;
    app.go_live(12);
    let headers = [("Sec-WebSocket-Protocol", "chat.v1")];
    let mut stalled = WsClient::connect_with(app.addr, "/v1/presenter", &headers, Some(4096))
        .await
        .ok()
        .unwrap();
    stalled.send_text(&hello(12, json!({}))).await;
    assert_eq!(stalled.next_json().await["type"], "welcome");
    let long = "x".repeat(2000);
    for _ in 0..100 {
        assert_eq!(app.post(12, 7, &long).await.status, 201);
    }
    eventually("the stalled session to be ended", async || {
        app.metric("chat_sessions_ended_total{reason=\"too_slow\"}").await
    })
    .await;
    app.without_sockets().await;
    let mut session = V1::of(&app, 12, json!({})).await;
    for n in 1..=100 {
        let chat = session.chat().await;
        assert_eq!(chat["seq"], n);
        session.ack(n).await;
    }
}

#[actix_web::test]
async fn a_hello_that_dribbles_in_and_a_handshake_that_never_ends_are_cut_in_time() {
    let app = spawn_app(|settings| {
        settings.session.hello_seconds = 1;
        settings.server.client_request_seconds = 1;
    })
    .await;
    let mut socket = connect(app.addr).await;
    let hello = Frame::new(TEXT, hello(12, json!({}))).encode();
    let (mut sent, began) = (0, std::time::Instant::now());
    // A byte now and then keeps no session waiting longer than its time.
    let end = loop {
        match tokio::time::timeout(Duration::from_millis(20), socket.next()).await {
            Ok(incoming) => break incoming,
            Err(_) => {
                socket.send_bytes_regardless(&hello[sent..=sent]).await;
                sent += 1;
            }
        }
    };
    assert!(
        matches!(&end, Incoming::Text(text) if text.contains("no_hello")),
        "{end:?}"
    );
    assert!(
        sent < hello.len() && began.elapsed() >= Duration::from_secs(1),
        "{sent} bytes"
    );
    let mut stream = tokio::net::TcpStream::connect(app.addr).await.unwrap();
    let head = b"GET /v1/presenter HTTP/1.1\r\nHost: chat\r\nUpgrade: websocket\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
    let _ = within("the handshake to be cut", read).await;
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[actix_web::test]
async fn a_peer_that_vanished_is_noticed_and_its_presenter_goes_on_elsewhere() {
    let app = spawn_app(|settings| {
        settings.session.keepalive_seconds = 1;
        settings.session.keepalive_missed = 1;
    })
    .await;
    app.go_live(12);
    let link = Proxy::start(app.addr).await;
    let mut session = V1::at(link.address(), 12, json!({})).await;
    send(&app, 1..=1).await;
    assert_eq!(session.chats(1).await, numbered(1..=1));
    session.settle().await;
    // Nothing passes any more, and nobody tells: as when a phone is out of reach.
    link.stall();
    app.without_sockets().await;
    send(&app, 2..=3).await;
    let mut elsewhere = V1::of(&app, 12, json!({})).await;
    assert_eq!(elsewhere.chats(2).await, numbered(2..=3));
}

#[actix_web::test]
async fn a_connection_cut_at_any_moment_is_resumed_without_a_hole() {
    let app = app().await;
    let link = Proxy::start(app.addr).await;
    let mut seen: Vec<(u64, String)> = Vec::new();
    for round in 0..6_u64 {
        let after = seen.last().map(|(seq, _)| *seq);
        let mut session = V1::at(link.address(), 12, json!({ "resume_after": after })).await;
        let due = round * 10 + 10;
        for n in due - 9..=due {
            send(&app, n..=n).await;
            if n == due - 4 {
                // Some of it may be on its way.
                if round % 2 == 0 {
                    link.reset_connections();
                } else {
                    link.half_open();
                }
                break;
            }
            seen.extend(session.chats(1).await);
        }
        app.without_sockets().await;
        send(&app, due - 3..=due).await;
        let after = seen.last().map(|(seq, _)| *seq);
        let mut session = V1::at(link.address(), 12, json!({ "resume_after": after })).await;
        let count = usize::try_from(due).unwrap() - seen.len();
        seen.extend(session.chats(count).await);
        assert_eq!(seen, numbered(1..=due));
    }
}

#[actix_web::test]
async fn rule_10_when_sessions_are_full_one_without_a_live_room_gives_way() {
    let app = spawn_app(|settings| {
        settings.session.max = 2;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    let mut live = V1::of(&app, 12, json!({})).await;
    let mut silent = connect(app.addr).await;
    let refused = upgrade(app.addr, &[]).await.err().unwrap();
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("overloaded")));
    assert_eq!(end_of(&mut silent).await, ("overloaded".into(), 1013));
    let mut next = eventually("its place", async || upgrade(app.addr, &[]).await.ok()).await;
    next.send_text(&hello(13, json!({}))).await;
    assert_eq!(next.next_json().await["type"], "welcome");
    // Presenter 13 is not live, so it is the next to go.
    eventually("the verdict on 13", async || {
        app.room(13).await.filter(|room| room.live == Some(false))
    })
    .await;
    assert_eq!(upgrade(app.addr, &[]).await.err().unwrap().status, 503);
    assert_eq!(end_of(&mut next).await, ("broadcast_ended".into(), 1000));
    send(&app, 1..=1).await;
    assert_eq!(live.chats(1).await, numbered(1..=1));
}

#[actix_web::test]
async fn a_resume_goes_on_when_the_store_is_away_as_far_as_the_spool_reaches() {
    let mongod = Mongod::start_own().await;
    let dir = ScratchDir::new("resume");
    let mut settings = settings(&dir);
    settings.log.backend = LogBackend::Mongodb;
    settings.mongodb.uri = Secret::new(mongod.uri());
    settings.mongodb.connect_timeout_ms = 500;
    settings.mongodb.write_timeout_ms = 1000;
    settings.room.ring_events = 4;
    settings.room.sweep_ms = 20;
    settings.session.resume_wait_seconds = 2;
    let app = spawn_in(dir, settings).await;
    app.go_live(12);
    let mut first = V1::of(&app, 12, json!({})).await;
    for n in 1..=10_u64 {
        send(&app, n..=n).await;
        assert_eq!(first.chats(1).await, numbered(n..=n));
    }
    eventually("the store to have it", async || {
        (app.metric("chat_spool_events").await == Some(0.0)).then_some(())
    })
    .await;
    mongod.kill().await;
    for n in 11..=20_u64 {
        send(&app, n..=n).await;
        assert_eq!(first.chats(1).await, numbered(n..=n));
    }
    let mut second = V1::of(&app, 12, json!({ "resume_after": 10 })).await;
    assert_eq!(
        (&second.welcome["resumed_from"], &second.welcome["gap"]),
        (&json!(11), &Value::Null)
    );
    assert_eq!(second.chats(10).await, numbered(11..=20));
    // What only the store has cannot be read: that is waited for, and then told.
    let mut third = V1::of(&app, 12, json!({ "resume_after": 5 })).await;
    assert_eq!(third.welcome["gap"], json!({ "from": 6, "to": 10 }));
    assert_eq!(third.chats(10).await, numbered(11..=20));
    let _ = app.stop().await;
}

// ---- drain -------------------------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn a_stop_tells_v1_sessions_to_come_back_and_closes_them_last() {
    let app = spawn_app(|settings| {
        // As long as there are sessions to tell, a tenth of a second each.
        settings.shutdown.drain_seconds = 4;
        settings.shutdown.reconnect_after_ms = 500;
        settings.shutdown.reconnect_spread_ms = 1000;
    })
    .await;
    app.go_live(12);
    let mut sessions = Vec::new();
    for presenter in 12..52 {
        sessions.push(V1::of(&app, presenter, json!({})).await);
    }
    let mut legacy = app.presenter(90).await;
    let mut sender = app.client().await;
    let stopping = tokio::spawn(app.stop());
    let mut told = Vec::new();
    for session in &mut sessions {
        let frame = session.socket.next_json().await;
        assert_eq!(
            (&frame["type"], &frame["reason"]),
            (&json!("reconnect"), &json!("drain"))
        );
        told.push(frame["after_ms"].as_u64().unwrap());
        if told.len() == 1 {
            let answer = crate::support::app::post_v1(&mut sender, 12, &token(7), "while it drains").await;
            assert_eq!(answer.status, 201, "{answer:?}");
        }
    }
    assert!(
        told.iter().all(|after| (500..=500 + 1000 + 4000).contains(after)),
        "{told:?}"
    );
    assert!(told.windows(2).any(|pair| pair[0] != pair[1]), "spread: {told:?}");
    assert_eq!(sessions[0].chat().await["text"], "while it drains");
    for session in &mut sessions {
        assert_eq!(session.socket.next_close().await, Some(1001));
    }
    assert_eq!(legacy.next_close().await, Some(1001));
    stopping.await.unwrap();
}

// ---- GET /v1/rooms/{presenter_idx} ----------------------------------------------------------------------------------------------

#[actix_web::test]
async fn a_room_can_be_looked_at_by_anyone_with_a_token() {
    let app = app().await;
    let bearer = format!("Bearer {}", token(7));
    let look = async |path: &str| {
        let headers = [("Authorization", bearer.as_str())];
        app.client().await.request("GET", path, &headers, "").await
    };
    let answer = look("/v1/rooms/12").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let rules = json!({ "max_chars": 2000, "max_body_bytes": 65_536, "nickname_max_chars": 64 });
    assert_eq!(
        answer.json(),
        json!({ "presenter_idx": 12, "live": true, "session": false, "last_seq": 0, "fanned_out": null, "rules": rules })
    );
    let mut session = V1::of(&app, 12, json!({})).await;
    send(&app, 1..=2).await;
    assert_eq!(session.chat().await["seq"], 1);
    session
        .socket
        .send_text(r#"{"type":"ack","seq":1,"fanned_out":312}"#)
        .await;
    session.settle().await;
    assert_eq!(
        look("/v1/rooms/12").await.json(),
        json!({ "presenter_idx": 12, "live": true, "session": true, "last_seq": 2, "fanned_out": 312, "rules": rules })
    );
    let nobody = look("/v1/rooms/99").await.json();
    assert_eq!((&nobody["live"], &nobody["last_seq"]), (&json!(false), &Value::Null));
    assert_eq!(look("/v1/rooms/x").await.status, 404);
    let without = app.client().await.request("GET", "/v1/rooms/12", &[], "").await;
    assert_eq!(without.status, 401);
}
