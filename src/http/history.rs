//! The log as it is read: a room's messages in pages, its broadcasts, and the replay beside the recorded video.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use chatting_actors::{
    types::{Role, Seq},
    wire::v1::timestamp,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    identify::caller,
    moderation::delete_message,
    pages::{Item, bad, id, limit, offset, parameter, query, seq, time, unread, user},
    state::State,
    stats::get_stats,
    v1::{is_json, only, read_body, room_of},
};
use crate::{
    auth::Claims,
    error::{ApiError, Code, Lang},
    store::{
        StoredBroadcast,
        history::{Folded, Query, ReplayPlace, Start},
    },
};

/// Adds the routes; those of `/v1/rooms/{presenter_idx}/messages` itself are in `v1.rs`.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/v1/rooms/{presenter_idx}/messages/{id}")
                .route(web::delete().to(delete_message))
                .default_service(web::to(|request: HttpRequest| async move { only(&request, "DELETE") })),
        )
        .service(
            web::resource("/v1/rooms/{presenter_idx}/broadcasts")
                .route(web::get().to(get_broadcasts))
                .default_service(web::to(super::v1::only_get)),
        )
        .service(
            web::resource("/v1/broadcasts/{id}")
                .route(web::get().to(get_broadcast))
                .route(web::patch().to(patch_broadcast))
                .default_service(web::to(
                    |request: HttpRequest| async move { only(&request, "GET, PATCH") },
                )),
        )
        .service(
            web::resource("/v1/broadcasts/{id}/stats")
                .route(web::get().to(get_stats))
                .default_service(web::to(super::v1::only_get)),
        )
        .service(
            web::resource("/v1/broadcasts/{id}/replay")
                .route(web::get().to(get_replay))
                .default_service(web::to(super::v1::only_get)),
        );
}

/// An answer that is never kept: what it shows may be deleted a moment later.
pub(super) fn answer<T: Serialize>(request: &HttpRequest, state: &State, result: Result<T, ApiError>) -> HttpResponse {
    match result {
        Ok(body) => HttpResponse::Ok()
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .json(body),
        Err(error) => state.last_answer(error.response(Lang::from_headers(request.headers()))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessagesQuery {
    before: Option<String>,
    after: Option<String>,
    limit: Option<String>,
    user_idx: Option<String>,
    q: Option<String>,
    from: Option<String>,
    to: Option<String>,
}

#[derive(Serialize)]
struct Messages {
    /// In the order of seqs.
    messages: Vec<Item>,
    /// To be given as `before` or `after` again, whichever was given; `null` when there is no more.
    next: Option<u64>,
}

pub(super) async fn get_messages(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<State>,
) -> HttpResponse {
    answer(&request, &state, messages(&request, &path, &state).await)
}

async fn messages(request: &HttpRequest, path: &str, state: &State) -> Result<Messages, ApiError> {
    let caller = caller(request, state)?;
    let presenter = room_of(path)?;
    let asked: MessagesQuery = query(request)?;
    let start = match (
        seq("before", asked.before.as_deref())?,
        seq("after", asked.after.as_deref())?,
    ) {
        (Some(_), Some(_)) => return Err(bad("before and after: one of them, not both")),
        (None, Some(after)) => Start::After(after),
        (before, None) => Start::Before(before.unwrap_or(Seq(i64::MAX.cast_unsigned()))),
    };
    let text = asked.q.as_deref().filter(|q| !q.is_empty());
    if text.is_some_and(|q| q.chars().count() > state.limits.text_chars) {
        let max = state.limits.text_chars;
        return Err(bad(&format!("q: it is longer than {max} characters")));
    }
    let staff = caller.is_staff_of(presenter);
    let query = Query {
        presenter,
        start,
        user: user("user_idx", asked.user_idx.as_deref())?,
        text: text.map(Folded::new),
        from_ms: time("from", asked.from.as_deref())?,
        to_ms: time("to", asked.to.as_deref())?,
        // A deleted text must not be told by whether it is found.
        deleted_too: staff,
        limit: limit(asked.limit.as_deref(), state)?,
        scan_limit: state.limits.scan_limit,
    };
    let page = state.history.page(&query).await.map_err(unread)?;
    Ok(Messages {
        messages: page.events.iter().map(|logged| Item::new(logged, staff)).collect(),
        next: page.next.map(|seq| seq.0),
    })
}

/// One broadcast as JSON.
#[derive(Serialize)]
struct BroadcastBody {
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
    corrected_from: Option<String>,
    /// Whether nothing of it is ever removed; for operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    legal_hold: Option<bool>,
}

#[derive(Serialize)]
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
        let until = broadcast.ended_at_ms.unwrap_or_else(chatting_actors::clock::system_ms);
        Self {
            id: broadcast.id,
            presenter_idx: broadcast.presenter.get(),
            room_idx: broadcast.room_idx,
            started_at: timestamp(corrected_start_ms.unwrap_or_else(|| broadcast.started_at_ms())),
            ended_at: broadcast.ended_at_ms.map(timestamp),
            live_ms: broadcast.offset_ms(until, *corrected_start_ms),
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

fn is_operator(caller: &Claims) -> bool {
    caller.role == Role::Operator
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BroadcastsQuery {
    before: Option<String>,
    limit: Option<String>,
}

#[derive(Serialize)]
struct Broadcasts {
    /// The newest first.
    broadcasts: Vec<BroadcastBody>,
    /// To be given as `before`; `null` when there is no more.
    next: Option<Uuid>,
}

async fn get_broadcasts(request: HttpRequest, path: web::Path<String>, state: web::Data<State>) -> HttpResponse {
    answer(&request, &state, broadcasts(&request, &path, &state).await)
}

async fn broadcasts(request: &HttpRequest, path: &str, state: &State) -> Result<Broadcasts, ApiError> {
    let caller = caller(request, state)?;
    let presenter = room_of(path)?;
    let asked: BroadcastsQuery = query(request)?;
    let limit = limit(asked.limit.as_deref(), state)?;
    let before = parameter("before", asked.before.as_deref(), "an id that an answer gave as next")?;
    let found = state.history.broadcasts(presenter, before, limit).await;
    let found = found.map_err(unread)?;
    Ok(Broadcasts {
        next: found
            .last()
            .filter(|_| found.len() == limit)
            .map(|last| last.broadcast.id),
        broadcasts: found.iter().map(|stored| BroadcastBody::new(stored, &caller)).collect(),
    })
}

/// The broadcast that a path names.
pub(super) async fn find_broadcast(path: &str, state: &State) -> Result<StoredBroadcast, ApiError> {
    let found = state.history.broadcast(id(path)?).await.map_err(unread)?;
    found.ok_or_else(|| ApiError::new(Code::NotFound).with_detail("there is no such broadcast"))
}

async fn get_broadcast(request: HttpRequest, path: web::Path<String>, state: web::Data<State>) -> HttpResponse {
    let result = async {
        let caller = caller(&request, &state)?;
        Ok(BroadcastBody::new(&find_broadcast(&path, &state).await?, &caller))
    };
    answer(&request, &state, result.await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    /// RFC 3339; `null` takes the correction back.
    #[serde(default, deserialize_with = "some")]
    started_at: Option<Option<String>>,
    /// Whether nothing of it may be removed; for operators.
    legal_hold: Option<bool>,
}

/// It may be there as `null`, which is not the same as not being there.
fn some<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

async fn patch_broadcast(
    request: HttpRequest,
    path: web::Path<String>,
    payload: web::Payload,
    state: web::Data<State>,
) -> HttpResponse {
    answer(&request, &state, change(&request, &path, payload, &state).await)
}

async fn change(
    request: &HttpRequest,
    path: &str,
    payload: web::Payload,
    state: &State,
) -> Result<BroadcastBody, ApiError> {
    let caller = caller(request, state)?;
    let found = find_broadcast(path, state).await?;
    if !caller.is_staff_of(found.broadcast.presenter) {
        return Err(ApiError::new(Code::Forbidden).with_detail("staff of the room may correct its broadcasts"));
    }
    if !is_json(request) {
        return Err(ApiError::new(Code::UnsupportedMediaType).with_detail("Content-Type: application/json is needed"));
    }
    let body = read_body(request, payload, state.limits.body_bytes).await?;
    let change: Change =
        serde_json::from_slice(&body).map_err(|error| bad(&format!("the body is not valid: {error}")))?;
    if change.legal_hold.is_some() && !is_operator(&caller) {
        return Err(ApiError::new(Code::Forbidden).with_detail("operators may put a broadcast under legal hold"));
    }
    let start = match &change.started_at {
        Some(start) => Some(time("started_at", start.as_deref())?),
        None if change.legal_hold.is_some() => None,
        None => return Err(bad("the body names nothing to change: started_at or legal_hold")),
    };
    if start
        .flatten()
        .zip(found.broadcast.ended_at_ms)
        .is_some_and(|(start, end)| start > end)
    {
        return Err(bad("started_at: it is after the broadcast's end"));
    }
    let (store, id) = (state.history.store(), found.broadcast.id);
    let unread = |error: chatting_actors::seams::StoreError| unread(error.into());
    let mut there = true;
    if let Some(start) = start {
        there = store.correct_broadcast(id, start).await.map_err(unread)?;
    }
    if let Some(hold) = change.legal_hold.filter(|_| there) {
        there = store.hold_broadcast(id, hold).await.map_err(unread)?;
        log::info!(
            "broadcast {id}: {} legal hold by user {}",
            if hold { "under" } else { "no more under" },
            caller.user_idx
        );
    }
    if !there {
        // It is on its way there.
        return Err(ApiError::new(Code::LogUnavailable).with_detail("the store does not have this broadcast yet"));
    }
    Ok(BroadcastBody::new(&find_broadcast(path, state).await?, &caller))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayQuery {
    from_ms: Option<String>,
    to_ms: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct Replay {
    broadcast_id: Uuid,
    /// In the order of the broadcast.
    messages: Vec<Item>,
    /// To be given as `cursor`; `null` when there is no more. A broadcast that goes on has always more to come.
    next: Option<String>,
}

async fn get_replay(request: HttpRequest, path: web::Path<String>, state: web::Data<State>) -> HttpResponse {
    answer(&request, &state, replay(&request, &path, &state).await)
}

fn read_cursor(text: &str) -> Option<ReplayPlace> {
    let (span, after) = text.split_once('.')?;
    Some(ReplayPlace {
        span: span.parse().ok()?,
        after: Seq(after.parse().ok().filter(|seq| i64::try_from(*seq).is_ok())?),
    })
}

async fn replay(request: &HttpRequest, path: &str, state: &State) -> Result<Replay, ApiError> {
    let caller = caller(request, state)?;
    let asked: ReplayQuery = query(request)?;
    let limit = limit(asked.limit.as_deref(), state)?;
    let StoredBroadcast {
        broadcast,
        corrected_start_ms,
        ..
    } = find_broadcast(path, state).await?;
    let staff = caller.is_staff_of(broadcast.presenter);
    let (from, to) = (
        offset("from_ms", asked.from_ms.as_deref())?,
        offset("to_ms", asked.to_ms.as_deref())?,
    );
    let before_ms = match to {
        None => i64::MAX,
        Some(to) => broadcast.time_at(to, corrected_start_ms).unwrap_or(i64::MAX),
    };
    let place = match (&asked.cursor, from.unwrap_or(0)) {
        (Some(cursor), _) => read_cursor(cursor).ok_or_else(|| bad("cursor: one that an answer gave as next"))?,
        (None, 0) => ReplayPlace::default(),
        (None, from) => match broadcast.time_at(from, corrected_start_ms) {
            Some(from_ms) => state.history.replay_from(&broadcast, from_ms).await.map_err(unread)?,
            None => {
                return Ok(Replay {
                    broadcast_id: broadcast.id,
                    messages: Vec::new(),
                    next: None,
                });
            }
        },
    };
    let (events, behind) = state
        .history
        .replay(&broadcast, place, before_ms, limit)
        .await
        .map_err(unread)?;
    let messages = events
        .iter()
        .filter(|logged| staff || (logged.deleted.is_none() && logged.event.act.is_none()));
    let messages = messages.map(|logged| {
        let mut item = Item::new(logged, staff);
        item.offset_ms = Some(broadcast.offset_ms(logged.event.sent_at_ms, corrected_start_ms));
        item
    });
    let goes_on = broadcast.ended_at_ms.is_none() && to.is_none();
    let next = behind.or_else(|| goes_on.then_some(place));
    Ok(Replay {
        broadcast_id: broadcast.id,
        messages: messages.collect(),
        next: next.map(|place| format!("{}.{}", place.span, place.after.0)),
    })
}
