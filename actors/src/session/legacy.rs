//! The legacy dialect as a state machine without a socket: a client's frame in, what to do out.
//!
//! A legacy client shows every frame it gets as a chat line, so nothing may ever be sent that is not in
//! legacy-protocol.md: no welcome, no error that it does not list, no close code above 1011.

use bytestring::ByteString;

use crate::{
    seams::Authenticate,
    types::PresenterIdx,
    wire::legacy::{ClientFrame, PONG, START_WITHOUT_TOKEN, TOKEN_EXCEPTION, error_unknown_id, parse_client},
};

/// WebSocket close codes that a legacy client may see (RFC 6455, 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// 1000: after `tokenException` and a missing token, and when the server has no more use for the socket.
    Normal,
    /// 1001: the server is about to stop.
    Away,
    /// 1002: the peer does not speak WebSocket properly.
    Protocol,
    /// 1003: a binary frame.
    Unsupported,
    /// 1007: text that is not UTF-8.
    NotUtf8,
    /// 1009: a message longer than `session.max_frame_bytes`.
    TooBig,
    /// 1011: neither the bare `ping` nor a JSON object with an `id`.
    Unreadable,
}

/// What a frame asks the session to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this text.
    Reply(ByteString),
    /// Send this text, then close.
    ReplyAndClose(ByteString, Close),
    /// Become this presenter's session. Nothing is sent.
    Attach(PresenterIdx),
    /// Close.
    Close(Close),
}

/// What one text message means.
pub fn on_text(text: &str, tokens: &dyn Authenticate) -> Action {
    match parse_client(text) {
        ClientFrame::Ping => Action::Reply(ByteString::from_static(PONG)),
        ClientFrame::Start { token } => match tokens.presenter(&token) {
            Some(presenter) => Action::Attach(presenter),
            None => Action::ReplyAndClose(ByteString::from_static(TOKEN_EXCEPTION), Close::Normal),
        },
        ClientFrame::StartWithoutToken => {
            Action::ReplyAndClose(ByteString::from_static(START_WITHOUT_TOKEN), Close::Normal)
        }
        ClientFrame::UnknownId(id) => Action::Reply(error_unknown_id(&id).into()),
        ClientFrame::Unreadable => Action::Close(Close::Unreadable),
    }
}

/// Puts the fragments of one message together, up to a limit on their sum.
#[derive(Debug, Default)]
pub struct Fragments {
    parts: Option<Vec<u8>>,
}

impl Fragments {
    /// The first fragment of a text message.
    pub fn first(&mut self, part: &[u8], limit: usize) -> Result<(), Close> {
        self.parts = Some(Vec::with_capacity(part.len()));
        self.more(part, limit)
    }

    /// A further fragment.
    pub fn more(&mut self, part: &[u8], limit: usize) -> Result<(), Close> {
        let parts = self.parts.as_mut().ok_or(Close::Protocol)?;
        if parts.len() + part.len() > limit {
            self.parts = None;
            return Err(Close::TooBig);
        }
        parts.extend_from_slice(part);
        Ok(())
    }

    /// The last fragment: the whole text.
    pub fn last(&mut self, part: &[u8], limit: usize) -> Result<String, Close> {
        self.more(part, limit)?;
        let whole = self.parts.take().ok_or(Close::Protocol)?;
        String::from_utf8(whole).map_err(|_| Close::NotUtf8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tokens;

    impl Authenticate for Tokens {
        fn presenter(&self, token: &str) -> Option<PresenterIdx> {
            PresenterIdx::new(token.parse().ok()?)
        }
    }

    #[test]
    fn every_legacy_frame_gets_its_answer() {
        let presenter = PresenterIdx::new(12).unwrap();
        let rows = [
            ("ping", Action::Reply("pong".into())),
            (r#"{"id":"start","token":"12"}"#, Action::Attach(presenter)),
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
            ("PING", Action::Close(Close::Unreadable)),
            ("{}", Action::Close(Close::Unreadable)),
            (r#""""#, Action::Close(Close::Unreadable)),
            ("", Action::Close(Close::Unreadable)),
            (r#"{"id":null}"#, Action::Close(Close::Unreadable)),
            ("{bad", Action::Close(Close::Unreadable)),
        ];
        for (frame, action) in rows {
            assert_eq!(on_text(frame, &Tokens), action, "{frame}");
        }
    }

    #[test]
    fn fragments_are_put_together_up_to_the_limit() {
        let mut fragments = Fragments::default();
        fragments.first(b"pi", 4).unwrap();
        fragments.more(b"n", 4).unwrap();
        assert_eq!(fragments.last(b"g", 4).unwrap(), "ping");
        fragments.first(b"pi", 4).unwrap();
        assert_eq!(fragments.last(b"ngs", 4), Err(Close::TooBig));
        assert_eq!(fragments.more(b"x", 4), Err(Close::Protocol));
        fragments.first(&[0xff], 4).unwrap();
        assert_eq!(fragments.last(b"", 4), Err(Close::NotUtf8));
    }
}
