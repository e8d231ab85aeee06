//! `demo`: everything in one command, on loopback, with nothing kept.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use chatting_actors::{clock::system_ms, types::PresenterIdx};
use clap::Args;

use super::{
    Failure, print, report,
    serve::{run_app, stop_signal},
    until_it_ends,
};
use crate::{
    app::{App, Extras},
    auth::{Mint, SigningKey, mint},
    http::demo::page,
    settings::{LogBackend, RoomMode, Secret, Settings},
    startup::StartError,
    telemetry,
};

/// The demo's presenter.
const PRESENTER: i64 = 1;
/// The demo's viewer.
const VIEWER: i64 = 7;
const DAY_SECONDS: i64 = 86_400;

#[derive(Args)]
pub(super) struct DemoArgs {
    /// Port on 127.0.0.1; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Write host:port to this file when the server listens (for scripts)
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
}

pub(super) fn run(args: &DemoArgs) -> Result<ExitCode, Failure> {
    let directory = std::env::temp_dir().join(format!("chatting-server-demo-{}", std::process::id()));
    let result = serve(args, &directory);
    let _ = std::fs::remove_dir_all(&directory);
    result
}

fn serve(args: &DemoArgs, directory: &std::path::Path) -> Result<ExitCode, Failure> {
    let key: String = (0..2).map(|_| format!("{:032x}", rand::random::<u128>())).collect();
    let mut settings = Settings::default();
    settings.server.bind = format!("127.0.0.1:{}", args.port);
    settings.auth.hs256_secret = Secret::new(key.as_str());
    settings.room.mode = RoomMode::Embedded;
    settings.log.backend = LogBackend::Sqlite;
    settings.log.path = directory.join("chat.db").display().to_string();
    settings.shutdown.deadline_seconds = 5;
    settings.shutdown.drain_seconds = 1;
    telemetry::init(&settings);
    report::begin(&settings, &BTreeMap::new());
    let token = |user_idx, nickname| {
        mint(
            &SigningKey::secret(key.as_bytes()),
            &Mint {
                user_idx,
                nickname,
                role: None,
                rooms: &[],
                issued_at: system_ms() / 1000,
                ttl_seconds: DAY_SECONDS,
                auth: &settings.auth,
            },
        )
    };
    let (presenter, viewer) = (token(PRESENTER, "streamer")?, token(VIEWER, "viewer")?);
    until_it_ends(async {
        // First, so that one that comes during the start does not end the process, whose directory would be left.
        let stop = stop_signal()?;
        let mut stop = std::pin::pin!(stop);
        let extras = Extras {
            demo_page: Some(page(PRESENTER, &presenter, &viewer)),
        };
        let built = App::build_until(&settings, extras, &mut stop).await;
        let Some(app) = built.map_err(unbuilt)? else {
            log::info!("stopped before it had started");
            return Ok(ExitCode::SUCCESS);
        };
        let begun = go_live(&app).and_then(|()| report::listening(&app, &settings, args.port_file.as_deref()));
        if begun.is_ok() {
            print(&welcome(&app.addr().to_string(), &presenter, &viewer));
        }
        run_app(app, begun, stop).await
    })
}

fn go_live(app: &App) -> Result<(), Failure> {
    if let (Some(rooms), Some(room)) = (&app.state().rooms, PresenterIdx::new(PRESENTER)) {
        rooms.blocking_start(room)?;
    }
    Ok(())
}

/// A demo has no settings, so what is in the way is told by its flag.
fn unbuilt(error: StartError) -> Failure {
    match error {
        StartError::Port { address, error, .. } => Failure::unavailable(format!(
            "{address}: {error}; --port takes another port, --port 0 a free one"
        )),
        other => other.into(),
    }
}

fn welcome(addr: &str, presenter: &str, viewer: &str) -> String {
    let program = std::env::current_exe().map_or_else(|_| "chatting-server".into(), |path| path.display().to_string());
    format!(
        "
Presenter {PRESENTER} is live. Open the page:

  http://{addr}/demo

or watch as the presenter in one terminal (while the page is closed: one session a presenter, the newest wins)

  {program} watch --url ws://{addr}/chatting --token {presenter}
  (or --url ws://{addr}/v1/presenter for dialect v1)

and send as a viewer in another

  curl -i http://{addr}/v1/rooms/{PRESENTER}/messages -H 'Content-Type: application/json' -H 'Authorization: Bearer {viewer}' -d '{{\"text\":\"hello\"}}'

Ctrl-C stops the demo and removes what it wrote.

"
    )
}
