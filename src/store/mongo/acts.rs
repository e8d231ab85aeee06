//! Acts of moderation in MongoDB: what they cover is marked, never removed.
//!
//! An act may cover all that a room ever had, so it is marked in pieces, each with `mongodb.write_timeout_ms` of its own. A batch
//! with such an act takes as long as the act: what is behind it waits in the spool for a time that grows with what the act covers
//! and is over then. How far the acts of a batch got is remembered until all of it is done, so that a failure on the way costs a
//! piece and not the act.
//!
//! An act whose marks MongoDB refuses ends there and is parked, and what is behind it goes on. What it covers stays hidden: history
//! applies what is parked.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
};

use chatting_actors::{
    moderation::Act,
    seams::{Poison, StoreBatch, StoreError},
    types::{Epoch, Event, Seq, UserIdx},
};
use futures_util::TryStreamExt;
use mongodb::{
    bson::{Bson, DateTime, Document, RawDocumentBuf, doc},
    error::{Error, ErrorKind, WriteFailure},
    options::Hint,
};
use uuid::Uuid;

use super::{
    Mongo, SEQ_INDEX,
    archive::USER_INDEX,
    document::bson_uuid,
    failed,
    insert::DUPLICATE_KEY,
    marked::{Key, Marked},
    unreadable,
};

/// Messages that one update looks at. As many as a batch inserts by default (`log.batch_max`), and marking one is less work than
/// inserting it: a store that takes batches in time takes these.
const PIECE: usize = 1000;

/// Pieces after which it is told that an act goes on.
const TOLD_EVERY: usize = 100;

/// The codes of errors that a mark earns for what it is: no retry changes them. Not 2 (`BadValue`), which is said of an index that is
/// not there, too.
const MARK_FAULTS: [i32; 4] = [
    121,   // DocumentValidationFailure
    10334, // BSONObjectTooLarge
    17419, // an update makes it too large
    DUPLICATE_KEY,
];

/// How far the acts of the batch under way got. Lost, it costs time only: what is marked stays so.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The batch's first event; a batch that is given again begins with it, too.
    first: Option<Uuid>,
    /// What the store refused of it.
    refused: Vec<Uuid>,
    acts: HashMap<Uuid, Reached>,
    /// What acts of this and of earlier batches have marked.
    marked: Marked,
}

impl Progress {
    /// What acts marked may not be so any more: the next ones look at it again.
    pub(super) fn forget_marked(&mut self) {
        self.marked.clear();
    }
}

#[derive(Clone, Debug)]
enum Reached {
    /// Everything in numberings before this one, and in this one before this number.
    Before(Epoch, Seq),
    Everything,
}

/// Messages of one numbering of a room, or one user's among them.
struct Stretch<'a> {
    epoch: &'a Epoch,
    user: Option<UserIdx>,
    /// From this one on,
    from: Seq,
    /// and before this one.
    beyond: Seq,
}

/// Why an act is not applied.
enum Unapplied {
    /// MongoDB refuses the marks for what they are, and says why.
    Refused(String),
    /// It may be applied later.
    Failed(StoreError),
}

impl From<StoreError> for Unapplied {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// Whether MongoDB refused an update for what it is.
fn unapplied(error: Error) -> Unapplied {
    match &*error.kind {
        ErrorKind::Write(WriteFailure::WriteError(refused)) if MARK_FAULTS.contains(&refused.code) => {
            let (code, message) = (refused.code, &refused.message);
            Unapplied::Refused(format!(
                "MongoDB refuses to mark what this act deletes: {code}: {message}"
            ))
        }
        _ => Unapplied::Failed(failed(error)),
    }
}

impl Mongo {
    /// What the acts of a batch cover came before them: in an earlier batch, or in this one, which is written. Adds to `poison` the
    /// acts whose marks MongoDB refuses.
    pub(super) async fn apply_acts(
        &self,
        batch: &StoreBatch,
        mut poison: Vec<Poison>,
    ) -> Result<Vec<Poison>, StoreError> {
        let acts = batch
            .iter()
            .enumerate()
            .filter_map(|(index, event)| Some((index, event, event.act.as_ref()?)));
        let acts: Vec<_> = acts
            .filter(|(index, ..)| poison.iter().all(|one| one.index != *index))
            .collect();
        if acts.is_empty() {
            return Ok(poison);
        }
        self.begin_acts(batch, &poison);
        for (index, at, act) in acts {
            if matches!(self.progress().acts.get(&at.id), Some(Reached::Everything)) {
                continue;
            }
            match self.apply(at, act).await {
                Ok(()) => self.reached(at, Reached::Everything),
                Err(Unapplied::Refused(reason)) => poison.push(Poison { index, reason }),
                Err(Unapplied::Failed(error)) => return Err(error),
            }
        }
        // From here on an act that is given again is meant: `spool replay --parked` does so when what it covers was stored since.
        let mut progress = self.progress();
        (progress.first, progress.refused) = (None, Vec::new());
        progress.acts.clear();
        Ok(poison)
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reached(&self, at: &Event, reached: Reached) {
        self.progress().acts.insert(at.id, reached);
    }

    /// Keeps what is known if this is the batch again that it is known of.
    fn begin_acts(&self, batch: &StoreBatch, poison: &[Poison]) {
        let first = batch.first().map(|event| event.id);
        let refused = poison.iter().filter_map(|one| batch.get(one.index));
        let refused: Vec<_> = refused.map(|event| event.id).collect();
        let mut progress = self.progress();
        // What was refused then and was taken now may be where an act has been already.
        if progress.first != first || progress.refused.iter().any(|id| !refused.contains(id)) {
            if !progress.acts.is_empty() {
                progress.marked.clear();
            }
            progress.acts.clear();
        }
        (progress.first, progress.refused) = (first, refused);
    }

    /// Marks what an act of moderation covers and no act did before.
    async fn apply(&self, at: &Arc<Event>, act: &Act) -> Result<(), Unapplied> {
        let user = match act {
            Act::Message { id, .. } => {
                let one = doc! { "_id": bson_uuid(*id), "presenter_idx": at.presenter_idx.get() };
                return self.mark(at, one, None).await;
            }
            Act::User { user_idx } => Some(*user_idx),
            Act::Span { .. } => None,
        };
        let reached = self.progress().acts.get(&at.id).cloned();
        let mut pieces = 0;
        for epoch in self.epochs(at.presenter_idx).await? {
            let (mut from, beyond) = match act {
                Act::Span { from_ms, to_ms } => (
                    self.first_from(at.presenter_idx, &epoch, *from_ms).await?.seq,
                    self.first_from(at.presenter_idx, &epoch, to_ms.saturating_add(1))
                        .await?
                        .seq,
                ),
                Act::Message { .. } | Act::User { .. } => (Seq(0), Seq(i64::MAX.cast_unsigned())),
            };
            match &reached {
                Some(Reached::Before(there, _)) if epoch.0 < there.0 => continue,
                Some(Reached::Before(there, seq)) if epoch == *there => from = from.max(*seq),
                _ => {}
            }
            let key: Key = (at.presenter_idx, epoch, user);
            let epoch = &key.1;
            // Of other numberings an act's number tells nothing.
            let its_own = *epoch == at.epoch;
            let left = if its_own {
                self.progress().marked.left(&key, at.seq, from, beyond)
            } else {
                vec![(from, beyond)]
            };
            for (mut from, beyond) in left {
                while from < beyond {
                    let stretch = Stretch {
                        epoch,
                        user,
                        from,
                        beyond,
                    };
                    from = self.mark_some(at, &stretch).await?;
                    self.reached(at, Reached::Before(epoch.clone(), from));
                    pieces += 1;
                    if pieces % TOLD_EVERY == 0 {
                        log::info!(
                            "store: a deletion in room {} goes on, {} messages were looked at; the events behind it wait in the spool",
                            at.presenter_idx,
                            pieces * PIECE
                        );
                    }
                }
            }
            if its_own {
                self.progress().marked.add(key, at.seq, from, beyond);
            }
        }
        Ok(())
    }

    /// Marks what an act covers among the first [`PIECE`] messages of a stretch; returns where to go on.
    async fn mark_some(&self, at: &Event, stretch: &Stretch<'_>) -> Result<Seq, Unapplied> {
        let index = stretch.user.map_or(SEQ_INDEX, |_| USER_INDEX);
        let of = |seqs: Document| {
            let mut which = doc! { "presenter_idx": at.presenter_idx.get(), "epoch": &*stretch.epoch.0, "seq": seqs };
            if let Some(user) = stretch.user {
                which.insert("user_idx", user.get());
            }
            which
        };
        let (from, beyond) = (stretch.from.0.cast_signed(), stretch.beyond.0.cast_signed());
        // Out of the index alone, so that what was marked already costs little.
        let found = self
            .log
            .find(of(doc! { "$gte": from, "$lt": beyond }))
            .projection(doc! { "_id": 0, "seq": 1 })
            .sort(doc! { "seq": 1 })
            .limit(i64::try_from(PIECE).unwrap_or(i64::MAX))
            .batch_size(u32::try_from(PIECE).unwrap_or(u32::MAX))
            .hint(Hint::Name(index.into()));
        let seqs: Vec<RawDocumentBuf> = self
            .timed(async { found.await?.try_collect().await })
            .await
            .map_err(failed)?;
        let Some(last) = seqs.last() else {
            return Ok(stretch.beyond);
        };
        let last = last.get_i64("seq").map_err(unreadable)?;
        self.mark(at, of(doc! { "$gte": from, "$lte": last }), Some(index))
            .await?;
        let all = seqs.len() < PIECE;
        Ok(if all {
            stretch.beyond
        } else {
            Seq(last.cast_unsigned() + 1)
        })
    }

    /// See [`Archive::mark_covered`](crate::store::Archive::mark_covered).
    pub(super) async fn mark_covered(&self, at: &Event, messages: &[Uuid]) -> Result<Option<String>, StoreError> {
        for some in messages.chunks(PIECE) {
            let ids: Vec<Bson> = some.iter().map(|id| bson_uuid(*id).into()).collect();
            let these = doc! { "_id": { "$in": ids }, "presenter_idx": at.presenter_idx.get() };
            match self.mark(at, these, Some("_id_")).await {
                Ok(()) => {}
                Err(Unapplied::Refused(why)) => return Ok(Some(why)),
                Err(Unapplied::Failed(error)) => {
                    // It may have been restored from a backup since.
                    self.progress().forget_marked();
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    async fn mark(&self, at: &Event, mut which: Document, index: Option<&str>) -> Result<(), Unapplied> {
        // Only what came before it, whatever was inserted since; `$and`, because messages' own ids may be named already.
        which.insert("$and", vec![doc! { "_id": { "$lt": bson_uuid(at.id) } }]);
        which.insert("kind", "chat");
        which.insert("deleted_at", doc! { "$exists": false });
        let deleted = doc! { "$set": {
            "deleted_at": DateTime::from_millis(at.sent_at_ms),
            "deleted_by": at.chat.user_idx.get(),
        } };
        let mut update = self.log.update_many(which, deleted);
        if let Some(index) = index {
            update = update.hint(Hint::Name(index.into()));
        }
        self.timed(update.into_future()).await.map_err(unapplied)?;
        Ok(())
    }
}
