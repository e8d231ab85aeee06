//! `/openapi.json` and `/docs`; scripts/openapi drives the server by the document.

use serde_json::Value;

use crate::support::{app::spawn_app, http::get};

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
    assert_eq!(parameter("/v1/broadcasts/{id}/stats", "top")["maximum"], 30);
    assert_eq!(
        parameter("/v1/broadcasts/{id}/export", "deleted")["pattern"],
        "^(mark|omit)$"
    );
}
