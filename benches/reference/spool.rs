//! A spool and nothing else: a thread that makes what has come durable in one transaction, and only then has it delivered and answered.
//!
//! It is the least that `log.durability = "disk"` can cost: SQLite as the server has it, the server's rule for when a commit begins,
//! and no token, no order in a room, no liveness, no limit, and no actor that owns a room.

use std::{
    sync::{Condvar, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use actix_web::web;
use bytes::Bytes;
use chatting_server::settings::Settings;
use rusqlite::{Connection, params};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use super::{Shared, log::Line};

/// A message that waits for its commit, and what happens after it.
pub struct Waiting {
    pub line: Line,
    pub frame: Bytes,
    pub presenter: UnboundedSender<Bytes>,
    pub answer: oneshot::Sender<()>,
}

/// What waits for the thread.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<(Vec<Waiting>, usize)>,
    enough: Condvar,
}

impl Queue {
    /// The thread is woken when there is as much as it waits for.
    pub fn push(&self, one: Waiting) {
        let mut waiting = self.waiting.lock().unwrap();
        waiting.0.push(one);
        if waiting.0.len() == waiting.1 {
            self.enough.notify_one();
        }
    }

    /// Waits until so much is there, or for so long; without an end for the first.
    fn take(&self, enough: usize, left: Duration) -> Vec<Waiting> {
        let mut waiting = self.waiting.lock().unwrap();
        waiting.1 = 1;
        waiting = self.enough.wait_while(waiting, |(some, _)| some.is_empty()).unwrap();
        waiting.1 = enough;
        let lacks = |(some, _): &mut (Vec<Waiting>, usize)| some.len() < enough;
        waiting = self.enough.wait_timeout_while(waiting, left, lacks).unwrap().0;
        std::mem::take(&mut waiting.0)
    }
}

/// Commits what comes, for ever.
pub fn commit_all(path: &str, shared: &web::Data<Shared>) {
    let settings = Settings::default().log;
    let (enough, interval) = (
        settings.commit_enough,
        Duration::from_micros(settings.commit_interval_us),
    );
    let file = open(path);
    let mut began = Instant::now();
    let (mut last, mut freed) = (0, 0);
    loop {
        let some = shared.spool.take(enough, interval.saturating_sub(began.elapsed()));
        began = Instant::now();
        file.prepare_cached("BEGIN IMMEDIATE").unwrap().execute([]).unwrap();
        for one in &some {
            let mut insert = file.prepare_cached("INSERT INTO events VALUES (?, ?)").unwrap();
            last += 1;
            insert.execute(params![last, one.line.bytes()]).unwrap();
        }
        let written = shared.written.load(Ordering::Relaxed);
        if written >= freed + 1000 {
            let mut delete = file.prepare_cached("DELETE FROM events WHERE seq <= ?").unwrap();
            delete.execute([written]).unwrap();
            freed = written;
        }
        file.prepare_cached("COMMIT").unwrap().execute([]).unwrap();
        for Waiting {
            line,
            frame,
            presenter,
            answer,
        } in some
        {
            let _ = presenter.send(frame);
            let _ = answer.send(());
            shared.keep(line);
        }
    }
}

fn open(path: &str) -> Connection {
    let file = Connection::open(path).unwrap();
    let tables = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
        CREATE TABLE events (seq INTEGER PRIMARY KEY, event BLOB NOT NULL)";
    file.execute_batch(tables).unwrap();
    file
}
