//! What the original server gets wrong (the end of docs/LEGACY.md). Each test would fail on it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chatting_actors::types::PresenterIdx;
use chatting_server::store::MongoStore;

use crate::support::{
    app::{post_v1, spawn_app, spawn_with_rooms, use_mongodb},
    eventually,
    room_log::stored,
    room_server::{Mode, RoomServer},
    within,
};

fn body(presenter: i64, text: &str) -> String {
    serde_json::json!({ "presenterIdx": presenter, "userType": "viewer", "textMessage": text }).to_string()
}

#[actix_web::test]
async fn fault_1_every_message_is_a_document_of_its_own() {
    let app = spawn_app(use_mongodb).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let clients = (0..8).map(|user| {
        let token = app.token(100 + user);
        let addr = app.addr;
        actix_web::rt::spawn(async move {
            let mut client = crate::support::http::HttpClient::connect(addr).await;
            for n in 0..25 {
                let answer = post_v1(&mut client, 12, &token, &format!("{user}-{n}")).await;
                assert_eq!(answer.status, 201, "{answer:?}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 200 {
        seen.push(presenter.next_json().await["message"].as_str().unwrap().to_owned());
    }
    let store = MongoStore::new(&chatting_server::store::mongo::MongoSettings {
        uri: app.settings.mongodb.uri.expose().to_owned(),
        database: app.settings.mongodb.database.clone(),
        connect_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(10),
        connections: 10,
    })
    .await
    .unwrap();
    let room = PresenterIdx::new(12).unwrap();
    let log = eventually("200 documents", async || {
        let log = stored(&store, room).await;
        (log.len() >= 200).then_some(log)
    })
    .await;
    assert_eq!(log.len(), 200);
    assert_eq!(log.iter().map(|event| event.id).collect::<BTreeSet<_>>().len(), 200);
    assert_eq!(
        log.iter().map(|event| event.seq.0).collect::<Vec<_>>(),
        (1..=200).collect::<Vec<_>>()
    );
    assert_eq!(
        log.iter()
            .map(|event| event.chat.text.as_str().to_owned())
            .collect::<Vec<_>>(),
        seen
    );
}

#[actix_web::test]
async fn fault_2_thirty_two_senders_at_once_lose_nothing() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let senders: Vec<_> = (0..32)
        .map(|user| {
            let (addr, token) = (app.addr, app.token(100 + user));
            actix_web::rt::spawn(async move {
                let mut client = crate::support::http::HttpClient::connect(addr).await;
                let mut accepted = 0;
                for n in 0..25 {
                    let text = body(12, &format!("{user}-{n}"));
                    let answer = client.post_json("/send/message", &[("token", &token)], text).await;
                    accepted += usize::from(answer.status == 200);
                }
                accepted
            })
        })
        .collect();
    let mut seen = Vec::new();
    while seen.len() < 800 {
        let frame = presenter.next_json().await;
        assert_eq!(frame["id"], "sendChatting");
        seen.push(frame["message"].as_str().unwrap().to_owned());
    }
    let mut accepted = 0;
    for sender in senders {
        accepted += sender.await.unwrap();
    }
    assert_eq!(accepted, 800);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 800);
    let log = app.sqlite_log(12).await;
    assert_eq!(log.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), seen);
}

#[actix_web::test]
async fn fault_3_checks_at_the_same_time_each_ask_about_their_own_presenter() {
    let rooms = RoomServer::start().await;
    for presenter in (0..100).step_by(2) {
        rooms.live(presenter).await;
    }
    rooms.mode(Mode::Slow { milliseconds: 50 }).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.live_ttl_ms = 600_000;
        settings.room.not_live_ttl_ms = 600_000;
    })
    .await;
    let asked: Vec<_> = (0..100)
        .map(|presenter| {
            let (addr, token) = (app.addr, app.token(7));
            actix_web::rt::spawn(async move {
                let mut client = crate::support::http::HttpClient::connect(addr).await;
                (
                    presenter,
                    post_v1(&mut client, presenter, &token, "hi").await.json()["code"].clone(),
                )
            })
        })
        .collect();
    for one in asked {
        let (presenter, code) = one.await.unwrap();
        let expected = if presenter % 2 == 0 {
            "presenter_disconnected"
        } else {
            "broadcast_ended"
        };
        assert_eq!(code, expected, "presenter {presenter}");
    }
    let stats = rooms.stats().await;
    assert_eq!(stats.bad_requests, Vec::<String>::new());
    assert!((0..100).all(|presenter| stats.checks_of(presenter) == 1), "{stats:?}");
}

#[actix_web::test]
async fn fault_4_an_ended_broadcast_with_an_open_socket_accepts_nothing() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| settings.room.live_ttl_ms = 50).await;
    let mut presenter = app.presenter(12).await;
    assert_eq!(app.send(7, &body(12, "one")).await.status, 200);
    assert_eq!(presenter.next_json().await["message"], "one");
    rooms.ended(12).await;
    let refused = eventually("the end to be noticed", async || {
        let answer = app.send(7, &body(12, "late")).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["message"], "해당 스트리머는 현재 방송 중이지 않습니다.");
}

#[actix_web::test]
async fn fault_5_a_hung_room_server_hangs_no_sender_beyond_the_timeout_and_no_other_room() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    rooms.mode_of(13, Mode::Hang).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.timeout_ms = 3000;
        settings.room.live_ttl_ms = 600_000;
    })
    .await;
    let _presenter = app.presenter(12).await;
    let hung: Vec<_> = (0..20)
        .map(|user| {
            let (addr, token) = (app.addr, app.token(user));
            actix_web::rt::spawn(async move {
                let began = Instant::now();
                let mut client = crate::support::http::HttpClient::connect(addr).await;
                (post_v1(&mut client, 13, &token, "hi").await, began.elapsed())
            })
        })
        .collect();
    eventually("the lookup to hang", async || {
        (rooms.stats().await.checks_of(13) > 0).then_some(())
    })
    .await;
    for n in 0..20 {
        assert_eq!(
            app.post(12, 7, &n.to_string()).await.status,
            201,
            "the other room goes on"
        );
    }
    for one in hung {
        let (answer, took) = one.await.unwrap();
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (503, Some("room_server_unavailable"))
        );
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(took < Duration::from_secs(20), "{took:?}");
    }
}

#[actix_web::test]
async fn fault_7_a_rejected_token_registers_nobody() {
    let app = spawn_app(|_| {}).await;
    app.go_live(0);
    let mut socket = app.connect().await;
    socket.send_text(r#"{"id":"start","token":"forged"}"#).await;
    assert_eq!(socket.next_json().await["id"], "tokenException");
    assert_eq!(socket.next_close().await, Some(1000));
    let answer = app.post(0, 7, "hi").await;
    assert_eq!(answer.json()["code"], "presenter_disconnected");
    assert!(!app.room(0).await.is_some_and(|room| room.session));
}

#[actix_web::test]
async fn fault_8_forward_headers_are_believed_from_nobody_by_default() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let forward = [
        ("x-forward-userIdx", "12"),
        ("x-forward-email", "e"),
        ("x-forward-nickname", "fake"),
    ];
    let mut client = app.client().await;
    let answer = client.post_json("/send/message", &forward, body(12, "spoofed")).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["message"], "Token null");

    let gateway = spawn_app(|settings| {
        settings.auth.mode = chatting_server::settings::AuthMode::Gateway;
        settings.auth.trusted_proxies = vec!["192.0.2.1".into()];
    })
    .await;
    let mut client = gateway.client().await;
    let answer = client.post_json("/send/message", &forward, body(12, "spoofed")).await;
    assert_eq!(answer.status, 403);
    assert_eq!(gateway.metric("chat_forward_refused_total").await, Some(1.0));
}

#[actix_web::test]
async fn fault_9_a_peer_that_answers_no_ping_is_not_connected_for_long() {
    let app = spawn_app(|settings| {
        settings.session.keepalive_seconds = 1;
        // Five, so that whoever answers is not taken for dead on a busy machine.
        settings.session.keepalive_missed = 5;
        settings.session.grace_seconds = 0;
    })
    .await;
    app.go_live(12);
    // `next` answers no ping, as a dead peer would not.
    let mut dead = app.presenter(12).await;
    app.go_live(13);
    let mut alive = app.presenter(13).await;
    // One that answers is kept: waiting for a text answers the pings before it.
    let alive = actix_web::rt::spawn(async move { alive.next_json().await });
    let pinged = Arc::new(AtomicUsize::new(0));
    within("the dead session to end", async {
        loop {
            match dead.next().await {
                crate::support::ws::Incoming::Ping(_) => pinged.fetch_add(1, Ordering::Relaxed),
                crate::support::ws::Incoming::End | crate::support::ws::Incoming::Reset => break,
                other => panic!("{other:?}"),
            };
        }
    })
    .await;
    assert!(pinged.load(Ordering::Relaxed) >= 5);
    eventually("the room to be without a session", async || {
        let session = app.room(12).await.is_some_and(|room| room.session);
        (!session).then_some(())
    })
    .await;
    assert_eq!(app.post(12, 7, "hi").await.json()["code"], "presenter_disconnected");
    assert_eq!(app.post(13, 7, "still there").await.json()["delivery"], "delivered");
    let missed = app
        .metric(r#"chat_sessions_ended_total{reason="keepalive_missed"}"#)
        .await;
    assert_eq!(missed, Some(1.0));
    assert_eq!(alive.await.unwrap()["message"], "still there");
}
