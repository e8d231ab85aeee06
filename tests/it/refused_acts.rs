//! Deletions that MongoDB refuses to mark: a validator of the collection that has no place for them; or cannot mark, because the
//! indexes are gone. And how what is parked counts.

use chatting_actors::{
    clock::EventClock,
    metrics::Metrics,
    moderation::Act,
    seams::{LogStore, Spool},
    types::{Event, Seq},
};
use chatting_server::store::{Archive, Deleted, Durability, MongoStore, SpoolSettings, SqliteSpool};
use mongodb::bson::{Document, doc};

use crate::{
    history::{drained, read, request, seqs},
    log_archive::{act, by},
    log_store::{batch, event, mongo, room},
    support::{
        app::{KEY, mongodb_section, spawn_app, use_mongodb},
        command::run,
        eventually,
        mongod::Mongod,
        presenter::V1,
        process::ScratchDir,
    },
};

const REFUSED: &str = "MongoDB refuses to mark what this act deletes: 121: ";

pub async fn allow(database: &mongodb::Database, validator: Document) {
    let order = doc! { "collMod": "chatting_log", "validator": validator };
    database.run_command(order).await.unwrap();
}

fn of(target: &Event) -> Act {
    Act::Message {
        id: target.id,
        seq: target.seq,
    }
}

async fn deleted(store: &MongoStore, one: &Event) -> Option<Deleted> {
    store.find(one.id).await.unwrap().unwrap().deleted
}

#[actix_web::test]
async fn rule_04_an_act_whose_marks_are_refused_is_told_and_what_is_beside_it_is_stored_and_applied() {
    let store = mongo().await;
    LogStore::prepare(&store).await.unwrap();
    let database = store.database().await.unwrap();
    // No message of user 7 may be marked.
    let validator = doc! { "$or": [{ "user_idx": { "$ne": 7 } }, { "deleted_at": { "$exists": false } }] };
    allow(database, validator).await;
    let mut clock = EventClock::after(0);
    let (ours, other) = (
        by(7, event(&mut clock, 1, "e", 1, "x")),
        by(8, event(&mut clock, 1, "e", 2, "x")),
    );
    let acts = [
        act(&mut clock, 1, "e", 3, of(&ours)),
        act(&mut clock, 1, "e", 4, of(&other)),
    ];
    let behind = event(&mut clock, 2, "e", 1, "x");
    let all = [ours, other, acts[0].clone(), acts[1].clone(), behind];
    // The second time as after a failure.
    for _ in 0..2 {
        let poison = store.append(batch(&all)).await.unwrap();
        assert_eq!(poison.len(), 1, "{poison:?}");
        assert_eq!(poison[0].index, 2);
        assert!(poison[0].reason.starts_with(REFUSED), "{poison:?}");
        assert_eq!(deleted(&store, &all[0]).await, None);
        assert_eq!(deleted(&store, &all[1]).await, Some(Deleted::by(&acts[1])));
        assert_eq!(LogStore::last_seq(&store, room(2)).await.unwrap(), Seq(1));
    }
    allow(database, doc! {}).await;
    assert_eq!(store.append(batch(&acts[..1])).await.unwrap(), []);
    assert_eq!(deleted(&store, &all[0]).await, Some(Deleted::by(&acts[0])));
}

#[actix_web::test]
async fn rule_04_of_what_comes_behind_acts_only_what_an_act_could_not_mark_is_told() {
    let store = mongo().await;
    LogStore::prepare(&store).await.unwrap();
    let mut clock = EventClock::after(0);
    let said: Vec<_> = (1..=2)
        .map(|seq| by(7, event(&mut clock, 1, "late", seq, "x")))
        .collect();
    let first = by(98, act(&mut clock, 1, "e", 1, of(&said[0])));
    let all = Act::Span {
        from_ms: 0,
        to_ms: i64::MAX,
    };
    let all = by(99, act(&mut clock, 1, "e", 2, all));
    assert_eq!(store.append(batch(&[first.clone(), all])).await.unwrap(), []);
    assert_eq!(store.append(batch(&said)).await.unwrap(), []);
    let database = store.database().await.unwrap();
    // User 99 may mark none.
    allow(database, doc! { "deleted_by": { "$ne": 99 } }).await;
    let poison = store.mark_late(batch(&said)).await.unwrap();
    let told: Vec<_> = poison.iter().map(|one| one.index).collect();
    assert_eq!(told, [1], "{poison:?}");
    assert!(poison[0].reason.contains(REFUSED), "{poison:?}");
    assert_eq!(deleted(&store, &said[0]).await, Some(Deleted::by(&first)));
}

#[actix_web::test]
async fn rule_04_a_deletion_that_is_refused_holds_up_nothing_hides_its_message_and_is_marked_when_it_is_tried_again() {
    let app = spawn_app(use_mongodb).await;
    let (uri, name) = (Mongod::shared().uri(), app.settings.mongodb.database.clone());
    let client = mongodb::Client::with_uri_str(&uri).await.unwrap();
    let database = client.database(&name);
    let mut sessions = Vec::new();
    for presenter in [12, 13] {
        app.go_live(presenter);
        sessions.push(V1::of(&app, presenter, serde_json::json!({})).await);
    }
    let said = app.post(12, 7, "secret").await.json();
    drained(&app).await;
    allow(&database, doc! { "deleted_at": { "$exists": false } }).await;
    let path = format!("/v1/rooms/12/messages/{}", said["id"].as_str().unwrap());
    let answer = request(&app, "DELETE", &path, &app.token(12), "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(app.post(13, 7, "behind it").await.status, 201);
    let log = database.collection::<Document>("chatting_log");
    eventually("what is behind it to be stored", async || {
        log.find_one(doc! { "presenter_idx": 13_i64, "seq": 1_i64 })
            .await
            .unwrap()
    })
    .await;
    drained(&app).await;
    // It is counted when the file has it.
    eventually("the deletion to be counted", async || {
        let parked = app.metric("chat_parked_total").await;
        (parked == Some(1.0)).then_some(())
    })
    .await;
    let page = read(&app, "/v1/rooms/12/messages", &app.token(8)).await;
    assert_eq!(seqs(&page), [1, 2]);
    assert!(!page.to_string().contains("secret"), "{page}");
    let (_, dir, _) = app.stop().await;

    let mongodb = mongodb_section(&uri, &name);
    let settings = format!("[log]\nbackend = \"mongodb\"\npath = \"chat.db\"\n{mongodb}");
    std::fs::write(dir.path().join("settings.toml"), settings).unwrap();
    let run = |args: &[&str]| run(&dir, args, &[("CHAT__AUTH__HS256_SECRET", KEY)]);
    let (code, out, error) = run(&["spool", "replay", "--parked"]);
    assert_eq!(code, 1, "{out}{error}");
    assert!(error.contains("still parked: ") && error.contains(REFUSED), "{error}");
    let marked = async || {
        let marked = doc! { "presenter_idx": 12_i64, "seq": 1_i64, "deleted_by": 12_i64 };
        log.count_documents(marked).await.unwrap()
    };
    assert_eq!(marked().await, 0);
    allow(&database, doc! {}).await;
    let (code, out, error) = run(&["spool", "replay", "--parked"]);
    assert_eq!(code, 0, "{out}{error}");
    assert_eq!(marked().await, 1);
}

#[actix_web::test]
async fn a_deletion_that_lacks_its_indexes_gets_them_back_and_holds_up_nothing_for_long() {
    let app = spawn_app(use_mongodb).await;
    let client = mongodb::Client::with_uri_str(Mongod::shared().uri()).await.unwrap();
    let log = client
        .database(&app.settings.mongodb.database)
        .collection::<Document>("chatting_log");
    app.go_live(12);
    let _session = V1::of(&app, 12, serde_json::json!({})).await;
    assert_eq!(app.post(12, 7, "secret").await.status, 201);
    drained(&app).await;
    let indexes = async || {
        let mut names = log.list_index_names().await.unwrap();
        names.sort();
        names
    };
    let before = indexes().await;
    assert!(before.len() > 5, "{before:?}");
    // As a collection that is renamed away, and comes back from elsewhere.
    log.drop_indexes().await.unwrap();
    let path = "/v1/rooms/12/messages?user_idx=7";
    let answer = request(&app, "DELETE", path, &app.token(12), "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(app.post(12, 7, "behind it").await.status, 201);
    drained(&app).await;
    assert_eq!(indexes().await, before);
    let page = read(&app, "/v1/rooms/12/messages", &app.token(8)).await;
    assert_eq!(seqs(&page), [1, 2, 3]);
    let marked = doc! { "seq": 1_i64, "deleted_by": 12_i64 };
    assert_eq!(log.count_documents(marked).await.unwrap(), 1);
}

#[test]
fn what_is_parked_is_counted_at_a_start_and_not_again_with_each_batch_that_parks() {
    let dir = ScratchDir::new("counted");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = SqliteSpool::open(SpoolSettings {
        path: path.clone(),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: false,
    })
    .unwrap();
    let metrics = Metrics::default();
    spool.count_in(&metrics);
    let mut clock = EventClock::after(info.last_ms);
    let all: Vec<_> = (1..=2)
        .map(|seq| event(&mut clock, 1, &info.epoch.0, seq, "x"))
        .collect();
    let first = spool.commit(&all).unwrap();
    let park = |spool: &mut SqliteSpool, n: usize| {
        let pos = first + i64::try_from(n).unwrap();
        spool.free(pos, &[(pos, all[n].clone(), "no".into())], 0).unwrap();
    };
    park(&mut spool, 0);
    assert_eq!(metrics.parked_events.get(), 1);
    // Whoever counts finds one less.
    let other = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(other.execute("DELETE FROM parked", []).unwrap(), 1);
    park(&mut spool, 1);
    assert_eq!(metrics.parked_events.get(), 2);
    spool.count_in(&metrics);
    assert_eq!(metrics.parked_events.get(), 1);
}

#[test]
fn an_act_that_was_refused_and_is_stored_now_says_that_it_stays_for_what_is_parked_before_it() {
    let dir = ScratchDir::new("refused");
    let (mut spool, info) = SqliteSpool::open(SpoolSettings {
        path: dir.path().join("chat.db"),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: false,
    })
    .unwrap();
    let mut clock = EventClock::after(info.last_ms);
    let target = event(&mut clock, 1, &info.epoch.0, 1, "x");
    let refused = act(&mut clock, 1, &info.epoch.0, 2, of(&target));
    let both = [target.clone(), refused.clone()];
    let first = spool.commit(&both).unwrap();
    let parked: Vec<_> = (first..)
        .zip(&both)
        .map(|(pos, one)| (pos, one.clone(), "no".to_owned()))
        .collect();
    spool.free(first + 1, &parked, 0).unwrap();
    let forgotten = spool.unpark(&[refused.id], &[(target.id, "no, again".into())]);
    assert_eq!(forgotten.unwrap(), 0);
    let reasons: Vec<_> = spool.read_parked(&[], 10).unwrap();
    let reasons: Vec<_> = reasons.into_iter().map(|row| row.reason).collect();
    assert_eq!(
        reasons,
        ["no, again", "stored; kept for the parked messages that it covers"]
    );
}
