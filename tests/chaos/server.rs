//! The real server as a process that ends and starts again in place: on the same port, with the same spool.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::process::ExitStatusExt,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    plan::{Ending, Plan},
    support::{
        app::KEY,
        http,
        process::{Process, ScratchDir},
    },
};

pub struct Server {
    dir: Arc<ScratchDir>,
    settings: Vec<String>,
    process: Process,
    pub address: SocketAddr,
    /// What earlier processes wrote.
    output: String,
}

impl Server {
    pub async fn start(dir: &Arc<ScratchDir>, plan: &Plan, room_server: String) -> Self {
        let address = free_address();
        let settings = vec![
            format!("server.bind={address}"),
            "server.workers=2".into(),
            format!("log.path={}", dir.path().join("chat.db").display()),
            "room.mode=http".into(),
            format!("room.base_url={room_server}"),
            format!("room.ring_events={}", plan.ring),
            // Soon noticed, so that a link may break every second.
            "room.sweep_ms=100".into(),
            "session.keepalive_seconds=1".into(),
            "session.keepalive_missed=2".into(),
            "session.stall_seconds=2".into(),
            // The damper of storms is not what is tested here.
            "session.reconnect_burst=10000".into(),
            "session.reconnect_per_minute=100000".into(),
            // A sender here stands for thousands.
            "idempotency.sender_max=1000000".into(),
            "shutdown.drain_seconds=1".into(),
            "shutdown.reconnect_after_ms=200".into(),
            "shutdown.reconnect_spread_ms=500".into(),
        ];
        let process = spawn(dir, &settings).await;
        Self {
            dir: Arc::clone(dir),
            settings,
            process,
            address,
            output: String::new(),
        }
    }

    /// Ends it and starts it again; gives how long nobody listened.
    pub async fn restart(&mut self, ending: Ending) -> Duration {
        let gone = match ending {
            Ending::Stopped => self.stop().await,
            Ending::Killed => {
                self.process.kill().await;
                Instant::now()
            }
        };
        self.output += &self.process.output();
        self.process = spawn(&self.dir, &self.settings).await;
        gone.elapsed()
    }

    /// SIGTERM; it must end well. Gives when it had.
    pub async fn stop(&self) -> Instant {
        self.process.signal("TERM");
        let status = self.process.exited().await;
        assert!(
            status.success() && status.signal().is_none(),
            "stopped with {status}; it wrote:\n{}",
            self.process.output()
        );
        Instant::now()
    }

    /// What all its processes wrote.
    pub fn output(&self) -> String {
        format!("{}{}", self.output, self.process.output())
    }

    /// One number of `/metrics`.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let metrics = http::get(self.address, "/metrics").await;
        let line = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))?;
        line.parse().ok()
    }
}

async fn spawn(dir: &Arc<ScratchDir>, settings: &[String]) -> Process {
    let port_file = dir.path().join("port");
    let _ = fs::remove_file(&port_file);
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatting-server"));
    command.arg("serve").arg("--port-file").arg(&port_file);
    command
        .env("CHAT__AUTH__HS256_SECRET", KEY)
        .env("CHAT__LIMITS__SENDER_PER_SECOND", "0")
        .env("CHAT__LIMITS__ROOM_PER_SECOND", "0")
        .current_dir(dir.path());
    for setting in settings {
        command.args(["--set", setting]);
    }
    let process = Process::start(dir, &mut command);
    process.address(&port_file).await;
    process
}

/// A port below those that the system gives to whoever connects: while the server is away, one that connects to its port
/// could otherwise be given that very port, and keep it.
fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(20_000..32_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
