//! What comes over a WebSocket: frames, and what they say in either dialect.

use actix_http::ws::{Codec, ProtocolError};
use bytes::BytesMut;
use chatting_actors::{
    seams::{Authenticate, Denied, Grant},
    session::{Close, Violation, action::Action, legacy, v1::Machine},
    types::PresenterIdx,
    wire::{
        legacy::{ClientFrame as LegacyFrame, PONG, START_WITHOUT_TOKEN, TOKEN_EXCEPTION, error_unknown_id},
        v1::{ClientFrame, parse_client},
    },
};
use proptest::{collection::vec, option, prelude::*, sample::Index};
use serde_json::{Value, json};
use tokio_util::codec::Decoder;

use super::{any_text, mutated, mutated_text};
use crate::http::guard::FrameHeaders;

const V1: &[&str] = &[
    r#"{"type":"hello","token":"12","epoch":"6604ebba104fa6c3","resume_after":41}"#,
    r#"{"type":"hello"}"#,
    r#"{"type":"ack","seq":57,"fanned_out":312}"#,
    r#"{"type":"ack","seq":18446744073709551615}"#,
    r#"{"type":"ping"}"#,
];

const LEGACY: &[&str] = &[
    "ping",
    r#"{"id":"start","token":"12"}"#,
    r#"{"id":"start","token":5}"#,
    r#"{"id":"start"}"#,
    r#"{"id":"dance","more":[{"a":null}]}"#,
];

/// A token is a presenter's number; 99's are expired, 13 connects too often.
struct Tokens;

impl Authenticate for Tokens {
    fn grant(&self, token: &str) -> Result<Grant, Denied> {
        let presenter = token.parse().ok().and_then(PresenterIdx::new).ok_or(Denied::Bad)?;
        if presenter.get() == 99 {
            return Err(Denied::Expired);
        }
        Ok(Grant {
            presenter,
            expires_at_ms: 5,
        })
    }

    fn admit(&self, presenter: PresenterIdx) -> bool {
        presenter.get() != 13
    }
}

proptest! {
    /// What is read is an object that says its type; what is not read is refused with a reason.
    #[test]
    fn a_v1_frame_is_read_as_what_it_says_or_refused_with_a_reason(text in mutated_text(V1)) {
        match parse_client(&text) {
            Ok(frame) => {
                let value: Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(&value["type"], frame.name());
                if let ClientFrame::Ack { seq, .. } = frame {
                    prop_assert_eq!(value["seq"].as_u64(), Some(seq));
                }
            }
            Err(why) => prop_assert!(!why.is_empty()),
        }
    }

    #[test]
    fn a_good_v1_frame_is_read_whatever_its_values_and_whatever_else_it_has(
        token in option::of(any_text()),
        epoch in option::of(any_text()),
        after in option::of(any::<u64>()),
        more in any_text(),
    ) {
        let text = json!({ "later": more, "type": "hello", "token": token, "epoch": epoch, "resume_after": after });
        let frame = ClientFrame::Hello { token, epoch, resume_after: after };
        prop_assert_eq!(parse_client(&text.to_string()), Ok(frame));
    }

    /// Before a good `hello` nothing but it, or the end, comes of any frame; the reason for an end is short.
    #[test]
    fn a_v1_session_begins_with_hello_and_ends_at_the_first_bad_frame(
        upgrade in prop_oneof![Just(None), Just(Some(12))],
        texts in vec(mutated_text(V1), 1..8),
    ) {
        let upgrade = upgrade.map(|presenter| Grant { presenter: PresenterIdx::new(presenter).unwrap(), expires_at_ms: 5 });
        let mut machine = Machine::new(upgrade);
        for text in texts {
            let open = machine.open();
            match machine.on_text(&text, &Tokens) {
                Action::Attach { presenter, .. } => {
                    prop_assert!(!open && machine.open());
                    prop_assert!(upgrade.is_none_or(|grant| grant.presenter == presenter));
                }
                Action::Ack { .. } | Action::Refreshed | Action::Postponed | Action::Reply(_) => prop_assert!(open),
                Action::Close(close, why) => {
                    prop_assert!(close.in_v1(), "{:?}", close);
                    prop_assert!(why.is_none_or(|why| why.chars().count() <= 200));
                    break;
                }
                other @ (Action::ReplyAndClose(..) | Action::AwaitKey) => prop_assert!(false, "{:?}", other),
            }
        }
    }

    /// A legacy client shows whatever it gets as a chat line.
    #[test]
    fn a_legacy_frame_is_answered_with_nothing_that_the_old_protocol_does_not_have(text in mutated_text(LEGACY)) {
        match legacy::on_text(&text, &Tokens) {
            Action::Attach { .. } => {}
            Action::Reply(reply) if reply == PONG => prop_assert_eq!(text, "ping"),
            Action::Reply(reply) => {
                let reply: Value = serde_json::from_str(&reply).unwrap();
                prop_assert!(reply["message"].as_str().unwrap().starts_with("Invalid message with id "));
            }
            Action::ReplyAndClose(reply, close) => {
                prop_assert!(reply == TOKEN_EXCEPTION || reply == START_WITHOUT_TOKEN, "{}", reply);
                prop_assert_eq!(close, Close::Normal);
            }
            Action::Close(close, why) => prop_assert!(close.code() <= 1011 && why.is_none(), "{:?} {:?}", close, why),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_good_legacy_frame_is_read_and_an_unknown_id_comes_back_as_it_was(id in any_text(), token in any_text()) {
        use chatting_actors::wire::legacy::parse_client;
        let start = json!({ "id": "start", "token": token }).to_string();
        prop_assert_eq!(parse_client(&start), LegacyFrame::Start { token });
        let reply: Value = serde_json::from_str(&error_unknown_id(&id)).unwrap();
        prop_assert_eq!(&reply["message"], &format!("Invalid message with id {id}"));
        if id != "start" {
            let unknown = json!({ "id": id }).to_string();
            prop_assert_eq!(parse_client(&unknown), LegacyFrame::UnknownId(id));
        }
    }
}

// ---- the guard before the codec ------------------------------------------------------------------------------------

const MAX: usize = 1000;

/// A client's frame with a zero mask, in the form of length that is asked for.
fn frame(first: u8, length: usize, form: u8) -> Vec<u8> {
    let mut frame = vec![first];
    match form {
        0 if length <= 125 => frame.push(0x80 | u8::try_from(length).unwrap()),
        0 | 1 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(vec![b'x'; length]);
    frame
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let opcode = prop_oneof![
        Just(0x81),
        Just(0x82),
        Just(0x01),
        Just(0x00),
        Just(0x80),
        Just(0x89),
        Just(0x8a),
        Just(0x88)
    ];
    let length = prop_oneof![0..=2_usize, 120..=130_usize, 900..=1100_usize];
    vec(
        (opcode, length, 0..3_u8).prop_map(|(first, length, form)| frame(first, length, form)),
        1..5,
    )
    .prop_map(|frames| frames.concat())
}

/// What a reader says that has all of it before it.
fn verdict(mut bytes: &[u8]) -> Result<(), Violation> {
    while let Some(first) = bytes.first() {
        let (opcode, control) = (first & 0x0f, first & 0x08 != 0);
        let known = matches!(opcode, 0 | 1 | 2 | 8 | 9 | 10);
        if first & 0x70 != 0 || !known || control && first & 0x80 == 0 {
            return Err(Violation::Protocol);
        }
        let Some(second) = bytes.get(1) else { break };
        let short = usize::from(second & 0x7f);
        if second & 0x80 == 0 || control && short > 125 {
            return Err(Violation::Protocol);
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let head = 2 + extended + 4;
        if bytes.len() < head {
            break;
        }
        let length = match extended {
            0 => short as u64,
            _ => bytes[2..2 + extended]
                .iter()
                .fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte)),
        };
        if length > MAX as u64 {
            return Err(Violation::TooBig);
        }
        bytes = bytes.get(head + usize::try_from(length).unwrap()..).unwrap_or_default();
    }
    Ok(())
}

/// A stream of frames with something wrong, or nothing.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        frames(),
        frames().prop_flat_map(|frames| mutated([frames])),
        vec(any::<u8>(), 0..64),
    ]
}

proptest! {
    #[test]
    fn the_guards_verdict_is_that_of_a_reader_who_has_all_of_it_however_the_bytes_are_split(
        bytes in stream(),
        cuts in vec(any::<Index>(), 0..12),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut guard = FrameHeaders::new(MAX);
        let split = cuts.windows(2).try_for_each(|ends| guard.pass(&bytes[ends[0]..ends[1]]));
        prop_assert_eq!(split, verdict(&bytes));
        let mut guard = FrameHeaders::new(MAX);
        prop_assert_eq!(bytes.chunks(1).try_for_each(|byte| guard.pass(byte)), verdict(&bytes));
    }

    /// What the guard lets through the codec can read: all that is left for it to refuse is fragments out of order, and what a
    /// close frame says.
    #[test]
    fn what_the_guard_lets_through_the_codec_reads(bytes in stream()) {
        if FrameHeaders::new(MAX).pass(&bytes).is_err() {
            return Ok(());
        }
        let mut codec = Codec::new().max_size(MAX);
        let mut buffer = BytesMut::from(&bytes[..]);
        loop {
            // What a close frame says is the codec's to judge.
            let closes = buffer.first().is_some_and(|first| first & 0x0f == 8);
            match codec.decode(&mut buffer) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    let order = matches!(
                        error,
                        ProtocolError::ContinuationNotStarted
                            | ProtocolError::ContinuationStarted
                            | ProtocolError::ContinuationFragment(_)
                    );
                    prop_assert!(order || closes, "{}", error);
                    break;
                }
            }
        }
    }
}
