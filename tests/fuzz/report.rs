//! What came of it all.

use std::{collections::BTreeMap, fmt};

use crate::{bystander::Fared, server::Finished};

/// Samples that are kept of what must not be.
const SAMPLES: usize = 5;

/// The codes and texts of the 503s that are documented.
const DOCUMENTED: [&str; 8] = [
    "\"code\":\"overloaded\"",
    "\"code\":\"presenter_disconnected\"",
    "\"code\":\"room_server_unavailable\"",
    "\"code\":\"log_unavailable\"",
    "서버가 혼잡합니다",
    "스트리머와 연결되어 있지 않습니다",
    "방송 상태를 확인할 수 없습니다",
    "지금은 채팅 기록을 이용할 수 없습니다",
];

#[derive(Default)]
pub struct Report {
    /// Inputs by kind.
    inputs: BTreeMap<&'static str, u64>,
    /// Answers by kind and status.
    statuses: BTreeMap<(&'static str, u16), u64>,
    /// Ends of WebSockets by close code; 0 for none, 1 for those that went on.
    closes: BTreeMap<u16, u64>,
    /// Connections that the server ended, by an answer that says so or is known to.
    ended: u64,
    /// And those that it ended while a request had no answer.
    unannounced: u64,
    bad: Vec<String>,
    bad_count: u64,
    bystanders: Vec<Fared>,
    servers: Vec<Finished>,
}

impl Report {
    pub fn sent(&mut self, kind: &'static str, count: u64) {
        *self.inputs.entry(kind).or_default() += count;
    }

    /// Counts an answer; `input` is what it answers.
    pub fn answer(&mut self, kind: &'static str, status: u16, body: &[u8], input: &[u8]) {
        *self.statuses.entry((kind, status)).or_default() += 1;
        let body = String::from_utf8_lossy(body);
        let documented = status == 503 && DOCUMENTED.iter().any(|code| body.contains(code));
        if status >= 500 && !documented {
            self.bad(format!(
                "{kind}: {status} {body} to {:?}",
                String::from_utf8_lossy(input)
            ));
        }
    }

    pub fn closed(&mut self, code: u16) {
        *self.closes.entry(code).or_default() += 1;
    }

    pub fn ended(&mut self) {
        self.ended += 1;
    }

    pub fn ended_unannounced(&mut self) {
        self.unannounced += 1;
    }

    pub fn bad(&mut self, what: String) {
        self.bad_count += 1;
        if self.bad.len() < SAMPLES {
            self.bad.push(what);
        }
    }

    pub fn add(&mut self, other: Self) {
        for (kind, count) in other.inputs {
            *self.inputs.entry(kind).or_default() += count;
        }
        for (key, count) in other.statuses {
            *self.statuses.entry(key).or_default() += count;
        }
        for (code, count) in other.closes {
            *self.closes.entry(code).or_default() += count;
        }
        self.ended += other.ended;
        self.unannounced += other.unannounced;
        self.bad_count += other.bad_count;
        self.bad.extend(other.bad);
        self.bad.truncate(SAMPLES);
    }

    pub fn bystander(&mut self, fared: Fared) {
        self.bystanders.push(fared);
    }

    pub fn server(&mut self, finished: Finished) {
        self.servers.push(finished);
    }

    pub fn inputs(&self) -> u64 {
        self.inputs.values().sum()
    }

    /// Everything that must not be.
    pub fn violations(&self) -> Vec<String> {
        let mut all = self.bad.clone();
        all.extend(self.bystanders.iter().flat_map(|fared| fared.violations.clone()));
        let servers = self.servers.iter();
        all.extend(servers.flat_map(|server| {
            server
                .violations
                .iter()
                .map(move |what| format!("{}: {what}", server.name))
        }));
        // A run that reached nothing shows nothing.
        for (kind, status) in [
            ("request", 201),
            ("request", 400),
            ("request", 401),
            ("request", 404),
            ("request", 422),
            ("broken", 400),
        ] {
            if !self.statuses.contains_key(&(kind, status)) {
                all.push(format!("no {kind} was answered {status}"));
            }
        }
        // A reset may take an answer along; else each request has its own.
        if self.unannounced > self.inputs() / 2000 {
            all.push(format!("{} connections ended without an answer", self.unannounced));
        }
        let codes = self.closes.keys().filter(|code| **code >= 1000);
        if codes.count() < 3 {
            all.push(format!("WebSockets were closed in these ways only: {:?}", self.closes));
        }
        all
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in &self.inputs {
            let statuses = self.statuses.iter().filter(|((of, _), _)| of == kind);
            let statuses: Vec<String> = statuses
                .map(|((_, status), count)| format!("{status}: {count}"))
                .collect();
            writeln!(f, "{kind:<10} {count:>9} inputs; answered {}", statuses.join(", "))?;
        }
        let closes: Vec<String> = self
            .closes
            .iter()
            .map(|(code, count)| format!("{code}: {count}"))
            .collect();
        writeln!(f, "WebSockets closed with {} (1: went on, 0: cut)", closes.join(", "))?;
        writeln!(
            f,
            "connections that the server ended: {}, and without an answer: {}",
            self.ended, self.unannounced
        )?;
        for fared in &self.bystanders {
            writeln!(
                f,
                "bystander: {} messages arrived, the slowest after {:.0} ms; {} frames in order",
                fared.arrived,
                fared.longest.as_secs_f64() * 1000.0,
                fared.frames
            )?;
        }
        for server in &self.servers {
            let [before, after] = server.resident_kib.map(|kib| kib / 1024);
            writeln!(
                f,
                "server ({}): {before} MiB in memory before, {after} MiB after",
                server.name
            )?;
        }
        let panics = self
            .servers
            .iter()
            .flat_map(|server| &server.violations)
            .filter(|what| what.contains("panicked"));
        write!(
            f,
            "answers that must not be: {}; panics: {}",
            self.bad_count,
            panics.count()
        )
    }
}
