//! A presenter goes on where it was (rule 16): from memory, from the log, across restarts and cuts; what cannot be sent again is told.

use std::{sync::Arc, time::Duration};

use chatting_server::{
    app::Stopped,
    settings::{Durability, LogBackend, Secret, Settings},
};
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, settings, spawn_app, spawn_in},
    eventually,
    mongod::Mongod,
    presenter::{V1, app, connect, end_of, hello, leave, numbered, send},
    process::ScratchDir,
    proxy::Proxy,
};

/// How many v1 sessions began up to date, resumed, and with a gap.
async fn resumes(app: &TestApp) -> [f64; 3] {
    let mut counted = [0.0; 3];
    for (count, outcome) in counted.iter_mut().zip(["up_to_date", "resumed", "gap"]) {
        let series = format!("chat_resumes_total{{outcome=\"{outcome}\"}}");
        *count = app.metric(&series).await.unwrap();
    }
    counted
}

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
    assert_eq!(resumes(&app).await, [3.0, 7.0, 0.0]);
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
    assert_eq!(resumes(&app).await, [1.0, 0.0, 1.0]);
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
        let app = if kill {
            eventually("the place to be saved", async || {
                saved_position(&app).filter(|saved| *saved == 3)
            })
            .await;
            app.sqlite_log(12).await;
            let (dir, settings) = as_a_kill_leaves_it(&app);
            app.stop().await;
            spawn_in(dir, settings).await
        } else {
            let (_, dir, settings) = app.stop().await;
            spawn_in(dir, settings).await
        };
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

#[actix_web::test]
async fn a_session_that_waits_for_its_welcome_is_told_of_a_stop_by_its_close_alone() {
    // A new spool knows no room's last number, and the store that does is not there.
    let app = spawn_app(|settings| {
        settings.log.backend = LogBackend::Mongodb;
        settings.mongodb.uri = Secret::new("mongodb://127.0.0.1:1");
        settings.mongodb.connect_timeout_ms = 100;
    })
    .await;
    app.go_live(12);
    let mut waits = connect(app.addr).await;
    waits.send_text(&hello(12, json!({}))).await;
    eventually("its session", async || app.room(12).await.filter(|room| room.session)).await;
    let (_, heard) = tokio::join!(app.stop(), waits.texts_to_the_end());
    assert_eq!(heard, (Vec::<String>::new(), Some(1001)));
}

/// The files of a server that rests, as they are while it runs: nothing was closed or said goodbye to.
fn as_a_kill_leaves_it(app: &TestApp) -> (Arc<ScratchDir>, Settings) {
    let dir = ScratchDir::new("killed");
    for entry in std::fs::read_dir(app.dir.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let mut settings = app.settings.clone();
    settings.log.path = dir.path().join("chat.db").display().to_string();
    (dir, settings)
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
async fn a_resume_goes_on_when_the_store_is_away_as_far_as_the_spool_reaches_and_a_stop_does_not_wait_for_it() {
    let mongod = Mongod::start_own().await;
    let dir = ScratchDir::new("resume");
    let mut settings = settings(&dir);
    settings.log.backend = LogBackend::Mongodb;
    settings.mongodb.uri = Secret::new(mongod.uri());
    settings.mongodb.connect_timeout_ms = 1000;
    settings.mongodb.write_timeout_ms = 60_000;
    settings.room.ring_events = 4;
    settings.room.sweep_ms = 20;
    settings.session.resume_wait_seconds = 2;
    // Far beyond what the test waits for its stop.
    settings.shutdown.deadline_seconds = 600;
    let app = spawn_in(dir, settings).await;
    app.go_live(12);
    // The store must have told first where the room goes on.
    let mut first = eventually("the store to be there", async || {
        let mut socket = connect(app.addr).await;
        socket.send_text(&hello(12, json!({}))).await;
        let welcome = socket.next_json().await;
        (welcome["type"] == "welcome").then_some(V1 { socket, welcome })
    })
    .await;
    for n in 1..=10_u64 {
        send(&app, n..=n).await;
        assert_eq!(first.chats(1).await, numbered(n..=n));
    }
    crate::history::drained(&app).await;
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
    // What is still in the spool stays there: a stop waits for no MongoDB.
    eventually("the spool to be counted", async || {
        (app.metric("chat_spool_events").await == Some(10.0)).then_some(())
    })
    .await;
    let (stopped, ..) = app.stop().await;
    assert_eq!(stopped, Stopped::InOrder);
}
