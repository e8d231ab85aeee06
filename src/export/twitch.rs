//! The chat JSON of TwitchDownloader (its `ChatRoot`, FileInfo 1.4.0), which existing chat renderers read.
//!
//! What has no counterpart here is what such a file says when it does not know: no emotes, no chapters, an account's age as the
//! year 1. `streamer.id` is a 32-bit number there; a presenter's that does not fit is 0, and the name has it all the same.

use chatting_actors::{
    types::{Role, UserIdx},
    wire::v1::timestamp,
};
use serde::Serialize;
use serde_json::json;

use super::{Encoder, json as write};
use crate::store::{Logged, StoredBroadcast};

/// .NET's default of a date, which stands for none.
const NO_DATE: &str = "0001-01-01T00:00:00Z";

/// Colours that can be read on dark and on light.
const COLOURS: [&str; 12] = [
    "#E05A47", "#D97B29", "#B8901F", "#7A9A2E", "#3FA34D", "#2A9D8F", "#2F8FC4", "#5B7FE0", "#8A6FE8", "#B45FD6",
    "#D6559A", "#A8705A",
];

#[derive(Serialize)]
struct Comment<'a> {
    _id: String,
    created_at: String,
    channel_id: &'a str,
    content_type: &'static str,
    content_id: &'a str,
    content_offset_seconds: f64,
    commenter: Commenter,
    message: Message<'a>,
}

#[derive(Serialize)]
struct Commenter {
    display_name: String,
    _id: String,
    name: String,
    bio: Option<()>,
    created_at: &'static str,
    updated_at: &'static str,
    logo: Option<()>,
}

#[derive(Serialize)]
struct Message<'a> {
    body: &'a str,
    bits_spent: u32,
    fragments: [Fragment<'a>; 1],
    user_badges: Vec<Badge>,
    user_color: &'static str,
    emoticons: [(); 0],
}

#[derive(Serialize)]
struct Fragment<'a> {
    text: &'a str,
    emoticon: Option<()>,
}

#[derive(Serialize)]
struct Badge {
    _id: &'static str,
    version: &'static str,
}

pub(super) struct Twitch {
    now_ms: i64,
    channel: String,
    video: String,
    first: bool,
}

impl Twitch {
    pub(super) fn new(now_ms: i64) -> Self {
        Self {
            now_ms,
            channel: String::new(),
            video: String::new(),
            first: true,
        }
    }
}

impl Encoder for Twitch {
    fn head(&mut self, record: &StoredBroadcast, out: &mut Vec<u8>) {
        let StoredBroadcast {
            broadcast,
            corrected_start_ms,
            ..
        } = record;
        let presenter = broadcast.presenter;
        self.channel = presenter.to_string();
        self.video = broadcast.id.to_string();
        let until = broadcast.ended_at_ms.unwrap_or(self.now_ms);
        let length = seconds(broadcast.length_ms(until, *corrected_start_ms));
        let started = corrected_start_ms.unwrap_or_else(|| broadcast.started_at_ms());
        let now = timestamp(self.now_ms);
        let info = json!({
            "Version": { "Major": 1, "Minor": 4, "Patch": 0 },
            "CreatedAt": now,
            "UpdatedAt": now,
        });
        let streamer = json!({
            "name": self.channel,
            "login": self.channel,
            "id": i32::try_from(presenter.get()).unwrap_or(0),
        });
        let video = json!({
            "title": format!("Chat of room {presenter}"),
            "description": null,
            "id": self.video,
            "created_at": timestamp(started),
            "start": 0.0,
            "end": length,
            "length": length,
            "viewCount": 0,
            "game": "",
            "chapters": [],
        });
        for (name, value) in [
            ("{\"FileInfo\":", info),
            (",\"streamer\":", streamer),
            (",\"video\":", video),
        ] {
            out.extend_from_slice(name.as_bytes());
            write(out, &value);
        }
        out.extend_from_slice(b",\"comments\":[");
    }

    fn event(&mut self, logged: &Logged, offset_ms: i64, out: &mut Vec<u8>) {
        let event = &logged.event;
        let user = event.chat.user_idx;
        let name = match event.chat.nickname.as_str() {
            "" => user.to_string(),
            name => name.to_owned(),
        };
        let body = event.chat.text.as_str();
        let comment = Comment {
            _id: event.id.to_string(),
            created_at: timestamp(event.sent_at_ms),
            channel_id: &self.channel,
            content_type: "video",
            content_id: &self.video,
            content_offset_seconds: seconds(offset_ms),
            commenter: Commenter {
                display_name: name.clone(),
                _id: user.to_string(),
                name,
                bio: None,
                created_at: NO_DATE,
                updated_at: NO_DATE,
                logo: None,
            },
            message: Message {
                body,
                bits_spent: 0,
                fragments: [Fragment {
                    text: body,
                    emoticon: None,
                }],
                user_badges: badges(event.chat.role),
                user_color: colour(user),
                emoticons: [],
            },
        };
        out.extend_from_slice(if self.first { b"\n" } else { b",\n" });
        self.first = false;
        write(out, &comment);
    }

    fn tail(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\n],\"embeddedData\":null}\n");
    }
}

#[expect(clippy::cast_precision_loss, reason = "a broadcast of 285,000 years is exact")]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

fn badges(role: Role) -> Vec<Badge> {
    let id = match role {
        Role::Viewer => return Vec::new(),
        Role::Presenter => "broadcaster",
        // An operator moderates every room; Twitch's own staff is something else.
        Role::Moderator | Role::Operator => "moderator",
    };
    vec![Badge { _id: id, version: "1" }]
}

/// Always the same of one user. Numbers near each other get colours far apart.
fn colour(user: UserIdx) -> &'static str {
    let mixed = user.get().cast_unsigned().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let index = usize::try_from(mixed).unwrap_or(0) % COLOURS.len();
    COLOURS[index]
}
