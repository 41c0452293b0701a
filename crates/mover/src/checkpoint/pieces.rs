//! Contents in a file: packed some together, sealed, found by name.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

use super::seal::{FOOT, Seal, TAG_BYTES};
use super::{CHUNK_PAGES, Error, HostKey, MAGIC, PIECE_MAX};
use crate::hash::{ByHash, PAGE_BYTES, Page, PageHash};

/// Speed matters more than size here: there are more pages than time.
const LEVEL: i32 = 1;
/// Pages that stay unpacked: a stream goes through memory mostly as it did before.
const KEPT_PAGES: usize = 2048;
pub(super) const HEAD_BYTES: u64 = 40;

/// Where a content is: the chunk's offset in the file, its number, and the page in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) offset: u64,
    pub(super) piece: u64,
    pub(super) page: u8,
}

/// A file while it grows.
pub(super) struct Packer {
    file: BufWriter<File>,
    seal: Seal,
    written: u64,
    pieces: u64,
    bytes_max: u64,
    /// Pages of one chunk.
    together: usize,
    spots: ByHash<Spot>,
    chunk: Vec<u8>,
}

impl Packer {
    /// Begins an empty file; chunks of `together` pages, at most [`CHUNK_PAGES`].
    pub(super) fn new(file: File, key: &HostKey, bytes_max: u64, together: usize) -> Result<Self, Error> {
        let mut salt = [0; 32];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| std::io::Error::other("no randomness"))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&MAGIC)?;
        file.write_all(&salt)?;
        Ok(Self {
            file,
            seal: Seal::new(key, &salt)?,
            written: HEAD_BYTES,
            pieces: 0,
            bytes_max,
            together: together.clamp(1, CHUNK_PAGES),
            spots: ByHash::default(),
            chunk: Vec::new(),
        })
    }

    pub(super) fn spot(&self, hash: &PageHash) -> Option<&Spot> {
        self.spots.get(hash)
    }

    /// Offset and number of the next piece.
    pub(super) fn next(&self) -> (u64, u64) {
        (self.written, self.pieces)
    }

    /// `false`: it was there.
    pub(super) fn keep(&mut self, hash: &PageHash, page: &Page) -> Result<bool, Error> {
        if self.spots.contains_key(hash) {
            return Ok(false);
        }
        let spot =
            Spot { offset: self.written, piece: self.pieces, page: (self.chunk.len() / PAGE_BYTES) as u8 };
        self.spots.insert(*hash, spot);
        self.chunk.extend_from_slice(page);
        if self.chunk.len() >= self.together * PAGE_BYTES {
            self.end_chunk()?;
        }
        Ok(true)
    }

    pub(super) fn end_chunk(&mut self) -> Result<(), Error> {
        let chunk = std::mem::take(&mut self.chunk);
        if chunk.is_empty() { Ok(()) } else { self.piece(&chunk) }
    }

    pub(super) fn piece(&mut self, plain: &[u8]) -> Result<(), Error> {
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

    /// Ends the file with these bytes, waits for the disk, and gives the file's length.
    pub(super) fn foot(&mut self, plain: Vec<u8>) -> Result<u64, Error> {
        let foot = self.seal.seal(FOOT, plain)?;
        self.file.write_all(&foot)?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        Ok(self.written + foot.len() as u64)
    }

    /// What was packed, to be read by the same process. Needs a file that was opened for reading, too.
    pub(super) fn reopen(mut self) -> Result<Unpacker, Error> {
        self.end_chunk()?;
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let mut unpacker = Unpacker::new(file, self.seal, self.together);
        unpacker.spots = self.spots;
        Ok(unpacker)
    }
}

/// A file that grows no more.
pub(super) struct Unpacker {
    file: File,
    pub(super) seal: Seal,
    pub(super) spots: ByHash<Spot>,
    /// Chunks in plain, by their offset; the newest is last.
    kept: Vec<(u64, Vec<u8>)>,
    kept_max: usize,
}

impl Unpacker {
    pub(super) fn new(file: File, seal: Seal, together: usize) -> Self {
        Self { file, seal, spots: ByHash::default(), kept: Vec::new(), kept_max: KEPT_PAGES / together }
    }

    /// The piece at an offset, before `end`.
    pub(super) fn sealed(&self, at: u64, end: u64) -> Result<Vec<u8>, Error> {
        let mut length = [0; 4];
        self.file.read_exact_at(&mut length, at)?;
        let length = u32::from_be_bytes(length) as usize;
        if !(TAG_BYTES..=PIECE_MAX).contains(&length) || at + 4 + length as u64 > end {
            return Err(Error::Damaged);
        }
        let mut sealed = vec![0; length];
        self.file.read_exact_at(&mut sealed, at + 4)?;
        Ok(sealed)
    }

    /// Copies a content out; `false` if it is not there or cannot be read.
    pub(super) fn read(&mut self, hash: &PageHash, into: &mut Page) -> bool {
        let Some(spot) = self.spots.get(hash).copied() else { return false };
        let page = match self.chunk(spot) {
            Ok(chunk) => {
                chunk.get(usize::from(spot.page) * PAGE_BYTES..).and_then(<[u8]>::first_chunk::<PAGE_BYTES>)
            }
            Err(error) => {
                tracing::warn!(%error, "a page that was kept cannot be read");
                None
            }
        };
        page.is_some_and(|page| {
            *into = *page;
            true
        })
    }

    fn chunk(&mut self, spot: Spot) -> Result<&[u8], Error> {
        match self.kept.iter().position(|(offset, _)| *offset == spot.offset) {
            Some(at) => {
                let chunk = self.kept.remove(at);
                self.kept.push(chunk);
            }
            None => {
                let end = self.file.metadata()?.len();
                let packed = self.seal.open(spot.piece, self.sealed(spot.offset, end)?)?;
                let plain = zstd::bulk::decompress(&packed, CHUNK_PAGES * PAGE_BYTES)?;
                if self.kept.len() >= self.kept_max {
                    self.kept.remove(0);
                }
                self.kept.push((spot.offset, plain));
            }
        }
        self.kept.last().map(|(_, plain)| plain.as_slice()).ok_or(Error::Damaged)
    }
}
