//! How fast a captured migration stream is encoded and rebuilt, on one core, and what is left of it.
//!
//! `cargo run --release -p sterna-mover --example throughput -- STREAM [LEVEL]`. A stream is captured with
//! `migrate` to `exec:cat > STREAM`.

use std::error::Error;
use std::time::{Duration, Instant};

use sterna_mover::codec::{Decoder, Encoder, Settings};
use sterna_mover::hash::Key;

/// As a session reads.
const READ_BYTES: usize = 256 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which stream?")?;
    let level = arguments.next().map_or(Ok(1), |level| level.parse())?;
    let stream = std::fs::read(path)?;
    let settings = Settings::for_guest(Key([0; 32]), stream.len() as u64, 1 << 30);
    let (mut encoder, mut decoder) = (Encoder::new(&settings)?, Decoder::new(&settings)?);
    encoder.set_level(level);
    let (mut encoding, mut decoding, mut rebuilt) = (Duration::ZERO, Duration::ZERO, 0);
    let mut batches = Vec::new();
    for part in stream.chunks(READ_BYTES).map(Some).chain([None]) {
        let began = Instant::now();
        match part {
            Some(part) => encoder.push(part, &mut batches)?,
            None => encoder.release(&mut batches)?,
        }
        let encoded = Instant::now();
        encoding += encoded - began;
        for batch in batches.drain(..) {
            rebuilt += decoder.decode(&batch.payload)?.len();
        }
        decoding += encoded.elapsed();
    }
    if rebuilt != stream.len() {
        return Err("another length came out".into());
    }
    let counters = encoder.counters();
    let rate = |took: Duration| stream.len() as f64 / 1e6 / took.as_secs_f64();
    println!("in  {:>12} bytes", counters.bytes_stream);
    println!(
        "out {:>12} bytes, {:.4} of it",
        counters.bytes_batches,
        counters.bytes_batches as f64 / stream.len() as f64
    );
    println!("encode {:.0} MB/s, decode {:.0} MB/s, level {level}", rate(encoding), rate(decoding));
    println!("{counters:?}");
    Ok(())
}
