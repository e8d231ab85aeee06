//! What the registry holds of a session, and the messages that it sends through it.

use std::{sync::Weak, time::Duration};

use crate::{
    mailbox::Mailbox,
    registry::{Batch, End, Subscriber, Welcome},
    seams::Socket,
};

/// What a session is told.
pub(super) enum Told {
    /// Events of the room.
    Deliver(Batch),
    /// The registry wants the session closed.
    Finish(End),
    /// The session may go on from here.
    Greet(Welcome),
    /// The server will stop; the client is to connect again after so long.
    Reconnect(Duration),
    /// The planned failure point, for tests of supervision.
    Fail,
}

/// A session, as its room knows it ([`Subscriber`]): tells it without waiting, and shuts the socket of one that takes
/// nothing any more. A mailbox rather than the actor's address: all that came since is one turn and one write.
pub(super) struct SessionHandle {
    pub(super) mailbox: Mailbox<Told>,
    /// `actors.session.mailbox`
    pub(super) most: usize,
    pub(super) socket: Weak<dyn Socket>,
}

impl SessionHandle {
    /// Credit is at most the mailbox, so a full one means that the session is beyond help. The room knows how far the socket got.
    fn tell(&self, told: Told) {
        if !self.mailbox.push_below(self.most, told) {
            self.shut();
        }
    }
}

impl Subscriber for SessionHandle {
    fn deliver(&self, batch: Batch) {
        self.tell(Told::Deliver(batch));
    }

    fn welcome(&self, welcome: Welcome) {
        self.tell(Told::Greet(welcome));
    }

    fn reconnect(&self, after: Duration) {
        self.tell(Told::Reconnect(after));
    }

    fn close(&self, end: End) {
        self.tell(Told::Finish(end));
    }

    fn panic_now(&self) {
        self.tell(Told::Fail);
    }

    fn shut(&self) {
        if let Some(socket) = self.socket.upgrade() {
            socket.shut();
        }
    }
}
