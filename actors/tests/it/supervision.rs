//! Rule 2: a registry that panicked loses and doubles nothing.

use std::sync::Arc;

use chatting_actors::{outcome::Outcome, types::Seq};

use crate::stage::{Stage, room};

async fn restarted(stage: &Stage, times: u64) {
    while stage.registry_watch.restarts() < times || !stage.registry_watch.alive() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

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
    let pending = {
        let held = gate.lock().unwrap();
        // These are numbered and appended, and then the registry fails before it hears of them.
        let pending: Vec<_> = (0..5).map(|n| stage.submit(1, &n.to_string())).collect();
        while stage.registry.view(room(1)).await.unwrap().in_flight < 5 {}
        stage.registry.panic_now();
        restarted(&stage, 1).await;
        drop(held);
        pending
    };
    for one in pending {
        assert!(
            one.await.is_err(),
            "a sender whose registry failed is told that the outcome is unknown"
        );
    }
    let reader = stage.reader(1);
    assert_eq!(
        stage.accepted(1, "next").await.seq,
        Seq(7),
        "no seq is used twice and none is left out"
    );
    assert_eq!(reader.seqs(), [7]);
    let stored: Vec<_> = stage.stored(1).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(stored, [1, 2, 3, 4, 5, 6, 7]);
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
        restarted(&stage, round).await;
    }
    let stored: Vec<_> = stage.stored(1).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(stored, (1..=201).collect::<Vec<_>>());
}
