//! The words of a text, as figures count them: the same by this code (SQLite) and by [`PATTERN`] (MongoDB).
//!
//! Without a dictionary, so that both stores agree and an operator can tell what was counted. A word is a run of at least two
//! Hangul syllables, less one particle at its end where two syllables stay; or a Latin letter and what letters and digits
//! follow, at least two, with one `'` and more letters (`don't`), in small letters. What is written in single jamo (ㅋㅋㅋ), in
//! digits or in other scripts is none. `이` is never taken for a particle: too many words end in it.

/// Words that say nothing of what a chat is about.
pub const STOP_WORDS: [&str; 83] = [
    "그냥",
    "그래서",
    "그런",
    "그런데",
    "그럼",
    "그리고",
    "근데",
    "거기",
    "그거",
    "그건",
    "그게",
    "나는",
    "내가",
    "네가",
    "너는",
    "너무",
    "뭔가",
    "아니",
    "아직",
    "여기",
    "우리",
    "이거",
    "이건",
    "이게",
    "이런",
    "이제",
    "있는",
    "있어",
    "저거",
    "저건",
    "저게",
    "저기",
    "저는",
    "저런",
    "제가",
    "하는",
    "하고",
    "하지만",
    "해서",
    "있다",
    "하다",
    "and",
    "are",
    "as",
    "at",
    "be",
    "but",
    "by",
    "can",
    "do",
    "don't",
    "for",
    "from",
    "have",
    "he",
    "how",
    "if",
    "in",
    "is",
    "it",
    "it's",
    "just",
    "me",
    "my",
    "no",
    "not",
    "of",
    "on",
    "or",
    "she",
    "so",
    "that",
    "the",
    "they",
    "this",
    "to",
    "was",
    "we",
    "what",
    "with",
    "you",
    "your",
    "you're",
];

/// What is taken off the end of a Hangul word; the longest that fits.
const PARTICLES: [&str; 22] = [
    "에서", "에게", "으로", "까지", "부터", "처럼", "한테", "이랑", "보다", "하고", "은", "는", "을", "를", "가", "에",
    "의", "도", "만", "로", "와", "과",
];

/// The same as a pattern of MongoDB, for `$regexFindAll`: a word is its capture, or the whole match where there is none.
pub const PATTERN: &str = "([가-힣]{2,}?)(?:에서|에게|으로|까지|부터|처럼|한테|이랑|보다|하고|은|는|을|를|가|에|의|도|만|로|와|과)?\
                           (?![가-힣])|[A-Za-z][A-Za-z0-9]+(?:'[A-Za-z]+)?";

/// The most characters of a word; longer runs are no words.
pub const MAX_CHARS: usize = 30;

const LEAST: usize = 2;

/// The words of a text, each once, in order.
pub fn words(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if is_hangul(first) {
            let end = rest.find(|c| !is_hangul(c)).unwrap_or(rest.len());
            found.push(stem(&rest[..end]).to_owned());
            end
        } else if first.is_ascii_alphabetic() {
            let end = latin(rest);
            found.push(rest[..end].to_ascii_lowercase());
            end
        } else {
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    found.retain(|word| (LEAST..=MAX_CHARS).contains(&word.chars().count()));
    found.sort_unstable();
    found.dedup();
    found
}

fn is_hangul(c: char) -> bool {
    ('가'..='힣').contains(&c)
}

/// Where the Latin word ends that a text begins with.
fn latin(text: &str) -> usize {
    let end_of = |text: &str, within: fn(&char) -> bool| text.find(|c| !within(&c)).unwrap_or(text.len());
    let end = end_of(text, char::is_ascii_alphanumeric);
    let behind = text[end..].strip_prefix('\'').filter(|_| end >= LEAST);
    match behind.map(|behind| end_of(behind, char::is_ascii_alphabetic)) {
        None | Some(0) => end,
        Some(more) => end + 1 + more,
    }
}

/// A Hangul word without its particle.
fn stem(word: &str) -> &str {
    let stems = PARTICLES.iter().filter_map(|particle| word.strip_suffix(particle));
    let stem = stems
        .filter(|stem| stem.chars().count() >= LEAST)
        .min_by_key(|stem| stem.len());
    stem.unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_once_a_text_without_their_particles() {
        let cases: [(&str, &[&str]); 12] = [
            ("방송이 방송을 방송에서 방송은", &["방송", "방송이"]),
            ("고양이가 고양이", &["고양이"]),
            ("나는 a 1 I", &["나는"]),
            ("ㅋㅋ안녕하세요ㅋㅋㅋ", &["안녕하세요"]),
            ("GG gg Gg wp!!", &["gg", "wp"]),
            ("don't can't' 'em i'm it's4", &["can't", "don't", "em", "it's"]),
            ("LOL아이템 4k 2024년 mp3", &["lol", "mp3", "아이템"]),
            ("제주도에서는", &["제주도에서"]),
            ("", &[]),
            ("가", &[]),
            ("\u{1112}\u{1161}\u{11ab}\u{1100}\u{1173}\u{11af}", &[]),
            ("日本 été", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(words(text), expected, "{text}");
        }
        assert_eq!(words(&"a".repeat(31)), [""; 0]);
    }

    #[test]
    fn the_pattern_names_the_same_particles() {
        for particle in PARTICLES {
            assert!(PATTERN.contains(&format!("{particle}|")) || PATTERN.contains(&format!("{particle})")));
        }
    }
}
