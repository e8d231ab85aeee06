//! `spool status`, `verify` and `replay`, as an operator runs them: the real program on real files and a real MongoDB.

use std::{
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use chatting_actors::{
    broadcast::Broadcast,
    clock::{EventClock, system_ms},
    idempotency::Keyed,
    moderation::Act,
    seams::{LogStore, Spool},
    seldom::Seldom,
    types::{ChatMessage, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
};
use chatting_server::{
    settings::{Secret, Settings},
    store::{
        Archive, Deleted, Durability, MongoStore, SpoolSettings, SqliteSpool,
        history::{History, Query, Start},
        mongo::MongoSettings,
    },
};
use mongodb::{
    Client, Collection,
    bson::{Bson, Document, doc},
};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::{
    history::drained,
    log_archive::{act, broadcast, by},
    log_store::{batch, event, mongo_in, room},
    refused_acts::allow,
    support::{
        app::{KEY, mongodb_section, settings, spawn_app, spawn_in, use_mongodb},
        eventually,
        http::get,
        mongod::{Mongod, fresh_database_name},
        presenter::V1,
        process::{Process, ScratchDir, output},
        proxy::Proxy,
    },
};

/// For where MongoDB is away: that is found out soon.
const AWAY: [&str; 4] = [
    "--set",
    "mongodb.connect_timeout_ms=300",
    "--set",
    "mongodb.write_timeout_ms=1000",
];

/// A stopped server's directory: a spool, and the settings that name it.
struct Site {
    dir: Arc<ScratchDir>,
    events: Vec<Arc<Event>>,
}

impl Site {
    /// A spool with these rooms' events (room, how many), in turns; every fifth has a key. The log is in this MongoDB, or
    /// embedded.
    fn new(rooms: &[(i64, u64)], mongodb: Option<(&str, &str)>) -> Self {
        let dir = ScratchDir::new("spool");
        let store = match mongodb {
            Some((uri, database)) => format!("backend = \"mongodb\"\n{}", mongodb_section(uri, database)),
            None => "backend = \"sqlite\"\n".to_owned(),
        };
        let settings = format!(
            "[log]\npath = \"chat.db\"\nbatch_max = 10\nretry_min_ms = 10\nretry_max_ms = 20\n{store}\
             [server]\nbind = \"127.0.0.1:0\"\n[room]\nmode = \"embedded\"\n"
        );
        std::fs::write(dir.path().join("settings.toml"), settings).unwrap();
        let events = fill(&dir.path().join("chat.db"), rooms, mongodb.is_none());
        Self { dir, events }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("chat.db")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatting-server"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_remove("RUST_LOG")
            .env("CHAT__AUTH__HS256_SECRET", KEY)
            .env("CHAT__LIMITS__SENDER_PER_SECOND", "0");
        command
    }

    /// Runs the command; exit code, standard output, standard error.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = output(self.dir.path(), &mut self.command(args));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn status(&self) -> Value {
        self.status_of("chat.db")
    }

    fn status_of(&self, path: &str) -> Value {
        let (code, out, error) = self.run(&["spool", "status", "--json", "--path", path]);
        assert_eq!(code, 0, "{error}");
        serde_json::from_str(&out).unwrap()
    }

    /// Changes the spool behind everybody's back.
    fn sql(&self, sql: &str) {
        let connection = Connection::open(self.path()).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    /// Leaves broadcasts in it: one that is over, one that is open, and one that is open and that the store has.
    fn keep_broadcasts(&self) {
        for (n, ended, stored) in [(1, Some(30), false), (2, None, false), (3, None, true)] {
            self.keep(&broadcast(n, 12, 1, ended), stored);
        }
    }

    fn keep(&self, kept: &Broadcast, stored: bool) {
        let connection = Connection::open(self.path()).unwrap();
        let (id, record) = (&kept.id.as_bytes()[..], serde_json::to_string(kept).unwrap());
        let (room, version) = (kept.presenter.get(), kept.version.cast_signed());
        let row = params![id, room, version, kept.ended_at_ms.is_some(), stored, record];
        let sql =
            "INSERT INTO records(id, presenter_idx, version, ended, stored, record) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        connection.execute(sql, row).unwrap();
    }

    /// A copy of the spool with this byte flipped.
    fn flipped(&self, at: usize) -> String {
        let mut bytes = std::fs::read(self.path()).unwrap();
        bytes[at] ^= 0xff;
        std::fs::write(self.dir.path().join("flipped.db"), bytes).unwrap();
        "flipped.db".to_owned()
    }

    /// Settings of a server in this process that has it, with the log in this database.
    fn settings(&self, database: &str) -> Settings {
        let mut settings = settings(&self.dir);
        use_mongodb(&mut settings);
        database.clone_into(&mut settings.mongodb.database);
        settings
    }

    /// What is in the order of the spool.
    fn ids(&self) -> Vec<Vec<u8>> {
        self.events.iter().map(|event| event.id.as_bytes().to_vec()).collect()
    }
}

fn fill(path: &Path, rooms: &[(i64, u64)], embedded: bool) -> Vec<Arc<Event>> {
    let (mut spool, info) = SqliteSpool::open(SpoolSettings {
        path: path.to_owned(),
        durability: Durability::Disk,
        max_bytes: None,
        embedded,
    })
    .unwrap();
    let mut clock = EventClock::after(0);
    let mut events = Vec::new();
    let most = rooms.iter().map(|(_, count)| *count).max().unwrap_or(0);
    for seq in 1..=most {
        for (room, _) in rooms.iter().filter(|(_, count)| seq <= *count) {
            let (sent_at_ms, id) = clock.stamp();
            let (user_idx, presenter_idx) = (UserIdx::new(9).unwrap(), PresenterIdx::new(*room).unwrap());
            let text = format!("message {seq} of {room}");
            events.push(Arc::new(Event {
                id,
                presenter_idx,
                epoch: info.epoch.clone(),
                seq: Seq(seq),
                sent_at_ms,
                room_idx: None,
                broadcast_id: None,
                act: None,
                keyed: (seq % 5 == 0).then(|| Keyed::new(user_idx, presenter_idx, &format!("key {seq}"), &text)),
                chat: ChatMessage {
                    user_idx,
                    nickname: Nickname::new("kim", 64).unwrap(),
                    text: MessageText::new(text, 2000).unwrap(),
                    role: Role::Viewer,
                },
            }));
        }
    }
    if !events.is_empty() {
        spool.commit(&events).unwrap();
    }
    spool.close();
    events
}

async fn log_of(uri: &str, database: &str) -> Collection<Document> {
    let client = Client::with_uri_str(uri).await.unwrap();
    client.database(database).collection("chatting_log")
}

async fn store_of(uri: &str, database: &str) -> MongoStore {
    let settings = MongoSettings {
        uri: uri.to_owned(),
        database: database.to_owned(),
        connect_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(60),
        connections: 10,
    };
    MongoStore::new(&settings).await.unwrap()
}

/// The ids that the log holds, in the order they were written.
async fn written(log: &Collection<Document>) -> Vec<Vec<u8>> {
    use futures_util::TryStreamExt;
    let found: Vec<Document> = log
        .find(doc! {})
        .sort(doc! { "$natural": 1 })
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    found
        .iter()
        .map(|document| match document.get("_id") {
            Some(Bson::Binary(id)) => id.bytes.clone(),
            other => panic!("_id is {other:?}"),
        })
        .collect()
}

#[actix_web::test]
async fn a_command_whose_spool_cannot_be_marked_as_closed_has_done_its_work_and_ends_with_69() {
    // As on a full disk.
    let takes_no_mark = "CREATE TRIGGER no BEFORE INSERT ON meta WHEN NEW.key = 'clean' AND NEW.value = 1
                         BEGIN SELECT RAISE(ABORT, 'no'); END";
    // A broadcast in which nothing was said.
    let id = "019b76da-a800-7000-8000-000000000001";
    let file = [
        json!({
            "type": "broadcast", "format": 1, "id": id, "presenter_idx": 12, "room_idx": null, "reported_start": null,
            "ended_at": "2026-01-01T01:00:00Z", "corrected_start": null, "seen_at": "2026-01-01T01:00:00Z", "version": 2,
            "segments": [{ "from": "2026-01-01T00:00:00Z", "to": "2026-01-01T01:00:00Z" }],
            "spans": [{ "epoch": "a", "after": 0, "through": 0 }],
        }),
        json!({ "type": "end", "broadcast_id": id, "events": 0 }),
    ];
    let file: String = file.iter().map(|line| format!("{line}\n")).collect();
    for (rooms, args, done) in [
        (&[(12, 3)][..], &["spool", "replay"][..], "replayed: 3 events"),
        (&[(12, 3)], &["erase", "--user", "9"], "erased in the spool: events 3"),
        (&[], &["import", "file"], "imported: 0 events of 1 broadcast"),
    ] {
        let site = Site::new(rooms, None);
        std::fs::write(site.dir.path().join("file"), &file).unwrap();
        site.sql(takes_no_mark);
        let (code, out, error) = site.run(args);
        assert_eq!(code, 69, "{args:?}: {out}{error}");
        assert!(out.contains(done), "{args:?}: {out}");
        assert!(
            error.contains("the spool chat.db could not be marked as closed"),
            "{args:?}: {error}"
        );
        assert_eq!(site.status()["stopped_cleanly"], false, "{args:?}");
    }
    // What the command itself has found says more, and is not all that is said.
    for (args, found) in [
        (&["spool", "replay"][..], "parked: 1 more, 1 in all"),
        (&["erase", "--user", "9"], "chat.db.damaged-20260101T000000000Z"),
        (&["import", "file"], "is not empty"),
    ] {
        let site = Site::new(&[(12, 3)], None);
        std::fs::write(site.dir.path().join("file"), &file).unwrap();
        std::fs::write(site.dir.path().join("chat.db.damaged-20260101T000000000Z"), "").unwrap();
        site.sql("UPDATE spool SET role = 'king' WHERE pos = 1");
        site.sql(takes_no_mark);
        let (code, out, error) = site.run(args);
        assert_eq!(code, 1, "{args:?}: {out}{error}");
        for part in [
            found,
            "could not be marked as closed",
            "the next start checks the spool",
        ] {
            assert!(
                [&out, &error].iter().any(|text| text.contains(part)),
                "{args:?}: {out}{error}"
            );
        }
    }
}

// ---- status ------------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn status_tells_what_a_stopped_server_left() {
    let site = Site::new(&[(12, 30), (7, 12), (1, 1), (2, 1), (3, 1), (4, 1)], None);
    let status = site.status();
    assert_eq!(status["format"], 2);
    assert_eq!(status["epoch"], &*site.events[0].epoch.0);
    assert_eq!(status["durability"], "disk");
    assert_eq!(status["stopped_cleanly"], true);
    assert_eq!(status["held_by"], Value::Null);
    assert_eq!(status["asks_store"], false);
    assert_eq!(status["events"]["count"], 46);
    assert_eq!(status["events"]["oldest_ms"], site.events[0].sent_at_ms);
    assert_eq!(status["events"]["newest_ms"], site.events[45].sent_at_ms);
    assert_eq!(status["rooms_waiting"], 6);
    assert_eq!(status["rooms"].as_array().unwrap().len(), 5);
    assert_eq!(
        (
            &status["rooms"][0]["presenter_idx"],
            &status["rooms"][1]["presenter_idx"]
        ),
        (&12.into(), &7.into())
    );
    assert_eq!(status["keys"], 8);
    assert_eq!(status["parked"]["count"], 0);
    let (code, text, error) = site.run(&["spool", "status"]);
    assert_eq!((code, error.as_str()), (0, ""));
    for part in [
        "46 events of 6 rooms",
        "12: 30 events, seq 1 to 30",
        "stopped cleanly",
        "8 remembered",
        " ago",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[actix_web::test]
async fn status_and_verify_read_the_spool_of_a_running_server_and_do_not_disturb_it() {
    let mongod = Mongod::start_own().await;
    let app = spawn_app(|settings| {
        use_mongodb(settings);
        settings.mongodb.uri = Secret::new(mongod.uri());
        settings.mongodb.connect_timeout_ms = 1000;
    })
    .await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    // It must have told first where the room goes on.
    eventually("the store to be there", async || {
        (app.post(12, 7, "stored").await.status == 201).then_some(())
    })
    .await;
    let site = Site {
        dir: Arc::clone(&app.dir),
        events: Vec::new(),
    };
    // The file itself tells: the gauge is 0 too while the writer has not heard of the event yet.
    eventually("the spool to be drained", async || {
        (site.status_of("chat.db")["events"]["count"] == 0).then_some(())
    })
    .await;
    mongod.kill().await;
    for n in 1..=20 {
        assert_eq!(app.post(12, 7, &n.to_string()).await.status, 201);
        let status = site.status_of("chat.db");
        assert_eq!(status["events"]["count"], n);
        assert_eq!(status["held_by"], format!("process {}", std::process::id()));
        assert_eq!(status["stopped_cleanly"], false);
        let (code, out, error) = site.run(&["spool", "verify", "--path", "chat.db"]);
        assert_eq!(code, 0, "{out}{error}");
    }
    let (code, _, error) = site.run(&["spool", "replay", "--path", "chat.db"]);
    assert_eq!(code, 69, "{error}");
    assert_eq!(site.status_of("chat.db")["events"]["count"], 20);
}

/// All of it is in the store, and the store is this file: whoever then removes it removes the log.
#[actix_web::test]
async fn status_tells_what_a_log_in_the_same_file_holds_where_nothing_is_to_go() {
    let site = Site::new(&[(12, 3)], None);
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!(code, 0, "{out}{error}");
    let status = site.status();
    assert_eq!(status["events"]["count"], 0);
    let (oldest, newest) = (site.events[0].sent_at_ms, site.events[2].sent_at_ms);
    assert_eq!(status["log"], json!({ "oldest_ms": oldest, "newest_ms": newest }));
    let log = |site: &Site| {
        let (_, text, _) = site.run(&["spool", "status"]);
        let line = text.lines().find(|line| line.starts_with("log ")).unwrap();
        line["log".len()..].trim().to_owned()
    };
    let told = log(&site);
    let year = &jiff::Timestamp::from_millisecond(oldest).unwrap().to_string()[..4];
    assert!(
        told.starts_with(&format!("sqlite, in this file: events from {year}-")),
        "{told}"
    );

    // A log that is elsewhere, and one that is begun and empty.
    let mongodb = Site::new(&[(12, 3)], Some(("mongodb://127.0.0.1:1", "nowhere")));
    assert_eq!((&mongodb.status()["log"], &*log(&mongodb)), (&Value::Null, "mongodb"));
    site.sql("DELETE FROM chatting_log");
    assert_eq!(log(&site), "sqlite, in this file: no event");
}

/// A gauge that says 0 of a spool that is nearly full is no help in the outage that filled it.
#[actix_web::test]
async fn the_size_of_a_spool_is_served_from_the_start_on_before_anything_comes() {
    let site = Site::new(&[(12, 30)], Some(("mongodb://127.0.0.1:1", "nowhere")));
    let args = [&["serve", "--port-file", "port"][..], &AWAY].concat();
    let server = Process::start(&site.dir, &mut site.command(&args));
    let addr = server.address(&site.dir.path().join("port")).await;
    eventually("the size to be served", async || {
        let metrics = get(addr, "/metrics").await;
        let served = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix("chat_spool_bytes "));
        served?.parse::<u64>().ok().filter(|bytes| *bytes > 0)
    })
    .await;
}

#[actix_web::test]
async fn status_says_that_the_last_run_was_killed() {
    let site = Site::new(&[(12, 3)], None);
    let args = ["serve", "--port-file", "port"];
    let server = Process::start(&site.dir, &mut site.command(&args));
    server.address(&site.dir.path().join("port")).await;
    assert_eq!(site.status()["held_by"], format!("process {}", server.pid()));
    server.kill().await;
    let status = site.status();
    assert_eq!(
        (&status["held_by"], &status["stopped_cleanly"]),
        (&Value::Null, &false.into())
    );
    let (_, text, _) = site.run(&["spool", "status"]);
    assert!(
        text.contains("not stopped cleanly") && text.contains("nothing accepted is missing"),
        "{text}"
    );
}

#[actix_web::test]
async fn what_is_no_spool_cannot_be_opened_and_is_left_alone() {
    let site = Site::new(&[(12, 3)], None);
    let file = |name: &str, bytes: &[u8]| std::fs::write(site.dir.path().join(name), bytes).unwrap();
    file("empty.db", b"");
    file(
        "text.db",
        &b"this is no database, but long enough to be one. ".repeat(200),
    );
    std::fs::copy(site.path(), site.dir.path().join("later.db")).unwrap();
    let later = || Connection::open(site.dir.path().join("later.db")).unwrap();
    std::fs::create_dir(site.dir.path().join("directory.db")).unwrap();
    let pipe = site.dir.path().join("pipe.db");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    // It may have a table less.
    later()
        .execute_batch("UPDATE meta SET value = 99 WHERE key = 'format'; DROP TABLE places")
        .unwrap();
    for (name, why) in [
        ("missing.db", "No such file"),
        ("empty.db", "no spool"),
        ("text.db", "not a database"),
        ("later.db", "format 99"),
        ("directory.db", "it is a directory"),
        ("pipe.db", "no regular file"),
    ] {
        for command in ["status", "verify"] {
            let (code, out, error) = site.run(&["spool", command, "--path", name]);
            assert_eq!((code, out.as_str()), (69, ""), "{name}: {error}");
            assert!(error.contains(name) && error.contains(why), "{name}: {error}");
        }
    }
    let tables = || -> Vec<String> {
        let connection = later();
        let mut schema = connection.prepare("SELECT name FROM sqlite_schema").unwrap();
        let names = schema.query_map([], |row| row.get(0)).unwrap();
        names.map(Result::unwrap).collect()
    };
    let before = tables();
    for command in [
        &["spool", "replay", "--path", "later.db"][..],
        &["serve", "--set", "log.path=later.db"],
    ] {
        let (code, _, error) = site.run(command);
        assert_eq!(code, 69, "{command:?}: {error}");
        assert!(
            error.contains("format 99") && error.contains("docs/DEPLOY.md"),
            "{command:?}: {error}"
        );
        assert_eq!(tables(), before, "{command:?}");
    }
    let (code, _, error) = site.run(&["spool", "replay", "--path", "missing.db"]);
    assert_eq!(code, 69, "{error}");
    assert!(!site.dir.path().join("missing.db").exists());
    assert_eq!(std::fs::read(site.dir.path().join("empty.db")).unwrap(), b"");
}

#[actix_web::test]
async fn a_spool_by_a_name_that_sqlite_would_take_for_a_uri_is_the_file_of_that_name() {
    let site = Site::new(&[(12, 3)], None);
    let name = "file:chat%2edb?mode=memory";
    std::fs::rename(site.path(), site.dir.path().join(name)).unwrap();
    assert_eq!(site.status_of(name)["events"]["count"], 3);
    let (code, out, error) = site.run(&["spool", "replay", "--path", name]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("replayed: 3 events"), "{out}");
    assert_eq!(site.status_of(name)["events"]["count"], 0);
    assert!(!site.path().exists());
}

// ---- verify ------------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn verify_names_each_thing_that_is_wrong_with_the_rows() {
    let cases = [
        ("DELETE FROM spool WHERE pos = 5", "row 6: room 12 has seq 6 after 4"),
        (
            "UPDATE spool SET seq = 4 WHERE pos = 5",
            "row 5: room 12 has seq 4 after 4",
        ),
        ("UPDATE spool SET seq = 0 WHERE pos = 1", "row 1: its seq is 0"),
        (
            "UPDATE spool SET epoch = 9 WHERE pos = 5",
            "row 5: its epoch (9) is not known",
        ),
        (
            "UPDATE spool SET id = (SELECT id FROM spool WHERE pos = 3) WHERE pos = 5",
            "is there 2 times",
        ),
        (
            "UPDATE spool SET id = zeroblob(16) WHERE pos = 5",
            "row 5: its id 00000000-0000-0000-0000-000000000000 is no UUIDv7",
        ),
        ("UPDATE spool SET id = x'01' WHERE pos = 5", "row 5 cannot be read"),
        (
            "UPDATE spool SET sent_at = sent_at + 1 WHERE pos = 5",
            "is not of the time it was sent",
        ),
        ("UPDATE spool SET role = 'king' WHERE pos = 5", "row 5 cannot be read"),
        ("UPDATE spool SET message = x'ff' WHERE pos = 5", "row 5 cannot be read"),
        ("UPDATE spool SET user_idx = -1 WHERE pos = 5", "row 5 cannot be read"),
        (
            "INSERT INTO rooms VALUES (12, 3)",
            "row 3: room 12 has seq 3, and the table of rooms says that 3 was freed already",
        ),
        (
            "UPDATE meta SET value = 9 WHERE key = 'epoch'",
            "the epoch in use (9) is not among those known",
        ),
        (
            "UPDATE keys SET fingerprint = x'01'",
            "an idempotency key cannot be read",
        ),
        (
            "INSERT INTO parked SELECT pos, epoch, presenter_idx, seq, id, sent_at, room_idx, user_idx, nickname, message, role,
             idempotency_key, 'why', 1, broadcast_id, act FROM spool WHERE pos = 5; UPDATE parked SET nickname = x'ff'",
            "parked row 5 cannot be read",
        ),
        (
            "UPDATE records SET record = 'nonsense' WHERE NOT ended",
            "broadcast 00000000-0000-0000-0000-000000000002 cannot be read",
        ),
        (
            "UPDATE records SET presenter_idx = 13 WHERE ended",
            "broadcast 00000000-0000-0000-0000-000000000001: its record says something else than its row",
        ),
    ];
    for (damage, problem) in cases {
        let site = Site::new(&[(12, 10)], None);
        site.keep_broadcasts();
        assert_eq!(site.run(&["spool", "verify"]).0, 0);
        site.sql(damage);
        let (code, out, error) = site.run(&["spool", "verify"]);
        assert_eq!(code, 1, "{damage}: {out}{error}");
        assert!(out.contains(problem), "{damage}: {problem} is not in:\n{out}");
    }
    let site = Site::new(&[(12, 10)], None);
    site.sql("INSERT INTO rooms VALUES (7, 99), (11, 3)");
    assert_eq!(site.run(&["spool", "verify"]).0, 0, "rooms without rows are no problem");
}

#[actix_web::test]
async fn verify_finds_bytes_that_were_flipped_in_the_file() {
    let site = Site::new(&[(12, 500)], None);
    let bytes = std::fs::read(site.path()).unwrap();
    // In an id, in the kind of a page, in the pointers of a page: each where it is in the file.
    let id = site.events[100].id.as_bytes();
    let in_id = bytes.windows(16).position(|window| window == id).unwrap();
    let page = in_id / 4096 * 4096;
    for (at, problem) in [
        (in_id + 6, "is no UUIDv7"),
        (in_id, "is not of the time it was sent"),
        (page, "the file is damaged"),
        (page + 3, "the file is damaged"),
        (page + 8, "the file is damaged"),
    ] {
        let copy = site.flipped(at);
        let (code, out, error) = site.run(&["spool", "verify", "--path", &copy]);
        assert_eq!(code, 1, "byte {at}: {out}{error}");
        assert!(out.contains(problem), "byte {at}: {problem} is not in:\n{out}");
    }
    // Whatever is flipped, it says something and ends.
    for at in (0..bytes.len()).step_by(bytes.len() / 60) {
        let copy = site.flipped(at);
        let (code, out, error) = site.run(&["spool", "verify", "--path", &copy]);
        assert!([0, 1, 69].contains(&code), "byte {at}: {code}\n{out}{error}");
        assert!(code == 0 || !format!("{out}{error}").is_empty());
        let (code, out, error) = site.run(&["spool", "status", "--path", &copy]);
        assert!([0, 69].contains(&code), "byte {at}: {code}\n{out}{error}");
    }
    assert_eq!(
        std::fs::read(site.path()).unwrap(),
        bytes,
        "the spool itself was changed"
    );
}

#[actix_web::test]
async fn verify_tells_a_file_that_was_cut_off() {
    let site = Site::new(&[(12, 500)], None);
    let bytes = std::fs::read(site.path()).unwrap();
    std::fs::write(site.dir.path().join("cut.db"), &bytes[..bytes.len() / 2]).unwrap();
    let (code, out, error) = site.run(&["spool", "verify", "--path", "cut.db"]);
    assert!(code == 1 || code == 69, "{out}{error}");
}

// ---- replay ------------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn what_is_run_with_settings_of_another_log_than_the_spools_is_refused_and_changes_nothing() {
    let database = fresh_database_name();
    let mongod = Mongod::shared();
    let mongodb = Site::new(&[(12, 5)], Some((&mongod.uri(), &database)));
    let embedded = Site::new(&[(12, 5)], None);
    let uri = format!("mongodb.uri={}", mongod.uri());
    for (site, own, other) in [(&mongodb, "mongodb", "sqlite"), (&embedded, "sqlite", "mongodb")] {
        let before = site.status();
        assert_eq!(before["backend"], own);
        let backend = format!("log.backend={other}");
        let set = ["--set", &*backend, "--set", &*uri];
        for command in [
            &["spool", "replay"][..],
            &["erase", "--user", "7"],
            &["erase", "--user", "7", "--dry-run"],
            &["export", "--room", "12"],
            &["serve"],
        ] {
            let (code, out, err) = site.run(&[command, &set].concat());
            assert_eq!((code, &*out), (64, ""), "{command:?}: {err}");
            let told = [
                format!("log.backend = \"{own}\""),
                format!("\"{other}\""),
                "--config".to_owned(),
            ];
            assert!(told.iter().all(|told| err.contains(told)), "{command:?}: {err}");
        }
        assert_eq!(site.status()["events"], before["events"]);
    }
    let (code, out, err) = mongodb.run(&["spool", "replay"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(written(&log_of(&mongod.uri(), &database).await).await, mongodb.ids());
}

#[actix_web::test]
async fn replay_takes_everything_to_mongodb_in_order_and_frees_it_and_twice_is_once() {
    let (uri, database) = (Mongod::shared().uri(), fresh_database_name());
    let site = Site::new(&[(12, 60), (7, 25)], Some((&uri, &database)));
    let copy = site.dir.path().join("copy.db");
    std::fs::copy(site.path(), &copy).unwrap();
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("replayed: 85 events in 9 batches to mongodb"), "{out}");
    assert!(error.contains("85 of 85 events"), "{error}");
    let log = log_of(&uri, &database).await;
    assert_eq!(written(&log).await, site.ids());
    let status = site.status();
    assert_eq!(
        (&status["events"]["count"], &status["stopped_cleanly"]),
        (&0.into(), &true.into())
    );
    assert_eq!(status["keys"], 17, "keys outlive the rows");
    assert_eq!(site.run(&["spool", "verify"]).0, 0);
    let (code, out, _) = site.run(&["spool", "replay"]);
    assert_eq!(code, 0);
    assert!(out.contains("replayed: 0 events"), "{out}");
    // An old copy of the spool brings nothing new.
    assert_eq!(site.run(&["spool", "replay", "--path", "copy.db"]).0, 0);
    assert_eq!(written(&log).await, site.ids());
}

#[actix_web::test]
async fn replay_takes_everything_to_the_embedded_log() {
    let site = Site::new(&[(12, 60)], None);
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("replayed: 60 events in 6 batches to sqlite"), "{out}");
    let connection = Connection::open(site.path()).unwrap();
    let mut rows = connection.prepare("SELECT id FROM chatting_log ORDER BY seq").unwrap();
    let ids: Vec<Vec<u8>> = rows
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(ids, site.ids());
}

#[actix_web::test]
async fn replay_takes_the_broadcasts_that_the_store_does_not_have_and_forgets_those_that_are_over() {
    let (uri, database) = (Mongod::shared().uri(), fresh_database_name());
    let log = log_of(&uri, &database).await;
    for mongodb in [Some((uri.as_str(), database.as_str())), None] {
        let site = Site::new(&[(12, 3)], mongodb);
        site.keep_broadcasts();
        assert_eq!(site.status()["broadcasts"], json!({ "count": 2, "refused": 0 }));
        // As many batches as there are broadcasts.
        let (code, out, error) = site.run(&["spool", "replay", "--set", "log.batch_max=1"]);
        assert_eq!(code, 0, "{out}{error}");
        assert!(out.contains("broadcasts: 2 in the store now; 0 to go"), "{out}");
        assert!(error.contains("2 of 2 broadcasts"), "{error}");
        assert_eq!(site.status()["broadcasts"]["count"], 0);
        let connection = Connection::open(site.path()).unwrap();
        let count = |table: &str| -> i64 {
            let sql = format!("SELECT COUNT(*) FROM {table}");
            connection.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!(count("records"), 2, "the open ones");
        if mongodb.is_some() {
            let stored = log.client().database(&database).collection::<Document>("broadcasts");
            assert_eq!(stored.count_documents(doc! {}).await.unwrap(), 2);
        } else {
            assert_eq!(count("broadcasts"), 2);
        }
        let (code, out, _) = site.run(&["spool", "replay"]);
        assert_eq!(code, 0, "{out}");
        assert!(!out.contains("broadcasts"), "{out}");
    }
}

/// What its server has put there itself, as one that had this log beside another for a while, and what replay brings.
#[actix_web::test]
async fn what_is_open_in_a_spool_that_was_put_away_is_ended_by_the_server_that_has_its_log() {
    let database = fresh_database_name();
    let store = mongo_in(database.clone()).await;
    store.prepare().await.unwrap();
    let site = Site::new(&[(12, 3), (13, 3)], Some((&Mongod::shared().uri(), &database)));
    let left = [(10, 12), (20, 13)].map(|(n, presenter)| {
        let mut open = broadcast(n, presenter, 1, None);
        open.spans[1].epoch = site.events[0].epoch.clone();
        open.spans[1].after = Seq(1);
        let id = open.id.simple();
        site.sql(&format!(
            "UPDATE spool SET broadcast_id = x'{id}' WHERE presenter_idx = {presenter}"
        ));
        open
    });
    site.keep(&left[0], true);
    site.keep(&left[1], false);
    let before = broadcast(1, 14, 1, None);
    assert_eq!(store.put_broadcasts(std::slice::from_ref(&before)).await.unwrap(), []);
    let app = spawn_app(|settings| {
        use_mongodb(settings);
        database.clone_into(&mut settings.mongodb.database);
        settings.broadcast.resume_seconds = 1;
        settings.room.sweep_ms = 20;
    })
    .await;
    let ended_at_ms = async |one: &Broadcast| {
        eventually(format_args!("broadcast {} to end", one.id), async || {
            store.broadcast(one.id).await.unwrap()?.broadcast.ended_at_ms
        })
        .await
    };
    // It has asked at its start what is open there.
    ended_at_ms(&before).await;
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!(code, 0, "{out}{error}");
    assert_eq!(site.status()["broadcasts"]["count"], 0);
    assert_eq!(store.put_broadcasts(&left[..1]).await.unwrap(), []);
    for one in &left {
        let said = site.events.iter().filter(|event| event.presenter_idx == one.presenter);
        let last_ms = said.map(|event| event.sent_at_ms).max();
        assert!(Some(ended_at_ms(one).await) >= last_ms, "{one:?}");
    }
    app.stop().await;
}

#[actix_web::test]
async fn replay_does_not_say_that_all_is_in_the_store_while_it_refuses_a_broadcast() {
    let (uri, database) = (Mongod::shared().uri(), fresh_database_name());
    let site = Site::new(&[(12, 3)], Some((&uri, &database)));
    site.keep_broadcasts();
    let of = log_of(&uri, &database).await.client().database(&database);
    let refuses = doc! { "create": "broadcasts", "validator": { "ended_at": { "$type": "date" } } };
    of.run_command(refuses).await.unwrap();
    for _ in 0..2 {
        let (code, out, error) = site.run(&["spool", "replay"]);
        assert_eq!(code, 1, "{out}{error}");
        assert!(out.contains("in the store now; 1 to go"), "{out}");
        let why = "refused: broadcast 00000000-0000-0000-0000-000000000002 of room 12, it stays: 121: ";
        assert!(error.contains(why), "{error}");
        assert_eq!(site.status()["broadcasts"], json!({ "count": 1, "refused": 1 }));
    }
    of.run_command(doc! { "collMod": "broadcasts", "validator": {} })
        .await
        .unwrap();
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!(code, 0, "{out}{error}");
    assert_eq!(site.status()["broadcasts"]["count"], 0);
}

#[actix_web::test]
async fn replay_ends_at_a_broadcast_whose_row_says_something_else_and_tries_what_is_parked_all_the_same() {
    let (uri, database) = (Mongod::shared().uri(), fresh_database_name());
    let site = Site::new(&[(12, 3)], Some((&uri, &database)));
    site.keep_broadcasts();
    let unstored = site.status()["broadcasts"]["count"].as_u64().unwrap();
    site.sql("UPDATE spool SET role = 'king' WHERE pos = 2");
    site.sql("UPDATE records SET version = 99 WHERE stored = 0");
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!(code, 69, "{out}{error}");
    assert!(
        out.contains(&format!("broadcasts: {unstored} in the store now; ")),
        "{out}"
    );
    assert!(error.contains("says something else than its row"), "{error}");
    site.sql("UPDATE parked SET role = 'viewer'");
    let (code, out, error) = site.run(&["spool", "replay", "--parked"]);
    assert_eq!(code, 69, "{out}{error}");
    assert!(
        out.contains("parked: 1 tried again, 1 of them are in the store now, 0 are parked"),
        "{out}"
    );
    site.sql("UPDATE records SET version = json_extract(record, '$.version')");
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!(code, 0, "{out}{error}");
}

#[actix_web::test]
async fn rule_07_replay_is_refused_while_a_server_has_the_spool_and_names_it() {
    let site = Site::new(&[(12, 3)], None);
    let server = Process::start(&site.dir, &mut site.command(&["serve", "--port-file", "port"]));
    server.address(&site.dir.path().join("port")).await;
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!((code, out.as_str()), (69, ""));
    assert!(
        error.contains(&format!("in use by process {}", server.pid())),
        "{error}"
    );
    server.signal("TERM");
    assert!(server.exited().await.success());
    assert_eq!(site.run(&["spool", "replay"]).0, 0);
}

#[actix_web::test]
async fn replay_without_its_store_keeps_everything_and_says_why() {
    let site = Site::new(&[(12, 30)], Some(("mongodb://127.0.0.1:1", "nowhere")));
    let (code, out, error) = site.run(&[&["spool", "replay"][..], &AWAY].concat());
    assert_eq!(code, 69, "{error}");
    assert!(out.contains("30 to go"), "{out}");
    assert!(
        error.contains("the store does not take events, they stay in the spool"),
        "{error}"
    );
    assert_eq!(site.status()["events"]["count"], 30);
    assert_eq!(site.run(&["spool", "verify"]).0, 0);
}

#[actix_web::test]
async fn replay_that_fails_before_it_begins_leaves_a_spool_that_was_stopped_cleanly() {
    let site = Site::new(&[(12, 3)], Some(("mongodb://host:port", "nowhere")));
    assert_eq!(site.status()["stopped_cleanly"], true);
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!((code, &*out), (64, ""), "{error}");
    assert!(error.contains("mongodb.uri"), "{error}");
    let status = site.status();
    assert_eq!(
        (&status["stopped_cleanly"], &status["events"]["count"]),
        (&true.into(), &3.into())
    );
}

#[actix_web::test]
async fn replay_that_is_interrupted_or_killed_goes_on_where_it_was() {
    let mongod = Mongod::start_own().await;
    let database = fresh_database_name();
    let site = Site::new(&[(12, 400)], Some((&mongod.uri(), &database)));
    let one_by_one = ["spool", "replay", "--set", "log.batch_max=1"];
    // Ctrl-C while the store hangs.
    mongod.freeze();
    let replay = Process::start(&site.dir, &mut site.command(&[&one_by_one[..], &AWAY].concat()));
    replay.line("more tries").await;
    replay.signal("INT");
    assert_eq!(replay.exited().await.code(), Some(75), "{}", replay.output());
    assert!(
        replay.output().contains("interrupted; run it again"),
        "{}",
        replay.output()
    );
    assert_eq!(site.status()["stopped_cleanly"], true);
    mongod.thaw();
    let log = log_of(&mongod.uri(), &database).await;
    // Ctrl-C, and then SIGKILL, in the midst of it.
    for signal in ["INT", "KILL"] {
        let before = log.count_documents(doc! {}).await.unwrap();
        let replay = Process::start(&site.dir, &mut site.command(&one_by_one));
        eventually("some batches", async || {
            (log.count_documents(doc! {}).await.unwrap() > before + 5).then_some(())
        })
        .await;
        replay.signal(signal);
        let ended = replay.exited().await.code();
        assert!(
            [Some(75), None, Some(0)].contains(&ended),
            "{ended:?}: {}",
            replay.output()
        );
        let (code, out, _) = site.run(&["spool", "verify"]);
        assert_eq!(code, 0, "{out}");
        let (stored, left) = (
            written(&log).await.len() as u64,
            site.status()["events"]["count"].as_u64().unwrap(),
        );
        assert!(
            stored + left == 400 || stored + left == 401,
            "{stored} stored and {left} left of 400"
        );
    }
    assert_eq!(site.run(&["spool", "replay"]).0, 0);
    assert_eq!(written(&log).await, site.ids());
}

#[actix_web::test]
async fn what_was_parked_is_taken_by_replay_parked_once_the_conflict_is_gone_and_no_sooner() {
    let app = spawn_app(use_mongodb).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let epoch = app.post(12, 7, "1").await.json()["epoch"].as_str().unwrap().to_owned();
    let (uri, database) = (Mongod::shared().uri(), app.settings.mongodb.database.clone());
    let log = log_of(&uri, &database).await;
    let in_the_way =
        |seq: i64| doc! { "_id": format!("in the way {seq}"), "presenter_idx": 12_i64, "epoch": &epoch, "seq": seq };
    log.insert_many([in_the_way(2), in_the_way(4)]).await.unwrap();
    for n in 2..=5 {
        assert_eq!(app.post(12, 7, &n.to_string()).await.status, 201);
    }
    eventually("two events to be parked", async || {
        (app.metric("chat_parked_total").await == Some(2.0)).then_some(())
    })
    .await;
    let (_, dir, _) = app.stop().await;
    let mongodb = mongodb_section(&uri, &database);
    let settings = format!("[log]\nbackend = \"mongodb\"\npath = \"chat.db\"\n{mongodb}");
    std::fs::write(dir.path().join("settings.toml"), settings).unwrap();
    let site = Site {
        dir,
        events: Vec::new(),
    };
    let status = site.status();
    assert_eq!(status["parked"]["count"], 2);
    assert_eq!(status["parked"]["reasons"][0]["reason"], "numbering conflict");
    assert_eq!(status["parked"]["events"][0]["seq"], 2);
    let (_, text, _) = site.run(&["spool", "status"]);
    assert!(
        text.contains("2 x numbering conflict") && text.contains("room 12, seq 4"),
        "{text}"
    );
    assert_eq!(site.run(&["spool", "verify"]).0, 0);

    // Replay alone leaves what is parked, and it is not in the store.
    let (code, out, _) = site.run(&["spool", "replay"]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("0 to go") && out.contains("0 more, 2 in all"), "{out}");
    let (code, out, _) = site.run(&["spool", "replay", "--parked"]);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("2 tried again, 0 of them are in the store now, 2 are parked"),
        "{out}"
    );

    log.delete_one(doc! { "_id": "in the way 2" }).await.unwrap();
    site.sql("UPDATE parked SET reason = 'an old reason'");
    let (code, out, error) = site.run(&["spool", "replay", "--parked"]);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("2 tried again, 1 of them are in the store now, 1 are parked"),
        "{out}"
    );
    assert!(error.contains("still parked") && error.contains("seq 4"), "{error}");
    assert!(
        site.status()["parked"]["events"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("E11000")
    );

    log.delete_one(doc! { "_id": "in the way 4" }).await.unwrap();
    let (code, out, error) = site.run(&["spool", "replay", "--parked"]);
    assert_eq!(code, 0, "{out}{error}");
    assert_eq!(site.status()["parked"]["count"], 0);
    let mut texts = Vec::new();
    for seq in 1..=5_i64 {
        let found = log
            .find_one(doc! { "presenter_idx": 12_i64, "seq": seq })
            .await
            .unwrap()
            .unwrap();
        texts.push(found.get_str("message").unwrap().to_owned());
    }
    assert_eq!(texts, ["1", "2", "3", "4", "5"]);
}

#[actix_web::test]
async fn replay_does_not_say_that_all_is_in_the_store_while_a_row_cannot_be_read() {
    let site = Site::new(&[(12, 30)], None);
    site.sql("UPDATE spool SET role = 'king' WHERE pos IN (5, 25)");
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!(code, 1, "{out}{error}");
    assert!(
        out.contains("replayed: 28 events in ") && out.contains("; 0 to go"),
        "{out}"
    );
    assert!(out.contains("parked: 2 more, 2 in all"), "{out}");
    // Nothing is new the second time, and two are missing all the same.
    let (code, out, _) = site.run(&["spool", "replay"]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("parked: 0 more, 2 in all"), "{out}");
    let (code, out, error) = site.run(&["spool", "replay", "--parked"]);
    assert_eq!(code, 1, "{out}");
    assert!(error.contains("a parked event cannot be read, it stays"), "{error}");
    site.sql("UPDATE parked SET role = 'viewer'");
    let (code, out, error) = site.run(&["spool", "replay", "--parked"]);
    assert_eq!(code, 0, "{out}{error}");
    let (code, out, _) = site.run(&["spool", "replay"]);
    assert_eq!(code, 0, "{out}");
}

#[actix_web::test]
async fn rows_that_cannot_be_read_have_no_line_each() {
    let site = Site::new(&[(12, 300)], None);
    site.sql("UPDATE spool SET role = 'king'");
    let began = Instant::now();
    let (code, out, error) = site.run(&["spool", "replay", "--set", "log.batch_max=100"]);
    assert_eq!(code, 1, "{out}{error}");
    assert!(out.contains("parked: 300 more, 300 in all"), "{out}");
    let told = error
        .lines()
        .filter(|line| line.contains("cannot be read and is parked"));
    let told: Vec<_> = told.collect();
    let at_most = 1 + began.elapsed().as_secs() / Seldom::EVERY.as_secs();
    assert!((1..=at_most).contains(&(told.len() as u64)), "{told:?}");
    let first = "row 1 cannot be read and is parked, the first of 100 in its batch: ";
    assert!(told[0].contains(first), "{told:?}");
}

#[actix_web::test]
async fn what_was_deleted_through_another_spool_is_deleted_when_it_is_replayed() {
    let (uri, database) = (Mongod::shared().uri(), fresh_database_name());
    let site = Site::new(&[(12, 6), (13, 2)], Some((&uri, &database)));
    let open = |path: std::path::PathBuf| {
        let (spool, _) = SqliteSpool::open(SpoolSettings {
            path,
            durability: Durability::Disk,
            max_bytes: None,
            embedded: false,
        })
        .unwrap();
        spool
    };
    // The first two of room 12 are parked.
    let mut spool = open(site.path());
    let rows = spool.read(0, 3).unwrap().into_iter().filter(|(pos, _)| *pos != 2);
    let refused: Vec<_> = rows.map(|(pos, event)| (pos, event, "no".into())).collect();
    spool.free(3, &refused, 0).unwrap();
    spool.close();
    drop(spool);

    // Since it was put away another server has written to the log, and staff has deleted there.
    let store = store_of(&uri, &database).await;
    store.prepare().await.unwrap();
    let elsewhere = since(&site);
    assert_eq!(store.append(batch(&elsewhere)).await.unwrap(), []);

    let dir = ScratchDir::new("elsewhere");
    drop(open(dir.path().join("chat.db")));
    let history = History::new(dir.path().join("chat.db"), Arc::new(store), 4);
    let shown = async |presenter: i64| {
        let query = Query {
            presenter: room(presenter),
            start: Start::After(Seq(0)),
            user: None,
            text: None,
            from_ms: None,
            to_ms: None,
            deleted_too: true,
            limit: 100,
            scan_limit: 100,
        };
        let events = history.page(&query).await.unwrap().events;
        let messages = events.into_iter().filter(|logged| logged.event.act.is_none());
        let mut messages: Vec<_> = messages
            .map(|logged| (logged.event.chat.text.as_str().to_owned(), logged.deleted))
            .collect();
        messages.sort_by_key(|(text, _)| text.clone());
        messages
    };
    let said = |presenter: i64, seqs: std::ops::RangeInclusive<u64>| {
        let deleted = Some(Deleted::by(&elsewhere[usize::from(presenter == 13)]));
        seqs.map(move |seq| (format!("message {seq} of {presenter}"), deleted))
    };
    let since = ("since".to_owned(), None);
    // One a batch, as well as all in one.
    let (code, out, error) = site.run(&["spool", "replay", "--set", "log.batch_max=1"]);
    assert_eq!(code, 1, "{out}{error}");
    assert!(out.contains("replayed: 5 events in 5 batches"), "{out}");
    let wanted: Vec<_> = said(12, 3..=6).chain([since.clone()]).collect();
    assert_eq!(shown(12).await, wanted);
    assert_eq!(shown(13).await, said(13, 2..=2).collect::<Vec<_>>());
    let (code, out, error) = site.run(&["spool", "replay", "--parked"]);
    assert_eq!(code, 0, "{out}{error}");
    let wanted: Vec<_> = said(12, 1..=6).chain([since]).collect();
    assert_eq!(shown(12).await, wanted);
}

/// What another server wrote to the log of this site since that was put away: all that user 9 said in room 12 so far is
/// deleted, and all that was said in room 13; and what user 9 says then.
fn since(site: &Site) -> [Arc<Event>; 3] {
    let newest_ms = site.events.iter().map(|event| event.sent_at_ms).max().unwrap();
    let mut clock = EventClock::after(newest_ms);
    let all_of_9 = Act::User {
        user_idx: UserIdx::new(9).unwrap(),
    };
    let all_so_far = Act::Span {
        from_ms: 0,
        to_ms: newest_ms,
    };
    [
        act(&mut clock, 12, "elsewhere", 1, all_of_9),
        act(&mut clock, 13, "elsewhere", 1, all_so_far),
        by(9, event(&mut clock, 12, "elsewhere", 2, "since")),
    ]
}

/// How an event of the log was deleted.
async fn deleted(store: &MongoStore, event: &Event) -> Option<Deleted> {
    store.find(event.id).await.unwrap().unwrap().deleted
}

#[actix_web::test]
async fn what_was_deleted_while_another_server_had_the_log_is_deleted_when_a_server_starts_on_a_spool_of_before() {
    // One a batch, as well as all in one.
    for batch_max in [1, 1000] {
        let database = fresh_database_name();
        let site = Site::new(&[(12, 6), (13, 2)], Some((&Mongod::shared().uri(), &database)));
        let store = mongo_in(database.clone()).await;
        store.prepare().await.unwrap();
        let since = since(&site);
        assert_eq!(store.append(batch(&since)).await.unwrap(), []);
        // Of a version that knows more of them: it costs only itself.
        let log = store.database().await.unwrap().collection::<Document>("chatting_log");
        let act = log.find_one(doc! { "act": { "$exists": true } }).await.unwrap();
        let mut newer = act.unwrap();
        newer.insert(
            "_id",
            mongodb::bson::Uuid::from_bytes(uuid::Uuid::now_v7().into_bytes()),
        );
        newer.insert("seq", 1_000_000_i64);
        newer.insert("act", doc! { "scope": "of_later" });
        log.insert_one(newer).await.unwrap();
        let mut settings = site.settings(&database);
        settings.log.batch_max = batch_max;
        let app = spawn_in(Arc::clone(&site.dir), settings).await;
        drained(&app).await;
        for event in &site.events {
            let by = &since[usize::from(event.presenter_idx == room(13))];
            assert_eq!(deleted(&store, event).await, Some(Deleted::by(by)), "{event:?}");
        }
        assert_eq!(deleted(&store, &since[2]).await, None);
        app.stop().await;
    }
}

#[actix_web::test]
async fn what_another_server_deleted_while_this_one_did_not_reach_mongodb_is_deleted_when_it_does() {
    let database = fresh_database_name();
    let link = Proxy::start(([127, 0, 0, 1], Mongod::shared().port()).into()).await;
    let app = spawn_app(|settings| {
        use_mongodb(settings);
        database.clone_into(&mut settings.mongodb.database);
        settings.mongodb.uri = Secret::new(format!("mongodb://{}/?directConnection=true", link.address()));
        settings.mongodb.connect_timeout_ms = 1000;
        settings.log.retry_max_ms = 100;
    })
    .await;
    app.go_live(12);
    let _session = V1::of(&app, 12, json!({})).await;
    let say = async |text: &str| {
        let answer = app.post(12, 9, text).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()
    };
    say("before").await;
    drained(&app).await;
    link.cut();
    let said = say("meanwhile").await;
    eventually("MongoDB to be missed", async || {
        (app.metric("chat_store_retries_total").await? > 0.0).then_some(())
    })
    .await;
    let store = mongo_in(database).await;
    let mut clock = EventClock::after(system_ms());
    let user = UserIdx::new(9).unwrap();
    let all_of_9 = act(&mut clock, 12, "elsewhere", 1, Act::User { user_idx: user });
    assert_eq!(store.append(batch(std::slice::from_ref(&all_of_9))).await.unwrap(), []);
    link.restore();
    drained(&app).await;
    let id = said["id"].as_str().unwrap().parse().unwrap();
    let logged = store.find(id).await.unwrap().unwrap();
    assert_eq!(logged.deleted, Some(Deleted::by(&all_of_9)));
    eventually("a later time", async || {
        (system_ms() > all_of_9.sent_at_ms).then_some(())
    })
    .await;
    let later = say("later").await["id"].as_str().unwrap().parse().unwrap();
    drained(&app).await;
    assert_eq!(store.find(later).await.unwrap().unwrap().deleted, None);
    app.stop().await;
}

#[actix_web::test]
async fn rule_04_what_mongodb_refuses_to_mark_of_a_spool_that_was_left_is_parked_and_does_not_block_the_rest() {
    let database = fresh_database_name();
    let site = Site::new(&[(12, 3), (14, 2)], Some((&Mongod::shared().uri(), &database)));
    let store = mongo_in(database.clone()).await;
    store.prepare().await.unwrap();
    let [all_of_9, ..] = since(&site);
    assert_eq!(store.append(batch(std::slice::from_ref(&all_of_9))).await.unwrap(), []);
    let of = store.database().await.unwrap();
    allow(of, doc! { "deleted_at": { "$exists": false } }).await;
    let app = spawn_in(Arc::clone(&site.dir), site.settings(&database)).await;
    drained(&app).await;
    app.stop().await;
    let parked = site.status()["parked"].clone();
    assert_eq!(parked["count"], 3, "{parked}");
    let why = format!("act {} of room 12 is not applied: ", all_of_9.id);
    assert!(
        parked["events"][0]["reason"].as_str().unwrap().starts_with(&why),
        "{parked}"
    );
    allow(of, doc! {}).await;
    let (code, out, error) = site.run(&["spool", "replay", "--parked"]);
    assert_eq!(code, 0, "{out}{error}");
    for event in &site.events {
        let by = (event.presenter_idx == room(12)).then(|| Deleted::by(&all_of_9));
        assert_eq!(deleted(&store, event).await, by, "{event:?}");
    }
}

#[actix_web::test]
async fn what_was_deleted_through_another_spool_stays_in_this_one_while_mongodb_refuses_to_mark_it() {
    let (uri, database) = (Mongod::shared().uri(), fresh_database_name());
    let site = Site::new(&[(12, 3)], Some((&uri, &database)));
    let store = mongo_in(database).await;
    store.prepare().await.unwrap();
    let [all_of_9, ..] = since(&site);
    assert_eq!(store.append(batch(std::slice::from_ref(&all_of_9))).await.unwrap(), []);
    let database = store.database().await.unwrap();
    allow(database, doc! { "deleted_at": { "$exists": false } }).await;
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!(code, 69, "{out}{error}");
    assert!(
        error.contains(&format!("act {} of room 12 is not applied: ", all_of_9.id)),
        "{error}"
    );
    assert!(out.contains("; 3 to go"), "{out}");
    allow(database, doc! {}).await;
    let (code, out, error) = site.run(&["spool", "replay"]);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("; 0 to go"), "{out}");
    for event in &site.events {
        assert_eq!(deleted(&store, event).await, Some(Deleted::by(&all_of_9)));
    }
}
