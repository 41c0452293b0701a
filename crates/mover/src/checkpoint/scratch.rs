//! Contents for one session only, in a file without a name.
//!
//! On the disk rather than in memory: memory here is promised to guests, and a GiB for each guest that arrives would be
//! taken from them. Sealed under a key that is written down nowhere: whatever a crash leaves, nobody can read it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sterna_base::file;

use super::pieces::{Packer, Unpacker};
use super::{Error, HostKey};
use crate::codec::Dictionary;
use crate::hash::{Key, PAGE_BYTES, Page, PageHash};

/// Pages that are packed together: few, because they are read in another order than they came in.
const TOGETHER: usize = 8;
const ZEROS: Page = [0; PAGE_BYTES];

/// Contents as they are gathered.
pub struct Scratch {
    key: Key,
    packer: Packer,
    names: Vec<PageHash>,
    pages_max: usize,
}

impl Scratch {
    /// `path` is used for a moment.
    pub(super) fn create(path: &Path, key: &Key, pages_max: usize, bytes_max: u64) -> Result<Self, Error> {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| std::io::Error::other("no randomness"))?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file::remove_if_there(path)?;
        let packer = Packer::new(file, &HostKey(secret), bytes_max, TOGETHER)?;
        Ok(Self { key: key.clone(), packer, names: Vec::new(), pages_max })
    }

    /// Keeps a content, unless it is nothing but zeros or is here already. `false`: there is no room for more.
    pub fn take(&mut self, page: &Page) -> Result<bool, Error> {
        if self.names.len() >= self.pages_max {
            return Ok(false);
        }
        if *page != ZEROS {
            let hash = PageHash::of(&self.key, page);
            if self.packer.keep(&hash, page)? {
                self.names.push(hash);
            }
        }
        Ok(true)
    }

    /// The contents, and their names in the order in which reading all of them is cheap.
    pub fn finish(self) -> Result<(Contents, Vec<PageHash>), Error> {
        Ok((Contents(self.packer.reopen()?), self.names))
    }
}

/// What was gathered. Its file goes with it.
pub struct Contents(Unpacker);

impl Dictionary for Contents {
    fn at(&self, _block: &[u8], _page: u64) -> Option<PageHash> {
        None
    }

    fn contains(&self, hash: &PageHash) -> bool {
        self.0.spots.contains_key(hash)
    }

    fn read(&mut self, hash: &PageHash, into: &mut Page) -> bool {
        self.0.read(hash, into)
    }
}
