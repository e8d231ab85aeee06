//! One run: start everything, load it, break it, mend it, judge it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::{self, Display},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use actix_web::rt;
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, LocalSet},
    time::{sleep, timeout},
};

use crate::{
    link::{Faults, torment},
    plan::{Ending, Plan},
    presenter::{self, Presenter, Record},
    sender::{self, Sender, Sent},
    server::Server,
    support::{eventually, process::ScratchDir, proxy::Proxy, room_server::RoomServer},
    verdict::{Verdict, judge, log},
};

/// How long the presenters may take to catch up when the links are good again.
const CATCH_UP: Duration = Duration::from_secs(60);
/// So many violations are told; the rest are counted.
const TOLD: usize = 20;

/// What a run came to, and what it went through.
pub struct Report {
    plan: Plan,
    verdict: Verdict,
    faults: Rc<Faults>,
    presenters: Rc<presenter::Counts>,
    senders: sender::Counts,
    /// Begin of the first message to the answer of the last.
    took: Duration,
    /// How long nobody listened.
    away: Duration,
    /// From good links to the last presenter's last message.
    caught_up: Duration,
    pub violations: Vec<String>,
}

/// A presenter, and the link between it and the server.
struct Room {
    /// For as long as the presenter reads.
    _link: Rc<Proxy>,
    presenter: JoinHandle<()>,
    record: Rc<RefCell<Record>>,
    target: watch::Sender<Option<u64>>,
    torment: Option<JoinHandle<()>>,
}

pub async fn run(plan: &Plan, dir: &Arc<ScratchDir>) -> Report {
    let room_server = RoomServer::start().await;
    for room in 1..=plan.rooms {
        room_server.live(room).await;
    }
    let mut server = Server::start(dir, plan, room_server.base_url()).await;
    let (over, over_at) = watch::channel(false);
    let (faults, counts) = (Rc::<Faults>::default(), Rc::<presenter::Counts>::default());
    let mut rooms = BTreeMap::new();
    for room in 1..=plan.rooms {
        let link = Rc::new(Proxy::start(server.address).await);
        let (target, known) = watch::channel(None);
        let record = Rc::default();
        let rng = plan.rng("presenter", room.unsigned_abs());
        let presenter = Presenter::new(room, link.address(), rng, &counts, &record, known);
        let presenter = rt::spawn(presenter.run());
        rooms.insert(room, (link, presenter, record, target));
    }
    eventually("all presenters", async || {
        (counts.attached.get() >= plan.rooms.unsigned_abs()).then_some(())
    })
    .await;
    let mut rooms: BTreeMap<i64, Room> = rooms
        .into_iter()
        .map(|(room, (link, presenter, record, target))| {
            let rng = plan.rng("link", room.unsigned_abs());
            let torment = rt::spawn(torment(Rc::clone(&link), rng, Rc::clone(&faults), over_at.clone()));
            let whole = Room {
                _link: link,
                presenter,
                record,
                target,
                torment: Some(torment),
            };
            (room, whole)
        })
        .collect();

    let began = Instant::now();
    let sender_counts: Arc<Mutex<sender::Counts>> = Arc::default();
    let load = load(plan.clone(), server.address, Arc::clone(&sender_counts));
    // The middle is part of the schedule.
    sleep(plan.load / 2).await;
    let away = server.restart(plan.ending).await;
    let mut sent = load.await.expect("the senders failed");
    let took = began.elapsed();

    over.send_replace(true);
    for torment in rooms.values_mut().filter_map(|room| room.torment.take()) {
        torment.await.unwrap();
    }
    let mended = Instant::now();
    let mut last = Sender::new(plan.senders(), plan, server.address, &sender_counts);
    for (number, room) in &rooms {
        let told = last.send_last(*number).await;
        let answer = told.accepted.as_ref();
        let answer = answer.unwrap_or_else(|| panic!("all is mended and room {number} takes nothing"));
        room.target.send_replace(Some(answer.seq));
        sent.push(told);
    }
    let mut late = Vec::new();
    for (number, room) in &mut rooms {
        let patience = CATCH_UP.saturating_sub(mended.elapsed());
        match timeout(patience, &mut room.presenter).await {
            Ok(done) => done.unwrap(),
            Err(_) => {
                room.presenter.abort();
                late.push(format!(
                    "room {number}: its presenter has not everything after {CATCH_UP:?}"
                ));
            }
        }
    }
    let seen = rooms
        .iter()
        .map(|(number, room)| (*number, room.record.take()))
        .collect();
    let caught_up = mended.elapsed();
    eventually("the spool to be drained", async || {
        (server.metric("chat_spool_events").await == Some(0.0)).then_some(())
    })
    .await;
    server.stop().await;
    let spool = rusqlite::Connection::open(dir.path().join("chat.db")).unwrap();
    let verdict = judge(&sent, &seen, &log(&spool));
    // What was seen to go wrong first, then what came of it.
    let mut violations = counts.violations.take();
    let senders = std::mem::take(&mut *sender_counts.lock().unwrap());
    violations.extend(senders.violations.iter().cloned());
    violations.extend(late);
    violations.extend(verdict.violations.iter().cloned());
    for line in server.output().lines().filter(|line| line.contains("panicked")) {
        violations.push(line.to_owned());
    }
    let report = Report {
        plan: plan.clone(),
        verdict,
        faults,
        presenters: counts,
        senders,
        took,
        away,
        caught_up,
        violations,
    };
    report.with_what_it_must_have_met()
}

/// The senders, on a thread of their own: they must not wait for the links and the presenters.
fn load(plan: Plan, address: SocketAddr, counts: Arc<Mutex<sender::Counts>>) -> oneshot::Receiver<Vec<Sent>> {
    let (done, result) = oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let sent = LocalSet::new().block_on(&runtime, async {
            let began = Instant::now();
            let senders: Vec<_> = (0..plan.senders())
                .map(|number| {
                    let sender = Sender::new(number, &plan, address, &counts);
                    tokio::task::spawn_local(sender.run(plan.clone(), began))
                })
                .collect();
            let mut sent = Vec::new();
            for sender in senders {
                sent.extend(sender.await.unwrap());
            }
            sent
        });
        let _ = done.send(sent);
    });
    result
}

impl Report {
    /// A run that met no trouble shows nothing.
    fn with_what_it_must_have_met(mut self) -> Self {
        let mut met = |what: &str, count: u64| {
            if count == 0 {
                self.violations.push(format!("nothing was shown: {what}"));
            }
        };
        met("no link was cut", self.faults.cuts.get());
        met("no link was half-open", self.faults.half_opens.get());
        met(
            "no link was stalled",
            self.faults.stalls.get() + self.faults.stalls_then_cut.get(),
        );
        met("no link was slow", self.faults.delays.get());
        met("no session was resumed", self.presenters.resumed.get());
        met("nothing was caught up with", self.presenters.caught_up.get());
        met("no silent link was noticed", self.presenters.silent.get());
        match self.plan.ending {
            Ending::Stopped => met("nobody was told to reconnect", self.presenters.told_to_reconnect.get()),
            Ending::Killed => met("no answer was lost", self.senders.unanswered),
        }
        self
    }

    /// The first violations, and how many more there are.
    pub fn told(&self) -> String {
        let mut told: Vec<_> = self.violations.iter().take(TOLD).cloned().collect();
        if self.violations.len() > TOLD {
            told.push(format!("… and {} more", self.violations.len() - TOLD));
        }
        told.join("\n  ")
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            plan,
            verdict,
            faults,
            presenters,
            senders,
            ..
        } = self;
        let list = |counts: Vec<String>| {
            if counts.is_empty() {
                "none".into()
            } else {
                counts.join(", ")
            }
        };
        let refusals = senders.refusals.iter().map(|(code, count)| format!("{code} {count}"));
        let closed = presenters.closed.borrow();
        let closed = closed.iter().map(|(code, count)| format!("{code} × {count}"));
        let ms = |quantile| senders.answered_us.value_at_quantile(quantile) as f64 / 1000.0;
        let ending = match plan.ending {
            Ending::Stopped => "SIGTERM",
            Ending::Killed => "SIGKILL",
        };
        let begun = verdict.accepted + verdict.refused;
        let rows: Vec<(&str, String)> = vec![
            ("seed", plan.seed.to_string()),
            ("rooms", plan.rooms.to_string()),
            (
                "build",
                if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            ),
            ("room.ring_events", plan.ring.to_string()),
            (
                "messages begun",
                format!(
                    "{begun} ({:.0}/s; {}/s was asked for)",
                    begun as f64 / self.took.as_secs_f64(),
                    plan.rate
                ),
            ),
            ("accepted (201)", verdict.accepted.to_string()),
            ("given up after refusals", verdict.refused.to_string()),
            ("refused tries", list(refusals.collect())),
            (
                "tries without an answer, nobody listening",
                format!("{}, {}", senders.unanswered, senders.unheard),
            ),
            (
                "accepted by a try after a lost answer",
                senders.accepted_after_doubt.to_string(),
            ),
            (
                "sent again after a 201, answered the same",
                senders.repeated.to_string(),
            ),
            (
                "first try to 201, ms: p50, p99, max",
                format!("{:.1}, {:.1}, {:.0}", ms(0.5), ms(0.99), ms(1.0)),
            ),
            (
                "server's end, away for",
                format!("{ending}, {:.2} s", self.away.as_secs_f64()),
            ),
            (
                "links cut, half-open, slowed",
                format!(
                    "{}, {}, {}",
                    faults.cuts.get(),
                    faults.half_opens.get(),
                    faults.delays.get()
                ),
            ),
            (
                "links stalled, stalled and then cut",
                format!("{}, {}", faults.stalls.get(), faults.stalls_then_cut.get()),
            ),
            (
                "sessions resumed, of them by the last ack",
                format!("{}, {}", presenters.resumed.get(), presenters.forgot.get()),
            ),
            (
                "connects in vain, silent links given up",
                format!("{}, {}", presenters.failed.get(), presenters.silent.get()),
            ),
            ("told to reconnect", presenters.told_to_reconnect.get().to_string()),
            ("closed by the server", list(closed.collect())),
            (
                "chat frames, of them caught up with, repeated",
                format!(
                    "{}, {}, {}",
                    presenters.frames.get(),
                    presenters.caught_up.get(),
                    presenters.repeated.get()
                ),
            ),
            (
                "good links to everything seen",
                format!("{:.2} s", self.caught_up.as_secs_f64()),
            ),
            ("lost to a presenter", verdict.lost.to_string()),
            ("lost to the log", verdict.not_logged.to_string()),
            ("doubled", verdict.twice.to_string()),
            ("holes", verdict.holes.to_string()),
            ("violations in all", self.violations.len().to_string()),
        ];
        writeln!(f, "| chaos | |\n|---|---|")?;
        for (name, value) in rows {
            writeln!(f, "| {name} | {value} |")?;
        }
        Ok(())
    }
}
