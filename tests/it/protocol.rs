//! docs/PROTOCOL.md and docs/asyncapi.json say what the server does. What it sends is driven out of it here, frame by frame
//! and close by close, and held against both; what they show is played to it.

use std::collections::{BTreeMap, BTreeSet};

use chatting_actors::{
    session::Close,
    wire::v1::{ClientFrame, ServerFrame, parse_client},
};
use chatting_server::{
    error::Code,
    settings::{Algorithm, LogBackend, Secret, Settings},
};
use futures_util::future::{LocalBoxFuture, join_all};
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, post_v1, spawn_app, token_of},
    documents::{self, fenced, name, settings_named, table},
    eventually,
    keys::KeyPair,
    presenter::{V1, connect, hello, token, upgrade},
    tokens::{claims, signed},
    ws::{Frame, Incoming, TEXT, WsClient},
};

const PROTOCOL: &str = include_str!("../../docs/PROTOCOL.md");
const ASYNCAPI: &str = include_str!("../../docs/asyncapi.json");

// ---- reading the documents ------------------------------------------------------------------------------------------

/// docs/asyncapi.json.
struct Document(Value);

impl Document {
    fn read() -> Self {
        Self(serde_json::from_str(ASYNCAPI).unwrap())
    }

    /// What a reference within the document points at.
    fn at<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value.get("$ref") else {
            return value;
        };
        let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
        let target = self
            .0
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{reference} leads nowhere"));
        self.at(target)
    }

    /// The messages of an operation, by the `type` of their frames. The server `send`s and `receive`s.
    fn messages(&self, operation: &str) -> BTreeMap<&str, &Value> {
        let messages = self.0["operations"][operation]["messages"].as_array().unwrap();
        let named = messages.iter().map(|message| {
            let message = self.at(message);
            let kind = &self.at(&message["payload"])["properties"]["type"]["const"];
            (kind.as_str().unwrap(), message)
        });
        named.collect()
    }

    /// The frames that the server may send, without those that it will send one day.
    fn sent(&self) -> BTreeMap<&str, &Value> {
        let mut messages = self.messages("send");
        messages.retain(|_, message| message.get("x-reserved").is_none());
        messages
    }

    /// Every close code with its error code.
    fn closes(&self) -> BTreeSet<(u16, Option<String>)> {
        let closes = self.0["channels"]["presenter"]["x-close-codes"].as_array().unwrap();
        let all: BTreeSet<_> = closes
            .iter()
            .map(|close| {
                let code = u16::try_from(close["code"].as_u64().unwrap()).unwrap();
                (code, close["error"].as_str().map(str::to_owned))
            })
            .collect();
        assert_eq!(all.len(), closes.len(), "a row twice");
        all
    }

    fn error_codes(&self) -> BTreeSet<String> {
        let codes = self.0["components"]["schemas"]["ErrorCode"]["enum"].as_array().unwrap();
        codes.iter().map(|code| code.as_str().unwrap().to_owned()).collect()
    }

    /// What checks the frames of a message as a client would: what is not known may be there.
    fn schema(&self, message: &Value) -> jsonschema::Validator {
        compile(&message["payload"], &self.0["components"])
    }

    /// What checks them as this test does: nothing may be there that the document lacks, and all that it has is.
    fn strict_schema(&self, message: &Value) -> jsonschema::Validator {
        let mut components = self.0["components"].clone();
        close_all(&mut components["schemas"]);
        compile(&message["payload"], &components)
    }
}

fn compile(payload: &Value, components: &Value) -> jsonschema::Validator {
    let schema = json!({ "allOf": [payload], "components": components });
    jsonschema::draft7::new(&schema).unwrap_or_else(|error| panic!("{error}: {schema}"))
}

/// Makes every object's properties the only ones, and all of them needed.
fn close_all(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(close_all);
            if let Some(properties) = fields.get("properties").and_then(Value::as_object)
                && fields.get("type") == Some(&json!("object"))
            {
                // Frames of one kind may differ in which of some fields they have; `oneOf` says which go together.
                let named = |key: &String| {
                    fields
                        .get("oneOf")
                        .is_some_and(|one| one.to_string().contains(&format!("{key:?}")))
                };
                let all: Vec<_> = properties.keys().filter(|key| !named(key)).cloned().collect();
                fields.insert("required".into(), json!(all));
                fields.insert("additionalProperties".into(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close_all),
        _ => {}
    }
}

fn problems(schema: &jsonschema::Validator, frame: &Value) -> Vec<String> {
    schema.iter_errors(frame).map(|error| error.to_string()).collect()
}

/// The text of docs/PROTOCOL.md from a heading up to the next.
fn section(heading: &str) -> &'static str {
    documents::section(PROTOCOL, heading)
}

// ---- what both must name --------------------------------------------------------------------------------------------

#[test]
fn the_document_has_every_frame_and_no_other() {
    let document = Document::read();
    let known = |types: &[&'static str]| types.iter().copied().collect::<BTreeSet<_>>();
    let sent: BTreeSet<_> = document.sent().into_keys().collect();
    assert_eq!(sent, known(ServerFrame::TYPES));
    let heard: BTreeSet<_> = document.messages("receive").into_keys().collect();
    assert_eq!(heard, known(ClientFrame::TYPES));
    let all: BTreeSet<_> = document.messages("send").into_keys().collect();
    assert_eq!(all, sent, "nothing is reserved");
    // The channel, the components and the operations speak of the same messages.
    let channel = document.0["channels"]["presenter"]["messages"].as_object().unwrap();
    let components = document.0["components"]["messages"].as_object().unwrap();
    let named: BTreeSet<_> = all.into_iter().chain(heard).collect();
    for messages in [channel, components] {
        let keys: BTreeSet<_> = messages.keys().map(String::as_str).collect();
        assert_eq!(keys, named);
    }
    for (key, message) in channel {
        assert_eq!(document.at(message)["name"], key.as_str());
    }
    for kind in ServerFrame::TYPES.iter().chain(ClientFrame::TYPES) {
        assert!(
            PROTOCOL.contains(&format!(r#"{{"type":"{kind}""#)),
            "PROTOCOL.md shows no {kind}"
        );
    }
}

#[test]
fn every_way_a_session_is_closed_is_in_both_with_its_code_and_its_error() {
    let ways: BTreeSet<_> = Close::ALL
        .iter()
        .filter(|close| close.in_v1())
        .map(|close| (close.code(), close.problem().map(str::to_owned)))
        .collect();
    let document = Document::read();
    assert_eq!(document.closes(), ways);
    let rows = table(section("The end of a connection"), "close code");
    let told: BTreeSet<_> = rows.iter().map(|row| (row[0].parse().unwrap(), name(row[1]))).collect();
    assert_eq!((told.len(), &told), (rows.len(), &ways));
    let errors: BTreeSet<_> = ways.into_iter().filter_map(|(_, error)| error).collect();
    assert_eq!(document.error_codes(), errors);
    for close in Close::ALL.iter().filter(|close| !close.in_v1()) {
        assert!(close.code() < 4000, "{close:?}: v1's own codes are v1's");
    }
}

#[test]
fn every_example_is_what_its_schema_says_and_the_server_reads_what_clients_say() {
    let document = Document::read();
    for operation in ["send", "receive"] {
        for (kind, message) in document.messages(operation) {
            let schema = document.schema(message);
            let examples = message["examples"].as_array().unwrap();
            assert!(!examples.is_empty(), "{kind} has no example");
            for example in examples {
                let frame = &example["payload"];
                assert_eq!(problems(&schema, frame), [""; 0], "{frame}");
                let mut more = frame.clone();
                more["of_a_later_version"] = json!({});
                assert_eq!(
                    problems(&schema, &more),
                    [""; 0],
                    "clients ignore what they do not know: {more}"
                );
                if operation == "receive" {
                    let read = parse_client(&frame.to_string()).unwrap_or_else(|error| panic!("{error}: {frame}"));
                    assert_eq!(read.name(), kind);
                }
            }
            assert!(!schema.is_valid(&json!({})) && !schema.is_valid(&json!({ "type": "other" })));
        }
    }
    let frames = fenced(PROTOCOL, "json")
        .into_iter()
        .filter(|line| line.contains("\"type\""));
    let (mut sent, mut heard) = (document.messages("send"), document.messages("receive"));
    sent.append(&mut heard);
    for line in frames {
        let frame: Value = serde_json::from_str(line).unwrap();
        let message = sent[frame["type"].as_str().unwrap()];
        assert_eq!(problems(&document.schema(message), &frame), [""; 0], "{line}");
    }
}

#[test]
fn the_client_schemas_refuse_what_the_server_refuses() {
    let document = Document::read();
    let messages = document.messages("receive");
    for bad in [
        json!({ "type": "ack" }),
        json!({ "type": "ack", "seq": -1 }),
        json!({ "type": "ack", "seq": 1.5 }),
        json!({ "type": "ack", "seq": null }),
        json!({ "type": "ack", "seq": "1" }),
        json!({ "type": "ack", "seq": 1, "fanned_out": -1 }),
        json!({ "type": "hello", "resume_after": "41" }),
        json!({ "type": "hello", "resume_after": -1 }),
        json!({ "type": "hello", "token": 5 }),
        json!({ "type": "hello", "epoch": 5 }),
    ] {
        let schema = document.schema(messages[bad["type"].as_str().unwrap()]);
        assert!(!schema.is_valid(&bad), "{bad}");
        assert!(parse_client(&bad.to_string()).is_err(), "{bad}");
    }
}

#[test]
fn every_reference_of_the_document_leads_somewhere_and_it_is_of_this_version() {
    fn references<'a>(value: &'a Value, all: &mut Vec<&'a Value>) {
        match value {
            Value::Object(fields) => {
                if fields.contains_key("$ref") {
                    all.push(value);
                }
                fields.values().for_each(|value| references(value, all));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, all)),
            _ => {}
        }
    }
    let document = Document::read();
    let mut all = Vec::new();
    references(&document.0, &mut all);
    assert!(all.len() > 20);
    for reference in all {
        document.at(reference);
    }
    assert_eq!(document.0["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_refusals_and_limits_that_the_text_names_are_those_of_the_code() {
    for row in table(section("Connecting"), "status") {
        let code = name(row[1]).and_then(|code| Code::parse(&code));
        let status = code.map(|code| code.status().as_u16());
        assert_eq!(status, row[0].parse().ok(), "{row:?}");
    }
    let settings = Settings::default();
    for row in table(section("Limits"), "setting") {
        let key = name(row[0]).unwrap();
        let default = settings.get(&key).and_then(|value| value.as_integer());
        assert_eq!(default, row[1].parse().ok(), "{key}");
    }
    let named = settings_named(PROTOCOL);
    assert!(named > 30, "{named}");
}

// ---- what the server really sends -----------------------------------------------------------------------------------

/// The frames of one connection, and how it ended.
struct Seen {
    frames: Vec<Value>,
    close: u16,
    reason: String,
}

/// Reads a connection to its close. WebSocket's own pings are not answered.
async fn to_the_close(socket: &mut WsClient) -> Seen {
    let mut frames = Vec::new();
    loop {
        match socket.next().await {
            Incoming::Text(text) => frames.push(serde_json::from_str(&text).unwrap()),
            Incoming::Ping(_) => {}
            Incoming::Close(code, reason) => {
                let close = code.unwrap_or_else(|| panic!("a close without a code"));
                return Seen { frames, close, reason };
            }
            other => panic!("{other:?} after {frames:?}"),
        }
    }
}

/// What a session sees after its welcome, with it.
async fn rest_of(mut session: V1) -> Seen {
    let mut seen = to_the_close(&mut session.socket).await;
    seen.frames.insert(0, session.welcome);
    seen
}

/// What a connection sees that says this first.
async fn answer_to(app: &TestApp, first: &str) -> Seen {
    let mut socket = connect(app.addr).await;
    socket.send_text(first).await;
    to_the_close(&mut socket).await
}

async fn live(change: impl FnOnce(&mut Settings)) -> TestApp {
    let app = spawn_app(change).await;
    app.go_live(12);
    app
}

async fn say(app: &TestApp, text: &str) {
    let answer = app.post(12, 7, text).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

async fn delete(app: &TestApp, which: &str) {
    let path = format!("/v1/rooms/12/messages{which}");
    let answer = crate::history::request(app, "DELETE", &path, &app.token(12), "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// A session that is told to come back and is there until the server stops.
async fn stopped() -> Vec<Seen> {
    let app = live(|_| {}).await;
    let mut session = V1::of(&app, 12, json!({})).await;
    session.socket.send_text(r#"{"type":"ping"}"#).await;
    say(&app, "안녕 <b>\u{2028}\"").await;
    for which in ["user_idx=7", "from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z"] {
        delete(&app, &format!("?{which}")).await;
    }
    say(&app, "to be deleted").await;
    let page = crate::history::read(&app, "/v1/rooms/12/messages?limit=1", &app.token(12)).await;
    let id = page["messages"][0]["id"].as_str().unwrap().to_owned();
    delete(&app, &format!("/{id}")).await;
    let (seen, _) = tokio::join!(rest_of(session), app.stop());
    vec![seen]
}

/// A session that begins with a gap and is taken over.
async fn taken_over() -> Vec<Seen> {
    let app = live(|settings| settings.session.resume_max = 1).await;
    let mut first = V1::of(&app, 12, json!({})).await;
    for text in ["1", "2", "3"] {
        say(&app, text).await;
    }
    first.chats(3).await;
    let second = V1::of(&app, 12, json!({ "resume_after": 0 })).await;
    assert_eq!(second.welcome["gap"], json!({ "from": 1, "to": 2 }));
    let third = V1::of(&app, 12, json!({})).await;
    let mut all = vec![rest_of(first).await, rest_of(second).await];
    drop(third);
    let mut late = claims(12);
    late["exp"] = json!(1_767_225_600);
    let expired = json!({ "type": "hello", "token": signed(&late) });
    all.push(answer_to(&app, &expired.to_string()).await);
    all.push(answer_to(&app, r#"{"type":"hello","token":"forged"}"#).await);
    all.push(answer_to(&app, r#"{"type":"hello"}"#).await);
    all
}

/// Sessions whose client does what it must not.
async fn misbehaved() -> Vec<Seen> {
    let app = live(|settings| {
        settings.session.reconnect_burst = 6;
        settings.session.reconnect_per_minute = 1;
    })
    .await;
    let mut all = vec![
        answer_to(&app, "ping").await,
        answer_to(&app, &hello(12, json!({ "resume_after": 1 }))).await,
    ];
    let long = format!(r#"{{"type":"ping","x":"{}"}}"#, "x".repeat(40_000));
    let unmasked = Frame {
        masked: false,
        ..Frame::new(TEXT, "x")
    };
    for frame in [
        Frame::new(TEXT, r#"{"type":"ack","seq":1}"#),
        Frame::new(TEXT, long),
        Frame::new(TEXT, vec![0xff, 0xfe]),
        unmasked,
    ] {
        let mut session = V1::of(&app, 12, json!({})).await;
        session.socket.send_bytes_regardless(&frame.encode()).await;
        all.push(rest_of(session).await);
    }
    let mut flood = V1::of(&app, 12, json!({})).await;
    let pings = Frame::new(TEXT, r#"{"type":"ping"}"#).encode().repeat(2000);
    flood.socket.send_bytes_regardless(&pings).await;
    all.push(rest_of(flood).await);
    // That was the sixth good `hello`.
    all.push(answer_to(&app, &hello(12, json!({}))).await);
    all
}

async fn too_slow() -> Vec<Seen> {
    let app = live(|settings| {
        settings.session.stall_seconds = 1;
        settings.room.sweep_ms = 20;
    })
    .await;
    let session = V1::of(&app, 12, json!({})).await;
    say(&app, "never acknowledged").await;
    vec![rest_of(session).await]
}

async fn no_hello() -> Vec<Seen> {
    let app = live(|settings| settings.session.hello_seconds = 1).await;
    vec![to_the_close(&mut connect(app.addr).await).await]
}

async fn keepalive_missed() -> Vec<Seen> {
    let app = live(|settings| settings.session.keepalive_seconds = 1).await;
    vec![rest_of(V1::of(&app, 12, json!({})).await).await]
}

async fn not_live() -> Vec<Seen> {
    let app = spawn_app(|settings| {
        settings.session.not_live_seconds = 1;
        settings.room.sweep_ms = 20;
        settings.room.not_live_ttl_ms = 100;
    })
    .await;
    vec![rest_of(V1::of(&app, 12, json!({})).await).await]
}

/// A socket that says nothing, where another needs its place.
async fn crowded() -> Vec<Seen> {
    let app = live(|settings| settings.session.max = 1).await;
    let mut silent = connect(app.addr).await;
    let refused = upgrade(app.addr, &[]).await.err().unwrap();
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("overloaded")));
    vec![to_the_close(&mut silent).await]
}

/// A room that nobody can tell the numbering of: its spool is new, and the store that is older is not there.
async fn unnumbered() -> Vec<Seen> {
    let app = spawn_app(|settings| {
        settings.log.backend = LogBackend::Mongodb;
        settings.mongodb.uri = Secret::new("mongodb://127.0.0.1:1");
        settings.mongodb.connect_timeout_ms = 100;
        settings.session.resume_wait_seconds = 1;
        settings.room.sweep_ms = 20;
    })
    .await;
    vec![answer_to(&app, &hello(12, json!({}))).await]
}

/// A server whose keys are published where nobody answers.
async fn keyless() -> Vec<Seen> {
    let app = spawn_app(|settings| {
        settings.auth.hs256_secret = Secret::new("");
        settings.auth.jwks_url = "http://127.0.0.1:1/jwks.json".into();
    })
    .await;
    let token = KeyPair::generate(Algorithm::Es256, "new").token(&claims(12));
    vec![answer_to(&app, &json!({ "type": "hello", "token": token }).to_string()).await]
}

#[actix_web::test]
async fn every_frame_and_every_close_that_the_server_has_comes_as_the_document_says() {
    let scenes: Vec<LocalBoxFuture<'_, Vec<Seen>>> = vec![
        Box::pin(stopped()),
        Box::pin(taken_over()),
        Box::pin(misbehaved()),
        Box::pin(too_slow()),
        Box::pin(no_hello()),
        Box::pin(keepalive_missed()),
        Box::pin(not_live()),
        Box::pin(crowded()),
        Box::pin(unnumbered()),
        Box::pin(keyless()),
    ];
    let seen: Vec<Seen> = join_all(scenes).await.into_iter().flatten().collect();
    let document = Document::read();
    let sent = document.sent();
    let schemas: BTreeMap<_, _> = sent
        .iter()
        .map(|(kind, message)| (*kind, (document.schema(message), document.strict_schema(message))))
        .collect();
    let (mut kinds, mut errors, mut closes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut gaps = BTreeSet::new();
    for one in &seen {
        for frame in &one.frames {
            let kind = frame["type"].as_str().unwrap();
            let (open, strict) = schemas
                .get(kind)
                .unwrap_or_else(|| panic!("not in the document: {frame}"));
            assert_eq!(problems(open, frame), [""; 0], "{frame}");
            assert_eq!(
                problems(strict, frame),
                [""; 0],
                "more or less than the document has: {frame}"
            );
            kinds.insert(kind);
            if kind == "welcome" {
                gaps.insert(frame["gap"].is_null());
            }
        }
        // An error is the last word, and the close says the same.
        let said: Vec<_> = one.frames.iter().filter(|frame| frame["type"] == "error").collect();
        let error = one.frames.last().filter(|frame| frame["type"] == "error");
        assert_eq!(said.len(), usize::from(error.is_some()), "{:?}", one.frames);
        let error = error.map(|frame| frame["code"].as_str().unwrap().to_owned());
        assert_eq!(one.reason, error.clone().unwrap_or_default());
        errors.extend(error.clone());
        closes.insert((one.close, error));
    }
    assert_eq!(kinds, sent.into_keys().collect());
    assert_eq!(errors, document.error_codes());
    assert_eq!(closes, document.closes());
    assert_eq!(gaps.len(), 2, "a welcome with a gap, and one without");
}

// ---- the example ----------------------------------------------------------------------------------------------------

/// What the document shows and what came are the same, but for what no two runs share; that is the same wherever the
/// document has it be the same.
#[derive(Default)]
struct Chance(BTreeMap<(&'static str, String), String>);

impl Chance {
    const KEYS: [&'static str; 5] = ["session_id", "epoch", "id", "sent_at", "after_ms"];

    /// Learns what came for what is shown.
    fn learn(&mut self, shown: &Value, came: &Value) {
        for key in Self::KEYS {
            if let (Some(shown), Some(came)) = (shown.get(key), came.get(key)) {
                let known = self
                    .0
                    .entry((key, shown.to_string()))
                    .or_insert_with(|| came.to_string());
                assert_eq!(*known, came.to_string(), "{key} {shown}");
            }
        }
    }

    /// What is shown, with what came in its place.
    fn real(&self, shown: &Value) -> Value {
        let mut real = shown.clone();
        for key in Self::KEYS {
            if let Some(field) = real.get_mut(key)
                && let Some(came) = self.0.get(&(key, field.to_string()))
            {
                *field = serde_json::from_str(came).unwrap();
            }
        }
        real
    }
}

#[actix_web::test]
async fn the_example_session_is_what_happens() {
    // The `welcome` tells it.
    let keepalive = Settings::default().session.keepalive_seconds;
    let app = live(|settings| settings.session.keepalive_seconds = keepalive).await;
    let address = app.addr;
    let settings = app.settings.clone();
    let mut sender = app.client().await;
    let mut app = Some(app);
    let mut stopping = None;
    let mut socket: Option<WsClient> = None;
    let mut chance = Chance::default();
    let mut played = BTreeSet::new();
    for line in fenced(section("An example session"), "text") {
        let (who, what) = line.split_once(' ').unwrap();
        match who {
            ">" => {
                let mut frame = chance.real(&serde_json::from_str(what).unwrap());
                if frame.get("token").is_some() {
                    frame["token"] = json!(token(12));
                }
                socket.as_mut().unwrap().send_text(&frame.to_string()).await;
            }
            "<" => {
                let shown: Value = serde_json::from_str(what).unwrap();
                let came = socket.as_mut().unwrap().next_json().await;
                chance.learn(&shown, &came);
                assert_eq!(chance.real(&shown), came, "{line}");
                played.insert(shown["type"].as_str().unwrap().to_owned());
            }
            _ if what == "the presenter connects" => socket = Some(connect(address).await),
            _ if what.starts_with("the connection breaks") => {
                drop(socket.take());
                eventually("the session to be gone", async || {
                    let room = app.as_ref().unwrap().room(12).await;
                    (!room.is_some_and(|room| room.session)).then_some(())
                })
                .await;
            }
            _ if what == "the server is told to stop" => {
                stopping = Some(tokio::task::spawn_local(app.take().unwrap().stop()));
            }
            _ if what.starts_with("the server closes with ") => {
                let code = what.rsplit(' ').next().unwrap().parse().ok();
                assert_eq!(socket.as_mut().unwrap().next_close().await, code);
            }
            _ => {
                let (user, text) = what.strip_prefix("user ").unwrap().split_once(" sends: ").unwrap();
                let (user, nickname) = user.trim_end_matches(',').split_once(", ").unwrap();
                let token = token_of(&settings, user.parse().unwrap(), nickname);
                let answer = post_v1(&mut sender, 12, &token, text).await;
                assert_eq!(answer.status, 201, "{answer:?}");
            }
        }
    }
    stopping.unwrap().await.unwrap();
    let all: BTreeSet<_> = played.iter().map(String::as_str).collect();
    assert_eq!(all, ["chat", "pong", "reconnect", "welcome"].into(), "all but an error");
}

#[actix_web::test]
async fn what_is_shown_of_http_is_what_is_answered() {
    let app = live(|_| {}).await;
    let _session = V1::of(&app, 12, json!({})).await;
    let accepted = app.post(12, 7, "hi").await.json();
    let bearer = format!("Bearer {}", token(7));
    let headers = [("Authorization", bearer.as_str())];
    let room = app.client().await.request("GET", "/v1/rooms/12", &headers, "").await;
    assert_eq!(room.header("cache-control"), Some("no-store"));
    let sending = documents::section(include_str!("../../docs/SENDING.md"), "A message");
    let mut shown: Vec<Value> = [section("HTTP beside it"), sending]
        .into_iter()
        .flat_map(|text| fenced(text, "json"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // Of this run.
    for key in ["last_seq", "fanned_out"] {
        shown[0][key] = room.json()[key].clone();
    }
    for key in ["id", "seq", "epoch", "sent_at"] {
        assert!(shown[1].get(key).is_some() && accepted.get(key).is_some(), "{key}");
        shown[1][key] = accepted[key].clone();
    }
    assert_eq!(shown, [room.json(), accepted]);
}
