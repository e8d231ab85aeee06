//! A panic in a handler ends its request and nothing else: it is counted, logged once, and answered.
//!
//! What a message came to is not known then: it may have been accepted, so its sender is told to ask again with the same
//! `Idempotency-Key` (504 `outcome_unknown`). Everything else gets 500.

use std::fmt;

use actix_web::{
    Error, HttpResponse, ResponseError,
    dev::ServiceRequest,
    http::{
        ConnectionType, StatusCode,
        header::{self, HeaderValue},
    },
    web,
};
use chatting_actors::supervise::catch_future;

use super::{cors::Asked, state::State, surface::Surface};
use crate::error::{ApiError, Code, Lang};

impl Panicked {
    /// The answer to this request, should its handler panic: the handler takes the request with it.
    pub fn over(request: &ServiceRequest, surface: Surface, state: &web::Data<State>, asked: Option<&Asked>) -> Self {
        let path = if surface == Surface::Legacy { request.path() } else { "" };
        Self {
            code: if request.method().is_safe() {
                Code::Internal
            } else {
                Code::OutcomeUnknown
            },
            languages: request.headers().get(header::ACCEPT_LANGUAGE).cloned(),
            surface,
            path: path.to_owned(),
            asked: asked.cloned(),
            state: state.clone(),
        }
    }

    /// What a handler says, or this.
    pub async fn unless<T>(self, handler: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match catch_future("http", &self.state.http_failures, handler).await {
            Some(response) => response,
            None => {
                self.state.metrics.refuse(self.code.as_str());
                Err(self.into())
            }
        }
    }
}

/// The answer to a request whose handler panicked, in the words of its dialect.
pub struct Panicked {
    code: Code,
    /// Read only where there is something to say.
    languages: Option<HeaderValue>,
    surface: Surface,
    /// Where errors repeat it; else empty.
    path: String,
    /// What a page may read of it.
    asked: Option<Asked>,
    state: web::Data<State>,
}

impl fmt::Debug for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Panicked")
            .field("code", &self.code)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.as_str())
    }
}

impl ResponseError for Panicked {
    fn status_code(&self) -> StatusCode {
        self.code.status()
    }

    fn error_response(&self) -> HttpResponse {
        let lang = Lang::from_header(self.languages.as_ref());
        let error = ApiError::new(self.code);
        let mut response = self.surface.refuse(&error, lang, &self.path, &self.state);
        // What the handler left unread of the request is nobody's now.
        response.head_mut().set_connection_type(ConnectionType::Close);
        if let Some(asked) = self.asked.clone() {
            asked.tell(response.headers_mut());
        }
        response
    }
}
