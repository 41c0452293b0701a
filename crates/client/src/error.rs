//! What can go wrong, with a hint what to do.

use sterna_model::error::Error as Refusal;

pub type Result<T> = std::result::Result<T, Error>;

/// One variant for each thing the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server understood and said no.
    #[error("{0}")]
    Refused(Refusal),
    /// No answer: nothing listens, or the line is broken.
    #[error("no answer from {server}: {why}")]
    Unreachable { server: String, why: String },
    /// Something answers, but it is not the server that the context names.
    #[error("{server} is not trusted: {why}")]
    Untrusted { server: String, why: String },
    /// The answer is not what this version of the client understands.
    #[error("the answer to {request} cannot be read: {why}")]
    Unreadable { request: String, why: String },
    /// There is no usable context.
    #[error("{why}")]
    Context { why: String, hint: String },
    /// A local file or stream failed during a transfer.
    #[error("{what}")]
    Local {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// What the caller can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Refused(refusal) => refusal.hint.clone(),
            Error::Unreachable { .. } => Some(
                "is the server running? `sterna server status` on its machine, or another address in $STERNA_CONFIG"
                    .to_owned(),
            ),
            Error::Untrusted { .. } => Some(
                "the `ca` in the context must be the ca.pem of this server; copy it from the server's data directory"
                    .to_owned(),
            ),
            Error::Unreadable { .. } => Some("client and server may differ in version: see `sterna server status`".to_owned()),
            Error::Context { hint, .. } => Some(hint.clone()),
            Error::Local { .. } => None,
        }
    }

    /// The server's refusal has this code.
    #[must_use]
    pub fn is(&self, code: sterna_model::error::Code) -> bool {
        matches!(self, Error::Refused(refusal) if refusal.code == code)
    }
}
