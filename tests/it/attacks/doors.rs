//! The attacks on the doors themselves: which header counts, whom a gateway may speak for, what a page may ask for.

use chatting_server::settings::{Algorithm, AuthMode, Secret, Settings};
use serde_json::json;

use super::SECURITY;
use crate::support::{
    app::{TestApp, spawn_app},
    http::Response,
    keys::KeyPair,
    presenter::V1,
    tokens::{claims, sign_with, signed},
};

const SECRET: &str = "only the gateway knows";

type Headers = Vec<(&'static str, String)>;

/// Which server is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// `auth.mode = "token"`
    Token,
    /// `auth.mode = "gateway"`, and we are the gateway, with its secret.
    Gateway,
    /// The same, and we are not.
    Stranger,
}

impl Mode {
    async fn app(self) -> TestApp {
        self.app_with(|_| {}).await
    }

    async fn app_with(self, more: impl FnOnce(&mut Settings)) -> TestApp {
        let change = move |settings: &mut Settings| {
            more(settings);
            if self != Self::Token {
                settings.auth.mode = AuthMode::Gateway;
                settings.auth.gateway_secret = Secret::new(SECRET);
                let trusted = if self == Self::Gateway {
                    "127.0.0.1"
                } else {
                    "10.0.0.0/8"
                };
                settings.auth.trusted_proxies = vec![trusted.into()];
            }
        };
        let app = spawn_app(change).await;
        app.go_live(12);
        app
    }

    fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Gateway => "gateway, from the gateway",
            Self::Stranger => "gateway, from another",
        }
    }
}

struct Trick {
    name: &'static str,
    mode: Mode,
    headers: Headers,
    users: Users,
}

/// Who the message is of where it is taken: on v1, and on the old route.
type Users = [Option<i64>; 2];

const SEVEN: Users = [Some(7); 2];
const NOBODY: Users = [None; 2];

fn bearer(token: &str) -> (&'static str, String) {
    ("Authorization", format!("Bearer {token}"))
}

fn token(token: &str) -> (&'static str, String) {
    ("token", token.to_owned())
}

fn forward(user: i64) -> Headers {
    vec![
        ("x-forward-userIdx", user.to_string()),
        ("x-forward-email", "kim@example.com".into()),
        ("x-forward-nickname", "kim".into()),
    ]
}

fn secret() -> (&'static str, String) {
    ("x-gateway-secret", SECRET.to_owned())
}

fn and(mut headers: Headers, more: impl IntoIterator<Item = (&'static str, String)>) -> Headers {
    headers.extend(more);
    headers
}

fn tricks() -> Vec<Trick> {
    let good = signed(&claims(7));
    let key = "another key for tests, of thirty-two bytes or more";
    let header = r#"{"alg":"HS256","typ":"JWT"}"#;
    let forged = sign_with(header, &claims(99), jsonwebtoken::Algorithm::HS256, key);
    let elsewhere = KeyPair::generate(Algorithm::Rs256, "theirs").token(&claims(99));
    let trick = |mode, name, headers: Headers, users: Users| Trick {
        name,
        mode,
        headers,
        users,
    };
    let mut tricks = vec![];
    let mut by_token = |name, headers, users| tricks.push(trick(Mode::Token, name, headers, users));
    by_token("no token", vec![], NOBODY);
    by_token(
        "`Authorization` twice: good, forged",
        vec![bearer(&good), bearer(&forged)],
        NOBODY,
    );
    by_token(
        "`Authorization` twice: forged, good",
        vec![bearer(&forged), bearer(&good)],
        NOBODY,
    );
    by_token(
        "`token` twice: good, forged",
        vec![token(&good), token(&forged)],
        NOBODY,
    );
    by_token(
        "`token` twice: forged, good",
        vec![token(&forged), token(&good)],
        NOBODY,
    );
    by_token(
        "`Authorization` forged, `token` good",
        vec![bearer(&forged), token(&good)],
        [None, Some(7)],
    );
    by_token(
        "`Authorization` of another service, `token` good",
        vec![bearer(&elsewhere), token(&good)],
        [None, Some(7)],
    );
    by_token(
        "`Authorization` good, `token` forged",
        vec![bearer(&good), token(&forged)],
        [Some(7), None],
    );
    by_token(
        "`Authorization` good, `token` twice: good, forged",
        vec![bearer(&good), token(&good), token(&forged)],
        NOBODY,
    );
    by_token(
        "`Authorization` another scheme",
        vec![("Authorization", format!("Basic {good}"))],
        NOBODY,
    );
    by_token(
        "`Authorization` without a scheme",
        vec![("Authorization", good.clone())],
        NOBODY,
    );
    by_token(
        "`Authorization` with two tokens",
        vec![bearer(&format!("{good} {good}"))],
        NOBODY,
    );
    by_token("x-forward headers and no token", forward(99), NOBODY);
    by_token(
        "x-forward headers and the secret of a gateway, no token",
        and(forward(99), [secret()]),
        NOBODY,
    );
    by_token(
        "x-forward headers of another user, a good token",
        and(forward(99), [token(&good)]),
        SEVEN,
    );
    by_token(
        "x-forward headers of another user, a forged token",
        and(forward(7), [token(&forged)]),
        NOBODY,
    );

    let mut by_gateway = |name, headers, users| tricks.push(trick(Mode::Gateway, name, headers, users));
    by_gateway("as it should be", and(forward(7), [secret()]), SEVEN);
    by_gateway("no secret", forward(7), NOBODY);
    by_gateway(
        "a wrong secret",
        and(forward(7), [("x-gateway-secret", "guessed".into())]),
        NOBODY,
    );
    by_gateway(
        "the secret cut short",
        and(forward(7), [("x-gateway-secret", SECRET[..8].into())]),
        NOBODY,
    );
    by_gateway(
        "the secret twice: wrong, right",
        and(forward(7), [("x-gateway-secret", "guessed".into()), secret()]),
        NOBODY,
    );
    by_gateway(
        "the secret twice: right, wrong",
        and(forward(7), [secret(), ("x-gateway-secret", "guessed".into())]),
        NOBODY,
    );
    by_gateway(
        "`x-forward-userIdx` twice",
        and(forward(7), [secret(), ("x-forward-userIdx", "99".into())]),
        NOBODY,
    );
    by_gateway(
        "`x-forward-nickname` twice",
        and(forward(7), [secret(), ("X-FORWARD-NICKNAME", "boss".into())]),
        NOBODY,
    );
    by_gateway(
        "`x-forward-userIdx` a list",
        {
            let mut headers = and(forward(7), [secret()]);
            headers[0].1 = "7, 99".into();
            headers
        },
        NOBODY,
    );
    by_gateway(
        "`x-forward-userIdx` -1",
        {
            let mut headers = and(forward(7), [secret()]);
            headers[0].1 = "-1".into();
            headers
        },
        NOBODY,
    );
    by_gateway(
        "a good token and no x-forward headers",
        vec![secret(), token(&good)],
        NOBODY,
    );
    by_gateway(
        "x-forward headers, a token of another user",
        and(forward(7), [secret(), token(&signed(&claims(99)))]),
        SEVEN,
    );

    let mut by_stranger = |name, headers, users| tricks.push(trick(Mode::Stranger, name, headers, users));
    by_stranger("x-forward headers", forward(7), NOBODY);
    by_stranger(
        "x-forward headers and the right secret",
        and(forward(7), [secret()]),
        NOBODY,
    );
    by_stranger(
        "x-forward headers, forwarded for a gateway's address",
        and(
            forward(7),
            [
                secret(),
                ("X-Forwarded-For", "10.0.0.1".into()),
                ("X-Real-IP", "10.0.0.1".into()),
                ("Forwarded", "for=10.0.0.1".into()),
            ],
        ),
        NOBODY,
    );
    by_stranger("a good token", vec![token(&good)], NOBODY);
    tricks
}

#[actix_web::test]
async fn whoever_borrows_another_name_by_headers_gets_what_the_security_page_says() {
    let mut table = String::from("| request | `auth.mode` | v1 | legacy |\n|---|---|---|---|\n");
    for mode in [Mode::Token, Mode::Gateway, Mode::Stranger] {
        let app = mode.app().await;
        let mut presenter = V1::of(&app, 12, json!({})).await;
        for trick in tricks().into_iter().filter(|trick| trick.mode == mode) {
            let headers: Vec<_> = trick
                .headers
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            let name = trick.name;
            let before = app.metric("chat_forward_refused_total").await.unwrap();
            let body = r#"{"text":"hi"}"#;
            let v1 = app
                .client()
                .await
                .post_json("/v1/rooms/12/messages", &headers, body)
                .await;
            let body = r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#;
            let legacy = app.client().await.post_json("/send/message", &headers, body).await;
            let mut users = [None; 2];
            for (user, taken) in users.iter_mut().zip([v1.status == 201, legacy.status == 200]) {
                if taken {
                    *user = presenter.chat().await["user_idx"].as_i64();
                }
            }
            assert_eq!(users, trick.users, "{name} ({}): {v1:?} {legacy:?}", mode.name());
            let counted = app.metric("chat_forward_refused_total").await.unwrap() - before;
            let forbidden = [v1.status, legacy.status]
                .iter()
                .filter(|status| **status == 403)
                .count();
            assert_eq!(counted, forbidden as f64, "{name}: what was tried is counted");
            table += &format!(
                "| {name} | {} | {} | {} |\n",
                mode.name(),
                told(&v1, users[0]),
                told(&legacy, users[1])
            );
        }
        presenter.settle().await;
    }
    println!("{table}");
    assert!(
        SECURITY.contains(&table),
        "docs/SECURITY.md has another table than this:\n\n{table}"
    );
}

fn told(answer: &Response, user: Option<i64>) -> String {
    if let Some(user) = user {
        return format!("taken, of user {user}");
    }
    let body = answer.json();
    match body["code"].as_str() {
        Some(code) => format!("{} `{code}`", answer.status),
        None => format!("{} {}", answer.status, body["message"].as_str().unwrap()),
    }
}

#[actix_web::test]
async fn a_header_that_is_there_twice_is_named_and_said_to_be_there_twice() {
    let good = signed(&claims(7));
    let with = |name: &'static str, value: &str| and(forward(7), [secret(), (name, value.to_owned())]);
    let in_korean = |name: &str| format!("같은 요청 헤더가 두 번 있습니다: {name}");
    let no_jwt = || "Jwt Exception".to_owned();
    let rows = [
        (
            Mode::Gateway,
            with("x-forward-userIdx", "99"),
            "x-forward-userIdx",
            in_korean("x-forward-userIdx"),
        ),
        (
            Mode::Gateway,
            with("x-forward-nickname", "boss"),
            "x-forward-nickname",
            in_korean("x-forward-nickname"),
        ),
        (
            Mode::Gateway,
            and(with("x-role", "operator"), [("x-role", "viewer".into())]),
            "X-Role",
            in_korean("X-Role"),
        ),
        (
            Mode::Gateway,
            with("x-gateway-secret", "guessed"),
            "x-gateway-secret",
            "권한이 없습니다".into(),
        ),
        (
            Mode::Token,
            vec![bearer(&good), bearer(&good)],
            "Authorization",
            no_jwt(),
        ),
        (Mode::Token, vec![token(&good), token(&good)], "token", no_jwt()),
    ];
    for mode in [Mode::Gateway, Mode::Token] {
        let app = mode
            .app_with(|settings| settings.auth.gateway_role_header = "X-Role".into())
            .await;
        for (_, headers, name, korean) in rows.iter().filter(|row| row.0 == mode) {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let v1 = app
                .client()
                .await
                .post_json("/v1/rooms/12/messages", &headers, r#"{"text":"hi"}"#)
                .await;
            assert_eq!(
                v1.json()["detail"],
                format!("the header {name} is there twice"),
                "{v1:?}"
            );
            let body = r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#;
            let legacy = app.client().await.post_json("/send/message", &headers, body).await;
            assert_eq!(legacy.json()["message"], korean.as_str(), "{name}: {legacy:?}");
        }
        let counted = app.metric("chat_tokens_refused_total{reason=\"twice\"}").await;
        assert_eq!(counted, Some(if mode == Mode::Token { 4.0 } else { 0.0 }));
    }
}

#[actix_web::test]
async fn what_is_wrong_with_a_gateways_headers_is_told_in_english_on_v1_and_in_the_old_texts_on_legacy_routes() {
    let app = Mode::Gateway.app().await;
    let changed = |index: usize, value: &str| {
        let mut headers = and(forward(7), [secret()]);
        headers[index].1 = value.to_owned();
        headers
    };
    let rows = [
        (changed(0, "x"), "x-forward-userIdx는 0 이상의 숫자여야 합니다."),
        (
            changed(2, "%zz"),
            "x-forward-nickname은 URL 인코딩된 UTF-8이어야 합니다.",
        ),
        (
            vec![secret()],
            "Missing request header 'x-forward-userIdx' for method parameter of type String",
        ),
    ];
    for (headers, old) in rows {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let v1 = app
            .client()
            .await
            .post_json("/v1/rooms/12/messages", &headers, r#"{"text":"hi"}"#)
            .await;
        let detail = v1.json()["detail"].as_str().unwrap().to_owned();
        assert!(
            detail.is_ascii() && detail.starts_with("the header x-forward-"),
            "{detail}"
        );
        let body = r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#;
        let legacy = app.client().await.post_json("/send/message", &headers, body).await;
        assert_eq!((legacy.status, &legacy.json()["message"]), (400, &json!(old)));
    }
}

#[actix_web::test]
async fn no_page_is_ever_told_that_it_may_send_the_gateways_headers() {
    for mode in [Mode::Token, Mode::Gateway] {
        let app = mode
            .app_with(|settings| {
                settings.cors.origins = vec!["https://evil.example".into()];
                settings.auth.gateway_role_header = "X-Role".into();
            })
            .await;
        for (path, method) in [
            ("/send/message", "POST"),
            ("/token", "GET"),
            ("/v1/rooms/12/messages", "POST"),
        ] {
            for asked in [
                "x-forward-userIdx",
                "X-Forward-UserIdx, X-FORWARD-EMAIL,x-forward-nickname",
                "content-type, x-forward-useridx, token",
                "content-type, x-role",
                "x-gateway-secret",
                "x-forward-userIdx\t",
                // To a browser that sends no credentials the answer `*` names every header.
                "*",
                "*, content-type, x-forward-userIdx",
            ] {
                let headers = [
                    ("Origin", "https://evil.example"),
                    ("Access-Control-Request-Method", method),
                    ("Access-Control-Request-Headers", asked),
                ];
                let answer = app.client().await.request("OPTIONS", path, &headers, "").await;
                let allowed = answer
                    .header("access-control-allow-headers")
                    .unwrap_or_default()
                    .to_lowercase();
                assert!(
                    !allowed.contains("forward") && !allowed.contains("gateway"),
                    "{path} {asked}: {answer:?}"
                );
                assert_eq!(
                    allowed.contains("content-type"),
                    asked.contains("content-type"),
                    "{path} {asked}: {answer:?}"
                );
                let sets_role = mode == Mode::Gateway;
                assert_eq!(
                    allowed.contains("x-role"),
                    asked.contains("x-role") && !sets_role,
                    "{path} {asked}: {answer:?}"
                );
                assert!(
                    allowed.split(',').all(|name| name.trim() != "*"),
                    "{path} {asked}: {answer:?}"
                );
                assert_eq!(answer.header("access-control-allow-credentials"), None);
            }
        }
    }
}
