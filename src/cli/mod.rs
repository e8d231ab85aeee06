//! The commands: `serve`, `demo`, `check-config`, `settings`, `spool`, `export`, `import`, `token`, `load`, `watch`.

mod demo;
mod export;
mod import;
mod load;
mod progress;
mod serve;
mod spool;
mod token;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use chatting_actors::wire::legacy::Clock;
use clap::{Args, Parser, Subcommand};

use crate::{
    settings::{self, Load, Loaded, Settings, SettingsError},
    startup::StartError,
};

/// A chat server for live broadcasts.
#[derive(Parser)]
#[command(name = "chatting-server", version, about, long_about = None, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server.
    ///
    /// Settings come from built-in defaults, then settings.toml, then environment variables (CHAT__LOG__BACKEND), then
    /// flags. A key to verify tokens with is needed: auth.hs256_secret or auth.hs256_secret_base64.
    /// SIGTERM and SIGINT stop it in order, within shutdown.deadline_seconds.
    ///
    /// Exit codes: 0 stopped in order, 64 bad settings, 69 a port, file or store is not to be had, 75 stopped at the
    /// deadline.
    Serve(serve::ServeArgs),
    /// Try it: needs nothing, keeps nothing.
    ///
    /// Runs on loopback with a throw-away key, an embedded room server with one live room, and SQLite in a temporary
    /// directory. Prints a page to open and two commands to paste.
    Demo(demo::DemoArgs),
    /// Check the settings and say what is wrong with them.
    ///
    /// Prints the effective settings that differ from the defaults, and the layer that each came from. Exit code 64 when
    /// something is wrong; every problem is named.
    CheckConfig(SettingsArgs),
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
    /// Exit codes: 0 exported, 1 there is no such broadcast, 64 bad settings, 69 the spool, the store or the file is not to be
    /// had, 75 interrupted.
    Export(export::ExportArgs),
    /// Read NDJSON exports into an empty log; the server must be stopped.
    ///
    /// Reads all of the files before it writes anything. One that was interrupted is run again with the same files to go on.
    /// Rooms go on behind the last number that was imported. Give all files at once: the log is not empty afterwards.
    ///
    /// Exit codes: 0 imported, 1 the log is not empty or a file is bad, 64 bad settings, 69 a file, the spool or the store is not
    /// to be had, 75 interrupted.
    Import(import::ImportArgs),
    /// Mint a token for trying things.
    ///
    /// Signed with the same key that the server verifies with (auth.hs256_secret or auth.hs256_secret_base64, best by
    /// environment). Prints the token and nothing else.
    Token(token::TokenArgs),
    /// Send chat at a server and say what it held: accepted, lost, latencies.
    ///
    /// Uses the key of the settings to mint the tokens that it needs. Exit code 1 when a message was lost, doubled or out of
    /// order.
    Load(load::LoadArgs),
    /// Watch a room as its presenter: print every frame of the WebSocket, one a line.
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

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.to_owned())),
        None => Err("write it as KEY=VALUE, for example log.backend=mongodb".into()),
    }
}

impl SettingsArgs {
    fn load(&self) -> Result<Loaded, SettingsError> {
        let beside = PathBuf::from("settings.toml");
        let file = self.config.clone().or_else(|| beside.exists().then_some(beside));
        let loaded = Settings::load(Load {
            file: file.as_deref(),
            env: settings::environment(),
            flags: &self.set,
        })?;
        Ok(loaded)
    }
}

/// Why a command failed, with the exit code that says so.
pub(crate) struct Failure {
    code: u8,
    text: String,
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self {
            code: 64,
            text: error.to_string(),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self {
            code: error.exit_code(),
            text: error.to_string(),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self {
            code: 69,
            text: error.to_string(),
        }
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self { code: 1, text }
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
        Command::Token(args) => token::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Watch(args) => watch::run(&args),
    };
    result.unwrap_or_else(|failure| {
        for line in failure.text.lines() {
            eprint(&format!("chatting-server: {line}"));
        }
        ExitCode::from(failure.code)
    })
}

/// Standard output that does not panic when the reader has gone.
fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

pub(crate) fn eprint(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn check_config(args: &SettingsArgs) -> Result<ExitCode, Failure> {
    let loaded = args.load()?;
    let defaults = Settings::default();
    let mut text = String::new();
    for (key, layer) in &loaded.origins {
        let (value, default) = (loaded.settings.get(key), defaults.get(key));
        if let Some(value) = value.filter(|value| Some(value) != default.as_ref()) {
            text.push_str(&format!("{key} = {value}  # {layer}\n"));
        }
    }
    if text.is_empty() {
        text.push_str("# every key has its default\n");
    }
    print(&text);
    crate::startup::signing_key(&loaded.settings)?;
    Clock::new(&loaded.settings.legacy.zone).map_err(StartError::Config)?;
    Ok(ExitCode::SUCCESS)
}
