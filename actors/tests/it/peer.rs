//! A client and its sessions, without a socket: what the registry sends is queued as in a session's mailbox, read in that
//! order or not at all, and written down for a judge.
//!
//! A [`Peer`] is one session. It keeps the habits of the real one: what it takes it takes through the flow, and what it is
//! told after its end it does not read. Whatever a peer sees that must not be is in [`Peer::wrong`]; it does not panic, because
//! it is called on the registry's thread.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use chatting_actors::{
    registry::{Batch, End, Reading, RegistryHandle, Resume, SessionId, Subscriber, Welcome},
    session::Flow,
    types::Seq,
};

use crate::stage::{room, until};

/// The epoch of every stage.
pub const EPOCH: &str = "e";

/// A v1 reading that goes on behind `after`.
pub fn v1(after: Option<u64>) -> Reading {
    Reading::V1(Resume {
        epoch: Some(EPOCH.into()),
        after: after.map(Seq),
    })
}

/// A v1 client that always goes on from what it has, over all its sessions.
#[derive(Debug, Default)]
pub struct Client {
    /// The last event that it has, or was told that it cannot have.
    pub have: Option<u64>,
    /// The first event that was ever promised to it.
    pub since: u64,
    pub seen: BTreeSet<u64>,
    /// What it was told that it cannot have.
    pub gaps: Vec<(u64, u64)>,
    /// How many sessions it began: it listens to the last one only.
    sessions: usize,
}

impl Client {
    pub fn missed(&self, seq: u64) -> bool {
        self.gaps.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }

    fn welcome(&mut self, asked: Option<u64>, welcome: &Welcome) {
        let first = welcome.resumed_from.0;
        if asked.unwrap_or(0) == 0 {
            // It has nothing yet: the server says where it begins.
            self.since = first;
        } else if let Some(gap) = welcome.gap {
            self.gaps.push((gap.from.0, gap.to.0));
        }
        self.have = self.have.max(Some(first - 1));
    }
}

/// One event that a peer took.
#[derive(Clone, Debug)]
pub struct Taken {
    /// On the clock of all peers: not later than this it was taken.
    pub at: u64,
    pub seq: u64,
    pub text: String,
}

#[derive(Debug)]
enum Frame {
    Welcome(Welcome),
    Events(Batch),
    Close,
}

#[derive(Debug, Default)]
struct State {
    session: Option<SessionId>,
    frames: VecDeque<Frame>,
    /// It reads nothing.
    stalled: bool,
    /// It acknowledges whatever it reads.
    acks: bool,
    /// Its client is gone, and nobody has noticed: it takes events for nobody.
    deserted: bool,
    /// It has ended, and the registry was told.
    over: bool,
    /// Every event that was queued to it.
    queued: Vec<u64>,
    /// On the clock of all peers: not before this each of them was.
    queued_at: Vec<u64>,
    /// When it was welcomed, and when it was told to close: queued, not read.
    welcomed_at: Option<u64>,
    told: Option<End>,
    /// [`Shared::claimed`] when it was welcomed.
    claimed: u64,
    welcome: Option<Welcome>,
    taken: Vec<Taken>,
    acked: u64,
    flushed: usize,
    /// It said what ends it with `BadFrame`.
    said_wrong: bool,
    wrong: Vec<String>,
}

/// What all peers of a room share.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// Orders what the peers of a room saw.
    pub clock: Arc<AtomicU64>,
    /// The greatest seq that anyone said to have, or took (legacy).
    pub claimed: Arc<AtomicU64>,
}

/// See the module's text.
pub struct Peer {
    registry: RegistryHandle,
    pub reading: Reading,
    client: Option<Arc<Mutex<Client>>>,
    /// Which of its client's sessions it is.
    number: usize,
    shared: Shared,
    credit: usize,
    flow: Arc<Flow>,
    state: Mutex<State>,
}

/// Which event an ack names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// The last that it took.
    Exact,
    /// One of those that it took.
    Partial(usize),
    /// One below what it acknowledged before.
    Stale,
    /// One that it was never sent.
    Above,
}

impl Peer {
    /// Connects and attaches to a room. `credit` is what must not be exceeded.
    pub fn come(
        registry: &RegistryHandle,
        presenter: i64,
        reading: Reading,
        credit: usize,
        shared: Shared,
        client: Option<Arc<Mutex<Client>>>,
    ) -> Arc<Self> {
        Self::begin(registry, presenter, reading, credit, shared, (client, true))
    }

    /// As [`Self::come`], and from the first event on it acknowledges nothing by itself.
    pub fn come_silent(registry: &RegistryHandle, presenter: i64, reading: Reading, credit: usize) -> Arc<Self> {
        Self::begin(registry, presenter, reading, credit, Shared::default(), (None, false))
    }

    fn begin(
        registry: &RegistryHandle,
        presenter: i64,
        reading: Reading,
        credit: usize,
        shared: Shared,
        (client, acks): (Option<Arc<Mutex<Client>>>, bool),
    ) -> Arc<Self> {
        let flow = Arc::new(Flow::default());
        let number = client.as_ref().map_or(0, |client| {
            let mut client = client.lock().unwrap();
            client.sessions += 1;
            client.sessions
        });
        let peer = Arc::new(Self {
            registry: registry.clone(),
            reading: reading.clone(),
            client,
            number,
            shared,
            credit,
            flow: Arc::clone(&flow),
            state: Mutex::new(State {
                acks,
                ..State::default()
            }),
        });
        if let Some(after) = peer.resume_after() {
            peer.shared.claimed.fetch_max(after, SeqCst);
        }
        let mut state = peer.state();
        let session = registry.connect(Arc::clone(&peer) as Arc<dyn Subscriber>);
        state.session = Some(session);
        drop(state);
        registry.attach(session, room(presenter), flow, reading);
        peer
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Says `start` again on the same socket (legacy).
    pub fn starts_again(&self, presenter: i64) {
        let session = self.state().session.unwrap();
        let flow = Arc::new(Flow::default());
        self.registry
            .attach(session, room(presenter), flow, self.reading.clone());
    }

    pub fn is_v1(&self) -> bool {
        self.reading.is_v1()
    }

    /// The `resume_after` that counts.
    pub fn resume_after(&self) -> Option<u64> {
        match &self.reading {
            Reading::V1(resume) if resume.epoch.as_deref().is_none_or(|epoch| epoch == EPOCH) => {
                resume.after.map(|after| after.0)
            }
            _ => None,
        }
    }

    pub fn taken(&self) -> Vec<Taken> {
        self.state().taken.clone()
    }

    pub fn seqs(&self) -> Vec<u64> {
        self.state().taken.iter().map(|taken| taken.seq).collect()
    }

    pub fn queued(&self) -> Vec<u64> {
        self.state().queued.clone()
    }

    /// Every event that was queued to it, behind when on the clock of all peers.
    pub fn queued_at(&self) -> Vec<(u64, u64)> {
        let state = self.state();
        state
            .queued_at
            .iter()
            .copied()
            .zip(state.queued.iter().copied())
            .collect()
    }

    /// The welcome that it has read.
    pub fn welcome(&self) -> Option<Welcome> {
        self.state().welcome.clone()
    }

    /// When a welcome was queued to it, or it first took something.
    pub fn began_at(&self) -> Option<u64> {
        let state = self.state();
        state.welcomed_at.or(state.taken.first().map(|taken| taken.at))
    }

    /// What anyone had, as far as anyone had said, when it was welcomed.
    pub fn claimed(&self) -> u64 {
        self.state().claimed
    }

    /// What the registry told it to close for, read or not.
    pub fn told(&self) -> Option<End> {
        self.state().told
    }

    pub fn over(&self) -> bool {
        self.state().over
    }

    pub fn said_wrong(&self) -> bool {
        self.state().said_wrong
    }

    pub fn wrong(&self) -> Vec<String> {
        self.state().wrong.clone()
    }

    pub fn stall(&self) {
        self.state().stalled = true;
    }

    /// Acknowledges by itself, or does not.
    pub fn acks(&self, acks: bool) {
        self.state().acks = acks;
    }

    /// Reads again, and first what came while it did not.
    pub fn go_on(&self) {
        let mut state = self.state();
        state.stalled = false;
        self.read(&mut state);
    }

    /// Its client vanishes, and the server does not hear of it.
    pub fn desert(&self) {
        self.state().deserted = true;
    }

    /// Its socket closes, and the server hears of it.
    pub fn leave(&self) {
        self.end(&mut self.state());
    }

    /// Its server's process is gone.
    pub fn die(&self) {
        self.state().over = true;
    }

    pub fn ack(&self, ack: Ack) {
        let mut state = self.state();
        if !self.is_v1() || state.over {
            return;
        }
        let last = state.taken.last().map(|taken| taken.seq);
        let seq = match ack {
            Ack::Exact => last,
            Ack::Partial(which) => {
                let count = state.taken.len().max(1);
                state.taken.get(which % count).map(|taken| taken.seq)
            }
            Ack::Stale => state.acked.checked_sub(1),
            Ack::Above => {
                state.said_wrong = true;
                // Above anything that may still be under way to it.
                let session = state.session.unwrap();
                self.registry.ack(session, Seq(1_000_000), None);
                None
            }
        };
        if let Some(seq) = seq {
            self.acknowledge(&mut state, seq);
        }
    }

    fn acknowledge(&self, state: &mut State, seq: u64) {
        self.shared.claimed.fetch_max(seq, SeqCst);
        state.acked = state.acked.max(seq);
        self.registry.ack(state.session.unwrap(), Seq(seq), Some(3));
    }

    /// Returns when it has been welcomed, and with what.
    pub async fn welcomed(&self) -> Welcome {
        until("a welcome", || self.welcome().is_some()).await;
        self.welcome().unwrap()
    }

    /// Returns when it was told to close, and why.
    pub async fn closed(&self) -> End {
        until("an end", || self.told().is_some()).await;
        self.told().unwrap()
    }

    /// Returns when the last event that it took is this one.
    pub async fn has(&self, seq: u64) {
        until(&format!("event {seq}"), || self.seqs().last() == Some(&seq)).await;
    }

    fn end(&self, state: &mut State) {
        if !std::mem::replace(&mut state.over, true) {
            self.flow.end();
            self.registry.gone(state.session.unwrap());
        }
    }

    fn queue(&self, frame: Frame) {
        let mut state = self.state();
        state.frames.push_back(frame);
        self.read(&mut state);
    }

    fn read(&self, state: &mut State) {
        while !state.stalled
            && !state.over
            && let Some(frame) = state.frames.pop_front()
        {
            match frame {
                Frame::Welcome(welcome) => self.read_welcome(state, welcome),
                Frame::Events(batch) => self.read_events(state, &batch),
                Frame::Close => self.end(state),
            }
        }
    }

    /// The client, if it listens to this session.
    fn listening(&self, state: &State) -> Option<MutexGuard<'_, Client>> {
        let client = self.client.as_ref().filter(|_| !state.deserted)?.lock().unwrap();
        (client.sessions == self.number).then_some(client)
    }

    fn read_welcome(&self, state: &mut State, welcome: Welcome) {
        if let Some(mut client) = self.listening(state) {
            client.welcome(self.resume_after(), &welcome);
        }
        if !self.is_v1() || state.welcome.replace(welcome).is_some() {
            state.wrong.push("a second welcome, or one in legacy".into());
        }
    }

    fn read_events(&self, state: &mut State, batch: &Batch) {
        let at = self.shared.clock.fetch_add(1, SeqCst);
        let last = batch.entries.last().unwrap().event.seq.0;
        if !self.is_v1() {
            self.shared.claimed.fetch_max(last, SeqCst);
        }
        if !batch.take() {
            return;
        }
        for entry in &batch.entries {
            let seq = entry.event.seq.0;
            let before = state.taken.last().map(|taken| taken.seq);
            let fits = match (self.is_v1(), &state.welcome) {
                // No hole, no repetition, nothing before the welcome.
                (true, Some(welcome)) => seq == before.map_or(welcome.resumed_from.0, |before| before + 1),
                (true, None) => false,
                (false, _) => before.is_none_or(|before| seq > before),
            };
            if !fits {
                let welcome = &state.welcome;
                state.wrong.push(format!("{seq} came after {before:?}, {welcome:?}"));
            }
            let text = entry.event.chat.text.as_str().to_owned();
            state.taken.push(Taken { at, seq, text });
        }
        if state.deserted {
            return;
        }
        if let Some(mut client) = self.listening(state) {
            client.seen.extend(batch.entries.iter().map(|entry| entry.event.seq.0));
            client.have = client.have.max(Some(last));
        }
        if !self.is_v1() {
            state.flushed += batch.entries.len();
            if batch.flow.flush(batch.entries.len() as u64) {
                self.registry.flushed(state.session.unwrap());
            }
        } else if state.acks {
            self.acknowledge(state, last);
        }
    }
}

impl Subscriber for Peer {
    fn deliver(&self, batch: Batch) {
        let mut state = self.state();
        let at = self.shared.clock.fetch_add(1, SeqCst);
        state.queued.extend(batch.entries.iter().map(|entry| entry.event.seq.0));
        state.queued_at.extend(batch.entries.iter().map(|_| at));
        let unsettled = if self.is_v1() {
            state.queued.iter().filter(|seq| **seq > state.acked).count()
        } else {
            state.queued.len() - state.flushed
        };
        if unsettled > self.credit {
            state.wrong.push(format!("{unsettled} are under way"));
        }
        if let Some(end) = state.told.filter(|end| *end != End::GoingAway) {
            state.wrong.push(format!("sent to after it was ended: {end:?}"));
        }
        if self.is_v1() && state.welcomed_at.is_none() {
            state.wrong.push("sent to before its welcome".into());
        }
        drop(state);
        self.queue(Frame::Events(batch));
    }

    fn welcome(&self, welcome: Welcome) {
        let mut state = self.state();
        state.welcomed_at = Some(self.shared.clock.fetch_add(1, SeqCst));
        state.claimed = self.shared.claimed.load(SeqCst);
        let first = welcome.resumed_from.0;
        let (from, to) = welcome.gap.map_or((first, first - 1), |gap| (gap.from.0, gap.to.0));
        let asked = self.resume_after().filter(|after| *after > 0);
        if from > first || to + 1 != first || asked.is_some_and(|after| from != after + 1) {
            state.wrong.push(format!("welcome to {asked:?}: {welcome:?}"));
        }
        drop(state);
        self.queue(Frame::Welcome(welcome));
    }

    fn close(&self, end: End) {
        let mut state = self.state();
        if state.told.replace(end).is_some() {
            state.wrong.push(format!("ended twice: {end:?}"));
        }
        drop(state);
        self.queue(Frame::Close);
    }

    fn shut(&self) {
        self.end(&mut self.state());
    }
}
