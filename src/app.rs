//! The server as a whole: built from settings, run until told to stop, stopped in order.
//!
//! Starting: spool (the lock, the numbering) → store → actors, each on its arbiter → HTTP. Stopping, with one deadline over all:
//! not ready, no new sessions → v1 sessions told to connect again → submits refused → everything numbered answered → sessions
//! closed → HTTP closed →
//! spool committed and closed → arbiters joined. MongoDB is given a moment to take what is left, never waited for.

mod parts;

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_web::web;
use chatting_actors::{
    checker::{CheckerHandle, RoomChecker},
    clock::system_ms,
    gate::Gate,
    metrics::Metrics,
    registry::{ReadLog, RegistryHandle, SessionRegistry},
    seams::{LogStore, RoomApi, Spool, StoreError},
    supervise::{Watch, log_panics, supervise},
    wire::{legacy::Clock, v1::timestamp},
    writer::{LogWriter, SpoolEnd, SpoolThread, WriterHandle, WriterParts},
};
use futures_util::future::join_all;
use prometheus_client::registry::Registry as MetricNames;
use scopeguard::ScopeGuard;

use self::parts::{Opened, leave, open_keys, open_store, start_checker, start_registry, warn_of_clock};
use crate::{
    auth::{
        Gateway, TokenError, TokenVerifier,
        jwks::{Refresh, keep_fetching},
    },
    error::Code,
    http::{
        client::AddressGate,
        lines::Lines,
        state::{Failing, Health, Limits, RoomServer, State},
    },
    limits::{OneEach, Rates},
    listen::{Listening, listen, listen_ops},
    retention::{Clocks, Retention},
    room::{EmbeddedRooms, HttpRooms},
    settings::{AuthMode, LogBackend, RoomMode, Settings},
    shutdown::{CUT, Drain, stop_in_order},
    startup::{self, StartError},
    store::{Archive, FoundStore, History, MongoStore, ServerBeat, SqliteSpool, SqliteStore},
};

/// What only `demo` asks for.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// The demo's page; served at `/demo`.
    pub demo_page: Option<String>,
}

/// A server that listens and has not yet been told to stop.
pub struct App {
    server: actix_web::dev::Server,
    addr: SocketAddr,
    ops: Option<Listening>,
    state: web::Data<State>,
    fetching: Option<actix_web::rt::task::JoinHandle<()>>,
    writer: WriterParts,
    beating: Option<(ServerBeat, actix_web::rt::task::JoinHandle<()>)>,
    retention: Option<actix_web::rt::task::JoinHandle<()>>,
    spool_thread: SpoolThread,
    arbiters: Vec<(&'static str, Arbiter)>,
    deadline: Duration,
    drain: Drain,
    watching: actix_web::rt::task::JoinHandle<()>,
    lines: Lines,
}

/// How a stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Everything was answered, committed and closed in time.
    InOrder,
    /// The deadline was over first; everything answered is committed all the same, but perhaps for what was answered from memory
    /// (`log.durability`).
    AtDeadline,
    /// The spool has everything answered, and could not be marked as stopped cleanly, as on a full disk: the next start checks it.
    /// A broadcast's record may be missing.
    Unmarked,
    /// The spool did not take events that had been answered from memory (`log.durability`).
    Lost,
}

impl App {
    /// Opens everything and begins to listen. Needs an actix system around it.
    pub async fn build(settings: &Settings) -> Result<Self, StartError> {
        let mut beat = None;
        let built = Self::open(settings, Extras::default(), &mut beat).await;
        if built.is_err() {
            leave(beat).await;
        }
        built
    }

    /// As [`App::build`], with what only `demo` asks for, and unless `stop` is done first: then there is none.
    pub async fn build_until(
        settings: &Settings,
        extras: Extras,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Self>, StartError> {
        let mut beat = None;
        let built = tokio::select! {
            built = Self::open(settings, extras, &mut beat) => built.map(Some),
            () = stop => Ok(None),
        };
        if !matches!(built, Ok(Some(_))) {
            leave(beat).await;
        }
        built
    }

    /// `beat`: the place in MongoDB that was taken on the way, to be left when this comes to nothing.
    async fn open(settings: &Settings, extras: Extras, beat: &mut Option<ServerBeat>) -> Result<Self, StartError> {
        log_panics();
        startup::check(settings)?;
        let mut metric_names = MetricNames::default();
        let metrics = Metrics::new(&mut metric_names);
        let codes = Code::ALL.iter().map(|code| code.as_str());
        metrics.refused.begin(codes.clone());
        metrics.sessions_refused.begin(codes);
        metrics
            .tokens_refused
            .begin(TokenError::ALL.iter().map(|error| error.reason()));
        let (tokens, fetching) = open_keys(settings, &metrics).await?;
        let gateway = match settings.auth.mode {
            AuthMode::Token => None,
            AuthMode::Gateway => Some(Gateway::new(startup::gateway_settings(settings)?)),
        };
        if gateway.as_ref().is_some_and(|gateway| !gateway.has_secret()) {
            log::warn!(
                "gateway: auth.gateway_secret is not set, so the x-forward headers of every request from \
                 auth.trusted_proxies are believed, also those that the gateway only passes on"
            );
        }
        let clock = Arc::new(Clock::new(&settings.legacy.zone).map_err(StartError::Config)?);
        let trusted = startup::trusted_proxies(settings)?;
        let kept_in = startup::spool_settings(settings);
        let max_bytes = kept_in.max_bytes.unwrap_or_default();
        metrics
            .spool_max_bytes
            .set(i64::try_from(max_bytes).unwrap_or(i64::MAX));
        let (spool, mut info) = SqliteSpool::open(kept_in)?;
        // A start that comes to nothing, or is broken off, leaves a spool that was stopped cleanly.
        let mut spool = scopeguard::guard(spool, |mut spool| {
            spool.close();
        });
        spool.count_in(&metrics);
        log::info!("spool {}: {}", settings.log.path, spool.found());
        if let Ok(Some(_)) = spool.importing() {
            log::warn!("spool: an import has begun and not ended, so the log lacks some of it; stop, and run it again");
        }
        let Opened { store, away, newest_ms } = open_store(settings, &mut spool, beat).await?;
        // A spool that is new, or was damaged, does not know the times that were told before it (rule 5).
        info.last_ms = info.last_ms.max(newest_ms);
        let known = Clocks::at(info.last_ms);
        warn_of_clock(info.last_ms);
        let history = History::new(
            settings.log.path.clone().into(),
            Arc::clone(&store),
            settings.log.readers,
        );
        let rooms = match settings.room.mode {
            RoomMode::Http => None,
            RoomMode::Embedded => {
                Some(EmbeddedRooms::open(&startup::rooms_file(settings)).map_err(StartError::Unavailable)?)
            }
        };

        let registry = RegistryHandle::new(settings.actors.registry.mailbox, metrics.clone());
        let checker = CheckerHandle::new(settings.actors.checker.mailbox);
        let writer = WriterHandle::new(
            settings.actors.writer.mailbox,
            settings.actors.writer.mailbox_bytes,
            info,
        );
        let sessions = Gate::new("sessions", settings.session.max);
        let figures = Gate::new("figures", settings.figures.at_once);
        let exports = Gate::new("exports", settings.export.max);
        let corrections = Gate::new("corrections", settings.history.corrections);
        let answers = Gate::new("answers", settings.server.answers_max_bytes);
        let parking = spool.parking();
        let parts = WriterParts::new(
            startup::writer_config(settings),
            writer.clone(),
            registry.clone(),
            store,
            metrics.clone(),
            startup::pauses(settings),
        );
        if let Some(away) = away {
            parts.state.was_not_there(away);
        }
        let spool_thread = parts
            .start_spool(Box::new(ScopeGuard::into_inner(spool)))
            .map_err(|error| StartError::Unavailable(format!("the spool's thread cannot start: {error}")))?;
        let spool_thread = scopeguard::guard((writer.clone(), spool_thread), |(writer, thread)| {
            writer.stop();
            thread.join();
        });
        let writer_arbiter = Arbiter::new();
        let made_of = parts.clone();
        supervise(&writer_arbiter.handle(), parts.watch.clone(), move |present| {
            LogWriter::new(made_of.clone(), present)
        });

        let checker_arbiter = Arbiter::new();
        let checker_watch = start_checker(settings, &checker_arbiter, &checker, &registry, rooms.clone(), &metrics);

        let registry_arbiter = Arbiter::new();
        let reader_arbiter = Arbiter::new();
        let log = ReadLog::new(Arc::new(history.clone()), reader_arbiter.handle());
        let failing = Failing {
            checker: checker.clone(),
            writer: parts.clone(),
            log: log.clone(),
            http: AtomicBool::new(false),
        };
        let registry_watch = start_registry(settings, &registry_arbiter, &registry, &checker, &writer, log, &metrics);

        let ready = tokio::time::timeout(startup::READY_PATIENCE, registry.ready());
        ready
            .await
            .map_err(|_| StartError::Unavailable("the spool does not tell its idempotency keys".into()))?;
        let [writer_events, writer_bytes] = writer.gates();
        let gates = vec![
            Arc::clone(registry.gate()),
            Arc::clone(checker.gate()),
            Arc::clone(writer_events),
            Arc::clone(writer_bytes),
            Arc::clone(&sessions),
            Arc::clone(history.gate()),
            Arc::clone(&figures),
            Arc::clone(&exports),
            Arc::clone(&corrections),
            Arc::clone(&answers),
        ];
        let room_server = RoomServer::new(&metrics, settings.room.breaker_failures);
        let other_servers = metrics.other_servers.clone();
        let state = web::Data::new(State {
            registry,
            session: startup::session_config(settings),
            sessions,
            rates: Arc::new(Rates::new(settings)),
            addresses: AddressGate::new(settings.limits.sessions_per_address),
            trusted,
            clock,
            tokens: Arc::clone(&tokens),
            gateway,
            limits: Limits {
                body_bytes: settings.server.max_body_bytes,
                body_time: Duration::from_secs(settings.server.body_seconds),
                text_chars: settings.message.max_chars,
                nickname_chars: settings.message.nickname_max_chars,
                page_default: settings.history.page_default,
                page_max: settings.history.page_max,
                page_bytes: settings.history.page_bytes,
                scan_limit: settings.history.scan_limit,
                figures: startup::figures_limits(settings),
                export_rows: settings.export.page_rows,
                cue_ms: settings.export.cue_ms.cast_signed(),
                export_patience: Duration::from_secs(settings.export.busy_wait_seconds),
                staff_patience: Duration::from_secs(settings.history.staff_wait_seconds),
            },
            origins: settings.cors.origins.clone(),
            legacy: settings.legacy.enabled,
            rooms,
            history,
            figures,
            counting: OneEach::default(),
            correcting: OneEach::default(),
            exports,
            exporting: OneEach::default(),
            corrections,
            answers,
            keep_alive: startup::keep_alive(settings),
            http_failures: metrics.restarts("http"),
            metrics,
            metric_names,
            gates,
            health: Health {
                draining: AtomicBool::new(false),
                actors: vec![
                    registry_watch,
                    checker_watch,
                    parts.watch.clone(),
                    parts.spool_watch.clone(),
                ],
                writer,
                store: parts.state.clone(),
                other_servers,
                room_server,
                tokens,
                by_token: settings.auth.mode == AuthMode::Token,
            },
            document: OnceLock::new(),
            demo: extras.demo_page,
            failing,
        });
        let store = Arc::clone(state.history.store());
        let retention = Retention::new(settings, store, parking, state.metrics.clone(), known);
        let lines = Lines::new(startup::patience(settings), state.metrics.answers_cut.clone());
        let (server, addr) = listen(settings, &state, &lines)?;
        let ops = listen_ops(settings, &state)?;
        let (_, spool_thread) = ScopeGuard::into_inner(spool_thread);
        let beating = beat.clone().map(|beat| {
            let others = state.metrics.other_servers.clone();
            (beat.clone(), actix_web::rt::spawn(beat.keep_beating(others)))
        });
        Ok(Self {
            server,
            addr,
            ops,
            state,
            fetching,
            writer: parts,
            beating,
            retention: retention.map(|retention| actix_web::rt::spawn(retention.keep_sweeping())),
            spool_thread,
            arbiters: vec![
                ("registry", registry_arbiter),
                ("reader", reader_arbiter),
                ("checker", checker_arbiter),
                ("writer", writer_arbiter),
            ],
            deadline: Duration::from_secs(settings.shutdown.deadline_seconds),
            drain: Drain::new(&settings.shutdown),
            watching: actix_web::rt::spawn(lines.clone().keep()),
            lines,
        })
    }

    /// Where the server listens; the real port where the setting was 0.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where operations listen, when `ops.bind` is set.
    pub fn ops_addr(&self) -> Option<SocketAddr> {
        self.ops.as_ref().map(|(_, addr)| *addr)
    }

    /// The shared state, for tests that look inside.
    pub fn state(&self) -> web::Data<State> {
        self.state.clone()
    }

    /// Serves until `shutdown` is done, then stops in order.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> std::io::Result<Stopped> {
        let handle = self.server.handle();
        let server = actix_web::rt::spawn(self.server);
        let ops = self
            .ops
            .map(|(server, _)| (server.handle(), actix_web::rt::spawn(server)));
        shutdown.await;
        log::info!("stopping: at most {:?}", self.deadline);
        let until = Instant::now() + self.deadline;
        // Behind the deadline four steps are left, each of which may find something that hangs.
        let step = |step: u32| until + CUT * step / 4;
        self.state.health.draining.store(true, Ordering::Release);
        if let Some(retention) = self.retention {
            retention.abort();
        }
        let in_order = stop_in_order(&self.state, (&handle, &self.lines), &self.writer, &self.drain, until).await;
        let served = if in_order {
            // It has ended, but for connections that were cut and whose handlers do not notice.
            let patience = CUT.min(left_until(step(1)));
            tokio::time::timeout(patience, server).await.unwrap_or(Ok(Ok(())))
        } else {
            // A server that is in its graceful stop hears this only when that is over, so its connections are ended; one that the
            // deadline found before hears it at once.
            let told = handle.stop(false);
            self.lines.shut_all();
            let cut = tokio::time::timeout(left_until(step(1)), server).await;
            drop(told);
            cut.unwrap_or(Ok(Ok(())))
        };
        self.watching.abort();
        self.state.health.writer.stop();
        let spool_end = Arc::new(OnceLock::new());
        let told = Arc::clone(&spool_end);
        let closed = join_until(step(2), move || {
            let _ = told.set(self.spool_thread.join());
        })
        .await;
        if !closed {
            log::error!(
                "stopping: the deadline is over, and the disk does not let the spool be closed; the next start checks it"
            );
        }
        if let Some(task) = self.fetching {
            task.abort();
        }
        if let Some((beat, task)) = self.beating {
            let patience = startup::STORE_COURTESY.min(left_until(step(3)));
            let _ = tokio::time::timeout(patience, beat.leave()).await;
            task.abort();
        }
        // All at once, so that one that hangs takes no other's time.
        join_all(self.arbiters.into_iter().map(async |(name, arbiter)| {
            arbiter.stop();
            let joined = join_until(step(4), move || {
                if arbiter.join().is_err() {
                    log::error!("the arbiter of {name} panicked");
                }
            });
            if !joined.await {
                log::warn!("stopping: the deadline is over, and the arbiter of {name} has not ended");
            }
        }))
        .await;
        if let Some((handle, server)) = ops {
            // Last, so that operators can watch the stop.
            let told = handle.stop(false);
            let _ = tokio::time::timeout(CUT.min(left_until(step(4))), server).await;
            drop(told);
        }
        if let Ok(Err(error)) = served {
            return Err(error);
        }
        let (stopped, how) = match (in_order && closed, spool_end.get()) {
            (_, Some(SpoolEnd::Lost)) => (Stopped::Lost, "with events lost"),
            (_, Some(SpoolEnd::Unmarked)) => (
                Stopped::Unmarked,
                "with a spool that could not be closed; the next start checks it",
            ),
            (true, _) => (Stopped::InOrder, "in order"),
            (false, _) => (Stopped::AtDeadline, "at the deadline"),
        };
        log::info!("stopped {how}");
        Ok(stopped)
    }
}

fn left_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Waits for work that blocks until the deadline; `false`: it goes on, and ends with the process.
async fn join_until(deadline: Instant, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, wait) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new().name("join".into()).spawn(move || {
        work();
        let _ = done.send(());
    });
    spawned.is_err() || tokio::time::timeout(left_until(deadline), wait).await.is_ok()
}
