//! What `scripts/bench` measures the server against: the least that can be called a chat server, on the same framework.
//!
//! `route`: a message is parsed, looked up and sent into an unbounded channel that a presenter's WebSocket reads. No token is
//! checked, nobody asks whether the room is live, there is no order but the channel's, no limit, and nothing is kept.
//! `route + log` (`--mongo`): the same, and each message goes to a task that writes all that came meanwhile with one
//! `insert_many`, and for which nobody waits. `--durable` gives its writes the write concern and the collection the indexes that the
//! server's own log has.
//!
//! It speaks as much of the server's protocols as the load tool needs: `POST /v1/rooms/{n}/messages`, the legacy WebSocket with
//! `start` and `ping`, and `GET /metrics` with `chat_spool_events`, here what has not been written yet.
//! `reference-server [--port-file FILE] [--mongo URI --database NAME [--durable]]`
#![allow(clippy::unwrap_used, reason = "a server for benchmarks fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "no bound is what it is compared for")]

mod log;
mod socket;

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
use tokio::sync::mpsc::UnboundedSender;
use uuid::{Builder, Uuid};

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
}

/// What all workers share.
#[derive(Default)]
pub struct Shared {
    rooms: RwLock<HashMap<i64, UnboundedSender<Bytes>>>,
    log: Option<UnboundedSender<log::Line>>,
    seq: AtomicU64,
    unwritten: AtomicI64,
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
    let sent = match shared.rooms.read().unwrap().get(&room) {
        Some(presenter) => presenter.send(frame).is_ok(),
        None => false,
    };
    if !sent {
        return HttpResponse::NotFound().finish();
    }
    let seq = shared.seq.fetch_add(1, Ordering::Relaxed) + 1;
    let created = Created { id: id(seq), seq };
    if let Some(log) = &shared.log {
        shared.unwritten.fetch_add(1, Ordering::Relaxed);
        let line = log::Line::new(*room, &created, message.into_inner().text);
        let _ = log.send(line);
    }
    HttpResponse::Created().json(created)
}

async fn metrics(shared: web::Data<Shared>) -> String {
    format!("chat_spool_events {}\n", shared.unwritten.load(Ordering::Relaxed))
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
    let shared = web::Data::new(shared);
    if let (Some(uri), Some(lines)) = (&args.mongo, lines) {
        let writer = log::Writer::new(uri, &args.database, args.durable).await;
        actix_web::rt::spawn(writer.write_all(lines, shared.clone()));
    }
    let server = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            .route("/v1/rooms/{room}/messages", web::post().to(post_message))
            .route("/chatting", web::get().to(socket::presenter))
            .route("/metrics", web::get().to(metrics))
    })
    .bind("127.0.0.1:0")?;
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
