//! How a refusal leaves the server: the one error body, with the status that its code stands for.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sterna_model::error::{Code, Error};
use sterna_model::meta::NotAName;

/// An answer, or why there is none.
pub type Answer<T> = Result<T, Refusal>;

/// The API's error as an HTTP answer. Boxed, because handlers pass it up through many results.
#[derive(Debug)]
pub struct Refusal(pub Box<Error>);

/// Shorthand for a refusal without a hint.
pub fn refuse(code: Code, message: impl Into<String>) -> Refusal {
    Refusal(Box::new(Error::new(code, message)))
}

impl Refusal {
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self(Box::new(self.0.hint(hint)))
    }
}

/// Rides on the response so that the audit record can name the code.
#[derive(Debug, Clone, Copy)]
pub struct Refused(pub Code);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = self.0.code;
        let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if code == Code::Internal {
            tracing::error!(message = %self.0.message, "request failed");
        }
        let mut response = (status, Json(&*self.0)).into_response();
        let headers = response.headers_mut();
        if code == Code::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(code, Code::TooManyRequests | Code::Unavailable) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(Refused(code));
        response
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(Box::new(error))
    }
}

impl From<NotAName> for Refusal {
    fn from(error: NotAName) -> Self {
        refuse(Code::Invalid, error.to_string())
    }
}

impl From<sterna_store::Error> for Refusal {
    fn from(error: sterna_store::Error) -> Self {
        use sterna_store::Error as E;
        let code = match &error {
            E::Conflict { .. } => {
                return refuse(Code::Conflict, "the object was changed by someone else meanwhile")
                    .hint("read it again and repeat the change");
            }
            E::Compacted { .. } => Code::Gone,
            E::Future { .. } | E::Invalid { .. } => Code::Invalid,
            E::Full | E::Failed { .. } | E::Closed { .. } => Code::Unavailable,
            E::Deposed { .. } | E::Held { .. } | E::Damaged { .. } => Code::Internal,
        };
        refuse(code, error.to_string())
    }
}

/// Answers for paths that do not exist.
pub async fn no_such_path(uri: axum::http::Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    refuse(Code::NotFound, format!("there is nothing at {path:?}"))
        .hint("GET /v1/openapi.json lists every path")
}

/// Answers for paths that exist under another method.
pub async fn no_such_method(method: axum::http::Method) -> Refusal {
    refuse(Code::MethodNotAllowed, format!("{method} is not possible here"))
        .hint("GET /v1/openapi.json lists the methods of every path")
}
