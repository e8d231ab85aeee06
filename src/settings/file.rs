//! The settings file: TOML taken apart into keys, each with its line.
//!
//! What is a section is told by the caller; below a section everything is a key, also a table, so that it is the key
//! which is refused by name. Messages never hold a line of the file, since that line may hold a secret.

use std::fs;
use std::path::Path;

use toml::Value;
use toml::de::{DeTable, DeValue};

use super::error::Problem;
use super::join;

/// One key of the file, known or not.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// The key in full.
    pub key: String,
    /// Where it is: file and line.
    pub place: String,
    /// Its value.
    pub value: Value,
}

/// Reads and parses the file at `path`; `sections` are the names of the tables that hold keys.
///
/// On a file that cannot be read or is not TOML: nothing but these problems, all that were found.
pub fn read(path: &Path, sections: &[&str]) -> Result<Vec<Entry>, Vec<Problem>> {
    let file = format!("file {}", path.display());
    match fs::read_to_string(path) {
        Ok(text) => parse(&file, &text, sections),
        Err(error) => Err(vec![problem(file, format!("cannot be read: {error}"))]),
    }
}

fn parse(file: &str, text: &str, sections: &[&str]) -> Result<Vec<Entry>, Vec<Problem>> {
    let line_of = |offset: usize| 1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count();
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let mut found: Vec<_> = errors
            .iter()
            .map(|error| (error.span().map_or(1, |span| line_of(span.start)), error.message()))
            .collect();
        found.sort_by_key(|&(line, _)| line);
        // What follows the first error of a line is mostly its echo.
        found.dedup_by_key(|&mut (line, _)| line);
        let problem = |(line, message)| problem(format!("{file}, line {line}"), format!("not TOML: {message}"));
        return Err(found.into_iter().map(problem).collect());
    }
    let mut entries = Vec::new();
    flatten("", table.get_ref(), sections, &mut entries);
    entries.sort_by_key(|&(offset, _, _)| offset);
    let entry = |(offset, key, value)| Entry {
        key,
        place: format!("{file}, line {}", line_of(offset)),
        value,
    };
    Ok(entries.into_iter().map(entry).collect())
}

/// Collects the keys below `path` with their place in the text.
fn flatten(path: &str, table: &DeTable<'_>, sections: &[&str], into: &mut Vec<(usize, String, Value)>) {
    for (name, value) in table {
        let key = join(path, name.get_ref());
        let holds_keys = sections.contains(&key.as_str());
        let holds_sections = sections
            .iter()
            .any(|section| section.strip_prefix(&key).is_some_and(|rest| rest.starts_with('.')));
        match value.get_ref() {
            DeValue::Table(inner) if holds_keys || holds_sections => flatten(&key, inner, sections, into),
            value => into.push((name.span().start, key, plain(value))),
        }
    }
}

/// The value without its places. A number beyond TOML's range becomes a float, which no key takes.
fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Float(number.as_str().parse().unwrap_or(f64::INFINITY)),
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| plain(item.get_ref())).collect()),
        DeValue::Table(table) => Value::Table(
            table
                .iter()
                .map(|(name, value)| (name.to_string(), plain(value.get_ref())))
                .collect(),
        ),
    }
}

fn problem(place: String, message: String) -> Problem {
    Problem {
        key: String::new(),
        place,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTIONS: [&str; 3] = ["log", "actors.registry", "actors.writer"];

    fn keys(text: &str) -> Vec<(String, String)> {
        let entries = parse("file f", text, &SECTIONS).unwrap();
        entries.into_iter().map(|entry| (entry.key, entry.place)).collect()
    }

    fn pair(key: &str, line: usize) -> (String, String) {
        (key.to_owned(), format!("file f, line {line}"))
    }

    #[test]
    fn keys_come_in_the_order_of_the_file_with_their_lines() {
        let text = "[log]\n# a\nb = 1\na = 2\n\n[actors.writer]\nc = 3\n[actors]\nregistry = { d = 4 }\n";
        let expected = [
            pair("log.b", 3),
            pair("log.a", 4),
            pair("actors.writer.c", 7),
            pair("actors.registry.d", 9),
        ];
        assert_eq!(keys(text), expected);
        assert_eq!(
            keys("\u{feff}log.b = 1\r\nlog.a = 2\r\n"),
            [pair("log.b", 1), pair("log.a", 2)]
        );
        assert_eq!(keys("[log]\n"), []);
        assert_eq!(keys(""), []);
    }

    #[test]
    fn what_is_no_section_is_a_key() {
        assert_eq!(keys("\n[lgo]\nb = 1\n"), [pair("lgo", 2)]);
        assert_eq!(keys("log = 1\nactors = 2\n"), [pair("log", 1), pair("actors", 2)]);
        assert_eq!(keys("[[log]]\nb = 1\n"), [pair("log", 1)]);
        assert_eq!(keys("[log.b]\nc = 1\n"), [pair("log.b", 1)]);
        assert_eq!(keys("[actors]\nmailbox = 1\n"), [pair("actors.mailbox", 2)]);
    }

    #[test]
    fn values_keep_their_types() {
        let text = "log.v = ['x', 0x10, 1_000, 1.5, true, 1979-05-27, 9223372036854775808, { a = 1 }]";
        let value = parse("", text, &SECTIONS).unwrap().remove(0).value;
        let expected: Value = "['x', 16, 1000, 1.5, true, 1979-05-27, 9223372036854775808.0, { a = 1 }]"
            .parse()
            .unwrap();
        assert_eq!(value, expected);
    }

    #[test]
    fn syntax_errors_name_their_lines_and_show_no_text() {
        let text = "[log]\nsecret = \"hunter2\nb = 2\n\n[log]\nc = = hunter2\n";
        let problems = parse("file f", text, &SECTIONS).unwrap_err();
        let lines: Vec<_> = problems.iter().map(|problem| problem.place.as_str()).collect();
        assert_eq!(lines, ["file f, line 2", "file f, line 5", "file f, line 6"]);
        assert!(
            problems.iter().all(|problem| !problem.message.contains("hunter2")),
            "{problems:?}"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_a_problem() {
        let problems = read(Path::new("/nowhere/settings.toml"), &SECTIONS).unwrap_err();
        let shown = problems[0].to_string();
        assert!(
            shown.starts_with("file /nowhere/settings.toml: cannot be read: No such file"),
            "{shown}"
        );
    }
}
