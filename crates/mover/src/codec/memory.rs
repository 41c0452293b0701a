//! What both sides know of the guest's memory. Every change comes from a token, so both stay the same.

use std::collections::HashMap;

use super::store::Store;
use super::table::Table;
use super::{Dictionary, Keeper, Settings};
use crate::hash::{Key, PAGE_BYTES, Page, PageHash};

pub use super::table::Place;

const ZEROS: Page = [0; PAGE_BYTES];
/// QEMU knows a few dozen at most.
pub(super) const BLOCKS_MAX: usize = 1024;

pub struct Memory {
    key: Key,
    table: Table,
    store: Store,
    blocks: Vec<Vec<u8>>,
    block_numbers: HashMap<Vec<u8>, u16>,
    /// Pages that both sides have beforehand.
    shared: Option<Box<dyn Dictionary>>,
    keeper: Option<Box<dyn Keeper>>,
}

impl Memory {
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            key: settings.key.clone(),
            table: Table::new(settings.pages_max),
            store: Store::new(settings.store_bytes),
            blocks: Vec::new(),
            block_numbers: HashMap::new(),
            shared: None,
            keeper: None,
        }
    }

    /// Both sides must do this before the first batch, with the same pages.
    pub fn share(&mut self, dictionary: Box<dyn Dictionary>) {
        self.shared = Some(dictionary);
    }

    /// From now on every content goes there, too.
    pub fn keep_in(&mut self, keeper: Box<dyn Keeper>) {
        self.keeper = Some(keeper);
    }

    /// The stream was committed: whoever keeps contents may finish.
    pub(crate) fn seal(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            keeper.seal(self);
        }
    }

    pub(super) fn hash(&self, page: &Page) -> PageHash {
        PageHash::of(&self.key, page)
    }

    pub(crate) fn block(&mut self, name: &[u8]) -> Option<u16> {
        if let Some(number) = self.block_numbers.get(name) {
            return Some(*number);
        }
        if self.blocks.len() >= BLOCKS_MAX {
            return None;
        }
        let number = self.blocks.len() as u16;
        self.blocks.push(name.to_vec());
        self.block_numbers.insert(name.to_vec(), number);
        Some(number)
    }

    /// What is at a place, as far as both know.
    #[must_use]
    pub fn last(&self, place: Place) -> Option<PageHash> {
        self.table.get(place).or_else(|| {
            let name = self.blocks.get(usize::from(place.block))?;
            self.shared.as_ref()?.at(name, place.page)
        })
    }

    pub(super) fn knows(&self, hash: &PageHash) -> bool {
        self.store.contains(hash) || self.shared.as_ref().is_some_and(|shared| shared.contains(hash))
    }

    /// Copies a content out, if it is still here.
    pub(super) fn read(&mut self, hash: &PageHash, into: &mut Page) -> bool {
        if *hash == PageHash::ZERO {
            *into = ZEROS;
            return true;
        }
        if let Some(page) = self.store.get(hash) {
            *into = *page;
            return true;
        }
        let Some(shared) = &mut self.shared else { return false };
        // What lay on a disk is not believed: one changed bit here would stop the migration later.
        shared.read(hash, into) && PageHash::of(&self.key, into) == *hash
    }

    /// A content was sent for a place, in whatever form.
    pub(crate) fn on_page(&mut self, place: Place, last: Option<PageHash>, hash: PageHash, page: &Page) {
        if let Some(last) = last.filter(|last| *last != hash) {
            self.store.retire(&last);
        }
        self.store.admit(hash, page, last.is_some());
        self.table.set(place, hash);
        if let Some(keeper) = &mut self.keeper {
            keeper.keep(&hash, page);
        }
    }

    pub(crate) fn on_zero(&mut self, place: Place) {
        if let Some(last) = self.table.get(place) {
            self.store.retire(&last);
        }
        self.table.set(place, PageHash::ZERO);
    }

    pub(super) fn on_same(&mut self, place: Place, hash: PageHash) {
        self.store.touch(&hash);
        self.table.set(place, hash);
    }

    /// Every place that was sent, with its block's name and its content's: what a checkpoint lists.
    pub fn places(&self) -> impl Iterator<Item = (&[u8], u64, PageHash)> {
        let entries = self.table.entries().into_iter();
        entries.map(|(place, hash)| (&self.blocks[usize::from(place.block)][..], place.page, hash))
    }

    /// Contents that were there beforehand, for the next checkpoint.
    pub fn shared(&mut self) -> Option<&mut (dyn Dictionary + 'static)> {
        self.shared.as_deref_mut()
    }
}
