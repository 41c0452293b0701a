//! Page keys and checkpoints of guests that have been here.
//!
//! ```text
//! DATA_DIR/page-keys/UID       32 bytes: what a guest's pages are named under, wherever it goes
//! DATA_DIR/checkpoints/        what passed when it came or went, sealed under DATA_DIR/checkpoint.key
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sterna_base::file::{read_if_there, write_durably};
use sterna_mover::checkpoint::{self, HostKey, Limits, Scratch, Shelf};
use sterna_mover::codec::Keeper;
use sterna_mover::hash::Key;
use sterna_mover::session::Shared;
use uuid::Uuid;

use super::{CHECKPOINTS, Error, KEY, PAGE_KEYS};

/// Of one guest, and of all. Packed pages are about two fifths of the memory in use.
const CHECKPOINT_MAX: u64 = 64 << 30;
const CHECKPOINTS_MAX: u64 = 128 << 30;

pub struct Vault {
    keys: PathBuf,
    shelf: Shelf,
}

impl Vault {
    pub fn open(data_dir: &Path, kept: Duration) -> Result<Self, Error> {
        let keys = data_dir.join(PAGE_KEYS);
        std::fs::create_dir_all(&keys).map_err(Error::io("make the folder of page keys"))?;
        let key = secret(&data_dir.join(KEY)).map_err(Error::io("the key of checkpoints"))?;
        let limits = Limits { bytes_each: CHECKPOINT_MAX, bytes: CHECKPOINTS_MAX, age: kept };
        let shelf = Shelf::open(&data_dir.join(CHECKPOINTS), HostKey(key), limits)?;
        Ok(Self { keys, shelf })
    }

    /// What the guest's pages are named under; drawn when it moves for the first time.
    pub fn page_key(&self, vm: Uuid) -> Result<Key, Error> {
        secret(&self.keys.join(vm.to_string())).map(Key).map_err(Error::io("the guest's page key"))
    }

    /// The key that the guest came with.
    pub fn keep_page_key(&self, vm: Uuid, key: &Key) -> Result<(), Error> {
        write_durably(&self.keys.join(vm.to_string()), &key.0, 0o600)
            .map_err(Error::io("the guest's page key"))
    }

    /// What is here of the guest's memory from its last move.
    pub fn checkpoint(&self, vm: Uuid) -> Option<Shared> {
        match self.shelf.newest(vm.into_bytes()) {
            Ok(found) => found.map(|found| Shared { id: found.id(), pages: Box::new(found) }),
            Err(error) => {
                tracing::warn!(%vm, %error, "no checkpoint can be read; the move takes longer");
                None
            }
        }
    }

    /// For contents of other guests, while one arrives.
    pub fn scratch(&self, key: &Key, pages_max: usize) -> Result<Scratch, checkpoint::Error> {
        self.shelf.scratch(key, pages_max)
    }

    /// Keeps what passes. Without room for it a move goes on all the same.
    pub fn keeper(&self, vm: Uuid) -> Option<Box<dyn Keeper>> {
        match self.shelf.begin(vm.into_bytes()) {
            Ok(writer) => Some(Box::new(writer)),
            Err(error) => {
                tracing::warn!(%vm, %error, "no checkpoint can be kept; a way back will take longer");
                None
            }
        }
    }
}

/// The 32 bytes in this file; drawn and written down where there are none.
fn secret(path: &Path) -> io::Result<[u8; 32]> {
    if let Some(bytes) = read_if_there(path)? {
        return bytes.try_into().map_err(|_| io::Error::other(format!("{} is damaged", path.display())));
    }
    let mut drawn = [0; 32];
    aws_lc_rs::rand::fill(&mut drawn).map_err(|_| io::Error::other("no randomness"))?;
    write_durably(path, &drawn, 0o600)?;
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_keeps_its_key_and_takes_the_one_that_it_comes_with() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Vault::open(folder.path(), Duration::from_secs(60)).unwrap();
        let (vm, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let key = open().page_key(vm).unwrap();
        assert_eq!(open().page_key(vm).unwrap(), key);
        assert_ne!(open().page_key(other).unwrap(), key);
        open().keep_page_key(vm, &Key([7; 32])).unwrap();
        assert_eq!(open().page_key(vm).unwrap(), Key([7; 32]));
    }

    #[test]
    fn a_damaged_key_is_an_error_and_not_a_new_key() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path(), Duration::from_secs(60)).unwrap();
        let vm = Uuid::from_u128(1);
        std::fs::write(folder.path().join("page-keys").join(vm.to_string()), b"short").unwrap();
        assert!(vault.page_key(vm).is_err());
    }
}
