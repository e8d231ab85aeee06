//! A spool whose file something else has written into: it opens, is salvaged, or is refused by its name. It never panics, and
//! what it holds afterwards can be drained.

use std::path::Path;

use chatting_actors::{
    clock::system_ms,
    seams::Spool,
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::Config};
use uuid::Uuid;

use crate::store::{Durability, SpoolSettings, SqliteSpool};

fn settings(path: &Path) -> SpoolSettings {
    SpoolSettings {
        path: path.to_owned(),
        durability: Durability::Os,
        max_bytes: Some(64 << 20),
        embedded: false,
    }
}

fn event(seq: u64, epoch: &Epoch) -> std::sync::Arc<Event> {
    std::sync::Arc::new(Event {
        id: Uuid::now_v7(),
        presenter_idx: PresenterIdx::new(12).unwrap(),
        epoch: epoch.clone(),
        seq: Seq(seq),
        sent_at_ms: system_ms(),
        room_idx: Some(3),
        broadcast_id: Some(Uuid::now_v7()),
        act: None,
        chat: ChatMessage {
            user_idx: UserIdx::new(7).unwrap(),
            nickname: Nickname::new("kim", 64).unwrap(),
            text: MessageText::new(format!("message {seq} {}", "x".repeat(200)), 2000).unwrap(),
            role: Role::Viewer,
        },
        keyed: None,
    })
}

/// A spool that was not stopped in order, with rows on several pages.
fn left_behind(path: &Path) {
    let (mut spool, info) = SqliteSpool::open(settings(path)).unwrap();
    for first in [1, 51] {
        let events: Vec<_> = (first..first + 50).map(|seq| event(seq, &info.epoch)).collect();
        spool.commit(&events).unwrap();
    }
}

proptest! {
    #![proptest_config(Config { cases: Config::default().cases.div_ceil(4), ..Config::default() })]

    #[test]
    fn a_damaged_spool_opens_is_salvaged_or_is_refused_by_its_name(
        bytes in vec((any::<Index>(), any::<u8>()), 1..40),
        cut in prop::option::weighted(0.2, any::<Index>()),
        in_wal in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        left_behind(&path);
        let damaged = if in_wal { dir.path().join("chat.db-wal") } else { path.clone() };
        if let Ok(mut file) = std::fs::read(&damaged) {
            for (at, byte) in bytes {
                let at = at.index(file.len().max(1));
                if let Some(place) = file.get_mut(at) {
                    *place = byte;
                }
            }
            if let Some(cut) = cut {
                file.truncate(cut.index(file.len() + 1));
            }
            std::fs::write(&damaged, file).unwrap();
        }
        match SqliteSpool::open(settings(&path)) {
            Ok((mut spool, info)) => {
                // What cannot be read tells so, row by row; the rest can be had, and more can be written.
                if let Ok(rows) = spool.read(info.first - 1, 1000) {
                    prop_assert!(rows.len() <= 100, "{} rows of 100", rows.len());
                }
                let _ = spool.commit(&[event(1000, &info.epoch)]);
            }
            Err(error) => prop_assert!(error.to_string().contains("chat.db"), "{}", error),
        }
    }
}
