//! docs/SENDING.md, docs/ROOM-SERVER.md and docs/openapi.json say what the server does.

use std::{collections::BTreeSet, path::Path};

use chatting_server::{
    error::{Code, Lang},
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
const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// Where it is not, `UPDATE_DOCS=1 cargo test --test it documents` writes it anew.
#[actix_web::test]
async fn docs_openapi_json_is_what_is_served_with_the_default_settings_and_embedded_rooms() {
    let app = spawn_app(|_| {}).await;
    let served = get(app.addr, "/openapi.json").await.json();
    let text = serde_json::to_string_pretty(&served).unwrap() + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
        return std::fs::write(file, text).unwrap();
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
