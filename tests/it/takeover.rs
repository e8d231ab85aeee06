//! Sessions that are taken over, held for, not live, stalled or gone (rules 10 to 15), in dialect v1.

use std::{
    cell::Cell,
    pin::pin,
    time::{Duration, Instant},
};

use chatting_server::settings::Settings;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    limits::paced,
    support::{
        app::{TestApp, spawn_app, spawn_with_rooms},
        eventually,
        presenter::{V1, app, connect, end_of, hello, leave, numbered, send, token, upgrade},
        proxy::Proxy,
        room_server::RoomServer,
        within,
        ws::{BINARY, Frame, Incoming, PING, TEXT, WsClient},
    },
};

// ---- takeover ------------------------------------------------------------------------------------------------------

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
async fn rule_15_a_legacy_session_whose_successor_leaves_is_closed_so_that_its_client_begins_anew() {
    let app = spawn_app(|settings| {
        settings.session.detached_seconds = 600;
        settings.session.grace_seconds = 600;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    let mut phone = app.presenter(12).await;
    let mut studio = V1::of(&app, 12, json!({})).await;
    send(&app, 1..=1).await;
    assert_eq!(studio.chats(1).await, numbered(1..=1));
    // As long as somebody has the room it is left open.
    phone.send_text("ping").await;
    assert_eq!(phone.next_text().await, "pong");
    leave(&app, studio).await;
    send(&app, 2..=2).await;
    assert_eq!(phone.next_close().await, Some(1000));
    let mut phone = app.presenter(12).await;
    send(&app, 3..=3).await;
    for text in ["2", "3"] {
        assert_eq!(phone.next_json().await["message"], text);
    }
}

#[actix_web::test]
async fn rule_15_a_storm_of_reconnects_is_damped_before_the_upgrade() {
    let app = spawn_app(|settings| {
        settings.session.reconnect_burst = 5;
        settings.session.reconnect_per_minute = 1;
    })
    .await;
    let bearer = format!("Bearer {}", token(12));
    let (mut answers, began) = (Vec::new(), Instant::now());
    for _ in 0..50 {
        answers.push(upgrade(app.addr, &[("Authorization", &bearer)]).await);
    }
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(refused.len() >= 40, "{} of 50 were refused", refused.len());
    for answer in &refused {
        paced(answer, "5", 60, began);
    }
    // Operators see each of them, and those that come.
    let counted = async || app.metric("chat_sessions_refused_total{reason=\"rate_limited\"}").await;
    let storm = refused.len() as f64;
    assert_eq!(counted().await, Some(storm));
    // Without the header it is the session's to refuse, and another presenter's storm is not ours.
    let mut socket = connect(app.addr).await;
    socket.send_text(&hello(12, json!({}))).await;
    assert_eq!(end_of(&mut socket).await, ("rate_limited".into(), 1008));
    assert_eq!(counted().await, Some(storm + 1.0));
    let _ = V1::of(&app, 13, json!({})).await;
    let legacy = WsClient::connect_with(app.addr, "/chatting", &[("token", &token(12))], None).await;
    assert_eq!(legacy.err().map(|answer| answer.status), Some(429));
    assert_eq!(counted().await, Some(storm + 2.0));
}

#[actix_web::test]
async fn rule_15_a_legacy_upgrade_that_names_its_presenter_pays_for_one_start_and_no_more() {
    let app = spawn_app(|settings| {
        settings.session.reconnect_burst = 3;
        settings.session.reconnect_per_minute = 1;
    })
    .await;
    app.go_live(12);
    let mut socket = WsClient::connect_with(app.addr, "/chatting", &[("token", &token(12))], None)
        .await
        .unwrap_or_else(|response| panic!("no upgrade: {response:?}"));
    // The upgrade was counted for the first.
    for _ in 0..3 {
        app.start(&mut socket, 12).await;
    }
    let start = json!({ "id": "start", "token": token(12) });
    socket.send_text(&start.to_string()).await;
    assert_eq!(socket.next_close().await, Some(1000));
}

// ---- hold, end of a broadcast, rooms that are not live -------------------------------------------------------------

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

#[actix_web::test]
async fn rule_10_when_sessions_are_full_one_without_a_live_room_gives_way() {
    let app = spawn_app(|settings| {
        settings.session.max = 2;
        // What ends the silent one is that another wants its place, however slow the machine.
        settings.session.hello_seconds = 300;
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

// ---- stalls --------------------------------------------------------------------------------------------------------

/// A server on which a presenter that reads nothing soon has more waiting than its socket takes, of `events` long messages.
async fn spawn_to_stall(events: usize, change: impl FnOnce(&mut Settings)) -> TestApp {
    let app = spawn_app(|settings| {
        settings.session.stall_seconds = 2;
        settings.session.grace_seconds = 600;
        settings.room.sweep_ms = 20;
        settings.session.credit_events = events;
        // What it has credit for fills its socket, and the kernel does not cut it.
        settings.server.send_buffer_bytes = 4096;
        settings.server.tcp_user_timeout_seconds = 600;
        change(settings);
    })
    .await;
    app.go_live(12);
    app
}

/// A presenter of room 12 whose socket takes little before it is read.
async fn little_at_once(app: &TestApp) -> V1 {
    let headers = [("Sec-WebSocket-Protocol", "chat.v1")];
    let mut socket = WsClient::connect_with(app.addr, "/v1/presenter", &headers, Some(4096))
        .await
        .ok()
        .unwrap();
    socket.send_text(&hello(12, json!({}))).await;
    let welcome = socket.next_json().await;
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    V1 { socket, welcome }
}

/// Sends so many long messages to room 12.
async fn send_long(app: &TestApp, count: usize) {
    let long = "x".repeat(2000);
    for _ in 0..count {
        assert_eq!(app.post(12, 7, &long).await.status, 201);
    }
}

/// Has so many long messages held for the presenter of room 12.
async fn hold_long(app: &TestApp, count: usize) {
    let session = V1::of(app, 12, json!({})).await;
    leave(app, session).await;
    send_long(app, count).await;
}

#[actix_web::test]
async fn a_presenter_that_stops_reading_is_closed_in_time_and_resumes() {
    let app = spawn_to_stall(64, |_| {}).await;
    let _stalled = little_at_once(&app).await;
    send_long(&app, 100).await;
    eventually("the stalled session to be ended", async || {
        let ended = app.metric("chat_sessions_ended_total{reason=\"too_slow\"}").await;
        (ended == Some(1.0)).then_some(())
    })
    .await;
    app.without_sockets().await;
    // It acknowledged nothing.
    let mut session = V1::of(&app, 12, json!({})).await;
    assert_eq!(session.welcome["resumed_from"], 1);
    for seq in 1..=100 {
        assert_eq!(session.chat().await["seq"], seq);
        session.ack(seq).await;
    }
}

#[actix_web::test]
async fn rule_14_a_presenter_that_reads_slowly_and_acknowledges_all_the_time_is_not_too_slow() {
    // One that makes no progress for so long on a busy machine is none that reads slowly.
    let app = spawn_to_stall(256, |settings| settings.session.stall_seconds = 4).await;
    hold_long(&app, 100).await;
    // All of it is given to its socket in one piece, which it takes twice the time of a stall to read.
    let mut session = little_at_once(&app).await;
    for seq in 1..=100 {
        assert_eq!(session.chat().await["seq"], seq);
        session.ack(seq).await;
        tokio::time::sleep(Duration::from_millis(90)).await;
    }
    session.settle().await;
    let ended = app.metric("chat_sessions_ended_total{reason=\"too_slow\"}").await;
    assert_eq!(ended, Some(0.0));
}

#[actix_web::test]
async fn what_a_presenter_says_is_heard_while_its_socket_takes_nothing() {
    let app = spawn_to_stall(256, |settings| settings.session.stall_seconds = 300).await;
    hold_long(&app, 100).await;
    let mut session = little_at_once(&app).await;
    for seq in 1..=5 {
        assert_eq!(session.chat().await["seq"], seq);
    }
    let ack = json!({ "type": "ack", "seq": 5, "fanned_out": 312 });
    session.socket.send_text(&ack.to_string()).await;
    let reached = async || {
        let mut client = app.client().await;
        let room = client
            .request("GET", "/v1/rooms/12", &[("token", &app.token(7))], "")
            .await;
        (room.json()["fanned_out"] == 312).then_some(())
    };
    eventually("the ack to be heard", reached).await;
    // An answer comes behind what waits already, and what is new behind that.
    session.socket.send_text(r#"{"type":"ping"}"#).await;
    send_long(&app, 1).await;
    for seq in 6..=100 {
        assert_eq!(session.chat().await["seq"], seq);
    }
    assert_eq!(session.socket.next_json().await["type"], "pong");
    assert_eq!(session.chat().await["seq"], 101);
    // What it acknowledges after all of that counts as well: it has credit for more than it had at once.
    session.ack(101).await;
    send_long(&app, 250).await;
    assert_eq!(session.chat().await["seq"], 102);
    // It goes, and need not read anything for that.
    session.socket.send_close(1000, "").await;
    app.without_sockets().await;
}

#[actix_web::test]
async fn rule_14_acks_of_what_waits_behind_a_full_socket_are_above_what_was_sent_and_end_the_session() {
    let app = spawn_to_stall(64, |settings| settings.session.stall_seconds = 300).await;
    hold_long(&app, 300).await;
    let given = async || app.metric("chat_frames_total").await.unwrap();
    let before = given().await;
    let mut session = little_at_once(&app).await;
    // All that it has credit for was given to its socket, which has yet to take most of that.
    assert_eq!(session.chat().await["seq"], 1);
    for seq in (64..=256).step_by(64) {
        session.ack(seq).await;
    }
    eventually("the session to be told", async || {
        let ended = app.metric("chat_sessions_ended_total{reason=\"bad_frame\"}").await;
        (ended == Some(1.0)).then_some(())
    })
    .await;
    // The first ack was of what was sent, and so gave credit, once.
    let given = given().await - before;
    assert!(given <= 128.0, "{given} events");
    for seq in 2..=64 {
        assert_eq!(session.chat().await["seq"], seq);
    }
    assert_eq!(session.end().await, ("bad_frame".into(), 4004));
}

#[actix_web::test]
async fn a_presenter_that_reads_slowly_gets_all_that_was_sent_and_why_it_was_closed() {
    let app = spawn_to_stall(256, |settings| {
        settings.session.stall_seconds = 300;
        // That is for connections between requests.
        (
            settings.server.keep_alive_seconds,
            settings.server.client_request_seconds,
        ) = (0, 1);
    })
    .await;
    hold_long(&app, 100).await;
    let mut session = little_at_once(&app).await;
    assert_eq!(session.chat().await["seq"], 1);
    // It is closed for this while its socket has yet to take most of the others, which takes it some seconds.
    session.socket.send_frame(&Frame::new(BINARY, vec![0])).await;
    for seq in 2..=100 {
        assert_eq!(session.chat().await["seq"], seq);
        if seq % 25 == 0 {
            session.ack(seq).await;
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(session.end().await, ("bad_frame".into(), 4004));
}

#[actix_web::test]
async fn a_presenter_that_leaves_and_reads_slowly_gets_all_that_was_sent_and_its_close_back() {
    let app = spawn_to_stall(256, |settings| settings.session.stall_seconds = 300).await;
    hold_long(&app, 50).await;
    let mut session = little_at_once(&app).await;
    session.socket.send_close(1000, "").await;
    for seq in 1..=50 {
        assert_eq!(session.chat().await["seq"], seq);
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(session.socket.next_close().await, Some(1000));
}

#[actix_web::test]
async fn a_presenter_that_is_closed_then_leaves_and_reads_slowly_gets_all_that_was_sent_and_why_it_was_closed() {
    let app = spawn_to_stall(256, |settings| settings.session.stall_seconds = 300).await;
    hold_long(&app, 50).await;
    let mut session = little_at_once(&app).await;
    session.socket.send_frame(&Frame::new(BINARY, vec![0])).await;
    eventually("it to be closed", async || {
        let closed = app.metric("chat_sessions_ended_total{reason=\"bad_frame\"}").await;
        (closed == Some(1.0)).then_some(())
    })
    .await;
    session.socket.send_close(1000, "").await;
    for seq in 1..=50 {
        assert_eq!(session.chat().await["seq"], seq);
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(session.end().await, ("bad_frame".into(), 4004));
}

#[actix_web::test]
async fn a_presenter_that_was_closed_and_reads_nothing_is_gone_in_time_whatever_it_says() {
    // The metrics are no connection of the server's then.
    let app = spawn_to_stall(256, |settings| settings.ops.bind = "127.0.0.1:0".into()).await;
    hold_long(&app, 100).await;
    let connections = async || app.metric("chat_queue_depth{queue=\"connections\"}").await.unwrap();
    let ping = Frame::new(PING, "").encode();
    for says_something in [false, true] {
        let mut session = little_at_once(&app).await;
        assert_eq!(session.chat().await["seq"], 1);
        eventually("it to be counted, and no other", async || {
            (connections().await == 1.0).then_some(())
        })
        .await;
        session.socket.send_frame(&Frame::new(BINARY, vec![0])).await;
        eventually("its connection to end", async || {
            if says_something {
                session.socket.send_bytes_regardless(&ping).await;
            }
            (connections().await == 0.0).then_some(())
        })
        .await;
    }
}

#[actix_web::test]
async fn pings_without_end_from_a_presenter_that_reads_nothing_are_soon_not_read_any_more() {
    let app = spawn_to_stall(256, |settings| {
        settings.session.stall_seconds = 300;
        settings.session.client_frames_per_second = 100_000;
    })
    .await;
    hold_long(&app, 100).await;
    let mut session = little_at_once(&app).await;
    let pings = Frame::new(PING, vec![0; 125]).encode().repeat(100);
    let taken = Cell::new(0);
    let mut send = pin!(async {
        while taken.get() < 20_000_000 {
            session.socket.send_bytes(&pings).await;
            taken.set(taken.get() + pings.len());
        }
    });
    // What the kernel holds of it counts here, too: some megabytes on loopback. A busy machine may stand still for a second, and not for
    // three one after the other.
    let (mut before, mut still) = (0, 0);
    while still < 3 {
        let ended = timeout(Duration::from_secs(1), &mut send).await;
        assert!(ended.is_err(), "{} bytes were taken", taken.get());
        still = if taken.get() == before { still + 1 } else { 0 };
        before = taken.get();
    }
    // Not because it was cut.
    assert_eq!(app.metric("chat_sessions").await, Some(1.0));
}

#[actix_web::test]
async fn a_hello_that_dribbles_in_and_a_handshake_that_never_ends_are_cut_in_time() {
    let app = spawn_app(|settings| {
        settings.session.hello_seconds = 1;
        settings.server.client_request_seconds = 4;
    })
    .await;
    // Before the upgrade: the session's time begins before we hear of it.
    let began = Instant::now();
    let mut socket = connect(app.addr).await;
    let hello = Frame::new(TEXT, hello(12, json!({}))).encode();
    let mut sent = 0;
    // A byte now and then keeps no session waiting longer than its time.
    let end = loop {
        match timeout(Duration::from_millis(20), socket.next()).await {
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
    let began = Instant::now();
    let mut stream = tokio::net::TcpStream::connect(app.addr).await.unwrap();
    let head = b"GET /v1/presenter HTTP/1.1\r\nHost: chat\r\nUpgrade: websocket\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
    let _ = within("the handshake to be cut", read).await;
    // The framework's clock may be behind.
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
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
        settings.session.keepalive_missed = 3;
    })
    .await;
    app.go_live(12);
    let link = Proxy::start(app.addr).await;
    let mut session = V1::at(link.address(), 12, json!({})).await;
    // It reads, and so answers pings, from its first moment on.
    let ((), seen) = tokio::join!(send(&app, 1..=1), session.chats(1));
    assert_eq!(seen, numbered(1..=1));
    session.settle().await;
    // Nothing passes any more, and nobody tells: as when a phone is out of reach.
    link.stall();
    app.without_sockets().await;
    send(&app, 2..=3).await;
    let mut elsewhere = V1::of(&app, 12, json!({})).await;
    assert_eq!(elsewhere.chats(2).await, numbered(2..=3));
}
