//! What the pieces cost that every message goes through, one by one.
//!
//! `cargo bench --bench hot`, or one of them: `cargo bench --bench hot -- registry`
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![allow(missing_docs, reason = "made by macros")]

use std::{
    hint::black_box,
    sync::{Arc, OnceLock},
    time::Instant,
};

use chatting_actors::{
    clock::system_ms,
    metrics::Metrics,
    outcome::{Accepted, Delivery, Outcome, Submit},
    registry::{Batch, End, Reading, RegistryHandle, SessionId, Subscriber},
    seams::Spool,
    session::Flow,
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
    wire,
};
use chatting_server::{
    app::App,
    auth::{Key, Mint, SigningKey, TokenVerifier, mint},
    hot,
    limits::Buckets,
    settings::{Auth, Durability as DurabilitySetting, RoomMode, Secret, Settings},
    startup::token_rules,
    store::{
        Durability,
        spool::{SpoolSettings, SqliteSpool},
    },
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use uuid::Uuid;

const SECRET: &[u8] = b"a key for measuring, of thirty-two bytes or more";
const TEXT: &str = "오늘 방송 정말 재미있네요! ㅋㅋㅋ what a great play";

fn room(n: i64) -> PresenterIdx {
    PresenterIdx::new(n).unwrap()
}

fn chat() -> ChatMessage {
    ChatMessage {
        user_idx: UserIdx::new(7).unwrap(),
        nickname: Nickname::new("시청자", 64).unwrap(),
        text: MessageText::new(TEXT.to_owned(), 2000).unwrap(),
        role: Role::Viewer,
    }
}

/// A directory on a disk: where temporary files go may be memory.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A presenter without a socket, who takes everything at once.
struct Taker {
    registry: RegistryHandle,
    session: OnceLock<SessionId>,
}

impl Taker {
    fn attach(registry: &RegistryHandle, presenter: PresenterIdx) {
        let taker = Arc::new(Self {
            registry: registry.clone(),
            session: OnceLock::new(),
        });
        let session = registry.connect(Arc::clone(&taker) as Arc<dyn Subscriber>);
        taker.session.set(session).unwrap();
        registry.attach(session, presenter, Arc::new(Flow::default()), Reading::Legacy);
    }
}

impl Subscriber for Taker {
    fn deliver(&self, batch: Batch) {
        if batch.take() && batch.flow.flush(batch.entries.len() as u64) {
            self.registry.flushed(*self.session.get().unwrap());
        }
    }

    fn close(&self, _: End) {
        self.registry.gone(*self.session.get().unwrap());
    }

    fn shut(&self) {}
}

/// So many events of a hundred rooms, in the order of a spool.
fn events(count: u64) -> Vec<Arc<Event>> {
    let epoch = Epoch("0123456789abcdef".into());
    let event = |n: u64| {
        Arc::new(Event {
            id: Uuid::now_v7(),
            presenter_idx: room((n % 100).cast_signed()),
            epoch: epoch.clone(),
            seq: Seq(n / 100 + 1),
            sent_at_ms: 1_767_225_600_000 + n.cast_signed(),
            room_idx: None,
            broadcast_id: Some(Uuid::from_u128(9)),
            act: None,
            chat: chat(),
            keyed: None,
        })
    };
    (0..count).map(event).collect()
}

fn tokens(c: &mut Criterion) {
    let rules = || token_rules(&Settings::default());
    let auth = Auth::default();
    let of = Mint {
        user_idx: 7,
        nickname: "시청자",
        role: None,
        rooms: &[],
        issued_at: system_ms() / 1000,
        ttl_seconds: 3600,
        auth: &auth,
    };
    let token = mint(&SigningKey::secret(SECRET), &of).unwrap();
    let verifier = |cache| {
        let keys = vec![Key::secret(SECRET).unwrap()];
        TokenVerifier::new(rules(), keys, None, cache, Metrics::default())
    };
    let (verifying, remembering) = (verifier(0), verifier(1000));
    c.bench_function("token/verified", |b| b.iter(|| verifying.verify(black_box(&token))));
    c.bench_function("token/remembered", |b| b.iter(|| remembering.verify(black_box(&token))));
}

fn edge(c: &mut Criterion) {
    let body = serde_json::json!({ "text": TEXT }).to_string();
    c.bench_function("parse/body", |b| {
        b.iter(|| black_box(hot::parse(black_box(body.as_bytes()), 2000)));
    });
    c.bench_function("parse/ack", |b| {
        b.iter(|| {
            black_box(wire::v1::parse_client(black_box(
                r#"{"type":"ack","seq":57,"fanned_out":312}"#,
            )))
        });
    });
    let accepted = Accepted {
        id: Uuid::from_u128(1 << 100),
        seq: Seq(1_234_567),
        epoch: Epoch("0123456789abcdef".into()),
        sent_at_ms: 1_767_225_600_123,
        delivery: Delivery::Delivered,
    };
    c.bench_function("answer/201", |b| b.iter(|| hot::answer(black_box(&accepted))));
    let buckets = Buckets::new(100, 1e9, 10_000);
    let user = UserIdx::new(7).unwrap();
    c.bench_function("filter/rate", |b| {
        b.iter(|| black_box(buckets.take(black_box(user), Instant::now()).is_ok()));
    });
}

fn frames(c: &mut Criterion) {
    let event = &events(1)[0];
    c.bench_function("frame/legacy", |b| {
        b.iter(|| {
            let chat = &black_box(event).chat;
            wire::legacy::encode_chat(chat.nickname.as_str(), chat.text.as_str(), "12:34")
        });
    });
    c.bench_function("frame/v1", |b| b.iter(|| wire::v1::encode_event(black_box(event))));
}

fn bson(c: &mut Criterion) {
    let events = events(100);
    let mut group = c.benchmark_group("bson");
    group.throughput(Throughput::Elements(100));
    group.bench_function("insert of 100", |b| b.iter(|| hot::insert_command(black_box(&events))));
    group.finish();
}

fn spool(c: &mut Criterion) {
    let mut group = c.benchmark_group("spool");
    for (name, durability) in [("disk", Durability::Disk), ("os", Durability::Os)] {
        for count in [1, 32] {
            let dir = scratch();
            let settings = SpoolSettings {
                path: dir.path().join("chat.db"),
                durability,
                max_bytes: None,
                embedded: false,
            };
            let (mut spool, _) = SqliteSpool::open(settings).unwrap();
            let events = events(count);
            group.throughput(Throughput::Elements(count));
            group.bench_function(format!("{name}, a commit of {count} and its deletion"), |b| {
                b.iter(|| {
                    let first = spool.commit(&events).unwrap();
                    spool.free(first + count.cast_signed() - 1, &[], 0).unwrap();
                });
            });
            spool.close();
        }
    }
    group.finish();
}

/// Messages handed to the registry, accepted, delivered and answered, with the hand-overs between its thread, the spool's and this one;
/// written behind their answers, so that no disk is waited for.
fn registry(c: &mut Criterion) {
    let dir = scratch();
    let mut settings = Settings::default();
    settings.server.bind = "127.0.0.1:0".into();
    settings.auth.hs256_secret = Secret::new(String::from_utf8(SECRET.to_vec()).unwrap());
    settings.log.path = dir.path().join("chat.db").display().to_string();
    settings.log.durability = DurabilitySetting::Memory;
    settings.room.mode = RoomMode::Embedded;
    let system = actix_web::rt::System::new();
    let app = system.block_on(App::build(&settings)).unwrap();
    let state = app.state();
    for n in 0..100 {
        state.rooms.as_ref().unwrap().blocking_start(room(n)).unwrap();
        Taker::attach(&state.registry, room(n));
    }
    let mut group = c.benchmark_group("registry");
    for count in [1_i64, 32] {
        group.throughput(Throughput::Elements(count.cast_unsigned()));
        group.bench_function(format!("a turn of {count}"), |b| {
            b.iter(|| {
                system.block_on(async {
                    let answers: Vec<_> = (0..count)
                        .map(|n| {
                            let submit = Submit {
                                presenter_idx: room(n),
                                chat: chat(),
                                act: None,
                                keyed: None,
                            };
                            state.registry.submit(submit).unwrap()
                        })
                        .collect();
                    for answer in answers {
                        assert!(matches!(answer.await.unwrap(), Outcome::Accepted(_)));
                    }
                });
            });
        });
    }
    group.finish();
    system.block_on(app.run_until(std::future::ready(()))).unwrap();
}

criterion_group!(hot_pieces, tokens, edge, frames, bson, spool, registry);
criterion_main!(hot_pieces);
