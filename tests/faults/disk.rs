//! A small disk to fill: a tmpfs in a mount namespace of its own, which ends with the process that holds it. So nothing
//! stays mounted, however a round ends.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use crate::support::process::{Process, ScratchDir};

const BALLAST: &str = "ballast";

/// Where the file system is mounted, in its namespace.
pub struct Disk {
    holder: Process,
    inside: PathBuf,
    dir: Arc<ScratchDir>,
}

impl Disk {
    /// Why there cannot be one here; `None` when there can.
    pub fn impossible() -> Option<String> {
        let mut attempt = namespace();
        attempt
            .args(["mount", "-t", "tmpfs", "tmpfs"])
            .arg(std::env::temp_dir());
        match attempt.stdin(Stdio::null()).output() {
            Ok(done) if done.status.success() => None,
            Ok(done) => Some(format!(
                "no right to mount: {}",
                String::from_utf8_lossy(&done.stderr).trim()
            )),
            Err(error) => Some(format!("no unshare: {error}")),
        }
    }

    /// A disk of so many bytes.
    pub async fn mount(dir: &Arc<ScratchDir>, bytes: u64) -> Self {
        let inside = dir.path().join("disk");
        fs::create_dir(&inside).unwrap();
        let script = r#"mount -t tmpfs -o "size=$1" tmpfs "$2" && echo mounted && exec sleep infinity"#;
        let mut command = namespace();
        command
            .args(["sh", "-c", script, "sh", &bytes.to_string()])
            .arg(&inside);
        let holder = Process::start(dir, &mut command);
        holder.line("mounted").await;
        let dir = Arc::clone(dir);
        Self { holder, inside, dir }
    }

    /// The mount point, for a process that [`Self::command`] starts.
    pub fn inside(&self) -> &Path {
        &self.inside
    }

    /// The same from here.
    pub fn outside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        root.join(self.inside.strip_prefix("/").unwrap())
    }

    /// A command that will find the disk at [`Self::inside`]. Its process is the program itself.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--mount")
            .arg("--root") // the holder's, which is another than the namespace's where all of this runs in a chroot
            .arg("--target")
            .arg(self.holder.pid().to_string());
        command.arg("--").arg(program);
        command
    }

    /// Leaves not a byte.
    pub fn fill(&self) {
        let mut ballast = File::create(self.outside().join(BALLAST)).unwrap();
        for size in [1 << 20, 64 << 10, 4 << 10, 1] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// There is room again.
    pub fn relieve(&self) {
        fs::remove_file(self.outside().join(BALLAST)).unwrap();
    }
}

/// What was on it is kept beside it, for whoever looks into a round that failed.
impl Drop for Disk {
    fn drop(&mut self) {
        let kept = self.dir.path().join("disk-kept");
        let _ = fs::create_dir(&kept);
        for file in fs::read_dir(self.outside()).into_iter().flatten().flatten() {
            if file.file_name() != BALLAST {
                let _ = fs::copy(file.path(), kept.join(file.file_name()));
            }
        }
    }
}

fn namespace() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--"]);
    command
}
