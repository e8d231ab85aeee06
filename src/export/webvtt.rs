//! WebVTT (W3C): one cue a message, at its offset and for `export.cue_ms`, its sender as the cue's voice.
//!
//! A text cannot end its cue: `>` is written `&gt;`, so there is no `-->`, and lines without anything in them, which end a cue,
//! are left out.

use super::Encoder;
use crate::store::{Logged, StoredBroadcast};

pub(super) struct Webvtt {
    cue_ms: i64,
}

impl Webvtt {
    pub(super) fn new(cue_ms: i64) -> Self {
        Self { cue_ms }
    }
}

impl Encoder for Webvtt {
    fn head(&mut self, record: &StoredBroadcast, out: &mut Vec<u8>) {
        let (id, room) = (record.broadcast.id, record.broadcast.presenter);
        out.extend_from_slice(format!("WEBVTT\n\nNOTE Chat of broadcast {id} in room {room}\n").as_bytes());
    }

    fn event(&mut self, logged: &Logged, offset_ms: i64, out: &mut Vec<u8>) {
        let event = &logged.event;
        let (from, to) = (time(offset_ms), time(offset_ms.saturating_add(self.cue_ms)));
        let name = match event.chat.nickname.as_str().trim() {
            // A voice needs a name.
            "" => event.chat.user_idx.to_string(),
            name => escaped(&name.replace(['\r', '\n'], " ")),
        };
        let text = escaped(&lines(event.chat.text.as_str()));
        out.extend_from_slice(format!("\n{}\n{from} --> {to}\n<v {name}>{text}</v>\n", event.id).as_bytes());
    }

    fn tail(&mut self, _out: &mut Vec<u8>) {}
}

/// `HH:MM:SS.mmm`; hours may have more digits.
fn time(ms: i64) -> String {
    let seconds = ms / 1000;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        ms % 1000
    )
}

/// The lines that have something in them.
fn lines(text: &str) -> String {
    let lines: Vec<&str> = text.split(['\r', '\n']).filter(|line| !line.is_empty()).collect();
    lines.join("\n")
}

/// NUL is no character of WebVTT; its readers take U+FFFD for it, and so do we.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\0' => escaped.push('\u{fffd}'),
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_never_ends_its_cue() {
        let rows = [
            ("a\n\n00:00 --> 00:01\nb", "a\n00:00 --&gt; 00:01\nb"),
            ("\r\n\r\nx\r", "x"),
            ("<v x>&amp;", "&lt;v x&gt;&amp;amp;"),
            ("", ""),
        ];
        for (from, to) in rows {
            assert_eq!(escaped(&lines(from)), to, "{from:?}");
        }
        assert_eq!(time(0), "00:00:00.000");
        assert_eq!(time(360_061_007), "100:01:01.007");
    }
}
