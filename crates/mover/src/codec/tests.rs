//! What goes in comes out: hand-made guests, hostile batches, both sides forgetting alike.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use super::*;
use crate::hash::PAGE_BYTES;
use crate::stream::record_header;

const PAGE: u64 = PAGE_BYTES as u64;

fn settings(store_pages: u64) -> Settings {
    Settings { key: Key([3; 32]), store_bytes: store_pages * PAGE, pages_max: 1 << 16 }
}

/// Writes streams as QEMU does, with a guest that changes between passes.
struct Guest {
    bytes: Vec<u8>,
}

impl Guest {
    fn new() -> Self {
        let mut bytes = b"QEVM\0\0\0\x03\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
        bytes.extend((0x10_0000_u64 | 0x04).to_be_bytes());
        bytes.extend(b"\x06pc.ram\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
        Self { bytes }
    }

    fn section(&mut self, kind: u8, pages: &[(u64, Option<Page>)]) {
        self.bytes.extend([kind, 0, 0, 0, 2]);
        for (at, (page, content)) in pages.iter().enumerate() {
            self.bytes.extend(record_header(page * PAGE, content.is_none(), at == 0));
            if at == 0 {
                self.bytes.extend(b"\x06pc.ram");
            }
            self.bytes.extend(content.as_ref().map_or(&[0][..], |page| page));
        }
        self.bytes.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    }

    fn end(&mut self, pages: &[(u64, Option<Page>)]) {
        self.section(0x03, pages);
        self.bytes.extend(b"\x04\0\0\0\x05\x03cpu state of a processor\0\0\x06\0\0\0\x08{\"a\": 1}");
    }
}

/// Text-like, so that it can be squeezed; `seed` makes it another page.
fn page(seed: u32) -> Page {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        b"the quick fox"[state as usize % 13]
    })
}

fn changed(mut page: Page, at: usize) -> Page {
    page[at] = page[at].wrapping_add(1);
    page
}

/// Pages that repeat, change a little, change wholly, go back, become zero and come back.
fn guest() -> Guest {
    let mut guest = Guest::new();
    let first: Vec<_> = (0..64).map(|at| (at, (at % 4 != 3).then(|| page(at as u32 / 2)))).collect();
    guest.section(0x02, &first);
    let second: Vec<_> = (0..32).map(|at| (at * 2, Some(changed(page(at as u32), 99)))).collect();
    guest.section(0x02, &second);
    guest.section(0x02, &second);
    let third: Vec<_> =
        (0..16).map(|at| (at, if at % 3 == 0 { None } else { Some(page(1000 + at as u32)) })).collect();
    guest.section(0x02, &third);
    guest.end(&first[..16]);
    guest
}

fn encode(encoder: &mut Encoder, bytes: &[u8], cut: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    for part in bytes.chunks(cut) {
        encoder.push(part, &mut batches).unwrap();
        encoder.flush(&mut batches).unwrap();
    }
    encoder.release(&mut batches).unwrap();
    batches
}

fn decode(decoder: &mut Decoder, batches: &[Batch]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    for batch in batches {
        out.extend(decoder.decode(&batch.payload)?);
    }
    Ok(out)
}

#[test]
fn every_stream_comes_back_exactly_however_it_was_cut_and_whatever_was_forgotten() {
    let bytes = guest().bytes;
    for store_pages in [0, 1, 5, 30, 1000] {
        for cut in [500, 4096, 10_000, bytes.len()] {
            let mut encoder = Encoder::new(&settings(store_pages)).unwrap();
            let mut decoder = Decoder::new(&settings(store_pages)).unwrap();
            let batches = encode(&mut encoder, &bytes, cut);
            assert!(decode(&mut decoder, &batches).unwrap() == bytes, "{store_pages} pages, cut every {cut}");
            let (sent, got) = (encoder.counters(), decoder.counters());
            assert_eq!(Counters { bytes_batches: 0, ..sent }, Counters { bytes_batches: 0, ..got });
        }
    }
}

#[test]
fn each_kind_of_page_takes_its_cheapest_form() {
    let bytes = guest().bytes;
    let mut encoder = Encoder::new(&settings(1000)).unwrap();
    let packed: usize =
        encode(&mut encoder, &bytes, bytes.len()).iter().map(|batch| batch.payload.len()).sum();
    let counters = encoder.counters();
    // First pass: 16 zero, 32 contents of which 16 occur twice. Then 16 changed, 16 that came from zero...
    assert_eq!(counters.pages_zero, 16 + 6 + 4);
    assert_eq!(counters.pages_literal, 32 + 10);
    assert_eq!(counters.pages_same, 32);
    assert_eq!(counters.pages_delta + counters.pages_reference, 16 + 32 + 12);
    assert!(packed < bytes.len() / 6, "{packed} of {}", bytes.len());
}

#[test]
fn the_end_is_held_until_it_is_released_and_its_hash_is_known_before() {
    let bytes = guest().bytes;
    let (mut encoder, mut batches) = (Encoder::new(&settings(10)).unwrap(), Vec::new());
    encoder.push(&bytes[..bytes.len() - 1], &mut batches).unwrap();
    assert!(!encoder.held().unwrap().is_certain);
    encoder.push(&bytes[bytes.len() - 1..], &mut batches).unwrap();
    encoder.flush_incomplete(&mut batches).unwrap();
    let held = encoder.held().unwrap();
    assert!(held.is_certain);
    assert_eq!((held.bytes, held.length), (14, bytes.len() as u64));
    let mut decoder = Decoder::new(&settings(10)).unwrap();
    assert!(decode(&mut decoder, &batches).unwrap() == bytes[..bytes.len() - 14]);
    let mut last = Vec::new();
    encoder.release(&mut last).unwrap();
    assert_eq!(decode(&mut decoder, &last).unwrap(), &bytes[bytes.len() - 14..]);
    assert_eq!(decoder.hash(), held.hash);
}

#[test]
fn a_stream_nobody_understands_is_held_at_its_newest_byte_only() {
    let (mut encoder, mut batches) = (Encoder::new(&settings(10)).unwrap(), Vec::new());
    encoder.push(&[7; 100_000], &mut batches).unwrap();
    encoder.flush_incomplete(&mut batches).unwrap();
    let held = encoder.held().unwrap();
    assert_eq!((held.bytes, held.is_certain), (1, false));
    assert_eq!(batches.iter().map(|batch| batch.span).sum::<usize>(), 99_999);
}

struct Pages {
    at: HashMap<u64, PageHash>,
    contents: HashMap<PageHash, Page>,
}

impl Pages {
    fn of(pages: &[(u64, Page)]) -> Self {
        let name = |page: &Page| PageHash::of(&Key([3; 32]), page);
        Self {
            at: pages.iter().map(|(at, page)| (*at, name(page))).collect(),
            contents: pages.iter().map(|(_, page)| (name(page), *page)).collect(),
        }
    }
}

impl Dictionary for Pages {
    fn at(&self, block: &[u8], page: u64) -> Option<PageHash> {
        (block == b"pc.ram").then(|| self.at.get(&page).copied())?
    }

    fn contains(&self, hash: &PageHash) -> bool {
        self.contents.contains_key(hash)
    }

    fn read(&mut self, hash: &PageHash, into: &mut Page) -> bool {
        self.contents.get(hash).is_some_and(|page| {
            *into = *page;
            true
        })
    }
}

fn visited() -> (Vec<(u64, Page)>, Vec<u8>) {
    let before: Vec<_> = (0..50).map(|at| (at, page(at as u32))).collect();
    let mut guest = Guest::new();
    let now = |(at, page): &(u64, Page)| (*at, Some(if at % 10 == 0 { changed(*page, 5) } else { *page }));
    guest.end(&before.iter().map(now).collect::<Vec<_>>());
    (before, guest.bytes)
}

#[test]
fn a_checkpoint_on_both_sides_leaves_only_what_changed() {
    let (before, bytes) = visited();
    let (mut encoder, mut decoder) =
        (Encoder::new(&settings(10)).unwrap(), Decoder::new(&settings(10)).unwrap());
    encoder.memory().share(Box::new(Pages::of(&before)));
    decoder.memory().share(Box::new(Pages::of(&before)));
    let batches = encode(&mut encoder, &bytes, 9000);
    assert!(decode(&mut decoder, &batches).unwrap() == bytes);
    let counters = encoder.counters();
    assert_eq!((counters.pages_same, counters.pages_delta, counters.pages_literal), (45, 5, 0));
}

#[test]
fn an_offered_page_is_referred_to_and_one_that_rotted_stops_the_stream() {
    let (before, bytes) = visited();
    let (mut encoder, mut decoder) =
        (Encoder::new(&settings(0)).unwrap(), Decoder::new(&settings(0)).unwrap());
    let mut offers = Pages::of(&before);
    encoder.on_offered(offers.contents.keys().copied());
    let batches = encode(&mut encoder, &bytes, bytes.len());
    assert_eq!(encoder.counters().pages_reference, 45);
    decoder.offer(Box::new(Pages::of(&before)));
    assert!(decode(&mut decoder, &batches).unwrap() == bytes);
    offers.contents.values_mut().for_each(|page| page[0] ^= 1);
    let mut rotten = Decoder::new(&settings(0)).unwrap();
    rotten.offer(Box::new(offers));
    assert!(matches!(decode(&mut rotten, &batches), Err(Error::Missing { .. })));
}

#[test]
fn sides_that_remember_differently_notice_before_anything_is_let_go() {
    let bytes = guest().bytes;
    let batches = encode(&mut Encoder::new(&settings(1000)).unwrap(), &bytes, bytes.len());
    let mut decoder = Decoder::new(&Settings { key: Key([4; 32]), ..settings(1000) }).unwrap();
    assert!(decode(&mut decoder, &batches).is_err());
    assert!(matches!(decoder.decode(&batches[0].payload), Err(Error::Failed)));
}
