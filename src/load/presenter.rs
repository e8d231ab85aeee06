//! One presenter's WebSocket that counts what it gets.

use std::{collections::HashMap, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use chatting_actors::wire::v1::SUBPROTOCOL;

use super::{MAX_US, Shared, Speaks};

/// Connects, starts the session, and waits until it has begun: for the `pong` behind a legacy `start`, for v1's `welcome`.
pub(super) async fn connect(
    addr: SocketAddr,
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
        Speaks::Legacy => ("/chatting", String::new()),
        Speaks::V1 => ("/v1/presenter", format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n")),
    };
    let upgrade = format!(
        "GET {path} HTTP/1.1\r\nHost: load\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{more}\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(upgrade.as_bytes()).await.map_err(fail)?;
    let mut socket = Socket {
        stream,
        unread: Vec::with_capacity(8192),
    };
    let head = loop {
        if let Some(end) = socket.unread.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        socket.fill().await?;
    };
    if !socket.unread.starts_with(b"HTTP/1.1 101") {
        return Err(format!("{addr}: a presenter's WebSocket was refused"));
    }
    socket.unread.drain(..head + 4);
    let begin = match speaks {
        Speaks::Legacy => format!(r#"{{"id":"start","token":"{token}"}}"#),
        Speaks::V1 => format!(r#"{{"type":"hello","token":"{token}"}}"#),
    };
    socket.send(0x1, begin.as_bytes()).await?;
    if speaks == Speaks::Legacy {
        socket.send(0x1, b"ping").await?;
    }
    match socket.next().await? {
        (0x1, payload) if payload == b"pong" || payload.starts_with(br#"{"type":"welcome""#) => Ok(socket),
        (_, payload) => Err(format!(
            "{addr}: a presenter was refused: {}",
            String::from_utf8_lossy(&payload)
        )),
    }
}

/// Counts chat frames until the socket ends. A sender's messages to a room come in the order of their numbers, so one that
/// is not greater than the last was doubled or misplaced.
pub(super) async fn count(mut socket: Socket, speaks: Speaks, counts: Shared) {
    let mut last: HashMap<u64, u64> = HashMap::new();
    while let Ok((opcode, payload)) = socket.next().await {
        if opcode == 0x9 {
            let _ = socket.send(0xa, &payload).await;
            continue;
        }
        let Some([sender, turn, due]) = stamp(&payload, speaks) else {
            continue;
        };
        if let Some(seq) = seq(&payload).filter(|_| speaks == Speaks::V1) {
            let ack = format!(r#"{{"type":"ack","seq":{seq}}}"#);
            let _ = socket.send(0x1, ack.as_bytes()).await;
        }
        let mut counts = counts.borrow_mut();
        counts.delivered += 1;
        if last.insert(sender, turn).is_some_and(|before| before >= turn) {
            counts.misplaced += 1;
        }
        let took = counts.us().saturating_sub(due).min(MAX_US);
        counts.delivery_us.saturating_record(took);
    }
}

/// The three numbers at the start of a message's text.
fn stamp(payload: &[u8], speaks: Speaks) -> Option<[u64; 3]> {
    let text = std::str::from_utf8(payload).ok()?;
    let field = match speaks {
        Speaks::Legacy => "\"message\":\"",
        Speaks::V1 => "\"text\":\"",
    };
    let text = text.split_once(field)?.1;
    let mut numbers = text.split(' ').map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

/// The seq of a v1 chat frame.
fn seq(payload: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(payload).ok()?;
    text.split_once("\"seq\":")?.1.split(',').next()?.parse().ok()
}

/// A WebSocket client with no more than this tool needs.
pub(super) struct Socket {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Socket {
    async fn fill(&mut self) -> Result<(), String> {
        match self.stream.read_buf(&mut self.unread).await {
            Ok(0) => Err("the connection ended".into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
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

    /// The next frame's opcode and payload.
    async fn next(&mut self) -> Result<(u8, Vec<u8>), String> {
        loop {
            if let Some((opcode, from, to)) = frame(&self.unread) {
                let payload = self.unread[from..to].to_vec();
                self.unread.drain(..to);
                return Ok((opcode, payload));
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
