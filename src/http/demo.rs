//! `/demo`: one plain page with a presenter pane and a sender pane. Only `chatting-server demo` serves it.

use actix_web::{HttpResponse, http::header, web};
use serde_json::json;

use super::{not_found, state::State};

const PAGE: &str = include_str!("../../web/demo.html");

/// The page for one presenter, with the tokens that it uses.
pub fn page(presenter_idx: i64, presenter_token: &str, viewer_token: &str) -> String {
    let demo = json!({
        "presenterIdx": presenter_idx,
        "presenterToken": presenter_token,
        "viewerToken": viewer_token,
    });
    PAGE.replace("/*DEMO*/", &demo.to_string())
}

/// Adds the route; it answers 404 unless this is a demo.
pub fn routes(config: &mut web::ServiceConfig) {
    config.route("/demo", web::get().to(serve));
}

async fn serve(request: actix_web::HttpRequest, state: web::Data<State>) -> HttpResponse {
    match &state.demo {
        Some(page) => HttpResponse::Ok()
            .content_type("text/html; charset=utf-8")
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .body(page.clone()),
        None => not_found(&request, &state),
    }
}
