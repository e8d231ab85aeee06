//! Broadcasts on their way from the spool to the store, beside the events and never in their way.

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{LogWriter, SpoolCommand};
use crate::{broadcast::Broadcast, seams::SpoolError};

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
                    Ok(Ok(broadcasts)) => this.store_broadcasts(broadcasts, ctx),
                    Ok(Err(error)) => this.broadcasts_failed(&error, ctx),
                    Err(_) => this.broadcasts_failed(&"the spool did not answer", ctx),
                }),
        );
    }

    fn store_broadcasts(&mut self, broadcasts: Vec<Broadcast>, ctx: &mut Context<Self>) {
        let store = std::sync::Arc::clone(&self.parts.store);
        let put = async move {
            let result = store.put_broadcasts(&broadcasts).await;
            (result, broadcasts)
        };
        ctx.spawn(put.into_actor(self).map(|(result, stored), this, ctx| {
            if let Err(error) = result {
                return this.broadcasts_failed(&error, ctx);
            }
            let (reply, freed) = oneshot::channel();
            this.parts
                .handle
                .queue
                .push(SpoolCommand::BroadcastsStored { stored, reply });
            ctx.spawn(
                freed
                    .into_actor(this)
                    .map(|freed: Result<Result<(), SpoolError>, _>, this, ctx| match freed {
                        Ok(Ok(())) => {
                            // There may be more than one batch of them.
                            this.records = Records::Due;
                            this.advance_broadcasts(ctx);
                        }
                        Ok(Err(error)) => this.broadcasts_failed(&error, ctx),
                        Err(_) => this.broadcasts_failed(&"the spool did not answer", ctx),
                    }),
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
