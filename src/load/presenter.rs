//! One presenter's WebSocket that counts what it gets.

use std::{net::SocketAddr, ops::Range};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use chatting_actors::wire::v1::SUBPROTOCOL;

use super::{
    PATIENCE, Shared, Speaks,
    sender::{code, whole},
};

/// Connects, starts the session, and waits until it has begun: for the `pong` behind a legacy `start`, for v1's `welcome`.
pub(super) async fn connect(
    addr: SocketAddr,
    room: u64,
    token: &str,
    speaks: Speaks,
    receive_buffer: Option<u32>,
) -> Result<Socket, String> {
    let late = |_| format!("{addr}: room {room}: no session within {PATIENCE:?}");
    let answered = timeout(PATIENCE, ask(addr, room, token, speaks, receive_buffer));
    let mut socket = answered.await.map_err(late)??;
    if speaks != Speaks::Plain {
        let refused = |why| format!("{addr}: room {room}: a presenter was refused: {why}");
        socket.let_in(speaks).await.map_err(refused)?;
    }
    Ok(socket)
}

/// Connects, starts the session, and waits for the first frame that answers it. In `Plain` nothing does.
async fn ask(
    addr: SocketAddr,
    room: u64,
    token: &str,
    speaks: Speaks,
    receive_buffer: Option<u32>,
) -> Result<Socket, String> {
    let fail = |error: std::io::Error| format!("{addr}: {error}");
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    };
    let socket = socket.map_err(fail)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes).map_err(fail)?;
    }
    let mut stream = socket.connect(addr).await.map_err(fail)?;
    stream.set_nodelay(true).map_err(fail)?;
    let (path, more) = match speaks {
        Speaks::Legacy => ("/chatting".to_owned(), String::new()),
        Speaks::V1 => (
            "/v1/presenter".to_owned(),
            format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"),
        ),
        Speaks::Plain => (format!("/rooms/{room}"), String::new()),
    };
    let upgrade = format!(
        "GET {path} HTTP/1.1\r\nHost: load\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{more}\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(upgrade.as_bytes()).await.map_err(fail)?;
    let mut socket = Socket {
        stream,
        bytes: Vec::with_capacity(1024),
        at: 0,
    };
    let refused = |why: String| format!("{addr}: room {room}: a presenter was refused: {why}");
    let head = loop {
        if let Some(end) = socket.bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        socket.fill().await.map_err(refused)?;
    };
    if !socket.bytes.starts_with(b"HTTP/1.1 101") {
        return Err(refused(socket.refusal().await));
    }
    socket.at = head + 4;
    let begin = match speaks {
        Speaks::Legacy => format!(r#"{{"id":"start","token":"{token}"}}"#),
        Speaks::V1 => format!(r#"{{"type":"hello","token":"{token}"}}"#),
        Speaks::Plain => return Ok(socket),
    };
    socket.send(TEXT, begin.as_bytes()).await?;
    if speaks == Speaks::Legacy {
        socket.send(TEXT, b"ping").await?;
    }
    while frame(socket.unread()).is_none() {
        socket.fill().await.map_err(refused)?;
    }
    Ok(socket)
}

/// What a close frame says.
fn closed(payload: &[u8]) -> String {
    let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
    let space = if reason.is_empty() { "" } else { " " };
    format!("closed with {}{space}{reason}", close_code(payload))
}

/// What the original server answers to a `ping`.
const PONG: &[u8] = b"pong";

/// So much is read of an answer that is no upgrade.
const MOST_REFUSAL: usize = 64 * 1024;

const LEGACY_CHAT: &[u8] = br#"{"id":"sendChatting""#;

/// Opcodes (RFC 6455, 5.2).
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG_FRAME: u8 = 0xa;

/// Counts chat frames until the socket ends, those of the presenter of that room of the plan, and how it ended.
pub(super) async fn count(mut socket: Socket, speaks: Speaks, room: u64, counts: Shared) {
    let how = until_it_ends(&mut socket, speaks, room, &counts).await;
    counts.borrow_mut().presenter_ended(room, how);
}

/// A v1 client acknowledges once what came together. Gives the close code, or `cut` where there was none.
async fn until_it_ends(socket: &mut Socket, speaks: Speaks, room: u64, counts: &Shared) -> String {
    loop {
        let (mut newest, mut ping) = (None, None);
        while let Some((opcode, at)) = socket.take() {
            let payload = &socket.bytes[at];
            match opcode {
                TEXT if payload != PONG => {}
                PING => {
                    ping = Some(payload.to_vec());
                    continue;
                }
                CLOSE => {
                    let (how, payload) = (close_code(payload), payload.to_vec());
                    let _ = socket.send(CLOSE, &payload).await;
                    return how;
                }
                _ => continue,
            }
            let seq = if speaks == Speaks::V1 { seq(payload) } else { None };
            newest = seq.or(newest);
            let mut counts = counts.borrow_mut();
            // What others sent has a place in the room's order, too.
            let follows = seq.is_none_or(|seq| counts.follows(room, seq));
            let Some([_, sender, turn, due]) = stamp(payload, speaks).filter(|[run, ..]| *run == counts.run) else {
                counts.of_others += u64::from(is_chat(payload, speaks));
                continue;
            };
            counts.came(room, follows, [sender, turn, due]);
        }
        if let Some(payload) = ping {
            let _ = socket.send(PONG_FRAME, &payload).await;
        }
        if let Some(seq) = newest {
            let ack = format!(r#"{{"type":"ack","seq":{seq}}}"#);
            let _ = socket.send(TEXT, ack.as_bytes()).await;
        }
        if socket.fill().await.is_err() {
            return "cut".into();
        }
    }
}

/// The code of a close frame; 1005 stands for none (RFC 6455, 7.1.5).
fn close_code(payload: &[u8]) -> String {
    let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
    code.to_string()
}

/// Whether a text frame is a message, and nothing that the server says of itself.
fn is_chat(payload: &[u8], speaks: Speaks) -> bool {
    match speaks {
        Speaks::Legacy => payload.starts_with(LEGACY_CHAT),
        Speaks::V1 => payload.starts_with(br#"{"type":"chat""#),
        Speaks::Plain => true,
    }
}

/// The four numbers at the start of a message's text.
fn stamp(payload: &[u8], speaks: Speaks) -> Option<[u64; 4]> {
    let text = std::str::from_utf8(payload).ok()?;
    let field = match speaks {
        Speaks::Legacy => "\"message\":\"",
        Speaks::V1 | Speaks::Plain => "\"text\":\"",
    };
    let text = text.split_once(field)?.1;
    let mut numbers = text.split(' ').map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??, numbers.next()??])
}

/// The seq of a v1 chat frame.
fn seq(payload: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(payload).ok()?;
    text.split_once("\"seq\":")?.1.split(',').next()?.parse().ok()
}

/// A WebSocket client with no more than this tool needs.
pub(super) struct Socket {
    stream: TcpStream,
    /// What was read; what comes before `at` was looked at already.
    bytes: Vec<u8>,
    at: usize,
}

impl Socket {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// Reads more; what was looked at goes first, so that what is left is moved once a read and not once a frame.
    async fn fill(&mut self) -> Result<(), String> {
        self.bytes.drain(..self.at);
        self.at = 0;
        match self.stream.read_buf(&mut self.bytes).await {
            Ok(0) => Err("the connection ended".into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Reads whether the session has begun. The error is why it has not.
    async fn let_in(&mut self, speaks: Speaks) -> Result<(), String> {
        let before = self.at;
        let (opcode, payload) = self.next().await?;
        match (opcode, &self.bytes[payload]) {
            (TEXT, payload) if payload == PONG || payload.starts_with(br#"{"type":"welcome""#) => Ok(()),
            (TEXT, payload) if speaks == Speaks::Legacy && payload.starts_with(LEGACY_CHAT) => {
                // What was held for it: it is let in, its pong comes later, and this is to be counted.
                self.at = before;
                Ok(())
            }
            (CLOSE, payload) => Err(closed(payload)),
            (_, payload) => {
                let why = code(payload).unwrap_or_else(|| String::from_utf8_lossy(payload).into_owned());
                // A close comes behind it, if any does.
                match timeout(PATIENCE, self.next()).await {
                    Ok(Ok((CLOSE, payload))) => Err(format!("{why}, {}", closed(&self.bytes[payload]))),
                    _ => Err(why),
                }
            }
        }
    }

    /// What an answer says that is no upgrade: its first line, and the code of its problem if it has one.
    async fn refusal(&mut self) -> String {
        let answered = loop {
            match whole(self.unread()) {
                Ok(None) if self.bytes.len() < MOST_REFUSAL && self.fill().await.is_ok() => {}
                answered => break answered.ok().flatten(),
            }
        };
        let line = self.unread().split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        match answered.and_then(|answered| code(&self.unread()[answered.body])) {
            Some(code) => format!("{line}, {code}"),
            None => line.into_owned(),
        }
    }

    /// A masked frame; the mask is zero, which a server cannot tell from any other.
    async fn send(&mut self, opcode: u8, payload: &[u8]) -> Result<(), String> {
        let mut frame = vec![0x80 | opcode];
        match u16::try_from(payload.len()) {
            Ok(length @ 0..=125) => frame.push(0x80 | length.to_be_bytes()[1]),
            Ok(length) => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
            Err(_) => return Err("a frame is too long".into()),
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame).await.map_err(|error| error.to_string())
    }

    /// The next frame's opcode and where its payload is, if all of it is here.
    fn take(&mut self) -> Option<(u8, Range<usize>)> {
        let (opcode, from, to) = frame(self.unread())?;
        let payload = self.at + from..self.at + to;
        self.at += to;
        Some((opcode, payload))
    }

    /// The next frame's opcode and where its payload is in `bytes`, until the next call.
    async fn next(&mut self) -> Result<(u8, Range<usize>), String> {
        loop {
            if let Some(found) = self.take() {
                return Ok(found);
            }
            self.fill().await?;
        }
    }
}

/// Where the first whole frame's payload is.
fn frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let opcode = bytes.first()? & 0x0f;
    let (from, length) = match bytes.get(1)? & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (
            10,
            usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?,
        ),
        short => (2, usize::from(short)),
    };
    (bytes.len() >= from + length).then_some((opcode, from, from + length))
}
