//! The log of `route + log`: a task that writes what came meanwhile, one batch after the other.

use std::{sync::atomic::Ordering, time::Duration};

use actix_web::web;
use chatting_actors::seams::LogStore;
use chatting_server::store::{MongoStore, mongo::MongoSettings};
use mongodb::{
    Client, Collection,
    bson::{DateTime, Uuid as BsonUuid},
    options::{Acknowledgment, WriteConcern},
};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Created, Shared};

/// The most messages of one `insert_many`, as `log.batch_max` has it.
const BATCH_MAX: usize = 1000;

/// How long a batch may wait behind a spool, and what is enough for one, as `log.linger_ms` and `log.batch_enough` have it.
const LINGER: Duration = Duration::from_millis(100);
const BATCH_ENOUGH: usize = 250;

/// A message as it is stored, with the fields that the server's log has.
#[derive(Serialize)]
pub struct Line {
    _id: BsonUuid,
    kind: &'static str,
    presenter_idx: i64,
    epoch: &'static str,
    seq: i64,
    user_idx: i64,
    nickname: &'static str,
    message: String,
    role: &'static str,
    sent_at: DateTime,
    broadcast_id: BsonUuid,
}

impl Line {
    pub fn new(room: i64, created: &Created, message: String) -> Self {
        Self {
            _id: BsonUuid::from_bytes(created.id.into_bytes()),
            kind: "chat",
            presenter_idx: room,
            epoch: "0123456789abcdef",
            seq: created.seq.cast_signed(),
            user_idx: 1,
            nickname: "load",
            message,
            role: "viewer",
            sent_at: DateTime::now(),
            broadcast_id: BsonUuid::from_bytes([7; 16]),
        }
    }

    /// For the spool.
    pub fn bytes(&self) -> Vec<u8> {
        mongodb::bson::to_vec(self).unwrap()
    }
}

/// Who writes.
pub struct Writer {
    log: Collection<Line>,
    concern: WriteConcern,
    lingers: bool,
}

impl Writer {
    pub async fn new(uri: &str, database: &str, durable: bool, lingers: bool) -> Self {
        let client = Client::with_uri_str(uri).await.unwrap();
        let (w, journal) = if durable {
            let settings = MongoSettings {
                uri: uri.to_owned(),
                database: database.to_owned(),
                connect_timeout: Duration::from_secs(5),
                write_timeout: Duration::from_secs(10),
                connections: 10,
            };
            let store = MongoStore::new(&settings).await.unwrap();
            LogStore::prepare(&store).await.unwrap();
            (Acknowledgment::Majority, true)
        } else {
            (Acknowledgment::Nodes(1), false)
        };
        Self {
            log: client.database(database).collection("chatting_log"),
            concern: WriteConcern::builder().w(w).journal(journal).build(),
            lingers,
        }
    }

    /// Until nobody is left to send.
    pub async fn write_all(self, mut lines: UnboundedReceiver<Line>, shared: web::Data<Shared>) {
        let mut batch = Vec::new();
        while lines.recv_many(&mut batch, BATCH_MAX).await > 0 {
            if self.lingers {
                let more =
                    async { while batch.len() < BATCH_ENOUGH && lines.recv_many(&mut batch, BATCH_MAX).await > 0 {} };
                let _ = tokio::time::timeout(LINGER, more).await;
            }
            let written = self
                .log
                .insert_many(&batch)
                .ordered(false)
                .write_concern(self.concern.clone())
                .await;
            written.unwrap();
            let count = i64::try_from(batch.len()).unwrap();
            shared.unwritten.fetch_sub(count, Ordering::Relaxed);
            shared.written.fetch_add(count, Ordering::Relaxed);
            batch.clear();
        }
    }
}
