//! A stand-in for the room server: a process of its own that speaks the contract of the legacy one over HTTP, and
//! misbehaves on demand. The tests and `scripts/end-to-end` run it; it is handy for trying things by hand too.
//!
//! ```text
//! room-server-standin [--port N] [--port-file PATH]     prints `listening on http://127.0.0.1:PORT`
//! ```
//!
//! The contract (docs of the legacy protocol): `POST /room/live/check`, `/room/live/reconnect` and
//! `/room/live/search-all`. A body that is not exactly `{"presenterIdx":"12"}`, to the byte, is answered 400 and
//! listed in the stats. Who is live is told by the control routes, which never misbehave:
//!
//! ```text
//! POST /control/live/{idx}            live from now on; a JSON object as body is merged into the answer's `data`
//! POST /control/ended/{idx}           not live from now on (so is everyone at the start); a body is merged likewise
//! POST /control/mode/{mode}           how checks are answered …
//! POST /control/mode/{mode}/{idx}     … for one presenter only, over the general mode
//! GET  /control/stats                 what was asked so far, as JSON
//! POST /control/stats/reset           forget that
//! ```
//!
//! Modes: `normal`; `hang` (never answers, lets go when the peer does); `slow-MS`; any status as `500` (its body still
//! says alive, which must not be believed); `garbage` (200, not JSON); `no-data` (200, `{}`); `not-boolean` (200,
//! `"alive":"true"`); `redirect` (302 to a place that says alive); `huge` (200, 64 MiB, then alive); `cut` (half an
//! answer, then the end); `not-http`; `once` (a connection that was used before ends without an answer).
//!
//! One thread a connection and no queue: it is for tests, of a few hundred connections.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Parser;
use serde_json::{Map, Value, json};

/// More than any sane client reads of an answer of sixty bytes.
const HUGE: usize = 64 << 20;

/// A stand-in for the room server, on 127.0.0.1, to try a server with.
///
/// POST /control/live/N makes presenter N live, POST /control/ended/N ends that. tests/room-server/main.rs tells the rest.
#[derive(Parser)]
#[command(name = "room-server-standin")]
struct Args {
    /// Port on 127.0.0.1; 0 picks a free one
    #[arg(long, value_name = "N", default_value_t = 0)]
    port: u16,
    /// Write host:port to this file when it listens (for scripts)
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "room-server-standin: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let bind = SocketAddr::from(([127, 0, 0, 1], args.port));
    let listener = TcpListener::bind(bind).map_err(|error| format!("--port {}: {bind}: {error}", args.port))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    // Whoever started it may not read it.
    let _ = writeln!(std::io::stdout(), "listening on http://{address}");
    if let Some(path) = &args.port_file {
        // Renamed into place, so that a reader never sees half an address.
        let partial = path.with_added_extension("partial");
        std::fs::write(&partial, address.to_string())
            .and_then(|()| std::fs::rename(&partial, path))
            .map_err(|error| format!("--port-file {}: {error}", path.display()))?;
    }

    let rooms = Arc::new(Mutex::new(Rooms::default()));
    for stream in listener.incoming() {
        let rooms = Arc::clone(&rooms);
        let stream = stream.map_err(|error| format!("{address}: {error}"))?;
        std::thread::spawn(move || {
            Connection {
                rooms: &rooms,
                stream: &stream,
                used: Cell::new(false),
            }
            .serve();
        });
    }
    Ok(())
}

/// Everything the process knows.
#[derive(Default)]
struct Rooms {
    /// What `data` says beside `alive`, for each live presenter.
    live: BTreeMap<String, Map<String, Value>>,
    /// The same, for each presenter who was live.
    ended: BTreeMap<String, Map<String, Value>>,
    mode: Option<String>,
    mode_of: BTreeMap<String, String>,
    stats: Stats,
}

/// What was asked. Counts since the start or the last reset; `concurrent` is checks being answered at this moment.
#[derive(Default)]
struct Stats {
    checks: BTreeMap<String, u64>,
    reconnects: BTreeMap<String, u64>,
    searches: u64,
    redirects_followed: u64,
    concurrent: u64,
    max_concurrent: u64,
    connections: u64,
    content_types: BTreeMap<String, u64>,
    last_bodies: Vec<String>,
    bad_requests: Vec<String>,
}

impl Stats {
    fn to_json(&self) -> Value {
        json!({
            "checks": self.checks,
            "reconnects": self.reconnects,
            "searches": self.searches,
            "redirects_followed": self.redirects_followed,
            "concurrent": self.concurrent,
            "max_concurrent": self.max_concurrent,
            "connections": self.connections,
            "content_types": self.content_types,
            "last_bodies": self.last_bodies,
            "bad_requests": self.bad_requests,
        })
    }
}

struct Request {
    method: String,
    path: String,
    content_type: String,
    body: Vec<u8>,
}

/// What a handler wants written.
enum Answer {
    Json(u16, Value),
    Redirect(&'static str),
    Garbage,
    Huge,
    Cut,
    NotHttp,
    Nothing,
}

struct Connection<'a> {
    rooms: &'a Mutex<Rooms>,
    stream: &'a TcpStream,
    /// Whether a question came on it before.
    used: Cell<bool>,
}

impl Connection<'_> {
    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves requests until the peer or the mode ends the connection. An I/O error is an end like any other.
    fn serve(&self) {
        self.rooms().stats.connections += 1;
        let _ = self.stream.set_nodelay(true);
        let mut reader = BufReader::new(self.stream);
        while let Ok(Some(request)) = read_request(&mut reader) {
            let answer = self.route(&request);
            if !matches!(self.write(&answer), Ok(true)) {
                break;
            }
        }
    }

    fn route(&self, request: &Request) -> Answer {
        let path: Vec<&str> = request.path.split('/').skip(1).collect();
        match (request.method.as_str(), path.as_slice()) {
            ("POST", ["room", "live", "check"]) => self.check(request),
            ("POST", ["room", "live", "reconnect"]) => self.reconnect(request),
            ("POST", ["room", "live", "search-all"]) => self.search_all(),
            (_, ["room", "live", "elsewhere"]) => {
                self.rooms().stats.redirects_followed += 1;
                Answer::Json(200, checked(true, &Map::new()))
            }
            (method, ["control", rest @ ..]) => self.control(method, rest, &request.body),
            (method, _) => {
                let line = format!("{method} {}", request.path);
                self.rooms().stats.bad_requests.push(line);
                Answer::Json(404, json!({"message": "no such route"}))
            }
        }
    }

    fn check(&self, request: &Request) -> Answer {
        let presenter = match self.presenter_of(request) {
            Ok(presenter) => presenter,
            Err(answer) => return answer,
        };
        let (mode, alive, data) = {
            let mut rooms = self.rooms();
            let stats = &mut rooms.stats;
            *stats.checks.entry(presenter.clone()).or_default() += 1;
            stats.concurrent += 1;
            stats.max_concurrent = stats.max_concurrent.max(stats.concurrent);
            let mode = rooms.mode_of.get(&presenter).or(rooms.mode.as_ref()).cloned();
            let live = rooms.live.get(&presenter);
            let data = live.or(rooms.ended.get(&presenter)).cloned().unwrap_or_default();
            (mode.unwrap_or_else(|| "normal".into()), live.is_some(), data)
        };
        let answer = self.check_in_mode(&mode, checked(alive, &data));
        self.rooms().stats.concurrent -= 1;
        answer
    }

    fn check_in_mode(&self, mode: &str, truth: Value) -> Answer {
        let used = self.used.replace(true);
        match mode {
            "hang" => self.hang(),
            "garbage" => Answer::Garbage,
            "no-data" => Answer::Json(200, json!({})),
            "not-boolean" => Answer::Json(200, json!({"data": {"alive": "true"}})),
            "redirect" => Answer::Redirect("/room/live/elsewhere"),
            "huge" => Answer::Huge,
            "cut" => Answer::Cut,
            "not-http" => Answer::NotHttp,
            "once" if used => Answer::Nothing,
            "normal" | "once" => Answer::Json(200, truth),
            other => match (other.strip_prefix("slow-").map(str::parse), other.parse()) {
                (Some(Ok(milliseconds)), _) => {
                    pause(Duration::from_millis(milliseconds));
                    Answer::Json(200, truth)
                }
                (_, Ok(status)) => Answer::Json(status, checked(true, &Map::new())),
                _ => Answer::Json(501, json!({"message": format!("no mode {other}")})),
            },
        }
    }

    /// Reads until the peer gives up: then what it asked is over.
    fn hang(&self) -> Answer {
        let _ = std::io::copy(&mut &*self.stream, &mut std::io::sink());
        Answer::Nothing
    }

    fn reconnect(&self, request: &Request) -> Answer {
        match self.presenter_of(request) {
            Ok(presenter) => {
                let mode = {
                    let mut rooms = self.rooms();
                    *rooms.stats.reconnects.entry(presenter).or_default() += 1;
                    rooms.mode.clone()
                };
                let used = self.used.replace(true);
                match mode.as_deref() {
                    Some("hang") => self.hang(),
                    Some("once") if used => Answer::Nothing,
                    _ => Answer::Json(200, envelope(&json!({}))),
                }
            }
            Err(answer) => answer,
        }
    }

    fn search_all(&self) -> Answer {
        let mut rooms = self.rooms();
        rooms.stats.searches += 1;
        let live: Vec<Value> = rooms.live.keys().map(|idx| json!({"presenterIdx": idx})).collect();
        Answer::Json(200, envelope(&json!(live)))
    }

    /// The presenter a body names; the answer to give where the body is not exactly as the contract says.
    fn presenter_of(&self, request: &Request) -> Result<String, Answer> {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let mut rooms = self.rooms();
        let stats = &mut rooms.stats;
        *stats.content_types.entry(request.content_type.clone()).or_default() += 1;
        if stats.last_bodies.len() == 32 {
            stats.last_bodies.remove(0);
        }
        stats.last_bodies.push(body.clone());
        let digits = body
            .strip_prefix(r#"{"presenterIdx":""#)
            .and_then(|rest| rest.strip_suffix(r#""}"#));
        match digits {
            Some(digits) if digits.parse::<u64>().is_ok_and(|number| number.to_string() == digits) => {
                Ok(digits.to_owned())
            }
            _ => {
                stats.bad_requests.push(format!("POST {} {body}", request.path));
                Err(Answer::Json(
                    400,
                    json!({"message": "the body must be exactly {\"presenterIdx\":\"12\"}"}),
                ))
            }
        }
    }

    fn control(&self, method: &str, path: &[&str], body: &[u8]) -> Answer {
        let mut rooms = self.rooms();
        match (method, path) {
            ("POST", ["live", idx]) => {
                let data = serde_json::from_slice(body).unwrap_or_default();
                rooms.live.insert((*idx).to_owned(), data);
            }
            ("POST", ["ended", idx]) => {
                let data = serde_json::from_slice(body).unwrap_or_default();
                rooms.live.remove(*idx);
                rooms.ended.insert((*idx).to_owned(), data);
            }
            ("POST", ["mode", mode]) => rooms.mode = Some((*mode).to_owned()),
            ("POST", ["mode", mode, idx]) => {
                rooms.mode_of.insert((*idx).to_owned(), (*mode).to_owned());
            }
            ("GET", ["stats"]) => return Answer::Json(200, rooms.stats.to_json()),
            ("POST", ["stats", "reset"]) => {
                let concurrent = rooms.stats.concurrent;
                rooms.stats = Stats {
                    concurrent,
                    ..Stats::default()
                };
            }
            _ => return Answer::Json(404, json!({"message": "no such control route"})),
        }
        Answer::Json(200, json!({}))
    }

    /// Writes an answer; `false` where the connection ends with it.
    fn write(&self, answer: &Answer) -> std::io::Result<bool> {
        let mut out = self.stream;
        match answer {
            Answer::Json(status, body) => {
                let body = body.to_string();
                let length = body.len();
                write!(
                    out,
                    "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                )?;
                return Ok(true);
            }
            Answer::Redirect(to) => {
                write!(out, "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")?;
                return Ok(true);
            }
            Answer::Garbage => {
                let body = "<html>{\"data\":{\"alive\":true}}";
                let length = body.len();
                write!(
                    out,
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                )?;
                return Ok(true);
            }
            Answer::Huge => {
                let (head, tail) = (r#"{"padding":""#, r#"","data":{"alive":true}}"#);
                let length = head.len() + HUGE + tail.len();
                write!(
                    out,
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{head}"
                )?;
                let block = [b'x'; 1 << 16];
                for _ in 0..HUGE / block.len() {
                    out.write_all(&block)?;
                }
                out.write_all(tail.as_bytes())?;
            }
            Answer::Cut => {
                write!(
                    out,
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n{{\"data\":{{"
                )?;
            }
            Answer::NotHttp => out.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n")?,
            Answer::Nothing => {}
        }
        Ok(false)
    }
}

/// The answer to a check, in the legacy server's envelope.
fn checked(alive: bool, more: &Map<String, Value>) -> Value {
    let mut data = more.clone();
    data.insert("alive".into(), alive.into());
    envelope(&Value::Object(data))
}

fn envelope(data: &Value) -> Value {
    json!({"timestamp": "2026-01-01 00:00:00", "message": "ok", "data": data})
}

/// Reads one request; `None` at the end of the stream. Only what the contract needs: a body has a Content-Length.
fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(None);
    };

    let mut length = 0;
    let mut content_type = String::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "content-type" => content_type = value.trim().to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request {
        method,
        path,
        content_type,
        body,
    }))
}

#[expect(
    clippy::disallowed_methods,
    reason = "this thread serves one connection and nothing else"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
