//! How long, how much, and from which seed.

use std::{
    fmt::{self, Display},
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};

/// How the server ends in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM, and it ends in order.
    Stopped,
    /// SIGKILL.
    Killed,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub ending: Ending,
    /// Rooms 1 to this.
    pub rooms: i64,
    /// Messages a second over all rooms.
    pub rate: u64,
    /// How long messages are begun.
    pub load: Duration,
    /// `room.ring_events`: small makes senders meet the limit of what is held, and sessions resume from the log.
    pub ring: u64,
    pub seed: u64,
}

impl Plan {
    /// The short form, but for what the environment says.
    pub fn from_environment(ending: Ending) -> Self {
        let seed = number("CHAOS_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
        Self {
            ending,
            rooms: i64::try_from(number("CHAOS_ROOMS").unwrap_or(20)).unwrap(),
            rate: number("CHAOS_RATE").unwrap_or(400),
            load: Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(8)),
            ring: number("CHAOS_RING").unwrap_or([32, 256, 1024][usize::try_from(seed % 3).unwrap()]),
            seed,
        }
    }

    /// A source of chance for one part of the run: what one part draws changes nothing for the others.
    pub fn rng(&self, part: &str, number: u64) -> StdRng {
        let part = part.bytes().fold(0_u64, |sum, byte| sum * 31 + u64::from(byte));
        StdRng::seed_from_u64(self.seed ^ part.rotate_left(32) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Connections that send.
    pub fn senders(&self) -> u64 {
        (self.rate / 25).clamp(16, 256)
    }
}

/// What repeats it.
impl Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let test = match self.ending {
            Ending::Stopped => "across_an_orderly_restart",
            Ending::Killed => "across_a_kill",
        };
        write!(
            f,
            "CHAOS_SEED={} CHAOS_ROOMS={} CHAOS_RATE={} CHAOS_SECONDS={} CHAOS_RING={} cargo test --test chaos {test}",
            self.seed,
            self.rooms,
            self.rate,
            self.load.as_secs(),
            self.ring
        )
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}
