//! Messages that come into a store behind acts of moderation that it had before.
//!
//! An act marks what is there when it comes, which is all that was said before it as long as one server takes one spool
//! to the store, in order. From a spool that was left, or that waited, while another server had the log, or in an
//! import, older messages may come behind it. So the acts of their rooms are looked at again that are newer than they.
//!
//! Where the messages are at hand, as those of a batch, the ones that an act covers are marked, by their ids: an act may
//! cover all that a room ever had, and there may be many batches. Else the store is given such acts again, once for all
//! messages: an act that is given again is applied again.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use chatting_actors::{
    seams::{Poison, StoreError},
    types::{Event, PresenterIdx},
};
use uuid::Uuid;

use super::Archive;

/// The messages of a batch, or of an import, for which acts are to be applied again. It works on what is in the store: an
/// act that comes later finds the messages there by itself.
#[derive(Debug, Default)]
pub struct LateMessages {
    /// The oldest of each room.
    oldest: BTreeMap<PresenterIdx, Uuid>,
    /// All of them, where they are few: nothing else is marked.
    all: Option<Vec<Arc<Event>>>,
    /// Acts that came with them, and so have marked them.
    marked_by: HashSet<Uuid>,
    /// Acts up to this one have been applied again.
    through: Option<Uuid>,
}

/// What came of acts that were applied again.
struct Again {
    /// Those that the store refuses to apply.
    refused: Vec<Refused>,
    /// The last one that was looked at.
    last: Option<Uuid>,
    /// There may be more behind it.
    more: bool,
}

/// An act that the store refuses to apply.
struct Refused {
    act: Arc<Event>,
    why: String,
    /// The messages that it was to mark, where these were at hand: the others that it covers an earlier one has marked.
    messages: Vec<Uuid>,
}

impl LateMessages {
    /// The messages of a batch that the store has taken.
    pub fn of(batch: &[Arc<Event>]) -> Self {
        let mut late = Self {
            all: Some(batch.to_vec()),
            ..Self::default()
        };
        for event in batch {
            late.add(event);
            if event.act.is_some() {
                late.marked_by.insert(event.id);
            }
        }
        late
    }

    /// This one, too, if it is a message.
    pub fn add(&mut self, event: &Event) {
        if event.act.is_none() {
            let oldest = self.oldest.entry(event.presenter_idx).or_insert(event.id);
            *oldest = event.id.min(*oldest);
        }
    }

    /// Applies some acts again, of at most so many that are looked at. Returns whether there may be more.
    ///
    /// # Errors
    /// The store cannot be asked now, or refuses to mark what one of them deletes; the same are applied again the next time.
    pub async fn mark_some(&mut self, store: &dyn Archive, limit: usize) -> Result<bool, StoreError> {
        let Again { refused, last, more } = self.apply_some(store, limit).await?;
        if let Some(Refused { act, why, .. }) = refused.first() {
            return Err(StoreError(unapplied(act, why)));
        }
        self.through = last;
        Ok(more)
    }

    /// Applies all acts again that the messages of this batch are late for, with so many looked at at once. Returns those
    /// of its messages that the store refuses to mark.
    ///
    /// # Errors
    /// The store cannot be asked now.
    pub async fn mark_all(batch: &[Arc<Event>], store: &dyn Archive, limit: usize) -> Result<Vec<Poison>, StoreError> {
        let (mut late, mut unmarked) = (Self::of(batch), Vec::<Poison>::new());
        loop {
            let Again { refused, last, more } = late.apply_some(store, limit).await?;
            for Refused { act, why, messages } in refused {
                let unmarked_by_it = |event: &Event| messages.contains(&event.id);
                for (index, _) in batch.iter().enumerate().filter(|(_, event)| unmarked_by_it(event)) {
                    if unmarked.iter().all(|one| one.index != index) {
                        let reason = unapplied(&act, &why);
                        unmarked.push(Poison { index, reason });
                    }
                }
            }
            late.through = last;
            if !more {
                return Ok(unmarked);
            }
        }
    }

    async fn apply_some(&self, store: &dyn Archive, limit: usize) -> Result<Again, StoreError> {
        let Some(oldest) = self.oldest.values().min() else {
            return Ok(Again {
                refused: Vec::new(),
                last: None,
                more: false,
            });
        };
        let rooms = self.oldest.keys().copied().collect();
        let after = self.through.unwrap_or(*oldest);
        let acts = store.acts(rooms, after, limit).await?;
        let (count, last) = (acts.len(), acts.last().map(|last| last.id));
        let missed = acts.into_iter().filter(|act| self.is_missed(act)).map(Arc::new);
        let refused = match &self.all {
            Some(all) => mark_covered(all, missed, store).await?,
            None => give(missed.collect(), store).await?,
        };
        Ok(Again {
            refused,
            last,
            more: last.is_some() && count >= limit,
        })
    }

    /// Whether an act that the store has did not find one of them there.
    fn is_missed(&self, act: &Event) -> bool {
        let oldest = self.oldest.get(&act.presenter_idx);
        oldest.is_some_and(|oldest| act.id > *oldest) && !self.marked_by.contains(&act.id)
    }
}

/// Has each of these messages marked by the first of these acts that covers it. Returns the acts that the store refuses
/// to apply.
async fn mark_covered(
    messages: &[Arc<Event>],
    acts: impl Iterator<Item = Arc<Event>>,
    store: &dyn Archive,
) -> Result<Vec<Refused>, StoreError> {
    let mut left: Vec<_> = messages.iter().collect();
    let mut refused = Vec::new();
    for at in acts {
        let covers = |event: &mut &Arc<Event>| at.act.as_ref().is_some_and(|act| act.covers(&at, event));
        let covered: Vec<Uuid> = left.extract_if(.., covers).map(|event| event.id).collect();
        if covered.is_empty() {
            continue;
        }
        if let Some(why) = store.mark_covered(Arc::clone(&at), covered.clone()).await? {
            let (act, messages) = (at, covered);
            refused.push(Refused { act, why, messages });
        }
    }
    Ok(refused)
}

/// Gives these acts to the store again. Returns those that it refuses to apply.
async fn give(acts: Vec<Arc<Event>>, store: &dyn Archive) -> Result<Vec<Refused>, StoreError> {
    if acts.is_empty() {
        return Ok(Vec::new());
    }
    let acts = Arc::new(acts);
    let refused = store.append(Arc::clone(&acts)).await?.into_iter();
    let refused = refused.filter_map(|Poison { index, reason: why }| {
        let (act, messages) = (Arc::clone(acts.get(index)?), Vec::new());
        Some(Refused { act, why, messages })
    });
    Ok(refused.collect())
}

fn unapplied(act: &Event, why: &str) -> String {
    format!("act {} of room {} is not applied: {why}", act.id, act.presenter_idx)
}
