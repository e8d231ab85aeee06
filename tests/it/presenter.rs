//! Dialect v1 (docs/PROTOCOL.md): the upgrade, `hello`, frames, tokens, acks and credit; a stop, and looking at a room.

use std::time::{Duration, Instant};

use chatting_actors::clock::system_ms;
use chatting_server::settings::{LogBackend, Secret};
use futures_util::future::{join_all, select_all};
use serde_json::{Value, json};

use crate::support::{
    app::{post_v1, spawn_app},
    eventually,
    http::get,
    presenter::{V1, app, connect, end_of, hello, leave, numbered, send, token, upgrade},
    tokens::{bad_tokens, claims, signed},
    ws::{BINARY, CLOSE, Frame, Incoming, PING, PONG, TEXT, WsClient},
};

// ---- hello and welcome ---------------------------------------------------------------------------------------------

#[actix_web::test]
async fn hello_is_answered_by_welcome_and_chat_follows_with_its_place() {
    let app = spawn_app(|settings| settings.session.keepalive_seconds = 15).await;
    app.go_live(12);
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
    let mut counted = 0.0;
    for reason in ["unauthenticated", "token_expired"] {
        let series = format!("chat_sessions_refused_total{{reason=\"{reason}\"}}");
        counted += app.metric(&series).await.unwrap();
    }
    assert_eq!(
        counted,
        2.0 * bad_tokens(12).len() as f64,
        "at the upgrade and by its session"
    );
    let mut socket = connect(app.addr).await;
    socket.send_text(r#"{"type":"hello"}"#).await;
    assert_eq!(end_of(&mut socket).await, ("unauthenticated".into(), 4001));
}

#[actix_web::test]
async fn a_session_whose_token_came_with_the_upgrade_is_counted_once() {
    let app = spawn_app(|settings| {
        settings.session.reconnect_burst = 2;
        settings.session.reconnect_per_minute = 1;
    })
    .await;
    let bearer = format!("Bearer {}", token(12));
    for _ in 0..2 {
        let mut socket = upgrade(app.addr, &[("Authorization", &bearer)]).await.ok().unwrap();
        socket.send_text(r#"{"type":"hello"}"#).await;
        assert_eq!(socket.next_json().await["type"], "welcome");
    }
    let refused = upgrade(app.addr, &[("Authorization", &bearer)]).await.err().unwrap();
    assert_eq!(refused.status, 429, "{refused:?}");
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

/// The header may have several lines (RFC 6455, 11.3.4), as behind a proxy that splits lists.
#[actix_web::test]
async fn the_answer_names_the_subprotocol_wherever_in_the_offer_it_is() {
    let app = app().await;
    let name = "Sec-WebSocket-Protocol";
    for offer in [
        &[(name, "chat.v1")][..],
        &[(name, "chat.v2, chat.v1")],
        &[(name, "chat.v2"), (name, "chat.v1")],
        &[(name, "chat.v2"), (name, "chat.v3,chat.v1")],
    ] {
        let socket = WsClient::connect_with(app.addr, "/v1/presenter", offer, None).await;
        let socket = socket.unwrap_or_else(|answer| panic!("{offer:?}: {answer:?}"));
        assert_eq!(socket.upgrade.header(name), Some("chat.v1"), "{offer:?}");
    }
}

#[actix_web::test]
async fn a_page_that_is_not_allowed_opens_no_session() {
    // As an operator may have written it; browsers send it in lower case.
    let origins = ["https://Studio.Example", "capacitor://localhost"];
    let app = spawn_app(|settings| settings.cors.origins = origins.map(Into::into).into()).await;
    let same = format!("http://{}", app.addr);
    for origin in ["https://studio.example", "capacitor://localhost", &same] {
        let answer = upgrade(app.addr, &[("Origin", origin)]).await;
        assert!(answer.is_ok(), "{origin}");
    }
    let headers = [("Origin", "https://studio.example")];
    let read = app.client().await.request("GET", "/v1/rooms/12", &headers, "").await;
    let told = read.header("access-control-allow-origin");
    assert_eq!(
        told,
        Some("https://studio.example"),
        "what it may connect to it may read"
    );
    for origin in [
        "https://evil.example",
        "null",
        "https://studio.example.evil",
        "ionic://localhost",
        "http://localhost",
    ] {
        let refused = upgrade(app.addr, &[("Origin", origin)]).await.err().unwrap();
        assert_eq!(
            (refused.status, &refused.json()["code"]),
            (403, &json!("forbidden")),
            "{origin}"
        );
    }
}

#[actix_web::test]
async fn a_client_that_leaves_right_behind_a_bad_hello_is_told_what_was_wrong() {
    let app = app().await;
    let mut socket = connect(app.addr).await;
    let hello = Frame::new(TEXT, r#"{"type":"hello","token":"forged"}"#);
    let leaves = Frame::new(CLOSE, 1000_u16.to_be_bytes());
    socket.send_bytes(&[hello.encode(), leaves.encode()].concat()).await;
    assert_eq!(end_of(&mut socket).await, ("unauthenticated".into(), 4001));
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
    // More pings than it may miss, which are so many that a machine must be very slow to miss them, each answered.
    let app = spawn_app(|settings| {
        settings.session.keepalive_seconds = 1;
        settings.session.keepalive_missed = 5;
    })
    .await;
    app.go_live(12);
    let mut awake = V1::of(&app, 12, json!({})).await;
    for _ in 0..6 {
        match awake.socket.next().await {
            Incoming::Ping(payload) => awake.socket.send_frame(&Frame::new(PONG, payload)).await,
            other => panic!("{other:?}"),
        }
    }
    send(&app, 1..=1).await;
    assert_eq!(awake.chats(1).await, numbered(1..=1));
}

// ---- tokens that expire --------------------------------------------------------------------------------------------

fn token_for(seconds: i64) -> String {
    let mut claims = claims(12);
    claims["exp"] = json!(system_ms() / 1000 + seconds);
    signed(&claims)
}

#[actix_web::test]
async fn a_session_ends_with_its_token_unless_a_hello_refreshes_it() {
    let (app, other) = (app().await, app().await);
    // With auth.leeway_seconds (5) long enough to be refreshed in time on a busy machine, too; the other session ends meanwhile.
    let (token, expired) = (token_for(5), tokio::time::sleep(Duration::from_millis(11_100)));
    let mut session = V1::of(&app, 12, json!({ "token": token })).await;
    let refresh = json!({ "type": "hello", "token": token_for(3600) }).to_string();
    session.socket.send_text(&refresh).await;
    session.settle().await;
    let mut unrefreshed = V1::of(&other, 12, json!({ "token": token_for(5) })).await;
    assert_eq!(unrefreshed.end().await, ("token_expired".into(), 4002));
    expired.await;
    send(&app, 1..=1).await;
    assert_eq!(session.chats(1).await, numbered(1..=1));
    session.socket.send_text(&hello(13, json!({}))).await;
    assert_eq!(session.end().await, ("unauthenticated".into(), 4001));
}

#[actix_web::test]
async fn a_session_may_outlive_its_token_where_the_settings_say_so() {
    let app = spawn_app(|settings| {
        settings.session.close_on_expiry = false;
        settings.auth.leeway_seconds = 0;
    })
    .await;
    app.go_live(12);
    let mut session = V1::of(&app, 12, json!({ "token": token_for(1) })).await;
    tokio::time::sleep(Duration::from_millis(2200)).await;
    send(&app, 1..=1).await;
    assert_eq!(session.chats(1).await, numbered(1..=1));
}

#[actix_web::test]
async fn a_session_lasts_for_the_leeway_behind_the_end_of_its_token_and_of_the_one_that_refreshes_it() {
    // As by a clock that is half a minute behind.
    let app = spawn_app(|settings| settings.auth.leeway_seconds = 60).await;
    app.go_live(12);
    let mut session = V1::of(&app, 12, json!({ "token": token_for(-30) })).await;
    send(&app, 1..=1).await;
    assert_eq!(session.chats(1).await, numbered(1..=1));
    let refresh = json!({ "type": "hello", "token": token_for(-20) }).to_string();
    session.socket.send_text(&refresh).await;
    session.settle().await;
    send(&app, 2..=2).await;
    assert_eq!(session.chats(1).await, numbered(2..=2));
    drop(session);
    let bearer = format!("Bearer {}", token_for(-30));
    let mut socket = upgrade(app.addr, &[("Authorization", &bearer)]).await.ok().unwrap();
    socket.send_text(r#"{"type":"hello"}"#).await;
    assert_eq!(socket.next_json().await["type"], "welcome");
    socket.send_text(r#"{"type":"ping"}"#).await;
    assert_eq!(socket.next_json().await["type"], "pong");
}

#[actix_web::test]
async fn a_session_begins_in_the_last_second_of_the_leeway_too() {
    let app = spawn_app(|settings| settings.auth.leeway_seconds = 60).await;
    app.go_live(12);
    // `exp` is rounded, to this very second in all of them.
    for fraction in [-0.5, 0.0, 0.4] {
        let first = eventually("a hello and its answer in one second", async || {
            let second = system_ms() / 1000;
            let mut claims = claims(12);
            claims["exp"] = json!((second - 60) as f64 + fraction);
            let mut socket = connect(app.addr).await;
            socket.send_text(&hello(12, json!({ "token": signed(&claims) }))).await;
            let first = socket.next_json().await;
            (system_ms() / 1000 == second).then_some(first)
        })
        .await;
        assert_eq!(first["type"], "welcome", "{fraction}: {first}");
    }
}

#[actix_web::test]
async fn a_token_whose_time_is_over_takes_no_room_over() {
    let app = app().await;
    let mut session = V1::of(&app, 12, json!({})).await;
    let mut late = connect(app.addr).await;
    late.send_text(&hello(12, json!({ "token": token_for(-60) }))).await;
    assert_eq!(end_of(&mut late).await, ("token_expired".into(), 4002));
    send(&app, 1..=1).await;
    assert_eq!(session.chats(1).await, numbered(1..=1));
}

// ---- acks and credit -----------------------------------------------------------------------------------------------

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

/// A client that acknowledges by a timer may do so between its `hello` and its `welcome`, of what it read in another numbering.
#[actix_web::test]
async fn rule_16_an_ack_before_welcome_is_of_nothing_that_was_read_here() {
    let app = spawn_app(|settings| settings.session.client_frames_per_second = 5).await;
    app.go_live(12);
    let mut before = V1::of(&app, 12, json!({})).await;
    send(&app, 1..=3).await;
    assert_eq!(before.chats(1).await, numbered(1..=1));
    before.settle().await;
    leave(&app, before).await;
    let begin = async |seq: u64| {
        let mut socket = connect(app.addr).await;
        let other = json!({ "epoch": "0123456789abcdef", "resume_after": seq });
        let ack = json!({ "type": "ack", "seq": seq }).to_string();
        let both = [hello(12, other), ack].map(|text| Frame::new(TEXT, text).encode());
        socket.send_bytes(&both.concat()).await;
        let welcome = socket.next_json().await;
        assert_eq!(
            (&welcome["type"], &welcome["resumed_from"]),
            (&json!("welcome"), &json!(2))
        );
        V1 { socket, welcome }
    };
    // Above what is sent, within it, and whether that one counted.
    for seq in [999, 3, 3] {
        let mut session = begin(seq).await;
        assert_eq!(
            (
                session.chat().await["seq"].as_u64(),
                session.chat().await["seq"].as_u64()
            ),
            (Some(2), Some(3))
        );
        session.settle().await;
        leave(&app, session).await;
    }
    // Those behind it move on as ever, and are no flood; those that say nothing new are.
    let mut session = begin(999).await;
    assert_eq!(session.chats(2).await, numbered(2..=3));
    for seq in 4..=43 {
        send(&app, seq..=seq).await;
        assert_eq!(session.chats(1).await, numbered(seq..=seq));
    }
    let again = Frame::new(TEXT, r#"{"type":"ack","seq":43}"#).encode();
    for _ in 0..100 {
        session.socket.send_bytes_regardless(&again).await;
    }
    assert_eq!(session.end().await, ("rate_limited".into(), 1008));
}

#[actix_web::test]
async fn rule_14_a_session_that_acknowledges_nothing_is_too_slow() {
    let app = spawn_app(|settings| {
        settings.session.stall_seconds = 1;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    // Held for it, so that both come at once.
    let session = V1::of(&app, 12, json!({})).await;
    leave(&app, session).await;
    send(&app, 1..=2).await;
    let mut session = V1::of(&app, 12, json!({})).await;
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
    for n in 1..=2 {
        assert_eq!(session.chat().await["seq"], n);
    }
}

// ---- drain ---------------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn a_stop_tells_v1_sessions_to_come_back_after_it_and_closes_them_last() {
    let app = spawn_app(|settings| {
        // As long as there are sessions to tell, a tenth of a second each.
        settings.shutdown.drain_seconds = 8;
        settings.shutdown.reconnect_after_ms = 20_000;
        settings.shutdown.reconnect_spread_ms = 1000;
        settings.shutdown.deadline_seconds = 60;
    })
    .await;
    let mut sessions = Vec::new();
    for presenter in 12..92 {
        app.go_live(presenter);
        sessions.push(V1::of(&app, presenter, json!({})).await);
    }
    let mut legacy = app.presenter(200).await;
    let mut sender = app.client().await;
    let addr = app.addr;
    let stopping = tokio::spawn(app.stop());
    // When each is told, and how long it is to stay away.
    let hears = sessions.iter_mut().map(|session| {
        Box::pin(async {
            let frame = session.socket.next_json().await;
            assert_eq!(
                (&frame["type"], &frame["reason"]),
                (&json!("reconnect"), &json!("drain"))
            );
            (Instant::now(), frame["after_ms"].as_u64().unwrap())
        })
    });
    let (first, n, hears) = select_all(hears).await;
    let meanwhile = async {
        let room = 12 + i64::try_from(n).unwrap();
        let answer = post_v1(&mut sender, room, &token(7), "while it drains").await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let ready = get(addr, "/readyz").await;
        assert_eq!((ready.status, &ready.json()["status"]), (503, &json!("not_ready")));
        let refused = [
            upgrade(addr, &[]).await.err().unwrap(),
            WsClient::connect_with(addr, "/chatting", &[], None)
                .await
                .err()
                .unwrap(),
        ];
        for refused in refused {
            assert_eq!(
                (refused.status, refused.header("retry-after")),
                (503, Some("1")),
                "{refused:?}"
            );
        }
    };
    let ((), mut told) = tokio::join!(meanwhile, join_all(hears));
    told.push(first);
    assert!(told.iter().any(|(_, after)| *after != told[0].1), "spread: {told:?}");
    // The first to be told waits for all the others, too.
    assert!(told.iter().any(|(_, after)| *after >= 8000 + 20_000), "{told:?}");
    assert_eq!(sessions[n].chat().await["text"], "while it drains");
    for session in &mut sessions {
        assert_eq!(session.socket.next_close().await, Some(1001));
    }
    assert_eq!(legacy.next_close().await, Some(1001));
    stopping.await.unwrap();
    let ended = Instant::now();
    for (at, after_ms) in told {
        assert!(at + Duration::from_millis(after_ms) >= ended, "{after_ms}");
        assert!(after_ms <= 8000 + 20_000 + 1000, "{after_ms}");
    }
}

// ---- GET /v1/rooms/{presenter_idx} ---------------------------------------------------------------------------------

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
    // Whoever only looks needs no name.
    let nameless = signed(&json!({ "user_idx": 7, "exp": 4_000_000_000_u64 }));
    let headers = [("token", nameless.as_str())];
    let seen = app.client().await.request("GET", "/v1/rooms/12", &headers, "").await;
    assert_eq!((seen.status, seen.json()), (200, answer.json()), "{seen:?}");
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
    // An ack that says nothing new tells that, too.
    for (ack, fanned_out) in [(json!(310), json!(310)), (Value::Null, json!(310))] {
        let ack = json!({ "type": "ack", "seq": 1, "fanned_out": ack }).to_string();
        session.socket.send_text(&ack).await;
        session.settle().await;
        assert_eq!(look("/v1/rooms/12").await.json()["fanned_out"], fanned_out);
    }
    // It is the present session's.
    leave(&app, session).await;
    assert_eq!(
        look("/v1/rooms/12").await.json(),
        json!({ "presenter_idx": 12, "live": true, "session": false, "last_seq": 2, "fanned_out": null, "rules": rules })
    );
    let nobody = look("/v1/rooms/99").await.json();
    assert_eq!((&nobody["live"], &nobody["last_seq"]), (&json!(false), &Value::Null));
    assert_eq!(look("/v1/rooms/x").await.status, 404);
    let without = app.client().await.request("GET", "/v1/rooms/12", &[], "").await;
    assert_eq!(without.status, 401);
}

#[actix_web::test]
async fn a_binary_frame_is_told_that_text_is_wanted() {
    let app = app().await;
    for first_of_many in [false, true] {
        let mut session = V1::of(&app, 12, json!({})).await;
        let mut frame = Frame::new(BINARY, r#"{"type":"ping"}"#);
        frame.fin = !first_of_many;
        session.socket.send_bytes(&frame.encode()).await;
        let error = session.socket.next_json().await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("bad_frame")));
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .contains("binary frame, text is wanted"),
            "{error}"
        );
        assert_eq!(session.socket.next_close().await, Some(4004));
    }
    let counted = app.metric("chat_sessions_ended_total{reason=\"bad_frame\"}").await;
    assert_eq!(counted, Some(2.0), "each is counted");
}

/// RFC 6455, section 4.2.1: 16 bytes in base64.
#[actix_web::test]
async fn a_key_that_is_none_is_refused_before_the_upgrade() {
    let app = app().await;
    for (key, status) in [
        ("dGhlIHNhbXBsZSBub25jZQ==", 101),
        ("AQIDBAUGBwgJCgsMDQ4PEC==", 101),
        ("", 400),
        ("abc", 400),
        ("dGhlIHNhbXBsZSBub25j", 400),
        ("dGhlIHNhbXBsZSBub25jZQ", 400),
        ("dGhlIHNhbXBsZSBub25jZSE=", 400),
    ] {
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Protocol", "chat.v1"),
            ("Sec-WebSocket-Key", key),
        ];
        let answer = app.client().await.request("GET", "/v1/presenter", &headers, "").await;
        assert_eq!(answer.status, status, "{key:?}: {answer:?}");
        if status == 400 {
            assert_eq!(answer.json()["code"], "bad_request");
            assert!(answer.text().contains("Sec-WebSocket-Key"), "{}", answer.text());
        }
    }
}
