//! Sends inputs over connections and reads what comes back.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    inputs::{Inputs, Request},
    report::Report,
};

/// Requests that are sent before the first is answered.
const PIPELINED: usize = 16;

/// How long an answer, or the end of a connection, may take. Far above what it takes; what takes longer is a violation.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends until `count` inputs have been sent by all together.
pub async fn run(address: SocketAddr, mut inputs: Inputs, sent: Arc<AtomicU64>, count: u64) -> Report {
    let mut report = Report::default();
    while sent.load(Ordering::Relaxed) < count {
        let before = report.inputs();
        // A round of requests is some fifty inputs, a connection of the others one or a few.
        let what = inputs.below(40);
        let done = tokio::time::timeout(PATIENCE, async {
            match what {
                0..20 => broken(address, &mut inputs, &mut report).await,
                20..35 => websocket(address, &mut inputs, &mut report).await,
                _ => requests(address, &mut inputs, &mut report).await,
            }
        })
        .await;
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => report.bad(format!("a connection failed: {error}")),
            Err(_) => report.bad(format!("nothing came for {PATIENCE:?} (kind {what})")),
        }
        sent.fetch_add(report.inputs() - before, Ordering::Relaxed);
    }
    report
}

/// Some rounds of pipelined requests on one connection; each has its answer, or the server ends the connection after one.
async fn requests(address: SocketAddr, inputs: &mut Inputs, report: &mut Report) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let mut unread = Vec::new();
    // What cannot be read as HTTP is answered with a bare 400, which ends the connection and does not say so.
    let mut unreadable = false;
    for _ in 0..4 {
        let batch: Vec<Request> = (0..PIPELINED).map(|_| inputs.request()).collect();
        let bytes: Vec<u8> = batch.iter().flat_map(|request| request.bytes.iter().copied()).collect();
        let (mut reading, mut writing) = stream.split();
        // Both at once: the server may answer and end it before it has taken all.
        let write = async { drop(writing.write_all(&bytes).await) };
        let read = async {
            for request in &batch {
                let Some((status, body, ends)) = answer(&mut reading, &mut unread).await else {
                    match unreadable {
                        true => report.ended(),
                        false => report.ended_unannounced(),
                    }
                    return false;
                };
                report.sent("request", 1);
                report.answer("request", status, &body, &request.bytes);
                unreadable = status == 400 && body.is_empty();
                if ends {
                    report.ended();
                    return false;
                }
            }
            true
        };
        let mut write = std::pin::pin!(write);
        let mut read = std::pin::pin!(read);
        let mut written = false;
        let goes_on = loop {
            tokio::select! {
                goes_on = &mut read => break goes_on,
                () = &mut write, if !written => written = true,
            }
        };
        if !goes_on {
            return Ok(());
        }
    }
    Ok(())
}

/// One answer: status, body, and whether it is the connection's last. `None` when the connection ends first.
async fn answer(stream: &mut (impl AsyncReadExt + Unpin), unread: &mut Vec<u8>) -> Option<(u16, Vec<u8>, bool)> {
    loop {
        if let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&unread[..end]).to_ascii_lowercase();
            let status = head.split(' ').nth(1)?.parse().ok()?;
            let length = head
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.lines().next()?.trim().parse().ok());
            assert!(!head.contains("transfer-encoding"), "an answer in chunks: {head}");
            let whole = end + 4 + length.unwrap_or(0);
            while unread.len() < whole {
                if stream.read_buf(unread).await.ok()? == 0 {
                    return None;
                }
            }
            let body = unread[end + 4..whole].to_vec();
            unread.drain(..whole);
            return Some((status, body, head.contains("connection: close")));
        }
        if stream.read_buf(unread).await.ok()? == 0 {
            return None;
        }
    }
}

/// Broken HTTP, and then nothing more: the server answers what it can and ends the connection.
async fn broken(address: SocketAddr, inputs: &mut Inputs, report: &mut Report) -> std::io::Result<()> {
    let bytes = inputs.broken();
    let mut stream = TcpStream::connect(address).await?;
    report.sent("broken", 1);
    let all = talk(&mut stream, &bytes).await;
    // There may be several answers, or none: what is left over may be a request of its own.
    let mut at = 0;
    while let Some(next) = find(&all[at..], b"HTTP/1.1 ") {
        at += next + 9;
        if let Some(status) = std::str::from_utf8(&all[at..(at + 3).min(all.len())])
            .ok()
            .and_then(|text| text.parse().ok())
        {
            report.answer("broken", status, &all[at..], &bytes);
        }
    }
    Ok(())
}

/// A WebSocket that says what it should not; the server answers or closes.
async fn websocket(address: SocketAddr, inputs: &mut Inputs, report: &mut Report) -> std::io::Result<()> {
    let (handshake, frames) = inputs.websocket();
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&handshake).await?;
    let mut unread = Vec::new();
    while find(&unread, b"\r\n\r\n").is_none() {
        if stream.read_buf(&mut unread).await? == 0 {
            report.bad("a handshake without an answer".into());
            return Ok(());
        }
    }
    let upgraded = unread.starts_with(b"HTTP/1.1 101 ");
    let status = String::from_utf8_lossy(&unread)
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    report.answer("frame", status.unwrap_or(0), &unread, &handshake);
    if !upgraded {
        return Ok(());
    }
    report.sent("frame", frames.len() as u64);
    // With a ping behind it: its pong says that all before it has been read. A frame that swallows it leaves the end to the
    // keep-alive.
    let ping = [0x89, 0x83, 0, 0, 0, 0, b'e', b'n', b'd'];
    let bytes = [&frames.concat()[..], &ping].concat();
    let mut said = unread.split_off(find(&unread, b"\r\n\r\n").unwrap_or(0) + 4);
    let (mut reading, mut writing) = stream.split();
    let write = async { drop(writing.write_all(&bytes).await) };
    let read = async {
        loop {
            if let Some(code) = verdict(&said) {
                return code;
            }
            match reading.read_buf(&mut said).await {
                Ok(0) | Err(_) => return 0,
                Ok(_) => {}
            }
        }
    };
    let ((), code) = tokio::join!(write, read);
    report.closed(code);
    Ok(())
}

/// What the server said to it all: the code that it closed with, or 1 where it went on to the ping; `None`: not yet.
fn verdict(mut said: &[u8]) -> Option<u16> {
    while let [first, second, ..] = *said {
        let (head, length) = match second & 0x7f {
            126 if said.len() >= 4 => (4, usize::from(u16::from_be_bytes([said[2], said[3]]))),
            126 | 127 => return None,
            short => (2, usize::from(short)),
        };
        let payload = said.get(head..head + length)?;
        match first & 0x0f {
            8 => return Some(payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code))),
            10 if payload == b"end" => return Some(1),
            _ => said = &said[head + length..],
        }
    }
    None
}

/// Sends all of it, closes our side, and reads to the end.
async fn talk(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    let (mut reading, mut writing) = stream.split();
    let mut said = Vec::new();
    let write = async {
        let _ = writing.write_all(bytes).await;
        let _ = writing.shutdown().await;
    };
    let read = async {
        let _ = reading.read_to_end(&mut said).await;
    };
    tokio::join!(write, read);
    said
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}
