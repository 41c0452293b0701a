//! A finished checkpoint, as pages to refer to.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::seal::{FOOT, Seal, TAG_BYTES};
use super::write::Spot;
use super::{CHUNK_PAGES, CheckpointId, Error, FOOT_BYTES, FOOT_PLAIN, HostKey, MAGIC, PIECE_MAX};
use crate::codec::Dictionary;
use crate::hash::{ByHash, PAGE_BYTES, Page, PageHash};

/// Chunks that stay unpacked: a stream goes through memory mostly as it did before.
const CHUNKS_KEPT: usize = 64;
/// Of one unpacked list: names are 255 bytes at most, and lists have 16 Ki places.
const LIST_MAX: usize = 8 << 20;

pub struct Checkpoint {
    id: CheckpointId,
    file: File,
    seal: Seal,
    /// Numbers of blocks by name, and hashes by block and page.
    blocks: HashMap<Vec<u8>, HashMap<u64, PageHash>>,
    spots: ByHash<Spot>,
    kept: Vec<(u64, Vec<u8>)>,
}

impl Checkpoint {
    /// Reads the lists; contents are read when they are asked for.
    pub fn open(path: &Path, key: &HostKey) -> Result<Self, Error> {
        let file = File::open(path)?;
        let mut head = [0; 40];
        let length = file.metadata()?.len();
        let foot_at = length.checked_sub(FOOT_BYTES as u64).filter(|at| *at >= 40).ok_or(Error::Damaged)?;
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
        let mut checkpoint = Self {
            id: CheckpointId(id),
            file,
            seal,
            blocks: HashMap::new(),
            spots: ByHash::default(),
            kept: Vec::new(),
        };
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

    /// The names of all contents, for an offer.
    pub fn contents(&self) -> impl Iterator<Item = PageHash> {
        self.spots.keys().copied()
    }

    fn read_lists(&mut self, (mut at, first, lists): (u64, u64, u64), end: u64) -> Result<(), Error> {
        for piece in first..first.saturating_add(lists) {
            let sealed = self.sealed(at, end)?;
            at += sealed.len() as u64 + 4;
            let plain = zstd::bulk::decompress(&self.seal.open(piece, sealed)?, LIST_MAX)?;
            self.read_list(&plain)?;
        }
        if at == end { Ok(()) } else { Err(Error::Damaged) }
    }

    fn sealed(&self, at: u64, end: u64) -> Result<Vec<u8>, Error> {
        let mut length = [0; 4];
        self.file.read_exact_at(&mut length, at)?;
        let length = number(&length) as usize;
        if !(TAG_BYTES..=PIECE_MAX).contains(&length) || at + 4 + length as u64 > end {
            return Err(Error::Damaged);
        }
        let mut sealed = vec![0; length];
        self.file.read_exact_at(&mut sealed, at + 4)?;
        Ok(sealed)
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
                self.spots.insert(hash, spot);
            }
        }
        Ok(())
    }

    fn chunk(&mut self, spot: Spot) -> Result<&[u8], Error> {
        match self.kept.iter().position(|(offset, _)| *offset == spot.offset) {
            // The newest is last.
            Some(at) => {
                let chunk = self.kept.remove(at);
                self.kept.push(chunk);
            }
            None => {
                let end = self.file.metadata()?.len();
                let packed = self.seal.open(spot.piece, self.sealed(spot.offset, end)?)?;
                let plain = zstd::bulk::decompress(&packed, CHUNK_PAGES * PAGE_BYTES)?;
                if self.kept.len() >= CHUNKS_KEPT {
                    self.kept.remove(0);
                }
                self.kept.push((spot.offset, plain));
            }
        }
        self.kept.last().map(|(_, plain)| plain.as_slice()).ok_or(Error::Damaged)
    }
}

impl Dictionary for Checkpoint {
    fn at(&self, block: &[u8], page: u64) -> Option<PageHash> {
        self.blocks.get(block)?.get(&page).copied()
    }

    fn contains(&self, hash: &PageHash) -> bool {
        self.spots.contains_key(hash)
    }

    fn read(&mut self, hash: &PageHash, into: &mut Page) -> bool {
        let Some(spot) = self.spots.get(hash).copied() else { return false };
        let page = match self.chunk(spot) {
            Ok(chunk) => {
                chunk.get(usize::from(spot.page) * PAGE_BYTES..).and_then(<[u8]>::first_chunk::<PAGE_BYTES>)
            }
            Err(error) => {
                tracing::warn!(%error, "a page of a checkpoint cannot be read");
                None
            }
        };
        page.is_some_and(|page| {
            *into = *page;
            true
        })
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
