//! A connection's socket by its name, so that it can be shut from anywhere without being open twice: with ten thousand
//! sessions, a second descriptor each is ten thousand more.
//!
//! Its name is the number of its descriptor and its cookie (socket(7), `SO_COOKIE`), which no other socket ever has. To shut
//! it the descriptor is duplicated by number (`pidfd_getfd(2)`, on ourselves); where that number is another socket's by now,
//! the cookie tells, and nothing is done. Linux from 5.6 on; where it is not allowed, as in some containers, the caller keeps a
//! descriptor instead. A duplicate needs a descriptor for a moment: where there is none left, one that is kept for that is given up for
//! it; where that comes to nothing, who wants the socket shut tries again ([`super::lines`] does).
//!
//! One whose end is to be a reset is not shut down: that would send what is left and then end in order, and a peer that reads fast
//! enough would see just that before the reset. It is disconnected (connect(2), `AF_UNSPEC`), which resets it at once.

use chatting_actors::seams::Socket;

#[cfg(target_os = "linux")]
pub use linux::{Named, shut, works};

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        sync::{Mutex, OnceLock, PoisonError},
        time::Duration,
    };

    use rustix::{
        io::{Errno, Result},
        net::{
            Shutdown, connect_unspec, shutdown,
            sockopt::{set_socket_linger, socket_cookie, socket_linger},
        },
        process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
    };

    use super::Socket;

    /// A socket, without keeping it open: when that is closed, nothing is shut.
    pub struct Named {
        number: RawFd,
        cookie: u64,
    }

    /// This process, for [`pidfd_getfd`].
    fn own() -> Option<&'static OwnedFd> {
        static OWN: OnceLock<Option<OwnedFd>> = OnceLock::new();
        OWN.get_or_init(|| pidfd_open(getpid(), PidfdFlags::empty()).ok())
            .as_ref()
    }

    /// Given up for a duplicate where there is no other descriptor left, and got again behind it. More than one: whoever waits for one,
    /// as a connection that is to be accepted, may be faster than who gave it up.
    static SPARES: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

    /// How many.
    const SPARES_MAX: usize = 8;

    /// Does this with a duplicate of the descriptor that has this number, unless none is to be had.
    fn with_duplicate<T>(number: RawFd, work: impl FnOnce(&OwnedFd) -> T) -> Result<T> {
        let own = own().ok_or(Errno::NOSYS)?;
        let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
        let duplicate = loop {
            match pidfd_getfd(own, number, PidfdGetfdFlags::empty()) {
                Err(Errno::MFILE) if spares.pop().is_some() => {}
                duplicate => break duplicate,
            }
        };
        let done = duplicate.map(|duplicate| work(&duplicate));
        // Where none is ever to be had, as under a filter of system calls, spares are of no use.
        while done.is_ok()
            && spares.len() < SPARES_MAX
            && let Ok(spare) = own.try_clone()
        {
            spares.push(spare);
        }
        done
    }

    /// Whether sockets can be shut by their names here; asked once.
    pub fn works() -> bool {
        static WORKS: OnceLock<bool> = OnceLock::new();
        *WORKS.get_or_init(|| own().is_some_and(|own| with_duplicate(own.as_raw_fd(), |_| ()).is_ok()))
    }

    /// Shuts a socket as [`Socket::shut`] and [`Socket::end_by_reset`] say.
    pub fn shut(socket: &impl AsFd) {
        let by_reset = socket_linger(socket) == Ok(Some(Duration::ZERO));
        if !by_reset || connect_unspec(socket).is_err() {
            let _ = shutdown(socket, Shutdown::Both);
        }
    }

    impl Named {
        /// The name of a socket; `None` where it could not be shut by it.
        pub fn of(socket: &(impl AsFd + AsRawFd)) -> Option<Self> {
            let number = socket.as_raw_fd();
            works()
                .then(|| socket_cookie(socket).ok())
                .flatten()
                .map(|cookie| Self { number, cookie })
        }

        /// Does this with the socket, while it is open.
        fn with_socket(&self, work: impl FnOnce(&OwnedFd)) {
            let _ = with_duplicate(self.number, |socket| {
                if socket_cookie(socket) == Ok(self.cookie) {
                    work(socket);
                }
            });
        }
    }

    impl Socket for Named {
        fn shut(&self) {
            self.with_socket(shut);
        }

        fn end_by_reset(&self) {
            self.with_socket(|socket| {
                let _ = set_socket_linger(socket, Some(Duration::ZERO));
            });
        }
    }

    #[cfg(test)]
    mod tests {
        use std::{
            io::{ErrorKind, Read, Write},
            net::{TcpListener, TcpStream},
        };

        use super::*;

        fn pair() -> (TcpStream, TcpStream) {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (near, listener.accept().unwrap().0)
        }

        #[test]
        fn a_socket_is_shut_by_its_name_and_another_one_with_its_number_is_not() {
            let (near, mut far) = pair();
            let Some(named) = Named::of(&near) else {
                eprintln!("skipped: no right to duplicate a descriptor by its number (pidfd_getfd) here");
                return;
            };
            let other = Named {
                cookie: named.cookie + 1,
                ..named
            };
            far.set_nonblocking(true).unwrap();
            other.shut();
            assert_eq!(far.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            named.shut();
            far.set_nonblocking(false).unwrap();
            assert_eq!(far.read(&mut [0]).unwrap(), 0, "it ended");
            drop(near);
            named.shut();
        }

        #[test]
        fn a_socket_whose_end_is_to_be_a_reset_ends_with_one_even_for_a_peer_that_reads_all_before_it_is_closed() {
            let (mut near, mut far) = pair();
            near.set_nonblocking(true).unwrap();
            while near.write(&[7; 65_536]).is_ok() {}
            match Named::of(&near) {
                Some(named) => {
                    named.end_by_reset();
                    named.shut();
                }
                None => {
                    set_socket_linger(&near, Some(Duration::ZERO)).unwrap();
                    shut(&near);
                }
            }
            let end = far.read_to_end(&mut Vec::new());
            assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
            drop(near);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use super::Socket;

    /// No socket can be shut by name here.
    pub enum Named {}

    impl Named {
        /// `None`.
        pub fn of<T>(_: &T) -> Option<Self> {
            None
        }
    }

    /// `false`.
    pub fn works() -> bool {
        false
    }

    /// Shuts a socket.
    pub fn shut(socket: &socket2::Socket) {
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }

    impl Socket for Named {
        fn shut(&self) {
            match *self {}
        }

        fn end_by_reset(&self) {
            match *self {}
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{Named, shut, works};
