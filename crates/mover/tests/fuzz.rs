//! Thousands of broken streams, batches and frames: never a panic, never a wrong byte.
//!
//! Mutations are seeded: a failure names its seed, and the seed repeats it.
#![allow(clippy::unwrap_used)]

mod dice;
#[path = "../../qemu/tests/world/mod.rs"]
mod machines;

use std::sync::OnceLock;

use dice::{Dice, mutate};
use machines::{Qemu, folder, machine, qemu};
use sterna_mover::codec::{Batch, Decoder, Encoder, Settings};
use sterna_mover::frame::{self, Frame, Kind};
use sterna_mover::hash::Key;
use sterna_qemu::boot;
use sterna_qemu::qmp::migration::{Address, Parameters};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

/// Streams of the QEMUs that are installed: whole pages of a guest cut out, so that what is left is mostly structure.
fn corpus() -> &'static [Vec<u8>] {
    static CORPUS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    CORPUS.get_or_init(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut corpus = vec![by_hand()];
        for binary in [7, 10].into_iter().filter_map(qemu) {
            let whole = runtime.block_on(capture(&binary));
            // The start, and the end with the devices: what lies between is more of the same.
            let cut = [&whole[..60_000], &whole[whole.len() - 60_000..]].concat();
            corpus.push(cut);
        }
        corpus
    })
}

/// Where no QEMU is.
fn by_hand() -> Vec<u8> {
    let mut bytes =
        b"QEVM\0\0\0\x03\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\0\0\0\0\0\x10\0\x04\x01a".to_vec();
    bytes.extend(b"\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    for round in 0..3_u8 {
        bytes.extend(b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x08\x01a");
        bytes.extend((0..4096).map(|at| (at / 64) as u8 ^ round));
        bytes.extend(b"\0\0\0\0\0\0\x10\x22\0\0\0\0\0\0\0\x20\x22\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    }
    bytes.extend(b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x04state\0\x06\0\0\0\x02{}");
    bytes
}

async fn capture(binary: &machines::Binary) -> Vec<u8> {
    let folder = folder();
    let disk = folder.path().join("root.img");
    boot::write_disk(&disk, &boot::dirtier(300, 2_000), 1 << 20).unwrap();
    let source = Qemu::start(binary, &machine(binary, folder.path(), "source", &disk)).await.unwrap();
    source.lives().await;
    let fast = Parameters { max_bandwidth: Some(1 << 30), ..Parameters::default() };
    source.qmp.set_migration_parameters(&fast).await.unwrap();
    let path = folder.path().join("out");
    let listener = UnixListener::bind(&path).unwrap();
    source.qmp.migrate(&Address::Unix(path)).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

fn settings() -> Settings {
    Settings { key: Key([1; 32]), store_bytes: 1 << 20, pages_max: 1 << 12 }
}

fn encode(bytes: &[u8], dice: &mut Dice) -> Vec<Batch> {
    let mut encoder = Encoder::new(&settings()).unwrap();
    let mut batches = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (part, after) = rest.split_at((1 + dice.below(20_000)).min(rest.len()));
        encoder.push(part, &mut batches).unwrap();
        match dice.below(8) {
            0 => encoder.flush_incomplete(&mut batches).unwrap(),
            1 => encoder.flush(&mut batches).unwrap(),
            _ => {}
        }
        rest = after;
    }
    encoder.release(&mut batches).unwrap();
    batches
}

#[test]
fn whatever_a_stream_looks_like_it_comes_back_as_it_was() {
    for (at, stream) in corpus().iter().enumerate() {
        let rounds = if stream.len() > 50_000 { 250 } else { 2_000 };
        for seed in 1..=rounds {
            let (mut dice, mut bytes) = (Dice(seed), stream.clone());
            mutate(&mut bytes, &mut dice);
            let mut decoder = Decoder::new(&settings()).unwrap();
            let mut out = Vec::new();
            for batch in encode(&bytes, &mut dice) {
                out.extend(decoder.decode(&batch.payload).unwrap());
            }
            assert!(out == bytes, "stream {at}, seed {seed}");
        }
    }
}

#[test]
fn a_damaged_batch_lets_no_wrong_byte_go() {
    for (at, stream) in corpus().iter().enumerate() {
        let batches = encode(stream, &mut Dice(77));
        for seed in 1..=1_500 {
            let mut dice = Dice(seed);
            let mut decoder = Decoder::new(&settings()).unwrap();
            let damaged = dice.below(batches.len());
            let mut out = Vec::new();
            for (number, batch) in batches.iter().enumerate() {
                let mut payload = batch.payload.to_vec();
                if number == damaged {
                    mutate(&mut payload, &mut dice);
                }
                match decoder.decode(&payload) {
                    Ok(bytes) => out.extend(bytes),
                    Err(_) => break,
                }
            }
            assert!(stream.starts_with(&out), "stream {at}, seed {seed}");
        }
    }
}

#[test]
fn damaged_frames_are_errors_or_the_frames_that_were_sent() {
    let frame = |number| Frame {
        kind: Kind::Batch,
        number,
        payload: bytes::Bytes::from(vec![number as u8; 100 * number as usize]),
    };
    let sent: Vec<_> = (1..6).map(frame).collect();
    let good: Vec<u8> =
        sent.iter().flat_map(|frame| [&frame.header()[..], &frame.payload].concat()).collect();
    for seed in 1..=20_000 {
        let (mut dice, mut bytes) = (Dice(seed), good.clone());
        mutate(&mut bytes, &mut dice);
        let mut decoder = frame::Decoder::default();
        for part in bytes.chunks(1 + dice.below(500)) {
            decoder.buffer().extend_from_slice(part);
            while let Ok(Some(frame)) = decoder.next_frame() {
                assert!(sent.contains(&frame), "seed {seed}");
            }
        }
    }
}
