//! The commands: `serve`, `demo`, `check-config`, `settings`, `spool`, `export`, `import`, `erase`, `token`, `load`, `watch`.

mod demo;
mod erase;
mod export;
mod failure;
mod import;
mod load;
mod log;
mod progress;
mod report;
mod serve;
mod signing;
mod spool;
mod token;
mod watch;

use std::{path::PathBuf, process::ExitCode, sync::OnceLock};

use clap::{Args, Parser, Subcommand};

use self::failure::{Exit, Failure};
use crate::{
    VERSION,
    settings::{self, Load, Loaded, Settings, SettingsError},
    startup,
};

/// docs/OPERATIONS.md has the same table, by command.
const EXIT_CODES: &str = "\
Exit codes:
  0   done; serve: stopped in order
  1   the command found a problem, and says which
  2   the command line is wrong
  64  a setting is wrong; every one is named
  69  a port, a file, the spool or the store is not to be had, or another server has it
  75  stopped at the deadline or over a full disk, or interrupted: nothing that was answered
      is lost, but with log.durability \"memory\" what the disk did not take";

/// A chat server for live broadcasts.
#[derive(Parser)]
#[command(name = "chatting-server", version = VERSION, about, long_about = None, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server.
    ///
    /// Settings come from built-in defaults, then settings.toml, then environment variables (CHAT__LOG__BACKEND), then
    /// flags. A key to verify tokens with is needed: auth.hs256_secret, auth.key_file or auth.jwks_url, for example.
    /// SIGTERM and SIGINT stop it in order, within shutdown.deadline_seconds. SIGHUP has the keys and the
    /// gateway's secrets, and nothing else, read again.
    ///
    /// Exit codes: 0 stopped in order, 64 bad settings, 69 a port, file or store is not to be had, 75 stopped at the
    /// deadline, or over a spool that could not be closed or, with log.durability "memory", took not all.
    Serve(serve::ServeArgs),
    /// Try it: needs nothing, keeps nothing.
    ///
    /// Runs on loopback with a throw-away key, an embedded room server with one live room, and SQLite in a temporary
    /// directory. Prints a page to open and two commands to paste.
    Demo(demo::DemoArgs),
    /// Check the settings and say what is wrong with them.
    ///
    /// Prints every effective setting and the layer that it came from (default, file, environment, flag), secrets as ***.
    /// Checks what serve would check before it opens anything, keys in files too; no address is asked. Exit code 64 when
    /// something is wrong; every problem is named.
    CheckConfig(CheckArgs),
    /// Print settings.toml with every key, its default and what it does.
    Settings,
    /// Look after the spool: the local file with what was accepted and is not in the store yet.
    ///
    /// docs/OPERATIONS.md tells when to use which.
    Spool(spool::SpoolArgs),
    /// Write a broadcast's chat to a file; the server may be running.
    ///
    /// Reads the log itself: the spool, and the store that the settings name. A broadcast that goes on is exported up to now. A
    /// file has mode 0600 and gets its name when it is whole. docs/EXPORT.md describes the formats.
    ///
    /// Exit codes: 0 exported, 1 there is no such broadcast, or (--room) the record of one cannot be read, 64 bad settings, 69 the
    /// spool, the store or the file is not to be had, 75 interrupted.
    Export(export::ExportArgs),
    /// Read NDJSON exports into an empty log; the server must be stopped.
    ///
    /// Reads all of the files before it writes anything, so they must be regular ones, no pipes. One that was interrupted is run
    /// again with the same files in the same order to go on. Rooms go on behind the last number that was imported. Give all files at
    /// once: the log is not empty afterwards.
    ///
    /// Exit codes: 0 imported, 1 the log is not empty, a file is bad or the log refuses something, 64 bad settings, 69 a file,
    /// the spool or the store is not to be had, or the spool could not be closed, as on a full disk, 75 interrupted.
    Import(import::ImportArgs),
    /// Erase what a user sent, everywhere: log, spool, parked events, idempotency keys; the server must be stopped.
    ///
    /// Of each message only its place, its id and its time stay; who sent it, the name and the text are gone, and it counts as
    /// deleted. What others did keeps no trace of the user either. Messages of broadcasts under legal hold are listed and
    /// left. The spool's file is rewritten at the end, which needs room for two more copies. It may be interrupted: run it
    /// again to go on. docs/OPERATIONS.md tells what it does not reach.
    ///
    /// Exit codes: 0 done, 1 something of the user is left or may be (legal hold, damaged spools that were set aside), 64 bad settings,
    /// 69 the spool or the store is not to be had, or the spool's file is not rewritten (somebody reads it, or there is no room) or
    /// could not be closed, 75 interrupted.
    Erase(erase::EraseArgs),
    /// Mint a token for trying things.
    ///
    /// Signed with the HS256 key that the server verifies with (auth.hs256_secret and so on, best by environment), or with
    /// the private key of --key-file. Prints the token and nothing else.
    Token(token::TokenArgs),
    /// Send chat at a server and say what it held: accepted, lost, latencies.
    ///
    /// Uses the key of the settings, or of --key-file, to mint the tokens that it needs. Ctrl-C ends the sending; the
    /// report is of what was sent. docs/OPERATIONS.md, "The load tool", says what it means.
    ///
    /// Exit codes: 0 all is as it should be, 1 it is not, and every fault is named: a message was lost, doubled, out of
    /// order, given to another room or delivered although it was refused, one had no answer, a presenter's session
    /// ended, senders were refused with 401 or 403, none was accepted (--absent: one was), the rate was not kept, or
    /// the server went away; 64 bad settings.
    Load(load::LoadArgs),
    /// Watch a room as its presenter: print every frame of the WebSocket, one a line.
    ///
    /// Speaks the original server's (legacy) protocol, or dialect v1 where --url ends in /v1/presenter: then each event is
    /// acknowledged when it has been printed.
    Watch(watch::WatchArgs),
}

/// Where settings come from.
#[derive(Args, Clone)]
pub struct SettingsArgs {
    /// Settings file [default: settings.toml when it is there]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Set one key, over every other layer: --set log.backend=mongodb
    #[arg(long = "set", value_name = "KEY=VALUE", global = true, value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Args)]
struct CheckArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print only the settings that differ from the defaults
    #[arg(long)]
    changed: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.to_owned())),
        None => Err("write it as KEY=VALUE, for example log.backend=mongodb".into()),
    }
}

impl SettingsArgs {
    fn load(&self) -> Result<Loaded, SettingsError> {
        let beside = PathBuf::from("settings.toml");
        // A link that leads nowhere is there, too: it is told that nothing is behind it.
        let is_there = || std::fs::symlink_metadata(&beside).is_ok();
        let file = self.config.clone().or_else(|| is_there().then(|| beside.clone()));
        let loaded = Settings::load(Load {
            file: file.as_deref(),
            env: settings::environment(),
            flags: &self.set,
        })?;
        Ok(loaded)
    }
}

/// Reads the command line and does what it says.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::CheckConfig(args) => check_config(&args),
        Command::Settings => {
            print(&settings::template());
            Ok(ExitCode::SUCCESS)
        }
        Command::Spool(args) => spool::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Erase(args) => erase::run(&args),
        Command::Token(args) => token::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Watch(args) => watch::run(&args),
    };
    let result = result.and_then(|code| match LOST.get() {
        // Any other code says more than this one.
        Some(error) if code == ExitCode::SUCCESS => Err(Failure::unavailable(format!("standard output: {error}"))),
        _ => Ok(code),
    });
    result.unwrap_or_else(|failure| {
        failure.tell();
        failure.exit.into()
    })
}

/// Runs a server or a command, from its start to its end. What it ran on is not taken down behind it: that waits, without a limit, for
/// everything that blocks on a thread there, be it name servers that are silent or a step of retention on a disk that hangs. It goes with
/// the process.
fn until_it_ends<T>(run: impl Future<Output = T>) -> T {
    let system = actix_web::rt::System::new();
    let ended = system.block_on(run);
    std::mem::forget(system);
    ended
}

/// Reads a command line without doing what it says.
#[cfg(test)]
pub(crate) fn try_parse(args: impl IntoIterator<Item = String>) {
    drop(Cli::try_parse_from(args));
}

/// Why standard output did not take what was written to it, though its reader had not gone: the command does not end well then.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// Standard output that does not panic when the reader has gone.
fn print(text: &str) {
    let _: bool = try_print(text);
}

/// The same, for what goes on only as long as someone reads it: whether it was taken.
fn try_print(text: &str) -> bool {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(error) => {
            // One that has enough, as `head` does, is no failure.
            if error.kind() != std::io::ErrorKind::BrokenPipe {
                let _ = LOST.set(error);
            }
            false
        }
    }
}

pub(crate) fn eprint(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn check_config(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let loaded = args.settings.load()?;
    print(&report::effective(&loaded, args.changed));
    startup::check(&loaded.settings)?;
    startup::check_published_file(&loaded.settings)?;
    Ok(ExitCode::SUCCESS)
}
