//! Rooms that are made live for a run, in the server's embedded room server, and ended behind it.

use std::{net::SocketAddr, ops::Range, time::Duration};

use awc::http::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

/// The embedded room server of a server, with an operator's token.
pub(super) struct Rooms {
    client: awc::Client,
    addr: SocketAddr,
    operator: String,
    /// Rooms that it made live and has not ended.
    started: Vec<u64>,
    /// How long it goes on ending them while none can be ended.
    patience: Duration,
}

impl Rooms {
    /// Of the server at this address, which may take so long until another room is ended.
    pub fn new(addr: SocketAddr, operator: String, patience: Duration) -> Self {
        Self {
            client: awc::Client::default(),
            addr,
            operator,
            started: Vec::new(),
            patience,
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

    /// Ends the broadcasts of those that it made live, for as long as it does not wait for a success longer than its
    /// patience. The error is of the first that it could not end, and says how many are left.
    pub async fn stop(&mut self) -> Result<(), String> {
        let started = std::mem::take(&mut self.started);
        let (mut left, mut error) = (started.len(), None);
        let mut until = Instant::now() + self.patience;
        for room in started {
            match timeout_at(until, self.ask("stop", room)).await {
                Ok(Ok(_)) => {
                    left -= 1;
                    until = Instant::now() + self.patience;
                }
                Ok(Err(why)) => error = error.or(Some(why)),
                // The others would be waited for just as long.
                Err(_) => {
                    error = error.or_else(|| Some(format!("room {room}: stop: no answer within {:?}", self.patience)));
                    break;
                }
            }
        }
        error.map_or(Ok(()), |error| Err(format!("{left} rooms stay live: {error}")))
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

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    #[actix_web::test]
    async fn rooms_of_a_server_that_is_gone_or_gives_no_answer_are_left_and_not_waited_for_one_by_one() {
        let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addrs = [&hung, &gone].map(|listener| listener.local_addr().unwrap());
        drop(gone);
        for addr in addrs {
            let mut rooms = Rooms::new(addr, String::new(), Duration::from_millis(200));
            rooms.started = (12..10_012).collect();
            let stopped = timeout(Duration::from_secs(60), rooms.stop()).await;
            let error = stopped.expect("it to end").unwrap_err();
            assert!(error.starts_with("10000 rooms stay live: room 12: stop: "), "{error}");
        }
    }
}
