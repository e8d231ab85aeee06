//! Rule 19: how often anyone may do anything, and what who is over is told.

use std::time::Instant;

use futures_util::future::join_all;
use serde_json::json;

use crate::{
    history::{drained, read, recorded, request, token_with},
    support::{
        app::{TestApp, spawn_app, token_of},
        eventually,
        http::Response,
        presenter::{V1, connect, upgrade},
        ws::WsClient,
    },
};

pub fn limited<'a>(answer: &'a Response, burst: &str) -> &'a Response {
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (429, &json!("rate_limited")),
        "{answer:?}"
    );
    assert_eq!(answer.header("ratelimit-limit"), Some(burst));
    assert_eq!(answer.header("ratelimit-remaining"), Some("0"));
    let wait: u32 = answer.header("retry-after").unwrap().parse().unwrap();
    assert_eq!(answer.header("ratelimit-reset"), Some(wait.to_string().as_str()));
    assert!((1..=60).contains(&wait), "{wait}");
    answer
}

/// The same where one more comes every so many seconds: who has had the burst since then is told to wait for all of them, but
/// for what has passed.
pub fn paced(answer: &Response, burst: &str, every: u64, since: Instant) {
    let wait: u64 = limited(answer, burst).header("retry-after").unwrap().parse().unwrap();
    let passed = since.elapsed().as_secs() + 1;
    assert!(
        wait <= every && wait + passed >= every,
        "{wait} of {every} s, after {passed}"
    );
}

/// Statuses of `count` messages of this user, one after the other.
async fn flood(app: &TestApp, presenter: i64, user: i64, count: usize) -> Vec<Response> {
    let mut answers = Vec::new();
    for n in 0..count {
        answers.push(app.post(presenter, user, &n.to_string()).await);
    }
    answers
}

#[actix_web::test]
async fn rule_19_a_sender_that_sends_too_often_is_told_when_it_may_again_and_others_go_on() {
    let app = spawn_app(|settings| {
        settings.limits.sender_per_second = 1;
        settings.limits.sender_burst = 3;
    })
    .await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let answers = flood(&app, 12, 7, 30).await;
    let accepted = answers.iter().filter(|answer| answer.status == 201).count();
    // The bucket and what filled it meanwhile, on however slow a machine.
    assert!((3..30).contains(&accepted), "{accepted} of 30");
    assert!(answers[..3].iter().all(|answer| answer.status == 201));
    let refused = answers.iter().find(|answer| answer.status != 201).unwrap();
    limited(refused, "3");
    assert_eq!(app.post(12, 8, "another user").await.status, 201);
    eventually("the bucket to fill again", async || {
        (app.post(12, 7, "again").await.status == 201).then_some(())
    })
    .await;
    let metric = app.metric("chat_refused_total{code=\"rate_limited\"}").await;
    assert!(metric >= Some(1.0), "{metric:?}");
}

#[actix_web::test]
async fn rule_19_a_legacy_sender_gets_429_in_the_old_shape() {
    let app = spawn_app(|settings| {
        settings.limits.sender_per_second = 1;
        settings.limits.sender_burst = 1;
    })
    .await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let body = r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#;
    let refused = eventually("one too many", async || {
        let answer = app.send(7, body).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(
        (refused.status, refused.json()["message"].as_str()),
        (429, Some("요청이 너무 많습니다"))
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    let told = ["limit", "remaining", "reset"].map(|name| refused.header(&format!("ratelimit-{name}")));
    assert_eq!(told, [Some("1"), Some("0"), Some("1")]);
}

#[actix_web::test]
async fn rule_19_a_crowd_in_one_room_is_limited_and_its_staff_and_other_rooms_are_not() {
    let app = spawn_app(|settings| {
        settings.limits.room_per_second = 1;
        settings.limits.room_burst = 5;
    })
    .await;
    app.go_live(12);
    app.go_live(13);
    let _presenters = (app.presenter(12).await, app.presenter(13).await);
    let mut refused = None;
    for user in 100..200 {
        let answer = app.post(12, user, "one of a crowd").await;
        if answer.status != 201 {
            refused = Some(answer);
            break;
        }
    }
    limited(&refused.unwrap(), "5");
    for _ in 0..10 {
        assert_eq!(app.post(12, 12, "the presenter's own").await.status, 201);
    }
    assert_eq!(app.post(13, 7, "elsewhere").await.status, 201);
}

#[actix_web::test]
async fn rule_19_a_crowd_in_one_room_is_limited_on_the_legacy_route_too() {
    let app = spawn_app(|settings| {
        settings.limits.room_per_second = 1;
        settings.limits.room_burst = 5;
    })
    .await;
    app.go_live(12);
    app.go_live(13);
    let _presenters = (app.presenter(12).await, app.presenter(13).await);
    let to = |room: i64| format!(r#"{{"presenterIdx":{room},"userType":"viewer","textMessage":"one of a crowd"}}"#);
    let mut refused = None;
    for user in 100..200 {
        let answer = app.send(user, &to(12)).await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.unwrap();
    assert_eq!(
        (refused.status, refused.json()["message"].as_str()),
        (429, Some("요청이 너무 많습니다"))
    );
    assert_eq!(refused.header("ratelimit-limit"), Some("5"));
    for _ in 0..10 {
        assert_eq!(app.send(12, &to(12)).await.status, 200, "the presenter's own");
    }
    assert_eq!(app.send(7, &to(13)).await.status, 200, "another room");
}

#[actix_web::test]
async fn rule_19_who_would_wait_for_less_than_a_millisecond_is_told_a_second() {
    let app = spawn_app(|settings| {
        settings.limits.room_per_second = 1100;
        settings.limits.room_burst = 1;
    })
    .await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let refused = eventually("one too many", async || {
        let crowd = (100..130).map(|user| app.post(12, user, "one of a crowd"));
        let answers = join_all(crowd).await;
        answers.into_iter().find(|answer| answer.status == 429)
    })
    .await;
    limited(&refused, "1");
}

#[actix_web::test]
async fn an_address_has_so_many_sessions_and_connects_so_often() {
    let app = spawn_app(|settings| settings.limits.sessions_per_address = 2).await;
    let mut one = connect(app.addr).await;
    let _legacy = app.connect().await;
    let refused = upgrade(app.addr, &[]).await.err().unwrap();
    limited(&refused, "2");
    let counted = async || app.metric("chat_sessions_refused_total{reason=\"rate_limited\"}").await;
    assert_eq!(counted().await, Some(1.0));
    let legacy = WsClient::connect_with(app.addr, "/chatting", &[], None).await;
    assert_eq!(legacy.err().map(|answer| answer.status), Some(429));
    assert_eq!(counted().await, Some(2.0));
    one.send_close(1000, "").await;
    drop(one);
    let _next = eventually("its place", async || upgrade(app.addr, &[]).await.ok()).await;

    let app = spawn_app(|settings| {
        settings.limits.address_per_minute = 1;
        settings.limits.address_burst = 2;
    })
    .await;
    let began = Instant::now();
    let _sessions = (connect(app.addr).await, connect(app.addr).await);
    paced(&upgrade(app.addr, &[]).await.err().unwrap(), "2", 60, began);
}

#[actix_web::test]
async fn behind_a_trusted_proxy_the_address_is_the_clients() {
    let app = spawn_app(|settings| {
        settings.limits.sessions_per_address = 1;
        settings.auth.trusted_proxies = vec!["127.0.0.0/8".into()];
    })
    .await;
    let from = |address| [("X-Forwarded-For", address)];
    let _one = upgrade(app.addr, &from("203.0.113.1")).await.ok().unwrap();
    let _two = upgrade(app.addr, &from("203.0.113.2")).await.ok().unwrap();
    // What the client itself wrote stands before what the proxy adds.
    let spoofed = upgrade(app.addr, &from("198.51.100.7, 203.0.113.1")).await;
    assert_eq!(spoofed.err().map(|answer| answer.status), Some(429));

    let untrusting = spawn_app(|settings| settings.limits.sessions_per_address = 1).await;
    let _session = V1::of(&untrusting, 12, json!({})).await;
    let spoofed = upgrade(untrusting.addr, &from("203.0.113.9")).await;
    assert_eq!(spoofed.err().map(|answer| answer.status), Some(429));
}

#[actix_web::test]
async fn rule_19_deletions_count_against_their_senders_rate() {
    let app = spawn_app(|settings| {
        settings.limits.sender_per_second = 1;
        settings.limits.sender_burst = 2;
    })
    .await;
    let mut all_refused = 0;
    // Who is no staff is refused, and limited as well.
    for (user, which, status) in [(12, "?user_idx=7", 200), (7, "?user_idx=7", 403), (8, "/x", 403)] {
        let path = format!("/v1/rooms/12/messages{which}");
        let token = app.token(user);
        // All at once: one after the other they might take the seconds that let them pass.
        let delete = |_| request(&app, "DELETE", &path, &token, "");
        let (passed, refused): (Vec<_>, Vec<_>) = join_all((0..10).map(delete))
            .await
            .into_iter()
            .partition(|answer| answer.status == status);
        assert!(
            passed.len() >= 2 && !refused.is_empty(),
            "{user}: {} passed",
            passed.len()
        );
        for refused in &refused {
            limited(refused, "2");
        }
        all_refused += refused.len();
    }
    let counted = app.metric("chat_refused_total{code=\"rate_limited\"}").await;
    assert_eq!(counted, Some(all_refused as f64));
}

#[actix_web::test]
async fn rule_19_who_has_too_long_a_name_counts_as_a_sender_too() {
    let app = spawn_app(|settings| {
        settings.limits.sender_per_second = 1;
        settings.limits.sender_burst = 2;
    })
    .await;
    for (user, path) in [(7, "/v1/rooms/12/messages"), (8, "/send/message")] {
        let token = token_of(&app.settings, user, &"x".repeat(65));
        let send = async |_| app.client().await.post_json(path, &[("token", &token)], "{}").await;
        let answers = join_all((0..10).map(send)).await;
        let (passed, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 422);
        assert!(
            passed.len() >= 2 && !refused.is_empty(),
            "{path}: {} passed",
            passed.len()
        );
        assert!(refused.iter().all(|answer| answer.status == 429), "{path}: {refused:?}");
    }
}

/// Where two at once may be deletions that go through a room's past, and one a minute.
async fn few_bulk_deletes() -> TestApp {
    let app = spawn_app(|settings| {
        settings.limits.bulk_deletes_per_minute = 1;
        settings.limits.bulk_deletes_burst = 2;
    })
    .await;
    app.go_live(12);
    app.go_live(13);
    app
}

const OF_ALL_TIME: &str = "from=2000-01-01T00:00:00Z&to=2100-01-01T00:00:00Z";

async fn delete(app: &TestApp, room: i64, which: &str, token: &str) -> Response {
    let path = format!("/v1/rooms/{room}/messages{which}");
    request(app, "DELETE", &path, token, "").await
}

#[actix_web::test]
async fn rule_19_deletions_by_user_or_time_have_a_slower_rate_of_their_senders_and_single_ones_do_not() {
    let app = few_bulk_deletes().await;
    let _presenter = app.presenter(12).await;
    let operator = token_with(1, "operator", json!(null));
    let began = Instant::now();
    // In all rooms together, of either kind.
    for (room, which) in [(12, "?user_idx=7"), (13, &format!("?{OF_ALL_TIME}"))] {
        assert_eq!(delete(&app, room, which, &operator).await.status, 200, "{which}");
    }
    paced(&delete(&app, 14, "?user_idx=7", &operator).await, "2", 60, began);
    let counted = app.metric("chat_refused_total{code=\"rate_limited\"}").await;
    assert_eq!(counted, Some(1.0));
    // What names nothing is told so, and counts as nothing.
    let presenter = app.token(12);
    for _ in 0..3 {
        assert_eq!(delete(&app, 12, "", &presenter).await.status, 400);
    }
    assert_eq!(delete(&app, 12, "?user_idx=8", &presenter).await.status, 200);
    for n in 0..10 {
        let said = app.post(12, 7, &n.to_string()).await.json();
        let one = format!("/{}", said["id"].as_str().unwrap());
        assert_eq!(delete(&app, 12, &one, &operator).await.status, 200);
    }
}

#[actix_web::test]
async fn rule_19_deletions_by_user_or_time_have_twice_that_rate_in_one_room_whoever_of_its_staff_sends_them() {
    let app = few_bulk_deletes().await;
    let staff = [1, 2, 3].map(|user| token_with(user, "operator", json!(null)));
    let began = Instant::now();
    // One who has used up theirs leaves as many for the others.
    for token in &staff[..2] {
        for _ in 0..2 {
            assert_eq!(delete(&app, 12, "?user_idx=7", token).await.status, 200);
        }
    }
    paced(&delete(&app, 12, "?user_idx=7", &staff[2]).await, "4", 30, began);
    let elsewhere = delete(&app, 13, "?user_idx=7", &staff[2]).await;
    assert_eq!(elsewhere.status, 200, "{elsewhere:?}");
}

#[actix_web::test]
async fn a_burst_of_deletions_of_all_time_is_few_acts_and_other_rooms_messages_are_stored() {
    let app = few_bulk_deletes().await;
    let _presenters = (app.presenter(12).await, app.presenter(13).await);
    assert_eq!(app.post(12, 7, "a past").await.status, 201);
    let (which, token) = (format!("?{OF_ALL_TIME}"), app.token(12));
    let burst = (0..100).map(|_| delete(&app, 12, &which, &token));
    let answers = join_all(burst).await;
    let done = answers.iter().filter(|answer| answer.status == 200).count();
    // The bucket and what filled it meanwhile, on however slow a machine.
    assert!((2..10).contains(&done), "{done} of 100");
    for refused in answers.iter().filter(|answer| answer.status != 200) {
        limited(refused, "2");
    }
    assert_eq!(app.post(13, 7, "elsewhere").await.status, 201);
    drained(&app).await;
    assert_eq!(app.sqlite_log(13).await, [(1, "elsewhere".into())]);
    let acts = app.metric("chat_moderation_total{scope=\"span\"}").await;
    assert_eq!(acts, Some(done as f64));
}

/// The path of room 12's newest broadcast.
async fn broadcast(app: &TestApp, token: &str) -> String {
    let id = eventually("the broadcast", async || {
        let page = read(app, "/v1/rooms/12/broadcasts", token).await;
        page["broadcasts"].get(0).map(|broadcast| broadcast["id"].clone())
    })
    .await;
    recorded(app, &id).await;
    format!("/v1/broadcasts/{}", id.as_str().unwrap())
}

#[actix_web::test]
async fn rule_19_corrections_of_broadcasts_count_against_their_senders_rate() {
    let app = spawn_app(|settings| {
        settings.limits.sender_per_second = 1;
        settings.limits.sender_burst = 2;
    })
    .await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "hi").await.status, 201);
    let token = app.token(12);
    let path = broadcast(&app, &token).await;
    let body = json!({ "started_at": null }).to_string();
    let patch = async |token: &str| request(&app, "PATCH", &path, token, &body).await;
    for _ in 0..2 {
        assert_eq!(patch(&token).await.status, 200);
    }
    let refused = eventually("one too many", async || {
        let answer = patch(&token).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    limited(&refused, "2");
    let counted = app.metric("chat_refused_total{code=\"rate_limited\"}").await;
    assert_eq!(counted, Some(1.0));
    assert_eq!(patch(&token_with(1, "operator", json!(null))).await.status, 200);
    // Who is no staff is refused, and limited as well.
    let token = app.token(8);
    let answers = join_all((0..10).map(|_| patch(&token))).await;
    let (passed, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 403);
    assert!(passed.len() >= 2 && !refused.is_empty(), "{} passed", passed.len());
    for refused in &refused {
        limited(refused, "2");
    }
}
