//! The legacy dialect's frames (docs/LEGACY.md): what a client says, and what the server may say, to the byte.

use std::{
    fmt::{self, Write},
    sync::atomic::{AtomicI64, AtomicU32, Ordering},
};

use jiff::{Timestamp, tz::TimeZone};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The answer to the bare word `ping`.
pub const PONG: &str = "pong";

/// Sent before a refused `start` is closed.
pub const TOKEN_EXCEPTION: &str = r#"{"id":"tokenException","response":"reject","message":"Jwt Exception"}"#;

/// Sent before a `start` without `token` is closed.
pub const START_WITHOUT_TOKEN: &str = r#"{"id":"error","message":"룸 idx값이 정상적으로 오지 않습니다."}"#;

/// What a client's text frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// The bare word `ping`.
    Ping,
    /// `{"id":"start","token":"…"}`. A token that is a number or a boolean is its text, and will not verify.
    Start {
        /// What is to be verified.
        token: String,
    },
    /// `start` with no token, or one that has no text: null, a list, an object.
    StartWithoutToken,
    /// An `id` that means nothing; the socket stays open.
    UnknownId(String),
    /// Anything else: close 1011.
    Unreadable,
}

/// Reads one text frame. Never fails: what cannot be read is [`ClientFrame::Unreadable`].
pub fn parse_client(text: &str) -> ClientFrame {
    if text == "ping" {
        return ClientFrame::Ping;
    }
    let Ok(frame) = serde_json::from_str::<Fields<'_>>(text) else {
        return ClientFrame::Unreadable;
    };
    let Some(id) = frame.id.and_then(text_of) else {
        return ClientFrame::Unreadable;
    };
    if id != "start" {
        return ClientFrame::UnknownId(id);
    }
    match frame.token.and_then(text_of) {
        Some(token) => ClientFrame::Start { token },
        None => ClientFrame::StartWithoutToken,
    }
}

/// What counts in a client's frame, as it stands in the source; of a field that is there twice the last.
#[derive(Default)]
struct Fields<'a> {
    id: Option<&'a RawValue>,
    token: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = access.next_key::<String>()? {
                    match name.as_str() {
                        "id" => fields.id = Some(access.next_value()?),
                        "token" => fields.token = Some(access.next_value()?),
                        _ => {
                            access.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// The text of a JSON primitive, as Gson's `getAsString` gives it: a number keeps the digits it was written with.
fn text_of(value: &RawValue) -> Option<String> {
    let source = value.get();
    match source.as_bytes().first()? {
        b'"' => serde_json::from_str(source).ok(),
        b'n' | b'[' | b'{' => None,
        _ => Some(source.to_owned()),
    }
}

/// `{"id":"error","message":"Invalid message with id X"}`
pub fn error_unknown_id(id: &str) -> String {
    let mut frame = String::with_capacity(id.len() + 64);
    frame.push_str(r#"{"id":"error","message":"Invalid message with id "#);
    escape_into(id, &mut frame);
    frame.push_str("\"}");
    frame
}

/// How a chat frame begins, and nothing else that the server says does.
const CHAT_BEGINS: &str = r#"{"id":"sendChatting","nickname":""#;

/// Whether this text is one of [`encode_chat`]'s, among what the server says.
pub fn is_chat(text: &[u8]) -> bool {
    text.starts_with(CHAT_BEGINS.as_bytes())
}

/// `{"id":"sendChatting","nickname":"…","message":"…","time":"HH:mm"}`, keys in this order.
pub fn encode_chat(nickname: &str, message: &str, time: &str) -> String {
    let mut frame = String::with_capacity(nickname.len() + message.len() + time.len() + 72);
    frame.push_str(CHAT_BEGINS);
    escape_into(nickname, &mut frame);
    frame.push_str(r#"","message":""#);
    escape_into(message, &mut frame);
    frame.push_str(r#"","time":""#);
    escape_into(time, &mut frame);
    frame.push_str("\"}");
    frame
}

/// Bytes that may be, or begin, what is escaped.
static SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        special[byte] = true;
        byte += 1;
    }
    special[b'"' as usize] = true;
    special[b'\\' as usize] = true;
    special[0xe2] = true;
    special
};

fn push_two(out: &mut String, number: u32) {
    for digit in [number / 10 % 10, number % 10] {
        out.push(char::from_digit(digit, 10).unwrap_or('0'));
    }
}

/// JSON's own escapes, and `\u2028` and `\u2029`; nothing else (`<`, `&`, `'`, `/` stay). Runs that need none are copied
/// whole.
fn escape_into(text: &str, out: &mut String) {
    let bytes = text.as_bytes();
    let mut copied = 0;
    let mut at = 0;
    while let Some(more) = bytes[at..].iter().position(|byte| SPECIAL[usize::from(*byte)]) {
        at += more;
        let byte = bytes[at];
        let (length, escape) = match byte {
            b'"' => (1, "\\\""),
            b'\\' => (1, "\\\\"),
            b'\n' => (1, "\\n"),
            b'\r' => (1, "\\r"),
            b'\t' => (1, "\\t"),
            0x08 => (1, "\\b"),
            0x0c => (1, "\\f"),
            0x00..=0x1f => (1, ""),
            0xe2 if bytes[at..].starts_with("\u{2028}".as_bytes()) => (3, "\\u2028"),
            0xe2 if bytes[at..].starts_with("\u{2029}".as_bytes()) => (3, "\\u2029"),
            _ => {
                at += 1;
                continue;
            }
        };
        out.push_str(&text[copied..at]);
        if escape.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{byte:04x}");
        } else {
            out.push_str(escape);
        }
        at += length;
        copied = at;
    }
    out.push_str(&text[copied..]);
}

/// The wall clock of the legacy dialect's zone (`legacy.zone`).
#[derive(Debug)]
pub struct Clock {
    zone: TimeZone,
    /// The minute that was asked for last, since 1970, and its hour and minute of the day in the zone: a stream of messages
    /// asks for the same one thousands of times. Two threads that race here only compute it twice.
    minute: AtomicI64,
    of_day: AtomicU32,
}

impl Clock {
    /// A clock of an IANA zone, such as `Asia/Seoul`. The error names the setting.
    pub fn new(zone: &str) -> Result<Self, String> {
        let zone = TimeZone::get(zone).map_err(|error| {
            format!("legacy.zone = \"{zone}\" is not an IANA time zone such as \"Asia/Seoul\": {error}")
        })?;
        Ok(Self {
            zone,
            minute: AtomicI64::new(i64::MIN),
            of_day: AtomicU32::new(0),
        })
    }

    /// `HH:mm` at a time in milliseconds since 1970, UTC.
    pub fn hhmm(&self, ms: i64) -> String {
        let minute = ms.div_euclid(60_000);
        // The low bits of the minute are stored beside the time of day, so that a torn pair is seen.
        let tag = (u32::try_from(minute.rem_euclid(1 << 16)).unwrap_or(0)) << 16;
        let cached = self.of_day.load(Ordering::Acquire);
        let of_day = if self.minute.load(Ordering::Acquire) == minute && cached & 0xffff_0000 == tag {
            cached & 0xffff
        } else {
            let of_day = self.of_day(ms);
            self.of_day.store(tag | of_day, Ordering::Release);
            self.minute.store(minute, Ordering::Release);
            of_day
        };
        let mut time = String::with_capacity(5);
        push_two(&mut time, of_day / 60);
        time.push(':');
        push_two(&mut time, of_day % 60);
        time
    }

    fn of_day(&self, ms: i64) -> u32 {
        let Ok(time) = Timestamp::from_millisecond(ms) else {
            return 0;
        };
        let time = self.zone.to_datetime(time).time();
        u32::try_from(time.hour()).unwrap_or(0) * 60 + u32::try_from(time.minute()).unwrap_or(0)
    }

    /// `yyyy-MM-dd HH:mm:ss` at a time in milliseconds since 1970, UTC.
    pub fn timestamp(&self, ms: i64) -> String {
        Timestamp::from_millisecond(ms).map_or_else(
            |_| String::new(),
            |time| self.zone.to_datetime(time).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_chat_frame_is_the_old_servers_to_the_byte() {
        assert_eq!(
            encode_chat("김", "안녕 <b>&'/</b>", "09:05"),
            r#"{"id":"sendChatting","nickname":"김","message":"안녕 <b>&'/</b>","time":"09:05"}"#
        );
        assert_eq!(
            encode_chat("a\"b\\", "\u{0}\u{1f}\n\r\t\u{8}\u{c}\u{7f}\u{2028}x\u{2029}", "00:00"),
            "{\"id\":\"sendChatting\",\"nickname\":\"a\\\"b\\\\\",\"message\":\"\\u0000\\u001f\\n\\r\\t\\b\\f\u{7f}\
             \\u2028x\\u2029\",\"time\":\"00:00\"}"
        );
    }

    #[test]
    fn every_character_comes_back_from_a_json_reader() {
        let all: Vec<char> = (0..=0x2_ffff).filter_map(char::from_u32).collect();
        for chunk in all.chunks(1000) {
            let text: String = chunk.iter().collect();
            let frame: Value = serde_json::from_str(&encode_chat("n", &text, "00:00")).unwrap();
            assert_eq!(frame["message"], text);
        }
    }

    #[test]
    fn client_frames_are_read_as_the_old_server_read_them() {
        let start = |token: &str| ClientFrame::Start { token: token.into() };
        let unknown = |id: &str| ClientFrame::UnknownId(id.into());
        let rows = [
            ("ping", ClientFrame::Ping),
            (" ping", ClientFrame::Unreadable),
            ("PING", ClientFrame::Unreadable),
            ("\"ping\"", ClientFrame::Unreadable),
            ("", ClientFrame::Unreadable),
            ("{}", ClientFrame::Unreadable),
            ("[]", ClientFrame::Unreadable),
            ("null", ClientFrame::Unreadable),
            ("{\"id\":null}", ClientFrame::Unreadable),
            ("{\"id\":{}}", ClientFrame::Unreadable),
            ("{\"id\":[\"start\"]}", ClientFrame::Unreadable),
            ("{\"id\":\"start\",\"token\":\"x.y.z\"}", start("x.y.z")),
            ("{\"id\":\"start\",\"token\":5}", start("5")),
            ("{\"id\":\"start\",\"token\":\"\"}", start("")),
            ("{\"id\":\"start\"}", ClientFrame::StartWithoutToken),
            ("{\"id\":\"start\",\"token\":null}", ClientFrame::StartWithoutToken),
            ("{\"id\":\"start\",\"token\":{}}", ClientFrame::StartWithoutToken),
            ("{\"id\":5}", unknown("5")),
            ("{\"id\":true}", unknown("true")),
            ("{\"id\":1.50}", unknown("1.50")),
            ("{\"id\":-0}", unknown("-0")),
            ("{\"id\":1e400}", unknown("1e400")),
            ("{\"id\":12345678901234567890123}", unknown("12345678901234567890123")),
            ("{\"id\":\"start\",\"token\":1.50}", start("1.50")),
            ("{\"id\":\"start\",\"token\":\"x\",\"seen\":1e400}", start("x")),
            ("{\"id\":\"a\",\"id\":\"b\"}", unknown("b")),
            ("{\"\\u0069d\":\"b\"}", unknown("b")),
            ("{\"id\":\"start\"} more", ClientFrame::Unreadable),
            ("{\"id\":\"\"}", unknown("")),
            ("{\"id\":\"stop\",\"more\":[1]}", unknown("stop")),
        ];
        for (text, frame) in rows {
            assert_eq!(parse_client(text), frame, "{text}");
        }
        let deep = format!(
            "{{\"id\":\"stop\",\"more\":{}{}}}",
            "[".repeat(15_000),
            "]".repeat(15_000)
        );
        assert_eq!(parse_client(&deep), unknown("stop"));
        let deep = "[".repeat(100_000);
        assert_eq!(parse_client(&deep), ClientFrame::Unreadable);
    }

    #[test]
    fn an_unknown_id_is_escaped_in_the_answer() {
        assert_eq!(
            error_unknown_id("a\"b"),
            r#"{"id":"error","message":"Invalid message with id a\"b"}"#
        );
    }

    #[test]
    fn the_clock_shows_the_time_of_its_zone() {
        let clock = Clock::new("Asia/Seoul").unwrap();
        // 2026-01-01T00:00:00Z
        let midnight = 1_767_225_600_000;
        assert_eq!(clock.hhmm(midnight), "09:00");
        assert_eq!(clock.hhmm(midnight + 59_999), "09:00");
        assert_eq!(clock.hhmm(midnight + 60_000), "09:01");
        assert_eq!(clock.hhmm(midnight), "09:00");
        assert_eq!(clock.timestamp(midnight + 1_000), "2026-01-01 09:00:01");
        assert_eq!(Clock::new("UTC").unwrap().hhmm(midnight), "00:00");
        assert!(Clock::new("Mars/Base").unwrap_err().contains("legacy.zone"));
    }
}
