//! When the room server is asked whether a room is live, though nobody sends (rules 8 and 13).

use std::{
    collections::VecDeque,
    ops::RangeInclusive,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use chatting_actors::{
    checker::CheckerConfig,
    outcome::{Delivery, Outcome, Refusal},
    registry::RegistryConfig,
    seldom::Seldom,
    types::{Event, Seq},
};
use futures_util::future::{join_all, select};
use tokio::time::timeout;

use crate::{
    resume::{is_live, quick_rooms},
    script::{ScriptedRooms, ScriptedSpool, ScriptedStore},
    stage::{Reader, Stage, eventually, keep_lines, lines_with, registry_config, room, until, writer_config},
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
async fn a_room_server_that_gives_no_new_verdict_is_not_asked_for_one_with_every_message() {
    for answers in [true, false] {
        let rooms = ScriptedRooms::default();
        // A hundredth of a minute.
        let share = rooms.script().ttl / 100;
        let config = RegistryConfig {
            refresh_percent: 1,
            sweep: Duration::from_secs(3600),
            ..registry_config()
        };
        let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
        let stage = Stage::among(rooms.clone(), spool, store, config, writer_config());
        let _presenter = stage.reader(1);
        stage.accepted(1, "first").await;
        all_answered(&stage).await;
        // Behind all verdicts, also the one that is asked for again because the checker has begun.
        stage.accepted(1, "second").await;
        let verdict = Instant::now();
        until("its share of the time", || verdict.elapsed() > share).await;
        if answers {
            rooms.script().unknown.insert(1);
        } else {
            rooms.script().away = true;
        }
        let (began, before) = (Instant::now(), rooms.script().asked_of[&1]);
        for n in 0..50 {
            stage.accepted(1, &n.to_string()).await;
            until("the answer", || stage.checker.gate().depth() == 0).await;
        }
        let asked = rooms.script().asked_of[&1] - before;
        // Of what is left it is a little less each time.
        let at_most = 2 + usize::try_from(2 * began.elapsed().as_millis() / share.as_millis()).unwrap();
        assert!((1..=at_most).contains(&asked), "{asked} of {at_most}");
    }
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

#[actix::test]
async fn that_a_full_checker_leaves_out_what_nobody_waits_for_is_no_refusal() {
    // A verdict holds for a minute, and is due at once.
    let stage = unswept(&ScriptedRooms::default(), 0);
    let _presenter = stage.reader(1);
    stage.accepted(1, "first").await;
    all_answered(&stage).await;
    let gate = stage.checker.gate();
    let _all = gate.acquire_if_free(gate.capacity()).unwrap();
    for n in 0..100 {
        assert_eq!(stage.accepted(1, &n.to_string()).await.delivery, Delivery::Delivered);
    }
    let _waits_to_begin = stage.reader(2);
    stage.has_session(2, true).await;
    assert_eq!(gate.refused(), 0);
    assert_eq!(stage.refused(3, "x").await, Refusal::Overloaded("checker"));
    assert_eq!(gate.refused(), 1);
}

#[actix::test]
async fn a_full_checker_counts_a_refusal_for_each_that_it_refuses() {
    let rooms = ScriptedRooms::default();
    let ttl = Duration::from_millis(50);
    rooms.script().ttl = ttl;
    let stage = unswept(&rooms, 100);
    // They wait for the room's number, and meanwhile its verdict ends.
    stage.spool.script().asks_store = true;
    let writer = stage.hold_writer();
    let sent: Vec<_> = (0..3).map(|_| stage.submit(1, "x")).collect();
    stage
        .keeps(1, "all that wait", |view| {
            view.is_some_and(|view| view.waiting == sent.len())
        })
        .await;
    all_answered(&stage).await;
    let known = Instant::now();
    until("the verdict to be over", || known.elapsed() > ttl).await;
    let gate = stage.checker.gate();
    let _all = gate.acquire_if_free(gate.capacity()).unwrap();
    drop(writer);
    for outcome in join_all(sent).await {
        assert_eq!(outcome.unwrap(), Outcome::Refused(Refusal::Overloaded("checker")));
    }
    assert_eq!(gate.refused(), 3);
}

const ROOMS: RangeInclusive<i64> = 1..=20;

/// A room server that is asked one question at a time, and has so long for it.
fn asked_one_by_one(timeout: Duration) -> ScriptedRooms {
    let rooms = ScriptedRooms::default();
    let mut script = rooms.script();
    script.config = CheckerConfig {
        timeout,
        max_lookups: 1,
        ..script.config.clone()
    };
    drop(script);
    rooms
}

/// Actors over it. Nobody asks but for a message.
fn unswept(rooms: &ScriptedRooms, refresh_percent: u32) -> Stage {
    let config = RegistryConfig {
        refresh_percent,
        sweep: Duration::from_secs(3600),
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    Stage::among(rooms.clone(), spool, store, config, writer_config())
}

/// The checker has answered all that it was asked, also what it has asked again because it has begun.
async fn all_answered(stage: &Stage) {
    until("all answers", || stage.checker.gate().depth() == 0).await;
}

/// A session in each of the rooms, whose verdicts are known.
async fn known_rooms(stage: &Stage) -> Vec<Arc<Reader>> {
    let readers = ROOMS.map(|presenter| stage.reader(presenter)).collect();
    for presenter in ROOMS {
        stage.accepted(presenter, "first").await;
    }
    all_answered(stage).await;
    readers
}

/// A message to each of the rooms, and what becomes of it. The checker has the questions about all of them before it hears of any.
#[expect(
    clippy::await_holding_lock,
    reason = "the lock is the brake of the scripted room server, and nothing here waits for it"
)]
async fn to_all_at_once(stage: &Stage) -> Vec<Outcome> {
    let script = stage.rooms.script();
    let sent: Vec<_> = ROOMS.map(|presenter| stage.submit(presenter, "x")).collect();
    until("all to be asked about", || stage.checker.gate().depth() == sent.len()).await;
    drop(script);
    let outcomes = join_all(sent).await;
    outcomes.into_iter().map(|outcome| outcome.unwrap()).collect()
}

/// How many questions found no place in time.
fn found_no_place(stage: &Stage) -> usize {
    usize::try_from(stage.metrics.room_checks.of("no_place").get()).unwrap()
}

#[actix::test]
async fn what_a_sender_waits_for_is_asked_before_what_only_sessions_want() {
    // A room of which nobody has asked yet, and one that is to be asked about for its session.
    for sends_to in [99, 30] {
        let rooms = asked_one_by_one(Duration::from_secs(3600));
        let stage = unswept(&rooms, 80);
        assert_eq!(stage.refused(98, "first").await, Refusal::PresenterDisconnected);
        all_answered(&stage).await;
        rooms.script().asked_in_turn.clear();
        rooms.script().held.send_replace(true);
        let waits = stage.metrics.queues.waiting("lookups", 1).1;
        let mut readers: Vec<_> = (1..=50).map(|presenter| stage.reader(presenter)).collect();
        let sent = stage.submit(sends_to, "x");
        // Behind it, so that the checker has all of them.
        readers.push(stage.reader(51));
        let all = 50 + u64::from(sends_to == 99);
        until("all that wait for a place", || waits.get() == all).await;
        rooms.script().held.send_replace(false);
        let outcome = sent.await.unwrap();
        assert_eq!(matches!(outcome, Outcome::Accepted(_)), sends_to == 30, "{outcome:?}");
        assert_eq!(rooms.script().asked_in_turn[..2], [1, sends_to]);
        all_answered(&stage).await;
        assert_eq!(rooms.script().asked_in_turn.len(), usize::try_from(all).unwrap() + 1);
    }
}

#[actix::test]
async fn the_refresh_of_a_room_that_is_sent_to_is_asked_before_what_only_sessions_want() {
    let rooms = asked_one_by_one(Duration::from_secs(3600));
    // A verdict holds for a minute, and is due at once.
    let stage = unswept(&rooms, 0);
    let _presenter = stage.reader(1);
    stage.accepted(1, "first").await;
    all_answered(&stage).await;
    rooms.script().asked_in_turn.clear();
    rooms.script().held.send_replace(true);
    let waits = stage.metrics.queues.waiting("lookups", 1).1;
    let before = waits.get();
    let _others: Vec<_> = (101..=150).map(|presenter| stage.reader(presenter)).collect();
    stage.accepted(1, "second").await;
    // Behind it, so that the checker has all of them.
    let _last = stage.reader(151);
    until("all that wait for a place", || waits.get() == before + 51).await;
    rooms.script().held.send_replace(false);
    all_answered(&stage).await;
    assert_eq!(rooms.script().asked_in_turn[..2], [101, 1]);
}

#[actix::test]
async fn a_session_that_cannot_begin_without_a_verdict_is_asked_about_before_those_that_can() {
    let rooms = asked_one_by_one(Duration::from_secs(3600));
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let config = RegistryConfig {
        sweep: Duration::from_secs(3600),
        ..registry_config()
    };
    let among = |config| Stage::among(rooms.clone(), spool.clone(), store.clone(), config, writer_config());
    let stage = among(config.clone());
    let before = stage.reader(1);
    stage.accepted(1, "before").await;
    before.leave();
    stage.stop_well().await;
    // Too long ago: whether its broadcast goes on is to be heard.
    let stage = among(RegistryConfig {
        broadcast_resume: Duration::ZERO,
        ..config
    });
    assert_eq!(stage.refused(98, "first").await, Refusal::PresenterDisconnected);
    all_answered(&stage).await;
    rooms.script().asked_in_turn.clear();
    rooms.script().held.send_replace(true);
    let waits = stage.metrics.queues.waiting("lookups", 1).1;
    let so_far = waits.get();
    let mut readers: Vec<_> = (101..=150).map(|presenter| stage.reader(presenter)).collect();
    readers.push(stage.reader(1));
    stage.has_session(1, true).await;
    // The spool has told its numbers, and the registry has heard them.
    drop(stage.writer.hold_spool());
    stage.has_session(1, true).await;
    // Behind it, so that the checker has all of them.
    readers.push(stage.reader(151));
    until("all that wait for a place", || waits.get() == so_far + 51).await;
    rooms.script().held.send_replace(false);
    all_answered(&stage).await;
    assert_eq!(rooms.script().asked_in_turn[..2], [101, 1]);
}

#[actix::test]
async fn no_question_waits_until_the_room_server_has_failed_to_answer_all_that_were_before_it() {
    let rooms = asked_one_by_one(Duration::from_millis(200));
    rooms.script().hangs.extend(ROOMS.step_by(2));
    let stage = unswept(&rooms, 80);
    assert_eq!(stage.refused(99, "first").await, Refusal::PresenterDisconnected);
    all_answered(&stage).await;
    rooms.script().asked_of.clear();
    for outcome in to_all_at_once(&stage).await {
        let refused = [Refusal::PresenterDisconnected, Refusal::RoomServerUnavailable];
        assert!(
            matches!(outcome, Outcome::Refused(refusal) if refused.contains(&refusal)),
            "{outcome:?}"
        );
    }
    // Each that hangs has its time, and all were asked before the second one's was over, however slow this machine.
    let asked: Vec<i64> = rooms.script().asked_of.keys().copied().collect();
    let hung = asked.iter().filter(|presenter| **presenter % 2 == 1).count();
    assert!(hung <= 3, "{asked:?}");
    assert_eq!(asked.len() + found_no_place(&stage), ROOMS.count());
}

#[actix::test]
async fn rule_09_the_last_known_verdict_is_gone_on_with_where_a_question_finds_no_place_in_time() {
    let rooms = asked_one_by_one(Duration::from_millis(200));
    let ttl = Duration::from_millis(50);
    {
        let mut script = rooms.script();
        script.ttl = ttl;
        script.config.stale = Some(Duration::from_secs(3600));
    }
    let stage = unswept(&rooms, 100);
    let _readers = known_rooms(&stage).await;
    let known = Instant::now();
    until("the verdicts to be over", || known.elapsed() > ttl).await;
    rooms.script().hangs.extend(ROOMS.step_by(2));
    for outcome in to_all_at_once(&stage).await {
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    }
    assert!(found_no_place(&stage) > 0);
}

#[actix::test]
async fn rule_08_a_verdict_that_holds_is_kept_where_its_refresh_finds_no_place() {
    let rooms = asked_one_by_one(Duration::from_millis(200));
    // It holds for a minute, and is due at once.
    let stage = unswept(&rooms, 0);
    let _readers = known_rooms(&stage).await;
    rooms.script().hangs.extend(ROOMS);
    for outcome in to_all_at_once(&stage).await {
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    }
    all_answered(&stage).await;
    assert!(found_no_place(&stage) > 0);
    for presenter in ROOMS {
        stage.accepted(presenter, "second").await;
    }
}

#[actix::test]
async fn no_room_is_left_out_for_good_where_the_room_server_cannot_be_asked_about_all() {
    // Some of them in its time.
    let rooms = asked_one_by_one(Duration::from_millis(100));
    {
        let mut script = rooms.script();
        script.takes = Duration::from_millis(20);
        // At each sweep all are to be asked about, in the same order.
        script.ttl = Duration::from_millis(50);
    }
    let config = RegistryConfig {
        sweep: Duration::from_millis(150),
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::among(rooms.clone(), spool, store, config, writer_config());
    let presenters = 1..=12_usize;
    let _readers: Vec<_> = presenters.clone().map(|n| stage.reader(n as i64)).collect();
    until("a question about each", || {
        rooms.script().asked_of.len() == presenters.clone().count()
    })
    .await;
}

#[actix::test]
async fn rule_10_a_broadcast_that_nobody_knows_any_more_ends_in_its_time_though_questions_about_it_find_no_place() {
    let patience = Duration::from_millis(40);
    let rooms = asked_one_by_one(patience);
    rooms.script().ttl = Duration::from_millis(10);
    let resume = Duration::from_millis(50);
    let config = RegistryConfig {
        broadcast_resume: resume,
        grace: Duration::ZERO,
        sweep: Duration::from_millis(5),
        ..registry_config()
    };
    let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
    let stage = Stage::among(rooms.clone(), spool.clone(), store, config, writer_config());
    let presenter = stage.reader(1);
    stage.accepted(1, "had").await;
    presenter.has_seen(1).await;
    presenter.leave();
    stage.has_session(1, false).await;
    rooms.script().unknown.insert(1);
    until("a refusal", || stage.metrics.room_checks.of("refused").get() > 0).await;
    let refused = Instant::now();
    let has_ended = || {
        let script = spool.script();
        let mut records = script.broadcasts.values();
        records.any(|(record, _)| record.presenter == room(1) && record.ended_at_ms.is_some())
    };
    // The only place is taken again and again. Who has it next is left to chance, and there are always some for it.
    let others = 2..=200;
    rooms.script().hangs.extend(others.clone());
    let crowd = async {
        let mut waits = VecDeque::new();
        for presenter in others.clone().cycle() {
            waits.push_back(stage.submit(presenter, "x"));
            waits.truncate(others.clone().count());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let answers = || {
        let cached = stage.metrics.room_checks.of("cached").get();
        (rooms.script().asked_of[&1], cached)
    };
    let no_place = eventually("a question that finds no place behind its time", async || {
        let before = answers();
        let in_vain = stage.refused(1, "x").await == Refusal::RoomServerUnavailable && answers() == before;
        has_ended() || (in_vain && refused.elapsed() > resume * 12)
    });
    select(pin!(crowd), pin!(no_place)).await;
    let before = {
        let mut script = rooms.script();
        script.hangs.clear();
        script.unknown.extend(others);
        script.asked_of[&1]
    };
    until("the end of the broadcast", has_ended).await;
    // It refuses once more, and need not for that time again.
    let asked = rooms.script().asked_of[&1] - before;
    assert!(asked <= 3, "{asked}");
}

#[actix::test]
async fn a_room_server_is_left_alone_for_failures_in_a_row_which_any_answer_ends() {
    let rooms = ScriptedRooms::default();
    rooms.script().config.breaker_failures = 3;
    rooms.script().not_live.insert(3);
    let stage = unswept(&rooms, 80);
    assert_eq!(stage.refused(99, "first").await, Refusal::PresenterDisconnected);
    all_answered(&stage).await;
    let is_open = async |presenter: i64| {
        // It answers the third question.
        rooms.script().away = presenter != 3;
        let refused = stage.refused(presenter, "x").await;
        let wanted = match presenter {
            3 => Refusal::NotLive,
            _ => Refusal::RoomServerUnavailable,
        };
        assert_eq!(refused, wanted, "{presenter}");
        stage.metrics.room_breaker_open.get()
    };
    for presenter in 1..=5 {
        assert_eq!(is_open(presenter).await, 0, "{presenter}");
    }
    assert_eq!(is_open(6).await, 1);
}

#[actix::test]
async fn nobody_waits_for_the_question_that_tries_a_room_server_that_is_left_alone() {
    let rooms = asked_one_by_one(Duration::from_secs(3600));
    {
        let mut script = rooms.script();
        script.config.breaker_failures = 1;
        script.config.breaker_open = Duration::ZERO;
        script.away = true;
        script.hangs.insert(2);
    }
    let stage = unswept(&rooms, 80);
    assert_eq!(stage.refused(1, "fails").await, Refusal::RoomServerUnavailable);
    all_answered(&stage).await;
    rooms.script().away = false;
    let _tries = stage.submit(2, "tries");
    until("the question", || rooms.script().asked_of.contains_key(&2)).await;
    let refused = timeout(Duration::from_secs(30), stage.refused(3, "waits")).await;
    assert_eq!(refused.expect("an answer at once"), Refusal::RoomServerUnavailable);
    assert!(!rooms.script().asked_of.contains_key(&3));
}

/// Sets the clock of the messages ahead, in a stage whose second room has its numbers from the store: no event is stamped before the
/// newest one there. Returns that room's session.
async fn an_hour_passes_by_the_clock(stage: &Stage) -> Arc<Reader> {
    stage.stored(1).await;
    {
        let mut script = stage.store.script();
        let mut event = Event::clone(&script.events[&(1, 1)]);
        event.presenter_idx = room(2);
        event.sent_at_ms += 3_600_000;
        script.events.insert((2, 1), Arc::new(event));
    }
    let other = stage.reader(2);
    stage.accepted(2, "another's").await;
    other
}

#[actix::test]
async fn rule_05_a_clock_set_ahead_for_longer_than_an_interruption_may_last_splits_no_broadcast_that_is_live() {
    let (rooms, spool, store) = (quick_rooms(), ScriptedSpool::default(), ScriptedStore::default());
    // Nothing names them.
    rooms.script().started_at_ms.clear();
    // Of the first room the spool knows how far it is; for the second it has the store asked.
    spool.script().rooms.insert(1, Seq(0));
    spool.script().asks_store = true;
    let stage = Stage::among(rooms.clone(), spool.clone(), store, registry_config(), writer_config());
    let presenter = stage.reader(1);
    let before = stage.accepted(1, "first").await.sent_at_ms;
    presenter.leave();
    stage.accepted(1, "held").await;
    let other = an_hour_passes_by_the_clock(&stage).await;
    let after = stage.accepted(1, "held, too").await;
    assert!(after.sent_at_ms >= before + 3_600_000, "{before} {after:?}");
    asked_again_and_again(&rooms, 1).await;
    assert_eq!(stage.accepted(1, "and this").await.delivery, Delivery::Held);
    let records = {
        let script = spool.script();
        let records = script.broadcasts.values();
        records.filter(|(record, _)| record.presenter == room(1)).count()
    };
    assert_eq!(records, 1);
    let next = stage.reader(1);
    next.has_seen(3).await;
    assert_eq!(next.seqs(), [2, 3, 4]);
    drop(other);
}

#[actix::test]
async fn rule_05_a_broadcast_that_is_not_live_just_when_the_clock_is_set_ahead_is_interrupted_and_not_ended() {
    let (rooms, spool, store) = (quick_rooms(), ScriptedSpool::default(), ScriptedStore::default());
    rooms.script().started_at_ms.clear();
    spool.script().rooms.insert(1, Seq(0));
    spool.script().asks_store = true;
    let stage = Stage::among(rooms.clone(), spool.clone(), store, registry_config(), writer_config());
    let _presenter = stage.reader(1);
    let before = stage.accepted(1, "first").await.sent_at_ms;
    // Nobody says that it is live while the clock is set.
    rooms.script().unknown.insert(1);
    stage
        .keeps(1, "the end of the verdict", |view| {
            view.is_some_and(|view| view.live.is_none())
        })
        .await;
    let _other = an_hour_passes_by_the_clock(&stage).await;
    {
        let mut script = rooms.script();
        script.not_live.insert(1);
        script.unknown.remove(&1);
    }
    let records = || {
        let script = spool.script();
        let records = script.broadcasts.values().map(|(record, _)| record.clone());
        records.filter(|record| record.presenter == room(1)).collect::<Vec<_>>()
    };
    until("its interruption", || records()[0].segments[0].to_ms.is_some()).await;
    assert_eq!(records()[0].ended_at_ms, None);
    assert!(records()[0].segments[0].to_ms >= Some(before + 3_600_000));
    is_live(&stage, true).await;
    until("it to go on", || records()[0].segments.len() == 2).await;
    assert_eq!(records().len(), 1);
}
