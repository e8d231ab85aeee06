//! One round: start everything, load it, break it by plan, mend it, and judge.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use mongodb::bson::{Document, doc};
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::{
    disk::Disk,
    load::{Load, Outcome, ROOMS, SENDERS, Sender, Sent},
    plan::{Fault, Kind, OUT_OF_DISK_SPACE, Plan, Planned, StoreKind},
    power::{Failing, Power},
    presenters::{END, Presenter, Seen},
    server::Server,
    store::Store,
    support::{
        eventually,
        mongod::{Mongod, fresh_database_name},
        process::ScratchDir,
        room_server::RoomServer,
        within,
    },
    verdict::{Verdict, judge},
};

/// How long a spool that MongoDB drains has to meet its full disk.
const DRAINED: Duration = Duration::from_secs(3);

/// What outlives a round: its start takes longer than the round itself.
pub struct Fixtures {
    rooms: RoomServer,
    single: Option<Rc<Store>>,
    set: Option<Rc<Store>>,
    embedded: Option<Rc<Store>>,
}

impl Fixtures {
    pub async fn start() -> Self {
        let rooms = RoomServer::start().await;
        for room in 1..=ROOMS {
            rooms.live(room).await;
        }
        Self {
            rooms,
            single: None,
            set: None,
            embedded: None,
        }
    }

    async fn store(&mut self, kind: StoreKind) -> Rc<Store> {
        let kept = match kind {
            StoreKind::Single => &mut self.single,
            StoreKind::ReplicaSet => &mut self.set,
            StoreKind::Embedded => &mut self.embedded,
        };
        let store = match kept {
            Some(store) => Rc::clone(store),
            None => Rc::clone(kept.insert(Rc::new(Store::start(kind).await))),
        };
        store.healthy().await;
        store
    }

    /// What a round that failed left behind is not for the next one.
    pub fn forget(&mut self) {
        (self.single, self.set) = (None, None);
    }

    /// Readies everything that a round needs.
    pub async fn stage(&mut self, plan: &Plan, dir: &Arc<ScratchDir>) -> Stage {
        let store = self.store(plan.store).await;
        let disk = match plan.disk {
            Some(bytes) => Some(Rc::new(Disk::mount(dir, bytes).await)),
            None => None,
        };
        let spool = dir.path().join("chat.db");
        let power = plan.power.then(|| Rc::new(Power::of(dir, &spool)));
        let database = fresh_database_name();
        let mut settings: Vec<String> = [
            "server.bind=127.0.0.1:0",
            "server.workers=2",
            "room.mode=http",
            // Soon over, so that a round is short; what is tested does not depend on how long one waits.
            "mongodb.connect_timeout_ms=500",
            "mongodb.write_timeout_ms=700",
            "log.retry_min_ms=20",
            "log.retry_max_ms=200",
            "idempotency.sender_max=1000000",
        ]
        .map(str::to_owned)
        .into();
        settings.push(format!("room.base_url={}", self.rooms.base_url()));
        settings.extend(store.settings(&database).await);
        settings.extend(plan.settings.iter().cloned());
        Stage {
            plan: plan.clone(),
            server: Mutex::new(Server::new(dir, (disk.clone(), power.clone()), settings)),
            store,
            disk,
            power,
            cuts: Cell::new(0),
            database,
            load: Rc::default(),
            cut: watch::Sender::new(0),
            link: Mutex::default(),
            inserts: Mutex::default(),
            begun: watch::Sender::new(0),
            gave_up: Cell::new(false),
            dir: Arc::clone(dir),
        }
    }
}

/// A round's parts. The server is dropped, and so killed, before its disk.
pub struct Stage {
    plan: Plan,
    server: Mutex<Server>,
    store: Rc<Store>,
    disk: Option<Rc<Disk>>,
    power: Option<Rc<Power>>,
    /// How often it was cut.
    cuts: Cell<u64>,
    database: String,
    load: Rc<Load>,
    cut: watch::Sender<u32>,
    /// Held by the fault that the link, or inserts, have now; so it is with the server and each mongod. The next one waits for
    /// its end, since that mends all.
    link: Mutex<()>,
    inserts: Mutex<()>,
    /// How many of two faults at once have begun.
    begun: watch::Sender<u32>,
    /// The server gave up what it kept of its disk in reserve. It may go on for long then, where MongoDB takes what comes.
    gave_up: Cell<bool>,
    dir: Arc<ScratchDir>,
}

/// What a round came to, and what it went through.
pub struct Report {
    pub verdict: Verdict,
    /// Tries without an answer.
    pub unanswered: u64,
    /// Messages sent again after their 201, and answered as at first.
    pub repeated: u64,
    pub refusals: BTreeMap<String, u64>,
}

/// Runs a round to its end. Panics when something does not come about that must; what is wrong with the outcome is in the report.
pub async fn run(stage: Rc<Stage>) -> Report {
    if let (Some(_), Store::Single { link, .. }) = (stage.plan.cold_start, &*stage.store) {
        link.cut();
    }
    if stage.plan.must_not_refuse() {
        stage.server.lock().await.start_warm().await;
    } else {
        stage.server.lock().await.start().await;
    }
    let presenters = stage.presenters().await;
    let (senders, faults) = (stage.senders().await, stage.faults());

    let begin = Instant::now();
    for fault in faults {
        fault.done().await;
    }
    // The load's length is part of the schedule.
    tokio::time::sleep(stage.plan.load.saturating_sub(begin.elapsed())).await;
    stage.load.over.set(true);
    let mut sent = Vec::new();
    for sender in senders {
        sent.extend(sender.done().await);
    }
    sent.extend(stage.say_the_end().await);
    let mut seen = BTreeMap::new();
    for (room, presenter) in presenters {
        let frames = within(format_args!("the last frame of room {room}"), presenter.done()).await;
        seen.insert(room, frames);
    }
    stage.judge(&sent, &seen).await
}

/// Something under way beside the round; a round that fails takes it along.
struct Task<T>(actix_web::rt::task::JoinHandle<T>);

impl<T: 'static> Task<T> {
    fn spawn(work: impl Future<Output = T> + 'static) -> Self {
        Self(actix_web::rt::spawn(work))
    }

    async fn done(mut self) -> T {
        (&mut self.0).await.unwrap()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Stage {
    async fn presenters(&self) -> Vec<(i64, Task<Vec<Seen>>)> {
        let address = self.server.lock().await.address();
        let attached = Rc::new(Cell::new(0));
        let presenters = (1..=ROOMS)
            .map(|room| {
                let presenter = Presenter {
                    room,
                    address: Rc::clone(&address),
                    cut: self.cut.subscribe(),
                    attached: Rc::clone(&attached),
                };
                (room, Task::spawn(presenter.run()))
            })
            .collect();
        eventually("all presenters", async || {
            (i64::from(attached.get()) >= ROOMS).then_some(())
        })
        .await;
        presenters
    }

    async fn senders(&self) -> Vec<Task<Vec<Sent>>> {
        let address = self.server.lock().await.address();
        (0..SENDERS)
            .map(|number| {
                let sender = Sender::new(number, self.plan.seed, &address, &self.load);
                Task::spawn(sender.run(self.plan.texts.clone()))
            })
            .collect()
    }

    /// Each fault waits for its time in a task of its own, and mends what it broke.
    fn faults(self: &Rc<Self>) -> Vec<Task<()>> {
        let begin = tokio::time::Instant::now();
        let warm = self.plan.cold_start.map(|after| {
            let stage = Rc::clone(self);
            Task::spawn(async move {
                let _alone = stage.link.lock().await;
                tokio::time::sleep_until(begin + after).await;
                if let Store::Single { link, .. } = &*stage.store {
                    link.restore();
                }
            })
        });
        let faults = self.plan.faults.iter().copied();
        faults
            .map(|planned| {
                let stage = Rc::clone(self);
                Task::spawn(async move {
                    // The schedule comes from the seed: the times are what is tested.
                    tokio::time::sleep_until(begin + planned.at).await;
                    stage.strike(planned).await;
                })
            })
            .chain(warm)
            .collect()
    }

    async fn strike(&self, planned: Planned) {
        match (planned.fault, &*self.store) {
            (Fault::KillServer, _) => {
                let mut server = self.server.lock().await;
                server.kill().await;
                self.last(planned).await;
                server.start().await;
            }
            (Fault::KillStartingServer, _) => {
                let mut server = self.server.lock().await;
                server.kill().await;
                server.start_in_vain(planned.lasts).await;
                server.start().await;
            }
            (Fault::StopServer, _) => {
                let mut server = self.server.lock().await;
                server.stop().await;
                self.last(planned).await;
                server.start().await;
            }
            (Fault::CutSessions, _) => self.cut.send_modify(|count| *count += 1),
            (Fault::FillDisk, _) => {
                let disk = self.disk.as_ref().unwrap();
                disk.fill();
                self.last(planned).await;
                disk.relieve();
            }
            (Fault::CutPower, _) => {
                let mut server = self.server.lock().await;
                self.cut_power(&mut server).await;
                self.last(planned).await;
                server.start().await;
            }
            (Fault::CutPowerAtStart, _) => {
                let mut server = self.server.lock().await;
                self.cut_power(&mut server).await;
                server.start_in_vain(planned.lasts).await;
                self.cut_power(&mut server).await;
                server.start().await;
            }
            (Fault::FailDisk(what), _) => {
                // A server does not start on a disk that fails.
                let _server = self.server.lock().await;
                self.fail_disk(what, planned).await;
                self.power().mend(what);
            }
            (Fault::FailDiskAndCut(what), _) => {
                let mut server = self.server.lock().await;
                self.fail_disk(what, planned).await;
                self.cut_power(&mut server).await;
                self.power().mend(what);
                server.start().await;
            }
            (Fault::CutLink | Fault::StallLink | Fault::HalfOpenLink, Store::Single { link, .. }) => {
                let _alone = self.link.lock().await;
                match planned.fault {
                    Fault::CutLink => link.cut(),
                    Fault::StallLink => link.stall(),
                    _ => link.half_open(),
                }
                self.last(planned).await;
                link.restore();
            }
            (Fault::KillMongod, Store::Single { mongod, .. }) => self.kill(mongod.lock().await, planned).await,
            (Fault::FreezeMongod, Store::Single { mongod, .. }) => self.freeze(mongod.lock().await, planned).await,
            (Fault::RefuseInserts(code), Store::Single { .. }) => {
                self.fail_inserts(doc! { "errorCode": code }, planned).await;
            }
            (Fault::DoubtInserts, Store::Single { .. }) => {
                // As when the primary has them and the majority does not, yet.
                let doubt = doc! { "code": 64, "errmsg": "waiting for replication timed out" };
                self.fail_inserts(doc! { "writeConcernError": doubt }, planned).await;
            }
            (Fault::KillPrimary, Store::Set(_)) => self.kill(self.store.primary().await.1, planned).await,
            (Fault::FreezePrimary, Store::Set(_)) => self.freeze(self.store.primary().await.1, planned).await,
            (Fault::StepDown, Store::Set(_)) => {
                let _alone = self.store.step_down().await;
                self.last(planned).await;
            }
            (fault, _) => panic!("{fault} is for another store"),
        }
    }

    fn power(&self) -> &Power {
        self.power.as_ref().unwrap()
    }

    async fn cut_power(&self, server: &mut Server) {
        server.kill().await;
        let cut = self.cuts.replace(self.cuts.get() + 1);
        self.power().cut(&mut StdRng::seed_from_u64(self.plan.seed << 16 | cut));
    }

    /// However short it is planned, it is none before the server has met it.
    async fn fail_disk(&self, what: Failing, planned: Planned) {
        let before = self.power().failed();
        self.power().fail(what);
        eventually("the disk to fail", async || {
            (self.power().failed() > before).then_some(())
        })
        .await;
        self.last(planned).await;
    }

    async fn kill(&self, mut mongod: MutexGuard<'_, Mongod>, planned: Planned) {
        mongod.kill().await;
        self.last(planned).await;
        mongod.restart().await;
    }

    async fn freeze(&self, mongod: MutexGuard<'_, Mongod>, planned: Planned) {
        mongod.freeze();
        self.last(planned).await;
        mongod.thaw();
    }

    /// However short it is planned, it is none before an insert has met it.
    async fn fail_inserts(&self, how: Document, planned: Planned) {
        let _alone = self.inserts.lock().await;
        let before = self.store.fail_inserts(Some(how)).await;
        self.last(planned).await;
        self.store.insert_failed(before).await;
        self.store.fail_inserts(None).await;
    }

    /// The fault's time, which begins when it has struck. Of two at once none is over before the other has begun.
    async fn last(&self, planned: Planned) {
        if self.plan.kind == Kind::TwoAtOnce {
            self.begun.send_modify(|count| *count += 1);
            let mut begun = self.begun.subscribe();
            within("the other fault to begin", begun.wait_for(|count| *count >= 2))
                .await
                .unwrap();
        }
        if planned.until_refused {
            self.until_refused().await;
        }
        tokio::time::sleep(planned.lasts).await;
    }

    /// Until the server has met a disk that is full, or cannot. While MongoDB takes what comes, a spool may do for long with the room that
    /// its files have: if need be, MongoDB takes nothing until then.
    async fn until_refused(&self) {
        let (struck, mut drained) = (Instant::now(), true);
        eventually("a refusal for want of room", async || {
            if self.load.refused("log_unavailable") > 0 || self.reserve_is_given_up().await {
                return Some(());
            }
            if drained && self.plan.kind == Kind::DiskFull && struck.elapsed() > DRAINED {
                drained = false;
                self.store
                    .fail_inserts(Some(doc! { "errorCode": OUT_OF_DISK_SPACE }))
                    .await;
            }
            (struck.elapsed() > Duration::from_secs(20)).then_some(())
        })
        .await;
        if !drained {
            self.store.fail_inserts(None).await;
        }
    }

    async fn reserve_is_given_up(&self) -> bool {
        if self.plan.reserve > 0 && !self.gave_up.get() {
            let missing = self
                .server
                .lock()
                .await
                .metric("chat_spool_reserve_missing_bytes")
                .await;
            self.gave_up.set(missing > Some(0.0));
        }
        self.gave_up.get()
    }

    /// The last message of each room, so that presenters know that they have seen all.
    async fn say_the_end(&self) -> Vec<Sent> {
        self.store.healthy().await;
        let address = self.server.lock().await.address();
        let mut last = Sender::new(SENDERS, self.plan.seed, &address, &self.load);
        let mut sent = Vec::new();
        for room in 1..=ROOMS {
            let told = last.send_last(END, room).await;
            assert!(
                matches!(told.outcome, Outcome::Accepted(_)),
                "all is mended and room {room} takes nothing: {:?}",
                self.load.refusals.borrow()
            );
            sent.push(told);
        }
        sent
    }

    async fn judge(&self, sent: &[Sent], seen: &BTreeMap<i64, Vec<Seen>>) -> Report {
        let mut server = self.server.lock().await;
        eventually("the spool to be drained", async || {
            (server.metric("chat_spool_events").await == Some(0.0)).then_some(())
        })
        .await;
        eventually("the server to be ready", async || {
            server.status().await.filter(|status| status == "ready")
        })
        .await;
        let parked = server.metric("chat_parked_total").await;
        server.stop().await;

        let spool = rusqlite::Connection::open(server.spool()).unwrap();
        let log = self.store.log(&self.database, &spool).await;
        let mut verdict = judge(sent, seen, &log, &self.plan);
        let violations = &mut verdict.violations;
        if self.plan.promised {
            // Whoever is answered twice is answered the same.
            violations.extend(self.load.violations.borrow().iter().cloned());
        }
        if parked != Some(0.0) {
            violations.push(format!("chat_parked_total is {parked:?}"));
        }
        for table in ["spool", "parked"] {
            let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
            let rows = spool.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], count);
            if rows != Ok(0) {
                violations.push(format!("the spool's table {table} has {rows:?} rows"));
            }
        }
        let refused = self.load.refused("log_unavailable");
        if self.plan.must_refuse() && refused == 0 && !self.gave_up.get() {
            violations
                .push("nothing was refused as log_unavailable, no reserve given up: the fault was none".to_owned());
        }
        if self.plan.must_not_refuse() && refused > 0 {
            violations.push(format!("{refused} times log_unavailable, though the spool had room"));
        }
        if violations.is_empty() {
            self.store.forget(&self.database).await;
        } else {
            let all = serde_json::json!({ "sent": sent, "seen": seen, "log": log });
            fs::write(self.dir.path().join("round.json"), all.to_string()).unwrap();
        }
        Report {
            verdict,
            unanswered: self.load.unanswered.get(),
            repeated: self.load.repeated.get(),
            refusals: self.load.refusals.borrow().clone(),
        }
    }
}
