//! Names of pages and of streams.
//!
//! A page's name is its BLAKE3 under a key, cut to 16 bytes: without the key nobody can tell from a name what a page
//! holds, nor make a page whose name collides. Names under different keys never meet, so the key is the scope of sharing.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// Bytes of a guest page; other sizes pass through the mover as raw bytes.
pub const PAGE_BYTES: usize = 4096;

/// One page of guest memory.
pub type Page = [u8; PAGE_BYTES];

/// The scope within which pages may be shared: all VMs of one project, say.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The name of a page's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageHash(pub [u8; 16]);

impl PageHash {
    /// Stands for a page of zeros, which is never hashed. No page hashes to it except with probability 2^-128.
    pub const ZERO: Self = Self([0; 16]);

    #[must_use]
    pub fn of(key: &Key, page: &Page) -> Self {
        let mut short = [0; 16];
        short.copy_from_slice(&blake3::keyed_hash(&key.0, page).as_bytes()[..16]);
        Self(short)
    }
}

/// Spreads names over a table by their own bits: they are keyed, so nobody chooses them.
#[derive(Default)]
pub struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut word = [0; 8];
        let taken = bytes.len().min(8);
        word[..taken].copy_from_slice(&bytes[..taken]);
        self.0 ^= u64::from_le_bytes(word);
    }

    // The length of the array, the same for every name.
    fn write_usize(&mut self, _: usize) {}
}

/// A table by page names.
pub type ByHash<V> = HashMap<PageHash, V, BuildHasherDefault<NameHasher>>;

/// The BLAKE3 of a whole stream so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamHash(pub [u8; 32]);

impl fmt::Display for StreamHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Runs along with a stream.
#[derive(Clone, Default)]
pub struct StreamHasher {
    hasher: blake3::Hasher,
    length: u64,
}

impl StreamHasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
    }

    #[must_use]
    pub fn hash(&self) -> StreamHash {
        StreamHash(*self.hasher.finalize().as_bytes())
    }

    /// Bytes so far.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_another_name_under_another_key() {
        let page = [7; PAGE_BYTES];
        let (one, two) = (Key([1; 32]), Key([2; 32]));
        assert_eq!(PageHash::of(&one, &page), PageHash::of(&one, &page));
        assert_ne!(PageHash::of(&one, &page), PageHash::of(&two, &page));
        assert_eq!(format!("{one:?}"), "Key(..)");
    }

    #[test]
    fn a_stream_has_one_hash_however_it_was_cut() {
        let (mut whole, mut parts) = (StreamHasher::default(), StreamHasher::default());
        whole.update(b"abcdef");
        parts.update(b"abc");
        parts.update(b"def");
        assert_eq!((whole.hash(), whole.length()), (parts.hash(), 6));
    }
}
