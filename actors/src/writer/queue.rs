//! The queue in front of the spool's thread.

use std::{
    collections::HashMap,
    mem::discriminant,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use uuid::Uuid;

use super::SpoolCommand;
use crate::{broadcast::Broadcast, seams::Place, types::PresenterIdx};

/// Places a transaction, or broadcasts, so that commits wait little for one.
pub(super) const KEPT_AT_ONCE: usize = 64;

/// The spool thread's queue. Appends are bounded by the writer's permits, questions by rooms and by the one reader. Of places
/// only the newest of each room waits, of broadcasts the newest version of each: they are told by the clock, too, which goes on while
/// the disk does not. What is told of one room after another, as when many sessions come, shares transactions.
#[derive(Default)]
pub(crate) struct SpoolQueue {
    queue: Mutex<Commands>,
    filled: Condvar,
}

#[derive(Default)]
struct Commands {
    queued: Vec<SpoolCommand>,
    /// Events in them.
    events: usize,
    /// Something else than events is among them.
    other: bool,
    /// Where in them each room's place is that a newer one may take, by command and within it.
    places: HashMap<PresenterIdx, (usize, usize)>,
    /// The same of broadcasts.
    broadcasts: HashMap<Uuid, (usize, usize)>,
    /// Which of them the next mark may join: the last one of marks, as long as none is behind it that a mark must not
    /// overtake.
    marks: Option<usize>,
    /// The thread waits, and is to be woken when so many events are queued, or anything else is. While it is busy, which is
    /// most of the time under load, nobody needs to wake it.
    awaited: Option<usize>,
}

impl Commands {
    /// Whether there is what the thread waits for.
    fn enough(&self, events: usize) -> bool {
        self.events >= events || self.other
    }

    /// Puts what a newer word replaces in the place of the older; returns what is left to be queued.
    fn merge(&mut self, command: SpoolCommand) -> Option<SpoolCommand> {
        match command {
            SpoolCommand::KeepPlaces { mut places } => {
                places.retain(|place| match self.waiting_place(place.presenter) {
                    Some(older) => {
                        *older = *place;
                        false
                    }
                    None => true,
                });
                (!places.is_empty()).then_some(SpoolCommand::KeepPlaces { places })
            }
            SpoolCommand::KeepBroadcasts { mut broadcasts } => {
                broadcasts.retain(|broadcast| match self.waiting_broadcast(broadcast.id) {
                    // That it has ended stays behind the place that was kept before: the other way round the place would be the next
                    // one's. It ends once.
                    Some(_) if broadcast.ended_at_ms.is_some() => true,
                    Some(older) => {
                        if older.version < broadcast.version {
                            older.clone_from(broadcast);
                        }
                        false
                    }
                    None => true,
                });
                (!broadcasts.is_empty()).then_some(SpoolCommand::KeepBroadcasts { broadcasts })
            }
            SpoolCommand::MarkPlaces { places } => {
                // What is kept behind a mark stays behind it.
                for place in &places {
                    self.places.remove(&place.presenter);
                }
                Some(SpoolCommand::MarkPlaces { places })
            }
            other => Some(other),
        }
    }

    /// Queues a command. What it keeps goes with what the last one keeps, if that is of its kind and has room: each is a
    /// transaction, and its sync is in front of all that is appended behind it.
    fn queue(&mut self, command: SpoolCommand) {
        let last = match command {
            SpoolCommand::MarkPlaces { .. } => self.marks,
            _ => self.queued.len().checked_sub(1),
        };
        let joins = |last: &SpoolCommand| {
            let both = kept(last) + kept(&command);
            discriminant(last) == discriminant(&command) && (1..=KEPT_AT_ONCE).contains(&both)
        };
        let at = last.filter(|at| self.queued.get(*at).is_some_and(joins));
        let at = at.unwrap_or(self.queued.len());
        let first = self.queued.get(at).map_or(0, kept);
        self.marks = match command {
            SpoolCommand::MarkPlaces { .. } => Some(at),
            // A mark is nothing to these, and they come with it when many sessions begin.
            SpoolCommand::Append { .. } | SpoolCommand::LastSeq { .. } => self.marks,
            _ => None,
        };
        match &command {
            SpoolCommand::KeepPlaces { places } => {
                let new = (first..).zip(places);
                self.places.extend(new.map(|(n, place)| (place.presenter, (at, n))));
            }
            SpoolCommand::KeepBroadcasts { broadcasts } => {
                let new = (first..).zip(broadcasts);
                self.broadcasts
                    .extend(new.map(|(n, broadcast)| (broadcast.id, (at, n))));
            }
            _ => {}
        }
        let left = match (self.queued.get_mut(at), command) {
            (Some(SpoolCommand::KeepPlaces { places: last }), SpoolCommand::KeepPlaces { places })
            | (Some(SpoolCommand::MarkPlaces { places: last }), SpoolCommand::MarkPlaces { places }) => {
                last.extend(places);
                None
            }
            (Some(SpoolCommand::KeepBroadcasts { broadcasts: last }), SpoolCommand::KeepBroadcasts { broadcasts }) => {
                last.extend(broadcasts);
                None
            }
            (_, command) => Some(command),
        };
        self.queued.extend(left);
    }

    fn waiting_place(&mut self, presenter: PresenterIdx) -> Option<&mut Place> {
        let (command, n) = *self.places.get(&presenter)?;
        match self.queued.get_mut(command)? {
            SpoolCommand::KeepPlaces { places } => places.get_mut(n),
            _ => None,
        }
    }

    fn waiting_broadcast(&mut self, id: Uuid) -> Option<&mut Broadcast> {
        let (command, n) = *self.broadcasts.get(&id)?;
        match self.queued.get_mut(command)? {
            SpoolCommand::KeepBroadcasts { broadcasts } => broadcasts.get_mut(n),
            _ => None,
        }
    }

    fn take(&mut self) -> Vec<SpoolCommand> {
        self.events = 0;
        self.other = false;
        self.places.clear();
        self.broadcasts.clear();
        self.marks = None;
        std::mem::take(&mut self.queued)
    }
}

/// How many places or broadcasts a command has the spool keep.
fn kept(command: &SpoolCommand) -> usize {
    match command {
        SpoolCommand::KeepPlaces { places } | SpoolCommand::MarkPlaces { places } => places.len(),
        SpoolCommand::KeepBroadcasts { broadcasts } => broadcasts.len(),
        _ => 0,
    }
}

impl SpoolQueue {
    fn commands(&self) -> MutexGuard<'_, Commands> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, command: SpoolCommand) {
        let wakes = {
            let mut commands = self.commands();
            let Some(command) = commands.merge(command) else {
                return;
            };
            match &command {
                SpoolCommand::Append { appended, .. } => commands.events += appended.events.len(),
                _ => commands.other = true,
            }
            commands.queue(command);
            let wakes = commands.awaited.is_some_and(|events| commands.enough(events));
            if wakes {
                commands.awaited = None;
            }
            wakes
        };
        if wakes {
            self.filled.notify_one();
        }
    }

    /// Blocks for so long, unless it is to stop.
    pub fn pause(&self, time: Duration) {
        let goes_on = |commands: &mut Commands| {
            commands.awaited = Some(0);
            !commands.queued.iter().any(|one| matches!(one, SpoolCommand::Stop))
        };
        let waited = self.filled.wait_timeout_while(self.commands(), time, goes_on);
        waited.unwrap_or_else(PoisonError::into_inner).0.awaited = None;
    }

    /// Blocks until there is something to do, at most for `limit`, and takes all of it.
    pub fn take_all(&self, limit: Option<Duration>) -> Vec<SpoolCommand> {
        let mut commands = self.commands();
        while commands.queued.is_empty() {
            commands.awaited = Some(0);
            match limit {
                None => commands = self.filled.wait(commands).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let waited = self.filled.wait_timeout(commands, limit);
                    let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    commands = guard;
                    if timeout.timed_out() {
                        break;
                    }
                }
            }
        }
        commands.awaited = None;
        commands.take()
    }

    /// Blocks for so long, or until so many events are queued or anything else is, and takes all of it.
    pub fn gather(&self, events: usize, time: Duration) -> Vec<SpoolCommand> {
        let lacks = |commands: &mut Commands| {
            commands.awaited = Some(events);
            !commands.enough(events)
        };
        let waited = self.filled.wait_timeout_while(self.commands(), time, lacks);
        let mut commands = waited.unwrap_or_else(PoisonError::into_inner).0;
        commands.awaited = None;
        commands.take()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        broadcast::{Segment, Span},
        types::{Epoch, Seq},
        writer::Appended,
    };

    fn place(presenter: i64, position: u64) -> Place {
        Place {
            presenter: PresenterIdx::new(presenter).unwrap(),
            over: Seq(0),
            position: Seq(position),
            legacy_from: None,
            room_idx: None,
            session_at_ms: None,
            saved_at_ms: 0,
        }
    }

    fn broadcast(id: u128, version: u64) -> Broadcast {
        Broadcast {
            id: Uuid::from_u128(id),
            presenter: PresenterIdx::new(1).unwrap(),
            room_idx: None,
            reported_start_ms: None,
            ended_at_ms: None,
            segments: vec![Segment {
                from_ms: 0,
                to_ms: None,
            }],
            spans: vec![Span {
                epoch: Epoch("e".into()),
                after: Seq(0),
                through: None,
            }],
            seen_at_ms: 0,
            version,
        }
    }

    fn mark(queue: &SpoolQueue, presenter: i64, position: u64) {
        let places = vec![place(presenter, position)];
        queue.push(SpoolCommand::MarkPlaces { places });
    }

    /// What is queued, in its order: rooms with how far they got, marks likewise, broadcasts with their versions.
    fn queued(queue: &SpoolQueue) -> Vec<(&'static str, u128, u64)> {
        let mut found = Vec::new();
        let of = |kind, place: &Place| (kind, place.presenter.get().cast_unsigned().into(), place.position.0);
        for command in queue.take_all(None) {
            match command {
                SpoolCommand::KeepPlaces { places } => found.extend(places.iter().map(|place| of("place", place))),
                SpoolCommand::MarkPlaces { places } => found.extend(places.iter().map(|place| of("mark", place))),
                SpoolCommand::KeepBroadcasts { broadcasts } => {
                    let versions = broadcasts
                        .iter()
                        .map(|one| ("broadcast", one.id.as_u128(), one.version));
                    found.extend(versions);
                }
                _ => found.push(("other", 0, 0)),
            }
        }
        found
    }

    #[test]
    fn a_disk_that_hangs_makes_no_more_wait_than_one_place_a_room_and_one_version_a_broadcast() {
        let queue = SpoolQueue::default();
        for n in 1..=1000 {
            let places = vec![place(1, n), place(2, n)];
            queue.push(SpoolCommand::KeepPlaces { places });
            let broadcasts = vec![broadcast(1, n)];
            queue.push(SpoolCommand::KeepBroadcasts { broadcasts });
            // Of a registry before this one.
            let broadcasts = vec![broadcast(1, n - 1), broadcast(2, n)];
            queue.push(SpoolCommand::KeepBroadcasts { broadcasts });
        }
        let newest = [
            ("place", 1, 1000),
            ("place", 2, 1000),
            ("broadcast", 1, 1000),
            ("broadcast", 2, 1000),
        ];
        assert_eq!(queued(&queue), newest);
        // What was taken is not waited with any more.
        let places = vec![place(1, 1001)];
        queue.push(SpoolCommand::KeepPlaces { places });
        assert_eq!(queued(&queue), [("place", 1, 1001)]);
    }

    #[test]
    fn that_a_broadcast_has_ended_is_kept_behind_the_place_before_it() {
        let queue = SpoolQueue::default();
        let ended = Broadcast {
            ended_at_ms: Some(1),
            ..broadcast(1, 3)
        };
        for (position, broadcast) in [(1, broadcast(1, 1)), (2, broadcast(1, 2)), (3, ended)] {
            let broadcasts = vec![broadcast];
            queue.push(SpoolCommand::KeepPlaces {
                places: vec![place(1, position)],
            });
            queue.push(SpoolCommand::KeepBroadcasts { broadcasts });
        }
        let order = [("place", 1, 3), ("broadcast", 1, 2), ("broadcast", 1, 3)];
        assert_eq!(queued(&queue), order);
    }

    #[test]
    fn a_place_that_is_kept_behind_its_mark_stays_behind_it() {
        let queue = SpoolQueue::default();
        queue.push(SpoolCommand::KeepPlaces {
            places: vec![place(1, 1), place(2, 1)],
        });
        mark(&queue, 1, 2);
        for n in 3..=4 {
            queue.push(SpoolCommand::KeepPlaces {
                places: vec![place(1, n), place(2, n)],
            });
        }
        let order = [("place", 1, 1), ("place", 2, 4), ("mark", 1, 2), ("place", 1, 4)];
        assert_eq!(queued(&queue), order);
    }

    #[test]
    fn what_is_kept_of_one_room_after_another_shares_transactions_that_are_no_longer_than_others() {
        let queue = SpoolQueue::default();
        let most = KEPT_AT_ONCE as i64;
        for n in 1..=most + 1 {
            mark(&queue, n, 1);
        }
        for n in 1..=most + 1 {
            let places = vec![place(n, 2)];
            queue.push(SpoolCommand::KeepPlaces { places });
        }
        for n in 1..=KEPT_AT_ONCE as u128 + 1 {
            let broadcasts = vec![broadcast(n, 1)];
            queue.push(SpoolCommand::KeepBroadcasts { broadcasts });
        }
        // What is newer finds the older one wherever that went.
        for n in [most, most + 1] {
            let places = vec![place(n, 3)];
            queue.push(SpoolCommand::KeepPlaces { places });
            let broadcasts = vec![broadcast(n as u128, 2)];
            queue.push(SpoolCommand::KeepBroadcasts { broadcasts });
        }
        let sizes: Vec<_> = queue.commands().queued.iter().map(kept).collect();
        assert_eq!(sizes, [KEPT_AT_ONCE, 1].repeat(3));
        let newer: Vec<_> = queued(&queue).into_iter().filter(|(_, _, newer)| *newer > 1).collect();
        let newer = |kind| {
            newer
                .iter()
                .filter(move |(of, ..)| *of == kind)
                .map(|(.., newer)| *newer)
        };
        assert_eq!(newer("place").skip(KEPT_AT_ONCE - 1).collect::<Vec<_>>(), [3, 3]);
        assert_eq!(newer("broadcast").collect::<Vec<_>>(), [2, 2]);
    }

    #[test]
    fn a_mark_joins_those_before_it_over_events_and_last_seqs_and_over_nothing_else() {
        let queue = SpoolQueue::default();
        for n in 1..=3 {
            mark(&queue, n, 1);
            let presenter = PresenterIdx::new(n).unwrap();
            queue.push(SpoolCommand::LastSeq { presenter });
            queue.push(SpoolCommand::Append {
                term: 0,
                appended: Appended::default(),
            });
        }
        let marks = [("mark", 1, 1), ("mark", 2, 1), ("mark", 3, 1)];
        assert_eq!(queued(&queue), [marks.as_slice(), &[("other", 0, 0); 6]].concat());
        mark(&queue, 1, 2);
        queue.push(SpoolCommand::KeepPlaces {
            places: vec![place(2, 2)],
        });
        mark(&queue, 2, 3);
        queue.push(SpoolCommand::OpenBroadcasts);
        mark(&queue, 3, 2);
        let order = [
            ("mark", 1, 2),
            ("place", 2, 2),
            ("mark", 2, 3),
            ("other", 0, 0),
            ("mark", 3, 2),
        ];
        assert_eq!(queued(&queue), order);
    }

    #[test]
    fn a_question_is_not_kept_waiting_by_events_that_came_behind_it() {
        let queue = SpoolQueue::default();
        queue.push(SpoolCommand::Stop);
        queue.push(SpoolCommand::Append {
            term: 0,
            appended: Appended::default(),
        });
        let began = Instant::now();
        assert_eq!(queue.gather(10, Duration::from_secs(10)).len(), 2);
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
