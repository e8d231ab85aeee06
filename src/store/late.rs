//! Messages that come into a store behind acts of moderation that it had before.
//!
//! An act marks what is there when it comes, which is all that was said before it as long as one server takes one spool to the store, in
//! order. From a spool that was put away, or in an import, older messages may come behind it. So the store is given the acts of their
//! rooms again that are newer than they: an act that is given again is applied again.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use chatting_actors::{
    seams::StoreError,
    types::{Event, PresenterIdx},
};
use uuid::Uuid;

use super::Archive;

/// See the module's text. It works on what is in the store: an act that comes later finds the messages there by itself.
#[derive(Debug, Default)]
pub struct LateMessages {
    /// The oldest of each room.
    oldest: BTreeMap<PresenterIdx, Uuid>,
    /// All of them, where they are few: only acts that cover one of them are given again.
    all: Option<Vec<Arc<Event>>>,
    /// Acts that came with them, and so have marked them.
    marked_by: HashSet<Uuid>,
    /// Acts up to this one have been given again.
    through: Option<Uuid>,
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

    /// Gives some acts again, of at most so many that are looked at. Returns whether there may be more.
    ///
    /// # Errors
    /// The store cannot be asked now, or refuses to mark what one of them deletes; the same are given again the next time.
    pub async fn mark_some(&mut self, store: &dyn Archive, limit: usize) -> Result<bool, StoreError> {
        let Some(oldest) = self.oldest.values().min() else {
            return Ok(false);
        };
        let rooms = self.oldest.keys().copied().collect();
        let after = self.through.unwrap_or(*oldest);
        let acts = store.acts(rooms, after, limit).await?;
        let (count, last) = (acts.len(), acts.last().map(|last| last.id));
        let is_newer = |act: &Event| {
            self.oldest
                .get(&act.presenter_idx)
                .is_some_and(|oldest| act.id > *oldest)
        };
        let covers = |act: &Event| match (&self.all, &act.act) {
            (Some(all), Some(what)) => all.iter().any(|event| what.covers(act, event)),
            _ => true,
        };
        let again = acts
            .into_iter()
            .filter(|act| is_newer(act) && !self.marked_by.contains(&act.id) && covers(act));
        let again: Arc<Vec<_>> = Arc::new(again.map(Arc::new).collect());
        if !again.is_empty() {
            let refused = store.append(Arc::clone(&again)).await?;
            if let Some((act, refused)) = refused.first().and_then(|one| Some((again.get(one.index)?, one))) {
                let (id, room, why) = (act.id, act.presenter_idx, &refused.reason);
                return Err(StoreError(format!("act {id} of room {room} is not applied: {why}")));
            }
        }
        self.through = last;
        Ok(last.is_some() && count >= limit)
    }
}
