//! Rules 6 and 7: reading while events move from the spool to the store, and one server a log.

use std::{process::Command, sync::Arc, time::Duration};

use chatting_actors::{
    seams::{LogRange, LogReader},
    types::{Epoch, PresenterIdx, Seq},
};
use chatting_server::{
    app::{App, Extras, Stopped},
    settings::{LogBackend, Secret},
    store::ServerBeat,
};

use mongodb::{
    Collection,
    bson::{Document, doc},
};

use crate::{
    log_store::mongo_in,
    support::{
        app::{KEY, TestApp, post_v1, settings, spawn_app, use_mongodb},
        command::command,
        eventually,
        http::{HttpClient, get},
        mongod::{Mongod, fresh_database_name},
        process::{Process, ScratchDir, output},
        proxy::Proxy,
        room_log::read,
    },
};

#[actix_web::test]
async fn rule_06_a_read_misses_nothing_that_moves_from_the_spool_to_the_store_and_doubles_nothing() {
    for mongodb in [false, true] {
        let app = spawn_app(|settings| {
            if mongodb {
                use_mongodb(settings);
            }
            // Small batches at once, so that events move all the time.
            settings.log.batch_max = 7;
            settings.log.sqlite_batch_max = 7;
            settings.log.linger_ms = 0;
        })
        .await;
        app.go_live(12);
        let _presenter = app.presenter(12).await;
        let writers: Vec<_> = (0..4)
            .map(|user| {
                let (addr, token) = (app.addr, app.token(user));
                actix_web::rt::spawn(async move {
                    let mut client = HttpClient::connect(addr).await;
                    for n in 0..150 {
                        assert_eq!(post_v1(&mut client, 12, &token, &n.to_string()).await.status, 201);
                    }
                })
            })
            .collect();
        let room = PresenterIdx::new(12).unwrap();
        let mut reads = 0;
        loop {
            let accepted = app.room(12).await.and_then(|room| room.last_seq).unwrap_or_default();
            let found = read(&app.state.history, room, Seq(0), 10_000).await.unwrap();
            let seqs: Vec<_> = found.iter().map(|event| event.seq.0).collect();
            assert_eq!(
                seqs,
                (1..=seqs.len() as u64).collect::<Vec<_>>(),
                "without a hole, each once"
            );
            assert!(
                seqs.len() as u64 >= accepted.0,
                "{} of {accepted} accepted were read",
                seqs.len()
            );
            reads += 1;
            if seqs.len() == 600 {
                break;
            }
        }
        assert!(reads > 3);
        for writer in writers {
            writer.await.unwrap();
        }
        let page = read(&app.state.history, room, Seq(100), 50).await.unwrap();
        assert_eq!(
            page.iter().map(|event| event.seq.0).collect::<Vec<_>>(),
            (101..=150).collect::<Vec<_>>()
        );
    }
}

#[actix_web::test]
async fn rule_07_of_two_servers_that_start_on_one_log_at_once_at_most_one_goes_on() {
    let database = fresh_database_name();
    let with_mongodb = |dir: &Arc<ScratchDir>| {
        let mut settings = settings(dir);
        use_mongodb(&mut settings);
        settings.mongodb.database.clone_from(&database);
        settings.mongodb.heartbeat_seconds = 600;
        settings
    };
    let (one, two) = (ScratchDir::new("one"), ScratchDir::new("two"));
    let (first, second) = (with_mongodb(&one), with_mongodb(&two));
    let started = tokio::join!(App::build(&first), App::build(&second));
    let apps: Vec<App> = [started.0, started.1].into_iter().flatten().collect();
    assert!(apps.len() <= 1, "both started");
    for app in apps {
        app.run_until(std::future::ready(())).await.unwrap();
    }
    // Who was refused, or came to nothing otherwise, is in nobody's way.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut without_port = first.clone();
    without_port.server.bind = taken.local_addr().unwrap().to_string();
    assert!(App::build(&without_port).await.is_err());
    let broken_off = App::build_until(&first, Extras::default(), async {
        let client = mongodb::Client::with_uri_str(Mongod::shared().uri()).await.unwrap();
        let servers = client.database(&database).collection::<Document>("servers");
        eventually("it to say that it lives", async || {
            servers.find_one(doc! {}).await.unwrap()
        })
        .await;
    });
    if let Some(app) = broken_off.await.unwrap() {
        app.run_until(std::future::ready(())).await.unwrap();
    }
    let app = App::build(&second).await.unwrap();
    app.run_until(std::future::ready(())).await.unwrap();
}

/// A log that more than one server is started on.
struct SharedLog {
    uri: String,
    database: String,
    heartbeat_seconds: u32,
}

impl SharedLog {
    fn new(heartbeat_seconds: u32) -> Self {
        Self {
            uri: Mongod::shared().uri(),
            database: fresh_database_name(),
            heartbeat_seconds,
        }
    }

    /// A server whose spool is in this directory.
    fn serve(&self, dir: &ScratchDir) -> Command {
        let mut command = command(dir, &["serve", "--port-file", "port"]);
        command.env("CHAT__AUTH__HS256_SECRET", KEY);
        for set in [
            "server.bind=127.0.0.1:0",
            "room.mode=embedded",
            "log.backend=mongodb",
            &format!("mongodb.heartbeat_seconds={}", self.heartbeat_seconds),
            &format!("mongodb.uri={}", self.uri),
            &format!("mongodb.database={}", self.database),
        ] {
            command.args(["--set", set]);
        }
        command
    }

    async fn servers(&self) -> Collection<Document> {
        let client = mongodb::Client::with_uri_str(&self.uri).await.unwrap();
        client.database(&self.database).collection("servers")
    }

    /// Waits for a heartbeat later than this, in milliseconds since 1970, and gives its time.
    async fn heartbeat_after(&self, ms: i64) -> i64 {
        let servers = self.servers().await;
        eventually("a heartbeat", async || {
            let server = servers.find_one(doc! {}).await.unwrap()?;
            let at = server.get_datetime("heartbeat").unwrap().timestamp_millis();
            (at > ms).then_some(at)
        })
        .await
    }
}

#[actix_web::test]
async fn rule_07_a_second_server_on_one_log_is_refused_while_the_first_lives() {
    let log = SharedLog::new(600);
    let serve = |dir: &Arc<ScratchDir>| log.serve(dir);
    let (one, two) = (ScratchDir::new("one"), ScratchDir::new("two"));
    let first = Process::start(&one, &mut serve(&one));
    first.address(&one.path().join("port")).await;
    log.heartbeat_after(0).await;
    let refused = output(two.path(), &mut serve(&two));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(69), "{error}");
    assert!(
        error.contains("another server writes to this log") && error.contains(&first.pid().to_string()),
        "{error}"
    );
    // Killed, not stopped: its own spool may start again at once, another may not.
    first.kill().await;
    assert_eq!(output(two.path(), &mut serve(&two)).status.code(), Some(69));
    std::fs::remove_file(one.path().join("port")).unwrap();
    let again = Process::start(&one, &mut serve(&one));
    again.address(&one.path().join("port")).await;
    again.signal("TERM");
    assert!(again.exited().await.success(), "{}", again.output());
    // Stopped in order, it has left: another may start.
    let second = Process::start(&two, &mut serve(&two));
    second.address(&two.path().join("port")).await;
    second.signal("TERM");
    assert!(second.exited().await.success());
}

#[actix_web::test]
async fn rule_07_another_server_starts_when_the_heartbeats_of_one_that_was_killed_are_not_fresh_any_more() {
    let log = SharedLog::new(3);
    let (one, two) = (ScratchDir::new("beating"), ScratchDir::new("after"));
    let first = Process::start(&one, &mut log.serve(&one));
    first.address(&one.path().join("port")).await;
    let began = log.heartbeat_after(0).await;
    // Later than one heartbeat counts: it is those that came since that keep the other out.
    log.heartbeat_after(began + 12_000).await;
    let refused = output(two.path(), &mut log.serve(&two));
    assert_eq!(refused.status.code(), Some(69));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(
        error.contains("it counts as gone 9 s after its last heartbeat"),
        "{error}"
    );
    first.kill().await;
    let last = log.heartbeat_after(0).await;
    let second = eventually("the other to be let in", async || {
        let second = Process::start(&two, &mut log.serve(&two));
        let port = two.path().join("port");
        let up = eventually("its start, or its refusal", async || {
            port.exists().then_some(true).or(second.exit().map(|_| false))
        })
        .await;
        if !up {
            assert_eq!(second.exit().unwrap().code(), Some(69), "{}", second.output());
        }
        up.then_some(second)
    })
    .await;
    // Its first one came no sooner than this, by the clock of the database.
    let servers = log.servers().await;
    let of_second = doc! { "pid": i64::from(second.pid()) };
    let of_second = servers.find_one(of_second).await.unwrap().unwrap();
    let said = of_second.get_datetime("heartbeat").unwrap().timestamp_millis();
    assert!(said >= last + 9_000, "{} ms after the last one", said - last);
    second.signal("TERM");
    assert!(second.exited().await.success(), "{}", second.output());
}

#[actix_web::test]
async fn rule_07_a_heartbeat_is_fresh_by_the_longer_of_two_intervals_and_never_when_it_is_far_in_the_future() {
    let database = fresh_database_name();
    let servers = mongo_in(database.clone()).await;
    let servers = servers.database().await.unwrap().collection::<Document>("servers");
    let beat = async |id: &str, seconds| {
        let store = mongo_in(database.clone()).await;
        let beat = ServerBeat::new(&store, id, Duration::from_secs(seconds));
        beat.beat().await.unwrap();
        beat
    };
    // As if it had been so long ago, by the database's own clock, which may have been set back since.
    let ago = async |id: &str, seconds: i64| {
        let at = doc! { "$subtract": ["$$NOW", seconds * 1000] };
        let set = vec![doc! { "$set": { "heartbeat": at } }];
        servers.update_one(doc! { "_id": id }, set).await.unwrap();
    };
    // Each question has its interval's time.
    let (seldom, often) = (beat("seldom", 60).await, beat("often", 20).await);
    for (seconds, fresh) in [(150, true), (200, false), (-150, true), (-200, false)] {
        for (id, asked) in [("seldom", &often), ("often", &seldom)] {
            ago(id, seconds).await;
            let other = asked.other().await.unwrap();
            assert_eq!(other.is_some(), fresh, "{id}, {seconds} s ago: {other:?}");
            let known = other.is_none_or(|other| other.contains("it counts as gone 180 s after its last heartbeat"));
            assert!(known, "{id}");
        }
    }
    // An earlier version does not say how often.
    let unset = doc! { "$unset": { "interval_ms": "" } };
    servers.update_many(doc! {}, unset).await.unwrap();
    for (id, asked, fresh) in [("seldom", &often, false), ("often", &seldom, true)] {
        ago(id, 150).await;
        assert_eq!(asked.other().await.unwrap().is_some(), fresh, "{id}");
    }
}

#[actix_web::test]
async fn rule_07_a_connection_that_is_silent_costs_a_heartbeat_and_not_all_of_them() {
    let log = SharedLog::new(1);
    let mongod: std::net::SocketAddr = log.uri.trim_start_matches("mongodb://").parse().unwrap();
    let link = Proxy::start(mongod).await;
    let app = spawn_app(|settings| {
        settings.log.backend = LogBackend::Mongodb;
        settings.mongodb.uri = Secret::new(format!("mongodb://{}/?directConnection=true", link.address()));
        settings.mongodb.database.clone_from(&log.database);
        settings.mongodb.heartbeat_seconds = 1;
        // So long the driver takes at least to find out by itself.
        settings.mongodb.connect_timeout_ms = 600_000;
    })
    .await;
    log.heartbeat_after(0).await;
    // As when the primary's host lost its power, and another one has its address.
    link.half_open();
    let mut last = log.heartbeat_after(0).await;
    // The first may have been on its way.
    for _ in 0..3 {
        last = log.heartbeat_after(last).await;
    }
    app.stop().await;
}

#[actix_web::test]
async fn rule_07_two_servers_that_came_to_one_log_are_told_of_until_one_of_them_has_gone() {
    let log = SharedLog::new(1);
    let mongod: std::net::SocketAddr = log.uri.trim_start_matches("mongodb://").parse().unwrap();
    let link = Proxy::start(mongod).await;
    let serve = |address: std::net::SocketAddr| {
        let database = log.database.clone();
        spawn_app(move |settings| {
            settings.log.backend = LogBackend::Mongodb;
            settings.mongodb.uri = Secret::new(format!("mongodb://{address}/?directConnection=true"));
            settings.mongodb.database = database;
            settings.mongodb.heartbeat_seconds = 1;
            settings.mongodb.connect_timeout_ms = 1000;
        })
    };
    let told = async |app: &TestApp| {
        let ready = get(app.addr, "/readyz").await.json();
        let reason = "another server writes to this log: stop one of them";
        let told = ready["reasons"].as_array()?.iter().any(|one| one == reason);
        let others = app.metric("chat_other_servers").await?;
        Some((others, told, ready["status"].as_str()?.to_owned()))
    };
    let alone = Some((0.0, false, "ready".to_owned()));
    let one_of_two = Some((1.0, true, "degraded".to_owned()));
    let first = serve(mongod).await;
    eventually("the first to be alone", async || {
        (told(&first).await == alone).then_some(())
    })
    .await;
    // It cannot see the first one, and starts.
    link.cut();
    let second = serve(link.address()).await;
    link.restore();
    for app in [&first, &second] {
        eventually("both to be told of", async || {
            (told(app).await == one_of_two).then_some(())
        })
        .await;
    }
    first.stop().await;
    eventually("the other to be alone", async || {
        (told(&second).await == alone).then_some(())
    })
    .await;
    second.stop().await;
}

#[actix_web::test]
async fn pages_of_the_spool_follow_each_other_without_a_hole_whatever_each_was_asked_for() {
    let app = spawn_app(|settings| {
        // Nobody there: everything stays in the spool.
        settings.log.backend = LogBackend::Mongodb;
        settings.mongodb.uri = Secret::new("mongodb://127.0.0.1:9");
        settings.mongodb.connect_timeout_ms = 100;
    })
    .await;
    // The store cannot tell the rooms' last seqs, so they are told here.
    let mut spool = rusqlite::Connection::open(&app.settings.log.path).unwrap();
    spool.busy_timeout(Duration::from_secs(10)).unwrap();
    let rows = spool.transaction().unwrap();
    for seq in 1..=10 {
        for presenter in [12, 13] {
            rows.execute(
                "INSERT INTO spool(epoch, presenter_idx, seq, id, sent_at, user_idx, nickname, message, role)
                 VALUES ((SELECT value FROM meta WHERE key = 'epoch'), ?1, ?2, ?3, 0, 7, 'kim', 'hi', 'viewer')",
                rusqlite::params![presenter, seq, uuid::Uuid::now_v7().as_bytes()],
            )
            .unwrap();
        }
    }
    let epoch: String = rows
        .query_row("SELECT epoch FROM epochs", [], |row| row.get(0))
        .unwrap();
    rows.commit().unwrap();
    let mut seen = Vec::new();
    let mut spool_from = 0;
    for (through, limit) in [(3, 2), (3, 100), (3, 100), (6, 100), (10, 2), (10, 1), (10, 100)] {
        let range = LogRange {
            presenter: PresenterIdx::new(12).unwrap(),
            epoch: Epoch(epoch.as_str().into()),
            after: Seq(seen.len() as u64),
            through: Seq(through),
            limit,
        };
        let page = app.state.history.read(range, spool_from).await.unwrap();
        assert!(page.events.len() <= limit);
        assert!(page.spool_from >= spool_from, "{} after {spool_from}", page.spool_from);
        spool_from = page.spool_from;
        seen.extend(page.events.iter().map(|event| event.seq.0));
    }
    assert_eq!(seen, (1..=10).collect::<Vec<_>>());
}

#[actix_web::test]
async fn a_stop_waits_for_no_read_of_a_log_that_does_not_answer() {
    let mongod = Mongod::start_own().await;
    let app = spawn_app(|settings| {
        settings.log.backend = LogBackend::Mongodb;
        settings.mongodb.uri = Secret::new(mongod.uri());
        settings.mongodb.connect_timeout_ms = 600_000;
        settings.mongodb.write_timeout_ms = 600_000;
        settings.shutdown.requests_seconds = 1;
        settings.shutdown.deadline_seconds = 600;
    })
    .await;
    let token = app.token(7);
    let headers = [("token", token.as_str())];
    let path = "/v1/rooms/12/messages";
    assert_eq!(app.client().await.request("GET", path, &headers, "").await.status, 200);
    mongod.freeze();
    let mut client = app.client().await;
    client.send_request("GET", path, &headers, "").await;
    eventually("it to read", async || {
        (app.metric("chat_queue_depth{queue=\"readers\"}").await == Some(1.0)).then_some(())
    })
    .await;
    let (stopped, ..) = app.stop().await;
    assert_eq!(stopped, Stopped::InOrder);
    assert!(client.is_closed().await);
    mongod.thaw();
}
