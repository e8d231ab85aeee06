//! Figures of a broadcast: both stores count the same, and what was said.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use chatting_actors::{
    broadcast::{Broadcast, Segment, Span},
    clock::system_ms,
    moderation::Act,
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, Role, Seq, UserIdx},
};
use chatting_server::{
    settings::Secret,
    store::{
        Archive,
        figures::{Counted, FiguresQuery, words},
    },
};
use mongodb::bson::doc;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    history::{drained, read, request, servers, token_with},
    log_store::{batch, room, stores},
    support::{
        app::{spawn_app, use_mongodb},
        mongod::Mongod,
    },
};

/// An id of that time.
pub fn id_of(at_ms: i64, n: u64) -> Uuid {
    let time = u128::from(at_ms.cast_unsigned()) << 80;
    Uuid::from_u128(time | 0x7000_8000_0000_0000_0000 | u128::from(n))
}

/// A message of that time.
pub fn message(at_ms: i64, presenter: i64, epoch: &str, seq: u64, user: i64, text: &str) -> Event {
    Event {
        id: id_of(at_ms, seq),
        presenter_idx: room(presenter),
        epoch: Epoch(epoch.into()),
        seq: Seq(seq),
        sent_at_ms: at_ms,
        room_idx: None,
        broadcast_id: None,
        act: None,
        chat: ChatMessage {
            user_idx: UserIdx::new(user).unwrap(),
            nickname: Nickname::new(&format!("이름{user}"), 64).unwrap(),
            text: MessageText::maybe_empty(text.to_owned(), usize::MAX).unwrap(),
            role: if user == presenter {
                Role::Presenter
            } else {
                Role::Viewer
            },
        },
        keyed: None,
    }
}

pub fn shared(events: impl IntoIterator<Item = Event>) -> Vec<Arc<Event>> {
    events.into_iter().map(Arc::new).collect()
}

/// A broadcast of room 12 with these segments and spans (epoch, after, through).
pub fn broadcast(segments: &[(i64, Option<i64>)], spans: &[(&str, u64, Option<u64>)]) -> Broadcast {
    Broadcast {
        id: id_of(segments[0].0, 0),
        presenter: room(12),
        room_idx: None,
        reported_start_ms: None,
        ended_at_ms: segments.last().and_then(|last| last.1),
        segments: segments
            .iter()
            .map(|(from_ms, to_ms)| Segment {
                from_ms: *from_ms,
                to_ms: *to_ms,
            })
            .collect(),
        spans: spans
            .iter()
            .map(|(epoch, after, through)| Span {
                epoch: Epoch((*epoch).into()),
                after: Seq(*after),
                through: through.map(Seq),
            })
            .collect(),
        seen_at_ms: segments[0].0,
        version: 1,
    }
}

fn query(broadcast: &Broadcast, bucket_ms: i64) -> FiguresQuery {
    FiguresQuery {
        broadcast: broadcast.clone(),
        corrected_start_ms: None,
        bucket_ms,
        last_bucket: 99,
        top: 1000,
        patience: Duration::from_secs(60),
    }
}

async fn count(store: &dyn Archive, query: FiguresQuery) -> Counted {
    store.figures(query).await.unwrap()
}

/// The figures, counted one event after the other.
fn by_hand(query: &FiguresQuery, events: &[Event], deleted: &BTreeSet<u64>) -> Counted {
    let mut counted = Counted::default();
    let (mut buckets, mut senders, mut words_of) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut waits = BTreeMap::new();
    for span in &query.broadcast.spans {
        let mut waiting_since = None;
        for event in events {
            let within = event.epoch == span.epoch
                && event.seq > span.after
                && span.through.is_none_or(|through| event.seq <= through)
                && event.presenter_idx == query.broadcast.presenter
                && event.broadcast_id.is_none_or(|id| id == query.broadcast.id);
            if !within {
                continue;
            }
            counted.through = Some((event.epoch.clone(), event.seq));
            let offset = query.broadcast.offset_ms(event.sent_at_ms, query.corrected_start_ms);
            if event.act.is_some() || deleted.contains(&event.seq.0) || offset < 0 {
                continue;
            }
            *buckets
                .entry((offset / query.bucket_ms).min(query.last_bucket))
                .or_insert(0) += 1;
            *senders.entry(event.chat.user_idx).or_insert(0) += 1;
            for word in words::words(event.chat.text.as_str()) {
                if !words::STOP_WORDS.contains(&word.as_str()) {
                    *words_of.entry(word).or_insert(0) += 1;
                }
            }
            if !event.chat.user_idx.presents(event.presenter_idx) {
                waiting_since.get_or_insert(event.sent_at_ms);
            } else if let Some(since) = waiting_since.take() {
                *waits.entry(((event.sent_at_ms - since) / 1000).min(3600)).or_insert(0) += 1;
            }
        }
    }
    counted.senders = senders.len() as u64;
    let mut senders: Vec<_> = senders.into_iter().collect();
    senders.sort_by_key(|(user, messages)| (std::cmp::Reverse(*messages), *user));
    counted.top_senders = senders
        .into_iter()
        .take(query.top)
        .map(|(user_idx, messages)| chatting_server::store::figures::Sender {
            user_idx,
            nickname: format!("이름{user_idx}"),
            messages,
        })
        .collect();
    let mut words_of: Vec<(String, u64)> = words_of.into_iter().collect();
    words_of.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    words_of.truncate(query.top);
    counted.top_words = words_of;
    counted.buckets = buckets.into_iter().collect();
    counted.waits = waits.into_iter().collect();
    counted
}

const TEXTS: [&str; 12] = [
    "안녕하세요",
    "오늘 방송 재밌다 ㅋㅋㅋㅋ",
    "방송이 방송을 방송에서",
    "GG gg",
    "what a play!! that was INSANE",
    "don't stop, it's 3:0",
    "노래가 좋아요 노래를 더",
    "",
    "ㅋㅋㅋㅋㅋㅋ",
    "첼시 vs 맨유 4k",
    "🙂🙂",
    "그냥 이거 하나만",
];

#[actix_web::test]
async fn the_figures_of_a_broadcast_are_what_was_said_in_it_and_the_same_in_both_stores() {
    // Interrupted once, with a crash in between that began another numbering.
    let start = 1_700_000_000_000;
    let record = broadcast(
        &[(start, Some(start + 300_000)), (start + 400_000, Some(start + 900_000))],
        &[("a", 10, Some(400)), ("b", 400, Some(790))],
    );
    let mut random = StdRng::seed_from_u64(7);
    let mut events = Vec::new();
    let mut deleted = BTreeSet::new();
    for seq in 1..=800_u64 {
        let epoch = if seq <= 400 { "a" } else { "b" };
        let at_ms = start - 50_000 + i64::try_from(seq).unwrap() * 1_200 + random.random_range(0..1_000);
        let user = match random.random_range(0..20) {
            0 => 12,
            other => 100 + other * other % 17,
        };
        let text = TEXTS[random.random_range(0..TEXTS.len())];
        let mut one = message(at_ms, 12, epoch, seq, user, text);
        if seq % 50 == 0 {
            // It deletes what came right before it.
            let Some(before) = events.last().map(|before: &Event| (before.id, before.seq)) else {
                continue;
            };
            one.act = Some(Arc::new(Act::Message {
                id: before.0,
                seq: before.1,
            }));
            one.chat.text = MessageText::maybe_empty(String::new(), 0).unwrap();
            deleted.insert(before.1.0);
        }
        events.push(one);
    }
    // Another room says other things in the same numbering.
    let other = (1..=50).map(|seq| message(start + 1_000, 13, "a", seq, 500, "다른방 이야기"));
    for (name, store, _dir) in stores().await {
        store
            .append(batch(&shared(events.iter().cloned().chain(other.clone()))))
            .await
            .unwrap();
        for (bucket_ms, top, corrected) in [
            (60_000, 1000, None),
            (10_000, 3, Some(start + 30_000)),
            (1_000, 1, Some(start - 5_000)),
            (700_000, 1000, None),
            // Behind the interruption, which does not count.
            (60_000, 1000, Some(start + 450_000)),
        ] {
            let query = FiguresQuery {
                top,
                corrected_start_ms: corrected,
                ..query(&record, bucket_ms)
            };
            let counted = count(&*store, query.clone()).await;
            assert_eq!(counted, by_hand(&query, &events, &deleted), "{name}, {bucket_ms}");
            assert_eq!(counted.through, Some((Epoch("b".into()), Seq(790))), "{name}");
            // 780 events, of which 15 are acts and as many were deleted. What was said before a later start does not count.
            let is_later = corrected.is_some_and(|at_ms| at_ms > start);
            assert_eq!(counted.messages() < 780 - 15 - 15, is_later, "{name}");
            assert!(counted.messages() <= 780 - 15 - 15, "{name}");
            assert!(
                counted.replies() > if is_later { 10 } else { 20 },
                "{name}: {counted:?}"
            );
        }
        let words = count(&*store, query(&record, 60_000)).await.top_words;
        let of = |word: &str| {
            words
                .iter()
                .find(|(found, _)| found == word)
                .map(|(_, messages)| *messages)
        };
        // Once a message, without particles, in small letters.
        assert!(
            of("방송").is_some() && of("노래").is_some() && of("gg").is_some() && of("insane").is_some(),
            "{words:?}"
        );
        assert!(of("방송을").is_none() && of("그냥").is_none() && of("that").is_none() && of("ㅋㅋㅋㅋ").is_none());
    }
}

#[actix_web::test]
async fn the_figures_have_nothing_of_another_broadcast_whatever_numbers_were_taken_back() {
    let start = 1_700_000_000_000;
    let record = broadcast(&[(start, Some(start + 60_000))], &[("e", 0, Some(8))]);
    let events: Vec<_> = (1..=8_u64)
        .map(|seq| {
            let other = [4, 5, 8].contains(&seq);
            let (user, text) = match seq {
                4 | 7 => (12, "고마워요"),
                _ if other => (8, "다른방송"),
                _ => (7, "안녕하세요"),
            };
            let mut one = message(start + i64::try_from(seq).unwrap() * 5_000, 12, "e", seq, user, text);
            // What says nothing of a broadcast is of the one in whose span it is.
            let of = if other { id_of(start, 99) } else { record.id };
            one.broadcast_id = (seq != 1).then_some(of);
            one
        })
        .collect();
    for (name, store, _dir) in stores().await {
        store.append(batch(&shared(events.clone()))).await.unwrap();
        let query = query(&record, 60_000);
        let counted = count(&*store, query.clone()).await;
        assert_eq!(counted, by_hand(&query, &events, &BTreeSet::new()), "{name}");
        assert_eq!(counted.messages(), 5, "{name}");
        assert_eq!(counted.through, Some((Epoch("e".into()), Seq(7))), "{name}");
        // From the first message to the presenter's own of this broadcast.
        assert_eq!(counted.waits, [(30, 1)], "{name}");
    }
}

#[actix_web::test]
async fn the_figures_end_where_the_next_broadcast_begins_though_nobody_knows_how_far_this_one_went() {
    let start = 1_700_000_000_000;
    // It went on in another numbering; and there, too, nobody knows.
    let record = broadcast(&[(start, Some(start + 60_000))], &[("a", 0, None), ("b", 5, None)]);
    let next = Some(id_of(start + 70_000, 99));
    let mut events = Vec::new();
    for (epoch, own, rest) in [("a", 1..=5_u64, 6..=20_u64), ("b", 6..=8, 9..=20)] {
        let numbering_ms = if epoch == "a" { 0 } else { 1 };
        let one = |seq: u64, of| Event {
            broadcast_id: of,
            ..message(
                start + i64::try_from(seq).unwrap() * 1_000 + numbering_ms,
                12,
                epoch,
                seq,
                7,
                "안녕하세요",
            )
        };
        events.extend(own.map(|seq| one(seq, (seq % 2 == 0).then_some(record.id))));
        let mut later: Vec<_> = rest.map(|seq| one(seq, next)).collect();
        // Staff delete something when that is over, too.
        if let Some(last) = later.last_mut() {
            let none = Act::Message {
                id: Uuid::nil(),
                seq: Seq(0),
            };
            (last.broadcast_id, last.act) = (None, Some(Arc::new(none)));
        }
        events.extend(later);
    }
    let known = broadcast(
        &[(start, Some(start + 60_000))],
        &[("a", 0, Some(5)), ("b", 5, Some(8))],
    );
    for (name, store, _dir) in stores().await {
        assert_eq!(
            store.append(batch(&shared(events.clone()))).await.unwrap(),
            [],
            "{name}"
        );
        let counted = count(&*store, query(&record, 60_000)).await;
        assert_eq!(
            counted,
            by_hand(&query(&known, 60_000), &events, &BTreeSet::new()),
            "{name}"
        );
        assert_eq!(counted.messages(), 8, "{name}");
        assert_eq!(counted.through, Some((Epoch("b".into()), Seq(8))), "{name}");
    }
}

#[actix_web::test]
async fn who_changes_their_name_is_one_sender_with_the_newest_name() {
    let start = 1_700_000_000_000;
    let record = broadcast(&[(start, Some(start + 60_000))], &[("e", 0, Some(3))]);
    // By its letters the newest is between the others.
    let events: Vec<_> = (1..=3_u64)
        .zip(["가", "다", "나"])
        .map(|(seq, name)| {
            let mut one = message(
                start + i64::try_from(seq).unwrap() * 1_000,
                12,
                "e",
                seq,
                7,
                "안녕하세요",
            );
            one.chat.nickname = Nickname::new(name, 64).unwrap();
            one
        })
        .collect();
    for (name, store, _dir) in stores().await {
        store.append(batch(&shared(events.clone()))).await.unwrap();
        let senders = count(&*store, query(&record, 60_000)).await.top_senders;
        let senders: Vec<_> = senders.iter().map(|one| (&*one.nickname, one.messages)).collect();
        assert_eq!(senders, [("나", 3)], "{name}");
    }
}

#[actix_web::test]
async fn both_stores_find_the_same_words_in_whatever_was_sent() {
    let alphabet: Vec<char> = "가나다방송은는을를가에서에게으로까지부터이랑의도만로와과이ㅋㅎㅏabcXYZ09''  \u{0}.,!🙂é日\u{1112}\u{1161}\u{11ab}힣\u{d7a4}"
        .chars()
        .collect();
    let mut random = StdRng::seed_from_u64(99);
    let mut events: Vec<_> = (1..=3_000_u64)
        .map(|seq| {
            let length = random.random_range(0..40);
            let text: String = (0..length)
                .map(|_| alphabet[random.random_range(0..alphabet.len())])
                .collect();
            message(1_700_000_000_000, 12, "e", seq, 7, &text)
        })
        .collect();
    for (seq, text) in [
        (3_001, "가".repeat(2_000)),
        (3_002, "a".repeat(2_000)),
        (3_003, "방송에서".repeat(500)),
    ] {
        events.push(message(1_700_000_000_000, 12, "e", seq, 7, &text));
    }
    let record = broadcast(&[(1_700_000_000_000, None)], &[("e", 0, None)]);
    let query = FiguresQuery {
        top: 1_000_000,
        ..query(&record, 60_000)
    };
    for (name, store, _dir) in stores().await {
        store.append(batch(&shared(events.clone()))).await.unwrap();
        let counted = count(&*store, query.clone()).await;
        let expected = by_hand(&query, &events, &BTreeSet::new());
        assert!(expected.top_words.len() > 1_000, "{}", expected.top_words.len());
        assert_eq!(counted.top_words, expected.top_words, "{name}");
    }
}

#[actix_web::test]
async fn a_broadcast_of_which_the_store_has_nothing_has_figures_of_nothing() {
    let record = broadcast(&[(1_700_000_000_000, None)], &[("e", 5, None)]);
    for (name, store, _dir) in stores().await {
        let before = (1..=5).map(|seq| message(1_700_000_000_000, 12, "e", seq, 7, "before"));
        assert_eq!(
            count(&*store, query(&record, 60_000)).await,
            Counted::default(),
            "{name}"
        );
        store.append(batch(&shared(before))).await.unwrap();
        assert_eq!(
            count(&*store, query(&record, 60_000)).await,
            Counted::default(),
            "{name}"
        );
    }
}

#[actix_web::test]
async fn counting_is_given_up_when_its_time_is_over() {
    let record = broadcast(&[(1_700_000_000_000, None)], &[("e", 0, None)]);
    for (name, store, _dir) in stores().await {
        for chunk in (1..=20_000_u64).collect::<Vec<_>>().chunks(5_000) {
            let events = chunk
                .iter()
                .map(|seq| message(1_700_000_000_000, 12, "e", *seq, 7, "안녕 하세요"));
            store.append(batch(&shared(events))).await.unwrap();
        }
        let hurried = FiguresQuery {
            patience: Duration::from_millis(1),
            ..query(&record, 60_000)
        };
        assert!(store.figures(hurried).await.is_err(), "{name}");
        assert_eq!(
            count(&*store, query(&record, 60_000)).await.messages(),
            20_000,
            "{name}"
        );
    }
}

#[actix_web::test]
async fn figures_that_the_store_does_not_have_in_figures_timeout_seconds_are_not_waited_for() {
    let mongod = Mongod::start_own_with(&["--setParameter", "enableTestCommands=1"]).await;
    let app = spawn_app(|settings| {
        use_mongodb(settings);
        settings.mongodb.uri = Secret::new(mongod.uri());
        settings.figures.timeout_seconds = 1;
    })
    .await;
    let store = app.state.history.store();
    store.prepare().await.unwrap();
    let start = system_ms() - 60_000;
    let record = broadcast(&[(start, Some(start + 30_000))], &[("e", 0, Some(1))]);
    store.put_broadcasts(std::slice::from_ref(&record)).await.unwrap();
    store
        .append(batch(&shared([message(start + 1_000, 12, "e", 1, 7, "x")])))
        .await
        .unwrap();
    // From now on the log's events are looked for and never told.
    let log = format!("{}.chatting_log", app.settings.mongodb.database);
    let client = mongodb::Client::with_uri_str(mongod.uri()).await.unwrap();
    let never =
        doc! { "configureFailPoint": "waitInFindBeforeMakingBatch", "mode": "alwaysOn", "data": { "nss": log } };
    client.database("admin").run_command(never).await.unwrap();
    let began = Instant::now();
    let path = format!("/v1/broadcasts/{}/stats", record.id);
    let answer = request(&app, "GET", &path, &app.token(12), "").await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (503, &json!("log_unavailable")),
        "{answer:?}"
    );
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[actix_web::test]
async fn staff_of_a_room_read_the_figures_of_its_broadcasts_and_nobody_else() {
    for (app, mut session) in servers(|settings| settings.figures.top_max = 50).await {
        for text in ["안녕 방송", "방송 GG", "gg"] {
            assert_eq!(app.post(12, 7, text).await.status, 201);
        }
        assert_eq!(app.post(12, 8, "방송").await.status, 201);
        assert_eq!(app.post(12, 12, "고마워요").await.status, 201);
        session.chats(5).await;
        drained(&app).await;
        let page = read(&app, "/v1/rooms/12/broadcasts", &app.token(7)).await;
        let id = page["broadcasts"][0]["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/broadcasts/{id}/stats");
        let figures = read(&app, &path, &app.token(12)).await;
        assert_eq!(figures["broadcast_id"], id.as_str());
        assert_eq!(
            (&figures["messages"], &figures["senders"], &figures["through_seq"]),
            (&json!(5), &json!(3), &json!(5))
        );
        assert_eq!(figures["buckets"], json!([5]));
        assert_eq!(figures["bucket_ms"], 60_000);
        assert_eq!(
            figures["top_senders"][0],
            json!({ "user_idx": 7, "nickname": "kim", "messages": 3 })
        );
        assert_eq!(figures["top_words"][0], json!({ "word": "방송", "messages": 3 }));
        assert_eq!(figures["top_words"][1], json!({ "word": "gg", "messages": 2 }));
        assert_eq!(
            figures["replies"],
            json!({ "count": 1, "median_seconds": 0, "p90_seconds": 0 })
        );
        assert_eq!(figures["peaks"], json!([]));
        assert_eq!(
            read(&app, &format!("{path}?top=1"), &token_with(90, "operator", json!([]))).await["top_words"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        // A deleted message counts no more.
        let newest = read(&app, "/v1/rooms/12/messages", &app.token(7)).await;
        let gg = newest["messages"][1]["id"].as_str().unwrap();
        let answer = request(
            &app,
            "DELETE",
            &format!("/v1/rooms/12/messages/{gg}"),
            &app.token(12),
            "",
        )
        .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        drained(&app).await;
        let figures = read(&app, &path, &app.token(12)).await;
        assert_eq!((&figures["messages"], &figures["through_seq"]), (&json!(4), &json!(6)));
        assert_eq!(figures["top_words"][0], json!({ "word": "방송", "messages": 2 }));

        let status = async |path: &str, token: &str| request(&app, "GET", path, token, "").await.status;
        assert_eq!(status(&path, &app.token(7)).await, 403);
        let none = format!("/v1/broadcasts/{}/stats", Uuid::now_v7());
        assert_eq!(status(&none, &app.token(12)).await, 404);
        for bad in [
            "top=0",
            "top=51",
            "top=x",
            "bucket_ms=0",
            "bucket_ms=86400001",
            "bucket_ms=-1",
            "x=1",
        ] {
            assert_eq!(status(&format!("{path}?{bad}"), &app.token(12)).await, 400, "{bad}");
        }
        assert_eq!(request(&app, "POST", &path, &app.token(12), "{}").await.status, 405);
        // Counting costs the store much, so only so many at once.
        let taken = app.state.figures.try_acquire(2).unwrap();
        let refused = request(&app, "GET", &path, &app.token(12), "").await;
        assert_eq!(refused.status, 503);
        let problem: Value = serde_json::from_str(refused.text()).unwrap();
        assert_eq!(problem["code"], "overloaded");
        drop(taken);
        assert_eq!(status(&path, &app.token(12)).await, 200);
        assert_eq!(
            app.metric("chat_queue_refused_total{queue=\"figures\"}").await,
            Some(1.0)
        );
    }
}

#[actix_web::test]
async fn a_long_broadcast_gets_longer_buckets_rather_than_more_of_them() {
    for (app, _session) in servers(|settings| settings.figures.buckets_max = 100).await {
        let now = system_ms();
        let start = now - 8 * 60 * 60 * 1000;
        let record = broadcast(&[(start, Some(now))], &[("old", 0, Some(480))]);
        let store = app.state.history.store();
        store.put_broadcasts(std::slice::from_ref(&record)).await.unwrap();
        // One a minute, and a burst in the fifth hour.
        let mut events = Vec::new();
        for minute in 0..479_i64 {
            events.push(message(
                start + minute * 60_000,
                12,
                "old",
                events.len() as u64 + 1,
                7,
                "x",
            ));
        }
        let burst = start + 300 * 60_000;
        events.retain(|event| event.sent_at_ms < burst);
        let calm = events.len() as u64;
        events
            .extend((1..=180).map(|n| message(burst + i64::try_from(n).unwrap() * 100, 12, "old", calm + n, 8, "와")));
        store.append(batch(&shared(events))).await.unwrap();
        let path = format!("/v1/broadcasts/{}/stats", record.id);
        let figures = read(&app, &path, &app.token(12)).await;
        assert_eq!(figures["bucket_ms"], 300_000);
        assert_eq!(figures["buckets"].as_array().unwrap().len(), 97);
        assert_eq!(figures["messages"], 480);
        assert_eq!(figures["peaks"].as_array().unwrap().len(), 1, "{figures}");
        let peak = &figures["peaks"][0];
        assert_eq!(
            (&peak["offset_ms"], &peak["messages"], &peak["usual"]),
            (&json!(18_000_000), &json!(180), &json!(5))
        );
        assert_eq!((&peak["length_ms"], &peak["ratio"]), (&json!(300_000), &json!(36.0)));
        let short = request(&app, "GET", &format!("{path}?bucket_ms=60000"), &app.token(12), "").await;
        assert_eq!(short.status, 400);
        assert!(short.text().contains("at most 100 buckets"), "{}", short.text());
    }
}
