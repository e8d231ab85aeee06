//! Figures of a broadcast for the staff of its room.

#![expect(
    unused_qualifications,
    reason = "in what the macros for the document make of query parameters"
)]

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    broadcasts::find_broadcast,
    history::answer,
    identify::who,
    openapi::{Asking, Often, Querying},
    pages::{bad, parameter, query, read},
    state::State,
};
use crate::{
    error::{ApiError, Code},
    limits::AtIt,
    store::{
        StoredBroadcast,
        figures::{Counted, FiguresQuery, Peak, PeakRule, loudness},
        history::HistoryError,
    },
};

/// What bounds an answer; see `settings.toml`, `[figures]`.
#[derive(Clone, Copy, Debug)]
pub struct FiguresLimits {
    /// `figures.timeout_seconds`
    pub patience: Duration,
    /// `figures.buckets_max`
    pub buckets_max: usize,
    /// `figures.top_default`
    pub top_default: usize,
    /// `figures.top_max`
    pub top_max: usize,
    /// `figures.peak_window`, `figures.peak_percent`
    pub peak: PeakRule,
}

/// Where a request names no length, buckets are so many milliseconds long, or a multiple of that.
const BUCKET_MS: i64 = 60_000;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StatsQuery {
    /// How long a bucket is, in milliseconds of the broadcast; long enough for at most `figures.buckets_max` of them.
    #[param(value_type = Option<u64>, minimum = 1, maximum = 86400000)]
    bucket_ms: Option<String>,
    /// Senders, words and peaks, each: 1 to `figures.top_max`.
    #[param(value_type = Option<u64>, minimum = 1, maximum = 100)]
    top: Option<String>,
}

/// Figures of a broadcast.
#[derive(Serialize, ToSchema)]
pub(super) struct Stats {
    broadcast_id: Uuid,
    /// The last event that was counted; what came after it is not in the store yet. `null`: the store has nothing of it.
    through_seq: Option<u64>,
    /// The numbering that `through_seq` belongs to.
    epoch: Option<String>,
    /// How long it has been live, in milliseconds; interruptions do not count.
    live_ms: i64,
    /// What was said since the start; where that was corrected to later, what was said before it counts nowhere here.
    messages: u64,
    /// Users who said something.
    senders: u64,
    /// How long a bucket is, in milliseconds of the broadcast.
    bucket_ms: i64,
    /// Messages in each bucket, from the start on.
    buckets: Vec<u64>,
    top_senders: Vec<TopSender>,
    top_words: Vec<TopWord>,
    replies: Replies,
    /// The greatest first.
    peaks: Vec<PeakBody>,
}

/// Who said how much.
#[derive(Serialize, ToSchema)]
struct TopSender {
    user_idx: i64,
    nickname: String,
    messages: u64,
}

/// A word, and how often.
#[derive(Serialize, ToSchema)]
struct TopWord {
    word: String,
    /// Messages that it is in.
    messages: u64,
}

/// How long the room waited for its presenter to say something in the chat.
#[derive(Serialize, ToSchema)]
struct Replies {
    /// How often the presenter said something after somebody else had.
    count: u64,
    /// Of these, the time since the first message of somebody else that was not followed by one of the presenter.
    median_seconds: Option<i64>,
    /// Nine in ten were not longer.
    p90_seconds: Option<i64>,
}

/// Where the room was much louder than usual.
#[derive(Serialize, ToSchema)]
#[schema(as = Peak)]
struct PeakBody {
    /// Where it begins, in milliseconds of the broadcast.
    offset_ms: i64,
    /// How long it is.
    length_ms: i64,
    /// Where its loudest bucket begins.
    top_offset_ms: i64,
    /// Messages in that.
    messages: u64,
    /// What is usual there: the median of the buckets around it.
    usual: u64,
    /// How many times the usual rate that is.
    ratio: f64,
}

/// Figures of a broadcast, for staff of its room.
#[utoipa::path(
    get, path = "/v1/broadcasts/{id}/stats", operation_id = "get_stats", tag = "history", params(("id" = Uuid, Path, description = "The broadcast"), StatsQuery),
    responses((status = 200, description = "The figures, as far as the store has the broadcast", body = Stats), Asking, Querying, Often)
)]
pub(super) async fn get_stats(request: HttpRequest, path: web::Path<String>, state: web::Data<State>) -> HttpResponse {
    answer(&request, stats(&request, &path, &state).await)
}

async fn stats(request: &HttpRequest, path: &str, state: &State) -> Result<Stats, ApiError> {
    let caller = who(request, state).await?;
    let asked: StatsQuery = query(request)?;
    let stored = find_broadcast(path, &caller, state).await?;
    let limits = state.limits.figures;
    if !caller.is_staff_of(stored.broadcast.presenter) {
        return Err(ApiError::new(Code::Forbidden).with_detail("staff of the room may see its figures"));
    }
    let until = stored.broadcast.until_ms();
    let live_ms = stored.broadcast.length_ms(until, stored.corrected_start_ms);
    let bucket_ms = bucket_ms(asked.bucket_ms.as_deref(), live_ms, limits.buckets_max)?;
    let top = top(asked.top.as_deref(), &limits)?;
    let only = state.one_at_a_time(&caller, &state.counting, "a count of figures")?;
    let buckets = usize::try_from(live_ms / bucket_ms).unwrap_or(0) + 1;
    let buckets = buckets.min(limits.buckets_max);
    let (counted, series, peaks) = count(state, &stored, (bucket_ms, buckets), top, only).await?;
    let at = |bucket: usize| i64::try_from(bucket).unwrap_or(i64::MAX).saturating_mul(bucket_ms);
    Ok(Stats {
        broadcast_id: stored.broadcast.id,
        through_seq: counted.through.as_ref().map(|(_, seq)| seq.0),
        epoch: counted.through.as_ref().map(|(epoch, _)| epoch.to_string()),
        live_ms,
        messages: counted.messages(),
        senders: counted.senders,
        bucket_ms,
        replies: Replies {
            count: counted.replies(),
            median_seconds: counted.wait_seconds(50),
            p90_seconds: counted.wait_seconds(90),
        },
        peaks: peaks
            .iter()
            .map(|peak| PeakBody {
                offset_ms: at(peak.from),
                length_ms: at(peak.buckets),
                top_offset_ms: at(peak.top),
                messages: peak.messages,
                usual: peak.usual,
                ratio: peak.ratio(),
            })
            .collect(),
        buckets: series,
        top_senders: counted
            .top_senders
            .into_iter()
            .map(|sender| TopSender {
                user_idx: sender.user_idx.get(),
                nickname: sender.nickname,
                messages: sender.messages,
            })
            .collect(),
        top_words: counted
            .top_words
            .into_iter()
            .map(|(word, messages)| TopWord { word, messages })
            .collect(),
    })
}

/// Counts to the end also when whoever asked has gone: the store would, and the permit is for its work. So is `only`. With it come
/// all buckets, of this length and at least so many, and the peaks.
async fn count(
    state: &State,
    stored: &StoredBroadcast,
    (bucket_ms, buckets): (i64, usize),
    top: usize,
    only: Option<AtIt>,
) -> Result<(Counted, Vec<u64>, Vec<Peak>), ApiError> {
    let permit = state.figures.try_acquire(1);
    let permit = permit.ok_or_else(|| ApiError::new(Code::Overloaded).with_detail("the queue figures is full"))?;
    let limits = state.limits.figures;
    let query = FiguresQuery {
        broadcast: stored.broadcast.clone(),
        corrected_start_ms: stored.corrected_start_ms,
        bucket_ms,
        last_bucket: i64::try_from(limits.buckets_max - 1).unwrap_or(i64::MAX),
        top,
        patience: limits.patience,
    };
    let store = std::sync::Arc::clone(state.history.store());
    let counting = actix_web::rt::spawn(async move {
        let counted = async { loudness(store.figures(query).await?, buckets, limits.peak, top).await };
        let counted = counted.await;
        drop((only, permit));
        counted
    });
    let counted = counting.await.map_err(|_| ApiError::new(Code::Internal))?;
    read(state, counted.map_err(HistoryError::from))
}

fn bucket_ms(asked: Option<&str>, live_ms: i64, buckets_max: usize) -> Result<i64, ApiError> {
    let max = i64::try_from(buckets_max).unwrap_or(i64::MAX);
    // The broadcast goes on while it is counted, so that one bucket more may begin.
    let least = live_ms / max.saturating_sub(1).max(1) + 1;
    let allowed = format!("a whole number of milliseconds from {least} (at most {max} buckets) to 86400000");
    match parameter("bucket_ms", asked, &allowed)? {
        None => Ok((least - 1) / BUCKET_MS * BUCKET_MS + BUCKET_MS),
        Some(bucket) if (least..=86_400_000).contains(&bucket) => Ok(bucket),
        Some(_) => Err(bad(&format!("bucket_ms: {allowed}"))),
    }
}

fn top(asked: Option<&str>, limits: &FiguresLimits) -> Result<usize, ApiError> {
    let allowed = format!("a whole number from 1 to {}", limits.top_max);
    match parameter("top", asked, &allowed)? {
        None => Ok(limits.top_default),
        Some(top) if (1..=limits.top_max).contains(&top) => Ok(top),
        Some(_) => Err(bad(&format!("top: {allowed}"))),
    }
}
