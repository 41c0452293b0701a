//! QEMU's migration stream (7.2 to 10.x, precopy and postcopy), as far as it helps to see pages in it.
//!
//! ```text
//! "QEVM" be32 3 [0x07 be32 n, n bytes, subsections]      then items until the end:
//!   0x01 START / 0x04 FULL   be32 id, str name, be32 instance, be32 version, payload, footer
//!   0x02 PART  / 0x03 END    be32 id, payload, footer      footer := 0x7e be32 id
//!   0x08 COMMAND             be16 command, be16 n, n bytes (7 PACKAGED: be32 n, then n bytes)
//!   0x00 end, 0x06 be32 n, n bytes of JSON
//! ```
//!
//! The parser is only a hint. Whatever it takes for a page, and wherever it loses its way, the same bytes come out at
//! the other end; being wrong costs bytes on the wire and nothing else. So it never fails: it says [`Step::Opaque`]
//! and looks for the next RAM section.

/// Where the device state ends: the bytes without which a target cannot say that it has everything.
pub mod tail;

mod ram;

pub(crate) use ram::header as record_header;

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Structure, to be taken whole.
    Raw(usize),
    /// One page, to be taken whole.
    Record(Record),
    /// Nothing known about these; fewer may be taken.
    Opaque(usize),
    /// Cannot be told before more bytes come.
    More,
}

/// A page record: `be64 address | flags`, a block's name unless it is the same as before, then the page or a zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub is_zero: bool,
    pub address: u64,
    /// Length of the name that follows the header after its length byte.
    pub name: Option<u8>,
    /// Of the whole record.
    pub length: usize,
}

/// How far the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Memory is on its way.
    Memory,
    /// All memory came; what follows is device state, which only QEMU understands.
    Devices,
    /// The parser does not know.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Magic,
    Item,
    Ram,
    /// Names and sizes of blocks, until they sum up.
    Blocks {
        left: u64,
    },
    Footer,
    /// Known to be of no interest.
    Skip {
        left: u64,
        then: Then,
    },
    Devices,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Item,
    Ram,
}

const MAGIC: [u8; 8] = *b"QEVM\0\0\0\x03";
const FOOTER: u8 = 0x7e;
const PACKAGED: u16 = 7;
/// A footer, the start of a section and one record header: less cannot show where to go on.
const RESUME_BYTES: usize = 18;

#[derive(Debug, Clone)]
pub struct Parser {
    state: State,
    ram_section: Option<u32>,
    /// This section is the last of memory.
    is_last: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self { state: State::Magic, ram_section: None, is_last: false }
    }
}

impl Parser {
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Devices => Phase::Devices,
            State::Lost => Phase::Lost,
            _ => Phase::Memory,
        }
    }

    /// What `bytes` begin with. After `Raw` and `Record` the next call is for the bytes behind them.
    pub fn step(&mut self, bytes: &[u8]) -> Step {
        if bytes.is_empty() {
            return Step::More;
        }
        match self.state {
            State::Magic => self.magic(bytes),
            State::Item => self.item(bytes),
            State::Ram => self.ram(bytes),
            State::Blocks { left } => self.blocks(bytes, left),
            State::Footer => self.footer(bytes),
            State::Skip { left, then } => self.skip(bytes.len(), left, then),
            State::Devices => Step::Opaque(bytes.len()),
            State::Lost => self.find_way(bytes),
        }
    }

    /// `bytes`, of which [`Step::More`] was said, were taken although something is missing.
    pub fn gave_up_on(&mut self, bytes: &[u8]) {
        self.state = match (self.state, ram::length(bytes)) {
            (State::Ram, Some(length)) if length > bytes.len() => {
                State::Skip { left: (length - bytes.len()) as u64, then: Then::Ram }
            }
            (State::Devices, _) => State::Devices,
            _ => State::Lost,
        };
    }

    fn lose(&mut self, bytes: &[u8]) -> Step {
        self.state = State::Lost;
        self.find_way(bytes)
    }

    fn magic(&mut self, bytes: &[u8]) -> Step {
        match bytes.first_chunk::<8>() {
            Some(start) if *start == MAGIC => self.take(MAGIC.len(), State::Item),
            None if MAGIC.starts_with(bytes) => Step::More,
            _ => self.lose(bytes),
        }
    }

    fn take(&mut self, length: usize, next: State) -> Step {
        self.state = next;
        Step::Raw(length)
    }

    fn item(&mut self, bytes: &[u8]) -> Step {
        match bytes[0] {
            0x00 | 0x06 => {
                self.state = State::Devices;
                self.step(bytes)
            }
            0x01 => self.start(bytes),
            0x02 | 0x03 => self.part(bytes),
            0x05 => self.subsection(bytes),
            0x07 => match be32(bytes, 1) {
                Some(length) => self.take(5, State::Skip { left: u64::from(length), then: Then::Item }),
                None => Step::More,
            },
            0x08 => self.command(bytes),
            _ => self.lose(bytes),
        }
    }

    fn start(&mut self, bytes: &[u8]) -> Step {
        let Some(name_length) = bytes.get(5) else { return Step::More };
        let end = 6 + usize::from(*name_length);
        let (Some(section), Some(name), true) = (be32(bytes, 1), bytes.get(6..end), bytes.len() >= end + 8)
        else {
            return Step::More;
        };
        if name != b"ram" {
            return self.lose(bytes);
        }
        self.ram_section = Some(section);
        self.take(end + 8, State::Ram)
    }

    fn part(&mut self, bytes: &[u8]) -> Step {
        match be32(bytes, 1) {
            None => Step::More,
            section if section == self.ram_section => {
                self.is_last = bytes[0] == 0x03;
                self.take(5, State::Ram)
            }
            Some(_) => self.lose(bytes),
        }
    }

    /// Of the configuration, in front of everything: the length follows from the name only.
    fn subsection(&mut self, bytes: &[u8]) -> Step {
        let Some(name_length) = bytes.get(1) else { return Step::More };
        let end = 2 + usize::from(*name_length);
        let Some(name) = bytes.get(2..end) else { return Step::More };
        let fields = match name {
            b"configuration/target-page-bits" => 4,
            b"configuration/uuid" => 16,
            _ => return self.lose(bytes),
        };
        self.take(end, State::Skip { left: 4 + fields, then: Then::Item })
    }

    fn command(&mut self, bytes: &[u8]) -> Step {
        let (Some(command), Some(length)) = (be16(bytes, 1), be16(bytes, 3)) else { return Step::More };
        if command != PACKAGED {
            return self.take(5, State::Skip { left: u64::from(length), then: Then::Item });
        }
        match be32(bytes, 5) {
            Some(length) => self.take(9, State::Skip { left: u64::from(length), then: Then::Item }),
            None => Step::More,
        }
    }

    fn ram(&mut self, bytes: &[u8]) -> Step {
        match ram::read(bytes) {
            ram::Read::More => Step::More,
            ram::Read::Record(record) => Step::Record(record),
            ram::Read::Other(length) => Step::Raw(length),
            ram::Read::Sizes(total) => self.take(8, State::Blocks { left: total }),
            ram::Read::End => self.take(8, State::Footer),
            ram::Read::Unknown => self.lose(bytes),
        }
    }

    fn blocks(&mut self, bytes: &[u8], left: u64) -> Step {
        if left == 0 {
            self.state = State::Ram;
            return self.ram(bytes);
        }
        let end = 1 + usize::from(bytes[0]);
        let Some(size) = be64(bytes, end) else { return Step::More };
        match left.checked_sub(size) {
            Some(left) if size > 0 => self.take(end + 8, State::Blocks { left }),
            _ => self.lose(bytes),
        }
    }

    fn footer(&mut self, bytes: &[u8]) -> Step {
        let next = if self.is_last { State::Devices } else { State::Item };
        if bytes[0] != FOOTER {
            // Very old machine types send none.
            self.state = next;
            return self.step(bytes);
        }
        match be32(bytes, 1) {
            None => Step::More,
            section if section == self.ram_section => self.take(5, next),
            Some(_) => self.lose(bytes),
        }
    }

    fn skip(&mut self, available: usize, left: u64, then: Then) -> Step {
        let taken = left.min(available as u64);
        let left = left - taken;
        self.state = match (left, then) {
            (0, Then::Item) => State::Item,
            (0, Then::Ram) => State::Ram,
            (left, then) => State::Skip { left, then },
        };
        Step::Raw(taken as usize)
    }

    /// Looks for the footer of one section, directly followed by a memory section that begins with a legal record.
    fn find_way(&mut self, bytes: &[u8]) -> Step {
        let Some(ram_section) = self.ram_section else { return Step::Opaque(bytes.len()) };
        let mut start = 0;
        while let Some(found) = bytes[start..].iter().position(|byte| *byte == FOOTER) {
            let at = start + found;
            let Some(window) = bytes.get(at..at + RESUME_BYTES) else {
                return if at == 0 { Step::More } else { Step::Opaque(at) };
            };
            let is_section = matches!(window[5], 0x02 | 0x03) && be32(window, 6) == Some(ram_section);
            if is_section && be64(window, 10).is_some_and(ram::is_legal) {
                return self.take(at + 5, State::Item);
            }
            start = at + 1;
        }
        Step::Opaque(bytes.len())
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests;
