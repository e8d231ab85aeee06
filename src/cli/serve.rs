//! `serve`: the server, until a signal stops it.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, SettingsArgs};
use crate::{
    app::{App, Stopped},
    settings::Settings,
    telemetry,
};

#[derive(Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Write host:port to this file when the server listens (for scripts; with server.bind port 0)
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
}

pub(super) fn run(args: &ServeArgs) -> Result<ExitCode, Failure> {
    let settings = args.settings.load()?.settings;
    telemetry::init(&settings);
    actix_web::rt::System::new().block_on(async {
        let app = App::build(&settings).await?;
        announce(&app, &settings, args.port_file.as_deref())?;
        let stopped = app.run_until(stop_signal()?).await?;
        Ok(exit_code(stopped))
    })
}

/// Says where the server listens, in the log and in the port file.
pub(super) fn announce(app: &App, settings: &Settings, port_file: Option<&std::path::Path>) -> std::io::Result<()> {
    log::info!("chatting-server {}", env!("CARGO_PKG_VERSION"));
    log::info!(
        "listening on http://{} (log: {}, rooms: {})",
        app.addr(),
        settings.log.backend,
        settings.room.mode
    );
    if let Some(ops) = app.ops_addr() {
        log::info!("operations on http://{ops}");
    }
    match port_file {
        Some(path) => {
            // Renamed into place, so that whoever waits for the file never reads half of it.
            let beside = path.with_extension("new");
            std::fs::write(&beside, app.addr().to_string())?;
            std::fs::rename(&beside, path)
        }
        None => Ok(()),
    }
}

/// SIGTERM and SIGINT alike.
pub(super) fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => log::info!("SIGTERM"),
            _ = interrupt.recv() => log::info!("SIGINT"),
        }
    })
}

pub(super) fn exit_code(stopped: Stopped) -> ExitCode {
    match stopped {
        Stopped::InOrder => ExitCode::SUCCESS,
        Stopped::AtDeadline => ExitCode::from(75),
    }
}
