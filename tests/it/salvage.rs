//! A damaged spool: what can be read of it comes along, and where that cannot be done now, nothing is changed. Nor is a file that is
//! no spool of ours.

use std::path::Path;

use chatting_actors::seams::{LogStore, Spool};
use chatting_server::{
    app::App,
    store::{Durability, SpoolSettings, SqliteSpool, SqliteStore},
};
use rusqlite::Connection;

use crate::{
    log_store::{batch, embedded},
    recovery::{count_aside, damage_table, events},
    support::{app::settings, process::ScratchDir},
};

fn refused(path: &Path) -> String {
    let opened = SqliteSpool::open(SpoolSettings {
        path: path.to_owned(),
        durability: Durability::Disk,
        max_bytes: None,
        embedded: false,
    });
    opened.err().unwrap().to_string()
}

/// What is in a directory, without what SQLite keeps beside a file while it is open.
fn files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_that_is_not_ours_is_named_and_not_touched_however_often_a_start_is_tried() {
    let dir = ScratchDir::new("notours");
    let path = dir.path().join("notes.txt");
    let notes = "somebody's precious notes, not a database at all\n".repeat(20);
    std::fs::write(&path, &notes).unwrap();
    for _ in 0..3 {
        let error = refused(&path);
        assert!(error.contains("notes.txt"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), notes);
        assert_eq!(files(dir.path()), ["notes.txt", "notes.txt.lock"]);
    }
}

#[actix_web::test]
async fn a_start_that_cannot_make_its_embedded_log_ready_names_the_file_and_the_next_one_salvages_it() {
    let dir = ScratchDir::new("unready");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = embedded(&path);
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let written = events(&info, 12, 1..=100);
    spool.commit(&written).unwrap();
    assert_eq!(store.append(batch(&written)).await.unwrap(), []);
    spool.close();
    drop((spool, store));
    // As before an update that adds an index.
    let sql = "DROP INDEX chatting_log_by_user; PRAGMA wal_checkpoint(TRUNCATE)";
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    damage_table(&path, "chatting_log");
    let settings = settings(&dir);
    let error = App::build(&settings).await.err().unwrap();
    assert_eq!(error.exit_code(), 69);
    let error = error.to_string();
    assert!(
        error.contains(&settings.log.path) && error.contains("log.path"),
        "{error}"
    );
    let app = crate::support::app::spawn_in(dir, settings).await;
    assert_eq!(count_aside(app.dir.path()), 1);
}

#[actix_web::test]
async fn a_start_that_cannot_write_that_its_store_is_empty_names_the_file() {
    let dir = ScratchDir::new("unready");
    let path = dir.path().join("chat.db");
    let (mut spool, _) = embedded(&path);
    SqliteStore::new(spool.connection()).prepare().await.unwrap();
    spool.close();
    drop(spool);
    let sql = "UPDATE meta SET value = 1 WHERE key = 'ask_store';
        CREATE TRIGGER no BEFORE INSERT ON meta WHEN NEW.key = 'ask_store' BEGIN SELECT RAISE(ABORT, 'no'); END";
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    let settings = settings(&dir);
    let error = App::build(&settings).await.err().unwrap().to_string();
    assert!(
        error.contains(&settings.log.path) && error.contains("log.path"),
        "{error}"
    );
}
