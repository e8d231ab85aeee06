//! A room's messages as they are read back over HTTP, the same from both stores.

use chatting_server::settings::Settings;
use serde_json::Value;

use crate::support::{
    app::{TestApp, spawn_app, use_mongodb},
    eventually,
    http::Response,
    presenter::V1,
    tokens::{claims, signed},
};

/// The same server over each store, with presenter 12 live and connected.
pub async fn servers(change: impl Fn(&mut Settings)) -> Vec<(TestApp, V1)> {
    let mut all = Vec::new();
    for mongodb in [false, true] {
        let app = spawn_app(|settings| {
            if mongodb {
                use_mongodb(settings);
            }
            change(settings);
        })
        .await;
        app.go_live(12);
        let session = V1::of(&app, 12, serde_json::json!({})).await;
        all.push((app, session));
    }
    all
}

/// Returns when the store has everything that was answered. The file itself tells: the gauge is 0 too while the writer has not
/// heard of an event yet.
pub async fn drained(app: &TestApp) {
    drained_file(app.settings.log.path.as_ref()).await;
}

/// The same of the spool in this file.
pub async fn drained_file(path: &std::path::Path) {
    let spool = rusqlite::Connection::open(path).unwrap();
    spool.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    eventually("the spool to be empty", async || {
        let count = spool.query_row("SELECT COUNT(*) FROM spool", [], |row| row.get::<_, i64>(0));
        (count.unwrap() == 0).then_some(())
    })
    .await;
}

/// Returns when the store has this broadcast.
pub async fn recorded(app: &TestApp, broadcast: &Value) {
    let id = broadcast.as_str().unwrap().parse().unwrap();
    eventually("the broadcast in the store", async || {
        app.state.history.store().broadcast(id).await.unwrap().map(|_| ())
    })
    .await;
}

pub async fn request(app: &TestApp, method: &str, path: &str, token: &str, body: &str) -> Response {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    app.client().await.request(method, path, &headers, body).await
}

/// A 200's body.
pub async fn read(app: &TestApp, path: &str, token: &str) -> Value {
    let answer = request(app, "GET", path, token, "").await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
    answer.json()
}

pub fn seqs(page: &Value) -> Vec<u64> {
    let messages = page["messages"].as_array().unwrap();
    messages
        .iter()
        .map(|message| message["seq"].as_u64().unwrap())
        .collect()
}

/// A token with a role.
pub fn token_with(user: i64, role: &str, rooms: Value) -> String {
    let mut claims = claims(user);
    claims["role"] = role.into();
    claims["rooms"] = rooms;
    signed(&claims)
}

async fn say(app: &TestApp, user: i64, text: &str) -> Value {
    let answer = app.post(12, user, text).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

#[actix_web::test]
async fn pages_lead_through_a_room_both_ways_with_everything_once() {
    for (app, _session) in servers(|_| {}).await {
        let mut told = Vec::new();
        for n in 1..=25 {
            told.push(say(&app, 7, &format!("m{n}")).await);
        }
        let token = app.token(8);
        for (direction, first) in [("before", String::new()), ("after", "&after=0".into())] {
            let (mut all, mut start) = (Vec::new(), first);
            loop {
                let page = read(&app, &format!("/v1/rooms/12/messages?limit=10{start}"), &token).await;
                let seqs = seqs(&page);
                assert!(seqs.len() <= 10 && seqs.is_sorted(), "{page}");
                match direction {
                    "before" => all.splice(0..0, seqs).for_each(drop),
                    _ => all.extend(seqs),
                }
                let Some(next) = page["next"].as_u64() else {
                    break;
                };
                start = format!("&{direction}={next}");
            }
            assert_eq!(all, (1..=25).collect::<Vec<_>>(), "{direction}");
        }
        let newest = read(&app, "/v1/rooms/12/messages?limit=1", &token).await;
        let message = &newest["messages"][0];
        let sent = &told[24];
        for field in ["seq", "id", "epoch", "sent_at"] {
            assert_eq!(message[field], sent[field], "{field}");
        }
        assert_eq!(
            (&message["type"], &message["text"], &message["user_idx"]),
            (&"chat".into(), &"m25".into(), &7.into())
        );
        assert_eq!(
            (&message["nickname"], &message["role"]),
            (&"kim".into(), &"viewer".into())
        );
        assert!(
            message["broadcast_id"].is_string() && message.get("deleted").is_none(),
            "{message}"
        );
        let empty = read(&app, "/v1/rooms/99/messages", &token).await;
        assert_eq!(empty, serde_json::json!({ "messages": [], "next": null }));
    }
}

/// All that pages lead to from `start` on, each of at most so many bytes of messages; `next` goes on as `direction`.
async fn pages_within(app: &TestApp, path: &str, direction: &str, start: &str, most: usize) -> Vec<Vec<u64>> {
    let (mut all, mut start) = (Vec::new(), start.to_owned());
    loop {
        let page = read(app, &format!("{path}{start}"), &app.token(8)).await;
        let lengths = page["messages"].as_array().unwrap().iter();
        let bytes: usize = lengths.map(|message| message.to_string().len()).sum();
        let seqs = seqs(&page);
        assert!(bytes <= most || seqs.len() == 1, "{bytes} bytes of {seqs:?}");
        let next = match &page["next"] {
            Value::String(cursor) => cursor.clone(),
            next => next.to_string(),
        };
        // A replay of what goes on has always a next one.
        if !seqs.is_empty() {
            all.push(seqs);
        } else if next != "null" {
            return all;
        }
        if next == "null" {
            return all;
        }
        start = format!("&{direction}={next}");
    }
}

#[actix_web::test]
async fn a_page_ends_at_its_bytes_with_one_message_at_least_and_the_next_one_goes_on_there() {
    // As JSON each is of 12,000 bytes and some hundred more.
    let long = "\u{1}".repeat(2000);
    for (most, on_a_page) in [(30_000, 2), (1024, 1)] {
        for (app, _session) in servers(|settings| settings.history.page_bytes = most).await {
            for n in 0..5 {
                say(&app, 7, &long).await;
                say(&app, 7, &format!("short {n}")).await;
            }
            say(&app, 7, &long).await;
            let list = read(&app, "/v1/rooms/12/broadcasts", &app.token(8)).await;
            let id = list["broadcasts"][0]["id"].as_str().unwrap();
            let replay = format!("/v1/broadcasts/{id}/replay?limit=50");
            for (path, direction, start) in [
                ("/v1/rooms/12/messages?limit=50", "before", ""),
                ("/v1/rooms/12/messages?limit=50", "after", "&after=0"),
                ("/v1/rooms/12/messages?limit=50&user_idx=7", "before", ""),
                ("/v1/rooms/12/messages?limit=50&user_idx=7", "after", "&after=0"),
                (&replay, "cursor", ""),
            ] {
                let mut pages = pages_within(&app, path, direction, start, most).await;
                let longest = pages
                    .iter()
                    .map(|page| page.iter().filter(|seq| *seq % 2 == 1).count())
                    .max();
                assert_eq!(longest, Some(on_a_page), "{path} {direction} {pages:?}");
                if direction == "before" {
                    pages.reverse();
                }
                assert_eq!(pages.concat(), (1..=11).collect::<Vec<_>>(), "{path} {direction}");
            }
        }
    }
}

#[actix_web::test]
async fn messages_are_found_by_user_by_time_and_by_text() {
    for (app, _session) in servers(|_| {}).await {
        let texts = ["안녕하세요", "hello", "HELLO 여러분", "100%", "x", "Straße"];
        let mut times = Vec::new();
        for (n, text) in (0..).zip(texts) {
            let sent = say(&app, 7 + n % 2, text).await;
            times.push(sent["sent_at"].as_str().unwrap().to_owned());
            // The next one is sent at another time.
            eventually("the clock to move on", async || {
                (chatting_actors::wire::v1::timestamp(chatting_actors::clock::system_ms()) > times[n as usize])
                    .then_some(())
            })
            .await;
        }
        let token = app.token(9);
        let find = async |query: &str| seqs(&read(&app, &format!("/v1/rooms/12/messages?{query}"), &token).await);
        for drained_first in [false, true] {
            if drained_first {
                drained(&app).await;
            }
            assert_eq!(find("user_idx=8").await, [2, 4, 6]);
            assert_eq!(find("user_idx=8&limit=1&before=6").await, [4]);
            assert_eq!(find("q=Hello").await, [2, 3]);
            assert_eq!(find("q=%EB%85%95%ED%95%98").await, [1]);
            assert_eq!(find("q=%25").await, [4]);
            assert_eq!(find("q=.").await, [0_u64; 0]);
            assert_eq!(find("q=STRASSE&user_idx=8").await, [6]);
            assert_eq!(find(&format!("from={}&to={}", times[1], times[3])).await, [2, 3, 4]);
            assert_eq!(find(&format!("from={}", times[4])).await, [5, 6]);
            assert_eq!(find(&format!("to={}&after=0&limit=1", times[1])).await, [1]);
            assert_eq!(find(&format!("q=hello&from={}", times[2])).await, [3]);
            assert_eq!(find("after=6").await, [0_u64; 0]);
        }
    }
}

#[actix_web::test]
async fn a_page_of_a_search_that_finds_nothing_in_history_scan_limit_messages_names_a_next_one() {
    for (app, _session) in servers(|settings| settings.history.scan_limit = 10).await {
        for n in 1..=50 {
            say(&app, 7, if n == 1 { "wanted" } else { "not that" }).await;
        }
        let (mut pages, mut start) = (Vec::new(), String::new());
        loop {
            let page = read(&app, &format!("/v1/rooms/12/messages?q=wanted{start}"), &app.token(8)).await;
            pages.push(seqs(&page));
            let Some(next) = page["next"].as_u64() else {
                break;
            };
            start = format!("&before={next}");
        }
        // Ten at a time lead to it, and the last ones may be a page of their own.
        assert!((5..=6).contains(&pages.len()), "{pages:?}");
        assert!(pages[..4].iter().all(Vec::is_empty), "{pages:?}");
        assert_eq!(pages.concat(), [1], "{pages:?}");
    }
}

#[actix_web::test]
async fn anyone_with_a_token_may_read_and_a_bad_query_is_named() {
    let app = spawn_app(|settings| {
        settings.history.page_default = 20;
        settings.history.page_max = 20;
    })
    .await;
    let token = app.token(7);
    let answer = request(&app, "GET", "/v1/rooms/12/messages", "", "").await;
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (401, Some("unauthenticated"))
    );
    for (query, named) in [
        ("limit=0", "limit"),
        ("limit=21", "1 to 20"),
        ("limit=x", "limit"),
        ("before=1&after=2", "before and after"),
        ("before=-1", "before"),
        ("after=9223372036854775808", "after"),
        ("user_idx=-1", "user_idx"),
        ("from=yesterday", "from"),
        ("to=2026-01-01", "to"),
        ("colour=red", "colour"),
    ] {
        let answer = request(&app, "GET", &format!("/v1/rooms/12/messages?{query}"), &token, "").await;
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(named), "{query}: {detail}");
    }
    let long = format!("q={}", "x".repeat(2001));
    let answer = request(&app, "GET", &format!("/v1/rooms/12/messages?{long}"), &token, "").await;
    assert_eq!(answer.status, 400, "{answer:?}");
    for path in ["/v1/rooms/x/messages", "/v1/rooms/-1/messages"] {
        assert_eq!(request(&app, "GET", path, &token, "").await.status, 404, "{path}");
    }
    let answer = request(&app, "PUT", "/v1/rooms/12/messages", &token, "").await;
    assert_eq!(
        (answer.status, answer.header("allow")),
        (405, Some("GET, POST, DELETE"))
    );
}

#[actix_web::test]
async fn more_readers_than_may_be_are_refused_and_a_log_that_cannot_be_read_is_told() {
    let app = spawn_app(|settings| settings.log.readers = 1).await;
    let token = app.token(7);
    let turn = app.state.history.gate().try_acquire(1).unwrap();
    let answer = request(&app, "GET", "/v1/rooms/12/messages", &token, "").await;
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (503, Some("overloaded"))
    );
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert_eq!(
        app.metric("chat_queue_refused_total{queue=\"readers\"}").await,
        Some(1.0)
    );
    drop(turn);
    assert_eq!(
        request(&app, "GET", "/v1/rooms/12/messages", &token, "").await.status,
        200
    );
    let away = std::path::Path::new(&app.settings.log.path).with_extension("away");
    std::fs::rename(&app.settings.log.path, &away).unwrap();
    let answer = request(&app, "GET", "/v1/rooms/12/messages", &token, "").await;
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (503, Some("log_unavailable"))
    );
    std::fs::rename(&away, &app.settings.log.path).unwrap();
    for (outcome, times) in [("busy", 1.0), ("ok", 1.0), ("error", 1.0)] {
        let series = format!("chat_history_reads_total{{outcome=\"{outcome}\"}}");
        assert_eq!(app.metric(&series).await, Some(times), "{series}");
    }
}

#[actix_web::test]
async fn a_page_that_is_just_full_names_no_next_one_where_there_is_none() {
    for (app, _session) in servers(|_| {}).await {
        for n in 1..=12 {
            say(&app, 7 + n % 2, &format!("m{n}")).await;
        }
        let (viewer, staff) = (app.token(7), app.token(12));
        for stored in [false, true] {
            if stored {
                drained(&app).await;
            }
            for (query, found, next) in [
                ("limit=12", 12, None),
                ("limit=11", 11, Some(2)),
                ("limit=6&before=7", 6, None),
                ("limit=5&before=7", 5, Some(2)),
                ("limit=6&after=6", 6, None),
                ("limit=5&after=6", 5, Some(11)),
                ("limit=6&user_idx=7", 6, None),
                ("limit=5&user_idx=7", 5, Some(4)),
                ("limit=6&q=m", 6, Some(7)),
                ("limit=12&q=m", 12, None),
            ] {
                for token in [&viewer, &staff] {
                    let page = read(&app, &format!("/v1/rooms/12/messages?{query}"), token).await;
                    let told = (seqs(&page).len(), page["next"].as_u64());
                    assert_eq!(told, (found, next), "{query}, stored: {stored}: {page}");
                }
            }
        }
        let broadcasts = read(&app, "/v1/rooms/12/broadcasts?limit=1", &viewer).await;
        assert_eq!(broadcasts["broadcasts"].as_array().unwrap().len(), 1);
        assert_eq!(broadcasts["next"], Value::Null);
    }
}

/// RFC 9562, section 4: either case is read.
#[actix_web::test]
async fn an_id_in_a_path_is_read_in_either_case_and_in_one_form() {
    for (app, _session) in servers(|_| {}).await {
        let told = say(&app, 7, "hi").await;
        let staff = app.token(12);
        let broadcasts = read(&app, "/v1/rooms/12/broadcasts", &staff).await;
        recorded(&app, &broadcasts["broadcasts"][0]["id"]).await;
        let broadcast = broadcasts["broadcasts"][0]["id"].as_str().unwrap();
        let upper = broadcast.to_uppercase();
        assert_ne!(upper, broadcast);
        let one = read(&app, &format!("/v1/broadcasts/{upper}"), &staff).await;
        assert_eq!(one["id"], broadcast);
        let message = told["id"].as_str().unwrap();
        for form in [
            message.replace('-', ""),
            format!("{{{message}}}"),
            format!("urn:uuid:{message}"),
        ] {
            let path = format!("/v1/rooms/12/messages/{form}");
            assert_eq!(request(&app, "DELETE", &path, &staff, "").await.status, 404, "{form}");
        }
        let path = format!("/v1/rooms/12/messages/{}", message.to_uppercase());
        assert_eq!(request(&app, "DELETE", &path, &staff, "").await.status, 200);
    }
}
