//! Acts of moderation that cover more than a store marks at once, and what MongoDB says of writes that fail.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chatting_actors::{
    clock::EventClock,
    moderation::Act,
    seams::LogStore,
    types::{Event, Seq, UserIdx},
};
use chatting_server::store::{Archive, Deleted, MongoStore, ServerBeat, keeping::Keeping, mongo::MongoSettings};
use mongodb::bson::{Document, doc};
use uuid::Uuid;

use crate::{
    log_archive::{act, broadcast, by, scan},
    log_store::{batch, event, room, stores},
    support::{
        eventually,
        mongod::{Mongod, fresh_database_name},
        room_log::stored,
    },
};

fn user(user: i64) -> Act {
    Act::User {
        user_idx: UserIdx::new(user).unwrap(),
    }
}

const ALWAYS: Act = Act::Span {
    from_ms: 0,
    to_ms: i64::MAX,
};

/// What a room's numberings hold as deleted.
async fn marked(store: &dyn Archive, presenter: i64) -> BTreeMap<Uuid, Deleted> {
    let mut marked = BTreeMap::new();
    for epoch in store.epochs(room(presenter)).await.unwrap() {
        let all = store.scan(scan(presenter, &epoch.0, 0, u64::MAX, 100_000)).await;
        let all = all.unwrap().into_iter();
        marked.extend(all.filter_map(|logged| Some((logged.event.id, logged.deleted?))));
    }
    marked
}

/// What it should hold: what each act covers that no act before it did.
fn covered<'a>(acts: &[&Event], events: impl Iterator<Item = &'a Arc<Event>>) -> BTreeMap<Uuid, Deleted> {
    let first = |event: &Event| {
        let covers = |at: &&&Event| at.act.as_ref().unwrap().covers(at, event);
        acts.iter().find(covers).map(|at| (event.id, Deleted::by(at)))
    };
    events.filter_map(|event| first(event)).collect()
}

async fn append(store: &dyn Archive, events: &[Arc<Event>]) {
    for part in events.chunks(1000) {
        assert_eq!(store.append(batch(part)).await.unwrap(), []);
    }
}

#[actix_web::test]
async fn an_act_on_thousands_marks_exactly_what_it_names_in_every_numbering() {
    for (name, store, _dir) in stores().await {
        let base = 1_800_000_000_000;
        let mut clock = EventClock::after(0);
        let mut said = Vec::new();
        for (epoch, seqs) in [("b", 1..=2400), ("a", 2401..=5000), ("c", 5001..=6000)] {
            // A hole, as retention or a parked event leaves it.
            for seq in seqs.filter(|seq| !(700..1200).contains(seq)) {
                let of = 7 + i64::try_from(seq % 3).unwrap() % 2;
                let mut one = Arc::unwrap_or_clone(by(of, event(&mut clock, 1, epoch, seq, "x")));
                one.sent_at_ms = base + i64::try_from(seq).unwrap();
                said.push(Arc::new(one));
            }
        }
        let elsewhere: Vec<_> = (1..=1500)
            .map(|seq| by(7, event(&mut clock, 2, "a", seq, "x")))
            .collect();
        append(&*store, &[&said[..], &elsewhere[..]].concat()).await;
        let span = Act::Span {
            from_ms: base + 300,
            to_ms: base + 4800,
        };
        let span = act(&mut clock, 1, "c", 6001, span);
        let user = act(&mut clock, 1, "c", 6002, user(7));
        let later = by(7, event(&mut clock, 1, "c", 6003, "x"));
        append(&*store, &[span.clone(), user.clone(), later.clone()]).await;
        let wanted = covered(&[&span, &user], said.iter().chain([&later]));
        assert!(wanted.len() > 4500, "{name}: {}", wanted.len());
        assert!(marked(&*store, 1).await == wanted, "{name}");
        assert_eq!(marked(&*store, 2).await.len(), 0, "{name}: another room");
        // Given again, as after an error, they change nothing.
        append(&*store, &[span, user, later]).await;
        assert!(marked(&*store, 1).await == wanted, "{name}");
    }
}

/// A MongoDB whose link is lost when it is asked to.
struct Cut {
    mongod: Mongod,
    store: MongoStore,
}

impl Cut {
    async fn start(write_timeout: Duration) -> Self {
        let mongod = Mongod::start_own_with(&["--setParameter", "enableTestCommands=1"]).await;
        let settings = MongoSettings {
            uri: mongod.uri(),
            database: fresh_database_name(),
            connect_timeout: Duration::from_secs(10),
            write_timeout,
            connections: 10,
        };
        let store = MongoStore::new(&settings).await.unwrap();
        LogStore::prepare(&store).await.unwrap();
        Self { mongod, store }
    }

    async fn admin(&self, command: Document) -> Document {
        let client = mongodb::Client::with_uri_str(self.mongod.uri()).await.unwrap();
        client.database("admin").run_command(command).await.unwrap()
    }

    async fn updates(&self, mode: impl Into<mongodb::bson::Bson>, how: Document) {
        let mut data = doc! { "failCommands": ["update"] };
        data.extend(how);
        self.admin(doc! { "configureFailPoint": "failCommand", "mode": mode.into(), "data": data })
            .await;
    }

    /// Updates are taken, so many, and then the link is lost at each.
    async fn after(&self, updates: i32) {
        self.updates(doc! { "skip": updates }, doc! { "closeConnection": true })
            .await;
    }

    /// The next of these commands is done, and no majority is known to have it.
    async fn without_majority(&self, command: &str) {
        let error = doc! { "code": 64, "errmsg": "planned" };
        let data = doc! { "failCommands": [command], "writeConcernError": error };
        self.admin(doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data })
            .await;
    }

    async fn mended(&self) {
        self.updates("off", doc! {}).await;
    }

    async fn updates_so_far(&self) -> i64 {
        let status = self.admin(doc! { "serverStatus": 1 }).await;
        let commands = status
            .get_document("metrics")
            .unwrap()
            .get_document("commands")
            .unwrap();
        commands.get_document("update").unwrap().get_i64("total").unwrap()
    }
}

#[actix_web::test]
async fn an_act_that_was_cut_off_goes_on_where_it_was_and_what_is_behind_it_is_stored() {
    let cut = Cut::start(Duration::from_secs(30)).await;
    let store = &cut.store;
    let mut clock = EventClock::after(0);
    let said: Vec<_> = (1..=5000)
        .map(|seq| by(7 + i64::from(seq > 2500), event(&mut clock, 1, "e", seq, "x")))
        .collect();
    append(store, &said).await;
    let one = Act::Message {
        id: said[2999].id,
        seq: Seq(3000),
    };
    let one = act(&mut clock, 1, "e", 5001, one);
    let user = act(&mut clock, 1, "e", 5002, user(7));
    let all = act(&mut clock, 1, "e", 5003, ALWAYS);
    let behind = event(&mut clock, 2, "e", 1, "x");
    let mut given = vec![one.clone(), user.clone(), all.clone(), behind.clone()];
    // One for the message, three for the user's 2500, and the first of six for all: that thousand was the user's.
    cut.after(5).await;
    store.append(batch(&given)).await.unwrap_err();
    let wanted = covered(&[&one, &user, &all], said.iter());
    let so_far = covered(&[&one, &user], said.iter());
    assert!(marked(store, 1).await == so_far);
    // It does not get a piece further, and loses nothing of what it had.
    store.append(batch(&given)).await.unwrap_err();
    assert!(marked(store, 1).await == so_far);
    cut.mended().await;
    // More has come meanwhile.
    given.push(event(&mut clock, 2, "e", 2, "x"));
    let before = cut.updates_so_far().await;
    assert_eq!(store.append(batch(&given)).await.unwrap(), []);
    assert!(marked(store, 1).await == wanted);
    assert_eq!(cut.updates_so_far().await - before, 5, "none is looked at again");
    assert_eq!(stored(store, room(2)).await.len(), 2);
    append(store, &[event(&mut clock, 2, "e", 3, "x")]).await;
    assert_eq!(LogStore::last_seq(store, room(2)).await.unwrap(), Seq(3));
}

#[actix_web::test]
async fn an_act_may_take_longer_than_a_write_may() {
    let patience = Duration::from_secs(4);
    let cut = Cut::start(patience).await;
    let mut clock = EventClock::after(0);
    let said: Vec<_> = (1..=6000).map(|seq| event(&mut clock, 1, "e", seq, "x")).collect();
    append(&cut.store, &said).await;
    let all = act(&mut clock, 1, "e", 6001, ALWAYS);
    let slow = doc! { "blockConnection": true, "blockTimeMS": 1000 };
    cut.updates("alwaysOn", slow).await;
    let began = std::time::Instant::now();
    append(&cut.store, &[all.clone(), event(&mut clock, 2, "e", 1, "x")]).await;
    assert!(began.elapsed() > patience, "{:?}", began.elapsed());
    assert!(marked(&cut.store, 1).await == covered(&[&all], said.iter()));
}

#[actix_web::test]
async fn what_was_refused_when_an_act_began_and_was_taken_before_it_ended_is_marked() {
    let cut = Cut::start(Duration::from_secs(30)).await;
    let store = &cut.store;
    let mut clock = EventClock::after(0);
    let said: Vec<_> = (1..=3000).map(|seq| event(&mut clock, 1, "e", seq, "x")).collect();
    append(store, &said[1..]).await;
    // What is in its place is not ours, and goes.
    let conflict = event(&mut clock, 1, "e", 1, "x");
    append(store, std::slice::from_ref(&conflict)).await;
    let all = act(&mut clock, 1, "e", 3001, ALWAYS);
    let given = [said[0].clone(), all.clone()];
    cut.after(2).await;
    store.append(batch(&given)).await.unwrap_err();
    let log = store.database().await.unwrap().collection::<Document>("chatting_log");
    let gone = log.delete_one(doc! { "seq": 1 }).await.unwrap();
    assert_eq!(gone.deleted_count, 1);
    cut.mended().await;
    assert_eq!(store.append(batch(&given)).await.unwrap(), []);
    assert!(marked(store, 1).await == covered(&[&all], said.iter()));
}

#[actix_web::test]
async fn acts_on_what_others_have_marked_look_at_none_of_it_again_and_what_is_given_again_looks_at_all() {
    let cut = Cut::start(Duration::from_secs(30)).await;
    let store = &cut.store;
    let base = 1_800_000_000_000;
    let mut clock = EventClock::after(0);
    let at = |event: Arc<Event>| {
        let mut event = Arc::unwrap_or_clone(event);
        event.sent_at_ms = base + event.seq.0.cast_signed();
        Arc::new(event)
    };
    let mut said: Vec<_> = (1..=5000)
        .map(|seq| at(by(7 + i64::from(seq > 2500), event(&mut clock, 1, "e", seq, "x"))))
        .collect();
    // This one was set aside.
    let aside = said.remove(1999);
    append(store, &said).await;
    let mut acts = Vec::new();
    for n in 0..30 {
        let span = Act::Span {
            from_ms: base + 1000 - 10 * n,
            to_ms: base + 4000 + 10 * n,
        };
        acts.push(at(act(&mut clock, 1, "e", 5001 + n.cast_unsigned(), span)));
    }
    for seq in 5031..=5060 {
        acts.push(at(act(&mut clock, 1, "e", seq, user(7))));
    }
    let before = cut.updates_so_far().await;
    for part in acts.chunks(7) {
        append(store, part).await;
    }
    let updates = cut.updates_so_far().await - before;
    // The first span has three thousand, each further one adds a few on either side, and the user has two and a half thousand.
    assert!((4..=4 + 2 * 29 + 4).contains(&updates), "{updates}");
    let all: Vec<&Event> = acts.iter().map(|act| &**act).collect();
    assert!(marked(store, 1).await == covered(&all, said.iter()));
    // What has been said since is looked at.
    let later = at(by(7, event(&mut clock, 1, "e", 5061, "x")));
    let last = at(act(&mut clock, 1, "e", 5062, user(7)));
    append(store, &[later.clone(), last.clone()]).await;
    said.push(later);
    let all = [&all[..], &[&*last]].concat();
    assert!(marked(store, 1).await == covered(&all, said.iter()));
    // As `spool replay --parked` gives it, with the acts that cover it.
    append(store, &[aside.clone(), acts[0].clone()]).await;
    said.push(aside);
    assert!(marked(store, 1).await == covered(&all, said.iter()));
}

#[actix_web::test]
async fn what_comes_behind_acts_on_thousands_costs_a_mark_of_its_own_and_not_theirs() {
    let cut = Cut::start(Duration::from_secs(30)).await;
    let store = &cut.store;
    let mut clock = EventClock::after(0);
    let late: Vec<_> = (1..=20)
        .map(|seq| by(7, event(&mut clock, 1, "late", seq, "x")))
        .collect();
    let said: Vec<_> = (1..=5000)
        .map(|seq| by(7, event(&mut clock, 1, "e", seq, "x")))
        .collect();
    append(store, &said).await;
    let acts = [
        act(&mut clock, 1, "e", 5001, user(7)),
        act(&mut clock, 1, "e", 5002, ALWAYS),
    ];
    append(store, &acts).await;
    for part in late.chunks(10) {
        append(store, part).await;
        let before = cut.updates_so_far().await;
        assert_eq!(store.mark_late(batch(part)).await.unwrap(), []);
        assert_eq!(cut.updates_so_far().await - before, 1);
    }
    let acts: Vec<&Event> = acts.iter().map(|act| &**act).collect();
    assert!(marked(store, 1).await == covered(&acts, said.iter().chain(&late)));
}

#[actix_web::test]
async fn what_acts_have_marked_is_looked_at_again_after_a_failure_which_may_be_a_restore() {
    let cut = Cut::start(Duration::from_secs(30)).await;
    let store = &cut.store;
    let mut clock = EventClock::after(0);
    let said: Vec<_> = (1..=10).map(|seq| by(7, event(&mut clock, 1, "e", seq, "x"))).collect();
    append(store, &said).await;
    let first = act(&mut clock, 1, "e", 11, user(7));
    append(store, std::slice::from_ref(&first)).await;
    assert!(marked(store, 1).await == covered(&[&first], said.iter()));
    let log = store.database().await.unwrap().collection::<Document>("chatting_log");
    let unmark = doc! { "$unset": { "deleted_at": "", "deleted_by": "" } };
    assert_eq!(log.update_many(doc! {}, unmark).await.unwrap().modified_count, 10);
    let between = [event(&mut clock, 1, "e", 12, "x")];
    cut.without_majority("insert").await;
    store.append(batch(&between)).await.unwrap_err();
    append(store, &between).await;
    let second = act(&mut clock, 1, "e", 13, user(7));
    append(store, std::slice::from_ref(&second)).await;
    assert!(marked(store, 1).await == covered(&[&second], said.iter()));
    // Also where it fails for messages that came behind an act.
    let unmark = doc! { "$unset": { "deleted_at": "", "deleted_by": "" } };
    assert_eq!(log.update_many(doc! {}, unmark).await.unwrap().modified_count, 10);
    cut.without_majority("update").await;
    store.mark_covered(second, vec![said[0].id]).await.unwrap_err();
    let third = act(&mut clock, 1, "e", 14, user(7));
    append(store, std::slice::from_ref(&third)).await;
    let marked = marked(store, 1).await;
    assert_eq!(marked.len(), 10);
    assert!(said[1..].iter().all(|one| marked[&one.id] == Deleted::by(&third)));
}

/// The primary of a replica set, which may be left alone.
struct Primary {
    mongod: Mongod,
    client: mongodb::Client,
}

impl Primary {
    async fn start() -> Self {
        let mongod = Mongod::start_own_with(&["--replSet", "alone", "--oplogSize", "50"]).await;
        let client = mongodb::Client::with_uri_str(Self::uri(&mongod)).await.unwrap();
        let this = Self { mongod, client };
        // Alone, it stays the primary for longer than a test takes.
        let settings = doc! { "electionTimeoutMillis": 3_600_000 };
        let config = doc! { "_id": "alone", "members": [this.member()], "settings": settings };
        this.admin(doc! { "replSetInitiate": config }).await;
        eventually("it to be the primary", async || {
            let hello = this.admin(doc! { "hello": 1 }).await;
            hello.get_bool("isWritablePrimary").unwrap().then_some(())
        })
        .await;
        this
    }

    fn uri(mongod: &Mongod) -> String {
        format!("{}/?directConnection=true", mongod.uri())
    }

    fn member(&self) -> Document {
        doc! { "_id": 0, "host": format!("127.0.0.1:{}", self.mongod.port()) }
    }

    async fn admin(&self, command: Document) -> Document {
        self.client.database("admin").run_command(command).await.unwrap()
    }

    /// Its set has these members from now on.
    async fn with(&self, members: Vec<Document>) {
        let answer = self.admin(doc! { "replSetGetConfig": 1 }).await;
        let mut config = answer.get_document("config").unwrap().clone();
        let version = config.get_i32("version").unwrap();
        config.insert("version", version + 1);
        config.insert("members", members);
        config.remove("term");
        self.admin(doc! { "replSetReconfig": config, "force": true }).await;
    }

    /// How many operations on this database are under way.
    async fn under_way(&self, database: &str) -> usize {
        let of = doc! { "currentOp": true, "ns": { "$regex": format!("^{database}[.]") } };
        self.admin(of).await.get_array("inprog").unwrap().len()
    }
}

#[actix_web::test]
async fn rule_04_what_waits_for_a_majority_in_vain_does_not_stay_on_the_primary() {
    let primary = Primary::start().await;
    let database = fresh_database_name();
    let settings = |seconds| MongoSettings {
        uri: Primary::uri(&primary.mongod),
        database: database.clone(),
        connect_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(seconds),
        connections: 10,
    };
    let patient = MongoStore::new(&settings(30)).await.unwrap();
    LogStore::prepare(&patient).await.unwrap();
    let store = MongoStore::new(&settings(1)).await.unwrap();
    let beat = ServerBeat::new(&store, "mine", Duration::from_secs(600));
    // Nobody is there.
    let nobody = doc! { "_id": 1, "host": "127.0.0.1:9", "priority": 0 };
    primary.with(vec![primary.member(), nobody]).await;
    let mut clock = EventClock::after(0);
    let said = [event(&mut clock, 1, "e", 1, "x")];
    let record = broadcast(1, 1, 1, None);
    // The second time all of it is there.
    for _ in 0..2 {
        store.append(batch(&said)).await.unwrap_err();
        store.put_broadcasts(std::slice::from_ref(&record)).await.unwrap_err();
        store.hold_broadcast(record.id, true).await.unwrap_err();
        beat.beat().await.unwrap_err();
        LogStore::prepare(&store).await.unwrap_err();
    }
    eventually("nothing to be under way", async || {
        (primary.under_way(&database).await == 0).then_some(())
    })
    .await;
    primary.with(vec![primary.member()]).await;
    append(&patient, &said).await;
    let records = std::slice::from_ref(&record);
    assert_eq!(patient.put_broadcasts(records).await.unwrap(), []);
    assert_eq!(stored(&patient, room(1)).await.len(), 1);
}

#[actix_web::test]
async fn rule_04_what_no_majority_is_known_to_have_is_not_stored_until_it_is_given_again() {
    let cut = Cut::start(Duration::from_secs(30)).await;
    let store = &cut.store;
    let mut clock = EventClock::after(0);
    let said: Vec<_> = (1..=3).map(|seq| event(&mut clock, 1, "e", seq, "x")).collect();
    cut.without_majority("insert").await;
    let error = store.append(batch(&said)).await.unwrap_err();
    assert!(error.0.contains("planned"), "{error}");
    assert_eq!(store.append(batch(&said)).await.unwrap(), []);
    assert_eq!(stored(store, room(1)).await.len(), 3);
    let records = [broadcast(1, 1, 1, None)];
    cut.without_majority("update").await;
    let error = store.put_broadcasts(&records).await.unwrap_err();
    assert!(error.0.contains("planned"), "{error}");
    assert_eq!(store.put_broadcasts(&records).await.unwrap(), []);
    assert_eq!(store.broadcasts(room(1), None, 10).await.unwrap().broadcasts.len(), 1);
}
