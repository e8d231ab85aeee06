//! A stop: what it waits for, how long, and what it says where something is lost.

use std::{sync::Arc, time::Instant};

use chatting_server::{
    app::{App, Stopped},
    settings::{LogBackend, Secret},
};

use crate::{
    history::drained,
    starts::{one_message, serve},
    support::{
        app::{settings, spawn_app, spawn_in, use_mongodb},
        eventually,
        mongod::Mongod,
        process::{Process, ScratchDir},
    },
};

#[actix_web::test]
async fn a_stop_waits_a_moment_for_mongodb_whatever_its_deadline() {
    let mongod = Mongod::start_own().await;
    let app = spawn_app(|settings| {
        settings.log.backend = LogBackend::Mongodb;
        settings.mongodb.uri = Secret::new(mongod.uri());
        // Longer than a test, so that it does not count as away.
        settings.mongodb.write_timeout_ms = 600_000;
        settings.shutdown.deadline_seconds = 600;
    })
    .await;
    app.go_live(12);
    let presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "x").await.status, 201);
    mongod.freeze();
    assert_eq!(app.post(12, 7, "waits for MongoDB").await.status, 201);
    // This waits far less than the deadline.
    let (stopped, ..) = app.stop().await;
    assert_eq!(stopped, Stopped::InOrder);
    drop(presenter);
    mongod.thaw();
}

#[actix_web::test]
async fn a_stop_gives_a_store_that_is_well_what_waits_for_its_batch() {
    let app = spawn_app(|settings| {
        use_mongodb(settings);
        // Longer than a stop takes.
        settings.log.linger_ms = 10_000;
        settings.log.batch_enough = 2;
    })
    .await;
    app.go_live(12);
    let presenter = app.presenter(12).await;
    for text in ["a batch", "that is enough"] {
        assert_eq!(app.post(12, 7, text).await.status, 201);
    }
    drained(&app).await;
    assert_eq!(app.post(12, 7, "lingers").await.status, 201);
    let began = Instant::now();
    let (stopped, _dir, settings) = app.stop().await;
    let took = began.elapsed();
    assert_eq!(stopped, Stopped::InOrder);
    let spool = rusqlite::Connection::open(&settings.log.path).unwrap();
    let left: i64 = spool
        .query_row("SELECT COUNT(*) FROM spool", [], |row| row.get(0))
        .unwrap();
    // A machine so slow that the moment was over keeps it for the next start.
    let in_time = took < chatting_server::startup::STORE_COURTESY;
    assert!(left == 0 || !in_time, "{left} left after {took:?}");
    drop(presenter);
}

#[actix_web::test]
async fn a_server_whose_spool_cannot_be_marked_as_stopped_ends_with_75_and_says_so() {
    let dir = ScratchDir::new("unmarked");
    let server = Process::start(&dir, &mut serve(&dir, &[]));
    server.address(&dir.path().join("port")).await;
    let spool = rusqlite::Connection::open(dir.path().join("data/chat.db")).unwrap();
    // As on a full disk.
    let takes_no_mark =
        "CREATE TRIGGER no BEFORE INSERT ON meta WHEN NEW.key = 'clean' BEGIN SELECT RAISE(ABORT, 'no'); END";
    spool.execute_batch(takes_no_mark).unwrap();
    one_message(&dir, &server).await;
    server.signal("TERM");
    assert_eq!(server.exited().await.code(), Some(75), "{}", server.output());
    let output = server.output();
    assert!(output.contains("its end cannot be marked clean: no"), "{output}");
    assert!(
        output.contains("stopped with a spool that could not be closed"),
        "{output}"
    );
    spool.execute_batch("DROP TRIGGER no").unwrap();
    drop(spool);
    let server = Process::start(&dir, &mut serve(&dir, &[]));
    server.line("not stopped cleanly, durability was disk").await;
}

#[actix_web::test]
async fn a_server_that_loses_what_it_answered_from_memory_ends_with_75_and_says_so() {
    let dir = ScratchDir::new("lost");
    let server = Process::start(&dir, &mut serve(&dir, &["--set", "log.durability=memory"]));
    server.address(&dir.path().join("port")).await;
    let spool = rusqlite::Connection::open(dir.path().join("data/chat.db")).unwrap();
    let takes_nothing = "CREATE TRIGGER no BEFORE INSERT ON spool BEGIN SELECT RAISE(ABORT, 'no'); END";
    spool.execute_batch(takes_nothing).unwrap();
    one_message(&dir, &server).await;
    server.signal("TERM");
    assert_eq!(server.exited().await.code(), Some(75), "{}", server.output());
    let output = server.output();
    assert!(output.contains("1 events answered from memory are lost"), "{output}");
    assert!(output.contains("stopped with events lost"), "{output}");
}

#[test]
fn a_server_that_is_dropped_leaves_neither_an_actor_nor_a_spool_that_is_open() {
    let dir = ScratchDir::new("dropped");
    let settings = settings(&dir);
    let whole = std::thread::spawn({
        let (dir, settings) = (Arc::clone(&dir), settings.clone());
        move || {
            actix_web::rt::System::new().block_on(async {
                let app = spawn_in(dir, settings).await;
                app.go_live(12);
                let _presenter = app.presenter(12).await;
                assert_eq!(app.post(12, 7, "x").await.status, 201);
            });
        }
    });
    whole.join().unwrap();
    actix_web::rt::System::new().block_on(async {
        let next = eventually("the spool to be let go", async || App::build(&settings).await.ok()).await;
        drop(next);
    });
}
