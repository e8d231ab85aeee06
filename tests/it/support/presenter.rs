//! A presenter's client of dialect v1, which does as docs/PROTOCOL.md says: it acknowledges what it reads, keeps what it saw,
//! and goes on from there.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{
    app::{TestApp, spawn_app},
    http::Response,
    tokens::{claims, signed},
    ws::{Frame, Incoming, TEXT, WsClient},
};

/// One connection of a v1 presenter.
pub struct V1 {
    pub socket: WsClient,
    /// The last `welcome`.
    pub welcome: Value,
}

/// A good token of this user.
pub fn token(user: i64) -> String {
    signed(&claims(user))
}

/// The upgrade, with more headers.
pub async fn upgrade(address: SocketAddr, headers: &[(&str, &str)]) -> Result<WsClient, Response> {
    let mut all = vec![("Sec-WebSocket-Protocol", "chat.v1")];
    all.extend_from_slice(headers);
    WsClient::connect_with(address, "/v1/presenter", &all, None).await
}

/// An upgraded socket that has said nothing yet.
pub async fn connect(address: SocketAddr) -> WsClient {
    let socket = upgrade(address, &[]).await;
    socket.unwrap_or_else(|response| panic!("no upgrade: {response:?}"))
}

/// A `hello` with this presenter's token and these fields.
pub fn hello(presenter: i64, more: Value) -> String {
    let mut hello = json!({ "type": "hello", "token": token(presenter) });
    hello.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    hello.to_string()
}

impl V1 {
    /// Connects, says `hello` with these fields, and reads the `welcome`.
    pub async fn at(address: SocketAddr, presenter: i64, fields: Value) -> Self {
        let session = Self::unless_closed(address, presenter, fields).await;
        session.unwrap_or_else(|code| panic!("closed with {code:?} before any welcome"))
    }

    /// As [`V1::at`], where the server may end the connection before it says `welcome`: then its close code, if it had one.
    pub async fn unless_closed(address: SocketAddr, presenter: i64, fields: Value) -> Result<Self, Option<u16>> {
        let mut socket = connect(address).await;
        let hello = Frame::new(TEXT, hello(presenter, fields));
        socket.send_bytes_regardless(&hello.encode()).await;
        loop {
            match socket.next().await {
                Incoming::Text(text) => {
                    let welcome: Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(welcome["type"], "welcome", "{welcome}");
                    return Ok(Self { socket, welcome });
                }
                Incoming::Close(code, _) => return Err(code),
                Incoming::End | Incoming::Reset => return Err(None),
                Incoming::Ping(payload) => socket.pong(payload).await,
                other => panic!("waited for a welcome, got {other:?}"),
            }
        }
    }

    pub async fn of(app: &TestApp, presenter: i64, fields: Value) -> Self {
        Self::at(app.addr, presenter, fields).await
    }

    /// The next chat frame, without acknowledging it.
    pub async fn chat(&mut self) -> Value {
        let frame = self.socket.next_json().await;
        assert_eq!(frame["type"], "chat", "{frame}");
        frame
    }

    /// The seqs and texts of the next `count` chat frames, each acknowledged.
    pub async fn chats(&mut self, count: usize) -> Vec<(u64, String)> {
        let mut chats = Vec::new();
        for _ in 0..count {
            let chat = self.chat().await;
            let seq = chat["seq"].as_u64().unwrap();
            self.ack(seq).await;
            chats.push((seq, chat["text"].as_str().unwrap().to_owned()));
        }
        chats
    }

    pub async fn ack(&mut self, seq: u64) {
        self.socket
            .send_text(&json!({ "type": "ack", "seq": seq }).to_string())
            .await;
    }

    /// Returns when the server has read everything that was sent: its `pong` comes after. What comes before is kept.
    pub async fn settle(&mut self) {
        self.socket.send_text(r#"{"type":"ping"}"#).await;
        let mut early = Vec::new();
        loop {
            match self.socket.next().await {
                Incoming::Text(text) if text == r#"{"type":"pong"}"# => break,
                other => early.push(other),
            }
        }
        for incoming in early {
            self.socket.put_back(incoming);
        }
    }

    /// The `error` frame that comes next, and the close code behind it.
    pub async fn end(&mut self) -> (String, u16) {
        end_of(&mut self.socket).await
    }
}

/// The `error` frame that comes next, and the close code behind it.
pub async fn end_of(socket: &mut WsClient) -> (String, u16) {
    let error = socket.next_json().await;
    assert_eq!(error["type"], "error", "{error}");
    assert!(!error["message"].as_str().unwrap().is_empty());
    let code = error["code"].as_str().unwrap().to_owned();
    (code, socket.next_close().await.unwrap())
}

/// A server on which presenter 12 is live.
pub async fn app() -> TestApp {
    let app = spawn_app(|_| {}).await;
    app.go_live(12);
    app
}

/// What [`V1::chats`] gives of messages that [`send`] has sent.
pub fn numbered(range: std::ops::RangeInclusive<u64>) -> Vec<(u64, String)> {
    range.map(|n| (n, n.to_string())).collect()
}

/// Messages whose text is the seq that they get in a new room.
pub async fn send(app: &TestApp, range: std::ops::RangeInclusive<u64>) {
    for n in range {
        let answer = app.post(12, 7, &n.to_string()).await;
        assert_eq!(
            (answer.status, answer.json()["seq"].as_u64()),
            (201, Some(n)),
            "{answer:?}"
        );
    }
}

/// Ends a session and waits until the registry has heard.
pub async fn leave(app: &TestApp, session: V1) {
    drop(session);
    app.without_session(12).await;
}
