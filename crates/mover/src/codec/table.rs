//! Which content was sent last for each place, 16 bytes a page.

use std::collections::HashMap;

use crate::hash::PageHash;

/// Pages that are allocated together: guests use their memory in pieces.
const CHUNK: u64 = 256;
/// Not a page's name, except with probability 2^-128.
const ABSENT: PageHash = PageHash([0xff; 16]);

/// A page of a block of memory; blocks are numbered as they are first named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub block: u16,
    pub page: u64,
}

pub(super) struct Table {
    chunks_max: usize,
    chunks: HashMap<(u16, u64), Box<[PageHash; CHUNK as usize]>>,
}

impl Table {
    pub(super) fn new(pages_max: u64) -> Self {
        let chunks_max = usize::try_from(pages_max.div_ceil(CHUNK)).unwrap_or(usize::MAX);
        Self { chunks_max, chunks: HashMap::new() }
    }

    pub(super) fn get(&self, place: Place) -> Option<PageHash> {
        let chunk = self.chunks.get(&(place.block, place.page / CHUNK))?;
        Some(chunk[(place.page % CHUNK) as usize]).filter(|hash| *hash != ABSENT)
    }

    /// Beyond the bound a place stays unknown, on both sides alike.
    pub(super) fn set(&mut self, place: Place, hash: PageHash) {
        let at = (place.block, place.page / CHUNK);
        if self.chunks.len() >= self.chunks_max && !self.chunks.contains_key(&at) {
            return;
        }
        let chunk = self.chunks.entry(at).or_insert_with(|| Box::new([ABSENT; CHUNK as usize]));
        chunk[(place.page % CHUNK) as usize] = hash;
    }

    /// All places with their contents, in the order of places.
    pub(super) fn entries(&self) -> Vec<(Place, PageHash)> {
        let mut keys: Vec<_> = self.chunks.iter().collect();
        keys.sort_unstable_by_key(|(at, _)| **at);
        let places = keys.into_iter().flat_map(|((block, chunk), hashes)| {
            (0..)
                .zip(hashes.iter())
                .map(move |(at, hash)| (Place { block: *block, page: chunk * CHUNK + at }, *hash))
        });
        places.filter(|(_, hash)| *hash != ABSENT).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_remembered_up_to_the_bound_and_listed_in_order() {
        let mut table = Table::new(2 * CHUNK);
        let place = |block, page| Place { block, page };
        for (number, at) in (1..).zip([place(1, 700), place(0, 3), place(0, 9999), place(0, 4)]) {
            table.set(at, PageHash([number; 16]));
        }
        assert_eq!(table.get(place(0, 9999)), None);
        assert_eq!(table.get(place(0, 5)), None);
        let entries: Vec<_> = table.entries().into_iter().map(|(at, hash)| (at, hash.0[0])).collect();
        assert_eq!(entries, [(place(0, 3), 2), (place(0, 4), 4), (place(1, 700), 1)]);
    }
}
