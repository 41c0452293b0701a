//! The part of the NBD protocol that a mirror needs: fixed newstyle, simple replies.
//!
//! Source: the NBD project's `doc/proto.md`. All numbers are big-endian.

/// To the target QEMU's own export.
pub mod client;
/// For the source QEMU's mirror.
pub mod server;

#[cfg(test)]
mod fuzz;
mod negotiate;

pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
pub(super) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const REPLY_MAGIC: u32 = 0x6744_6698;

/// Both handshake flags, of server and client alike.
pub(super) const FIXED_NEWSTYLE: u16 = 1;
pub(super) const NO_ZEROES: u16 = 2;

pub(super) const OPTION_EXPORT_NAME: u32 = 1;
pub(super) const OPTION_ABORT: u32 = 2;
pub(super) const OPTION_LIST: u32 = 3;
pub(super) const OPTION_INFO: u32 = 6;
pub(super) const OPTION_GO: u32 = 7;

pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_SERVER: u32 = 2;
pub(super) const REPLY_INFO: u32 = 3;
pub(super) const REPLY_ERROR: u32 = 1 << 31;
pub(super) const ERROR_UNSUPPORTED: u32 = REPLY_ERROR | 1;
pub(super) const ERROR_INVALID: u32 = REPLY_ERROR | 3;
pub(super) const ERROR_UNKNOWN: u32 = REPLY_ERROR | 6;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const HAS_FLAGS: u16 = 1;
pub(super) const READ_ONLY: u16 = 1 << 1;
pub(super) const SEND_FLUSH: u16 = 1 << 2;
pub(super) const SEND_FUA: u16 = 1 << 3;
pub(super) const SEND_TRIM: u16 = 1 << 5;
pub(super) const SEND_WRITE_ZEROES: u16 = 1 << 6;

pub(super) const COMMAND_READ: u16 = 0;
pub(super) const COMMAND_WRITE: u16 = 1;
pub(super) const COMMAND_DISCONNECT: u16 = 2;
pub(super) const COMMAND_FLUSH: u16 = 3;
pub(super) const COMMAND_TRIM: u16 = 4;
pub(super) const COMMAND_WRITE_ZEROES: u16 = 6;

pub(super) const EIO: u32 = 5;
pub(super) const EINVAL: u32 = 22;
pub(super) const ENOSPC: u32 = 28;

/// What the specification asks every server to take, and what QEMU never goes beyond.
pub(super) const PAYLOAD_MAX: u32 = 32 << 20;

pub(super) const REQUEST_BYTES: usize = 28;
pub(super) const REPLY_BYTES: usize = 16;

/// What a client asks for; a write's data follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Request {
    pub(super) fn bytes(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// `None` without the magic: the two sides have lost each other.
    pub(super) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (command, rest) = rest.split_first_chunk()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        (u32::from_be_bytes(*magic) == REQUEST_MAGIC).then_some(Self {
            flags: u16::from_be_bytes(*flags),
            command: u16::from_be_bytes(*command),
            cookie: u64::from_be_bytes(*cookie),
            offset: u64::from_be_bytes(*offset),
            length: u32::from_be_bytes(*rest.first_chunk()?),
        })
    }
}

/// The answer to a request; 0 is success.
pub(super) fn reply(cookie: u64, error: u32) -> [u8; REPLY_BYTES] {
    let mut bytes = [0; REPLY_BYTES];
    bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// Cookie and error of an answer; `None` without the magic.
pub(super) fn parse_reply(bytes: &[u8; REPLY_BYTES]) -> Option<(u64, u32)> {
    let (magic, rest) = bytes.split_first_chunk()?;
    let (error, cookie) = rest.split_first_chunk()?;
    let cookie = u64::from_be_bytes(*cookie.first_chunk()?);
    (u32::from_be_bytes(*magic) == REPLY_MAGIC).then_some((cookie, u32::from_be_bytes(*error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_come_back_and_others_are_refused() {
        let request = Request { flags: 1, command: 6, cookie: 1 << 60, offset: 1 << 40, length: 9 };
        let mut bytes = request.bytes();
        assert_eq!(Request::parse(&bytes), Some(request));
        bytes[0] ^= 1;
        assert_eq!(Request::parse(&bytes), None);
        assert_eq!(parse_reply(&reply(1 << 60, EIO)), Some((1 << 60, EIO)));
        assert_eq!(parse_reply(&[0; REPLY_BYTES]), None);
    }
}
