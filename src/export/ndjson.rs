//! NDJSON: see [`super::line`] for the lines.

use chatting_actors::types::Event;

use super::{
    Encoder, json,
    line::{Chat, End, FORMAT, Header, Line, Moderation, SegmentLine, SpanLine},
};
use crate::store::{Logged, StoredBroadcast};

pub(super) struct Ndjson {
    now_ms: i64,
    broadcast_id: uuid::Uuid,
    events: u64,
}

impl Ndjson {
    pub(super) fn new(now_ms: i64) -> Self {
        Self {
            now_ms,
            broadcast_id: uuid::Uuid::nil(),
            events: 0,
        }
    }
}

impl Encoder for Ndjson {
    fn head(&mut self, record: &StoredBroadcast, out: &mut Vec<u8>) {
        let broadcast = &record.broadcast;
        self.broadcast_id = broadcast.id;
        let header = Header {
            format: FORMAT,
            id: broadcast.id,
            presenter_idx: broadcast.presenter.get(),
            room_idx: broadcast.room_idx,
            reported_start: broadcast.reported_start_ms,
            ended_at: broadcast.ended_at_ms,
            exported_at: broadcast.ended_at_ms.is_none().then_some(self.now_ms),
            corrected_start: record.corrected_start_ms,
            legal_hold: record.legal_hold,
            seen_at: broadcast.seen_at_ms,
            version: broadcast.version,
            segments: broadcast
                .segments
                .iter()
                .map(|segment| SegmentLine {
                    from: segment.from_ms,
                    to: segment.to_ms,
                })
                .collect(),
            spans: broadcast
                .spans
                .iter()
                .map(|span| SpanLine {
                    epoch: span.epoch.to_string(),
                    after: span.after.0,
                    through: span.through.map(|seq| seq.0),
                })
                .collect(),
        };
        write(&Line::Broadcast(header), out);
    }

    fn event(&mut self, logged: &Logged, offset_ms: i64, out: &mut Vec<u8>) {
        self.events += 1;
        write(&line(logged, offset_ms), out);
    }

    fn tail(&mut self, out: &mut Vec<u8>) {
        let end = End {
            broadcast_id: self.broadcast_id,
            events: self.events,
        };
        write(&Line::End(end), out);
    }
}

fn write(line: &Line, out: &mut Vec<u8>) {
    json(out, line);
    out.push(b'\n');
}

fn line(logged: &Logged, offset_ms: i64) -> Line {
    let Event {
        id,
        seq,
        sent_at_ms,
        room_idx,
        broadcast_id,
        ..
    } = logged.event;
    let (epoch, chat) = (logged.event.epoch.to_string(), &logged.event.chat);
    let (user, nickname, role) = (chat.user_idx.get(), chat.nickname.as_str().to_owned(), chat.role);
    match &logged.event.act {
        Some(act) => Line::Moderation(Moderation {
            seq: seq.0,
            epoch,
            id,
            sent_at: sent_at_ms,
            offset_ms,
            broadcast_id,
            room_idx,
            by: user,
            nickname,
            role,
            act: (**act).clone(),
        }),
        None => Line::Chat(Chat {
            seq: seq.0,
            epoch,
            id,
            sent_at: sent_at_ms,
            offset_ms,
            broadcast_id,
            room_idx,
            user_idx: user,
            nickname,
            role,
            text: chat.text.as_str().to_owned(),
            deleted_at: logged.deleted.map(|deleted| deleted.at_ms),
            deleted_by: logged.deleted.map(|deleted| deleted.by.get()),
        }),
    }
}
