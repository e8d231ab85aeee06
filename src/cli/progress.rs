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
    total: u64,
    told: std::cell::Cell<Instant>,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let lines = !std::io::stderr().is_terminal();
        // A bar draws nothing where standard error is no terminal, and counts all the same.
        let bar = ProgressBar::new(total).with_message(what);
        let template = "{msg} [{wide_bar}] {human_pos} of {human_len}, {eta} left";
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
        if self.lines && (done >= self.total || self.told.get().elapsed() >= Duration::from_secs(1)) {
            self.told.set(Instant::now());
            eprint(&format!("chatting-server: {done} of {} {}", self.total, self.what));
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
