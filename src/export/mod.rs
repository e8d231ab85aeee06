//! A broadcast's chat as a file: NDJSON, CSV, WebVTT, or the JSON that TwitchDownloader and renderers of its kind read.
//!
//! An [`Export`] is pulled: each call reads one page of the log and gives it encoded, so one page is in memory however long the
//! broadcast is, and whoever stops asking stops the reading. A reader's permit (`log.readers`) is held while a page is read and
//! not between pages. A broadcast that goes on is exported up to the event that was its last when the export began. An error in
//! the middle is an error: the file must not end as if it were whole.
//!
//! Exports are for staff. NDJSON and CSV mark what was deleted, or leave it out on request, and have what was said before a start
//! that was corrected to later; the other two are shown to people beside the video, so they never have either.

mod csv;
pub mod import;
mod line;
mod ndjson;
mod twitch;
mod webvtt;

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::store::{
    History, Logged, StoredBroadcast,
    history::{Behind, HistoryError, ReplayPlace},
};

/// What a file is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line: everything that `import` needs.
    Ndjson,
    /// A table for spreadsheets (RFC 4180).
    Csv,
    /// TwitchDownloader's chat JSON (FileInfo 1.4), for chat renderers.
    TwitchJson,
    /// Cues beside a video (W3C WebVTT).
    Webvtt,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Ndjson, Self::Csv, Self::TwitchJson, Self::Webvtt];

    /// The name in queries, on command lines and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
            Self::TwitchJson => "twitch-json",
            Self::Webvtt => "webvtt",
        }
    }

    /// The inverse of [`Format::as_str`].
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == name)
    }

    /// The media type of a file.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::TwitchJson => "application/json",
            Self::Webvtt => "text/vtt; charset=utf-8",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
            Self::TwitchJson => "json",
            Self::Webvtt => "vtt",
        }
    }

    /// A name for the file: of numbers and ASCII letters only, so that it is safe anywhere.
    pub fn file_name(self, record: &StoredBroadcast) -> String {
        let (room, id) = (record.broadcast.presenter, record.broadcast.id);
        format!("chat-{room}-{id}.{}", self.extension())
    }

    /// Whether a file of this kind is shown to people beside the video: then it has neither what was deleted, nor acts of moderation,
    /// nor what was said before the video begins.
    pub fn is_shown(self) -> bool {
        matches!(self, Self::TwitchJson | Self::Webvtt)
    }

    fn encoder(self, options: &Options) -> Box<dyn Encoder> {
        match self {
            Self::Ndjson => Box::new(ndjson::Ndjson::new(options.now_ms)),
            Self::Csv => Box::new(csv::Csv),
            Self::TwitchJson => Box::new(twitch::Twitch::new(options.now_ms)),
            Self::Webvtt => Box::new(webvtt::Webvtt::new(options.cue_ms)),
        }
    }
}

/// What becomes of deleted messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Deletions {
    /// They are there, with who deleted them and when; and the acts of moderation in their places.
    Mark,
    /// They are left out, and the acts too: what viewers may see.
    Omit,
}

impl Deletions {
    /// What a request asks for, by its name; without one, what suits the format.
    ///
    /// # Errors
    /// What is allowed, in words, when that is not it.
    pub fn read(asked: Option<&str>, format: Format) -> Result<Self, &'static str> {
        match (asked, format.is_shown()) {
            (None, false) | (Some("mark"), false) => Ok(Self::Mark),
            (None, true) | (Some("omit"), _) => Ok(Self::Omit),
            (Some("mark"), true) => Err("omit: a file of this format has no place for a mark"),
            (Some(_), _) => Err("mark or omit"),
        }
    }

    /// The name in queries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mark => "mark",
            Self::Omit => "omit",
        }
    }
}

/// How a file is written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// As what.
    pub format: Format,
    /// What becomes of deleted messages.
    pub deletions: Deletions,
    /// `export.page_rows`: events that are read at once.
    pub page_rows: usize,
    /// `export.cue_ms`: how long a message is shown in WebVTT.
    pub cue_ms: i64,
    /// When it was asked for, in milliseconds since 1970. Of a broadcast that goes on more may have been said when it begins; then it is
    /// that time.
    pub now_ms: i64,
}

/// Writes one format. Texts come from anyone: whatever they hold, the file stays what it is.
trait Encoder {
    /// What stands before the first event.
    fn head(&mut self, record: &StoredBroadcast, out: &mut Vec<u8>);

    /// One event, at so many milliseconds of the broadcast: of a file that is shown never a negative number.
    fn event(&mut self, logged: &Logged, offset_ms: i64, out: &mut Vec<u8>);

    /// What stands behind the last event.
    fn tail(&mut self, out: &mut Vec<u8>);
}

/// Some of a file.
#[derive(Debug)]
pub struct Piece {
    /// Never empty.
    pub bytes: Bytes,
    /// How many events were read for it.
    pub events: u64,
}

/// One broadcast's file, in pieces: [`Export::next`] until there is none. Behind an error but [`HistoryError::Busy`]
/// the file is not whole.
pub struct Export {
    history: History,
    record: StoredBroadcast,
    encoder: Box<dyn Encoder>,
    options: Options,
    began: bool,
    /// Where the next page begins; `None` when the file has ended.
    place: Option<ReplayPlace>,
}

impl Export {
    /// Begins one. Errors: the log cannot be read now, or too much is read.
    pub async fn begin(
        history: History,
        mut record: StoredBroadcast,
        mut options: Options,
    ) -> Result<Self, HistoryError> {
        if record.broadcast.ended_at_ms.is_none() {
            let now_ms = until_now(&history, &mut record).await?;
            options.now_ms = options.now_ms.max(now_ms);
        }
        Ok(Self {
            history,
            record,
            encoder: options.format.encoder(&options),
            options,
            began: false,
            place: Some(ReplayPlace::default()),
        })
    }

    /// About how many events it will have read when it has ended: numbers that are missing count. `None` where a numbering ended
    /// without a word of how far it went.
    pub fn expected(&self) -> Option<u64> {
        let spans = self.record.broadcast.spans.iter();
        spans
            .map(|span| Some(span.through?.0.saturating_sub(span.after.0)))
            .sum()
    }

    /// From now on each page waits for its reader's permit for so long: a file that has begun is not given up because others
    /// read, too.
    pub fn be_patient(&mut self, patience: Duration) {
        self.history = self.history.patient(patience);
    }

    /// The next piece; `None` behind the last. [`HistoryError::Busy`] changes nothing: ask again.
    pub async fn next(&mut self) -> Result<Option<Piece>, HistoryError> {
        let (mut out, mut events) = (Vec::new(), 0);
        while let Some(place) = self.place {
            let replay = self
                .history
                .replay(&self.record.broadcast, place, i64::MAX, self.options.page_rows);
            let page = replay.await?;
            if !self.began {
                self.began = true;
                self.encoder.head(&self.record, &mut out);
            }
            events += page.events.len() as u64;
            for logged in &page.events {
                self.encode(logged, &mut out);
            }
            // Of what goes on there is what there was when this began.
            self.place = (page.behind == Behind::More).then_some(page.place);
            if self.place.is_none() {
                self.encoder.tail(&mut out);
            }
            if !out.is_empty() {
                let bytes = out.into();
                return Ok(Some(Piece { bytes, events }));
            }
        }
        Ok(None)
    }

    fn encode(&mut self, logged: &Logged, out: &mut Vec<u8>) {
        let hidden = logged.deleted.is_some() || logged.event.act.is_some();
        if hidden && self.options.deletions == Deletions::Omit {
            return;
        }
        let StoredBroadcast {
            broadcast,
            corrected_start_ms,
            ..
        } = &self.record;
        let offset_ms = broadcast.offset_ms(logged.event.sent_at_ms, *corrected_start_ms);
        if offset_ms < 0 && self.options.format.is_shown() {
            return;
        }
        self.encoder.event(logged, offset_ms, out);
    }
}

/// Of a broadcast that goes on, what there is now; else an export might never catch up with a busy room. Returns when that is: a clock
/// that was set back is behind what was said last.
async fn until_now(history: &History, record: &mut StoredBroadcast) -> Result<i64, HistoryError> {
    let (presenter, mut said_ms) = (record.broadcast.presenter, i64::MIN);
    if let Some(span) = record.broadcast.spans.last_mut() {
        // Of this numbering: one before it may have gone further.
        let last = history.last_of(presenter, &span.epoch).await?;
        let (seq, sent_at_ms) = last.unwrap_or((span.after, i64::MIN));
        said_ms = sent_at_ms;
        span.through.get_or_insert(seq.max(span.after));
    }
    Ok(record.broadcast.until_ms().max(said_ms))
}

fn json(out: &mut Vec<u8>, value: &impl Serialize) {
    // Structs of texts and numbers cannot fail to serialize, and a vector takes everything.
    let _ = serde_json::to_writer(out, value);
}
