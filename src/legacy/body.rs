//! The body of `POST /send/message`, read as leniently as the old server's Jackson read it (docs/LEGACY.md).

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// What a body says. Its `userType` chooses only what a missing `presenterIdx` means, never a role (rule 18).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendBody {
    /// `"17"` and `17.7` are 17; `""`, blanks and `"null"` are null. `None` is the sender's own room, which only a body of a
    /// `presenter` may leave out.
    pub presenter_idx: Option<i64>,
    /// A number or a boolean is its source text.
    pub text: String,
}

/// Why a body was not taken. The texts are for the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The framework's own 400, with an empty message.
    #[error("unreadable")]
    Unreadable,
    /// No `userType`, or null.
    #[error("userType은 null값이 올 수 없습니다.")]
    MissingUserType,
    /// No `presenterIdx`, or null, and the sender is a viewer.
    #[error("PresenterIdx는 null값이 올 수 없습니다.")]
    MissingPresenterIdx,
    /// No `textMessage`, or null.
    #[error("textMessage는 null값이 올 수 없습니다.")]
    MissingText,
}

/// Reads a body. JSON followed by more is accepted, unknown fields are ignored, of a field that is there twice the last counts.
pub fn parse_send(bytes: &[u8]) -> Result<SendBody, BodyError> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut json = serde_json::Deserializer::from_slice(bytes).into_iter::<Raw<'_>>();
    let Some(Ok(raw)) = json.next() else {
        return Err(BodyError::Unreadable);
    };
    // serde_json does not look at the bytes of what is ignored; what follows the object is nobody's business.
    let read = bytes.get(..json.byte_offset()).unwrap_or(bytes);
    str::from_utf8(read).map_err(|_| BodyError::Unreadable)?;
    let presenter_idx = raw.presenter_idx.map_or(Ok(None), presenter_idx)?;
    let user_type = raw.user_type.map_or(Ok(None), scalar_text)?;
    let text = raw.text.map_or(Ok(None), scalar_text)?;
    let user_type = user_type.ok_or(BodyError::MissingUserType)?;
    // Before the text: the old server let a null text pass, and refused this one in its own words.
    if presenter_idx.is_none() && user_type != "presenter" {
        return Err(BodyError::MissingPresenterIdx);
    }
    Ok(SendBody {
        presenter_idx,
        text: text.ok_or(BodyError::MissingText)?,
    })
}

/// The fields as they stand in the source.
#[derive(Default)]
struct Raw<'a> {
    presenter_idx: Option<&'a RawValue>,
    user_type: Option<&'a RawValue>,
    text: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Raw<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw<'de>, A::Error> {
                let mut raw = Raw::default();
                while let Some(name) = access.next_key::<String>()? {
                    match name.as_str() {
                        "presenterIdx" => raw.presenter_idx = Some(access.next_value()?),
                        "userType" => raw.user_type = Some(access.next_value()?),
                        "textMessage" => raw.text = Some(access.next_value()?),
                        _ => {
                            access.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(raw)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// The text of a JSON string, number or boolean; `None` for null.
fn scalar_text(raw: &RawValue) -> Result<Option<String>, BodyError> {
    let source = raw.get();
    match source.as_bytes().first() {
        Some(b'"') => serde_json::from_str(source)
            .map(Some)
            .map_err(|_| BodyError::Unreadable),
        Some(b'n') => Ok(None),
        Some(b'{' | b'[') | None => Err(BodyError::Unreadable),
        Some(_) => Ok(Some(source.to_owned())),
    }
}

fn presenter_idx(raw: &RawValue) -> Result<Option<i64>, BodyError> {
    let source = raw.get();
    match source.as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b'"') => {
            let text: String = serde_json::from_str(source).map_err(|_| BodyError::Unreadable)?;
            // Java's trim: blanks and control characters, no other white space.
            match text.trim_matches(|c: char| c <= ' ') {
                "" | "null" => Ok(None),
                // Text must be a whole number, as it had to be for the old server.
                number => number.parse().map(Some).map_err(|_| BodyError::Unreadable),
            }
        }
        Some(b'-' | b'0'..=b'9') => whole(source).map(Some).ok_or(BodyError::Unreadable),
        _ => Err(BodyError::Unreadable),
    }
}

/// A JSON number cut to a whole one; `None` outside of 64 signed bits.
fn whole(source: &str) -> Option<i64> {
    if !source.contains(['.', 'e', 'E']) {
        return source.parse().ok();
    }
    let number = source.parse::<f64>().ok()?.trunc();
    // Both bounds are exact in f64; the upper one is the first that does not fit.
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0)
        .contains(&number)
        .then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SendBody, BodyError> {
        parse_send(text.as_bytes())
    }

    #[test]
    fn a_plain_body_is_read() {
        let body = parse(r#"{"presenterIdx": 12, "userType": "viewer", "textMessage": "hi"}"#).unwrap();
        assert_eq!((body.presenter_idx, body.text.as_str()), (Some(12), "hi"));
    }

    #[test]
    fn presenter_idx_is_read_leniently() {
        let rows: [(&str, Result<Option<i64>, BodyError>); 26] = [
            ("17", Ok(Some(17))),
            ("\"17\"", Ok(Some(17))),
            ("\" 17 \"", Ok(Some(17))),
            ("\"\\u000917\\u0000\"", Ok(Some(17))),
            ("\"\u{a0}17\"", Err(BodyError::Unreadable)),
            ("17.7", Ok(Some(17))),
            ("-17.7", Ok(Some(-17))),
            ("1e2", Ok(Some(100))),
            ("0", Ok(Some(0))),
            ("-5", Ok(Some(-5))),
            ("9223372036854775807", Ok(Some(i64::MAX))),
            ("\"9223372036854775807\"", Ok(Some(i64::MAX))),
            ("null", Ok(None)),
            ("\"\"", Ok(None)),
            ("\"  \"", Ok(None)),
            ("\"null\"", Ok(None)),
            ("9223372036854775808", Err(BodyError::Unreadable)),
            ("1e400", Err(BodyError::Unreadable)),
            ("1e19", Err(BodyError::Unreadable)),
            ("\"9223372036854775808\"", Err(BodyError::Unreadable)),
            ("\"x\"", Err(BodyError::Unreadable)),
            ("\"17.7\"", Err(BodyError::Unreadable)),
            ("true", Err(BodyError::Unreadable)),
            ("[17]", Err(BodyError::Unreadable)),
            ("{}", Err(BodyError::Unreadable)),
            ("017", Err(BodyError::Unreadable)),
        ];
        for (value, expected) in rows {
            let body = format!(r#"{{"presenterIdx":{value},"userType":"presenter","textMessage":"x"}}"#);
            assert_eq!(parse(&body).map(|body| body.presenter_idx), expected, "{value}");
        }
    }

    #[test]
    fn text_is_read_leniently() {
        let rows = [
            ("\"hi\"", Ok("hi")),
            ("\"\"", Ok("")),
            ("\"\\uD55C\\n\"", Ok("한\n")),
            ("1.50", Ok("1.50")),
            ("-0", Ok("-0")),
            ("true", Ok("true")),
            ("null", Err(BodyError::MissingText)),
            ("[]", Err(BodyError::Unreadable)),
            ("{\"a\":1}", Err(BodyError::Unreadable)),
            ("\"\\uD800\"", Err(BodyError::Unreadable)),
        ];
        for (value, expected) in rows {
            let body = format!(r#"{{"presenterIdx":1,"userType":"viewer","textMessage":{value}}}"#);
            assert_eq!(
                parse(&body).map(|body| body.text),
                expected.map(str::to_owned),
                "{value}"
            );
        }
    }

    #[test]
    fn only_a_presenter_may_leave_the_room_out() {
        let rows = [
            ("\"presenter\"", Ok(None)),
            ("\"viewer\"", Err(BodyError::MissingPresenterIdx)),
            ("\"PRESENTER\"", Err(BodyError::MissingPresenterIdx)),
            ("5", Err(BodyError::MissingPresenterIdx)),
            ("null", Err(BodyError::MissingUserType)),
            ("[]", Err(BodyError::Unreadable)),
        ];
        for (value, expected) in rows {
            let body = format!(r#"{{"userType":{value},"textMessage":"x"}}"#);
            assert_eq!(parse(&body).map(|body| body.presenter_idx), expected, "{value}");
        }
    }

    #[test]
    fn the_rest_is_as_the_old_server_had_it() {
        let good = r#"{"presenterIdx":1,"userType":"viewer","textMessage":"x"}"#;
        assert!(parse(&format!("{good} and more")).is_ok());
        assert!(parse(&format!("\u{feff}{good}")).is_ok());
        assert!(parse(&good.replace("{\"p", "{\"unknown\":[{\"a\":null}],\"p")).is_ok());
        let twice = r#"{"presenterIdx":1,"textMessage":"a","userType":"viewer","textMessage":"b"}"#;
        assert_eq!(parse(twice).unwrap().text, "b");
        assert_eq!(parse("{}"), Err(BodyError::MissingUserType));
        assert_eq!(parse(r#"{"userType":"viewer"}"#), Err(BodyError::MissingPresenterIdx));
        assert_eq!(parse(r#"{"userType":"presenter"}"#), Err(BodyError::MissingText));
        assert_eq!(
            parse(r#"{"userType":"viewer","presenterIdx":1}"#),
            Err(BodyError::MissingText)
        );
        for bad in ["", "null", "[]", "\"x\"", "{", "{\"a\"}", "{'a':1}", "nonsense"] {
            assert_eq!(parse(bad), Err(BodyError::Unreadable), "{bad}");
        }
        assert_eq!(
            parse_send(b"{\"userType\":\"\xff\",\"textMessage\":\"x\"}"),
            Err(BodyError::Unreadable)
        );
        assert_eq!(
            parse_send(b"{\"presenterIdx\":1,\"userType\":\"viewer\",\"textMessage\":\"x\",\"other\":\"\xff\"}"),
            Err(BodyError::Unreadable)
        );
        assert!(parse_send(&[good.as_bytes(), b"\xff"].concat()).is_ok());
        let deep = format!("{{\"a\":{}", "[".repeat(200_000));
        assert_eq!(parse(&deep), Err(BodyError::Unreadable));
    }
}
