//! The line to the server: dialled from here, kept for ever.
//!
//! ```text
//! dial -> [ assignment stream -----------------------> fleet, world ]
//!         [ Host + Inventory, then reports in order <- outbox       ]   any end of one ends all, and dials again
//!         [ samples                                 <- outbox       ]
//! ```
//!
//! Reports are sent one batch at a time and forgotten when the server has answered that they are stored. After a
//! new connection the inventory says the newest of every VM, so older words about them are dropped.

/// Reports that wait.
pub mod outbox;
/// Certificates and clients.
pub mod tls;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Client, StatusCode};
use sterna_base::backoff::Backoff;
use sterna_wire::down::Down;
use sterna_wire::up::Up;
use tokio::sync::watch;

use outbox::Outbox;
use tls::Identity;

/// An agent that lost its server tries at once, and soon does not hammer it.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// The server says `Alive` every 5 s.
const SILENCE_MAX: Duration = Duration::from_secs(12);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// While an inventory was not complete.
const RECOUNT_EVERY: Duration = Duration::from_secs(1);
/// Longest line of the stream: an assignment of a host with hundreds of VMs.
const LINE_MAX: usize = 64 << 20;

/// Everybody who listens to the server, and who tells what is here.
pub trait Ends: Send + Sync + 'static {
    /// A new connection stands; its first assignment comes next.
    fn on_connected(&self);
    fn on_line(&self, line: Down);
    fn host(&self) -> Up;
    /// With whether it is complete.
    fn inventory(&self) -> (bool, Up);
}

pub struct Link<E> {
    pub identity: Identity,
    pub outbox: Arc<Outbox>,
    pub ends: Arc<E>,
    pub is_up: watch::Sender<bool>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("{what}")]
    Http { what: &'static str, source: reqwest::Error },
    #[error("the server answers {status}")]
    Refused { status: StatusCode },
    #[error("the server is silent")]
    Silent,
    #[error("the stream has ended")]
    Closed,
}

impl<E: Ends> Link<E> {
    /// Never ends.
    pub async fn run(&self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            let Err(ended) = self.session(&mut backoff).await;
            if self.is_up.send_replace(false) {
                tracing::warn!(why = %explain(&ended), "the line to the server is down");
            } else {
                tracing::debug!(why = %explain(&ended), "the server was not reached");
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn session(&self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Ended> {
        let client = self.identity.client().await?;
        let stream = client.get(self.identity.url("/agent/v1/assignment")).send();
        let stream = within(ANSWER_WITHIN, stream).await?.map_err(failed("dial"))?;
        if stream.status() != StatusCode::OK {
            return Err(Ended::Refused { status: stream.status() });
        }
        self.ends.on_connected();
        tokio::select! {
            ended = self.listen(stream) => ended,
            ended = self.report(&client, backoff) => ended,
            ended = self.sample(&client) => ended,
        }
    }

    async fn listen(&self, stream: reqwest::Response) -> Result<std::convert::Infallible, Ended> {
        let mut chunks = stream.bytes_stream();
        let mut rest: Vec<u8> = Vec::new();
        loop {
            let chunk = within(SILENCE_MAX, chunks.next()).await?.ok_or(Ended::Closed)?;
            rest.extend_from_slice(&chunk.map_err(failed("read the assignment"))?);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(line) => {
                        let is_hold = matches!(line, Down::Hold { .. });
                        self.ends.on_line(line);
                        if is_hold {
                            self.outbox.ask_for_inventory();
                        }
                    }
                    // A newer server says more than we know.
                    Err(error) => tracing::warn!(%error, "a line of the server is not understood"),
                }
            }
            if rest.len() > LINE_MAX {
                return Err(Ended::Closed);
            }
        }
    }

    async fn report(
        &self,
        client: &Client,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, Ended> {
        self.outbox.forget_vms();
        let (mut is_complete, inventory) = self.ends.inventory();
        self.post(client, &[self.ends.host(), inventory]).await?;
        backoff.reset();
        self.is_up.send_replace(true);
        tracing::info!(is_complete, "connected with the server");
        loop {
            let batch = tokio::select! {
                biased;
                batch = self.outbox.batch() => batch,
                () = self.outbox.inventory_asked() => {
                    is_complete = self.count();
                    continue;
                }
                () = tokio::time::sleep(RECOUNT_EVERY), if !is_complete => {
                    is_complete = self.count();
                    continue;
                }
            };
            self.post(client, &batch).await?;
            self.outbox.done(batch.len());
        }
    }

    /// Adds a new inventory to the reports if it is complete, and answers that.
    fn count(&self) -> bool {
        let (is_complete, inventory) = self.ends.inventory();
        if is_complete {
            self.outbox.add(inventory);
        }
        is_complete
    }

    /// Beside the reports, so that a report never waits for a measurement.
    async fn sample(&self, client: &Client) -> Result<std::convert::Infallible, Ended> {
        let mut is_up = self.is_up.subscribe();
        // The sender lives as long as we do.
        let _ = is_up.wait_for(|is_up| *is_up).await;
        loop {
            let samples = self.outbox.samples().await;
            self.post(client, &[Up::Samples(samples)]).await?;
        }
    }

    async fn post(&self, client: &Client, batch: &[Up]) -> Result<(), Ended> {
        let sent = client.post(self.identity.url("/agent/v1/report")).json(batch).send();
        let answer = within(ANSWER_WITHIN, sent).await?.map_err(failed("report"))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let text = answer.text().await.unwrap_or_default();
        // It would be refused again for ever: better to lose it, loudly.
        if matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY) {
            tracing::error!(%status, %text, "the server does not understand a report");
            return Ok(());
        }
        tracing::debug!(%status, %text, "report refused");
        Err(Ended::Refused { status })
    }
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Result<T, Ended> {
    tokio::time::timeout(limit, future).await.map_err(|_| Ended::Silent)
}

fn failed(what: &'static str) -> impl FnOnce(reqwest::Error) -> Ended {
    move |source| Ended::Http { what, source }
}

/// The whole chain in one line.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
