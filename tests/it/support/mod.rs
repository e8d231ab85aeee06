//! What the tests stand on: real processes, real sockets, a link that can be broken.
//!
//! | module | gives |
//! |---|---|
//! | [`command`] | the real command, run to its end |
//! | [`process`] | a process of ours: signals, exit, output; it never outlives the test run |
//! | [`mongod`] | one MongoDB for all tests, or one of your own to kill and restart |
//! | [`moving`] | a log whose events move from the spool to the store under each read |
//! | [`room_log`] | all that a room has in a log |
//! | [`room_server`] | the stand-in room server as a process, told whom to call live and how to misbehave |
//! | [`proxy`] | a TCP link to cut, stall, delay and restore |
//! | [`http`] | an HTTP client that shows every byte of an answer's head |
//! | [`ws`] | a WebSocket client that can also do everything a client must not |
//! | [`crowd`] | senders and presenters that go on whatever happens, and what became of each message |
//! | [`tokens`] | tokens that are wrong in one way each |
//! | [`keys`] | key pairs, as PEM, as JWK, and tokens signed with them |
//! | [`jwks`] | a server that publishes keys, or misbehaves |
//!
//! Whatever should happen is waited for by [`within`]: with a deadline far above what it takes, and without sleeping.

pub mod app;
pub mod command;
pub mod crowd;
pub mod documents;
pub mod http;
pub mod jwks;
pub mod keys;
pub mod mongod;
pub mod moving;
pub mod presenter;
pub mod process;
pub mod proxy;
pub mod room_log;
pub mod room_server;
pub mod tokens;
pub mod ws;

use std::fmt::Display;
use std::time::Duration;

/// How long a test waits for what should happen at once. Long, so that a busy machine fails no test.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The outcome of `future`; panics naming `what` when it is not there within [`PATIENCE`].
pub async fn within<T>(what: impl Display, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

/// Asks again every few milliseconds until `probe` gives something; panics naming `what` after [`PATIENCE`].
/// For what gives no event to wait for: a file, a metric, another process's state.
pub async fn eventually<T>(what: impl Display, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}
