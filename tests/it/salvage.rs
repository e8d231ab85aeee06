//! A damaged spool: what can be read of it comes along, and where that cannot be done now, nothing is changed. Nor is a file that is
//! no spool of ours.

use std::{path::Path, sync::Arc};

use chatting_actors::{
    idempotency::Keyed,
    seams::{LogStore, Spool},
    types::Seq,
};
use chatting_server::{
    app::App,
    startup::StartError,
    store::{
        Archive, Durability, SpoolSettings, SqliteSpool, SqliteStore, StoredBroadcast, inspect::SpoolFile,
        keeping::Keeping,
    },
};
use rusqlite::Connection;

use crate::{
    figures::broadcast,
    log_store::{batch, embedded},
    recovery::{SmallDisk, aside, count_aside, damage, damage_table, events, open},
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

/// The next start checks all of the file.
pub fn to_be_checked(path: &Path) {
    let marks = "UPDATE meta SET value = 0 WHERE key = 'clean'; UPDATE meta SET value = 1 WHERE key = 'damaged';
        PRAGMA wal_checkpoint(TRUNCATE)";
    Connection::open(path).unwrap().execute_batch(marks).unwrap();
}

/// Damages the leaf of a table that lies behind so many thousandths of them.
fn damage_leaf(path: &Path, table: &str, thousandths: usize) {
    let connection = Connection::open(path).unwrap();
    let sql = "SELECT pageno FROM dbstat WHERE name = ?1 AND pagetype = 'leaf' ORDER BY path";
    let mut statement = connection.prepare(sql).unwrap();
    let leaves = statement.query_map([table], |row| row.get(0)).unwrap();
    let leaves: Vec<i64> = leaves.map(Result::unwrap).collect();
    assert!(leaves.len() > 10, "{leaves:?}");
    drop(statement);
    drop(connection);
    let page = leaves[leaves.len() * thousandths / 1000].unsigned_abs() - 1;
    damage(path, page..page + 1);
}

/// A spool that was not stopped in order, with so many events and a damaged page that no event is on.
fn left_damaged(path: &Path, through: u64) {
    let (mut spool, info) = open(path, Durability::Disk, None);
    spool.commit(&events(&info, 1, 1..=through)).unwrap();
    spool.close();
    drop(spool);
    to_be_checked(path);
    damage_table(path, "rooms");
}

#[test]
fn a_salvage_whose_copy_cannot_be_made_is_refused_by_name_and_everything_stays_for_the_next_start() {
    let dir = ScratchDir::new("nocopy");
    let path = dir.path().join("chat.db");
    left_damaged(&path, 3000);
    let in_the_way = dir.path().join("chat.db.reading");
    std::fs::create_dir(&in_the_way).unwrap();
    let left = std::fs::read(&path).unwrap();
    for _ in 0..2 {
        let error = refused(&path);
        let needs = format!("{} bytes", 2 * left.len());
        assert!(error.contains("chat.db.reading: ") && error.contains(&needs), "{error}");
        assert!(std::fs::read(&path).unwrap() == left);
        assert_eq!(files(dir.path()), ["chat.db", "chat.db.lock", "chat.db.reading"]);
    }
    std::fs::remove_dir(&in_the_way).unwrap();
    let (mut spool, _) = open(&path, Durability::Disk, None);
    assert_eq!(spool.read(0, 10_000).unwrap().len(), 3000);
}

#[test]
fn a_salvage_that_the_disk_has_no_room_for_leaves_no_copy_of_the_chat_and_is_done_when_it_has() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: no right to mount a small file system here");
        return;
    };
    let path = disk.dir.path().join("chat.db");
    left_damaged(&path, 4000);
    let left = std::fs::read(&path).unwrap();
    let ballast = disk.dir.path().join("ballast");
    let mut filling = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut filling, &[0; 4096]).is_ok() {}
    // For none, and for the copy, but not for the new file.
    for room in [left.len() / 2, left.len() * 3 / 2] {
        let full = filling.metadata().unwrap().len();
        filling.set_len(full - room as u64).unwrap();
        let error = refused(&path);
        assert!(error.contains("full") || error.contains("No space"), "{error}");
        assert!(std::fs::read(&path).unwrap() == left);
        assert_eq!(files(disk.dir.path()), ["ballast", "chat.db", "chat.db.lock"]);
    }
    drop(filling);
    std::fs::remove_file(ballast).unwrap();
    let (mut spool, _) = open(&path, Durability::Disk, None);
    assert_eq!(spool.read(0, 10_000).unwrap().len(), 4000);
}

#[test]
fn what_a_salvage_left_that_was_killed_goes_at_the_next_start() {
    let dir = ScratchDir::new("killed");
    let path = dir.path().join("chat.db");
    drop(open(&path, Durability::Disk, None));
    for left in ["reading", "reading-wal", "anew", "anew-wal", "salvaged"] {
        std::fs::write(path.with_extension(format!("db.{left}")), "chat").unwrap();
    }
    let (spool, _) = open(&path, Durability::Disk, None);
    drop(spool);
    let names = std::fs::read_dir(dir.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = names
        .filter(|name| {
            [".reading", ".anew", ".salvaged"]
                .iter()
                .any(|left| name.contains(left))
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_damaged_page_of_parked_events_takes_no_others_with_it() {
    let dir = ScratchDir::new("parked");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = open(&path, Durability::Disk, None);
    let written = events(&info, 1, 1..=2000);
    spool.commit(&written).unwrap();
    let parked: Vec<_> = written
        .iter()
        .zip(1..)
        .map(|(event, pos)| (pos, Arc::clone(event), "refused".to_owned()))
        .collect();
    spool.free(2000, &parked, 0).unwrap();
    spool.close();
    drop(spool);
    to_be_checked(&path);
    damage_leaf(&path, "parked", 500);
    drop(open(&path, Durability::Disk, None));
    let parked = SpoolFile::open(&path).unwrap().status().unwrap().parked.count;
    assert!((1900..2000).contains(&parked), "{parked}");
}

#[actix_web::test]
async fn what_lies_between_the_damaged_pages_of_an_embedded_log_comes_along() {
    let dir = ScratchDir::new("holes");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = embedded(&path);
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let rooms = (1..=5).flat_map(|room| events(&info, room, 1..=1000));
    let written: Vec<_> = rooms.collect();
    spool.commit(&written).unwrap();
    assert_eq!(store.append(batch(&written)).await.unwrap(), []);
    spool.free(5000, &[], 0).unwrap();
    spool.close();
    drop((spool, store));
    to_be_checked(&path);
    for thousandths in [10, 250, 750, 990] {
        damage_leaf(&path, "chatting_log", thousandths);
    }
    let (spool, after) = embedded(&path);
    assert_ne!(after.epoch, info.epoch);
    drop(spool);
    let connection = Connection::open(&path).unwrap();
    let sql = "SELECT count(*), count(DISTINCT presenter_idx) FROM chatting_log WHERE epoch = ?1";
    let (rows, rooms): (i64, i64) = connection
        .query_row(sql, [&*info.epoch.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(rooms, 5);
    assert!((4850..5000).contains(&rows), "{rows}");
}

#[actix_web::test]
async fn keys_open_broadcasts_and_what_staff_did_to_those_of_an_embedded_log_come_along() {
    let dir = ScratchDir::new("kept");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = embedded(&path);
    let store = SqliteStore::new(spool.connection());
    store.prepare().await.unwrap();
    let mut written = events(&info, 12, 1..=3);
    let one = Arc::make_mut(&mut written[0]);
    one.keyed = Some(Keyed::new(one.chat.user_idx, one.presenter_idx, "a key", "a text"));
    let keyed = one.clone();
    spool.commit(&written).unwrap();
    let start = keyed.sent_at_ms - 60_000;
    let open = broadcast(&[(start, None)], &[(&*info.epoch.0, 0, None)]);
    spool.keep_broadcasts(std::slice::from_ref(&open)).unwrap();
    let over = broadcast(
        &[(start - 10_000, Some(start - 1_000))],
        &[(&*info.epoch.0, 0, Some(0))],
    );
    store.put_broadcasts(std::slice::from_ref(&over)).await.unwrap();
    assert!(store.hold_broadcast(over.id, true).await.unwrap());
    assert!(store.correct_broadcast(over.id, Some(start - 9_000)).await.unwrap());
    spool.close();
    drop((spool, store));
    to_be_checked(&path);
    damage_table(&path, "rooms");
    let (mut spool, after) = embedded(&path);
    assert_ne!(after.epoch, info.epoch);
    let keys = spool.read_keys(0).unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    let (key, accepted) = (&keys[0].keyed, &keys[0].accepted);
    assert_eq!(Some(key), keyed.keyed.as_ref());
    assert_eq!(
        (accepted.id, accepted.seq, &accepted.epoch),
        (keyed.id, Seq(1), &info.epoch)
    );
    assert_eq!(spool.open_broadcasts().unwrap(), [open]);
    let store = SqliteStore::new(spool.connection());
    let kept = StoredBroadcast {
        corrected_start_ms: Some(start - 9_000),
        legal_hold: true,
        broadcast: over,
    };
    assert_eq!(store.broadcast(kept.broadcast.id).await.unwrap(), Some(kept));
}

#[test]
fn a_spool_whose_first_page_is_damaged_is_set_aside_with_its_wal() {
    let dir = ScratchDir::new("first");
    let (before, path) = (dir.path().join("before.db"), dir.path().join("chat.db"));
    let wal = |path: &Path| path.with_extension("db-wal");
    let (mut spool, info) = open(&before, Durability::Disk, None);
    spool.commit(&events(&info, 1, 1..=50)).unwrap();
    let other = Connection::open(&before).unwrap();
    let empty = "PRAGMA wal_checkpoint(RESTART)";
    other.query_row(empty, [], |_| Ok(())).unwrap();
    let sql = "UPDATE meta SET value = 1 WHERE key = 'last_ms'";
    other.execute(sql, []).unwrap();
    // As a kill leaves it.
    std::fs::copy(&before, &path).unwrap();
    std::fs::copy(wal(&before), wal(&path)).unwrap();
    std::fs::copy(before.with_extension("db.lock"), path.with_extension("db.lock")).unwrap();
    let left = std::fs::read(wal(&path)).unwrap();
    let mut file = std::fs::read(&path).unwrap();
    file[100..4096].fill(0xa5);
    std::fs::write(&path, &file).unwrap();
    drop(open(&path, Durability::Disk, None));
    let aside = aside(dir.path());
    let kept = |suffix: &str| {
        let name = aside.iter().find(|name| name.ends_with(suffix));
        name.map(|name| std::fs::read(dir.path().join(name)).unwrap())
    };
    assert!(kept("-wal") == Some(left), "{aside:?}");
    assert!(kept("Z") == Some(file), "{aside:?}");
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

#[test]
fn a_sqlite_file_of_another_program_is_named_and_not_touched() {
    for schema in [
        "CREATE TABLE users(name); INSERT INTO users VALUES ('kim')",
        "CREATE TABLE rooms(name)",
        "CREATE TABLE meta(name); CREATE TABLE users(name)",
        "CREATE TABLE meta(key TEXT PRIMARY KEY, value); CREATE TABLE users(name)",
        "PRAGMA journal_mode = WAL; CREATE TABLE users(name); INSERT INTO users VALUES ('kim')",
    ] {
        let dir = ScratchDir::new("foreign");
        let path = dir.path().join("other.db");
        let other = Connection::open(&path).unwrap();
        other.execute_batch(schema).unwrap();
        let read = || {
            let wal = std::fs::read(path.with_extension("db-wal")).unwrap_or_default();
            (std::fs::read(&path).unwrap(), wal)
        };
        let before = read();
        for _ in 0..3 {
            let error = refused(&path);
            assert!(
                error.contains("other.db") && error.contains("no spool"),
                "{schema}: {error}"
            );
            assert!(read() == before, "{schema}");
            assert_eq!(files(dir.path()), ["other.db", "other.db.lock"]);
        }
    }
}

#[test]
fn the_spool_and_what_is_set_aside_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = ScratchDir::new("mode");
    let path = dir.path().join("sub/chat.db");
    let only_the_owners = || {
        for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(
                entry.metadata().unwrap().permissions().mode() & 0o777,
                0o600,
                "{entry:?}"
            );
        }
    };
    let (mut spool, info) = open(&path, Durability::Disk, None);
    spool.commit(&events(&info, 1, 1..=3)).unwrap();
    only_the_owners();
    drop(spool);
    damage_table(&path, "rooms");
    let (mut spool, _) = open(&path, Durability::Disk, None);
    assert_eq!(
        (count_aside(path.parent().unwrap()), spool.read(0, 10).unwrap().len()),
        (1, 3)
    );
    only_the_owners();
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
    assert!(matches!(error, StartError::Unavailable(_)), "{error}");
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

#[test]
fn a_spool_whose_copying_was_cut_short_loses_what_is_not_there_and_no_more() {
    let dir = ScratchDir::new("short");
    let path = dir.path().join("chat.db");
    let (mut spool, info) = open(&path, Durability::Disk, None);
    spool.commit(&events(&info, 1, 1..=3000)).unwrap();
    spool.close();
    drop(spool);
    to_be_checked(&path);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 8 * 4096).unwrap();
    let (mut spool, after) = open(&path, Durability::Disk, None);
    assert_ne!(after.epoch, info.epoch);
    let left = spool.read(0, 5000).unwrap().len();
    assert!((2500..3000).contains(&left), "{left}");
}

#[test]
fn a_damaged_spool_that_was_put_back_without_its_lock_is_known_by_its_tables() {
    let dir = ScratchDir::new("nolock");
    let path = dir.path().join("chat.db");
    left_damaged(&path, 100);
    std::fs::remove_file(dir.path().join("chat.db.lock")).unwrap();
    let (mut spool, _) = open(&path, Durability::Disk, None);
    assert_eq!(count_aside(dir.path()), 1);
    assert_eq!(spool.read(0, 1000).unwrap().len(), 100);
}
