//! `watch`: a presenter's WebSocket in a terminal.

use std::{borrow::Cow, fmt::Write, process::ExitCode, time::Duration};

use actix_web::http::{StatusCode, Uri};
use awc::{
    Client,
    error::WsClientError,
    ws::{Frame, Message},
};
use chatting_actors::wire::v1::SUBPROTOCOL;
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
    /// The server's WebSocket; at /v1/presenter dialect v1 is spoken, elsewhere the original server's protocol
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/chatting")]
    url: Uri,
    /// The presenter's token (environment: TOKEN)
    #[arg(long, env = "TOKEN", hide_env_values = true)]
    token: String,
    /// Resume behind this seq, 0 from the broadcast's start (dialect v1)
    #[arg(long, value_name = "SEQ")]
    resume_after: Option<u64>,
    /// Stop after so many chat messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// What is spoken, by the URL.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Legacy,
    V1,
}

impl Dialect {
    fn of(url: &Uri) -> Self {
        match url.path().trim_end_matches('/').ends_with("/v1/presenter") {
            true => Self::V1,
            false => Self::Legacy,
        }
    }

    /// The first frame.
    fn begin(self, args: &WatchArgs) -> String {
        match self {
            Self::Legacy => json!({ "id": "start", "token": args.token }).to_string(),
            Self::V1 => {
                let mut hello = json!({ "type": "hello", "token": args.token });
                if let Some(seq) = args.resume_after {
                    hello["resume_after"] = seq.into();
                }
                hello.to_string()
            }
        }
    }

    fn ping(self) -> &'static str {
        match self {
            Self::Legacy => "ping",
            Self::V1 => r#"{"type":"ping"}"#,
        }
    }
}

/// What a text frame of the server's is to whoever watches.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The answer to our own ping.
    Pong,
    /// A chat message. In v1 it is acknowledged by its seq once it was printed, and so is an act of moderation.
    Chat(Option<u64>),
    Moderation(u64),
    Other,
}

impl Said {
    fn by(text: &[u8], dialect: Dialect) -> Self {
        if dialect == Dialect::Legacy {
            return match text {
                b"pong" => Self::Pong,
                chat if chat.starts_with(LEGACY_CHAT) => Self::Chat(None),
                _ => Self::Other,
            };
        }
        let frame: Value = serde_json::from_slice(text).unwrap_or_default();
        match (frame["type"].as_str(), frame["seq"].as_u64()) {
            (Some("pong"), _) => Self::Pong,
            (Some("chat"), seq) => Self::Chat(seq),
            (Some("moderation"), Some(seq)) => Self::Moderation(seq),
            _ => Self::Other,
        }
    }
}

/// What a chat message of the legacy dialect begins with (docs/LEGACY.md).
const LEGACY_CHAT: &[u8] = br#"{"id":"sendChatting""#;

/// How long a server that refuses may take to say why.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of a refusal that are read.
const REFUSAL_MAX_BYTES: u64 = 16 * 1024;

/// Characters of a refusal's body that are told, where it has no words for people.
const REFUSAL_MAX_CHARS: usize = 200;

pub(super) fn run(args: &WatchArgs) -> Result<ExitCode, Failure> {
    if args.resume_after.is_some() && Dialect::of(&args.url) == Dialect::Legacy {
        return Err(Failure::usage(
            "--resume-after is for dialect v1: give --url ws://…/v1/presenter",
        ));
    }
    until_it_ends(watch(args))
}

async fn watch(args: &WatchArgs) -> Result<ExitCode, Failure> {
    let client = Client::builder().max_http_version(awc::http::Version::HTTP_11).finish();
    let dialect = Dialect::of(&args.url);
    let mut upgrade = client.ws(&args.url);
    if dialect == Dialect::V1 {
        upgrade = upgrade.protocols([SUBPROTOCOL]);
    }
    let (_, mut socket) = match upgrade.connect().await {
        Ok(connected) => connected,
        Err(WsClientError::InvalidResponseStatus(status)) => {
            let why = refusal(&args.url, status).await.unwrap_or_default();
            return Err(format!("{}: refused with {status}{why}", args.url).into());
        }
        Err(error) => return Err(format!("{}: {error}", args.url).into()),
    };
    socket
        .send(Message::Text(dialect.begin(args).into()))
        .await
        .map_err(|error| error.to_string())?;
    let mut beat = tokio::time::interval(Duration::from_secs(10));
    let mut seen = 0;
    loop {
        let frame = tokio::select! {
            frame = socket.next() => frame,
            _ = beat.tick() => {
                socket.send(Message::Text(dialect.ping().into())).await.map_err(|error| error.to_string())?;
                continue;
            }
        };
        match frame {
            Some(Ok(Frame::Text(text))) => {
                let said = Said::by(&text, dialect);
                if said == Said::Pong {
                    continue;
                }
                let told = try_print(&format!("{}\n", for_a_terminal(&String::from_utf8_lossy(&text))));
                seen += u64::from(matches!(said, Said::Chat(_)));
                if let (true, Said::Chat(Some(seq)) | Said::Moderation(seq)) = (told, said) {
                    let ack = json!({ "type": "ack", "seq": seq }).to_string();
                    socket
                        .send(Message::Text(ack.into()))
                        .await
                        .map_err(|error| error.to_string())?;
                }
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

/// A frame as a terminal may have it: what would steer it (DEL and the C1 controls, which JSON may have as they are, and whatever else
/// of the kind a server sends) is escaped, which in JSON is the same value.
fn for_a_terminal(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !matches!(c, '\t' | '\r' | '\n');
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut told = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            // Writing to a String cannot fail.
            let _ = write!(told, "\\u{:04x}", u32::from(c));
        } else {
            told.push(c);
        }
    }
    Cow::Owned(told)
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
    let protocol = match Dialect::of(url) {
        Dialect::Legacy => String::new(),
        Dialect::V1 => format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"),
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_anyone_says_steers_the_terminal_and_the_json_is_the_same() {
        let said = "{\"message\":\"안녕\u{9b}31m\u{7f}\u{85}é\\u001b\"}";
        let told = for_a_terminal(said);
        assert_eq!(told, "{\"message\":\"안녕\\u009b31m\\u007f\\u0085é\\u001b\"}");
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(value(&told), value(said));
        assert_eq!(for_a_terminal("no JSON: \u{1b}[2J"), "no JSON: \\u001b[2J");
        assert!(matches!(for_a_terminal("{\"id\":5}\n"), Cow::Borrowed(_)));
    }
}
