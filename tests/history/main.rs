//! What reading a broadcast costs, by its length: time and peak memory of each kind of read, as rows of a table. Not a test that
//! can fail on a slow machine: it prints. `scripts/history` runs it, one process a store and length, so that memory can be told apart.
//!
//! `cost-of-history sqlite|mongodb MESSAGES`, with `MONGODB_URI` for the latter.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a tool that prints, and ends where it cannot go on"
)]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use chatting_actors::{
    broadcast::{Broadcast, Segment, Span},
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
};
use chatting_server::{
    export::{Deletions, Export, Format, Options},
    store::{
        Archive, Durability, History, MongoStore, SpoolSettings, SqliteSpool, SqliteStore, StoredBroadcast,
        figures::FiguresQuery,
        history::{Folded, Query, ReplayPlace, Start},
        mongo::MongoSettings,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use uuid::Uuid;

const ROOM: i64 = 12;
const START: i64 = 1_700_000_000_000;
/// How long the broadcast is: four hours, however much is said.
const LENGTH_MS: i64 = 4 * 3_600_000;
const SENDERS: i64 = 20_000;
/// How often each is measured; the median is told.
const TIMES: usize = 5;
const PAGE: usize = 50;

const SUBJECTS: [&str; 16] = [
    "방송이",
    "노래가",
    "오늘은",
    "여기",
    "스트리머",
    "이 게임",
    "저 보스",
    "화면이",
    "채팅",
    "구독",
    "치킨",
    "this",
    "that play",
    "chat",
    "the boss",
    "stream",
];
const SAID: [&str; 16] = [
    "너무 재밌다",
    "미쳤다 ㅋㅋㅋㅋㅋ",
    "소리가 안 들려요",
    "좋아요",
    "진짜 잘한다",
    "언제 끝나요",
    "안녕하세요",
    "화이팅!!",
    "ㅠㅠ",
    "ㅋㅋㅋㅋ",
    "is INSANE",
    "gg",
    "let's go",
    "was so close",
    "lol",
    "what happened?",
];

fn text(random: &mut StdRng) -> String {
    let (subject, said) = (
        random.random_range(0..SUBJECTS.len()),
        random.random_range(0..SAID.len()),
    );
    let mut text = match random.random_range(0..4) {
        0 => SAID[said].to_owned(),
        _ => format!("{} {}", SUBJECTS[subject], SAID[said]),
    };
    // Words that are said now and then, so that there are more of them than these.
    if random.random_range(0..5) == 0 {
        text.push_str(&format!(
            " {}{}",
            ["팀", "map", "레벨", "item"][random.random_range(0..4)],
            random.random_range(0..9_999)
        ));
    }
    if random.random_range(0..10_000) == 0 {
        text.push_str(" 바늘");
    }
    text
}

fn event(random: &mut StdRng, seq: u64, count: u64) -> Arc<Event> {
    let part = i64::try_from(u128::from(seq) * u128::from(LENGTH_MS.unsigned_abs()) / u128::from(count)).unwrap();
    let sent_at_ms = START + part;
    // A few say most.
    let user = if seq % 500 == 0 {
        ROOM
    } else {
        1_000 + random.random_range(0..SENDERS).min(random.random_range(0..SENDERS))
    };
    let id = (u128::from(sent_at_ms.unsigned_abs()) << 80) | 0x7000_8000_0000_0000_0000 | u128::from(seq);
    Arc::new(Event {
        id: Uuid::from_u128(id),
        presenter_idx: PresenterIdx::new(ROOM).unwrap(),
        epoch: Epoch("measured".into()),
        seq: Seq(seq),
        sent_at_ms,
        room_idx: Some(1),
        broadcast_id: Some(Uuid::from_u128(7)),
        act: None,
        chat: ChatMessage {
            user_idx: UserIdx::new(user).unwrap(),
            nickname: Nickname::new(&format!("시청자{user}"), 64).unwrap(),
            text: MessageText::new(text(random), 2000).unwrap(),
            role: if user == ROOM { Role::Presenter } else { Role::Viewer },
        },
        keyed: None,
    })
}

/// Peak memory of this process since it was last asked, in MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    // Writing 5 resets the peak to what is in use now (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    kib / 1024.0
}

/// Runs one kind of read some times and prints its row.
async fn row(store: &str, count: u64, what: &str, times: usize, mut read: impl AsyncFnMut() -> usize) {
    let mut took = Vec::new();
    let mut found = 0;
    peak();
    for _ in 0..times {
        let began = Instant::now();
        found = read().await;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    println!(
        "| {store} | {count} | {what} | {found} | {:.2} | {:.1} |",
        took[took.len() / 2].as_secs_f64() * 1000.0,
        peak()
    );
}

fn page(start: Start, text: Option<&str>) -> Query {
    Query {
        presenter: PresenterIdx::new(ROOM).unwrap(),
        start,
        user: None,
        text: text.map(Folded::new),
        from_ms: None,
        to_ms: None,
        deleted_too: true,
        limit: PAGE,
        scan_limit: 20_000,
    }
}

async fn measure(name: &str, count: u64, store: Arc<dyn Archive>, spool: &Path) {
    let broadcast = Broadcast {
        id: Uuid::from_u128(7),
        presenter: PresenterIdx::new(ROOM).unwrap(),
        room_idx: Some(1),
        reported_start_ms: None,
        ended_at_ms: Some(START + LENGTH_MS),
        segments: vec![Segment {
            from_ms: START,
            to_ms: Some(START + LENGTH_MS),
        }],
        spans: vec![Span {
            epoch: Epoch("measured".into()),
            after: Seq(0),
            through: Some(Seq(count)),
        }],
        seen_at_ms: START,
        version: 1,
    };
    store.prepare().await.unwrap();
    let began = Instant::now();
    let mut random = StdRng::seed_from_u64(1);
    let mut seq = 0;
    while seq < count {
        let until = (seq + 1000).min(count);
        let batch = (seq + 1..=until).map(|seq| event(&mut random, seq, count)).collect();
        assert_eq!(store.append(Arc::new(batch)).await.unwrap(), []);
        seq = until;
    }
    eprintln!(
        "{name}: {count} messages written in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let history = History::new(spool.to_owned(), Arc::clone(&store), 8);
    let replay = async |offset_ms: i64, limit: usize| {
        let place = match offset_ms {
            0 => ReplayPlace::default(),
            offset => history.replay_from(&broadcast, START + offset).await.unwrap(),
        };
        history
            .replay(&broadcast, place, i64::MAX, limit)
            .await
            .unwrap()
            .events
            .len()
    };
    row(name, count, "replay, first page", TIMES, async || replay(0, PAGE).await).await;
    row(name, count, "replay, a page in the middle", TIMES, async || {
        replay(LENGTH_MS / 2, PAGE).await
    })
    .await;
    row(name, count, "replay, the last page", TIMES, async || {
        replay(LENGTH_MS - LENGTH_MS * 50 / i64::try_from(count).unwrap(), PAGE).await
    })
    .await;
    let newest = Start::Before(Seq(u64::MAX >> 1));
    for (what, start) in [
        ("history, newest page", newest),
        ("history, a page in the middle", Start::Before(Seq(count / 2))),
    ] {
        row(name, count, what, TIMES, async || {
            history.page(&page(start, None)).await.unwrap().events.len()
        })
        .await;
    }
    row(name, count, "search, a page of what is said often", TIMES, async || {
        history.page(&page(newest, Some("재밌다"))).await.unwrap().events.len()
    })
    .await;
    row(name, count, "search, 20,000 messages looked at", TIMES, async || {
        history.page(&page(newest, Some("바늘"))).await.unwrap().events.len()
    })
    .await;
    row(name, count, "figures", 3, async || {
        let query = FiguresQuery {
            broadcast: broadcast.clone(),
            corrected_start_ms: None,
            bucket_ms: 60_000,
            last_bucket: 1439,
            top: 10,
            patience: Duration::from_secs(600),
        };
        usize::try_from(store.figures(query).await.unwrap().messages()).unwrap()
    })
    .await;
    let record = StoredBroadcast {
        broadcast,
        corrected_start_ms: None,
        legal_hold: false,
    };
    for format in Format::ALL {
        let options = Options {
            format,
            deletions: Deletions::read(None, format).unwrap(),
            page_rows: 500,
            cue_ms: 4000,
            now_ms: START + LENGTH_MS,
        };
        let what = format!("exported as {}", format.as_str());
        row(name, count, &what, 1, async || {
            let (mut events, mut bytes) = (0, 0);
            let mut export = Export::begin(history.clone(), record.clone(), options).await.unwrap();
            while let Some(piece) = export.next().await.unwrap() {
                events += piece.events;
                bytes += piece.bytes.len();
            }
            assert!(bytes > 0);
            usize::try_from(events).unwrap()
        })
        .await;
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (name, count) = (arguments.next().unwrap(), arguments.next().unwrap());
    let count: u64 = count.parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.db");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (spool, _) = SqliteSpool::open(SpoolSettings {
            path: path.clone(),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: name == "sqlite",
        })
        .unwrap();
        let store: Arc<dyn Archive> = match name.as_str() {
            "sqlite" => Arc::new(SqliteStore::new(spool.connection())),
            _ => {
                let settings = MongoSettings {
                    uri: std::env::var("MONGODB_URI").unwrap(),
                    database: format!("measured_{count}"),
                    connect_timeout: Duration::from_secs(10),
                    write_timeout: Duration::from_secs(600),
                    connections: 10,
                };
                Arc::new(MongoStore::new(&settings).await.unwrap())
            }
        };
        measure(&name, count, store, &path).await;
    });
}
