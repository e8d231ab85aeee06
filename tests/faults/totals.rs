//! The line of a round, and the table at the end.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

use crate::{
    plan::{Kind, Plan},
    round::Report,
    verdict::Verdict,
};

/// Sums by kind.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    rounds: u64,
    failed: u64,
    skipped: u64,
    accepted: u64,
    refused: u64,
    unknown: u64,
    frames: u64,
    unseen: u64,
    lost: u64,
    twice: u64,
}

#[derive(Debug, Default)]
pub struct Totals {
    rows: BTreeMap<Kind, Row>,
}

impl Totals {
    pub fn add(&mut self, kind: Kind, verdict: &Verdict) {
        let row = self.rows.entry(kind).or_default();
        row.rounds += 1;
        row.failed += u64::from(!verdict.violations.is_empty());
        row.accepted += verdict.accepted;
        row.refused += verdict.refused;
        row.unknown += verdict.unknown;
        row.frames += verdict.frames;
        row.unseen += verdict.unseen;
        row.lost += verdict.lost;
        row.twice += verdict.twice;
    }

    /// A round that came to no verdict.
    pub fn failed(&mut self, kind: Kind) {
        let row = self.rows.entry(kind).or_default();
        row.rounds += 1;
        row.failed += 1;
    }

    /// How many were run.
    pub fn rounds(&self) -> u64 {
        self.rows.values().map(|row| row.rounds).sum()
    }

    pub fn skipped(&mut self, kind: Kind) {
        self.rows.entry(kind).or_default().skipped += 1;
    }
}

impl Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<14} {:>6} {:>6} {:>7} {:>9} {:>8} {:>8} {:>9} {:>7} {:>5} {:>6}",
            "faults",
            "rounds",
            "failed",
            "skipped",
            "accepted",
            "refused",
            "unknown",
            "frames",
            "unseen",
            "lost",
            "twice"
        )?;
        let mut all = Row::default();
        for (kind, row) in &self.rows {
            row.write(f, &kind.to_string())?;
            all.rounds += row.rounds;
            all.failed += row.failed;
            all.skipped += row.skipped;
            all.accepted += row.accepted;
            all.refused += row.refused;
            all.unknown += row.unknown;
            all.frames += row.frames;
            all.unseen += row.unseen;
            all.lost += row.lost;
            all.twice += row.twice;
        }
        all.write(f, "all")
    }
}

impl Row {
    fn write(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        writeln!(
            f,
            "{name:<14} {:>6} {:>6} {:>7} {:>9} {:>8} {:>8} {:>9} {:>7} {:>5} {:>6}",
            self.rounds,
            self.failed,
            self.skipped,
            self.accepted,
            self.refused,
            self.unknown,
            self.frames,
            self.unseen,
            self.lost,
            self.twice
        )
    }
}

/// One round in one line.
pub fn line(plan: &Plan, report: Option<&Report>, seconds: f64) -> String {
    let cold = plan.cold_start.map(|time| format!("cold start 0+{}", time.as_millis()));
    let faults = plan.faults.iter().map(ToString::to_string);
    let faults: Vec<String> = cold.into_iter().chain(faults).collect();
    let promised = if plan.promised { "" } else { " (os: losses are allowed)" };
    let head = format!("seed {} {:<13} [{}]{promised}", plan.seed, plan.kind, faults.join(", "));
    let Some(report) = report else {
        return format!("{head}: came to no verdict, {seconds:.1} s");
    };
    let verdict = &report.verdict;
    let lost = if plan.promised {
        verdict.lost.to_string()
    } else {
        "-".to_owned()
    };
    let refusals: Vec<String> = report
        .refusals
        .iter()
        .map(|(code, count)| format!("{code} {count}"))
        .collect();
    format!(
        "{head}: accepted {}, refused {}, unknown {} ({} logged), frames {}, unseen {}, lost {lost}, doubled {}; tries cut {}, repeats {}, \
         refusals {{{}}}; {seconds:.1} s",
        verdict.accepted,
        verdict.refused,
        verdict.unknown,
        verdict.unknown_logged,
        verdict.frames,
        verdict.unseen,
        verdict.twice,
        report.unanswered,
        report.repeated,
        refusals.join(", ")
    )
}
