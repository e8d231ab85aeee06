//! The legacy dialect as a state machine without a socket: a client's frame in, what to do out.
//!
//! A legacy client shows every frame it gets as a chat line, so nothing may ever be sent that is not in
//! docs/LEGACY.md: no welcome, no error that it does not list, no close code above 1011.

use bytestring::ByteString;

use super::{action::Action, close::Close};
use crate::{
    registry::Reading,
    seams::{Authenticate, Denied},
    wire::legacy::{ClientFrame, PONG, START_WITHOUT_TOKEN, TOKEN_EXCEPTION, error_unknown_id, parse_client},
};

/// What one text message means.
pub fn on_text(text: &str, tokens: &dyn Authenticate) -> Action {
    match parse_client(text) {
        ClientFrame::Ping => Action::Reply(ByteString::from_static(PONG)),
        ClientFrame::Start { token } => match tokens.grant(&token) {
            // A legacy session is not closed when its token expires: it cannot refresh it (rule 15).
            Ok(grant) if tokens.admit(grant.presenter) => Action::Attach {
                presenter: grant.presenter,
                reading: Reading::Legacy,
            },
            // The protocol has no word for a presenter that connects too often.
            Ok(_) => Action::Close(Close::Normal, None),
            Err(Denied::NotYet) => Action::AwaitKey,
            // A token that cannot be judged is no bad one: the client is to come back with it.
            Err(Denied::Unavailable) => Action::Close(Close::Away, None),
            Err(Denied::Bad | Denied::UnknownKey | Denied::Expired) => {
                Action::ReplyAndClose(ByteString::from_static(TOKEN_EXCEPTION), Close::Normal)
            }
        },
        ClientFrame::StartWithoutToken => {
            Action::ReplyAndClose(ByteString::from_static(START_WITHOUT_TOKEN), Close::Normal)
        }
        ClientFrame::UnknownId(id) => Action::Reply(error_unknown_id(&id).into()),
        ClientFrame::Unreadable => Action::Close(Close::Unreadable, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{seams::Grant, types::PresenterIdx};

    struct Tokens;

    impl Authenticate for Tokens {
        fn grant(&self, token: &str) -> Result<Grant, Denied> {
            let presenter = match token.parse() {
                Ok(98) => return Err(Denied::NotYet),
                Ok(97) => return Err(Denied::Unavailable),
                Ok(96) => return Err(Denied::UnknownKey),
                number => number.ok().and_then(PresenterIdx::new).ok_or(Denied::Bad)?,
            };
            Ok(Grant {
                presenter,
                expires_at_ms: i64::MAX,
            })
        }

        fn admit(&self, presenter: PresenterIdx) -> bool {
            presenter.get() != 13
        }
    }

    #[test]
    fn every_legacy_frame_gets_its_answer() {
        let presenter = PresenterIdx::new(12).unwrap();
        let rows = [
            ("ping", Action::Reply("pong".into())),
            (
                r#"{"id":"start","token":"12"}"#,
                Action::Attach {
                    presenter,
                    reading: Reading::Legacy,
                },
            ),
            (r#"{"id":"start","token":"98"}"#, Action::AwaitKey),
            (r#"{"id":"start","token":"97"}"#, Action::Close(Close::Away, None)),
            (r#"{"id":"start","token":"13"}"#, Action::Close(Close::Normal, None)),
            (
                r#"{"id":"start","token":"96"}"#,
                Action::ReplyAndClose(
                    r#"{"id":"tokenException","response":"reject","message":"Jwt Exception"}"#.into(),
                    Close::Normal,
                ),
            ),
            (
                r#"{"id":"start","token":"forged"}"#,
                Action::ReplyAndClose(
                    r#"{"id":"tokenException","response":"reject","message":"Jwt Exception"}"#.into(),
                    Close::Normal,
                ),
            ),
            (
                r#"{"id":"start"}"#,
                Action::ReplyAndClose(
                    r#"{"id":"error","message":"룸 idx값이 정상적으로 오지 않습니다."}"#.into(),
                    Close::Normal,
                ),
            ),
            (
                r#"{"id":"dance"}"#,
                Action::Reply(r#"{"id":"error","message":"Invalid message with id dance"}"#.into()),
            ),
            (
                r#"{"id":5}"#,
                Action::Reply(r#"{"id":"error","message":"Invalid message with id 5"}"#.into()),
            ),
            ("PING", Action::Close(Close::Unreadable, None)),
            ("{}", Action::Close(Close::Unreadable, None)),
            (r#""""#, Action::Close(Close::Unreadable, None)),
            ("", Action::Close(Close::Unreadable, None)),
            (r#"{"id":null}"#, Action::Close(Close::Unreadable, None)),
            ("{bad", Action::Close(Close::Unreadable, None)),
        ];
        for (frame, action) in rows {
            assert_eq!(on_text(frame, &Tokens), action, "{frame}");
        }
    }
}
