//! What befalls one presenter's link: every 1 to 5 s something else, drawn from the seed.

use std::{cell::Cell, rc::Rc, time::Duration};

use rand::{Rng, rngs::StdRng};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::support::proxy::Proxy;

/// From the begin of one fault to that of the next, in milliseconds.
const BETWEEN: std::ops::RangeInclusive<u64> = 1000..=5000;

/// How many of each there were.
#[derive(Debug, Default)]
pub struct Faults {
    pub cuts: Cell<u64>,
    pub half_opens: Cell<u64>,
    /// Those that ended well; the others ended in a cut.
    pub stalls: Cell<u64>,
    pub stalls_then_cut: Cell<u64>,
    pub delays: Cell<u64>,
}

/// Breaks the link and mends it until `over`; then it is a good one. No fault lasts beyond the begin of the next.
pub async fn torment(link: Rc<Proxy>, mut rng: StdRng, faults: Rc<Faults>, mut over: watch::Receiver<bool>) {
    let count = |counter: &Cell<u64>| counter.set(counter.get() + 1);
    let mut next = Instant::now() + millis(&mut rng, BETWEEN);
    while until(next, &mut over).await {
        let begin = next;
        next += millis(&mut rng, BETWEEN);
        let fault = rng.random_range(0..4);
        let lasts = match fault {
            0 => millis(&mut rng, 0..=1000),
            1 => Duration::ZERO,
            _ => millis(&mut rng, 100..=4000),
        };
        let end = (begin + lasts).min(next);
        match fault {
            0 => {
                count(&faults.cuts);
                link.cut();
            }
            1 => {
                count(&faults.half_opens);
                link.half_open();
            }
            2 => link.stall(),
            _ => {
                count(&faults.delays);
                link.delay(millis(&mut rng, 5..=250));
            }
        }
        let cut_at_last = fault == 2 && rng.random_ratio(1, 2);
        let go_on = until(end, &mut over).await;
        if cut_at_last {
            link.reset_connections();
        }
        if fault == 2 {
            count(if cut_at_last {
                &faults.stalls_then_cut
            } else {
                &faults.stalls
            });
        }
        link.restore();
        if !go_on {
            break;
        }
    }
}

/// Waits for that time; `false` when it is all over before.
async fn until(time: Instant, over: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        // The schedule comes from the seed: the times are what is tested.
        () = sleep_until(time) => true,
        _ = over.wait_for(|over| *over) => false,
    }
}

fn millis(rng: &mut StdRng, range: std::ops::RangeInclusive<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}
