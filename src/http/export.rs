//! A broadcast's chat as a file, streamed as the client takes it.
//!
//! The first page is read before the answer begins, so that what can be refused is refused with a status. After that an error
//! ends the connection without the body's end, which every client notices. At most `export.max` are under way,
//! and one of each user who is no operator and no moderator of all rooms.

#![expect(
    unused_qualifications,
    reason = "in what the macros for the document make of query parameters"
)]

use std::io;

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use bytes::Bytes;
use chatting_actors::{clock::system_ms, gate::Permit};
use futures_util::stream;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    broadcasts::{find_broadcast, is_operator},
    identify::who,
    openapi::{Asking, Often, Querying},
    pages::{bad, query, read},
    state::State,
};
use crate::{
    error::{ApiError, Code, Lang},
    export::{Deletions, Export, Format, Options},
    limits::AtIt,
};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportQuery {
    /// `ndjson` (the default), `csv`, `twitch-json` or `webvtt`.
    #[param(pattern = "^(ndjson|csv|twitch-json|webvtt)$")]
    format: Option<String>,
    /// Deleted messages: `mark` (with who and when; the default of `ndjson` and `csv`), or `omit`, as the other formats always do.
    #[param(pattern = "^(mark|omit)$")]
    deleted: Option<String>,
}

/// The chat of a broadcast as a file, for the room's staff. Compressed by Accept-Encoding. A broadcast that goes on is exported
/// up to now. A body without its end is a file that is not whole.
#[utoipa::path(
    get, path = "/v1/broadcasts/{id}/export", operation_id = "get_export", tag = "history",
    params(("id" = Uuid, Path, description = "The broadcast"), ExportQuery),
    responses(
        (status = 200, description = "The file", content(
            (String = "application/x-ndjson"), (String = "text/csv"), (serde_json::Value = "application/json"), (String = "text/vtt"),
        )),
        Asking, Querying, Often,
    )
)]
pub(super) async fn get_export(request: HttpRequest, path: web::Path<String>, state: web::Data<State>) -> HttpResponse {
    match export(&request, &path, &state).await {
        Ok(response) => response,
        Err(error) => error.response(Lang::from_headers(request.headers())),
    }
}

/// What a file's stream holds until it has ended or its client has gone.
struct Streaming {
    export: Export,
    state: web::Data<State>,
    first: Option<Bytes>,
    /// How it ended; that of a client that has gone unless something else is told.
    outcome: &'static str,
    /// Of who has one at a time.
    _only: Option<AtIt>,
    _permit: Permit,
}

impl Streaming {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if self.state.health.is_draining() {
            self.outcome = "error";
            return Err(io::Error::other("the server is about to stop"));
        }
        match self.export.next().await {
            Ok(Some(piece)) => {
                self.state.metrics.export_pages.inc();
                Ok(Some(piece.bytes))
            }
            Ok(None) => {
                self.outcome = "ok";
                Ok(None)
            }
            Err(error) => {
                self.outcome = "error";
                log::warn!("export: broken off, the log cannot be read: {error}");
                Err(io::Error::other(error))
            }
        }
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.state.metrics.exports.inc(self.outcome);
    }
}

async fn export(request: &HttpRequest, path: &str, state: &web::Data<State>) -> Result<HttpResponse, ApiError> {
    let caller = who(request, state).await?;
    let asked: ExportQuery = query(request)?;
    let format = match asked.format.as_deref() {
        None => Format::Ndjson,
        Some(name) => Format::parse(name).ok_or_else(|| bad("format: ndjson, csv, twitch-json or webvtt"))?,
    };
    let deletions = Deletions::read(asked.deleted.as_deref(), format);
    let deletions = deletions.map_err(|allowed| bad(&format!("deleted: {allowed}")))?;
    let mut record = find_broadcast(path, &caller, state).await?;
    // A hold is for operators to see.
    record.legal_hold &= is_operator(&caller);
    if !caller.is_staff_of(record.broadcast.presenter) {
        return Err(ApiError::new(Code::Forbidden).with_detail("staff of the room may export its broadcasts"));
    }
    let only = state.one_at_a_time(&caller, &state.exporting, "an export")?;
    let permit = state.exports.try_acquire(1);
    let permit = permit.ok_or_else(|| ApiError::new(Code::Overloaded).with_detail("the queue exports is full"))?;
    let options = Options {
        format,
        deletions,
        page_rows: state.limits.export_rows,
        cue_ms: state.limits.cue_ms,
        now_ms: system_ms(),
    };
    let name = format.file_name(&record);
    let begun = Export::begin(state.history_of_staff(), record, options).await;
    let mut export = read(state, begun)?;
    let first = read(state, export.next().await)?;
    export.be_patient(state.limits.export_patience);
    state.metrics.export_pages.inc();
    let streaming = Streaming {
        export,
        state: state.clone(),
        first: first.map(|piece| piece.bytes),
        outcome: "abandoned",
        _only: only,
        _permit: permit,
    };
    let body = stream::try_unfold(streaming, async |mut streaming| {
        let next = streaming.next().await?;
        Ok::<_, io::Error>(next.map(|bytes| (bytes, streaming)))
    });
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, format.content_type()))
        .insert_header((header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .streaming(body))
}
