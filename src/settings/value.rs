//! [`SettingValue`]: what a type must know to be the type of a setting.
//!
//! A value comes from TOML (the file) or from plain text (environment and flags). Text is first turned into the
//! TOML it stands for, so that both ways meet the same checks and the same error.

use toml::Value;

use super::secret::MASK;

/// A type that a key can have.
pub trait SettingValue: Clone + PartialEq + Sized {
    /// What a default is written as in a section: `"text"` for a `String`, `5` for a `u64`.
    type Literal;

    /// Whether values are hidden wherever settings or errors are shown.
    const SECRET: bool = false;

    /// The default, from how a section writes it.
    fn from_literal(literal: Self::Literal) -> Self;

    /// What is allowed when a key has no rule of its own, in words.
    fn kind() -> String;

    /// The value, if `value` has the right type and is in the type's range.
    fn from_toml(value: &Value) -> Option<Self>;

    /// The TOML that `text` stands for; text that is not of this type stays text, and is refused as such.
    fn from_text(text: &str) -> Value;

    /// The value in TOML, in clear also where it is secret.
    fn to_toml(&self) -> Value;

    /// The value as it may be shown: a secret that is set shows as `***`.
    fn to_shown(&self) -> Value {
        match self.to_toml() {
            Value::String(text) if Self::SECRET && !text.is_empty() => Value::String(MASK.to_owned()),
            value => value,
        }
    }
}

/// `value` on one line for an error, long ones cut.
pub fn one_line(value: &Value) -> String {
    const MAX_CHARS: usize = 120;
    let line = match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string().replace('\n', "\\n"),
    };
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

impl SettingValue for bool {
    type Literal = Self;

    fn from_literal(literal: Self) -> Self {
        literal
    }

    fn kind() -> String {
        "true or false".to_owned()
    }

    fn from_toml(value: &Value) -> Option<Self> {
        value.as_bool()
    }

    fn from_text(text: &str) -> Value {
        match text.trim().parse() {
            Ok(value) => Value::Boolean(value),
            Err(_) => Value::String(text.to_owned()),
        }
    }

    fn to_toml(&self) -> Value {
        Value::Boolean(*self)
    }
}

macro_rules! integer {
    ($($type:ty),+) => {$(
        impl SettingValue for $type {
            type Literal = Self;

            fn from_literal(literal: Self) -> Self {
                literal
            }

            fn kind() -> String {
                format!("a whole number from {} to {}", Self::MIN, Self::MAX)
            }

            fn from_toml(value: &Value) -> Option<Self> {
                value.as_integer().and_then(|number| Self::try_from(number).ok())
            }

            fn from_text(text: &str) -> Value {
                // As in the file, so that `100_000` and `0x10` are numbers here too.
                match text.trim().parse::<Value>() {
                    Ok(value) if value.is_integer() => value,
                    _ => Value::String(text.to_owned()),
                }
            }

            fn to_toml(&self) -> Value {
                // TOML's integers end at i64::MAX.
                Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
            }
        }
    )+};
}

integer!(u32, u64, usize);

impl SettingValue for String {
    type Literal = &'static str;

    fn from_literal(literal: &'static str) -> Self {
        literal.to_owned()
    }

    fn kind() -> String {
        "a text in quotes".to_owned()
    }

    fn from_toml(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }

    fn from_text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    fn to_toml(&self) -> Value {
        Value::String(self.clone())
    }
}

impl SettingValue for Vec<String> {
    type Literal = &'static [&'static str];

    fn from_literal(literal: &'static [&'static str]) -> Self {
        literal.iter().map(|&item| item.to_owned()).collect()
    }

    fn kind() -> String {
        r#"a list of texts, as in ["a", "b"]"#.to_owned()
    }

    fn from_toml(value: &Value) -> Option<Self> {
        value
            .as_array()?
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect()
    }

    fn from_text(text: &str) -> Value {
        if text.trim_start().starts_with('[') {
            return text.trim().parse().unwrap_or_else(|_| Value::String(text.to_owned()));
        }
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        Value::Array(items.map(Value::from).collect())
    }

    fn to_toml(&self) -> Value {
        Value::Array(self.iter().map(|item| Value::from(item.as_str())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T: SettingValue>(text: &str) -> Option<T> {
        T::from_toml(&T::from_text(text))
    }

    #[test]
    fn text_is_read_by_the_type() {
        assert_eq!(text::<bool>("true"), Some(true));
        assert_eq!(text::<bool>("1"), None);
        assert_eq!(text::<u64>(" 100_000 "), Some(100_000));
        assert_eq!(text::<u32>("0x10"), Some(16));
        assert_eq!(text::<u32>("4294967296"), None);
        assert_eq!(text::<u64>("-1"), None);
        assert_eq!(text::<u64>(""), None);
        assert_eq!(text::<u64>("1.0"), None);
        assert_eq!(text::<String>(" 12 "), Some(" 12 ".to_owned()));
    }

    #[test]
    fn lists_are_comma_separated_or_toml() {
        let list = Some(vec!["a".to_owned(), "b, c".to_owned()]);
        assert_eq!(text::<Vec<String>>(r#"["a", "b, c"]"#), list);
        assert_eq!(
            text::<Vec<String>>(" a, b ,, "),
            Some(vec!["a".to_owned(), "b".to_owned()])
        );
        assert_eq!(text::<Vec<String>>(""), Some(Vec::new()));
        assert_eq!(text::<Vec<String>>("[a"), None);
        assert_eq!(text::<Vec<String>>("[1]"), None);
    }

    #[test]
    fn a_shown_value_is_one_short_line() {
        assert_eq!(one_line(&Value::from("a\nb")), r#""a\nb""#);
        let list = Value::Array(vec![Value::from("a\nb")]);
        assert!(!one_line(&list).contains('\n'));
        assert_eq!(one_line(&Value::from("가".repeat(500))).chars().count(), 121);
    }
}
