//! A file beside the spool that keeps room on its disk, for when that is full (`log.reserve_bytes`).
//!
//! New pages come into a SQLite file when its WAL is checkpointed. Where the spool itself has filled the disk, the WAL holds pages for which
//! the file has no room, so it cannot begin anew, and each transaction must lengthen it: one that frees rows, too. The reserve is given
//! up for that. What frees rows makes no room on the disk, because the file keeps its size. So while the reserve is missing the file does
//! not grow, and senders get what was freed; the disk is asked seldom whether there is room for a new one. A file that is small meanwhile,
//! because it is others that fill the disk, grows to half of the reserve at most, and only while what the WAL needs stays free.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::Errno,
};

use super::salvage::beside;

const SUFFIX: &str = ".reserve";

/// What the system counts what a file holds in (`st_blocks`, stat(2)).
const BLOCK: u64 = 512;

/// How long SQLite lets a WAL become before a checkpoint (`wal_autocheckpoint`): 1,000 pages with their headers. The transaction that goes
/// beyond it comes on top.
const WAL_BYTES: u64 = 1000 * (4096 + 24);

/// What is written at once where the file system cannot allocate.
const WRITTEN: usize = 64 * 1024;

/// The reserve of one spool.
pub(super) struct Reserve {
    spool: PathBuf,
    path: PathBuf,
    /// How many are to be kept.
    bytes: AtomicU64,
    missing: AtomicBool,
}

impl Reserve {
    /// That of the spool in this file, as it was left. Where none was left, none is kept.
    pub fn of(spool: &Path) -> Self {
        let path = beside(spool, SUFFIX);
        let bytes = held_by(&path);
        Self {
            spool: spool.to_owned(),
            path,
            bytes: AtomicU64::new(bytes),
            missing: AtomicBool::new(false),
        }
    }

    /// How many bytes are kept now.
    pub fn bytes(&self) -> u64 {
        match self.missing() {
            Some(_) => 0,
            None => self.bytes.load(Ordering::Acquire),
        }
    }

    /// How many bytes it lacks, where it is missing.
    pub fn missing(&self) -> Option<u64> {
        let missing = self.missing.load(Ordering::Acquire);
        missing.then(|| self.bytes.load(Ordering::Acquire))
    }

    /// While it is missing: to how many bytes the spool's file may grow. Half of what is missing, and beside it stays on the disk what the
    /// WAL still grows by, and a quarter of what is missing for one transaction.
    pub fn file_may_have(&self) -> Option<u64> {
        let missing = self.missing()?;
        let wal = WAL_BYTES.saturating_sub(len(&beside(&self.spool, "-wal")));
        let room = self.free().unwrap_or(0).saturating_sub(wal + missing / 4);
        Some((len(&self.spool) + room).min(missing / 2))
    }

    /// Keeps so many bytes from now on. On an error what is there stays. Where nothing is, and there is no room for one, it is missing.
    pub fn keep(&self, bytes: u64) -> io::Result<()> {
        let there = held_by(&self.path);
        self.bytes.store(bytes, Ordering::Release);
        self.missing.store(false, Ordering::Release);
        let kept = match bytes {
            0 => self.remove(),
            _ if there > bytes => OpenOptions::new()
                .write(true)
                .open(&self.path)
                .and_then(|file| file.set_len(bytes)),
            _ if there == bytes => Ok(()),
            _ if there > 0 => self.lengthen(there, bytes),
            _ => self.remove().and_then(|()| self.make()),
        };
        let lacks_room = there == 0 && kept.as_ref().is_err_and(is_full);
        self.missing.store(lacks_room, Ordering::Release);
        if kept.is_err() && !lacks_room {
            self.bytes.store(there, Ordering::Release);
        }
        kept
    }

    /// One that is there is not taken away to make a longer one: there may be no room even for what it was.
    fn lengthen(&self, there: u64, bytes: u64) -> io::Result<()> {
        self.has_room_for(bytes, there)?;
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        allocate(&mut file, bytes).inspect_err(|_| {
            let _ = file.set_len(there);
        })
    }

    /// Makes one. Only where twice as much is free: one that takes all that there is would be given up at once.
    fn make(&self) -> io::Result<()> {
        let bytes = self.bytes.load(Ordering::Acquire);
        self.has_room_for(bytes, 0)?;
        let made = allocated(&self.path, bytes);
        match &made {
            Ok(()) => self.missing.store(false, Ordering::Release),
            Err(_) => self.remove()?,
        }
        made
    }

    /// Gives it up, where it is there and the disk is full: a file at its own limit (`log.spool_max_bytes`) is no reason. Returns whether
    /// there is more room now.
    pub fn give_up(&self) -> bool {
        let bytes = self.bytes();
        if bytes == 0 || self.free().is_ok_and(|free| free >= bytes) {
            return false;
        }
        self.missing.store(true, Ordering::Release);
        std::fs::remove_file(&self.path).is_ok()
    }

    /// Whether there is room for so many bytes, with those that it has.
    fn has_room_for(&self, bytes: u64, there: u64) -> io::Result<()> {
        let free = self.free()?.saturating_add(there);
        if free >= 2 * bytes {
            return Ok(());
        }
        let why = format!("{free} bytes are free, and it takes {bytes} where twice as many are");
        Err(io::Error::new(ErrorKind::StorageFull, why))
    }

    fn free(&self) -> io::Result<u64> {
        let dir = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let disk = statvfs(dir.unwrap_or(Path::new(".")))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

/// How many bytes of the disk a file holds. A copy of one may have its length and hold none.
fn held_by(path: &Path) -> u64 {
    let file = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
    file.map_or(0, |file| file.len().min(file.blocks() * BLOCK))
}

/// Whether this says that there is no room.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Makes a file of so many bytes that the disk has room for.
fn allocated(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    allocate(&mut file, bytes)
}

fn allocate(file: &mut File, bytes: u64) -> io::Result<()> {
    match fallocate(&*file, FallocateFlags::empty(), 0, bytes) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT)) => return Err(error.into()),
        // Not every file system can.
        Err(_) => write(file, bytes)?,
        Ok(()) => {}
    }
    file.sync_all()
}

fn write(file: &mut File, bytes: u64) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let some = usize::try_from(left).unwrap_or(WRITTEN).min(WRITTEN);
        file.write_all(&[0; WRITTEN][..some])?;
        left -= some as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_private_file_that_takes_its_place_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("chat.db");
        let reserve = Reserve::of(&spool);
        assert_eq!((reserve.bytes(), reserve.missing()), (0, None), "none was left");
        reserve.keep(1 << 20).unwrap();
        let file = || std::fs::metadata(dir.path().join("chat.db.reserve"));
        let made = file().unwrap();
        assert_eq!((made.len(), made.mode() & 0o777), (1 << 20, 0o600));
        assert!(made.blocks() * BLOCK >= 1 << 20, "{} blocks", made.blocks());
        assert_eq!(Reserve::of(&spool).bytes(), 1 << 20, "the next start has it");
        for bytes in [1 << 19, 1 << 21] {
            reserve.keep(bytes).unwrap();
            assert_eq!((held_by(&reserve.path), reserve.bytes()), (bytes, bytes));
        }
        // As a copy of it may be.
        File::create(&reserve.path).unwrap().set_len(1 << 21).unwrap();
        reserve.keep(1 << 21).unwrap();
        assert_eq!(held_by(&reserve.path), 1 << 21);
        assert!(!reserve.give_up(), "the disk is not full");
        reserve.keep(0).unwrap();
        assert!(file().is_err());
    }

    #[test]
    fn a_disk_without_room_for_twice_the_reserve_gets_none() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(&dir.path().join("chat.db"));
        let error = reserve.keep(1 << 60).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert_eq!((reserve.bytes(), reserve.missing()), (0, Some(1 << 60)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_reserve_for_which_there_is_no_room_to_become_longer_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("chat.db");
        let reserve = Reserve::of(&spool);
        reserve.keep(1 << 20).unwrap();
        let error = reserve.keep(1 << 60).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert_eq!((reserve.bytes(), reserve.missing()), (1 << 20, None));
        assert_eq!(held_by(&reserve.path), 1 << 20);
        assert_eq!(Reserve::of(&spool).bytes(), 1 << 20, "the next start has it");
    }

    #[test]
    fn a_reserve_that_cannot_be_made_though_there_is_room_limits_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("chat.db.reserve")).unwrap();
        let reserve = Reserve::of(&dir.path().join("chat.db"));
        reserve.keep(1 << 20).unwrap_err();
        assert_eq!((reserve.bytes(), reserve.missing()), (0, None));
        assert!(!reserve.give_up());
    }

    #[test]
    fn where_the_file_system_cannot_allocate_it_is_written() {
        let mut file = tempfile::tempfile().unwrap();
        write(&mut file, 100_001).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100_001);
    }
}
