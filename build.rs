//! Which commit a release was built from, for `--version` and the start's log.
//!
//! From `CHATTING_SERVER_COMMIT` where that is set, as for an image, whose build has no repository; else from git. Without
//! either the build goes on and says nothing. Debug builds say so: they would be built anew at each commit.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CHATTING_SERVER_COMMIT");
    let version = env!("CARGO_PKG_VERSION");
    let given = env::var("CHATTING_SERVER_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty());
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let built = match given.or_else(|| release.then(commit).flatten()) {
        Some(commit) => format!("{version} (commit {commit})"),
        None if release => version.to_owned(),
        None => format!("{version} (debug build)"),
    };
    println!("cargo:rustc-env=CHATTING_SERVER_VERSION={built}");
}

/// The commit of the repository that this is, not of one that it lies in.
fn commit() -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    if Path::new(&top).canonicalize().ok()? != here.canonicalize().ok()? {
        return None;
    }
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
