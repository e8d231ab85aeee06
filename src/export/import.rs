//! Reads NDJSON exports back: into a log that is empty.
//!
//! The files are read twice. [`check`] reads all of them before anything is written, so that a bad file changes nothing, and
//! returns what the import is known by. [`Lines`] then gives their contents to whoever writes them, and a [`Tally`] of them tells
//! whether that is what was checked. What can be read once only, as a pipe, is refused. What was deleted comes back as deleted,
//! whether or not the act that did it is in the files; keys of idempotency are not in them.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use chatting_actors::{
    broadcast::{Broadcast, Segment, Span},
    moderation::Act,
    types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq, UserIdx},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::line::{Chat, End, FORMAT, Header, Line, Moderation};
use crate::store::{Deleted, Logged, StoredBroadcast};

/// A line is at most so long; the longest that an export writes is far below.
const MAX_LINE: u64 = 4 * 1024 * 1024;

/// How gzip begins (RFC 1952, 2.3.1).
const GZIP: &[u8] = &[0x1f, 0x8b];

const NOT_NDJSON: &str = "wanted is NDJSON, as `export --format ndjson` writes it";

/// A message from later than this is from a wrong clock, and would hold up the times of all that come after it.
const MAX_AHEAD_MS: i64 = 24 * 60 * 60 * 1000;

/// The greatest number that every reader of JSON has exactly (RFC 8259, 6), which is far beyond what any room gets to. What comes after it
/// needs a next one, too.
const MAX_SEQ: u64 = (1 << 53) - 1;

/// Bytes of a numbering's name at most; ours have 16.
const EPOCH_MAX_BYTES: usize = 64;

/// Why files cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file is not to be had.
    #[error("{path} cannot be read: {error}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// It cannot be read twice.
    #[error(
        "{path} is not a regular file, and what is imported is read twice: write it to a file first",
        path = path.display()
    )]
    Once {
        /// What is no regular file.
        path: PathBuf,
    },
    /// A line is not what an export writes.
    #[error("{path}, line {line}: {why}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// Something of a file.
#[derive(Debug)]
pub enum Item {
    /// A broadcast, which has ended as far as this log is concerned.
    Broadcast(Box<StoredBroadcast>),
    /// An event of it.
    Event(Box<Logged>),
}

/// What files hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// SHA-256 of the files in their order, in hexadecimal digits: what an import is known by.
    pub digest: String,
    /// How many broadcasts.
    pub broadcasts: u64,
    /// How many events.
    pub events: u64,
    /// The last seq of each room, with which its numbering goes on.
    pub rooms: BTreeMap<PresenterIdx, Seq>,
    /// When the newest event was sent, in milliseconds since 1970.
    pub newest_ms: i64,
}

/// Reads files to their ends and says what they hold; `now_ms` is the present. Nothing is kept in memory but one line.
///
/// # Errors
/// The first line, if there is one, that no export writes; a file that was cut off, or that cannot be read twice.
pub fn check(paths: &[PathBuf], now_ms: i64) -> Result<Contents, ImportError> {
    let mut tally = Tally::default();
    for path in paths {
        let mut lines = Lines::open(path, now_ms)?;
        while let Some(item) = lines.next()? {
            tally.item(&item);
        }
        tally.file(lines);
    }
    Ok(tally.contents())
}

/// The same event under an epoch of its own, for where another one has its number. The name is made of what the event had, so that each
/// run of an import makes the same. What is of one broadcast stays together, and of two not: times grow with numbers in each numbering.
pub fn apart(event: &Event) -> Event {
    let mut of = Sha256::new();
    of.update(event.epoch.0.as_bytes());
    of.update(event.broadcast_id.unwrap_or_default().as_bytes());
    let name = of
        .finalize()
        .iter()
        .take(8)
        .fold(String::new(), |name, byte| name + &format!("{byte:02x}"));
    Event {
        epoch: Epoch(name.into()),
        ..event.clone()
    }
}

/// What was read of files so far.
#[derive(Default)]
pub struct Tally {
    contents: Contents,
    digest: Sha256,
}

impl Tally {
    /// This was read.
    pub fn item(&mut self, item: &Item) {
        let contents = &mut self.contents;
        match item {
            Item::Broadcast(_) => contents.broadcasts += 1,
            Item::Event(logged) => {
                contents.events += 1;
                contents.newest_ms = contents.newest_ms.max(logged.event.sent_at_ms);
                let last = contents.rooms.entry(logged.event.presenter_idx).or_default();
                *last = (*last).max(logged.event.seq);
            }
        }
    }

    /// A file was read to its end.
    pub fn file(&mut self, lines: Lines) {
        self.digest.update(lines.digest.finalize());
    }

    /// All of it was read.
    #[must_use]
    pub fn contents(self) -> Contents {
        let digest = self.digest.finalize();
        Contents {
            digest: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            ..self.contents
        }
    }
}

/// A broadcast whose events are being read.
struct Open {
    id: Uuid,
    presenter: PresenterIdx,
    events: u64,
    /// The last event's numbering and place. Two events have the same one where one was set aside because of the other.
    last: Option<(Epoch, Seq, Uuid)>,
}

/// The contents of one file, in order.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    digest: Sha256,
    line: u64,
    buffer: Vec<u8>,
    open: Option<Open>,
    now_ms: i64,
}

impl Lines {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be opened, or is no regular file.
    pub fn open(path: &Path, now_ms: i64) -> Result<Self, ImportError> {
        let failed = |error| ImportError::File {
            path: path.to_owned(),
            error,
        };
        // Before it is opened: a pipe that nobody writes to would not even be.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(ImportError::Once { path: path.to_owned() });
        }
        let file = File::open(path).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::new(file),
            digest: Sha256::new(),
            line: 0,
            buffer: Vec::new(),
            open: None,
            now_ms,
        })
    }

    /// The next of its contents; `None` at its end.
    ///
    /// # Errors
    /// A line that no export writes, or an end where there should be none.
    #[expect(clippy::should_implement_trait, reason = "an iterator would go on after an error")]
    pub fn next(&mut self) -> Result<Option<Item>, ImportError> {
        while self.read_line()? {
            let line = self.parse()?;
            if let Some(item) = self.item(line).map_err(|why| self.bad(why))? {
                return Ok(Some(item));
            }
        }
        match &self.open {
            Some(open) => Err(self.bad(format!("the file ends within broadcast {}: it was cut off", open.id))),
            // Its end was its first line: what a failed export leaves.
            None if self.line == 1 => Err(self.bad("the file is empty: an export has one broadcast at least")),
            None => Ok(None),
        }
    }

    fn parse(&self) -> Result<Line, ImportError> {
        // Without its end, behind which the parser would count another line.
        let text = self.buffer.trim_ascii_end();
        serde_json::from_slice(text).map_err(|error| match self.line {
            // Whoever gives a file of another kind is told so, and not of its first letter.
            1 if !is_typed_object(text) => self.bad(format!("{NOT_NDJSON} ({})", in_line(&error))),
            _ => self.bad(in_line(&error)),
        })
    }

    fn bad(&self, why: impl ToString) -> ImportError {
        ImportError::Line {
            path: self.path.clone(),
            line: self.line,
            why: why.to_string(),
        }
    }

    fn read_line(&mut self) -> Result<bool, ImportError> {
        self.buffer.clear();
        let mut limited = (&mut self.reader).take(MAX_LINE);
        let count = limited
            .read_until(b'\n', &mut self.buffer)
            .map_err(|error| ImportError::File {
                path: self.path.clone(),
                error,
            })?;
        self.digest.update(&self.buffer);
        self.line += 1;
        if self.line == 1 && self.buffer.starts_with(GZIP) {
            return Err(self.bad(format!("it is gzip: decompress it first; {NOT_NDJSON}")));
        }
        if count as u64 == MAX_LINE {
            return Err(self.bad(format!("it is longer than {MAX_LINE} bytes")));
        }
        Ok(count > 0)
    }

    fn item(&mut self, line: Line) -> Result<Option<Item>, String> {
        match (line, self.open.take()) {
            (Line::Broadcast(header), None) => {
                let record = record(header)?;
                self.open = Some(Open {
                    id: record.broadcast.id,
                    presenter: record.broadcast.presenter,
                    events: 0,
                    last: None,
                });
                Ok(Some(Item::Broadcast(Box::new(record))))
            }
            (Line::Broadcast(_), Some(open)) => Err(format!(
                "a broadcast begins within broadcast {}: it was cut off",
                open.id
            )),
            (_, None) => Err("it belongs to no broadcast".into()),
            (Line::End(End { broadcast_id, events }), Some(open)) => {
                if (broadcast_id, events) != (open.id, open.events) {
                    let (id, count) = (open.id, open.events);
                    return Err(format!(
                        "it ends broadcast {broadcast_id} with {events} events; broadcast {id} has {count}"
                    ));
                }
                Ok(None)
            }
            (Line::Chat(chat), Some(open)) => self.event(chat_of(chat, open.presenter)?, open).map(Some),
            (Line::Moderation(act), Some(open)) => self.event(act_of(act, open.presenter)?, open).map(Some),
        }
    }

    fn event(&mut self, logged: Logged, mut open: Open) -> Result<Item, String> {
        let event = &logged.event;
        if event.seq == Seq(0) {
            return Err(format!("seq {} is none", event.seq));
        }
        seq(event.seq.0)?;
        if event.id.get_version_num() != 7 {
            return Err(format!("the id {} is no UUIDv7", event.id));
        }
        if event.sent_at_ms > self.now_ms.saturating_add(MAX_AHEAD_MS) {
            return Err("it was sent more than a day from now".into());
        }
        // Acts cover what has a lower id, and retention goes by them: they are in the order of time (rule 5).
        if i64::try_from(event.id.as_u64_pair().0 >> 16) != Ok(event.sent_at_ms) {
            return Err(format!("the id {} is not of the time it was sent", event.id));
        }
        if let Some((epoch, last, id)) = &open.last
            && *epoch == event.epoch
        {
            if *last > event.seq {
                return Err(format!("seq {} comes behind seq {last}", event.seq));
            }
            if *last == event.seq && *id >= event.id {
                return Err(format!(
                    "seq {last} with the id {} comes behind that with {id}",
                    event.id
                ));
            }
        }
        open.last = Some((event.epoch.clone(), event.seq, event.id));
        open.events += 1;
        self.open = Some(open);
        Ok(Item::Event(Box::new(logged)))
    }
}

/// Whether this is an object that says of which type it is, as each line of an export does.
fn is_typed_object(text: &[u8]) -> bool {
    serde_json::from_slice::<Value>(text).is_ok_and(|line| line.get("type").is_some_and(Value::is_string))
}

/// What is wrong within a line. The parser names a line of its own, which is always the first: that would be a second number.
fn in_line(error: &serde_json::Error) -> String {
    let (text, column) = (error.to_string(), error.column());
    match text.strip_suffix(&format!(" at line {} column {column}", error.line())) {
        Some(why) => format!("{why}, column {column}"),
        None => text,
    }
}

fn user(name: &str, number: i64) -> Result<UserIdx, String> {
    UserIdx::new(number).ok_or_else(|| format!("{name} is negative"))
}

/// A numbering's name. Ours are hexadecimal; what was made elsewhere may have another, but nothing that is more than a name
/// where it is shown, as a formula is in a spreadsheet.
fn epoch(name: String) -> Result<Epoch, String> {
    let begins = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let goes_on = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !begins || !goes_on || name.len() > EPOCH_MAX_BYTES {
        return Err(format!(
            "epoch is not of 1 to {EPOCH_MAX_BYTES} letters, digits and hyphens, no hyphen first"
        ));
    }
    Ok(Epoch(name.into()))
}

fn seq(number: u64) -> Result<Seq, String> {
    match number <= MAX_SEQ {
        true => Ok(Seq(number)),
        false => Err(format!("seq {number} is none: the greatest is {MAX_SEQ}")),
    }
}

fn record(header: Header) -> Result<StoredBroadcast, String> {
    if header.format != FORMAT {
        let found = header.format;
        return Err(format!("it has format {found}; this version reads format {FORMAT}"));
    }
    let presenter = PresenterIdx::new(header.presenter_idx).ok_or("presenter_idx is negative")?;
    let spans = header.spans.into_iter().map(|span| {
        Ok(Span {
            epoch: epoch(span.epoch)?,
            after: seq(span.after)?,
            through: span.through.map(seq).transpose()?,
        })
    });
    let mut broadcast = Broadcast {
        id: header.id,
        presenter,
        room_idx: header.room_idx,
        reported_start_ms: header.reported_start,
        ended_at_ms: header.ended_at,
        segments: header
            .segments
            .into_iter()
            .map(|segment| Segment {
                from_ms: segment.from,
                to_ms: segment.to,
            })
            .collect(),
        spans: spans.collect::<Result<_, String>>()?,
        seen_at_ms: header.seen_at,
        version: i64::try_from(header.version)
            .map_err(|_| "version is too great")?
            .cast_unsigned(),
    };
    if broadcast.segments.is_empty() || broadcast.spans.is_empty() {
        return Err("segments and spans are never empty".into());
    }
    if broadcast.ended_at_ms.is_none() {
        // Nobody would ever end it here.
        let exported = header.exported_at.ok_or("it has neither ended_at nor exported_at")?;
        if let Some(last) = broadcast.segments.last_mut() {
            last.to_ms.get_or_insert(exported.max(last.from_ms));
        }
        broadcast.ended_at_ms = Some(exported);
    }
    Ok(StoredBroadcast {
        broadcast,
        corrected_start_ms: header.corrected_start,
        legal_hold: header.legal_hold,
    })
}

fn message(user_idx: UserIdx, nickname: &str, text: String, role: Role) -> Result<ChatMessage, String> {
    // Whatever the limits are today, what was accepted once is taken back.
    Ok(ChatMessage {
        user_idx,
        nickname: Nickname::new(nickname, usize::MAX).map_err(|_| "nickname is too long")?,
        text: MessageText::maybe_empty(text, usize::MAX).map_err(|_| "text is too long")?,
        role,
    })
}

fn chat_of(chat: Chat, presenter_idx: PresenterIdx) -> Result<Logged, String> {
    let deleted = match (chat.deleted_at, chat.deleted_by) {
        (Some(at_ms), Some(by)) => Some(Deleted {
            at_ms,
            by: user("deleted_by", by)?,
        }),
        (None, None) => None,
        _ => return Err("deleted_at and deleted_by come together".into()),
    };
    Ok(Logged {
        event: Event {
            id: chat.id,
            presenter_idx,
            epoch: epoch(chat.epoch)?,
            seq: Seq(chat.seq),
            sent_at_ms: chat.sent_at,
            room_idx: chat.room_idx,
            broadcast_id: chat.broadcast_id,
            chat: message(user("user_idx", chat.user_idx)?, &chat.nickname, chat.text, chat.role)?,
            act: None,
            keyed: None,
        },
        deleted,
    })
}

fn act_of(line: Moderation, presenter_idx: PresenterIdx) -> Result<Logged, String> {
    match line.act {
        Act::User { user_idx } => {
            user("user_idx", user_idx.get())?;
        }
        Act::Message { seq: target, .. } => {
            seq(target.0)?;
        }
        Act::Span { .. } => {}
    }
    Ok(Logged {
        event: Event {
            id: line.id,
            presenter_idx,
            epoch: epoch(line.epoch)?,
            seq: Seq(line.seq),
            sent_at_ms: line.sent_at,
            room_idx: line.room_idx,
            broadcast_id: line.broadcast_id,
            chat: message(user("by", line.by)?, &line.nickname, String::new(), line.role)?,
            act: Some(Arc::new(line.act)),
            keyed: None,
        },
        deleted: None,
    })
}
