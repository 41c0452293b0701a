//! What a host keeps of a guest's memory, so that the way back is short.
//!
//! Both hosts of a migration keep what went between them: the contents as they pass ([`write::Writer`] is a
//! [`crate::codec::Keeper`]), then the list of what was where. When the guest comes back, what did not change since
//! costs a few bits a page, and what changed costs a delta.
//!
//! ```text
//! file  := magic, salt (32), chunk*, list*, foot
//! chunk := be32 n, n sealed bytes: zstd of up to 32 pages
//! list  := be32 n, n sealed bytes: zstd of the places and where their contents are
//! foot  := sealed: offset of the lists, number of the first and count of lists, the checkpoint's id
//! ```
//!
//! Sealed is AES-256-GCM under a key of this file, made from the host's key and the salt; the nonce is the number of
//! the piece. A file gets its name only when it is complete and on the disk: half of one is no checkpoint.

/// A finished checkpoint, as pages to refer to.
pub mod read;
/// Contents for one session only.
pub mod scratch;
/// The checkpoints of one host, within bounds of space and time.
pub mod shelf;
/// A checkpoint while it grows.
pub mod write;

mod pieces;
mod seal;

use std::fmt;

pub use read::Checkpoint;
pub use scratch::Scratch;
pub use shelf::{Limits, Shelf};
pub use write::Writer;

const MAGIC: [u8; 8] = *b"sternaC1";
/// Pages that are packed and sealed together: one costs the reading of all.
const CHUNK_PAGES: usize = 32;
/// Of one sealed piece: 32 pages that did not shrink, or a list of as many bytes.
const PIECE_MAX: usize = 1 << 20;
/// Sealed, at the end of the file.
const FOOT_PLAIN: usize = 8 + 8 + 4 + 32;
const FOOT_BYTES: usize = FOOT_PLAIN + 16;

/// The same on both hosts exactly if both kept the same contents in the same places.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckpointId(pub [u8; 32]);

impl fmt::Debug for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A host's key for what it keeps. It never leaves the host.
#[derive(Clone)]
pub struct HostKey(pub [u8; 32]);

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostKey(..)")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the checkpoint cannot be read or written")]
    Io(#[from] std::io::Error),
    #[error("this is no complete checkpoint under this host's key")]
    Damaged,
    #[error("the checkpoint would be larger than its bound")]
    TooLarge,
    #[error("a content that is listed was not kept")]
    Missing,
}

#[cfg(test)]
mod tests;
