//! Logging by `log` and `env_logger`: text for people, or one JSON object a line (`logging.format`).
//!
//! At info and above no token, secret or message text is ever logged; nothing here filters them, because nothing may hand them over.

use std::io::Write;

use chatting_actors::clock::system_ms;
use env_logger::{Builder, Target};
use log::LevelFilter;
use serde_json::json;

use crate::settings::{LogFormat, LogLevel, Settings};

/// Installs the logger. `RUST_LOG` narrows or widens by module; `logging.level` is for our own code, and others speak from
/// warn on, but for the HTTP framework, which calls each request that it cannot read an error: whoever sends such could fill
/// the log, so it speaks from `logging.level = "debug"` on. A second call changes nothing.
pub fn init(settings: &Settings) {
    let level = match settings.logging.level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    };
    let mut builder = Builder::new();
    builder
        .filter_level(level.min(LevelFilter::Warn))
        .filter_module("chatting_server", level)
        .filter_module("chatting_actors", level)
        .filter_module(
            "actix_http",
            if level >= LevelFilter::Debug {
                LevelFilter::Warn
            } else {
                LevelFilter::Off
            },
        )
        .parse_default_env()
        .target(Target::Stderr);
    if settings.logging.format == LogFormat::Json {
        builder.format(|out, record| {
            let time = jiff::Timestamp::from_millisecond(system_ms()).map(|time| format!("{time:.3}"));
            let line = json!({
                "time": time.unwrap_or_default(),
                "level": record.level().as_str().to_ascii_lowercase(),
                "target": record.target(),
                "message": record.args().to_string(),
            });
            writeln!(out, "{line}")
        });
    } else {
        builder.format_timestamp_millis();
    }
    let _ = builder.try_init();
}
