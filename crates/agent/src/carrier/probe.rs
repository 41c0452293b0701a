//! Lines to other datacentres that this host measures, and those that other hosts measure to here.
//!
//! One line at a time, on a link of its own. The server withdraws the order for a line that a move begins to use, which
//! ends a measurement under way.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use sterna_base::clock::{Clock, SystemClock};
use sterna_base::units::{Rate, Span};
use sterna_model::bandwidth::rate_at;
use sterna_model::meta::Name;
use sterna_model::probe::LineProbe;
use sterna_mover::link::listen::Listener;
use sterna_mover::link::{Link, Options, Pace, SessionId, UNLIMITED};
use sterna_mover::probe;
use sterna_wire::assignment::{Assignment, Probe, Probed};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Carriers, Error};

/// Lines change seldom, and a probe costs them a second at most.
pub const PROBE_EVERY: Duration = Duration::from_secs(3600);
/// After one that failed: the other side waits for the next only some time after a line broke.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Connecting over a long line, echoes, a second of noise, and what of it a slow line still holds then.
const WITHIN: Duration = Duration::from_secs(20);

/// What the server wants of this host.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Orders {
    probes: Vec<Probe>,
    probed: Option<Probed>,
}

/// What the host row says of lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    /// Where probes of others are answered.
    pub mover: Option<SocketAddr>,
    /// By the datacentre to which they lead.
    pub seen: BTreeMap<Name, LineProbe>,
}

impl Carriers {
    /// The newest word of the server.
    pub fn set_probes(&self, assignment: &Assignment) {
        let orders = Orders { probes: assignment.probes.clone(), probed: assignment.probed.clone() };
        self.0.probe_orders.send_if_modified(|present| {
            let is_news = *present != orders;
            *present = orders;
            is_news
        });
    }

    #[must_use]
    pub fn lines(&self) -> watch::Receiver<Lines> {
        self.0.lines.subscribe()
    }

    /// Measures and answers as the server wants it, each line again after such a time. Never ends.
    pub async fn keep_probing(self, every: Duration) {
        tokio::join!(self.measure_lines(every), self.answer_probes());
    }

    async fn measure_lines(&self, every: Duration) {
        let mut orders = self.0.probe_orders.subscribe();
        let mut due = HashMap::<Name, Instant>::new();
        loop {
            let now = Instant::now();
            let probes = orders.borrow_and_update().probes.clone();
            let at = |probe: &Probe| due.get(&probe.datacentre).copied().unwrap_or(now);
            let next = probes.into_iter().map(|probe| (at(&probe), probe)).min_by_key(|(at, _)| *at);
            match next {
                Some((at, probe)) if at <= now => {
                    let measured = tokio::select! {
                        measured = self.measure_line(&probe) => measured,
                        // Due as before once it is ordered again.
                        _ = orders.wait_for(|orders| !orders.probes.contains(&probe)) => continue,
                    };
                    let pause = if measured { every } else { AGAIN_AFTER.min(every) };
                    due.insert(probe.datacentre, Instant::now() + pause);
                }
                next => tokio::select! {
                    _ = orders.changed() => {}
                    () = sleep_until(next.map(|(at, _)| at)) => {}
                },
            }
        }
    }

    /// Answers whether it could be measured.
    async fn measure_line(&self, order: &Probe) -> bool {
        match self.measure(order).await {
            Ok(line) => {
                let (to, rate, round_trip) = (&order.datacentre, line.rate, line.round_trip);
                tracing::info!(datacentre = %to, host = %order.peer, %rate, %round_trip, "a line was probed");
                self.0.lines.send_modify(|lines| drop(lines.seen.insert(to.clone(), line)));
                true
            }
            Err(error) => {
                let error = error.explain();
                tracing::warn!(datacentre = %order.datacentre, host = %order.peer, %error, "a line was not probed");
                false
            }
        }
    }

    async fn measure(&self, order: &Probe) -> Result<LineProbe, Error> {
        let dialer = self.dialer(&order.peer)?;
        // It is over before a limit that begins or ends meanwhile would matter.
        let limit = rate_at(&order.shares, SystemClock.now());
        let (_, rate) = watch::channel(limit.unwrap_or(UNLIMITED));
        let options = Options { pace: Pace::limited(rate), ..Options::default() };
        let link = Link::dial(SessionId(order.session.into_bytes()), order.at, dialer, options);
        let measured = tokio::time::timeout(WITHIN, probe::measure(link, limit)).await;
        let measured = measured.map_err(|_| Error::NoEcho { within: Span(WITHIN) })??;
        Ok(LineProbe {
            peer: order.peer.clone(),
            at: SystemClock.now(),
            round_trip: Span::from_millis(Span(measured.round_trip).as_millis()),
            rate: as_rate(measured.bytes_per_s),
            limit: limit.map(as_rate),
        })
    }

    async fn answer_probes(&self) {
        let mut orders = self.0.probe_orders.subscribe();
        loop {
            let probed = orders.borrow_and_update().probed.clone();
            tokio::select! {
                () = self.answer(probed.as_ref()) => {}
                _ = orders.wait_for(|orders| orders.probed != probed) => {}
            }
        }
    }

    async fn answer(&self, probed: Option<&Probed>) {
        let Some(probed) = probed else {
            self.answers_at(None);
            return std::future::pending().await;
        };
        let listener = match self.listener(probed.listen).await {
            Ok(listener) => listener,
            Err(error) => {
                self.answers_at(None);
                let error = error.explain();
                tracing::warn!(address = %probed.listen, %error, "lines to this host cannot be probed");
                return tokio::time::sleep(AGAIN_AFTER).await;
            }
        };
        self.answers_at(Some(listener.address()));
        let sessions = probed.sessions.iter().map(|session| SessionId(session.into_bytes()));
        join_all(sessions.map(|session| answer_all(&listener, session))).await;
    }

    fn answers_at(&self, mover: Option<SocketAddr>) {
        self.0.lines.send_if_modified(|lines| std::mem::replace(&mut lines.mover, mover) != mover);
    }
}

async fn answer_all(listener: &Arc<Listener>, session: SessionId) {
    loop {
        probe::answer(listener.expect(session, Options::default())).await;
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Fractions of a kbit/s say nothing.
fn as_rate(bytes_per_s: u64) -> Rate {
    Rate::kbit(bytes_per_s.saturating_mul(8) / 1000)
}
