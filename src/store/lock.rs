//! One process a spool (rule 7): an exclusive lock beside the file, which names its holder.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::Read,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::files;

/// Held for as long as the spool is open; the system lets it go when the process dies, however it dies.
#[derive(Debug)]
pub struct SpoolLock {
    server: String,
    known: bool,
    file: File,
    beside_link: Option<File>,
}

/// Why the spool is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("the spool {path} is in use by {holder}; one server a spool (log.path)")]
    Held {
        /// The spool.
        path: PathBuf,
        /// What the other process wrote of itself.
        holder: String,
    },
    /// It cannot be where the settings have it, whoever has it.
    #[error("log.path {path}: {why}")]
    Place {
        /// The spool.
        path: PathBuf,
        /// What of it cannot be used, and why not.
        why: String,
    },
}

impl SpoolLock {
    /// Takes the lock of a spool, or says who has it. `named` is what the settings call it: where that is a link, earlier versions have
    /// their lock beside the link, with the server's name.
    pub fn take(spool: &Path, named: &Path) -> Result<Self, LockError> {
        let place = |why| LockError::Place {
            path: spool.to_owned(),
            why,
        };
        directory_of(spool).map_err(place)?;
        let path = lock_of(spool);
        let unwritten = |error| place(format!("{} cannot be written: {error}", path.display()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(unwritten)?;
        let (file, before) = held(file, spool)?;
        let beside_link = beside(&file, named)?;
        let known = server_in(&before).or_else(|| server_in(&beside_link.as_ref()?.1));
        let server = known.map_or_else(|| format!("{:016x}", rand::random::<u64>()), str::to_owned);
        let known = known.is_some();
        // Another file may be where the spool is to be. By a name in its lock it would be taken for ours at the next start.
        write(&file, known.then_some(&*server), &before).map_err(unwritten)?;
        Ok(Self {
            known,
            server,
            file,
            beside_link: beside_link.map(|(file, _)| file),
        })
    }

    /// Keeps the name of the server for the starts to come: the file has turned out to be a spool of ours, or is one now.
    pub fn keep(&self, spool: &Path) -> Result<(), LockError> {
        if self.known {
            return Ok(());
        }
        write(&self.file, Some(&self.server), "").map_err(|error| LockError::Place {
            path: spool.to_owned(),
            why: format!("{} cannot be written: {error}", lock_of(spool).display()),
        })
    }

    /// Whether this spool was ours before.
    pub fn known(&self) -> bool {
        self.known
    }

    /// The name of the server whose spool this is: the same at every start, also when the spool itself is a new one.
    pub fn server(&self) -> &str {
        &self.server
    }
}

impl Drop for SpoolLock {
    /// Closing the file is not enough: a child process that is just being started has a copy of it, which holds the lock, too.
    fn drop(&mut self) {
        for file in [Some(&self.file), self.beside_link.as_ref()].into_iter().flatten() {
            let _ = file.unlock();
        }
    }
}

/// The lock of earlier versions beside a link, unless there is none or it leads to our own.
fn beside(own: &File, named: &Path) -> Result<Option<(File, String)>, LockError> {
    let path = lock_of(named);
    let unread = |error: std::io::Error| LockError::Place {
        path: named.to_owned(),
        why: format!("{} cannot be read: {error}", path.display()),
    };
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unread)?,
    };
    let (ours, other) = (own.metadata().map_err(unread)?, file.metadata().map_err(unread)?);
    match (ours.dev(), ours.ino()) == (other.dev(), other.ino()) {
        true => Ok(None),
        false => held(file, named).map(Some),
    }
}

/// The file of a spool's lock, held by us, and what was written in it.
fn held(mut file: File, spool: &Path) -> Result<(File, String), LockError> {
    let path = spool.to_owned();
    match try_exclusive(&file) {
        Ok(()) => {
            let mut before = String::new();
            let _ = file.read_to_string(&mut before);
            Ok((file, before))
        }
        Err(TryLockError::WouldBlock) => Err(LockError::Held {
            path,
            holder: told_by(&mut file),
        }),
        // Some network file systems have no locks.
        Err(TryLockError::Error(error)) => Err(LockError::Place {
            why: format!("{} cannot be locked: {error}", lock_of(spool).display()),
            path,
        }),
    }
}

/// The server's name in a lock's text.
fn server_in(text: &str) -> Option<&str> {
    let mut names = text.lines().filter_map(|line| line.strip_prefix("server "));
    names.find(|name| !name.is_empty())
}

/// Writes who we are. The name must outlive a machine that goes down: a server by another name would be refused for as long as the
/// last heartbeat of this one is fresh (rule 7). So it is synced when it is new, and afterwards written over by as many bytes as are there.
fn write(file: &File, server: Option<&str>, before: &str) -> std::io::Result<()> {
    let mut text = format!("process {:<10}\n", std::process::id());
    if let Some(server) = server {
        text += &format!("server {server}\n");
    }
    file.write_all_at(text.as_bytes(), 0)?;
    if text.len() != before.len() {
        file.set_len(text.len() as u64)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Who has a spool now, for those who only want to know; `None` when nobody has it, or none can tell.
pub(super) fn holder(spool: &Path) -> Option<String> {
    let mut file = File::open(lock_of(spool)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(told_by(&mut file)),
        // Let go when the file is closed.
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// Makes the spool's directory where there is none. The error says what of the path is in the way.
fn directory_of(spool: &Path) -> Result<(), String> {
    if let Some(parent) = spool.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let parts = parent.ancestors().filter(|part| !part.as_os_str().is_empty());
        let new: Vec<_> = parts.take_while(|part| !part.exists()).collect();
        std::fs::create_dir_all(parent).map_err(|error| match parent.ancestors().find(|part| part.is_file()) {
            Some(file) => format!("{} is a file, and a directory is wanted", file.display()),
            None => format!("the directory {} cannot be made: {error}", parent.display()),
        })?;
        // SQLite syncs the directory of its files, and nobody those that the new ones are named in.
        for directory in new.into_iter().map(files::directory_of) {
            if let Err(error) = files::sync_directory(directory) {
                log::warn!("spool: {} cannot be synced: {error}", directory.display());
            }
        }
    }
    match spool.is_dir() {
        true => Err("it is a directory, and the name of a file is wanted".into()),
        false => Ok(()),
    }
}

/// Links that are followed, as by the system.
const LINKS_MAX: usize = 40;

/// The file itself where the path is a symbolic link, also one to a file that is still to be made. SQLite keeps the WAL beside the file,
/// and so goes everything else: by the names of links one file would have as many locks as it has names.
pub(super) fn file_of(spool: &Path) -> PathBuf {
    let mut file = spool.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(target) = std::fs::read_link(&file) else {
            break;
        };
        file = file.parent().map_or(target.clone(), |beside| beside.join(&target));
    }
    file
}

fn lock_of(spool: &Path) -> PathBuf {
    let mut path = spool.as_os_str().to_owned();
    path.push(".lock");
    PathBuf::from(path)
}

fn told_by(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.read_to_string(&mut text);
    match text.lines().next().unwrap_or_default() {
        "" => "another process".to_owned(),
        known => known.trim_end().to_owned(),
    }
}

/// How long whoever asks for the holder may keep its lock: it may be a process that the machine has no time for.
const ASKING_PATIENCE: Duration = Duration::from_secs(5);

/// Takes the lock for ourselves. Someone who asks for the holder has a shared lock for a moment, which is no reason to refuse.
fn try_exclusive(file: &File) -> Result<(), TryLockError> {
    let until = Instant::now() + ASKING_PATIENCE;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < until && file.try_lock_shared().is_ok() => {
                file.unlock().map_err(TryLockError::Error)?;
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_07_a_second_taker_is_told_who_has_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("chat.db");
        let first = SpoolLock::take(&spool, &spool).unwrap();
        let refused = SpoolLock::take(&spool, &spool).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        drop(first);
        SpoolLock::take(&spool, &spool).unwrap();
    }

    #[test]
    fn rule_07_what_is_written_at_a_start_leaves_the_name_of_the_server_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("chat.db");
        // As an earlier version wrote it.
        std::fs::write(lock_of(&spool), "process 7\nserver 0123456789abcdef\n").unwrap();
        let read = || std::fs::read_to_string(lock_of(&spool)).unwrap();
        let lock = SpoolLock::take(&spool, &spool).unwrap();
        assert!(lock.known() && lock.server() == "0123456789abcdef");
        drop(lock);
        let (first, name) = (read(), "server 0123456789abcdef\n");
        assert!(first.ends_with(name), "{first}");
        // Another process's number is longer or shorter, and nothing moves.
        let (head, tail) = first.split_at(first.find('\n').unwrap());
        let other = format!("{:<width$}{tail}", "process 4194304", width = head.len());
        std::fs::write(lock_of(&spool), &other).unwrap();
        drop(SpoolLock::take(&spool, &spool).unwrap());
        assert_eq!(read(), first);
        assert_eq!(other.find(name), first.find(name));
    }

    #[test]
    fn rule_07_a_spool_behind_a_link_goes_on_under_the_name_beside_the_link_and_is_not_taken_from_who_holds_that() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, link) = (dir.path().join("big.db"), dir.path().join("chat.db"));
        // As an earlier version does.
        std::fs::write(lock_of(&link), "process 7\nserver 0123456789abcdef\n").unwrap();
        let earlier = File::open(lock_of(&link)).unwrap();
        earlier.try_lock().unwrap();
        let refused = SpoolLock::take(&spool, &link).unwrap_err().to_string();
        assert!(refused.contains("in use by process 7"), "{refused}");
        drop(earlier);
        let lock = SpoolLock::take(&spool, &link).unwrap();
        assert!(lock.known() && lock.server() == "0123456789abcdef");
        let earlier = File::open(lock_of(&link)).unwrap();
        assert!(earlier.try_lock().is_err(), "an earlier version is kept out, too");
        drop(lock);
        // From now on it has its own.
        std::fs::remove_file(lock_of(&link)).unwrap();
        assert_eq!(SpoolLock::take(&spool, &link).unwrap().server(), "0123456789abcdef");
        assert!(!lock_of(&link).exists());
        // Where all of it was moved, and links are in its place.
        std::os::unix::fs::symlink(lock_of(&spool), lock_of(&link)).unwrap();
        assert_eq!(SpoolLock::take(&spool, &link).unwrap().server(), "0123456789abcdef");
    }

    #[test]
    fn a_lock_says_nothing_of_a_server_before_the_file_turned_out_to_be_its_spool() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("chat.db");
        for _ in 0..2 {
            assert!(!SpoolLock::take(&spool, &spool).unwrap().known());
        }
        let lock = SpoolLock::take(&spool, &spool).unwrap();
        lock.keep(&spool).unwrap();
        let name = lock.server().to_owned();
        drop(lock);
        let lock = SpoolLock::take(&spool, &spool).unwrap();
        assert!(lock.known() && lock.server() == name);
    }

    #[test]
    fn a_spool_is_free_when_its_lock_is_dropped_whoever_has_a_copy_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("chat.db");
        let lock = SpoolLock::take(&spool, &spool).unwrap();
        // As a child has it between fork and exec.
        let copy = lock.file.try_clone().unwrap();
        SpoolLock::take(&spool, &spool).unwrap_err();
        drop(lock);
        SpoolLock::take(&spool, &spool).unwrap();
        drop(copy);
    }

    #[test]
    fn asking_for_the_holder_keeps_nobody_from_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("chat.db");
        assert_eq!(holder(&spool), None);
        let lock = SpoolLock::take(&spool, &spool).unwrap();
        assert_eq!(holder(&spool), Some(format!("process {}", std::process::id())));
        drop(lock);
        assert_eq!(holder(&spool), None);
        std::thread::scope(|threads| {
            threads.spawn(|| (0..4_000).for_each(|_| drop(holder(&spool))));
            for _ in 0..400 {
                SpoolLock::take(&spool, &spool).unwrap();
            }
        });
    }
}
