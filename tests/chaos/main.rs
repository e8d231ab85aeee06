//! The chaos run: presenters of dialect v1 on links that break every few seconds, under load, with a restart in the middle.
//!
//! Each presenter reaches the real server through a TCP link of its own, which every 1 to 5 s is cut, left half-open, stalled
//! or slowed. Senders post by HTTP at a steady rate. In the middle the server ends, by SIGTERM in one test and by SIGKILL in
//! the other, and starts again on the same port and the same spool. At the end three accounts must be one and the same: what
//! the senders were answered 201 for, what each presenter has, and what the log has.
//!
//! The short form takes some 15 s. `CHAOS_ROOMS`, `CHAOS_RATE` (messages a second), `CHAOS_SECONDS`, `CHAOS_RING`
//! (`room.ring_events`) and `CHAOS_SEED` make it longer; `scripts/chaos` sets them. The seed repeats the schedule of the faults
//! and the messages; what the machine does meanwhile is its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "the seed and the table are for people")]

mod link;
mod plan;
mod presenter;
mod run;
mod sender;
mod server;
#[allow(dead_code, reason = "a box of tools: not each is in use here")]
#[path = "../it/support/mod.rs"]
mod support;
mod verdict;

use crate::{
    plan::{Ending, Plan},
    support::process::ScratchDir,
};

#[actix_web::test]
async fn a_presenter_on_a_bad_link_has_every_message_once_and_in_order_across_an_orderly_restart() {
    chaos(Ending::Stopped).await;
}

#[actix_web::test]
async fn a_presenter_on_a_bad_link_has_every_message_once_and_in_order_across_a_kill() {
    chaos(Ending::Killed).await;
}

async fn chaos(ending: Ending) {
    let plan = Plan::from_environment(ending);
    println!("{plan}");
    let dir = ScratchDir::new("chaos");
    let report = run::run(&plan, &dir).await;
    println!("{report}");
    if report.violations.is_empty() {
        return;
    }
    let kept = dir.path().display().to_string();
    // Leaked, so that the directory stays.
    std::mem::forget(dir);
    panic!(
        "{} violations:\n  {}\n  repeat with: {plan}\n  kept: {kept}",
        report.violations.len(),
        report.told()
    );
}
