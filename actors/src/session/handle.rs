//! What the registry holds of a session, and the messages that it sends through it.

use std::{sync::Weak, time::Duration};

use actix::prelude::*;

use super::actor::PresenterSession;
use crate::{
    registry::{Delivery, End, Subscriber, Welcome},
    seams::Socket,
};

/// Events of the room.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Deliver(pub Delivery);

/// The registry wants the session closed.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Finish(pub End);

/// The session may go on from here.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Greet(pub Welcome);

/// The server will stop; the client is to connect again after so long.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Reconnect(pub Duration);

/// The planned failure point, for tests of supervision.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Fail;

/// See the module's text.
pub struct SessionHandle {
    pub(super) actor: Addr<PresenterSession>,
    pub(super) socket: Weak<dyn Socket>,
}

impl SessionHandle {
    /// Credit is at most the mailbox, so a full one means that the session is beyond help; a closed one that it is gone. Either
    /// way the room knows how far the socket got.
    fn tell<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        PresenterSession: Handler<M>,
    {
        if self.actor.try_send(message).is_err() {
            self.shut();
        }
    }
}

impl Subscriber for SessionHandle {
    fn deliver(&self, delivery: Delivery) {
        self.tell(Deliver(delivery));
    }

    fn welcome(&self, welcome: Welcome) {
        self.tell(Greet(welcome));
    }

    fn reconnect(&self, after: Duration) {
        self.tell(Reconnect(after));
    }

    fn close(&self, end: End) {
        self.tell(Finish(end));
    }

    fn panic_now(&self) {
        self.tell(Fail);
    }

    fn shut(&self) {
        if let Some(socket) = self.socket.upgrade() {
            socket.shut();
        }
    }
}
