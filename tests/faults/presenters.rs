//! The presenters: a legacy WebSocket a room, which comes back whenever it is cut and writes down every frame.

use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};

use awc::ws::{Frame, Message};
use chatting_server::settings::Settings;
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{app::token_of, within};

/// Between two tries to connect.
const RECONNECT: Duration = Duration::from_millis(10);
/// A text that begins so ends the round.
pub const END: &str = "end-";

/// A chat frame.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// Counts the sockets of this presenter.
    pub socket: u32,
    pub text: String,
}

pub struct Presenter {
    pub room: i64,
    pub address: Rc<Cell<Option<SocketAddr>>>,
    /// Changes whenever every presenter is to cut its socket.
    pub cut: watch::Receiver<u32>,
    /// Counts the sockets of all presenters that the server has heard.
    pub attached: Rc<Cell<u32>>,
}

/// Why a socket is no longer read.
enum Over {
    /// It was cut, from either side.
    Cut,
    /// The round's last message came, and nothing behind it.
    End,
}

impl Presenter {
    /// Reads until the round's last message; gives every frame of every socket, in the order they came.
    pub async fn run(mut self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut socket = 0;
        loop {
            socket += 1;
            match self.one_socket(socket, &mut seen).await {
                Some(Over::End) => return seen,
                Some(Over::Cut) | None => tokio::time::sleep(RECONNECT).await,
            }
        }
    }

    /// One socket's life; `None` when there was none.
    async fn one_socket(&mut self, number: u32, seen: &mut Vec<Seen>) -> Option<Over> {
        let client = awc::Client::builder()
            .max_http_version(awc::http::Version::HTTP_11)
            .finish();
        let url = format!("ws://{}/chatting", self.address.get()?);
        let (_, mut socket) = client.ws(url).connect().await.ok()?;
        let token = token_of(&Settings::default(), self.room, "kim");
        let start = json!({ "id": "start", "token": token }).to_string();
        socket.send(Message::Text(start.into())).await.ok()?;
        // The answer to this tells that the server has heard the other.
        socket.send(Message::Text("ping".into())).await.ok()?;
        let mut ended = false;
        self.cut.mark_unchanged();
        loop {
            let frame = tokio::select! {
                frame = socket.next() => frame,
                _ = self.cut.changed() => return Some(Over::Cut),
            };
            match frame {
                Some(Ok(Frame::Text(text))) if &text[..] == b"pong" => {
                    if ended {
                        return Some(Over::End);
                    }
                    self.attached.set(self.attached.get() + 1);
                }
                Some(Ok(Frame::Text(frame))) => {
                    let frame: Value = serde_json::from_slice(&frame).unwrap();
                    let text = frame["message"].as_str().unwrap().to_owned();
                    if text.starts_with(END) {
                        // Whatever else was sent comes before the answer to this.
                        ended = true;
                        let asked = socket.send(Message::Text("ping".into()));
                        within("the last ping to go", asked).await.ok()?;
                    }
                    seen.push(Seen { socket: number, text });
                }
                Some(Ok(Frame::Ping(payload))) => socket.send(Message::Pong(payload)).await.ok()?,
                Some(Ok(Frame::Close(_)) | Err(_)) | None => return Some(Over::Cut),
                Some(Ok(_)) => {}
            }
        }
    }
}
