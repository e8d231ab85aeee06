//! `export`: a broadcast's chat, or a whole room's, as a file.
//!
//! Reads the log itself, so it needs no server and may run beside one. A file gets its name when it is whole, not before; until then it
//! has one that no other export has, though both are for the same file.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use chatting_actors::{clock::system_ms, types::PresenterIdx};
use clap::Args;
use futures_util::FutureExt;
use uuid::Uuid;

use super::{Failure, SettingsArgs, eprint, log::to_read, progress::Progress, serve::stop_signal, until_it_ends};
use crate::{
    export::{Deletions, Export, Format, Options},
    files::{directory_of, sync_directory},
    store::{History, StoredBroadcast, history::HistoryError},
    telemetry,
};

/// Broadcasts of a room that are looked up at once.
const BROADCASTS: usize = 100;

#[derive(Args)]
#[group(id = "what", required = true, multiple = false, args = ["broadcast", "room"])]
pub(super) struct ExportArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// The broadcast, by its id
    #[arg(long, value_name = "ID", value_parser = broadcast_id)]
    broadcast: Option<Uuid>,
    /// Every broadcast of this room (presenter number), the oldest first; with ndjson only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    room: Option<i64>,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Ndjson)]
    format: Format,
    /// What becomes of deleted messages [default: mark with ndjson and csv; the others always omit]
    #[arg(long, value_enum)]
    deleted: Option<Deletions>,
    /// Where to write it [default: standard output]; what is there is replaced when the file is whole
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn broadcast_id(text: &str) -> Result<Uuid, String> {
    Uuid::parse_str(text).map_err(|_| {
        "a broadcast's id is a UUID, as in 019b76da-a800-7000-8000-000000000001; a presenter's number is for --room"
            .into()
    })
}

pub(super) fn run(args: &ExportArgs) -> Result<ExitCode, Failure> {
    let deletions = Deletions::read(args.deleted.map(Deletions::as_str), args.format);
    let deletions = deletions.map_err(|allowed| Failure::usage(format!("--deleted: {allowed}")))?;
    if args.room.is_some() && args.format != Format::Ndjson {
        return Err(Failure::usage(
            "--room: with --format ndjson only, which can hold many broadcasts",
        ));
    }
    let settings = args.settings.load()?.settings;
    telemetry::init(&settings);
    let options = Options {
        format: args.format,
        deletions,
        page_rows: settings.export.page_rows,
        cue_ms: settings.export.cue_ms.cast_signed(),
        now_ms: system_ms(),
    };
    until_it_ends(async {
        let store = to_read(&settings).await?;
        let history = History::new(settings.log.path.clone().into(), store, 1);
        let records = records(&history, args).await?;
        let mut output = Output::open(args.output.as_deref())?;
        let mut events = 0;
        for record in records {
            match write(&history, record, options, &mut output).await? {
                Wrote::All(more) => events += more,
                Wrote::ReaderGone => return Ok(ExitCode::SUCCESS),
            }
        }
        match output.finish() {
            Err(error) if is_reader_gone(&error) => return Ok(ExitCode::SUCCESS),
            finished => finished?,
        }
        eprint(&format!("chatting-server: exported {events} events"));
        Ok(ExitCode::SUCCESS)
    })
}

/// What became of one broadcast.
enum Wrote {
    /// So many events were read for it.
    All(u64),
    /// Whoever reads our standard output has enough, as `head` does.
    ReaderGone,
}

fn is_reader_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

fn unread(error: HistoryError) -> Failure {
    Failure::unavailable(format!("the log cannot be read: {error}"))
}

async fn records(history: &History, args: &ExportArgs) -> Result<Vec<StoredBroadcast>, Failure> {
    if let Some(id) = args.broadcast {
        let found = history.broadcast(id).await.map_err(unread)?;
        let found = found.ok_or_else(|| Failure::problem(format!("there is no broadcast {id} in this log")))?;
        return Ok(vec![found]);
    }
    let mut all = Vec::new();
    if let Some(room) = args.room.and_then(PresenterIdx::new) {
        let mut unreadable = BTreeSet::new();
        loop {
            let before = all.last().map(|last: &StoredBroadcast| last.broadcast.id);
            let page = history.broadcasts(room, before, BROADCASTS).await.map_err(unread)?;
            unreadable.extend(page.unreadable);
            if page.broadcasts.is_empty() {
                break;
            }
            all.extend(page.broadcasts);
        }
        if !unreadable.is_empty() {
            // Whoever has the file takes it for all that there was.
            return Err(Failure::problem(incomplete(room, &unreadable)));
        }
        if all.is_empty() {
            return Err(Failure::problem(format!("room {room} has no broadcast in this log")));
        }
    }
    all.reverse();
    Ok(all)
}

/// Why nothing was exported of a room some of whose broadcasts cannot be read.
fn incomplete(room: PresenterIdx, unreadable: &BTreeSet<Uuid>) -> String {
    let ids: Vec<String> = unreadable.iter().map(Uuid::to_string).collect();
    format!(
        "nothing was exported: room {room} has broadcasts whose record cannot be read: {}\n\
         their messages are in the log all the same; --broadcast exports the others, one by one",
        ids.join(", ")
    )
}

/// Writes one broadcast.
async fn write(
    history: &History,
    record: StoredBroadcast,
    options: Options,
    output: &mut Output,
) -> Result<Wrote, Failure> {
    let mut stop = stop_signal()?.boxed_local();
    let mut export = Export::begin(history.clone(), record, options).await.map_err(unread)?;
    let progress = Progress::new("events", export.expected());
    let mut events = 0;
    loop {
        let next = export.next();
        let piece = tokio::select! {
            biased;
            () = &mut stop => return Err(Failure::interrupted(output.left())),
            piece = next => piece.map_err(unread)?,
        };
        let Some(piece) = piece else {
            return Ok(Wrote::All(events));
        };
        match output.writer.write_all(&piece.bytes) {
            Err(error) if is_reader_gone(&error) => return Ok(Wrote::ReaderGone),
            written => written.map_err(|error| output.named(&error))?,
        }
        events += piece.events;
        progress.advance(piece.events);
    }
}

/// Where the file goes: a name beside its own until it is whole.
struct Output {
    writer: BufWriter<Box<dyn Write>>,
    part: Option<Part>,
    /// Syncs a directory.
    sync: fn(&Path) -> io::Result<()>,
}

/// A file that is not whole yet.
struct Part {
    file: File,
    /// What it is called,
    now: PathBuf,
    /// and what it will be.
    then: PathBuf,
}

impl Output {
    fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else {
            let writer: Box<dyn Write> = Box::new(io::stdout());
            return Ok(Self {
                writer: BufWriter::new(writer),
                part: None,
                sync: sync_directory,
            });
        };
        let mut now = path.as_os_str().to_owned();
        now.push(format!(".{:08x}.part", rand::random::<u32>()));
        let now = PathBuf::from(now);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", now.display()));
        // Chat is personal data: it is written into nothing that is there, whosever it is and wherever it leads.
        let mut options = OpenOptions::new();
        let file = options.create_new(true).write(true).mode(0o600).open(&now);
        let file = file.map_err(named)?;
        let writer: Box<dyn Write> = Box::new(file.try_clone()?);
        Ok(Self {
            writer: BufWriter::new(writer),
            part: Some(Part {
                file,
                now,
                then: path.to_owned(),
            }),
            sync: sync_directory,
        })
    }

    /// What is left of it when it does not get whole.
    fn left(&self) -> &'static str {
        match self.part {
            Some(_) => "nothing was exported",
            None => "what was written is cut off",
        }
    }

    /// An error of its own, with what could not be written.
    fn named(&self, error: &io::Error) -> io::Error {
        let name = match &self.part {
            Some(part) => part.now.display().to_string(),
            None => "standard output".to_owned(),
        };
        io::Error::new(error.kind(), format!("{name}: {error}"))
    }

    fn finish(mut self) -> io::Result<()> {
        let done = self.get_whole();
        done.map_err(|error| self.named(&error))?;
        // Nothing is left to be removed.
        self.part = None;
        Ok(())
    }

    fn get_whole(&mut self) -> io::Result<()> {
        self.writer.flush()?;
        if let Some(part) = &self.part {
            part.file.sync_all()?;
            fs::rename(&part.now, &part.then)?;
            // The name is in the directory. That this cannot be synced takes nothing back: only a machine that goes down
            // may lose it.
            let directory = directory_of(&part.then);
            if let Err(error) = (self.sync)(directory) {
                log::warn!("export: {} cannot be synced: {error}", directory.display());
            }
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            let _ = fs::remove_file(&part.now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_file_that_has_its_name_keeps_it_and_is_there_also_where_that_cannot_be_made_sure() {
        static SYNCED: AtomicUsize = AtomicUsize::new(0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.ndjson");
        let mut output = Output::open(Some(&path)).unwrap();
        output.sync = |directory| {
            SYNCED.fetch_add(1, Ordering::Relaxed);
            // What it was called before is not there any more.
            assert_eq!(fs::read_dir(directory)?.count(), 1);
            assert_eq!(fs::read(directory.join("chat.ndjson"))?, b"{}");
            Err(io::ErrorKind::InvalidInput.into())
        };
        output.writer.write_all(b"{}").unwrap();
        output.finish().unwrap();
        assert_eq!(SYNCED.load(Ordering::Relaxed), 1);
        assert_eq!(fs::read(&path).unwrap(), b"{}");
    }

    #[test]
    fn two_exports_to_one_file_are_each_whole_when_they_have_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.ndjson");
        let [mut one, mut other, broken_off] = [(); 3].map(|()| Output::open(Some(&path)).unwrap());
        for output in [&mut one, &mut other] {
            output.writer.write_all(b"{}").unwrap();
            output.writer.flush().unwrap();
        }
        one.writer.write_all(b" of one").unwrap();
        one.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"{} of one");
        other.writer.write_all(b" of the other").unwrap();
        other.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"{} of the other");
        drop(broken_off);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
