//! The one table of errors: what a refusal is called, and what it is in HTTP, on a WebSocket and in
//! a reader's language.
//!
//! Every layer has its own error type and turns it into a [`Code`] at its edge; nothing else decides
//! a status of v1 or writes a title. v1 routes answer with an [`ApiError`], which is
//! `application/problem+json` (RFC 9457). Legacy routes take the status, the Retry-After and the
//! Korean title from here too and put them into their own body, but for what the old server had a
//! status and a text of its own for (`crate::legacy::error`).

mod api;
mod lang;

use std::fmt;

use actix_web::http::StatusCode;

pub use self::{
    api::{ApiError, DEFAULT_RETRY_AFTER_SECONDS, rate_limit},
    lang::Lang,
};

/// One row of the table.
struct Row {
    name: &'static str,
    status: StatusCode,
    close: Option<u16>,
    english: &'static str,
    korean: &'static str,
    retry_after: bool,
}

/// Makes the enum, the list of its variants and their rows from one list, so that a code without a
/// row, or a row without a code, does not compile.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal, $status:ident, $close:expr, $retry:literal,
        $english:literal, $korean:literal;)*) => {
        /// A stable reason for a refusal (docs/SENDING.md, "Refusals").
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $code,)* }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];

            fn row(self) -> Row {
                match self {
                    $(Self::$code => Row {
                        name: $name,
                        status: StatusCode::$status,
                        close: $close,
                        english: $english,
                        korean: $korean,
                        retry_after: $retry,
                    },)*
                }
            }
        }
    };
}

// code = name, HTTP status, WebSocket close code, Retry-After, English title, Korean title
codes! {
    /// A chat message breaks a rule about its content.
    InvalidMessage = "invalid_message", UNPROCESSABLE_ENTITY, None, false,
        "The message is not valid", "메시지가 올바르지 않습니다";
    /// A request that cannot be read: broken JSON, a query parameter that is no number.
    BadRequest = "bad_request", BAD_REQUEST, None, false,
        "The request is not valid", "요청이 올바르지 않습니다";
    /// No token, or one that is not valid.
    Unauthenticated = "unauthenticated", UNAUTHORIZED, Some(4001), false,
        "A valid token is needed", "유효한 토큰이 필요합니다";
    /// The token was good until it expired.
    TokenExpired = "token_expired", UNAUTHORIZED, Some(4002), false,
        "The token has expired", "토큰이 만료되었습니다";
    /// What tokens are checked with cannot be fetched, so nobody can be told apart now.
    KeysUnavailable = "keys_unavailable", SERVICE_UNAVAILABLE, Some(1013), true,
        "Tokens cannot be checked now", "지금은 토큰을 확인할 수 없습니다";
    /// The caller is known and may not do this.
    Forbidden = "forbidden", FORBIDDEN, None, false,
        "This is not allowed", "권한이 없습니다";
    /// The caller may not chat in this room.
    Banned = "banned", FORBIDDEN, None, false,
        "You are banned from this chat", "채팅이 금지되었습니다";
    /// The presenter is not live.
    BroadcastEnded = "broadcast_ended", CONFLICT, Some(1000), false,
        "The broadcast has ended", "방송 종료되었습니다";
    /// The room is live, but its presenter has no session that could take the message.
    PresenterDisconnected = "presenter_disconnected", SERVICE_UNAVAILABLE, None, true,
        "The presenter is not connected", "스트리머와 연결되어 있지 않습니다";
    /// A queue on the way is full, or the server is about to stop.
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, Some(1013), true,
        "The server is too busy", "서버가 혼잡합니다";
    /// The room server gave no answer that counts (rule 9).
    RoomServerUnavailable = "room_server_unavailable", SERVICE_UNAVAILABLE, None, true,
        "Whether the presenter is live cannot be checked now", "방송 상태를 확인할 수 없습니다";
    /// The log cannot be written or read now; a message that cannot be logged is not accepted.
    LogUnavailable = "log_unavailable", SERVICE_UNAVAILABLE, Some(1013), true,
        "The chat log is not available now", "지금은 채팅 기록을 이용할 수 없습니다";
    /// The sender, or the room, is over its limit.
    RateLimited = "rate_limited", TOO_MANY_REQUESTS, Some(1008), true,
        "Too many requests", "요청이 너무 많습니다";
    /// The key was used before for something else.
    IdempotencyConflict = "idempotency_conflict", UNPROCESSABLE_ENTITY, None, false,
        "The Idempotency-Key was used for another message",
        "다른 메시지에 이미 사용된 Idempotency-Key입니다";
    /// The first request with this key has no answer yet.
    IdempotencyInProgress = "idempotency_in_progress", CONFLICT, None, false,
        "A request with this Idempotency-Key is still running",
        "같은 Idempotency-Key의 요청을 처리하고 있습니다";
    /// Begun, and whether it was done cannot be known: a message or an act was numbered (retry with the same key, rule 1), a correction
    /// given to the store.
    OutcomeUnknown = "outcome_unknown", GATEWAY_TIMEOUT, None, false,
        "Whether it was done is not known", "처리되었는지 알 수 없습니다";
    /// The body or the frame is over the limit.
    TooLarge = "too_large", PAYLOAD_TOO_LARGE, Some(1009), false,
        "The request is too large", "요청이 너무 큽니다";
    /// There is nothing here.
    NotFound = "not_found", NOT_FOUND, None, false,
        "There is nothing here", "찾을 수 없습니다";
    /// The path exists, but not with this method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, None, false,
        "The method is not allowed here", "허용되지 않은 메서드입니다";
    /// The path is a WebSocket's.
    UpgradeRequired = "upgrade_required", UPGRADE_REQUIRED, None, false,
        "A WebSocket is needed here", "WebSocket 연결이 필요합니다";
    /// The body did not come whole within `server.body_seconds`.
    RequestTimeout = "request_timeout", REQUEST_TIMEOUT, None, false,
        "The request did not arrive in time", "요청이 제시간에 도착하지 않았습니다";
    /// The body is of a type that is not read here.
    UnsupportedMediaType = "unsupported_media_type", UNSUPPORTED_MEDIA_TYPE, None, false,
        "The media type is not supported", "지원하지 않는 미디어 타입입니다";
    /// A v1 session's frame cannot be read, or says what cannot be.
    BadFrame = "bad_frame", BAD_REQUEST, Some(4004), false,
        "The frame is not valid", "프레임이 올바르지 않습니다";
    /// A newer session of the same presenter is there.
    Replaced = "replaced", CONFLICT, Some(4003), false,
        "A newer session has taken over", "새로운 연결로 대체되었습니다";
    /// A session took nothing for `session.stall_seconds`.
    TooSlow = "too_slow", REQUEST_TIMEOUT, Some(4005), false,
        "The connection is too slow", "연결이 너무 느립니다";
    /// A v1 session sent no `hello` in time.
    NoHello = "no_hello", REQUEST_TIMEOUT, Some(4006), false,
        "No hello came in time", "제시간에 hello를 받지 못했습니다";
    /// A session answered no keepalive.
    KeepaliveMissed = "keepalive_missed", REQUEST_TIMEOUT, Some(4007), false,
        "The keepalive was not answered", "연결 확인에 응답이 없습니다";
    /// A fault of ours.
    Internal = "internal", INTERNAL_SERVER_ERROR, None, false,
        "The server made a mistake", "서버 오류가 발생했습니다";
}

impl Code {
    /// The stable name, as in `code` of a problem and of a v1 `error` frame.
    pub fn as_str(self) -> &'static str {
        self.row().name
    }

    /// The inverse of [`Code::as_str`]; `None` for any other name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == name)
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        self.row().status
    }

    /// The code a v1 session is closed with for this; `None` where a session is not closed for it.
    pub fn close_code(self) -> Option<u16> {
        self.row().close
    }

    /// One sentence for people, without the full stop.
    pub fn title(self, lang: Lang) -> &'static str {
        match lang {
            Lang::English => self.row().english,
            Lang::Korean => self.row().korean,
        }
    }

    /// Whether trying the same again later may work, so that the answer says when.
    pub fn retry_after(self) -> bool {
        self.row().retry_after
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use chatting_actors::session::Close;

    use super::*;

    #[test]
    fn the_table_is_complete_unique_and_in_both_languages() {
        let (mut names, mut titles) = (HashSet::new(), HashSet::new());
        for &code in Code::ALL {
            let name = code.as_str();
            assert!(names.insert(name), "{name} twice");
            assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            assert_eq!(Code::parse(name), Some(code));
            assert!(code.status().is_client_error() || code.status().is_server_error());
            let (english, korean) = (code.title(Lang::English), code.title(Lang::Korean));
            assert!(!english.is_empty() && english.is_ascii(), "{name}");
            assert!(korean.chars().any(|c| ('가'..='힣').contains(&c)), "{name}");
            assert!(titles.insert(english) && titles.insert(korean), "{name}: a title twice");
            if let Some(close) = code.close_code() {
                let standard = [1000, 1008, 1009, 1013].contains(&close);
                assert!(standard || (4001..=4007).contains(&close), "{name}");
            }
        }
        assert_eq!(Code::parse("no_such_code"), None);
    }

    #[test]
    fn the_codes_of_the_design_have_its_statuses() {
        let rows = [
            ("invalid_message", 422, false),
            ("unauthenticated", 401, false),
            ("token_expired", 401, false),
            ("keys_unavailable", 503, true),
            ("forbidden", 403, false),
            ("banned", 403, false),
            ("broadcast_ended", 409, false),
            ("presenter_disconnected", 503, true),
            ("overloaded", 503, true),
            ("room_server_unavailable", 503, true),
            ("log_unavailable", 503, true),
            ("rate_limited", 429, true),
            ("idempotency_conflict", 422, false),
            ("idempotency_in_progress", 409, false),
            ("outcome_unknown", 504, false),
            ("too_large", 413, false),
            ("not_found", 404, false),
            ("method_not_allowed", 405, false),
            ("upgrade_required", 426, false),
            ("unsupported_media_type", 415, false),
            ("internal", 500, false),
            ("bad_frame", 400, false),
            ("replaced", 409, false),
            ("too_slow", 408, false),
            ("no_hello", 408, false),
            ("keepalive_missed", 408, false),
        ];
        for (name, status, retry_after) in rows {
            let code = Code::parse(name).unwrap();
            assert_eq!(code.status().as_u16(), status, "{name}");
            assert_eq!(code.retry_after(), retry_after, "{name}");
        }
        assert_eq!(Code::BroadcastEnded.title(Lang::Korean), "방송 종료되었습니다");
        assert_eq!(Code::Unauthenticated.close_code(), Some(4001));
        assert_eq!(Code::TokenExpired.close_code(), Some(4002));
        assert_eq!(Code::BadFrame.close_code(), Some(4004));
    }

    #[test]
    fn a_session_is_closed_as_the_table_says() {
        for close in Close::ALL {
            if let Some(problem) = close.problem() {
                let code = Code::parse(problem).unwrap_or_else(|| panic!("{problem} has no row"));
                assert_eq!(code.close_code(), Some(close.code()), "{problem}");
            }
        }
    }
}
