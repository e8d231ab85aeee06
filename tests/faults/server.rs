//! The real server as a process that dies and comes back on the same directory.

use std::{
    cell::Cell,
    fs,
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Command, ExitStatus},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    disk::Disk,
    power::Power,
    support::{
        PATIENCE,
        app::KEY,
        eventually, http,
        process::{Process, ScratchDir},
    },
};

/// Between two starts of a server that found its disk full.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

pub struct Server {
    dir: Arc<ScratchDir>,
    disk: Option<Rc<Disk>>,
    power: Option<Rc<Power>>,
    settings: Vec<String>,
    address: Rc<Cell<Option<SocketAddr>>>,
    process: Option<Arc<Process>>,
}

impl Server {
    /// A server that has not been started yet. Its spool is on the disk, when there is one.
    pub fn new(
        dir: &Arc<ScratchDir>,
        (disk, power): (Option<Rc<Disk>>, Option<Rc<Power>>),
        settings: Vec<String>,
    ) -> Self {
        Self {
            dir: Arc::clone(dir),
            disk,
            power,
            settings,
            address: Rc::default(),
            process: None,
        }
    }

    /// Where it listens, now and after every start; `None` while it is down.
    pub fn address(&self) -> Rc<Cell<Option<SocketAddr>>> {
        Rc::clone(&self.address)
    }

    /// The spool's file, for this process; of a server that has stopped.
    pub fn spool(&self) -> PathBuf {
        let here = self.dir.path().join("chat.db");
        if let Some(disk) = &self.disk {
            // SQLite would resolve the path to where nothing is mounted.
            fs::copy(disk.outside().join("chat.db"), &here).unwrap();
        }
        here
    }

    /// Starts it and waits until it listens. On a disk that may be full the start is tried until it succeeds, as a service
    /// manager would; elsewhere a start that fails fails the round.
    pub async fn start(&mut self) {
        let began = Instant::now();
        while let Err((status, output)) = self.launch().await {
            assert!(
                self.disk.is_some() && began.elapsed() < PATIENCE,
                "the server did not start ({status}); it wrote:\n{output}"
            );
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    /// Starts it with a new spool that has heard from MongoDB, so that no room waits for it (rule 3). On a loaded machine MongoDB may not
    /// answer in the time that a start has for it: then the start is made again.
    pub async fn start_warm(&mut self) {
        let began = Instant::now();
        loop {
            self.start().await;
            let output = self.process.as_ref().map(|process| process.output());
            if !output.is_some_and(|output| output.contains("rooms will ask it for their last seq")) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "MongoDB never answers in time");
            self.stop().await;
            for part in ["", "-wal", "-shm"] {
                let _ = fs::remove_file(self.dir.path().join(format!("chat.db{part}")));
            }
        }
    }

    /// Starts it and kills it so much later, whether it listens by then or not.
    pub async fn start_in_vain(&mut self, kill_after: Duration) {
        let (process, _) = self.spawn();
        tokio::time::sleep(kill_after).await;
        self.process = Some(Arc::new(process));
        self.kill().await;
    }

    async fn launch(&mut self) -> Result<(), (ExitStatus, String)> {
        let (process, port_file) = self.spawn();
        let address = eventually("the server to listen", async || {
            let over = process.exit();
            let told = fs::read_to_string(&port_file).ok();
            let address = told.and_then(|text| text.trim().parse::<SocketAddr>().ok());
            address.map(Ok).or(over.map(Err))
        })
        .await;
        let address = address.map_err(|status| (status, process.output()))?;
        self.address.set(Some(address));
        self.process = Some(Arc::new(process));
        Ok(())
    }

    /// The process, and the file in which it will tell its address.
    fn spawn(&self) -> (Process, PathBuf) {
        let port_file = self.dir.path().join("port");
        let _ = fs::remove_file(&port_file);
        let program = env!("CARGO_BIN_EXE_chatting-server");
        let (mut command, place) = match &self.disk {
            Some(disk) => (disk.command(program), disk.inside()),
            None => (Command::new(program), self.dir.path()),
        };
        command.arg("serve").arg("--port-file").arg(&port_file);
        command
            .env("CHAT__AUTH__HS256_SECRET", KEY)
            .env("CHAT__LIMITS__SENDER_PER_SECOND", "0")
            .current_dir(self.dir.path());
        if let Some(power) = &self.power {
            power.under(&mut command);
        }
        let path = format!("log.path={}", place.join("chat.db").display());
        for setting in [path].iter().chain(&self.settings) {
            command.args(["--set", setting]);
        }
        (Process::start(&self.dir, &mut command), port_file)
    }

    /// SIGKILL, while the senders go on: so that it strikes with requests half done.
    pub async fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            let victim = Arc::clone(&process);
            std::thread::spawn(move || victim.signal("KILL"));
            let status = process.exited().await;
            // On a full disk it may not even have started.
            let died = status.signal().is_some() || self.disk.is_some();
            assert!(died, "ended with {status}; it wrote:\n{}", process.output());
        }
        self.address.set(None);
    }

    /// SIGTERM; it must end well, or say that a full disk did not let its spool be closed.
    pub async fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            let told = Arc::clone(&process);
            std::thread::spawn(move || told.signal("TERM"));
            let status = process.exited().await;
            assert!(
                status.success()
                    || (self.disk.is_some()
                        && status.code() == Some(75)
                        && process
                            .output()
                            .contains("stopped with a spool that could not be closed")),
                "stopped with {status}; it wrote:\n{}",
                process.output()
            );
        }
        self.address.set(None);
    }

    /// One number of `/metrics`.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let metrics = http::get(self.address.get()?, "/metrics").await;
        let line = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))?;
        line.parse().ok()
    }

    /// What `/readyz` calls it.
    pub async fn status(&self) -> Option<String> {
        let ready = http::get(self.address.get()?, "/readyz").await;
        Some(ready.json()["status"].as_str()?.to_owned())
    }
}
