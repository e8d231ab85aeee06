//! Pages of a room's events, from any place on, in either direction.
//!
//! A page is put together numbering by numbering, so that one index serves it and its cost does not grow with its depth or with
//! the length of the log. Of each numbering the first event in question is read, and then the numberings in the order of those, each
//! no further than the page can reach by what was read before: where one goes on behind the other, as they most often do, a page is
//! read from one or two of them, however many a room has.
//!
//! The order is that of seqs; where two numberings have the same seq, as after a crash with `log.durability = "os"`, the older event
//! comes first and both are on the same page.

use std::{cmp::Reverse, collections::BTreeMap};

use chatting_actors::types::{Epoch, Event, PresenterIdx, Seq, UserIdx};
use uuid::Uuid;

use super::{
    History, HistoryError,
    reading::Reading,
    spooled::{self, Window},
    text::Folded,
};
use crate::store::{Logged, Scan};

/// From where on, and in which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The newest events before this seq.
    Before(Seq),
    /// The oldest events after this seq.
    After(Seq),
}

/// Which of a room's events are wanted.
#[derive(Clone, Debug)]
pub struct Query {
    /// The room.
    pub presenter: PresenterIdx,
    /// From where on.
    pub start: Start,
    /// Of this user only.
    pub user: Option<UserIdx>,
    /// With this in their text only.
    pub text: Option<Folded>,
    /// Sent at this time or later, in milliseconds since 1970.
    pub from_ms: Option<i64>,
    /// Sent at this time or earlier.
    pub to_ms: Option<i64>,
    /// Whether those that were deleted count where a user or a text is asked for; without either they always do, as places.
    pub deleted_too: bool,
    /// At most so many on a page.
    pub limit: usize,
    /// At most so many are looked at for a page, where a text is searched. A long message counts more than once.
    pub scan_limit: usize,
}

/// A page of events.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In the order of seqs, whichever way it was read.
    pub events: Vec<Logged>,
    /// Where the next page in the same direction begins; `None` when there is no more.
    pub next: Option<Seq>,
}

/// The events of one numbering that are in question: after the first of these, up to the second.
struct Bounds {
    epoch: Epoch,
    after: Seq,
    through: Seq,
}

/// What a page is put together of.
struct Gathered<'a> {
    query: &'a Query,
    /// More than so many cannot be on the page, but for those with the same number.
    rows: usize,
    all: BTreeMap<(Seq, Uuid), Logged>,
    /// How far every part of what was read reaches for certain, in the asked direction. Nothing beyond that is kept.
    reaches: Option<Seq>,
}

impl<'a> Gathered<'a> {
    fn new(query: &'a Query, rows: usize) -> Self {
        Self {
            query,
            rows,
            all: BTreeMap::new(),
            reaches: None,
        }
    }

    /// Nothing is known of what is beyond this.
    fn reach(&mut self, seq: Seq) {
        let query = self.query;
        if self.reaches.is_none_or(|nearest| query.is_beyond(nearest, seq)) {
            self.reaches = Some(seq);
            self.all.retain(|(at, _), _| !query.is_beyond(*at, seq));
        }
    }

    fn add(&mut self, found: Vec<Logged>) {
        let (query, reaches) = (self.query, self.reaches);
        let within = |logged: &Logged| reaches.is_none_or(|reaches| !query.is_beyond(logged.event.seq, reaches));
        let found = found.into_iter().filter(within);
        self.all
            .extend(found.map(|logged| ((logged.event.seq, logged.event.id), logged)));
        if self.all.len() > self.rows {
            let last = self.rows.saturating_sub(1);
            let mut places = self.all.keys().map(|(seq, _)| *seq);
            let (place, furthest) = match query.start {
                Start::Before(_) => (places.nth_back(last), places.next()),
                Start::After(_) => (places.nth(last), places.next_back()),
            };
            // Where all the rest has the same number, nothing is left out.
            if let (Some(place), Some(furthest)) = (place, furthest)
                && query.is_beyond(furthest, place)
            {
                self.reach(place);
            }
        }
    }

    /// What is still in question of this; `None`: nothing is.
    fn narrowed(&self, mut bounds: Bounds) -> Option<Bounds> {
        if let Some(reaches) = self.reaches {
            match self.query.start {
                Start::Before(_) => bounds.after = bounds.after.max(Seq(reaches.0.saturating_sub(1))),
                Start::After(_) => bounds.through = bounds.through.min(reaches),
            }
        }
        (bounds.after < bounds.through).then_some(bounds)
    }
}

/// Rows that are read from the store at once where a text is searched.
const SEARCH_ROWS: usize = 1000;

/// Characters for which a message counts once towards `history.scan_limit`, where a text is searched: one that is longer counts once
/// for each so many that it begins.
const LOOKED_CHARS: usize = 200;

/// What its caller may not see does not count towards `history.scan_limit`, so a search may read more rows than that: at most so many
/// times `history.scan_limit`, or so many times [`SEARCH_ROWS`] where that is more.
const MOST_HIDDEN: usize = 50;

impl Query {
    fn newest_first(&self) -> bool {
        matches!(self.start, Start::Before(_))
    }

    fn wants(&self, logged: &Logged) -> bool {
        let event = &logged.event;
        let sought = self.user.is_some() || self.text.is_some();
        let of_user = self
            .user
            .is_none_or(|user| event.act.is_none() && event.chat.user_idx == user);
        let in_time = self.from_ms.is_none_or(|from| event.sent_at_ms >= from)
            && self.to_ms.is_none_or(|to| event.sent_at_ms <= to);
        let shown = !sought || self.deleted_too || logged.deleted.is_none();
        of_user && in_time && shown
    }

    /// What lies on the asked side of its start: after the first of these, up to the second.
    fn side(&self) -> (Seq, Seq) {
        match self.start {
            Start::Before(seq) => (Seq(0), Seq(seq.0.saturating_sub(1))),
            Start::After(seq) => (seq, Seq(u64::MAX)),
        }
    }

    /// Makes a page of no more than `limit` events, which are in the asked direction. Returns where it ends, if some were left out.
    fn cut(&self, events: &mut Vec<Logged>, limit: usize) -> Option<Seq> {
        // Events with the same number stay together.
        let last = events.get(limit.saturating_sub(1))?.event.seq;
        let end = events.partition_point(|logged| !self.is_beyond(logged.event.seq, last));
        let more = end < events.len();
        events.truncate(end);
        more.then_some(last)
    }

    /// Whether `seq` is beyond `place` in the asked direction.
    fn is_beyond(&self, seq: Seq, place: Seq) -> bool {
        if self.newest_first() { seq < place } else { seq > place }
    }
}

/// What a search has found, and how far it has looked.
struct Looking {
    text: Option<Folded>,
    /// Whether what it may not tell of is left out before it gets here.
    hides: bool,
    limit: usize,
    scan_limit: usize,
    /// What counts against `scan_limit`.
    looked: usize,
    /// In the asked direction.
    found: Vec<Logged>,
    /// Where a page may end: at the last match, or where something is hidden at the last event that is not.
    last: Option<Seq>,
}

impl Looking {
    fn new(query: &Query) -> Self {
        let hides = query.user.is_some() && !query.deleted_too;
        // One more, which tells whether there is a next page.
        let one_more = usize::from(hides && query.text.is_none());
        Self {
            text: query.text.clone(),
            hides,
            limit: query.limit.saturating_add(one_more),
            scan_limit: query.scan_limit,
            looked: 0,
            found: Vec::new(),
            last: None,
        }
    }

    fn is_done(&self) -> bool {
        self.looked >= self.scan_limit || self.found.len() >= self.limit
    }

    fn is_match(&self, event: &Event) -> bool {
        let has = |text: &Folded| event.act.is_none() && text.is_in(event.chat.text.as_str());
        self.text.as_ref().is_none_or(has)
    }

    /// How often an event counts as looked at: a longer text takes longer.
    fn weight(&self, event: &Event) -> usize {
        let text = self.text.as_ref().map_or("", |_| event.chat.text.as_str());
        text.chars().count().div_ceil(LOOKED_CHARS).max(1)
    }

    /// Goes on with events in the asked direction, which took so many rows to read. Returns where it ended, if it did so before the
    /// last one.
    fn at(&mut self, events: Vec<Logged>, rows: usize) -> Option<Seq> {
        let left = self.scan_limit.saturating_sub(self.looked);
        let (mut here, mut before) = (0, None);
        for logged in events {
            let seq = logged.event.seq;
            // Events with the same number stay together.
            if !self.hides && here >= left && before.is_some_and(|before| before != seq) {
                self.looked = self.scan_limit;
                return before;
            }
            let may_end = self.is_done() && self.last.is_some_and(|last| last != seq);
            if may_end && self.hides {
                return self.last;
            }
            let is_match = self.is_match(&logged.event);
            if may_end && is_match {
                return self.last;
            }
            let weight = self.weight(&logged.event);
            (here, before) = (here + weight, Some(seq));
            if self.hides {
                self.looked += weight;
            }
            if self.hides || is_match {
                self.last = Some(seq);
            }
            if is_match {
                self.found.push(logged);
            }
        }
        if !self.hides {
            // Rows that are not wanted for another reason count, too.
            self.looked += here.max(rows);
        }
        None
    }
}

impl History {
    /// One page. Errors: the log cannot be read now, or too much is read.
    pub async fn page(&self, query: &Query) -> Result<Page, HistoryError> {
        let reading = self.turn().await?;
        reading.unless_away(query.presenter).await?;
        reading.page(query).await
    }

    /// One event of a room by its id; `None` when there is none.
    pub async fn find(&self, presenter: PresenterIdx, id: Uuid) -> Result<Option<Logged>, HistoryError> {
        self.turn().await?.find(presenter, id).await
    }
}

impl Reading {
    async fn page(&self, query: &Query) -> Result<Page, HistoryError> {
        // Where a page of one user ends must not tell a viewer that a deleted message there was theirs.
        if query.text.is_some() || (query.user.is_some() && !query.deleted_too) {
            self.search(query).await
        } else {
            self.read_page(query, query.limit).await
        }
    }

    /// The numbers in question: those on the asked side and of the asked times, which grow together within one numbering.
    async fn within_times(&self, query: &Query, epoch: Epoch) -> Result<Bounds, HistoryError> {
        let presenter = query.presenter;
        let (after, through) = query.side();
        let mut bounds = Bounds { epoch, after, through };
        if let Some(from_ms) = query.from_ms {
            let first = self.first_stored(presenter, &bounds.epoch, from_ms).await?.seq;
            bounds.after = bounds.after.max(Seq(first.0.saturating_sub(1)));
        }
        if let Some(to_ms) = query.to_ms {
            let beyond = to_ms.saturating_add(1);
            let beyond = self.first_stored(presenter, &bounds.epoch, beyond).await?.seq;
            bounds.through = bounds.through.min(Seq(beyond.0.saturating_sub(1)));
        }
        Ok(bounds)
    }

    /// What is in question of each of these numberings that has some of it, those first that begin first in the asked direction: what
    /// is read of one tells how little of the next ones can be on the page.
    async fn in_order(&self, query: &Query, epochs: Vec<Epoch>) -> Result<Vec<Bounds>, HistoryError> {
        let one = epochs.len() == 1;
        let mut found = Vec::with_capacity(epochs.len());
        for epoch in epochs {
            let mut bounds = self.within_times(query, epoch).await?;
            if bounds.after >= bounds.through {
                continue;
            }
            if !one {
                let Some(first) = self.scan(query, &bounds, 1).await?.pop() else {
                    continue;
                };
                let seq = first.event.seq;
                match query.start {
                    Start::Before(_) => bounds.through = seq,
                    Start::After(_) => bounds.after = Seq(seq.0.saturating_sub(1)),
                }
            }
            found.push(bounds);
        }
        match query.start {
            Start::Before(_) => found.sort_by_key(|bounds| Reverse(bounds.through)),
            Start::After(_) => found.sort_by_key(|bounds| bounds.after),
        }
        Ok(found)
    }

    /// What the store has within these bounds, in the asked direction.
    async fn scan(&self, query: &Query, bounds: &Bounds, limit: usize) -> Result<Vec<Logged>, HistoryError> {
        let scan = Scan {
            presenter: query.presenter,
            epoch: bounds.epoch.clone(),
            after: bounds.after,
            through: bounds.through,
            user: query.user,
            newest_first: query.newest_first(),
            limit,
        };
        self.on_store(move |store| store.scan(scan)).await
    }

    /// Up to `limit` events that the query wants, but for its text. One more is read, which tells whether there is a next page.
    async fn read_page(&self, query: &Query, limit: usize) -> Result<Page, HistoryError> {
        let rows = limit.saturating_add(1);
        let newest_first = query.newest_first();
        let side = query.side();
        let window = Window {
            presenter: query.presenter,
            epoch: None,
            after: side.0,
            through: side.1,
            user: query.user,
            from_ms: query.from_ms,
            to_ms: query.to_ms,
            newest_first,
            limit: rows,
        };
        let spooled = self.on_spool(move |path| spooled::of_room(path, &window)).await?;
        let mut gathered = Gathered::new(query, rows);
        if let Some(seq) = spooled.reach {
            gathered.reach(seq);
        }
        gathered.add(spooled.events.into_iter().map(Logged::unmarked).collect());
        let presenter = query.presenter;
        let epochs = self.on_store(move |store| store.epochs(presenter)).await?;
        for bounds in self.in_order(query, epochs).await? {
            let Some(bounds) = gathered.narrowed(bounds) else {
                continue;
            };
            let found = self.scan(query, &bounds, rows).await?;
            if let Some(last) = found.last().filter(|_| found.len() >= rows) {
                gathered.reach(last.event.seq);
            }
            // What is in both is told as the store has it, which knows what was deleted.
            gathered.add(found);
        }
        let Gathered { all, reaches, .. } = gathered;
        let mut wanted = self.covered(all.into_values().collect(), spooled.acts).await?;
        wanted.retain(|logged| query.wants(logged));
        if newest_first {
            wanted.sort_by_key(|logged| Reverse((logged.event.seq, logged.event.id)));
        }
        let next = query.cut(&mut wanted, limit).or(reaches);
        if newest_first {
            wanted.reverse();
        }
        Ok(Page { events: wanted, next })
    }

    /// Looks through at most `scan_limit` events for those that are wanted, and tells where to go on.
    ///
    /// What a viewer may not see of a user does not count as looked at, and no page ends at it: where a page ends, and whether
    /// there is another, follows from what the viewer sees. Too much of it is an error, and not the end of a page.
    async fn search(&self, query: &Query) -> Result<Page, HistoryError> {
        let limit = query.limit;
        let mut query = query.clone();
        let mut looking = Looking::new(&query);
        let hides = looking.hides;
        let mut rows = query.text.as_ref().map_or(looking.limit, |_| SEARCH_ROWS);
        let (mut next, mut read) = (None, 0_usize);
        while !looking.is_done() {
            if read >= query.scan_limit.max(SEARCH_ROWS).saturating_mul(MOST_HIDDEN) {
                return Err(HistoryError::TooMuch);
            }
            read += rows;
            if !hides {
                rows = rows.min(query.scan_limit - looking.looked);
            }
            let mut page = self.read_page(&query, rows).await?;
            if query.newest_first() {
                page.events.reverse();
            }
            let ended;
            if query.text.is_some() {
                // Comparing texts takes the CPU for long, and whoever is served on this thread would wait.
                let look = move || {
                    let ended = looking.at(page.events, rows);
                    (looking, ended)
                };
                (looking, ended) = self.blocking(look).await?;
            } else {
                ended = looking.at(page.events, rows);
            }
            next = ended.or(page.next);
            let Some(place) = next else {
                break;
            };
            query.start = match query.start {
                Start::Before(_) => Start::Before(place),
                Start::After(_) => Start::After(place),
            };
            rows = looking.limit.max(SEARCH_ROWS);
        }
        if hides {
            next = looking.last.filter(|_| looking.is_done());
        } else if looking.found.len() >= limit {
            next = next.and(looking.last);
        }
        let mut found = looking.found;
        next = query.cut(&mut found, limit).or(next);
        if query.newest_first() {
            found.reverse();
        }
        Ok(Page { events: found, next })
    }

    async fn find(&self, presenter: PresenterIdx, id: Uuid) -> Result<Option<Logged>, HistoryError> {
        let (event, acts) = self.on_spool(move |path| spooled::one(path, presenter, id)).await?;
        let found = match event {
            Some(event) => Some(Logged::unmarked(event)),
            None => self.on_store(move |store| store.find(id)).await?,
        };
        let found = found.filter(|logged| logged.event.presenter_idx == presenter);
        Ok(found.map(|logged| logged.covered_by(&acts)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chatting_actors::{
        clock::EventClock,
        seams::LogStore,
        types::{ChatMessage, MessageText, Nickname, Role},
    };

    use super::*;
    use crate::store::{Durability, SpoolSettings, SqliteSpool, SqliteStore, history::text::FOLDED};

    #[tokio::test]
    async fn texts_are_not_compared_on_the_thread_that_serves_who_asks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.db");
        let (spool, info) = SqliteSpool::open(SpoolSettings {
            path: path.clone(),
            durability: Durability::Os,
            max_bytes: None,
            embedded: true,
        })
        .unwrap();
        let store = SqliteStore::new(spool.connection());
        store.prepare().await.unwrap();
        let mut clock = EventClock::after(0);
        let (sent_at_ms, id) = clock.stamp();
        let said = Event {
            id,
            presenter_idx: PresenterIdx::new(1).unwrap(),
            epoch: info.epoch,
            seq: Seq(1),
            sent_at_ms,
            room_idx: None,
            broadcast_id: None,
            chat: ChatMessage {
                user_idx: UserIdx::new(7).unwrap(),
                role: Role::Viewer,
                nickname: Nickname::new("kim", 64).unwrap(),
                text: MessageText::new("여러분 안녕하세요".into(), 2000).unwrap(),
            },
            act: None,
            keyed: None,
        };
        store.append(Arc::new(vec![Arc::new(said)])).await.unwrap();
        let history = History::new(path, Arc::new(store), 1);
        for (user, deleted_too) in [(None, true), (None, false), (UserIdx::new(7), false)] {
            let query = Query {
                presenter: PresenterIdx::new(1).unwrap(),
                start: Start::After(Seq(0)),
                user,
                text: Some(Folded::new("안녕")),
                from_ms: None,
                to_ms: None,
                deleted_too,
                limit: 10,
                scan_limit: 10,
            };
            let before = FOLDED.get();
            assert_eq!(history.page(&query).await.unwrap().events.len(), 1);
            assert_eq!(FOLDED.get(), before);
            assert_eq!(history.gate().depth(), 0);
        }
    }

    #[tokio::test]
    async fn while_the_store_is_away_no_spool_is_gone_through_for_a_page_that_needs_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name| dir.path().join(name);
        let open = |name| {
            let settings = SpoolSettings {
                path: path(name),
                durability: Durability::Os,
                max_bytes: None,
                embedded: true,
            };
            SqliteSpool::open(settings).unwrap().0
        };
        drop(open("spool/chat.db"));
        let store = SqliteStore::to_read(path("log.db"));
        let history = History::new(path("spool/chat.db"), Arc::new(store), 1);
        let query = Query {
            presenter: PresenterIdx::new(1).unwrap(),
            start: Start::After(Seq(0)),
            user: None,
            text: None,
            from_ms: None,
            to_ms: None,
            deleted_too: true,
            limit: 10,
            scan_limit: 10,
        };
        let page = async || history.page(&query).await.map_err(|error| error.to_string());
        let unanswered = page().await.unwrap_err();
        // Had it been looked into, it would be missed.
        std::fs::rename(path("spool"), path("elsewhere")).unwrap();
        assert_eq!(page().await.unwrap_err(), unanswered);
        let log = open("log.db");
        SqliteStore::new(log.connection()).prepare().await.unwrap();
        let missed = page().await.unwrap_err();
        assert!(missed.contains("the spool cannot be read"), "{missed}");
        std::fs::rename(path("elsewhere"), path("spool")).unwrap();
        assert!(page().await.unwrap().events.is_empty());
    }
}
