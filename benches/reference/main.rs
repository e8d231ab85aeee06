//! What `scripts/bench` measures the server against: the least that can be called a chat server, on the same framework.
//!
//! `route`: a message is parsed, looked up and sent into an unbounded channel that a presenter's WebSocket reads. No token is
//! checked, nobody asks whether the room is live, there is no order but the channel's, no limit, and nothing is kept.
//! `route + log` (`--mongo`): the same, and each message goes to a task that writes all that came meanwhile with one
//! `insert_many`, and for which nobody waits. `--durable` gives its writes the write concern and the collection the indexes that the
//! server's own log has.
//! `--spool`: a message is delivered and answered when a transaction of SQLite has it on the disk. With `--mongo --durable` that is the
//! least that the server's promise costs, without it the least that an embedded log does: the rows are all there is.
//!
//! It speaks as much of the server's protocols as the load tool needs: `POST /v1/rooms/{n}/messages`, the legacy WebSocket with
//! `start` and `ping`, and `GET /metrics` with `chat_spool_events`, here what has not been written yet, and
//! `chat_sessions`.
//! `reference-server [--port-file FILE] [--mongo URI --database NAME [--durable]] [--spool FILE]`
#![allow(clippy::unwrap_used, reason = "a server for benchmarks fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "no bound is what it is compared for")]

mod log;
mod socket;
mod spool;

use std::{
    collections::HashMap,
    sync::{
        RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use actix_web::{App, HttpResponse, HttpServer, web};
use bytes::{Bytes, BytesMut};
use chatting_actors::clock::system_ms;
use clap::Parser;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc::UnboundedSender, oneshot};
use uuid::{Builder, Uuid};

/// The server's own, when it is built with it: what is allocated on one thread is freed on another here as well.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
struct Args {
    /// Where the address is written once it is bound.
    #[arg(long)]
    port_file: Option<String>,
    /// The log.
    #[arg(long)]
    mongo: Option<String>,
    #[arg(long, default_value = "reference")]
    database: String,
    /// Writes wait for majority and journal, and the log has the server's indexes.
    #[arg(long)]
    durable: bool,
    /// Threads for connections; without it as many as actix-web takes by itself, one a core.
    #[arg(long)]
    workers: Option<usize>,
    /// Senders and the presenter wait until it is here.
    #[arg(long)]
    spool: Option<String>,
}

/// What all workers share.
#[derive(Default)]
pub struct Shared {
    rooms: RwLock<HashMap<i64, UnboundedSender<Bytes>>>,
    log: Option<UnboundedSender<log::Line>>,
    seq: AtomicU64,
    unwritten: AtomicI64,
    written: AtomicI64,
    /// Whether there is a thread that takes what is in it.
    spools: bool,
    spool: spool::Queue,
}

impl Shared {
    /// Hands it to the log, if there is one; nobody waits.
    fn keep(&self, line: log::Line) {
        if let Some(log) = &self.log {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
            let _ = log.send(line);
        }
    }
}

#[derive(Deserialize)]
struct NewMessage {
    text: String,
}

#[derive(Serialize)]
struct Created {
    id: Uuid,
    seq: u64,
}

/// The legacy frame.
#[derive(Serialize)]
struct Frame<'a> {
    nickname: &'a str,
    message: &'a str,
    time: &'a str,
}

async fn post_message(room: web::Path<i64>, message: web::Json<NewMessage>, shared: web::Data<Shared>) -> HttpResponse {
    let frame = serde_json::to_string(&Frame {
        nickname: "load",
        message: &message.text,
        time: "12:00",
    });
    let frame = socket::text(frame.unwrap().as_bytes());
    let seq = shared.seq.fetch_add(1, Ordering::Relaxed) + 1;
    let created = Created { id: id(seq), seq };
    let line = |created| log::Line::new(*room, created, message.into_inner().text);
    if shared.spools {
        let Some(presenter) = shared.rooms.read().unwrap().get(&room).cloned() else {
            return HttpResponse::NotFound().finish();
        };
        let (answer, answered) = oneshot::channel();
        let line = line(&created);
        shared.spool.push(spool::Waiting {
            line,
            frame,
            presenter,
            answer,
        });
        answered.await.unwrap();
        return HttpResponse::Created().json(created);
    }
    let sent = match shared.rooms.read().unwrap().get(&room) {
        Some(presenter) => presenter.send(frame).is_ok(),
        None => false,
    };
    if !sent {
        return HttpResponse::NotFound().finish();
    }
    if shared.log.is_some() {
        shared.keep(line(&created));
    }
    HttpResponse::Created().json(created)
}

async fn metrics(shared: web::Data<Shared>) -> String {
    let unwritten = shared.unwritten.load(Ordering::Relaxed);
    let presenters = shared.rooms.read().unwrap().len();
    format!("chat_spool_events {unwritten}\nchat_sessions {presenters}\n")
}

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let mut shared = Shared::default();
    let mut lines = None;
    if args.mongo.is_some() {
        let (send, receive) = tokio::sync::mpsc::unbounded_channel();
        shared.log = Some(send);
        lines = Some(receive);
    }
    shared.spools = args.spool.is_some();
    let shared = web::Data::new(shared);
    if let Some(path) = args.spool.clone() {
        let shared = shared.clone();
        std::thread::spawn(move || spool::commit_all(&path, &shared));
    }
    if let (Some(uri), Some(lines)) = (&args.mongo, lines) {
        let writer = log::Writer::new(uri, &args.database, args.durable, args.spool.is_some()).await;
        actix_web::rt::spawn(writer.write_all(lines, shared.clone()));
    }
    let mut server = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            .route("/v1/rooms/{room}/messages", web::post().to(post_message))
            .route("/chatting", web::get().to(socket::presenter))
            .route("/metrics", web::get().to(metrics))
    })
    .tcp_nodelay(true)
    .bind("127.0.0.1:0")?;
    if let Some(workers) = args.workers {
        server = server.workers(workers);
    }
    if let Some(file) = &args.port_file {
        let whole = format!("{file}.part");
        std::fs::write(&whole, server.addrs()[0].to_string())?;
        std::fs::rename(whole, file)?;
    }
    server.run().await
}

/// A UUIDv7 that counts, so that no random bits are asked of the system for each.
fn id(seq: u64) -> Uuid {
    let mut bits = [0; 10];
    bits[2..].copy_from_slice(&seq.to_be_bytes());
    Builder::from_unix_timestamp_millis(system_ms().cast_unsigned(), &bits).into_uuid()
}

/// A frame's bytes, in one buffer.
fn framed(write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut buffer = BytesMut::with_capacity(256);
    write(&mut buffer);
    buffer.freeze()
}
