//! A checkpoint while it grows: contents first, as they pass; then what was where.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::seal::{FOOT, Seal};
use super::shelf::Shelf;
use super::{CHUNK_PAGES, CheckpointId, Error, MAGIC, PIECE_MAX};
use crate::codec::Keeper;
use crate::codec::memory::Memory;
use crate::hash::{ByHash, PAGE_BYTES, Page, PageHash};

/// Speed matters more than size here: the guest's stream waits for it.
const LEVEL: i32 = 1;
/// Places in one list piece: 16 + 8 bytes each, names apart.
const LIST_PLACES: usize = 16 << 10;

/// Where a content is: the chunk's offset in the file, its number, and the page in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) offset: u64,
    pub(super) piece: u64,
    pub(super) page: u8,
}

struct Inner {
    shelf: Shelf,
    vm: [u8; 16],
    path: PathBuf,
    file: BufWriter<File>,
    seal: Seal,
    written: u64,
    pieces: u64,
    bytes_max: u64,
    spots: ByHash<Spot>,
    chunk: Vec<u8>,
    /// The first reason why this will be no checkpoint. The migration goes on without.
    failed: Option<Error>,
}

/// Writes beside the checkpoints under a name that is none. Clones write the same file.
#[derive(Clone)]
pub struct Writer(Arc<Mutex<Inner>>);

impl Keeper for Writer {
    fn keep(&mut self, hash: &PageHash, page: &Page) {
        let mut inner = self.lock();
        if inner.failed.is_none()
            && let Err(error) = inner.keep(hash, page)
        {
            inner.failed = Some(error);
        }
    }

    fn seal(&mut self, memory: &mut Memory) {
        let (shelf, vm) = {
            let inner = self.lock();
            (inner.shelf.clone(), inner.vm)
        };
        match self.finish(memory).and_then(|(path, id, bytes)| Ok((shelf.put(vm, &path, id)?, id, bytes))) {
            Ok(((), id, bytes)) => tracing::info!(?id, bytes, "checkpoint kept"),
            Err(error) => tracing::warn!(%error, "no checkpoint was kept: the way back will cost more"),
        }
    }
}

impl Writer {
    pub(super) fn create(shelf: &Shelf, vm: [u8; 16], path: &Path) -> Result<Self, Error> {
        let mut salt = [0; 32];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| std::io::Error::other("no randomness"))?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&MAGIC)?;
        file.write_all(&salt)?;
        Ok(Self(Arc::new(Mutex::new(Inner {
            shelf: shelf.clone(),
            vm,
            path: path.to_owned(),
            file,
            seal: Seal::new(shelf.key(), &salt)?,
            written: (MAGIC.len() + salt.len()) as u64,
            pieces: 0,
            bytes_max: shelf.limits().bytes_each,
            spots: ByHash::default(),
            chunk: Vec::new(),
            failed: None,
        }))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists what was where when the stream ended, copies what came from an older checkpoint, and waits for the disk.
    pub(super) fn finish(&self, memory: &mut Memory) -> Result<(PathBuf, CheckpointId, u64), Error> {
        let mut inner = self.lock();
        if let Some(error) = inner.failed.take() {
            return Err(error);
        }
        let places: Vec<_> =
            memory.places().map(|(block, page, hash)| (block.to_vec(), page, hash)).collect();
        let mut page = [0; PAGE_BYTES];
        for (.., hash) in &places {
            let is_here = *hash == PageHash::ZERO || inner.spots.contains_key(hash);
            if !is_here {
                let is_shared = memory.shared().is_some_and(|shared| shared.read(hash, &mut page));
                is_shared.then_some(()).ok_or(Error::Missing)?;
                inner.keep(hash, &page)?;
            }
        }
        inner.end_chunk()?;
        let (lists_at, first, mut lists) = (inner.written, inner.pieces, 0_u32);
        let mut id = blake3::Hasher::new();
        for part in places.chunks(LIST_PLACES) {
            let plain = inner.list(part, &mut id)?;
            inner.piece(&plain)?;
            lists += 1;
        }
        let id = CheckpointId(*id.finalize().as_bytes());
        let foot = [&lists_at.to_be_bytes()[..], &first.to_be_bytes(), &lists.to_be_bytes(), &id.0].concat();
        let foot = inner.seal.seal(FOOT, foot)?;
        inner.file.write_all(&foot)?;
        inner.file.flush()?;
        inner.file.get_ref().sync_all()?;
        Ok((inner.path.clone(), id, inner.written + foot.len() as u64))
    }
}

impl Inner {
    fn keep(&mut self, hash: &PageHash, page: &Page) -> Result<(), Error> {
        if self.spots.contains_key(hash) {
            return Ok(());
        }
        let spot =
            Spot { offset: self.written, piece: self.pieces, page: (self.chunk.len() / PAGE_BYTES) as u8 };
        self.spots.insert(*hash, spot);
        self.chunk.extend_from_slice(page);
        if self.chunk.len() >= CHUNK_PAGES * PAGE_BYTES { self.end_chunk() } else { Ok(()) }
    }

    fn end_chunk(&mut self) -> Result<(), Error> {
        let chunk = std::mem::take(&mut self.chunk);
        if chunk.is_empty() { Ok(()) } else { self.piece(&chunk) }
    }

    fn piece(&mut self, plain: &[u8]) -> Result<(), Error> {
        let sealed = self.seal.seal(self.pieces, zstd::bulk::compress(plain, LEVEL)?)?;
        let bytes = sealed.len() as u64 + 4;
        if self.written + bytes > self.bytes_max || sealed.len() > PIECE_MAX {
            return Err(Error::TooLarge);
        }
        self.file.write_all(&(sealed.len() as u32).to_be_bytes())?;
        self.file.write_all(&sealed)?;
        self.written += bytes;
        self.pieces += 1;
        Ok(())
    }

    /// `u8 n, name, be64 page, hash, be64 offset, be64 piece, u8 page in it` for each place.
    fn list(&self, places: &[(Vec<u8>, u64, PageHash)], id: &mut blake3::Hasher) -> Result<Vec<u8>, Error> {
        let mut plain = Vec::new();
        for (block, page, hash) in places {
            let from = plain.len();
            plain.push(block.len() as u8);
            plain.extend(block);
            plain.extend(page.to_be_bytes());
            plain.extend(hash.0);
            // Where it lies in this file is this host's business; the rest is what both must agree on.
            id.update(&plain[from..]);
            let zero = Spot { offset: 0, piece: 0, page: 0 };
            let spot = if *hash == PageHash::ZERO { Some(&zero) } else { self.spots.get(hash) };
            let spot = spot.ok_or(Error::Missing)?;
            plain.extend(spot.offset.to_be_bytes());
            plain.extend(spot.piece.to_be_bytes());
            plain.push(spot.page);
        }
        Ok(plain)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // One that was finished has another name by now; anything else is no checkpoint.
        let _ = sterna_base::file::remove_if_there(&self.path);
    }
}
