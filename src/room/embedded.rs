//! The embedded room server: which presenters are live, kept by this server itself (`room.mode = "embedded"`).
//!
//! Operators start and stop broadcasts over HTTP. What is live survives a restart in a small file beside the spool, which a thread of
//! its own writes: a disk may be slow, and whoever asks what is live, as the checker does, waits for none. There is one such thread
//! at most, while something changes. What comes while it writes waits for it and shares the next write, so that many that go live
//! at once cost few. What was asked for happens whether or not the caller still waits for it.

use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chatting_actors::{
    clock::system_ms,
    seams::{Liveness, RoomApi, RoomApiError},
    types::PresenterIdx,
};
use futures_util::future::{FutureExt, LocalBoxFuture, ready};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::files::{directory_of, sync_directory};

/// The highest number of a room that a file may begin with, so that counting on from it cannot overflow.
const MAX_ROOM_IDX: i64 = i64::MAX / 2;

/// One live broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveRoom {
    /// The number of the broadcast's room: counts up with every start.
    pub room_idx: i64,
    /// When it went live, milliseconds since 1970, UTC.
    pub started_at_ms: i64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Rooms {
    last_room_idx: i64,
    live: BTreeMap<PresenterIdx, LiveRoom>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Change {
    Start(PresenterIdx),
    Stop(PresenterIdx),
}

impl Rooms {
    /// What a change is answered where it changes nothing: the room that is live already, or none that could be stopped.
    fn settled(&self, change: Change) -> Option<Option<LiveRoom>> {
        match change {
            Change::Start(presenter) => self.live.get(&presenter).map(|room| Some(*room)),
            Change::Stop(presenter) => (!self.live.contains_key(&presenter)).then_some(None),
        }
    }

    /// The room that went live or was stopped.
    fn apply(&mut self, change: Change) -> Option<LiveRoom> {
        match change {
            Change::Start(presenter) => {
                self.last_room_idx += 1;
                let room = LiveRoom {
                    room_idx: self.last_room_idx,
                    started_at_ms: system_ms(),
                };
                self.live.insert(presenter, room);
                Some(room)
            }
            Change::Stop(presenter) => self.live.remove(&presenter),
        }
    }
}

/// What a change came to: the room that is live now, or that was stopped.
type Told = std::io::Result<Option<LiveRoom>>;

/// Changes that no save has in it yet, and who waits for each.
#[derive(Debug, Default)]
struct Waiting {
    changes: Vec<(Change, oneshot::Sender<Told>)>,
    /// Whether there is a thread that saves; it ends only when nothing waits.
    saved_for: bool,
}

/// Who is live, by [`EmbeddedRooms::start`] and [`EmbeddedRooms::stop`]; to the checker it is a room server
/// ([`RoomApi`]) that answers at once. Clones share one state.
#[derive(Clone, Debug)]
pub struct EmbeddedRooms {
    /// Held only to look and to put other rooms in their place.
    rooms: Arc<Mutex<Rooms>>,
    waiting: Arc<Mutex<Waiting>>,
    path: Arc<PathBuf>,
    /// Where earlier versions kept it, if it was read from there and is not set aside yet.
    before: Arc<Mutex<Option<PathBuf>>>,
    /// Syncs a directory.
    sync: fn(&Path) -> std::io::Result<()>,
}

impl EmbeddedRooms {
    /// Reads what was live when the server stopped: from where earlier versions kept it, where only that is there. A file that cannot
    /// be read is named in the error.
    pub fn open(path: &Path) -> Result<Self, String> {
        let before = before(path);
        let is_before = !path.exists() && before.exists();
        let found = if is_before { &before } else { path };
        let named = |why: &dyn std::fmt::Display| format!("{}: {why}", found.display());
        let rooms: Rooms = match std::fs::read(found) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| named(&error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Rooms::default(),
            Err(error) => {
                return Err(named(&format_args!(
                    "it is beside log.path and cannot be read: {error}"
                )));
            }
        };
        // Counting never gets there; a file that was written by hand might be.
        if !(0..=MAX_ROOM_IDX).contains(&rooms.last_room_idx) {
            return Err(named(&format_args!("last_room_idx is not from 0 to {MAX_ROOM_IDX}")));
        }
        if is_before {
            log::warn!(
                "rooms: what is live was read from {}, where earlier versions kept it; from the first change on it is in {}",
                before.display(),
                path.display()
            );
        }
        Ok(Self {
            rooms: Arc::new(Mutex::new(rooms)),
            waiting: Arc::default(),
            path: Arc::new(path.to_owned()),
            before: Arc::new(Mutex::new(is_before.then_some(before))),
            sync: sync_directory,
        })
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes live; a second start goes on with the first. Errors: it cannot be saved, and has not happened.
    pub async fn start(&self, presenter: PresenterIdx) -> std::io::Result<LiveRoom> {
        started(self.ask(Change::Start(presenter)).await)
    }

    /// Ends the broadcast; `None` when there was none. Errors: it cannot be saved, and has not happened.
    pub async fn stop(&self, presenter: PresenterIdx) -> Told {
        self.ask(Change::Stop(presenter)).await.unwrap_or_else(lost)
    }

    /// As [`EmbeddedRooms::start`], and blocks the thread until the disk has it.
    pub fn blocking_start(&self, presenter: PresenterIdx) -> std::io::Result<LiveRoom> {
        started(blocking(self.ask(Change::Start(presenter))))
    }

    /// As [`EmbeddedRooms::stop`], and blocks the thread until the disk has it.
    pub fn blocking_stop(&self, presenter: PresenterIdx) -> Told {
        blocking(self.ask(Change::Stop(presenter))).unwrap_or_else(lost)
    }

    /// Has the next save take this change, too.
    fn ask(&self, change: Change) -> oneshot::Receiver<Told> {
        let (tell, told) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.changes.push((change, tell));
        if waiting.saved_for {
            return told;
        }
        let saver = self.clone();
        let thread = std::thread::Builder::new().name("rooms".into());
        match thread.spawn(move || saver.save_all()) {
            Ok(_) => waiting.saved_for = true,
            Err(error) => {
                for (_, tell) in waiting.changes.drain(..) {
                    let _ = tell.send(Err(copy(&error)));
                }
            }
        }
        told
    }

    /// Saves until nothing waits. Where a save panics, those whose changes it had are told that they are lost, and the next one is made.
    fn save_all(&self) {
        loop {
            let changes = {
                let mut waiting = self.waiting();
                if waiting.changes.is_empty() {
                    waiting.saved_for = false;
                    return;
                }
                std::mem::take(&mut waiting.changes)
            };
            // What a panic leaves is whole: other rooms are put in their place in one step, and the next save writes the whole file.
            let _ = catch_unwind(AssertUnwindSafe(|| self.change(changes)));
        }
    }

    /// The broadcast of this presenter.
    pub fn get(&self, presenter: PresenterIdx) -> Option<LiveRoom> {
        self.rooms().live.get(&presenter).copied()
    }

    /// All live broadcasts, by presenter.
    pub fn all(&self) -> Vec<(PresenterIdx, LiveRoom)> {
        self.rooms()
            .live
            .iter()
            .map(|(presenter, room)| (*presenter, *room))
            .collect()
    }

    /// What is told is what a restart finds: what cannot be saved does not count, so that it can be tried again.
    fn change(&self, changes: Vec<(Change, oneshot::Sender<Told>)>) {
        let before = self.rooms().clone();
        let mut next = before.clone();
        let mut changed = false;
        let told: Vec<_> = changes
            .iter()
            .map(|(change, _)| {
                next.settled(*change).unwrap_or_else(|| {
                    changed = true;
                    next.apply(*change)
                })
            })
            .collect();
        let saved = if changed { self.save(&next) } else { Ok(()) };
        if saved.is_ok() {
            *self.rooms() = next;
        }
        for ((change, tell), told) in changes.into_iter().zip(told) {
            let told = match &saved {
                Ok(()) => Ok(told),
                Err(error) => before.settled(change).ok_or_else(|| copy(error)),
            };
            // Whoever asked may have gone; what was asked for has happened.
            let _ = tell.send(told);
        }
    }

    /// Written beside and renamed, so that a crash leaves the old file or the new one.
    fn save(&self, rooms: &Rooms) -> std::io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&serde_json::to_vec(rooms)?)?;
        file.sync_all()?;
        std::fs::rename(&beside, &*self.path)?;
        // The name is in the directory. That this cannot be synced takes nothing back: who opens the file finds what is new, and only
        // a machine that goes down may leave what was before. Some filesystems never can.
        let directory = directory_of(&self.path);
        match (self.sync)(directory) {
            Ok(()) => self.set_aside(),
            Err(error) => log::warn!("rooms: {} cannot be synced: {error}", directory.display()),
        }
        Ok(())
    }

    /// The file of earlier versions goes out of the way of a new spool, which would take it for its own. It is kept, for the way back.
    fn set_aside(&self) {
        let Some(before) = self.before.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        let mut aside = before.clone().into_os_string();
        aside.push(".old");
        match std::fs::rename(&before, &aside) {
            Ok(()) => log::info!("rooms: {} is now {}", before.display(), aside.display()),
            Err(error) => log::warn!("rooms: {} cannot be renamed: {error}", before.display()),
        }
    }
}

/// The file of a spool's rooms: it has the spool's whole name in its own, so that no two spools share it.
pub(crate) fn file_of(spool: &Path) -> PathBuf {
    let mut path = spool.as_os_str().to_owned();
    path.push(SUFFIX);
    path.into()
}

/// What ends its name.
const SUFFIX: &str = ".rooms.json";

/// The same file in earlier versions, by which `chat.1` and `chat.2` had one.
fn before(path: &Path) -> PathBuf {
    // Without SUFFIX it is the spool's.
    let spool = path.with_extension("").with_extension("");
    spool.with_extension("rooms.json")
}

/// Waits on a thread of its own, so that a task may call this, too.
fn blocking<T: Send>(told: oneshot::Receiver<T>) -> Result<T, oneshot::error::RecvError> {
    let waited = std::thread::scope(|scope| scope.spawn(|| told.blocking_recv()).join());
    waited.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn started(told: Result<Told, oneshot::error::RecvError>) -> std::io::Result<LiveRoom> {
    told.unwrap_or_else(lost)?
        .ok_or_else(|| std::io::Error::other("a room that was started is not live"))
}

fn lost(_: oneshot::error::RecvError) -> Told {
    Err(std::io::Error::other("what saves the rooms has panicked"))
}

/// The same error for one more who waits.
fn copy(error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), error.to_string())
}

impl RoomApi for EmbeddedRooms {
    fn check(&self, presenter: PresenterIdx) -> LocalBoxFuture<'static, Result<Liveness, RoomApiError>> {
        let room = self.get(presenter);
        let liveness = Liveness {
            live: room.is_some(),
            room_idx: room.map(|room| room.room_idx),
            started_at_ms: room.map(|room| room.started_at_ms),
            ended_at_ms: None,
        };
        ready(Ok(liveness)).boxed_local()
    }

    /// Nobody to ask: an embedded room server knows no other way to reach the presenter.
    fn request_reconnect(&self, _: PresenterIdx) -> LocalBoxFuture<'static, Result<(), RoomApiError>> {
        ready(Ok(())).boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_is_live_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rooms.json");
        let presenter = PresenterIdx::new(12).unwrap();
        let rooms = EmbeddedRooms::open(&path).unwrap();
        let room = rooms.blocking_start(presenter).unwrap();
        assert_eq!(rooms.blocking_start(presenter).unwrap(), room);
        let again = EmbeddedRooms::open(&path).unwrap();
        assert_eq!(again.get(presenter), Some(room));
        assert_eq!(again.blocking_stop(presenter).unwrap(), Some(room));
        assert_eq!(EmbeddedRooms::open(&path).unwrap().all(), []);
        let next = again.blocking_start(presenter).unwrap();
        assert!(next.room_idx > room.room_idx);
    }

    #[test]
    fn no_two_spools_share_a_file_and_one_of_before_is_read_until_there_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let file = |spool: &str| file_of(&dir.path().join(spool));
        let spools = ["chat", "chat.db", "chat.1", "chat.2", "chat.1.db"];
        let files: std::collections::BTreeSet<_> = spools.iter().map(|spool| file(spool)).collect();
        assert_eq!(files.len(), spools.len(), "{files:?}");
        let presenter = PresenterIdx::new(12).unwrap();
        let old = EmbeddedRooms::open(&dir.path().join("chat.rooms.json")).unwrap();
        let room = old.blocking_start(presenter).unwrap();
        let live = |spool: &str| EmbeddedRooms::open(&file(spool)).unwrap().get(presenter);
        assert_eq!(
            (live("chat.db"), live("chat.1"), live("other.db")),
            (Some(room), Some(room), None)
        );
        let rooms = EmbeddedRooms::open(&file("chat.1")).unwrap();
        assert_eq!(rooms.blocking_stop(presenter).unwrap(), Some(room));
        // A new spool does not take it for its own, and it is kept.
        assert_eq!((live("chat.1"), live("chat.2"), live("chat.db")), (None, None, None));
        let kept = EmbeddedRooms::open(&dir.path().join("chat.rooms.json.old")).unwrap();
        assert_eq!(kept.get(presenter), Some(room));
    }

    #[test]
    fn a_file_of_before_stays_where_what_is_new_may_be_lost_and_where_it_was_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (before, path) = (
            dir.path().join("chat.rooms.json"),
            dir.path().join("chat.db.rooms.json"),
        );
        let presenter = PresenterIdx::new(12).unwrap();
        std::fs::write(&before, "{\"last_room_idx\":7,\"live\":{}}").unwrap();
        let rooms = EmbeddedRooms {
            sync: |_| Err(std::io::ErrorKind::InvalidInput.into()),
            ..EmbeddedRooms::open(&path).unwrap()
        };
        assert_eq!(rooms.blocking_start(presenter).unwrap().room_idx, 8);
        assert!(before.exists());
        let rooms = EmbeddedRooms::open(&path).unwrap();
        rooms.blocking_stop(presenter).unwrap();
        assert!(before.exists());
    }

    #[test]
    fn a_start_or_a_stop_that_cannot_be_saved_has_not_happened_and_can_be_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, in_the_way) = (dir.path().join("rooms.json"), dir.path().join("rooms.new"));
        let presenter = PresenterIdx::new(12).unwrap();
        let rooms = EmbeddedRooms::open(&path).unwrap();
        let saved = || EmbeddedRooms::open(&path).unwrap().all();
        std::fs::create_dir(&in_the_way).unwrap();
        assert!(rooms.blocking_start(presenter).is_err());
        assert!(rooms.blocking_start(presenter).is_err());
        assert_eq!((rooms.get(presenter), saved()), (None, vec![]));
        std::fs::remove_dir(&in_the_way).unwrap();
        let room = rooms.blocking_start(presenter).unwrap();
        assert_eq!(saved(), [(presenter, room)]);
        std::fs::create_dir(&in_the_way).unwrap();
        assert!(rooms.blocking_stop(presenter).is_err());
        assert!(rooms.blocking_stop(presenter).is_err());
        assert_eq!((rooms.get(presenter), saved()), (Some(room), vec![(presenter, room)]));
        std::fs::remove_dir(&in_the_way).unwrap();
        assert_eq!(rooms.blocking_stop(presenter).unwrap(), Some(room));
        assert_eq!(saved(), []);
    }

    #[test]
    fn what_was_saved_in_a_directory_that_cannot_be_synced_has_happened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rooms.json");
        let presenter = PresenterIdx::new(12).unwrap();
        let rooms = EmbeddedRooms {
            sync: |_| Err(std::io::ErrorKind::InvalidInput.into()),
            ..EmbeddedRooms::open(&path).unwrap()
        };
        let saved = || EmbeddedRooms::open(&path).unwrap().all();
        let room = rooms.blocking_start(presenter).unwrap();
        assert_eq!(
            (rooms.all(), saved()),
            (vec![(presenter, room)], vec![(presenter, room)])
        );
        assert_eq!(rooms.blocking_stop(presenter).unwrap(), Some(room));
        assert_eq!((rooms.all(), saved()), (vec![], vec![]));
    }

    #[test]
    fn a_file_whose_next_number_would_overflow_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rooms.json");
        for last in [i64::MAX, -1] {
            std::fs::write(&path, format!("{{\"last_room_idx\":{last},\"live\":{{}}}}")).unwrap();
            let error = EmbeddedRooms::open(&path).unwrap_err();
            assert!(error.contains("rooms.json: last_room_idx is not from 0"), "{error}");
        }
    }

    /// How many saves have begun to sync their directory in the test below, and what they wait for there.
    static SYNCED: AtomicUsize = AtomicUsize::new(0);
    static DISK: Mutex<()> = Mutex::new(());

    #[test]
    fn while_a_save_hangs_who_looks_is_answered_and_those_who_come_share_the_next_save() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rooms.json");
        let rooms = EmbeddedRooms {
            sync: |_| {
                SYNCED.fetch_add(1, Ordering::SeqCst);
                drop(DISK.lock());
                Ok(())
            },
            ..EmbeddedRooms::open(&path).unwrap()
        };
        let [one, ..] = [1, 2, 3, 4].map(|n| PresenterIdx::new(n).unwrap());
        let hung = DISK.lock().unwrap();
        let first = rooms.ask(Change::Start(one));
        while SYNCED.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(
            (rooms.get(one), rooms.all()),
            (None, vec![]),
            "nothing waits for the disk"
        );
        let rest = [2, 3, 4].map(|n| rooms.ask(Change::Start(PresenterIdx::new(n).unwrap())));
        // One who asks and goes: it happens all the same.
        drop(rooms.ask(Change::Stop(one)));
        drop(hung);
        let first = blocking(first).unwrap().unwrap().unwrap();
        let live = rest.map(|told| blocking(told).unwrap().unwrap().unwrap());
        assert_eq!([first.room_idx, live[0].room_idx, live[2].room_idx], [1, 2, 4]);
        assert_eq!(
            SYNCED.load(Ordering::SeqCst),
            2,
            "the four that came meanwhile share one save"
        );
        let all = EmbeddedRooms::open(&path).unwrap().all();
        let presenters: Vec<_> = all.iter().map(|(presenter, _)| presenter.get()).collect();
        assert_eq!((rooms.all(), presenters), (all.clone(), vec![2, 3, 4]));
    }

    #[test]
    fn a_save_that_panics_loses_what_it_had_and_those_that_come_then_are_saved() {
        static SAVES: AtomicUsize = AtomicUsize::new(0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rooms.json");
        let rooms = EmbeddedRooms {
            sync: |_| {
                assert!(SAVES.fetch_add(1, Ordering::SeqCst) > 0, "the first save of this test");
                Ok(())
            },
            ..EmbeddedRooms::open(&path).unwrap()
        };
        let presenter = PresenterIdx::new(12).unwrap();
        let error = rooms.blocking_start(presenter).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        assert_eq!(rooms.all(), []);
        // Whether they come while the thread of that save still runs or later, a thread saves them.
        for _ in 0..3 {
            let room = rooms.blocking_start(presenter).unwrap();
            assert_eq!(EmbeddedRooms::open(&path).unwrap().all(), [(presenter, room)]);
            assert_eq!(rooms.blocking_stop(presenter).unwrap(), Some(room));
        }
    }

    #[test]
    fn of_changes_that_share_a_save_which_fails_only_those_that_changed_nothing_have_happened() {
        let dir = tempfile::tempdir().unwrap();
        let rooms = EmbeddedRooms::open(&dir.path().join("rooms.json")).unwrap();
        let [live, other] = [12, 13].map(|n| PresenterIdx::new(n).unwrap());
        let room = rooms.blocking_start(live).unwrap();
        std::fs::create_dir(dir.path().join("rooms.new")).unwrap();
        let asked = [
            Change::Start(live),
            Change::Start(other),
            Change::Stop(other),
            Change::Stop(live),
        ];
        let (changes, told): (Vec<_>, Vec<_>) = asked
            .into_iter()
            .map(|change| {
                let (tell, told) = oneshot::channel();
                ((change, tell), told)
            })
            .unzip();
        rooms.change(changes);
        let told: Vec<_> = told.into_iter().map(|told| blocking(told).unwrap().ok()).collect();
        assert_eq!(told, [Some(Some(room)), None, Some(None), None]);
        assert_eq!(rooms.all(), [(live, room)]);
    }
}
