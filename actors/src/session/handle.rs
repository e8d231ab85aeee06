//! What the registry holds of a session, and the messages that it sends through it.

use std::{sync::Weak, time::Duration};

use crate::{
    mailbox::Mailbox,
    registry::{Delivery, End, Subscriber, Welcome},
    seams::Socket,
};

/// What a session is told.
pub(super) enum Told {
    /// Events of the room.
    Deliver(Delivery),
    /// The registry wants the session closed.
    Finish(End),
    /// The session may go on from here.
    Greet(Welcome),
    /// The server will stop; the client is to connect again after so long.
    Reconnect(Duration),
    /// The planned failure point, for tests of supervision.
    Fail,
}

/// What a session may be told beside events, which alone its credit counts: a welcome, when to reconnect, and to close.
const NO_EVENTS: usize = 3;

/// See the module's text. A mailbox rather than the actor's address: all that came since is one turn and one write.
pub struct SessionHandle {
    pub(super) mailbox: Mailbox<Told>,
    /// `actors.session.mailbox`
    pub(super) most: usize,
    pub(super) socket: Weak<dyn Socket>,
}

impl SessionHandle {
    /// Credit is at most the mailbox, so a full one means that the session is beyond help. The room knows how far the socket got.
    fn tell(&self, told: Told) {
        if !self.mailbox.push_below(self.most + NO_EVENTS, told) {
            self.shut();
        }
    }
}

impl Subscriber for SessionHandle {
    fn deliver(&self, delivery: Delivery) {
        self.tell(Told::Deliver(delivery));
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

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::{
        session::Flow,
        types::{Epoch, PresenterIdx, Seq},
    };

    #[derive(Default)]
    struct Shut(AtomicBool);

    impl Socket for Shut {
        fn shut(&self) {
            self.0.store(true, Ordering::Release);
        }
    }

    #[test]
    fn the_smallest_mailbox_has_a_place_for_all_that_is_told_beside_its_event_and_for_no_second_one() {
        let socket = Arc::new(Shut::default());
        let handle = SessionHandle {
            mailbox: Mailbox::default(),
            most: 1,
            socket: Arc::downgrade(&(Arc::clone(&socket) as Arc<dyn Socket>)),
        };
        let event = || Delivery {
            flow: Arc::new(Flow::default()),
            entries: Vec::new(),
        };
        handle.welcome(Welcome {
            presenter: PresenterIdx::new(12).unwrap(),
            epoch: Epoch("e".into()),
            last_seq: Seq(1),
            resumed_from: Seq(1),
            gap: None,
        });
        handle.deliver(event());
        handle.reconnect(Duration::ZERO);
        handle.close(End::GoingAway);
        assert!(!socket.0.load(Ordering::Acquire));
        handle.deliver(event());
        assert!(socket.0.load(Ordering::Acquire), "its room sent more than its credit");
    }
}
