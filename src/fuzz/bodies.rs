//! Bodies: a sender's in either dialect, a broadcast's correction, the room server's answer; the files that are read back: the
//! embedded room server's, an export. And the cursors of a replay.

use chatting_actors::{
    seams::Liveness,
    types::{MessageText, PresenterIdx, Seq},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{any_text, mutated, mutated_text};
use crate::{
    export::import::check,
    http::{
        broadcasts::Change,
        replay::{cursor, read_cursor},
        v1::room_of,
    },
    legacy::body::parse_send,
    room::{EmbeddedRooms, http::parse as parse_room},
    store::history::ReplayPlace,
};

const SEND: &[&str] = &[
    r#"{"presenterIdx":12,"userType":"viewer","textMessage":"hi"}"#,
    r#"{"presenterIdx":" 12 ","userType":"presenter","textMessage":"\ud55c\n"}"#,
    r#"{"presenterIdx":17.7,"userType":null,"textMessage":1.50,"more":[{"a":null}]} and more"#,
];

const ROOM: &[&str] = &[
    r#"{"timestamp":"t","message":"m","data":{"alive":true,"roomIdx":7}}"#,
    r#"{"data":{"alive":false,"roomIdx":"9"}}"#,
];

const ROOMS: &[&str] = &[
    r#"{"last_room_idx":7,"live":{"12":{"roomIdx":7,"startedAtMs":1767225600000}}}"#,
    r#"{"last_room_idx":9223372036854775807,"live":{}}"#,
];

const CHANGE: &[&str] = &[
    r#"{"started_at":"2026-01-01T00:00:00.000Z"}"#,
    r#"{"started_at":null,"legal_hold":true}"#,
    r#"{"legal_hold":false}"#,
];

const EXPORT: &[&str] = &[
    r#"{"type":"broadcast","format":1,"id":"019b76da-a800-7000-8000-000000000001","presenter_idx":12,"room_idx":null,"reported_start":null,"ended_at":"2026-01-01T01:00:00.000Z","corrected_start":null,"seen_at":"2026-01-01T01:00:00.000Z","version":2,"segments":[{"from":"2026-01-01T00:00:00.000Z","to":"2026-01-01T01:00:00.000Z"}],"spans":[{"epoch":"a","after":0,"through":2}]}
{"type":"chat","seq":1,"epoch":"a","id":"019b76da-abe8-7000-8000-000000000002","sent_at":"2026-01-01T00:00:01.000Z","offset_ms":1000,"broadcast_id":"019b76da-a800-7000-8000-000000000001","user_idx":7,"nickname":"kim","role":"viewer","text":"hi"}
{"type":"moderation","seq":2,"epoch":"a","id":"019b76da-afd0-7000-8000-000000000003","sent_at":"2026-01-01T00:00:02.000Z","offset_ms":2000,"broadcast_id":null,"by":12,"nickname":"host","role":"presenter","act":{"scope":"user","user_idx":7}}
{"type":"end","broadcast_id":"019b76da-a800-7000-8000-000000000001","events":2}
"#,
];

proptest! {
    #[test]
    fn a_broadcasts_correction_is_read_or_refused_as_a_bad_request(bytes in mutated(CHANGE)) {
        let read = Change::read(&bytes).and_then(|change| change.start());
        match read {
            Ok(start) => {
                let body: Value = serde_json::from_slice(&bytes).unwrap();
                prop_assert_eq!(start.is_some(), body.get("started_at").is_some());
                prop_assert_eq!(start.flatten().is_some(), body["started_at"].is_string());
            }
            Err(error) => prop_assert_eq!(error.code.as_str(), "bad_request"),
        }
    }

    #[test]
    fn a_cursor_is_a_place_that_is_written_the_same_or_is_none(text in mutated_text(["0.17", "3.9223372036854775807"])) {
        if let Some(place) = read_cursor(&text) {
            prop_assert!(i64::try_from(place.after.0).is_ok());
            prop_assert_eq!(read_cursor(&cursor(place)), Some(place));
        }
    }

    #[test]
    fn a_cursor_that_was_given_is_read_as_its_place(span in any::<usize>(), after in 0..=i64::MAX) {
        let place = ReplayPlace { span, after: Seq(after.cast_unsigned()) };
        prop_assert_eq!(read_cursor(&cursor(place)), Some(place));
    }

    /// An export that was tampered with is taken whole, or refused by its name and nothing of it is.
    #[test]
    fn an_export_is_read_back_or_its_line_is_named(bytes in mutated(EXPORT)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.ndjson");
        std::fs::write(&path, &bytes).unwrap();
        match check(std::slice::from_ref(&path), 1_800_000_000_000) {
            Ok(contents) => {
                let events = bytes.split(|byte| *byte == b'\n').filter(|line| line.iter().any(|byte| !byte.is_ascii_whitespace()));
                prop_assert_eq!(contents.events + 2 * contents.broadcasts, events.count() as u64);
            }
            Err(error) => prop_assert!(error.to_string().contains("chat.ndjson, line "), "{}", error),
        }
    }

    /// Where both a strict reader and the lenient one take it, they take it for the same.
    #[test]
    fn the_lenient_body_agrees_with_a_strict_reader_where_both_read_it(bytes in mutated(SEND)) {
        let lenient = parse_send(&bytes);
        let strict = serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object);
        let Some(strict) = strict else {
            return Ok(());
        };
        let plain = (strict["userType"].as_str(), strict["textMessage"].as_str(), strict["presenterIdx"].as_i64());
        if let (Some(_), Some(text), Some(presenter)) = plain {
            let body = lenient.unwrap();
            prop_assert_eq!(body.text, text);
            prop_assert_eq!(body.presenter_idx, Some(presenter));
        } else if let Ok(body) = lenient {
            // Text that came as text is that text, whatever the others are.
            if let Some(text) = strict["textMessage"].as_str() {
                prop_assert_eq!(body.text, text);
            }
            prop_assert!(!strict["userType"].is_null() && !strict["textMessage"].is_null());
        }
    }

    #[test]
    fn a_good_body_is_read_whatever_it_says(text in any_text(), presenter in any::<i64>(), number in any::<bool>()) {
        let idx = if number { json!(presenter) } else { json!(presenter.to_string()) };
        let body = json!({ "presenterIdx": idx, "userType": "viewer", "textMessage": text, "more": { "a": [null] } });
        let body = parse_send(body.to_string().as_bytes()).unwrap();
        prop_assert_eq!((body.presenter_idx, body.text), (Some(presenter), text));
    }

    #[test]
    fn a_text_is_taken_up_to_its_limit_in_characters(text in any_text(), max in 1..30_usize) {
        let count = text.chars().count();
        let taken = MessageText::new(text.clone(), max);
        prop_assert_eq!(taken.is_ok(), (1..=max).contains(&count));
        if let Ok(taken) = taken {
            prop_assert_eq!(taken.as_str(), text);
        }
    }

    #[test]
    fn a_path_names_a_room_by_a_number_from_0_up_and_by_nothing_else(text in mutated_text(["12", "0", "9223372036854775807"])) {
        match room_of(&text) {
            Ok(room) => prop_assert_eq!(room.get().to_string(), text),
            Err(error) => prop_assert_eq!(error.code.as_str(), "not_found"),
        }
    }

    /// Rule 9: nothing but a boolean is a verdict.
    #[test]
    fn rule_09_the_room_servers_answer_counts_only_with_a_boolean(bytes in mutated(ROOM)) {
        let alive = serde_json::from_slice::<Value>(&bytes).ok().and_then(|answer| answer.get("data")?.get("alive")?.as_bool());
        let read = parse_room(&bytes);
        prop_assert_eq!(read.as_ref().ok().map(|answer: &Liveness| answer.live), alive);
        if let Err(error) = read {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// A file that was tampered with stops the start naming itself, or is read, and then rooms start and stop.
    #[test]
    fn the_embedded_rooms_file_is_read_or_named(bytes in mutated(ROOMS)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.rooms.json");
        std::fs::write(&path, &bytes).unwrap();
        match EmbeddedRooms::open(&path) {
            Ok(rooms) => {
                let presenter = PresenterIdx::new(77).unwrap();
                let before = rooms.all().len();
                let room = rooms.blocking_start(presenter).unwrap();
                prop_assert_eq!(rooms.get(presenter), Some(room));
                prop_assert_eq!(EmbeddedRooms::open(&path).unwrap().get(presenter).is_some(), before < rooms.all().len());
            }
            Err(error) => prop_assert!(error.contains("chat.rooms.json"), "{}", error),
        }
    }
}
