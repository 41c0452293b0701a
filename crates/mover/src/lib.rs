//! A page-aware pair of processes between two QEMUs that carries a running guest's memory over a long line.
//!
//! The source side reads QEMU's migration stream from a socket, the target side writes the same bytes into another
//! QEMU's socket; what travels between them is far less. Nothing here knows a cluster or who owns a VM: the commit
//! is the caller's.

/// Bytes into token batches and back into exactly those bytes.
pub mod codec;
/// Numbered, checked, bounded frames; what is unacknowledged and what came out of order.
pub mod frame;
/// Names of pages and of streams.
pub mod hash;
/// What a migration stream looks like: a hint, never a condition.
pub mod stream;
