//! `serve`: the server, until a signal stops it.

use std::{
    future::{pending, ready},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use actix_web::web;
use clap::Args;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use super::{Exit, Failure, SettingsArgs, report, until_it_ends};
use crate::{
    app::{App, Extras, Stopped},
    auth::{GatewaySecrets, Key},
    descriptors,
    files::{off_thread, one_at_a_time},
    http::state::State,
    settings::{Auth, Loaded, LogFormat},
    startup, telemetry,
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
    descriptors::raise(&settings);
    let ended = until_it_ends(async {
        // First, so that one that comes during the start does not end the process.
        let (hangup, stop) = (signal(SignalKind::hangup())?, stop_signal()?);
        let mut stop = std::pin::pin!(stop);
        let Some(app) = App::build_until(&settings, Extras::default(), &mut stop).await? else {
            log::info!("stopped before it had started");
            return Ok(ExitCode::SUCCESS);
        };
        let reload = reload_keys(hangup, args.settings.clone(), &settings.auth, app.state());
        let begun = report::listening(&app, &settings, args.port_file.as_deref());
        // Not a task of its own: it would outlive the server, and with it what it has of the server.
        tokio::select! {
            ended = run_app(app, begun, stop) => ended,
            never = reload => never,
        }
    });
    match ended {
        // Whoever reads JSON reads nothing else.
        Err(failure) if settings.logging.format == LogFormat::Json && log::log_enabled!(log::Level::Error) => {
            log::error!("{}", failure.text);
            Ok(failure.exit.into())
        }
        ended => ended,
    }
}

/// At each SIGHUP the keys and the gateway's secrets are read again, from all layers of the settings and the files that they name.
/// Nothing else is: whatever else has changed there waits for a restart. When something is wrong, they all stay as they are; so they do
/// when `auth.jwks_url` is not what the server, whose settings `auth` is of, was started with, and where a file is not read in time.
/// Published keys are fetched in any case: one that leaked must not hold for longer because a setting is wrong.
async fn reload_keys<T>(mut hangup: Signal, from: SettingsArgs, auth: &Auth, state: web::Data<State>) -> T {
    let reading: Arc<AtomicBool> = Arc::default();
    loop {
        if hangup.recv().await.is_none() {
            return pending().await;
        }
        state.tokens.refetch();
        let outcome = match read_again(from.clone(), auth, &reading).await {
            Ok((keys, secrets)) => {
                let of_keys = match state.tokens.set_keys(keys) {
                    true => "they have changed",
                    false => "they are the same",
                };
                let of_gateway = match state.gateway.as_ref().map(|gateway| gateway.set_secrets(secrets)) {
                    None => "",
                    Some(true) => "; the gateway's secrets have changed",
                    Some(false) => "; the gateway's secrets are the same",
                };
                log::info!("SIGHUP: the keys were read again, {of_keys}{of_gateway}");
                "ok"
            }
            Err(error) => {
                log::error!("SIGHUP: the keys stay as they are: {error}");
                "error"
            }
        };
        state.metrics.key_reloads.inc(outcome);
    }
}

/// The keys as the settings and their files have them now. Files may be slow, and this thread has more to do; one that hangs is not waited
/// for, or no later SIGHUP would be heard.
async fn read_again(
    from: SettingsArgs,
    auth: &Auth,
    reading: &Arc<AtomicBool>,
) -> Result<(Vec<Key>, GatewaySecrets), String> {
    let started_with = auth.clone();
    let read = one_at_a_time(reading, "a file with them", move || {
        let settings = from.load().map_err(|error| error.to_string())?.settings;
        startup::keys_again(&settings, &started_with).map_err(|error| error.to_string())
    })?;
    let patience = Duration::from_millis(auth.jwks_timeout_ms);
    let in_time = timeout(patience, off_thread(read)).await;
    in_time.unwrap_or_else(|_| {
        Err(format!(
            "a file with them was not read within {patience:?} (auth.jwks_timeout_ms)"
        ))
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

/// Serves until `stop` is done. Where what belongs to its beginning failed, the server is stopped in order at once.
pub(super) async fn run_app(
    app: App,
    begun: Result<(), Failure>,
    stop: impl Future<Output = ()>,
) -> Result<ExitCode, Failure> {
    let Err(failure) = begun else {
        return Ok(exit_code(app.run_until(stop).await?));
    };
    if let Err(error) = app.run_until(ready(())).await {
        log::error!("stopping: {error}");
    }
    Err(failure)
}

fn exit_code(stopped: Stopped) -> ExitCode {
    match stopped {
        Stopped::InOrder => ExitCode::SUCCESS,
        Stopped::AtDeadline | Stopped::Unmarked | Stopped::Lost => Exit::Unfinished.into(),
    }
}
