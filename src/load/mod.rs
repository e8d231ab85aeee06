//! The load tool: what does this box hold?
//!
//! Plain sockets and hand-made requests, so that it costs little beside the server that it measures. Senders post v1 messages
//! in a closed loop, or at a rate (open loop: latency counts from the time a message was due, so that a server that stalls is
//! not spared the messages that would have come meanwhile). Every presenter's WebSocket counts what it gets.

mod presenter;
mod report;
mod seen;
mod sender;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use actix_web::rt::task::JoinHandle;
use hdrhistogram::Histogram;

pub use self::report::Report;
use self::seen::Seen;

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
    /// Bytes of a message's text, at least as much as its stamp needs.
    pub text_bytes: usize,
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
    pub sent: u64,
    pub accepted: u64,
    pub refused: u64,
    /// How often each status was answered.
    pub statuses: BTreeMap<u16, u64>,
    pub failed: u64,
    pub delivered: u64,
    pub out_of_order: u64,
    pub doubled: u64,
    pub sender_us: Histogram<u64>,
    pub delivery_us: Histogram<u64>,
}

pub(crate) type Shared = Rc<RefCell<Counts>>;

/// The longest latency that is told apart: a minute.
const MAX_US: u64 = 60_000_000;

/// Runs the plan on this thread; gives what came of it, and the presenters, who are still there. The error says what could not
/// be reached.
pub async fn run(plan: Plan) -> Result<(Report, Connected), String> {
    let counts = Counts::shared()?;
    let plan = Rc::new(plan);
    let mut presenters = Vec::new();
    for (room, token) in (plan.first_room..).zip(&plan.presenter_tokens) {
        let socket = presenter::connect(plan.addr, room, token, plan.speaks, None).await?;
        presenters.push(actix_web::rt::spawn(presenter::count(
            socket,
            plan.speaks,
            Seen::new(plan.rooms, plan.senders),
            Rc::clone(&counts),
        )));
    }
    let mut stalled = Vec::new();
    for (room, token) in (plan.first_room + plan.rooms..).zip(&plan.stalled.tokens) {
        // A small buffer, so that it is full soon.
        stalled.push(presenter::connect(plan.addr, room, token, plan.speaks, Some(4096)).await?);
    }
    let presenters = Connected(presenters);
    if plan.waits {
        told("connected").await;
    }
    {
        let mut counts = counts.borrow_mut();
        (counts.began, counts.cpu_before_us) = (Instant::now(), report::own_cpu_us());
    }
    let burden = burden(&plan)?;
    let senders: Vec<_> = (0..plan.senders)
        .map(|n| actix_web::rt::spawn(sender::send(n, Rc::clone(&plan), Rc::clone(&counts))))
        .collect();
    let progress = plan
        .progress
        .then(|| actix_web::rt::spawn(report::progress(Rc::clone(&counts))));
    let mut trouble = None;
    for sender in senders {
        if let Ok(Err(error)) = sender.await {
            trouble = Some(error);
        }
    }
    let sending = counts.borrow().began.elapsed();
    wait_for_the_last(&counts).await;
    for sender in burden {
        sender.abort();
    }
    drop(stalled);
    if let Some(progress) = progress {
        progress.abort();
    }
    let report = Report::new(&plan, &counts.borrow(), sending);
    match trouble {
        Some(error) if report.accepted == 0 => Err(error),
        _ => Ok((report, presenters)),
    }
}

/// Says on standard error how far it is, and waits for a line of standard input, or its end.
pub async fn told(step: &str) {
    crate::cli::eprint(step);
    let (goes_on, waits) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        let _ = goes_on.send(());
    });
    let _ = waits.await;
}

/// Who sends to the rooms of presenters that read nothing.
fn burden(plan: &Plan) -> Result<Vec<JoinHandle<()>>, String> {
    let rooms = plan.stalled.tokens.len() as u64;
    if rooms == 0 {
        return Ok(Vec::new());
    }
    let counts = Counts::shared()?;
    let burden = Rc::new(Plan {
        first_room: plan.first_room + plan.rooms,
        rooms,
        rate: Some(plan.stalled.rate),
        text_bytes: plan.stalled.text_bytes,
        ..plan.clone()
    });
    let send = |n| {
        let (burden, counts) = (Rc::clone(&burden), Rc::clone(&counts));
        actix_web::rt::spawn(async move {
            if let Err(error) = sender::send(n, burden, counts).await {
                log::debug!("load: {error}");
            }
        })
    };
    Ok((0..plan.senders).map(send).collect())
}

/// Waits until everything accepted was delivered, or nothing has come for two seconds.
async fn wait_for_the_last(counts: &Shared) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let (accepted, delivered) = {
            let counts = counts.borrow();
            (counts.accepted, counts.delivered - counts.doubled)
        };
        if delivered >= accepted || since.elapsed() > Duration::from_secs(2) {
            return;
        }
        if delivered != last {
            (last, since) = (delivered, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Counts {
    fn shared() -> Result<Shared, String> {
        let histogram = || Histogram::new_with_max(MAX_US, 3).map_err(|error| error.to_string());
        Ok(Rc::new(RefCell::new(Self {
            began: Instant::now(),
            cpu_before_us: 0.0,
            sent: 0,
            accepted: 0,
            refused: 0,
            statuses: BTreeMap::new(),
            failed: 0,
            delivered: 0,
            out_of_order: 0,
            doubled: 0,
            sender_us: histogram()?,
            delivery_us: histogram()?,
        })))
    }

    fn us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
