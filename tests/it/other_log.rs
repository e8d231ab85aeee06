//! A spool meets another log in MongoDB than its own: a misspelt `mongodb.database`, a URI of somebody else's.

use std::{path::Path, sync::Arc};

use chatting_server::{
    app::App,
    settings::{LogBackend, Secret, Settings},
    startup::StartError,
};
use futures_util::TryStreamExt;
use mongodb::{
    Database,
    bson::{Document, doc},
};
use serde_json::json;

use crate::{
    history::{drained, read, seqs},
    recovery::{count_aside, damage_table},
    salvage::to_be_checked,
    support::{
        app::{KEY, TestApp, settings, spawn_in, use_mongodb},
        command::run,
        eventually,
        http::get,
        mongod::{Mongod, fresh_database_name},
        presenter::V1,
        process::ScratchDir,
        proxy::Proxy,
    },
};

const IDS: &str = "chatting_log_id";

async fn database(name: &str) -> Database {
    let client = mongodb::Client::with_uri_str(Mongod::shared().uri()).await.unwrap();
    client.database(name)
}

async fn collections(name: &str) -> Vec<String> {
    database(name).await.list_collection_names().await.unwrap()
}

/// Settings of a server with a spool in this directory and a log of its own.
fn with_mongodb(dir: &ScratchDir) -> Settings {
    let mut settings = settings(dir);
    use_mongodb(&mut settings);
    settings
}

/// The same with the log that is in this database.
fn of(database: &str, settings: &Settings) -> Settings {
    let mut other = settings.clone();
    database.clone_into(&mut other.mongodb.database);
    other
}

/// Has messages accepted in room 12, which get these numbers.
async fn say(app: &TestApp, numbers: std::ops::RangeInclusive<u64>) {
    app.go_live(12);
    let _session = V1::of(app, 12, json!({})).await;
    for n in numbers {
        let answer = app.post(12, 7, &format!("said {n}")).await;
        assert_eq!((answer.status, &answer.json()["seq"]), (201, &json!(n)), "{answer:?}");
    }
}

/// A spool that a server left empty: everything is in the log that it is of.
async fn drained_into_its_log() -> (Arc<ScratchDir>, Settings) {
    let dir = ScratchDir::new("other-log");
    let settings = with_mongodb(&dir);
    let app = spawn_in(Arc::clone(&dir), settings.clone()).await;
    say(&app, 1..=1).await;
    drained(&app).await;
    app.stop().await;
    (dir, settings)
}

async fn refused(settings: &Settings) -> String {
    match App::build(settings).await {
        Err(StartError::Config(why)) => why,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it starts"),
    }
}

/// Why this server, which starts, has nothing taken by its store.
async fn waits(dir: &Arc<ScratchDir>, settings: Settings) -> String {
    let app = spawn_in(Arc::clone(dir), settings).await;
    let why = degraded(&app, "the store takes no events").await;
    app.stop().await;
    why
}

/// What `/readyz` says of it, once it says this.
async fn degraded(app: &TestApp, told: &str) -> String {
    eventually(format!("{told} in /readyz"), async || {
        let ready = get(app.addr, "/readyz").await;
        assert_eq!(ready.status, 200);
        let reasons = ready.json()["reasons"].as_array()?.clone();
        let reasons: Vec<_> = reasons.iter().filter_map(|reason| reason.as_str()).collect();
        reasons
            .iter()
            .find(|reason| reason.contains(told))
            .map(|why| (*why).to_owned())
    })
    .await
}

async fn ready(app: &TestApp) {
    eventually("a server that is ready", async || {
        (get(app.addr, "/readyz").await.json()["status"] == "ready").then_some(())
    })
    .await;
}

/// The one document of it.
async fn id_of(settings: &Settings) -> (mongodb::Collection<Document>, Document) {
    let ids = database(&settings.mongodb.database).await.collection::<Document>(IDS);
    let id = ids.find_one(doc! {}).await.unwrap().unwrap();
    (ids, id)
}

#[actix_web::test]
async fn a_server_whose_log_has_no_id_any_more_starts_into_its_spool_until_the_id_is_back() {
    let (dir, mut settings) = drained_into_its_log().await;
    settings.log.retry_max_ms = 100;
    let (ids, id) = id_of(&settings).await;
    ids.drop().await.unwrap();
    let app = spawn_in(Arc::clone(&dir), settings).await;
    let why = degraded(&app, "the store takes no events").await;
    assert!(why.contains("has no log of this server"), "{why}");
    say(&app, 2..=2).await;
    eventually("it to wait in the spool", async || {
        (app.metric("chat_spool_events").await == Some(1.0)).then_some(())
    })
    .await;
    assert_eq!(ids.count_documents(doc! {}).await.unwrap(), 0, "it has no other one");
    ids.insert_one(id).await.unwrap();
    drained(&app).await;
    ready(&app).await;
    app.stop().await;
}

#[actix_web::test]
async fn a_server_that_nobody_sends_anything_notices_another_log_and_puts_nothing_there() {
    let dir = ScratchDir::new("swapped");
    let mut settings = with_mongodb(&dir);
    settings.mongodb.heartbeat_seconds = 1;
    settings.log.retry_max_ms = 100;
    let app = spawn_in(Arc::clone(&dir), settings.clone()).await;
    say(&app, 1..=1).await;
    drained(&app).await;
    let (ids, id) = id_of(&settings).await;
    let events = database(&settings.mongodb.database)
        .await
        .collection::<Document>("chatting_log");
    let put = async |id: &str| {
        ids.update_one(doc! {}, doc! { "$set": { "id": id } }).await.unwrap();
    };
    put("another").await;
    let why = degraded(&app, "the store takes no events").await;
    assert!(why.contains("has the log another"), "{why}");
    let tries = app.metric("chat_store_retries_total").await.unwrap_or_default();
    say(&app, 2..=2).await;
    eventually("it to be tried", async || {
        (app.metric("chat_store_retries_total").await? > tries).then_some(())
    })
    .await;
    eventually("it to wait in the spool", async || {
        (app.metric("chat_spool_events").await == Some(1.0)).then_some(())
    })
    .await;
    assert_eq!(events.count_documents(doc! { "seq": 2 }).await.unwrap(), 0);
    put(id.get_str("id").unwrap()).await;
    drained(&app).await;
    ready(&app).await;
    // The same without anything to go: nothing but a heartbeat tells that it is right again.
    put("another").await;
    degraded(&app, "has the log another").await;
    put(id.get_str("id").unwrap()).await;
    ready(&app).await;
    app.stop().await;
}

#[actix_web::test]
async fn a_mongodb_that_is_slower_than_heartbeats_gets_what_waits_all_the_same() {
    let (dir, mut settings) = drained_into_its_log().await;
    let mongod = Mongod::shared().uri();
    let link = Proxy::start(mongod.trim_start_matches("mongodb://").parse().unwrap()).await;
    link.delay(std::time::Duration::from_millis(600));
    settings.mongodb.uri = Secret::new(format!("mongodb://{}/?directConnection=true", link.address()));
    settings.mongodb.heartbeat_seconds = 1;
    settings.log.retry_max_ms = 100;
    let app = spawn_in(dir, settings).await;
    say(&app, 2..=2).await;
    drained(&app).await;
    link.restore();
    app.stop().await;
}

#[actix_web::test]
async fn commands_over_a_spool_that_knows_no_log_neither_begin_one_nor_take_one_for_its_own() {
    let (dir, settings) = drained_into_its_log().await;
    let (_, id) = id_of(&settings).await;
    let status = || {
        let (code, told, error) = run(&dir, &["spool", "status", "--json", "--path", &settings.log.path], &[]);
        assert_eq!(code, 0, "{error}");
        serde_json::from_str::<serde_json::Value>(&told).unwrap()
    };
    assert_eq!(status()["log_id"], id.get_str("id").unwrap());
    assert_eq!(status()["log_database"], settings.mongodb.database.as_str());
    let (_, text, _) = run(&dir, &["spool", "status", "--path", &settings.log.path], &[]);
    let met = format!(
        "mongodb, {}, met in the database \"{}\"",
        id.get_str("id").unwrap(),
        settings.mongodb.database
    );
    assert!(text.contains(&met), "{text}");
    let spool = rusqlite::Connection::open(&settings.log.path).unwrap();
    spool.execute("DELETE FROM meta WHERE key = 'log_id'", []).unwrap();
    drop(spool);
    let empty = fresh_database_name();
    for database in [&empty, &settings.mongodb.database] {
        let [path, uri, database] = [
            format!("log.path={}", settings.log.path),
            format!("mongodb.uri={}", Mongod::shared().uri()),
            format!("mongodb.database={database}"),
        ];
        let sets = ["log.backend=mongodb", &path, &uri, &database].map(|set| ["--set", set]);
        for args in [
            &["spool", "replay"][..],
            &["erase", "--user", "7"],
            &["export", "--room", "12"],
        ] {
            let args = [args, &sets.concat()].concat();
            let (code, _, error) = run(&dir, &args, &[("CHAT__AUTH__HS256_SECRET", KEY)]);
            assert_eq!(code, 0, "{args:?}: {error}");
        }
    }
    assert!(!collections(&empty).await.contains(&IDS.to_owned()));
    assert_eq!(status()["log_id"], serde_json::Value::Null);
}

#[actix_web::test]
async fn a_spool_that_was_drained_into_one_log_is_refused_with_another_by_the_server_and_by_every_command() {
    let (dir, settings) = drained_into_its_log().await;
    let ours = settings.mongodb.database.clone();
    let command = |database: &str, args: &[&str]| {
        let [path, uri, database] = [
            format!("log.path={}", settings.log.path),
            format!("mongodb.uri={}", Mongod::shared().uri()),
            format!("mongodb.database={database}"),
        ];
        let sets = ["log.backend=mongodb", &path, &uri, &database].map(|set| ["--set", set]);
        run(
            &dir,
            &[args, &sets.concat()].concat(),
            &[("CHAT__AUTH__HS256_SECRET", KEY)],
        )
    };
    let (code, _, error) = command(&ours, &["export", "--room", "12", "--output", "12.ndjson"]);
    assert_eq!(code, 0, "{error}");
    // One that is empty, and one that has a log.
    let (empty, other_dir) = (fresh_database_name(), ScratchDir::new("other"));
    let other = with_mongodb(&other_dir);
    spawn_in(Arc::clone(&other_dir), other.clone()).await.stop().await;
    let before = collections(&other.mongodb.database).await.len();
    for (database, has) in [
        (&empty, "has no log of this server"),
        (&other.mongodb.database, "has the log "),
    ] {
        let told = [
            format!("met in the database \"{ours}\""),
            format!("the database \"{database}\" {has}"),
            "another log needs another log.path".to_owned(),
        ];
        let why = match database == &empty {
            true => waits(&dir, of(database, &settings)).await,
            false => refused(&of(database, &settings)).await,
        };
        assert!(told.iter().all(|told| why.contains(told)), "{why}");
        for args in [
            &["spool", "replay"][..],
            &["erase", "--user", "7"],
            &["erase", "--user", "7", "--dry-run"],
            &["export", "--room", "12"],
            &["import", "12.ndjson"],
        ] {
            let (code, _, error) = command(database, args);
            assert_eq!(code, 64, "{args:?}: {error}");
            assert!(told.iter().all(|told| error.contains(told)), "{args:?}: {error}");
        }
    }
    assert_eq!(collections(&empty).await, [""; 0], "nothing is written there");
    assert_eq!(collections(&other.mongodb.database).await.len(), before);
    let app = spawn_in(Arc::clone(&dir), settings).await;
    say(&app, 2..=2).await;
    app.stop().await;
}

#[actix_web::test]
async fn rule_03_a_new_spool_that_met_an_empty_log_first_does_not_begin_the_rooms_of_another_at_1() {
    let (_first, settings) = drained_into_its_log().await;
    let dir = ScratchDir::new("misspelt");
    let mut new = settings.clone();
    new.log.path = dir.path().join("chat.db").display().to_string();
    spawn_in(Arc::clone(&dir), of(&fresh_database_name(), &new))
        .await
        .stop()
        .await;
    let why = refused(&new).await;
    assert!(why.contains("has the log "), "{why}");
    new.log.path = dir.path().join("another.db").display().to_string();
    let app = spawn_in(dir, new).await;
    say(&app, 2..=2).await;
    app.stop().await;
}

#[actix_web::test]
async fn a_server_that_meets_another_log_when_mongodb_comes_back_takes_nothing_there_and_says_why() {
    let (dir, settings) = drained_into_its_log().await;
    let mongod = Mongod::shared().uri();
    let link = Proxy::start(mongod.trim_start_matches("mongodb://").parse().unwrap()).await;
    link.cut();
    let other = fresh_database_name();
    let mut wrong = of(&other, &settings);
    // As often as the driver may look whether a server is back.
    let uri = format!(
        "mongodb://{}/?directConnection=true&heartbeatFrequencyMS=500",
        link.address()
    );
    wrong.mongodb.uri = Secret::new(uri);
    wrong.mongodb.connect_timeout_ms = 300;
    wrong.log.retry_max_ms = 100;
    // What its sessions lack is not to be had there.
    wrong.session.resume_wait_seconds = 1;
    let app = spawn_in(Arc::clone(&dir), wrong).await;
    say(&app, 2..=2).await;
    link.restore();
    let told = "is of the log ";
    eventually("the reason in /readyz", async || {
        let ready = get(app.addr, "/readyz").await;
        assert_eq!(ready.status, 200);
        let reasons = ready.json()["reasons"].to_string();
        (reasons.contains("the store takes no events") && reasons.contains(told)).then_some(())
    })
    .await;
    say(&app, 3..=3).await;
    eventually("both to wait in the spool", async || {
        (app.metric("chat_spool_events").await == Some(2.0)).then_some(())
    })
    .await;
    let path = "/v1/rooms/12/messages";
    let unread = app
        .client()
        .await
        .request("GET", path, &[("token", &app.token(7))], "")
        .await;
    assert_eq!(
        (unread.status, &unread.json()["code"]),
        (503, &json!("log_unavailable"))
    );
    assert_eq!(collections(&other).await, [""; 0]);
    // It is the same log after all, under another name: moved there without its id.
    let ours = database(&settings.mongodb.database).await;
    for name in [IDS, "chatting_log"] {
        let moved = ours
            .collection::<Document>(name)
            .find_one(doc! {})
            .await
            .unwrap()
            .unwrap();
        let there = database(&other).await;
        there.collection(name).insert_one(moved).await.unwrap();
    }
    drained(&app).await;
    assert_eq!(seqs(&read(&app, path, &app.token(7)).await), [1, 2, 3]);
    assert_eq!(get(app.addr, "/readyz").await.json()["status"], "ready");
    app.stop().await;
}

/// As mongodump and mongorestore do it: all that is in a database, and its indexes.
async fn copy(from: &Database, to: &Database) {
    for name in from.list_collection_names().await.unwrap() {
        let (from, to) = (from.collection::<Document>(&name), to.collection::<Document>(&name));
        let documents: Vec<_> = from.find(doc! {}).await.unwrap().try_collect().await.unwrap();
        let indexes: Vec<_> = from.list_indexes().await.unwrap().try_collect().await.unwrap();
        if !documents.is_empty() {
            to.insert_many(documents).await.unwrap();
        }
        to.create_indexes(indexes).await.unwrap();
    }
}

#[actix_web::test]
async fn a_log_that_was_moved_whole_to_another_mongodb_goes_on_there_with_what_was_said_meanwhile() {
    let dir = ScratchDir::new("moved");
    let mut settings = with_mongodb(&dir);
    let mongod = Mongod::shared().uri();
    let link = Proxy::start(mongod.trim_start_matches("mongodb://").parse().unwrap()).await;
    settings.mongodb.uri = Secret::new(format!("mongodb://{}/?directConnection=true", link.address()));
    let app = spawn_in(Arc::clone(&dir), settings.clone()).await;
    say(&app, 1..=2).await;
    drained(&app).await;
    let (path, broadcasts) = ("/v1/rooms/12/messages", "/v1/rooms/12/broadcasts");
    let before = read(&app, path, &app.token(7)).await;
    // The server loses the old one, which is copied while chat goes on.
    link.cut();
    say(&app, 3..=3).await;
    let new = Mongod::start_own().await;
    let client = mongodb::Client::with_uri_str(new.uri()).await.unwrap();
    let moved = client.database(&settings.mongodb.database);
    copy(&database(&settings.mongodb.database).await, &moved).await;
    app.stop().await;

    settings.mongodb.uri = Secret::new(new.uri());
    let app = spawn_in(dir, settings).await;
    say(&app, 4..=4).await;
    drained(&app).await;
    ready(&app).await;
    let after = read(&app, path, &app.token(7)).await;
    assert_eq!(seqs(&after), [1, 2, 3, 4]);
    let epochs = [&before, &after].map(|page| page["messages"][0]["epoch"].clone());
    assert!(epochs[0].is_string() && epochs[0] == epochs[1], "{epochs:?}");
    let listed = read(&app, broadcasts, &app.token(7)).await;
    assert_eq!(
        listed["broadcasts"].as_array().unwrap().len(),
        1,
        "it is the same broadcast: {listed}"
    );
    let there = moved.collection::<Document>("chatting_log");
    assert_eq!(there.count_documents(doc! {}).await.unwrap(), 4);
    app.stop().await;
}

#[actix_web::test]
async fn a_spool_and_a_log_of_before_know_each_other_from_their_first_meeting_on() {
    let (dir, settings) = drained_into_its_log().await;
    let forget = |spool: &str| {
        let connection = rusqlite::Connection::open(spool).unwrap();
        assert_eq!(
            connection.execute("DELETE FROM meta WHERE key = 'log_id'", []).unwrap(),
            1
        );
    };
    let ids = database(&settings.mongodb.database).await.collection::<Document>(IDS);
    // The log has an id, and the spool knows none; then neither.
    for without_id in [false, true] {
        forget(&settings.log.path);
        if without_id {
            ids.drop().await.unwrap();
        }
        let app = spawn_in(Arc::clone(&dir), settings.clone()).await;
        assert_eq!(app.metric("chat_spool_events").await, Some(0.0));
        app.stop().await;
        assert_eq!(ids.count_documents(doc! {}).await.unwrap(), 1);
        let why = waits(&dir, of(&fresh_database_name(), &settings)).await;
        assert!(why.contains("has no log of this server"), "{why}");
    }
    assert_eq!(settings.log.backend, LogBackend::Mongodb);
}

#[actix_web::test]
async fn a_spool_that_was_salvaged_still_knows_its_log() {
    let (dir, settings) = drained_into_its_log().await;
    let path = Path::new(&settings.log.path);
    to_be_checked(path);
    damage_table(path, "rooms");
    let (_other, other) = drained_into_its_log().await;
    let why = refused(&of(&other.mongodb.database, &settings)).await;
    assert!(why.contains("has the log"), "{why}");
    assert_eq!(count_aside(dir.path()), 1, "it was salvaged");
}
