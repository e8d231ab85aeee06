//! What a start tells of itself, what is checked before one, and the code that each end of the process has.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    os::unix::ffi::OsStrExt,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use chatting_actors::{clock::system_ms, wire::v1::timestamp};
use serde_json::Value;

use crate::{
    history::drained_file,
    support::{
        app::{KEY, settings, token_of, use_mongodb},
        command::{command, run},
        eventually,
        http::{HttpClient, get, post_json},
        jwks::tls_dir,
        process::{Process, ScratchDir, output},
        tokens, within,
        ws::WsClient,
    },
};

const SERVE: [&str; 5] = ["serve", "--port-file", "port", "--set", "server.bind=127.0.0.1:0"];
const ENV: [(&str, &str); 2] = [("CHAT__AUTH__HS256_SECRET", KEY), ("CHAT__ROOM__MODE", "embedded")];

pub fn serve(dir: &ScratchDir, more: &[&str]) -> Command {
    let _ = std::fs::remove_file(dir.path().join("port"));
    let mut command = command(dir, &[&SERVE[..], more].concat());
    command.envs(ENV);
    command
}

/// What the log says, a message a line, in either format.
fn messages(output: &str, json: bool) -> Vec<String> {
    let message = |line: &str| {
        if json {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            line["message"].as_str().unwrap().to_owned()
        } else {
            line.split_once("] ")
                .unwrap_or_else(|| panic!("no log line: {line}"))
                .1
                .to_owned()
        }
    };
    output.lines().map(message).collect()
}

fn find<'a>(messages: &'a [String], begins: &str) -> &'a str {
    let found = messages.iter().find(|message| message.starts_with(begins));
    found.unwrap_or_else(|| panic!("nothing begins with '{begins}' in {messages:#?}"))
}

/// Makes presenter 12 live.
async fn go_live(addr: SocketAddr) {
    let mut operator = tokens::claims(1);
    operator["role"] = "operator".into();
    let live = [("token", &*tokens::signed(&operator))];
    assert_eq!(
        post_json(addr, "/room/live/start", &live, r#"{"presenterIdx":12}"#)
            .await
            .status,
        200
    );
}

/// Makes presenter 12 live, connects it, and has a message accepted.
pub async fn one_message(dir: &Arc<ScratchDir>, server: &Process) {
    let addr = server.address(&dir.path().join("port")).await;
    go_live(addr).await;
    let settings = settings(dir);
    let mut presenter = WsClient::connect(addr, "/chatting").await;
    let start = serde_json::json!({ "id": "start", "token": token_of(&settings, 12, "kim") });
    presenter.send_text(&start.to_string()).await;
    presenter.send_text("ping").await;
    assert_eq!(presenter.next_text().await, "pong");
    let token = token_of(&settings, 7, "lee");
    let answer = eventually("the presenter in its room", async || {
        let answer = post_json(addr, "/v1/rooms/12/messages", &[("token", &token)], r#"{"text":"hi"}"#).await;
        (answer.status == 201).then_some(answer)
    })
    .await;
    assert_eq!(answer.json()["seq"], 1);
}

async fn a_start_tells(json: bool) {
    let dir = ScratchDir::new("starts");
    std::fs::write(dir.path().join("settings.toml"), "[log]\nbatch_max = 7\n").unwrap();
    let more = [
        "--set",
        "ops.bind=127.0.0.1:0",
        "--set",
        "actors.checker.mailbox=77",
        "--set",
        if json {
            "logging.format=json"
        } else {
            "logging.format=text"
        },
    ];
    // New; stopped in order with a message in the log; killed.
    for (round, (spool, store)) in [
        ("new; epoch ", "there; it has no event"),
        (
            "stopped cleanly; epoch ",
            "there; the newest event is seq 1 of room 12 (epoch ",
        ),
        (
            "not stopped cleanly, durability was disk; epoch ",
            "there; the newest event is seq 1 of room 12 (epoch ",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let server = Process::start(&dir, &mut serve(&dir, &more));
        let addr = server.address(&dir.path().join("port")).await;
        if round == 0 {
            one_message(&dir, &server).await;
        }
        match round {
            0 => server.signal("TERM"),
            1 => server.kill().await,
            _ => server.signal("INT"),
        }
        let code = server.exited().await.code();
        assert_eq!(code, if round == 1 { None } else { Some(0) });
        let said = messages(&server.output(), json);
        let version = concat!("chatting-server ", env!("CARGO_PKG_VERSION"), " (");
        assert!(said[0].starts_with(version), "{said:#?}");
        assert!(said[0].ends_with(&format!(", process {}", server.pid())), "{said:#?}");
        for line in [
            "setting log.batch_max = 7 (file)",
            "setting room.mode = \"embedded\" (environment)",
            "setting auth.hs256_secret = \"***\" (environment)",
            "setting server.bind = \"127.0.0.1:0\" (flag)",
            "actor registry: mailbox 8192",
            "actor checker: mailbox 77",
        ] {
            assert!(
                said.iter().any(|one| one.starts_with(line)),
                "'{line}' is not in {said:#?}"
            );
        }
        let changed = said.iter().filter(|line| line.starts_with("setting ")).count();
        assert_eq!(changed, if json { 7 } else { 6 }, "{said:#?}");
        let found = find(&said, "spool ");
        assert!(found.contains(&format!("chat.db: {spool}")), "{found}");
        let epoch_begins = found.contains("which begins now");
        assert_eq!(epoch_begins, round == 0, "{found}");
        let rooms = if round == 0 {
            "0 rooms known"
        } else {
            "1 rooms known, the furthest at seq 1"
        };
        assert!(found.ends_with(rooms), "{found}");
        assert!(
            find(&said, "store (the spool's own file): ").contains(store),
            "{said:#?}"
        );
        assert!(find(&said, "listening on ").contains(&format!("http://{addr} (log: sqlite, rooms: embedded)")));
        find(&said, "operations on http://127.0.0.1:");
        // What may take long is told before it is done.
        let checked = said
            .iter()
            .position(|line| line.starts_with("spool: it was not stopped cleanly, so its tables are checked; "));
        assert_eq!(checked.is_some(), round == 2, "{said:#?}");
        assert!(checked.is_none_or(|at| said[at + 1] == found), "{said:#?}");
        assert!(!server.output().contains(KEY), "a secret is shown");
    }
}

#[actix_web::test]
async fn a_start_tells_its_version_settings_actors_addresses_and_what_it_found() {
    a_start_tells(false).await;
}

#[actix_web::test]
async fn a_start_tells_the_same_in_json() {
    a_start_tells(true).await;
}

#[actix_web::test]
async fn a_start_whose_clock_is_behind_the_newest_message_says_so_and_how_far() {
    let dir = ScratchDir::new("clock-behind");
    let behind = async |server: &Process| {
        let metrics = get(server.address(&dir.path().join("port")).await, "/metrics").await;
        let mut lines = metrics.text().lines();
        let seconds = lines.find_map(|line| line.strip_prefix("chat_clock_behind_seconds "));
        seconds.unwrap().parse::<i64>().unwrap()
    };
    for (ahead_ms, warns) in [(0, false), (30_000, false), (7_200_000, true)] {
        let newest_ms = system_ms() + ahead_ms;
        if ahead_ms > 0 {
            let spool = rusqlite::Connection::open(dir.path().join("data/chat.db")).unwrap();
            spool
                .execute(
                    "INSERT OR REPLACE INTO meta(key, value) VALUES ('last_ms', ?1)",
                    [newest_ms],
                )
                .unwrap();
        }
        let server = Process::start(&dir, &mut serve(&dir, &[]));
        let seconds = behind(&server).await;
        assert!((0..=ahead_ms / 1000).contains(&seconds), "{seconds}");
        server.signal("TERM");
        assert_eq!(server.exited().await.code(), Some(0), "{}", server.output());
        let said = messages(&server.output(), false);
        let of = format!("clock: the newest message is of {}, ", timestamp(newest_ms));
        assert_eq!(said.iter().any(|line| line.starts_with(&of)), warns, "{said:#?}");
        assert_eq!(said.iter().any(|line| line.starts_with("clock: ")), warns, "{said:#?}");
        assert_eq!(seconds > 3600, warns, "{seconds}");
    }
}

#[actix_web::test]
async fn a_start_behind_a_gateway_without_a_secret_says_whom_it_believes() {
    let dir = ScratchDir::new("gateway-secret");
    let trusted = ["--set", "auth.trusted_proxies=127.0.0.1"];
    for (mode, secret, warns) in [
        ("gateway", "", true),
        ("gateway", "only the gateway knows", false),
        ("token", "", false),
    ] {
        let mode = format!("auth.mode={mode}");
        let more = [&trusted[..], &["--set", &mode]].concat();
        let server = Process::start(&dir, serve(&dir, &more).env("CHAT__AUTH__GATEWAY_SECRET", secret));
        server.address(&dir.path().join("port")).await;
        server.signal("TERM");
        assert_eq!(server.exited().await.code(), Some(0), "{}", server.output());
        let said = messages(&server.output(), false);
        let warned = said
            .iter()
            .any(|line| line.starts_with("gateway: auth.gateway_secret is not set"));
        assert_eq!(warned, warns, "{mode}: {said:#?}");
    }
}

#[actix_web::test]
async fn a_start_with_mongodb_tells_what_it_holds_or_that_it_is_not_there() {
    let dir = ScratchDir::new("mongo-start");
    let mut settings = settings(&dir);
    use_mongodb(&mut settings);
    let database = format!("mongodb.database={}", settings.mongodb.database);
    let uri = settings.mongodb.uri.expose();
    let more = ["--set", "log.backend=mongodb", "--set", &*database];
    for found in [
        "there; it has no event; about 0 documents",
        "there; the newest event is seq 1 of room 12 (epoch ",
    ] {
        let server = Process::start(&dir, serve(&dir, &more).env("CHAT__MONGODB__URI", uri));
        server.address(&dir.path().join("port")).await;
        if found.contains("no event") {
            one_message(&dir, &server).await;
            // A stop waits for MongoDB for a moment only.
            drained_file(&dir.path().join("data/chat.db")).await;
        }
        server.signal("TERM");
        assert_eq!(server.exited().await.code(), Some(0), "{}", server.output());
        let said = messages(&server.output(), false);
        let store = format!("store (MongoDB, {}): ", settings.mongodb.database);
        assert!(find(&said, &store).contains(found), "{said:#?}");
        assert!(
            said.iter()
                .any(|line| line == "setting mongodb.uri = \"***\" (environment)"),
            "{said:#?}"
        );
    }
    let away = [
        "--set",
        "log.backend=mongodb",
        "--set",
        "mongodb.connect_timeout_ms=100",
    ];
    let server = Process::start(
        &dir,
        serve(&dir, &away).env("CHAT__MONGODB__URI", "mongodb://127.0.0.1:1"),
    );
    server.line("store: not there yet").await;
    server.address(&dir.path().join("port")).await;
}

#[actix_web::test]
async fn a_start_with_a_new_spool_on_an_old_log_says_that_the_spool_is_the_younger_one() {
    let dir = ScratchDir::new("younger");
    let mut settings = settings(&dir);
    use_mongodb(&mut settings);
    let database = format!("mongodb.database={}", settings.mongodb.database);
    let uri = settings.mongodb.uri.expose();
    let line = "store: the spool is younger than the log; rooms that it does not know ask the store for their last seq";
    for (path, younger) in [("log.path=old.db", false), ("log.path=new.db", true)] {
        let more = ["--set", "log.backend=mongodb", "--set", &*database, "--set", path];
        let server = Process::start(&dir, serve(&dir, &more).env("CHAT__MONGODB__URI", uri));
        server.address(&dir.path().join("port")).await;
        if !younger {
            one_message(&dir, &server).await;
            drained_file(&dir.path().join("old.db")).await;
        }
        server.signal("TERM");
        assert_eq!(server.exited().await.code(), Some(0), "{}", server.output());
        let said = messages(&server.output(), false);
        assert_eq!(said.iter().any(|one| one == line), younger, "{said:#?}");
        // That is the runbook's word for a MongoDB that was restored from a backup.
        assert!(!server.output().contains("older than the spool"), "{said:#?}");
    }
}

#[actix_web::test]
async fn check_config_prints_every_setting_with_its_layer_or_those_that_were_changed() {
    let dir = ScratchDir::new("check");
    std::fs::write(
        dir.path().join("settings.toml"),
        "[log]\nbatch_max = 7\nlinger_ms = 100\n",
    )
    .unwrap();
    let env = [
        ("CHAT__AUTH__HS256_SECRET", KEY),
        ("CHAT__MONGODB__URI", "mongodb://kim:hunter2@db"),
    ];
    let flags = ["--set", "log.commit_max=9"];
    let (code, all, error) = run(&dir, &[&["check-config"][..], &flags].concat(), &env);
    assert_eq!(code, 0, "{error}");
    let keys: Vec<&str> = all
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .map(|(key, _)| key)
        .collect();
    assert_eq!(keys, chatting_server::settings::Settings::default().keys());
    for line in [
        "log.batch_max = 7  # file",
        "log.linger_ms = 100  # file",
        "log.commit_max = 9  # flag",
        "log.retry_min_ms = 100  # default",
        "auth.hs256_secret = \"***\"  # environment",
        "auth.gateway_secret = \"\"  # default",
        "mongodb.uri = \"***\"  # environment",
        "auth.trusted_proxies = []  # default",
    ] {
        assert!(all.lines().any(|one| one == line), "{line} is not in:\n{all}");
    }
    let (code, changed, _) = run(&dir, &[&["check-config", "--changed"][..], &flags].concat(), &env);
    assert_eq!(code, 0);
    let expected = "auth.hs256_secret = \"***\"  # environment\nlog.commit_max = 9  # flag\nlog.batch_max = 7  # file\n\
                    mongodb.uri = \"***\"  # environment\n";
    assert_eq!(changed, expected);
    for secret in [KEY, "hunter2"] {
        assert!(!all.contains(secret) && !changed.contains(secret));
    }
}

#[actix_web::test]
async fn what_a_file_sets_to_its_default_is_not_changed_secrets_too() {
    let dir = ScratchDir::new("unchanged");
    let every = concat!(env!("CARGO_MANIFEST_DIR"), "/settings.toml");
    let (_, changed, _) = run(&dir, &["check-config", "--changed", "--config", every], &[]);
    assert_eq!(changed, "# every key has its default\n");
    let (code, changed, error) = run(&dir, &["check-config", "--changed", "--config", every], &ENV[..1]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(changed, "auth.hs256_secret = \"***\"  # environment\n");
    let server = Process::start(&dir, &mut serve(&dir, &["--config", every]));
    server.address(&dir.path().join("port")).await;
    let said = messages(&server.output(), false);
    let settings: Vec<_> = said.iter().filter(|line| line.starts_with("setting ")).collect();
    assert_eq!(
        settings,
        [
            "setting server.bind = \"127.0.0.1:0\" (flag)",
            "setting auth.hs256_secret = \"***\" (environment)",
            "setting room.mode = \"embedded\" (environment)",
        ]
    );
}

const GATEWAY: [&str; 2] = ["auth.mode=gateway", "auth.trusted_proxies=127.0.0.1"];

#[actix_web::test]
async fn check_config_refuses_what_serve_would_refuse_and_opens_nothing() {
    let dir = ScratchDir::new("check-more");
    std::fs::write(dir.path().join("broken.rooms.json"), "{").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = format!("server.bind={}", taken.local_addr().unwrap());
    std::fs::write(dir.path().join("empty.json"), r#"{"keys":[]}"#).unwrap();
    let empty = format!("auth.jwks_url=file://{}", dir.path().join("empty.json").display());
    for (set, code, named) in [
        (&["legacy.zone=Mars/Base"][..], 64, "legacy.zone"),
        (
            &["auth.hs256_secret=", "auth.hs256_secret_base64=%%"],
            64,
            "auth.hs256_secret_base64: it is not base64",
        ),
        (&["auth.hs256_secret="], 64, "no key to verify tokens with"),
        (&["log.backend=mongodb", "mongodb.uri=mongodb://"], 64, "mongodb.uri"),
        (&["auth.trusted_proxies=10.0.0.0/40"], 64, "auth.trusted_proxies"),
        (
            &[GATEWAY[0], GATEWAY[1], "auth.gateway_secret=s3cret "],
            64,
            "auth.gateway_secret: it is not one line of text without white space around it",
        ),
        (
            &[
                GATEWAY[0],
                GATEWAY[1],
                "auth.gateway_secret=s3cret",
                "auth.previous_gateway_secret=s3\ncret",
            ],
            64,
            "auth.previous_gateway_secret: it is not one line of text without white space around it",
        ),
        // As a file's line, it may be ended.
        (&[GATEWAY[0], GATEWAY[1], "auth.gateway_secret=s3cret\n"], 0, ""),
        (
            &["auth.jwks_url=file:///nope"],
            64,
            "auth.jwks_url: /nope cannot be read",
        ),
        (
            &[&empty],
            64,
            "auth.jwks_url: the JWK set has no key to use: it is empty",
        ),
        // It is not asked, and a start goes on without it.
        (&["auth.jwks_url=http://127.0.0.1:1/"], 0, ""),
        (&["room.mode=embedded", "log.path=broken.db"], 69, "broken.rooms.json"),
        (&["log.backend=mongodb", "mongodb.uri=mongodb://127.0.0.1:1"], 0, ""),
        (&[&bind], 0, ""),
    ] {
        let sets: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        let (checked, _, error) = run(&dir, &[&["check-config"], &sets[..]].concat(), &ENV[..1]);
        assert_eq!(checked, code, "{set:?}: {error}");
        assert!(error.contains(named), "{set:?}: {error}");
        if code > 0 {
            let (served, _, error) = run(&dir, &[&["serve"], &sets[..]].concat(), &ENV[..1]);
            assert_eq!(served, code, "{set:?}: {error}");
            assert!(error.contains(named), "{set:?}: {error}");
        }
    }
    assert!(!dir.path().join("data").exists(), "check-config wrote something");
}

#[actix_web::test]
async fn settings_that_were_meant_to_be_read_and_are_not_end_the_start_with_64() {
    let dir = ScratchDir::new("unread");
    let meant = [ENV[0], ("CHAT_LOG__BACKEND", "mongodb")];
    let (code, _, error) = run(&dir, &["check-config"], &meant);
    assert_eq!(code, 64, "{error}");
    assert!(error.contains("did you mean CHAT__LOG__BACKEND?"), "{error}");
    std::os::unix::fs::symlink("nowhere.toml", dir.path().join("settings.toml")).unwrap();
    let (code, _, error) = run(&dir, &["check-config"], &ENV[..1]);
    assert_eq!(code, 64, "{error}");
    assert!(
        error.contains("file settings.toml: cannot be read: No such file"),
        "{error}"
    );
}

/// The driver reads them when its client is made, which comes after the spool was opened.
#[actix_web::test]
async fn files_that_the_uri_of_mongodb_names_are_read_before_anything_is_opened() {
    let dir = ScratchDir::new("certificates");
    let path = |file: &str| dir.path().join(file);
    for file in ["ca.pem", "server.pem", "server.key"] {
        std::fs::copy(tls_dir().join(file), path(file)).unwrap();
    }
    for (both, certificate) in [("own.pem", "server.pem"), ("other.pem", "ca.pem")] {
        let [key, certificate] = ["server.key", certificate].map(|file| std::fs::read(path(file)).unwrap());
        std::fs::write(path(both), [key, certificate].concat()).unwrap();
    }
    for (options, told) in [
        ("tls=true&tlsCAFile=/nope.pem", "tlsCAFile: /nope.pem cannot be read: "),
        ("tlsCAFile=.", "tlsCAFile: . cannot be read: it is not a regular file"),
        ("tlsCAFile=server.key", "tlsCAFile: server.key holds no certificate"),
        (
            "tlsCAFile=ca.pem&tlsCertificateKeyFile=nope.pem",
            "tlsCertificateKeyFile: nope.pem cannot be read: ",
        ),
        (
            "tlsCertificateKeyFile=server.pem",
            "tlsCertificateKeyFile: server.pem does not hold a certificate and its key",
        ),
        ("tlsCertificateKeyFile=other.pem", "tlsCertificateKeyFile: other.pem: "),
    ] {
        let uri = format!("mongodb.uri=mongodb://kim:hunter2@127.0.0.1:1/?{options}");
        for command in ["check-config", "serve"] {
            let args = [command, "--set", "log.backend=mongodb", "--set", &uri];
            let (code, _, error) = run(&dir, &args, &ENV[..1]);
            assert_eq!(code, 64, "{options}: {error}");
            assert!(error.contains(&format!("mongodb.uri: {told}")), "{options}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
    let whole = "mongodb.uri=mongodb://127.0.0.1:1/?tlsCAFile=ca.pem&tlsCertificateKeyFile=own.pem";
    let (code, _, error) = run(
        &dir,
        &["check-config", "--set", "log.backend=mongodb", "--set", whole],
        &ENV[..1],
    );
    assert_eq!(code, 0, "{error}");
    assert!(!path("data").exists(), "a spool was opened");
}

#[actix_web::test]
async fn a_start_takes_all_descriptors_that_it_may_have_and_says_where_they_are_too_few() {
    let dir = ScratchDir::new("few-descriptors");
    let limited = format!(
        "ulimit -Sn 100; ulimit -Hn 900; exec \"$0\" {} --set session.max=5000",
        SERVE.join(" ")
    );
    let mut command = Command::new("sh");
    command
        .args(["-c", &limited, env!("CARGO_BIN_EXE_chatting-server")])
        .current_dir(dir.path())
        .env_remove("RUST_LOG")
        .envs(ENV);
    let server = Process::start(&dir, &mut command);
    server.address(&dir.path().join("port")).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(
        files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(),
        ["900", "900"]
    );
    let told = server.line("descriptors: this process may have 900").await;
    assert!(told.contains("session.max = 5000 may need "), "{told}");
    server.signal("TERM");
    assert_eq!(server.exited().await.code(), Some(0), "{}", server.output());
}

/// The framework calls a request that it cannot read an error of ours; anyone could fill the log with those.
#[actix_web::test]
async fn what_is_no_http_leaves_no_line_in_the_log() {
    let dir = ScratchDir::new("noise");
    let server = Process::start(&dir, &mut serve(&dir, &[]));
    let addr = server.address(&dir.path().join("port")).await;
    for noise in [
        "GET / HTTP/1.1\r\nbad header\r\n\r\n",
        "\u{1}\u{2}\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
    ] {
        let mut client = HttpClient::connect(addr).await;
        client.send_bytes(noise.as_bytes()).await;
        assert_eq!(client.read_response(false).await.status, 400, "{noise}");
    }
    server.signal("TERM");
    assert_eq!(server.exited().await.code(), Some(0));
    let output = server.output();
    // How many descriptors there are is the machine's.
    let of_noise = |line: &&str| !line.contains(" INFO ") && !line.contains("descriptors: ");
    let lines: Vec<&str> = output.lines().filter(of_noise).collect();
    assert_eq!(lines, [""; 0]);
}

// ---- how the process ends ------------------------------------------------------------------------------------------

#[actix_web::test]
async fn a_port_that_is_taken_ends_the_start_with_69_naming_the_setting() {
    let dir = ScratchDir::new("port");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    for key in ["server.bind", "ops.bind"] {
        let bind = format!("{key}={}", taken.local_addr().unwrap());
        let (code, _, error) = run(&dir, &[&SERVE[..], &["--set", &bind]].concat(), &ENV);
        assert_eq!(code, 69, "{error}");
        assert!(error.contains(&bind.replace('=', " ")), "{error}");
    }
}

#[actix_web::test]
async fn a_log_path_that_cannot_be_used_ends_the_start_with_69_naming_the_setting_and_what_is_in_the_way() {
    let dir = ScratchDir::new("unusable");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("a-file"), "").unwrap();
    std::fs::create_dir_all(path("a-directory")).unwrap();
    std::fs::create_dir_all(path("chat.db.lock")).unwrap();
    for (log_path, told) in [
        ("a-file/chat.db", "a-file is a file, and a directory is wanted"),
        ("a-file/in/chat.db", "a-file is a file, and a directory is wanted"),
        ("a-directory", "it is a directory, and the name of a file is wanted"),
        ("a-directory/", "it is a directory, and the name of a file is wanted"),
        // Nobody may make anything there, root neither.
        ("/proc/chat/chat.db", "the directory /proc/chat cannot be made: "),
        ("/proc/chat.db", "/proc/chat.db.lock cannot be written: "),
        ("chat.db", "chat.db.lock cannot be written: Is a directory"),
    ] {
        let set = format!("log.path={log_path}");
        let (code, _, error) = run(&dir, &[&SERVE[..], &["--set", &set]].concat(), &ENV[..1]);
        assert_eq!(code, 69, "{error}");
        let told = format!("chatting-server: log.path {log_path}: {told}");
        assert!(error.lines().any(|line| line.starts_with(&told)), "{told}: {error}");
    }
    // The embedded room server's file is beside the spool, and read first.
    let set = ["--set", "log.path=a-file/chat.db"];
    let (code, _, error) = run(&dir, &[&SERVE[..], &set].concat(), &ENV);
    assert_eq!(code, 69, "{error}");
    assert!(
        error.contains("a-file/chat.db.rooms.json: it is beside log.path and cannot be read: "),
        "{error}"
    );
}

#[actix_web::test]
async fn a_spool_in_use_ends_the_start_and_the_spool_commands_with_69() {
    let dir = ScratchDir::new("in-use");
    let first = Process::start(&dir, &mut serve(&dir, &[]));
    first.address(&dir.path().join("port")).await;
    for args in [&SERVE[..], &["spool", "replay"]] {
        let (code, _, error) = run(&dir, args, &ENV);
        assert_eq!(code, 69, "{args:?}: {error}");
        assert!(error.contains("in use by process "), "{args:?}: {error}");
    }
    let (code, _, error) = run(&dir, &["spool", "status", "--path", "nowhere.db"], &ENV);
    assert_eq!(code, 69, "{error}");
}

#[actix_web::test]
async fn bad_settings_end_every_command_with_64() {
    let dir = ScratchDir::new("bad-settings");
    for args in [
        &["serve"][..],
        &["check-config"],
        &["spool", "status"],
        &["token", "--user", "7", "--nickname", "kim"],
    ] {
        let (code, _, error) = run(&dir, &[args, &["--set", "log.commit_max=0"]].concat(), &ENV);
        assert_eq!(code, 64, "{args:?}: {error}");
        assert!(error.contains("log.commit_max"), "{args:?}: {error}");
    }
}

#[actix_web::test]
async fn a_command_line_that_cannot_be_read_ends_with_2() {
    let dir = ScratchDir::new("usage");
    for args in [
        &["serve", "--nope"][..],
        &["dance"],
        &["serve", "--set", "nonsense"],
        &[],
    ] {
        let (code, _, error) = run(&dir, args, &ENV);
        assert_eq!(code, 2, "{args:?}: {error}");
    }
    let no_text = OsStr::from_bytes(b"\xff.db");
    let output = output(dir.path(), command(&dir, &["spool", "status", "--path"]).arg(no_text));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[actix_web::test]
async fn a_command_that_fails_in_its_own_work_ends_with_1() {
    let dir = ScratchDir::new("one");
    let (code, _, error) = run(
        &dir,
        &["watch", "--url", "ws://127.0.0.1:1/chatting", "--token", "x"],
        &ENV,
    );
    assert_eq!(code, 1, "{error}");
    assert!(!error.is_empty());
}

#[actix_web::test]
async fn a_watch_that_is_refused_tells_the_status_and_what_the_server_says() {
    let dir = ScratchDir::new("watch");
    let server = Process::start(&dir, &mut serve(&dir, &["--set", "session.max=1"]));
    let addr = server.address(&dir.path().join("port")).await;
    let watch = |path: &str| {
        let url = format!("ws://{addr}{path}");
        let (code, out, error) = run(&dir, &["watch", "--url", &url, "--token", "x"], &[]);
        (code, out, error.replace(&url, "URL"))
    };
    // The first has nothing to say, the second a detail, as v1 has.
    for (path, told) in [
        ("/nowhere", "404 Not Found\n"),
        (
            "/v1/rooms/12",
            "401 Unauthorized: no token: send Authorization: Bearer, or the header token\n",
        ),
    ] {
        let (code, out, error) = watch(path);
        assert_eq!((code, &*out), (1, ""), "{error}");
        assert_eq!(error, format!("chatting-server: URL: refused with {told}"));
    }
    // And a legacy error a message.
    let _only = WsClient::connect(addr, "/chatting").await;
    let (code, _, error) = watch("/chatting");
    assert_eq!(code, 1, "{error}");
    assert!(
        error.starts_with("chatting-server: URL: refused with 503 Service Unavailable: "),
        "{error}"
    );
    let (code, _, error) = watch("/v1/presenter");
    assert_eq!(code, 1, "{error}");
    assert!(
        error.starts_with("chatting-server: URL: refused with 503 Service Unavailable: session.max"),
        "{error}"
    );
    let (_, help, _) = run(&dir, &["watch", "--help"], &[]);
    assert!(help.contains("the original server's (legacy) protocol"), "{help}");
}

#[actix_web::test]
async fn a_watch_that_waits_for_messages_does_not_take_a_refused_token_for_one() {
    let dir = ScratchDir::new("watch-token");
    let server = Process::start(&dir, &mut serve(&dir, &[]));
    let addr = server.address(&dir.path().join("port")).await;
    let url = format!("ws://{addr}/chatting");
    let (code, out, error) = run(&dir, &["watch", "--url", &url, "--token", "x", "--count", "1"], &[]);
    assert_eq!(code, 1, "{error}");
    assert!(out.contains("tokenException"), "{out}");
    assert_eq!(error, "chatting-server: the server closed the connection (1000)\n");
}

#[actix_web::test]
async fn a_watch_of_dialect_v1_prints_each_frame_acknowledges_what_it_printed_and_resumes() {
    let dir = ScratchDir::new("watch-v1");
    // More than the credit must come by.
    let server = Process::start(
        &dir,
        &mut serve(
            &dir,
            &[
                "--set",
                "session.credit_events=2",
                "--set",
                "limits.sender_per_second=0",
            ],
        ),
    );
    let addr = server.address(&dir.path().join("port")).await;
    go_live(addr).await;
    let settings = settings(&dir);
    let (presenter, viewer) = (token_of(&settings, 12, "kim"), token_of(&settings, 7, "lee"));
    let url = format!("ws://{addr}/v1/presenter");
    let watch = |count: &str, more: &[&str]| {
        let mut watch = command(&dir, &["watch", "--url", &url, "--token", &presenter, "--count", count]);
        watch
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let frames = |ended: Output| -> Vec<Value> {
        assert_eq!(String::from_utf8(ended.stderr).unwrap(), "");
        assert_eq!(ended.status.code(), Some(0));
        let lines = String::from_utf8(ended.stdout).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let mut first = watch("5", &[]);
    eventually("the watch to end", async || {
        post_json(addr, "/v1/rooms/12/messages", &[("token", &viewer)], r#"{"text":"hi"}"#).await;
        first.try_wait().unwrap()
    })
    .await;
    let seen = frames(first.wait_with_output().unwrap());
    assert_eq!(seen[0]["type"], "welcome");
    let from = seen[0]["resumed_from"].as_u64().unwrap();
    let seqs: Vec<_> = seen[1..].iter().map(|frame| frame["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [from, from + 1, from + 2, from + 3, from + 4]);
    // And once more from behind the second of them, with what came meanwhile.
    let post = async || -> Value {
        let held = post_json(addr, "/v1/rooms/12/messages", &[("token", &viewer)], r#"{"text":"hi"}"#).await;
        assert_eq!(held.status, 201, "{}", String::from_utf8_lossy(&held.body));
        serde_json::from_slice(&held.body).unwrap()
    };
    post().await;
    post().await;
    let after = (from + 1).to_string();
    let again = frames(watch("5", &["--resume-after", &after]).wait_with_output().unwrap());
    assert_eq!(again[1]["seq"], from + 2);
    // What could not be printed is not acknowledged: the next session goes on with it.
    let last = post().await["seq"].to_string();
    let mut unread = watch("5", &["--resume-after", &last]);
    let mut out = BufReader::new(unread.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    drop(out);
    let unprinted = post().await;
    eventually("the watch to end", async || unread.try_wait().unwrap()).await;
    let next = frames(watch("1", &[]).wait_with_output().unwrap());
    assert_eq!(next[0]["resumed_from"], unprinted["seq"]);
    let (code, _, error) = run(
        &dir,
        &[
            "watch",
            "--url",
            &format!("ws://{addr}/chatting"),
            "--token",
            "x",
            "--resume-after",
            "1",
        ],
        &[],
    );
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("--resume-after is for dialect v1"), "{error}");
}

#[actix_web::test]
async fn a_watch_whose_reader_has_enough_ends_without_a_word() {
    let dir = ScratchDir::new("watch-head");
    let server = Process::start(&dir, &mut serve(&dir, &[]));
    let addr = server.address(&dir.path().join("port")).await;
    go_live(addr).await;
    let settings = settings(&dir);
    let (url, presenter) = (format!("ws://{addr}/chatting"), token_of(&settings, 12, "kim"));
    let mut watch = command(&dir, &["watch", "--url", &url, "--token", &presenter]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(watch.stdout.take());
    let viewer = token_of(&settings, 7, "lee");
    // Those that come before its session has begun are not for it.
    eventually("the watch to end", async || {
        post_json(addr, "/v1/rooms/12/messages", &[("token", &viewer)], r#"{"text":"hi"}"#).await;
        watch.try_wait().unwrap()
    })
    .await;
    let ended = watch.wait_with_output().unwrap();
    assert_eq!(
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()),
        (Some(0), "")
    );
}

#[actix_web::test]
async fn a_demo_on_a_taken_port_names_its_own_flag() {
    let dir = ScratchDir::new("demo-port");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let (code, _, error) = run(&dir, &["demo", "--port", &addr.port().to_string()], &[]);
    assert_eq!(code, 69, "{error}");
    let told = error
        .lines()
        .find(|line| line.starts_with("chatting-server: "))
        .unwrap();
    assert!(told.contains(&addr.to_string()) && told.contains("--port 0"), "{told}");
    assert!(!told.contains("server.bind"), "{told}");
}

#[actix_web::test]
async fn a_demo_that_is_interrupted_ends_in_order_and_removes_what_it_wrote() {
    let dir = ScratchDir::new("demo-end");
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let written = || {
        std::fs::read_dir(&temporary)
            .unwrap()
            .map(Result::unwrap)
            .collect::<Vec<_>>()
    };
    let mut demo = command(&dir, &["demo", "--port", "0", "--port-file", "port"]);
    let demo = Process::start(&dir, demo.env("TMPDIR", &temporary));
    demo.address(&dir.path().join("port")).await;
    let [directory] = &*written() else {
        panic!("it writes into one directory: {:?}", written());
    };
    assert!(directory.path().join("chat.db").exists());
    demo.signal("INT");
    assert_eq!(demo.exited().await.code(), Some(0), "{}", demo.output());
    assert!(written().is_empty(), "left over: {:?}", written());
}

#[actix_web::test]
async fn a_port_file_that_cannot_be_written_is_named_and_the_spool_is_left_as_by_any_stop() {
    let dir = ScratchDir::new("port-file");
    let bind = ["--set", "server.bind=127.0.0.1:0"];
    let args = [&["serve", "--port-file", "missing/port"][..], &bind].concat();
    let (code, _, error) = run(&dir, &args, &ENV);
    assert_eq!(code, 69, "{error}");
    let named = "chatting-server: --port-file missing/port: ";
    assert!(error.lines().any(|line| line.starts_with(named)), "{error}");
    let (code, status, error) = run(&dir, &["spool", "status"], &ENV);
    assert_eq!(code, 0, "{error}");
    assert!(
        status.contains("stopped cleanly") && !status.contains("not stopped"),
        "{status}"
    );
    let (code, out, error) = run(&dir, &["demo", "--port", "0", "--port-file", "missing/port"], &[]);
    assert_eq!((code, out.as_str()), (69, ""), "{error}");
    assert!(error.lines().any(|line| line.starts_with(named)), "{error}");
}

#[actix_web::test]
async fn a_commit_that_does_not_end_makes_the_stop_end_at_its_deadline_with_75() {
    let dir = ScratchDir::new("deadline");
    let more = [
        "--set",
        "shutdown.deadline_seconds=1",
        "--set",
        "shutdown.drain_seconds=0",
        "--set",
        "shutdown.requests_seconds=0",
    ];
    let server = Process::start(&dir, &mut serve(&dir, &more));
    one_message(&dir, &server).await;
    let addr = server.address(&dir.path().join("port")).await;
    let spool = rusqlite::Connection::open(dir.path().join("data/chat.db")).unwrap();
    spool.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut client = HttpClient::connect(addr).await;
    let token = token_of(&settings(&dir), 7, "kim");
    let headers = [("token", &*token), ("Content-Type", "application/json")];
    let path = "/v1/rooms/12/messages";
    client.send_request("POST", path, &headers, r#"{"text":"hi"}"#).await;
    eventually("it to be numbered", async || {
        let metrics = get(addr, "/metrics").await;
        metrics
            .text()
            .contains("chat_queue_depth{queue=\"writer\"} 1\n")
            .then_some(())
    })
    .await;
    server.signal("TERM");
    assert_eq!(server.exited().await.code(), Some(75), "{}", server.output());
    server.line("the deadline is over; 1 submits").await;
    server.line("stopped at the deadline").await;
}

#[actix_web::test]
async fn a_request_that_does_not_end_is_cut_and_the_stop_is_in_order() {
    let dir = ScratchDir::new("cut");
    let more = [
        "--set",
        "shutdown.requests_seconds=0",
        "--set",
        "shutdown.deadline_seconds=600",
        "--set",
        "server.body_seconds=300",
    ];
    let server = Process::start(&dir, &mut serve(&dir, &more));
    let addr = server.address(&dir.path().join("port")).await;
    let mut client = HttpClient::connect(addr).await;
    let head = format!(
        "POST /v1/rooms/12/messages HTTP/1.1\r\nHost: chat\r\nContent-Type: application/json\r\ntoken: {}\r\n\
         Content-Length: 20\r\nExpect: 100-continue\r\n\r\n",
        token_of(&settings(&dir), 7, "kim")
    );
    client.send_bytes(head.as_bytes()).await;
    // The answer to `Expect` says that the request is in hand.
    let (mut stream, mut read) = client.into_parts();
    while !read.ends_with(b"100 Continue\r\n\r\n") {
        let more = tokio::io::AsyncReadExt::read_buf(&mut stream, &mut read);
        assert!(within("the server to ask for the body", more).await.unwrap() > 0);
    }
    server.signal("TERM");
    assert_eq!(server.exited().await.code(), Some(0), "{}", server.output());
    server.line("1 connections that have not ended are cut").await;
}

#[actix_web::test]
async fn a_start_that_is_refused_leaves_the_spool_as_one_that_was_stopped_cleanly() {
    let dir = ScratchDir::new("refused");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = format!("server.bind={}", taken.local_addr().unwrap());
    let more = ["--set", "log.durability=os"];
    let epoch = async |begins: &str| {
        let server = Process::start(&dir, &mut serve(&dir, &more));
        server.address(&dir.path().join("port")).await;
        server.signal("TERM");
        server.exited().await;
        let said = messages(&server.output(), false);
        let found = said
            .iter()
            .find_map(|line| line.strip_prefix("spool "))
            .unwrap()
            .to_owned();
        assert!(found.contains(begins), "{found}");
        let epoch = found.split("epoch ").nth(1).unwrap().to_owned();
        epoch[..16].to_owned()
    };
    let first = epoch("new; epoch ").await;
    let (code, _, error) = run(&dir, &[&["serve", "--set", &bind][..], &more].concat(), &ENV);
    assert_eq!(code, 69, "{error}");
    assert_eq!(epoch("stopped cleanly; epoch ").await, first);
}

/// A server whose MongoDB is not there: somebody listens for as long as the listener lives, and never answers.
fn serve_without_mongodb(dir: &ScratchDir, patience_ms: u32, more: &[&str]) -> (TcpListener, Command) {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let sets = [
        "log.backend=mongodb".to_owned(),
        format!("mongodb.uri=mongodb://{}/", silent.local_addr().unwrap()),
        format!("mongodb.connect_timeout_ms={patience_ms}"),
    ];
    let mut command = serve(dir, more);
    command.args(sets.iter().flat_map(|set| ["--set", set]));
    (silent, command)
}

#[actix_web::test]
async fn a_signal_during_a_start_ends_it_in_order() {
    let dir = ScratchDir::new("stopped-early");
    for (signal, begins) in [("TERM", "new; epoch"), ("INT", "stopped cleanly; epoch")] {
        let (_silent, mut command) = serve_without_mongodb(&dir, 60_000, &["--set", "log.durability=os"]);
        let server = Process::start(&dir, &mut command);
        let found = server.line("spool ").await;
        assert!(found.contains(begins), "{found}");
        server.signal(signal);
        assert_eq!(server.exited().await.code(), Some(0), "{}", server.output());
        server.line("stopped before it had started").await;
    }
}

#[actix_web::test]
async fn a_server_that_starts_while_mongodb_is_away_says_so_from_the_first_moment() {
    let dir = ScratchDir::new("away");
    let (_silent, mut command) = serve_without_mongodb(&dir, 300, &[]);
    let server = Process::start(&dir, &mut command);
    let addr = server.address(&dir.path().join("port")).await;
    let ready = get(addr, "/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &"degraded".into()));
    // The signs that the runbook tells of, though there is no event to be written yet.
    server.line("store: not there yet").await;
    eventually("the retries to be counted", async || {
        let metrics = get(addr, "/metrics").await;
        let retries = metrics.text().lines().find_map(|line| {
            let count = line.strip_prefix("chat_store_retries_total ")?;
            count.parse::<u64>().ok()
        });
        (retries? >= 2).then_some(())
    })
    .await;
}

#[actix_web::test]
async fn rule_07_a_server_that_is_not_heard_for_so_long_that_another_may_start_says_so() {
    let dir = ScratchDir::new("unheard");
    let (_silent, mut command) = serve_without_mongodb(&dir, 300, &["--set", "mongodb.heartbeat_seconds=1"]);
    let server = Process::start(&dir, &mut command);
    let told = server.line("so another server may start on this log").await;
    let (head, tail) = told.split_once("servers: no heartbeat for ").unwrap();
    assert!(head.contains("WARN"), "{told}");
    // As many seconds as the last one counts.
    let seconds: u64 = tail.split_once(" s, ").unwrap().0.parse().unwrap();
    assert!(seconds >= 3, "{told}");
}

#[actix_web::test]
async fn a_server_that_stopped_has_closed_its_file() {
    let dir = ScratchDir::new("closed");
    let server = Process::start(&dir, &mut serve(&dir, &[]));
    server.address(&dir.path().join("port")).await;
    server.signal("TERM");
    assert_eq!(server.exited().await.code(), Some(0), "{}", server.output());
    let mut files: Vec<_> = std::fs::read_dir(dir.path().join("data"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("chat.db"))
        .collect();
    files.sort();
    assert_eq!(files, ["chat.db", "chat.db.lock"]);
}

/// A look-up of a name waits for a file for aliases that nobody writes, as for name servers that are silent.
#[actix_web::test]
async fn what_waits_for_a_name_server_keeps_no_process_whose_server_has_ended() {
    let order = std::fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    let hosts = order.lines().find_map(|line| line.trim().strip_prefix("hosts:"));
    if hosts.is_some_and(|hosts| !hosts.split_whitespace().take(2).any(|source| source == "dns")) {
        eprintln!(
            "skipped: names are not looked up by the C library itself (hosts:{})",
            hosts.unwrap_or_default()
        );
        return;
    }
    let dir = ScratchDir::new("silent-names");
    let aliases = dir.path().join("aliases");
    assert!(Command::new("mkfifo").arg(&aliases).status().unwrap().success());
    for (patience_ms, last) in [("300", "stopped in order"), ("60000", "stopped before it had started")] {
        let patience = format!("mongodb.connect_timeout_ms={patience_ms}");
        let mongodb = ["log.backend=mongodb", "mongodb.uri=mongodb://chatting/", &*patience];
        let mut command = serve(&dir, &mongodb.map(|set| ["--set", set]).concat());
        let server = Process::start(&dir, command.env("HOSTALIASES", &aliases));
        // It opens when a look-up has begun, which then waits until it is closed.
        let (aliases, (opened, open)) = (aliases.clone(), tokio::sync::oneshot::channel());
        std::thread::spawn(move || opened.send(File::options().write(true).open(aliases)));
        let _silent = within("a name to be looked up", open).await.unwrap().unwrap();
        if last == "stopped in order" {
            server.address(&dir.path().join("port")).await;
        }
        server.signal("TERM");
        assert_eq!(server.exited().await.code(), Some(0), "{}", server.output());
        server.line(last).await;
    }
}

/// A name that no name server ever knows (RFC 6761, 6.4), where the driver asks for the hosts behind it.
const UNKNOWN_NAME: [&str; 6] = [
    "--set",
    "log.backend=mongodb",
    "--set",
    "mongodb.uri=mongodb+srv://chatting.invalid/",
    "--set",
    "mongodb.connect_timeout_ms=300",
];

#[actix_web::test]
async fn rule_03_a_start_needs_no_name_server_either() {
    let dir = ScratchDir::new("no-names");
    let server = Process::start(&dir, &mut serve(&dir, &UNKNOWN_NAME));
    let addr = server.address(&dir.path().join("port")).await;
    let ready = get(addr, "/readyz").await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &"degraded".into()));
    server.signal("TERM");
    assert_eq!(server.exited().await.code(), Some(0), "{}", server.output());
    // What the commands cannot do without it is not the settings' fault.
    std::fs::write(dir.path().join("empty.ndjson"), crate::import::exported(0)).unwrap();
    for command in [
        &["export", "--room", "12"][..],
        &["import", "empty.ndjson"],
        &["erase", "--user", "7"],
        &["erase", "--user", "7", "--dry-run"],
    ] {
        let (code, out, error) = run(&dir, &[command, &UNKNOWN_NAME].concat(), &ENV);
        assert_eq!(code, 69, "{command:?}: {out}{error}");
    }
    // There is nothing to replay, so it is not needed.
    let (code, _, error) = run(&dir, &[&["spool", "replay"][..], &UNKNOWN_NAME].concat(), &ENV);
    assert_eq!(code, 0, "{error}");
}

/// The table in the runbook and the one of `--help` name the same codes.
#[actix_web::test]
async fn every_exit_code_is_in_the_help_and_in_the_runbook() {
    let dir = ScratchDir::new("help");
    let (code, help, _) = run(&dir, &["--help"], &[]);
    assert_eq!(code, 0);
    let codes = |text: &str, cell: fn(&str) -> Option<&str>| {
        let mut codes: Vec<u8> = text.lines().filter_map(|line| cell(line)?.parse().ok()).collect();
        codes.dedup();
        codes
    };
    let told = codes(help.split("Exit codes:").nth(1).unwrap(), |line| {
        line.split_whitespace().next()
    });
    let runbook = include_str!("../../docs/OPERATIONS.md");
    let runbook = runbook.split("\n## Exit codes\n").nth(1).unwrap();
    let documented = codes(runbook, |line| {
        Some(line.strip_prefix("| ")?.split(' ').next().unwrap())
    });
    assert_eq!(told, [0, 1, 2, 64, 69, 75]);
    assert_eq!(documented, told);
}
