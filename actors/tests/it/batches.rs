//! When a batch goes to the store.

use std::time::{Duration, Instant};

use chatting_actors::writer::WriterConfig;
use tokio::time::timeout;

use crate::{
    script::{ScriptedSpool, ScriptedStore},
    stage::{Stage, registry_config, until, writer_config},
};

#[actix::test]
async fn a_batch_waits_for_more_unless_there_is_enough() {
    let writer = WriterConfig {
        // Longer than a test.
        linger: Duration::from_secs(3600),
        batch_enough: 3,
        ..writer_config()
    };
    let stage = Stage::with(
        ScriptedSpool::default(),
        ScriptedStore::default(),
        registry_config(),
        writer,
    );
    let _reader = stage.reader(1);
    let batches = || stage.store.script().batches.clone();
    for round in 1..=2 {
        for n in 1..=2 {
            stage.accepted(1, &n.to_string()).await;
        }
        assert_eq!(batches().len(), round - 1, "two wait");
        stage.accepted(1, "3").await;
        until("three to be enough", || batches().len() == round).await;
    }
    assert_eq!(batches(), [3, 3]);
}

#[actix::test]
async fn what_waits_already_counts_for_what_is_enough() {
    let writer = WriterConfig {
        // Longer than a test.
        linger: Duration::from_secs(3600),
        batch_enough: 10,
        ..writer_config()
    };
    let stage = Stage::with(
        ScriptedSpool::default(),
        ScriptedStore::default(),
        registry_config(),
        writer,
    );
    let _reader = stage.reader(1);
    stage.accepted(1, "the first").await;
    until("the first to wait for more", || stage.metrics.spool_events.get() == 1).await;
    for n in 2..=10 {
        stage.accepted(1, &n.to_string()).await;
    }
    // Before a change of the broadcast's record wakes the writer anyhow.
    let sent = until("ten to be enough", || stage.store.script().batches == [10]);
    timeout(Duration::from_secs(5), sent).await.expect("ten to be enough");
}

#[actix::test]
async fn a_batch_that_is_stored_and_cannot_be_freed_is_given_again_after_longer_and_longer_pauses() {
    let writer = WriterConfig {
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_secs(3600),
        ..writer_config()
    };
    let stage = Stage::with(
        ScriptedSpool::default(),
        ScriptedStore::default(),
        registry_config(),
        writer,
    );
    let _reader = stage.reader(1);
    stage.accepted(1, "the first").await;
    until("the first to be freed", || stage.spool.script().rows.is_empty()).await;
    let before = stage.store.script().batches.len();
    stage.spool.script().failing = usize::MAX;
    let began = Instant::now();
    stage.accepted(1, "the second").await;
    until("eight tries", || stage.store.script().batches.len() >= before + 8).await;
    // Of 1, 2, 4, … 64 ms.
    assert!(began.elapsed() >= Duration::from_millis(127));
    stage.spool.script().failing = 0;
}
