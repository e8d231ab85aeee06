//! What the spool alone costs a message: CPU of its thread, from the commit to the later deletion (the budget: 4 µs at 100 a
//! commit, 8 µs at 12; idempotency apart), as a Markdown table.
//!
//! `cargo bench --bench spool`
//!
//! It calls the spool as the writer's thread does: commits of so many events, and a deletion for each thousand that a
//! store would have acknowledged. Time that the disk takes is in `wall`, not in `CPU`.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(clippy::print_stdout, reason = "the table is for people")]

use std::{sync::Arc, time::Instant};

use chatting_actors::{
    seams::Spool,
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
};
use chatting_server::store::{
    Durability,
    spool::{SpoolSettings, SqliteSpool},
};
use uuid::{ContextV7, Timestamp, Uuid};

const MESSAGES: u64 = 200_000;
const ROOMS: u64 = 100;
/// Events that are freed at once: a batch of the store.
const FREED: usize = 1000;

/// Nanoseconds that this thread has been on a CPU (proc(5), schedstat).
fn cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

fn events(epoch: &Epoch) -> Vec<Arc<Event>> {
    let context = ContextV7::new();
    let event = |n: u64| {
        let sent_at_ms = 1_700_000_000_000 + n / 10;
        Arc::new(Event {
            id: Uuid::new_v7(Timestamp::from_unix(
                &context,
                sent_at_ms / 1000,
                (sent_at_ms % 1000) as u32 * 1_000_000,
            )),
            presenter_idx: PresenterIdx::new((n % ROOMS).cast_signed()).unwrap(),
            epoch: epoch.clone(),
            seq: Seq(n / ROOMS + 1),
            sent_at_ms: sent_at_ms.cast_signed(),
            room_idx: None,
            broadcast_id: None,
            act: None,
            chat: ChatMessage {
                user_idx: UserIdx::new((n % 5000).cast_signed()).unwrap(),
                nickname: Nickname::new("viewer", 64).unwrap(),
                text: MessageText::new("x".repeat(60), 2000).unwrap(),
                role: Role::Viewer,
            },
            keyed: None,
        })
    };
    (0..MESSAGES).map(event).collect()
}

fn measure(durability: Durability, per_commit: usize) {
    // On a disk: where temporary files go may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut spool, info) = SqliteSpool::open(SpoolSettings {
        path: dir.path().join("spool.db"),
        durability,
        max_bytes: None,
        embedded: false,
    })
    .unwrap();
    let events = events(&info.epoch);
    let (cpu, wall) = (cpu_ns(), Instant::now());
    let (mut through, mut kept) = (0, 0);
    for batch in events.chunks(per_commit) {
        through = spool.commit(batch).unwrap() + i64::try_from(batch.len()).unwrap() - 1;
        kept += batch.len();
        if kept >= FREED {
            spool.free(through, &[], 0).unwrap();
            kept = 0;
        }
    }
    spool.free(through, &[], 0).unwrap();
    let each = |ns: u64| ns as f64 / 1000.0 / MESSAGES as f64;
    println!(
        "| {durability:?} | {per_commit} | {:.2} | {:.2} |",
        each(cpu_ns() - cpu),
        each(u64::try_from(wall.elapsed().as_nanos()).unwrap())
    );
}

fn main() {
    println!("| durability | events a commit | CPU µs a message | wall µs a message |");
    println!("|---|---|---|---|");
    for durability in [Durability::Disk, Durability::Os] {
        for per_commit in [12, 100] {
            measure(durability, per_commit);
        }
    }
}
