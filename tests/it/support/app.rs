//! The server under test, in this process: real sockets, a real spool, and whatever room server and store a test wants.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use chatting_server::{
    app::{App, Stopped},
    auth::{Mint, SigningKey, mint},
    http::state::State,
    settings::{LogBackend, RoomMode, Secret, Settings},
};
use tokio::sync::oneshot;

use super::{
    eventually,
    http::{HttpClient, Response},
    mongod::{Mongod, fresh_database_name},
    process::ScratchDir,
    room_server::RoomServer,
    within,
    ws::{Incoming, WsClient},
};

/// The key that the tests' tokens are signed with.
pub const KEY: &str = "a key for tests, of thirty-two bytes or more";

/// A server that runs until the test lets it go.
pub struct TestApp {
    pub addr: SocketAddr,
    pub ops: Option<SocketAddr>,
    pub settings: Settings,
    pub state: actix_web::web::Data<State>,
    pub dir: Arc<ScratchDir>,
    stop: Option<oneshot::Sender<()>>,
    running: tokio::task::JoinHandle<std::io::Result<Stopped>>,
}

/// Settings of a server on free ports with its own directory, an embedded room server and SQLite.
pub fn settings(dir: &ScratchDir) -> Settings {
    let mut settings = Settings::default();
    settings.server.bind = "127.0.0.1:0".into();
    settings.server.workers = 2;
    settings.auth.hs256_secret = Secret::new(KEY);
    settings.room.mode = RoomMode::Embedded;
    settings.log.path = dir.path().join("chat.db").display().to_string();
    settings.shutdown.deadline_seconds = 15;
    // Tests send as fast as they can; those of limits set their own.
    settings.limits.sender_per_second = 0;
    settings.limits.room_per_second = 0;
    settings.limits.bulk_deletes_per_minute = 0;
    settings.limits.lookups_per_minute = 0;
    settings.room.breaker_failures = 0;
    // Whoever is only slow, as a machine may be, is waited for: tests of a time set their own.
    settings.room.timeout_ms = 60_000;
    settings.auth.jwks_timeout_ms = 20_000;
    settings.server.client_request_seconds = 60;
    settings.server.body_seconds = 60;
    settings.session.hello_seconds = 300;
    settings.session.keepalive_seconds = 300;
    settings.session.stall_seconds = 300;
    settings
}

/// A server with an embedded room server and SQLite, changed by `change`.
pub async fn spawn_app(change: impl FnOnce(&mut Settings)) -> TestApp {
    let dir = ScratchDir::new("app");
    let mut settings = settings(&dir);
    change(&mut settings);
    spawn_in(dir, settings).await
}

/// A server that asks this room server over HTTP.
pub async fn spawn_with_rooms(rooms: &RoomServer, change: impl FnOnce(&mut Settings)) -> TestApp {
    let base_url = rooms.base_url();
    spawn_app(|settings| {
        settings.room.mode = RoomMode::Http;
        settings.room.base_url = base_url;
        change(settings);
    })
    .await
}

/// Makes the settings those of a server that logs into a database of its own in the shared MongoDB, which is always there.
pub fn use_mongodb(settings: &mut Settings) {
    settings.log.backend = LogBackend::Mongodb;
    settings.mongodb.uri = Secret::new(Mongod::shared().uri());
    settings.mongodb.database = fresh_database_name();
    settings.mongodb.connect_timeout_ms = 60_000;
    settings.mongodb.write_timeout_ms = 60_000;
}

/// The section of a settings file for a command whose log is in that MongoDB, which may be slow and is always there.
pub fn mongodb_section(uri: &str, database: &str) -> String {
    format!(
        "[mongodb]\nuri = \"{uri}\"\ndatabase = \"{database}\"\nconnect_timeout_ms = 60000\nwrite_timeout_ms = 60000\n"
    )
}

/// A server with exactly these settings, in this directory.
pub async fn spawn_in(dir: Arc<ScratchDir>, settings: Settings) -> TestApp {
    let app = App::build(&settings)
        .await
        .unwrap_or_else(|error| panic!("the server does not start: {error}"));
    let (addr, ops, state) = (app.addr(), app.ops_addr(), app.state());
    let (stop, stopped) = oneshot::channel::<()>();
    let running = actix_web::rt::spawn(app.run_until(async move {
        let _ = stopped.await;
    }));
    TestApp {
        addr,
        ops,
        settings,
        state,
        dir,
        stop: Some(stop),
        running,
    }
}

/// A token as the token service would sign it.
pub fn token_of(settings: &Settings, user_idx: i64, nickname: &str) -> String {
    mint(
        &SigningKey::secret(KEY.as_bytes()),
        &Mint {
            user_idx,
            nickname,
            role: None,
            rooms: &[],
            issued_at: chatting_actors::clock::system_ms() / 1000,
            ttl_seconds: 3600,
            auth: &settings.auth,
        },
    )
    .unwrap()
}

impl TestApp {
    /// A token of a user.
    pub fn token(&self, user_idx: i64) -> String {
        token_of(&self.settings, user_idx, "kim")
    }

    /// Makes a presenter live in the embedded room server.
    pub fn go_live(&self, presenter: i64) {
        let room = chatting_actors::types::PresenterIdx::new(presenter).unwrap();
        self.state.rooms.as_ref().unwrap().blocking_start(room).unwrap();
    }

    /// Ends a presenter's broadcast in the embedded room server.
    pub fn go_off(&self, presenter: i64) {
        let room = chatting_actors::types::PresenterIdx::new(presenter).unwrap();
        self.state.rooms.as_ref().unwrap().blocking_stop(room).unwrap();
    }

    /// A socket that has said nothing yet.
    pub async fn connect(&self) -> WsClient {
        WsClient::connect(self.addr, "/chatting").await
    }

    /// A presenter's session that is attached to its room.
    pub async fn presenter(&self, presenter: i64) -> WsClient {
        let mut socket = self.connect().await;
        self.start(&mut socket, presenter).await;
        socket
    }

    /// Sends `start`, and returns when it has been heard: a legacy session is told nothing, so a `ping` behind it is. What
    /// was held for the presenter may come before the answer, and is there to be read afterwards.
    pub async fn start(&self, socket: &mut WsClient, presenter: i64) {
        let start = serde_json::json!({ "id": "start", "token": self.token(presenter) });
        socket.send_text(&start.to_string()).await;
        socket.send_text("ping").await;
        let mut held = Vec::new();
        loop {
            match socket.next_text().await {
                pong if pong == "pong" => break,
                text => held.push(text),
            }
        }
        for text in held {
            socket.put_back(Incoming::Text(text));
        }
        eventually("the session in its room", async || {
            self.room(presenter).await.filter(|room| room.session)
        })
        .await;
    }

    /// What the registry keeps of a room.
    pub async fn room(&self, presenter: i64) -> Option<chatting_actors::registry::RoomView> {
        self.state
            .registry
            .view(chatting_actors::types::PresenterIdx::new(presenter).unwrap())
            .await
    }

    /// Returns when this room has no session.
    pub async fn without_session(&self, presenter: i64) {
        eventually(format_args!("room {presenter} to be without a session"), async || {
            let attached = self.room(presenter).await.is_some_and(|room| room.session);
            (!attached).then_some(())
        })
        .await;
    }

    /// Returns when no presenter's socket is open.
    pub async fn without_sockets(&self) {
        eventually("every presenter's socket to be gone", async || {
            (self.metric("chat_sessions").await == Some(0.0)).then_some(())
        })
        .await;
    }

    /// A connection for requests.
    pub async fn client(&self) -> HttpClient {
        HttpClient::connect(self.addr).await
    }

    /// `POST /v1/rooms/{presenter}/messages` on a connection of its own.
    pub async fn post(&self, presenter: i64, user: i64, text: &str) -> Response {
        let mut client = self.client().await;
        post_v1(&mut client, presenter, &self.token(user), text).await
    }

    /// `POST /send/message` by token, on a connection of its own.
    pub async fn send(&self, user: i64, body: &str) -> Response {
        self.client()
            .await
            .post_json("/send/message", &[("token", &self.token(user))], body)
            .await
    }

    /// One number of `/metrics`, by its whole name and labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = super::http::get(self.ops.unwrap_or(self.addr), "/metrics").await;
        let line = text
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.and_then(|value| value.parse().ok())
    }

    /// Stops the server in order and gives its directory for another one.
    pub async fn stop(mut self) -> (Stopped, Arc<ScratchDir>, Settings) {
        drop(self.stop.take());
        let stopped = within("the server to stop", &mut self.running).await.unwrap().unwrap();
        (stopped, Arc::clone(&self.dir), self.settings.clone())
    }

    /// Everything that the embedded log holds of a room, in order; waits until all that was accepted has been drained into it.
    pub async fn sqlite_log(&self, presenter: i64) -> Vec<(u64, String)> {
        eventually("the spool to be drained", async || {
            let accepted = self.room(presenter).await.and_then(|room| room.last_seq);
            // The gauge may not know yet of what was accepted this moment, so the room's last seq must be there too.
            if self.metric("chat_spool_events").await != Some(0.0) {
                return None;
            }
            let log = self.read_sqlite_log(presenter);
            // What the gauge did not know of then and the file has by now may still be in the spool, too.
            if self.metric("chat_spool_events").await != Some(0.0) {
                return None;
            }
            let logged = log.last().map_or(0, |(seq, _)| *seq);
            (logged >= accepted.map_or(0, |seq| seq.0)).then_some(log)
        })
        .await
    }

    fn read_sqlite_log(&self, presenter: i64) -> Vec<(u64, String)> {
        let connection = rusqlite::Connection::open(&self.settings.log.path).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        let mut rows = connection
            .prepare("SELECT seq, message FROM chatting_log WHERE presenter_idx = ?1 ORDER BY seq")
            .unwrap();
        let rows = rows
            .query_map([presenter], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    }
}

/// `POST /v1/rooms/{presenter}/messages` on this connection.
pub async fn post_v1(client: &mut HttpClient, presenter: i64, token: &str, text: &str) -> Response {
    let body = serde_json::json!({ "text": text }).to_string();
    let bearer = format!("Bearer {token}");
    client
        .post_json(
            &format!("/v1/rooms/{presenter}/messages"),
            &[("Authorization", &bearer)],
            body,
        )
        .await
}
