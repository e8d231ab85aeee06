//! The senders: each message is due at its time, and is sent with its key until it is answered for good. One whose answer
//! was lost is never given up, so that nothing is unknown at the end; of those that were refused some are.
//!
//! Plain sockets and hand-made requests: they share the machine with the server.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use chatting_server::settings::Settings;
use hdrhistogram::Histogram;
use rand::{Rng, rngs::StdRng};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    plan::Plan,
    support::{PATIENCE, app::token_of},
};

/// Between two tries, in milliseconds.
const RETRY: std::ops::RangeInclusive<u64> = 20..=100;
/// Of a hundred messages, so many are given up at the first refusal, if nothing is unknown.
const IMPATIENT: u32 = 20;
/// Of a hundred messages accepted, so many are sent once more, key and all.
const REPEATED: u32 = 2;
/// Longer than any answer's head and body.
const ANSWER_MAX: usize = 8 << 10;

/// What a 201 tells.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Answer {
    pub id: String,
    pub seq: u64,
    pub epoch: String,
}

/// A message and how it ended; without an answer it was refused at every try.
#[derive(Clone, Debug)]
pub struct Sent {
    pub room: i64,
    pub key: String,
    pub text: String,
    pub accepted: Option<Answer>,
}

/// What all senders count.
#[derive(Debug)]
pub struct Counts {
    /// Refusals by `code`; one message may have several.
    pub refusals: BTreeMap<String, u64>,
    /// Tries that were not answered.
    pub unanswered: u64,
    /// Tries that found nobody listening.
    pub unheard: u64,
    /// Messages that were accepted by a try after one that was not answered.
    pub accepted_after_doubt: u64,
    /// Messages sent again after their 201 and answered as at first.
    pub repeated: u64,
    /// From a message's first try to its 201, in microseconds.
    pub answered_us: Histogram<u64>,
    pub violations: Vec<String>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            refusals: BTreeMap::new(),
            unanswered: 0,
            unheard: 0,
            accepted_after_doubt: 0,
            repeated: 0,
            answered_us: Histogram::new_with_bounds(1, 120_000_000, 3).unwrap(),
            violations: Vec::new(),
        }
    }
}

/// What came of one try.
enum Try {
    Accepted(Answer),
    Refused(String),
    /// An earlier try with this key has not been answered yet.
    InProgress,
    NotSent,
    Unknown,
    /// Nothing that a server may do.
    Wrong(String),
}

/// One sender with a connection of its own.
pub struct Sender {
    number: u64,
    address: SocketAddr,
    bearer: String,
    /// What is sent, and where.
    messages: StdRng,
    /// Pauses and repetitions: how many there are is the machine's.
    chance: StdRng,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    counts: Arc<Mutex<Counts>>,
}

impl Sender {
    pub fn new(number: u64, plan: &Plan, address: SocketAddr, counts: &Arc<Mutex<Counts>>) -> Self {
        let user = 1_000_000 + i64::try_from(number).unwrap();
        Self {
            number,
            address,
            bearer: token_of(&Settings::default(), user, "kim"),
            messages: plan.rng("messages", number),
            chance: plan.rng("chance", number),
            stream: None,
            buffer: Vec::with_capacity(ANSWER_MAX),
            counts: Arc::clone(counts),
        }
    }

    /// Sends its share of the load. What is late is sent at once; what is not begun within the time never is.
    pub async fn run(mut self, plan: Plan, began: Instant) -> Vec<Sent> {
        let mut all = Vec::new();
        for turn in 0_u64.. {
            let due = Duration::from_secs_f64((turn * plan.senders() + self.number) as f64 / plan.rate as f64);
            // The rate is what is asked for.
            sleep(due.saturating_sub(began.elapsed())).await;
            if began.elapsed() >= plan.load {
                break;
            }
            let room = self.messages.random_range(1..=plan.rooms);
            let filling = self.messages.random_range(0..=120);
            let key = format!("s{}-{turn}", self.number);
            let patient = !self.messages.random_ratio(IMPATIENT, 100);
            let text = format!("{key} {} \"안녕\"", "x".repeat(filling));
            all.push(self.send(room, key, text, patient).await);
        }
        all
    }

    /// Sends the last message of a room, which is to be accepted.
    pub async fn send_last(&mut self, room: i64) -> Sent {
        let key = format!("last-{room}");
        self.send(room, key.clone(), key, true).await
    }

    async fn send(&mut self, room: i64, key: String, text: String, patient: bool) -> Sent {
        let mut sent = Sent {
            room,
            key,
            text,
            accepted: None,
        };
        let began = Instant::now();
        let mut doubt = false;
        loop {
            match self.attempt(&sent).await {
                Try::Accepted(answer) => {
                    self.accepted(began.elapsed(), doubt);
                    sent.accepted = Some(answer);
                    if self.chance.random_ratio(REPEATED, 100) {
                        self.repeat(&sent).await;
                    }
                    return sent;
                }
                Try::Refused(code) => *self.counts.lock().unwrap().refusals.entry(code).or_default() += 1,
                Try::NotSent => self.counts.lock().unwrap().unheard += 1,
                Try::Unknown => {
                    self.counts.lock().unwrap().unanswered += 1;
                    doubt = true;
                }
                Try::InProgress if doubt => {}
                Try::InProgress => {
                    self.violation(format!("{}: in progress, though every try was answered", sent.key));
                }
                Try::Wrong(what) => {
                    self.violation(format!("{}: {what}", sent.key));
                    return sent;
                }
            }
            if !patient && !doubt {
                return sent;
            }
            if began.elapsed() > PATIENCE {
                let refusals = self.counts.lock().unwrap().refusals.clone();
                self.violation(format!("{}: not accepted in {PATIENCE:?}: {refusals:?}", sent.key));
                return sent;
            }
            let pause = self.chance.random_range(RETRY);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    fn accepted(&self, took: Duration, doubt: bool) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut counts = self.counts.lock().unwrap();
        counts.answered_us.saturating_record(took);
        counts.accepted_after_doubt += u64::from(doubt);
    }

    /// Sends once more what was accepted: the answer must be what it was.
    async fn repeat(&mut self, sent: &Sent) {
        match self.attempt(sent).await {
            Try::Accepted(again) if Some(&again) == sent.accepted.as_ref() => self.counts.lock().unwrap().repeated += 1,
            Try::Accepted(again) => self.violation(format!("{sent:?}, then {again:?}")),
            Try::InProgress => self.violation(format!("{}: accepted, then in progress", sent.key)),
            Try::Wrong(what) => self.violation(format!("{}, again: {what}", sent.key)),
            Try::Refused(_) | Try::NotSent | Try::Unknown => {}
        }
    }

    fn violation(&self, what: String) {
        self.counts.lock().unwrap().violations.push(what);
    }

    async fn attempt(&mut self, message: &Sent) -> Try {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => match TcpStream::connect(self.address).await {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Try::NotSent,
                Err(_) => return Try::Unknown,
            },
        };
        let _ = stream.set_nodelay(true);
        let body = json!({ "text": message.text }).to_string();
        let request = format!(
            "POST /v1/rooms/{}/messages HTTP/1.1\r\nHost: chaos\r\nAuthorization: Bearer {}\r\nIdempotency-Key: \"{}\"\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            message.room,
            self.bearer,
            message.key,
            body.len()
        );
        let answer = match timeout(PATIENCE, exchange(&mut stream, request.as_bytes(), &mut self.buffer)).await {
            Err(_) => return Try::Wrong(format!("no answer in {PATIENCE:?}")),
            // Cut while the request or its answer was on its way.
            Ok(None) => return Try::Unknown,
            Ok(Some(answer)) => answer,
        };
        if answer.keep {
            self.stream = Some(stream);
        }
        let code = answer.body["code"].as_str().unwrap_or_default().to_owned();
        match (answer.status, code.as_str()) {
            (201, _) => match serde_json::from_value(answer.body.clone()) {
                Ok(answer) => Try::Accepted(answer),
                Err(error) => Try::Wrong(format!("201 with {}: {error}", answer.body)),
            },
            (409, "idempotency_in_progress") => Try::InProgress,
            (504, "outcome_unknown") => Try::Unknown,
            (429 | 503, _) => Try::Refused(code),
            (status, _) => Try::Wrong(format!("{status} {}", answer.body)),
        }
    }
}

struct Http {
    status: u16,
    body: Value,
    /// Whether the connection may be used again.
    keep: bool,
}

/// Sends one request and reads one answer; `None` when the connection ended before that was whole.
async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> Option<Http> {
    stream.write_all(request).await.ok()?;
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
        if let Some(http) = parse(buffer) {
            return Some(http);
        }
        assert!(buffer.len() < ANSWER_MAX, "{}", String::from_utf8_lossy(buffer));
    }
}

/// The answer, once it is whole.
fn parse(bytes: &[u8]) -> Option<Http> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&bytes[..head]).unwrap().to_ascii_lowercase();
    let header = |name: &str| {
        text.split("\r\n")
            .filter_map(|line| line.split_once(": "))
            .find_map(|(have, value)| (have == name).then_some(value))
    };
    let length: usize = header("content-length")
        .unwrap_or_else(|| panic!("no length: {text}"))
        .parse()
        .unwrap();
    let body = bytes.get(head + 4..head + 4 + length)?;
    Some(Http {
        status: text[9..12].parse().unwrap(),
        body: serde_json::from_slice(body).unwrap_or_default(),
        keep: header("connection") != Some("close"),
    })
}
