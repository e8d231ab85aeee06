//! The world outside the actors, in memory: a spool, a store and a room server that follow a script.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, btree_map::Entry},
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chatting_actors::{
    broadcast::Broadcast,
    checker::CheckerConfig,
    idempotency::KeyRow,
    outcome::{Accepted, Delivery},
    seams::{
        LastSeq, Liveness, LogPage, LogRange, LogReader, LogStore, NotPut, Place, Poison, Pos, RoomApi, RoomApiError,
        Spool, SpoolError, SpoolFault, StoreBatch, StoreError,
    },
    types::{Event, PresenterIdx, Seq},
};
use futures_util::future::{BoxFuture, FutureExt, LocalBoxFuture, pending, ready};
use proptest::prelude::{Just, Strategy, prop_oneof};
use tokio::sync::watch;
use uuid::Uuid;

/// What the spool does with its next commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    Works,
    /// No room: nothing is written.
    Full,
    /// The file cannot be opened, so it is not begun.
    NotBegun,
    /// An error, and nothing was written.
    FailsWithout,
    /// An error, and everything was written.
    FailsWith,
    /// An error, nothing was written, and the file cannot be opened again.
    FailsUnknown,
    /// An error, everything was written, and the file cannot be opened again.
    FailsUnknownWith,
}

impl Commit {
    /// Any of them, for property tests.
    pub fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            3 => Just(Self::Works),
            1 => Just(Self::Full),
            1 => Just(Self::NotBegun),
            1 => Just(Self::FailsWithout),
            1 => Just(Self::FailsWith),
            1 => Just(Self::FailsUnknown),
            2 => Just(Self::FailsUnknownWith),
        ]
    }
}

/// What the store does with its next call, whichever that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Works,
    /// Works, after so many milliseconds.
    Slow(u64),
    /// Works at once, and the answer is kept back until [`ScriptedStore::let_go`].
    Held,
    /// An error, after so many milliseconds, and nothing was done.
    FailsLate(u64),
    /// An error, and nothing was done.
    FailsBefore,
    /// An error, and everything was done.
    FailsAfter,
    /// An error, and of a batch those documents were written whose bit is set: a batch is not ordered.
    FailsMidway(u8),
}

#[derive(Default)]
pub struct SpoolScript {
    pub rows: BTreeMap<Pos, Arc<Event>>,
    pub rooms: BTreeMap<i64, Seq>,
    pub commits: VecDeque<Commit>,
    pub sizes: Vec<usize>,
    pub parked: Vec<(Arc<Event>, String)>,
    pub asks_store: bool,
    /// So many of the next calls that are not commits fail and do nothing.
    pub failing: usize,
    /// All of them do behind the next commit of which an error is told.
    pub fails_behind: bool,
    /// So many of them panic.
    pub panicking: usize,
    /// How often the file was let go of.
    pub reopened: usize,
    /// There is no room, for as long as this is set.
    pub full: bool,
    /// What a commit says then, and whatever else is to be kept.
    pub full_why: &'static str,
    /// Another process writes to the file, for as long as this is set: nothing is begun that would.
    pub busy: bool,
    /// How often something was to be kept meanwhile.
    pub held_up: usize,
    /// The page is damaged on which the last seqs of these rooms are to be kept.
    pub learns_in_vain: BTreeSet<i64>,
    /// The rooms of each transaction that was to keep last seqs.
    pub learned: Vec<Vec<i64>>,
    /// From here on nothing happens any more, as after a kill -9 of the process.
    pub killed: bool,
    /// How far rooms got.
    pub places: BTreeMap<i64, Place>,
    /// The rooms of each transaction that was to keep places.
    pub placed: Vec<Vec<i64>>,
    /// The page is damaged on which the places of these rooms are to be kept.
    pub places_in_vain: BTreeSet<i64>,
    /// Broadcasts, and whether the store has them.
    pub broadcasts: BTreeMap<Uuid, (Broadcast, bool)>,
    /// How many were found each time that it was asked which of them the store lacks.
    pub unstored_found: Vec<usize>,
    /// That the store has a broadcast is not remembered, as where a row says something else than its record.
    pub marks_in_vain: bool,
    /// So many attempts to keep broadcasts fail and do nothing.
    pub keeps_in_vain: usize,
    /// The page is damaged on which the broadcasts of these rooms are to be kept.
    pub records_in_vain: BTreeSet<i64>,
    /// How often that was tried.
    pub record_tries: usize,
    /// How long each such try takes.
    pub record_tries_take: Duration,
    /// How often it was asked whether a write would succeed.
    pub probes: usize,
    /// So many attempts to take broadcasts of the store up fail behind their commit.
    pub adopts_in_vain: usize,
    /// What was freed, for its keys.
    pub keys: Vec<Arc<Event>>,
    /// Up to when keys were to go, each time that rows were freed.
    pub keys_before_ms: Vec<i64>,
    /// Up to when they may go with what is committed.
    pub forgotten_before_ms: Option<i64>,
    pub next: Pos,
    /// While it is taken, commits wait: so that a test can let more queue up behind one.
    pub gate: Arc<Mutex<()>>,
}

/// A spool in memory that follows a script.
#[derive(Clone, Default)]
pub struct ScriptedSpool(pub Arc<Mutex<SpoolScript>>);

fn error(fault: SpoolFault) -> SpoolError {
    SpoolError {
        why: "scripted".into(),
        fault,
    }
}

impl ScriptedSpool {
    pub fn script(&self) -> MutexGuard<'_, SpoolScript> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SpoolScript {
    /// Whether a call that is not a commit fails now.
    fn fails(&mut self) -> Result<(), SpoolError> {
        if self.panicking > 0 {
            self.panicking -= 1;
            panic!("planned");
        }
        if self.killed || self.failing > 0 {
            self.failing = self.failing.saturating_sub(1);
            return Err(error(SpoolFault::Unsure));
        }
        Ok(())
    }

    fn fails_unsure(&mut self) -> SpoolError {
        if std::mem::take(&mut self.fails_behind) {
            self.failing = usize::MAX;
        }
        error(SpoolFault::Unsure)
    }

    fn has_room(&self) -> Result<(), SpoolError> {
        if self.busy {
            return Err(error(SpoolFault::NotBegun));
        }
        if self.full {
            let why = self.full_why.into();
            let fault = SpoolFault::Full;
            return Err(SpoolError { why, fault });
        }
        Ok(())
    }

    /// Whether it is there at all. Broadcasts are not scripted: scripts are about events.
    fn is_there(&self) -> Result<(), SpoolError> {
        if self.killed {
            Err(error(SpoolFault::Unsure))
        } else {
            Ok(())
        }
    }

    /// Events that were written although they had been already.
    pub fn written_twice(&self) -> Vec<&Event> {
        let mut ids = BTreeSet::new();
        let all = self.keys.iter().chain(self.rows.values()).map(Arc::as_ref);
        all.filter(|event| !ids.insert(event.id)).collect()
    }

    fn write(&mut self, events: &[Arc<Event>]) -> Pos {
        let first = self.next + 1;
        for event in events {
            self.next += 1;
            self.rows.insert(self.next, Arc::clone(event));
        }
        first
    }
}

impl Spool for ScriptedSpool {
    fn commit(&mut self, events: &[Arc<Event>]) -> Result<Pos, SpoolError> {
        let gate = Arc::clone(&self.script().gate);
        drop(gate.lock().unwrap());
        let mut script = self.script();
        if script.killed {
            return Err(error(SpoolFault::Unsure));
        }
        script.has_room()?;
        script.sizes.push(events.len());
        match script.commits.front().copied().unwrap_or(Commit::Works) {
            Commit::Works => {
                script.commits.pop_front();
                Ok(script.write(events))
            }
            Commit::Full => {
                script.commits.pop_front();
                Err(error(SpoolFault::Full))
            }
            Commit::NotBegun => {
                script.commits.pop_front();
                Err(error(SpoolFault::NotBegun))
            }
            Commit::FailsWithout | Commit::FailsUnknown => Err(script.fails_unsure()),
            Commit::FailsWith | Commit::FailsUnknownWith => {
                script.write(events);
                Err(script.fails_unsure())
            }
        }
    }

    fn forget_keys(&mut self, before_ms: i64) {
        self.script().forgotten_before_ms = Some(before_ms);
    }

    fn reopen(&mut self) {
        self.script().reopened += 1;
    }

    fn reopen_and_find(&mut self, event: &Event) -> Result<Option<Pos>, SpoolError> {
        let mut script = self.script();
        if script.killed {
            return Err(error(SpoolFault::Unsure));
        }
        match script.commits.pop_front() {
            Some(Commit::FailsUnknown | Commit::FailsUnknownWith) => Err(error(SpoolFault::Unsure)),
            _ => Ok(script
                .rows
                .iter()
                .find(|(_, row)| row.id == event.id)
                .map(|(pos, _)| *pos)),
        }
    }

    fn free(
        &mut self,
        through: Pos,
        parked: &[(Pos, Arc<Event>, String)],
        keys_before_ms: i64,
    ) -> Result<(), SpoolError> {
        let mut script = self.script();
        script.fails()?;
        script.keys_before_ms.push(keys_before_ms);
        for (_, event, reason) in parked {
            if script.parked.iter().all(|(there, _)| there.id != event.id) {
                script.parked.push((Arc::clone(event), reason.clone()));
            }
        }
        let rest = script.rows.split_off(&(through + 1));
        for event in std::mem::replace(&mut script.rows, rest).into_values() {
            script.keys.push(Arc::clone(&event));
            let last = script.rooms.entry(event.presenter_idx.get()).or_default();
            *last = (*last).max(event.seq);
        }
        Ok(())
    }

    fn read(&mut self, after: Pos, limit: usize) -> Result<Vec<(Pos, Arc<Event>)>, SpoolError> {
        let mut script = self.script();
        script.fails()?;
        Ok(script
            .rows
            .range(after + 1..)
            .take(limit)
            .map(|(pos, event)| (*pos, Arc::clone(event)))
            .collect())
    }

    fn last_seq(&mut self, presenter: PresenterIdx) -> Result<LastSeq, SpoolError> {
        let mut script = self.script();
        script.fails()?;
        let rows = script
            .rows
            .values()
            .filter(|event| event.presenter_idx == presenter)
            .map(|event| event.seq)
            .max();
        let known = rows.max(script.rooms.get(&presenter.get()).copied());
        Ok(match known {
            Some(seq) => LastSeq::Known(seq),
            None if script.asks_store => LastSeq::AskStore,
            None => LastSeq::Known(Seq(0)),
        })
    }

    fn learn_last_seqs(&mut self, told: &[(PresenterIdx, Seq)], _: i64) -> Result<Vec<Seq>, SpoolError> {
        let mut script = self.script();
        script.fails()?;
        let rooms: Vec<_> = told.iter().map(|(presenter, _)| presenter.get()).collect();
        let in_vain = rooms.iter().any(|room| script.learns_in_vain.contains(room));
        script.learned.push(rooms);
        script.has_room()?;
        if in_vain {
            return Err(error(SpoolFault::Unsure));
        }
        let mut last_seqs = Vec::new();
        for (presenter, last) in told {
            let of_room = script.rows.values().filter(|event| event.presenter_idx == *presenter);
            let last = of_room.map(|event| event.seq).max().unwrap_or_default().max(*last);
            // What is known already stays.
            script.rooms.entry(presenter.get()).or_insert(last);
            last_seqs.push(last);
        }
        Ok(last_seqs)
    }

    fn read_keys(&mut self, since_ms: i64) -> Result<Vec<KeyRow>, SpoolError> {
        let mut script = self.script();
        script.fails()?;
        let all = script.keys.iter().chain(script.rows.values());
        let rows = all.filter(|event| event.sent_at_ms >= since_ms).filter_map(|event| {
            Some(KeyRow {
                user_idx: event.chat.user_idx,
                keyed: event.keyed.clone()?,
                accepted: Accepted {
                    id: event.id,
                    seq: event.seq,
                    epoch: event.epoch.clone(),
                    sent_at_ms: event.sent_at_ms,
                    delivery: Delivery::Held,
                },
            })
        });
        Ok(rows.collect())
    }

    fn keep_places(&mut self, places: &[Place]) -> Result<(), SpoolError> {
        let mut script = self.script();
        script.fails()?;
        let rooms: Vec<_> = places.iter().map(|place| place.presenter.get()).collect();
        let in_vain = rooms.iter().any(|room| script.places_in_vain.contains(room));
        script.placed.push(rooms);
        if script.busy {
            script.held_up += 1;
            return Err(error(SpoolFault::NotBegun));
        }
        if in_vain {
            return Err(error(SpoolFault::Unsure));
        }
        script
            .places
            .extend(places.iter().map(|place| (place.presenter.get(), *place)));
        Ok(())
    }

    fn place(&mut self, presenter: PresenterIdx) -> Result<Option<Place>, SpoolError> {
        Ok(self.script().places.get(&presenter.get()).copied())
    }

    fn keep_broadcasts(&mut self, broadcasts: &[Broadcast]) -> Result<bool, SpoolError> {
        let mut script = self.script();
        script.is_there()?;
        if script.busy {
            script.held_up += 1;
            return Err(error(SpoolFault::NotBegun));
        }
        if script.keeps_in_vain > 0 {
            script.keeps_in_vain -= 1;
            return Err(error(SpoolFault::Unsure));
        }
        let in_vain = |broadcast: &Broadcast| script.records_in_vain.contains(&broadcast.presenter.get());
        if broadcasts.iter().any(in_vain) {
            script.record_tries += 1;
            let takes = script.record_tries_take;
            drop(script);
            #[expect(clippy::disallowed_methods, reason = "the spool's own thread, which a disk holds up")]
            std::thread::sleep(takes);
            return Err(error(SpoolFault::Unsure));
        }
        let mut lacks_one = false;
        for broadcast in broadcasts {
            let there = script.broadcasts.get(&broadcast.id);
            if there.is_none_or(|(there, _)| there.version < broadcast.version) {
                // That it was seen again is nothing to the store.
                let stored = there.is_some_and(|(there, stored)| {
                    let seen = Broadcast {
                        version: broadcast.version,
                        seen_at_ms: broadcast.seen_at_ms,
                        ..there.clone()
                    };
                    *stored && seen == *broadcast
                });
                script.broadcasts.insert(broadcast.id, (broadcast.clone(), stored));
            }
            lacks_one |= script.broadcasts.get(&broadcast.id).is_some_and(|(_, stored)| !stored);
        }
        Ok(lacks_one)
    }

    fn open_broadcasts(&mut self) -> Result<Vec<Broadcast>, SpoolError> {
        let script = self.script();
        script.is_there()?;
        let open = script.broadcasts.values().map(|(broadcast, _)| broadcast);
        Ok(open
            .filter(|broadcast| broadcast.ended_at_ms.is_none())
            .cloned()
            .collect())
    }

    fn broadcast_versions(&mut self) -> Result<HashMap<Uuid, u64>, SpoolError> {
        let script = self.script();
        script.is_there()?;
        let kept = script.broadcasts.iter();
        Ok(kept.map(|(id, (broadcast, _))| (*id, broadcast.version)).collect())
    }

    fn adopt_broadcasts(&mut self, broadcasts: &[Broadcast]) -> Result<Vec<Broadcast>, SpoolError> {
        let mut script = self.script();
        script.is_there()?;
        let mut new = Vec::new();
        for broadcast in broadcasts {
            if let Entry::Vacant(place) = script.broadcasts.entry(broadcast.id) {
                place.insert((broadcast.clone(), true));
                new.push(broadcast.clone());
            }
        }
        if script.adopts_in_vain > 0 {
            script.adopts_in_vain -= 1;
            return Err(error(SpoolFault::Unsure));
        }
        Ok(new)
    }

    fn unstored_broadcasts(&mut self, limit: usize) -> Result<Vec<Broadcast>, SpoolError> {
        let mut script = self.script();
        script.is_there()?;
        let unstored = script.broadcasts.values().filter(|(_, stored)| !stored);
        let unstored: Vec<_> = unstored.map(|(broadcast, _)| broadcast.clone()).take(limit).collect();
        script.unstored_found.push(unstored.len());
        Ok(unstored)
    }

    fn broadcasts_stored(&mut self, stored: &[Broadcast], refused: &[Broadcast]) -> Result<(), SpoolError> {
        let mut script = self.script();
        script.is_there()?;
        if script.marks_in_vain {
            return Ok(());
        }
        for broadcast in stored.iter().chain(refused) {
            if let Some((there, stored)) = script.broadcasts.get_mut(&broadcast.id) {
                *stored |= there.version == broadcast.version;
            }
        }
        Ok(())
    }

    fn probe(&mut self) -> Result<(), SpoolError> {
        let mut script = self.script();
        script.probes += 1;
        script.has_room()?;
        script.fails()
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn close(&mut self) -> bool {
        self.script().has_room().is_ok()
    }
}

#[derive(Default)]
pub struct StoreScript {
    pub events: BTreeMap<(i64, u64), Arc<Event>>,
    pub away: bool,
    pub poison: Vec<String>,
    pub last_seqs: BTreeMap<i64, Seq>,
    /// How many times a room's last seq was asked for.
    pub asked_last_seq: usize,
    pub batches: Vec<usize>,
    pub broadcasts: BTreeMap<Uuid, Broadcast>,
    /// The rooms whose broadcasts are not kept, and whether that is for good.
    pub not_put: BTreeMap<i64, bool>,
    /// How many times a room's broadcasts were given.
    pub puts: BTreeMap<i64, usize>,
    /// Another server writes to it: which broadcasts are open is not told.
    pub shared: bool,
    /// How many times all that are open were asked for.
    pub asked_open: usize,
    pub calls: VecDeque<Call>,
    /// Set when answers that were kept back come.
    let_go: watch::Sender<bool>,
    /// How many of them failed late, or were answered when they were let go.
    pub late: usize,
}

impl StoreScript {
    /// Takes one event as a store does (rule 4): what is there already is a no-op, another one in its place is a conflict.
    fn take(&mut self, event: &Arc<Event>) -> Result<(), String> {
        if self.poison.iter().any(|text| text == event.chat.text.as_str()) {
            return Err("scripted".into());
        }
        let place = (event.presenter_idx.get(), event.seq.0);
        match self.events.get(&place) {
            Some(there) if there.id != event.id => Err(format!("numbering conflict with {}", there.id)),
            Some(_) => Ok(()),
            None => {
                self.events.insert(place, Arc::clone(event));
                Ok(())
            }
        }
    }
}

/// A store in memory that follows a script.
#[derive(Clone, Default)]
pub struct ScriptedStore(pub Arc<Mutex<StoreScript>>);

impl ScriptedStore {
    pub fn script(&self) -> MutexGuard<'_, StoreScript> {
        self.0.lock().unwrap()
    }

    /// Answers that were kept back come now.
    pub fn let_go(&self) {
        self.script().let_go.send_replace(true);
    }

    /// Does the next call as the script says. `part` does as much of it as an error midway leaves done.
    fn answer<T: Send + 'static>(
        &self,
        give: impl FnOnce(&mut StoreScript) -> T + Send + 'static,
        part: impl FnOnce(&mut StoreScript, u8),
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let mut script = self.script();
        let call = script.calls.pop_front().unwrap_or(Call::Works);
        let error = Err(StoreError("scripted".into()));
        let answer = match call {
            _ if script.away => Err(StoreError("away".into())),
            Call::Works => Ok(give(&mut script)),
            Call::Slow(ms) => {
                drop(script);
                let store = self.clone();
                return async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    Ok(give(&mut store.script()))
                }
                .boxed();
            }
            Call::Held => {
                let (answer, mut let_go) = (give(&mut script), script.let_go.subscribe());
                drop(script);
                let store = self.clone();
                return async move {
                    let _ = let_go.wait_for(|gone| *gone).await;
                    store.script().late += 1;
                    Ok(answer)
                }
                .boxed();
            }
            Call::FailsLate(ms) => {
                drop(script);
                let store = self.clone();
                return async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    store.script().late += 1;
                    error
                }
                .boxed();
            }
            Call::FailsBefore => error,
            Call::FailsAfter => {
                give(&mut script);
                error
            }
            Call::FailsMidway(which) => {
                part(&mut script, which);
                error
            }
        };
        ready(answer).boxed()
    }
}

impl ScriptedStore {
    /// The events of a range, in order.
    fn read_range(&self, range: &LogRange) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        let limit = range.limit;
        let (presenter, after, through) = (range.presenter, range.after, range.through);
        let range = (presenter.get(), after.0 + 1)..=(presenter.get(), through.0);
        self.answer(
            move |script| {
                let events = script.events.range(range).take(limit);
                events.map(|(_, event)| Event::clone(event)).collect()
            },
            |_, _| (),
        )
    }
}

impl LogStore for ScriptedStore {
    fn prepare(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.answer(|_| (), |_, _| ())
    }

    fn append(&self, batch: StoreBatch) -> BoxFuture<'_, Result<Vec<Poison>, StoreError>> {
        let same = Arc::clone(&batch);
        self.answer(
            move |script| {
                script.batches.push(batch.len());
                let taken = batch.iter().map(|event| script.take(event));
                let poison = taken.enumerate().filter_map(|(index, taken)| {
                    let reason = taken.err()?;
                    Some(Poison { index, reason })
                });
                poison.collect()
            },
            |script, which| {
                for (index, event) in same.iter().enumerate() {
                    if which >> (index % 8) & 1 == 1 {
                        let _ = script.take(event);
                    }
                }
            },
        )
    }

    fn last_seq(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Seq, StoreError>> {
        self.answer(
            move |script| {
                script.asked_last_seq += 1;
                let presenter = presenter.get();
                let told = script.last_seqs.get(&presenter).copied();
                let mut events = script.events.range((presenter, 0)..=(presenter, u64::MAX));
                let last = events.next_back().map(|((_, seq), _)| Seq(*seq));
                told.max(last).unwrap_or_default()
            },
            |_, _| (),
        )
    }

    /// Not counted as a call: scripts are about events.
    fn put_broadcasts<'a>(&'a self, broadcasts: &'a [Broadcast]) -> BoxFuture<'a, Result<Vec<NotPut>, StoreError>> {
        let mut script = self.script();
        if script.away {
            return ready(Err(StoreError("away".into()))).boxed();
        }
        let mut not_put = Vec::new();
        for (index, broadcast) in broadcasts.iter().enumerate() {
            let room = broadcast.presenter.get();
            *script.puts.entry(room).or_default() += 1;
            match script.not_put.get(&room) {
                Some(for_good) => not_put.push(NotPut {
                    index,
                    reason: "scripted".into(),
                    for_good: *for_good,
                }),
                None => {
                    let there = script
                        .broadcasts
                        .entry(broadcast.id)
                        .or_insert_with(|| broadcast.clone());
                    if there.version < broadcast.version {
                        there.clone_from(broadcast);
                    }
                }
            }
        }
        ready(Ok(not_put)).boxed()
    }

    /// Not counted as a call: scripts are about events.
    fn open_broadcasts(&self, but: HashMap<Uuid, u64>) -> BoxFuture<'_, Result<Vec<Broadcast>, StoreError>> {
        let mut script = self.script();
        script.asked_open += 1;
        if script.away || script.shared {
            return ready(Err(StoreError("away or shared".into()))).boxed();
        }
        let open = script.broadcasts.values();
        let is_new = |one: &&Broadcast| but.get(&one.id).is_none_or(|version| *version < one.version);
        let open = open.filter(|one| one.ended_at_ms.is_none()).filter(is_new);
        ready(Ok(open.cloned().collect())).boxed()
    }

    /// Not counted as a call: it goes before the question of a last seq.
    fn open_broadcast(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Option<Broadcast>, StoreError>> {
        let script = self.script();
        if script.away {
            return ready(Err(StoreError("away".into()))).boxed();
        }
        let newest = script.broadcasts.values().rev().find(|one| one.presenter == presenter);
        let open = newest.filter(|one| one.ended_at_ms.is_none());
        ready(Ok(open.cloned())).boxed()
    }

    /// Not counted as a call: it goes before the question of a last seq.
    fn newest_ms(&self) -> BoxFuture<'_, Result<i64, StoreError>> {
        let newest = self.script().events.values().map(|event| event.sent_at_ms).max();
        ready(Ok(newest.unwrap_or(0))).boxed()
    }
}

/// What happens to readings of the log, and what was seen of them.
pub struct ReadScript {
    /// They wait for as long as this is set.
    pub held: watch::Sender<bool>,
    /// What was read is kept back for as long as this is set.
    pub kept: watch::Sender<bool>,
    /// How many have read, whether or not that was kept back.
    pub read: usize,
    /// So many of the next ones panic.
    pub panics: usize,
    /// How many are under way.
    pub under_way: usize,
    /// The most that ever were.
    pub most: usize,
    /// All that began,
    pub ranges: Vec<LogRange>,
    /// and where in the spool each began to look.
    pub from: Vec<Pos>,
}

impl Default for ReadScript {
    fn default() -> Self {
        Self {
            held: watch::Sender::new(false),
            kept: watch::Sender::new(false),
            read: 0,
            panics: 0,
            under_way: 0,
            most: 0,
            ranges: Vec::new(),
            from: Vec::new(),
        }
    }
}

/// Reads the log as the server does: the spool, then the store (rule 6).
#[derive(Clone)]
pub struct ScriptedLog {
    pub spool: ScriptedSpool,
    pub store: ScriptedStore,
    pub reads: Arc<Mutex<ReadScript>>,
}

impl ScriptedLog {
    pub fn new(spool: ScriptedSpool, store: ScriptedStore) -> Self {
        Self {
            spool,
            store,
            reads: Arc::default(),
        }
    }

    pub fn script(&self) -> MutexGuard<'_, ReadScript> {
        self.reads.lock().unwrap()
    }

    /// Makes readings wait, or lets them go on.
    pub fn hold(&self, held: bool) {
        self.script().held.send_replace(held);
    }

    /// Keeps back what was read, or brings it.
    pub fn keep_back(&self, kept: bool) {
        self.script().kept.send_replace(kept);
    }

    /// Which of these events an act in the log covers.
    fn deleted(&self, events: &[Event]) -> Vec<Seq> {
        let mut acts: Vec<Arc<Event>> = {
            let script = self.spool.script();
            let parked = script.parked.iter().map(|(event, _)| event);
            script.rows.values().chain(parked).cloned().collect()
        };
        acts.extend(self.store.script().events.values().cloned());
        let covered = |event: &&Event| {
            let covers = |at: &Arc<Event>| at.act.as_ref().is_some_and(|act| act.covers(at, event));
            acts.iter().any(covers)
        };
        events.iter().filter(covered).map(|event| event.seq).collect()
    }

    /// What the spool has of a range and what was set aside from it, in the order of seqs; where in the spool that begins, and where the
    /// next page may begin to look.
    fn spooled(&self, range: &LogRange, spool_from: Pos) -> (Vec<(Pos, Event)>, Pos, Pos) {
        let of_room = |event: &Event| event.presenter_idx == range.presenter && event.seq > range.after;
        let within = |event: &Event| event.seq <= range.through;
        let script = self.spool.script();
        let rows = script.rows.range(spool_from..);
        let mut found: Vec<(Pos, Event)> = rows
            .filter(|(_, event)| of_room(event))
            .take(range.limit + 1)
            .map(|(pos, event)| (*pos, Event::clone(event)))
            .collect();
        let begins = found.first().map_or(script.next + 1, |(pos, _)| *pos);
        let end = found
            .iter()
            .take(range.limit)
            .take_while(|(_, event)| within(event))
            .count();
        let scanned = found.get(end).map_or(script.next + 1, |(pos, _)| *pos);
        found.truncate(end);
        let parked = script
            .parked
            .iter()
            .map(|(event, _)| event)
            .filter(|event| of_room(event) && within(event));
        found.extend(parked.map(|event| (0, Event::clone(event))));
        found.sort_by_key(|(_, event)| event.seq);
        found.dedup_by_key(|(_, event)| event.seq);
        (found, begins, scanned)
    }
}

impl LogReader for ScriptedLog {
    fn read(&self, range: LogRange, spool_from: Pos) -> BoxFuture<'static, Result<LogPage, StoreError>> {
        let this = self.clone();
        let (mut held, mut kept, panics) = {
            let mut script = self.script();
            script.ranges.push(range.clone());
            script.from.push(spool_from);
            script.under_way += 1;
            script.most = script.most.max(script.under_way);
            let panics = script.panics > 0;
            script.panics = script.panics.saturating_sub(1);
            (script.held.subscribe(), script.kept.subscribe(), panics)
        };
        async move {
            let _ = held.wait_for(|held| !held).await;
            let page = async {
                assert!(!panics, "planned");
                let (mut rows, begins, scanned) = this.spooled(&range, spool_from);
                let (after, limit) = (range.after, range.limit);
                let first = rows.first().map(|(_, event)| event.seq);
                let mut page = LogPage {
                    begins,
                    ..LogPage::default()
                };
                if first != Some(after.next()) {
                    let through = first.map_or(range.through, |first| Seq(first.0 - 1));
                    match this.store.read_range(&LogRange { through, ..range }).await {
                        Ok(stored) => page.events = stored,
                        Err(error) => page.failed = Some(error.0),
                    }
                }
                let room = limit.saturating_sub(page.events.len()).min(rows.len());
                page.spool_from = rows.get(room).map_or(scanned, |(pos, _)| *pos);
                page.events.extend(rows.drain(..room).map(|(_, event)| event));
                page.deleted = this.deleted(&page.events);
                Ok(page)
            };
            let page = AssertUnwindSafe(page).catch_unwind().await;
            this.script().read += 1;
            let _ = kept.wait_for(|kept| !kept).await;
            this.script().under_way -= 1;
            page.unwrap_or_else(|panic| resume_unwind(panic))
        }
        .boxed()
    }
}

/// What the room server says: everyone is live but these.
pub struct RoomScript {
    pub not_live: BTreeSet<i64>,
    /// It does not answer.
    pub away: bool,
    /// So many answers more, and it does not answer.
    pub away_behind: Option<usize>,
    /// Of these it does not say whether they are live.
    pub unknown: BTreeSet<i64>,
    /// Of these it says nothing at all, for ever.
    pub hangs: BTreeSet<i64>,
    /// How long a verdict takes it; zero is at once.
    pub takes: Duration,
    /// Verdicts that are asked for while this is set come when it is not any more.
    pub held: watch::Sender<bool>,
    /// How often it was asked.
    pub asked: usize,
    /// The same of each presenter.
    pub asked_of: BTreeMap<i64, usize>,
    /// Of whom, one after the other.
    pub asked_in_turn: Vec<i64>,
    /// When their broadcasts began, where that is told.
    pub started_at_ms: BTreeMap<i64, i64>,
    /// When they ended, likewise.
    pub ended_at_ms: BTreeMap<i64, i64>,
    /// Its own numbers of their rooms, where they are told.
    pub room_idx: BTreeMap<i64, i64>,
    /// The number that it tells of every room that is not live, where it does, in place of its own.
    pub room_idx_not_live: Option<i64>,
    /// How long a verdict holds.
    pub ttl: Duration,
    /// How a checker that begins asks it, but for that.
    pub config: CheckerConfig,
}

impl Default for RoomScript {
    fn default() -> Self {
        Self {
            not_live: BTreeSet::new(),
            away: false,
            away_behind: None,
            unknown: BTreeSet::new(),
            hangs: BTreeSet::new(),
            takes: Duration::ZERO,
            held: watch::Sender::new(false),
            asked: 0,
            asked_of: BTreeMap::new(),
            asked_in_turn: Vec::new(),
            started_at_ms: BTreeMap::new(),
            ended_at_ms: BTreeMap::new(),
            room_idx: BTreeMap::new(),
            room_idx_not_live: None,
            ttl: Duration::from_secs(60),
            config: CheckerConfig {
                timeout: Duration::from_secs(5),
                live_ttl: Duration::ZERO,
                not_live_ttl: Duration::ZERO,
                cache_max: 1000,
                not_live_cache_max: 1000,
                max_lookups: 64,
                max_reconnects: 16,
                stale: None,
                breaker_failures: 0,
                breaker_open: Duration::from_secs(60),
            },
        }
    }
}

/// A room server in memory.
#[derive(Clone, Default)]
pub struct ScriptedRooms(pub Arc<Mutex<RoomScript>>);

impl ScriptedRooms {
    pub fn script(&self) -> MutexGuard<'_, RoomScript> {
        self.0.lock().unwrap()
    }
}

impl RoomApi for ScriptedRooms {
    fn check(&self, presenter: PresenterIdx) -> LocalBoxFuture<'static, Result<Liveness, RoomApiError>> {
        let mut script = self.script();
        script.asked += 1;
        *script.asked_of.entry(presenter.get()).or_default() += 1;
        script.asked_in_turn.push(presenter.get());
        if script.hangs.contains(&presenter.get()) {
            return pending().boxed_local();
        }
        if script.away {
            return ready(Err(RoomApiError::Timeout)).boxed_local();
        }
        if let Some(left) = script.away_behind {
            script.away_behind = left.checked_sub(1).filter(|left| *left > 0);
            script.away = script.away_behind.is_none();
        }
        if script.unknown.contains(&presenter.get()) {
            return ready(Err(RoomApiError::Refused("status 404".into()))).boxed_local();
        }
        let live = !script.not_live.contains(&presenter.get());
        let instead = script.room_idx_not_live.filter(|_| !live);
        let (takes, liveness) = (
            script.takes,
            Liveness {
                live,
                room_idx: instead.or(script.room_idx.get(&presenter.get()).copied()),
                started_at_ms: script.started_at_ms.get(&presenter.get()).copied(),
                ended_at_ms: script.ended_at_ms.get(&presenter.get()).copied(),
            },
        );
        let held = script.held.borrow().then(|| script.held.subscribe());
        async move {
            if let Some(mut held) = held {
                let _ = held.wait_for(|held| !held).await;
            }
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            Ok(liveness)
        }
        .boxed_local()
    }

    fn request_reconnect(&self, _: PresenterIdx) -> LocalBoxFuture<'static, Result<(), RoomApiError>> {
        ready(Ok(())).boxed_local()
    }
}
