//! Rooms of which the room server says nothing (a 404): it answers, and gives no verdict.

use std::time::Duration;

use chatting_actors::registry::{Reading, RegistryConfig};

use crate::{
    acts,
    peer::v1,
    resume::{asker, come_as, fine, quick_rooms, send},
    script::{ScriptedRooms, ScriptedSpool, ScriptedStore},
    stage::{Stage, registry_config, room, writer_config},
};

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
            while stage.registry.view(room(1)).await.unwrap().session {}
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
        while stage.registry.view(room(1)).await.unwrap().session {}
        acts::done(&stage, 1).await;
        let next = come_as(&stage, v1(after), None);
        next.has(2).await;
        assert_eq!(next.seqs(), [2]);
        fine(&[&first, &next]);
    }
}
