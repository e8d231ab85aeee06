//! The old server's two shapes of an error, and its Korean texts (docs/LEGACY.md).

use actix_web::{
    HttpResponse,
    http::{Method, StatusCode, header},
};
use chatting_actors::clock::system_ms;
use serde::Serialize;

use crate::{
    auth::TokenError,
    error::{ApiError, Code, DEFAULT_RETRY_AFTER_SECONDS, Lang, rate_limit},
};

/// Live, no session, and the sender is a viewer.
pub const NO_SESSION: &str = "세션이 존재하지 않습니다. 재연결 중입니다. 잠시 후에 다시 보내주세요..";
/// Live, no session, and the sender is the presenter.
pub const NO_SESSION_PRESENTER: &str = "세션이 존재하지 않습니다. 재연결을 해주세요.";
/// Not live.
pub const NOT_LIVE: &str = "해당 스트리머는 현재 방송 중이지 않습니다.";

/// An error of the old server's own: `{"timestamp":…,"status":…,"message":…,"path":…}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyError {
    code: Code,
    status: StatusCode,
    body_status: u16,
    message: String,
    retry_after: Option<u32>,
    /// How many may come at once, where the refusal is that more did.
    limit: Option<u32>,
}

#[derive(Serialize)]
struct OwnBody<'a> {
    timestamp: &'a str,
    status: u16,
    message: &'a str,
    path: &'a str,
}

impl LegacyError {
    /// 400 with a message.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            code: Code::BadRequest,
            status,
            body_status: status.as_u16(),
            message: message.into(),
            retry_after: None,
            limit: None,
        }
    }

    /// The presenter's own message while no session is there: a 202 that is a refusal too.
    pub fn presenter_without_session() -> Self {
        Self {
            status: StatusCode::ACCEPTED,
            ..Self::bad_request(NO_SESSION_PRESENTER)
        }
    }

    /// A refused token: 400 with `"status":401` in the body. One that cannot be judged now is not refused for good.
    pub fn from_token(error: TokenError) -> Self {
        if error == TokenError::KeysUnavailable {
            return Self::from_code(error.code(), Some(DEFAULT_RETRY_AFTER_SECONDS));
        }
        Self {
            code: error.code(),
            body_status: 401,
            ..Self::bad_request(error.legacy_text())
        }
    }

    /// A code without a row of its own here: its status and Retry-After, with its Korean title.
    pub fn from_code(code: Code, retry_after: Option<u32>) -> Self {
        Self {
            code,
            retry_after,
            ..Self::new(code.status(), code.title(Lang::Korean))
        }
    }

    /// What v1 would say, as [`Self::from_code`].
    pub fn from_api(error: &ApiError) -> Self {
        Self {
            limit: error.limit,
            ..Self::from_code(error.code, error.retry_after())
        }
    }

    /// The row of the error table that it comes from, or comes nearest.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The whole answer. `timestamp` is the wall clock of the legacy zone.
    pub fn response(&self, timestamp: &str, path: &str) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        response.insert_header((header::CONTENT_TYPE, "application/json"));
        if let Some(seconds) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        if let (Some(limit), Some(reset)) = (self.limit, self.retry_after) {
            for header in rate_limit(limit, reset) {
                response.insert_header(header);
            }
        }
        if self.code == Code::RequestTimeout {
            response.force_close();
        }
        response.body(json(&OwnBody {
            timestamp,
            status: self.body_status,
            message: &self.message,
            path: repeated(path),
        }))
    }
}

/// An error of the old server's framework: `{"timestamp":…,"status":…,"error":…,"message":"","path":…}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameworkError {
    /// 400: unreadable JSON.
    BadRequest,
    /// 404
    NotFound,
    /// 405, with the method that is allowed.
    MethodNotAllowed(Method),
    /// 415
    UnsupportedMediaType,
}

#[derive(Serialize)]
struct FrameworkBody<'a> {
    timestamp: String,
    status: u16,
    error: &'a str,
    message: &'a str,
    path: &'a str,
}

impl FrameworkError {
    /// The whole answer.
    pub fn response(&self, path: &str) -> HttpResponse {
        let status = match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        };
        let mut response = HttpResponse::build(status);
        response.insert_header((header::CONTENT_TYPE, "application/json"));
        if let Self::MethodNotAllowed(allow) = self {
            response.insert_header((header::ALLOW, allow.as_str()));
        }
        response.body(json(&FrameworkBody {
            timestamp: utc(system_ms()),
            status: status.as_u16(),
            error: status.canonical_reason().unwrap_or_default(),
            message: "",
            path: repeated(path),
        }))
    }
}

/// The most bytes of a path that an error repeats. A client may ask for one of 128 KiB.
const PATH_MAX: usize = 1024;

/// As much of a path as an error repeats.
fn repeated(path: &str) -> &str {
    &path[..path.floor_char_boundary(PATH_MAX)]
}

/// Serializing texts and numbers cannot fail; an empty body would still have its status.
fn json(body: &impl Serialize) -> String {
    serde_json::to_string(body).unwrap_or_default()
}

/// `2026-01-01T00:00:00.000+00:00`
fn utc(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(
        |_| String::new(),
        |time| time.strftime("%Y-%m-%dT%H:%M:%S%.3f+00:00").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use actix_web::body::MessageBody;

    use super::*;

    fn text(response: HttpResponse) -> (u16, String) {
        let status = response.status().as_u16();
        let body = response.into_body().try_into_bytes().ok().unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn the_old_servers_own_errors_are_the_same_to_the_byte() {
        let shown = |error: LegacyError| text(error.response("2026-01-01 09:00:00", "/send/message"));
        assert_eq!(
            shown(LegacyError::bad_request(NOT_LIVE)),
            (400, r#"{"timestamp":"2026-01-01 09:00:00","status":400,"message":"해당 스트리머는 현재 방송 중이지 않습니다.","path":"/send/message"}"#.into())
        );
        assert_eq!(
            shown(LegacyError::presenter_without_session()),
            (202, r#"{"timestamp":"2026-01-01 09:00:00","status":400,"message":"세션이 존재하지 않습니다. 재연결을 해주세요.","path":"/send/message"}"#.into())
        );
        assert_eq!(
            shown(LegacyError::from_token(TokenError::Expired)),
            (400, r#"{"timestamp":"2026-01-01 09:00:00","status":401,"message":"토큰이 만료되었습니다.","path":"/send/message"}"#.into())
        );
    }

    #[test]
    fn the_frameworks_errors_have_its_shape() {
        let (status, body) = text(FrameworkError::MethodNotAllowed(Method::POST).response("/send/message"));
        assert_eq!(status, 405);
        assert!(body.starts_with(r#"{"timestamp":"20"#), "{body}");
        assert!(
            body.ends_with(r#"+00:00","status":405,"error":"Method Not Allowed","message":"","path":"/send/message"}"#)
        );
        assert_eq!(utc(1_767_225_600_000), "2026-01-01T00:00:00.000+00:00");
    }

    #[test]
    fn a_path_that_is_longer_than_any_of_ours_is_not_repeated_to_its_end() {
        for path in ["/".repeat(1024), format!("{}한", "/".repeat(1023)), "/".repeat(100_000)] {
            let own = text(LegacyError::bad_request(NOT_LIVE).response("t", &path)).1;
            let framework = text(FrameworkError::NotFound.response(&path)).1;
            for said in [own, framework] {
                let said: serde_json::Value = serde_json::from_str(&said).unwrap();
                let shown = said["path"].as_str().unwrap();
                assert!(
                    path.starts_with(shown) && (1023..=1024).contains(&shown.len()),
                    "{said}"
                );
            }
        }
    }

    #[test]
    fn a_code_without_a_row_keeps_its_status_and_says_it_in_korean() {
        let response = LegacyError::from_code(Code::LogUnavailable, Some(1)).response("t", "/send/message");
        assert_eq!(response.headers().get("retry-after").unwrap(), "1");
        let (status, body) = text(response);
        assert_eq!(status, 503);
        assert!(body.contains(Code::LogUnavailable.title(Lang::Korean)), "{body}");
    }
}
