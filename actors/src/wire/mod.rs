//! What goes over the wire, as bytes: no sockets, no actors.

pub mod legacy;
pub mod v1;
