//! What the two sessions say to each other on the urgent lane, and the grant.

use bytes::Bytes;

use super::End;
use crate::checkpoint::CheckpointId;
use crate::codec::Settings;
use crate::hash::{Key, PageHash, StreamHash};

/// Names in one offer: half a frame.
pub(super) const OFFER_MAX: usize = 32 << 10;
/// Of a reason, in bytes.
const REASON_MAX: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// First from the source. What is said here is under TLS, the key as well.
    Open {
        key: Key,
        store_bytes: u64,
        pages_max: u64,
        checkpoint: Option<CheckpointId>,
    },
    /// Contents that the target has, before it accepts.
    Offer(Vec<PageHash>),
    /// The target is ready; with the checkpoint that was named, or without.
    Accept {
        has_checkpoint: bool,
    },
    /// From QEMU to QEMU.
    ReturnPath(Bytes),
    /// What the target QEMU's last word was; 0 is success.
    Loaded {
        code: u32,
    },
    Committed,
    Abort {
        reason: String,
    },
}

impl Message {
    pub(super) fn open(settings: &Settings, checkpoint: Option<CheckpointId>) -> Self {
        Self::Open {
            key: settings.key.clone(),
            store_bytes: settings.store_bytes,
            pages_max: settings.pages_max,
            checkpoint,
        }
    }

    pub(super) fn payload(&self) -> Bytes {
        let mut bytes = Vec::new();
        match self {
            Self::Open { key, store_bytes, pages_max, checkpoint } => {
                bytes.push(1);
                bytes.extend(key.0);
                bytes.extend(store_bytes.to_be_bytes());
                bytes.extend(pages_max.to_be_bytes());
                checkpoint.iter().for_each(|id| bytes.extend(id.0));
            }
            Self::Offer(hashes) => {
                bytes.push(2);
                hashes.iter().for_each(|hash| bytes.extend(hash.0));
            }
            Self::Accept { has_checkpoint } => bytes.extend([3, u8::from(*has_checkpoint)]),
            Self::ReturnPath(path) => {
                bytes.push(4);
                bytes.extend(path);
            }
            Self::Loaded { code } => {
                bytes.push(5);
                bytes.extend(code.to_be_bytes());
            }
            Self::Committed => bytes.push(6),
            Self::Abort { reason } => {
                bytes.push(7);
                bytes.extend(reason.bytes().take(REASON_MAX));
            }
        }
        Bytes::from(bytes)
    }

    pub(super) fn parse(payload: &Bytes) -> Option<Self> {
        let (kind, body) = payload.split_first()?;
        Some(match kind {
            1 => {
                let (key, rest) = body.split_first_chunk()?;
                let (store_bytes, rest) = rest.split_first_chunk()?;
                let (pages_max, rest) = rest.split_first_chunk()?;
                let checkpoint = match rest.len() {
                    0 => None,
                    _ => Some(CheckpointId(rest.try_into().ok()?)),
                };
                Self::Open {
                    key: Key(*key),
                    store_bytes: u64::from_be_bytes(*store_bytes),
                    pages_max: u64::from_be_bytes(*pages_max),
                    checkpoint,
                }
            }
            2 => {
                let (hashes, rest) = body.as_chunks();
                if !rest.is_empty() || hashes.len() > OFFER_MAX {
                    return None;
                }
                Self::Offer(hashes.iter().map(|hash| PageHash(*hash)).collect())
            }
            3 => match body {
                [has @ (0 | 1)] => Self::Accept { has_checkpoint: *has == 1 },
                _ => return None,
            },
            4 => Self::ReturnPath(payload.slice(1..)),
            5 => Self::Loaded { code: u32::from_be_bytes(body.try_into().ok()?) },
            6 if body.is_empty() => Self::Committed,
            7 => Self::Abort { reason: String::from_utf8_lossy(body).chars().take(REASON_MAX).collect() },
            _ => return None,
        })
    }
}

/// The last batch and what all batches together must be.
pub(super) fn grant(end: End, batch: &[u8]) -> Bytes {
    Bytes::from([&end.hash.0[..], &end.length.to_be_bytes(), batch].concat())
}

pub(super) fn parse_grant(payload: &[u8]) -> Option<(End, &[u8])> {
    let (hash, rest) = payload.split_first_chunk()?;
    let (length, batch) = rest.split_first_chunk()?;
    Some((End { hash: StreamHash(*hash), length: u64::from_be_bytes(*length) }, batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back_and_a_cut_one_does_not_pass_for_it() {
        let messages = [
            Message::Open {
                key: Key([9; 32]),
                store_bytes: 1 << 30,
                pages_max: 7,
                checkpoint: Some(CheckpointId([5; 32])),
            },
            Message::Open { key: Key([0; 32]), store_bytes: 0, pages_max: 0, checkpoint: None },
            Message::Offer(vec![PageHash([1; 16]), PageHash([2; 16])]),
            Message::Accept { has_checkpoint: true },
            Message::ReturnPath(Bytes::from_static(b"path")),
            Message::Loaded { code: 3 },
            Message::Committed,
            Message::Abort { reason: "no room".into() },
        ];
        for message in messages {
            let payload = message.payload();
            assert_eq!(Message::parse(&payload), Some(message.clone()));
            assert_ne!(Message::parse(&payload.slice(..payload.len() - 1)), Some(message));
        }
    }
}
