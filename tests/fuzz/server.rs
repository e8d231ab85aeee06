//! A server under test, as a process.

use std::{net::SocketAddr, sync::Arc};

use crate::support::{
    app::KEY,
    command::{command, run},
    http::{get, post_json},
    process::{Process, ScratchDir},
    tokens::{claims, signed},
};

/// The room that is live, and its presenter.
pub const PRESENTER: i64 = 12;

pub struct Server {
    process: Process,
    dir: Arc<ScratchDir>,
    pub address: SocketAddr,
    /// Callers are known by the headers of a gateway, which everyone here is.
    pub gateway: bool,
}

/// What a server was like at the end.
pub struct Finished {
    pub name: &'static str,
    pub resident_kib: [u64; 2],
    /// What must not be.
    pub violations: Vec<String>,
}

impl Server {
    pub async fn start(dir: &Arc<ScratchDir>, gateway: bool) -> Self {
        let mut serve = command(dir, &["serve", "--port-file", "port"]);
        let mut settings = vec![
            "server.bind=127.0.0.1:0",
            "server.workers=2",
            "room.mode=embedded",
            // Dampers would spare the parsers.
            "limits.sender_per_second=0",
            "limits.room_per_second=0",
            "limits.lookups_per_minute=0",
            "session.reconnect_burst=10000",
            "session.reconnect_per_minute=100000",
            "session.client_frames_per_second=100000",
            "session.hello_seconds=3",
            "session.keepalive_seconds=1",
            "session.keepalive_missed=3",
            "server.client_request_seconds=5",
            "server.body_seconds=5",
            "server.keep_alive_seconds=2",
        ];
        if gateway {
            settings.extend([
                "auth.mode=gateway",
                "auth.trusted_proxies=127.0.0.0/8",
                "auth.gateway_role_header=x-role",
            ]);
        }
        for setting in settings {
            serve.args(["--set", setting]);
        }
        let process = Process::start(dir, serve.env("CHAT__AUTH__HS256_SECRET", KEY));
        let address = process.address(&dir.path().join("port")).await;
        let mut operator = claims(1);
        operator["role"] = "operator".into();
        let live = format!("{{\"presenterIdx\":{PRESENTER}}}");
        let answer = post_json(address, "/room/live/start", &[("token", &signed(&operator))], live).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        Self {
            process,
            dir: Arc::clone(dir),
            address,
            gateway,
        }
    }

    /// What the process has in memory, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }

    /// Looks at it, stops it, and looks at what it wrote.
    pub async fn finish(self, before_kib: u64) -> Finished {
        let mut violations = Vec::new();
        let after_kib = self.resident_kib();
        let ready = get(self.address, "/readyz").await;
        if ready.status != 200 {
            violations.push(format!("/readyz: {}", ready.text()));
        }
        let metrics = get(self.address, "/metrics").await;
        for line in metrics.text().lines() {
            let never = [
                "chat_sessions_ended_total{reason=\"restarted\"} ",
                "chat_commit_failures_total ",
                "chat_parked_total ",
            ];
            if never.iter().any(|name| line.starts_with(name) && !line.ends_with(" 0")) {
                violations.push(line.to_owned());
            }
        }
        self.process.signal("TERM");
        let code = self.process.exited().await.code();
        if code != Some(0) {
            violations.push(format!("it ended with {code:?}"));
        }
        let output = self.process.output();
        violations.extend(
            output
                .lines()
                .filter(|line| line.contains("panicked"))
                .map(str::to_owned),
        );
        let (verified, out, error) = run(&self.dir, &["spool", "verify"], &[("CHAT__AUTH__HS256_SECRET", KEY)]);
        if verified != 0 {
            violations.push(format!("spool verify: {out}{error}"));
        }
        Finished {
            name: if self.gateway { "gateway" } else { "token" },
            resident_kib: [before_kib, after_kib],
            violations,
        }
    }
}
