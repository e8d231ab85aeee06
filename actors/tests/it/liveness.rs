//! When the room server is asked whether a room is live, though nobody sends (rules 8 and 13).

use std::time::Instant;

use chatting_actors::{
    outcome::{Delivery, Refusal},
    registry::RegistryConfig,
    seldom::Seldom,
};

use crate::{
    script::{ScriptedRooms, ScriptedSpool, ScriptedStore},
    stage::{Stage, keep_lines, lines_with, registry_config, until, writer_config},
};

/// The room server is asked about this room a few times more, sweep by sweep.
async fn asked_again_and_again(rooms: &ScriptedRooms, presenter: i64) {
    let count = || rooms.script().asked_of.get(&presenter).copied().unwrap_or(0);
    let before = count();
    until("a room to be asked about", || count() > before + 3).await;
}

#[actix::test]
async fn rule_08_the_verdict_of_a_room_in_use_is_refreshed_before_it_ends_also_without_a_sender() {
    let rooms = ScriptedRooms::default();
    // It holds for a minute, and is due at once.
    let config = RegistryConfig {
        refresh_percent: 0,
        ..registry_config()
    };
    let stage = Stage::among(
        rooms.clone(),
        ScriptedSpool::default(),
        ScriptedStore::default(),
        config,
        writer_config(),
    );
    // An open broadcast alone, and a room that is not live: what they have is enough for whoever comes.
    rooms.script().not_live.insert(3);
    assert_eq!(stage.refused(2, "nobody").await, Refusal::PresenterDisconnected);
    let _waits_to_begin = stage.reader(3);
    until("its verdict", || rooms.script().asked_of.contains_key(&3)).await;
    let presenter = stage.reader(1);
    assert_eq!(stage.accepted(1, "first").await.delivery, Delivery::Delivered);
    let asked = [2, 3].map(|presenter| rooms.script().asked_of[&presenter]);

    asked_again_and_again(&rooms, 1).await;
    // That it is not answered is nobody's trouble as long as the verdict holds.
    rooms.script().away = true;
    asked_again_and_again(&rooms, 1).await;
    assert_eq!(stage.accepted(1, "second").await.delivery, Delivery::Delivered);
    rooms.script().away = false;
    // Something held is in use, too.
    presenter.leave();
    assert_eq!(stage.accepted(1, "third").await.delivery, Delivery::Held);
    asked_again_and_again(&rooms, 1).await;
    assert_eq!([2, 3].map(|presenter| rooms.script().asked_of[&presenter]), asked);
}

#[actix::test]
async fn a_room_server_that_says_of_no_room_whether_it_is_live_has_no_line_a_room() {
    keep_lines();
    let (stage, began) = (Stage::set(), Instant::now());
    stage.rooms.script().unknown.extend(987_600..987_700);
    for presenter in 987_600..987_700 {
        assert_eq!(stage.refused(presenter, "x").await, Refusal::RoomServerUnavailable);
    }
    let told = lines_with("does not say whether presenter 9876");
    let at_most = 1 + began.elapsed().as_secs() / Seldom::EVERY.as_secs();
    assert!((1..=at_most).contains(&(told.len() as u64)), "{told:?}");
}

#[actix::test]
async fn a_room_server_that_does_not_answer_has_no_line_a_question() {
    keep_lines();
    let (stage, began) = (Stage::set(), Instant::now());
    for presenter in 987_500..987_600 {
        // That it answers in between is nothing to the log.
        stage.rooms.script().away = presenter % 3 == 0;
        let _ = stage.submit(presenter, "x").await.unwrap();
    }
    let told = lines_with("no answer for presenter 9875");
    let at_most = 1 + began.elapsed().as_secs() / Seldom::EVERY.as_secs();
    assert!((1..=at_most).contains(&(told.len() as u64)), "{told:?}");
}

#[actix::test]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted room server, and nothing here waits for it"
)]
async fn what_the_room_server_answers_at_once_waits_for_no_place_however_much_is_asked_in_a_turn() {
    let stage = Stage::set();
    let first = stage.reader(1);
    assert_eq!(stage.accepted(1, "first").await.delivery, Delivery::Delivered);
    // Held up in one question, the checker has all the others in one turn.
    let script = stage.rooms.script();
    let readers: Vec<_> = (2..=300).map(|presenter| stage.reader(presenter)).collect();
    until("all to be asked", || stage.checker.gate().depth() == readers.len()).await;
    drop(script);
    until("all answers", || stage.checker.gate().depth() == 0).await;
    assert_eq!(stage.rooms.script().asked_of.len(), 1 + readers.len());
    assert_eq!(stage.metrics.queues.waiting("lookups", 64).1.get(), 0);
    assert_eq!(stage.accepted(300, "last").await.delivery, Delivery::Delivered);
    drop(first);
}
