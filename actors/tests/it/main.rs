//! The actors among themselves: a scripted spool, store and room server, and sessions without sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod acts;
mod adopted;
mod batches;
mod keys;
mod liveness;
mod model;
mod numbering;
mod peer;
mod readings;
mod records;
mod resume;
mod script;
mod sessions;
mod stage;
mod supervision;
mod unknown;
