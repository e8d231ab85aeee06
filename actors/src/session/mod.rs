//! A presenter's session: its protocol, its actor, and where it meets the registry.

mod actor;
mod flow;
pub mod legacy;

pub use self::{
    actor::{PresenterSession, Progress, SessionConfig, SessionHandle, Violation},
    flow::Flow,
};
