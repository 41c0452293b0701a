//! Pieces of a file under a key of its own.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::{Error, HostKey};

pub(super) const TAG_BYTES: usize = 16;
/// Numbers of pieces are below; the foot has this one, so that it is found without counting.
pub(super) const FOOT: u64 = u64::MAX;

pub(super) struct Seal(LessSafeKey);

impl Seal {
    /// Salts are random and 32 bytes long: no two files share a key, so piece numbers may start anew in each.
    pub(super) fn new(host: &HostKey, salt: &[u8; 32]) -> Result<Self, Error> {
        let mut material = blake3::Hasher::new_derive_key("sterna mover checkpoint 1");
        material.update(&host.0).update(salt);
        let key =
            UnboundKey::new(&AES_256_GCM, material.finalize().as_bytes()).map_err(|_| Error::Damaged)?;
        Ok(Self(LessSafeKey::new(key)))
    }

    pub(super) fn seal(&self, piece: u64, mut plain: Vec<u8>) -> Result<Vec<u8>, Error> {
        let sealed = self.0.seal_in_place_append_tag(nonce(piece), Aad::empty(), &mut plain);
        sealed.map(|()| plain).map_err(|_| Error::TooLarge)
    }

    pub(super) fn open(&self, piece: u64, mut sealed: Vec<u8>) -> Result<Vec<u8>, Error> {
        let length =
            self.0.open_in_place(nonce(piece), Aad::empty(), &mut sealed).map_err(|_| Error::Damaged)?.len();
        sealed.truncate(length);
        Ok(sealed)
    }
}

fn nonce(piece: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&piece.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
