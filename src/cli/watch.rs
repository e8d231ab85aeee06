//! `watch`: a presenter's WebSocket in a terminal.

use std::{process::ExitCode, time::Duration};

use actix_web::http::{StatusCode, Uri};
use awc::{
    Client,
    error::WsClientError,
    ws::{Frame, Message},
};
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Failure, try_print, until_it_ends};

#[derive(Args)]
pub(super) struct WatchArgs {
    /// The server's WebSocket, the legacy one
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/chatting", value_parser = legacy_url)]
    url: Uri,
    /// The presenter's token (environment: TOKEN)
    #[arg(long, env = "TOKEN", hide_env_values = true)]
    token: String,
    /// Stop after so many chat frames
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// How long a server that refuses may take to say why.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of a refusal that are read.
const REFUSAL_MAX_BYTES: u64 = 16 * 1024;

/// Characters of a refusal's body that are told, where it has no words for people.
const REFUSAL_MAX_CHARS: usize = 200;

fn legacy_url(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|error| format!("{error}"))?;
    if url.path().trim_end_matches('/').ends_with("/v1/presenter") {
        return Err(
            "watch speaks the original server's protocol at /chatting only; dialect v1 is for clients (docs/PROTOCOL.md)"
                .into(),
        );
    }
    Ok(url)
}

pub(super) fn run(args: &WatchArgs) -> Result<ExitCode, Failure> {
    until_it_ends(watch(args))
}

async fn watch(args: &WatchArgs) -> Result<ExitCode, Failure> {
    let client = Client::builder().max_http_version(awc::http::Version::HTTP_11).finish();
    let (_, mut socket) = match client.ws(&args.url).connect().await {
        Ok(connected) => connected,
        Err(WsClientError::InvalidResponseStatus(status)) => {
            let why = refusal(&args.url, status).await.unwrap_or_default();
            return Err(format!("{}: refused with {status}{why}", args.url).into());
        }
        Err(error) => return Err(format!("{}: {error}", args.url).into()),
    };
    let start = json!({ "id": "start", "token": args.token }).to_string();
    socket
        .send(Message::Text(start.into()))
        .await
        .map_err(|error| error.to_string())?;
    let mut beat = tokio::time::interval(Duration::from_secs(10));
    let mut seen = 0;
    loop {
        let frame = tokio::select! {
            frame = socket.next() => frame,
            _ = beat.tick() => {
                socket.send(Message::Text("ping".into())).await.map_err(|error| error.to_string())?;
                continue;
            }
        };
        match frame {
            Some(Ok(Frame::Text(text))) if &text[..] == b"pong" => {}
            Some(Ok(Frame::Text(text))) => {
                let told = try_print(&format!("{}\n", String::from_utf8_lossy(&text)));
                seen += 1;
                // Whoever reads this may have enough, as `head` does.
                if !told || args.count.is_some_and(|count| seen >= count) {
                    let _ = socket.send(Message::Close(None)).await;
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Some(Ok(Frame::Ping(payload))) => {
                socket
                    .send(Message::Pong(payload))
                    .await
                    .map_err(|error| error.to_string())?;
            }
            Some(Ok(Frame::Close(reason))) => {
                let code = reason.map_or(1005, |reason| u16::from(reason.code));
                return Err(format!("the server closed the connection ({code})").into());
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.to_string().into()),
            None => return Err("the connection is gone".to_owned().into()),
        }
    }
}

/// What the server says of a refusal, as the end of a sentence. The WebSocket client gives the status only, so the same is asked for
/// once more, by hand, where no TLS is in the way.
async fn refusal(url: &Uri, status: StatusCode) -> Option<String> {
    if url.scheme_str() != Some("ws") {
        return None;
    }
    let answer = tokio::time::timeout(REFUSAL_PATIENCE, ask_again(url))
        .await
        .ok()?
        .ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    // It may have thought better of it.
    if head.split(' ').nth(1) != Some(status.as_str()) {
        return None;
    }
    let told = match serde_json::from_str::<Value>(body) {
        Ok(json) => ["detail", "message"]
            .iter()
            .find_map(|name| json.get(name)?.as_str().map(str::to_owned)),
        Err(_) => None,
    };
    // It is anyone's text, and this is a terminal.
    let told = told.as_deref().unwrap_or(body).trim().chars();
    let told: String = told.filter(|c| !c.is_control()).take(REFUSAL_MAX_CHARS).collect();
    (!told.is_empty()).then(|| format!(": {told}"))
}

/// The whole answer, or as much of it as is told at most.
async fn ask_again(url: &Uri) -> std::io::Result<String> {
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().unwrap_or(80);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut limited = stream.take(REFUSAL_MAX_BYTES);
    while !is_whole(&answer) && limited.read_buf(&mut answer).await? > 0 {}
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether the answer has all that its head promises; without a promise it ends with the connection.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, _)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    if head.starts_with("HTTP/1.1 101 ") {
        return true;
    }
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let mut length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.next().and_then(|(_, value)| value.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= head.len() + 4 + length)
}
