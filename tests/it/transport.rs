//! What happens on a connection around its upgrade: requests before it, frames right behind it, and upgrades that are none.

use futures_util::FutureExt;
use serde_json::json;

use crate::support::{
    app::spawn_app,
    http::HttpClient,
    presenter::{V1, app, hello, send},
    ws::{Frame, HANDSHAKE, Incoming, PING, TEXT, WsClient},
};

/// A request as it is on the wire.
fn request(path: &str, headers: &[(&str, &str)]) -> String {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

#[actix_web::test]
async fn what_a_client_says_right_behind_its_upgrade_is_heard_and_requests_before_it_are_answered_first() {
    let app = app().await;
    let upgrade = [&HANDSHAKE[..], &[("Sec-WebSocket-Protocol", "chat.v1")]].concat();
    let said = Frame::new(TEXT, hello(12, json!({}))).encode();
    let all = [
        request("/livez", &[]).into_bytes(),
        request("/nowhere", &[]).into_bytes(),
        request("/v1/presenter", &upgrade).into_bytes(),
        said,
    ];
    let mut http = HttpClient::connect(app.addr).await;
    http.send_bytes(&all.concat()).await;
    assert_eq!(http.read_response(false).await.status, 200);
    assert_eq!(http.read_response(false).await.status, 404);
    let answer = http.read_response(false).await;
    assert_eq!(answer.status, 101);
    let mut socket = WsClient::upgraded(http, answer);
    assert_eq!(socket.next_json().await["type"], "welcome");
    send(&app, 1..=1).await;
    assert_eq!(socket.next_json().await["seq"], 1);
}

#[actix_web::test]
async fn a_request_to_upgrade_what_is_no_socket_is_answered_as_ever_and_is_the_connections_last() {
    let app = app().await;
    for (path, status) in [
        ("/livez", 200),
        ("/openapi.json", 200),
        ("/v1/nothing", 404),
        ("/v1/presenter", 400),
    ] {
        let mut http = HttpClient::connect(app.addr).await;
        let plain = app.client().await.request("GET", path, &[], "").await;
        http.send_request("GET", path, &HANDSHAKE, "").await;
        // What comes behind it is no request any more.
        http.send_bytes(b"more").await;
        let answer = http.read_response(false).await;
        assert_eq!(
            (answer.status, answer.header("connection")),
            (status, Some("close")),
            "{path}"
        );
        if path != "/v1/presenter" {
            assert_eq!(answer.text(), plain.text(), "{path}");
        }
        assert!(http.is_closed().await, "{path}");
    }
}

#[actix_web::test]
async fn a_session_goes_on_however_its_frames_are_cut() {
    let app = app().await;
    let upgrade = [("Sec-WebSocket-Protocol", "chat.v1")];
    let mut socket = WsClient::connect_with(app.addr, "/v1/presenter", &upgrade, None)
        .await
        .ok()
        .unwrap();
    for byte in Frame::new(TEXT, hello(12, json!({}))).encode() {
        socket.send_bytes(&[byte]).await;
    }
    assert_eq!(socket.next_json().await["type"], "welcome");
    // More than one read of the server's, in one write of ours.
    let pings: Vec<u8> = (0..40).flat_map(|n| Frame::new(PING, vec![n; 125]).encode()).collect();
    socket.send_bytes(&pings).await;
    for n in 0..40 {
        assert_eq!(socket.next().await, Incoming::Pong(vec![n; 125]));
    }
}

#[actix_web::test]
async fn what_was_asked_before_an_upgrade_is_answered_before_its_body_comes() {
    let app = app().await;
    let mut http = HttpClient::connect(app.addr).await;
    let bearer = format!("Bearer {}", app.token(7));
    let headers = [
        &HANDSHAKE[..],
        &[
            ("Authorization", &bearer),
            ("Content-Type", "application/json"),
            ("Expect", "100-continue"),
        ],
    ]
    .concat();
    let post = request("/v1/rooms/12/messages", &headers).replacen("GET", "POST", 1);
    http.send_bytes(format!("{}{post}", request("/livez", &[])).as_bytes())
        .await;
    assert_eq!(http.read_response(false).await.status, 200);
    http.may_continue().await;
    http.send_bytes(br#"{"text":"whole"}"#).await;
    // A request to upgrade has no length, and the end of the connection does not say that its body is whole.
    http.end_sending().await;
    let answer = http.read_response(false).await;
    assert_eq!(
        (answer.status, answer.header("connection")),
        (400, Some("close")),
        "{answer:?}"
    );
    assert_eq!(app.metric("chat_accepted_total").await, Some(0.0));
}

/// RFC 9110, section 7.8: a server that does not upgrade answers as if it had not been asked to.
#[actix_web::test]
async fn a_message_whose_request_asks_for_an_upgrade_as_well_is_accepted_as_any_other() {
    let app = app().await;
    let _session = V1::of(&app, 12, json!({})).await;
    let bearer = format!("Bearer {}", app.token(7));
    let headers = [&HANDSHAKE[..], &[("Authorization", &bearer)]].concat();
    let mut http = HttpClient::connect(app.addr).await;
    let answer = http
        .post_json("/v1/rooms/12/messages", &headers, r#"{"text":"whole"}"#)
        .await;
    assert_eq!((answer.status, answer.header("connection")), (201, Some("close")));
    // A body that ends before its length is none.
    let mut http = HttpClient::connect(app.addr).await;
    let more = [("Content-Type", "application/json"), ("Content-Length", "17")];
    let post = request("/v1/rooms/12/messages", &[&headers[..], &more].concat()).replacen("GET", "POST", 1);
    http.send_bytes(format!(r#"{post}{{"text":"whole"}}"#).as_bytes()).await;
    http.end_sending().await;
    assert_eq!(http.read_response(false).await.status, 400);
    assert_eq!(app.metric("chat_accepted_total").await, Some(1.0));
}

/// As the JDK's HttpClient asks on every connection, and any client may: what is not taken up ends the connection in actix-web's
/// dispatcher, so the answer says that, and the client does not keep it for its next request.
#[actix_web::test]
async fn an_upgrade_that_is_not_taken_up_is_no_fault_and_its_answer_says_that_the_connection_ends() {
    let app = spawn_app(|settings| settings.ops.bind = "127.0.0.1:0".into()).await;
    app.go_live(12);
    let _session = V1::of(&app, 12, json!({})).await;
    let bearer = format!("Bearer {}", app.token(7));
    let h2c = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA"),
        ("Authorization", bearer.as_str()),
    ];
    for n in 1..=3 {
        let mut http = HttpClient::connect(app.addr).await;
        let answer = http
            .post_json("/v1/rooms/12/messages", &h2c, r#"{"text":"whole"}"#)
            .await;
        assert_eq!((answer.status, answer.header("connection")), (201, Some("close")));
        assert_eq!(answer.json()["seq"], n);
        assert!(http.is_closed().await);
    }
    let ops = app.ops.unwrap();
    for headers in [
        &[("Connection", "Upgrade")][..],
        &[("Connection", "upgrade"), ("Upgrade", "TLS/1.2")],
        &[("Connection", "keep-alive, Upgrade"), ("Upgrade", "h2c")],
    ] {
        for (addr, path, status) in [
            (app.addr, "/", 200),
            (app.addr, "/nowhere", 404),
            (app.addr, "/chatting", 400),
            (ops, "/livez", 200),
        ] {
            let mut http = HttpClient::connect(addr).await;
            let answer = http.request("GET", path, headers, "").await;
            let told = (answer.status, answer.header("connection"));
            assert_eq!(told, (status, Some("close")), "{path} {headers:?}");
            assert!(http.is_closed().await, "{path} {headers:?}");
        }
    }
}

#[actix_web::test]
async fn a_connection_beyond_server_max_connections_of_a_worker_waits_until_another_one_ends() {
    let app = spawn_app(|settings| {
        settings.server.workers = 1;
        settings.server.max_connections = 2;
    })
    .await;
    let mut served = [app.client().await, app.client().await];
    for one in &mut served {
        assert_eq!(one.request("GET", "/livez", &[], "").await.status, 200);
    }
    let mut waits = app.client().await;
    waits.send_request("GET", "/livez", &[], "").await;
    // Whatever the others ask meanwhile is answered first.
    for _ in 0..20 {
        for one in &mut served {
            assert_eq!(one.request("GET", "/livez", &[], "").await.status, 200);
        }
    }
    assert!(waits.read_response(false).now_or_never().is_none());
    drop(served);
    assert_eq!(waits.read_response(false).await.status, 200);
}

#[actix_web::test]
async fn what_a_client_sends_faster_than_its_session_reads_waits_in_its_socket() {
    let app = app().await;
    let mut session = V1::of(&app, 12, json!({})).await;
    send(&app, 1..=1).await;
    session.chat().await;
    // As many as a flood may have, in frames of six bytes: hundreds fit into one read.
    let ack = Frame::new(TEXT, r#"{"type":"ack","seq":1}"#).encode();
    session.socket.send_bytes(&ack.repeat(100)).await;
    let ping = Frame::new(PING, "last").encode();
    session.socket.send_bytes(&ping).await;
    assert_eq!(session.socket.next().await, Incoming::Pong(b"last".to_vec()));
}
