//! Thirty-two senders. Each posts messages with texts of their own and sends one again, with its key, when it was not
//! answered or refused for now; some give up at the first trouble.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io::ErrorKind,
    net::SocketAddr,
    ops::RangeInclusive,
    rc::Rc,
    time::{Duration, Instant},
};

use awc::error::{ConnectError, SendRequestError};
use chatting_server::settings::Settings;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{PATIENCE, app::token_of};

pub const ROOMS: i64 = 8;
pub const SENDERS: i64 = 32;

/// Between two tries, in milliseconds.
const RETRY: RangeInclusive<u64> = 5..=40;
/// Between two messages of one sender, in milliseconds.
const THINK: RangeInclusive<u64> = 0..=6;
/// Of a hundred messages, so many are given up at the first answer that is not 201, or none.
const IMPATIENT: u32 = 20;
/// Of a hundred messages accepted, so many are followed by one of the sender's earlier ones again, key and all.
const REPEATED: u32 = 4;

/// What a 201 tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub id: String,
    pub seq: u64,
    pub epoch: String,
}

/// What a sender knows of its message in the end.
#[derive(Clone, Debug, Serialize)]
pub enum Outcome {
    Accepted(Answer),
    /// Each try was answered with a refusal, or did not reach the server.
    Refused,
    /// A try was cut, or its outcome is unknown to the server too.
    Unknown,
}

#[derive(Clone, Debug, Serialize)]
pub struct Sent {
    pub room: i64,
    pub key: String,
    pub text: String,
    pub outcome: Outcome,
}

/// What all senders of a round share.
#[derive(Default)]
pub struct Load {
    /// Set when no more messages are to be begun.
    pub over: Cell<bool>,
    /// Refusals by `code`.
    pub refusals: RefCell<BTreeMap<String, u64>>,
    /// Tries without an answer.
    pub unanswered: Cell<u64>,
    /// Messages sent again after their 201, and answered as at first.
    pub repeated: Cell<u64>,
    /// What no server may answer.
    pub violations: RefCell<Vec<String>>,
}

impl Load {
    pub fn refused(&self, code: &str) -> u64 {
        self.refusals.borrow().get(code).copied().unwrap_or(0)
    }

    fn violation(&self, what: String) {
        self.violations.borrow_mut().push(what);
    }
}

/// What came of one try.
enum Try {
    Accepted(Answer),
    /// Not accepted, and it never will be by this try.
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
    client: awc::Client,
    address: Rc<Cell<Option<SocketAddr>>>,
    load: Rc<Load>,
    bearer: String,
    name: String,
    rng: StdRng,
    count: u64,
}

impl Sender {
    pub fn new(number: i64, seed: u64, address: &Rc<Cell<Option<SocketAddr>>>, load: &Rc<Load>) -> Self {
        let number_here = u64::try_from(number).unwrap();
        Self {
            client: awc::Client::builder()
                .max_http_version(awc::http::Version::HTTP_11)
                .timeout(PATIENCE)
                .finish(),
            address: Rc::clone(address),
            load: Rc::clone(load),
            bearer: token_of(&Settings::default(), 1000 + number, "kim"),
            name: format!("s{number}"),
            rng: StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(number_here)),
            count: 0,
        }
    }

    /// Posts until the load is over; gives everything it sent.
    pub async fn run(mut self, texts: RangeInclusive<usize>) -> Vec<Sent> {
        let mut all: Vec<Sent> = Vec::new();
        while !self.load.over.get() {
            let room = self.rng.random_range(1..=ROOMS);
            let length = self.rng.random_range(texts.clone());
            let patient = !self.rng.random_ratio(IMPATIENT, 100);
            let sent = self.send(room, &"x".repeat(length), patient).await;
            if matches!(sent.outcome, Outcome::Accepted(_)) && self.rng.random_ratio(REPEATED, 100) {
                let earlier = &all[..];
                if !earlier.is_empty() {
                    let earlier = earlier[self.rng.random_range(0..earlier.len())].clone();
                    self.repeat(&earlier).await;
                }
            }
            all.push(sent);
            self.pause(THINK).await;
        }
        all
    }

    /// Sends the last message of a room, which is to be accepted; its text begins with `name`.
    pub async fn send_last(&mut self, name: &str, room: i64) -> Sent {
        self.send_as(format!("{name}{room}"), room, "", true).await
    }

    async fn send(&mut self, room: i64, text: &str, patient: bool) -> Sent {
        self.count += 1;
        self.send_as(format!("{}-{}", self.name, self.count), room, text, patient)
            .await
    }

    /// Sends one message under a new key until it is accepted, or the sender's patience is at its end.
    async fn send_as(&mut self, key: String, room: i64, text: &str, patient: bool) -> Sent {
        let mut sent = Sent {
            room,
            text: format!("{key} {text}"),
            key,
            outcome: Outcome::Refused,
        };
        let began = Instant::now();
        loop {
            match self.attempt(&sent).await {
                Try::Accepted(answer) => {
                    sent.outcome = Outcome::Accepted(answer);
                    return sent;
                }
                Try::Refused(code) => *self.load.refusals.borrow_mut().entry(code).or_default() += 1,
                Try::NotSent => {}
                Try::Unknown => {
                    self.load.unanswered.set(self.load.unanswered.get() + 1);
                    sent.outcome = Outcome::Unknown;
                }
                Try::InProgress if matches!(sent.outcome, Outcome::Unknown) => {}
                Try::InProgress => self
                    .load
                    .violation(format!("{}: in progress, though every try was answered", sent.key)),
                Try::Wrong(what) => {
                    self.load.violation(format!("{}: {what}", sent.key));
                    return sent;
                }
            }
            if !patient {
                return sent;
            }
            if began.elapsed() > PATIENCE {
                self.load
                    .violation(format!("{}: not accepted in {PATIENCE:?}", sent.key));
                return sent;
            }
            self.pause(RETRY).await;
        }
    }

    /// Sends again what has its outcome: an acceptance must be what it was.
    async fn repeat(&self, earlier: &Sent) {
        let Outcome::Accepted(first) = &earlier.outcome else {
            return;
        };
        match self.attempt(earlier).await {
            Try::Accepted(again) if again == *first => self.load.repeated.set(self.load.repeated.get() + 1),
            Try::Accepted(again) => self
                .load
                .violation(format!("{}: first {first:?}, then {again:?}", earlier.key)),
            Try::InProgress => self
                .load
                .violation(format!("{}: accepted, then in progress", earlier.key)),
            Try::Wrong(what) => self.load.violation(format!("{}, again: {what}", earlier.key)),
            Try::Refused(_) | Try::NotSent | Try::Unknown => {}
        }
    }

    async fn attempt(&self, message: &Sent) -> Try {
        let Some(address) = self.address.get() else {
            return Try::NotSent;
        };
        let request = self
            .client
            .post(format!("http://{address}/v1/rooms/{}/messages", message.room))
            .insert_header(("Authorization", format!("Bearer {}", self.bearer)))
            .insert_header(("Idempotency-Key", format!("\"{}\"", message.key)));
        let mut response = match request.send_json(&json!({ "text": message.text })).await {
            Ok(response) => response,
            // Refused, so nothing was sent. Any other error may come when the request is on its way already.
            Err(SendRequestError::Connect(ConnectError::Io(error))) if error.kind() == ErrorKind::ConnectionRefused => {
                return Try::NotSent;
            }
            Err(SendRequestError::Timeout) => return Try::Wrong(format!("no answer in {PATIENCE:?}")),
            Err(_) => return Try::Unknown,
        };
        let Ok(body) = response.body().await else {
            return Try::Unknown;
        };
        let status = response.status().as_u16();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let code = body["code"].as_str().unwrap_or_default().to_owned();
        match (status, code.as_str()) {
            (201, _) => match serde_json::from_value(body.clone()) {
                Ok(answer) => Try::Accepted(answer),
                Err(error) => Try::Wrong(format!("201 with {body}: {error}")),
            },
            (409, "idempotency_in_progress") => Try::InProgress,
            (504, "outcome_unknown") => Try::Unknown,
            (429 | 503, _) => Try::Refused(code),
            _ => Try::Wrong(format!("{status} {body}")),
        }
    }

    async fn pause(&mut self, range: RangeInclusive<u64>) {
        let time = self.rng.random_range(range);
        tokio::time::sleep(Duration::from_millis(time)).await;
    }
}
