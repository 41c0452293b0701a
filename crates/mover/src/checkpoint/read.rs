//! A finished checkpoint, as pages to refer to.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::pieces::{HEAD_BYTES, Spot, Unpacker};
use super::seal::{FOOT, Seal};
use super::{CHUNK_PAGES, CheckpointId, Error, FOOT_BYTES, FOOT_PLAIN, HostKey, MAGIC};
use crate::codec::Dictionary;
use crate::hash::{Page, PageHash};

/// Of one unpacked list: names are 255 bytes at most, and lists have 16 Ki places.
const LIST_MAX: usize = 8 << 20;

pub struct Checkpoint {
    id: CheckpointId,
    /// Numbers of blocks by name, and hashes by block and page.
    blocks: HashMap<Vec<u8>, HashMap<u64, PageHash>>,
    contents: Unpacker,
}

impl Checkpoint {
    /// Reads the lists; contents are read when they are asked for.
    pub fn open(path: &Path, key: &HostKey) -> Result<Self, Error> {
        let file = File::open(path)?;
        let mut head = [0; HEAD_BYTES as usize];
        let length = file.metadata()?.len();
        let foot_at =
            length.checked_sub(FOOT_BYTES as u64).filter(|at| *at >= HEAD_BYTES).ok_or(Error::Damaged)?;
        file.read_exact_at(&mut head, 0)?;
        let (magic, salt) = head.split_first_chunk::<8>().ok_or(Error::Damaged)?;
        let salt: &[u8; 32] = salt.first_chunk().ok_or(Error::Damaged)?;
        if *magic != MAGIC {
            return Err(Error::Damaged);
        }
        let seal = Seal::new(key, salt)?;
        let mut foot = vec![0; FOOT_BYTES];
        file.read_exact_at(&mut foot, foot_at)?;
        let foot = seal.open(FOOT, foot)?;
        let foot: &[u8; FOOT_PLAIN] = foot.as_slice().try_into().map_err(|_| Error::Damaged)?;
        let mut id = [0; 32];
        id.copy_from_slice(&foot[20..]);
        let contents = Unpacker::new(file, seal, CHUNK_PAGES);
        let mut checkpoint = Self { id: CheckpointId(id), blocks: HashMap::new(), contents };
        let lists = (number(&foot[..8]), number(&foot[8..16]), number(&foot[16..20]));
        checkpoint.read_lists(lists, foot_at)?;
        Ok(checkpoint)
    }

    #[must_use]
    pub fn id(&self) -> CheckpointId {
        self.id
    }

    /// Places that are listed.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.blocks.values().map(HashMap::len).sum()
    }

    fn read_lists(&mut self, (mut at, first, lists): (u64, u64, u64), end: u64) -> Result<(), Error> {
        for piece in first..first.saturating_add(lists) {
            let sealed = self.contents.sealed(at, end)?;
            at += sealed.len() as u64 + 4;
            let plain = zstd::bulk::decompress(&self.contents.seal.open(piece, sealed)?, LIST_MAX)?;
            self.read_list(&plain)?;
        }
        if at == end { Ok(()) } else { Err(Error::Damaged) }
    }

    fn read_list(&mut self, mut plain: &[u8]) -> Result<(), Error> {
        while let Some((length, rest)) = plain.split_first() {
            let (name, rest) = rest.split_at_checked(usize::from(*length)).ok_or(Error::Damaged)?;
            let (entry, rest) = rest.split_first_chunk::<41>().ok_or(Error::Damaged)?;
            plain = rest;
            let mut hash = PageHash::ZERO;
            hash.0.copy_from_slice(&entry[8..24]);
            if !self.blocks.contains_key(name) {
                self.blocks.insert(name.to_vec(), HashMap::new());
            }
            let block = self.blocks.get_mut(name).ok_or(Error::Damaged)?;
            block.insert(number(&entry[..8]), hash);
            if hash != PageHash::ZERO {
                let spot =
                    Spot { offset: number(&entry[24..32]), piece: number(&entry[32..40]), page: entry[40] };
                self.contents.spots.insert(hash, spot);
            }
        }
        Ok(())
    }
}

impl Dictionary for Checkpoint {
    fn at(&self, block: &[u8], page: u64) -> Option<PageHash> {
        self.blocks.get(block)?.get(&page).copied()
    }

    fn contains(&self, hash: &PageHash) -> bool {
        self.contents.spots.contains_key(hash)
    }

    fn read(&mut self, hash: &PageHash, into: &mut Page) -> bool {
        self.contents.read(hash, into)
    }

    fn names(&self) -> Vec<PageHash> {
        let mut spots: Vec<_> = self.contents.spots.iter().collect();
        spots.sort_unstable_by_key(|(_, spot)| (spot.offset, spot.page));
        spots.into_iter().map(|(hash, _)| *hash).collect()
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
