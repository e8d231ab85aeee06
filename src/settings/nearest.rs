//! [`nearest`]: what someone probably meant who wrote a name that is none.

/// How alike two names must be, 0 to 1, before one is offered for the other.
const ALIKE: f64 = 0.6;

/// The name in `known` that is nearest to `unknown`, if one is near.
///
/// A key without its section, or in a wrong one, is taken for the key of that name: `backend` for `log.backend`.
pub fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let unknown = unknown.to_lowercase();
    let score = |name: &str| {
        let whole = strsim::normalized_damerau_levenshtein(&unknown, name);
        // Between two keys of one name the likeness of their sections decides.
        if last(&unknown) == last(name) {
            whole + 1.0
        } else {
            whole
        }
    };
    let scored = known.into_iter().map(|name| (score(name), name));
    // The first of equals wins, so that the answer does not depend on the order of comparison.
    let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
    (best.0 >= ALIKE).then_some(best.1)
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 5] = [
        "log",
        "log.backend",
        "room.pending_max",
        "actors.registry.mailbox",
        "actors.writer.mailbox",
    ];

    #[test]
    fn a_slip_of_the_pen_is_recognized() {
        assert_eq!(nearest("log.backnd", KNOWN), Some("log.backend"));
        assert_eq!(nearest("Log.Backend", KNOWN), Some("log.backend"));
        assert_eq!(nearest("room.pendingmax", KNOWN), Some("room.pending_max"));
        assert_eq!(nearest("lgo", KNOWN), Some("log"));
    }

    #[test]
    fn a_wrong_or_missing_section_is_recognized() {
        assert_eq!(nearest("backend", KNOWN), Some("log.backend"));
        assert_eq!(nearest("session.pending_max", KNOWN), Some("room.pending_max"));
        assert_eq!(nearest("actors.wrter.mailbox", KNOWN), Some("actors.writer.mailbox"));
    }

    #[test]
    fn nothing_is_offered_when_nothing_is_near() {
        assert_eq!(nearest("kafka.brokers", KNOWN), None);
        assert_eq!(nearest("log", []), None);
    }
}
