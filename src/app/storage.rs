//! Where events are kept: the spool, and the store behind it.

use std::{fmt::Display, sync::Arc};

use chatting_actors::{
    clock::system_ms,
    metrics::Metrics,
    seams::{LogStore, Spool, StoreError},
    types::Event,
    wire::v1::timestamp,
    writer::SpoolInfo,
};

use super::Guarded;
use crate::{
    settings::{LogBackend, Settings},
    startup::{self, StartError},
    store::{Archive, FoundStore, MongoStore, Newest, ServerBeat, SqliteSpool, SqliteStore, spool::OtherLog},
};

/// Where events are kept, opened and not yet written to.
pub(super) struct Storage {
    /// Closed where the start comes to nothing: a spool that was stopped cleanly stays one.
    pub spool: Guarded<SqliteSpool>,
    pub info: SpoolInfo,
    pub store: Arc<dyn Archive>,
    /// Why the store was not there.
    pub away: Option<String>,
}

/// Opens the spool first: it has the lock, the numbering, and whose place in MongoDB is to be taken. That place is put into `beat` as
/// soon as it is sought.
pub(super) async fn open_storage(
    settings: &Settings,
    metrics: &Metrics,
    beat: &mut Option<ServerBeat>,
) -> Result<Storage, StartError> {
    let (mut spool, mut info) = open_spool(settings, metrics)?;
    let Opened { store, away, newest_ms } = open_store(settings, &mut spool, beat).await?;
    // A spool that is new, or was damaged, does not know the times that were told before it (rule 5).
    info.last_ms = info.last_ms.max(newest_ms);
    let behind = info.epoch != *spool.epoch();
    metrics.spool_was_behind.set(i64::from(behind));
    info.epoch = spool.epoch().clone();
    warn_of_clock(info.last_ms);
    Ok(Storage {
        spool,
        info,
        store,
        away,
    })
}

fn open_spool(settings: &Settings, metrics: &Metrics) -> Result<(Guarded<SqliteSpool>, SpoolInfo), StartError> {
    let kept_in = startup::spool_settings(settings);
    let (spool, info) = SqliteSpool::open(kept_in)?;
    let mut spool: Guarded<SqliteSpool> = scopeguard::guard(spool, close);
    spool.count_in(metrics);
    spool.keep_reserve(match settings.log.backend {
        LogBackend::Mongodb => settings.log.reserve_bytes,
        LogBackend::Sqlite => 0,
    });
    log::info!("spool {}: {}", settings.log.path, spool.found());
    if let Ok(Some(_)) = spool.importing() {
        log::warn!("spool: an import has begun and not ended, so the log lacks some of it; stop, and run it again");
    }
    Ok((spool, info))
}

fn close(mut spool: SqliteSpool) {
    spool.close();
}

/// The store behind the spool.
struct Opened {
    store: Arc<dyn Archive>,
    /// Why it was not there.
    away: Option<String>,
    /// When its newest event was sent, in milliseconds since 1970; 0 where that cannot be told.
    newest_ms: i64,
}

/// Opens the store behind the spool, and takes this server's place in it. MongoDB need not be there: what is accepted stays in the
/// spool until it is.
async fn open_store(
    settings: &Settings,
    spool: &mut SqliteSpool,
    beat: &mut Option<ServerBeat>,
) -> Result<Opened, StartError> {
    let mut opened = match settings.log.backend {
        LogBackend::Sqlite => open_sqlite(settings, spool).await?,
        LogBackend::Mongodb => open_mongo(settings, spool, beat).await?,
    };
    if spool.asks_store() && opened.away.is_some() {
        // To wait for it a second time would only make the start longer.
        log::warn!("store: rooms will ask it for their last seq");
    } else if spool.asks_store() {
        match opened.store.is_empty().await {
            Ok(true) => spool.store_is_empty().map_err(|error| unwritable(settings, &error))?,
            Ok(false) => log::info!(
                "store: the spool is younger than the log; rooms that it does not know ask the store for their last seq"
            ),
            Err(error) => {
                log::warn!("store: not there yet, rooms will ask it for their last seq: {error}");
                opened.away = Some(error.0);
            }
        }
    }
    Ok(opened)
}

async fn open_sqlite(settings: &Settings, spool: &SqliteSpool) -> Result<Opened, StartError> {
    let store = SqliteStore::new(spool.connection());
    let prepared = store.prepare().await;
    prepared.map_err(|error| unwritable(settings, &error))?;
    let found = tell_store("the spool's own file", store.found().await);
    Ok(Opened {
        store: Arc::new(store),
        away: None,
        newest_ms: found.map_or(0, |found| found.newest_ms()),
    })
}

async fn open_mongo(
    settings: &Settings,
    spool: &mut SqliteSpool,
    beat: &mut Option<ServerBeat>,
) -> Result<Opened, StartError> {
    let asked = MongoStore::asked(&startup::mongo_settings(settings)).await;
    let (store, unknown) = asked.map_err(|error| startup::bad_uri(&error))?;
    store.belongs_to(spool.of_log(true).map_err(|error| unwritable(settings, &error))?);
    let place = beat.insert(startup::place_in(settings, &store, spool));
    let taken = match unknown {
        Some(error) => Err(error),
        // No longer than the heartbeat that comes next would take: the start is not to be long (rule 3).
        None => match store.other_log(place.patience()).await {
            Ok(None) => place.take().await,
            Ok(Some(OtherLog { why, has_one: true })) => return Err(StartError::Config(why)),
            // Its id may be about to come back, as with a restore that is under way, and nobody starts a server again that ended so.
            Ok(Some(OtherLog { why, .. })) => Err(StoreError(why)),
            Err(error) => Err(error),
        },
    };
    let (mut away, mut newest_ms) = (None, 0);
    match taken {
        Ok(None) => {
            let found = tell_store(&format!("MongoDB, {}", settings.mongodb.database), store.found().await);
            if let Some(Newest { sent_at_ms, event }) = found.and_then(|found| found.newest) {
                newest_ms = sent_at_ms;
                if let Ok(event) = event {
                    go_on_behind(settings, spool, &event)?;
                }
            }
        }
        Ok(Some(other)) => return Err(StartError::Unavailable(other)),
        Err(error) => {
            log::warn!("store: not there yet, so other servers on this log are not seen: {error}");
            away = Some(error.0);
        }
    }
    Ok(Opened {
        store: Arc::new(store),
        away,
        newest_ms,
    })
}

fn unwritable(settings: &Settings, error: &dyn Display) -> StartError {
    let path = &settings.log.path;
    StartError::Unavailable(format!("the spool {path} (log.path) cannot be made ready: {error}"))
}

/// Says what was found in the store, and returns it. That it cannot be told stops no start: what is accepted waits in the spool.
fn tell_store(store: &str, found: Result<FoundStore, StoreError>) -> Option<FoundStore> {
    match found {
        Ok(found) => {
            log::info!("store ({store}): {found}");
            Some(found)
        }
        Err(error) => {
            log::warn!("store ({store}): what it holds cannot be told: {error}");
            None
        }
    }
}

/// Gives no number again that the store has: a spool that is behind the store's newest event begins a new epoch (rule 4).
fn go_on_behind(settings: &Settings, spool: &mut SqliteSpool, newest: &Event) -> Result<(), StartError> {
    let behind = spool
        .begin_epoch_if_behind(newest)
        .map_err(|error| unwritable(settings, &error))?;
    if behind {
        log::error!(
            "spool: it is an old copy, or its disk lost what was synced: MongoDB has seq {} of room {} in its epoch {}, and it has not. \
             Epoch {} begins; docs/OPERATIONS.md, \"Numbering conflict\"",
            newest.seq,
            newest.presenter_idx,
            newest.epoch.0,
            spool.epoch().0
        );
    }
    Ok(())
}

/// How far the newest message may be ahead of the clock: clocks of machines that took a spool over from each other differ by less.
const AHEAD_MS: i64 = 60_000;

/// Warns where the newest message is ahead of the clock: until that has come there, all that comes is of its time (rule 5).
fn warn_of_clock(newest_ms: i64) {
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
