//! Rule 17 among the actors: a message that is sent again with its key gets the first answer.

use std::{sync::Arc, time::Duration};

use chatting_actors::{
    clock::system_ms,
    outcome::{Accepted, Outcome, Refusal},
    registry::RoomView,
    types::Seq,
    writer::WriterConfig,
};
use tokio::sync::oneshot;

use crate::{
    script::{Call, Commit, ScriptedSpool, ScriptedStore},
    stage::{Stage, eventually, registry_config, room, until, writer_config},
};

/// The outcome once the table of keys is there: until the spool has told, keyed messages are refused.
async fn outcome(stage: &Stage, text: &str, key: &str) -> Outcome {
    loop {
        match stage.submit_with(1, text, Some(key)).await.unwrap() {
            Outcome::Refused(Refusal::Overloaded("idempotency")) => tokio::task::yield_now().await,
            outcome => return outcome,
        }
    }
}

async fn accepted(stage: &Stage, text: &str, key: &str) -> Accepted {
    match outcome(stage, text, key).await {
        Outcome::Accepted(accepted) => accepted,
        other => panic!("{other:?}"),
    }
}

#[actix::test]
async fn rule_17_the_same_key_gets_the_first_answer_and_is_numbered_once() {
    let stage = Stage::set();
    let reader = stage.reader(1);
    stage.accepted(1, "first").await;
    let first = accepted(&stage, "hi", "k").await;
    assert_eq!(accepted(&stage, "hi", "k").await, first);
    assert_eq!(
        outcome(&stage, "other", "k").await,
        Outcome::Refused(Refusal::IdempotencyConflict)
    );
    assert_eq!(stage.accepted(1, "end").await.seq, Seq(3));
    assert_eq!(reader.seqs(), [1, 2, 3]);
}

#[actix::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted spool, and nothing here waits for it"
)]
async fn rule_17_while_the_first_has_no_answer_the_second_is_told_so() {
    let stage = Stage::set();
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    let gate = Arc::clone(&stage.spool.script().gate);
    let held = gate.lock().unwrap();
    let first = stage.submit_with(1, "hi", Some("k"));
    stage.has_in_flight(1, 1).await;
    assert_eq!(
        outcome(&stage, "hi", "k").await,
        Outcome::Refused(Refusal::IdempotencyInProgress)
    );
    drop(held);
    let first = first.await.unwrap();
    assert_eq!(outcome(&stage, "hi", "k").await, first);
}

#[actix::test]
async fn rule_17_a_refusal_leaves_the_key_free() {
    let stage = Stage::set();
    assert_eq!(
        outcome(&stage, "hi", "k").await,
        Outcome::Refused(Refusal::PresenterDisconnected)
    );
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    stage.spool.script().commits.push_back(Commit::FailsWithout);
    assert_eq!(
        outcome(&stage, "hi", "k").await,
        Outcome::Refused(Refusal::LogUnavailable)
    );
    stage.accepted_again(1, "second").await;
    assert_eq!(accepted(&stage, "other", "k").await.seq, Seq(3));
}

#[actix::test]
async fn rule_17_an_unknown_outcome_is_cleared_up_by_the_key() {
    for (how, seq) in [(Commit::FailsUnknownWith, 2), (Commit::FailsUnknown, 3)] {
        let stage = Stage::set();
        let _reader = stage.reader(1);
        stage.accepted(1, "first").await;
        stage.spool.script().commits.push_back(how);
        assert_eq!(
            outcome(&stage, "hi", "k").await,
            Outcome::Refused(Refusal::OutcomeUnknown),
            "{how:?}"
        );
        let next = stage.accepted_again(1, "next").await;
        assert_eq!(next.seq, Seq(5 - seq), "{how:?}");
        // Written: the first place. Not written: a new one, and only one.
        assert_eq!(accepted(&stage, "hi", "k").await.seq, Seq(seq), "{how:?}");
        assert_eq!(accepted(&stage, "hi", "k").await.seq, Seq(seq), "{how:?}");
    }
}

#[actix::test]
async fn rule_17_keys_survive_a_restart_and_a_registry_that_panicked() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    let first = accepted(&stage, "hi", "k").await;
    stage.registry.panic_now();
    let again = accepted(&stage, "hi", "k").await;
    assert_eq!((again.id, again.seq), (first.id, first.seq));
    stage.stored(1).await;
    drop(stage);
    let stage = Stage::with(spool, store, registry_config(), writer_config());
    let again = accepted(&stage, "hi", "k").await;
    assert_eq!((again.id, again.seq, again.epoch), (first.id, first.seq, first.epoch));
    assert_eq!(
        outcome(&stage, "other", "k").await,
        Outcome::Refused(Refusal::IdempotencyConflict)
    );
}

const NINE_HOURS_MS: i64 = 9 * 3_600_000;

/// As if the clock had been so far ahead when all this was said.
fn shift(spool: &ScriptedSpool, ahead_ms: i64) {
    let script = &mut *spool.script();
    for event in script.keys.iter_mut().chain(script.rows.values_mut()) {
        Arc::make_mut(event).sent_at_ms += ahead_ms;
    }
}

#[actix::test]
async fn rule_17_a_start_with_the_clock_ahead_forgets_no_key() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    let first = accepted(&stage, "hi", "k").await;
    drop(stage);
    shift(&spool, -NINE_HOURS_MS);
    let stage = Stage::with(spool, store, registry_config(), writer_config());
    let again = accepted(&stage, "hi", "k").await;
    assert_eq!((again.id, again.seq), (first.id, first.seq));
}

/// A stage with two rooms, and a message with the key `k` that waits in the second: the store has been asked for its last seq, and
/// keeps the answer back. The first room goes on.
async fn with_one_that_waits() -> (Stage, oneshot::Receiver<Outcome>) {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    {
        let mut script = spool.script();
        script.asks_store = true;
        script.rooms.insert(1, Seq(0));
    }
    let config = WriterConfig {
        // A spool that failed is tried again before anything else that it is asked.
        retry_min: Duration::ZERO,
        ..writer_config()
    };
    let stage = Stage::with(spool, store, registry_config(), config);
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    stage.stored(1).await;
    stage.registry.ready().await;
    stage.store.script().calls.push_back(Call::Held);
    let _reader = stage.reader(2);
    until("the question", || stage.store.script().calls.is_empty()).await;
    let waits = stage.submit_with(2, "hi", Some("k"));
    let waiting = |view: Option<RoomView>| view.is_some_and(|view| view.live == Some(true) && view.waiting == 1);
    stage.keeps(2, "one that waits", waiting).await;
    (stage, waits)
}

/// What the key's second request is answered at once.
async fn sent_again(stage: &Stage) -> Option<Outcome> {
    let mut again = stage.submit_with(2, "hi", Some("k"));
    // The registry has come to it when it answers this.
    stage.registry.view(room(2)).await;
    again.try_recv().ok()
}

#[actix::test]
async fn rule_17_the_key_of_a_message_that_waits_is_in_progress_also_when_the_keys_were_read_anew() {
    let (stage, waits) = with_one_that_waits().await;
    stage.spool.script().commits.push_back(Commit::FailsUnknown);
    assert_eq!(stage.refused(1, "unknown").await, Refusal::OutcomeUnknown);
    // What the keys mean only the spool knows now: it has told when this returns.
    stage.registry.ready().await;
    assert_eq!(
        sent_again(&stage).await,
        Some(Outcome::Refused(Refusal::IdempotencyInProgress))
    );
    until("the spool to take events", || stage.writer.writable()).await;
    stage.store.let_go();
    let first = waits.await.unwrap();
    assert!(
        matches!(&first, Outcome::Accepted(accepted) if accepted.seq == Seq(1)),
        "{first:?}"
    );
    assert_eq!(sent_again(&stage).await, Some(first));
    assert_eq!(stage.stored(2).await, [(1, "hi".to_owned())]);
}

#[actix::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the locks are the brakes of the scripted spool, and nothing here waits for it"
)]
async fn rule_17_the_key_of_a_message_that_was_numbered_while_the_keys_were_read_anew_is_in_progress() {
    let (stage, waits) = with_one_that_waits().await;
    let gate = Arc::clone(&stage.spool.script().gate);
    let held = gate.lock().unwrap();
    stage.spool.script().commits.push_back(Commit::FailsUnknown);
    let unknown = stage.submit(1, "unknown");
    // The commit under way has the gate's third handle.
    until("its commit", || Arc::strong_count(&gate) > 2).await;
    // The next commit is to wait for another one.
    let next_gate = Arc::default();
    stage.spool.script().gate = Arc::clone(&next_gate);
    let held_next = next_gate.lock().unwrap();
    // The spool is told of the room's numbers now, and so before it is asked for the keys: the message is numbered in between.
    stage.store.let_go();
    until("the answer", || stage.store.script().late == 1).await;
    // The drain has passed the answer on when it comes to this.
    stage.parts.flush().await;
    drop(held);
    assert_eq!(unknown.await.unwrap(), Outcome::Refused(Refusal::OutcomeUnknown));
    stage.registry.ready().await;
    stage.has_in_flight(2, 1).await;
    assert_eq!(
        sent_again(&stage).await,
        Some(Outcome::Refused(Refusal::IdempotencyInProgress))
    );
    drop(held_next);
    let first = waits.await.unwrap();
    assert!(
        matches!(&first, Outcome::Accepted(accepted) if accepted.seq == Seq(1)),
        "{first:?}"
    );
    assert_eq!(sent_again(&stage).await, Some(first));
    assert_eq!(stage.stored(2).await, [(1, "hi".to_owned())]);
}

#[actix::test]
async fn rule_17_the_spool_keeps_the_keys_that_are_remembered_and_no_others_whatever_the_clock_says() {
    // The clock was behind when the messages were sent, or is wrong now; or it was ahead, or is right only now.
    for ahead_ms in [-NINE_HOURS_MS, NINE_HOURS_MS] {
        let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
        let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
        let _reader = stage.reader(1);
        stage.accepted(1, "first").await;
        let sent_at_ms = accepted(&stage, "hi", "k").await.sent_at_ms + ahead_ms;
        drop(stage);
        shift(&spool, ahead_ms);
        let mut config = registry_config();
        for window_ms in [config.keys.window_ms, 0] {
            config.keys.window_ms = window_ms;
            let stage = Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
            let _reader = stage.reader(1);
            eventually("the keys to be trimmed", async || {
                stage.accepted_again(1, "next").await;
                let script = spool.script();
                // With what is freed, and with what is committed.
                let both = [script.keys_before_ms.last().copied(), script.forgotten_before_ms];
                both.iter().all(|before_ms| match window_ms {
                    0 => *before_ms > Some(sent_at_ms),
                    _ => *before_ms == Some(sent_at_ms),
                })
            })
            .await;
        }
    }
}

#[actix::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted spool, and nothing here waits for it"
)]
async fn rule_17_the_spool_keeps_the_oldest_key_that_is_remembered_whichever_room_it_is_of() {
    let stage = Stage::set();
    let _readers = [stage.reader(1), stage.reader(2)];
    for presenter in [1, 2] {
        stage.accepted(presenter, "first").await;
    }
    stage.registry.ready().await;
    let gate = Arc::clone(&stage.spool.script().gate);
    let held = gate.lock().unwrap();
    // What comes while this is under way is one commit.
    let plug = stage.submit(1, "plug");
    stage.has_in_flight(1, 1).await;
    until("its commit", || Arc::strong_count(&gate) > 2).await;
    let older = stage.submit_with(2, "older", Some("older"));
    stage.has_in_flight(2, 1).await;
    let numbered_ms = system_ms();
    until("another millisecond", || system_ms() > numbered_ms).await;
    let newer = stage.submit_with(1, "newer", Some("newer"));
    stage.has_in_flight(1, 2).await;
    drop(held);
    plug.await.unwrap();
    let mut sent_at_ms = Vec::new();
    for keyed in [older, newer] {
        match keyed.await.unwrap() {
            Outcome::Accepted(accepted) => sent_at_ms.push(accepted.sent_at_ms),
            other => panic!("{other:?}"),
        }
    }
    assert!(sent_at_ms[0] < sent_at_ms[1], "{sent_at_ms:?}");
    let oldest_ms = Some(sent_at_ms[0]);
    eventually("the keys to be trimmed", async || {
        stage.accepted(1, "next").await;
        let script = stage.spool.script();
        // With what is freed, and with what is committed.
        let both = [script.keys_before_ms.last().copied(), script.forgotten_before_ms];
        assert!(
            both.iter().all(|before_ms| *before_ms <= oldest_ms),
            "{both:?} {sent_at_ms:?}"
        );
        both == [oldest_ms; 2]
    })
    .await;
}
