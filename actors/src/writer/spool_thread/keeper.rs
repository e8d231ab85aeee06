//! Broadcasts in the spool: kept on every change, whatever becomes of the first attempt.
//!
//! Those that wait are kept in one transaction. One that can never be kept, as on a damaged page, would have it fail for
//! all rooms and for good: so where it failed again, and the spool takes other things, it is halved until those that
//! fail are alone. These are tried on by themselves, and what comes next is kept without them.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{Run, health::Health};
use crate::{
    broadcast::Broadcast,
    mailbox::Mailbox,
    seams::{Spool, SpoolError, SpoolFault},
    seldom::Seldom,
    writer::DrainMsg,
};

/// So many transactions at most, and for so long, to tell those that can be kept from those that cannot: commits wait for
/// them. What is left has its turn the next time.
const TRIES_APART: (usize, Duration) = (64, Duration::from_millis(500));

/// The same at a stop, which is the last time, and has a deadline.
const LAST_TRIES: (usize, Duration) = (1024, Duration::from_secs(2));

/// So many at most of those that could not be kept alone are tried at once, but at a stop.
const UNKEEPABLE_AT_ONCE: usize = 1000;

/// How soon broadcasts are tried again that could not be kept more than once.
const KEEP_AGAIN: Duration = Duration::from_secs(1);

/// Broadcasts that are to be kept. A panic of the spool takes none of them with it: they go when they are kept.
pub(super) struct BroadcastKeeper {
    /// How soon those are tried again that failed once: after [`KEEP_AGAIN`] at most.
    retry_min: Duration,
    /// Broadcasts that could not be kept yet, the newest version of each: those that began, changed or ended meanwhile.
    unkept: HashMap<Uuid, Broadcast>,
    /// How often they were tried in vain, and when they last were.
    kept_in_vain: Option<(u32, Instant)>,
    /// When those that can be kept were last told from those that cannot.
    told_apart: Option<Instant>,
    /// Broadcasts that could not be kept alone either, the newest version of each: they are tried apart from the others. No
    /// number bounds them, or `unkept`: messages name each of them. They are as many as began, changed or ended until the restart
    /// that salvages the file.
    unkeepable: HashMap<Uuid, Broadcast>,
    /// When those were last tried.
    unkeepable_tried: Instant,
    said_unkept: Seldom,
    said_unkeepable: Seldom,
    said_kept_after_all: Seldom,
}

/// What of the thread it takes to keep them.
pub(super) struct Keeping<'a> {
    spool: &'a mut dyn Spool,
    health: &'a mut Health,
    drain: &'a Mailbox<DrainMsg>,
    /// This is the last time.
    stopping: bool,
}

impl BroadcastKeeper {
    pub fn new(retry_min: Duration) -> Self {
        Self {
            retry_min,
            unkept: HashMap::new(),
            kept_in_vain: None,
            told_apart: None,
            unkeepable: HashMap::new(),
            unkeepable_tried: Instant::now(),
            said_unkept: Seldom::new(),
            said_unkeepable: Seldom::new(),
            said_kept_after_all: Seldom::new(),
        }
    }

    /// How many are not kept.
    pub fn len(&self) -> usize {
        self.unkept.len() + self.unkeepable.len()
    }

    pub fn is_empty(&self) -> bool {
        self.unkept.is_empty() && self.unkeepable.is_empty()
    }

    /// How soon there is something to be tried again though nothing comes.
    pub fn keeps_within(&self) -> Option<Duration> {
        match (self.unkept.is_empty(), self.unkeepable.is_empty()) {
            (false, _) => Some(self.retry_min.min(KEEP_AGAIN)),
            (true, false) => Some(KEEP_AGAIN),
            (true, true) => None,
        }
    }

    /// Makes of the open ones that the file has those that are open.
    pub fn merge_open(&self, open: &mut Vec<Broadcast>) {
        // What the file says of these may be older than what was told.
        let unkept = || self.unkept.values().chain(self.unkeepable.values());
        let known: HashSet<Uuid> = unkept().map(|broadcast| broadcast.id).collect();
        open.retain(|broadcast| !known.contains(&broadcast.id));
        open.extend(unkept().filter(|broadcast| broadcast.ended_at_ms.is_none()).cloned());
        open.sort_unstable_by_key(|broadcast| broadcast.id);
    }

    /// Keeps broadcasts; those that cannot be kept now are tried again, by the clock and by whatever comes.
    pub fn add(&mut self, broadcasts: Vec<Broadcast>, with: &mut Keeping<'_>) {
        for broadcast in broadcasts {
            let waiting = match self.unkeepable.contains_key(&broadcast.id) {
                true => &mut self.unkeepable,
                false => &mut self.unkept,
            };
            waiting.insert(broadcast.id, broadcast);
        }
        // All of them are tried at once, so not for each that is added while nothing can be kept.
        if self.keep_is_due(false) && !with.health.takes_nothing() {
            self.flush(with);
        }
    }

    /// Tries all of them, but those that could not be kept alone.
    pub fn flush(&mut self, with: &mut Keeping<'_>) {
        let all = some_of(&self.unkept, usize::MAX);
        if all.is_empty() {
            return;
        }
        // A panic on the way counts, too.
        let times = self.kept_in_vain.map_or(1, |(times, _)| times.saturating_add(1));
        let now = Instant::now();
        self.kept_in_vain = Some((times, now));
        // What failed once may have been for a moment. Nor is each batch of new ones told apart behind the next commit,
        // where those before it all went to the unkeepable.
        let lately = self.told_apart.is_some_and(|at| now - at < KEEP_AGAIN);
        let apart = with.stopping || (times > 1 && !lately);
        if apart {
            self.told_apart = Some(now);
        }
        self.keep_what_can_be(&all, apart, with);
        // It may have taken seconds to fail.
        self.kept_in_vain = (!self.unkept.is_empty()).then(|| (times, Instant::now()));
    }

    /// Tries again what could not be kept, when that is due. `behind_commit`: the file has just taken one.
    pub fn keep_again(&mut self, behind_commit: bool, with: &mut Keeping<'_>) {
        if self.keep_is_due(behind_commit) {
            self.flush(with);
        }
        if self.unkeepable_tried.elapsed() >= KEEP_AGAIN {
            self.keep_unkeepable(with);
        }
    }

    /// The last time, at a stop.
    pub fn keep_last(&mut self, with: &mut Keeping<'_>) {
        self.flush(with);
        self.keep_unkeepable(with);
    }

    fn keep_unkeepable(&mut self, with: &mut Keeping<'_>) {
        let at_once = if with.stopping { usize::MAX } else { UNKEEPABLE_AT_ONCE };
        let some = some_of(&self.unkeepable, at_once);
        if some.is_empty() {
            return;
        }
        self.unkeepable_tried = Instant::now();
        self.keep_what_can_be(&some, true, with);
    }

    /// Keeps these in one transaction. Where that fails, and `apart` is set, those of them that can be kept.
    fn keep_what_can_be(&mut self, all: &[Broadcast], apart: bool, with: &mut Keeping<'_>) {
        let (most, within) = if with.stopping { LAST_TRIES } else { TRIES_APART };
        let (mut parts, mut failed, mut since) = (vec![all], None, None);
        for _ in 0..most {
            if since.is_some_and(|since: Instant| since.elapsed() >= within) {
                break;
            }
            let Some(part) = parts.pop() else {
                break;
            };
            let error = match with.spool.keep_broadcasts(part) {
                Ok(store_lacks_one) => {
                    self.are_kept(part);
                    // Most often one was seen to be live again, and the drain's question would be in front of commits for nothing.
                    if store_lacks_one {
                        with.drain.push(DrainMsg::Broadcasts);
                    }
                    continue;
                }
                Err(error) => error,
            };
            with.health.failed_by(error.fault);
            let known = matches!(part, [one] if self.unkeepable.contains_key(&one.id));
            // A spool that takes nothing takes no part of them either.
            let goes_on =
                apart && error.fault == SpoolFault::Unsure && (known || since.is_some() || with.spool.probe().is_ok());
            if goes_on {
                since.get_or_insert_with(Instant::now);
                match part {
                    [one] => self.is_unkeepable(one, &error),
                    _ => parts.extend(<[_; 2]>::from(part.split_at(part.len() / 2))),
                }
            } else {
                parts.clear();
            }
            failed = Some(error);
        }
        if let Some(error) = failed
            && let Some(more) = self.said_unkept.due(Instant::now())
        {
            let unkept = self.len();
            log::warn!("spool: {unkept} broadcasts are not kept yet: {error}{more}");
        }
    }

    fn are_kept(&mut self, broadcasts: &[Broadcast]) {
        for Broadcast { id, presenter, .. } in broadcasts {
            self.unkept.remove(id);
            if self.unkeepable.remove(id).is_some()
                && let Some(more) = self.said_kept_after_all.due(Instant::now())
            {
                log::info!("spool: broadcast {id} of room {presenter} is kept after all{more}");
            }
        }
    }

    /// It was tried alone, and failed.
    fn is_unkeepable(&mut self, broadcast: &Broadcast, error: &SpoolError) {
        let Broadcast { id, presenter, .. } = broadcast;
        self.unkept.remove(id);
        if self.unkeepable.is_empty() {
            self.unkeepable_tried = Instant::now();
        }
        if self.unkeepable.insert(*id, broadcast.clone()).is_none()
            && let Some(more) = self.said_unkeepable.due(Instant::now())
        {
            log::error!("spool: broadcast {id} of room {presenter} cannot be kept, it is tried again: {error}{more}");
        }
    }

    /// What failed once may have been for a moment. What failed again must not cost the commits: a page may be damaged.
    fn keep_is_due(&self, behind_commit: bool) -> bool {
        self.kept_in_vain.is_none_or(|(times, at)| {
            let pause = match times {
                1 if behind_commit => Duration::ZERO,
                1 => self.retry_min.min(KEEP_AGAIN),
                _ => KEEP_AGAIN,
            };
            at.elapsed() >= pause
        })
    }
}

impl Run {
    /// What keeps broadcasts, and what that takes of the thread.
    pub(super) fn keeping(&mut self) -> (&mut BroadcastKeeper, Keeping<'_>) {
        let with = Keeping {
            spool: &mut *self.spool,
            health: &mut self.health,
            drain: &self.drain,
            stopping: self.stopping,
        };
        (&mut self.keeper, with)
    }

    /// Has it try again what is due.
    pub(super) fn keep_again(&mut self, behind_commit: bool) {
        // A file that takes nothing is probed, and they are kept behind that.
        if self.keeper.is_empty() || !self.handle.writable() {
            return;
        }
        let (keeper, mut with) = self.keeping();
        keeper.keep_again(behind_commit, &mut with);
    }
}

/// At most so many of those that wait. Which are tried first is left to chance: where there are more than are come to, the same
/// ones would never be.
fn some_of(waiting: &HashMap<Uuid, Broadcast>, most: usize) -> Vec<Broadcast> {
    if waiting.is_empty() {
        return Vec::new();
    }
    let first = rand::random_range(0..waiting.len());
    let some = waiting.values().cycle().skip(first).take(waiting.len().min(most));
    some.cloned().collect()
}
