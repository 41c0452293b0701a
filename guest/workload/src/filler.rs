//! Fills memory and holds it: with text, which compresses, or with random bytes, which do not.

use std::sync::{Mutex, PoisonError};

use crate::system;

/// Left for the kernel and the other threads when somebody asks for all there is.
const RESERVE_MIB: u64 = 16;
const MIB: usize = 1 << 20;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Kind {
    #[default]
    Text,
    Random,
}

impl Kind {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "random" => Some(Self::Random),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Random => "random",
        }
    }
}

#[derive(Default)]
pub struct Filler {
    held: Mutex<Held>,
}

/// Each kind beside the other.
#[derive(Default)]
struct Held {
    text: Vec<Vec<u8>>,
    random: Vec<Vec<u8>>,
}

impl Held {
    fn of(&mut self, kind: Kind) -> &mut Vec<Vec<u8>> {
        match kind {
            Kind::Text => &mut self.text,
            Kind::Random => &mut self.random,
        }
    }
}

/// More memory was asked for than the guest has left.
#[derive(Debug)]
pub struct TooMuch {
    pub available_mib: u64,
}

impl Filler {
    /// MiB held of a kind.
    pub fn held(&self, kind: Kind) -> u64 {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).of(kind).len() as u64
    }

    /// Replaces what is held of a kind; zero MiB gives it back.
    pub fn fill(&self, mib: u64, kind: Kind) -> Result<(), TooMuch> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.of(kind).clear();
        check_room(mib)?;
        let mut random = Random::new(mib ^ 0xf111);
        *held.of(kind) = (0..mib).map(|index| chunk(kind, index, &mut random)).collect();
        Ok(())
    }
}

/// Refuses what would leave the guest without memory to answer with.
pub fn check_room(mib: u64) -> Result<(), TooMuch> {
    let available_mib = system::available_mib().saturating_sub(RESERVE_MIB);
    if mib > available_mib { Err(TooMuch { available_mib }) } else { Ok(()) }
}

fn chunk(kind: Kind, index: u64, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MIB + 128);
    let mut line = index << 32;
    while bytes.len() < MIB {
        match kind {
            Kind::Text => bytes.extend_from_slice(text_line(line, random.next()).as_bytes()),
            Kind::Random => bytes.extend_from_slice(&random.next().to_le_bytes()),
        }
        line += 1;
    }
    bytes.truncate(MIB);
    bytes
}

/// Like a line of a web server's log: mostly the same, with a few fields that differ.
fn text_line(number: u64, random: u64) -> String {
    let (user, path, status) =
        (random % 1000, random >> 40, if random.is_multiple_of(17) { 404 } else { 200 });
    format!("{number} GET /shop/item/{path:x}?user={user} HTTP/1.1 {status} text/html; charset=utf-8\n")
}

/// xorshift64*: fast, and good enough for picking pages and filling them.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_of_a_chunk_is_like_another() {
        for kind in [Kind::Text, Kind::Random] {
            let bytes = chunk(kind, 3, &mut Random::new(9));
            let mut pages: Vec<&[u8]> = bytes.chunks(4096).collect();
            pages.sort();
            pages.dedup();
            assert_eq!(pages.len(), 256, "{kind:?}");
        }
    }

    #[test]
    fn a_name_reads_back() {
        for kind in [Kind::Text, Kind::Random] {
            assert_eq!(Kind::parse(kind.name()), Some(kind));
        }
        assert_eq!(Kind::parse("zeros"), None);
    }

    #[test]
    fn both_kinds_are_held_beside_each_other() {
        let filler = Filler::default();
        filler.fill(2, Kind::Text).unwrap();
        filler.fill(1, Kind::Random).unwrap();
        assert_eq!((filler.held(Kind::Text), filler.held(Kind::Random)), (2, 1));
        filler.fill(0, Kind::Text).unwrap();
        assert_eq!((filler.held(Kind::Text), filler.held(Kind::Random)), (0, 1));
    }

    #[test]
    fn more_than_there_is_is_refused() {
        assert!(Filler::default().fill(1 << 40, Kind::Text).is_err());
    }
}
