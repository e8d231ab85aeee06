//! A stage for the actors: everything real but the world outside, which follows a script.

use std::{
    rc::Rc,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use actix::Arbiter;
use chatting_actors::{
    checker::{CheckerConfig, CheckerHandle, RoomChecker},
    idempotency::{KeyConfig, Keyed},
    metrics::Metrics,
    outcome::{Accepted, Outcome, Refusal, Submit},
    registry::{
        Batch, End, ReadLog, Reading, RegistryConfig, RegistryHandle, RoomView, SessionId, SessionRegistry, Subscriber,
    },
    session::Flow,
    supervise::{Pauses, Watch, supervise},
    types::{ChatMessage, Epoch, MessageText, Nickname, PresenterIdx, Role, UserIdx},
    writer::{LogWriter, SpoolEnd, SpoolInfo, SpoolThread, WriterConfig, WriterHandle, WriterParts},
};
use tokio::sync::oneshot;

use crate::script::{ScriptedLog, ScriptedRooms, ScriptedSpool, ScriptedStore};

/// A session without a socket: takes all that it is given and remembers it.
pub struct Reader {
    registry: RegistryHandle,
    session: Mutex<Option<SessionId>>,
    seen: Mutex<Vec<(u64, String)>>,
    /// What was queued to it while it was stalled.
    waiting: Mutex<Vec<Batch>>,
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

    /// Returns when it has seen so many events.
    pub async fn has_seen(&self, count: usize) {
        for _ in 0..10_000 {
            if self.seqs().len() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("waited in vain for {count} events; saw {:?}", self.seqs());
    }

    /// Reads again, and first what came while it did not.
    pub fn go_on(&self) {
        let mut waiting = self.waiting.lock().unwrap();
        for batch in waiting.drain(..) {
            self.read(&batch);
        }
        self.stalled.store(false, Ordering::Release);
    }

    /// Ends the session, as a socket that closes.
    pub fn leave(&self) {
        self.registry.gone(self.session.lock().unwrap().unwrap());
    }

    fn read(&self, batch: &Batch) {
        if !batch.take() {
            return;
        }
        let mut seen = self.seen.lock().unwrap();
        for entry in &batch.entries {
            seen.push((entry.event.seq.0, entry.event.chat.text.as_str().to_owned()));
        }
        if batch.flow.flush(batch.entries.len() as u64) {
            let session = *self.session.lock().unwrap();
            self.registry.flushed(session.unwrap());
        }
    }
}

impl Subscriber for Reader {
    fn deliver(&self, batch: Batch) {
        let mut waiting = self.waiting.lock().unwrap();
        if self.stalled.load(Ordering::Acquire) {
            waiting.push(batch);
        } else {
            self.read(&batch);
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
    pub log: ScriptedLog,
    pub rooms: ScriptedRooms,
    pub parts: WriterParts,
    pub registry_watch: Watch,
    pub checker: CheckerHandle,
    pub checker_watch: Watch,
    pub metrics: Metrics,
    thread: Option<SpoolThread>,
    arbiters: Vec<Arbiter>,
}

/// An actor that failed is made anew at once.
const PAUSES: Pauses = Pauses {
    min: Duration::from_millis(1),
    max: Duration::from_millis(10),
};

/// How long is waited for what should happen at once: long, so that a busy machine fails no test.
const PATIENCE: Duration = Duration::from_secs(30);

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        LINES.lock().unwrap().push(line);
    }

    fn flush(&self) {}
}

/// From here on warnings and errors are kept, those of other tests too.
pub fn keep_lines() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Lines).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
    });
}

pub fn lines_with(what: &str) -> Vec<String> {
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|line| line.contains(what)).cloned().collect()
}

/// Returns when it is so; looks every millisecond.
pub async fn until(what: &str, so: impl Fn() -> bool) {
    eventually(what, async || so()).await;
}

/// As [`until`], of what must be asked for.
pub async fn eventually(what: &str, so: impl AsyncFn() -> bool) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

pub fn room(n: i64) -> PresenterIdx {
    PresenterIdx::new(n).unwrap()
}

pub fn registry_config() -> RegistryConfig {
    RegistryConfig {
        room_share: 1024,
        writer_room_share: 1024,
        pending_max: 1024,
        lookups: None,
        tracked: 1024,
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
        start: Duration::from_secs(60),
        detached: Duration::from_secs(60),
        not_live: Duration::from_secs(60),
        grace: Duration::from_secs(60),
        reconnect_interval: Some(Duration::from_secs(60)),
        resume_max: 100_000,
        resume_reads: 2,
        // Longer than a test; those of it set their own.
        resume_wait: Duration::from_secs(3600),
        checkpoint: Duration::from_millis(20),
        broadcast_resume: Duration::from_secs(60),
        broadcast_unknown: Duration::from_secs(3600),
    }
}

pub fn writer_config() -> WriterConfig {
    WriterConfig {
        commit_max: 1024,
        commit_interval: Duration::ZERO,
        commit_enough: 16,
        batch_max: 100,
        batch_enough: 100,
        linger: Duration::from_millis(1),
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(5),
        backlog_max: 1000,
        answer_first: false,
        adopt_every: None,
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
            PAUSES,
        );
        let thread = parts.start_spool(Box::new(spool.clone())).unwrap();
        let arbiters = vec![Arbiter::new(), Arbiter::new(), Arbiter::new(), Arbiter::new()];
        let scripted_log = ScriptedLog::new(spool.clone(), store.clone());
        let log = ReadLog::new(Arc::new(scripted_log.clone()), arbiters[3].handle());
        let asked_by_tests = checker.clone();
        let made_of = parts.clone();
        supervise(&arbiters[0].handle(), parts.watch.clone(), move |present| {
            LogWriter::new(made_of.clone(), present)
        });
        let (to_checker, to_registry, counted) = (checker.clone(), handle.clone(), metrics.clone());
        let watch = Watch::new("checker", PAUSES, &metrics);
        let checker_watch = watch.clone();
        let asked = rooms.clone();
        supervise(&arbiters[1].handle(), watch, move |present| {
            let script = asked.script();
            let config = CheckerConfig {
                live_ttl: script.ttl,
                not_live_ttl: script.ttl,
                ..script.config.clone()
            };
            drop(script);
            let (checker, registry, metrics) = (to_checker.clone(), to_registry.clone(), counted.clone());
            RoomChecker::new(config, checker, registry, Rc::new(asked.clone()), metrics, present)
        });
        let registry_watch = Watch::new("registry", PAUSES, &metrics);
        let (to_registry, to_writer, counted) = (handle.clone(), writing.clone(), metrics.clone());
        supervise(&arbiters[2].handle(), registry_watch.clone(), move |present| {
            let (handle, checker, writer) = (to_registry.clone(), checker.clone(), to_writer.clone());
            SessionRegistry::new(
                registry.clone(),
                handle,
                checker,
                writer,
                log.clone(),
                counted.clone(),
                present,
            )
        });
        Self {
            registry: handle,
            writer: writing,
            spool,
            store,
            log: scripted_log,
            rooms,
            parts,
            registry_watch,
            checker: asked_by_tests,
            checker_watch,
            metrics,
            thread: Some(thread),
            arbiters,
        }
    }

    /// The writer does nothing until this is dropped.
    pub fn hold_writer(&self) -> SyncSender<()> {
        let (go, held) = sync_channel(0);
        let (begun, begins) = sync_channel(0);
        self.arbiters[0].spawn_fn(move || {
            let _ = begun.send(());
            let _ = held.recv();
        });
        let _ = begins.recv();
        go
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
        let flow = Arc::new(Flow::default());
        self.registry.attach(id, room(presenter), flow, Reading::Legacy);
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
            act: None,
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

    /// The registry panics; returns when another one is there.
    pub async fn registry_fails(&self) {
        let before = self.registry_watch.restarts();
        self.registry.panic_now();
        self.has_restarted(before + 1).await;
    }

    /// Returns when the registry has been made anew so often.
    pub async fn has_restarted(&self, times: u64) {
        let again = || self.registry_watch.restarts() >= times && self.registry_watch.alive();
        until("another registry", again).await;
    }

    /// Returns when what the registry keeps of this room is so.
    pub async fn keeps(&self, presenter: i64, what: &str, so: impl Fn(Option<RoomView>) -> bool) {
        eventually(what, async || so(self.registry.view(room(presenter)).await)).await;
    }

    /// Returns when at least so many events of this room are numbered and not committed.
    pub async fn has_in_flight(&self, presenter: i64, count: usize) {
        let what = format!("{count} of room {presenter} to be in flight");
        self.keeps(presenter, &what, |view| {
            view.is_some_and(|view| view.in_flight >= count)
        })
        .await;
    }

    /// Returns when this room has a session, or none.
    pub async fn has_session(&self, presenter: i64, session: bool) {
        let what = format!("a session of room {presenter} ({session})");
        self.keeps(presenter, &what, |view| {
            view.is_some_and(|view| view.session == session)
        })
        .await;
    }

    /// Stops as the server does: submits are refused, what is under way is answered, sessions end, places are saved.
    pub async fn stop_well(self) {
        self.registry.refuse_submits().await;
        self.registry.end_sessions(End::GoingAway).await;
    }

    /// Stops the spool's thread; returns how it left the spool.
    pub fn spool_end(mut self) -> SpoolEnd {
        self.writer.stop();
        self.thread.take().unwrap().join()
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
