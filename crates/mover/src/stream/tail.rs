//! Where the device state ends: the bytes without which a target cannot say that it has everything.
//!
//! Device state has no lengths, so its end cannot be found by parsing. But a precopy stream ends with `0x00`, then
//! `0x06 be32 n` and n bytes of JSON text, and QEMU writes nothing after them while it waits for the target's word.
//! A run of bytes of that shape which ends exactly where the stream stands is the tail ([`Tail::is_certain`]); one
//! more byte proves it was not. Streams without that text fall back on the rule that is always safe: the newest byte
//! is never let go before another one came. Either way the target lacks at least one byte, and a QEMU that lacks one
//! byte does not report success.

use super::be32;

/// `0x00 0x06 be32 n '{'`
const START_BYTES: usize = 7;
/// Machines with hundreds of devices describe themselves in less than a tenth of this.
const TEXT_MAX: u32 = 16 << 20;

/// What must be held of the bytes at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// The first byte that must not go.
    pub start: usize,
    /// The whole end of the stream is there, and begins at `start`.
    pub is_certain: bool,
}

/// Finds what to hold of the newest, not yet sent bytes of a stream.
#[must_use]
pub fn find(bytes: &[u8]) -> Tail {
    let mut from = 0;
    while let Some(found) = bytes[from..].iter().position(|byte| *byte == 0) {
        let start = from + found;
        match shape(&bytes[start..]) {
            Shape::Whole => return Tail { start, is_certain: true },
            Shape::Partly => return Tail { start, is_certain: false },
            Shape::Other => from = start + 1,
        }
    }
    Tail { start: bytes.len().saturating_sub(1), is_certain: false }
}

enum Shape {
    Whole,
    Partly,
    Other,
}

fn shape(bytes: &[u8]) -> Shape {
    let is_start =
        bytes.get(1).is_none_or(|kind| *kind == 0x06) && bytes.get(6).is_none_or(|text| *text == b'{');
    if !is_start {
        return Shape::Other;
    }
    let Some(length) = be32(bytes, 2) else { return Shape::Partly };
    if !(2..=TEXT_MAX).contains(&length) {
        return Shape::Other;
    }
    let end = 6 + length as usize;
    let text = &bytes[START_BYTES.min(bytes.len())..];
    if bytes.len() > end || !text.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t')) {
        return Shape::Other;
    }
    match bytes.len() == end {
        true if bytes.ends_with(b"}") => Shape::Whole,
        true => Shape::Other,
        false => Shape::Partly,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(devices: &[u8], text: &[u8]) -> Vec<u8> {
        [devices, &[0x00, 0x06], &(text.len() as u32).to_be_bytes(), text].concat()
    }

    #[test]
    fn the_end_is_held_from_its_first_byte_however_much_of_it_came() {
        let stream = ended(&[1, 0, 6, 0, 9, 0, 0, 7], b"{\"devices\": []}");
        for length in 9..stream.len() {
            assert_eq!(find(&stream[..length]), Tail { start: 8, is_certain: false }, "{length} bytes");
        }
        assert_eq!(find(&stream), Tail { start: 8, is_certain: true });
    }

    #[test]
    fn one_more_byte_shows_that_it_was_not_the_end() {
        let mut stream = ended(&[1], b"{}");
        stream.push(4);
        assert_eq!(find(&stream), Tail { start: stream.len() - 1, is_certain: false });
    }

    #[test]
    fn a_text_that_is_none_is_not_waited_for() {
        let stream = ended(&[1], b"{\x01\x02}");
        assert_eq!(find(&stream[..9]).start, 8);
    }

    #[test]
    fn without_a_text_the_newest_byte_is_held() {
        assert_eq!(find(&[5, 5, 5]), Tail { start: 2, is_certain: false });
        assert_eq!(find(&[]), Tail { start: 0, is_certain: false });
    }
}
