//! A process started by a test. It does not outlive the test run, however that ends: beside each stands a small shell
//! that holds the reading end of a pipe of ours. When this process is gone (even by SIGKILL) the pipe closes, and the shell kills what
//! it watches and removes its directory.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::sync::watch;

use super::{PATIENCE, eventually, within};

/// A directory below cargo's target directory; removed when the last who shares it lets go.
#[derive(Debug)]
pub struct ScratchDir(PathBuf);

impl ScratchDir {
    /// A new, empty directory with `name` in its own.
    pub fn new(name: &str) -> Arc<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Arc::new(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running process. Killed when dropped.
pub struct Process {
    pid: u32,
    exit: watch::Receiver<Option<ExitStatus>>,
    output: PathBuf,
    dir: Arc<ScratchDir>,
}

impl Process {
    /// Starts `command` with no input, and its stdout and stderr in one file of `dir`.
    pub fn start(dir: &Arc<ScratchDir>, command: &mut Command) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let output = dir.path().join(format!("output-{number}.log"));
        let file = File::create(&output).unwrap();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0) // Ctrl-C is for the test run, which then takes this one with it.
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let pid = child.id();
        let mut guard = guard(pid, dir.path());

        let (sender, exit) = watch::channel(None);
        std::thread::spawn(move || {
            let status = child.wait().unwrap();
            let _ = guard.write_all(b"over\n");
            sender.send_replace(Some(status));
        });
        Self {
            pid,
            exit,
            output,
            dir: Arc::clone(dir),
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where it may keep its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sends a signal by name (`TERM`, `INT`, `KILL`, `STOP`, `CONT`). It is delivered when this returns; nothing happens
    /// when the process is over.
    pub fn signal(&self, name: &str) {
        if self.exit.borrow().is_none() {
            signal(self.pid, name);
        }
    }

    /// Waits for its end.
    pub async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        within(
            format_args!("process {} to end; it wrote:\n{}", self.pid, self.output()),
            async { exit.wait_for(Option::is_some).await.unwrap().unwrap() },
        )
        .await
    }

    /// Its end, when it is over.
    pub fn exit(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&self) {
        self.signal("KILL");
        let status = self.exited().await;
        assert!(
            status.signal().is_some(),
            "was over before it was killed: {status}; it wrote:\n{}",
            self.output()
        );
    }

    /// What it wrote so far, stdout and stderr together.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Waits until its output has a line that contains `part`, and gives that line.
    pub async fn line(&self, part: &str) -> String {
        self.live(format_args!("a line with '{part}'"), || {
            let output = self.output();
            let (whole, _) = output.rsplit_once('\n')?;
            whole.lines().find(|line| line.contains(part)).map(str::to_owned)
        })
        .await
    }

    /// Waits for the file in which it tells the address it listens on (`--port-file`).
    pub async fn address(&self, port_file: &Path) -> SocketAddr {
        self.live("its address", || {
            std::fs::read_to_string(port_file).ok()?.trim().parse().ok()
        })
        .await
    }

    /// Like [`eventually`], but fails at once, with the output, when the process is over.
    async fn live<T>(&self, what: impl std::fmt::Display, mut probe: impl FnMut() -> Option<T>) -> T {
        eventually(&what, async || {
            let over = self.exit();
            let found = probe();
            if let (None, Some(status)) = (&found, over) {
                panic!("ended ({status}) before {what}; it wrote:\n{}", self.output());
            }
            found
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        static GONE: Mutex<()> = Mutex::new(());
        self.signal("KILL");
        // Gone before its directory is: a dying mongod would write into it again. The thread above publishes the end
        // within microseconds of the signal; the lock only keeps many teardowns from spinning at once.
        let _one = GONE.lock();
        while self.exit.borrow().is_none() {
            std::thread::yield_now();
        }
    }
}

/// Runs `command` to its end, its stdout and stderr apart; `dir` is removed with it should this process be killed meanwhile.
/// It may work through much, so it has a few times [`PATIENCE`]; then it is killed, and the test fails.
pub fn output(dir: &Path, command: &mut Command) -> Output {
    output_within(4 * PATIENCE, dir, command)
        .unwrap_or_else(|output| panic!("{command:?} did not end; until it was killed it wrote: {output:?}"))
}

/// As [`output`]; the error is what one wrote that was killed.
pub fn output_within(patience: Duration, dir: &Path, command: &mut Command) -> Result<Output, Output> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let pid = child.id();
    let mut guard = guard(pid, dir);
    let (sender, ended) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let output = child.wait_with_output().unwrap();
        let _ = guard.write_all(b"over\n");
        sender.send(output)
    });
    ended.recv_timeout(patience).map_err(|_| {
        signal(pid, "KILL");
        ended.recv().unwrap()
    })
}

/// Sends a signal by name to a child that has not been waited for; `kill` is the shell's, since not every system has the program.
pub fn signal(pid: u32, name: &str) {
    shell(r#"kill -"$1" "$2" 2>/dev/null"#)
        .arg(name)
        .arg(pid.to_string())
        .status()
        .unwrap();
}

/// The shell that outlives us by the moment it needs. One line on its input means that `pid` is over by itself.
fn guard(pid: u32, dir: &Path) -> ChildStdin {
    let mut guard = shell(r#"read -r over || { kill -KILL "$1"; rm -rf "$2"; }"#)
        .arg(pid.to_string())
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let pipe = guard.stdin.take().unwrap();
    std::thread::spawn(move || guard.wait());
    pipe
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]);
    command
}
