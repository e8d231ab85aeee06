//! Figures by aggregation pipelines, all up to the same event.

use std::time::Duration;

use chatting_actors::{
    seams::StoreError,
    types::{Epoch, Seq, UserIdx},
};
use futures_util::{
    TryStreamExt,
    future::{BoxFuture, FutureExt},
};
use mongodb::{
    bson::{Bson, DateTime, Document, doc},
    options::Hint,
};
use uuid::Uuid;

use super::{Mongo, MongoStore, SEQ_INDEX, archive::USER_INDEX, document::bson_uuid, failed, unreadable};
use crate::store::figures::{Counted, Figures, FiguresQuery, LONGEST_WAIT_SECONDS, Sender, words};

/// What counts. A span is as wide as numbers had been given; those of a commit that failed were given again, maybe to another
/// broadcast's messages.
fn said(query: &FiguresQuery) -> Document {
    let from = DateTime::from_millis(query.from_ms());
    doc! {
        "kind": "chat",
        "deleted_at": { "$exists": false },
        "broadcast_id": of(query.broadcast.id),
        "sent_at": { "$gte": from },
    }
}

/// What says that it is of this broadcast, or says nothing of one.
fn of(broadcast: Uuid) -> Document {
    doc! { "$in": [Bson::Null, bson_uuid(broadcast)] }
}

/// One span of the broadcast up to the last event that the store had when it was first asked.
struct Stretch {
    epoch: Epoch,
    after: i64,
    through: i64,
}

impl Stretch {
    fn seqs(&self) -> Document {
        doc! { "$gt": self.after, "$lte": self.through }
    }
}

impl Mongo {
    async fn count(&self, query: FiguresQuery) -> Result<Counted, StoreError> {
        let patience = query.patience;
        match tokio::time::timeout(patience, self.count_all(&query)).await {
            Ok(counted) => counted,
            Err(_) => Err(StoreError(format!("the figures were not there within {patience:?}"))),
        }
    }

    async fn count_all(&self, query: &FiguresQuery) -> Result<Counted, StoreError> {
        let (stretches, through) = self.stretches(query).await?;
        let mut counted = Counted {
            through,
            ..Counted::default()
        };
        if stretches.is_empty() {
            return Ok(counted);
        }
        let room = query.broadcast.presenter.get();
        let spans = stretches
            .iter()
            .map(|stretch| doc! { "presenter_idx": room, "epoch": &*stretch.epoch.0, "seq": stretch.seqs() });
        let mut which = said(query);
        which.insert("$or", spans.collect::<Vec<_>>());
        let ask = async |stages: Vec<Document>| {
            let mut pipeline = vec![doc! { "$match": which.clone() }];
            pipeline.extend(stages);
            self.aggregate(pipeline, SEQ_INDEX, query.patience).await
        };
        for found in ask(by_bucket(query)).await? {
            counted.buckets.push((whole(&found, "_id")?, count_of(&found)?));
        }
        for found in ask(by_sender(query.top)).await? {
            for all in documents(&found, "all")? {
                counted.senders = count_of(all)?;
            }
            for sender in documents(&found, "top")? {
                let newest = sender.get_document("newest").map_err(unreadable)?;
                counted.top_senders.extend(
                    UserIdx::new(whole(sender, "_id")?)
                        .map(|user_idx| {
                            Ok::<_, StoreError>(Sender {
                                user_idx,
                                nickname: newest.get_str("nickname").map_err(unreadable)?.to_owned(),
                                messages: count_of(sender)?,
                            })
                        })
                        .transpose()?,
                );
            }
        }
        for found in ask(by_word(query.top)).await? {
            let word = found.get_str("_id").map_err(unreadable)?;
            counted.top_words.push((word.to_owned(), count_of(&found)?));
        }
        let mut waits = std::collections::BTreeMap::new();
        for stretch in &stretches {
            let pipeline = by_wait(query, stretch, self.log_name());
            for found in self.aggregate(pipeline, USER_INDEX, query.patience).await? {
                *waits.entry(whole(&found, "_id")?).or_default() += count_of(&found)?;
            }
        }
        counted.waits = waits.into_iter().collect();
        Ok(counted)
    }

    async fn aggregate(
        &self,
        pipeline: Vec<Document>,
        index: &str,
        patience: Duration,
    ) -> Result<Vec<Document>, StoreError> {
        let log = self.documents();
        let cursor = log
            .aggregate(pipeline)
            .allow_disk_use(true)
            .max_time(patience)
            .hint(Hint::Name(index.into()));
        cursor.await.map_err(failed)?.try_collect().await.map_err(failed)
    }

    /// The spans that have events, and the last event of all.
    async fn stretches(&self, query: &FiguresQuery) -> Result<(Vec<Stretch>, Option<(Epoch, Seq)>), StoreError> {
        let broadcast = &query.broadcast;
        let mut stretches = Vec::new();
        let mut through = None;
        for (n, span) in broadcast.spans.iter().enumerate() {
            let after = span.after.0.cast_signed();
            let mut end = span.through.map_or(i64::MAX, |through| through.0.cast_signed());
            let mut which = doc! {
                "presenter_idx": broadcast.presenter.get(),
                "epoch": &*span.epoch.0,
                "seq": { "$gt": after },
            };
            if broadcast.is_without_end(n) {
                // It had ended here when a later broadcast began.
                which.insert("broadcast_id", doc! { "$gt": bson_uuid(broadcast.id) });
                let later = vec![
                    doc! { "$match": which.clone() },
                    doc! { "$sort": { "seq": 1 } },
                    doc! { "$limit": 1 },
                    doc! { "$project": { "seq": 1 } },
                ];
                for later in self.aggregate(later, SEQ_INDEX, query.patience).await? {
                    end = whole(&later, "seq")? - 1;
                }
            }
            which.insert("seq", doc! { "$gt": after, "$lte": end });
            which.insert("broadcast_id", of(broadcast.id));
            let newest = self.documents();
            let newest = newest
                .find_one(which)
                .sort(doc! { "seq": -1 })
                .projection(doc! { "seq": 1 })
                .hint(Hint::Name(SEQ_INDEX.into()));
            if let Some(found) = self.timed(newest.into_future()).await.map_err(failed)? {
                let last = whole(&found, "seq")?;
                through = Some((span.epoch.clone(), Seq(last.cast_unsigned())));
                stretches.push(Stretch {
                    epoch: span.epoch.clone(),
                    after,
                    through: last,
                });
            }
        }
        Ok((stretches, through))
    }
}

fn whole(document: &Document, key: &str) -> Result<i64, StoreError> {
    match document.get(key) {
        Some(Bson::Int64(value)) => Ok(*value),
        Some(Bson::Int32(value)) => Ok(i64::from(*value)),
        _ => Err(unreadable(format!("{key} is no whole number"))),
    }
}

fn count_of(document: &Document) -> Result<u64, StoreError> {
    Ok(whole(document, "n")?.cast_unsigned())
}

fn documents<'a>(document: &'a Document, key: &str) -> Result<Vec<&'a Document>, StoreError> {
    let list = document.get_array(key).map_err(unreadable)?;
    Ok(list.iter().filter_map(Bson::as_document).collect())
}

/// [`Broadcast::offset_ms`] of `sent_at`, as an expression; what counts has none below 0.
fn offset(query: &FiguresQuery) -> Bson {
    let at = doc! { "$toLong": "$sent_at" };
    let live = query.broadcast.segments.iter().map(|segment| {
        let until = match segment.to_ms {
            Some(to_ms) => Bson::from(doc! { "$min": [at.clone(), to_ms] }),
            None => at.clone().into(),
        };
        doc! { "$max": [0_i64, { "$subtract": [until, segment.from_ms] }] }
    });
    let live: Vec<Document> = live.collect();
    let shift = query.broadcast.shift_ms(query.corrected_start_ms);
    doc! { "$subtract": [{ "$add": live }, shift] }.into()
}

fn by_bucket(query: &FiguresQuery) -> Vec<Document> {
    let offset = offset(query);
    // What is over a whole number of buckets is taken off first: a quotient is a floating-point number.
    let over = doc! { "$mod": ["$at", query.bucket_ms] };
    let bucket = doc! { "$toLong": { "$divide": [{ "$subtract": ["$at", over] }, query.bucket_ms] } };
    vec![
        doc! { "$project": { "at": offset } },
        doc! { "$group": { "_id": { "$min": [bucket, query.last_bucket] }, "n": { "$sum": 1_i64 } } },
        doc! { "$sort": { "_id": 1 } },
    ]
}

fn by_sender(top: usize) -> Vec<Document> {
    let newest = doc! { "id": "$_id", "nickname": "$nickname" };
    vec![
        doc! { "$group": { "_id": "$user_idx", "n": { "$sum": 1_i64 }, "newest": { "$max": newest } } },
        doc! { "$facet": {
            "all": [{ "$count": "n" }],
            "top": [{ "$sort": { "n": -1, "_id": 1 } }, { "$limit": limit(top) }],
        } },
    ]
}

fn by_word(top: usize) -> Vec<Document> {
    let matches = doc! { "$regexFindAll": { "input": "$message", "regex": words::PATTERN } };
    let word = doc! { "$toLower": { "$ifNull": [{ "$first": "$$found.captures" }, "$$found.match"] } };
    let list = doc! { "$map": { "input": matches, "as": "found", "in": word } };
    let length = doc! { "$strLenCP": "$word" };
    let longest = i64::try_from(words::MAX_CHARS).unwrap_or(i64::MAX);
    vec![
        doc! { "$project": { "word": { "$setUnion": [list] } } },
        doc! { "$unwind": "$word" },
        doc! { "$match": { "word": { "$nin": words::STOP_WORDS.to_vec() }, "$expr": { "$lte": [length, longest] } } },
        doc! { "$group": { "_id": "$word", "n": { "$sum": 1_i64 } } },
        doc! { "$sort": { "n": -1, "_id": 1 } },
        doc! { "$limit": limit(top) },
    ]
}

/// The presenter's messages by the index of users, and for each one step of the log's index to who waited.
fn by_wait(query: &FiguresQuery, stretch: &Stretch, log: &str) -> Vec<Document> {
    let room = query.broadcast.presenter.get();
    let mut replies = said(query);
    replies.insert("user_idx", room);
    replies.insert("presenter_idx", room);
    replies.insert("epoch", &*stretch.epoch.0);
    replies.insert("seq", stretch.seqs());
    let mut first = said(query);
    first.insert("presenter_idx", room);
    first.insert("epoch", &*stretch.epoch.0);
    first.insert("seq", stretch.seqs());
    let between = doc! { "$and": [{ "$gt": ["$seq", "$$before"] }, { "$lt": ["$seq", "$$reply"] }] };
    first.insert("$expr", between);
    let before = doc! { "$shift": { "output": "$seq", "by": -1, "default": stretch.after } };
    let milliseconds = doc! { "$subtract": ["$sent_at", "$since.sent_at"] };
    let seconds = doc! { "$toLong": { "$floor": { "$divide": ["$milliseconds", 1000_i64] } } };
    vec![
        doc! { "$match": replies },
        doc! { "$sort": { "seq": 1 } },
        doc! { "$setWindowFields": { "sortBy": { "seq": 1 }, "output": { "before": before } } },
        doc! { "$lookup": {
            "from": log,
            "let": { "before": "$before", "reply": "$seq" },
            "pipeline": [
                { "$match": first },
                { "$sort": { "seq": 1 } },
                { "$limit": 1 },
                { "$project": { "sent_at": 1 } },
            ],
            "as": "since",
        } },
        doc! { "$unwind": "$since" },
        doc! { "$project": { "milliseconds": milliseconds } },
        doc! { "$group": { "_id": { "$min": [seconds, LONGEST_WAIT_SECONDS] }, "n": { "$sum": 1_i64 } } },
    ]
}

fn limit(top: usize) -> i64 {
    i64::try_from(top).unwrap_or(i64::MAX)
}

impl Figures for MongoStore {
    fn figures(&self, query: FiguresQuery) -> BoxFuture<'_, Result<Counted, StoreError>> {
        async move { self.reach().await?.count(query).await }.boxed()
    }
}
