//! How far what a legacy session wrote has got into its socket (v1: its client's acks tell).
//!
//! All that was written in one turn of the session's goes to the socket in one piece, and mostly at once: then it is counted by the
//! next turn, and nothing else happens. Where the socket takes a part of it, the transport tells how much, and what the part ends in
//! is looked for among the frames. Events of which nothing went are given back ([`Flow::give_back`]) until the socket takes more;
//! if their reading ends meanwhile, the next session has them, and they are taken out of what is still to be written.

use std::{cell::RefCell, sync::Arc};

use bytes::Bytes;

use super::flow::Flow;
use crate::{
    registry::{RegistryHandle, SessionId},
    types::Seq,
    wire::legacy::is_chat,
};

/// For so many events that are under way memory is kept when they have gone.
const KEPT: usize = 64;

/// What was written and is not known to have been taken by the socket yet; shared with the transport, which knows when it is.
#[derive(Default)]
pub struct Progress {
    written: RefCell<Written>,
    pub(super) told: RefCell<Option<(RegistryHandle, SessionId)>>,
}

/// What was written since the socket took everything.
#[derive(Default)]
struct Written {
    flow: Option<Arc<Flow>>,
    /// The last event of this reading that went before.
    before: Option<Seq>,
    /// Events of this reading, in the order of their frames.
    events: Vec<Seq>,
    /// How many events of earlier readings, which have ended, are ahead of them.
    earlier: usize,
    /// How many of `events` went whole.
    gone: usize,
    /// How many bytes went.
    sent: usize,
    /// How many of them are frames that went whole.
    at: usize,
    given_back: bool,
}

impl Written {
    /// Forgets everything but the reading, and how far that got.
    fn clear(&mut self) {
        self.events.clear();
        self.events.shrink_to(KEPT);
        (self.earlier, self.gone, self.sent, self.at) = (0, 0, 0, 0);
        self.given_back = false;
    }
}

impl Progress {
    /// These events of this reading were written.
    pub(super) fn wrote(&self, flow: &Arc<Flow>, events: impl Iterator<Item = Seq>) {
        let mut written = self.written.borrow_mut();
        if !written.flow.as_ref().is_some_and(|of| Arc::ptr_eq(of, flow)) {
            // The reading before ended before this one began.
            let earlier = written.earlier + written.events.len();
            written.clear();
            written.earlier = earlier;
            written.before = None;
            written.flow = Some(Arc::clone(flow));
        }
        written.events.extend(events);
    }

    /// The transport has room again: everything written so far was flushed to it.
    pub fn flushed(&self) {
        let mut written = self.written.borrow_mut();
        let Some(last) = written.events.last().copied() else {
            return;
        };
        let more = written.events.len() - written.gone;
        written.before = Some(last);
        written.clear();
        self.tell(&written, more);
    }

    /// The socket takes no more for now. These bytes are all that was written since it took everything, and so many of them went.
    pub fn blocked(&self, bytes: &[u8], sent: usize) {
        let mut written = self.written.borrow_mut();
        if written.events.is_empty() {
            return;
        }
        let (gone, moves) = (written.gone, sent > written.sent);
        written.sent = sent;
        let mut begun = 0;
        while let Some(frame) = Frame::at(bytes, written.at).filter(|frame| frame.from < sent) {
            let chat = frame.is_chat();
            if frame.to > sent {
                begun = usize::from(chat && written.earlier == 0);
                break;
            }
            written.at = frame.to;
            match written.earlier {
                0 => written.gone += usize::from(chat),
                _ => written.earlier -= usize::from(chat),
            }
        }
        let touched = written.gone + begun;
        if touched < written.events.len()
            && let Some(flow) = &written.flow
        {
            let through = touched.checked_sub(1).map(|last| written.events[last]);
            written.given_back = flow.give_back(through.or(written.before));
        }
        if moves && let Some(flow) = &written.flow {
            flow.progress();
        }
        self.tell(&written, written.gone - gone);
    }

    /// The socket may take more of these bytes, of which so many went. Returns what is to be written in place of the rest, if it is
    /// not all of that: what was given back to a reading that has ended is not written any more, all else is.
    pub fn resumes(&self, bytes: &[u8], sent: usize) -> Option<Bytes> {
        let mut written = self.written.borrow_mut();
        if !std::mem::take(&mut written.given_back) {
            return None;
        }
        let (flow, last) = (written.flow.as_ref()?, *written.events.last()?);
        if flow.take_again(last) {
            return None;
        }
        let (mut rest, mut at, mut earlier) = (Vec::new(), written.at, written.earlier);
        while let Some(frame) = Frame::at(bytes, at) {
            at = frame.to;
            let chat = frame.is_chat();
            // One that has begun is ended: what comes behind it is to be read.
            if !chat || earlier > 0 || frame.from < sent {
                rest.extend_from_slice(&bytes[frame.from.max(sent)..frame.to]);
            }
            earlier -= usize::from(chat && earlier > 0);
        }
        written.clear();
        Some(rest.into())
    }

    /// So many more events went.
    fn tell(&self, written: &Written, events: usize) {
        if events > 0
            && let Some(flow) = &written.flow
            && flow.flush(events as u64)
            && let Some((registry, session)) = &*self.told.borrow()
        {
            registry.flushed(*session);
        }
    }
}

/// One frame as the server writes it: unmasked, and whole.
struct Frame<'a> {
    from: usize,
    to: usize,
    opcode: u8,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The one that begins there, if one does.
    fn at(bytes: &'a [u8], from: usize) -> Option<Self> {
        let [first, length, rest @ ..] = bytes.get(from..)? else {
            return None;
        };
        let (more, length) = match length {
            126 => (2, u64::from(u16::from_be_bytes(*rest.first_chunk()?))),
            127 => (8, u64::from_be_bytes(*rest.first_chunk()?)),
            short => (0, u64::from(*short)),
        };
        let payload = rest.get(more..)?.get(..usize::try_from(length).ok()?)?;
        Some(Self {
            from,
            to: from + 2 + more + payload.len(),
            opcode: first & 0x0f,
            payload,
        })
    }

    /// Whether it is an event. A pong is whatever the client likes, so its bytes alone do not tell.
    fn is_chat(&self) -> bool {
        self.opcode == 1 && is_chat(self.payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::legacy::{PONG, encode_chat, error_unknown_id};

    const TEXT: u8 = 1;
    const PONG_FRAME: u8 = 10;

    fn frame(opcode: u8, text: &str) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        match text.len() {
            short @ ..126 => frame.push(u8::try_from(short).unwrap()),
            medium @ 126..65_536 => {
                frame.push(126);
                frame.extend(u16::try_from(medium).unwrap().to_be_bytes());
            }
            long => {
                frame.push(127);
                frame.extend((long as u64).to_be_bytes());
            }
        }
        frame.extend(text.as_bytes());
        frame
    }

    fn chat(text: &str) -> Vec<u8> {
        frame(TEXT, &encode_chat("kim", text, "09:00"))
    }

    /// What a session with this flow that took these events has written of them.
    fn wrote(events: &[u64]) -> (Progress, Arc<Flow>) {
        let (progress, flow) = (Progress::default(), Arc::new(Flow::default()));
        write(&progress, &flow, events);
        (progress, flow)
    }

    fn write(progress: &Progress, flow: &Arc<Flow>, events: &[u64]) {
        assert!(flow.take(Seq(*events.last().unwrap())));
        progress.wrote(flow, events.iter().copied().map(Seq));
    }

    #[test]
    fn what_goes_at_once_is_counted_and_stays_taken() {
        let (progress, flow) = wrote(&[3, 5]);
        assert_eq!(progress.resumes(b"", 0), None);
        progress.flushed();
        progress.flushed();
        assert_eq!(
            (flow.take_flushed(), flow.take_progress(), flow.end()),
            (2, false, Some(Seq(5)))
        );
    }

    #[test]
    fn a_frame_that_has_begun_is_taken_and_those_behind_it_are_given_back_byte_by_byte() {
        let frames = [chat("a"), chat(&"b".repeat(200)), chat(&"c".repeat(70_000)), chat("d")];
        let (events, bytes) = ([2, 3, 7, 9], frames.concat());
        let ends: Vec<usize> = (1..=4).map(|n| frames[..n].concat().len()).collect();
        for sent in (0..400).chain(ends[1] + 69_900..bytes.len()) {
            let (progress, flow) = wrote(&events);
            progress.blocked(&bytes, sent);
            let whole = ends.iter().filter(|end| **end <= sent).count();
            let begun = ends[..whole].last().map_or(0, |end| *end) < sent;
            let through = (whole + usize::from(begun))
                .checked_sub(1)
                .map(|last| Seq(events[last]));
            assert_eq!(flow.take_flushed(), whole as u64, "{sent}");
            assert_eq!(flow.take_progress(), sent > 0, "{sent}");
            assert_eq!(progress.resumes(&bytes, sent), None, "{sent}");
            progress.blocked(&bytes, sent);
            assert_eq!((flow.take_flushed(), flow.take_progress()), (0, false), "{sent}");
            assert_eq!(flow.end(), through, "{sent}");
            // The beginning of the last one has nothing behind it to give back.
            let touched = whole + usize::from(begun);
            let to = ends[..touched].last().map_or(0, |end| *end);
            let rest = (touched < 4).then(|| Bytes::copy_from_slice(&bytes[sent..to]));
            assert_eq!(progress.resumes(&bytes, sent), rest, "{sent}");
        }
    }

    #[test]
    fn what_is_no_event_is_written_whatever_it_looks_like() {
        let (progress, flow) = wrote(&[1]);
        progress.flushed();
        write(&progress, &flow, &[2, 3]);
        // A client has its ping's payload back.
        let other = [
            frame(PONG_FRAME, &encode_chat("kim", "a", "09:00")),
            frame(TEXT, PONG),
            frame(TEXT, &error_unknown_id("sendChatting")),
        ];
        let bytes = [&other[0], &chat("2"), &other[1], &chat("3"), &other[2]]
            .map(|frame| &frame[..])
            .concat();
        progress.blocked(&bytes, other[0].len());
        assert_eq!(flow.end(), Some(Seq(1)));
        let rest = progress.resumes(&bytes, other[0].len()).unwrap();
        assert_eq!(rest, other[1..].concat());
        // They are events of nobody any more.
        progress.blocked(&rest, 1);
        progress.flushed();
        assert_eq!(flow.take_flushed(), 1);
    }

    #[test]
    fn the_events_of_a_reading_that_ended_before_another_began_are_written() {
        let (progress, old) = wrote(&[1, 2]);
        assert_eq!(old.end(), Some(Seq(2)));
        let new = Arc::new(Flow::default());
        write(&progress, &new, &[3, 4]);
        let frames = ["1", "2", "3", "4"].map(chat);
        let bytes = frames.concat();
        progress.blocked(&bytes, frames[0].len() + 1);
        assert_eq!((old.take_flushed(), new.take_flushed()), (0, 0));
        assert_eq!(new.end(), None);
        let rest = progress.resumes(&bytes, frames[0].len() + 1).unwrap();
        assert_eq!(rest, frames[1][1..]);
    }

    #[test]
    fn a_reading_that_ended_with_all_of_it_taken_is_written_to_the_end() {
        let (progress, flow) = wrote(&[1, 2]);
        let bytes = [chat("1"), chat("2")].concat();
        assert_eq!(flow.end(), Some(Seq(2)));
        progress.blocked(&bytes, 1);
        assert_eq!(progress.resumes(&bytes, 1), None);
    }
}
