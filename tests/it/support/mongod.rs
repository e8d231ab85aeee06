//! A real MongoDB. [`Mongod::shared`] is one for the whole test run, on which each test takes a database of its own;
//! [`Mongod::start_own`] is for tests that kill it, stop it, or need it alone.
//!
//! The program is `$MONGOD`, or the one in PATH, or the one that `scripts/get-mongod` has fetched.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::process::{Process, ScratchDir};

/// How long one may take to start: on a slow disk it has much to write before it listens.
const START: Duration = Duration::from_secs(120);

/// mongod's exit code when it cannot listen: another took the port between our looking and its binding.
const CANNOT_LISTEN: i32 = 48;

pub struct Mongod {
    process: Process,
    port: u16,
    dir: Arc<ScratchDir>,
    /// Arguments beyond those that each gets.
    more: Vec<String>,
}

impl Mongod {
    /// The one that all tests share; started by the first that asks, gone with the test run.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Mongod> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// One that is yours: gone when dropped.
    pub async fn start_own() -> Self {
        Self::start_own_with(&[]).await
    }

    /// As [`Self::start_own`], with these arguments too.
    pub async fn start_own_with(more: &[&str]) -> Self {
        let more: Vec<String> = more.iter().map(|&argument| argument.into()).collect();
        off_this_thread(move || Self::start(&more)).await
    }

    /// What goes into `log.mongodb.uri` or the driver.
    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// SIGKILL: what is not in its journal is lost.
    pub async fn kill(&self) {
        self.process.kill().await;
    }

    /// SIGSTOP: it keeps its sockets and answers nothing, until [`Self::thaw`].
    pub fn freeze(&self) {
        self.process.signal("STOP");
    }

    pub fn thaw(&self) {
        self.process.signal("CONT");
    }

    /// Starts it again on the same port and files, after [`Self::kill`] or with one at once when it still runs.
    pub async fn restart(&mut self) {
        if self.process.exit().is_none() {
            self.kill().await;
        }
        let (port, dir, more) = (self.port, Arc::clone(&self.dir), self.more.clone());
        self.process = off_this_thread(move || {
            let deadline = Instant::now() + START;
            loop {
                match launch(&dir, port, &more) {
                    Ok(process) => break process,
                    Err(why) => assert!(Instant::now() < deadline, "mongod does not come back: {why}"),
                }
            }
        })
        .await;
    }

    fn start(more: &[String]) -> Self {
        let dir = ScratchDir::new("mongod");
        for _ in 0..10 {
            let port = free_port();
            if let Ok(process) = launch(&dir, port, more) {
                let more = more.to_vec();
                return Self {
                    process,
                    port,
                    dir,
                    more,
                };
            }
        }
        panic!("mongod found no port in ten tries");
    }
}

/// A database name nobody else uses, this test run or another.
pub fn fresh_database_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("test_{}_{number}", std::process::id())
}

/// Starts mongod and waits until it takes connections; an error when the port was taken.
fn launch(dir: &Arc<ScratchDir>, port: u16, more: &[String]) -> Result<Process, String> {
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let process = Process::start(
        dir,
        Command::new(program())
            .args([
                "--bind_ip",
                "127.0.0.1",
                "--nounixsocket",
                "--wiredTigerCacheSizeGB",
                "0.25",
            ])
            .args(["--setParameter", "diagnosticDataCollectionEnabled=false"])
            .arg("--port")
            .arg(port.to_string())
            .arg("--dbpath")
            .arg(&data)
            .args(more),
    );
    let started = Instant::now();
    // Its own word that it listens, not a connection: on that port another may answer.
    while !process.output().contains("\"Waiting for connections\"") {
        if let Some(status) = process.exit() {
            let output = process.output();
            assert_eq!(
                status.code(),
                Some(CANNOT_LISTEN),
                "mongod ended ({status}); it wrote:\n{output}"
            );
            return Err(format!("port {port} is taken"));
        }
        assert!(
            started.elapsed() < START,
            "mongod does not start; it wrote:\n{}",
            process.output()
        );
        nap();
    }
    Ok(process)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port()
}

fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("MONGOD") {
        return path.into();
    }
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let fetched = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("tools");
    std::env::split_paths(&in_path)
        .chain([fetched])
        .map(|directory| directory.join("mongod"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!(
                "these tests need a real mongod and there is none: run `scripts/get-mongod` once, which fetches one \
                 into target/tools, or set MONGOD to the path of yours. `scripts/test` does all of it."
            )
        })
}

/// Runs what blocks on a thread of its own, so that the test's runtime (proxies, servers) goes on.
async fn off_this_thread<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || sender.send(job()).map_err(drop));
    match receiver.await {
        Ok(value) => value,
        Err(_) => std::panic::resume_unwind(thread.join().unwrap_err()),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "only ever on a thread that has nothing else to do"
)]
fn nap() {
    std::thread::sleep(Duration::from_millis(10));
}
