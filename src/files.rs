//! Reading small files that operators name: bounded, regular ones only, and away from the threads that serve. And names
//! of files that outlive a machine that goes down.

use std::{
    fs::File,
    io::Read,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::oneshot;

/// The bytes of a file, at most `max`. The error names the file and says what is wrong.
pub fn read_bounded(path: &str, max: usize) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("{path} cannot be read: {error}");
    // A pipe or a device might never end, or never begin.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(format!("{path} cannot be read: it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let most = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > max {
        return Err(format!("{path} is longer than {max} bytes"));
    }
    Ok(bytes)
}

/// Whatever wrote a file may have ended its line, and the value of an environment variable may be a file's content. Only that is left
/// out: a secret may well end in white space.
pub fn without_line_break(bytes: &[u8]) -> &[u8] {
    let Some(line) = bytes.strip_suffix(b"\n") else {
        return bytes;
    };
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The directory that has this name in it.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Has the names in a directory outlive a machine that goes down. Some filesystems never can.
pub fn sync_directory(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

/// What `work` gives, done on a thread of its own: a disk may be slow. Whoever calls bounds how many there are.
pub async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let (done, wait) = oneshot::channel();
    let thread = std::thread::Builder::new().name("files".into()).spawn(move || {
        let _ = done.send(work());
    });
    thread.map_err(|error| format!("no thread to read files: {error}"))?;
    wait.await.unwrap_or_else(|_| Err("reading a file failed".into()))
}

/// What does `work`, unless what was made so before is still there: where a disk hangs, whoever waits gives up and the thread does not, and
/// there is never a second one. The next may begin when this one is gone, whether it was run or not: there may have been no thread for it.
/// The error says of `what` that it is still being read.
pub fn one_at_a_time<T, W: FnOnce() -> Result<T, String> + Send>(
    reading: &Arc<AtomicBool>,
    what: &str,
    work: W,
) -> Result<impl FnOnce() -> Result<T, String> + Send + use<T, W>, String> {
    if reading.swap(true, Ordering::AcqRel) {
        return Err(format!("{what} is still being read"));
    }
    let reading = scopeguard::guard(Arc::clone(reading), |reading| reading.store(false, Ordering::Release));
    Ok(move || {
        let _reading = reading;
        work()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_longer_than_it_may_be_is_not_read_and_one_that_is_just_as_long_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789").unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(read_bounded(path, 10), Ok(b"0123456789".to_vec()));
        assert_eq!(read_bounded(path, 9), Err(format!("{path} is longer than 9 bytes")));
    }

    #[test]
    fn a_file_is_read_by_one_at_a_time_and_by_the_next_though_the_one_before_was_never_run() {
        let reading: Arc<AtomicBool> = Arc::default();
        let is_read = || reading.load(Ordering::Acquire);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let begin = || one_at_a_time(&reading, path, || read_bounded(path, 1_048_576));
        let never_run = begin().unwrap();
        assert!(is_read());
        assert_eq!(begin().err(), Some(format!("{path} is still being read")));
        assert!(is_read(), "whoever is refused ends nothing");
        // As where no thread can be spawned.
        drop(never_run);
        assert!(!is_read());
        for _ in 0..2 {
            assert!(begin().unwrap()().is_ok());
            assert!(!is_read());
        }
    }
}
