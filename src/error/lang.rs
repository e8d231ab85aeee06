//! The language of an answer, chosen by the reader's `Accept-Language`.

use actix_web::http::header::{self, HeaderMap, HeaderValue};

/// A language that the titles are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lang {
    /// The language of answers to callers that ask for none we have.
    #[default]
    English,
    /// For callers whose Accept-Language prefers `ko`.
    Korean,
}

impl Lang {
    /// The language tag of `Content-Language`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Korean => "ko",
        }
    }

    /// The language that an `Accept-Language` prefers (RFC 9110, 12.5.4): by quality, then by the
    /// order written. A region does not matter, `*` stands for what is not named, a quality of 0 is
    /// a refusal, and a range that cannot be read is passed over.
    pub fn from_accept_language(value: Option<&str>) -> Self {
        let (mut english, mut korean, mut any) = (None, None, None);
        for (place, range) in value.unwrap_or_default().split(',').enumerate() {
            let mut parts = range.split(';').map(str::trim);
            let language = parts.next().unwrap_or_default();
            let Some(quality) = quality(parts) else {
                continue;
            };
            // Earlier is greater, so that among equal qualities the first one written wins.
            let wish = (quality, usize::MAX - place);
            let primary = language.split('-').next().unwrap_or_default();
            let best = match primary {
                "*" => &mut any,
                _ if primary.eq_ignore_ascii_case("en") => &mut english,
                _ if primary.eq_ignore_ascii_case("ko") => &mut korean,
                _ => continue,
            };
            *best = (*best).max(Some(wish));
        }
        let refused = (0, 0);
        let english = english.or(any).unwrap_or(refused);
        let korean = korean.or(any).unwrap_or(refused);
        if korean.0 > 0 && korean > english {
            Self::Korean
        } else {
            Self::English
        }
    }

    /// [`Lang::from_accept_language`] of a request's headers.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        Self::from_header(headers.get(header::ACCEPT_LANGUAGE))
    }

    /// [`Lang::from_accept_language`] of that header, where it is there.
    pub fn from_header(value: Option<&HeaderValue>) -> Self {
        Self::from_accept_language(value.and_then(|value| value.to_str().ok()))
    }
}

/// The quality of a range in thousandths, 1000 where it has none, `None` where it cannot be read.
fn quality<'a>(mut parameters: impl Iterator<Item = &'a str>) -> Option<u16> {
    let Some(parameter) = parameters.next() else {
        return Some(1000);
    };
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") || parameters.next().is_some() {
        return None;
    }
    let (whole, thousandths) = value.trim().split_once('.').unwrap_or((value.trim(), ""));
    if thousandths.len() > 3 || !thousandths.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{thousandths:0<3}").parse().ok()?;
    match (whole, thousandths) {
        ("0", _) => Some(thousandths),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_language_is_read_by_quality_then_order() {
        let korean = [
            "ko",
            "ko-KR",
            "KO-kr",
            "ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7",
            "en;q=0.8, ko;q=0.9",
            "ko, en",
            "ja, ko;q=0.1",
            "en;q=0, *",
            "en;q=0.5, *;q=0.8",
            "ko ; Q=0.5",
            "en;q=2, ko;q=0.1",
            "en;q=0.8, ko;q=0.5, ko-KR;q=1.000",
        ];
        for value in korean {
            assert_eq!(Lang::from_accept_language(Some(value)), Lang::Korean, "{value}");
        }
        let english = [
            "",
            ",;,q=,",
            "en",
            "en, ko",
            "*",
            "ja",
            "fr-FR, *;q=0.5",
            "ko;q=0",
            "ko;q=0.000, ja",
            "ko;q=0, en;q=0",
            "en;q=0",
            "ko;q=0.5, en;q=0.501",
            "ko;q=abc, en;q=0.1",
            "ko;q=1.5",
            "ko;q=0.1234",
            "ko;q=-1",
            "ko;q",
            "ko;level=1",
            "ko;q=1;x",
            "kor",
            "k",
            "한국어;q=한",
        ];
        for value in english {
            assert_eq!(Lang::from_accept_language(Some(value)), Lang::English, "{value}");
        }
        assert_eq!(Lang::from_accept_language(None), Lang::English);
    }

    #[test]
    fn a_header_that_is_not_text_asks_for_no_language() {
        let mut headers = HeaderMap::new();
        assert_eq!(Lang::from_headers(&headers), Lang::English);
        let garbage = HeaderValue::from_bytes(b"ko\xff").unwrap();
        headers.insert(header::ACCEPT_LANGUAGE, garbage);
        assert_eq!(Lang::from_headers(&headers), Lang::English);
        headers.insert(header::ACCEPT_LANGUAGE, HeaderValue::from_static("ko-KR"));
        assert_eq!(Lang::from_headers(&headers), Lang::Korean);
    }
}
