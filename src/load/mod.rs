//! The load tool: what does this box hold?
//!
//! Plain sockets and hand-made requests, so that it costs little beside the server that it measures. Senders post v1 messages
//! in a closed loop, or at a rate (open loop: latency counts from the time a message was due, so that a server that stalls is
//! not spared the messages that would have come meanwhile). Every presenter's WebSocket counts what it gets.

mod ledger;
mod presenter;
mod report;
mod seen;
mod sender;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use actix_web::rt::task::JoinHandle;
use chatting_actors::clock::system_ms;
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

pub use self::report::Report;
use self::{
    ledger::{Answer, Came, Ledger},
    seen::Seen,
};

/// What presenters speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Speaks {
    /// The original server's protocol.
    Legacy,
    /// Dialect v1; every message is acknowledged.
    V1,
    /// Another server's, for comparisons: a WebSocket at `/rooms/<room>` that gets each message's body as it was posted.
    Plain,
}

/// Presenters that log in and then read nothing, each in a room of its own that is sent to as well.
#[derive(Clone, Debug, Default)]
pub struct Stalled {
    /// A token for each; their rooms come behind the others.
    pub tokens: Vec<String>,
    /// Messages a second to their rooms, over all; they count for nothing but load.
    pub rate: u64,
    /// Bytes of those messages' texts.
    pub text_bytes: usize,
}

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub addr: SocketAddr,
    /// Rooms, of presenters `first_room`, `first_room + 1`, …
    pub rooms: u64,
    /// The first presenter's number.
    pub first_room: u64,
    /// Connections that send.
    pub senders: u64,
    /// Messages in all, if the time is not over first; `None`: as many as there is time for.
    pub messages: Option<u64>,
    /// Messages a second over all senders; `None`: each sends as soon as it was answered.
    pub rate: Option<u64>,
    /// How long messages are sent.
    pub duration: Duration,
    /// How long after that a server may take for what was due by then.
    pub patience: Duration,
    /// Bytes of a message's text, at least as much as its stamp needs.
    pub text_bytes: usize,
    /// Each message has an `Idempotency-Key` of its own.
    pub keys: bool,
    /// A presenter's token for each room; none where nobody is to present.
    pub presenter_tokens: Vec<String>,
    /// Tokens of users; messages are theirs in turn.
    pub sender_tokens: Vec<String>,
    /// What presenters speak.
    pub speaks: Speaks,
    /// Presenters that read nothing.
    pub stalled: Stalled,
    /// Print a line a second.
    pub progress: bool,
    /// Wait for a word on standard input before the first message is sent.
    pub waits: bool,
}

impl Plan {
    /// What is sent to the rooms of presenters that read nothing, for as long as anything is sent: `messages` are those that count.
    fn burden(&self) -> Self {
        Self {
            first_room: self.first_room + self.rooms,
            rooms: self.stalled.tokens.len() as u64,
            messages: None,
            rate: Some(self.stalled.rate),
            text_bytes: self.stalled.text_bytes,
            ..self.clone()
        }
    }
}

/// Presenters who stay connected until this is dropped.
pub struct Connected(Vec<JoinHandle<()>>);

impl Drop for Connected {
    fn drop(&mut self) {
        for presenter in &self.0 {
            presenter.abort();
        }
    }
}

/// What was counted so far.
pub(crate) struct Counts {
    pub began: Instant,
    /// This process's CPU until then, in microseconds.
    pub cpu_before_us: f64,
    /// What this run's messages begin with, so that what another one left behind in the rooms is not taken for them.
    pub run: u64,
    rooms: u64,
    senders: u64,
    pub sent: u64,
    pub accepted: u64,
    pub refused: u64,
    /// How often each status was answered.
    pub statuses: BTreeMap<u16, u64>,
    /// How often each status and code was answered to what was refused.
    pub reasons: BTreeMap<String, u64>,
    pub failed: u64,
    pub delivered: u64,
    /// Messages that another run, or somebody else, sent to these rooms.
    pub of_others: u64,
    pub out_of_order: u64,
    pub doubled: u64,
    /// Came to the presenter of another room.
    pub misrouted: u64,
    /// Of those that were accepted, how many came.
    pub came: u64,
    /// Of those that were refused.
    pub came_refused: u64,
    /// Of those of which nobody knows.
    pub came_unknown: u64,
    /// Came so late that nothing is known of them any more.
    pub forgotten: u64,
    /// How often presenters' sessions ended, by close code.
    pub presenters_ended: BTreeMap<String, u64>,
    /// The room of each presenter.
    presented: Vec<Room>,
    ledger: Ledger,
    pub sender_us: Histogram<u64>,
    pub delivery_us: Histogram<u64>,
}

/// A room that is presented in.
#[derive(Default)]
struct Room {
    /// What its presenter has seen.
    seen: Seen,
    accepted: u64,
    /// Of those that were accepted, how many its presenter has seen.
    came: u64,
    /// Its presenter's session is over.
    ended: bool,
}

pub(crate) type Shared = Rc<RefCell<Counts>>;

/// The longest latency that is told apart: a minute.
const MAX_US: u64 = 60_000_000;

/// Runs are told apart by the millisecond of their beginning, for eleven days.
const RUNS: u64 = 1_000_000_000;

/// How long a server may take to let a presenter in, to end a room's broadcast, and by default to answer when the time is
/// over.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// SIGINT and SIGTERM, which end nothing by themselves once they are caught.
#[derive(Default)]
pub struct Interrupts(Option<(Signal, Signal)>);

impl Interrupts {
    /// Catches them from now on; of the default nobody hears. The error is the system's.
    pub fn caught() -> std::io::Result<Self> {
        Ok(Self(Some((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))))
    }

    /// Waits for the next one; for ever, where they are not caught.
    pub async fn next(&mut self) {
        let Some((interrupt, terminate)) = &mut self.0 else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// Tells senders to stop before the time is over.
#[derive(Default)]
pub(crate) struct Stop {
    now: Cell<bool>,
    told: Notify,
}

impl Stop {
    fn now(&self) {
        self.now.set(true);
        self.told.notify_waiters();
    }
}

/// Runs the plan on this thread; gives what came of it, and the presenters, who are still there. An interrupt ends the sending,
/// and the report is of what was sent. The error says what could not be reached.
pub async fn run(plan: Plan, interrupts: &mut Interrupts) -> Result<(Report, Connected), String> {
    let counts = Counts::shared(&plan)?;
    let plan = Rc::new(plan);
    let (presenters, stalled) = tokio::select! {
        connected = connect(&plan, &counts) => connected?,
        () = interrupts.next() => return Err("interrupted before the first message".into()),
    };
    if plan.waits {
        told("connected", interrupts).await;
    }
    {
        let mut counts = counts.borrow_mut();
        (counts.began, counts.cpu_before_us) = (Instant::now(), report::own_cpu_us());
    }
    let burden = burden(&plan)?;
    let stop = Rc::new(Stop::default());
    let mut senders: Vec<_> = (0..plan.senders)
        .map(|n| actix_web::rt::spawn(sender::send(n, Rc::clone(&plan), Rc::clone(&counts), Rc::clone(&stop))))
        .collect();
    let progress = plan
        .progress
        .then(|| actix_web::rt::spawn(report::progress(Rc::clone(&counts))));
    let (trouble, interrupted) = ended(&mut senders, &plan, &counts, &stop, interrupts).await;
    let (sending, busy) = {
        let counts = counts.borrow();
        (counts.began.elapsed(), counts.busy())
    };
    for sender in senders {
        sender.abort();
    }
    counts.borrow_mut().unanswered(plan.senders);
    wait_for_the_last(&counts, interrupts).await;
    for sender in burden {
        sender.abort();
    }
    drop(stalled);
    if let Some(progress) = progress {
        progress.abort();
    }
    let report = Report::new(&plan, &counts.borrow(), (sending, busy), interrupted, trouble);
    match &report.trouble {
        Some(error) if report.accepted == 0 => Err(error.clone()),
        _ => Ok((report, presenters)),
    }
}

/// Who presents, and who presents and reads nothing.
async fn connect(plan: &Plan, counts: &Shared) -> Result<(Connected, Vec<presenter::Socket>), String> {
    let connect = async |room, token, buffer| presenter::connect(plan.addr, room, token, plan.speaks, buffer).await;
    let mut presenters = Vec::new();
    for (room, token) in (plan.first_room..).zip(&plan.presenter_tokens) {
        let socket = connect(room, token, None).await?;
        counts.borrow_mut().presented.push(Room::default());
        let counted = presenter::count(socket, plan.speaks, presenters.len() as u64, Rc::clone(counts));
        presenters.push(actix_web::rt::spawn(counted));
    }
    let mut stalled = Vec::new();
    for (room, token) in (plan.first_room + plan.rooms..).zip(&plan.stalled.tokens) {
        // A small buffer, so that it is full soon.
        stalled.push(connect(room, token, Some(4096)).await?);
    }
    Ok((Connected(presenters), stalled))
}

/// Waits until all have sent, and no longer for what is late than `plan.patience`. Says what is wrong with how it ended, and whether
/// it was interrupted.
async fn ended(
    senders: &mut [JoinHandle<Result<(), String>>],
    plan: &Plan,
    counts: &Shared,
    stop: &Stop,
    interrupts: &mut Interrupts,
) -> (Option<String>, bool) {
    let (count, patience) = (senders.len(), plan.patience);
    let late = format!("no answer within {patience:?} of the end");
    let (mut interrupted, mut behind) = (false, 0);
    let mut all = std::pin::pin!(join_all(senders));
    let ended = tokio::select! {
        ended = &mut all => Some(ended),
        () = tokio::time::sleep(plan.duration + patience) => {
            behind = counts.borrow().unsent(plan, plan.duration);
            None
        }
        () = interrupts.next() => {
            interrupted = true;
            None
        }
    };
    let ended = match ended {
        Some(ended) => ended,
        None if !interrupted && behind == 0 => return (Some(late), false),
        None => {
            // What is under way is still answered.
            stop.now();
            tokio::select! {
                ended = &mut all => ended,
                () = tokio::time::sleep(patience) => return (Some(late), interrupted),
                () = interrupts.next() => return (None, true),
            }
        }
    };
    let errors: Vec<_> = ended.into_iter().filter_map(|ended| ended.ok()?.err()).collect();
    let trouble = match errors.first() {
        Some(first) => Some(format!("{first} ({} of {count} senders ended early)", errors.len())),
        None if behind > 0 => Some(format!(
            "the rate was not kept: {behind} messages were due and not sent within {patience:?} of the end, all {count} \
             connections waiting for answers; it takes more --senders, or a server that answers sooner"
        )),
        None => None,
    };
    (trouble, interrupted)
}

/// Says on standard error how far it is, and waits for a line of standard input, its end, or an interrupt.
pub async fn told(step: &str, interrupts: &mut Interrupts) {
    crate::cli::eprint(step);
    let (goes_on, waits) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        let _ = goes_on.send(());
    });
    tokio::select! {
        _ = waits => {}
        () = interrupts.next() => {}
    }
}

/// Who sends to the rooms of presenters that read nothing.
fn burden(plan: &Plan) -> Result<Vec<JoinHandle<()>>, String> {
    if plan.stalled.tokens.is_empty() {
        return Ok(Vec::new());
    }
    let stop = Rc::new(Stop::default());
    let burden = Rc::new(plan.burden());
    let counts = Counts::shared(&burden)?;
    let send = |n| {
        let (burden, counts, stop) = (Rc::clone(&burden), Rc::clone(&counts), Rc::clone(&stop));
        actix_web::rt::spawn(async move {
            if let Err(error) = sender::send(n, burden, counts, stop).await {
                log::debug!("load: {error}");
            }
        })
    };
    Ok((0..plan.senders).map(send).collect())
}

/// Waits until everything that was sent has come, nothing has come for two seconds, or an interrupt. What was refused
/// is waited for, too: it is a fault if it comes.
async fn wait_for_the_last(counts: &Shared, interrupts: &mut Interrupts) {
    tokio::select! {
        () = silence(counts) => {}
        () = interrupts.next() => {}
    }
}

async fn silence(counts: &Shared) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let (all, delivered) = {
            let counts = counts.borrow();
            (counts.all_came(), counts.delivered)
        };
        if all || since.elapsed() > Duration::from_secs(2) {
            return;
        }
        if delivered != last {
            (last, since) = (delivered, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Counts {
    fn shared(plan: &Plan) -> Result<Shared, String> {
        let histogram = || Histogram::new_with_max(MAX_US, 3).map_err(|error| error.to_string());
        Ok(Rc::new(RefCell::new(Self {
            began: Instant::now(),
            cpu_before_us: 0.0,
            run: system_ms().unsigned_abs() % RUNS,
            rooms: plan.rooms.max(1),
            senders: plan.senders,
            sent: 0,
            accepted: 0,
            refused: 0,
            statuses: BTreeMap::new(),
            reasons: BTreeMap::new(),
            failed: 0,
            delivered: 0,
            of_others: 0,
            out_of_order: 0,
            doubled: 0,
            misrouted: 0,
            came: 0,
            came_refused: 0,
            came_unknown: 0,
            forgotten: 0,
            presenters_ended: BTreeMap::new(),
            presented: Vec::new(),
            ledger: Ledger::new(plan.senders),
            sender_us: histogram()?,
            delivery_us: histogram()?,
        })))
    }

    /// A connection sends the message of its next turn.
    fn sends(&mut self, sender: u64) {
        self.sent += 1;
        self.ledger.sends(sender);
    }

    /// The message of a connection's turn was answered, or will not be.
    fn answered(&mut self, sender: u64, turn: u64, answer: Answer) {
        let room = self.room_of(sender, turn);
        if answer == Answer::Accepted
            && let Some(room) = self.presented(room)
        {
            room.accepted += 1;
        }
        if self.ledger.answered(sender, turn, answer) {
            self.came_as(answer, room);
        }
    }

    /// Which of the rooms the message of a connection's turn is for: all in turn.
    fn room_of(&self, sender: u64, turn: u64) -> u64 {
        (turn * self.senders + sender) % self.rooms
    }

    /// That room, if it is presented in.
    fn presented(&mut self, room: u64) -> Option<&mut Room> {
        self.presented.get_mut(usize::try_from(room).ok()?)
    }

    /// A message with this run's stamp, which says when it was due, came to the presenter of that room. `follows`: as
    /// far as its seq tells, if it has one.
    fn came(&mut self, room: u64, follows: bool, [sender, turn, due]: [u64; 3]) {
        if !self.ledger.has(sender, turn) {
            self.of_others += 1;
            return;
        }
        if self.room_of(sender, turn) != room {
            self.misrouted += 1;
            return;
        }
        self.delivered += 1;
        // Each message of a connection is sent after the answer to the one before it. Where that did not say what became
        // of it, it may be accepted behind the next one.
        let in_turn = self.presented(room).is_none_or(|room| room.seen.in_turn(sender, turn));
        match self.ledger.came(sender, turn) {
            Came::First(answer) => {
                self.out_of_order += u64::from(!((in_turn || answer == Answer::Unknown) && follows));
                self.came_as(answer, room);
            }
            Came::Again => self.doubled += 1,
            Came::Forgotten => {
                self.out_of_order += 1;
                self.forgotten += 1;
            }
        }
        let took = self.us().saturating_sub(due).min(MAX_US);
        self.delivery_us.saturating_record(took);
    }

    /// A message for this room that is answered like this is there.
    fn came_as(&mut self, answer: Answer, room: u64) {
        match answer {
            // It is counted when it is answered.
            Answer::Waited => {}
            Answer::Accepted => {
                self.came += 1;
                if let Some(room) = self.presented(room) {
                    room.came += 1;
                }
            }
            Answer::Refused => self.came_refused += 1,
            Answer::Unknown => self.came_unknown += 1,
        }
    }

    /// Whether nothing is left that could come.
    fn all_came(&self) -> bool {
        let others_came = self.came_refused + self.came_unknown;
        let no_other = self.presented.is_empty() || others_came >= self.sent - self.accepted;
        self.came >= self.accepted && no_other
    }

    /// An event with this seq came to the presenter of that room: whether it is above all that came before it.
    fn follows(&mut self, room: u64, seq: u64) -> bool {
        self.presented(room).is_none_or(|room| room.seen.follows(seq))
    }

    /// The session of that room's presenter ended like this: a close code, or `cut`.
    fn presenter_ended(&mut self, room: u64, how: String) {
        if let Some(room) = self.presented(room) {
            room.ended = true;
        }
        *self.presenters_ended.entry(how).or_default() += 1;
    }

    /// Accepted, and not seen where the presenter's session is over.
    fn missed(&self) -> u64 {
        let ended = self.presented.iter().filter(|room| room.ended);
        ended.map(|room| room.accepted - room.came).sum()
    }

    /// What was sent and has no answer yet gets none.
    fn unanswered(&mut self, senders: u64) {
        self.failed = self.sent - self.accepted - self.refused;
        for sender in 0..senders {
            if let Some(turn) = self.ledger.waits(sender) {
                self.answered(sender, turn, Answer::Unknown);
            }
        }
    }

    /// How many messages of the plan's rate were due within that time and were not sent; none in a closed loop.
    fn unsent(&self, plan: &Plan, within: Duration) -> u64 {
        let Some(rate) = plan.rate else {
            return 0;
        };
        let due = (within.as_micros() * u128::from(rate)).div_ceil(1_000_000);
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        due.min(plan.messages.unwrap_or(u64::MAX)).saturating_sub(self.sent)
    }

    /// How much of a processor this process has used since the first message: 1 is all of the one thread that it runs
    /// on.
    fn busy(&self) -> f64 {
        (report::own_cpu_us() - self.cpu_before_us) / self.us().max(1) as f64
    }

    fn us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
