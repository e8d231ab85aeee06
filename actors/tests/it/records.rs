//! Broadcasts' records in the spool: what was accepted names one that is kept.

use std::time::{Duration, Instant};

use chatting_actors::{registry::RegistryConfig, writer::SpoolEnd};

use crate::{
    script::{ScriptedSpool, ScriptedStore},
    stage::{Stage, registry_config, until, writer_config},
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

#[actix::test]
async fn a_stop_that_leaves_a_broadcast_unkept_is_none_in_order() {
    for (fails, end) in [(0, SpoolEnd::Closed), (usize::MAX, SpoolEnd::Unmarked)] {
        let stage = stage_of(fails);
        let _reader = stage.reader(1);
        stage.accepted(1, "x").await;
        assert_eq!(stage.spool_end(), end);
    }
}
