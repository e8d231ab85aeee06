//! `Idempotency-Key` over HTTP (rule 17): the same key and text gets the first answer, also after a restart.

use crate::support::{
    app::{TestApp, spawn_app, spawn_in},
    http::Response,
};

async fn post(app: &TestApp, user: i64, text: &str, key: &str) -> Response {
    let bearer = format!("Bearer {}", app.token(user));
    let headers = [("Authorization", bearer.as_str()), ("Idempotency-Key", key)];
    let body = serde_json::json!({ "text": text }).to_string();
    app.client()
        .await
        .post_json("/v1/rooms/12/messages", &headers, body)
        .await
}

#[actix_web::test]
async fn rule_17_the_same_key_and_text_gets_the_first_answer_also_after_a_restart() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let first = post(&app, 7, "hi", "\"a-key\"").await;
    assert_eq!(first.status, 201, "{first:?}");
    let again = post(&app, 7, "hi", "a-key").await;
    assert_eq!(
        (again.status, again.json()),
        (201, first.json()),
        "quoted or bare is one key"
    );
    let other = post(&app, 7, "other", "a-key").await;
    assert_eq!(
        (other.status, other.json()["code"].as_str()),
        (422, Some("idempotency_conflict"))
    );
    assert_eq!(
        post(&app, 8, "hi", "a-key").await.json()["seq"],
        2,
        "another sender's key is another key"
    );
    assert_eq!(presenter.next_json().await["message"], "hi");
    assert_eq!(presenter.next_json().await["message"], "hi");
    let (_, dir, settings) = app.stop().await;
    let app = spawn_in(dir, settings).await;
    // Even though nobody could take a new message now.
    let after = post(&app, 7, "hi", "a-key").await;
    assert_eq!(after.status, 201);
    for field in ["id", "seq", "epoch", "sent_at"] {
        assert_eq!(after.json()[field], first.json()[field], "{field}");
    }
    assert_eq!(post(&app, 7, "other", "a-key").await.status, 422);
    assert_eq!(app.sqlite_log(12).await.len(), 2);
}

#[actix_web::test]
async fn a_bad_key_is_named_and_a_full_table_refuses_only_messages_with_a_key() {
    let app = spawn_app(|settings| {
        settings.idempotency.max = 3;
        settings.idempotency.sender_max = 2;
    })
    .await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    for key in ["", "\"\"", "with space", &"x".repeat(256)] {
        let bad = post(&app, 7, "hi", key).await;
        assert_eq!(
            (bad.status, bad.json()["code"].as_str()),
            (400, Some("bad_request")),
            "{key}"
        );
        assert!(bad.json()["detail"].as_str().unwrap().contains("Idempotency-Key"));
    }
    assert_eq!(post(&app, 7, "hi", "1").await.status, 201);
    assert_eq!(post(&app, 7, "hi", "2").await.status, 201);
    for (user, key, status) in [(7, "3", 503), (8, "1", 201), (9, "1", 503), (7, "1", 201)] {
        assert_eq!(post(&app, user, "hi", key).await.status, status, "{user} {key}");
    }
    assert_eq!(app.post(12, 9, "without a key").await.status, 201);
}

#[actix_web::test]
async fn a_legacy_sender_may_use_a_key_too() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    let token = app.token(7);
    let headers = [("token", token.as_str()), ("Idempotency-Key", "k")];
    for _ in 0..3 {
        let body = r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#;
        let answer = app.client().await.post_json("/send/message", &headers, body).await;
        assert_eq!((answer.status, answer.text()), (200, ""));
    }
    assert_eq!(app.sqlite_log(12).await.len(), 1);
}
