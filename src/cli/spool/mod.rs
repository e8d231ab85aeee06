//! `spool`: what an operator asks and does about the spool: `status`, `verify`, `replay`.

mod replay;
mod status;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};

use super::{Exit, Failure, SettingsArgs, print};
use crate::{settings::Settings, store::inspect::SpoolFile};

#[derive(Args)]
pub(super) struct SpoolArgs {
    #[command(subcommand)]
    command: SpoolCommand,
    #[command(flatten)]
    settings: SettingsArgs,
    /// The spool's file, instead of the setting log.path
    #[arg(long, value_name = "FILE", global = true)]
    path: Option<PathBuf>,
}

#[derive(Subcommand)]
enum SpoolCommand {
    /// Say what the spool holds; the server may be running.
    ///
    /// File, size, epoch, the log and whether it is in the same file, how the last run ended, who has it now, events that the store
    /// does not have yet with their age, the rooms with the most of them, broadcasts that it does not have, idempotency keys, and
    /// parked events with the reasons. Reads only.
    ///
    /// Exit codes: 0 told, 64 bad settings, 69 the spool cannot be opened.
    Status(status::StatusArgs),
    /// Check the spool for damage; the server may be running.
    ///
    /// SQLite's quick_check; every row readable and of a known epoch; each room's seqs without a gap and in order; ids
    /// unique and UUIDv7 of their time; no row that counts as freed; parked rows, idempotency keys and broadcasts readable.
    /// Prints each problem. Reads only, and reads everything: some seconds a gigabyte. A letter changed inside a text is not
    /// found: SQLite keeps no checksums.
    ///
    /// Exit codes: 0 no problem, 1 problems, 64 bad settings, 69 the spool cannot be opened.
    Verify,
    /// Write everything in the spool to the store and free it; the server must be stopped.
    ///
    /// The store is the one in the settings: MongoDB or the embedded log. Goes in order, in batches of log.batch_max, and then
    /// the records of broadcasts. What the store refuses for good is parked, as the server does; a broadcast stays. Ctrl-C ends
    /// it after the batch under way; run it again to go on. What the store has already is not written twice.
    ///
    /// Exit codes: 0 all is in the store, 1 events are parked, by this replay or before it (--parked tries them again), or
    /// broadcasts are refused (each replay tries them again), 64 bad settings, 69 the spool or the store is not to be had, or the
    /// spool could not be closed, as on a full disk, 75 interrupted.
    Replay(replay::ReplayArgs),
}

impl SpoolArgs {
    /// The settings, with the path that was given over the one in them.
    fn load(&self) -> Result<Settings, Failure> {
        let mut settings = self.settings.load()?.settings;
        if let Some(path) = &self.path {
            let Some(path) = path.to_str() else {
                return Err(Failure::usage(format!(
                    "--path {}: the name is not UTF-8",
                    path.display()
                )));
            };
            settings.log.path = path.to_owned();
        }
        Ok(settings)
    }

    fn open(&self) -> Result<SpoolFile, Failure> {
        Ok(SpoolFile::open(self.load()?.log.path.as_ref())?)
    }
}

pub(super) fn run(args: &SpoolArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        SpoolCommand::Status(status) => status::run(status, &args.open()?),
        SpoolCommand::Verify => Ok(verify(&args.open()?)),
        SpoolCommand::Replay(replay) => replay::run(replay, &args.load()?),
    }
}

/// "1 event", "2 events".
pub(super) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn verify(spool: &SpoolFile) -> ExitCode {
    let verified = spool.verify(&mut |problem| print(&format!("problem: {problem}\n")));
    print(&format!(
        "checked: {} to go, {} parked, {}, {}, {}\n",
        counted(verified.events, "event"),
        verified.parked,
        counted(verified.keys, "key"),
        counted(verified.broadcasts, "broadcast"),
        counted(verified.rooms, "room")
    ));
    if verified.problems == 0 {
        print("no problem found\n");
        return ExitCode::SUCCESS;
    }
    print(&format!("{}\n", counted(verified.problems, "problem")));
    Exit::Problem.into()
}
