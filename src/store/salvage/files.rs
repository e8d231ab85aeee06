//! The files of a salvage: what each is called, and what becomes of it.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use chatting_actors::clock::system_ms;

use crate::store::lock::file_of;

/// What the copy of a damaged file is called, and a new file that is not whole yet.
pub(super) const COPY: &str = ".reading";
pub const UNFINISHED: &str = ".anew";

/// What a new file is called that is whole and has not taken its place yet.
pub const WHOLE: &str = ".salvaged";

/// Lets a salvaged file take its place where a start died between setting the damaged one aside and that.
pub fn finish(path: &Path) -> io::Result<()> {
    let whole = beside(path, WHOLE);
    if !whole.exists() || path.exists() {
        return Ok(());
    }
    // The WAL of the damaged one, too, must not be taken for that of this one.
    let aside = files_aside(path)?.pop().unwrap_or_else(|| aside_of(path));
    set_parts_aside(path, &aside)?;
    std::fs::rename(whole, path)
}

/// Removes what a salvage left that was killed, behind [`finish`]: it holds chat, and nobody looks for it.
pub fn clear(path: &Path) {
    for left in [COPY, UNFINISHED, WHOLE] {
        remove(&beside(path, left));
    }
}

/// Removes a file and what SQLite keeps beside it, as far as they are there.
pub fn remove(path: &Path) {
    for part in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(path, part));
    }
}

/// Renames the file and what SQLite keeps beside it to `<path>.damaged-<UTC time>`; returns the new name.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = aside_of(path);
    std::fs::rename(path, &aside)?;
    set_parts_aside(path, &aside)?;
    Ok(aside)
}

fn aside_of(path: &Path) -> PathBuf {
    let time = jiff::Timestamp::from_millisecond(system_ms())
        .map_or_else(|_| String::new(), |time| time.strftime("%Y%m%dT%H%M%S%3fZ").to_string());
    beside(path, &format!(".damaged-{time}"))
}

/// What SQLite kept beside the file goes with it.
fn set_parts_aside(path: &Path, aside: &Path) -> io::Result<()> {
    for part in ["-wal", "-shm"] {
        let from = beside(path, part);
        if from.exists() {
            std::fs::rename(from, beside(aside, part))?;
        }
    }
    Ok(())
}

/// The files that were set aside from a spool at this path, each without what SQLite keeps beside it.
pub fn files_aside(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = &file_of(path);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let prefix = path.file_name().unwrap_or_default().to_string_lossy().into_owned() + ".damaged-";
    let mut files = Vec::new();
    for entry in std::fs::read_dir(parent.unwrap_or(Path::new(".")))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&prefix) && !name.ends_with("-wal") && !name.ends_with("-shm") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What has this name with `suffix` behind it.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// How many bytes a salvage of this file may take on its disk: a copy of it, into which its WAL goes, and a new file.
pub fn room_for(path: &Path) -> u64 {
    2 * bytes(path) + 3 * bytes(&beside(path, "-wal"))
}

/// How many bytes the file has, its WAL among them.
pub fn size_of(path: &Path) -> u64 {
    bytes(path) + bytes(&beside(path, "-wal"))
}

fn bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salvaged_file_that_takes_its_place_late_does_not_get_the_wal_of_the_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let aside = aside_of(&path);
        // As a start leaves it that died after the damaged file itself was renamed.
        for (file, text) in [
            (&aside, "damaged"),
            (&beside(&path, WHOLE), "whole"),
            (&beside(&path, "-wal"), "wal"),
        ] {
            std::fs::write(file, text).unwrap();
        }
        finish(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole");
        assert!(!beside(&path, "-wal").exists());
        assert_eq!(std::fs::read_to_string(beside(&aside, "-wal")).unwrap(), "wal");
    }
}
