//! Broadcasts on their way from the spool to the store, beside the events and never in their way, nor in each other's: one that the
//! store refuses for what it is stays in the spool, which has the only copy, and is tried again when it changed, or at the next
//! start. So is one that stays in the spool's list though it was marked as stored, with a pause before each try.
//!
//! Before any of them goes there, what the store has open and the spool does not know, because it is new or lost it,
//! comes from there into the spool: nobody else would ever end it. That is asked again now and then, where others write
//! to the store: a server that was there at the same time and has gone, or `spool replay`, leaves there what was open
//! in its own spool. Of what the spool does know the store may have a newer version, of a server that went on with it
//! while this one was away: the registry goes on from that, or all that comes from here would count as older.

use std::{collections::HashMap, sync::Arc, time::Instant};

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{LogWriter, SpoolCommand};
use crate::{
    broadcast::Broadcast,
    registry::RegistryMsg,
    seams::{NotPut, SpoolError},
};

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Records {
    /// The store has all of them, as far as is known.
    Stored,
    /// Some changed.
    Due,
    /// Some are under way, or a failure is slept over.
    Busy {
        /// More changed meanwhile.
        due: bool,
    },
}

impl LogWriter {
    /// Some broadcasts changed.
    pub(super) fn broadcasts_due(&mut self) {
        self.records = match self.records {
            Records::Busy { .. } => Records::Busy { due: true },
            Records::Stored | Records::Due => Records::Due,
        };
    }

    /// Takes what is due to the store, if nothing is under way.
    pub(super) fn advance_broadcasts(&mut self, ctx: &mut Context<Self>) {
        if self.records != Records::Due || !self.prepared() {
            return;
        }
        if self.adopts {
            return self.compare_with_store(ctx);
        }
        self.records = Records::Busy { due: false };
        let (reply, unstored) = oneshot::channel();
        let limit = self.parts.config.batch_max;
        self.parts
            .handle
            .queue
            .push(SpoolCommand::UnstoredBroadcasts { limit, reply });
        ctx.spawn(
            unstored
                .into_actor(self)
                .map(move |unstored, this, ctx| match unstored {
                    Ok(Ok(broadcasts)) if broadcasts.is_empty() => this.broadcasts_done(ctx),
                    Ok(Ok(broadcasts)) => {
                        // A row that says something else than its record is marked in vain.
                        let marked = std::mem::take(&mut this.marked);
                        match broadcasts
                            .first()
                            .filter(|_| broadcasts.iter().all(|one| marked.contains(one)))
                        {
                            Some(one) => this.broadcasts_failed(&not_marked(one), ctx),
                            None => this.store_broadcasts(broadcasts, ctx),
                        }
                    }
                    Ok(Err(error)) => this.broadcasts_failed(&error, ctx),
                    Err(_) => this.broadcasts_failed(&"the spool did not answer", ctx),
                }),
        );
    }

    /// Asks the store which broadcasts it has open: the spool takes in those that it lacks, and the registry is told of newer versions.
    /// Until it is done nothing goes to the store: what the spool had there has not ended there and gone from the spool meanwhile.
    fn compare_with_store(&mut self, ctx: &mut Context<Self>) {
        self.records = Records::Busy { due: true };
        self.adopts = false;
        let (store, writer) = (Arc::clone(&self.parts.store), self.parts.handle.clone());
        let adopted = async move {
            let kept = writer.broadcast_versions().await?;
            let open = store.open_broadcasts(kept.clone()).await;
            let open = open.map_err(|error| error.to_string())?.into_iter();
            let (newer, unknown): (Vec<_>, Vec<_>) = open.partition(|one| kept.contains_key(&one.id));
            writer.adopt_broadcasts(&unknown).await?;
            Ok(newer)
        };
        ctx.spawn(
            adopted
                .into_actor(self)
                .map(|result: Result<Vec<Broadcast>, String>, this, ctx| match result {
                    Ok(newer) => {
                        if !newer.is_empty() {
                            this.parts.registry.mailbox.push(RegistryMsg::Overtaken { newer });
                        }
                        this.adopted = true;
                        this.records = Records::Due;
                        this.advance_broadcasts(ctx);
                    }
                    // Ours need not wait: what was there before them is known. The next time it is asked again.
                    Err(why) if this.adopted => {
                        if let Some(more) = this.untold.due(Instant::now()) {
                            log::warn!(
                                "store: which broadcasts somebody else left open there is not known: {why}{more}"
                            );
                        }
                        this.records = Records::Due;
                        this.advance_broadcasts(ctx);
                    }
                    Err(why) => {
                        this.adopts = true;
                        let why = format!("which of them are open there is not known: {why}");
                        this.broadcasts_failed(&why, ctx);
                    }
                }),
        );
    }

    fn store_broadcasts(&mut self, broadcasts: Vec<Broadcast>, ctx: &mut Context<Self>) {
        let store = Arc::clone(&self.parts.store);
        let put = async move {
            let result = store.put_broadcasts(&broadcasts).await;
            (result, broadcasts)
        };
        ctx.spawn(put.into_actor(self).map(|(result, broadcasts), this, ctx| {
            let Sorted { stored, refused, wait } = match result {
                Ok(not_put) => sorted(broadcasts, not_put),
                Err(error) => return this.broadcasts_failed(&error, ctx),
            };
            let (reply, freed) = oneshot::channel();
            let marked = [&stored[..], &refused].concat();
            this.parts
                .handle
                .queue
                .push(SpoolCommand::BroadcastsStored { stored, refused, reply });
            ctx.spawn(
                freed.into_actor(this).map(
                    |freed: Result<Result<(), SpoolError>, _>, this, ctx| match (freed, wait) {
                        (Ok(Ok(())), None) => {
                            // There may be more than one batch of them.
                            this.marked = marked;
                            this.records = Records::Due;
                            this.advance_broadcasts(ctx);
                        }
                        (Ok(Ok(())), Some(reason)) => this.broadcasts_failed(&reason, ctx),
                        (Ok(Err(error)), _) => this.broadcasts_failed(&error, ctx),
                        (Err(_), _) => this.broadcasts_failed(&"the spool did not answer", ctx),
                    },
                ),
            );
        }));
    }

    fn broadcasts_done(&mut self, ctx: &mut Context<Self>) {
        let more = self.records == Records::Busy { due: true };
        self.records = if more { Records::Due } else { Records::Stored };
        self.advance_broadcasts(ctx);
    }

    fn broadcasts_failed(&mut self, error: &dyn std::fmt::Display, ctx: &mut Context<Self>) {
        log::warn!("store: broadcasts are not stored yet, they stay in the spool: {error}");
        ctx.run_later(self.parts.config.retry_max, |this, ctx| {
            this.records = Records::Due;
            this.advance_broadcasts(ctx);
        });
    }
}

fn not_marked(one: &Broadcast) -> String {
    format!(
        "broadcast {} of room {} was marked as stored and is not: its record says something else than its row; `spool verify` \
         tells which",
        one.id, one.presenter
    )
}

/// What became of some broadcasts.
#[derive(Default)]
struct Sorted {
    stored: Vec<Broadcast>,
    /// For good, as they are.
    refused: Vec<Broadcast>,
    /// Why one of them was not taken that may be taken later.
    wait: Option<String>,
}

/// Sorts them by what the store said, and tells of what it refused.
fn sorted(broadcasts: Vec<Broadcast>, not_put: Vec<NotPut>) -> Sorted {
    let mut not_put: HashMap<_, _> = not_put.into_iter().map(|one| (one.index, one)).collect();
    let mut sorted = Sorted::default();
    for (index, broadcast) in broadcasts.into_iter().enumerate() {
        match not_put.remove(&index) {
            None => sorted.stored.push(broadcast),
            Some(one) if one.for_good => {
                log::error!(
                    "store: broadcast {} of room {} is refused, it stays in the spool and is tried again when it changes or at \
                     the next start: {}",
                    broadcast.id,
                    broadcast.presenter,
                    one.reason
                );
                sorted.refused.push(broadcast);
            }
            Some(one) => sorted.wait = Some(one.reason),
        }
    }
    sorted
}
