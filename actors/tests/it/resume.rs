//! Rules 11 to 16, the sharp edges: what a session is sent, and told, when something fails or changes while it begins.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chatting_actors::{
    outcome::{Delivery, Outcome, Refusal},
    registry::{self, End, Reading, RegistryConfig, RoomView, SessionId, Subscriber, Welcome},
    seldom::Seldom,
    session::Flow,
    types::{Event, MessageText, Nickname, Seq, UserIdx},
    writer::WriterConfig,
};

use crate::{
    acts,
    model::hush_planned_panics,
    peer::{Ack, Client, Peer, Shared, v1},
    script::{Commit, ScriptedRooms, ScriptedSpool, ScriptedStore},
    stage::{Stage, eventually, keep_lines, lines_with, registry_config, room, until, writer_config},
};

/// Longer than a test.
const NEVER: Duration = Duration::from_secs(3600);

/// Two events in memory, so that nearly everything is read from the log.
fn small() -> RegistryConfig {
    RegistryConfig {
        ring_events: 2,
        sweep: Duration::from_millis(3),
        resume_wait: NEVER,
        ..registry_config()
    }
}

/// Events stay in the spool until somebody waits for the store.
fn lazy() -> WriterConfig {
    WriterConfig {
        linger: NEVER,
        ..writer_config()
    }
}

fn stage(config: RegistryConfig) -> Stage {
    Stage::with(
        ScriptedSpool::default(),
        ScriptedStore::default(),
        config,
        writer_config(),
    )
}

pub fn come_as(stage: &Stage, reading: Reading, client: Option<Arc<Mutex<Client>>>) -> Arc<Peer> {
    Peer::come(&stage.registry, 1, reading, 64, Shared::default(), client)
}

pub fn come(stage: &Stage, after: Option<u64>) -> Arc<Peer> {
    come_as(stage, v1(after), None)
}

/// A session that acknowledges nothing by itself.
fn silent(stage: &Stage, after: Option<u64>) -> Arc<Peer> {
    Peer::come_silent(&stage.registry, 1, v1(after), 64)
}

pub fn legacy(stage: &Stage) -> Arc<Peer> {
    come_as(stage, Reading::Legacy, None)
}

pub async fn send(stage: &Stage, count: u64) {
    for n in 0..count {
        stage.accepted(1, &n.to_string()).await;
    }
}

/// A room with so many events in the store, that a session read and left.
async fn with_events(stage: &Stage, count: u64) {
    let peer = come(stage, None);
    send(stage, count).await;
    peer.has(count).await;
    peer.leave();
    stage.stored(1).await;
}

fn gap(welcome: &Welcome) -> Option<(u64, u64)> {
    welcome.gap.map(|gap| (gap.from.0, gap.to.0))
}

pub fn fine(peers: &[&Peer]) {
    for peer in peers {
        assert!(peer.wrong().is_empty(), "{:?}", peer.wrong());
    }
}

/// What a place on disk says: how far the room got, and whether a legacy session may go on from there.
fn place(stage: &Stage) -> Option<(u64, bool)> {
    let script = stage.spool.script();
    script
        .places
        .get(&1)
        .map(|place| (place.position.0, place.legacy_from.is_some()))
}

pub async fn reading(stage: &Stage, count: usize) {
    until("readings", || stage.log.script().under_way == count).await;
}

#[actix::test]
async fn a_registry_after_one_that_panicked_shows_no_session_that_waits_for_a_read() {
    hush_planned_panics();
    let stage = stage(small());
    with_events(&stage, 10).await;
    stage.log.hold(true);
    let _peers: Vec<_> = (2..=4).map(|after| come(&stage, Some(after))).collect();
    until("one to wait", || stage.metrics.resumes_waiting.get() == 1).await;
    stage.registry_fails().await;
    // The readings of the one before are still under way: none of them comes back and has it counted anew.
    until("none to wait", || stage.metrics.resumes_waiting.get() == 0).await;
    reading(&stage, 2).await;
}

#[actix::test]
async fn rule_15_a_takeover_while_a_page_is_under_way_sends_that_page_to_nobody() {
    let stage = stage(small());
    with_events(&stage, 10).await;
    stage.log.hold(true);
    let old = come(&stage, Some(2));
    reading(&stage, 1).await;
    let new = come(&stage, Some(5));
    reading(&stage, 2).await;
    assert_eq!(old.closed().await, End::Replaced);
    stage.log.hold(false);
    new.has(10).await;
    assert_eq!(new.welcome().unwrap().resumed_from, Seq(6));
    assert_eq!(new.seqs(), [6, 7, 8, 9, 10]);
    assert!(old.queued().is_empty() && old.welcome().is_none());
    fine(&[&old, &new]);
}

#[actix::test]
async fn rule_16_a_page_that_comes_back_for_a_session_that_is_gone_lets_the_next_one_read() {
    let stage = stage(RegistryConfig {
        resume_reads: 1,
        ..small()
    });
    with_events(&stage, 10).await;
    stage.log.hold(true);
    let first = come(&stage, Some(2));
    reading(&stage, 1).await;
    first.leave();
    // These wait for their turn, and all but the last are gone when it comes.
    for _ in 0..5 {
        come(&stage, Some(3)).leave();
    }
    let last = come(&stage, Some(4));
    // The registry has heard of all of them when it answers.
    assert!(stage.registry.view(room(1)).await.unwrap().session);
    stage.log.hold(false);
    last.has(10).await;
    assert_eq!(last.seqs(), [5, 6, 7, 8, 9, 10]);
    let script = stage.log.script();
    assert_eq!(script.most, 1);
    assert!(
        script.ranges.iter().all(|range| range.after != Seq(3)),
        "nothing is read for who is gone: {:?}",
        script.ranges
    );
    fine(&[&first, &last]);
}

#[actix::test]
async fn at_most_resume_reads_are_under_way_however_many_sessions_resume_and_registries_fail() {
    hush_planned_panics();
    let stage = stage(small());
    for presenter in 1..=8 {
        let peer = Peer::come(&stage.registry, presenter, v1(None), 64, Shared::default(), None);
        for n in 0..6 {
            stage.accepted(presenter, &n.to_string()).await;
        }
        peer.leave();
    }
    let all = |stage: &Stage| -> Vec<Arc<Peer>> {
        let come = |presenter| Peer::come(&stage.registry, presenter, v1(Some(1)), 64, Shared::default(), None);
        (1..=8).map(come).collect()
    };
    stage.log.hold(true);
    let before = all(&stage);
    reading(&stage, 2).await;
    stage.registry_fails().await;
    let after = all(&stage);
    for peer in &before {
        assert_eq!(peer.closed().await, End::Restarted);
    }
    // Everything that was asked for by now has been answered, so the sessions have asked for what they lack.
    for presenter in 1..=8 {
        let known = |view: Option<RoomView>| view.is_some_and(|view| view.last_seq.is_some());
        stage.keeps(presenter, "the last seq", known).await;
    }
    stage.log.hold(false);
    for peer in &after {
        peer.has(6).await;
        assert_eq!(peer.seqs(), [2, 3, 4, 5, 6]);
        fine(&[peer]);
    }
    assert_eq!(stage.log.script().most, 2);
}

#[actix::test]
async fn a_reading_that_panics_is_one_that_failed() {
    hush_planned_panics();
    let stage = stage(RegistryConfig {
        resume_reads: 1,
        ..small()
    });
    with_events(&stage, 10).await;
    stage.log.script().panics = 3;
    let peer = come(&stage, Some(2));
    peer.has(10).await;
    assert_eq!(gap(&peer.welcomed().await), None);
    fine(&[&peer]);
}

#[actix::test]
async fn rule_16_a_hole_in_the_middle_of_a_catch_up_ends_the_session_and_the_next_welcome_tells_it() {
    let stage = stage(RegistryConfig {
        credit_events: 3,
        ..small()
    });
    with_events(&stage, 10).await;
    stage.store.script().events.remove(&(1, 6));
    let client = Arc::new(Mutex::new(Client::default()));
    let peer = come_as(&stage, v1(Some(2)), Some(Arc::clone(&client)));
    assert_eq!(peer.closed().await, End::Restarted);
    assert_eq!(peer.seqs(), [3, 4, 5]);
    let have = client.lock().unwrap().have;
    assert_eq!(have, Some(5));
    let next = come_as(&stage, v1(have), Some(client));
    next.has(10).await;
    assert_eq!(gap(&next.welcome().unwrap()), Some((6, 6)));
    assert_eq!(next.seqs(), [7, 8, 9, 10]);
    fine(&[&peer, &next]);
}

#[actix::test]
async fn rule_16_a_gap_ends_where_the_log_goes_on_though_it_goes_on_in_the_spool() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool, store, small(), lazy());
    with_events(&stage, 3).await;
    let peer = come(&stage, Some(3));
    send(&stage, 6).await;
    peer.has(9).await;
    peer.leave();
    assert!(stage.spool.script().rows.len() == 6);
    stage.store.script().events.remove(&(1, 3));
    let peer = come(&stage, Some(1));
    assert_eq!(peer.closed().await, End::Restarted);
    let next = come(&stage, Some(2));
    next.has(9).await;
    assert_eq!(gap(&next.welcome().unwrap()), Some((3, 3)));
    assert_eq!(next.seqs(), [4, 5, 6, 7, 8, 9]);
    fine(&[&peer, &next]);
}

#[actix::test]
async fn rule_16_a_store_that_is_back_in_time_leaves_no_gap() {
    let stage = stage(small());
    with_events(&stage, 10).await;
    stage.store.script().away = true;
    let peer = come(&stage, Some(2));
    // It was asked in vain more than once.
    until("readings", || stage.log.script().ranges.len() > 3).await;
    assert!(peer.welcome().is_none(), "whether there is a gap is not known yet");
    stage.store.script().away = false;
    peer.has(10).await;
    assert_eq!(gap(&peer.welcome().unwrap()), None);
    assert_eq!(peer.seqs(), (3..=10).collect::<Vec<_>>());
    fine(&[&peer]);
}

#[actix::test]
async fn while_the_store_is_away_where_the_spool_begins_is_sought_once_and_not_with_each_try() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool, store, small(), lazy());
    with_events(&stage, 3).await;
    let peer = come(&stage, Some(3));
    send(&stage, 6).await;
    peer.has(9).await;
    peer.leave();
    let begins = *stage.spool.script().rows.keys().next().unwrap();
    stage.store.script().away = true;
    let before = stage.log.script().from.len();
    let peer = come(&stage, Some(1));
    until("readings", || stage.log.script().from.len() > before + 3).await;
    assert_eq!(stage.log.script().from[before..before + 3], [0, begins, begins]);
    stage.store.script().away = false;
    peer.has(9).await;
    assert_eq!(peer.seqs(), (2..=9).collect::<Vec<_>>());
    fine(&[&peer]);
}

#[actix::test]
async fn rule_16_a_store_that_is_away_for_too_long_costs_what_only_it_has() {
    let stage = stage(RegistryConfig {
        resume_wait: Duration::from_millis(20),
        ..small()
    });
    with_events(&stage, 10).await;
    stage.store.script().away = true;
    let peer = come(&stage, Some(2));
    assert_eq!(gap(&peer.welcomed().await), Some((3, 8)), "memory has the rest");
    peer.has(10).await;
    assert_eq!(peer.seqs(), [9, 10]);
    fine(&[&peer]);
}

#[actix::test]
async fn a_log_that_cannot_be_read_has_no_line_a_room_and_try_nor_has_what_it_lacks() {
    keep_lines();
    let stage = stage(RegistryConfig {
        resume_wait: Duration::from_millis(20),
        ..small()
    });
    let began = Instant::now();
    let come = |presenter, after| Peer::come(&stage.registry, presenter, v1(after), 64, Shared::default(), None);
    let rooms = 987_601..=987_605;
    for presenter in rooms.clone() {
        let peer = come(presenter, None);
        for n in 0..10 {
            stage.accepted(presenter, &n.to_string()).await;
        }
        peer.has(10).await;
        peer.leave();
    }
    stage.parts.flush().await;
    stage.store.script().away = true;
    for presenter in rooms {
        let peer = come(presenter, Some(2));
        assert_eq!(gap(&peer.welcomed().await), Some((3, 8)), "memory has the rest");
    }
    for what in ["the log cannot be read", "the log has nothing of"] {
        let told = lines_with(&format!(": {what}"));
        let told: Vec<_> = told.iter().filter(|line| line.contains("presenter 98760")).collect();
        let at_most = 1 + began.elapsed().as_secs() / Seldom::EVERY.as_secs();
        assert!((1..=at_most).contains(&(told.len() as u64)), "{told:?}");
    }
}

#[actix::test]
async fn rule_16_a_gap_that_the_client_did_not_read_is_told_again() {
    let stage = stage(RegistryConfig {
        resume_max: 3,
        ..small()
    });
    with_events(&stage, 2).await;
    let acked = silent(&stage, None);
    send(&stage, 2).await;
    acked.has(4).await;
    acked.leave();
    for _ in 0..3 {
        // What takes events and is acknowledged by nobody does not move the place.
        let peer = silent(&stage, Some(2));
        send(&stage, 2).await;
        peer.leave();
    }
    for _ in 0..2 {
        let peer = silent(&stage, None);
        peer.stall();
        until("a welcome", || peer.began_at().is_some()).await;
        peer.leave();
    }
    let peer = come(&stage, None);
    let welcome = peer.welcomed().await;
    assert_eq!((gap(&welcome), welcome.last_seq), (Some((3, 7)), Seq(10)));
    fine(&[&acked, &peer]);
}

#[actix::test]
async fn a_registry_that_fails_while_pages_are_under_way_leaves_nobody_waiting() {
    hush_planned_panics();
    let stage = stage(small());
    with_events(&stage, 10).await;
    stage.log.hold(true);
    let before = come(&stage, Some(2));
    reading(&stage, 1).await;
    stage.registry_fails().await;
    assert_eq!(before.closed().await, End::Restarted);
    let after = come(&stage, Some(2));
    reading(&stage, 2).await;
    stage.log.hold(false);
    after.has(10).await;
    assert_eq!(after.seqs(), (3..=10).collect::<Vec<_>>());
    assert!(before.queued().is_empty());
    fine(&[&before, &after]);
}

#[actix::test]
async fn rule_15_a_session_of_a_registry_that_failed_takes_nothing_beside_its_successor() {
    hush_planned_panics();
    let stage = stage(registry_config());
    let old = come(&stage, None);
    old.welcomed().await;
    old.stall();
    send(&stage, 3).await;
    assert_eq!(old.queued(), [1, 2, 3]);
    stage.registry_fails().await;
    let new = come(&stage, Some(1));
    new.has(3).await;
    old.go_on();
    assert!(old.seqs().is_empty(), "{:?}", old.seqs());
    assert!(old.over());
    fine(&[&old, &new]);
}

#[actix::test]
async fn rule_11_what_was_queued_to_a_legacy_session_of_a_registry_that_failed_is_taken_by_it_and_by_nobody_else() {
    hush_planned_panics();
    let stage = stage(registry_config());
    let old = legacy(&stage);
    old.stall();
    for n in 0..3 {
        let accepted = stage.accepted(1, &n.to_string()).await;
        assert_eq!(accepted.delivery, Delivery::Delivered);
    }
    assert_eq!(old.queued(), [1, 2, 3]);
    stage.registry_fails().await;
    let new = legacy(&stage);
    stage.has_session(1, true).await;
    old.go_on();
    assert_eq!(old.seqs(), [1, 2, 3]);
    assert!(old.over());
    send(&stage, 1).await;
    new.has(4).await;
    assert_eq!(new.seqs(), [4]);
    fine(&[&old, &new]);
}

#[actix::test]
async fn rule_11_what_was_held_behind_a_legacy_session_of_a_registry_that_failed_is_for_the_next_one() {
    hush_planned_panics();
    let stage = stage(RegistryConfig {
        credit_events: 2,
        ..registry_config()
    });
    let old = legacy(&stage);
    old.stall();
    for n in 1..=6 {
        let accepted = stage.accepted(1, &n.to_string()).await;
        let delivery = if n <= 2 { Delivery::Delivered } else { Delivery::Held };
        assert_eq!(accepted.delivery, delivery, "{n}");
    }
    assert_eq!(old.queued(), [1, 2]);
    stage.registry_fails().await;
    let new = legacy(&stage);
    stage.has_session(1, true).await;
    old.go_on();
    assert!(old.over());
    new.has(6).await;
    assert_eq!((old.seqs(), new.seqs()), (vec![1, 2], vec![3, 4, 5, 6]));
    fine(&[&old, &new]);
}

#[actix::test]
async fn rule_11_what_a_room_held_without_a_session_when_its_registry_failed_is_for_the_next_legacy_one() {
    hush_planned_panics();
    let stage = stage(RegistryConfig {
        checkpoint: NEVER,
        ..registry_config()
    });
    let old = legacy(&stage);
    send(&stage, 2).await;
    old.has(2).await;
    until("the only place that is kept while it runs", || place(&stage).is_some()).await;
    old.leave();
    send(&stage, 3).await;
    // The next registry has no more than the place, and leaves it as it is.
    for _ in 0..2 {
        stage.registry_fails().await;
        assert_eq!(stage.accepted(1, "held").await.delivery, Delivery::Held);
    }
    let new = legacy(&stage);
    new.has(7).await;
    assert_eq!((old.seqs(), new.seqs()), (vec![1, 2], vec![3, 4, 5, 6, 7]));
    fine(&[&old, &new]);
}

#[actix::test]
async fn a_session_whose_rooms_numbering_is_not_known_waits_and_is_welcomed_when_it_is() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store.clone(), small(), writer_config());
    with_events(&stage, 5).await;
    drop(stage);
    spool.script().failing = usize::MAX;
    let stage = Stage::with(spool.clone(), store, small(), writer_config());
    let peer = come(&stage, Some(2));
    until("questions", || spool.script().failing < usize::MAX - 3).await;
    assert!(peer.began_at().is_none());
    spool.script().failing = 0;
    peer.has(5).await;
    let welcome = peer.welcome().unwrap();
    assert_eq!((welcome.resumed_from, welcome.last_seq), (Seq(3), Seq(5)));
    fine(&[&peer]);
}

#[actix::test]
async fn a_session_whose_rooms_numbering_is_not_known_in_time_is_told_so() {
    let spool = ScriptedSpool::default();
    spool.script().failing = usize::MAX;
    let config = RegistryConfig {
        resume_wait: Duration::from_millis(20),
        ..small()
    };
    let stage = Stage::with(spool, ScriptedStore::default(), config, writer_config());
    let peer = come(&stage, None);
    assert_eq!(peer.closed().await, End::LogUnavailable);
    assert!(peer.began_at().is_none());
    fine(&[&peer]);
}

#[actix::test]
async fn a_page_that_comes_while_the_numbering_is_not_known_welcomes_nobody_yet() {
    let stage = stage(small());
    with_events(&stage, 6).await;
    stage.log.hold(true);
    let peer = come(&stage, Some(2));
    reading(&stage, 1).await;
    {
        let mut script = stage.spool.script();
        script.commits.push_back(Commit::FailsUnknownWith);
        // Nor can it be asked for.
        script.fails_behind = true;
    }
    assert_eq!(stage.refused(1, "unknown").await, Refusal::OutcomeUnknown);
    stage.log.hold(false);
    reading(&stage, 0).await;
    // It has read this page when it answers.
    assert_eq!(stage.registry.view(room(1)).await.unwrap().last_seq, None);
    stage.spool.script().failing = 0;
    let welcome = peer.welcomed().await;
    assert_eq!((welcome.resumed_from, welcome.last_seq), (Seq(3), Seq(7)));
    peer.has(7).await;
    fine(&[&peer]);
}

pub fn asker() -> UserIdx {
    UserIdx::new(7).unwrap()
}

pub async fn is_live(stage: &Stage, live: bool) {
    match live {
        true => stage.rooms.script().not_live.remove(&1),
        false => stage.rooms.script().not_live.insert(1),
    };
    eventually("the verdict", async || {
        let look = stage.registry.look(room(1), asker()).await;
        look.is_ok_and(|look| look.live == live)
    })
    .await;
}

/// The broadcast ends, and another one begins.
async fn another_broadcast(stage: &Stage) {
    is_live(stage, false).await;
    stage.rooms.script().started_at_ms.insert(1, 2_000);
    is_live(stage, true).await;
}

pub fn quick_rooms() -> ScriptedRooms {
    let rooms = ScriptedRooms::default();
    rooms.script().ttl = Duration::from_millis(2);
    rooms.script().started_at_ms.insert(1, 1_000);
    rooms
}

/// A room whose session is gone and for which three messages are held.
async fn held(rooms: ScriptedRooms) -> Stage {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    held_in(rooms, spool, store, registry_config()).await
}

pub async fn held_in(
    rooms: ScriptedRooms,
    spool: ScriptedSpool,
    store: ScriptedStore,
    config: RegistryConfig,
) -> Stage {
    let stage = Stage::among(rooms, spool, store, config, writer_config());
    let first = legacy(&stage);
    send(&stage, 1).await;
    first.has(1).await;
    first.leave();
    send(&stage, 3).await;
    stage
}

#[actix::test]
async fn rule_13_what_is_held_waits_for_the_session_when_its_broadcast_was_away_for_a_moment_only() {
    // The session comes after it; while it is away; and one that speaks v1 and says what it has.
    for (early, reading) in [(false, Reading::Legacy), (true, Reading::Legacy), (true, v1(Some(1)))] {
        let rooms = quick_rooms();
        if !early {
            // That nothing names it does not make it another one.
            rooms.script().started_at_ms.clear();
        }
        let stage = held(rooms).await;
        is_live(&stage, false).await;
        let early = early.then(|| come_as(&stage, reading.clone(), None));
        if early.is_some() {
            stage.has_session(1, true).await;
        }
        is_live(&stage, true).await;
        let last = if early.is_none() {
            // Rule 12: its session ended a moment ago, and so it is held for still.
            let after = stage.accepted(1, "after").await;
            assert_eq!(after.delivery, Delivery::Held);
            after.seq.0
        } else {
            4
        };
        let peer = early.unwrap_or_else(|| come_as(&stage, reading.clone(), None));
        peer.has(last).await;
        assert_eq!(peer.seqs(), (2..=last).collect::<Vec<_>>());
        fine(&[&peer]);
    }
}

/// A presenter whose service numbers rooms, and tells 0 of one that is not live.
fn rooms_that_number_none_as_0() -> ScriptedRooms {
    let rooms = quick_rooms();
    rooms.script().started_at_ms.clear();
    rooms.script().room_idx.insert(1, 7);
    rooms.script().room_idx_not_live = Some(0);
    rooms
}

#[actix::test]
async fn rule_13_what_is_held_waits_for_the_session_whatever_number_the_room_has_while_its_broadcast_is_away() {
    for reading in [Reading::Legacy, v1(None)] {
        for restarts in [false, true] {
            let (spool, store, rooms) = (
                ScriptedSpool::default(),
                ScriptedStore::default(),
                rooms_that_number_none_as_0(),
            );
            let mut stage = held_in(rooms.clone(), spool.clone(), store.clone(), registry_config()).await;
            is_live(&stage, false).await;
            if restarts {
                stage.stop_well().await;
                assert_eq!(spool.script().places[&1].room_idx, Some(7));
                stage = Stage::among(rooms, spool.clone(), store, registry_config(), writer_config());
                is_live(&stage, false).await;
            }
            is_live(&stage, true).await;
            let after = stage.accepted(1, "after").await;
            assert_eq!(after.delivery, Delivery::Held, "{reading:?} {restarts}");
            let next = come_as(&stage, reading.clone(), None);
            next.has(5).await;
            assert_eq!(next.seqs(), [2, 3, 4, 5], "{reading:?} {restarts}");
            assert_eq!(spool.script().broadcasts.len(), 1);
            fine(&[&next]);
        }
    }
}

#[actix::test]
async fn rule_13_what_is_held_waits_for_the_session_when_its_broadcast_gets_a_number_and_the_one_before_had_another() {
    for reading in [Reading::Legacy, v1(None)] {
        for restarts in [false, true] {
            let (spool, store, rooms) = (ScriptedSpool::default(), ScriptedStore::default(), quick_rooms());
            rooms.script().room_idx.insert(1, 7);
            let mut stage = Stage::among(
                rooms.clone(),
                spool.clone(),
                store.clone(),
                registry_config(),
                writer_config(),
            );
            let first = come_as(&stage, reading.clone(), None);
            send(&stage, 1).await;
            first.has(1).await;
            // Its start alone tells the next one from it.
            {
                let mut script = rooms.script();
                script.room_idx.clear();
                script.started_at_ms.insert(1, 2_000);
            }
            until("another broadcast", || spool.script().broadcasts.len() == 2).await;
            send(&stage, 1).await;
            first.has(2).await;
            first.leave();
            send(&stage, 3).await;
            if restarts {
                stage.stop_well().await;
                stage = Stage::among(rooms.clone(), spool.clone(), store, registry_config(), writer_config());
                is_live(&stage, true).await;
            }
            rooms.script().room_idx.insert(1, 8);
            until("its number", || {
                let script = spool.script();
                script.broadcasts.values().any(|(record, _)| record.room_idx == Some(8))
            })
            .await;
            let after = stage.accepted(1, "after").await;
            assert_eq!(after.delivery, Delivery::Held, "{reading:?} {restarts}");
            let next = come_as(&stage, reading.clone(), None);
            next.has(6).await;
            assert_eq!(next.seqs(), [3, 4, 5, 6], "{reading:?} {restarts}");
            assert_eq!(spool.script().broadcasts.len(), 2);
            fine(&[&first, &next]);
        }
    }
}

/// How a server goes while a broadcast is away, and what the next one hears first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    /// It stops; the room is live when the next one asks.
    Stops,
    /// It stops; the room is not live yet when the next one asks.
    StopsForLess,
    /// It stops; the session is there before anything is heard.
    StopsForSession,
    /// It is killed, some time after the room's place was saved.
    Killed,
    /// Its registry panics.
    Panics,
}

#[actix::test]
async fn rule_13_what_is_held_waits_for_the_session_when_its_server_was_away_while_its_broadcast_was() {
    hush_planned_panics();
    for (reading, first) in [(Reading::Legacy, 2), (v1(None), 2), (v1(Some(0)), 1)] {
        for gone in [
            Gone::Stops,
            Gone::StopsForLess,
            Gone::StopsForSession,
            Gone::Killed,
            Gone::Panics,
        ] {
            let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
            let rooms = quick_rooms();
            let config = registry_config();
            let mut stage = held_in(rooms.clone(), spool.clone(), store.clone(), config.clone()).await;
            until("a place without its session", || place(&stage) == Some((1, true))).await;
            is_live(&stage, false).await;
            if gone == Gone::Panics {
                stage.registry_fails().await;
            } else {
                if gone == Gone::Killed {
                    spool.script().killed = true;
                    drop(stage);
                    spool.script().killed = false;
                } else {
                    stage.stop_well().await;
                }
                if gone != Gone::StopsForLess {
                    rooms.script().not_live.remove(&1);
                }
                stage = Stage::among(rooms, spool, store, config, writer_config());
            }
            let early = (gone == Gone::StopsForSession).then(|| come_as(&stage, reading.clone(), None));
            if matches!(gone, Gone::StopsForLess | Gone::Panics) {
                // It hears that the room is not live, and where its numbers stand.
                eventually("what it is about", async || {
                    let look = stage.registry.look(room(1), asker()).await;
                    look.is_ok_and(|look| !look.live && look.last_seq.is_some())
                })
                .await;
            }
            is_live(&stage, true).await;
            let mut last = 4;
            if early.is_none() {
                // Rule 12: its session ended a moment ago, and so it is held for still.
                let after = stage.accepted(1, "after").await;
                assert_eq!((after.delivery, after.seq), (Delivery::Held, Seq(5)), "{gone:?}");
                last = 5;
            }
            let peer = early.unwrap_or_else(|| come_as(&stage, reading.clone(), None));
            peer.has(last).await;
            assert_eq!(peer.seqs(), (first..=last).collect::<Vec<_>>(), "{gone:?} {reading:?}");
            assert_eq!(peer.welcome().and_then(|welcome| gap(&welcome)), None, "{gone:?}");
            fine(&[&peer]);
        }
    }
}

#[actix::test]
async fn rule_13_what_is_held_waits_for_the_session_when_the_verdict_expired_before_its_rooms_numbers_were_known() {
    for (reading, first) in [(Reading::Legacy, 2), (v1(None), 2), (v1(Some(0)), 1)] {
        let (spool, store, rooms) = (ScriptedSpool::default(), ScriptedStore::default(), quick_rooms());
        let stage = held_in(rooms.clone(), spool.clone(), store.clone(), registry_config()).await;
        until("a place without its session", || place(&stage) == Some((1, true))).await;
        is_live(&stage, false).await;
        stage.stop_well().await;
        rooms.script().not_live.remove(&1);
        let before = rooms.script().asked;
        let stage = Stage::among(rooms.clone(), spool, store, registry_config(), writer_config());
        let hold = stage.writer.hold_spool();
        let peer = come_as(&stage, reading.clone(), None);
        // It is live, and a while later nobody can tell.
        until("a verdict", || rooms.script().asked > before).await;
        let known = |view: Option<RoomView>| view.is_some_and(|view| view.live.is_some());
        stage.keeps(1, "the verdict", known).await;
        rooms.script().away = true;
        stage.keeps(1, "its end", |view| !known(view)).await;
        // It can again when the numbers are known.
        rooms.script().away = false;
        drop(hold);
        peer.has(4).await;
        assert_eq!(peer.seqs(), (first..=4).collect::<Vec<_>>(), "{reading:?}");
        assert_eq!(peer.welcome().and_then(|welcome| gap(&welcome)), None);
        fine(&[&peer]);
    }
}

#[actix::test]
async fn a_held_message_whose_user_was_erased_is_passed_over_by_legacy_and_its_own_deletion_in_v1() {
    for (reading, wanted) in [(Reading::Legacy, vec![2, 4]), (v1(Some(1)), vec![2, 3, 4])] {
        let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
        let config = registry_config();
        let rooms = quick_rooms();
        let stage = held_in(rooms.clone(), spool.clone(), store.clone(), config.clone()).await;
        stage.stop_well().await;
        let erased = |event: &mut Arc<Event>| {
            let chat = &mut Arc::make_mut(event).chat;
            chat.user_idx = UserIdx::ERASED;
            chat.nickname = Nickname::new("", 64).unwrap();
            chat.text = MessageText::maybe_empty(String::new(), 64).unwrap();
        };
        spool
            .script()
            .rows
            .values_mut()
            .filter(|event| event.seq == Seq(3))
            .for_each(erased);
        store.script().events.get_mut(&(1, 3)).into_iter().for_each(erased);
        let stage = Stage::among(rooms, spool, store, config, writer_config());
        let peer = come_as(&stage, reading, None);
        peer.has(4).await;
        assert_eq!(peer.seqs(), wanted);
        fine(&[&peer]);
    }
}

#[actix::test]
async fn rule_13_what_is_held_waits_for_the_session_of_a_named_broadcast_however_long_its_server_was_away() {
    for (reading, first) in [(Reading::Legacy, 2), (v1(None), 2), (v1(Some(0)), 1)] {
        for named in [true, false] {
            let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
            let (rooms, config) = (quick_rooms(), registry_config());
            if !named {
                rooms.script().started_at_ms.clear();
            }
            let stage = held_in(rooms.clone(), spool.clone(), store.clone(), config.clone()).await;
            stage.stop_well().await;
            {
                let mut script = spool.script();
                let away_ms = 2 * i64::try_from(config.broadcast_resume.as_millis()).unwrap();
                let place = script.places.get_mut(&1).unwrap();
                place.saved_at_ms -= away_ms;
                place.session_at_ms = place.session_at_ms.map(|at_ms| at_ms - away_ms);
                for (record, _) in script.broadcasts.values_mut() {
                    record.seen_at_ms -= away_ms;
                    record.segments[0].from_ms -= away_ms;
                }
            }
            let stage = Stage::among(rooms, spool, store, config, writer_config());
            let peer = come_as(&stage, reading.clone(), None);
            stage.has_session(1, true).await;
            let next = stage.accepted(1, "next").await.seq.0;
            peer.has(next).await;
            // What nothing names is another one after so long.
            let first = if named { first } else { 5 };
            assert_eq!(peer.seqs(), (first..=5).collect::<Vec<_>>(), "{reading:?} {named}");
            fine(&[&peer]);
        }
    }
}

#[actix::test]
async fn rule_16_what_was_sent_and_not_acknowledged_comes_again_though_no_place_was_saved_before_the_server_was_gone() {
    hush_planned_panics();
    // To legacy nothing comes twice.
    for (reading, wanted) in [
        (v1(None), vec![1, 2, 3, 4]),
        (v1(Some(0)), vec![1, 2, 3, 4]),
        (Reading::Legacy, vec![4]),
    ] {
        for panics in [false, true] {
            let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
            let config = RegistryConfig {
                // No place is saved.
                sweep: NEVER,
                ..registry_config()
            };
            let mut stage = Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
            let first = match &reading {
                Reading::Legacy => legacy(&stage),
                Reading::V1(_) => silent(&stage, None),
            };
            send(&stage, 3).await;
            first.has(3).await;
            if panics {
                stage.registry_fails().await;
            } else {
                spool.script().killed = true;
                drop(stage);
                spool.script().killed = false;
                stage = Stage::with(spool.clone(), store, config, writer_config());
            }
            // Rule 12: its session ended a moment ago, and so it is held for.
            assert_eq!(stage.accepted(1, "held").await.delivery, Delivery::Held);
            // A registry that fails leaves a place, in front of that: of who is known to have nothing; to legacy what was queued counts.
            if panics {
                let left = if reading == Reading::Legacy { 3 } else { 0 };
                assert_eq!(place(&stage), Some((left, true)));
            }
            let next = come_as(&stage, reading.clone(), None);
            next.has(4).await;
            assert_eq!(next.seqs(), wanted, "{reading:?} {panics}");
            assert_eq!(next.welcome().and_then(|welcome| gap(&welcome)), None);
            fine(&[&first, &next]);
        }
    }
}

#[actix::test]
async fn rule_16_what_was_sent_in_a_named_broadcast_comes_again_though_the_place_on_disk_is_that_of_the_one_before() {
    for verdict_first in [true, false] {
        let (spool, store, rooms) = (ScriptedSpool::default(), ScriptedStore::default(), quick_rooms());
        rooms.script().room_idx.insert(1, 1);
        let config = RegistryConfig {
            // A place is saved once.
            checkpoint: NEVER,
            ..registry_config()
        };
        let stage = Stage::among(rooms.clone(), spool.clone(), store.clone(), config, writer_config());
        let first = silent(&stage, None);
        send(&stage, 2).await;
        first.has(2).await;
        let named = || spool.script().places.get(&1).and_then(|place| place.room_idx);
        until("a place", || named() == Some(1)).await;
        rooms.script().room_idx.insert(1, 2);
        until("another broadcast", || spool.script().broadcasts.len() == 2).await;
        send(&stage, 3).await;
        first.has(5).await;
        spool.script().killed = true;
        drop(stage);
        spool.script().killed = false;
        assert_eq!(named(), Some(1));

        {
            let mut script = rooms.script();
            (script.ttl, script.away) = (NEVER, !verdict_first);
        }
        let config = RegistryConfig {
            sweep: NEVER,
            ..registry_config()
        };
        let stage = Stage::among(rooms.clone(), spool.clone(), store, config, writer_config());
        let hold = verdict_first.then(|| stage.writer.hold_spool());
        let next = if verdict_first {
            let next = come(&stage, None);
            let live = |view: Option<RoomView>| view.is_some_and(|view| view.live == Some(true));
            stage.keeps(1, "the verdict", live).await;
            drop(hold);
            next
        } else {
            // It says no more than the first one did.
            let between = silent(&stage, None);
            between.has(5).await;
            between.leave();
            stage.has_session(1, false).await;
            rooms.script().away = false;
            is_live(&stage, true).await;
            assert_eq!(between.seqs(), [3, 4, 5]);
            come(&stage, None)
        };
        next.has(5).await;
        assert_eq!((next.seqs(), gap(&next.welcomed().await)), (vec![3, 4, 5], None));
        assert_eq!(spool.script().broadcasts.len(), 2);
        fine(&[&first, &next]);
    }
}

#[actix::test]
async fn rule_13_that_nobody_tells_for_longer_than_an_interruption_may_last_ends_no_broadcast() {
    untold(Duration::from_secs(3), registry_config().sweep).await;
}

#[actix::test]
async fn rule_13_nor_does_it_where_rooms_are_looked_at_as_seldom_as_an_interruption_may_last() {
    untold(Duration::from_secs(3), Duration::from_secs(3)).await;
}

async fn untold(broadcast_resume: Duration, sweep: Duration) {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let rooms = quick_rooms();
    // Nothing names it.
    rooms.script().started_at_ms.clear();
    let config = RegistryConfig {
        broadcast_resume,
        sweep,
        ..registry_config()
    };
    let stage = held_in(rooms.clone(), spool.clone(), store, config).await;
    let began = Instant::now();
    let passed = |ms| until("time to pass", move || began.elapsed() > Duration::from_millis(ms));
    // It does not answer, and then it does not say.
    rooms.script().away = true;
    passed(4_000).await;
    rooms.script().unknown.insert(1);
    rooms.script().away = false;
    passed(8_000).await;
    rooms.script().unknown.clear();
    let live = |view: Option<RoomView>| view.is_some_and(|view| view.live == Some(true));
    stage.keeps(1, "the verdict", live).await;
    let records = || spool.script().broadcasts.len();
    assert_eq!(records(), 1);
    let next = legacy(&stage);
    next.has(4).await;
    assert_eq!((next.seqs(), records()), (vec![2, 3, 4], 1));
    fine(&[&next]);
}

#[actix::test]
async fn rule_10_a_room_that_nobody_knows_any_more_is_forgotten_and_its_broadcast_has_ended_also_behind_a_restart() {
    for restarts in [false, true] {
        let (spool, store, rooms) = (ScriptedSpool::default(), ScriptedStore::default(), quick_rooms());
        let config = RegistryConfig {
            broadcast_resume: Duration::from_millis(100),
            grace: Duration::from_millis(50),
            ..registry_config()
        };
        let mut stage = Stage::among(
            rooms.clone(),
            spool.clone(),
            store.clone(),
            config.clone(),
            writer_config(),
        );
        let peer = legacy(&stage);
        send(&stage, 1).await;
        peer.has(1).await;
        if restarts {
            peer.leave();
            stage.stop_well().await;
            rooms.script().unknown.insert(1);
            stage = Stage::among(rooms.clone(), spool, store.clone(), config, writer_config());
        } else {
            rooms.script().unknown.insert(1);
            peer.leave();
        }
        let ended = || {
            let broadcasts = &store.script().broadcasts;
            let mut of_room = broadcasts.values().filter(|record| record.presenter == room(1));
            of_room.any(|record| record.ended_at_ms.is_some())
        };
        let forgotten = async {
            // Of others the room server still says something.
            while !ended() || stage.registry.view(room(1)).await.is_some() {
                stage.registry.look(room(2), asker()).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), forgotten).await.unwrap();
    }
}

#[actix::test]
async fn rule_13_what_is_held_is_kept_though_nobody_knows_the_room_any_more_also_behind_a_restart() {
    let (spool, store, rooms) = (ScriptedSpool::default(), ScriptedStore::default(), quick_rooms());
    let config = RegistryConfig {
        broadcast_resume: Duration::from_millis(100),
        // It is over behind the restart, and not before all is held.
        grace: NEVER,
        ..registry_config()
    };
    let stage = held_in(rooms.clone(), spool.clone(), store.clone(), config.clone()).await;
    until("a place without its session", || place(&stage) == Some((1, true))).await;
    stage.stop_well().await;
    rooms.script().unknown.insert(1);
    let config = RegistryConfig {
        grace: Duration::from_millis(50),
        ..config
    };
    let stage = Stage::among(rooms.clone(), spool, store, config, writer_config());
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(500) {
        stage.registry.look(room(2), asker()).await.unwrap();
    }
    rooms.script().unknown.clear();
    let next = legacy(&stage);
    next.has(4).await;
    assert_eq!(next.seqs(), [2, 3, 4]);
    fine(&[&next]);
}

#[actix::test]
async fn rule_13_what_was_held_is_not_for_the_next_broadcast_when_its_server_is_killed_at_its_end() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let (rooms, config) = (
        quick_rooms(),
        RegistryConfig {
            broadcast_resume: Duration::from_millis(50),
            grace: NEVER,
            // No place is saved by the clock.
            checkpoint: NEVER,
            ..registry_config()
        },
    );
    let stage = held_in(rooms.clone(), spool.clone(), store.clone(), config.clone()).await;
    is_live(&stage, false).await;
    let ended = |spool: &ScriptedSpool| {
        let script = spool.script();
        script
            .broadcasts
            .values()
            .all(|(record, _)| record.ended_at_ms.is_some())
    };
    until("its end", || ended(&spool)).await;
    spool.script().killed = true;
    drop(stage);
    spool.script().killed = false;
    rooms.script().not_live.remove(&1);
    let config = RegistryConfig {
        broadcast_resume: NEVER,
        grace: Duration::from_millis(50),
        ..config
    };
    let stage = Stage::among(rooms, spool, store, config, writer_config());
    let next = legacy(&stage);
    stage.has_session(1, true).await;
    let new = stage.accepted(1, "new").await.seq.0;
    next.has(new).await;
    assert_eq!(next.seqs(), [5]);
    fine(&[&next]);
}

#[actix::test]
async fn rule_16_a_session_that_comes_while_its_broadcast_is_away_is_told_what_it_does_not_get() {
    let stage = held(quick_rooms()).await;
    is_live(&stage, false).await;
    let peer = come(&stage, None);
    assert_eq!(gap(&peer.welcomed().await), Some((2, 4)));
    // It goes again without a word: what is held is still there for the next.
    peer.leave();
    is_live(&stage, true).await;
    let next = come(&stage, None);
    assert_eq!(gap(&next.welcomed().await), None);
    next.has(4).await;
    fine(&[&next]);
}

#[actix::test]
async fn rule_13_a_legacy_session_that_came_and_went_while_its_broadcast_was_away_leaves_what_is_held_to_the_next() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let config = RegistryConfig {
        // No place is saved, so that nothing has to be marked before a session may begin.
        checkpoint: NEVER,
        sweep: NEVER,
        ..registry_config()
    };
    let stage = held_in(quick_rooms(), spool, store, config).await;
    is_live(&stage, false).await;
    let between = legacy(&stage);
    stage.has_session(1, true).await;
    between.leave();
    stage.has_session(1, false).await;
    is_live(&stage, true).await;
    let next = legacy(&stage);
    send(&stage, 1).await;
    next.has(5).await;
    assert_eq!(next.seqs(), [2, 3, 4, 5]);
    assert!(between.queued().is_empty(), "{:?}", between.queued());
    fine(&[&between, &next]);
}

#[actix::test]
async fn rule_13_an_act_in_a_room_that_was_forgotten_since_its_broadcast_ended_is_not_for_the_next_one() {
    let stage = Stage::among(
        quick_rooms(),
        ScriptedSpool::default(),
        ScriptedStore::default(),
        registry_config(),
        writer_config(),
    );
    let first = come(&stage, None);
    send(&stage, 1).await;
    first.has(1).await;
    first.leave();
    // It does not go on.
    stage.rooms.script().ended_at_ms.insert(1, 2_000);
    is_live(&stage, false).await;
    stage.keeps(1, "nothing", |view| view.is_none()).await;
    // Nor is that said again.
    stage.rooms.script().unknown.insert(1);
    for act in 2..=3 {
        assert_eq!(acts::done(&stage, 1).await.seq, Seq(act));
        stage.keeps(1, "nothing", |view| view.is_none()).await;
    }
    {
        let mut script = stage.rooms.script();
        script.unknown.remove(&1);
        script.ended_at_ms.remove(&1);
        script.started_at_ms.insert(1, 3_000);
    }
    is_live(&stage, true).await;
    let next = come(&stage, None);
    assert_eq!(next.welcomed().await.resumed_from, Seq(4));
    send(&stage, 1).await;
    next.has(4).await;
    assert_eq!(next.seqs(), [4]);
    fine(&[&first, &next]);
}

#[actix::test]
async fn rule_13_another_start_is_another_broadcast_even_without_a_moment_between_them() {
    for between in [false, true] {
        let stage = held(quick_rooms()).await;
        let records = || stage.spool.script().broadcasts.len();
        until("a broadcast", || records() == 1).await;
        if between {
            another_broadcast(&stage).await;
        } else {
            stage.rooms.script().started_at_ms.insert(1, 2_000);
        }
        until("another broadcast", || records() == 2).await;
        assert_eq!(stage.refused(1, "nobody's").await, Refusal::PresenterDisconnected);
        let next = legacy(&stage);
        stage.has_session(1, true).await;
        let new = stage.accepted(1, "new").await.seq.0;
        next.has(new).await;
        assert_eq!(next.seqs(), [new]);
        fine(&[&next]);
    }
}

#[actix::test]
async fn a_broadcast_that_went_on_when_its_server_stopped_does_not_end_before_what_was_said_in_it_last() {
    let (spool, store, rooms) = (
        ScriptedSpool::default(),
        ScriptedStore::default(),
        ScriptedRooms::default(),
    );
    rooms.script().started_at_ms.insert(1, 1_000);
    // It is not seen again by the clock: only the stop tells of it.
    let config = RegistryConfig {
        sweep: NEVER,
        ..registry_config()
    };
    let stage = Stage::among(rooms.clone(), spool.clone(), store.clone(), config, writer_config());
    let first = legacy(&stage);
    send(&stage, 1).await;
    first.has(1).await;
    let record = || {
        spool
            .script()
            .broadcasts
            .values()
            .next()
            .map(|(record, _)| record.clone())
    };
    until("its record", || record().is_some()).await;
    let kept = record().unwrap();
    let mut said_ms = kept.seen_at_ms;
    while said_ms == kept.seen_at_ms {
        said_ms = stage.accepted(1, "later").await.sent_at_ms;
    }
    stage.stop_well().await;
    assert!(record().unwrap().seen_at_ms >= said_ms, "{said_ms} {:?}", record());
    rooms.script().started_at_ms.insert(1, 2_000);
    let stage = Stage::among(rooms, spool.clone(), store, registry_config(), writer_config());
    let _next = legacy(&stage);
    let ended = || {
        let script = spool.script();
        script
            .broadcasts
            .get(&kept.id)
            .and_then(|(record, _)| record.ended_at_ms)
    };
    until("its end", || ended().is_some()).await;
    assert!(ended() >= Some(said_ms), "{said_ms} {:?}", ended());
}

#[actix::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted spool, and nothing here waits for it"
)]
async fn rule_01_no_session_is_welcomed_behind_what_may_yet_be_taken_back() {
    // One of another broadcast, and one that comes while it is not known whether this one goes on.
    for (how, away) in [
        (Commit::Works, false),
        (Commit::FailsWithout, false),
        (Commit::Works, true),
        (Commit::FailsWithout, true),
    ] {
        let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
        let stage = Stage::among(quick_rooms(), spool, store, small(), writer_config());
        let first = come(&stage, None);
        send(&stage, 1).await;
        first.has(1).await;
        let gate = Arc::clone(&stage.spool.script().gate);
        let held = gate.lock().unwrap();
        stage.spool.script().commits.push_back(how);
        let under_way: Vec<_> = (0..2).map(|n| stage.submit(1, &n.to_string())).collect();
        stage.has_in_flight(1, 2).await;
        first.leave();
        if away {
            is_live(&stage, false).await;
        } else {
            another_broadcast(&stage).await;
        }
        let peer = come(&stage, None);
        stage.has_session(1, true).await;
        drop(held);
        for one in under_way {
            let accepted =
                matches!(one.await.unwrap(), Outcome::Accepted(accepted) if accepted.delivery == Delivery::Held);
            assert_eq!(accepted, how == Commit::Works, "{how:?}");
        }
        let welcome = peer.welcomed().await;
        let last = if how == Commit::Works { 3 } else { 1 };
        assert_eq!(
            (welcome.resumed_from, welcome.last_seq),
            (Seq(last + 1), Seq(last)),
            "{how:?}"
        );
        if away {
            is_live(&stage, true).await;
        }
        stage.accepted_again(1, "next").await;
        peer.has(last + 1).await;
        fine(&[&first, &peer]);
    }
}

#[actix::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted spool, and nothing here waits for it"
)]
async fn rule_01_what_gets_a_number_that_was_taken_back_is_for_the_session_after_one_that_began_behind_it() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::among(quick_rooms(), spool, store, registry_config(), writer_config());
    let first = legacy(&stage);
    send(&stage, 1).await;
    let gate = Arc::clone(&stage.spool.script().gate);
    let held = gate.lock().unwrap();
    stage.spool.script().commits.push_back(Commit::FailsWithout);
    let under_way: Vec<_> = (0..2).map(|n| stage.submit(1, &n.to_string())).collect();
    stage.has_in_flight(1, 2).await;
    another_broadcast(&stage).await;
    let between = legacy(&stage);
    between.leave();
    stage.has_session(1, false).await;
    drop(held);
    for one in under_way {
        assert_eq!(one.await.unwrap(), Outcome::Refused(Refusal::LogUnavailable));
    }
    assert_eq!(stage.accepted_again(1, "held").await.seq, Seq(2));
    let last = legacy(&stage);
    last.has(2).await;
    assert_eq!((first.seqs(), last.seqs()), (vec![1], vec![2]));
    fine(&[&first, &between, &last]);
}

/// What becomes of a session that began behind what was under way when its broadcast ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Stays,
    Leaves,
    /// Its server is killed before the room's numbers are known again.
    Killed,
}

#[actix::test]
async fn rule_13_what_was_under_way_when_its_broadcast_ended_and_is_written_after_all_is_not_for_the_next_one() {
    for then in [Between::Stays, Between::Leaves, Between::Killed] {
        let (spool, store, rooms) = (ScriptedSpool::default(), ScriptedStore::default(), quick_rooms());
        let config = RegistryConfig {
            sweep: NEVER,
            ..registry_config()
        };
        let again = || {
            let (rooms, spool, store) = (rooms.clone(), spool.clone(), store.clone());
            Stage::among(rooms, spool, store, config.clone(), writer_config())
        };
        let mut stage = again();
        let first = legacy(&stage);
        send(&stage, 1).await;
        first.has(1).await;
        let hold = stage.writer.hold_spool();
        spool.script().commits.push_back(Commit::FailsUnknownWith);
        let under_way = stage.submit(1, "unknown");
        stage.has_in_flight(1, 1).await;
        another_broadcast(&stage).await;
        let between = legacy(&stage);
        if then != Between::Stays {
            between.leave();
        }
        stage.has_session(1, then == Between::Stays).await;
        drop(hold);
        assert_eq!(under_way.await.unwrap(), Outcome::Refused(Refusal::OutcomeUnknown));
        let last = match then {
            Between::Stays => Arc::clone(&between),
            Between::Leaves => legacy(&stage),
            Between::Killed => {
                // Whatever it was told to keep is on disk.
                drop(stage.writer.hold_spool());
                spool.script().killed = true;
                drop(stage);
                spool.script().killed = false;
                stage = again();
                come(&stage, None)
            }
        };
        assert_eq!(stage.accepted_again(1, "new").await.seq, Seq(3));
        last.has(3).await;
        assert_eq!((first.seqs(), last.seqs()), (vec![1], vec![3]), "{then:?}");
        fine(&[&first, &between, &last]);
    }
}

#[actix::test]
async fn rule_13_what_a_commit_of_unknown_outcome_wrote_of_a_broadcast_that_ended_since_is_not_for_the_next_one() {
    let (spool, store, rooms) = (ScriptedSpool::default(), ScriptedStore::default(), quick_rooms());
    // A verdict holds, and the next one is asked for all the same.
    rooms.script().ttl = NEVER;
    let config = RegistryConfig {
        refresh_percent: 0,
        ..registry_config()
    };
    let stage = Stage::among(rooms.clone(), spool.clone(), store, config, writer_config());
    let first = legacy(&stage);
    send(&stage, 1).await;
    first.has(1).await;
    {
        // It is written, and the spool tells nothing more.
        let mut script = spool.script();
        script.commits.push_back(Commit::FailsUnknownWith);
        script.fails_behind = true;
    }
    assert_eq!(stage.refused(1, "unknown").await, Refusal::OutcomeUnknown);
    {
        let mut script = rooms.script();
        script.not_live.insert(1);
        script.ended_at_ms.insert(1, 1_500);
    }
    let not_live = |view: Option<RoomView>| view.is_some_and(|view| view.live == Some(false));
    stage.keeps(1, "its end", not_live).await;
    first.leave();
    stage.has_session(1, false).await;
    spool.script().failing = 0;
    let next = legacy(&stage);
    let ended = || {
        let script = spool.script();
        let mut records = script.broadcasts.values();
        records.all(|(record, _)| record.ended_at_ms.is_some())
    };
    until("its record's end", ended).await;
    {
        let mut script = rooms.script();
        script.not_live.clear();
        script.ended_at_ms.clear();
        script.started_at_ms.insert(1, 2_000);
    }
    assert_eq!(stage.accepted_again(1, "new").await.seq, Seq(3));
    next.has(3).await;
    assert_eq!(next.seqs(), [3]);
    fine(&[&first, &next]);
}

#[actix::test]
async fn rule_01_what_gets_a_number_that_was_taken_back_is_for_the_session_behind_a_restart_too() {
    taken_back_before_a_restart(Commit::FailsWithout, Refusal::LogUnavailable).await;
    // Where nobody knew that at first.
    taken_back_before_a_restart(Commit::FailsUnknown, Refusal::OutcomeUnknown).await;
}

#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted spool, and nothing here waits for it"
)]
async fn taken_back_before_a_restart(how: Commit, refusal: Refusal) {
    let (rooms, spool, store) = (quick_rooms(), ScriptedSpool::default(), ScriptedStore::default());
    let config = RegistryConfig {
        checkpoint: Duration::from_millis(100),
        sweep: Duration::from_millis(3),
        ..registry_config()
    };
    let again = || {
        let (rooms, spool, store) = (rooms.clone(), spool.clone(), store.clone());
        Stage::among(rooms, spool, store, config.clone(), writer_config())
    };
    let stage = again();
    let first = legacy(&stage);
    send(&stage, 1).await;
    let gate = Arc::clone(&spool.script().gate);
    let held = gate.lock().unwrap();
    spool.script().commits.push_back(how);
    let under_way = stage.submit(1, "under way");
    stage.has_in_flight(1, 1).await;
    another_broadcast(&stage).await;
    let between = legacy(&stage);
    between.leave();
    stage.has_session(1, false).await;
    // In a sweep that asks about the room its place goes to the disk, too: behind what is under way, and as if that were committed.
    let asked = || rooms.script().asked_of[&1];
    let before = asked();
    until("its place to be due", || asked() > before + 100).await;
    drop(held);
    assert_eq!(under_way.await.unwrap(), Outcome::Refused(refusal));
    assert_eq!(stage.accepted_again(1, "held").await.seq, Seq(2));
    // It was corrected before that was committed, not when the next place was due: the server may be killed before.
    let place = spool.script().places[&1];
    assert_eq!((place.over, place.position), (Seq(1), Seq(1)));
    stage.stop_well().await;
    let stage = again();
    let last = legacy(&stage);
    last.has(2).await;
    assert_eq!((first.seqs(), last.seqs()), (vec![1], vec![2]));
    fine(&[&first, &between, &last]);
}

#[actix::test]
async fn rule_14_an_ack_above_the_last_sent_ends_the_session_and_counts_for_nothing() {
    let stage = stage(small());
    let peer = silent(&stage, None);
    send(&stage, 2).await;
    peer.has(2).await;
    peer.ack(Ack::Partial(0));
    peer.ack(Ack::Above);
    assert!(matches!(peer.closed().await, End::BadFrame(_)));
    let next = come(&stage, None);
    assert_eq!(
        next.welcomed().await.resumed_from,
        Seq(2),
        "from the last ack that could be"
    );
    next.has(2).await;
    fine(&[&peer, &next]);
}

#[actix::test]
async fn rule_15_what_a_session_acknowledges_after_it_was_replaced_does_not_count_for_its_successor() {
    let stage = stage(registry_config());
    let first = silent(&stage, None);
    send(&stage, 5).await;
    first.has(5).await;
    // It goes on to say what it had before it reads that it was replaced.
    first.stall();
    let second = silent(&stage, Some(0));
    second.stall();
    until("a welcome", || second.began_at().is_some()).await;
    first.ack(Ack::Exact);
    // The registry has heard it when it answers.
    let look = stage.registry.look(room(1), asker()).await.unwrap();
    assert_eq!((first.told(), second.told()), (Some(End::Replaced), None));
    second.leave();
    let next = come(&stage, None);
    assert_eq!(
        next.welcomed().await.resumed_from,
        Seq(1),
        "what its successor read it has not said"
    );
    assert_eq!(look.fanned_out, None, "nor to how many it passes it on");
    next.has(5).await;
    fine(&[&first, &second, &next]);
}

#[actix::test]
async fn rule_14_a_session_is_not_too_slow_for_the_time_in_which_there_was_nothing_to_take() {
    let config = RegistryConfig {
        stall: Duration::from_secs(1),
        sweep: Duration::from_millis(3),
        ..registry_config()
    };
    let stall = config.stall;
    let (spool, store, rooms) = (ScriptedSpool::default(), ScriptedStore::default(), quick_rooms());
    let stage = Stage::among(rooms.clone(), spool, store, config, writer_config());
    let peer = silent(&stage, None);
    peer.welcomed().await;
    let quiet_since = Instant::now();
    until("time to pass", || quiet_since.elapsed() > stall).await;
    let sent_at = Instant::now();
    send(&stage, 1).await;
    peer.has(1).await;
    // A sweep that asks about the room looks at its session, too.
    let asked = || rooms.script().asked_of[&1];
    let before = asked();
    until("sweeps", || asked() > before + 5).await;
    // On a machine on which that takes so long it is too slow, and rightly.
    let in_time = || peer.told().is_none() || sent_at.elapsed() >= stall;
    assert!(in_time(), "{:?}", peer.told());
    peer.ack(Ack::Exact);
    send(&stage, 1).await;
    until("the next one, or its end", || {
        peer.seqs() == [1, 2] || peer.told().is_some()
    })
    .await;
    assert!(in_time(), "{:?}", peer.told());
    fine(&[&peer]);
}

#[actix::test]
async fn rule_16_resume_after_above_last_seq_takes_nothing_over() {
    let stage = stage(small());
    for before in [v1(None), Reading::Legacy] {
        let first = come_as(&stage, before, None);
        send(&stage, 2).await;
        let wrong = come(&stage, Some(1000));
        assert!(matches!(wrong.closed().await, End::BadFrame(_)));
        let accepted = stage.accepted(1, "next").await;
        assert_eq!(accepted.delivery, Delivery::Delivered);
        first.has(accepted.seq.0).await;
        assert_eq!(first.told(), None);
        assert!(wrong.queued().is_empty());
        fine(&[&first, &wrong]);
        first.leave();
    }
}

/// A `resume_after` above the room's last number that is found to be so only when that number is known.
async fn wrong_of_the_unknown(stage: &Stage) {
    let wrong = come(stage, Some(1000));
    assert!(matches!(wrong.closed().await, End::BadFrame(_)));
    assert!(wrong.queued().is_empty() && wrong.welcome().is_none());
    fine(&[&wrong]);
}

#[actix::test]
async fn rule_12_a_session_that_was_refused_is_none_that_is_held_for_and_changes_nothing_for_the_one_before() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    // No sweep: it would find the numbers out before the one that is wrong about them comes.
    let config = RegistryConfig {
        sweep: NEVER,
        ..registry_config()
    };
    let start = || Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
    let stage = start();
    wrong_of_the_unknown(&stage).await;
    assert_eq!(
        stage.refused(1, "nobody was here").await,
        Refusal::PresenterDisconnected
    );
    // One that it took over from, as nobody could tell yet, has ended.
    let first = come(&stage, None);
    send(&stage, 1).await;
    first.has(1).await;
    spool.script().commits.push_back(Commit::FailsUnknown);
    assert_eq!(stage.refused(1, "unknown").await, Refusal::OutcomeUnknown);
    wrong_of_the_unknown(&stage).await;
    assert_eq!(first.closed().await, End::Replaced);
    let held = stage.accepted_again(1, "held").await;
    assert_eq!(held.delivery, Delivery::Held);
    let last = come(&stage, None);
    last.has(held.seq.0).await;
    fine(&[&first, &last]);
    stage.stop_well().await;
    // One that ended with its server a moment ago.
    let stage = start();
    wrong_of_the_unknown(&stage).await;
    assert_eq!(stage.accepted(1, "held").await.delivery, Delivery::Held);
}

/// A room that a legacy session read to `5`, and more than the place on disk tells, over a process that was killed.
async fn killed(spool: &ScriptedSpool, store: &ScriptedStore, config: &RegistryConfig) {
    let stage = Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
    let peer = legacy(&stage);
    send(&stage, 2).await;
    peer.has(2).await;
    until("a place", || place(&stage).is_some()).await;
    spool.script().failing = usize::MAX;
    send(&stage, 3).await;
    peer.has(5).await;
    spool.script().killed = true;
    drop(stage);
    let mut script = spool.script();
    (script.killed, script.failing) = (false, 0);
}

#[actix::test]
async fn rule_11_a_v1_session_in_between_does_not_let_a_legacy_session_have_twice_what_one_had() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let config = registry_config();
    killed(&spool, &store, &config).await;
    let stage = Stage::with(spool, store, config, writer_config());
    let between = silent(&stage, Some(1));
    between.has(5).await;
    between.leave();
    let next = legacy(&stage);
    send(&stage, 1).await;
    next.has(6).await;
    assert_eq!(next.seqs(), [6]);
    fine(&[&between, &next]);
}

#[actix::test]
async fn rule_11_what_may_have_been_sent_beyond_a_place_is_not_sent_again_behind_the_restart_after_that_either() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let config = RegistryConfig {
        checkpoint: Duration::from_millis(1),
        ..registry_config()
    };
    killed(&spool, &store, &config).await;
    let stage = Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
    // Something moves the room, and its place is saved, though no legacy session has come.
    let between = silent(&stage, Some(1));
    between.has(5).await;
    between.leave();
    stage.stop_well().await;
    let stage = Stage::with(spool, store, config, writer_config());
    let next = legacy(&stage);
    send(&stage, 1).await;
    next.has(6).await;
    assert_eq!(next.seqs(), [6]);
    fine(&[&next]);
}

/// How what runs ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// The server stops.
    Stops,
    /// The server is killed.
    Killed,
    /// The registry panics.
    Fails,
}

#[actix::test]
async fn rule_12_what_is_held_behind_a_kill_is_for_the_next_legacy_session_however_often_all_ends_before_it_comes() {
    hush_planned_panics();
    for ends in [Ends::Stops, Ends::Killed, Ends::Fails] {
        let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
        let config = registry_config();
        killed(&spool, &store, &config).await;
        let start = || Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
        let mut stage = start();
        for n in 6..=7 {
            let held = stage.accepted(1, "held").await;
            assert_eq!((held.seq, held.delivery), (Seq(n), Delivery::Held), "{ends:?}");
            match ends {
                Ends::Stops => stage.stop_well().await,
                Ends::Killed => {
                    until("its place to be saved", || place(&stage).is_some_and(|(_, says)| says)).await;
                    spool.script().killed = true;
                    drop(stage);
                    spool.script().killed = false;
                }
                Ends::Fails => {
                    stage.registry_fails().await;
                    continue;
                }
            }
            stage = start();
        }
        let next = legacy(&stage);
        send(&stage, 1).await;
        next.has(8).await;
        assert_eq!(next.seqs(), [6, 7, 8], "{ends:?}");
        fine(&[&next]);
    }
}

#[actix::test]
async fn rule_01_what_is_held_behind_numbers_that_never_came_to_the_disk_is_for_the_next_legacy_session() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let config = registry_config();
    killed(&spool, &store, &config).await;
    // Whoever kept it had numbered more than there is.
    spool.script().places.get_mut(&1).unwrap().legacy_from = Some(Seq(6));
    let start = || Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
    let stage = start();
    let held = stage.accepted(1, "held").await;
    assert_eq!((held.seq, held.delivery), (Seq(6), Delivery::Held));
    spool.script().killed = true;
    drop(stage);
    spool.script().killed = false;
    let stage = start();
    let next = legacy(&stage);
    send(&stage, 1).await;
    next.has(7).await;
    assert_eq!(next.seqs(), [6, 7]);
    fine(&[&next]);
}

#[actix::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted spool, and nothing here waits for it"
)]
async fn rule_11_a_place_that_is_saved_behind_a_mark_must_be_marked_again() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let config = RegistryConfig {
        checkpoint: NEVER,
        sweep: Duration::from_millis(3),
        ..registry_config()
    };
    let stage = Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
    let first = legacy(&stage);
    send(&stage, 1).await;
    first.has(1).await;
    first.leave();
    stage.stop_well().await;
    let stage = Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
    assert_eq!(place(&stage), Some((1, true)));
    send(&stage, 1).await;
    // A session comes and goes while the spool is busy: that it came is remembered, and behind that where it left the room.
    let gate = Arc::clone(&spool.script().gate);
    let held = gate.lock().unwrap();
    let busy = stage.submit(1, "busy");
    stage.has_in_flight(1, 1).await;
    let second = legacy(&stage);
    stage.has_session(1, true).await;
    second.leave();
    stage.has_session(1, false).await;
    let saved_at = spool.script().places[&1].saved_at_ms;
    // Long enough for a sweep; where there was none the test is easier, not wrong.
    tokio::time::sleep(Duration::from_millis(30)).await;
    drop(held);
    assert!(matches!(busy.await.unwrap(), Outcome::Accepted(_)));
    until("a place", || spool.script().places[&1].saved_at_ms > saved_at).await;
    let third = legacy(&stage);
    third.has(3).await;
    assert_eq!(third.seqs(), [2, 3]);
    spool.script().killed = true;
    drop(stage);
    spool.script().killed = false;
    let stage = Stage::with(spool, store, config, writer_config());
    let fourth = legacy(&stage);
    send(&stage, 1).await;
    fourth.has(4).await;
    assert_eq!(fourth.seqs(), [4]);
    fine(&[&first, &second, &third, &fourth]);
}

/// A legacy session of this room.
fn legacy_of(stage: &Stage, presenter: i64) -> Arc<Peer> {
    Peer::come(&stage.registry, presenter, Reading::Legacy, 64, Shared::default(), None)
}

/// Rooms over a restart, each with an exact place and one message that is held. The next that is kept of them is their
/// marks.
async fn left_to_legacy(rooms: RangeInclusive<i64>) -> Stage {
    let config = RegistryConfig {
        sweep: NEVER,
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
    for presenter in rooms.clone() {
        let peer = legacy_of(&stage, presenter);
        stage.accepted(presenter, "had").await;
        peer.has(1).await;
        peer.leave();
    }
    stage.stop_well().await;
    let stage = Stage::with(spool, store, config, writer_config());
    for presenter in rooms {
        let accepted = stage.accepted(presenter, "held").await;
        assert_eq!(accepted.delivery, Delivery::Held);
    }
    stage.parts.flush().await;
    let mut script = stage.spool.script();
    assert!(script.places.values().all(|place| place.legacy_from.is_some()));
    script.placed.clear();
    drop(script);
    stage
}

#[actix::test]
async fn rule_11_legacy_sessions_that_come_together_behind_a_restart_are_marked_together_before_any_is_sent_to() {
    let stage = left_to_legacy(1..=100).await;
    let hold = stage.writer.hold_spool();
    let peers: Vec<_> = (1..=100).map(|presenter| legacy_of(&stage, presenter)).collect();
    stage.has_session(100, true).await;
    assert!(peers.iter().all(|peer| peer.queued().is_empty()));
    drop(hold);
    for peer in &peers {
        peer.has(2).await;
        assert_eq!(peer.seqs(), [2]);
        fine(&[peer]);
    }
    let script = stage.spool.script();
    assert_eq!(script.placed.concat(), (1..=100).collect::<Vec<_>>(), "each once");
    // Something else may have been asked in between.
    assert!(script.placed.len() <= 4, "{:?}", script.placed);
    assert!(script.places.values().all(|place| place.legacy_from.is_none()));
}

#[actix::test]
async fn a_place_that_cannot_be_marked_costs_no_other_rooms_legacy_session() {
    let stage = left_to_legacy(1..=3).await;
    stage.spool.script().places_in_vain.insert(2);
    let hold = stage.writer.hold_spool();
    let [one, two, three] = [1, 2, 3].map(|presenter| legacy_of(&stage, presenter));
    stage.has_session(3, true).await;
    drop(hold);
    one.has(2).await;
    three.has(2).await;
    assert!(two.queued().is_empty());
    stage.spool.script().places_in_vain.clear();
    let next = legacy_of(&stage, 2);
    next.has(2).await;
    fine(&[&one, &two, &three, &next]);
}

#[actix::test]
async fn places_are_not_tried_one_by_one_while_another_process_writes_and_senders_are_told() {
    let config = RegistryConfig {
        sweep: NEVER,
        checkpoint: NEVER,
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store, config, writer_config());
    let peers: Vec<_> = (1..=64).map(|presenter| legacy_of(&stage, presenter)).collect();
    for (presenter, peer) in (1..).zip(&peers) {
        stage.accepted(presenter, "had").await;
        peer.has(1).await;
    }
    {
        let mut script = spool.script();
        script.placed.clear();
        script.busy = true;
    }
    // Keeps all of them, as a sweep or a stop does.
    stage.registry.end_sessions(End::GoingAway).await;
    until("the spool to count as one that takes nothing", || {
        !stage.writer.writable()
    })
    .await;
    assert_eq!(stage.refused(1, "x").await, Refusal::LogUnavailable);
    let tried: Vec<_> = spool.script().placed.iter().map(Vec::len).collect();
    // None where their broadcasts were just tried, in front of them.
    assert!(tried.is_empty() || tried == [64], "each may take seconds: {tried:?}");
    spool.script().busy = false;
    assert_eq!(stage.accepted_again(1, "y").await.seq, Seq(2));
    fine(&peers.iter().map(Arc::as_ref).collect::<Vec<_>>());
}

#[actix::test]
async fn a_place_that_cannot_be_kept_costs_no_other_room_its_own() {
    let config = RegistryConfig {
        sweep: NEVER,
        checkpoint: NEVER,
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store, config, writer_config());
    let peers = [1, 2, 3].map(|presenter| legacy_of(&stage, presenter));
    for (presenter, peer) in (1..).zip(&peers) {
        stage.accepted(presenter, "had").await;
        peer.has(1).await;
    }
    // All three are kept together, by the stop.
    spool.script().places_in_vain.insert(2);
    let failures = stage.metrics.commit_failures.clone();
    stage.stop_well().await;
    let script = spool.script();
    let places: Vec<_> = script
        .places
        .values()
        .map(|place| (place.presenter.get(), place.position.0))
        .collect();
    assert_eq!(places, [(1, 1), (3, 1)], "{:?}", script.placed);
    assert_eq!(failures.get(), 0, "it refuses nobody");
}

/// A legacy session that has all of its room, in each of so many.
async fn in_so_many(rooms: RangeInclusive<i64>, writer: WriterConfig) -> (Stage, Vec<Arc<Peer>>) {
    let config = RegistryConfig {
        sweep: NEVER,
        checkpoint: NEVER,
        ..registry_config()
    };
    let stage = Stage::with(ScriptedSpool::default(), ScriptedStore::default(), config, writer);
    let peers: Vec<_> = rooms.clone().map(|presenter| legacy_of(&stage, presenter)).collect();
    for (presenter, peer) in rooms.zip(&peers) {
        stage.accepted(presenter, "had").await;
        peer.has(1).await;
    }
    stage.spool.script().placed.clear();
    (stage, peers)
}

#[actix::test]
async fn what_is_queued_behind_what_another_process_held_up_is_not_held_up_as_long() {
    let writer = WriterConfig {
        retry_min: NEVER,
        ..writer_config()
    };
    let (stage, peers) = in_so_many(1..=200, writer).await;
    stage.spool.script().busy = true;
    // Broadcasts and places, in four transactions each.
    stage.registry.end_sessions(End::GoingAway).await;
    // Behind them.
    assert_eq!(stage.refused(1, "x").await, Refusal::LogUnavailable);
    assert_eq!(stage.spool.script().held_up, 1, "each may take seconds");
    fine(&peers.iter().map(Arc::as_ref).collect::<Vec<_>>());
}

#[actix::test]
async fn each_place_that_can_be_kept_is_however_many_of_its_transaction_cannot() {
    let (stage, peers) = in_so_many(1..=64, writer_config()).await;
    let spool = stage.spool.clone();
    spool.script().places_in_vain = (1..=40).collect();
    spool.script().places.clear();
    stage.stop_well().await;
    let script = spool.script();
    assert_eq!(
        script.places.keys().copied().collect::<Vec<_>>(),
        (41..=64).collect::<Vec<_>>()
    );
    let tried: Vec<_> = script.placed.iter().map(Vec::len).collect();
    assert!(tried.is_sorted_by(|before, then| before >= then), "{tried:?}");
    drop(script);
    fine(&peers.iter().map(Arc::as_ref).collect::<Vec<_>>());
}

#[actix::test]
async fn rule_13_a_legacy_session_gets_all_that_is_held_from_the_log_by_what_its_socket_takes() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let first = legacy(&stage);
    send(&stage, 1).await;
    first.has(1).await;
    first.leave();
    // More than three times its credit, and nothing of it in memory any more.
    send(&stage, 200).await;
    stage.stop_well().await;
    let stage = Stage::with(spool, store, registry_config(), writer_config());
    let next = legacy(&stage);
    next.has(201).await;
    assert_eq!(next.seqs(), (2..=201).collect::<Vec<_>>());
    fine(&[&first, &next]);
}

#[actix::test]
async fn rule_10_a_session_that_comes_long_after_its_room_was_live_has_as_much_time_as_any() {
    let config = RegistryConfig {
        not_live: Duration::from_millis(300),
        sweep: Duration::from_millis(3),
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::among(quick_rooms(), spool, store, config.clone(), writer_config());
    let first = come(&stage, None);
    send(&stage, 1).await;
    first.has(1).await;
    is_live(&stage, false).await;
    assert_eq!(first.closed().await, End::NotLive);
    first.leave();
    // Its broadcast may go on, so the room is kept, and has not been live for longer than that.
    let came = Instant::now();
    let next = come(&stage, None);
    assert_eq!(next.closed().await, End::NotLive);
    assert!(came.elapsed() >= config.not_live, "{:?}", came.elapsed());
    fine(&[&first, &next]);
}

#[actix::test]
async fn rule_08_a_message_has_a_lease_refreshed_when_its_share_of_the_time_is_over_and_not_before() {
    let ttl = Duration::from_secs(20);
    let rooms = ScriptedRooms::default();
    rooms.script().ttl = ttl;
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    // A sweep has the lease of a session refreshed, too, and looks ahead.
    let config = RegistryConfig {
        sweep: Duration::from_secs(60),
        // Long before it ends, so that a slow machine is in time.
        refresh_percent: 15,
        ..registry_config()
    };
    let stage = Stage::among(rooms.clone(), spool, store, config, writer_config());
    let began = Instant::now();
    let _reader = stage.reader(1);
    stage.accepted(1, "first").await;
    // Whoever had to wait for the next verdict would be refused.
    rooms.script().away = true;
    while rooms.script().asked < 2 {
        stage.accepted(1, "more").await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(began.elapsed() >= ttl * 15 / 100, "{:?}", began.elapsed());
}

#[actix::test]
async fn rule_09_no_session_is_ended_as_not_live_while_the_room_server_does_not_answer() {
    let config = RegistryConfig {
        not_live: Duration::from_millis(300),
        sweep: Duration::from_millis(3),
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let rooms = quick_rooms();
    rooms.script().not_live.insert(1);
    // It says so once.
    rooms.script().away_behind = Some(1);
    let stage = Stage::among(rooms.clone(), spool, store, config.clone(), writer_config());
    // It comes a moment before it goes live.
    let peer = come(&stage, None);
    until("a verdict", || rooms.script().away).await;
    let began = Instant::now();
    let answers = rooms.script().asked;
    until("time", || {
        began.elapsed() > config.not_live * 2 && rooms.script().asked > answers + 10
    })
    .await;
    assert_eq!(peer.told(), None);
    // Now and then an answer is no way to stay for ever (rule 10): what is known counts.
    let known = Instant::now();
    let mut away = false;
    while peer.told().is_none() {
        assert!(known.elapsed() < Duration::from_secs(20), "it stays for ever");
        let before = rooms.script().asked;
        rooms.script().away = away;
        away = !away;
        until("a question", || {
            rooms.script().asked > before + 5 || peer.told().is_some()
        })
        .await;
    }
    assert_eq!(peer.closed().await, End::NotLive);
    fine(&[&peer]);
}

#[actix::test]
async fn rule_05_a_broadcast_goes_on_as_long_as_its_messages_though_the_clock_was_set_back() {
    let (spool, store, rooms) = (ScriptedSpool::default(), ScriptedStore::default(), quick_rooms());
    let stage = held_in(rooms.clone(), spool.clone(), store.clone(), registry_config()).await;
    stage.stored(1).await;
    stage.stop_well().await;
    {
        // What was said was said an hour from now, for the clock was set back since.
        let mut script = spool.script();
        assert!(script.rows.is_empty());
        for event in &mut script.keys {
            Arc::make_mut(event).sent_at_ms += 3_600_000;
        }
    }
    let stage = Stage::among(rooms, spool.clone(), store, registry_config(), writer_config());
    is_live(&stage, true).await;
    let said = stage.accepted(1, "said").await.sent_at_ms;
    is_live(&stage, false).await;
    let ended = || {
        let script = spool.script();
        let (record, _) = script.broadcasts.values().next().unwrap();
        record.segments.last().unwrap().to_ms
    };
    until("the end of its segment", || ended().is_some()).await;
    assert!(ended() >= Some(said), "{:?} {said}", ended());
}

#[actix::test]
async fn rule_10_a_session_whose_room_is_not_live_and_then_not_known_ends_in_its_time() {
    let config = RegistryConfig {
        not_live: Duration::from_millis(50),
        sweep: Duration::from_millis(3),
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let rooms = quick_rooms();
    rooms.script().not_live.insert(1);
    let stage = Stage::among(rooms.clone(), spool, store, config, writer_config());
    let peer = come(&stage, None);
    until("a verdict", || rooms.script().asked > 0).await;
    rooms.script().unknown.insert(1);
    assert_eq!(peer.closed().await, End::NotLive);
    fine(&[&peer]);
}

/// A session that says nothing, and remembers how it was ended and how often its socket was shut.
#[derive(Default)]
struct Quiet(Mutex<Option<End>>, AtomicUsize);

impl Quiet {
    fn come(stage: &Stage) -> (Arc<Self>, SessionId) {
        let quiet = Arc::<Self>::default();
        let session = stage.registry.connect(Arc::clone(&quiet) as Arc<dyn Subscriber>);
        (quiet, session)
    }

    fn told(&self) -> Option<End> {
        *self.0.lock().unwrap()
    }

    fn shuts(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }
}

impl Subscriber for Quiet {
    fn deliver(&self, _: registry::Batch) {}

    fn close(&self, end: End) {
        *self.0.lock().unwrap() = Some(end);
    }

    fn shut(&self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

#[actix::test]
async fn a_stop_waits_no_longer_for_a_session_that_was_told_to_close_before_it_than_for_others() {
    let stage = stage(small());
    let (replaced, session) = Quiet::come(&stage);
    stage
        .registry
        .attach(session, room(1), Arc::new(Flow::default()), v1(None));
    let _newer = come(&stage, None);
    until("a newer one", || replaced.told() == Some(End::Replaced)).await;
    let (other, _) = Quiet::come(&stage);
    let mut stop = Box::pin(stage.registry.end_sessions(End::GoingAway));
    // Neither ends, so the stop does not either.
    let waits = tokio::time::timeout(Duration::ZERO, &mut stop);
    assert!(waits.await.is_err());
    until("the stop to be heard of", || other.told() == Some(End::GoingAway)).await;
    // Each sweep shuts all whose time is over.
    until("the others' time to be over", || other.shuts() > 1).await;
    assert!(replaced.shuts() > 0);
    assert_eq!(replaced.told(), Some(End::Replaced), "it is told once");
}

#[actix::test]
async fn rule_15_a_session_that_was_told_to_go_takes_over_from_nobody() {
    let stage = stage(small());
    let live = come(&stage, None);
    send(&stage, 1).await;
    live.has(1).await;
    let (quiet, session) = Quiet::come(&stage);
    stage.registry.want_seat();
    until("one to make room", || quiet.told() == Some(End::Crowded)).await;
    // What it said before it read that.
    let flow = Arc::new(Flow::default());
    stage.registry.attach(session, room(1), Arc::clone(&flow), v1(None));
    send(&stage, 1).await;
    live.has(2).await;
    assert_eq!((live.told(), flow.take(Seq(1))), (None, false));
    fine(&[&live]);
}

#[actix::test]
async fn rule_12_a_session_that_was_there_when_its_server_was_killed_is_held_for_as_one_that_ended_then() {
    let config = RegistryConfig {
        grace: Duration::from_secs(10),
        broadcast_resume: Duration::from_secs(300),
        checkpoint: Duration::from_millis(1),
        ..registry_config()
    };
    // A place is saved every 30 s while nothing moves. It was saved so long before the kill:
    for (saved_ago_s, held) in [(25, true), (45, false)] {
        let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
        killed(&spool, &store, &config).await;
        {
            let mut script = spool.script();
            let place = script.places.get_mut(&1).unwrap();
            assert_eq!(place.session_at_ms, Some(place.saved_at_ms));
            place.saved_at_ms -= saved_ago_s * 1000;
            place.session_at_ms = Some(place.saved_at_ms);
        }
        let stage = Stage::with(spool, store, config.clone(), writer_config());
        if held {
            assert_eq!(stage.accepted(1, "held").await.delivery, Delivery::Held);
        } else {
            assert_eq!(stage.refused(1, "too late").await, Refusal::PresenterDisconnected);
        }
    }
}

#[actix::test]
async fn rule_12_a_session_that_ended_with_its_server_is_not_held_for_longer_than_others() {
    let config = RegistryConfig {
        grace: Duration::from_secs(10),
        broadcast_resume: Duration::from_secs(300),
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
    let last = legacy(&stage);
    send(&stage, 1).await;
    last.has(1).await;
    stage.stop_well().await;
    {
        let mut script = spool.script();
        let place = script.places.get_mut(&1).unwrap();
        assert!(place.session_at_ms < Some(place.saved_at_ms), "{place:?}");
        let ended = place.session_at_ms.unwrap();
        (place.saved_at_ms, place.session_at_ms) = (place.saved_at_ms - 15_000, Some(ended - 15_000));
    }
    let stage = Stage::with(spool, store, config, writer_config());
    assert_eq!(stage.refused(1, "too late").await, Refusal::PresenterDisconnected);
}

#[actix::test]
async fn a_registry_that_is_made_anew_while_the_server_stops_goes_on_with_the_stop() {
    hush_planned_panics();
    let stage = stage(small());
    stage.registry.refuse_submits().await;
    stage.registry_fails().await;
    assert_eq!(stage.refused(1, "late").await, Refusal::Draining);
    stage.registry.end_sessions(End::GoingAway).await;
    stage.registry_fails().await;
    let (quiet, _) = Quiet::come(&stage);
    until("it to be told", || quiet.told() == Some(End::GoingAway)).await;
}
