//! Every parser of outside bytes against bytes that nobody meant well: valid input with something wrong, and noise. None may
//! panic; what else each must hold is said at each.
//!
//! 256 cases a property in `cargo test`; `PROPTEST_CASES=100000`, or `scripts/fuzz`, for more. What failed once is kept in
//! `proptest-regressions` and tried first.

mod bodies;
mod frames;
mod headers;
mod settings;
mod spool;
mod tokens;

use proptest::{collection::vec, prelude::*, sample::Index};

/// What is put into an input: what parsers trip over.
const TRAPS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "1e400",
    "1e-400",
    "0.1",
    "NaN",
    "null",
    "true",
    "{}",
    "[]",
    "\"\"",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\u{feff}",
    "\u{202e}",
    "\u{10ffff}",
    "한글",
    "%",
    "%zz",
    "%ff",
    "..",
    "/",
    ",",
    ";",
    "=",
    ".",
    "\r\n",
    "\t",
    " ",
    "{\"a\":",
    "[[[[[[[[",
    "*",
    "'",
];

/// One thing that goes wrong with an input.
#[derive(Clone, Debug)]
enum Edit {
    /// A byte becomes another.
    Byte(Index, u8),
    /// A trap is put in.
    Trap(Index, Index),
    /// What is between two places is gone.
    Cut(Index, Index),
    /// What is between two places is there so many times.
    Repeat(Index, Index, usize),
    /// Everything from here on is gone.
    End(Index),
    /// The rest is another seed's.
    Splice(Index, Index, Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        4 => (at(), at()).prop_map(|(at, trap)| Edit::Trap(at, trap)),
        2 => (at(), at()).prop_map(|(from, to)| Edit::Cut(from, to)),
        1 => (at(), at(), 2..20_usize).prop_map(|(from, to, times)| Edit::Repeat(from, to, times)),
        1 => at().prop_map(Edit::End),
        2 => (at(), at(), at()).prop_map(|(at, seed, from)| Edit::Splice(at, seed, from)),
    ]
}

fn apply(input: &mut Vec<u8>, edit: &Edit, seeds: &[Vec<u8>]) {
    // One past the end is a place, too.
    let places = input.len() + 1;
    let between = |a: &Index, b: &Index| {
        let (a, b) = (a.index(places), b.index(places));
        a.min(b)..a.max(b)
    };
    match edit {
        Edit::Byte(at, byte) => {
            if let Some(place) = input.get_mut(at.index(places)) {
                *place = *byte;
            }
        }
        Edit::Trap(at, trap) => {
            let at = at.index(places);
            input.splice(at..at, TRAPS[trap.index(TRAPS.len())].bytes());
        }
        Edit::Cut(a, b) => drop(input.drain(between(a, b))),
        Edit::Repeat(a, b, times) => {
            let range = between(a, b);
            let part = input[range.clone()].repeat(*times);
            // Long is for the tests of limits; here it would only be slow.
            if input.len() + part.len() < 100_000 {
                input.splice(range, part);
            }
        }
        Edit::End(at) => input.truncate(at.index(places)),
        Edit::Splice(at, seed, from) => {
            input.truncate(at.index(places));
            let seed = &seeds[seed.index(seeds.len())];
            input.extend_from_slice(&seed[from.index(seed.len() + 1)..]);
        }
    }
}

/// A seed with up to six things wrong, and now and then mere noise.
fn mutated<S: AsRef<[u8]>>(seeds: impl IntoIterator<Item = S>) -> impl Strategy<Value = Vec<u8>> {
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|seed| seed.as_ref().to_vec()).collect();
    let edited = (any::<Index>(), vec(edit(), 0..6)).prop_map(move |(seed, edits)| {
        let mut input = seeds[seed.index(seeds.len())].clone();
        for edit in &edits {
            apply(&mut input, edit, &seeds);
        }
        input
    });
    prop_oneof![9 => edited, 1 => vec(any::<u8>(), 0..200)]
}

/// The same as text: what is no UTF-8 becomes U+FFFD.
fn mutated_text<S: AsRef<[u8]>>(seeds: impl IntoIterator<Item = S>) -> impl Strategy<Value = String> {
    mutated(seeds).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Any text that people write, and some that they do not.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z ]{0,20}",
        "\\PC{0,20}",
        vec(any::<char>(), 0..20).prop_map(String::from_iter),
    ]
}
