//! The actors of the chat server and the types they pass: no routes, no database, no HTTP client.
//!
//! One message's way: [`registry::RegistryHandle::submit`] → [`registry::SessionRegistry`] (lease from
//! [`checker::RoomChecker`], admission, seq) → [`writer::LogWriter`] (group commit) → back to the registry: the room's
//! [`ring`], the session's cursor, [`session::PresenterSession`], the socket; and the sender's answer.

pub mod broadcast;
pub mod bucket;
pub mod checker;
pub mod clock;
pub mod gate;
pub mod idempotency;
pub mod mailbox;
pub mod metrics;
pub mod moderation;
pub mod outcome;
pub mod queues;
pub mod registry;
pub mod ring;
pub mod seams;
pub mod seldom;
pub mod session;
pub mod supervise;
pub mod types;
pub mod wire;
pub mod writer;
