//! Every question to the log is served by an index, on both stores: their plans are read. What is asked is what the stores really
//! ask, taken from SQLite's trace and from MongoDB's profiler.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, Once},
    time::Duration,
};

use chatting_actors::{
    metrics::Metrics,
    moderation::Act,
    seams::{LogRange, LogReader, Spool, StoreBatch},
    types::{Epoch, MessageText, Seq, UserIdx},
};
use chatting_server::store::{
    Archive, Durability, Left, MongoStore, Scan, SqliteStore,
    figures::FiguresQuery,
    history::{History, Query, Start},
    inspect::SpoolFile,
    mongo::MongoSettings,
};
use mongodb::bson::{Document, doc};
use rusqlite::{Connection, functions::FunctionFlags};
use uuid::Uuid;

use crate::{
    figures::{broadcast, message, shared},
    log_store::{embedded, room},
    recovery::open,
    support::{
        mongod::{Mongod, fresh_database_name},
        process::ScratchDir,
    },
};

const START: i64 = 1_700_000_000_000;

/// So many messages of room 12, and as many of others.
const MESSAGES: u64 = 3_000;

fn events() -> Vec<StoreBatch> {
    let mut events = Vec::new();
    for seq in 1..=MESSAGES {
        let at_ms = START + i64::try_from(seq).unwrap() * 100;
        let user = if seq % 100 == 0 {
            12
        } else {
            i64::try_from(seq % 40).unwrap() + 20
        };
        events.push(message(at_ms, 12, "a", seq, user, "안녕 방송"));
        let mut other = message(at_ms, 1000 + i64::try_from(seq % 20).unwrap(), "b", seq, user, "other");
        other.id = Uuid::from_u128(other.id.as_u128() + (1 << 63));
        events.push(other);
    }
    shared(events)
        .chunks(1_000)
        .map(|chunk| Arc::new(chunk.to_vec()))
        .collect()
}

/// Asks everything that a log can be asked.
async fn ask_everything(store: &dyn Archive) {
    let (presenter, epoch, user) = (room(12), Epoch("a".into()), UserIdx::new(33).unwrap());
    let record = broadcast(
        &[(START, Some(START + 400_000))],
        &[("a", 100, Some(2_000)), ("b", 0, Some(5)), ("a", 2_000, None)],
    );
    store.put_broadcasts(std::slice::from_ref(&record)).await.unwrap();
    for batch in events() {
        assert_eq!(store.append(batch).await.unwrap(), []);
    }
    let spans = [
        Act::Message {
            id: message(START + 10_000, 12, "a", 100, 12, "").id,
            seq: Seq(100),
        },
        Act::User { user_idx: user },
        Act::Span {
            from_ms: START + 5_000,
            to_ms: START + 6_000,
        },
    ];
    for (n, act) in (1..).zip(spans) {
        let at_ms = START + 500_000;
        let mut one = message(at_ms, 12, "a", MESSAGES + n, 90, "");
        one.act = Some(Arc::new(act));
        one.chat.text = MessageText::maybe_empty(String::new(), 0).unwrap();
        store.append(Arc::new(shared([one]))).await.unwrap();
    }
    // Late for an act on everything.
    let late: Vec<Uuid> = (201..=300)
        .map(|seq| message(START + seq * 100, 12, "a", seq.cast_unsigned(), 12, "").id)
        .collect();
    let mut all = message(START + 500_000, 12, "a", MESSAGES + 3, 90, "");
    all.act = Some(Arc::new(Act::Span {
        from_ms: 0,
        to_ms: i64::MAX,
    }));
    assert_eq!(store.mark_covered(Arc::new(all), late).await.unwrap(), None);
    store.last_seq(presenter).await.unwrap();
    store.epochs(presenter).await.unwrap();
    for user in [None, Some(user)] {
        for newest_first in [false, true] {
            let scan = Scan {
                presenter,
                epoch: epoch.clone(),
                after: Seq(1_000),
                through: Seq(2_000),
                user,
                newest_first,
                limit: 10,
            };
            assert_eq!(store.scan(scan).await.unwrap().len(), 10);
        }
    }
    let acts = store.acts(vec![presenter, room(1003)], Uuid::nil(), 10).await.unwrap();
    assert_eq!(acts.len(), 3);
    store.find(record.id).await.unwrap();
    for before in [None, Some(record.id)] {
        store.broadcasts(presenter, before, 10).await.unwrap();
    }
    store.broadcast(record.id).await.unwrap().unwrap();
    let mut open = broadcast(&[(START + 1, None)], &[("a", 0, None)]);
    open.id = Uuid::from_u128(record.id.as_u128() + (1 << 80));
    store.put_broadcasts(std::slice::from_ref(&open)).await.unwrap();
    let but = [(record.id, u64::MAX)].into();
    assert_eq!(store.open_broadcasts(but).await.unwrap(), std::slice::from_ref(&open));
    assert_eq!(store.open_broadcast(presenter).await.unwrap(), Some(open));
    assert!(store.correct_broadcast(record.id, Some(START)).await.unwrap());
    assert!(store.hold_broadcast(record.id, true).await.unwrap());
    assert!(store.holds().await.unwrap().holds(record.id));
    let query = FiguresQuery {
        broadcast: record,
        corrected_start_ms: None,
        bucket_ms: 1_000,
        last_bucket: 99,
        top: 10,
        patience: Duration::from_secs(60),
    };
    let counted = store.figures(query).await.unwrap();
    assert!(counted.replies() > 10 && counted.senders > 10, "{counted:?}");
    let traces = store.traces(user, 3, 10).await.unwrap();
    assert_eq!(traces.len(), 10);
    store.erase(&traces, START).await.unwrap();
    let mentions = store.mentions(user, None, 10).await.unwrap();
    assert_eq!(mentions.len(), 1);
    store.erase_mentions(user, &mentions).await.unwrap();
    assert_eq!(
        store.mentions(UserIdx::new(90).unwrap(), None, 10).await.unwrap().len(),
        10
    );
    let first = store.expire(START + 50_000, None, 50).await.unwrap();
    assert!(first.removed > 0);
    store.expire(START + 50_000, first.last, 50).await.unwrap();
    store.expire_broadcasts(START + 900_000, None, 50).await.unwrap();
}

/// Keeps the statements that the stores' connections run, those of other tests too.
struct Statements(Mutex<BTreeSet<String>>);

static STATEMENTS: Statements = Statements(Mutex::new(BTreeSet::new()));

thread_local! {
    /// Those that ran on this thread, so of no other test.
    static HERE: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

impl log::Log for Statements {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "chatting_server::sql"
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let sql = record.args().to_string();
            HERE.with_borrow_mut(|here| here.insert(sql.clone()));
            self.0.lock().unwrap().insert(sql);
        }
    }

    fn flush(&self) {}
}

fn keep_statements() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&STATEMENTS).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
}

/// The steps in which SQLite answers a statement; `None` where it cannot be asked here: another test's file may be of an older format.
fn plan_of(connection: &Connection, sql: &str) -> Option<Vec<String>> {
    let mut explained = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).ok()?;
    for n in 1..=explained.parameter_count() {
        explained.raw_bind_parameter(n, 1).unwrap();
    }
    let mut plan = Vec::new();
    let mut rows = explained.raw_query();
    while let Some(row) = rows.next().unwrap() {
        plan.push(row.get::<_, String>(3).unwrap());
    }
    Some(plan)
}

/// What is asked with no row in mind, or only of small rooms, and the one row at the end of an index, which a start of another test
/// asks for.
const EXEMPT: [&str; 3] = [
    "FROM chatting_log ORDER BY id DESC LIMIT 1",
    "SELECT NOT EXISTS (SELECT 1 FROM chatting_log)",
    "ORDER BY seq, id LIMIT ?3",
];

#[actix_web::test]
async fn every_statement_on_the_embedded_log_is_served_by_an_index() {
    keep_statements();
    let dir = ScratchDir::new("plans");
    let path = dir.path().join("chat.db");
    let (spool, _) = embedded(&path);
    let store = SqliteStore::new(spool.connection());
    chatting_actors::seams::LogStore::prepare(&store).await.unwrap();
    ask_everything(&store).await;
    let connection = Connection::open(&path).unwrap();
    for name in ["offset_ms", "words"] {
        connection
            .create_scalar_function(name, 1, FunctionFlags::SQLITE_UTF8, |_| Ok(0))
            .unwrap();
    }
    let statements = STATEMENTS.0.lock().unwrap().clone();
    let mut looked = 0;
    for sql in statements {
        let is_ours = sql.contains("chatting_log") || sql.contains("broadcasts");
        let is_plain = ["SELECT", "UPDATE", "DELETE", "WITH"]
            .iter()
            .any(|verb| sql.trim_start().starts_with(verb));
        if !is_ours || !is_plain || EXEMPT.iter().any(|exempt| sql.contains(exempt)) {
            continue;
        }
        let Some(plan) = plan_of(&connection, &sql) else {
            continue;
        };
        looked += 1;
        for step in &plan {
            let scanned = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next());
            let table = scanned.is_some_and(|name| ["chatting_log", "broadcasts", "log", "first"].contains(&name));
            assert!(!table, "{sql}\n{plan:#?}");
            // By the room and the numbering, or by more.
            let wide = step.contains("PRIMARY KEY (presenter_idx=?)") || step.ends_with("(user_idx=?)");
            assert!(!wide || sql.contains("LIMIT ?2 OFFSET ?3"), "{sql}\n{plan:#?}");
        }
        let sorts = plan.iter().any(|step| step.contains("TEMP B-TREE FOR ORDER BY"));
        assert!(!sorts || sql.contains("GROUP BY"), "{sql}\n{plan:#?}");
    }
    assert!(looked >= 25, "{looked} statements");
}

/// Takes indexes out of a file that nobody has open.
fn without(path: &Path, drop_them: &str) {
    Connection::open(path).unwrap().execute_batch(drop_them).unwrap();
}

#[actix_web::test]
async fn what_is_parked_of_a_room_is_found_by_an_index_also_in_a_spool_that_had_none() {
    keep_statements();
    let dir = ScratchDir::new("plans-parked");
    let path = dir.path().join("chat.db");
    let (mut spool, _) = embedded(&path);
    spool.close();
    drop(spool);
    // As an earlier build left it.
    without(
        &path,
        "DROP INDEX parked_by_room; DROP INDEX parked_said; DROP INDEX parked_of_user; DROP INDEX parked_at; DROP INDEX parked_acts",
    );
    let (mut spool, info) = embedded(&path);
    let epoch = &*info.epoch.0;
    let said = shared((1..=4).map(|seq| message(START + seq, 12, epoch, seq.cast_unsigned(), 33, "x")));
    let acts = [
        Act::Message {
            id: said[0].id,
            seq: Seq(1),
        },
        Act::User {
            user_idx: said[0].chat.user_idx,
        },
        Act::Span {
            from_ms: START + 1,
            to_ms: START + 1,
        },
    ];
    let acts = shared((5_u64..).zip(acts).map(|(seq, of)| {
        let mut act = message(START + seq.cast_signed(), 12, epoch, seq, 90, "");
        act.act = Some(Arc::new(of));
        act
    }));
    let parked: Vec<_> = (1..)
        .zip(said)
        .map(|(pos, event)| (pos, event, "no".to_owned()))
        .collect();
    let events: Vec<_> = parked.iter().map(|(_, event, _)| Arc::clone(event)).collect();
    spool.commit(&events).unwrap();
    spool.free(4, &parked, 0).unwrap();
    let pos = spool.commit(&acts).unwrap();
    spool.free(pos + 2, &[], 0).unwrap();
    assert_eq!(spool.count_parked().unwrap(), 7, "the acts stay with what they cover");
    let store = SqliteStore::new(spool.connection());
    chatting_actors::seams::LogStore::prepare(&store).await.unwrap();
    let history = History::new(path.clone(), Arc::new(store), 4);
    for start in [Start::After(Seq(0)), Start::Before(Seq(9))] {
        let query = Query {
            presenter: room(12),
            start,
            user: None,
            text: None,
            from_ms: None,
            to_ms: None,
            deleted_too: true,
            limit: 10,
            scan_limit: 10,
        };
        assert_eq!(history.page(&query).await.unwrap().events.len(), 7);
    }
    let range = LogRange {
        presenter: room(12),
        epoch: info.epoch.clone(),
        after: Seq(0),
        through: Seq(7),
        limit: 10,
    };
    let page = LogReader::read(&history, range, 0).await.unwrap();
    assert_eq!(
        (page.events.len(), page.deleted),
        (7, vec![Seq(1), Seq(2), Seq(3), Seq(4)])
    );
    assert_eq!(spool.unpark(&[acts[0].id], &[]).unwrap(), 0);
    let connection = Connection::open(&path).unwrap();
    let statements = STATEMENTS.0.lock().unwrap().clone();
    let mut looked = 0;
    for sql in statements {
        // What is counted, or gone through for all rooms, names none.
        if !sql.contains("parked") || !sql.contains("presenter_idx = ") || sql.contains("GROUP BY") {
            continue;
        }
        let Some(plan) = plan_of(&connection, &sql) else {
            continue;
        };
        looked += 1;
        for step in &plan {
            let scanned = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next());
            let table = scanned.is_some_and(|name| ["parked", "older"].contains(&name));
            assert!(!table, "{sql}\n{plan:#?}");
            // A room's may be much, and that there is nothing older is the answer for which it would all be read.
            let of_a_room = step.starts_with("SEARCH older") && !step.contains("id<?");
            assert!(!of_a_room, "{sql}\n{plan:#?}");
        }
        let by = [
            ("AND user_idx = ?3)", "parked_of_user"),
            ("sent_at BETWEEN ?3", "parked_at"),
        ];
        for (_, index) in by.iter().filter(|(which, _)| sql.contains(which)) {
            assert!(plan.iter().any(|step| step.contains(index)), "{sql}\n{plan:#?}");
        }
        let sorts = plan.iter().any(|step| step.contains("TEMP B-TREE"));
        assert!(!sorts, "{sql}\n{plan:#?}");
    }
    // Pages either way, the reading of a session that goes on, its acts, what freed acts of each kind cover, and what an act stays for.
    assert!(looked >= 8, "{looked} statements");
}

#[test]
fn the_broadcasts_that_the_store_lacks_are_found_by_an_index_also_in_a_spool_that_had_none() {
    keep_statements();
    let dir = ScratchDir::new("plans-records");
    let path = dir.path().join("chat.db");
    let (mut spool, _) = embedded(&path);
    spool.close();
    drop(spool);
    // As an earlier build left it.
    without(&path, "DROP INDEX records_unstored");
    let (mut spool, _) = embedded(&path);
    spool.count_in(&Metrics::default());
    let record = broadcast(&[(START, None)], &[("a", 0, None)]);
    assert!(spool.keep_broadcasts(std::slice::from_ref(&record)).unwrap());
    assert_eq!(spool.unstored_broadcasts(10).unwrap(), std::slice::from_ref(&record));
    spool.broadcasts_stored(&[], &[record]).unwrap();
    let connection = Connection::open(&path).unwrap();
    let statements = STATEMENTS.0.lock().unwrap().clone();
    let mut looked = 0;
    for sql in statements {
        if !["stored = 0 ", "stored = 2 "].iter().any(|which| sql.contains(which)) {
            continue;
        }
        let Some(plan) = plan_of(&connection, &sql) else {
            continue;
        };
        looked += 1;
        let scans = |step: &String| step.starts_with("SCAN records") || step.contains("TEMP B-TREE");
        assert!(!plan.iter().any(scans), "{sql}\n{plan:#?}");
    }
    // What is to be stored, what is counted as refused, and what is tried again at a start; two more ask for one by its id.
    assert!(looked >= 5, "{looked} statements");
}

#[test]
fn a_start_sorts_nothing_of_what_the_spool_holds() {
    keep_statements();
    let dir = ScratchDir::new("plans-start");
    let path = dir.path().join("chat.db");
    let (mut spool, _) = open(&path, Durability::Disk, None);
    spool.close();
    drop(spool);
    // A start that asks for all that one may.
    without(
        &path,
        "UPDATE meta SET value = 1 WHERE key = 'ask_store'; INSERT INTO meta VALUES ('salvaged', 1); UPDATE meta SET value = 0 WHERE key = 'clean'",
    );
    HERE.take();
    let (spool, _) = open(&path, Durability::Disk, None);
    assert_eq!(spool.found().left, Left::Uncleanly("disk".into()));
    let connection = Connection::open(&path).unwrap();
    let mut looked = BTreeSet::new();
    for sql in HERE.take() {
        if !sql.starts_with("SELECT") {
            continue;
        }
        // It may be gigabytes, which would be sorted in memory.
        let plan = plan_of(&connection, &sql).unwrap();
        assert!(
            !plan.iter().any(|step| step.contains("TEMP B-TREE")),
            "{sql}\n{plan:#?}"
        );
        let tables = ["spool", "parked", "rooms"];
        looked.extend(
            tables
                .into_iter()
                .filter(|table| sql.contains(&format!("FROM {table}"))),
        );
    }
    assert_eq!(looked.into_iter().collect::<Vec<_>>(), ["parked", "rooms", "spool"]);
}

#[test]
fn the_status_of_a_spool_sorts_none_of_its_events() {
    keep_statements();
    let dir = ScratchDir::new("plans-status");
    let path = dir.path().join("chat.db");
    let (mut spool, _) = open(&path, Durability::Disk, None);
    spool.close();
    drop(spool);
    HERE.take();
    SpoolFile::open(&path).unwrap().status().unwrap();
    let connection = Connection::open(&path).unwrap();
    let asked = HERE.take();
    let of_events: Vec<_> = asked.iter().filter(|sql| sql.contains("FROM spool")).collect();
    assert!(!of_events.is_empty());
    for sql in of_events {
        // It may be gigabytes, which would be sorted in the temporary directory.
        let plan = plan_of(&connection, sql).unwrap();
        assert!(!plan.iter().any(|step| step.contains("B-TREE")), "{sql}\n{plan:#?}");
    }
}

#[actix_web::test]
async fn every_operation_on_the_log_in_mongodb_is_served_by_an_index() {
    let mongod = Mongod::start_own().await;
    let settings = MongoSettings {
        uri: mongod.uri(),
        database: fresh_database_name(),
        connect_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(30),
        connections: 10,
    };
    let store = MongoStore::new(&settings).await.unwrap();
    chatting_actors::seams::LogStore::prepare(&store).await.unwrap();
    let database = store.database().await.unwrap();
    let scans = async || {
        let status = database.run_command(doc! { "serverStatus": 1 }).await.unwrap();
        let executor = status
            .get_document("metrics")
            .unwrap()
            .get_document("queryExecutor")
            .unwrap()
            .clone();
        let scans = executor.get_document("collectionScans").unwrap();
        scans.get_i64("total").unwrap()
    };
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let before = scans().await;
    ask_everything(&store).await;
    // The whole of a collection was never read, within a pipeline neither.
    assert_eq!(scans().await, before);
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    let profile = database.collection::<Document>("system.profile");
    let mut entries = profile
        .find(doc! { "ns": { "$regex": "chatting_log|broadcasts" } })
        .await
        .unwrap();
    let mut looked = 0;
    while entries.advance().await.unwrap() {
        let entry: Document = entries.deserialize_current().unwrap();
        let Ok(plan) = entry.get_str("planSummary") else {
            continue;
        };
        looked += 1;
        assert!(!plan.contains("COLLSCAN"), "{entry:#?}");
        let command = entry.get_document("command").unwrap();
        let counts = command.contains_key("aggregate");
        let sorts = entry.get_bool("hasSortStage").unwrap_or(false);
        assert!(!sorts || counts, "{entry:#?}");
        // What was looked at is what was asked for, or near it: 1,900 messages are counted, 20 replies among them waited for.
        let number = |key: &str| entry.get_i32(key).map_or(0, i64::from);
        let asked = number("nreturned")
            .max(number("nModified"))
            .max(number("ndeleted"))
            .max(1);
        let looked_at = number("docsExamined").max(number("keysExamined"));
        let bound = if counts { 3_200 } else { asked * 2 + 60 };
        assert!(looked_at <= bound, "{looked_at} for {asked}: {entry:#?}");
    }
    assert!(looked >= 40, "{looked} operations");
}
