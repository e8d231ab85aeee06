//! The server as a whole: built from settings, run until told to stop, stopped in order.
//!
//! Starting: whom it believes → spool (the lock, the numbering) → store → actors, each on its arbiter → HTTP. Stopping, with one
//! deadline over all: not ready, no new sessions → v1 sessions told to connect again → submits refused → everything numbered answered →
//! sessions closed → HTTP closed → spool committed and closed → arbiters joined. MongoDB is given a moment to take what is left, never
//! waited for. `app/` has the steps of a start, `shutdown.rs` those of a stop.

mod actors;
mod shared;
mod storage;
mod trust;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use actix_web::{
    rt::{spawn, task::JoinHandle},
    web,
};
use chatting_actors::{
    metrics::Metrics,
    supervise::log_panics,
    writer::{SpoolEnd, SpoolThread, WriterHandle, WriterParts},
};
use prometheus_client::registry::Registry as MetricNames;
use scopeguard::ScopeGuard;

use self::{actors::Actors, shared::share, storage::open_storage, trust::open_trust};
use crate::{
    auth::TokenError,
    error::Code,
    http::{
        lines::{Lines, Open},
        state::State,
    },
    listen::{Listening, connections_max, listen, listen_ops},
    retention::{Clocks, Retention},
    settings::Settings,
    shutdown::{Arbiters, CUT, Drain, close_spool, end_http, end_ops, left_until, stop_in_order},
    startup::{self, StartError},
    store::{History, ServerBeat},
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
    fetching: Option<JoinHandle<()>>,
    writer: WriterParts,
    beating: Option<(ServerBeat, JoinHandle<()>)>,
    retention: Option<JoinHandle<()>>,
    /// Has the spool's thread end when it goes.
    spool: Guarded<WriterHandle>,
    spool_thread: SpoolThread,
    arbiters: Arbiters,
    deadline: Duration,
    drain: Drain,
    watching: JoinHandle<()>,
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
        if let Some(beat) = beat
            && built.is_err()
        {
            leave(beat, startup::STORE_COURTESY).await;
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
        if let Some(beat) = beat
            && !matches!(built, Ok(Some(_)))
        {
            leave(beat, startup::STORE_COURTESY).await;
        }
        built
    }

    /// `beat`: the place in MongoDB that was taken on the way, to be left when this comes to nothing.
    async fn open(settings: &Settings, extras: Extras, beat: &mut Option<ServerBeat>) -> Result<Self, StartError> {
        log_panics();
        startup::check(settings)?;
        let (metrics, metric_names) = begin_metrics();
        let (trust, fetching) = open_trust(settings, &metrics).await?;
        let storage = open_storage(settings, &metrics, beat).await?;
        let retention = Retention::new(
            settings,
            Arc::clone(&storage.store),
            storage.spool.parking(),
            metrics.clone(),
            Clocks::at(storage.info.last_ms),
        );
        let history = History::new(
            settings.log.path.clone().into(),
            Arc::clone(&storage.store),
            settings.log.readers,
        );
        let rooms = startup::open_rooms(settings)?;
        let actors = Actors::start(settings, storage, &history, rooms.as_ref(), &metrics)?;
        actors.ready().await?;
        let counted = (metrics.clone(), metric_names);
        let state = share(settings, extras, counted, trust, history, rooms, &actors)?;
        let state = web::Data::new(state);
        let open = Open::new(&metrics.queues, connections_max(settings));
        let lines = Lines::new(startup::patience(settings), metrics.answers_cut.clone(), open);
        let (server, addr) = listen(settings, &state, &lines)?;
        let ops = listen_ops(settings, &state)?;
        // From here on nothing fails.
        let (spool, spool_thread) = ScopeGuard::into_inner(actors.spool_thread);
        let beating = beat.clone().map(|beat| {
            let others = metrics.other_servers.clone();
            (
                beat.clone(),
                spawn(beat.keep_beating(others, state.health.store.clone())),
            )
        });
        Ok(Self {
            server,
            addr,
            ops,
            state,
            fetching,
            writer: actors.writer_parts,
            beating,
            retention: retention.map(|retention| spawn(retention.keep_sweeping())),
            spool: scopeguard::guard(spool, |spool| spool.stop()),
            spool_thread,
            arbiters: actors.arbiters,
            deadline: Duration::from_secs(settings.shutdown.deadline_seconds),
            drain: Drain::new(&settings.shutdown),
            watching: spawn(lines.clone().keep()),
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
        let server = spawn(self.server);
        let ops = self.ops.map(|(server, _)| (server.handle(), spawn(server)));
        shutdown.await;
        log::info!("stopping: at most {:?}", self.deadline);
        let until = Instant::now() + self.deadline;
        // Behind the deadline four steps are left, each of which may find something that hangs.
        let step = |step: u32| until + CUT * step / 4;
        self.state.health.draining.store(true, Ordering::Release);
        if let Some(retention) = self.retention {
            retention.abort();
        }
        let http = (&handle, &self.lines);
        let in_order = stop_in_order(&self.state, http, &self.writer, &self.drain, until).await;
        let served = end_http(in_order, http, server, step(1)).await;
        self.watching.abort();
        drop(self.spool);
        let (closed, spool_end) = close_spool(self.spool_thread, step(2)).await;
        if let Some(task) = self.fetching {
            task.abort();
        }
        if let Some((beat, task)) = self.beating {
            leave(beat, left_until(step(3))).await;
            task.abort();
        }
        self.arbiters.join(step(4)).await;
        if let Some((handle, server)) = ops {
            // Last, so that operators can watch the stop.
            end_ops(handle, server, step(4)).await;
        }
        served?;
        let stopped = Stopped::of(in_order && closed, spool_end.get());
        log::info!("stopped {}", stopped.how());
        Ok(stopped)
    }
}

impl Stopped {
    /// `in_order`: within the deadline. `spool`: as its thread said, if it has ended.
    fn of(in_order: bool, spool: Option<&SpoolEnd>) -> Self {
        match (in_order, spool) {
            (_, Some(SpoolEnd::Lost)) => Self::Lost,
            (_, Some(SpoolEnd::Unmarked)) => Self::Unmarked,
            (true, _) => Self::InOrder,
            (false, _) => Self::AtDeadline,
        }
    }

    fn how(self) -> &'static str {
        match self {
            Self::InOrder => "in order",
            Self::AtDeadline => "at the deadline",
            Self::Unmarked => "with a spool that could not be closed; the next start checks it",
            Self::Lost => "with events lost",
        }
    }
}

/// What a start has opened, or begun, and ends itself where it comes to nothing or is broken off.
type Guarded<T> = ScopeGuard<T, fn(T)>;

/// Whatever is counted, with each code and reason from the start.
fn begin_metrics() -> (Metrics, MetricNames) {
    let mut names = MetricNames::default();
    let metrics = Metrics::new(&mut names);
    let codes = Code::ALL.iter().map(|code| code.as_str());
    metrics.refused.begin(codes.clone());
    metrics.sessions_refused.begin(codes);
    metrics
        .tokens_refused
        .begin(TokenError::ALL.iter().map(|error| error.reason()));
    (metrics, names)
}

/// Gives up the server's place in MongoDB, for which the store has no more than this time.
async fn leave(beat: ServerBeat, left: Duration) {
    let _ = tokio::time::timeout(startup::STORE_COURTESY.min(left), beat.leave()).await;
}
