//! What a round does and when: all of it drawn from the round's seed, so that a seed repeats the schedule.

use std::{
    fmt::{self, Display},
    ops::RangeInclusive,
    time::Duration,
};

use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};

use crate::power::Failing;

pub const OUT_OF_DISK_SPACE: i32 = 14031;

/// Besides Unauthorized, ExceededTimeLimit, ShutdownInProgress, WriteConflict, and one that nobody knows.
const REFUSALS: [i32; 6] = [OUT_OF_DISK_SPACE, 13, 262, 91, 112, 99_999];

/// Many times what a round's load can write, so that only the ballast fills the disk: the embedded log frees nothing, and a
/// disk that it had filled by itself would stay full.
const DISK_BYTES: u64 = 128 << 20;
/// What `log.reserve_bytes` may be on it: nothing, too little for a small spool to grow by, and the default.
const RESERVES: [u64; 3] = [0, 1 << 20, 16 << 20];

/// What a round is about. As many seeds in a row as there are [`TURNS`] cover each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    ServerKilled,
    MongodKilled,
    MongodFrozen,
    LinkBroken,
    StoreRefuses,
    PrimaryLost,
    DiskFull,
    SpoolFull,
    Embedded,
    PowerCut,
    DiskFails,
    TwoAtOnce,
}

/// A seed's kind is the one at its remainder.
pub const TURNS: [Kind; 14] = [
    Kind::ServerKilled,
    Kind::MongodKilled,
    Kind::MongodFrozen,
    Kind::LinkBroken,
    Kind::StoreRefuses,
    Kind::PrimaryLost,
    Kind::DiskFull,
    Kind::SpoolFull,
    Kind::Embedded,
    Kind::PowerCut,
    Kind::DiskFails,
    Kind::TwoAtOnce,
    Kind::TwoAtOnce,
    Kind::TwoAtOnce,
];

/// One thing that breaks. All of them are made good again before a round is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and after a pause a start on the same directory.
    KillServer,
    /// SIGKILL, a start, SIGKILL so much later, perhaps before it listens, and a start.
    KillStartingServer,
    /// SIGTERM, its orderly end, and after a pause a start.
    StopServer,
    /// Every presenter's socket is cut at its own end.
    CutSessions,
    KillMongod,
    FreezeMongod,
    CutLink,
    StallLink,
    HalfOpenLink,
    /// Every insert fails as a whole with this code.
    RefuseInserts(i32),
    /// Every insert takes effect, and is answered with an error of its write concern.
    DoubtInserts,
    StepDown,
    KillPrimary,
    FreezePrimary,
    FillDisk,
    /// SIGKILL, and what the disk was not sure to have survives in part; after a pause a start.
    CutPower,
    /// The same, once more so much later in a start, perhaps before it listens, and a start.
    CutPowerAtStart,
    /// Writes or syncs of the spool fail with an I/O error, and then do no more.
    FailDisk(Failing),
    /// They fail until the power is cut.
    FailDiskAndCut(Failing),
}

impl Fault {
    /// What it breaks, of one mongod and its server. In a replica set each fault takes another primary.
    fn victim(self) -> &'static str {
        match self {
            Self::KillServer | Self::KillStartingServer | Self::StopServer => "server",
            Self::CutPower | Self::CutPowerAtStart | Self::FailDiskAndCut(_) => "server",
            Self::CutSessions => "sessions",
            Self::KillMongod | Self::FreezeMongod | Self::RefuseInserts(_) | Self::DoubtInserts => "mongod",
            Self::CutLink | Self::StallLink | Self::HalfOpenLink => "link",
            Self::StepDown | Self::KillPrimary | Self::FreezePrimary => "primary",
            Self::FillDisk | Self::FailDisk(_) => "disk",
        }
    }
}

/// Where the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// One mongod behind a proxy.
    Single,
    /// Three, spoken to directly: members tell their own addresses.
    ReplicaSet,
    /// No MongoDB: the spool's file is the log.
    Embedded,
}

/// A fault at its time.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    pub fault: Fault,
    /// From the begin of the load.
    pub at: Duration,
    /// How long it lasts; with `until_refused`, from the first `log_unavailable` on.
    pub lasts: Duration,
    /// It goes on until the server has refused a message for want of room, or given its reserve up so that it need not.
    pub until_refused: bool,
}

/// One round.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub kind: Kind,
    pub store: StoreKind,
    /// Bytes of a file system for the spool alone.
    pub disk: Option<u64>,
    /// How many of them the spool keeps in reserve; 0 also where it has no reserve.
    pub reserve: u64,
    /// The server's disk can lose power and fail.
    pub power: bool,
    /// What was accepted is promised to be in the log: it is, but for a power cut under `log.durability = "os"`.
    pub promised: bool,
    /// The server starts for the first time with its link to MongoDB cut, which is mended so long after the begin of the load.
    pub cold_start: Option<Duration>,
    pub faults: Vec<Planned>,
    /// The load goes on at least so long, and beyond the end of the last fault.
    pub load: Duration,
    /// How long the texts are, in characters.
    pub texts: RangeInclusive<usize>,
    /// Settings of the server as `key=value`.
    pub settings: Vec<String>,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let kind = TURNS[usize::try_from(seed % TURNS.len() as u64).unwrap()];
        let mut plan = Self {
            seed,
            kind,
            store: StoreKind::Single,
            disk: None,
            reserve: 0,
            power: false,
            promised: true,
            cold_start: None,
            faults: Vec::new(),
            load: millis(&mut rng, 1800..=2400),
            texts: 10..=60,
            settings: [
                ("log.batch_max", &["7", "100", "1000"]),
                ("log.commit_max", &["5", "64", "1024"]),
                ("log.backlog_max", &["20", "500", "100000"]),
            ]
            .map(|(key, values)| format!("{key}={}", values.choose(&mut rng).unwrap()))
            .into(),
        };
        match kind {
            Kind::ServerKilled => {
                let faults = [Fault::KillServer, Fault::KillServer, Fault::KillStartingServer];
                plan.several(&mut rng, &faults, 3, 0..=300);
            }
            Kind::MongodKilled => plan.several(&mut rng, &[Fault::KillMongod], 2, 0..=800),
            Kind::MongodFrozen => plan.several(&mut rng, &[Fault::FreezeMongod], 2, 50..=1800),
            Kind::LinkBroken => {
                let faults = [Fault::CutLink, Fault::StallLink, Fault::HalfOpenLink];
                plan.several(&mut rng, &faults, 3, 20..=900);
                plan.cold_start = rng.random_ratio(1, 2).then(|| millis(&mut rng, 0..=1500));
            }
            Kind::StoreRefuses => {
                let refuse = REFUSALS.map(Fault::RefuseInserts);
                plan.add_one_of(&mut rng, &refuse, 200..=2000, 50..=1000);
                plan.add(&mut rng, Fault::DoubtInserts, 200..=2000, 50..=1000);
            }
            Kind::PrimaryLost => {
                plan.store = StoreKind::ReplicaSet;
                plan.add(&mut rng, Fault::StepDown, 200..=1200, 50..=500);
                let faults = [Fault::StepDown, Fault::KillPrimary, Fault::FreezePrimary];
                plan.several(&mut rng, &faults, 1, 50..=1500);
            }
            Kind::DiskFull => plan.fill_disk(&mut rng),
            Kind::SpoolFull => {
                let faults = [Fault::KillMongod, Fault::FreezeMongod, Fault::CutLink];
                plan.add_one_of(&mut rng, &faults, 100..=600, 50..=600);
                plan.faults[0].until_refused = true;
                plan.texts = 1200..=1900;
                plan.settings.push("log.spool_max_bytes=2097152".into());
            }
            Kind::Embedded => {
                plan.store = StoreKind::Embedded;
                if rng.random_ratio(1, 2) {
                    plan.fill_disk(&mut rng);
                }
                plan.several(&mut rng, &[Fault::KillServer, Fault::KillStartingServer], 2, 0..=300);
            }
            Kind::PowerCut => {
                plan.on_power(&mut rng);
                let faults = [Fault::CutPower, Fault::CutPower, Fault::CutPowerAtStart];
                plan.several(&mut rng, &faults, 3, 0..=300);
                if rng.random_ratio(1, 4) {
                    plan.promised = false;
                    plan.settings.push("log.durability=os".into());
                }
            }
            Kind::DiskFails => {
                plan.on_power(&mut rng);
                let what = *[Failing::Syncs, Failing::Writes].choose(&mut rng).unwrap();
                let faults = [Fault::FailDisk(what), Fault::FailDiskAndCut(what)];
                plan.add_one_of(&mut rng, &faults, 200..=1200, 0..=600);
                if rng.random_ratio(1, 2) {
                    plan.add(&mut rng, Fault::CutPower, 200..=2000, 0..=300);
                }
            }
            Kind::TwoAtOnce => plan.two_at_once(&mut rng),
        }
        if rng.random_ratio(1, 3) {
            plan.add(&mut rng, Fault::CutSessions, 100..=2000, 0..=0);
        }
        // Drawn last: what else a seed stands for stays as it was.
        if plan.disk.is_some() && plan.store != StoreKind::Embedded {
            plan.reserve = *RESERVES.choose(&mut rng).unwrap();
            plan.settings.push(format!("log.reserve_bytes={}", plan.reserve));
        }
        plan.faults.sort_by_key(|planned| planned.at);
        plan
    }

    /// Whether what a presenter was sent can have been lost on the way.
    pub fn cuts_sessions(&self) -> bool {
        let cuts = [
            Fault::KillServer,
            Fault::KillStartingServer,
            Fault::StopServer,
            Fault::CutSessions,
            Fault::CutPower,
            Fault::CutPowerAtStart,
        ];
        let cut = |fault| cuts.contains(&fault) || matches!(fault, Fault::FailDiskAndCut(_));
        self.faults.iter().any(|planned| cut(planned.fault))
    }

    /// Whether the log was there all the time, so that whatever waits for a presenter could be read.
    pub fn spares_store(&self) -> bool {
        let spared = |planned: &Planned| ["server", "sessions"].contains(&planned.fault.victim());
        self.cold_start.is_none() && self.faults.iter().all(spared)
    }

    /// Whether the server must have refused a message with `log_unavailable`, or given its reserve up so that it need not.
    pub fn must_refuse(&self) -> bool {
        matches!(self.kind, Kind::DiskFull | Kind::SpoolFull)
    }

    /// Whether the server must not refuse one so: MongoDB alone is away, and the spool has room.
    pub fn must_not_refuse(&self) -> bool {
        let kinds = [
            Kind::MongodKilled,
            Kind::MongodFrozen,
            Kind::LinkBroken,
            Kind::StoreRefuses,
            Kind::PrimaryLost,
        ];
        kinds.contains(&self.kind) && self.cold_start.is_none()
    }

    fn add(&mut self, rng: &mut StdRng, fault: Fault, at: RangeInclusive<u64>, lasts: RangeInclusive<u64>) {
        self.faults.push(Planned {
            fault,
            at: millis(rng, at),
            lasts: millis(rng, lasts),
            until_refused: false,
        });
    }

    fn add_one_of(&mut self, rng: &mut StdRng, of: &[Fault], at: RangeInclusive<u64>, lasts: RangeInclusive<u64>) {
        let fault = *of.choose(rng).unwrap();
        self.add(rng, fault, at, lasts);
    }

    fn several(&mut self, rng: &mut StdRng, of: &[Fault], max: usize, lasts: RangeInclusive<u64>) {
        for _ in 0..rng.random_range(1..=max) {
            self.add_one_of(rng, of, 200..=2000, lasts.clone());
        }
    }

    fn fill_disk(&mut self, rng: &mut StdRng) {
        self.disk = Some(DISK_BYTES);
        self.texts = 800..=1900;
        self.add(rng, Fault::FillDisk, 200..=800, 50..=600);
        self.faults[0].until_refused = true;
    }

    /// With the log in MongoDB, or in the file whose disk is in danger.
    fn on_power(&mut self, rng: &mut StdRng) {
        self.power = true;
        self.store = *[StoreKind::Single, StoreKind::Embedded].choose(rng).unwrap();
    }

    /// The second begins while the first lasts, and breaks something else.
    fn two_at_once(&mut self, rng: &mut StdRng) {
        let mut single = [
            Fault::KillServer,
            Fault::StopServer,
            Fault::KillMongod,
            Fault::FreezeMongod,
            Fault::CutLink,
            Fault::StallLink,
            Fault::HalfOpenLink,
            Fault::DoubtInserts,
        ];
        let mut set = [
            Fault::KillServer,
            Fault::StepDown,
            Fault::KillPrimary,
            Fault::FreezePrimary,
        ];
        let two = match rng.random_range(0..4) {
            0 => {
                self.store = StoreKind::ReplicaSet;
                set.partial_shuffle(rng, 2).0.to_vec()
            }
            1 => {
                self.fill_disk(rng);
                single.choose(rng).copied().into_iter().collect()
            }
            _ => {
                single.shuffle(rng);
                let other = single.iter().find(|fault| fault.victim() != single[0].victim());
                vec![single[0], *other.unwrap()]
            }
        };
        for fault in two {
            let during = match self.faults.first() {
                None => 200..=900,
                Some(first) => {
                    let begin = u64::try_from(first.at.as_millis()).unwrap();
                    let length = u64::try_from(first.lasts.as_millis()).unwrap();
                    begin..=begin + length
                }
            };
            self.add(rng, fault, during, 100..=1200);
        }
    }
}

fn millis(rng: &mut StdRng, range: RangeInclusive<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ServerKilled => "server killed",
            Self::MongodKilled => "mongod killed",
            Self::MongodFrozen => "mongod frozen",
            Self::LinkBroken => "link broken",
            Self::StoreRefuses => "store refuses",
            Self::PrimaryLost => "primary lost",
            Self::DiskFull => "disk full",
            Self::SpoolFull => "spool full",
            Self::Embedded => "embedded log",
            Self::PowerCut => "power cut",
            Self::DiskFails => "disk fails",
            Self::TwoAtOnce => "two at once",
        })
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KillServer => "kill server",
            Self::KillStartingServer => "kill server twice",
            Self::StopServer => "stop server",
            Self::CutSessions => "cut sessions",
            Self::KillMongod => "kill mongod",
            Self::FreezeMongod => "freeze mongod",
            Self::CutLink => "cut link",
            Self::StallLink => "stall link",
            Self::HalfOpenLink => "half-open link",
            Self::RefuseInserts(code) => return write!(f, "refuse inserts ({code})"),
            Self::DoubtInserts => "doubt inserts",
            Self::StepDown => "step down",
            Self::KillPrimary => "kill primary",
            Self::FreezePrimary => "freeze primary",
            Self::FillDisk => "fill disk",
            Self::CutPower => "cut power",
            Self::CutPowerAtStart => "cut power twice",
            Self::FailDisk(Failing::Syncs) => "fail syncs",
            Self::FailDisk(Failing::Writes) => "fail writes",
            Self::FailDiskAndCut(Failing::Syncs) => "fail syncs and cut power",
            Self::FailDiskAndCut(Failing::Writes) => "fail writes and cut power",
        })
    }
}

/// `kill server 512+120`: at 512 ms, for 120 ms; `+…120` means from the first refusal on.
impl Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let until = if self.until_refused { "…" } else { "" };
        let (at, lasts) = (self.at.as_millis(), self.lasts.as_millis());
        write!(f, "{} {at}+{until}{lasts}", self.fault)
    }
}

#[test]
fn two_at_once_are_two_faults_of_different_victims() {
    let turns = TURNS.len() as u64;
    let plans = (0..1000 * turns)
        .map(Plan::new)
        .filter(|plan| plan.kind == Kind::TwoAtOnce);
    for plan in plans {
        let faults = plan.faults.iter().filter(|planned| planned.fault != Fault::CutSessions);
        let [one, other] = faults.collect::<Vec<_>>()[..] else {
            panic!("{plan:?}");
        };
        assert!(one.fault != other.fault, "{plan:?}");
        assert!(
            plan.store == StoreKind::ReplicaSet || one.fault.victim() != other.fault.victim(),
            "{plan:?}"
        );
    }
}
