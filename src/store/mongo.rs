//! The log in MongoDB: collection `chatting_log`, one document an event, `_id` the event's UUIDv7.
//!
//! Batches are unordered, with write concern majority and journal. The old server's documents in the same collection
//! have no `seq` and stay untouched: the unique index on `(presenter_idx, epoch, seq)` is partial on `seq` existing.

mod acts;
mod archive;
mod certificates;
mod client;
mod document;
mod fields;
mod figures;
mod identity;
mod insert;
mod keeping;
mod marked;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chatting_actors::{
    broadcast::Broadcast,
    seams::{LogStore, NotPut, Poison, StoreBatch, StoreError},
    types::{PresenterIdx, Seq},
};
use futures_util::future::{BoxFuture, FutureExt};
use mongodb::{
    Client, Collection, Database, IndexModel,
    bson::{Document, RawDocumentBuf, doc},
    error::{Error, ErrorKind},
    options::{Hint, IndexOptions},
    results::CreateIndexesResult,
};
use tokio::runtime::Handle;
use uuid::Uuid;

pub(super) use self::client::durable;
pub(crate) use self::insert::insert_command;
use self::{
    acts::Progress,
    document::{event, sent_at_ms},
};
use super::{FoundStore, LateMessages, Newest, servers::ServerBeat, spool::OfLog};

const SEQ_INDEX: &str = "presenter_epoch_seq";

/// The codes of errors of an index that is there under another name, or under the same name and is another one.
const OTHER_INDEX: [i32; 2] = [
    85, // IndexOptionsConflict
    86, // IndexKeySpecsConflict
];

/// Acts that are looked at at once, of those that late messages may be covered by.
const ACTS_AT_ONCE: usize = 1000;

/// What MongoDB 5.0 says in `hello`, the first that has all that figures are counted with (`$setWindowFields`).
const OLDEST_WIRE_VERSION: i32 = 13;

/// How MongoDB is reached.
#[derive(Clone)]
pub struct MongoSettings {
    /// `mongodb.uri`; may hold a password.
    pub uri: String,
    /// `mongodb.database`
    pub database: String,
    /// `mongodb.connect_timeout_ms`
    pub connect_timeout: Duration,
    /// `mongodb.write_timeout_ms`
    pub write_timeout: Duration,
    /// Connections at most, where the URI does not say how many (`maxPoolSize`).
    pub connections: u32,
}

/// The log in MongoDB. A MongoDB that is away, or whose names nobody knows yet, is an error of each call, which may be
/// made again. Clones share one client.
#[derive(Clone)]
pub struct MongoStore {
    settings: MongoSettings,
    /// Empty until the URI's names are known (`mongodb+srv://`).
    mongo: Arc<OnceLock<Mongo>>,
    /// Where the client is made: its own tasks run there, and it is of no use any more when that runtime has ended.
    runtime: Handle,
    /// The server that writes here (rule 7): its spool's name, and how often it says that it lives.
    server: Arc<OnceLock<(String, Duration)>>,
    /// The spool whose log it must be, and whether it was seen to be.
    spool: Arc<OnceLock<OfLog>>,
    same: Arc<AtomicBool>,
}

impl MongoStore {
    /// The server that writes here has a spool of this name, and says so often that it lives.
    pub(super) fn is_of(&self, server: &str, interval: Duration) {
        let _ = self.server.set((server.to_owned(), interval));
    }

    /// Another server that lives, in words for the operator; `None` also where none writes by this one.
    async fn other_server(&self) -> Result<Option<String>, StoreError> {
        match self.server.get() {
            Some((server, interval)) => ServerBeat::new(self, server, *interval).other().await,
            None => Ok(None),
        }
    }

    /// Whether the driver can read the URI, and the files that it names, without asking anyone. The error never quotes the URI: the
    /// driver's own words quote what they find wrong, and where an "@" is missing that is the password.
    pub fn check_uri(uri: &str) -> Result<(), StoreError> {
        client::check(uri)
    }

    /// Reads the URI and makes a client; connects when it is first used. Errors name what is wrong with the URI. That name servers
    /// do not know its hosts now is none (rule 3): they are asked again whenever the store is.
    pub async fn new(settings: &MongoSettings) -> Result<Self, StoreError> {
        Ok(Self::asked(settings).await?.0)
    }

    /// The same, and what name servers said where they do not know its hosts now: to ask the store at once would only be to wait for
    /// them again.
    pub async fn asked(settings: &MongoSettings) -> Result<(Self, Option<StoreError>), StoreError> {
        Self::check_uri(&settings.uri)?;
        let this = Self::later(settings.clone());
        match this.look_up().await.map(drop) {
            Ok(()) => Ok((this, None)),
            Err(error) if of_names(&error) => Ok((this, Some(failed(error)))),
            Err(error) => Err(failed(error)),
        }
    }

    /// The same for a URI that was checked, without asking name servers before the store is asked for something. Its client will
    /// be made in the runtime that this is called in.
    pub fn later(settings: MongoSettings) -> Self {
        Self {
            settings,
            mongo: Arc::default(),
            runtime: Handle::current(),
            server: Arc::default(),
            spool: Arc::default(),
            same: Arc::default(),
        }
    }

    /// `mongodb.write_timeout_ms`
    pub fn write_timeout(&self) -> Duration {
        self.settings.write_timeout
    }

    /// The database, for what else is kept there.
    pub async fn database(&self) -> Result<&Database, StoreError> {
        Ok(&self.reach().await?.database)
    }

    /// The newest event, by the index of `_id`, and how many documents MongoDB counts without looking at them.
    pub async fn found(&self) -> Result<FoundStore, StoreError> {
        self.reach().await?.found().await
    }

    async fn reach(&self) -> Result<&Mongo, StoreError> {
        if self.spool.get().is_some() && !self.same.load(Ordering::Acquire) {
            self.is_the_log().await?;
        }
        self.connected().await
    }

    async fn connected(&self) -> Result<&Mongo, StoreError> {
        match self.mongo.get() {
            Some(mongo) => Ok(mongo),
            None => self.look_up().await.map_err(failed),
        }
    }

    /// Who comes meanwhile asks too, rather than wait for it and then ask: one client is kept.
    async fn look_up(&self) -> Result<&Mongo, Error> {
        let settings = self.settings.clone();
        let made = self.runtime.spawn(async move { Mongo::new(&settings).await });
        let made = made.await.map_err(|error| Error::custom(error.to_string()))??;
        Ok(self.mongo.get_or_init(|| made))
    }
}

/// A client and what it is asked for.
struct Mongo {
    database: Database,
    log: Collection<RawDocumentBuf>,
    write_timeout: Duration,
    /// Of the acts in the batch under way.
    progress: Mutex<Progress>,
    /// Its age has been looked at.
    age_known: AtomicBool,
}

impl Mongo {
    async fn new(settings: &MongoSettings) -> Result<Self, Error> {
        let database = Client::with_options(client::options(settings).await?)?.database(&settings.database);
        Ok(Self {
            log: database.collection("chatting_log"),
            database,
            write_timeout: settings.write_timeout,
            progress: Mutex::default(),
            age_known: AtomicBool::default(),
        })
    }

    async fn found(&self) -> Result<FoundStore, StoreError> {
        let count = self.timed(self.log.estimated_document_count().into_future()).await;
        Ok(FoundStore {
            newest: self.newest().await?,
            documents: Some(count.map_err(failed)?),
        })
    }

    async fn newest(&self) -> Result<Option<Newest>, StoreError> {
        // Ours have UUIDs; the old server's documents have ObjectIds, which an index keeps elsewhere.
        let newest = self
            .log
            .find_one(doc! { "_id": { "$type": "binData" } })
            .sort(doc! { "_id": -1 });
        let Some(newest) = self.timed(newest.into_future()).await.map_err(failed)? else {
            return Ok(None);
        };
        Ok(Some(Newest {
            sent_at_ms: sent_at_ms(&newest).map_err(StoreError)?,
            event: event(&newest),
        }))
    }

    /// The log, as documents that are read whole.
    fn documents(&self) -> Collection<Document> {
        self.log.clone_with_type()
    }

    fn log_name(&self) -> &str {
        self.log.name()
    }

    async fn timed<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match tokio::time::timeout(self.write_timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::custom(format!("no answer within {:?}", self.write_timeout))),
        }
    }

    async fn last_seq(&self, presenter: PresenterIdx) -> Result<Seq, StoreError> {
        // One step of the index an epoch, however long the log is. It may be asked before the index is there, so none is named.
        let room = doc! { "presenter_idx": presenter.get(), "seq": { "$gte": 0 } };
        let epochs = self
            .timed(self.log.distinct("epoch", room).into_future())
            .await
            .map_err(failed)?;
        let mut last = Seq(0);
        for epoch in epochs {
            let of_epoch = doc! { "presenter_idx": presenter.get(), "epoch": epoch, "seq": { "$gte": 0 } };
            let newest = self.log.find_one(of_epoch).sort(doc! { "seq": -1 });
            if let Some(found) = self.timed(newest.into_future()).await.map_err(failed)? {
                last = last.max(Seq(found.get_i64("seq").map_err(unreadable)?.cast_unsigned()));
            }
        }
        Ok(last)
    }

    async fn prepare(&self) -> Result<(), StoreError> {
        let unique = IndexOptions::builder()
            .name(SEQ_INDEX.to_owned())
            .unique(true)
            .partial_filter_expression(doc! { "seq": { "$exists": true } })
            .build();
        let keys = doc! { "presenter_idx": 1, "epoch": 1, "seq": 1 };
        let unique = IndexModel::builder().keys(keys).options(unique).build();
        // All of a collection at once, so that one that is large is gone through once.
        let of_log = [unique]
            .into_iter()
            .chain(archive::log_indexes())
            .chain(keeping::log_indexes());
        self.indexed(self.log.create_indexes(of_log).into_future()).await?;
        let records = self.records();
        let of_records = archive::record_indexes().into_iter().chain([keeping::record_index()]);
        self.indexed(records.create_indexes(of_records).into_future()).await?;
        self.warn_of_age().await;
        Ok(())
    }

    /// An index that somebody else built is in the way of ours until somebody drops it.
    async fn indexed(
        &self,
        created: impl Future<Output = Result<CreateIndexesResult, Error>>,
    ) -> Result<(), StoreError> {
        let Err(error) = self.timed(created).await else {
            return Ok(());
        };
        let in_the_way = matches!(&*error.kind, ErrorKind::Command(refused) if OTHER_INDEX.contains(&refused.code));
        let StoreError(why) = failed(error);
        Err(StoreError(match in_the_way {
            true => format!("{why}; drop that index, it is in the way of one that the server builds"),
            false => why,
        }))
    }

    /// Once.
    async fn warn_of_age(&self) {
        if self.age_known.load(Ordering::Relaxed) {
            return;
        }
        let hello = self.database.run_command(doc! { "hello": 1 });
        if let Ok(hello) = self.timed(hello.into_future()).await {
            self.age_known.store(true, Ordering::Relaxed);
            if is_too_old(&hello) {
                log::warn!(
                    "store: this MongoDB is older than 5.0, which the server needs: figures cannot be counted there"
                );
            }
        }
    }

    async fn is_empty(&self) -> Result<bool, StoreError> {
        self.prepare().await?;
        let any = self
            .log
            .find_one(doc! { "seq": { "$exists": true } })
            .hint(Hint::Name(SEQ_INDEX.into()));
        Ok(self.timed(any.into_future()).await.map_err(failed)?.is_none())
    }
}

impl LogStore for MongoStore {
    fn prepare(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            // It may have been restored, or another one may be in its place.
            self.is_the_log().await?;
            self.connected().await?.prepare().await
        }
        .boxed()
    }

    fn append(&self, batch: StoreBatch) -> BoxFuture<'_, Result<Vec<Poison>, StoreError>> {
        async move { self.came(self.reach().await?.append(batch).await) }.boxed()
    }

    fn mark_late(&self, batch: StoreBatch) -> BoxFuture<'_, Result<Vec<Poison>, StoreError>> {
        async move { LateMessages::mark_all(&batch, self, ACTS_AT_ONCE).await }.boxed()
    }

    fn last_seq(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Seq, StoreError>> {
        async move { self.reach().await?.last_seq(presenter).await }.boxed()
    }

    fn put_broadcasts<'a>(&'a self, broadcasts: &'a [Broadcast]) -> BoxFuture<'a, Result<Vec<NotPut>, StoreError>> {
        async move { self.came(self.reach().await?.put_broadcasts(broadcasts).await) }.boxed()
    }

    fn open_broadcasts(&self, but: HashMap<Uuid, u64>) -> BoxFuture<'_, Result<Vec<Broadcast>, StoreError>> {
        async move {
            // They may be that one's, which goes on with them itself (rule 7).
            match self.other_server().await? {
                Some(other) => Err(StoreError(other)),
                None => self.reach().await?.open_broadcasts(&but).await,
            }
        }
        .boxed()
    }

    fn open_broadcast(&self, presenter: PresenterIdx) -> BoxFuture<'_, Result<Option<Broadcast>, StoreError>> {
        async move {
            match self.other_server().await? {
                Some(other) => Err(StoreError(other)),
                None => self.reach().await?.open_broadcast(presenter).await,
            }
        }
        .boxed()
    }

    fn newest_ms(&self) -> BoxFuture<'_, Result<i64, StoreError>> {
        async move {
            let newest = self.reach().await?.newest().await?;
            Ok(newest.map_or(0, |newest| newest.sent_at_ms))
        }
        .boxed()
    }
}

/// Whether what a name server said, or that it said nothing, is all that is wrong.
fn of_names(error: &Error) -> bool {
    matches!(*error.kind, ErrorKind::DnsResolve { .. } | ErrorKind::Custom(_))
}

/// What is wrong, in words: the driver's own text has the raw reply too, in hexadecimal digits.
pub(super) fn failed(error: Error) -> StoreError {
    StoreError(match error.get_custom::<String>() {
        Some(ours) => ours.clone(),
        None => error.kind.to_string(),
    })
}

fn is_too_old(hello: &Document) -> bool {
    let newest = hello.get_i32("maxWireVersion");
    newest.is_ok_and(|newest| newest < OLDEST_WIRE_VERSION)
}

fn unreadable(error: impl std::fmt::Display) -> StoreError {
    StoreError(format!("a document of the log cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mongodb_before_5_0_is_too_old() {
        for (newest, old) in [(9, true), (12, true), (13, false), (17, false)] {
            assert_eq!(is_too_old(&doc! { "maxWireVersion": newest }), old, "{newest}");
        }
        assert!(!is_too_old(&doc! {}));
    }

    #[tokio::test]
    async fn that_name_servers_do_not_know_its_hosts_is_told_and_no_fault_of_the_uri() {
        let asked = async |uri: &str| {
            let settings = MongoSettings {
                uri: uri.into(),
                database: "chatting".into(),
                connect_timeout: Duration::from_millis(300),
                write_timeout: Duration::from_secs(1),
                connections: 10,
            };
            MongoStore::asked(&settings)
                .await
                .map(|(_, unknown)| unknown.is_some())
                .ok()
        };
        // A name that no name server ever knows (RFC 6761, 6.4).
        assert_eq!(asked("mongodb+srv://chatting.invalid/").await, Some(true));
        assert_eq!(asked("mongodb://127.0.0.1:1/").await, Some(false));
        assert_eq!(asked("mongodb+srv://chatting.invalid:27017/").await, None);
    }
}
