//! `/openapi.json`, made from the handlers, and `/docs`, which shows it. Served beside the other routes for operations.
//!
//! What the settings turn off is left out: the legacy routes, the embedded room server's, operations on an address of their own.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use actix_web::{HttpResponse, web};
use bytes::Bytes;
use utoipa::{
    IntoResponses, Number, OpenApi, ToSchema,
    openapi::{
        ContentBuilder, HeaderBuilder, HttpMethod, InfoBuilder, Object, Ref, RefOr, Response, ResponseBuilder, Schema,
        Type,
        path::Operation,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_swagger_ui::Config;

use super::{
    broadcasts, export, history, legacy,
    lines::Shared,
    moderation,
    ops::{self, page},
    presenter, replay, rooms,
    state::State,
    stats, v1,
};
use crate::error::{Code, Lang};

#[derive(OpenApi)]
#[openapi(
    paths(
        v1::post_message,
        v1::get_room,
        history::get_messages,
        moderation::delete_messages,
        moderation::delete_message,
        broadcasts::get_broadcasts,
        broadcasts::get_broadcast,
        broadcasts::patch_broadcast,
        replay::get_replay,
        export::get_export,
        stats::get_stats,
        presenter::presenter,
        legacy::home,
        legacy::who,
        legacy::send,
        legacy::chatting,
        rooms::check,
        rooms::search_all,
        rooms::start,
        rooms::stop,
        ops::livez,
        ops::readyz,
        ops::metrics,
    ),
    components(schemas(Problem))
)]
struct Document;

/// The routes: the document, and the page that shows it.
pub fn routes(config: &mut web::ServiceConfig, state: &State) {
    let made = || Bytes::from(document(state).to_json().unwrap_or_default());
    let text = state.document.get_or_init(made).clone();
    config.service(page("/openapi.json", |asked| {
        asked.to(move || {
            let text = text.clone();
            async move { shared(HttpResponse::Ok().content_type("application/json").body(text)) }
        })
    }));
    config.service(page("/docs", |asked| asked.to(async || web::Redirect::to("/docs/"))));
    let files = Arc::new(Config::new(["/openapi.json"]));
    config.service(page("/docs/{file:.*}", |asked| {
        asked.to(move |file: web::Path<String>| {
            let answer = page_file(&file, &files);
            async move { answer }
        })
    }));
}

/// A file of the page, as it is in the binary: the largest has megabytes, and whoever asks for it does not always take it.
fn page_file(file: &str, page: &Arc<Config<'static>>) -> HttpResponse {
    match utoipa_swagger_ui::serve(file, Arc::clone(page)) {
        Ok(Some(found)) => {
            let mut response = HttpResponse::Ok();
            response.content_type(found.content_type);
            match found.bytes {
                Cow::Borrowed(bytes) => shared(response.body(Bytes::from_static(bytes))),
                Cow::Owned(bytes) => response.body(bytes),
            }
        }
        Ok(None) => HttpResponse::NotFound().finish(),
        Err(error) => {
            log::error!("/docs/{file}: {error}");
            HttpResponse::InternalServerError().finish()
        }
    }
}

/// An answer whose body costs nothing, however many clients have it before them.
fn shared(mut response: HttpResponse) -> HttpResponse {
    response.extensions_mut().insert(Shared);
    response
}

/// The document for these settings.
pub fn document(state: &State) -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    document.info = InfoBuilder::new()
        .title("chatting-server")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Chat for live broadcasts. Errors are RFC 9457 problems; titles in Korean and English by Accept-Language. \
             docs/SENDING.md describes sending and the tokens, docs/PROTOCOL.md and docs/asyncapi.json the presenter's WebSocket.",
        ))
        .build();
    let legacy = ["/", "/token", "/send/message", "/chatting"];
    document.paths.paths.retain(|path, _| {
        (state.legacy || !legacy.contains(&path.as_str())) && (state.rooms.is_some() || !path.starts_with("/room/"))
    });
    let components = document.components.get_or_insert_default();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    let header = ApiKey::Header(ApiKeyValue::new("token"));
    components.add_security_scheme("token", SecurityScheme::ApiKey(header));
    if let Some(gateway) = &state.gateway {
        let told = "The user's number. Set by the gateway, with x-forward-nickname where a message is sent, and \
                    x-forward-email on /send/message";
        let header = ApiKey::Header(ApiKeyValue::with_description("x-forward-userIdx", told));
        components.add_security_scheme("forwarded", SecurityScheme::ApiKey(header));
        if gateway.has_secret() {
            let header = ApiKey::Header(ApiKeyValue::with_description("x-gateway-secret", "Set by the gateway"));
            components.add_security_scheme("gateway_secret", SecurityScheme::ApiKey(header));
        }
    }
    if let Some(RefOr::T(Schema::Object(message))) = components.schemas.get_mut("NewMessage")
        && let Some(RefOr::T(Schema::Object(text))) = message.properties.get_mut("text")
    {
        text.max_length = Some(state.limits.text_chars);
    }
    for (path, item) in &mut document.paths.paths {
        for method in [HttpMethod::Get, HttpMethod::Post, HttpMethod::Patch, HttpMethod::Delete] {
            let operation: &mut Option<Operation> = match method {
                HttpMethod::Get => &mut item.get,
                HttpMethod::Post => &mut item.post,
                HttpMethod::Patch => &mut item.patch,
                _ => &mut item.delete,
            };
            let Some(operation) = operation else {
                continue;
            };
            bound(operation, state);
            // Its 503 refuses nobody.
            if path != "/readyz" {
                pace(operation);
            }
            operation.security = security(path, state);
        }
    }
    document
}

/// The most that these settings allow in a query, in place of what is allowed by default.
fn bound(operation: &mut Operation, state: &State) {
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else {
            continue;
        };
        let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema else {
            continue;
        };
        match parameter.name.as_str() {
            "limit" => schema.maximum = Some(Number::UInt(state.limits.page_max)),
            "top" => schema.maximum = Some(Number::UInt(state.limits.figures.top_max)),
            "q" => schema.max_length = Some(state.limits.text_chars),
            _ => {}
        }
    }
}

/// The headers of a refusal that tell when to come again.
fn pace(operation: &mut Operation) {
    let number = |told: &str| {
        HeaderBuilder::new()
            .schema(Some(Object::with_type(Type::Integer)))
            .description(Some(told))
            .build()
    };
    for (status, response) in &mut operation.responses.responses {
        let (RefOr::T(response), "429" | "503") = (response, status.as_str()) else {
            continue;
        };
        let mut tell = |name: &str, told| response.headers.insert(name.to_owned(), number(told).into());
        tell("Retry-After", "Seconds");
        if status == "429" {
            tell("RateLimit-Limit", "How many may come at once");
            tell("RateLimit-Remaining", "How many more may come now: 0");
            tell("RateLimit-Reset", "Seconds until the next one may come");
        }
    }
}

/// By what a route knows who asks: one of these; `None` for those that do not want to know.
fn security(path: &str, state: &State) -> Option<Vec<SecurityRequirement>> {
    let by = |scheme: &str| SecurityRequirement::new(scheme, [""; 0]);
    match path {
        // A presenter, and who starts a room here, has a token in either mode. A presenter's may come in `hello` instead.
        "/v1/presenter" => Some(vec![by("bearer"), by("token"), SecurityRequirement::default()]),
        "/room/live/start" | "/room/live/stop" => Some(vec![by("bearer"), by("token")]),
        "/token" => Some(vec![by("token")]),
        _ if path.starts_with("/v1/") || path == "/send/message" => Some(match &state.gateway {
            None => vec![by("bearer"), by("token")],
            Some(gateway) if gateway.has_secret() => vec![by("forwarded").add("gateway_secret", [""; 0])],
            Some(_) => vec![by("forwarded")],
        }),
        _ => None,
    }
}

/// A refusal (RFC 9457).
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape alone is of interest")]
pub(super) struct Problem {
    /// `urn:chatting-server:problem:` and the code.
    #[schema(rename = "type")]
    kind: String,
    /// For people, in their language.
    title: String,
    /// The HTTP status again.
    status: u16,
    /// Stable; what a client goes by.
    code: String,
    /// What is wrong in particular, in English.
    #[schema(nullable = false)]
    detail: Option<String>,
}

/// Responses for these codes of the error table, by their status.
fn refusals(codes: &[Code]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for code in codes {
        let told = format!("`{code}`: {}", code.title(Lang::English));
        by_status.entry(code.status().as_u16()).or_default().push(told);
    }
    let schema = RefOr::Ref(Ref::from_schema_name("Problem"));
    let responses = by_status.into_iter().map(|(status, told)| {
        let content = ContentBuilder::new().schema(Some(schema.clone())).build();
        let response = ResponseBuilder::new()
            .description(told.join(" · "))
            .content("application/problem+json", content);
        (status.to_string(), RefOr::T(response.build()))
    });
    responses.collect()
}

macro_rules! refusals {
    ($($(#[$doc:meta])+ $name:ident = $($code:ident),+;)+) => {$(
        $(#[$doc])+
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                refusals(&[$(Code::$code),+])
            }
        }
    )+};
}

// Of two sets on one route the later one's answers with a status take the place of the former's, so each has all of that status
// that the route gives.
refusals! {
    /// Of every route that wants to know who asks.
    Asking = Unauthenticated, TokenExpired, KeysUnavailable, Forbidden, NotFound, MethodNotAllowed, Overloaded, LogUnavailable,
        OutcomeUnknown, Internal;
    /// Of a path that has one method and wants to know nothing more.
    OneMethod = MethodNotAllowed;
    /// Of a query that cannot be read.
    Querying = BadRequest;
    /// Of a request with a body.
    WithBody = BadRequest, TooLarge, UnsupportedMediaType, RequestTimeout;
    /// Of what one user may not do too often, or twice at once.
    Often = RateLimited;
    /// Of a message.
    Sending = InvalidMessage, IdempotencyConflict, IdempotencyInProgress, BroadcastEnded, RateLimited, OutcomeUnknown,
        KeysUnavailable, PresenterDisconnected, Overloaded, RoomServerUnavailable, LogUnavailable;
    /// Of an act of moderation.
    Acting = RateLimited, OutcomeUnknown, KeysUnavailable, Overloaded, LogUnavailable;
    /// Of a look at a room.
    Looking = RateLimited, KeysUnavailable, Overloaded, RoomServerUnavailable, LogUnavailable;
    /// Of an upgrade.
    Upgrading = BadRequest, UpgradeRequired, RateLimited;
}

/// An error of the original server's own.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the shape alone is of interest")]
pub(super) struct LegacyProblem {
    timestamp: String,
    status: u16,
    /// The framework's errors have this too.
    #[schema(nullable = false)]
    error: Option<String>,
    message: String,
    path: String,
}

#[cfg(test)]
mod tests {
    use actix_web::body::MessageBody;

    use super::*;

    #[test]
    fn a_file_of_the_page_is_given_as_it_is_in_the_binary() {
        let page = Arc::new(Config::new(["/openapi.json"]));
        let file = || {
            let answer = page_file("swagger-ui-bundle.js", &page);
            assert!(answer.extensions().contains::<Shared>());
            answer.into_body().try_into_bytes().ok().unwrap()
        };
        let (one, other) = (file(), file());
        assert!(one.len() > 1_000_000);
        assert_eq!(one.as_ptr(), other.as_ptr());
    }
}
