//! Retention, legal hold and erasure in MongoDB.

use std::collections::HashMap;

use chatting_actors::{
    broadcast::Broadcast,
    seams::StoreError,
    types::{Epoch, PresenterIdx, Role, Seq, UserIdx},
};
use futures_util::{
    TryStreamExt,
    future::{BoxFuture, FutureExt},
};
use mongodb::{
    IndexModel,
    action::Find,
    bson::{Bson, DateTime, Document, Uuid as BsonUuid, doc},
    options::{Hint, IndexOptions},
};
use uuid::Uuid;

use super::{
    Mongo, MongoStore,
    archive::USER_INDEX,
    document::{broadcast, bson_uuid, document_id},
    failed, unreadable,
};
use crate::store::keeping::{Expired, Holds, Keeping, RecordChange, Trace, first_id_of};

/// Who is named in others' events; both indexes have an entry for those only that name somebody.
const MENTIONS: [&str; 2] = ["act.user_idx", "deleted_by"];

/// The indexes of the log that these need.
pub(super) fn log_indexes() -> [IndexModel; 2] {
    MENTIONS.map(|field| {
        let some = IndexOptions::builder()
            .partial_filter_expression(doc! { field: { "$exists": true } })
            .build();
        IndexModel::builder()
            .keys(doc! { field: 1, "_id": 1 })
            .options(some)
            .build()
    })
}

/// The same of the broadcasts.
pub(super) fn record_index() -> IndexModel {
    let held = IndexOptions::builder()
        .partial_filter_expression(doc! { "legal_hold": true })
        .build();
    IndexModel::builder()
        .keys(doc! { "legal_hold": 1 })
        .options(held)
        .build()
}

impl Mongo {
    async fn all<T>(
        &self,
        found: Find<'_, Document>,
        read: impl Fn(&Document) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let documents: Vec<Document> = self
            .timed(async { found.await?.try_collect().await })
            .await
            .map_err(failed)?;
        documents.iter().map(read).collect()
    }

    async fn now_ms(&self) -> Result<Option<i64>, StoreError> {
        let hello = self.database.run_command(doc! { "hello": 1 });
        let said = self.timed(hello.into_future()).await.map_err(failed)?;
        Ok(said.get_datetime("localTime").ok().map(|now| now.timestamp_millis()))
    }

    async fn held(&self) -> Result<Holds, StoreError> {
        let records = self.records();
        let found = records.find(doc! { "legal_hold": true });
        let held = self.all(found, |found| Ok(broadcast(found).map_err(StoreError)?.broadcast));
        let mut held = held.await?;
        for held in &mut held {
            self.find_ends(held).await?;
        }
        Ok(Holds::new(held))
    }

    /// Where nobody knows how far a broadcast went, it had ended when the next one of its room began there.
    async fn find_ends(&self, held: &mut Broadcast) -> Result<(), StoreError> {
        for n in 0..held.spans.len() {
            if let Some(span) = held.spans.get(n).filter(|_| held.is_without_end(n)) {
                let began = doc! { "epoch": &*span.epoch.0, "after": { "$gte": span.after.0.cast_signed() } };
                let records = self.records();
                let later = records.find_one(doc! {
                    "presenter_idx": held.presenter.get(),
                    "_id": { "$gt": bson_uuid(held.id) },
                    "spans": { "$elemMatch": began },
                });
                let later = later.sort(doc! { "_id": 1 });
                // One that cannot be read ends none.
                let later = self.timed(later.into_future()).await.map_err(failed)?;
                if let Some(Ok(later)) = later.as_ref().map(broadcast) {
                    held.end_before(&later.broadcast);
                }
            }
        }
        Ok(())
    }

    async fn change(&self, id: Uuid, change: RecordChange) -> Result<bool, StoreError> {
        let (mut set, mut unset) = (Document::new(), Document::new());
        match change.corrected_start_ms {
            Some(Some(ms)) => drop(set.insert("corrected_start", DateTime::from_millis(ms))),
            Some(None) => drop(unset.insert("corrected_start", "")),
            None => {}
        }
        match change.hold {
            Some(true) => drop(set.insert("legal_hold", true)),
            Some(false) => drop(unset.insert("legal_hold", "")),
            None => {}
        }
        let parts = [("$set", set), ("$unset", unset)].into_iter();
        let change: Document = parts
            .filter(|(_, fields)| !fields.is_empty())
            .map(|(how, fields)| (how.to_owned(), fields.into()))
            .collect();
        let records = self.records();
        let update = records.update_one(doc! { "_id": bson_uuid(id) }, change);
        Ok(self.timed(update.into_future()).await.map_err(failed)?.matched_count > 0)
    }

    async fn expire(&self, before_ms: i64, after: Option<Uuid>, limit: usize) -> Result<Expired, StoreError> {
        let holds = self.held().await?;
        let mut which = doc! { "_id": ids(before_ms, after) };
        // The old server's documents stay.
        which.insert("seq", doc! { "$exists": true });
        let log = self.documents();
        let found = log
            .find(which)
            .sort(doc! { "_id": 1 })
            .limit(whole(limit))
            .projection(trace_fields());
        let found = self.all(found, trace).await?;
        let expired = |removed| Expired {
            removed,
            last: found.last().filter(|_| found.len() >= limit).map(|last| last.id),
            unreadable: Vec::new(),
        };
        let (mut gone, mut last) = (Vec::new(), Vec::new());
        let mut last_of: HashMap<PresenterIdx, Seq> = HashMap::new();
        for one in found.iter().filter(|one| holds.hold(one).is_none()) {
            let last_seq = match last_of.get(&one.presenter) {
                Some(last) => *last,
                None => {
                    let last = self.last_seq(one.presenter).await?;
                    last_of.insert(one.presenter, last);
                    last
                }
            };
            let list = if one.seq == last_seq { &mut last } else { &mut gone };
            list.push(one);
        }
        if gone.is_empty() && last.is_empty() {
            return Ok(expired(0));
        }
        // A hold that was laid on some of them since they were read counts, too.
        let holds = self.held().await?;
        let [gone, last] = [gone, last].map(|list| {
            let free = list.into_iter().filter(|one| holds.hold(one).is_none());
            free.map(|one| bson_uuid(one.id)).collect::<Vec<BsonUuid>>()
        });
        let mut removed = 0;
        if !gone.is_empty() {
            let delete = log.delete_many(doc! { "_id": { "$in": gone } });
            removed += self.timed(delete.into_future()).await.map_err(failed)?.deleted_count;
        }
        if !last.is_empty() {
            // Only its place and its time stay.
            let which = doc! { "_id": { "$in": last }, "$or": [
                { "user_idx": { "$ne": UserIdx::ERASED.get() } },
                { "broadcast_id": { "$exists": true } },
            ] };
            let mut empty = emptied();
            empty.insert("kind", "chat");
            empty.insert(
                "deleted_at",
                doc! { "$ifNull": ["$deleted_at", DateTime::from_millis(before_ms)] },
            );
            empty.insert("deleted_by", UserIdx::ERASED.get());
            let unset = ["act", "room_idx", "broadcast_id", "idempotency_key"];
            let update = log.update_many(which, vec![doc! { "$set": empty }, doc! { "$unset": unset.to_vec() }]);
            removed += self.timed(update.into_future()).await.map_err(failed)?.modified_count;
        }
        Ok(expired(removed))
    }

    async fn expire_broadcasts(
        &self,
        before_ms: i64,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Expired, StoreError> {
        let records = self.records();
        let found = records
            .find(doc! { "_id": ids(before_ms, after) })
            .sort(doc! { "_id": 1 })
            .limit(whole(limit));
        // What cannot be read stays, and the next step begins behind it all the same.
        let read = |found: &Document| Ok((document_id(found), broadcast(found)));
        let old = self.all(found, read).await?;
        let over = old
            .iter()
            .filter_map(|(_, stored)| stored.as_ref().ok())
            .filter(|stored| !stored.legal_hold && stored.broadcast.ended_at_ms.is_some_and(|ended| ended < before_ms));
        let over: Vec<BsonUuid> = over.map(|stored| bson_uuid(stored.broadcast.id)).collect();
        let mut removed = 0;
        if !over.is_empty() {
            // A hold that was laid on one of them since they were read counts.
            let delete = records.delete_many(doc! { "_id": { "$in": over }, "legal_hold": { "$ne": true } });
            removed = self.timed(delete.into_future()).await.map_err(failed)?.deleted_count;
        }
        Ok(Expired {
            removed,
            last: old.last().filter(|_| old.len() >= limit).and_then(|(last, _)| *last),
            unreadable: old
                .into_iter()
                .filter_map(|(id, read)| Some((id?, read.err()?)))
                .collect(),
        })
    }

    async fn traces(&self, user: UserIdx, skip: usize, limit: usize) -> Result<Vec<Trace>, StoreError> {
        let log = self.documents();
        let found = log
            .find(doc! { "user_idx": user.get(), "seq": { "$gte": 0 } })
            .sort(doc! { "presenter_idx": 1, "epoch": 1, "seq": 1 })
            .skip(skip as u64)
            .limit(whole(limit))
            .projection(trace_fields())
            .hint(Hint::Name(USER_INDEX.into()));
        self.all(found, trace).await
    }

    async fn erase(&self, traces: &[Trace], now_ms: i64) -> Result<(), StoreError> {
        let ids: Vec<BsonUuid> = traces.iter().map(|one| bson_uuid(one.id)).collect();
        let of_chat = |field: &str, value: Bson| {
            let kept = doc! { "$ifNull": [format!("${field}"), value] };
            doc! { "$cond": [{ "$eq": ["$kind", "chat"] }, kept, "$$REMOVE"] }
        };
        let mut empty = emptied();
        empty.insert(
            "deleted_at",
            of_chat("deleted_at", DateTime::from_millis(now_ms).into()),
        );
        empty.insert("deleted_by", of_chat("deleted_by", UserIdx::ERASED.get().into()));
        let change = vec![doc! { "$set": empty }, doc! { "$unset": "idempotency_key" }];
        let log = self.documents();
        let update = log.update_many(doc! { "_id": { "$in": ids } }, change);
        self.timed(update.into_future()).await.map_err(failed)?;
        Ok(())
    }

    async fn mentions(&self, user: UserIdx, after: Option<Uuid>, limit: usize) -> Result<Vec<Trace>, StoreError> {
        // One stretch of each index, merged.
        let behind = doc! { "$gt": bson_uuid(after.unwrap_or(Uuid::nil())) };
        let either = MENTIONS.map(|field| doc! { field: user.get(), "_id": behind.clone() });
        let log = self.documents();
        let found = log
            .find(doc! { "$or": either.to_vec() })
            .sort(doc! { "_id": 1 })
            .limit(whole(limit))
            .projection(trace_fields());
        self.all(found, trace).await
    }

    async fn erase_mentions(&self, user: UserIdx, traces: &[Trace]) -> Result<(), StoreError> {
        let ids: Vec<BsonUuid> = traces.iter().map(|one| bson_uuid(one.id)).collect();
        let log = self.documents();
        for field in MENTIONS {
            let which = doc! { "_id": { "$in": ids.clone() }, field: user.get() };
            let update = log.update_many(which, doc! { "$set": { field: UserIdx::ERASED.get() } });
            self.timed(update.into_future()).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// Where a step begins and ends among the ids.
fn ids(before_ms: i64, after: Option<Uuid>) -> Document {
    doc! { "$gt": bson_uuid(after.unwrap_or(Uuid::nil())), "$lt": bson_uuid(first_id_of(before_ms)) }
}

/// Whose an emptied event is, and what it says. That it was its presenter's would say whose it was.
fn emptied() -> Document {
    doc! { "user_idx": UserIdx::ERASED.get(), "nickname": "", "message": "", "role": Role::Viewer.as_str() }
}

fn trace_fields() -> Document {
    doc! { "presenter_idx": 1, "epoch": 1, "seq": 1, "broadcast_id": 1 }
}

fn trace(found: &Document) -> Result<Trace, StoreError> {
    let number = |key: &str| found.get_i64(key).map_err(unreadable);
    let id = |key: &str| match found.get(key) {
        Some(Bson::Binary(binary)) => Uuid::from_slice(&binary.bytes).map_err(unreadable),
        _ => Err(unreadable(format!("a bad {key}"))),
    };
    let presenter = PresenterIdx::new(number("presenter_idx")?);
    Ok(Trace {
        id: id("_id")?,
        presenter: presenter.ok_or_else(|| unreadable("a negative presenter"))?,
        epoch: Epoch(found.get_str("epoch").map_err(unreadable)?.into()),
        seq: Seq(number("seq")?.cast_unsigned()),
        broadcast_id: found
            .contains_key("broadcast_id")
            .then(|| id("broadcast_id"))
            .transpose()?,
    })
}

fn whole(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

impl Keeping for MongoStore {
    fn now_ms(&self) -> BoxFuture<'_, Result<Option<i64>, StoreError>> {
        async move { self.reach().await?.now_ms().await }.boxed()
    }

    fn change_broadcast(&self, id: Uuid, change: RecordChange) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move { self.reach().await?.change(id, change).await }.boxed()
    }

    fn holds(&self) -> BoxFuture<'_, Result<Holds, StoreError>> {
        async move { self.reach().await?.held().await }.boxed()
    }

    fn expire(&self, before_ms: i64, after: Option<Uuid>, limit: usize) -> BoxFuture<'_, Result<Expired, StoreError>> {
        async move { self.reach().await?.expire(before_ms, after, limit).await }.boxed()
    }

    fn expire_broadcasts(
        &self,
        before_ms: i64,
        after: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Expired, StoreError>> {
        async move { self.reach().await?.expire_broadcasts(before_ms, after, limit).await }.boxed()
    }

    fn traces(&self, user: UserIdx, skip: usize, limit: usize) -> BoxFuture<'_, Result<Vec<Trace>, StoreError>> {
        async move { self.reach().await?.traces(user, skip, limit).await }.boxed()
    }

    fn erase<'a>(&'a self, traces: &'a [Trace], now_ms: i64) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.reach().await?.erase(traces, now_ms).await }.boxed()
    }

    fn mentions(
        &self,
        user: UserIdx,
        after: Option<Uuid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Trace>, StoreError>> {
        async move { self.reach().await?.mentions(user, after, limit).await }.boxed()
    }

    fn erase_mentions<'a>(&'a self, user: UserIdx, traces: &'a [Trace]) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.reach().await?.erase_mentions(user, traces).await }.boxed()
    }
}
