//! docs/TUNING.md is held against the server: every knob is there with its default, and every queue with its name.

use std::collections::{BTreeMap, BTreeSet};

use chatting_server::settings::Settings;

use crate::support::{app::spawn_app, http::get};

const TUNING: &str = include_str!("../../docs/TUNING.md");

/// Sections of which every key is a knob.
const SECTIONS: [&str; 6] = [
    "actors.registry.",
    "actors.checker.",
    "actors.session.",
    "actors.writer.",
    "idempotency.",
    "limits.",
];

/// Knobs of other sections.
const OTHERS: [&str; 26] = [
    "server.max_connections",
    "server.answers_max_bytes",
    "server.answers_share_bytes",
    "session.max",
    "session.credit_events",
    "session.credit_bytes",
    "session.resume_reads",
    "room.pending_max",
    "room.max_lookups",
    "room.max_reconnects",
    "room.cache_max",
    "room.not_live_cache_max",
    "room.ring_events",
    "room.ring_bytes",
    "log.readers",
    "log.commit_max",
    "log.commit_interval_us",
    "log.commit_enough",
    "log.batch_max",
    "log.batch_enough",
    "log.sqlite_batch_max",
    "log.backlog_max",
    "log.spool_max_bytes",
    "log.reserve_bytes",
    "actors.supervisor.restart_min_ms",
    "actors.supervisor.restart_max_ms",
];

/// The rows of its tables that begin with a key: the key, and the default that is told.
fn rows() -> BTreeMap<&'static str, &'static str> {
    let lines = TUNING
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    lines
        .filter(|(key, _)| key.contains('.') && !key.contains(' '))
        .map(|(key, rest)| (key, rest.split(" |").next().unwrap()))
        .collect()
}

#[test]
fn every_knob_is_in_the_tuning_guide_with_its_default() {
    let settings = Settings::default();
    let keys = settings.keys();
    let knobs = keys
        .iter()
        .map(String::as_str)
        .filter(|key| SECTIONS.iter().any(|section| key.starts_with(section)));
    let rows = rows();
    for knob in knobs.chain(OTHERS) {
        let told = rows
            .get(knob)
            .unwrap_or_else(|| panic!("docs/TUNING.md says nothing of {knob}"));
        let default = settings.get(knob).unwrap_or_else(|| panic!("there is no {knob}"));
        assert_eq!(*told, default.to_string(), "{knob}");
    }
    for key in rows.keys() {
        assert!(
            settings.get(key).is_some(),
            "docs/TUNING.md tells of {key}, which there is not"
        );
    }
}

/// What clients and operators count on, and most tests set for themselves.
#[test]
fn the_defaults_are_the_numbers_of_the_design() {
    let settings = Settings::default();
    for (key, number) in [
        // Rule 8: leases in use are refreshed at 80 % of their time.
        ("room.refresh_percent", 80),
        // Rule 20: characters of a text and of a nickname, bytes of a body.
        ("message.max_chars", 2000),
        ("message.nickname_max_chars", 64),
        ("server.max_body_bytes", 64 * 1024),
        // The old protocol: bytes of a frame that a presenter sends.
        ("session.max_frame_bytes", 32_768),
        // The `keepalive_seconds` of the protocol's example.
        ("session.keepalive_seconds", 15),
    ] {
        let default = settings.get(key).and_then(|value| value.as_integer());
        assert_eq!(default, Some(number), "{key}");
    }
    for (key, text) in [
        // What acceptance promises, and rule 9.
        ("log.durability", "disk"),
        ("log.backend", "sqlite"),
        ("room.on_error", "refuse"),
        ("auth.mode", "token"),
        ("room.content_type", "application/json"),
        // The old protocol: the wall clock of its frames.
        ("legacy.zone", "Asia/Seoul"),
    ] {
        let default = settings.get(key);
        assert_eq!(default.as_ref().and_then(|value| value.as_str()), Some(text), "{key}");
    }
    for key in ["auth.trusted_proxies", "cors.origins"] {
        let default = settings.get(key);
        let empty = default.as_ref().and_then(|value| value.as_array()).map(Vec::is_empty);
        assert_eq!(empty, Some(true), "{key}: nobody is trusted unasked");
    }
}

#[actix_web::test]
async fn every_queue_of_the_metrics_is_in_the_tuning_guide_and_the_other_way_round() {
    let app = spawn_app(|_| {}).await;
    let metrics = get(app.addr, "/metrics").await;
    let named = |text: &str| -> BTreeSet<String> {
        let after = text.split("queue=\"").skip(1);
        after
            .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
            .collect()
    };
    assert_eq!(named(metrics.text()), named(TUNING));
    // What of them can refuse or make wait begins at 0, so that the first of them is seen.
    for queue in named(TUNING) {
        let counts = |what: &str| {
            metrics
                .text()
                .contains(&format!("chat_queue_{what}_total{{queue=\"{queue}\"}} 0"))
        };
        assert!(counts("refused") || counts("waits"), "{queue}");
    }
}

/// Each mailbox and share has a test of its name, which turns it.
#[test]
fn every_knob_of_the_actors_has_a_test_that_turns_it() {
    let tests = include_str!("queues.rs");
    let settings = Settings::default();
    for key in settings.keys() {
        if key.starts_with("actors.") && !key.starts_with("actors.supervisor.") {
            let name = format!("async fn {}", key.replace('.', "_"));
            assert!(
                tests.contains(&name),
                "no test in tests/it/queues.rs begins with {name}"
            );
        }
    }
}
