//! The fuzz run: malformed requests, tokens, bodies, headers and frames against running servers over real sockets.
//!
//! Two servers, one that reads tokens and one behind a gateway. Many connections send what a generator makes from a seed: good
//! requests with something wrong, pipelined on connections that are kept; broken HTTP; WebSockets that say what no client
//! should. Meanwhile a presenter of each server stays connected and a sender's messages must reach it. No answer may be a 5xx
//! but a documented 503, nothing may panic, no actor may be made anew, and at the end the servers stop in order with a whole
//! spool.
//!
//! The short form takes some ten seconds. `FUZZ_COUNT` (inputs) and `FUZZ_SEED` make it another; `scripts/fuzz` sets them. The
//! parsers themselves are tried in `src/fuzz`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod bystander;
mod connection;
mod inputs;
mod report;
mod server;
#[allow(dead_code, reason = "a box of tools: not each is in use here")]
#[path = "../it/support/mod.rs"]
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

use crate::{inputs::Inputs, report::Report, server::Server, support::process::ScratchDir};

/// Connections at once, over both servers.
const CONNECTIONS: u64 = 32;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
    )
}

#[actix_web::test]
async fn nothing_that_a_client_can_send_makes_the_server_fail() {
    let count = number("FUZZ_COUNT").unwrap_or(10_000);
    let seed = number("FUZZ_SEED").unwrap_or_else(rand::random);
    println!("FUZZ_SEED={seed} FUZZ_COUNT={count}");
    let dirs = [ScratchDir::new("fuzz-token"), ScratchDir::new("fuzz-gateway")];
    let servers = [
        Server::start(&dirs[0], false).await,
        Server::start(&dirs[1], true).await,
    ];
    let before: Vec<u64> = servers.iter().map(Server::resident_kib).collect();
    let over = Arc::new(AtomicBool::new(false));
    let bystanders = servers
        .each_ref()
        .map(|server| actix_web::rt::spawn(bystander::watch(server.address, server.gateway, Arc::clone(&over))));

    let (began, sent) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let senders: Vec<_> = (0..CONNECTIONS)
        .map(|n| {
            let server = &servers[usize::from(n % 2 == 1)];
            let random = StdRng::seed_from_u64(seed ^ n << 48);
            let inputs = Inputs::new(random, server.gateway);
            actix_web::rt::spawn(connection::run(server.address, inputs, Arc::clone(&sent), count))
        })
        .collect();
    let progress = actix_web::rt::spawn({
        let sent = Arc::clone(&sent);
        async move {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                let (sent, seconds) = (sent.load(Ordering::Relaxed), began.elapsed().as_secs_f64());
                println!("{sent:>9} of {count}, {:.0} a second", sent as f64 / seconds);
            }
        }
    });
    let mut report = Report::default();
    for sender in senders {
        report.add(sender.await.unwrap());
    }
    let took = began.elapsed();
    progress.abort();
    over.store(true, Ordering::Release);
    for bystander in bystanders {
        report.bystander(bystander.await.unwrap());
    }
    for (server, before) in servers.into_iter().zip(before) {
        report.server(server.finish(before).await);
    }
    println!(
        "{report}\n{:.1} s, {:.0} inputs a second",
        took.as_secs_f64(),
        report.inputs() as f64 / took.as_secs_f64()
    );
    assert!(report.inputs() >= count, "{} inputs of {count}", report.inputs());
    let violations = report.violations();
    assert!(
        violations.is_empty(),
        "{}\nrepeat with FUZZ_SEED={seed} FUZZ_COUNT={count}",
        violations.join("\n")
    );
}
