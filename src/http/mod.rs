//! The routes. Which dialect a path speaks decides the shape of its errors (`surface.rs`): problem+json on v1, the old server's
//! bodies elsewhere.

pub mod answers;
pub mod around;
pub(crate) mod broadcasts;
pub mod caught;
pub mod chunked;
pub mod client;
pub mod cors;
pub mod demo;
mod export;
pub(crate) mod guard;
mod history;
mod identify;
mod legacy;
pub mod lines;
mod moderation;
pub(crate) mod named;
mod openapi;
pub mod ops;
pub mod paced;
mod pages;
mod presenter;
pub(crate) mod replay;
mod rooms;
pub mod socket;
pub mod state;
pub mod stats;
pub mod surface;
pub mod transport;
pub(crate) mod v1;

use actix_web::{HttpRequest, HttpResponse, web};

use self::{state::State, surface::surface};
use crate::error::{ApiError, Code, Lang};

/// Adds every route. `ops_apart`: operations listen on an address of their own.
pub fn routes(config: &mut web::ServiceConfig, state: &State, ops_apart: bool) {
    if !ops_apart {
        ops::routes(config, state);
    }
    if let Some(page) = &state.demo {
        demo::routes(config, page);
    }
    if let Some(rooms) = &state.rooms {
        rooms::routes(config, rooms.clone());
    }
    config
        .configure(v1::routes)
        .configure(history::routes)
        .configure(presenter::routes);
    if state.legacy {
        config.configure(legacy::routes);
    }
    config.default_service(web::to(|request: HttpRequest, state: web::Data<State>| async move {
        not_found(&request, &state)
    }));
}

/// Nothing is at this path, in the words of its dialect.
pub(crate) fn not_found(request: &HttpRequest, state: &State) -> HttpResponse {
    let lang = Lang::from_headers(request.headers());
    let error = ApiError::new(Code::NotFound);
    surface(request.match_info().as_str(), state).refuse(&error, lang, request.path(), state)
}
