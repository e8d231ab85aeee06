//! What a load run found, as a table and as JSON.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{Counts, Plan, Shared};

/// Latencies in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Half were at most so long.
    pub p50_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// 999 of 1000.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            max_us: histogram.max(),
        }
    }
}

/// What a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Rooms and senders of the plan.
    pub rooms: u64,
    /// See `rooms`.
    pub senders: u64,
    /// The rate that was asked for; `None` for a closed loop.
    pub rate: Option<u64>,
    /// How long was sent.
    pub seconds: f64,
    /// Messages sent.
    pub sent: u64,
    /// Answered 201.
    pub accepted: u64,
    /// Answered otherwise.
    pub refused: u64,
    /// How often each status was answered.
    pub statuses: BTreeMap<u16, u64>,
    /// How often each status and code was answered to what was refused.
    pub reasons: BTreeMap<String, u64>,
    /// Not answered.
    pub failed: u64,
    /// Due at the rate that was asked for, and not sent: every connection waited for an answer. 0 where it was
    /// interrupted.
    pub unsent: u64,
    /// Seen by presenters.
    pub delivered: u64,
    /// Seen by presenters and not of this run: what an earlier one left behind, or what somebody else sends to these rooms.
    pub of_others: u64,
    /// Seen by presenters although they were not accepted: the answer was lost, or was another one.
    pub delivered_unaccepted: u64,
    /// Of those, answered with a refusal, which promises that nobody sees them.
    pub delivered_refused: u64,
    /// Seen so late, behind so many of the same connection, that it is not known any more whether they were accepted or
    /// seen before: each may be one of those that are called lost.
    pub unfollowed: u64,
    /// Accepted and not seen.
    pub lost: u64,
    /// Of those, where the presenter's session had ended, so that they are not known to be lost.
    pub missed: u64,
    /// Seen again.
    pub doubled: u64,
    /// Seen after one that the same connection sent later, unless its answer left open what became of it, or, in v1, with
    /// a seq that is not above all before it.
    pub out_of_order: u64,
    /// Seen by the presenter of another room.
    pub misrouted: u64,
    /// How often presenters' sessions ended while messages were sent and waited for, by close code; `cut`: the
    /// connection ended without.
    pub presenters_ended: BTreeMap<String, u64>,
    /// Accepted a second.
    pub accepted_per_second: f64,
    /// From due to answered.
    pub sender: Latency,
    /// From due to the presenter's socket.
    pub delivery: Latency,
    /// This tool's own CPU while it sent and received, in microseconds a message.
    pub tool_cpu_us: f64,
    /// How much of a processor this tool used while it sent; it has one thread, so the server may hold more than was
    /// measured where this is near 1. It is counted in steps of 10 ms.
    pub tool_cpu_share: f64,
    /// An interrupt ended the sending.
    pub interrupted: bool,
    /// Why senders ended before the time was over, or that the rate was not kept.
    pub trouble: Option<String>,
}

/// From more than one refusal in so many messages on, a run without a rate tells more of limits than of the server.
const FEW_REFUSED: u64 = 100;

/// From so much of a processor on, what was measured may be this tool.
const BUSY: f64 = 0.9;

impl Report {
    pub(super) fn new(
        plan: &Plan,
        counts: &Counts,
        (sending, busy): (Duration, f64),
        interrupted: bool,
        trouble: Option<String>,
    ) -> Self {
        let to_the_end = plan.rate.is_some() && plan.messages.is_none() && !interrupted && trouble.is_none();
        // At a rate the last message is due a moment before the time is over.
        let sending = if to_the_end {
            sending.max(plan.duration)
        } else {
            sending
        };
        let seconds = sending.as_secs_f64();
        Self {
            rooms: plan.rooms,
            senders: plan.senders,
            rate: plan.rate,
            seconds,
            sent: counts.sent,
            accepted: counts.accepted,
            refused: counts.refused,
            statuses: counts.statuses.clone(),
            reasons: counts.reasons.clone(),
            failed: counts.failed,
            // Who interrupts wants what was due no more.
            unsent: if interrupted {
                0
            } else {
                counts.unsent(plan, sending.min(plan.duration))
            },
            delivered: counts.delivered,
            of_others: counts.of_others,
            delivered_unaccepted: counts.came_refused + counts.came_unknown,
            delivered_refused: counts.came_refused,
            unfollowed: counts.forgotten,
            lost: counts.accepted.saturating_sub(counts.came),
            missed: counts.missed(),
            doubled: counts.doubled,
            out_of_order: counts.out_of_order,
            misrouted: counts.misrouted,
            presenters_ended: counts.presenters_ended.clone(),
            accepted_per_second: counts.accepted as f64 / seconds,
            sender: Latency::of(&counts.sender_us),
            delivery: Latency::of(&counts.delivery_us),
            tool_cpu_us: (own_cpu_us() - counts.cpu_before_us) / counts.sent.max(1) as f64,
            tool_cpu_share: busy,
            interrupted,
            trouble,
        }
    }

    /// What is to be said where this tool was as slow as it can be; not of a moment, which is too short to be counted.
    fn was_busy(&self) -> Option<String> {
        (self.tool_cpu_share >= BUSY && self.seconds >= 1.0).then(|| {
            format!(
                "this tool's thread was busy ({:.0} % of a processor): the server may hold more",
                self.tool_cpu_share * 100.0
            )
        })
    }

    /// What is wrong with what was found, a line each; `None` when all is as it should be. `absent`: nobody presents,
    /// so every message is to be refused.
    pub fn fault(&self, absent: bool) -> Option<String> {
        let mut faults = Vec::new();
        faults.extend(self.ended());
        faults.extend(self.trouble.clone());
        if self.unsent > 0 {
            faults.extend(self.was_busy());
        }
        if self.rate.is_some() && !absent && self.refused > 0 {
            faults.push(format!(
                "the rate was not held: {} of {} messages were refused ({})",
                self.refused,
                self.sent,
                self.reasons()
            ));
        }
        let wrong = [
            ("lost", if absent { 0 } else { self.lost - self.missed }),
            ("doubled", self.doubled),
            ("out of order", self.out_of_order),
            ("sent to another room's presenter", self.misrouted),
            ("delivered although they were refused", self.delivered_refused),
        ];
        let wrong: Vec<_> = wrong
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(what, count)| format!("{what} ({count})"))
            .collect();
        if !wrong.is_empty() {
            faults.push(format!("messages were {}", wrong.join(", ")));
        }
        if self.failed > 0 && !self.interrupted && self.trouble.is_none() {
            faults.push(format!(
                "{} messages had no answer: their connections broke",
                self.failed
            ));
        }
        let unknown: u64 = [401, 403].iter().filter_map(|status| self.statuses.get(status)).sum();
        if unknown > 0 {
            faults.push(format!(
                "{unknown} messages were refused for their sender (401 or 403): is this the server's key?"
            ));
        }
        if absent && self.accepted > 0 {
            faults.push(format!("{} messages were accepted, and nobody presents", self.accepted));
        }
        if !absent && self.accepted == 0 && self.sent > 0 {
            faults.push("no message was accepted".into());
        }
        (!faults.is_empty()).then(|| faults.join("\n"))
    }

    /// Whose sessions ended, and why. What comes of that is no fault of the server's, or not the one that it looks
    /// like.
    fn ended(&self) -> Option<String> {
        let count: u64 = self.presenters_ended.values().sum();
        let how = self.presenters_ended.iter();
        let how: Vec<_> = how
            .map(|(code, count)| format!("{count} × {code}, {}", why(code)))
            .collect();
        (count > 0).then(|| {
            format!(
                "the sessions of {count} presenters ended ({}); what they did not get ({}) is not known to be lost",
                how.join("; "),
                self.missed
            )
        })
    }

    /// How often each refusal was answered.
    fn reasons(&self) -> String {
        let reasons = self.reasons.iter().map(|(reason, count)| format!("{count} × {reason}"));
        reasons.collect::<Vec<_>>().join(", ")
    }

    /// The report for people.
    pub fn table(&self) -> String {
        let rate = self
            .rate
            .map_or_else(|| "closed loop".to_owned(), |rate| format!("{rate}/s"));
        let line = |name: &str, latency: &Latency| {
            format!(
                "{name:<10} p50 {:>8.2} ms   p99 {:>8.2} ms   p99.9 {:>8.2} ms   max {:>8.2} ms\n",
                latency.p50_us as f64 / 1000.0,
                latency.p99_us as f64 / 1000.0,
                latency.p999_us as f64 / 1000.0,
                latency.max_us as f64 / 1000.0,
            )
        };
        let mut notes = String::new();
        if !self.reasons.is_empty() {
            notes += &format!("refused: {}\n", self.reasons());
        }
        // Where none was accepted, that is a fault, or what was wanted.
        if self.rate.is_none() && self.accepted > 0 && self.refused > self.sent / FEW_REFUSED {
            notes +=
                "some were refused: what was accepted a second may be what limits let through (limits.*, --users)\n";
        }
        if !self.presenters_ended.is_empty() {
            let how = self
                .presenters_ended
                .iter()
                .map(|(code, count)| format!("{count} × {code}"));
            notes += &format!(
                "presenters' sessions that ended: {}; {} of the lost are theirs\n",
                how.collect::<Vec<_>>().join(", "),
                self.missed
            );
        }
        if self.misrouted > 0 {
            notes += &format!("{} came to the presenter of another room\n", self.misrouted);
        }
        if self.of_others > 0 {
            notes += &format!("{} more came that this run did not send\n", self.of_others);
        }
        if self.delivered_unaccepted > 0 {
            notes += &format!(
                "{} came that were not accepted, {} of them refused\n",
                self.delivered_unaccepted, self.delivered_refused
            );
        }
        if self.unfollowed > 0 {
            notes += &format!(
                "{} came so late that it is not known what they are; each may be one of those that are called lost\n",
                self.unfollowed
            );
        }
        if self.unsent > 0 {
            notes += &format!("{} more were due and not sent\n", self.unsent);
        }
        if let Some(busy) = self.was_busy() {
            notes += &format!("{busy}\n");
        }
        if self.interrupted {
            notes += "interrupted\n";
        }
        format!(
            "{} rooms, {} senders, {rate}, {:.1} s\n\
             sent {}  accepted {}  refused {}  failed {}  delivered {}  lost {}  doubled {}  out of order {}\n\
             {notes}{:.0} accepted/s; this tool used {:.1} µs of CPU a message, {:.0} % of a processor\n{}{}",
            self.rooms,
            self.senders,
            self.seconds,
            self.sent,
            self.accepted,
            self.refused,
            self.failed,
            self.delivered,
            self.lost,
            self.doubled,
            self.out_of_order,
            self.accepted_per_second,
            self.tool_cpu_us,
            self.tool_cpu_share * 100.0,
            line("sender", &self.sender),
            line("delivery", &self.delivery),
        )
    }
}

/// Why a presenter's session ends with this close code (docs/PROTOCOL.md, docs/LEGACY.md).
fn why(code: &str) -> &'static str {
    match code {
        "1000" => "the broadcast ended, or, in the old protocol, another presenter has the room",
        "1001" => "the server stopped, or began the session anew",
        "1013" => "the server had no place for it, or could not go on",
        "4002" => "its token expired",
        "4003" => "another presenter has the room",
        "4005" => "it did not take what was sent, as where this tool has too little of the processor",
        "4007" => "it did not answer pings, as where this tool has too little of the processor",
        "cut" => "the connection ended without a close",
        _ => "a close code that this tool gives no cause for",
    }
}

/// User and system time of this process (Linux: /proc/self/stat, in ticks of 10 ms).
pub(super) fn own_cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    ticks as f64 * 10_000.0
}

/// A line a second until it is aborted.
pub(super) async fn progress(counts: Shared) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut before = 0;
    loop {
        ticks.tick().await;
        let line = {
            let counts = counts.borrow();
            let new = counts.accepted - before;
            before = counts.accepted;
            format!(
                "{:>5.0} s  {new:>7}/s accepted  {:>9} in all  {:>6} refused  {:>6} on their way",
                counts.began.elapsed().as_secs_f64(),
                counts.accepted,
                counts.refused,
                counts.accepted.saturating_sub(counts.delivered),
            )
        };
        crate::cli::eprint(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a run at a rate in which all was well.
    fn report() -> Report {
        let latency = || Latency {
            p50_us: 0,
            p99_us: 0,
            p999_us: 0,
            max_us: 0,
        };
        Report {
            rooms: 1,
            senders: 1,
            rate: Some(10),
            seconds: 1.0,
            sent: 10,
            accepted: 10,
            refused: 0,
            statuses: BTreeMap::new(),
            reasons: BTreeMap::new(),
            failed: 0,
            unsent: 0,
            delivered: 10,
            of_others: 0,
            delivered_unaccepted: 0,
            delivered_refused: 0,
            unfollowed: 0,
            lost: 0,
            missed: 0,
            doubled: 0,
            out_of_order: 0,
            misrouted: 0,
            presenters_ended: BTreeMap::new(),
            accepted_per_second: 10.0,
            sender: latency(),
            delivery: latency(),
            tool_cpu_us: 10.0,
            tool_cpu_share: 0.1,
            interrupted: false,
            trouble: None,
        }
    }

    #[test]
    fn a_tool_that_was_busy_says_so_and_is_named_where_the_rate_was_not_kept() {
        const BUSY: &str = "this tool's thread was busy (97 % of a processor): the server may hold more";
        let mut report = report();
        assert!(!report.table().contains("busy"));
        report.tool_cpu_share = 0.97;
        assert!(report.table().contains(BUSY));
        assert_eq!(report.fault(false), None, "the server did all that it was asked");
        (report.unsent, report.trouble) = (5, Some("the rate was not kept".into()));
        assert_eq!(report.fault(false).unwrap(), format!("the rate was not kept\n{BUSY}"));
        // Of a moment ticks tell nothing.
        report.seconds = 0.02;
        assert!(!report.table().contains("busy"));
    }

    #[test]
    fn a_rate_of_which_some_were_refused_was_not_held_and_without_one_many_refusals_are_told() {
        const NOTE: &str =
            "some were refused: what was accepted a second may be what limits let through (limits.*, --users)";
        let mut report = report();
        (report.accepted, report.refused, report.delivered) = (7, 3, 7);
        report.reasons = BTreeMap::from([("429 rate_limited".into(), 2), ("503 overloaded".into(), 1)]);
        assert_eq!(
            report.fault(false).unwrap(),
            "the rate was not held: 3 of 10 messages were refused (2 × 429 rate_limited, 1 × 503 overloaded)"
        );
        report.rate = None;
        assert_eq!(report.fault(false), None);
        assert!(report.table().contains(NOTE), "{}", report.table());
        // One in a hundred is not many.
        (report.sent, report.accepted, report.refused) = (300, 297, 3);
        assert!(!report.table().contains(NOTE));
        // Where every message is to be refused, that is no fault at any rate.
        (report.rate, report.accepted, report.refused) = (Some(10), 0, 300);
        assert_eq!(report.fault(true), None);
        assert!(!report.table().contains(NOTE));
    }
}
