//! A chat server for live broadcasts: HTTP in, one WebSocket out a presenter, a log that loses nothing.
//!
//! [`app::App`] is the whole server; [`settings`] is what operators turn; the actors live in `chatting_actors`.
//! docs/ARCHITECTURE.md has the map and walks one message through.

/// The version, and the commit it was built from where that is known.
pub const VERSION: &str = env!("CHATTING_SERVER_VERSION");

pub mod app;
pub mod auth;
pub mod cli;
mod descriptors;
pub mod error;
pub mod export;
mod files;
#[cfg(test)]
mod fuzz;
pub mod hot;
pub mod http;
pub mod legacy;
pub mod limits;
mod listen;
pub mod load;
pub mod retention;
pub mod room;
pub mod settings;
mod shutdown;
pub mod startup;
pub mod store;
pub mod telemetry;
