//! The room server: what counts as its answer, how often it is asked, and what happens without one (rules 8 and 9).

use std::time::{Duration, Instant};

use chatting_server::settings::OnError;

use crate::support::{
    app::spawn_with_rooms,
    eventually,
    room_server::{Mode, RoomServer},
};

#[actix_web::test]
async fn rule_09_only_a_200_with_a_boolean_alive_is_an_answer() {
    let rooms = RoomServer::start().await;
    let app = spawn_with_rooms(&rooms, |settings| settings.room.timeout_ms = 500).await;
    let modes = [
        Mode::Hang,
        Mode::Status(500),
        Mode::Status(404),
        // Both say that it is alive, as 500 and 404 do.
        Mode::Status(201),
        Mode::Status(204),
        Mode::Garbage,
        Mode::NoData,
        Mode::NotBoolean,
        Mode::Redirect,
        Mode::Huge,
        Mode::Cut,
        Mode::NotHttp,
    ];
    for (presenter, mode) in (100..).zip(modes) {
        rooms.live(presenter).await;
        rooms.mode_of(presenter, mode).await;
        let answer = app.post(presenter, 7, "hi").await;
        assert_eq!(answer.status, 503, "{mode}: {answer:?}");
        assert_eq!(answer.json()["code"], "room_server_unavailable", "{mode}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{mode}");
        let body = format!(r#"{{"presenterIdx":{presenter},"userType":"viewer","textMessage":"hi"}}"#);
        let legacy = app.send(7, &body).await;
        assert_eq!(
            (legacy.status, legacy.json()["status"].as_u64()),
            (503, Some(503)),
            "{mode}"
        );
    }
    assert_eq!(rooms.stats().await.redirects_followed, 0);
    // Both messages to the first, however slow the others were.
    assert!(app.metric("chat_room_checks_total{outcome=\"timeout\"}").await >= Some(2.0));
    rooms.live(12).await;
    let _presenter = app.presenter(12).await;
    // In the half second there is for a verdict, which may be short.
    eventually("the others to go on", async || {
        (app.post(12, 7, "the others go on").await.status == 201).then_some(())
    })
    .await;
}

#[actix_web::test]
async fn rule_09_an_answer_that_is_longer_than_room_max_answer_bytes_is_none_however_good() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let padding = serde_json::json!({ "padding": "x".repeat(300) });
    rooms.live_with(13, &padding.to_string()).await;
    let app = spawn_with_rooms(&rooms, |settings| settings.room.max_answer_bytes = 256).await;
    for (presenter, code) in [(12, "presenter_disconnected"), (13, "room_server_unavailable")] {
        let answer = app.post(presenter, 7, "hi").await;
        assert_eq!(answer.json()["code"], code, "{presenter}");
    }
}

#[actix_web::test]
async fn rule_08_one_lookup_is_under_way_a_presenter_and_all_that_wait_are_settled_in_their_order() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    rooms.mode(Mode::Slow { milliseconds: 3000 }).await;
    let app = spawn_with_rooms(&rooms, |settings| settings.room.live_ttl_ms = 600_000).await;
    let mut presenter = app.presenter(12).await;
    // Each is sent when the one before it waits for the verdict, or has its answer where that came meanwhile.
    let mut waiting: Vec<actix_web::rt::task::JoinHandle<_>> = Vec::new();
    for n in 0..10_usize {
        let (addr, token) = (app.addr, app.token(7));
        waiting.push(actix_web::rt::spawn(async move {
            let mut client = crate::support::http::HttpClient::connect(addr).await;
            crate::support::app::post_v1(&mut client, 12, &token, &n.to_string()).await
        }));
        eventually("it to wait or to be answered", async || {
            let room = app.room(12).await?;
            (room.waiting > n || waiting[n].is_finished()).then_some(())
        })
        .await;
    }
    for (n, one) in waiting.into_iter().enumerate() {
        let answer = one.await.unwrap();
        assert_eq!(
            (answer.status, answer.json()["seq"].as_u64()),
            (201, Some(n as u64 + 1)),
            "{answer:?}"
        );
    }
    for n in 0..10 {
        assert_eq!(presenter.next_json().await["message"], n.to_string());
    }
    assert_eq!(rooms.stats().await.checks_of(12), 1);
}

#[actix_web::test]
async fn rule_08_more_than_pending_max_waiting_for_one_verdict_are_refused_and_other_rooms_go_on() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    rooms.mode_of(13, Mode::Hang).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.pending_max = 4;
        settings.room.timeout_ms = 60_000;
    })
    .await;
    let _presenter = app.presenter(12).await;
    for n in 0..4_usize {
        let (addr, token) = (app.addr, app.token(7));
        drop(actix_web::rt::spawn(async move {
            let mut client = crate::support::http::HttpClient::connect(addr).await;
            crate::support::app::post_v1(&mut client, 13, &token, "waits").await
        }));
        eventually("it to wait", async || {
            app.room(13).await.filter(|room| room.waiting > n)
        })
        .await;
    }
    let refused = app.post(13, 7, "one too many").await;
    assert_eq!(
        (refused.status, refused.json()["code"].as_str()),
        (503, Some("overloaded"))
    );
    assert!(
        refused.json()["detail"].as_str().unwrap().contains("room_pending"),
        "{refused:?}"
    );
    assert_eq!(app.post(12, 7, "elsewhere").await.status, 201);
}

#[actix_web::test]
async fn the_room_server_is_asked_in_json_or_as_the_settings_say() {
    for (content_type, expected) in [
        (None, "application/json"),
        (Some("text/plain; charset=ISO-8859-1"), "text/plain; charset=ISO-8859-1"),
    ] {
        let rooms = RoomServer::start().await;
        let app = spawn_with_rooms(&rooms, |settings| {
            if let Some(content_type) = content_type {
                settings.room.content_type = content_type.into();
            }
        })
        .await;
        rooms.live(12).await;
        // Nobody presents: that it is to come back is asked for, too.
        assert_eq!(app.post(12, 7, "hi").await.json()["code"], "presenter_disconnected");
        eventually("both questions", async || {
            let stats = rooms.stats().await;
            let asked = stats.content_types.get(expected) == Some(&2);
            (asked && stats.content_types.len() == 1).then_some(())
        })
        .await;
    }
}

#[actix_web::test]
async fn a_connection_that_the_room_server_shuts_just_when_it_is_asked_refuses_nobody() {
    let rooms = RoomServer::start().await;
    rooms.mode(Mode::Once).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.live_ttl_ms = 600_000;
        settings.room.reconnect_url = "off".into();
    })
    .await;
    for (presenter, asked) in [(12, 1), (13, 2)] {
        rooms.live(presenter).await;
        let answer = app.post(presenter, 7, "hi").await;
        assert_eq!(answer.json()["code"], "presenter_disconnected", "live: {answer:?}");
        assert_eq!(rooms.stats().await.checks_of(presenter), asked);
    }
    for (outcome, count) in [("live", 2.0), ("error", 0.0)] {
        let series = format!("chat_room_checks_total{{outcome=\"{outcome}\"}}");
        assert_eq!(app.metric(&series).await, Some(count), "{outcome}");
    }
}

#[actix_web::test]
async fn rule_12_a_request_to_connect_whose_connection_ends_is_not_made_once_more() {
    let rooms = RoomServer::start().await;
    rooms.mode(Mode::Once).await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.live_ttl_ms = 600_000;
        settings.session.reconnect_request_seconds = 600;
    })
    .await;
    // The check was on the connection that this is made on.
    assert_eq!(app.post(12, 7, "hi").await.json()["code"], "presenter_disconnected");
    eventually("it to fail", async || {
        let failed = app.metric("chat_reconnect_requests_total{outcome=\"error\"}").await;
        (failed == Some(1.0)).then_some(())
    })
    .await;
    assert_eq!(rooms.stats().await.reconnects.get("12"), Some(&1));
}

#[actix_web::test]
async fn verdicts_are_cached_for_their_own_times() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.live_ttl_ms = 60_000;
        settings.room.not_live_ttl_ms = 60_000;
    })
    .await;
    let _presenter = app.presenter(12).await;
    for n in 0..5 {
        assert_eq!(app.post(12, 7, &n.to_string()).await.status, 201);
        assert_eq!(app.post(13, 7, &n.to_string()).await.status, 409);
    }
    let stats = rooms.stats().await;
    assert_eq!((stats.checks_of(12), stats.checks_of(13)), (1, 1));
    for (outcome, count) in [("live", 1.0), ("not_live", 1.0), ("cached", 4.0)] {
        let series = format!("chat_room_checks_total{{outcome=\"{outcome}\"}}");
        assert_eq!(app.metric(&series).await, Some(count), "{outcome}");
    }
    assert_eq!(app.metric("chat_room_check_seconds_count").await, Some(2.0));
}

#[actix_web::test]
async fn rule_08_a_lease_in_use_is_refreshed_before_it_ends_so_that_no_sender_waits() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.live_ttl_ms = 60_000;
        settings.room.refresh_percent = 1;
    })
    .await;
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "first").await.status, 201);
    // The room server hangs from now on: had a sender to wait for it, it would be refused.
    rooms.mode(Mode::Hang).await;
    eventually("a refresh to be under way", async || {
        assert_eq!(app.post(12, 7, "more").await.status, 201);
        (rooms.stats().await.concurrent > 0).then_some(())
    })
    .await;
    assert_eq!(app.post(12, 7, "still").await.status, 201);
}

#[actix_web::test]
async fn rule_09_the_room_server_is_asked_as_often_while_its_last_answer_is_gone_on_with() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.on_error = OnError::LastKnown;
        settings.room.live_ttl_ms = 20;
        settings.room.stale_seconds = 3600;
    })
    .await;
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "known").await.status, 201);
    rooms.mode(Mode::Status(500)).await;
    eventually("a stale verdict to be used", async || {
        assert_eq!(app.post(12, 7, "stale").await.status, 201);
        (app.metric("chat_room_checks_total{outcome=\"stale\"}").await? >= 1.0).then_some(())
    })
    .await;
    // What it says when it is back counts at once, and not when the last answer is stale.
    rooms.ended(12).await;
    rooms.mode(Mode::Normal).await;
    eventually("the end of the broadcast to be heard of", async || {
        let answer = app.post(12, 7, "still there?").await;
        (answer.json()["code"] == "broadcast_ended").then_some(())
    })
    .await;
}

#[actix_web::test]
async fn rule_09_last_known_goes_on_with_the_last_answer_while_it_is_not_stale() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.on_error = OnError::LastKnown;
        settings.room.live_ttl_ms = 20;
        settings.room.stale_seconds = 10;
    })
    .await;
    let _presenter = app.presenter(12).await;
    let known_at = Instant::now();
    assert_eq!(app.post(12, 7, "known").await.status, 201);
    rooms.mode(Mode::Status(500)).await;
    eventually("a stale verdict to be used", async || {
        assert_eq!(app.post(12, 7, "stale").await.status, 201);
        (app.metric("chat_room_checks_total{outcome=\"stale\"}").await? >= 1.0).then_some(())
    })
    .await;
    // What it goes on with is no newer than this.
    let known_by = Instant::now();
    // One that was never known has nothing to go on with.
    assert_eq!(
        app.post(13, 7, "unknown").await.json()["code"],
        "room_server_unavailable"
    );
    // And the other has for so long, and no longer.
    eventually("the answer to be too old", async || {
        let age = known_by.elapsed();
        let answer = app.post(12, 7, "too old").await;
        let refused = answer.json()["code"] == "room_server_unavailable";
        assert!(
            refused || age <= Duration::from_millis(10_020),
            "{answer:?} after {age:?}"
        );
        refused.then_some(())
    })
    .await;
    assert!(
        known_at.elapsed() >= Duration::from_secs(10),
        "{:?}",
        known_at.elapsed()
    );
}

#[actix_web::test]
async fn rule_09_last_known_is_the_last_answer_so_that_what_has_ended_stays_ended() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.on_error = OnError::LastKnown;
        settings.room.live_ttl_ms = 20;
        settings.room.not_live_ttl_ms = 20;
        // The answer that it was live is not too old yet either.
        settings.room.stale_seconds = 600;
    })
    .await;
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "live").await.status, 201);
    rooms.ended(12).await;
    eventually("the end", async || {
        (app.post(12, 7, "late").await.json()["code"] == "broadcast_ended").then_some(())
    })
    .await;
    rooms.mode(Mode::Status(500)).await;
    let refused = async || {
        let answer = app.post(12, 7, "too late").await;
        assert_eq!(answer.json()["code"], "broadcast_ended", "{answer:?}");
    };
    eventually("a stale verdict to be used", async || {
        refused().await;
        (app.metric("chat_room_checks_total{outcome=\"stale\"}").await? >= 1.0).then_some(())
    })
    .await;
    // The one before may have come by a verdict that held; from now on there are only stale ones.
    refused().await;
    for (verdict, kept) in [("live", 0.0), ("not_live", 1.0)] {
        let name = format!("chat_room_verdicts{{verdict=\"{verdict}\"}}");
        assert_eq!(app.metric(&name).await, Some(kept), "{verdict}");
    }
}

#[actix_web::test]
async fn no_more_than_max_lookups_are_under_way_at_once() {
    let rooms = RoomServer::start().await;
    rooms.mode(Mode::Slow { milliseconds: 100 }).await;
    let app = spawn_with_rooms(&rooms, |settings| settings.room.max_lookups = 3).await;
    let asked: Vec<_> = (0..30)
        .map(|presenter| {
            let (addr, token) = (app.addr, app.token(7));
            actix_web::rt::spawn(async move {
                let mut client = crate::support::http::HttpClient::connect(addr).await;
                crate::support::app::post_v1(&mut client, presenter, &token, "hi")
                    .await
                    .status
            })
        })
        .collect();
    for one in asked {
        assert_eq!(one.await.unwrap(), 409);
    }
    assert!(rooms.stats().await.max_concurrent <= 3);
}

#[actix_web::test]
async fn rule_10_rooms_that_are_not_live_are_not_kept() {
    let rooms = RoomServer::start().await;
    let app = spawn_with_rooms(&rooms, |_| {}).await;
    for presenter in 0..50 {
        assert_eq!(app.post(presenter, 7, "hi").await.status, 409);
    }
    for presenter in 0..50 {
        assert_eq!(app.room(presenter).await, None);
    }
}

#[actix_web::test]
async fn a_room_server_that_keeps_failing_is_left_alone_and_tried_again_by_one_question() {
    let rooms = RoomServer::start().await;
    rooms.mode(Mode::Status(500)).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.breaker_failures = 3;
        settings.room.breaker_open_ms = 2000;
        settings.session.not_live_seconds = 3600;
    })
    .await;
    for presenter in 1..=3 {
        let answer = app.post(presenter, 7, "hi").await;
        assert_eq!(answer.json()["code"], "room_server_unavailable");
    }
    assert_eq!(app.metric("chat_room_breaker_open").await, Some(1.0));
    let errors = app.metric("chat_room_checks_total{outcome=\"error\"}").await;
    assert_eq!(errors, Some(3.0));
    let ready = crate::support::http::get(app.addr, "/readyz").await;
    assert_eq!(
        (ready.status, &ready.json()["status"]),
        (200, &serde_json::json!("degraded"))
    );
    assert_eq!(
        ready.json()["reasons"],
        serde_json::json!(["the room server does not answer; rooms that are known to be live go on for a while"])
    );
    // It stays shut away: each time that it is tried costs it one question, however many ask.
    let (before, opened) = (
        rooms.stats().await.all_checks(),
        app.metric("chat_room_breaker_opened_total").await,
    );
    let mut next = 100;
    let reopened = eventually("it to be tried twice in vain", async || {
        for presenter in next..next + 20 {
            let answer = app.post(presenter, 7, "hi").await;
            assert_eq!(answer.json()["code"], "room_server_unavailable");
        }
        next += 20;
        let now = app.metric("chat_room_breaker_opened_total").await.unwrap();
        Some(now - opened.unwrap()).filter(|reopened| *reopened >= 2.0)
    })
    .await;
    let (probes, asked) = (rooms.stats().await.all_checks() - before, next - 100);
    assert!(
        (probes as f64 - reopened).abs() <= 1.0,
        "{probes} probes, opened {reopened} times more"
    );
    assert!((probes as i64) < asked, "{probes} of {asked} questions reached it");
    assert!(app.metric("chat_room_checks_total{outcome=\"breaker_open\"}").await > Some(0.0));
    rooms.mode(Mode::Normal).await;
    rooms.live(12).await;
    eventually("the breaker to close", async || {
        let answer = app.post(12, 7, "hi").await.json();
        (answer["code"] == "presenter_disconnected").then_some(())
    })
    .await;
    assert_eq!(app.metric("chat_room_breaker_open").await, Some(0.0));
}

#[actix_web::test]
async fn presenters_that_the_room_server_refuses_to_know_have_it_left_alone_for_nobody_else() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.breaker_failures = 3;
        settings.room.breaker_open_ms = 600_000;
        settings.room.not_live_ttl_ms = 600_000;
    })
    .await;
    for (presenter, mode) in [
        (1, Mode::Status(404)),
        (2, Mode::Status(400)),
        (3, Mode::Status(403)),
        (4, Mode::NoData),
        (5, Mode::NotBoolean),
    ] {
        rooms.mode_of(presenter, mode).await;
        // It is asked once, as about one who is not live.
        for _ in 0..2 {
            let answer = app.post(presenter, 7, "hi").await;
            assert_eq!(answer.json()["code"], "room_server_unavailable");
        }
    }
    assert_eq!(
        app.metric("chat_room_checks_total{outcome=\"refused\"}").await,
        Some(5.0)
    );
    assert_eq!(app.metric("chat_room_verdicts{verdict=\"refused\"}").await, Some(5.0));
    assert_eq!(app.metric("chat_room_breaker_open").await, Some(0.0));
    assert_eq!(app.metric("chat_room_refusals").await, Some(5.0));
    let ready = crate::support::http::get(app.addr, "/readyz").await;
    assert_eq!(
        (ready.status, &ready.json()["reasons"]),
        (
            200,
            &serde_json::json!([
                "the room server says of nobody whether they are live; see room.base_url and its own log"
            ])
        )
    );
    // It knows this one.
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "hi").await.status, 201);
    assert_eq!(app.metric("chat_room_refusals").await, Some(0.0));
    let ready = crate::support::http::get(app.addr, "/readyz").await;
    assert_eq!(ready.json()["status"], "ready");
}

#[actix_web::test]
async fn a_room_server_that_is_asked_too_much_is_left_alone_and_refuses_to_know_nobody() {
    let rooms = RoomServer::start().await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.breaker_failures = 2;
        settings.room.breaker_open_ms = 600_000;
    })
    .await;
    // 4xx both, and neither says anything of the presenter.
    for (presenter, status) in [(1, 429), (2, 408)] {
        rooms.mode_of(presenter, Mode::Status(status)).await;
        let answer = app.post(presenter, 7, "hi").await;
        assert_eq!(answer.json()["code"], "room_server_unavailable", "{status}");
    }
    assert_eq!(app.metric("chat_room_breaker_open").await, Some(1.0));
    assert_eq!(app.metric("chat_room_refusals").await, Some(0.0));
    let refused = app.metric("chat_room_checks_total{outcome=\"refused\"}").await;
    assert!(refused.is_none_or(|count| count == 0.0), "{refused:?}");
}

#[actix_web::test]
async fn one_sender_cannot_have_the_room_server_asked_about_ever_more_rooms() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.limits.lookups_per_minute = 1;
        settings.limits.lookups_burst = 20;
    })
    .await;
    let _presenter = app.presenter(12).await;
    let of_others = async || {
        let stats = rooms.stats().await;
        stats.all_checks() - stats.checks_of(12)
    };
    let before = of_others().await;
    let (mut limited, began) = (0, Instant::now());
    for presenter in 1000..1300 {
        let answer = app.post(presenter, 7, "anyone there?").await;
        match answer.status {
            409 => {}
            429 => {
                crate::limits::paced(&answer, "20", 60, began);
                limited += 1;
            }
            other => panic!("{other}: {answer:?}"),
        }
        // The room with a presenter is not asked about for this sender.
        if presenter % 50 == 0 {
            assert_eq!(app.post(12, 7, "here").await.status, 201);
        }
    }
    let asked = of_others().await - before;
    assert!(limited >= 200, "{limited} of 300");
    assert!(asked + limited <= 300 + 10, "{asked} asked, {limited} refused");
    // To look at a room is to ask about it.
    let look = async |presenter: i64, user: i64| {
        let (path, token) = (format!("/v1/rooms/{presenter}"), app.token(user));
        app.client().await.request("GET", &path, &[("token", &token)], "").await
    };
    let refused = eventually("a look to be refused", async || {
        // One a minute is not.
        let answer = look(2000, 7).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    crate::limits::limited(&refused, "20");
    assert_eq!(look(12, 7).await.status, 200, "which is known");
    assert_eq!(look(2001, 8).await.json()["live"], false, "another user");
    assert_eq!(app.post(2000, 8, "another sender").await.status, 409);
    eventually("what nobody presents in to be forgotten", async || {
        (app.metric("chat_rooms").await <= Some(5.0)).then_some(())
    })
    .await;
}
