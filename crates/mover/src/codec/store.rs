//! Contents by name, within a bound, forgotten by one rule on both sides.
//!
//! While there is room everything enters. When there is none, a content that is sent for a place for the first time
//! does not enter: the first pass over a large guest would wash out everything else. One that replaces an earlier
//! content of its place does, in place of the least recently used. What was replaced is the next to go.

use crate::hash::{ByHash, PAGE_BYTES, Page, PageHash};

const NONE: u32 = u32::MAX;
/// Pages that are allocated together.
const SLAB: usize = 64;

struct Slot {
    hash: PageHash,
    newer: u32,
    older: u32,
}

pub(super) struct Store {
    capacity: u32,
    by_hash: ByHash<u32>,
    slots: Vec<Slot>,
    slabs: Vec<Box<[u8]>>,
    newest: u32,
    oldest: u32,
}

impl Store {
    pub(super) fn new(bytes: u64) -> Self {
        let capacity = (bytes / PAGE_BYTES as u64).min(u64::from(NONE - 1)) as u32;
        Self {
            capacity,
            by_hash: ByHash::default(),
            slots: Vec::new(),
            slabs: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    pub(super) fn contains(&self, hash: &PageHash) -> bool {
        self.by_hash.contains_key(hash)
    }

    pub(super) fn get(&self, hash: &PageHash) -> Option<&Page> {
        let slot = *self.by_hash.get(hash)? as usize;
        self.slabs[slot / SLAB][slot % SLAB * PAGE_BYTES..].first_chunk()
    }

    /// `hash` was sent; `replaces` says whether its place had an earlier content.
    pub(super) fn admit(&mut self, hash: PageHash, page: &Page, replaces: bool) {
        if let Some(&slot) = self.by_hash.get(&hash) {
            self.unlink(slot);
            return self.link_newest(slot);
        }
        let slot = if self.slots.len() < self.capacity as usize {
            self.grow()
        } else if replaces && self.capacity > 0 {
            let slot = self.oldest;
            self.unlink(slot);
            self.by_hash.remove(&self.slots[slot as usize].hash);
            slot
        } else {
            return;
        };
        let index = slot as usize;
        self.slots[index].hash = hash;
        let from = index % SLAB * PAGE_BYTES;
        self.slabs[index / SLAB][from..from + PAGE_BYTES].copy_from_slice(page);
        self.by_hash.insert(hash, slot);
        self.link_newest(slot);
    }

    /// It is in use: the last to go.
    pub(super) fn touch(&mut self, hash: &PageHash) {
        if let Some(&slot) = self.by_hash.get(hash) {
            self.unlink(slot);
            self.link_newest(slot);
        }
    }

    /// Its place has another content now: the first to go.
    pub(super) fn retire(&mut self, hash: &PageHash) {
        if let Some(&slot) = self.by_hash.get(hash) {
            self.unlink(slot);
            self.link_oldest(slot);
        }
    }

    fn grow(&mut self) -> u32 {
        let slot = self.slots.len();
        if slot.is_multiple_of(SLAB) {
            self.slabs.push(vec![0; SLAB * PAGE_BYTES].into_boxed_slice());
        }
        self.slots.push(Slot { hash: PageHash::ZERO, newer: NONE, older: NONE });
        slot as u32
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { newer, older, .. } = self.slots[slot as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
    }

    fn link_newest(&mut self, slot: u32) {
        let older = std::mem::replace(&mut self.newest, slot);
        let place = &mut self.slots[slot as usize];
        (place.newer, place.older) = (NONE, older);
        match older {
            NONE => self.oldest = slot,
            older => self.slots[older as usize].newer = slot,
        }
    }

    fn link_oldest(&mut self, slot: u32) {
        let newer = std::mem::replace(&mut self.oldest, slot);
        let place = &mut self.slots[slot as usize];
        (place.newer, place.older) = (newer, NONE);
        match newer {
            NONE => self.newest = slot,
            newer => self.slots[newer as usize].older = slot,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u8) -> PageHash {
        PageHash([number; 16])
    }

    fn admit(store: &mut Store, number: u8, replaces: bool) {
        store.admit(name(number), &[number; PAGE_BYTES], replaces);
    }

    fn held(store: &Store) -> Vec<u8> {
        (1..20).filter(|number| store.get(&name(*number)).is_some_and(|page| page[77] == *number)).collect()
    }

    fn store() -> Store {
        let mut store = Store::new(3 * PAGE_BYTES as u64);
        (1..=3).for_each(|number| admit(&mut store, number, false));
        store
    }

    #[test]
    fn a_full_store_takes_only_what_replaces_and_forgets_the_least_recently_used() {
        let mut store = store();
        admit(&mut store, 4, false);
        assert_eq!(held(&store), [1, 2, 3]);
        store.touch(&name(1));
        admit(&mut store, 5, true);
        assert_eq!(held(&store), [1, 3, 5]);
        admit(&mut store, 3, false);
        admit(&mut store, 6, true);
        assert_eq!(held(&store), [3, 5, 6]);
    }

    #[test]
    fn what_was_replaced_is_the_next_to_go() {
        let mut store = store();
        store.retire(&name(3));
        admit(&mut store, 4, true);
        assert_eq!(held(&store), [1, 2, 4]);
        store.retire(&name(1));
        store.retire(&name(4));
        admit(&mut store, 5, true);
        assert_eq!(held(&store), [1, 2, 5]);
    }

    #[test]
    fn without_room_nothing_is_held() {
        let mut store = Store::new(100);
        admit(&mut store, 1, true);
        assert!(!store.contains(&name(1)));
    }
}
