use super::*;
use crate::store::{
    open_file, open_to_read,
    wal::tests::{USUAL, in_the_file},
};

fn io_error<T>() -> rusqlite::Result<T> {
    let code = ffi::Error::new(ffi::SQLITE_IOERR_FSYNC);
    Err(rusqlite::Error::SqliteFailure(code, None))
}

fn busy_timeout(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "busy_timeout", |row| row.get(0))
}

/// A file with an empty table, all of which is in the file itself. A commit checkpoints at so many pages.
fn of(path: &Path, pages: u32) -> SharedConnection {
    under(Durability::Disk, path, pages)
}

fn under(durability: Durability, path: &Path, pages: u32) -> SharedConnection {
    let of = path.to_owned();
    let open = move || {
        let connection = open_file(&of)?;
        connection.busy_timeout(USUAL)?;
        connection.pragma_update(None, "wal_autocheckpoint", pages)?;
        Ok(connection)
    };
    let shared = Shared::new(path.to_owned(), open().unwrap(), durability, open).unwrap();
    shared
        .run(|connection| connection.execute_batch("CREATE TABLE t(x); PRAGMA wal_checkpoint(TRUNCATE)"))
        .unwrap();
    shared
}

fn insert(shared: &Shared) -> rusqlite::Result<usize> {
    shared.run(|connection| connection.execute("INSERT INTO t VALUES (zeroblob(3000))", []))
}

fn count(connection: &mut Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
}

fn damage<T>() -> rusqlite::Result<T> {
    let code = ffi::Error::new(ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(code, None))
}

/// Has the file open, and reads what is in it now.
fn reader(path: &Path) -> Connection {
    let reader = open_to_read(path).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    reader
}

#[test]
fn after_an_io_error_nothing_is_written_before_the_file_itself_has_all_that_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.db");
    let shared = of(&path, 1000);
    // One who reads keeps the WAL in use, also when the connection is closed.
    let read = reader(&path);
    insert(&shared).unwrap();
    let refused: rusqlite::Result<()> = shared.run(|connection| connection.execute_batch("no statement"));
    assert!(refused.is_err());
    insert(&shared).unwrap();
    assert_eq!(
        (in_the_file(&path), shared.reopened()),
        (0, 0),
        "no other error is heeded"
    );
    assert!(shared.run(|_| io_error::<()>()).is_err());
    assert_eq!(shared.patience(Instant::now()), PATIENCE);
    let began = Instant::now();
    for _ in 0..2 {
        let error = insert(&shared).unwrap_err().to_string();
        assert!(error.contains("somebody reads it"), "{error}");
    }
    assert!(began.elapsed() < USUAL / 2, "it is not waited for as for who writes");
    // Whoever comes next does not wait for it again, until a while is over or it has ended.
    let waited = shared.in_vain().unwrap();
    assert_eq!(shared.patience(waited), Duration::ZERO);
    assert_eq!(shared.patience(waited + IMPATIENCE), PATIENCE);
    drop(read);
    insert(&shared).unwrap();
    assert_eq!((in_the_file(&path), shared.reopened()), (2, 1));
    assert_eq!(shared.patience(waited), PATIENCE);
    let usual = shared.run(|connection| busy_timeout(connection)).unwrap();
    assert_eq!(u128::try_from(usual).unwrap(), USUAL.as_millis());
    // It is trusted again: closed for another reason, it is opened without ado.
    let _read = reader(&path);
    shared.close(false);
    insert(&shared).unwrap();
    assert_eq!(shared.reopened(), 2);
    shared.close(true);
    assert!(insert(&shared).is_err());
}

#[test]
fn a_sync_that_was_promised_is_made_good_under_any_durability() {
    for (durability, promised, in_file) in [
        (Durability::Os, false, 0),
        (Durability::Os, true, 1),
        (Durability::Memory, true, 1),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let shared = under(durability, &path, 1000);
        insert(&shared).unwrap();
        if promised {
            shared.run_synced(|_| Ok(())).unwrap();
        }
        assert!(shared.run(|_| io_error::<()>()).is_err());
        insert(&shared).unwrap();
        assert_eq!(in_the_file(&path), in_file, "{durability:?}");
    }
}

#[test]
fn a_sync_that_could_not_be_promised_costs_nobody_who_was_promised_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.db");
    let shared = under(Durability::Os, &path, 1000);
    insert(&shared).unwrap();
    assert!(shared.run(|_| io_error::<()>()).is_err());
    insert(&shared).unwrap();
    // As a backup has it, so that nobody has the file alone.
    let other = Connection::open(&path).unwrap();
    let count = || other.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    count().unwrap();
    assert!(shared.run_synced(|_| Ok(())).is_err());
    insert(&shared).unwrap();
    assert_eq!(count(), Ok(3));
    drop(other);
    shared.run_synced(|_| Ok(())).unwrap();
    assert_eq!(in_the_file(&path), 3);
}

#[test]
fn behind_an_io_error_a_sync_is_promised_only_when_the_file_itself_has_all_that_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.db");
    let shared = under(Durability::Os, &path, 1000);
    insert(&shared).unwrap();
    assert!(shared.run(|_| io_error::<()>()).is_err());
    // Nobody was promised anything.
    insert(&shared).unwrap();
    assert_eq!(in_the_file(&path), 0);
    for _ in 0..2 {
        shared.run_synced(|_| Ok(())).unwrap();
        assert_eq!((in_the_file(&path), shared.reopened()), (2, 2));
    }
}

#[test]
fn what_a_checkpoint_wrote_before_a_sync_failed_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.db");
    let shared = of(&path, 1000);
    let before = std::fs::read(&path).unwrap();
    for _ in 0..100 {
        insert(&shared).unwrap();
    }
    // It goes as far as what is read, and is not synced there.
    let read = reader(&path);
    insert(&shared).unwrap();
    let left = shared.run(|connection| pass(connection)).unwrap();
    let written = std::fs::metadata(&path).unwrap().len();
    assert!(left > 0 && written > 300_000, "{left} pages left, {written} bytes");
    read.execute_batch("COMMIT").unwrap();
    // The sync that comes later fails, and the kernel takes for written what never comes to the disk.
    std::fs::write(&path, before).unwrap();
    assert!(shared.run(|_| io_error::<()>()).is_err());
    // Who has the file open without reading it knows how far checkpoints got, and would have the next one go on there.
    assert!(insert(&shared).is_err());
    drop(read);
    insert(&shared).unwrap();
    assert_eq!(in_the_file(&path), 101);
    shared.run(|connection| pass(connection)).unwrap();
    assert_eq!(in_the_file(&path), 102);
}

#[test]
fn a_connection_that_is_opened_again_takes_nothing_into_the_file_where_nobody_would_hear_that_it_failed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.db");
    let shared = of(&path, 1000);
    insert(&shared).unwrap();
    shared.close(false);
    assert_eq!(in_the_file(&path), 0);
    insert(&shared).unwrap();
    assert!(shared.run(|_| io_error::<()>()).is_err());
    assert_eq!(in_the_file(&path), 0);
    // What opens it again would hear.
    assert_eq!(shared.run(count), Ok(2));
    assert_eq!(in_the_file(&path), 2);
}

#[test]
fn a_checkpoint_that_fails_behind_a_commit_is_heeded_and_the_commit_stands() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.db");
    let shared = of(&path, 10);
    let insert = |rows: i64| {
        shared.run(|connection| {
            let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                       INSERT INTO t SELECT zeroblob(3000) FROM n";
            connection.execute(sql, [rows])
        })
    };
    insert(100).unwrap();
    assert_eq!(in_the_file(&path), 100, "it checkpoints where the WAL has grown long");
    insert(1).unwrap();
    assert_eq!(in_the_file(&path), 100, "and not before");
    shared
        .run(|connection| connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)"))
        .unwrap();
    // SQLite writes no page so far behind the end of a file.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(0)
        .unwrap();
    assert_eq!(insert(20).unwrap(), 20);
    assert!(shared.damaged());
    assert_eq!(shared.run(count), Ok(121));
}

#[test]
fn a_page_that_cannot_be_read_says_nothing_of_a_sync_also_behind_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.db");
    let shared = of(&path, 1000);
    let unread = || {
        let code = ffi::Error::new(ffi::SQLITE_IOERR_READ);
        shared.run(|_| Err::<(), _>(rusqlite::Error::SqliteFailure(code, None)))
    };
    assert!(unread().is_err());
    let read = reader(&path);
    insert(&shared).unwrap();
    assert_eq!(
        (in_the_file(&path), shared.reopened()),
        (0, 1),
        "it is opened anew, and no more"
    );
    drop(read);
    assert!(shared.run(|_| damage::<()>()).is_err());
    assert!(unread().is_err());
    insert(&shared).unwrap();
    assert_eq!(shared.run(count), Ok(2));
}

#[test]
fn behind_damage_a_failed_sync_is_not_made_good_so_nothing_is_written_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chat.db");
    let shared = of(&path, 1000);
    insert(&shared).unwrap();
    assert!(shared.run(|_| damage::<()>()).is_err());
    insert(&shared).unwrap();
    // As behind a commit that met the damage: others go on.
    shared.close(true);
    insert(&shared).unwrap();
    assert!(shared.run(|_| io_error::<()>()).is_err());
    for _ in 0..2 {
        let error = insert(&shared).unwrap_err().to_string();
        assert!(error.contains("the next start salvages it"), "{error}");
        // Nor by who opens it again to see what came of a commit.
        shared.close(true);
    }
    assert_eq!(in_the_file(&path), 0, "the salvage has its WAL");
    assert_eq!(count(&mut open_file(&path).unwrap()), Ok(3));
}
