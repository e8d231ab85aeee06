//! Records of broadcasts that MongoDB refuses.

use chatting_actors::{
    metrics::Metrics,
    seams::{LogStore, NotPut, Spool},
    wire::v1::timestamp,
};
use chatting_server::store::{Archive, Durability, MongoStore, SpoolSettings, SqliteSpool};
use mongodb::{
    IndexModel,
    bson::{Document, doc},
    options::IndexOptions,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    history::{read, recorded, request, token_with},
    log_archive::broadcast,
    log_store::mongo,
    support::{
        app::{TestApp, spawn_app, spawn_in, use_mongodb},
        eventually,
        mongod::Mongod,
        presenter::V1,
        process::ScratchDir,
    },
};

/// The database of this server, with its collections.
async fn database_of(app: &TestApp) -> mongodb::Database {
    let client = mongodb::Client::with_uri_str(Mongod::shared().uri()).await.unwrap();
    let database = client.database(&app.settings.mongodb.database);
    eventually("the collection to be there", async || {
        let names = database.list_collection_names().await.unwrap();
        names.contains(&"broadcasts".to_owned()).then_some(())
    })
    .await;
    database
}

/// From now on MongoDB takes no broadcast of these rooms; of none, all.
async fn refuse(database: &mongodb::Database, rooms: &[i64]) {
    let validator = doc! { "presenter_idx": { "$nin": rooms } };
    let order = doc! { "collMod": "broadcasts", "validator": validator };
    database.run_command(order).await.unwrap();
}

async fn has(store: &MongoStore, n: u128) -> bool {
    store.broadcast(Uuid::from_u128(n)).await.unwrap().is_some()
}

#[actix_web::test]
async fn a_broadcast_that_is_refused_is_told_and_the_others_are_stored() {
    let store = mongo().await;
    store.prepare().await.unwrap();
    refuse(store.database().await.unwrap(), &[13]).await;
    // More than one command's worth, one refused in each.
    let room = |n: u128| if n == 7 || n == 900 { 13 } else { 12 };
    let all: Vec<_> = (0..1200).map(|n| broadcast(n, room(n), 1, None)).collect();
    for _ in 0..2 {
        let not_put = store.put_broadcasts(&all).await.unwrap();
        let told: Vec<_> = not_put.iter().map(|one| (one.index, one.for_good)).collect();
        assert_eq!(told, [(7, true), (900, true)], "{not_put:?}");
        let NotPut { reason, .. } = &not_put[0];
        assert!(reason.starts_with("121: "), "{reason}");
    }
    for (n, there) in [
        (6, true),
        (7, false),
        (8, true),
        (899, true),
        (900, false),
        (1199, true),
    ] {
        assert_eq!(has(&store, n).await, there, "{n}");
    }
}

#[actix_web::test]
async fn a_broadcast_that_a_unique_index_of_somebody_else_refuses_is_told_and_not_taken_for_stored() {
    let store = mongo().await;
    store.prepare().await.unwrap();
    let records = store.database().await.unwrap().collection::<Document>("broadcasts");
    let unique = IndexOptions::builder().unique(true).build();
    let theirs = IndexModel::builder()
        .keys(doc! { "roomIdx": 1 })
        .options(unique)
        .build();
    records.create_index(theirs).await.unwrap();
    // None of ours has that field, and one without it may be there.
    let both = [broadcast(1, 12, 1, None), broadcast(2, 13, 1, None)];
    for _ in 0..2 {
        let not_put = store.put_broadcasts(&both).await.unwrap();
        let told: Vec<_> = not_put.iter().map(|one| (one.index, one.for_good)).collect();
        assert_eq!(told, [(1, true)], "{not_put:?}");
        let NotPut { reason, .. } = &not_put[0];
        assert!(
            reason.starts_with("11000: ") && reason.contains("roomIdx_1"),
            "{reason}"
        );
    }
    assert!(has(&store, 1).await && !has(&store, 2).await);
}

#[test]
fn what_is_refused_stays_in_the_spool_and_counts_again_when_it_changes_or_at_the_next_start() {
    let dir = ScratchDir::new("refused");
    let settings = SpoolSettings {
        path: dir.path().join("chat.db"),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: false,
    };
    let (mut spool, _) = SqliteSpool::open(settings.clone()).unwrap();
    let metrics = Metrics::default();
    spool.count_in(&metrics);
    let refused = || metrics.refused_broadcasts.get();
    let (open, over, taken) = (
        broadcast(1, 1, 1, None),
        broadcast(2, 2, 1, Some(30)),
        broadcast(3, 3, 1, Some(30)),
    );
    spool
        .keep_broadcasts(&[open.clone(), over.clone(), taken.clone()])
        .unwrap();
    spool
        .broadcasts_stored(&[taken], &[open.clone(), over.clone()])
        .unwrap();
    assert_eq!(spool.unstored_broadcasts(10).unwrap(), []);
    assert_eq!(refused(), 2);
    // That it was seen again makes it no other broadcast.
    let mut seen = open.clone();
    (seen.version, seen.seen_at_ms) = (2, 99);
    assert!(!spool.keep_broadcasts(std::slice::from_ref(&seen)).unwrap());
    assert_eq!(spool.unstored_broadcasts(10).unwrap(), []);
    let ended = broadcast(1, 1, 3, Some(40));
    spool.keep_broadcasts(std::slice::from_ref(&ended)).unwrap();
    assert_eq!(refused(), 1, "as it is now it was not");
    assert_eq!(spool.unstored_broadcasts(10).unwrap(), std::slice::from_ref(&ended));
    // Refused as it was before: that says nothing of how it is now.
    spool.broadcasts_stored(&[], std::slice::from_ref(&seen)).unwrap();
    assert_eq!(spool.unstored_broadcasts(10).unwrap(), std::slice::from_ref(&ended));
    spool.broadcasts_stored(&[], std::slice::from_ref(&ended)).unwrap();
    assert_eq!(spool.unstored_broadcasts(10).unwrap(), []);
    assert_eq!(refused(), 2);
    spool.close();
    drop(spool);
    let (mut spool, _) = SqliteSpool::open(settings).unwrap();
    assert_eq!(spool.unstored_broadcasts(10).unwrap(), [ended, over]);
}

async fn newest(app: &TestApp, presenter: i64) -> Value {
    let path = format!("/v1/rooms/{presenter}/broadcasts");
    eventually("a broadcast", async || {
        let page = read(app, &path, &app.token(7)).await;
        page["broadcasts"].get(0).cloned()
    })
    .await
}

#[actix_web::test]
async fn a_refused_broadcast_holds_up_no_other_and_is_stored_when_it_is_not_refused_any_more() {
    let app = spawn_app(use_mongodb).await;
    let database = database_of(&app).await;
    refuse(&database, &[12]).await;
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let tries = async |id: &Value| {
        let id: Uuid = id.as_str().unwrap().parse().unwrap();
        let id = mongodb::bson::Uuid::from_bytes(*id.as_bytes());
        let profile = database.collection::<Document>("system.profile");
        let which = doc! { "op": "update", "command.q._id": id };
        profile.count_documents(which).await.unwrap()
    };
    app.go_live(12);
    let _refused = V1::of(&app, 12, json!({})).await;
    let refused = newest(&app, 12).await;
    eventually("it to be tried", async || {
        (tries(&refused["id"]).await == 1).then_some(())
    })
    .await;
    for presenter in [13, 14] {
        app.go_live(presenter);
        let _session = V1::of(&app, presenter, json!({})).await;
        recorded(&app, &newest(&app, presenter).await["id"]).await;
    }
    assert_eq!(tries(&refused["id"]).await, 1, "once, whatever others do");
    assert_eq!(newest(&app, 12).await["id"], refused["id"]);
    // It is live no more, and so it may be one that is taken.
    app.go_off(12);
    eventually("it to be tried again", async || {
        (tries(&refused["id"]).await == 2).then_some(())
    })
    .await;
    let (_, dir, settings) = app.stop().await;
    refuse(&database, &[]).await;
    let app = spawn_in(dir, settings).await;
    recorded(&app, &refused["id"]).await;
    assert!(newest(&app, 12).await["segments"][0]["to"].is_string());
}

#[actix_web::test]
async fn a_hold_or_a_correction_that_the_store_has_no_broadcast_for_is_not_answered_as_if_it_were_kept() {
    let app = spawn_app(use_mongodb).await;
    let database = database_of(&app).await;
    refuse(&database, &[12]).await;
    app.go_live(12);
    let _session = V1::of(&app, 12, json!({})).await;
    // It is read from the spool.
    let refused = newest(&app, 12).await;
    let path = format!("/v1/broadcasts/{}", refused["id"].as_str().unwrap());
    let start: jiff::Timestamp = refused["started_at"].as_str().unwrap().parse().unwrap();
    let earlier = start.as_millisecond() - 1000;
    let operator = token_with(90, "operator", Value::Null);
    let both = json!({ "legal_hold": true, "started_at": timestamp(earlier) });
    for body in [
        json!({ "legal_hold": true }),
        json!({ "started_at": timestamp(earlier) }),
        both.clone(),
    ] {
        let answer = request(&app, "PATCH", &path, &operator, &body.to_string()).await;
        let problem = answer.json();
        assert_eq!(
            (answer.status, &problem["code"], &problem["detail"]),
            (
                503,
                &"log_unavailable".into(),
                &"the store does not have this broadcast yet".into()
            ),
            "{body}: {answer:?}"
        );
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
    let (_, dir, settings) = app.stop().await;
    refuse(&database, &[]).await;
    let app = spawn_in(dir, settings).await;
    recorded(&app, &refused["id"]).await;
    let answer = request(&app, "PATCH", &path, &operator, &both.to_string()).await;
    assert_eq!(
        (answer.status, &answer.json()["legal_hold"]),
        (200, &true.into()),
        "{answer:?}"
    );
    let id = refused["id"].as_str().unwrap().parse().unwrap();
    let stored = app.state.history.store().broadcast(id).await.unwrap().unwrap();
    assert_eq!((stored.legal_hold, stored.corrected_start_ms), (true, Some(earlier)));
}

#[actix_web::test]
async fn a_correction_and_a_hold_that_come_together_are_both_kept_or_neither() {
    let app = spawn_app(use_mongodb).await;
    app.go_live(12);
    let _session = V1::of(&app, 12, json!({})).await;
    let record = newest(&app, 12).await;
    recorded(&app, &record["id"]).await;
    let database = database_of(&app).await;
    let validator = doc! { "legal_hold": { "$exists": false } };
    let order = doc! { "collMod": "broadcasts", "validator": validator };
    database.run_command(order).await.unwrap();
    let path = format!("/v1/broadcasts/{}", record["id"].as_str().unwrap());
    let operator = token_with(90, "operator", Value::Null);
    let both = json!({ "legal_hold": true, "started_at": "2026-01-01T00:00:00.000Z" });
    let answer = request(&app, "PATCH", &path, &operator, &both.to_string()).await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (503, &"log_unavailable".into())
    );
    let id = record["id"].as_str().unwrap().parse().unwrap();
    let stored = app.state.history.store().broadcast(id).await.unwrap().unwrap();
    assert_eq!((stored.legal_hold, stored.corrected_start_ms), (false, None));
}
