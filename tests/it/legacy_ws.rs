//! The original server's WebSocket, to the byte (docs/LEGACY.md): `/chatting` from the upgrade to the close.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chatting_actors::clock::system_ms;
use chatting_server::{
    auth::{Mint, SigningKey, mint},
    settings::{AuthMode, Settings},
};
use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    app::{KEY, TestApp, post_v1, spawn_app, spawn_in},
    eventually,
    http::{HttpClient, Response, get},
    tokens::bad_tokens,
    within,
    ws::{BINARY, CLOSE, CONTINUATION, Frame, Incoming, PING, TEXT, WsClient},
};

const MAX_FRAME: usize = 32_768;
const TOKEN_EXCEPTION: &str = r#"{"id":"tokenException","response":"reject","message":"Jwt Exception"}"#;
const NO_TOKEN: &str = r#"{"id":"error","message":"룸 idx값이 정상적으로 오지 않습니다."}"#;

/// What a clock shows so many minutes east of Greenwich.
fn hhmm(ms: i64, minutes_east: i64) -> String {
    let of_day = (ms.div_euclid(60_000) + minutes_east).rem_euclid(24 * 60);
    format!("{:02}:{:02}", of_day / 60, of_day % 60)
}

/// The frame of one chat line, of texts as they stand escaped in JSON.
fn chat_frame(nickname: &str, message: &str, time: &str) -> String {
    format!(r#"{{"id":"sendChatting","nickname":"{nickname}","message":"{message}","time":"{time}"}}"#)
}

fn sent_at_ms(answer: &Response) -> i64 {
    assert_eq!(answer.status, 201, "{answer:?}");
    let sent_at: jiff::Timestamp = answer.json()["sent_at"].as_str().unwrap().parse().unwrap();
    sent_at.as_millisecond()
}

/// Posts a line that must be accepted; gives the frame that a presenter in Korea must get of it.
async fn post(app: &TestApp, presenter: i64, text: &str) -> String {
    let answer = app.post(presenter, 7, text).await;
    chat_frame("kim", text, &hhmm(sent_at_ms(&answer), 9 * 60))
}

fn start_frame(token: &str) -> String {
    json!({ "id": "start", "token": token }).to_string()
}

/// Asserts that nothing has been sent to the socket, and that it is alive: the answer to a `ping` is the next that comes.
async fn assert_nothing_came(socket: &mut WsClient) {
    socket.send_text("ping").await;
    assert_eq!(socket.next_text().await, "pong");
}

// ---- frames ------------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn ping_is_answered_pong_before_and_after_start() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut socket = app.connect().await;
    for _ in 0..3 {
        assert_nothing_came(&mut socket).await;
    }
    socket.send_text(&start_frame(&app.token(12))).await;
    for _ in 0..3 {
        assert_nothing_came(&mut socket).await;
    }
}

#[actix_web::test]
async fn a_good_start_is_answered_by_nothing_and_each_message_is_one_frame_to_the_byte() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let before = system_ms();
    let body = json!({ "presenterIdx": 12, "userType": "viewer", "textMessage": "안녕 hi" }).to_string();
    assert_eq!(app.send(7, &body).await.status, 200);
    let expected = [before, system_ms()].map(|ms| chat_frame("kim", "안녕 hi", &hhmm(ms, 9 * 60)));
    let frame = presenter.next_text().await;
    assert!(expected.contains(&frame), "{frame}");
    let expected = post(&app, 12, "둘째").await;
    assert_eq!(presenter.next_text().await, expected);
    assert_nothing_came(&mut presenter).await;
}

#[actix_web::test]
async fn the_gateways_presenter_starts_with_its_token_too() {
    let app = spawn_app(|settings| {
        settings.auth.mode = AuthMode::Gateway;
        settings.auth.trusted_proxies = vec!["127.0.0.1".into()];
    })
    .await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let headers = [
        ("x-forward-userIdx", "7"),
        ("x-forward-email", ""),
        ("x-forward-nickname", "kim"),
    ];
    let body = json!({ "presenterIdx": 12, "userType": "viewer", "textMessage": "hi" }).to_string();
    assert_eq!(
        app.client()
            .await
            .post_json("/send/message", &headers, body)
            .await
            .status,
        200
    );
    assert_eq!(presenter.next_json().await["message"], "hi");
}

#[actix_web::test]
async fn a_bad_token_gets_the_token_exception_and_1000_and_registers_nobody() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut bad: Vec<_> = bad_tokens(12)
        .into_iter()
        .map(|bad| (bad.what, start_frame(&bad.token)))
        .collect();
    bad.push(("empty", r#"{"id":"start","token":""}"#.into()));
    bad.push(("a number", r#"{"id":"start","token":12}"#.into()));
    bad.push(("too long", start_frame(&"x".repeat(20_000))));
    for (what, start) in bad {
        let mut socket = app.connect().await;
        socket.send_text(&start).await;
        assert_eq!(socket.next_text().await, TOKEN_EXCEPTION, "{what}");
        assert_eq!(socket.next_close().await, Some(1000), "{what}");
        assert!(!app.room(12).await.is_some_and(|room| room.session), "{what}");
    }
    assert_eq!(app.post(12, 7, "hi").await.json()["code"], "presenter_disconnected");
}

#[actix_web::test]
async fn a_start_without_a_token_gets_its_error_and_1000() {
    let app = spawn_app(|_| {}).await;
    for start in [
        r#"{"id":"start"}"#,
        r#"{"id":"start","Token":"x"}"#,
        r#" { "id" : "start" , "x" : 1 } "#,
    ] {
        let mut socket = app.connect().await;
        socket.send_text(start).await;
        assert_eq!(socket.next_text().await, NO_TOKEN);
        assert_eq!(socket.next_close().await, Some(1000));
    }
}

#[actix_web::test]
async fn a_bad_start_on_a_started_socket_ends_its_session() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    for (bad, answer) in [
        (start_frame("forged"), TOKEN_EXCEPTION),
        (r#"{"id":"start"}"#.into(), NO_TOKEN),
    ] {
        let mut presenter = app.presenter(12).await;
        presenter.send_text(&bad).await;
        assert_eq!(presenter.next_text().await, answer);
        assert_eq!(presenter.next_close().await, Some(1000));
        app.without_session(12).await;
    }
}

#[actix_web::test]
async fn what_comes_behind_a_bad_start_is_neither_obeyed_nor_answered() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let mut second = app.connect().await;
    let frames = [start_frame("forged"), "ping".into(), start_frame(&app.token(12))];
    let frames = frames.map(|text| Frame::new(TEXT, text).encode());
    second.send_bytes(&frames.concat()).await;
    assert_eq!(second.next_text().await, TOKEN_EXCEPTION);
    // Nothing comes behind it.
    assert_eq!(second.next_close().await, Some(1000));
    let expected = post(&app, 12, "to the first").await;
    assert_eq!(presenter.next_text().await, expected);
}

#[actix_web::test]
async fn a_client_that_leaves_right_behind_what_it_is_closed_for_is_told_why() {
    let app = spawn_app(|_| {}).await;
    for (wrong, answer, code) in [
        (start_frame("forged"), Some(TOKEN_EXCEPTION), 1000),
        (r#"{"id":"start"}"#.into(), Some(NO_TOKEN), 1000),
        ("no JSON".into(), None, 1011),
    ] {
        let mut socket = app.connect().await;
        let leaves = Frame::new(CLOSE, 1000_u16.to_be_bytes());
        let frames = [Frame::new(TEXT, wrong), leaves].map(|frame| frame.encode());
        socket.send_bytes(&frames.concat()).await;
        if let Some(answer) = answer {
            assert_eq!(socket.next_text().await, answer);
        }
        assert_eq!(socket.next_close().await, Some(code));
    }
}

#[actix_web::test]
async fn an_unknown_id_is_named_and_the_socket_stays_open() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut socket = app.connect().await;
    for started in [false, true] {
        if started {
            app.start(&mut socket, 12).await;
        }
        for (frame, named) in [
            (r#"{"id":"dance"}"#, "dance"),
            (r#"{"id":"START","token":"x"}"#, "START"),
            (r#"{"id":" start"}"#, " start"),
            (r#"{"id":"ping"}"#, "ping"),
            (r#"{"id":"pong"}"#, "pong"),
            (r#"{"id":""}"#, ""),
            (r#"{"id":5}"#, "5"),
            (r#"{"id":"sendChatting","nickname":"a","message":"b"}"#, "sendChatting"),
            (r#"{"more":{"id":1},"id":"춤 <b>&'/"}"#, "춤 <b>&'/"),
            (r#"{"id":"a\"b\\c\nd\u0001\u2028\/"}"#, r#"a\"b\\c\nd\u0001\u2028/"#),
        ] {
            socket.send_text(frame).await;
            let expected = format!(r#"{{"id":"error","message":"Invalid message with id {named}"}}"#);
            assert_eq!(socket.next_text().await, expected, "{frame}");
            assert_nothing_came(&mut socket).await;
        }
    }
    let expected = post(&app, 12, "still here").await;
    assert_eq!(socket.next_text().await, expected);
}

#[actix_web::test]
async fn what_is_no_object_with_an_id_closes_1011_and_is_told_nothing() {
    let app = spawn_app(|_| {}).await;
    for frame in [
        "",
        " ",
        "PING",
        "Ping",
        " ping",
        "ping ",
        "ping\n",
        "pong",
        "\"ping\"",
        "\"\"",
        "{}",
        "[]",
        "null",
        "5",
        "true",
        r#"{"id":null}"#,
        r#"{"id":{}}"#,
        r#"{"id":["start"]}"#,
        r#"{"ID":"start"}"#,
        r#"{"token":"x"}"#,
        r#"["id","start"]"#,
        r#"{"id":"start","token":"x""#,
        "{bad",
        "안녕",
        "\u{0}",
    ] {
        let mut socket = app.connect().await;
        socket.send_text(frame).await;
        assert_eq!(socket.next_close().await, Some(1011), "{frame:?}");
    }
    let mut deep = app.connect().await;
    deep.send_text(&"[".repeat(MAX_FRAME)).await;
    assert_eq!(deep.next_close().await, Some(1011));
}

#[actix_web::test]
async fn control_characters_and_line_separators_are_escaped_and_nothing_else_is() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let mut client = app.client().await;
    let rows = [
        ("a\u{2028}b\u{2029}c", r"a\u2028b\u2029c"),
        (
            "\u{0}\u{1}\u{7}\u{b}\u{e}\u{1b}\u{1f}",
            r"\u0000\u0001\u0007\u000b\u000e\u001b\u001f",
        ),
        ("\u{8}\t\n\u{c}\r", r"\b\t\n\f\r"),
        ("\"\\", r#"\"\\"#),
        ("<script>&'/=+</script>", "<script>&'/=+</script>"),
        (
            "\u{7f}\u{80}\u{9f}\u{a0}\u{2027}\u{202a}\u{feff}\u{fffd}\u{ffff}",
            "\u{7f}\u{80}\u{9f}\u{a0}\u{2027}\u{202a}\u{feff}\u{fffd}\u{ffff}",
        ),
        ("😀\u{10ffff}é", "😀\u{10ffff}é"),
    ];
    for (text, shown) in rows {
        // The same as a nickname, behind no gateway but in a token.
        let token = crate::support::app::token_of(&app.settings, 7, text);
        let answer = post_v1(&mut client, 12, &token, text).await;
        let expected = chat_frame(shown, shown, &hhmm(sent_at_ms(&answer), 9 * 60));
        assert_eq!(presenter.next_text().await, expected);
    }
}

#[actix_web::test]
async fn the_time_is_the_wall_clock_of_the_zone() {
    for (zone, minutes_east) in [
        ("Asia/Kathmandu", 5 * 60 + 45),
        ("Pacific/Marquesas", -(9 * 60 + 30)),
        ("Pacific/Kiritimati", 14 * 60),
        ("UTC", 0),
    ] {
        let app = spawn_app(|settings| settings.legacy.zone = zone.into()).await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        let answer = app.post(12, 7, "hi").await;
        let expected = chat_frame("kim", "hi", &hhmm(sent_at_ms(&answer), minutes_east));
        assert_eq!(presenter.next_text().await, expected, "{zone}");
    }
}

// ---- the WebSocket beneath ---------------------------------------------------------------------------------------

#[actix_web::test]
async fn a_message_of_32768_bytes_is_read_whole_and_in_parts() {
    let app = spawn_app(|_| {}).await;
    let text = |length: usize| {
        let (head, tail) = (r#"{"id":"long","pad":""#, r#""}"#);
        format!("{head}{}{tail}", "x".repeat(length - head.len() - tail.len()))
    };
    let expected = r#"{"id":"error","message":"Invalid message with id long"}"#;
    let mut socket = app.connect().await;
    assert_eq!(text(MAX_FRAME).len(), MAX_FRAME);
    socket.send_text(&text(MAX_FRAME)).await;
    assert_eq!(socket.next_text().await, expected);
    for parts in [2, 3, 100, MAX_FRAME] {
        let frames = Frame::fragments(&text(MAX_FRAME), parts);
        assert_eq!(frames.len(), parts);
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        socket.send_bytes(&bytes).await;
        assert_eq!(socket.next_text().await, expected, "{parts} parts");
    }
    assert_nothing_came(&mut socket).await;

    socket
        .send_bytes_regardless(&Frame::new(TEXT, text(MAX_FRAME + 1)).encode())
        .await;
    assert_eq!(socket.next_close().await, Some(1009));
}

#[actix_web::test]
async fn a_longer_message_closes_1009_as_soon_as_that_is_known() {
    let app = spawn_app(|_| {}).await;
    // Only announced, of any length, and in each way to write one.
    let announced = [
        [&[0x81, 0x80 | 126][..], &32_769_u16.to_be_bytes()].concat(),
        [&[0x81, 0x80 | 126][..], &u16::MAX.to_be_bytes()].concat(),
        [&[0x81, 0x80 | 127][..], &32_769_u64.to_be_bytes()].concat(),
        [&[0x81, 0x80 | 127][..], &(1_u64 << 40).to_be_bytes()].concat(),
        [&[0x81, 0x80 | 127][..], &(u64::MAX >> 1).to_be_bytes()].concat(),
        // As the first part of a message, and as a later one.
        [&[0x01, 0x80 | 127][..], &(1_u64 << 40).to_be_bytes()].concat(),
        [
            &[0x01, 0x81, 0, 0, 0, 0, b'x', 0x80, 0x80 | 127][..],
            &(1_u64 << 40).to_be_bytes(),
        ]
        .concat(),
    ];
    join_all(announced.into_iter().map(async |announced| {
        let mut socket = app.connect().await;
        socket.send_bytes(&[&announced[..], &[1, 2, 3, 4]].concat()).await;
        assert_eq!(socket.next_close().await, Some(1009), "{announced:?}");
    }))
    .await;
    // A peer that is busy sending can still read it.
    let mut busy = app.connect().await;
    busy.send_bytes_regardless(&Frame::new(TEXT, "x".repeat(1 << 20)).encode())
        .await;
    assert_eq!(busy.next_close().await, Some(1009));
    // The sum of fragments, each of them short; the last is not waited for.
    let mut socket = app.connect().await;
    let part = |opcode, length: usize| Frame {
        fin: false,
        ..Frame::new(opcode, "x".repeat(length))
    };
    socket.send_frame(&part(TEXT, MAX_FRAME - 1)).await;
    socket.send_frame(&part(CONTINUATION, 1)).await;
    socket.send_frame(&Frame::new(PING, "between")).await;
    assert_eq!(socket.next().await, Incoming::Pong(b"between".into()));
    socket.send_frame(&part(CONTINUATION, 1)).await;
    assert_eq!(socket.next_close().await, Some(1009));
}

#[actix_web::test]
async fn fragmented_frames_work_with_control_frames_between_them() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut socket = app.connect().await;
    for parts in [2, 4] {
        for frame in Frame::fragments("ping", parts) {
            socket.send_frame(&Frame::new(PING, "between")).await;
            assert_eq!(socket.next().await, Incoming::Pong(b"between".into()));
            socket.send_frame(&frame).await;
        }
        assert_eq!(socket.next_text().await, "pong");
    }
    // Cut inside a character, with an empty part and an empty end.
    let bytes = r#"{"id":"춤"}"#.as_bytes();
    for (opcode, payload, fin) in [
        (TEXT, &bytes[..8], false),
        (CONTINUATION, &[], false),
        (CONTINUATION, &bytes[8..], false),
        (CONTINUATION, &[], true),
    ] {
        socket
            .send_frame(&Frame {
                fin,
                ..Frame::new(opcode, payload)
            })
            .await;
    }
    assert_eq!(
        socket.next_text().await,
        r#"{"id":"error","message":"Invalid message with id 춤"}"#
    );
    for frame in Frame::fragments(&start_frame(&app.token(12)), 5) {
        socket.send_frame(&frame).await;
    }
    assert_nothing_came(&mut socket).await;
    eventually("the session in its room", async || {
        app.room(12).await.filter(|room| room.session)
    })
    .await;
    let expected = post(&app, 12, "hi").await;
    assert_eq!(socket.next_text().await, expected);
}

#[actix_web::test]
async fn frames_may_come_a_byte_at_a_time_or_many_at_once() {
    let app = spawn_app(|_| {}).await;
    let mut socket = app.connect().await;
    for byte in Frame::new(TEXT, "ping").encode() {
        socket.send_bytes(&[byte]).await;
    }
    assert_eq!(socket.next_text().await, "pong");
    app.go_live(12);
    let at_once = [
        start_frame(&app.token(12)),
        "ping".into(),
        r#"{"id":"dance"}"#.into(),
        "ping".into(),
    ];
    let at_once: Vec<u8> = at_once
        .iter()
        .flat_map(|text| Frame::new(TEXT, text.as_str()).encode())
        .collect();
    socket.send_bytes(&at_once).await;
    assert_eq!(socket.next_text().await, "pong");
    assert_eq!(
        socket.next_text().await,
        r#"{"id":"error","message":"Invalid message with id dance"}"#
    );
    assert_eq!(socket.next_text().await, "pong");
    let many: Vec<u8> = (0..200).flat_map(|_| Frame::new(TEXT, "ping").encode()).collect();
    socket.send_bytes(&many).await;
    for _ in 0..200 {
        assert_eq!(socket.next_text().await, "pong");
    }
    assert_nothing_came(&mut socket).await;
}

#[actix_web::test]
async fn a_ping_frame_is_answered_with_its_payload_and_a_close_with_its_code() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut socket = app.presenter(12).await;
    for payload in [vec![], b"x".to_vec(), vec![0xff; 125]] {
        socket.send_frame(&Frame::new(PING, payload.clone())).await;
        assert_eq!(socket.next().await, Incoming::Pong(payload));
    }
    socket.send_frame(&Frame::new(10, "nobody asked")).await;
    assert_nothing_came(&mut socket).await;
    for (payload, code) in [
        (1000_u16.to_be_bytes().to_vec(), Some(1000)),
        ([&1001_u16.to_be_bytes()[..], b"bye"].concat(), Some(1001)),
        (4321_u16.to_be_bytes().to_vec(), Some(4321)),
        (vec![], None),
    ] {
        let mut socket = app.presenter(12).await;
        socket.send_frame(&Frame::new(CLOSE, payload)).await;
        match socket.next().await {
            Incoming::Close(answered, _) => assert_eq!(answered, code),
            other => panic!("{other:?}"),
        }
        assert!(matches!(socket.next().await, Incoming::End | Incoming::Reset));
        app.without_session(12).await;
    }
}

#[actix_web::test]
async fn a_binary_frame_closes_1003() {
    let app = spawn_app(|_| {}).await;
    let whole = Frame::new(BINARY, "ping");
    let part = Frame {
        fin: false,
        ..Frame::new(BINARY, "pi")
    };
    for frame in [whole, part, Frame::new(BINARY, ""), Frame::new(BINARY, [0xff, 0xfe])] {
        let mut socket = app.connect().await;
        socket.send_frame(&frame).await;
        assert_eq!(socket.next_close().await, Some(1003), "{frame:?}");
    }
}

#[actix_web::test]
async fn text_that_is_not_utf_8_closes_1007() {
    let app = spawn_app(|_| {}).await;
    for bytes in [
        &[0xff][..],
        b"{\"id\":\"\xc3\x28\"}",
        &[0xed, 0xa0, 0x80],
        &[0xc0, 0xaf],
        &[0xf4, 0x90, 0x80, 0x80],
        &[0xea, 0xb9],
    ] {
        let mut socket = app.connect().await;
        socket.send_frame(&Frame::new(TEXT, bytes)).await;
        assert_eq!(socket.next_close().await, Some(1007), "{bytes:?}");
        let mut socket = app.connect().await;
        let first = Frame {
            fin: false,
            ..Frame::new(TEXT, "x")
        };
        socket.send_frame(&first).await;
        socket.send_frame(&Frame::new(CONTINUATION, bytes)).await;
        assert_eq!(socket.next_close().await, Some(1007), "{bytes:?} in parts");
    }
}

#[actix_web::test]
async fn what_breaks_the_websocket_protocol_closes_1002() {
    let app = spawn_app(|_| {}).await;
    let ping = || Frame::new(TEXT, "ping");
    let part = |opcode| Frame {
        fin: false,
        ..Frame::new(opcode, "x")
    };
    let mut rows = vec![
        (
            "unmasked text",
            vec![Frame {
                masked: false,
                ..ping()
            }],
        ),
        (
            "unmasked ping",
            vec![Frame {
                masked: false,
                ..Frame::new(PING, "x")
            }],
        ),
        (
            "unmasked close",
            vec![Frame {
                masked: false,
                ..Frame::new(CLOSE, 1000_u16.to_be_bytes())
            }],
        ),
        ("a ping in parts", vec![part(PING)]),
        ("a pong in parts", vec![part(10)]),
        (
            "a close in parts",
            vec![Frame {
                fin: false,
                ..Frame::new(CLOSE, 1000_u16.to_be_bytes())
            }],
        ),
        ("a long ping", vec![Frame::new(PING, "x".repeat(126))]),
        ("a longer ping", vec![Frame::new(PING, "x".repeat(70_000))]),
        (
            "a long close",
            vec![Frame::new(CLOSE, [&1000_u16.to_be_bytes()[..], &[b'x'; 124]].concat())],
        ),
        ("a continuation of nothing", vec![part(CONTINUATION)]),
        ("the end of nothing", vec![Frame::new(CONTINUATION, "x")]),
        ("a text within a text", vec![part(TEXT), ping()]),
        ("a text begun within a text", vec![part(TEXT), part(TEXT)]),
        ("a binary within a text", vec![part(TEXT), Frame::new(BINARY, "x")]),
        ("a close with half a code", vec![Frame::new(CLOSE, [3])]),
        (
            "a close with a code that is none",
            vec![Frame::new(CLOSE, 999_u16.to_be_bytes())],
        ),
        (
            "a close with a code for no wire",
            vec![Frame::new(CLOSE, 1005_u16.to_be_bytes())],
        ),
    ];
    for reserved in [1, 2, 4, 7] {
        rows.push(("reserved bits", vec![Frame { reserved, ..ping() }]));
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        rows.push(("a reserved opcode", vec![Frame::new(opcode, "ping")]));
    }
    // All at once: each ends only when the server has given up listening for an answer to its close.
    join_all(rows.into_iter().map(async |(what, frames)| {
        let mut socket = app.connect().await;
        for frame in &frames {
            socket.send_bytes_regardless(&frame.encode()).await;
        }
        assert_eq!(socket.next_close().await, Some(1002), "{what}: {:?}", frames.last());
    }))
    .await;
}

#[actix_web::test]
async fn any_origin_may_connect_and_no_extension_or_subprotocol_is_agreed_on() {
    let app = spawn_app(|_| {}).await;
    for origin in [
        "https://a.example",
        "http://localhost:3000",
        "file://",
        "null",
        "https://evil.example:1",
    ] {
        let headers = [
            ("Origin", origin),
            ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
            ("Sec-WebSocket-Protocol", "chat, superchat"),
        ];
        let socket = WsClient::connect_with(app.addr, "/chatting", &headers, None).await;
        let mut socket = socket.unwrap_or_else(|answer| panic!("{answer:?}"));
        assert_eq!(socket.upgrade.header("sec-websocket-protocol"), None);
        assert_nothing_came(&mut socket).await;
    }
    let mut socket = WsClient::connect(app.addr, "/chatting?token=x").await;
    assert_nothing_came(&mut socket).await;
}

const NO_UPGRADE: &str = r#"Can "Upgrade" only to "WebSocket"."#;
const NO_CONNECTION: &str = r#""Connection" must be "upgrade"."#;

#[actix_web::test]
async fn without_an_upgrade_the_answer_is_400_and_takes_no_place() {
    let app = spawn_app(|settings| settings.session.max = 1).await;
    for (headers, text) in [
        (&[][..], NO_UPGRADE),
        (&[("Connection", "keep-alive")], NO_UPGRADE),
        (&[("Connection", "Upgrade"), ("Upgrade", "h2c")], NO_UPGRADE),
        (&[("Connection", "Upgrade")], NO_UPGRADE),
        (&[("Upgrade", "websocket")], NO_CONNECTION),
        (&[("Connection", "keep-alive"), ("Upgrade", "websocket")], NO_CONNECTION),
    ] {
        let answer = app.client().await.request("GET", "/chatting", headers, "").await;
        assert_eq!((answer.status, answer.text()), (400, text), "{headers:?}");
    }
    // RFC 6455, 4.4: a version that is not spoken is told which is, and so is who names none.
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "12"),
    ];
    for headers in [&upgrade[..], &upgrade[..3]] {
        let answer = app.client().await.request("GET", "/chatting", headers, "").await;
        assert_eq!(
            (answer.status, answer.header("sec-websocket-version"), answer.text()),
            (426, Some("13"), ""),
            "{headers:?}"
        );
    }
    let mut socket = app.connect().await;
    assert_nothing_came(&mut socket).await;
    // Nor does a full server make a place for a request that cannot use it.
    for _ in 0..3 {
        let answer = app.client().await.request("GET", "/chatting", &[], "").await;
        assert_eq!((answer.status, answer.text()), (400, NO_UPGRADE));
        assert_nothing_came(&mut socket).await;
    }
}

#[actix_web::test]
async fn the_words_of_an_upgrade_are_read_in_any_case() {
    let app = spawn_app(|_| {}).await;
    for (connection, upgrade) in [
        ("upgrade", "WebSocket"),
        ("UPGRADE", "WEBSOCKET"),
        ("keep-alive, Upgrade", "websocket"),
    ] {
        let headers = [
            ("connection", connection),
            ("UPGRADE", upgrade),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("SEC-WEBSOCKET-VERSION", "13"),
        ];
        let mut http = app.client().await;
        let answer = http.request("GET", "/chatting", &headers, "").await;
        assert_eq!(answer.status, 101, "{connection} {upgrade}: {answer:?}");
        let mut socket = WsClient::upgraded(http, answer);
        socket.send_text("ping").await;
        assert_eq!(socket.next_text().await, "pong");
    }
}

/// Behind a 101 there are frames and nothing else: no request that goes on being read as HTTP is answered with one.
#[actix_web::test]
async fn what_is_no_clean_handshake_is_no_session_in_either_dialect() {
    let app = spawn_app(|_| {}).await;
    let handshake = |upgrade: &'static str, version: &'static str| {
        vec![
            ("Connection", "Upgrade"),
            ("Upgrade", upgrade),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Version", version),
            ("Sec-WebSocket-Protocol", "chat.v1"),
        ]
    };
    let chunked = [handshake("websocket", "13"), vec![("Transfer-Encoding", "chunked")]].concat();
    let body = [handshake("websocket", "13"), vec![("Content-Length", "4")]].concat();
    for (headers, version) in [
        (handshake("websocket, x", "13"), false),
        (handshake("x, websocket", "13"), false),
        (chunked, false),
        (body, false),
        (handshake("websocket", "8"), true),
        (handshake("websocket", "7"), true),
    ] {
        for (path, refusal) in [("/chatting", 400), ("/v1/presenter", 426)] {
            let head: String = headers
                .iter()
                .map(|(name, value)| format!("{name}: {value}\r\n"))
                .collect();
            let mut http = app.client().await;
            // What would be chunks or a body, and a request that must not be answered as one behind an upgrade.
            let request = format!("GET {path} HTTP/1.1\r\nHost: chat\r\n{head}\r\n0\r\n\r\n");
            http.send_bytes(request.as_bytes()).await;
            let answer = http.read_response(false).await;
            let expected = if version { 426 } else { refusal };
            assert_eq!(answer.status, expected, "{path} {headers:?}: {answer:?}");
        }
    }
    assert_eq!(app.metric("chat_sessions").await, Some(0.0));
    // An empty body is none.
    let none = [("Content-Length", "0")];
    let mut socket = WsClient::connect_with(app.addr, "/chatting", &none, None)
        .await
        .ok()
        .unwrap();
    socket.send_text("ping").await;
    assert_eq!(socket.next_text().await, "pong");
}

// ---- taking over -------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn rule_15_a_newer_start_takes_over_and_the_old_socket_stays_open_and_gets_nothing_more() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut first = app.presenter(12).await;
    let expected = post(&app, 12, "to the first").await;
    assert_eq!(first.next_text().await, expected);

    let mut second = app.presenter(12).await;
    for n in 0..20 {
        let expected = post(&app, 12, &n.to_string()).await;
        assert_eq!(second.next_text().await, expected);
    }
    for _ in 0..3 {
        assert_nothing_came(&mut first).await;
    }
    first.send_text(r#"{"id":"dance"}"#).await;
    assert_eq!(
        first.next_text().await,
        r#"{"id":"error","message":"Invalid message with id dance"}"#
    );

    // The old one may take over again: the last start wins, whichever socket it is on.
    app.start(&mut first, 12).await;
    let expected = post(&app, 12, "to the first again").await;
    assert_eq!(first.next_text().await, expected);
    assert_nothing_came(&mut second).await;

    // And when the one that was replaced goes, the one in its place is not touched.
    drop(second);
    let third = app.presenter(12).await;
    app.start(&mut first, 12).await;
    drop(third);
    eventually("the others to be gone", async || {
        (app.metric("chat_sessions").await == Some(1.0)).then_some(())
    })
    .await;
    let expected = post(&app, 12, "still to the first").await;
    assert_eq!(first.next_text().await, expected);
    assert_nothing_came(&mut first).await;
}

#[actix_web::test]
async fn what_one_session_took_no_later_one_gets_nor_after_a_restart() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    for n in 0..100 {
        let expected = post(&app, 12, &n.to_string()).await;
        assert_eq!(presenter.next_text().await, expected);
    }
    presenter.send_close(1000, "").await;
    assert_eq!(presenter.next_close().await, Some(1000));
    app.without_session(12).await;
    let mut presenter = app.presenter(12).await;
    assert_nothing_came(&mut presenter).await;
    let expected = post(&app, 12, "next").await;
    assert_eq!(presenter.next_text().await, expected);

    let close = actix_web::rt::spawn(async move { presenter.next_close().await });
    let (_, dir, settings) = app.stop().await;
    assert_eq!(close.await.unwrap(), Some(1001));
    let app = spawn_in(dir, settings).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let answer = app.post(12, 7, "after the restart").await;
    assert_eq!(answer.json()["seq"], 102);
    let expected = chat_frame("kim", "after the restart", &hhmm(sent_at_ms(&answer), 9 * 60));
    assert_eq!(presenter.next_text().await, expected);
    assert_nothing_came(&mut presenter).await;
}

/// Senders that post to a room until they are told to stop; gives what was accepted, in the order of its numbers.
struct Stream {
    stop: tokio::sync::watch::Sender<bool>,
    senders: Vec<tokio::task::JoinHandle<Vec<(u64, String)>>>,
}

impl Stream {
    fn start(app: &TestApp, presenter: i64, senders: i64) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let senders = (0..senders).map(|sender| {
            let (addr, token, stopped) = (app.addr, app.token(100 + sender), stopped.clone());
            actix_web::rt::spawn(async move {
                let mut client = HttpClient::connect(addr).await;
                let mut accepted = Vec::new();
                while !*stopped.borrow() {
                    let text = format!("{sender}/{}", accepted.len());
                    let answer = post_v1(&mut client, presenter, &token, &text).await;
                    assert_eq!(answer.status, 201, "{answer:?}");
                    accepted.push((answer.json()["seq"].as_u64().unwrap(), text));
                }
                accepted
            })
        });
        Self {
            stop,
            senders: senders.collect(),
        }
    }

    async fn stop(self) -> Vec<String> {
        self.stop.send_replace(true);
        let mut accepted = Vec::new();
        for sender in self.senders {
            accepted.extend(sender.await.unwrap());
        }
        accepted.sort();
        accepted.into_iter().map(|(_, text)| text).collect()
    }
}

async fn next_message(socket: &mut WsClient) -> String {
    let frame = socket.next_json().await;
    assert_eq!(frame["id"], "sendChatting", "{frame}");
    frame["message"].as_str().unwrap().to_owned()
}

#[actix_web::test]
async fn under_a_stream_of_messages_a_takeover_loses_nothing_and_doubles_nothing() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let start = start_frame(&app.token(12));
    let mut sockets = vec![(app.presenter(12).await, Vec::new())];
    let stream = Stream::start(&app, 12, 4);
    for _ in 0..5 {
        let (socket, seen) = sockets.last_mut().unwrap();
        for _ in 0..30 {
            seen.push(next_message(socket).await);
        }
        let mut socket = app.connect().await;
        socket.send_text(&start).await;
        sockets.push((socket, Vec::new()));
    }
    let (last, seen) = sockets.last_mut().unwrap();
    seen.push(next_message(last).await);
    let accepted = stream.stop().await;

    // What the old ones still hold came before their end; the answer to a ping is behind it.
    let (mut last, mut last_seen) = sockets.pop().unwrap();
    let mut delivered = Vec::new();
    for (mut socket, seen) in sockets {
        delivered.extend(seen);
        socket.send_text("ping").await;
        loop {
            let text = socket.next_text().await;
            if text == "pong" {
                break;
            }
            let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
            delivered.push(frame["message"].as_str().unwrap().to_owned());
        }
    }
    while delivered.len() + last_seen.len() < accepted.len() {
        last_seen.push(next_message(&mut last).await);
    }
    assert_nothing_came(&mut last).await;
    delivered.extend(last_seen);
    assert_eq!(delivered, accepted);
    let logged = app.sqlite_log(12).await;
    assert_eq!(logged.into_iter().map(|(_, text)| text).collect::<Vec<_>>(), accepted);
}

#[actix_web::test]
async fn a_second_start_on_the_same_socket_loses_nothing_and_doubles_nothing() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let start = start_frame(&app.token(12));
    let mut presenter = app.presenter(12).await;
    let stream = Stream::start(&app, 12, 4);
    let mut delivered = Vec::new();
    for _ in 0..10 {
        for _ in 0..10 {
            delivered.push(next_message(&mut presenter).await);
        }
        presenter.send_text(&start).await;
    }
    let accepted = stream.stop().await;
    while delivered.len() < accepted.len() {
        delivered.push(next_message(&mut presenter).await);
    }
    assert_nothing_came(&mut presenter).await;
    assert_eq!(delivered, accepted);
    let expected = post(&app, 12, "and goes on").await;
    assert_eq!(presenter.next_text().await, expected);
    assert_nothing_came(&mut presenter).await;
}

#[actix_web::test]
async fn a_socket_that_starts_for_another_presenter_leaves_the_first_room() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    app.go_live(13);
    let mut socket = app.presenter(12).await;
    app.start(&mut socket, 13).await;
    let expected = post(&app, 13, "hi").await;
    assert_eq!(socket.next_text().await, expected);
    app.without_session(12).await;
    assert_nothing_came(&mut socket).await;
}

// ---- how sessions end --------------------------------------------------------------------------------------------

#[actix_web::test]
async fn refused_messages_and_the_end_of_a_room_send_the_presenter_nothing() {
    let app = spawn_app(|settings| {
        settings.room.live_ttl_ms = 20;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let too_long = "x".repeat(2001);
    assert_eq!(app.post(12, 7, &too_long).await.status, 422);
    assert_eq!(app.post(12, 7, "").await.status, 422);
    assert_eq!(app.post(13, 7, "another room").await.status, 409);
    for body in [
        "{".to_owned(),
        r#"{"presenterIdx":12,"userType":"viewer","textMessage":null}"#.into(),
        json!({ "presenterIdx": 12, "userType": "viewer", "textMessage": too_long }).to_string(),
        r#"{"presenterIdx":null,"userType":"viewer","textMessage":"x"}"#.into(),
    ] {
        assert!(app.send(7, &body).await.status >= 400);
    }
    let forged = [("token", "forged")];
    assert_eq!(
        app.client()
            .await
            .post_json("/send/message", &forged, "{}")
            .await
            .status,
        400
    );
    assert_nothing_came(&mut presenter).await;

    app.go_off(12);
    eventually("the end to be noticed", async || {
        (app.post(12, 7, "late").await.status == 409).then_some(())
    })
    .await;
    let mut seen = 0;
    presenter.send_text("ping").await;
    loop {
        let text = presenter.next_text().await;
        if text == "pong" {
            break;
        }
        // Those that were accepted before the end was heard of.
        assert!(text.contains(r#""message":"late""#), "{text}");
        seen += 1;
    }
    assert_eq!(
        app.room(12)
            .await
            .and_then(|room| room.last_seq)
            .map_or(seen, |seq| seq.0),
        seen
    );
}

#[actix_web::test]
async fn a_stop_closes_every_session_with_1001_and_says_nothing_else() {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    let replaced = app.presenter(12).await;
    let presenter = app.presenter(12).await;
    let not_live = app.presenter(13).await;
    let silent = app.connect().await;
    let closes: Vec<_> = [replaced, presenter, not_live, silent]
        .into_iter()
        .map(|mut socket| actix_web::rt::spawn(async move { socket.next_close().await }))
        .collect();
    let (stopped, ..) = app.stop().await;
    assert_eq!(stopped, chatting_server::app::Stopped::InOrder);
    for close in closes {
        assert_eq!(close.await.unwrap(), Some(1001));
    }
}

#[actix_web::test]
async fn an_expired_token_does_not_end_its_session() {
    let app = spawn_app(|settings| settings.auth.leeway_seconds = 0).await;
    app.go_live(12);
    let short = mint(
        &SigningKey::secret(KEY.as_bytes()),
        &Mint {
            user_idx: 12,
            nickname: "kim",
            role: None,
            rooms: &[],
            issued_at: system_ms() / 1000,
            // It has to be heard before its end, on a busy machine too.
            ttl_seconds: 10,
            auth: &app.settings.auth,
        },
    )
    .unwrap();
    let mut presenter = app.connect().await;
    presenter.send_text(&start_frame(&short)).await;
    assert_nothing_came(&mut presenter).await;
    let mut client = app.client().await;
    eventually("the token to expire", async || {
        let answer = client.request("GET", "/token", &[("token", &short)], "").await;
        (answer.status == 400).then_some(())
    })
    .await;
    let expected = post(&app, 12, "hi").await;
    assert_eq!(presenter.next_text().await, expected);
    assert_nothing_came(&mut presenter).await;
}

/// The upgrade's answer, when it is refused.
async fn refused(app: &TestApp) -> Option<Response> {
    WsClient::connect_with(app.addr, "/chatting", &[], None).await.err()
}

async fn a_place(app: &TestApp) -> WsClient {
    eventually("a place for a session", async || {
        WsClient::connect_with(app.addr, "/chatting", &[], None).await.ok()
    })
    .await
}

#[actix_web::test]
async fn a_full_server_refuses_before_the_upgrade_and_a_place_is_free_again_afterwards() {
    let app = spawn_app(|settings| settings.session.max = 2).await;
    app.go_live(12);
    app.go_live(13);
    let mut first = app.presenter(12).await;
    let mut second = app.presenter(13).await;
    for room in [12, 13] {
        eventually("the room to be known live", async || {
            app.room(room).await.filter(|room| room.live == Some(true))
        })
        .await;
    }
    for _ in 0..3 {
        let answer = refused(&app).await.expect("a refusal");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
        let timestamp = answer.json()["timestamp"].as_str().unwrap().to_owned();
        assert_eq!(
            answer.text(),
            format!(r#"{{"timestamp":"{timestamp}","status":503,"message":"서버가 혼잡합니다","path":"/chatting"}}"#)
        );
    }
    // Those of live rooms keep their places.
    assert_nothing_came(&mut first).await;
    assert_nothing_came(&mut second).await;

    first.send_close(1000, "").await;
    assert_eq!(first.next_close().await, Some(1000));
    let mut third = a_place(&app).await;
    app.start(&mut third, 12).await;
    let expected = post(&app, 12, "hi").await;
    assert_eq!(third.next_text().await, expected);
    assert!(refused(&app).await.is_some());
    drop(second);
    let mut fourth = a_place(&app).await;
    assert_nothing_came(&mut fourth).await;
}

#[actix_web::test]
async fn a_full_server_lets_a_session_whose_room_is_not_live_go_first_and_with_1000() {
    let app = spawn_app(|settings| settings.session.max = 2).await;
    app.go_live(12);
    let mut live = app.presenter(12).await;
    let mut not_live = app.presenter(13).await;
    for (room, is_live) in [(12, true), (13, false)] {
        eventually("the verdict", async || {
            app.room(room).await.filter(|room| room.live == Some(is_live))
        })
        .await;
    }
    assert_eq!(refused(&app).await.map(|answer| answer.status), Some(503));
    assert_eq!(not_live.next_close().await, Some(1000));
    let mut in_its_place = a_place(&app).await;
    assert_nothing_came(&mut in_its_place).await;
    // Then one that never said whose it is.
    assert_eq!(refused(&app).await.map(|answer| answer.status), Some(503));
    assert_eq!(in_its_place.next_close().await, Some(1000));
    let expected = post(&app, 12, "hi").await;
    assert_eq!(live.next_text().await, expected);
}

#[actix_web::test]
async fn rule_10_of_a_full_server_the_session_whose_room_is_not_live_goes_before_one_that_never_said_whose_it_is() {
    let app = spawn_app(|settings| {
        settings.session.max = 3;
        // Each goes for its place alone, however slow the machine.
        settings.session.not_live_seconds = 600;
        settings.session.hello_seconds = 300;
        settings.legacy.start_seconds = 600;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    app.go_live(14);
    // The silent one is there for longest.
    let mut silent = app.connect().await;
    let mut live = app.presenter(12).await;
    let mut not_live = app.presenter(13).await;
    for (room, is_live) in [(12, true), (13, false)] {
        eventually("the verdict", async || {
            app.room(room).await.filter(|room| room.live == Some(is_live))
        })
        .await;
    }
    assert_eq!(refused(&app).await.map(|answer| answer.status), Some(503));
    assert_eq!(not_live.next_close().await, Some(1000));
    assert_nothing_came(&mut silent).await;
    // Its place is free a moment later, and who asks before that would have the next one go.
    eventually("a place", async || {
        (app.metric(r#"chat_queue_depth{queue="sessions"}"#).await == Some(2.0)).then_some(())
    })
    .await;
    let mut in_its_place = a_place(&app).await;
    app.start(&mut in_its_place, 14).await;
    assert_eq!(refused(&app).await.map(|answer| answer.status), Some(503));
    assert_eq!(silent.next_close().await, Some(1000));
    assert_nothing_came(&mut live).await;
    assert_nothing_came(&mut in_its_place).await;
}

#[actix_web::test]
async fn rule_10_of_a_full_server_a_socket_that_sent_no_start_in_its_time_goes_first_and_keeps_its_place_until_then() {
    let app = spawn_app(|settings| {
        settings.session.max = 3;
        settings.session.not_live_seconds = 600;
        settings.legacy.start_seconds = 1;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    let mut live = app.presenter(12).await;
    let mut not_live = app.presenter(13).await;
    for (room, is_live) in [(12, true), (13, false)] {
        eventually("the verdict", async || {
            app.room(room).await.filter(|room| room.live == Some(is_live))
        })
        .await;
    }
    let mut silent = app.connect().await;
    let connected = Instant::now();
    eventually("its time to be over", async || {
        (connected.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .await;
    // Nobody wants its place, and a ping is no start.
    silent.send_text("ping").await;
    assert_eq!(silent.next_text().await, "pong");
    assert_eq!(refused(&app).await.map(|answer| answer.status), Some(503));
    assert_eq!(silent.next_close().await, Some(1000));
    assert_nothing_came(&mut not_live).await;
    assert_nothing_came(&mut live).await;
}

#[actix_web::test]
async fn rule_10_of_a_full_server_a_session_that_was_replaced_goes_before_all_others() {
    let app = spawn_app(|settings| {
        settings.session.max = 4;
        settings.session.not_live_seconds = 600;
        settings.session.detached_seconds = 600;
        settings.legacy.start_seconds = 1;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    let mut silent = app.connect().await;
    let connected = Instant::now();
    let mut not_live = app.presenter(13).await;
    // A client that begins anew where its old connection hangs on.
    let mut first = app.presenter(12).await;
    let mut second = app.presenter(12).await;
    for (room, is_live) in [(12, true), (13, false)] {
        eventually("the verdict", async || {
            app.room(room).await.filter(|room| room.live == Some(is_live))
        })
        .await;
    }
    eventually("the time for a start to be over", async || {
        (connected.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .await;
    assert_eq!(refused(&app).await.map(|answer| answer.status), Some(503));
    assert_eq!(first.next_close().await, Some(1000));
    eventually("a place", async || {
        (app.metric(r#"chat_queue_depth{queue="sessions"}"#).await == Some(3.0)).then_some(())
    })
    .await;
    let mut in_its_place = a_place(&app).await;
    for kept in [&mut silent, &mut not_live, &mut in_its_place] {
        assert_nothing_came(kept).await;
    }
    let expected = post(&app, 12, "hi").await;
    assert_eq!(second.next_text().await, expected);
    assert_eq!(
        app.metric(r#"chat_sessions_ended_total{reason="replaced"}"#).await,
        Some(1.0)
    );
}

#[actix_web::test]
async fn rule_15_a_replaced_session_is_reaped_with_1000() {
    let app = spawn_app(|settings| {
        settings.session.detached_seconds = 1;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    let mut first = app.presenter(12).await;
    let mut second = app.presenter(12).await;
    assert_eq!(first.next_close().await, Some(1000));
    let expected = post(&app, 12, "hi").await;
    assert_eq!(second.next_text().await, expected);
}

#[actix_web::test]
async fn rule_15_a_replaced_session_is_left_open_for_its_time_and_one_that_takes_over_again_is_none_any_more() {
    let app = spawn_app(|settings| {
        settings.session.max = 2;
        // Longer than a test: what ends one is that another wants its place.
        settings.session.detached_seconds = 600;
        settings.room.sweep_ms = 20;
    })
    .await;
    app.go_live(12);
    let mut first = app.presenter(12).await;
    let mut second = app.presenter(12).await;
    assert_nothing_came(&mut first).await;
    // It was replaced before the other, and would be the first to go.
    app.start(&mut first, 12).await;
    assert_eq!(refused(&app).await.map(|answer| answer.status), Some(503));
    assert_eq!(second.next_close().await, Some(1000));
    let expected = post(&app, 12, "still").await;
    assert_eq!(first.next_text().await, expected);
    assert_nothing_came(&mut first).await;
}

#[actix_web::test]
async fn a_session_whose_room_is_not_live_is_closed_with_1000() {
    let app = spawn_app(|settings| {
        settings.session.not_live_seconds = 1;
        settings.room.sweep_ms = 20;
        settings.room.live_ttl_ms = 50;
        settings.room.not_live_ttl_ms = 50;
    })
    .await;
    app.go_live(12);
    app.go_live(14);
    let mut live = app.presenter(12).await;
    let mut never_live = started(&app, 13, None).await;
    let mut ended = app.presenter(14).await;
    let expected = post(&app, 14, "before the end").await;
    assert_eq!(ended.next_text().await, expected);
    app.go_off(14);
    assert_eq!(never_live.next_close().await, Some(1000));
    assert_eq!(ended.next_close().await, Some(1000));
    app.without_session(13).await;
    app.without_session(14).await;
    let expected = post(&app, 12, "hi").await;
    assert_eq!(live.next_text().await, expected);
}

/// A presenter that has said `start`, which may not have been heard yet: for one whose session ends in its time, seen or not.
async fn started(app: &TestApp, presenter: i64, receive_buffer: Option<usize>) -> WsClient {
    let socket = WsClient::connect_with(app.addr, "/chatting", &[], receive_buffer).await;
    let mut socket = socket.unwrap_or_else(|answer| panic!("{answer:?}"));
    socket.send_text(&start_frame(&app.token(presenter))).await;
    socket
}

/// Credit of the tests in which a presenter stalls.
const CREDIT: usize = 2;

/// A server on which a presenter that reads nothing soon has more waiting than its socket takes.
async fn spawn_to_stall(change: impl FnOnce(&mut Settings)) -> TestApp {
    let app = spawn_app(|settings| {
        settings.session.credit_events = CREDIT;
        settings.room.ring_bytes = 262_144;
        settings.room.sweep_ms = 20;
        settings.server.send_buffer_bytes = 16_384;
        // What the kernel holds for the peer is to be read by it in the end, however slow this machine is.
        settings.server.tcp_user_timeout_seconds = 600;
        change(settings);
    })
    .await;
    app.go_live(12);
    app
}

/// A presenter of room 12 that will read nothing.
async fn stalled_presenter(app: &TestApp) -> WsClient {
    let socket = WsClient::connect_with(app.addr, "/chatting", &[], Some(4096)).await;
    let mut socket = socket.unwrap_or_else(|answer| panic!("{answer:?}"));
    app.start(&mut socket, 12).await;
    socket
}

/// Posts one long line to room 12, so that the socket's buffers and then the room's ring fill soon; `false` when that is full.
async fn post_long(app: &TestApp, client: &mut HttpClient, accepted: &mut Vec<String>) -> bool {
    let text = format!("{:06}{}", accepted.len(), "가".repeat(1990));
    let answer = post_v1(client, 12, &app.token(7), &text).await;
    if answer.status == 201 {
        accepted.push(text);
        return true;
    }
    // While it is attached, and when it has been cut.
    let code = answer.json()["code"].clone();
    assert!(code == "overloaded" || code == "presenter_disconnected", "{answer:?}");
    false
}

/// Posts long lines to room 12 until its presenter's socket takes no more and its ring is full; gives those that were accepted.
async fn fill(app: &TestApp) -> Vec<String> {
    let (mut client, mut accepted) = (app.client().await, Vec::new());
    let mut full = 0;
    while full < 50 {
        let taken = post_long(app, &mut client, &mut accepted).await;
        full = if taken { 0 } else { full + 1 };
    }
    accepted
}

/// Of what was accepted, `stalled` got what came first, and `next` the rest: in order, nothing twice, and all of it is logged.
async fn assert_handed_over(app: &TestApp, stalled: &mut WsClient, next: &mut WsClient, mut accepted: Vec<String>) {
    let message = |frame: &String| {
        let frame: serde_json::Value = serde_json::from_str(frame).unwrap();
        assert_eq!(frame["id"], "sendChatting", "{frame}");
        frame["message"].as_str().unwrap().to_owned()
    };
    let (took, closed) = stalled.texts_to_the_end().await;
    assert!(matches!(closed, None | Some(1000)), "a code of v1: {closed:?}");
    let took: Vec<_> = took.iter().map(message).collect();
    assert_eq!(app.post(12, 7, "the last").await.status, 201);
    accepted.push("the last".into());
    let mut rest = Vec::new();
    while rest.last().is_none_or(|text| text != "the last") {
        rest.push(next_message(next).await);
    }
    assert_nothing_came(next).await;
    assert!(took == accepted[..took.len()], "the stalled one took what came first");
    assert!(
        rest == accepted[accepted.len() - rest.len()..],
        "the next one got the rest"
    );
    assert!(rest.len() > CREDIT, "only {} were handed over", rest.len());
    // A cut loses the one that it tears; it never doubles anything.
    let lost = accepted.len().checked_sub(took.len() + rest.len());
    let lost = lost.unwrap_or_else(|| panic!("of {} came {} and {}", accepted.len(), took.len(), rest.len()));
    assert!(lost <= 1, "{lost} frames were lost");
    let logged = app.sqlite_log(12).await;
    assert!(
        logged.into_iter().map(|(_, text)| text).eq(accepted),
        "the log has it all"
    );
}

#[actix_web::test]
async fn a_stalled_presenter_is_cut_while_others_go_on_and_what_it_never_took_goes_to_the_next_start() {
    let app = spawn_to_stall(|settings| settings.session.stall_seconds = 3).await;
    app.go_live(13);
    let mut stalled = stalled_presenter(&app).await;
    let mut other = app.presenter(13).await;
    let (mut client, mut accepted) = (app.client().await, Vec::new());
    within("the stalled presenter to be cut", async {
        while app.room(12).await.is_some_and(|room| room.session) {
            post_long(&app, &mut client, &mut accepted).await;
            let expected = post(&app, 13, "meanwhile").await;
            assert_eq!(other.next_text().await, expected);
        }
    })
    .await;
    let mut next = app.presenter(12).await;
    assert_handed_over(&app, &mut stalled, &mut next, accepted).await;
}

#[actix_web::test]
async fn a_start_takes_over_from_a_stalled_presenter_at_once_and_that_one_is_reaped_too() {
    let app = spawn_to_stall(|settings| settings.session.detached_seconds = 1).await;
    let mut stalled = stalled_presenter(&app).await;
    let accepted = fill(&app).await;
    let mut next = app.presenter(12).await;
    // It ends although it reads nothing and its own actor cannot run.
    eventually("the stalled session to be gone", async || {
        (app.metric("chat_sessions").await == Some(1.0)).then_some(())
    })
    .await;
    assert_handed_over(&app, &mut stalled, &mut next, accepted).await;
}

/// Its own actor cannot be told, for it does not run; so its socket is shut for it.
#[actix_web::test]
async fn a_stop_does_not_wait_for_a_presenter_that_reads_nothing() {
    let app = spawn_to_stall(|settings| {
        settings.session.stall_seconds = 600;
        settings.shutdown.requests_seconds = 500;
        settings.shutdown.deadline_seconds = 600;
    })
    .await;
    let mut stalled = stalled_presenter(&app).await;
    let accepted = fill(&app).await;
    let (stopped, dir, settings) = app.stop().await;
    assert_eq!(stopped, chatting_server::app::Stopped::InOrder);
    // What it never took is held for its next start.
    let app = spawn_in(dir, settings).await;
    app.go_live(12);
    let mut next = app.presenter(12).await;
    assert_handed_over(&app, &mut stalled, &mut next, accepted).await;
}

#[actix_web::test]
async fn a_peer_that_takes_nothing_for_the_tcp_user_timeout_is_cut_whatever_a_session_may_do() {
    let app = spawn_to_stall(|settings| {
        settings.session.stall_seconds = 600;
        settings.server.tcp_user_timeout_seconds = 1;
    })
    .await;
    let _stalled = stalled_presenter(&app).await;
    let (mut client, mut accepted) = (app.client().await, Vec::new());
    within("the stalled presenter to be cut", async {
        while app.room(12).await.is_some_and(|room| room.session) {
            post_long(&app, &mut client, &mut accepted).await;
        }
    })
    .await;
    // What the kernel held for it is lost with it; the log has it all.
    let logged = app.sqlite_log(12).await;
    assert!(logged.into_iter().map(|(_, text)| text).eq(accepted));
}

/// A server that holds so many long lines for the presenter of room 12, which it will write in one piece; and those lines.
async fn spawn_to_hold(lines: usize, change: impl FnOnce(&mut Settings)) -> (TestApp, Vec<String>) {
    let app = spawn_to_stall(|settings| {
        settings.session.credit_events = 256;
        settings.room.ring_bytes = 4 << 20;
        // As long as it takes to post them.
        settings.session.grace_seconds = 600;
        change(settings);
    })
    .await;
    drop(app.presenter(12).await);
    app.without_session(12).await;
    let (mut client, mut accepted) = (app.client().await, Vec::new());
    for _ in 0..lines {
        assert!(post_long(&app, &mut client, &mut accepted).await);
    }
    (app, accepted)
}

/// A presenter of room 12 whose socket takes a part of what was held. Whatever it reads is still to be read.
async fn presenter_of_the_held(app: &TestApp) -> WsClient {
    let socket = started(app, 12, Some(4096)).await;
    eventually("the session in its room", async || {
        app.room(12).await.filter(|room| room.session)
    })
    .await;
    socket
}

#[actix_web::test]
async fn a_presenter_that_reads_slowly_and_never_stops_is_not_cut_and_gets_everything_once() {
    let (app, accepted) = spawn_to_hold(160, |settings| {
        settings.session.stall_seconds = 6;
        settings.session.keepalive_seconds = 2;
    })
    .await;
    let mut slow = presenter_of_the_held(&app).await;
    let (began, mut read) = (Instant::now(), 0);
    let mut pace = tokio::time::interval(Duration::from_millis(30));
    // Some seven seconds for all of it, at 135 kB a second.
    while read < 160 * 5970 {
        pace.tick().await;
        let some = slow.read_some(4096).await;
        assert!(some > 0, "cut after {:?} and {read} bytes", began.elapsed());
        read += some;
    }
    assert!(began.elapsed() > Duration::from_secs(6), "it was not slow");
    for expected in accepted {
        assert!(next_message(&mut slow).await == expected, "{}", &expected[..6]);
    }
    let expected = post(&app, 12, "one more").await;
    assert_eq!(slow.next_text().await, expected);
    assert_nothing_came(&mut slow).await;
}

#[actix_web::test]
async fn of_what_was_held_the_next_start_gets_whatever_the_socket_of_a_stalled_presenter_never_took() {
    // The next one is not read for a while either, and not to be cut for it.
    let (app, accepted) = spawn_to_hold(160, |settings| settings.session.stall_seconds = 10).await;
    let mut stalled = started(&app, 12, Some(4096)).await;
    eventually("it to be cut", async || {
        let ended = app.metric("chat_sessions_ended_total{reason=\"too_slow\"}").await;
        (ended == Some(1.0)).then_some(())
    })
    .await;
    let mut next = app.presenter(12).await;
    assert_handed_over(&app, &mut stalled, &mut next, accepted).await;
}

#[actix_web::test]
async fn a_start_has_what_the_socket_before_did_not_take_and_that_one_ends_its_frame_and_answers_on() {
    let (app, accepted) = spawn_to_hold(160, |_| {}).await;
    let mut before = presenter_of_the_held(&app).await;
    eventually("a part to be taken", async || {
        let under_way = app.metric("chat_queue_depth{queue=\"session\"}").await;
        under_way.filter(|under_way| (1.0..160.0).contains(under_way))
    })
    .await;
    let mut next = app.presenter(12).await;
    let mut rest = Vec::new();
    while rest.last() != accepted.last() {
        rest.push(next_message(&mut next).await);
    }
    before.send_text("ping").await;
    let mut took = Vec::new();
    loop {
        match before.next_text().await {
            pong if pong == "pong" => break,
            text => took.push(serde_json::from_str::<serde_json::Value>(&text).unwrap()),
        }
    }
    let took = took.iter().map(|frame| frame["message"].as_str().unwrap());
    let all: Vec<&str> = took.chain(rest.iter().map(String::as_str)).collect();
    assert!(all == accepted, "{} and {} of 160", all.len() - rest.len(), rest.len());
    assert!(rest.len() > 100, "{}", rest.len());
    assert_nothing_came(&mut next).await;
    assert_nothing_came(&mut before).await;
}

/// How many sessions the server has ended, by reason.
async fn ended_by_reason(app: &TestApp) -> BTreeMap<String, u64> {
    let metrics = get(app.addr, "/metrics").await;
    let counts = metrics.text().lines().filter_map(|line| {
        let (reason, count) = line
            .strip_prefix("chat_sessions_ended_total{reason=\"")?
            .split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().unwrap()))
    });
    counts.collect()
}

#[actix_web::test]
async fn no_legacy_session_is_ever_closed_with_a_code_of_v1() {
    // Every way in which a server that is not full ends one that has done nothing wrong.
    let (app, _) = spawn_to_hold(160, |settings| {
        settings.session.stall_seconds = 1;
        settings.session.detached_seconds = 1;
        settings.session.not_live_seconds = 1;
        settings.session.keepalive_seconds = 1;
        settings.session.keepalive_missed = 4;
    })
    .await;
    app.go_live(13);
    app.go_live(15);
    let before = ended_by_reason(&app).await;
    let mut stalled = started(&app, 12, Some(4096)).await;
    let mut replaced = app.presenter(13).await;
    let mut silent = app.presenter(13).await;
    let mut not_live = started(&app, 14, None).await;
    let silence = async {
        loop {
            match silent.next().await {
                Incoming::Ping(_) => {}
                other => break other,
            }
        }
    };
    let (replaced, not_live, cut) = tokio::join!(replaced.next_close(), not_live.next_close(), silence);
    assert_eq!((replaced, not_live), (Some(1000), Some(1000)));
    // Who is silent would not hear of a close.
    assert!(matches!(cut, Incoming::End | Incoming::Reset), "{cut:?}");
    let ended = eventually("the stalled one to be ended as well", async || {
        let mut ended = ended_by_reason(&app).await;
        ended.retain(|reason, count| {
            *count -= before.get(reason).unwrap_or(&0);
            *count > 0
        });
        (ended.values().sum::<u64>() >= 4).then_some(ended)
    })
    .await;
    let provoked = ["keepalive_missed", "not_live", "replaced", "too_slow"];
    assert_eq!(ended, provoked.map(|reason| (reason.to_owned(), 1)).into());
    let close = stalled.texts_to_the_end().await.1;
    assert!(matches!(close, None | Some(1000)), "{close:?}");
    let mut last = app.presenter(15).await;
    let ((stopped, ..), close) = tokio::join!(app.stop(), last.next_close());
    assert_eq!(stopped, chatting_server::app::Stopped::InOrder);
    assert_eq!(close, Some(1001));
}
