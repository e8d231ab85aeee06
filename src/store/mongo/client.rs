//! How MongoDB is reached, and what is asked of it whatever the URI says.

use std::time::Duration;

use chatting_actors::seams::StoreError;
use mongodb::{
    error::Error,
    options::{Acknowledgment, ClientOptions, ConnectionString, ReadConcern, ReadPreference, Tls, WriteConcern},
};

use super::{MongoSettings, certificates};

/// What is said of a URI that the driver cannot read.
const UNREADABLE_URI: &str = "it cannot be read; allowed: mongodb://user:password@host:port/?option=value, with what is \
                              special in user and password percent-encoded, and with options that the driver knows";

/// See [`super::MongoStore::check_uri`].
pub(super) fn check(uri: &str) -> Result<(), StoreError> {
    // The driver panics on a "%" before a character of several bytes; a URI has none (RFC 3986, 2).
    let parsed = uri.is_ascii().then(|| ConnectionString::parse(uri).ok());
    let parsed = parsed.flatten().ok_or_else(|| StoreError(UNREADABLE_URI.into()))?;
    match &parsed.tls {
        Some(Tls::Enabled(files)) => certificates::check(files).map_err(StoreError),
        Some(Tls::Disabled) | None => Ok(()),
    }
}

/// The URI's options, but for what the log's promises rest on. A row leaves the spool when a majority has it, and is read in the
/// store from then on: a secondary may not have it yet, the primary does, whatever it is asked for as `local`.
pub(super) async fn options(settings: &MongoSettings) -> Result<ClientOptions, Error> {
    // Name servers that are silent have no more time than a server that is.
    let patience = settings.connect_timeout;
    let mut options = match tokio::time::timeout(patience, ClientOptions::parse(&settings.uri)).await {
        Ok(parsed) => parsed?,
        Err(_) => {
            return Err(Error::custom(format!(
                "name servers gave no answer within {patience:?}"
            )));
        }
    };
    options.app_name.get_or_insert_with(|| "chatting-server".into());
    options.connect_timeout = Some(settings.connect_timeout);
    options.server_selection_timeout = Some(settings.connect_timeout);
    options.max_pool_size.get_or_insert(settings.connections);
    options.write_concern = Some(durable(settings.write_timeout));
    options.selection_criteria = Some(ReadPreference::Primary.into());
    options.read_concern = Some(ReadConcern::local());
    Ok(options)
}

/// Durable: a majority has it in its journal, or it is told in time that none is known to.
pub(in crate::store) fn durable(patience: Duration) -> WriteConcern {
    WriteConcern::builder()
        .w(Acknowledgment::Majority)
        .journal(true)
        .w_timeout(confirmed_within(patience))
        .build()
}

/// How long MongoDB waits for a majority where its answer is waited for so long. What nobody waits for any more would hang there, with
/// its connection, until a majority is back.
fn confirmed_within(patience: Duration) -> Duration {
    // 0 would be for ever.
    (patience * 9 / 10).max(Duration::from_millis(1))
}

/// The same in milliseconds, as a command has it.
pub(super) fn wtimeout(patience: Duration) -> i64 {
    i64::try_from(confirmed_within(patience).as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use mongodb::options::SelectionCriteria;

    use super::*;

    #[tokio::test]
    async fn a_uri_does_not_change_what_the_log_promises() {
        let mut settings = MongoSettings {
            uri:
                "mongodb://127.0.0.1:1/?readPreference=secondaryPreferred&readConcernLevel=available&w=1&journal=false\
                  &wTimeoutMS=1&appName=ours&connectTimeoutMS=1"
                    .into(),
            database: "chatting".into(),
            connect_timeout: Duration::from_millis(300),
            write_timeout: Duration::from_secs(1),
            connections: 10,
        };
        let reached = options(&settings).await.unwrap();
        let Some(SelectionCriteria::ReadPreference(from)) = reached.selection_criteria else {
            panic!("{:?}", reached.selection_criteria);
        };
        assert_eq!(from, ReadPreference::Primary);
        assert_eq!(reached.read_concern, Some(ReadConcern::local()));
        let durable = reached.write_concern.unwrap();
        assert_eq!(
            (durable.w, durable.journal, durable.w_timeout),
            (
                Some(Acknowledgment::Majority),
                Some(true),
                Some(Duration::from_millis(900))
            )
        );
        assert_eq!(reached.connect_timeout, Some(Duration::from_millis(300)));
        // The rest is as it says.
        assert_eq!(reached.app_name.as_deref(), Some("ours"));
        assert_eq!(reached.max_pool_size, Some(10));
        settings.uri += "&maxPoolSize=3";
        let reached = options(&settings).await.unwrap();
        assert_eq!(reached.max_pool_size, Some(3));
    }

    #[test]
    fn mongodb_waits_for_a_majority_for_less_time_than_it_is_waited_for_and_never_for_ever() {
        for (patience_ms, ms) in [(10_000, 9_000), (600_000, 540_000), (15, 13), (1, 1)] {
            assert_eq!(wtimeout(Duration::from_millis(patience_ms)), ms);
        }
    }
}
