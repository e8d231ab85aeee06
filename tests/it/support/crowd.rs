//! Senders and presenters that go on whatever happens to the server, and an account of what each was told.
//!
//! A sender posts with an `Idempotency-Key`, and what is not accepted it sends again until it is. A presenter of dialect v1
//! acknowledges what it reads and resumes; one of the old protocol says `start` again. Both connect again as often as they are
//! closed, also before their room has them back.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use actix_web::rt::task::JoinHandle;
use serde_json::json;

use super::{
    app::TestApp,
    eventually,
    http::HttpClient,
    presenter::V1,
    ws::{Frame, Incoming, TEXT, WsClient},
};

#[derive(Default)]
struct Account {
    stop: Cell<bool>,
    /// By room: seq and text of what was accepted.
    accepted: RefCell<BTreeMap<i64, BTreeMap<u64, String>>>,
    /// What senders were told instead, by room.
    refused: RefCell<BTreeMap<i64, BTreeSet<String>>>,
    /// What the presenter of each room was sent, in the order it came; seqs for v1, texts for legacy.
    seqs: RefCell<BTreeMap<i64, Vec<u64>>>,
    texts: RefCell<BTreeMap<i64, Vec<String>>>,
    /// How often each room has had its presenter.
    sessions: RefCell<BTreeMap<i64, usize>>,
    /// How each presenter's connections ended.
    closes: RefCell<BTreeMap<i64, Vec<Option<u16>>>>,
}

impl Account {
    fn came(&self, room: i64) {
        *self.sessions.borrow_mut().entry(room).or_default() += 1;
    }

    fn closed(&self, room: i64, code: Option<u16>) {
        self.closes.borrow_mut().entry(room).or_default().push(code);
    }
}

/// See the module's text.
pub struct Crowd {
    account: Rc<Account>,
    senders: Vec<JoinHandle<()>>,
    presenters: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Rooms whose presenters speak v1 and the old protocol, each with so many senders; returns when everybody is at it.
    pub async fn come(app: &TestApp, v1: &[i64], legacy: &[i64], senders: i64) -> Self {
        let account = Rc::new(Account::default());
        // Every room from the first: one in which nothing is ever accepted must not go unnoticed.
        let rooms = v1.iter().chain(legacy).map(|room| (*room, BTreeMap::new()));
        account.accepted.borrow_mut().extend(rooms);
        let mut presenters = Vec::new();
        for room in v1 {
            let session = V1::of(app, *room, json!({})).await;
            let at_it = present(app.addr, *room, session, Rc::clone(&account));
            presenters.push(actix_web::rt::spawn(at_it));
        }
        for room in legacy {
            let session = app.presenter(*room).await;
            let at_it = present_legacy(app.addr, *room, app.token(*room), session, Rc::clone(&account));
            presenters.push(actix_web::rt::spawn(at_it));
        }
        let mut sending = Vec::new();
        for room in v1.iter().chain(legacy) {
            for n in 0..senders {
                let user = 1_000 + room * 100 + n;
                let at_it = send(app.addr, *room, n, app.token(user), Rc::clone(&account));
                sending.push(actix_web::rt::spawn(at_it));
            }
        }
        let this = Self {
            account,
            senders: sending,
            presenters,
        };
        this.goes_on(5).await;
        this
    }

    /// Returns when so many more messages have been accepted in each room.
    pub async fn goes_on(&self, more: usize) {
        let before: BTreeMap<_, _> = self.counts();
        eventually("chat to go on in every room", async || {
            let counts = self.counts();
            let went_on = counts.iter().all(|(room, count)| *count >= before[room] + more);
            went_on.then_some(())
        })
        .await;
    }

    fn counts(&self) -> BTreeMap<i64, usize> {
        let accepted = self.account.accepted.borrow();
        accepted.iter().map(|(room, all)| (*room, all.len())).collect()
    }

    /// What senders of this room were told instead of 201.
    pub fn refusals(&self, room: i64) -> BTreeSet<String> {
        self.account.refused.borrow().get(&room).cloned().unwrap_or_default()
    }

    /// With which codes this room's presenter was closed.
    pub fn closes(&self, room: i64) -> Vec<Option<u16>> {
        self.account.closes.borrow().get(&room).cloned().unwrap_or_default()
    }

    /// Returns when this room's presenter has been closed so often and is back each time.
    pub async fn is_back(&self, room: i64, closes: usize) {
        let what = format!("presenter {room} to be back after {closes} closes");
        eventually(what, async || {
            let sessions = self.account.sessions.borrow().get(&room).copied();
            (self.closes(room).len() == closes && sessions == Some(closes + 1)).then_some(())
        })
        .await;
    }

    /// Everybody comes to an end, and the accounts are held against the log: what was accepted is in it once, with its seq and
    /// text, without a hole; v1 presenters saw all of it, once and in order, and so did legacy ones that were never cut; others
    /// nothing twice, nothing out of order and nothing else.
    pub async fn ends_well(self, app: &TestApp) {
        self.account.stop.set(true);
        for sender in self.senders {
            super::within("a sender to be answered", sender).await.unwrap();
        }
        let accepted = self.account.accepted.borrow().clone();
        for (room, all) in &accepted {
            let log: BTreeMap<u64, String> = {
                let rows = app.sqlite_log(*room).await;
                assert_eq!(
                    rows.len(),
                    rows.iter().map(|(seq, _)| seq).collect::<BTreeSet<_>>().len()
                );
                rows.into_iter().collect()
            };
            assert_eq!(&log, all, "room {room}: the log is what senders were told");
            let count = all.len() as u64;
            assert!(
                all.keys().copied().eq(1..=count),
                "room {room}: a seq is left out: {:?}",
                all.keys()
            );
            if self.account.texts.borrow().contains_key(room) {
                if self.account.closes.borrow().get(room).is_none_or(Vec::is_empty) {
                    eventually(format_args!("presenter {room} to have everything"), async || {
                        (self.account.texts.borrow()[room].len() == all.len()).then_some(())
                    })
                    .await;
                }
                let order: BTreeMap<&String, u64> = all.iter().map(|(seq, text)| (text, *seq)).collect();
                let texts = self.account.texts.borrow()[room].clone();
                let seen: Vec<u64> = texts.iter().map(|text| order[text]).collect();
                assert!(seen.is_sorted_by(|one, next| one < next), "room {room}: {seen:?}");
            } else {
                eventually(format_args!("presenter {room} to have everything"), async || {
                    let seqs = self.account.seqs.borrow();
                    (seqs.get(room).and_then(|seqs| seqs.last()) == Some(&count)).then_some(())
                })
                .await;
                let seqs = self.account.seqs.borrow()[room].clone();
                assert!(seqs.iter().copied().eq(1..=count), "room {room}: {seqs:?}");
            }
        }
        for presenter in self.presenters {
            assert!(!presenter.is_finished(), "a presenter gave up");
            presenter.abort();
        }
    }
}

async fn send(addr: SocketAddr, room: i64, n: i64, token: String, account: Rc<Account>) {
    let mut connection = None;
    let (path, bearer) = (format!("/v1/rooms/{room}/messages"), format!("Bearer {token}"));
    for turn in 0.. {
        if account.stop.get() {
            return;
        }
        let text = format!("{room} {n} {turn}");
        let (key, body) = (text.replace(' ', "-"), json!({ "text": text }).to_string());
        let headers = [("Authorization", bearer.as_str()), ("Idempotency-Key", key.as_str())];
        loop {
            let mut client = match connection.take() {
                Some(client) => client,
                None => HttpClient::connect(addr).await,
            };
            let refusal = match client.post_json_unless_closed(&path, &headers, &body).await {
                None => "no answer".to_owned(),
                Some(answer) => {
                    if answer.header("connection") != Some("close") {
                        connection = Some(client);
                    }
                    if answer.status == 201 {
                        let seq = answer.json()["seq"].as_u64().unwrap();
                        let before = account.accepted.borrow_mut().entry(room).or_default().insert(seq, text);
                        assert_eq!(before, None, "room {room}: seq {seq} was given twice");
                        break;
                    }
                    answer.json()["code"].as_str().unwrap().to_owned()
                }
            };
            account.refused.borrow_mut().entry(room).or_default().insert(refusal);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn present(addr: SocketAddr, room: i64, mut session: V1, account: Rc<Account>) {
    account.seqs.borrow_mut().entry(room).or_default();
    loop {
        account.came(room);
        let closed = loop {
            match session.socket.next().await {
                Incoming::Text(text) => {
                    let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
                    if frame["type"] != "chat" {
                        continue;
                    }
                    let seq = frame["seq"].as_u64().unwrap();
                    account.seqs.borrow_mut().entry(room).or_default().push(seq);
                    let ack = json!({ "type": "ack", "seq": seq }).to_string();
                    session
                        .socket
                        .send_bytes_regardless(&Frame::new(TEXT, ack).encode())
                        .await;
                }
                Incoming::Ping(payload) => session.socket.pong(payload).await,
                Incoming::Close(code, _) => break code,
                Incoming::End | Incoming::Reset => break None,
                _ => {}
            }
        };
        account.closed(room, closed);
        let last = account.seqs.borrow()[&room].last().copied();
        let fields = json!({ "epoch": session.welcome["epoch"], "resume_after": last });
        session = loop {
            match V1::unless_closed(addr, room, fields.clone()).await {
                Ok(session) => break session,
                Err(code) => account.closed(room, code),
            }
        };
        assert!(session.welcome["gap"].is_null(), "{}", session.welcome);
    }
}

async fn present_legacy(addr: SocketAddr, room: i64, token: String, mut session: WsClient, account: Rc<Account>) {
    account.texts.borrow_mut().entry(room).or_default();
    account.came(room);
    loop {
        let closed = loop {
            match session.next().await {
                // The answer to the `ping` behind its `start`.
                Incoming::Text(text) if text == "pong" => account.came(room),
                Incoming::Text(text) => {
                    let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
                    let text = frame["message"].as_str().unwrap().to_owned();
                    account.texts.borrow_mut().entry(room).or_default().push(text);
                }
                Incoming::Ping(payload) => session.pong(payload).await,
                Incoming::Close(code, _) => break code,
                Incoming::End | Incoming::Reset => break None,
                _ => {}
            }
        };
        account.closed(room, closed);
        session = WsClient::connect(addr, "/chatting").await;
        let start = json!({ "id": "start", "token": token }).to_string();
        for text in [&*start, "ping"] {
            session.send_bytes_regardless(&Frame::new(TEXT, text).encode()).await;
        }
    }
}
