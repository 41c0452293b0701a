//! Connections between the two sides that may break and come back.
//!
//! ```text
//! send(kind, payload) -> outbox of the kind's lane -> some connection, TLS 1.3 -> inbox -> recv() -> acknowledgement
//! ```
//!
//! Connection 0 carries the urgent lane and all acknowledgements, the others share the data lane. Each is opened again
//! for ever after it broke or fell silent; frames it carried and nobody acknowledged go again, nothing else does. A
//! frame counts as arrived when the other side's `recv` took it, so a slow reader slows the writer and nothing piles
//! up between them. How long a silence may last is the caller's business: dropping the [`Link`] ends everything.

/// The side that is called.
pub mod listen;
/// Certificates, and TLS 1.3 with both sides known to each other.
pub mod tls;

mod connection;
mod dial;
#[cfg(test)]
mod fuzz;
mod hello;
mod line;
mod pace;
mod shared;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::frame::{Frame, Kind, Lane};
pub use pace::Pace;
use shared::Shared;

/// Names one session on both sides; whoever knows it and has the right certificate may join.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Half of it: enough to follow in a log, too little to join.
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    /// Connections for the data lane, 1 to 63.
    pub streams: u8,
    /// A connection on which nothing came for so long is opened anew. Both sides send something each quarter of it.
    pub silence: Duration,
    /// Longest wait before the next attempt to connect.
    pub retry_ceiling: Duration,
    /// Of all connections together, and of every link that has a clone of it.
    pub pace: Pace,
}

pub const UNLIMITED: u64 = u64::MAX;

impl Default for Options {
    fn default() -> Self {
        Self {
            streams: 4,
            silence: Duration::from_secs(4),
            retry_ceiling: Duration::from_secs(1),
            pace: Pace::unlimited(),
        }
    }
}

/// The state of a link, for people and for forecasts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Connections that are up, of `streams + 1`.
    pub connected: u8,
    /// How often one was lost.
    pub lost: u64,
    /// Payload that the other side took, on both lanes.
    pub acked_bytes: u64,
    /// Payload that went more than once.
    pub resent_bytes: u64,
    /// Payload on the data lane that the other side has not taken yet.
    pub queued_bytes: u64,
    /// What that may be at most.
    pub window_bytes: u64,
    /// All that was written to connections, headers and repetitions as well.
    pub wire_bytes: u64,
    /// Payload that was taken here.
    pub received_bytes: u64,
    pub round_trip: Option<Duration>,
    /// Bytes a second, as acknowledged lately.
    pub rate: Option<u64>,
}

/// Why nothing goes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("the link was stopped on this side")]
    Stopped,
    #[error("the other side has finished")]
    Finished,
    #[error("the other side refuses this session: {0}")]
    Refused(Refusal),
}

/// Why a side does not want a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    #[error("it expects no such session")]
    UnknownSession = 1,
    #[error("the session belongs to another certificate")]
    OtherPeer = 2,
    #[error("it speaks another version")]
    Version = 3,
}

/// One side of a session. Dropping it ends all its connections.
#[derive(Debug)]
pub struct Link {
    pub sender: Sender,
    pub urgent: Receiver,
    pub data: Receiver,
    progress: watch::Receiver<Progress>,
    _stop: DropGuard,
}

impl Link {
    /// The side that calls: connects to `target` again and again until dropped.
    #[must_use]
    pub fn dial(session: SessionId, target: SocketAddr, dialer: tls::Dialer, options: Options) -> Self {
        let (shared, link) = Self::new(session, options);
        dial::spawn(&shared, target, &dialer);
        link
    }

    fn new(session: SessionId, options: Options) -> (Arc<Shared>, Self) {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared::new(session, options, stop.clone()));
        let link = Self {
            sender: Sender { shared: Arc::clone(&shared) },
            urgent: Receiver { shared: Arc::clone(&shared), lane: Lane::Urgent },
            data: Receiver { shared: Arc::clone(&shared), lane: Lane::Data },
            progress: shared.progress(),
            _stop: stop.drop_guard(),
        };
        (shared, link)
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// For another link beside this one.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.sender.shared.options.pace.clone()
    }
}

/// Puts frames on their way.
#[derive(Debug, Clone)]
pub struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    /// Returns once the frame has room; waits while the line is behind.
    pub async fn send(&self, kind: Kind, payload: Bytes) -> Result<(), Ended> {
        self.shared.send(kind, payload).await
    }

    /// How full the data lane's window is, 0 to 1 and a little above.
    #[must_use]
    pub fn fill(&self) -> f64 {
        self.shared.fill()
    }

    /// Waits until the other side took everything, and says that nothing more will come.
    pub async fn finish(&self) -> Result<(), Ended> {
        self.shared.finish(&Lane::ALL).await
    }

    /// The same when the stream was given up: waits only until the other side took the last message.
    pub async fn give_up(&self) -> Result<(), Ended> {
        self.shared.finish(&[Lane::Urgent]).await
    }

    /// The same when the other side has given up, and reads nothing any more.
    pub async fn part(&self) -> Result<(), Ended> {
        self.shared.finish(&[]).await
    }
}

/// Frames of one lane, in order, each once.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    lane: Lane,
}

impl Receiver {
    /// The next frame; an error once none can come any more. May be cancelled without losing one.
    pub async fn recv(&mut self) -> Result<Frame, Ended> {
        self.shared.recv(self.lane).await
    }
}
