//! One socket that begins to read its room more than once.

use chatting_actors::{outcome::Outcome, registry::RegistryConfig};

use crate::{
    acts,
    resume::{fine, legacy, reading, send},
    script::{ScriptedSpool, ScriptedStore},
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
