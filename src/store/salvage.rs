//! A damaged spool: set aside whole, and what can be read of it carried into a new one.
//!
//! Nothing of the damaged file is changed: it is renamed with its WAL, and read through a copy. SQLite reads each table of that; where
//! it meets damage, the pages of the table are gone through one by one (`pages`), so that only what is on the damaged ones is missing.
//! What fails for another reason, as a full disk, fails the salvage, and everything stays as it was. The new spool begins a new
//! epoch, and every room asks the store for its last seq before anything is numbered (rule 3).

mod carrying;
mod files;
mod pages;
mod report;
mod stored;

pub use self::{
    files::{UNFINISHED, WHOLE, beside, clear, files_aside, finish, remove, room_for, set_aside, size_of},
    report::{Carried, Missing, SalvageError, Salvaged},
};

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use self::{carrying::Carrying, files::COPY};
use super::{
    open_at,
    spool::{LOG_ID, meta, set_meta},
};

/// The tables that a spool lives by; and the others of its file, which it can do without or that are the embedded log's.
pub const TABLES: [&str; 7] = ["meta", "epochs", "rooms", "spool", "keys", "parked", "records"];
pub const OTHER_TABLES: [&str; 3] = ["places", "chatting_log", "broadcasts"];

/// Whether the error says that the file itself is bad, rather than the disk, a lock or a right.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// Checks the tables that the spool itself lives by; with `all` the others, too. Done after an unclean stop only: it
/// reads all of them.
pub fn check(connection: &Connection, all: bool) -> rusqlite::Result<()> {
    let others: &[&str] = if all { &OTHER_TABLES } else { &[] };
    for table in TABLES.iter().chain(others) {
        if !connection.table_exists(None, *table)? {
            continue;
        }
        let found: String = connection.query_row(&format!("PRAGMA quick_check({table})"), [], |row| row.get(0))?;
        if found != "ok" {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(rusqlite::Error::SqliteFailure(code, Some(format!("{table}: {found}"))));
        }
    }
    Ok(())
}

/// Carries what can be read of `damaged` into the new, empty spool `anew`, in transactions of which the last is left open.
pub fn carry_over(damaged: &Path, anew: &Path, new: &Connection, embedded: bool) -> Result<Salvaged, SalvageError> {
    let copy = beside(damaged, COPY);
    // One that a start left which was killed has a WAL of its own.
    remove(&copy);
    let copy = scopeguard::guard(copy, |copy| remove(&copy));
    copy_with_wal(damaged, &copy).map_err(|error| SalvageError::file(&copy, error))?;
    let to_new = |error| SalvageError::sqlite(anew, error);
    let mut salvaged = Salvaged::default();
    let old = match read_copy(&copy) {
        Err(error) if is_damage(&error) => {
            salvaged.unread = Some(error);
            return Ok(salvaged);
        }
        old => old.map_err(|error| SalvageError::sqlite(&copy, error))?,
    };
    let carrying = Carrying {
        old: &old,
        copy: &copy,
        anew,
        new,
    };
    // Of `meta` this alone: with another log the rest would go on where that one is not.
    if let Some(Some(id)) = carrying.readable(meta::<String>(&old, LOG_ID))? {
        set_meta(new, LOG_ID, id).map_err(to_new)?;
    }
    salvaged.epochs = carrying.table("epochs", "n")?;
    salvaged.events = carrying.table("spool", "pos")?;
    salvaged.keys = carrying.table("keys", "pos")?;
    salvaged.parked = carrying.table("parked", "id")?;
    salvaged.records = carrying.table("records", "id")?;
    if embedded {
        new.execute_batch(super::sqlite::SCHEMA).map_err(to_new)?;
        salvaged.log = carrying.table("chatting_log", "presenter_idx, epoch, seq")?;
        salvaged.broadcasts = carrying.table("broadcasts", "id")?;
    }
    name_epochs(new).map_err(to_new)?;
    Ok(salvaged)
}

/// Opens the copy, with its WAL written into it. An error that is no damage says nothing of what can be read.
fn read_copy(copy: &Path) -> rusqlite::Result<Connection> {
    if let Err(error) = lengthen(copy) {
        // Then SQLite says what it makes of it.
        log::debug!("spool: {} is left as long as it is: {error}", copy.display());
    }
    let old = open_at(copy, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    old.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(old)
}

/// A file without a WAL that is shorter than its first page says, as one whose copying was cut short, is no database to SQLite. With empty
/// pages in place of those that are gone it is a damaged one, and what it has of whole pages can be read. The numbers: the file
/// format's header, <https://www.sqlite.org/fileformat2.html#the_database_header>.
fn lengthen(copy: &Path) -> io::Result<()> {
    if std::fs::metadata(beside(copy, "-wal")).is_ok_and(|wal| wal.len() > 0) {
        return Ok(());
    }
    let mut header = [0; 100];
    let mut file = File::options().read(true).write(true).open(copy)?;
    file.read_exact(&mut header)?;
    let word = |at: usize| {
        u64::from(u32::from_be_bytes([
            header[at],
            header[at + 1],
            header[at + 2],
            header[at + 3],
        ]))
    };
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    // The number of pages counts only where the file's last change set it.
    let pages = if word(24) == word(92) { word(28) } else { 0 };
    if file.metadata()?.len() < pages * page {
        file.set_len(pages * page)?;
    }
    Ok(())
}

/// A numbering whose name cannot be read gets one of its own: without one its number would be the next epoch's, and its rows would
/// be taken for events of that.
fn name_epochs(new: &Connection) -> rusqlite::Result<()> {
    let named = new.execute(
        "INSERT INTO epochs(n, epoch) SELECT epoch, lower(hex(randomblob(8))) FROM
         (SELECT epoch FROM spool UNION SELECT epoch FROM keys UNION SELECT epoch FROM parked)
         WHERE typeof(epoch) = 'integer' AND epoch NOT IN (SELECT n FROM epochs)",
        [],
    )?;
    if named > 0 {
        log::error!("spool: the names of {named} epochs cannot be read, what is salvaged of them goes by new ones");
    }
    Ok(())
}

fn copy_with_wal(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::copy(from, to)?;
    let wal = beside(from, "-wal");
    if wal.exists() {
        std::fs::copy(wal, beside(to, "-wal"))?;
    }
    Ok(())
}
