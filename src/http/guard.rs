//! Looks at WebSocket frame headers before the codec buffers the frames that they announce.
//!
//! actix's codec refuses an oversized frame only when all of it has arrived, so a header that announces a gigabyte would
//! be believed for a gigabyte. The guard reads the headers as they pass, reports a violation once, and swallows what
//! follows, so that the close frame can still be read by a peer that is busy sending.
//!
//! It gives on no more than the frame that the session is to deal with next, and what came with its end; all else waits in the socket.
//! And what the session answers goes to the socket before more is read: a peer that takes none of it is not read any more.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_web::error::PayloadError;
use bytes::Bytes;
use chatting_actors::session::{Inbound, Violation};
use futures_util::{Stream, StreamExt};

/// Frames that may have begun before the session has dealt with the first of them: what a client sends faster waits in its socket, and
/// not in the codec's buffer, which has no bound of its own.
const AHEAD: usize = 1;

/// Bytes that are given on in one turn of the session once it has dealt with a frame: more than nearly all clients say at once.
const TURN: usize = 4096;

/// Where in the byte stream the next byte belongs (RFC 6455, 5.2).
#[derive(Debug)]
enum At {
    Header { bytes: [u8; 14], have: usize },
    Payload { left: u64 },
}

/// Follows frame headers through a stream of client frames.
#[derive(Debug)]
pub struct FrameHeaders {
    at: At,
    max: u64,
    /// Whole headers that passed.
    passed: usize,
}

impl FrameHeaders {
    /// Frames of more than `max` payload bytes are a violation.
    pub fn new(max: usize) -> Self {
        Self {
            at: At::Header {
                bytes: [0; 14],
                have: 0,
            },
            max: max as u64,
            passed: 0,
        }
    }

    /// Looks at the next bytes of the stream.
    pub fn pass(&mut self, mut chunk: &[u8]) -> Result<(), Violation> {
        while !chunk.is_empty() {
            match &mut self.at {
                At::Payload { left } => {
                    let take = (*left).min(chunk.len() as u64);
                    *left -= take;
                    chunk = &chunk[usize::try_from(take).unwrap_or(chunk.len())..];
                    if *left == 0 {
                        self.at = At::Header {
                            bytes: [0; 14],
                            have: 0,
                        };
                    }
                }
                At::Header { bytes, have } => {
                    bytes[*have] = chunk[0];
                    *have += 1;
                    chunk = &chunk[1..];
                    if let Some(length) = complete(&bytes[..*have])? {
                        if length > self.max {
                            return Err(Violation::TooBig);
                        }
                        self.passed += 1;
                        self.at = match length {
                            0 => At::Header {
                                bytes: [0; 14],
                                have: 0,
                            },
                            left => At::Payload { left },
                        };
                    }
                }
            }
        }
        Ok(())
    }
}

/// The payload length once the header is whole.
fn complete(header: &[u8]) -> Result<Option<u64>, Violation> {
    let first = header[0];
    let opcode = first & 0x0f;
    let control = opcode & 0x08 != 0;
    if first & 0x70 != 0 || !matches!(opcode, 0..=2 | 8..=10) || (control && first & 0x80 == 0) {
        return Err(Violation::Protocol);
    }
    let Some(second) = header.get(1) else {
        return Ok(None);
    };
    let short = second & 0x7f;
    if second & 0x80 == 0 || (control && short > 125) {
        return Err(Violation::Protocol);
    }
    let extended = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    if header.len() < 2 + extended + 4 {
        return Ok(None);
    }
    Ok(Some(match extended {
        0 => u64::from(short),
        _ => header[2..2 + extended]
            .iter()
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte)),
    }))
}

/// A request's payload with the guard in front of the codec.
pub struct Guarded<S> {
    payload: S,
    headers: FrameHeaders,
    inbound: Rc<Inbound>,
}

impl<S> Guarded<S> {
    /// Guards `payload`; what is wrong with it is left in `inbound`, for the session to choose its close code by.
    pub fn new(payload: S, max: usize, inbound: Rc<Inbound>) -> Self {
        Self {
            payload,
            headers: FrameHeaders::new(max),
            inbound,
        }
    }
}

impl<S: Stream<Item = Result<Bytes, PayloadError>> + Unpin> Stream for Guarded<S> {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.inbound.violation().is_none() {
            if self.inbound.ahead() > AHEAD {
                // The codec has a whole frame to give; it asks here again before each of them.
                return Poll::Pending;
            }
            if self.inbound.dealt_of() >= TURN {
                // Where nothing is said, the next turn is at once.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        // Swallowing is bounded a turn, so that a flood cannot keep this worker from its other work.
        for _ in 0..32 {
            let chunk = match self.payload.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(chunk))) => chunk,
                other => return other,
            };
            if self.inbound.violation().is_some() {
                continue;
            }
            let passed = self.headers.passed;
            if let Err(violation) = self.headers.pass(&chunk) {
                self.inbound.violate(violation);
                return Poll::Ready(Some(Err(PayloadError::Overflow)));
            }
            let frames = self.headers.passed - passed;
            self.inbound.came(frames, chunk.len());
            return Poll::Ready(Some(Ok(chunk)));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::{FutureExt, stream};

    use super::*;

    /// A masked frame as a client sends it, with a zero mask.
    fn frame(first: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![first];
        match length {
            0..=125 => frame.push(0x80 | length as u8),
            126..=65535 => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(vec![b'x'; length.min(100_000)]);
        frame
    }

    #[test]
    fn frames_within_the_limit_pass_however_they_are_cut() {
        let mut stream = Vec::new();
        for length in [0, 1, 125, 126, 300, 32_768] {
            stream.extend(frame(0x81, length));
            stream.extend(frame(0x89, 3));
        }
        for cut in [1, 2, 7, 100, stream.len()] {
            let mut headers = FrameHeaders::new(32_768);
            for chunk in stream.chunks(cut) {
                assert_eq!(headers.pass(chunk), Ok(()), "cut every {cut}");
            }
        }
    }

    #[test]
    fn a_header_that_announces_too_much_is_refused_before_its_payload_comes() {
        for length in [32_769, 1 << 40] {
            let announced = &frame(0x81, length)[..14];
            assert_eq!(FrameHeaders::new(32_768).pass(announced), Err(Violation::TooBig));
        }
    }

    #[test]
    fn what_the_session_has_not_dealt_with_is_not_added_to_without_end() {
        let polls = Rc::new(Cell::new(0));
        let counts = Rc::clone(&polls);
        let payload = stream::repeat_with(move || {
            counts.set(counts.get() + 1);
            Ok(Bytes::from(frame(0x81, 1)))
        });
        let inbound = Rc::<Inbound>::default();
        let mut guarded = Guarded::new(payload, 100, Rc::clone(&inbound));
        let mut passes = || guarded.next().now_or_never().is_some();
        assert!((0..=AHEAD).all(|_| passes()));
        assert!(!passes() && !passes());
        assert_eq!(polls.get(), AHEAD + 1, "the socket keeps the rest");
        inbound.handled();
        assert!(passes() && !passes());
    }

    /// What it answers waits for the end of its turn.
    #[test]
    fn in_one_turn_the_session_is_given_little_more_than_one_frame_however_quick_it_is() {
        for (length, most) in [(1, TURN + 7), (1000, TURN + 1008), (32_768, 32_776 + TURN)] {
            let bytes = frame(0x81, length);
            let chunks: Vec<_> = bytes.chunks(4096).map(Bytes::copy_from_slice).collect();
            let inbound = Rc::<Inbound>::default();
            let payload = stream::iter(chunks.into_iter().cycle().map(Ok));
            let mut guarded = Guarded::new(payload, 32_768, Rc::clone(&inbound));
            for turn in 0..3 {
                inbound.begin_turn();
                let mut given = 0;
                while let Some(chunk) = guarded.next().now_or_never() {
                    given += chunk.unwrap().unwrap().len();
                    while given % bytes.len() == 0 && inbound.ahead() > 0 {
                        inbound.handled();
                    }
                }
                assert!((length..=most).contains(&given), "{length}, {turn}: {given}");
            }
        }
    }

    #[test]
    fn what_is_no_client_frame_is_a_violation() {
        let unmasked = [0x81, 0x01, b'x'];
        let reserved_bits = frame(0xc1, 1);
        let reserved_opcode = frame(0x83, 1);
        let fragmented_ping = frame(0x09, 1);
        let long_ping = frame(0x89, 126);
        for bad in [
            &unmasked[..],
            &reserved_bits,
            &reserved_opcode,
            &fragmented_ping,
            &long_ping,
        ] {
            assert_eq!(
                FrameHeaders::new(32_768).pass(bad),
                Err(Violation::Protocol),
                "{:?}",
                &bad[..2]
            );
        }
    }
}
