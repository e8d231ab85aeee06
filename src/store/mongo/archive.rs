//! What the log in MongoDB can be asked.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chatting_actors::{
    broadcast::Broadcast,
    seams::{NotPut, StoreError},
    seldom::Seldom,
    types::{Epoch, Event, PresenterIdx, Seq, UserIdx},
};
use futures_util::{
    TryStreamExt,
    future::{BoxFuture, FutureExt},
};
use mongodb::{
    Collection, IndexModel,
    bson::{Bson, DateTime, Document, RawArrayBuf, RawDocumentBuf, doc, rawdoc},
    error::{Error, ErrorKind, RETRYABLE_WRITE_ERROR},
    options::{Hint, IndexOptions},
};
use uuid::Uuid;

use super::{
    Mongo, MongoStore, SEQ_INDEX,
    client::wtimeout,
    document::{broadcast, broadcast_fields, bson_uuid, document_id, event, logged},
    failed,
    insert::{COMMAND_BYTES, DOCUMENT_FAULTS, DUPLICATE_KEY, is_of_id},
    unreadable,
};
use crate::store::{Archive, Deleted, First, Listed, Logged, Scan, StoredBroadcast, archive::Search};

pub(super) const USER_INDEX: &str = "user_presenter_epoch_seq";
const ACTS_INDEX: &str = "presenter_act";
const BROADCASTS: &str = "broadcasts";
const BROADCASTS_INDEX: &str = "presenter_id";
const OPEN_INDEX: &str = "open";

/// Updates in one command.
const UPDATES_MAX: usize = 500;

/// The indexes of the log that reading it needs.
pub(super) fn log_indexes() -> [IndexModel; 2] {
    let by_user = doc! { "user_idx": 1, "presenter_idx": 1, "epoch": 1, "seq": 1 };
    let acts = doc! { "presenter_idx": 1, "_id": 1 };
    [
        index(USER_INDEX, by_user, doc! { "seq": { "$exists": true } }),
        index(ACTS_INDEX, acts, doc! { "act": { "$exists": true } }),
    ]
}

/// The same of the broadcasts.
pub(super) fn record_indexes() -> [IndexModel; 2] {
    let by_room = IndexOptions::builder().name(BROADCASTS_INDEX.to_owned()).build();
    let by_room = IndexModel::builder()
        .keys(doc! { "presenter_idx": 1, "_id": -1 })
        .options(by_room)
        .build();
    [by_room, index(OPEN_INDEX, doc! { "ended_at": 1 }, is_open())]
}

/// An index of the documents that this filter takes.
fn index(name: &str, keys: Document, of: Document) -> IndexModel {
    let options = IndexOptions::builder()
        .name(name.to_owned())
        .partial_filter_expression(of)
        .build();
    IndexModel::builder().keys(keys).options(options).build()
}

impl Mongo {
    pub(super) fn records(&self) -> Collection<Document> {
        self.database.collection(BROADCASTS)
    }

    pub(super) async fn epochs(&self, presenter: PresenterIdx) -> Result<Vec<Epoch>, StoreError> {
        // One step of the index an epoch, however long the log is.
        let mut found = Vec::new();
        let mut last = String::new();
        loop {
            let next = doc! { "presenter_idx": presenter.get(), "epoch": { "$gt": &last }, "seq": { "$gte": 0 } };
            let next = self
                .log
                .find_one(next)
                .sort(doc! { "epoch": 1, "seq": 1 })
                .hint(Hint::Name(SEQ_INDEX.into()));
            let Some(next) = self.timed(next.into_future()).await.map_err(failed)? else {
                return Ok(found);
            };
            last = next.get_str("epoch").map_err(unreadable)?.to_owned();
            found.push(Epoch(last.as_str().into()));
        }
    }

    pub(super) async fn first_from(
        &self,
        presenter: PresenterIdx,
        epoch: &Epoch,
        at_ms: i64,
    ) -> Result<First, StoreError> {
        let last = self.next_of(presenter, epoch, Seq(0), -1).await?;
        let mut search = Search::new(last, at_ms);
        while let Some(after) = search.question() {
            search.answer(self.next_of(presenter, epoch, after, 1).await?);
        }
        Ok(search.found())
    }

    /// The first event after a number, or the last (`order` -1), as number and time.
    async fn next_of(
        &self,
        presenter: PresenterIdx,
        epoch: &Epoch,
        after: Seq,
        order: i32,
    ) -> Result<Option<(Seq, i64)>, StoreError> {
        let seq = doc! { "$gt": after.0.cast_signed() };
        let which = doc! { "presenter_idx": presenter.get(), "epoch": &*epoch.0, "seq": seq };
        let one = self
            .log
            .find_one(which)
            .sort(doc! { "seq": order })
            .hint(Hint::Name(SEQ_INDEX.into()))
            .projection(doc! { "seq": 1, "sent_at": 1 });
        let Some(found) = self.timed(one.into_future()).await.map_err(failed)? else {
            return Ok(None);
        };
        let seq = found.get_i64("seq").map_err(unreadable)?.cast_unsigned();
        let sent_at = found.get_datetime("sent_at").map_err(unreadable)?;
        Ok(Some((Seq(seq), sent_at.timestamp_millis())))
    }

    async fn scan(&self, scan: Scan) -> Result<Vec<Logged>, StoreError> {
        let mut filter = doc! {
            "presenter_idx": scan.presenter.get(),
            "epoch": &*scan.epoch.0,
            "seq": { "$gt": scan.after.0.cast_signed(), "$lte": i64::try_from(scan.through.0).unwrap_or(i64::MAX) },
        };
        if let Some(user) = scan.user.map(UserIdx::get) {
            filter.insert("user_idx", user);
        }
        let found = self
            .log
            .find(filter)
            .sort(doc! { "seq": if scan.newest_first { -1 } else { 1 } })
            .limit(i64::try_from(scan.limit).unwrap_or(i64::MAX))
            .hint(Hint::Name(match scan.user {
                Some(_) => USER_INDEX.into(),
                None => SEQ_INDEX.into(),
            }));
        let documents: Vec<RawDocumentBuf> = self
            .timed(async { found.await?.try_collect().await })
            .await
            .map_err(failed)?;
        documents
            .iter()
            .map(|found| logged(found).map_err(StoreError))
            .collect()
    }

    async fn acts(&self, rooms: &[PresenterIdx], after: Uuid, limit: usize) -> Result<Vec<Event>, StoreError> {
        let rooms: Vec<i64> = rooms.iter().map(|room| room.get()).collect();
        let which = doc! {
            "presenter_idx": { "$in": rooms },
            "_id": { "$gt": bson_uuid(after) },
            "act": { "$exists": true },
        };
        let found = self
            .log
            .find(which)
            .sort(doc! { "_id": 1 })
            .batch_size(u32::try_from(limit).unwrap_or(u32::MAX))
            .hint(Hint::Name(ACTS_INDEX.into()));
        let read = async {
            let (mut found, mut acts) = (found.await?, Vec::new());
            while acts.len() < limit
                && let Some(document) = found.try_next().await?
            {
                acts.extend(readable_act(&document));
            }
            Ok(acts)
        };
        self.timed(read).await.map_err(failed)
    }

    async fn find(&self, id: Uuid) -> Result<Option<Logged>, StoreError> {
        // The old server's documents have no `seq`.
        let one = self
            .log
            .find_one(doc! { "_id": bson_uuid(id), "seq": { "$exists": true } });
        let found = self.timed(one.into_future()).await.map_err(failed)?;
        found.map(|found| logged(&found).map_err(StoreError)).transpose()
    }

    /// Many in one command: when a server starts over with ten thousand rooms, all of them change at once.
    pub(super) async fn put_broadcasts(&self, broadcasts: &[Broadcast]) -> Result<Vec<NotPut>, StoreError> {
        let (mut not_put, mut from) = (Vec::new(), 0);
        let mut updates = Vec::new();
        let mut bytes = 0;
        for (index, broadcast) in broadcasts.iter().enumerate() {
            let which = doc! { "_id": bson_uuid(broadcast.id), "version": { "$lt": broadcast.version.cast_signed() } };
            let update = doc! { "q": which, "u": { "$set": broadcast_fields(broadcast) }, "upsert": true };
            let update = RawDocumentBuf::try_from(&update).map_err(|error| StoreError(error.to_string()))?;
            let size = update.as_bytes().len();
            if !updates.is_empty() && (bytes + size > COMMAND_BYTES || updates.len() == UPDATES_MAX) {
                self.put(std::mem::take(&mut updates), from, &mut not_put).await?;
                (bytes, from) = (0, index);
            }
            bytes += size;
            updates.push(update);
        }
        if !updates.is_empty() {
            self.put(updates, from, &mut not_put).await?;
        }
        Ok(not_put)
    }

    /// One command; what it did not take is told in `not_put`, counted from `from`.
    async fn put(
        &self,
        updates: Vec<RawDocumentBuf>,
        from: usize,
        not_put: &mut Vec<NotPut>,
    ) -> Result<(), StoreError> {
        let command = put_command(updates, self.write_timeout);
        // Once more, as the driver does for updates of its own: the connection may be one of a mongod that started anew.
        let again = command.clone();
        let answer = match self.timed(self.database.run_raw_command(command).into_future()).await {
            Err(error) if is_passing(&error) => self.timed(self.database.run_raw_command(again).into_future()).await,
            answered => answered,
        };
        let answer = answer.map_err(failed)?;
        if let Ok(error) = answer.get_document("writeConcernError") {
            return Err(StoreError(error.to_string()));
        }
        let errors = answer.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
        for error in errors {
            let fields = error.as_document();
            let code = fields.and_then(|error| error.get_i32("code").ok());
            let index = fields.and_then(|error| usize::try_from(error.get_i32("index").ok()?).ok());
            let (Some(code), Some(index)) = (code, index) else {
                return Err(StoreError(error.to_string()));
            };
            let duplicate = code == DUPLICATE_KEY;
            // There already, as new or newer.
            if !duplicate || !fields.is_some_and(is_of_id) {
                let message = fields.and_then(|error| error.get_str("errmsg").ok());
                not_put.push(NotPut {
                    index: from + index,
                    reason: format!("{code}: {}", message.unwrap_or_default()),
                    for_good: duplicate || DOCUMENT_FAULTS.contains(&code),
                });
            }
        }
        Ok(())
    }

    pub(super) async fn open_broadcasts(&self, but: &HashMap<Uuid, u64>) -> Result<Vec<Broadcast>, StoreError> {
        let records = self.records();
        // It is asked again and again, and most often all of them are known.
        let all = records.find(is_open()).hint(Hint::Name(OPEN_INDEX.into()));
        let all = all.projection(doc! { "_id": 1, "version": 1 });
        let all: Vec<Document> = self
            .timed(async { all.await?.try_collect().await })
            .await
            .map_err(failed)?;
        let is_new = |one: &Document| {
            let known = document_id(one).and_then(|id| but.get(&id));
            // What is wrong with one that cannot be read is told when it is read.
            known.is_none_or(|known| {
                one.get_i64("version")
                    .is_ok_and(|version| *known < version.cast_unsigned())
            })
        };
        let new = all.into_iter().filter(is_new);
        let new: Vec<Bson> = new.filter_map(|mut one| one.remove("_id")).collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let mut which = is_open();
        which.insert("_id", doc! { "$in": new });
        let found = records.find(which);
        let documents: Vec<Document> = self
            .timed(async { found.await?.try_collect().await })
            .await
            .map_err(failed)?;
        let open = documents.iter().filter_map(|one| Some(readable(one).ok()?.broadcast));
        let mut open: Vec<Broadcast> = open.collect();
        open.sort_by_key(|one| one.id);
        for one in &mut open {
            self.see_last_message(one).await?;
        }
        Ok(open)
    }

    pub(super) async fn open_broadcast(&self, presenter: PresenterIdx) -> Result<Option<Broadcast>, StoreError> {
        // It may be asked before the index is there, so none is named.
        let records = self.records();
        let newest = records
            .find_one(doc! { "presenter_idx": presenter.get() })
            .sort(doc! { "_id": -1 });
        let newest = self.timed(newest.into_future()).await.map_err(failed)?;
        let open = newest.and_then(|newest| Some(readable(&newest).ok()?.broadcast));
        let Some(mut open) = open.filter(|one| one.ended_at_ms.is_none()) else {
            return Ok(None);
        };
        self.see_last_message(&mut open).await?;
        Ok(Some(open))
    }

    /// A broadcast was live when its last message was sent, whatever its record says.
    async fn see_last_message(&self, broadcast: &mut Broadcast) -> Result<(), StoreError> {
        let Some(span) = broadcast.spans.last() else {
            return Ok(());
        };
        let of_span = doc! {
            "presenter_idx": broadcast.presenter.get(),
            "epoch": &*span.epoch.0,
            "seq": { "$gt": span.after.0.cast_signed() },
            "kind": "chat",
        };
        let last = self.log.find_one(of_span).sort(doc! { "seq": -1 });
        let Some(last) = self.timed(last.into_future()).await.map_err(failed)? else {
            return Ok(());
        };
        // Where it cannot be read, less is known.
        if let Ok(last) = event(&last)
            && last.broadcast_id == Some(broadcast.id)
        {
            broadcast.seen_at_ms = broadcast.seen_at_ms.max(last.sent_at_ms);
        }
        Ok(())
    }

    async fn broadcasts(
        &self,
        presenter: PresenterIdx,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Listed, StoreError> {
        let (mut listed, mut before) = (Listed::default(), bson_uuid(before.unwrap_or(Uuid::max())).into());
        loop {
            let wanted = limit - listed.broadcasts.len();
            let which = doc! { "presenter_idx": presenter.get(), "_id": { "$lt": before } };
            let records = self.records();
            let found = records
                .find(which)
                .sort(doc! { "_id": -1 })
                .limit(i64::try_from(wanted).unwrap_or(i64::MAX))
                .hint(Hint::Name(BROADCASTS_INDEX.into()));
            let documents: Vec<Document> = self
                .timed(async { found.await?.try_collect().await })
                .await
                .map_err(failed)?;
            for document in &documents {
                listed.add(readable(document));
            }
            // In place of one that cannot be read, another.
            match documents.last().and_then(|last| last.get("_id")) {
                Some(last) if documents.len() >= wanted && listed.broadcasts.len() < limit => before = last.clone(),
                _ => return Ok(listed),
            }
        }
    }

    async fn broadcast(&self, id: Uuid) -> Result<Option<StoredBroadcast>, StoreError> {
        let records = self.records();
        let one = records.find_one(doc! { "_id": bson_uuid(id) });
        let found = self.timed(one.into_future()).await.map_err(failed)?;
        found.map(|found| broadcast(&found).map_err(StoreError)).transpose()
    }
}

impl Mongo {
    async fn mark_deleted(&self, marks: Vec<(Uuid, Deleted)>) -> Result<(), StoreError> {
        // One act deletes many messages, so there are few updates for many marks.
        let mut by_act: HashMap<(i64, i64), Vec<Bson>> = HashMap::new();
        for (id, deleted) in marks {
            let ids = by_act.entry((deleted.at_ms, deleted.by.get())).or_default();
            ids.push(bson_uuid(id).into());
        }
        for ((at_ms, by), ids) in by_act {
            let which = doc! { "_id": { "$in": ids } };
            let deleted = doc! { "$set": { "deleted_at": DateTime::from_millis(at_ms), "deleted_by": by } };
            let update = self.log.update_many(which, deleted);
            self.timed(update.into_future()).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// The command that puts these durably, in no order; its answer is waited for so long.
fn put_command(updates: Vec<RawDocumentBuf>, patience: Duration) -> RawDocumentBuf {
    rawdoc! {
        "update": BROADCASTS,
        "ordered": false,
        "writeConcern": { "w": "majority", "j": true, "wtimeout": wtimeout(patience) },
        "updates": RawArrayBuf::from_iter(updates),
    }
}

/// Which broadcasts have not ended, as their index has them.
fn is_open() -> Document {
    doc! { "ended_at": { "$type": "null" } }
}

/// A broadcast. Of one that cannot be read, which is told of, the id: it must not cost the others.
fn readable(document: &Document) -> Result<StoredBroadcast, Uuid> {
    // Anyone who may read can ask as often as they like.
    static TOLD: Seldom = Seldom::new();
    broadcast(document).map_err(|error| {
        let id = document_id(document).unwrap_or_default();
        if let Some(more) = TOLD.due(Instant::now()) {
            log::error!("store: broadcast {id} cannot be read: {error}{more}");
        }
        id
    })
}

/// One that cannot be read, as of a version that knows more of them, is told of and left out: it must not cost the others.
fn readable_act(document: &RawDocumentBuf) -> Option<Event> {
    static TOLD: Seldom = Seldom::new();
    let read = event(document);
    if let Err(error) = &read
        && let Some(more) = TOLD.due(Instant::now())
    {
        log::error!("store: an act of moderation cannot be read, so what it deletes is not marked: {error}{more}");
    }
    read.ok()
}

/// An error of the connection, or one that MongoDB says passes.
fn is_passing(error: &Error) -> bool {
    let of_the_connection = matches!(
        error.kind.as_ref(),
        ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. }
    );
    of_the_connection || error.contains_label(RETRYABLE_WRITE_ERROR)
}

impl Archive for MongoStore {
    fn is_empty(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move { self.reach().await?.is_empty().await }.boxed()
    }

    fn epochs(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Vec<Epoch>, StoreError>> {
        async move { self.reach().await?.epochs(presenter).await }.boxed()
    }

    fn scan(&self, scan: Scan) -> BoxFuture<'_, Result<Vec<Logged>, StoreError>> {
        async move { self.reach().await?.scan(scan).await }.boxed()
    }

    fn first_from<'a>(
        &'a self,
        presenter: PresenterIdx,
        epoch: &'a Epoch,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<First, StoreError>> {
        async move { self.reach().await?.first_from(presenter, epoch, at_ms).await }.boxed()
    }

    fn acts(
        &self,
        rooms: Vec<PresenterIdx>,
        after: Uuid,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        async move { self.reach().await?.acts(&rooms, after, limit).await }.boxed()
    }

    fn find(&self, id: Uuid) -> BoxFuture<'_, Result<Option<Logged>, StoreError>> {
        async move { self.reach().await?.find(id).await }.boxed()
    }

    fn broadcasts(
        &self,
        presenter: PresenterIdx,
        before: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Listed, StoreError>> {
        async move { self.reach().await?.broadcasts(presenter, before, limit).await }.boxed()
    }

    fn broadcast(&self, id: Uuid) -> BoxFuture<'_, Result<Option<StoredBroadcast>, StoreError>> {
        async move { self.reach().await?.broadcast(id).await }.boxed()
    }

    fn mark_covered(&self, act: Arc<Event>, messages: Vec<Uuid>) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        async move { self.reach().await?.mark_covered(&act, &messages).await }.boxed()
    }

    fn mark_deleted(&self, marks: Vec<(Uuid, Deleted)>) -> BoxFuture<'_, Result<(), StoreError>> {
        async move { self.reach().await?.mark_deleted(marks).await }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The driver sends a command as it is, without the client's write concern.
    #[test]
    fn rule_04_what_puts_broadcasts_asks_for_a_majority_with_journal_itself() {
        let command = put_command(Vec::new(), Duration::from_secs(10)).to_document().unwrap();
        let durable = command.get_document("writeConcern");
        assert_eq!(durable, Ok(&doc! { "w": "majority", "j": true, "wtimeout": 9_000_i64 }));
    }
}
