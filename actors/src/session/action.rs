//! What a client's frame asks its session to do, whatever the dialect.

use bytestring::ByteString;

use super::close::Close;
use crate::{
    registry::Reading,
    types::{PresenterIdx, Seq},
};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this text.
    Reply(ByteString),
    /// Send this text, then close.
    ReplyAndClose(ByteString, Close),
    /// Become this presenter's session, and read its room like this.
    Attach {
        /// Whose session.
        presenter: PresenterIdx,
        /// From where, in which dialect.
        reading: Reading,
    },
    /// The token was refreshed: its end is to be watched.
    Refreshed,
    /// The token before stays, and with it its end: take the same frame once more then.
    Postponed,
    /// The client has everything up to here.
    Ack {
        /// The last seq that it has.
        seq: Seq,
        /// How many viewers it passed it on to.
        fanned_out: Option<u64>,
    },
    /// Take the same frame again when [`Authenticate::key_arrives`](crate::seams::Authenticate::key_arrives) says so, and
    /// nothing that came after it before.
    AwaitKey,
    /// Close, for this reason in particular (English).
    Close(Close, Option<String>),
}
