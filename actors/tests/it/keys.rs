//! Rule 17 among the actors: a message that is sent again with its key gets the first answer.

use std::sync::Arc;

use chatting_actors::{
    outcome::{Accepted, Outcome, Refusal},
    types::Seq,
};

use crate::{
    script::{Commit, ScriptedSpool, ScriptedStore},
    stage::{Stage, registry_config, writer_config},
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
