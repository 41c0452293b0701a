//! Frames of one lane as they arrive over several connections, put back into order.

use std::collections::BTreeMap;

use super::Frame;

/// More than any sender's window: a peer that sends this far ahead does not keep the rules.
pub const EARLY_BYTES_MAX: usize = 256 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "frame {number} came while {waited_for} was waited for, with {EARLY_BYTES_MAX} bytes before it already"
)]
pub struct TooEarly {
    pub number: u64,
    pub waited_for: u64,
}

#[derive(Debug, Default)]
pub struct Inbox {
    /// All up to this one came out.
    delivered: u64,
    early: BTreeMap<u64, Frame>,
    early_bytes: usize,
}

impl Inbox {
    /// Keeps a frame until its turn; one that came before is dropped.
    pub fn push(&mut self, frame: Frame) -> Result<(), TooEarly> {
        if frame.number <= self.delivered || self.early.contains_key(&frame.number) {
            return Ok(());
        }
        if self.early_bytes + frame.wire_bytes() > EARLY_BYTES_MAX {
            return Err(TooEarly { number: frame.number, waited_for: self.delivered + 1 });
        }
        self.early_bytes += frame.wire_bytes();
        self.early.insert(frame.number, frame);
        Ok(())
    }

    /// The next frame in order, if it is there. Taking it is what may be acknowledged.
    pub fn pop(&mut self) -> Option<Frame> {
        let frame = self.early.remove(&(self.delivered + 1))?;
        self.delivered += 1;
        self.early_bytes -= frame.wire_bytes();
        Some(frame)
    }

    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::frame::{Kind, PAYLOAD_MAX};

    fn frame(number: u64) -> Frame {
        Frame { kind: Kind::Batch, number, payload: Bytes::from(vec![number as u8]) }
    }

    #[test]
    fn every_order_of_arrival_comes_out_in_order_and_once() {
        for order in [[1, 2, 3, 3], [3, 2, 1, 1], [2, 2, 3, 1]] {
            let mut inbox = Inbox::default();
            let mut out = Vec::new();
            for number in order {
                inbox.push(frame(number)).unwrap();
                while let Some(frame) = inbox.pop() {
                    out.push(frame.number);
                }
            }
            assert_eq!(out, [1, 2, 3], "{order:?}");
            assert_eq!((inbox.delivered(), inbox.early_bytes), (3, 0));
        }
    }

    #[test]
    fn a_sender_far_ahead_is_refused() {
        let mut inbox = Inbox::default();
        let payload = Bytes::from(vec![0; PAYLOAD_MAX]);
        let far = |number| Frame { kind: Kind::Batch, number, payload: payload.clone() };
        let refused = (2..1000).find_map(|number| inbox.push(far(number)).err());
        assert_eq!(refused.map(|error| error.waited_for), Some(1));
    }
}
