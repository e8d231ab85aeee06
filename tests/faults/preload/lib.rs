//! A disk that can lose power and fail, put before the C library of the server (`LD_PRELOAD`); the fault matrix builds it with rustc.
//!
//! What the system has in memory outlives a process that is killed, so SIGKILL proves nothing of syncs. This keeps, beside each file
//! whose path begins with `$DISK_OF`, a copy in the directory `$DISK_KEPT` with what the disk is sure to have: a page (4 KiB) comes to it when
//! the file is synced after the page was written, the length with it. When the process is gone, whoever cut the power puts the copies
//! in the files' place, or lets each sector that was written since survive as it likes.
//!
//! While `$DISK_KEPT/fail-syncs` exists syncs fail with EIO, and the pages written by then are taken for written, as Linux does it: they
//! come to the disk no more unless they are written again. While `$DISK_KEPT/fail-writes` exists writes fail. Each failure
//! adds a byte to `$DISK_KEPT/failed`. Names come and go at once: file systems with a journal keep their order. A memory map is not seen (SQLite's
//! `-shm`, which is made anew), nor is a file that another process writes.
//!
//! Nothing here may call the C library by the names that it takes, so all is system calls. x86-64 Linux.

use std::{
    collections::{BTreeSet, HashMap},
    env,
    ffi::{CStr, CString, c_char, c_int, c_long, c_void},
    os::unix::ffi::OsStrExt,
    sync::{Mutex, OnceLock, PoisonError},
};

const WRITE: c_long = 1;
const LSEEK: c_long = 8;
const PREAD: c_long = 17;
const PWRITE: c_long = 18;
const ACCESS: c_long = 21;
const FSYNC: c_long = 74;
const FDATASYNC: c_long = 75;
const FTRUNCATE: c_long = 77;
const RENAME: c_long = 82;
const UNLINK: c_long = 87;
const READLINK: c_long = 89;
const OPEN: c_long = 2;
const CLOSE: c_long = 3;

const O_WRONLY: c_int = 0o1;
const O_CREAT: c_int = 0o100;
const O_APPEND: c_int = 0o2000;
const O_CLOEXEC: c_int = 0o2_000_000;
const CURRENT: c_int = 1;
const END: c_int = 2;
const EIO: c_int = 5;

const PAGE: i64 = 4096;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn __errno_location() -> *mut c_int;
}

struct Disk {
    /// Files below this prefix.
    of: Vec<u8>,
    /// The directory of the copies.
    kept: Vec<u8>,
    /// Of each file the pages that were written since its last sync.
    pages: Mutex<HashMap<Vec<u8>, BTreeSet<i64>>>,
}

fn disk() -> Option<&'static Disk> {
    static DISK: OnceLock<Option<Disk>> = OnceLock::new();
    DISK.get_or_init(|| {
        let var = |name| Some(env::var_os(name)?.as_bytes().to_vec());
        Some(Disk {
            of: var("DISK_OF")?,
            kept: var("DISK_KEPT")?,
            pages: Mutex::default(),
        })
    })
    .as_ref()
}

fn path(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}

impl Disk {
    /// Whether it keeps a file of this path.
    fn keeps(&self, file: &[u8]) -> bool {
        file.starts_with(&self.of) && !file.ends_with(b"-shm") && !file.ends_with(b" (deleted)")
    }

    /// The path of the file that a descriptor is of, when it is one that is kept.
    fn file(&self, fd: c_int) -> Option<Vec<u8>> {
        let link = path(format!("/proc/self/fd/{fd}").as_bytes());
        let mut buffer = [0_u8; 1024];
        // SAFETY: the buffer is as long as it says.
        let length = unsafe { syscall(READLINK, link.as_ptr(), buffer.as_mut_ptr(), buffer.len()) };
        let file = buffer.get(..usize::try_from(length).ok()?)?;
        self.keeps(file).then(|| file.to_vec())
    }

    fn in_kept(&self, name: &[u8]) -> CString {
        path(&[&self.kept, &b"/"[..], name].concat())
    }

    fn copy_of(&self, file: &[u8]) -> CString {
        let name = file.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        self.in_kept(name)
    }

    /// Whether what this file asks for is to fail.
    fn fails(&self, asked: &[u8]) -> bool {
        // SAFETY: a path that ends in NUL.
        let there = unsafe { syscall(ACCESS, self.in_kept(asked).as_ptr(), 0) } == 0;
        if there {
            let flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
            // SAFETY: as above; the descriptor is ours.
            unsafe {
                let fd = syscall(OPEN, self.in_kept(b"failed").as_ptr(), flags, 0o600);
                syscall(WRITE, fd, b"x".as_ptr(), 1_usize);
                syscall(CLOSE, fd);
            }
        }
        there
    }

    /// Writes, and keeps in mind what.
    fn write(&self, file: Vec<u8>, write: impl FnOnce() -> isize, end: impl FnOnce(isize) -> i64) -> isize {
        if self.fails(b"fail-writes") {
            return fail();
        }
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let written = write();
        if written > 0 {
            let end = end(written);
            let begin = end - written as i64;
            pages.entry(file).or_default().extend(begin / PAGE..=(end - 1) / PAGE);
        }
        written
    }

    fn sync(&self, fd: c_int, file: &[u8], sync: impl FnOnce() -> c_int) -> c_int {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let written = pages.remove(file).unwrap_or_default();
        if self.fails(b"fail-syncs") {
            return fail();
        }
        let done = sync();
        let copy = self.copy_of(file);
        // SAFETY: the descriptors are open, the buffer is as long as it says.
        unsafe {
            let to = syscall(OPEN, copy.as_ptr(), O_WRONLY | O_CREAT | O_CLOEXEC, 0o600);
            for page in written {
                let mut buffer = [0_u8; PAGE as usize];
                let read = syscall(PREAD, fd, buffer.as_mut_ptr(), buffer.len(), page * PAGE);
                if read > 0 {
                    syscall(PWRITE, to, buffer.as_ptr(), read, page * PAGE);
                }
            }
            syscall(FTRUNCATE, to, length_of(fd));
            syscall(CLOSE, to);
        }
        done
    }
}

fn length_of(fd: c_int) -> i64 {
    // SAFETY: numbers only. The place of reads and writes is put back.
    unsafe {
        let place = syscall(LSEEK, fd, 0_i64, CURRENT);
        let length = syscall(LSEEK, fd, 0_i64, END);
        syscall(LSEEK, fd, place, 0);
        length
    }
}

fn fail<T: From<i8>>() -> T {
    // SAFETY: it is this thread's own.
    unsafe { *__errno_location() = EIO };
    T::from(-1)
}

/// See pwrite(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, count: usize, at: i64) -> isize {
    // SAFETY: the caller's.
    let write = || unsafe { syscall(PWRITE, fd, bytes, count, at) } as isize;
    match disk().and_then(|disk| Some((disk, disk.file(fd)?))) {
        Some((disk, file)) => disk.write(file, write, |written| at + written as i64),
        None => write(),
    }
}

fn sync_with(number: c_long, fd: c_int) -> c_int {
    // SAFETY: numbers only.
    let sync = || unsafe { syscall(number, fd) } as c_int;
    match disk().and_then(|disk| Some((disk, disk.file(fd)?))) {
        Some((disk, file)) => disk.sync(fd, &file, sync),
        None => sync(),
    }
}

/// See write(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize {
    // SAFETY: the caller's.
    let write = || unsafe { syscall(WRITE, fd, bytes, count) } as isize;
    match disk().and_then(|disk| Some((disk, disk.file(fd)?))) {
        // SAFETY: numbers only.
        Some((disk, file)) => disk.write(file, write, |_| unsafe { syscall(LSEEK, fd, 0_i64, CURRENT) }),
        None => write(),
    }
}

/// See fsync(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    sync_with(FSYNC, fd)
}

/// See fdatasync(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync_with(FDATASYNC, fd)
}

/// See unlink(2). The copy goes with the file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(file: *const c_char) -> c_int {
    if let Some(disk) = disk() {
        // SAFETY: the caller's, a string that ends in NUL.
        let name = unsafe { CStr::from_ptr(file) }.to_bytes();
        if disk.keeps(name) {
            let mut pages = disk.pages.lock().unwrap_or_else(PoisonError::into_inner);
            pages.remove(name);
            // SAFETY: a path that ends in NUL.
            unsafe { syscall(UNLINK, disk.copy_of(name).as_ptr()) };
        }
    }
    // SAFETY: the caller's.
    unsafe { syscall(UNLINK, file) as c_int }
}

/// See rename(2). The copy goes with the file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    if let Some(disk) = disk() {
        // SAFETY: the caller's, strings that end in NUL.
        let (old, new) = unsafe { (CStr::from_ptr(from).to_bytes(), CStr::from_ptr(to).to_bytes()) };
        if disk.keeps(old) && disk.keeps(new) {
            let mut pages = disk.pages.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(written) = pages.remove(old) {
                pages.insert(new.to_vec(), written);
            }
            // SAFETY: paths that end in NUL.
            unsafe { syscall(RENAME, disk.copy_of(old).as_ptr(), disk.copy_of(new).as_ptr()) };
        }
    }
    // SAFETY: the caller's.
    unsafe { syscall(RENAME, from, to) as c_int }
}
