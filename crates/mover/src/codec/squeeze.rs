//! zstd over batches with one window for the whole stream: a batch finds what earlier ones said.

use std::io;

use zstd::stream::raw::{CParameter, DParameter, InBuffer, Operation, OutBuffer};

/// 8 MiB: more finds little in guest memory and costs cache.
const WINDOW_LOG: u32 = 23;
const CHUNK: usize = 64 << 10;

pub(crate) struct Squeezer {
    level: i32,
    stream: zstd::stream::raw::Encoder<'static>,
}

impl Squeezer {
    pub(crate) fn new(level: i32) -> io::Result<Self> {
        Ok(Self { level, stream: stream(level)? })
    }

    /// Packs a batch, all of it. Another level begins with an empty window.
    pub(crate) fn pack(&mut self, plain: &[u8], level: i32) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(plain.len() / 2 + CHUNK);
        if level != self.level {
            drive(&mut out, |buffer| self.stream.finish(buffer, true))?;
            *self = Self::new(level)?;
        }
        let mut input = InBuffer::around(plain);
        while input.pos() < plain.len() {
            reserve(&mut out);
            let written = out.len();
            self.stream.run(&mut input, &mut OutBuffer::around_pos(&mut out, written))?;
        }
        drive(&mut out, |buffer| self.stream.flush(buffer))?;
        Ok(out)
    }
}

fn stream(level: i32) -> io::Result<zstd::stream::raw::Encoder<'static>> {
    let mut stream = zstd::stream::raw::Encoder::new(level)?;
    stream.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
    Ok(stream)
}

fn reserve(out: &mut Vec<u8>) {
    if out.capacity() - out.len() < CHUNK / 4 {
        out.reserve(CHUNK);
    }
}

/// Until zstd says that nothing remains.
fn drive(
    out: &mut Vec<u8>,
    mut step: impl FnMut(&mut OutBuffer<'_, Vec<u8>>) -> io::Result<usize>,
) -> io::Result<()> {
    loop {
        reserve(out);
        let written = out.len();
        if step(&mut OutBuffer::around_pos(out, written))? == 0 {
            return Ok(());
        }
    }
}

pub(crate) struct Expander {
    stream: zstd::stream::raw::Decoder<'static>,
}

impl Expander {
    pub(crate) fn new() -> io::Result<Self> {
        let mut stream = zstd::stream::raw::Decoder::new()?;
        stream.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Self { stream })
    }

    /// Unpacks a batch that says it has `length` bytes; never more than those.
    pub(crate) fn unpack(&mut self, packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let mut out: Vec<u8> = Vec::with_capacity(length + 1);
        let mut input = InBuffer::around(packed);
        loop {
            let (taken, written) = (input.pos(), out.len());
            self.stream.run(&mut input, &mut OutBuffer::around_pos(&mut out, written))?;
            if out.len() > length {
                return Err(io::Error::other("more than it says"));
            }
            let is_stuck = input.pos() == taken && out.len() == written;
            if is_stuck && input.pos() < packed.len() {
                return Err(io::Error::other("it does not go on"));
            }
            // All taken in and nothing more came out: whatever is left inside belongs to no batch.
            if is_stuck {
                break;
            }
        }
        if out.len() == length { Ok(out) } else { Err(io::Error::other("less than it says")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_back_over_changes_of_level_and_later_ones_find_earlier_ones() {
        let (mut squeezer, mut expander) = (Squeezer::new(1).unwrap(), Expander::new().unwrap());
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .take(200_000)
        .collect();
        let mut sizes = Vec::new();
        for (level, plain) in [(1, &noise[..]), (1, &noise), (3, b"x"), (3, b""), (-1, &noise)] {
            let packed = squeezer.pack(plain, level).unwrap();
            assert_eq!(expander.unpack(&packed, plain.len()).unwrap(), plain);
            sizes.push(packed.len());
        }
        assert!(sizes[1] < sizes[0] / 20, "{sizes:?}");
    }

    #[test]
    fn a_batch_of_another_length_than_it_says_is_an_error() {
        for length in [4, 6] {
            let packed = Squeezer::new(1).unwrap().pack(b"hello", 1).unwrap();
            assert!(Expander::new().unwrap().unpack(&packed, length).is_err());
        }
    }
}
