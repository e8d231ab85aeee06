//! [`SettingsError`]: all that is wrong with the settings, one problem a line.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key in full, as far as it is about one; else empty.
    pub key: String,
    /// The layer and where in it: `file settings.toml, line 3`, `environment CHAT__LOG__BACKEND`,
    /// `flag --set log.backend`. Empty for keys that contradict each other: the message names their layers.
    pub place: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match self.place.as_str() {
            "" => self.message.clone(),
            place => format!("{place}: {}", self.message),
        };
        // A key in quotes may hold a line break, and one problem is one line.
        f.write_str(&line.replace(['\n', '\r'], " "))
    }
}

/// Why there are no settings: every problem that was found, at least one. No secret's value is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError {
    /// The problems, in the order of the layers.
    pub problems: Vec<Problem>,
}

impl SettingsError {
    /// An error of these problems, if there are any.
    pub(super) fn unless_none(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Self { problems })
        }
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_has_its_line() {
        let problem = |place: &str, message: &str| Problem {
            key: String::new(),
            place: place.to_owned(),
            message: message.to_owned(),
        };
        let problems = vec![problem("flag --set a.b", "no"), problem("", "never\never")];
        let error = SettingsError::unless_none(problems).unwrap_err();
        assert_eq!(error.to_string(), "flag --set a.b: no\nnever ever");
        assert_eq!(SettingsError::unless_none(Vec::new()), Ok(()));
    }
}
