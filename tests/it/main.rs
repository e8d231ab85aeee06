//! Promises of the server, a file a topic, each test named as the sentence it holds. Faults are real: processes are killed,
//! links are cut. Needs a mongod: see `support::mongod`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod attacks;
mod broadcasts;
mod documents;
mod export;
mod figures;
mod flood;
mod history;
mod hold;
mod idempotency;
mod import;
mod jwks;
mod legacy_http;
mod legacy_ws;
mod limits;
mod liveness;
mod load;
mod load_tool;
mod log_archive;
mod log_store;
mod long_acts;
mod moderation;
mod old_faults;
mod openapi;
mod operations;
mod other_log;
mod plans;
mod presenter;
mod protocol;
mod queues;
mod reading;
mod recovery;
mod refused_acts;
mod refused_broadcasts;
mod resume;
mod retention;
mod rotation;
mod salvage;
mod slow;
mod spool_commands;
mod starts;
mod stopping;
mod supervision;
#[allow(dead_code, reason = "a box of tools: not each is in use at all times")]
mod support;
mod support_works;
mod takeover;
mod token_keys;
mod transport;
mod tuning;
mod turns;
mod v1;
