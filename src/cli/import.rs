//! `import`: NDJSON exports into an empty log.
//!
//! The files are read whole before anything is written, and what is read while it is written must be the same. The spool remembers
//! which files an import is of, in which order, until it has ended, so one that was interrupted, however, is run again with the same
//! files and writes what is missing; what is there already is not written twice. Where a broadcast is in two files, the newer of its records
//! is kept, whichever comes first; the order counts for how its start was corrected, which the later file says.
//!
//! Two events of the files may have one number in one numbering, as where one was parked because of the other. The store takes the first,
//! and the second under an epoch of its own.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use chatting_actors::{
    broadcast::Broadcast,
    clock::system_ms,
    seams::{NotPut, Poison, StoreError},
    types::{Event, PresenterIdx},
};
use clap::Args;
use futures_util::{FutureExt, future::LocalBoxFuture};
use uuid::Uuid;

use super::{
    Failure, SettingsArgs,
    log::{Log, behind, in_place, let_go, take_spool},
    print,
    progress::Progress,
    serve::stop_signal,
    spool::counted,
    until_it_ends,
};
use crate::{
    export::import::{Contents, Item, Lines, Tally, apart, check},
    settings::Settings,
    store::{Archive, LateMessages, Logged, SqliteSpool, StoredBroadcast, is_numbering_conflict},
    telemetry,
};

#[derive(Args)]
pub(super) struct ImportArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// NDJSON exports; several broadcasts may be in one file
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub(super) fn run(args: &ImportArgs) -> Result<ExitCode, Failure> {
    let settings = args.settings.load()?.settings;
    telemetry::init(&settings);
    let contents = check(&args.files, system_ms())?;
    until_it_ends(async {
        let (mut spool, _) = take_spool(&settings, "an import goes into a log that no server uses")?;
        let done = import(&settings, args, &contents, &mut spool).await;
        let_go(spool, &settings, done)
    })
}

/// How it goes on.
const AGAIN: &str = "run it again with the same files, in the same order, to go on";

fn unwritten(error: &StoreError) -> Failure {
    Failure::unavailable(format!("the store cannot be asked: {error}\n{AGAIN}"))
}

async fn import(
    settings: &Settings,
    args: &ImportArgs,
    contents: &Contents,
    spool: &mut SqliteSpool,
) -> Result<ExitCode, Failure> {
    let Log { store, place } = behind(settings, spool, true).await?;
    let written = write(settings, args, contents, spool, store);
    in_place(place, |error| unwritten(&error), written).await
}

async fn write(
    settings: &Settings,
    args: &ImportArgs,
    contents: &Contents,
    spool: &mut SqliteSpool,
    store: Arc<dyn Archive>,
) -> Result<ExitCode, Failure> {
    store.prepare().await.map_err(|error| unwritten(&error))?;
    let goes_on = admit(contents, spool, &*store).await?;
    let rooms = contents.rooms.iter().map(|(room, last)| (*room, *last));
    let begun = spool.begin_import(&contents.digest, rooms, contents.newest_ms);
    begun.map_err(Failure::spool)?;
    let began = Instant::now();
    let mut writing = Writing {
        store,
        batch: Vec::new(),
        batch_max: settings.log.batch_max,
        progress: Progress::new("events", contents.events),
        refused: 0,
        apart: 0,
        goes_on,
        newest_acts: HashMap::new(),
        late: LateMessages::default(),
        records: HashMap::new(),
        stop: stop_signal()?.boxed_local(),
    };
    let mut read = Tally::default();
    for file in &args.files {
        let mut lines = Lines::open(file, system_ms())?;
        while let Some(item) = lines.next()? {
            read.item(&item);
            writing.item(item).await?;
        }
        read.file(lines);
    }
    writing.flush().await?;
    writing.mark_late().await?;
    let (refused, apart) = (writing.refused, writing.apart);
    drop(writing);
    if refused > 0 {
        return Err(Failure::problem(format!(
            "the store refuses {}, the others are in the log\nthe import has not ended; when the store takes all of them, {AGAIN}",
            counted(refused, "event")
        )));
    }
    if read.contents() != *contents {
        return Err(Failure::problem(
            "the files changed while they were imported, so the log holds something else than was checked, and the import has \
             not ended: begin again with an empty log (another log.path, another database)",
        ));
    }
    spool.end_import().map_err(Failure::spool)?;
    print(&format!(
        "imported: {} of {} read into {}, {:.1} s\n",
        counted(contents.events, "event"),
        counted(contents.broadcasts, "broadcast"),
        settings.log.backend,
        began.elapsed().as_secs_f64()
    ));
    if apart > 0 {
        print(&format!(
            "apart: {} got an epoch of their own, because others have their numbers: in the room's history, but not in replays, \
             figures and exports\n",
            counted(apart, "event")
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses where this import may not go into this log. It may where that holds nothing, or a part of the same import, which it then goes
/// on with: returns whether it does.
async fn admit(contents: &Contents, spool: &mut SqliteSpool, store: &dyn Archive) -> Result<bool, Failure> {
    let refuse = |why: String| Err(Failure::problem(format!("{why}; nothing was imported")));
    match spool.importing().map_err(Failure::spool)? {
        Some(digest) if digest == contents.digest => return Ok(true),
        Some(_) => return refuse(
            "an import of other files has begun and not ended, or of these in another order: run that one again first"
                .into(),
        ),
        None => {}
    }
    let waiting = spool.count_left().map_err(Failure::spool)?;
    let parked = spool.count_parked().map_err(Failure::spool)?;
    if waiting + parked > 0 {
        let waiting = counted(waiting, "event");
        return refuse(format!(
            "the log is not empty: its spool holds {waiting} to go and {parked} parked"
        ));
    }
    if !store.is_empty().await.map_err(|error| unwritten(&error))? {
        return refuse("the log is not empty: imports go into a new database or a new log.path".into());
    }
    Ok(false)
}

/// The newest record of a broadcast so far, of those in the files.
struct Newest {
    /// Its version, and when it ended: a broadcast that went on ended with its export.
    of: (u64, Option<i64>),
    /// The version that it was given here.
    version: u64,
}

struct Writing {
    store: Arc<dyn Archive>,
    batch: Vec<Logged>,
    batch_max: usize,
    progress: Progress,
    refused: u64,
    /// Events whose numbers others had, and which this run stored under an epoch of their own.
    apart: u64,
    /// It goes on: a server that ran since it began may have deleted some of what comes only now.
    goes_on: bool,
    /// The newest act of each room so far. What is older and comes behind it, as where the file of a later broadcast is the first, it has
    /// not marked.
    newest_acts: HashMap<PresenterIdx, Uuid>,
    late: LateMessages,
    records: HashMap<Uuid, Newest>,
    stop: LocalBoxFuture<'static, ()>,
}

impl Writing {
    async fn item(&mut self, item: Item) -> Result<(), Failure> {
        match item {
            Item::Broadcast(record) => {
                // Its events come behind it: what is imported by half is a broadcast that lacks its end.
                self.flush().await?;
                self.broadcast(*record).await
            }
            Item::Event(logged) => {
                self.batch.push(*logged);
                if self.batch.len() >= self.batch_max {
                    self.flush().await?;
                }
                Ok(())
            }
        }
    }

    async fn broadcast(&mut self, record: StoredBroadcast) -> Result<(), Failure> {
        let id = record.broadcast.id;
        match self.put(record).await.map_err(|error| unwritten(&error))? {
            None => Ok(()),
            Some(refused) if refused.for_good => Err(Failure::problem(format!(
                "MongoDB refuses broadcast {id}: {}\nthe import has not ended; when MongoDB takes it, {AGAIN}",
                refused.reason
            ))),
            Some(refused) => Err(unwritten(&StoreError(refused.reason))),
        }
    }

    /// Returns why it was not kept, where it was not.
    async fn put(&mut self, record: StoredBroadcast) -> Result<Option<NotPut>, StoreError> {
        let id = record.broadcast.id;
        if let Some(newer) = self.newer(record.broadcast)
            && let Some(refused) = self.store.put_broadcasts(&[newer]).await?.pop()
        {
            return Ok(Some(refused));
        }
        self.store.correct_broadcast(id, record.corrected_start_ms).await?;
        if record.legal_hold {
            self.store.hold_broadcast(id, true).await?;
        }
        Ok(None)
    }

    /// The record, if it is newer than what the files had of its broadcast so far, with a version that says so to the store: two exports
    /// of a broadcast that goes on have the same one.
    fn newer(&mut self, mut record: Broadcast) -> Option<Broadcast> {
        let of = (record.version, record.ended_at_ms);
        match self.records.entry(record.id) {
            Entry::Vacant(first) => {
                first.insert(Newest {
                    of,
                    version: record.version,
                });
            }
            Entry::Occupied(before) if of <= before.get().of => return None,
            Entry::Occupied(mut before) => {
                record.version = record.version.max(before.get().version + 1);
                before.insert(Newest {
                    of,
                    version: record.version,
                });
            }
        }
        Some(record)
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.go_on()?;
        let count = self.batch.len() as u64;
        let refused = self.write().await.map_err(|error| unwritten(&error))?;
        self.refused += refused;
        self.progress.advance(count);
        Ok(())
    }

    /// Between two steps: whether to take the next one.
    fn go_on(&mut self) -> Result<(), Failure> {
        match self.stop.as_mut().now_or_never() {
            None => Ok(()),
            Some(()) => Err(Failure::interrupted(AGAIN)),
        }
    }

    async fn mark_late(&mut self) -> Result<(), Failure> {
        loop {
            self.go_on()?;
            let marked = self.late.mark_some(&*self.store, self.batch_max).await;
            if !marked.map_err(|error| unwritten(&error))? {
                return Ok(());
            }
        }
    }

    async fn write(&mut self) -> Result<u64, StoreError> {
        let logged = std::mem::take(&mut self.batch);
        for Logged { event, .. } in &logged {
            let newest_act = self.newest_acts.entry(event.presenter_idx).or_default();
            if event.act.is_some() {
                *newest_act = event.id.max(*newest_act);
            } else if self.goes_on || event.id < *newest_act {
                self.late.add(event);
            }
        }
        let marks = logged
            .iter()
            .filter_map(|logged| Some((logged.event.id, logged.deleted?)));
        let marks: Vec<_> = marks.collect();
        let events = logged.into_iter().map(|logged| Arc::new(logged.event)).collect();
        let refused = self.append(events).await?;
        self.store.mark_deleted(marks).await?;
        Ok(refused)
    }

    /// Returns how many of these the store refuses, but those whose numbers others have: what it refused so it is given again under an
    /// epoch of its own, and what it has it takes under no other (rule 4). Each time fewer are left of those that have one number.
    async fn append(&mut self, mut events: Vec<Arc<Event>>) -> Result<u64, StoreError> {
        let (mut refused, mut first) = (0, true);
        while !events.is_empty() {
            let batch = Arc::new(events);
            let mut again = Vec::new();
            for Poison { index, reason } in self.store.append(Arc::clone(&batch)).await? {
                let Some(event) = batch.get(index) else {
                    continue;
                };
                if is_numbering_conflict(&reason) {
                    again.push(Arc::new(apart(event)));
                    continue;
                }
                refused += 1;
                let (id, room, seq) = (event.id, event.presenter_idx, event.seq);
                self.progress
                    .say(&format!("refused {id}, room {room}, seq {seq}: {reason}"));
            }
            if std::mem::take(&mut first) {
                self.apart += again.len() as u64;
            }
            events = again;
        }
        Ok(refused)
    }
}
