//! The original server's HTTP, to the byte (docs/LEGACY.md): `/send/message` by token and behind a gateway, `/`, `/token`, CORS.

use chatting_actors::clock::system_ms;
use chatting_server::settings::{AuthMode, Secret, Settings};
use jiff::{Timestamp, civil, tz::Offset};
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, spawn_app, spawn_with_rooms, token_of},
    eventually,
    http::{HttpClient, Response},
    room_server::{Mode, RoomServer},
    tokens::{bad_tokens, claims, signed},
    ws::WsClient,
};

const SEND: &str = "/send/message";
const SECRET: &str = "only the gateway knows";

const PRESENTER_IDX_NULL: &str = "PresenterIdx는 null값이 올 수 없습니다.";
const NO_SESSION: &str = "세션이 존재하지 않습니다. 재연결 중입니다. 잠시 후에 다시 보내주세요..";
const NO_SESSION_PRESENTER: &str = "세션이 존재하지 않습니다. 재연결을 해주세요.";
const NOT_LIVE: &str = "해당 스트리머는 현재 방송 중이지 않습니다.";

/// How the server comes to know a sender.
#[derive(Clone, Copy, Debug)]
enum Door {
    /// `auth.mode = "token"`, header `token`.
    Token,
    /// `auth.mode = "token"`, `Authorization: Bearer`.
    Bearer,
    /// `auth.mode = "gateway"`, x-forward headers.
    Gateway,
    /// The same with `auth.gateway_secret`.
    SecretGateway,
}

impl Door {
    const ALL: [Self; 4] = [Self::Token, Self::Bearer, Self::Gateway, Self::SecretGateway];

    async fn app(self) -> TestApp {
        self.app_with(|_| {}).await
    }

    async fn app_with(self, change: impl FnOnce(&mut Settings)) -> TestApp {
        spawn_app(|settings| {
            if matches!(self, Self::Gateway | Self::SecretGateway) {
                settings.auth.mode = AuthMode::Gateway;
                settings.auth.trusted_proxies = vec!["127.0.0.1".into()];
            }
            if matches!(self, Self::SecretGateway) {
                settings.auth.gateway_secret = Secret::new(SECRET);
            }
            change(settings);
        })
        .await
    }

    /// The headers by which a user called `kim` is known.
    fn headers(self, app: &TestApp, user: i64) -> Vec<(&'static str, String)> {
        let mut headers = match self {
            Self::Token => vec![("token", app.token(user))],
            Self::Bearer => vec![("Authorization", format!("Bearer {}", app.token(user)))],
            Self::Gateway | Self::SecretGateway => forwarded(&user.to_string(), "kim@example.com", "kim"),
        };
        if matches!(self, Self::SecretGateway) {
            headers.push(("x-gateway-secret", SECRET.into()));
        }
        headers
    }

    async fn send(self, app: &TestApp, user: i64, body: impl AsRef<[u8]>) -> Response {
        post(app, &self.headers(app, user), body).await
    }
}

fn forwarded(user: &str, email: &str, nickname: &str) -> Vec<(&'static str, String)> {
    vec![
        ("x-forward-userIdx", user.to_owned()),
        ("x-forward-email", email.to_owned()),
        ("x-forward-nickname", nickname.to_owned()),
    ]
}

fn borrowed<'a>(headers: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// `POST /send/message` of JSON on a connection of its own.
async fn post(app: &TestApp, headers: &[(&str, String)], body: impl AsRef<[u8]>) -> Response {
    app.client().await.post_json(SEND, &borrowed(headers), body).await
}

/// What a viewer's client sends.
fn chat(presenter: i64, text: &str) -> String {
    json!({ "presenterIdx": presenter, "userType": "viewer", "textMessage": text }).to_string()
}

fn header_names(answer: &Response) -> Vec<String> {
    let mut names: Vec<_> = answer
        .headers
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.sort();
    names
}

/// The one answer to what was accepted.
fn assert_delivered(answer: &Response) {
    assert_eq!(answer.status_line, "HTTP/1.1 200 OK", "{answer:?}");
    assert_eq!(header_names(answer), ["content-length", "date"], "{answer:?}");
    assert_eq!(answer.header("content-length"), Some("0"));
    assert_eq!(answer.text(), "");
}

/// The old server's own error to the byte, in Korea: status of HTTP and of the body, message, path.
fn assert_refused(answer: &Response, statuses: (u16, u16), message: &str, path: &str) {
    assert_refused_at(answer, statuses, message, path, Offset::constant(9));
}

fn assert_refused_at(answer: &Response, (http, status): (u16, u16), message: &str, path: &str, zone: Offset) {
    assert_eq!(answer.status, http, "{answer:?} {}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    let text = answer.text();
    let timestamp = text.get(14..33).unwrap_or_else(|| panic!("no timestamp in {text}"));
    let message = Value::from(message);
    assert_eq!(
        text,
        format!(r#"{{"timestamp":"{timestamp}","status":{status},"message":{message},"path":"{path}"}}"#)
    );
    let shown = civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", timestamp).unwrap();
    assert_eq!(shown.strftime("%Y-%m-%d %H:%M:%S").to_string(), timestamp);
    assert_now(zone.to_timestamp(shown).unwrap(), timestamp);
}

/// The old server's framework's error to the byte.
fn assert_framework(answer: &Response, status: u16, error: &str, path: &str) {
    assert_eq!(answer.status, status, "{answer:?} {}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    let text = answer.text();
    let timestamp = text.get(14..43).unwrap_or_else(|| panic!("no timestamp in {text}"));
    assert_eq!(
        text,
        format!(r#"{{"timestamp":"{timestamp}","status":{status},"error":"{error}","message":"","path":"{path}"}}"#)
    );
    let utc = timestamp
        .strip_suffix("+00:00")
        .unwrap_or_else(|| panic!("not in UTC: {text}"));
    assert_eq!((utc.len(), &utc[10..11], &utc[19..20]), (23, "T", "."), "{text}");
    assert_now(format!("{utc}Z").parse().unwrap(), timestamp);
}

/// An error of our own making: the shape of the old server's, with some message.
fn assert_clear_400(answer: &Response, path: &str) {
    let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
    assert!(!message.is_empty(), "{}", answer.text());
    assert_refused(answer, (400, 400), &message, path);
}

fn assert_now(time: Timestamp, shown: &str) {
    let off = (time.as_millisecond() - system_ms()).abs();
    assert!(off < 60_000, "{shown} is {off} ms away from now");
}

/// Asserts that nothing has been sent to the socket: the answer to a `ping` is the next that comes.
async fn assert_nothing_came(socket: &mut WsClient) {
    socket.send_text("ping").await;
    assert_eq!(socket.next_text().await, "pong");
}

async fn last_seq(app: &TestApp, presenter: i64) -> Option<u64> {
    app.room(presenter).await?.last_seq.map(|seq| seq.0)
}

// ---- delivered ---------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn a_delivered_message_is_answered_200_with_a_length_of_zero_and_nothing_else() {
    for door in Door::ALL {
        let app = door.app().await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        assert_delivered(&door.send(&app, 7, chat(12, "hi")).await);
        let frame = presenter.next_json().await;
        assert_eq!(
            (&frame["id"], &frame["nickname"], &frame["message"]),
            (&json!("sendChatting"), &json!("kim"), &json!("hi")),
            "{door:?}"
        );
        assert_eq!(app.sqlite_log(12).await, [(1, "hi".to_owned())]);
    }
}

#[actix_web::test]
async fn who_asks_for_it_is_told_how_long_an_idle_connection_is_kept() {
    for (seconds, told) in [(75, Some("timeout=70")), (3, Some("timeout=1")), (0, None)] {
        let app = Door::Token
            .app_with(|settings| settings.server.keep_alive_seconds = seconds)
            .await;
        app.go_live(12);
        let _presenter = app.presenter(12).await;
        let token = app.token(7);
        for (connection, told) in [
            ("Keep-Alive", told),
            ("keep-alive", told),
            ("TE, keep-alive", told),
            ("TE", None),
            ("close", None),
            ("keep-alive, close", None),
        ] {
            let headers = [("token", token.as_str()), ("Connection", connection)];
            // What is refused leaves its connection, too.
            for (status, room) in [(200, 12), (400, 13)] {
                let mut client = app.client().await;
                let answer = client.post_json(SEND, &headers, chat(room, "hi")).await;
                assert_eq!(answer.status, status, "{answer:?}");
                assert_eq!(answer.header("keep-alive"), told, "{connection}: {answer:?}");
            }
        }
    }
}

#[actix_web::test]
async fn a_presenters_own_message_needs_no_presenter_idx_and_comes_back_on_the_socket() {
    for door in [Door::Token, Door::Gateway] {
        let app = door.app().await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        for (n, idx) in [
            r#""presenterIdx":null,"#,
            "",
            r#""presenterIdx":"","#,
            r#""presenterIdx":12,"#,
        ]
        .into_iter()
        .enumerate()
        {
            let body = format!(r#"{{{idx}"userType":"presenter","textMessage":"{n}"}}"#);
            assert_delivered(&door.send(&app, 12, body).await);
            assert_eq!(presenter.next_json().await["message"], n.to_string());
        }
    }
}

#[actix_web::test]
async fn korean_and_emoji_come_out_as_they_went_in() {
    for door in [Door::Token, Door::Gateway] {
        let app = door.app().await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        let text = "안녕하세요, 방송 잘 보고 있어요 👨‍👩‍👧‍👦🇰🇷 ㅋㅋㅋ é ﷽";
        assert_delivered(&door.send(&app, 7, chat(12, text)).await);
        let frame = presenter.next_text().await;
        let expected = format!(r#"{{"id":"sendChatting","nickname":"kim","message":"{text}","time":""#);
        assert!(frame.starts_with(&expected), "{frame}");
        assert_eq!(app.sqlite_log(12).await, [(1, text.to_owned())]);
    }
}

#[actix_web::test]
async fn an_empty_text_is_delivered() {
    for door in [Door::Token, Door::Gateway] {
        let app = door.app().await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        assert_delivered(&door.send(&app, 7, chat(12, "")).await);
        assert_eq!(presenter.next_json().await["message"], "");
    }
}

#[actix_web::test]
async fn lenient_forms_are_read_as_the_old_server_read_them() {
    let rows = [
        (
            r#"{"presenterIdx":"17","userType":"viewer","textMessage":"text"}"#,
            "text",
        ),
        (
            r#"{"presenterIdx":17.7,"userType":"viewer","textMessage":"fraction"}"#,
            "fraction",
        ),
        (r#"{"presenterIdx":17,"userType":"viewer","textMessage":5}"#, "5"),
        (
            r#"{"presenterIdx":17,"userType":"viewer","textMessage":-1.50}"#,
            "-1.50",
        ),
        (r#"{"presenterIdx":17,"userType":"viewer","textMessage":true}"#, "true"),
        (
            r#"{"presenterIdx":17,"userType":"viewer","textMessage":false}"#,
            "false",
        ),
        (
            r#"{"unknown":{"a":[1,null]},"presenterIdx":17,"x":"y","userType":"viewer","textMessage":"unknown"}"#,
            "unknown",
        ),
        (
            r#"{"presenterIdx":17,"userType":"PRESENTER","textMessage":"upper"}"#,
            "upper",
        ),
        (
            r#"{"presenterIdx":17,"userType":"","textMessage":"no type"}"#,
            "no type",
        ),
        (
            r#"{"presenterIdx":17,"userType":"moderator","textMessage":"other"}"#,
            "other",
        ),
        (
            r#"{"presenterIdx":17,"userType":"viewer","textMessage":"more"} and more"#,
            "more",
        ),
        (
            r#"{"presenterIdx":17,"userType":"viewer","textMessage":"twice"}{"presenterIdx":"#,
            "twice",
        ),
        (
            "\r\n\t { \"textMessage\" : \"\\ud55c\\u0041\" , \"userType\" : \"viewer\" , \"presenterIdx\" : 17 }\n",
            "한A",
        ),
    ];
    for door in [Door::Token, Door::Gateway] {
        let app = door.app().await;
        app.go_live(17);
        let mut presenter = app.presenter(17).await;
        for (body, text) in rows {
            assert_delivered(&door.send(&app, 7, body).await);
            assert_eq!(presenter.next_json().await["message"], text, "{body}");
        }
    }
}

#[actix_web::test]
async fn json_with_a_charset_is_json_and_the_trailing_slash_is_the_same_route() {
    for door in [Door::Token, Door::Gateway] {
        let app = door.app().await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        let headers = door.headers(&app, 7);
        let mut client = app.client().await;
        for (n, (path, content_type)) in [
            (SEND, "application/json;charset=UTF-8"),
            (SEND, "application/json; charset=utf-8"),
            (SEND, "Application/JSON"),
            ("/send/message/", "application/json"),
            ("/send/message?a=b", "application/json"),
            ("/send/message/?a=b", "application/json"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut headers = borrowed(&headers);
            headers.push(("Content-Type", content_type));
            let answer = client.request("POST", path, &headers, chat(12, &n.to_string())).await;
            assert_delivered(&answer);
            assert_eq!(presenter.next_json().await["message"], n.to_string());
        }
    }
}

#[actix_web::test]
async fn header_names_are_known_in_any_case() {
    let app = Door::SecretGateway.app().await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    for names in [
        [
            "x-forward-useridx",
            "x-forward-email",
            "x-forward-nickname",
            "x-gateway-secret",
        ],
        [
            "X-FORWARD-USERIDX",
            "X-FORWARD-EMAIL",
            "X-FORWARD-NICKNAME",
            "X-GATEWAY-SECRET",
        ],
        [
            "X-Forward-userIdx",
            "X-Forward-Email",
            "x-forward-NickName",
            "X-Gateway-Secret",
        ],
    ] {
        let headers: Vec<_> = names.into_iter().zip(["7", "e", "kim", SECRET]).collect();
        assert_delivered(&app.client().await.post_json(SEND, &headers, chat(12, names[0])).await);
        assert_eq!(presenter.next_json().await["message"], names[0]);
    }
    let app = Door::Token.app().await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    for name in ["TOKEN", "Token", "token"] {
        let headers = [(name, app.token(7))];
        assert_delivered(&post(&app, &headers, chat(12, name)).await);
        assert_eq!(presenter.next_json().await["message"], name);
    }
}

#[actix_web::test]
async fn a_forwarded_nickname_is_decoded_and_an_email_may_be_anything() {
    let app = Door::Gateway.app().await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    for (sent, email, shown) in [
        ("kim", "kim@example.com", "kim"),
        ("%EA%B9%80%EC%B2%A0%EC%88%98", "", "김철수"),
        ("%ea%b9%80", "no e-mail", "김"),
        ("a+b", "a+b", "a b"),
        ("a%20b", "%zz", "a b"),
        ("a%2Bb", "@", "a+b"),
        ("%F0%9F%98%80+%26%3D%25", "한글", "😀 &=%"),
        ("%22%5C%0A", "e", "\"\\\n"),
    ] {
        assert_delivered(&post(&app, &forwarded("7", email, sent), chat(12, "hi")).await);
        assert_eq!(presenter.next_json().await["nickname"], shown, "{sent}");
    }
}

#[actix_web::test]
async fn in_token_mode_forward_headers_mean_nothing() {
    let app = Door::Token.app().await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let mut headers = forwarded("12", "e", "%zz");
    headers.push(("token", app.token(7)));
    assert_delivered(&post(&app, &headers, chat(12, "hi")).await);
    assert_eq!(presenter.next_json().await["nickname"], "kim");
}

#[actix_web::test]
async fn behind_a_gateway_a_token_means_nothing() {
    let app = Door::Gateway.app().await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let mut headers = forwarded("7", "e", "lee");
    headers.push(("token", "forged".into()));
    assert_delivered(&post(&app, &headers, chat(12, "hi")).await);
    assert_eq!(presenter.next_json().await["nickname"], "lee");
    let answer = post(&app, &[("token", app.token(7))], chat(12, "hi")).await;
    let message = "Missing request header 'x-forward-userIdx' for method parameter of type String";
    assert_refused(&answer, (400, 400), message, SEND);
    assert_nothing_came(&mut presenter).await;
}

// ---- refused -----------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn every_refusal_of_the_table_has_its_body_and_is_neither_numbered_nor_logged_nor_delivered() {
    for door in Door::ALL {
        let app = door.app().await;
        app.go_live(12);
        let viewer = 7;
        let nobody = [
            r#"{"presenterIdx":null,"userType":"viewer","textMessage":"x"}"#,
            r#"{"userType":"viewer","textMessage":"x"}"#,
            r#"{"presenterIdx":"","userType":"viewer","textMessage":"x"}"#,
            r#"{"presenterIdx":null,"userType":"Presenter","textMessage":"x"}"#,
        ];
        for body in nobody {
            let answer = door.send(&app, viewer, body).await;
            assert_refused(&answer, (400, 400), PRESENTER_IDX_NULL, SEND);
            assert_eq!(header_names(&answer), ["content-length", "content-type", "date"]);
        }

        // Live, and no presenter yet. Who is the presenter is told by the numbers, never by `userType`.
        let claims_to_be_the_presenter = r#"{"presenterIdx":12,"userType":"presenter","textMessage":"x"}"#;
        for body in [chat(12, "x").as_str(), claims_to_be_the_presenter] {
            assert_refused(&door.send(&app, viewer, body).await, (400, 400), NO_SESSION, SEND);
        }
        for body in [
            r#"{"presenterIdx":null,"userType":"presenter","textMessage":"x"}"#,
            r#"{"userType":"presenter","textMessage":"x"}"#,
            r#"{"presenterIdx":12,"userType":"presenter","textMessage":"x"}"#,
            r#"{"presenterIdx":12,"userType":"viewer","textMessage":"x"}"#,
        ] {
            let answer = door.send(&app, 12, body).await;
            assert_eq!(answer.status_line, "HTTP/1.1 202 Accepted");
            assert_refused(&answer, (202, 400), NO_SESSION_PRESENTER, SEND);
        }

        // Not live: another room, the sender's own, one that cannot be.
        let own = r#"{"presenterIdx":null,"userType":"presenter","textMessage":"x"}"#;
        for body in [chat(13, "x").as_str(), own, &chat(i64::MAX, "x"), &chat(-5, "x")] {
            assert_refused(&door.send(&app, viewer, body).await, (400, 400), NOT_LIVE, SEND);
        }

        // None of all this left a trace.
        let mut presenter = app.presenter(12).await;
        assert_nothing_came(&mut presenter).await;
        assert_delivered(&door.send(&app, viewer, chat(12, "the first")).await);
        assert_eq!(presenter.next_json().await["message"], "the first");
        assert_nothing_came(&mut presenter).await;
        assert_eq!(last_seq(&app, 12).await, Some(1));
        assert_eq!(app.sqlite_log(12).await, [(1, "the first".to_owned())]);
        for room in [7, 13] {
            assert_eq!(app.sqlite_log(room).await, []);
        }
    }
}

/// Drops the socket, and waits until the room knows.
async fn lose(app: &TestApp, presenter: i64, socket: WsClient) {
    drop(socket);
    app.without_session(presenter).await;
}

#[actix_web::test]
async fn a_session_lost_a_moment_ago_is_held_for_with_200_and_the_next_start_gets_it_once() {
    for door in [Door::Token, Door::Gateway] {
        let app = door.app().await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        assert_delivered(&door.send(&app, 7, chat(12, "there")).await);
        assert_eq!(presenter.next_json().await["message"], "there");
        lose(&app, 12, presenter).await;
        assert_delivered(&door.send(&app, 7, chat(12, "held")).await);
        let own = r#"{"userType":"presenter","textMessage":"own"}"#;
        assert_delivered(&door.send(&app, 12, own).await);
        let mut presenter = app.presenter(12).await;
        assert_eq!(presenter.next_json().await["message"], "held");
        assert_eq!(presenter.next_json().await["message"], "own");
        assert_nothing_came(&mut presenter).await;
        // Once: those that the socket took are nobody else's.
        lose(&app, 12, presenter).await;
        let mut presenter = app.presenter(12).await;
        assert_nothing_came(&mut presenter).await;
    }
}

#[actix_web::test]
async fn after_the_grace_and_before_a_broadcasts_first_session_nothing_is_held() {
    let no_session = async |app: &TestApp| {
        assert_refused(
            &Door::Token.send(app, 7, chat(12, "x")).await,
            (400, 400),
            NO_SESSION,
            SEND,
        );
        let answer = Door::Token.send(app, 12, chat(12, "x")).await;
        assert_refused(&answer, (202, 400), NO_SESSION_PRESENTER, SEND);
    };
    let app = Door::Token
        .app_with(|settings| settings.session.grace_seconds = 0)
        .await;
    app.go_live(12);
    let presenter = app.presenter(12).await;
    lose(&app, 12, presenter).await;
    no_session(&app).await;

    let app = Door::Token
        .app_with(|settings| {
            settings.room.live_ttl_ms = 20;
            settings.room.not_live_ttl_ms = 20;
        })
        .await;
    let not_live = async || {
        let answer = Door::Token.send(&app, 7, chat(12, "x")).await;
        assert_refused(&answer, (400, 400), NOT_LIVE, SEND);
    };
    // A session of the time before the broadcast is none of the broadcast's.
    let presenter = app.presenter(12).await;
    not_live().await;
    lose(&app, 12, presenter).await;
    not_live().await;
    app.go_live(12);
    let answer = eventually("the broadcast to be known", async || {
        let answer = Door::Token.send(&app, 7, chat(12, "x")).await;
        (answer.status != 400 || answer.json()["message"] != NOT_LIVE).then_some(answer)
    })
    .await;
    assert_refused(&answer, (400, 400), NO_SESSION, SEND);
    no_session(&app).await;
    let mut presenter = app.presenter(12).await;
    assert_nothing_came(&mut presenter).await;
}

#[actix_web::test]
async fn the_end_of_a_broadcast_is_heard_of_although_the_socket_is_open() {
    let app = Door::Gateway.app_with(|settings| settings.room.live_ttl_ms = 20).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    assert_delivered(&Door::Gateway.send(&app, 7, chat(12, "one")).await);
    assert_eq!(presenter.next_json().await["message"], "one");
    app.go_off(12);
    let refused = eventually("the end to be noticed", async || {
        let answer = Door::Gateway.send(&app, 7, chat(12, "late")).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_refused(&refused, (400, 400), NOT_LIVE, SEND);
}

#[actix_web::test]
async fn a_timestamp_is_the_wall_clock_of_the_zone() {
    let app = Door::Token
        .app_with(|settings| settings.legacy.zone = "Asia/Kathmandu".into())
        .await;
    let answer = Door::Token.send(&app, 7, chat(12, "x")).await;
    let zone = Offset::from_seconds((5 * 60 + 45) * 60).unwrap();
    assert_refused_at(&answer, (400, 400), NOT_LIVE, SEND, zone);
}

#[actix_web::test]
async fn an_error_names_the_path_that_was_asked_for() {
    let app = Door::Token.app().await;
    let token = app.token(7);
    for (asked, named) in [
        ("/send/message/", "/send/message/"),
        ("/send/message?presenterIdx=1", "/send/message"),
    ] {
        let answer = app
            .client()
            .await
            .post_json(asked, &[("token", &token)], chat(12, "x"))
            .await;
        assert_refused(&answer, (400, 400), NOT_LIVE, named);
    }
}

#[actix_web::test]
async fn unreadable_bodies_get_the_frameworks_400_and_deliver_nothing() {
    let with_idx =
        |idx: &str| format!(r#"{{"presenterIdx":{idx},"userType":"viewer","textMessage":"x"}}"#).into_bytes();
    let with_text =
        |text: &str| format!(r#"{{"presenterIdx":12,"userType":"viewer","textMessage":{text}}}"#).into_bytes();
    let mut bodies: Vec<Vec<u8>> = [
        "x",
        "\"twelve\"",
        "\"1 2\"",
        "9223372036854775808",
        "-9223372036854775809",
        "\"9223372036854775808\"",
        "1e400",
        "[12]",
        "[]",
        "{}",
        "{\"a\":12}",
        "true",
        "false",
    ]
    .map(with_idx)
    .into();
    bodies.extend(["[]", "[\"x\"]", "{}", "{\"a\":\"x\"}", "x", "'x'"].map(with_text));
    bodies.extend(
        [
            "",
            " ",
            "{",
            "}",
            "nonsense",
            r#"{"presenterIdx":12,"userType":"viewer","textMessage":"x"#,
            r#"{"presenterIdx":12,"userType":"viewer","textMessage":"x""#,
            r#"{"presenterIdx" 12}"#,
            r#"{presenterIdx:12,userType:"viewer",textMessage:"x"}"#,
            "[]",
            "12",
            "\"text\"",
        ]
        .map(|body| body.as_bytes().to_vec()),
    );
    bodies.push(b"{\"presenterIdx\":12,\"userType\":\"viewer\",\"textMessage\":\"\xff\xfe\"}".to_vec());
    bodies.push(format!("{{\"a\":{}", "[".repeat(60_000)).into_bytes());
    for door in [Door::Token, Door::Gateway] {
        let app = door.app().await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        for body in &bodies {
            let answer = door.send(&app, 7, body).await;
            let start: String = String::from_utf8_lossy(body).chars().take(80).collect();
            assert_eq!(answer.status, 400, "{start}: {answer:?}");
            assert_framework(&answer, 400, "Bad Request", SEND);
        }
        assert_nothing_came(&mut presenter).await;
        assert_delivered(&door.send(&app, 7, chat(12, "the first")).await);
        assert_eq!(last_seq(&app, 12).await, Some(1));
    }
}

#[actix_web::test]
async fn what_crashed_the_old_server_is_a_clear_400() {
    for door in [Door::Token, Door::Gateway] {
        let app = door.app().await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        for body in [
            "{}",
            r#"{"presenterIdx":12,"textMessage":"x"}"#,
            r#"{"presenterIdx":12,"userType":null,"textMessage":"x"}"#,
            r#"{"presenterIdx":12,"userType":"viewer"}"#,
            r#"{"presenterIdx":12,"userType":"viewer","textMessage":null}"#,
            r#"{"userType":"presenter","textMessage":null}"#,
        ] {
            assert_clear_400(&door.send(&app, 7, body).await, SEND);
        }
        assert_nothing_came(&mut presenter).await;
    }
    let app = Door::Gateway.app().await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    for nickname in ["%zz", "%", "a%2", "%E", "%+1", "% 1"] {
        assert_clear_400(&post(&app, &forwarded("7", "e", nickname), chat(12, "x")).await, SEND);
    }
    for user in [
        "",
        "x",
        "seven",
        "7x",
        "0x7",
        "7.5",
        "9223372036854775808",
        "99999999999999999999",
    ] {
        assert_clear_400(&post(&app, &forwarded(user, "e", "kim"), chat(12, "x")).await, SEND);
    }
    assert_nothing_came(&mut presenter).await;
}

#[actix_web::test]
async fn a_missing_header_is_named_in_the_old_order() {
    let app = Door::Gateway.app().await;
    let all = forwarded("7", "e", "kim");
    let missing = |name: &str| format!("Missing request header '{name}' for method parameter of type String");
    for present in 0..8_u8 {
        let headers: Vec<_> = (0..3)
            .filter(|n| present & (1 << n) != 0)
            .map(|n| all[n].clone())
            .collect();
        let answer = post(&app, &headers, chat(12, "x")).await;
        match (0..3).find(|n| present & (1 << n) == 0) {
            Some(first) => assert_refused(&answer, (400, 400), &missing(all[first].0), SEND),
            None => assert_refused(&answer, (400, 400), NOT_LIVE, SEND),
        }
    }
    // The order stands however wrong the headers before it are.
    let headers = [
        ("x-forward-userIdx", "x".to_owned()),
        ("x-forward-nickname", "%zz".into()),
    ];
    let answer = post(&app, &headers, chat(12, "x")).await;
    assert_refused(&answer, (400, 400), &missing("x-forward-email"), SEND);
}

#[actix_web::test]
async fn token_problems_are_400_with_401_in_the_body_and_their_own_texts() {
    let app = Door::Token.app().await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    for bad in bad_tokens(7) {
        for headers in [
            [("token", bad.token.clone())],
            [("Authorization", format!("Bearer {}", bad.token))],
        ] {
            let answer = post(&app, &headers, chat(12, "x")).await;
            assert_eq!(answer.json()["message"], bad.legacy_text, "{}", bad.what);
            assert_refused(&answer, (400, 401), bad.legacy_text, SEND);
        }
    }
    let mut nameless = claims(7);
    nameless.as_object_mut().unwrap().remove("nickname");
    for (headers, text) in [
        (vec![], "Token null"),
        (vec![("token", String::new())], "Token null"),
        (vec![("token", signed(&nameless))], "Jwt Exception"),
        (vec![("token", "토큰".into())], "Jwt Exception"),
        (vec![("token", "x".repeat(9000))], "Jwt Exception"),
    ] {
        let answer = post(&app, &headers, chat(12, "x")).await;
        assert_eq!(answer.json()["message"], text, "{headers:?}");
        assert_refused(&answer, (400, 401), text, SEND);
    }
    assert_nothing_came(&mut presenter).await;
}

#[actix_web::test]
async fn only_a_trusted_gateway_with_the_secret_is_believed() {
    let believed = forwarded("7", "e", "kim");
    let secret = |value: &str| {
        let mut headers = believed.clone();
        headers.push(("x-gateway-secret", value.to_owned()));
        headers
    };
    let app = Door::SecretGateway.app().await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let wrong = [
        believed.clone(),
        secret(""),
        secret("only the gateway know"),
        secret("only the gateway knows!"),
        secret("ONLY THE GATEWAY KNOWS"),
        vec![],
    ];
    for headers in &wrong {
        let answer = post(&app, headers, chat(12, "x")).await;
        assert_refused(&answer, (403, 403), "권한이 없습니다", SEND);
    }
    assert_nothing_came(&mut presenter).await;
    assert_eq!(app.metric("chat_forward_refused_total").await, Some(6.0));
    assert_delivered(&post(&app, &secret(SECRET), chat(12, "x")).await);

    let app = Door::Gateway
        .app_with(|settings| settings.auth.trusted_proxies = vec!["192.0.2.0/24".into(), "::1".into()])
        .await;
    let answer = post(&app, &believed, chat(12, "x")).await;
    assert_refused(&answer, (403, 403), "권한이 없습니다", SEND);
}

#[actix_web::test]
async fn texts_nicknames_and_bodies_have_their_limits() {
    let app = Door::Gateway.app().await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    let longest = "가".repeat(2000);
    assert_delivered(&Door::Gateway.send(&app, 7, chat(12, &longest)).await);
    assert_eq!(presenter.next_json().await["message"], longest.as_str());
    let longest = "😀".repeat(2000);
    assert_delivered(&Door::Gateway.send(&app, 7, chat(12, &longest)).await);
    assert_eq!(presenter.next_json().await["message"], longest.as_str());
    let nickname = "%EA%B9%80".repeat(64);
    assert_delivered(&post(&app, &forwarded("7", "e", &nickname), chat(12, "x")).await);
    assert_eq!(presenter.next_json().await["nickname"], "김".repeat(64));

    const NOT_VALID: &str = "메시지가 올바르지 않습니다";
    for text in ["가".repeat(2001), "x".repeat(2001)] {
        let answer = Door::Gateway.send(&app, 7, chat(12, &text)).await;
        assert_refused(&answer, (422, 422), NOT_VALID, SEND);
    }
    let digits = format!(
        r#"{{"presenterIdx":12,"userType":"viewer","textMessage":{}}}"#,
        "1".repeat(2001)
    );
    let answer = Door::Gateway.send(&app, 7, digits).await;
    assert_refused(&answer, (422, 422), NOT_VALID, SEND);
    let answer = post(&app, &forwarded("7", "e", &"x".repeat(65)), chat(12, "x")).await;
    assert_refused(&answer, (422, 422), NOT_VALID, SEND);
    assert_nothing_came(&mut presenter).await;
}

#[actix_web::test]
async fn a_body_of_64_kib_is_read_and_a_longer_one_is_413() {
    const TOO_LARGE: &str = "요청이 너무 큽니다";
    for door in [Door::Token, Door::Gateway] {
        let app = door.app().await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        let padded = |length: usize| {
            let body = chat(12, "padded");
            body.clone() + &" ".repeat(length - body.len())
        };
        assert_delivered(&door.send(&app, 7, padded(65_536)).await);
        assert_eq!(presenter.next_json().await["message"], "padded");
        let answer = door.send(&app, 7, padded(65_537)).await;
        assert_refused(&answer, (413, 413), TOO_LARGE, SEND);

        // In chunks, where no length tells it before.
        let headers = door.headers(&app, 7);
        let mut headers = borrowed(&headers);
        headers.push(("Content-Type", "application/json"));
        headers.push(("Transfer-Encoding", "chunked"));
        let chunk = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let mut client = app.client().await;
        let answer = client.request("POST", SEND, &headers, chunk(&padded(65_536))).await;
        assert_delivered(&answer);
        assert_eq!(presenter.next_json().await["message"], "padded");
        let answer = client.request("POST", SEND, &headers, chunk(&padded(65_537))).await;
        assert_refused(&answer, (413, 413), TOO_LARGE, SEND);

        // Announced and never sent.
        headers.retain(|(name, _)| *name != "Transfer-Encoding");
        headers.push(("Content-Length", "10000000000"));
        let answer = app.client().await.request("POST", SEND, &headers, "").await;
        assert_refused(&answer, (413, 413), TOO_LARGE, SEND);
        assert_nothing_came(&mut presenter).await;
        assert_eq!(last_seq(&app, 12).await, Some(2));
    }
}

#[actix_web::test]
async fn a_code_without_a_row_keeps_its_status_and_retry_after_with_its_korean_title() {
    let rooms = RoomServer::start().await;
    rooms.mode(Mode::Status(500)).await;
    let app = spawn_with_rooms(&rooms, |_| {}).await;
    let answer = Door::Token.send(&app, 7, chat(12, "x")).await;
    assert_refused(&answer, (503, 503), "방송 상태를 확인할 수 없습니다", SEND);
    assert_eq!(
        header_names(&answer),
        ["content-length", "content-type", "date", "retry-after"]
    );
    let seconds: u32 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!(seconds >= 1);
}

#[actix_web::test]
async fn other_paths_methods_and_types_get_the_frameworks_errors() {
    let app = Door::Token.app().await;
    let token = app.token(7);
    let ask = async |method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        app.client().await.request(method, path, headers, body).await
    };
    for path in [
        "/nope",
        "/chat/send/message",
        "/Send/Message",
        "/send",
        "/send/message/x",
        "/send/messages",
        "/tokens",
    ] {
        assert_framework(&ask("GET", path, &[], "").await, 404, "Not Found", path);
        assert_framework(
            &ask("POST", path, &[("Content-Type", "application/json")], "{}").await,
            404,
            "Not Found",
            path,
        );
    }
    let answer = ask("GET", "/nope?a=b", &[], "").await;
    assert_framework(&answer, 404, "Not Found", "/nope");

    for (path, methods, allow) in [
        (SEND, ["GET", "PUT", "DELETE"], "POST"),
        ("/send/message/", ["GET", "PATCH", "DELETE"], "POST"),
        ("/token", ["POST", "PUT", "DELETE"], "GET"),
        ("/token/", ["POST", "PUT", "DELETE"], "GET"),
        ("/", ["POST", "PUT", "DELETE"], "GET"),
        ("/chatting", ["POST", "PUT", "OPTIONS"], "GET"),
    ] {
        for method in methods {
            let answer = ask(method, path, &[("token", &token)], "").await;
            assert_framework(&answer, 405, "Method Not Allowed", path);
            assert_eq!(answer.header("allow"), Some(allow));
        }
    }
    // Its framework answers OPTIONS by itself, where it is no preflight.
    for (path, allow) in [
        (SEND, "POST,OPTIONS"),
        ("/send/message/", "POST,OPTIONS"),
        ("/token", "GET,HEAD,OPTIONS"),
        ("/token/", "GET,HEAD,OPTIONS"),
        ("/", "GET,HEAD,OPTIONS"),
    ] {
        let origin = ("Origin", "https://a.example");
        for headers in [&[][..], &[origin], &[("Access-Control-Request-Method", "GET")]] {
            let answer = ask("OPTIONS", path, headers, "").await;
            let told = (answer.status, answer.header("allow"), answer.text());
            assert_eq!(told, (200, Some(allow), ""), "{path} {headers:?}: {answer:?}");
        }
    }
    // What HAProxy probes with.
    let mut client = app.client().await;
    client.send_bytes(b"OPTIONS / HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.read_response(false).await.status, 200);

    for content_type in [
        Some("text/plain"),
        Some("text/plain;charset=UTF-8"),
        Some("application/x-www-form-urlencoded"),
        Some("application/xml"),
        Some("application/jsonx"),
        Some("text/json"),
        Some("nonsense"),
        Some(""),
        None,
    ] {
        let mut headers = vec![("token", token.as_str())];
        headers.extend(content_type.map(|value| ("Content-Type", value)));
        let answer = ask("POST", SEND, &headers, &chat(12, "x")).await;
        assert_framework(&answer, 415, "Unsupported Media Type", SEND);
    }
}

#[actix_web::test]
async fn a_refusal_leaves_its_connection_for_the_next_message_or_says_that_it_is_closed() {
    for door in Door::ALL {
        let app = door.app().await;
        app.go_live(12);
        let mut presenter = app.presenter(12).await;
        let known = door.headers(&app, 7);
        let known = borrowed(&known);
        let typed = |content_type| [&known[..], &[("Content-Type", content_type)]].concat();
        for (path, headers, body, status) in [
            (SEND, typed("application/json"), "{".to_owned(), 400),
            (SEND, typed("application/json"), "{}".into(), 400),
            (SEND, typed("application/json"), chat(13, "x"), 400),
            (SEND, typed("application/json"), chat(12, &"x".repeat(2001)), 422),
            (SEND, typed("application/json"), "x".repeat(65_537), 413),
            (SEND, typed("text/plain"), chat(12, "x"), 415),
            ("/nope", typed("application/json"), chat(12, "x"), 404),
            ("/", typed("application/json"), chat(12, "x"), 405),
            (
                SEND,
                vec![("token", "x"), ("Content-Type", "application/json")],
                chat(12, "x"),
                0,
            ),
        ] {
            let mut client = app.client().await;
            let answer = client.request("POST", path, &headers, body).await;
            assert!(
                answer.status == status || status == 0 && answer.status >= 400,
                "{answer:?}"
            );
            if answer
                .header("connection")
                .is_some_and(|value| value.eq_ignore_ascii_case("close"))
            {
                assert!(client.is_closed().await);
                client = app.client().await;
            }
            let answer = client.post_json(SEND, &known, chat(12, "after all")).await;
            assert_delivered(&answer);
            assert_eq!(presenter.next_json().await["message"], "after all");
        }
    }
}

// ---- the other routes --------------------------------------------------------------------------------------------

#[actix_web::test]
async fn the_root_says_that_the_server_is_running() {
    for door in [Door::Token, Door::SecretGateway] {
        let app = door.app().await;
        let answer = app.client().await.request("GET", "/", &[], "").await;
        assert_eq!((answer.status, answer.text()), (200, "Chatting Server is Running"));
        // As Spring answers it where GET is mapped.
        let mut client = app.client().await;
        let head = client.request("HEAD", "/", &[], "").await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("26")));
        assert_eq!(client.request("GET", "/", &[], "").await.text(), answer.text());
    }
}

#[actix_web::test]
async fn the_token_route_gives_the_user_idx_as_a_bare_number() {
    for door in [Door::Token, Door::SecretGateway] {
        let app = door.app().await;
        let mut client = app.client().await;
        for user in [0, 12, i64::MAX] {
            let token = app.token(user);
            for (path, name) in [("/token", "token"), ("/token", "Token"), ("/token/", "token")] {
                let answer = client.request("GET", path, &[(name, &token)], "").await;
                assert_eq!((answer.status, answer.text()), (200, user.to_string().as_str()));
            }
        }
        let answer = client.request("GET", "/token", &[], "").await;
        let message = "Missing request header 'token' for method parameter of type String";
        assert_refused(&answer, (400, 400), message, "/token");
        let answer = client.request("GET", "/token", &[("token", "")], "").await;
        assert_refused(&answer, (400, 401), "Token null", "/token");
        let answer = client.request("GET", "/token", &[("token", "토큰")], "").await;
        assert_refused(&answer, (400, 401), "Jwt Exception", "/token");
        for bad in bad_tokens(7) {
            let answer = client.request("GET", "/token", &[("token", &bad.token)], "").await;
            assert_eq!(answer.json()["message"], bad.legacy_text, "{}", bad.what);
            assert_refused(&answer, (400, 401), bad.legacy_text, "/token");
        }
    }
}

#[actix_web::test]
async fn with_legacy_off_its_routes_are_gone() {
    let app = Door::Token.app_with(|settings| settings.legacy.enabled = false).await;
    app.go_live(12);
    let token = app.token(12);
    for path in ["/", "/token", "/chatting"] {
        let answer = app.client().await.request("GET", path, &[("token", &token)], "").await;
        assert_eq!(answer.status, 404, "{path}");
    }
    for path in [SEND, "/send/message/"] {
        let answer = app
            .client()
            .await
            .post_json(path, &[("token", &token)], chat(12, "x"))
            .await;
        assert_eq!(answer.status, 404, "{path}");
        // No legacy routes, no CORS of theirs.
        let answer = app
            .client()
            .await
            .post_json(path, &[("Origin", "https://a.example")], "{}")
            .await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{answer:?}");
    }
    let upgrade = WsClient::connect_with(app.addr, "/chatting", &[], None).await;
    assert_eq!(upgrade.err().map(|answer| answer.status), Some(404));
    assert_eq!(app.post(12, 12, "v1").await.json()["code"], "presenter_disconnected");
}

// ---- CORS --------------------------------------------------------------------------------------------------------

const CORS: [&str; 6] = [
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-allow-credentials",
    "access-control-expose-headers",
    "access-control-max-age",
];

fn cors(answer: &Response) -> Vec<(String, String)> {
    let named = |(name, value): &(String, String)| (name.to_ascii_lowercase(), value.clone());
    let mut headers: Vec<_> = answer.headers.iter().map(named).collect();
    headers.retain(|(name, _)| name == "vary" || name.starts_with("access-control-"));
    headers.sort();
    headers
}

fn assert_open_to_all(answer: &Response) {
    let open = [("access-control-allow-origin", "*"), ("vary", "Origin")];
    assert_eq!(
        cors(answer),
        open.map(|(name, value)| (name.into(), value.into())),
        "{answer:?}"
    );
}

#[actix_web::test]
async fn every_answer_to_a_page_is_open_to_all_errors_too() {
    for (door, origin) in [(Door::Token, "https://a.example"), (Door::SecretGateway, "null")] {
        let app = door.app().await;
        app.go_live(7);
        app.go_live(12);
        let _presenter = app.presenter(12).await;
        let known = door.headers(&app, 7);
        let mut known = borrowed(&known);
        known.push(("Origin", origin));
        let stranger = [("Origin", origin)];
        let typed = [("Origin", origin), ("Content-Type", "text/plain")];
        let token = app.token(7);
        let mut client = app.client().await;
        let answers = [
            (200, client.post_json(SEND, &known, chat(12, "x")).await),
            (200, client.post_json("/send/message/", &known, chat(12, "x")).await),
            (400, client.post_json(SEND, &known, chat(13, "x")).await),
            (
                202,
                client
                    .post_json(SEND, &known, r#"{"userType":"presenter","textMessage":"x"}"#)
                    .await,
            ),
            (400, client.post_json(SEND, &known, "{").await),
            (422, client.post_json(SEND, &known, chat(12, &"x".repeat(2001))).await),
            (413, client.post_json(SEND, &known, "x".repeat(65_537)).await),
            (
                if matches!(door, Door::Token) { 400 } else { 403 },
                post_on_new(&app, &stranger).await,
            ),
            (405, app.client().await.request("GET", SEND, &stranger, "").await),
            (404, app.client().await.request("GET", "/nope", &stranger, "").await),
            (200, app.client().await.request("GET", "/", &stranger, "").await),
            (405, app.client().await.request("POST", "/", &typed, "").await),
            (400, app.client().await.request("GET", "/token", &stranger, "").await),
            (
                200,
                app.client()
                    .await
                    .request("GET", "/token", &[stranger[0], ("token", &token)], "")
                    .await,
            ),
            (400, app.client().await.request("GET", "/chatting", &stranger, "").await),
        ];
        for (n, (status, answer)) in answers.iter().enumerate() {
            assert_eq!(answer.status, *status, "answer {n}: {answer:?}");
            assert_open_to_all(answer);
        }
        let upgraded = WsClient::connect_with(app.addr, "/chatting", &stranger, None).await;
        let upgraded = upgraded.unwrap_or_else(|answer| panic!("{answer:?}"));
        assert_open_to_all(&upgraded.upgrade);
        // Nobody asked from a page, nobody is told.
        let plain = app.client().await.request("GET", "/", &[], "").await;
        assert_eq!(cors(&plain), []);
    }
}

async fn post_on_new(app: &TestApp, headers: &[(&str, &str)]) -> Response {
    app.client().await.post_json(SEND, headers, chat(12, "x")).await
}

async fn preflight(client: &mut HttpClient, path: &str, method: &str, headers: Option<&str>) -> Response {
    let mut all = vec![
        ("Origin", "https://a.example"),
        ("Access-Control-Request-Method", method),
    ];
    all.extend(headers.map(|headers| ("Access-Control-Request-Headers", headers)));
    client.request("OPTIONS", path, &all, "").await
}

#[actix_web::test]
async fn a_preflight_gets_back_what_it_asked_for_except_a_gateways_headers() {
    for door in [Door::Token, Door::SecretGateway] {
        let app = door.app().await;
        let mut client = app.client().await;
        for (path, method) in [
            (SEND, "POST"),
            ("/send/message/", "POST"),
            ("/token", "GET"),
            ("/", "GET"),
            ("/chatting", "GET"),
        ] {
            let answer = preflight(&mut client, path, method, Some("content-type, token")).await;
            assert_eq!((answer.status, answer.text()), (200, ""), "{path}");
            let expected = [
                ("access-control-allow-headers", "content-type, token"),
                ("access-control-allow-methods", method),
                ("access-control-allow-origin", "*"),
                ("access-control-max-age", "1800"),
                ("vary", "Origin"),
            ];
            assert_eq!(
                cors(&answer),
                expected.map(|(name, value)| (name.into(), value.into())),
                "{path}"
            );
        }
        for (asked, allowed) in [
            (Some("token"), Some("token")),
            (
                Some("content-type,x-forward-useridx,token"),
                Some("content-type, token"),
            ),
            (Some("X-Forward-Nickname, Content-Type"), Some("Content-Type")),
            (Some("x-forward-userIdx, x-forward-email, x-forward-nickname"), None),
            (Some("x-gateway-secret"), None),
            (Some("X-GATEWAY-SECRET, X-FORWARD-EMAIL"), None),
            (Some(""), None),
            (None, None),
        ] {
            let answer = preflight(&mut client, SEND, "POST", asked).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
            assert_eq!(answer.header("access-control-allow-headers"), allowed, "{asked:?}");
        }
    }
}

#[actix_web::test]
async fn operations_tell_nothing_of_cors() {
    let app = Door::Token.app().await;
    let mut client = app.client().await;
    // The router reads `%6c` as `l`, and so does what decides of CORS.
    for path in ["/livez", "/readyz", "/metrics", "/%6civez", "/re%61dyz", "/%6Detrics"] {
        let answer = client
            .request("GET", path, &[("Origin", "https://a.example")], "")
            .await;
        assert_eq!(answer.status, 200, "{path}");
        for name in CORS {
            assert_eq!(answer.header(name), None, "{path}");
        }
        let answer = preflight(&mut client, path, "GET", Some("token")).await;
        assert_eq!(cors(&answer), [], "{path}");
    }
}

/// So that the helper of the other tests is not the one that is wrong.
#[actix_web::test]
async fn a_token_made_by_hand_is_as_good_as_the_servers_own() {
    let app = Door::Token.app().await;
    let mut client = app.client().await;
    for token in [signed(&claims(12)), token_of(&app.settings, 12, "kim")] {
        let answer = client.request("GET", "/token", &[("token", &token)], "").await;
        assert_eq!((answer.status, answer.text()), (200, "12"));
    }
}
