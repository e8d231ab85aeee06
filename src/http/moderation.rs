//! Deletion: an act of the room's staff, which takes a place in the room's order.

#![expect(
    unused_qualifications,
    reason = "in what the macros for the document make of query parameters"
)]

use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, web};
use chatting_actors::{
    moderation::Act,
    outcome::{Accepted, Outcome, Submit},
    types::{ChatMessage, MessageText, Nickname, PresenterIdx},
    wire::v1::timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    history::answer,
    identify::who,
    openapi::{Acting, Asking, Querying},
    pages::{bad, id, query, read, time, user},
    state::State,
    v1::{outcome, refused, room_of},
};
use crate::{
    auth::Claims,
    error::{ApiError, Code},
};

/// What was done, as JSON.
#[derive(Serialize, ToSchema)]
#[schema(as = Deletion)]
pub(super) struct Done {
    /// The act's own id.
    id: Uuid,
    /// Its place in the room.
    seq: u64,
    epoch: String,
    /// RFC 3339, UTC, with milliseconds.
    sent_at: String,
}

/// Deletes one message: it keeps its place, and viewers no longer see what it said. For staff of the room.
#[utoipa::path(
    delete, path = "/v1/rooms/{presenter_idx}/messages/{id}", operation_id = "delete_message", tag = "moderation",
    params(("presenter_idx" = u64, Path, description = "The presenter's user number, which names the room", maximum = 9223372036854775807u64), ("id" = Uuid, Path, description = "The message")),
    responses(
        (status = 200, description = "Deleted: the act and its place in the room", body = Done),
        (status = 204, description = "It was deleted before"),
        Asking, Acting
    )
)]
pub(super) async fn delete_message(
    request: HttpRequest,
    path: web::Path<(String, String)>,
    state: web::Data<State>,
) -> HttpResponse {
    let (room, message) = path.into_inner();
    let result = async {
        let (caller, presenter) = staff(&request, &room, &state).await?;
        let history = state.history_for_deletion(&caller);
        let found = history.find(presenter, id(&message)?).await;
        let found = read(&state, found)?.filter(|logged| logged.event.act.is_none());
        let found = found.ok_or_else(|| ApiError::new(Code::NotFound).with_detail("there is no such message"))?;
        if found.deleted.is_some() {
            return Ok(None);
        }
        let act = Act::Message {
            id: found.event.id,
            seq: found.event.seq,
        };
        act_on(caller, presenter, act, &state).await.map(Some)
    };
    match result.await {
        // Deleted before: there is nothing left to do.
        Ok(None) => HttpResponse::NoContent().finish(),
        Ok(Some(done)) => answer(&request, Ok(done)),
        Err(error) => answer::<Done>(&request, Err(error)),
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Everything that this user has said so far.
    #[param(value_type = Option<u64>, maximum = 9223372036854775807u64)]
    user_idx: Option<String>,
    /// Everything that was sent from this time on; RFC 3339.
    #[param(format = DateTime)]
    from: Option<String>,
    /// Up to and including this one.
    #[param(format = DateTime)]
    to: Option<String>,
}

/// Deletes all of a user, or a time range: `user_idx`, or `from` and `to`. For staff of the room.
#[utoipa::path(
    delete, path = "/v1/rooms/{presenter_idx}/messages", operation_id = "delete_messages", tag = "moderation", params(("presenter_idx" = u64, Path, description = "The presenter's user number, which names the room", maximum = 9223372036854775807u64), Which),
    responses(
        (status = 200, description = "Deleted: the act and its place in the room", body = Done), Asking, Querying, Acting
    )
)]
pub(super) async fn delete_messages(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<State>,
) -> HttpResponse {
    let result = async {
        let (caller, presenter) = staff(&request, &path, &state).await?;
        let which: Which = query(&request)?;
        let times = (time("from", which.from.as_deref())?, time("to", which.to.as_deref())?);
        let act = match (user("user_idx", which.user_idx.as_deref())?, times) {
            (Some(user_idx), (None, None)) => Act::User { user_idx },
            (None, (Some(from_ms), Some(to_ms))) if from_ms <= to_ms => Act::Span { from_ms, to_ms },
            (None, (Some(_), Some(_))) => return Err(bad("from: it is after to")),
            _ => return Err(bad("name what is to be deleted: user_idx, or from and to")),
        };
        let often = within_bulk_rate(&caller, presenter, &state);
        often.inspect_err(|error| state.metrics.refuse(error.code.as_str()))?;
        act_on(caller, presenter, act, &state).await
    };
    answer(&request, result.await)
}

/// Who asks, and of which room; only its staff may go on. Counts a refusal.
async fn staff(request: &HttpRequest, room: &str, state: &State) -> Result<(Claims, PresenterIdx), ApiError> {
    let staff = known_staff(request, room, state).await;
    staff.inspect_err(|error| state.metrics.refuse(error.code.as_str()))
}

async fn known_staff(request: &HttpRequest, room: &str, state: &State) -> Result<(Claims, PresenterIdx), ApiError> {
    let caller = who(request, state).await?;
    let within = state.rates.senders.take(caller.user_idx, Instant::now());
    within.map_err(|often| often.error("this user deletes too often"))?;
    let presenter = room_of(room)?;
    if !caller.is_staff_of(presenter) {
        return Err(ApiError::new(Code::Forbidden).with_detail("staff of the room may delete messages"));
    }
    Ok((caller, presenter))
}

/// However little it finds, the store goes through a past of any length for each of them, and whatever else is to be stored waits. So
/// these come far less often than others, from one user and in one room: everybody is staff of a room of their own.
fn within_bulk_rate(caller: &Claims, presenter: PresenterIdx, state: &State) -> Result<(), ApiError> {
    let (rates, now) = (&state.rates, Instant::now());
    let of_caller = rates.bulk_deletes.take(caller.user_idx, now);
    of_caller.map_err(|often| often.error("this user deletes by user or by time too often"))?;
    let in_room = rates.room_bulk_deletes.take(presenter, now);
    in_room.map_err(|often| often.error("in this room messages are deleted by user or by time too often"))
}

async fn act_on(caller: Claims, presenter_idx: PresenterIdx, act: Act, state: &State) -> Result<Done, ApiError> {
    let max = state.limits.nickname_chars;
    let nickname: String = caller
        .nickname
        .as_deref()
        .unwrap_or_default()
        .chars()
        .take(max)
        .collect();
    let submit = Submit {
        presenter_idx,
        chat: ChatMessage {
            user_idx: caller.user_idx,
            role: caller.role_in(presenter_idx),
            nickname: Nickname::new(&nickname, max).map_err(|_| ApiError::new(Code::Internal))?,
            text: MessageText::maybe_empty(String::new(), 0).map_err(|_| ApiError::new(Code::Internal))?,
        },
        act: Some(std::sync::Arc::new(act)),
        keyed: None,
    };
    match outcome(submit, state).await {
        Outcome::Accepted(Accepted {
            id,
            seq,
            epoch,
            sent_at_ms,
            ..
        }) => Ok(Done {
            id,
            seq: seq.0,
            epoch: epoch.0.to_string(),
            sent_at: timestamp(sent_at_ms),
        }),
        Outcome::Refused(refusal) => Err(refused(refusal)),
    }
}
