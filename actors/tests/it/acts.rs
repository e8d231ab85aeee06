//! Acts of moderation among the actors: a place in the order, without a live room, held for nobody.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chatting_actors::{
    moderation::Act,
    outcome::{Accepted, Delivery, Outcome, Refusal, Submit},
    registry::{RegistryConfig, RoomView},
    types::{ChatMessage, MessageText, Nickname, Role, Seq, UserIdx},
};
use tokio::sync::oneshot;

use crate::{
    script::{Commit, ScriptedRooms, ScriptedSpool, ScriptedStore},
    stage::{Reader, Stage, registry_config, room, until, writer_config},
};

fn stage() -> Stage {
    let mut config = registry_config();
    // A broadcast that may go on would keep its room.
    config.broadcast_resume = Duration::ZERO;
    Stage::with(
        ScriptedSpool::default(),
        ScriptedStore::default(),
        config,
        writer_config(),
    )
}

fn act(stage: &Stage, presenter: i64) -> oneshot::Receiver<Outcome> {
    act_as(stage, presenter, "staff")
}

/// Deletes what the user 7 has said; the outcome comes later.
pub fn act_as(stage: &Stage, presenter: i64, nickname: &str) -> oneshot::Receiver<Outcome> {
    let user_idx = UserIdx::new(99).unwrap();
    let submit = Submit {
        presenter_idx: room(presenter),
        chat: ChatMessage {
            user_idx,
            nickname: Nickname::new(nickname, 64).unwrap(),
            text: MessageText::maybe_empty(String::new(), 0).unwrap(),
            role: Role::Operator,
        },
        act: Some(Arc::new(Act::User {
            user_idx: UserIdx::new(7).unwrap(),
        })),
        keyed: None,
    };
    stage.registry.submit(submit).unwrap()
}

pub async fn done(stage: &Stage, presenter: i64) -> Accepted {
    match act(stage, presenter).await.unwrap() {
        Outcome::Accepted(accepted) => accepted,
        Outcome::Refused(refusal) => panic!("{refusal:?}"),
    }
}

#[actix::test]
async fn an_act_is_numbered_among_messages_and_passed_over_by_a_legacy_session() {
    let stage = stage();
    let reader = stage.reader(1);
    assert_eq!(stage.accepted(1, "one").await.seq, Seq(1));
    assert_eq!(done(&stage, 1).await.seq, Seq(2));
    assert_eq!(done(&stage, 1).await.seq, Seq(3));
    assert_eq!(stage.accepted(1, "two").await.seq, Seq(4));
    assert_eq!(reader.seqs(), [1, 4]);
    assert_eq!(stage.stored(1).await.len(), 4);
    // Nothing of it is owed to the next session.
    reader.leave();
    done(&stage, 1).await;
    let next = stage.reader(1);
    assert_eq!(stage.accepted(1, "three").await.seq, Seq(6));
    assert_eq!(next.seqs(), [6]);
}

#[actix::test]
async fn rule_11_a_message_that_is_deleted_in_its_own_commit_is_not_delivered_to_a_legacy_session() {
    let stage = stage();
    let reader = stage.reader(1);
    assert_eq!(stage.accepted(1, "one").await.delivery, Delivery::Delivered);
    let hold = stage.writer.hold_spool();
    let (message, act) = (stage.submit(1, "two"), act(&stage, 1));
    let other = stage.submit_as(8, "lee", 1, "three", None);
    until("all of them to wait", || stage.writer.gates()[0].depth() == 3).await;
    // What is numbered is handed over when the registry's turn is over, and this is another.
    let _ = stage.registry.view(room(1)).await;
    drop(hold);
    let accepted = async |outcome: oneshot::Receiver<Outcome>| match outcome.await.unwrap() {
        Outcome::Accepted(accepted) => (accepted.seq.0, accepted.delivery),
        Outcome::Refused(refusal) => panic!("{refusal:?}"),
    };
    assert_eq!(accepted(message).await, (2, Delivery::Held));
    assert_eq!(accepted(act).await.0, 3);
    assert_eq!(accepted(other).await, (4, Delivery::Delivered));
    assert_eq!(reader.seqs(), [1, 4]);
}

#[actix::test]
async fn rule_10_an_act_needs_no_live_room_and_leaves_none_behind() {
    let stage = stage();
    stage.rooms.script().not_live.insert(1);
    assert_eq!(done(&stage, 1).await.seq, Seq(1));
    assert_eq!(done(&stage, 1).await.seq, Seq(2));
    for _ in 0..5000 {
        if stage.registry.view(room(1)).await.is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(stage.registry.view(room(1)).await, None, "the room is kept for nothing");
    assert_eq!(done(&stage, 1).await.seq, Seq(3));
}

#[actix::test]
async fn rule_01_an_act_whose_commit_fails_gives_its_number_back() {
    let stage = stage();
    let _reader = stage.reader(1);
    stage.accepted(1, "one").await;
    stage.spool.script().commits.push_back(Commit::FailsWithout);
    assert_eq!(act(&stage, 1).await.unwrap(), Outcome::Refused(Refusal::LogUnavailable));
    until("a spool that works", || stage.writer.writable()).await;
    assert_eq!(done(&stage, 1).await.seq, Seq(2));
}

#[actix::test]
async fn an_act_in_a_room_whose_numbering_cannot_be_told_is_refused_and_not_kept() {
    let spool = ScriptedSpool::default();
    spool.script().asks_store = true;
    let store = ScriptedStore::default();
    store.script().away = true;
    let stage = Stage::with(spool, store, registry_config(), writer_config());
    assert_eq!(act(&stage, 1).await.unwrap(), Outcome::Refused(Refusal::LogUnavailable));
    stage.store.script().away = false;
    until("the store", || stage.parts.state.error().is_none()).await;
    assert_eq!(done(&stage, 1).await.seq, Seq(1));
}

#[actix::test]
async fn a_registry_that_is_about_to_stop_refuses_acts_too() {
    let stage = stage();
    assert_eq!(done(&stage, 1).await.seq, Seq(1));
    stage.registry.refuse_submits().await;
    assert_eq!(act(&stage, 1).await.unwrap(), Outcome::Refused(Refusal::Draining));
}

#[actix::test]
async fn what_is_deleted_while_the_log_is_read_for_a_legacy_session_is_not_shown_there() {
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::with(spool.clone(), store.clone(), registry_config(), writer_config());
    let first = stage.reader(1);
    stage.accepted(1, "numbered").await;
    first.leave();
    for text in ["bad", "worse"] {
        stage.accepted(1, text).await;
    }
    stage.stop_well().await;
    let stage = Stage::with(spool, store, registry_config(), writer_config());
    stage.log.hold(true);
    let reader = stage.reader(1);
    until("a page to be asked for", || stage.log.script().under_way == 1).await;
    done(&stage, 1).await;
    stage.log.hold(false);
    let after = stage.submit_as(8, "lee", 1, "fine", None).await.unwrap();
    assert!(matches!(after, Outcome::Accepted(_)), "{after:?}");
    reader.has_seen(1).await;
    let seen: Vec<_> = reader.seen().into_iter().map(|(_, text)| text).collect();
    assert_eq!(seen, ["fine"]);
}

#[actix::test]
async fn rule_12_held_messages_that_are_deleted_make_room_for_others() {
    let config = RegistryConfig {
        ring_events: 3,
        ..registry_config()
    };
    let stage = Stage::with(
        ScriptedSpool::default(),
        ScriptedStore::default(),
        config,
        writer_config(),
    );
    let first = stage.reader(1);
    stage.accepted(1, "seen").await;
    first.leave();
    for text in ["bad", "worse", "worst"] {
        assert_eq!(stage.accepted(1, text).await.delivery, Delivery::Held);
    }
    let other = async |text: &str| stage.submit_as(8, "lee", 1, text, None).await.unwrap();
    let full = Outcome::Refused(Refusal::PresenterDisconnected);
    assert_eq!(other("no room").await, full);
    done(&stage, 1).await;
    for text in ["one", "two", "three"] {
        let outcome = other(text).await;
        let held = matches!(&outcome, Outcome::Accepted(accepted) if accepted.delivery == Delivery::Held);
        assert!(held, "{text}: {outcome:?}");
    }
    assert_eq!(other("no room").await, full);
    let next = stage.reader(1);
    next.has_seen(3).await;
    assert_eq!(texts(&next), ["one", "two", "three"]);
}

/// An act is written though nobody can tell, and then `fine` is sent by another user.
async fn deleted_by_an_unknown_outcome(stage: &Stage) {
    stage.spool.script().commits.push_back(Commit::FailsUnknownWith);
    assert_eq!(act(stage, 1).await.unwrap(), Outcome::Refused(Refusal::OutcomeUnknown));
    until("a spool that works", || stage.writer.writable()).await;
    let fine = stage.submit_as(8, "lee", 1, "fine", None).await.unwrap();
    assert!(matches!(fine, Outcome::Accepted(_)), "{fine:?}");
}

fn texts(reader: &Reader) -> Vec<String> {
    reader.seen().into_iter().map(|(_, text)| text).collect()
}

#[actix::test]
async fn what_is_held_and_deleted_by_an_act_of_unknown_outcome_is_not_shown_to_a_legacy_session() {
    let stage = Stage::set();
    let first = stage.reader(1);
    stage.accepted(1, "seen").await;
    first.leave();
    assert_eq!(stage.accepted(1, "bad").await.delivery, Delivery::Held);
    deleted_by_an_unknown_outcome(&stage).await;
    let next = stage.reader(1);
    next.has_seen(1).await;
    assert_eq!(texts(&next), ["fine"]);
}

/// What a session has of the log when an act of unknown outcome deletes some of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    /// It is on its way.
    Coming,
    /// It is here and waits for credit.
    Here,
}

#[actix::test]
async fn what_was_read_for_a_legacy_session_and_deleted_by_an_act_of_unknown_outcome_is_not_shown_there() {
    for has in [Has::Coming, Has::Here] {
        let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
        // All of it is in the spool.
        store.script().away = true;
        let mut config = registry_config();
        // One message at a time.
        config.credit_bytes = 1;
        let stage = Stage::with(spool.clone(), store.clone(), config.clone(), writer_config());
        let first = stage.reader(1);
        stage.accepted(1, "seen").await;
        first.leave();
        for (user, text) in [(8, "good"), (7, "bad"), (8, "better")] {
            let held = stage.submit_as(user, "lee", 1, text, None).await.unwrap();
            assert!(matches!(held, Outcome::Accepted(_)), "{held:?}");
        }
        stage.stop_well().await;
        let stage = Stage::with(spool, store, config, writer_config());
        stage.log.keep_back(true);
        let reader = stage.reader(1);
        until("a page", || stage.log.script().read == 1).await;
        reader.stalled.store(true, Ordering::Release);
        if has == Has::Here {
            stage.log.keep_back(false);
            until("the first of it", || stage.metrics.frames.get() == 1).await;
        }
        deleted_by_an_unknown_outcome(&stage).await;
        stage.log.keep_back(false);
        reader.go_on();
        reader.has_seen(3).await;
        assert_eq!(texts(&reader), ["good", "better", "fine"], "{has:?}");
    }
}

#[actix::test]
async fn rule_13_an_act_while_its_broadcast_is_away_takes_nothing_held_from_a_session_that_came_before_it() {
    let stage = held_while_away(ScriptedStore::default()).await;
    let next = stage.reader(1);
    done(&stage, 1).await;
    is_live(&stage, 1, true).await;
    next.has_seen(1).await;
    assert_eq!(next.seen(), [(2, "held".to_owned())]);
}

#[actix::test]
async fn an_act_has_the_number_of_its_broadcast_whatever_number_a_room_that_is_not_live_has() {
    let rooms = ScriptedRooms::default();
    {
        let mut script = rooms.script();
        script.ttl = Duration::from_millis(2);
        script.room_idx.insert(1, 7);
        script.room_idx_not_live = Some(0);
        // Here nothing has begun.
        script.not_live.insert(2);
    }
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::among(rooms, spool, store, registry_config(), writer_config());
    let _readers = [1, 2].map(|presenter| stage.reader(presenter));
    stage.accepted(1, "seen").await;
    is_live(&stage, 1, false).await;
    is_live(&stage, 2, false).await;
    for presenter in [1, 2] {
        done(&stage, presenter).await;
        stage.stored(presenter).await;
    }
    let room_idx = |at| stage.store.script().events[&at].room_idx;
    assert_eq!((room_idx((1, 1)), room_idx((1, 2))), (Some(7), Some(7)));
    assert_eq!(room_idx((2, 1)), None);
}

/// A room that is not live just now, and for whose broadcast a message is held, the second of it.
async fn held_while_away(store: ScriptedStore) -> Stage {
    let rooms = ScriptedRooms::default();
    rooms.script().ttl = Duration::from_millis(2);
    let stage = Stage::among(
        rooms,
        ScriptedSpool::default(),
        store,
        registry_config(),
        writer_config(),
    );
    let first = stage.reader(1);
    stage.accepted(1, "seen").await;
    first.leave();
    let held = stage.submit_as(8, "lee", 1, "held", None).await.unwrap();
    assert!(matches!(held, Outcome::Accepted(_)), "{held:?}");
    is_live(&stage, 1, false).await;
    stage
}

async fn is_live(stage: &Stage, presenter: i64, live: bool) {
    match live {
        true => stage.rooms.script().not_live.remove(&presenter),
        false => stage.rooms.script().not_live.insert(presenter),
    };
    let told = |view: Option<RoomView>| view.and_then(|view| view.live) == Some(live);
    stage.keeps(presenter, "the verdict", told).await;
}

#[actix::test]
async fn rule_13_an_act_of_unknown_outcome_while_its_broadcast_is_away_takes_nothing_held_from_that_session_either() {
    for has in [Has::Coming, Has::Here] {
        // All of it is in the spool.
        let store = ScriptedStore::default();
        store.script().away = true;
        let stage = held_while_away(store).await;
        let next = stage.reader(1);
        stage.has_session(1, true).await;
        stage.log.keep_back(true);
        stage.spool.script().commits.push_back(Commit::FailsUnknownWith);
        assert_eq!(act(&stage, 1).await.unwrap(), Outcome::Refused(Refusal::OutcomeUnknown));
        // What is asked for is behind what is held.
        until("a page", || stage.log.script().read == 1).await;
        if has == Has::Here {
            stage.log.keep_back(false);
            until("all of it", || stage.log.script().under_way == 0).await;
            // Where it comes later than this, the test is easier, not wrong.
            let _ = stage.registry.view(room(1)).await;
        }
        is_live(&stage, 1, true).await;
        stage.log.keep_back(false);
        next.has_seen(1).await;
        let fine = stage.submit_as(8, "lee", 1, "fine", None).await.unwrap();
        assert!(matches!(fine, Outcome::Accepted(_)), "{fine:?}");
        next.has_seen(2).await;
        assert_eq!(texts(&next), ["held", "fine"], "{has:?}");
    }
}
