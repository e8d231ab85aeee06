//! The v1 dialect's frames (docs/PROTOCOL.md): JSON text, one object a frame, named by `type`.
//!
//! docs/asyncapi.json describes every one of them; a test holds the two together.

use std::cell::RefCell;

use bytestring::ByteString;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    moderation::Act,
    types::{Event, PresenterIdx, Seq},
};

/// Gives a frame its name and the enum the list of all names, from one list: a variant without a row does not compile.
macro_rules! names {
    ($($variant:ident = $name:literal,)*) => {
        /// The `type` of every frame that there is.
        pub const TYPES: &'static [&'static str] = &[$($name),*];

        /// The frame's `type`.
        pub fn name(&self) -> &'static str {
            match self {
                $(Self::$variant { .. } => $name,)*
            }
        }
    };
}

/// The subprotocol that a client must offer.
pub const SUBPROTOCOL: &str = "chat.v1";

/// What a client may say. Fields that are not known are ignored, so that a newer client can talk to an older server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientFrame {
    /// Always the first frame; a later one refreshes the token.
    Hello {
        /// A JWT; not needed when the upgrade had one.
        token: Option<String>,
        /// The epoch of the last `welcome`; one that is not the server's voids `resume_after`.
        epoch: Option<String>,
        /// The last seq that the client has; absent: go on from the last ack of this broadcast; 0: from its start.
        resume_after: Option<u64>,
    },
    /// Everything up to and including `seq` has arrived (rule 14).
    Ack {
        /// The last seq.
        seq: u64,
        /// How many viewers the client passed it on to.
        fanned_out: Option<u64>,
    },
    /// Asks for a `pong`.
    Ping,
}

impl ClientFrame {
    names! {
        Hello = "hello",
        Ack = "ack",
        Ping = "ping",
    }
}

/// Events that can no longer be replayed, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The first that is missing.
    pub from: Seq,
    /// The last that is missing.
    pub to: Seq,
}

/// What the server may say.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame<'a> {
    /// The answer to the first `hello`.
    Welcome {
        /// Names this connection in the server's log.
        session_id: Uuid,
        /// Whose session it is.
        presenter_idx: PresenterIdx,
        /// The numbering that every `seq` belongs to.
        epoch: &'a str,
        /// The last seq of the room now.
        last_seq: Seq,
        /// The seq of the first `chat` frame that will come.
        resumed_from: Seq,
        /// What was asked for and can no longer be sent.
        gap: Option<Gap>,
        /// How often the server sends a WebSocket ping; one that answers `session.keepalive_missed` of them with silence is taken
        /// for gone at the next.
        keepalive_seconds: u64,
    },
    /// One chat message.
    Chat {
        /// Its place in the room.
        seq: Seq,
        /// UUIDv7.
        id: Uuid,
        /// Who sent it.
        user_idx: i64,
        /// The sender's name.
        nickname: &'a str,
        /// What was said.
        text: &'a str,
        /// RFC 3339, UTC, with milliseconds.
        sent_at: String,
        /// `viewer`, `presenter`, `moderator` or `operator`.
        role: &'static str,
    },
    /// One act of moderation. What it names, among what came before it, is no longer to be shown.
    Moderation {
        /// Its place in the room.
        seq: Seq,
        /// UUIDv7.
        id: Uuid,
        /// `delete`; others will come.
        action: &'static str,
        /// The message that is deleted, where it is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        target_id: Option<Uuid>,
        /// Its place in the room.
        #[serde(skip_serializing_if = "Option::is_none")]
        target_seq: Option<Seq>,
        /// The user all of whose messages are deleted.
        #[serde(skip_serializing_if = "Option::is_none")]
        user_idx: Option<i64>,
        /// Everything from this time on is deleted; RFC 3339, UTC, with milliseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        /// Up to and including this one.
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<String>,
        /// Who did it.
        by: i64,
        /// When, as `from`.
        sent_at: String,
    },
    /// The connection will end soon: connect again, not before so many milliseconds.
    Reconnect {
        /// When.
        after_ms: u64,
        /// Why: `drain`.
        reason: &'static str,
    },
    /// Why the connection is about to be closed.
    Error {
        /// A code of the error table.
        code: &'a str,
        /// For people, in their language.
        message: &'a str,
    },
    /// The answer to `ping`.
    Pong,
}

impl ServerFrame<'_> {
    names! {
        Welcome = "welcome",
        Chat = "chat",
        Moderation = "moderation",
        Reconnect = "reconnect",
        Error = "error",
        Pong = "pong",
    }

    /// The frame's text.
    pub fn encode(&self) -> ByteString {
        // A struct of texts and numbers cannot fail to serialize; an empty frame would say so.
        serde_json::to_string(self).unwrap_or_default().into()
    }
}

/// An event's frame: `chat`, or `moderation`. A message of which nothing is left is its own deletion: its place is told, and whoever has
/// it from before hides it.
pub fn encode_event(event: &Event) -> ByteString {
    match &event.act {
        Some(act) => moderation(event, act).encode(),
        None if event.is_erased() => {
            let (id, seq) = (event.id, event.seq);
            moderation(event, &Act::Message { id, seq }).encode()
        }
        None => chat(event).encode(),
    }
}

fn moderation<'a>(event: &Event, act: &Act) -> ServerFrame<'a> {
    let (target, user_idx, times) = match act {
        Act::Message { id, seq } => (Some((*id, *seq)), None, None),
        Act::User { user_idx } => (None, Some(user_idx.get()), None),
        Act::Span { from_ms, to_ms } => (None, None, Some((timestamp(*from_ms), timestamp(*to_ms)))),
    };
    let (target_id, target_seq) = target.unzip();
    let (from, to) = times.unzip();
    ServerFrame::Moderation {
        seq: event.seq,
        id: event.id,
        action: "delete",
        target_id,
        target_seq,
        user_idx,
        from,
        to,
        by: event.chat.user_idx.get(),
        sent_at: timestamp(event.sent_at_ms),
    }
}

fn chat(event: &Event) -> ServerFrame<'_> {
    ServerFrame::Chat {
        seq: event.seq,
        id: event.id,
        user_idx: event.chat.user_idx.get(),
        nickname: event.chat.nickname.as_str(),
        text: event.chat.text.as_str(),
        sent_at: timestamp(event.sent_at_ms),
        role: event.chat.role.as_str(),
    }
}

thread_local! {
    /// The second that was asked for last, and its text without the `Z`: a stream of messages asks for the same one thousands
    /// of times.
    static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
}

/// RFC 3339, UTC, with milliseconds.
pub fn timestamp(ms: i64) -> String {
    let (second, ms) = (ms.div_euclid(1000), ms.rem_euclid(1000));
    SECOND.with_borrow_mut(|(known, text)| {
        if *known != second {
            let Ok(time) = Timestamp::from_second(second) else {
                return String::new();
            };
            (*known, *text) = (second, format!("{time:.0}"));
            text.pop();
        }
        let mut whole = String::with_capacity(text.len() + 5);
        whole.push_str(text);
        whole.push('.');
        for digit in [ms / 100, ms / 10 % 10, ms % 10] {
            whole.push(char::from(b'0' + u8::try_from(digit).unwrap_or(0)));
        }
        whole.push('Z');
        whole
    })
}

/// Reads one text frame; the error says what is wrong with it, in English.
pub fn parse_client(text: &str) -> Result<ClientFrame, String> {
    // As text, which it is known to be: bytes would be looked through for that once more.
    let frame = super::no_array(text.as_bytes()).and_then(|()| serde_json::from_str(text));
    frame.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::types::{ChatMessage, Epoch, MessageText, Nickname, Role, UserIdx};

    #[test]
    fn times_are_as_the_library_writes_them() {
        let some = [
            0,
            1,
            999,
            1000,
            -1,
            -1000,
            -62_135_596_800_000,
            253_402_207_199_999,
            1_767_225_600_000,
        ];
        for ms in some.into_iter().chain((0..50).map(|n| 1_700_000_000_000 + n * 777)) {
            let time = Timestamp::from_millisecond(ms).unwrap();
            assert_eq!(timestamp(ms), format!("{time:.3}"), "{ms}");
        }
        assert_eq!(timestamp(i64::MAX), "");
    }

    #[test]
    fn what_a_client_may_say_is_read() {
        let rows = [
            (
                r#"{"type":"hello"}"#,
                ClientFrame::Hello {
                    token: None,
                    epoch: None,
                    resume_after: None,
                },
            ),
            (
                r#"{"resume_after":41,"epoch":"e","token":"t","later":[1],"type":"hello"}"#,
                ClientFrame::Hello {
                    token: Some("t".into()),
                    epoch: Some("e".into()),
                    resume_after: Some(41),
                },
            ),
            (
                r#"{"type":"hello","token":null,"epoch":null,"resume_after":null}"#,
                ClientFrame::Hello {
                    token: None,
                    epoch: None,
                    resume_after: None,
                },
            ),
            (
                r#"{"type":"ack","seq":57,"fanned_out":312}"#,
                ClientFrame::Ack {
                    seq: 57,
                    fanned_out: Some(312),
                },
            ),
            (
                r#"{"type":"ack","seq":57}"#,
                ClientFrame::Ack {
                    seq: 57,
                    fanned_out: None,
                },
            ),
            (r#"{"type":"ping"}"#, ClientFrame::Ping),
        ];
        for (text, frame) in rows {
            assert!(text.contains(&format!(r#""type":"{}""#, frame.name())), "{text}");
            assert_eq!(parse_client(text), Ok(frame), "{text}");
        }
        for bad in [
            "",
            "ping",
            "null",
            "[]",
            r#" ["ping"]"#,
            r#"["ack",57]"#,
            "{}",
            r#"{"type":"dance"}"#,
            r#"{"type":"ack"}"#,
            r#"{"type":"ack","seq":-1}"#,
            r#"{"type":"ack","seq":1.5}"#,
            r#"{"type":"ack","seq":18446744073709551616}"#,
            r#"{"type":"hello","resume_after":"41"}"#,
            r#"{"type":"hello","token":5}"#,
            r#"{"type":"ping"} {"type":"ping"}"#,
        ] {
            assert!(parse_client(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn frames_are_as_the_design_has_them() {
        let welcome = ServerFrame::Welcome {
            session_id: Uuid::nil(),
            presenter_idx: PresenterIdx::new(12).unwrap(),
            epoch: "e",
            last_seq: Seq(57),
            resumed_from: Seq(43),
            gap: Some(Gap {
                from: Seq(41),
                to: Seq(42),
            }),
            keepalive_seconds: 15,
        };
        assert_eq!(
            &*welcome.encode(),
            r#"{"type":"welcome","session_id":"00000000-0000-0000-0000-000000000000","presenter_idx":12,"epoch":"e","last_seq":57,"resumed_from":43,"gap":{"from":41,"to":42},"keepalive_seconds":15}"#
        );
        let event = Event {
            id: Uuid::nil(),
            presenter_idx: PresenterIdx::new(12).unwrap(),
            epoch: Epoch(Arc::from("e")),
            seq: Seq(58),
            sent_at_ms: 1_767_225_600_000,
            room_idx: None,
            broadcast_id: None,
            act: None,
            chat: ChatMessage {
                user_idx: UserIdx::new(7).unwrap(),
                nickname: Nickname::new("김\"", 64).unwrap(),
                text: MessageText::new("안녕\n<b>".into(), 64).unwrap(),
                role: Role::Viewer,
            },
            keyed: None,
        };
        assert_eq!(
            &*encode_event(&event),
            r#"{"type":"chat","seq":58,"id":"00000000-0000-0000-0000-000000000000","user_idx":7,"nickname":"김\"","text":"안녕\n<b>","sent_at":"2026-01-01T00:00:00.000Z","role":"viewer"}"#
        );
        let mut erased = event.clone();
        erased.chat.user_idx = UserIdx::ERASED;
        erased.chat.nickname = Nickname::new("", 64).unwrap();
        erased.chat.text = MessageText::maybe_empty(String::new(), 64).unwrap();
        assert_eq!(
            &*encode_event(&erased),
            r#"{"type":"moderation","seq":58,"id":"00000000-0000-0000-0000-000000000000","action":"delete","target_id":"00000000-0000-0000-0000-000000000000","target_seq":58,"by":9223372036854775807,"sent_at":"2026-01-01T00:00:00.000Z"}"#
        );
        let act = |act| {
            encode_event(&Event {
                act: Some(Arc::new(act)),
                ..event.clone()
            })
        };
        let span = Act::Span {
            from_ms: 1_767_225_600_000,
            to_ms: 1_767_225_601_000,
        };
        assert_eq!(
            &*act(span),
            r#"{"type":"moderation","seq":58,"id":"00000000-0000-0000-0000-000000000000","action":"delete","from":"2026-01-01T00:00:00.000Z","to":"2026-01-01T00:00:01.000Z","by":7,"sent_at":"2026-01-01T00:00:00.000Z"}"#
        );
        let user_idx = UserIdx::new(9).unwrap();
        assert_eq!(
            &*act(Act::User { user_idx }),
            r#"{"type":"moderation","seq":58,"id":"00000000-0000-0000-0000-000000000000","action":"delete","user_idx":9,"by":7,"sent_at":"2026-01-01T00:00:00.000Z"}"#
        );
        let reconnect = ServerFrame::Reconnect {
            after_ms: 1200,
            reason: "drain",
        };
        assert_eq!(
            &*reconnect.encode(),
            r#"{"type":"reconnect","after_ms":1200,"reason":"drain"}"#
        );
        let error = ServerFrame::Error {
            code: "replaced",
            message: "m",
        };
        assert_eq!(&*error.encode(), r#"{"type":"error","code":"replaced","message":"m"}"#);
        assert_eq!(&*ServerFrame::Pong.encode(), r#"{"type":"pong"}"#);
        for frame in [welcome, reconnect, error, ServerFrame::Pong] {
            let begins = format!(r#"{{"type":"{}""#, frame.name());
            assert!(frame.encode().starts_with(&begins), "{frame:?}");
        }
    }
}
