//! The routes by which the log is read, and a room's messages in pages. Its broadcasts are in `broadcasts.rs`, the replay beside the
//! recorded video in `replay.rs`.

#![expect(
    unused_qualifications,
    reason = "in what the macros for the document make of query parameters"
)]

use actix_web::{
    Error, HttpRequest, HttpResponse,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, AcceptEncoding, Encoding, Header},
    middleware::{Compress, Next, from_fn},
    web,
};
use chatting_actors::types::Seq;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    broadcasts::{get_broadcast, get_broadcasts, patch_broadcast},
    export::get_export,
    identify::who,
    moderation::delete_message,
    openapi::{Asking, Often, Querying},
    pages::{Item, Space, bad, limit, query, read, seq, time, user},
    replay::get_replay,
    state::State,
    stats::get_stats,
    v1::{only, room_of},
};
use crate::{
    error::{ApiError, Lang},
    store::history::{Folded, Page, Query, Start},
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
        )
        .service(
            web::resource("/v1/broadcasts/{id}/export")
                // Of all answers only these are long enough; a WebSocket's must never be compressed.
                .wrap(Compress::default())
                .wrap(from_fn(in_any_coding))
                .route(web::get().to(get_export))
                .default_service(web::to(super::v1::only_get)),
        );
}

/// Where no coding that there is will do (`identity;q=0`), a file as it is serves its client better than a 406, which RFC 9110, section
/// 15.5.7, leaves to us.
async fn in_any_coding<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let codings = [Encoding::identity(), Encoding::gzip(), Encoding::deflate()];
    let asked = AcceptEncoding::parse(&request);
    if asked.is_ok_and(|asked| asked.negotiate(codings.iter()).is_none()) {
        request.headers_mut().remove(header::ACCEPT_ENCODING);
    }
    next.call(request).await
}

/// An answer that is never kept: what it shows may be deleted a moment later.
pub(super) fn answer<T: Serialize>(request: &HttpRequest, result: Result<T, ApiError>) -> HttpResponse {
    match result {
        Ok(body) => HttpResponse::Ok()
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .json(body),
        Err(error) => error.response(Lang::from_headers(request.headers())),
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct MessagesQuery {
    /// The newest messages before this seq; without it and `after`, the newest of all.
    #[param(value_type = Option<u64>, maximum = 9223372036854775807u64)]
    before: Option<String>,
    /// The oldest messages after this seq.
    #[param(value_type = Option<u64>, maximum = 9223372036854775807u64)]
    after: Option<String>,
    /// Messages on the page, 1 to `history.page_max`; it may end earlier, at `history.page_bytes`.
    #[param(value_type = Option<u64>, minimum = 1, maximum = 500)]
    limit: Option<String>,
    /// Of this user only.
    #[param(value_type = Option<u64>, maximum = 9223372036854775807u64)]
    user_idx: Option<String>,
    /// With this in their text, whatever its case and composition. A page may have none and still name a next one.
    #[param(max_length = 2000)]
    q: Option<String>,
    /// Sent at this time or later; RFC 3339.
    #[param(format = DateTime)]
    from: Option<String>,
    /// Sent at this time or earlier.
    #[param(format = DateTime)]
    to: Option<String>,
}

/// A page of a room's events.
#[derive(Serialize, ToSchema)]
pub(super) struct Messages {
    /// In the order of seqs.
    messages: Vec<Item>,
    /// To be given as `before` or `after` again, whichever was given; `null` when there is no more.
    next: Option<u64>,
}

/// Reads a room's messages back, page by page in either direction.
#[utoipa::path(
    get, path = "/v1/rooms/{presenter_idx}/messages", operation_id = "get_messages", tag = "history",
    params(("presenter_idx" = u64, Path, description = "The presenter's user number, which names the room", maximum = 9223372036854775807u64), MessagesQuery),
    responses((status = 200, description = "A page, in the order of seqs", body = Messages), Asking, Querying, Often)
)]
pub(super) async fn get_messages(
    request: HttpRequest,
    path: web::Path<String>,
    state: web::Data<State>,
) -> HttpResponse {
    answer(&request, messages(&request, &path, &state).await)
}

async fn messages(request: &HttpRequest, path: &str, state: &State) -> Result<Messages, ApiError> {
    let caller = who(request, state).await?;
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
    let page = state.history_in(&caller, presenter).page(&query).await;
    let Page { mut events, mut next } = read(state, page)?;
    let newest_first = matches!(start, Start::Before(_));
    if newest_first {
        events.reverse();
    }
    let (mut messages, mut space, mut last) = (Vec::new(), Space::new(state), None);
    for logged in events {
        let (seq, item) = (logged.event.seq, Item::new(&logged, staff));
        // One is on it whatever its length, and events with the same number stay together.
        if !space.takes(&item) && last.is_some_and(|last| last != seq) {
            next = last;
            break;
        }
        last = Some(seq);
        messages.push(item);
    }
    if newest_first {
        messages.reverse();
    }
    Ok(Messages {
        messages,
        next: next.map(|seq| seq.0),
    })
}
