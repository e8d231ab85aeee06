//! A presenter's session: its protocol, its actor, and where it meets the registry.

pub mod action;
mod actor;
pub mod close;
mod flood;
mod flow;
mod fragments;
mod handle;
mod held_frames;
pub mod legacy;
mod parts;
mod progress;
pub mod v1;

pub use self::{
    actor::PresenterSession,
    close::Close,
    flow::Flow,
    parts::{Dialect, Inbound, Outbound, SessionConfig, SessionParts, Violation},
    progress::Progress,
};
