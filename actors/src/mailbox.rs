//! The mailbox of an actor that must not lose what it was sent, however the actor ends.
//!
//! A [`Mailbox`] outlives its actor: a rebuilt actor reads on where the one before it stopped. The actor adds
//! [`Mailbox::batches`] to its context as a stream and gets everything that has come since in one turn, so that a
//! busy actor is woken once for many messages. It holds no bound of its own: whoever pushes holds a permit of a
//! [`Gate`](crate::gate::Gate), or is bounded by something that does (an answer to a permitted question).
//!
//! Waking an actor on another thread costs more than most of what it is woken for. So whoever has many messages in a turn of
//! its own pushes them with [`Mailbox::push_in_turn`], and wakes once at the turn's end.

use std::{
    cell::RefCell,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_util::{Stream, task::AtomicWaker};

/// The sending side; clones share one queue.
#[derive(Debug)]
pub struct Mailbox<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    queue: Mutex<Queue<T>>,
    waker: AtomicWaker,
}

#[derive(Debug)]
struct Queue<T> {
    messages: Vec<T>,
    /// The reader was woken since it took what there was last.
    woken: bool,
}

impl<T> Shared<T> {
    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the reader, if there is something to read and nobody has woken it.
    fn wake(&self, mut queue: MutexGuard<'_, Queue<T>>) {
        if !queue.messages.is_empty() && !mem::replace(&mut queue.woken, true) {
            drop(queue);
            self.waker.wake();
        }
    }
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue {
                    messages: Vec::new(),
                    woken: false,
                }),
                waker: AtomicWaker::new(),
            }),
        }
    }
}

thread_local! {
    /// The mailboxes whose readers this thread wakes at the end of its turn, by address.
    static OWED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

impl<T> Mailbox<T> {
    /// Queues one message. Wakes the actor only when nobody has since it looked last.
    pub fn push(&self, message: T) {
        let mut queue = self.shared.queue();
        queue.messages.push(message);
        self.shared.wake(queue);
    }

    /// Queues one message unless so many wait already; returns whether it did.
    pub fn push_below(&self, most: usize, message: T) -> bool {
        let mut queue = self.shared.queue();
        let fits = queue.messages.len() < most;
        if fits {
            queue.messages.push(message);
            self.shared.wake(queue);
        }
        fits
    }

    /// Queues one message and wakes nobody: something else will, or [`Mailbox::wake`] does.
    pub fn push_quietly(&self, message: T) {
        self.shared.queue().messages.push(message);
    }

    /// Wakes the actor, if there is something to read and nobody has since it looked last.
    pub fn wake(&self) {
        self.shared.wake(self.shared.queue());
    }

    /// Gives back what was taken and not dealt with: it comes before everything else again.
    pub fn give_back(&self, messages: impl Iterator<Item = T>) {
        {
            let mut queue = self.shared.queue();
            let newer = mem::take(&mut queue.messages);
            queue.messages.extend(messages);
            queue.messages.extend(newer);
            queue.woken = true;
        }
        self.shared.waker.wake();
    }

    /// The receiving side. One actor at a time reads it; a second reader would steal from the first.
    pub fn batches(&self) -> Batches<T> {
        Batches {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T: 'static> Mailbox<T> {
    /// Queues one message, and wakes the actor when everything that is ready on this thread now has had its turn. Only for
    /// tasks on an arbiter or a worker: a task of its own does the waking.
    pub fn push_in_turn(&self, message: T) {
        self.push_quietly(message);
        let address = Arc::as_ptr(&self.shared) as usize;
        let owed = OWED.with_borrow_mut(|owed| {
            let new = !owed.contains(&address);
            if new {
                owed.push(address);
            }
            new
        });
        if owed {
            let mailbox = self.clone();
            actix::spawn(async move {
                OWED.with_borrow_mut(|owed| owed.retain(|one| *one != address));
                mailbox.wake();
            });
        }
    }
}

/// Yields everything that was queued since the last turn, never an empty batch. It never ends.
#[derive(Debug)]
pub struct Batches<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Stream for Batches<T> {
    type Item = Vec<T>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = self.shared.queue();
        queue.woken = false;
        if queue.messages.is_empty() {
            self.shared.waker.register(cx.waker());
            return Poll::Pending;
        }
        let room = queue.messages.len().min(1024);
        Poll::Ready(Some(mem::replace(&mut queue.messages, Vec::with_capacity(room))))
    }
}

/// One turn's messages. What a panic leaves of them goes back into the mailbox, for the next actor.
#[derive(Debug)]
pub struct Turn<T> {
    messages: std::vec::IntoIter<T>,
    mailbox: Mailbox<T>,
}

impl<T> Turn<T> {
    /// A turn over what [`Batches`] gave.
    pub fn new(mailbox: &Mailbox<T>, batch: Vec<T>) -> Self {
        Self {
            messages: batch.into_iter(),
            mailbox: mailbox.clone(),
        }
    }
}

impl<T> Iterator for Turn<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.messages.next()
    }
}

impl<T> Drop for Turn<T> {
    fn drop(&mut self) {
        if self.messages.len() > 0 {
            self.mailbox.give_back(self.messages.by_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_reader_gets_in_one_turn_all_that_came_in_order() {
        let mailbox = Mailbox::default();
        for n in 0..5 {
            mailbox.push(n);
        }
        assert_eq!(mailbox.batches().next().await.unwrap(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_second_reader_goes_on_where_the_first_was_dropped() {
        let mailbox = Mailbox::default();
        let mut first = mailbox.batches();
        mailbox.push(1);
        assert_eq!(first.next().await.unwrap(), [1]);
        drop(first);
        mailbox.push(2);
        assert_eq!(mailbox.batches().next().await.unwrap(), [2]);
    }

    #[tokio::test]
    async fn what_a_turn_did_not_come_to_is_read_before_what_came_since() {
        let mailbox = Mailbox::default();
        let mut turn = Turn::new(&mailbox, vec![1, 2, 3]);
        mailbox.push(4);
        assert_eq!(turn.next(), Some(1));
        drop(turn);
        assert_eq!(mailbox.batches().next().await.unwrap(), [2, 3, 4]);
    }

    #[actix::test]
    async fn what_is_pushed_in_one_turn_is_read_in_one_turn() {
        let mailbox = Mailbox::default();
        let mut batches = mailbox.batches();
        let reader = actix::spawn(async move { batches.next().await });
        // The reader waits.
        tokio::task::yield_now().await;
        for n in 0..3 {
            mailbox.push_in_turn(n);
        }
        assert_eq!(reader.await.unwrap().unwrap(), [0, 1, 2]);
        assert!(OWED.with_borrow(Vec::is_empty));
    }

    #[tokio::test]
    async fn what_was_pushed_quietly_is_read_when_somebody_wakes_the_reader() {
        let mailbox = Mailbox::default();
        let mut batches = mailbox.batches();
        let (sender, reader) = (mailbox.clone(), tokio::spawn(async move { batches.next().await }));
        tokio::task::yield_now().await;
        sender.push_quietly(1);
        tokio::task::yield_now().await;
        assert!(!reader.is_finished());
        sender.wake();
        assert_eq!(reader.await.unwrap().unwrap(), [1]);
        assert!(sender.push_below(1, 2) && !sender.push_below(1, 3));
        assert_eq!(mailbox.batches().next().await.unwrap(), [2]);
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken_by_a_push_from_another_thread() {
        let mailbox = Mailbox::default();
        let sender = mailbox.clone();
        let mut batches = mailbox.batches();
        let reader = tokio::spawn(async move { batches.next().await });
        std::thread::spawn(move || sender.push(7)).join().unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), [7]);
    }
}
