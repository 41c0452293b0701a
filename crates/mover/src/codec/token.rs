//! The tokens of a batch: short operations first, then the bytes they speak of.
//!
//! ```text
//! batch := varint length of operations, operations, data
//! op    := u8 kind | NAMED | JUMP | RUN,
//!          [NAMED: u8 n, n bytes of a block's name], [JUMP: zigzag varint from the expected page], [RUN: varint]
//!          RAW: varint n (n bytes of data) | REFERENCE: 16 bytes of data | DELTA: varint n | LITERAL: a page of data
//! ```
//!
//! Without JUMP a page is the one behind the last; RUN says how many more follow it, each without a name.

use super::Error;

pub(super) const NAMED: u8 = 0x10;
pub(super) const JUMP: u8 = 0x20;
pub(super) const RUN: u8 = 0x40;
const KIND: u8 = 0x0f;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Raw = 0,
    Zero = 1,
    Same = 2,
    Reference = 3,
    Delta = 4,
    Literal = 5,
}

impl Kind {
    pub(super) fn parse(byte: u8) -> Result<Self, Error> {
        Ok(match byte & KIND {
            0 => Self::Raw,
            1 => Self::Zero,
            2 => Self::Same,
            3 => Self::Reference,
            4 => Self::Delta,
            5 => Self::Literal,
            _ => return Err(Error::Malformed("unknown operation")),
        })
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small numbers of either sign into small numbers.
pub(super) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads from the front of bytes that a stranger wrote.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::Malformed("a number is too long"))
    }

    /// A number that counts bytes of this very batch.
    pub(super) fn length(&mut self) -> Result<usize, Error> {
        usize::try_from(self.varint()?).map_err(|_| Error::Malformed("a length is too large"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_length_come_back() {
        for value in [0, 1, 127, 128, 300, 1 << 35, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(Reader(&bytes).varint().unwrap(), value);
            assert!(Reader(&bytes[..bytes.len() - 1]).varint().is_err());
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }
}
