//! What a client on the network sees: the longest silence, and requests without an answer.

/// Requests over HTTP, one after another.
pub mod http;
/// The longest silence, by UDP echo.
pub mod udp;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;
use serde::Serialize;

use crate::netns;

/// Ends the probes that hold it.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Probes that run from one namespace.
pub struct Probes {
    stop: Stop,
    udp: Option<(udp::Live, JoinHandle<Result<udp::Outcome>>)>,
    http: Option<(http::Live, JoinHandle<Result<http::Outcome>>)>,
}

/// What they saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcome {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<udp::Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<http::Outcome>,
}

impl Probes {
    /// Starts them in `space` (`None`: where we are) against a guest's echo and HTTP server.
    pub fn start(space: Option<&str>, udp: Option<Ipv4Addr>, http: Option<Ipv4Addr>) -> Result<Self> {
        let stop = Stop::default();
        let udp = udp.map(|guest| {
            let (live, stop) = (udp::Live::default(), stop.clone());
            let shown = live.clone();
            netns::inside(space, move || udp::run(guest, udp::PORT, &stop, &live))
                .map(|thread| (shown, thread))
        });
        let http = http.map(|guest| {
            let (live, stop) = (http::Live::default(), stop.clone());
            let shown = live.clone();
            netns::inside(space, move || http::run(guest, http::PORT, &stop, &live))
                .map(|thread| (shown, thread))
        });
        Ok(Self { stop, udp: udp.transpose()?, http: http.transpose()? })
    }

    /// Requests answered so far, and the last whole answer.
    #[must_use]
    pub fn answered(&self) -> Option<(u64, String)> {
        self.http.as_ref().map(|(live, _)| live.answered())
    }

    /// Datagrams that came back so far.
    #[must_use]
    pub fn echoed(&self) -> Option<u64> {
        self.udp.as_ref().map(|(live, _)| live.echoed())
    }

    /// Ends them; the request that is under way is waited for.
    pub fn finish(self) -> Result<Outcome> {
        self.stop.stop();
        Ok(Outcome {
            udp: self.udp.map(|(_, thread)| joined(thread)).transpose()?,
            http: self.http.map(|(_, thread)| joined(thread)).transpose()?,
        })
    }
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
