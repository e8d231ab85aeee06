//! Rule 2 and its like: an actor that panicked is made anew, and loses and doubles nothing.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::{Actor, Arbiter, Context};
use chatting_actors::{
    clock::system_ms,
    metrics::Metrics,
    outcome::{Outcome, Refusal},
    registry::{RegistryConfig, RoomView},
    supervise::{Pauses, Present, Watch, log_panics, supervise},
    types::Seq,
    writer::{SpoolFailure, WriterConfig},
};
use tokio::sync::oneshot;

use crate::{
    model::hush_planned_panics,
    script::{Call, ScriptedRooms, ScriptedSpool, ScriptedStore},
    stage::{Stage, keep_lines, lines_with, registry_config, room, until, writer_config},
};

#[actix::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted spool, and nothing here waits for it"
)]
async fn rule_02_a_registry_that_panicked_goes_on_behind_everything_it_had_appended() {
    let stage = Stage::set();
    let _reader = stage.reader(1);
    assert_eq!(stage.accepted(1, "first").await.seq, Seq(1));
    let gate = Arc::clone(&stage.spool.script().gate);
    let (pending, reader, next) = {
        let held = gate.lock().unwrap();
        // These are numbered and appended, and then the registry fails before it hears of them.
        let mut pending = vec![stage.submit(1, "0")];
        // The commit under way has the gate's third handle: the others are queued behind it.
        until("its commit", || Arc::strong_count(&gate) > 2).await;
        pending.extend((1..5).map(|n| stage.submit(1, &n.to_string())));
        stage.has_in_flight(1, 5).await;
        stage.registry.panic_now();
        stage.has_restarted(1).await;
        // The next one asks for the room's numbers while they are queued.
        let reader = stage.reader(1);
        let next = stage.submit(1, "next");
        let known = |view: Option<RoomView>| view.is_some_and(|view| view.live.is_some());
        stage.keeps(1, "the verdict", known).await;
        drop(held);
        (pending, reader, next)
    };
    for one in pending {
        assert!(
            one.await.is_err(),
            "a sender whose registry failed is told that the outcome is unknown"
        );
    }
    let Ok(Outcome::Accepted(next)) = next.await else {
        panic!("the next one is accepted");
    };
    assert_eq!(next.seq, Seq(7), "no seq is used twice and none is left out");
    // Nobody had what the first registry did not hear of any more.
    reader.has_seen(6).await;
    assert_eq!(reader.seqs(), [2, 3, 4, 5, 6, 7]);
    let stored: Vec<_> = stage.stored(1).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(stored, [1, 2, 3, 4, 5, 6, 7]);
}

#[actix::test]
async fn rule_05_a_registry_after_one_that_panicked_stamps_behind_it_though_the_clock_was_set_back() {
    hush_planned_panics();
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    store.script().away = true;
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let _reader = stage.reader(1);
    stage.accepted(1, "before").await;
    drop(stage);
    for row in spool.script().rows.values_mut() {
        // As by a clock that was an hour ahead.
        Arc::make_mut(row).sent_at_ms += 3_600_000;
    }
    let stage = Stage::with(spool, store, registry_config(), writer_config());
    let mut last = None;
    for _ in 0..3 {
        let _reader = stage.reader(1);
        for _ in 0..3 {
            let next = stage.accepted_again(1, "x").await;
            let next = Some((next.sent_at_ms, next.id));
            assert!(next > last, "{next:?} after {last:?}");
            last = next;
        }
        stage.registry_fails().await;
    }
}

#[actix::test]
async fn rule_02_what_a_registry_that_panicked_asked_in_vain_takes_no_number_from_the_next() {
    hush_planned_panics();
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    spool.script().asks_store = true;
    // The first is what makes the store ready.
    store.script().calls.extend([Call::Works, Call::FailsLate(200)]);
    let stage = Stage::with(spool, store.clone(), registry_config(), writer_config());
    let _before = stage.reader(1);
    until("its question", || store.script().calls.is_empty()).await;
    stage.registry_fails().await;
    let _reader = stage.reader(1);
    assert_eq!(stage.accepted_again(1, "first").await.seq, Seq(1));
    until("the late answer", || store.script().late == 1).await;
    // What is asked from now on comes behind it, or nearly so.
    for _ in 0..50 {
        assert_eq!(stage.registry.view(room(1)).await.unwrap().last_seq, Some(Seq(1)));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(stage.accepted(1, "second").await.seq, Seq(2));
}

#[actix::test]
async fn rule_02_a_late_answer_to_a_registry_that_panicked_sets_the_numbers_of_no_room_back() {
    hush_planned_panics();
    // A sweep would have the room asked for before it is the test's turn.
    let config = RegistryConfig {
        sweep: Duration::from_secs(600),
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    spool.script().asks_store = true;
    store.script().last_seqs.insert(1, Seq(41));
    // The first is what makes the store ready.
    store.script().calls.extend([Call::Works, Call::Held]);
    let stage = Stage::with(spool, store.clone(), config, writer_config());
    let _before = stage.reader(1);
    until("its question", || store.script().calls.is_empty()).await;
    stage.registry_fails().await;
    // The next one's question is answered at once.
    let _reader = stage.reader(1);
    for seq in 42..=44 {
        assert_eq!(stage.accepted(1, "x").await.seq, Seq(seq));
    }
    until("its rows to be freed", || stage.spool.script().rows.is_empty()).await;
    let hold = stage.writer.hold_spool();
    stage.registry_fails().await;
    store.let_go();
    until("the late answer", || store.script().late == 1).await;
    // The drain has passed it on when it comes to this: before the room's third registry asks.
    stage.parts.flush().await;
    let _reader = stage.reader(1);
    let next = stage.submit(1, "next");
    stage.has_session(1, true).await;
    drop(hold);
    assert_eq!(all_accepted(vec![next]).await, [45]);
    assert_eq!(stored_seqs(&stage, 1).await, [42, 43, 44, 45]);
    assert!(stage.spool.script().parked.is_empty());
}

#[actix::test]
async fn rule_02_what_waited_in_the_mailbox_of_a_registry_that_panicked_is_dealt_with_by_the_next() {
    let stage = Stage::set();
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    for round in 1..=20 {
        stage.registry.panic_now();
        let reader = stage.reader(1);
        let waiting: Vec<_> = (0..10).map(|n| stage.submit(1, &n.to_string())).collect();
        let mut last = 0;
        for one in waiting {
            match one.await {
                Ok(Outcome::Accepted(accepted)) => {
                    assert!(accepted.seq.0 > last);
                    last = accepted.seq.0;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(reader.seqs().last(), Some(&last));
        stage.has_restarted(round).await;
    }
    let stored: Vec<_> = stage.stored(1).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(stored, (1..=201).collect::<Vec<_>>());
}

#[actix::test]
async fn events_of_a_registry_that_panicked_count_in_the_writers_queue_until_the_disk_has_answered() {
    hush_planned_panics();
    let stage = Stage::set();
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    let hold = stage.writer.hold_spool();
    let [events, bytes] = stage.writer.gates().map(Arc::clone);
    let pending: Vec<_> = (0..5).map(|n| stage.submit(1, &n.to_string())).collect();
    stage.has_in_flight(1, 5).await;
    let queued = (events.depth(), bytes.depth());
    assert_eq!(queued.0, 5);
    stage.registry_fails().await;
    for one in pending {
        assert!(one.await.is_err(), "its outcome is unknown");
    }
    assert_eq!((events.depth(), bytes.depth()), queued, "they still wait for the disk");
    drop(hold);
    let none = || (events.depth(), bytes.depth()) == (0, 0);
    until("the disk to have answered", none).await;
    let _reader = stage.reader(1);
    assert_eq!(stage.accepted_again(1, "next").await.seq, Seq(7));
}

#[actix::test]
async fn what_a_registry_that_panicked_appended_is_on_its_way_until_the_disk_has_answered() {
    hush_planned_panics();
    let stage = Stage::set();
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    let hold = stage.writer.hold_spool();
    let lost = stage.submit(1, "second");
    stage.has_in_flight(1, 1).await;
    let by_now = system_ms();
    stage.registry_fails().await;
    assert!(lost.await.is_err(), "its outcome is unknown");
    // The next registry has none on its way. A sweep of it shows its rooms.
    let _readers = [1, 2].map(|presenter| stage.reader(presenter));
    until("a sweep", || stage.metrics.rooms.get() == 2).await;
    assert!(stage.writer.settled_ms() <= by_now);
    drop(hold);
    until("it to be settled", || stage.writer.settled_ms() > by_now).await;
}

/// Seqs of those that were accepted, of messages that all must be.
async fn all_accepted(pending: Vec<oneshot::Receiver<Outcome>>) -> Vec<u64> {
    let mut seqs = Vec::new();
    for one in pending {
        match one.await {
            Ok(Outcome::Accepted(accepted)) => seqs.push(accepted.seq.0),
            other => panic!("{other:?}"),
        }
    }
    seqs
}

async fn stored_seqs(stage: &Stage, presenter: i64) -> Vec<u64> {
    stage.stored(presenter).await.into_iter().map(|(seq, _)| seq).collect()
}

#[actix::test]
async fn a_spool_thread_that_panicked_with_events_in_hand_answers_each_once_and_leaves_out_no_seq() {
    hush_planned_panics();
    let stage = Stage::set();
    let reader = stage.reader(1);
    // Where its numbers stand is asked for once, of the thread that is held below.
    let mut answered = vec![stage.accepted(1, "first").await.seq.0];
    for round in 0..20 {
        let failures = [
            SpoolFailure::Now,
            SpoolFailure::BehindCommit,
            SpoolFailure::BeforeTelling,
        ];
        let failure = failures[round % failures.len()];
        // Its thread takes these and the panic together.
        let hold = stage.writer.hold_spool();
        let mut pending: Vec<_> = (0..5).map(|n| stage.submit(1, &n.to_string())).collect();
        stage.has_in_flight(1, 5).await;
        stage.writer.panic_spool(failure);
        drop(hold);
        pending.extend((0..5).map(|n| stage.submit(1, &n.to_string())));
        answered.extend(all_accepted(pending).await);
        let so_many = round as u64 + 1;
        until("the panic", || stage.parts.spool_watch.restarts() == so_many).await;
    }
    let all: Vec<_> = (1..=201).collect();
    assert_eq!(answered, all);
    assert_eq!(stored_seqs(&stage, 1).await, all);
    assert_eq!(reader.seqs(), all);
    assert!(stage.spool.script().written_twice().is_empty());
    assert!(
        stage.spool.script().reopened >= 20,
        "the file is opened again each time"
    );
}

#[actix::test]
async fn a_question_that_took_the_spool_thread_with_it_is_answered_as_failed_and_may_be_asked_again() {
    hush_planned_panics();
    // A sweep would have places saved, which could take the panic instead; so could rows that are freed.
    let config = RegistryConfig {
        sweep: Duration::from_secs(600),
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool, store, config, writer_config());
    let _reader = stage.reader(2);
    stage.accepted(2, "elsewhere").await;
    until("its row to be freed", || stage.spool.script().rows.is_empty()).await;
    stage.spool.script().panicking = 1;
    // Where the numbers of this room stand is asked for now.
    assert_eq!(stage.refused(1, "first").await, Refusal::LogUnavailable);
    let _reader = stage.reader(1);
    assert_eq!(stage.accepted_again(1, "again").await.seq, Seq(1));
    assert_eq!(stage.accepted(2, "elsewhere").await.seq, Seq(2));
}

#[actix::test]
async fn a_writer_that_panicked_takes_everything_to_the_store_once_from_where_the_spool_stands() {
    hush_planned_panics();
    let stage = Stage::set();
    let _reader = stage.reader(1);
    for round in 1..=20 {
        let pending = (0..10).map(|n| stage.submit(1, &n.to_string())).collect();
        stage.store.script().calls.push_back(Call::Slow(1));
        stage.parts.panic_now();
        assert_eq!(all_accepted(pending).await.len(), 10, "no sender notices");
        until("another writer", || {
            stage.parts.watch.restarts() == round && stage.parts.watch.alive()
        })
        .await;
    }
    assert_eq!(stored_seqs(&stage, 1).await, (1..=200).collect::<Vec<_>>());
    assert!(stage.spool.script().rows.is_empty(), "all of it was freed");
}

#[actix::test]
async fn while_the_writer_is_gone_no_more_is_kept_for_it_in_memory_than_it_would_keep() {
    let config = WriterConfig {
        backlog_max: 4,
        ..writer_config()
    };
    let stage = Stage::with(
        ScriptedSpool::default(),
        ScriptedStore::default(),
        registry_config(),
        config,
    );
    let _reader = stage.reader(1);
    let held = stage.hold_writer();
    for n in 1..=20 {
        assert_eq!(stage.accepted(1, &n.to_string()).await.seq, Seq(n));
    }
    // A row and the room have each of them; whoever waits for the writer has one more.
    let kept = || {
        let script = stage.spool.script();
        let owners: Vec<_> = script.rows.values().map(Arc::strong_count).collect();
        owners.iter().filter(|count| **count > owners[19]).count()
    };
    until("the room to have sent all", || kept() == 4).await;
    drop(held);
    assert_eq!(stored_seqs(&stage, 1).await, (1..=20).collect::<Vec<_>>());
}

#[actix::test]
async fn a_writer_that_panicked_while_it_asked_the_store_for_a_rooms_last_seq_asks_again() {
    hush_planned_panics();
    let spool = ScriptedSpool::default();
    spool.script().asks_store = true;
    let store = ScriptedStore::default();
    store.script().last_seqs.insert(1, Seq(41));
    let stage = Stage::with(spool, store, registry_config(), writer_config());
    until("the writer to be idle", || stage.store.script().calls.is_empty()).await;
    stage.store.script().calls.push_back(Call::Slow(600_000));
    let _reader = stage.reader(1);
    let pending = stage.submit(1, "first");
    until("the question to be under way", || stage.store.script().calls.is_empty()).await;
    stage.parts.panic_now();
    match pending.await {
        Ok(Outcome::Accepted(accepted)) => assert_eq!(accepted.seq, Seq(42)),
        other => panic!("{other:?}"),
    }
}

#[actix::test]
async fn a_checker_after_one_that_panicked_shows_no_verdict_and_no_refusal_that_it_has_not_heard() {
    hush_planned_panics();
    let stage = Stage::set();
    stage.rooms.script().unknown.insert(1);
    stage.rooms.script().not_live.insert(2);
    assert_eq!(stage.refused(1, "x").await, Refusal::RoomServerUnavailable);
    assert_eq!(stage.refused(2, "x").await, Refusal::NotLive);
    assert_eq!(stage.refused(3, "x").await, Refusal::PresenterDisconnected);
    stage.rooms.script().unknown.insert(4);
    assert_eq!(stage.refused(4, "x").await, Refusal::RoomServerUnavailable);
    let shown = || {
        let kept = |verdict| stage.metrics.room_verdicts.of(verdict).get();
        let kept = ["live", "not_live", "refused"].map(kept);
        (kept, stage.metrics.room_refusals.get())
    };
    assert_eq!(shown(), ([1, 1, 2], 1));
    stage.checker.panic_now();
    until("another checker", || shown() == ([0, 0, 0], 0)).await;
}

#[actix::test]
async fn a_checker_that_panicked_is_asked_again_and_its_senders_only_wait() {
    hush_planned_panics();
    let rooms = ScriptedRooms::default();
    rooms.script().ttl = Duration::from_millis(1);
    let stage = Stage::among(
        rooms,
        ScriptedSpool::default(),
        ScriptedStore::default(),
        registry_config(),
        writer_config(),
    );
    let _readers: Vec<_> = (1..=5).map(|presenter| stage.reader(presenter)).collect();
    for round in 1..=10 {
        stage.checker.panic_now();
        let pending = (1..=5).map(|presenter| stage.submit(presenter, "asks")).collect();
        assert_eq!(all_accepted(pending).await, [round; 5]);
        until("another checker", || {
            stage.checker_watch.restarts() == round && stage.checker_watch.alive()
        })
        .await;
    }
}

/// Panics as soon as it is made, so many times.
struct Unlucky {
    left: Arc<Mutex<u32>>,
    _present: Present,
}

impl Actor for Unlucky {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if *left > 0 {
            *left -= 1;
            drop(left);
            panic!("unlucky");
        }
    }
}

#[actix::test]
async fn an_actor_that_fails_again_and_again_is_logged_by_name_once_a_panic_and_is_there_in_the_end() {
    keep_lines();
    log_panics();
    let metrics = Metrics::default();
    let pauses = Pauses {
        min: Duration::from_millis(1),
        max: Duration::from_millis(4),
    };
    let watch = Watch::new("http", pauses, &metrics);
    let (arbiter, left) = (Arbiter::new(), Arc::new(Mutex::new(5)));
    supervise(&arbiter.handle(), watch.clone(), move |present| Unlucky {
        left: Arc::clone(&left),
        _present: present,
    });
    until("the actor to stay", || watch.restarts() == 5 && watch.steady()).await;
    let told = lines_with("the actor http panicked");
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(
        told[0].ends_with(": unlucky") && told[0].contains("supervision.rs:"),
        "{told:?}"
    );
    for pause in ["in 1ms", "in 2ms", "in 4ms"] {
        let made_anew = format!("the actor http is gone; it is made anew {pause}");
        assert!(!lines_with(&made_anew).is_empty(), "{made_anew}");
    }
    assert_eq!(metrics.restarts("http").get(), 5);
    arbiter.stop();
    arbiter.join().unwrap();
}
