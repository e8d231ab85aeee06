//! A room's broadcasts: its list, one of them, and what staff changes of one.

#![expect(
    unused_qualifications,
    reason = "in what the macros for the document make of query parameters"
)]

use std::{sync::Arc, time::Instant};

use actix_web::{HttpRequest, HttpResponse, web};
use chatting_actors::{
    broadcast::Broadcast,
    seams::StoreError,
    types::Role,
    wire::{object, v1::timestamp},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    answers::Asker,
    around::no_room,
    history::answer,
    identify::who,
    lines::long,
    openapi::{Asking, Often, Querying, WithBody},
    pages::{bad, id, limit, parameter, query, read, unread},
    state::State,
    v1::{read_body, room_of, wants_json},
};
use crate::{
    auth::Claims,
    error::{ApiError, Code, Lang},
    store::{StoredBroadcast, keeping::RecordChange},
};

/// 2000-01-01T00:00:00Z
const EARLIEST_START_MS: i64 = 946_684_800_000;

/// One broadcast.
#[derive(Serialize, ToSchema)]
#[schema(as = Broadcast)]
pub(super) struct BroadcastBody {
    id: Uuid,
    presenter_idx: i64,
    /// The room server's own number.
    room_idx: Option<i64>,
    /// RFC 3339, UTC, with milliseconds; where it was corrected, the corrected one.
    started_at: String,
    /// `null` while it goes on, or may go on.
    ended_at: Option<String>,
    /// How long it has been live, in milliseconds; interruptions do not count.
    live_ms: i64,
    /// When it was live.
    segments: Vec<SegmentBody>,
    /// Where its start was before it was corrected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    corrected_from: Option<String>,
    /// Whether nothing of it is ever removed; for operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    legal_hold: Option<bool>,
}

/// A stretch in which it was live.
#[derive(Serialize, ToSchema)]
#[schema(as = Segment)]
struct SegmentBody {
    from: String,
    to: Option<String>,
}

impl BroadcastBody {
    fn new(stored: &StoredBroadcast, caller: &Claims) -> Self {
        let StoredBroadcast {
            broadcast,
            corrected_start_ms,
            legal_hold,
        } = stored;
        let until = broadcast.until_ms();
        Self {
            id: broadcast.id,
            presenter_idx: broadcast.presenter.get(),
            room_idx: broadcast.room_idx,
            started_at: timestamp(corrected_start_ms.unwrap_or_else(|| broadcast.started_at_ms())),
            ended_at: broadcast.ended_at_ms.map(timestamp),
            live_ms: broadcast.length_ms(until, *corrected_start_ms),
            segments: broadcast
                .segments
                .iter()
                .map(|segment| SegmentBody {
                    from: timestamp(segment.from_ms),
                    to: segment.to_ms.map(timestamp),
                })
                .collect(),
            corrected_from: corrected_start_ms.map(|_| timestamp(broadcast.started_at_ms())),
            legal_hold: is_operator(caller).then_some(*legal_hold),
        }
    }
}

pub(super) fn is_operator(caller: &Claims) -> bool {
    caller.role == Role::Operator
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BroadcastsQuery {
    /// Older than this one: `next` of the page before.
    #[param(value_type = Option<Uuid>)]
    before: Option<String>,
    /// Broadcasts on the page, 1 to `history.page_max`.
    #[param(value_type = Option<u64>, minimum = 1, maximum = 500)]
    limit: Option<String>,
}

/// A page of a room's broadcasts.
#[derive(Serialize, ToSchema)]
pub(super) struct Broadcasts {
    /// The newest first.
    broadcasts: Vec<BroadcastBody>,
    /// To be given as `before`; `null` when there is no more.
    next: Option<Uuid>,
}

/// A room's broadcasts, present and past.
#[utoipa::path(
    get, path = "/v1/rooms/{presenter_idx}/broadcasts", operation_id = "get_broadcasts", tag = "history",
    params(("presenter_idx" = u64, Path, description = "The presenter's user number, which names the room", maximum = 9223372036854775807u64), BroadcastsQuery),
    responses((status = 200, description = "A page, the newest first", body = Broadcasts), Asking, Querying, Often)
)]
pub(super) async fn get_broadcasts(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<State>,
) -> HttpResponse {
    answer(&request, broadcasts(&request, &path, &state).await)
}

async fn broadcasts(request: &HttpRequest, path: &str, state: &State) -> Result<Broadcasts, ApiError> {
    let caller = who(request, state).await?;
    let presenter = room_of(path)?;
    let asked: BroadcastsQuery = query(request)?;
    let limit = limit(asked.limit.as_deref(), state)?;
    let before = parameter("before", asked.before.as_deref(), "an id that an answer gave as next")?;
    // One more tells whether there is a next page.
    let found = state
        .history_in(&caller, presenter)
        .broadcasts(presenter, before, limit + 1)
        .await;
    // What cannot be read is left out.
    let mut found = read(state, found)?.broadcasts;
    let more = found.len() > limit;
    found.truncate(limit);
    Ok(Broadcasts {
        next: found.last().filter(|_| more).map(|last| last.broadcast.id),
        broadcasts: found.iter().map(|stored| BroadcastBody::new(stored, &caller)).collect(),
    })
}

/// The broadcast that a path names. Whose it is is not known before, so a moderator of some rooms is one among viewers here.
pub(super) async fn find_broadcast(path: &str, caller: &Claims, state: &State) -> Result<StoredBroadcast, ApiError> {
    let found = state.history_for(caller).broadcast(id(path)?).await;
    read(state, found)?.ok_or_else(|| ApiError::new(Code::NotFound).with_detail("there is no such broadcast"))
}

/// One broadcast.
#[utoipa::path(
    get, path = "/v1/broadcasts/{id}", operation_id = "get_broadcast", tag = "history", params(("id" = Uuid, Path, description = "The broadcast")),
    responses((status = 200, description = "The broadcast", body = BroadcastBody), Asking, Often)
)]
pub(super) async fn get_broadcast(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<State>,
) -> HttpResponse {
    let result = async {
        let caller = who(&request, &state).await?;
        Ok(BroadcastBody::new(
            &find_broadcast(&path, &caller, &state).await?,
            &caller,
        ))
    };
    answer(&request, result.await)
}

/// What is changed of a broadcast: one of them at least, and both or neither.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Change {
    /// RFC 3339, of the year 2000 or later, and not in the future; `null` takes the correction back.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default, deserialize_with = "some")]
    started_at: Option<Option<String>>,
    /// Whether nothing of it may be removed; for operators.
    #[schema(nullable = false)]
    legal_hold: Option<bool>,
}

impl Change {
    pub(crate) fn read(body: &[u8]) -> Result<Self, ApiError> {
        object(body).map_err(|error| bad(&format!("the body is not valid: {error}")))
    }

    /// The start, where it is named, in milliseconds since 1970; `None` in it takes the correction back.
    pub(crate) fn start(&self) -> Result<Option<Option<i64>>, ApiError> {
        match &self.started_at {
            Some(start) => start.as_deref().map(start_of).transpose().map(Some),
            None if self.legal_hold.is_some() => Ok(None),
            None => Err(bad("the body names nothing to change: started_at or legal_hold")),
        }
    }
}

/// When a broadcast may have begun: at no time before anyone broadcast so.
fn start_of(text: &str) -> Result<i64, ApiError> {
    let start = text.parse::<Timestamp>().map(Timestamp::as_millisecond);
    let start = start.map_err(|_| bad("started_at: a time as in 2026-01-01T00:00:00.000Z"))?;
    if start < EARLIEST_START_MS {
        return Err(bad("started_at: it is before the year 2000"));
    }
    Ok(start)
}

/// Nor at one that has yet to come, by the system's clock or by that of its messages, which may be ahead.
fn is_not_behind(broadcast: &Broadcast, start: i64) -> Result<(), ApiError> {
    match broadcast.ended_at_ms {
        _ if start <= broadcast.until_ms() => Ok(()),
        Some(_) => Err(bad("started_at: it is after the broadcast's end")),
        None => Err(bad("started_at: it is in the future")),
    }
}

/// It may be there as `null`, which is not the same as not being there.
fn some<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Corrects a broadcast's start, and with it every offset, for staff of the room; puts it under legal hold, for operators.
#[utoipa::path(
    patch, path = "/v1/broadcasts/{id}", operation_id = "patch_broadcast", tag = "history", params(("id" = Uuid, Path, description = "The broadcast")), request_body = Change,
    responses((status = 200, description = "The broadcast as it is now", body = BroadcastBody), Asking, WithBody, Often)
)]
pub(super) async fn patch_broadcast(
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
    state: web::Data<State>,
) -> HttpResponse {
    match change(&request, &path, payload, &state).await {
        Ok(changed) => changed,
        Err(error) => error.response(Lang::from_headers(request.headers())),
    }
}

async fn change(
    request: &HttpRequest,
    path: &str,
    payload: web::Payload,
    state: &State,
) -> Result<HttpResponse, ApiError> {
    let caller = who(request, state).await?;
    let within = state.rates.senders.take(caller.user_idx, Instant::now());
    within.map_err(|often| {
        state.metrics.refuse(Code::RateLimited.as_str());
        often.error("this user corrects broadcasts too often")
    })?;
    let mut found = find_broadcast(path, &caller, state).await?;
    if !caller.is_staff_of(found.broadcast.presenter) {
        return Err(ApiError::new(Code::Forbidden).with_detail("staff of the room may correct its broadcasts"));
    }
    wants_json(request)?;
    let body = read_body(request, payload, &state.limits).await?;
    let change = Change::read(&body)?;
    if change.legal_hold.is_some() && !is_operator(&caller) {
        return Err(ApiError::new(Code::Forbidden).with_detail("operators may put a broadcast under legal hold"));
    }
    let start = change.start()?;
    if let Some(start) = start.flatten() {
        is_not_behind(&found.broadcast, start)?;
    }
    let hold = change.legal_hold;
    found.corrected_start_ms = start.unwrap_or(found.corrected_start_ms);
    found.legal_hold = hold.unwrap_or(found.legal_hold);
    // Not read again, and with its room in memory before anything is written: what has happened is not to be refused for want of either.
    let mut changed = answer(request, Ok(BroadcastBody::new(&found, &caller)));
    if let Some(bytes) = long(&changed) {
        let asker = Asker::of(&caller);
        let held = state.answers.hold(bytes, asker);
        let held = held.map_err(|why| no_room(why, asker, state))?;
        changed.extensions_mut().insert(held);
    }
    // Also what is so already is written: that it can be read does not mean that no failover takes it back.
    if !write(found.broadcast.id, start, hold, &caller, state).await? {
        // It is on its way there.
        return Err(ApiError::new(Code::LogUnavailable).with_detail("the store does not have this broadcast yet"));
    }
    Ok(changed)
}

/// Writes what is to change of a broadcast; false where the store does not have it. It is done to the end also when whoever asked has
/// gone: the store would, and the permit is for its work.
async fn write(
    id: Uuid,
    start: Option<Option<i64>>,
    hold: Option<bool>,
    caller: &Claims,
    state: &State,
) -> Result<bool, ApiError> {
    let only = state.one_at_a_time(caller, &state.correcting, "a correction")?;
    let permit = state.corrections.try_acquire(1);
    let permit = permit.ok_or_else(|| ApiError::new(Code::Overloaded).with_detail("the queue corrections is full"))?;
    let (store, by) = (Arc::clone(state.history.store()), caller.user_idx);
    let writing = actix_web::rt::spawn(async move {
        let _places = (permit, only);
        // Both at once: where one were done and the other refused, no answer would fit.
        let change = RecordChange {
            corrected_start_ms: start,
            hold,
        };
        if !store.change_broadcast(id, change).await? {
            return Ok(false);
        }
        if let Some(hold) = hold {
            let how = if hold { "under" } else { "no more under" };
            log::info!("broadcast {id}: {how} legal hold by user {by}");
        }
        Ok::<_, StoreError>(true)
    });
    let written = writing.await.map_err(|_| {
        state.http_failures.inc();
        ApiError::new(Code::OutcomeUnknown)
    })?;
    written.map_err(|error| unread(error.into()))
}
