//! Streams that an agent dials back for: a person waits with a ticket, the agent brings it, the server splices both.
//!
//! ```text
//!  person ── GET …/console (Upgrade) ──► server ── attach TICKET ──► agent
//!     ▲                                     ◄── GET …/attach/TICKET (Upgrade) ──┘
//!     └───────────── raw bytes ─────────────┘
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sterna_model::error::Code;
use sterna_model::meta::Name;
use tokio::sync::oneshot;

use crate::app::App;
use crate::auth::{self, HostActor};
use crate::error::{Answer, refuse};

/// The name of the protocol in `Upgrade:`.
pub const PROTOCOL: &str = "sterna-stream";
/// How long an agent may take to dial back.
pub const PATIENCE: Duration = Duration::from_secs(10);
const TICKETS_MAX: usize = 256;

#[derive(Default)]
pub struct Tickets {
    /// By the hash of the ticket.
    waiting: Mutex<HashMap<String, Waiting>>,
}

struct Waiting {
    host: Name,
    since: Instant,
    agent: oneshot::Sender<OnUpgrade>,
}

impl Tickets {
    /// A new ticket for `host`, and where the agent's end will arrive.
    pub fn issue(&self, host: &Name) -> Answer<(String, oneshot::Receiver<OnUpgrade>)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, ticket| ticket.since.elapsed() < PATIENCE && !ticket.agent.is_closed());
        if waiting.len() >= TICKETS_MAX {
            return Err(refuse(Code::TooManyRequests, "too many streams are being opened"));
        }
        let (secret, hash) = auth::new_secret();
        let (agent, arrives) = oneshot::channel();
        waiting.insert(hash, Waiting { host: host.clone(), since: Instant::now(), agent });
        Ok((secret, arrives))
    }

    /// Hands the agent's end over; a ticket works once, in time, and for its host only.
    fn redeem(&self, ticket: &str, host: &Name, stream: OnUpgrade) -> Answer<()> {
        let no = || refuse(Code::Forbidden, "the ticket is not valid");
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = auth::hash(ticket);
        if all.get(&hash).is_none_or(|waiting| waiting.host != *host) {
            return Err(no());
        }
        let waiting = all.remove(&hash).ok_or_else(no)?;
        if waiting.since.elapsed() >= PATIENCE {
            return Err(no());
        }
        waiting.agent.send(stream).map_err(|_| no())
    }
}

/// `GET /agent/v1/attach/TICKET`: the connection becomes raw bytes.
pub async fn attach(
    State(app): State<App>,
    HostActor(host): HostActor,
    Path(ticket): Path<String>,
    mut request: Request,
) -> Answer<Response> {
    let stream = upgrade_of(&mut request)?;
    app.gateway.tickets.redeem(&ticket, &host.name, stream)?;
    Ok(switching())
}

/// The future raw stream of a request that asks for one.
pub fn upgrade_of(request: &mut Request) -> Answer<OnUpgrade> {
    let asks = asks_for_stream(request.headers());
    let stream = request.extensions_mut().remove::<OnUpgrade>().filter(|_| asks);
    stream.ok_or_else(|| {
        refuse(Code::Malformed, "this path is a raw stream")
            .hint(format!("use HTTP/1.1 with Connection: upgrade and Upgrade: {PROTOCOL}"))
    })
}

fn asks_for_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()))
}

/// `101 Switching Protocols`.
pub fn switching() -> Response {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    response
}

/// Carries bytes between both ends until one of them ends.
pub fn splice(person: OnUpgrade, agent: OnUpgrade) {
    tokio::spawn(async move {
        let (person, agent) = match tokio::try_join!(person, agent) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "a stream did not come about"),
        };
        let (mut person, mut agent) = (TokioIo::new(person), TokioIo::new(agent));
        if let Err(error) = tokio::io::copy_bidirectional(&mut person, &mut agent).await {
            tracing::debug!(%error, "a stream ended");
        }
    });
}
