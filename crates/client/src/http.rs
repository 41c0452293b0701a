//! Requests and answers, below every resource.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sterna_model::error::Error as Refusal;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::tls::{self, Trust};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an ordinary answer may take. Streams have no limit; long polls add theirs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// An error body larger than this is no error body of ours.
const ERROR_BODY_MAX: usize = 64 * 1024;

/// A connection to one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    server: String,
    base: Url,
    token: Option<String>,
    /// HTTP/2: many requests and streams share one connection.
    http: reqwest::Client,
    /// HTTP/1.1: an upgraded stream takes a connection of its own.
    upgrades: reqwest::Client,
}

impl Client {
    /// A client for the server of a context. Does not connect yet.
    pub fn new(context: &Context) -> Result<Self> {
        let ca = std::fs::read(&context.ca).map_err(|error| Error::Context {
            why: format!("the CA file {}: {error}", context.ca.display()),
            hint: "copy ca.pem from the server's data directory to where the context says".to_owned(),
        })?;
        Self::trusting(&context.server, &Trust::Ca(ca), Some(context.token.clone()))
    }

    /// A client that knows the server's CA otherwise than from a file, such as by a join token's pin.
    pub fn trusting(server: &str, trust: &Trust, token: Option<String>) -> Result<Self> {
        let wrong = |why: String| Error::Context {
            why,
            hint: "the context needs server = \"HOST:PORT\" and the PEM file of the server's CA".to_owned(),
        };
        let base = Url::parse(&format!("https://{server}/"))
            .map_err(|error| wrong(format!("server {server:?}: {error}")))?;
        let build = |protocols: &[&str]| {
            let tls = tls::config(trust, None, protocols)
                .map_err(|error| wrong(format!("the server's CA: {error}")))?;
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls)
                // The server is on the cluster's own network: a proxy for the web has no business there.
                .no_proxy()
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .http2_keep_alive_while_idle(true)
                .build()
                .map_err(|error| wrong(error.to_string()))
        };
        let inner = Inner {
            server: server.to_owned(),
            base,
            token,
            http: build(&["h2", "http/1.1"])?,
            upgrades: build(&["http/1.1"])?,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// `HOST:PORT` of the server.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.inner.server
    }

    fn url(&self, path: &str, query: &[(&str, String)]) -> Url {
        let mut url = self.inner.base.clone();
        url.set_path(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn request(&self, http: &reqwest::Client, method: Method, url: Url) -> RequestBuilder {
        let request = http.request(method, url);
        match &self.inner.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T> {
        self.get_within(path, query, ANSWER_TIMEOUT).await
    }

    pub(crate) async fn get_within<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        limit: Duration,
    ) -> Result<T> {
        let request = self.request(&self.inner.http, Method::GET, self.url(path, query)).timeout(limit);
        self.read(&format!("GET {path}"), self.send(request).await?).await
    }

    /// Sends a JSON body and reads a JSON answer. For joining, before there is a context.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.write(Method::POST, path, &[], body).await
    }

    pub(crate) async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.write(Method::PATCH, path, &[], body).await
    }

    async fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: &impl Serialize,
    ) -> Result<T> {
        let what = format!("{method} {path}");
        let request =
            self.request(&self.inner.http, method, self.url(path, query)).json(body).timeout(ANSWER_TIMEOUT);
        self.read(&what, self.send(request).await?).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T> {
        let request =
            self.request(&self.inner.http, Method::DELETE, self.url(path, query)).timeout(ANSWER_TIMEOUT);
        self.read(&format!("DELETE {path}"), self.send(request).await?).await
    }

    /// An answer that goes on for ever.
    pub(crate) async fn stream(&self, path: &str, query: &[(&str, String)]) -> Result<Response> {
        let request = self
            .request(&self.inner.http, Method::GET, self.url(path, query))
            .header(reqwest::header::ACCEPT, "text/event-stream");
        self.send(request).await
    }

    /// A body as long as it takes.
    pub(crate) async fn put_stream<T: DeserializeOwned>(
        &self,
        path: &str,
        size: u64,
        body: reqwest::Body,
    ) -> Result<T> {
        let request = self
            .request(&self.inner.http, Method::PUT, self.url(path, &[]))
            .header(reqwest::header::CONTENT_TYPE, "application/octet-stream")
            .header(reqwest::header::CONTENT_LENGTH, size)
            .body(body);
        self.read(&format!("PUT {path}"), self.send(request).await?).await
    }

    /// Turns the connection into raw bytes in both directions.
    pub(crate) async fn upgrade(&self, path: &str, protocol: &str) -> Result<reqwest::Upgraded> {
        let request = self
            .request(&self.inner.upgrades, Method::GET, self.url(path, &[]))
            .header(reqwest::header::CONNECTION, "upgrade")
            .header(reqwest::header::UPGRADE, protocol);
        let response = self.send(request).await?;
        if response.status() != reqwest::StatusCode::SWITCHING_PROTOCOLS {
            let why = format!("status {} instead of a stream", response.status());
            return Err(Error::Unreadable { request: format!("GET {path}"), why });
        }
        response.upgrade().await.map_err(|error| self.transport(&error))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|error| self.transport(&error))?;
        let status = response.status();
        if status.is_success() || status.is_informational() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|error| self.transport(&error))?;
        Err(refusal(status.as_u16(), &body))
    }

    async fn read<T: DeserializeOwned>(&self, request: &str, response: Response) -> Result<T> {
        let body = response.bytes().await.map_err(|error| self.transport(&error))?;
        // An empty answer reads as `null`, so that `()` and `Option` fit.
        let text: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(text)
            .map_err(|error| Error::Unreadable { request: request.to_owned(), why: error.to_string() })
    }

    pub(crate) fn transport(&self, error: &reqwest::Error) -> Error {
        let server = self.inner.server.clone();
        let why = root_cause(error);
        let is_tls = why.contains("certificate") || why.contains("UnknownIssuer");
        if is_tls { Error::Untrusted { server, why } } else { Error::Unreachable { server, why } }
    }
}

/// The innermost cause: "Connection refused" says more than "error sending request".
fn root_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it took too long".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn refusal(status: u16, body: &[u8]) -> Error {
    let readable = body.len() <= ERROR_BODY_MAX;
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) if readable => Error::Refused(refusal),
        _ => {
            let text: String =
                String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).take(200).collect();
            Error::Unreadable { request: format!("a request (status {status})"), why: text }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_model::error::Code;

    #[test]
    fn a_refusal_keeps_code_and_hint() {
        let body = br#"{"code":"not-found","message":"no vm web","hint":"sterna vm list"}"#;
        let error = refusal(404, body);
        assert!(error.is(Code::NotFound));
        assert_eq!(error.hint().as_deref(), Some("sterna vm list"));
    }

    #[test]
    fn a_strangers_error_page_is_shown_without_its_control_characters() {
        let error = refusal(502, b"<html>\x1b[2Jbad gateway");
        assert!(matches!(&error, Error::Unreadable { .. }));
        assert!(error.to_string().contains("502") && !error.to_string().contains('\x1b'), "{error}");
    }
}
