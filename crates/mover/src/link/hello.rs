//! The first frame of a connection in either direction: whose it is, and what arrived so far.

use bytes::Bytes;

use super::{Refusal, SessionId};
use crate::frame::Lane;

pub(super) const VERSION: u8 = 1;
/// Beyond the urgent connection; a peer cannot make us keep more.
pub(super) const STREAMS_MAX: u8 = 63;
const BYTES: usize = 2 + 16 + 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) session: SessionId,
    pub(super) connection: u8,
    /// Last number taken, by lane: what was sent up to it need not go again.
    pub(super) delivered: [u64; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("the first frame makes no sense")]
    Malformed,
    #[error("version {0} is not spoken here")]
    Version(u8),
}

impl Hello {
    pub(super) fn payload(&self) -> Bytes {
        let mut bytes = vec![VERSION, self.connection];
        bytes.extend(self.session.0);
        self.delivered.iter().for_each(|number| bytes.extend(number.to_be_bytes()));
        Bytes::from(bytes)
    }

    pub(super) fn parse(payload: &[u8]) -> Result<Self, Error> {
        match payload.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(Error::Version(other)),
            None => return Err(Error::Malformed),
        }
        let bytes: &[u8; BYTES] = payload.try_into().map_err(|_| Error::Malformed)?;
        if bytes[1] > STREAMS_MAX {
            return Err(Error::Malformed);
        }
        let mut session = [0; 16];
        session.copy_from_slice(&bytes[2..18]);
        let delivered = [number(&bytes[18..26]), number(&bytes[26..34])];
        Ok(Self { session: SessionId(session), connection: bytes[1], delivered })
    }
}

pub(super) fn ack(lane: Lane, delivered: u64) -> Bytes {
    let mut bytes = vec![lane.index() as u8];
    bytes.extend(delivered.to_be_bytes());
    Bytes::from(bytes)
}

pub(super) fn parse_ack(payload: &[u8]) -> Option<(Lane, u64)> {
    let (lane, delivered) = payload.split_first()?;
    let lane = *Lane::ALL.get(usize::from(*lane))?;
    (delivered.len() == 8).then(|| (lane, number(delivered)))
}

pub(super) fn parse_refusal(payload: &[u8]) -> Refusal {
    match payload.first() {
        Some(2) => Refusal::OtherPeer,
        Some(3) => Refusal::Version,
        _ => Refusal::UnknownSession,
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_comes_back_and_a_wrong_one_is_told_from_a_newer_one() {
        let hello = Hello { session: SessionId([7; 16]), connection: 3, delivered: [9, 1 << 40] };
        let payload = hello.payload();
        assert_eq!(Hello::parse(&payload), Ok(hello));
        assert_eq!(Hello::parse(&payload[..20]), Err(Error::Malformed));
        assert_eq!(Hello::parse(&[2, 0]), Err(Error::Version(2)));
        let many = Hello { connection: STREAMS_MAX + 1, ..hello };
        assert_eq!(Hello::parse(&many.payload()), Err(Error::Malformed));
    }

    #[test]
    fn an_acknowledgement_names_its_lane() {
        assert_eq!(parse_ack(&ack(Lane::Data, 77)), Some((Lane::Data, 77)));
        assert_eq!(parse_ack(&[2, 0, 0, 0, 0, 0, 0, 0, 1]), None);
        assert_eq!(parse_ack(&[0, 1]), None);
    }
}
