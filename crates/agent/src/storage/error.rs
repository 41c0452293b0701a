//! Why storage did not do as it was asked; one variant per thing the caller can do about it.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not now: the same call may succeed later without anybody's help.
    #[error("{what}")]
    NotYet { what: String },
    /// Not like this: a person (or another decision) must change something first.
    #[error("{what}")]
    Refused { what: String },
    /// The machine said no while `what` was tried. May pass.
    #[error("cannot {what}")]
    Io { what: String, source: io::Error },
}

impl Error {
    pub(super) fn not_yet(what: impl Into<String>) -> Self {
        Self::NotYet { what: what.into() }
    }

    pub(super) fn refused(what: impl Into<String>) -> Self {
        Self::Refused { what: what.into() }
    }

    /// For `map_err`: `what` continues "cannot".
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }

    /// The whole chain in one line, for a report.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

/// Joins the answer of a blocking task; a panic in it is a defect that must not be swallowed.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
