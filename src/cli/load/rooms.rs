//! Rooms that are made live for a run, in the server's embedded room server, and ended behind it.

use std::{net::SocketAddr, ops::Range};

use awc::http::StatusCode;
use serde_json::{Value, json};

/// The embedded room server of a server, with an operator's token.
pub(super) struct Rooms {
    client: awc::Client,
    addr: SocketAddr,
    operator: String,
    /// Rooms that it made live and has not ended.
    started: Vec<u64>,
}

impl Rooms {
    /// Of the server at this address.
    pub fn new(addr: SocketAddr, operator: String) -> Self {
        Self {
            client: awc::Client::default(),
            addr,
            operator,
            started: Vec::new(),
        }
    }

    /// Makes all of them live. `looks`: first sees which are live already, since those are not its own to end. The
    /// error says which room cannot be started, and why.
    pub async fn start(&mut self, rooms: Range<u64>, looks: bool) -> Result<(), String> {
        for room in rooms {
            if !looks {
                self.ask("start", room).await?;
                continue;
            }
            let live = self.ask("check", room).await?;
            if live["data"]["alive"] != true {
                // Before it is asked for: who is interrupted meanwhile does not know whether it happened.
                self.started.push(room);
                self.ask("start", room).await?;
            }
        }
        Ok(())
    }

    /// Ends the broadcasts of those that it made live. The error is of the first that it could not end, and says how
    /// many are left.
    pub async fn stop(&mut self) -> Result<(), String> {
        let (mut left, mut error) = (0, String::new());
        for room in std::mem::take(&mut self.started) {
            if let Err(why) = self.ask("stop", room).await {
                left += 1;
                if error.is_empty() {
                    error = why;
                }
            }
        }
        match left {
            0 => Ok(()),
            _ => Err(format!("{left} rooms stay live: {error}")),
        }
    }

    async fn ask(&self, what: &str, room: u64) -> Result<Value, String> {
        let failed = |why: &dyn std::fmt::Display| format!("room {room}: {what}: {why}");
        let request = self
            .client
            .post(format!("http://{}/room/live/{what}", self.addr))
            .insert_header(("token", self.operator.as_str()));
        let body = json!({ "presenterIdx": room.to_string() });
        let mut answer = request.send_json(&body).await.map_err(|error| failed(&error))?;
        match answer.status() {
            status if status.is_success() => answer.json().await.map_err(|error| failed(&error)),
            StatusCode::NOT_FOUND => Err(failed(&"404; only a server with room.mode = \"embedded\" starts rooms")),
            status => Err(failed(&status)),
        }
    }
}
