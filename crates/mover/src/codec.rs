//! Bytes into token batches and back into exactly those bytes, without I/O.
//!
//! ```text
//! bytes -> parser -> {raw, zero, same, reference, delta, literal} -> 128-256 KiB -> zstd -> batch
//! batch -> zstd -> tokens -> bytes -> BLAKE3 so far equals the encoder's? -> bytes are let go
//! ```
//!
//! Both sides keep the same [`memory`]: which page was sent last for each place, and a bounded number of contents.
//! It changes only by tokens, so both forget the same page at the same token, and no message is spent on it.

/// Token batches into bytes.
pub mod decoder;
/// Bytes into token batches.
pub mod encoder;
/// How hard to squeeze.
pub mod level;
/// What both sides know of the guest's memory.
pub mod memory;

pub(crate) mod squeeze;

mod delta;
mod store;
mod table;
mod token;

use bytes::Bytes;

use crate::hash::{Key, Page, PageHash};

pub use decoder::Decoder;
pub use encoder::Encoder;

/// A batch is closed at this many bytes of tokens...
const BATCH_BYTES: usize = 192 << 10;
/// ... or when it stands for this many bytes of the stream, however few its tokens are.
const BATCH_SPAN: usize = 4 << 20;
/// A decoder takes no more than these for one batch, whatever its header says.
const BATCH_BYTES_MAX: usize = 512 << 10;
const BATCH_SPAN_MAX: usize = 8 << 20;
/// Bytes of one raw token, so that batches end near their size.
const RAW_MAX: usize = 32 << 10;

/// What both sides must have set alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub key: Key,
    /// For contents to refer to and to compute deltas against, on each side.
    pub store_bytes: u64,
    /// Places whose last content is remembered, at 16 bytes each. More memory than that is sent, but without memory.
    pub pages_max: u64,
}

impl Settings {
    /// Enough for a guest of `memory_bytes`, within `store_bytes` for contents.
    #[must_use]
    pub fn for_guest(key: Key, memory_bytes: u64, store_bytes: u64) -> Self {
        Self { key, store_bytes, pages_max: pages_of(memory_bytes) }
    }
}

/// Places of a guest's memory; firmware, video memory and ROMs come on top.
#[must_use]
pub fn pages_of(memory_bytes: u64) -> u64 {
    (memory_bytes >> 12) + (1 << 18)
}

/// Pages somebody has, by name and by place: a checkpoint, an image, what a sibling had when it booted.
pub trait Dictionary: Send {
    /// The content that was at a place; `None` if this knows no places.
    fn at(&self, block: &[u8], page: u64) -> Option<PageHash>;
    fn contains(&self, hash: &PageHash) -> bool;
    /// Copies the content out. `false` if it is not there or cannot be read: it then counts as absent.
    fn read(&mut self, hash: &PageHash, into: &mut Page) -> bool;

    /// What it has, in the order in which reading it is cheap; empty if it cannot tell.
    fn names(&self) -> Vec<PageHash> {
        Vec::new()
    }
}

/// Wants every content that passes: the checkpoint that is being written.
pub trait Keeper: Send {
    fn keep(&mut self, hash: &PageHash, page: &Page);

    /// The stream was committed, and this is what was where. May take as long as a disk does.
    fn seal(&mut self, memory: &mut memory::Memory);
}

/// Tokens of a piece of the stream, ready for a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub payload: Bytes,
    /// Bytes of the stream it stands for.
    pub span: usize,
}

/// What became of the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub bytes_raw: u64,
    pub pages_zero: u64,
    pub pages_same: u64,
    pub pages_reference: u64,
    pub pages_delta: u64,
    pub pages_literal: u64,
    /// Before and behind zstd.
    pub bytes_tokens: u64,
    pub bytes_batches: u64,
    /// Of the stream.
    pub bytes_stream: u64,
}

/// Nothing of a batch that fails is let go. Only a new migration helps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a batch has no meaning: {0}")]
    Malformed(&'static str),
    #[error("a batch cannot be unpacked")]
    Unpack(#[source] std::io::Error),
    #[error("page {page} refers to a content that is not here")]
    Missing { page: u64 },
    #[error("what came out differs from what went in, somewhere in the {span} bytes up to byte {position}")]
    Differs { position: u64, span: usize },
    #[error("an earlier batch failed")]
    Failed,
}

#[cfg(test)]
mod tests;
