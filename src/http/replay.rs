//! The replay of a broadcast's chat beside its recorded video.

#![expect(
    unused_qualifications,
    reason = "in what the macros for the document make of query parameters"
)]

use actix_web::{HttpRequest, HttpResponse, web};
use chatting_actors::types::Seq;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    broadcasts::find_broadcast,
    history::answer,
    identify::who,
    openapi::{Asking, Often, Querying},
    pages::{Item, Space, bad, limit, offset, query, read},
    state::State,
};
use crate::{
    error::ApiError,
    store::{
        Logged, StoredBroadcast,
        history::{Behind, ReplayPlace},
    },
};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReplayQuery {
    /// From this offset on, in milliseconds of the broadcast.
    #[param(value_type = Option<u64>, maximum = 9223372036854775807u64)]
    from_ms: Option<String>,
    /// Up to and without this offset.
    #[param(value_type = Option<u64>, maximum = 9223372036854775807u64)]
    to_ms: Option<String>,
    /// Messages on the page, 1 to `history.page_max`; it may end earlier, at `history.page_bytes`.
    #[param(value_type = Option<u64>, minimum = 1, maximum = 500)]
    limit: Option<String>,
    /// `next` of the page before: from there on, with the same `from_ms` and `to_ms`.
    #[param(pattern = "^[0-9]{1,9}\\.[0-9]{1,18}$")]
    cursor: Option<String>,
}

/// A page of a broadcast's messages with their offsets.
#[derive(Serialize, ToSchema)]
pub(super) struct Replay {
    broadcast_id: Uuid,
    /// In the order of the broadcast.
    messages: Vec<Item>,
    /// To be given as `cursor`; `null` when there is no more. Of a broadcast that goes on there is more to come until `to_ms` is over, and
    /// some seconds after that; for longer while a message that was sent before is not on the disk yet.
    next: Option<String>,
}

/// The chat of a broadcast beside its recorded video.
#[utoipa::path(
    get, path = "/v1/broadcasts/{id}/replay", operation_id = "get_replay", tag = "history", params(("id" = Uuid, Path, description = "The broadcast"), ReplayQuery),
    responses((status = 200, description = "A page, in the order of the broadcast", body = Replay), Asking, Querying, Often)
)]
pub(super) async fn get_replay(request: HttpRequest, path: web::Path<String>, state: web::Data<State>) -> HttpResponse {
    answer(&request, replay(&request, &path, &state).await)
}

pub(crate) fn cursor(place: ReplayPlace) -> String {
    format!("{}.{}", place.span, place.after.0)
}

pub(crate) fn read_cursor(text: &str) -> Option<ReplayPlace> {
    let (span, after) = text.split_once('.')?;
    Some(ReplayPlace {
        span: span.parse().ok()?,
        after: Seq(after.parse().ok().filter(|seq| i64::try_from(*seq).is_ok())?),
    })
}

async fn replay(request: &HttpRequest, path: &str, state: &State) -> Result<Replay, ApiError> {
    let caller = who(request, state).await?;
    let asked: ReplayQuery = query(request)?;
    let limit = limit(asked.limit.as_deref(), state)?;
    let StoredBroadcast {
        broadcast,
        corrected_start_ms,
        ..
    } = find_broadcast(path, &caller, state).await?;
    let staff = caller.is_staff_of(broadcast.presenter);
    let from = offset("from_ms", asked.from_ms.as_deref())?.unwrap_or(0);
    let to = offset("to_ms", asked.to_ms.as_deref())?;
    let before_ms = match to {
        None => i64::MAX,
        Some(to) => broadcast.time_at(to, corrected_start_ms).unwrap_or(i64::MAX),
    };
    // Before the log is read: what settles meanwhile may not be in what was read.
    let goes_on = broadcast.goes_on_before(before_ms, state.health.writer.settled_ms());
    let history = state.history_in(&caller, broadcast.presenter);
    let place = match &asked.cursor {
        Some(cursor) => read_cursor(cursor).ok_or_else(|| bad("cursor: one that an answer gave as next"))?,
        None => match broadcast.time_at(from, corrected_start_ms) {
            Some(i64::MIN) => ReplayPlace::default(),
            Some(from_ms) => read(state, history.replay_from(&broadcast, from_ms).await)?,
            // Interrupted before that, and it may go on: behind all that there is.
            None if goes_on => read(state, history.replay_from(&broadcast, i64::MAX).await)?,
            None => {
                return Ok(Replay {
                    broadcast_id: broadcast.id,
                    messages: Vec::new(),
                    next: None,
                });
            }
        },
    };
    let page = read(state, history.replay(&broadcast, place, before_ms, limit).await)?;
    let offset_of = |logged: &Logged| broadcast.offset_ms(logged.event.sent_at_ms, corrected_start_ms);
    let shown = page
        .events
        .iter()
        .filter(|logged| staff || (logged.deleted.is_none() && logged.event.act.is_none()))
        // A cursor may be of when the window had yet to begin, or the start to be corrected.
        .filter(|logged| offset_of(logged) >= from);
    let more = match page.behind {
        Behind::More => true,
        Behind::Nothing => goes_on,
        Behind::Later => false,
    };
    let mut next = more.then_some(page.place);
    let (mut messages, mut space, mut last) = (Vec::new(), Space::new(state), None);
    for logged in shown {
        let mut item = Item::new(logged, staff);
        item.offset_ms = Some(offset_of(logged));
        let seq = logged.event.seq;
        // What has the same number stays together.
        if !space.takes(&item)
            && let Some(after) = last.filter(|last| *last != seq)
        {
            next = Some(ReplayPlace { after, ..page.place });
            break;
        }
        last = Some(seq);
        messages.push(item);
    }
    Ok(Replay {
        broadcast_id: broadcast.id,
        messages,
        next: next.map(cursor),
    })
}
