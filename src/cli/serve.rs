//! `serve`: the server, until a signal stops it.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, SettingsArgs, report};
use crate::{
    app::{App, Stopped},
    settings::Loaded,
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
    let Loaded { settings, origins } = args.settings.load()?;
    telemetry::init(&settings);
    report::begin(&settings, &origins);
    actix_web::rt::System::new().block_on(async {
        let app = App::build(&settings).await?;
        report::listening(&app, &settings, args.port_file.as_deref())?;
        let stopped = app.run_until(stop_signal()?).await?;
        Ok(exit_code(stopped))
    })
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
