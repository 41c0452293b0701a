//! Records inside a memory section: `be64 address | flags`, then what the flags say.

use super::{Record, be16, be64};
use crate::hash::PAGE_BYTES;

const ZERO: u64 = 0x02;
const MEM_SIZE: u64 = 0x04;
const PAGE: u64 = 0x08;
const EOS: u64 = 0x10;
const CONTINUE: u64 = 0x20;
const XBZRLE: u64 = 0x40;
const MULTIFD_FLUSH: u64 = 0x200;
const FLAGS: u64 = PAGE_BYTES as u64 - 1;

pub(super) enum Read {
    More,
    Record(Record),
    /// Understood, and of no use.
    Other(usize),
    /// Blocks of this many bytes together follow.
    Sizes(u64),
    End,
    Unknown,
}

/// The header of a page or zero record, as QEMU writes it.
pub(crate) fn header(address: u64, is_zero: bool, is_named: bool) -> [u8; 8] {
    let kind = if is_zero { ZERO } else { PAGE };
    let same_block = if is_named { 0 } else { CONTINUE };
    (address | kind | same_block).to_be_bytes()
}

/// Whether a memory section may begin with this header.
pub(super) fn is_legal(header: u64) -> bool {
    matches!(header & FLAGS & !CONTINUE, ZERO | PAGE | XBZRLE)
        || matches!(header & FLAGS, EOS | MULTIFD_FLUSH)
}

pub(super) fn read(bytes: &[u8]) -> Read {
    let Some(header) = be64(bytes, 0) else { return Read::More };
    match header & FLAGS {
        EOS => return Read::End,
        MULTIFD_FLUSH => return Read::Other(8),
        MEM_SIZE => return Read::Sizes(header & !FLAGS),
        flags if !matches!(flags & !CONTINUE, ZERO | PAGE | XBZRLE) => return Read::Unknown,
        _ => {}
    }
    let Some(length) = length(bytes) else { return Read::More };
    if bytes.len() < length {
        return Read::More;
    }
    let is_zero = header & ZERO != 0;
    if header & XBZRLE != 0 || is_zero && bytes[length - 1] != 0 {
        return Read::Other(length);
    }
    let name = (header & CONTINUE == 0).then(|| bytes[8]);
    Read::Record(Record { is_zero, address: header & !FLAGS, name, length })
}

/// Of the whole record, once its header tells.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let header = be64(bytes, 0)?;
    let name = if header & CONTINUE == 0 { 1 + usize::from(*bytes.get(8)?) } else { 0 };
    let body = match header & FLAGS & !CONTINUE {
        ZERO => 1,
        PAGE => PAGE_BYTES,
        XBZRLE => 3 + usize::from(be16(bytes, 8 + name + 1)?),
        _ => return None,
    };
    Some(8 + name + body)
}
