//! Rules 11 to 16 against a model: whatever happens to sessions, logs and processes, each session is sent what it was promised.
//!
//! A case is a list of operations: sessions of both dialects that come, resume from anywhere, stall, acknowledge, vanish and
//! take over from each other; messages, and acts that delete them; broadcasts that end; failures of the spool, of the store
//! and of the registry; restarts. Afterwards everything works again, the client of each room connects once more and reads to
//! the end, and [`Case::judge`] compares what each session was sent with the log.
//!
//! In each room there is one [`Client`] that always resumes with its own last seq, whatever other sessions come in between. It
//! must have everything since its first `resumed_from`, but for what a `welcome` told as a gap.
//!
//! As in the model of rules 1 to 5 the actors run on threads of their own, so that a list is not replayed to the same turn.
//! `PROPTEST_CASES=2000 cargo test -p chatting-actors sessions` tries more of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use chatting_actors::{
    outcome::{Accepted, Delivery, Outcome, Refusal},
    registry::{End, Reading, RegistryConfig, Resume},
    types::{Event, Seq},
    writer::WriterConfig,
};
use proptest::{
    prelude::*,
    test_runner::{FileFailurePersistence, TestRunner},
};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    acts,
    model::hush_planned_panics,
    peer::{Ack, Client, EPOCH, Peer, Shared, v1},
    script::{Call, Commit, ScriptedRooms, ScriptedSpool, ScriptedStore},
    stage::{Stage, registry_config, room, until, writer_config},
};

/// Cases without `PROPTEST_CASES`.
const CASES: u32 = 48;

/// Long enough for anything that comes at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longer than a case.
const NEVER: Duration = Duration::from_secs(3600);

const ROOMS: i64 = 3;

/// How a session comes.
#[derive(Clone, Copy, Debug)]
enum Resumes {
    /// The client's own, behind what it has.
    Own,
    /// Resumes the last ack.
    Nothing,
    /// Resumes the broadcast's start.
    Zero,
    /// With a number of another numbering.
    Foreign,
    /// Above the last event.
    Above,
    Legacy,
}

#[derive(Clone, Debug)]
enum Op {
    /// So many messages, one after another.
    Talk(i64, usize),
    /// So many messages at once.
    Send {
        presenter: i64,
        count: usize,
        poison: bool,
    },
    /// A new session of the room; it takes over from the one before.
    Come(i64, Resumes),
    /// The newest session's socket closes.
    Leave(i64),
    /// The newest session's client is gone, and the server does not hear of it.
    Desert(i64),
    Stall(i64),
    /// All sessions of the room read again.
    GoOn(i64),
    /// The newest session acknowledges no more by itself.
    Silent(i64),
    Ack(i64, Ack),
    /// The broadcast ends, or another begins.
    Live(i64, bool),
    /// The room server names the broadcast's room so, which begins another one where it had another name.
    Named(i64, i64),
    /// What most of the senders have said in the room is deleted, and what the spool does with that.
    Act(i64, Commit),
    /// What the spool's next commits do.
    Commits(Vec<Commit>),
    /// So many of the spool's next other calls fail.
    SpoolFails(usize),
    /// What the store's next calls do.
    Calls(Vec<Call>),
    /// The store is gone, or is there again.
    Away(bool),
    /// Readings of the log wait, or go on.
    Hold(bool),
    /// So many of the next readings panic.
    ReadsPanic(usize),
    /// One of the events that the store has is gone.
    Lose(i64, usize),
    /// Waits until everyone who sent has been answered.
    Settle,
    /// Waits until the spool is drained, if the store takes anything.
    Drain,
    Wait(u64),
    Panic,
    Restart {
        kill: bool,
    },
}

/// Sizes that make each path a short one.
#[derive(Clone, Debug)]
struct Sizes {
    ring_events: usize,
    credit_events: usize,
    credit_bytes: usize,
    resume_reads: usize,
    resume_max: u64,
    /// Otherwise it never ends.
    short_wait: bool,
    /// Otherwise nothing is ever too slow.
    short_stall: bool,
    /// Otherwise all are live, and no broadcast ends.
    short_ttl: bool,
    checkpoint: Duration,
    commit_max: usize,
    batch_max: usize,
    asks_store: bool,
    /// So many events of each room were there before, sent to its client.
    history: usize,
    /// They have reached the store.
    drained: bool,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Most of it in one room, so that something comes of it.
    let presenter = || prop_oneof![6 => Just(1), 1 => 2..=ROOMS];
    let call = prop_oneof![
        2 => Just(Call::Works),
        2 => prop_oneof![9 => 1..8_u64, 1 => Just(40)].prop_map(Call::Slow),
        1 => Just(Call::FailsBefore),
        1 => Just(Call::FailsAfter),
        1 => any::<u8>().prop_map(Call::FailsMidway),
    ];
    let from = prop_oneof![
        6 => Just(Resumes::Own),
        2 => Just(Resumes::Nothing),
        1 => Just(Resumes::Zero),
        1 => Just(Resumes::Foreign),
        1 => Just(Resumes::Above),
        4 => Just(Resumes::Legacy),
    ];
    let ack = prop_oneof![
        3 => Just(Ack::Exact),
        2 => (0..6_usize).prop_map(Ack::Partial),
        1 => Just(Ack::Stale),
        1 => Just(Ack::Above),
    ];
    let op = prop_oneof![
        14 => (presenter(), 1..8_usize).prop_map(|(presenter, count)| Op::Talk(presenter, count)),
        6 => (presenter(), 1..8_usize, prop::bool::weighted(0.05))
            .prop_map(|(presenter, count, poison)| Op::Send { presenter, count, poison }),
        14 => (presenter(), from).prop_map(|(presenter, from)| Op::Come(presenter, from)),
        3 => presenter().prop_map(Op::Leave),
        1 => presenter().prop_map(Op::Desert),
        2 => presenter().prop_map(Op::Stall),
        3 => presenter().prop_map(Op::GoOn),
        3 => presenter().prop_map(Op::Silent),
        4 => (presenter(), ack).prop_map(|(presenter, ack)| Op::Ack(presenter, ack)),
        3 => (presenter(), any::<bool>()).prop_map(|(presenter, live)| Op::Live(presenter, live)),
        2 => prop::collection::vec(Commit::any(), 1..4).prop_map(Op::Commits),
        1 => (1..4_usize).prop_map(Op::SpoolFails),
        2 => prop::collection::vec(call, 1..5).prop_map(Op::Calls),
        1 => any::<bool>().prop_map(Op::Away),
        2 => prop::bool::weighted(0.3).prop_map(Op::Hold),
        1 => (1..3_usize).prop_map(Op::ReadsPanic),
        1 => (presenter(), 0..20_usize).prop_map(|(presenter, which)| Op::Lose(presenter, which)),
        7 => Just(Op::Settle),
        2 => Just(Op::Drain),
        3 => prop_oneof![4 => 1..5_u64, 1 => Just(30)].prop_map(Op::Wait),
        1 => Just(Op::Panic),
        3 => any::<bool>().prop_map(|kill| Op::Restart { kill }),
    ];
    prop::collection::vec(op, 1..70)
}

/// What else happens, and where among the others: apart from them, so that those lists that failed once remain what they were.
fn more() -> impl Strategy<Value = Vec<(prop::sample::Index, Op)>> {
    let presenter = || prop_oneof![6 => Just(1), 1 => 2..=ROOMS];
    let op = prop_oneof![
        4 => (presenter(), Commit::any()).prop_map(|(presenter, commit)| Op::Act(presenter, commit)),
        1 => (presenter(), 1..3_i64).prop_map(|(presenter, room_idx)| Op::Named(presenter, room_idx)),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), op), 0..8)
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let reading = (
        prop_oneof![3 => 1..8_usize, 1 => Just(1024)],
        prop_oneof![4 => 1..6_usize, 1 => Just(64)],
        prop_oneof![1 => Just(60_usize), 2 => Just(1 << 20)],
        1..=2_usize,
        prop_oneof![1 => 1..8_u64, 2 => Just(100_000)],
        prop::bool::weighted(0.4),
    );
    let times = (
        prop::bool::weighted(0.15),
        prop::bool::weighted(0.4),
        prop_oneof![
            Just(Duration::from_millis(1)),
            Just(Duration::from_millis(15)),
            Just(NEVER)
        ],
    );
    let writing = (
        prop_oneof![1..4_usize, Just(1024)],
        prop_oneof![1..5_usize, Just(100)],
        prop::bool::weighted(0.3),
        prop_oneof![1 => Just(0_usize), 4 => 1..20_usize],
        any::<bool>(),
    );
    (reading, times, writing).prop_map(|(reading, times, writing)| {
        let (ring_events, credit_events, credit_bytes, resume_reads, resume_max, short_wait) = reading;
        let (short_stall, short_ttl, checkpoint) = times;
        let (commit_max, batch_max, asks_store, history, drained) = writing;
        Sizes {
            ring_events,
            credit_events,
            credit_bytes,
            resume_reads,
            resume_max,
            short_wait,
            short_stall,
            short_ttl,
            checkpoint,
            commit_max,
            batch_max,
            asks_store,
            history,
            drained,
        }
    })
}

struct Attempt {
    presenter: i64,
    text: String,
    told: Option<Result<Accepted, Refusal>>,
    /// On the clock of the room's peers: not before this it was answered.
    told_at: u64,
}

/// A session with what was so when it came.
struct Came {
    peer: Arc<Peer>,
    presenter: i64,
    from: Resumes,
    /// Restarts so far.
    life: u32,
    /// Restarts and panics so far.
    registry: u32,
}

struct Case {
    sizes: Sizes,
    spool: ScriptedSpool,
    store: ScriptedStore,
    rooms: ScriptedRooms,
    /// `None` only between a stop and the next start.
    stage: Option<Stage>,
    attempts: Vec<Attempt>,
    pending: Vec<(usize, oneshot::Receiver<Outcome>)>,
    /// All sessions that ever were, in the order in which they came.
    sessions: Vec<Came>,
    clients: BTreeMap<i64, Arc<Mutex<Client>>>,
    shared: BTreeMap<i64, Shared>,
    lost: BTreeMap<(i64, u64), Arc<Event>>,
    /// The store or the spool may not have been readable.
    trouble: bool,
    /// A broadcast may have ended.
    ended: bool,
    life: u32,
    registry: u32,
}

impl Case {
    fn start(sizes: Sizes) -> Self {
        let (spool, store, rooms) = (
            ScriptedSpool::default(),
            ScriptedStore::default(),
            ScriptedRooms::default(),
        );
        spool.script().asks_store = sizes.asks_store;
        if sizes.short_ttl {
            rooms.script().ttl = Duration::from_millis(3);
        }
        let mut case = Self {
            sizes,
            spool,
            store,
            rooms,
            stage: None,
            attempts: Vec::new(),
            pending: Vec::new(),
            sessions: Vec::new(),
            clients: (1..=ROOMS).map(|presenter| (presenter, Arc::default())).collect(),
            shared: (1..=ROOMS).map(|presenter| (presenter, Shared::default())).collect(),
            lost: BTreeMap::new(),
            trouble: false,
            ended: false,
            life: 0,
            registry: 0,
        };
        case.run_stage();
        case
    }

    /// Each room's client has read what is there before.
    async fn history(&mut self) {
        for presenter in 1..=ROOMS {
            self.come(presenter, Resumes::Own);
            self.talk(presenter, self.sizes.history).await;
        }
        if self.sizes.drained {
            self.drained().await;
        }
    }

    async fn talk(&mut self, presenter: i64, count: usize) {
        for _ in 0..count {
            self.send(presenter, false);
            self.settle().await;
        }
    }

    fn run_stage(&mut self) {
        let sizes = &self.sizes;
        let or_never = |short: bool, ms| if short { Duration::from_millis(ms) } else { NEVER };
        let registry = RegistryConfig {
            ring_events: sizes.ring_events,
            credit_events: sizes.credit_events,
            credit_bytes: sizes.credit_bytes,
            resume_reads: sizes.resume_reads,
            resume_max: sizes.resume_max,
            resume_wait: or_never(sizes.short_wait, 15),
            stall: or_never(sizes.short_stall, 25),
            checkpoint: sizes.checkpoint,
            sweep: Duration::from_millis(3),
            ..registry_config()
        };
        let writer = WriterConfig {
            commit_max: sizes.commit_max,
            batch_max: sizes.batch_max,
            ..writer_config()
        };
        self.stage = Some(Stage::among(
            self.rooms.clone(),
            self.spool.clone(),
            self.store.clone(),
            registry,
            writer,
        ));
    }

    fn stage(&self) -> &Stage {
        self.stage.as_ref().unwrap()
    }

    fn come(&mut self, presenter: i64, from: Resumes) -> Arc<Peer> {
        let client = Arc::clone(&self.clients[&presenter]);
        let have = client.lock().unwrap().have;
        let reading = match from {
            Resumes::Own => v1(have),
            Resumes::Nothing => v1(None),
            Resumes::Zero => v1(Some(0)),
            Resumes::Foreign => Reading::V1(Resume {
                epoch: Some("another".into()),
                after: Some(Seq(have.unwrap_or(3))),
            }),
            Resumes::Above => v1(Some(1_000_000)),
            Resumes::Legacy => Reading::Legacy,
        };
        let mut shared = self.shared[&presenter].clone();
        if let Resumes::Above = from {
            // It lies about what it has.
            shared.claimed = Arc::default();
        }
        let peer = Peer::come(
            &self.stage().registry,
            presenter,
            reading,
            self.sizes.credit_events,
            shared,
            matches!(from, Resumes::Own).then_some(client),
        );
        self.sessions.push(Came {
            peer: Arc::clone(&peer),
            presenter,
            from,
            life: self.life,
            registry: self.registry,
        });
        peer
    }

    fn of_room(&self, presenter: i64) -> impl DoubleEndedIterator<Item = &Came> {
        self.sessions.iter().filter(move |came| came.presenter == presenter)
    }

    /// Does something with the room's newest session, if there ever was one.
    fn newest(&self, presenter: i64, act: impl FnOnce(&Peer)) {
        if let Some(came) = self.of_room(presenter).next_back() {
            act(&came.peer);
        }
    }

    fn send(&mut self, presenter: i64, poison: bool) -> usize {
        let number = self.attempts.len();
        let text = format!("message {number}");
        if poison {
            self.store.script().poison.push(text.clone());
        }
        // Not all of them are of the one whose messages are deleted.
        let user = if number.is_multiple_of(3) { 8 } else { 7 };
        let outcome = self
            .stage()
            .submit_as(user, &number.to_string(), presenter, &text, None);
        self.attempt(presenter, text, outcome)
    }

    /// Deletes what the user 7 has said.
    fn delete(&mut self, presenter: i64) {
        let number = self.attempts.len();
        let outcome = acts::act_as(self.stage(), presenter, &number.to_string());
        self.attempt(presenter, String::new(), outcome);
    }

    fn attempt(&mut self, presenter: i64, text: String, outcome: oneshot::Receiver<Outcome>) -> usize {
        let number = self.attempts.len();
        self.pending.push((number, outcome));
        self.attempts.push(Attempt {
            presenter,
            text,
            told: None,
            told_at: u64::MAX,
        });
        number
    }

    fn told(&mut self, number: usize, outcome: Option<Outcome>) {
        let attempt = &mut self.attempts[number];
        attempt.told_at = self.shared[&attempt.presenter].clock.load(SeqCst);
        attempt.told = Some(match outcome {
            Some(Outcome::Accepted(accepted)) => Ok(accepted),
            Some(Outcome::Refused(refusal)) => Err(refusal),
            None => Err(Refusal::OutcomeUnknown),
        });
    }

    async fn settle(&mut self) {
        for (number, outcome) in std::mem::take(&mut self.pending) {
            let Ok(outcome) = timeout(PATIENCE, outcome).await else {
                panic!("attempt {number} was never answered");
            };
            self.told(number, outcome.ok());
        }
        // A spool that failed is found to work again in a moment, if nothing else is to fail.
        let stage = self.stage();
        for _ in 0..20 {
            if stage.writer.writable() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn drained(&self) {
        let flush = self.stage().parts.flush();
        assert!(timeout(PATIENCE, flush).await.is_ok(), "the spool never drained");
    }

    fn spool_works(&self) {
        let mut script = self.spool.script();
        script.killed = false;
        script.commits.clear();
        script.failing = 0;
    }

    async fn restart(&mut self, kill: bool) {
        let stage = self.stage.take().unwrap();
        if kill {
            self.spool.script().killed = true;
            drop(stage);
        } else {
            // Who does not read is cut off, as by the deadline of a stop.
            for came in self.sessions.iter().filter(|came| came.life == self.life) {
                came.peer.leave();
            }
            self.spool_works();
            let stopped = timeout(PATIENCE, stage.stop_well()).await;
            assert!(stopped.is_ok(), "the registry never stopped");
        }
        for came in &self.sessions {
            came.peer.die();
        }
        // Nobody is left to answer.
        for (number, mut outcome) in std::mem::take(&mut self.pending) {
            self.told(number, outcome.try_recv().ok());
        }
        self.spool_works();
        self.life += 1;
        self.registry += 1;
        self.run_stage();
    }

    /// The store loses an event of the room, if it has one that the spool has not.
    fn lose(&mut self, presenter: i64, which: usize) {
        let (spool, mut store) = (self.spool.script(), self.store.script());
        let all = store.events.range((presenter, 0)..=(presenter, u64::MAX));
        // A store marks what an act deletes; with the scripted one's act that would be gone, too.
        let gone = |event: &Event| event.act.is_none() && spool.rows.values().all(|row| row.id != event.id);
        let places: Vec<_> = all.filter(|(_, event)| gone(event)).map(|(place, _)| *place).collect();
        if let Some(place) = places.get(which % places.len().max(1)) {
            self.lost
                .extend(store.events.remove(place).map(|event| (*place, event)));
        }
    }

    /// One that asks for more than there is takes nothing over, where it is known what there is.
    async fn come_above(&mut self, presenter: i64) {
        let view = self.stage().registry.view(room(presenter)).await;
        let known = self.pending.is_empty() && view.is_some_and(|view| view.last_seq.is_some());
        let before = self.of_room(presenter).next_back().map(|came| Arc::clone(&came.peer));
        let peer = self.come(presenter, Resumes::Above);
        if known {
            assert_eq!(peer.closed().await, BEYOND);
            if let Some(before) = before {
                assert_ne!(before.told(), Some(End::Replaced), "a session that cannot be took over");
            }
        }
    }

    async fn act(&mut self, op: Op) {
        match op {
            Op::Send {
                presenter,
                count,
                poison,
            } => {
                for _ in 0..count {
                    self.send(presenter, poison);
                }
            }
            Op::Talk(presenter, count) => self.talk(presenter, count).await,
            Op::Come(presenter, Resumes::Above) => self.come_above(presenter).await,
            Op::Come(presenter, from) => {
                self.come(presenter, from);
            }
            Op::Leave(presenter) => self.newest(presenter, Peer::leave),
            Op::Desert(presenter) => self.newest(presenter, Peer::desert),
            Op::Stall(presenter) => self.newest(presenter, Peer::stall),
            Op::GoOn(presenter) => self.of_room(presenter).for_each(|came| came.peer.go_on()),
            Op::Silent(presenter) => self.newest(presenter, |peer| peer.acks(false)),
            Op::Ack(presenter, ack) => self.newest(presenter, |peer| peer.ack(ack)),
            Op::Live(..) if !self.sizes.short_ttl => {}
            Op::Live(presenter, live) => {
                self.ended |= !live;
                let mut script = self.rooms.script();
                if live {
                    script.not_live.remove(&presenter);
                } else {
                    script.not_live.insert(presenter);
                }
            }
            Op::Named(..) if !self.sizes.short_ttl => {}
            Op::Named(presenter, room_idx) => {
                // A broadcast that had no number goes on with its first one.
                let before = self.rooms.script().room_idx.insert(presenter, room_idx);
                self.ended |= before.is_some_and(|before| before != room_idx);
            }
            Op::Act(presenter, commit) => {
                self.settle().await;
                self.spool.script().commits.push_front(commit);
                self.delete(presenter);
                self.settle().await;
            }
            Op::Commits(commits) => self.spool.script().commits.extend(commits),
            Op::SpoolFails(calls) => self.spool.script().failing += calls,
            Op::Calls(calls) => {
                self.trouble = true;
                self.store.script().calls.extend(calls);
            }
            Op::Away(away) => {
                self.trouble = true;
                self.store.script().away = away;
            }
            Op::Hold(held) => self.stage().log.hold(held),
            Op::ReadsPanic(reads) => {
                self.trouble = true;
                self.stage().log.script().panics += reads;
            }
            Op::Lose(presenter, which) => self.lose(presenter, which),
            Op::Settle => self.settle().await,
            Op::Drain => {
                let away = self.store.script().away;
                if !away {
                    self.drained().await;
                }
            }
            Op::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Op::Panic => {
                self.stage().registry_fails().await;
                self.registry += 1;
            }
            Op::Restart { kill } => self.restart(kill).await,
        }
        let most = self.stage().log.script().most;
        assert!(most <= self.sizes.resume_reads, "{most} readings at once");
    }

    /// Everything works again: each room's client comes once more, reads to the end, and gets what is sent then.
    async fn finish(&mut self) {
        {
            let mut script = self.store.script();
            script.away = false;
            script.calls.clear();
        }
        self.spool_works();
        self.rooms.script().not_live.clear();
        {
            self.stage().log.script().panics = 0;
            self.stage().log.hold(false);
        }
        self.settle().await;
        for presenter in 1..=ROOMS {
            let last = self.come(presenter, Resumes::Own);
            self.reads_to_the_end(presenter, last).await;
        }
        self.settle().await;
        self.drained().await;
        until("all permits", || self.permits() == 0).await;
        // Whoever was told anything reads it now, though it was asked to stall.
        for came in &self.sessions {
            came.peer.go_on();
        }
    }

    async fn reads_to_the_end(&mut self, presenter: i64, mut peer: Arc<Peer>) {
        let mut sent = None;
        for _ in 0..PATIENCE.as_millis() {
            if peer.over() || peer.told().is_some() {
                peer = self.come(presenter, Resumes::Own);
            }
            if sent.is_none() && peer.welcome().is_some() {
                let number = self.send(presenter, false);
                self.settle().await;
                sent = self.attempts[number].told.clone().and_then(Result::ok);
            }
            let have = self.clients[&presenter].lock().unwrap().have;
            if sent.as_ref().is_some_and(|accepted| have == Some(accepted.seq.0)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let client = self.clients[&presenter].lock().unwrap();
        panic!(
            "room {presenter} is not read to the end: {sent:?}, {client:?}, told {:?}, welcome {:?}",
            peer.told(),
            peer.welcome()
        );
    }

    /// What is still out of the permits of the registry and of the writer.
    fn permits(&self) -> usize {
        let stage = self.stage();
        let writer: usize = stage.writer.gates().map(|gate| gate.depth()).iter().sum();
        writer + stage.registry.gate().depth()
    }

    /// What must hold, whatever happened.
    fn judge(&self) {
        let logs: BTreeMap<_, _> = (1..=ROOMS).map(|presenter| (presenter, self.log(presenter))).collect();
        for (n, came) in self.sessions.iter().enumerate() {
            let wrong = came.peer.wrong();
            assert!(
                wrong.is_empty(),
                "session {n}, {:?} of room {}: {wrong:?}",
                came.from,
                came.presenter
            );
            self.judge_end(n, came);
            self.judge_welcome(n, came, &logs);
        }
        for (presenter, log) in &logs {
            self.judge_senders(*presenter, log);
            self.judge_readers(*presenter, log);
            self.judge_acts(*presenter, log);
            self.judge_order(*presenter);
        }
    }

    /// Every event that ever was in the log of a room.
    fn log(&self, presenter: i64) -> BTreeMap<u64, Arc<Event>> {
        let (spool, store) = (self.spool.script(), self.store.script());
        assert!(spool.rows.is_empty(), "left in the spool: {:?}", spool.rows);
        let parked = spool.parked.iter().map(|(event, _)| event);
        let all = store.events.values().chain(parked).chain(self.lost.values());
        let log: BTreeMap<u64, Arc<Event>> = all
            .filter(|event| event.presenter_idx == room(presenter))
            .map(|event| (event.seq.0, Arc::clone(event)))
            .collect();
        assert!(
            log.keys().copied().eq(1..=log.len() as u64),
            "room {presenter} has a hole"
        );
        log
    }

    fn judge_senders(&self, presenter: i64, log: &BTreeMap<u64, Arc<Event>>) {
        let queued: BTreeSet<u64> = self.of_room(presenter).flat_map(|came| came.peer.queued()).collect();
        let of_attempt: BTreeMap<&str, &Arc<Event>> = log
            .values()
            .map(|event| (event.chat.nickname.as_str(), event))
            .collect();
        for (number, attempt) in self.attempts.iter().enumerate() {
            if attempt.presenter != presenter {
                continue;
            }
            let event = of_attempt.get(number.to_string().as_str());
            match attempt.told.as_ref().unwrap() {
                Ok(accepted) => {
                    let event = event.unwrap_or_else(|| panic!("attempt {number} was accepted and lost: {accepted:?}"));
                    assert_eq!(
                        (event.id, event.seq, event.chat.text.as_str()),
                        (accepted.id, accepted.seq, attempt.text.as_str()),
                        "attempt {number} was told another place than it has"
                    );
                    assert!(
                        accepted.delivery == Delivery::Held || queued.contains(&accepted.seq.0),
                        "attempt {number} was told that it was delivered: {accepted:?}"
                    );
                }
                Err(Refusal::OutcomeUnknown) => {}
                Err(refusal) => assert!(
                    event.is_none(),
                    "attempt {number} was refused ({refusal:?}) and is there"
                ),
            }
        }
    }

    fn judge_readers(&self, presenter: i64, log: &BTreeMap<u64, Arc<Event>>) {
        let mut legacy = BTreeSet::new();
        for came in self.of_room(presenter) {
            for taken in came.peer.taken() {
                let text = log.get(&taken.seq).map(|event| event.chat.text.as_str());
                assert_eq!(text, Some(taken.text.as_str()), "room {presenter}: {}", taken.seq);
                assert!(
                    came.peer.is_v1() || legacy.insert(taken.seq),
                    "room {presenter}: {} was given to two legacy sessions",
                    taken.seq
                );
            }
        }
        let client = self.clients[&presenter].lock().unwrap();
        let missing: Vec<u64> = (client.since..=log.len() as u64)
            .filter(|seq| !client.seen.contains(seq) && !client.missed(*seq))
            .collect();
        assert!(
            missing.is_empty(),
            "room {presenter}: {missing:?} were skipped silently: {client:?}"
        );
    }

    /// Legacy is sent nothing that was deleted before, as soon as anybody was told of the act, or of what came behind it.
    fn judge_acts(&self, presenter: i64, log: &BTreeMap<u64, Arc<Event>>) {
        let of_room = self.attempts.iter().filter(|attempt| attempt.presenter == presenter);
        let told: Vec<(u64, u64)> = of_room
            .filter_map(|attempt| {
                let accepted = attempt.told.as_ref()?.as_ref().ok()?;
                Some((accepted.seq.0, attempt.told_at))
            })
            .collect();
        for (seq, by) in log {
            let Some(act) = &by.act else {
                continue;
            };
            let behind = told.iter().filter(|(told, _)| told >= seq);
            let known_at = behind.map(|(_, at)| *at).min().unwrap_or(u64::MAX);
            for came in self.of_room(presenter).filter(|came| !came.peer.is_v1()) {
                for (at, sent) in came.peer.queued_at() {
                    assert!(log[&sent].act.is_none(), "room {presenter}: {sent} is no message");
                    assert!(
                        at < known_at || !act.covers(by, &log[&sent]),
                        "room {presenter}: {sent} was sent, though {seq} had deleted it"
                    );
                }
            }
        }
    }

    /// The newest session wins.
    fn judge_order(&self, presenter: i64) {
        let sessions: Vec<&Came> = self.of_room(presenter).collect();
        for (n, newer) in sessions.iter().enumerate() {
            let Some(began_at) = newer.peer.began_at() else {
                continue;
            };
            for older in &sessions[..n] {
                if !older.peer.is_v1() && older.registry != newer.registry {
                    // The registry that could have ended it had failed; the socket was closed behind what was on its way.
                    continue;
                }
                let late = older.peer.taken().into_iter().find(|taken| taken.at > began_at);
                assert!(
                    late.is_none(),
                    "room {presenter}: {late:?} went to a session that was not the newest"
                );
            }
        }
    }

    /// A session was ended for a reason, and none is left that should have been ended, or welcomed.
    fn judge_end(&self, n: usize, came: &Came) {
        let mut newer = self.sessions[n + 1..]
            .iter()
            .filter(|newer| newer.presenter == came.presenter && newer.life == came.life);
        // One that asks for too much takes over only where it is not known yet that it does.
        let replaced = newer.clone().next().is_some();
        let newer = newer.any(|newer| !matches!(newer.from, Resumes::Above));
        let failed = came.registry < self.registry;
        let welcomed = came.peer.began_at().is_some();
        let holes = !self.lost.is_empty() || (self.sizes.short_wait && self.trouble);
        let fine = match came.peer.told() {
            None => {
                // Above all nobody waits forever for a welcome.
                came.peer.over() || !came.peer.is_v1() || (welcomed && !newer && !came.peer.said_wrong())
            }
            // A legacy one when its successor has left.
            Some(End::Replaced) => replaced,
            Some(End::BadFrame(_)) => came.peer.said_wrong() || matches!(came.from, Resumes::Above),
            Some(End::TooSlow) => self.sizes.short_stall,
            Some(End::LogUnavailable) => came.peer.is_v1() && self.sizes.short_wait && !welcomed,
            Some(End::Restarted) => failed || (came.peer.is_v1() && welcomed && holes),
            Some(End::GoingAway) => self.life > came.life,
            Some(End::NotLive | End::Crowded) => false,
        };
        assert!(
            fine,
            "session {n}, {:?} of room {}: told {:?}, welcomed: {welcomed}, newer: {newer}",
            came.from,
            came.presenter,
            came.peer.told()
        );
    }

    /// A gap is told only where something explains it, and nothing is skipped without one.
    fn judge_welcome(&self, n: usize, came: &Came, logs: &BTreeMap<i64, BTreeMap<u64, Arc<Event>>>) {
        let Some(welcome) = came.peer.welcome() else {
            return;
        };
        let last = welcome.last_seq.0;
        assert!(&*welcome.epoch.0 == EPOCH && welcome.presenter == room(came.presenter));
        assert!(welcome.resumed_from.0 <= last + 1, "session {n}: {welcome:?}");
        // Behind a restart a legacy session begins after all that may have been sent, which counts as taken when it leaves.
        let all_v1 = || self.of_room(came.presenter).all(|came| came.peer.is_v1());
        if matches!(came.from, Resumes::Nothing | Resumes::Foreign)
            && (came.registry == 0 || all_v1())
            && !self.ended
            && self.sizes.resume_max > 1000
        {
            let first = welcome.gap.map_or(welcome.resumed_from, |gap| gap.from).0;
            let claimed = came.peer.claimed();
            // Behind a legacy session nobody is owed an act, nor what one deleted.
            let log = &logs[&came.presenter];
            let acts: Vec<_> = log.values().filter_map(|by| Some((by.act.as_ref()?, by))).collect();
            let is_owed = |event: &Event| event.act.is_none() && !acts.iter().any(|(act, by)| act.covers(by, event));
            let skipped: Vec<u64> = (claimed + 1..first).filter(|seq| is_owed(&log[seq])).collect();
            assert!(
                skipped.is_empty(),
                "session {n}, {:?}: {welcome:?} without {skipped:?}, though nobody had more than {claimed}",
                came.from
            );
        }
        let Some(gap) = welcome.gap else {
            return;
        };
        for seq in gap.from.0..=gap.to.0 {
            let explained = seq + self.sizes.resume_max <= last
                || self.lost.contains_key(&(came.presenter, seq))
                || self.ended
                || (self.sizes.short_wait && self.trouble);
            assert!(
                explained,
                "session {n}, {:?}: {seq} of {welcome:?} was there",
                came.from
            );
        }
    }
}

const BEYOND: End = End::BadFrame("resume_after is above last_seq");

async fn try_out(sizes: Sizes, mut ops: Vec<Op>, more: Vec<(prop::sample::Index, Op)>) {
    for (at, op) in more {
        ops.insert(at.index(ops.len() + 1), op);
    }
    let mut case = Case::start(sizes);
    case.history().await;
    for op in ops {
        case.act(op).await;
    }
    case.finish().await;
    case.judge();
}

#[test]
fn what_each_session_was_sent_is_what_it_was_promised_whatever_failed() {
    hush_planned_panics();
    let mut config = ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/proptest-regressions/sessions.txt"
        )))),
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_MAX_SHRINK_ITERS").is_none() {
        // One that waits in vain waits long.
        config.max_shrink_iters = 60;
    }
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let system = actix::System::new();
    let run = TestRunner::new(config).run(&(sizes(), ops(), more()), |(sizes, ops, more)| {
        system.block_on(try_out(sizes, ops, more));
        Ok(())
    });
    if let Err(failed) = run {
        panic!("{failed}");
    }
}
