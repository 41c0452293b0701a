//! Chunks of volumes: where they are, what they are called, and the tally of all that went.

use crate::hash::Key;

/// Small enough that a guest's random writes leave most chunks as they were, large enough that names cost nothing.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Nothing smaller is ever written: guests' disks have no smaller sectors.
pub const SECTOR_BYTES: u64 = 512;

/// One chunk of one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) volume: u16,
    pub(super) chunk: u64,
}

impl Place {
    pub(super) fn of(volume: u16, offset: u64) -> Self {
        Self { volume, chunk: offset / CHUNK_BYTES as u64 }
    }

    pub(super) fn offset(self) -> u64 {
        self.chunk * CHUNK_BYTES as u64
    }
}

/// The bytes of a chunk: all but the last of a volume have [`CHUNK_BYTES`].
pub(super) fn chunk_length(volume_bytes: u64, chunk: u64) -> usize {
    let offset = chunk.saturating_mul(CHUNK_BYTES as u64);
    volume_bytes.saturating_sub(offset).min(CHUNK_BYTES as u64) as usize
}

/// The name of a content: BLAKE3 under the migration's key, cut to 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ChunkHash(pub(super) [u8; 16]);

impl ChunkHash {
    pub(super) fn of(key: &Key, content: &[u8]) -> Self {
        let mut short = [0; 16];
        short.copy_from_slice(&blake3::keyed_hash(&key.0, content).as_bytes()[..16]);
        Self(short)
    }
}

/// What all writes so far come to; the same on both sides if the same was said and understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Runs along on both sides. What the target had already and what was sent are counted apart, as their order among
/// each other differs between the sides.
pub(super) struct Tally {
    key: Key,
    had: blake3::Hasher,
    sent: blake3::Hasher,
}

impl Tally {
    pub(super) fn new(key: &Key) -> Self {
        let hasher = blake3::Hasher::new_keyed(&key.0);
        Self { key: key.clone(), had: hasher.clone(), sent: hasher }
    }

    /// The target had this whole chunk.
    pub(super) fn had(&mut self, place: Place, hash: ChunkHash) {
        count(&mut self.had, (place.volume, place.offset(), CHUNK_BYTES as u64), hash);
    }

    /// Gives the name of the data, too: it had to be found anyway.
    pub(super) fn wrote(&mut self, volume: u16, offset: u64, data: &[u8]) -> ChunkHash {
        let hash = ChunkHash::of(&self.key, data);
        count(&mut self.sent, (volume, offset, data.len() as u64), hash);
        hash
    }

    pub(super) fn zeroed(&mut self, volume: u16, offset: u64, length: u64) {
        count(&mut self.sent, (volume, offset, length), ChunkHash([0; 16]));
    }

    pub(super) fn digest(&self) -> Digest {
        let mut both = blake3::Hasher::new_keyed(&self.key.0);
        both.update(self.had.finalize().as_bytes()).update(self.sent.finalize().as_bytes());
        Digest(*both.finalize().as_bytes())
    }
}

fn count(hasher: &mut blake3::Hasher, (volume, offset, length): (u16, u64, u64), hash: ChunkHash) {
    let mut record = [0; 2 + 8 + 8 + 16];
    record[..2].copy_from_slice(&volume.to_be_bytes());
    record[2..10].copy_from_slice(&offset.to_be_bytes());
    record[10..18].copy_from_slice(&length.to_be_bytes());
    record[18..].copy_from_slice(&hash.0);
    hasher.update(&record);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_chunk_ends_with_its_volume() {
        let bytes = 2 * CHUNK_BYTES as u64 + 512;
        let lengths: Vec<_> = (0..4).map(|chunk| chunk_length(bytes, chunk)).collect();
        assert_eq!(lengths, [CHUNK_BYTES, CHUNK_BYTES, 512, 0]);
        assert_eq!(chunk_length(bytes, u64::MAX), 0);
    }

    #[test]
    fn the_digest_depends_on_every_write_and_on_its_place_but_not_on_how_the_two_kinds_interleave() {
        let (key, place) = (Key([3; 32]), Place { volume: 1, chunk: 4 });
        let hash = ChunkHash::of(&key, b"content");
        let digest = |steps: &[u8]| {
            let mut tally = Tally::new(&key);
            for step in steps {
                match step {
                    0 => tally.had(place, hash),
                    1 => {
                        tally.wrote(1, 512, b"data");
                    }
                    2 => {
                        tally.wrote(1, 1024, b"data");
                    }
                    _ => tally.zeroed(1, 512, 4),
                }
            }
            tally.digest()
        };
        assert_eq!(digest(&[0, 1, 3]), digest(&[1, 3, 0]));
        let all = [digest(&[]), digest(&[0]), digest(&[1]), digest(&[2]), digest(&[3]), digest(&[1, 2])];
        let different: std::collections::HashSet<_> = all.into_iter().collect();
        assert_eq!(different.len(), all.len());
        assert_ne!(digest(&[1, 2]), digest(&[2, 1]));
    }
}
