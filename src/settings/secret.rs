//! [`Secret`]: a text setting that never shows itself.
//!
//! Debug, Display, errors and the settings that are printed show `***`; only [`Secret::expose`] gives the text,
//! so that every place that reads one can be found by that name. An empty secret means "not set".

use std::fmt;

use toml::Value;

use super::value::SettingValue;

/// What stands in for a secret wherever settings are shown.
pub const MASK: &str = "***";

/// A text that must not be printed. Empty means not set.
///
/// `==` is for comparing settings; it is not constant-time and must not check what a caller sent.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether a value is set, that is, not empty.
    pub fn is_set(&self) -> bool {
        !self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl SettingValue for Secret {
    type Literal = &'static str;
    const SECRET: bool = true;

    fn from_literal(literal: &'static str) -> Self {
        Self::new(literal)
    }

    fn kind() -> String {
        "a text in quotes".to_owned()
    }

    fn from_toml(value: &Value) -> Option<Self> {
        value.as_str().map(Self::new)
    }

    fn from_text(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    fn to_toml(&self) -> Value {
        Value::String(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_debug_nor_display_shows_the_text() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            format!("{secret} {secret:?} {:#?}", Some(&secret)),
            "*** *** Some(\n    ***,\n)"
        );
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn empty_is_not_set() {
        assert!(!Secret::default().is_set());
        assert!(Secret::new("x").is_set());
    }
}
