//! A WebSocket client (RFC 6455) that holds the server to the letter: a masked, reserved, oversized control or non-UTF-8
//! frame from it fails the test. It can itself do everything a client must not: see [`Frame`] and [`WsClient::send_bytes`].
//! A client that never reads is one with a small receive buffer on which nothing is called.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http::{HttpClient, Response};
use super::within;

/// RFC 6455's example key, and what a server must make of it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A frame to send, right or wrong. `Frame::new` gives a right one.
#[derive(Clone, Debug)]
pub struct Frame {
    pub fin: bool,
    /// The three reserved bits, 0 to 7.
    pub reserved: u8,
    pub opcode: u8,
    pub masked: bool,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            fin: true,
            reserved: 0,
            opcode,
            masked: true,
            payload: payload.into(),
        }
    }

    /// One text in `parts` frames of about the same size.
    pub fn fragments(text: &str, parts: usize) -> Vec<Self> {
        let size = text.len().div_ceil(parts).max(1);
        let mut frames: Vec<Self> = text
            .as_bytes()
            .chunks(size)
            .map(|part| Self {
                fin: false,
                ..Self::new(CONTINUATION, part)
            })
            .collect();
        frames.first_mut().unwrap().opcode = TEXT;
        frames.last_mut().unwrap().fin = true;
        frames
    }

    /// As it goes onto the wire.
    pub fn encode(&self) -> Vec<u8> {
        const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
        let mut bytes = vec![u8::from(self.fin) << 7 | self.reserved << 4 | self.opcode];
        let mask_bit = u8::from(self.masked) << 7;
        let length = self.payload.len();
        if let Ok(short @ 0..126) = u8::try_from(length) {
            bytes.push(mask_bit | short);
        } else if let Ok(medium) = u16::try_from(length) {
            bytes.push(mask_bit | 126);
            bytes.extend_from_slice(&medium.to_be_bytes());
        } else {
            bytes.push(mask_bit | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
        if self.masked {
            bytes.extend_from_slice(&MASK);
            bytes.extend(
                self.payload
                    .iter()
                    .zip(MASK.iter().cycle())
                    .map(|(byte, mask)| byte ^ mask),
            );
        } else {
            bytes.extend_from_slice(&self.payload);
        }
        bytes
    }
}

/// What came from the server. Fragments come joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// The code, when there is one, and the reason.
    Close(Option<u16>, String),
    /// The TCP stream ended in order.
    End,
    /// The TCP stream was reset.
    Reset,
}

/// The headers of a request to upgrade.
pub const HANDSHAKE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", KEY),
];

/// One WebSocket.
pub struct WsClient {
    stream: TcpStream,
    unread: Vec<u8>,
    /// What was read before its time: see [`WsClient::put_back`].
    early: VecDeque<Incoming>,
    /// The answer to the upgrade.
    pub upgrade: Response,
}

impl WsClient {
    /// Connects; panics with the server's answer when it does not upgrade.
    pub async fn connect(address: SocketAddr, path: &str) -> Self {
        Self::connect_with(address, path, &[], None)
            .await
            .unwrap_or_else(|response| panic!("no upgrade: {response:?}"))
    }

    /// Connects with more headers (`Authorization`, `Sec-WebSocket-Protocol`, `Origin`) and a receive buffer of so
    /// many bytes; gives the server's answer when it does not upgrade.
    pub async fn connect_with(
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
        receive_buffer: Option<usize>,
    ) -> Result<Self, Response> {
        let mut http = HttpClient::connect_with(address, receive_buffer).await;
        let all = [&HANDSHAKE, headers].concat();
        let upgrade = http.request("GET", path, &all, "").await;
        if upgrade.status != 101 {
            return Err(upgrade);
        }
        Ok(Self::upgraded(http, upgrade))
    }

    /// Goes on over a connection that was upgraded by this answer.
    pub fn upgraded(http: HttpClient, upgrade: Response) -> Self {
        assert_eq!(upgrade.header("sec-websocket-accept"), Some(ACCEPT), "{upgrade:?}");
        assert_eq!(upgrade.header("sec-websocket-extensions"), None, "we asked for none");
        let (stream, unread) = http.into_parts();
        Self {
            stream,
            unread,
            early: VecDeque::new(),
            upgrade,
        }
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(&Frame::new(TEXT, text)).await;
    }

    pub async fn send_frame(&mut self, frame: &Frame) {
        self.send_bytes(&frame.encode()).await;
    }

    pub async fn send_close(&mut self, code: u16, reason: &str) {
        let payload = [&code.to_be_bytes(), reason.as_bytes()].concat();
        self.send_frame(&Frame::new(CLOSE, payload)).await;
    }

    /// Sends just these bytes, framed or not.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        within("the server to take our bytes", self.stream.write_all(bytes))
            .await
            .unwrap();
    }

    /// Sends these bytes where a server that has seen enough may reset the connection meanwhile: errors are fine.
    pub async fn send_bytes_regardless(&mut self, bytes: &[u8]) {
        let _ = within("the server to take or refuse our bytes", self.stream.write_all(bytes)).await;
    }

    /// Answers a ping, where the server may have closed the connection meanwhile.
    pub async fn pong(&mut self, payload: Vec<u8>) {
        self.send_bytes_regardless(&Frame::new(PONG, payload).encode()).await;
    }

    /// The next of anything, pings included; none is answered.
    pub async fn next(&mut self) -> Incoming {
        within("a frame", self.receive()).await
    }

    /// Gives back what came while something else was waited for: it is the next that comes, in the order given back.
    pub fn put_back(&mut self, incoming: Incoming) {
        self.early.push_back(incoming);
    }

    /// The next text. Pings are answered on the way; anything else fails the test.
    pub async fn next_text(&mut self) -> String {
        match self.next_but_pings().await {
            Incoming::Text(text) => text,
            other => panic!("waited for a text, got {other:?}"),
        }
    }

    /// The next text, as JSON.
    pub async fn next_json(&mut self) -> serde_json::Value {
        let text = self.next_text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
    }

    /// The code of the close that comes next (pings are answered on the way), once the server has ended the stream too.
    pub async fn next_close(&mut self) -> Option<u16> {
        let code = match self.next_but_pings().await {
            Incoming::Close(code, _) => code,
            other => panic!("waited for a close, got {other:?}"),
        };
        // Our half of the closing handshake; a server that has closed the socket already is right as well.
        let payload = code.map(|code| code.to_be_bytes().to_vec()).unwrap_or_default();
        self.send_bytes_regardless(&Frame::new(CLOSE, payload).encode()).await;
        let end = self.next().await;
        assert!(
            matches!(end, Incoming::End | Incoming::Reset),
            "after its close came {end:?}"
        );
        code
    }

    /// Every text up to the end of the stream, however that comes, and the code of its close where it had one; a frame that
    /// the end tears is dropped.
    pub async fn texts_to_the_end(&mut self) -> (Vec<String>, Option<u16>) {
        let (mut texts, mut closed) = (Vec::new(), None);
        let mut take = |incoming| match incoming {
            Incoming::Text(text) => texts.push(text),
            Incoming::Close(code, _) => closed = code,
            _ => {}
        };
        self.early.drain(..).for_each(&mut take);
        loop {
            while let Some((incoming, used)) = parse(&self.unread) {
                self.unread.drain(used);
                take(incoming);
            }
            match within("the end of the stream", self.stream.read_buf(&mut self.unread)).await {
                Ok(0) | Err(_) => return (texts, closed),
                Ok(_) => {}
            }
        }
    }

    /// Panics when anything but a ping comes within `time`. Only for what nothing else can show; a marker that must come
    /// next (a bare `ping` and its `pong`) is better, because it waits for no clock.
    pub async fn expect_silence(&mut self, time: Duration) {
        if let Ok(incoming) = tokio::time::timeout(time, self.next_but_pings()).await {
            panic!("expected silence, got {incoming:?}");
        }
    }

    /// Reads at most so many bytes of what there is, for later; 0 at the end of the stream.
    pub async fn read_some(&mut self, most: u64) -> usize {
        let mut some = (&mut self.stream).take(most);
        within("some bytes", some.read_buf(&mut self.unread)).await.unwrap_or(0)
    }

    async fn next_but_pings(&mut self) -> Incoming {
        // One patience for all of it: pings go on for as long as the connection does.
        within("a frame other than a ping", async {
            loop {
                match self.receive().await {
                    Incoming::Ping(payload) => self.pong(payload).await,
                    other => return other,
                }
            }
        })
        .await
    }

    /// One message or control frame. Safe to drop half way: what was read stays in `unread`.
    async fn receive(&mut self) -> Incoming {
        if let Some(early) = self.early.pop_front() {
            return early;
        }
        loop {
            if let Some((incoming, used)) = parse(&self.unread) {
                self.unread.drain(used);
                return incoming;
            }
            match self.stream.read_buf(&mut self.unread).await {
                Ok(0) if self.unread.is_empty() => return Incoming::End,
                Ok(0) => panic!("the stream ended inside a frame: {:?}", self.unread),
                Ok(_) => {}
                Err(_) => return Incoming::Reset,
            }
        }
    }
}

/// The first whole message or control frame in `bytes`, and the range it took up. `None`: more must come.
fn parse(bytes: &[u8]) -> Option<(Incoming, std::ops::Range<usize>)> {
    let mut joined: Option<(u8, Vec<u8>)> = None;
    let mut at = 0;
    loop {
        let (fin, opcode, payload, end) = parse_frame(bytes.get(at..)?)?;
        let frame = at..at + end;
        if opcode >= CLOSE {
            // Inside a fragmented message a control frame may come; it is given first, and cut out.
            return Some((control(opcode, payload), frame));
        }
        let (kind, mut data) = match (joined.take(), opcode) {
            (Some(begun), CONTINUATION) => begun,
            (None, TEXT | BINARY) => (opcode, Vec::new()),
            (begun, _) => panic!("opcode {opcode} where {begun:?} was begun"),
        };
        data.extend_from_slice(payload);
        at = frame.end;
        if fin {
            return Some((message(kind, data), 0..at));
        }
        joined = Some((kind, data));
    }
}

fn message(kind: u8, data: Vec<u8>) -> Incoming {
    if kind == TEXT {
        Incoming::Text(String::from_utf8(data).unwrap_or_else(|error| panic!("text that is not UTF-8: {error}")))
    } else {
        Incoming::Binary(data)
    }
}

fn control(opcode: u8, payload: &[u8]) -> Incoming {
    match (opcode, payload) {
        (PING, payload) => Incoming::Ping(payload.to_vec()),
        (PONG, payload) => Incoming::Pong(payload.to_vec()),
        (CLOSE, []) => Incoming::Close(None, String::new()),
        (CLOSE, [high, low, reason @ ..]) => {
            let reason = String::from_utf8(reason.to_vec()).unwrap();
            Incoming::Close(Some(u16::from_be_bytes([*high, *low])), reason)
        }
        _ => panic!("control frame with opcode {opcode} and payload {payload:?}"),
    }
}

/// FIN, opcode, payload and whole length of the frame that `bytes` begin with, when it is all there.
fn parse_frame(bytes: &[u8]) -> Option<(bool, u8, &[u8], usize)> {
    let [first, second, rest @ ..] = bytes else { return None };
    let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
    assert_eq!(first & 0x70, 0, "reserved bits set by the server");
    assert_eq!(second & 0x80, 0, "masked by the server");
    assert!(
        matches!(opcode, CONTINUATION..=BINARY | CLOSE..=PONG),
        "opcode {opcode} from the server"
    );
    assert!(
        opcode < CLOSE || (fin && *second <= 125),
        "a long or fragmented control frame from the server"
    );
    let (extended, length) = match second {
        126 => (2, u16::from_be_bytes(rest.first_chunk().copied()?).into()),
        127 => (8, u64::from_be_bytes(rest.first_chunk().copied()?)),
        short => (0, u64::from(*short)),
    };
    let length = usize::try_from(length).unwrap();
    let payload = rest.get(extended..extended + length)?;
    Some((fin, opcode, payload, 2 + extended + length))
}
