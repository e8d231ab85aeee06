//! What is around every handler: one middleware, so that a request is boxed once and not once a layer.
//!
//! From the outside in: a request is under way on its connection ([`UnderWay`]); CORS ([`Asked`]); a panic is answered
//! ([`Panicked`]); a long answer has room in memory or is refused ([`super::answers`]). Innermost is the router, but for the one
//! path that nearly every request has: `POST /v1/rooms/{n}/messages` is known by its text, without trying the router's patterns in
//! turn. The router reads what is encoded in a path. Of v1 it gets no such path: whoever decides by the path before us sees the words that
//! the router sees, and nothing there needs to be encoded. (Ids of broadcasts may be in capitals, as some clients write UUIDs.)

use std::sync::Arc;

use actix_web::{
    Error, FromRequest, HttpMessage, HttpRequest, HttpResponse,
    body::{BodySize, EitherBody, MessageBody},
    dev::{RequestHead, ServiceRequest, ServiceResponse},
    error::ErrorInternalServerError,
    http::{
        ConnectionType, Method, StatusCode, Version,
        header::{CONNECTION, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};

use super::{
    answers::{Asker, Held, NoRoom},
    caught::Panicked,
    chunked::Chunked,
    cors::Asked,
    lines::{Line, UnderWay, Watched, long},
    state::State,
    surface::{Surface, surface},
    v1,
};
use crate::error::{ApiError, Code, DEFAULT_RETRY_AFTER_SECONDS, Lang};

/// The middleware. A connection keeps room for its future as long as it lives, and a WebSocket lives long: what is large is in
/// boxes.
pub async fn around<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<Watched<EitherBody<B>>>, Error> {
    let under_way = UnderWay::new(request.conn_data::<Arc<Line>>());
    let state = request.app_data::<web::Data<State>>().cloned();
    let state = state.ok_or_else(|| ErrorInternalServerError("no state"))?;
    let chunked = Chunked::of(&mut request).await;
    let surface = surface(request.match_info().as_str(), &state);
    let asked = Asked::by(&request, surface, &state);
    let preflight = asked.as_ref().and_then(|asked| asked.preflight(&request, &state));
    let mut response = match preflight {
        Some(response) => request.into_response(response).map_into_right_body(),
        None => {
            let panicked = Panicked::over(&request, surface, &state, asked.as_ref());
            if request.method() == Method::POST && room_of_messages(request.path()).is_some() {
                let answer = panicked.unless(Box::pin(message(request, state.clone())));
                answer.await?.map_into_right_body()
            } else if surface == Surface::V1 && request.path().contains('%') {
                let lang = Lang::from_headers(request.headers());
                let refusal = v1::not_plain(request.match_info().as_str()).response(lang);
                request.into_response(refusal).map_into_right_body()
            } else {
                panicked.unless(next.call(request)).await?.map_into_left_body()
            }
        }
    };
    let mut held = response.response_mut().extensions_mut().remove::<Held>();
    if held.is_none()
        && let Some(bytes) = long(response.response())
    {
        let asker = asker(response.request(), surface);
        match state.answers.hold(bytes, asker) {
            Ok(room) => held = Some(room),
            Err(why) => {
                let request = response.request().clone();
                let lang = Lang::from_headers(request.headers());
                let refusal = surface.refuse(&no_room(why, asker, &state), lang, request.path(), &state);
                response = ServiceResponse::new(request, refusal).map_into_right_body();
            }
        }
    }
    if let Some(asked) = asked {
        asked.tell(response.headers_mut());
    }
    end_of_connection(&mut response, state.health.is_draining(), state.keep_alive.as_ref());
    let session = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    // A session reads on.
    let unread = chunked.filter(|chunked| session || chunked.is_unread());
    Ok(response.map_body(|_, body| under_way.until_end_of(body, session, held, unread)))
}

/// The same, of what the connection makes of an answer, where nothing else is around the handlers.
pub async fn around_ops<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<Watched<B>>, Error> {
    let under_way = UnderWay::new(None);
    let chunked = Chunked::of(&mut request).await;
    let state = request.app_data::<web::Data<State>>().cloned();
    let mut response = next.call(request).await?;
    end_of_connection(
        &mut response,
        state.is_some_and(|state| state.health.is_draining()),
        None,
    );
    let unread = chunked.filter(|chunked| chunked.is_unread());
    Ok(response.map_body(|_, body| under_way.until_end_of(body, false, None, unread)))
}

/// Says that an answer is its connection's last, where it is. The dispatcher takes every `Connection: upgrade` for one that is taken up:
/// it would repeat it in the answer and end the connection behind it, which the client would keep for its next request. And HTTP/1.0
/// has no chunks (RFC 9112, section 6.1), so that only the connection's end tells where a stream's is. While the server stops each answer
/// is the last: pools of connections look elsewhere before one is cut that they have just used. For the same reason who
/// asks for it in so many words is told for how long one that is not the last is `kept`. (Of one whose body is left unread
/// the dispatcher says `close` behind this, which counts for every client: see [`super::chunked`].)
fn end_of_connection<B: MessageBody>(response: &mut ServiceResponse<B>, stopping: bool, kept: Option<&HeaderValue>) {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let asked = response.request().head();
    let not_taken_up = asked.connection_type() == ConnectionType::Upgrade;
    let endless = asked.version < Version::HTTP_11 && response.response().body().size() == BodySize::Stream;
    let kept = kept.filter(|_| asks_to_keep(asked));
    let head = response.response_mut().head_mut();
    if endless {
        head.no_chunking(true);
    }
    if endless || not_taken_up || stopping {
        head.set_connection_type(ConnectionType::Close);
    } else if let Some(kept) = kept
        && head.keep_alive()
    {
        head.headers_mut().insert(KEEP_ALIVE.clone(), kept.clone());
    }
}

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Whether a request has `Connection: keep-alive`, as clients with a pool send it that came with HTTP/1.0.
fn asks_to_keep(asked: &RequestHead) -> bool {
    let Some(connection) = asked.headers().get(CONNECTION) else {
        return false;
    };
    let mut options = connection.as_bytes().split(|byte| *byte == b',');
    asked.connection_type() == ConnectionType::KeepAlive
        && options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"keep-alive"))
}

/// Who takes up memory with an answer to this.
fn asker(request: &HttpRequest, surface: Surface) -> Asker {
    let known = request.extensions().get().copied();
    known.unwrap_or(match surface {
        Surface::Ops => Asker::Operations,
        Surface::V1 | Surface::Legacy => Asker::Nobody,
    })
}

/// In place of an answer that there is no memory for.
pub(super) fn no_room(why: NoRoom, asker: Asker, state: &State) -> ApiError {
    let error = match (why, asker) {
        (NoRoom::Share, Asker::User(_)) => ApiError::new(Code::RateLimited)
            .with_detail("this user has too many answers before this one that are not taken yet")
            .with_rate_limit(1, DEFAULT_RETRY_AFTER_SECONDS),
        (NoRoom::Share, _) => {
            ApiError::new(Code::Overloaded).with_detail("too many answers to callers like this one are not taken yet")
        }
        (NoRoom::All, _) => ApiError::new(Code::Overloaded).with_detail("the queue answers is full"),
    };
    if why == NoRoom::Share {
        // The queue itself has refused nothing.
        state.metrics.refuse(error.code.as_str());
    }
    error
}

async fn message(request: ServiceRequest, state: web::Data<State>) -> Result<ServiceResponse, Error> {
    let (request, mut payload) = request.into_parts();
    let payload = web::Payload::from_request(&request, &mut payload).await?;
    let room = room_of_messages(request.path()).unwrap_or_default();
    let response: HttpResponse = v1::answer_message(&request, room, payload, &state).await;
    Ok(ServiceResponse::new(request, response))
}

/// What stands for the room in `/v1/rooms/{n}/messages`, where it is a number as it stands; the router sees to all others.
fn room_of_messages(path: &str) -> Option<&str> {
    let room = path.strip_prefix("/v1/rooms/")?.strip_suffix("/messages")?;
    (!room.is_empty() && room.bytes().all(|byte| byte.is_ascii_digit())).then_some(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_surely_a_room_is_known_without_the_router() {
        assert_eq!(room_of_messages("/v1/rooms/12/messages"), Some("12"));
        for other in [
            "/v1/rooms//messages",
            "/v1/rooms/1%32/messages",
            "/v1/rooms/-1/messages",
            "/v1/rooms/1/2/messages",
            "/v1/rooms/12/messages/",
            "/v1/rooms/messages",
            "/v1/rooms/12",
            "/V1/rooms/12/messages",
        ] {
            assert_eq!(room_of_messages(other), None, "{other}");
        }
    }
}
