//! The commands `export` and `import`, as an operator runs them: the real program, both stores, and a log that comes back whole.

use std::{
    fs::Permissions,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use chatting_actors::{clock::system_ms, seams::Spool, types::Event, wire::v1::timestamp};
use chatting_server::{
    app::App,
    export::import::check,
    settings::{LogBackend, Settings},
    store::{Archive, Durability, SpoolSettings, SqliteSpool},
};
use mongodb::bson::doc;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    export::{START, broadcast_id, event, fill},
    figures::broadcast,
    history::{drained, read, request, seqs},
    log_archive::park,
    log_store::mongo_in,
    retention::make_unreadable,
    support::{
        app::{KEY, mongodb_section, settings, spawn_in, use_mongodb},
        eventually,
        mongod::{Mongod, fresh_database_name},
        presenter::V1,
        process::{Process, ScratchDir, output, signal},
        proxy::Proxy,
    },
};

/// A directory with the settings of a server, in which commands are run.
struct Site {
    dir: Arc<ScratchDir>,
    database: String,
    mongodb: bool,
}

impl Site {
    fn new(mongodb: bool) -> Self {
        let site = Self {
            dir: ScratchDir::new("export"),
            database: fresh_database_name(),
            mongodb,
        };
        let store = match mongodb {
            true => format!(
                "backend = \"mongodb\"\n{}",
                mongodb_section(&Mongod::shared().uri(), &site.database)
            ),
            false => "backend = \"sqlite\"\n".to_owned(),
        };
        let text = format!("[log]\npath = \"chat.db\"\n{store}");
        std::fs::write(site.path("settings.toml"), text).unwrap();
        site
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatting-server"));
        command.args(args).current_dir(self.dir.path()).env_remove("RUST_LOG");
        command.env("CHAT__AUTH__HS256_SECRET", KEY);
        command
    }

    /// Runs a command; exit code, standard output, standard error.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = output(self.dir.path(), &mut self.command(args));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn export(&self, more: &[&str]) -> String {
        let id = broadcast_id().to_string();
        let (code, out, error) = self.run(&[&["export", "--broadcast", &id][..], more].concat());
        assert_eq!(code, 0, "{error}");
        out
    }

    fn import(&self, file: &Path) -> (i32, String, String) {
        self.run(&["import", file.to_str().unwrap()])
    }

    /// A server's settings for this directory and database.
    fn settings(&self) -> Settings {
        let mut settings = settings(&self.dir);
        if self.mongodb {
            use_mongodb(&mut settings);
            settings.mongodb.database.clone_from(&self.database);
            assert_eq!(settings.log.backend, LogBackend::Mongodb);
        }
        settings
    }

    /// Puts something into the log by a server that is stopped in order again.
    async fn with_log(&self, put: impl AsyncFnOnce(&dyn Archive)) {
        let app = spawn_in(Arc::clone(&self.dir), self.settings()).await;
        app.state.history.store().prepare().await.unwrap();
        put(&**app.state.history.store()).await;
        app.stop().await;
    }
}

const FORMATS: [&str; 4] = ["ndjson", "csv", "twitch-json", "webvtt"];

/// Without what tells when a file was made.
fn timeless(format: &str, text: &str) -> String {
    if format != "twitch-json" {
        return text.to_owned();
    }
    let mut chat: Value = serde_json::from_str(text).unwrap();
    chat["FileInfo"] = Value::Null;
    chat.to_string()
}

/// Files of exports that are not whole.
fn parts(site: &Site) -> Vec<String> {
    let names = std::fs::read_dir(site.dir.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".part")).collect()
}

#[actix_web::test]
async fn the_command_writes_what_the_route_gives_beside_a_running_server() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb);
        let app = spawn_in(Arc::clone(&site.dir), site.settings()).await;
        app.state.history.store().prepare().await.unwrap();
        fill(&**app.state.history.store()).await;
        for format in FORMATS {
            let path = format!("/v1/broadcasts/{}/export?format={format}", broadcast_id());
            let told = request(&app, "GET", &path, &app.token(12), "").await;
            let written = site.export(&["--format", format]);
            assert_eq!(timeless(format, told.text()), timeless(format, &written), "{format}");
        }
        assert!(!site.export(&["--deleted", "omit"]).contains("secret"));
        // Into a file that is only its owner's.
        let (code, out, error) = site.run(&["export", "--room", "12", "--output", "room.ndjson"]);
        assert_eq!((code, out.as_str()), (0, ""), "{error}");
        assert!(error.contains("exported 8 events"), "{error}");
        assert_eq!(
            std::fs::read_to_string(site.path("room.ndjson")).unwrap(),
            site.export(&[])
        );
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(site.path("room.ndjson")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(parts(&site), [""; 0]);
        for (args, code) in [
            (&["--broadcast", "019b76da-a800-7000-8000-000000000001"][..], 1),
            (&["--room", "99"], 1),
            (&["--room", "12", "--format", "csv"], 2),
            (&["--room", "12", "--format", "webvtt", "--deleted", "mark"], 2),
            (&["--broadcast", "12"], 2),
            (&["--room", "12", "--output", "missing/file"], 69),
            (&["--room", "12", "--set", "log.path=missing.db"], 69),
        ] {
            let (found, out, error) = site.run(&[&["export"][..], args].concat());
            assert_eq!((found, out.as_str()), (code, ""), "{args:?}: {error}");
        }
        assert!(!site.path("missing.db").exists());
        let (_, _, error) = site.run(&["export", "--broadcast", "12"]);
        assert!(error.contains("a broadcast's id is a UUID"), "{error}");
    }
}

#[actix_web::test]
async fn a_room_of_whose_broadcasts_some_cannot_be_read_is_not_exported_and_each_of_them_is_named() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb);
        // Beside one that can be read, which is in the middle.
        let [older, newer] = [START - 60_000, START + 60_000].map(|from| {
            let over = [(from, Some(from + 30_000))];
            broadcast(&over, &[("c", 0, Some(0))])
        });
        let both = [older.clone(), newer.clone()];
        // The store has an older record of this one.
        let behind = broadcast(&[(START + 180_000, None)], &[]);
        site.with_log(async |store| {
            fill(store).await;
            store.put_broadcasts(&both).await.unwrap();
            store.put_broadcasts(std::slice::from_ref(&behind)).await.unwrap();
        })
        .await;
        let store = mongo_in(site.database.clone()).await;
        let spool = site.path("chat.db");
        make_unreadable(&spool, mongodb.then_some(&store), [older.id, newer.id]).await;
        let refused = |ids: &[Uuid]| {
            let (code, out, error) = site.run(&["export", "--room", "12", "--output", "room.ndjson"]);
            assert_eq!((code, out.as_str()), (1, ""), "{error}");
            let named = error
                .lines()
                .find(|line| line.contains("nothing was exported"))
                .unwrap();
            assert!(ids.iter().all(|id| named.contains(&id.to_string())), "{error}");
            assert!(!site.path("room.ndjson").exists());
            assert_eq!(parts(&site), [""; 0]);
        };
        refused(&[older.id, newer.id]);
        // The spool has the newer record of one that goes on, and perhaps the only one.
        let only = broadcast(&[(START + 120_000, None)], &[]);
        let connection = rusqlite::Connection::open(&spool).unwrap();
        let sql =
            "INSERT INTO records(id, presenter_idx, version, ended, stored, record) VALUES (?1, 12, 2, 0, 0, '{')";
        for id in [only.id, behind.id] {
            assert_eq!(connection.execute(sql, [&id.as_bytes()[..]]).unwrap(), 1);
        }
        drop(connection);
        refused(&[older.id, newer.id, only.id, behind.id]);
        for id in [older.id, newer.id, only.id, behind.id] {
            let (code, out, error) = site.run(&["export", "--broadcast", &id.to_string()]);
            assert_eq!((code, out.as_str()), (69, ""), "{error}");
            assert!(error.contains("the log cannot be read: "), "{error}");
        }
        // The others are to be had one by one.
        assert_eq!(site.export(&[]).lines().count(), 10);
    }
}

#[actix_web::test]
async fn an_export_whose_reader_has_enough_ends_without_a_word() {
    let site = Site::new(false);
    site.import(&long_file(&site, 20_000));
    let id = broadcast_id().to_string();
    for what in [["--broadcast", &id], ["--room", "12"]] {
        let mut command = site.command(&[&["export"][..], &what].concat());
        let mut export = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(export.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("{\"type\":\"broadcast\""), "{line}");
        let ended = export.wait_with_output().unwrap();
        let error = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(0), "{error}");
        // How far it is may be told before that.
        let more = error.lines().filter(|line| !line.ends_with(" events"));
        assert_eq!(more.count(), 0, "{error}");
        assert!(!error.contains("exported"), "{error}");
    }
}

#[actix_web::test]
async fn an_export_that_finds_no_room_names_where() {
    let site = Site::new(false);
    site.import(&long_file(&site, 2000));
    // No file may be as long as this one gets.
    let short = "trap '' XFSZ; ulimit -f 256; exec \"$0\" export --room 12 --output room.ndjson";
    let mut command = Command::new("sh");
    command.args(["-c", short, env!("CARGO_BIN_EXE_chatting-server")]);
    command
        .current_dir(site.dir.path())
        .env_remove("RUST_LOG")
        .env("CHAT__AUTH__HS256_SECRET", KEY);
    let ended = output(site.dir.path(), &mut command);
    let error = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(69), "{error}");
    assert!(error.contains(".part: File too large"), "{error}");
    assert_eq!(parts(&site), [""; 0]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let to_stdout = site.command(&["export", "--room", "12"]).stdout(full).output().unwrap();
    let error = String::from_utf8(to_stdout.stderr).unwrap();
    assert_eq!(to_stdout.status.code(), Some(69), "{error}");
    assert!(error.contains("standard output: No space left on device"), "{error}");
    // The last of it is written at the end, and may have to be given a name that is taken.
    std::fs::create_dir_all(site.path("taken/by")).unwrap();
    let (code, _, error) = site.run(&["export", "--room", "12", "--output", "taken"]);
    assert_eq!(code, 69, "{error}");
    assert!(error.contains(": taken.") && error.contains(".part: "), "{error}");
    assert_eq!(parts(&site), [""; 0]);
}

#[actix_web::test]
async fn an_export_writes_into_nothing_that_is_there_and_is_nobody_elses_to_read() {
    let site = Site::new(false);
    site.import(&long_file(&site, 10));
    let whole = site.path("room.ndjson");
    let exported = || {
        let (code, _, error) = site.run(&["export", "--room", "12", "--output", "room.ndjson"]);
        assert_eq!(code, 0, "{error}");
        let found = std::fs::symlink_metadata(&whole).unwrap();
        (found.is_file(), found.permissions().mode() & 0o777)
    };
    std::fs::write(&whole, "older").unwrap();
    std::fs::set_permissions(&whole, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(exported(), (true, 0o600));
    let precious = site.path("precious");
    std::fs::write(&precious, "mine").unwrap();
    std::fs::remove_file(&whole).unwrap();
    std::os::unix::fs::symlink(&precious, &whole).unwrap();
    assert_eq!(exported(), (true, 0o600));
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "mine");
    assert_eq!(parts(&site), [""; 0]);
}

#[actix_web::test]
async fn an_export_that_is_interrupted_tells_what_became_of_its_output() {
    let site = Site::new(false);
    site.import(&long_file(&site, 20_000));
    // More than a pipe holds, so it has not ended when the signal comes.
    let mut export = site
        .command(&["export", "--room", "12"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(export.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    signal(export.id(), "INT");
    let rest = out.lines().map(Result::unwrap).collect::<Vec<_>>();
    let ended = export.wait_with_output().unwrap();
    let error = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(75), "{error}");
    assert!(!rest.is_empty() && !rest.iter().any(|line| line.starts_with("{\"type\":\"end\"")));
    assert!(error.contains("interrupted; what was written is cut off"), "{error}");
    assert!(!error.contains("nothing was exported"), "{error}");
}

#[actix_web::test]
async fn a_log_that_is_exported_and_imported_is_the_same_log_in_either_store() {
    let from = Site::new(false);
    from.with_log(async |store| {
        fill(store).await;
        store
            .correct_broadcast(broadcast_id(), Some(1_767_225_599_000))
            .await
            .unwrap();
        assert!(store.hold_broadcast(broadcast_id(), true).await.unwrap());
    })
    .await;
    let files: Vec<_> = FORMATS.map(|format| from.export(&["--format", format])).into();
    assert!(files[0].contains("\"legal_hold\":true"), "{}", files[0]);
    let file = from.path("all.ndjson");
    std::fs::write(&file, &files[0]).unwrap();
    for mongodb in [false, true] {
        let site = Site::new(mongodb);
        let (code, out, error) = site.import(&file);
        assert_eq!(code, 0, "{error}");
        assert!(out.starts_with("imported: 8 events of 1 broadcast read into "), "{out}");
        for (format, before) in FORMATS.into_iter().zip(&files) {
            let after = site.export(&["--format", format]);
            assert_eq!(timeless(format, before), timeless(format, &after), "{format}");
        }
        // A server goes on where the imported log ended.
        let app = spawn_in(Arc::clone(&site.dir), site.settings()).await;
        app.go_live(12);
        let mut session = V1::of(&app, 12, json!({})).await;
        assert_eq!(app.post(12, 7, "next").await.json()["seq"], 9);
        session.chats(1).await;
        let page = read(&app, "/v1/rooms/12/messages?after=0", &app.token(12)).await;
        assert_eq!(seqs(&page), (1..=9).collect::<Vec<_>>());
        assert_eq!(page["messages"][4]["deleted_by"], 12);
        let path = format!("/v1/broadcasts/{}/replay", broadcast_id());
        // A page ends with a numbering.
        let replay = read(&app, &path, &app.token(12)).await;
        assert_eq!(seqs(&replay), [1, 2, 3]);
        assert_eq!(replay["messages"][0]["offset_ms"], 2000);
        let next = format!("{path}?cursor={}", replay["next"].as_str().unwrap());
        assert_eq!(seqs(&read(&app, &next, &app.token(12)).await), [4, 5, 6, 7, 8]);
        app.stop().await;
        // It is no empty log any more.
        let (code, _, error) = site.import(&file);
        assert_eq!(code, 1, "{error}");
        assert!(error.contains("the log is not empty"), "{error}");
    }
}

#[actix_web::test]
async fn an_export_of_a_room_has_each_of_its_broadcasts_the_oldest_first_and_comes_back_so() {
    // More than are looked up at once.
    let all: Vec<_> = (1..=101_u64)
        .map(|n| {
            let from = 1_767_225_600_000 + i64::try_from(n).unwrap() * 60_000;
            broadcast(&[(from, Some(from + 30_000))], &[("a", n - 1, Some(n))])
        })
        .collect();
    let said = (1..).zip(&all).map(|(seq, one)| {
        let at = one.segments[0].from_ms + 1000;
        Arc::new(crate::figures::message(at, 12, "a", seq, 7, "x"))
    });
    let said = Arc::new(said.collect());
    let from = Site::new(false);
    from.with_log(async |store| {
        store.put_broadcasts(&all).await.unwrap();
        assert_eq!(store.append(said).await.unwrap(), []);
    })
    .await;
    let export = |site: &Site| {
        let (code, out, error) = site.run(&["export", "--room", "12"]);
        assert_eq!(code, 0, "{error}");
        assert!(error.contains("exported 101 events"), "{error}");
        out
    };
    let text = export(&from);
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let headers = lines.filter(|line| line["type"] == "broadcast");
    let ids: Vec<_> = headers.map(|header| header["id"].clone()).collect();
    let wanted: Vec<_> = all.iter().map(|one| json!(one.id)).collect();
    assert_eq!(ids, wanted);
    let file = from.path("room.ndjson");
    std::fs::write(&file, &text).unwrap();
    for mongodb in [false, true] {
        let site = Site::new(mongodb);
        let (code, _, error) = site.import(&file);
        assert_eq!(code, 0, "{error}");
        assert!(export(&site) == text, "mongodb: {mongodb}");
    }
}

/// As when an old copy of a spool was put back while the store was away, and gave numbers again that the store has.
#[actix_web::test]
async fn events_of_which_one_was_set_aside_because_the_other_has_its_number_are_both_imported_once() {
    let from = Site::new(false);
    let all = put_two_of_one_number(&from).await;
    let (code, room, error) = from.run(&["export", "--room", "12"]);
    assert_eq!(code, 0, "{error}");
    let id = all.last().unwrap().broadcast_id.unwrap();
    let (code, second, error) = from.run(&["export", "--broadcast", &id.to_string()]);
    assert_eq!(code, 0, "{error}");
    let of_second = |event: &&Arc<Event>| {
        event.broadcast_id == Some(id) || (event.broadcast_id.is_none() && (6..=7).contains(&event.seq.0))
    };
    let second_only: Vec<_> = all.iter().filter(of_second).cloned().collect();
    // No two of one number in one broadcast.
    let is_named = |line: &&str| !line.contains("\"broadcast_id\":null");
    let named = room.lines().filter(is_named).collect::<Vec<_>>().join("\n") + "\n";
    let named = named
        .replace("\"events\":10}", "\"events\":8}")
        .replace("\"events\":12}", "\"events\":10}");
    let named_only: Vec<_> = all
        .iter()
        .filter(|event| event.broadcast_id.is_some())
        .cloned()
        .collect();
    for mongodb in [false, true] {
        for (text, wanted, apart) in [(&room, &all, 8), (&second, &second_only, 2), (&named, &named_only, 6)] {
            let site = Site::new(mongodb);
            let file = site.path("file");
            std::fs::write(&file, text).unwrap();
            let (code, out, error) = site.import(&file);
            assert_eq!(code, 0, "{error}");
            let told = format!("\napart: {apart} events got an epoch of their own");
            assert!(out.contains(&told), "{out}");
            let page = page_of(&site).await;
            let mut wanted: Vec<_> = wanted
                .iter()
                .map(|event| (event.seq.0, event.id, event.chat.text.as_str().to_owned()))
                .collect();
            wanted.sort();
            let said = |message: &Value| {
                let id: Uuid = message["id"].as_str().unwrap().parse().unwrap();
                let text = message["text"].as_str().unwrap();
                (message["seq"].as_u64().unwrap(), id, text.to_owned())
            };
            let got: Vec<_> = page.iter().map(said).collect();
            assert_eq!(got, wanted, "mongodb: {mongodb}");
            // As if it had been killed before it ended.
            begin_again(&site, &file);
            let (code, out, error) = site.import(&file);
            assert_eq!(code, 0, "{error}");
            assert!(!out.contains("apart"), "{out}");
            assert_eq!(page_of(&site).await, page, "mongodb: {mongodb}");
            let (code, _, error) = site.import(&file);
            assert_eq!(code, 1, "{error}");
            assert!(error.contains("the log is not empty"), "{error}");
        }
    }
}

/// Two broadcasts of one numbering: the first has 1 to 10, and the second 4 to 9 set aside, and 11 and 12. What names none is set aside, too,
/// as 6 and 7. Returns all of it.
async fn put_two_of_one_number(site: &Site) -> Vec<Arc<Event>> {
    let begins = 1_767_225_600_000;
    let spool_settings = || SpoolSettings {
        path: site.path("chat.db"),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: true,
    };
    let (mut spool, info) = SqliteSpool::open(spool_settings()).unwrap();
    spool.close();
    drop(spool);
    let epoch = info.epoch.0.to_string();
    let first = broadcast(&[(begins, Some(begins + 20_000))], &[(&epoch, 0, Some(12))]);
    let second = broadcast(&[(begins + 40_000, Some(begins + 60_000))], &[(&epoch, 3, Some(12))]);
    let said = |seqs: std::ops::RangeInclusive<u64>, at_ms: i64, of: Option<Uuid>| -> Vec<Arc<Event>> {
        seqs.map(|seq| {
            let at_ms = at_ms + seq.cast_signed() * 1000;
            let text = format!("{seq} at {at_ms}");
            let said = crate::figures::message(at_ms, 12, &epoch, seq, 7, &text);
            Arc::new(Event {
                broadcast_id: of,
                ..said
            })
        })
        .collect()
    };
    let stored = said(1..=10, begins, Some(first.id));
    let unnamed = said(6..=7, begins + 20_000, None);
    let aside = said(4..=9, begins + 40_000, Some(second.id));
    let last = said(11..=12, begins + 40_000, Some(second.id));
    let batch = Arc::new(stored.clone());
    site.with_log(async |store| {
        store.put_broadcasts(&[first, second]).await.unwrap();
        assert_eq!(store.append(batch).await.unwrap(), []);
    })
    .await;
    let (mut spool, _) = SqliteSpool::open(spool_settings()).unwrap();
    park(&mut spool, &unnamed);
    park(&mut spool, &aside);
    spool.commit(&last).unwrap();
    spool.close();
    [stored, unnamed, aside, last].concat()
}

/// All messages of the room, as a server gives them.
async fn page_of(site: &Site) -> Vec<Value> {
    let app = spawn_in(Arc::clone(&site.dir), site.settings()).await;
    let page = read(&app, "/v1/rooms/12/messages?after=0&limit=50", &app.token(12)).await;
    app.stop().await;
    page["messages"].as_array().unwrap().clone()
}

/// The spool knows again of an import of this file that has not ended.
fn begin_again(site: &Site, file: &Path) {
    let (mut spool, _) = SqliteSpool::open(SpoolSettings {
        path: site.path("chat.db"),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: !site.mongodb,
    })
    .unwrap();
    let contents = check(&[file.to_owned()], system_ms()).unwrap();
    spool.begin_import(&contents.digest, [], contents.newest_ms).unwrap();
    spool.close();
}

#[actix_web::test]
async fn a_deletion_comes_back_without_the_act_that_did_it() {
    let from = Site::new(true);
    from.with_log(fill).await;
    // As if the act had come after the broadcast's end.
    let mut lines: Vec<Value> = from
        .export(&[])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines.remove(6);
    lines[8]["events"] = 7.into();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    for mongodb in [false, true] {
        let site = Site::new(mongodb);
        std::fs::write(site.path("file"), &text).unwrap();
        let (code, _, error) = site.import(&site.path("file"));
        assert_eq!(code, 0, "{error}");
        let again = site.export(&[]);
        let again: Vec<Value> = again.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(again, lines);
    }
}

#[actix_web::test]
async fn a_broadcast_that_went_on_ends_where_its_export_did() {
    let from = Site::new(false);
    from.with_log(fill).await;
    let text = from.export(&[]);
    let text = text
        .replacen(
            "\"ended_at\":\"2026-01-01T00:00:40.000Z\"",
            "\"ended_at\":null,\"exported_at\":\"2026-01-01T00:00:39.500Z\"",
            1,
        )
        .replacen("\"to\":\"2026-01-01T00:00:40.000Z\"", "\"to\":null", 1);
    let site = Site::new(false);
    std::fs::write(site.path("file"), &text).unwrap();
    let (code, _, error) = site.import(&site.path("file"));
    assert_eq!(code, 0, "{error}");
    let header: Value = serde_json::from_str(site.export(&[]).lines().next().unwrap()).unwrap();
    assert_eq!(
        (&header["ended_at"], &header["segments"][1]["to"], &header["version"]),
        (&"2026-01-01T00:00:39.500Z".into(), &header["ended_at"], &4.into())
    );
}

#[actix_web::test]
async fn of_two_exports_of_one_broadcast_the_newer_says_when_it_ended_whichever_comes_first() {
    let from = Site::new(false);
    from.with_log(fill).await;
    let ended = from.export(&[]);
    let end = "2026-01-01T00:00:40.000Z";
    let version = |text: &str| {
        let header: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        header["version"].as_u64().unwrap()
    };
    // While it went on its record was the one before the last.
    let went_on = |exported: &str| {
        let (before, last) = (version(&ended) - 1, version(&ended));
        ended
            .replacen(
                &format!("\"ended_at\":\"{end}\""),
                &format!("\"ended_at\":null,\"exported_at\":\"{exported}\""),
                1,
            )
            .replacen(&format!("\"to\":\"{end}\""), "\"to\":null", 1)
            .replacen(&format!("\"version\":{last}"), &format!("\"version\":{before}"), 1)
    };
    let (early, late) = ("2026-01-01T00:00:39.500Z", "2026-01-01T00:00:41.000Z");
    let pairs = [
        (went_on(early), ended.clone(), end),
        // It ended when it was last seen live, which was before the export.
        (went_on(late), ended.clone(), end),
        (went_on(early), went_on(late), late),
    ];
    for mongodb in [false, true] {
        for (older, newer, wanted) in &pairs {
            for files in [[older, newer], [newer, older]] {
                let site = Site::new(mongodb);
                let paths = ["one", "two"].map(|name| site.path(name));
                for (path, text) in paths.iter().zip(files) {
                    std::fs::write(path, text).unwrap();
                }
                let [one, two] = paths.each_ref().map(|path| path.to_str().unwrap());
                let (code, _, error) = site.run(&["import", one, two]);
                assert_eq!(code, 0, "{error}");
                let header: Value = serde_json::from_str(site.export(&[]).lines().next().unwrap()).unwrap();
                assert_eq!(header["ended_at"], *wanted, "mongodb: {mongodb}");
            }
        }
    }
}

#[actix_web::test]
async fn what_was_deleted_in_a_later_broadcast_is_deleted_whichever_of_the_two_comes_first() {
    let later = event("a", 3, 10_000, 12, "lee", "").id;
    let file = |id: Uuid, after: u64, lines: &[Value]| {
        let count = lines.len() as u64;
        let header = json!({
            "type": "broadcast", "format": 1, "id": id, "presenter_idx": 12, "room_idx": null, "reported_start": null,
            "ended_at": "2026-01-01T01:00:00Z", "corrected_start": null, "seen_at": "2026-01-01T01:00:00Z", "version": 2,
            "segments": [{ "from": "2026-01-01T00:00:00Z", "to": "2026-01-01T01:00:00Z" }],
            "spans": [{ "epoch": "a", "after": after, "through": after + count }],
        });
        let end = json!({ "type": "end", "broadcast_id": id, "events": count });
        let lines = [&[header], lines, &[end]].concat();
        lines.iter().map(|line| format!("{line}\n")).collect::<String>()
    };
    let line = |of: Uuid, seq: u64, offset_ms: i64, more: Value| {
        let event = event("a", seq, offset_ms, 7, "kim", "x");
        let mut line = json!({
            "seq": seq, "epoch": "a", "id": event.id, "sent_at": timestamp(event.sent_at_ms), "offset_ms": offset_ms,
            "broadcast_id": of, "nickname": "kim", "role": "viewer",
        });
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        line
    };
    // As it was exported before the later one; its second message was deleted by then.
    let said = |more: Value| {
        let mut said = json!({ "type": "chat", "user_idx": 7, "text": "x" });
        said.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        said
    };
    let deleted_before = json!({ "deleted_at": "2026-01-01T00:00:03Z", "deleted_by": 66 });
    let first = [
        line(broadcast_id(), 1, 1000, said(json!({}))),
        line(broadcast_id(), 2, 2000, said(deleted_before)),
    ];
    let all_of_7 = json!({ "type": "moderation", "by": 12, "act": { "scope": "user", "user_idx": 7 } });
    let second = [
        line(later, 3, 11_000, all_of_7),
        line(later, 4, 12_000, said(json!({}))),
    ];
    let files = [
        ("first", file(broadcast_id(), 0, &first)),
        ("second", file(later, 2, &second)),
    ];
    for mongodb in [false, true] {
        for order in [["first", "second"], ["second", "first"]] {
            let site = Site::new(mongodb);
            for (name, text) in &files {
                std::fs::write(site.path(name), text).unwrap();
            }
            let (code, _, error) = site.run(&["import", order[0], order[1]]);
            assert_eq!(code, 0, "{error}");
            let (code, out, error) = site.run(&["export", "--room", "12"]);
            assert_eq!(code, 0, "{error}");
            let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let chats = lines.filter(|line| line["type"] == "chat");
            let deleted: Vec<_> = chats.map(|chat| chat["deleted_by"].clone()).collect();
            assert_eq!(
                deleted,
                [json!(12), json!(66), Value::Null],
                "{order:?}, mongodb: {mongodb}"
            );
        }
    }
}

#[actix_web::test]
async fn a_log_whose_spool_still_holds_events_is_not_empty() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb);
        let file = long_file(&site, 10);
        let with_spool = |what: &dyn Fn(&mut SqliteSpool)| {
            let settings = SpoolSettings {
                path: site.path("chat.db"),
                durability: Durability::Disk,
                max_bytes: None,
                embedded: !mongodb,
            };
            let (mut spool, _) = SqliteSpool::open(settings).unwrap();
            what(&mut spool);
            spool.close();
        };
        let refused = |holds: &str| {
            let (code, out, error) = site.import(&file);
            assert_eq!((code, out.as_str()), (1, ""), "{error}");
            let why = format!("the log is not empty: its spool holds {holds}; nothing was imported");
            assert!(error.contains(&why), "{error}");
        };
        let waiting = Arc::new(event("b", 1, 1, 7, "kim", "x"));
        with_spool(&|spool| {
            spool.commit(std::slice::from_ref(&waiting)).unwrap();
        });
        refused("1 event to go and 0 parked");
        with_spool(&|spool| {
            let (pos, _) = spool.read(0, 10).unwrap()[0];
            spool.free(pos, &[(pos, Arc::clone(&waiting), "no".into())], 0).unwrap();
        });
        refused("0 events to go and 1 parked");
        with_spool(&|spool| {
            spool.unpark(&[waiting.id], &[]).unwrap();
        });
        let (code, _, error) = site.import(&file);
        assert_eq!(code, 0, "{error}");
    }
}

/// An export of so many messages.
pub fn exported(count: u64) -> String {
    let header = json!({
        "type": "broadcast", "format": 1, "id": broadcast_id(), "presenter_idx": 12, "room_idx": null,
        "reported_start": null, "ended_at": "2026-01-01T01:00:00Z", "corrected_start": null,
        "seen_at": "2026-01-01T01:00:00Z", "version": 2,
        "segments": [{ "from": "2026-01-01T00:00:00Z", "to": "2026-01-01T01:00:00Z" }],
        "spans": [{ "epoch": "a", "after": 0, "through": count }],
    });
    let mut text = format!("{header}\n");
    for seq in 1..=count {
        let event = event("a", seq, i64::try_from(seq).unwrap(), 7, "kim", "x");
        let line = json!({
            "type": "chat", "seq": seq, "epoch": "a", "id": event.id, "offset_ms": seq,
            "sent_at": timestamp(event.sent_at_ms),
            "broadcast_id": broadcast_id(), "user_idx": 7, "nickname": "kim", "role": "viewer", "text": "x",
        });
        text += &format!("{line}\n");
    }
    text += &format!(
        "{}\n",
        json!({ "type": "end", "broadcast_id": broadcast_id(), "events": count })
    );
    text
}

/// A file of so many messages.
fn long_file(site: &Site, count: u64) -> std::path::PathBuf {
    let file = site.path("long.ndjson");
    std::fs::write(&file, exported(count)).unwrap();
    file
}

#[actix_web::test]
async fn an_import_that_was_interrupted_is_run_again_and_loses_and_doubles_nothing() {
    for (mongodb, signal) in [(false, "KILL"), (true, "INT")] {
        let site = Site::new(mongodb);
        let file = long_file(&site, 20_000);
        let name = file.to_str().unwrap();
        let args = ["import", name, "--set", "log.batch_max=1"];
        let import = Process::start(&site.dir, &mut site.command(&args));
        import.line(" of 20000 events").await;
        import.signal(signal);
        let status = import.exited().await;
        assert_eq!(status.code(), (signal == "INT").then_some(75), "{}", import.output());
        // Another file must wait.
        let other = site.path("other.ndjson");
        std::fs::write(&other, exported(0)).unwrap();
        let (code, _, error) = site.import(&other);
        assert_eq!(code, 1, "{error}");
        assert!(error.contains("an import of other files has begun"), "{error}");
        // A server on half of the log gives no number that the other half has.
        let app = spawn_in(Arc::clone(&site.dir), site.settings()).await;
        app.go_live(12);
        let _session = V1::of(&app, 12, json!({})).await;
        assert_eq!(app.post(12, 7, "meanwhile").await.json()["seq"], 20_001);
        app.stop().await;
        let (code, out, error) = site.import(&file);
        assert_eq!(code, 0, "{error}");
        assert!(out.contains("20000 events"), "{out}");
        let lines = site.export(&[]);
        assert_eq!(lines.lines().count(), 20_002);
        let seqs = lines.lines().skip(1).take(20_000).zip(1_u64..);
        for (line, seq) in seqs {
            assert!(line.contains(&format!("\"seq\":{seq},")), "{line}");
        }
        let (code, _, error) = site.import(&file);
        assert_eq!(code, 1, "{error}");
    }
}

#[actix_web::test]
async fn what_was_deleted_while_an_import_was_interrupted_is_deleted_in_all_of_it() {
    for mongodb in [false, true] {
        let site = Site::new(mongodb);
        let file = long_file(&site, 20_000);
        let args = ["import", file.to_str().unwrap(), "--set", "log.batch_max=1"];
        let import = Process::start(&site.dir, &mut site.command(&args));
        import.line(" of 20000 events").await;
        import.signal("INT");
        assert_eq!(import.exited().await.code(), Some(75), "{}", import.output());
        let before = site.export(&[]).lines().count();
        assert!((3..20_002).contains(&before), "{before} lines");
        let app = spawn_in(Arc::clone(&site.dir), site.settings()).await;
        let all_of_7 = "/v1/rooms/12/messages?user_idx=7";
        let deleted = request(&app, "DELETE", all_of_7, &app.token(12), "").await;
        assert_eq!(deleted.status, 200, "{deleted:?}");
        drained(&app).await;
        app.stop().await;
        let (code, _, error) = site.import(&file);
        assert_eq!(code, 0, "{error}");
        let lines = site.export(&[]);
        assert_eq!(lines.lines().count(), 20_002);
        let shown = lines.lines().filter(|line| line.starts_with("{\"type\":\"chat\""));
        let shown: Vec<_> = shown.filter(|line| !line.contains("\"deleted_by\":12")).collect();
        assert!(shown.is_empty(), "{} of 20000, the first {}", shown.len(), shown[0]);
    }
}

#[actix_web::test]
async fn an_import_that_has_not_ended_is_known_by_its_files_in_their_order_and_says_so() {
    let site = Site::new(false);
    std::fs::write(site.path("other.ndjson"), exported(0)).unwrap();
    let _long = long_file(&site, 20_000);
    let args = ["import", "other.ndjson", "long.ndjson", "--set", "log.batch_max=1"];
    let import = Process::start(&site.dir, &mut site.command(&args));
    import.line(" of 20000 events").await;
    import.signal("INT");
    assert_eq!(import.exited().await.code(), Some(75), "{}", import.output());
    let how = "run it again with the same files, in the same order";
    assert!(import.output().contains(how), "{}", import.output());
    let (code, _, error) = site.run(&["import", "long.ndjson", "other.ndjson"]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("of these in another order"), "{error}");
    let (code, _, error) = site.run(&["import", "other.ndjson", "long.ndjson"]);
    assert_eq!(code, 0, "{error}");
}

#[actix_web::test]
async fn a_broadcast_that_mongodb_refuses_for_good_is_named_and_no_store_that_cannot_be_asked() {
    let site = Site::new(true);
    let file = long_file(&site, 10);
    let client = mongodb::Client::with_uri_str(Mongod::shared().uri()).await.unwrap();
    let database = client.database(&site.database);
    let order =
        |order: &str, room: i64| doc! { order: "broadcasts", "validator": { "presenter_idx": { "$ne": room } } };
    database.run_command(order("create", 12)).await.unwrap();
    let (code, out, error) = site.import(&file);
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    let named = format!("MongoDB refuses broadcast {}: 121: ", broadcast_id());
    assert!(error.contains(&named), "{error}");
    assert!(error.contains("the import has not ended"), "{error}");
    assert!(!error.contains("cannot be asked"), "{error}");
    database.run_command(order("collMod", 13)).await.unwrap();
    let (code, _, error) = site.import(&file);
    assert_eq!(code, 0, "{error}");
    assert_eq!(site.export(&[]).lines().count(), 12);
}

#[actix_web::test]
async fn an_event_that_mongodb_refuses_is_named_and_the_others_are_in_the_log() {
    let site = Site::new(true);
    let file = long_file(&site, 10);
    let client = mongodb::Client::with_uri_str(Mongod::shared().uri()).await.unwrap();
    let database = client.database(&site.database);
    let refuses = doc! { "create": "chatting_log", "validator": { "seq": { "$ne": 5 } } };
    database.run_command(refuses).await.unwrap();
    let id = event("a", 5, 5, 7, "kim", "x").id;
    // The second goes on with the first.
    for _ in 0..2 {
        let (code, out, error) = site.import(&file);
        assert_eq!((code, out.as_str()), (1, ""), "{error}");
        assert!(error.contains(&format!("refused {id}, room 12, seq 5: ")), "{error}");
        assert!(
            error.contains("the store refuses 1 event, the others are in the log"),
            "{error}"
        );
        assert!(error.contains("the import has not ended"), "{error}");
        assert_eq!(site.export(&[]).lines().count(), 11);
    }
    let takes = doc! { "collMod": "chatting_log", "validator": {} };
    database.run_command(takes).await.unwrap();
    let (code, _, error) = site.import(&file);
    assert_eq!(code, 0, "{error}");
    assert_eq!(site.export(&[]).lines().count(), 12);
}

#[actix_web::test]
async fn an_event_that_the_embedded_log_refuses_for_another_reason_than_its_number_is_named_and_given_no_other_epoch() {
    let site = Site::new(false);
    let file = long_file(&site, 10);
    site.with_log(async |_| {}).await;
    let log = rusqlite::Connection::open(site.path("chat.db")).unwrap();
    let refuses = "CREATE TRIGGER theirs BEFORE INSERT ON chatting_log WHEN NEW.seq = 5 BEGIN SELECT RAISE(ABORT, 'not five'); END";
    log.execute_batch(refuses).unwrap();
    drop(log);
    let (code, out, error) = site.import(&file);
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    assert!(error.contains("room 12, seq 5: not five"), "{error}");
    assert_eq!(site.export(&[]).lines().count(), 11);
}

#[actix_web::test]
async fn rule_07_no_server_with_another_spool_starts_while_an_import_writes_to_the_log() {
    let site = Site::new(true);
    let _long = long_file(&site, 20_000);
    let args = [
        "import",
        "long.ndjson",
        "--set",
        "log.batch_max=1",
        "--set",
        "mongodb.heartbeat_seconds=600",
    ];
    let import = Process::start(&site.dir, &mut site.command(&args));
    import.line(" of 20000 events").await;
    import.signal("STOP");
    let other = ScratchDir::new("other");
    let mut settings = settings(&other);
    use_mongodb(&mut settings);
    settings.mongodb.database.clone_from(&site.database);
    settings.mongodb.heartbeat_seconds = 600;
    let refused = match App::build(&settings).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    };
    assert!(
        refused.contains("another server writes to this log") && refused.contains(&import.pid().to_string()),
        "{refused}"
    );
    import.signal("CONT");
    import.signal("INT");
    assert_eq!(import.exited().await.code(), Some(75), "{}", import.output());
    // It has left.
    let app = App::build(&settings).await.unwrap();
    app.run_until(std::future::ready(())).await.unwrap();
}

#[actix_web::test]
async fn rule_07_neither_an_import_nor_an_erasure_begins_while_a_server_with_another_spool_writes_to_the_log() {
    let site = Site::new(true);
    let _file = long_file(&site, 10);
    let other = ScratchDir::new("other");
    let mut settings = settings(&other);
    use_mongodb(&mut settings);
    settings.mongodb.database.clone_from(&site.database);
    // It has been heard when it has started, and no heartbeat is under way when it leaves.
    settings.mongodb.heartbeat_seconds = 600;
    let app = spawn_in(other, settings).await;
    let beat = ["--set", "mongodb.heartbeat_seconds=600"];
    for command in [&["import", "long.ndjson"][..], &["erase", "--user", "7"]] {
        let (code, out, error) = site.run(&[command, &beat].concat());
        assert_eq!((code, out.as_str()), (69, ""), "{command:?}: {error}");
        assert!(
            error.contains("another server writes to this log"),
            "{command:?}: {error}"
        );
        assert!(
            error.contains(&format!("process {} ", std::process::id())),
            "{command:?}: {error}"
        );
    }
    app.stop().await;
    // Nothing was begun, and nobody is taken for a server.
    for command in [&["import", "long.ndjson"][..], &["erase", "--user", "7"]] {
        let (code, _, error) = site.run(&[command, &beat].concat());
        assert_eq!(code, 0, "{command:?}: {error}");
    }
}

#[actix_web::test]
async fn what_can_be_read_once_only_is_refused_before_anything_is_opened() {
    let site = Site::new(false);
    let file = long_file(&site, 10);
    let pipe = site.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut command = site.command(&["import", "/dev/stdin"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let from_pipe = command.spawn().unwrap().wait_with_output().unwrap();
    let error = String::from_utf8(from_pipe.stderr).unwrap();
    assert_eq!(from_pipe.status.code(), Some(69), "{error}");
    assert!(error.contains("/dev/stdin is not a regular file"), "{error}");
    for path in [&pipe, site.dir.path()] {
        let (code, out, error) = site.run(&["import", path.to_str().unwrap()]);
        assert_eq!((code, out.as_str()), (69, ""), "{error}");
        assert!(error.contains("is read twice: write it to a file first"), "{error}");
    }
    assert!(!site.path("chat.db").exists());
    // A redirected file can be read from its beginning again.
    let mut command = site.command(&["import", "/dev/stdin"]);
    let redirected = command.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    assert_eq!(redirected.status.code(), Some(0), "{redirected:?}");
    assert_eq!(site.export(&[]).lines().count(), 12);
}

#[actix_web::test]
async fn an_import_whose_file_changed_between_its_two_readings_has_not_ended() {
    let site = Site::new(true);
    let file = long_file(&site, 10);
    // It has been checked when MongoDB is asked for the first time, which does not answer until the file is another one.
    let link = Proxy::start(([127, 0, 0, 1], Mongod::shared().port()).into()).await;
    link.stall();
    let uri = format!("mongodb.uri=mongodb://{}", link.address());
    let mut args = vec!["import", "long.ndjson", "--set", &uri];
    for patience in [
        "mongodb.connect_timeout_ms=60000",
        "mongodb.write_timeout_ms=60000",
        "mongodb.heartbeat_seconds=600",
    ] {
        args.extend(["--set", patience]);
    }
    let import = Process::start(&site.dir, &mut site.command(&args));
    eventually("the import to connect", async || (link.accepted() > 0).then_some(())).await;
    // One that is still an export, but for a letter near its end.
    let text = std::fs::read_to_string(&file).unwrap();
    let at = text.rfind("\"text\":\"x\"").unwrap() + 8;
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(&file).unwrap(),
        b"y",
        at as u64,
    )
    .unwrap();
    link.restore();
    let status = import.exited().await;
    assert_eq!(status.code(), Some(1), "{}", import.output());
    let output = import.output();
    assert!(
        output.contains("the files changed while they were imported"),
        "{output}"
    );
    assert!(!output.contains("imported: "), "{output}");
    let (code, _, error) = site.import(&file);
    assert_eq!(code, 1, "{error}");
    assert!(
        error.contains("an import of other files has begun and not ended"),
        "{error}"
    );
}

#[actix_web::test]
async fn an_empty_file_as_a_failed_export_leaves_is_refused_also_among_others() {
    let site = Site::new(false);
    let file = long_file(&site, 10);
    std::fs::write(site.path("empty.ndjson"), "").unwrap();
    let good = file.to_str().unwrap();
    for files in [&["empty.ndjson"][..], &[good, "empty.ndjson"]] {
        let (code, out, error) = site.run(&[&["import"], files].concat());
        assert_eq!((code, out.as_str()), (1, ""), "{error}");
        assert!(error.contains("empty.ndjson, line 1: the file is empty"), "{error}");
    }
    assert!(!site.path("chat.db").exists());
}

#[actix_web::test]
async fn rule_07_an_import_is_refused_while_a_server_has_the_spool_with_words_of_its_own() {
    let site = Site::new(false);
    let file = long_file(&site, 10);
    let app = spawn_in(Arc::clone(&site.dir), site.settings()).await;
    let (code, out, error) = site.import(&file);
    assert_eq!((code, out.as_str()), (69, ""), "{error}");
    assert!(error.contains("in use by process"), "{error}");
    assert!(
        error.contains("stop that server first; an import goes into a log that no server uses"),
        "{error}"
    );
    assert!(!error.contains("takes its spool to the store itself"), "{error}");
    app.stop().await;
}

#[actix_web::test]
async fn an_export_of_a_numbering_whose_end_is_not_known_does_not_say_of_how_many() {
    let site = Site::new(false);
    let file = long_file(&site, 10);
    // As it is where a server was stopped uncleanly under os: the next numbering began, and this one has no end.
    let text = std::fs::read_to_string(&file).unwrap();
    let (head, rest) = text.split_once('\n').unwrap();
    let mut head: Value = serde_json::from_str(head).unwrap();
    let mut spans = head["spans"].as_array().unwrap().clone();
    spans[0]["through"] = Value::Null;
    spans.push(json!({ "epoch": "b", "after": 10, "through": 12 }));
    head["spans"] = spans.into();
    std::fs::write(&file, format!("{head}\n{rest}")).unwrap();
    let (code, _, error) = site.import(&file);
    assert_eq!(code, 0, "{error}");
    let (code, _, error) = site.run(&["export", "--room", "12"]);
    assert_eq!(code, 0, "{error}");
    assert!(error.contains("exported 10 events"), "{error}");
    assert!(!error.contains("10 of "), "{error}");
}

#[actix_web::test]
async fn a_file_that_no_export_wrote_changes_nothing_and_the_line_is_named() {
    let from = Site::new(false);
    from.with_log(fill).await;
    let good = from.export(&[]);
    let lines: Vec<&str> = good.lines().collect();
    let cut = lines[..5].join("\n");
    let without_header = lines[1..].join("\n");
    let unquoted = [lines[0], "{1:2}", lines[2]].join("\n");
    let unended = [lines[0], "{", lines[2]].join("\n");
    let swapped = [lines[0], lines[2], lines[1]].join("\n");
    let second = event("a", 2, 2000, 7, "kim", "x").id;
    let of_another_time = format!("line 3: the id {second} is not of the time it was sent");
    let first = event("a", 1, 1000, 12, "", "").id.to_string();
    let twice = [lines[0], lines[1], lines[1]].join("\n");
    let behind_itself = format!("line 3: seq 1 with the id {first} comes behind that with {first}");
    let version_4 = format!("{}4{}", &first[..14], &first[15..]);
    let no_version_7 = format!("line 2: the id {version_4} is no UUIDv7");
    let without = |what: &str| {
        let mut header: Value = serde_json::from_str(lines[0]).unwrap();
        header[what] = json!([]);
        [header.to_string().as_str(), &lines[1..].join("\n")].join("\n")
    };
    let cases = [
        (cut.as_str(), "line 6: the file ends within broadcast"),
        (&good[..good.len() - 40], "line 10: "),
        (&without_header, "line 1: it belongs to no broadcast"),
        (&swapped, "line 3: seq 1 comes behind seq 2"),
        (&twice, &behind_itself),
        ("{\"type\":\"chat\"}\n", "line 1: missing field"),
        (
            "hello\n",
            "line 1: wanted is NDJSON, as `export --format ndjson` writes it (expected value, column 1)",
        ),
        (
            "{\n  \"FileInfo\": {}\n}\n",
            "line 1: wanted is NDJSON, as `export --format ndjson` writes it (EOF while parsing an object, column 1)",
        ),
        (
            "{\"comments\":[]}\n",
            "line 1: wanted is NDJSON, as `export --format ndjson` writes it (missing field `type`, column 15)",
        ),
        (&unquoted, "line 2: key must be a string, column 2\n"),
        (&unended, "line 2: EOF while parsing an object, column 1\n"),
        (
            &good.replacen("\"format\":1", "\"format\":2", 1),
            "line 1: it has format 2",
        ),
        (
            &good.replacen("\"events\":8", "\"events\":9", 1),
            "line 10: it ends broadcast",
        ),
        (
            &good.replacen("\"user_idx\":7", "\"user_idx\":-7", 1),
            "line 3: user_idx is negative",
        ),
        (
            &good.replacen("\"epoch\":\"", "\"epoch\":\"=", 1),
            "line 1: epoch is not of 1 to 64 letters, digits and hyphens",
        ),
        (
            &good.replacen("\"seq\":1,\"epoch\":\"", "\"seq\":1,\"epoch\":\"-", 1),
            "line 2: epoch is not of 1 to 64 letters, digits and hyphens",
        ),
        (
            &good.replacen("\"sent_at\":\"2026", "\"sent_at\":\"2226", 1),
            "line 2: it was sent more than a day",
        ),
        (
            &good.replacen(
                "{\"type\":\"chat\",\"seq\":3,",
                "{\"type\":\"chat\",\"seq\":9007199254740992,",
                1,
            ),
            "line 4: seq 9007199254740992 is none: the greatest is 9007199254740991",
        ),
        (
            &good.replacen(
                "\"sent_at\":\"2026-01-01T00:00:02.000Z\"",
                "\"sent_at\":\"2026-01-01T00:00:02.001Z\"",
                1,
            ),
            &of_another_time,
        ),
        (&good.replacen("\"seq\":1,", "\"seq\":0,", 1), "line 2: seq 0 is none"),
        (&good.replacen(&first, &version_4, 1), &no_version_7),
        (
            &good.replacen(",\"deleted_by\":12", "", 1),
            "line 6: deleted_at and deleted_by come together",
        ),
        (
            &good.replacen("\"ended_at\":\"2026-01-01T00:00:40.000Z\"", "\"ended_at\":null", 1),
            "line 1: it has neither ended_at nor exported_at",
        ),
        (&without("segments"), "line 1: segments and spans are never empty"),
        (&without("spans"), "line 1: segments and spans are never empty"),
        // What an act deletes.
        (
            &good.replacen("\"seq\":5}", "\"seq\":9007199254740992}", 1),
            "line 7: seq 9007199254740992 is none: the greatest is 9007199254740991",
        ),
        (
            &good.replacen("\"role\":\"viewer\"", "\"role\":\"king\"", 1),
            "line 3: unknown variant",
        ),
        (
            &good.replacen("\"room_idx\":77,\"user_idx\"", "\"colour\":1,\"user_idx\"", 1),
            "line 2: unknown field",
        ),
    ];
    let site = Site::new(false);
    for (text, named) in cases {
        std::fs::write(site.path("bad"), text).unwrap();
        let (code, out, error) = site.run(&["import", "bad"]);
        assert_eq!((code, out.as_str()), (1, ""), "{named}: {error}");
        assert!(error.contains(&format!("bad, {named}")), "{named}: {error}");
    }
    std::fs::write(site.path("bad"), b"\x1f\x8b\x08\0no line end, and no text\xff").unwrap();
    let (code, _, error) = site.run(&["import", "bad"]);
    assert_eq!(code, 1, "{error}");
    assert!(
        error.contains("bad, line 1: it is gzip: decompress it first; "),
        "{error}"
    );
    let (code, _, error) = site.run(&["import", "missing"]);
    assert_eq!(code, 69, "{error}");
    assert!(!site.path("chat.db").exists(), "nothing was opened");
    // Not beside a running server, either.
    let app = spawn_in(Arc::clone(&site.dir), site.settings()).await;
    std::fs::write(site.path("good"), &good).unwrap();
    let (code, _, error) = site.run(&["import", "good"]);
    assert_eq!(code, 69, "{error}");
    assert!(error.contains("is in use by process"), "{error}");
    app.stop().await;
    assert_eq!(site.import(&site.path("good")).0, 0);
}
