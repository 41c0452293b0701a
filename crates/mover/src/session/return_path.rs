//! What the target QEMU says to the source QEMU: `be16 type, be16 n, n bytes`.
//!
//! One message ends a migration: SHUT. It is found wherever it is cut, and kept apart.

const SHUT: u16 = 1;
const RECV_BITMAP: u16 = 5;

#[derive(Debug, Default)]
pub(super) struct ReturnPath {
    buffer: Vec<u8>,
    /// Of a bitmap that follows its message: its length, its bytes and a mark.
    blob: Option<Blob>,
    shut: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Blob {
    Length,
    Bytes(u64),
}

impl ReturnPath {
    /// Takes bytes in; gives those that come before SHUT as far as they are whole messages.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.buffer.extend_from_slice(bytes);
        let mut passed = 0;
        while self.shut.is_none()
            && let Some(taken) = self.next(passed)
        {
            passed += taken;
        }
        self.buffer.drain(..passed).collect()
    }

    /// What SHUT said: 0 is success.
    pub(super) fn shut(&self) -> Option<u32> {
        self.shut
    }

    /// SHUT and what came behind it.
    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    fn next(&mut self, from: usize) -> Option<usize> {
        let bytes = &self.buffer[from..];
        match self.blob {
            Some(Blob::Length) => {
                let length = u64::from_be_bytes(*bytes.first_chunk()?);
                self.blob = Some(Blob::Bytes(length.saturating_add(8)));
                return Some(8);
            }
            Some(Blob::Bytes(left)) => {
                let taken = left.min(bytes.len() as u64);
                self.blob = (left > taken).then_some(Blob::Bytes(left - taken));
                return (taken > 0).then_some(taken as usize);
            }
            None => {}
        }
        let header: &[u8; 4] = bytes.first_chunk()?;
        let kind = u16::from_be_bytes([header[0], header[1]]);
        let length = 4 + usize::from(u16::from_be_bytes([header[2], header[3]]));
        let body = bytes.get(4..length)?;
        if kind == SHUT {
            // Without a number it is no success.
            self.shut = Some(body.first_chunk().map_or(u32::MAX, |code| u32::from_be_bytes(*code)));
            return None;
        }
        if kind == RECV_BITMAP {
            self.blob = Some(Blob::Length);
        }
        Some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_passes_up_to_the_last_word_however_it_is_cut() {
        let before = b"\0\x02\0\x04\0\0\0\x01\0\x05\0\x02\x01a\0\0\0\0\0\0\0\x08\0\x01\0\x04\0\0\0\0\x01\x23\x45\x67\x89\xab\xcd\xef\0\x07\0\0";
        let shut = b"\0\x01\0\x04\0\0\0\x05";
        let all = [&before[..], shut].concat();
        for cut in 1..all.len() {
            let mut path = ReturnPath::default();
            let passed: Vec<u8> = all.chunks(cut).flat_map(|part| path.push(part)).collect();
            assert_eq!(passed, before, "cut every {cut}");
            assert_eq!((path.shut(), path.take_rest()), (Some(5), shut.to_vec()));
        }
    }
}
