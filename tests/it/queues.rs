//! Every queue is bounded by its setting, says so in the metrics, and refuses with a name or lets wait. One test a knob, named
//! after it: it is turned down, and the answers and the gauge follow. What each is for is in docs/TUNING.md.

use std::sync::Arc;

use actix_web::rt::task::JoinHandle;
use chatting_actors::{
    gate::Gate,
    types::{PresenterIdx, Seq, UserIdx},
};
use chatting_server::{
    settings::{LogBackend, Secret},
    store::history::HistoryError,
};
use serde_json::{Value, json};

use crate::{
    history::{read, recorded, request, token_with},
    limits::limited,
    support::{
        app::{TestApp, post_v1, spawn_app, spawn_with_rooms},
        eventually,
        http::{HttpClient, Response},
        mongod::Mongod,
        presenter::{V1, connect, hello},
        room_log,
        room_server::{Mode, RoomServer},
        ws::WsClient,
    },
};

type Answer = JoinHandle<Response>;

fn post(app: &TestApp, presenter: i64, text: &str) -> Answer {
    let (addr, token, text) = (app.addr, app.token(7), text.to_owned());
    actix_web::rt::spawn(async move {
        let mut client = HttpClient::connect(addr).await;
        post_v1(&mut client, presenter, &token, &text).await
    })
}

/// Leaves `count` messages waiting in a room whose room check hangs.
async fn leave_waiting(app: &TestApp, presenter: i64, count: usize) {
    for n in 0..count {
        drop(post(app, presenter, "waits"));
        eventually("it to wait", async || {
            app.room(presenter).await.filter(|room| room.waiting > n)
        })
        .await;
    }
}

/// Asks what a room looks like.
fn look(app: &TestApp, presenter: i64) -> Answer {
    let (addr, token) = (app.addr, app.token(7));
    actix_web::rt::spawn(async move {
        let mut client = HttpClient::connect(addr).await;
        let path = format!("/v1/rooms/{presenter}");
        client.request("GET", &path, &[("token", &token)], "").await
    })
}

/// Leaves `count` messages of a room numbered and not committed: the spool is held.
async fn leave_in_flight(app: &TestApp, presenter: i64, count: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    for n in 1..=count {
        answers.push(post(app, presenter, "on its way"));
        eventually("it to be numbered", async || {
            app.room(presenter).await.filter(|room| room.in_flight == n)
        })
        .await;
    }
    // What was numbered goes to the spool at the end of the turn that tells so: this is asked in a later one.
    let _ = app.room(presenter).await;
    answers
}

async fn all_accepted(answers: Vec<Answer>) {
    for answer in answers {
        assert_eq!(answer.await.unwrap().status, 201);
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

/// Depth and capacity of a queue, and what was refused (`refused`) or waited (`waits`). Those of rooms follow with the sweep.
async fn shows(app: &TestApp, queue: &str, depth: usize, capacity: usize, (kind, count): (&str, usize)) {
    let number = async |what: &str| app.metric(&format!("chat_queue_{what}{{queue=\"{queue}\"}}")).await;
    assert_eq!(number("capacity").await, Some(capacity as f64), "{queue}");
    assert_eq!(number(&format!("{kind}_total")).await, Some(count as f64), "{queue}");
    eventually(format_args!("the depth of {queue} to be {depth}"), async || {
        (number("depth").await == Some(depth as f64)).then_some(())
    })
    .await;
}

/// A server with live rooms 12 and 14, their presenters, and a quick sweep.
async fn two_rooms(change: impl FnOnce(&mut chatting_server::settings::Settings)) -> (TestApp, [WsClient; 2]) {
    let app = spawn_app(|settings| {
        settings.room.sweep_ms = 10;
        change(settings);
    })
    .await;
    app.go_live(12);
    app.go_live(14);
    let presenters = [app.presenter(12).await, app.presenter(14).await];
    // From here on each room's numbers are known, so that no message waits for them.
    for room in [12, 14] {
        assert_eq!(app.post(room, 7, "first").await.status, 201);
    }
    (app, presenters)
}

/// Returns when nothing of rooms 12 and 14 is on its way to the store, the records of their broadcasts neither: each would part
/// what is committed.
async fn at_rest(app: &TestApp) {
    let spool = rusqlite::Connection::open(&app.settings.log.path).unwrap();
    spool.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    eventually("both broadcasts in the store", async || {
        let records = "SELECT COUNT(*), SUM(stored = 1) FROM records";
        let records: (i64, Option<i64>) = spool
            .query_row(records, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        (records == (2, Some(2))).then_some(())
    })
    .await;
    // Whether there are more of them is asked once more then, before this one is out of the spool again.
    all_accepted(vec![post(app, 12, "at rest")]).await;
    crate::history::drained(app).await;
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
    shows(&app, "registry", 5, 5, ("refused", 1)).await;
    assert_eq!(app.metric("chat_refused_total{code=\"overloaded\"}").await, Some(1.0));
}

#[actix_web::test]
async fn actors_registry_room_share_leaves_permits_for_other_rooms() {
    let rooms = RoomServer::start().await;
    rooms.mode_of(13, Mode::Hang).await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.actors.registry.mailbox = 5;
        settings.actors.registry.room_share = 3;
        settings.room.pending_max = 3;
        settings.room.timeout_ms = 60_000;
        settings.room.sweep_ms = 10;
    })
    .await;
    let _presenter = app.presenter(12).await;
    leave_waiting(&app, 13, 3).await;
    overloaded(&app.post(13, 7, "one too many").await, "room_share");
    shows(&app, "room_share", 3, 3, ("refused", 1)).await;
    assert_eq!(app.post(12, 7, "elsewhere").await.status, 201);
}

#[actix_web::test]
async fn deletions_that_wait_for_a_rooms_number_are_of_its_share_and_seen_there() {
    let (app, _presenters) = two_rooms(|settings| {
        settings.actors.registry.room_share = 1;
    })
    .await;
    let hold = app.state.health.writer.hold_spool();
    let (staff, path) = (
        token_with(99, "operator", Value::Null),
        "/v1/rooms/15/messages?user_idx=7",
    );
    let (deleted, ()) = tokio::join!(request(&app, "DELETE", path, &staff, ""), async {
        shows(&app, "room_share", 1, 1, ("refused", 0)).await;
        drop(hold);
    });
    assert_eq!(deleted.status, 200, "{deleted:?}");
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
    shows(&app, "checker", 2, 2, ("refused", 1)).await;
    // Those that only join a room that is being asked about need no permit.
    drop(post(&app, 13, "joins"));
    eventually("it to join", async || {
        app.room(13).await.filter(|room| room.waiting == 2)
    })
    .await;
    assert_eq!(app.room(15).await, None, "and the refused room is not kept");
}

#[actix_web::test]
async fn actors_writer_mailbox_bounds_events_that_are_not_committed() {
    let (app, _presenters) = two_rooms(|settings| {
        settings.actors.writer.mailbox = 3;
        settings.actors.writer.room_share = 3;
    })
    .await;
    let hold = app.state.health.writer.hold_spool();
    let answers = leave_in_flight(&app, 12, 3).await;
    overloaded(&app.post(14, 7, "one too many").await, "writer");
    shows(&app, "writer", 3, 3, ("refused", 1)).await;
    drop(hold);
    all_accepted(answers).await;
    assert_eq!(app.post(14, 7, "there is room again").await.json()["seq"], 2);
    shows(&app, "writer", 0, 3, ("refused", 1)).await;
}

#[actix_web::test]
async fn actors_writer_mailbox_bytes_bounds_what_is_not_committed() {
    const BYTES: usize = 65_536;
    let (app, _presenters) = two_rooms(|settings| settings.actors.writer.mailbox_bytes = BYTES).await;
    let text = "가".repeat(2000);
    let hold = app.state.health.writer.hold_spool();
    // Each costs its text, the nickname "kim" and 128 bytes more.
    let fit = BYTES / (text.len() + 3 + 128);
    let mut answers = Vec::new();
    for n in 1..=fit {
        answers.push(post(&app, 12, &text));
        eventually("it to be numbered", async || {
            app.room(12).await.filter(|room| room.in_flight == n)
        })
        .await;
    }
    overloaded(&app.post(14, 7, &text).await, "writer_bytes");
    shows(
        &app,
        "writer_bytes",
        fit * (text.len() + 3 + 128),
        BYTES,
        ("refused", 1),
    )
    .await;
    drop(hold);
    all_accepted(answers).await;
    shows(&app, "writer_bytes", 0, BYTES, ("refused", 1)).await;
}

#[actix_web::test]
async fn actors_writer_room_share_leaves_permits_for_other_rooms() {
    let (app, _presenters) = two_rooms(|settings| {
        settings.actors.writer.mailbox = 5;
        settings.actors.writer.room_share = 2;
    })
    .await;
    let hold = app.state.health.writer.hold_spool();
    let mut answers = leave_in_flight(&app, 12, 2).await;
    overloaded(&app.post(12, 7, "one too many").await, "writer_room_share");
    answers.extend(leave_in_flight(&app, 14, 2).await);
    shows(&app, "writer_room_share", 2, 2, ("refused", 1)).await;
    drop(hold);
    all_accepted(answers).await;
    shows(&app, "writer_room_share", 0, 2, ("refused", 1)).await;
}

/// A presenter who acknowledges nothing gets four events; six more wait in the room until it does.
async fn four_and_six_wait(change: impl FnOnce(&mut chatting_server::settings::Settings)) {
    let app = spawn_app(|settings| {
        settings.room.sweep_ms = 10;
        change(settings);
    })
    .await;
    app.go_live(12);
    let mut presenter = V1::of(&app, 12, json!({})).await;
    for n in 1..=10 {
        let delivery = app.post(12, 7, &n.to_string()).await.json()["delivery"].clone();
        assert_eq!(delivery, if n <= 4 { "delivered" } else { "held" }, "{n}");
    }
    shows(&app, "session", 4, 4, ("waits", 6)).await;
    assert_eq!(presenter.chats(10).await.len(), 10);
    shows(&app, "session", 0, 4, ("waits", 6)).await;
    drop(presenter);
    shows_no_session(&app).await;
}

async fn shows_no_session(app: &TestApp) {
    eventually("no session to be counted", async || {
        (app.metric("chat_queue_capacity{queue=\"session\"}").await == Some(0.0)).then_some(())
    })
    .await;
}

#[actix_web::test]
async fn actors_session_mailbox_bounds_what_is_on_its_way_to_a_session_and_the_rest_waits() {
    four_and_six_wait(|settings| settings.actors.session.mailbox = 4).await;
}

#[actix_web::test]
async fn session_credit_events_bounds_what_a_session_has_not_acknowledged_and_the_rest_waits() {
    four_and_six_wait(|settings| settings.session.credit_events = 4).await;
}

#[actix_web::test]
async fn session_credit_bytes_bounds_the_same_in_bytes() {
    let app = spawn_app(|settings| settings.session.credit_bytes = 65_536).await;
    app.go_live(12);
    let mut presenter = V1::of(&app, 12, json!({})).await;
    let text = "x".repeat(2000);
    let mut held = 0;
    for _ in 0..60 {
        held += usize::from(app.post(12, 7, &text).await.json()["delivery"] == "held");
    }
    assert!((20..40).contains(&held), "{held} of 60 kilobyte messages waited");
    let waited = app.metric("chat_queue_waits_total{queue=\"session\"}").await;
    assert_eq!(waited, Some(held as f64));
    assert_eq!(presenter.chats(60).await.len(), 60);
}

#[actix_web::test]
async fn room_pending_max_bounds_what_waits_for_one_verdict() {
    let rooms = RoomServer::start().await;
    rooms.mode_of(13, Mode::Hang).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.pending_max = 4;
        settings.room.timeout_ms = 60_000;
        settings.room.sweep_ms = 10;
    })
    .await;
    leave_waiting(&app, 13, 4).await;
    overloaded(&app.post(13, 7, "one too many").await, "room_pending");
    shows(&app, "room_pending", 4, 4, ("refused", 1)).await;
}

#[actix_web::test]
async fn rule_08_room_pending_max_bounds_who_asks_for_a_room_with_its_messages() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    rooms.mode_of(13, Mode::Hang).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.pending_max = 4;
        settings.room.timeout_ms = 60_000;
        settings.room.sweep_ms = 10;
    })
    .await;
    let _presenter = app.presenter(12).await;
    for n in 0..4 {
        drop(look(&app, 13));
        eventually("it to wait", async || {
            app.room(13).await.filter(|room| room.waiting > n)
        })
        .await;
    }
    overloaded(&look(&app, 13).await.unwrap(), "room_pending");
    overloaded(&app.post(13, 7, "one too many").await, "room_pending");
    shows(&app, "room_pending", 4, 4, ("refused", 2)).await;
    assert_eq!(app.post(12, 7, "elsewhere").await.status, 201);
}

#[actix_web::test]
async fn room_max_lookups_bounds_questions_under_way_and_the_rest_wait() {
    let rooms = RoomServer::start().await;
    rooms.mode(Mode::Hang).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.max_lookups = 2;
        settings.room.timeout_ms = 60_000;
    })
    .await;
    for room in 13..=17 {
        leave_waiting(&app, room, 1).await;
    }
    eventually("three to wait for a place", async || {
        (app.metric("chat_queue_waits_total{queue=\"lookups\"}").await == Some(3.0)).then_some(())
    })
    .await;
    shows(&app, "lookups", 2, 2, ("waits", 3)).await;
    eventually("two to be asked", async || {
        (rooms.stats().await.concurrent == 2).then_some(())
    })
    .await;
}

#[actix_web::test]
async fn room_max_reconnects_bounds_requests_under_way_and_the_rest_are_left_out() {
    let rooms = RoomServer::start().await;
    for room in [12, 13] {
        rooms.live(room).await;
    }
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.max_reconnects = 1;
        settings.room.live_ttl_ms = 600_000;
        settings.room.timeout_ms = 60_000;
        settings.session.reconnect_request_seconds = 1;
    })
    .await;
    for room in [12, 13] {
        assert_eq!(
            app.post(room, 7, "anyone?").await.json()["code"],
            "presenter_disconnected"
        );
    }
    rooms.mode(Mode::Hang).await;
    let queue = async |what: &str| {
        let name = format!("chat_queue_{what}{{queue=\"reconnects\"}}");
        app.metric(&name).await
    };
    let ask = async || {
        for room in [12, 13] {
            let answer = app.post(room, 7, "anyone?").await;
            assert_eq!(answer.json()["code"], "presenter_disconnected");
        }
    };
    eventually("one to be under way", async || {
        ask().await;
        (queue("depth").await == Some(1.0)).then_some(())
    })
    .await;
    // Those before it may have met, too.
    let left_out = queue("refused_total").await;
    eventually("another to be left out", async || {
        ask().await;
        (queue("refused_total").await > left_out).then_some(())
    })
    .await;
    assert_eq!((queue("depth").await, queue("capacity").await), (Some(1.0), Some(1.0)));
}

#[actix_web::test]
async fn requests_to_reconnect_that_hang_leave_the_questions_their_connections() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.max_lookups = 1;
        settings.room.max_reconnects = 1;
        settings.room.live_ttl_ms = 600_000;
        settings.room.timeout_ms = 60_000;
        settings.session.reconnect_request_seconds = 1;
    })
    .await;
    let ask = async || {
        let answer = app.post(12, 7, "anyone?").await;
        assert_eq!(answer.json()["code"], "presenter_disconnected");
    };
    ask().await;
    rooms.mode(Mode::Hang).await;
    rooms.mode_of(13, Mode::Normal).await;
    eventually("a request to reconnect to hang", async || {
        ask().await;
        (app.metric("chat_queue_depth{queue=\"reconnects\"}").await == Some(1.0)).then_some(())
    })
    .await;
    assert_eq!(
        app.post(13, 7, "who is not live").await.json()["code"],
        "broadcast_ended"
    );
}

#[actix_web::test]
async fn room_ring_events_bounds_what_waits_for_a_presenter_that_is_behind() {
    let app = spawn_app(|settings| {
        settings.session.credit_events = 1;
        settings.room.ring_events = 3;
        settings.room.sweep_ms = 10;
    })
    .await;
    app.go_live(12);
    let mut presenter = V1::of(&app, 12, json!({})).await;
    for n in 1..=4 {
        assert_eq!(app.post(12, 7, &n.to_string()).await.status, 201);
    }
    overloaded(&app.post(12, 7, "one too many").await, "ring");
    shows(&app, "ring", 3, 3, ("refused", 1)).await;
    assert_eq!(presenter.chats(4).await.len(), 4);
    shows(&app, "ring", 0, 3, ("refused", 1)).await;
}

#[actix_web::test]
async fn room_ring_bytes_bounds_the_same_in_bytes() {
    let app = spawn_app(|settings| {
        settings.session.credit_events = 1;
        settings.room.ring_bytes = 65_536;
    })
    .await;
    app.go_live(12);
    let mut presenter = V1::of(&app, 12, json!({})).await;
    let text = "x".repeat(2000);
    let mut accepted = 0;
    let refused = loop {
        let answer = app.post(12, 7, &text).await;
        if answer.status != 201 {
            break answer;
        }
        accepted += 1;
    };
    overloaded(&refused, "ring");
    assert_eq!(
        accepted,
        1 + 65_536 / (2000 + 3 + 128),
        "one is on its way, the others wait"
    );
    assert_eq!(presenter.chats(accepted).await.len(), accepted);
}

#[actix_web::test]
async fn session_resume_reads_bounds_reads_for_sessions_that_are_behind_and_the_rest_wait() {
    let mongod = Mongod::start_own().await;
    let (app, presenters) = two_rooms(|settings| {
        settings.log.backend = LogBackend::Mongodb;
        settings.mongodb.uri = Secret::new(mongod.uri());
        settings.session.resume_reads = 1;
        settings.session.resume_wait_seconds = 300;
        settings.mongodb.connect_timeout_ms = 600_000;
        settings.mongodb.write_timeout_ms = 600_000;
        settings.room.ring_events = 1;
        settings.log.linger_ms = 0;
    })
    .await;
    for mut presenter in presenters {
        assert_eq!(presenter.next_json().await["message"], "first");
    }
    for room in [12, 14] {
        app.without_session(room).await;
        assert_eq!(app.post(room, 7, "second").await.status, 201);
    }
    eventually("all of it to be in the store alone", async || {
        (app.metric("chat_spool_events").await == Some(0.0)).then_some(())
    })
    .await;
    mongod.freeze();
    let mut resuming = Vec::new();
    for room in [12, 14] {
        let mut socket = connect(app.addr).await;
        socket.send_text(&hello(room, json!({ "resume_after": 0 }))).await;
        resuming.push(socket);
    }
    eventually("the other to wait", async || {
        (app.metric("chat_resumes_waiting").await == Some(1.0)).then_some(())
    })
    .await;
    shows(&app, "resume_reads", 1, 1, ("waits", 1)).await;
    // However long it waits for its `welcome`, a client can find out that its line carries something.
    for socket in &mut resuming {
        socket.send_text(r#"{"type":"ping"}"#).await;
        assert_eq!(socket.next_json().await, json!({ "type": "pong" }));
    }
    mongod.thaw();
    for mut socket in resuming {
        assert_eq!(socket.next_json().await["resumed_from"], 1);
    }
    eventually("none to wait", async || {
        (app.metric("chat_resumes_waiting").await == Some(0.0)).then_some(())
    })
    .await;
}

/// With a bound of one, what is asked of a broadcast is refused while somebody else has it, and counted.
async fn one_at_a_time(app: &TestApp, asked: &str, gate: &Arc<Gate>, queue: &str) {
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "hi").await.status, 201);
    let token = app.token(12);
    let get = async |path: &str| app.client().await.request("GET", path, &[("token", &token)], "").await;
    let id = eventually("the broadcast", async || {
        let broadcasts = get("/v1/rooms/12/broadcasts").await.json();
        broadcasts["broadcasts"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    let path = format!("/v1/broadcasts/{id}/{asked}");
    let had = gate.try_acquire(1).unwrap();
    overloaded(&get(&path).await, queue);
    shows(app, queue, 1, 1, ("refused", 1)).await;
    drop(had);
    assert_eq!(get(&path).await.status, 200);
    shows(app, queue, 0, 1, ("refused", 1)).await;
}

#[actix_web::test]
async fn figures_at_once_bounds_broadcasts_that_are_counted() {
    let app = spawn_app(|settings| settings.figures.at_once = 1).await;
    one_at_a_time(&app, "stats", &app.state.figures, "figures").await;
}

#[actix_web::test]
async fn of_one_presenter_one_broadcasts_figures_are_counted_at_a_time() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "hi").await.status, 201);
    let (own, operator) = (app.token(12), token_with(90, "operator", json!([])));
    let path = eventually("the broadcast", async || {
        let page = read(&app, "/v1/rooms/12/broadcasts", &operator).await;
        let id = page["broadcasts"][0]["id"].as_str()?;
        Some(format!("/v1/broadcasts/{id}/stats"))
    })
    .await;
    let stats = async |token: &str| request(&app, "GET", &path, token, "").await;
    let presenter = UserIdx::new(12).unwrap();
    let counting = app.state.counting.begin(presenter).unwrap();
    // A moderator of some rooms has a share as a presenter does, one of all rooms has none.
    for token in [&own, &token_with(12, "moderator", json!([12]))] {
        let refused = stats(token).await;
        limited(&refused, "1");
        let why = refused.json();
        assert!(why["detail"].as_str().unwrap().contains("one at a time"), "{why}");
    }
    for token in [&operator, &token_with(12, "moderator", json!("*"))] {
        assert_eq!(stats(token).await.status, 200);
    }
    drop(counting);
    for _ in 0..2 {
        assert_eq!(stats(&own).await.status, 200);
    }
    assert!(
        app.state.counting.begin(presenter).is_some(),
        "what was counted is over"
    );
    // Of operators none is counted.
    let _counting = app.state.counting.begin(UserIdx::new(90).unwrap()).unwrap();
    assert_eq!(stats(&operator).await.status, 200);
}

#[actix_web::test]
async fn room_cache_max_bounds_verdicts_that_are_kept_of_each_kind_and_the_oldest_goes() {
    let rooms = RoomServer::start().await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.room.cache_max = 2;
        settings.room.not_live_cache_max = 3;
        settings.room.live_ttl_ms = 600_000;
        settings.room.not_live_ttl_ms = 600_000;
    })
    .await;
    for room in 12..17 {
        rooms.live(room).await;
    }
    for room in (12..17).chain(30..35) {
        let code = app.post(room, 7, "anyone?").await.json()["code"].clone();
        let expected = if room < 20 {
            "presenter_disconnected"
        } else {
            "broadcast_ended"
        };
        assert_eq!(code, expected, "{room}");
    }
    for (verdict, kept) in [("live", 2.0), ("not_live", 3.0)] {
        let name = format!("chat_room_verdicts{{verdict=\"{verdict}\"}}");
        assert_eq!(app.metric(&name).await, Some(kept), "{verdict}");
    }
    // The last three are known, the two before them are asked about again.
    for room in (30..35).rev() {
        assert_eq!(app.post(room, 7, "anyone?").await.status, 409);
    }
    let stats = rooms.stats().await;
    let asked: Vec<_> = (30..35).map(|room| stats.checks_of(room)).collect();
    assert_eq!(asked, [2, 2, 1, 1, 1]);
}

#[actix_web::test]
async fn export_max_bounds_exports_under_way() {
    let app = spawn_app(|settings| settings.export.max = 1).await;
    one_at_a_time(&app, "export", &app.state.exports, "exports").await;
}

#[actix_web::test]
async fn history_corrections_bounds_corrections_that_are_written_those_of_what_is_so_already_too() {
    let app = spawn_app(|settings| settings.history.corrections = 1).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "hi").await.status, 201);
    let operator = token_with(90, "operator", json!([]));
    let id = eventually("the broadcast", async || {
        let page = read(&app, "/v1/rooms/12/broadcasts", &operator).await;
        page["broadcasts"].get(0).map(|broadcast| broadcast["id"].clone())
    })
    .await;
    recorded(&app, &id).await;
    let path = format!("/v1/broadcasts/{}", id.as_str().unwrap());
    let patch = async |body: &Value| request(&app, "PATCH", &path, &operator, &body.to_string()).await;
    let corrected = json!({ "started_at": "2026-01-01T00:00:00.000Z" });
    assert_eq!(patch(&corrected).await.status, 200);
    let corrected_again = json!({ "started_at": "2026-01-01T00:00:01.000Z" });
    let written = app.state.corrections.try_acquire(1).unwrap();
    for change in [
        json!({ "started_at": null }),
        json!({ "legal_hold": true }),
        json!({ "started_at": "2026-01-01T00:00:00.000Z", "legal_hold": true }),
        json!({ "legal_hold": false }),
        corrected.clone(),
    ] {
        overloaded(&patch(&change).await, "corrections");
    }
    shows(&app, "corrections", 1, 1, ("refused", 5)).await;
    drop(written);
    for same in [corrected, json!({ "started_at": "2026-01-01T09:00:00+09:00" })] {
        let answer = patch(&same).await;
        assert_eq!(answer.status, 200, "{same}: {answer:?}");
        assert_eq!(answer.json()["started_at"], "2026-01-01T00:00:00.000Z");
    }
    let back = patch(&json!({ "started_at": null, "legal_hold": true })).await.json();
    assert_eq!((back.get("corrected_from"), &back["legal_hold"]), (None, &json!(true)));
    let found = read(&app, &path, &operator).await;
    for field in ["started_at", "corrected_from", "legal_hold"] {
        assert_eq!(found.get(field), back.get(field), "{field}");
    }
    shows(&app, "corrections", 0, 1, ("refused", 5)).await;

    // A presenter has one under way, and keeps no operator from theirs.
    let under_way = app.state.correcting.begin(UserIdx::new(12).unwrap()).unwrap();
    let own = app.token(12);
    let own_patch = async || request(&app, "PATCH", &path, &own, &corrected_again.to_string()).await;
    let second = own_patch().await;
    assert_eq!(
        (second.status, &second.json()["code"]),
        (429, &json!("rate_limited")),
        "{second:?}"
    );
    assert_eq!(patch(&json!({ "legal_hold": false })).await.status, 200);
    drop(under_way);
    assert_eq!(own_patch().await.status, 200);
}

#[actix_web::test]
async fn log_readers_bounds_reads_of_history() {
    let app = spawn_app(|settings| settings.log.readers = 1).await;
    let history = &app.state.history;
    let room = PresenterIdx::new(12).unwrap();
    let reading = history.gate().try_acquire(1).unwrap();
    let refused = room_log::read(history, room, Seq(0), 10).await;
    assert!(matches!(refused, Err(HistoryError::Busy)), "{refused:?}");
    shows(&app, "readers", 1, 1, ("refused", 1)).await;
    drop(reading);
    assert_eq!(room_log::read(history, room, Seq(0), 10).await.unwrap(), []);
}

#[actix_web::test]
async fn log_commit_max_and_log_sqlite_batch_max_bound_what_goes_at_once_and_log_backlog_max_what_is_kept_in_memory() {
    let (app, _presenters) = two_rooms(|settings| {
        // Nothing that is kept of rooms now and then comes between them and parts them.
        settings.room.sweep_ms = 60_000;
        settings.room.live_ttl_ms = 600_000;
        settings.log.commit_max = 4;
        settings.log.sqlite_batch_max = 2;
        settings.log.backlog_max = 3;
    })
    .await;
    at_rest(&app).await;
    let commits = app.metric("chat_commit_events_count").await.unwrap();
    let hold = app.state.health.writer.hold_spool();
    let answers = leave_in_flight(&app, 12, 8).await;
    drop(hold);
    all_accepted(answers).await;
    assert_eq!(
        app.metric("chat_commit_events_count").await,
        Some(commits + 2.0),
        "eight in two"
    );
    assert_eq!(app.sqlite_log(12).await.len(), 10);
    let batches = async |le: &str| {
        app.metric(&format!("chat_store_batch_events_bucket{{le=\"{le}\"}}"))
            .await
    };
    assert_eq!(batches("2.0").await, batches("+Inf").await, "no batch was larger");
    // Each has its time, too, by which operators see that a disk or a store is slow.
    for what in ["commit", "store_batch"] {
        let count = async |of: &str| app.metric(&format!("chat_{what}_{of}_count")).await;
        assert_eq!(count("seconds").await, count("events").await, "{what}");
    }
    // Neither commit of four fits into a backlog of three.
    shows(&app, "backlog", 0, 3, ("waits", 8)).await;
}

#[actix_web::test]
async fn log_commit_interval_us_lets_messages_share_a_commit_and_log_commit_enough_do_not_wait_for_it() {
    let (app, _presenters) = two_rooms(|settings| {
        // Whatever the spool is told ends a wait: nothing that is kept of rooms now and then does.
        settings.room.sweep_ms = 60_000;
        settings.room.live_ttl_ms = 600_000;
        settings.log.commit_interval_us = 10_000_000;
        settings.log.commit_enough = 3;
    })
    .await;
    let commits = async || app.metric("chat_commit_events_count").await.unwrap();
    let mut tries = 0;
    loop {
        // The commit that this ends with is the last one; the next is due ten seconds later.
        at_rest(&app).await;
        let before = commits().await;
        let mut answers = leave_in_flight(&app, 12, 2).await;
        let two_wait = commits().await == before;
        answers.push(post(&app, 12, "enough"));
        all_accepted(answers).await;
        if two_wait && commits().await == before + 1.0 {
            return;
        }
        // On a slow machine the ten seconds may be over before the third has come.
        tries += 1;
        assert!(tries < 3, "never do three share a commit");
    }
}

#[actix_web::test]
async fn keys_go_when_their_window_is_over_though_nobody_sends_another_one() {
    let (app, _presenters) = two_rooms(|settings| {
        settings.idempotency.max = 3;
        settings.idempotency.window_seconds = 10;
    })
    .await;
    let bearer = format!("Bearer {}", app.token(7));
    let headers = [("Authorization", bearer.as_str()), ("Idempotency-Key", "k")];
    let mut client = app.client().await;
    let sent = client
        .post_json("/v1/rooms/12/messages", &headers, r#"{"text":"hi"}"#)
        .await;
    assert_eq!(sent.status, 201, "{sent:?}");
    shows(&app, "idempotency", 1, 3, ("refused", 0)).await;
    shows(&app, "idempotency", 0, 3, ("refused", 0)).await;
}

#[actix_web::test]
async fn idempotency_max_and_idempotency_sender_max_bound_the_keys_that_are_remembered() {
    let (app, _presenters) = two_rooms(|settings| {
        settings.idempotency.max = 3;
        settings.idempotency.sender_max = 2;
    })
    .await;
    let keyed = async |user: i64, key: &str| {
        let bearer = format!("Bearer {}", app.token(user));
        let headers = [("Authorization", bearer.as_str()), ("Idempotency-Key", key)];
        let mut client = app.client().await;
        client
            .post_json("/v1/rooms/12/messages", &headers, r#"{"text":"hi"}"#)
            .await
    };
    for key in ["1", "2"] {
        assert_eq!(keyed(7, key).await.status, 201);
    }
    overloaded(&keyed(7, "3").await, "idempotency_sender");
    assert_eq!(keyed(8, "1").await.status, 201);
    overloaded(&keyed(9, "1").await, "idempotency");
    shows(&app, "idempotency", 3, 3, ("refused", 1)).await;
    let of_sender = |what: &str| format!("chat_queue_{what}{{queue=\"idempotency_sender\"}}");
    assert_eq!(app.metric(&of_sender("refused_total")).await, Some(1.0));
    assert_eq!(app.metric(&of_sender("capacity")).await, Some(2.0));
}

#[actix_web::test]
async fn server_max_connections_bounds_open_connections_sessions_included_and_the_next_one_waits() {
    let app = spawn_app(|settings| {
        settings.server.workers = 1;
        settings.server.max_connections = 2;
        // Nobody is in a hurry to ask for something.
        settings.server.client_request_seconds = 300;
        // The metrics are to be had all the same.
        settings.ops.bind = "127.0.0.1:0".into();
    })
    .await;
    let of = async |what: &str| {
        app.metric(&format!("chat_queue_{what}{{queue=\"connections\"}}"))
            .await
            .unwrap()
    };
    let holds = async |depth: f64| {
        eventually(format_args!("{depth} open connections"), async || {
            (of("depth").await == depth).then_some(())
        })
        .await;
    };
    holds(0.0).await;
    assert_eq!((of("capacity").await, of("waits_total").await), (2.0, 0.0));
    app.go_live(12);
    let session = V1::of(&app, 12, json!({})).await;
    holds(1.0).await;
    let one = app.client().await;
    holds(2.0).await;
    eventually("it to be counted as full", async || {
        (of("waits_total").await > 0.0).then_some(())
    })
    .await;
    let mut waits = app.client().await;
    waits
        .send_request("GET", "/v1/rooms/12", &[("token", &app.token(7))], "")
        .await;
    // Whoever counts them has looked twice since, and did not let it in.
    let looked = of("waits_total").await;
    eventually("it to be counted as full twice more", async || {
        (of("waits_total").await >= looked + 2.0).then_some(())
    })
    .await;
    assert_eq!(of("depth").await, 2.0);
    drop(one);
    assert_eq!(waits.read_response(false).await.status, 200);
    drop(session);
    holds(1.0).await;
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
    assert_eq!(app.metric("chat_queue_capacity{queue=\"sessions\"}").await, Some(2.0));
    assert!(app.metric("chat_queue_refused_total{queue=\"sessions\"}").await >= Some(1.0));
    assert_eq!(idle.next_close().await, Some(1000));
    let third = eventually("its place", async || {
        WsClient::connect_with(app.addr, "/chatting", &[], None).await.ok()
    })
    .await;
    drop(third);
    assert!(app.room(12).await.unwrap().session, "the live one stays");
}
