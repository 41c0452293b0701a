//! Writes that QEMU made and the line has not taken yet: bounded, merged, oldest first.
//!
//! A sector is in here at most once, with its newest content: as data in its chunk's entry, or in a range of zeros.
//! Writes for the same place therefore cost the line once for as long as they wait. What is taken out is a snapshot:
//! it belongs to whoever took it, and a later write for the same place makes a new entry.
//!
//! It is safe to lose: until the barrier at the switchover the source's disk is the only one that counts.

/// Where the bytes are.
mod store;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::chunk::{CHUNK_BYTES, Place, SECTOR_BYTES, chunk_length};
use super::pressure::Pressure;
use super::ranges::Ranges;
use store::{BLOCK_BYTES, Slot, Store};

pub use store::{Limits, Spill};

const CELLS: usize = CHUNK_BYTES / BLOCK_BYTES;
const SECTORS_PER_CELL: usize = BLOCK_BYTES / SECTOR_BYTES as usize;
/// Ranges take memory, too: at most 2 MiB of it.
const RANGES_MAX: usize = 1 << 15;
/// In one epoch, so that a message about it stays small.
const EPOCH_RANGES_MAX: usize = 1024;

/// Sectors of one block, one bit each.
#[derive(Debug, Clone, Copy)]
struct Cell {
    slot: Slot,
    mask: u8,
}

/// The data of one chunk, as far as it was written.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) place: Place,
    cells: [Option<Cell>; CELLS],
}

impl Chunk {
    /// Sectors that are here, one bit each.
    fn mask(&self) -> u128 {
        self.cells
            .iter()
            .rev()
            .fold(0, |mask, cell| mask << SECTORS_PER_CELL | u128::from(cell.map_or(0, |cell| cell.mask)))
    }

    /// Whether all of these first bytes are here.
    pub(super) fn is_whole(&self, length: usize) -> bool {
        let sectors = length as u32 / SECTOR_BYTES as u32;
        sectors > 0 && self.mask() == u128::MAX >> (u128::BITS - sectors)
    }

    /// Bytes within the chunk that are here, as long pieces as there are.
    pub(super) fn runs(&self) -> Vec<Range<usize>> {
        let (mut mask, mut at, mut runs) = (self.mask(), 0, Vec::new());
        while mask != 0 {
            let gap = mask.trailing_zeros();
            let length = (mask >> gap).trailing_ones();
            let start = (at + gap) as usize * SECTOR_BYTES as usize;
            runs.push(start..start + length as usize * SECTOR_BYTES as usize);
            at += gap + length;
            mask = mask.checked_shr(gap + length).unwrap_or(0);
        }
        runs
    }

    pub(super) fn bytes(&self) -> usize {
        self.mask().count_ones() as usize * SECTOR_BYTES as usize
    }
}

#[derive(Debug)]
struct Entry {
    number: u64,
    since: Instant,
    chunk: Chunk,
}

/// What goes over the line together.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) chunks: Vec<Chunk>,
    pub(super) zeros: Vec<(u16, Range<u64>)>,
    /// Of its oldest write.
    pub(super) since: Instant,
}

#[derive(Debug)]
pub(super) struct Journal {
    sizes: Vec<u64>,
    store: Store,
    entries: BTreeMap<Place, Entry>,
    /// By age: numbers grow.
    order: BTreeMap<u64, Place>,
    next: u64,
    zeros: Vec<Ranges>,
    zeros_since: Option<Instant>,
}

impl Journal {
    /// For volumes of these sizes, each a multiple of a sector.
    pub(super) fn new(sizes: &[u64], limits: &Limits) -> io::Result<Self> {
        Ok(Self {
            sizes: sizes.to_vec(),
            store: Store::new(limits)?,
            entries: BTreeMap::new(),
            order: BTreeMap::new(),
            next: 0,
            zeros: vec![Ranges::default(); sizes.len()],
            zeros_since: None,
        })
    }

    /// Takes bytes in from the front as far as there is room, and says how many. Whole sectors within the volume only.
    pub(super) fn write(&mut self, volume: u16, offset: u64, data: &[u8], now: Instant) -> io::Result<usize> {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let length = match zero_chunk(at, &data[done..]) {
                Some(length) if self.zero(volume, at..at + length as u64, now) => length,
                _ => {
                    let within = (at % BLOCK_BYTES as u64) as usize;
                    let part = &data[done..data.len().min(done + BLOCK_BYTES - within)];
                    if !self.put(volume, at, part, now)? {
                        break;
                    }
                    part.len()
                }
            };
            done += length;
        }
        Ok(done)
    }

    /// Makes a range zero; `false` if there are too many ranges already.
    pub(super) fn zero(&mut self, volume: u16, range: Range<u64>, now: Instant) -> bool {
        if range.is_empty() {
            return true;
        }
        if self.has_most_ranges() {
            return false;
        }
        let touched = Place::of(volume, range.start)..=Place::of(volume, range.end - 1);
        let touched: Vec<Place> = self.entries.range(touched).map(|(place, _)| *place).collect();
        touched.into_iter().for_each(|place| self.forget(place, &range));
        self.zeros[usize::from(volume)].insert(range);
        self.zeros_since.get_or_insert(now);
        true
    }

    /// Data within one block.
    fn put(&mut self, volume: u16, offset: u64, data: &[u8], now: Instant) -> io::Result<bool> {
        let place = Place::of(volume, offset);
        let at = (offset - place.offset()) as usize / BLOCK_BYTES;
        let within = offset as usize % BLOCK_BYTES;
        let sectors = within / SECTOR_BYTES as usize..(within + data.len()) / SECTOR_BYTES as usize;
        let mask = sectors.fold(0, |mask, sector| mask | 1 << sector);
        let there = self.entries.get_mut(&place).and_then(|entry| entry.chunk.cells[at].as_mut());
        if let Some(cell) = there {
            if !self.store.write(cell.slot, within, data)? {
                return Ok(false);
            }
            cell.mask |= mask;
        } else {
            let Some(slot) = self.store.put(within, data)? else { return Ok(false) };
            self.entry(place, now).chunk.cells[at] = Some(Cell { slot, mask });
        }
        self.zeros[usize::from(volume)].remove(offset..offset + data.len() as u64);
        Ok(true)
    }

    fn entry(&mut self, place: Place, now: Instant) -> &mut Entry {
        self.entries.entry(place).or_insert_with(|| {
            self.next += 1;
            self.order.insert(self.next, place);
            Entry { number: self.next, since: now, chunk: Chunk { place, cells: [None; CELLS] } }
        })
    }

    /// Data of this chunk within the range counts no more.
    fn forget(&mut self, place: Place, range: &Range<u64>) {
        let Some(entry) = self.entries.get_mut(&place) else { return };
        for (at, cell) in entry.chunk.cells.iter_mut().enumerate() {
            let start = place.offset() + (at * BLOCK_BYTES) as u64;
            let Some(Cell { slot, mask }) = cell else { continue };
            for sector in 0..SECTORS_PER_CELL {
                if range.contains(&(start + sector as u64 * SECTOR_BYTES)) {
                    *mask &= !(1 << sector);
                }
            }
            if *mask == 0 {
                self.store.free(*slot);
                *cell = None;
            }
        }
        if entry.chunk.cells.iter().all(Option::is_none) {
            self.order.remove(&entry.number);
            self.entries.remove(&place);
        }
    }

    /// The oldest writes, if they have waited for so long.
    pub(super) fn take(&mut self, now: Instant, wait: Duration, chunks_max: usize) -> Option<Taken> {
        let is_due = |since: Instant| now.saturating_duration_since(since) >= wait;
        let mut taken = Taken { chunks: Vec::new(), zeros: Vec::new(), since: now };
        if let Some(since) = self.zeros_since.filter(|since| is_due(*since)) {
            taken.since = since;
            self.take_zeros(&mut taken.zeros);
        }
        while taken.chunks.len() < chunks_max
            && let Some(first) = self.order.first_entry()
            && let Some(since) = self.entries.get(first.get()).map(|entry| entry.since)
            && is_due(since)
            && let Some(entry) = self.entries.remove(&first.remove())
        {
            taken.since = taken.since.min(since);
            taken.chunks.push(entry.chunk);
        }
        (!taken.chunks.is_empty() || !taken.zeros.is_empty()).then_some(taken)
    }

    fn take_zeros(&mut self, into: &mut Vec<(u16, Range<u64>)>) {
        for (volume, ranges) in self.zeros.iter_mut().enumerate() {
            while into.len() < EPOCH_RANGES_MAX
                && let Some(range) = ranges.pop_first()
            {
                into.push((volume as u16, range));
            }
        }
        if self.zeros.iter().all(|ranges| ranges.len() == 0) {
            self.zeros_since = None;
        }
    }

    /// Copies a piece of a chunk that was taken; the bytes must be in one of its runs.
    pub(super) fn read(&self, chunk: &Chunk, piece: Range<usize>, into: &mut Vec<u8>) -> io::Result<()> {
        let mut at = piece.start;
        while at < piece.end {
            let within = at % BLOCK_BYTES;
            let length = (BLOCK_BYTES - within).min(piece.end - at);
            let written = into.len();
            into.resize(written + length, 0);
            if let Some(cell) = &chunk.cells[at / BLOCK_BYTES] {
                self.store.read(cell.slot, within, &mut into[written..])?;
            }
            at += length;
        }
        Ok(())
    }

    /// A chunk that was taken is needed no more.
    pub(super) fn free(&mut self, chunk: &Chunk) {
        chunk.cells.iter().flatten().for_each(|cell| self.store.free(cell.slot));
    }

    /// Whether a chunk is here from its first byte to its last.
    pub(super) fn is_whole(&self, chunk: &Chunk) -> bool {
        let size = self.sizes[usize::from(chunk.place.volume)];
        chunk.is_whole(chunk_length(size, chunk.place.chunk))
    }

    /// Nothing waits to be taken.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.zeros_since.is_none()
    }

    /// Bytes that wait to be taken, as whole chunks, and ranges as nothing.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.entries.len() as u64 * CHUNK_BYTES as u64
    }

    /// When the oldest write came that was not taken yet.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let first = self.order.first_key_value().and_then(|(_, place)| self.entries.get(place));
        first.map(|entry| entry.since).into_iter().chain(self.zeros_since).min()
    }

    /// Bytes that are kept, taken or not, and how many may be.
    pub(super) fn usage(&self) -> (u64, u64) {
        self.store.usage()
    }

    fn has_most_ranges(&self) -> bool {
        self.zeros.iter().map(Ranges::len).sum::<usize>() >= RANGES_MAX
    }

    /// What the next write meets.
    pub(super) fn pressure(&self) -> Pressure {
        let (used, most) = self.usage();
        if self.store.is_refused() {
            Pressure::NoSpace
        } else if self.has_most_ranges() {
            Pressure::Full
        } else {
            Pressure::at(used, most)
        }
    }

    pub(super) fn spilled_bytes(&self) -> u64 {
        self.store.spilled_bytes()
    }

    /// Whether a write of so many bytes touches no file.
    pub(super) fn stays_in_memory(&self, bytes: usize) -> bool {
        self.store.spilled_bytes() == 0 && self.store.has_memory_for(bytes)
    }
}

/// The length of a whole chunk of zeros at the front of what is written. Less than a chunk stays data: a chunk with
/// holes could not be asked about.
fn zero_chunk(offset: u64, data: &[u8]) -> Option<usize> {
    let chunk = data.first_chunk::<CHUNK_BYTES>().filter(|_| offset.is_multiple_of(CHUNK_BYTES as u64))?;
    chunk.iter().all(|byte| *byte == 0).then_some(CHUNK_BYTES)
}

#[cfg(test)]
mod tests;
