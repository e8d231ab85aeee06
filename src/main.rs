//! The `chatting-server` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    chatting_server::cli::run()
}
