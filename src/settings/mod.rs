//! The settings: every number, name and address that an operator may choose.
//!
//! Each section is declared once (in `auth`, `edge`, `live` and `log`); its struct, its defaults, its checks and its text in
//! `settings.toml` come from that. Layers, later over earlier: built-in defaults, the file, the environment
//! (`CHAT__LOG__BACKEND` is `log.backend`), flags. [`Settings::load`] reads them all and reports every problem at
//! once: unknown keys, values that are not allowed, and keys that contradict each other. Nothing is guessed: with
//! one problem there are no settings.

mod auth;
mod edge;
mod error;
mod file;
mod layers;
mod live;
mod log;
mod nearest;
mod rule;
mod secret;
mod section;
mod template;
mod validate;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use toml::Value;

pub use self::auth::{Algorithm, Auth, AuthMode};
pub use self::edge::{Cors, Legacy, LogFormat, LogLevel, Logging, Message, Ops, Server, Shutdown};
pub use self::error::{Problem, SettingsError};
pub use self::layers::{Layer, Load, Loaded, environment};
pub use self::live::{
    Actors, Broadcast, CheckerActor, OnError, RegistryActor, Room, RoomMode, Session, SessionActor, Supervisor,
    WriterActor,
};
pub use self::log::{Durability, Export, Figures, History, Idempotency, Limits, Log, LogBackend, Mongodb};
pub use self::secret::Secret;
pub use self::section::{Key, Section};
pub use self::template::template;

/// All settings, by section.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `[server]`
    pub server: Server,
    /// `[ops]`
    pub ops: Ops,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// `[auth]`
    pub auth: Auth,
    /// `[room]`
    pub room: Room,
    /// `[session]`
    pub session: Session,
    /// `[broadcast]`
    pub broadcast: Broadcast,
    /// `[actors.*]`
    pub actors: Actors,
    /// `[log]`
    pub log: Log,
    /// `[history]`
    pub history: History,
    /// `[export]`
    pub export: Export,
    /// `[figures]`
    pub figures: Figures,
    /// `[idempotency]`
    pub idempotency: Idempotency,
    /// `[limits]`
    pub limits: Limits,
    /// `[mongodb]`
    pub mongodb: Mongodb,
    /// `[message]`
    pub message: Message,
    /// `[legacy]`
    pub legacy: Legacy,
    /// `[cors]`
    pub cors: Cors,
    /// `[logging]`
    pub logging: Logging,
}

macro_rules! sections {
    ($($first:ident $(. $rest:ident)*),+ $(,)?) => {
        impl Settings {
            /// Every section with its name, in the order of `settings.toml`.
            pub fn sections(&self) -> Vec<(&'static str, &dyn Section)> {
                vec![$((
                    concat!(stringify!($first) $(, ".", stringify!($rest))*),
                    &self.$first $(. $rest)*,
                )),+]
            }

            /// The section of that name, to be changed.
            pub fn section_mut(&mut self, name: &str) -> Option<&mut dyn Section> {
                $(if name == concat!(stringify!($first) $(, ".", stringify!($rest))*) {
                    return Some(&mut self.$first $(. $rest)*);
                })+
                None
            }
        }
    };
}

sections! {
    server, ops, shutdown, auth, room, session, broadcast,
    actors.registry, actors.checker, actors.session, actors.writer, actors.supervisor,
    log, history, export, figures, idempotency, limits, mongodb, message, legacy, cors, logging,
}

impl Settings {
    /// Every key in full, as in `actors.registry.mailbox`, in the order of `settings.toml`.
    pub fn keys(&self) -> Vec<String> {
        let sections = self.sections().into_iter();
        sections
            .flat_map(|(name, section)| section.keys().into_iter().map(move |key| join(name, key.name)))
            .collect()
    }

    /// The value of a key named in full as it may be shown (secrets as `***`), or `None` for an unknown key.
    pub fn get(&self, key: &str) -> Option<Value> {
        let (section, key) = self.section_of(key)?;
        section.get(key)
    }

    /// Whether a key named in full has its default.
    fn is_default(&self, key: &str) -> bool {
        self.section_of(key)
            .is_some_and(|(section, key)| section.is_default(key))
    }

    /// The section of a key named in full, and its name there.
    fn section_of<'a>(&self, key: &'a str) -> Option<(&dyn Section, &'a str)> {
        let (wanted, key) = key.rsplit_once('.')?;
        let (_, section) = self.sections().into_iter().find(|(name, _)| *name == wanted)?;
        Some((section, key))
    }

    /// Every key with its value as it may be shown and the layer it comes from, in the order of `settings.toml`. A key that
    /// `origins` lacks was set by the program.
    pub fn shown(&self, origins: &BTreeMap<String, Layer>) -> Vec<Shown> {
        let shown = |key: String| {
            Some(Shown {
                value: self.get(&key)?,
                layer: origins.get(&key).map_or_else(|| "program".to_owned(), Layer::to_string),
                changed: !self.is_default(&key),
                key,
            })
        };
        self.keys().into_iter().filter_map(shown).collect()
    }

    /// Sets a key named in full from TOML. The error says what is allowed, without the key's name.
    pub fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let (section, key) = key.rsplit_once('.').unwrap_or(("", key));
        let section = self
            .section_mut(section)
            .ok_or_else(|| section::UNKNOWN_KEY.to_owned())?;
        section.set(key, value)
    }

    /// Checks each value and what keys demand of each other; for settings that were not [loaded](Settings::load).
    pub fn validate(&self) -> Result<(), SettingsError> {
        SettingsError::unless_none(validate::problems(self, None, &BTreeSet::new()))
    }
}

/// One key as it may be shown: see [`Settings::shown`].
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Its name in full.
    pub key: String,
    /// Its value, a secret as `***`.
    pub value: Value,
    /// Where the value comes from.
    pub layer: String,
    /// Whether it is another than the default.
    pub changed: bool,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({})", self.key, self.value, self.layer)
    }
}

/// A section's or table's name and one in it, as one.
fn join(table: &str, name: &str) -> String {
    if table.is_empty() {
        name.to_owned()
    } else {
        format!("{table}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_can_be_read_and_set_by_its_name() {
        let mut settings = Settings::default();
        let keys = settings.keys();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
        for key in keys {
            let value = settings.get(&key).unwrap();
            if value.as_str() != Some(secret::MASK) {
                assert_eq!(settings.set(&key, &value), Ok(()), "{key}");
            }
        }
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn names_that_are_no_keys_are_refused() {
        let mut settings = Settings::default();
        for key in [
            "",
            "log",
            "backend",
            "log.nope",
            "actors.mailbox",
            "log.backend.x",
            ".backend",
        ] {
            assert_eq!(settings.get(key), None, "{key}");
            assert!(settings.set(key, &Value::from("sqlite")).is_err(), "{key}");
        }
    }

    #[test]
    fn values_are_set_in_their_section() {
        let mut settings = Settings::default();
        settings.set("actors.registry.mailbox", &Value::from(9000)).unwrap();
        settings.set("log.backend", &Value::from("mongodb")).unwrap();
        assert_eq!(settings.actors.registry.mailbox, 9000);
        assert_eq!(settings.log.backend, LogBackend::Mongodb);
        assert_eq!(
            settings.set("log.durability", &Value::from("none")),
            Err(r#""none" is not allowed; allowed: "disk", "os" or "memory""#.to_owned())
        );
        assert_eq!(
            settings.set("room.refresh_percent", &Value::from(0)),
            Err("0 is not allowed; allowed: a whole number from 1 to 100".to_owned())
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut settings = Settings::default();
        assert_eq!(settings.get("auth.hs256_secret"), Some(Value::from("")));
        settings.auth.hs256_secret = Secret::new("hunter2");
        settings.mongodb.uri = Secret::new("mongodb://user:hunter2@host");
        assert_eq!(settings.get("auth.hs256_secret"), Some(Value::from("***")));
        assert!(!format!("{settings:?}").contains("hunter2"));
        let refused = settings
            .set("mongodb.uri", &Value::from("http://user:hunter2@host"))
            .unwrap_err();
        assert!(refused.starts_with("*** is not allowed"), "{refused}");
    }
}
