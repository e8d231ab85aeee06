//! The end of what the log keeps: retention, legal hold, and the erasure of a user.

use std::{path::Path, process::Command, sync::Arc};

use chatting_actors::{
    broadcast::Broadcast,
    clock::system_ms,
    idempotency::Keyed,
    metrics::Metrics,
    moderation::Act,
    seams::{LogStore, Spool},
    types::{Event, MessageText, Nickname, Role, Seq, UserIdx},
    writer::SpoolInfo,
};
use chatting_server::{
    retention::{Clocks, Retention, Swept},
    settings::{LogBackend, Settings},
    store::{
        Archive, Deleted, Durability, Logged, MongoStore, Scan, SpoolLock, SpoolSettings, SqliteSpool, SqliteStore,
        keeping::Keeping, mongo::MongoSettings,
    },
};
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    figures::{broadcast, message, shared},
    history::{read, request, servers, token_with},
    log_store::{batch, embedded, mongo, room, stores},
    recovery::SmallDisk,
    refused_acts::allow,
    support::{
        app::{KEY, mongodb_section, settings, spawn_app, spawn_in, use_mongodb},
        command::{command, run},
        eventually,
        mongod::{Mongod, fresh_database_name},
        presenter::V1,
        process::{Process, ScratchDir},
    },
};

const DAY_MS: i64 = 86_400_000;
const HOUR_MS: i64 = 3_600_000;

async fn all(store: &dyn Archive, presenter: i64, epoch: &str) -> Vec<Logged> {
    let scan = Scan {
        presenter: room(presenter),
        epoch: chatting_actors::types::Epoch(epoch.into()),
        after: Seq(0),
        through: Seq(u64::MAX),
        user: None,
        newest_first: false,
        limit: 10_000,
    };
    store.scan(scan).await.unwrap()
}

fn seqs(events: &[Logged]) -> Vec<u64> {
    events.iter().map(|logged| logged.event.seq.0).collect()
}

fn act(mut event: Event, act: Act) -> Event {
    event.act = Some(Arc::new(act));
    event.chat.text = MessageText::maybe_empty(String::new(), 0).unwrap();
    event
}

/// Of this store, with nothing parked.
fn retention(store: &Arc<dyn Archive>) -> Retention {
    let dir = ScratchDir::new("parking");
    retention_of(store, &spool_in(&dir).0)
}

fn spool_in(dir: &ScratchDir) -> (SqliteSpool, SpoolInfo) {
    SqliteSpool::open(SpoolSettings {
        path: dir.path().join("spool.db"),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: false,
    })
    .unwrap()
}

fn retention_of(store: &Arc<dyn Archive>, spool: &SqliteSpool) -> Retention {
    let mut settings = Settings::default();
    settings.log.retention_days = 1;
    settings.log.retention_batch = 7;
    settings.log.retention_pause_ms = 0;
    begun(&settings, store, spool, Clocks::at(0))
}

/// At a start by these settings, where it is known to be at least so late.
fn begun(settings: &Settings, store: &Arc<dyn Archive>, spool: &SqliteSpool, known: Clocks) -> Retention {
    let (store, parking) = (Arc::clone(store), spool.parking());
    Retention::new(settings, store, parking, Metrics::default(), known).unwrap()
}

#[actix_web::test]
async fn a_clock_that_is_ahead_removes_nothing_that_is_not_too_old_before_it_has_stood() {
    for (name, store, _dir) in stores().await {
        let dir = ScratchDir::new("ahead");
        let (spool, _) = spool_in(&dir);
        let mut settings = Settings::default();
        settings.log.retention_days = 30;
        settings.log.retention_settle_seconds = 86_400;
        settings.log.retention_pause_ms = 0;
        let newest = system_ms() - HOUR_MS;
        let said = [newest - 40 * DAY_MS, newest - 20 * DAY_MS, newest];
        let said = (1..).zip(said).map(|(seq, at_ms)| message(at_ms, 12, "a", seq, 7, "x"));
        store.append(batch(&shared(said))).await.unwrap();
        // So long after the newest event, with the system's clock as much ahead.
        let after = |passed: i64, ahead: i64| Clocks {
            system_ms: newest + passed + ahead,
            boot_ms: passed,
        };
        let removed = |events| Swept { events, broadcasts: 0 };
        let mut retention = begun(&settings, &store, &spool, after(0, 0));
        assert_eq!(retention.sweep_at(after(0, 0)).await.unwrap(), removed(1), "{name}");
        // It jumps, and is set right again.
        for ahead in [400 * DAY_MS, 0, 400 * DAY_MS] {
            assert_eq!(
                retention.sweep_at(after(HOUR_MS, ahead)).await.unwrap(),
                removed(0),
                "{name}"
            );
        }
        // It was ahead at the start.
        let mut retention = begun(&settings, &store, &spool, after(0, 0));
        for passed in [0, HOUR_MS, DAY_MS - 1] {
            let swept = retention.sweep_at(after(passed, 400 * DAY_MS)).await;
            assert_eq!(swept.unwrap(), removed(0), "{name}");
        }
        assert_eq!(seqs(&all(&*store, 12, "a").await), [2, 3], "{name}");
        // It stays so: nobody has said anything for so long, as far as can be told from this machine. MongoDB has a clock of its own.
        let swept = retention.sweep_at(after(DAY_MS, 400 * DAY_MS)).await;
        let now_too_old = if name == "mongodb" { 0 } else { 2 };
        assert_eq!(swept.unwrap(), removed(now_too_old), "{name}");
    }
}

#[actix_web::test]
async fn a_server_that_starts_with_its_clock_ahead_goes_by_its_newest_event() {
    let dir = ScratchDir::new("ahead");
    let (mut spool, _) = embedded(&dir.path().join("chat.db"));
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let newest = system_ms() - 400 * DAY_MS;
    let said = [newest - 40 * DAY_MS, newest - 20 * DAY_MS, newest];
    let said = (1..).zip(said).map(|(seq, at_ms)| message(at_ms, 12, "a", seq, 7, "x"));
    assert_eq!(store.append(batch(&shared(said))).await.unwrap(), []);
    spool.close();
    drop((spool, store));
    let mut settings = settings(&dir);
    settings.log.retention_days = 30;
    let app = spawn_in(dir, settings).await;
    let sweeps = async |outcome: &str| {
        let series = format!("chat_retention_sweeps_total{{outcome=\"{outcome}\"}}");
        app.metric(&series).await.unwrap()
    };
    let outcomes = eventually("a sweep", async || {
        let outcomes = (sweeps("doubt").await, sweeps("ok").await);
        (outcomes != (0.0, 0.0)).then_some(outcomes)
    })
    .await;
    assert_eq!(outcomes, (1.0, 0.0));
    assert_eq!(seqs(&all(&**app.state.history.store(), 12, "a").await), [2, 3]);
}

#[actix_web::test]
async fn what_is_parked_goes_when_it_is_too_old_but_for_what_is_held_and_what_hides_that() {
    for (name, store, _dir) in stores().await {
        let dir = ScratchDir::new("parked");
        let (mut spool, info) = spool_in(&dir);
        let epoch = &*info.epoch.0;
        let now = system_ms();
        let old = now - 10 * DAY_MS;
        let held = broadcast(&[(old, Some(old + 60_000))], &[(epoch, 10, Some(12))]);
        store.put_broadcasts(std::slice::from_ref(&held)).await.unwrap();
        // The store has what was said in this one, and only the act that it refused hides it.
        let hidden = broadcast(&[(old + 1, Some(old + 60_000))], &[(epoch, 0, Some(3))]);
        let hidden = Broadcast {
            presenter: room(14),
            ..hidden
        };
        store.put_broadcasts(std::slice::from_ref(&hidden)).await.unwrap();
        for id in [held.id, hidden.id] {
            assert!(store.hold_broadcast(id, true).await.unwrap(), "{name}");
        }
        let delete = |event| {
            let user_idx = UserIdx::new(7).unwrap();
            act(event, Act::User { user_idx })
        };
        let mut events = Vec::new();
        for seq in 1..=20_i64 {
            events.push(message(old + seq, 12, epoch, seq.cast_unsigned(), 7, "old"));
        }
        events.push(delete(message(old + 21, 12, epoch, 21, 8, "")));
        events.push(message(old + 22, 13, epoch, 1, 7, "old"));
        events.push(delete(message(old + 23, 13, epoch, 2, 8, "")));
        events.push(message(now - DAY_MS / 2, 12, epoch, 22, 7, "new"));
        events.push(delete(message(old + 24, 14, epoch, 4, 8, "")));
        let events = shared(events);
        spool.commit(&events).unwrap();
        // The store has the deletion in room 13. It stays for the message that it covers, and the log does not lack it.
        let parked: Vec<_> = (1..)
            .zip(events)
            .filter(|(pos, _)| *pos != 23)
            .map(|(pos, event)| (pos, event, "no".into()))
            .collect();
        let metrics = Metrics::default();
        spool.count_in(&metrics);
        spool.free(25, &parked, 0).unwrap();
        assert_eq!(spool.count_parked().unwrap(), 25, "{name}");
        assert_eq!(metrics.parked_events.get(), 24, "{name}");
        // As the next start counts.
        spool.count_in(&metrics);
        assert_eq!(metrics.parked_events.get(), 24, "{name}");
        let swept = retention_of(&store, &spool).sweep(now - DAY_MS).await.unwrap();
        assert_eq!(swept.events, 18 + 2, "{name}");
        assert_eq!(metrics.parked_events.get(), 5, "{name}");
        let left = spool.read_parked(&[], 100).unwrap();
        let left: Vec<_> = left.iter().map(|row| row.event.as_ref().unwrap().seq.0).collect();
        assert_eq!(left, [11, 12, 21, 4, 22], "{name}");
    }
}

#[actix_web::test]
async fn what_is_too_old_goes_but_for_what_is_held_and_every_room_keeps_its_last_number() {
    for (name, store, _dir) in stores().await {
        let now = system_ms();
        let old = now - 10 * DAY_MS;
        // Held from 20 to 30; the rest of the room's old events is not.
        let mut held = broadcast(&[(old, Some(old + 60_000))], &[("a", 20, Some(30))]);
        let mut over = broadcast(&[(old + 1, Some(old + 90_000))], &[("a", 30, Some(40))]);
        let open = broadcast(&[(old + 2, None)], &[("a", 60, None)]);
        // It began as long ago as these, but ended within the time.
        let recent = broadcast(&[(old + 3, Some(now - DAY_MS / 2))], &[("a", 60, Some(60))]);
        store
            .put_broadcasts(&[held.clone(), over.clone(), open.clone(), recent.clone()])
            .await
            .unwrap();
        assert!(store.hold_broadcast(held.id, true).await.unwrap(), "{name}");
        assert!(!store.hold_broadcast(Uuid::now_v7(), true).await.unwrap(), "{name}");
        // What the registry tells of it later does not take the hold away.
        (held.version, over.version) = (2, 2);
        store.put_broadcasts(&[held.clone(), over.clone()]).await.unwrap();
        let mut events = Vec::new();
        for seq in 1..=50 {
            events.push(message(old + seq, 12, "a", seq.cast_unsigned(), 7, "old"));
        }
        for seq in 51..=60 {
            events.push(message(now - DAY_MS / 2, 12, "a", seq, 7, "new"));
        }
        // In a room of which everything is old the last one is emptied; here it is an act of its presenter, in the later of two
        // numberings.
        for seq in 1..=9 {
            events.push(message(
                old + 1_000 + i64::try_from(seq).unwrap(),
                13,
                "a",
                seq,
                8,
                "old",
            ));
        }
        let last = message(old + 2_000, 13, "b", 10, 13, "");
        events.push(act(
            last,
            Act::User {
                user_idx: UserIdx::new(7).unwrap(),
            },
        ));
        store.append(batch(&shared(events))).await.unwrap();
        let retention = retention(&store);
        let swept = retention.sweep(now - DAY_MS).await.unwrap();
        assert_eq!(
            swept,
            Swept {
                events: 40 + 10,
                broadcasts: 1
            },
            "{name}"
        );
        let left: Vec<u64> = (21..=30).chain(51..=60).collect();
        assert_eq!(seqs(&all(&*store, 12, "a").await), left, "{name}");
        assert!(
            all(&*store, 12, "a")
                .await
                .iter()
                .all(|logged| logged.deleted.is_none()),
            "{name}"
        );
        assert_eq!(store.last_seq(room(13)).await.unwrap(), Seq(10), "{name}");
        assert_eq!(all(&*store, 13, "a").await, [], "{name}");
        let emptied = all(&*store, 13, "b").await;
        let event = &emptied[0].event;
        assert_eq!(
            (emptied.len(), event.seq, event.sent_at_ms),
            (1, Seq(10), old + 2_000),
            "{name}"
        );
        assert!(
            event.is_erased() && event.act.is_none() && emptied[0].deleted.is_some(),
            "{name}: {event:?}"
        );
        assert_eq!(
            (event.chat.text.as_str(), event.chat.nickname.as_str(), event.chat.role),
            ("", "", Role::Viewer),
            "{name}"
        );
        let kept = async || {
            let kept = store.broadcasts(room(12), None, 10).await.unwrap().broadcasts;
            let kept = kept.iter().map(|stored| (stored.broadcast.id, stored.legal_hold));
            kept.collect::<Vec<_>>()
        };
        assert_eq!(
            kept().await,
            [(recent.id, false), (open.id, false), (held.id, true)],
            "{name}"
        );
        // A second time there is nothing to do.
        assert_eq!(retention.sweep(now - DAY_MS).await.unwrap(), Swept::default(), "{name}");
        // Newer events make the emptied one an old one like any other; a hold that is over holds nothing.
        store
            .append(batch(&shared([message(now, 13, "b", 11, 8, "new")])))
            .await
            .unwrap();
        assert!(store.hold_broadcast(held.id, false).await.unwrap(), "{name}");
        let swept = retention.sweep(now - DAY_MS).await.unwrap();
        assert_eq!(
            swept,
            Swept {
                events: 10 + 1,
                broadcasts: 1
            },
            "{name}"
        );
        assert_eq!(seqs(&all(&*store, 13, "b").await), [11], "{name}");
        assert_eq!(kept().await, [(recent.id, false), (open.id, false)], "{name}");
    }
}

#[actix_web::test]
async fn a_server_removes_what_is_too_old_by_itself_and_a_new_spool_still_goes_on_behind_it() {
    let app = spawn_app(|settings| {
        use_mongodb(settings);
        settings.log.retention_days = 2;
        settings.log.retention_every_seconds = 1;
        // The log has no event yet that would tell how late it is.
        settings.log.retention_settle_seconds = 0;
    })
    .await;
    assert_eq!(
        app.metric("chat_retention_deleted_total{kind=\"event\"}").await,
        Some(0.0)
    );
    let old = system_ms() - 3 * DAY_MS;
    let events = (1..=5).map(|seq| message(old, 12, "before", seq, 7, "old"));
    app.state.history.store().append(batch(&shared(events))).await.unwrap();
    eventually("the old messages to be gone", async || {
        (app.metric("chat_retention_deleted_total{kind=\"event\"}").await == Some(5.0)).then_some(())
    })
    .await;
    // It is counted when it is over, which comes after the last deletion: the next that is counted is this one or a later one.
    let sweeps = async || app.metric("chat_retention_sweeps_total{outcome=\"ok\"}").await;
    let counted = sweeps().await;
    eventually("the sweep to be over", async || {
        (sweeps().await > counted).then_some(())
    })
    .await;
    let page = read(&app, "/v1/rooms/12/messages", &app.token(12)).await;
    let left = page["messages"].as_array().unwrap();
    assert_eq!(
        (left.len(), &left[0]["seq"], &left[0]["deleted"]),
        (1, &json!(5), &json!(true)),
        "{page}"
    );
    assert!(
        left[0].get("text").is_none() && left[0].get("user_idx").is_none(),
        "{page}"
    );
    let (_, _, settings) = app.stop().await;
    // The disk is lost: another spool, the same log.
    let dir = ScratchDir::new("anew");
    let mut settings = settings.clone();
    settings.log.path = dir.path().join("chat.db").display().to_string();
    let app = spawn_in(dir, settings).await;
    app.go_live(12);
    let _session = app.presenter(12).await;
    let answer = app.post(12, 7, "new").await;
    assert_eq!((answer.status, &answer.json()["seq"]), (201, &json!(6)), "{answer:?}");
}

/// A spool of its own in which an event is parked that was sent then.
fn parking_one(dir: &ScratchDir, at_ms: i64) -> SqliteSpool {
    let (mut spool, info) = spool_in(dir);
    let event = Arc::new(message(at_ms, 14, &info.epoch.0, 1, 7, "old"));
    let pos = spool.commit(std::slice::from_ref(&event)).unwrap();
    spool.free(pos, &[(pos, event, "no".into())], 0).unwrap();
    assert_eq!(spool.count_parked().unwrap(), 1);
    spool
}

/// Makes the records of these broadcasts unreadable, one as text and one as what is no text: in the embedded log of this file, or in
/// MongoDB where there is one.
pub async fn make_unreadable(path: &Path, mongodb: Option<&MongoStore>, ids: [Uuid; 2]) {
    for (id, record) in ids.into_iter().zip(["'{'", "CAST(x'ff' AS TEXT)"]) {
        let changed = if let Some(mongodb) = mongodb {
            let records = mongodb.database().await.unwrap().collection::<Document>("broadcasts");
            let which = doc! { "_id": mongodb::bson::Uuid::from_bytes(id.into_bytes()) };
            let change = doc! { "$set": { "segments": record } };
            records.update_one(which, change).await.unwrap().modified_count
        } else {
            let sql = format!("UPDATE broadcasts SET record = {record} WHERE id = ?1");
            let connection = rusqlite::Connection::open(path).unwrap();
            connection.execute(&sql, [&id.as_bytes()[..]]).unwrap() as u64
        };
        assert_eq!(changed, 1, "{id}");
    }
}

#[actix_web::test]
async fn a_broadcast_that_cannot_be_read_stays_and_costs_neither_the_others_nor_what_is_parked() {
    let dir = ScratchDir::new("unreadable");
    let path = dir.path().join("chat.db");
    let (spool, _) = embedded(&path);
    let mongodb = mongo().await;
    let stores: [(_, Arc<dyn Archive>); 2] = [
        ("sqlite", Arc::new(SqliteStore::new(spool.connection()))),
        ("mongodb", Arc::new(mongodb.clone())),
    ];
    for (name, store) in stores {
        store.prepare().await.unwrap();
        let now = system_ms();
        let old = now - 10 * DAY_MS;
        // What cannot be read is the first of a step, and the newest of the list.
        let [bad, one, another, worse] = [0, 1, 2, 3].map(|n| broadcast(&[(old + n, Some(old + 60_000))], &[]));
        let all = [bad.clone(), one.clone(), another.clone(), worse.clone()];
        store.put_broadcasts(&all).await.unwrap();
        make_unreadable(&path, (name == "mongodb").then_some(&mongodb), [bad.id, worse.id]).await;
        let listed = async |before, limit| {
            let list = store.broadcasts(room(12), before, limit).await.unwrap();
            let read = list.broadcasts.iter().map(|stored| stored.broadcast.id);
            (read.collect::<Vec<_>>(), list.unreadable)
        };
        let both = [another.id, one.id];
        assert_eq!(listed(None, 10).await, (both.into(), vec![worse.id, bad.id]), "{name}");
        // Up to as many as are wanted.
        assert_eq!(listed(None, 1).await, (vec![another.id], vec![worse.id]), "{name}");
        assert_eq!(listed(None, 2).await, (both.into(), vec![worse.id]), "{name}");
        assert_eq!(listed(Some(another.id), 1).await, (vec![one.id], vec![]), "{name}");
        assert_eq!(listed(Some(one.id), 1).await, (vec![], vec![bad.id]), "{name}");
        assert_eq!(store.open_broadcasts([].into()).await.unwrap(), [], "{name}");
        assert_eq!(store.open_broadcast(room(12)).await.unwrap(), None, "{name}");
        let dir = ScratchDir::new("unreadable-parked");
        let mut spool = parking_one(&dir, old);
        let mut settings = Settings::default();
        settings.log.retention_days = 1;
        settings.log.retention_batch = 1;
        settings.log.retention_pause_ms = 0;
        let retention = begun(&settings, &store, &spool, Clocks::at(0));
        let swept = retention.sweep(now - DAY_MS).await.unwrap();
        let wanted = Swept {
            events: 1,
            broadcasts: 2,
        };
        assert_eq!(swept, wanted, "{name}");
        assert_eq!(spool.count_parked().unwrap(), 0, "{name}");
        assert_eq!(listed(None, 10).await, (vec![], vec![worse.id, bad.id]), "{name}");
        assert!(store.broadcast(bad.id).await.is_err(), "{name}: it is there");
    }
}

#[actix_web::test]
async fn what_is_parked_goes_also_where_records_of_broadcasts_cannot_be_removed() {
    let dir = ScratchDir::new("unremovable");
    let path = dir.path().join("chat.db");
    let (spool, _) = embedded(&path);
    let store: Arc<dyn Archive> = Arc::new(SqliteStore::new(spool.connection()));
    store.prepare().await.unwrap();
    let now = system_ms();
    let old = now - 10 * DAY_MS;
    let over = broadcast(&[(old, Some(old + 60_000))], &[]);
    store.put_broadcasts(std::slice::from_ref(&over)).await.unwrap();
    let stays = "CREATE TRIGGER stays BEFORE DELETE ON broadcasts BEGIN SELECT RAISE(ABORT, 'it stays'); END";
    rusqlite::Connection::open(&path).unwrap().execute_batch(stays).unwrap();
    let dir = ScratchDir::new("unremovable-parked");
    let mut spool = parking_one(&dir, old);
    let error = retention_of(&store, &spool).sweep(now - DAY_MS).await.unwrap_err();
    assert!(error.0.contains("it stays"), "{error}");
    assert_eq!(spool.count_parked().unwrap(), 0);
    // Operators hear of it by this.
    let metrics = Metrics::default();
    let mut settings = Settings::default();
    settings.log.retention_days = 1;
    settings.log.retention_settle_seconds = 0;
    let (known, parking) = (Clocks::at(0), spool.parking());
    let retention = Retention::new(&settings, Arc::clone(&store), parking, metrics.clone(), known).unwrap();
    let sweeping = actix_web::rt::spawn(retention.keep_sweeping());
    let sweeps = |outcome| metrics.retention_sweeps.of(outcome).get();
    eventually("a sweep that fails", async || (sweeps("error") == 1).then_some(())).await;
    assert_eq!((sweeps("ok"), sweeps("doubt")), (0, 0));
    sweeping.abort();
}

/// A store in a MongoDB of its own that can be made to wait, and the store's database.
async fn may_wait() -> (Mongod, MongoStore, String) {
    let mongod = Mongod::start_own_with(&["--setParameter", "enableTestCommands=1"]).await;
    let database = fresh_database_name();
    let settings = MongoSettings {
        uri: mongod.uri(),
        database: database.clone(),
        connect_timeout: std::time::Duration::from_secs(10),
        write_timeout: std::time::Duration::from_secs(30),
        connections: 10,
    };
    let store = MongoStore::new(&settings).await.unwrap();
    LogStore::prepare(&store).await.unwrap();
    (mongod, store, database)
}

/// What comes of `step`, which MongoDB goes through up to this point, and on from it when `meanwhile` is done.
async fn halted<T>(
    mongod: &Mongod,
    (point, data): (&str, Document),
    step: impl Future<Output = T>,
    meanwhile: impl Future<Output = ()>,
) -> T {
    let client = mongodb::Client::with_uri_str(mongod.uri()).await.unwrap();
    let admin = async |command| client.database("admin").run_command(command).await.unwrap();
    let set = admin(doc! { "configureFailPoint": point, "mode": "alwaysOn", "data": data }).await;
    let entered = set.get_i32("count").unwrap() + 1;
    let meanwhile = async {
        admin(doc! { "waitForFailPoint": point, "timesEntered": entered, "maxTimeMS": 30_000 }).await;
        meanwhile.await;
        admin(doc! { "configureFailPoint": point, "mode": "off" }).await;
    };
    tokio::join!(step, meanwhile).0
}

#[actix_web::test]
async fn a_hold_that_is_laid_while_mongodb_looks_for_what_is_too_old_counts_in_that_step_too() {
    let (mongod, store, database) = may_wait().await;
    let old = system_ms() - 10 * DAY_MS;
    let held = broadcast(&[(old, Some(old + 60_000))], &[("a", 1, Some(6))]);
    store.put_broadcasts(std::slice::from_ref(&held)).await.unwrap();
    let events = (1..=6_i64).map(|seq| message(old + seq, 12, "a", seq.cast_unsigned(), 7, "old"));
    store.append(batch(&shared(events))).await.unwrap();
    // It is found, and not told yet.
    let data = doc! { "nss": format!("{database}.chatting_log") };
    let point = ("waitInFindBeforeMakingBatch", data);
    let hold = async { assert!(store.hold_broadcast(held.id, true).await.unwrap()) };
    let expired = halted(&mongod, point, store.expire(old + 1_000, None, 100), hold).await;
    assert_eq!(expired.unwrap().removed, 1);
    let left = all(&store, 12, "a").await;
    assert_eq!(seqs(&left), [2, 3, 4, 5, 6]);
    assert!(left.iter().all(|logged| logged.deleted.is_none()));
}

#[actix_web::test]
async fn a_hold_that_is_laid_when_mongodb_is_about_to_remove_the_record_keeps_it() {
    let (mongod, store, _) = may_wait().await;
    let old = system_ms() - 10 * DAY_MS;
    // The other record goes, so the step does remove what it found.
    let [held, over] = [0, 1].map(|n| broadcast(&[(old + n, Some(old + 60_000))], &[("a", 0, Some(0))]));
    store.put_broadcasts(&[held.clone(), over.clone()]).await.unwrap();
    let point = ("hangDuringBatchRemove", doc! {});
    let hold = async { assert!(store.hold_broadcast(held.id, true).await.unwrap()) };
    let expired = halted(&mongod, point, store.expire_broadcasts(old + DAY_MS, None, 100), hold).await;
    assert_eq!(expired.unwrap().removed, 1);
    let left = store.broadcast(held.id).await.unwrap();
    assert!(left.is_some_and(|stored| stored.legal_hold));
    assert_eq!(store.broadcast(over.id).await.unwrap(), None);
}

#[actix_web::test]
async fn operators_put_a_broadcast_under_legal_hold_and_nobody_else_sees_that() {
    let quick = |settings: &mut Settings| {
        settings.room.sweep_ms = 20;
        settings.room.live_ttl_ms = 40;
        settings.room.not_live_ttl_ms = 40;
    };
    for (app, mut session) in servers(quick).await {
        assert_eq!(app.post(12, 7, "x").await.status, 201);
        session.chats(1).await;
        let operator = token_with(90, "operator", json!([]));
        let page = eventually("the broadcast in the store", async || {
            let page = read(&app, "/v1/rooms/12/broadcasts", &operator).await;
            let id = page["broadcasts"][0]["id"].as_str().unwrap().parse().unwrap();
            app.state.history.store().broadcast(id).await.unwrap().map(|_| page)
        })
        .await;
        assert_eq!(page["broadcasts"][0]["legal_hold"], false);
        let path = format!("/v1/broadcasts/{}", page["broadcasts"][0]["id"].as_str().unwrap());
        let patch = async |token: &str, body: Value| request(&app, "PATCH", &path, token, &body.to_string()).await;
        for token in [app.token(7), app.token(12), token_with(8, "moderator", json!("*"))] {
            assert_eq!(patch(&token, json!({ "legal_hold": true })).await.status, 403);
            assert!(read(&app, &path, &token).await.get("legal_hold").is_none());
        }
        for bad in [json!({}), json!({ "legal_hold": 1 }), json!({ "hold": true })] {
            assert_eq!(patch(&operator, bad.clone()).await.status, 400, "{bad}");
        }
        let held = patch(&operator, json!({ "legal_hold": true })).await;
        assert_eq!(
            (held.status, &held.json()["legal_hold"]),
            (200, &json!(true)),
            "{held:?}"
        );
        // Nor does its file tell of it.
        for (token, told) in [
            (&operator, Some(&json!(true))),
            (&app.token(12), None),
            (&token_with(8, "moderator", json!("*")), None),
        ] {
            let file = request(&app, "GET", &format!("{path}/export"), token, "").await;
            let header: Value = serde_json::from_str(file.text().lines().next().unwrap()).unwrap();
            assert_eq!((&header["type"], header.get("legal_hold")), (&json!("broadcast"), told));
        }
        // What happens to the broadcast afterwards leaves the hold as it is.
        app.go_off(12);
        eventually("the interruption in the store", async || {
            let id = page["broadcasts"][0]["id"].as_str().unwrap().parse().unwrap();
            let stored = app.state.history.store().broadcast(id).await.unwrap().unwrap();
            stored.broadcast.segments[0].to_ms
        })
        .await;
        assert_eq!(read(&app, &path, &operator).await["legal_hold"], true);
        let both = json!({ "legal_hold": false, "started_at": null });
        assert_eq!(patch(&operator, both).await.json()["legal_hold"], false);
    }
}

const SECRET: &str = "비밀번호는 hunter2 입니다";

/// A stopped server's directory with messages of users 7 and 8 everywhere, and the settings that name it.
struct Site {
    dir: Arc<ScratchDir>,
    mongodb: Option<MongoStore>,
    events: Vec<Arc<Event>>,
}

impl Site {
    async fn new(mongodb: bool) -> Self {
        let dir = ScratchDir::new("erase");
        let (uri, database) = (Mongod::shared().uri(), fresh_database_name());
        let store = match mongodb {
            true => format!("backend = \"mongodb\"\n{}", mongodb_section(&uri, &database)),
            false => "backend = \"sqlite\"\n".to_owned(),
        };
        let text = format!(
            "[log]\npath = \"chat.db\"\nbatch_max = 7\n{store}[server]\nbind = \"127.0.0.1:0\"\n[room]\nmode = \"embedded\"\n"
        );
        std::fs::write(dir.path().join("settings.toml"), text).unwrap();
        let mongodb = match mongodb {
            false => None,
            true => Some(
                MongoStore::new(&MongoSettings {
                    uri,
                    database,
                    connect_timeout: std::time::Duration::from_secs(10),
                    write_timeout: std::time::Duration::from_secs(30),
                    connections: 10,
                })
                .await
                .unwrap(),
            ),
        };
        let mut site = Self {
            dir,
            mongodb,
            events: Vec::new(),
        };
        site.fill().await;
        site
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("chat.db")
    }

    fn open(&self) -> (SqliteSpool, Arc<dyn Archive>, String) {
        let (spool, info) = SqliteSpool::open(SpoolSettings {
            path: self.path(),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: self.mongodb.is_none(),
        })
        .unwrap();
        let store: Arc<dyn Archive> = match &self.mongodb {
            Some(mongodb) => Arc::new(mongodb.clone()),
            None => Arc::new(SqliteStore::new(spool.connection())),
        };
        (spool, store, info.epoch.0.to_string())
    }

    /// Seqs 1 to 60 are in the store, 61 to 70 in the spool, 71 and 72 are parked; 11 to 20 are of a broadcast under legal hold.
    async fn fill(&mut self) {
        let (mut spool, store, epoch) = self.open();
        store.prepare().await.unwrap();
        let start = system_ms() - 1_000_000;
        let mut held = broadcast(&[(start, Some(start + 20_000))], &[("", 10, Some(20))]);
        held.spans[0].epoch = chatting_actors::types::Epoch(epoch.as_str().into());
        store.put_broadcasts(std::slice::from_ref(&held)).await.unwrap();
        store.hold_broadcast(held.id, true).await.unwrap();
        let user = |n| UserIdx::new(n).unwrap();
        for seq in 1..=72_u64 {
            let sender = 7 + i64::try_from(seq % 2).unwrap();
            let text = format!("{SECRET} {seq}");
            let mut one = message(
                start + i64::try_from(seq).unwrap() * 1_000,
                12,
                &epoch,
                seq,
                sender,
                &text,
            );
            one.keyed = (seq % 5 == 0).then(|| Keyed::new(user(sender), room(12), &format!("key {seq}"), &text));
            one = match seq {
                // What user 7 did to another, what another did to user 7, and what is not in the store yet.
                30 => {
                    one.chat.user_idx = user(7);
                    act(
                        one,
                        Act::Message {
                            id: self.events[28].id,
                            seq: Seq(29),
                        },
                    )
                }
                40 | 66 => {
                    one.chat.user_idx = user(99);
                    one.chat.nickname = Nickname::new("staff", 64).unwrap();
                    act(one, Act::User { user_idx: user(7) })
                }
                _ => one,
            };
            self.events.push(Arc::new(one));
        }
        spool.commit(&self.events).unwrap();
        store.append(batch(&self.events[..60])).await.unwrap();
        spool.free(60, &[], 0).unwrap();
        spool.close();
        drop((spool, store));
        let connection = rusqlite::Connection::open(self.path()).unwrap();
        let columns =
            "pos, epoch, presenter_idx, seq, id, sent_at, room_idx, user_idx, nickname, message, role, idempotency_key";
        connection
            .execute_batch(&format!(
                "INSERT INTO parked({columns}, reason, parked_at) SELECT {columns}, 'a test', 0 FROM spool WHERE seq > 70;
                 DELETE FROM spool WHERE seq > 70"
            ))
            .unwrap();
    }

    /// Runs the command; exit code, standard output, standard error.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        run(&self.dir, args, &[("CHAT__AUTH__HS256_SECRET", KEY)])
    }

    /// How often a text is in the files of the spool.
    fn found(&self, text: &str) -> usize {
        let files = ["chat.db", "chat.db-wal"].map(|name| self.dir.path().join(name));
        let count = |path: &Path| {
            let bytes = std::fs::read(path).unwrap_or_default();
            bytes
                .windows(text.len())
                .filter(|window| *window == text.as_bytes())
                .count()
        };
        files.iter().map(|path| count(path)).sum()
    }

    /// Everything that store and spool have of the room, as text.
    async fn everything(&self) -> Vec<String> {
        let (mut spool, store, epoch) = self.open();
        let mut all: Vec<String> = all(&*store, 12, &epoch)
            .await
            .iter()
            .map(|one| format!("{one:?}"))
            .collect();
        all.extend(spool.read(0, 1000).unwrap().iter().map(|row| format!("{row:?}")));
        all.extend(
            spool
                .read_parked(&[], 1000)
                .unwrap()
                .iter()
                .map(|row| format!("{:?}", row.event)),
        );
        all.extend(spool.read_keys(0).unwrap().iter().map(|row| format!("key {row:?}")));
        spool.close();
        all
    }
}

#[actix_web::test]
async fn erasing_a_user_leaves_no_trace_of_what_they_sent_but_its_places() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb).await;
        let before = site.everything().await;
        let told = "events 4, parked events 1, idempotency keys 6, acts of others that name the user 1";
        // Looking changes nothing, and tells what would be done.
        let (code, out, error) = site.run(&["erase", "--user", "7", "--dry-run", "--despite-hold"]);
        assert_eq!(code, 0, "{out}{error}");
        assert!(out.contains(&format!("would erase in the spool: {told}")), "{out}");
        assert_eq!(site.everything().await, before);
        let (code, done, error) = site.run(&["erase", "--user", "7", "--despite-hold"]);
        assert_eq!(code, 0, "{done}{error}");
        assert!(done.starts_with(&out.replace("would erase", "erased")), "{out}{done}");

        let after = site.everything().await;
        assert_eq!(after.len(), before.len() - 6, "every place is still there, and no key");
        let of_user = |all: &[String], user: i64| {
            let marks = [
                format!("user_idx: UserIdx({user})"),
                format!("이름{user}\""),
                format!("by: UserIdx({user})"),
            ];
            all.iter()
                .filter(|one| marks.iter().any(|mark| one.contains(mark)))
                .count()
        };
        assert!(of_user(&before, 7) > 30 && of_user(&before, 8) > 30);
        assert_eq!(of_user(&after, 7), 0, "{after:#?}");
        // Others' messages are as they were, except that who deleted one is not known any more.
        assert_eq!(of_user(&after, 8), of_user(&before, 8));
        let (_, store, epoch) = site.open();
        for logged in all(&*store, 12, &epoch).await {
            let (event, was) = (
                &logged.event,
                &site.events[usize::try_from(logged.event.seq.0).unwrap() - 1],
            );
            assert_eq!((event.id, event.sent_at_ms), (was.id, was.sent_at_ms));
            if was.chat.user_idx == UserIdx::new(7).unwrap() && was.act.is_none() {
                assert!(
                    event.is_erased() && logged.deleted.is_some() && event.keyed.is_none(),
                    "{event:?}"
                );
                assert_eq!((event.chat.text.as_str(), event.chat.nickname.as_str()), ("", ""));
            } else {
                assert_eq!(event.chat.text, was.chat.text);
            }
        }
        drop(store);
        // Not in the file's free pages either.
        assert_eq!(site.found("이름7"), 0);
        // One each of what was in the store, in the spool, parked.
        for (seq, others) in [(12, 13), (64, 65), (72, 71)] {
            assert_eq!(site.found(&format!("{SECRET} {seq}")), 0);
            assert!(mongodb || site.found(&format!("{SECRET} {others}")) > 0);
        }
        assert!(site.found("이름8") > 0);
        // What was in the spool goes to the store as it is, and a second time there is nothing to erase.
        let (code, out, error) = site.run(&["spool", "replay"]);
        assert_eq!(code, 1, "two are parked: {out}{error}");
        let (code, out, _) = site.run(&["erase", "--user", "7"]);
        assert_eq!(code, 0, "{out}");
        assert!(out.contains("erased in the store: events 0,"), "{out}");
        let (_, store, epoch) = site.open();
        let drained = all(&*store, 12, &epoch).await;
        assert_eq!(seqs(&drained), (1..=70).collect::<Vec<_>>());
        assert!(
            drained[61].deleted.is_some() && drained[61].event.is_erased(),
            "{:?}",
            drained[61]
        );
    }
}

#[actix_web::test]
async fn erasing_a_presenter_leaves_nothing_that_says_what_in_their_own_room_was_theirs() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb).await;
        let (mut spool, store, epoch) = site.open();
        let now = system_ms();
        let over = broadcast(&[(now, Some(now + 60_000))], &[(&epoch, 72, Some(77))]);
        store.put_broadcasts(std::slice::from_ref(&over)).await.unwrap();
        // A message and an act in the store, the same in the spool, and a message that is parked.
        let own = (73..).zip([false, true, false, true, false]).map(|(seq, acts)| {
            let one = message(now + i64::try_from(seq).unwrap(), 12, &epoch, seq, 12, "mine");
            let user_idx = UserIdx::new(99).unwrap();
            if acts { act(one, Act::User { user_idx }) } else { one }
        });
        let own = shared(own);
        store.append(batch(&own[..2])).await.unwrap();
        spool.commit(&own[2..]).unwrap();
        spool.close();
        drop((spool, store));
        let columns = "pos, epoch, presenter_idx, seq, id, sent_at, user_idx, nickname, message, role";
        let park = format!(
            "INSERT INTO parked({columns}, reason, parked_at) SELECT {columns}, 'a test', 0 FROM spool WHERE seq = 77;
             DELETE FROM spool WHERE seq = 77"
        );
        rusqlite::Connection::open(site.path())
            .unwrap()
            .execute_batch(&park)
            .unwrap();
        let theirs = async || {
            let all = site.everything().await;
            let (code, file, error) = site.run(&["export", "--broadcast", &over.id.to_string()]);
            assert_eq!((code, file.contains(r#""seq":77,"#)), (0, true), "{file}{error}");
            (
                all.iter().filter(|one| one.contains("role: Presenter")).count(),
                file.matches(r#""role":"presenter""#).count(),
            )
        };
        assert_eq!(theirs().await, (5, 5), "mongodb {mongodb}");
        let (code, out, error) = site.run(&["erase", "--user", "12"]);
        assert_eq!(code, 0, "{out}{error}");
        assert_eq!(theirs().await, (0, 0), "mongodb {mongodb}");
    }
}

#[actix_web::test]
async fn what_staff_deleted_stays_hidden_where_the_store_cannot_be_erased() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb).await;
        let refuses = async |refuses: bool| match &site.mongodb {
            Some(store) => {
                let nobody = doc! { "user_idx": { "$ne": UserIdx::ERASED.get() } };
                let validator = if refuses {
                    nobody
                } else {
                    doc! {}
                };
                allow(store.database().await.unwrap(), validator).await;
            }
            None => {
                let nobody = format!(
                    "CREATE TRIGGER no BEFORE UPDATE ON chatting_log WHEN NEW.user_idx = {}
                     BEGIN SELECT RAISE(ABORT, 'no'); END",
                    UserIdx::ERASED
                );
                let change = if refuses { &nobody } else { "DROP TRIGGER no" };
                let connection = rusqlite::Connection::open(site.path()).unwrap();
                connection.execute_batch(change).unwrap();
            }
        };
        refuses(true).await;
        let (code, out, error) = site.run(&["erase", "--user", "7", "--despite-hold"]);
        assert_eq!(code, 69, "{out}{error}");
        assert!(error.contains("the store: "), "{error}");

        let (mut spool, store, epoch) = site.open();
        let acts: Vec<Arc<Event>> = spool
            .read(0, 1000)
            .unwrap()
            .into_iter()
            .map(|(_, event)| event)
            .collect();
        let covers = |event: &Event| {
            let one = |at: &Arc<Event>| at.act.as_ref().is_some_and(|act| act.covers(at, event));
            acts.iter().any(one)
        };
        let stored = all(&*store, 12, &epoch).await;
        let shown = stored.iter().filter(|one| {
            one.event.chat.user_idx == UserIdx::new(7).unwrap() && one.event.act.is_none() && one.deleted.is_none()
        });
        let (hidden, shown): (Vec<_>, Vec<_>) = shown.partition(|one| covers(&one.event));
        assert_eq!(shown.len(), 0, "mongodb {mongodb}: {shown:?}");
        // Those from the act that the store has to what the spool has.
        assert_eq!(hidden.len(), 10, "mongodb {mongodb}");
        spool.close();
        drop((spool, store));

        refuses(false).await;
        let (code, out, error) = site.run(&["erase", "--user", "7", "--despite-hold"]);
        assert_eq!(code, 0, "{out}{error}");
        assert!(!format!("{:?}", site.everything().await).contains("UserIdx(7)"));
    }
}

#[actix_web::test]
async fn an_erased_message_is_its_own_deletion_to_who_resumes_and_an_empty_cell_in_csv() {
    for (app, mut session) in servers(|_| ()).await {
        for (user, text) in [(8, "one"), (7, "two"), (8, "three")] {
            assert_eq!(app.post(12, user, text).await.status, 201);
        }
        session.chats(3).await;
        let (_, dir, settings) = app.stop().await;
        let (uri, backend) = (Mongod::shared().uri(), settings.log.backend);
        let env = [
            ("CHAT__AUTH__HS256_SECRET", KEY),
            ("CHAT__LOG__PATH", &settings.log.path),
            (
                "CHAT__LOG__BACKEND",
                if backend == LogBackend::Mongodb {
                    "mongodb"
                } else {
                    "sqlite"
                },
            ),
            ("CHAT__MONGODB__URI", &uri),
            ("CHAT__MONGODB__DATABASE", &settings.mongodb.database),
        ];
        let (code, out, error) = run(&dir, &["erase", "--user", "7"], &env);
        assert_eq!(code, 0, "{out}{error}");
        let app = spawn_in(dir, settings).await;
        app.go_live(12);
        let mut session = V1::of(&app, 12, json!({ "resume_after": 1 })).await;
        let erased = session.socket.next_json().await;
        assert_eq!(
            [
                &erased["type"],
                &erased["seq"],
                &erased["action"],
                &erased["target_seq"]
            ],
            [&json!("moderation"), &json!(2), &json!("delete"), &json!(2)],
            "{erased}"
        );
        assert_eq!(erased["target_id"], erased["id"]);
        assert_eq!(session.chat().await["text"], "three");
        // The seq that it has counts like any other.
        session.ack(3).await;
        session.settle().await;
        let page = read(&app, "/v1/rooms/12/broadcasts", &app.token(12)).await;
        let first = page["broadcasts"].as_array().unwrap().last().unwrap()["id"].clone();
        let path = format!("/v1/broadcasts/{}/export?format=", first.as_str().unwrap());
        let export = async |format: &str| request(&app, "GET", &format!("{path}{format}"), &app.token(12), "").await;
        let (csv, ndjson) = (export("csv").await, export("ndjson").await);
        assert_eq!(
            (csv.text().lines().count(), csv.text().contains("two")),
            (4, false),
            "{csv:?}"
        );
        let nobody = UserIdx::ERASED.to_string();
        assert!(!csv.text().contains(&nobody), "{csv:?}");
        assert!(ndjson.text().contains(&nobody), "{ndjson:?}");
    }
}

#[actix_web::test]
async fn what_is_under_legal_hold_is_listed_and_left_unless_it_is_asked_for() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb).await;
        // The user deleted this one again.
        let by = UserIdx::new(7).unwrap();
        let deleted = Deleted { at_ms: system_ms(), by };
        let (mut spool, store, _) = site.open();
        store.mark_deleted(vec![(site.events[13].id, deleted)]).await.unwrap();
        spool.close();
        drop((spool, store));
        for args in [
            &["erase", "--user", "7", "--dry-run"][..],
            &["erase", "--user", "7"],
            &["erase", "--user", "7"],
        ] {
            let (code, out, error) = site.run(args);
            assert_eq!(code, 1, "{out}{error}");
            // The messages, and the act that is on its way to the store and may cover them.
            assert!(out.contains("left: 6 under legal hold"), "{out}");
            for seq in [12, 14, 16, 18, 20, 66] {
                let id = site.events[seq - 1].id;
                let line = format!("room 12, seq {seq}, id {id}\n");
                assert_eq!(out.matches(&line).count(), 1, "{out}");
            }
        }
        let (_, store, epoch) = site.open();
        let left: Vec<u64> = all(&*store, 12, &epoch)
            .await
            .iter()
            .filter(|logged| logged.event.chat.user_idx == UserIdx::new(7).unwrap())
            .map(|logged| logged.event.seq.0)
            .collect();
        assert_eq!(left, [12, 14, 16, 18, 20]);
        drop(store);
        let (code, out, error) = site.run(&["erase", "--user", "7", "--despite-hold"]);
        assert_eq!(code, 0, "{out}{error}");
        assert!(out.contains("erased in the store: events 5,"), "{out}");
    }
}

#[actix_web::test]
async fn what_names_a_held_broadcast_is_held_wherever_it_is_and_so_is_what_is_said_in_one_that_goes_on() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb).await;
        let (mut spool, store, _) = site.open();
        let (now, user) = (system_ms(), UserIdx::new(7).unwrap());
        let old = now - 10 * DAY_MS;
        let mut open = broadcast(&[(old, None)], &[("goes on", 0, None)]);
        open.presenter = room(13);
        store.put_broadcasts(std::slice::from_ref(&open)).await.unwrap();
        assert!(store.hold_broadcast(open.id, true).await.unwrap());
        // Its record knows nothing of the other numbering.
        let named = Event {
            broadcast_id: Some(open.id),
            ..message(old + 1, 13, "other", 1, 7, "named")
        };
        let not_named = message(old + 2, 13, "other", 2, 7, "not named");
        let mut said = vec![named, not_named];
        said.extend((1..=3_i64).map(|seq| message(old + 10 + seq, 13, "goes on", seq.cast_unsigned(), 7, "x")));
        let said = shared(said);
        assert_eq!(store.append(batch(&said)).await.unwrap(), []);
        let swept = retention(&store).sweep(now - DAY_MS).await.unwrap();
        let wanted = Swept {
            events: 1,
            broadcasts: 0,
        };
        assert_eq!(swept, wanted, "mongodb {mongodb}");
        spool.close();
        drop((spool, store));

        let (code, out, error) = site.run(&["erase", "--user", "7"]);
        assert_eq!(code, 1, "{out}{error}");
        for held in said.iter().filter(|event| event.chat.text.as_str() != "not named") {
            let told = format!("broadcast {}, room 13, seq {}, id {}\n", open.id, held.seq, held.id);
            assert_eq!(out.matches(&told).count(), 1, "mongodb {mongodb}: {told}{out}");
        }
        let (_, store, _) = site.open();
        for (epoch, wanted) in [("other", vec![1]), ("goes on", vec![1, 2, 3])] {
            let left = all(&*store, 13, epoch).await;
            assert_eq!(seqs(&left), wanted, "mongodb {mongodb}");
            let as_it_was = |one: &Logged| one.event.chat.user_idx == user && one.deleted.is_none();
            assert!(left.iter().all(as_it_was), "mongodb {mongodb}: {left:?}");
        }
    }
}

#[actix_web::test]
async fn a_hold_does_not_cover_what_is_of_another_broadcast_in_a_numbering_that_went_on() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb).await;
        let (mut spool, store, epoch) = site.open();
        let (now, old) = (system_ms(), system_ms() - 10 * DAY_MS);
        // It went on in another numbering, and its record does not tell how far it went in this one.
        let spans = [(&*epoch, 0, None), ("b", 3, Some(4))];
        let mut held = broadcast(&[(old, Some(old + 60_000))], &spans);
        held.presenter = room(15);
        store.put_broadcasts(std::slice::from_ref(&held)).await.unwrap();
        assert!(store.hold_broadcast(held.id, true).await.unwrap());
        let next = broadcast(&[(old + 70_000, Some(old + 90_000))], &[(&*epoch, 4, Some(9))]);
        let said = |at_ms, epoch: &str, seq, of: Option<&Broadcast>| Event {
            broadcast_id: of.map(|of| of.id),
            ..message(at_ms, 15, epoch, seq, 17, "x")
        };
        let theirs = |at_ms: i64, seqs: std::ops::RangeInclusive<u64>| -> Vec<Event> {
            seqs.map(|seq| said(at_ms + seq.cast_signed(), &epoch, seq, Some(&next)))
                .collect()
        };
        let mut stored = vec![
            said(old + 1, &epoch, 1, Some(&held)),
            said(old + 2, &epoch, 2, None),
            said(old + 3, "b", 4, Some(&held)),
        ];
        stored.extend(theirs(old + 70_000, 5..=7));
        stored.extend(theirs(now - DAY_MS / 2, 8..=9));
        assert_eq!(store.append(batch(&shared(stored))).await.unwrap(), []);
        spool.commit(&shared(theirs(now - DAY_MS / 2, 10..=11))).unwrap();
        let swept = retention(&store).sweep(now - DAY_MS).await.unwrap();
        let wanted = Swept {
            events: 3,
            broadcasts: 0,
        };
        assert_eq!(swept, wanted, "mongodb {mongodb}");
        assert_eq!(seqs(&all(&*store, 15, &epoch).await), [1, 2, 8, 9], "mongodb {mongodb}");
        spool.close();
        drop((spool, store));

        let (code, out, error) = site.run(&["erase", "--user", "17"]);
        assert_eq!(code, 1, "{out}{error}");
        assert!(out.contains("left: 3 under legal hold"), "mongodb {mongodb}: {out}");
        let (mut spool, store, _) = site.open();
        let erased = |events: Vec<Event>| -> Vec<u64> {
            let erased = events.iter().filter(|event| event.is_erased());
            erased.map(|event| event.seq.0).collect()
        };
        let stored = all(&*store, 15, &epoch).await;
        let stored = stored.into_iter().map(|logged| logged.event).collect();
        let spooled = spool.read(0, 100).unwrap();
        let spooled = spooled
            .into_iter()
            .filter(|(_, event)| event.presenter_idx == room(15))
            .map(|(_, event)| Arc::unwrap_or_clone(event))
            .collect();
        let wanted = (vec![8, 9], vec![10, 11]);
        assert_eq!((erased(stored), erased(spooled)), wanted, "mongodb {mongodb}");
    }
}

#[actix_web::test]
async fn a_hold_ends_where_the_rooms_next_broadcast_begins_though_nobody_knows_how_far_the_held_one_went() {
    for (name, store, _dir) in stores().await {
        let (now, old) = (system_ms(), system_ms() - 10 * DAY_MS);
        // In its last numbering, and in one before that.
        let mut held = broadcast(&[(old, Some(old + 60_000))], &[("a", 0, None), ("b", 3, None)]);
        held.presenter = room(15);
        let next = |n: i64, presenter: i64, spans: &[(&str, u64, Option<u64>)]| {
            let from_ms = old + n * 70_000;
            let mut next = broadcast(&[(from_ms, Some(now))], spans);
            next.presenter = room(presenter);
            next
        };
        let records = [
            held.clone(),
            // Of another room, of another numbering, and of before it came back to this one.
            next(1, 16, &[("a", 1, None)]),
            next(2, 15, &[("c", 1, None)]),
            next(3, 15, &[("a", 4, Some(6)), ("b", 1, Some(2)), ("b", 5, None)]),
            next(4, 15, &[("a", 8, None)]),
        ];
        store.put_broadcasts(&records).await.unwrap();
        assert!(store.hold_broadcast(held.id, true).await.unwrap());
        let deleted = |epoch: &str, seq: u64| {
            let at_ms = old + seq.cast_signed();
            let user_idx = UserIdx::new(7).unwrap();
            act(message(at_ms, 15, epoch, seq, 17, ""), Act::User { user_idx })
        };
        let mut acts: Vec<_> = (1..=9).map(|seq| deleted("a", seq)).collect();
        acts.extend((4..=9).map(|seq| deleted("b", seq)));
        // What names it is held wherever it is.
        acts[6].broadcast_id = Some(held.id);
        // The room's last one stays.
        acts.push(message(now, 15, "c", 99, 17, "x"));
        for (n, one) in acts.iter_mut().enumerate() {
            one.id = Uuid::from_u128(one.id.as_u128() + ((n as u128) << 32));
        }
        assert_eq!(store.append(batch(&shared(acts))).await.unwrap(), [], "{name}");
        retention(&store).sweep(now - DAY_MS).await.unwrap();
        assert_eq!(seqs(&all(&*store, 15, "a").await), [1, 2, 3, 4, 7], "{name}");
        assert_eq!(seqs(&all(&*store, 15, "b").await), [4, 5], "{name}");
    }
}

#[actix_web::test]
async fn what_is_held_and_was_deleted_stays_deleted_when_its_user_is_erased() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb).await;
        let (mut spool, store, epoch) = site.open();
        let start = system_ms() - 500_000;
        let mut held = broadcast(&[(start, Some(start + 20_000))], &[("", 0, Some(4))]);
        held.spans[0].epoch = chatting_actors::types::Epoch(epoch.as_str().into());
        held.presenter = room(13);
        store.put_broadcasts(std::slice::from_ref(&held)).await.unwrap();
        store.hold_broadcast(held.id, true).await.unwrap();
        let user = |n| UserIdx::new(n).unwrap();
        // Messages of user 7 that the store has, and an act on them that it does not have yet. Only room 13's are held.
        for presenter in [13, 14] {
            let said = (1..=4).map(|seq| {
                let at_ms = start + i64::try_from(seq).unwrap() * 1_000;
                message(at_ms + presenter, presenter, &epoch, seq, 7, SECRET)
            });
            store.append(batch(&shared(said))).await.unwrap();
            let mut one = message(start + 30_000 + presenter, presenter, &epoch, 5, 99, "");
            one.chat.nickname = Nickname::new("staff", 64).unwrap();
            spool
                .commit(&shared([act(one, Act::User { user_idx: user(7) })]))
                .unwrap();
        }
        spool.close();
        drop((spool, store));
        let (code, looked, error) = site.run(&["erase", "--user", "7", "--dry-run"]);
        assert_eq!(code, 1, "{looked}{error}");
        let (code, out, error) = site.run(&["erase", "--user", "7"]);
        assert_eq!(code, 1, "{out}{error}");
        assert!(
            out.starts_with(&looked.lines().next().unwrap().replace("would erase", "erased")),
            "{looked}{out}"
        );
        for told in [&looked, &out] {
            assert!(
                told.contains("room 13, seq 4") && told.contains("room 13, seq 5"),
                "{told}"
            );
            assert!(!told.contains("room 14"), "{told}");
        }
        let (code, out, _) = site.run(&["spool", "replay"]);
        assert_eq!(code, 1, "two are parked: {out}");
        let (_, store, epoch) = site.open();
        let kept = all(&*store, 13, &epoch).await;
        assert!(
            kept[..4]
                .iter()
                .all(|one| one.event.chat.user_idx == user(7) && one.deleted.is_some()),
            "{kept:?}"
        );
        let erased = all(&*store, 14, &epoch).await;
        assert!(erased[..4].iter().all(|one| one.event.is_erased()), "{erased:?}");
        assert!(!format!("{erased:?}").contains("UserIdx(7)"), "{erased:?}");
        drop(store);
        let (code, out, error) = site.run(&["erase", "--user", "7", "--despite-hold"]);
        assert_eq!(code, 0, "{out}{error}");
        assert!(!format!("{:?}", site.everything().await).contains("UserIdx(7)"));
    }
}

#[actix_web::test]
async fn what_only_reads_a_log_that_was_stopped_cleanly_needs_nothing_beside_it_and_never_overlooks_who_has_it() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb).await;
        let look = |path: &Path| {
            let set = format!("log.path={}", path.display());
            let looks = [&["export", "--room", "12"][..], &["erase", "--user", "7", "--dry-run"]];
            looks.map(|args| site.run(&[args, &["--set", &set]].concat()))
        };
        let seen = |path: &Path| look(path).map(|(code, out, _)| (code, out));
        let left = site.dir.path().join("left.db");
        std::fs::copy(site.path(), &left).unwrap();
        let looked = seen(&site.path());
        assert_eq!(looked.each_ref().map(|(code, _)| *code), [0, 1], "{looked:?}");
        // What SQLite shares with a writer cannot be made, whoever asks for it.
        let shared = site.dir.path().join("left.db-shm");
        std::os::unix::fs::symlink("nowhere/left.db-shm", &shared).unwrap();
        assert_eq!(seen(&left), looked);
        let unread = |why: &str| {
            for (code, out, error) in look(&left) {
                assert_eq!((code, &*out), (69, ""), "{why}: {error}");
                assert!(error.contains("left.db cannot be read: "), "{why}: {error}");
            }
        };
        let lock = SpoolLock::take(&left, &left).unwrap();
        unread("a server has it");
        drop(lock);
        assert_eq!(seen(&left), looked);
        std::fs::write(site.dir.path().join("left.db-wal"), "what was written last").unwrap();
        unread("a part of it is in its WAL");

        let Some(disk) = SmallDisk::mount() else {
            eprintln!("skipped: no right to mount a small file system here");
            continue;
        };
        let left = disk.dir.path().join("chat.db");
        std::fs::copy(site.path(), &left).unwrap();
        // A process that another test is about to start may have the copy's file open until it begins.
        eventually("the disk to be read-only", async || {
            let mut remount = Command::new("mount");
            remount.args(["-o", "remount,ro"]).arg(disk.dir.path());
            remount.status().unwrap().success().then_some(())
        })
        .await;
        assert_eq!(seen(&left), looked);
    }
}

#[actix_web::test]
async fn a_sweep_names_every_broadcast_that_stays_because_it_cannot_be_read() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb).await;
        let (mut spool, store, _) = site.open();
        let old = system_ms() - 10 * DAY_MS;
        let [one, another] = [0, 1].map(|n| broadcast(&[(old + n, Some(old + 60_000))], &[("a", 0, Some(0))]));
        store.put_broadcasts(&[one.clone(), another.clone()]).await.unwrap();
        make_unreadable(&site.path(), site.mongodb.as_ref(), [one.id, another.id]).await;
        spool.close();
        drop((spool, store));
        let mut serve = command(&site.dir, &["serve"]);
        serve.env("CHAT__AUTH__HS256_SECRET", KEY);
        // Each of them is a step of its own.
        for (key, value) in [("DAYS", "1"), ("BATCH", "1"), ("SETTLE_SECONDS", "0")] {
            serve.env(format!("CHAT__LOG__RETENTION_{key}"), value);
        }
        let server = Process::start(&site.dir, &mut serve);
        // As each store has it.
        let whys = match mongodb {
            true => ["a document of the broadcasts has a bad segments"; 2],
            false => ["EOF while parsing an object", "invalid utf-8"],
        };
        for (id, why) in [one.id, another.id].into_iter().zip(whys) {
            let told = server.line(&format!("retention: broadcast {id} stays")).await;
            assert!(told.contains(why), "mongodb: {mongodb}: {told}");
        }
    }
}

#[actix_web::test]
async fn erasing_does_not_say_that_the_file_is_rewritten_while_somebody_reads_what_it_was() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb).await;
        let reader = rusqlite::Connection::open(site.path()).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM spool").unwrap();
        let mut erase = command(&site.dir, &["erase", "--user", "7", "--despite-hold"]);
        erase.env("CHAT__AUTH__HS256_SECRET", KEY);
        let erase = Process::start(&site.dir, &mut erase);
        let servers = match &site.mongodb {
            Some(store) => Some(store.database().await.unwrap().collection::<Document>("servers")),
            None => None,
        };
        if let Some(servers) = &servers {
            // Rule 7: it is on the log as a server is, as long as it works.
            let lives = doc! { "pid": i64::from(erase.pid()) };
            eventually("it to say that it lives", async || {
                servers.find_one(lives.clone()).await.unwrap()
            })
            .await;
        }
        assert_eq!(erase.exited().await.code(), Some(69), "{}", erase.output());
        let output = erase.output();
        assert!(
            output.contains("is not rewritten, so what was erased may be in it still"),
            "{output}"
        );
        assert!(!output.contains("rewritten: "), "{output}");
        assert!(site.found("이름7") > 0);
        if let Some(servers) = &servers {
            assert_eq!(servers.count_documents(doc! {}).await.unwrap(), 0, "it has left");
        }
        reader.execute_batch("COMMIT").unwrap();
        let (code, out, error) = site.run(&["erase", "--user", "7", "--despite-hold"]);
        assert_eq!(code, 0, "{out}{error}");
        assert!(out.contains("rewritten: "), "{out}");
        assert_eq!(site.found("이름7"), 0);
    }
}

#[actix_web::test]
async fn erasing_needs_the_server_stopped_and_tells_of_the_files_that_it_does_not_reach() {
    let site = Site::new(false).await;
    let (spool, store, _) = site.open();
    let (code, _, error) = site.run(&["erase", "--user", "7"]);
    assert_eq!(code, 69, "{error}");
    assert!(
        error.contains("is in use by process") && error.contains("stop that server first"),
        "{error}"
    );
    // Looking does not.
    let (code, out, error) = site.run(&["erase", "--user", "7", "--dry-run", "--despite-hold"]);
    assert_eq!(code, 0, "{out}{error}");
    drop((spool, store));
    let aside = site.dir.path().join("chat.db.damaged-20260101T000000000Z");
    std::fs::write(&aside, SECRET).unwrap();
    std::fs::write(site.dir.path().join("chat.db.damaged-20260101T000000000Z-wal"), SECRET).unwrap();
    let (code, out, error) = site.run(&["erase", "--user", "7", "--despite-hold"]);
    assert_eq!(code, 1, "{out}{error}");
    assert_eq!(out.matches("not reached: ").count(), 1, "{out}");
    assert!(out.contains("chat.db.damaged-20260101T000000000Z,"), "{out}");
    for user in ["-1", "9223372036854775807", "x"] {
        let (code, _, error) = site.run(&["erase", "--user", user]);
        assert_eq!(code, 2, "{user}: {error}");
    }
}
