//! A room server asked over HTTP with awc (docs/ROOM-SERVER.md).
//!
//! Only a 200 with a boolean `data.alive` is an answer (rule 9). No redirect is followed and no more than
//! `room.max_answer_bytes` are read, so that a room server gone wrong costs no more than its own answer.

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use actix_http::error::ParseError;
use actix_web::http::{StatusCode, header};
use awc::{
    Client, Connector,
    error::{ConnectError, SendRequestError},
};
use chatting_actors::{
    seams::{Liveness, RoomApi, RoomApiError},
    types::PresenterIdx,
};
use futures_util::future::{FutureExt, LocalBoxFuture};
use jiff::Timestamp;
use serde_json::{Value, json};

/// How the room server is reached.
#[derive(Clone, Debug)]
pub struct HttpRoomSettings {
    /// `room.base_url`; ends in `/room/live`.
    pub base_url: String,
    /// `room.reconnect_url`; empty for `base_url` + `/reconnect`. With "off" the registry never asks.
    pub reconnect_url: String,
    /// `room.content_type`
    pub content_type: String,
    /// `room.timeout_ms`
    pub timeout: Duration,
    /// `room.max_answer_bytes`
    pub max_answer_bytes: usize,
    /// `room.max_lookups`
    pub max_lookups: usize,
    /// `room.max_reconnects`
    pub max_reconnects: usize,
}

/// Asks the room server whether a presenter is live, and to make one connect again. An answer comes within
/// `room.timeout_ms`; what is none is an error that says whether it is about the question or about the room server
/// ([`RoomApiError`]). Not `Send`: it lives on the checker's arbiter.
pub struct HttpRooms {
    client: Client,
    check_url: String,
    reconnect_url: String,
    content_type: String,
    max_answer_bytes: usize,
}

impl HttpRooms {
    /// A client; connects when it is first used, and keeps connections open between questions.
    pub fn new(settings: HttpRoomSettings) -> Self {
        let base = settings.base_url.trim_end_matches('/');
        Self {
            check_url: format!("{base}/check"),
            reconnect_url: match settings.reconnect_url.as_str() {
                "" => format!("{base}/reconnect"),
                url => url.to_owned(),
            },
            client: Client::builder()
                .connector(
                    Connector::new()
                        // Room for every lookup and for the requests to reconnect beside them.
                        .limit(settings.max_lookups + settings.max_reconnects)
                        // It has times of its own, which are not to be over before the setting's is.
                        .timeout(settings.timeout)
                        .handshake_timeout(settings.timeout),
                )
                .disable_redirects()
                .timeout(settings.timeout)
                .finish(),
            content_type: settings.content_type,
            max_answer_bytes: settings.max_answer_bytes,
        }
    }

    /// Asks, once more where the connection ends with the question if it may be asked `twice`.
    fn post(
        &self,
        url: &str,
        presenter: PresenterIdx,
        twice: bool,
    ) -> LocalBoxFuture<'static, Result<Vec<u8>, RoomApiError>> {
        let body = json!({ "presenterIdx": presenter.to_string() }).to_string();
        let request = || {
            self.client
                .post(url)
                .insert_header((header::CONTENT_TYPE, self.content_type.as_str()))
        };
        let (first, second) = (request().send_body(body.clone()), twice.then(request));
        let limit = self.max_answer_bytes;
        async move {
            let answer = match (first.await, second) {
                (Err(error), Some(second)) if ended_unanswered(&error) => second.send_body(body).await,
                (answer, _) => answer,
            };
            let mut answer = answer.map_err(|error| match error {
                SendRequestError::Timeout => RoomApiError::Timeout,
                other => RoomApiError::Unusable(other.to_string()),
            })?;
            if answer.status() != StatusCode::OK {
                return Err(refusal(answer.status()));
            }
            let body = answer.body().limit(limit).await;
            body.map(|body| body.to_vec())
                .map_err(|error| RoomApiError::Unusable(error.to_string()))
        }
        .boxed_local()
    }
}

/// Whether the connection ended instead of an answer, as one does that was kept open and that the room server shuts just when it is
/// asked. That says nothing about the room server.
fn ended_unanswered(error: &SendRequestError) -> bool {
    let was_cut = |error: &io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    match error {
        SendRequestError::Connect(ConnectError::Disconnected) => true,
        SendRequestError::Send(error) | SendRequestError::Response(ParseError::Io(error)) => was_cut(error),
        _ => false,
    }
}

/// A status other than 200: about the question, or about the room server itself.
fn refusal(status: StatusCode) -> RoomApiError {
    let of_itself = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    let told = format!("status {}", status.as_u16());
    if status.is_client_error() && !of_itself.contains(&status) {
        RoomApiError::Refused(told)
    } else {
        RoomApiError::Unusable(told)
    }
}

impl RoomApi for HttpRooms {
    fn check(&self, presenter: PresenterIdx) -> LocalBoxFuture<'static, Result<Liveness, RoomApiError>> {
        // Whether somebody is live may be asked twice (RFC 9110, 9.2.2).
        let answer = self.post(&self.check_url, presenter, true);
        async move { parse(&answer.await?) }.boxed_local()
    }

    fn request_reconnect(&self, presenter: PresenterIdx) -> LocalBoxFuture<'static, Result<(), RoomApiError>> {
        let answer = self.post(&self.reconnect_url, presenter, false);
        async move { answer.await.map(|_| ()) }.boxed_local()
    }
}

/// Reads `{"data":{"alive":true,"roomIdx":7,"startedAt":"2026-01-01T00:00:00Z","endedAt":null}}`. Only `alive` must be there. The
/// number may come as text, the times as RFC 3339 or as milliseconds since 1970; what cannot be read counts as not told.
pub(crate) fn parse(body: &[u8]) -> Result<Liveness, RoomApiError> {
    let unusable = |_| RoomApiError::Unusable("the answer is not JSON".to_owned());
    let refused = |why: &str| RoomApiError::Refused(why.to_owned());
    let answer: Value = serde_json::from_slice(body).map_err(unusable)?;
    let data = answer.get("data").ok_or_else(|| refused("the answer has no data"))?;
    let live = data
        .get("alive")
        .and_then(Value::as_bool)
        .ok_or_else(|| refused("data.alive is not a boolean"))?;
    let room_idx = data.get("roomIdx").and_then(|value| match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    });
    let time = |key| match data.get(key)? {
        Value::String(text) => text.parse::<Timestamp>().ok().map(Timestamp::as_millisecond),
        // What is no time at all must not be reckoned with.
        other => other
            .as_i64()
            .filter(|ms| *ms >= 0 && Timestamp::from_millisecond(*ms).is_ok()),
    };
    Ok(Liveness {
        live,
        room_idx,
        started_at_ms: time("startedAt"),
        ended_at_ms: time("endedAt"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_broadcast_is_read_where_it_is_told() {
        let times = |text: &str| {
            let answer = parse(text.as_bytes()).unwrap();
            (answer.started_at_ms, answer.ended_at_ms)
        };
        assert_eq!(times(r#"{"data":{"alive":true}}"#), (None, None));
        assert_eq!(
            times(r#"{"data":{"alive":false,"startedAt":"2026-01-01T09:00:00+09:00","endedAt":1767225601000}}"#),
            (Some(1_767_225_600_000), Some(1_767_225_601_000))
        );
        assert_eq!(
            times(r#"{"data":{"alive":true,"startedAt":"yesterday","endedAt":null}}"#),
            (None, None)
        );
        assert_eq!(
            times(r#"{"data":{"alive":true,"startedAt":-9223372036854775808,"endedAt":9223372036854775807}}"#),
            (None, None)
        );
    }

    #[test]
    fn the_answer_that_docs_room_server_md_shows_is_one() {
        // Read, not taken in: the image is built without the documents.
        let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ROOM-SERVER.md")).unwrap();
        let shown = document.split("```json\n").nth(1).and_then(|rest| rest.lines().next());
        let answer = parse(shown.unwrap().as_bytes()).unwrap();
        let times = (answer.started_at_ms, answer.ended_at_ms);
        assert_eq!(
            (answer.live, answer.room_idx, times),
            (true, Some(7), (Some(1_767_225_600_000), None))
        );
    }

    #[test]
    fn rule_09_only_a_boolean_alive_is_an_answer() {
        let live = |text: &str| parse(text.as_bytes()).map(|answer| (answer.live, answer.room_idx)).ok();
        assert_eq!(
            live(r#"{"timestamp":"t","message":"m","data":{"alive":true}}"#),
            Some((true, None))
        );
        assert_eq!(live(r#"{"data":{"alive":false,"roomIdx":7}}"#), Some((false, Some(7))));
        assert_eq!(live(r#"{"data":{"alive":true,"roomIdx":"9"}}"#), Some((true, Some(9))));
        assert_eq!(live(r#"{"data":{"alive":true,"roomIdx":"x"}}"#), Some((true, None)));
        for bad in [
            "",
            "true",
            "[]",
            "{}",
            r#"{"data":{}}"#,
            r#"{"data":null}"#,
            r#"{"alive":true}"#,
            r#"{"data":{"alive":"true"}}"#,
            r#"{"data":{"alive":1}}"#,
            r#"{"data":{"alive":null}}"#,
        ] {
            assert_eq!(live(bad), None, "{bad}");
        }
    }
}
