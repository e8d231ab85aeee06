//! What a server is made of, each part begun or opened as the settings have it.

use super::*;

/// What verifies tokens, and what fetches published keys for it, where there are any. An address that gives none now does
/// not stop a start; a file that holds none does.
pub(super) async fn open_keys(
    settings: &Settings,
    metrics: &Metrics,
) -> Result<(Arc<TokenVerifier>, Option<actix_web::rt::task::JoinHandle<()>>), StartError> {
    let keys = startup::keys(settings)?;
    let source = startup::jwks_source(settings)?;
    let refresh = source
        .as_ref()
        .map(|_| Arc::new(Refresh::new(startup::refresh_settings(settings))));
    let tokens = Arc::new(TokenVerifier::new(
        startup::token_rules(settings),
        keys,
        refresh.clone(),
        settings.auth.cache_max,
        metrics.clone(),
    ));
    let (Some(source), Some(refresh)) = (source, refresh) else {
        return Ok((tokens, None));
    };
    match refresh.fetch(&source, &tokens, metrics).await {
        Ok(()) => {}
        Err(error) if source.is_file() => return Err(StartError::Config(format!("{source}: {error}"))),
        Err(error) => log::warn!("tokens: {source}: {error}; it is asked again"),
    }
    let fetching = keep_fetching(refresh, source, Arc::clone(&tokens), metrics.clone());
    Ok((tokens, Some(actix_web::rt::spawn(fetching))))
}

/// Gives up the place of a server that does not start; no longer than a stop would.
pub(super) async fn leave(beat: Option<ServerBeat>) {
    if let Some(beat) = beat {
        let _ = tokio::time::timeout(startup::STORE_COURTESY, beat.leave()).await;
    }
}

/// The store behind the spool.
pub(super) struct Opened {
    pub store: Arc<dyn Archive>,
    /// Why it was not there.
    pub away: Option<String>,
    /// When its newest event was sent, in milliseconds since 1970; 0 where that cannot be told.
    pub newest_ms: i64,
}

/// Opens the store behind the spool, and takes this server's place in it. MongoDB need not be there: what is accepted stays in the
/// spool until it is.
pub(super) async fn open_store(
    settings: &Settings,
    spool: &mut SqliteSpool,
    beat: &mut Option<ServerBeat>,
) -> Result<Opened, StartError> {
    let (mut away, mut newest_ms) = (None, 0);
    let store: Arc<dyn Archive> = match settings.log.backend {
        LogBackend::Sqlite => {
            let store = SqliteStore::new(spool.connection());
            let prepared = store.prepare().await;
            prepared.map_err(|error| unwritable(settings, &error))?;
            newest_ms = tell_store("the spool's own file", store.found().await);
            Arc::new(store)
        }
        LogBackend::Mongodb => {
            let asked = MongoStore::asked(&startup::mongo_settings(settings)).await;
            let (store, unknown) = asked.map_err(|error| startup::bad_uri(&error))?;
            let place = beat.insert(startup::place_in(settings, &store, spool));
            let taken = match unknown {
                Some(error) => Err(error),
                None => place.take().await,
            };
            match taken {
                Ok(None) => {
                    newest_ms = tell_store(&format!("MongoDB, {}", settings.mongodb.database), store.found().await);
                }
                Ok(Some(other)) => return Err(StartError::Unavailable(other)),
                Err(error) => {
                    log::warn!("store: not there yet, so other servers on this log are not seen: {error}");
                    away = Some(error.0);
                }
            }
            Arc::new(store)
        }
    };
    if spool.asks_store() && away.is_some() {
        // To wait for it a second time would only make the start longer.
        log::warn!("store: rooms will ask it for their last seq");
    } else if spool.asks_store() {
        match store.is_empty().await {
            Ok(true) => spool.store_is_empty().map_err(|error| unwritable(settings, &error))?,
            Ok(false) => log::info!(
                "store: the spool is younger than the log; rooms that it does not know ask the store for their last seq"
            ),
            Err(error) => {
                log::warn!("store: not there yet, rooms will ask it for their last seq: {error}");
                away = Some(error.0);
            }
        }
    }
    Ok(Opened { store, away, newest_ms })
}

fn unwritable(settings: &Settings, error: &dyn std::fmt::Display) -> StartError {
    let path = &settings.log.path;
    StartError::Unavailable(format!("the spool {path} (log.path) cannot be made ready: {error}"))
}

/// Says what was found in the store, and returns when its newest event was sent, 0 without one. That it cannot be told stops no
/// start: what is accepted waits in the spool.
fn tell_store(store: &str, found: Result<FoundStore, StoreError>) -> i64 {
    match found {
        Ok(found) => {
            log::info!("store ({store}): {found}");
            found.newest_ms()
        }
        Err(error) => {
            log::warn!("store ({store}): what it holds cannot be told: {error}");
            0
        }
    }
}

/// How far the newest message may be ahead of the clock: clocks of machines that took a spool over from each other differ by less.
const AHEAD_MS: i64 = 60_000;

/// Warns where the newest message is ahead of the clock: until that has come there, all that comes is of its time (rule 5).
pub(super) fn warn_of_clock(newest_ms: i64) {
    let ahead_ms = newest_ms.saturating_sub(system_ms());
    if ahead_ms > AHEAD_MS {
        log::warn!(
            "clock: the newest message is of {}, {} s from now, and until then new ones get that time, too; set this machine's clock \
             right, or see docs/OPERATIONS.md, \"The clock is wrong\"",
            timestamp(newest_ms),
            ahead_ms / 1000
        );
    }
}

pub(super) fn start_checker(
    settings: &Settings,
    arbiter: &Arbiter,
    checker: &CheckerHandle,
    registry: &RegistryHandle,
    rooms: Option<EmbeddedRooms>,
    metrics: &Metrics,
) -> Watch {
    let watch = Watch::new("checker", startup::pauses(settings), metrics);
    let (config, http) = (startup::checker_config(settings), startup::http_room_settings(settings));
    let (checker, registry, metrics) = (checker.clone(), registry.clone(), metrics.clone());
    supervise(&arbiter.handle(), watch.clone(), move |present| {
        // awc's client is not `Send`: it is made where it is used.
        let api: Rc<dyn RoomApi> = match &rooms {
            Some(rooms) => Rc::new(rooms.clone()),
            None => Rc::new(HttpRooms::new(http.clone())),
        };
        let (checker, registry, metrics) = (checker.clone(), registry.clone(), metrics.clone());
        RoomChecker::new(config.clone(), checker, registry, api, metrics, present)
    });
    watch
}

pub(super) fn start_registry(
    settings: &Settings,
    arbiter: &Arbiter,
    registry: &RegistryHandle,
    checker: &CheckerHandle,
    writer: &WriterHandle,
    log: ReadLog,
    metrics: &Metrics,
) -> Watch {
    let watch = Watch::new("registry", startup::pauses(settings), metrics);
    let config = startup::registry_config(settings);
    let (registry, checker, writer, metrics) = (registry.clone(), checker.clone(), writer.clone(), metrics.clone());
    supervise(&arbiter.handle(), watch.clone(), move |present| {
        let (registry, checker) = (registry.clone(), checker.clone());
        SessionRegistry::new(
            config.clone(),
            registry,
            checker,
            writer.clone(),
            log.clone(),
            metrics.clone(),
            present,
        )
    });
    watch
}
