//! A presenter's client that does as a good one should: it keeps the epoch and the last seq, asks to go on from there,
//! acknowledges what it has read, takes a silent link for a dead one, waits before it connects again, and drops what it has
//! already. What a server may not do to it is written down.
//!
//! Now and then it forgets where it was, as one that was started anew: then the server goes on from its last ack.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use awc::{
    error::WsProtocolError,
    ws::{Frame, Message},
};
use futures_util::{FutureExt, Sink, SinkExt, Stream, StreamExt};
use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::support::presenter::hello;

/// A link without a frame for so many keepalives is dead.
const MISSED: u32 = 2;
/// Until the first `welcome` has told the keepalive.
const FIRST_KEEPALIVE: Duration = Duration::from_secs(1);
/// The wait before the second try to connect, and the longest: each is drawn from the upper half.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Acknowledged at the latest after so many, well within `session.credit_events`.
const ACK_EVERY: u64 = 16;
/// Of a hundred connects, so many are of a client that forgot where it was.
const FORGETS: u32 = 10;

/// A message as the presenter has it; its seq is its place in the list, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    pub id: String,
    pub text: String,
}

/// What one presenter has, in the numbering of its epoch.
#[derive(Debug, Default)]
pub struct Record {
    pub epoch: Option<String>,
    pub chats: Vec<Chat>,
}

/// What all presenters of a run went through.
#[derive(Debug, Default)]
pub struct Counts {
    /// Presenters that have had their first `welcome`.
    pub attached: Cell<u64>,
    /// Tries to connect that came to nothing.
    pub failed: Cell<u64>,
    /// Sessions that went on from an earlier one: `welcome`s but the first of each presenter.
    pub resumed: Cell<u64>,
    /// Of them, those whose `hello` said no seq.
    pub forgot: Cell<u64>,
    pub frames: Cell<u64>,
    /// Frames with what the client had already.
    pub repeated: Cell<u64>,
    /// Frames that had been sent into a link that broke, or while there was none: those up to `last_seq` of a `welcome`.
    pub caught_up: Cell<u64>,
    /// Links given up because nothing came.
    pub silent: Cell<u64>,
    /// `reconnect` frames.
    pub told_to_reconnect: Cell<u64>,
    /// Ends that the server gave a reason for, by close code.
    pub closed: RefCell<BTreeMap<u16, u64>>,
    /// What no server may do.
    pub violations: RefCell<Vec<String>>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

pub struct Presenter {
    pub room: i64,
    pub address: SocketAddr,
    pub rng: StdRng,
    pub counts: Rc<Counts>,
    /// The room's last seq, once it is known.
    pub target: watch::Receiver<Option<u64>>,
    record: Rc<RefCell<Record>>,
    keepalive: Duration,
    /// No new connection before this.
    not_before: Instant,
    /// Whether the last connection came as far as a `welcome`.
    welcomed: bool,
}

/// The presenter has everything, and nothing came behind it.
struct Done;

/// One connection's part of the account.
struct Reading {
    /// The seq that must come next on this connection; `None` before `welcome`.
    next: Option<u64>,
    /// `last_seq` of `welcome`.
    behind: u64,
    unacked: u64,
    /// The `ping` behind the last message was sent.
    asked: bool,
    /// What `hello` said.
    asked_from: Option<u64>,
}

impl Presenter {
    pub fn new(
        room: i64,
        address: SocketAddr,
        rng: StdRng,
        counts: &Rc<Counts>,
        record: &Rc<RefCell<Record>>,
        target: watch::Receiver<Option<u64>>,
    ) -> Self {
        Self {
            room,
            address,
            rng,
            counts: Rc::clone(counts),
            target,
            record: Rc::clone(record),
            keepalive: FIRST_KEEPALIVE,
            not_before: Instant::now(),
            welcomed: false,
        }
    }

    /// Reads until it has everything up to the target, and writes down what it has.
    pub async fn run(mut self) {
        let client = awc::Client::builder()
            .max_http_version(awc::http::Version::HTTP_11)
            .finish();
        let mut backoff = BACKOFF.0;
        loop {
            self.welcomed = false;
            if let Some(Done) = self.connection(&client).await {
                return;
            }
            backoff = if self.welcomed {
                BACKOFF.0
            } else {
                (backoff * 2).min(BACKOFF.1)
            };
            let jitter = backoff.mul_f64(self.rng.random_range(0.5..1.0));
            sleep_until(self.not_before.max(Instant::now() + jitter)).await;
        }
    }

    fn last(&self) -> u64 {
        self.record.borrow().chats.len() as u64
    }

    fn violation(&self, what: String) {
        let mut violations = self.counts.violations.borrow_mut();
        violations.push(format!("room {}: {what}", self.room));
    }

    /// One connection's life; `None` when it broke.
    async fn connection(&mut self, client: &awc::Client) -> Option<Done> {
        let patience = self.keepalive * MISSED;
        let url = format!("ws://{}/v1/presenter", self.address);
        let connecting = client.ws(url).protocols(["chat.v1"]).connect();
        let socket = timeout(patience, connecting).await.ok().and_then(Result::ok);
        let Some((_, mut socket)) = socket else {
            count(&self.counts.failed);
            return None;
        };
        let mut fields = json!({});
        let mut asked_from = None;
        let epoch = self.record.borrow().epoch.clone();
        if let Some(epoch) = epoch.filter(|_| !self.rng.random_ratio(FORGETS, 100)) {
            fields = json!({ "epoch": epoch, "resume_after": self.last() });
            asked_from = Some(self.last());
        }
        let mut reading = Reading {
            next: None,
            behind: 0,
            unacked: 0,
            asked: false,
            asked_from,
        };
        say(&mut socket, hello(self.room, fields), patience).await?;
        loop {
            self.ask_whether_all(&mut reading, &mut socket).await?;
            let patience = self.keepalive * MISSED;
            let frame = match socket.next().now_or_never() {
                Some(frame) => frame,
                None => {
                    // All that came is read: now it is acknowledged.
                    self.acknowledge(&mut reading, &mut socket).await?;
                    tokio::select! {
                        frame = timeout(patience, socket.next()) => match frame {
                            Ok(frame) => frame,
                            Err(_) => {
                                count(&self.counts.silent);
                                return None;
                            }
                        },
                        Ok(()) = self.target.changed() => continue,
                    }
                }
            };
            match frame {
                Some(Ok(Frame::Text(text))) => {
                    let Ok(frame) = serde_json::from_slice::<Value>(&text) else {
                        self.violation(format!("a frame is not JSON: {text:?}"));
                        return None;
                    };
                    if let Some(done) = self.frame(&frame, &mut reading) {
                        return Some(done);
                    }
                    if reading.unacked >= ACK_EVERY {
                        self.acknowledge(&mut reading, &mut socket).await?;
                    }
                }
                Some(Ok(Frame::Ping(payload))) => {
                    let pong = socket.send(Message::Pong(payload));
                    timeout(patience, pong).await.ok()?.ok()?;
                }
                Some(Ok(Frame::Close(reason))) => {
                    let code = reason.map_or(1005, |reason| reason.code.into());
                    *self.counts.closed.borrow_mut().entry(code).or_default() += 1;
                    if !matches!(code, 1001 | 4003 | 4005 | 4007) {
                        self.violation(format!("closed with {code}"));
                    }
                    return None;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// One frame of the server.
    fn frame(&mut self, frame: &Value, reading: &mut Reading) -> Option<Done> {
        match frame["type"].as_str().unwrap_or_default() {
            "welcome" => self.welcome(frame, reading),
            "chat" => self.chat(frame, reading),
            "reconnect" => {
                count(&self.counts.told_to_reconnect);
                // It is read to its end, which comes soon.
                self.not_before = Instant::now() + Duration::from_millis(frame["after_ms"].as_u64().unwrap());
            }
            "pong" if reading.asked => return Some(Done),
            // The close that follows has the code.
            "error" => log::info!("room {}: {frame}", self.room),
            _ => self.violation(format!("what is {frame}?")),
        }
        None
    }

    fn welcome(&mut self, welcome: &Value, reading: &mut Reading) {
        let (last, from) = (self.last(), welcome["resumed_from"].as_u64().unwrap());
        if reading.next.replace(from).is_some() {
            self.violation(format!("a second {welcome}"));
        }
        if !welcome["gap"].is_null() {
            self.violation(format!("has {last}, and was told a gap: {welcome}"));
        }
        if from > last + 1 || reading.asked_from.is_some_and(|asked| from != asked + 1) {
            self.violation(format!(
                "has {last}, asked from {:?}, and got {welcome}",
                reading.asked_from
            ));
        }
        reading.behind = welcome["last_seq"].as_u64().unwrap();
        let epoch = welcome["epoch"].as_str().unwrap();
        let ours = self.record.borrow().epoch.clone();
        match ours {
            Some(ours) if ours != epoch => self.violation(format!("epoch {ours} became {epoch}")),
            Some(_) => {
                count(&self.counts.resumed);
                if reading.asked_from.is_none() {
                    count(&self.counts.forgot);
                }
            }
            None => {
                count(&self.counts.attached);
                self.record.borrow_mut().epoch = Some(epoch.to_owned());
            }
        }
        self.keepalive = Duration::from_secs(welcome["keepalive_seconds"].as_u64().unwrap());
        self.welcomed = true;
    }

    fn chat(&mut self, frame: &Value, reading: &mut Reading) {
        count(&self.counts.frames);
        reading.unacked += 1;
        let seq = frame["seq"].as_u64().unwrap();
        let text = |name: &str| frame[name].as_str().unwrap().to_owned();
        let chat = Chat {
            id: text("id"),
            text: text("text"),
        };
        if reading.next != Some(seq) {
            self.violation(format!(
                "{seq} came where {:?} belongs on this connection",
                reading.next
            ));
        }
        reading.next = Some(seq + 1);
        if seq <= reading.behind {
            count(&self.counts.caught_up);
        }
        let last = self.last();
        if seq == last + 1 {
            self.record.borrow_mut().chats.push(chat);
        } else if seq > last {
            self.violation(format!("a hole: {seq} after {last}"));
        } else {
            count(&self.counts.repeated);
            let place = usize::try_from(seq).ok().and_then(|seq| seq.checked_sub(1));
            let have = place.and_then(|place| self.record.borrow().chats.get(place).cloned());
            if have.as_ref() != Some(&chat) {
                self.violation(format!("{seq} was {have:?} and came again as {chat:?}"));
            }
        }
        if reading.asked {
            self.violation(format!("{seq} came, beyond the room's last"));
        }
    }

    async fn acknowledge<S>(&mut self, reading: &mut Reading, socket: &mut S) -> Option<()>
    where
        S: Sink<Message> + Unpin,
    {
        let read = reading.next.filter(|_| reading.unacked > 0);
        reading.unacked = 0;
        let Some(read) = read else {
            return Some(());
        };
        let ack = json!({ "type": "ack", "seq": read - 1, "fanned_out": 3 }).to_string();
        say(socket, ack, self.keepalive * MISSED).await
    }

    /// Once it has everything: asks for a `pong`, which comes behind whatever else was sent.
    async fn ask_whether_all<S>(&mut self, reading: &mut Reading, socket: &mut S) -> Option<()>
    where
        S: Sink<Message> + Stream<Item = Result<Frame, WsProtocolError>> + Unpin,
    {
        let target = *self.target.borrow_and_update();
        // On a connection that has only just begun, what was sent again may still be on its way.
        let all = target.is_some_and(|target| target <= self.last() && reading.next == Some(target + 1));
        if reading.asked || !all {
            return Some(());
        }
        reading.asked = true;
        say(socket, r#"{"type":"ping"}"#.into(), self.keepalive * MISSED).await
    }
}

/// Sends a text, unless the link takes nothing for so long.
async fn say<S: Sink<Message> + Unpin>(socket: &mut S, text: String, patience: Duration) -> Option<()> {
    let sent = timeout(patience, socket.send(Message::Text(text.into()))).await;
    sent.ok()?.ok()
}
