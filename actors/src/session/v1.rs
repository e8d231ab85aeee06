//! The v1 dialect as a state machine without a socket: a client's frame in, what to do out.
//!
//! `hello` is always the first frame. It names the presenter, by its own token or by the upgrade's, and where to go on from; a
//! later one only refreshes the token (rule 16). Acks are cumulative (rule 14). What they may name is not judged here: the session's
//! actor refuses an ack above what it has written, and the registry one above what it has sent.

use super::{action::Action, close::Close};
use crate::{
    registry::{Reading, Resume},
    seams::{Authenticate, Denied, Grant},
    types::Seq,
    wire::v1::{ClientFrame, ServerFrame, parse_client},
};

/// Characters of what is said to be wrong with a frame: it may quote the frame.
const MAX_WHY: usize = 200;

/// What one connection was granted so far. Each text that came becomes one [`Action`]; a bad one is the action that
/// closes.
#[derive(Debug, Default)]
pub struct Machine {
    /// What the upgrade's token granted, before the first `hello`.
    upgrade: Option<Grant>,
    /// What holds now, since the first `hello`.
    grant: Option<Grant>,
}

impl Machine {
    /// A session that was just upgraded, with a token or without.
    pub fn new(upgrade: Option<Grant>) -> Self {
        Self {
            upgrade,
            ..Self::default()
        }
    }

    /// Whether the first `hello` was good.
    pub fn open(&self) -> bool {
        self.grant.is_some()
    }

    /// When the token's time is over, in milliseconds since 1970; `None` before the first `hello`.
    pub fn expires_at_ms(&self) -> Option<i64> {
        self.grant.map(|grant| grant.expires_at_ms)
    }

    /// What one text message means.
    pub fn on_text(&mut self, text: &str, tokens: &dyn Authenticate) -> Action {
        let frame = match parse_client(text) {
            Ok(frame) => frame,
            Err(why) => return Action::Close(Close::BadFrame, Some(why.chars().take(MAX_WHY).collect())),
        };
        match frame {
            ClientFrame::Hello {
                token,
                epoch,
                resume_after,
            } => self.hello(token.as_deref(), epoch, resume_after, tokens),
            _ if !self.open() => Action::Close(Close::BadFrame, Some("hello is the first frame".into())),
            ClientFrame::Ack { seq, fanned_out } => Action::Ack {
                seq: Seq(seq),
                fanned_out,
            },
            ClientFrame::Ping => Action::Reply(ServerFrame::Pong.encode()),
        }
    }

    fn hello(
        &mut self,
        token: Option<&str>,
        epoch: Option<String>,
        resume_after: Option<u64>,
        tokens: &dyn Authenticate,
    ) -> Action {
        let before = self.grant.or(self.upgrade);
        let grant = match token {
            Some(token) => match tokens.grant(token) {
                Ok(grant) => grant,
                Err(Denied::Expired) => return Action::Close(Close::TokenExpired, None),
                // Nothing has changed yet, so the frame can be taken again.
                Err(Denied::NotYet) => return Action::AwaitKey,
                // It may be good: its key may be published in a moment, or no key can be fetched just now. The token before has let
                // the session in, and still ends it in time.
                Err(Denied::UnknownKey | Denied::Unavailable) if self.open() => return Action::Postponed,
                Err(Denied::Unavailable) => return Action::Close(Close::KeysUnavailable, None),
                Err(Denied::Bad | Denied::UnknownKey) => return Action::Close(Close::Unauthenticated, None),
            },
            None => match before {
                Some(grant) => grant,
                None => return Action::Close(Close::Unauthenticated, Some("hello has no token".into())),
            },
        };
        if before.is_some_and(|before| before.presenter != grant.presenter) {
            let why = "the token is another presenter's than the one before";
            return Action::Close(Close::Unauthenticated, Some(why.into()));
        }
        if self.grant.replace(grant).is_some() {
            return Action::Refreshed;
        }
        if !tokens.admit(grant.presenter) {
            return Action::Close(Close::RateLimited, None);
        }
        Action::Attach {
            presenter: grant.presenter,
            reading: Reading::V1(Resume {
                epoch,
                after: resume_after.map(Seq),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PresenterIdx;

    /// A token is a presenter's number; 99's tokens are expired, 13 connects too often, 98's key is under way, 97's is not
    /// to be had, nobody knows 96's.
    struct Tokens;

    fn grant(presenter: i64) -> Grant {
        Grant {
            presenter: PresenterIdx::new(presenter).unwrap(),
            expires_at_ms: 5,
        }
    }

    impl Authenticate for Tokens {
        fn grant(&self, token: &str) -> Result<Grant, Denied> {
            match token.parse() {
                Ok(99) => Err(Denied::Expired),
                Ok(98) => Err(Denied::NotYet),
                Ok(97) => Err(Denied::Unavailable),
                Ok(96) => Err(Denied::UnknownKey),
                Ok(presenter) => Ok(grant(presenter)),
                Err(_) => Err(Denied::Bad),
            }
        }

        fn admit(&self, presenter: PresenterIdx) -> bool {
            presenter.get() != 13
        }
    }

    fn attach(presenter: i64, epoch: Option<&str>, after: Option<u64>) -> Action {
        Action::Attach {
            presenter: PresenterIdx::new(presenter).unwrap(),
            reading: Reading::V1(Resume {
                epoch: epoch.map(Into::into),
                after: after.map(Seq),
            }),
        }
    }

    fn close_of(action: Action) -> Close {
        match action {
            Action::Close(close, _) => close,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hello_names_the_presenter_by_its_own_token_or_the_upgrades() {
        let mut bare = Machine::default();
        let hello = r#"{"type":"hello","token":"12","epoch":"e","resume_after":41}"#;
        assert_eq!(bare.on_text(hello, &Tokens), attach(12, Some("e"), Some(41)));
        assert_eq!(bare.expires_at_ms(), Some(5));
        let mut upgraded = Machine::new(Some(grant(12)));
        assert_eq!(upgraded.expires_at_ms(), None);
        assert_eq!(upgraded.on_text(r#"{"type":"hello"}"#, &Tokens), attach(12, None, None));
        let none = Machine::default().on_text(r#"{"type":"hello"}"#, &Tokens);
        assert_eq!(close_of(none), Close::Unauthenticated);
        let other = Machine::new(Some(grant(12))).on_text(r#"{"type":"hello","token":"7"}"#, &Tokens);
        assert_eq!(close_of(other), Close::Unauthenticated);
        let forged = Machine::default().on_text(r#"{"type":"hello","token":"x"}"#, &Tokens);
        assert_eq!(close_of(forged), Close::Unauthenticated);
        let expired = Machine::default().on_text(r#"{"type":"hello","token":"99"}"#, &Tokens);
        assert_eq!(close_of(expired), Close::TokenExpired);
        let unavailable = Machine::default().on_text(r#"{"type":"hello","token":"97"}"#, &Tokens);
        assert_eq!(close_of(unavailable), Close::KeysUnavailable);
        let often = Machine::default().on_text(r#"{"type":"hello","token":"13"}"#, &Tokens);
        assert_eq!(close_of(often), Close::RateLimited);
    }

    #[test]
    fn rule_16_hello_is_the_first_frame_and_a_later_one_refreshes_the_token() {
        for frame in [r#"{"type":"ack","seq":0}"#, r#"{"type":"ping"}"#, "ping", "{}"] {
            assert_eq!(
                close_of(Machine::default().on_text(frame, &Tokens)),
                Close::BadFrame,
                "{frame}"
            );
        }
        let mut machine = Machine::default();
        machine.on_text(r#"{"type":"hello","token":"12"}"#, &Tokens);
        let later = r#"{"type":"hello","token":"12","resume_after":3}"#;
        assert_eq!(machine.on_text(later, &Tokens), Action::Refreshed);
        let other = machine.on_text(r#"{"type":"hello","token":"7"}"#, &Tokens);
        assert_eq!(close_of(other), Close::Unauthenticated);
    }

    #[test]
    fn a_hello_whose_key_is_under_way_changes_nothing_until_it_is_taken_again() {
        let mut machine = Machine::default();
        let hello = r#"{"type":"hello","token":"98"}"#;
        assert_eq!(machine.on_text(hello, &Tokens), Action::AwaitKey);
        assert!(!machine.open());
        assert_eq!(machine.on_text(hello, &Tokens), Action::AwaitKey);
        let other = r#"{"type":"hello","token":"12"}"#;
        assert_eq!(machine.on_text(other, &Tokens), attach(12, None, None));
    }

    #[test]
    fn a_refresh_whose_key_is_not_to_be_had_changes_nothing_and_a_first_hello_by_one_is_refused() {
        for (token, refused) in [("96", Close::Unauthenticated), ("97", Close::KeysUnavailable)] {
            let hello = format!(r#"{{"type":"hello","token":"{token}"}}"#);
            assert_eq!(close_of(Machine::default().on_text(&hello, &Tokens)), refused);
            let mut upgraded = Machine::new(Some(grant(12)));
            assert_eq!(close_of(upgraded.on_text(&hello, &Tokens)), refused);
            let mut machine = Machine::default();
            machine.on_text(r#"{"type":"hello","token":"12"}"#, &Tokens);
            assert_eq!(machine.on_text(&hello, &Tokens), Action::Postponed, "{token}");
            assert_eq!(machine.expires_at_ms(), Some(5));
            let other = machine.on_text(r#"{"type":"hello","token":"7"}"#, &Tokens);
            assert_eq!(close_of(other), Close::Unauthenticated, "it is 12's still");
        }
    }

    #[test]
    fn rule_14_an_ack_says_what_the_client_has() {
        let mut machine = Machine::new(Some(grant(12)));
        machine.on_text(r#"{"type":"hello"}"#, &Tokens);
        // What that moves is not for the dialect to say.
        for seq in [5, 5, 3, 6] {
            let action = machine.on_text(&format!(r#"{{"type":"ack","seq":{seq},"fanned_out":2}}"#), &Tokens);
            let ack = Action::Ack {
                seq: Seq(seq),
                fanned_out: Some(2),
            };
            assert_eq!(action, ack);
        }
        assert_eq!(
            machine.on_text(r#"{"type":"ping"}"#, &Tokens),
            Action::Reply(r#"{"type":"pong"}"#.into())
        );
    }
}
