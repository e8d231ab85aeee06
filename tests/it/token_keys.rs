//! Keys of the settings: which algorithm, from where, and what stops a start.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chatting_server::settings::{Algorithm, Secret, Settings};
use serde_json::{Value, json};

use crate::support::{
    app::{KEY, TestApp, post_v1, settings, spawn_app, spawn_in},
    command::run,
    http::HttpClient,
    keys::{KeyPair, pem},
    presenter::{connect, end_of},
    process::ScratchDir,
    tokens::{claims, sign_with, signed},
};

/// The settings of a server with this public key and no other.
fn by(settings: &mut Settings, key: &KeyPair) {
    settings.auth.hs256_secret = Secret::new("");
    settings.auth.algorithm = key.algorithm;
    settings.auth.public_key = key.public_pem.clone();
}

/// What `GET /token` says of a token: the user it is of, or the legacy text.
async fn who(app: &TestApp, token: &str) -> String {
    let answer = app
        .client()
        .await
        .request("GET", "/token", &[("token", token)], "")
        .await;
    match answer.status {
        200 => answer.text().to_owned(),
        _ => answer.json()["message"].as_str().unwrap().to_owned(),
    }
}

const FORGED: &str = "토큰이 변조되었습니다.";
const WRONG_KIND: &str = "토큰의 유형이 아닙니다.";

#[actix_web::test]
async fn each_algorithm_lets_its_own_tokens_through_every_door_and_no_other_algorithms() {
    let algorithms: Vec<_> = Algorithm::ALL.iter().filter(|one| **one != Algorithm::Hs256).collect();
    let pairs: Vec<_> = algorithms.iter().map(|one| KeyPair::generate(**one, "one")).collect();
    for pair in &pairs {
        let app = spawn_app(|settings| by(settings, pair)).await;
        app.go_live(12);
        let mut socket = connect(app.addr).await;
        let hello = json!({ "type": "hello", "token": pair.token(&claims(12)) });
        socket.send_text(&hello.to_string()).await;
        assert_eq!(socket.next_json().await["type"], "welcome", "{}", pair.algorithm);
        let mut client = HttpClient::connect(app.addr).await;
        let sent = post_v1(&mut client, 12, &pair.token(&claims(7)), "hi").await;
        assert_eq!(sent.status, 201, "{}: {sent:?}", pair.algorithm);
        assert_eq!(socket.next_json().await["text"], "hi");
        for other in &pairs {
            let told = who(&app, &other.token(&claims(7))).await;
            let expected = if other.kid == pair.kid && other.public_pem == pair.public_pem {
                "7"
            } else if other.algorithm == pair.algorithm {
                FORGED
            } else {
                WRONG_KIND
            };
            assert_eq!(told, expected, "{} at {}", other.algorithm, pair.algorithm);
        }
        let again = KeyPair::generate(pair.algorithm, "one");
        assert_eq!(who(&app, &again.token(&claims(7))).await, FORGED, "{}", pair.algorithm);
        assert_eq!(who(&app, &signed(&claims(7))).await, WRONG_KIND, "{}", pair.algorithm);
    }
}

/// The value of an environment variable is often a file's content, and a file ends its line.
#[actix_web::test]
async fn a_line_break_at_the_end_of_an_hs256_secret_is_none_of_the_key_the_previous_one_either() {
    let old = "the secret before, of thirty-two bytes or more";
    let by_old = sign_with(
        r#"{"alg":"HS256","typ":"JWT"}"#,
        &claims(7),
        jsonwebtoken::Algorithm::HS256,
        old,
    );
    for ending in ["\n", "\r\n"] {
        let app = spawn_app(|settings| {
            settings.auth.hs256_secret = Secret::new(format!("{KEY}{ending}"));
            settings.auth.previous_hs256_secret = Secret::new(format!("{old}{ending}"));
        })
        .await;
        assert_eq!(who(&app, &signed(&claims(8))).await, "8", "{ending:?}");
        assert_eq!(who(&app, &by_old).await, "7", "{ending:?}");
    }
}

#[actix_web::test]
async fn a_previous_key_counts_beside_the_present_one_also_of_another_algorithm() {
    let pair = KeyPair::generate(Algorithm::EdDsa, "new");
    let app = spawn_app(|settings| {
        by(settings, &pair);
        settings.auth.previous_algorithm = "HS256".into();
        settings.auth.previous_hs256_secret = Secret::new(KEY);
    })
    .await;
    assert_eq!(who(&app, &pair.token(&claims(7))).await, "7");
    assert_eq!(who(&app, &signed(&claims(8))).await, "8");
    // Each key is for its own algorithm: what is signed with one and named as the other's is nobody's.
    let confused = crate::support::keys::signed_with(
        r#"{"alg":"HS256","typ":"JWT"}"#,
        &claims(7).to_string(),
        &jsonwebtoken::EncodingKey::from_secret(pair.public_pem.as_bytes()),
        jsonwebtoken::Algorithm::HS256,
    );
    assert_eq!(who(&app, &confused).await, FORGED);
}

// ---- the start ------------------------------------------------------------------------------------------------------

#[actix_web::test]
async fn a_previous_key_is_a_secret_in_base64_or_a_public_key_in_the_settings_as_well() {
    let old = "the secret before, of thirty-two bytes or more";
    let by_old = sign_with(
        r#"{"alg":"HS256","typ":"JWT"}"#,
        &claims(7),
        jsonwebtoken::Algorithm::HS256,
        old,
    );
    let app = spawn_app(|settings| {
        settings.auth.previous_hs256_secret_base64 = Secret::new(STANDARD.encode(old));
    })
    .await;
    assert_eq!(who(&app, &by_old).await, "7");
    assert_eq!(who(&app, &signed(&claims(8))).await, "8");
    let pair = KeyPair::generate(Algorithm::Es256, "before");
    let app = spawn_app(|settings| {
        settings.auth.previous_algorithm = "ES256".into();
        settings.auth.previous_public_key = pair.public_pem.clone();
    })
    .await;
    assert_eq!(who(&app, &pair.token(&claims(7))).await, "7");
    assert_eq!(who(&app, &signed(&claims(8))).await, "8");
    assert_eq!(who(&app, &by_old).await, FORGED);
}

#[actix_web::test]
async fn a_token_must_have_the_issuer_and_the_audience_of_the_settings_and_its_claims_their_names() {
    let app = spawn_app(|settings| {
        settings.auth.issuer = "https://id.example".into();
        settings.auth.audience = "chat".into();
        settings.auth.claim_user = "uid".into();
        settings.auth.claim_nickname = "name".into();
        settings.auth.claim_role = "part".into();
        settings.auth.claim_rooms = "where".into();
    })
    .await;
    app.go_live(12);
    let _presenter = {
        let token = json!({ "uid": 12, "iss": "https://id.example", "aud": "chat", "exp": claims(12)["exp"] });
        let mut socket = connect(app.addr).await;
        let hello = json!({ "type": "hello", "token": signed(&token) });
        socket.send_text(&hello.to_string()).await;
        assert_eq!(socket.next_json().await["type"], "welcome");
        socket
    };
    let good = json!({
        "uid": 7, "name": "lee", "part": "moderator", "where": [12], "iss": "https://id.example", "aud": ["other", "chat"],
        "exp": claims(7)["exp"],
        // What the claims are called by default says nothing here.
        "user_idx": 99, "nickname": "boss", "role": "operator", "rooms": "*",
    });
    let mut client = HttpClient::connect(app.addr).await;
    let sent = post_v1(&mut client, 12, &signed(&good), "hi").await;
    assert_eq!(sent.status, 201, "{sent:?}");
    let token = signed(&good);
    let read = client
        .request("GET", "/v1/rooms/12/messages", &[("token", &token)], "")
        .await;
    let message = &read.json()["messages"][0];
    assert_eq!(
        [&message["user_idx"], &message["nickname"], &message["role"]],
        [&json!(7), &json!("lee"), &json!("moderator")]
    );
    for (room, status) in [(12, 200), (13, 403)] {
        let path = format!("/v1/rooms/{room}/messages?user_idx=1000");
        let deleted = app
            .client()
            .await
            .request("DELETE", &path, &[("token", &token)], "")
            .await;
        assert_eq!(deleted.status, status, "room {room}: {deleted:?}");
    }
    let rows = [
        ("iss", json!("https://id.example/"), "iss"),
        ("iss", json!(null), "iss"),
        ("aud", json!("shop"), "aud"),
        ("aud", json!(null), "aud"),
        ("uid", json!(null), "user"),
        ("name", json!(null), "nickname"),
    ];
    for (name, value, told) in rows {
        let mut bad = good.clone();
        match value {
            Value::Null => drop(bad.as_object_mut().unwrap().remove(name)),
            value => bad[name] = value,
        }
        let refused = post_v1(&mut app.client().await, 12, &signed(&bad), "hi").await;
        assert_eq!(refused.status, 401, "{bad}: {refused:?}");
        let detail = format!("the token's claim for {told} is missing or not valid");
        assert_eq!(refused.json()["detail"], detail, "{bad}");
    }
    let counted = app.metric("chat_tokens_refused_total{reason=\"bad_claim\"}").await;
    assert_eq!(
        counted,
        Some(6.0),
        "each is counted, also the good token without a name"
    );
}

#[actix_web::test]
async fn a_bad_key_stops_the_start_and_check_config_with_64_and_its_name_and_never_shows_it() {
    let dir = ScratchDir::new("badkey");
    let pair = KeyPair::generate(Algorithm::Es256, "one");
    let other = KeyPair::generate(Algorithm::Es384, "two");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("private.pem", &pair.private_pem);
    write("other.pem", &other.public_pem);
    write("good.pem", &pair.public_pem);
    write("short", "short\n");
    write("ca.pem", "nothing");
    write("jwks.json", r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#);
    let jwks = format!("auth.jwks_url=file://{}", dir.path().join("jwks.json").display());
    let es256 = "auth.algorithm=ES256";
    let rows: [(&[&str], &str); 9] = [
        (
            &[es256, "auth.key_file=private.pem"],
            "auth.key_file: it is a private key",
        ),
        (
            &[es256, "auth.key_file=other.pem"],
            "auth.key_file: it is not an EC public key on the curve P-256",
        ),
        (
            &[es256, "auth.key_file=nowhere.pem"],
            "auth.key_file: nowhere.pem cannot be read",
        ),
        (&["auth.key_file=short"], "auth.key_file: it has fewer than 32 bytes"),
        (&["auth.key_file=good.pem"], "auth.key_file: it is a PEM"),
        (
            &[es256, "auth.key_file=good.pem", "auth.previous_key_file=private.pem"],
            "auth.previous_key_file: it is a private key",
        ),
        (&["auth.algorithm=HS512"], "auth.algorithm"),
        (
            &["auth.jwks_url=https://localhost:1/", "auth.jwks_ca_file=ca.pem"],
            "auth.jwks_ca_file: ca.pem",
        ),
        (&[&jwks], "auth.jwks_url: the JWK set has no key to use"),
    ];
    let secret_lines: Vec<_> = pair.private_pem.lines().filter(|line| !line.starts_with('-')).collect();
    for (sets, expected) in rows {
        let mut args = vec!["serve", "--set", "server.bind=127.0.0.1:0"];
        args.extend(sets.iter().flat_map(|set| ["--set", set]));
        let (code, _, error) = run(&dir, &args, &[]);
        assert_eq!(code, 64, "{sets:?}: {error}");
        assert!(error.contains(expected), "{sets:?}: {error}");
        assert!(!secret_lines.iter().any(|line| error.contains(line)), "{error}");
        let (code, _, error) = run(&dir, &[&["check-config"], &args[1..]].concat(), &[]);
        assert_eq!(code, 64, "{sets:?}: {error}");
        assert!(error.contains(expected), "{sets:?}: {error}");
    }
}

#[actix_web::test]
async fn a_token_minted_with_a_private_key_is_read_by_a_server_that_has_the_public_one() {
    let dir = ScratchDir::new("mint");
    for algorithm in [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa] {
        let pair = KeyPair::generate(algorithm, "one");
        std::fs::write(dir.path().join("private.pem"), &pair.private_pem).unwrap();
        let args = [
            "token",
            "--user",
            "12",
            "--key-file",
            "private.pem",
            "--algorithm",
            algorithm.name(),
            "--kid",
            "one",
        ];
        let (code, token, error) = run(&dir, &args, &[]);
        assert_eq!(code, 0, "{error}");
        let mut settings = settings(&dir);
        by(&mut settings, &pair);
        settings.log.path = dir.path().join(format!("{algorithm}.db")).display().to_string();
        let app = spawn_in(ScratchDir::new("reader"), settings).await;
        assert_eq!(who(&app, token.trim()).await, "12", "{algorithm}");
    }
    let (code, _, error) = run(&dir, &["token", "--user", "12", "--key-file", "private.pem"], &[]);
    assert_eq!(code, 1);
    assert!(error.contains("name the key's algorithm by --algorithm"), "{error}");
}

#[actix_web::test]
async fn rooms_are_a_moderators_and_are_numbers_or_all() {
    let dir = ScratchDir::new("rooms");
    let env = [("CHAT__AUTH__HS256_SECRET", KEY)];
    let token = ["token", "--user", "7"];
    for (more, told) in [
        (
            &["--role", "moderator", "--room", "x"][..],
            "a presenter's number, or *",
        ),
        (
            &["--role", "moderator", "--room", "12,13"],
            "a presenter's number, or *",
        ),
        (&["--role", "moderator", "--room=-1"], "a presenter's number, or *"),
        (&["--room", "12"], "with --role moderator only"),
        (&["--role", "operator", "--room", "12"], "with --role moderator only"),
    ] {
        let (code, out, error) = run(&dir, &[&token[..], more].concat(), &env);
        assert_eq!((code, &*out), (2, ""), "{more:?}: {error}");
        assert!(error.contains("--room") && error.contains(told), "{more:?}: {error}");
    }
    let (code, out, error) = run(
        &dir,
        &[&token[..], &["--role", "moderator", "--room", "12", "--room", "*"]].concat(),
        &env,
    );
    assert_eq!(code, 0, "{error}");
    let claims = out.split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    assert_eq!(claims["rooms"], json!(["12", "*"]));
}

#[actix_web::test]
async fn presenters_are_refused_in_their_own_words_whatever_the_algorithm() {
    let pair = KeyPair::generate(Algorithm::Rs256, "one");
    let app = spawn_app(|settings| by(settings, &pair)).await;
    let mut socket = connect(app.addr).await;
    socket
        .send_text(&json!({ "type": "hello", "token": signed(&claims(12)) }).to_string())
        .await;
    assert_eq!(end_of(&mut socket).await, ("unauthenticated".into(), 4001));
    // The same key in the older PEM of RSA, which holds only the inner sequence.
    let inner = &pair.public_der[pair.public_der.len() - 270..];
    assert_eq!(inner[0], 0x30, "an RSA key of 2048 bits");
    let older = spawn_app(|settings| {
        by(settings, &pair);
        settings.auth.public_key = pem("RSA PUBLIC KEY", inner);
    })
    .await;
    assert_eq!(who(&older, &pair.token(&claims(7))).await, "7");
}
