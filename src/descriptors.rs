//! How many files and connections this process may have open at once.
//!
//! Systems give 1024 where nobody says otherwise (the soft limit), and let a process have more by itself (up to the hard one): a server
//! takes all that it may have. Where that is less than its settings may need, the start says so: who comes beyond it waits in the kernel,
//! and is refused there when `server.backlog` is full. So it does where its own limit of connections (`server.max_connections` a worker) is
//! less.

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{http::named, listen::connections_max, settings::Settings};

/// Beside presenters: senders, who are many on few connections behind a gateway, the store, the room server, and files.
const OTHERS: u64 = 1_000;

/// Raises the soft limit to the hard one, and warns where that is too low for the settings, or the connections that they allow.
pub(crate) fn raise(settings: &Settings) {
    if let Some(warning) = too_few_connections(connections_max(settings), settings.session.max) {
        log::warn!("{warning}");
    }
    // The system's own call for them may be forbidden, as by a filter, and is not made to fail (`getrlimit` of rustix).
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let Some((soft, hard)) = open_files(&limits) else {
        return;
    };
    let raised = Rlimit {
        current: Some(hard),
        maximum: Some(hard),
    };
    let now = match soft == hard || setrlimit(Resource::Nofile, raised).is_ok() {
        true => hard,
        false => soft,
    };
    if let Some(warning) = too_few(now, settings.session.max, named::works()) {
        log::warn!("{warning}");
    }
}

/// The soft and the hard limit, as proc(5) tells them; of files the kernel allows none without a limit.
fn open_files(limits: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut numbers = line.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// What is wrong with so many, where it is.
fn too_few(now: u64, sessions: usize, by_name: bool) -> Option<String> {
    let each = if by_name { 1 } else { 2 };
    let needed = (sessions as u64).saturating_mul(each).saturating_add(OTHERS);
    (now < needed).then(|| {
        format!(
            "descriptors: this process may have {now} (ulimit -Hn, LimitNOFILE), and session.max = {sessions} may need {needed}: \
             {each} for each presenter, and {OTHERS} for all else; see docs/DEPLOY.md, \"What you need\""
        )
    })
}

/// What is wrong with so many connections, of all workers together, where it is.
fn too_few_connections(most: usize, sessions: usize) -> Option<String> {
    let needed = (sessions as u64).saturating_add(OTHERS);
    ((most as u64) < needed).then(|| {
        format!(
            "connections: all workers together take {most} (server.max_connections each), and session.max = {sessions} may need {needed}: \
             one for each presenter, and {OTHERS} for senders; see docs/TUNING.md, \"Connections\""
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_read_as_the_kernel_tells_them() {
        let told = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             unlimited            unlimited            processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(told), Some((1024, 524_288)));
        assert_eq!(open_files(""), None);
        let own = std::fs::read_to_string("/proc/self/limits").unwrap();
        let (soft, hard) = open_files(&own).unwrap();
        assert!(soft > 0 && soft <= hard, "{own}");
    }

    #[test]
    fn fewer_connections_than_the_sessions_may_need_are_told_with_both_numbers() {
        for (most, needed) in [(50_000, Some("61000")), (60_999, Some("61000")), (61_000, None)] {
            let told = too_few_connections(most, 60_000);
            assert_eq!(told.is_some(), needed.is_some(), "{most}: {told:?}");
            let names = |text: &String| text.contains(&most.to_string()) && text.contains(needed.unwrap_or_default());
            assert!(told.as_ref().is_none_or(names), "{told:?}");
        }
    }

    #[test]
    fn the_defaults_take_as_many_connections_as_their_sessions_may_need_on_one_core() {
        let settings = Settings::default();
        assert_eq!(
            too_few_connections(settings.server.max_connections, settings.session.max),
            None
        );
    }

    #[test]
    fn a_limit_below_what_the_sessions_may_need_is_told_with_both_numbers() {
        for (now, by_name, needed) in [
            (20_999, true, Some("21000")),
            (21_000, true, None),
            (40_999, false, Some("41000")),
            (65_536, false, None),
        ] {
            let told = too_few(now, 20_000, by_name);
            assert_eq!(told.is_some(), needed.is_some(), "{now}: {told:?}");
            let names =
                |text: &String| text.contains(&now.to_string()) && needed.is_some_and(|needed| text.contains(needed));
            assert!(told.as_ref().is_none_or(names), "{told:?}");
        }
    }
}
