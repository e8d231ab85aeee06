//! The real command, run in a directory of its own, with nothing of the settings of whoever runs the tests.

use std::process::Command;

use super::process::{ScratchDir, output};

/// The command with these arguments, not started yet.
pub fn command(dir: &ScratchDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatting-server"));
    command.args(args).current_dir(dir.path()).env_remove("RUST_LOG");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CHAT__")) {
        command.env_remove(name);
    }
    command
}

/// Runs it to its end: exit code, standard output, standard error.
pub fn run(dir: &ScratchDir, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let output = output(dir.path(), command(dir, args).envs(env.iter().copied()));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
