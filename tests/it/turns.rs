//! Turns to read the log (`log.readers`): who waits for one, who is refused, and who comes first.

use actix_web::rt::task::JoinHandle;
use chatting_actors::{
    gate::Gate,
    types::{PresenterIdx, Seq, UserIdx},
};
use chatting_server::store::history::{Folded, Query, Start};
use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::{
    history::{read, recorded, request, token_with},
    support::{
        app::{TestApp, spawn_app},
        eventually,
        http::{HttpClient, Response},
        presenter::V1,
    },
};

struct Served {
    app: TestApp,
    _session: V1,
    /// The path of the broadcast.
    broadcast: String,
    /// The path of the message.
    message: String,
}

/// A server with so many turns, on which presenter 12 is live and one message was said.
async fn with_readers(readers: usize) -> Served {
    let app = spawn_app(|settings| {
        settings.log.readers = readers;
        settings.history.staff_wait_seconds = 60;
        settings.server.body_seconds = 60;
    })
    .await;
    app.go_live(12);
    let session = V1::of(&app, 12, json!({})).await;
    let said = app.post(12, 7, "one").await.json();
    let broadcasts = read(&app, "/v1/rooms/12/broadcasts", &app.token(8)).await;
    let id = &broadcasts["broadcasts"][0]["id"];
    recorded(&app, id).await;
    Served {
        broadcast: format!("/v1/broadcasts/{}", id.as_str().unwrap()),
        message: format!("/v1/rooms/12/messages/{}", said["id"].as_str().unwrap()),
        app,
        _session: session,
    }
}

async fn so_many_wait(gate: &Gate, count: usize) {
    eventually("somebody to wait for a turn", async || {
        (gate.waiting() == count).then_some(())
    })
    .await;
}

fn is_busy(path: &str, answer: &Response) {
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (503, &json!("overloaded")),
        "{path}: {answer:?}"
    );
}

/// Asks for a deletion on a connection of its own.
fn delete(app: &TestApp, path: &str, token: String) -> JoinHandle<Response> {
    let (addr, path) = (app.addr, path.to_owned());
    actix_web::rt::spawn(async move {
        let mut client = HttpClient::connect(addr).await;
        client.request("DELETE", &path, &[("token", &token)], "").await
    })
}

#[actix_web::test]
async fn staff_that_finds_every_turn_taken_waits_until_it_can_delete_and_a_viewer_is_refused() {
    let served = with_readers(1).await;
    let app = &served.app;
    let gate = app.state.history.gate();
    let taken = gate.try_acquire(1).unwrap();
    let deleted = delete(app, &served.message, app.token(12));
    so_many_wait(gate, 1).await;
    let refused = request(app, "GET", "/v1/rooms/12/messages?q=zz", &app.token(8), "").await;
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("overloaded")));
    assert_eq!(app.metric("chat_queue_waits_total{queue=\"readers\"}").await, Some(1.0));
    assert_eq!(gate.waiting(), 1);
    drop(taken);
    assert_eq!(deleted.await.unwrap().status, 200);
}

#[actix_web::test]
async fn while_somebody_waits_staff_of_all_rooms_reads_what_it_wants_a_moderator_of_some_in_them_and_a_presenter_only_deletes()
 {
    let served = with_readers(2).await;
    let (app, broadcast) = (&served.app, &served.broadcast);
    // Both turns are free; one of them is for the one who waits.
    let _waiting = app.state.history.gate().begin_wait();
    let reads = [
        "/v1/rooms/12/messages".into(),
        "/v1/rooms/12/messages?q=zz".into(),
        "/v1/rooms/12/broadcasts".into(),
        broadcast.clone(),
        format!("{broadcast}/replay"),
        format!("{broadcast}/replay?from_ms=1"),
        format!("{broadcast}/stats"),
        format!("{broadcast}/export"),
    ];
    let staff = [
        token_with(24, "operator", Value::Null),
        token_with(23, "moderator", json!("*")),
    ];
    // Everybody is the presenter of a room, and anybody may be a moderator of some.
    let others = [
        app.token(8),
        app.token(12),
        token_with(22, "moderator", Value::Null),
        token_with(22, "moderator", json!([13])),
    ];
    for path in &reads {
        for token in &staff {
            let answer = request(app, "GET", path, token, "").await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
        }
        for token in &others {
            is_busy(path, &request(app, "GET", path, token, "").await);
        }
    }
    // The room's own moderator reads what the path tells to be of that room.
    let own = token_with(22, "moderator", json!([12]));
    for path in &reads {
        let answer = request(app, "GET", path, &own, "").await;
        match path.starts_with("/v1/rooms/12/") {
            true => assert_eq!(answer.status, 200, "{path}: {answer:?}"),
            false => is_busy(path, &answer),
        }
    }
    let own = request(app, "GET", "/v1/rooms/8/messages?q=zz", &app.token(8), "").await;
    assert_eq!(own.status, 503, "{own:?}");
    let start = json!({ "started_at": null }).to_string();
    let corrected = request(app, "PATCH", broadcast, &staff[1], &start).await;
    assert_eq!(corrected.status, 200, "{corrected:?}");
    let deleted = request(app, "DELETE", &served.message, &app.token(12), "").await;
    assert_eq!(deleted.status, 200, "{deleted:?}");
}

#[actix_web::test]
async fn a_correction_that_was_made_is_answered_whoever_reads_by_then() {
    let served = with_readers(1).await;
    let (app, broadcast) = (&served.app, &served.broadcast);
    let operator = token_with(24, "operator", Value::Null);
    let body = json!({ "started_at": "2026-01-01T00:00:00.000Z", "legal_hold": true }).to_string();
    let head = format!(
        "PATCH {broadcast} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {operator}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let gate = app.state.history.gate();
    let taken = gate.try_acquire(1).unwrap();
    let mut client = app.client().await;
    client.send_bytes(head.as_bytes()).await;
    so_many_wait(gate, 1).await;
    // Who waits behind the look-up of the broadcast has the turn when that is over, and keeps it.
    let waiting = gate.begin_wait();
    drop(taken);
    let taken = eventually("the look-up to end", async || waiting.acquire_if_free()).await;
    client.send_bytes(body.as_bytes()).await;
    let answer = client.read_response(false).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    drop((taken, waiting));
    let (answer, found) = (answer.json(), read(app, broadcast, &operator).await);
    assert_eq!(answer["started_at"], "2026-01-01T00:00:00.000Z");
    for field in ["id", "started_at", "corrected_from", "legal_hold", "segments"] {
        assert_eq!(answer[field], found[field], "{field}");
    }
}

#[actix_web::test]
async fn one_user_has_half_of_the_turns_at_most_and_keeps_nobody_else_from_reading() {
    let served = with_readers(2).await;
    let app = &served.app;
    let path = "/v1/rooms/12/messages";
    let search = Query {
        presenter: PresenterIdx::new(12).unwrap(),
        start: Start::After(Seq(0)),
        user: None,
        text: Some(Folded::new("zz")),
        from_ms: None,
        to_ms: None,
        deleted_too: false,
        limit: 1,
        scan_limit: 10,
    };
    for user in [7, 12] {
        // Begun, and as long as nobody goes on with it, under way.
        let history = app.state.history.shared(UserIdx::new(user).unwrap());
        let mut under_way = Box::pin(history.page(&search));
        assert!((&mut under_way).now_or_never().is_none());
        let further = request(app, "GET", path, &app.token(user), "").await;
        assert_eq!(
            (further.status, &further.json()["code"]),
            (429, &json!("rate_limited")),
            "{further:?}"
        );
        assert!(further.header("retry-after").is_some(), "{further:?}");
        for rooms in [Value::Null, json!([13]), json!([12])] {
            let moderator = token_with(user, "moderator", rooms);
            let further = request(app, "GET", path, &moderator, "").await;
            assert_eq!(
                (further.status, &further.json()["code"]),
                (429, &json!("rate_limited")),
                "{further:?}"
            );
        }
        for token in [app.token(8), token_with(user, "moderator", json!("*"))] {
            assert_eq!(request(app, "GET", path, &token, "").await.status, 200);
        }
        // That it was refused is not counted as a read of the user's.
        drop(under_way);
        eventually("the search to end", async || {
            let page = request(app, "GET", path, &app.token(user), "").await;
            (page.status == 200).then_some(())
        })
        .await;
    }
}

#[actix_web::test]
async fn who_deletes_in_a_room_of_their_own_has_a_share_of_the_turns_and_a_moderator_waits_behind_no_more() {
    let served = with_readers(2).await;
    let app = &served.app;
    let gate = app.state.history.gate();
    let held = [(); 2].map(|()| gate.try_acquire(1).unwrap());
    let nothing = "/v1/rooms/7/messages/019b76da-a800-7000-8000-000000000001";
    let first = delete(app, nothing, app.token(7));
    so_many_wait(gate, 1).await;
    for _ in 0..9 {
        let further = request(app, "DELETE", nothing, &app.token(7), "").await;
        assert_eq!(
            (further.status, &further.json()["code"]),
            (429, &json!("rate_limited")),
            "{further:?}"
        );
        assert!(further.header("retry-after").is_some(), "{further:?}");
    }
    let moderator = token_with(23, "moderator", json!([12]));
    let moderated = delete(app, &served.message, moderator);
    so_many_wait(gate, 2).await;
    let [turn, other] = held;
    drop(turn);
    assert_eq!(first.await.unwrap().status, 404);
    assert_eq!(moderated.await.unwrap().status, 200);
    drop(other);
    // What was refused is not under way.
    let again = request(app, "DELETE", nothing, &app.token(7), "").await;
    assert_eq!(again.status, 404, "{again:?}");
}
