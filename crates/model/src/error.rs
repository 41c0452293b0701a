//! The one error type of the API: a code for programs, a message for people, a hint what to do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of "no" it is. The HTTP status follows from it in [`Code::http_status`] and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request cannot be read: broken JSON, wrong type, wrong content type.
    Malformed,
    /// The request can be read, but a value in it is not allowed.
    Invalid,
    /// A field that does not exist; the hint suggests the nearest one.
    UnknownField,
    /// No valid token or certificate.
    Unauthenticated,
    /// Known, but not allowed to do this.
    Forbidden,
    NotFound,
    AlreadyExists,
    /// The object changed since it was read (stale revision), or changes too often.
    Conflict,
    /// The object's present state does not allow it.
    WrongState,
    /// Something else uses it.
    InUse,
    /// A precondition outside the request is missing: no host fits, a pool is not reachable.
    Unmet,
    TooLarge,
    TooManyRequests,
    MethodNotAllowed,
    UnsupportedMedia,
    /// The watch asked for a revision that has been compacted.
    Gone,
    /// This server cannot answer now: store full or not the leader.
    Unavailable,
    /// A defect in Sterna.
    Internal,
}

impl Code {
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Code::Malformed => 400,
            Code::Invalid | Code::UnknownField => 422,
            Code::Unauthenticated => 401,
            Code::Forbidden => 403,
            Code::NotFound => 404,
            Code::MethodNotAllowed => 405,
            Code::AlreadyExists | Code::Conflict | Code::WrongState | Code::InUse | Code::Unmet => 409,
            Code::Gone => 410,
            Code::TooLarge => 413,
            Code::UnsupportedMedia => 415,
            Code::TooManyRequests => 429,
            Code::Internal => 500,
            Code::Unavailable => 503,
        }
    }
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub code: Code,
    /// One sentence, lower case, with the values it is about.
    pub message: String,
    /// What the caller can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Error {
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
