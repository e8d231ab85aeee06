//! The log to break: in one mongod behind a link, in a replica set of three, or in the server's own file.

use std::time::Duration;

use mongodb::{
    Client,
    bson::{Document, doc},
    options::{ClientOptions, ReadConcern},
};
use rusqlite::Connection;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};

use crate::{
    plan::StoreKind,
    support::{PATIENCE, eventually, mongod::Mongod, proxy::Proxy},
    verdict::Logged,
};

/// The collection of the log, as the settings' defaults have it.
const COLLECTION: &str = "chatting_log";

/// A member that is frozen answers nothing, and is then not waited for.
const ANSWER: Duration = Duration::from_secs(1);

/// One of the three. It is used by one round after the other.
pub enum Store {
    Single { mongod: Mutex<Mongod>, link: Proxy },
    Set(Vec<Member>),
    Embedded,
}

/// One mongod of a replica set.
pub struct Member {
    pub mongod: Mutex<Mongod>,
    /// Speaks to this member only, whatever it is in the set.
    client: Client,
}

impl Store {
    pub async fn start(kind: StoreKind) -> Self {
        match kind {
            StoreKind::Single => {
                // For the fail point.
                let mongod = Mongod::start_own_with(&["--setParameter", "enableTestCommands=1"]).await;
                let link = Proxy::start(([127, 0, 0, 1], mongod.port()).into()).await;
                let mongod = Mutex::new(mongod);
                Self::Single { mongod, link }
            }
            StoreKind::ReplicaSet => Self::start_set().await,
            StoreKind::Embedded => Self::Embedded,
        }
    }

    async fn start_set() -> Self {
        let mut members = Vec::new();
        for _ in 0..3 {
            let mongod = Mongod::start_own_with(&["--replSet", "faults", "--oplogSize", "200"]).await;
            let client = client(&format!("{}/?directConnection=true", mongod.uri())).await;
            let mongod = Mutex::new(mongod);
            members.push(Member { mongod, client });
        }
        let mut hosts = Vec::new();
        for (id, member) in (0_i32..).zip(&members) {
            let host = format!("127.0.0.1:{}", member.mongod.lock().await.port());
            hosts.push(doc! { "_id": id, "host": host });
        }
        // Elections within a second or two, so that a round sees the next primary.
        let settings = doc! { "electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200 };
        let config = doc! { "_id": "faults", "members": hosts, "settings": settings };
        let admin = members[0].client.database("admin");
        let initiated = admin.run_command(doc! { "replSetInitiate": config }).await;
        assert!(initiated.is_ok(), "the replica set does not form: {initiated:?}");
        Self::Set(members)
    }

    /// Returns when everything is as it was before a fault.
    pub async fn healthy(&self) {
        match self {
            Self::Embedded => {}
            Self::Single { mongod, link } => {
                link.restore();
                let uri = mongod.lock().await.uri();
                let admin = client(&uri).await.database("admin");
                eventually("mongod to answer", async || {
                    admin.run_command(doc! { "ping": 1 }).await.ok()
                })
                .await;
                self.fail_inserts(None).await;
            }
            Self::Set(members) => {
                let mut states = Vec::new();
                let formed = async {
                    loop {
                        states.clear();
                        for member in members {
                            states.push(member.state().await);
                        }
                        let count = |state: &str| states.iter().filter(|known| *known == state).count();
                        if (count("primary"), count("secondary")) == (1, 2) {
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                // What a member missed while it was down it has to catch up with, on a busy machine too.
                if timeout(4 * PATIENCE, formed).await.is_err() {
                    panic!("the replica set does not form again: {states:?}");
                }
            }
        }
    }

    /// The server's settings: the link's address, or all members.
    pub async fn settings(&self, database: &str) -> Vec<String> {
        let uri = match self {
            Self::Single { link, .. } => format!("mongodb://{}", link.address()),
            Self::Set(_) => self.direct_uri().await,
            Self::Embedded => return vec!["log.backend=sqlite".to_owned()],
        };
        vec![
            "log.backend=mongodb".to_owned(),
            format!("mongodb.uri={uri}"),
            format!("mongodb.database={database}"),
        ]
    }

    async fn direct_uri(&self) -> String {
        match self {
            Self::Embedded => panic!("there is no MongoDB"),
            Self::Single { mongod, .. } => mongod.lock().await.uri(),
            Self::Set(members) => {
                let mut hosts = Vec::new();
                for member in members {
                    hosts.push(format!("127.0.0.1:{}", member.mongod.lock().await.port()));
                }
                format!("mongodb://{}/?replicaSet=faults", hosts.join(","))
            }
        }
    }

    /// The member that takes writes now, for one fault alone; waits until there is one that no other fault has.
    pub async fn primary(&self) -> (&Member, MutexGuard<'_, Mongod>) {
        let Self::Set(members) = self else {
            panic!("one mongod has no primary");
        };
        eventually("a primary", async || {
            for member in members {
                let hello = member.command(doc! { "hello": 1 }).await;
                if hello.is_some_and(|hello| hello.get_bool("isWritablePrimary") == Ok(true)) {
                    return member.mongod.try_lock().ok().map(|mongod| (member, mongod));
                }
            }
            None
        })
        .await
    }

    /// The primary gives that up at once, without waiting for the others: what only it has may be rolled back.
    pub async fn step_down(&self) -> MutexGuard<'_, Mongod> {
        let order = doc! { "replSetStepDown": 2, "secondaryCatchUpPeriodSecs": 0, "force": true };
        // One that became it this moment may refuse.
        eventually("a primary to step down", async || {
            let (member, mongod) = self.primary().await;
            member.command(order.clone()).await.map(|_| mongod)
        })
        .await
    }

    /// Makes every insert fail so from now on, or none; a mongod that is away forgets it. Gives how many have failed until then.
    pub async fn fail_inserts(&self, how: Option<Document>) -> i64 {
        let mode = if how.is_some() { "alwaysOn" } else { "off" };
        let mut data = doc! { "failCommands": ["insert"], "appName": "chatting-server" };
        data.extend(how.unwrap_or_default());
        let order = doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data };
        let admin = client(&self.direct_uri().await).await.database("admin");
        let set = eventually("the fail point to be set", async || {
            admin.run_command(order.clone()).await.ok()
        })
        .await;
        whole(&set, "count")
    }

    /// Returns when more inserts have failed than so many.
    pub async fn insert_failed(&self, before: i64) {
        let admin = client(&self.direct_uri().await).await.database("admin");
        eventually("an insert to fail", async || {
            let order = doc! { "getParameter": 1, "failpoint.failCommand": 1 };
            let known = admin.run_command(order).await.ok()?;
            let point = known.get_document("failpoint.failCommand").unwrap();
            (whole(point, "timesEntered") > before).then_some(())
        })
        .await;
    }

    /// Everything that the log holds, as a majority has it; `spool` is the file of a server that has stopped.
    pub async fn log(&self, database: &str, spool: &Connection) -> Vec<Logged> {
        if matches!(self, Self::Embedded) {
            let mut rows = spool.prepare(Logged::COLUMNS).unwrap();
            return rows
                .query_map([], Logged::of_row)
                .unwrap()
                .map(Result::unwrap)
                .collect();
        }
        let client = client(&self.direct_uri().await).await;
        let log = client.database(database).collection::<Document>(COLLECTION);
        let found = log.find(doc! {}).read_concern(ReadConcern::majority());
        let mut cursor = found.await.unwrap();
        let mut all = Vec::new();
        while cursor.advance().await.unwrap() {
            all.push(Logged::of_document(cursor.current()));
        }
        all
    }

    /// Drops a round's database.
    pub async fn forget(&self, database: &str) {
        if matches!(self, Self::Embedded) {
            return;
        }
        let client = client(&self.direct_uri().await).await;
        client.database(database).drop().await.unwrap();
    }
}

impl Member {
    /// What it is in the set now, or why that is not known.
    async fn state(&self) -> String {
        if let Some(status) = self.mongod.lock().await.process().exit() {
            return format!("ended ({status})");
        }
        let hello = self.client.database("admin").run_command(doc! { "hello": 1 }).await;
        match hello {
            Ok(hello) if hello.get_bool("isWritablePrimary") == Ok(true) => "primary".into(),
            Ok(hello) if hello.get_bool("secondary") == Ok(true) => "secondary".into(),
            Ok(_) => "neither primary nor secondary".into(),
            Err(error) => error.to_string(),
        }
    }

    /// Runs a command of the database `admin` here; `None` when it fails, or this member is gone or frozen.
    pub async fn command(&self, command: Document) -> Option<Document> {
        let admin = self.client.database("admin");
        timeout(ANSWER, admin.run_command(command).into_future())
            .await
            .ok()?
            .ok()
    }
}

fn whole(document: &Document, name: &str) -> i64 {
    let number = document.get(name).unwrap();
    number.as_i64().or(number.as_i32().map(i64::from)).unwrap()
}

async fn client(uri: &str) -> Client {
    let mut options = ClientOptions::parse(uri).await.unwrap();
    let patience = Duration::from_secs(2);
    options.server_selection_timeout = Some(patience);
    options.connect_timeout = Some(patience);
    Client::with_options(options).unwrap()
}
