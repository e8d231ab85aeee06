//! [`Settings::load`]: the layers, one over the other.
//!
//! Defaults, then the file, then the environment, then flags. All layers are read before anything is said, so that an
//! operator sees every problem in one go; a value that a later layer replaces must be right all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use toml::Value;

use super::error::{Problem, SettingsError};
use super::nearest::nearest;
use super::{Section, Settings, file, validate};

/// How the names of environment variables begin that are settings.
const PREFIX: &str = "CHAT__";

/// How they begin where an underscore was left out.
const SHORT_PREFIX: &str = "CHAT_";

/// Whether a variable is a setting, or was meant to be one: a name like `CHAT_LOG__BACKEND`, with a section of ours, must not be left
/// alone without a word. `CHAT_DB__HOST` is another program's.
fn is_ours(name: &str) -> bool {
    let short = || name.strip_prefix(SHORT_PREFIX)?.split_once("__");
    name.starts_with(PREFIX) || short().is_some_and(|(section, _)| is_section(section))
}

fn is_section(name: &str) -> bool {
    let settings = Settings::default();
    let mut tops = settings.sections().into_iter().map(|(path, _)| path.split('.').next());
    tops.any(|top| top.is_some_and(|top| top.eq_ignore_ascii_case(name)))
}

/// Where a value comes from; later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// Built in.
    Default,
    /// The settings file.
    File,
    /// An environment variable.
    Env,
    /// A flag of the command line.
    Flag,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Env => "environment",
            Self::Flag => "flag",
        })
    }
}

/// What [`Settings::load`] reads.
#[derive(Clone, Debug)]
pub struct Load<'a, E> {
    /// The settings file; it must exist. `None` is no file.
    pub file: Option<&'a Path>,
    /// Environment variables, name and value; those that do not begin with `CHAT__` are left alone, but for `CHAT_LOG__BACKEND` and the
    /// like, which are refused. From
    /// [`environment`], since `std::env::vars` panics on text that is not UTF-8, whosever it is.
    pub env: E,
    /// `--set key=value`, as key and value, in order.
    pub flags: &'a [(String, String)],
}

/// What [`Settings::load`] gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The settings, validated.
    pub settings: Settings,
    /// For every key, named in full, the layer its value comes from.
    pub origins: BTreeMap<String, Layer>,
}

/// The variables of this process that are settings, for [`Load::env`].
///
/// Bytes that are not UTF-8 become U+FFFD, which `load` refuses.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| is_ours(name))?;
        Some((name, value.to_string_lossy().into_owned()))
    })
}

impl Settings {
    /// Reads all layers and validates the whole.
    ///
    /// Errors: every problem of every layer, by key, layer, and what is allowed; then those of keys that contradict
    /// each other, as far as these keys themselves are right.
    pub fn load<E>(load: Load<'_, E>) -> Result<Loaded, SettingsError>
    where
        E: IntoIterator<Item = (String, String)>,
    {
        let settings = Self::default();
        let known = settings.keys();
        let origins = known.iter().map(|key| (key.clone(), Layer::Default)).collect();
        let sections = settings.sections().into_iter().map(|(name, _)| name).collect();
        let mut loading = Loading {
            settings,
            origins,
            known,
            sections,
            problems: Vec::new(),
        };

        let file_is_read = load.file.is_none_or(|path| loading.read_file(path));
        let mut env: Vec<_> = load.env.into_iter().filter(|(name, _)| is_ours(name)).collect();
        env.sort();
        for (name, value) in &env {
            loading.set_variable(name, value);
        }
        for (key, value) in load.flags {
            let place = format!("flag --set {key}");
            loading.set(Layer::Flag, key, place, |section, key| section.set_text(key, value));
        }
        // Without the file's values the keys would seem to contradict each other where they do not.
        if file_is_read {
            loading.validate();
        }
        SettingsError::unless_none(loading.problems)?;
        Ok(Loaded {
            settings: loading.settings,
            origins: loading.origins,
        })
    }
}

struct Loading {
    settings: Settings,
    origins: BTreeMap<String, Layer>,
    known: Vec<String>,
    sections: Vec<&'static str>,
    problems: Vec<Problem>,
}

impl Loading {
    /// Applies the file; false when it could not be read as TOML.
    fn read_file(&mut self, path: &Path) -> bool {
        let entries = match file::read(path, &self.sections) {
            Ok(entries) => entries,
            Err(problems) => {
                self.problems.extend(problems);
                return false;
            }
        };
        for file::Entry { key, place, value } in entries {
            self.set_from_file(&key, place, &value);
        }
        true
    }

    fn set_from_file(&mut self, key: &str, place: String, value: &Value) {
        let is_table_name = self
            .sections
            .iter()
            .any(|name| *name == key || name.starts_with(&format!("{key}.")));
        if is_table_name {
            let message = format!("{key} is not a section; allowed: a table of keys, as under [{key}]");
            self.problem(key, place, message);
        } else {
            self.set(Layer::File, key, place, |section, key| section.set(key, value));
        }
    }

    fn set_variable(&mut self, name: &str, value: &str) {
        let place = format!("environment {name}");
        let key = name
            .strip_prefix(PREFIX)
            .or_else(|| name.strip_prefix(SHORT_PREFIX))
            .unwrap_or(name)
            .replace("__", ".")
            .to_lowercase();
        if name != variable(&key) || !self.known.contains(&key) {
            let known = nearest(&key, self.known.iter().map(String::as_str)).map(variable);
            self.problem(&key, place, unknown("variable", name, known.as_deref()));
        } else if value.contains(char::REPLACEMENT_CHARACTER) {
            self.problem(&key, place, format!("{key} is not UTF-8"));
        } else {
            self.set(Layer::Env, &key, place, |section, key| section.set_text(key, value));
        }
    }

    /// Sets one key in full by `set`, or notes why not.
    fn set(
        &mut self,
        layer: Layer,
        key: &str,
        place: String,
        set: impl FnOnce(&mut dyn Section, &str) -> Result<(), String>,
    ) {
        let section = key
            .rsplit_once('.')
            .filter(|_| self.known.iter().any(|known| known == key));
        let Some((section, name)) = section.and_then(|(path, name)| Some((self.settings.section_mut(path)?, name)))
        else {
            let known = self
                .known
                .iter()
                .map(String::as_str)
                .chain(self.sections.iter().copied());
            let message = unknown("key", key, nearest(key, known.filter(|known| *known != key)));
            return self.problem(key, place, message);
        };
        match set(section, name) {
            Ok(()) => {
                self.origins.insert(key.to_owned(), layer);
            }
            Err(message) => self.problem(key, place, format!("{key} = {message}")),
        }
    }

    fn validate(&mut self) {
        let wrong: BTreeSet<_> = self.problems.iter().map(|problem| problem.key.clone()).collect();
        self.problems
            .extend(validate::problems(&self.settings, Some(&self.origins), &wrong));
    }

    fn problem(&mut self, key: &str, place: String, message: String) {
        self.problems.push(Problem {
            key: key.to_owned(),
            place,
            message,
        });
    }
}

/// The environment variable of a key.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fn unknown(what: &str, name: &str, nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("unknown {what} {name}; did you mean {nearest}?"),
        None => format!("unknown {what} {name}; settings.toml has every key"),
    }
}

#[cfg(test)]
mod tests;
