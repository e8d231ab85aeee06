//! Broadcasts that the store has open and the spool does not know, because it is new or lost them: they go on, or end.

use std::time::Duration;

use chatting_actors::{
    broadcast::{Broadcast, Segment, Span},
    clock::system_ms,
    outcome::{Outcome, Refusal},
    registry::RoomView,
    types::{Epoch, Seq},
    writer::WriterConfig,
};
use uuid::Uuid;

use crate::{
    acts::act_as,
    resume::{come, fine, is_live, legacy, quick_rooms, send},
    script::{Call, Commit, ScriptedRooms, ScriptedSpool, ScriptedStore},
    stage::{Stage, registry_config, room, until, writer_config},
};

const HOUR_MS: i64 = 3_600_000;

/// One that is open, with its events after this one in a numbering that is over, and was last seen so long ago.
fn open(id: u128, presenter: i64, after: u64, seen_ago_ms: i64) -> Broadcast {
    let seen_at_ms = system_ms() - seen_ago_ms;
    Broadcast {
        id: Uuid::from_u128(id),
        presenter: room(presenter),
        room_idx: None,
        reported_start_ms: None,
        ended_at_ms: None,
        segments: vec![Segment {
            from_ms: seen_at_ms - 1000,
            to_ms: None,
        }],
        spans: vec![Span {
            epoch: Epoch("before".into()),
            after: Seq(after),
            through: None,
        }],
        seen_at_ms,
        version: 3,
    }
}

/// A spool that knows nothing, and a store with these broadcasts.
fn new_spool(broadcasts: &[Broadcast]) -> (ScriptedSpool, ScriptedStore) {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    spool.script().asks_store = true;
    let all = broadcasts.iter().map(|one| (one.id, one.clone()));
    store.script().broadcasts.extend(all);
    (spool, store)
}

/// A server that asks again and again which broadcasts the store has open, and has asked once; with its own broadcast
/// of this room, where it goes on.
async fn asking(rooms: ScriptedRooms, presenter: i64) -> (Stage, Broadcast) {
    let writer = WriterConfig {
        adopt_every: Some(Duration::from_millis(5)),
        ..writer_config()
    };
    let (spool, store) = new_spool(&[]);
    let stage = Stage::among(rooms, spool, store.clone(), registry_config(), writer);
    let own = of_its_own(&stage, presenter).await;
    (stage, own)
}

/// The broadcast that begins in a room when somebody comes, as the store has it.
async fn of_its_own(stage: &Stage, presenter: i64) -> Broadcast {
    let _reader = stage.reader(presenter);
    stage.has_session(presenter, true).await;
    let own = || {
        let script = stage.store.script();
        let mut all = script.broadcasts.values();
        all.find(|one| one.presenter == room(presenter)).cloned()
    };
    until("its own broadcast in the store", || own().is_some()).await;
    own().unwrap()
}

fn stored(store: &ScriptedStore, id: u128) -> Broadcast {
    store.script().broadcasts[&Uuid::from_u128(id)].clone()
}

#[actix::test]
async fn a_broadcast_that_only_the_store_has_open_goes_on_in_a_live_room_before_another_begins() {
    let left = open(1, 1, 0, 1000);
    let (spool, store) = new_spool(std::slice::from_ref(&left));
    // All of them are asked for behind this; a room that asks for its last seq asks for its own.
    store.script().calls.push_back(Call::Slow(1500));
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let reader = stage.reader(1);
    stage.accepted(1, "x").await;
    reader.has_seen(1).await;
    assert_eq!(stage.stored(1).await, [(1, "x".to_owned())]);
    let said = store.script().events[&(1, 1)].broadcast_id;
    assert_eq!(said, Some(left.id));
    let gone_on = || stored(&store, 1).spans.len() == 2;
    until("the store to know of the numbering that it goes on in", gone_on).await;
    assert_eq!(stored(&store, 1).ended_at_ms, None);
    assert_eq!(store.script().broadcasts.len(), 1);
    // A spool that was lost may turn up, with versions of its own that the store never had: they are older.
    assert!(stored(&store, 1).version > 1 << 32, "{:?}", stored(&store, 1));
}

#[actix::test]
async fn rule_16_who_comes_to_a_broadcast_that_went_on_in_another_numbering_is_told_what_may_have_been_missed_in_it() {
    let left = open(1, 1, 100, 1000);
    let (spool, store) = new_spool(std::slice::from_ref(&left));
    store.script().last_seqs.insert(1, Seq(500));
    let stage = Stage::with(spool, store, registry_config(), writer_config());
    let peer = come(&stage, None);
    let welcome = peer.welcomed().await;
    let gap = welcome.gap.map(|gap| (gap.from, gap.to));
    assert_eq!((welcome.resumed_from, gap), (Seq(501), Some((Seq(101), Seq(500)))));
    assert_eq!(stage.accepted(1, "x").await.seq, Seq(501));
    peer.has(501).await;
}

/// Of all of them at once, and of a room that asks for its own first.
#[actix::test]
async fn a_broadcast_that_was_taken_up_by_an_attempt_which_failed_goes_on_like_any_other() {
    for of_a_room in [false, true] {
        let left = open(1, 1, 0, 1000);
        let (spool, store) = new_spool(std::slice::from_ref(&left));
        spool.script().adopts_in_vain = 1;
        if of_a_room {
            store.script().calls.push_back(Call::Slow(1500));
        }
        let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
        if !of_a_room {
            until("the attempt", || spool.script().adopts_in_vain == 0).await;
        }
        let reader = stage.reader(1);
        stage.accepted_again(1, "x").await;
        reader.has_seen(1).await;
        stage.stored(1).await;
        let said = store.script().events[&(1, 1)].broadcast_id;
        assert_eq!(said, Some(left.id), "{of_a_room}");
    }
}

#[actix::test]
async fn broadcasts_that_only_the_store_has_open_end_where_nobody_talks_any_more() {
    // The second room's ended without a word, and so did two others of it before.
    let all = [
        open(1, 1, 0, HOUR_MS),
        open(2, 2, 0, 4 * HOUR_MS),
        open(3, 2, 7, 3 * HOUR_MS),
        open(4, 2, 9, 2 * HOUR_MS),
    ];
    let (spool, store) = new_spool(&all);
    let rooms = ScriptedRooms::default();
    rooms.script().not_live.extend([1, 2]);
    let _stage = Stage::among(rooms, spool, store.clone(), registry_config(), writer_config());
    let over = || (1..=4).all(|id| stored(&store, id).ended_at_ms.is_some());
    until("all of them to end", over).await;
    for one in all {
        let id = one.id.as_u128();
        let ended = stored(&store, id);
        assert_eq!(ended.ended_at_ms, Some(one.seen_at_ms), "{id}");
        assert_eq!(ended.segments[0].to_ms, Some(one.seen_at_ms), "{id}");
        let through = [(2, Seq(7)), (3, Seq(9))]
            .into_iter()
            .find(|(of, _)| *of == id)
            .map(|(_, seq)| seq);
        assert_eq!(ended.spans[0].through, through, "{id}: the next one began there");
    }
}

#[actix::test]
async fn a_broadcast_that_is_found_in_the_store_behind_the_beginning_of_another_has_ended() {
    let left = open(1, 1, 0, HOUR_MS);
    let (spool, store) = new_spool(std::slice::from_ref(&left));
    // As a spool is that lost its records, and a store that is away meanwhile.
    spool.script().asks_store = false;
    store.script().away = true;
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let _reader = stage.reader(1);
    stage.has_session(1, true).await;
    stage.accepted(1, "x").await;
    let began = || spool.script().broadcasts.keys().next().copied();
    until("another to begin", || began().is_some()).await;
    let other = began().unwrap();
    assert_ne!(other, left.id);
    store.script().away = false;
    until("an end", || stored(&store, 1).ended_at_ms.is_some()).await;
    assert_eq!(stored(&store, 1).ended_at_ms, Some(left.seen_at_ms));
    until("the other in the store", || {
        store.script().broadcasts.contains_key(&other)
    })
    .await;
    assert_eq!(store.script().broadcasts[&other].ended_at_ms, None);
    stage.accepted(1, "y").await;
    assert_eq!(stage.stored(1).await.len(), 2);
    assert_eq!(store.script().events[&(1, 2)].broadcast_id, Some(other));
}

#[actix::test]
async fn of_two_broadcasts_of_a_room_that_a_spool_has_open_the_later_one_goes_on() {
    let (left, later) = (open(1, 1, 0, HOUR_MS), open(2, 1, 7, 1000));
    let spool = ScriptedSpool::default();
    for one in [&left, &later] {
        spool.script().broadcasts.insert(one.id, (one.clone(), true));
    }
    let store = ScriptedStore::default();
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let reader = stage.reader(1);
    stage.accepted(1, "x").await;
    reader.has_seen(1).await;
    assert_eq!(stage.stored(1).await, [(1, "x".to_owned())]);
    assert_eq!(store.script().events[&(1, 1)].broadcast_id, Some(later.id));
    let record = |id| spool.script().broadcasts[&id].0.clone();
    until("the other to end", || record(left.id).ended_at_ms.is_some()).await;
    assert_eq!(record(left.id).ended_at_ms, Some(left.seen_at_ms));
    assert_eq!(record(left.id).spans[0].through, Some(Seq(7)));
    assert_eq!(record(later.id).ended_at_ms, None);
}

#[actix::test]
async fn what_somebody_else_left_open_in_the_store_ends_while_the_server_runs() {
    let rooms = ScriptedRooms::default();
    rooms.script().not_live.insert(1);
    let (stage, _) = asking(rooms, 2).await;
    let left = open(1, 1, 0, HOUR_MS);
    stage.store.script().broadcasts.insert(left.id, left.clone());
    until("an end", || stored(&stage.store, 1).ended_at_ms.is_some()).await;
    assert_eq!(stored(&stage.store, 1).ended_at_ms, Some(left.seen_at_ms));
}

#[actix::test]
async fn what_a_room_goes_on_with_is_not_ended_by_what_somebody_else_left_open_of_it() {
    let (stage, own) = asking(ScriptedRooms::default(), 1).await;
    // Of before, and of since.
    let others = [1, own.id.as_u128() + 1].map(|id| open(id, 1, 7, 1000));
    for left in &others {
        stage.store.script().broadcasts.insert(left.id, left.clone());
    }
    for left in others {
        let id = left.id.as_u128();
        until("an end", || stored(&stage.store, id).ended_at_ms.is_some()).await;
        assert_eq!(stored(&stage.store, id).ended_at_ms, Some(left.seen_at_ms));
    }
    stage.accepted(1, "x").await;
    assert_eq!(stage.stored(1).await, [(1, "x".to_owned())]);
    let script = stage.store.script();
    assert_eq!(script.events[&(1, 1)].broadcast_id, Some(own.id));
    assert_eq!(script.broadcasts[&own.id].ended_at_ms, None);
}

/// What happens while the store gets to have a later broadcast open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    /// What the last commit wrote is not known just then.
    Unsure,
    /// The server restarts, and cannot tell yet how far the room got.
    RestartsBefore,
    /// The server restarts when it has heard of it.
    RestartsBehind,
}

#[actix::test]
async fn rule_13_what_is_held_is_not_for_a_later_broadcast_that_the_store_has_open_while_the_room_is_not_live() {
    // Their numbers tell them apart, or time alone; it began in the numbering of its server, below what is held here or above.
    for (numbers, after) in [(Some((7, 8)), 7), (Some((7, 8)), 1), (None, 7), (None, 1)] {
        for meanwhile in [
            Meanwhile::Nothing,
            Meanwhile::Unsure,
            Meanwhile::RestartsBefore,
            Meanwhile::RestartsBehind,
        ] {
            let rooms = quick_rooms();
            rooms.script().started_at_ms.clear();
            if let Some((before, _)) = numbers {
                rooms.script().room_idx.insert(1, before);
            }
            let writer = WriterConfig {
                adopt_every: Some(Duration::from_millis(5)),
                ..writer_config()
            };
            let (spool, store) = new_spool(&[]);
            let start = || {
                let (rooms, spool, store) = (rooms.clone(), spool.clone(), store.clone());
                Stage::among(rooms, spool, store, registry_config(), writer.clone())
            };
            let mut stage = start();
            let first = legacy(&stage);
            send(&stage, 1).await;
            first.has(1).await;
            first.leave();
            send(&stage, 3).await;
            is_live(&stage, false).await;
            let own = || store.script().broadcasts.values().next().cloned();
            until("its own broadcast in the store", || own().is_some()).await;
            let before = own().unwrap().id.as_u128();
            if meanwhile == Meanwhile::Unsure {
                {
                    let mut script = spool.script();
                    script.commits.push_back(Commit::FailsUnknownWith);
                    script.fails_behind = true;
                }
                let act = act_as(&stage, 1, "staff").await.unwrap();
                assert_eq!(act, Outcome::Refused(Refusal::OutcomeUnknown));
            }
            let later = Broadcast {
                room_idx: numbers.map(|(_, later)| later),
                ..open(before + 1, 1, after, 1000)
            };
            if meanwhile == Meanwhile::RestartsBefore {
                stage.stop_well().await;
                spool.script().failing = usize::MAX;
                stage = start();
                let told = |view: Option<RoomView>| view.is_some();
                stage.keeps(1, "its own broadcast", told).await;
            }
            store.script().broadcasts.insert(later.id, later.clone());
            until("an end", || stored(&store, before).ended_at_ms.is_some()).await;
            if matches!(meanwhile, Meanwhile::Unsure | Meanwhile::RestartsBefore) {
                assert_eq!(stage.registry.view(room(1)).await.unwrap().last_seq, None);
                spool.script().failing = 0;
                until("a spool that works", || stage.writer.writable()).await;
            }
            if meanwhile == Meanwhile::RestartsBehind {
                stage.stop_well().await;
                stage = start();
            }
            if let Some((_, later)) = numbers {
                rooms.script().room_idx.insert(1, later);
            }
            is_live(&stage, true).await;
            let refused = stage.refused(1, "nobody was there").await;
            assert_eq!(
                refused,
                Refusal::PresenterDisconnected,
                "{numbers:?} {after} {meanwhile:?}"
            );
            let next = legacy(&stage);
            stage.has_session(1, true).await;
            let new = stage.accepted(1, "new").await.seq.0;
            assert_eq!(new, if meanwhile == Meanwhile::Unsure { 6 } else { 5 });
            next.has(new).await;
            assert_eq!(next.seqs(), [new], "{numbers:?} {after} {meanwhile:?}");
            stage.stored(1).await;
            let said = store.script().events[&(1, new)].broadcast_id;
            assert_eq!(said, Some(later.id), "{numbers:?} {after} {meanwhile:?}");
            fine(&[&first, &next]);
        }
    }
}

#[actix::test]
async fn what_is_held_is_for_the_same_broadcast_also_where_another_server_has_a_later_record_of_it() {
    let rooms = quick_rooms();
    rooms.script().started_at_ms.clear();
    rooms.script().room_idx.insert(1, 7);
    let (spool, store) = new_spool(&[]);
    let writer = WriterConfig {
        adopt_every: Some(Duration::from_millis(5)),
        ..writer_config()
    };
    let stage = Stage::among(rooms, spool, store.clone(), registry_config(), writer);
    let first = legacy(&stage);
    send(&stage, 1).await;
    first.has(1).await;
    first.leave();
    send(&stage, 3).await;
    is_live(&stage, false).await;
    let own = || store.script().broadcasts.values().next().cloned();
    until("its own record in the store", || own().is_some()).await;
    let before = own().unwrap().id.as_u128();
    let later = Broadcast {
        room_idx: Some(7),
        ..open(before + 1, 1, 7, 1000)
    };
    store.script().broadcasts.insert(later.id, later);
    until("the later record to go on", || {
        stored(&store, before).ended_at_ms.is_some()
    })
    .await;
    is_live(&stage, true).await;
    let next = legacy(&stage);
    next.has(4).await;
    assert_eq!(next.seqs(), [2, 3, 4]);
    fine(&[&first, &next]);
}

#[actix::test]
async fn rule_07_while_another_server_is_there_only_what_that_one_left_open_waits() {
    let rooms = ScriptedRooms::default();
    rooms.script().not_live.insert(1);
    let (stage, _) = asking(rooms, 2).await;
    let asked = {
        let mut script = stage.store.script();
        script.shared = true;
        let left = open(1, 1, 0, HOUR_MS);
        script.broadcasts.insert(left.id, left);
        script.asked_open
    };
    until("questions", || stage.store.script().asked_open > asked + 3).await;
    of_its_own(&stage, 3).await;
    assert_eq!(stored(&stage.store, 1).ended_at_ms, None);
    stage.store.script().shared = false;
    until("an end", || stored(&stage.store, 1).ended_at_ms.is_some()).await;
}

#[actix::test]
async fn a_broadcast_that_another_server_went_on_with_meanwhile_goes_on_from_there_and_is_stored() {
    let mut ours = open(1, 1, 0, 1000);
    ours.spans[0].epoch = Epoch("e".into());
    let mut theirs = ours.clone();
    theirs.version += (1 << 32) + 7;
    theirs.spans.push(Span {
        epoch: Epoch("elsewhere".into()),
        after: Seq(5),
        through: None,
    });
    let (spool, store) = new_spool(std::slice::from_ref(&theirs));
    spool.script().broadcasts.insert(ours.id, (ours, true));
    spool.script().rooms.insert(1, Seq(5));
    let stage = Stage::with(spool, store.clone(), registry_config(), writer_config());
    let _reader = stage.reader(1);
    let come_back = || stored(&store, 1).spans.len() == 3;
    until("the store to know that it came back", come_back).await;
    let now = stored(&store, 1);
    let spans = now
        .spans
        .iter()
        .map(|span| (&*span.epoch.0, span.after.0, span.through));
    let wanted = [("e", 0, Some(Seq(5))), ("elsewhere", 5, None), ("e", 5, None)];
    assert_eq!(spans.collect::<Vec<_>>(), wanted);
    assert!(now.version > theirs.version, "{now:?}");
    stage.accepted(1, "x").await;
    assert_eq!(stage.stored(1).await, [(6, "x".to_owned())]);
    assert_eq!(store.script().events[&(1, 6)].broadcast_id, Some(theirs.id));
}
