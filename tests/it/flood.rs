//! Floods: one room that gets ten times its share, and messages to ever more rooms that nobody presents in. Whoever does it is
//! refused; nobody else notices, and what is kept stays bounded. No times are looked at here; `scripts/flood` measures them.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use actix_web::rt::task::JoinHandle;
use chatting_server::{
    load::{Interrupts, Plan, Speaks, Stalled, run as run_load},
    settings::OnError,
};
use serde_json::json;

use crate::support::{
    app::{TestApp, post_v1, spawn_app, spawn_with_rooms},
    eventually,
    http::{HttpClient, Response},
    presenter::V1,
    room_server::{Mode, RoomServer},
    within,
    ws::WsClient,
};

const FLOODED: i64 = 12;
const SHARE: usize = 20;

/// 99 of them.
fn quiet() -> std::ops::Range<i64> {
    100..199
}

fn post(app: &TestApp, presenter: i64, user: i64, text: String) -> JoinHandle<Response> {
    let (addr, token) = (app.addr, app.token(user));
    actix_web::rt::spawn(async move {
        let mut client = HttpClient::connect(addr).await;
        post_v1(&mut client, presenter, &token, &text).await
    })
}

/// The flooded room and the quiet ones are live, each with its presenter; a room's share is [`SHARE`].
async fn a_hundred_rooms() -> (TestApp, BTreeMap<i64, WsClient>) {
    let app = spawn_app(|settings| {
        settings.actors.registry.mailbox = 1000;
        settings.actors.registry.room_share = SHARE;
        settings.actors.writer.mailbox = 1000;
        settings.actors.writer.room_share = SHARE;
        settings.room.pending_max = SHARE;
    })
    .await;
    let mut presenters = BTreeMap::new();
    for room in quiet().chain([FLOODED]) {
        app.go_live(room);
        presenters.insert(room, app.presenter(room).await);
        assert_eq!(app.post(room, 7, "first").await.status, 201);
    }
    for socket in presenters.values_mut() {
        assert_eq!(socket.next_json().await["message"], "first");
    }
    (app, presenters)
}

#[actix_web::test]
async fn a_room_that_gets_ten_times_its_share_is_refused_what_is_over_and_99_quiet_rooms_nothing() {
    let (app, mut presenters) = a_hundred_rooms().await;
    // Nothing is committed meanwhile, so what is on its way stays so and the share is used up to the last permit.
    let hold = app.state.health.writer.hold_spool();
    let flood: Vec<_> = (0..10 * SHARE)
        .map(|n| post(&app, FLOODED, 1000 + n as i64, "flood".into()))
        .collect();
    eventually("the share to be used up", async || {
        let room = app.room(FLOODED).await?;
        let refused = app.metric("chat_queue_refused_total{queue=\"room_share\"}").await;
        (room.in_flight == SHARE && refused == Some(9.0 * SHARE as f64)).then_some(())
    })
    .await;
    let mut answers = Vec::new();
    for n in 1..=2 {
        answers.extend(quiet().map(|room| post(&app, room, 7, n.to_string())));
        for room in quiet() {
            let numbered = async || app.room(room).await.filter(|room| room.in_flight == n);
            eventually("a quiet room's message to be numbered", numbered).await;
        }
    }
    drop(hold);
    for answer in answers {
        assert_eq!(answer.await.unwrap().status, 201);
    }
    let mut codes = BTreeMap::new();
    for answer in flood {
        let answer = answer.await.unwrap();
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        *codes.entry((answer.status, detail)).or_insert(0) += 1;
    }
    let refused = (503, "the queue room_share is full".to_owned());
    assert_eq!(
        codes,
        BTreeMap::from([((201, String::new()), SHARE), (refused, 9 * SHARE)])
    );
    for room in quiet() {
        let socket = presenters.get_mut(&room).unwrap();
        for n in 1..=2 {
            assert_eq!(socket.next_json().await["message"], n.to_string(), "room {room}");
        }
    }
    let all = app.metric("chat_refused_total{code=\"overloaded\"}").await;
    assert_eq!(all, Some(9.0 * SHARE as f64), "nobody else was refused");
}

const OPERATIONS: &str = include_str!("../../docs/OPERATIONS.md");

#[actix_web::test]
async fn by_default_a_crowd_during_a_slow_commit_is_refused_for_its_rooms_ring_and_the_runbook_names_the_commit_first()
{
    const OVER: usize = 50;
    let app = spawn_app(|_| {}).await;
    app.go_live(FLOODED);
    let mut presenter = V1::of(&app, FLOODED, json!({})).await;
    assert_eq!(app.post(FLOODED, 7, "first").await.status, 201);
    presenter.chats(1).await;
    presenter.settle().await;
    // The presenter has taken everything. Nothing is committed meanwhile.
    let hold = app.state.health.writer.hold_spool();
    let ring = app.settings.room.ring_events;
    let crowd: Vec<_> = (0..ring + OVER)
        .map(|n| post(&app, FLOODED, 1000 + n as i64, "hi".into()))
        .collect();
    let refused = async |queue| {
        let name = format!("chat_queue_refused_total{{queue=\"{queue}\"}}");
        app.metric(&name).await
    };
    eventually("the room to be full", async || {
        let room = app.room(FLOODED).await?;
        (room.in_flight == ring && refused("ring").await == Some(OVER as f64)).then_some(())
    })
    .await;
    for queue in ["room_share", "writer_room_share"] {
        assert_eq!(refused(queue).await, Some(0.0), "{queue}");
    }
    drop(hold);
    for answer in crowd {
        let answer = answer.await.unwrap();
        assert!(
            answer.status == 201 || answer.json()["detail"] == "the queue ring is full",
            "{answer:?}"
        );
    }
    let row = OPERATIONS.lines().find(|line| line.starts_with("| `ring` |")).unwrap();
    let commit = row.find("`chat_commit_seconds`").unwrap();
    assert!(commit < row.find("presenter").unwrap(), "{row}");
}

#[actix_web::test]
async fn while_a_room_is_flooded_without_end_quiet_rooms_get_every_message_in_its_order() {
    let (app, mut presenters) = a_hundred_rooms().await;
    let (stop, told) = (Rc::new(RefCell::new(false)), Rc::new(RefCell::new(BTreeMap::new())));
    let flood: Vec<_> = (0..10 * SHARE)
        .map(|n| {
            let (addr, token) = (app.addr, app.token(1000 + n as i64));
            let (stop, told) = (Rc::clone(&stop), Rc::clone(&told));
            actix_web::rt::spawn(async move {
                let mut client = HttpClient::connect(addr).await;
                while !*stop.borrow() {
                    let status = post_v1(&mut client, FLOODED, &token, "flood").await.status;
                    *told.borrow_mut().entry(status).or_insert(0_usize) += 1;
                }
            })
        })
        .collect();
    let told_so_far = async || (told.borrow().values().sum::<usize>() > 1000).then_some(());
    eventually("the flood to be there", told_so_far).await;
    let quiet_senders: Vec<_> = quiet()
        .map(|room| {
            let (addr, token) = (app.addr, app.token(7));
            actix_web::rt::spawn(async move {
                let mut client = HttpClient::connect(addr).await;
                for n in 1..=5 {
                    let answer = post_v1(&mut client, room, &token, &n.to_string()).await;
                    let (status, seq) = (answer.status, answer.json()["seq"].as_u64());
                    assert_eq!((status, seq), (201, Some(n + 1)), "room {room}: {answer:?}");
                }
            })
        })
        .collect();
    for sender in quiet_senders {
        within("a quiet room's messages to be answered", sender).await.unwrap();
    }
    *stop.borrow_mut() = true;
    for one in flood {
        within("the flood to end", one).await.unwrap();
    }
    for room in quiet() {
        let socket = presenters.get_mut(&room).unwrap();
        for n in 1..=5 {
            assert_eq!(socket.next_json().await["message"], n.to_string(), "room {room}");
        }
    }
    let told = told.borrow().clone();
    assert!(told.keys().all(|status| [201, 503].contains(status)), "{told:?}");
    let accepted = told.get(&201).copied().unwrap_or(0);
    assert_eq!(
        app.sqlite_log(FLOODED).await.len(),
        accepted + 1,
        "what was refused is nowhere"
    );
}

/// Asks for so many rooms that nobody presents in, on a few connections; returns how often each status was told.
async fn ask_for_rooms(app: &TestApp, count: usize, user_of: impl Fn(usize) -> i64) -> BTreeMap<u16, usize> {
    let next = Rc::new(RefCell::new(
        (0..count)
            .map(|n| (1_000_000 + n as i64, user_of(n)))
            .collect::<Vec<_>>(),
    ));
    let told = Rc::new(RefCell::new(BTreeMap::new()));
    let askers: Vec<_> = (0..16)
        .map(|_| {
            let (next, told) = (Rc::clone(&next), Rc::clone(&told));
            let (addr, settings) = (app.addr, app.settings.clone());
            actix_web::rt::spawn(async move {
                let mut client = HttpClient::connect(addr).await;
                loop {
                    let Some((room, user)) = next.borrow_mut().pop() else {
                        return;
                    };
                    let token = crate::support::app::token_of(&settings, user, "kim");
                    let status = post_v1(&mut client, room, &token, "anyone there?").await.status;
                    *told.borrow_mut().entry(status).or_insert(0) += 1;
                }
            })
        })
        .collect();
    for one in askers {
        // Each of its answers is waited for by itself, and no longer than any.
        one.await.unwrap();
    }
    told.take()
}

#[actix_web::test]
async fn a_flood_of_messages_to_thousands_of_rooms_by_many_senders_leaves_nothing_but_a_bounded_cache() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.not_live_cache_max = 100;
        settings.room.max_lookups = 8;
        settings.room.live_ttl_ms = 600_000;
        settings.room.not_live_ttl_ms = 600_000;
        settings.room.sweep_ms = 10;
        settings.limits.lookups_per_minute = 60;
        settings.limits.lookups_burst = 60;
        settings.limits.tracked = 100;
    })
    .await;
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "here").await.status, 201);
    let told = ask_for_rooms(&app, 3000, |n| 10_000 + n as i64).await;
    assert_eq!(told, BTreeMap::from([(409, 3000)]));
    assert_eq!(app.post(12, 7, "still here").await.status, 201);
    let stats = rooms.stats().await;
    assert_eq!(
        stats.all_checks(),
        3001,
        "each was asked for once, and the live one is known"
    );
    assert!(stats.max_concurrent <= 8, "{}", stats.max_concurrent);
    assert_eq!(
        app.metric("chat_room_verdicts{verdict=\"not_live\"}").await,
        Some(100.0)
    );
    assert_eq!(app.metric("chat_room_verdicts{verdict=\"live\"}").await, Some(1.0));
    for queue in ["registry", "checker", "writer", "lookups"] {
        eventually(format_args!("nothing to be in {queue}"), async || {
            let depth = app.metric(&format!("chat_queue_depth{{queue=\"{queue}\"}}")).await;
            (depth == Some(0.0)).then_some(())
        })
        .await;
    }
    eventually("the rooms to be forgotten", async || {
        (app.metric("chat_rooms").await == Some(1.0)).then_some(())
    })
    .await;
}

#[actix_web::test]
async fn a_flood_of_messages_to_thousands_of_rooms_by_one_sender_costs_no_more_lookups_than_it_may_cause() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.limits.lookups_per_minute = 1;
        settings.limits.lookups_burst = 60;
        settings.room.sweep_ms = 10;
    })
    .await;
    let _presenter = app.presenter(12).await;
    let told = ask_for_rooms(&app, 3000, |_| 7).await;
    let stats = rooms.stats().await;
    let asked = stats.all_checks() - stats.checks_of(12);
    // A minute brings one more, on however slow a machine.
    assert!((60..70).contains(&asked), "{asked}");
    assert_eq!(
        told,
        BTreeMap::from([(409, asked as usize), (429, 3000 - asked as usize)])
    );
    assert_eq!(app.post(12, 7, "where somebody presents").await.status, 201);
    assert_eq!(app.post(5, 8, "another sender").await.status, 409);
    eventually("the rooms to be forgotten", async || {
        (app.metric("chat_rooms").await == Some(1.0)).then_some(())
    })
    .await;
}

#[actix_web::test]
async fn a_flood_of_unknown_rooms_pushes_no_live_rooms_verdict_out() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.on_error = OnError::LastKnown;
        settings.room.stale_seconds = 3600;
        settings.room.live_ttl_ms = 20;
        settings.room.cache_max = 10;
        settings.room.not_live_cache_max = 10;
    })
    .await;
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "known").await.status, 201);
    assert_eq!(
        ask_for_rooms(&app, 300, |n| n as i64).await,
        BTreeMap::from([(409, 300)])
    );
    rooms.mode(Mode::Status(500)).await;
    eventually("the last known verdict to be used", async || {
        assert_eq!(app.post(12, 7, "last known").await.status, 201);
        (app.metric("chat_room_checks_total{outcome=\"stale\"}").await? >= 1.0).then_some(())
    })
    .await;
}

#[actix_web::test]
async fn the_load_tool_asks_for_rooms_that_nobody_presents_in_and_tells_how_often_it_was_told_what() {
    let app = spawn_app(|_| {}).await;
    let (report, _) = run_load(
        Plan {
            addr: app.addr,
            rooms: 1000,
            first_room: 1_000_000,
            senders: 8,
            messages: Some(300),
            rate: None,
            duration: Duration::from_secs(600),
            patience: Duration::from_secs(10),
            text_bytes: 60,
            keys: false,
            presenter_tokens: Vec::new(),
            sender_tokens: (1..=50).map(|user| app.token(user)).collect(),
            speaks: Speaks::V1,
            stalled: Stalled::default(),
            progress: false,
            waits: false,
        },
        &mut Interrupts::default(),
    )
    .await
    .unwrap();
    assert_eq!((report.sent, report.statuses), (300, BTreeMap::from([(409, 300)])));
}
