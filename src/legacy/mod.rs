//! The legacy dialect over HTTP, as pure pieces: lenient bodies in, the old server's errors out. The frames are in
//! `chatting_actors::wire::legacy`, the routes in [`crate::http`].

pub mod body;
pub mod error;
