//! `/openapi.json` and `/docs`; scripts/openapi drives the server by the document.

use std::collections::BTreeSet;

use chatting_server::settings::{AuthMode, Secret};
use serde_json::{Value, json};

use crate::support::{
    app::{post_v1, spawn_app, token_of},
    http::get,
};

fn operations(document: &Value) -> Vec<String> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().keys();
        methods.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    all.collect()
}

#[actix_web::test]
async fn the_document_has_every_route_that_these_settings_serve_and_no_other() {
    let app = spawn_app(|_| {}).await;
    let answer = get(app.addr, "/openapi.json").await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/json"))
    );
    let document = answer.json();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let all = operations(&document);
    for operation in [
        "POST /v1/rooms/{presenter_idx}/messages",
        "GET /v1/rooms/{presenter_idx}/messages",
        "DELETE /v1/rooms/{presenter_idx}/messages/{id}",
        "PATCH /v1/broadcasts/{id}",
        "GET /v1/broadcasts/{id}/replay",
        "GET /v1/broadcasts/{id}/export",
        "GET /v1/broadcasts/{id}/stats",
        "GET /v1/presenter",
        "POST /send/message",
        "POST /room/live/start",
        "GET /readyz",
    ] {
        assert!(all.contains(&operation.to_owned()), "{operation} is not in {all:?}");
    }
    // Each of them is there: what is not is answered 404 without a body that names what was looked for.
    for operation in &all {
        let (method, path) = operation.split_once(' ').unwrap();
        let path = path
            .replace("{presenter_idx}", "12")
            .replace("{id}", "019b76da-a800-7000-8000-000000000001");
        let answer = app.client().await.request(method, &path, &[], "").await;
        assert!(![404, 405, 500].contains(&answer.status), "{operation}: {answer:?}");
    }
    let bare = spawn_app(|settings| {
        settings.legacy.enabled = false;
        settings.room.mode = chatting_server::settings::RoomMode::Http;
        settings.ops.bind = "127.0.0.1:0".into();
    })
    .await;
    let all = operations(&get(bare.ops.unwrap(), "/openapi.json").await.json());
    assert!(
        all.iter()
            .all(|operation| !operation.contains("/send/") && !operation.contains("/room/")),
        "{all:?}"
    );
    assert_eq!(
        get(bare.addr, "/openapi.json").await.status,
        404,
        "operations are elsewhere"
    );
    assert_eq!(get(bare.addr, "/docs/").await.status, 404);
}

#[actix_web::test]
async fn the_document_has_the_refusals_that_depend_on_the_clients_pace_the_keys_and_the_version() {
    let app = spawn_app(|_| {}).await;
    let document = get(app.addr, "/openapi.json").await.json();
    for (method, path, status) in [
        ("post", "/send/message", "408"),
        ("get", "/token", "503"),
        ("get", "/chatting", "426"),
    ] {
        let answers = &document["paths"][path][method]["responses"];
        assert!(answers[status].is_object(), "{status} of {path}: {answers}");
    }
}

/// What docs/SENDING.md has clients go by, and what a refusal has.
#[actix_web::test]
async fn the_document_has_the_headers_that_tell_when_to_come_again() {
    let app = spawn_app(|settings| {
        settings.limits.lookups_burst = 1;
        settings.limits.lookups_per_minute = 1;
    })
    .await;
    let document = get(app.addr, "/openapi.json").await.json();
    let mut found = 0;
    for operation in operations(&document) {
        let (method, path) = operation.split_once(' ').unwrap();
        let answers = &document["paths"][path][method.to_lowercase()]["responses"];
        for (status, answer) in answers.as_object().unwrap() {
            let headers = answer["headers"].as_object();
            let told: Vec<&str> = headers.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
            let expected = match status.as_str() {
                "429" => &[
                    "RateLimit-Limit",
                    "RateLimit-Remaining",
                    "RateLimit-Reset",
                    "Retry-After",
                ][..],
                "503" if path != "/readyz" => &["Retry-After"],
                _ => &[],
            };
            assert_eq!(told, expected, "{status} of {operation}");
            found += usize::from(!told.is_empty());
        }
    }
    assert!(found > 20, "{found}");
    app.go_live(12);
    let token = token_of(&app.settings, 7, "haru");
    let mut client = app.client().await;
    // Nobody presents in either, so both have to be asked about.
    for (room, status) in [(12, 503), (13, 429)] {
        let answer = post_v1(&mut client, room, &token, "hi").await;
        assert_eq!(answer.status, status, "{answer:?}");
        let path = "/v1/rooms/{presenter_idx}/messages";
        let told = &document["paths"][path]["post"]["responses"][status.to_string()]["headers"];
        for (name, header) in told.as_object().unwrap() {
            assert_eq!(header["schema"]["type"], "integer");
            let value = answer.header(name).unwrap_or_else(|| panic!("no {name}: {answer:?}"));
            assert!(value.parse::<u32>().is_ok(), "{name}: {value}");
        }
    }
}

#[actix_web::test]
async fn each_operation_that_wants_a_token_says_that_the_keys_to_judge_it_by_may_not_be_there() {
    let app = spawn_app(|_| {}).await;
    let document = get(app.addr, "/openapi.json").await.json();
    let mut found = 0;
    for operation in operations(&document) {
        let (method, path) = operation.split_once(' ').unwrap();
        let told = &document["paths"][path][method.to_lowercase()];
        let told_by_code = path.starts_with("/v1/") || path.starts_with("/room/");
        if told["security"].is_null() || !told_by_code {
            continue;
        }
        let refused = told["responses"]["503"]["description"].as_str().unwrap_or_default();
        assert!(refused.contains("`keys_unavailable`"), "{operation}: {refused}");
        found += 1;
    }
    assert!(found > 10, "{found}");
}

#[actix_web::test]
async fn each_operation_has_a_public_name_that_tells_what_it_does() {
    let app = spawn_app(|_| {}).await;
    let document = get(app.addr, "/openapi.json").await.json();
    let all = operations(&document);
    let names: BTreeSet<&str> = all
        .iter()
        .map(|operation| {
            let (method, path) = operation.split_once(' ').unwrap();
            document["paths"][path][method.to_lowercase()]["operationId"]
                .as_str()
                .unwrap()
        })
        .collect();
    assert_eq!(names.len(), all.len(), "{names:?}");
    // Generated clients have methods of these names, all in one place.
    for name in &names {
        assert!(name.split('_').count() >= 2, "{name}");
    }
    for name in [
        "get_token_user",
        "send_legacy_message",
        "start_embedded_broadcast",
        "open_presenter_session",
    ] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
}

#[actix_web::test]
async fn both_ways_of_sending_take_an_idempotency_key() {
    let app = spawn_app(|_| {}).await;
    let document = get(app.addr, "/openapi.json").await.json();
    let key = |path: &str| {
        let parameters = document["paths"][path]["post"]["parameters"].as_array();
        let key = parameters.and_then(|all| all.iter().find(|one| one["name"] == "Idempotency-Key"));
        key.unwrap_or_else(|| panic!("none at {path}")).clone()
    };
    assert_eq!(key("/send/message"), key("/v1/rooms/{presenter_idx}/messages"));
}

#[actix_web::test]
async fn the_readme_has_every_route_and_the_history_every_field_of_a_broadcast() {
    let app = spawn_app(|_| {}).await;
    let document = get(app.addr, "/openapi.json").await.json();
    let readme = include_str!("../../README.md");
    let served = readme.split("## What it serves").nth(1).unwrap();
    let served = served
        .split(
            "
## ",
        )
        .next()
        .unwrap();
    for operation in operations(&document) {
        let last = operation.rsplit('/').find(|part| !part.starts_with('{')).unwrap();
        assert!(served.contains(&format!("/{last}")), "{operation} is not in README.md");
    }
    let history = include_str!("../../docs/HISTORY.md");
    let broadcast = &document["components"]["schemas"]["Broadcast"]["properties"];
    let fields = broadcast.as_object().unwrap();
    assert!(fields.len() > 7, "{broadcast}");
    for field in fields.keys() {
        let named = [format!("`{field}`"), format!("\"{field}\":")];
        assert!(
            named.iter().any(|name| history.contains(name)),
            "{field} is not in docs/HISTORY.md"
        );
    }
}

#[actix_web::test]
async fn the_document_says_how_these_settings_know_who_asks() {
    let document = async |secret: Option<&str>| {
        let app = spawn_app(|settings| {
            let Some(secret) = secret else { return };
            settings.auth.mode = AuthMode::Gateway;
            settings.auth.trusted_proxies = vec!["127.0.0.2".into()];
            settings.auth.gateway_secret = Secret::new(secret);
        })
        .await;
        get(app.addr, "/openapi.json").await.json()
    };
    let token = json!([{ "bearer": [] }, { "token": [] }]);
    let modes = [
        (None, token.clone()),
        (Some(""), json!([{ "forwarded": [] }])),
        (Some("told"), json!([{ "forwarded": [], "gateway_secret": [] }])),
    ];
    for (secret, known_by) in modes {
        let document = document(secret).await;
        let security = |method: &str, path: &str| document["paths"][path][method]["security"].clone();
        for (method, path) in [
            ("post", "/v1/rooms/{presenter_idx}/messages"),
            ("get", "/v1/broadcasts/{id}/replay"),
            ("post", "/send/message"),
        ] {
            assert_eq!(security(method, path), known_by, "{path} {secret:?}");
        }
        // Presenters, and the embedded room server, want a token in either mode.
        let or_in_hello = json!([{ "bearer": [] }, { "token": [] }, {}]);
        assert_eq!(security("get", "/v1/presenter"), or_in_hello);
        assert_eq!(security("post", "/room/live/start"), token);
        assert_eq!(security("get", "/token"), json!([{ "token": [] }]));
        assert_eq!(security("get", "/readyz"), Value::Null);
        let schemes = &document["components"]["securitySchemes"];
        let name = |scheme: &str| schemes[scheme]["name"].clone();
        let there = |name: &str, there: bool| if there { Value::from(name) } else { Value::Null };
        assert_eq!(name("forwarded"), there("x-forward-userIdx", secret.is_some()));
        assert_eq!(
            name("gateway_secret"),
            there("x-gateway-secret", secret == Some("told"))
        );
    }
}

/// What the documents tell of a gateway's headers, and so does each route.
#[actix_web::test]
async fn with_a_gateway_each_route_of_v1_but_the_presenters_goes_by_its_headers_and_the_documents_say_so() {
    let app = spawn_app(|settings| {
        settings.auth.mode = AuthMode::Gateway;
        settings.auth.trusted_proxies = vec!["127.0.0.2".into()];
    })
    .await;
    let token = token_of(&app.settings, 7, "haru");
    let document = get(app.addr, "/openapi.json").await.json();
    let mut asked = 0;
    for operation in operations(&document) {
        let (method, path) = operation.split_once(' ').unwrap();
        if path == "/v1/presenter" || !path.starts_with("/v1/") && path != "/send/message" {
            continue;
        }
        let path = path
            .replace("{presenter_idx}", "12")
            .replace("{id}", "019b76da-a800-7000-8000-000000000001");
        let headers = [("token", token.as_str()), ("Content-Type", "application/json")];
        let answer = app.client().await.request(method, &path, &headers, "{}").await;
        assert_eq!(answer.status, 403, "{operation}: {answer:?}");
        asked += 1;
    }
    assert!(asked > 10, "{asked}");
    for (name, told) in [
        ("docs/MOVING.md", include_str!("../../docs/MOVING.md")),
        ("docs/DEPLOY.md", include_str!("../../docs/DEPLOY.md")),
        ("docs/SECURITY.md", include_str!("../../docs/SECURITY.md")),
    ] {
        let words: Vec<&str> = told.split_whitespace().collect();
        let rule = "very request on `/send/message` and `/v1/…` but `/v1/presenter`";
        assert!(words.join(" ").contains(rule), "{name}");
    }
}

#[actix_web::test]
async fn docs_is_a_page_that_needs_nothing_from_elsewhere() {
    let app = spawn_app(|_| {}).await;
    let answer = get(app.addr, "/docs").await;
    assert_eq!((answer.status, answer.header("location")), (307, Some("/docs/")));
    let page = get(app.addr, "/docs/").await;
    assert_eq!(page.status, 200, "{page:?}");
    assert!(!page.text().contains("://"), "{}", page.text());
    let mut scripts = 0;
    for part in page.text().split("src=\"").skip(1) {
        let path = part.split('"').next().unwrap().trim_start_matches("./");
        assert_eq!(get(app.addr, &format!("/docs/{path}")).await.status, 200, "{path}");
        scripts += 1;
    }
    assert!(scripts > 0);
}

#[actix_web::test]
async fn the_document_allows_what_these_settings_allow() {
    let app = spawn_app(|settings| {
        settings.history.page_default = 20;
        settings.history.page_max = 20;
        settings.figures.top_default = 5;
        settings.figures.top_max = 30;
        settings.message.max_chars = 100;
    })
    .await;
    let document = get(app.addr, "/openapi.json").await.json();
    let parameter = |path: &str, name: &str| {
        let all = document["paths"][path]["get"]["parameters"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap()["schema"].clone()
    };
    for path in [
        "/v1/rooms/{presenter_idx}/messages",
        "/v1/rooms/{presenter_idx}/broadcasts",
        "/v1/broadcasts/{id}/replay",
    ] {
        assert_eq!(parameter(path, "limit")["maximum"], 20, "{path}");
    }
    assert_eq!(parameter("/v1/rooms/{presenter_idx}/messages", "q")["maxLength"], 100);
    let message = &document["components"]["schemas"]["NewMessage"];
    assert_eq!(message["properties"]["text"]["maxLength"], 100);
    assert_eq!(parameter("/v1/broadcasts/{id}/stats", "top")["maximum"], 30);
    assert_eq!(
        parameter("/v1/broadcasts/{id}/export", "deleted")["pattern"],
        "^(mark|omit)$"
    );
}
