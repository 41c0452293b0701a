//! Where a content was seen in this session: a hint, which is looked at again before it counts.

use std::collections::HashMap;

use crate::volume::chunk::{ChunkHash, Place};

/// Of each of two halves; together at most some 6 MiB.
const HALF: usize = 1 << 16;

/// Bounded: when the young half is full, the old one is forgotten. What is asked for stays young.
#[derive(Debug, Default)]
pub(super) struct Known {
    young: HashMap<ChunkHash, Place>,
    old: HashMap<ChunkHash, Place>,
}

impl Known {
    pub(super) fn insert(&mut self, hash: ChunkHash, place: Place) {
        if self.young.len() >= HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, place);
    }

    pub(super) fn get(&mut self, hash: &ChunkHash) -> Option<Place> {
        if let Some(place) = self.young.get(hash) {
            return Some(*place);
        }
        let place = self.old.remove(hash)?;
        self.insert(*hash, place);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: usize) -> ChunkHash {
        let mut name = [0; 16];
        name[..8].copy_from_slice(&number.to_be_bytes());
        ChunkHash(name)
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_forgotten_in_time() {
        let mut known = Known::default();
        for number in 0..3 * HALF {
            known.insert(hash(number), Place { volume: 0, chunk: number as u64 });
            if number % 1000 == 0 {
                assert_eq!(
                    known.get(&hash(7.min(number))).map(|place| place.chunk),
                    Some(7.min(number as u64))
                );
            }
        }
        assert_eq!(known.get(&hash(8)), None);
        assert!(known.get(&hash(3 * HALF - 1)).is_some());
        assert!(known.young.len() + known.old.len() <= 2 * HALF);
    }
}
