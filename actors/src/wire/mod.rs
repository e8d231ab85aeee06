//! What goes over the wire, as bytes: no sockets, no actors.

pub mod legacy;
pub mod v1;

use serde::{Deserialize, de::Error};

/// Reads a JSON object. What serde derives takes an array of the fields' values, too, which nobody agreed on.
///
/// # Errors
/// What is wrong with it, in English.
pub fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> serde_json::Result<T> {
    no_array(json)?;
    // serde_json does not look at the bytes of what is ignored.
    let text = str::from_utf8(json).map_err(serde_json::Error::custom)?;
    serde_json::from_str(text)
}

fn no_array(json: &[u8]) -> serde_json::Result<()> {
    match json.trim_ascii_start().starts_with(b"[") {
        true => Err(serde_json::Error::custom("it is an array, and an object is wanted")),
        false => Ok(()),
    }
}
