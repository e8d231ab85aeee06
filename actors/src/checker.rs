//! `RoomChecker`: is this presenter live?
//!
//! It keeps what the room server said for a while (bounded, least recently used goes; live and not-live apart, so that a flood of
//! messages to rooms that nobody presents in pushes no live room's verdict out), asks once for
//! however many want to know of one presenter, has a limit on lookups at once and a time limit on each, and knows what to
//! do without an answer (`room.on_error`, rule 9). The verdict goes to the registry as a message.
//!
//! A room server that failed `room.breaker_failures` times in a row is left alone for `room.breaker_open_ms` (a circuit breaker,
//! `checker/breaker.rs`): what is asked meanwhile is answered as without an answer, at once. A question that it refuses (a 404 for a
//! presenter that it does not know) is no failure of it: whoever sends to such rooms must not have it left alone for all the others.
//! That is remembered as long as a verdict of not live. Where it refuses everything that somebody asks, `/readyz` says so
//! (`checker/refusals.rs`).
//!
//! When full: a question that finds `room.max_lookups` under way waits for a place. One that found none in the time that an answer
//! may take is answered as without one, and the room server is not asked. What a sender or a reader waits for goes first, and what a
//! session waits for before it can begin is before the rest (`checker/questions.rs`). Behind `actors.checker.mailbox` questions waiting or
//! under way the registry refuses with `overloaded`. Not more than half of them are for sessions and sweeps, for which no sender waits: what
//! finds no permit in that half is left out, which it counts, and asked by a later sweep.

mod breaker;
mod cache;
mod questions;
mod refusals;

use std::{
    collections::HashSet,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::prelude::*;
use futures_util::FutureExt;
use prometheus_client::metrics::counter::Counter;
use tokio::time::timeout;

use self::{
    breaker::Breaker,
    cache::{Cache, Known, Silent},
    questions::Questions,
    refusals::Refusals,
};
use crate::{
    gate::{Gate, Permit},
    mailbox::{Mailbox, Turn},
    metrics::Metrics,
    queues::Queue,
    registry::{RegistryHandle, Word},
    seams::{Liveness, RoomApi, RoomApiError},
    seldom::Seldom,
    supervise::Present,
    types::PresenterIdx,
};

/// What operators set for the checker. `settings.toml` documents each.
#[derive(Clone, Debug)]
pub struct CheckerConfig {
    /// `room.timeout_ms`
    pub timeout: Duration,
    /// `room.live_ttl_ms`
    pub live_ttl: Duration,
    /// `room.not_live_ttl_ms`
    pub not_live_ttl: Duration,
    /// `room.cache_max`
    pub cache_max: usize,
    /// `room.not_live_cache_max`
    pub not_live_cache_max: usize,
    /// `room.max_lookups`
    pub max_lookups: usize,
    /// `room.max_reconnects`
    pub max_reconnects: usize,
    /// `room.stale_seconds` when `room.on_error` is `last_known`, else `None`
    pub stale: Option<Duration>,
    /// `room.breaker_failures`; 0 never opens it.
    pub breaker_failures: u32,
    /// `room.breaker_open_ms`
    pub breaker_open: Duration,
}

/// The queue of requests to make a presenter reconnect, in the metrics.
const RECONNECTS: &str = "reconnects";

enum Ask {
    Check(Check),
    Hurry(PresenterIdx, Why),
    Reconnect(PresenterIdx, Permit),
    Panic,
}

/// Why the checker is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// A sender or a reader waits for the verdict.
    Awaited,
    /// The last verdict still holds, and the room is sent to: senders would wait for the next one.
    AwaitedRefresh,
    /// A session waits for it before it can begin.
    Opening,
    /// A session is there.
    Wanted,
    /// The last verdict still holds, and the room server is to be asked all the same.
    Refresh,
    /// A broadcast is open, or something is held, and nobody is there: a refusal refuses nobody anything.
    Idle,
    /// The same, and the last verdict still holds.
    IdleRefresh,
}

impl Why {
    /// Whether the room server is asked whatever it said before.
    fn is_refresh(self) -> bool {
        matches!(self, Self::AwaitedRefresh | Self::Refresh | Self::IdleRefresh)
    }

    /// Whether there is somebody whom a refusal refuses something.
    fn is_for_somebody(self) -> bool {
        !matches!(self, Self::Idle | Self::IdleRefresh)
    }

    /// Whose turn it is: the least is the first.
    pub(crate) fn rank(self) -> usize {
        match self {
            Self::Awaited | Self::AwaitedRefresh => 0,
            Self::Opening => 1,
            Self::Wanted | Self::Refresh | Self::Idle | Self::IdleRefresh => 2,
        }
    }

    /// Whether a sender waits, or would.
    fn is_for_sender(self) -> bool {
        self.rank() == 0
    }
}

struct Check {
    presenter: PresenterIdx,
    why: Why,
    permit: Permit,
    /// Its part of the half that is for questions for which no sender waits.
    half: Option<Permit>,
}

impl Check {
    /// It is asked for another reason from now on.
    fn hurry(&mut self, why: Why) {
        self.why = why;
        if why.is_for_sender() {
            self.half = None;
        }
    }
}

/// The one way to the checker.
#[derive(Clone)]
pub struct CheckerHandle {
    mailbox: Mailbox<Ask>,
    gate: Arc<Gate>,
    /// Of these permits, those of questions for which no sender waits.
    half: Arc<Gate>,
}

impl CheckerHandle {
    /// A handle for a checker that is about to start; `mailbox` is the number of permits.
    pub fn new(mailbox: usize) -> Self {
        Self {
            mailbox: Mailbox::default(),
            gate: Gate::new("checker", mailbox),
            half: Gate::new("checker_others", mailbox.div_ceil(2)),
        }
    }

    /// The permits of `actors.checker.mailbox`.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The half of them that is for questions for which no sender waits. It refuses nobody anything: what it counts was left out, and is
    /// asked by a later sweep.
    pub fn half(&self) -> &Arc<Gate> {
        &self.half
    }

    /// Asks; the registry gets the verdict as a message. Returns `why`, or `None` where there is no permit, and no verdict will come. That
    /// alone refuses nobody anything: who refuses somebody for it says so ([`Gate::count_refused`]).
    pub(crate) fn check(&self, presenter: PresenterIdx, why: Why) -> Option<Why> {
        let check = self.question(presenter, why)?;
        self.mailbox.push(Ask::Check(check));
        Some(why)
    }

    /// A question with its permits.
    fn question(&self, presenter: PresenterIdx, why: Why) -> Option<Check> {
        let half = match why.is_for_sender() {
            true => None,
            false => Some(self.half.try_acquire(1)?),
        };
        Some(Check {
            presenter,
            why,
            permit: self.gate.acquire_if_free(1)?,
            half,
        })
    }

    /// This presenter, who is being asked about, is asked about from now on for a reason that is before that one ([`Why::rank`]). To be
    /// called once a reason and question.
    pub(crate) fn hurry(&self, presenter: PresenterIdx, why: Why) {
        self.mailbox.push(Ask::Hurry(presenter, why));
    }

    /// A planned failure point, for tests of supervision: the checker panics when it reads this.
    pub fn panic_now(&self) {
        self.mailbox.push(Ask::Panic);
    }

    /// Has the room server asked to make the presenter connect again (rule 12). Nobody waits for what comes of it, so
    /// without a permit it is left out, which refuses nobody anything.
    pub(crate) fn request_reconnect(&self, presenter: PresenterIdx) {
        if let Some(permit) = self.gate.acquire_if_free(1) {
            self.mailbox.push(Ask::Reconnect(presenter, permit));
        }
    }
}

/// The actor. Asked through [`CheckerHandle`], it answers the registry: for each question a verdict, or that there is
/// none, within `room.timeout_ms` of its place among `room.max_lookups`.
pub struct RoomChecker {
    config: CheckerConfig,
    handle: CheckerHandle,
    registry: RegistryHandle,
    api: Rc<dyn RoomApi>,
    metrics: Metrics,
    cache: Cache,
    under_way: HashSet<PresenterIdx>,
    /// What waits for a place.
    questions: Questions,
    /// `room.max_lookups`, and what had to wait for a place.
    lookups: (Queue, Counter),
    breaker: Breaker,
    /// That it would not say, as `/readyz` counts it,
    refusals: Refusals,
    /// and for the log.
    refused: Seldom,
    /// That it did not answer, for the log.
    failures: Seldom,
    /// Requests to make a presenter reconnect that are under way.
    reconnects: usize,
    /// `room.max_reconnects`
    asking: Queue,
    _present: Present,
}

impl RoomChecker {
    /// A checker over a room server.
    pub fn new(
        config: CheckerConfig,
        handle: CheckerHandle,
        registry: RegistryHandle,
        api: Rc<dyn RoomApi>,
        metrics: Metrics,
        present: Present,
    ) -> Self {
        let lookups = metrics.queues.waiting("lookups", config.max_lookups);
        let asking = metrics.queues.refusing(RECONNECTS, config.max_reconnects);
        let refusals = Refusals::new(metrics.room_refusals.clone());
        let cache = Cache::new(config.cache_max, config.not_live_cache_max, &metrics);
        let breaker = Breaker::new(config.breaker_failures, config.breaker_open, &metrics);
        Self {
            config,
            handle,
            registry,
            api,
            metrics,
            cache,
            under_way: HashSet::new(),
            questions: Questions::default(),
            lookups,
            breaker,
            refusals,
            refused: Seldom::new(),
            failures: Seldom::new(),
            reconnects: 0,
            asking,
            _present: present,
        }
    }

    fn ttl(&self, liveness: Liveness) -> Duration {
        if liveness.live {
            self.config.live_ttl
        } else {
            self.config.not_live_ttl
        }
    }

    fn check(&mut self, check: Check, ctx: &mut Context<Self>) {
        let refresh = check.why.is_refresh();
        if !refresh && let Some(known) = self.cache.get(check.presenter) {
            let Known { liveness, at } = known;
            let until = at + self.ttl(liveness);
            if until > Instant::now() {
                self.count("cached");
                return self
                    .registry
                    .word(check.presenter, Word::Verdict { liveness, at, until });
            }
        }
        let silent = self.cache.refused(check.presenter).filter(|_| !refresh);
        if let Some(silent) = silent.filter(|silent| silent.at.elapsed() < self.config.not_live_ttl) {
            let at = silent.at;
            if check.why.is_for_somebody() {
                // The first for whom there is an answer from before is the first who is refused.
                match std::mem::replace(&mut silent.counted, true) {
                    true => self.refusals.refuses_again(Instant::now()),
                    false => self.refusals.refuses(Instant::now()),
                }
            }
            self.count("cached");
            return self.refuse(check.presenter, at);
        }
        if self.under_way.contains(&check.presenter) {
            // The answer under way goes to the registry, which has one room for this presenter.
            return;
        }
        let now = Instant::now();
        if self.breaker.is_open(now) {
            self.count("breaker_open");
            return self.no_answer(check.presenter);
        }
        if self.under_way.len() >= self.config.max_lookups {
            self.lookups.1.inc();
            return self.questions.put(check, now);
        }
        self.breaker.asks();
        self.look_up(check, ctx);
    }

    fn look_up(&mut self, check: Check, ctx: &mut Context<Self>) {
        let Check {
            presenter,
            why,
            permit,
            half,
        } = check;
        let began = Instant::now();
        let mut asked = self.api.check(presenter);
        // What is answered at once, as by embedded rooms, takes no place, so that nothing waits for it.
        if let Some(answer) = asked.as_mut().now_or_never() {
            self.metrics.room_check_seconds.observe(began.elapsed().as_secs_f64());
            self.answered(presenter, why, answer);
            // Last: who sees that nothing is asked finds the answer told.
            drop((permit, half));
            return;
        }
        self.under_way.insert(presenter);
        self.lookups.0.holds(self.under_way.len());
        let asked = timeout(self.config.timeout, asked);
        ctx.spawn(asked.into_actor(self).map(move |answer, this, ctx| {
            this.under_way.remove(&presenter);
            this.lookups.0.holds(this.under_way.len());
            this.metrics.room_check_seconds.observe(began.elapsed().as_secs_f64());
            this.answered(presenter, why, answer.unwrap_or(Err(RoomApiError::Timeout)));
            drop((permit, half));
            this.next(ctx);
        }));
    }

    fn answered(&mut self, presenter: PresenterIdx, why: Why, answer: Result<Liveness, RoomApiError>) {
        let (refused, at) = (matches!(answer, Err(RoomApiError::Refused(_))), Instant::now());
        self.breaker.heard(refused || answer.is_ok(), at);
        match answer {
            Ok(liveness) => {
                self.count(if liveness.live { "live" } else { "not_live" });
                self.refusals.says();
                self.cache.put(presenter, Known { liveness, at });
                let until = at + self.ttl(liveness);
                self.registry.word(presenter, Word::Verdict { liveness, at, until });
            }
            Err(RoomApiError::Refused(reason)) => {
                self.count("refused");
                let counted = why.is_for_somebody();
                if counted {
                    self.refusals.refuses(at);
                }
                // Where it says of nobody, as by a wrong room.base_url, this comes once a room and refresh.
                if let Some(more) = self.refused.due(at) {
                    log::warn!("room server: it does not say whether presenter {presenter} is live: {reason}{more}");
                }
                self.cache.put_refused(presenter, Silent { at, counted });
                self.refuse(presenter, at);
            }
            Err(error) => {
                self.count(if error == RoomApiError::Timeout {
                    "timeout"
                } else {
                    "error"
                });
                // An answer in between keeps the breaker closed, however many fail.
                if let Some(more) = self.failures.due(at) {
                    log::warn!("room server: no answer for presenter {presenter}: {error}{more}");
                }
                self.no_answer(presenter);
            }
        }
    }

    /// The room server did not answer, or is left alone.
    fn no_answer(&mut self, presenter: PresenterIdx) {
        let last = self.last_known(presenter);
        self.registry.word(presenter, last.unwrap_or(Word::Nothing));
    }

    /// The room server is there and, `at` that time, did not say.
    fn refuse(&mut self, presenter: PresenterIdx, at: Instant) {
        let last = self.last_known(presenter);
        self.registry.word(presenter, last.unwrap_or(Word::Refused { at }));
    }

    /// Rule 9: `last_known` goes on with the last real answer, for at most `room.stale_seconds` after its time.
    fn last_known(&mut self, presenter: PresenterIdx) -> Option<Word> {
        let stale = self.config.stale?;
        let Known { liveness, at } = self.cache.get(presenter)?;
        let ttl = self.ttl(liveness);
        let left = (ttl + stale).checked_sub(at.elapsed()).filter(|left| !left.is_zero())?;
        self.count("stale");
        let until = Instant::now() + left.min(ttl);
        Some(Word::Verdict { liveness, at, until })
    }

    /// Gives up the questions that have waited for too long for a place, and begins lookups of others. A lookup ends within
    /// `room.timeout_ms`, so whoever finds all places taken is answered within twice that, however many wait.
    fn next(&mut self, ctx: &mut Context<Self>) {
        let (now, patience) = (Instant::now(), self.config.timeout);
        while let Some(Check { presenter, .. }) = self.questions.late(patience, now) {
            self.count("no_place");
            if let Some(more) = self.failures.due(now) {
                log::warn!("room server: too slow to be asked about presenter {presenter} in time{more}");
            }
            let last = self.last_known(presenter);
            self.registry.word(presenter, last.unwrap_or(Word::NotAsked));
        }
        while self.under_way.len() < self.config.max_lookups
            && let Some(check) = self.questions.take()
        {
            self.check(check, ctx);
        }
    }

    fn reconnect(&mut self, presenter: PresenterIdx, permit: Permit, ctx: &mut Context<Self>) {
        if self.reconnects >= self.config.max_reconnects {
            // A room server that hangs on these must not cost the checks their connections. The room asks again.
            return self.metrics.queues.refused(RECONNECTS);
        }
        self.reconnects += 1;
        self.asking.holds(self.reconnects);
        let asked = timeout(self.config.timeout, self.api.request_reconnect(presenter));
        ctx.spawn(asked.into_actor(self).map(move |answer, this, _| {
            drop(permit);
            this.reconnects -= 1;
            this.asking.holds(this.reconnects);
            let outcome = match answer.unwrap_or(Err(RoomApiError::Timeout)) {
                Ok(()) => "ok",
                Err(error) => {
                    log::debug!("room server: presenter {presenter} was not asked to reconnect: {error}");
                    "error"
                }
            };
            this.metrics.reconnect_requests.inc(outcome);
        }));
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.room_checks.inc(outcome);
    }
}

impl Actor for RoomChecker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(self.handle.mailbox.batches());
        ctx.run_interval(Refusals::LOOK, |this, _| {
            let now = Instant::now();
            this.refusals.look(now);
            this.breaker.look(now);
        });
        // Whatever the one before was asked and did not answer will be asked again.
        self.registry.checker_started();
    }
}

impl StreamHandler<Vec<Ask>> for RoomChecker {
    fn handle(&mut self, batch: Vec<Ask>, ctx: &mut Self::Context) {
        for ask in Turn::new(&self.handle.mailbox, batch) {
            match ask {
                Ask::Check(check) => self.check(check, ctx),
                Ask::Hurry(presenter, why) => self.questions.hurry(presenter, why, Instant::now()),
                Ask::Reconnect(presenter, permit) => self.reconnect(presenter, permit, ctx),
                #[expect(clippy::panic, reason = "the planned failure point")]
                Ask::Panic => panic!("planned"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_to_reconnect_that_finds_no_permit_is_no_refusal() {
        let checker = CheckerHandle::new(1);
        let presenter = PresenterIdx::new(1).unwrap();
        assert!(checker.check(presenter, Why::Wanted).is_some());
        checker.request_reconnect(presenter);
        assert!(checker.check(presenter, Why::Awaited).is_none(), "and there was none");
        assert_eq!(checker.gate().refused(), 0);
    }

    #[test]
    fn half_of_the_permits_are_left_to_questions_that_senders_wait_for_and_what_the_others_lack_is_counted() {
        for (permits, half) in [(1, 1), (2, 1), (5, 3)] {
            let checker = CheckerHandle::new(permits);
            let ask = |why| checker.check(PresenterIdx::new(1).unwrap(), why).is_some();
            let others = [Why::Opening, Why::Wanted, Why::Refresh, Why::Idle, Why::IdleRefresh];
            let asked = others.into_iter().cycle().take(20).filter(|why| ask(*why)).count();
            assert_eq!(asked, half, "{permits}");
            let for_senders = [Why::Awaited, Why::AwaitedRefresh].into_iter().cycle().take(20);
            let awaited = for_senders.filter(|why| ask(*why)).count();
            assert_eq!(awaited, permits - half, "{permits}");
            let (gate, others) = (checker.gate(), checker.half());
            assert_eq!((gate.depth(), gate.refused()), (permits, 0));
            assert_eq!((others.depth(), others.refused()), (half, 20 - half as u64));
        }
    }
}
