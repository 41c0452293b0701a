//! A page-aware pair of processes between two QEMUs that carries a running guest's memory over a long line.
//!
//! The source side reads QEMU's migration stream from a socket, the target side writes the same bytes into another
//! QEMU's socket; what travels between them is far less. Nothing here knows a cluster or who owns a VM: the commit is
//! two explicit calls that the caller makes when it may.

/// What a host keeps of a guest's memory, so that the way back is short.
pub mod checkpoint;
/// Bytes into token batches and back into exactly those bytes.
pub mod codec;
/// Numbered, checked, bounded frames; what is unacknowledged and what came out of order.
pub mod frame;
/// Names of pages and of streams.
pub mod hash;
/// Connections between the two sides that may break and come back.
pub mod link;
/// What a line carries, and how long it is.
pub mod probe;
/// The two ends: QEMU's socket on one side, the link on the other, and the commit between them.
pub mod session;
/// What a migration stream looks like: a hint, never a condition.
pub mod stream;
/// A guest's disks, on their way beside its memory.
pub mod volume;

/// Mutations for those decoders that only the crate itself sees.
#[cfg(test)]
#[path = "../tests/dice/mod.rs"]
mod dice;
