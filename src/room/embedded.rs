//! The embedded room server: which presenters are live, kept by this server itself (`room.mode = "embedded"`).
//!
//! Operators start and stop broadcasts over HTTP. What is live survives a restart in a small file beside the spool.

use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::OpenOptionsExt,
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

/// See the module's text; clones share one state.
#[derive(Clone, Debug)]
pub struct EmbeddedRooms {
    rooms: Arc<Mutex<Rooms>>,
    path: Arc<PathBuf>,
    /// Syncs a directory.
    sync: fn(&Path) -> std::io::Result<()>,
}

impl EmbeddedRooms {
    /// Reads what was live when the server stopped. A file that cannot be read is named in the error.
    pub fn open(path: &Path) -> Result<Self, String> {
        let named = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let rooms: Rooms = match std::fs::read(path) {
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
        Ok(Self {
            rooms: Arc::new(Mutex::new(rooms)),
            path: Arc::new(path.to_owned()),
            sync: |directory| std::fs::File::open(directory)?.sync_all(),
        })
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes live; a second start goes on with the first.
    pub fn start(&self, presenter: PresenterIdx) -> std::io::Result<LiveRoom> {
        let mut rooms = self.rooms();
        if let Some(room) = rooms.live.get(&presenter) {
            return Ok(*room);
        }
        let mut next = rooms.clone();
        next.last_room_idx += 1;
        let room = LiveRoom {
            room_idx: next.last_room_idx,
            started_at_ms: system_ms(),
        };
        next.live.insert(presenter, room);
        self.change(&mut rooms, next)?;
        Ok(room)
    }

    /// Ends the broadcast; `None` when there was none.
    pub fn stop(&self, presenter: PresenterIdx) -> std::io::Result<Option<LiveRoom>> {
        let mut rooms = self.rooms();
        let mut next = rooms.clone();
        let stopped = next.live.remove(&presenter);
        if stopped.is_some() {
            self.change(&mut rooms, next)?;
        }
        Ok(stopped)
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
    fn change(&self, rooms: &mut Rooms, next: Rooms) -> std::io::Result<()> {
        self.save(&next)?;
        *rooms = next;
        Ok(())
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
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        if let Err(error) = (self.sync)(directory) {
            log::warn!("rooms: {} cannot be synced: {error}", directory.display());
        }
        Ok(())
    }
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
    use super::*;

    #[test]
    fn what_is_live_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rooms.json");
        let presenter = PresenterIdx::new(12).unwrap();
        let rooms = EmbeddedRooms::open(&path).unwrap();
        let room = rooms.start(presenter).unwrap();
        assert_eq!(rooms.start(presenter).unwrap(), room);
        let again = EmbeddedRooms::open(&path).unwrap();
        assert_eq!(again.get(presenter), Some(room));
        assert_eq!(again.stop(presenter).unwrap(), Some(room));
        assert_eq!(EmbeddedRooms::open(&path).unwrap().all(), []);
        let next = again.start(presenter).unwrap();
        assert!(next.room_idx > room.room_idx);
    }

    #[test]
    fn a_start_or_a_stop_that_cannot_be_saved_has_not_happened_and_can_be_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, in_the_way) = (dir.path().join("rooms.json"), dir.path().join("rooms.new"));
        let presenter = PresenterIdx::new(12).unwrap();
        let rooms = EmbeddedRooms::open(&path).unwrap();
        let saved = || EmbeddedRooms::open(&path).unwrap().all();
        std::fs::create_dir(&in_the_way).unwrap();
        assert!(rooms.start(presenter).is_err());
        assert!(rooms.start(presenter).is_err());
        assert_eq!((rooms.get(presenter), saved()), (None, vec![]));
        std::fs::remove_dir(&in_the_way).unwrap();
        let room = rooms.start(presenter).unwrap();
        assert_eq!(saved(), [(presenter, room)]);
        std::fs::create_dir(&in_the_way).unwrap();
        assert!(rooms.stop(presenter).is_err());
        assert!(rooms.stop(presenter).is_err());
        assert_eq!((rooms.get(presenter), saved()), (Some(room), vec![(presenter, room)]));
        std::fs::remove_dir(&in_the_way).unwrap();
        assert_eq!(rooms.stop(presenter).unwrap(), Some(room));
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
        let room = rooms.start(presenter).unwrap();
        assert_eq!(
            (rooms.all(), saved()),
            (vec![(presenter, room)], vec![(presenter, room)])
        );
        assert_eq!(rooms.stop(presenter).unwrap(), Some(room));
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
}
