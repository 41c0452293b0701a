//! Token batches into the bytes they were made of.

use std::io;

use super::memory::{Memory, Place};
use super::squeeze::Expander;
use super::token::{JUMP, Kind, NAMED, RUN, Reader, unzigzag};
use super::{BATCH_BYTES_MAX, BATCH_SPAN_MAX, Counters, Dictionary, Error, Settings, delta};
use crate::hash::{PAGE_BYTES, Page, PageHash, StreamHash, StreamHasher};
use crate::stream::record_header;

/// Lengths in plain and of the span, and half a hash.
const HEADER_BYTES: usize = 24;
/// A page's address has 64 bits.
const PAGE_NUMBER_MAX: u64 = u64::MAX / PAGE_BYTES as u64;

pub struct Decoder {
    memory: Memory,
    expander: Expander,
    /// Contents that only this side has, and told the other of.
    offered: Option<Box<dyn Dictionary>>,
    block: Option<u16>,
    next_page: u64,
    hasher: StreamHasher,
    has_failed: bool,
    counters: Counters,
}

/// Where a run of pages begins.
struct Run<'a> {
    name: Option<&'a [u8]>,
    block: u16,
    page: u64,
    length: u64,
}

impl Decoder {
    pub fn new(settings: &Settings) -> io::Result<Self> {
        Ok(Self {
            memory: Memory::new(settings),
            expander: Expander::new()?,
            offered: None,
            block: None,
            next_page: 0,
            hasher: StreamHasher::default(),
            has_failed: false,
            counters: Counters::default(),
        })
    }

    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Must be there before its contents are offered to the other side.
    pub fn offer(&mut self, dictionary: Box<dyn Dictionary>) {
        self.offered = Some(dictionary);
    }

    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Of everything that was let go.
    #[must_use]
    pub fn hash(&self) -> StreamHash {
        self.hasher.hash()
    }

    /// Bytes that were let go.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.hasher.length()
    }

    /// The bytes of a batch, compared with what the encoder hashed. After an error there is no way on.
    pub fn decode(&mut self, batch: &[u8]) -> Result<Vec<u8>, Error> {
        if self.has_failed {
            return Err(Error::Failed);
        }
        let decoded = self.decode_checked(batch);
        self.has_failed = decoded.is_err();
        decoded
    }

    fn decode_checked(&mut self, batch: &[u8]) -> Result<Vec<u8>, Error> {
        let mut header = Reader(batch);
        let (plain_length, span) = (be32(&mut header)?, be32(&mut header)?);
        let expected = header.take(HEADER_BYTES - 8)?;
        if plain_length > BATCH_BYTES_MAX || span > BATCH_SPAN_MAX {
            return Err(Error::Malformed("it is too large"));
        }
        let plain = self.expander.unpack(header.0, plain_length).map_err(Error::Unpack)?;
        let mut data = Reader(&plain);
        let operations_length = data.length()?;
        let mut operations = Reader(data.take(operations_length)?);
        let mut out = Output { bytes: Vec::with_capacity(span.min(1 << 20)), span };
        while !operations.is_empty() {
            self.operation(&mut operations, &mut data, &mut out)?;
        }
        if out.bytes.len() != span || !data.is_empty() {
            return Err(Error::Malformed("something is left over"));
        }
        self.hasher.update(&out.bytes);
        if self.hasher.hash().0[..16] != *expected {
            return Err(Error::Differs { position: self.hasher.length(), span });
        }
        self.counters.bytes_tokens += plain.len() as u64;
        self.counters.bytes_batches += batch.len() as u64;
        self.counters.bytes_stream += span as u64;
        Ok(out.bytes)
    }

    fn operation(
        &mut self,
        operations: &mut Reader<'_>,
        data: &mut Reader<'_>,
        out: &mut Output,
    ) -> Result<(), Error> {
        let head = operations.byte()?;
        let kind = Kind::parse(head)?;
        if kind == Kind::Raw {
            let length = operations.length()?;
            self.counters.bytes_raw += length as u64;
            return out.put(data.take(length)?);
        }
        let run = self.run(head, operations)?;
        match kind {
            Kind::Raw => Ok(()),
            Kind::Zero => self.zeros(&run, out),
            Kind::Same => self.same(&run, out),
            Kind::Reference | Kind::Delta | Kind::Literal if run.length > 1 => {
                Err(Error::Malformed("a run of pages that differ"))
            }
            Kind::Reference => {
                let hash = data.take(16)?.first_chunk().ok_or(Error::Malformed("a short name"))?;
                let page = self.referred(PageHash(*hash), run.page)?;
                self.counters.pages_reference += 1;
                self.page(&run, PageHash(*hash), &page, out)
            }
            Kind::Delta => {
                let length = operations.length()?;
                let page = self.changed(&run, data.take(length)?)?;
                self.counters.pages_delta += 1;
                self.page(&run, self.memory.hash(&page), &page, out)
            }
            Kind::Literal => {
                let page = data.take(PAGE_BYTES)?.first_chunk().ok_or(Error::Malformed("a short page"))?;
                self.counters.pages_literal += 1;
                self.page(&run, self.memory.hash(page), page, out)
            }
        }
    }

    fn run<'a>(&mut self, head: u8, operations: &mut Reader<'a>) -> Result<Run<'a>, Error> {
        let mut name = None;
        if head & NAMED != 0 {
            let length = operations.byte()?;
            let named = operations.take(usize::from(length))?;
            name = Some(named);
            self.block = Some(self.memory.block(named).ok_or(Error::Malformed("too many blocks"))?);
        }
        let jump = if head & JUMP != 0 { unzigzag(operations.varint()?) } else { 0 };
        let more = if head & RUN != 0 { operations.varint()? } else { 0 };
        let block = self.block.ok_or(Error::Malformed("a page before any block"))?;
        let page = self.next_page.wrapping_add_signed(jump);
        let is_sound = page <= PAGE_NUMBER_MAX && more <= PAGE_NUMBER_MAX - page;
        if !is_sound {
            return Err(Error::Malformed("a page behind the last address"));
        }
        self.next_page = page + more + 1;
        Ok(Run { name, block, page, length: more + 1 })
    }

    fn zeros(&mut self, run: &Run<'_>, out: &mut Output) -> Result<(), Error> {
        for page in run.page..run.page + run.length {
            out.record(run, page, true)?;
            out.put(&[0])?;
            self.memory.on_zero(Place { block: run.block, page });
        }
        self.counters.pages_zero += run.length;
        Ok(())
    }

    fn same(&mut self, run: &Run<'_>, out: &mut Output) -> Result<(), Error> {
        let mut content = [0; PAGE_BYTES];
        for page in run.page..run.page + run.length {
            let place = Place { block: run.block, page };
            let hash = self.memory.last(place).ok_or(Error::Missing { page })?;
            if !self.memory.read(&hash, &mut content) {
                return Err(Error::Missing { page });
            }
            out.record(run, page, false)?;
            out.put(&content)?;
            self.memory.on_same(place, hash);
        }
        self.counters.pages_same += run.length;
        Ok(())
    }

    fn referred(&mut self, hash: PageHash, page: u64) -> Result<Page, Error> {
        let mut content = [0; PAGE_BYTES];
        if self.memory.read(&hash, &mut content) {
            return Ok(content);
        }
        let is_there = self.offered.as_mut().is_some_and(|offered| offered.read(&hash, &mut content));
        // Whoever kept it may have lost a bit of it since it was offered.
        if is_there && self.memory.hash(&content) == hash {
            Ok(content)
        } else {
            Err(Error::Missing { page })
        }
    }

    fn changed(&mut self, run: &Run<'_>, changes: &[u8]) -> Result<Page, Error> {
        let missing = Error::Missing { page: run.page };
        let Some(last) = self.memory.last(Place { block: run.block, page: run.page }) else {
            return Err(missing);
        };
        let mut content = [0; PAGE_BYTES];
        if !self.memory.read(&last, &mut content) {
            return Err(missing);
        }
        delta::apply(&mut content, changes)?;
        Ok(content)
    }

    fn page(&mut self, run: &Run<'_>, hash: PageHash, page: &Page, out: &mut Output) -> Result<(), Error> {
        out.record(run, run.page, false)?;
        out.put(page)?;
        let place = Place { block: run.block, page: run.page };
        let last = self.memory.last(place);
        self.memory.on_page(place, last, hash, page);
        Ok(())
    }
}

/// What comes out of one batch, never more than it said.
struct Output {
    bytes: Vec<u8>,
    span: usize,
}

impl Output {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.bytes.len() + bytes.len() > self.span {
            return Err(Error::Malformed("it is longer than it says"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// A record up to its body; only the first of a run has a name.
    fn record(&mut self, run: &Run<'_>, page: u64, is_zero: bool) -> Result<(), Error> {
        let name = run.name.filter(|_| page == run.page);
        self.put(&record_header(page * PAGE_BYTES as u64, is_zero, name.is_some()))?;
        if let Some(name) = name {
            self.put(&[name.len() as u8])?;
            self.put(name)?;
        }
        Ok(())
    }
}

fn be32(reader: &mut Reader<'_>) -> Result<usize, Error> {
    Ok(reader.take(4)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}
