//! What reading routes have in common: query parameters, and events as JSON, by what the reader may see.
//!
//! A deleted message keeps its place: to viewers it is a number, an id and a time; staff see all of it, with who deleted it and
//! when. Nor are viewers told by the act itself who did it, or whose messages it deleted.

use std::{io, str::FromStr, time::Instant};

use actix_web::HttpRequest;
use chatting_actors::{
    moderation::Act,
    seldom::Seldom,
    types::{Seq, UserIdx},
    wire::v1::timestamp,
};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use utoipa::ToSchema;
use uuid::Uuid;

use super::state::State;
use crate::{
    error::{ApiError, Code, DEFAULT_RETRY_AFTER_SECONDS},
    store::{Logged, history::HistoryError},
};

/// The query of a request; the error names what is wrong with it.
pub fn query<T: DeserializeOwned>(request: &HttpRequest) -> Result<T, ApiError> {
    actix_web::web::Query::<T>::from_query(request.query_string())
        .map(actix_web::web::Query::into_inner)
        .map_err(|error| bad(&format!("the query is not valid: {error}")))
}

/// A request that cannot be read, and why.
pub fn bad(detail: &str) -> ApiError {
    ApiError::new(Code::BadRequest).with_detail(detail)
}

/// A parameter of a query, all of which come as text so that a bad one can be named; what is allowed, in words.
pub fn parameter<T: FromStr>(name: &str, asked: Option<&str>, allowed: &str) -> Result<Option<T>, ApiError> {
    let read = asked.map(str::parse).transpose();
    read.map_err(|_| bad(&format!("{name}: {allowed}")))
}

/// `limit`, within `history.page_max`.
pub fn limit(asked: Option<&str>, state: &State) -> Result<usize, ApiError> {
    let max = state.limits.page_max;
    let allowed = format!("a whole number from 1 to {max}");
    match parameter("limit", asked, &allowed)? {
        None => Ok(state.limits.page_default),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(_) => Err(bad(&format!("limit: {allowed}"))),
    }
}

/// A user's number.
pub fn user(name: &str, asked: Option<&str>) -> Result<Option<UserIdx>, ApiError> {
    let allowed = "a whole number from 0 to 9223372036854775807";
    let number: Option<i64> = parameter(name, asked, allowed)?;
    let user = number.map(|number| UserIdx::new(number).ok_or_else(|| bad(&format!("{name}: {allowed}"))));
    user.transpose()
}

/// Milliseconds of a broadcast.
pub fn offset(name: &str, asked: Option<&str>) -> Result<Option<i64>, ApiError> {
    let allowed = "milliseconds of the broadcast, 0 or more";
    match parameter(name, asked, allowed)? {
        Some(offset) if offset < 0 => Err(bad(&format!("{name}: {allowed}"))),
        offset => Ok(offset),
    }
}

/// A time as RFC 3339, in milliseconds since 1970.
pub fn time(name: &str, asked: Option<&str>) -> Result<Option<i64>, ApiError> {
    let read = |text: &str| text.parse::<Timestamp>().map(Timestamp::as_millisecond);
    asked.map(read).transpose().map_err(|_| {
        bad(&format!(
            "{name}: a time as in 2026-01-01T00:00:00.000Z (a + is %2B in a query)"
        ))
    })
}

/// A seq of a query.
pub fn seq(name: &str, asked: Option<&str>) -> Result<Option<Seq>, ApiError> {
    let allowed = "a whole number from 0 to 9223372036854775807";
    match parameter(name, asked, allowed)? {
        Some(seq) if i64::try_from(seq).is_err() => Err(bad(&format!("{name}: {allowed}"))),
        seq => Ok(seq.map(Seq)),
    }
}

/// An id of a path.
pub fn id(path: &str) -> Result<Uuid, ApiError> {
    // One form only; in either case, as RFC 9562 has it.
    let id = Uuid::try_parse(path)
        .ok()
        .filter(|id| id.hyphenated().to_string().eq_ignore_ascii_case(path));
    id.ok_or_else(|| ApiError::new(Code::NotFound).with_detail("ids look like 019b76da-a800-7000-8000-000000000001"))
}

/// What was read of the log, counted by how that went; the error is in the words of the error table.
pub fn read<T>(state: &State, read: Result<T, HistoryError>) -> Result<T, ApiError> {
    state.metrics.history_reads.inc(match &read {
        // It was read, and gave more than is shown.
        Ok(_) | Err(HistoryError::TooMuch) => "ok",
        Err(HistoryError::Busy | HistoryError::Share(_)) => "busy",
        Err(HistoryError::Unavailable(_)) => "error",
    });
    read.map_err(unread)
}

/// Why the log was not read, in the words of the error table.
pub fn unread(error: HistoryError) -> ApiError {
    match error {
        HistoryError::Busy => ApiError::new(Code::Overloaded).with_detail("the queue readers is full"),
        HistoryError::Share(most) => ApiError::new(Code::RateLimited)
            .with_detail(format!("this user has reads of history under way: {most} at a time"))
            .with_rate_limit(u32::try_from(most).unwrap_or(u32::MAX), DEFAULT_RETRY_AFTER_SECONDS),
        HistoryError::TooMuch => ApiError::new(Code::BadRequest).with_detail(error.to_string()),
        HistoryError::Unavailable(why) => {
            // Anyone who may read can ask as often as they like.
            static TOLD: Seldom = Seldom::new();
            if let Some(more) = TOLD.due(Instant::now()) {
                log::warn!("history: the log cannot be read: {why}{more}");
            }
            ApiError::new(Code::LogUnavailable).with_detail("the log cannot be read now")
        }
    }
}

/// One event as JSON.
#[derive(Debug, Serialize, ToSchema)]
pub struct Item {
    /// `chat` or `moderation`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Its place in the room.
    seq: u64,
    /// The numbering that `seq` belongs to.
    epoch: String,
    /// UUIDv7.
    id: Uuid,
    /// RFC 3339, UTC, with milliseconds.
    sent_at: String,
    /// Milliseconds of the broadcast, where it is told of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub offset_ms: Option<i64>,
    /// The broadcast that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    broadcast_id: Option<Uuid>,
    /// There and true when it was deleted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    deleted: bool,
    /// When, for staff.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    deleted_at: Option<String>,
    /// By whom, for staff.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    deleted_by: Option<i64>,
    /// Who said it; left out of what was deleted, but for staff.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    user_idx: Option<i64>,
    /// The sender's name at that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    nickname: Option<String>,
    /// What was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    text: Option<String>,
    /// `viewer`, `presenter`, `moderator` or `operator`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    role: Option<&'static str>,
    /// Of `moderation`: `delete`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    action: Option<&'static str>,
    /// Of `moderation`: the message that was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    target_id: Option<Uuid>,
    /// Of `moderation`: its place in the room.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    target_seq: Option<u64>,
    /// Of `moderation`: the user whose messages were deleted, for staff; left out when that user was erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    target_user_idx: Option<i64>,
    /// Of `moderation`: everything from this time on was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    from: Option<String>,
    /// Of `moderation`: up to and including this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    to: Option<String>,
    /// Of `moderation`: who did it, for staff; left out when that user was erased.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    by: Option<i64>,
}

/// What is left of `history.page_bytes` on a page that is being filled.
pub struct Space(usize);

impl Space {
    /// All of it.
    pub fn new(state: &State) -> Self {
        Self(state.limits.page_bytes)
    }

    /// Whether this one, and all before it, still fit; from the first that does not on, none does.
    pub fn takes(&mut self, item: &Item) -> bool {
        let mut bytes = Length(0);
        // Counting cannot fail.
        let counted = serde_json::to_writer(&mut bytes, item).is_ok();
        let left = self.0.checked_sub(bytes.0).filter(|_| counted);
        self.0 = left.unwrap_or(0);
        left.is_some()
    }
}

/// Counts what is written.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A user's number, unless that user was erased.
fn known(user: UserIdx) -> Option<i64> {
    (user != UserIdx::ERASED).then(|| user.get())
}

impl Item {
    /// As a reader may see it; `staff`: of this room.
    pub fn new(logged: &Logged, staff: bool) -> Self {
        let event = &logged.event;
        let act = event.act.as_deref();
        let hidden = act.is_some() || event.is_erased() || (logged.deleted.is_some() && !staff);
        let shown = (!hidden).then_some(&event.chat);
        let span = match act {
            Some(Act::Span { from_ms, to_ms }) => Some((*from_ms, *to_ms)),
            _ => None,
        };
        let deleted = logged.deleted.filter(|_| staff);
        Self {
            kind: event.kind(),
            seq: event.seq.0,
            epoch: event.epoch.0.to_string(),
            id: event.id,
            sent_at: timestamp(event.sent_at_ms),
            offset_ms: None,
            broadcast_id: event.broadcast_id,
            deleted: logged.deleted.is_some(),
            deleted_at: deleted.map(|deleted| timestamp(deleted.at_ms)),
            deleted_by: deleted.and_then(|deleted| known(deleted.by)),
            user_idx: shown.map(|chat| chat.user_idx.get()),
            nickname: shown.map(|chat| chat.nickname.as_str().to_owned()),
            text: shown.map(|chat| chat.text.as_str().to_owned()),
            role: shown.map(|chat| chat.role.as_str()),
            action: act.map(|_| "delete"),
            target_id: match act {
                Some(Act::Message { id, .. }) => Some(*id),
                _ => None,
            },
            target_seq: match act {
                Some(Act::Message { seq, .. }) => Some(seq.0),
                _ => None,
            },
            target_user_idx: match act {
                // Whoever knows it knows whose the deleted messages are.
                Some(Act::User { user_idx }) if staff => known(*user_idx),
                _ => None,
            },
            from: span.map(|(from_ms, _)| timestamp(from_ms)),
            to: span.map(|(_, to_ms)| timestamp(to_ms)),
            by: act.filter(|_| staff).and_then(|_| known(event.chat.user_idx)),
        }
    }
}
