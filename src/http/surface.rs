//! Which dialect a path speaks: decided here and nowhere else, for what a page may read of it (CORS) and for the words of what is
//! refused around the handlers.
//!
//! A path counts as the router reads it: `/%6detrics` is `/metrics` there, and must not be a legacy path here.

use actix_web::HttpResponse;
use chatting_actors::clock::system_ms;

use super::state::State;
use crate::{
    error::{ApiError, Code, Lang},
    legacy::error::{FrameworkError, LegacyError},
};

/// Who a path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// Operations: nothing that a page of another origin may read.
    Ops,
    /// v1, and what came with it: problem+json.
    V1,
    /// The old server's, and all that it would have answered 404: its bodies.
    Legacy,
}

/// Whose path this is. Without rooms of our own `/room/…` is a path like any other, and without the legacy dialect all that is left is
/// v1's.
pub fn surface(path: &str, state: &State) -> Surface {
    match path {
        "/livez" | "/readyz" | "/metrics" | "/openapi.json" | "/docs" => Surface::Ops,
        _ if path.starts_with("/docs/") => Surface::Ops,
        _ if path.starts_with("/v1/") => Surface::V1,
        _ if path.starts_with("/room/") && state.rooms.is_some() => Surface::V1,
        "/demo" if state.demo.is_some() => Surface::V1,
        _ if state.legacy => Surface::Legacy,
        _ => Surface::V1,
    }
}

impl Surface {
    /// A refusal in the words that belong here. `path` is what the old server's errors repeat; they are Korean whatever `lang` is.
    pub fn refuse(self, error: &ApiError, lang: Lang, path: &str, state: &State) -> HttpResponse {
        match self {
            // Its framework said that, in a shape of its own.
            Self::Legacy if error.code == Code::NotFound => FrameworkError::NotFound.response(path),
            // Operations are served elsewhere (`ops.bind`), and here it is a path like any other.
            Self::Ops if error.code == Code::NotFound && state.legacy => FrameworkError::NotFound.response(path),
            Self::Legacy => legacy(&LegacyError::from_api(error), path, state),
            Self::Ops | Self::V1 => error.response(lang),
        }
    }
}

/// An error of the old server's own, at this moment of its wall clock.
pub fn legacy(error: &LegacyError, path: &str, state: &State) -> HttpResponse {
    error.response(&state.clock.timestamp(system_ms()), path)
}
