//! CORS: `*` on legacy routes, as the old server had it; `cors.origins` on v1; nothing on operations.
//!
//! A preflight on a legacy route gets what it asked for, except the headers that a gateway sets: a page must never be told
//! that it may send those, by name or by `*`. Which headers of an answer a page may read v1 says, too; the old server did not.

use actix_web::{
    HttpResponse,
    dev::ServiceRequest,
    http::{
        Method,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
};

use super::{state::State, surface::Surface};
use crate::auth::Gateway;

/// What pages read of answers besides what any may: when to try again, and a file's name.
static READABLE: HeaderValue =
    HeaderValue::from_static("Retry-After, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Content-Disposition");

/// What a request with an `Origin` is told of itself.
#[derive(Clone)]
pub struct Asked {
    surface: Surface,
    allowed: Option<HeaderValue>,
}

impl Asked {
    /// `None`: nobody asks.
    pub fn by(request: &ServiceRequest, surface: Surface, state: &State) -> Option<Self> {
        let origin = request.headers().get(header::ORIGIN)?;
        let allowed = match surface {
            Surface::Legacy => Some(HeaderValue::from_static("*")),
            Surface::V1 => allowed(&state.origins, origin),
            Surface::Ops => None,
        };
        Some(Self { surface, allowed })
    }

    /// The answer to a preflight, where the request is one.
    pub fn preflight(&self, request: &ServiceRequest, state: &State) -> Option<HttpResponse> {
        let is_one = request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
            && self.surface != Surface::Ops;
        is_one.then(|| {
            let mut response = HttpResponse::Ok().finish();
            if self.allowed.is_some() {
                let roles: Vec<&str> = state.gateway.iter().flat_map(Gateway::role_headers).collect();
                answer_preflight(request.headers(), response.headers_mut(), &roles);
            }
            response
        })
    }

    /// Tells it.
    pub fn tell(self, headers: &mut HeaderMap) {
        if self.surface != Surface::Ops {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(allowed) = self.allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            if self.surface == Surface::V1 {
                headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, READABLE.clone());
            }
        }
    }
}

fn allowed(origins: &[String], origin: &HeaderValue) -> Option<HeaderValue> {
    if origins.iter().any(|allowed| allowed == "*") {
        return Some(HeaderValue::from_static("*"));
    }
    let known = origins
        .iter()
        .any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes()));
    known.then(|| origin.clone())
}

/// `roles`: the headers in which a gateway names a caller's role and rooms.
fn answer_preflight(asked: &HeaderMap, answer: &mut HeaderMap, roles: &[&str]) {
    if let Some(method) = asked.get(header::ACCESS_CONTROL_REQUEST_METHOD) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    }
    let headers: Vec<&str> = asked
        .get_all(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| may_be_asked_for(name, roles))
        .collect();
    if let Ok(value) = HeaderValue::from_str(&headers.join(", "))
        && !headers.is_empty()
    {
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, value);
    }
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("1800"));
}

/// A real header name that is not the gateway's to set. `*` is one, too, and told back to a page without credentials it would
/// stand for all of them, the gateway's with them.
fn may_be_asked_for(name: &str, roles: &[&str]) -> bool {
    HeaderName::try_from(name).is_ok_and(|name| {
        let name = name.as_str();
        let sets_role = roles.iter().any(|role| name.eq_ignore_ascii_case(role));
        name != "*" && !name.starts_with("x-forward") && name != "x-gateway-secret" && !sets_role
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_headers_are_never_offered() {
        for name in [
            "x-forward-userIdx",
            "X-Forward-Nickname",
            "x-gateway-secret",
            "x-forwarded-for",
            "*",
            "",
            "a b",
        ] {
            assert!(!may_be_asked_for(name, &[]), "{name}");
        }
        for name in ["token", "Content-Type", "X-Role"] {
            assert!(may_be_asked_for(name, &[]), "{name}");
        }
        for name in ["x-role", "X-ROOMS"] {
            assert!(!may_be_asked_for(name, &["X-Role", "X-Rooms"]), "a gateway sets {name}");
        }
    }
}
