//! `/demo`: one plain page with a presenter pane and a sender pane. Only `chatting-server demo` serves it.

use actix_web::{HttpResponse, http::header, web};
use bytes::Bytes;
use serde_json::json;

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

/// Adds the route of this page.
pub fn routes(config: &mut web::ServiceConfig, page: &str) {
    let page = Bytes::copy_from_slice(page.as_bytes());
    let serve = move || {
        let page = page.clone();
        async {
            HttpResponse::Ok()
                .content_type("text/html; charset=utf-8")
                .insert_header((header::CACHE_CONTROL, "no-store"))
                .body(page)
        }
    };
    config.route("/demo", web::get().to(serve));
}
