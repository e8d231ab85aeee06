//! The `chatting-server` command.

use std::process::ExitCode;

/// A message is allocated on one thread and freed on another, many times a millisecond, which this does better than the system's.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    chatting_server::cli::run()
}
