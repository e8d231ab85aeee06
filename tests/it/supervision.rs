//! A panic in any part is caught, counted, shown, and harms nobody who is not told so: each part panics while senders post to
//! several rooms and presenters of both dialects read. What holds each time is in [`Crowd::ends_well`].

use std::sync::atomic::Ordering;

use chatting_actors::{
    types::{PresenterIdx, UserIdx},
    writer::SpoolFailure,
};
use serde_json::json;

use crate::support::{
    app::{TestApp, post_v1, spawn_app, spawn_with_rooms},
    crowd::Crowd,
    eventually,
    http::get,
    presenter::V1,
    room_server::{Mode, RoomServer},
};

/// Presenters 12 and 14 speak v1, 13 the old protocol.
const V1_ROOMS: [i64; 2] = [12, 14];
const LEGACY_ROOMS: [i64; 1] = [13];
const ALL_ROOMS: [i64; 3] = [12, 13, 14];

/// How often each part panics in a test.
const ROUNDS: u64 = 5;

async fn app() -> TestApp {
    let app = spawn_app(|settings| {
        settings.actors.supervisor.restart_min_ms = 1;
        settings.actors.supervisor.restart_max_ms = 50;
        settings.session.reconnect_burst = 1000;
    })
    .await;
    for room in ALL_ROOMS {
        app.go_live(room);
    }
    app
}

async fn restarts(app: &TestApp, actor: &str) -> u64 {
    let name = format!("chat_actor_restarts_total{{actor=\"{actor}\"}}");
    app.metric(&name).await.unwrap_or_else(|| panic!("{name} is not there")) as u64
}

/// Panics a part again and again under load; returns the crowd when chat has gone on in every room after each.
async fn under_load(app: &TestApp, actor: &str, panic: impl Fn()) -> Crowd {
    under_load_when(app, actor, async |_, _| {}, panic).await
}

/// The same for the session of this room's presenter, who is back before the next panic: else there would be nothing to panic.
async fn sessions_under_load(app: &TestApp, room: i64) -> Crowd {
    let back = async |crowd: &Crowd, closes| crowd.is_back(room, closes).await;
    let presenter = PresenterIdx::new(room).unwrap();
    under_load_when(app, "session", back, || app.state.registry.panic_session_now(presenter)).await
}

/// `ready` comes before each panic, and is told how many there were.
async fn under_load_when(app: &TestApp, actor: &str, ready: impl AsyncFn(&Crowd, usize), panic: impl Fn()) -> Crowd {
    assert_eq!(restarts(app, actor).await, 0, "there before the first panic");
    let crowd = Crowd::come(app, &V1_ROOMS, &LEGACY_ROOMS, 3).await;
    for round in 1..=ROUNDS {
        ready(&crowd, round as usize - 1).await;
        panic();
        eventually(format_args!("panic {round} of {actor} to be counted"), async || {
            (restarts(app, actor).await == round).then_some(())
        })
        .await;
        crowd.goes_on(20).await;
    }
    eventually("the server to be ready again", async || {
        (get(app.addr, "/readyz").await.status == 200).then_some(())
    })
    .await;
    crowd
}

/// Nobody noticed: no sender was told anything but 201, no presenter was closed.
fn unnoticed(crowd: &Crowd, rooms: &[i64]) {
    for room in rooms {
        assert_eq!(
            crowd.refusals(*room).into_iter().collect::<Vec<_>>(),
            [""; 0],
            "room {room}"
        );
        assert_eq!(crowd.closes(*room), [], "room {room}");
    }
}

/// Senders of these rooms were told nothing but this.
fn told_at_most(crowd: &Crowd, rooms: &[i64], codes: &[&str]) {
    for room in rooms {
        for code in crowd.refusals(*room) {
            assert!(codes.contains(&code.as_str()), "room {room}: {code}");
        }
    }
}

#[actix_web::test]
async fn rule_02_a_registry_that_panics_under_load_loses_nothing_and_presenters_are_closed_with_1001_and_go_on() {
    let app = app().await;
    let crowd = under_load(&app, "registry", || app.state.registry.panic_now()).await;
    // In its hand: unknown, and in progress while the spool has not told yet. Behind it: what a room without a session gets.
    let codes = [
        "outcome_unknown",
        "idempotency_in_progress",
        "presenter_disconnected",
        "overloaded",
    ];
    told_at_most(&crowd, &ALL_ROOMS, &codes);
    for room in ALL_ROOMS {
        let closes = crowd.closes(room);
        assert!(
            !closes.is_empty() && closes.iter().all(|code| *code == Some(1001)),
            "{closes:?}"
        );
    }
    crowd.ends_well(&app).await;
}

#[actix_web::test]
async fn what_a_registry_that_panics_had_in_hand_is_counted_by_what_its_senders_were_told() {
    let rooms = RoomServer::start().await;
    rooms.mode(Mode::Hang).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.actors.supervisor.restart_min_ms = 60_000;
        settings.actors.supervisor.restart_max_ms = 60_000;
        settings.room.timeout_ms = 60_000;
    })
    .await;
    let registry = &app.state.registry;
    let presenter = PresenterIdx::new(12).unwrap();
    let refused = async |code: &str| app.metric(&format!("chat_refused_total{{code=\"{code}\"}}")).await;
    assert_eq!(
        (refused("outcome_unknown").await, refused("overloaded").await),
        (Some(0.0), Some(0.0))
    );
    // All of them wait for a verdict.
    let panic = async {
        eventually("both messages and who looks to wait", async || {
            registry.view(presenter).await.filter(|view| view.waiting == 3)
        })
        .await;
        registry.panic_now();
    };
    let legacy = r#"{"presenterIdx":12,"userType":"viewer","textMessage":"two"}"#;
    let (token, mut client) = (app.token(7), app.client().await);
    let headers = [("token", token.as_str())];
    let looked = client.request("GET", "/v1/rooms/12", &headers, "");
    let (look, one, two, ()) = tokio::join!(looked, app.post(12, 7, "one"), app.send(7, legacy), panic);
    assert_eq!((one.status, two.status), (504, 504), "{one:?} {two:?}");
    // No queue was full, and nobody is sent to look for one that was.
    assert_eq!(
        (look.status, look.header("retry-after"), &look.json()["detail"]),
        (503, Some("1"), &json!("the registry begins anew, try again"))
    );
    assert_eq!(look.json()["code"], "overloaded");
    let full = app.metric("chat_queue_refused_total{queue=\"registry\"}").await;
    assert_eq!(full, Some(0.0));
    assert_eq!(
        (refused("outcome_unknown").await, refused("overloaded").await),
        (Some(2.0), Some(1.0))
    );
    // What finds no place at the gate.
    let gate = registry.gate();
    let _all: Vec<_> = std::iter::from_fn(|| gate.acquire_if_free(1)).collect();
    assert_eq!(app.post(12, 7, "three").await.status, 503);
    registry.look(presenter, UserIdx::new(7).unwrap()).await.unwrap_err();
    assert_eq!(refused("overloaded").await, Some(3.0));
}

#[actix_web::test]
async fn a_checker_that_panics_under_load_is_noticed_by_nobody() {
    let app = app().await;
    let crowd = under_load(&app, "checker", || app.state.failing.checker.panic_now()).await;
    unnoticed(&crowd, &ALL_ROOMS);
    crowd.ends_well(&app).await;
}

#[actix_web::test]
async fn a_writer_that_panics_under_load_is_noticed_by_nobody() {
    let app = app().await;
    let crowd = under_load(&app, "writer", || app.state.failing.writer.panic_now()).await;
    unnoticed(&crowd, &ALL_ROOMS);
    crowd.ends_well(&app).await;
}

#[actix_web::test]
async fn a_spool_thread_that_panics_under_load_with_events_in_hand_is_noticed_by_nobody() {
    let app = app().await;
    let writer = &app.state.health.writer;
    let crowd = under_load(&app, "spool", || writer.panic_spool(SpoolFailure::Now)).await;
    unnoticed(&crowd, &ALL_ROOMS);
    crowd.ends_well(&app).await;
}

#[actix_web::test]
async fn a_spool_thread_that_panics_under_load_before_it_tells_of_a_commit_is_noticed_by_nobody() {
    let app = app().await;
    let writer = &app.state.health.writer;
    let crowd = under_load(&app, "spool", || writer.panic_spool(SpoolFailure::BehindCommit)).await;
    unnoticed(&crowd, &ALL_ROOMS);
    crowd.ends_well(&app).await;
}

#[actix_web::test]
async fn a_session_that_panics_under_load_is_closed_with_1001_and_resumes_and_no_other_on_its_worker_notices() {
    let app = {
        let app = spawn_app(|settings| {
            settings.server.workers = 1;
            settings.session.reconnect_burst = 1000;
        })
        .await;
        for room in ALL_ROOMS {
            app.go_live(room);
        }
        app
    };
    let crowd = sessions_under_load(&app, 12).await;
    assert_eq!(crowd.closes(12), [Some(1001); ROUNDS as usize]);
    // Its room holds for it meanwhile, so its senders do not notice either.
    told_at_most(&crowd, &[12], &[]);
    unnoticed(&crowd, &[13, 14]);
    crowd.ends_well(&app).await;
}

#[actix_web::test]
async fn a_legacy_session_that_panics_under_load_is_closed_with_1001_and_gets_nothing_twice_after_its_next_start() {
    let app = app().await;
    let crowd = sessions_under_load(&app, 13).await;
    assert_eq!(crowd.closes(13), [Some(1001); ROUNDS as usize]);
    told_at_most(&crowd, &[13], &[]);
    unnoticed(&crowd, &V1_ROOMS);
    crowd.ends_well(&app).await;
}

#[actix_web::test]
async fn a_handler_that_panics_under_load_behind_its_messages_outcome_answers_unknown_and_the_key_tells() {
    let app = app().await;
    let crowd = under_load(&app, "http", || app.state.failing.http.store(true, Ordering::Relaxed)).await;
    told_at_most(&crowd, &ALL_ROOMS, &["outcome_unknown"]);
    let told: usize = ALL_ROOMS.iter().map(|room| crowd.refusals(*room).len()).sum();
    assert!(told > 0, "somebody was told");
    assert!(ALL_ROOMS.iter().all(|room| crowd.closes(*room).is_empty()));
    crowd.ends_well(&app).await;
}

#[actix_web::test]
async fn a_legacy_sender_whose_handler_panics_gets_the_old_error_body() {
    let app = app().await;
    let _presenter = app.presenter(13).await;
    app.state.failing.http.store(true, Ordering::Relaxed);
    let body = r#"{"presenterIdx":13,"userType":"viewer","textMessage":"hi"}"#;
    let token = app.token(7);
    let headers = [("token", token.as_str()), ("Origin", "https://a.example")];
    let answer = app.client().await.post_json("/send/message", &headers, body).await;
    assert_eq!(
        (answer.status, answer.json()["status"].as_u64()),
        (504, Some(504)),
        "{answer:?}"
    );
    assert_eq!(answer.json()["path"], "/send/message");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(
        (answer.header("access-control-allow-origin"), answer.header("vary")),
        (Some("*"), Some("Origin")),
        "a page may read it"
    );
    assert_eq!(app.send(7, body).await.status, 200, "the next one is served");
}

#[actix_web::test]
async fn a_reader_that_panics_is_asked_again_and_a_session_that_resumes_from_the_log_misses_nothing() {
    let app = spawn_app(|settings| {
        settings.room.ring_events = 16;
        settings.room.sweep_ms = 10;
    })
    .await;
    app.go_live(12);
    let mut first = V1::of(&app, 12, json!({})).await;
    let token = app.token(7);
    let mut client = app.client().await;
    for n in 1..=100 {
        assert_eq!(post_v1(&mut client, 12, &token, &n.to_string()).await.status, 201);
        first.chats(1).await;
    }
    app.state.failing.log.panic_next();
    let mut second = V1::of(&app, 12, json!({ "resume_after": 0 })).await;
    assert!(second.welcome["gap"].is_null(), "{}", second.welcome);
    assert_eq!(second.chats(100).await, crate::support::presenter::numbered(1..=100));
    assert_eq!(restarts(&app, "reader").await, 1);
}

#[actix_web::test]
async fn readyz_is_503_and_names_the_actor_while_one_is_gone() {
    for actor in ["registry", "checker", "writer", "spool"] {
        let app = spawn_app(|settings| {
            settings.actors.supervisor.restart_min_ms = 60_000;
            settings.actors.supervisor.restart_max_ms = 60_000;
        })
        .await;
        let ready = get(app.addr, "/readyz").await;
        assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("ready")));
        let well = json!({ "name": actor, "alive": true, "restarts": 0 });
        assert!(ready.json()["actors"].as_array().unwrap().contains(&well), "{ready:?}");
        match actor {
            "registry" => app.state.registry.panic_now(),
            "checker" => app.state.failing.checker.panic_now(),
            "writer" => app.state.failing.writer.panic_now(),
            _ => app.state.health.writer.panic_spool(SpoolFailure::Now),
        }
        let gone = eventually(format_args!("{actor} to be missed"), async || {
            let ready = get(app.addr, "/readyz").await;
            (ready.status == 503).then_some(ready.json())
        })
        .await;
        assert_eq!(gone["reasons"], json!([format!("the actor {actor} is gone")]));
        let failed = eventually("the failure to be counted", async || {
            let ready = get(app.addr, "/readyz").await.json();
            let actors = ready["actors"].as_array().unwrap().clone();
            actors
                .into_iter()
                .find(|one| one["name"] == actor && one["restarts"] == 1)
        })
        .await;
        assert_eq!(failed["alive"], false);
        assert_eq!(get(app.addr, "/livez").await.status, 200);
    }
}
