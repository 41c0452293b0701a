//! Numbered, length-prefixed, checked frames.
//!
//! ```text
//! be32 payload length | u8 kind | 3 zero bytes | be64 number | 8 bytes of BLAKE3 over all this and the payload | payload
//! ```
//!
//! TLS covers the frames on the wire already; the check makes a frame safe on its own, and any mistake between two TLS
//! ends visible. Kinds below 0x10 belong to a connection and carry no number; the others are numbered within their
//! lane, delivered once and in order, whatever connection brought them.

/// What came out of order, and what is next.
pub mod inbox;
/// What was not acknowledged yet.
pub mod outbox;

use bytes::{Buf, Bytes, BytesMut};

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 24;
/// A batch of 256 KiB that did not shrink fits with room; a peer cannot make us reserve more for one frame.
pub const PAYLOAD_MAX: usize = 1 << 20;
const CHECKED_BYTES: usize = 16;

/// What a frame is for. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The first frame of a connection: to which session it belongs.
    Hello = 0x01,
    /// The answer to it.
    Welcome = 0x02,
    /// The answer to one that is not expected.
    Refused = 0x03,
    Ack = 0x04,
    Ping = 0x05,
    Pong = 0x06,
    /// The sender has nothing more to say, and everything was acknowledged.
    Bye = 0x07,
    /// A batch of tokens.
    Batch = 0x10,
    /// The last batch of a stream with the whole stream's hash: the source lets go.
    Grant = 0x11,
    /// Between the two sessions, on the urgent lane.
    Message = 0x12,
    /// Four kinds for volumes: a manifest, chunks, a journal's epoch, the barrier at the switchover.
    VolumeManifest = 0x20,
    VolumeChunks = 0x21,
    VolumeEpoch = 0x22,
    VolumeBarrier = 0x23,
    /// Nothing but bytes, to see how fast they go.
    Probe = 0x30,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::Hello,
        Self::Welcome,
        Self::Refused,
        Self::Ack,
        Self::Ping,
        Self::Pong,
        Self::Bye,
        Self::Batch,
        Self::Grant,
        Self::Message,
        Self::VolumeManifest,
        Self::VolumeChunks,
        Self::VolumeEpoch,
        Self::VolumeBarrier,
        Self::Probe,
    ];

    fn parse(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Its lane, if it is numbered.
    #[must_use]
    pub fn lane(self) -> Option<Lane> {
        match self {
            Self::Hello | Self::Welcome | Self::Refused | Self::Ack | Self::Ping | Self::Pong | Self::Bye => {
                None
            }
            Self::Message => Some(Lane::Urgent),
            Self::Batch
            | Self::Grant
            | Self::VolumeManifest
            | Self::VolumeChunks
            | Self::VolumeEpoch
            | Self::VolumeBarrier
            | Self::Probe => Some(Lane::Data),
        }
    }
}

/// Two number spaces: what is urgent never waits behind what is large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    Urgent,
    Data,
}

impl Lane {
    pub const ALL: [Self; 2] = [Self::Urgent, Self::Data];

    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    /// From 1 within its lane; 0 for kinds without a lane.
    pub number: u64,
    pub payload: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a frame of {length} bytes; at most {PAYLOAD_MAX} are taken")]
    TooLong { length: usize },
    #[error("a frame of unknown kind {kind:#04x}")]
    UnknownKind { kind: u8 },
    #[error("frame {number} of kind {kind:?} may not have that number")]
    Number { kind: Kind, number: u64 },
    #[error("frame {number} is damaged")]
    Damaged { number: u64 },
}

impl Frame {
    /// A frame of a connection itself.
    #[must_use]
    pub fn unnumbered(kind: Kind, payload: Bytes) -> Self {
        Self { kind, number: 0, payload }
    }

    /// Bytes on the wire.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// The bytes before the payload.
    ///
    /// # Panics
    /// If the payload is longer than [`PAYLOAD_MAX`]: senders cut before.
    #[must_use]
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        assert!(self.payload.len() <= PAYLOAD_MAX, "a frame of {} bytes", self.payload.len());
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&(self.payload.len() as u32).to_be_bytes());
        header[4] = self.kind as u8;
        header[8..16].copy_from_slice(&self.number.to_be_bytes());
        let check = check(&header[..CHECKED_BYTES], &self.payload);
        header[CHECKED_BYTES..].copy_from_slice(&check);
        header
    }
}

fn check(header: &[u8], payload: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header).update(payload);
    let mut short = [0; 8];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    short
}

/// Takes frames out of bytes as they come. An error is final for the connection they came from.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Where to read into. It grows with what came, never by what a header announces.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame, if it is there.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>().copied() else { return Ok(None) };
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if length > PAYLOAD_MAX {
            return Err(Error::TooLong { length });
        }
        let kind = Kind::parse(header[4]).ok_or(Error::UnknownKind { kind: header[4] })?;
        let number = be64(&header[8..16]);
        if kind.lane().is_some() != (number > 0) || number == u64::MAX {
            return Err(Error::Number { kind, number });
        }
        if self.buffer.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        let payload = self.buffer.split_to(length).freeze();
        if check(&header[..CHECKED_BYTES], &payload) != header[CHECKED_BYTES..] {
            return Err(Error::Damaged { number });
        }
        Ok(Some(Frame { kind, number, payload }))
    }
}

/// The first eight bytes as a number; missing ones count as zero.
fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(frame: &Frame) -> Vec<u8> {
        [&frame.header()[..], &frame.payload].concat()
    }

    fn decode(bytes: &[u8]) -> Result<Vec<Frame>, Error> {
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn batch(number: u64, payload: &'static [u8]) -> Frame {
        Frame { kind: Kind::Batch, number, payload: Bytes::from_static(payload) }
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_were_cut() {
        let frames = [batch(1, b"one"), Frame::unnumbered(Kind::Ping, Bytes::new()), batch(2, b"")];
        let bytes: Vec<u8> = frames.iter().flat_map(bytes_of).collect();
        for cut in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for part in bytes.chunks(cut) {
                decoder.buffer().extend_from_slice(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, frames, "cut every {cut} bytes");
        }
    }

    #[test]
    fn no_single_changed_bit_goes_unnoticed() {
        let frame = batch(3, b"some payload");
        let good = bytes_of(&frame);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // A longer length waits for more bytes: what it then gets does not fit its check.
            bad.resize(bad.len() + PAYLOAD_MAX, 0);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_length_from_a_stranger_reserves_nothing() {
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(&[0xff; HEADER_BYTES]);
        assert_eq!(decoder.next_frame(), Err(Error::TooLong { length: u32::MAX as usize }));
        assert!(decoder.buffer().capacity() < 4096);
    }

    #[test]
    fn only_kinds_with_a_lane_are_numbered() {
        for kind in Kind::ALL {
            let number = u64::from(kind.lane().is_none());
            let frame = Frame { kind, number, payload: Bytes::new() };
            assert_eq!(decode(&bytes_of(&frame)), Err(Error::Number { kind, number }));
        }
    }
}
