//! Blocks of 4 KiB: in memory up to a bound, then in a file that nobody can find.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub(in crate::volume) const BLOCK_BYTES: usize = 4096;
/// Memory is taken in pieces of so many blocks.
const SLAB_BLOCKS: u32 = 256;
/// Slot numbers have 32 bits: 8 TiB in each of the two halves.
const BLOCKS_MAX: u64 = 1 << 31;

/// Where accepted writes may wait for the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: u64,
    /// What does not fit into memory goes to a file here.
    pub spill: Option<Spill>,
}

/// A file of at most so many bytes in this folder. It has no name once it is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spill {
    pub folder: PathBuf,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::volume) struct Slot(u32);

#[derive(Debug)]
pub(super) struct Store {
    slabs: Vec<Box<[u8]>>,
    memory: Numbers,
    spill: Option<(File, Numbers)>,
    /// The disk had no room for the last write, and nothing has left since.
    is_refused: bool,
}

impl Store {
    pub(super) fn new(limits: &Limits) -> io::Result<Self> {
        let spill = limits.spill.as_ref().map(|spill| Ok((open(&spill.folder)?, Numbers::new(spill.bytes))));
        let memory = Numbers::new(limits.memory_bytes);
        let spill = spill.transpose().map_err(|error: io::Error| error)?;
        Ok(Self { slabs: Vec::new(), memory, spill, is_refused: false })
    }

    /// A slot with this content at `within`; `None` if there is no room now.
    pub(super) fn put(&mut self, within: usize, data: &[u8]) -> io::Result<Option<Slot>> {
        if let Some(number) = self.memory.take() {
            if (number / SLAB_BLOCKS) as usize == self.slabs.len() {
                self.slabs.push(vec![0; SLAB_BLOCKS as usize * BLOCK_BYTES].into());
            }
            let slot = Slot(number);
            return self.write(slot, within, data).map(|_| Some(slot));
        }
        let Some(number) = self.spill.as_mut().and_then(|(_, numbers)| numbers.take()) else {
            return Ok(None);
        };
        let slot = Slot(number | 1 << 31);
        let is_written = self.write(slot, within, data);
        if !matches!(is_written, Ok(true)) {
            self.give(slot);
        }
        Ok(is_written?.then_some(slot))
    }

    /// `false` if the disk has no room for it now.
    pub(super) fn write(&mut self, slot: Slot, within: usize, data: &[u8]) -> io::Result<bool> {
        match self.place(slot) {
            Ok((slab, at)) => self.slabs[slab][at + within..at + within + data.len()].copy_from_slice(data),
            Err((file, at)) => match file.write_all_at(data, at + within as u64) {
                Ok(()) => self.is_refused = false,
                Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                    self.is_refused = true;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            },
        }
        Ok(true)
    }

    pub(super) fn read(&self, slot: Slot, within: usize, into: &mut [u8]) -> io::Result<()> {
        match self.place(slot) {
            Ok((slab, at)) => {
                into.copy_from_slice(&self.slabs[slab][at + within..at + within + into.len()]);
                Ok(())
            }
            Err((file, at)) => file.read_exact_at(into, at + within as u64),
        }
    }

    pub(super) fn free(&mut self, slot: Slot) {
        self.is_refused = false;
        self.give(slot);
    }

    fn give(&mut self, slot: Slot) {
        match (slot.0 >> 31, &mut self.spill) {
            (1, Some((file, numbers))) => {
                numbers.give(slot.0 & !(1 << 31));
                if numbers.used == 0 {
                    // The room goes back to everybody else; keeping it would be no error.
                    let _ = file.set_len(0);
                }
            }
            _ => {
                self.memory.give(slot.0);
                if self.memory.used == 0 {
                    self.slabs.clear();
                }
            }
        }
    }

    /// Bytes in use, and what there can be at most.
    pub(super) fn usage(&self) -> (u64, u64) {
        let spill = self.spill.as_ref().map_or((0, 0), |(_, numbers)| (numbers.used, numbers.most));
        let bytes = |blocks: u32| u64::from(blocks) * BLOCK_BYTES as u64;
        (bytes(self.memory.used) + bytes(spill.0), bytes(self.memory.most) + bytes(spill.1))
    }

    /// Whether it is the disk that has no room, rather than the bounds.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    pub(super) fn spilled_bytes(&self) -> u64 {
        self.spill.as_ref().map_or(0, |(_, numbers)| u64::from(numbers.used)) * BLOCK_BYTES as u64
    }

    /// Whether so many more bytes would stay in memory, however they are aligned.
    pub(super) fn has_memory_for(&self, bytes: usize) -> bool {
        let blocks = bytes / BLOCK_BYTES + 2;
        (self.memory.most - self.memory.used) as usize >= blocks
    }

    fn place(&self, slot: Slot) -> Result<(usize, usize), (&File, u64)> {
        match &self.spill {
            Some((file, _)) if slot.0 >> 31 == 1 => {
                Err((file, u64::from(slot.0 & !(1 << 31)) * BLOCK_BYTES as u64))
            }
            _ => Ok(((slot.0 / SLAB_BLOCKS) as usize, (slot.0 % SLAB_BLOCKS) as usize * BLOCK_BYTES)),
        }
    }
}

/// Numbers below a bound that are given out and come back.
#[derive(Debug)]
struct Numbers {
    most: u32,
    used: u32,
    fresh: u32,
    returned: Vec<u32>,
}

impl Numbers {
    fn new(bytes: u64) -> Self {
        let most = (bytes / BLOCK_BYTES as u64).min(BLOCKS_MAX) as u32;
        Self { most, used: 0, fresh: 0, returned: Vec::new() }
    }

    fn take(&mut self) -> Option<u32> {
        let number = match self.returned.pop() {
            Some(number) => number,
            None if self.fresh < self.most => {
                self.fresh += 1;
                self.fresh - 1
            }
            None => return None,
        };
        self.used += 1;
        Some(number)
    }

    fn give(&mut self, number: u32) {
        self.used -= 1;
        self.returned.push(number);
        if self.used == 0 {
            self.fresh = 0;
            self.returned = Vec::new();
        }
    }
}

/// A file without a name: it is gone when this process is.
fn open(folder: &Path) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let name = format!("journal-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = folder.join(name);
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => {
                fs::remove_file(&path)?;
                return Ok(file);
            }
            // Left by a process of the same number that died between the two calls; it is empty.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
impl Store {
    /// With no memory, and on a disk where every write says that there is no space.
    pub(super) fn refusing() -> Self {
        let mut store = Self::new(&Limits { memory_bytes: 0, spill: None }).unwrap();
        let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        store.spill = Some((full, Numbers::new(1 << 20)));
        store
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_beyond_the_memory_go_to_a_file_without_a_name_and_everything_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill { folder: folder.path().to_owned(), bytes: 2 * BLOCK_BYTES as u64 };
        let mut store =
            Store::new(&Limits { memory_bytes: 3 * BLOCK_BYTES as u64, spill: Some(spill) }).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        for round in 0..3_u8 {
            let slots: Vec<Slot> =
                (0..5).map(|at| store.put(512, &[round * 16 + at; 512]).unwrap().unwrap()).collect();
            assert_eq!(store.put(0, &[1]).unwrap(), None);
            assert_eq!(store.usage(), (5 * 4096, 5 * 4096));
            assert_eq!(store.spilled_bytes(), 2 * 4096);
            for (at, slot) in slots.iter().enumerate() {
                let mut read = [0; 512];
                store.read(*slot, 512, &mut read).unwrap();
                assert_eq!(read, [round * 16 + at as u8; 512]);
            }
            slots.into_iter().for_each(|slot| store.free(slot));
            assert_eq!((store.usage().0, store.slabs.len()), (0, 0));
        }
    }

    #[test]
    fn a_full_disk_is_no_room_and_no_error() {
        let mut store = Store::refusing();
        assert!(!store.is_refused());
        assert_eq!(store.put(0, &[1; 512]).unwrap(), None);
        assert_eq!(store.usage().0, 0);
        assert!(store.is_refused());
        // What leaves makes room in memory at least.
        store.memory = Numbers::new(BLOCK_BYTES as u64);
        let slot = store.put(0, &[1; 512]).unwrap().unwrap();
        assert_eq!(store.put(0, &[1; 512]).unwrap(), None);
        store.free(slot);
        assert!(!store.is_refused());
    }
}
