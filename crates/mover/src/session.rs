//! The two ends: QEMU's socket on one side, the link on the other, and the commit between them.
//!
//! ```text
//! source QEMU -> Source == link == Target -> target QEMU        the guest's memory
//!             <-                          <-                    QEMU's return path
//! ```
//!
//! The commit in four steps. Each is the caller's word, or told to the caller as an event:
//!
//! 1. [`SourceEvent::TailHeld`]: all came but the end of the stream, which is held back. The target cannot be complete.
//!    Until now the source may abort alone, and QEMU continues the guest by itself.
//! 2. [`Source::grant`]: the end goes, with the hash of the whole stream. From here the source decides nothing alone.
//! 3. [`TargetEvent::Granted`], when the hash is right and before the last byte is given to QEMU; then
//!    [`TargetEvent::Loaded`] and [`SourceEvent::Loaded`], when the target QEMU says that it has everything. That word
//!    is kept from the source QEMU, which therefore stands still, and neither completes nor resumes.
//! 4. [`Source::commit`]: the source QEMU gets the word and completes. Or [`Source::reclaim`], when whoever decides
//!    about ownership gave it back: the socket closes, and the source QEMU resumes the guest.
//!
//! A failure after the grant, of the line or of the target, decides nothing: [`SourceEvent::InDoubt`], and QEMU waits.
//! A side that dies closes its socket, and a source QEMU that is not frozen then resumes its guest. Who grants must
//! freeze it first, or hold another descriptor of that socket.

/// Where memory comes from.
pub mod source;
/// Where memory goes to.
pub mod target;

#[cfg(test)]
mod fuzz;
mod message;
mod return_path;

use std::time::Duration;

use crate::checkpoint::CheckpointId;
use crate::codec::{Counters, Dictionary};
use crate::frame::Kind;
use crate::hash::StreamHash;
use crate::link::{Ended, Link, Sender};
use message::Message;

pub use source::{Source, SourceEvent};
pub use target::{Target, TargetEvent};

/// A line that is down for longer lets the other side find out by itself.
const LEAVE_WITHIN: Duration = Duration::from_secs(60);

/// A checkpoint that this side has, and reads pages from.
pub struct Shared {
    pub id: CheckpointId,
    pub pages: Box<dyn Dictionary>,
}

/// Why a call cannot be done now. It changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the end of the stream has not come yet")]
    NothingHeld,
    #[error("the source has let go already")]
    PastGrant,
    #[error("the source has not let go yet")]
    NotGranted,
    #[error("the target has not said that it loaded everything")]
    NotLoaded,
    #[error("the session has ended")]
    Ended,
}

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this side's QEMU closed its socket")]
    QemuClosed,
    #[error("this side's QEMU cannot be read or written")]
    Qemu(#[source] std::io::Error),
    #[error("the stream cannot be packed")]
    Encode(#[source] std::io::Error),
    #[error("the stream cannot be rebuilt")]
    Decode(#[from] crate::codec::Error),
    #[error("the granted stream has another hash or length than what came")]
    HashDiffers,
    #[error("the source QEMU sent more after the end of its stream was granted")]
    MoreAfterGrant,
    #[error("the other side sent a message that has no place here")]
    OutOfPlace,
    #[error("the two sides are not set up alike")]
    Unlike,
    #[error("the other side gave up: {0}")]
    Peer(String),
    #[error(transparent)]
    Link(#[from] Ended),
}

/// How a session ended.
#[derive(Debug)]
pub enum Outcome {
    Committed,
    /// By a call on this side.
    Aborted,
    /// The source has its guest back after a grant.
    Reclaimed,
    Failed(Error),
}

/// What a side knows of the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub counters: Counters,
    pub level: i32,
}

/// The last word about a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub hash: StreamHash,
    pub length: u64,
}

/// The last words to the other side. The caller was told before, and need not wait: the line may be down for long.
fn take_leave(link: Link, first: Option<Message>, left: Left) {
    tokio::spawn(async move {
        // All of it, not its sender alone: a link ends when it is dropped.
        let link = link;
        match tokio::time::timeout(LEAVE_WITHIN, part(&link.sender, first, left)).await {
            Ok(Ok(())) => {}
            Ok(Err(ended)) => tracing::debug!(%ended, "the other side has gone already"),
            Err(_) => tracing::warn!("the other side was not told that the session has ended"),
        }
    });
}

async fn part(sender: &Sender, first: Option<Message>, left: Left) -> Result<(), Ended> {
    if let Some(first) = first {
        sender.send(Kind::Message, first.payload()).await?;
    }
    match left {
        Left::Done => sender.finish().await,
        Left::GaveUp(reason) => {
            sender.send(Kind::Message, Message::Abort { reason }.payload()).await?;
            sender.give_up().await
        }
        Left::Alone => sender.part().await,
    }
}

/// Who leaves whom, and why.
enum Left {
    Done,
    GaveUp(String),
    Alone,
}

impl From<&Outcome> for Left {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Committed => Self::Done,
            Outcome::Aborted => Self::GaveUp("aborted by its caller".to_owned()),
            Outcome::Reclaimed => Self::GaveUp("the source has its guest back".to_owned()),
            Outcome::Failed(Error::Peer(_) | Error::Link(_)) => Self::Alone,
            Outcome::Failed(error) => Self::GaveUp(error.to_string()),
        }
    }
}
