//! The fault matrix: rounds of load, each with faults at random times, drawn from the round's seed.
//!
//! Thirty-two senders post into eight rooms of the real server, whose log is a real MongoDB, or its own file. Meanwhile processes are killed,
//! stopped and frozen, links cut, disks filled, their power cut and their syncs failed, one at a time and two at once. When all is mended, everything that was
//! answered 201 must be in the log exactly once, as it was answered, in the order that its presenter saw. Some rounds cut the power under
//! `log.durability = "os"`, which promises less: there no number of an epoch may be answered or logged twice.
//!
//! `FAULT_SEED=n` begins with that seed, `FAULT_ROUNDS=n` runs so many; without them each kind has its turn, from a random
//! seed. A line a round; a round that fails prints what repeats it and keeps its directory. `scripts/faults` runs many.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "the rounds and the totals are for people")]

mod disk;
mod load;
mod plan;
mod power;
mod presenters;
mod round;
mod server;
mod store;
#[allow(dead_code, reason = "a box of tools: not each is in use here")]
#[path = "../it/support/mod.rs"]
mod support;
mod totals;
mod verdict;

use std::{rc::Rc, time::Instant};

use crate::{
    disk::Disk,
    plan::{Plan, TURNS},
    power::Power,
    round::Fixtures,
    support::process::ScratchDir,
    totals::Totals,
};

/// After so many failed rounds it is known that something is wrong.
const FAILURES_MAX: usize = 5;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[actix_web::test]
async fn whatever_dies_nothing_that_was_accepted_is_lost_or_doubled() {
    // A multiple of the turns, so that the first round is of the first kind.
    let first = number("FAULT_SEED").unwrap_or_else(|| rand::random_range(0..10_000) * TURNS.len() as u64);
    let rounds = number("FAULT_ROUNDS").unwrap_or(TURNS.len() as u64);
    println!("FAULT_SEED={first} FAULT_ROUNDS={rounds}");
    let (no_disk, no_power) = (Disk::impossible(), Power::impossible());
    let mut fixtures = Fixtures::start().await;
    let mut totals = Totals::default();
    let mut failures = Vec::new();
    for seed in first..first + rounds {
        let plan = Plan::new(seed);
        let lacks = [
            no_disk.as_ref().filter(|_| plan.disk.is_some()),
            no_power.as_ref().filter(|_| plan.power),
        ];
        if let Some(why) = lacks.into_iter().flatten().next() {
            println!("seed {seed} {} skipped: {why}", plan.kind);
            totals.skipped(plan.kind);
            continue;
        }
        if let Err(why) = one(&plan, &mut fixtures, &mut totals).await {
            println!("FAILED: {why}");
            failures.push(why);
            fixtures.forget();
        }
        if failures.len() >= FAILURES_MAX {
            break;
        }
    }
    println!("{totals}");
    assert!(totals.rounds() > 0, "not one round was run, so nothing is known");
    assert!(
        failures.is_empty(),
        "{} rounds failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// Runs one round and prints its line; an error says how to repeat it and where its files are.
async fn one(plan: &Plan, fixtures: &mut Fixtures, totals: &mut Totals) -> Result<(), String> {
    let dir = ScratchDir::new("faults");
    let began = Instant::now();
    let stage = Rc::new(fixtures.stage(plan, &dir).await);
    let round = actix_web::rt::spawn(round::run(stage)).await;
    let seconds = began.elapsed().as_secs_f64();
    let line = totals::line(plan, round.as_ref().ok(), seconds);
    println!("{line}");
    let why = match round {
        Ok(report) => {
            totals.add(plan.kind, &report.verdict);
            if report.verdict.violations.is_empty() {
                return Ok(());
            }
            report.verdict.told()
        }
        Err(panic) => {
            totals.failed(plan.kind);
            panic.to_string()
        }
    };
    let kept = dir.path().display().to_string();
    // Leaked, so that the directory stays.
    std::mem::forget(dir);
    let seed = plan.seed;
    Err(format!(
        "{line}\n  {why}\n  repeat with: FAULT_SEED={seed} FAULT_ROUNDS=1 cargo test --test faults -- --nocapture\n  kept: {kept}"
    ))
}
