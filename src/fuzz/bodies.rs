//! Bodies: a sender's in either dialect, the room server's answer, the embedded room server's file.

use chatting_actors::{
    seams::Liveness,
    types::{MessageText, PresenterIdx},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{any_text, mutated, mutated_text};
use crate::{
    http::v1::room_of,
    legacy::body::{UserType, parse_send},
    room::{EmbeddedRooms, http::parse as parse_room},
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

proptest! {
    /// Where both a strict reader and the lenient one take it, they take it for the same.
    #[test]
    fn the_lenient_body_agrees_with_a_strict_reader_where_both_read_it(bytes in mutated(SEND)) {
        let lenient = parse_send(&bytes);
        let strict = serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object);
        let Some(strict) = strict else {
            return Ok(());
        };
        let plain = (strict["userType"].as_str(), strict["textMessage"].as_str(), strict["presenterIdx"].as_i64());
        if let (Some(user_type), Some(text), Some(presenter)) = plain {
            let body = lenient.unwrap();
            prop_assert_eq!(body.text, text);
            prop_assert_eq!(body.presenter_idx, Some(presenter));
            prop_assert_eq!(body.user_type == UserType::Presenter, user_type == "presenter");
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
            Ok(room) => prop_assert_eq!(text.parse::<i64>().ok().and_then(PresenterIdx::new), Some(room)),
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
                let room = rooms.start(presenter).unwrap();
                prop_assert_eq!(rooms.get(presenter), Some(room));
                prop_assert_eq!(EmbeddedRooms::open(&path).unwrap().get(presenter).is_some(), before < rooms.all().len());
            }
            Err(error) => prop_assert!(error.contains("chat.rooms.json"), "{}", error),
        }
    }
}
