//! The server's actors: made, told of each other and started, each on an arbiter of its own.

use std::{rc::Rc, sync::Arc};

use actix::Arbiter;
use chatting_actors::{
    checker::{CheckerHandle, RoomChecker},
    metrics::Metrics,
    registry::{ReadLog, RegistryHandle, SessionRegistry},
    seams::RoomApi,
    supervise::{Watch, supervise},
    writer::{LogWriter, SpoolThread, WriterHandle, WriterParts},
};
use scopeguard::ScopeGuard;

use super::{Guarded, storage::Storage};
use crate::{
    room::{EmbeddedRooms, HttpRooms},
    settings::Settings,
    shutdown::Arbiters,
    startup::{self, StartError},
    store::{History, SqliteSpool},
};

/// The handles on the actors, and what ends them.
pub(super) struct Actors {
    pub registry: RegistryHandle,
    pub checker: CheckerHandle,
    pub writer: WriterHandle,
    pub writer_parts: WriterParts,
    pub log: ReadLog,
    /// Stopped, and waited for, where the start comes to nothing.
    pub spool_thread: Guarded<(WriterHandle, SpoolThread)>,
    /// Of all that is supervised, the spool's thread included.
    pub watches: Vec<Watch>,
    pub arbiters: Arbiters,
}

impl Actors {
    /// Starts them all. The registry is the last: it asks the others as soon as it is there.
    pub fn start(
        settings: &Settings,
        storage: Storage,
        history: &History,
        rooms: Option<&EmbeddedRooms>,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let mailboxes = &settings.actors;
        let registry = RegistryHandle::new(mailboxes.registry.mailbox, metrics.clone());
        let checker = CheckerHandle::new(mailboxes.checker.mailbox);
        let writer = WriterHandle::new(mailboxes.writer.mailbox, mailboxes.writer.mailbox_bytes, storage.info);
        let parts = WriterParts::new(
            startup::writer_config(settings),
            writer.clone(),
            registry.clone(),
            storage.store,
            metrics.clone(),
            startup::pauses(settings),
        );
        if let Some(away) = storage.away {
            parts.state.was_not_there(away);
        }
        let spool_thread = start_spool(&parts, storage.spool)?;
        let writer_arbiter = start_writer(&parts);
        let (checker_arbiter, checker_watch) = start_checker(settings, &checker, &registry, rooms, metrics);
        let reader_arbiter = Arbiter::new();
        let log = ReadLog::new(Arc::new(history.clone()), reader_arbiter.handle());
        let (registry_arbiter, registry_watch) = start_registry(settings, &registry, &checker, &writer, &log, metrics);
        Ok(Self {
            registry,
            checker,
            writer,
            log,
            spool_thread,
            watches: vec![
                registry_watch,
                checker_watch,
                parts.watch.clone(),
                parts.spool_watch.clone(),
            ],
            arbiters: Arbiters::new([
                ("registry", registry_arbiter),
                ("reader", reader_arbiter),
                ("checker", checker_arbiter),
                ("writer", writer_arbiter),
            ]),
            writer_parts: parts,
        })
    }

    /// Returns when messages with an `Idempotency-Key` can be taken, too.
    pub async fn ready(&self) -> Result<(), StartError> {
        let ready = tokio::time::timeout(startup::READY_PATIENCE, self.registry.ready());
        ready
            .await
            .map_err(|_| StartError::Unavailable("the spool does not tell its idempotency keys".into()))
    }
}

fn start_spool(
    parts: &WriterParts,
    spool: Guarded<SqliteSpool>,
) -> Result<Guarded<(WriterHandle, SpoolThread)>, StartError> {
    let started = parts.start_spool(Box::new(ScopeGuard::into_inner(spool)));
    let thread =
        started.map_err(|error| StartError::Unavailable(format!("the spool's thread cannot start: {error}")))?;
    Ok(scopeguard::guard((parts.handle.clone(), thread), end_spool))
}

fn end_spool((writer, thread): (WriterHandle, SpoolThread)) {
    writer.stop();
    thread.join();
}

fn start_writer(parts: &WriterParts) -> Arbiter {
    let arbiter = Arbiter::new();
    let made_of = parts.clone();
    supervise(&arbiter.handle(), parts.watch.clone(), move |present| {
        LogWriter::new(made_of.clone(), present)
    });
    arbiter
}

fn start_checker(
    settings: &Settings,
    checker: &CheckerHandle,
    registry: &RegistryHandle,
    rooms: Option<&EmbeddedRooms>,
    metrics: &Metrics,
) -> (Arbiter, Watch) {
    let arbiter = Arbiter::new();
    let watch = Watch::new("checker", startup::pauses(settings), metrics);
    let (config, http) = (startup::checker_config(settings), startup::http_room_settings(settings));
    let (checker, registry, metrics) = (checker.clone(), registry.clone(), metrics.clone());
    let rooms = rooms.cloned();
    supervise(&arbiter.handle(), watch.clone(), move |present| {
        // awc's client is not `Send`: it is made where it is used.
        let api: Rc<dyn RoomApi> = match &rooms {
            Some(rooms) => Rc::new(rooms.clone()),
            None => Rc::new(HttpRooms::new(http.clone())),
        };
        let (checker, registry, metrics) = (checker.clone(), registry.clone(), metrics.clone());
        RoomChecker::new(config.clone(), checker, registry, api, metrics, present)
    });
    (arbiter, watch)
}

fn start_registry(
    settings: &Settings,
    registry: &RegistryHandle,
    checker: &CheckerHandle,
    writer: &WriterHandle,
    log: &ReadLog,
    metrics: &Metrics,
) -> (Arbiter, Watch) {
    let arbiter = Arbiter::new();
    let watch = Watch::new("registry", startup::pauses(settings), metrics);
    let config = startup::registry_config(settings);
    let (registry, checker, writer) = (registry.clone(), checker.clone(), writer.clone());
    let (log, metrics) = (log.clone(), metrics.clone());
    supervise(&arbiter.handle(), watch.clone(), move |present| {
        let (registry, checker, writer) = (registry.clone(), checker.clone(), writer.clone());
        let (log, metrics) = (log.clone(), metrics.clone());
        SessionRegistry::new(config.clone(), registry, checker, writer, log, metrics, present)
    });
    (arbiter, watch)
}
