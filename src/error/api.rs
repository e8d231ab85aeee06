//! A refusal as v1 routes answer it: `application/problem+json` (RFC 9457).
//!
//! A handler calls [`ApiError::response`] with the reader's language itself: actix-web would render an error without the request.

use std::fmt;

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
};
use serde::Serialize;

use super::{Code, Lang};

/// Seconds of Retry-After where the refusal names none.
pub const DEFAULT_RETRY_AFTER_SECONDS: u32 = 1;

/// A refusal on its way to a caller. Build it with [`ApiError::new`] and the methods that follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// What was refused.
    pub code: Code,
    /// This refusal in particular, in English. Never a secret, a token or another user's data.
    pub detail: Option<String>,
    /// When to try again; [`DEFAULT_RETRY_AFTER_SECONDS`] where the code asks for one and this is `None`.
    pub retry_after_seconds: Option<u32>,
    /// How many may come at once, where the refusal is that more did.
    pub limit: Option<u32>,
    /// Whether there was a token, and it was bad: RFC 6750 tells that apart from none at all.
    pub token_rejected: bool,
}

impl ApiError {
    /// A refusal with nothing to say beyond its title.
    pub fn new(code: Code) -> Self {
        Self {
            code,
            detail: None,
            retry_after_seconds: None,
            limit: None,
            token_rejected: code == Code::TokenExpired,
        }
    }

    /// Says what is wrong in particular.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Says how many may come at once, and in how many seconds the next one may.
    #[must_use]
    pub fn with_rate_limit(mut self, limit: u32, reset_seconds: u32) -> Self {
        self.limit = Some(limit);
        self.retry_after_seconds = Some(reset_seconds);
        self
    }

    /// Says that there was a token, and that it is what was refused.
    #[must_use]
    pub fn with_token_rejected(mut self) -> Self {
        self.token_rejected = true;
        self
    }

    /// The value of `Retry-After` in seconds, where the answer has one.
    pub fn retry_after(&self) -> Option<u32> {
        let default = self.code.retry_after().then_some(DEFAULT_RETRY_AFTER_SECONDS);
        self.retry_after_seconds.or(default)
    }

    /// The whole answer in the reader's language.
    pub fn response(&self, lang: Lang) -> HttpResponse {
        let status = self.code.status();
        let problem = Problem {
            kind: format!("urn:chatting-server:problem:{}", self.code),
            title: self.code.title(lang),
            status: status.as_u16(),
            code: self.code.as_str(),
            detail: self.detail.as_deref(),
        };
        let mut response = HttpResponse::build(status);
        response
            .content_type("application/problem+json")
            .insert_header((header::CONTENT_LANGUAGE, lang.as_str()))
            .insert_header((header::VARY, "Accept-Language"));
        if let Some(seconds) = self.retry_after() {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        if let (Some(limit), Some(reset)) = (self.limit, self.retry_after()) {
            for header in rate_limit(limit, reset) {
                response.insert_header(header);
            }
        }
        if status == StatusCode::UNAUTHORIZED {
            let challenge = if self.token_rejected {
                "Bearer error=\"invalid_token\""
            } else {
                "Bearer"
            };
            response.insert_header((header::WWW_AUTHENTICATE, challenge));
        }
        if self.code == Code::RequestTimeout {
            response.force_close();
        }
        // Serializing a struct of texts and a number cannot fail; an empty body would still have its status.
        response.body(serde_json::to_string(&problem).unwrap_or_default())
    }
}

/// The headers of a refusal for coming too often: how many may come at once, and in how many seconds the next one may.
pub fn rate_limit(limit: u32, reset_seconds: u32) -> [(&'static str, String); 3] {
    [
        ("RateLimit-Limit", limit.to_string()),
        ("RateLimit-Remaining", "0".to_owned()),
        ("RateLimit-Reset", reset_seconds.to_string()),
    ]
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{}: {detail}", self.code),
            None => write!(f, "{}", self.code),
        }
    }
}

impl std::error::Error for ApiError {}

/// The body of RFC 9457, with `code` as its extension member.
#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use actix_web::body::MessageBody;

    use super::*;

    fn header<'a>(response: &'a HttpResponse, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    fn body(response: HttpResponse) -> String {
        let bytes = response.into_body().try_into_bytes().unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn an_error_is_problem_json_in_the_readers_language() {
        let error = ApiError::new(Code::BroadcastEnded).with_detail("room \"12\"\n");
        let response = error.response(Lang::Korean);
        assert_eq!(response.status().as_u16(), 409);
        assert_eq!(header(&response, "content-type"), Some("application/problem+json"));
        assert_eq!(header(&response, "content-language"), Some("ko"));
        assert_eq!(header(&response, "vary"), Some("Accept-Language"));
        assert_eq!(header(&response, "retry-after"), None);
        assert_eq!(header(&response, "www-authenticate"), None);
        assert_eq!(
            body(response),
            concat!(
                r#"{"type":"urn:chatting-server:problem:broadcast_ended","#,
                r#""title":"방송 종료되었습니다","status":409,"code":"broadcast_ended","#,
                r#""detail":"room \"12\"\n"}"#
            )
        );

        let response = ApiError::new(Code::NotFound).response(Lang::default());
        assert_eq!(header(&response, "content-language"), Some("en"));
        assert!(!body(response).contains("detail"));
    }

    #[test]
    fn retry_after_is_there_where_a_retry_may_help() {
        let overloaded = ApiError::new(Code::Overloaded);
        assert_eq!(header(&overloaded.response(Lang::English), "retry-after"), Some("1"));
        let later = overloaded.with_rate_limit(5, 30);
        assert_eq!(header(&later.response(Lang::English), "retry-after"), Some("30"));
        let named = ApiError::new(Code::IdempotencyInProgress).with_rate_limit(1, 2);
        assert_eq!(header(&named.response(Lang::English), "retry-after"), Some("2"));
    }

    #[test]
    fn every_401_has_a_challenge_that_tells_a_bad_token_from_none() {
        let bad = Some("Bearer error=\"invalid_token\"");
        let cases = [
            (ApiError::new(Code::Unauthenticated), Some("Bearer")),
            (ApiError::new(Code::Unauthenticated).with_token_rejected(), bad),
            (ApiError::new(Code::TokenExpired), bad),
            (ApiError::new(Code::Forbidden), None),
        ];
        for (error, challenge) in cases {
            let response = error.response(Lang::English);
            assert_eq!(header(&response, "www-authenticate"), challenge, "{error}");
        }
    }
}
