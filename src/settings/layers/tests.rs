//! Tests of loading: what a layer gives, what it refuses, and how that is told.

use std::fs;
use std::path::PathBuf;

use super::super::{Durability, LogBackend};
use super::*;

/// A settings file that is removed again.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("settings-{}-{number}.toml", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn load(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, SettingsError> {
    let file = File::new(text);
    Settings::load(Load {
        file: Some(&file.0),
        env: pairs(env),
        flags: &pairs(flags),
    })
}

/// The problems, with the file named `FILE`.
fn problems(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Vec<String> {
    let file = File::new(text);
    let error = Settings::load(Load {
        file: Some(&file.0),
        env: pairs(env),
        flags: &pairs(flags),
    })
    .unwrap_err();
    let name = file.0.display().to_string();
    error
        .to_string()
        .lines()
        .map(|line| line.replace(&name, "FILE"))
        .collect()
}

#[test]
fn without_layers_there_are_the_defaults() {
    let loaded = Settings::load(Load {
        file: None,
        env: [],
        flags: &[],
    })
    .unwrap();
    assert_eq!(loaded.settings, Settings::default());
    assert_eq!(loaded.origins.len(), loaded.settings.keys().len());
    assert!(loaded.origins.values().all(|&layer| layer == Layer::Default));
}

#[test]
fn later_layers_win_and_are_named() {
    let text = "[log]\npath = 'file'\ncommit_max = 1\nbatch_max = 1\n";
    let env = [("CHAT__LOG__COMMIT_MAX", "2"), ("CHAT__LOG__BATCH_MAX", "2")];
    let flags = [("log.batch_max", "3"), ("log.batch_max", "4")];
    let Loaded { settings, origins } = load(text, &env, &flags).unwrap();
    assert_eq!(
        (
            settings.log.path.as_str(),
            settings.log.commit_max,
            settings.log.batch_max
        ),
        ("file", 2, 4)
    );
    assert_eq!(origins["log.path"], Layer::File);
    assert_eq!(origins["log.commit_max"], Layer::Env);
    assert_eq!(origins["log.batch_max"], Layer::Flag);
    assert_eq!(origins["log.linger_ms"], Layer::Default);
}

#[test]
fn every_type_can_come_from_every_layer() {
    let text = "[log]\nbackend = 'mongodb'\n[legacy]\nenabled = false\n[cors]\norigins = ['https://a', 'https://b']\n";
    let from_file = load(text, &[], &[]).unwrap().settings;
    let env = [
        ("CHAT__LOG__BACKEND", "mongodb"),
        ("CHAT__LEGACY__ENABLED", "false"),
        ("CHAT__CORS__ORIGINS", "https://a, https://b"),
    ];
    let flags = [
        ("log.backend", "mongodb"),
        ("legacy.enabled", "false"),
        ("cors.origins", "['https://a', 'https://b']"),
    ];
    assert_eq!(from_file.log.backend, LogBackend::Mongodb);
    assert_eq!(load("", &env, &[]).unwrap().settings, from_file);
    assert_eq!(load("", &[], &flags).unwrap().settings, from_file);
}

#[test]
fn nested_sections_have_nested_names() {
    let text = "[actors]\nregistry.mailbox = 5000\n[actors.session]\nmailbox = 5\n";
    let env = [("CHAT__ACTORS__WRITER__ROOM_SHARE", "100")];
    let settings = load(text, &env, &[("actors.checker.mailbox", "1_000")])
        .unwrap()
        .settings;
    let actors = settings.actors;
    assert_eq!(
        (
            actors.registry.mailbox,
            actors.session.mailbox,
            actors.writer.room_share,
            actors.checker.mailbox
        ),
        (5000, 5, 100, 1000)
    );
}

#[test]
fn other_variables_are_left_alone() {
    let env = [
        ("PATH", "/bin"),
        // As Kubernetes sets them for a service.
        ("CHAT_SERVICE_HOST", "x"),
        ("CHAT_PORT_8080_TCP_ADDR", "x"),
        ("chat__log__backend", "x"),
        ("XCHAT__LOG__BACKEND", "x"),
    ];
    assert_eq!(load("", &env, &[]).unwrap().settings, Settings::default());
}

#[test]
fn unknown_keys_are_named_with_their_place_and_the_nearest() {
    let text = "[log]\nbacknd = 1\n[sesion]\nmax = 1\n[actors]\nmailbox = 1\n[kafka]\nbrokers = 'hunter2'\n";
    let env = [
        ("CHAT__LOG__BAKEND", "x"),
        ("CHAT__LOG_BACKEND", "x"),
        ("CHAT__log__backend", "x"),
        ("CHAT__", "x"),
        ("CHAT__CHAT__LOG__BACKEND", "x"),
        ("CHAT_LOG__BACKEND", "x"),
        ("CHAT_ACTORS__WRITER_MAILBOX", "x"),
        // Other programs'.
        ("CHAT_DB__HOST", "x"),
        ("CHAT_LOGS__BACKEND", "x"),
        ("CHAT_LOG_BACKEND", "x"),
    ];
    let flags = [("backend", "x"), ("log", "x"), ("", "x")];
    assert_eq!(
        problems(text, &env, &flags),
        [
            "file FILE, line 2: unknown key log.backnd; did you mean log.backend?",
            "file FILE, line 3: unknown key sesion; did you mean session?",
            "file FILE, line 6: unknown key actors.mailbox; did you mean actors.writer.mailbox?",
            "file FILE, line 7: unknown key kafka; settings.toml has every key",
            "environment CHAT_ACTORS__WRITER_MAILBOX: unknown variable CHAT_ACTORS__WRITER_MAILBOX; did you mean CHAT__ACTORS__WRITER__MAILBOX?",
            "environment CHAT_LOG__BACKEND: unknown variable CHAT_LOG__BACKEND; did you mean CHAT__LOG__BACKEND?",
            "environment CHAT__: unknown variable CHAT__; settings.toml has every key",
            "environment CHAT__CHAT__LOG__BACKEND: unknown variable CHAT__CHAT__LOG__BACKEND; did you mean CHAT__LOG__BACKEND?",
            "environment CHAT__LOG_BACKEND: unknown variable CHAT__LOG_BACKEND; did you mean CHAT__LOG__BACKEND?",
            "environment CHAT__LOG__BAKEND: unknown variable CHAT__LOG__BAKEND; did you mean CHAT__LOG__BACKEND?",
            "environment CHAT__log__backend: unknown variable CHAT__log__backend; did you mean CHAT__LOG__BACKEND?",
            "flag --set backend: unknown key backend; did you mean log.backend?",
            "flag --set log: unknown key log; settings.toml has every key",
            "flag --set : unknown key ; settings.toml has every key",
        ]
    );
}

#[test]
fn bad_values_are_named_with_their_layer_and_what_is_allowed() {
    let text = "[log]\nbackend = 'mysql'\n[server]\nworkers = '4'\n[room]\nrefresh_percent = 101\n";
    let env = [("CHAT__SERVER__BIND", "8080"), ("CHAT__LEGACY__ENABLED", "yes")];
    let flags = [("room.timeout_ms", "2s"), ("auth.trusted_proxies", "10.0.0.0/8,office")];
    assert_eq!(
        problems(text, &env, &flags),
        [
            r#"file FILE, line 2: log.backend = "mysql" is not allowed; allowed: "sqlite" or "mongodb""#,
            r#"file FILE, line 4: server.workers = "4" is not allowed; allowed: a whole number from 0 to 512"#,
            "file FILE, line 6: room.refresh_percent = 101 is not allowed; allowed: a whole number from 1 to 100",
            r#"environment CHAT__LEGACY__ENABLED: legacy.enabled = "yes" is not allowed; allowed: true or false"#,
            "environment CHAT__SERVER__BIND: server.bind = \"8080\" is not allowed; \
             allowed: IP:port, as in 127.0.0.1:8080 or [::1]:8080",
            "flag --set room.timeout_ms: room.timeout_ms = \"2s\" is not allowed; \
             allowed: a whole number from 1 to 60000",
            "flag --set auth.trusted_proxies: auth.trusted_proxies = [\"10.0.0.0/8\", \"office\"] is not allowed; \
             allowed: a list, each item an IP address or a CIDR network, as in 10.0.0.0/8",
        ]
    );
}

#[test]
fn a_bad_value_that_a_later_layer_replaces_is_told_all_the_same() {
    assert_eq!(problems("log.commit_max = 0", &[], &[("log.commit_max", "1")]).len(), 1);
}

#[test]
fn a_section_is_a_table() {
    assert_eq!(
        problems("log = 'hunter2'\nactors = 1\n[[server]]\nbind = 'x'\n", &[], &[]),
        [
            "file FILE, line 1: log is not a section; allowed: a table of keys, as under [log]",
            "file FILE, line 2: actors is not a section; allowed: a table of keys, as under [actors]",
            "file FILE, line 3: server is not a section; allowed: a table of keys, as under [server]",
        ]
    );
}

#[test]
fn contradictions_name_the_layers_of_their_keys() {
    assert_eq!(
        problems(
            "log.retry_max_ms = 50\nauth.mode = 'gateway'\n",
            &[],
            &[("room.pending_max", "3000")]
        ),
        [
            "room.pending_max = 3000 (flag) must be at most actors.registry.room_share = 2048 (default)",
            "log.retry_min_ms = 100 (default) must be at most log.retry_max_ms = 50 (file)",
            "auth.mode = \"gateway\" (file) needs the gateway's addresses in auth.trusted_proxies: \
             with none trusted, every caller would be refused",
        ]
    );
}

#[test]
fn a_key_that_is_wrong_itself_contradicts_no_other() {
    let text = "actors.registry.mailbox = 'many'\nactors.registry.room_share = 9000\n";
    assert_eq!(problems(text, &[], &[]).len(), 1);
}

#[test]
fn with_a_file_that_is_not_toml_the_other_layers_are_checked_all_the_same() {
    let text = "[auth]\ntrusted_proxies = ['10.0.0.0/8'\n";
    let shown = problems(
        text,
        &[("CHAT__AUTH__MODE", "gateway"), ("CHAT__X", "1")],
        &[("log.path", "")],
    );
    assert_eq!(shown.len(), 3, "{shown:?}");
    assert!(shown[0].contains("not TOML: "), "{shown:?}");
    assert!(shown[1].starts_with("environment CHAT__X: "), "{shown:?}");
    assert!(shown[2].starts_with("flag --set log.path: "), "{shown:?}");
}

#[test]
fn a_named_file_must_exist() {
    let load = Load {
        file: Some(Path::new("/nowhere/at-all.toml")),
        env: [],
        flags: &[],
    };
    let error = Settings::load(load).unwrap_err().to_string();
    assert!(
        error.starts_with("file /nowhere/at-all.toml: cannot be read: "),
        "{error}"
    );
}

#[test]
fn no_error_shows_a_secret() {
    let text = "[auth]\nhs256_secret = 'hunter2'\nhs256_secret_base64 = 'hunter2'\ngateway_secret = ['hunter2']\n";
    let env = [("CHAT__MONGODB__URI", "hunter2")];
    let shown = problems(text, &env, &[("auth.hs256_secrt", "hunter2")]);
    assert_eq!(shown.len(), 5, "{shown:?}");
    assert!(shown.iter().all(|line| !line.contains("hunter2")), "{shown:?}");
    let url = "http://kim:hunter2@rooms/room/live";
    assert_eq!(
        problems("", &[("CHAT__ROOM__BASE_URL", url)], &[]),
        ["environment CHAT__ROOM__BASE_URL: room.base_url = *** is not allowed; \
             allowed: http://HOST[:PORT][/PATH]; no https, user, ? or #"]
    );
    let syntax = problems("[auth]\nhs256_secret = hunter2\ngateway_secret = 'hunter2\n", &[], &[]);
    assert!(syntax.iter().all(|line| !line.contains("hunter2")), "{syntax:?}");
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    assert_eq!(
        problems("", &[("CHAT__LOG__PATH", "a\u{fffd}b")], &[]),
        ["environment CHAT__LOG__PATH: log.path is not UTF-8"]
    );
}

#[test]
fn durability_can_be_chosen() {
    for &durability in Durability::ALL {
        let loaded = load("", &[], &[("log.durability", durability.name())]).unwrap();
        assert_eq!(loaded.settings.log.durability, durability);
    }
}
