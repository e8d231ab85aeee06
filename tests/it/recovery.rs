//! Starts after a crash, with a damaged spool, with a full disk: what was accepted is there, in order, once.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use chatting_actors::{
    clock::EventClock,
    moderation::Act,
    seams::{LastSeq, LogStore, Place, Spool, SpoolFault},
    types::{ChatMessage, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
    writer::SpoolInfo,
};
use chatting_server::{
    app::Stopped,
    settings::Secret,
    store::{
        Archive, Durability, Left, MongoStore, SpoolSettings, SqliteSpool, SqliteStore, inspect::SpoolFile,
        mongo::MongoSettings, spool::OpenError,
    },
};
use mongodb::bson::{Document, doc};

use crate::{
    figures::{message, shared},
    log_store::{batch, embedded, mongo},
    support::{
        app::{TestApp, post_v1, settings, spawn_app, spawn_in, use_mongodb},
        eventually,
        http::get,
        mongod::Mongod,
        process::ScratchDir,
    },
};

pub fn room(n: i64) -> PresenterIdx {
    PresenterIdx::new(n).unwrap()
}

pub fn open(path: &Path, durability: Durability, max_bytes: Option<u64>) -> (SqliteSpool, SpoolInfo) {
    SqliteSpool::open(SpoolSettings {
        path: path.to_owned(),
        durability,
        max_bytes,
        embedded: false,
    })
    .unwrap()
}

pub fn events(info: &SpoolInfo, presenter: i64, seqs: std::ops::RangeInclusive<u64>) -> Vec<Arc<Event>> {
    let mut clock = EventClock::after(info.last_ms);
    seqs.map(|seq| {
        let (sent_at_ms, id) = clock.stamp();
        Arc::new(Event {
            id,
            presenter_idx: room(presenter),
            epoch: info.epoch.clone(),
            seq: Seq(seq),
            sent_at_ms,
            room_idx: None,
            broadcast_id: None,
            act: None,
            chat: ChatMessage {
                user_idx: UserIdx::new(7).unwrap(),
                nickname: Nickname::new("kim", 64).unwrap(),
                text: MessageText::maybe_empty(format!("message {seq} {}", "x".repeat(100)), 2000).unwrap(),
                role: Role::Viewer,
            },
            keyed: None,
        })
    })
    .collect()
}

#[test]
fn rule_03_a_spool_opened_again_goes_on_where_it_stood_also_after_a_crash() {
    let dir = ScratchDir::new("spool");
    let path = dir.path().join("chat.db");
    let (mut spool, first) = open(&path, Durability::Disk, None);
    assert_eq!(
        spool.last_seq(room(1)).unwrap(),
        LastSeq::AskStore,
        "a new spool does not know"
    );
    spool.store_is_empty().unwrap();
    assert_eq!(spool.last_seq(room(1)).unwrap(), LastSeq::Known(Seq(0)));
    let written = events(&first, 1, 1..=5);
    let pos = spool.commit(&written).unwrap();
    assert_eq!((first.first, first.last, pos), (1, 0, 1));
    drop(spool); // no `close`: as a crash leaves it
    let (mut spool, again) = open(&path, Durability::Disk, None);
    assert_eq!(
        again.epoch, first.epoch,
        "with `disk` nothing that was told is lost, so the epoch goes on"
    );
    assert_eq!((again.first, again.last), (1, 5));
    assert_eq!(again.last_ms, written[4].sent_at_ms, "rule 5: times go on from there");
    assert_eq!(spool.last_seq(room(1)).unwrap(), LastSeq::Known(Seq(5)));
    assert_eq!(
        spool
            .read(0, 10)
            .unwrap()
            .iter()
            .map(|(_, event)| Arc::clone(event))
            .collect::<Vec<_>>(),
        written
    );
    spool.free(5, &[], 0).unwrap();
    drop(spool);
    let (mut spool, empty) = open(&path, Durability::Disk, None);
    assert!(empty.first > empty.last);
    assert_eq!(empty.last_ms, written[4].sent_at_ms);
    assert_eq!(spool.last_seq(room(1)).unwrap(), LastSeq::Known(Seq(5)), "from `rooms`");
}

#[actix_web::test]
async fn commits_are_measured_also_where_senders_are_answered_from_memory() {
    let app = spawn_app(|settings| settings.log.durability = chatting_server::settings::Durability::Memory).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    for text in ["1", "2", "3"] {
        assert_eq!(app.post(12, 7, text).await.status, 201);
    }
    eventually("three events in commits that took time", async || {
        let events = app.metric("chat_commit_events_sum").await == Some(3.0);
        let took = app.metric("chat_commit_seconds_sum").await > Some(0.0);
        (events && took).then_some(())
    })
    .await;
    assert_eq!(
        app.metric("chat_commit_seconds_count").await,
        app.metric("chat_commit_events_count").await
    );
}

#[actix_web::test]
async fn a_stop_that_loses_what_was_answered_from_memory_is_none_in_order_and_a_new_epoch_begins() {
    let dir = ScratchDir::new("lost");
    let mut settings = settings(&dir);
    settings.log.durability = chatting_server::settings::Durability::Memory;
    let app = spawn_in(Arc::clone(&dir), settings).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "written").await.status, 201);
    assert_eq!(app.sqlite_log(12).await.len(), 1);
    let spool = rusqlite::Connection::open(&app.settings.log.path).unwrap();
    let takes_nothing = "CREATE TRIGGER no BEFORE INSERT ON spool BEGIN SELECT RAISE(ABORT, 'no'); END";
    spool.execute_batch(takes_nothing).unwrap();
    let lost = app.post(12, 7, "lost").await.json();
    assert_eq!(lost["seq"], 2);
    let (stopped, dir, settings) = app.stop().await;
    assert_eq!(stopped, Stopped::Lost);
    spool.execute_batch("DROP TRIGGER no").unwrap();
    let app = spawn_in(dir, settings).await;
    let _presenter = app.presenter(12).await;
    let next = app.post(12, 7, "next").await.json();
    assert_eq!(next["seq"], 2, "nobody has the one that was lost");
    assert_ne!(next["epoch"], lost["epoch"]);
    let (stopped, ..) = app.stop().await;
    assert_eq!(stopped, Stopped::InOrder);
}

#[test]
fn the_epoch_changes_after_an_unclean_stop_under_os_or_memory_and_only_then() {
    for durability in [Durability::Os, Durability::Memory] {
        let dir = ScratchDir::new("epoch");
        let path = dir.path().join("chat.db");
        let (mut spool, first) = open(&path, durability, None);
        spool.close();
        drop(spool);
        let (spool, clean) = open(&path, durability, None);
        assert_eq!(clean.epoch, first.epoch);
        drop(spool);
        let (_, unclean) = open(&path, durability, None);
        assert_ne!(unclean.epoch, first.epoch);
    }
}

/// A place at 40 whose next legacy session goes on from there.
fn place(presenter: i64, legacy_from: Option<u64>) -> Place {
    Place {
        presenter: room(presenter),
        over: Seq(10),
        position: Seq(40),
        legacy_from: legacy_from.map(Seq),
        room_idx: None,
        session_at_ms: None,
        saved_at_ms: 1,
    }
}

/// Where legacy sessions of the rooms 1, 2 and 3 go on.
fn legacy_from(spool: &mut SqliteSpool) -> [Option<u64>; 3] {
    [1, 2, 3].map(|presenter| {
        spool
            .place(room(presenter))
            .unwrap()
            .unwrap()
            .legacy_from
            .map(|from| from.0)
    })
}

#[test]
fn rule_11_where_a_legacy_session_goes_on_is_a_number_of_one_epoch_and_of_no_other() {
    let dir = ScratchDir::new("places");
    let path = dir.path().join("chat.db");
    let (mut spool, first) = open(&path, Durability::Os, None);
    let kept = [(1, Some(40)), (2, Some(60)), (3, None)].map(|(presenter, from)| place(presenter, from));
    spool.keep_places(&kept).unwrap();
    spool.close();
    drop(spool);
    let (mut spool, clean) = open(&path, Durability::Os, None);
    assert_eq!(clean.epoch, first.epoch);
    assert_eq!(legacy_from(&mut spool), [Some(40), Some(60), None]);
    assert_eq!(spool.place(room(2)).unwrap(), Some(kept[1]));
    drop(spool); // no `close`: as a crash leaves it
    let (mut spool, unclean) = open(&path, Durability::Os, None);
    assert_ne!(unclean.epoch, first.epoch);
    assert_eq!(legacy_from(&mut spool), [None; 3]);
    let (over, position) = spool
        .place(room(2))
        .unwrap()
        .map(|place| (place.over, place.position))
        .unwrap();
    assert_eq!((over, position), (Seq(10), Seq(40)), "what was missed is still told");
    spool.keep_places(&[place(2, Some(61))]).unwrap();
    assert_eq!(legacy_from(&mut spool), [None, Some(61), None]);
}

#[test]
fn rule_11_a_place_tells_an_earlier_version_and_is_told_by_one_no_more_than_that_knows() {
    let dir = ScratchDir::new("places-before");
    let path = dir.path().join("chat.db");
    let (mut spool, _) = open(&path, Durability::Disk, None);
    let kept = [(1, Some(40)), (2, Some(60)), (3, None)].map(|(presenter, from)| place(presenter, from));
    spool.keep_places(&kept).unwrap();
    spool.close();
    drop(spool);
    let file = rusqlite::Connection::open(&path).unwrap();
    let mut statement = file.prepare("SELECT exact FROM places ORDER BY presenter_idx").unwrap();
    let exact: Vec<bool> = statement.query_map([], |row| row.get(0)).unwrap().flatten().collect();
    assert_eq!(exact, [true, false, false]);
    drop(statement);
    // As it makes the table, and keeps places.
    file.execute_batch("ALTER TABLE places DROP COLUMN legacy_from")
        .unwrap();
    let keep =
        "INSERT OR REPLACE INTO places(presenter_idx, epoch, over, position, exact, room_idx, session_at, saved_at)
                SELECT presenter_idx, epoch, over, 50, presenter_idx = 2, room_idx, session_at, saved_at FROM places";
    file.execute_batch(keep).unwrap();
    for _ in 0..2 {
        let (mut spool, _) = open(&path, Durability::Disk, None);
        assert_eq!(legacy_from(&mut spool), [None, Some(50), None]);
    }
    let (mut spool, _) = open(&path, Durability::Disk, None);
    spool.keep_places(&kept).unwrap();
    // And where this one has had it in between.
    file.execute_batch(keep).unwrap();
    assert_eq!(legacy_from(&mut spool), [None, Some(50), None]);
}

#[test]
fn a_spool_at_its_limit_refuses_and_takes_events_again_when_rows_were_freed() {
    let dir = ScratchDir::new("limit");
    let (mut spool, info) = open(&dir.path().join("chat.db"), Durability::Disk, Some(1 << 20));
    let all = events(&info, 1, 1..=20_000);
    let mut last = 0;
    let error = all.chunks(100).find_map(|batch| match spool.commit(batch) {
        Ok(first) => {
            last = first + 99;
            None
        }
        Err(error) => Some(error),
    });
    assert_eq!(error.unwrap().fault, SpoolFault::Full);
    assert!(last > 1000, "only {last} fitted");
    assert!(spool.bytes() <= 1 << 20);
    spool.free(last, &[], 0).unwrap();
    spool.probe().unwrap();
    assert_eq!(spool.commit(&all[..100]).unwrap(), last + 1);
}

#[test]
fn a_spool_that_was_opened_again_is_held_to_its_limit_as_before() {
    let dir = ScratchDir::new("limit-reopened");
    let (mut spool, info) = open(&dir.path().join("chat.db"), Durability::Disk, Some(1 << 20));
    let all = events(&info, 1, 1..=20_000);
    spool.commit(&all[..100]).unwrap();
    assert_eq!(spool.reopen_and_find(&all[100]).unwrap(), None);
    let error = all[100..].chunks(100).find_map(|batch| spool.commit(batch).err());
    assert_eq!(error.unwrap().fault, SpoolFault::Full);
    assert!(spool.bytes() <= 1 << 20);
}

#[test]
fn a_full_spool_that_the_store_refuses_altogether_is_parked_and_takes_events_again_when_that_is_replayed() {
    let dir = ScratchDir::new("limit-parked");
    let (mut spool, info) = open(&dir.path().join("chat.db"), Durability::Disk, Some(1 << 20));
    let all = events(&info, 1, 1..=20_000);
    let committed = all.chunks(100).take_while(|batch| spool.commit(batch).is_ok()).count() * 100;
    assert!((1000..all.len()).contains(&committed), "{committed} fitted");
    let mut parked = 0;
    while parked < committed {
        let rows = spool.read(0, 1000).unwrap();
        let last = rows.last().unwrap().0;
        parked += rows.len();
        let refused: Vec<_> = rows.into_iter().map(|(pos, event)| (pos, event, "no".into())).collect();
        spool.free(last, &refused, 0).unwrap();
    }
    assert_eq!(spool.count_parked().unwrap(), committed as u64);
    // They fill it until they are replayed.
    assert_eq!(
        spool.commit(&all[committed..committed + 100]).unwrap_err().fault,
        SpoolFault::Full
    );
    let ids: Vec<_> = all[..committed].iter().map(|event| event.id).collect();
    spool.unpark(&ids, &[]).unwrap();
    spool.commit(&all[committed..committed + 100]).unwrap();
}

#[test]
fn a_full_spool_of_acts_that_stay_for_what_is_parked_can_free_its_rows_too() {
    let dir = ScratchDir::new("limit-acts");
    let (mut spool, info) = open(&dir.path().join("chat.db"), Durability::Disk, Some(1 << 20));
    let mut all = events(&info, 1, 1..=20_000);
    let refused = all.remove(0);
    let pos = spool.commit(std::slice::from_ref(&refused)).unwrap();
    spool.free(pos, &[(pos, refused, "no".into())], 0).unwrap();
    let acts: Vec<_> = all
        .into_iter()
        .map(|event| {
            let mut act = Arc::unwrap_or_clone(event);
            act.act = Some(Arc::new(Act::User {
                user_idx: UserIdx::new(7).unwrap(),
            }));
            act.chat.text = MessageText::maybe_empty(String::new(), 0).unwrap();
            Arc::new(act)
        })
        .collect();
    let committed = acts.chunks(100).take_while(|batch| spool.commit(batch).is_ok()).count() * 100;
    assert!((1000..acts.len()).contains(&committed), "{committed} fitted");
    // The store has taken all of them.
    let mut freed = 0;
    while freed < committed {
        let rows = spool.read(0, 1000).unwrap();
        freed += rows.len();
        spool.free(rows.last().unwrap().0, &[], 0).unwrap();
    }
    assert_eq!(spool.count_parked().unwrap(), committed as u64 + 1);
}

#[test]
fn a_full_spool_of_many_rooms_can_free_its_rows_too() {
    let dir = ScratchDir::new("limit-rooms");
    let (mut spool, info) = open(&dir.path().join("chat.db"), Durability::Disk, Some(1 << 20));
    // Every event ends its room's rows, so that freeing them writes as many rows of `rooms`.
    let mut last = 0;
    for room in 1.. {
        match spool.commit(&events(&info, room, 1..=1)) {
            Ok(pos) => last = pos,
            Err(error) => {
                assert_eq!(error.fault, SpoolFault::Full);
                break;
            }
        }
    }
    assert!(last > 1000, "only {last} fitted");
    spool.free(last, &[], 0).unwrap();
    assert_eq!(spool.commit(&events(&info, 1, 2..=2)).unwrap(), last + 1);
}

#[test]
fn rule_01_a_spool_that_could_not_be_opened_again_goes_on_behind_what_it_holds() {
    let dir = ScratchDir::new("reopen");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = open(&path, Durability::Disk, None);
    let all = events(&info, 1, 1..=9);
    assert_eq!(spool.commit(&all[..3]).unwrap(), 1);
    // As after a commit that took effect and failed: the rows are there, and the spool was not told.
    let copy = "INSERT INTO spool SELECT pos + 1, epoch, presenter_idx, seq + 1, ?1, sent_at, room_idx, user_idx,
                nickname, message, role, idempotency_key, broadcast_id, act FROM spool WHERE pos = 3";
    let written = rusqlite::Connection::open(&path).unwrap();
    written.execute(copy, [&all[3].id.as_bytes()[..]]).unwrap();
    drop(written);
    let aside = path.with_extension("aside");
    std::fs::rename(&path, &aside).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(spool.reopen_and_find(&all[3]).is_err());
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    assert_eq!(spool.last_seq(room(1)).unwrap(), LastSeq::Known(Seq(4)));
    assert_eq!(spool.commit(&all[4..]).unwrap(), 5);
    // And when what is looked for is not there, although something else is.
    assert_eq!(spool.reopen_and_find(&events(&info, 1, 99..=99)[0]).unwrap(), None);
    assert_eq!(spool.read(0, 100).unwrap().len(), 9);
}

/// Writes over some pages in the middle of the file.
pub fn damage(path: &Path, pages: std::ops::Range<u64>) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    for page in pages {
        file.write_all_at(&[0xa5; 4096], page * 4096).unwrap();
    }
}

#[test]
fn a_damaged_spool_is_set_aside_whole_and_what_can_be_read_is_carried_over() {
    let dir = ScratchDir::new("damage");
    let path = dir.path().join("chat.db");
    let (mut spool, first) = open(&path, Durability::Disk, None);
    spool.store_is_empty().unwrap();
    let written = events(&first, 1, 1..=5000);
    spool.commit(&written).unwrap();
    spool.close();
    drop(spool);
    // As after a crash: the tables are checked only then.
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute("UPDATE meta SET value = 0 WHERE key = 'clean'", [])
        .unwrap();
    let size = std::fs::metadata(&path).unwrap().len() / 4096;
    damage(&path, size / 2..size / 2 + 3);
    let (mut spool, again) = open(&path, Durability::Disk, None);
    assert_ne!(again.epoch, first.epoch, "a new numbering begins");
    let salvaged: Vec<_> = spool
        .read(0, 10_000)
        .unwrap()
        .into_iter()
        .map(|(_, event)| event)
        .collect();
    let whole: BTreeSet<_> = written.iter().map(|event| event.id).collect();
    assert!(
        salvaged
            .iter()
            .all(|event| whole.contains(&event.id) && event.epoch == first.epoch)
    );
    assert!(salvaged.len() > 4800, "only {} of 5000 were salvaged", salvaged.len());
    assert_eq!(salvaged.last().unwrap().seq, Seq(5000));
    assert_eq!(
        spool.last_seq(room(1)).unwrap(),
        LastSeq::AskStore,
        "rows of a damaged spool may not be the last"
    );
    assert_eq!(
        spool.learn_last_seqs(&[(room(1), Seq(3))], 0).unwrap(),
        [Seq(5000)],
        "nor may the store's"
    );
    assert_eq!(spool.last_seq(room(1)).unwrap(), LastSeq::Known(Seq(5000)));
    let there = std::fs::read_dir(dir.path()).unwrap();
    let there = there.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let copies = there.filter(|name| {
        [".reading", ".anew", ".salvaged"]
            .iter()
            .any(|copy| name.contains(copy))
    });
    assert_eq!((copies.collect::<Vec<_>>(), count_aside(dir.path())), (vec![], 1));
}

/// How many files were set aside from a spool.
pub fn count_aside(dir: &Path) -> usize {
    let kept = |name: &&String| !name.ends_with("-wal") && !name.ends_with("-shm");
    aside(dir).iter().filter(kept).count()
}

/// The same with what SQLite kept beside them.
pub fn aside(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("chat.db.damaged-")).collect()
}

/// Damages the first page of a table.
pub fn damage_table(path: &Path, table: &str) {
    let page: u64 = rusqlite::Connection::open(path)
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [table], |row| {
            row.get::<_, i64>(0)
        })
        .unwrap()
        .cast_unsigned();
    damage(path, page - 1..page);
}

#[test]
fn a_spool_that_was_stopped_cleanly_and_is_damaged_where_a_start_reads_it_is_salvaged_too() {
    for table in ["meta", "epochs", "rooms", "spool"] {
        let dir = ScratchDir::new("damage");
        let path = dir.path().join("chat.db");
        let (mut spool, first) = open(&path, Durability::Disk, None);
        spool.store_is_empty().unwrap();
        spool.commit(&events(&first, 1, 1..=5)).unwrap();
        spool.free(2, &[], 0).unwrap();
        spool.close();
        drop(spool);
        damage_table(&path, table);
        let (mut spool, again) = open(&path, Durability::Disk, None);
        assert_ne!(again.epoch, first.epoch, "{table}");
        assert_eq!(count_aside(dir.path()), 1, "{table}");
        let salvaged = spool.read(0, 10).unwrap();
        let wanted = if table == "spool" { 0 } else { 3 };
        assert_eq!(salvaged.len(), wanted, "{table}");
    }
}

#[test]
fn a_spool_that_met_damage_while_it_was_used_is_checked_by_the_next_start() {
    let dir = ScratchDir::new("damage");
    let path = dir.path().join("chat.db");
    let (mut spool, first) = open(&path, Durability::Disk, None);
    spool.commit(&events(&first, 1, 1..=5)).unwrap();
    spool.close();
    drop(spool);
    damage_table(&path, "parked");
    let (mut spool, again) = open(&path, Durability::Disk, None);
    assert_eq!(again.epoch, first.epoch, "no start reads these");
    let (pos, event) = spool.read(0, 1).unwrap().remove(0);
    spool.free(2, &[(pos, event, "no".into())], 0).unwrap_err();
    spool.close();
    drop(spool);
    let (mut spool, after) = open(&path, Durability::Disk, None);
    assert_ne!(after.epoch, first.epoch);
    assert_eq!(count_aside(dir.path()), 1);
    assert_eq!(spool.read(0, 10).unwrap().len(), 5);
    spool.free(2, &[], 0).unwrap();
}

#[actix_web::test]
async fn an_embedded_log_that_turned_out_to_be_damaged_is_salvaged_by_the_next_start() {
    let dir = ScratchDir::new("damage");
    let path = dir.path().join("chat.db");
    let stored = |spool: &SqliteSpool| SqliteStore::new(spool.connection());
    let (mut spool, first) = embedded(&path);
    let written = events(&first, 1, 1..=9);
    let store = stored(&spool);
    store.prepare().await.unwrap();
    spool.commit(&written).unwrap();
    assert_eq!(store.append(batch(&written[..5])).await.unwrap(), []);
    spool.close();
    drop((spool, store));
    damage_table(&path, "chatting_log");
    let (mut spool, again) = embedded(&path);
    assert_eq!(again.epoch, first.epoch, "no start reads a whole log");
    stored(&spool).append(batch(&written[5..])).await.unwrap_err();
    spool.close();
    drop(spool);
    let (mut spool, after) = embedded(&path);
    assert_ne!(after.epoch, first.epoch);
    assert_eq!(count_aside(dir.path()), 1);
    assert_eq!(
        spool.read(0, 10).unwrap().len(),
        9,
        "what it did not take waits in the spool"
    );
    let store = stored(&spool);
    store.prepare().await.unwrap();
    assert_eq!(store.append(batch(&written[5..])).await.unwrap(), []);
}

#[actix_web::test]
async fn damage_that_a_reader_of_the_embedded_log_meets_is_remembered_also_behind_a_kill() {
    let dir = ScratchDir::new("damage");
    let path = dir.path().join("chat.db");
    let (mut spool, first) = embedded(&path);
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let written = events(&first, 1, 1..=2000);
    spool.commit(&written).unwrap();
    assert_eq!(store.append(batch(&written)).await.unwrap(), []);
    spool.free(2000, &[], 0).unwrap();
    spool.close();
    drop((spool, store));
    damage_table(&path, "chatting_log");
    let (spool, _) = embedded(&path);
    let store = SqliteStore::new(spool.connection());
    store.find(written[1000].id).await.unwrap_err();
    drop((spool, store)); // no `close`: as a kill leaves it
    let (_, after) = embedded(&path);
    assert_ne!(after.epoch, first.epoch);
    assert_eq!(count_aside(dir.path()), 1);
}

#[test]
fn a_damaged_spool_is_not_salvaged_for_another_log_than_its_own() {
    let dir = ScratchDir::new("damage");
    let path = dir.path().join("chat.db");
    let (mut spool, first) = embedded(&path);
    spool.commit(&events(&first, 1, 1..=5)).unwrap();
    drop(spool); // no `close`: the next start checks it
    damage_table(&path, "keys");
    let other = SqliteSpool::open(SpoolSettings {
        path: path.clone(),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: false,
    });
    assert!(matches!(other, Err(OpenError::Backend { .. })), "{:?}", other.err());
    assert_eq!(count_aside(dir.path()), 0);
    let (mut spool, _) = embedded(&path);
    assert_eq!((count_aside(dir.path()), spool.read(0, 10).unwrap().len()), (1, 5));
}

#[test]
fn a_spool_of_an_earlier_version_whose_log_is_in_mongodb_is_not_bound_to_another_by_a_command() {
    let dir = ScratchDir::new("binding");
    let path = dir.path().join("chat.db");
    let forget = |path: &Path| {
        let connection = rusqlite::Connection::open(path).unwrap();
        connection
            .execute("DELETE FROM meta WHERE key = 'backend'", [])
            .unwrap();
    };
    let (mut spool, info) = open(&path, Durability::Disk, None);
    spool.commit(&events(&info, 1, 1..=5)).unwrap();
    spool.close();
    drop(spool);
    forget(&path);
    let other = || {
        SqliteSpool::open(SpoolSettings {
            path: path.clone(),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: true,
        })
    };
    assert!(matches!(other(), Err(OpenError::Backend { .. })));
    let (mut spool, _) = open(&path, Durability::Disk, None);
    spool.close();
    drop(spool);
    assert!(matches!(other(), Err(OpenError::Backend { .. })));
    // One with a log of its own may be of either.
    let path = dir.path().join("own.db");
    let (mut spool, info) = embedded(&path);
    spool.commit(&events(&info, 1, 1..=5)).unwrap();
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch("CREATE TABLE chatting_log(x); INSERT INTO chatting_log VALUES (1)")
        .unwrap();
    spool.close();
    drop(spool);
    forget(&path);
    embedded(&path);
}

#[test]
fn a_damaged_spool_is_set_aside_with_its_wal() {
    let dir = ScratchDir::new("damage");
    let (before, path) = (dir.path().join("before.db"), dir.path().join("chat.db"));
    let wal = |path: &Path| path.with_extension("db-wal");
    let (mut spool, first) = open(&before, Durability::Disk, None);
    spool.commit(&events(&first, 1, 1..=5000)).unwrap();
    let other = rusqlite::Connection::open(&before).unwrap();
    other
        .query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()))
        .unwrap();
    spool.commit(&events(&first, 2, 1..=5)).unwrap();
    // As a kill leaves it.
    std::fs::copy(&before, &path).unwrap();
    std::fs::copy(wal(&before), wal(&path)).unwrap();
    std::fs::copy(before.with_extension("db.lock"), path.with_extension("db.lock")).unwrap();
    let left = std::fs::read(wal(&path)).unwrap();
    let pages = std::fs::metadata(&path).unwrap().len() / 4096;
    damage(&path, pages / 2..pages / 2 + 3);
    let (mut again, _) = open(&path, Durability::Disk, None);
    let aside = aside(dir.path());
    let wal = aside.iter().find(|name| name.ends_with("-wal"));
    let kept = wal.map(|name| std::fs::read(dir.path().join(name)).unwrap());
    assert!(kept.as_ref() == Some(&left), "{aside:?}");
    let salvaged = again.read(0, 10_000).unwrap();
    let of = |n| {
        salvaged
            .iter()
            .filter(|(_, event)| event.presenter_idx == room(n))
            .count()
    };
    assert_eq!(of(2), 5, "what only the WAL had");
    assert!(of(1) > 4800, "{}", of(1));
}

#[test]
fn rule_03_numbers_of_a_salvaged_room_are_not_given_again_though_its_rows_went_before_the_store_was_asked() {
    let reason = "refused".to_owned();
    for (parks, restarts) in [(false, false), (true, false), (true, true)] {
        let dir = ScratchDir::new("damage");
        let path = dir.path().join("chat.db");
        let (mut spool, first) = open(&path, Durability::Disk, None);
        spool.commit(&events(&first, 1, 1..=50)).unwrap();
        spool.close();
        drop(spool);
        damage_table(&path, "rooms");
        let (mut spool, salvaged) = open(&path, Durability::Disk, None);
        let rows = spool.read(0, 100).unwrap();
        let (last, event) = rows.last().unwrap();
        assert_eq!((*last, event.seq), (salvaged.last, Seq(50)));
        let parked = [(*last, Arc::clone(event), reason.clone())];
        spool.free(*last, if parks { &parked } else { &[] }, 0).unwrap();
        if restarts {
            spool.close();
            drop(spool);
            spool = open(&path, Durability::Disk, None).0;
        }
        let case = format!("parks {parks}, restarts {restarts}");
        assert_eq!(spool.last_seq(room(1)).unwrap(), LastSeq::AskStore, "{case}");
        // It was asked before it had them, or it never took the last one.
        let told = [(room(1), Seq(3)), (room(2), Seq(4))];
        assert_eq!(spool.learn_last_seqs(&told, 0).unwrap(), [Seq(50), Seq(4)], "{case}");
        assert_eq!(spool.last_seq(room(1)).unwrap(), LastSeq::Known(Seq(50)), "{case}");
    }
}

#[actix_web::test]
async fn a_file_that_is_no_database_is_set_aside_and_the_store_tells_where_rooms_go_on() {
    let dir = ScratchDir::new("nodb");
    let mut settings = settings(&dir);
    use_mongodb(&mut settings);
    let app = spawn_in(Arc::clone(&dir), settings).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    for n in 1..=3_u64 {
        assert_eq!(app.post(12, 7, "x").await.json()["seq"], n);
    }
    crate::history::drained(&app).await;
    let before = app.post(12, 7, "x").await.json()["epoch"].clone();
    // A stop waits for the store for a moment only.
    crate::history::drained(&app).await;
    let (_, dir, settings) = app.stop().await;
    std::fs::write(
        dir.path().join("chat.db"),
        "this is no database, and longer than a header of one hundred bytes ".repeat(9),
    )
    .unwrap();
    let app = spawn_in(dir, settings).await;
    let _presenter = app.presenter(12).await;
    let next = app.post(12, 7, "x").await;
    assert_eq!((next.status, next.json()["seq"].as_u64()), (201, Some(5)), "{next:?}");
    assert_ne!(next.json()["epoch"], before);
}

#[actix_web::test]
async fn rule_04_a_row_that_cannot_be_read_is_parked_and_counts_as_parked() {
    let dir = ScratchDir::new("unreadable");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = embedded(&path);
    spool.commit(&events(&info, 12, 1..=3)).unwrap();
    spool.close();
    drop(spool);
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute("UPDATE spool SET role = 'king' WHERE pos = 2", [])
        .unwrap();
    let settings = settings(&dir);
    let app = spawn_in(dir, settings).await;
    crate::history::drained(&app).await;
    eventually("the row to be counted", async || {
        (app.metric("chat_parked_total").await == Some(1.0)).then_some(())
    })
    .await;
    assert_eq!(app.metric("chat_parked_events").await, Some(1.0));
    // It is as much missing from the log after the next start.
    let (_, dir, settings) = app.stop().await;
    let app = spawn_in(dir, settings).await;
    assert_eq!(app.metric("chat_parked_total").await, Some(0.0));
    assert_eq!(app.metric("chat_parked_events").await, Some(1.0));
}

#[test]
fn rule_04_a_value_that_is_no_number_stops_no_start_after_a_clean_stop() {
    for column in ["sent_at", "seq", "presenter_idx"] {
        for pos in [2_u64, 3] {
            let dir = ScratchDir::new("no-number");
            let path = dir.path().join("chat.db");
            let (mut spool, info) = open(&path, Durability::Disk, None);
            let written = events(&info, 12, 1..=3);
            spool.commit(&written).unwrap();
            spool.close();
            drop(spool);
            let no_number = format!("UPDATE spool SET {column} = 'x' WHERE pos = {pos}");
            let connection = rusqlite::Connection::open(&path).unwrap();
            assert_eq!(connection.execute(&no_number, []).unwrap(), 1);
            connection.close().unwrap();
            let status = || SpoolFile::open(&path).unwrap().status().unwrap();
            assert_eq!((status().events.count, status().parked.count), (3, 0), "{column} {pos}");
            // Also where nobody read it, as while the store is away.
            for _ in 0..2 {
                let (mut spool, again) = open(&path, Durability::Disk, None);
                assert_eq!(spool.found().left, Left::Cleanly, "{column} {pos}");
                assert_eq!((again.first, again.last), (1, 3), "{column} {pos}");
                spool.close();
            }
            let (mut spool, _) = open(&path, Durability::Disk, None);
            let rows = spool.read(0, 10).unwrap();
            let seqs: Vec<_> = rows.iter().map(|(_, event)| event.seq.0).collect();
            let wanted: Vec<_> = (1..=3).filter(|seq| *seq != pos).collect();
            assert_eq!(seqs, wanted, "{column} {pos}");
            assert_eq!(spool.count_parked().unwrap(), 1, "{column} {pos}");
            assert_eq!((status().events.count, status().parked.count), (2, 1), "{column} {pos}");
            let parked = status().parked.events.remove(0);
            assert!(parked.reason.starts_with("unreadable: "), "{parked:?}");
            assert_eq!(parked.seq.is_none(), column == "seq", "{parked:?}");
            spool.free(3, &[], 0).unwrap();
            assert_eq!(spool.count_left().unwrap(), 0, "{column} {pos}");
            drop(spool);
            // What is parked is asked for last seqs, too, where a salvaged spool must ask the store.
            let connection = rusqlite::Connection::open(&path).unwrap();
            connection
                .execute("INSERT INTO meta(key, value) VALUES ('salvaged', 1)", [])
                .unwrap();
            connection.close().unwrap();
            open(&path, Durability::Disk, None);
        }
    }
}

#[actix_web::test]
async fn rule_05_a_spool_that_knows_no_time_goes_on_behind_the_newest_in_the_store() {
    for mongodb in [false, true] {
        let dir = ScratchDir::new("newest");
        let mut settings = settings(&dir);
        let store: Arc<dyn Archive> = if mongodb {
            let store = mongo().await;
            use_mongodb(&mut settings);
            settings.mongodb.database = store.database().await.unwrap().name().to_owned();
            Arc::new(store)
        } else {
            let (spool, _) = embedded(&dir.path().join("chat.db"));
            Arc::new(SqliteStore::new(spool.connection()))
        };
        store.prepare().await.unwrap();
        // As if the clock had been an hour further when this was said. The spool knows nothing of it.
        let later = chatting_actors::clock::system_ms() + 3_600_000;
        let said = message(later, 13, "before", 1, 7, "x");
        let poison = store.append(batch(&shared([said.clone()]))).await;
        assert_eq!(poison.unwrap(), []);
        drop(store);
        let app = spawn_in(dir, settings).await;
        app.go_live(12);
        let _presenter = app.presenter(12).await;
        let next = app.post(12, 7, "x").await;
        assert_eq!(next.status, 201, "{next:?}");
        let sent_at: jiff::Timestamp = next.json()["sent_at"].as_str().unwrap().parse().unwrap();
        assert!(sent_at.as_millisecond() >= later, "{next:?}");
        let id: uuid::Uuid = next.json()["id"].as_str().unwrap().parse().unwrap();
        assert!(id > said.id, "{next:?}");
    }
}

#[actix_web::test]
async fn rule_05_the_newest_time_of_a_store_is_known_where_the_rest_of_that_event_cannot_be_read_or_nothing_is_told() {
    let dir = ScratchDir::new("newest-unread");
    let path = dir.path().join("chat.db");
    let (spool, _) = embedded(&path);
    let (sqlite, mongodb) = (SqliteStore::new(spool.connection()), mongo().await);
    let stores: [&dyn Archive; 2] = [&sqlite, &mongodb];
    for store in stores {
        store.prepare().await.unwrap();
        assert_eq!(store.newest_ms().await.unwrap(), 0);
        let said = message(1_767_225_600_123, 13, "before", 1, 7, "x");
        assert_eq!(store.append(batch(&shared([said]))).await.unwrap(), []);
    }
    let log = mongodb.database().await.unwrap().collection::<Document>("chatting_log");
    let row = rusqlite::Connection::open(&path).unwrap();
    log.update_many(doc! {}, doc! { "$set": { "role": "king" } })
        .await
        .unwrap();
    row.execute("UPDATE chatting_log SET role = 'king'", []).unwrap();
    for found in [sqlite.found().await.unwrap(), mongodb.found().await.unwrap()] {
        assert_eq!(found.newest_ms(), 1_767_225_600_123);
        let told = found.to_string();
        let unread = "the newest event, 2026-01-01T00:00:00.123Z, cannot be read: ";
        assert!(told.contains(unread) && told.contains("role"), "{told}");
    }
    for store in stores {
        assert_eq!(store.newest_ms().await.unwrap(), 1_767_225_600_123);
    }
    // Else one by a clock that was set back would come before it.
    log.update_many(doc! {}, doc! { "$set": { "sent_at": "soon" } })
        .await
        .unwrap();
    row.execute("UPDATE chatting_log SET sent_at = 'soon'", []).unwrap();
    assert!(sqlite.found().await.is_err() && mongodb.found().await.is_err());
    for store in stores {
        assert!(store.newest_ms().await.is_err());
    }
}

#[test]
fn rule_05_the_stores_newest_time_is_kept_with_the_number_of_a_room_that_it_was_asked_for() {
    let dir = ScratchDir::new("newest-kept");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = open(&path, Durability::Disk, None);
    let later = chatting_actors::clock::system_ms() + 3_600_000;
    for newest in [later, later - 1] {
        spool.learn_last_seqs(&[(room(1), Seq(3))], newest).unwrap();
    }
    // What is older does not take it back, as rows of a salvaged spool are.
    let first = spool.commit(&events(&info, 2, 1..=2)).unwrap();
    spool.free(first, &[], 0).unwrap();
    spool.close();
    drop(spool);
    assert_eq!(open(&path, Durability::Disk, None).1.last_ms, later);
}

#[actix_web::test]
async fn rule_05_a_spool_that_knows_no_time_learns_it_from_a_store_that_was_away_at_the_start() {
    let mongod = Mongod::start_own().await;
    let dir = ScratchDir::new("newest");
    let mut settings = settings(&dir);
    use_mongodb(&mut settings);
    settings.mongodb.uri = Secret::new(mongod.uri());
    settings.mongodb.connect_timeout_ms = 300;
    settings.mongodb.write_timeout_ms = 1000;
    let before = MongoSettings {
        uri: mongod.uri(),
        database: settings.mongodb.database.clone(),
        connect_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(30),
        connections: 10,
    };
    let store = MongoStore::new(&before).await.unwrap();
    store.prepare().await.unwrap();
    let later = chatting_actors::clock::system_ms() + 3_600_000;
    let said = message(later, 13, "before", 1, 7, "x");
    assert_eq!(store.append(batch(&shared([said.clone()]))).await.unwrap(), []);
    mongod.freeze();
    let app = spawn_in(dir, settings).await;
    app.go_live(12);
    mongod.thaw();
    let _presenter = app.presenter(12).await;
    let next = eventually("the store to have told", async || {
        let next = app.post(12, 7, "x").await;
        (next.status == 201).then(|| next.json())
    })
    .await;
    let sent_at: jiff::Timestamp = next["sent_at"].as_str().unwrap().parse().unwrap();
    assert!(sent_at.as_millisecond() >= later, "{next}");
    let id: uuid::Uuid = next["id"].as_str().unwrap().parse().unwrap();
    assert!(id > said.id, "{next}");
}

#[test]
fn what_is_salvaged_of_an_epoch_whose_name_is_lost_is_not_taken_for_the_one_that_begins() {
    let dir = ScratchDir::new("nameless");
    let path = dir.path().join("chat.db");
    let (mut spool, first) = open(&path, Durability::Disk, None);
    spool.store_is_empty().unwrap();
    let written = events(&first, 1, 1..=20);
    spool.commit(&written).unwrap();
    spool.close();
    drop(spool);
    let connection = rusqlite::Connection::open(&path).unwrap();
    let sql = "UPDATE meta SET value = 0 WHERE key = 'clean'; PRAGMA wal_checkpoint(TRUNCATE)";
    connection.execute_batch(sql).unwrap();
    let sql = "SELECT rootpage FROM sqlite_master WHERE name = 'epochs'";
    let page: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
    drop(connection);
    let page = page.unsigned_abs() - 1;
    damage(&path, page..page + 1);
    let (mut spool, again) = open(&path, Durability::Disk, None);
    let salvaged = spool.read(0, 100).unwrap();
    let ids = |event: &Arc<Event>| (event.id, event.seq);
    let salvaged_ids: Vec<_> = salvaged.iter().map(|(_, event)| ids(event)).collect();
    assert_eq!(salvaged_ids, written.iter().map(ids).collect::<Vec<_>>());
    let names: BTreeSet<_> = salvaged.iter().map(|(_, event)| event.epoch.0.clone()).collect();
    assert_eq!(names.len(), 1, "they are of one numbering");
    assert!(
        !names.contains(&again.epoch.0) && again.epoch != first.epoch,
        "{names:?}"
    );
    spool.commit(&events(&again, 1, 1..=1)).unwrap();
    assert_eq!(spool.read(20, 100).unwrap()[0].1.epoch, again.epoch);
}

#[actix_web::test]
async fn rule_04_an_old_copy_of_the_spool_that_is_put_back_begins_a_new_epoch_and_nothing_is_parked() {
    let say = async |app: &TestApp, text: &str, was_behind: f64| {
        app.go_live(12);
        let _presenter = app.presenter(12).await;
        let answer = app.post(12, 7, text).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        crate::history::drained(app).await;
        assert_eq!(app.metric("chat_parked_events").await, Some(0.0), "{text}");
        assert_eq!(app.metric("chat_spool_was_behind").await, Some(was_behind), "{text}");
        answer.json()
    };
    let seq_of = |answer: &serde_json::Value| answer["seq"].as_u64().unwrap();
    let dir = ScratchDir::new("old-copy");
    let mut settings = settings(&dir);
    use_mongodb(&mut settings);
    let app = spawn_in(dir, settings).await;
    let first = say(&app, "first", 0.0).await;
    let (_, dir, settings) = app.stop().await;
    let [path, copy] = ["chat.db", "copy.db"].map(|name| dir.path().join(name));
    std::fs::copy(&path, &copy).unwrap();
    let app = spawn_in(dir, settings).await;
    let second = say(&app, "second", 0.0).await;
    let (_, dir, settings) = app.stop().await;
    // As by a snapshot of its volume.
    std::fs::copy(&copy, &path).unwrap();
    let app = spawn_in(dir, settings).await;
    let third = say(&app, "third", 1.0).await;
    assert_eq!(first["epoch"], second["epoch"]);
    assert_ne!(second["epoch"], third["epoch"]);
    // Who reads on behind what the log had finds it.
    assert_eq!(seq_of(&third), seq_of(&second) + 1);
    // It is the server's own from then on.
    let (_, dir, settings) = app.stop().await;
    let app = spawn_in(dir, settings).await;
    let fourth = say(&app, "fourth", 0.0).await;
    assert_eq!(third["epoch"], fourth["epoch"]);
    assert_eq!(seq_of(&fourth), seq_of(&third) + 1);
    let history = app.state.history.store();
    let mut stored = Vec::new();
    for answer in [&first, &second, &third, &fourth] {
        let id = answer["id"].as_str().unwrap().parse().unwrap();
        stored.extend(history.find(id).await.unwrap());
    }
    assert_eq!(stored.len(), 4);
}

#[test]
fn rule_07_a_spool_is_one_by_whatever_link_it_is_named() {
    let dir = ScratchDir::new("linked");
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("big")).unwrap();
    std::os::unix::fs::symlink("second.db", path("first.db")).unwrap();
    // Nothing is there yet where this leads to.
    std::os::unix::fs::symlink(path("big/chat.db"), path("second.db")).unwrap();
    let (_spool, _) = open(&path("first.db"), Durability::Disk, None);
    assert!(path("big/chat.db").exists() && path("big/chat.db.lock").exists());
    for name in ["first.db", "second.db", "big/chat.db"] {
        let refused = SqliteSpool::open(SpoolSettings {
            path: path(name),
            durability: Durability::Disk,
            max_bytes: None,
            embedded: false,
        });
        let error = refused.err().unwrap().to_string();
        assert!(error.contains("big/chat.db is in use by process"), "{name}: {error}");
        let status = SpoolFile::open(&path(name)).unwrap().status().unwrap();
        assert_eq!(status.held_by, Some(format!("process {}", std::process::id())));
        assert!(status.wal_bytes > 0, "{name}");
    }
}

#[test]
fn rule_01_a_commit_is_not_begun_while_the_file_cannot_be_opened_again() {
    let dir = ScratchDir::new("closed");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = open(&path, Durability::Disk, None);
    let all = events(&info, 1, 1..=2);
    // As a backup does: it keeps the WAL, which is to be trusted no more after an I/O error.
    let reader = rusqlite::Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT COUNT(*) FROM spool").unwrap();
    spool.commit(&all[..1]).unwrap();
    spool.reopen_and_find(&all[0]).unwrap_err();
    let error = spool.commit(&all[1..]).unwrap_err();
    assert_eq!(error.fault, SpoolFault::NotBegun, "{error:?}");
    drop(reader);
    assert_eq!(spool.commit(&all[1..]).unwrap(), 2);
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TRIGGER no BEFORE INSERT ON spool BEGIN SELECT RAISE(ABORT, 'no'); END")
        .unwrap();
    assert_eq!(spool.commit(&all[1..]).unwrap_err().fault, SpoolFault::Unsure);
}

/// A small file system, where the server of this very process can use it: so not in a namespace of its own. It goes with us,
/// however we end: who mounted it waits for the end of a pipe of ours, and unmounts it.
pub struct SmallDisk {
    pub dir: Arc<ScratchDir>,
    holder: Child,
}

impl SmallDisk {
    /// `None` where we may not mount one.
    pub fn mount() -> Option<Self> {
        Self::mount_of(8)
    }

    /// The same, of so many megabytes.
    fn mount_of(megabytes: usize) -> Option<Self> {
        let dir = ScratchDir::new("disk");
        let script = r#"mount -t tmpfs -o size="$2"m tmpfs "$1" && echo mounted && { read -r over; umount -l "$1"; rmdir "$1"; }"#;
        let mut holder = Command::new("/bin/sh")
            .args(["-c", script, "sh"])
            .arg(dir.path())
            .arg(megabytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0) // Ctrl-C is for the test run.
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        let this = Self { dir, holder };
        (said == "mounted\n").then_some(this)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

async fn refused_as_log_unavailable(app: &TestApp) {
    let refused = eventually("the disk to be full", async || {
        let answer = app.post(12, 7, &"x".repeat(2000)).await;
        (answer.status != 201).then_some(answer)
    })
    .await;
    assert_eq!(
        (refused.status, refused.json()["code"].as_str()),
        (503, Some("log_unavailable")),
        "{refused:?}"
    );
    assert!(refused.header("retry-after").is_some());
}

#[actix_web::test]
async fn a_full_disk_is_log_unavailable_without_a_crash_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: no right to mount a small file system here");
        return;
    };
    let dir = ScratchDir::new("full");
    let mut settings = settings(&dir);
    settings.log.path = disk.dir.path().join("chat.db").display().to_string();
    let app = spawn_in(dir, settings).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "fits").await.status, 201);
    let ballast = disk.dir.path().join("ballast");
    let mut filling = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut filling, &[0; 65536]).is_ok() {}
    let reader = actix_web::rt::spawn(async move {
        let mut seen = 0;
        while presenter.next_json().await["message"] != "end" {
            seen += 1;
        }
        seen
    });
    refused_as_log_unavailable(&app).await;
    assert_eq!(get(app.addr, "/livez").await.status, 200);
    eventually("not ready", async || {
        (get(app.addr, "/readyz").await.status == 503).then_some(())
    })
    .await;
    drop(filling);
    std::fs::remove_file(ballast).unwrap();
    eventually("room again", async || {
        (get(app.addr, "/readyz").await.status == 200).then_some(())
    })
    .await;
    let answer = eventually("it to go on", async || {
        let answer = app.post(12, 7, "end").await;
        (answer.status == 201).then_some(answer)
    })
    .await;
    let accepted = answer.json()["seq"].as_u64().unwrap();
    assert_eq!(
        reader.await.unwrap() + 1,
        accepted,
        "the presenter saw exactly what has a number"
    );
    let log = app.sqlite_log(12).await;
    assert_eq!(
        log.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(),
        (1..=accepted).collect::<Vec<_>>()
    );
}

const RESERVE: u64 = 6 << 20;

/// Commits until the disk is full; returns the last that went in.
fn fill(spool: &mut SqliteSpool, info: &SpoolInfo, seq: &mut u64) -> i64 {
    let mut last = 0;
    loop {
        let batch = events(info, 1, *seq + 1..=*seq + 500);
        match spool.commit(&batch) {
            Ok(first) => {
                last = first + 499;
                *seq += 500;
            }
            Err(error) => {
                assert_eq!(error.fault, SpoolFault::Full, "{error}");
                assert_eq!(
                    spool.probe().unwrap_err().fault,
                    SpoolFault::Full,
                    "it is not given up while there is something to free"
                );
                return last;
            }
        }
    }
}

/// As the drain does it when the store is there again.
fn free_all(spool: &mut SqliteSpool) {
    let mut after = 0;
    while let Some((through, _)) = spool.read(after, 1000).unwrap().pop() {
        spool.free(through, &[], 0).unwrap();
        after = through;
    }
    spool.probe().unwrap();
}

#[test]
fn a_spool_that_has_filled_its_disk_itself_can_be_freed_again_and_again_without_more_room() {
    let Some(disk) = SmallDisk::mount_of(24) else {
        eprintln!("skipped: no right to mount a small file system here");
        return;
    };
    let path = disk.dir.path().join("chat.db");
    let reserve = disk.dir.path().join("chat.db.reserve");
    let (mut spool, info) = open(&path, Durability::Disk, None);
    spool.store_is_empty().unwrap();
    spool.keep_reserve(RESERVE);
    let mut seq = 0;
    fill(&mut spool, &info, &mut seq);
    assert!(seq > 10_000 && reserve.exists(), "{seq}");
    free_all(&mut spool);
    assert!(!reserve.exists());
    // The store goes away again, and the reserve is not there yet.
    for _ in 0..2 {
        let before = seq;
        fill(&mut spool, &info, &mut seq);
        assert!(seq > before + 5000, "{before} {seq}");
        free_all(&mut spool);
    }
    // Nor is it after a restart.
    assert!(spool.close());
    drop(spool);
    let (mut spool, info) = open(&path, Durability::Disk, None);
    spool.keep_reserve(RESERVE);
    assert!(!reserve.exists());
    fill(&mut spool, &info, &mut seq);
    free_all(&mut spool);
}

#[test]
fn a_spool_that_is_opened_on_the_disk_that_it_has_filled_can_be_freed() {
    for stopped in [true, false] {
        let Some(disk) = SmallDisk::mount_of(24) else {
            eprintln!("skipped: no right to mount a small file system here");
            return;
        };
        let path = disk.dir.path().join("chat.db");
        let (mut spool, info) = open(&path, Durability::Disk, None);
        spool.store_is_empty().unwrap();
        spool.keep_reserve(RESERVE);
        let mut seq = 0;
        fill(&mut spool, &info, &mut seq);
        if stopped {
            spool.close();
        }
        drop(spool);
        // What is left on the disk, to the last byte.
        let mut filling = std::fs::File::create(disk.dir.path().join("ballast")).unwrap();
        while std::io::Write::write_all(&mut filling, &[0]).is_ok() {}
        let (mut spool, again) = open(&path, Durability::Disk, None);
        assert_eq!(again.last, seq.cast_signed(), "stopped: {stopped}");
        // A server that starts does so, `spool replay` does not.
        if stopped {
            spool.keep_reserve(RESERVE);
        }
        free_all(&mut spool);
    }
}

#[test]
fn a_small_spool_that_has_given_up_its_reserve_or_never_had_it_leaves_enough_of_the_disk_to_be_freed() {
    const RESERVE: u64 = 16 << 20;
    for (disk, others) in [(48, true), (18, false), (12, false)] {
        let Some(disk) = SmallDisk::mount_of(disk) else {
            eprintln!("skipped: no right to mount a small file system here");
            return;
        };
        let (mut spool, info) = open(&disk.dir.path().join("chat.db"), Durability::Disk, None);
        spool.store_is_empty().unwrap();
        spool.keep_reserve(RESERVE);
        let reserve = disk.dir.path().join("chat.db.reserve");
        assert_eq!(reserve.exists(), others);
        if others {
            let mut filling = std::fs::File::create(disk.dir.path().join("ballast")).unwrap();
            while std::io::Write::write_all(&mut filling, &[0; 4096]).is_ok() {}
            spool.probe().unwrap();
            assert!(!reserve.exists());
        }
        let mut seq = 0;
        for _ in 0..3 {
            let before = seq;
            for batch in [500, 20, 1] {
                let full = loop {
                    match spool.commit(&events(&info, 1, seq + 1..=seq + batch)) {
                        Ok(_) => seq += batch,
                        Err(error) => break error,
                    }
                };
                assert_eq!(full.fault, SpoolFault::Full, "{full}");
            }
            assert!(seq > before + 2000, "{before} {seq}");
            free_all(&mut spool);
        }
    }
}

#[actix_web::test]
async fn a_spool_without_its_reserve_takes_events_again_when_there_is_room_though_nothing_is_freed_or_tried_but_that() {
    const RESERVE: u64 = 16 << 20;
    let Some(disk) = SmallDisk::mount_of(64) else {
        eprintln!("skipped: no right to mount a small file system here");
        return;
    };
    let ballast = disk.dir.path().join("ballast");
    std::fs::write(&ballast, vec![0; 44 << 20]).unwrap();
    let (mut spool, info) = open(&disk.dir.path().join("chat.db"), Durability::Memory, None);
    spool.store_is_empty().unwrap();
    spool.keep_reserve(RESERVE);
    let mut seq = 0;
    let mut take = async || {
        let taken = spool.commit(&events(&info, 1, seq + 1..=seq + 500));
        seq += 500;
        taken.is_ok().then_some(())
    };
    while take().await.is_some() {}
    std::fs::remove_file(&ballast).unwrap();
    eventually("it to take events again", take).await;
    let reserve = std::fs::metadata(disk.dir.path().join("chat.db.reserve")).unwrap();
    assert_eq!(reserve.len(), RESERVE);
}

#[actix_web::test]
async fn a_disk_that_the_spool_filled_while_mongodb_was_away_is_freed_without_more_room_when_it_is_back() {
    let Some(disk) = SmallDisk::mount_of(16) else {
        eprintln!("skipped: no right to mount a small file system here");
        return;
    };
    let mut mongod = Mongod::start_own().await;
    let dir = ScratchDir::new("filled");
    let mut settings = settings(&dir);
    use_mongodb(&mut settings);
    settings.mongodb.uri = Secret::new(mongod.uri());
    settings.mongodb.connect_timeout_ms = 1000;
    settings.log.path = disk.dir.path().join("chat.db").display().to_string();
    settings.log.reserve_bytes = 5 << 20;
    settings.log.retry_max_ms = 500;
    settings.log.commit_interval_us = 0;
    let app = spawn_in(dir, settings).await;
    app.go_live(12);
    let mut presenter = app.presenter(12).await;
    // It takes what comes, for as long as any does.
    let reader = actix_web::rt::spawn(async move {
        loop {
            presenter.next_json().await;
        }
    });
    assert_eq!(app.post(12, 7, "first").await.status, 201);
    assert_eq!(app.metric("chat_spool_reserve_bytes").await, Some(f64::from(5 << 20)));
    mongod.kill().await;
    let mut client = app.client().await;
    let (token, text) = (app.token(7), "가".repeat(2000));
    let mut accepted = 1;
    let refused = loop {
        let answer = post_v1(&mut client, 12, &token, &text).await;
        if answer.status != 201 {
            break answer;
        }
        accepted += 1;
    };
    assert_eq!(refused.json()["code"], "log_unavailable", "{refused:?}");
    reader.abort();
    assert!(accepted > 500, "{accepted}");
    mongod.restart().await;
    eventually("the spool to be drained", async || {
        (app.metric("chat_spool_events").await == Some(0.0)).then_some(())
    })
    .await;
    eventually("a message to be accepted", async || {
        (app.post(12, 7, "last").await.status == 201).then_some(())
    })
    .await;
    assert_eq!(app.metric("chat_spool_reserve_bytes").await, Some(0.0), "it was needed");
    let missing = app.metric("chat_spool_reserve_missing_bytes").await;
    assert_eq!(missing, Some(f64::from(5 << 20)));
    let limit = app.metric("chat_spool_max_bytes").await.unwrap();
    assert!(limit > 0.0 && limit < f64::from(16 << 20), "it grows no more: {limit}");
    assert_eq!(app.metric("chat_parked_events").await, Some(0.0));
    let (stopped, ..) = app.stop().await;
    assert_eq!(stopped, Stopped::InOrder);
}

#[actix_web::test]
async fn a_message_that_was_answered_from_memory_is_not_lost_where_others_have_filled_the_disk_of_an_empty_spool() {
    let Some(disk) = SmallDisk::mount_of(24) else {
        eprintln!("skipped: no right to mount a small file system here");
        return;
    };
    let dir = ScratchDir::new("answered");
    let mut settings = settings(&dir);
    use_mongodb(&mut settings);
    settings.log.path = disk.dir.path().join("chat.db").display().to_string();
    settings.log.reserve_bytes = 8 << 20;
    settings.log.durability = chatting_server::settings::Durability::Memory;
    let app = spawn_in(dir, settings).await;
    app.go_live(12);
    let _presenter = app.presenter(12).await;
    assert_eq!(app.post(12, 7, "first").await.status, 201);
    eventually("the spool to be empty", async || {
        (app.metric("chat_spool_events").await == Some(0.0)).then_some(())
    })
    .await;
    let mut filling = std::fs::File::create(disk.dir.path().join("ballast")).unwrap();
    while std::io::Write::write_all(&mut filling, &[0; 4096]).is_ok() {}
    assert_eq!(app.post(12, 7, &"x".repeat(2000)).await.status, 201);
    eventually("the reserve to be given up for it", async || {
        (app.metric("chat_spool_reserve_bytes").await == Some(0.0)).then_some(())
    })
    .await;
    eventually("another one to be accepted", async || {
        (app.post(12, 7, "last").await.status == 201).then_some(())
    })
    .await;
    let (stopped, ..) = app.stop().await;
    assert_eq!(stopped, Stopped::InOrder);
}

#[test]
fn a_salvage_that_fails_leaves_everything_as_it_was_for_the_next_start() {
    let dir = ScratchDir::new("again");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = open(&path, Durability::Disk, None);
    spool.store_is_empty().unwrap();
    let written = events(&info, 1, 1..=3000);
    spool.commit(&written).unwrap();
    spool.close();
    drop(spool);
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute("UPDATE meta SET value = 0 WHERE key = 'clean'", [])
        .unwrap();
    let page: i64 = connection
        .query_row("SELECT rootpage FROM sqlite_master WHERE name = 'rooms'", [], |row| {
            row.get(0)
        })
        .unwrap();
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(connection);
    let page = u64::try_from(page).unwrap() - 1;
    damage(&path, page..page + 1);
    let settings = SpoolSettings {
        path: path.clone(),
        durability: Durability::Disk,
        max_bytes: Some(64 << 20),
        embedded: false,
    };
    // Something is in the way of the file that is to be built.
    let beside = dir.path().join("chat.db.anew");
    std::fs::create_dir(&beside).unwrap();
    assert!(SqliteSpool::open(settings.clone()).is_err());
    std::fs::remove_dir(&beside).unwrap();
    let (mut spool, _) = SqliteSpool::open(settings).unwrap();
    assert_eq!(spool.read(0, 10_000).unwrap().len(), 3000);
}

#[test]
fn a_commit_that_landed_although_it_failed_does_not_block_the_next() {
    let dir = ScratchDir::new("landed");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = open(&path, Durability::Disk, None);
    spool.store_is_empty().unwrap();
    let all = events(&info, 1, 1..=4);
    assert_eq!(spool.commit(&all[..1]).unwrap(), 1);
    // What a commit leaves whose fsync failed but whose frames are in the file: a row that the process knows nothing of.
    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .execute(
            "INSERT INTO spool SELECT 2, epoch, presenter_idx, 2, ?1, sent_at, room_idx, user_idx, nickname, message, role,
             idempotency_key, broadcast_id, act FROM spool WHERE pos = 1",
            [&all[1].id.as_bytes()[..]],
        )
        .unwrap();
    drop(other);
    assert_eq!(spool.reopen_and_find(&all[1]).unwrap(), Some(2));
    assert_eq!(spool.last_seq(room(1)).unwrap(), LastSeq::Known(Seq(2)));
    assert_eq!(spool.commit(&all[2..]).unwrap(), 3);
}

#[test]
fn a_full_spool_whose_rooms_all_end_can_be_freed_and_can_park() {
    let dir = ScratchDir::new("fullrooms");
    let (mut spool, info) = open(&dir.path().join("chat.db"), Durability::Disk, Some(1 << 20));
    let mut last = 0;
    for n in 0.. {
        // A room each: freeing them writes as many rows of `rooms`.
        match spool.commit(&events(&info, n * 7919, 1..=1)) {
            Ok(pos) => last = pos,
            Err(error) => {
                assert_eq!(error.fault, SpoolFault::Full);
                break;
            }
        }
    }
    let (pos, event) = spool.read(0, 1).unwrap().remove(0);
    spool.free(last / 2, &[(pos, event, "poison".into())], 0).unwrap();
    spool.free(last, &[], 0).unwrap();
    assert_eq!(spool.commit(&events(&info, 1, 1..=100)).unwrap(), last + 1);
}
