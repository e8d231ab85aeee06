//! One socket that begins to read its room more than once.

use std::time::Duration;

use chatting_actors::{
    outcome::{Outcome, Refusal},
    registry::{RegistryConfig, RoomView},
    seams::LogRange,
    types::Seq,
};

use crate::{
    acts,
    peer::{Peer, Shared, v1},
    resume::{fine, legacy, reading, send},
    script::{Commit, ScriptedSpool, ScriptedStore},
    stage::{Stage, registry_config, room, until, writer_config},
};

#[actix::test]
async fn rule_11_a_second_start_while_a_page_is_under_way_doubles_nothing() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let first = legacy(&stage);
    send(&stage, 1).await;
    first.has(1).await;
    first.leave();
    let held = async |count| {
        for _ in 0..count {
            let outcome = stage.submit_as(8, "lee", 1, "x", None).await.unwrap();
            assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        }
    };
    // A page is eight events. Of the first a legacy session is sent four, and that is all its credit in bytes, so the next page waits
    // for its socket.
    held(4).await;
    for _ in 0..4 {
        acts::done(&stage, 1).await;
    }
    held(4).await;
    stage.stop_well().await;
    let config = RegistryConfig {
        credit_events: 8,
        credit_bytes: 600,
        ..registry_config()
    };
    let stage = Stage::with(spool, store, config, writer_config());
    stage.log.hold(true);
    let peer = legacy(&stage);
    peer.stall();
    reading(&stage, 1).await;
    peer.starts_again(1);
    reading(&stage, 2).await;
    stage.log.hold(false);
    until("all pages", || {
        let log = stage.log.script();
        log.ranges.len() > 2 && log.under_way == 0
    })
    .await;
    for _ in 0..10 {
        let _ = stage.registry.view(room(1)).await;
    }
    let ranges: Vec<_> = stage.log.script().ranges.iter().map(|range| range.after.0).collect();
    assert_eq!(ranges, [1, 1, 9], "one page at once for each reading");
    peer.go_on();
    peer.has(13).await;
    assert_eq!(peer.seqs(), [2, 3, 4, 5, 10, 11, 12, 13]);
    fine(&[&first, &peer]);
}

#[actix::test]
async fn a_session_that_waits_for_its_turn_is_read_for_once_though_a_commit_of_unknown_outcome_comes_meanwhile() {
    let config = RegistryConfig {
        ring_events: 2,
        resume_reads: 1,
        sweep: Duration::from_millis(3),
        ..registry_config()
    };
    let stage = Stage::with(
        ScriptedSpool::default(),
        ScriptedStore::default(),
        config,
        writer_config(),
    );
    let come = |presenter, after| Peer::come(&stage.registry, presenter, v1(after), 64, Shared::default(), None);
    for presenter in [1, 2] {
        let peer = come(presenter, None);
        for n in 0..4 {
            stage.accepted(presenter, &n.to_string()).await;
        }
        peer.has(4).await;
        peer.leave();
    }
    stage.log.hold(true);
    let first = come(2, Some(1));
    reading(&stage, 1).await;
    let peer = come(1, Some(1));
    stage.has_session(1, true).await;
    stage.spool.script().commits.push_back(Commit::FailsUnknownWith);
    assert_eq!(stage.refused(1, "unknown").await, Refusal::OutcomeUnknown);
    let known = |view: Option<RoomView>| view.is_some_and(|view| view.last_seq == Some(Seq(5)));
    stage.keeps(1, "its numbers again", known).await;
    stage.log.hold(false);
    peer.has(5).await;
    first.has(4).await;
    assert_eq!(peer.seqs(), [2, 3, 4, 5]);
    let of_peer = |range: &&LogRange| range.presenter == room(1);
    let ranges: Vec<_> = stage.log.script().ranges.iter().filter(of_peer).cloned().collect();
    let ranges: Vec<_> = ranges.iter().map(|range| (range.after.0, range.through.0)).collect();
    assert_eq!(ranges, [(1, 5)]);
    fine(&[&first, &peer]);
}
