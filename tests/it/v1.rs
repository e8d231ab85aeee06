//! `POST /v1/rooms/{presenter_idx}/messages`: its answer, its errors, who may send.

use std::io::Write;

use chatting_server::settings::AuthMode;
use flate2::{Compression, write::GzEncoder};
use serde_json::json;

use crate::{
    history::{read, request, token_with},
    support::{
        app::{KEY, TestApp, post_v1, spawn_app, spawn_with_rooms, token_of},
        eventually,
        http::Response,
        presenter::upgrade,
        room_server::RoomServer,
    },
};

async fn app() -> TestApp {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    app
}

async fn raw(app: &TestApp, headers: &[(&str, &str)], path: &str, body: &str) -> Response {
    app.client().await.request("POST", path, headers, body).await
}

fn problem<'a>(answer: &'a Response, status: u16, code: &str) -> &'a Response {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json"),
        "{answer:?}"
    );
    let problem = answer.json();
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(problem["status"], status);
    assert_eq!(problem["type"], format!("urn:chatting-server:problem:{code}"));
    assert!(!problem["title"].as_str().unwrap().is_empty());
    answer
}

#[actix_web::test]
async fn an_accepted_message_is_answered_201_with_its_place() {
    let app = app().await;
    let mut presenter = app.presenter(12).await;
    for seq in 1..=3_u64 {
        let answer = app.post(12, 7, "안녕").await;
        assert_eq!(answer.status, 201, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let body = answer.json();
        let mut keys: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["delivery", "epoch", "id", "sent_at", "seq"]);
        assert_eq!(
            (body["seq"].as_u64(), body["delivery"].as_str()),
            (Some(seq), Some("delivered"))
        );
        let id = uuid::Uuid::parse_str(body["id"].as_str().unwrap()).unwrap();
        assert_eq!(id.get_version_num(), 7);
        let sent_at: jiff::Timestamp = body["sent_at"].as_str().unwrap().parse().unwrap();
        assert_eq!(
            sent_at.as_millisecond() / 1000,
            i64::try_from(id.get_timestamp().unwrap().to_unix().0).unwrap()
        );
        assert_eq!(
            body["sent_at"].as_str().unwrap().len(),
            "2026-01-01T00:00:00.000Z".len()
        );
        assert_eq!(presenter.next_json().await["message"], "안녕");
    }
}

#[actix_web::test]
async fn bad_input_is_named() {
    let app = app().await;
    let _presenter = app.presenter(12).await;
    let bearer = format!("Bearer {}", app.token(7));
    let json_type = ("Content-Type", "application/json");
    let path = "/v1/rooms/12/messages";
    let auth = ("Authorization", bearer.as_str());
    let long = json!({ "text": "가".repeat(2001) }).to_string();
    let fits = json!({ "text": "🙂".repeat(2000) }).to_string();
    assert_eq!(raw(&app, &[auth, json_type], path, &fits).await.status, 201);
    for (body, part) in [
        ("", "EOF"),
        ("{}", "text"),
        ("[]", "array"),
        (r#" ["hi"]"#, "array"),
        ("nonsense", "line 1"),
        (r#"{"text":5}"#, "string"),
        (r#"{"text":null}"#, "string"),
        (r#"{"text":""}"#, "empty"),
        (r#"{"text":"a","text":"b"}"#, "duplicate"),
        (r#"{"text":"a"} more"#, "trailing"),
        (long.as_str(), "2000"),
    ] {
        let answer = raw(&app, &[auth, json_type], path, body).await;
        let answer = problem(&answer, 422, "invalid_message");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(part), "{body}: {detail}");
    }
    // Also where nobody reads it.
    for body in [
        &b"{\"text\":\"\xff\"}"[..],
        b"{\"text\":\"a\",\"o\":\"\xff\"}",
        b"{\"text\":\"a\",\"\xed\xa0\x80\":1}",
    ] {
        let answer = app.client().await.post_json(path, &[auth], body).await;
        let detail = problem(&answer, 422, "invalid_message").json()["detail"].clone();
        assert!(detail.as_str().unwrap().contains("utf-8"), "{detail}");
    }
    problem(
        &raw(&app, &[auth], path, r#"{"text":"a"}"#).await,
        415,
        "unsupported_media_type",
    );
    problem(
        &raw(&app, &[auth, ("Content-Type", "text/plain")], path, r#"{"text":"a"}"#).await,
        415,
        "unsupported_media_type",
    );
    let charset = ("Content-Type", "application/json; charset=utf-8");
    assert_eq!(
        raw(&app, &[auth, charset], path, r#"{"text":"a","userType":"presenter"}"#)
            .await
            .status,
        201
    );
    let huge = json!({ "text": "x".repeat(70_000) }).to_string();
    problem(&raw(&app, &[auth, json_type], path, &huge).await, 413, "too_large");
    for path in [
        "/v1/rooms/x/messages",
        "/v1/rooms/-1/messages",
        "/v1/rooms/9223372036854775808/messages",
        "/v1/nothing",
    ] {
        problem(
            &raw(&app, &[auth, json_type], path, r#"{"text":"a"}"#).await,
            404,
            "not_found",
        );
    }
    let put = app.client().await.request("PUT", path, &[auth], "").await;
    assert_eq!(
        problem(&put, 405, "method_not_allowed").header("allow"),
        Some("GET, POST, DELETE")
    );
    assert_eq!(
        app.room(12).await.unwrap().last_seq.unwrap().0,
        2,
        "what was refused was not numbered"
    );
}

#[actix_web::test]
async fn who_is_not_known_is_refused_with_a_challenge() {
    let app = app().await;
    let path = "/v1/rooms/12/messages";
    let json_type = ("Content-Type", "application/json");
    let none = raw(&app, &[json_type], path, r#"{"text":"a"}"#).await;
    assert_eq!(
        problem(&none, 401, "unauthenticated").header("www-authenticate"),
        Some("Bearer")
    );
    let bad = raw(
        &app,
        &[json_type, ("Authorization", "Bearer x")],
        path,
        r#"{"text":"a"}"#,
    )
    .await;
    let challenge = problem(&bad, 401, "unauthenticated").header("www-authenticate");
    assert_eq!(challenge, Some("Bearer error=\"invalid_token\""));
    let expired = chatting_server::auth::mint(
        &chatting_server::auth::SigningKey::secret(KEY.as_bytes()),
        &chatting_server::auth::Mint {
            user_idx: 7,
            nickname: "kim",
            role: None,
            rooms: &[],
            issued_at: chatting_actors::clock::system_ms() / 1000 - 1000,
            ttl_seconds: 10,
            auth: &app.settings.auth,
        },
    )
    .unwrap();
    let token = [json_type, ("token", expired.as_str())];
    problem(&raw(&app, &token, path, r#"{"text":"a"}"#).await, 401, "token_expired");
    // x-forward headers mean nothing in token mode.
    let spoofed = [
        json_type,
        ("x-forward-userIdx", "7"),
        ("x-forward-email", "e"),
        ("x-forward-nickname", "n"),
    ];
    problem(
        &raw(&app, &spoofed, path, r#"{"text":"a"}"#).await,
        401,
        "unauthenticated",
    );
}

#[actix_web::test]
async fn refusals_have_their_codes() {
    let app = app().await;
    problem(&app.post(13, 7, "hi").await, 409, "broadcast_ended");
    let away = app.post(12, 7, "hi").await;
    assert_eq!(
        problem(&away, 503, "presenter_disconnected").header("retry-after"),
        Some("1")
    );
}

#[actix_web::test]
async fn titles_come_in_korean_and_english() {
    let app = app().await;
    let bearer = format!("Bearer {}", app.token(7));
    let ask = async |language: Option<&str>| {
        let mut headers = vec![("Content-Type", "application/json"), ("Authorization", bearer.as_str())];
        headers.extend(language.map(|language| ("Accept-Language", language)));
        let answer = raw(&app, &headers, "/v1/rooms/13/messages", r#"{"text":"a"}"#).await;
        (
            answer.header("content-language").map(str::to_owned),
            answer.json()["title"].as_str().unwrap().to_owned(),
        )
    };
    let korean = (Some("ko".to_owned()), "방송 종료되었습니다".to_owned());
    let english = (Some("en".to_owned()), "The broadcast has ended".to_owned());
    assert_eq!(ask(Some("ko-KR,ko;q=0.9,en;q=0.8")).await, korean);
    assert_eq!(ask(Some("en;q=0.5, ko;q=0.9")).await, korean);
    assert_eq!(ask(Some("en-US,en;q=0.9,ko;q=0.1")).await, english);
    assert_eq!(ask(Some("fr")).await, english);
    assert_eq!(ask(None).await, english);
}

#[actix_web::test]
async fn rule_18_a_presenters_own_message_comes_back_on_the_socket_and_the_body_gives_no_role() {
    let app = app().await;
    let mut presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 12, "mine").await.status, 201);
    let body = r#"{"presenterIdx":12,"userType":"presenter","textMessage":"pretender"}"#;
    assert_eq!(app.send(7, body).await.status, 200);
    assert_eq!(presenter.next_json().await["message"], "mine");
    assert_eq!(presenter.next_json().await["message"], "pretender");
    app.sqlite_log(12).await;
    let connection = rusqlite::Connection::open(&app.settings.log.path).unwrap();
    let mut rows = connection
        .prepare("SELECT role FROM chatting_log ORDER BY seq")
        .unwrap();
    let roles: Vec<String> = rows
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(roles, ["presenter", "viewer"]);
}

#[actix_web::test]
async fn cors_on_v1_follows_the_setting() {
    let rooms = RoomServer::start().await;
    let app = spawn_with_rooms(&rooms, |settings| {
        settings.cors.origins = vec!["https://chat.example".into()];
    })
    .await;
    let ask = async |method: &str, origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        app.client()
            .await
            .request(method, "/v1/rooms/1/messages", &headers, "")
            .await
    };
    let known = ask("OPTIONS", "https://chat.example").await;
    assert_eq!(known.status, 200);
    assert_eq!(
        known.header("access-control-allow-origin"),
        Some("https://chat.example")
    );
    assert_eq!(known.header("access-control-allow-headers"), Some("authorization"));
    let unknown = ask("OPTIONS", "https://evil.example").await;
    assert_eq!(unknown.header("access-control-allow-origin"), None);
    assert_eq!(unknown.header("access-control-allow-headers"), None);
    assert_eq!(
        ask("GET", "https://chat.example")
            .await
            .header("access-control-allow-origin"),
        Some("https://chat.example")
    );
}

#[actix_web::test]
async fn any_page_may_read_v1_and_open_sessions_where_cors_origins_says_so() {
    let app = spawn_app(|settings| settings.cors.origins = vec!["*".into()]).await;
    let origin = ("Origin", "https://any.example");
    let headers = [
        origin,
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization, idempotency-key"),
    ];
    for method in ["GET", "OPTIONS"] {
        let mut client = app.client().await;
        let answer = client.request(method, "/v1/rooms/1/messages", &headers, "").await;
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{method}");
        let listed = answer.header("access-control-allow-headers");
        let expected = (method == "OPTIONS").then_some("authorization, idempotency-key");
        assert_eq!(listed, expected, "{method}");
    }
    let answer = upgrade(app.addr, &[origin]).await;
    assert!(answer.is_ok(), "{:?}", answer.err());
}

#[actix_web::test]
async fn a_page_of_cors_origins_may_read_when_to_try_again() {
    let app = spawn_app(|settings| {
        settings.cors.origins = vec!["https://chat.example".into()];
        settings.limits.sender_per_second = 1;
        settings.limits.sender_burst = 1;
    })
    .await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let token = app.token(7);
    let too_often = async |path: &str, origin: &str, body: &str| {
        eventually("one too many", async || {
            let headers = [("Origin", origin), ("token", &token)];
            let answer = app.client().await.post_json(path, &headers, body).await;
            (answer.status == 429).then_some(answer)
        })
        .await
    };
    let v1 = ("/v1/rooms/12/messages", r#"{"text":"hi"}"#);
    let legacy = (
        "/send/message",
        r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#,
    );
    let answer = too_often(v1.0, "https://chat.example", v1.1).await;
    let readable = answer.header("access-control-expose-headers").unwrap();
    let readable: Vec<_> = readable.split(", ").collect();
    let standard = [
        "date",
        "connection",
        "content-type",
        "content-length",
        "content-language",
    ];
    for (name, _) in &answer.headers {
        let told = readable.iter().any(|one| one.eq_ignore_ascii_case(name));
        let of_cors = name.starts_with("access-control-") || name == "vary";
        assert!(
            told || of_cors || standard.contains(&name.as_str()),
            "{name} is in {answer:?}"
        );
    }
    assert!(readable.contains(&"Content-Disposition"), "{readable:?}");
    for (path, origin, body) in [
        (v1.0, "https://evil.example", v1.1),
        (legacy.0, "https://chat.example", legacy.1),
    ] {
        let answer = too_often(path, origin, body).await;
        assert_eq!(answer.header("access-control-expose-headers"), None, "{path} {origin}");
    }
}

#[actix_web::test]
async fn many_messages_on_one_connection_keep_their_order() {
    let app = app().await;
    let mut presenter = app.presenter(12).await;
    let (mut client, token) = (app.client().await, app.token(7));
    for n in 0..200_u64 {
        assert_eq!(
            post_v1(&mut client, 12, &token, &n.to_string()).await.json()["seq"],
            n + 1
        );
    }
    for n in 0..200 {
        assert_eq!(presenter.next_json().await["message"], n.to_string());
    }
}

#[actix_web::test]
async fn rule_20_a_text_has_1_to_2000_characters_in_v1_may_be_empty_in_legacy_and_a_nickname_up_to_64() {
    let app = app().await;
    let _presenter = app.presenter(12).await;
    for (length, status) in [(0, 422), (1, 201), (2000, 201), (2001, 422)] {
        assert_eq!(
            app.post(12, 7, &"글".repeat(length)).await.status,
            status,
            "{length} characters"
        );
    }
    let empty = r#"{"presenterIdx":12,"userType":"viewer","textMessage":""}"#;
    assert_eq!(app.send(7, empty).await.status, 200);
    for (length, status) in [(0, 201), (64, 201), (65, 422)] {
        let token = token_of(&app.settings, 7, &"이".repeat(length));
        let answer = post_v1(&mut app.client().await, 12, &token, "hi").await;
        assert_eq!(answer.status, status, "a nickname of {length}: {answer:?}");
    }
}

#[actix_web::test]
async fn behind_a_gateway_only_what_a_route_needs_has_to_be_there() {
    let app = spawn_app(|settings| {
        settings.auth.mode = AuthMode::Gateway;
        settings.auth.trusted_proxies = vec!["127.0.0.1".into()];
    })
    .await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let number = ("x-forward-userIdx", "7");
    let name = ("x-forward-nickname", "kim");
    let (room, messages) = ("/v1/rooms/12", "/v1/rooms/12/messages");
    for path in [room, messages, "/v1/rooms/12/broadcasts"] {
        let answer = app.client().await.request("GET", path, &[number], "").await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let answer = app.client().await.request("GET", path, &[name], "").await;
        problem(&answer, 401, "unauthenticated");
    }
    let send =
        async |headers: &[(&str, &str)]| app.client().await.post_json(messages, headers, r#"{"text":"a"}"#).await;
    assert_eq!(send(&[number, name]).await.status, 201);
    let nameless = send(&[number]).await;
    let detail = problem(&nameless, 401, "unauthenticated").json()["detail"].clone();
    assert!(detail.as_str().unwrap().contains("x-forward-nickname"), "{detail}");
    problem(
        &send(&[number, ("x-forward-nickname", "%zz")]).await,
        401,
        "unauthenticated",
    );
}

/// Nothing is unpacked here: a body that says it is packed is refused for that, and not for what it looks like.
#[actix_web::test]
async fn a_body_with_a_content_coding_is_415_on_v1_and_means_nothing_on_the_old_route() {
    let app = app().await;
    let _presenter = app.presenter(12).await;
    let token = app.token(7);
    let body = r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#;
    for (coding, accepted) in [
        ("identity", true),
        ("Identity", true),
        ("gzip", false),
        ("identity, br", false),
        // What it is often taken for.
        ("UTF-8", false),
        ("", false),
    ] {
        let headers = [
            ("token", token.as_str()),
            ("Content-Type", "application/json"),
            ("Content-Encoding", coding),
        ];
        let answer = raw(&app, &headers, "/v1/rooms/12/messages", r#"{"text":"a"}"#).await;
        if accepted {
            assert_eq!(answer.status, 201, "{coding}");
        } else {
            problem(&answer, 415, "unsupported_media_type");
            assert!(answer.text().contains("Content-Encoding"), "{}", answer.text());
        }
        let legacy = raw(&app, &headers, "/send/message", body).await;
        assert_eq!((legacy.status, legacy.text()), (200, ""), "{coding}");
    }
    // One that is coded is read as it is, too, and is no JSON.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(body.as_bytes()).unwrap();
    let headers = [
        ("token", token.as_str()),
        ("Content-Type", "application/json"),
        ("Content-Encoding", "gzip"),
    ];
    let mut client = app.client().await;
    let legacy = client
        .request("POST", "/send/message", &headers, gzip.finish().unwrap())
        .await;
    assert_eq!(
        (legacy.status, &legacy.json()["error"]),
        (400, &json!("Bad Request")),
        "{legacy:?}"
    );
}

#[actix_web::test]
async fn two_idempotency_keys_that_differ_are_refused_in_either_dialect() {
    let app = app().await;
    let _presenter = app.presenter(12).await;
    let token = app.token(7);
    for (second, accepted) in [("one", true), ("\"one\"", true), ("two", false), ("\"two\"", false)] {
        let headers = [
            ("token", token.as_str()),
            ("Content-Type", "application/json"),
            ("Idempotency-Key", "one"),
            ("Idempotency-Key", second),
        ];
        let answer = raw(&app, &headers, "/v1/rooms/12/messages", r#"{"text":"hi"}"#).await;
        let body = r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#;
        let legacy = raw(&app, &headers, "/send/message", body).await.status;
        if accepted {
            assert_eq!((answer.status, legacy), (201, 200));
        } else {
            problem(&answer, 400, "bad_request");
            assert_eq!(legacy, 400);
        }
    }
    assert_eq!(app.metric("chat_accepted_total").await, Some(1.0));
}

/// A gateway that decides by the path knows one name of each room.
#[actix_web::test]
async fn a_room_has_one_name_in_a_path_and_what_else_a_number_may_be_written_as_is_not_found() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let presenters = [app.presenter(12).await, app.presenter(0).await];
    let operator = token_with(90, "operator", json!([]));
    let ask = async |method: &str, path: &str| request(&app, method, path, &operator, r#"{"text":"hi"}"#).await;
    for name in [
        "012",
        "+12",
        "%2b12",
        "%2B12",
        "00",
        "-0",
        "+0",
        "12%20",
        "%2012",
        "0x0c",
        "1_2",
        "12.0",
        "%EF%BC%91",
        "%31%32",
        "1%32",
        "%30",
    ] {
        for (method, rest) in [
            ("POST", "/messages"),
            ("GET", "/messages"),
            ("DELETE", "/messages?user_idx=7"),
            ("DELETE", "/messages/019b76da-a800-7000-8000-000000000001"),
            ("GET", ""),
            ("GET", "/broadcasts"),
        ] {
            let path = format!("/v1/rooms/{name}{rest}");
            let answer = ask(method, &path).await;
            assert_eq!(answer.status, 404, "{method} {path}: {answer:?}");
            let detail = answer.json()["detail"].clone();
            assert_eq!(
                detail, "a room is named by its presenter's number, 0 to 9223372036854775807",
                "{method} {path}"
            );
        }
    }
    // Nor has the rest of such a path.
    for (method, path) in [
        ("POST", "/v1/rooms/12/%6dessages"),
        ("GET", "/v1/r%6Foms/12"),
        ("DELETE", "/v1/rooms/12/messages/%3019b76da-a800-7000-8000-000000000001"),
    ] {
        assert_eq!(ask(method, path).await.status, 404, "{method} {path}");
    }
    // Nor has a broadcast, or a session.
    let id = eventually("the store to have one", async || {
        let broadcasts = read(&app, "/v1/rooms/12/broadcasts", &operator).await;
        let id = broadcasts["broadcasts"][0]["id"].as_str()?.to_owned();
        let path = format!("/v1/broadcasts/{id}");
        let answer = request(&app, "PATCH", &path, &operator, r#"{"legal_hold":true}"#).await;
        (answer.status == 200).then_some(id)
    })
    .await;
    for (method, rest) in [
        ("GET", ""),
        ("PATCH", ""),
        ("GET", "/stats"),
        ("GET", "/replay"),
        ("GET", "/export?format=ndjson"),
    ] {
        let ask = async |path: &str| request(&app, method, path, &operator, r#"{"legal_hold":true}"#).await;
        let (first, others) = id.split_at(1);
        let mut paths = vec![
            format!("/v1/broadcasts/%3{first}{others}{rest}"),
            format!("/v1/broad%63asts/{id}{rest}"),
            format!("/v%31/broadcasts/{id}{rest}"),
        ];
        if let Some(rest) = rest.strip_prefix('/') {
            let (first, others) = rest.split_at(1);
            paths.push(format!("/v1/broadcasts/{id}/%{:x}{others}", first.as_bytes()[0]));
        }
        for path in paths {
            let answer = ask(&path).await;
            assert_eq!(answer.status, 404, "{method} {path}: {answer:?}");
            assert_eq!(answer.json()["code"], "not_found", "{method} {path}");
        }
        let plain = format!("/v1/broadcasts/{id}{rest}");
        assert_eq!(ask(&plain).await.status, 200, "{method} {plain}");
    }
    for path in ["/v1/pres%65nter", "/v1/%70resenter"] {
        assert_eq!(ask("GET", path).await.status, 404, "{path}");
    }
    for name in ["12", "0", "9223372036854775807"] {
        assert_eq!(ask("GET", &format!("/v1/rooms/{name}")).await.status, 200, "{name}");
    }
    let asked = "/v1/rooms/12/messages?q=%68i";
    assert_eq!(ask("GET", asked).await.status, 200, "{asked}");
    drop(presenters);
}
