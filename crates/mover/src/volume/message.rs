//! What the two sides say to each other: short messages on the urgent lane, everything else in frames of its kind.

use bytes::Bytes;

use super::chunk::{CHUNK_BYTES, ChunkHash, Digest, Place};
use super::{Error, VOLUMES_MAX};

const VERSION: u8 = 1;
/// Chunks in one manifest; the target reads so many at once.
pub(super) const OFFER_MAX: usize = 256;
/// Records are packed together up to about so many bytes.
pub(super) const BATCH_BYTES: usize = 192 << 10;
/// A target takes no more than these for one batch, whatever its header says.
const BATCH_BYTES_MAX: usize = 512 << 10;
/// Of a reason, in bytes.
const REASON_MAX: usize = 1024;
const OFFER_BYTES: usize = 2 + 8 + 16;

/// The kind of trouble that made a side give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Why {
    /// Its caller wanted so.
    Aborted = 1,
    /// A disk, a socket or a journal of its own failed.
    Local = 2,
    /// The two sides do not fit together, or understand each other wrongly.
    Protocol = 3,
}

impl Why {
    pub(super) fn of(error: &Error) -> Self {
        match error {
            Error::Size { .. }
            | Error::Count(_)
            | Error::Room { .. }
            | Error::Socket { .. }
            | Error::Journal(_)
            | Error::Content { .. }
            | Error::Disk { .. }
            | Error::Pack(_) => Self::Local,
            Error::TooSmall { .. }
            | Error::Unlike
            | Error::Unpack(_)
            | Error::Malformed(_)
            | Error::Differs
            | Error::OutOfPlace
            | Error::Peer { .. }
            | Error::Link(_) => Self::Protocol,
        }
    }

    fn parse(byte: u8) -> Option<Self> {
        [Self::Aborted, Self::Local, Self::Protocol].into_iter().find(|why| *why as u8 == byte)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// First from the source: the sizes of its volumes. The key does not travel; a wrong one makes nothing equal.
    Open {
        volumes: Vec<u64>,
    },
    /// The target has them all.
    Accept,
    /// To the oldest manifest without an answer: which of its chunks are where they belong.
    Answer {
        had: Vec<bool>,
    },
    /// All up to this epoch is written.
    Applied {
        epoch: u64,
    },
    /// The answer to a barrier: everything is on the target's disks.
    Flushed {
        barrier: u64,
        digest: Digest,
    },
    Abort {
        why: Why,
        reason: String,
    },
}

impl Message {
    pub(super) fn payload(&self) -> Bytes {
        let mut bytes = Vec::new();
        match self {
            Self::Open { volumes } => {
                bytes.extend([1, VERSION]);
                volumes.iter().for_each(|size| bytes.extend(size.to_be_bytes()));
            }
            Self::Accept => bytes.push(2),
            Self::Answer { had } => {
                bytes.push(3);
                bytes.extend((had.len() as u16).to_be_bytes());
                bytes.extend(had.chunks(8).map(|bits| {
                    bits.iter().enumerate().fold(0, |byte, (at, had)| byte | u8::from(*had) << at)
                }));
            }
            Self::Applied { epoch } => {
                bytes.push(4);
                bytes.extend(epoch.to_be_bytes());
            }
            Self::Flushed { barrier, digest } => {
                bytes.push(5);
                bytes.extend(barrier.to_be_bytes());
                bytes.extend(digest.0);
            }
            Self::Abort { why, reason } => {
                bytes.extend([6, *why as u8]);
                bytes.extend(reason.bytes().take(REASON_MAX));
            }
        }
        Bytes::from(bytes)
    }

    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let (kind, body) = payload.split_first()?;
        Some(match kind {
            1 => {
                let (sizes, rest) = body.strip_prefix(&[VERSION])?.as_chunks();
                if !rest.is_empty() || sizes.len() > VOLUMES_MAX {
                    return None;
                }
                Self::Open { volumes: sizes.iter().map(|size| u64::from_be_bytes(*size)).collect() }
            }
            2 if body.is_empty() => Self::Accept,
            3 => {
                let (count, bits) = body.split_first_chunk()?;
                let count = usize::from(u16::from_be_bytes(*count));
                if count > OFFER_MAX || bits.len() != count.div_ceil(8) {
                    return None;
                }
                Self::Answer { had: (0..count).map(|at| bits[at / 8] >> (at % 8) & 1 == 1).collect() }
            }
            4 => Self::Applied { epoch: u64::from_be_bytes(body.try_into().ok()?) },
            5 => {
                let (barrier, digest) = parse_barrier(body)?;
                Self::Flushed { barrier, digest }
            }
            6 => {
                let (why, reason) = body.split_first()?;
                let reason = String::from_utf8_lossy(reason).chars().take(REASON_MAX).collect();
                Self::Abort { why: Why::parse(*why)?, reason }
            }
            _ => return None,
        })
    }
}

/// Names of chunks that follow.
pub(super) fn manifest(offers: &[(Place, ChunkHash)]) -> Bytes {
    let mut bytes = Vec::with_capacity(offers.len() * OFFER_BYTES);
    for (place, hash) in offers {
        bytes.extend(place.volume.to_be_bytes());
        bytes.extend(place.chunk.to_be_bytes());
        bytes.extend(hash.0);
    }
    Bytes::from(bytes)
}

pub(super) fn parse_manifest(payload: &[u8]) -> Option<Vec<(Place, ChunkHash)>> {
    let (offers, rest) = payload.as_chunks::<OFFER_BYTES>();
    if !rest.is_empty() || offers.is_empty() || offers.len() > OFFER_MAX {
        return None;
    }
    let parse = |offer: &[u8; OFFER_BYTES]| {
        let (volume, rest) = offer.split_first_chunk()?;
        let (chunk, rest) = rest.split_first_chunk()?;
        let place = Place { volume: u16::from_be_bytes(*volume), chunk: u64::from_be_bytes(*chunk) };
        Some((place, ChunkHash(*rest.first_chunk()?)))
    };
    offers.iter().map(parse).collect()
}

pub(super) fn epoch(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub(super) fn parse_epoch(payload: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(payload.try_into().ok()?))
}

pub(super) fn barrier(number: u64, digest: Digest) -> Bytes {
    Bytes::from([&number.to_be_bytes()[..], &digest.0].concat())
}

pub(super) fn parse_barrier(payload: &[u8]) -> Option<(u64, Digest)> {
    let (number, digest) = payload.split_first_chunk()?;
    Some((u64::from_be_bytes(*number), Digest(digest.try_into().ok()?)))
}

/// A batch before zstd: its length goes in front of what zstd makes of it.
pub(super) fn batch(plain_length: usize, packed: &[u8]) -> Bytes {
    Bytes::from([&(plain_length as u32).to_be_bytes()[..], packed].concat())
}

/// The length that a batch says it has, and what zstd made of it.
pub(super) fn parse_batch(payload: &[u8]) -> Option<(usize, &[u8])> {
    let (length, packed) = payload.split_first_chunk()?;
    let length = u32::from_be_bytes(*length) as usize;
    (length <= BATCH_BYTES_MAX).then_some((length, packed))
}

/// A piece of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Data { volume: u16, offset: u64, data: Bytes },
    Zero { volume: u16, offset: u64, length: u64 },
}

impl Record {
    /// The bytes before a data record's data.
    pub(super) fn data_header(volume: u16, offset: u64, length: usize) -> [u8; 15] {
        let mut bytes = [1; 15];
        bytes[1..3].copy_from_slice(&volume.to_be_bytes());
        bytes[3..11].copy_from_slice(&offset.to_be_bytes());
        bytes[11..].copy_from_slice(&(length as u32).to_be_bytes());
        bytes
    }

    pub(super) fn zero(volume: u16, offset: u64, length: u64) -> [u8; 19] {
        let mut bytes = [2; 19];
        bytes[1..3].copy_from_slice(&volume.to_be_bytes());
        bytes[3..11].copy_from_slice(&offset.to_be_bytes());
        bytes[11..].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    /// Takes a batch apart without copying it.
    pub(super) fn parse_all(plain: &Bytes) -> Option<Vec<Self>> {
        let (mut records, mut at) = (Vec::new(), 0);
        while at < plain.len() {
            let (record, length) = Self::parse(plain, at)?;
            records.push(record);
            at += length;
        }
        Some(records)
    }

    fn parse(plain: &Bytes, at: usize) -> Option<(Self, usize)> {
        let (kind, rest) = plain[at..].split_first()?;
        let (volume, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (volume, offset) = (u16::from_be_bytes(*volume), u64::from_be_bytes(*offset));
        match kind {
            1 => {
                let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
                if length == 0 || length > CHUNK_BYTES || rest.len() - 4 < length {
                    return None;
                }
                let data = plain.slice(at + 15..at + 15 + length);
                Some((Self::Data { volume, offset, data }, 15 + length))
            }
            2 => {
                let length = u64::from_be_bytes(*rest.first_chunk()?);
                Some((Self::Zero { volume, offset, length }, 19))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_message_comes_back_and_a_cut_one_does_not_pass_for_it() {
        let messages = [
            Message::Open { volumes: vec![1 << 30, 512] },
            Message::Accept,
            Message::Answer { had: vec![true, false, true, true, false, false, false, false, true] },
            Message::Applied { epoch: 7 },
            Message::Flushed { barrier: 2, digest: Digest([4; 32]) },
            Message::Abort { why: Why::Local, reason: "no room".into() },
        ];
        for message in messages {
            let payload = message.payload();
            assert_eq!(Message::parse(&payload), Some(message.clone()));
            assert_ne!(Message::parse(&payload[..payload.len() - 1]), Some(message));
        }
    }

    #[test]
    fn frames_come_back_and_what_is_too_large_or_torn_does_not() {
        let offers = vec![(Place { volume: 3, chunk: 1 << 40 }, ChunkHash([6; 16])); 3];
        let payload = manifest(&offers);
        assert_eq!(parse_manifest(&payload), Some(offers.clone()));
        assert_eq!(parse_manifest(&payload[1..]), None);
        assert_eq!(parse_manifest(&manifest(&offers[..1].repeat(OFFER_MAX + 1))), None);
        assert_eq!(parse_barrier(&barrier(9, Digest([1; 32]))), Some((9, Digest([1; 32]))));
        assert_eq!(parse_epoch(&epoch(77)), Some(77));
        assert_eq!(parse_batch(&batch(5, b"abc")), Some((5, &b"abc"[..])));
        assert_eq!(parse_batch(&batch(BATCH_BYTES_MAX + 1, b"abc")), None);
    }

    #[test]
    fn records_come_back_one_after_the_other_and_torn_ones_are_refused() {
        let plain = Bytes::from(
            [&Record::data_header(1, 512, 3)[..], b"abc", &Record::zero(2, 1024, 1 << 40)].concat(),
        );
        let expected = [
            Record::Data { volume: 1, offset: 512, data: Bytes::from_static(b"abc") },
            Record::Zero { volume: 2, offset: 1024, length: 1 << 40 },
        ];
        assert_eq!(Record::parse_all(&plain).unwrap(), expected);
        for length in (1..plain.len()).filter(|length| *length != 18) {
            assert_eq!(Record::parse_all(&plain.slice(..length)), None, "cut to {length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic_or_give_more_than_there_is(
            bytes in proptest::collection::vec(prop_oneof![0..7_u8, any::<u8>()], 0..120),
        ) {
            let bytes = Bytes::from(bytes);
            let _ = (Message::parse(&bytes), parse_epoch(&bytes), parse_barrier(&bytes), parse_batch(&bytes));
            if let Some(offers) = parse_manifest(&bytes) {
                prop_assert_eq!(offers.len() * OFFER_BYTES, bytes.len());
            }
            let data: usize = Record::parse_all(&bytes).into_iter().flatten().map(|record| match record {
                Record::Data { data, .. } => data.len(),
                Record::Zero { .. } => 0,
            }).sum();
            prop_assert!(data <= bytes.len());
        }
    }
}
