//! Text as it is searched: canonically composed (NFC) and case-folded, so that what looks alike is alike.

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;

/// A text that is searched for. Never a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded(String);

impl Folded {
    /// Folds a text; an empty one is found everywhere.
    pub fn new(text: &str) -> Self {
        Self(fold(text))
    }

    /// Whether it is in that text, as a part of it.
    pub fn is_in(&self, text: &str) -> bool {
        fold(text).contains(&self.0)
    }
}

#[cfg(test)]
thread_local! {
    /// How many texts this thread has folded.
    pub(super) static FOLDED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn fold(text: &str) -> String {
    #[cfg(test)]
    FOLDED.set(FOLDED.get() + 1);
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    // Folding may undo the composition, so it is composed again.
    text.nfc().default_case_fold().nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_text_is_found_whatever_its_case_and_composition() {
        let found = [
            ("안녕", "여러분 안녕하세요"),
            ("녕하", "안녕하세요"),
            // Composed of letters, as some keyboards send it.
            ("\u{110b}\u{1161}\u{11ab}", "안녕"),
            ("안", "\u{110b}\u{1161}\u{11ab}녕"),
            ("STRASSE", "die Straße"),
            ("cafe\u{301}", "CAFÉ"),
            ("GG", "gg wp"),
            ("", "x"),
            (".*", "a.*b"),
        ];
        for (needle, text) in found {
            assert!(Folded::new(needle).is_in(text), "{needle} in {text}");
        }
        for (needle, text) in [("안녕", "안 녕"), (".*", "ab"), ("%", "100"), ("ㅎ", "하")] {
            assert!(!Folded::new(needle).is_in(text), "{needle} in {text}");
        }
    }
}
