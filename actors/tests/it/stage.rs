//! A stage for the actors: everything real but the world outside, which follows a script.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::Arbiter;
use chatting_actors::{
    checker::{CheckerConfig, CheckerHandle, RoomChecker},
    idempotency::{KeyConfig, KeyRow, Keyed},
    metrics::Metrics,
    outcome::{Accepted, Delivery as OutcomeDelivery, Outcome, Refusal, Submit},
    registry::{Delivery, End, RegistryConfig, RegistryHandle, SessionId, SessionRegistry, Subscriber},
    seams::{
        LastSeq, Liveness, LogStore, Poison, Pos, RoomApi, RoomApiError, Spool, SpoolError, StoreBatch, StoreError,
    },
    session::Flow,
    supervise::{Watch, supervise},
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
    writer::{LogWriter, SpoolInfo, SpoolThread, WriterConfig, WriterHandle, WriterParts},
};
use futures_util::future::{BoxFuture, FutureExt, LocalBoxFuture, ready};
use tokio::sync::oneshot;

/// What the spool does with its next commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    Works,
    /// No room: nothing is written.
    Full,
    /// An error, and nothing was written.
    FailsWithout,
    /// An error, and everything was written.
    FailsWith,
    /// An error, nothing was written, and the file cannot be opened again.
    FailsUnknown,
    /// An error, everything was written, and the file cannot be opened again.
    FailsUnknownWith,
}

/// What the store does with its next call, whichever that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Works,
    /// Works, after so many milliseconds.
    Slow(u64),
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
    /// There is no room, for as long as this is set.
    pub full: bool,
    /// From here on nothing happens any more, as after a kill -9 of the process.
    pub killed: bool,
    /// What was freed, for its keys.
    keys: Vec<Arc<Event>>,
    next: Pos,
    /// While it is taken, commits wait: so that a test can let more queue up behind one.
    pub gate: Arc<Mutex<()>>,
}

/// A spool in memory that follows a script.
#[derive(Clone, Default)]
pub struct ScriptedSpool(pub Arc<Mutex<SpoolScript>>);

fn error(full: bool) -> SpoolError {
    SpoolError {
        why: "scripted".into(),
        full,
    }
}

impl ScriptedSpool {
    pub fn script(&self) -> MutexGuard<'_, SpoolScript> {
        self.0.lock().unwrap()
    }
}

impl SpoolScript {
    /// Whether a call that is not a commit fails now.
    fn fails(&mut self) -> Result<(), SpoolError> {
        if self.killed || self.failing > 0 {
            self.failing = self.failing.saturating_sub(1);
            return Err(error(false));
        }
        Ok(())
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
            return Err(error(false));
        }
        if script.full {
            return Err(error(true));
        }
        script.sizes.push(events.len());
        match script.commits.front().copied().unwrap_or(Commit::Works) {
            Commit::Works => {
                script.commits.pop_front();
                Ok(script.write(events))
            }
            Commit::Full => {
                script.commits.pop_front();
                Err(error(true))
            }
            Commit::FailsWithout | Commit::FailsUnknown => Err(error(false)),
            Commit::FailsWith | Commit::FailsUnknownWith => {
                script.write(events);
                Err(error(false))
            }
        }
    }

    fn reopen_and_find(&mut self, event: &Event) -> Result<Option<Pos>, SpoolError> {
        let mut script = self.script();
        if script.killed {
            return Err(error(false));
        }
        match script.commits.pop_front() {
            Some(Commit::FailsUnknown | Commit::FailsUnknownWith) => Err(error(false)),
            _ => Ok(script
                .rows
                .iter()
                .find(|(_, row)| row.id == event.id)
                .map(|(pos, _)| *pos)),
        }
    }

    fn free(&mut self, through: Pos, parked: &[(Pos, Arc<Event>, String)], _: i64) -> Result<(), SpoolError> {
        let mut script = self.script();
        script.fails()?;
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

    fn learn_last_seq(&mut self, presenter: PresenterIdx, last: Seq) -> Result<Seq, SpoolError> {
        let mut script = self.script();
        script.fails()?;
        let of_room = script.rows.values().filter(|event| event.presenter_idx == presenter);
        let last = of_room.map(|event| event.seq).max().unwrap_or_default().max(last);
        // What is known already stays.
        script.rooms.entry(presenter.get()).or_insert(last);
        Ok(last)
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
                    delivery: OutcomeDelivery::Held,
                },
            })
        });
        Ok(rows.collect())
    }

    fn probe(&mut self) -> Result<(), SpoolError> {
        let mut script = self.script();
        if script.full {
            return Err(error(true));
        }
        script.fails()
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn close(&mut self) {}
}

#[derive(Default)]
pub struct StoreScript {
    pub events: BTreeMap<(i64, u64), Arc<Event>>,
    pub away: bool,
    pub poison: Vec<String>,
    pub last_seqs: BTreeMap<i64, Seq>,
    pub batches: Vec<usize>,
    pub calls: VecDeque<Call>,
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
                let presenter = presenter.get();
                let told = script.last_seqs.get(&presenter).copied();
                let mut events = script.events.range((presenter, 0)..=(presenter, u64::MAX));
                let last = events.next_back().map(|((_, seq), _)| Seq(*seq));
                told.max(last).unwrap_or_default()
            },
            |_, _| (),
        )
    }

    fn read_room(&self, _: PresenterIdx, _: Seq, _: usize) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        self.answer(|_| Vec::new(), |_, _| ())
    }

    fn is_empty(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.answer(|script| script.events.is_empty(), |_, _| ())
    }
}

/// What the room server says: everyone is live but these.
pub struct RoomScript {
    pub not_live: BTreeSet<i64>,
    /// How long a verdict holds.
    pub ttl: Duration,
}

impl Default for RoomScript {
    fn default() -> Self {
        Self {
            not_live: BTreeSet::new(),
            ttl: Duration::from_secs(60),
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
        ready(Ok(Liveness {
            live: !self.script().not_live.contains(&presenter.get()),
            room_idx: None,
        }))
        .boxed_local()
    }

    fn request_reconnect(&self, _: PresenterIdx) -> LocalBoxFuture<'static, Result<(), RoomApiError>> {
        ready(Ok(())).boxed_local()
    }
}

/// A session without a socket: takes all that it is given and remembers it.
pub struct Reader {
    registry: RegistryHandle,
    session: Mutex<Option<SessionId>>,
    seen: Mutex<Vec<(u64, String)>>,
    /// What was queued to it while it was stalled.
    waiting: Mutex<Vec<Delivery>>,
    /// Takes nothing while set, as a peer that does not read.
    pub stalled: AtomicBool,
}

impl Reader {
    pub fn seen(&self) -> Vec<(u64, String)> {
        self.seen.lock().unwrap().clone()
    }

    pub fn seqs(&self) -> Vec<u64> {
        self.seen().into_iter().map(|(seq, _)| seq).collect()
    }

    /// Reads again, and first what came while it did not.
    pub fn go_on(&self) {
        let mut waiting = self.waiting.lock().unwrap();
        for delivery in waiting.drain(..) {
            self.read(&delivery);
        }
        self.stalled.store(false, Ordering::Release);
    }

    /// Ends the session, as a socket that closes.
    pub fn leave(&self) {
        self.registry.gone(self.session.lock().unwrap().unwrap());
    }

    fn read(&self, delivery: &Delivery) {
        if !delivery.take() {
            return;
        }
        let mut seen = self.seen.lock().unwrap();
        for entry in &delivery.entries {
            seen.push((entry.event.seq.0, entry.event.chat.text.as_str().to_owned()));
        }
        let session = *self.session.lock().unwrap();
        self.registry.flushed(session.unwrap(), delivery.entries.len() as u64);
    }
}

impl Subscriber for Reader {
    fn deliver(&self, delivery: Delivery) {
        let mut waiting = self.waiting.lock().unwrap();
        if self.stalled.load(Ordering::Acquire) {
            waiting.push(delivery);
        } else {
            self.read(&delivery);
        }
    }

    fn close(&self, _: End) {}

    fn shut(&self) {}
}

pub struct Stage {
    pub registry: RegistryHandle,
    pub writer: WriterHandle,
    pub spool: ScriptedSpool,
    pub store: ScriptedStore,
    pub rooms: ScriptedRooms,
    pub parts: WriterParts,
    pub registry_watch: Watch,
    pub metrics: Metrics,
    thread: Option<SpoolThread>,
    arbiters: Vec<Arbiter>,
}

pub fn room(n: i64) -> PresenterIdx {
    PresenterIdx::new(n).unwrap()
}

pub fn registry_config() -> RegistryConfig {
    RegistryConfig {
        room_share: 1024,
        writer_room_share: 1024,
        pending_max: 1024,
        keys: KeyConfig {
            window_ms: 60_000,
            max: 1000,
            sender_max: 1000,
        },
        refresh_percent: 80,
        ring_events: 1024,
        ring_bytes: 1 << 20,
        sweep: Duration::from_millis(20),
        credit_events: 64,
        credit_bytes: 1 << 20,
        stall: Duration::from_secs(60),
        detached: Duration::from_secs(60),
        not_live: Duration::from_secs(60),
        grace: Duration::from_secs(60),
        reconnect_interval: Duration::from_secs(60),
    }
}

pub fn writer_config() -> WriterConfig {
    WriterConfig {
        commit_max: 1024,
        batch_max: 100,
        linger: Duration::from_millis(1),
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(5),
        backlog_max: 1000,
        answer_first: false,
        key_window_ms: 60_000,
    }
}

impl Stage {
    pub fn set() -> Self {
        Self::with(
            ScriptedSpool::default(),
            ScriptedStore::default(),
            registry_config(),
            writer_config(),
        )
    }

    /// Starts all actors over this spool and store, as a process does that finds them.
    pub fn with(spool: ScriptedSpool, store: ScriptedStore, registry: RegistryConfig, writer: WriterConfig) -> Self {
        Self::among(ScriptedRooms::default(), spool, store, registry, writer)
    }

    /// As [`Self::with`], with this room server.
    pub fn among(
        rooms: ScriptedRooms,
        spool: ScriptedSpool,
        store: ScriptedStore,
        registry: RegistryConfig,
        writer: WriterConfig,
    ) -> Self {
        let metrics = Metrics::default();
        let handle = RegistryHandle::new(4096, metrics.clone());
        let checker = CheckerHandle::new(1024);
        let (first, last, last_ms) = {
            let script = spool.script();
            let all = script.keys.iter().chain(script.rows.values());
            (
                script.rows.keys().next().copied().unwrap_or(script.next + 1),
                script.next,
                all.map(|event| event.sent_at_ms).max().unwrap_or(0),
            )
        };
        let writing = WriterHandle::new(
            4096,
            1 << 24,
            SpoolInfo {
                epoch: Epoch("e".into()),
                last_ms,
                first,
                last,
            },
        );
        let parts = WriterParts::new(
            writer,
            writing.clone(),
            handle.clone(),
            Arc::new(store.clone()),
            metrics.clone(),
        );
        let thread = parts.start_spool(Box::new(spool.clone())).unwrap();
        let arbiters = vec![Arbiter::new(), Arbiter::new(), Arbiter::new()];
        let made_of = parts.clone();
        supervise("writer", &arbiters[0].handle(), parts.watch.clone(), move || {
            LogWriter::new(made_of.clone())
        });
        let (to_checker, to_registry, counted) = (checker.clone(), handle.clone(), metrics.clone());
        let watch = Watch::default();
        let (present, asked) = (watch.clone(), rooms.clone());
        supervise("checker", &arbiters[1].handle(), watch, move || {
            let ttl = asked.script().ttl;
            let config = CheckerConfig {
                timeout: Duration::from_secs(5),
                live_ttl: ttl,
                not_live_ttl: ttl,
                cache_max: 1000,
                max_lookups: 64,
                stale: None,
            };
            let (checker, registry, metrics) = (to_checker.clone(), to_registry.clone(), counted.clone());
            RoomChecker::new(
                config,
                checker,
                registry,
                Rc::new(asked.clone()),
                metrics,
                present.enter(),
            )
        });
        let registry_watch = Watch::default();
        let (present, to_registry, to_writer, counted) =
            (registry_watch.clone(), handle.clone(), writing.clone(), metrics.clone());
        supervise("registry", &arbiters[2].handle(), registry_watch.clone(), move || {
            let (handle, checker, writer) = (to_registry.clone(), checker.clone(), to_writer.clone());
            SessionRegistry::new(
                registry.clone(),
                handle,
                checker,
                writer,
                counted.clone(),
                present.enter(),
            )
        });
        Self {
            registry: handle,
            writer: writing,
            spool,
            store,
            rooms,
            parts,
            registry_watch,
            metrics,
            thread: Some(thread),
            arbiters,
        }
    }

    /// A session of this room.
    pub fn reader(&self, presenter: i64) -> Arc<Reader> {
        let reader = Arc::new(Reader {
            registry: self.registry.clone(),
            session: Mutex::new(None),
            seen: Mutex::default(),
            waiting: Mutex::default(),
            stalled: AtomicBool::new(false),
        });
        let mut session = reader.session.lock().unwrap();
        let id = self.registry.connect(Arc::clone(&reader) as Arc<dyn Subscriber>);
        *session = Some(id);
        drop(session);
        self.registry.attach(id, room(presenter), Arc::new(Flow::default()));
        reader
    }

    /// Hands a message in; the outcome comes later.
    pub fn submit(&self, presenter: i64, text: &str) -> oneshot::Receiver<Outcome> {
        self.submit_with(presenter, text, None)
    }

    /// Hands a message with an `Idempotency-Key` in.
    pub fn submit_with(&self, presenter: i64, text: &str, key: Option<&str>) -> oneshot::Receiver<Outcome> {
        self.submit_as(7, "kim", presenter, text, key)
    }

    /// Hands a message of this user in.
    pub fn submit_as(
        &self,
        user: i64,
        nickname: &str,
        presenter: i64,
        text: &str,
        key: Option<&str>,
    ) -> oneshot::Receiver<Outcome> {
        let user_idx = UserIdx::new(user).unwrap();
        let submit = Submit {
            presenter_idx: room(presenter),
            chat: ChatMessage {
                user_idx,
                nickname: Nickname::new(nickname, 64).unwrap(),
                text: MessageText::maybe_empty(text.to_owned(), 2000).unwrap(),
                role: Role::Viewer,
            },
            keyed: key.map(|key| Keyed::new(user_idx, room(presenter), key, text)),
        };
        self.registry.submit(submit).unwrap()
    }

    pub async fn accepted(&self, presenter: i64, text: &str) -> Accepted {
        match self.submit(presenter, text).await.unwrap() {
            Outcome::Accepted(accepted) => accepted,
            Outcome::Refused(refusal) => panic!("{text}: {refusal:?}"),
        }
    }

    pub async fn refused(&self, presenter: i64, text: &str) -> Refusal {
        match self.submit(presenter, text).await.unwrap() {
            Outcome::Refused(refusal) => refusal,
            Outcome::Accepted(accepted) => panic!("{text}: {accepted:?}"),
        }
    }

    /// Submits until one is accepted: a spool that failed is left alone for a moment.
    pub async fn accepted_again(&self, presenter: i64, text: &str) -> Accepted {
        for _ in 0..5000 {
            if let Outcome::Accepted(accepted) = self.submit(presenter, text).await.unwrap() {
                return accepted;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{text} was never accepted");
    }

    /// What the store holds of a room.
    pub async fn stored(&self, presenter: i64) -> Vec<(u64, String)> {
        self.parts.flush().await;
        let script = self.store.script();
        let events = script.events.range((presenter, 0)..=(presenter, u64::MAX));
        events
            .map(|((_, seq), event)| (*seq, event.chat.text.as_str().to_owned()))
            .collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.writer.stop();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
        for arbiter in self.arbiters.drain(..) {
            arbiter.stop();
            let _ = arbiter.join();
        }
    }
}
