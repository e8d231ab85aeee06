//! How far a long command is, on standard error.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::eprint;

/// How far it is: a bar on a terminal, elsewhere a line a second.
pub(super) struct Progress {
    bar: ProgressBar,
    lines: bool,
    what: &'static str,
    total: Option<u64>,
    told: std::cell::Cell<Instant>,
}

impl Progress {
    /// Of so many, where that is known.
    pub(super) fn new(what: &'static str, total: impl Into<Option<u64>>) -> Self {
        let lines = !std::io::stderr().is_terminal();
        let total = total.into();
        // A bar draws nothing where standard error is no terminal, and counts all the same.
        let (bar, template) = match total {
            Some(total) => (
                ProgressBar::new(total),
                "{msg} [{wide_bar}] {human_pos} of {human_len}, {eta} left",
            ),
            None => (ProgressBar::new_spinner(), "{msg} {human_pos}"),
        };
        let bar = bar.with_message(what);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bar,
            lines,
            what,
            total,
            told: std::cell::Cell::new(Instant::now()),
        }
    }

    pub(super) fn advance(&self, count: u64) {
        if count == 0 {
            return;
        }
        self.bar.inc(count);
        let done = self.bar.position();
        let all = self.total.is_some_and(|total| done >= total);
        if self.lines && (all || self.told.get().elapsed() >= Duration::from_secs(1)) {
            self.told.set(Instant::now());
            let of = self.total.map(|total| format!("of {total} ")).unwrap_or_default();
            eprint(&format!("chatting-server: {done} {of}{}", self.what));
        }
    }

    /// A line above the bar.
    pub(super) fn say(&self, line: &str) {
        self.bar.suspend(|| eprint(&format!("chatting-server: {line}")));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.abandon();
    }
}
