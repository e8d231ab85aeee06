//! The conformance suite of the log: MongoDB and SQLite keep the same promises.

use std::{path::Path, sync::Arc, time::Duration};

use chatting_actors::{
    broadcast::Broadcast,
    clock::EventClock,
    moderation::Act,
    seams::{LastSeq, LogRange, LogReader, LogStore, Spool, StoreBatch},
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
    writer::SpoolInfo,
};
use chatting_server::store::{
    Archive, Durability, MongoStore, Scan, ServerBeat, SpoolSettings, SqliteSpool, SqliteStore,
    history::{History, ReplayPlace},
    mongo::MongoSettings,
};
use mongodb::{
    IndexModel,
    bson::{Bson, Document, doc},
    options::IndexOptions,
};

use crate::{
    figures::{broadcast, message, shared},
    support::{
        mongod::{Mongod, fresh_database_name},
        moving::{Moves, MovingStore},
        process::ScratchDir,
        room_log::{self, stored},
    },
};

#[actix_web::test]
async fn what_mongodb_refuses_is_told_by_its_code_name_and_message_without_its_raw_reply() {
    let database = fresh_database_name();
    let client = mongodb::Client::with_uri_str(Mongod::shared().uri()).await.unwrap();
    let view = doc! { "create": "chatting_log", "viewOn": "elsewhere", "pipeline": [] };
    client.database(&database).run_command(view).await.unwrap();
    let store = mongo_in(database).await;
    let error = store.prepare().await.unwrap_err().0;
    assert!(
        error.contains("166") && error.contains("CommandNotSupportedOnView"),
        "{error}"
    );
    assert!(
        error.contains("is a view") && !error.contains("RawDocumentBuf"),
        "{error}"
    );
}

#[actix_web::test]
async fn an_index_that_is_in_the_way_of_the_servers_own_is_named_until_it_is_dropped() {
    let by_room = doc! { "presenter_idx": 1, "_id": -1 };
    let acts = doc! { "presenter_idx": 1, "_id": 1 };
    let some = doc! { "act": { "$exists": true } };
    for (collection, name, keys, of) in [
        // Ours under another name, and another one under a name of ours.
        ("broadcasts", "by_hand", by_room, None),
        ("chatting_log", "by_hand", acts, Some(some)),
        ("broadcasts", "open", doc! { "seen_at": 1 }, None),
    ] {
        let store = mongo().await;
        let theirs = IndexOptions::builder()
            .name(name.to_owned())
            .partial_filter_expression(of)
            .build();
        let theirs = IndexModel::builder().keys(keys).options(theirs).build();
        let collection = store.database().await.unwrap().collection::<Document>(collection);
        collection.create_index(theirs).await.unwrap();
        let error = store.prepare().await.unwrap_err().0;
        assert!(error.contains(name) && error.contains("drop that index"), "{error}");
        collection.drop_index(name).await.unwrap();
        store.prepare().await.unwrap();
    }
}

#[actix_web::test]
async fn the_guide_builds_the_indexes_that_the_server_builds() {
    let guide = include_str!("../../docs/MOVING.md");
    let store = mongo().await;
    store.prepare().await.unwrap();
    let mut told = 0;
    for collection in ["chatting_log", "broadcasts"] {
        let indexes = store.database().await.unwrap().collection::<Document>(collection);
        let mut indexes = indexes.list_indexes().await.unwrap();
        while indexes.advance().await.unwrap() {
            let index = indexes.deserialize_current().unwrap();
            let name = index.options.and_then(|options| options.name).unwrap();
            if name == "_id_" {
                continue;
            }
            let key = |(field, order): (&String, &Bson)| match field.contains('.') {
                true => format!("\"{field}\": {order}"),
                false => format!("{field}: {order}"),
            };
            let keys = index.keys.iter().map(key).collect::<Vec<_>>().join(", ");
            let order = format!("  db.{collection}.createIndex({{{keys}}}, {{name: \"{name}\"");
            assert!(guide.contains(&order), "{order}");
            told += 1;
        }
    }
    assert_eq!(guide.matches(".createIndex(").count(), told);
}

/// Both stores, each with what keeps it alive.
pub async fn stores() -> Vec<(&'static str, Arc<dyn Archive>, Option<Arc<ScratchDir>>)> {
    let dir = ScratchDir::new("store");
    let (spool, _) = embedded(&dir.path().join("chat.db"));
    let sqlite = SqliteStore::new(spool.connection());
    let stores: Vec<(_, Arc<dyn Archive>, _)> = vec![
        ("sqlite", Arc::new(sqlite), Some(dir)),
        ("mongodb", Arc::new(mongo().await), None),
    ];
    for (_, store, _) in &stores {
        store.prepare().await.unwrap();
        store.prepare().await.unwrap();
    }
    stores
}

/// A new spool that the embedded log shares its file with.
pub fn embedded(path: &Path) -> (SqliteSpool, SpoolInfo) {
    SqliteSpool::open(SpoolSettings {
        path: path.to_owned(),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: true,
    })
    .unwrap()
}

pub async fn mongo() -> MongoStore {
    mongo_in(fresh_database_name()).await
}

pub async fn mongo_in(database: String) -> MongoStore {
    let settings = MongoSettings {
        uri: Mongod::shared().uri(),
        database,
        connect_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(30),
        connections: 10,
    };
    MongoStore::new(&settings).await.unwrap()
}

#[actix_web::test]
async fn a_mongodb_whose_names_are_known_later_is_used_from_then_on() {
    let settings = MongoSettings {
        uri: Mongod::shared().uri(),
        database: fresh_database_name(),
        connect_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(30),
        connections: 10,
    };
    let store = MongoStore::later(settings);
    // Whoever asks first may be gone long before the store is, and the runtime that it asked in.
    let first = store.clone();
    let (done, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let prepared = actix_web::rt::System::new().block_on(first.prepare());
        let _ = done.send(prepared);
    });
    wait.await.unwrap().unwrap();
    let mut clock = EventClock::after(0);
    let batch = Arc::new(vec![event(&mut clock, 1, "a", 1, "x")]);
    assert_eq!(store.append(batch).await.unwrap(), []);
    assert_eq!(store.clone().last_seq(room(1)).await.unwrap(), Seq(1));
}

pub fn room(n: i64) -> PresenterIdx {
    PresenterIdx::new(n).unwrap()
}

pub fn event(clock: &mut EventClock, presenter: i64, epoch: &str, seq: u64, text: &str) -> Arc<Event> {
    let (sent_at_ms, id) = clock.stamp();
    Arc::new(Event {
        id,
        presenter_idx: room(presenter),
        epoch: Epoch(epoch.into()),
        seq: Seq(seq),
        sent_at_ms,
        room_idx: seq.is_multiple_of(2).then_some(77),
        broadcast_id: None,
        act: None,
        chat: ChatMessage {
            user_idx: UserIdx::new(9).unwrap(),
            nickname: Nickname::new("김🙂", 64).unwrap(),
            text: MessageText::maybe_empty(text.to_owned(), 2000).unwrap(),
            role: Role::Moderator,
        },
        keyed: None,
    })
}

pub fn batch(events: &[Arc<Event>]) -> StoreBatch {
    Arc::new(events.to_vec())
}

async fn all(store: &dyn Archive, presenter: i64) -> Vec<Event> {
    stored(store, room(presenter)).await
}

#[actix_web::test]
async fn what_is_appended_is_read_back_as_it_was_and_in_order() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let texts = [
            "",
            "plain",
            "한글 \u{2028} \u{0} \"quoted\" 🙂",
            "$set",
            &"x".repeat(2000),
        ];
        let events: Vec<_> = (1..)
            .zip(texts)
            .map(|(seq, text)| event(&mut clock, 1, "e", seq, text))
            .collect();
        let reversed: Vec<_> = events.iter().rev().cloned().collect();
        assert_eq!(store.append(batch(&reversed)).await.unwrap(), [], "{name}");
        let read = all(&*store, 1).await;
        assert_eq!(
            read,
            events.iter().map(|event| (**event).clone()).collect::<Vec<_>>(),
            "{name}"
        );
    }
}

#[actix_web::test]
async fn one_numbering_is_read_by_range_whatever_else_the_room_has() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut events = Vec::new();
        for (presenter, epoch) in [(1, "a"), (1, "b"), (2, "b")] {
            events.extend((1..=20).map(|seq| event(&mut clock, presenter, epoch, seq, epoch)));
        }
        // A hole, as retention or a parked event leaves it.
        events.retain(|event| event.seq != Seq(7));
        assert_eq!(store.append(batch(&events)).await.unwrap(), [], "{name}");
        let read = async |epoch: &str, after, through, limit| {
            let epoch = Epoch(epoch.into());
            let read = store.scan(Scan {
                presenter: room(1),
                epoch: epoch.clone(),
                after: Seq(after),
                through: Seq(through),
                user: None,
                newest_first: false,
                limit,
            });
            let read: Vec<_> = read.await.unwrap().into_iter().map(|logged| logged.event).collect();
            assert!(
                read.iter()
                    .all(|event| event.epoch == epoch && event.presenter_idx == room(1)),
                "{name}"
            );
            read.iter().map(|event| event.seq.0).collect::<Vec<_>>()
        };
        assert_eq!(read("b", 4, 9, 100).await, [5, 6, 8, 9], "{name}");
        assert_eq!(read("a", 0, 100, 3).await, [1, 2, 3], "{name}");
        assert_eq!(read("b", 20, 30, 3).await, [0_u64; 0], "{name}");
        assert_eq!(read("c", 0, 100, 3).await, [0_u64; 0], "{name}");
        // Both numberings are all that the room has.
        let mut both: Vec<Event> = events[..38].iter().map(|event| Event::clone(event)).collect();
        both.sort_by_key(|event| (event.seq, event.id));
        assert_eq!(all(&*store, 1).await, both, "{name}");
    }
}

#[actix_web::test]
async fn rule_04_a_batch_given_again_is_stored_once() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let events: Vec<_> = (1..=50).map(|seq| event(&mut clock, 1, "e", seq, "x")).collect();
        assert_eq!(store.append(batch(&events[..30])).await.unwrap(), [], "{name}");
        assert_eq!(store.append(batch(&events)).await.unwrap(), [], "{name}");
        assert_eq!(store.append(batch(&events)).await.unwrap(), [], "{name}");
        assert_eq!(all(&*store, 1).await.len(), 50, "{name}");
    }
}

#[actix_web::test]
async fn rule_04_another_event_in_a_taken_place_is_poison_and_the_rest_is_stored() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let first = event(&mut clock, 1, "e", 2, "first");
        store.append(batch(std::slice::from_ref(&first))).await.unwrap();
        let events: Vec<_> = (1..=3).map(|seq| event(&mut clock, 1, "e", seq, "second")).collect();
        let poison = store.append(batch(&events)).await.unwrap();
        assert_eq!(poison.len(), 1, "{name}: {poison:?}");
        assert_eq!(poison[0].index, 1, "{name}");
        assert!(
            poison[0].reason.contains("numbering conflict"),
            "{name}: {}",
            poison[0].reason
        );
        let texts: Vec<_> = all(&*store, 1)
            .await
            .into_iter()
            .map(|event| event.chat.text.as_str().to_owned())
            .collect();
        assert_eq!(texts, ["second", "first", "second"], "{name}");
    }
}

#[actix_web::test]
async fn rule_04_what_a_unique_index_of_somebody_else_refuses_is_poison_and_no_numbering_conflict() {
    let store = mongo().await;
    store.prepare().await.unwrap();
    let log = store.database().await.unwrap().collection::<Document>("chatting_log");
    let unique = IndexOptions::builder().unique(true).build();
    let theirs = IndexModel::builder()
        .keys(doc! { "message": 1 })
        .options(unique)
        .build();
    log.create_index(theirs).await.unwrap();
    let mut clock = EventClock::after(0);
    let texts = ["a", "index: _id_ dup key", "index: _id_ dup key", "b"];
    let events: Vec<_> = (1..)
        .zip(texts)
        .map(|(seq, text)| event(&mut clock, 1, "e", seq, text))
        .collect();
    for _ in 0..2 {
        let poison = LogStore::append(&store, batch(&events)).await.unwrap();
        assert_eq!(poison.len(), 1, "{poison:?}");
        assert_eq!(poison[0].index, 2);
        let reason = &poison[0].reason;
        assert!(reason.starts_with("message_1 is a unique index"), "{reason}");
    }
    assert_eq!(all(&store, 1).await.len(), 3);
}

#[actix_web::test]
async fn rule_04_what_is_set_aside_of_a_batch_that_takes_several_commands_is_what_was_refused() {
    let store = mongo().await;
    store.prepare().await.unwrap();
    let mut clock = EventClock::after(0);
    let first = event(&mut clock, 1, "e", 1090, "first");
    assert_eq!(
        LogStore::append(&store, batch(std::slice::from_ref(&first)))
            .await
            .unwrap(),
        []
    );
    // Some 9 MB, of which a command has 8 MiB at most: the refused one is in the second.
    let text = "🙂".repeat(2000);
    let events: Vec<_> = (1..=1100).map(|seq| event(&mut clock, 1, "e", seq, &text)).collect();
    let poison = LogStore::append(&store, batch(&events)).await.unwrap();
    let indexes: Vec<_> = poison.iter().map(|poison| poison.index).collect();
    assert_eq!(indexes, [1089]);
    assert_eq!(store.find(events[1089].id).await.unwrap(), None);
    let mut wanted: Vec<_> = events.iter().map(|event| event.id).collect();
    wanted[1089] = first.id;
    let stored: Vec<_> = all(&store, 1).await.into_iter().map(|event| event.id).collect();
    assert!(stored == wanted, "{} events", stored.len());
}

#[actix_web::test]
async fn the_last_seq_of_a_room_is_over_all_epochs_and_of_no_other_room() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        assert!(store.is_empty().await.unwrap(), "{name}");
        assert_eq!(store.last_seq(room(1)).await.unwrap(), Seq(0), "{name}");
        let events =
            [(1, "b", 4), (1, "a", 9), (1, "c", 5), (2, "a", 30)].map(|(p, e, s)| event(&mut clock, p, e, s, "x"));
        store.append(batch(&events)).await.unwrap();
        assert_eq!(store.last_seq(room(1)).await.unwrap(), Seq(9), "{name}");
        assert_eq!(store.last_seq(room(2)).await.unwrap(), Seq(30), "{name}");
        assert_eq!(store.last_seq(room(3)).await.unwrap(), Seq(0), "{name}");
        assert!(!store.is_empty().await.unwrap(), "{name}");
    }
}

#[actix_web::test]
async fn rule_03_a_store_that_was_not_prepared_yet_tells_a_last_seq_though_its_collection_lacks_the_index() {
    let database = fresh_database_name();
    let before = mongo_in(database.clone()).await;
    before.prepare().await.unwrap();
    let mut clock = EventClock::after(0);
    let one = event(&mut clock, 1, "e", 7, "x");
    LogStore::append(&before, batch(&[one])).await.unwrap();
    let collection = before.database().await.unwrap().collection::<Document>("chatting_log");
    collection.drop_index("presenter_epoch_seq").await.unwrap();
    let store = mongo_in(database).await;
    assert_eq!(LogStore::last_seq(&store, room(1)).await.unwrap(), Seq(7));
    assert_eq!(LogStore::last_seq(&store, room(2)).await.unwrap(), Seq(0));
}

#[actix_web::test]
async fn the_old_servers_documents_stay_untouched_and_count_for_nothing() {
    let store = mongo().await;
    let collection = store.database().await.unwrap().collection::<Document>("chatting_log");
    let old = doc! { "_id": 0, "roomIdx": 1, "presenterIdx": 1, "userIdx": 2, "nickname": "n", "sendMessage": "m", "sendTime": "2021-01-01 00:00:00" };
    // None has what the log's index is over: one without a seq may be where others are.
    let mut another = old.clone();
    another.insert("_id", 1);
    let both = [old, another];
    collection.insert_many(&both).await.unwrap();
    store.prepare().await.unwrap();
    assert!(store.is_empty().await.unwrap());
    let mut clock = EventClock::after(0);
    LogStore::append(&store, batch(&[event(&mut clock, 1, "e", 1, "new")]))
        .await
        .unwrap();
    assert_eq!(LogStore::last_seq(&store, room(1)).await.unwrap(), Seq(1));
    for old in both {
        let found = collection.find_one(doc! { "_id": old.get("_id") }).await.unwrap();
        assert_eq!(found, Some(old));
    }
}

#[actix_web::test]
async fn a_document_has_the_fields_that_the_design_names() {
    let store = mongo().await;
    store.prepare().await.unwrap();
    let mut clock = EventClock::after(0);
    let one = event(&mut clock, 12, "e", 2, "hi");
    LogStore::append(&store, batch(std::slice::from_ref(&one)))
        .await
        .unwrap();
    let collection = store.database().await.unwrap().collection::<Document>("chatting_log");
    let found = collection.find_one(doc! {}).await.unwrap().unwrap();
    assert!(
        matches!(found.get("_id"), Some(Bson::Binary(id)) if id.bytes == one.id.as_bytes()),
        "{found}"
    );
    assert!(matches!(found.get("sent_at"), Some(Bson::DateTime(at)) if at.timestamp_millis() == one.sent_at_ms));
    let mut names: Vec<_> = found.keys().cloned().collect();
    names.sort();
    let expected = [
        "_id",
        "epoch",
        "kind",
        "message",
        "nickname",
        "presenter_idx",
        "role",
        "room_idx",
        "sent_at",
        "seq",
        "user_idx",
    ];
    assert_eq!(names, expected);
    assert_eq!(found.get_str("kind"), Ok("chat"));
}

/// A broadcast of room 12 that has ended.
fn ended() -> Broadcast {
    broadcast(&[(0, Some(9))], &[("e", 0, Some(20))])
}

/// 20 events of room 12, of which the store has five and the spool the rest, which moves when it is read; and so does a broadcast.
async fn moving(dir: &ScratchDir, moves: Moves) -> (History, Vec<Arc<Event>>) {
    let path = dir.path().join("chat.db");
    let (mut spool, info) = embedded(&path);
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let mut clock = EventClock::after(0);
    let events: Vec<_> = (1..=20)
        .map(|seq| event(&mut clock, 12, &info.epoch.0, seq, "x"))
        .collect();
    spool.commit(&events).unwrap();
    store.append(batch(&events[..5])).await.unwrap();
    spool.free(5, &[], 0).unwrap();
    spool.keep_broadcasts(&[ended()]).unwrap();
    let store = MovingStore {
        store: Arc::new(store),
        spool: spool.into(),
        moves,
        scanned: Arc::default(),
    };
    (History::new(path, Arc::new(store), 4), events)
}

#[tokio::test]
async fn rule_06_what_moves_from_the_spool_to_the_store_under_a_read_is_in_it_once() {
    let all: Vec<u64> = (1..=20).collect();
    for moves in [Moves::BeforeScan, Moves::AfterScan] {
        let dir = ScratchDir::new("page");
        let (history, _) = moving(&dir, moves).await;
        let page = room_log::read(&history, room(12), Seq(0), 100).await.unwrap();
        let seqs: Vec<_> = page.iter().map(|event| event.seq.0).collect();
        assert_eq!(seqs, all, "a page, {moves:?}");

        let dir = ScratchDir::new("replay");
        let (history, events) = moving(&dir, moves).await;
        let broadcast = broadcast(&[(0, None)], &[(&events[0].epoch.0, 0, None)]);
        // An export reads so, too.
        let replay = history.replay(&broadcast, ReplayPlace::default(), i64::MAX, 100).await;
        let seqs: Vec<_> = replay.unwrap().events.iter().map(|logged| logged.event.seq.0).collect();
        assert_eq!(seqs, all, "a replay, {moves:?}");

        let dir = ScratchDir::new("resume");
        let (history, events) = moving(&dir, moves).await;
        let range = LogRange {
            presenter: room(12),
            epoch: events[0].epoch.clone(),
            after: Seq(0),
            through: Seq(20),
            limit: 100,
        };
        let page = history.read(range, 0).await.unwrap();
        let seqs: Vec<_> = page.events.iter().map(|event| event.seq.0).collect();
        assert_eq!(seqs, all, "a session that goes on, {moves:?}");

        let dir = ScratchDir::new("find");
        let (history, events) = moving(&dir, moves).await;
        let one = history.find(room(12), events[9].id).await.unwrap();
        assert_eq!(one.unwrap().event, Event::clone(&events[9]), "a message, {moves:?}");

        let dir = ScratchDir::new("broadcast");
        let (history, _) = moving(&dir, moves).await;
        let one = history.broadcast(ended().id).await.unwrap();
        assert_eq!(one.unwrap().broadcast, ended(), "a broadcast, {moves:?}");

        let dir = ScratchDir::new("broadcasts");
        let (history, _) = moving(&dir, moves).await;
        let all = history.broadcasts(room(12), None, 10).await.unwrap();
        assert!(all.unreadable.is_empty(), "a list, {moves:?}");
        let all: Vec<_> = all.broadcasts.into_iter().map(|stored| stored.broadcast).collect();
        assert_eq!(all, [ended()], "a list, {moves:?}");
    }
}

#[tokio::test]
async fn pages_of_the_log_bring_each_event_once_wherever_their_ranges_end() {
    let dir = ScratchDir::new("pages");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = embedded(&path);
    let mut clock = EventClock::after(0);
    let epoch = info.epoch.clone();
    // Two rooms in turn, so that a room's rows do not follow each other.
    let events: Vec<_> = (1..=12)
        .flat_map(|seq| [1, 2].map(|presenter| event(&mut clock, presenter, &epoch.0, seq, "x")))
        .collect();
    spool.commit(&events).unwrap();
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let history = History::new(path, Arc::new(store), 4);
    for limit in [1, 2, 3, 100] {
        for first in 1..=12 {
            let (mut seqs, mut spool_from, mut through) = (Vec::new(), 0, first);
            while seqs.len() < 12 {
                let after = Seq(seqs.last().copied().unwrap_or(0));
                let range = LogRange {
                    presenter: room(1),
                    epoch: epoch.clone(),
                    after,
                    through: Seq(through),
                    limit,
                };
                let page = history.read(range, spool_from).await.unwrap();
                assert!(!page.events.is_empty(), "{limit}, {first}: nothing after {after:?}");
                seqs.extend(page.events.iter().map(|event| event.seq.0));
                spool_from = page.spool_from;
                if seqs.last() == Some(&through) {
                    // Meanwhile the ring has moved on.
                    through = (through + 4).min(12);
                }
            }
            assert_eq!(seqs, (1..=12).collect::<Vec<_>>(), "{limit}, {first}");
        }
    }
}

#[actix_web::test]
async fn a_replay_from_a_time_on_does_not_jump_over_what_was_set_aside() {
    for (name, store, _dir) in stores().await {
        let dir = ScratchDir::new("from-parked");
        let path = dir.path().join("chat.db");
        let (mut spool, info) = embedded(&path);
        let mut clock = EventClock::after(0);
        let base = 1_800_000_000_000;
        let events: Vec<_> = (1..=9)
            .map(|seq| {
                let mut event = Arc::unwrap_or_clone(event(&mut clock, 12, &info.epoch.0, seq, "x"));
                event.sent_at_ms = base + i64::try_from(seq).unwrap() * 10;
                Arc::new(event)
            })
            .collect();
        store.append(batch(&events[..3])).await.unwrap();
        let first = spool.commit(&events[3..]).unwrap();
        let refused = (first..).zip(&events[3..6]);
        let refused: Vec<_> = refused
            .map(|(pos, event)| (pos, Arc::clone(event), "no".into()))
            .collect();
        spool.free(first + 2, &refused, 0).unwrap();
        let history = History::new(path, Arc::clone(&store), 4);
        let all = broadcast(&[(base, None)], &[(&info.epoch.0, 0, None)]);
        for from in 1..=10_u64 {
            let from_ms = base + i64::try_from(from).unwrap() * 10 - 5;
            let place = history.replay_from(&all, from_ms).await.unwrap();
            let page = history.replay(&all, place, i64::MAX, 100).await.unwrap();
            let seqs: Vec<_> = page.events.iter().map(|logged| logged.event.seq.0).collect();
            assert_eq!(seqs, (from..=9).collect::<Vec<_>>(), "{name}: from {from}");
        }
    }
}

#[actix_web::test]
async fn a_broadcast_that_has_not_ended_is_found_and_was_live_when_its_last_message_was_sent() {
    for (name, store, _dir) in stores().await {
        // Of room 12, in epoch "a" from `after` on.
        let record = |at_ms: i64, after: u64, ended: Option<i64>| broadcast(&[(at_ms, ended)], &[("a", after, None)]);
        let elsewhere = |n: i64, ended: Option<i64>| {
            let mut record = record(n, 0, ended);
            record.presenter = room(13);
            record
        };
        let (over, open) = (record(1000, 0, Some(2000)), record(3000, 2, None));
        // Of the other room an older one was left open.
        let (left, last) = (elsewhere(1500, None), elsewhere(4000, Some(5000)));
        let all = [over.clone(), open.clone(), left.clone(), last];
        store.put_broadcasts(&all).await.unwrap();
        let ids = |found: Vec<Broadcast>| found.iter().map(|one| one.id).collect::<Vec<_>>();
        let found = store.open_broadcasts([].into()).await.unwrap();
        assert_eq!(ids(found), [left.id, open.id], "{name}: the oldest first");
        let kept = |version: u64| [(open.id, version), (over.id, over.version)].into();
        let found = store.open_broadcasts(kept(open.version)).await.unwrap();
        assert_eq!(ids(found), [left.id], "{name}");
        let found = store.open_broadcasts(kept(open.version - 1)).await.unwrap();
        assert_eq!(ids(found), [left.id, open.id], "{name}: it is newer there");
        let of_room = async |n: i64| store.open_broadcast(room(n)).await.unwrap();
        assert_eq!(of_room(12).await, Some(open.clone()), "{name}");
        assert_eq!(of_room(13).await, None, "{name}: its newest has ended");
        assert_eq!(of_room(14).await, None, "{name}");

        let said = |at_ms: i64, seq: u64, of: Option<uuid::Uuid>| {
            let mut event = message(at_ms, 12, "a", seq, 7, "x");
            event.broadcast_id = of;
            event
        };
        let mut act = said(3900, 5, Some(open.id));
        act.act = Some(Arc::new(Act::Span { from_ms: 0, to_ms: 0 }));
        // An act needs nobody to be live.
        let events = [
            said(1500, 1, Some(over.id)),
            said(3100, 3, Some(open.id)),
            said(3200, 4, Some(open.id)),
            act,
        ];
        assert_eq!(store.append(Arc::new(shared(events))).await.unwrap(), [], "{name}");
        let seen = Broadcast {
            seen_at_ms: 3200,
            ..open.clone()
        };
        assert_eq!(of_room(12).await, Some(seen.clone()), "{name}");
        let found = store.open_broadcasts([(left.id, left.version)].into()).await.unwrap();
        assert_eq!(found, [seen], "{name}");
        // What another one says tells nothing of it.
        let other = [said(3300, 6, Some(over.id))];
        assert_eq!(store.append(Arc::new(shared(other))).await.unwrap(), [], "{name}");
        assert_eq!(of_room(12).await, Some(open.clone()), "{name}");
        let ended = Broadcast {
            ended_at_ms: Some(4000),
            version: open.version + 1,
            ..open
        };
        store.put_broadcasts(&[ended]).await.unwrap();
        assert_eq!(of_room(12).await, None, "{name}");
        let found = store.open_broadcasts([].into()).await.unwrap();
        assert_eq!(ids(found), [left.id], "{name}");
    }
}

#[actix_web::test]
async fn rule_07_which_broadcasts_are_open_is_not_told_while_another_server_writes_to_the_log() {
    let database = fresh_database_name();
    let (store, elsewhere) = (mongo_in(database.clone()).await, mongo_in(database).await);
    store.prepare().await.unwrap();
    let interval = Duration::from_secs(600);
    let mine = ServerBeat::new(&store, "mine", interval);
    mine.beat().await.unwrap();
    let open = broadcast(&[(1000, None)], &[("a", 0, None)]);
    store.put_broadcasts(std::slice::from_ref(&open)).await.unwrap();
    let of_all = async || store.open_broadcasts([].into()).await;
    let of_room = async || store.open_broadcast(room(12)).await;
    for _ in 0..2 {
        assert_eq!(of_all().await.unwrap(), std::slice::from_ref(&open));
        assert_eq!(of_room().await.unwrap().as_ref(), Some(&open));
        let other = ServerBeat::new(&elsewhere, "other", interval);
        other.beat().await.unwrap();
        for error in [of_all().await.unwrap_err(), of_room().await.unwrap_err()] {
            assert!(
                error.0.contains("another server writes to this log: spool other"),
                "{error}"
            );
        }
        other.leave().await;
    }
    assert_eq!(of_all().await.unwrap(), std::slice::from_ref(&open));
    assert_eq!(of_room().await.unwrap(), Some(open));
}

#[tokio::test]
async fn commits_go_between_the_events_of_a_batch_on_its_way_into_the_embedded_log() {
    const EVENTS: i64 = 10_000;
    let dir = ScratchDir::new("between");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = embedded(&path);
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let mut clock = EventClock::after(0);
    let mut next = |presenter, seq| event(&mut clock, presenter, &info.epoch.0, seq, "x");
    let many: Vec<_> = (1..=EVENTS.unsigned_abs()).map(|seq| next(1, seq)).collect();
    let appended = tokio::spawn({
        let (store, many) = (store.clone(), batch(&many));
        async move { store.append(many).await }
    });
    // Here the batch begins, on a thread of its own.
    tokio::task::yield_now().await;
    let log = rusqlite::Connection::open(&path).unwrap();
    let in_log = || {
        log.query_row("SELECT count(*) FROM chatting_log", [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    let mut seen = Vec::new();
    while in_log() < EVENTS {
        spool.commit(&[next(2, seen.len() as u64 + 1)]).unwrap();
        seen.push(in_log());
    }
    assert!(
        seen.iter().any(|rows| (1..EVENTS).contains(rows)),
        "every commit waited for all of it"
    );
    assert!(appended.await.unwrap().unwrap().is_empty());
    assert_eq!(store.last_seq(room(1)).await.unwrap(), Seq(EVENTS.unsigned_abs()));
}

#[actix_web::test]
async fn rule_03_the_number_of_a_row_that_cannot_be_read_is_not_given_again() {
    let dir = ScratchDir::new("set-aside");
    let path = dir.path().join("chat.db");
    {
        let (mut spool, _) = embedded(&path);
        let mut clock = EventClock::after(0);
        let epoch = spool.found().epoch.clone();
        let events: Vec<_> = (1..=3).map(|seq| event(&mut clock, 12, &epoch, seq, "hi")).collect();
        spool.commit(&events).unwrap();
        let other = rusqlite::Connection::open(&path).unwrap();
        let unknown = other.execute("UPDATE spool SET epoch = 99 WHERE pos = 3", []);
        assert_eq!(unknown.unwrap(), 1);
        assert_eq!(spool.read(0, 10).unwrap().len(), 2);
        assert_eq!(spool.last_seq(room(12)).unwrap(), LastSeq::Known(Seq(3)));
    }
    let (mut spool, _) = embedded(&path);
    assert_eq!(spool.last_seq(room(12)).unwrap(), LastSeq::Known(Seq(3)));
}

#[actix_web::test]
async fn rule_03_rows_are_freed_only_together_with_the_last_seqs_of_their_rooms() {
    let dir = ScratchDir::new("together");
    let path = dir.path().join("chat.db");
    let (mut spool, _) = embedded(&path);
    let mut clock = EventClock::after(0);
    let epoch = spool.found().epoch.clone();
    let events: Vec<_> = (1..=3).map(|seq| event(&mut clock, 12, &epoch, seq, "hi")).collect();
    spool.commit(&events).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .execute_batch(
            "CREATE TRIGGER planned BEFORE INSERT ON rooms BEGIN SELECT RAISE(ABORT, 'planned'); END;
             CREATE TRIGGER planned_too BEFORE UPDATE ON rooms BEGIN SELECT RAISE(ABORT, 'planned'); END;",
        )
        .unwrap();
    assert!(spool.free(3, &[], 0).is_err());
    assert_eq!(spool.read(0, 10).unwrap().len(), 3, "nothing is freed without them");
    assert_eq!(spool.last_seq(room(12)).unwrap(), LastSeq::Known(Seq(3)));
    other
        .execute_batch("DROP TRIGGER planned; DROP TRIGGER planned_too;")
        .unwrap();
    spool.free(3, &[], 0).unwrap();
    assert_eq!(spool.read(0, 10).unwrap().len(), 0);
    drop(spool);
    let (mut spool, _) = embedded(&path);
    assert_eq!(spool.last_seq(room(12)).unwrap(), LastSeq::Known(Seq(3)));
}
