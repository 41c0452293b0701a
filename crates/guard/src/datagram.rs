//! Datagrams of at most 128 bytes that nobody but the two ends can make.
//!
//! ```text
//! 0        1          17           33          41      49                 -16
//! | version | sender   | receiver   | session   | seq   | body ...         | MAC |
//! ```
//!
//! Big-endian. The MAC is HMAC-SHA-256, cut to 16 bytes, over all that is before it. Its key belongs to one direction
//! between one pair: HKDF-SHA-256 over the X25519 secret of their two host keys, so that no voter can speak for another.
//! What is said is no secret. A MAC needs no nonce: a session number that came twice would open a cipher, and opens
//! nothing here.
//!
//! What is told twice, for it goes over two paths, counts once.

/// A message as bytes.
mod body;
/// All peers: sealing and opening.
mod channels;
/// A host's key, and what two hosts derive from theirs.
mod key;
/// Which numbers a sender has used.
mod replay;

pub use channels::{Channels, Refused, Sealed};
pub use key::{BadKey, HostKey, PublicKey};

/// Fits every link without being cut into pieces.
pub const DATAGRAM_MAX: usize = 128;

#[cfg(test)]
mod tests;
