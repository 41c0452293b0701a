//! What was taken from the journal and is not written at the target yet, in order.
//!
//! ```text
//! taken -> asked about -> (answered) -> sent -> applied
//!       -----------------------------> sent -> applied      parts of chunks, zeros, chunks on their way already
//! ```
//!
//! Everything is sent in the order in which it was taken, so a later content of a place overwrites an earlier one.
//! Questions run ahead, and the line stays full over a long round trip. A chunk is only asked about when nothing older
//! is on its way to the same place: else the answer would be about a content that is about to change.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use crate::volume::Error;
use crate::volume::chunk::{CHUNK_BYTES, ChunkHash, Place};
use crate::volume::journal::{Chunk, Taken};
use crate::volume::ranges::Ranges;

/// Bytes that are expected to go over the line, taken ahead of it, at least...
const LEAD_MIN: usize = 4 << 20;
/// ... and chunks without an answer at most: 256 MiB that the target has are passed over in one round trip.
const ASKED_MAX: usize = 4096;
/// Items are small, but not nothing.
const ITEMS_MAX: usize = 16_384;
const EPOCHS_MAX: usize = 256;
/// Weight of the newest answer.
const MISS_GAIN: f64 = 0.3;

#[derive(Debug)]
enum Item {
    /// Its answer has not come.
    Asked {
        chunk: Chunk,
        hash: ChunkHash,
    },
    /// The target has it.
    Had,
    Data(Chunk),
    Zero(u16, Range<u64>),
    End(u64),
}

#[derive(Debug)]
struct Epoch {
    number: u64,
    since: Instant,
    places: Vec<Place>,
    has_zeros: bool,
    is_sent: bool,
}

/// What goes over the line next.
#[derive(Debug)]
pub(super) enum Ready {
    Data(Chunk),
    Zero(u16, Range<u64>),
    /// All of this epoch has gone before.
    End(u64),
}

/// A chunk that need not go.
#[derive(Debug)]
pub(super) struct Spared {
    pub(super) chunk: Chunk,
    pub(super) hash: ChunkHash,
}

#[derive(Debug)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    /// Number of the first of them.
    first: u64,
    /// One manifest each: the numbers of its items.
    asked: VecDeque<Vec<u64>>,
    unanswered: usize,
    /// Of the data that certainly goes.
    certain_bytes: usize,
    /// Which part of what is asked about is missing, lately.
    miss: f64,
    /// Not applied yet.
    epochs: VecDeque<Epoch>,
    next_epoch: u64,
    touched: HashMap<Place, u32>,
    /// Zeros of all epochs since there were none under way; more than needed does no harm.
    zeroed: Vec<Ranges>,
}

impl Queue {
    pub(super) fn new(volumes: usize) -> Self {
        Self {
            items: VecDeque::new(),
            first: 0,
            asked: VecDeque::new(),
            unanswered: 0,
            certain_bytes: 0,
            miss: 1.0,
            epochs: VecDeque::new(),
            next_epoch: 1,
            touched: HashMap::new(),
            zeroed: vec![Ranges::default(); volumes],
        }
    }

    /// Whether to take more from the journal, for a line that holds so many bytes.
    pub(super) fn wants_more(&self, window: usize) -> bool {
        let uncertain = (self.unanswered * CHUNK_BYTES) as f64 * self.miss;
        self.certain_bytes as f64 + uncertain < LEAD_MIN.max(2 * window) as f64
            && self.unanswered < ASKED_MAX
            && self.items.len() < ITEMS_MAX
            && self.epochs.len() < EPOCHS_MAX
    }

    /// Whether what the target has at this place now is what it will have when the chunk's turn comes.
    pub(super) fn may_ask(&self, place: Place) -> bool {
        let range = place.offset()..place.offset() + CHUNK_BYTES as u64;
        !self.touched.contains_key(&place) && !self.zeroed[usize::from(place.volume)].overlaps(&range)
    }

    /// Takes an epoch in. A chunk with a name will be asked about: the names, for one manifest.
    pub(super) fn admit(&mut self, taken: Taken, hashes: Vec<Option<ChunkHash>>) -> Vec<(Place, ChunkHash)> {
        let (mut offers, mut numbers, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let has_zeros = !taken.zeros.is_empty();
        for (volume, range) in taken.zeros {
            self.zeroed[usize::from(volume)].insert(range.clone());
            self.items.push_back(Item::Zero(volume, range));
        }
        for (chunk, hash) in taken.chunks.into_iter().zip(hashes) {
            places.push(chunk.place);
            *self.touched.entry(chunk.place).or_default() += 1;
            match hash {
                Some(hash) => {
                    offers.push((chunk.place, hash));
                    numbers.push(self.first + self.items.len() as u64);
                    self.items.push_back(Item::Asked { chunk, hash });
                }
                None => {
                    self.certain_bytes += chunk.bytes();
                    self.items.push_back(Item::Data(chunk));
                }
            }
        }
        if !numbers.is_empty() {
            self.unanswered += numbers.len();
            self.asked.push_back(numbers);
        }
        let number = self.next_epoch;
        self.next_epoch += 1;
        self.items.push_back(Item::End(number));
        self.epochs.push_back(Epoch { number, since: taken.since, places, has_zeros, is_sent: false });
        offers
    }

    /// The answer to the oldest manifest without one: what the target has need not go.
    pub(super) fn on_answer(&mut self, had: &[bool]) -> Result<Vec<Spared>, Error> {
        let numbers = self.asked.pop_front().filter(|numbers| numbers.len() == had.len());
        let numbers = numbers.ok_or(Error::OutOfPlace)?;
        self.unanswered -= numbers.len();
        let mut spared = Vec::new();
        for (number, had) in numbers.iter().zip(had) {
            // What was asked about stays in the queue until it is answered.
            let item = &mut self.items[(number - self.first) as usize];
            match (std::mem::replace(item, Item::Had), had) {
                (Item::Asked { chunk, hash }, true) => spared.push(Spared { chunk, hash }),
                (Item::Asked { chunk, .. }, false) => {
                    self.certain_bytes += chunk.bytes();
                    *item = Item::Data(chunk);
                }
                (other, _) => *item = other,
            }
        }
        let missing = 1.0 - spared.len() as f64 / numbers.len() as f64;
        self.miss += MISS_GAIN * (missing - self.miss);
        Ok(spared)
    }

    /// The oldest item, unless its answer has to be waited for.
    pub(super) fn pop(&mut self) -> Option<Ready> {
        loop {
            if matches!(self.items.front()?, Item::Asked { .. }) {
                return None;
            }
            self.first += 1;
            match self.items.pop_front()? {
                Item::Had | Item::Asked { .. } => {}
                Item::Data(chunk) => {
                    self.certain_bytes -= chunk.bytes();
                    return Some(Ready::Data(chunk));
                }
                Item::Zero(volume, range) => return Some(Ready::Zero(volume, range)),
                Item::End(number) => {
                    let epoch = self.epochs.iter_mut().find(|epoch| epoch.number == number);
                    epoch.into_iter().for_each(|epoch| epoch.is_sent = true);
                    return Some(Ready::End(number));
                }
            }
        }
    }

    /// The target wrote everything up to this epoch. Gives how many epochs that were.
    pub(super) fn on_applied(&mut self, number: u64) -> Result<u64, Error> {
        if number >= self.next_epoch {
            return Err(Error::OutOfPlace);
        }
        let mut applied = 0;
        while let Some(epoch) = self.epochs.front().filter(|epoch| epoch.number <= number) {
            if !epoch.is_sent {
                return Err(Error::OutOfPlace);
            }
            for place in self.epochs.pop_front().into_iter().flat_map(|epoch| epoch.places) {
                if let Some(count) = self.touched.get_mut(&place) {
                    *count -= 1;
                    if *count == 0 {
                        self.touched.remove(&place);
                    }
                }
            }
            applied += 1;
        }
        if !self.epochs.iter().any(|epoch| epoch.has_zeros) {
            self.zeroed.iter_mut().for_each(Ranges::clear);
        }
        Ok(applied)
    }

    /// Nothing waits to be sent.
    pub(super) fn is_sent(&self) -> bool {
        self.items.is_empty()
    }

    /// Of the oldest write that was not sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.epochs.iter().find(|epoch| !epoch.is_sent).map(|epoch| epoch.since)
    }
}

#[cfg(test)]
mod tests;
