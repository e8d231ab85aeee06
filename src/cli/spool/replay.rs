//! `spool replay`: takes what a stopped server left in its spool to the store, and frees it.
//!
//! It does what the running server does: a batch to the store, then one transaction that frees its rows; broadcasts
//! when the events are there, for whoever has the log ends at their last message what is open there. The log may have
//! been another server's since, and what was deleted there is marked. It may end between any two steps, however it
//! ends; what the store has already is not written twice.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use chatting_actors::{
    seams::{NotPut, Poison, Pos, Spool, SpoolError, StoreBatch, StoreError},
    types::Event,
    writer::SpoolInfo,
};
use clap::Args;
use futures_util::{FutureExt, future::LocalBoxFuture};

use super::{
    super::{
        log::{Log, behind, let_go, must_exist, take_spool},
        progress::Progress,
        serve::stop_signal,
        until_it_ends,
    },
    Exit, Failure, counted, print,
};
use crate::{
    settings::Settings,
    store::{Archive, LateMessages, SqliteSpool},
    telemetry,
};

/// A batch that the store does not take is tried so many times in all, with the pauses of log.retry_min_ms and retry_max_ms.
const TRIES: u32 = 5;

#[derive(Args)]
pub(super) struct ReplayArgs {
    /// Try parked events again too: those that the store takes now leave the spool, the others stay with their new reason
    #[arg(long)]
    parked: bool,
}

pub(super) fn run(args: &ReplayArgs, settings: &Settings) -> Result<ExitCode, Failure> {
    telemetry::init(settings);
    must_exist(settings)?;
    until_it_ends(async {
        let (mut spool, info) = take_spool(settings, "while it runs it takes its spool to the store itself")?;
        let done = replay(args, settings, &info, &mut spool).await;
        let_go(spool, settings, done)
    })
}

async fn replay(
    args: &ReplayArgs,
    settings: &Settings,
    info: &SpoolInfo,
    spool: &mut SqliteSpool,
) -> Result<ExitCode, Failure> {
    // No place is taken: a server with another spool may write to this log meanwhile. Nothing is numbered here, and what is taken
    // there has its numbers in the epochs of this spool, where nobody else gives any.
    let Log { store, .. } = behind(settings, spool, false).await?;
    let mut replay = Replay {
        settings,
        spool,
        store,
        stop: stop_signal()?.boxed_local(),
        stopped: false,
    };
    let total = (info.last - info.first + 1).cast_unsigned();
    replay.run(info.first - 1, total, args.parked).await
}

/// Why it ended before the end.
enum Ended {
    Interrupted,
    Store(StoreError),
    Spool(SpoolError),
    /// A broadcast stays though it was marked as stored.
    Record,
}

impl From<SpoolError> for Ended {
    fn from(error: SpoolError) -> Self {
        Self::Spool(error)
    }
}

#[derive(Default)]
struct Totals {
    /// Events that the store has, and batches that they went in.
    stored: u64,
    batches: u64,
    /// Broadcasts that the store has.
    broadcasts: u64,
    /// Parked events that were tried again, and of them those that the store has now.
    tried: u64,
    unparked: u64,
    /// Of these, acts that stay parked, too, for the messages that they cover.
    kept: u64,
}

struct Replay<'a> {
    settings: &'a Settings,
    spool: &'a mut SqliteSpool,
    store: Arc<dyn Archive>,
    stop: LocalBoxFuture<'static, ()>,
    stopped: bool,
}

impl Replay<'_> {
    async fn run(&mut self, after: Pos, total: u64, parked_too: bool) -> Result<ExitCode, Failure> {
        let began = Instant::now();
        let mut totals = Totals::default();
        let before = self.count(SqliteSpool::count_parked)?;
        let mut ended = self.events(after, total, &mut totals).await;
        // What the store refused, and what cannot be read.
        let more = self.count(SqliteSpool::count_parked)?.saturating_sub(before);
        if ended.is_ok() {
            ended = self.broadcasts(&mut totals).await;
            // One broadcast that stays is no reason for these.
            if parked_too && matches!(ended, Ok(()) | Err(Ended::Store(_) | Ended::Record)) {
                ended = self.parked(&mut totals).await.and(ended);
            }
        }
        let (left, parked, records) = (
            self.count(SqliteSpool::count_left)?,
            self.count(SqliteSpool::count_parked)?,
            self.count(SqliteSpool::count_unstored_broadcasts)?,
        );
        print(&format!(
            "replayed: {} in {} batches to {}, {:.1} s; {left} to go\n",
            counted(totals.stored, "event"),
            totals.batches,
            self.settings.log.backend,
            began.elapsed().as_secs_f64()
        ));
        if totals.broadcasts + records > 0 {
            print(&format!(
                "broadcasts: {} in the store now; {records} to go\n",
                totals.broadcasts
            ));
        }
        if parked_too {
            let both = match totals.kept {
                0 => String::new(),
                kept => format!("; {kept} are both: kept for the parked messages that they cover"),
            };
            print(&format!(
                "parked: {} tried again, {} of them are in the store now, {parked} are parked{both}\n",
                totals.tried, totals.unparked
            ));
        } else if parked > 0 {
            print(&format!(
                "parked: {more} more, {parked} in all; `spool status` tells why, `spool replay --parked` tries them again\n"
            ));
        }
        match ended {
            // They were accepted, and the store does not have them; or it lacks what a replay finds them by.
            Ok(()) if parked + records > 0 => Ok(Exit::Problem.into()),
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(Ended::Interrupted) => Err(Failure::interrupted("run it again to go on")),
            Err(Ended::Store(error)) => Err(Failure::unavailable(format!(
                "the store does not take events, they stay in the spool: {error}"
            ))),
            Err(Ended::Record) => Err(Failure::unavailable(
                "the spool: a broadcast's record says something else than its row; `spool verify` tells which",
            )),
            Err(Ended::Spool(error)) => Err(Failure::unavailable(format!(
                "the spool: {error}; `spool verify` tells what is wrong with it"
            ))),
        }
    }

    fn count(&mut self, what: fn(&mut SqliteSpool) -> Result<u64, SpoolError>) -> Result<u64, Failure> {
        what(self.spool).map_err(|error| Failure::unavailable(error.to_string()))
    }

    async fn events(&mut self, mut after: Pos, total: u64, totals: &mut Totals) -> Result<(), Ended> {
        if total == 0 {
            return Ok(());
        }
        let progress = Progress::new("events", total);
        self.prepare(&progress).await?;
        loop {
            self.go_on()?;
            let rows = self.spool.read(after, self.settings.log.batch_max)?;
            let Some((through, _)) = rows.last() else {
                return Ok(());
            };
            let batch = Arc::new(rows.iter().map(|(_, event)| Arc::clone(event)).collect());
            let poison = self.append(&batch, &progress).await?;
            self.mark_late(&batch, &progress).await?;
            let parked: Vec<_> = poison
                .into_iter()
                .filter_map(|poison| {
                    let (pos, event) = rows.get(poison.index)?.clone();
                    progress.say(&format!("parked {}", refusal(&event, &poison.reason)));
                    Some((pos, event, poison.reason))
                })
                .collect();
            // Which keys are remembered the next start finds out: none goes here.
            self.spool.free(*through, &parked, i64::MIN)?;
            after = *through;
            totals.batches += 1;
            totals.stored += (rows.len() - parked.len()) as u64;
            progress.advance(rows.len() as u64);
        }
    }

    /// Those that the store does not have as they are, open ones too: the server that has this log takes them up there.
    async fn broadcasts(&mut self, totals: &mut Totals) -> Result<(), Ended> {
        let total = self.spool.count_unstored_broadcasts()?;
        if total == 0 {
            return Ok(());
        }
        let progress = Progress::new("broadcasts", total);
        self.prepare(&progress).await?;
        let (mut told, mut tries) = (HashSet::new(), TRIES);
        loop {
            self.go_on()?;
            let batch = self.spool.unstored_broadcasts(self.settings.log.batch_max)?;
            if batch.is_empty() {
                return Ok(());
            }
            let before = told.len();
            let store = &Arc::clone(&self.store);
            let put = self.tried(&progress, async || store.put_broadcasts(&batch).await);
            let not_put: HashMap<_, _> = put.await?.into_iter().map(|one| (one.index, one)).collect();
            let (mut stored, mut refused, mut later) = (Vec::new(), Vec::new(), None);
            for (index, broadcast) in batch.iter().enumerate() {
                let (id, room) = (broadcast.id, broadcast.presenter);
                match not_put.get(&index) {
                    None => {
                        stored.push(broadcast.clone());
                        totals.broadcasts += u64::from(!told.contains(&id));
                    }
                    Some(one) if !one.for_good => {
                        later = Some(format!("broadcast {id} of room {room}: {}", one.reason));
                        continue;
                    }
                    Some(NotPut { reason, .. }) => {
                        progress.say(&format!("refused: broadcast {id} of room {room}, it stays: {reason}"));
                        refused.push(broadcast.clone());
                    }
                }
                told.insert(id);
            }
            self.spool.broadcasts_stored(&stored, &refused)?;
            progress.advance((told.len() - before) as u64);
            if told.len() > before {
                tries = TRIES;
                continue;
            }
            // Nothing of this batch was new.
            let Some(why) = later else {
                return Err(Ended::Record);
            };
            tries -= 1;
            if tries == 0 {
                return Err(Ended::Store(StoreError(why)));
            }
            progress.say(&format!("the store does not take all, {tries} more tries: {why}"));
            self.rest(Duration::from_millis(self.settings.log.retry_max_ms)).await?;
        }
    }

    async fn parked(&mut self, totals: &mut Totals) -> Result<(), Ended> {
        let total = self.spool.count_parked()?;
        if total == 0 {
            return Ok(());
        }
        let progress = Progress::new("parked events", total);
        self.prepare(&progress).await?;
        let mut after = Vec::new();
        loop {
            self.go_on()?;
            let rows = self.spool.read_parked(&after, self.settings.log.batch_max)?;
            let Some(last) = rows.last() else {
                return Ok(());
            };
            after.clone_from(&last.id);
            let mut batch = Vec::new();
            for row in &rows {
                match &row.event {
                    Ok(event) => batch.push(Arc::clone(event)),
                    Err(error) => progress.say(&format!("a parked event cannot be read, it stays: {error}")),
                }
            }
            let batch = Arc::new(batch);
            let mut refused = Vec::new();
            let mut stored: Vec<_> = batch.iter().map(|event| event.id).collect();
            for poison in self.append(&batch, &progress).await? {
                if let Some(event) = batch.get(poison.index) {
                    progress.say(&format!("still parked: {}", refusal(event, &poison.reason)));
                    stored.retain(|id| *id != event.id);
                    refused.push((event.id, poison.reason));
                }
            }
            self.mark_late(&batch, &progress).await?;
            let forgotten = self.spool.unpark(&stored, &refused)?;
            totals.tried += batch.len() as u64;
            totals.unparked += stored.len() as u64;
            totals.kept += (stored.len() as u64).saturating_sub(forgotten);
            progress.advance(rows.len() as u64);
        }
    }

    /// Between two steps: whether to take the next one.
    fn go_on(&mut self) -> Result<(), Ended> {
        self.stopped = self.stopped || self.stop.as_mut().now_or_never().is_some();
        if self.stopped { Err(Ended::Interrupted) } else { Ok(()) }
    }

    async fn prepare(&mut self, progress: &Progress) -> Result<(), Ended> {
        let store = Arc::clone(&self.store);
        self.tried(progress, async || store.prepare().await).await
    }

    async fn append(&mut self, batch: &StoreBatch, progress: &Progress) -> Result<Vec<Poison>, Ended> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let store = Arc::clone(&self.store);
        self.tried(progress, async || store.append(Arc::clone(batch)).await)
            .await
    }

    /// Another server may have taken deletions to the store since these were said. Before they leave the spool: what is interrupted here
    /// is done again.
    async fn mark_late(&mut self, batch: &[Arc<Event>], progress: &Progress) -> Result<(), Ended> {
        let (store, limit) = (Arc::clone(&self.store), self.settings.log.batch_max);
        let mut late = LateMessages::of(batch);
        while self
            .tried(progress, async || late.mark_some(&*store, limit).await)
            .await?
        {
            self.go_on()?;
        }
        Ok(())
    }

    /// A pause, unless it is interrupted.
    async fn rest(&mut self, pause: Duration) -> Result<(), Ended> {
        let over = pin!(tokio::time::sleep(pause));
        tokio::select! {
            () = &mut self.stop => self.stopped = true,
            () = over => {}
        }
        self.go_on()
    }

    async fn tried<T>(
        &mut self,
        progress: &Progress,
        mut work: impl AsyncFnMut() -> Result<T, StoreError>,
    ) -> Result<T, Ended> {
        let mut pause = Duration::from_millis(self.settings.log.retry_min_ms);
        for left in (0..TRIES).rev() {
            match work().await {
                Ok(done) => return Ok(done),
                Err(error) if left == 0 => return Err(Ended::Store(error)),
                Err(error) => progress.say(&format!("the store does not take events, {left} more tries: {error}")),
            }
            self.rest(pause).await?;
            pause = (pause * 2).min(Duration::from_millis(self.settings.log.retry_max_ms));
        }
        Err(Ended::Interrupted)
    }
}

fn refusal(event: &Event, reason: &str) -> String {
    format!(
        "{}, room {}, seq {}: {reason}",
        event.id, event.presenter_idx, event.seq
    )
}
