//! Rules 1 to 5 and 17 against a model: whatever fails in whatever order, what was answered is what the log has.
//!
//! A case is a list of operations: messages, failures of the spool and of the store, restarts, panics of actors,
//! sessions that stall and come back. Afterwards everything works again, the keys that were used are used once more, the
//! spool drains, and [`Case::judge`] compares what each sender was told and what each session was given with the log.
//!
//! Every attempt to send carries its own number as its nickname, so that it can be told from another attempt with the
//! same key and text. The actors run on threads of their own, so that a list is not replayed to the same turn; what once
//! failed is kept in `proptest-regressions` and tried first.
//!
//! `PROPTEST_CASES=2000 cargo test -p chatting-actors model` tries more of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    panic,
    sync::{Arc, Once, atomic::Ordering},
    time::Duration,
};

use chatting_actors::{
    outcome::{Accepted, Outcome, Refusal},
    registry::RegistryConfig,
    types::Event,
    writer::{SpoolFailure, WriterConfig},
};
use proptest::{
    prelude::*,
    test_runner::{FileFailurePersistence, TestRunner},
};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    script::{Call, Commit, ScriptedSpool, ScriptedStore},
    stage::{Reader, Stage, registry_config, writer_config},
};

/// Cases without `PROPTEST_CASES`.
const CASES: u32 = 48;

/// Long enough for anything that comes at all.
const PATIENCE: Duration = Duration::from_secs(20);

const ROOMS: i64 = 3;
const USERS: i64 = 3;

#[derive(Clone, Debug)]
enum Op {
    /// So many messages from one sender at once.
    Send {
        presenter: i64,
        user: i64,
        count: usize,
        poison: bool,
    },
    /// A message with a key; keys are few, so that most are used again, some for another text.
    Keyed {
        presenter: i64,
        user: i64,
        key: u8,
        text: u8,
    },
    /// What the spool's next commits do.
    Commits(Vec<Commit>),
    /// The spool has no room, or has room again.
    Full(bool),
    /// So many of the spool's next other calls fail.
    SpoolFails(usize),
    /// What the store's next calls do.
    Calls(Vec<Call>),
    /// The store is gone, or is there again.
    Away(bool),
    /// A new session of the room; it takes over from the one before.
    Come(i64),
    Leave(i64),
    Stall(i64),
    GoOn(i64),
    /// Waits until everyone who sent has been answered.
    Settle,
    /// Waits until the spool is drained, if the store takes anything.
    Drain,
    Wait(u64),
    /// The registry panics; its sessions are gone.
    Panic,
    /// Another actor panics; nobody is told.
    PanicOf(Part),
    /// So many of the spool's next calls that are not commits panic.
    SpoolPanics(usize),
    /// The process stops as it should (what was appended is committed), or is killed, and starts again.
    Restart {
        kill: bool,
    },
}

/// What can panic beside the registry.
#[derive(Clone, Copy, Debug)]
enum Part {
    Checker,
    Writer,
    Spool(SpoolFailure),
}

/// Sizes that make each path a short one.
#[derive(Clone, Debug)]
struct Sizes {
    commit_max: usize,
    batch_max: usize,
    backlog_max: usize,
    credit_events: usize,
    asks_store: bool,
    /// `log.durability` is `memory`: answers come before the commit.
    memory: bool,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let presenter = || 1..=ROOMS;
    let user = || 1..=USERS;
    let call = prop_oneof![
        2 => Just(Call::Works),
        1 => prop_oneof![9 => 1..8_u64, 1 => Just(60)].prop_map(Call::Slow),
        1 => Just(Call::FailsBefore),
        1 => Just(Call::FailsAfter),
        2 => any::<u8>().prop_map(Call::FailsMidway),
    ];
    let op = prop_oneof![
        8 => (presenter(), user(), 1..6_usize, prop::bool::weighted(0.1)).prop_map(|(presenter, user, count, poison)| {
            Op::Send { presenter, user, count, poison }
        }),
        8 => (presenter(), user(), 0..4_u8, prop::bool::weighted(0.1)).prop_map(|(presenter, user, key, other)| {
            Op::Keyed { presenter, user, key, text: u8::from(other) }
        }),
        4 => prop::collection::vec(Commit::any(), 1..4).prop_map(Op::Commits),
        2 => any::<bool>().prop_map(Op::Full),
        1 => (1..4_usize).prop_map(Op::SpoolFails),
        3 => prop::collection::vec(call, 1..5).prop_map(Op::Calls),
        1 => any::<bool>().prop_map(Op::Away),
        2 => presenter().prop_map(Op::Come),
        1 => presenter().prop_map(Op::Leave),
        1 => presenter().prop_map(Op::Stall),
        1 => presenter().prop_map(Op::GoOn),
        3 => Just(Op::Settle),
        1 => Just(Op::Drain),
        2 => (1..5_u64).prop_map(Op::Wait),
        1 => Just(Op::Panic),
        2 => prop_oneof![
            Just(Part::Checker),
            Just(Part::Writer),
            Just(Part::Spool(SpoolFailure::Now)),
            Just(Part::Spool(SpoolFailure::BehindCommit)),
            Just(Part::Spool(SpoolFailure::BeforeTelling)),
        ].prop_map(Op::PanicOf),
        1 => (1..3_usize).prop_map(Op::SpoolPanics),
        2 => any::<bool>().prop_map(|kill| Op::Restart { kill }),
    ];
    prop::collection::vec(op, 1..50)
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let commit_max = prop_oneof![1..4_usize, Just(1024)];
    let batch_max = prop_oneof![1..5_usize, Just(100)];
    let backlog_max = prop_oneof![0..10_usize, Just(1000)];
    let credit_events = prop_oneof![1..6_usize, Just(64)];
    let memory = prop::bool::weighted(0.25);
    (commit_max, batch_max, backlog_max, credit_events, any::<bool>(), memory).prop_map(
        |(commit_max, batch_max, backlog_max, credit_events, asks_store, memory)| Sizes {
            commit_max,
            batch_max,
            backlog_max,
            credit_events,
            asks_store,
            memory,
        },
    )
}

type Key = (i64, i64, u8);

/// What one attempt to send came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Accepted(Accepted),
    /// It was not accepted and never will be.
    Refused(Refusal),
    /// It may be in the log or not.
    Unknown,
}

struct Attempt {
    presenter: i64,
    text: String,
    key: Option<Key>,
    /// How often the registry had begun anew when it was sent.
    life: u32,
    told: Option<Told>,
}

struct Case {
    sizes: Sizes,
    spool: ScriptedSpool,
    store: ScriptedStore,
    /// `None` only between a stop and the next start.
    stage: Option<Stage>,
    attempts: Vec<Attempt>,
    pending: Vec<(usize, oneshot::Receiver<Outcome>)>,
    /// All sessions that ever were, by room, in the order in which they came.
    readers: BTreeMap<i64, Vec<Arc<Reader>>>,
    /// The first text that each key was used for.
    keys: BTreeMap<Key, u8>,
    /// Restarts and panics so far: what was held for a session before is in the log only.
    life: u32,
}

impl Case {
    fn start(sizes: Sizes) -> Self {
        let (spool, store) = (ScriptedSpool::default(), ScriptedStore::default());
        spool.script().asks_store = sizes.asks_store;
        let mut case = Self {
            sizes,
            spool,
            store,
            stage: None,
            attempts: Vec::new(),
            pending: Vec::new(),
            readers: BTreeMap::new(),
            keys: BTreeMap::new(),
            life: 0,
        };
        case.run_stage();
        case
    }

    fn run_stage(&mut self) {
        let registry = RegistryConfig {
            credit_events: self.sizes.credit_events,
            sweep: Duration::from_millis(5),
            ..registry_config()
        };
        let writer = WriterConfig {
            commit_max: self.sizes.commit_max,
            batch_max: self.sizes.batch_max,
            batch_enough: self.sizes.batch_max,
            backlog_max: self.sizes.backlog_max,
            answer_first: self.sizes.memory,
            ..writer_config()
        };
        self.stage = Some(Stage::with(self.spool.clone(), self.store.clone(), registry, writer));
        for presenter in 1..=ROOMS {
            self.come(presenter);
        }
    }

    fn stage(&self) -> &Stage {
        self.stage.as_ref().unwrap()
    }

    fn come(&mut self, presenter: i64) {
        let reader = self.stage().reader(presenter);
        self.readers.entry(presenter).or_default().push(reader);
    }

    fn reader(&self, presenter: i64) -> &Reader {
        self.readers[&presenter].last().unwrap()
    }

    fn send(&mut self, presenter: i64, user: i64, text: String, key: Option<Key>) -> usize {
        let number = self.attempts.len();
        let named = key.map(|(_, _, key)| key.to_string());
        let outcome = self
            .stage()
            .submit_as(user, &number.to_string(), presenter, &text, named.as_deref());
        self.pending.push((number, outcome));
        self.attempts.push(Attempt {
            presenter,
            text,
            key,
            life: self.life,
            told: None,
        });
        number
    }

    fn keyed(&mut self, (presenter, user, key): Key, text: u8) -> usize {
        self.keys.entry((presenter, user, key)).or_insert(text);
        let text = format!("{presenter} {user} {key} {text}");
        // One key in four is of messages that the store never takes.
        if key == 3 && !self.store.script().poison.contains(&text) {
            self.store.script().poison.push(text.clone());
        }
        self.send(presenter, user, text, Some((presenter, user, key)))
    }

    fn told(&mut self, number: usize, outcome: Option<Outcome>) {
        self.attempts[number].told = Some(match outcome {
            Some(Outcome::Accepted(accepted)) => Told::Accepted(accepted),
            None | Some(Outcome::Refused(Refusal::OutcomeUnknown)) => Told::Unknown,
            Some(Outcome::Refused(refusal)) => Told::Refused(refusal),
        });
    }

    async fn settle(&mut self) {
        for (number, outcome) in std::mem::take(&mut self.pending) {
            let Ok(outcome) = timeout(PATIENCE, outcome).await else {
                panic!("attempt {number} was never answered");
            };
            self.told(number, outcome.ok());
        }
    }

    async fn drained(&self) {
        let flush = self.stage().parts.flush();
        assert!(timeout(PATIENCE, flush).await.is_ok(), "the spool never drained");
    }

    fn spool_works(&self) {
        let mut script = self.spool.script();
        script.killed = false;
        script.full = false;
        script.commits.clear();
        script.failing = 0;
        script.panicking = 0;
    }

    /// Waits until the spool, if it failed, has been found to work again.
    async fn writable(&self) {
        let again = async {
            while !self.stage().writer.writable() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(
            timeout(PATIENCE, again).await.is_ok(),
            "the spool was never tried again"
        );
    }

    /// Waits until the spool has had everything that was accepted: from memory it is answered before it is written.
    async fn written(&self) {
        let all = || {
            let spool = self.spool.script();
            let ids: BTreeSet<_> = spool
                .keys
                .iter()
                .chain(spool.rows.values())
                .map(|event| event.id)
                .collect();
            drop(spool);
            self.attempts.iter().all(|attempt| match &attempt.told {
                Some(Told::Accepted(accepted)) => ids.contains(&accepted.id),
                _ => true,
            })
        };
        let written = async {
            while !all() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // Where it never comes, `judge` says what was lost.
        let _ = timeout(PATIENCE, written).await;
    }

    async fn restart(&mut self, kill: bool) {
        if self.sizes.memory {
            // What was answered from memory is promised only where the process stops as it should, over a spool that works.
            self.spool_works();
        } else {
            self.spool.script().killed = kill;
        }
        drop(self.stage.take());
        // Nobody is left to answer.
        for (number, mut outcome) in std::mem::take(&mut self.pending) {
            self.told(number, outcome.try_recv().ok());
        }
        // A file that could not be opened can be, or there is no start.
        self.spool_works();
        self.life += 1;
        self.run_stage();
    }

    async fn panic(&mut self) {
        let watch = self.stage().registry_watch.clone();
        let before = watch.restarts();
        self.stage().registry.panic_now();
        let again = async {
            while watch.restarts() == before || !watch.alive() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(timeout(PATIENCE, again).await.is_ok(), "no registry was made anew");
        self.life += 1;
        for presenter in 1..=ROOMS {
            self.come(presenter);
        }
    }

    async fn act(&mut self, op: Op) {
        match op {
            Op::Send {
                presenter,
                user,
                count,
                poison,
            } => {
                for _ in 0..count {
                    let text = format!("message {}", self.attempts.len());
                    if poison {
                        self.store.script().poison.push(text.clone());
                    }
                    self.send(presenter, user, text, None);
                }
                // They are on their way before what comes next is: one panic takes them along, another does not find them.
                tokio::task::yield_now().await;
            }
            Op::Keyed {
                presenter,
                user,
                key,
                text,
            } => {
                self.keyed((presenter, user, key), text);
                tokio::task::yield_now().await;
            }
            Op::Commits(commits) => self.spool.script().commits.extend(commits),
            Op::Full(full) => self.spool.script().full = full,
            Op::SpoolFails(calls) => self.spool.script().failing += calls,
            Op::Calls(calls) => self.store.script().calls.extend(calls),
            Op::Away(away) => self.store.script().away = away,
            Op::Come(presenter) => self.come(presenter),
            Op::Leave(presenter) => self.reader(presenter).leave(),
            Op::Stall(presenter) => self.reader(presenter).stalled.store(true, Ordering::Release),
            Op::GoOn(presenter) => self.reader(presenter).go_on(),
            Op::Settle => self.settle().await,
            Op::Drain => {
                let away = self.store.script().away;
                if !away {
                    self.drained().await;
                }
            }
            Op::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Op::Panic => self.panic().await,
            Op::PanicOf(Part::Checker) => self.stage().checker.panic_now(),
            Op::PanicOf(Part::Writer) => self.stage().parts.panic_now(),
            Op::PanicOf(Part::Spool(failure)) => self.stage().writer.panic_spool(failure),
            Op::SpoolPanics(calls) => self.spool.script().panicking += calls,
            Op::Restart { kill } => self.restart(kill).await,
        }
    }

    /// Everything works again; who used a key uses it once more, until it is accepted.
    async fn finish(&mut self) {
        {
            let mut script = self.store.script();
            script.away = false;
            script.calls.clear();
        }
        self.settle().await;
        self.spool_works();
        for presenter in 1..=ROOMS {
            self.come(presenter);
        }
        for (key, first) in self.keys.clone() {
            let mut accepted = false;
            let mut text = first;
            for _ in 0..2000 {
                let number = self.keyed(key, text);
                self.settle().await;
                match &self.attempts[number].told {
                    Some(Told::Accepted(_)) => {
                        accepted = true;
                        break;
                    }
                    // The other text was accepted with it.
                    Some(Told::Refused(Refusal::IdempotencyConflict)) => text = 1 - text,
                    _ => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
            assert!(accepted, "key {key:?} is never accepted");
        }
        self.writable().await;
        self.written().await;
        self.drained().await;
        let given = async {
            while !self.not_given().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(PATIENCE, given).await.is_err() {
            panic!("no session was given what was accepted: {:?}", self.not_given());
        }
        let given_back = async {
            while self.permits() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(
            timeout(PATIENCE, given_back).await.is_ok(),
            "permits that nobody gave back"
        );
    }

    /// What is still out of the permits of the registry and of the writer.
    fn permits(&self) -> usize {
        let stage = self.stage();
        let writer: usize = stage.writer.gates().map(|gate| gate.depth()).iter().sum();
        writer + stage.registry.gate().depth()
    }

    /// What was accepted since the last restart and given to no session; all have read on since.
    fn not_given(&self) -> Vec<(i64, u64)> {
        let mut seen = BTreeSet::new();
        for (presenter, readers) in &self.readers {
            seen.extend(
                readers
                    .iter()
                    .flat_map(|reader| reader.seqs())
                    .map(|seq| (*presenter, seq)),
            );
        }
        let accepted = self.attempts.iter().filter_map(|attempt| match &attempt.told {
            // The answer to a key may be of an earlier life.
            Some(Told::Accepted(accepted)) if attempt.life == self.life && attempt.key.is_none() => {
                Some((attempt.presenter, accepted.seq.0))
            }
            _ => None,
        });
        accepted.filter(|place| !seen.contains(place)).collect()
    }

    /// What must hold, whatever happened.
    fn judge(&self) {
        let (spool, store) = (self.spool.script(), self.store.script());
        assert!(spool.rows.is_empty(), "left in the spool: {:?}", spool.rows);
        let twice = spool.written_twice();
        assert!(twice.is_empty(), "in the spool twice: {twice:?}");
        let mut log: Vec<&Event> = store.events.values().map(Arc::as_ref).collect();
        for (event, reason) in &spool.parked {
            assert_eq!(reason, "scripted", "parked: {event:?}");
            log.push(event.as_ref());
        }
        log.sort_by_key(|event| (event.presenter_idx.get(), event.seq));
        for presenter in 1..=ROOMS {
            let of_room = log.iter().filter(|event| event.presenter_idx.get() == presenter);
            let mut last_ms = 0;
            for (n, event) in of_room.enumerate() {
                assert_eq!(event.seq.0, n as u64 + 1, "room {presenter} has a hole or a double");
                assert!(event.sent_at_ms >= last_ms, "time went back: {event:?}");
                last_ms = event.sent_at_ms;
            }
        }
        self.senders(&log);
        self.sessions(&log);
    }

    /// What each sender was told is what the log has.
    fn senders(&self, log: &[&Event]) {
        let (mut by_attempt, mut by_key) = (HashMap::new(), HashMap::new());
        for event in log {
            let number: usize = event.chat.nickname.as_str().parse().unwrap();
            assert!(
                by_attempt.insert(number, *event).is_none(),
                "attempt {number} is in the log twice"
            );
            if let Some(key) = self.attempts[number].key {
                assert!(by_key.insert(key, *event).is_none(), "key {key:?} was accepted twice");
            }
        }
        for (number, attempt) in self.attempts.iter().enumerate() {
            match attempt.told.as_ref().unwrap() {
                Told::Accepted(accepted) => {
                    let event = match attempt.key {
                        Some(key) => by_key.get(&key),
                        None => by_attempt.get(&number),
                    };
                    let Some(event) = event else {
                        panic!("attempt {number} was accepted and lost: {accepted:?}");
                    };
                    assert_eq!(
                        (event.id, event.seq, event.sent_at_ms, event.chat.text.as_str()),
                        (accepted.id, accepted.seq, accepted.sent_at_ms, attempt.text.as_str()),
                        "attempt {number} was told another place than it has"
                    );
                    assert_eq!(event.presenter_idx.get(), attempt.presenter);
                }
                Told::Refused(refusal) => assert!(
                    !by_attempt.contains_key(&number),
                    "attempt {number} was refused ({refusal:?}) and is in the log"
                ),
                Told::Unknown => {}
            }
        }
    }

    /// What each session was given is in the log, in its order, and to one session only.
    fn sessions(&self, log: &[&Event]) {
        for (presenter, readers) in &self.readers {
            let texts: BTreeMap<u64, &str> = log
                .iter()
                .filter(|event| event.presenter_idx.get() == *presenter)
                .map(|event| (event.seq.0, event.chat.text.as_str()))
                .collect();
            let mut seen = BTreeSet::new();
            for reader in readers {
                let mut last = 0;
                for (seq, text) in reader.seen() {
                    assert!(seq > last, "room {presenter}: {seq} came after {last}");
                    last = seq;
                    assert!(seen.insert(seq), "room {presenter}: {seq} was given twice");
                    assert_eq!(texts.get(&seq), Some(&text.as_str()), "room {presenter}: {seq}");
                }
            }
        }
    }
}

async fn try_out(sizes: Sizes, ops: Vec<Op>) {
    let mut case = Case::start(sizes);
    for op in ops {
        case.act(op).await;
    }
    case.finish().await;
    case.judge();
}

/// The planned panics of the registry would drown what a failing case says.
pub fn hush_planned_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if info.payload_as_str() != Some("planned") {
                usual(info);
            }
        }));
    });
}

#[test]
fn what_was_answered_is_what_the_log_has_whatever_failed() {
    hush_planned_panics();
    let mut config = ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/proptest-regressions/model.txt"
        )))),
        max_shrink_iters: 400,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let system = actix::System::new();
    let run = TestRunner::new(config).run(&(sizes(), ops()), |(sizes, ops)| {
        system.block_on(try_out(sizes, ops));
        Ok(())
    });
    if let Err(failed) = run {
        panic!("{failed}");
    }
}

fn plain(memory: bool) -> Sizes {
    Sizes {
        commit_max: 1024,
        batch_max: 100,
        backlog_max: 1000,
        credit_events: 64,
        asks_store: false,
        memory,
    }
}

fn send(presenter: i64) -> Op {
    Op::Send {
        presenter,
        user: 1,
        count: 3,
        poison: false,
    }
}

#[actix::test]
async fn what_an_unknown_commit_wrote_reaches_the_store_though_nothing_is_sent_after_it() {
    let unknown = Op::Commits(vec![Commit::FailsUnknownWith]);
    try_out(plain(false), vec![send(1), Op::Settle, unknown, send(1)]).await;
}

#[actix::test]
async fn what_was_answered_from_memory_keeps_its_numbers_when_the_registry_fails_before_it_is_written() {
    hush_planned_panics();
    let ops = vec![
        send(1),
        Op::Settle,
        Op::Full(true),
        send(1),
        Op::Settle,
        Op::Panic,
        send(1),
    ];
    let full_for_a_while = [Op::Wait(20), Op::Full(false), Op::Wait(20), send(1)];
    try_out(plain(true), ops.into_iter().chain(full_for_a_while).collect()).await;
}

#[actix::test]
async fn what_was_answered_from_memory_is_written_once_though_the_first_attempt_is_unknown() {
    let unknown = Op::Commits(vec![Commit::FailsUnknownWith]);
    try_out(
        plain(true),
        vec![send(1), Op::Settle, unknown, send(1), send(2), send(1)],
    )
    .await;
}
