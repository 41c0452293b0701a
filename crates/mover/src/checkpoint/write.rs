//! A checkpoint while it grows: contents first, as they pass; then what was where.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::hash::BuildHasherDefault;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use super::pieces::{Packer, Spot};
use super::shelf::Shelf;
use super::{CHUNK_PAGES, CheckpointId, Error};
use crate::codec::Keeper;
use crate::codec::memory::Memory;
use crate::hash::{NameHasher, PAGE_BYTES, Page, PageHash};

/// Places in one list piece: 16 + 8 bytes each, names apart.
const LIST_PLACES: usize = 16 << 10;

/// Bytes that may wait for the thread that packs them.
const WAITING_MAX: usize = 64 << 20;
/// Behind the stream's own thread: packing must not slow the guest's way.
const NICE: i32 = 10;

/// Contents that are packed together.
type Chunk = Vec<(PageHash, Box<Page>)>;

struct Inner {
    shelf: Shelf,
    vm: [u8; 16],
    path: PathBuf,
    seen: HashSet<PageHash, BuildHasherDefault<NameHasher>>,
    chunk: Chunk,
    /// `None` from the end on, or since the thread has failed.
    chunks: Option<mpsc::SyncSender<Chunk>>,
    packing: Option<JoinHandle<Result<Packer, Error>>>,
}

/// Writes beside the checkpoints under a name that is none. Clones write the same file.
#[derive(Clone)]
pub struct Writer(Arc<Mutex<Inner>>);

impl Keeper for Writer {
    fn keep(&mut self, hash: &PageHash, page: &Page) {
        self.lock().keep(hash, page);
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

/// In a thread of its own: else a guest that stands still would wait for its last pages to be packed.
fn pack(mut packer: Packer, chunks: &mpsc::Receiver<Chunk>) -> Result<Packer, Error> {
    // Where it is not allowed it is no worse than before.
    let _ = rustix::process::nice(NICE);
    for chunk in chunks {
        for (hash, page) in chunk {
            packer.keep(&hash, &page)?;
        }
    }
    Ok(packer)
}

impl Writer {
    pub(super) fn create(shelf: &Shelf, vm: [u8; 16], path: &Path) -> Result<Self, Error> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let packer = Packer::new(file, shelf.key(), shelf.limits().bytes_each, CHUNK_PAGES)?;
        let (chunks, waiting) = mpsc::sync_channel(WAITING_MAX / PAGE_BYTES / CHUNK_PAGES);
        let packing = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || pack(packer, &waiting))?;
        Ok(Self(Arc::new(Mutex::new(Inner {
            shelf: shelf.clone(),
            vm,
            path: path.to_owned(),
            seen: HashSet::default(),
            chunk: Vec::new(),
            chunks: Some(chunks),
            packing: Some(packing),
        }))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists what was where when the stream ended, copies what came from an older checkpoint, and waits for the disk.
    pub(super) fn finish(&self, memory: &mut Memory) -> Result<(PathBuf, CheckpointId, u64), Error> {
        let mut inner = self.lock();
        let mut packer = inner.packed()?;
        let places: Vec<_> =
            memory.places().map(|(block, page, hash)| (block.to_vec(), page, hash)).collect();
        let mut page = [0; PAGE_BYTES];
        for (.., hash) in &places {
            let is_here = *hash == PageHash::ZERO || packer.spot(hash).is_some();
            if !is_here {
                let is_shared = memory.shared().is_some_and(|shared| shared.read(hash, &mut page));
                is_shared.then_some(()).ok_or(Error::Missing)?;
                packer.keep(hash, &page)?;
            }
        }
        packer.end_chunk()?;
        let ((lists_at, first), mut lists) = (packer.next(), 0_u32);
        let mut id = blake3::Hasher::new();
        for part in places.chunks(LIST_PLACES) {
            let plain = list(&packer, part, &mut id)?;
            packer.piece(&plain)?;
            lists += 1;
        }
        let id = CheckpointId(*id.finalize().as_bytes());
        let foot = [&lists_at.to_be_bytes()[..], &first.to_be_bytes(), &lists.to_be_bytes(), &id.0].concat();
        let bytes = packer.foot(foot)?;
        Ok((inner.path.clone(), id, bytes))
    }
}

impl Inner {
    fn keep(&mut self, hash: &PageHash, page: &Page) {
        if self.chunks.is_none() || !self.seen.insert(*hash) {
            return;
        }
        self.chunk.push((*hash, Box::new(*page)));
        if self.chunk.len() >= CHUNK_PAGES {
            self.pass_on();
        }
    }

    fn pass_on(&mut self) {
        let chunk = std::mem::take(&mut self.chunk);
        // A thread that is gone has failed: it says why at the end. The migration goes on without.
        if self.chunks.as_ref().is_some_and(|chunks| chunks.send(chunk).is_err()) {
            self.chunks = None;
        }
    }

    /// Everything that was kept so far, in the file.
    fn packed(&mut self) -> Result<Packer, Error> {
        self.pass_on();
        self.chunks = None;
        let packing = self.packing.take().ok_or(Error::Missing)?;
        packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// `u8 n, name, be64 page, hash, be64 offset, be64 piece, u8 page in it` for each place.
fn list(
    packer: &Packer,
    places: &[(Vec<u8>, u64, PageHash)],
    id: &mut blake3::Hasher,
) -> Result<Vec<u8>, Error> {
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
        let spot = if *hash == PageHash::ZERO { Some(&zero) } else { packer.spot(hash) };
        let spot = spot.ok_or(Error::Missing)?;
        plain.extend(spot.offset.to_be_bytes());
        plain.extend(spot.piece.to_be_bytes());
        plain.push(spot.page);
    }
    Ok(plain)
}

impl Drop for Inner {
    fn drop(&mut self) {
        // One that was finished has another name by now; anything else is no checkpoint.
        let _ = sterna_base::file::remove_if_there(&self.path);
    }
}
