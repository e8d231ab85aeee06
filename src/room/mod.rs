//! The room server: over HTTP, or embedded in this server.

pub mod embedded;
pub mod http;

pub use self::{embedded::EmbeddedRooms, http::HttpRooms};
