//! `section!`: declares one section of the settings, once, for everything that is made from it.
//!
//! A key is two lines of documentation (English, Korean), a name, a type, a default, and where not every value of
//! the type will do, a [rule](super::rule). From that come the struct, its `Default`, reading, checking, showing, and
//! the section's text in `settings.toml`. `choice!` declares an enum whose variants are named in the settings.

use toml::Value;

use super::rule::Rule;
use super::secret::MASK;
use super::value::{SettingValue, one_line};

/// One section, without its type.
pub trait Section {
    /// What the section is about: English, Korean.
    fn about(&self) -> [&'static str; 2];

    /// The section's keys, in the order of their declaration.
    fn keys(&self) -> Vec<Key>;

    /// Sets `key` from TOML. The error says which value was refused and what is allowed, without the key's name.
    fn set(&mut self, key: &str, value: &Value) -> Result<(), String>;

    /// Sets `key` from plain text, as the environment and flags give it; errors as in [`Section::set`].
    fn set_text(&mut self, key: &str, text: &str) -> Result<(), String>;

    /// The value of `key` as it may be shown (secrets as `***`), or `None` for an unknown key.
    fn get(&self, key: &str) -> Option<Value>;

    /// Whether the value of `key` is the built-in default: of a secret, too, which as it is shown cannot be told.
    fn is_default(&self, key: &str) -> bool;

    /// The keys whose present value is not allowed, each with the error that setting it would have given.
    fn refused(&self) -> Vec<(&'static str, String)>;
}

/// What is known of a key without its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Its name in the section.
    pub name: &'static str,
    /// What it does, in English.
    pub english: &'static str,
    /// What it does, in Korean.
    pub korean: &'static str,
    /// The built-in default.
    pub default: Value,
    /// Which values are allowed, in words.
    pub allowed: String,
}

/// What [`Section::set`] answers for a key that the section does not have.
pub const UNKNOWN_KEY: &str = "no such key";

/// Reads `value` as a `T` that `rule` allows.
pub fn accept<T: SettingValue>(value: &Value, rule: &impl Rule<T>) -> Result<T, String> {
    T::from_toml(value)
        .filter(|value| rule.holds(value))
        .ok_or_else(|| refusal(value, rule))
}

/// The error for a `value` that `rule` does not allow.
pub fn refusal<T: SettingValue>(value: &Value, rule: &impl Rule<T>) -> String {
    let whole = value.to_string();
    // A URL that names a user may have a password, too.
    let hidden = T::SECRET || (whole.contains("://") && whole.contains('@'));
    let shown = if hidden { MASK.to_owned() } else { one_line(value) };
    format!("{shown} is not allowed; allowed: {}", rule.words())
}

macro_rules! section {
    (@rule) => { $crate::settings::rule::Any };
    (@rule $rule:expr) => { $rule };
    (
        #[doc = $about_english:literal]
        #[doc = $about_korean:literal]
        pub struct $name:ident {$(
            #[doc = $english:literal]
            #[doc = $korean:literal]
            $field:ident: $type:ty = $default:expr $(, $rule:expr)?;
        )+}
    ) => {
        #[doc = $about_english]
        #[doc = ""]
        #[doc = $about_korean]
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {$(
            #[doc = $english]
            #[doc = ""]
            #[doc = $korean]
            pub $field: $type,
        )+}

        impl Default for $name {
            fn default() -> Self {
                Self {$(
                    $field: <$type as $crate::settings::value::SettingValue>::from_literal($default),
                )+}
            }
        }

        impl $crate::settings::section::Section for $name {
            fn about(&self) -> [&'static str; 2] {
                [$about_english.trim_ascii(), $about_korean.trim_ascii()]
            }

            fn keys(&self) -> Vec<$crate::settings::section::Key> {
                use $crate::settings::{rule::Rule, section::Key, value::SettingValue};
                let defaults = Self::default();
                vec![$(Key {
                    name: stringify!($field),
                    english: $english.trim_ascii(),
                    korean: $korean.trim_ascii(),
                    default: defaults.$field.to_toml(),
                    allowed: Rule::<$type>::words(&section!(@rule $($rule)?)),
                }),+]
            }

            fn set(&mut self, key: &str, value: &toml::Value) -> Result<(), String> {
                match key {
                    $(stringify!($field) => {
                        self.$field = $crate::settings::section::accept(value, &section!(@rule $($rule)?))?;
                    })+
                    _ => return Err($crate::settings::section::UNKNOWN_KEY.to_owned()),
                }
                Ok(())
            }

            fn set_text(&mut self, key: &str, text: &str) -> Result<(), String> {
                let value = match key {
                    $(stringify!($field) => {
                        <$type as $crate::settings::value::SettingValue>::from_text(text)
                    })+
                    _ => return Err($crate::settings::section::UNKNOWN_KEY.to_owned()),
                };
                self.set(key, &value)
            }

            fn get(&self, key: &str) -> Option<toml::Value> {
                match key {
                    $(stringify!($field) => {
                        Some($crate::settings::value::SettingValue::to_shown(&self.$field))
                    })+
                    _ => None,
                }
            }

            fn is_default(&self, key: &str) -> bool {
                match key {
                    $(stringify!($field) => self.$field == Self::default().$field,)+
                    _ => false,
                }
            }

            fn refused(&self) -> Vec<(&'static str, String)> {
                use $crate::settings::{section, value::SettingValue};
                let mut refused = Vec::new();
                $(
                    let value = self.$field.to_toml();
                    if let Err(message) = section::accept::<$type>(&value, &section!(@rule $($rule)?)) {
                        refused.push((stringify!($field), message));
                    }
                )+
                refused
            }
        }
    };
}
pub(super) use section;

macro_rules! choice {
    (
        $(#[$about:meta])+
        pub enum $name:ident {$(
            $(#[$doc:meta])+
            $variant:ident = $text:literal,
        )+}
    ) => {
        $(#[$about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {$(
            $(#[$doc])+
            $variant,
        )+}

        impl $name {
            /// Every choice, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name in the settings.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl $crate::settings::value::SettingValue for $name {
            type Literal = Self;

            fn from_literal(literal: Self) -> Self {
                literal
            }

            fn kind() -> String {
                $crate::settings::section::one_of(&[$($text),+])
            }

            fn from_toml(value: &toml::Value) -> Option<Self> {
                let text = value.as_str()?;
                Self::ALL.iter().copied().find(|choice| choice.name() == text)
            }

            fn from_text(text: &str) -> toml::Value {
                toml::Value::String(text.to_owned())
            }

            fn to_toml(&self) -> toml::Value {
                toml::Value::String(self.name().to_owned())
            }
        }
    };
}
pub(super) use choice;

/// `"a", "b" or "c"`.
pub fn one_of(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, first)) => format!("{} or {last}", first.join(", ")),
        None => String::new(),
    }
}
