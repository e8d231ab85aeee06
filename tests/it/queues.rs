//! Every queue is bounded by its setting, says so in the metrics, and refuses with a name.

use crate::support::{
    app::{TestApp, post_v1, spawn_with_rooms},
    eventually,
    http::{HttpClient, Response},
    room_server::{Mode, RoomServer},
    ws::WsClient,
};

/// Leaves `count` messages waiting in a room whose room check hangs.
async fn leave_waiting(app: &TestApp, presenter: i64, count: usize) {
    for n in 0..count {
        let (addr, token) = (app.addr, app.token(7));
        drop(actix_web::rt::spawn(async move {
            let mut client = HttpClient::connect(addr).await;
            post_v1(&mut client, presenter, &token, "waits").await
        }));
        eventually("it to wait", async || {
            app.room(presenter).await.filter(|room| room.waiting > n)
        })
        .await;
    }
}

fn overloaded(answer: &Response, queue: &str) {
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (503, Some("overloaded")),
        "{answer:?}"
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.json()["detail"], format!("the queue {queue} is full"));
}

#[actix_web::test]
async fn actors_registry_mailbox_bounds_messages_on_their_way() {
    let rooms = RoomServer::start().await;
    rooms.mode_of(13, Mode::Hang).await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.actors.registry.mailbox = 5;
        settings.actors.registry.room_share = 5;
        settings.room.pending_max = 5;
        settings.room.timeout_ms = 60_000;
    })
    .await;
    leave_waiting(&app, 13, 5).await;
    overloaded(&app.post(12, 7, "one too many").await, "registry");
    assert_eq!(app.metric("chat_queue_depth{queue=\"registry\"}").await, Some(5.0));
    assert_eq!(app.metric("chat_queue_capacity{queue=\"registry\"}").await, Some(5.0));
    assert_eq!(
        app.metric("chat_queue_refused_total{queue=\"registry\"}").await,
        Some(1.0)
    );
    assert_eq!(app.metric("chat_refused_total{code=\"overloaded\"}").await, Some(1.0));
}

#[actix_web::test]
async fn a_rooms_share_of_the_registry_leaves_permits_for_others() {
    let rooms = RoomServer::start().await;
    rooms.mode_of(13, Mode::Hang).await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.actors.registry.mailbox = 5;
        settings.actors.registry.room_share = 3;
        settings.room.pending_max = 3;
        settings.room.timeout_ms = 60_000;
    })
    .await;
    let _presenter = app.presenter(12).await;
    leave_waiting(&app, 13, 3).await;
    overloaded(&app.post(13, 7, "one too many").await, "room_share");
    assert_eq!(app.post(12, 7, "elsewhere").await.status, 201);
}

#[actix_web::test]
async fn actors_checker_mailbox_bounds_room_checks() {
    let rooms = RoomServer::start().await;
    rooms.mode(Mode::Hang).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.actors.checker.mailbox = 2;
        settings.room.timeout_ms = 60_000;
    })
    .await;
    leave_waiting(&app, 13, 1).await;
    leave_waiting(&app, 14, 1).await;
    overloaded(&app.post(15, 7, "one too many").await, "checker");
    assert_eq!(app.metric("chat_queue_depth{queue=\"checker\"}").await, Some(2.0));
    // Those that only join a room that is being asked about need no permit.
    leave_waiting(&app, 16, 0).await;
    assert_eq!(app.room(15).await, None, "and the refused room is not kept");
}

#[actix_web::test]
async fn actors_writer_mailbox_bytes_bounds_what_is_not_committed() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| settings.actors.writer.mailbox_bytes = 1 << 20).await;
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "fits").await.status, 201);
    // Answered means given back.
    assert_eq!(app.metric("chat_queue_depth{queue=\"writer\"}").await, Some(0.0));
    assert_eq!(app.metric("chat_queue_depth{queue=\"writer_bytes\"}").await, Some(0.0));
    assert_eq!(
        app.metric("chat_queue_capacity{queue=\"writer_bytes\"}").await,
        Some(1_048_576.0)
    );
}

#[actix_web::test]
async fn session_max_bounds_sockets_and_one_that_is_not_live_makes_room() {
    let rooms = RoomServer::start().await;
    let app = spawn_with_rooms(&rooms, |settings| settings.session.max = 2).await;
    rooms.live(12).await;
    let _live = app.presenter(12).await;
    let mut idle = app.presenter(13).await;
    eventually("the room to be known as not live", async || {
        app.room(13).await.filter(|room| room.live == Some(false))
    })
    .await;
    let refused = WsClient::connect_with(app.addr, "/chatting", &[], None)
        .await
        .err()
        .expect("no third place");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.json()["path"], "/chatting");
    assert_eq!(idle.next_close().await, Some(1000));
    let third = eventually("its place", async || {
        WsClient::connect_with(app.addr, "/chatting", &[], None).await.ok()
    })
    .await;
    drop(third);
    assert!(app.room(12).await.unwrap().session, "the live one stays");
}
