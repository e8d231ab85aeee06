//! What keys demand of each other, beyond what each allows by itself.

use std::collections::{BTreeMap, BTreeSet};

use super::error::Problem;
use super::layers::Layer;
use super::value::one_line;
use super::{AuthMode, Secret, Settings, join};
use crate::files::without_line_break;

/// The least length of an HS256 key in bytes (RFC 7518, 3.2).
const HS256_MIN_BYTES: usize = 32;

/// Every value that its key does not allow, and every rule between keys that does not hold.
///
/// `origins`, when known, are named in the messages. Rules about a key in `skip` are left out: what is wrong with
/// that key has been said.
pub fn problems(
    settings: &Settings,
    origins: Option<&BTreeMap<String, Layer>>,
    skip: &BTreeSet<String>,
) -> Vec<Problem> {
    let mut check = Check {
        settings,
        origins,
        skip: skip.clone(),
        problems: Vec::new(),
    };
    check.values();
    check.at_most("actors.registry.room_share", "actors.registry.mailbox");
    check.at_most("actors.writer.room_share", "actors.writer.mailbox");
    check.at_most("room.pending_max", "actors.registry.room_share");
    check.at_most("server.answers_share_bytes", "server.answers_max_bytes");
    check.at_most("actors.supervisor.restart_min_ms", "actors.supervisor.restart_max_ms");
    check.at_most("log.retry_min_ms", "log.retry_max_ms");
    check.at_most("figures.top_default", "figures.top_max");
    check.at_most("history.page_default", "history.page_max");
    check.at_most("broadcast.resume_seconds", "broadcast.unknown_seconds");
    check.less_than(
        &["shutdown.drain_seconds", "shutdown.requests_seconds"],
        "shutdown.deadline_seconds",
    );
    check.keys();
    check.gateway();
    check.problems
}

struct Check<'a> {
    settings: &'a Settings,
    origins: Option<&'a BTreeMap<String, Layer>>,
    skip: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn values(&mut self) {
        for (name, section) in self.settings.sections() {
            for (key, message) in section.refused() {
                let key = join(name, key);
                self.rule(&[&key], false, || format!("{key} = {message}"));
                self.skip.insert(key);
            }
        }
    }

    fn at_most(&mut self, key: &str, limit: &str) {
        let number = |key| self.settings.get(key).and_then(|value| value.as_integer());
        let holds = number(key) <= number(limit);
        let message = format!("{} must be at most {}", self.shown(key), self.shown(limit));
        self.rule(&[key, limit], holds, || message);
    }

    /// Parts of a time that more must fit into.
    fn less_than(&mut self, parts: &[&str], whole: &str) {
        let number = |key: &str| self.settings.get(key).and_then(|value| value.as_integer());
        let sum = parts
            .iter()
            .try_fold(0_i64, |sum, key| Some(sum.saturating_add(number(key)?)));
        let holds = sum < number(whole);
        let shown: Vec<_> = parts.iter().map(|key| self.shown(key)).collect();
        let message = format!("{} must be less than {}", shown.join(" + "), self.shown(whole));
        self.rule(&[parts, &[whole]].concat(), holds, || message);
    }

    /// One key at most, and an HS256 secret that is long enough without a line break at its end. What is in files and in PEM comes out where it is read.
    fn keys(&mut self) {
        let auth = &self.settings.auth;
        let short =
            |secret: &Secret| secret.is_set() && without_line_break(secret.expose().as_bytes()).len() < HS256_MIN_BYTES;
        let too_short = [short(&auth.hs256_secret), short(&auth.previous_hs256_secret)];
        for (prefix, short) in ["auth.", "auth.previous_"].into_iter().zip(too_short) {
            let plain = format!("{prefix}hs256_secret");
            let names = ["hs256_secret", "hs256_secret_base64", "public_key", "key_file"];
            let names = names.map(|name| format!("{prefix}{name}"));
            let is_set =
                |name: &&String| self.settings.get(name).and_then(|v| v.as_str().map(str::is_empty)) == Some(false);
            let set: Vec<_> = names.iter().filter(is_set).map(String::as_str).collect();
            let shown: Vec<_> = set.iter().map(|name| self.shown(name)).collect();
            let message = format!("{} are all set; allowed: one of them", shown.join(" and "));
            self.rule(&set, set.len() < 2, || message);
            let message = format!(
                "{} is too short; allowed: at least {HS256_MIN_BYTES} bytes",
                self.shown(&plain)
            );
            self.rule(&[&plain], !short, || message);
        }
        self.at_most("auth.jwks_min_refresh_seconds", "auth.jwks_refresh_seconds");
        self.stale();
        self.idle();
    }

    /// Published keys are so old when one fetch of them has failed and the next one begins.
    fn stale(&mut self) {
        let auth = &self.settings.auth;
        let names = [
            "auth.jwks_stale_seconds",
            "auth.jwks_refresh_seconds",
            "auth.jwks_min_refresh_seconds",
            "auth.jwks_timeout_ms",
        ];
        let parts = [auth.jwks_min_refresh_seconds, auth.jwks_timeout_ms.div_ceil(1000)];
        let least = parts.into_iter().fold(auth.jwks_refresh_seconds, u64::saturating_add);
        let holds = auth.jwks_stale_seconds == 0 || auth.jwks_stale_seconds >= least;
        let [stale, parts @ ..] = names.map(|name| self.shown(name));
        let message = format!(
            "{stale} must be 0, or at least {least}, for {}: one fetch that fails would take all keys",
            parts.join(" + ")
        );
        self.rule(&names, holds, || message);
    }

    /// What would do nothing: the algorithm of a key that is not there, certificates for an address that shows none, rooms of
    /// moderators where nobody can be one.
    fn idle(&mut self) {
        let auth = &self.settings.auth;
        let previous = [
            auth.previous_hs256_secret.is_set(),
            auth.previous_hs256_secret_base64.is_set(),
            !auth.previous_public_key.is_empty(),
            !auth.previous_key_file.is_empty(),
        ];
        let key = "auth.previous_algorithm";
        let holds = auth.previous_algorithm.is_empty() || previous.contains(&true);
        let message = format!(
            "{} is of no key; allowed: empty where no auth.previous_* key is set",
            self.shown(key)
        );
        self.rule(&[key], holds, || message);
        let (key, role) = ("auth.gateway_rooms_header", "auth.gateway_role_header");
        let holds = auth.gateway_rooms_header.is_empty() || !auth.gateway_role_header.is_empty();
        let message = format!(
            "{} is for moderators, whom {role} names; allowed: empty where that is",
            self.shown(key)
        );
        self.rule(&[key, role], holds, || message);
        let (key, url) = ("auth.jwks_ca_file", "auth.jwks_url");
        let holds = auth.jwks_ca_file.is_empty() || auth.jwks_url.starts_with("https://");
        let message = format!(
            "{} is for an https:// address, and {} is none; allowed: empty",
            self.shown(key),
            self.shown(url)
        );
        self.rule(&[key, url], holds, || message);
    }

    fn gateway(&mut self) {
        let auth = &self.settings.auth;
        let (mode, proxies) = ("auth.mode", "auth.trusted_proxies");
        let holds = auth.mode != AuthMode::Gateway || !auth.trusted_proxies.is_empty();
        let message = format!(
            "{} needs the gateway's addresses in {proxies}: with none trusted, every caller would be refused",
            self.shown(mode)
        );
        self.rule(&[mode, proxies], holds, || message);
        let [key, file] = ["auth.gateway_secret", "auth.gateway_secret_file"];
        let previous = [
            ("auth.previous_gateway_secret", auth.previous_gateway_secret.is_set()),
            (
                "auth.previous_gateway_secret_file",
                !auth.previous_gateway_secret_file.is_empty(),
            ),
        ];
        let now = auth.has_gateway_secret();
        for (previous, set) in previous {
            let message = format!(
                "{} is the one before {key}, and there is none; allowed: empty where that is",
                self.shown(previous)
            );
            self.rule(&[previous, key, file], !set || now, || message);
        }
    }

    /// Notes a problem, under the first of `keys`, unless the rule holds or is about a key to be skipped.
    fn rule(&mut self, keys: &[&str], holds: bool, message: impl FnOnce() -> String) {
        if holds || keys.iter().any(|&key| self.skip.contains(key)) {
            return;
        }
        let key = keys.first().copied().unwrap_or_default().to_owned();
        self.problems.push(Problem {
            key,
            place: String::new(),
            message: message(),
        });
    }

    /// `key = value (layer)`, a secret as `***`.
    fn shown(&self, key: &str) -> String {
        let value = self.settings.get(key).map(|value| one_line(&value)).unwrap_or_default();
        match self.origins.and_then(|origins| origins.get(key)) {
            Some(layer) => format!("{key} = {value} ({layer})"),
            None => format!("{key} = {value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: impl FnOnce(&mut Settings)) -> Vec<String> {
        let mut settings = Settings::default();
        change(&mut settings);
        match settings.validate() {
            Ok(()) => Vec::new(),
            Err(error) => error.problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn the_defaults_are_right() {
        assert_eq!(Settings::default().validate(), Ok(()));
    }

    #[test]
    fn values_set_by_hand_are_checked_too() {
        assert_eq!(
            wrong(|settings| settings.room.refresh_percent = 0),
            ["room.refresh_percent = 0 is not allowed; allowed: a whole number from 1 to 100"]
        );
        assert_eq!(wrong(|settings| settings.session.credit_bytes = 65_535).len(), 1);
        assert_eq!(wrong(|settings| settings.room.base_url = "room:80".to_owned()).len(), 1);
        assert_eq!(
            wrong(|settings| settings.auth.trusted_proxies = vec!["10.0.0.0/40".to_owned()]).len(),
            1
        );
    }

    #[test]
    fn shares_fit_into_their_whole() {
        assert_eq!(
            wrong(|settings| settings.actors.registry.mailbox = 2047),
            ["actors.registry.room_share = 2048 must be at most actors.registry.mailbox = 2047"]
        );
        assert_eq!(wrong(|settings| settings.actors.registry.mailbox = 2048), [""; 0]);
        assert_eq!(wrong(|settings| settings.actors.writer.room_share = 8193).len(), 1);
        assert_eq!(wrong(|settings| settings.room.pending_max = 2049).len(), 1);
        assert_eq!(
            wrong(|settings| settings.server.answers_max_bytes = 4_194_303),
            ["server.answers_share_bytes = 4194304 must be at most server.answers_max_bytes = 4194303"]
        );
        assert_eq!(wrong(|settings| settings.log.retry_min_ms = 10_001).len(), 1);
    }

    #[test]
    fn what_is_the_least_or_the_default_is_no_more_than_the_most() {
        assert_eq!(
            wrong(|settings| settings.actors.supervisor.restart_max_ms = 19),
            ["actors.supervisor.restart_min_ms = 20 must be at most actors.supervisor.restart_max_ms = 19"]
        );
        assert_eq!(
            wrong(|settings| settings.actors.supervisor.restart_max_ms = 20),
            [""; 0]
        );
        assert_eq!(
            wrong(|settings| settings.figures.top_max = 9),
            ["figures.top_default = 10 must be at most figures.top_max = 9"]
        );
        assert_eq!(wrong(|settings| settings.figures.top_max = 10), [""; 0]);
    }

    #[test]
    fn what_a_stop_gives_to_each_of_its_parts_is_less_than_it_may_take_in_all() {
        assert_eq!(
            wrong(|settings| settings.shutdown.drain_seconds = 17),
            [
                "shutdown.drain_seconds = 17 + shutdown.requests_seconds = 3 must be less than shutdown.deadline_seconds = 20"
            ]
        );
        assert_eq!(wrong(|settings| settings.shutdown.drain_seconds = 16), [""; 0]);
        assert_eq!(wrong(|settings| settings.shutdown.deadline_seconds = 8).len(), 1);
        let least = wrong(|settings| {
            settings.shutdown.deadline_seconds = 1;
            settings.shutdown.requests_seconds = 0;
            settings.shutdown.drain_seconds = 0;
        });
        assert_eq!(least, [""; 0]);
    }

    #[test]
    fn a_value_out_of_range_is_told_once() {
        assert_eq!(wrong(|settings| settings.room.pending_max = 100_001).len(), 1);
    }

    #[test]
    fn one_hs256_secret_and_long_enough() {
        let set = |plain: usize, base64: usize| {
            wrong(|settings| {
                settings.auth.hs256_secret = Secret::new("s".repeat(plain));
                settings.auth.hs256_secret_base64 = Secret::new("c".repeat(base64));
            })
        };
        assert_eq!(
            set(31, 0),
            ["auth.hs256_secret = \"***\" is too short; allowed: at least 32 bytes"]
        );
        assert_eq!(set(32, 0), [""; 0]);
        assert_eq!(set(0, 44), [""; 0]);
        // The line break is none of the key.
        let ended = wrong(|settings| settings.auth.hs256_secret = Secret::new("s".repeat(31) + "\r\n"));
        assert_eq!(ended, set(31, 0));
        assert_eq!(set(32, 44).len(), 1);
        let twice = wrong(|settings| {
            settings.auth.previous_hs256_secret = Secret::new("s".repeat(32));
            settings.auth.previous_key_file = "old.pem".into();
        });
        assert_eq!(
            twice,
            [
                "auth.previous_hs256_secret = \"***\" and auth.previous_key_file = \"old.pem\" are all set; \
              allowed: one of them"
            ]
        );
    }

    #[test]
    fn published_keys_are_fetched_no_oftener_than_they_may_be() {
        let wrong = wrong(|settings| settings.auth.jwks_refresh_seconds = 4);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
    }

    #[test]
    fn published_keys_outlive_one_fetch_that_fails() {
        let stale = |seconds| wrong(|settings| settings.auth.jwks_stale_seconds = seconds);
        assert_eq!(
            stale(306),
            [
                "auth.jwks_stale_seconds = 306 must be 0, or at least 307, for auth.jwks_refresh_seconds = 300 + \
                 auth.jwks_min_refresh_seconds = 5 + auth.jwks_timeout_ms = 2000: one fetch that fails would take all keys"
            ]
        );
        for seconds in [307, 0] {
            assert_eq!(stale(seconds), [""; 0]);
        }
    }

    #[test]
    fn a_page_is_by_default_no_longer_than_it_may_be() {
        assert_eq!(
            wrong(|settings| settings.history.page_max = 49),
            ["history.page_default = 50 must be at most history.page_max = 49"]
        );
        assert_eq!(wrong(|settings| settings.history.page_max = 50), [""; 0]);
    }

    #[test]
    fn a_broadcast_for_which_messages_are_held_is_not_given_up_sooner_than_another() {
        assert_eq!(
            wrong(|settings| settings.broadcast.unknown_seconds = 299),
            ["broadcast.resume_seconds = 300 must be at most broadcast.unknown_seconds = 299"]
        );
        assert_eq!(wrong(|settings| settings.broadcast.unknown_seconds = 300), [""; 0]);
    }

    #[test]
    fn what_would_do_nothing_is_refused_by_its_name() {
        assert_eq!(
            wrong(|settings| settings.auth.previous_algorithm = "ES256".into()),
            ["auth.previous_algorithm = \"ES256\" is of no key; allowed: empty where no auth.previous_* key is set"]
        );
        let with_key = wrong(|settings| {
            settings.auth.previous_algorithm = "ES256".into();
            settings.auth.previous_key_file = "old.pem".into();
        });
        assert_eq!(with_key, [""; 0]);
        assert_eq!(
            wrong(|settings| settings.auth.gateway_rooms_header = "x-rooms".into()),
            [
                "auth.gateway_rooms_header = \"x-rooms\" is for moderators, whom auth.gateway_role_header names; allowed: empty \
                 where that is"
            ]
        );
        let ca_file = |url: &str| {
            wrong(|settings| {
                settings.auth.jwks_url = url.into();
                settings.auth.jwks_ca_file = "ca.pem".into();
            })
        };
        for url in ["", "file:///keys.json", "http://127.0.0.1/"] {
            assert_eq!(
                ca_file(url),
                [format!(
                    "auth.jwks_ca_file = \"ca.pem\" is for an https:// address, and auth.jwks_url = \"{url}\" is none; allowed: empty"
                )]
            );
        }
        assert_eq!(ca_file("https://id.example/keys"), [""; 0]);
    }

    #[test]
    fn a_gateway_has_an_address() {
        let refused = wrong(|settings| settings.auth.mode = AuthMode::Gateway);
        assert!(refused[0].starts_with("auth.mode = \"gateway\" needs"), "{refused:?}");
        let with_proxy = wrong(|settings| {
            settings.auth.mode = AuthMode::Gateway;
            settings.auth.trusted_proxies = vec!["10.0.0.0/8".to_owned()];
        });
        assert_eq!(with_proxy, [""; 0]);
    }

    #[test]
    fn a_gateways_secret_of_before_is_beside_one_of_now() {
        let with = |secret: &str, file: &str| {
            wrong(|settings| {
                settings.auth.gateway_secret = Secret::new(secret);
                settings.auth.gateway_secret_file = file.into();
                settings.auth.previous_gateway_secret = Secret::new("before");
                settings.auth.previous_gateway_secret_file = "before".into();
            })
        };
        let why = "is the one before auth.gateway_secret, and there is none; allowed: empty where that is";
        assert_eq!(
            with("", ""),
            [
                format!("auth.previous_gateway_secret = \"***\" {why}"),
                format!("auth.previous_gateway_secret_file = \"before\" {why}")
            ]
        );
        assert_eq!(with("after", ""), [""; 0]);
        assert_eq!(with("", "after"), [""; 0]);
    }
}
