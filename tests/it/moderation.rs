//! Deletion: who may, what is deleted, and who sees what of it.

use chatting_server::settings::AuthMode;
use serde_json::{Value, json};

use crate::{
    history::{drained, read, recorded, request, seqs, servers, token_with},
    support::{
        app::{spawn_app, spawn_in},
        presenter::V1,
        tokens::{claims, signed},
        ws::Incoming,
    },
};

/// The frame that comes next, which is acknowledged.
async fn frame(session: &mut V1) -> Value {
    let frame = session.socket.next_json().await;
    session.ack(frame["seq"].as_u64().unwrap()).await;
    frame
}

fn message(page: &Value, seq: u64) -> Value {
    let messages = page["messages"].as_array().unwrap();
    let found = messages.iter().find(|message| message["seq"] == seq);
    found.unwrap_or_else(|| panic!("no {seq} in {page}")).clone()
}

#[actix_web::test]
async fn a_deleted_message_keeps_its_place_and_no_viewer_ever_sees_its_text_again() {
    for (app, mut session) in servers(|_| {}).await {
        for n in 1..=3 {
            assert_eq!(app.post(12, 7, &format!("secret {n}")).await.status, 201);
            assert_eq!(frame(&mut session).await["seq"], n);
        }
        let viewer = app.token(8);
        let all = "/v1/rooms/12/messages";
        let id = message(&read(&app, all, &viewer).await, 2)["id"].clone();
        let path = format!("/v1/rooms/12/messages/{}", id.as_str().unwrap());
        let answer = request(&app, "DELETE", &path, &app.token(12), "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let done = answer.json();
        assert_eq!(done["seq"], 4);
        // The presenter is told, in the room's order.
        let told = frame(&mut session).await;
        assert_eq!(
            told,
            json!({
                "type": "moderation", "seq": 4, "id": done["id"], "action": "delete", "target_id": id, "target_seq": 2,
                "by": 12, "sent_at": done["sent_at"],
            })
        );
        for _ in 0..2 {
            let page = read(&app, all, &viewer).await;
            assert_eq!(seqs(&page), [1, 2, 3, 4]);
            assert!(!page.to_string().contains("secret 2"), "{page}");
            let tombstone = message(&page, 2);
            assert_eq!(tombstone["deleted"], true);
            for hidden in ["text", "nickname", "user_idx", "deleted_by", "deleted_at"] {
                assert!(tombstone.get(hidden).is_none(), "{hidden}: {tombstone}");
            }
            assert_eq!(message(&page, 4)["target_seq"], 2);
            assert_eq!(seqs(&read(&app, &format!("{all}?q=secret"), &viewer).await), [1, 3]);
            assert_eq!(seqs(&read(&app, &format!("{all}?user_idx=7"), &viewer).await), [1, 3]);
            let staff = app.token(12);
            let marked = message(&read(&app, all, &staff).await, 2);
            assert_eq!(
                (&marked["text"], &marked["deleted"]),
                (&"secret 2".into(), &true.into())
            );
            assert_eq!(
                (&marked["deleted_by"], &marked["deleted_at"]),
                (&12.into(), &done["sent_at"])
            );
            assert_eq!(seqs(&read(&app, &format!("{all}?q=secret"), &staff).await), [1, 2, 3]);
            drained(&app).await;
        }
        // Again: nothing is left to do, and nothing is numbered.
        assert_eq!(request(&app, "DELETE", &path, &app.token(12), "").await.status, 204);
        assert_eq!(app.post(12, 7, "next").await.json()["seq"], 5);
        assert_eq!(app.metric("chat_moderation_total{scope=\"message\"}").await, Some(1.0));
        assert_eq!(app.metric("chat_accepted_total").await, Some(4.0));
        for missing in [
            "019b76da-a800-7000-8000-000000000001",
            "x",
            done["id"].as_str().unwrap(),
        ] {
            let path = format!("/v1/rooms/12/messages/{missing}");
            assert_eq!(
                request(&app, "DELETE", &path, &app.token(12), "").await.status,
                404,
                "{missing}"
            );
        }
        // By another room's address it is not there.
        let elsewhere = path.replace("/12/", "/13/");
        assert_eq!(
            request(&app, "DELETE", &elsewhere, &app.token(13), "").await.status,
            404
        );
    }
}

#[actix_web::test]
async fn all_of_a_user_or_of_a_time_goes_as_far_as_it_was_said_before() {
    for (app, _session) in servers(|_| {}).await {
        for user in [7, 8, 7, 9] {
            assert_eq!(app.post(12, user, "text").await.status, 201);
        }
        let operator = token_with(1, "operator", Value::Null);
        let delete =
            async |query: &str| request(&app, "DELETE", &format!("/v1/rooms/12/messages?{query}"), &operator, "").await;
        assert_eq!(delete("user_idx=7").await.json()["seq"], 5);
        assert_eq!(app.post(12, 7, "after").await.json()["seq"], 6);
        let deleted = async || {
            let page = read(&app, "/v1/rooms/12/messages", &app.token(3)).await;
            let messages = page["messages"].as_array().unwrap().clone();
            let gone = messages.iter().filter(|message| message["deleted"] == true);
            gone.map(|message| message["seq"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(deleted().await, [1, 3]);
        let page = read(&app, "/v1/rooms/12/messages", &operator).await;
        let time = |seq| message(&page, seq)["sent_at"].as_str().unwrap().to_owned();
        assert_eq!(
            delete(&format!("from={}&to={}", time(4), time(4))).await.json()["seq"],
            7
        );
        let same_time: Vec<u64> = (1..=6).filter(|seq| *seq != 5 && time(*seq) == time(4)).collect();
        let mut wanted = [&[1, 3][..], &same_time].concat();
        wanted.sort_unstable();
        wanted.dedup();
        assert_eq!(deleted().await, wanted);
        drained(&app).await;
        assert_eq!(deleted().await, wanted);
        // A time in which nothing was said; the act tells it as it was asked for, from the spool and from the store.
        let nothing = delete("from=2020-01-01T00:00:00Z&to=2020-01-01T00:00:01Z").await;
        assert_eq!(nothing.json()["seq"], 8, "{nothing:?}");
        for _ in 0..2 {
            let act = message(&read(&app, "/v1/rooms/12/messages", &app.token(3)).await, 8);
            assert_eq!(
                (&act["from"], &act["to"]),
                (&"2020-01-01T00:00:00.000Z".into(), &"2020-01-01T00:00:01.000Z".into())
            );
            assert_eq!(deleted().await, wanted);
            drained(&app).await;
        }
        for (query, named) in [
            ("", "user_idx"),
            (
                "user_idx=7&from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z",
                "user_idx",
            ),
            ("from=2026-01-01T00:00:00Z", "from and to"),
            ("from=2026-01-01T00:00:01Z&to=2026-01-01T00:00:00Z", "after to"),
            ("user_idx=-7", "0 to"),
            ("everything=1", "everything"),
        ] {
            let answer = delete(query).await;
            assert_eq!(answer.status, 400, "{query}: {answer:?}");
            assert!(
                answer.json()["detail"].as_str().unwrap().contains(named),
                "{query}: {answer:?}"
            );
        }
    }
}

#[actix_web::test]
async fn staff_whose_nickname_is_longer_than_one_may_be_delete_all_the_same_under_the_beginning_of_it() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let _session = V1::of(&app, 12, json!({})).await;
    let mut long = claims(90);
    long["role"] = "operator".into();
    long["nickname"] = "긴".repeat(65).into();
    let path = "/v1/rooms/12/messages?user_idx=7";
    let deleted = request(&app, "DELETE", path, &signed(&long), "").await;
    assert_eq!(deleted.status, 200, "{deleted:?}");
    drained(&app).await;
    let id = deleted.json()["id"].as_str().unwrap().parse().unwrap();
    let act = app.state.history.store().find(id).await.unwrap().unwrap().event;
    assert_eq!(act.chat.nickname.as_str(), "긴".repeat(64));
}

#[actix_web::test]
async fn no_viewer_is_told_whose_messages_were_deleted_and_staff_is() {
    // A number that no id and no time has in it.
    const AUTHOR: i64 = 707_070_707_070;
    for (app, _session) in servers(|_| {}).await {
        for user in [AUTHOR, 8, AUTHOR] {
            assert_eq!(app.post(12, user, "text").await.status, 201);
        }
        let path = format!("/v1/rooms/12/messages?user_idx={AUTHOR}");
        let operator = token_with(1, "operator", Value::Null);
        assert_eq!(request(&app, "DELETE", &path, &operator, "").await.status, 200);
        let page = read(&app, "/v1/rooms/12/broadcasts", &operator).await;
        let replay = format!(
            "/v1/broadcasts/{}/replay",
            page["broadcasts"][0]["id"].as_str().unwrap()
        );
        for _ in 0..2 {
            for path in ["/v1/rooms/12/messages", replay.as_str()] {
                let seen = read(&app, path, &app.token(8)).await;
                assert!(!seen.to_string().contains(&AUTHOR.to_string()), "{path}: {seen}");
                let told = message(&read(&app, path, &app.token(12)).await, 4);
                assert_eq!(
                    (&told["target_user_idx"], &told["by"]),
                    (&AUTHOR.into(), &1.into()),
                    "{path}"
                );
            }
            let act = message(&read(&app, "/v1/rooms/12/messages", &app.token(8)).await, 4);
            assert_eq!((&act["type"], &act["action"]), (&"moderation".into(), &"delete".into()));
            drained(&app).await;
        }
        // Nor has a file any of it where deletions are left out.
        let export = replay.replace("/replay", "/export?deleted=omit");
        let file = request(&app, "GET", &export, &app.token(12), "").await;
        assert!(
            file.status == 200 && !file.text().contains(&AUTHOR.to_string()),
            "{file:?}"
        );
    }
}

#[actix_web::test]
async fn a_legacy_presenter_is_told_nothing_and_misses_nothing() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut legacy = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "one").await.status, 201);
    let path = "/v1/rooms/12/messages?user_idx=7";
    assert_eq!(request(&app, "DELETE", path, &app.token(12), "").await.status, 200);
    assert_eq!(app.post(12, 7, "two").await.json()["seq"], 3);
    assert_eq!(request(&app, "DELETE", path, &app.token(12), "").await.status, 200);
    assert!(legacy.next_text().await.contains("one"));
    assert!(legacy.next_text().await.contains("two"));
    legacy.send_text("ping").await;
    assert_eq!(legacy.next().await, Incoming::Text("pong".into()));
    // The next session goes on behind it: neither message comes twice.
    drop(legacy);
    app.without_session(12).await;
    let mut next = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "three").await.json()["delivery"], "delivered");
    assert!(next.next_text().await.contains("three"));
}

#[actix_web::test]
async fn what_was_deleted_while_a_legacy_presenter_was_away_is_never_told_it() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let legacy = app.presenter(12).await;
    drop(legacy);
    app.without_session(12).await;
    for text in ["one", "secret", "two"] {
        let answer = app.post(12, if text == "secret" { 8 } else { 7 }, text).await;
        assert_eq!(answer.json()["delivery"], "held");
    }
    let path = "/v1/rooms/12/messages?user_idx=8";
    assert_eq!(request(&app, "DELETE", path, &app.token(12), "").await.status, 200);
    let mut next = app.presenter(12).await;
    assert_eq!(app.post(12, 8, "three").await.json()["delivery"], "delivered");
    for text in ["one", "two", "three"] {
        assert_eq!(next.next_json().await["message"], text);
    }
    drop(next);
    app.without_session(12).await;
    // Nor after a restart, from the log.
    for (user, text) in [(7, "four"), (8, "secret again"), (7, "five")] {
        assert_eq!(app.post(12, user, text).await.json()["delivery"], "held");
    }
    assert_eq!(request(&app, "DELETE", path, &app.token(12), "").await.status, 200);
    let (_, dir, settings) = app.stop().await;
    let app = spawn_in(dir, settings).await;
    let mut last = app.presenter(12).await;
    assert_eq!(app.post(12, 8, "six").await.status, 201);
    for text in ["four", "five", "six"] {
        assert_eq!(last.next_json().await["message"], text);
    }
}

#[actix_web::test]
async fn a_deletion_needs_no_live_room_survives_a_restart_and_leaves_no_room_behind() {
    let app = spawn_app(|settings| {
        settings.room.sweep_ms = 20;
        settings.room.not_live_ttl_ms = 20;
        settings.room.live_ttl_ms = 20;
        settings.broadcast.resume_seconds = 1;
        settings.session.grace_seconds = 1;
    })
    .await;
    app.go_live(12);
    let session = V1::of(&app, 12, json!({})).await;
    assert_eq!(app.post(12, 7, "one").await.status, 201);
    drop(session);
    app.go_off(12);
    crate::support::eventually("the room to be forgotten", async || {
        app.room(12).await.is_none().then_some(())
    })
    .await;
    let page = read(&app, "/v1/rooms/12/messages", &app.token(12)).await;
    let path = format!("/v1/rooms/12/messages/{}", page["messages"][0]["id"].as_str().unwrap());
    let answer = request(&app, "DELETE", &path, &app.token(12), "").await;
    assert_eq!(
        (answer.status, answer.json()["seq"].as_u64()),
        (200, Some(2)),
        "{answer:?}"
    );
    crate::support::eventually("the room to be forgotten again", async || {
        app.room(12).await.is_none().then_some(())
    })
    .await;
    let (_, dir, settings) = app.stop().await;
    let app = spawn_in(dir, settings).await;
    let page = read(&app, "/v1/rooms/12/messages", &app.token(8)).await;
    assert_eq!(seqs(&page), [1, 2]);
    assert_eq!(page["messages"][0]["deleted"], true);
    // The next broadcast goes on behind it, and its presenter is not told of what was deleted before.
    app.go_live(12);
    let mut session = V1::of(&app, 12, json!({})).await;
    assert_eq!(app.post(12, 7, "two").await.json()["seq"], 3);
    assert_eq!(session.chats(1).await, [(3, "two".into())]);
}

#[actix_web::test]
async fn a_presenter_that_comes_back_is_told_what_was_deleted_meanwhile() {
    let app = crate::support::presenter::app().await;
    let mut session = V1::of(&app, 12, json!({})).await;
    assert_eq!(app.post(12, 7, "one").await.status, 201);
    session.chats(1).await;
    session.settle().await;
    drop(session);
    app.without_session(12).await;
    let path = "/v1/rooms/12/messages?user_idx=7";
    assert_eq!(request(&app, "DELETE", path, &app.token(12), "").await.status, 200);
    let mut session = V1::of(&app, 12, json!({})).await;
    assert_eq!(session.welcome["resumed_from"], 2);
    let told = frame(&mut session).await;
    assert_eq!((&told["type"], &told["user_idx"]), (&"moderation".into(), &7.into()));
}

/// Who may delete (docs/HISTORY.md), row by row.
#[actix_web::test]
async fn each_role_may_do_what_the_table_says_and_nothing_else() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let _session = V1::of(&app, 12, json!({})).await;
    let callers = [
        ("a viewer", app.token(7), false),
        ("another presenter", app.token(13), false),
        ("the presenter", app.token(12), true),
        (
            "a moderator of the room",
            token_with(20, "moderator", json!([12, 14])),
            true,
        ),
        (
            "a moderator of another room",
            token_with(21, "moderator", json!([14])),
            false,
        ),
        (
            "a moderator of no room",
            token_with(22, "moderator", Value::Null),
            false,
        ),
        ("a moderator of all", token_with(23, "moderator", json!("*")), true),
        ("an operator", token_with(24, "operator", Value::Null), true),
        (
            "someone who calls himself presenter",
            token_with(25, "presenter", json!("*")),
            false,
        ),
    ];
    for (who, token, staff) in callers {
        assert_eq!(app.post(12, 7, "text").await.status, 201);
        let page = read(&app, "/v1/rooms/12/messages?limit=1", &token).await;
        let id = page["messages"][0]["id"].as_str().unwrap().to_owned();
        let broadcasts = read(&app, "/v1/rooms/12/broadcasts", &token).await;
        let broadcast = broadcasts["broadcasts"][0]["id"].as_str().unwrap().to_owned();
        read(&app, &format!("/v1/broadcasts/{broadcast}"), &token).await;
        read(&app, &format!("/v1/broadcasts/{broadcast}/replay"), &token).await;
        recorded(&app, &broadcasts["broadcasts"][0]["id"]).await;
        let start = json!({ "started_at": null }).to_string();
        for (method, path, body) in [
            ("DELETE", format!("/v1/rooms/12/messages/{id}"), ""),
            ("DELETE", "/v1/rooms/12/messages?user_idx=1000".into(), ""),
            ("PATCH", format!("/v1/broadcasts/{broadcast}"), start.as_str()),
        ] {
            let answer = request(&app, method, &path, &token, body).await;
            let wanted = if staff { 200 } else { 403 };
            assert_eq!(answer.status, wanted, "{who}: {method} {path}: {answer:?}");
            if !staff {
                assert_eq!(answer.json()["code"], "forbidden", "{who}");
            }
            let nobody = request(&app, method, &path, "", body).await;
            assert_eq!(nobody.status, 401, "{method} {path}");
        }
        let page = read(&app, "/v1/rooms/12/messages?limit=3", &token).await;
        let seen = page["messages"]
            .as_array()
            .unwrap()
            .iter()
            .find(|message| message["id"] == id.as_str());
        let seen = seen.unwrap_or_else(|| panic!("{who} does not see it: {page}"));
        assert_eq!(
            (&seen["text"], seen.get("deleted")),
            (&json!("text"), staff.then_some(&json!(true))),
            "{who}: staff sees what it deleted, and others could not delete it"
        );
    }
}

#[actix_web::test]
async fn a_gateways_moderator_may_delete_in_the_rooms_that_its_header_names() {
    for (rooms_header, elsewhere) in [("", 200), ("x-rooms", 403)] {
        let app = spawn_app(|settings| {
            settings.auth.mode = AuthMode::Gateway;
            settings.auth.trusted_proxies = vec!["127.0.0.1".into()];
            settings.auth.gateway_role_header = "x-role".into();
            settings.auth.gateway_rooms_header = rooms_header.into();
        })
        .await;
        app.go_live(12);
        app.go_live(13);
        let headers = [
            ("x-forward-userIdx", "20"),
            ("x-role", "moderator"),
            ("x-rooms", "12,14"),
        ];
        for (room, status) in [(12, 200), (13, elsewhere)] {
            let path = format!("/v1/rooms/{room}/messages?user_idx=7");
            let answer = app.client().await.request("DELETE", &path, &headers, "").await;
            assert_eq!(answer.status, status, "{rooms_header:?}, room {room}: {answer:?}");
        }
    }
}
