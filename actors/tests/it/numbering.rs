//! Rules 1, 3, 4 and 11 among the actors: numbers are tentative until committed, and come back when they were not.

use std::{
    ops::RangeInclusive,
    sync::{Arc, atomic::Ordering, mpsc::SyncSender},
    time::Instant,
};

use chatting_actors::{
    outcome::{Delivery, Outcome, Refusal},
    registry::RoomView,
    seldom::Seldom,
    types::Seq,
};

use crate::{
    script::{Commit, ScriptedRooms, ScriptedSpool, ScriptedStore},
    stage::{Reader, Stage, eventually, keep_lines, lines_with, registry_config, room, until, writer_config},
};

fn numbered(texts: &[(u64, &str)]) -> Vec<(u64, String)> {
    texts.iter().map(|(seq, text)| (*seq, (*text).to_owned())).collect()
}

#[actix::test]
async fn messages_are_numbered_delivered_and_stored_in_one_order() {
    let stage = Stage::set();
    let reader = stage.reader(1);
    for (n, text) in ["a", "b", "c"].into_iter().enumerate() {
        let accepted = stage.accepted(1, text).await;
        assert_eq!(
            (accepted.seq, accepted.delivery),
            (Seq(n as u64 + 1), Delivery::Delivered)
        );
    }
    assert_eq!(reader.seen(), numbered(&[(1, "a"), (2, "b"), (3, "c")]));
    assert_eq!(stage.stored(1).await, reader.seen());
    assert!(stage.spool.script().rows.is_empty(), "stored rows are freed");
}

#[actix::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted spool, and nothing here waits for it"
)]
async fn rule_01_a_failed_commit_fails_everything_queued_behind_it_and_numbers_go_back() {
    for how in [Commit::Full, Commit::FailsWithout] {
        let stage = Stage::set();
        let reader = stage.reader(1);
        let other = stage.reader(2);
        assert_eq!(stage.accepted(1, "first").await.seq, Seq(1));
        assert_eq!(stage.accepted(2, "first").await.seq, Seq(1));
        let gate = Arc::clone(&stage.spool.script().gate);
        let held = gate.lock().unwrap();
        stage.spool.script().commits.push_back(how);
        // The first of these is in the commit that will fail, the others are numbered behind it.
        let mut doomed = vec![stage.submit(1, "in the commit")];
        stage.has_in_flight(1, 1).await;
        for n in 0..20 {
            doomed.push(stage.submit(1 + n % 2, "behind"));
        }
        stage.has_in_flight(2, 10).await;
        drop(held);
        for one in doomed {
            assert_eq!(one.await.unwrap(), Outcome::Refused(Refusal::LogUnavailable), "{how:?}");
        }
        assert_eq!(stage.accepted_again(1, "second").await.seq, Seq(2), "{how:?}");
        assert_eq!(stage.accepted_again(2, "second").await.seq, Seq(2), "{how:?}");
        assert_eq!(reader.seen(), numbered(&[(1, "first"), (2, "second")]));
        assert_eq!(other.seen(), reader.seen());
        assert_eq!(stage.stored(1).await, reader.seen());
        assert_eq!(stage.stored(2).await, reader.seen());
    }
}

#[actix::test]
async fn rule_01_after_an_io_error_the_answer_is_what_the_reopened_spool_holds() {
    let stage = Stage::set();
    let reader = stage.reader(1);
    stage.accepted(1, "first").await;
    stage.spool.script().commits.push_back(Commit::FailsWith);
    assert_eq!(stage.accepted(1, "written after all").await.seq, Seq(2));
    stage.spool.script().commits.push_back(Commit::FailsWithout);
    assert_eq!(stage.refused(1, "not written").await, Refusal::LogUnavailable);
    assert_eq!(stage.accepted_again(1, "third").await.seq, Seq(3));
    assert_eq!(
        reader.seen(),
        numbered(&[(1, "first"), (2, "written after all"), (3, "third")])
    );
    assert_eq!(stage.stored(1).await, reader.seen());
}

#[actix::test]
async fn rule_01_what_cannot_be_known_is_answered_so_and_its_number_is_asked_for_again() {
    let stage = Stage::set();
    let reader = stage.reader(1);
    stage.accepted(1, "first").await;
    stage.spool.script().commits.push_back(Commit::FailsUnknown);
    assert_eq!(stage.refused(1, "lost").await, Refusal::OutcomeUnknown);
    assert_eq!(stage.accepted_again(1, "second").await.seq, Seq(2));
    stage.spool.script().commits.push_back(Commit::FailsUnknownWith);
    assert_eq!(stage.refused(1, "there").await, Refusal::OutcomeUnknown);
    // The spool holds it, so its number is taken, and the store gets it.
    assert_eq!(stage.accepted_again(1, "fourth").await.seq, Seq(4));
    assert_eq!(
        stage.stored(1).await,
        numbered(&[(1, "first"), (2, "second"), (3, "there"), (4, "fourth")])
    );
    // The ring never had it: the session gets it from the log, in its place.
    reader.has_seen(4).await;
    assert_eq!(reader.seen(), stage.stored(1).await);
}

#[actix::test]
async fn rule_01_a_commit_that_could_not_be_begun_has_failed_whether_or_not_the_file_can_be_opened() {
    let stage = Stage::set();
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    stage
        .spool
        .script()
        .commits
        .extend([Commit::NotBegun, Commit::FailsUnknown]);
    assert_eq!(stage.refused(1, "lost").await, Refusal::LogUnavailable);
    stage.spool.script().commits.clear();
    assert_eq!(stage.accepted_again(1, "second").await.seq, Seq(2));
}

#[actix::test]
async fn rule_03_a_start_goes_on_after_the_spool_and_asks_the_store_only_where_the_spool_is_new() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let _reader = stage.reader(1);
    store.script().away = true;
    for n in 1..=5 {
        assert_eq!(stage.accepted(1, "x").await.seq, Seq(n));
    }
    drop(stage);
    // Again, and the store still away: the numbers come from the spool's rows.
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let _reader = stage.reader(1);
    assert_eq!(stage.accepted(1, "x").await.seq, Seq(6));
    store.script().away = false;
    assert_eq!(stage.stored(1).await.len(), 6);
    drop(stage);
    // Again, with no rows left: from its `rooms`.
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let _reader = stage.reader(1);
    assert_eq!(stage.accepted(1, "x").await.seq, Seq(7));
    drop(stage);
    // A new spool: nothing is numbered until the store has told.
    let spool = ScriptedSpool::default();
    spool.script().asks_store = true;
    store.script().last_seqs.insert(1, Seq(7));
    store.script().away = true;
    let stage = Stage::with(spool, store.clone(), registry_config(), writer_config());
    let _reader = stage.reader(1);
    assert_eq!(stage.refused(1, "too early").await, Refusal::LogUnavailable);
    store.script().away = false;
    assert_eq!(stage.accepted_again(1, "x").await.seq, Seq(8));
}

#[actix::test]
async fn a_store_that_does_not_tell_where_rooms_stand_has_no_line_a_room() {
    keep_lines();
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    spool.script().asks_store = true;
    store.script().away = true;
    let (stage, began) = (
        Stage::with(spool, store, registry_config(), writer_config()),
        Instant::now(),
    );
    for presenter in 987_400..987_500 {
        let _reader = stage.reader(presenter);
        assert_eq!(stage.refused(presenter, "x").await, Refusal::LogUnavailable);
    }
    let told = lines_with("last seq of presenter 9874");
    let at_most = 1 + began.elapsed().as_secs() / Seldom::EVERY.as_secs();
    assert!((1..=at_most).contains(&(told.len() as u64)), "{told:?}");
}

#[actix::test]
async fn last_seqs_that_cannot_be_kept_have_no_line_a_room() {
    keep_lines();
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    {
        let mut script = spool.script();
        (script.asks_store, script.full, script.full_why) = (true, true, "full under 100 rooms");
    }
    let (stage, began) = (
        Stage::with(spool, store, registry_config(), writer_config()),
        Instant::now(),
    );
    for presenter in 1..=100 {
        let _reader = stage.reader(presenter);
        assert_eq!(stage.refused(presenter, "x").await, Refusal::LogUnavailable);
    }
    let told = lines_with("last seq of a room cannot be kept: full under 100 rooms");
    let at_most = 1 + began.elapsed().as_secs() / Seldom::EVERY.as_secs();
    assert!((1..=at_most).contains(&(told.len() as u64)), "{told:?}");
}

#[actix::test]
async fn events_that_the_store_refuses_have_no_line_each() {
    keep_lines();
    let (stage, began) = (Stage::set(), Instant::now());
    let _reader = stage.reader(1);
    {
        let mut script = stage.store.script();
        script.away = true;
        script.poison.push("bad".into());
    }
    let mut ids = Vec::new();
    for _ in 0..250 {
        ids.push(stage.accepted(1, "bad").await.id.to_string());
    }
    stage.store.script().away = false;
    assert!(stage.stored(1).await.is_empty());
    assert_eq!(stage.metrics.parked.get(), 250);
    let mut told = lines_with("will never be stored as it is");
    told.retain(|line| ids.iter().any(|id| line.contains(id)));
    let at_most = 1 + began.elapsed().as_secs() / Seldom::EVERY.as_secs();
    assert!((1..=at_most).contains(&(told.len() as u64)), "{told:?}");
    let first = format!("{} will never be stored as it is, parked, the first of ", ids[0]);
    assert!(
        told[0].contains(&first) && told[0].ends_with(" in its batch: scripted"),
        "{told:?}"
    );
}

#[actix::test]
async fn rule_04_poison_is_parked_and_blocks_nothing_behind_it() {
    let stage = Stage::set();
    let _reader = stage.reader(1);
    stage.store.script().poison.push("bad".into());
    for text in ["a", "bad", "b"] {
        stage.accepted(1, text).await;
    }
    assert_eq!(stage.stored(1).await, numbered(&[(1, "a"), (3, "b")]));
    let parked: Vec<_> = stage
        .spool
        .script()
        .parked
        .iter()
        .map(|(event, _)| event.seq.0)
        .collect();
    assert_eq!(parked, [2]);
    assert_eq!(stage.metrics.parked.get(), 1);
    assert_eq!(stage.accepted(1, "c").await.seq, Seq(4));
}

#[actix::test]
async fn a_store_that_is_away_delays_no_one_and_gets_everything_in_order_when_it_is_back() {
    let stage = Stage::set();
    let reader = stage.reader(1);
    stage.store.script().away = true;
    // More than the backlog in memory holds, so that the rest comes back from the spool.
    for n in 0..2500 {
        stage.accepted(1, &n.to_string()).await;
    }
    assert_eq!(stage.spool.script().rows.len(), 2500);
    stage.store.script().away = false;
    assert_eq!(stage.stored(1).await, reader.seen());
    let script = stage.store.script();
    assert!(script.batches.iter().sum::<usize>() >= 2500);
    drop(script);
    assert!(stage.spool.script().rows.is_empty());
}

#[actix::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted spool, and nothing here waits for it"
)]
async fn commits_are_shared_by_all_that_came_meanwhile() {
    let mut config = registry_config();
    // What is kept of rooms now and then parts commits.
    config.sweep = std::time::Duration::from_secs(600);
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool, store, config, writer_config());
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    let stored = || {
        let script = stage.spool.script();
        !script.broadcasts.is_empty() && script.broadcasts.values().all(|(_, stored)| *stored)
    };
    until("the broadcast's record to be stored", stored).await;
    stage.stored(1).await;
    let gate = Arc::clone(&stage.spool.script().gate);
    let held = gate.lock().unwrap();
    let waiting: Vec<_> = (0..200).map(|_| stage.submit(1, "x")).collect();
    stage.has_in_flight(1, 200).await;
    drop(held);
    for one in waiting {
        assert!(matches!(one.await.unwrap(), Outcome::Accepted(_)));
    }
    assert!(
        stage.spool.script().sizes.len() <= 4,
        "{:?}",
        stage.spool.script().sizes
    );
}

#[actix::test]
async fn rule_11_a_session_that_takes_nothing_gets_what_waits_when_it_goes_on() {
    let stage = Stage::set();
    let reader = stage.reader(1);
    reader.stalled.store(true, Ordering::Release);
    let mut delivered = 0;
    for n in 0..100 {
        let accepted = stage.accepted(1, &n.to_string()).await;
        delivered += u64::from(accepted.delivery == Delivery::Delivered);
    }
    assert_eq!(delivered, 64, "credit is session.credit_events");
    // The next session goes on after what the stalled one's socket took: nothing.
    let next = stage.reader(1);
    stage.accepted(1, "end").await;
    assert_eq!(next.seqs(), (1..=101).collect::<Vec<_>>());
    assert_eq!(reader.seqs(), Vec::<u64>::new());
}

#[actix::test]
async fn a_full_ring_refuses_rather_than_forget_what_was_not_sent() {
    let mut config = registry_config();
    config.ring_events = 10;
    config.credit_events = 4;
    let stage = Stage::with(
        ScriptedSpool::default(),
        ScriptedStore::default(),
        config,
        writer_config(),
    );
    let reader = stage.reader(1);
    reader.stalled.store(true, Ordering::Release);
    for n in 0..14 {
        stage.accepted(1, &n.to_string()).await;
    }
    assert_eq!(stage.refused(1, "one too many").await, Refusal::Overloaded("ring"));
    let next = stage.reader(1);
    // What was sent to the stalled one and not taken comes again: from the ring as far as it reaches, and from the log.
    next.has_seen(14).await;
    assert_eq!(next.seqs(), (1..=14).collect::<Vec<_>>());
}

#[actix::test]
async fn a_spool_that_failed_is_tried_again_although_questions_keep_it_busy() {
    let mut config = writer_config();
    config.retry_min = std::time::Duration::from_millis(50);
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool, store, registry_config(), config);
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    stage.spool.script().commits.push_back(Commit::Full);
    assert_eq!(stage.refused(1, "full").await, Refusal::LogUnavailable);
    // Each new room asks the spool for its last seq, more often than it is tried again.
    let began = Instant::now();
    let mut room = 100;
    while !stage.writer.writable() {
        assert!(
            began.elapsed() < std::time::Duration::from_secs(20),
            "it was never tried again"
        );
        room += 1;
        let _reader = stage.reader(room);
        drop(stage.submit(room, "x").await);
    }
    assert_eq!(stage.accepted(1, "second").await.seq, Seq(2));
}

#[actix::test]
async fn commit_failures_are_counted_for_as_long_as_the_spool_is_full_though_no_sender_is_let_in() {
    let stage = Stage::set();
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    stage.spool.script().full = true;
    assert_eq!(stage.refused(1, "full").await, Refusal::LogUnavailable);
    // Refused before anything is tried for them.
    until("it to be found full again and again", || {
        stage.metrics.commit_failures.get() >= 5
    })
    .await;
    stage.spool.script().full = false;
    until("it to take events again", || stage.writer.writable()).await;
    let counted = stage.metrics.commit_failures.get();
    assert_eq!(stage.accepted(1, "second").await.seq, Seq(2));
    assert_eq!(stage.metrics.commit_failures.get(), counted);
}

#[actix::test]
async fn a_disk_that_is_full_shows_though_the_spool_knows_none_of_the_rooms_that_are_sent_to() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    {
        let mut script = spool.script();
        (script.asks_store, script.full) = (true, true);
    }
    store.script().last_seqs.insert(1, Seq(7));
    let stage = Stage::with(spool.clone(), store, registry_config(), writer_config());
    let _reader = stage.reader(1);
    assert_eq!(stage.refused(1, "full").await, Refusal::LogUnavailable);
    until("it to be found full", || !stage.writer.writable()).await;
    let counted = stage.metrics.commit_failures.get();
    assert!(counted > 0);
    until("it to be found full again and again", || {
        stage.metrics.commit_failures.get() >= counted + 5
    })
    .await;
    assert!(!stage.writer.writable());
    spool.script().full = false;
    until("it to take events again", || stage.writer.writable()).await;
    assert_eq!(stage.accepted_again(1, "first").await.seq, Seq(8));
    assert!(stage.writer.writable());
}

#[actix::test]
async fn a_room_whose_last_seq_cannot_be_kept_is_counted_and_costs_no_other_room() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    {
        let mut script = spool.script();
        script.asks_store = true;
        script.learns_in_vain.insert(1);
        script.rooms.insert(2, Seq(0));
    }
    let stage = Stage::with(spool.clone(), store, registry_config(), writer_config());
    let (_waits, _reader) = (stage.reader(1), stage.reader(2));
    assert_eq!(stage.refused(1, "x").await, Refusal::LogUnavailable);
    // The sweep asks for it again and again, for its session.
    let (began, mut seq) = (Instant::now(), 0);
    while stage.metrics.commit_failures.get() < 5 {
        assert!(
            began.elapsed() < std::time::Duration::from_secs(20),
            "it is not counted"
        );
        seq += 1;
        assert_eq!(stage.accepted(2, "y").await.seq, Seq(seq));
    }
    spool.script().learns_in_vain.clear();
    assert_eq!(stage.accepted_again(1, "first").await.seq, Seq(1));
}

/// Rooms with a session whose last seq, 7, the spool does not know and the store has told, all of them while the spool's thread is held.
async fn told_together(rooms: RangeInclusive<i64>, spool: &ScriptedSpool) -> (Stage, Vec<Arc<Reader>>, SyncSender<()>) {
    let (store, count) = (ScriptedStore::default(), rooms.clone().count());
    spool.script().asks_store = true;
    store
        .script()
        .last_seqs
        .extend(rooms.clone().map(|presenter| (presenter, Seq(7))));
    let mut config = registry_config();
    // It would ask again, for their sessions.
    config.sweep = std::time::Duration::from_secs(600);
    let stage = Stage::with(spool.clone(), store, config, writer_config());
    let go = stage.hold_writer();
    let readers = rooms.clone().map(|presenter| stage.reader(presenter)).collect();
    stage.has_session(*rooms.end(), true).await;
    // Behind all their questions.
    let hold = stage.writer.hold_spool();
    drop(go);
    let asked = || stage.store.script().asked_last_seq == count;
    until("the store to be asked for all of them", asked).await;
    (stage, readers, hold)
}

#[actix::test]
async fn what_the_store_tells_of_many_rooms_is_kept_in_a_few_transactions() {
    let spool = ScriptedSpool::default();
    let (stage, _readers, hold) = told_together(1..=100, &spool).await;
    drop(hold);
    for presenter in 1..=100 {
        assert_eq!(stage.accepted(presenter, "x").await.seq, Seq(8));
    }
    let script = spool.script();
    let mut learned = script.learned.concat();
    learned.sort_unstable();
    assert_eq!(learned, (1..=100).collect::<Vec<_>>(), "each once");
    // The drain may have asked something else in between, and the last one may come late.
    assert!(script.learned.len() <= 4, "{:?}", script.learned);
}

#[actix::test]
async fn a_last_seq_that_cannot_be_kept_costs_no_room_that_is_told_with_it() {
    let spool = ScriptedSpool::default();
    spool.script().learns_in_vain.insert(5);
    let (stage, _readers, hold) = told_together(1..=10, &spool).await;
    drop(hold);
    for presenter in (1..=10).filter(|presenter| *presenter != 5) {
        assert_eq!(stage.accepted(presenter, "x").await.seq, Seq(8));
    }
    assert_eq!(stage.refused(5, "x").await, Refusal::LogUnavailable);
    spool.script().learns_in_vain.clear();
    assert_eq!(stage.accepted_again(5, "x").await.seq, Seq(8));
}

#[actix::test]
async fn messages_share_commits_though_other_rooms_ask_for_their_last_seqs_in_between() {
    let mut config = registry_config();
    // What is kept of rooms now and then parts commits.
    config.sweep = std::time::Duration::from_secs(600);
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store, config, writer_config());
    let mut readers = vec![stage.reader(1)];
    stage.accepted(1, "first").await;
    stage.stored(1).await;
    let hold = stage.writer.hold_spool();
    spool.script().sizes.clear();
    let mut waiting = Vec::new();
    for n in 1..=100 {
        readers.push(stage.reader(100 + n));
        stage.has_session(100 + n, true).await;
        waiting.push(stage.submit(1, "x"));
        stage.has_in_flight(1, waiting.len()).await;
    }
    drop(hold);
    for one in waiting {
        assert!(matches!(one.await.unwrap(), Outcome::Accepted(_)));
    }
    let script = spool.script();
    assert_eq!(script.sizes.iter().sum::<usize>(), 100);
    // Nor does what was appended wait for all the questions.
    assert!((2..=4).contains(&script.sizes.len()), "{:?}", script.sizes);
}

#[actix::test]
async fn with_answers_from_memory_too_a_spool_that_stays_full_is_an_error_once() {
    keep_lines();
    let mut config = writer_config();
    config.answer_first = true;
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool, store, registry_config(), config);
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    // It was answered before.
    until("the first one to be written", || !stage.spool.script().sizes.is_empty()).await;
    for why in ["full once", "full twice"] {
        {
            let mut script = stage.spool.script();
            (script.full, script.full_why) = (true, why);
        }
        // Answered, and written when there is room.
        stage.accepted(1, "kept").await;
        let before = stage.metrics.commit_failures.get();
        until("it to be tried again and again", || {
            stage.metrics.commit_failures.get() >= before + 5
        })
        .await;
        stage.spool.script().full = false;
        until("it to take events again", || stage.writer.writable()).await;
        let told = lines_with(&format!("failed: {why}"));
        assert_eq!(told.len(), 1, "{told:?}");
    }
}

#[expect(
    clippy::await_holding_lock,
    reason = "the spool's own thread waits for it, and no task"
)]
async fn end_while_committing(next_comes_first: bool) {
    let rooms = ScriptedRooms::default();
    rooms.script().ttl = std::time::Duration::from_millis(10);
    // What names it tells that it goes on when its verdict is renewed, however late that is.
    rooms.script().started_at_ms.insert(1, 1_000);
    let mut config = registry_config();
    // Nothing but the messages themselves asks and tidies here.
    config.sweep = std::time::Duration::from_secs(60);
    // A broadcast that may go on would keep its room.
    config.broadcast_resume = std::time::Duration::ZERO;
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::among(rooms, spool, store, config, writer_config());
    let reader = stage.reader(1);
    stage.accepted(1, "first").await;
    reader.leave();
    let gate = Arc::clone(&stage.spool.script().gate);
    let committing = gate.lock().unwrap();
    let held = stage.submit(1, "held");
    stage.has_in_flight(1, 1).await;
    stage.rooms.script().not_live.insert(1);
    eventually("the broadcast's end", async || {
        // One that comes before the verdict's time is over is numbered and waits too.
        let late = stage.submit(1, "late");
        tokio::time::timeout(std::time::Duration::from_millis(20), late)
            .await
            .is_ok_and(|outcome| outcome == Ok(Outcome::Refused(Refusal::NotLive)))
    })
    .await;
    let early = next_comes_first.then(|| stage.reader(1));
    drop(committing);
    assert!(matches!(held.await.unwrap(), Outcome::Accepted(_)));
    stage.rooms.script().not_live.clear();
    let next = early.unwrap_or_else(|| stage.reader(1));
    let new = stage.accepted_again(1, "new").await;
    assert_eq!(next.seqs(), [new.seq.0]);
    // Nothing is left over that would keep the room when it is over too (rule 10).
    next.leave();
    stage.rooms.script().not_live.insert(1);
    let live = |view: Option<RoomView>| view.is_some_and(|view| view.live == Some(true));
    stage.keeps(1, "the verdict's end", |view| !live(view)).await;
    assert_eq!(stage.refused(1, "after").await, Refusal::NotLive);
    assert_eq!(stage.registry.view(room(1)).await, None, "the room is kept for nothing");
}

#[actix::test]
async fn rule_13_what_is_being_committed_when_its_broadcast_ends_is_not_for_the_next_one() {
    end_while_committing(false).await;
}

#[actix::test]
async fn rule_13_nor_for_a_session_that_comes_before_the_commit() {
    end_while_committing(true).await;
}
