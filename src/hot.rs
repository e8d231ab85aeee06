//! What benches/hot.rs measures and cannot reach otherwise: the pieces that every message goes through. Nobody else calls it.

use std::{sync::Arc, time::Duration};

use chatting_actors::{outcome::Accepted, types::Event};

use crate::{http::v1, store::mongo};

/// The text of a v1 message's body; `None` where it is no message.
pub fn parse(body: &[u8], max_chars: usize) -> Option<String> {
    v1::parse(body, max_chars).ok().map(|text| text.as_str().to_owned())
}

/// The answer to an accepted message.
pub fn answer(accepted: &Accepted) -> String {
    v1::created(accepted)
}

/// The command that inserts these events into MongoDB, as BSON.
pub fn insert_command(events: &[Arc<Event>]) -> Vec<u8> {
    mongo::insert_command("chatting_log", events, Duration::from_secs(10)).into_bytes()
}
