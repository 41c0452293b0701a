//! A host's key, and what two hosts derive from theirs.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::{hkdf, hmac};
use serde::{Deserialize, Serialize};

use crate::core::id::HostId;

const KEY_LEN: usize = 32;

/// Keys of another protocol, or of another version of this one, are other keys.
const PURPOSE: &[u8] = b"sterna guard datagram 1";

/// The private key that makes a machine this host to its peers.
pub struct HostKey(PrivateKey);

/// The public half, as 64 hexadecimal digits in files and over the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PublicKey(pub [u8; KEY_LEN]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    #[error("a key has 64 hexadecimal digits")]
    Form,
    #[error("no key can be agreed with {0}: its public key is not one")]
    Peer(HostId),
    #[error("the cryptographic library cannot make a key")]
    Library,
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostKey(secret)")
    }
}

impl HostKey {
    pub fn generate() -> Result<Self, BadKey> {
        PrivateKey::generate(&X25519).map(Self).map_err(|_| BadKey::Library)
    }

    /// From the text that `to_text` gives; blanks around it do not matter.
    pub fn from_text(text: &str) -> Result<Self, BadKey> {
        let seed = bytes_of(text.trim()).ok_or(BadKey::Form)?;
        PrivateKey::from_private_key(&X25519, &seed).map(Self).map_err(|_| BadKey::Form)
    }

    /// For a file that only its owner reads.
    pub fn to_text(&self) -> Result<String, BadKey> {
        let seed: Curve25519SeedBin<'_> = self.0.as_be_bytes().map_err(|_| BadKey::Library)?;
        Ok(hex_of(seed.as_ref()))
    }

    pub fn public(&self) -> Result<PublicKey, BadKey> {
        let public = self.0.compute_public_key().map_err(|_| BadKey::Library)?;
        public.as_ref().try_into().map(PublicKey).map_err(|_| BadKey::Library)
    }

    /// The keys for what `me` sends to `peer`, and for what comes back.
    pub fn pair(
        &self,
        me: HostId,
        peer: HostId,
        public: PublicKey,
    ) -> Result<(hmac::Key, hmac::Key), BadKey> {
        let theirs = UnparsedPublicKey::new(&X25519, public.0);
        agree(&self.0, theirs, BadKey::Peer(peer), |secret| {
            let root = hkdf::Salt::new(hkdf::HKDF_SHA256, PURPOSE).extract(secret);
            Ok((direction(&root, me, peer)?, direction(&root, peer, me)?))
        })
    }
}

fn direction(root: &hkdf::Prk, from: HostId, to: HostId) -> Result<hmac::Key, BadKey> {
    let info: [&[u8]; 2] = [from.0.as_bytes(), to.0.as_bytes()];
    let key = root.expand(&info, hmac::HMAC_SHA256).map_err(|_| BadKey::Library)?;
    Ok(hmac::Key::from(key))
}

impl FromStr for PublicKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        bytes_of(text).map(Self).ok_or(BadKey::Form)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_of(&self.0))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = BadKey;

    fn try_from(text: String) -> Result<Self, BadKey> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(text: &str) -> Option<[u8; KEY_LEN]> {
    if text.len() != 2 * KEY_LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; KEY_LEN];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}
