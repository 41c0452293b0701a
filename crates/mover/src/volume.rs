//! Disks to another datacentre: QEMU mirrors into a journal here, and the other side's QEMU gets what it lacks.
//!
//! ```text
//! source QEMU -- blockdev-mirror --> nbd::server -> journal -> Source == link == Target -> nbd::client -> target QEMU
//!                 (unix socket)                                                          (unix socket)     (its export)
//! ```
//!
//! The mirror sees a disk that is as near as a socket: a write is answered when it is in the journal, and no delay or
//! break of the line reaches QEMU's block layer. Writes for the same place merge while they wait. Whole chunks are
//! offered by name first, and only those go over the line that the target has nowhere. A journal that fills answers
//! later and later, and says so.
//!
//! How a caller drives it, with the VM's source QEMU in `here` and its target QEMU (`-incoming defer`) in `there`:
//!
//! 1. `there`: `nbd-server-start` on a unix socket, `block-export-add` (nbd, writable) for each disk; then a [`Target`].
//! 2. A [`Source`]; its sockets belong to this user, and a QEMU of another one must be given them.
//! 3. `here`: `blockdev-add` of driver `nbd` with [`source::MirrorTo`], **`discard` left at `ignore`**: with `unmap`, a
//!    full mirror first makes the whole target zero, and all that the target had is lost. `blockdev-mirror` with `sync`
//!    full (`top` where both sides have the same base), `copy-mode` background, `granularity` 4096 (small writes stay
//!    small), `buf-size` 64 MiB (requests of 4 MiB), `on-target-error` report.
//! 4. When the job is ready and [`Progress::journal_bytes`] is low: `block-job-change` to write-blocking (8.2 and
//!    later). A guest's write now waits for the journal and never for the line.
//! 5. The guest stands still: soft `block-job-cancel`, wait until the job is gone, `blockdev-del`, [`Source::barrier`].
//!    With a full journal this takes as long as the line needs: look at [`Progress`] before the guest is stopped.
//! 6. [`TargetEvent::Flushed`] with the same digest: [`Target::release`], `nbd-server-stop`, and the guest may go on.
//!
//! Nothing in the journal has to survive: until [`Source::barrier`] has answered, the source's disk is the only one
//! that counts. A session that failed is begun anew, with a new mirror, and names make the second time short.

/// For the source QEMU's mirror, and to the target QEMU's export.
pub mod nbd;
/// Most of a volume, hours before its VM moves.
pub mod preseed;
/// Where disks come from.
pub mod source;
/// Where disks go to.
pub mod target;

mod chunk;
#[cfg(test)]
mod fuzz;
mod intake;
mod journal;
mod message;
mod pressure;
mod ranges;

use std::time::{Duration, Instant};

use crate::frame::Kind;
use crate::link::{Ended, Link, Sender};
use message::Message;

pub use chunk::Digest;
pub use journal::{Limits, Spill};
pub use message::Why;
pub use pressure::Pressure;
pub use source::{Source, SourceEvent};
pub use target::{Target, TargetEvent};

/// In one session.
pub const VOLUMES_MAX: usize = 256;

/// Memory of a journal: enough that the line never waits for it.
pub const JOURNAL_MIN: u64 = 4 << 20;

/// For the farewell. Who hears nothing for longer has to find out otherwise.
const LEAVE_WITHIN: Duration = Duration::from_secs(60);

/// One disk. Its number is its place in the list that both sides have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// A multiple of 512, as QEMU's disks are.
    pub bytes: u64,
}

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("volume {index} of {bytes} bytes cannot be moved: sizes are multiples of 512, and not zero")]
    Size { index: u16, bytes: u64 },
    #[error("{0} volumes cannot be moved at once; 1 to {VOLUMES_MAX} can")]
    Count(usize),
    #[error("a journal of {bytes} bytes is too small: at least {JOURNAL_MIN} are needed")]
    Room { bytes: u64 },
    #[error("the socket for volume {index} cannot be made")]
    Socket { index: u16, source: std::io::Error },
    #[error("the journal cannot be written or read")]
    Journal(#[source] std::io::Error),
    #[error("volume {index} cannot be read where it comes from")]
    Content { index: u16, source: std::io::Error },
    #[error("volume {index} cannot be read or written where it goes to")]
    Disk { index: u16, source: nbd::client::Error },
    #[error("volume {index} has {source_bytes} bytes at the source, and {target_bytes} at the target")]
    TooSmall { index: u16, source_bytes: u64, target_bytes: u64 },
    #[error("the two sides do not expect the same number of volumes")]
    Unlike,
    #[error("a batch cannot be packed")]
    Pack(#[source] std::io::Error),
    #[error("a batch cannot be unpacked")]
    Unpack(#[source] std::io::Error),
    #[error("a message has no meaning: {0}")]
    Malformed(&'static str),
    #[error("what the target wrote is not what the source sent")]
    Differs,
    #[error("the other side sent a message that has no place here")]
    OutOfPlace,
    #[error("the other side gave up: {reason}")]
    Peer { why: Why, reason: String },
    #[error(transparent)]
    Link(#[from] Ended),
}

/// How a session ended.
#[derive(Debug)]
pub enum Outcome {
    /// After a barrier, by either side.
    Finished,
    /// By a call on this side.
    Aborted,
    Failed(Error),
}

/// What the source knows. All counts are since the session began.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Data that QEMU wrote.
    pub written_bytes: u64,
    /// Ranges that QEMU made zero, and data that was nothing but zeros.
    pub zeroed_bytes: u64,
    /// Payload for the line: names, packed data and ranges.
    pub wire_bytes: u64,
    pub chunks_offered: u64,
    /// Of them, those that the target had.
    pub chunks_had: u64,
    /// Bytes in the journal: waiting, or offered and not answered.
    pub journal_bytes: u64,
    /// Of them, those in the file.
    pub spilled_bytes: u64,
    pub pressure: Pressure,
    /// Epochs that were sent and those that the target wrote.
    pub epochs_sent: u64,
    pub epochs_applied: u64,
    pub(crate) oldest_waiting: Option<Instant>,
    pub(crate) oldest_queued: Option<Instant>,
}

impl Progress {
    /// Age of the oldest write that has not been given to the line.
    #[must_use]
    pub fn lag(&self) -> Duration {
        let oldest = self.oldest_waiting.into_iter().chain(self.oldest_queued).min();
        oldest.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Nothing waits here, and the target wrote everything.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.journal_bytes == 0
            && self.oldest_waiting.is_none()
            && self.oldest_queued.is_none()
            && self.epochs_sent == self.epochs_applied
    }
}

fn check_volumes(volumes: &[Volume]) -> Result<(), Error> {
    if volumes.is_empty() || volumes.len() > VOLUMES_MAX {
        return Err(Error::Count(volumes.len()));
    }
    for (index, volume) in (0..).zip(volumes) {
        if volume.bytes == 0 || !volume.bytes.is_multiple_of(chunk::SECTOR_BYTES) {
            return Err(Error::Size { index, bytes: volume.bytes });
        }
    }
    Ok(())
}

/// Who leaves whom, and why.
enum Left {
    Done,
    GaveUp(Why, String),
    Alone,
}

impl From<&Outcome> for Left {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Finished => Self::Done,
            Outcome::Aborted => Self::GaveUp(Why::Aborted, "aborted by its caller".to_owned()),
            Outcome::Failed(Error::Peer { .. } | Error::Link(_)) => Self::Alone,
            Outcome::Failed(error) => Self::GaveUp(Why::of(error), error.to_string()),
        }
    }
}

/// The last word to the other side. The caller was told before, and need not wait: the line may be down for long.
fn take_leave(link: Link, left: Left) {
    tokio::spawn(async move {
        // All of it, not its sender alone: a link ends when it is dropped.
        let link = link;
        match tokio::time::timeout(LEAVE_WITHIN, part(&link.sender, left)).await {
            Ok(Ok(())) => {}
            Ok(Err(ended)) => tracing::debug!(%ended, "the other side has gone already"),
            Err(_) => tracing::warn!("the other side was not told that the session has ended"),
        }
    });
}

async fn part(sender: &Sender, left: Left) -> Result<(), Ended> {
    match left {
        Left::Done => sender.finish().await,
        Left::GaveUp(why, reason) => {
            sender.send(Kind::Message, Message::Abort { why, reason }.payload()).await?;
            sender.give_up().await
        }
        Left::Alone => sender.part().await,
    }
}

/// Work that may wait for a disk or takes long.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
