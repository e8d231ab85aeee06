//! A command's place among those that write to a log in MongoDB, as a server has one (rule 7).

use std::time::Duration;

use chatting_actors::seams::StoreError;

use super::Failure;
use crate::{
    settings::Settings,
    startup::{self, StartError},
    store::{MongoStore, ServerBeat, SqliteSpool},
};

/// The place of a command that has this spool.
pub(super) fn of(settings: &Settings, store: &MongoStore, spool: &SqliteSpool) -> ServerBeat {
    let interval = Duration::from_secs(settings.mongodb.heartbeat_seconds);
    ServerBeat::new(store, spool.server(), interval)
}

/// Runs work in its place, where it needs one: while it runs no server with another spool starts on that log. The work is not begun
/// where another server has said lately that it lives, or where that cannot be asked, which `not_asked` makes a failure of.
pub(super) async fn held<T>(
    place: Option<ServerBeat>,
    not_asked: impl FnOnce(StoreError) -> Failure,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(place) = place else {
        return work.await;
    };
    let (done, beating) = match place.take().await {
        Ok(None) => {
            let beating = actix_web::rt::spawn(place.clone().keep_beating());
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
