//! A disk whose power is cut and that fails: `preload/lib.rs`, put before the C library of the server, keeps what the disk is sure to have.
//! SIGKILL alone takes nothing that was written; this takes what was not synced.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
};

use rand::{Rng, rngs::StdRng};

use crate::support::process::ScratchDir;

/// What a disk writes as a whole, if at all.
const SECTOR: usize = 512;

/// What of the disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    Syncs,
    Writes,
}

impl Failing {
    fn file(self) -> &'static str {
        match self {
            Self::Syncs => "fail-syncs",
            Self::Writes => "fail-writes",
        }
    }
}

/// See the module's text.
pub struct Power {
    spool: PathBuf,
    kept: PathBuf,
}

impl Power {
    /// Why there cannot be one here; `None` when there can.
    pub fn impossible() -> Option<String> {
        library().as_ref().err().cloned()
    }

    /// For the spool in this directory.
    pub fn of(dir: &Arc<ScratchDir>, spool: &Path) -> Self {
        let kept = dir.path().join("sure");
        fs::create_dir(&kept).unwrap();
        let spool = spool.to_owned();
        Self { spool, kept }
    }

    /// Puts it between this server and its disk.
    pub fn under(&self, command: &mut Command) {
        let library = library().as_ref().unwrap();
        command
            .env("LD_PRELOAD", library)
            .env("DISK_OF", &self.spool)
            .env("DISK_KEPT", &self.kept);
    }

    /// From now on these fail.
    pub fn fail(&self, what: Failing) {
        fs::write(self.kept.join(what.file()), "").unwrap();
    }

    /// They do no more.
    pub fn mend(&self, what: Failing) {
        fs::remove_file(self.kept.join(what.file())).unwrap();
    }

    /// How often one has.
    pub fn failed(&self) -> u64 {
        fs::metadata(self.kept.join("failed")).map_or(0, |file| file.len())
    }

    /// Cuts the power of a server that was just killed. Of what was written and not synced, there survives in each file nothing, all of
    /// it, or some sectors.
    pub fn cut(&self, rng: &mut StdRng) {
        let place = self.spool.parent().unwrap();
        for name in self.names() {
            let (live, copy) = (place.join(&name), self.kept.join(&name));
            if name.as_encoded_bytes().ends_with(b"-shm") {
                fs::remove_file(live).unwrap();
                continue;
            }
            match survives(fs::read(&live).ok(), fs::read(&copy).ok(), rng) {
                Some(bytes) => {
                    fs::write(&live, &bytes).unwrap();
                    fs::write(&copy, &bytes).unwrap();
                }
                None => {
                    let _ = fs::remove_file(&live);
                }
            }
        }
    }

    /// The files that are there, or that the disk has.
    fn names(&self) -> BTreeSet<OsString> {
        let prefix = self.spool.file_name().unwrap().as_encoded_bytes();
        [self.spool.parent().unwrap(), &self.kept]
            .into_iter()
            .flat_map(|dir| fs::read_dir(dir).unwrap())
            .map(|file| file.unwrap().file_name())
            .filter(|name| name.as_encoded_bytes().starts_with(prefix))
            .collect()
    }
}

/// What is left of a file that was written, and of which the disk had something for sure.
fn survives(written: Option<Vec<u8>>, sure: Option<Vec<u8>>, rng: &mut StdRng) -> Option<Vec<u8>> {
    match rng.random_range(0..3) {
        0 => sure,
        1 => written.or(sure),
        _ => {
            let (written, sure) = (written.unwrap_or_default(), sure.unwrap_or_default());
            let length = if rng.random() { written.len() } else { sure.len() };
            let mut bytes = vec![0; length];
            for (n, sector) in bytes.chunks_mut(SECTOR).enumerate() {
                let from = if rng.random() { &written } else { &sure };
                let there = from.get(n * SECTOR..).unwrap_or_default();
                let count = there.len().min(sector.len());
                sector[..count].copy_from_slice(&there[..count]);
            }
            Some(bytes)
        }
    }
}

/// The library, built once; or why it cannot be.
fn library() -> &'static Result<PathBuf, String> {
    static LIBRARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err("the library that cuts the power is for Linux on x86-64".into());
        }
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-{}.so", std::process::id()));
        let done = Command::new(rustc)
            .args([
                "--edition",
                "2024",
                "--crate-type",
                "cdylib",
                "-O",
                "-C",
                "panic=abort",
                "-o",
            ])
            .arg(&built)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/preload/lib.rs"))
            .output()
            .map_err(|error| format!("no rustc to build the library that cuts the power: {error}"))?;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        // One for all runs, in whose place the next one puts its own.
        let library = built.with_file_name("disk.so");
        fs::rename(built, &library).unwrap();
        Ok(library)
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn of_what_was_not_synced_each_sector_survives_or_does_not() {
        let (written, sure) = (vec![b'w'; 4 * SECTOR], vec![b's'; 2 * SECTOR]);
        let mut seen = BTreeSet::new();
        for seed in 0..1000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let left = survives(Some(written.clone()), Some(sure.clone()), &mut rng).unwrap();
            let sectors = left.chunks(SECTOR).map(|sector| {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
                sector[0]
            });
            seen.insert(sectors.collect::<Vec<_>>());
        }
        // Both lengths; written or sure in the first two sectors, written or nothing in the others.
        assert_eq!(seen.len(), 4 + 16);
        for seed in 0..100 {
            let mut rng = StdRng::seed_from_u64(seed);
            assert_eq!(
                survives(Some(sure.clone()), Some(sure.clone()), &mut rng).unwrap(),
                sure
            );
        }
    }
}
