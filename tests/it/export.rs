//! Broadcasts as files, the same from both stores: every format, whatever anyone writes; and the stream that they come in.

use std::{collections::HashMap, io::Read, sync::Arc};

use chatting_actors::{
    broadcast::{Broadcast, Segment, Span},
    clock::system_ms,
    moderation::Act,
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, Role, Seq, UserIdx},
};
use chatting_server::{
    app::Stopped,
    export::{Deletions, Export, Format, Options},
    settings::Settings,
    store::{Archive, StoredBroadcast},
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use uuid::{Builder, Uuid};

use crate::{
    history::{drained, read, request, servers, token_with},
    limits::limited,
    log_store::room,
    support::{
        app::{TestApp, spawn_app, use_mongodb},
        eventually,
        http::{HttpClient, Response},
        within,
        ws::HANDSHAKE,
    },
};

/// 2026-01-01T00:00:00Z
pub const START: i64 = 1_767_225_600_000;

const NICKNAMES: [&str; 8] = [
    "스트리머",
    "=cmd|' /C calc'!A0",
    "<b>\n\nNOTE &\n",
    "",
    "spam",
    "스트리머",
    "kim",
    "@lee",
];

const TEXTS: [&str; 8] = [
    "안녕하세요 여러분",
    "=1+1,\"x\"\r\nnext",
    "a\n\n00:00.000 --> 00:01.000\nb <script>&amp;</v>",
    "\u{202e}rtl \u{2028}\0 🙂👨\u{200d}👩\u{200d}👧",
    "secret",
    "",
    "",
    "-- > -->",
];

fn id(at_ms: i64, n: u64) -> Uuid {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Builder::from_unix_timestamp_millis(at_ms.cast_unsigned(), &bytes).into_uuid()
}

/// An event of presenter 12, `offset_ms` after [`START`].
pub fn event(epoch: &str, seq: u64, offset_ms: i64, user: i64, nickname: &str, text: &str) -> Event {
    let sent_at_ms = START + offset_ms;
    Event {
        id: id(sent_at_ms, seq),
        presenter_idx: room(12),
        epoch: Epoch(epoch.into()),
        seq: Seq(seq),
        sent_at_ms,
        room_idx: Some(77),
        broadcast_id: Some(broadcast_id()),
        chat: ChatMessage {
            user_idx: UserIdx::new(user).unwrap(),
            nickname: Nickname::new(nickname, 64).unwrap(),
            text: MessageText::maybe_empty(text.to_owned(), 2000).unwrap(),
            role: match user {
                12 => Role::Presenter,
                66 => Role::Moderator,
                _ => Role::Viewer,
            },
        },
        act: None,
        keyed: None,
    }
}

pub fn broadcast_id() -> Uuid {
    id(START, 0)
}

fn span(epoch: &str, after: u64, through: u64) -> Span {
    Span {
        epoch: Epoch(epoch.into()),
        after: Seq(after),
        through: Some(Seq(through)),
    }
}

fn record(id: Uuid, spans: Vec<Span>) -> Broadcast {
    Broadcast {
        id,
        presenter: room(12),
        room_idx: Some(77),
        reported_start_ms: None,
        ended_at_ms: Some(START + 40_000),
        // Ten seconds off in between.
        segments: [(0, 10_000), (20_000, 40_000)]
            .map(|(from, to)| Segment {
                from_ms: START + from,
                to_ms: Some(START + to),
            })
            .to_vec(),
        spans,
        seen_at_ms: START + 40_000,
        version: 4,
    }
}

/// A broadcast with everything in it: an interruption, a new numbering, texts that try to be something else, a deletion.
pub async fn fill(store: &dyn Archive) {
    let users = [12, 7, 66, 8, 9, 12, 7, 8];
    let offsets = [1000, 2000, 3500, 9999, 21_000, 22_000, 25_000, 360];
    let mut events: Vec<_> = (1..=8_u64)
        .map(|seq| {
            let n = usize::try_from(seq - 1).unwrap();
            let epoch = if seq <= 3 { "a" } else { "b" };
            let offset = if seq == 8 { 39_000 } else { offsets[n] };
            event(epoch, seq, offset, users[n], NICKNAMES[n], TEXTS[n])
        })
        .collect();
    events[5].act = Some(Arc::new(Act::Message {
        id: events[4].id,
        seq: Seq(5),
    }));
    // Of the room, not of the broadcast: it was said before it began.
    events.push(event("a", 9, -1000, 7, "kim", "elsewhere"));
    events.last_mut().unwrap().broadcast_id = None;
    let batch = Arc::new(events.into_iter().map(Arc::new).collect());
    assert_eq!(store.append(batch).await.unwrap(), []);
    let spans = vec![span("a", 0, 3), span("b", 3, 8)];
    store.put_broadcasts(&[record(broadcast_id(), spans)]).await.unwrap();
}

/// A broadcast of so many messages of so many letters each.
async fn fill_long(store: &dyn Archive, count: u64, letters: usize) {
    let text = "글".repeat(letters);
    for first in (1..=count).step_by(1000) {
        let events = (first..(first + 1000).min(count + 1)).map(|seq| {
            let at = 1000 + i64::try_from(seq).unwrap();
            Arc::new(event("a", seq, at, 7, "kim", &text))
        });
        assert_eq!(store.append(Arc::new(events.collect())).await.unwrap(), []);
    }
    let spans = vec![span("a", 0, count)];
    store.put_broadcasts(&[record(broadcast_id(), spans)]).await.unwrap();
}

/// The same server over each store, with that broadcast in its log.
async fn filled() -> Vec<TestApp> {
    let mut all = Vec::new();
    for mongodb in [false, true] {
        let app = spawn_app(|settings| {
            if mongodb {
                use_mongodb(settings);
            }
        })
        .await;
        app.state.history.store().prepare().await.unwrap();
        fill(&**app.state.history.store()).await;
        all.push(app);
    }
    all
}

fn path(query: &str) -> String {
    format!("/v1/broadcasts/{}/export?{query}", broadcast_id())
}

async fn export(app: &TestApp, query: &str) -> Response {
    let answer = request(app, "GET", &path(query), &app.token(12), "").await;
    assert_eq!(answer.status, 200, "{query}: {answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    answer
}

fn lines(answer: &Response) -> Vec<Value> {
    let lines = answer.text().lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[actix_web::test]
async fn ndjson_has_everything_a_line_each_and_marks_what_was_deleted() {
    for app in filled().await {
        let answer = export(&app, "").await;
        assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
        let name = format!("attachment; filename=\"chat-12-{}.ndjson\"", broadcast_id());
        assert_eq!(answer.header("content-disposition"), Some(name.as_str()));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let all = lines(&answer);
        let header = json!({
            "type": "broadcast", "format": 1, "id": broadcast_id(), "presenter_idx": 12, "room_idx": 77,
            "reported_start": null, "ended_at": "2026-01-01T00:00:40.000Z", "corrected_start": null,
            "seen_at": "2026-01-01T00:00:40.000Z", "version": 4,
            "segments": [
                { "from": "2026-01-01T00:00:00.000Z", "to": "2026-01-01T00:00:10.000Z" },
                { "from": "2026-01-01T00:00:20.000Z", "to": "2026-01-01T00:00:40.000Z" },
            ],
            "spans": [{ "epoch": "a", "after": 0, "through": 3 }, { "epoch": "b", "after": 3, "through": 8 }],
        });
        assert_eq!(all[0], header);
        assert_eq!(
            all[9],
            json!({ "type": "end", "broadcast_id": broadcast_id(), "events": 8 })
        );
        let column = |key: &str| -> Vec<Value> { all[1..9].iter().map(|line| line[key].clone()).collect() };
        assert_eq!(column("seq"), (1..=8).map(Value::from).collect::<Vec<_>>());
        // The ten seconds off do not count.
        assert_eq!(
            json!(column("offset_ms")),
            json!([1000, 2000, 3500, 9999, 11_000, 12_000, 15_000, 29_000])
        );
        for (n, line) in all[1..9].iter().enumerate() {
            assert_eq!(line["nickname"], NICKNAMES[n], "{line}");
            if n != 5 {
                assert_eq!(
                    (&line["text"], &line["type"]),
                    (&TEXTS[n].into(), &"chat".into()),
                    "{line}"
                );
            }
            assert_eq!(line.get("deleted_at").is_some(), n == 4, "{line}");
        }
        assert_eq!(
            all[5],
            json!({
                "type": "chat", "seq": 5, "epoch": "b", "id": id(START + 21_000, 5), "sent_at": "2026-01-01T00:00:21.000Z",
                "offset_ms": 11_000, "broadcast_id": broadcast_id(), "room_idx": 77, "user_idx": 9, "nickname": "spam",
                "role": "viewer", "text": "secret", "deleted_at": "2026-01-01T00:00:22.000Z", "deleted_by": 12,
            })
        );
        assert_eq!(all[6]["type"], "moderation");
        assert_eq!(
            all[6]["act"],
            json!({ "scope": "message", "id": id(START + 21_000, 5), "seq": 5 })
        );
        // The same without what viewers may not see.
        let omitted = export(&app, "format=ndjson&deleted=omit").await;
        assert!(!omitted.text().contains("secret") && !omitted.text().contains("moderation"));
        let omitted = lines(&omitted);
        assert_eq!((omitted.len(), &omitted[7]["events"]), (8, &6.into()));
    }
}

/// RFC 4180, nothing else.
fn table(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let mut chars = text.chars().peekable();
    let mut quoted = false;
    while let Some(char) = chars.next() {
        match char {
            '"' if quoted && chars.peek() == Some(&'"') => cell.push(chars.next().unwrap()),
            '"' if quoted => quoted = false,
            '"' if cell.is_empty() => quoted = true,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            '\r' if !quoted => {
                assert_eq!(chars.next(), Some('\n'), "a bare CR");
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            '\n' if !quoted => panic!("a bare LF behind {cell:?}"),
            char => cell.push(char),
        }
    }
    assert!(row.is_empty() && cell.is_empty(), "it does not end with CR LF");
    rows
}

#[actix_web::test]
async fn csv_is_one_row_an_event_and_no_cell_of_it_is_a_formula() {
    for app in filled().await {
        let answer = export(&app, "format=csv").await;
        assert_eq!(
            answer.header("content-type"),
            Some("text/csv; charset=utf-8; header=present")
        );
        assert!(
            answer
                .header("content-disposition")
                .unwrap()
                .ends_with(&format!("{}.csv\"", broadcast_id()))
        );
        let text = answer.text().strip_prefix('\u{feff}').expect("a byte order mark");
        let rows = table(text);
        assert_eq!(rows.len(), 9);
        let columns: HashMap<&str, usize> = rows[0].iter().map(String::as_str).zip(0..).collect();
        assert!(rows.iter().all(|row| row.len() == columns.len()), "{rows:?}");
        for row in &rows[1..] {
            for cell in row {
                assert!(!cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell:?}");
            }
        }
        let cell = |row: usize, column: &str| rows[row][columns[column]].as_str();
        assert_eq!(cell(1, "text"), TEXTS[0]);
        assert_eq!(
            (cell(2, "nickname"), cell(2, "text")),
            ("'=cmd|' /C calc'!A0", "'=1+1,\"x\"\r\nnext")
        );
        assert_eq!(cell(3, "text"), TEXTS[2]);
        assert_eq!(cell(4, "text"), TEXTS[3].replace('\0', "\u{fffd}"));
        assert_eq!(
            (cell(5, "text"), cell(5, "deleted_by"), cell(5, "deleted_at")),
            ("secret", "12", "2026-01-01T00:00:22.000Z")
        );
        assert_eq!(
            (cell(6, "type"), cell(6, "target")),
            ("moderation", format!("message {}", id(START + 21_000, 5)).as_str())
        );
        assert_eq!((cell(8, "nickname"), cell(8, "text")), ("'@lee", "'-- > -->"));
        assert_eq!((cell(7, "offset_ms"), cell(7, "deleted_at")), ("15000", ""));
        let omitted = export(&app, "format=csv&deleted=omit").await;
        assert!(!omitted.text().contains("secret"));
        assert_eq!(table(omitted.text()).len(), 7);
    }
}

#[actix_web::test]
async fn webvtt_has_a_cue_a_message_that_no_text_can_end() {
    for app in filled().await {
        let answer = export(&app, "format=webvtt").await;
        assert_eq!(answer.header("content-type"), Some("text/vtt; charset=utf-8"));
        assert!(!answer.text().contains("secret") && !answer.text().contains('\0'));
        // Blank lines are what parts blocks.
        let blocks: Vec<&str> = answer.text().trim_end().split("\n\n").collect();
        assert_eq!(blocks[0], "WEBVTT");
        assert!(blocks[1].starts_with("NOTE "), "{blocks:?}");
        assert_eq!(blocks.len(), 8, "{blocks:?}");
        let cue = |n: usize| blocks[n].split('\n').collect::<Vec<_>>();
        for block in &blocks[2..] {
            assert_eq!(block.matches("-->").count(), 1, "{block}");
        }
        assert_eq!(
            cue(2),
            [
                id(START + 1000, 1).to_string().as_str(),
                "00:00:01.000 --> 00:00:05.000",
                "<v 스트리머>안녕하세요 여러분</v>"
            ]
        );
        assert_eq!(cue(3)[2..], ["<v =cmd|' /C calc'!A0>=1+1,\"x\"", "next</v>"]);
        assert_eq!(
            cue(4)[2..],
            [
                "<v &lt;b&gt;  NOTE &amp;>a",
                "00:00.000 --&gt; 00:01.000",
                "b &lt;script&gt;&amp;amp;&lt;/v&gt;</v>"
            ]
        );
        assert_eq!(cue(5)[2], format!("<v 8>{}</v>", TEXTS[3].replace('\0', "\u{fffd}")));
        assert_eq!(cue(6)[1..], ["00:00:15.000 --> 00:00:19.000", "<v kim></v>"]);
        assert_eq!(cue(7)[2], "<v @lee>-- &gt; --&gt;</v>");
    }
}

/// The shape of TwitchDownloader's chat JSON, each of its fields with its type.
fn twitch_schema() -> Value {
    fn object(properties: Value) -> Value {
        let required: Vec<_> = properties.as_object().unwrap().keys().cloned().collect();
        json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
    }
    let (text, number, nothing) = (
        json!({ "type": "string" }),
        json!({ "type": "number" }),
        json!({ "type": "null" }),
    );
    let time = json!({ "type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z$" });
    let whole = json!({ "type": "integer", "minimum": 0, "maximum": i32::MAX });
    let list = |items: Value| json!({ "type": "array", "items": items });
    let emoticon = json!({ "type": ["null", "object"] });
    object(json!({
        "FileInfo": object(json!({
            "Version": object(json!({ "Major": { "const": 1 }, "Minor": { "const": 4 }, "Patch": { "const": 0 } })),
            "CreatedAt": time, "UpdatedAt": time,
        })),
        "streamer": object(json!({ "name": text, "login": text, "id": whole })),
        "video": object(json!({
            "title": text, "description": nothing, "id": text, "created_at": time, "start": number, "end": number,
            "length": number, "viewCount": whole, "game": text, "chapters": list(json!({ "type": "object" })),
        })),
        "comments": list(object(json!({
            "_id": text, "created_at": time, "channel_id": text, "content_type": { "const": "video" }, "content_id": text,
            "content_offset_seconds": { "type": "number", "minimum": 0 },
            "commenter": object(json!({
                "display_name": { "type": "string", "minLength": 1 }, "_id": text, "name": text, "bio": nothing,
                "created_at": time, "updated_at": time, "logo": nothing,
            })),
            "message": object(json!({
                "body": text, "bits_spent": whole,
                "fragments": list(object(json!({ "text": text, "emoticon": emoticon }))),
                "user_badges": list(object(json!({ "_id": text, "version": text }))),
                "user_color": { "type": "string", "pattern": "^#[0-9A-F]{6}$" },
                "emoticons": list(json!({ "type": "object" })),
            })),
        }))),
        "embeddedData": nothing,
    }))
}

#[actix_web::test]
async fn twitch_json_has_every_field_that_chat_renderers_read() {
    let schema = jsonschema::validator_for(&twitch_schema()).unwrap();
    for app in filled().await {
        let answer = export(&app, "format=twitch-json").await;
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(!answer.text().contains("secret"));
        let chat = answer.json();
        let wrong: Vec<_> = schema
            .iter_errors(&chat)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(chat["streamer"], json!({ "name": "12", "login": "12", "id": 12 }));
        let video = &chat["video"];
        assert_eq!(
            (&video["id"], &video["created_at"], &video["length"], &video["end"]),
            (
                &json!(broadcast_id()),
                &"2026-01-01T00:00:00.000Z".into(),
                &json!(30.0),
                &json!(30.0)
            )
        );
        let comments = chat["comments"].as_array().unwrap();
        let texts: Vec<_> = comments
            .iter()
            .map(|comment| comment["message"]["body"].as_str().unwrap())
            .collect();
        assert_eq!(texts, [TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[3], TEXTS[6], TEXTS[7]]);
        let offsets: Vec<_> = comments
            .iter()
            .map(|comment| comment["content_offset_seconds"].clone())
            .collect();
        assert_eq!(json!(offsets), json!([1.0, 2.0, 3.5, 9.999, 15.0, 29.0]));
        let badges: Vec<_> = comments
            .iter()
            .map(|comment| comment["message"]["user_badges"].clone())
            .collect();
        assert_eq!(badges[0], json!([{ "_id": "broadcaster", "version": "1" }]));
        assert_eq!(badges[2], json!([{ "_id": "moderator", "version": "1" }]));
        assert_eq!(badges[1], json!([]));
        let commenter = &comments[3]["commenter"];
        assert_eq!(
            (&commenter["display_name"], &commenter["_id"]),
            (&"8".into(), &"8".into())
        );
        assert_eq!(
            comments[0]["message"]["fragments"],
            json!([{ "text": TEXTS[0], "emoticon": null }])
        );
        // A colour is a user's, not a message's.
        let colour = |n: usize| &comments[n]["message"]["user_color"];
        assert_eq!((colour(1), colour(3)), (colour(4), colour(5)));
        assert_ne!(colour(1), colour(3));
    }
}

#[actix_web::test]
async fn an_export_asked_for_by_a_request_to_upgrade_is_as_whole_as_any_other() {
    let app = &filled().await[0];
    let bearer = format!("Bearer {}", app.token(12));
    let headers = [&HANDSHAKE[..], &[("Authorization", bearer.as_str())]].concat();
    let answer = app
        .client()
        .await
        .request("GET", &path("format=csv"), &headers, "")
        .await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(answer.text(), export(app, "format=csv").await.text());
}

#[actix_web::test]
async fn staff_of_the_room_may_export_and_a_request_that_cannot_be_is_named() {
    let app = &filled().await[0];
    let rows = [
        ("", 401),
        (&app.token(7), 403),
        (&token_with(7, "moderator", json!(["13"])), 403),
        (&token_with(7, "moderator", json!(["12"])), 200),
        (&token_with(7, "operator", json!([])), 200),
        (&app.token(12), 200),
    ];
    for (token, status) in rows {
        let answer = request(app, "GET", &path("format=csv"), token, "").await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.text().contains("secret"), status == 200);
    }
    for (query, named) in [
        ("format=xml", "ndjson, csv, twitch-json or webvtt"),
        ("deleted=no", "mark or omit"),
        ("format=webvtt&deleted=mark", "deleted"),
        ("format=twitch-json&deleted=mark", "deleted"),
        ("colour=red", "colour"),
    ] {
        let answer = request(app, "GET", &path(query), &app.token(12), "").await;
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(named), "{answer:?}");
    }
    for missing in ["019b76da-a800-7000-8000-000000000001", "x"] {
        let path = format!("/v1/broadcasts/{missing}/export");
        assert_eq!(request(app, "GET", &path, &app.token(12), "").await.status, 404);
    }
    let answer = request(app, "POST", &path(""), &app.token(12), "").await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET")));
}

#[actix_web::test]
async fn a_file_is_compressed_where_the_client_asks_for_it_and_nothing_else_is() {
    let app = &filled().await[0];
    let bearer = format!("Bearer {}", app.token(12));
    let headers = [("Authorization", bearer.as_str()), ("Accept-Encoding", "gzip")];
    let answer = app.client().await.request("GET", &path(""), &headers, "").await;
    assert_eq!((answer.status, answer.header("content-encoding")), (200, Some("gzip")));
    assert!(
        answer
            .header("vary")
            .unwrap()
            .to_lowercase()
            .contains("accept-encoding")
    );
    let mut text = String::new();
    flate2::read::GzDecoder::new(answer.body.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, export(app, "").await.text());
    // Where no coding will do, it comes as it is.
    for refuses in ["identity;q=0", "*;q=0", "br, identity;q=0"] {
        let headers = [("Authorization", bearer.as_str()), ("Accept-Encoding", refuses)];
        let answer = app.client().await.request("GET", &path(""), &headers, "").await;
        assert_eq!(
            (answer.status, answer.header("content-encoding")),
            (200, None),
            "{refuses}"
        );
        assert_eq!(answer.text(), text, "{refuses}");
    }
    let page = app
        .client()
        .await
        .request("GET", "/v1/rooms/12/messages", &headers, "")
        .await;
    assert_eq!((page.status, page.header("content-encoding")), (200, None));
}

#[actix_web::test]
async fn a_broadcast_without_a_message_and_one_that_goes_on_are_files_too() {
    for (app, mut session) in servers(|_| {}).await {
        // The spool's record counts before the store has it.
        let list = eventually("the broadcast", async || {
            let page = read(&app, "/v1/rooms/12/broadcasts", &app.token(12)).await;
            page["broadcasts"][0]["id"].as_str().map(str::to_owned)
        })
        .await;
        let path = |format: &str| format!("/v1/broadcasts/{list}/export?format={format}");
        let get = async |format: &str| {
            let answer = request(&app, "GET", &path(format), &app.token(12), "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            answer
        };
        let empty = lines(&get("ndjson").await);
        assert_eq!((empty.len(), &empty[1]["events"]), (2, &0.into()));
        assert_eq!(table(get("csv").await.text()).len(), 1);
        assert_eq!(get("twitch-json").await.json()["comments"], json!([]));
        assert_eq!(get("webvtt").await.text().matches("-->").count(), 0);
        for n in 1..=3 {
            assert_eq!(app.post(12, 7, &format!("m{n}")).await.status, 201);
        }
        session.chats(3).await;
        for _ in 0..2 {
            let all = lines(&get("ndjson").await);
            let texts: Vec<_> = all[1..4].iter().map(|line| line["text"].as_str().unwrap()).collect();
            assert_eq!(texts, ["m1", "m2", "m3"]);
            assert_eq!(all[4]["events"], 3);
            // Up to now.
            assert_eq!(
                (&all[0]["ended_at"], &all[0]["spans"][0]["through"]),
                (&Value::Null, &3.into())
            );
            assert!(all[0]["exported_at"].is_string());
            drained(&app).await;
        }
    }
}

/// The page count, when it has stayed the same for a while that a reader would have used.
async fn pages_at_rest(app: &TestApp) -> f64 {
    let (mut last, mut same) = (0.0, 0);
    eventually("the export to stand still", async || {
        let reading = app.state.history.gate().depth() > 0;
        let pages = app.metric("chat_export_pages_total").await.unwrap();
        let rests = !reading && pages == last && pages > 0.0;
        same = if rests { same + 1 } else { 0 };
        last = pages;
        (same >= 40).then_some(pages)
    })
    .await
}

fn long(settings: &mut Settings) {
    settings.export.page_rows = 100;
    settings.server.send_buffer_bytes = 16 * 1024;
}

/// A client that has asked for a long export and reads nothing.
async fn stalled(app: &TestApp) -> HttpClient {
    stalled_with(app, &[]).await
}

async fn stalled_with(app: &TestApp, headers: &[(&str, &str)]) -> HttpClient {
    let mut client = HttpClient::connect_with(app.addr, Some(4096)).await;
    let bearer = format!("Bearer {}", app.token(12));
    let headers = [headers, &[("Authorization", &bearer)]].concat();
    client.send_request("GET", &path(""), &headers, "").await;
    client
}

/// The rest of what a connection says; whether it ended as it should have been.
async fn rest(client: HttpClient) -> std::io::Result<Vec<u8>> {
    let (mut stream, mut said) = client.into_parts();
    within("the connection's end", stream.read_to_end(&mut said)).await?;
    Ok(said)
}

#[actix_web::test]
async fn no_more_is_read_than_the_client_takes_however_long_the_broadcast_is() {
    for mongodb in [false, true] {
        let app = spawn_app(|settings| {
            long(settings);
            if mongodb {
                use_mongodb(settings);
            }
        })
        .await;
        app.state.history.store().prepare().await.unwrap();
        fill_long(&**app.state.history.store(), 20_000, 300).await;
        let mut client = stalled(&app).await;
        let pages = pages_at_rest(&app).await;
        assert!(pages <= 8.0, "{pages} pages of 200 were read ahead");
        assert_eq!(app.metric("chat_queue_depth{queue=\"exports\"}").await, Some(1.0));
        assert_eq!(app.metric("chat_queue_depth{queue=\"readers\"}").await, Some(0.0));
        let answer = client.read_response(false).await;
        let all = lines(&answer);
        assert_eq!((all.len(), &all[20_001]["events"]), (20_002, &20_000.into()));
        assert!(all[1..20_001].iter().zip(1..).all(|(line, seq)| line["seq"] == seq));
        assert_eq!(app.metric("chat_exports_total{outcome=\"ok\"}").await, Some(1.0));
        assert_eq!(app.metric("chat_queue_depth{queue=\"exports\"}").await, Some(0.0));
    }
}

#[actix_web::test]
async fn a_client_that_goes_away_ends_the_reading_and_makes_room_for_the_next() {
    let app = spawn_app(|settings| {
        long(settings);
        settings.export.max = 1;
    })
    .await;
    fill_long(&**app.state.history.store(), 5000, 300).await;
    let client = stalled(&app).await;
    let pages = pages_at_rest(&app).await;
    let answer = request(&app, "GET", &path(""), &token_with(1, "operator", Value::Null), "").await;
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (503, Some("overloaded"))
    );
    drop(client);
    eventually("the export to be given up", async || {
        let given_up = app.metric("chat_exports_total{outcome=\"abandoned\"}").await;
        (given_up == Some(1.0)).then_some(())
    })
    .await;
    // One that was read for nobody, at most.
    assert!(app.metric("chat_export_pages_total").await <= Some(pages + 1.0));
    assert_eq!(lines(&export(&app, "").await).len(), 5002);
}

#[actix_web::test]
async fn a_presenter_who_does_not_take_an_export_gets_no_second_one_and_others_get_theirs() {
    let app = spawn_app(|settings| {
        long(settings);
        settings.export.max = 2;
    })
    .await;
    fill_long(&**app.state.history.store(), 5000, 300).await;
    let client = stalled(&app).await;
    pages_at_rest(&app).await;
    let own = app.token(12);
    for format in ["", "format=csv"] {
        let refused = request(&app, "GET", &path(format), &own, "").await;
        limited(&refused, "1");
        let why = refused.json();
        assert!(why["detail"].as_str().unwrap().contains("one at a time"), "{why}");
    }
    // It is theirs alone: of the two places one is left, for whoever else may export.
    let operator = token_with(1, "operator", Value::Null);
    let all = request(&app, "GET", &path(""), &operator, "").await;
    assert_eq!(lines(&all).len(), 5002);
    drop(client);
    let again = eventually("the first to be given up", async || {
        let answer = request(&app, "GET", &path(""), &own, "").await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(lines(&again).len(), 5002);
}

#[actix_web::test]
async fn an_operator_may_have_several_exports_at_once() {
    let app = spawn_app(|settings| {
        long(settings);
        settings.export.max = 2;
    })
    .await;
    fill_long(&**app.state.history.store(), 5000, 300).await;
    let operator = token_with(1, "operator", Value::Null);
    let mut client = HttpClient::connect_with(app.addr, Some(4096)).await;
    let bearer = format!("Bearer {operator}");
    client
        .send_request("GET", &path(""), &[("Authorization", &bearer)], "")
        .await;
    pages_at_rest(&app).await;
    let second = request(&app, "GET", &path(""), &operator, "").await;
    assert_eq!(lines(&second).len(), 5002);
}

#[actix_web::test]
async fn a_log_that_cannot_be_read_any_more_breaks_the_answer_off_rather_than_ending_it() {
    let app = spawn_app(long).await;
    fill_long(&**app.state.history.store(), 5000, 300).await;
    let mut client = stalled(&app).await;
    pages_at_rest(&app).await;
    let away = std::path::Path::new(&app.settings.log.path).with_extension("away");
    std::fs::rename(&app.settings.log.path, &away).unwrap();
    let head = client.read_response(true).await;
    assert_eq!((head.status, head.header("transfer-encoding")), (200, Some("chunked")));
    let (mut stream, mut body) = client.into_parts();
    let _ = within("the connection's end", stream.read_to_end(&mut body)).await;
    assert!(!body.ends_with(b"0\r\n\r\n"), "it ended as if it were whole");
    assert_eq!(app.metric("chat_exports_total{outcome=\"error\"}").await, Some(1.0));
    std::fs::rename(&away, &app.settings.log.path).unwrap();
}

/// The answer to a request to upgrade has no length and no chunks: that it ends is all that says it is whole.
#[actix_web::test]
async fn an_export_without_chunks_that_breaks_off_ends_with_a_reset() {
    let app = spawn_app(long).await;
    fill_long(&**app.state.history.store(), 5000, 300).await;
    let whole = rest(stalled_with(&app, &HANDSHAKE).await).await;
    assert!(
        whole.is_ok_and(|said| said.len() > 1_500_000),
        "one that is whole ends well"
    );
    let client = stalled_with(&app, &HANDSHAKE).await;
    pages_at_rest(&app).await;
    let away = std::path::Path::new(&app.settings.log.path).with_extension("away");
    std::fs::rename(&app.settings.log.path, &away).unwrap();
    let broken = rest(client).await.map(|said| said.len());
    std::fs::rename(&away, &app.settings.log.path).unwrap();
    assert_eq!(broken.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// A client of HTTP/1.0, which knows no chunks (RFC 9112, section 6.1), that has asked for a long export.
async fn of_http_1_0(app: &TestApp, token: &str, headers: &str) -> HttpClient {
    let mut client = HttpClient::connect_with(app.addr, Some(4096)).await;
    let head = format!(
        "GET {} HTTP/1.0\r\nAuthorization: Bearer {token}\r\n",
        path("format=csv")
    );
    client.send_bytes(format!("{head}{headers}\r\n").as_bytes()).await;
    client
}

#[actix_web::test]
async fn an_export_to_a_client_of_http_1_0_has_no_chunks_and_ends_with_its_connection_or_with_a_reset() {
    let app = spawn_app(long).await;
    fill_long(&**app.state.history.store(), 5000, 300).await;
    let chunked = export(&app, "format=csv").await;
    assert_eq!(chunked.header("transfer-encoding"), Some("chunked"));
    for headers in ["", "Connection: keep-alive\r\n"] {
        let whole = of_http_1_0(&app, &app.token(12), headers)
            .await
            .read_response(false)
            .await;
        assert_eq!(whole.status_line, "HTTP/1.0 200 OK");
        assert_eq!(whole.header("transfer-encoding"), None, "{headers:?}");
        assert_eq!(whole.header("connection"), None, "{headers:?}");
        assert!(whole.body == chunked.body, "{headers:?}");
    }
    let client = of_http_1_0(&app, &app.token(12), "").await;
    pages_at_rest(&app).await;
    let away = std::path::Path::new(&app.settings.log.path).with_extension("away");
    std::fs::rename(&app.settings.log.path, &away).unwrap();
    let broken = rest(client).await.map(|said| said.len());
    std::fs::rename(&away, &app.settings.log.path).unwrap();
    assert_eq!(broken.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[actix_web::test]
async fn a_client_that_does_not_take_its_answer_is_cut_in_its_time_and_makes_room_for_the_next() {
    let app = spawn_app(|settings| {
        long(settings);
        settings.export.max = 2;
        settings.server.answer_seconds = 5;
        settings.server.answer_bytes_per_second = 65_536;
    })
    .await;
    fill_long(&**app.state.history.store(), 5000, 300).await;
    // One whose answer has chunks, and one that would take any end in order for the answer's.
    let operator = token_with(1, "operator", Value::Null);
    let clients = [stalled(&app).await, of_http_1_0(&app, &operator, "").await];
    eventually("both to be cut", async || {
        let cut = app.metric("chat_answers_cut_total").await;
        (cut == Some(2.0)).then_some(())
    })
    .await;
    for client in clients {
        assert_eq!(
            rest(client).await.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset
        );
    }
    eventually("their places", async || {
        (app.metric("chat_queue_depth{queue=\"exports\"}").await == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!(lines(&export(&app, "").await).len(), 5002);
    assert_eq!(
        app.metric("chat_answers_cut_total").await,
        Some(2.0),
        "who takes it is not cut"
    );
}

#[actix_web::test]
async fn a_stop_waits_for_no_client_that_does_not_take_its_answer() {
    let app = spawn_app(|settings| {
        long(settings);
        settings.shutdown.requests_seconds = 1;
        settings.shutdown.deadline_seconds = 600;
    })
    .await;
    fill_long(&**app.state.history.store(), 5000, 300).await;
    let client = stalled(&app).await;
    pages_at_rest(&app).await;
    let (stopped, ..) = app.stop().await;
    assert_eq!(stopped, Stopped::InOrder);
    assert_eq!(
        rest(client).await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
}

#[actix_web::test]
async fn an_export_that_has_begun_waits_for_its_turn_among_the_readers() {
    let app = spawn_app(|settings| {
        long(settings);
        settings.log.readers = 1;
    })
    .await;
    fill_long(&**app.state.history.store(), 5000, 300).await;
    let mut client = stalled(&app).await;
    let pages = pages_at_rest(&app).await;
    let turn = app.state.history.gate().try_acquire(1).unwrap();
    let answer = actix_web::rt::spawn(async move { client.read_response(false).await });
    eventually("it to ask for a turn", async || {
        let waits = app.metric("chat_queue_waits_total{queue=\"readers\"}").await;
        (waits == Some(1.0)).then_some(())
    })
    .await;
    assert!(app.metric("chat_export_pages_total").await <= Some(pages + 1.0));
    drop(turn);
    assert_eq!(lines(&answer.await.unwrap()).len(), 5002);
    let refused = app.metric("chat_queue_refused_total{queue=\"readers\"}").await;
    assert_eq!(refused, Some(0.0), "it waited, and nobody was refused");
}

#[actix_web::test]
async fn an_export_that_has_no_turn_among_the_readers_for_export_busy_wait_seconds_is_broken_off() {
    let app = spawn_app(|settings| {
        long(settings);
        settings.log.readers = 1;
        settings.export.busy_wait_seconds = 1;
        // That is before it has begun.
        settings.history.staff_wait_seconds = 60;
    })
    .await;
    fill_long(&**app.state.history.store(), 5000, 300).await;
    let client = stalled(&app).await;
    pages_at_rest(&app).await;
    let turn = app.state.history.gate().try_acquire(1).unwrap();
    // It goes on when its client reads, which is later than this begins to look.
    let broken_off = eventually("the export to be broken off", async || {
        let errors = app.metric("chat_exports_total{outcome=\"error\"}").await;
        (errors == Some(1.0)).then_some(())
    });
    let ((), end) = tokio::join!(broken_off, rest(client));
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    drop(turn);
}

#[actix_web::test]
async fn a_broadcast_that_goes_on_is_whole_where_an_older_numbering_went_further() {
    for app in filled().await {
        let store = app.state.history.store();
        // The numbering before went up to 50, and this one began again behind what the store had.
        let mut events = vec![event("a", 50, -500, 7, "kim", "elsewhere")];
        events.extend((9..=11).map(|seq| event("b", seq, 40_000 + i64::try_from(seq).unwrap(), 7, "kim", "x")));
        for event in &mut events {
            event.broadcast_id = None;
        }
        let batch = Arc::new(events.into_iter().map(Arc::new).collect());
        assert_eq!(store.append(batch).await.unwrap(), []);
        let mut open = record(id(START + 40_000, 1), vec![span("b", 8, 0)]);
        open.spans[0].through = None;
        (open.ended_at_ms, open.segments) = (
            None,
            vec![Segment {
                from_ms: START + 40_000,
                to_ms: None,
            }],
        );
        store.put_broadcasts(std::slice::from_ref(&open)).await.unwrap();
        let path = format!("/v1/broadcasts/{}/export", open.id);
        let file = lines(&request(&app, "GET", &path, &app.token(12), "").await);
        assert_eq!(file[0]["spans"][0]["through"], 11, "{file:?}");
        let seqs: Vec<_> = file[1..4].iter().map(|line| line["seq"].as_u64()).collect();
        assert_eq!(seqs, [Some(9), Some(10), Some(11)], "{file:?}");
        assert_eq!(file[4]["events"], 3, "{file:?}");
    }
}

#[actix_web::test]
async fn a_broadcast_that_goes_on_is_exported_until_its_last_message_though_that_came_after_it_was_asked_for() {
    for app in filled().await {
        let store = app.state.history.store();
        // As time goes; where the clock was set back by an hour since; and where the room is not live just then, too.
        for (n, ahead_ms, away) in [(1_u64, 0, false), (2, 3_600_000, false), (3, 3_600_000, true)] {
            let (asked_ms, last_ms) = (system_ms() - 60_000, system_ms() + ahead_ms);
            let (epoch, seqs) = (format!("open{n}"), [10 * n + 1, 10 * n + 2]);
            let mut open = record(id(asked_ms, n), vec![span(&epoch, 10 * n, 10 * n + 2)]);
            if !away {
                open.spans[0].through = None;
            }
            open.segments = vec![Segment {
                from_ms: asked_ms - 1_000,
                to_ms: away.then_some(last_ms),
            }];
            (open.ended_at_ms, open.seen_at_ms) = (None, asked_ms);
            let events = seqs.into_iter().zip([asked_ms, last_ms]).map(|(seq, at_ms)| {
                let mut event = event(&epoch, seq, at_ms - START, 7, "kim", "x");
                event.broadcast_id = None;
                Arc::new(event)
            });
            assert_eq!(store.append(Arc::new(events.collect())).await.unwrap(), []);
            let file = async |format| {
                let record = StoredBroadcast {
                    broadcast: open.clone(),
                    corrected_start_ms: None,
                    legal_hold: false,
                };
                let options = Options {
                    format,
                    deletions: Deletions::Omit,
                    page_rows: 100,
                    cue_ms: 4000,
                    now_ms: asked_ms,
                };
                let history = app.state.history.clone();
                let mut export = Export::begin(history, record, options).await.unwrap();
                let mut bytes = Vec::new();
                while let Some(piece) = export.next().await.unwrap() {
                    bytes.extend_from_slice(&piece.bytes);
                }
                String::from_utf8(bytes).unwrap()
            };
            let text = file(Format::Ndjson).await;
            let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let (exported, last) = (lines[0]["exported_at"].as_str(), lines[2]["sent_at"].as_str());
            assert!(last.is_some() && exported >= last, "{n}: {text}");
            let chat: Value = serde_json::from_str(&file(Format::TwitchJson).await).unwrap();
            let length = chat["video"]["length"].as_f64();
            let offset = chat["comments"][1]["content_offset_seconds"].as_f64();
            assert!(offset.is_some() && length >= offset, "{n}: {chat}");
        }
    }
}
