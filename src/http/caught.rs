//! A panic in a handler ends its request and nothing else: it is counted, logged once, and answered.
//!
//! What a message came to is not known then: it may have been accepted, so its sender is told to ask again with the same
//! `Idempotency-Key` (504 `outcome_unknown`). Everything else gets 500.

use std::fmt;

use actix_web::{
    Error, HttpResponse, ResponseError,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{ConnectionType, StatusCode},
    middleware::Next,
    web,
};
use chatting_actors::{clock::system_ms, supervise::catch_future};

use super::state::State;
use crate::{
    error::{ApiError, Code, Lang},
    legacy::error::LegacyError,
};

/// The middleware.
pub async fn caught<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let Some(state) = request.app_data::<web::Data<State>>().cloned() else {
        return next.call(request).await;
    };
    // The handler takes the request with it.
    let panicked = Panicked {
        code: if request.method().is_safe() {
            Code::Internal
        } else {
            Code::OutcomeUnknown
        },
        lang: Lang::from_headers(request.headers()),
        path: request.path().to_owned(),
        state: state.clone(),
    };
    let failures = state.metrics.restarts("http");
    match catch_future("http", &failures, next.call(request)).await {
        Some(response) => response,
        None => {
            state.metrics.refuse(panicked.code.as_str());
            Err(panicked.into())
        }
    }
}

/// The answer to a request whose handler panicked, in the words of its dialect.
struct Panicked {
    code: Code,
    lang: Lang,
    path: String,
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
        let mut response = if self.path.starts_with("/v1/") || !self.state.legacy {
            ApiError::new(self.code).response(self.lang)
        } else {
            let now = self.state.clock.timestamp(system_ms());
            LegacyError::from_code(self.code, None).response(&now, &self.path)
        };
        // What the handler left unread of the request is nobody's now.
        response.head_mut().set_connection_type(ConnectionType::Close);
        response
    }
}
