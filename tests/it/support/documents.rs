//! Reading what documents say, to hold it against the server.

use chatting_server::settings::Settings;

/// The text of a document from a heading up to the next.
pub fn section(document: &'static str, heading: &str) -> &'static str {
    let (_, rest) = document
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("no section {heading}"));
    rest.split_once("\n## ").map_or(rest, |(section, _)| section)
}

/// The rows of the first table in a text whose first column has this name, a cell each.
pub fn table(text: &'static str, first: &str) -> Vec<Vec<&'static str>> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let mut lines = text
        .lines()
        .skip_while(|line| !line.starts_with(&format!("| {first} |")));
    assert!(lines.next().is_some(), "no table of {first}");
    let rows: Vec<_> = lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect();
    assert!(!rows.is_empty());
    rows
}

/// What is in backticks; `None` for a dash.
pub fn name(cell: &str) -> Option<String> {
    let name = cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
    assert!(name.is_some() || cell == "–", "{cell}");
    name.map(str::to_owned)
}

/// Every line of the fenced blocks of that kind.
pub fn fenced(text: &'static str, kind: &str) -> Vec<&'static str> {
    let mut lines = text.lines();
    let mut all = Vec::new();
    while lines.by_ref().any(|line| line == format!("```{kind}")) {
        all.extend(lines.by_ref().take_while(|line| *line != "```"));
    }
    assert!(!all.is_empty(), "nothing in {kind}");
    all
}

/// Asserts that whatever a document names like a setting is one, and that a number in brackets behind it is its default. How
/// many it names.
pub fn settings_named(document: &str) -> usize {
    let settings = Settings::default();
    let sections: Vec<_> = settings.sections().into_iter().map(|(name, _)| name).collect();
    let mut named = 0;
    for (at, _) in document.match_indices('`') {
        let rest = &document[at + 1..];
        let Some((key, after)) = rest.split_once('`') else {
            continue;
        };
        let known = key
            .split_once('.')
            .is_some_and(|(section, _)| sections.contains(&section));
        if !known || key.contains(char::is_whitespace) {
            continue;
        }
        named += 1;
        let value = settings.get(key).unwrap_or_else(|| panic!("there is no setting {key}"));
        let told = after.strip_prefix(" (").and_then(|rest| rest.split_once(')'));
        let told = told.map(|(number, _)| number.replace(',', "").replace("1 MiB", "1048576"));
        if let Some(told) = told.and_then(|told| told.parse::<i64>().ok()) {
            assert_eq!(value.as_integer(), Some(told), "{key}");
        }
    }
    named
}
