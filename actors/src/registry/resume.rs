//! Sessions that begin, and cursors that read the log because the ring no longer has what they lack.
//!
//! The registry never waits for a read (rule 6): it runs elsewhere and comes back as a message. At most
//! `session.resume_reads` are under way; the others wait in a queue with one place a session.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use actix::ArbiterHandle;

use super::{
    SessionRegistry,
    cursor::Phase,
    messages::RegistryMsg,
    room::{Numbering, Opened},
    subscriber::{End, Welcome},
};
use crate::{
    checker::Why,
    clock::system_ms,
    mailbox::Mailbox,
    metrics::Metrics,
    seams::{LogPage, LogRange, LogReader},
    seldom::Seldom,
    session::Flow,
    supervise::catch_future,
    types::{PresenterIdx, Seq},
};

/// Where the log is read, and on whose thread. It outlives the registry, and so do the readings that are under way.
#[derive(Clone)]
pub struct ReadLog {
    reader: Arc<dyn LogReader>,
    arbiter: ArbiterHandle,
    under_way: Arc<AtomicUsize>,
    /// The next reading is to panic.
    fails: Arc<AtomicBool>,
    lacking: Arc<Lacking>,
}

/// When it was last told that the log lacks something: every session that seeks it there asks again and again.
#[derive(Default)]
struct Lacking {
    unread: Seldom,
    hole: Seldom,
}

impl ReadLog {
    /// `reader` reads; its futures run on `arbiter`, which is not the registry's.
    pub fn new(reader: Arc<dyn LogReader>, arbiter: ArbiterHandle) -> Self {
        Self {
            reader,
            arbiter,
            under_way: Arc::default(),
            fails: Arc::default(),
            lacking: Arc::default(),
        }
    }

    /// A planned failure point, for tests of supervision: the next reading panics.
    pub fn panic_next(&self) {
        self.fails.store(true, Relaxed);
    }

    /// One of the `most` readings at once, if one is left.
    fn turn(&self, most: usize) -> Option<ReadTurn> {
        let taken = self
            .under_way
            .fetch_update(Relaxed, Relaxed, |used| (used < most).then_some(used + 1));
        taken.ok().map(|_| ReadTurn(Arc::clone(&self.under_way)))
    }
}

/// One of the readings at once; given back when the registry has seen its page.
pub(crate) struct ReadTurn(Arc<AtomicUsize>);

impl Drop for ReadTurn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A page of the log, on its way to the session that lacks it.
pub(crate) struct ReadPage {
    pub presenter: PresenterIdx,
    /// The reading of the room that lacks it: a session that begins anew on its socket is not sent what was read for it before.
    pub flow: Arc<Flow>,
    /// What was asked for: events after this one,
    pub after: Seq,
    /// up to and including this one.
    pub through: Seq,
    /// What there is, as far as the log could be read.
    pub page: LogPage,
    pub turn: ReadTurn,
}

/// Brings the page to the registry, however the reading ends: one that panicked, or never began, could not read the log.
struct Bring {
    mailbox: Mailbox<RegistryMsg>,
    metrics: Metrics,
    lacking: Arc<Lacking>,
    page: Option<ReadPage>,
}

impl Drop for Bring {
    fn drop(&mut self) {
        if let Some(page) = self.page.take() {
            let outcome = match &page.page.failed {
                None => "ok",
                Some(error) => {
                    if let Some(more) = self.lacking.unread.due(Instant::now()) {
                        log::warn!(
                            "resume: presenter {}: the log cannot be read: {error}{more}",
                            page.presenter
                        );
                    }
                    "error"
                }
            };
            self.metrics.log_reads.inc(outcome);
            self.mailbox.push(RegistryMsg::Page(page));
        }
    }
}

/// How the log is read, and who waits for a turn to have it read.
pub(super) struct Reads {
    log: ReadLog,
    /// Readings of rooms that wait for their turn, in the order they asked.
    waiting: VecDeque<(PresenterIdx, Arc<Flow>)>,
}

impl Reads {
    pub fn new(log: ReadLog) -> Self {
        Self {
            log,
            waiting: VecDeque::new(),
        }
    }
}

/// A page of nothing, because nothing could be read.
fn failed(why: String) -> LogPage {
    LogPage {
        failed: Some(why),
        ..LogPage::default()
    }
}

impl SessionRegistry {
    /// Lets the attached session read, if the room's numbering is known; asks for it otherwise.
    pub(super) fn open(&mut self, presenter: PresenterIdx, now: Instant) {
        let Some(room) = self.rooms.get_mut(&presenter) else {
            return;
        };
        if room.numbering == Numbering::Unknown {
            return room.ask_numbering(&self.writer, presenter);
        }
        match room.open(&self.epoch, &self.config, now) {
            Opened::NotYet => {}
            Opened::Unheard => room.ask(&self.checker, presenter, Why::Opening),
            Opened::Mark => {
                let place = room.place_now(presenter, now, system_ms());
                self.writer.mark_place(place);
            }
            Opened::Begun => {
                self.welcome(presenter);
                self.pump(presenter, now);
            }
            Opened::Refused(why) => {
                if let Some(refused) = room.turn_away() {
                    self.end(refused.session, End::BadFrame(why));
                }
            }
        }
    }

    /// The spool has remembered, or has not, that a legacy session reads.
    pub(super) fn marked(&mut self, presenter: PresenterIdx, kept: bool, now: Instant) {
        if let Some(room) = self.rooms.get_mut(&presenter) {
            room.marked(kept);
            if kept {
                self.open(presenter, now);
            }
        }
    }

    /// Tells the session where it goes on, once that is known.
    fn welcome(&self, presenter: PresenterIdx) {
        let Some((room, cursor)) = self
            .rooms
            .get(&presenter)
            .and_then(|room| Some((room, room.cursor.as_ref()?)))
        else {
            return;
        };
        if !cursor.reading.is_v1() || cursor.phase != Phase::Live {
            return;
        }
        let Some((resumed_from, gap)) = room.beginning() else {
            return;
        };
        let last_seq = room.committed().unwrap_or_default();
        let outcome = match gap {
            Some(_) => "gap",
            None if resumed_from > last_seq => "up_to_date",
            None => "resumed",
        };
        self.metrics.resumes.inc(outcome);
        cursor.subscriber.welcome(Welcome {
            presenter,
            epoch: self.epoch.clone(),
            last_seq,
            resumed_from,
            gap,
        });
    }

    /// Has the log read for a session that wants a page of it (`Room::wants_page`).
    pub(super) fn read_on(&mut self, presenter: PresenterIdx) {
        if let Some(cursor) = self.rooms.get_mut(&presenter).and_then(|room| room.cursor.as_mut()) {
            cursor.queue();
            self.reads.waiting.push_back((presenter, Arc::clone(&cursor.flow)));
            if self.reads.waiting.len() > self.sessions.len() {
                // One place a session: those of readings that have ended are given back.
                let rooms = &self.rooms;
                self.reads
                    .waiting
                    .retain(|(presenter, flow)| rooms.get(presenter).is_some_and(|room| room.is_read_through(flow)));
            }
            self.begin_reads();
            if !self.reads.waiting.is_empty() {
                self.queues.read_waits.inc();
            }
        }
    }

    fn begin_reads(&mut self) {
        while !self.reads.waiting.is_empty()
            && let Some(turn) = self.reads.log.turn(self.config.resume_reads)
            && let Some((presenter, flow)) = self.reads.waiting.pop_front()
        {
            let room = self.rooms.get_mut(&presenter);
            let Some(room) = room.filter(|room| room.is_read_through(&flow)) else {
                continue;
            };
            let lacks = room.page_range(&self.config);
            let Some(cursor) = &mut room.cursor else {
                continue;
            };
            let spool_from = cursor.take_turn(lacks.is_some());
            let limit = cursor.credit(&self.config);
            let Some((after, through)) = lacks else {
                continue;
            };
            let range = LogRange {
                presenter,
                epoch: self.epoch.clone(),
                after,
                through,
                limit,
            };
            let (reader, fails) = (Arc::clone(&self.reads.log.reader), Arc::clone(&self.reads.log.fails));
            let failures = self.metrics.restarts("reader");
            let mut bring = Bring {
                mailbox: self.handle.mailbox.clone(),
                metrics: self.metrics.clone(),
                lacking: Arc::clone(&self.reads.log.lacking),
                page: Some(ReadPage {
                    presenter,
                    flow,
                    after,
                    through,
                    page: failed("its reader is gone".into()),
                    turn,
                }),
            };
            self.reads.log.arbiter.spawn(async move {
                let read = catch_future("reader", &failures, async move {
                    assert!(!fails.swap(false, Relaxed), "planned");
                    reader.read(range, spool_from).await
                });
                // One that panicked leaves the page of nothing; its session asks again.
                if let (Some(page), Some(brought)) = (read.await, &mut bring.page) {
                    brought.page = page.unwrap_or_else(|error| failed(error.0));
                }
            });
        }
        let waiting = i64::try_from(self.reads.waiting.len()).unwrap_or(i64::MAX);
        self.metrics.resumes_waiting.set(waiting);
        self.queues.reads.holds(self.reads.log.under_way.load(Relaxed));
    }

    /// A page of the log is there.
    pub(super) fn page(&mut self, read: ReadPage, now: Instant) {
        let ReadPage {
            presenter,
            flow,
            after,
            through,
            page,
            turn,
        } = read;
        drop(turn);
        let room = self.rooms.get_mut(&presenter);
        if let Some(room) = room.filter(|room| room.is_read_through(&flow))
            && !room.discard_page_if_unnumbered()
            && let Some(cursor) = &room.cursor
        {
            let (session, v1) = (cursor.session, cursor.reading.is_v1());
            let seeking = cursor.phase == Phase::Seeking;
            let hole = room.take_page(after, through, page, &self.config, now);
            if let Some(through) = hole {
                if let Some(more) = self.reads.log.lacking.hole.due(now) {
                    let from = after.next();
                    log::warn!("resume: presenter {presenter}: the log has nothing of {from} to {through}{more}");
                }
                self.metrics.log_reads.inc("hole");
            }
            if hole.is_some() && v1 && !seeking {
                // Only a `welcome` can tell of a gap, so the session begins anew.
                self.detach(session, presenter, now);
                self.end(session, End::Restarted);
            } else {
                if seeking {
                    self.welcome(presenter);
                }
                self.pump(presenter, now);
            }
        }
        self.begin_reads();
    }
}
