//! Streams written by hand, cut everywhere, broken on purpose.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::hash::PAGE_BYTES;

/// A small stream with everything that occurs in front of the devices.
fn stream() -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(b"\x07\0\0\0\x03abc\x05\x12configuration/uuid\0\0\0\x01");
    bytes.extend([9; 16]);
    bytes.extend(b"\x08\0\x01\0\0\x08\0\x02\0\x04\0\0\0\x01");
    bytes.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    bytes.extend((0x3000_u64 | 0x04).to_be_bytes());
    bytes.extend(b"\x01a\0\0\0\0\0\0\x20\0\x01b\0\0\0\0\0\0\x10\0");
    bytes.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    bytes.extend(b"\x02\0\0\0\x02");
    bytes.extend((0x08_u64).to_be_bytes());
    bytes.extend(b"\x01a");
    bytes.extend([5; PAGE_BYTES]);
    bytes.extend((0x1000_u64 | 0x22).to_be_bytes());
    bytes.push(0);
    bytes.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    // Device state in a package, as postcopy sends it.
    bytes.extend(b"\x08\0\x07\0\x04\0\0\0\x05hello");
    bytes.extend(b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    bytes.extend(b"\x04devices");
    bytes
}

fn records(mut parser: Parser, bytes: &[u8], cut: usize) -> (Vec<Record>, Phase) {
    let (mut from, mut records) = (0, Vec::new());
    for to in (cut..bytes.len() + cut).step_by(cut).map(|to| to.min(bytes.len())) {
        loop {
            match parser.step(&bytes[from..to]) {
                Step::More => break,
                Step::Raw(taken) | Step::Opaque(taken) => from += taken,
                Step::Record(record) => {
                    from += record.length;
                    records.push(record);
                }
            }
        }
    }
    (records, parser.phase())
}

fn expected() -> Vec<Record> {
    let page = Record { is_zero: false, address: 0, name: Some(1), length: 8 + 2 + PAGE_BYTES };
    vec![page, Record { is_zero: true, address: 0x1000, name: None, length: 9 }]
}

#[test]
fn pages_are_found_however_the_stream_is_cut() {
    let bytes = stream();
    for cut in [1, 2, 3, 7, 100, 4000, 5000, bytes.len()] {
        assert_eq!(records(Parser::default(), &bytes, cut), (expected(), Phase::Devices), "cut every {cut}");
    }
}

#[test]
fn an_unknown_section_in_front_is_passed_and_pages_behind_it_are_found() {
    let good = stream();
    let at = good.windows(5).position(|window| window == b"\x02\0\0\0\x02").unwrap();
    // A device that sends early, whose state looks like a footer now and then.
    let mut bytes = good[..at].to_vec();
    bytes.extend(b"\x04\0\0\0\x09\x05other state \x7e\0\0\0\x02\x02 more\x7e\0\0\0\x09");
    bytes.extend(&good[at..]);
    for cut in [1, 11, bytes.len()] {
        assert_eq!(records(Parser::default(), &bytes, cut), (expected(), Phase::Devices), "cut every {cut}");
    }
}

#[test]
fn a_record_taken_in_two_parts_does_not_lose_the_way() {
    let bytes = stream();
    let at = bytes.windows(5).position(|window| window == b"\x02\0\0\0\x02").unwrap() + 5;
    let mut parser = Parser::default();
    let (none, _) = records(parser.clone(), &bytes[..at], at);
    assert!(none.is_empty());
    let mut from = 0;
    while let Step::Raw(taken) = parser.step(&bytes[from..at + 50]) {
        from += taken;
    }
    assert_eq!(from, at);
    parser.gave_up_on(&bytes[from..at + 50]);
    assert_eq!(records(parser, &bytes[at + 50..], 64), (expected().split_off(1), Phase::Devices));
}

#[test]
fn what_is_no_migration_stream_passes_as_it_is() {
    assert_eq!(records(Parser::default(), &[b'Q'; 5000], 512), (vec![], Phase::Lost));
}
