//! Settings: the file, the environment, flags, and the command line around them.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::Index};

use super::{any_text, mutated, mutated_text};
use crate::settings::{Layer, Load, Loaded, Settings, SettingsError, template};

fn load(file: Option<&[u8]>, env: Vec<(String, String)>, flags: &[(String, String)]) -> Result<Loaded, SettingsError> {
    let written = file.map(|bytes| {
        let written = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(written.path(), bytes).unwrap();
        written
    });
    let file = written.as_ref().map(tempfile::NamedTempFile::path);
    Settings::load(Load { file, env, flags })
}

/// A part of the template with every key switched on, so that each case has some of all sections and parses quickly.
fn file() -> String {
    let on = template();
    let on: Vec<String> = on
        .lines()
        .filter(|line| !line.starts_with("# ") && !line.is_empty())
        .map(|line| line.trim_start_matches('#').to_owned())
        .collect();
    on.join("\n")
}

/// Every problem says where it is, or which keys it is about, in one line.
fn told(error: &SettingsError) -> Result<(), TestCaseError> {
    prop_assert!(!error.problems.is_empty());
    for problem in &error.problems {
        prop_assert!(!problem.message.is_empty());
        prop_assert!(!problem.place.is_empty() || !problem.key.is_empty(), "{:?}", problem);
        prop_assert_eq!(problem.to_string().lines().count(), 1, "{}", problem);
    }
    Ok(())
}

#[test]
fn the_template_with_every_key_in_it_is_read_as_the_defaults() {
    let loaded = load(Some(file().as_bytes()), Vec::new(), &[]).unwrap();
    assert_eq!(loaded.settings, Settings::default());
    let from_file = loaded.origins.values().filter(|layer| **layer == Layer::File).count();
    assert_eq!(from_file, loaded.origins.len(), "the seed lacks keys");
}

proptest! {
    #[test]
    fn a_file_is_read_or_every_problem_is_told_with_its_place(bytes in mutated([file(), "log.backend = \"mongodb\"\n[auth]\nhs256_secret = \"x\"\n".into()])) {
        match load(Some(&bytes), Vec::new(), &[]) {
            Ok(loaded) => prop_assert_eq!(loaded.settings.validate(), Ok(())),
            Err(error) => told(&error)?,
        }
    }

    /// What a layer sets is what is in force, and shows where it comes from.
    #[test]
    fn environment_and_flags_are_taken_as_they_are_or_refused_by_their_key(
        key in any::<Index>(),
        text in prop_oneof![mutated_text(["5", "true", "disk", "a, b", "[\"a\"]", "127.0.0.1:80", "http://x/y", "10.0.0.0/8"]), any_text()],
        by_flag in any::<bool>(),
    ) {
        let keys = Settings::default().keys();
        let key = keys[key.index(keys.len())].clone();
        let variable = format!("CHAT__{}", key.to_uppercase().replace('.', "__"));
        let (env, flags) = if by_flag { (vec![], vec![(key.clone(), text)]) } else { (vec![(variable, text)], vec![]) };
        match load(None, env, &flags) {
            Ok(loaded) => {
                prop_assert_eq!(loaded.origins[&key], if by_flag { Layer::Flag } else { Layer::Env });
                let value = loaded.settings.get(&key).unwrap();
                if value.as_str() != Some("***") {
                    let mut again = loaded.settings.clone();
                    prop_assert_eq!(again.set(&key, &value), Ok(()));
                    prop_assert_eq!(again, loaded.settings);
                }
            }
            Err(error) => {
                told(&error)?;
                prop_assert!(error.problems.iter().any(|problem| problem.to_string().contains(&key)), "{}", error);
            }
        }
    }

    #[test]
    fn names_that_are_no_keys_are_refused(names in vec(mutated_text(["log.backend", "CHAT__LOG__BACKEND", "actors.registry.mailbox"]), 1..3)) {
        let keys = Settings::default().keys();
        let flags: Vec<(String, String)> = names.iter().map(|name| (name.clone(), "sqlite".to_owned())).collect();
        let env: Vec<(String, String)> = names.iter().map(|name| (name.clone(), "sqlite".to_owned())).collect();
        let loaded = load(None, env, &flags);
        let known = names.iter().all(|name| keys.contains(name));
        prop_assert!(known || loaded.is_err());
        if let Err(error) = loaded {
            told(&error)?;
        }
    }

    /// No error about a secret shows it, whichever layer it is in and whatever else is wrong there.
    #[test]
    fn no_problem_shows_a_secret(secret in "[a-zA-Z0-9]{12,31}", rest in mutated(["[log]\nbatch_max = 5\n"])) {
        let plain = "hunter2".to_owned() + &secret;
        let file = [format!("[auth]\nhs256_secret = \"{plain}\"\ngateway_secret = 5\n").as_bytes(), &rest].concat();
        let flags = [("mongodb.uri".to_owned(), format!("http://kim:{plain}@db"))];
        let env = vec![("CHAT__AUTH__HS256_SECRET_BASE64".to_owned(), plain.clone())];
        let told = load(Some(&file), env, &flags).unwrap_err().to_string();
        prop_assert!(!told.contains(&plain), "{}", told);
    }

    #[test]
    fn a_mongodb_uri_that_cannot_be_read_is_refused_without_its_password(rest in mutated_text(["@db:27017/chatting?w=1", "@[::1]:1,b:2/?authSource=admin&tls=true"])) {
        let mut settings = Settings::default();
        settings.auth.hs256_secret = crate::settings::Secret::new("k".repeat(32));
        settings.log.backend = crate::settings::LogBackend::Mongodb;
        settings.mongodb.uri = crate::settings::Secret::new(format!("mongodb://kim:hunter2hunter2{rest}"));
        if let Err(error) = crate::startup::check(&settings) {
            prop_assert!(!error.to_string().contains("hunter2"), "{}", error);
            prop_assert!(error.to_string().starts_with("mongodb.uri"), "{}", error);
        }
    }

    #[test]
    fn what_is_shown_is_the_same_text_read_back(lines in vec(any::<Index>(), 1..6)) {
        let defaults = Settings::default();
        let shown = defaults.shown(&BTreeMap::new());
        for line in lines {
            let one = &shown[line.index(shown.len())];
            if one.value.as_str() != Some("***") {
                let (section, key) = one.key.rsplit_once('.').unwrap();
                let file = format!("[{section}]\n{key} = {}\n", one.value);
                prop_assert_eq!(load(Some(file.as_bytes()), Vec::new(), &[]).map(|loaded| loaded.settings), Ok(Settings::default()));
            }
        }
    }

    #[test]
    fn a_command_line_is_read_or_refused(args in vec(mutated_text(["serve", "--set", "log.backend=sqlite", "check-config", "--changed", "spool", "status", "--json", "token", "--user", "7"]), 0..6)) {
        crate::cli::try_parse(std::iter::once("chatting-server".to_owned()).chain(args));
    }
}
