//! Why a command did not do what it was asked, and the exit code that says so.
//!
//! The codes are in the help (`EXIT_CODES`) and, by command, in docs/OPERATIONS.md, "Exit codes". What is converted here on the way of a
//! `?` means the same in every command; what only one command can say, it says itself.

use std::process::ExitCode;

use chatting_actors::seams::SpoolError;

use super::eprint;
use crate::{
    export::import::ImportError,
    settings::SettingsError,
    startup::StartError,
    store::{inspect::LookError, spool::OpenError},
};

/// The exit codes but 0 (sysexits.h, from 64 on).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command found a problem, and says which.
    Problem = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A setting is wrong.
    Settings = 64,
    /// A port, a file, the spool or the store is not to be had.
    Unavailable = 69,
    /// Stopped at the deadline, or interrupted.
    Unfinished = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed, with the exit code that says so.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(super) exit: Exit,
    pub(super) text: String,
}

impl Failure {
    fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
        }
    }

    /// The command found this.
    pub(super) fn problem(text: impl Into<String>) -> Self {
        Self::new(Exit::Problem, text)
    }

    /// The command line is wrong in a way that shows only when its parts are seen together.
    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// Something outside is not to be had.
    pub(super) fn unavailable(text: impl Into<String>) -> Self {
        Self::new(Exit::Unavailable, text)
    }

    /// A spool that was open does not do what it was asked.
    pub(super) fn spool(error: SpoolError) -> Self {
        Self::unavailable(format!("the spool: {error}"))
    }

    /// Somebody ended it before its end; `then` says what of it is there, or how it goes on.
    pub(super) fn interrupted(then: &str) -> Self {
        Self::new(Exit::Unfinished, format!("interrupted; {then}"))
    }

    /// Says it, to standard error.
    pub(super) fn tell(&self) {
        for line in self.text.lines() {
            eprint(&format!("chatting-server: {line}"));
        }
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::problem(text)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::new(Exit::Settings, error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let exit = match error {
            StartError::Config(_) => Exit::Settings,
            StartError::Port { .. } | StartError::Unavailable(_) => Exit::Unavailable,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        StartError::from(error).into()
    }
}

impl From<LookError> for Failure {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Opening(error) => error.into(),
            error => Self::unavailable(error.to_string()),
        }
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        let exit = match error {
            ImportError::File { .. } | ImportError::Once { .. } => Exit::Unavailable,
            ImportError::Line { .. } => Exit::Problem,
        };
        Self::new(exit, error.to_string())
    }
}
