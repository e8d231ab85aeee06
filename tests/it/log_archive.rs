//! The conformance suite of what a log can be asked: MongoDB and SQLite give the same answers.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use chatting_actors::{
    broadcast::{Broadcast, Segment, Span},
    clock::{EventClock, system_ms},
    idempotency::Keyed,
    moderation::Act,
    seams::{LogRange, LogReader, LogStore, Spool},
    types::{Epoch, Event, MessageText, Seq, UserIdx},
    writer::SpoolInfo,
};
use chatting_server::{
    export::{Deletions, Export, Format, Options},
    store::{
        Archive, Deleted, Durability, LateMessages, Scan, SpoolSettings, SqliteSpool, SqliteStore, StoredBroadcast,
        history::{Behind, Folded, History, HistoryError, Query, ReplayPlace, Start},
    },
};
use mongodb::bson::{Document, doc};
use uuid::Uuid;

use crate::{
    log_store::{batch, event, mongo, room, stores},
    support::{
        moving::{Moves, MovingStore},
        process::ScratchDir,
    },
};

pub fn by(user: i64, event: Arc<Event>) -> Arc<Event> {
    let mut event = Arc::unwrap_or_clone(event);
    event.chat.user_idx = UserIdx::new(user).unwrap();
    Arc::new(event)
}

pub fn act(clock: &mut EventClock, presenter: i64, epoch: &str, seq: u64, act: Act) -> Arc<Event> {
    let mut event = Arc::unwrap_or_clone(event(clock, presenter, epoch, seq, ""));
    event.act = Some(Arc::new(act));
    event.chat.user_idx = UserIdx::new(99).unwrap();
    event.chat.text = MessageText::maybe_empty(String::new(), 0).unwrap();
    Arc::new(event)
}

pub fn scan(presenter: i64, epoch: &str, after: u64, through: u64, limit: usize) -> Scan {
    Scan {
        presenter: room(presenter),
        epoch: Epoch(epoch.into()),
        after: Seq(after),
        through: Seq(through),
        user: None,
        newest_first: false,
        limit,
    }
}

/// The seqs of a room that are deleted, and when.
async fn deleted(store: &dyn Archive, presenter: i64, epoch: &str) -> Vec<(u64, Deleted)> {
    let all = store.scan(scan(presenter, epoch, 0, u64::MAX, 1000)).await.unwrap();
    all.into_iter()
        .filter_map(|logged| Some((logged.event.seq.0, logged.deleted?)))
        .collect()
}

fn seqs(deleted: &[(u64, Deleted)]) -> Vec<u64> {
    deleted.iter().map(|(seq, _)| *seq).collect()
}

#[actix_web::test]
async fn a_scan_gives_a_stretch_of_one_numbering_either_way_and_of_one_user() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut events = Vec::new();
        for (presenter, epoch) in [(1, "a"), (1, "b"), (2, "a")] {
            events.extend((1..=20).map(|seq| {
                let user = 5 + i64::try_from(seq % 2).unwrap();
                by(user, event(&mut clock, presenter, epoch, seq, "x"))
            }));
        }
        store.append(batch(&events)).await.unwrap();
        let read = async |scan: Scan| -> Vec<u64> {
            let found = store.scan(scan).await.unwrap();
            found.iter().map(|logged| logged.event.seq.0).collect()
        };
        assert_eq!(read(scan(1, "b", 4, 7, 100)).await, [5, 6, 7], "{name}");
        assert_eq!(read(scan(1, "b", 4, u64::MAX, 2)).await, [5, 6], "{name}");
        let back = Scan {
            newest_first: true,
            ..scan(1, "b", 4, 20, 3)
        };
        assert_eq!(read(back).await, [20, 19, 18], "{name}");
        let of_user = Scan {
            user: UserIdx::new(6),
            ..scan(1, "a", 4, u64::MAX, 3)
        };
        assert_eq!(read(of_user.clone()).await, [5, 7, 9], "{name}");
        let back = Scan {
            newest_first: true,
            ..of_user
        };
        assert_eq!(read(back).await, [19, 17, 15], "{name}");
        assert_eq!(read(scan(3, "a", 0, u64::MAX, 3)).await, [0_u64; 0], "{name}");
        let mut epochs = store.epochs(room(1)).await.unwrap();
        epochs.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(epochs, [Epoch("a".into()), Epoch("b".into())], "{name}");
        assert_eq!(store.epochs(room(3)).await.unwrap(), [], "{name}");
        let found = store.find(events[30].id).await.unwrap().unwrap();
        assert_eq!(
            (found.event, found.deleted),
            (Event::clone(&events[30]), None),
            "{name}"
        );
        assert_eq!(store.find(Uuid::now_v7()).await.unwrap(), None, "{name}");
    }
}

#[actix_web::test]
async fn where_a_numbering_begins_at_some_time_is_found_in_that_numbering_alone() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let at = |ms: i64, made: Arc<Event>| {
            let mut made = Arc::unwrap_or_clone(made);
            made.sent_at_ms = ms;
            Arc::new(made)
        };
        // Numbers with holes, and times that are equal, and far apart.
        let places = [(2, 1_000), (3, 1_000), (7, 2_000), (8, 90_000), (200, 91_000)];
        let mut events: Vec<_> = places
            .map(|(seq, ms)| at(ms, event(&mut clock, 1, "e", seq, "x")))
            .into();
        events.extend((1..=20).map(|seq| at(5_000, event(&mut clock, 1, "other", seq, "x"))));
        events.push(at(1_500, event(&mut clock, 2, "e", 5, "x")));
        store.append(batch(&events)).await.unwrap();
        for ms in [
            0,
            1_000,
            1_001,
            1_500,
            2_000,
            2_001,
            89_999,
            90_000,
            91_000,
            91_001,
            i64::MAX,
        ] {
            let found = store.first_from(room(1), &Epoch("e".into()), ms).await.unwrap();
            let first = places.iter().find(|(_, at)| *at >= ms);
            let older = places.iter().rev().find(|(_, at)| *at < ms).map_or(0, |(seq, _)| *seq);
            assert_eq!(found.there, first.is_some(), "{name}: {ms}");
            assert!(found.seq.0 > older, "{name}: {ms}");
            assert!(found.seq.0 <= first.map_or(201, |(seq, _)| *seq), "{name}: {ms}");
        }
        let none = store.first_from(room(3), &Epoch("e".into()), 0).await.unwrap();
        assert_eq!((none.seq, none.there), (Seq(1), false), "{name}");
    }
}

#[actix_web::test]
async fn an_act_marks_what_it_names_and_came_before_it_and_keeps_its_own_place() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let said: Vec<_> = (1..=6)
            .map(|seq| by(if seq < 4 { 7 } else { 8 }, event(&mut clock, 1, "e", seq, "x")))
            .collect();
        let elsewhere = by(7, event(&mut clock, 2, "e", 1, "x"));
        let one = Act::Message {
            id: said[4].id,
            seq: Seq(5),
        };
        let one = act(&mut clock, 1, "e", 7, one);
        let user = Act::User {
            user_idx: UserIdx::new(7).unwrap(),
        };
        let user = act(&mut clock, 1, "e", 8, user);
        let later = by(7, event(&mut clock, 1, "e", 9, "x"));
        // In one batch with what they name, and what comes after them.
        let all = [&said[..], &[elsewhere, one.clone(), user.clone(), later]].concat();
        assert_eq!(store.append(batch(&all)).await.unwrap(), [], "{name}");
        let marked = deleted(&*store, 1, "e").await;
        assert_eq!(seqs(&marked), [1, 2, 3, 5], "{name}");
        assert_eq!(marked[3].1, Deleted::by(&one), "{name}");
        assert_eq!(marked[0].1, Deleted::by(&user), "{name}");
        assert_eq!(deleted(&*store, 2, "e").await, [], "{name}: another room");
        // Given again, as after an error, it changes nothing; the first one to delete it is told.
        let again = Act::Message {
            id: said[0].id,
            seq: Seq(1),
        };
        let again = act(&mut clock, 1, "e", 10, again);
        let all = [&all[..], &[again]].concat();
        store.append(batch(&all)).await.unwrap();
        assert_eq!(deleted(&*store, 1, "e").await, marked, "{name}");
        let read = store.scan(scan(1, "e", 6, 7, 1)).await.unwrap();
        assert_eq!(read[0].event, Event::clone(&one), "{name}: the act is an event");
    }
}

#[actix_web::test]
async fn an_act_on_a_time_range_marks_both_ends_in_every_numbering() {
    for (name, store, _dir) in stores().await {
        let base = 1_800_000_000_000;
        // The act comes after what it names.
        let mut clock = EventClock::after(base + 1_000);
        let mut at = |epoch: &str, seq: u64, ms: i64| {
            let mut event = Arc::unwrap_or_clone(event(&mut clock, 1, epoch, seq, "x"));
            event.sent_at_ms = base + ms;
            Arc::new(event)
        };
        let mut said: Vec<_> = (1..=9)
            .map(|n| at("a", n, i64::try_from(n / 2).unwrap() * 10))
            .collect();
        said.extend((10..=14).map(|n| at("b", n, i64::try_from(n).unwrap() * 10)));
        store.append(batch(&said)).await.unwrap();
        let span = Act::Span {
            from_ms: base + 20,
            to_ms: base + 110,
        };
        store.append(batch(&[act(&mut clock, 1, "b", 15, span)])).await.unwrap();
        assert_eq!(seqs(&deleted(&*store, 1, "a").await), [4, 5, 6, 7, 8, 9], "{name}");
        assert_eq!(seqs(&deleted(&*store, 1, "b").await), [10, 11], "{name}");
    }
}

pub fn broadcast(n: u128, presenter: i64, version: u64, ended_at_ms: Option<i64>) -> Broadcast {
    Broadcast {
        id: Uuid::from_u128(n),
        presenter: room(presenter),
        room_idx: Some(77),
        reported_start_ms: Some(5),
        ended_at_ms,
        segments: vec![
            Segment {
                from_ms: 5,
                to_ms: Some(9),
            },
            Segment {
                from_ms: 12,
                to_ms: ended_at_ms,
            },
        ],
        spans: vec![
            Span {
                epoch: Epoch("a".into()),
                after: Seq(0),
                through: None,
            },
            Span {
                epoch: Epoch("b".into()),
                after: Seq(9),
                through: ended_at_ms.map(|_| Seq(20)),
            },
        ],
        seen_at_ms: 12,
        version,
    }
}

#[actix_web::test]
async fn a_broadcast_is_kept_as_it_was_and_a_late_write_undoes_nothing() {
    for (name, store, _dir) in stores().await {
        let all = [
            broadcast(1, 1, 3, Some(30)),
            broadcast(2, 1, 1, None),
            broadcast(3, 2, 1, None),
        ];
        store.put_broadcasts(&all).await.unwrap();
        store.put_broadcasts(&all).await.unwrap();
        let found = store.broadcasts(room(1), None, 10).await.unwrap().broadcasts;
        let found: Vec<_> = found.into_iter().map(|stored| stored.broadcast).collect();
        assert_eq!(found, [all[1].clone(), all[0].clone()], "{name}: the newest first");
        for (before, limit) in [(Some(all[1].id), 10), (None, 1)] {
            let some = store.broadcasts(room(1), before, limit).await.unwrap();
            assert_eq!((some.broadcasts.len(), some.unreadable), (1, vec![]), "{name}");
        }
        assert!(store.correct_broadcast(all[0].id, Some(7)).await.unwrap(), "{name}");
        assert!(
            !store.correct_broadcast(Uuid::from_u128(9), Some(7)).await.unwrap(),
            "{name}"
        );
        // Older: left out. Newer: taken, and the correction stays.
        store.put_broadcasts(&[broadcast(1, 1, 2, None)]).await.unwrap();
        assert_eq!(
            store.broadcast(all[0].id).await.unwrap().unwrap().broadcast,
            all[0],
            "{name}"
        );
        let newer = broadcast(1, 1, 4, Some(40));
        store.put_broadcasts(std::slice::from_ref(&newer)).await.unwrap();
        let stored = store.broadcast(newer.id).await.unwrap().unwrap();
        assert_eq!(
            (stored.broadcast, stored.corrected_start_ms),
            (newer, Some(7)),
            "{name}"
        );
        assert!(store.correct_broadcast(all[0].id, None).await.unwrap(), "{name}");
        let stored = store.broadcast(all[0].id).await.unwrap().unwrap();
        assert_eq!(stored.corrected_start_ms, None, "{name}");
        assert_eq!(store.broadcast(Uuid::from_u128(9)).await.unwrap(), None, "{name}");
    }
}

/// A spool of its own beside a store: what is committed to it is not drained.
fn spool(epoch: &mut String) -> (SqliteSpool, Arc<ScratchDir>) {
    let dir = ScratchDir::new("archive");
    let (spool, info) = reopened(&dir);
    *epoch = info.epoch.0.to_string();
    (spool, dir)
}

/// The spool in this directory, which is closed or not there yet.
fn reopened(dir: &ScratchDir) -> (SqliteSpool, SpoolInfo) {
    SqliteSpool::open(SpoolSettings {
        path: dir.path().join("chat.db"),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: true,
    })
    .unwrap()
}

fn pages(presenter: i64, start: Start, limit: usize) -> Query {
    Query {
        presenter: room(presenter),
        start,
        user: None,
        text: None,
        from_ms: None,
        to_ms: None,
        deleted_too: false,
        limit,
        scan_limit: 1000,
    }
}

/// Walks from a start to the end, and gives what each page had.
async fn walk(history: &History, mut query: Query) -> Vec<Vec<u64>> {
    let mut all = Vec::new();
    for _ in 0..1000 {
        let page = history.page(&query).await.unwrap();
        all.push(page.events.iter().map(|logged| logged.event.seq.0).collect());
        let Some(next) = page.next else {
            return all;
        };
        query.start = match query.start {
            Start::Before(_) => Start::Before(next),
            Start::After(_) => Start::After(next),
        };
    }
    panic!("pages without an end");
}

#[actix_web::test]
async fn pages_have_every_event_once_wherever_it_is_and_numberings_that_overlap_stay_together() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (mut spool, dir) = spool(&mut epoch);
        // Numbers 8 to 10 are there twice, as after a crash that took some back; 13 to 15 are in the spool only, 12 in both.
        let mut events: Vec<_> = (1..=10).map(|seq| event(&mut clock, 1, "a", seq, "x")).collect();
        events.extend((8..=12).map(|seq| event(&mut clock, 1, &epoch, seq, "x")));
        let spooled: Vec<_> = (13..=15).map(|seq| event(&mut clock, 1, &epoch, seq, "x")).collect();
        spool
            .commit(&[&events[events.len() - 1..], &spooled[..]].concat())
            .unwrap();
        store.append(batch(&events)).await.unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        let wanted: Vec<u64> = [1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10, 10, 11, 12, 13, 14, 15].into();
        for limit in 1..=20 {
            let forth = walk(&history, pages(1, Start::After(Seq(0)), limit)).await;
            assert_eq!(forth.concat(), wanted, "{name}, {limit} a page");
            let back = walk(&history, pages(1, Start::Before(Seq(u64::MAX)), limit)).await;
            let back: Vec<_> = back.into_iter().rev().collect();
            assert_eq!(back.concat(), wanted, "{name}, {limit} a page, backwards");
            assert!(forth.iter().all(|page| page.len() <= limit + 1), "{name}, {limit}");
        }
        let some = walk(&history, pages(1, Start::After(Seq(11)), 2)).await;
        assert_eq!(some.concat(), [12, 13, 14, 15], "{name}");
    }
}

#[actix_web::test]
async fn a_page_is_read_from_the_numberings_that_it_is_in_however_many_the_room_has() {
    const NUMBERINGS: u64 = 20;
    const LIMIT: usize = 10;
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (spool, dir) = spool(&mut epoch);
        // In room 1 each begins behind the last number of the one before; in room 2 five have a number at once; in room 3 all have
        // the same ones. Their names are in no order.
        let rooms = [(1, 15), (2, 3), (3, 0)];
        for n in 0..NUMBERINGS {
            for (presenter, step) in rooms {
                let numbering = format!("{}", n * 7 % NUMBERINGS);
                let events: Vec<_> = (n * step + 1..=n * step + 15)
                    .map(|seq| {
                        by(
                            7 + i64::from(seq % 2 == 0),
                            event(&mut clock, presenter, &numbering, seq, "x"),
                        )
                    })
                    .collect();
                assert_eq!(store.append(batch(&events)).await.unwrap(), [], "{name}");
            }
        }
        let scanned = Arc::new(AtomicUsize::new(0));
        let counting = MovingStore {
            store,
            spool: Mutex::new(spool),
            moves: Moves::Never,
            scanned: Arc::clone(&scanned),
        };
        let history = History::new(dir.path().join("chat.db"), Arc::new(counting), 4);
        for (presenter, step) in rooms {
            let numbers = (0..NUMBERINGS).flat_map(|n| n * step + 1..=n * step + 15);
            let mut wanted: Vec<u64> = numbers.collect();
            wanted.sort_unstable();
            for start in [Start::After(Seq(0)), Start::Before(Seq(u64::MAX))] {
                for user in [None, UserIdx::new(7)] {
                    let of = format!("{name}, room {presenter}: {start:?}, {user:?}");
                    let query = Query {
                        user,
                        deleted_too: true,
                        ..pages(presenter, start, LIMIT)
                    };
                    scanned.store(0, Relaxed);
                    let mut found = walk(&history, query).await;
                    // One event of each tells where it begins.
                    let most = usize::try_from(NUMBERINGS).unwrap() + 5 * (LIMIT + 1);
                    let read = scanned.load(Relaxed) / found.len();
                    assert!(read <= most, "{of}: {read} a page");
                    if matches!(start, Start::Before(_)) {
                        found.reverse();
                    }
                    let wanted = wanted.iter().filter(|seq| user.is_none() || **seq % 2 == 1);
                    assert_eq!(found.concat(), wanted.copied().collect::<Vec<_>>(), "{of}");
                }
            }
        }
    }
}

#[actix_web::test]
async fn no_page_is_told_of_behind_the_last_though_all_of_a_rooms_numberings_have_its_number() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (_spool, dir) = spool(&mut epoch);
        for numbering in ["a", "b", "c", "d"] {
            let events: Vec<_> = (1..=3).map(|seq| event(&mut clock, 1, numbering, seq, "x")).collect();
            assert_eq!(store.append(batch(&events)).await.unwrap(), [], "{name}");
        }
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        for limit in 1..=4 {
            for (start, wanted) in [
                (Start::After(Seq(0)), [1, 2, 3]),
                (Start::Before(Seq(u64::MAX)), [3, 2, 1]),
            ] {
                let found = walk(&history, pages(1, start, limit)).await;
                assert_eq!(
                    found,
                    wanted.map(|seq| vec![seq; 4]),
                    "{name}: {start:?}, {limit} a page"
                );
            }
        }
    }
}

#[actix_web::test]
async fn an_act_that_the_store_does_not_have_yet_hides_what_the_store_has() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (mut spool, dir) = spool(&mut epoch);
        let said: Vec<_> = (1..=3).map(|seq| event(&mut clock, 1, &epoch, seq, "secret")).collect();
        store.append(batch(&said)).await.unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        let found = async |text: &str| {
            let mut query = pages(1, Start::After(Seq(0)), 10);
            query.text = Some(Folded::new(text));
            let page = history.page(&query).await.unwrap();
            page.events.iter().map(|logged| logged.event.seq.0).collect::<Vec<_>>()
        };
        assert_eq!(found("SECRET").await, [1, 2, 3], "{name}");
        let target = Act::Message {
            id: said[1].id,
            seq: Seq(2),
        };
        let target = act(&mut clock, 1, &epoch, 4, target);
        spool.commit(std::slice::from_ref(&target)).unwrap();
        assert_eq!(found("secret").await, [1, 3], "{name}");
        let one = history.find(room(1), said[1].id).await.unwrap().unwrap();
        assert_eq!(one.deleted, Some(Deleted::by(&target)), "{name}");
        assert_eq!(
            history.find(room(2), said[1].id).await.unwrap(),
            None,
            "{name}: another room's"
        );
    }
}

#[actix_web::test]
async fn a_search_looks_at_so_many_and_tells_where_to_go_on() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (_spool, dir) = spool(&mut epoch);
        let events: Vec<_> = (1..=50)
            .map(|seq| {
                event(
                    &mut clock,
                    1,
                    &epoch,
                    seq,
                    if seq % 20 == 3 { "안녕 Hello" } else { "x" },
                )
            })
            .collect();
        store.append(batch(&events)).await.unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        for (scan_limit, limit) in [(7, 10), (1, 10), (1000, 1), (1000, 2), (20, 1)] {
            for start in [Start::After(Seq(0)), Start::Before(Seq(u64::MAX))] {
                let mut query = pages(1, start, limit);
                query.text = Some(Folded::new("hELLO"));
                query.scan_limit = scan_limit;
                let found = walk(&history, query).await;
                assert!(found.iter().all(|page| page.len() <= limit), "{name}");
                let mut all = found.concat();
                all.sort_unstable();
                assert_eq!(all, [3, 23, 43], "{name}: {scan_limit}, {limit}, {start:?}");
                if scan_limit < 10 {
                    assert!(
                        found.len() >= 50_usize.div_ceil(scan_limit),
                        "{name}: it looks at no more than it may"
                    );
                }
            }
        }
    }
}

#[actix_web::test]
async fn a_search_among_long_messages_looks_at_fewer_and_its_pages_find_every_one() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (_spool, dir) = spool(&mut epoch);
        let filler = "가".repeat(1990);
        let events: Vec<_> = (1..=30)
            .map(|seq| {
                let end = if seq % 10 == 3 { "안녕 Hello" } else { "x" };
                by(7, event(&mut clock, 1, &epoch, seq, &format!("{filler}{end}")))
            })
            .collect();
        store.append(batch(&events)).await.unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        // Each counts ten times: once for each 200 characters that it begins. Whoever sees what was deleted, and who does not.
        for (scan_limit, looked_at) in [(95, 10), (10, 1)] {
            for start in [Start::After(Seq(0)), Start::Before(Seq(u64::MAX))] {
                for (user, deleted_too) in [(None, true), (None, false), (Some(7), true), (Some(7), false)] {
                    let mut query = pages(1, start, 10);
                    query.text = Some(Folded::new("hELLO"));
                    query.user = user.and_then(UserIdx::new);
                    (query.scan_limit, query.deleted_too) = (scan_limit, deleted_too);
                    let of = format!("{name}: {scan_limit}, {start:?}, {user:?}, {deleted_too}");
                    let found = walk(&history, query).await;
                    let mut all = found.concat();
                    all.sort_unstable();
                    assert_eq!(all, [3, 13, 23], "{of}");
                    let least = 30_usize.div_ceil(looked_at);
                    assert!(
                        (least..=least + 1).contains(&found.len()),
                        "{of}: {} pages",
                        found.len()
                    );
                }
            }
        }
        // A page has what it is asked for, wherever it ended.
        let mut query = pages(1, Start::After(Seq(0)), 1);
        query.text = Some(Folded::new("hello"));
        query.scan_limit = 100;
        let found = walk(&history, query).await;
        assert!(found.iter().all(|page| page.len() <= 1), "{name}: {found:?}");
        assert_eq!(found.concat(), [3, 13, 23], "{name}");
    }
}

/// Sets events aside, as what the store refused.
pub fn park(spool: &mut SqliteSpool, events: &[Arc<Event>]) {
    let first = spool.commit(events).unwrap();
    let parked = (first..)
        .zip(events)
        .map(|(pos, event)| (pos, Arc::clone(event), "no".to_owned()));
    let parked: Vec<_> = parked.collect();
    spool.free(first + events.len() as i64 - 1, &parked, 0).unwrap();
}

/// A broadcast with every event of a numbering.
fn of_all(epoch: &str) -> Broadcast {
    let mut all = broadcast(1, 1, 1, None);
    all.spans = vec![Span {
        epoch: Epoch(epoch.into()),
        after: Seq(0),
        through: None,
    }];
    all
}

/// Replays a broadcast from a place to its end.
async fn replayed(history: &History, broadcast: &Broadcast, place: ReplayPlace, limit: usize) -> Vec<u64> {
    replayed_before(i64::MAX, history, broadcast, place, limit).await
}

/// The same up to a time.
async fn replayed_before(
    before_ms: i64,
    history: &History,
    broadcast: &Broadcast,
    place: ReplayPlace,
    limit: usize,
) -> Vec<u64> {
    let (mut all, mut place) = (Vec::new(), place);
    loop {
        let page = history.replay(broadcast, place, before_ms, limit).await.unwrap();
        all.extend(page.events.iter().map(|logged| logged.event.seq.0));
        if page.behind != Behind::More {
            return all;
        }
        place = page.place;
    }
}

#[actix_web::test]
async fn what_was_set_aside_is_read_in_its_place() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (mut spool, dir) = spool(&mut epoch);
        let mut events: Vec<_> = (1..=14).map(|seq| event(&mut clock, 1, &epoch, seq, "x")).collect();
        let spooled = events.split_off(12);
        let apart: Vec<_> = [6, 4, 3].iter().map(|n| events.remove(*n)).collect();
        // Places in the spool begin anew when it was empty at a start, so they tell nothing of what is parked.
        park(&mut spool, &apart);
        spool.commit(&spooled).unwrap();
        store.append(batch(&events)).await.unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        let wanted: Vec<u64> = (1..=14).collect();
        for limit in 1..=15 {
            let forth = walk(&history, pages(1, Start::After(Seq(0)), limit)).await;
            assert_eq!(forth.concat(), wanted, "{name}, {limit} a page");
            let back = walk(&history, pages(1, Start::Before(Seq(u64::MAX)), limit)).await;
            let back: Vec<_> = back.into_iter().rev().collect();
            assert_eq!(back.concat(), wanted, "{name}, {limit} a page, backwards");
            let all = replayed(&history, &of_all(&epoch), ReplayPlace::default(), limit).await;
            assert_eq!(all, wanted, "{name}, {limit} a page, replayed");
        }
        // One that cannot be read, now or ever, does not hide the others.
        let connection = rusqlite::Connection::open(dir.path().join("chat.db")).unwrap();
        connection
            .execute("UPDATE parked SET role = 'wizard' WHERE seq = 4", [])
            .unwrap();
        let wanted: Vec<u64> = wanted.into_iter().filter(|seq| *seq != 4).collect();
        for limit in 1..=15 {
            let forth = walk(&history, pages(1, Start::After(Seq(0)), limit)).await;
            assert_eq!(forth.concat(), wanted, "{name}, {limit} a page");
        }
        let range = LogRange {
            presenter: room(1),
            epoch: Epoch(epoch.as_str().into()),
            after: Seq(4),
            through: Seq(14),
            limit: 100,
        };
        let page = LogReader::read(&history, range, 0).await.unwrap();
        assert_eq!(page.events.first().map(|event| event.seq), Some(Seq(5)), "{name}");
    }
}

#[actix_web::test]
async fn what_was_set_aside_of_two_numberings_is_on_some_page_where_both_have_a_number() {
    let dir = ScratchDir::new("two-numberings");
    let (mut spool, info) = reopened(&dir);
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let mut clock = EventClock::after(0);
    let mut parked = |seqs: std::ops::RangeInclusive<u64>| {
        let events: Vec<_> = seqs.map(|seq| event(&mut clock, 1, &info.epoch.0, seq, "x")).collect();
        park(&mut spool, &events);
    };
    parked(1..=6);
    let connection = rusqlite::Connection::open(dir.path().join("chat.db")).unwrap();
    // As when the first ones were of a numbering that ended.
    let before = "INSERT INTO epochs(epoch) VALUES ('before');
                  UPDATE parked SET epoch = (SELECT n FROM epochs WHERE epoch = 'before')";
    connection.execute_batch(before).unwrap();
    parked(3..=8);
    // One that cannot be read counts as looked at, so that a page ends where it was looked to.
    let unreadable = "UPDATE parked SET role = 'wizard' WHERE seq IN (1, 8)";
    assert_eq!(connection.execute(unreadable, []).unwrap(), 2);
    let history = History::new(dir.path().join("chat.db"), Arc::new(store), 4);
    let wanted: Vec<u64> = [2, 3, 3, 4, 4, 5, 5, 6, 6, 7].into();
    for limit in 1..=11 {
        let forth = walk(&history, pages(1, Start::After(Seq(0)), limit)).await;
        assert_eq!(forth.concat(), wanted, "{limit} a page");
        let back = walk(&history, pages(1, Start::Before(Seq(u64::MAX)), limit)).await;
        let back: Vec<_> = back.into_iter().rev().collect();
        assert_eq!(back.concat(), wanted, "{limit} a page, backwards");
    }
}

/// Reads a room's log from its beginning to this seq as a session that goes on does: page after page, each taken up to its first hole.
async fn resumed(history: &History, epoch: &str, through: u64, limit: usize) -> Vec<u64> {
    let (mut seqs, mut spool_from) = (Vec::new(), 0);
    while seqs.len() < usize::try_from(through).unwrap() {
        let range = LogRange {
            presenter: room(1),
            epoch: Epoch(epoch.into()),
            after: Seq(seqs.len() as u64),
            through: Seq(through),
            limit,
        };
        let page = LogReader::read(history, range, spool_from).await.unwrap();
        let before = seqs.len();
        for event in &page.events {
            if event.seq.0 == seqs.len() as u64 + 1 {
                seqs.push(event.seq.0);
            }
        }
        if seqs.len() == before {
            return seqs;
        }
        if seqs.len() - before == page.events.len() {
            spool_from = page.spool_from;
        }
    }
    seqs
}

#[actix_web::test]
async fn a_session_that_goes_on_is_told_of_a_deletion_that_the_store_does_not_have_yet_wherever_the_message_is() {
    for (name, store, _dir) in stores().await {
        for kept in ["in the spool", "in the store", "aside"] {
            let mut clock = EventClock::after(0);
            let mut epoch = String::new();
            let (mut spool, dir) = spool(&mut epoch);
            let said: Vec<_> = (1..=2).map(|seq| event(&mut clock, 1, &epoch, seq, "x")).collect();
            let target = Act::Message {
                id: said[0].id,
                seq: Seq(1),
            };
            let rest = [Arc::clone(&said[1]), act(&mut clock, 1, &epoch, 3, target)];
            match kept {
                "in the spool" => drop(spool.commit(&said[..1]).unwrap()),
                "in the store" => assert_eq!(store.append(batch(&said[..1])).await.unwrap(), []),
                _ => park(&mut spool, &said[..1]),
            }
            spool.commit(&rest).unwrap();
            let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
            let range = LogRange {
                presenter: room(1),
                epoch: Epoch(epoch.as_str().into()),
                after: Seq(0),
                through: Seq(3),
                limit: 100,
            };
            let page = LogReader::read(&history, range, 0).await.unwrap();
            let read: Vec<_> = page.events.iter().map(|event| event.seq.0).collect();
            assert_eq!(read, [1, 2, 3], "{name}, {kept}");
            assert_eq!(page.deleted, [Seq(1)], "{name}, {kept}");
        }
    }
}

#[actix_web::test]
async fn what_was_set_aside_in_an_earlier_run_hides_nothing_from_a_session_that_goes_on() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (mut before, dir) = spool(&mut epoch);
        let mut events: Vec<_> = (1..=14).map(|seq| event(&mut clock, 1, &epoch, seq, "x")).collect();
        let spooled = events.split_off(12);
        let apart = events.remove(4);
        store.append(batch(&events)).await.unwrap();
        let others: Vec<_> = (1..=100).map(|seq| event(&mut clock, 2, &epoch, seq, "x")).collect();
        let first = before.commit(&others).unwrap();
        before.free(first + 99, &[], 0).unwrap();
        park(&mut before, &[apart]);
        before.close();
        drop(before);
        // Places begin anew, far before that of what was set aside.
        let (mut spool, _) = reopened(&dir);
        assert_eq!(spool.commit(&spooled).unwrap(), 1, "{name}");
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        for limit in 1..=15 {
            let all = resumed(&history, &epoch, 14, limit).await;
            assert_eq!(all, (1..=14).collect::<Vec<_>>(), "{name}, {limit} a page");
        }
    }
}

#[actix_web::test]
async fn what_was_set_aside_earlier_is_found_before_what_was_set_aside_later_from_a_lower_place() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (mut before, dir) = spool(&mut epoch);
        let mut events: Vec<_> = (1..=9).map(|seq| event(&mut clock, 1, &epoch, seq, "x")).collect();
        let later = events.split_off(6);
        let apart = events.split_off(3);
        store.append(batch(&events)).await.unwrap();
        let others: Vec<_> = (1..=100).map(|seq| event(&mut clock, 2, &epoch, seq, "x")).collect();
        let first = before.commit(&others).unwrap();
        before.free(first + 99, &[], 0).unwrap();
        park(&mut before, &apart);
        before.close();
        drop(before);
        let (mut spool, _) = reopened(&dir);
        park(&mut spool, &later);
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        for limit in 1..=10 {
            for through in [6, 9] {
                let all = resumed(&history, &epoch, through, limit).await;
                assert_eq!(all, (1..=through).collect::<Vec<_>>(), "{name}, {limit} a page");
            }
        }
        // One that cannot be read, now or ever, takes nobody's place.
        let connection = rusqlite::Connection::open(dir.path().join("chat.db")).unwrap();
        connection
            .execute("UPDATE parked SET role = 'wizard' WHERE seq = 4", [])
            .unwrap();
        let range = LogRange {
            presenter: room(1),
            epoch: Epoch(epoch.as_str().into()),
            after: Seq(4),
            through: Seq(6),
            limit: 1,
        };
        let page = LogReader::read(&history, range.clone(), 0).await.unwrap();
        assert_eq!(page.events.first().map(|event| event.seq), Some(Seq(5)), "{name}");
        let range = LogRange { after: Seq(3), ..range };
        let page = LogReader::read(&history, range, 0).await.unwrap();
        assert_eq!(page.events.first().map(|event| event.seq), Some(Seq(5)), "{name}");
    }
}

#[actix_web::test]
async fn a_deletion_covers_what_was_set_aside_and_what_later_gets_into_the_store() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (mut spool, dir) = spool(&mut epoch);
        let said: Vec<_> = (1..=2).map(|seq| event(&mut clock, 1, &epoch, seq, "secret")).collect();
        park(&mut spool, &said);
        let target = Act::Message {
            id: said[0].id,
            seq: Seq(1),
        };
        let target = act(&mut clock, 1, &epoch, 3, target);
        // It is taken to the store, which has nothing that it names, and freed.
        let pos = spool.commit(std::slice::from_ref(&target)).unwrap();
        assert_eq!(
            store.append(batch(std::slice::from_ref(&target))).await.unwrap(),
            [],
            "{name}"
        );
        spool.free(pos, &[], 0).unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        let found = history.find(room(1), said[0].id).await.unwrap().unwrap();
        assert_eq!(found.deleted, Some(Deleted::by(&target)), "{name}");
        let page = history.page(&pages(1, Start::After(Seq(0)), 10)).await.unwrap();
        let shown: Vec<_> = page
            .events
            .iter()
            .map(|one| (one.event.seq.0, one.deleted.is_some()))
            .collect();
        assert_eq!(shown, [(1, true), (2, false), (3, false)], "{name}");
        // As `spool replay --parked` does when the store takes one of them at first, and then the other.
        for (stored, refused, forgotten) in [([0, 2], Some(1), 1), ([1, 2], None, 2)] {
            let rows = spool.read_parked(&[], 10).unwrap();
            let rows: Vec<_> = rows.into_iter().map(|row| row.event.unwrap()).collect();
            let taken: Vec<_> = rows
                .iter()
                .filter(|row| refused.is_none_or(|n: usize| row.id != said[n].id))
                .cloned()
                .collect();
            assert_eq!(store.append(batch(&taken)).await.unwrap(), [], "{name}");
            let refused: Vec<_> = refused.iter().map(|n| (said[*n].id, "no".to_owned())).collect();
            let ids = [said[0].id, said[1].id, target.id];
            let stored: Vec<_> = stored.iter().map(|n| ids[*n]).collect();
            // An act that may cover what stays is in both.
            assert_eq!(spool.unpark(&stored, &refused).unwrap(), forgotten, "{name}");
        }
        assert_eq!(seqs(&deleted(&*store, 1, &epoch).await), [1], "{name}");
        assert_eq!(spool.count_parked().unwrap(), 0, "{name}");
    }
}

#[test]
fn of_the_acts_that_the_store_has_those_stay_that_cover_what_was_set_aside() {
    let mut epoch = String::new();
    let (mut spool, _dir) = spool(&mut epoch);
    let base = 1_800_000_000_000;
    // Acts come after what they name.
    let mut clock = EventClock::after(base + 1_000);
    let said: Vec<_> = (1_u64..=6)
        .map(|seq| {
            let said = by(10 + seq.cast_signed(), event(&mut clock, 1, &epoch, seq, "x"));
            let mut said = Arc::unwrap_or_clone(said);
            said.sent_at_ms = base + seq.cast_signed() * 10;
            Arc::new(said)
        })
        .collect();
    let message = |n: usize| Act::Message {
        id: said[n].id,
        seq: said[n].seq,
    };
    let user = |user| Act::User {
        user_idx: UserIdx::new(user).unwrap(),
    };
    let span = |from: i64, to: i64| Act::Span {
        from_ms: base + from,
        to_ms: base + to,
    };
    let kept = |spool: &mut SqliteSpool| -> Vec<u64> {
        let mut rows = spool.read_parked(&[], 100).unwrap();
        rows.retain(|row| row.reason.starts_with("stored"));
        rows.into_iter().map(|row| row.event.unwrap().seq.0).collect()
    };
    park(&mut spool, &said[..1]);
    // On it, on its user, on its time; on others.
    let covering = [message(0), user(11), span(0, 10), span(10, 10), span(-5, 100)];
    let others = [message(1), message(4), user(12), user(99), span(11, 100), span(0, 9)];
    let mut numbered = (11..).zip(covering.into_iter().chain(others));
    let mut acts: Vec<_> = numbered
        .by_ref()
        .map(|(seq, of)| act(&mut clock, 1, &epoch, seq, of))
        .collect();
    // In another room.
    acts.extend([user(11), span(0, 10)].map(|of| act(&mut clock, 2, &epoch, 1, of)));
    let first = spool.commit(&acts).unwrap();
    spool.free(first + acts.len() as i64 - 1, &[], 0).unwrap();
    assert_eq!(kept(&mut spool), [11, 12, 13, 14, 15]);
    // In one step with what is set aside, and with an act on its user that came before it.
    let before = act(&mut clock, 1, &epoch, 30, user(16));
    let late = by(16, event(&mut clock, 1, &epoch, 31, "x"));
    let of_late = Act::Message {
        id: late.id,
        seq: late.seq,
    };
    let mut rows = vec![before, late];
    rows.extend(
        (32..)
            .zip([of_late, user(16), message(3), user(14)])
            .map(|(seq, of)| act(&mut clock, 1, &epoch, seq, of)),
    );
    let first = spool.commit(&rows).unwrap();
    let refused = [(first + 1, Arc::clone(&rows[1]), "no".to_owned())];
    spool.free(first + rows.len() as i64 - 1, &refused, 0).unwrap();
    assert_eq!(kept(&mut spool), [11, 12, 13, 14, 15, 32, 33]);
}

#[actix_web::test]
async fn what_comes_behind_acts_is_deleted_by_the_first_that_covers_it_and_stays_so() {
    for (name, store, _dir) in stores().await {
        // One act at a time, and all at once.
        for (limit, presenter) in [(1, 1), (100, 3)] {
            marked_late(name, &*store, limit, presenter).await;
        }
    }
}

/// Brings what one server said in a room, and in the next one, behind acts that another brought, of which so many are looked at at once.
async fn marked_late(name: &str, store: &dyn Archive, limit: usize, presenter: i64) {
    let mut clock = EventClock::after(0);
    // One server said this and was away; another one had the log meanwhile.
    let mut late: Vec<_> = (1..=4)
        .map(|seq| by(7 + i64::from(seq > 2), event(&mut clock, presenter, "late", seq, "x")))
        .collect();
    let elsewhere = by(7, event(&mut clock, presenter + 1, "late", 1, "x"));
    let user_idx = UserIdx::new(7).unwrap();
    let user = by(98, act(&mut clock, presenter, "e", 1, Act::User { user_idx }));
    let all = Act::Span {
        from_ms: 0,
        to_ms: i64::MAX,
    };
    let all = act(&mut clock, presenter, "e", 2, all);
    let behind = by(7, event(&mut clock, presenter, "late", 5, "x"));
    let acts = [user.clone(), all.clone()];
    assert_eq!(store.append(batch(&acts)).await.unwrap(), [], "{name}");
    late.extend([elsewhere, behind]);
    let [of_user, of_all] = [&user, &all].map(|act| Deleted::by(act));
    let wanted = [(1, of_user), (2, of_user), (3, of_all), (4, of_all)];
    // The second time as after a failure.
    for _ in 0..2 {
        assert_eq!(store.append(batch(&late)).await.unwrap(), [], "{name}");
        let mut messages = LateMessages::of(&late);
        while messages.mark_some(store, limit).await.unwrap() {}
        assert_eq!(deleted(store, presenter, "late").await, wanted, "{name}");
        assert_eq!(deleted(store, presenter + 1, "late").await, [], "{name}");
    }
}

#[actix_web::test]
async fn a_replay_begins_where_it_is_asked_to_wherever_that_is() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (mut spool, dir) = spool(&mut epoch);
        let base = 1_800_000_000_000;
        let events: Vec<_> = (1..=9)
            .map(|seq| {
                let mut event = Arc::unwrap_or_clone(event(&mut clock, 1, &epoch, seq, "x"));
                event.sent_at_ms = base + i64::try_from(seq).unwrap() * 10;
                Arc::new(event)
            })
            .collect();
        store.append(batch(&events[..3])).await.unwrap();
        // The third is on its way: it is in both.
        spool.commit(&events[2..]).unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        let all = of_all(&epoch);
        for first in 1..=9_u64 {
            let from_ms = base + i64::try_from(first).unwrap() * 10 - 5;
            let place = history.replay_from(&all, from_ms).await.unwrap();
            let wanted: Vec<u64> = (first..=9).collect();
            assert_eq!(replayed(&history, &all, place, 2).await, wanted, "{name}: from {first}");
        }
        let place = history.replay_from(&all, base + 1000).await.unwrap();
        assert_eq!(replayed(&history, &all, place, 2).await, [0_u64; 0], "{name}");
    }
}

#[actix_web::test]
async fn a_replay_tells_how_far_it_was_read_and_what_is_behind_that() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (mut spool, dir) = spool(&mut epoch);
        let base = system_ms() - 3_600_000;
        let events: Vec<_> = (1..=4)
            .map(|seq| {
                let mut event = Arc::unwrap_or_clone(event(&mut clock, 1, &epoch, seq, "x"));
                event.sent_at_ms = base + i64::try_from(seq).unwrap() * 10;
                Arc::new(event)
            })
            .collect();
        store.append(batch(&events[..2])).await.unwrap();
        spool.commit(&events[2..]).unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        let in_span = |span: usize, seq: u64| ReplayPlace { span, after: Seq(seq) };
        for (before_ms, limit, wanted, behind) in [
            (base, 10, 0, Behind::Later),
            (base + 35, 2, 2, Behind::More),
            (base + 35, 3, 3, Behind::Later),
            (base + 35, 10, 3, Behind::Later),
            (base + 45, 3, 3, Behind::More),
            (base + 45, 4, 4, Behind::Nothing),
            (base + 45, 10, 4, Behind::Nothing),
            (i64::MAX, 10, 4, Behind::Nothing),
        ] {
            let replay = history.replay(&of_all(&epoch), in_span(0, 0), before_ms, limit).await;
            let page = replay.unwrap();
            let found = (page.events.len(), page.place, page.behind);
            let of = format!("{name}: {limit} before {before_ms}");
            assert_eq!(found, (wanted, in_span(0, wanted as u64), behind), "{of}");
        }
        let old: Vec<_> = [(1, base - 20), (2, base - 10)]
            .map(|(seq, at_ms)| {
                let mut event = Arc::unwrap_or_clone(event(&mut clock, 1, "old", seq, "x"));
                event.sent_at_ms = at_ms;
                Arc::new(event)
            })
            .into();
        store.append(batch(&old)).await.unwrap();
        let mut went_on = of_all(&epoch);
        let earlier = Span {
            epoch: Epoch("old".into()),
            after: Seq(0),
            through: Some(Seq(2)),
        };
        went_on.spans.insert(0, earlier);
        // How far it was read is told in the numbering that it was read in, whatever comes behind.
        for (from, before_ms, limit, wanted, place, behind) in [
            (in_span(0, 0), base - 15, 10, 1, in_span(0, 1), Behind::Later),
            (in_span(0, 1), base - 15, 10, 0, in_span(0, 1), Behind::Later),
            (in_span(0, 0), base, 10, 2, in_span(0, 2), Behind::More),
            (in_span(0, 2), base, 10, 0, in_span(0, 2), Behind::Later),
            (in_span(0, 2), base + 35, 2, 2, in_span(1, 2), Behind::More),
            (in_span(1, 2), i64::MAX, 2, 2, in_span(1, 4), Behind::Nothing),
            (in_span(1, 4), i64::MAX, 2, 0, in_span(1, 4), Behind::Nothing),
        ] {
            let page = history.replay(&went_on, from, before_ms, limit).await.unwrap();
            let found = (page.events.len(), page.place, page.behind);
            assert_eq!(
                found,
                (wanted, place, behind),
                "{name}: from {from:?} before {before_ms}"
            );
        }
    }
}

/// Where events are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    InSpool,
    InStore,
    /// In the store but for the last, which was set aside.
    LastAside,
}

impl Kept {
    async fn keep(self, events: &[Arc<Event>], spool: &mut SqliteSpool, store: &dyn Archive) {
        let (stored, aside) = events.split_at(events.len() - usize::from(self == Self::LastAside));
        if self == Self::InSpool {
            spool.commit(events).unwrap();
        } else {
            assert_eq!(store.append(batch(stored)).await.unwrap(), []);
        }
        if !aside.is_empty() {
            park(spool, aside);
        }
    }
}

#[actix_web::test]
async fn a_replay_begins_where_it_is_asked_to_in_a_broadcast_that_went_on_in_another_numbering() {
    for (name, store, _dir) in stores().await {
        let kept = [Kept::InSpool, Kept::InStore, Kept::LastAside].map(|before| {
            let since = [Kept::InSpool, Kept::InStore];
            // Nobody knows how far the first numbering went; or its last numbers were given, and have no event.
            since.map(|since| [None, Some(Seq(5))].map(|through| (before, since, through)))
        });
        for (before, since, through) in kept.into_iter().flatten().flatten() {
            let dir = ScratchDir::new("archive");
            let opened = || {
                SqliteSpool::open(SpoolSettings {
                    path: dir.path().join("chat.db"),
                    durability: Durability::Os,
                    max_bytes: None,
                    embedded: true,
                })
                .unwrap()
            };
            let (mut clock, base) = (EventClock::after(0), 1_800_000_000_000);
            let mut events = |seqs: std::ops::RangeInclusive<u64>, epoch: &Epoch| -> Vec<_> {
                let at = |seq: u64| base + seq.cast_signed() * 10;
                let made = seqs.map(|seq| Event {
                    sent_at_ms: at(seq),
                    ..Arc::unwrap_or_clone(event(&mut clock, 1, &epoch.0, seq, "x"))
                });
                made.map(Arc::new).collect()
            };
            let (mut spool, first) = opened();
            before.keep(&events(1..=3, &first.epoch), &mut spool, &*store).await;
            // As a crash leaves it.
            drop(spool);
            let (mut spool, second) = opened();
            assert_ne!(first.epoch, second.epoch);
            since.keep(&events(4..=6, &second.epoch), &mut spool, &*store).await;
            let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
            let spans = [(first.epoch, 0, through), (second.epoch, 3, None)];
            let spans = spans.map(|(epoch, after, through)| Span {
                epoch,
                after: Seq(after),
                through,
            });
            let all = Broadcast {
                spans: spans.into(),
                ..broadcast(1, 1, 1, None)
            };
            let of = format!("{name}: {before:?}, {since:?}, {through:?}");
            for first in 1..=6_u64 {
                let place = history
                    .replay_from(&all, base + first.cast_signed() * 10 - 5)
                    .await
                    .unwrap();
                let wanted: Vec<u64> = (first..=6).collect();
                assert_eq!(replayed(&history, &all, place, 2).await, wanted, "{of}: from {first}");
            }
            let place = history.replay_from(&all, base + 1000).await.unwrap();
            assert_eq!(replayed(&history, &all, place, 2).await, [0_u64; 0], "{of}");
        }
    }
}

#[actix_web::test]
async fn a_replay_has_all_of_a_broadcast_that_went_on_elsewhere_while_its_first_numbering_went_on_with_another() {
    for (name, store, _dir) in stores().await {
        for (named, room_of) in [(true, 1), (false, 2)] {
            let base = 1_800_000_000_000;
            let mut clock = EventClock::after(base);
            let mut epoch = String::new();
            let (mut spool, dir) = spool(&mut epoch);
            // Nobody knows how far it went in the first numbering, where a server came back, deleted something, and had the next
            // broadcast.
            let own = Broadcast {
                presenter: room(room_of),
                spans: vec![
                    Span {
                        epoch: Epoch(epoch.as_str().into()),
                        after: Seq(0),
                        through: None,
                    },
                    Span {
                        epoch: Epoch("b".into()),
                        after: Seq(5),
                        through: Some(Seq(8)),
                    },
                ],
                ..broadcast(1, room_of, 1, Some(90))
            };
            let mut said = |epoch: &str, seq: u64, at_ms: i64, of: Option<Uuid>| {
                let said = event(&mut clock, room_of, epoch, seq, "x");
                Arc::new(Event {
                    sent_at_ms: base + at_ms,
                    broadcast_id: of,
                    ..Arc::unwrap_or_clone(said)
                })
            };
            let of = named.then_some(own.id);
            let mut first: Vec<_> = (1..=5)
                .map(|seq| said(&epoch, seq, seq.cast_signed() * 10, of))
                .collect();
            let elsewhere: Vec<_> = (6..=8).map(|seq| said("b", seq, seq.cast_signed() * 10, of)).collect();
            first.push(said(&epoch, 6, 150, None));
            let next = Some(Uuid::from_u128(2));
            first.extend((7..=12).map(|seq| said(&epoch, seq, seq.cast_signed() * 30, next)));
            assert_eq!(store.append(batch(&elsewhere)).await.unwrap(), [], "{name}");
            assert_eq!(store.append(batch(&first[..8])).await.unwrap(), [], "{name}");
            spool.commit(&first[8..]).unwrap();
            let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
            let start = ReplayPlace::default();
            for limit in 1..=10 {
                let of = format!("{name}, named {named}, {limit} a page");
                let all = replayed(&history, &own, start, limit).await;
                assert_eq!(all, [1, 2, 3, 4, 5, 6, 6, 7, 8], "{of}");
                for (before, wanted) in [(100, 8), (75, 7), (60, 5), (45, 4)] {
                    let all = replayed_before(base + before, &history, &own, start, limit).await;
                    assert_eq!(all, (1..=wanted).collect::<Vec<_>>(), "{of}, before {before}");
                }
                let place = history.replay_from(&own, base + 160).await.unwrap();
                assert_eq!(place.span, 1, "{of}: behind all of it");
                assert_eq!(replayed(&history, &own, place, limit).await, [0_u64; 0], "{of}");
            }
        }
    }
}

/// As when it ended on another server, which never had a message of it, and the first one came back, deleted something, and had the
/// next ones.
#[actix_web::test]
async fn a_replay_and_an_export_end_where_the_next_broadcast_begins_though_nobody_knows_how_far_this_one_went() {
    for (name, store, _dir) in stores().await {
        for (named, room_of) in [(true, 1), (false, 2)] {
            let base = 1_800_000_000_000;
            let mut clock = EventClock::after(base);
            let mut epoch = String::new();
            let (mut spool, dir) = spool(&mut epoch);
            let own = Broadcast {
                presenter: room(room_of),
                spans: vec![Span {
                    epoch: Epoch(epoch.as_str().into()),
                    after: Seq(0),
                    through: None,
                }],
                ..broadcast(1, room_of, 1, Some(90))
            };
            let mut said = |seq: u64, of: Option<Uuid>| {
                let mut said = Arc::unwrap_or_clone(event(&mut clock, room_of, &epoch, seq, "x"));
                (said.sent_at_ms, said.broadcast_id) = (base + seq.cast_signed() * 10, of);
                if of.is_none() && seq > 5 {
                    let none = Act::Message {
                        id: Uuid::nil(),
                        seq: Seq(0),
                    };
                    said.act = Some(Arc::new(none));
                }
                Arc::new(said)
            };
            let of = named.then_some(own.id);
            let mut all: Vec<_> = (1..=5).map(|seq| said(seq, of)).collect();
            all.push(said(6, None));
            all.extend((7..=20).map(|seq| said(seq, Some(Uuid::from_u128(2)))));
            all.push(said(21, None));
            all.extend((22..=40).map(|seq| said(seq, Some(Uuid::from_u128(3)))));
            assert_eq!(store.append(batch(&all[..15])).await.unwrap(), [], "{name}");
            spool.commit(&all[15..]).unwrap();
            let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
            let start = ReplayPlace::default();
            for limit in 1..=10 {
                let of = format!("{name}, named {named}, {limit} a page");
                assert_eq!(replayed(&history, &own, start, limit).await, [1, 2, 3, 4, 5, 6], "{of}");
                let last = ReplayPlace { span: 0, after: Seq(6) };
                let page = history.replay(&own, last, i64::MAX, limit).await.unwrap();
                assert_eq!((page.events.len(), page.behind), (0, Behind::Nothing), "{of}");
                let place = history.replay_from(&own, base + 95).await.unwrap();
                let page = history.replay(&own, place, i64::MAX, limit).await.unwrap();
                assert_eq!((page.events.len(), page.behind), (0, Behind::Nothing), "{of}");
            }
            let record = StoredBroadcast {
                broadcast: own,
                corrected_start_ms: None,
                legal_hold: false,
            };
            let options = Options {
                format: Format::Ndjson,
                deletions: Deletions::Mark,
                page_rows: 3,
                cue_ms: 4000,
                now_ms: base,
            };
            let mut export = Export::begin(history, record, options).await.unwrap();
            let mut events = 0;
            while let Some(piece) = export.next().await.unwrap() {
                events += piece.events;
            }
            assert_eq!(events, 6, "{name}, named {named}");
        }
    }
}

/// As when an old copy of a spool was put back while the store was away, and gave numbers again that the store has.
#[actix_web::test]
async fn a_replay_has_what_was_set_aside_because_the_store_has_its_number_already() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (mut spool, dir) = spool(&mut epoch);
        let [before, after] = [(1, 0), (2, 3)].map(|(n, after)| Broadcast {
            spans: vec![Span {
                epoch: Epoch(epoch.as_str().into()),
                after: Seq(after),
                through: Some(Seq(12)),
            }],
            ..broadcast(n, 1, 1, Some(90))
        });
        let mut said = |seqs: std::ops::RangeInclusive<u64>, of: Option<&Broadcast>| -> Vec<Arc<Event>> {
            seqs.map(|seq| {
                let said = event(&mut clock, 1, &epoch, seq, "x");
                Arc::new(Event {
                    broadcast_id: of.map(|of| of.id),
                    sent_at_ms: seq.cast_signed() * 10,
                    ..Arc::unwrap_or_clone(said)
                })
            })
            .collect()
        };
        assert_eq!(
            store.append(batch(&said(1..=10, Some(&before)))).await.unwrap(),
            [],
            "{name}"
        );
        park(&mut spool, &said(4..=9, Some(&after)));
        // What names none is of both, beside what has its number.
        park(&mut spool, &said(6..=7, None));
        spool.commit(&said(11..=12, Some(&after))).unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        for limit in 1..=15 {
            let of = format!("{name}, {limit} a page");
            let start = ReplayPlace::default();
            let all = replayed(&history, &after, start, limit).await;
            assert_eq!(all, [4, 5, 6, 6, 7, 7, 8, 9, 11, 12], "{of}");
            let all = replayed(&history, &before, start, limit).await;
            assert_eq!(all, [1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 9, 10], "{of}");
            let some = replayed_before(65, &history, &before, start, limit).await;
            assert_eq!(some, [1, 2, 3, 4, 5, 6, 6], "{of}");
            // Nor does what was set aside end the one before, where nobody knows how far that went.
            let mut open = before.clone();
            open.spans[0].through = None;
            let all = replayed(&history, &open, start, limit).await;
            assert_eq!(all, [1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 9, 10], "{of}");
        }
        let page = history.replay(&before, ReplayPlace::default(), 55, 9).await.unwrap();
        assert_eq!((page.events.len(), page.behind), (5, Behind::Later), "{name}");
    }
}

#[actix_web::test]
async fn a_replay_from_a_time_on_finds_what_is_of_the_broadcast_though_another_has_that_time_in_its_first_numbering() {
    for (name, store, _dir) in stores().await {
        let base = 1_800_000_000_000;
        let mut clock = EventClock::after(base);
        let mut epoch = String::new();
        let (_spool, dir) = spool(&mut epoch);
        // How far it went in the first numbering is not known; or it is, and the last numbers were given again.
        for (presenter, through) in [(1, None), (2, Some(Seq(9)))] {
            let span = |epoch: &str, after, through| Span {
                epoch: Epoch(epoch.into()),
                after: Seq(after),
                through,
            };
            let own = Broadcast {
                spans: vec![span("a", 0, through), span("b", 5, Some(Seq(8)))],
                ..broadcast(1, presenter, 1, Some(90))
            };
            let mut events = Vec::new();
            for (epoch, seqs, of) in [
                ("a", 1..=5, own.id),
                ("b", 6..=8, own.id),
                ("a", 6..=9, Uuid::from_u128(2)),
            ] {
                for seq in seqs {
                    let made = event(&mut clock, presenter, epoch, seq, "x");
                    let late = if of == own.id { 0 } else { 1_000 };
                    events.push(Arc::new(Event {
                        sent_at_ms: base + seq.cast_signed() * 10 + late,
                        broadcast_id: Some(of),
                        ..Arc::unwrap_or_clone(made)
                    }));
                }
            }
            assert_eq!(store.append(batch(&events)).await.unwrap(), [], "{name}");
            let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
            for first in 1..=8_u64 {
                let from_ms = base + first.cast_signed() * 10 - 5;
                let place = history.replay_from(&own, from_ms).await.unwrap();
                let all = replayed_before(base + 500, &history, &own, place, 2).await;
                assert_eq!(
                    all,
                    (first..=8).collect::<Vec<_>>(),
                    "{name}, {through:?}: from {first}"
                );
            }
        }
    }
}

#[actix_web::test]
async fn a_replay_from_a_time_on_passes_over_what_the_broadcast_before_had_in_flight_and_over_no_numbering() {
    for (name, store, _dir) in stores().await {
        let base = 1_800_000_000_000;
        let mut clock = EventClock::after(base);
        let mut epoch = String::new();
        let (_spool, dir) = spool(&mut epoch);
        for (presenter, through) in [(1, None), (2, Some(Seq(8)))] {
            let span = |epoch: &str, after, through| Span {
                epoch: Epoch(epoch.into()),
                after: Seq(after),
                through,
            };
            // 4 and 5 were numbered when it began, and not committed.
            let own = Broadcast {
                spans: vec![span("a", 3, through), span("b", 8, Some(Seq(11)))],
                ..broadcast(2, presenter, 1, Some(200))
            };
            let mut events = Vec::new();
            for (epoch, seqs, of) in [
                ("a", 1..=5, Uuid::from_u128(1)),
                ("a", 6..=8, own.id),
                ("b", 9..=11, own.id),
            ] {
                for seq in seqs {
                    let made = event(&mut clock, presenter, epoch, seq, "x");
                    events.push(Arc::new(Event {
                        sent_at_ms: base + seq.cast_signed() * 10,
                        broadcast_id: Some(of),
                        ..Arc::unwrap_or_clone(made)
                    }));
                }
            }
            assert_eq!(store.append(batch(&events)).await.unwrap(), [], "{name}");
            let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
            for from in 1..=11_u64 {
                let from_ms = base + from.cast_signed() * 10 - 5;
                let place = history.replay_from(&own, from_ms).await.unwrap();
                for before in [65, 85, 105, 1_000] {
                    let all = replayed_before(base + before, &history, &own, place, 2).await;
                    let within = (from.max(6)..=11).filter(|seq| seq.cast_signed() * 10 < before);
                    assert_eq!(
                        all,
                        within.collect::<Vec<_>>(),
                        "{name}, {through:?}: from {from}, before {before}"
                    );
                }
            }
        }
    }
}

#[actix_web::test]
async fn a_replay_has_nothing_of_another_broadcast_whatever_numbers_were_taken_back() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (mut spool, dir) = spool(&mut epoch);
        let own = of_all(&epoch);
        let events: Vec<_> = (1..=9)
            .map(|seq| {
                let mut event = Arc::unwrap_or_clone(event(&mut clock, 1, &epoch, seq, "x"));
                let other = (4..=6).contains(&seq);
                event.broadcast_id = Some(if other { Uuid::from_u128(9) } else { own.id });
                Arc::new(event)
            })
            .collect();
        store.append(batch(&events[..5])).await.unwrap();
        spool.commit(&events[5..]).unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        for limit in 1..=10 {
            let all = replayed(&history, &own, ReplayPlace::default(), limit).await;
            assert_eq!(all, [1, 2, 3, 7, 8, 9], "{name}, {limit} a page");
        }
    }
}

#[actix_web::test]
async fn where_a_page_of_one_user_ends_does_not_tell_whose_a_deleted_message_was() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (_spool, dir) = spool(&mut epoch);
        let mut events: Vec<_> = (1..=9)
            .map(|seq| by(7, event(&mut clock, 1, &epoch, seq, "x")))
            .collect();
        for (seq, n) in [(10, 3), (11, 4), (12, 8)] {
            let target = Act::Message {
                id: events[n].id,
                seq: events[n].seq,
            };
            events.push(act(&mut clock, 1, &epoch, seq, target));
        }
        store.append(batch(&events)).await.unwrap();
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        for start in [Start::After(Seq(0)), Start::Before(Seq(u64::MAX))] {
            for limit in 1..=8 {
                let mut query = pages(1, start, limit);
                query.user = UserIdx::new(7);
                let mut all = Vec::new();
                loop {
                    let page = history.page(&query).await.unwrap();
                    all.extend(page.events.iter().map(|logged| logged.event.seq.0));
                    let Some(next) = page.next else {
                        break;
                    };
                    assert!(![4, 5, 9].contains(&next.0), "{name}, {limit}: {next:?}");
                    assert_eq!(page.events.len(), limit, "{name}");
                    query.start = match query.start {
                        Start::Before(_) => Start::Before(next),
                        Start::After(_) => Start::After(next),
                    };
                }
                all.sort_unstable();
                assert_eq!(all, [1, 2, 3, 6, 7, 8], "{name}, {limit}");
            }
        }
    }
}

#[actix_web::test]
async fn what_was_deleted_does_not_show_in_where_the_pages_of_its_user_end() {
    for (name, store, _dir) in stores().await {
        let mut clock = EventClock::after(0);
        let mut epoch = String::new();
        let (_spool, dir) = spool(&mut epoch);
        // Numbers 3 to 10 and the last one are deleted: in room 1 they were the user's, in room 2 another's.
        for (presenter, other) in [(1, 7), (2, 8)] {
            let gone = |seq: u64| (3..=10).contains(&seq) || seq == 16;
            let mut events: Vec<_> = (1..=16)
                .map(|seq| {
                    let text = if seq % 3 == 0 { "hello" } else { "x" };
                    let said = event(&mut clock, presenter, &epoch, seq, text);
                    by(if gone(seq) { other } else { 7 }, said)
                })
                .collect();
            for n in (0..16).filter(|n| gone(*n as u64 + 1)) {
                let target = Act::Message {
                    id: events[n].id,
                    seq: events[n].seq,
                };
                let seq = events.len() as u64 + 1;
                events.push(act(&mut clock, presenter, &epoch, seq, target));
            }
            store.append(batch(&events)).await.unwrap();
        }
        let history = History::new(dir.path().join("chat.db"), Arc::clone(&store), 4);
        for start in [Start::After(Seq(0)), Start::Before(Seq(u64::MAX))] {
            for (limit, scan_limit, text) in [1, 2, 5, 7, 10]
                .into_iter()
                .flat_map(|limit| [1, 2, 3, 1000].map(|scan| (limit, scan)))
                .flat_map(|(limit, scan)| [None, Some("hello")].map(|text| (limit, scan, text)))
            {
                let mut told = Vec::new();
                for presenter in [1, 2] {
                    let mut query = pages(presenter, start, limit);
                    query.user = UserIdx::new(7);
                    query.text = text.map(Folded::new);
                    query.scan_limit = scan_limit;
                    let mut walked = Vec::new();
                    loop {
                        let page = history.page(&query).await.unwrap();
                        let seqs: Vec<_> = page.events.iter().map(|logged| logged.event.seq.0).collect();
                        walked.push((seqs, page.next));
                        let Some(next) = page.next else {
                            break;
                        };
                        query.start = match query.start {
                            Start::Before(_) => Start::Before(next),
                            Start::After(_) => Start::After(next),
                        };
                    }
                    told.push(walked);
                }
                assert_eq!(told[0], told[1], "{name}: {start:?}, {limit}, {scan_limit}, {text:?}");
                let mut all: Vec<u64> = told[0].iter().flat_map(|(seqs, _)| seqs.clone()).collect();
                all.sort_unstable();
                let wanted: &[u64] = match text {
                    None => &[1, 2, 11, 12, 13, 14, 15],
                    Some(_) => &[12, 15],
                };
                assert_eq!(all, wanted, "{name}: {start:?}, {limit}, {scan_limit}");
            }
        }
    }
}

#[actix_web::test]
async fn a_page_behind_thousands_of_deleted_messages_is_found_in_few_steps() {
    let store = mongo().await;
    store.prepare().await.unwrap();
    let mut clock = EventClock::after(0);
    let mut epoch = String::new();
    let (_spool, dir) = spool(&mut epoch);
    let mut events: Vec<_> = (1..=3000)
        .map(|seq| by(7, event(&mut clock, 1, &epoch, seq, "x")))
        .collect();
    let all = Act::User {
        user_idx: UserIdx::new(7).unwrap(),
    };
    events.push(act(&mut clock, 1, &epoch, 3001, all));
    events.push(by(7, event(&mut clock, 1, &epoch, 3002, "x")));
    LogStore::append(&store, batch(&events)).await.unwrap();
    let database = store.database().await.unwrap().clone();
    let history = History::new(dir.path().join("chat.db"), Arc::new(store), 4);
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let mut query = pages(1, Start::After(Seq(0)), 1);
    query.user = UserIdx::new(7);
    let page = history.page(&query).await.unwrap();
    let seqs: Vec<_> = page.events.iter().map(|logged| logged.event.seq.0).collect();
    assert_eq!((seqs, page.next), (vec![3002], None));
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    let questions = database.collection::<Document>("system.profile");
    let asked = questions
        .count_documents(doc! { "ns": { "$regex": "chatting_log$" } })
        .await
        .unwrap();
    assert!((1..50).contains(&asked), "{asked} questions");
}

#[actix_web::test]
async fn a_search_behind_more_deleted_messages_than_anyone_should_read_is_refused_and_tells_no_place() {
    let dir = ScratchDir::new("archive");
    let settings = SpoolSettings {
        path: dir.path().join("chat.db"),
        durability: Durability::Os,
        max_bytes: None,
        embedded: true,
    };
    let (spool, info) = SqliteSpool::open(settings).unwrap();
    let epoch = info.epoch.0.to_string();
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let mut clock = EventClock::after(0);
    let events: Vec<_> = (1..=52_000)
        .map(|seq| by(7, event(&mut clock, 1, &epoch, seq, "x")))
        .collect();
    for part in events.chunks(1000) {
        store.append(batch(part)).await.unwrap();
    }
    let all = Act::User {
        user_idx: UserIdx::new(7).unwrap(),
    };
    store
        .append(batch(&[act(&mut clock, 1, &epoch, 52_001, all)]))
        .await
        .unwrap();
    let history = History::new(dir.path().join("chat.db"), Arc::new(store), 4);
    let mut query = pages(1, Start::After(Seq(0)), 10);
    (query.user, query.scan_limit) = (UserIdx::new(7), 10);
    assert!(matches!(history.page(&query).await, Err(HistoryError::TooMuch)));
    query.deleted_too = true;
    assert_eq!(history.page(&query).await.unwrap().events.len(), 10, "staff");
}

#[actix_web::test]
async fn an_act_on_very_many_messages_does_not_stop_commits() {
    let dir = ScratchDir::new("archive");
    let settings = SpoolSettings {
        path: dir.path().join("chat.db"),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: true,
    };
    let (mut spool, info) = SqliteSpool::open(settings).unwrap();
    let epoch = info.epoch.0.to_string();
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let mut clock = EventClock::after(0);
    let events: Vec<_> = (1..=20_000)
        .map(|seq| by(7, event(&mut clock, 1, &epoch, seq, "x")))
        .collect();
    for part in events.chunks(1000) {
        store.append(batch(part)).await.unwrap();
    }
    let user = Act::User {
        user_idx: UserIdx::new(7).unwrap(),
    };
    let everything = act(&mut clock, 1, &epoch, 20_001, user);
    let other = event(&mut clock, 2, &epoch, 1, "x");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let committing = std::thread::spawn(move || {
        let mut commits = 0;
        while !stopped.load(std::sync::atomic::Ordering::Acquire) {
            spool.commit(std::slice::from_ref(&other)).unwrap();
            commits += 1;
            std::thread::yield_now();
        }
        commits
    });
    store.append(batch(std::slice::from_ref(&everything))).await.unwrap();
    stop.store(true, std::sync::atomic::Ordering::Release);
    let commits = committing.join().unwrap();
    assert!(commits >= 5, "{commits}");
    let last = store.scan(scan(1, &epoch, 0, u64::MAX, 30_000)).await.unwrap();
    assert_eq!(last.iter().filter(|logged| logged.deleted.is_some()).count(), 20_000);
}

#[test]
fn that_a_broadcast_was_seen_again_is_kept_and_is_no_work_for_the_store() {
    let (mut spool, _dir) = spool(&mut String::new());
    let first = broadcast(1, 1, 1, None);
    let seen = |version, seen_at_ms| Broadcast {
        version,
        seen_at_ms,
        ..first.clone()
    };
    // Also where it is told once more, as after an attempt of which nothing is known.
    for _ in 0..2 {
        assert!(spool.keep_broadcasts(std::slice::from_ref(&first)).unwrap());
    }
    assert_eq!(spool.unstored_broadcasts(10).unwrap(), std::slice::from_ref(&first));
    assert!(
        spool.keep_broadcasts(&[seen(2, 50)]).unwrap(),
        "the store has none of it"
    );
    spool.broadcasts_stored(&[seen(2, 50)], &[]).unwrap();
    assert!(!spool.keep_broadcasts(&[seen(3, 99)]).unwrap());
    assert_eq!(spool.open_broadcasts().unwrap(), [seen(3, 99)]);
    assert_eq!(spool.unstored_broadcasts(10).unwrap(), []);
    let ended = broadcast(1, 1, 4, Some(40));
    assert!(spool.keep_broadcasts(&[seen(3, 99), ended.clone()]).unwrap());
    assert_eq!(spool.unstored_broadcasts(10).unwrap(), [ended]);
    assert_eq!(spool.broadcast_versions().unwrap(), [(first.id, 4)].into());
}

fn with_key(key: &str, event: Arc<Event>) -> Event {
    let keyed = Keyed::new(event.chat.user_idx, event.presenter_idx, key, "x");
    Event {
        keyed: Some(keyed),
        ..Arc::unwrap_or_clone(event)
    }
}

#[test]
fn rule_17_reading_keys_takes_none_away() {
    let mut epoch = String::new();
    let (mut spool, _dir) = spool(&mut epoch);
    let mut clock = EventClock::after(0);
    let accepted = Arc::new(with_key("k", event(&mut clock, 1, &epoch, 1, "x")));
    spool.commit(std::slice::from_ref(&accepted)).unwrap();
    // As a clock that is far ahead of the messages' own would ask.
    assert!(spool.read_keys(accepted.sent_at_ms + 1).unwrap().is_empty());
    let rows = spool.read_keys(accepted.sent_at_ms).unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].accepted.id, &*rows[0].keyed.key), (accepted.id, "k"));
}

#[test]
fn rule_17_of_the_keys_of_freed_rows_those_go_that_are_older_than_is_asked_for() {
    let mut epoch = String::new();
    let (mut spool, _dir) = spool(&mut epoch);
    let mut clock = EventClock::after(0);
    let events = [1, 2, 3].map(|seq| {
        let made = event(&mut clock, 1, &epoch, seq, "x");
        Arc::new(Event {
            sent_at_ms: 1_800_000_000_000 + seq.cast_signed(),
            ..with_key(&format!("k{seq}"), made)
        })
    });
    let first = spool.commit(&events).unwrap();
    spool.free(first + 2, &[], events[1].sent_at_ms).unwrap();
    let rows = spool.read_keys(0).unwrap();
    let seqs: Vec<_> = rows.iter().map(|row| row.accepted.seq).collect();
    assert_eq!(seqs, [Seq(2), Seq(3)]);
}

#[test]
fn the_acts_of_a_room_are_found_in_the_spool_by_their_index() {
    let (_spool, dir) = spool(&mut String::new());
    let connection = rusqlite::Connection::open(dir.path().join("chat.db")).unwrap();
    let sql = "EXPLAIN QUERY PLAN SELECT id FROM spool WHERE presenter_idx = 1 AND act IS NOT NULL";
    let plan: String = connection.query_row(sql, [], |row| row.get("detail")).unwrap();
    assert!(plan.contains("spool_acts"), "{plan}");
}

#[test]
fn a_full_spool_of_the_format_before_is_opened_and_goes_on_with_what_it_had() {
    let dir = ScratchDir::new("archive");
    let settings = SpoolSettings {
        path: dir.path().join("chat.db"),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: false,
    };
    let (mut spool, info) = SqliteSpool::open(settings.clone()).unwrap();
    let epoch = info.epoch.0.to_string();
    let mut clock = EventClock::after(0);
    let events: Vec<_> = (1..=500).map(|seq| event(&mut clock, 1, &epoch, seq, "x")).collect();
    park(&mut spool, &events[..1]);
    spool.commit(&events[1..]).unwrap();
    spool.close();
    drop(spool);
    let connection = rusqlite::Connection::open(&settings.path).unwrap();
    let before = "
        DROP INDEX spool_acts; DROP INDEX parked_acts; DROP INDEX parked_of_user; DROP INDEX parked_at; DROP INDEX parked_by_room; DROP INDEX parked_said; DROP TABLE records; UPDATE meta SET value = 1 WHERE key = 'format';
        ALTER TABLE spool DROP COLUMN act; ALTER TABLE spool DROP COLUMN broadcast_id;
        ALTER TABLE parked DROP COLUMN act; ALTER TABLE parked DROP COLUMN broadcast_id;
        ALTER TABLE places DROP COLUMN legacy_from;
        VACUUM; PRAGMA wal_checkpoint(TRUNCATE);";
    connection.execute_batch(before).unwrap();
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    drop(connection);
    let full = SpoolSettings {
        max_bytes: Some(pages.cast_unsigned() * 4096),
        ..settings
    };
    for _ in 0..2 {
        let (mut spool, info) = SqliteSpool::open(full.clone()).unwrap();
        assert_eq!((&*info.epoch.0, info.last), (epoch.as_str(), 500));
        assert_eq!(spool.count_parked().unwrap(), 1);
        let rows = spool.read(0, 1000).unwrap();
        let rows: Vec<_> = rows.into_iter().map(|(_, event)| event).collect();
        assert_eq!(rows, events[1..]);
        spool.close();
    }
}
