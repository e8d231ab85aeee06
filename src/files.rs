//! Reading small files that operators name: bounded, regular ones only, and away from the threads that serve.

use std::{fs::File, io::Read};

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
