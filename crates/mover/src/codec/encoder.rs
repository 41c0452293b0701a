//! Bytes of a migration stream into token batches.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::io;

use bytes::Bytes;

use super::memory::{Memory, Place};
use super::squeeze::Squeezer;
use super::token::{self, JUMP, Kind, NAMED, RUN, put_varint, zigzag};
use super::{BATCH_BYTES, BATCH_SPAN, Batch, Counters, RAW_MAX, Settings, delta, level};
use crate::hash::{NameHasher, PAGE_BYTES, Page, PageHash, StreamHash, StreamHasher};
use crate::stream::{Parser, Phase, Record, Step, tail};

/// The end of the stream, held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Of the whole stream with these bytes.
    pub hash: StreamHash,
    /// Of the whole stream.
    pub length: u64,
    pub bytes: usize,
    /// The stream's end was recognised. Otherwise it may go on; silence is all that speaks for an end.
    pub is_certain: bool,
}

/// Operations and their data, not packed yet.
#[derive(Default)]
struct Tokens {
    operations: Vec<u8>,
    data: Vec<u8>,
    open: Open,
}

/// The operation that the next bytes may lengthen.
#[derive(Default)]
enum Open {
    #[default]
    Nothing,
    Raw(usize),
    Run {
        kind: Kind,
        flags: u8,
        head: Vec<u8>,
        more: u64,
    },
}

impl Tokens {
    fn close(&mut self) {
        match std::mem::take(&mut self.open) {
            Open::Nothing => {}
            Open::Raw(length) => {
                self.operations.push(Kind::Raw as u8);
                put_varint(&mut self.operations, length as u64);
            }
            Open::Run { kind, flags, head, more } => {
                self.operations.push(kind as u8 | flags | if more > 0 { RUN } else { 0 });
                self.operations.extend(head);
                if more > 0 {
                    put_varint(&mut self.operations, more);
                }
            }
        }
    }

    fn raw(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(RAW_MAX) {
            match &mut self.open {
                Open::Raw(length) if *length + part.len() <= RAW_MAX => *length += part.len(),
                _ => {
                    self.close();
                    self.open = Open::Raw(part.len());
                }
            }
            self.data.extend_from_slice(part);
        }
    }

    /// Begins a page's operation, or lengthens the run before it.
    fn page(&mut self, kind: Kind, name: Option<&[u8]>, jump: i64) {
        if let Open::Run { kind: before, more, .. } = &mut self.open
            && (*before, name, jump) == (kind, None, 0)
            && matches!(kind, Kind::Zero | Kind::Same)
        {
            *more += 1;
            return;
        }
        self.close();
        let (mut head, mut flags) = (Vec::new(), 0);
        if let Some(name) = name {
            flags |= NAMED;
            head.push(name.len() as u8);
            head.extend_from_slice(name);
        }
        if jump != 0 {
            flags |= JUMP;
            put_varint(&mut head, zigzag(jump));
        }
        self.open = Open::Run { kind, flags, head, more: 0 };
    }

    fn bytes(&self) -> usize {
        self.operations.len() + self.data.len()
    }

    /// The batch in plain, and empty again.
    fn take(&mut self) -> Vec<u8> {
        self.close();
        let mut plain = Vec::with_capacity(self.bytes() + 4);
        put_varint(&mut plain, self.operations.len() as u64);
        plain.append(&mut self.operations);
        plain.append(&mut self.data);
        plain
    }
}

pub struct Encoder {
    memory: Memory,
    parser: Parser,
    /// Bytes since the last batch; those before `position` are in `tokens`.
    input: Vec<u8>,
    position: usize,
    tokens: Tokens,
    block: Option<u16>,
    next_page: u64,
    hasher: StreamHasher,
    squeezer: Squeezer,
    level: i32,
    /// Contents that only the target has.
    offered: HashSet<PageHash, BuildHasherDefault<NameHasher>>,
    counters: Counters,
}

impl Encoder {
    pub fn new(settings: &Settings) -> io::Result<Self> {
        Ok(Self {
            memory: Memory::new(settings),
            parser: Parser::default(),
            input: Vec::new(),
            position: 0,
            tokens: Tokens::default(),
            block: None,
            next_page: 0,
            hasher: StreamHasher::default(),
            squeezer: Squeezer::new(level::LEVEL_START)?,
            level: level::LEVEL_START,
            offered: HashSet::default(),
            counters: Counters::default(),
        })
    }

    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Contents that the target copied, hashed again, and promised to keep until the end.
    pub fn on_offered(&mut self, hashes: impl IntoIterator<Item = PageHash>) {
        self.offered.extend(hashes);
    }

    /// For the batches from now on.
    pub fn set_level(&mut self, level: i32) {
        self.level = level.clamp(level::LEVEL_MIN, level::LEVEL_MAX);
    }

    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        self.parser.phase()
    }

    /// Takes bytes in; batches come out as they become full.
    pub fn push(&mut self, bytes: &[u8], batches: &mut Vec<Batch>) -> io::Result<()> {
        self.counters.bytes_stream += bytes.len() as u64;
        self.input.extend_from_slice(bytes);
        loop {
            match self.parser.step(&self.input[self.position..]) {
                Step::More => return Ok(()),
                Step::Raw(length) => self.raw(length),
                Step::Record(record) => self.record(record),
                Step::Opaque(length) => {
                    let free = length.min(tail::find(&self.input[self.position..]).start);
                    if free == 0 {
                        return Ok(());
                    }
                    self.raw(free);
                }
            }
            if self.tokens.bytes() >= BATCH_BYTES || self.position >= BATCH_SPAN {
                self.seal(batches)?;
            }
        }
    }

    /// Lets go what is complete: QEMU is silent, and the target need not wait for a full batch.
    pub fn flush(&mut self, batches: &mut Vec<Batch>) -> io::Result<()> {
        if self.position > 0 { self.seal(batches) } else { Ok(()) }
    }

    /// Also what is incomplete, but for the stream's end: QEMU has been silent for long, so the piece that seems to
    /// be missing may be a misunderstanding.
    pub fn flush_incomplete(&mut self, batches: &mut Vec<Batch>) -> io::Result<()> {
        let rest = &self.input[self.position..];
        let free = match self.parser.phase() {
            Phase::Memory if !rest.is_empty() => {
                self.parser.gave_up_on(rest);
                rest.len()
            }
            Phase::Memory => 0,
            Phase::Devices | Phase::Lost => tail::find(rest).start,
        };
        self.raw(free);
        self.flush(batches)
    }

    /// The end of the stream as far as it is here; `None` while memory comes.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        let rest = &self.input[self.position..];
        if self.parser.phase() == Phase::Memory || rest.is_empty() {
            return None;
        }
        let mut hasher = self.hasher.clone();
        hasher.update(&self.input);
        let tail = tail::find(rest);
        let is_certain = tail.is_certain && tail.start == 0;
        Some(Held { hash: hasher.hash(), length: hasher.length(), bytes: rest.len(), is_certain })
    }

    /// Lets the end go, too. The last batch is the one without which the target is not complete.
    pub fn release(&mut self, batches: &mut Vec<Batch>) -> io::Result<()> {
        while self.position < self.input.len() {
            self.raw((self.input.len() - self.position).min(BATCH_BYTES));
            self.seal(batches)?;
        }
        Ok(())
    }

    fn raw(&mut self, length: usize) {
        self.tokens.raw(&self.input[self.position..self.position + length]);
        self.position += length;
        self.counters.bytes_raw += length as u64;
    }

    fn record(&mut self, record: Record) {
        let bytes = &self.input[self.position..self.position + record.length];
        let name = record.name.map(|length| &bytes[9..9 + usize::from(length)]);
        let block = match name {
            Some(name) => self.memory.block(name),
            None => self.block,
        };
        let Some(block) = block else {
            self.block = None;
            return self.raw(record.length);
        };
        self.block = Some(block);
        let place = Place { block, page: record.address / PAGE_BYTES as u64 };
        let jump = (place.page as i64).wrapping_sub(self.next_page as i64);
        self.next_page = place.page + 1;
        match bytes.last_chunk::<PAGE_BYTES>() {
            Some(page) if !record.is_zero => {
                let encoded = Paged { memory: &mut self.memory, offered: &self.offered, place }.encode(page);
                count(&mut self.counters, encoded.kind());
                self.tokens.page(encoded.kind(), name, jump);
                encoded.write(&mut self.tokens);
            }
            _ => {
                self.memory.on_zero(place);
                count(&mut self.counters, Kind::Zero);
                self.tokens.page(Kind::Zero, name, jump);
            }
        }
        self.position += record.length;
    }

    fn seal(&mut self, batches: &mut Vec<Batch>) -> io::Result<()> {
        let plain = self.tokens.take();
        let span = self.position;
        self.hasher.update(&self.input[..span]);
        self.input.drain(..span);
        self.position = 0;
        let packed = self.squeezer.pack(&plain, self.level)?;
        let mut payload = Vec::with_capacity(packed.len() + 24);
        payload.extend((plain.len() as u32).to_be_bytes());
        payload.extend((span as u32).to_be_bytes());
        payload.extend(&self.hasher.hash().0[..16]);
        payload.extend(packed);
        self.counters.bytes_tokens += plain.len() as u64;
        self.counters.bytes_batches += payload.len() as u64;
        batches.push(Batch { payload: Bytes::from(payload), span });
        Ok(())
    }
}

/// One page on its way to a token.
struct Paged<'a> {
    memory: &'a mut Memory,
    offered: &'a HashSet<PageHash, BuildHasherDefault<NameHasher>>,
    place: Place,
}

enum Encoded<'a> {
    Same,
    Reference(PageHash),
    Delta(Vec<u8>),
    Literal(&'a Page),
}

impl Paged<'_> {
    /// The cheapest form that the target can undo.
    fn encode<'p>(mut self, page: &'p Page) -> Encoded<'p> {
        let hash = self.memory.hash(page);
        let last = self.memory.last(self.place);
        if last == Some(hash) && self.memory.knows(&hash) {
            self.memory.on_same(self.place, hash);
            return Encoded::Same;
        }
        let encoded = if self.memory.knows(&hash) || self.offered.contains(&hash) {
            Encoded::Reference(hash)
        } else {
            self.delta(last, page).map_or(Encoded::Literal(page), Encoded::Delta)
        };
        self.memory.on_page(self.place, last, hash, page);
        encoded
    }

    fn delta(&mut self, last: Option<PageHash>, page: &Page) -> Option<Vec<u8>> {
        // Zeros are no help: zstd finds them in the page itself.
        let last = last.filter(|last| *last != PageHash::ZERO)?;
        let mut old = [0; PAGE_BYTES];
        let mut written = Vec::new();
        self.memory.read(&last, &mut old).then_some(())?;
        delta::write(&mut written, &old, page)?;
        Some(written)
    }
}

impl Encoded<'_> {
    fn kind(&self) -> Kind {
        match self {
            Self::Same => Kind::Same,
            Self::Reference(_) => Kind::Reference,
            Self::Delta(_) => Kind::Delta,
            Self::Literal(_) => Kind::Literal,
        }
    }

    fn write(self, tokens: &mut Tokens) {
        match self {
            Self::Same => {}
            Self::Reference(hash) => tokens.data.extend(hash.0),
            Self::Literal(page) => tokens.data.extend(page),
            Self::Delta(delta) => {
                tokens.close();
                token::put_varint(&mut tokens.operations, delta.len() as u64);
                tokens.data.extend(delta);
            }
        }
    }
}

fn count(counters: &mut Counters, kind: Kind) {
    match kind {
        Kind::Raw => {}
        Kind::Zero => counters.pages_zero += 1,
        Kind::Same => counters.pages_same += 1,
        Kind::Reference => counters.pages_reference += 1,
        Kind::Delta => counters.pages_delta += 1,
        Kind::Literal => counters.pages_literal += 1,
    }
}
