//! `LogWriter`: what is accepted becomes durable here, and reaches the store from here.
//!
//! Two halves, so that neither waits for the other. The spool's own thread (`spool_thread.rs`) commits everything that
//! came meanwhile in one transaction and answers the registry. The actor, on its own arbiter, takes what was
//! committed to the store in batches, in order, one batch under way, and has the spool's rows freed behind it. A commit
//! begins `log.commit_interval_us` after the one before it began, or when that has ended if it took longer, or as soon as
//! `log.commit_enough` events wait; batches to the store wait at most `log.linger_ms` to fill.
//!
//! Either half may panic: the actor is made anew and reads from the spool what it had in hand; the thread opens the file again,
//! finds there what became of the commit under way, and goes on with what was queued behind it.
//!
//! When full: `actors.writer.mailbox` events (and `mailbox_bytes`) numbered and not yet committed; the registry takes a
//! permit before it numbers and refuses with `overloaded` where there is none. When the store is away the spool
//! grows up to `log.spool_max_bytes`, then commits fail with `log_unavailable`.

mod broadcasts;
mod command;
mod drain;
mod handle;
mod parts;
mod queue;
mod spool_thread;

pub use self::{
    command::SpoolFailure,
    drain::LogWriter,
    handle::{SpoolInfo, WriterHandle, WriterPermit},
    parts::{StoreState, WriterConfig, WriterParts},
    spool_thread::{SpoolEnd, SpoolThread},
};
pub(crate) use self::{
    command::{Appended, SpoolCommand},
    parts::{DrainMsg, Later, Stored},
};
