//! Rooms of which the room server says nothing (a 404): it answers, and gives no verdict.

use std::time::{Duration, Instant};

use chatting_actors::{
    clock::system_ms,
    outcome::Refusal,
    registry::{End, Reading, RegistryConfig},
};

use crate::{
    acts,
    peer::{Peer, Shared, v1},
    resume::{asker, come_as, fine, held_in, is_live, legacy, quick_rooms, send},
    script::{ScriptedRooms, ScriptedSpool, ScriptedStore},
    stage::{Stage, eventually, registry_config, room, until, writer_config},
};

/// Longer than a test.
const NEVER: Duration = Duration::from_secs(3600);

/// What is over in a moment: an interruption, and the time after a session in which messages are held.
fn brief() -> RegistryConfig {
    RegistryConfig {
        broadcast_resume: Duration::from_millis(100),
        grace: Duration::from_millis(50),
        ..registry_config()
    }
}

/// One process after another, over the same spool, store and room server.
#[derive(Clone)]
struct World {
    rooms: ScriptedRooms,
    spool: ScriptedSpool,
    store: ScriptedStore,
    config: RegistryConfig,
}

impl World {
    fn of(config: RegistryConfig) -> Self {
        Self {
            rooms: quick_rooms(),
            spool: ScriptedSpool::default(),
            store: ScriptedStore::default(),
            config,
        }
    }

    fn stage(&self) -> Stage {
        let (rooms, spool, store) = (self.rooms.clone(), self.spool.clone(), self.store.clone());
        Stage::among(rooms, spool, store, self.config.clone(), writer_config())
    }

    /// The room server knows room 1, or it does not.
    fn knows(&self, known: bool) {
        let mut script = self.rooms.script();
        match known {
            true => script.unknown.remove(&1),
            false => script.unknown.insert(1),
        };
    }

    /// Broadcasts of room 1 that go on, and those that have ended.
    fn broadcasts(&self) -> (usize, usize) {
        let script = self.spool.script();
        let of_room = script
            .broadcasts
            .values()
            .filter(|(record, _)| record.presenter == room(1));
        let (open, ended): (Vec<_>, Vec<_>) = of_room.partition(|(record, _)| record.ended_at_ms.is_none());
        (open.len(), ended.len())
    }

    /// The next broadcast of room 1 is not given what was held in the one before, not by a server that finds what this one left, either.
    async fn next_has_only_what_is_new(&mut self, stage: Stage) {
        stage.spool.script().killed = true;
        drop(stage);
        self.spool.script().killed = false;
        self.knows(true);
        self.rooms.script().not_live.clear();
        self.config.broadcast_resume = NEVER;
        let stage = self.stage();
        let next = legacy(&stage);
        stage.has_session(1, true).await;
        let new = stage.accepted(1, "new").await.seq.0;
        next.has(new).await;
        assert_eq!((next.seqs(), self.broadcasts()), (vec![5], (1, 1)));
        fine(&[&next]);
    }

    /// Returns when the broadcast of room 1 has ended and nothing is kept of the room; meanwhile the room server says something of
    /// another one.
    async fn is_given_up(&self, stage: &Stage) {
        let given_up = async {
            while self.broadcasts() != (0, 1) || stage.registry.view(room(1)).await.is_some() {
                stage.registry.look(room(2), asker()).await.unwrap();
            }
        };
        let given_up = tokio::time::timeout(Duration::from_secs(60), given_up).await;
        assert!(
            given_up.is_ok(),
            "{:?} {:?}",
            self.broadcasts(),
            stage.spool.script().places
        );
    }
}

#[actix::test]
async fn rule_10_an_act_behind_the_last_message_keeps_no_broadcast_that_nobody_knows_any_more() {
    // While the session is there, and behind it; a restart forgets what was an act, but not how far a legacy session's room got.
    for (reading, attached, restarts) in [
        (Reading::Legacy, true, false),
        (Reading::Legacy, true, true),
        (Reading::Legacy, false, false),
        (Reading::Legacy, false, true),
        (v1(None), false, false),
    ] {
        let world = World::of(brief());
        let mut stage = world.stage();
        let peer = come_as(&stage, reading, None);
        send(&stage, 1).await;
        peer.has(1).await;
        if !attached {
            peer.leave();
            stage.has_session(1, false).await;
            // Held, until it is deleted; where it came too late for that there is nothing to delete.
            let _ = stage.submit(1, "held").await.unwrap();
        }
        acts::done(&stage, 1).await;
        peer.leave();
        if restarts {
            stage.stop_well().await;
            world.knows(false);
            stage = world.stage();
        } else {
            world.knows(false);
        }
        world.is_given_up(&stage).await;
        fine(&[&peer]);
    }
}

#[actix::test]
async fn rule_16_an_act_behind_a_v1_session_is_for_the_next_one_whatever_that_says() {
    for after in [None, Some(1)] {
        let world = World::of(registry_config());
        let stage = world.stage();
        let first = come_as(&stage, v1(None), None);
        send(&stage, 1).await;
        first.has(1).await;
        first.leave();
        stage.has_session(1, false).await;
        acts::done(&stage, 1).await;
        let next = come_as(&stage, v1(after), None);
        next.has(2).await;
        assert_eq!(next.seqs(), [2]);
        fine(&[&first, &next]);
    }
}

#[actix::test]
async fn rule_13_a_broadcast_that_was_not_live_and_then_not_known_ends_in_its_time_whatever_is_held() {
    for named in [false, true] {
        let mut world = World::of(brief());
        if !named {
            world.rooms.script().started_at_ms.clear();
        }
        let (rooms, spool, store) = (world.rooms.clone(), world.spool.clone(), world.store.clone());
        let config = RegistryConfig {
            grace: NEVER,
            ..world.config.clone()
        };
        let stage = held_in(rooms, spool, store, config).await;
        is_live(&stage, false).await;
        world.knows(false);
        world.is_given_up(&stage).await;
        world.next_has_only_what_is_new(stage).await;
    }
}

#[actix::test]
async fn rule_13_a_broadcast_that_was_live_and_then_not_known_ends_long_after_that_whatever_is_held() {
    let unknown = Duration::from_secs(3);
    for restarts in [false, true] {
        let mut world = World::of(RegistryConfig {
            broadcast_unknown: unknown,
            ..brief()
        });
        let (rooms, spool, store) = (world.rooms.clone(), world.spool.clone(), world.store.clone());
        let config = RegistryConfig {
            // Time enough to send what is to be held.
            grace: if restarts { NEVER } else { unknown },
            ..world.config.clone()
        };
        let mut stage = held_in(rooms, spool, store, config).await;
        world.knows(false);
        if restarts {
            stage.stop_well().await;
            stage = world.stage();
        }
        world.is_given_up(&stage).await;
        // It ended when it was last seen live, and not as soon as one for which nothing is held.
        let ended_at_ms = {
            let script = world.spool.script();
            let mut records = script.broadcasts.values().map(|(record, _)| record);
            records.find_map(|record| record.ended_at_ms).unwrap()
        };
        let since = Duration::from_millis((system_ms() - ended_at_ms).try_into().unwrap());
        assert!(since >= unknown, "{since:?}");
        world.next_has_only_what_is_new(stage).await;
    }
}

#[actix::test]
async fn rule_10_the_last_room_of_a_day_that_nobody_knows_any_more_is_forgotten_too_though_nothing_is_said_of_another()
{
    let world = World::of(brief());
    let stage = world.stage();
    let peer = legacy(&stage);
    send(&stage, 1).await;
    peer.has(1).await;
    let unknown = Instant::now();
    world.knows(false);
    peer.leave();
    while world.broadcasts() != (0, 1) || stage.registry.view(room(1)).await.is_some() {
        assert!(unknown.elapsed() < Duration::from_secs(60), "{:?}", world.broadcasts());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Long after it would have been among others.
    assert!(
        unknown.elapsed() >= 10 * world.config.broadcast_resume,
        "{:?}",
        unknown.elapsed()
    );
}

#[actix::test]
async fn a_room_that_nobody_knows_and_nobody_is_in_is_asked_about_ever_more_seldom_and_at_once_when_somebody_comes() {
    let world = World::of(RegistryConfig {
        sweep: Duration::from_millis(5),
        broadcast_resume: NEVER,
        grace: NEVER,
        ..brief()
    });
    let (rooms, spool, store) = (world.rooms.clone(), world.spool.clone(), world.store.clone());
    let stage = held_in(rooms, spool, store, world.config.clone()).await;
    let asked = || world.rooms.script().asked_of[&1];
    // Nothing that the session or a sender caused is under way any more.
    stage.has_session(1, false).await;
    let before = asked();
    until("questions of the sweep's own", || asked() > before + 1).await;
    world.knows(false);
    let (before, began) = (asked(), Instant::now());
    until("time to pass", || began.elapsed() > Duration::from_secs(2)).await;
    // Two more questions each time that a fifth more of the time has passed, in place of 400.
    let seldom = asked() - before;
    assert!(seldom < 100, "{seldom}");
    // Nobody was refused anything.
    assert_eq!(stage.metrics.room_refusals.get(), 0);
    // One that comes within a moment of an answer has that one.
    eventually("a refusal that counts", async || {
        assert_eq!(stage.refused(1, "somebody's").await, Refusal::RoomServerUnavailable);
        stage.metrics.room_refusals.get() > 0
    })
    .await;
    let before = asked();
    let _next = legacy(&stage);
    until("a question", || asked() > before).await;
    until("it to count", || stage.metrics.room_refusals.get() > 1).await;
}

#[actix::test]
async fn a_refusal_of_a_verdict_that_is_refreshed_for_held_messages_alone_counts_only_when_somebody_sends() {
    let world = World::of(RegistryConfig {
        refresh_percent: 0,
        ..registry_config()
    });
    world.rooms.script().ttl = NEVER;
    let (rooms, spool, store) = (world.rooms.clone(), world.spool.clone(), world.store.clone());
    let stage = held_in(rooms, spool, store, world.config.clone()).await;
    let asked = || world.rooms.script().asked_of[&1];
    // Nothing that a sender or a session caused is under way any more.
    let before = asked();
    until("questions of the sweep's own", || asked() > before + 1).await;
    world.knows(false);
    let before = asked();
    until("refusals", || asked() > before + 2).await;
    assert_eq!(stage.metrics.room_refusals.get(), 0);
    eventually("a refusal that counts", async || {
        stage.accepted(1, "somebody's").await;
        stage.metrics.room_refusals.get() > 0
    })
    .await;
}

#[actix::test]
async fn rule_10_a_session_whose_room_nobody_knows_makes_place_behind_those_whose_room_is_not_live() {
    let world = World::of(registry_config());
    let stage = world.stage();
    let session = |presenter| {
        let registry = &stage.registry;
        Peer::come(registry, presenter, v1(None), 64, Shared::default(), None)
    };
    world.rooms.script().unknown.extend([1, 2]);
    let unknown = [session(1), session(2)];
    until("refusals", || stage.metrics.room_refusals.get() > 1).await;
    // As long as it says of nobody whether they are live, none of them is to blame.
    stage.registry.want_seat();
    let asked = |presenter| world.rooms.script().asked_of.get(&presenter).copied().unwrap_or(0);
    let before = asked(1);
    until("some sweeps", || asked(1) > before + 3).await;
    assert_eq!(unknown.each_ref().map(|peer| peer.told()), [None, None]);

    world.rooms.script().not_live.insert(3);
    let (live, not_live) = (session(4), session(3));
    until("verdicts", || asked(3) > 1 && asked(4) > 1).await;
    stage.registry.want_seat();
    assert_eq!(not_live.closed().await, End::NotLive);
    assert_eq!(unknown.each_ref().map(|peer| peer.told()), [None, None]);
    // Refused again, behind the verdicts on others.
    let before = [asked(1), asked(2)];
    until("refusals", || asked(1) > before[0] + 1 && asked(2) > before[1] + 1).await;
    stage.registry.want_seat();
    stage.registry.want_seat();
    for peer in &unknown {
        // Nobody said that its broadcast is over: it is to come again.
        assert_eq!(peer.closed().await, End::Crowded);
    }
    assert_eq!(live.told(), None);
    fine(&[&live, &not_live, &unknown[0], &unknown[1]]);
}
