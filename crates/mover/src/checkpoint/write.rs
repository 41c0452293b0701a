//! A checkpoint while it grows: contents first, as they pass; then what was where.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pieces::{Packer, Spot};
use super::shelf::Shelf;
use super::{CHUNK_PAGES, CheckpointId, Error};
use crate::codec::Keeper;
use crate::codec::memory::Memory;
use crate::hash::{PAGE_BYTES, Page, PageHash};

/// Places in one list piece: 16 + 8 bytes each, names apart.
const LIST_PLACES: usize = 16 << 10;

struct Inner {
    shelf: Shelf,
    vm: [u8; 16],
    path: PathBuf,
    packer: Packer,
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
            && let Err(error) = inner.packer.keep(hash, page)
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
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let packer = Packer::new(file, shelf.key(), shelf.limits().bytes_each, CHUNK_PAGES)?;
        let (shelf, path) = (shelf.clone(), path.to_owned());
        Ok(Self(Arc::new(Mutex::new(Inner { shelf, vm, path, packer, failed: None }))))
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
            let is_here = *hash == PageHash::ZERO || inner.packer.spot(hash).is_some();
            if !is_here {
                let is_shared = memory.shared().is_some_and(|shared| shared.read(hash, &mut page));
                is_shared.then_some(()).ok_or(Error::Missing)?;
                inner.packer.keep(hash, &page)?;
            }
        }
        inner.packer.end_chunk()?;
        let ((lists_at, first), mut lists) = (inner.packer.next(), 0_u32);
        let mut id = blake3::Hasher::new();
        for part in places.chunks(LIST_PLACES) {
            let plain = inner.list(part, &mut id)?;
            inner.packer.piece(&plain)?;
            lists += 1;
        }
        let id = CheckpointId(*id.finalize().as_bytes());
        let foot = [&lists_at.to_be_bytes()[..], &first.to_be_bytes(), &lists.to_be_bytes(), &id.0].concat();
        let bytes = inner.packer.foot(foot)?;
        Ok((inner.path.clone(), id, bytes))
    }
}

impl Inner {
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
            let spot = if *hash == PageHash::ZERO { Some(&zero) } else { self.packer.spot(hash) };
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
