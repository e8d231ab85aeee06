//! `watch`: a presenter's WebSocket in a terminal.

use std::{process::ExitCode, time::Duration};

use awc::ws::{Frame, Message};
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;

use super::{Failure, print};

#[derive(Args)]
pub(super) struct WatchArgs {
    /// The server's WebSocket
    #[arg(long, value_name = "URL", default_value = "ws://127.0.0.1:8080/chatting")]
    url: String,
    /// The presenter's token (environment: TOKEN)
    #[arg(long, env = "TOKEN", hide_env_values = true)]
    token: String,
    /// Stop after so many chat frames
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

pub(super) fn run(args: &WatchArgs) -> Result<ExitCode, Failure> {
    actix_web::rt::System::new().block_on(watch(args))
}

async fn watch(args: &WatchArgs) -> Result<ExitCode, Failure> {
    let client = awc::Client::builder()
        .max_http_version(awc::http::Version::HTTP_11)
        .finish();
    let connecting = client.ws(&args.url).connect().await;
    let (_, mut socket) = connecting.map_err(|error| format!("{}: {error}", args.url))?;
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
                print(&format!("{}\n", String::from_utf8_lossy(&text)));
                seen += 1;
                if args.count.is_some_and(|count| seen >= count) {
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
