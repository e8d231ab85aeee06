//! Broadcasts' records in the spool: what was accepted names one that is kept.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chatting_actors::{
    registry::{End, RegistryConfig},
    writer::SpoolEnd,
};
use uuid::Uuid;

use crate::{
    model::hush_planned_panics,
    script::{ScriptedSpool, ScriptedStore},
    stage::{Reader, Stage, keep_lines, lines_with, registry_config, until, writer_config},
};

/// A spool that fails to keep records so many times, and takes everything else.
fn stage_of(fails: usize) -> Stage {
    let registry = RegistryConfig {
        // That a broadcast goes on is kept now and then, and with it whatever was not: not within a test.
        broadcast_resume: Duration::from_secs(36_000),
        ..registry_config()
    };
    let spool = ScriptedSpool::default();
    spool.script().keeps_in_vain = fails;
    Stage::with(spool, ScriptedStore::default(), registry, writer_config())
}

#[actix::test]
async fn a_message_is_accepted_when_its_broadcast_is_kept_though_that_failed_before() {
    let stage = stage_of(1);
    let _reader = stage.reader(1);
    let accepted = stage.accepted(1, "x").await;
    let script = stage.spool.script();
    let rows = script.keys.iter().chain(script.rows.values());
    let mut named = rows
        .filter(|event| event.id == accepted.id)
        .map(|event| event.broadcast_id);
    let named = named.next().unwrap().unwrap();
    assert!(script.broadcasts.contains_key(&named));
}

#[actix::test]
async fn a_broadcast_that_could_not_be_kept_is_tried_again_though_nothing_else_happens() {
    for fails in [1, 2] {
        let stage = stage_of(fails);
        let _reader = stage.reader(1);
        let kept = || stage.spool.script().broadcasts.len() == 1;
        until("its record to be kept", kept).await;
        assert_eq!(stage.spool.script().keeps_in_vain, 0);
        assert!(stage.writer.writable());
    }
}

#[actix::test]
async fn a_broadcast_that_is_never_kept_is_not_tried_with_every_commit() {
    let (began, stage) = (Instant::now(), stage_of(usize::MAX));
    let _reader = stage.reader(1);
    for _ in 0..200 {
        stage.accepted(1, "x").await;
    }
    let tries = usize::MAX - stage.spool.script().keeps_in_vain;
    // The first, one behind a commit, and one a second.
    let at_most = 3 + began.elapsed().as_secs();
    assert!((2..=at_most).contains(&(tries as u64)), "{tries} tries");
}

/// The rooms that have a record, with the versions of these.
fn kept(spool: &ScriptedSpool) -> BTreeMap<i64, u64> {
    let script = spool.script();
    let records = script.broadcasts.values().map(|(record, _)| record);
    records.map(|record| (record.presenter.get(), record.version)).collect()
}

fn rooms_kept(stage: &Stage) -> Vec<i64> {
    kept(&stage.spool).into_keys().collect()
}

/// The broadcast that a message which is accepted now names.
async fn named(stage: &Stage, presenter: i64) -> Option<Uuid> {
    let accepted = stage.accepted(presenter, "x").await;
    let script = stage.spool.script();
    let mut all = script.keys.iter().chain(script.rows.values());
    all.find(|event| event.id == accepted.id).unwrap().broadcast_id
}

#[actix::test]
async fn a_broadcast_that_is_never_kept_costs_no_other_room_its_record_and_is_told_once() {
    keep_lines();
    let (stage, never) = (stage_of(0), 987_450);
    stage.spool.script().records_in_vain.insert(never);
    let began = Instant::now();
    let rooms = never - 49..=never + 50;
    let _readers: Vec<_> = rooms.clone().map(|presenter| stage.reader(presenter)).collect();
    let others: Vec<i64> = rooms.filter(|presenter| *presenter != never).collect();
    until("the records of the others", || rooms_kept(&stage) == others).await;
    // What is accepted meanwhile names one that is kept, or that is tried.
    assert!(named(&stage, never).await.is_some());
    let next = never + 51;
    let _next = stage.reader(next);
    assert!(named(&stage, next).await.is_some());
    assert_eq!(rooms_kept(&stage).last(), Some(&next));
    let tries = || stage.spool.script().record_tries as u64;
    let before = tries();
    until("it to be tried alone again", || tries() > before).await;
    // One at first, eight for halves of a hundred and the one that is left, and one a second.
    let at_most = 10 + began.elapsed().as_secs();
    assert!(tries() <= at_most, "{} tries", tries());
    let told = lines_with(&format!("of room {never} cannot be kept"));
    assert_eq!(told.len(), 1, "{told:?}");
    stage.spool.script().records_in_vain.clear();
    until("its record", || rooms_kept(&stage).contains(&never)).await;
}

#[actix::test]
async fn of_many_broadcasts_that_are_never_kept_one_is_named() {
    keep_lines();
    let (began, stage) = (Instant::now(), stage_of(0));
    let rooms = 986_500..986_530;
    stage.spool.script().records_in_vain.extend(rooms.clone());
    let _readers: Vec<_> = rooms.clone().map(|presenter| stage.reader(presenter)).collect();
    until("them to be tried alone", || stage.spool.script().record_tries > 60).await;
    stage.spool_end();
    let told = lines_with("cannot be kept, it is tried again");
    let told = told.iter().filter(|line| line.contains("of room 9865")).count() as u64;
    let at_most = 1 + began.elapsed().as_secs() / 10;
    assert!((1..=at_most).contains(&told), "{told} lines");
}

#[actix::test]
async fn broadcasts_that_are_never_kept_are_not_told_apart_behind_every_commit() {
    let (began, stage) = (Instant::now(), stage_of(0));
    let rooms = 1..=200;
    stage.spool.script().records_in_vain.extend(rooms.clone());
    let mut readers = Vec::new();
    for presenter in rooms {
        readers.push(stage.reader(presenter));
        stage.accepted(presenter, "x").await;
    }
    let probes = stage.spool.script().probes as u64;
    // Of those that wait, and of those that failed alone, once a second.
    let at_most = 2 + 2 * began.elapsed().as_secs();
    assert!(probes <= at_most, "{probes} probes");
}

#[actix::test]
async fn a_file_that_takes_nothing_is_not_tried_with_every_half() {
    let stage = stage_of(0);
    stage.spool.script().records_in_vain.extend(1..=30);
    let _readers: Vec<_> = (1..=30).map(|presenter| stage.reader(presenter)).collect();
    until("them to be tried alone", || stage.spool.script().record_tries > 60).await;
    let (spool, began) = (stage.spool.clone(), Instant::now());
    let hold = stage.writer.hold_spool();
    let before = {
        let mut script = spool.script();
        script.failing = usize::MAX;
        script.record_tries
    };
    drop(hold);
    let tries = || spool.script().record_tries - before;
    until("them to be tried", || tries() > 0).await;
    assert_eq!(stage.spool_end(), SpoolEnd::Unmarked);
    // Once a second, and at the stop.
    let at_most = 3 + began.elapsed().as_secs();
    assert!(tries() as u64 <= at_most, "{} tries", tries());
}

#[actix::test]
async fn a_stop_does_not_wait_for_all_broadcasts_to_be_told_apart() {
    let stage = stage_of(0);
    let readers: Vec<Arc<Reader>> = (1..=200).map(|presenter| stage.reader(presenter)).collect();
    until("their records", || rooms_kept(&stage).len() == 200).await;
    let spool = stage.spool.clone();
    for reader in &readers {
        reader.leave();
    }
    // They are tried once before the stop is come to.
    let hold = stage.writer.hold_spool();
    {
        let mut script = spool.script();
        script.records_in_vain.extend(1..=200);
        script.record_tries_take = Duration::from_millis(25);
    }
    stage.registry.refuse_submits().await;
    stage.registry.end_sessions(End::GoingAway).await;
    stage.writer.stop();
    drop(hold);
    assert_eq!(stage.spool_end(), SpoolEnd::Unmarked);
    // Two seconds for those that wait, and for those that failed alone.
    let tries = spool.script().record_tries;
    assert!(tries <= 200, "{tries} tries");
}

#[actix::test]
async fn a_stop_keeps_the_records_of_all_rooms_but_the_one_that_cannot_be_kept() {
    let stage = stage_of(0);
    let readers: Vec<Arc<Reader>> = (1..=5).map(|presenter| stage.reader(presenter)).collect();
    until("their records", || rooms_kept(&stage) == [1, 2, 3, 4, 5]).await;
    let (spool, before) = (stage.spool.clone(), kept(&stage.spool));
    spool.script().records_in_vain.insert(2);
    for reader in &readers {
        reader.leave();
    }
    // They are tried once before the stop is come to.
    let hold = stage.writer.hold_spool();
    stage.registry.refuse_submits().await;
    stage.registry.end_sessions(End::GoingAway).await;
    stage.writer.stop();
    drop(hold);
    assert_eq!(stage.spool_end(), SpoolEnd::Unmarked);
    let newer: Vec<bool> = std::iter::zip(before.values(), kept(&spool).values())
        .map(|(before, now)| before < now)
        .collect();
    assert_eq!(newer, [true, false, true, true, true]);
}

#[actix::test]
async fn a_registry_that_is_made_anew_goes_on_with_all_broadcasts_though_one_is_not_kept() {
    hush_planned_panics();
    let stage = stage_of(0);
    stage.spool.script().records_in_vain.insert(1);
    let _before = [1, 2].map(|presenter| stage.reader(presenter));
    until("the record of the other", || rooms_kept(&stage) == [2]).await;
    let before = named(&stage, 1).await;
    stage.registry_fails().await;
    // Also one that begins behind it.
    let _readers = [1, 2, 3].map(|presenter| stage.reader(presenter));
    until("the record of the next", || rooms_kept(&stage) == [2, 3]).await;
    // What could not be kept has not been forgotten.
    assert!(before.is_some());
    assert_eq!(named(&stage, 1).await, before);
    stage.spool.script().records_in_vain.clear();
    until("its record", || rooms_kept(&stage) == [1, 2, 3]).await;
    assert!(stage.spool.script().broadcasts.contains_key(&before.unwrap()));
}

#[actix::test]
async fn a_stop_that_leaves_a_broadcast_unkept_is_none_in_order() {
    for (fails, end) in [(0, SpoolEnd::Closed), (usize::MAX, SpoolEnd::Unmarked)] {
        let stage = stage_of(fails);
        let _reader = stage.reader(1);
        stage.accepted(1, "x").await;
        assert_eq!(stage.spool_end(), end);
    }
}
