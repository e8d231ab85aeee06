//! The stand-in room server (`tests/room-server/main.rs`) as a process of its own, asked over HTTP like the real one.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::process::Command;

use serde::Deserialize;

use super::http::{self, Response};
use super::process::{Process, ScratchDir};

pub struct RoomServer {
    process: Process,
    address: SocketAddr,
}

/// How checks are answered; the stand-in's own documentation says more of each.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    Normal,
    Hang,
    Slow { milliseconds: u64 },
    Status(u16),
    Garbage,
    NoData,
    NotBoolean,
    Redirect,
    Huge,
    Cut,
    NotHttp,
    Once,
}

impl Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Normal => write!(f, "normal"),
            Self::Hang => write!(f, "hang"),
            Self::Slow { milliseconds } => write!(f, "slow-{milliseconds}"),
            Self::Status(status) => write!(f, "{status}"),
            Self::Garbage => write!(f, "garbage"),
            Self::NoData => write!(f, "no-data"),
            Self::NotBoolean => write!(f, "not-boolean"),
            Self::Redirect => write!(f, "redirect"),
            Self::Huge => write!(f, "huge"),
            Self::Cut => write!(f, "cut"),
            Self::NotHttp => write!(f, "not-http"),
            Self::Once => write!(f, "once"),
        }
    }
}

/// What it was asked since its start or the last reset.
#[derive(Clone, Debug, Deserialize)]
pub struct Stats {
    /// Checks by presenter.
    pub checks: BTreeMap<String, u64>,
    /// Requests to make a presenter reconnect, by presenter.
    pub reconnects: BTreeMap<String, u64>,
    pub searches: u64,
    pub redirects_followed: u64,
    /// Checks being answered at this moment (hung ones too), and the most there were at one time.
    pub concurrent: u64,
    pub max_concurrent: u64,
    pub connections: u64,
    pub content_types: BTreeMap<String, u64>,
    /// The last 32 bodies, as they came.
    pub last_bodies: Vec<String>,
    /// Requests that broke the contract. A test that ends well leaves this empty.
    pub bad_requests: Vec<String>,
}

impl Stats {
    pub fn checks_of(&self, presenter: i64) -> u64 {
        self.checks.get(&presenter.to_string()).copied().unwrap_or(0)
    }

    pub fn all_checks(&self) -> u64 {
        self.checks.values().sum()
    }
}

impl RoomServer {
    /// Starts it; nobody is live.
    pub async fn start() -> Self {
        Self::start_on(0).await
    }

    /// Starts it on that port, as after a [`Self::kill`].
    pub async fn start_on(port: u16) -> Self {
        let dir = ScratchDir::new("room-server");
        let port_file = dir.path().join("port");
        let process = Process::start(
            &dir,
            Command::new(env!("CARGO_BIN_EXE_room-server-standin"))
                .arg("--port")
                .arg(port.to_string())
                .arg("--port-file")
                .arg(&port_file),
        );
        let address = process.address(&port_file).await;
        Self { process, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What goes into `room.base_url`.
    pub fn base_url(&self) -> String {
        base_url(self.address)
    }

    /// SIGKILL, as when it crashes: connections are refused from then on.
    pub async fn kill(&self) {
        self.process.kill().await;
    }

    /// `presenter` is live from now on.
    pub async fn live(&self, presenter: i64) {
        self.live_with(presenter, "").await;
    }

    /// Live, and the answer's `data` has these fields too: `{"roomIdx":7,"startedAt":"…"}`.
    pub async fn live_with(&self, presenter: i64, data: &str) {
        self.control(&format!("live/{presenter}"), data).await;
    }

    /// `presenter` is not live from now on.
    pub async fn ended(&self, presenter: i64) {
        self.ended_with(presenter, "").await;
    }

    /// Not live, and the answer's `data` has these fields too: `{"endedAt":"…"}`.
    pub async fn ended_with(&self, presenter: i64, data: &str) {
        self.control(&format!("ended/{presenter}"), data).await;
    }

    /// How every check is answered.
    pub async fn mode(&self, mode: Mode) {
        self.control(&format!("mode/{mode}"), "").await;
    }

    /// How the checks of one presenter are answered, whatever the general mode.
    pub async fn mode_of(&self, presenter: i64, mode: Mode) {
        self.control(&format!("mode/{mode}/{presenter}"), "").await;
    }

    pub async fn stats(&self) -> Stats {
        let response = http::get(self.address, "/control/stats").await;
        serde_json::from_slice(&response.body).unwrap()
    }

    pub async fn reset_stats(&self) {
        self.control("stats/reset", "").await;
    }

    async fn control(&self, path: &str, body: &str) -> Response {
        let response = http::post_json(self.address, &format!("/control/{path}"), &[], body).await;
        assert_eq!(response.status, 200, "{response:?}");
        response
    }
}

/// `room.base_url` for a room server at that address, which may be a proxy's.
pub fn base_url(address: SocketAddr) -> String {
    format!("http://{address}/room/live")
}
