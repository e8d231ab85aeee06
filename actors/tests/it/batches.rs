//! When a batch goes to the store, and what holds up no other.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chatting_actors::{registry::RegistryConfig, writer::WriterConfig};

use crate::{
    resume::quick_rooms,
    script::{Call, ScriptedSpool, ScriptedStore},
    stage::{Stage, keep_lines, lines_with, registry_config, until, writer_config},
};

fn stage_of(writer: WriterConfig) -> Stage {
    let registry = RegistryConfig {
        // The record of a broadcast that goes on is kept anew now and then, and that wakes the writer: not within a test.
        broadcast_resume: Duration::from_secs(36_000),
        ..registry_config()
    };
    Stage::with(ScriptedSpool::default(), ScriptedStore::default(), registry, writer)
}

#[actix::test]
async fn a_batch_waits_for_more_unless_there_is_enough() {
    let writer = WriterConfig {
        // Longer than a test.
        linger: Duration::from_secs(3600),
        batch_enough: 3,
        ..writer_config()
    };
    let stage = stage_of(writer);
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
    let stage = stage_of(writer);
    let _reader = stage.reader(1);
    stage.accepted(1, "the first").await;
    until("the first to wait for more", || stage.metrics.spool_events.get() == 1).await;
    for n in 2..=10 {
        stage.accepted(1, &n.to_string()).await;
    }
    until("ten to be enough", || stage.store.script().batches == [10]).await;
}

#[actix::test]
async fn a_batch_that_is_stored_and_cannot_be_freed_is_given_again_after_longer_and_longer_pauses() {
    let writer = WriterConfig {
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_secs(3600),
        ..writer_config()
    };
    let stage = stage_of(writer);
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

#[actix::test]
async fn a_store_that_takes_no_batch_is_prepared_anew_before_each_try_after_longer_and_longer_pauses() {
    let writer = WriterConfig {
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_secs(3600),
        ..writer_config()
    };
    let stage = stage_of(writer);
    let _reader = stage.reader(1);
    stage.accepted(1, "the first").await;
    until("the first to be freed", || stage.spool.script().rows.is_empty()).await;
    let before = stage.store.script().batches.len();
    // A batch, and what it is prepared for the next one with.
    let calls = (0..8).flat_map(|_| [Call::FailsAfter, Call::Works]);
    stage.store.script().calls.extend(calls);
    let began = Instant::now();
    stage.accepted(1, "the second").await;
    until("nine tries", || stage.store.script().batches.len() == before + 9).await;
    // Of 1, 2, 4, … 128 ms.
    assert!(began.elapsed() >= Duration::from_millis(255));
    until("the second to be freed", || stage.spool.script().rows.is_empty()).await;
    assert!(stage.store.script().calls.is_empty());
}

#[actix::test]
async fn a_broadcast_that_the_store_does_not_keep_holds_up_no_other() {
    let stage = stage_of(writer_config());
    // For good, and for now.
    stage.store.script().not_put = BTreeMap::from([(1, true), (2, false)]);
    for room in 1..=3 {
        let _reader = stage.reader(room);
        stage.accepted(room, "x").await;
    }
    let has = |room: i64| {
        let script = stage.store.script();
        script.broadcasts.values().any(|one| one.presenter.get() == room)
    };
    until("the third to be stored", || has(3)).await;
    let puts = |room: i64| stage.store.script().puts.get(&room).copied().unwrap_or_default();
    until("the second to be tried again", || puts(2) > 2).await;
    assert_eq!((puts(1), puts(3)), (1, 1));
    stage.store.script().not_put.clear();
    until("the second to be stored", || has(2)).await;
    assert_eq!((puts(1), has(1)), (1, false));
}

#[actix::test]
async fn a_broadcast_that_is_marked_as_stored_in_vain_is_told_and_not_given_again_without_a_pause() {
    keep_lines();
    let writer = WriterConfig {
        // Longer than a test.
        retry_max: Duration::from_secs(3600),
        ..writer_config()
    };
    let stage = stage_of(writer);
    stage.spool.script().marks_in_vain = true;
    let _reader = stage.reader(1);
    stage.accepted(1, "x").await;
    let told = || lines_with("was marked as stored and is not: its record says something else than its row");
    until("it to be told", || !told().is_empty()).await;
    assert_eq!(told().len(), 1);
    let puts = || stage.store.script().puts.values().sum::<usize>();
    let before = puts();
    stage.accepted(1, "behind it").await;
    until("what is behind it to be stored", || {
        stage.store.script().events.len() == 2
    })
    .await;
    assert_eq!(puts(), before);
}

#[actix::test]
async fn that_a_broadcast_was_seen_again_has_nobody_look_for_what_the_store_lacks() {
    let config = RegistryConfig {
        sweep: Duration::from_millis(3),
        // A tenth of it is how often it is kept that it was seen.
        broadcast_resume: Duration::from_millis(50),
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    // The room server names its start, so it is one broadcast however slow the machine is.
    let stage = Stage::among(quick_rooms(), spool, store, config, writer_config());
    let _reader = stage.reader(1);
    stage.accepted(1, "x").await;
    let stored = || {
        let script = stage.spool.script();
        // None is lacking behind the one that was.
        script.broadcasts.values().all(|(_, stored)| *stored)
            && script.unstored_found.contains(&1)
            && script.unstored_found.ends_with(&[0])
    };
    until("it to be stored", stored).await;
    let version = || {
        let script = stage.spool.script();
        script.broadcasts.values().map(|(record, _)| record.version).max()
    };
    let looked = || stage.spool.script().unstored_found.len();
    let (first, before) = (version().unwrap(), looked());
    until("it to be seen again and again", || {
        version().is_some_and(|version| version > first + 20)
    })
    .await;
    // Once more at most, for what was told while the last question was asked.
    assert!(looked() <= before + 1, "{before}, then {}", looked());
    assert_eq!(stage.spool.script().broadcasts.len(), 1);
}
