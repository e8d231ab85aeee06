//! A TCP link to break. What connects to [`Proxy::address`] reaches the target through it, until told otherwise; every
//! fault holds for the connections that are open and those that come.
//!
//! It lives in the runtime of the test that started it, and ends with it.

use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the link does with bytes and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// Passes everything on, so much later.
    Forward(Duration),
    /// Takes connections and passes nothing on; the peers' sends fill the buffers and then wait.
    Stalled,
    /// Resets what connects.
    Cut,
}

/// What the test and the connections share.
#[derive(Clone)]
struct Wires {
    link: watch::Sender<Link>,
    /// Counts up; connections that are open are reset.
    reset: watch::Sender<u64>,
    /// Counts up; of connections that are open the far side is reset, and the near side hears nothing.
    halve: watch::Sender<u64>,
    open: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
}

pub struct Proxy {
    address: SocketAddr,
    wires: Wires,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// A link to `target`, on a port of its own.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let wires = Wires {
            link: watch::Sender::new(Link::Forward(Duration::ZERO)),
            reset: watch::Sender::new(0),
            halve: watch::Sender::new(0),
            open: Arc::default(),
            accepted: Arc::default(),
        };
        let task = tokio::spawn(accept(listener, target, wires.clone()));
        Self { address, wires, task }
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections open now, through to the target.
    pub fn open(&self) -> usize {
        self.wires.open.load(Ordering::SeqCst)
    }

    /// Connections taken since the start.
    pub fn accepted(&self) -> usize {
        self.wires.accepted.load(Ordering::SeqCst)
    }

    /// Resets (RST) every connection, and those that come, until [`Self::restore`].
    pub fn cut(&self) {
        self.wires.link.send_replace(Link::Cut);
        self.reset_connections();
    }

    /// Resets every connection that is open; those that come are served.
    pub fn reset_connections(&self) {
        self.wires.reset.send_modify(|count| *count += 1);
    }

    /// Passes nothing on, either way, until [`Self::restore`]: then what was held goes on.
    pub fn stall(&self) {
        self.wires.link.send_replace(Link::Stalled);
    }

    /// The target loses its connections; who connected to us hears nothing of it and sends into the void, also after
    /// [`Self::restore`]. As when a peer's host is gone. Those that come are served.
    pub fn half_open(&self) {
        self.wires.halve.send_modify(|count| *count += 1);
    }

    /// Passes every piece on so much later, each way.
    pub fn delay(&self, time: Duration) {
        self.wires.link.send_replace(Link::Forward(time));
    }

    /// A good link again.
    pub fn restore(&self) {
        self.wires.link.send_replace(Link::Forward(Duration::ZERO));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, wires: Wires) {
    while let Ok((near, _)) = listener.accept().await {
        wires.accepted.fetch_add(1, Ordering::SeqCst);
        // What is ordered from here on concerns this connection.
        let (link, reset, halve) = (wires.link.subscribe(), wires.reset.subscribe(), wires.halve.subscribe());
        let open = Arc::clone(&wires.open);
        tokio::spawn(async move {
            if *link.borrow() == Link::Cut {
                return abort(&near);
            }
            let Ok(far) = TcpStream::connect(target).await else {
                return abort(&near);
            };
            let _counted = Counted::new(open);
            connection(near, far, link, reset, halve).await;
        });
    }
}

/// Serves one connection to its end, orderly or not.
async fn connection(
    near: TcpStream,
    far: TcpStream,
    link: watch::Receiver<Link>,
    mut reset: watch::Receiver<u64>,
    mut halve: watch::Receiver<u64>,
) {
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    // `biased`: a fault that has been ordered comes before one more byte.
    let halved = tokio::select! { biased;
        _ = reset.changed() => false,
        _ = halve.changed() => true,
        () = both(pass(&near, &far, link.clone()), pass(&far, &near, link)) => return,
    };
    abort(&far);
    drop(far);
    if halved {
        // The near side is kept, unread, until it is reset or the test is over.
        let _ = reset.changed().await;
    }
    abort(&near);
}

async fn both(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::join!(one, other);
}

/// Passes one direction on, until it ends; then ends it at the other side too.
async fn pass(from: &TcpStream, to: &TcpStream, mut link: watch::Receiver<Link>) {
    let mut block = vec![0; 16 << 10];
    loop {
        if link.wait_for(|link| *link != Link::Stalled).await.map(drop).is_err() || from.readable().await.is_err() {
            break;
        }
        // It may have been stalled while we waited for bytes: then they stay where they are.
        if *link.borrow() == Link::Stalled {
            continue;
        }
        let count = match from.try_read(&mut block) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return abort(to),
        };
        let state = *link.borrow();
        if let Link::Forward(delay) = state
            && !delay.is_zero()
        {
            tokio::time::sleep(delay).await;
        }
        let mut rest = &block[..count];
        while !rest.is_empty() {
            if to.writable().await.is_err() {
                return;
            }
            match to.try_write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return abort(from),
            }
        }
    }
    let _ = SockRef::from(to).shutdown(Shutdown::Write);
}

/// Makes the end of this connection a reset instead of an orderly one.
fn abort(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
