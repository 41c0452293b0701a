//! How a command ends: message, hint, exit code.

use sterna_client::Error as ClientError;

use crate::session::Terminal;

/// Everything that was asked for holds.
pub const OK: u8 = 0;
/// Refused by the server, or it failed.
pub const FAILED: u8 = 1;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// Nobody answers.
pub const UNREACHABLE: u8 = 4;

pub type Result<T> = std::result::Result<T, Failure>;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{message}")]
    Usage { message: String, hint: Option<String> },
    #[error("{message}")]
    Failed { message: String, hint: Option<String> },
    #[error("{0}")]
    Client(#[from] ClientError),
    /// Some of several objects failed; each was told when it did. The code is the worst of theirs.
    #[error("{failed} of {all} failed")]
    Some { failed: usize, all: usize, code: u8 },
    /// The reader of stdout has gone: nothing more to do, nothing to say.
    #[error("stdout is closed")]
    Closed,
}

impl Failure {
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    pub fn failed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure::Failed { message: message.into(), hint: Some(hint.into()) }
    }

    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Failure::Usage { hint, .. } | Failure::Failed { hint, .. } => hint.clone(),
            Failure::Client(error) => error.hint(),
            Failure::Some { .. } | Failure::Closed => None,
        }
    }

    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Failure::Usage { .. } => USAGE,
            Failure::Some { code, .. } => *code,
            Failure::Closed => OK,
            Failure::Failed { .. } => FAILED,
            Failure::Client(error) => code_of(error),
        }
    }

    /// Message and hint to stderr.
    pub fn tell(&self, terminal: &Terminal) {
        if matches!(self, Failure::Closed) {
            return;
        }
        terminal.talk(&format!("error: {self}"));
        if let Some(hint) = self.hint() {
            terminal.talk(&format!("hint: {hint}"));
        }
    }
}

/// Nobody who answers and is believed is a case of its own for scripts.
#[must_use]
pub fn code_of(error: &ClientError) -> u8 {
    match error {
        ClientError::Unreachable { .. } | ClientError::Untrusted { .. } => UNREACHABLE,
        _ => FAILED,
    }
}
