//! Who may: tokens of people, certificates of hosts, and a durable record of everything that changes something.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts as Head;
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rand::Rng;
use sha2::{Digest, Sha256};
use sterna_model::error::Code;
use sterna_model::token::Role;
use sterna_plan::View;
use sterna_store::history::Audit;
use subtle::ConstantTimeEq;

use crate::app::App;
use crate::body::BODY_MAX;
use crate::ca::{HostIdentity, hex};
use crate::error::{Answer, Refusal, Refused, refuse};
use crate::tls::Peer;

/// A body that takes longer than this is a slow client or an attack.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// Who a request is from.
#[derive(Debug, Clone)]
pub struct Actor {
    /// The name of the token.
    pub name: String,
    pub role: Role,
}

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Refusal;

    async fn from_request_parts(head: &mut Head, _: &S) -> Answer<Self> {
        head.extensions.get().cloned().ok_or_else(unauthenticated)
    }
}

/// A new secret and its hash: 256 random bits as hex.
#[must_use]
pub fn new_secret() -> (String, String) {
    let mut random = [0; 32];
    rand::rng().fill_bytes(&mut random);
    let secret = hex(&random);
    let hash = hash(&secret);
    (secret, hash)
}

/// What is stored of a secret. A plain hash is enough: the secret has 256 random bits.
#[must_use]
pub fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

/// Whether two hashes are the same, in a time that does not tell where they differ.
#[must_use]
pub fn same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

fn unauthenticated() -> Refusal {
    refuse(Code::Unauthenticated, "no valid token was given").hint("send Authorization: Bearer TOKEN")
}

fn identify(headers: &HeaderMap, view: &View) -> Answer<Actor> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, secret) = value.and_then(|value| value.split_once(' ')).ok_or_else(unauthenticated)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(unauthenticated());
    }
    let given = hash(secret.trim());
    let mut found = None;
    // Every token is compared, so that the time does not tell which one is near.
    for (name, entry) in &view.tokens {
        if let Some(row) = &entry.spec
            && same(&row.value.spec.hash, &given)
        {
            found = Some(Actor { name: name.to_string(), role: row.value.spec.role });
        }
    }
    found.ok_or_else(unauthenticated)
}

/// Asks every request under `/v1` for its token, and records those that change something before they are executed.
pub async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    let actor = identify(request.headers(), &app.view());
    if !changes_something(&request) {
        return match actor {
            Ok(actor) => run(request, actor, next).await,
            Err(refusal) => refusal.into_response(),
        };
    }
    let line = Line::of(&request, actor.as_ref().ok());
    let admitted = match actor {
        Ok(actor) if actor.role == Role::Admin => {
            read_body(request).await.map(|(request, hash)| (request, hash, actor))
        }
        Ok(_) => Err(refuse(Code::Forbidden, "this token may only read").hint("use a token of role admin")),
        Err(refusal) => Err(refusal),
    };
    match admitted {
        Ok((request, hash, actor)) => {
            if let Err(error) = app.history.append_audit(line.row(&app, &hash, "accepted")).await {
                return Refusal::from(error).into_response();
            }
            let response = run(request, actor, next).await;
            conclude(&app, &line, &hash, &response);
            response
        }
        Err(refusal) => {
            let response = refusal.into_response();
            if line.actor != NOBODY || app.strangers.may_be_recorded() {
                conclude(&app, &line, "", &response);
            }
            response
        }
    }
}

const NOBODY: &str = "nobody";
/// Refusals of strangers that are recorded in one second: the record is never trimmed, and must not be theirs to fill.
const STRANGERS_PER_S: u32 = 10;

/// Counts refusals of requests that nobody vouches for.
#[derive(Debug)]
pub struct Strangers(Mutex<(Instant, u32)>);

impl Default for Strangers {
    fn default() -> Self {
        Self(Mutex::new((Instant::now(), 0)))
    }
}

impl Strangers {
    /// Whether one more row about a stranger may be written in this second.
    pub fn may_be_recorded(&self) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0.elapsed() >= Duration::from_secs(1) {
            *window = (Instant::now(), 0);
        }
        window.1 += 1;
        window.1 <= STRANGERS_PER_S
    }
}

async fn run(mut request: Request, actor: Actor, next: Next) -> Response {
    request.extensions_mut().insert(actor);
    next.run(request).await
}

/// A console is no reading: it types into the guest.
fn changes_something(request: &Request) -> bool {
    !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
        || request.uri().path().ends_with("/console")
}

/// Bodies are read whole before the handler runs, so that the record can tell what was asked; image content is not.
async fn read_body(request: Request) -> Answer<(Request, String)> {
    if is_stream(&request) {
        return Ok((request, "stream".to_owned()));
    }
    let (head, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, BODY_MAX).collect()).await;
    let bytes = match read {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(refuse(Code::TooLarge, format!("the body has more than {BODY_MAX} bytes")));
        }
        Ok(Err(_)) => return Err(refuse(Code::Malformed, "the body broke off")),
        Err(_) => return Err(refuse(Code::Malformed, "the body took too long")),
    };
    let hash = if carries_password(&head.uri) { "withheld".to_owned() } else { hex(&Sha256::digest(&bytes)) };
    Ok((Request::from_parts(head, Body::from(bytes)), hash))
}

/// The hash of a body that is known but for a short password would tell the password.
fn carries_password(uri: &Uri) -> bool {
    uri.path().ends_with("/fence")
}

fn is_stream(request: &Request) -> bool {
    let path = request.uri().path();
    (request.method() == Method::PUT && path.ends_with("/content")) || path.ends_with("/console")
}

/// What the record says of a request before its outcome is known.
struct Line {
    actor: String,
    source: String,
    method: String,
    path: String,
}

impl Line {
    fn of(request: &Request, actor: Option<&Actor>) -> Self {
        let source = request.extensions().get::<Peer>().map(|peer| peer.address.to_string());
        Self {
            actor: actor.map_or_else(|| NOBODY.to_owned(), |actor| actor.name.clone()),
            source: source.unwrap_or_default(),
            method: request.method().to_string(),
            path: request.uri().path().chars().take(400).collect(),
        }
    }

    fn row(&self, app: &App, request_hash: &str, outcome: &str) -> Audit {
        Audit {
            time_ms: app.now().as_millis(),
            actor: self.actor.clone(),
            source: self.source.clone(),
            method: self.method.clone(),
            path: self.path.clone(),
            request_hash: request_hash.to_owned(),
            outcome: outcome.to_owned(),
        }
    }
}

/// Appends what came of a request. It is queued at once and the caller does not wait: that it was asked for is already
/// durable.
fn conclude(app: &App, line: &Line, request_hash: &str, response: &Response) {
    let status = response.status().as_u16();
    let code =
        response.extensions().get::<Refused>().and_then(|refused| serde_json::to_value(refused.0).ok());
    let outcome = match code.as_ref().and_then(|code| code.as_str()) {
        Some(code) => format!("{status} {code}"),
        None => status.to_string(),
    };
    let appended = app.history.append_audit(line.row(app, request_hash, &outcome));
    tokio::spawn(async move {
        if let Err(error) = appended.await {
            tracing::error!(%error, "an outcome was not recorded");
        }
    });
}

/// The host that a request of an agent is from: its certificate names a host that exists, with the same uid.
pub struct HostActor(pub HostIdentity);

impl FromRequestParts<App> for HostActor {
    type Rejection = Refusal;

    async fn from_request_parts(head: &mut Head, app: &App) -> Answer<Self> {
        let identity = head.extensions.get::<Peer>().and_then(|peer| peer.host.clone());
        let identity = identity.ok_or_else(|| {
            refuse(Code::Unauthenticated, "no host certificate was shown")
                .hint("join with `sterna agent join`")
        })?;
        identity.check(&app.view())?;
        Ok(Self(identity))
    }
}

impl HostIdentity {
    /// The certificate's host is still part of the cluster, and no later one of its name.
    pub fn check(&self, view: &View) -> Answer<()> {
        let known = view.hosts.get(&self.name).and_then(|entry| entry.meta());
        if known.is_some_and(|meta| meta.uid == self.uid) {
            return Ok(());
        }
        Err(refuse(Code::Forbidden, format!("host {} is no longer part of the cluster", self.name))
            .hint("join again with a new token"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cannot_fill_the_record() {
        let strangers = Strangers::default();
        let recorded = (0..1000).filter(|_| strangers.may_be_recorded()).count();
        // The loop may cross into a second second.
        assert!((10..=20).contains(&recorded), "{recorded}");
    }

    #[test]
    fn a_secret_is_found_by_its_hash_only() {
        let (secret, stored) = new_secret();
        assert_eq!(secret.len(), 64);
        assert!(same(&hash(&secret), &stored));
        assert!(!same(&hash("guess"), &stored));
        assert_ne!(new_secret().0, secret);
    }
}
