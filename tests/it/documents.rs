//! docs/SENDING.md, docs/ROOM-SERVER.md, docs/LEGACY.md and docs/openapi.json say what the server does, docs/ARCHITECTURE.md
//! where it does, and no comment names a document that is not here.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use chatting_actors::wire::legacy::{START_WITHOUT_TOKEN, TOKEN_EXCEPTION, encode_chat, error_unknown_id};
use chatting_server::{
    auth::{ForwardedError, TokenError},
    error::{Code, Lang},
    legacy::{
        body::BodyError,
        error::{NO_SESSION, NO_SESSION_PRESENTER, NOT_LIVE},
    },
    settings::Settings,
};
use serde_json::Value;

use crate::support::{
    app::spawn_app,
    documents::{fenced, name, section, settings_named, table},
    http::get,
};

const SENDING: &str = include_str!("../../docs/SENDING.md");
const ROOM_SERVER: &str = include_str!("../../docs/ROOM-SERVER.md");
const LEGACY: &str = include_str!("../../docs/LEGACY.md");
const ARCHITECTURE: &str = include_str!("../../docs/ARCHITECTURE.md");
const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// Where it is not, `UPDATE_DOCS=1 cargo test --test it documents` writes it anew.
#[actix_web::test]
async fn docs_openapi_json_is_what_is_served_with_the_default_settings_and_embedded_rooms() {
    let app = spawn_app(|_| {}).await;
    let served = get(app.addr, "/openapi.json").await.json();
    let text = serde_json::to_string_pretty(&served).unwrap() + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
        return fs::write(file, text).unwrap();
    }
    assert!(
        text == OPENAPI,
        "docs/openapi.json is another document: UPDATE_DOCS=1 cargo test --test it documents"
    );
}

#[test]
fn sending_tells_every_refusal_of_a_message_with_its_status_and_no_other() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let answers = &document["paths"]["/v1/rooms/{presenter_idx}/messages"]["post"]["responses"];
    let mut given = BTreeSet::new();
    for (status, answer) in answers.as_object().unwrap() {
        if status.starts_with('2') {
            continue;
        }
        let told = answer["description"].as_str().unwrap();
        given.extend(
            told.split('`')
                .skip(1)
                .step_by(2)
                .map(|code| (status.clone(), code.to_owned())),
        );
    }
    let rows = table(section(SENDING, "Refusals"), "status");
    let told: BTreeSet<_> = rows
        .iter()
        .map(|row| (row[0].to_owned(), name(row[1]).unwrap()))
        .collect();
    assert_eq!((told.len(), &told), (rows.len(), &given));
    for row in &rows {
        let code = Code::parse(&name(row[1]).unwrap()).unwrap();
        assert_eq!(code.status().as_str(), row[0]);
        assert_eq!(code.retry_after(), row[3].contains("`Retry-After`"), "{row:?}");
    }
    let problem: Value = serde_json::from_str(fenced(section(SENDING, "Refusals"), "json")[0]).unwrap();
    let code = Code::parse(problem["code"].as_str().unwrap()).unwrap();
    assert_eq!(problem["status"], code.status().as_u16());
    assert_eq!(problem["title"], code.title(Lang::English));
}

#[test]
fn settings_are_named_there_as_they_are_with_their_defaults() {
    assert!(settings_named(SENDING) > 20);
    assert!(settings_named(ROOM_SERVER) > 20);
    assert!(settings_named(LEGACY) > 8);
    let settings = Settings::default();
    for row in table(section(SENDING, "Limits"), "setting") {
        let key = name(row[0]).unwrap();
        assert_eq!(
            settings.get(&key).and_then(|value| value.as_integer()),
            row[1].parse().ok(),
            "{key}"
        );
    }
}

#[test]
fn the_old_protocol_has_every_text_and_frame_that_the_server_says_there() {
    let (missing, refused) = (
        ForwardedError::Missing("x-forward-userIdx"),
        BodyError::MissingPresenterIdx,
    );
    let mut said = vec![
        TOKEN_EXCEPTION.to_owned(),
        START_WITHOUT_TOKEN.to_owned(),
        error_unknown_id("X"),
        encode_chat("kim", "hi", "09:00"),
        format!("`{NO_SESSION}`"),
        format!("`{NO_SESSION_PRESENTER}`"),
        format!("`{NOT_LIVE}`"),
        missing.legacy_text(),
        ForwardedError::BadUserIdx.legacy_text(),
        ForwardedError::BadNickname.legacy_text(),
        ForwardedError::Twice("x-forward-userIdx".into()).legacy_text(),
        ForwardedError::BadRooms("x-rooms".into()).legacy_text(),
        refused.to_string(),
        BodyError::MissingUserType.to_string(),
        BodyError::MissingText.to_string(),
    ];
    let tokens = TokenError::ALL
        .iter()
        .filter(|error| **error != TokenError::KeysUnavailable);
    said.extend(tokens.map(|error| format!("`{}`", error.legacy_text())));
    for text in said {
        assert!(LEGACY.contains(&text), "{text}");
    }
}

/// Every source below these folders, by its path from the top.
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| top.join(folder)).collect();
    let mut all = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(top).unwrap().display().to_string();
                all.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    all
}

/// Whether a source says what this name is: an item, a field or a variant. `name*` is any that begins so.
fn defines(text: &str, name: &str) -> bool {
    let of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    let (stem, open_ended) = name.strip_suffix('*').map_or((name, false), |stem| (stem, true));
    text.match_indices(stem).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + stem.len()..]);
        if before.ends_with(of_a_name) || (!open_ended && after.starts_with(of_a_name)) {
            return false;
        }
        let line = before.rsplit('\n').next().unwrap_or_default().trim();
        let item = ["fn", "struct", "enum", "trait", "const", "static", "type"];
        let item = item
            .iter()
            .any(|word| line.split_whitespace().next_back() == Some(word));
        let begins = ["", "pub", "pub(super)", "pub(crate)"].contains(&line);
        let field = after.starts_with(':') && !after.starts_with("::");
        item || (begins && (field || after.starts_with([',', '(']) || after.starts_with(" {")))
    })
}

#[test]
fn what_holds_an_invariant_is_in_the_file_that_the_table_names() {
    let sources = sources(&["src", "actors/src"]);
    let mut found = 0;
    for row in table(section(ARCHITECTURE, "Invariants"), "rule") {
        for part in row[2].split(';') {
            // Names are those of the file before them; others are prose.
            let mut files: Option<Vec<&(String, String)>> = None;
            for word in part.split('`').skip(1).step_by(2) {
                if word.ends_with(".rs") || word.ends_with('/') {
                    let named = |path: &str| format!("/{path}").contains(&format!("/{word}"));
                    let all: Vec<_> = sources.iter().filter(|(path, _)| named(path)).collect();
                    assert!(!all.is_empty(), "there is no {word}: {part}");
                    files = Some(all);
                } else if let Some(files) = &files {
                    for name in word.split("::") {
                        let there = files.iter().any(|(_, text)| defines(text, name));
                        assert!(there, "{name} is elsewhere: {part}");
                        found += 1;
                    }
                }
            }
        }
    }
    assert!(found > 60, "{found}");
}

#[test]
fn every_document_that_a_comment_names_is_here() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = 0;
    for (path, text) in sources(&["src", "actors/src", "actors/tests", "tests", "benches"]) {
        for line in text.lines() {
            let comment = line.split_once("//").map_or("", |(_, comment)| comment);
            let words = comment.split(|c: char| !(c.is_alphanumeric() || "_-./".contains(c)));
            for word in words.map(|word| word.trim_end_matches('.')) {
                if word.ends_with(".md") && !word.starts_with('/') {
                    assert!(top.join(word).exists(), "{path}: there is no {word}");
                    found += 1;
                }
            }
        }
    }
    assert!(found > 30, "{found}");
}
