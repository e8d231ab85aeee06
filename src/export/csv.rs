//! CSV (RFC 4180): UTF-8 with a byte order mark, without which Excel shows no Korean; lines end with CR LF; the first names the
//! columns.
//!
//! A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@` or a control character for a formula, and a formula can send
//! what else is on the sheet elsewhere (OWASP, "CSV Injection"). Such a text of a user's, or name of a numbering, which an import
//! may have brought, gets a `'` in front, which spreadsheets read as "this is text". Where `;` is the separator (Excel in much of
//! Europe) or TAB is, a cell may end within a text, whatever is quoted, because the quotes are not at the beginning of a cell there. So
//! what would be a formula behind one of them, or on a new line, gets a `'` too.

use chatting_actors::{moderation::Act, types::UserIdx, wire::v1::timestamp};

use super::Encoder;
use crate::store::{Logged, StoredBroadcast};

const BYTE_ORDER_MARK: &str = "\u{feff}";

const COLUMNS: &str =
    "seq,epoch,id,type,sent_at,offset_ms,user_idx,nickname,role,text,target,deleted_at,deleted_by\r\n";

pub(super) struct Csv;

impl Encoder for Csv {
    fn head(&mut self, _record: &StoredBroadcast, out: &mut Vec<u8>) {
        out.extend_from_slice(BYTE_ORDER_MARK.as_bytes());
        out.extend_from_slice(COLUMNS.as_bytes());
    }

    fn event(&mut self, logged: &Logged, offset_ms: i64, out: &mut Vec<u8>) {
        let event = &logged.event;
        let cells = [
            event.seq.to_string(),
            text(&event.epoch.0),
            event.id.to_string(),
            event.kind().to_owned(),
            timestamp(event.sent_at_ms),
            offset_ms.to_string(),
            number(event.chat.user_idx),
            text(event.chat.nickname.as_str()),
            event.chat.role.as_str().to_owned(),
            text(event.chat.text.as_str()),
            event.act.as_deref().map_or_else(String::new, target),
            logged
                .deleted
                .map_or_else(String::new, |deleted| timestamp(deleted.at_ms)),
            logged.deleted.map_or_else(String::new, |deleted| number(deleted.by)),
        ];
        for (n, cell) in cells.iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            write(cell, out);
        }
        out.extend_from_slice(b"\r\n");
    }

    fn tail(&mut self, _out: &mut Vec<u8>) {}
}

/// A user's number; nothing where that user was erased.
fn number(user: UserIdx) -> String {
    if user == UserIdx::ERASED {
        return String::new();
    }
    user.to_string()
}

/// What an act deletes, in one cell.
fn target(act: &Act) -> String {
    match act {
        Act::Message { id, .. } => format!("message {id}"),
        Act::User { user_idx } => format!("user {}", number(*user_idx)),
        Act::Span { from_ms, to_ms } => format!("span {} {}", timestamp(*from_ms), timestamp(*to_ms)),
    }
}

/// With what a formula begins.
const FORMULA: [char; 8] = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];

/// With what a cell or a row may end, besides the comma, for which cells are quoted.
const ENDS: [char; 4] = [';', '\t', '\r', '\n'];

/// What others wrote, as a cell that is never a formula, nor has one in it. NUL ends a text for many readers, so it becomes U+FFFD.
fn text(text: &str) -> String {
    let mut cell = String::with_capacity(text.len() + 1);
    if text.starts_with(FORMULA) || text.starts_with(['\t', '\r', '\n']) {
        cell.push('\'');
    }
    let mut behind_an_end = false;
    for (at, c) in text.char_indices() {
        // `;-)` is said a lot, and no formula for anyone.
        if behind_an_end && FORMULA.contains(&c) && !text[at..].starts_with("-)") {
            cell.push('\'');
        }
        cell.push(if c == '\0' { '\u{fffd}' } else { c });
        behind_an_end = ENDS.contains(&c) || (behind_an_end && c == '"');
    }
    cell
}

fn write(cell: &str, out: &mut Vec<u8>) {
    let plain = !cell.contains([',', '"', ';', '\t', '\r', '\n']) && cell.trim_ascii() == cell;
    if plain {
        out.extend_from_slice(cell.as_bytes());
    } else {
        out.push(b'"');
        out.extend_from_slice(cell.replace('"', "\"\"").as_bytes());
        out.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use chatting_actors::types::{ChatMessage, Epoch, Event, MessageText, Nickname, PresenterIdx, Role, Seq};

    use super::*;

    #[test]
    fn a_user_who_was_erased_is_an_empty_cell() {
        let user_idx = UserIdx::ERASED;
        assert_eq!(
            (number(user_idx), target(&Act::User { user_idx })),
            (String::new(), "user ".into())
        );
        assert_eq!(number(UserIdx::new(i64::MAX - 1).unwrap()), "9223372036854775806");
    }

    #[test]
    fn cells_are_quoted_where_they_must_be_and_are_never_formulas() {
        let rows = [
            ("plain 안녕", "plain 안녕"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            (" edge", "\" edge\""),
            ("=1+1", "'=1+1"),
            ("+82", "'+82"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "\"'\t'=1\""),
            ("\r=1", "\"'\r'=1\""),
            ("a;b", "\"a;b\""),
            ("a\tb", "\"a\tb\""),
            ("x;=cmd|'/C calc'!A0;y", "\"x;'=cmd|'/C calc'!A0;y\""),
            ("x\t+1", "\"x\t'+1\""),
            ("x;\"@A1\"", "\"x;\"\"'@A1\"\"\""),
            ("two\n=1", "\"two\n'=1\""),
            (";;-2", "\";;'-2\""),
            ("hi ;-)", "\"hi ;-)\""),
            ("a-b=c+d", "a-b=c+d"),
            ("＝1", "'＝1"),
            ("=\"a\",1", "\"'=\"\"a\"\",1\""),
            ("a=1", "a=1"),
            ("a\0b", "a\u{fffd}b"),
            ("", ""),
        ];
        for (from, to) in rows {
            let mut out = Vec::new();
            write(&text(from), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), to, "{from:?}");
        }
    }

    #[test]
    fn the_name_of_a_numbering_is_never_a_formula_either() {
        let event = Event {
            id: uuid::Uuid::nil(),
            presenter_idx: PresenterIdx::new(12).unwrap(),
            epoch: Epoch("=1+1".into()),
            seq: Seq(7),
            sent_at_ms: 0,
            room_idx: None,
            broadcast_id: None,
            chat: ChatMessage {
                user_idx: UserIdx::new(7).unwrap(),
                nickname: Nickname::new("kim", 64).unwrap(),
                text: MessageText::maybe_empty("hi".into(), 64).unwrap(),
                role: Role::Viewer,
            },
            act: None,
            keyed: None,
        };
        let mut out = Vec::new();
        Csv.event(&Logged { event, deleted: None }, 0, &mut out);
        let row = String::from_utf8(out).unwrap();
        assert!(row.starts_with("7,'=1+1,"), "{row}");
    }
}
