//! Rule 12: a presenter who was there a moment ago is held for, and the room server asked to bring them back.

use std::time::{Duration, Instant};

use crate::support::{
    app::{TestApp, spawn_app, spawn_with_rooms},
    eventually,
    room_server::RoomServer,
};

async fn leave(app: &TestApp, socket: crate::support::ws::WsClient) {
    drop(socket);
    app.without_session(12).await;
}

#[actix_web::test]
async fn rule_12_messages_are_held_for_a_session_that_ended_a_moment_ago_and_come_in_order() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| settings.session.reconnect_request_seconds = 600).await;
    assert_eq!(
        app.post(12, 7, "before the first").await.json()["code"],
        "presenter_disconnected"
    );
    let mut presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "there").await.json()["delivery"], "delivered");
    assert_eq!(presenter.next_json().await["message"], "there");
    leave(&app, presenter).await;
    for n in 0..20 {
        assert_eq!(app.post(12, 7, &n.to_string()).await.json()["delivery"], "held");
    }
    let mut presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "back").await.json()["delivery"], "delivered");
    for n in 0..20 {
        assert_eq!(presenter.next_json().await["message"], n.to_string());
    }
    assert_eq!(presenter.next_json().await["message"], "back");
    for (what, count) in [("delivered", 2.0), ("held", 20.0), ("accepted", 22.0)] {
        let counted = app.metric(&format!("chat_{what}_total")).await;
        assert_eq!(counted, Some(count), "{what}");
    }
    eventually("the room server to be asked", async || {
        rooms.stats().await.reconnects.get("12").copied()
    })
    .await;
    assert_eq!(
        rooms.stats().await.reconnects.get("12"),
        Some(&1),
        "once an interval a room"
    );
}

#[actix_web::test]
async fn rule_12_the_room_server_is_asked_to_bring_back_a_presenter_who_is_held_for() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| settings.session.reconnect_request_seconds = 600).await;
    let presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "there").await.json()["delivery"], "delivered");
    leave(&app, presenter).await;
    assert_eq!(app.post(12, 7, "gone").await.json()["delivery"], "held");
    let asked = eventually("the room server to be asked", async || {
        rooms.stats().await.reconnects.get("12").copied()
    })
    .await;
    assert_eq!(asked, 1);
}

#[actix_web::test]
async fn rule_12_the_room_server_is_not_asked_to_bring_back_a_presenter_who_is_there() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| settings.session.reconnect_request_seconds = 1).await;
    let mut presenter = app.presenter(12).await;
    let since = Instant::now();
    eventually("an interval to be over", async || {
        assert_eq!(app.post(12, 7, "there").await.json()["delivery"], "delivered");
        assert_eq!(presenter.next_json().await["message"], "there");
        (since.elapsed() > Duration::from_secs(1)).then_some(())
    })
    .await;
    let asked = rooms.stats().await.reconnects;
    assert!(asked.is_empty(), "{asked:?}");
    leave(&app, presenter).await;
    assert_eq!(app.post(12, 7, "gone").await.json()["delivery"], "held");
    let asked = eventually("the room server to be asked", async || {
        rooms.stats().await.reconnects.get("12").copied()
    })
    .await;
    assert_eq!(asked, 1);
}

#[actix_web::test]
async fn that_a_presenter_is_to_reconnect_is_asked_for_where_the_settings_say() {
    let (rooms, elsewhere) = (RoomServer::start().await, RoomServer::start().await);
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.reconnect_url = format!("{}/reconnect", elsewhere.base_url());
    })
    .await;
    assert_eq!(app.post(12, 7, "hi").await.json()["code"], "presenter_disconnected");
    eventually("the other one to be asked", async || {
        elsewhere.stats().await.reconnects.get("12").copied()
    })
    .await;
    assert_eq!(elsewhere.stats().await.all_checks(), 0);
    let stats = rooms.stats().await;
    assert!(stats.checks_of(12) > 0 && stats.reconnects.is_empty(), "{stats:?}");
}

#[actix_web::test]
async fn whether_the_room_server_took_a_request_to_reconnect_is_counted() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    // There, and where nobody listens.
    for (url, outcome) in [("", "ok"), ("http://127.0.0.1:1/", "error")] {
        let app = spawn_with_rooms(&rooms, |settings| settings.room.reconnect_url = url.into()).await;
        assert_eq!(app.post(12, 7, "hi").await.json()["code"], "presenter_disconnected");
        eventually(format_args!("the outcome {outcome}"), async || {
            let series = format!("chat_reconnect_requests_total{{outcome=\"{outcome}\"}}");
            (app.metric(&series).await == Some(1.0)).then_some(())
        })
        .await;
    }
}

#[actix_web::test]
async fn rule_12_the_hold_ends_when_nobody_came_and_the_room_server_is_asked_again_and_again() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.session.grace_seconds = 1;
        settings.session.reconnect_request_seconds = 1;
    })
    .await;
    let presenter = app.presenter(12).await;
    let left_at = Instant::now();
    leave(&app, presenter).await;
    let (mut held, mut first_answer) = (0, None);
    eventually("the hold to end", async || {
        let answer = app.post(12, 7, &held.to_string()).await.json();
        first_answer.get_or_insert_with(|| left_at.elapsed());
        held += i32::from(answer["delivery"] == "held");
        (answer["code"] == "presenter_disconnected").then_some(())
    })
    .await;
    let grace = Duration::from_secs(1);
    assert!(left_at.elapsed() >= grace, "{held}");
    // A slow machine may be too late with the first one.
    assert!(held > 0 || first_answer >= Some(grace), "{first_answer:?}");
    let asked = eventually("the room server to be asked a second time", async || {
        app.post(12, 7, "anyone?").await;
        let asked = rooms.stats().await.reconnects.get("12").copied();
        asked.filter(|asked| *asked >= 2)
    })
    .await;
    let intervals = left_at.elapsed().as_secs();
    assert!(asked <= 1 + intervals, "once an interval: {asked} in {intervals} s");
    // What was held is never withdrawn.
    let mut presenter = app.presenter(12).await;
    for n in 0..held {
        assert_eq!(presenter.next_json().await["message"], n.to_string());
    }
}

#[actix_web::test]
async fn rule_12_a_room_server_that_cannot_bring_presenters_back_is_not_asked_to() {
    let rooms = RoomServer::start().await;
    for room in [12, 13] {
        rooms.live(room).await;
    }
    let app = spawn_with_rooms(&rooms, |settings| settings.room.reconnect_url = "off".into()).await;
    // Who is asked for 13 has been asked whatever there was to be asked before, for 12.
    for room in [12, 13] {
        assert_eq!(
            app.post(room, 7, "anyone?").await.json()["code"],
            "presenter_disconnected"
        );
    }
    for series in [
        "chat_queue_depth{queue=\"reconnects\"}",
        "chat_reconnect_requests_total{outcome=\"ok\"}",
        "chat_reconnect_requests_total{outcome=\"error\"}",
    ] {
        assert_eq!(app.metric(series).await, Some(0.0), "{series}");
    }
}

#[actix_web::test]
async fn rule_12_what_the_ring_cannot_hold_is_refused() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.ring_events = 5;
        settings.session.credit_events = 2;
    })
    .await;
    let refused = async |text: &str| {
        assert_eq!(app.post(12, 7, text).await.json()["code"], "presenter_disconnected");
        app.metric("chat_queue_refused_total{queue=\"ring\"}").await
    };
    assert_eq!(refused("before the first").await, Some(0.0), "no ring is full");
    let presenter = app.presenter(12).await;
    leave(&app, presenter).await;
    for n in 0..5 {
        assert_eq!(app.post(12, 7, &n.to_string()).await.status, 201);
    }
    assert_eq!(
        refused("one too many").await,
        Some(1.0),
        "operators see which queue was full"
    );
    let mut presenter = app.presenter(12).await;
    for n in 0..5 {
        assert_eq!(presenter.next_json().await["message"], n.to_string());
    }
}

#[actix_web::test]
async fn rule_13_the_end_of_a_broadcast_stops_holds_and_a_later_one_does_not_get_them() {
    let rooms = RoomServer::start().await;
    rooms.live_with(12, r#"{"roomIdx":1}"#).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.live_ttl_ms = 20;
        settings.room.not_live_ttl_ms = 20;
    })
    .await;
    let presenter = app.presenter(12).await;
    leave(&app, presenter).await;
    assert_eq!(app.post(12, 7, "held").await.json()["delivery"], "held");
    rooms.ended(12).await;
    eventually("the end", async || {
        (app.post(12, 7, "late").await.json()["code"] == "broadcast_ended").then_some(())
    })
    .await;
    rooms.live_with(12, r#"{"roomIdx":2}"#).await;
    let mut presenter = app.presenter(12).await;
    eventually("the next broadcast", async || {
        (app.post(12, 7, "new").await.status == 201).then_some(())
    })
    .await;
    assert_eq!(presenter.next_json().await["message"], "new");
    let log = app.sqlite_log(12).await;
    assert!(
        log.iter().any(|(_, text)| text == "held"),
        "the log has what was accepted: {log:?}"
    );
}

/// The old dialect has no word for a gap, and what is held is bounded by the ring.
#[actix_web::test]
async fn rule_12_all_that_is_held_comes_to_a_legacy_session_whatever_a_v1_session_is_sent_again() {
    let app = spawn_app(|settings| {
        settings.session.resume_max = 5;
        settings.room.ring_events = 16;
    })
    .await;
    app.go_live(12);
    let presenter = app.presenter(12).await;
    leave(&app, presenter).await;
    for n in 0..12 {
        assert_eq!(app.post(12, 7, &n.to_string()).await.json()["delivery"], "held");
    }
    let mut presenter = app.presenter(12).await;
    for n in 0..12 {
        assert_eq!(presenter.next_json().await["message"], n.to_string());
    }
}
