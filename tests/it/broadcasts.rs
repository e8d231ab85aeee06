//! Broadcasts as they are recorded, and their replay.

use chatting_actors::{clock::system_ms, wire::v1::timestamp};
use serde_json::{Value, json};

use crate::{
    figures::{broadcast, message, shared},
    history::{drained, read, recorded, request, seqs, servers, token_with},
    log_store::batch,
    support::{
        app::{TestApp, post_v1, spawn_app, spawn_in, spawn_with_rooms, use_mongodb},
        eventually,
        http::HttpClient,
        presenter::V1,
        room_server::RoomServer,
    },
};

fn quick(settings: &mut chatting_server::settings::Settings) {
    settings.room.sweep_ms = 20;
    settings.room.live_ttl_ms = 40;
    settings.room.not_live_ttl_ms = 40;
    settings.broadcast.resume_seconds = 60;
}

async fn broadcasts(app: &TestApp, presenter: i64) -> Vec<Value> {
    let path = format!("/v1/rooms/{presenter}/broadcasts");
    let page = read(app, &path, &app.token(7)).await;
    page["broadcasts"].as_array().unwrap().clone()
}

/// Waits until a room's newest broadcast is as wanted.
async fn newest(app: &TestApp, presenter: i64, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually("the broadcast to be as wanted", async || {
        let newest = broadcasts(app, presenter).await.into_iter().next();
        newest.filter(&wanted)
    })
    .await
}

async fn say(app: &TestApp, text: &str) {
    let answer = app.post(12, 7, text).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

async fn replay(app: &TestApp, broadcast: &Value, query: &str) -> Value {
    let id = broadcast["id"].as_str().unwrap();
    read(app, &format!("/v1/broadcasts/{id}/replay?{query}"), &app.token(7)).await
}

#[actix_web::test]
async fn a_broadcast_is_recorded_from_going_live_to_ending_and_has_its_messages() {
    for (app, mut session) in servers(quick).await {
        say(&app, "one").await;
        say(&app, "two").await;
        session.chats(2).await;
        let open = newest(&app, 12, |_| true).await;
        assert_eq!((&open["ended_at"], &open["presenter_idx"]), (&Value::Null, &12.into()));
        assert_eq!(seqs(&replay(&app, &open, "").await), [1, 2]);
        // Nobody sends anything: the server asks by itself. The embedded room server names each broadcast.
        app.go_off(12);
        newest(&app, 12, |one| one["segments"][0]["to"].is_string()).await;
        app.go_live(12);
        let second = newest(&app, 12, |one| one["id"] != open["id"]).await;
        let all = broadcasts(&app, 12).await;
        assert_eq!((all.len(), &all[1]["id"]), (2, &open["id"]));
        assert!(all[1]["ended_at"].is_string(), "{}", all[1]);
        assert_eq!(all[1]["ended_at"], all[1]["segments"][0]["to"]);
        assert_ne!(all[0]["room_idx"], all[1]["room_idx"]);
        say(&app, "three").await;
        for _ in 0..2 {
            assert_eq!(seqs(&replay(&app, &open, "").await), [1, 2]);
            assert_eq!(seqs(&replay(&app, &second, "").await), [3]);
            // What has ended has no next page behind its last message, also where that fills the page.
            for query in ["", "limit=2", "to_ms=99999999"] {
                assert_eq!(replay(&app, &open, query).await["next"], Value::Null, "{query}");
            }
            let first = replay(&app, &open, "limit=1").await;
            let cursor = first["next"].as_str().unwrap();
            let rest = replay(&app, &open, &format!("limit=1&cursor={cursor}")).await;
            assert_eq!((seqs(&rest), &rest["next"]), (vec![2], &Value::Null));
            drained(&app).await;
        }
        let page = read(&app, "/v1/rooms/12/messages", &app.token(7)).await;
        assert_eq!(page["messages"][0]["broadcast_id"], open["id"]);
        assert_eq!(page["messages"][2]["broadcast_id"], second["id"]);
        let id = open["id"].as_str().unwrap();
        assert_eq!(read(&app, &format!("/v1/broadcasts/{id}"), &app.token(7)).await, all[1]);
    }
}

#[actix_web::test]
async fn what_was_said_before_the_video_began_is_nowhere_beside_it() {
    for (app, _session) in servers(|_| {}).await {
        let start = (system_ms() - 7_200_000) / 1000 * 1000;
        let record = broadcast(&[(start, Some(start + 3_600_000))], &[("old", 0, Some(41))]);
        let store = app.state.history.store();
        store.put_broadcasts(std::slice::from_ref(&record)).await.unwrap();
        // The first before the start by our clock; forty while all wait; one behind the first minute of the recording.
        let recorded = start + 1_200_000;
        let said = (1..=41_u64).map(|seq| match seq {
            1 => (seq, start - 500),
            41 => (seq, recorded + 60_000),
            _ => (seq, start + i64::try_from(seq).unwrap() * 1000),
        });
        let events = said.map(|(seq, at_ms)| message(at_ms, 12, "old", seq, 7, "기다려요"));
        store.append(batch(&shared(events))).await.unwrap();
        let path = format!("/v1/broadcasts/{}", record.id);
        let staff = token_with(90, "operator", json!([]));
        let ask = async |method: &str, more: &str, body: &str| {
            let answer = request(&app, method, &format!("{path}{more}"), &staff, body).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            answer
        };
        let correct = async |start: Value| ask("PATCH", "", &json!({ "started_at": start }).to_string()).await;
        let get = async |more: &str| ask("GET", more, "").await;
        let seqs_of = async |query: &str| seqs(&get(&format!("/replay?{query}")).await.json());

        let first = get("/replay?limit=5").await.json();
        assert_eq!(
            (seqs(&first), &first["messages"][0]["offset_ms"]),
            (vec![1, 2, 3, 4, 5], &json!(0))
        );
        let all = get("/stats").await.json();
        assert_eq!((&all["messages"], &all["buckets"][0]), (&json!(41), &json!(40)));
        assert_eq!(all["peaks"][0]["offset_ms"], 0);

        correct(json!(timestamp(recorded))).await;
        for query in ["", "from_ms=0&limit=1", "from_ms=60000", "to_ms=60001"] {
            let page = get(&format!("/replay?{query}")).await.json();
            assert_eq!(seqs(&page), [41], "{query}");
            assert_eq!(page["messages"][0]["offset_ms"], 60_000);
        }
        for query in ["from_ms=0&to_ms=60000", "to_ms=0", "from_ms=60001"] {
            assert_eq!(seqs_of(query).await, [0_u64; 0], "{query}");
        }
        // A player that was in the middle of it.
        let cursor = first["next"].as_str().unwrap();
        assert_eq!(seqs_of(&format!("limit=500&cursor={cursor}")).await, [41]);

        let vtt = get("/export?format=webvtt").await;
        assert_eq!(vtt.text().matches(" --> ").count(), 1, "{}", vtt.text());
        assert!(vtt.text().contains("\n00:01:00.000 --> "), "{}", vtt.text());
        let twitch = get("/export?format=twitch-json").await.json();
        let comments = twitch["comments"].as_array().unwrap();
        assert_eq!(comments.len(), 1);
        assert_eq!(comments[0]["content_offset_seconds"], 60.0);
        let figures = get("/stats").await.json();
        assert_eq!(
            (&figures["messages"], &figures["live_ms"], &figures["through_seq"]),
            (&json!(1), &json!(2_400_000), &json!(41))
        );
        assert_eq!((&figures["buckets"][0], &figures["buckets"][1]), (&json!(0), &json!(1)));
        assert_eq!(figures["peaks"], json!([]));
        assert_eq!(figures["top_senders"][0]["messages"], 1);

        // Whoever analyses has all of it.
        let lines = get("/export?format=ndjson").await;
        let offsets: Vec<i64> = lines
            .text()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["offset_ms"].as_i64())
            .collect();
        assert_eq!((offsets.len(), &offsets[..2]), (41, &[-1_200_000, -1_198_000][..]));
        let csv = get("/export?format=csv").await;
        assert_eq!(csv.text().lines().count(), 42);
        assert!(csv.text().contains(",-1198000,"), "{}", csv.text());

        correct(Value::Null).await;
        assert_eq!(seqs_of("limit=3").await, [1, 2, 3]);
    }
}

#[actix_web::test]
async fn an_interruption_belongs_to_the_broadcast_and_does_not_shift_the_replay() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    let app = spawn_with_rooms(&rooms, quick).await;
    let _session = V1::of(&app, 12, json!({})).await;
    say(&app, "before").await;
    rooms.ended(12).await;
    let off = newest(&app, 12, |one| one["segments"][0]["to"].is_string()).await;
    // It may go on, so there is something to ask for again, however far the question goes.
    let far = replay(&app, &off, "from_ms=1000000000").await;
    assert_eq!(seqs(&far), [0_u64; 0]);
    let cursor = far["next"].as_str().unwrap().to_owned();
    let far = replay(&app, &off, "from_ms=1000000000&to_ms=1000000001").await;
    assert_eq!((seqs(&far), far["next"].as_str()), (vec![], Some(&*cursor)));
    rooms.live(12).await;
    let open = newest(&app, 12, |one| one["segments"].as_array().unwrap().len() == 2).await;
    assert_eq!((broadcasts(&app, 12).await.len(), &open["ended_at"]), (1, &Value::Null));
    say(&app, "after").await;
    assert_eq!(seqs(&replay(&app, &open, &format!("cursor={cursor}")).await), [2]);
    let page = replay(&app, &open, "").await;
    assert_eq!(seqs(&page), [1, 2]);
    let ms = |text: &Value| -> i64 {
        let time: jiff::Timestamp = text.as_str().unwrap().parse().unwrap();
        time.as_millisecond()
    };
    let (first, second) = (&open["segments"][0], &open["segments"][1]);
    let offset = |n: usize| page["messages"][n]["offset_ms"].as_i64().unwrap();
    let sent = |n: usize| ms(&page["messages"][n]["sent_at"]);
    assert_eq!(offset(0), sent(0) - ms(&first["from"]));
    assert_eq!(
        offset(1),
        sent(1) - ms(&second["from"]) + ms(&first["to"]) - ms(&first["from"])
    );
}

#[actix_web::test]
async fn what_the_room_server_tells_of_a_broadcast_is_taken_exactly() {
    let rooms = RoomServer::start().await;
    rooms
        .live_with(12, r#"{"roomIdx":7,"startedAt":"2026-01-01T00:00:00Z"}"#)
        .await;
    let app = spawn_with_rooms(&rooms, quick).await;
    let _session = V1::of(&app, 12, json!({})).await;
    let open = newest(&app, 12, |_| true).await;
    // Of its first second nothing comes any more, though nothing was said since; of the last one of its tenth year it may.
    for (window, goes_on) in [("to_ms=1000", false), ("to_ms=315360000000", true)] {
        let page = replay(&app, &open, window).await;
        assert_eq!((seqs(&page), page["next"].is_string()), (vec![], goes_on), "{window}");
    }
    say(&app, "one").await;
    assert_eq!(
        (&open["room_idx"], &open["started_at"]),
        (&7.into(), &"2026-01-01T00:00:00.000Z".into())
    );
    // Another number, another broadcast, with no moment between them.
    rooms
        .live_with(12, r#"{"roomIdx":8,"startedAt":"2026-01-02T00:00:00Z"}"#)
        .await;
    let next = newest(&app, 12, |one| one["room_idx"] == 8).await;
    assert_eq!(next["started_at"], "2026-01-02T00:00:00.000Z");
    assert!(broadcasts(&app, 12).await[1]["ended_at"].is_string());
    // Its end, with nothing to wait for.
    rooms
        .ended_with(12, r#"{"roomIdx":8,"endedAt":"2026-01-02T01:00:00Z"}"#)
        .await;
    let ended = newest(&app, 12, |one| one["ended_at"].is_string()).await;
    assert_eq!((&ended["id"], &ended["live_ms"]), (&next["id"], &json!(3_600_000)));
    assert_eq!(ended["ended_at"], "2026-01-02T01:00:00.000Z");
    // A start and an end that it tells later, the end in milliseconds.
    rooms.live_with(12, r#"{"roomIdx":9}"#).await;
    newest(&app, 12, |one| one["room_idx"] == 9).await;
    rooms
        .live_with(12, r#"{"roomIdx":9,"startedAt":"2026-01-03T00:00:00Z"}"#)
        .await;
    newest(&app, 12, |one| one["started_at"] == "2026-01-03T00:00:00.000Z").await;
    rooms.ended(12).await;
    newest(&app, 12, |one| one["segments"][0]["to"].is_string()).await;
    rooms.ended_with(12, r#"{"endedAt":1767405600000}"#).await;
    let ended = newest(&app, 12, |one| one["ended_at"].is_string()).await;
    assert_eq!(
        (&ended["room_idx"], &ended["ended_at"], &ended["live_ms"]),
        (&json!(9), &json!("2026-01-03T02:00:00.000Z"), &json!(7_200_000))
    );
}

#[actix_web::test]
async fn a_restart_goes_on_with_the_same_broadcast_and_sees_one_end_that_ended_meanwhile() {
    let rooms = RoomServer::start().await;
    rooms.live(12).await;
    rooms.live(13).await;
    let app = spawn_with_rooms(&rooms, quick).await;
    for presenter in [12, 13] {
        let _session = V1::of(&app, presenter, json!({})).await;
        assert_eq!(app.post(presenter, 7, "one").await.status, 201);
    }
    let before = newest(&app, 12, |_| true).await;
    newest(&app, 13, |_| true).await;
    let (_, dir, settings) = app.stop().await;
    rooms.ended(13).await;
    let app = spawn_in(dir, settings).await;
    // Nobody sends and nobody connects: it asks by itself.
    newest(&app, 13, |one| one["segments"][0]["to"].is_string()).await;
    let _session = V1::of(&app, 12, json!({})).await;
    say(&app, "two").await;
    let all = broadcasts(&app, 12).await;
    assert_eq!((all.len(), &all[0]["id"]), (1, &before["id"]));
    assert_eq!(seqs(&replay(&app, &all[0], "").await), [1, 2]);
    // A longer absence than a broadcast may have: over.
    let (_, dir, mut settings) = app.stop().await;
    settings.broadcast.resume_seconds = 1;
    let app = spawn_in(dir, settings).await;
    let ended = newest(&app, 13, |one| one["ended_at"].is_string()).await;
    assert_eq!(ended["ended_at"], ended["segments"][0]["to"]);
}

/// A server over that MongoDB, or the embedded log, with these rooms live and one message in each; everything is in the store.
async fn with_one_message(rooms: &RoomServer, mongodb: bool, presenters: &[i64]) -> (TestApp, Vec<Value>) {
    for presenter in presenters {
        rooms.live_with(*presenter, r#"{"roomIdx":7}"#).await;
    }
    let app = spawn_with_rooms(rooms, |settings| {
        if mongodb {
            use_mongodb(settings);
        }
        quick(settings);
        // They are told apart by their names alone, and what is not live has ended soon.
        settings.broadcast.resume_seconds = 1;
    })
    .await;
    let mut open = Vec::new();
    for presenter in presenters {
        let _session = V1::of(&app, *presenter, json!({})).await;
        assert_eq!(app.post(*presenter, 7, "one").await.status, 201);
        let one = newest(&app, *presenter, |_| true).await;
        recorded(&app, &one["id"]).await;
        open.push(one);
    }
    drained(&app).await;
    (app, open)
}

/// That a broadcast has ended, not before its message, and its replay, too.
async fn is_over(app: &TestApp, broadcast: &Value) {
    let page = replay(app, broadcast, "").await;
    assert_eq!((seqs(&page), &page["next"]), (vec![1], &Value::Null), "{page}");
    let (said, ended) = (&page["messages"][0]["sent_at"], &broadcast["ended_at"]);
    assert!(said.as_str() <= ended.as_str(), "{broadcast} behind {said}");
}

#[actix_web::test]
async fn a_new_spool_on_an_old_log_goes_on_with_the_broadcasts_that_are_open_there_or_ends_them() {
    let rooms = RoomServer::start().await;
    let (app, before) = with_one_message(&rooms, true, &[12, 13, 14]).await;
    let (_, dir, settings) = app.stop().await;
    for file in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        if file.file_name().to_string_lossy().starts_with("chat.db") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    // Meanwhile one room began another broadcast, and one ended. Nobody says anything there.
    rooms.live_with(13, r#"{"roomIdx":8}"#).await;
    rooms.ended(14).await;
    let app = spawn_in(dir, settings).await;
    newest(&app, 13, |one| one["id"] != before[1]["id"]).await;
    let all = broadcasts(&app, 13).await;
    assert_eq!((all.len(), &all[1]["id"]), (2, &before[1]["id"]));
    assert_eq!(all[0]["ended_at"], Value::Null);
    is_over(&app, &all[1]).await;
    let ended = newest(&app, 14, |one| one["ended_at"].is_string()).await;
    assert_eq!(ended["id"], before[2]["id"]);
    is_over(&app, &ended).await;
    // One goes on.
    let _session = V1::of(&app, 12, json!({})).await;
    say(&app, "two").await;
    let all = broadcasts(&app, 12).await;
    assert_eq!((all.len(), &all[0]["id"]), (1, &before[0]["id"]));
    assert_eq!(all[0]["ended_at"], Value::Null);
    let first = replay(&app, &all[0], "").await;
    let next = format!("cursor={}", first["next"].as_str().unwrap());
    let second = replay(&app, &all[0], &next).await;
    assert_eq!((seqs(&first), seqs(&second)), (vec![1], vec![2]));
}

#[actix_web::test]
async fn a_broadcast_that_a_spool_lost_the_record_of_ends_when_another_begins() {
    for mongodb in [false, true] {
        let rooms = RoomServer::start().await;
        let (app, before) = with_one_message(&rooms, mongodb, &[12]).await;
        let (_, dir, settings) = app.stop().await;
        // As a salvage may that cannot read their page.
        let spool = rusqlite::Connection::open(&settings.log.path).unwrap();
        assert_eq!(spool.execute("DELETE FROM records", []).unwrap(), 1);
        drop(spool);
        rooms.live_with(12, r#"{"roomIdx":8}"#).await;
        let app = spawn_in(dir, settings).await;
        let is_another = |one: &Value| one["id"] != before[0]["id"];
        let _session = V1::of(&app, 12, json!({})).await;
        newest(&app, 12, is_another).await;
        let older = eventually("the older one to end", async || {
            let older = broadcasts(&app, 12).await.pop().unwrap();
            older["ended_at"].is_string().then_some(older)
        })
        .await;
        assert_eq!(older["id"], before[0]["id"]);
        is_over(&app, &older).await;
        let all = broadcasts(&app, 12).await;
        assert_eq!((all.len(), &all[0]["ended_at"]), (2, &Value::Null));
    }
}

#[actix_web::test]
async fn a_replay_is_read_by_windows_and_page_by_page_and_follows_a_corrected_start() {
    for (app, _session) in servers(quick).await {
        for n in 1..=12 {
            say(&app, &n.to_string()).await;
        }
        drained(&app).await;
        let open = newest(&app, 12, |_| true).await;
        let all = replay(&app, &open, "").await;
        let offsets: Vec<i64> = all["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message["offset_ms"].as_i64().unwrap())
            .collect();
        assert!(offsets.is_sorted() && offsets[0] >= 0, "{offsets:?}");
        // Every window has exactly what lies in it, both ways of reading.
        for (from, to) in [
            (0, offsets[5]),
            (offsets[3], offsets[9]),
            (offsets[11], offsets[11] + 1),
        ] {
            let window = replay(&app, &open, &format!("from_ms={from}&to_ms={to}")).await;
            let wanted: Vec<u64> = (1..)
                .zip(&offsets)
                .filter(|(_, offset)| (from..to).contains(*offset))
                .map(|(seq, _)| seq)
                .collect();
            assert_eq!(seqs(&window), wanted, "{from} to {to}: {offsets:?}");
        }
        // What was said behind a window shows that it is over, also where its last message fills the page.
        let later = *offsets.iter().find(|offset| **offset > offsets[0]).unwrap();
        for to in [later, offsets[11]] {
            let limit = offsets.iter().filter(|offset| **offset < to).count();
            let page = replay(&app, &open, &format!("to_ms={to}&limit={limit}")).await;
            assert_eq!(
                (seqs(&page).len(), &page["next"]),
                (limit, &Value::Null),
                "{to}: {offsets:?}"
            );
        }
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        while seen.len() < 12 {
            let page = replay(&app, &open, &format!("limit=5{cursor}")).await;
            assert!(seqs(&page).len() <= 5);
            seen.extend(seqs(&page));
            cursor = format!("&cursor={}", page["next"].as_str().unwrap());
        }
        assert_eq!(seen, (1..=12).collect::<Vec<_>>());
        // It goes on, so there is more to come.
        let rest = replay(&app, &open, &cursor[1..]).await;
        assert_eq!(seqs(&rest), [0_u64; 0]);
        // Windows that have yet to end, or to begin, have more to come, too.
        let behind = rest["next"].as_str().unwrap();
        let window = |from: i64| format!("from_ms={}&to_ms={}", offsets[11] + from, offsets[11] + 7_200_000);
        let [soon, late] = [1, 3_600_000].map(window);
        let mut windows = Vec::new();
        for window in [soon, late] {
            let empty = replay(&app, &open, &window).await;
            assert_eq!(seqs(&empty), [0_u64; 0], "{window}");
            windows.push(format!("{window}&cursor={}", empty["next"].as_str().unwrap()));
        }
        say(&app, "13").await;
        for (window, wanted) in windows.iter().zip([&[13][..], &[]]) {
            let page = replay(&app, &open, window).await;
            assert_eq!(seqs(&page), wanted, "{window}");
            assert!(page["next"].is_string(), "{window}");
        }
        let rest = replay(&app, &open, &format!("cursor={behind}")).await;
        assert_eq!(seqs(&rest), [13]);

        let path = format!("/v1/broadcasts/{}", open["id"].as_str().unwrap());
        recorded(&app, &open["id"]).await;
        let start: jiff::Timestamp = open["started_at"].as_str().unwrap().parse().unwrap();
        let earlier = timestamp(start.as_millisecond() - 1000);
        let patch = async |body: Value| request(&app, "PATCH", &path, &app.token(12), &body.to_string()).await;
        let corrected = patch(json!({ "started_at": earlier })).await.json();
        assert_eq!(
            (&corrected["started_at"], &corrected["corrected_from"]),
            (&json!(earlier), &open["started_at"])
        );
        let shifted = replay(&app, &open, "limit=1").await;
        assert_eq!(shifted["messages"][0]["offset_ms"].as_i64(), Some(offsets[0] + 1000));
        assert_eq!(
            patch(json!({ "started_at": null })).await.json()["started_at"],
            open["started_at"]
        );
        let again = replay(&app, &open, "limit=1").await;
        assert_eq!(again["messages"][0]["offset_ms"].as_i64(), Some(offsets[0]));
        for bad in [
            json!({}),
            json!({ "started_at": 5 }),
            json!({ "started_at": "now" }),
            json!({ "started_at": "0000-01-01T00:00:00Z" }),
            json!({ "started_at": "1999-12-31T23:59:59.999Z" }),
            json!({ "started_at": "2099-01-01T00:00:00Z" }),
            json!({ "ended_at": null }),
            json!([]),
        ] {
            let answer = patch(bad.clone()).await;
            assert_eq!(answer.status, 400, "{bad}");
            // Nothing of how a query would have to be written.
            assert!(!answer.text().contains("%2B"), "{}", answer.text());
        }
    }
}

#[actix_web::test]
async fn the_pages_of_a_window_lead_to_its_end_though_the_broadcast_goes_on_behind_it_in_another_numbering() {
    // A page has one message of these.
    for (app, _session) in servers(|settings| settings.history.page_bytes = 1024).await {
        let from = system_ms() - 3_600_000;
        let over = broadcast(&[(from, Some(from + 60_000))], &[("a", 0, Some(6)), ("b", 6, None)]);
        let text = "x".repeat(600);
        let said = (1..=9_u64).map(|seq| {
            let epoch = if seq <= 6 { "a" } else { "b" };
            message(from + seq.cast_signed() * 1000, 12, epoch, seq, 7, &text)
        });
        let store = app.state.history.store();
        store.prepare().await.unwrap();
        assert_eq!(store.append(batch(&shared(said))).await.unwrap(), []);
        store.put_broadcasts(std::slice::from_ref(&over)).await.unwrap();
        let over = json!({ "id": over.id });
        for (to_ms, last) in [(500, 0), (5500, 5), (6500, 6), (8500, 8), (60_000, 9)] {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = replay(&app, &over, &format!("to_ms={to_ms}&limit=500{cursor}")).await;
                seen.extend(seqs(&page));
                let Some(next) = page["next"].as_str() else {
                    break;
                };
                cursor = format!("&cursor={next}");
            }
            assert_eq!(seen, (1..=last).collect::<Vec<_>>(), "to {to_ms}");
        }
    }
}

#[actix_web::test]
async fn a_window_is_not_over_while_a_message_of_it_is_on_its_way_however_long_that_takes() {
    for (app, _session) in servers(quick).await {
        say(&app, "one").await;
        let open = newest(&app, 12, |_| true).await;
        // As if an hour had gone by: the room is live then, and no other record is newer than this one.
        let spool = rusqlite::Connection::open(&app.settings.log.path).unwrap();
        spool.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        let sql = "UPDATE records SET version = 1000000,
                   record = json_set(record, '$.version', 1000000, '$.seen_at_ms', ?1) WHERE presenter_idx = 12";
        assert_eq!(spool.execute(sql, [system_ms() + 3_600_000]).unwrap(), 1);
        let start: jiff::Timestamp = open["started_at"].as_str().unwrap().parse().unwrap();
        let until_now = || format!("to_ms={}", system_ms() + 1 - start.as_millisecond());
        let ends = async |window: &str, wanted: &[u64]| {
            eventually("the window to be over", async || {
                let page = replay(&app, &open, window).await;
                assert_eq!(seqs(&page), wanted);
                page["next"].is_null().then_some(())
            })
            .await;
        };
        ends(&until_now(), &[1]).await;
        let hold = app.state.health.writer.hold_spool();
        let post = |presenter: i64| {
            let (addr, token) = (app.addr, app.token(7));
            actix_web::rt::spawn(async move {
                let mut client = HttpClient::connect(addr).await;
                post_v1(&mut client, presenter, &token, "two").await
            })
        };
        let two = post(12);
        eventually("it to be on its way", async || {
            app.room(12).await.filter(|room| room.in_flight == 1)
        })
        .await;
        let window = until_now();
        // Nor when a sweep has come by since, as one has that shows another room.
        app.go_live(14);
        let other = post(14);
        eventually("a sweep", async || {
            (app.metric("chat_rooms").await == Some(2.0)).then_some(())
        })
        .await;
        let page = replay(&app, &open, &window).await;
        assert_eq!(seqs(&page), [1]);
        let cursor = page["next"].as_str().expect("there is more to come");
        let rest = format!("{window}&cursor={cursor}");
        let page = replay(&app, &open, &rest).await;
        assert_eq!((seqs(&page), page["next"].as_str()), (vec![], Some(cursor)));
        drop(hold);
        let two = two.await.unwrap();
        assert_eq!(two.status, 201, "{two:?}");
        other.await.unwrap();
        ends(&rest, &[2]).await;
    }
}

#[actix_web::test]
async fn a_start_is_corrected_to_the_end_of_the_broadcast_and_to_nothing_behind_it() {
    let app = spawn_app(|_| {}).await;
    let from = system_ms() - 3_600_000;
    let end = from + 60_000;
    let over = broadcast(&[(from, Some(end))], &[("a", 0, Some(0))]);
    let store = app.state.history.store();
    store.prepare().await.unwrap();
    store.put_broadcasts(std::slice::from_ref(&over)).await.unwrap();
    let correct = async |start_ms: i64| {
        let body = json!({ "started_at": timestamp(start_ms) }).to_string();
        let path = format!("/v1/broadcasts/{}", over.id);
        request(&app, "PATCH", &path, &app.token(12), &body).await
    };
    let behind = correct(end + 1).await;
    assert_eq!(behind.status, 400, "{behind:?}");
    let why = behind.json()["detail"].clone();
    assert_eq!(why, "started_at: it is after the broadcast's end");
    let at_the_end = correct(end).await;
    assert_eq!(
        (at_the_end.status, &at_the_end.json()["started_at"]),
        (200, &timestamp(end).into()),
        "{at_the_end:?}"
    );
}

/// That it can be read does not mean that no failover takes it back: 200 is for what the store has taken.
#[actix_web::test]
async fn a_start_or_a_hold_that_is_so_already_is_written_all_the_same() {
    let app = spawn_app(|_| {}).await;
    let from = system_ms() - 3_600_000;
    let over = broadcast(&[(from, Some(from + 60_000))], &[("a", 0, Some(0))]);
    let store = app.state.history.store();
    store.prepare().await.unwrap();
    store.put_broadcasts(std::slice::from_ref(&over)).await.unwrap();
    let operator = token_with(90, "operator", json!([]));
    let path = format!("/v1/broadcasts/{}", over.id);
    let sql = |sql: &str| {
        let connection = rusqlite::Connection::open(&app.settings.log.path).unwrap();
        connection.execute_batch(sql).unwrap();
    };
    for change in [
        json!({ "started_at": timestamp(from + 1_000) }),
        json!({ "started_at": null }),
        json!({ "legal_hold": true }),
    ] {
        let patch = async || request(&app, "PATCH", &path, &operator, &change.to_string()).await;
        assert_eq!(patch().await.status, 200, "{change}");
        sql("CREATE TRIGGER no BEFORE UPDATE ON broadcasts BEGIN SELECT RAISE(ABORT, 'no'); END");
        let refused = patch().await;
        assert_eq!(refused.status, 503, "{change}: {refused:?}");
        sql("DROP TRIGGER no");
        assert_eq!(patch().await.status, 200, "{change}");
    }
}

#[actix_web::test]
async fn a_broadcast_whose_times_are_ahead_of_the_clock_may_have_the_start_that_it_has_and_none_behind_it() {
    let app = spawn_app(|_| {}).await;
    let from = system_ms() + 3_600_000;
    let open = broadcast(&[(from, None)], &[("a", 0, None)]);
    let store = app.state.history.store();
    store.prepare().await.unwrap();
    store.put_broadcasts(std::slice::from_ref(&open)).await.unwrap();
    let correct = async |start_ms: i64| {
        let body = json!({ "started_at": timestamp(start_ms) }).to_string();
        let path = format!("/v1/broadcasts/{}", open.id);
        request(&app, "PATCH", &path, &app.token(12), &body).await
    };
    let its_own = correct(from).await;
    assert_eq!(
        (its_own.status, &its_own.json()["started_at"]),
        (200, &timestamp(from).into()),
        "{its_own:?}"
    );
    let ahead = correct(from + 1).await;
    assert_eq!(ahead.status, 400, "{ahead:?}");
    assert_eq!(ahead.json()["detail"], "started_at: it is in the future");
}

#[actix_web::test]
async fn all_broadcasts_of_a_room_are_come_to_page_by_page_the_newest_first() {
    for (app, _session) in servers(|_| {}).await {
        let all = [0, 60_000, 120_000].map(|after| {
            let from = 1_767_225_600_000 + after;
            let mut one = broadcast(&[(from, Some(from + 30_000))], &[("a", 0, Some(0))]);
            one.presenter = chatting_actors::types::PresenterIdx::new(99).unwrap();
            one
        });
        let store = app.state.history.store();
        store.prepare().await.unwrap();
        store.put_broadcasts(&all).await.unwrap();
        let page = async |query: &str| {
            let path = format!("/v1/rooms/99/broadcasts?{query}");
            let page = read(&app, &path, &app.token(7)).await;
            let found = page["broadcasts"].as_array().unwrap().iter();
            (found.map(|one| one["id"].clone()).collect(), page["next"].clone())
        };
        let [first, second, third] = all.map(|one| json!(one.id));
        let newest: (Vec<_>, _) = page("limit=2").await;
        assert_eq!(newest, (vec![third, second.clone()], second.clone()));
        // The last page is full, too, and has none behind it.
        let rest = page(&format!("limit=1&before={}", second.as_str().unwrap())).await;
        assert_eq!(rest, (vec![first], Value::Null));
    }
}

#[actix_web::test]
async fn a_deletion_during_a_replay_hides_from_viewers_and_marks_for_staff() {
    for (app, _session) in servers(quick).await {
        for text in ["one", "secret", "three"] {
            say(&app, text).await;
        }
        let open = newest(&app, 12, |_| true).await;
        let path = format!("/v1/broadcasts/{}/replay", open["id"].as_str().unwrap());
        let first = read(&app, &format!("{path}?limit=1"), &app.token(7)).await;
        let cursor = first["next"].as_str().unwrap().to_owned();
        let page = read(&app, "/v1/rooms/12/messages", &app.token(7)).await;
        let id = page["messages"][1]["id"].as_str().unwrap().to_owned();
        let deleted = request(
            &app,
            "DELETE",
            &format!("/v1/rooms/12/messages/{id}"),
            &app.token(12),
            "",
        )
        .await;
        assert_eq!(deleted.status, 200, "{deleted:?}");
        for _ in 0..2 {
            let rest = read(&app, &format!("{path}?cursor={cursor}"), &app.token(7)).await;
            assert_eq!(seqs(&rest), [3]);
            let staff = read(&app, &format!("{path}?cursor={cursor}"), &app.token(12)).await;
            assert_eq!(seqs(&staff), [2, 3, 4]);
            assert_eq!(
                (&staff["messages"][0]["text"], &staff["messages"][0]["deleted"]),
                (&"secret".into(), &true.into())
            );
            drained(&app).await;
        }
    }
}

#[actix_web::test]
async fn what_is_no_broadcast_is_not_found_and_a_bad_query_is_named() {
    let app = spawn_app(quick).await;
    app.go_live(12);
    let _session = V1::of(&app, 12, json!({})).await;
    say(&app, "one").await;
    let open = newest(&app, 12, |_| true).await;
    let id = open["id"].as_str().unwrap();
    let token = app.token(7);
    for path in [
        "/v1/broadcasts/019b76da-a800-7000-8000-000000000001".to_owned(),
        "/v1/broadcasts/x/replay".into(),
        format!("/v1/broadcasts/{}", id.replace('-', "")),
    ] {
        let answer = request(&app, "GET", &path, &token, "").await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (404, Some("not_found")),
            "{path}"
        );
    }
    for (query, named) in [
        ("from_ms=-1", "from_ms"),
        ("to_ms=x", "to_ms"),
        ("cursor=5", "cursor"),
        ("cursor=0.99999999999999999999", "cursor"),
        ("limit=0", "limit"),
        ("speed=2", "speed"),
    ] {
        let answer = request(&app, "GET", &format!("/v1/broadcasts/{id}/replay?{query}"), &token, "").await;
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
        assert!(
            answer.json()["detail"].as_str().unwrap().contains(named),
            "{query}: {answer:?}"
        );
    }
    let answer = request(&app, "GET", "/v1/rooms/12/broadcasts?before=x", &token, "").await;
    assert_eq!(answer.status, 400, "{answer:?}");
    let page = read(&app, "/v1/rooms/12/broadcasts?limit=1", &token).await;
    let last = page["broadcasts"][0]["id"].as_str().unwrap();
    let rest = read(&app, &format!("/v1/rooms/12/broadcasts?before={last}"), &token).await;
    assert_eq!(rest, json!({ "broadcasts": [], "next": null }));
}
