//! The log that a command works on: a spool that it takes or looks into, and the store behind it.
//!
//! Of a log in MongoDB the spool's lock keeps out one server; every other one on that log is kept out by the command's place among those
//! that write to it, as a server has one (rule 7).

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use chatting_actors::{
    seams::{Spool, StoreError},
    writer::{SpoolInfo, StoreState},
};
use prometheus_client::metrics::gauge::Gauge;

use super::Failure;
use crate::{
    settings::{LogBackend, Settings},
    startup::{self, StartError},
    store::{
        Archive, LockError, MongoStore, ServerBeat, SpoolSettings, SqliteSpool, SqliteStore,
        inspect::SpoolFile,
        spool::{OfLog, OpenError},
    },
};

/// Refuses where there is no spool: to take it makes one, which is not what was asked.
pub(super) fn must_exist(settings: &Settings) -> Result<(), Failure> {
    let path = &settings.log.path;
    match std::fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::unavailable(format!(
            "the spool {path} cannot be opened: {error}"
        ))),
    }
}

/// Takes the spool, which a full one allows, too: it is to be freed. `why_stopped`: why its server has to be stopped first, where one has
/// it.
pub(super) fn take_spool(settings: &Settings, why_stopped: &str) -> Result<(SqliteSpool, SpoolInfo), Failure> {
    let opened = SqliteSpool::open(SpoolSettings {
        max_bytes: None,
        ..startup::spool_settings(settings)
    });
    opened.map_err(|error| {
        let held = matches!(error, OpenError::Lock(LockError::Held { .. }));
        let mut failure = Failure::from(error);
        if held {
            failure.text += &format!("\nstop that server first; {why_stopped}");
        }
        failure
    })
}

/// Lets go of the spool behind what was `done`. A success is none where the spool does not take the mark of a clean stop,
/// as on a full disk: who has it next checks it, and with `log.durability` `os` or `memory` begins a new epoch. Anything
/// else ends as it does, and this is told besides.
pub(super) fn let_go(
    mut spool: SqliteSpool,
    settings: &Settings,
    done: Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    if spool.close() {
        return done;
    }
    let unmarked = Failure::unavailable(format!(
        "the spool {} could not be marked as closed: the disk is full or fails, or the file is damaged\n\
         what was done stays; the next start checks the spool",
        settings.log.path
    ));
    match done {
        Ok(code) if code == ExitCode::SUCCESS => Err(unmarked),
        done => {
            unmarked.tell();
            done
        }
    }
}

/// A log behind a spool that is taken.
pub(super) struct Log {
    pub store: Arc<dyn Archive>,
    /// The command's place in it, still to be taken; none where the log is in the spool's own file.
    pub place: Option<ServerBeat>,
}

/// The log behind this spool; `begins`: the command puts events there, so a spool that knows no log is of this one from now on.
pub(super) async fn behind(settings: &Settings, spool: &SqliteSpool, begins: bool) -> Result<Log, Failure> {
    Ok(match settings.log.backend {
        LogBackend::Sqlite => Log {
            store: Arc::new(SqliteStore::new(spool.connection())),
            place: None,
        },
        LogBackend::Mongodb => {
            let store = startup::mongo_store(settings).await?;
            let place = startup::place_in(settings, &store, spool);
            must_be_of(&store, spool.of_log(begins).map_err(Failure::spool)?).await?;
            Log {
                store: Arc::new(store),
                place: Some(place),
            }
        }
    })
}

/// The store to be read beside whatever server has it, once the spool turned out to be a part of the same log.
pub(super) async fn to_read(settings: &Settings) -> Result<Arc<dyn Archive>, Failure> {
    let path = PathBuf::from(&settings.log.path);
    // It says what is wrong with the file in words, where reading would only fail.
    let spool = SpoolFile::open(&path)?;
    spool.is_whole_with(settings.log.backend == LogBackend::Sqlite)?;
    Ok(match settings.log.backend {
        LogBackend::Sqlite => Arc::new(SqliteStore::to_read(path)),
        LogBackend::Mongodb => {
            let store = startup::mongo_store(settings).await?;
            must_be_of(&store, spool.of_log()?).await?;
            Arc::new(store)
        }
    })
}

/// Refuses a store that is another log than the spool's. One that cannot be asked now says so when it is asked for something.
async fn must_be_of(store: &MongoStore, spool: OfLog) -> Result<(), Failure> {
    store.belongs_to(spool);
    match store.other_log(store.write_timeout()).await {
        Ok(Some(other)) => Err(StartError::Config(other.why).into()),
        Ok(None) | Err(_) => Ok(()),
    }
}

/// Runs work in its place, where it needs one: while it runs no server with another spool starts on that log. The work is not begun
/// where another server has said lately that it lives, or where that cannot be asked, which `not_asked` makes a failure of.
pub(super) async fn in_place<T>(
    place: Option<ServerBeat>,
    not_asked: impl FnOnce(StoreError) -> Failure,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(place) = place else {
        return work.await;
    };
    let (done, beating) = match place.take().await {
        Ok(None) => {
            let beating = actix_web::rt::spawn(place.clone().keep_beating(Gauge::default(), StoreState::default()));
            (work.await, Some(beating))
        }
        Ok(Some(other)) => (Err(StartError::Unavailable(other).into()), None),
        Err(error) => (Err(not_asked(error)), None),
    };
    let _ = tokio::time::timeout(startup::STORE_COURTESY, place.leave()).await;
    if let Some(beating) = beating {
        beating.abort();
    }
    done
}
